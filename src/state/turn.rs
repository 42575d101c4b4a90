//! The parts of one turn: numbered, bounded, and kept a while after the turn ends.
//!
//! The worker's replica gives out the numbers ([`Turn::push`]); a replica that relays takes them as they
//! come ([`Turn::accept`]). Either answers a follower with what it lacks ([`Turn::after`]).
//!
//! Invariant: `parts` holds exactly the parts `first..=last`; `folded_to <= last`; while the turn is open
//! every part that is not folded is held, so a follower can be told that parts were evicted only of a
//! turn that has closed.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::time::Moment;

/// How many bytes of parts a turn holds by default: 1 MiB of what was serialised.
pub const TURN_BYTES_MAX: usize = 1 << 20;

/// How long the parts stay after a turn has closed: 15 s, as long as a dial that was in flight when a fast
/// turn ended can take to ask for what is left.
pub const GRACE: Duration = Duration::from_secs(15);

/// The parts of a turn, in one place.
#[derive(Clone, Debug)]
pub struct Turn {
    number: u32,
    parts: VecDeque<Arc<str>>,
    first: u32,
    last: u32,
    folded_to: u32,
    bytes: usize,
    closed_at: Option<Moment>,
}

/// Why a part was not taken. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartRefused {
    /// The turn has ended.
    Closed,
    /// It does not fit beside the parts that no message has folded yet.
    Full {
        /// Bytes of the parts not folded yet.
        held: usize,
        /// How many there may be.
        max: usize,
    },
    /// The number given is not the next one: a part before it is missing.
    Gap {
        /// The last part there is.
        last: u32,
    },
}

impl fmt::Display for PartRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartRefused::Closed => f.write_str("the turn has ended; claim the stream again"),
            PartRefused::Full { held, max } => write!(
                f,
                "the turn holds {held} bytes of parts of at most {max}; commit a message to fold them"
            ),
            PartRefused::Gap { last } => {
                write!(f, "the last part of the turn is {last}; send part {} next", last.saturating_add(1))
            }
        }
    }
}

impl std::error::Error for PartRefused {}

/// What became of a part that came with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It was the next one.
    New,
    /// It was there already, or is in a message.
    Again,
    /// Parts are missing before it: ask for those after this number.
    Gap(u32),
}

/// What a follower lacks.
#[derive(Debug)]
pub struct Lack<'a> {
    /// Set when parts after the follower's were let go of: it must clear its draft.
    pub evicted: bool,
    /// The number of the first part that follows.
    pub first: u32,
    /// What is left, in order.
    pub parts: std::collections::vec_deque::Iter<'a, Arc<str>>,
}

impl Turn {
    /// A turn that begins here, or of which parts up to `after` went by elsewhere.
    pub fn begin(number: u32, after: u32) -> Turn {
        Turn {
            number,
            parts: VecDeque::new(),
            first: after.saturating_add(1),
            last: after,
            folded_to: after,
            bytes: 0,
            closed_at: None,
        }
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The number of its last part; 0 if it has none.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// The last part that is in a message.
    pub fn folded_to(&self) -> u32 {
        self.folded_to
    }

    /// The bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.closed_at.is_some()
    }

    /// Whether there are parts no message stands for.
    pub fn has_draft(&self) -> bool {
        self.folded_to < self.last
    }

    /// Takes the next part and gives its number. Parts a message stands for make room if they must.
    pub fn push(&mut self, part: Arc<str>, bytes_max: usize) -> Result<u32, PartRefused> {
        if self.is_closed() {
            return Err(PartRefused::Closed);
        }
        self.shed_folded(bytes_max.saturating_sub(part.len()));
        if self.bytes + part.len() > bytes_max {
            return Err(PartRefused::Full { held: self.bytes, max: bytes_max });
        }
        self.append(part);
        Ok(self.last)
    }

    /// Takes a part that comes with its number, from a producer that sends again after a cut or from the
    /// worker's replica. Beyond `bytes_max` the oldest go: the worker has them.
    pub fn accept(&mut self, n: u32, part: Arc<str>, bytes_max: usize) -> Accepted {
        if n <= self.last {
            return Accepted::Again;
        }
        if n != self.last + 1 {
            return Accepted::Gap(self.last);
        }
        self.append(part);
        self.shed(bytes_max);
        Accepted::New
    }

    fn append(&mut self, part: Arc<str>) {
        self.bytes += part.len();
        self.last += 1;
        self.parts.push_back(part);
        debug_assert_eq!(self.parts.len() as u64, u64::from(self.last) + 1 - u64::from(self.first));
    }

    /// A message stands for the parts up to `upto`. One that comes before its parts did makes them count
    /// as seen: they will not be shown.
    pub fn fold(&mut self, upto: u32) {
        self.folded_to = self.folded_to.max(upto);
        if upto > self.last {
            self.parts.clear();
            self.bytes = 0;
            (self.first, self.last) = (upto.saturating_add(1), upto);
        }
    }

    /// The parts before `first` are lost: what is here is let go of, and `first` is the next one.
    pub fn skip_to(&mut self, first: u32) {
        if first > self.last + 1 {
            self.parts.clear();
            self.bytes = 0;
            (self.first, self.last) = (first, first - 1);
        }
    }

    /// The turn has ended; its parts stay for [`GRACE`].
    pub fn close(&mut self, now: Moment) {
        self.closed_at.get_or_insert(now);
    }

    /// When its parts may go, if it has ended.
    pub fn expires(&self) -> Option<Moment> {
        self.closed_at.map(|at| at + GRACE)
    }

    /// What somebody lacks who has the parts up to `part`.
    pub fn after(&self, part: u32) -> Lack<'_> {
        let next = part.saturating_add(1);
        let skip = next.saturating_sub(self.first) as usize;
        Lack {
            evicted: next < self.first && part < self.last,
            first: next.max(self.first),
            parts: self.parts.range(skip.min(self.parts.len())..),
        }
    }

    /// Lets go of parts that messages stand for, oldest first, until at most `bytes_max` are held.
    pub fn shed_folded(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.first <= self.folded_to {
            self.drop_first();
        }
    }

    /// Lets go of parts, oldest first, until at most `bytes_max` are held.
    pub fn shed(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && !self.parts.is_empty() {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(part) = self.parts.pop_front() {
            self.bytes -= part.len();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests;
