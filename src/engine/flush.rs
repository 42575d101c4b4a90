//! The flush rooms: one empties the door of the connection log, the other that of the metadata.
//!
//! Each owns what it took from its door and one store connection, and writes when enough has come together, when the
//! oldest entry has waited long enough, when somebody waits for room, or when the engine stops. What
//! cannot be written is never dropped: connection rows go to the retry room, metadata goes back into
//! the batch unless something newer is there.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use uuid::Uuid;

use super::backends::Fan;
use super::connections::{ConnectionDoor, stopped};
use super::ledger::{Flushes, Ledger, moved};
use super::metadata::MetadataDoor;
use super::retries::{CREDITS, Shared, ToRetries};
use super::settle::{Settled, failure, settle};
use super::worker::{Inbox, Refused, Room};
use crate::bus::{Bus, Notice};
use crate::error::{Code, Error, Result};
use crate::metrics::{Counter, Histogram};
use crate::rt::{Moment, Rand, RecvTimeoutError, Rt, Sender, Wall};
use crate::state::backoff::{Backoff, Budget, Next, Policy};
use crate::state::batch::{Batch, Bounds, Reason};
use crate::state::connection::Row;
use crate::state::metadata::{self, AGENTS_PER_NOTICE};
use crate::state::retry::Failure;
use crate::store::connections::{ConnectionStore, ROWS_PER_STATEMENT};
use crate::store::metadata::{MetadataStore, Sight};
use crate::store::{Class, StoreError, Stores};

/// What wakes a flush room.
pub(super) enum ToFlush {
    /// The door holds something, or enough, or somebody waits, or a credit is free. Look.
    Look,
    /// Write now, and say when it was tried.
    Now(Sender<()>),
}

/// How long a flush room that cannot hand on what it has waits before it looks again.
const STALLED: Duration = Duration::from_millis(250);

/// When to look at a door again, and why to empty it.
#[derive(Debug)]
struct Timer {
    capacity: usize,
    interval: Duration,
    opened: Option<Moment>,
    not_before: Option<Moment>,
}

impl Timer {
    fn new(capacity: usize, interval: Duration) -> Timer {
        Timer { capacity, interval, opened: None, not_before: None }
    }

    /// Why to write at `now` when `held` entries wait. Nothing is no reason.
    fn due(&mut self, now: Moment, held: usize, pressed: bool, asked: bool) -> Option<Reason> {
        if held == 0 {
            self.opened = None;
            return None;
        }
        let opened = *self.opened.get_or_insert(now);
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.not_before = None;
        if held >= self.capacity {
            Some(Reason::Capacity)
        } else if pressed {
            Some(Reason::Pressure)
        } else if asked || now >= opened + self.interval {
            Some(Reason::Scheduled)
        } else {
            None
        }
    }

    /// Everything was written or handed on; the interval begins with the next entry.
    fn flushed(&mut self) {
        self.opened = None;
        self.not_before = None;
    }

    /// When to look again at `held` entries. A level: what came in while a batch was being written
    /// may be enough for the next, and nobody says so twice.
    fn deadline(&self, held: usize) -> Option<Moment> {
        let due = self.opened? + self.interval;
        match self.not_before {
            // Held back: look again when that ends, for what is there may be due for another reason.
            Some(at) => Some(at),
            None if held >= self.capacity => Some(Moment::ZERO),
            None => Some(due),
        }
    }
}

/// The flush room of the connection log.
pub(super) struct FlushConnections {
    pub(super) rt: Rt,
    pub(super) door: Arc<ConnectionDoor>,
    pub(super) stores: Arc<dyn Stores>,
    pub(super) retries: Inbox<ToRetries>,
    pub(super) shared: Arc<Shared>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) figures: Flushes,
    pub(super) fan: Fan,
    store: Option<Box<dyn ConnectionStore>>,
    /// What was taken from the door, in statements. Their keys are distinct: the door is emptied when
    /// nothing is left of the time before, and holds one row a key.
    ready: VecDeque<Vec<Row>>,
    timer: Timer,
}

/// What a flush room of the connection log is made of.
pub(super) struct ConnectionParts {
    pub(super) rt: Rt,
    pub(super) door: Arc<ConnectionDoor>,
    pub(super) stores: Arc<dyn Stores>,
    pub(super) retries: Inbox<ToRetries>,
    pub(super) shared: Arc<Shared>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) figures: Flushes,
    pub(super) fan: Fan,
    pub(super) bounds: Bounds,
}

impl FlushConnections {
    pub(super) fn new(parts: ConnectionParts) -> FlushConnections {
        FlushConnections {
            ready: VecDeque::new(),
            timer: Timer::new(parts.bounds.capacity, parts.bounds.interval),
            store: None,
            rt: parts.rt,
            door: parts.door,
            stores: parts.stores,
            retries: parts.retries,
            shared: parts.shared,
            ledger: parts.ledger,
            figures: parts.figures,
            fan: parts.fan,
        }
    }

    /// Takes what the door holds.
    fn gather(&mut self) {
        let mut rows = self.door.drain(&self.ledger);
        self.fan.send(&rows);
        if rows.len() > ROWS_PER_STATEMENT {
            // Oldest first: what came together then lies together in the indexes of each statement.
            rows.sort_by_cached_key(|row| row.first.stamp());
        }
        // From the end, so that no row is moved more than once.
        while !rows.is_empty() {
            let last = (rows.len() - 1) / ROWS_PER_STATEMENT * ROWS_PER_STATEMENT;
            let statement = if last == 0 { std::mem::take(&mut rows) } else { rows.split_off(last) };
            self.ready.push_front(statement);
        }
    }

    /// How many rows wait here and at the door.
    fn held(&self) -> usize {
        self.door.held() + self.ready.iter().map(Vec::len).sum::<usize>()
    }

    /// Writes or hands on what is left of the time before, and only then what the door holds: what
    /// cannot be handed on stays there, and fills it.
    fn flush(&mut self, now: Moment, reason: Reason) {
        if !self.empty_ready(now, reason) {
            return;
        }
        self.gather();
        if self.empty_ready(now, reason) {
            self.timer.flushed();
        }
    }

    /// Whether everything that was ready was written or handed on.
    fn empty_ready(&mut self, now: Moment, reason: Reason) -> bool {
        while let Some(rows) = self.ready.pop_front() {
            let left = if self.shared.reach.load(Relaxed) {
                self.write(reason, rows)
            } else {
                crate::mark!(flush_knew_the_store_is_away);
                Some((rows, Failure::Unreachable))
            };
            if let Some((rows, why)) = left
                && let Err(rows) = self.hand_on(rows, why, reason == Reason::Shutdown)
            {
                crate::mark!(flush_stalled);
                self.ready.push_front(rows);
                self.timer.not_before = Some(now + STALLED);
                return false;
            }
        }
        true
    }

    fn write(&mut self, reason: Reason, rows: Vec<Row>) -> Option<(Vec<Row>, Failure)> {
        let (began, count) = (self.rt.now(), rows.len());
        let at = self.rt.wall();
        let again = crate::planted!("double_flush").then(|| rows.clone());
        let done = match self.store() {
            Ok(store) => settle(store.as_mut(), rows, at),
            Err(error) => Settled { left: Some((rows, error)), ..Settled::default() },
        };
        moved(done.stored, &self.ledger.pending, &self.ledger.stored);
        moved(done.dead, &self.ledger.pending, &self.ledger.dead_lettered);
        self.figures.splits.inc_by(done.splits as u64);
        if let Some(again) = again {
            return Some((again, Failure::Conflict));
        }
        let Some((left, error)) = done.left else {
            self.figures.written(reason, count, self.rt.now().since(began));
            return None;
        };
        self.figures.failures.inc();
        log::warn!(
            "{} of {count} connection rows were not stored and will be tried again: {error}",
            left.len()
        );
        let why = failure(&error);
        if why == Failure::Unreachable {
            self.store = None;
        }
        Some((left, why))
    }

    fn store(&mut self) -> Result<&mut Box<dyn ConnectionStore>, StoreError> {
        if self.store.is_none() {
            self.store = Some(self.stores.connections()?);
        }
        Ok(self.store.as_mut().expect("it was put there two lines up"))
    }

    /// Hands rows to the retry room; they come back while it owes for too many.
    fn hand_on(&mut self, rows: Vec<Row>, why: Failure, last: bool) -> Result<(), Vec<Row>> {
        if last {
            return self.hand_on_last(rows);
        }
        if self.shared.owed.load(Relaxed) >= CREDITS {
            return Err(rows);
        }
        self.shared.owed.fetch_add(1, Relaxed);
        self.retries.control(ToRetries::Failed { rows, why }).map_err(|refused| {
            self.shared.owed.fetch_sub(1, Relaxed);
            match refused.into_inner() {
                ToRetries::Failed { rows, .. } => rows,
                _ => Vec::new(),
            }
        })
    }

    fn hand_on_last(&self, rows: Vec<Row>) -> Result<(), Vec<Row>> {
        let count = rows.len();
        if self.retries.control(ToRetries::Last { rows }).is_err() {
            // Their number is bounded by the door, and the inbox by more; the room has ended early.
            log::error!(
                "{count} connection records are lost: the retry room has ended before the flush room"
            );
        }
        Ok(())
    }
}

impl Room for FlushConnections {
    type Message = ToFlush;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<ToFlush>) {
        let asked = inbox.iter().any(|message| matches!(message, ToFlush::Now(_)));
        if let Some(reason) = self.timer.due(now, self.held(), self.door.is_pressed(), asked) {
            self.flush(now, reason);
        }
        // What came in while it was writing begins an interval of its own.
        if self.held() > 0 && self.timer.opened.is_none() {
            self.timer.opened = Some(self.rt.now());
        }
        answer(inbox);
    }

    fn deadline(&self) -> Option<Moment> {
        self.timer.deadline(self.held())
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<ToFlush>) {
        self.door.seal();
        if !crate::planted!("lost_final_flush") {
            if now >= self.shared.deadline() {
                self.shared.reach.store(false, Relaxed);
            }
            self.flush(now, Reason::Shutdown);
        }
        answer(inbox);
    }

    fn salvage(&mut self) {
        self.door.seal();
        self.gather();
        let rows = std::mem::take(&mut self.ready).into_iter().flatten().collect();
        _ = self.hand_on_last(rows);
    }
}

fn answer(inbox: &mut Vec<ToFlush>) {
    for message in inbox.drain(..) {
        if let ToFlush::Now(tried) = message {
            // Whoever asked may have stopped waiting.
            let _ = tried.try_send(());
        }
    }
}

/// Asks a flush room to write now, and waits until that was tried.
pub(super) fn flush_now(rt: &Rt, inbox: &Inbox<ToFlush>, patience: Duration) -> Result<()> {
    let deadline = rt.now() + patience;
    let (tx, rx) = rt.channel("flushed", 1);
    inbox.data(ToFlush::Now(tx), deadline).map_err(|refused| match refused {
        Refused::Full(_) => Error::new(Code::Full, "too many ask for a flush at once"),
        Refused::Ended(_) => stopped(),
    })?;
    match rx.recv_deadline(deadline) {
        Ok(()) => Ok(()),
        Err(RecvTimeoutError::Timeout) => Err(Error::new(Code::TimedOut, "the flush takes longer than that")),
        Err(RecvTimeoutError::Disconnected) => Err(stopped()),
    }
}

/// The flush room of the metadata.
pub(super) struct FlushMetadata {
    rt: Rt,
    rand: Rand,
    door: Arc<MetadataDoor>,
    stores: Arc<dyn Stores>,
    store: Option<Box<dyn MetadataStore>>,
    bus: Arc<dyn Bus>,
    batch: Batch<metadata::Key, metadata::Entry>,
    timer: Timer,
    backoff: Backoff,
    /// Agents of writes that failed and may have been committed all the same: when the same values
    /// are written again nothing changes, and still nobody was told.
    doubtful: BTreeSet<Uuid>,
    /// What comes out of the door is newer than this. See [`FlushMetadata::gather`].
    floor: Wall,
    statement: usize,
    sight: Sight,
    figures: Flushes,
    more: MetadataFigures,
    shared: Arc<Shared>,
}

/// What the flush room of the metadata shows besides its flushes.
#[derive(Clone, Debug)]
pub(super) struct MetadataFigures {
    pub(super) keys_per_agent: Histogram,
    pub(super) rows_changed: Counter,
    pub(super) notices: Counter,
    pub(super) noticed_agents: Counter,
    pub(super) rejected: Counter,
    pub(super) unsaved: Counter,
}

/// What a flush room of the metadata is made of.
pub(super) struct MetadataParts {
    pub(super) rt: Rt,
    pub(super) door: Arc<MetadataDoor>,
    pub(super) stores: Arc<dyn Stores>,
    pub(super) bus: Arc<dyn Bus>,
    pub(super) shared: Arc<Shared>,
    pub(super) bounds: Bounds,
    pub(super) sight: Sight,
    pub(super) figures: Flushes,
    pub(super) more: MetadataFigures,
}

impl FlushMetadata {
    pub(super) fn new(parts: MetadataParts) -> FlushMetadata {
        let backoff = Backoff::new(Policy {
            first: Duration::from_millis(250),
            cap: Duration::from_secs(5),
            at_once: false,
            reset_after: Duration::ZERO,
            budget: Budget::Forever,
        });
        FlushMetadata {
            rand: parts.rt.rand("flush-metadata"),
            batch: Batch::new(Bounds { bound: usize::MAX, ..parts.bounds }),
            timer: Timer::new(parts.bounds.capacity, parts.bounds.interval),
            statement: parts.bounds.capacity.clamp(1, crate::store::metadata::ROWS_PER_STATEMENT),
            backoff,
            doubtful: BTreeSet::new(),
            floor: Wall(i64::MIN),
            store: None,
            rt: parts.rt,
            door: parts.door,
            stores: parts.stores,
            bus: parts.bus,
            sight: parts.sight,
            figures: parts.figures,
            more: parts.more,
            shared: parts.shared,
        }
    }

    /// Takes what the door holds.
    ///
    /// The store keeps its own time and is told how old a value is, so a write that was slow to begin made its
    /// values seem as much younger. What was reported while it was under way is dated after its end: else a
    /// connection opened since would have the store take the older value for the newer one, and keep it.
    fn gather(&mut self, now: Moment) {
        let (floor, mut raised) = (self.floor, false);
        let above = floor + Duration::from_micros(1);
        self.door.drain(|key, mut entry| {
            if entry.collected_at <= floor {
                crate::mark!(metadata_reported_during_a_write);
                entry.collected_at = above;
                raised = true;
            }
            _ = self.batch.add(now, key, entry);
        });
        if raised {
            self.floor = above;
        }
    }

    fn flush(&mut self, now: Moment, reason: Reason) {
        self.gather(now);
        while !self.batch.is_empty() {
            let entries = self.batch.take_some(self.statement);
            if let Err((entries, error)) = self.write(reason, entries) {
                crate::mark!(metadata_merged_back);
                self.figures.failures.inc();
                for (key, entry) in entries {
                    // Whatever came in meanwhile is newer and stays.
                    self.batch.add(now, key, entry);
                }
                self.door.keep(self.batch.len());
                self.put_off(&error);
                return;
            }
        }
        self.door.keep(0);
        self.backoff.forget();
        self.timer.flushed();
    }

    fn put_off(&mut self, error: &StoreError) {
        if error.code == "cancelled" {
            log::debug!("writing metadata was cancelled: {error}");
        } else {
            log::warn!("{} metadata values were not stored and stay in memory: {error}", self.batch.len());
        }
        // The store stays: it connects again by itself, and knows what it has dated last.
        let now = self.rt.now();
        let draw = self.rand.next_u64();
        self.timer.not_before = match self.backoff.failed(now, draw) {
            Next::TryAt(at) => Some(at),
            Next::GiveUp => None,
        };
    }

    fn write(
        &mut self,
        reason: Reason,
        entries: Vec<(metadata::Key, metadata::Entry)>,
    ) -> Result<(), (Vec<(metadata::Key, metadata::Entry)>, StoreError)> {
        self.observe(&entries);
        let began = self.rt.now();
        let stamp = self.door.stamp(began);
        // Several reports within one microsecond are dated one after the other, into what is to come.
        let ahead = entries.iter().map(|(_, entry)| entry.collected_at.0 - stamp.0).max().unwrap_or(0).max(0);
        let (sight, more) = (self.sight, self.more.clone());
        let splits = self.figures.splits.clone();
        if let Err(error) = self.store() {
            return Err((entries, error));
        }
        let mut changed = Vec::new();
        if crate::planted!("notice_before_commit") {
            self.notify(entries.iter().map(|(key, _)| key.agent).collect());
        }
        let store = self.store.as_mut().expect("it was opened a few lines up");
        let mut ranges = Vec::new();
        ranges.push(0..entries.len());
        while let Some(range) = ranges.pop() {
            let written = store.upsert(&entries[range.clone()], stamp, sight);
            self.floor = self.floor.max(Wall(self.door.stamp(self.rt.now()).0 + ahead));
            match written {
                Ok(done) => {
                    more.rows_changed.inc_by(done.rows);
                    changed.extend(done.changed);
                }
                Err(error) if error.class == Class::Split && range.len() == 1 => {
                    let (refused, _) = &entries[range.start];
                    log::error!(
                        "the store refuses key {:?} of agent {}: {error}",
                        refused.key,
                        refused.agent
                    );
                    more.rejected.inc();
                }
                Err(error) if error.class == Class::Split => {
                    splits.inc();
                    let middle = range.start + range.len() / 2;
                    ranges.extend([middle..range.end, range.start..middle]);
                }
                Err(error) => {
                    self.doubtful.extend(entries.iter().map(|(key, _)| key.agent));
                    self.notify(changed);
                    return Err((entries, error));
                }
            }
        }
        self.figures.written(reason, entries.len(), self.rt.now().since(began));
        if crate::planted!("notice_before_commit") {
            return Ok(());
        }
        changed.extend(std::mem::take(&mut self.doubtful));
        self.notify(changed);
        Ok(())
    }

    /// How many keys each agent brings, in the order of the rows.
    fn observe(&self, entries: &[(metadata::Key, metadata::Entry)]) {
        for of_one in entries.chunk_by(|(one, _), (other, _)| one.agent == other.agent) {
            self.more.keys_per_agent.observe(of_one.len() as f64);
        }
    }

    /// Says who has new values, after the commit and apart from it.
    fn notify(&self, mut agents: Vec<Uuid>) {
        agents.sort_unstable();
        agents.dedup();
        for chunk in agents.chunks(AGENTS_PER_NOTICE) {
            self.bus.publish(Notice::Metadata(chunk.into()));
            self.more.notices.inc();
            self.more.noticed_agents.inc_by(chunk.len() as u64);
        }
    }

    fn store(&mut self) -> Result<&mut Box<dyn MetadataStore>, StoreError> {
        if self.store.is_none() {
            self.store = Some(self.stores.metadata()?);
        }
        Ok(self.store.as_mut().expect("it was put there two lines up"))
    }
}

impl Room for FlushMetadata {
    type Message = ToFlush;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<ToFlush>) {
        let asked = inbox.iter().any(|message| matches!(message, ToFlush::Now(_)));
        let held = self.door.held() + self.batch.len();
        if let Some(reason) = self.timer.due(now, held, false, asked) {
            self.flush(now, reason);
        }
        if self.door.held() + self.batch.len() > 0 && self.timer.opened.is_none() {
            self.timer.opened = Some(self.rt.now());
        }
        answer(inbox);
    }

    fn deadline(&self) -> Option<Moment> {
        self.timer.deadline(self.door.held() + self.batch.len())
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<ToFlush>) {
        self.door.seal();
        if now < self.shared.deadline() && !crate::planted!("lost_final_flush") {
            self.flush(now, Reason::Shutdown);
        } else {
            self.gather(now);
        }
        if !self.batch.is_empty() {
            self.more.unsaved.inc_by(self.batch.len() as u64);
            log::error!("{} metadata values could not be written before the stop", self.batch.len());
        }
        answer(inbox);
    }
}
