//! Messages that are acknowledged and not yet in the tables: what plain appends to the embedded store are first.
//!
//! Through SQL each append writes a page of messages, a page of their index and a page of streams, and a group to
//! sixteen streams thirty pages. Here it is a record at the end of a [log](log::Log), which a group writes and
//! syncs once, without a word to the database. The rows follow, many streams' and many messages of each, in one
//! transaction, which whoever has time for it does while the next groups write to the other file of the log.
//!
//! Invariant: a stream's history is what the tables hold and then what waits here, without a gap. For whoever writes to
//! streams holds the lock of the log's first file meanwhile, and whoever writes anything but a plain append brings
//! what waits into the tables first, in its own transaction. To bring alone needs no such lock: it changes nothing
//! that is known of a stream. A row waits here from when its record is synced until after a transaction that
//! brought it was committed, so readers look here first and then into the tables: what has left meanwhile is there. A
//! row whose position the tables know is theirs.

mod log;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use self::log::Log;
use super::StoreError;
use super::sqlite::Clock;
use super::streams::{Address, Append, Appended, Expiry, MessageRow, StreamRow};
use crate::rt::Lock;

/// How many rows a file of the log takes before the other is written to: enough that a stream's pages are written once
/// for many of its messages, and so few that it takes some milliseconds. If the other's are not in the tables by
/// then, a group brings them.
const ROWS_MAX: usize = 2_048;
/// The same in bytes.
const BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Larger appends go into the tables at once: to write them twice would cost more than it saves.
const APPEND_MAX: usize = 32 * 1024;
/// How many streams a writer remembers.
const TAILS_MAX: usize = 4_096;

/// The names of the log's files in a data directory.
pub(super) const FILES: [&str; 2] = ["streams.ahead", "streams.ahead-2"];

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
    /// The file whose lock is held by who writes.
    lock: PathBuf,
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
    /// What waits because of the file that is not written to, stream by stream up to a position.
    behind: Brought,
}

/// Streams, and up to which position they are in the tables.
pub(super) type Brought = Vec<(Uuid, u64)>;

/// Up to where all of this goes.
pub(super) fn ends(waiting: &Waiting) -> Brought {
    let last = |(stream, rows): (&Uuid, &Vec<Logged>)| Some((*stream, rows.last()?.row.pos));
    waiting.iter().filter_map(last).collect()
}

impl Ahead {
    /// Opens the log of a data directory and reads what an earlier run left in it, which goes to `bring` (and has to
    /// be in the tables when that returns) before anything else.
    pub(super) fn open(
        directory: &Path,
        clock: Clock,
        bring: impl FnOnce(&Waiting) -> Result<(), StoreError>,
    ) -> Result<Ahead, StoreError> {
        let (log, left) = Log::open(directory)?;
        let mut waiting = Waiting::new();
        for logged in left {
            waiting.entry(logged.stream).or_default().push(logged);
        }
        if !waiting.is_empty() {
            bring(&waiting)?;
        }
        let log = Some(log.emptied()?);
        let shared = Shared { log, waiting: Waiting::new(), names: HashMap::new(), behind: Vec::new() };
        let lock = directory.join(FILES[0]);
        Ok(Ahead { clock, lock, version: AtomicU64::new(0), shared: Lock::new(shared) })
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
        self.shared.lock().waiting.is_empty()
    }

    /// Whether so much waits that whoever has time should bring it.
    pub(super) fn is_much(&self) -> bool {
        !self.shared.lock().behind.is_empty()
    }

    /// These are in the tables, for good.
    pub(super) fn forget(&self, brought: &Brought) {
        let mut shared = self.shared.lock();
        let Shared { waiting, names, behind, .. } = &mut *shared;
        for (stream, upto) in brought {
            let Some(rows) = waiting.get_mut(stream) else { continue };
            let gone = rows.iter().take_while(|logged| logged.row.pos <= *upto).count();
            rows.drain(..gone);
            if rows.is_empty() {
                waiting.remove(stream);
            }
        }
        behind.retain(|(stream, upto)| waiting.get(stream).is_some_and(|rows| rows[0].row.pos <= *upto));
        if waiting.is_empty() {
            names.clear();
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
    /// The file whose lock is held by who writes, opened by this connection alone.
    lock: File,
    phase: Phase,
    /// Streams as they stand with everything that waits and is staged; true while `version` is the store's.
    tails: HashMap<Uuid, StreamRow>,
    names: HashMap<String, Uuid>,
    version: u64,
}

/// What has been asked of a group so far.
enum Phase {
    /// There is none.
    None,
    /// Nothing but plain appends: they are staged, and nothing was written by SQL.
    Logging { log: Log, staged: Vec<Logged> },
    /// Something else: what waited and was staged is in its transaction, up to these positions.
    Tables { brought: Brought },
}

impl Lead {
    pub(super) fn new(ahead: Arc<Ahead>) -> Result<Lead, StoreError> {
        let lock = File::open(&ahead.lock).map_err(|error| unlocked("open", &ahead, &error))?;
        let (tails, names) = (HashMap::new(), HashMap::new());
        Ok(Lead { ahead, lock, phase: Phase::None, tails, names, version: 0 })
    }

    pub(super) fn ahead(&self) -> &Ahead {
        &self.ahead
    }

    /// Waits until nobody else writes to streams. Whoever does holds it for no longer than a transaction takes.
    pub(super) fn hold(&self) -> Result<(), StoreError> {
        self.lock.lock().map_err(|error| unlocked("lock", &self.ahead, &error))
    }

    /// A group begins, which ends with [`Lead::ended`]. False if what waits has to be brought into the tables first.
    pub(super) fn begin(&mut self) -> Result<bool, StoreError> {
        self.hold()?;
        let mut shared = self.ahead.shared.lock();
        let Shared { log, waiting, behind, .. } = &mut *shared;
        let Some(mut log) = log.take() else { return Ok(true) };
        let version = self.ahead.version.load(Ordering::SeqCst);
        if version != self.version || self.tails.len() > TAILS_MAX {
            self.tails.clear();
            self.names.clear();
            self.version = version;
        }
        if waiting.is_empty() {
            log.rewind();
        }
        // After a failure nobody knows what the log holds: it begins again once nothing waits.
        let (records, bytes) = log.size();
        let is_full = records >= ROWS_MAX || bytes >= BYTES_MAX;
        let turns = is_full && log.is_sound() && behind.is_empty();
        if turns {
            *behind = ends(waiting);
            log.turn();
        }
        let has_room = log.is_sound() && (turns || !is_full);
        self.phase = Phase::Logging { log, staged: Vec::new() };
        Ok(has_room)
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

    /// Remembers a stream as the tables have it, and what waited for it before they were asked.
    pub(super) fn learn(&mut self, mut row: StreamRow, waiting: &[Logged]) {
        stand(&mut row, waiting);
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
        self.phase = Phase::Tables { brought: ends(&waiting) };
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

    /// The group, or the transaction of a single write, has ended: others may write.
    pub(super) fn ended(&mut self, committed: bool) {
        match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Tables { brought } if committed => self.ahead.forget(&brought),
            Phase::Tables { .. } | Phase::None => {}
            // Neither the log nor the tables took it.
            Phase::Logging { mut log, .. } => {
                log.drop_unwritten();
                self.unlearn();
                self.ahead.shared.lock().log = Some(log);
            }
        }
        if let Err(error) = self.lock.unlock() {
            ::log::error!("{}", unlocked("unlock", &self.ahead, &error));
        }
    }
}

fn unlocked(what: &str, ahead: &Ahead, error: &std::io::Error) -> StoreError {
    StoreError::retry("io", format!("cannot {what} {}: {error}", ahead.lock.display()))
}
