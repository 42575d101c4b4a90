//! The row of a stream: what may happen to it, and which position each change takes.
//!
//! Whoever holds the row's lock calls one of these methods, writes back what changed and commits. Because
//! the lock orders commits, a lower position never becomes visible after a higher one.
//!
//! Invariant: `pos` rises by one for each changed thing (a message, the queue, the status, the error), and
//! no `*_pos` is above it. `turn_no` rises with each claim and is never used again. Only `Running` and
//! `Interrupting` have a worker, and a write of a turn is accepted from the holder of `(turn, lease)` alone.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::time::Wall;

/// The longest message accepted, in bytes of its content: 1 MiB.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Which parts a message stands for: those of `turn` up to and with number `upto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fold {
    /// The turn that produced them.
    pub turn: u32,
    /// The last part that is in the message.
    pub upto: u32,
}

/// Where a follower stands: what it has seen of the history, and of the turn that runs.
///
/// Compares as its fields do, in this order, which is also how tokens sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cursor {
    /// How often earlier history had been made wrong.
    pub generation: u32,
    /// The last durable change it has seen.
    pub pos: u64,
    /// The last turn it has parts of; 0 is none.
    pub turn: u32,
    /// The last part of that turn it has.
    pub part: u32,
}

impl Cursor {
    /// The beginning of a generation.
    pub const fn start_of(generation: u32) -> Cursor {
        Cursor { generation, pos: 0, turn: 0, part: 0 }
    }

    /// Where the follower stands after a message: parts that are in it need not come again.
    pub fn pass_message(&mut self, pos: u64, fold: Option<Fold>) {
        self.pos = self.pos.max(pos);
        if let Some(Fold { turn, upto }) = fold {
            self.pass_part(turn, upto);
        }
    }

    /// Where the follower stands after part `n` of a turn. An older turn moves nothing back.
    pub fn pass_part(&mut self, turn: u32, n: u32) {
        (self.turn, self.part) = (self.turn, self.part).max((turn, n));
    }
}

/// The secret a claim gives to its holder, as it is kept: only its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseHash(pub [u8; 32]);

impl LeaseHash {
    /// The hash of a secret.
    pub fn of(secret: &[u8]) -> LeaseHash {
        LeaseHash(Sha256::digest(secret).into())
    }
}

/// Who runs a turn, and until when it may be believed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The replica.
    pub worker: Uuid,
    /// Proof of the claim.
    pub lease: LeaseHash,
    /// When the lease is dead unless it is renewed, by the store's clock.
    pub until: Wall,
}

/// What a stream is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Status {
    /// Nothing is asked of it.
    #[default]
    Idle,
    /// An input, or a turn that was handed back, waits for a worker.
    Pending,
    /// A turn runs.
    Running(Run),
    /// A turn runs and was asked to stop.
    Interrupting(Run),
    /// The last turn failed; the stream's error says why.
    Failed,
    /// The last turn finished.
    Done,
}

impl Status {
    /// The status as it is written in events, in filters and in the store.
    pub const fn name(&self) -> &'static str {
        match self {
            Status::Idle => "idle",
            Status::Pending => "pending",
            Status::Running(_) => "running",
            Status::Interrupting(_) => "interrupting",
            Status::Failed => "failed",
            Status::Done => "done",
        }
    }

    /// Every name, for filters and their error messages.
    pub const NAMES: [&'static str; 6] = ["idle", "pending", "running", "interrupting", "failed", "done"];

    /// Who runs the turn, if one runs.
    pub const fn run(&self) -> Option<&Run> {
        match self {
            Status::Running(run) | Status::Interrupting(run) => Some(run),
            Status::Idle | Status::Pending | Status::Failed | Status::Done => None,
        }
    }

    /// The replica that runs the turn, if one runs.
    pub fn worker(&self) -> Option<Uuid> {
        self.run().map(|run| run.worker)
    }
}

/// What becomes of a running stream whose worker was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnLost {
    /// Another worker may take it.
    #[default]
    Pending,
    /// It failed, with the error `producer_lost`.
    Failed,
}

impl OnLost {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            OnLost::Pending => "pending",
            OnLost::Failed => "failed",
        }
    }
}

impl FromStr for OnLost {
    type Err = ();
    fn from_str(name: &str) -> Result<OnLost, ()> {
        match name {
            "pending" => Ok(OnLost::Pending),
            "failed" => Ok(OnLost::Failed),
            _ => Err(()),
        }
    }
}

/// The error of a stream whose worker vanished, where `on_lost` is `failed`.
pub const PRODUCER_LOST: &str = "producer_lost";

/// The rules' part of a stream's row.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stream {
    /// Rises when an edit or a removal makes earlier history wrong.
    pub generation: u32,
    /// The last position taken.
    pub pos: u64,
    /// The position of the last append, edit or removal.
    pub history_pos: u64,
    /// The position of the last change of the queue.
    pub queue_pos: u64,
    /// The position of the last change of the status.
    pub status_pos: u64,
    /// The position of the last change of the error.
    pub error_pos: u64,
    /// Everything up to here was let go of.
    pub trimmed_pos: u64,
    /// The id the next message gets, less one: ids begin at 1.
    pub last_msg: u64,
    /// Set once nothing more can be appended.
    pub closed_pos: Option<u64>,
    /// What it is doing.
    pub status: Status,
    /// What becomes of it when its worker is lost.
    pub on_lost: OnLost,
    /// The number of the latest turn; 0 before the first.
    pub turn_no: u32,
    /// The position at which that turn began.
    pub turn_begun_pos: u64,
    /// When that turn ended, if it has.
    pub turn_closed_at: Option<Wall>,
    /// Why the last turn failed.
    pub error: Option<String>,
}

/// Why a change was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A turn runs already, by a holder whose lease is alive.
    Held {
        /// The replica that holds it.
        worker: Uuid,
        /// The turn it runs.
        turn: u32,
    },
    /// The turn is not, or no longer, the writer's: another claim, a lost lease, a finished turn.
    Lost {
        /// The turn the writer speaks of.
        turn: u32,
    },
    /// The stream was closed.
    Closed,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Held { worker, turn } => {
                write!(f, "turn {turn} runs on replica {worker}; wait for it or interrupt it")
            }
            Refused::Lost { turn } => {
                write!(
                    f,
                    "turn {turn} is no longer yours: it ended, or another worker took over; claim again"
                )
            }
            Refused::Closed => f.write_str("the stream is closed; nothing can be appended"),
        }
    }
}

impl std::error::Error for Refused {}

/// The id and position a new message gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its id.
    pub id: u64,
    /// Its position.
    pub pos: u64,
}

/// How a turn ended, as its producer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// It did not, and why.
    Failed(String),
}

/// What a claim gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The number of the turn that begins.
    pub turn: u32,
    /// True when the caller must remove the queue's head and hand it to the worker.
    pub takes_input: bool,
}

impl Stream {
    fn next_pos(&mut self) -> u64 {
        self.pos += 1;
        self.pos
    }

    fn set_status(&mut self, status: Status) {
        self.status = status;
        self.status_pos = self.next_pos();
    }

    /// An error that was there and is there again is no change.
    fn set_error(&mut self, error: Option<String>) {
        if self.error != error {
            self.error = error;
            self.error_pos = self.next_pos();
        }
    }

    /// A turn that ends, ends once; its number is not used again.
    fn leave_turn(&mut self, status: Status, now: Wall) {
        self.turn_closed_at = Some(now);
        self.set_status(status);
    }

    fn held_by(&self, turn: u32, lease: LeaseHash) -> Result<Run, Refused> {
        match self.status.run() {
            Some(run) if self.turn_no == turn && run.lease == lease => Ok(*run),
            _ => Err(Refused::Lost { turn }),
        }
    }

    /// A message is appended; it may be while a turn runs.
    pub fn append(&mut self) -> Result<Place, Refused> {
        if self.closed_pos.is_some() {
            return Err(Refused::Closed);
        }
        self.last_msg += 1;
        self.history_pos = self.next_pos();
        Ok(Place { id: self.last_msg, pos: self.pos })
    }

    /// A turn's message: as any other, from whoever holds the turn, also while it is asked to stop.
    pub fn commit(&mut self, turn: u32, lease: LeaseHash) -> Result<Place, Refused> {
        self.held_by(turn, lease)?;
        self.append()
    }

    /// A message was edited or removed: whoever has read it must read again.
    pub fn rewrite(&mut self) {
        self.generation += 1;
        self.history_pos = self.next_pos();
    }

    /// Nothing more is appended.
    pub fn close(&mut self) {
        if self.closed_pos.is_none() {
            self.closed_pos = Some(self.next_pos());
        }
    }

    /// An input joins the queue. A stream that does not run now waits for a worker.
    pub fn enqueue(&mut self) -> Result<(), Refused> {
        if self.closed_pos.is_some() {
            return Err(Refused::Closed);
        }
        self.queue_pos = self.next_pos();
        match self.status {
            Status::Running(_) | Status::Interrupting(_) | Status::Pending => {}
            Status::Idle | Status::Failed | Status::Done => self.set_status(Status::Pending),
        }
        Ok(())
    }

    /// An input left the queue unread; `left` others wait. With the last of them gone nothing is asked.
    pub fn dequeue(&mut self, left: usize) {
        self.queue_pos = self.next_pos();
        if left == 0 && self.status == Status::Pending {
            self.set_status(Status::Idle);
        }
    }

    /// A worker takes the stream, with the queue's head if `waiting` is not zero. A dead lease is no
    /// hindrance.
    pub fn claim(&mut self, run: Run, now: Wall, waiting: usize) -> Result<Claimed, Refused> {
        if let Some(held) = self.status.run()
            && held.until > now
        {
            return Err(Refused::Held { worker: held.worker, turn: self.turn_no });
        }
        if waiting > 0 {
            self.queue_pos = self.next_pos();
        }
        self.set_error(None);
        self.turn_no += 1;
        self.turn_closed_at = None;
        self.set_status(Status::Running(run));
        self.turn_begun_pos = self.pos;
        Ok(Claimed { turn: self.turn_no, takes_input: waiting > 0 })
    }

    /// The holder says that it is alive. Takes no position: followers have nothing to learn from it.
    pub fn renew(&mut self, turn: u32, lease: LeaseHash, until: Wall) -> Result<(), Refused> {
        self.held_by(turn, lease)?;
        if let Status::Running(run) | Status::Interrupting(run) = &mut self.status {
            run.until = until;
        }
        Ok(())
    }

    /// The producer is through. With inputs waiting the stream waits for a worker again.
    pub fn finish(
        &mut self,
        turn: u32,
        lease: LeaseHash,
        outcome: Outcome,
        now: Wall,
        waiting: usize,
    ) -> Result<(), Refused> {
        self.held_by(turn, lease)?;
        let (status, error) = match outcome {
            Outcome::Done => (Status::Done, None),
            Outcome::Failed(why) => (Status::Failed, Some(why)),
        };
        self.set_error(error);
        self.leave_turn(if waiting > 0 { Status::Pending } else { status }, now);
        Ok(())
    }

    /// The producer gives up, or acknowledges that it was interrupted.
    pub fn abort(&mut self, turn: u32, lease: LeaseHash, now: Wall) -> Result<(), Refused> {
        self.held_by(turn, lease)?;
        self.leave_turn(Status::Idle, now);
        Ok(())
    }

    /// Asks a turn to stop, or takes back that one was asked for. True when that changed something.
    pub fn interrupt(&mut self) -> bool {
        match self.status {
            Status::Running(run) => self.set_status(Status::Interrupting(run)),
            Status::Pending => self.set_status(Status::Idle),
            Status::Idle | Status::Interrupting(_) | Status::Failed | Status::Done => return false,
        }
        true
    }

    /// The sweep found the stream: a dead lease ends its turn. True when that changed something.
    pub fn sweep(&mut self, now: Wall) -> bool {
        match self.status.run() {
            Some(run) if run.until <= now => self.lose(now),
            _ => return false,
        }
        true
    }

    /// The worker knows that its producer is gone.
    pub fn abandon(&mut self, turn: u32, lease: LeaseHash, now: Wall) -> Result<(), Refused> {
        self.held_by(turn, lease)?;
        self.lose(now);
        Ok(())
    }

    /// All leases of a replica end, because it is gone for certain or stops: what ran is to be run again.
    /// True when that changed something.
    pub fn hand_back(&mut self, worker: Uuid, now: Wall) -> bool {
        match self.status {
            Status::Running(run) if run.worker == worker => self.leave_turn(Status::Pending, now),
            Status::Interrupting(run) if run.worker == worker => self.leave_turn(Status::Idle, now),
            _ => return false,
        }
        true
    }

    fn lose(&mut self, now: Wall) {
        let status = match (&self.status, self.on_lost) {
            // It was asked to stop, and it has.
            (Status::Interrupting(_), _) => Status::Idle,
            (_, OnLost::Pending) => Status::Pending,
            (_, OnLost::Failed) => {
                self.set_error(Some(PRODUCER_LOST.into()));
                Status::Failed
            }
        };
        self.leave_turn(status, now);
    }
}

#[cfg(test)]
mod tests;
