//! The connection log: the handle that records are given to, and what stands behind it.

mod door;
mod figures;
mod page;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use uuid::Uuid;

use self::door::Added;
pub(super) use self::door::ConnectionDoor;
use self::figures::{account, describe};
pub use self::page::{Page, page, with_limit};
use super::backends::{Backend, Backends, Fan};
use super::flush::{ConnectionParts, FlushConnections, ToFlush, flush_now};
use super::ledger::{Account, Ledger};
use super::lookups::Lookups;
use super::retries::{self, Retries, Shared, ToRetries};
use super::spooler::{self, Origin, Spooler, ToSpool};
use super::worker::{Bounds as InboxBounds, Crew, Inbox, Refused, Worker};
use crate::error::{Code, Error, Result};
use crate::metrics::{Counter, Metrics};
use crate::rt::{Moment, RecvTimeoutError, Rt, Wall};
use crate::spool::{Gather, Spool, SpoolError, Status};
use crate::state::batch::Bounds;
use crate::state::connection::{Record, Row};
use crate::state::retry;
use crate::store::Stores;
use crate::store::connections::{ConnectionQuery, Count, DeadLetter};

/// How the connection log gathers, and how long it lets its callers wait.
///
/// ```
/// use std::time::Duration;
/// use towpath::ConnectionSettings;
///
/// let settings = ConnectionSettings { interval: Duration::from_secs(1), ..ConnectionSettings::default() };
/// ```
#[derive(Clone, Debug)]
pub struct ConnectionSettings {
    /// With this many rows they are written at once.
    pub capacity: usize,
    /// The oldest row waits no longer than this: what a killed process may lose of records that were
    /// not taken with a receipt.
    pub interval: Duration,
    /// With this many rows in memory callers wait.
    pub bound: usize,
    /// How long a caller waits for room, or for a receipt.
    pub accept_timeout: Duration,
    /// How batches are tried again.
    pub retry: retry::Settings,
    /// How receipts share a sync.
    pub gather: Gather,
}

impl Default for ConnectionSettings {
    fn default() -> ConnectionSettings {
        ConnectionSettings {
            capacity: 1_000,
            interval: Duration::from_secs(5),
            bound: 16_000,
            accept_timeout: Duration::from_secs(5),
            retry: retry::Settings::default(),
            gather: Gather::default(),
        }
    }
}

/// What the connection log needs from outside.
pub struct ConnectionOutside<'a> {
    /// The rooms it joins.
    pub crew: &'a Crew,
    /// Where rows go.
    pub stores: Arc<dyn Stores>,
    /// What outlives an outage. A spool in memory gives no receipts.
    pub spool: Box<dyn Spool>,
    /// Whether the spool survives the process, so that receipts may be given.
    pub durable: bool,
    /// Where rows go besides.
    pub backends: Vec<Box<dyn Backend>>,
    /// Reads apart from writes.
    pub lookups: Lookups,
    /// Where its figures are described.
    pub metrics: &'a mut Metrics,
}

impl std::fmt::Debug for ConnectionOutside<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionOutside").field("durable", &self.durable).finish_non_exhaustive()
    }
}

/// The connection log of one engine: who connected, when, from where, for how long, and why it ended.
///
/// Records of one connection become one row, whatever order they arrive in; see
/// [`Row`]. [`Connections::record`] takes a record into memory, from
/// where it is written at the latest one interval later; a process that is killed may lose that much.
/// [`Connections::record_durable`] answers once the record is synced to the spool. Whatever happens to
/// the database, an accepted record is stored, spooled, or buried with the reason.
///
/// ```
/// use towpath::{ConnectionKind, ConnectionQuery, ConnectionStatus, Engine, Record};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path();
/// let engine = Engine::builder().data(path).start()?;
/// let (rt, log) = (engine.rt(), engine.connections());
/// let connection = Some(rt.uuid_v4());
/// let began = Record::new(rt.uuid_v7(), rt.wall(), ConnectionKind::Ssh, ConnectionStatus::Connected);
/// log.record_durable(Record { connection_id: connection, ..began })?; // synced before this returns
/// let ended = Record::new(rt.uuid_v7(), rt.wall(), ConnectionKind::Ssh, ConnectionStatus::Disconnected);
/// log.record(Record { connection_id: connection, ..ended })?;
/// log.flush()?;
/// assert!(log.query(ConnectionQuery::default())?.rows.len() <= 1); // both are one row
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Connections {
    shared: Arc<Inner>,
}

struct Inner {
    rt: Rt,
    settings: ConnectionSettings,
    door: Arc<ConnectionDoor>,
    ledger: Arc<Ledger>,
    flush: Inbox<ToFlush>,
    spool: Inbox<ToSpool>,
    durable: bool,
    fan: Fan,
    lookups: Lookups,
    closed: Arc<AtomicBool>,
    full: Counter,
    own_lost: Counter,
}

/// The threads behind a [`Connections`]. Dropping it writes what is held, spools what cannot be
/// written, and joins them.
#[derive(Debug)]
#[must_use = "dropping it stops the connection log"]
pub struct ConnectionRooms {
    rt: Rt,
    shared: Arc<Shared>,
    closed: Arc<AtomicBool>,
    ledger: Arc<Ledger>,
    // In the order they end: each hands what is left to the next.
    flush: Option<Worker>,
    retries: Option<Worker>,
    spool: Option<Worker>,
    backends: Option<Backends>,
}

impl Connections {
    /// Starts the connection log.
    ///
    /// # Errors
    /// The spool cannot be read, or there is no thread to be had.
    pub fn start(
        settings: ConnectionSettings,
        outside: ConnectionOutside<'_>,
    ) -> Result<(Connections, ConnectionRooms)> {
        let ConnectionOutside { crew, stores, spool, durable, backends, lookups, metrics } = outside;
        let rt = crew.rt().clone();
        let ledger = Arc::new(Ledger::default());
        let door = Arc::new(ConnectionDoor::new(&rt, settings.bound));
        let shared = Arc::new(Shared::new());
        let figures = describe(metrics, &rt, &door, &ledger);
        let (backends, fan) = Backends::start(crew, backends, &shared, metrics)?;

        // The spool tells the retry room, which is made after it: the way there is filled in below.
        let to_retries: Arc<crate::rt::Lock<Option<Inbox<ToRetries>>>> = Arc::default();
        let late = to_retries.clone();
        let grew = Box::new(move || {
            let inbox = late.lock().clone();
            if let Some(inbox) = inbox {
                // A full inbox has answers of the spool in it, after each of which it looks again.
                let _ = inbox.control(ToRetries::SpoolGrew);
            }
        });
        let spooler = Spooler::new(&rt, spool, settings.gather, ledger.clone(), grew)?;
        let (spool, spool_inbox) =
            Worker::spawn(crew, "spool", InboxBounds { data: 4_096, control: 1_024, drain: 1_024 }, |_| {
                spooler
            })?;

        let to_flush: Arc<crate::rt::Lock<Option<Inbox<ToFlush>>>> = Arc::default();
        let late = to_flush.clone();
        let freed = Box::new(move || {
            let inbox = late.lock().clone();
            if let Some(inbox) = inbox {
                let _ = inbox.control(ToFlush::Look);
            }
        });
        let parts = retries::Parts {
            rt: rt.clone(),
            settings: settings.retry,
            stores: stores.clone(),
            spool: spool_inbox.clone(),
            shared: shared.clone(),
            ledger: ledger.clone(),
            figures: figures.flushes.clone(),
            retried: figures.retried,
            freed,
        };
        let (retries, retry_inbox) =
            Worker::spawn(crew, "retries", InboxBounds::of(1_024), |own| Retries::new(parts, own))?;
        *to_retries.lock() = Some(retry_inbox.clone());

        let parts = ConnectionParts {
            rt: rt.clone(),
            door: door.clone(),
            stores,
            retries: retry_inbox,
            shared: shared.clone(),
            ledger: ledger.clone(),
            figures: figures.flushes,
            fan: fan.clone(),
            bounds: Bounds {
                capacity: settings.capacity,
                bound: settings.bound,
                interval: settings.interval,
            },
        };
        let (flush, flush_inbox) =
            Worker::spawn(crew, "flush-connections", InboxBounds::of(64), |_| FlushConnections::new(parts))?;
        *to_flush.lock() = Some(flush_inbox.clone());

        let closed = Arc::new(AtomicBool::new(false));
        let rooms = ConnectionRooms {
            rt: rt.clone(),
            shared,
            closed: closed.clone(),
            ledger: ledger.clone(),
            flush: Some(flush),
            retries: Some(retries),
            spool: Some(spool),
            backends: Some(backends),
        };
        let inner = Inner {
            rt,
            settings,
            door,
            ledger,
            flush: flush_inbox,
            spool: spool_inbox,
            durable,
            fan,
            lookups,
            closed,
            full: figures.full,
            own_lost: figures.own_lost,
        };
        Ok((Connections { shared: Arc::new(inner) }, rooms))
    }

    /// Takes a record. It is written with others, at the latest one interval later. Waits up to
    /// `accept_timeout` when too much is in memory.
    ///
    /// # Errors
    /// [`Code::Full`] when there was no room in time, [`Code::Stopped`] after the engine's end. The
    /// record was not taken.
    pub fn record(&self, record: Record) -> Result<()> {
        let inner = &*self.shared;
        let mut row = self.row(record);
        let mut deadline = None;
        loop {
            match inner.door.add(row) {
                Added::New { before } => {
                    inner.wake(before);
                    return Ok(());
                }
                Added::Merged => return Ok(()),
                Added::Sealed(_) => return Err(stopped()),
                Added::Full(back) => row = back,
            }
            let deadline = *deadline.get_or_insert_with(|| inner.rt.now() + inner.settings.accept_timeout);
            let hurry = || _ = inner.flush.control(ToFlush::Look);
            if !inner.door.wait(&inner.rt, deadline, hurry) {
                inner.full.inc();
                return Err(self.too_full());
            }
        }
    }

    /// Takes a record and answers once it is synced to the spool, from where it is sent at once.
    ///
    /// # Errors
    /// [`Code::Full`] when the spool is full or not fast enough, [`Code::TimedOut`] when it did not
    /// answer in time (the record may have been taken: send it again, with the same id),
    /// [`Code::BadConfig`] when there is no spool on disk, [`Code::Stopped`] after the engine's end.
    pub fn record_durable(&self, mut record: Record) -> Result<Uuid> {
        self.complete(&mut record);
        let id = record.id;
        self.record_all_durable(vec![record])?;
        Ok(id)
    }

    /// [`Connections::record_durable`] for many: all of them or none.
    ///
    /// # Errors
    /// As there.
    pub fn record_all_durable(&self, records: Vec<Record>) -> Result<()> {
        let inner = &*self.shared;
        let deadline = inner.rt.now() + inner.settings.accept_timeout;
        let (tx, rx) = inner.rt.channel("receipt", 1);
        let done = Box::new(move |kept| _ = tx.try_send(kept));
        self.append(records, done, |message| inner.spool.data(message, deadline))?;
        match rx.recv_deadline(deadline) {
            Ok(kept) => Ok(kept?),
            Err(RecvTimeoutError::Timeout) => Err(Error::new(
                Code::TimedOut,
                format!(
                    "the spool did not answer within {:?}: send the record again with the same id",
                    inner.settings.accept_timeout
                ),
            )),
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
        }
    }

    /// The same without waiting: `done` is called on the spool's thread, which it must not hold up.
    ///
    /// # Errors
    /// The spool has too much to do, there is none on disk, or the engine has ended.
    pub fn submit_durable(
        &self,
        records: Vec<Record>,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        let done = Box::new(move |kept: Result<(), SpoolError>| done(kept.map_err(Error::from)));
        self.append(records, done, |message| self.shared.spool.try_data(message))
    }

    fn append(
        &self,
        records: Vec<Record>,
        done: spooler::Done<()>,
        send: impl FnOnce(ToSpool) -> std::result::Result<(), Refused<ToSpool>>,
    ) -> Result<()> {
        let inner = &*self.shared;
        if !inner.durable {
            let text = "receipts need a spool on disk: give the engine a data directory";
            return Err(Error::new(Code::BadConfig, text));
        }
        if inner.closed.load(Relaxed) {
            return Err(stopped());
        }
        let rows = records.into_iter().map(|record| self.row(record)).collect();
        match send(self.to_spool(rows, done)) {
            Ok(()) => Ok(()),
            Err(Refused::Full(_)) => {
                inner.full.inc();
                Err(self.too_full())
            }
            Err(Refused::Ended(_)) => Err(stopped()),
        }
    }

    /// What the spool is asked to keep. The backends get it once it is kept.
    fn to_spool(&self, rows: Vec<Row>, done: spooler::Done<()>) -> ToSpool {
        let items = rows.iter().map(spooler::item).collect();
        let fan = self.shared.fan.clone();
        let done = Box::new(move |kept: std::result::Result<(), SpoolError>| {
            if kept.is_ok() {
                fan.send(&rows);
            }
            done(kept);
        });
        ToSpool::Append { items, from: Origin::Caller, done }
    }

    /// Takes a record without ever waiting: for threads that carry connections. When memory is full
    /// it goes to the spool; when that cannot take it either it is dropped and counted.
    pub fn offer(&self, record: Record) {
        let inner = &*self.shared;
        let row = match inner.door.add(self.row(record)) {
            Added::New { before } => return inner.wake(before),
            Added::Merged => return,
            Added::Full(row) | Added::Sealed(row) => row,
        };
        crate::mark!(own_record_went_to_the_spool);
        let lost = inner.own_lost.clone();
        let done = Box::new(move |kept: std::result::Result<(), SpoolError>| {
            if let Err(error) = kept {
                lost.inc();
                log::warn!("a record of an own link is lost: memory is full, and {error}");
            }
        });
        if let Err(refused) = inner.spool.try_data(self.to_spool(vec![row], done)) {
            inner.own_lost.inc();
            let why = if matches!(refused, Refused::Full(_)) { "busy" } else { "gone" };
            log::warn!("a record of an own link is lost: memory is full, and the spool is {why}");
        }
    }

    /// [`Connections::record`] without waiting.
    ///
    /// # Errors
    /// There is no room now, or the engine has ended; the record comes back.
    pub fn try_record(&self, record: Record) -> std::result::Result<(), Box<Record>> {
        match self.shared.door.add(self.row(record)) {
            Added::New { before } => {
                self.shared.wake(before);
                Ok(())
            }
            Added::Merged => Ok(()),
            Added::Full(row) | Added::Sealed(row) => Err(Box::new(row.first)),
        }
    }

    /// An id for a connection of the engine's own.
    pub(super) fn new_id(&self) -> Uuid {
        self.shared.rt.uuid_v7()
    }

    /// Writes what is held now instead of at the end of its interval, and returns once that was
    /// tried.
    ///
    /// # Errors
    /// [`Code::Stopped`] after the engine's end, [`Code::TimedOut`] when it took longer than
    /// `accept_timeout`.
    pub fn flush(&self) -> Result<()> {
        let inner = &*self.shared;
        flush_now(&inner.rt, &inner.flush, inner.settings.accept_timeout)
    }

    /// Rows, newest first. A `limit` of 0 means 100.
    ///
    /// # Errors
    /// The store cannot be asked, or the engine has ended.
    pub fn query(&self, query: ConnectionQuery) -> Result<Page> {
        let query = with_limit(query);
        self.shared.lookups.ask(move |stores| page(stores.connections()?, &query))
    }

    /// How many rows a query has, counted no further than `cap`.
    ///
    /// # Errors
    /// As [`Connections::query`].
    pub fn count(&self, query: ConnectionQuery, cap: u64) -> Result<Count> {
        self.shared.lookups.ask(move |stores| stores.connections()?.count(&query, cap))
    }

    /// Every row of a query, page by page, newest first; `each` may end it early by an error.
    ///
    /// # Errors
    /// As [`Connections::query`], or what `each` answered.
    pub fn export(&self, query: ConnectionQuery, mut each: impl FnMut(Row) -> Result<()>) -> Result<u64> {
        let mut query = ConnectionQuery { limit: 1_000, ..query };
        let mut count = 0;
        loop {
            let page = self.query(query.clone())?;
            for row in page.rows {
                each(row)?;
                count += 1;
            }
            match page.next {
                Some(next) => query = ConnectionQuery { after: Some(next), offset: 0, ..query },
                None => return Ok(count),
            }
        }
    }

    /// Deletes connections that began before `before`, oldest first, in bounded steps; how many.
    ///
    /// # Errors
    /// As [`Connections::query`].
    pub fn prune(&self, before: Wall) -> Result<u64> {
        const STEP: usize = 1_000;
        let mut pruned = 0;
        loop {
            let gone = self.shared.lookups.ask(move |stores| stores.connections()?.prune(before, STEP))?;
            pruned += gone;
            if gone < STEP as u64 {
                return Ok(pruned);
            }
        }
    }

    /// The records that the store refuses, oldest first.
    ///
    /// # Errors
    /// As [`Connections::query`].
    pub fn dead_letters(&self, after: Option<(Wall, Uuid)>, limit: usize) -> Result<Vec<DeadLetter>> {
        self.shared.lookups.ask(move |stores| stores.connections()?.dead_letters(after, limit))
    }

    /// Where every accepted record is. Exact when no call is under way.
    pub fn account(&self) -> Account {
        account(&self.shared.door, &self.shared.ledger)
    }

    /// Why the spool takes nothing now, if it does not: for readiness.
    pub fn spool_trouble(&self) -> Option<SpoolError> {
        self.shared.ledger.spool_trouble(self.shared.rt.now())
    }

    /// What is wrong with the backends besides the database, all in one sentence: hinders nothing, and
    /// somebody should look.
    pub fn backend_trouble(&self) -> Option<String> {
        self.shared.fan.trouble()
    }

    /// How the spool fares.
    ///
    /// # Errors
    /// The spool cannot be read, is too busy to answer, or the engine has ended.
    pub fn spool_status(&self) -> Result<Status> {
        let inner = &*self.shared;
        let deadline = inner.rt.now() + inner.settings.accept_timeout;
        let (tx, rx) = inner.rt.channel("spool status", 1);
        self.submit_spool_status(move |status| _ = tx.try_send(status))?;
        match rx.recv_deadline(deadline) {
            Ok(status) => status,
            Err(RecvTimeoutError::Timeout) => {
                Err(Error::new(Code::TimedOut, "the spool did not answer in time"))
            }
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
        }
    }

    /// The same without waiting; `done` is called on the spool's thread.
    ///
    /// # Errors
    /// The spool is too busy, or the engine has ended.
    pub fn submit_spool_status(&self, done: impl FnOnce(Result<Status>) + Send + 'static) -> Result<()> {
        let done = Box::new(move |status: Result<Status, SpoolError>| done(status.map_err(Error::from)));
        self.shared.spool.try_data(ToSpool::Status { done }).map_err(|refused| match refused {
            Refused::Full(_) => self.too_full(),
            Refused::Ended(_) => stopped(),
        })
    }

    /// Reads apart from writes, for doors that must not wait.
    pub fn lookups(&self) -> &Lookups {
        &self.shared.lookups
    }

    /// Fills in what the caller left out.
    fn complete(&self, record: &mut Record) {
        let rt = &self.shared.rt;
        let id = if record.id.is_nil() { rt.uuid_v7() } else { record.id };
        let now = if record.time.0 <= 0 { rt.wall() } else { record.time };
        record.complete(now, id);
    }

    fn row(&self, mut record: Record) -> Row {
        self.complete(&mut record);
        Row::from(record)
    }

    fn too_full(&self) -> Error {
        let waited = self.shared.settings.accept_timeout;
        let text = "the connection log is full: the store is away or too slow, and so is the spool";
        Error::new(Code::Full, format!("{text} (waited {waited:?})"))
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("account", &self.account()).finish()
    }
}

impl Inner {
    /// Wakes the flush room when the first entry came, or the one that makes it enough.
    fn wake(&self, before: usize) {
        if before == 0 || before + 1 == self.settings.capacity {
            // A full inbox: it is about to look anyway.
            let _ = self.flush.control(ToFlush::Look);
        }
    }
}

impl ConnectionRooms {
    /// When everything has to be over; what cannot be written by then is spooled.
    pub fn end_by(&self, deadline: Moment) {
        self.shared.deadline.store(deadline.0, Relaxed);
    }
}

impl Drop for ConnectionRooms {
    fn drop(&mut self) {
        self.closed.store(true, Relaxed);
        if self.shared.deadline() == Moment::NEVER {
            self.end_by(self.rt.now() + Duration::from_secs(10));
        }
        // Each ends with everything the one before handed it.
        self.flush = None;
        self.retries = None;
        self.spool = None;
        self.backends = None;
        let left = self.ledger.account();
        if left.spooled > 0 {
            log::info!("{} connection records stay in the spool", left.spooled);
        }
        if left.pending > 0 {
            log::error!("{} connection records were neither stored nor spooled", left.pending);
        }
    }
}

pub(super) fn stopped() -> Error {
    Error::new(Code::Stopped, "the engine has stopped")
}
