//! Messages that are acknowledged and not yet in the tables: what plain appends to the embedded store are first.
//!
//! Through SQL each append writes a page of messages, a page of their index and a page of streams, and a group to
//! sixteen streams thirty pages. Here it is a record at the end of a [log](log::Log), which a group writes and
//! syncs once; the rows follow, many streams' and many messages of each, in one transaction.
//!
//! Invariant: a stream's history is what the tables hold and then what waits here, without a gap. For both
//! ways of writing hold the database's one write lock (`BEGIN IMMEDIATE`), and whoever writes anything but a
//! plain append brings what waits into the tables first, in its own transaction. A row waits here from when
//! its record is synced until after the transaction that brought it was committed, so readers look here first and
//! then into the tables: what has left meanwhile is there. A row whose position the tables know is theirs.

mod log;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use self::log::Log;
use super::StoreError;
use super::sqlite::Clock;
use super::streams::{Address, Append, Appended, Expiry, MessageRow, StreamRow};
use crate::rt::Lock;

/// How many rows wait before they are brought into the tables: enough that a stream's pages are written once for
/// many of its messages, and so few that it takes some milliseconds.
const ROWS_MAX: usize = 1_024;
/// The same in bytes of content.
const BYTES_MAX: usize = 1024 * 1024;
/// Larger appends go into the tables at once: to write them twice would cost more than it saves.
const APPEND_MAX: usize = 32 * 1024;
/// How many streams a writer remembers.
const TAILS_MAX: usize = 4_096;

/// The name of the log in a data directory.
pub(super) const FILE: &str = "streams.ahead";

/// A message that is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Logged {
    pub(super) stream: Uuid,
    pub(super) generation: u32,
    pub(super) row: MessageRow,
}

/// Messages by their streams, in order.
pub(super) type Waiting = BTreeMap<Uuid, Vec<Logged>>;

/// What waits, for all connections of one store.
pub(super) struct Ahead {
    clock: Clock,
    /// Rises with every write that is no plain append, inside its transaction: what is remembered of streams
    /// may be wrong then.
    version: AtomicU64,
    shared: Lock<Shared>,
}

struct Shared {
    /// None while a group uses it.
    log: Option<Log>,
    waiting: Waiting,
    names: HashMap<String, Uuid>,
    rows: usize,
    bytes: usize,
}

impl Ahead {
    /// Opens the log of a data directory and reads what an earlier run left in it, which goes to `bring` (and has to
    /// be in the tables when that returns) before anything else.
    pub(super) fn open(
        directory: &Path,
        clock: Clock,
        bring: impl FnOnce(&Waiting) -> Result<(), StoreError>,
    ) -> Result<Ahead, StoreError> {
        let (log, left) = Log::open(&directory.join(FILE))?;
        let mut waiting = Waiting::new();
        for logged in left {
            waiting.entry(logged.stream).or_default().push(logged);
        }
        if !waiting.is_empty() {
            bring(&waiting)?;
        }
        let log = Some(log.emptied()?);
        let shared = Shared { log, waiting: Waiting::new(), names: HashMap::new(), rows: 0, bytes: 0 };
        Ok(Ahead { clock, version: AtomicU64::new(0), shared: Lock::new(shared) })
    }

    /// Everything that waits.
    pub(super) fn all(&self) -> Waiting {
        self.shared.lock().waiting.clone()
    }

    /// What waits for the stream an address leads to. To be asked before the tables are read.
    pub(super) fn of(&self, at: &Address) -> Vec<Logged> {
        let shared = self.shared.lock();
        let id = match at {
            Address::Id(id) => Some(id),
            Address::Name(name) => shared.names.get(name),
        };
        id.and_then(|id| shared.waiting.get(id)).cloned().unwrap_or_default()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.shared.lock().rows == 0
    }

    fn is_full(&self) -> bool {
        let shared = self.shared.lock();
        shared.rows >= ROWS_MAX || shared.bytes >= BYTES_MAX
    }

    /// These are in the tables, for good.
    fn forget(&self, brought: &[(Uuid, u64)]) {
        let mut shared = self.shared.lock();
        let shared = &mut *shared;
        for (stream, upto) in brought {
            let Some(rows) = shared.waiting.get_mut(stream) else { continue };
            let gone = rows.iter().take_while(|logged| logged.row.pos <= *upto).count();
            shared.rows -= gone;
            shared.bytes -= rows.drain(..gone).map(|logged| logged.row.content.len()).sum::<usize>();
            if rows.is_empty() {
                shared.waiting.remove(stream);
            }
        }
        if shared.waiting.is_empty() {
            shared.names.clear();
        }
    }
}

/// Adds to a row what waits for it.
pub(super) fn stand(row: &mut StreamRow, waiting: &[Logged]) {
    for logged in waiting.iter().filter(|logged| logged.stream == row.id) {
        let message = &logged.row;
        if message.pos > row.state.pos {
            (row.state.pos, row.state.history_pos) = (message.pos, message.pos);
            row.state.last_msg = message.id;
            row.bytes += message.content.len() as u64;
            row.oldest_at.get_or_insert(message.at);
            row.updated_at = message.at;
        }
    }
}

/// The same where all that waits is at hand.
pub(super) fn stand_among(row: &mut StreamRow, waiting: &Waiting) {
    if let Some(waiting) = waiting.get(&row.id) {
        stand(row, waiting);
    }
}

/// One connection's way to write ahead.
pub(super) struct Lead {
    ahead: Arc<Ahead>,
    phase: Phase,
    /// Streams as they stand with everything that waits and is staged; true while `version` is the store's.
    tails: HashMap<Uuid, StreamRow>,
    names: HashMap<String, Uuid>,
    version: u64,
}

/// What has been asked of a group so far.
enum Phase {
    /// There is none, or one whose log another group uses.
    None,
    /// Nothing but plain appends: they are staged, and nothing was written by SQL.
    Logging { log: Log, staged: Vec<Logged> },
    /// Something else: what waited and was staged is in its transaction, up to these positions.
    Tables { brought: Vec<(Uuid, u64)> },
}

impl Lead {
    pub(super) fn new(ahead: Arc<Ahead>) -> Lead {
        Lead { ahead, phase: Phase::None, tails: HashMap::new(), names: HashMap::new(), version: 0 }
    }

    pub(super) fn ahead(&self) -> &Ahead {
        &self.ahead
    }

    /// A group has begun, and with it the database's write lock is held. False if what waits has to be brought
    /// into the tables first.
    pub(super) fn begin(&mut self) -> bool {
        let Some(mut log) = self.ahead.shared.lock().log.take() else { return true };
        let version = self.ahead.version.load(Ordering::SeqCst);
        if version != self.version || self.tails.len() > TAILS_MAX {
            self.unlearn();
            self.version = version;
        }
        if self.ahead.is_empty() {
            log.rewind();
        }
        // After a failure nobody knows what the log holds: it begins again once nothing waits.
        let has_room = !self.ahead.is_full() && log.is_sound();
        self.phase = Phase::Logging { log, staged: Vec::new() };
        has_room
    }

    fn unlearn(&mut self) {
        self.tails.clear();
        self.names.clear();
    }

    /// Whether something was appended in this group that only it knows of.
    pub(super) fn has_staged(&self) -> bool {
        matches!(&self.phase, Phase::Logging { staged, .. } if !staged.is_empty())
    }

    /// Whether this append can be written ahead, if its stream takes it.
    pub(super) fn takes(&self, append: &Append) -> bool {
        let plain = !append.close
            && append.producer.is_none()
            && append.stream_seq.is_none()
            && append.key.is_none()
            && !append.messages.is_empty();
        plain
            && matches!(self.phase, Phase::Logging { .. })
            && append.messages.iter().map(|draft| draft.content.len()).sum::<usize>() <= APPEND_MAX
    }

    fn id_of(&self, at: &Address) -> Option<Uuid> {
        match at {
            Address::Id(id) => Some(*id),
            Address::Name(name) => self.names.get(name).copied(),
        }
    }

    pub(super) fn knows(&self, at: &Address) -> bool {
        self.id_of(at).is_some_and(|id| self.tails.contains_key(&id))
    }

    /// Remembers a stream as the tables have it.
    pub(super) fn learn(&mut self, mut row: StreamRow) {
        let waiting = self.ahead.of(&Address::Id(row.id));
        stand(&mut row, &waiting);
        self.names.insert(row.name.clone(), row.id);
        self.tails.insert(row.id, row);
    }

    /// Appends to a stream that is known, if nothing about it needs the tables.
    pub(super) fn append(
        &mut self,
        at: &Address,
        append: &Append,
        same_type: impl FnOnce(&str, &str) -> bool,
    ) -> Option<Appended> {
        let now = (self.ahead.clock)();
        let row = self.id_of(at).and_then(|id| self.tails.get_mut(&id))?;
        let Phase::Logging { log, staged, .. } = &mut self.phase else { return None };
        let is_plain = match row.expiry {
            Expiry::Never => true,
            Expiry::At(at) => now < at,
            // Each append moves its end.
            Expiry::Ttl(_) => false,
        };
        let fits = append.content_type.as_ref().is_none_or(|given| same_type(given, &row.content_type));
        if !is_plain || !fits || row.deleted || row.state.closed_pos.is_some() {
            return None;
        }
        let (mut first, mut last, mut pos) = (0, 0, row.state.history_pos);
        let generation = row.state.generation;
        for draft in &append.messages {
            let place = row.state.append().expect("it is open");
            first = if first == 0 { place.id } else { first };
            (last, pos) = (place.id, place.pos);
            let message = MessageRow {
                id: place.id,
                pos: place.pos,
                kind: draft.kind,
                role: draft.role.clone(),
                content: draft.content.clone(),
                fold: None,
                at: now,
            };
            let logged = Logged { stream: row.id, generation, row: message };
            log.put(&logged);
            staged.push(logged);
        }
        row.bytes += append.messages.iter().map(|draft| draft.content.len() as u64).sum::<u64>();
        row.oldest_at.get_or_insert(now);
        row.updated_at = now;
        Some(Appended::Done { change: row.change(), first, last, pos, generation, again: false })
    }

    /// Something is about to be written that is no plain append, inside a transaction: what has to be brought into
    /// the tables before it. Nothing, if this group has done so.
    pub(super) fn leave(&mut self) -> Waiting {
        self.ahead.version.fetch_add(1, Ordering::SeqCst);
        let staged = match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Tables { brought } => {
                self.phase = Phase::Tables { brought };
                return Waiting::new();
            }
            Phase::None => Vec::new(),
            Phase::Logging { mut log, staged, .. } => {
                log.drop_unwritten();
                self.ahead.shared.lock().log = Some(log);
                staged
            }
        };
        self.unlearn();
        let mut waiting = self.ahead.all();
        let brought = |waiting: &Waiting| {
            let last = |(stream, rows): (&Uuid, &Vec<Logged>)| Some((*stream, rows.last()?.row.pos));
            waiting.iter().filter_map(last).collect()
        };
        self.phase = Phase::Tables { brought: brought(&waiting) };
        for logged in staged {
            waiting.entry(logged.stream).or_default().push(logged);
        }
        waiting
    }

    /// Logs what the group staged, if the group stands, and syncs: from here on it is durable, and others see it.
    /// After an error it is still staged, for the tables to take.
    pub(super) fn log(&mut self, stands: bool) -> Result<(), StoreError> {
        let (mut log, staged) = match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Logging { log, staged } => (log, staged),
            other => {
                self.phase = other;
                return Ok(());
            }
        };
        if !stands {
            log.drop_unwritten();
            self.unlearn();
            self.ahead.shared.lock().log = Some(log);
            return Ok(());
        }
        if !staged.is_empty()
            && let Err(error) = log.write()
        {
            self.phase = Phase::Logging { log, staged };
            return Err(error);
        }
        let mut shared = self.ahead.shared.lock();
        let shared = &mut *shared;
        shared.log = Some(log);
        // Other connections remember streams without these.
        if !staged.is_empty() && self.ahead.version.fetch_add(1, Ordering::SeqCst) == self.version {
            self.version += 1;
        }
        for logged in staged {
            shared.rows += 1;
            shared.bytes += logged.row.content.len();
            let stream = logged.stream;
            let rows = shared.waiting.entry(stream).or_default();
            if rows.is_empty()
                && let Some(row) = self.tails.get(&stream)
            {
                shared.names.insert(row.name.clone(), stream);
            }
            rows.push(logged);
        }
        Ok(())
    }

    /// The transaction that brought rows has ended.
    pub(super) fn ended(&mut self, committed: bool) {
        if let Phase::Tables { brought } = std::mem::replace(&mut self.phase, Phase::None)
            && committed
        {
            self.ahead.forget(&brought);
        }
    }
}
