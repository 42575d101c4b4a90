//! The retry room: batches whose write failed, and the reader of the spool.
//!
//! It takes a failed batch from the flush room, holds a bounded number of them in memory, spools the
//! rest, and sends everything until the store has it. A batch it was handed carries a credit; the
//! credit goes back once the batch has its place in memory or on disk, so that what is on its way is
//! bounded too. While no credit is free the flush room keeps what it has, the door fills, and
//! producers wait or are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::ledger::{Flushes, Ledger, moved};
use super::settle::{failure, settle};
use super::spooler::{self, Origin, ToSpool};
use super::worker::{Inbox, Room};
use crate::metrics::Counter;
use crate::rt::{Moment, Rand, Receiver, Rt, Sender};
use crate::spool::{Kept, SpoolError};
use crate::state::batch::Merge;
use crate::state::connection::{Key, Row};
use crate::state::retry::{Attempt, Failure, Retry, Settings, Step};
use crate::store::connections::{ConnectionStore, DeadLetter};
use crate::store::{StoreError, Stores};

/// Batches on their way from the flush room.
pub(super) const CREDITS: usize = 4;
/// How long a batch waits that neither memory nor the spool has room for, before it is tried again.
const CROWDED: std::time::Duration = std::time::Duration::from_millis(500);

pub(super) enum ToRetries {
    /// A batch that could not be written; it carries a credit.
    Failed { rows: Vec<Row>, why: Failure },
    /// Rows that must be kept though nobody holds a credit for them: the flush room ends.
    Last { rows: Vec<Row> },
    /// The spool has answered to an append.
    Spooled,
    /// The spool's oldest page.
    Page(Result<Vec<Kept>, SpoolError>),
    /// The spool's answer to what was settled of a page.
    Forgotten(Result<(), SpoolError>),
    /// There is something in the spool.
    SpoolGrew,
}

/// What the flush room and the retry room both know.
#[derive(Debug)]
pub(super) struct Shared {
    /// Whether the store is thought to be reachable.
    pub(super) reach: AtomicBool,
    /// Credits that are out.
    pub(super) owed: AtomicUsize,
    /// When everything has to be over; never, before the engine stops.
    pub(super) deadline: std::sync::atomic::AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Shared {
        Shared {
            reach: AtomicBool::new(true),
            owed: AtomicUsize::new(0),
            deadline: std::sync::atomic::AtomicU64::new(u64::MAX),
        }
    }

    pub(super) fn deadline(&self) -> Moment {
        Moment(self.deadline.load(Ordering::Relaxed))
    }
}

/// Whether the spool kept the batch of that number.
type Answer = (u64, Result<(), SpoolError>);

/// Where the page of the spool is that is being sent.
#[derive(Debug, PartialEq, Eq)]
enum Page {
    None,
    /// Asked for.
    Asked,
    /// Written; the spool is told to forget it.
    Settled,
}

pub(super) struct Retries {
    rt: Rt,
    rand: Rand,
    retry: Retry<Vec<Row>>,
    stores: Arc<dyn Stores>,
    store: Option<Box<dyn ConnectionStore>>,
    spool: Inbox<ToSpool>,
    own: Inbox<ToRetries>,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    figures: Flushes,
    retried: Counter,
    /// Tells the flush room that a credit is free.
    freed: Box<dyn Fn() + Send>,
    /// Batches that the spool is writing, by number, and whether they carry a credit.
    spooling: BTreeMap<u64, (Vec<Row>, bool)>,
    answers: (Sender<Answer>, Receiver<Answer>),
    next_id: u64,
    /// Batches that found no room, with the moment to try again.
    crowded: Vec<(Vec<Row>, bool)>,
    crowded_until: Option<Moment>,
    page: Page,
}

/// What a retry room is made of.
pub(super) struct Parts {
    pub(super) rt: Rt,
    pub(super) settings: Settings,
    pub(super) stores: Arc<dyn Stores>,
    pub(super) spool: Inbox<ToSpool>,
    pub(super) shared: Arc<Shared>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) figures: Flushes,
    pub(super) retried: Counter,
    pub(super) freed: Box<dyn Fn() + Send>,
}

impl Retries {
    pub(super) fn new(parts: Parts, own: &Inbox<ToRetries>) -> Retries {
        let rand = parts.rt.rand("retries");
        let mut retry = Retry::new(parts.settings);
        if parts.ledger.spooled.load(Ordering::Relaxed) > 0 {
            retry.spool_has_some(parts.rt.now());
        }
        Retries {
            rand,
            retry,
            stores: parts.stores,
            store: None,
            spool: parts.spool,
            own: own.clone(),
            shared: parts.shared,
            ledger: parts.ledger,
            figures: parts.figures,
            retried: parts.retried,
            freed: parts.freed,
            spooling: BTreeMap::new(),
            answers: parts.rt.channel("answers of the spool", 4_096),
            next_id: 0,
            crowded: Vec::new(),
            crowded_until: None,
            page: Page::None,
            rt: parts.rt,
        }
    }

    /// Finds a place for a batch, oldest first: in memory, or in the spool.
    fn place(&mut self, now: Moment, mut rows: Vec<Row>, why: Failure, credit: bool) {
        rows.sort_by_cached_key(|row| row.first.stamp());
        let bytes = rows.iter().map(Row::bytes).sum();
        let draw = self.rand.next_u64();
        match self.retry.keep(now, draw, rows, bytes, why) {
            Ok(()) => self.give_back(credit),
            Err(_) if crate::planted!("drop_on_full_retry_queue") => self.give_back(credit),
            Err(rows) => {
                crate::mark!(retry_queue_overflowed);
                self.put_into_spool(now, rows, credit);
            }
        }
    }

    fn put_into_spool(&mut self, now: Moment, rows: Vec<Row>, credit: bool) {
        let items = rows.iter().map(spooler::item).collect();
        let id = self.next_id;
        self.next_id += 1;
        let own = self.own.clone();
        let answers = self.answers.0.clone();
        let done = Box::new(move |kept| {
            // Its own way and not the inbox, which a room that is ending reads no more. It has room for all
            // that the spool can be asked at once.
            let _ = answers.try_send((id, kept));
            let _ = own.control(ToRetries::Spooled);
        });
        match self.spool.control(ToSpool::Append { items, from: Origin::Memory, done }) {
            Ok(()) => _ = self.spooling.insert(id, (rows, credit)),
            // Its inbox is full: the disk is slow. Hold on to the batch and its credit.
            Err(_) => self.hold(now, rows, credit),
        }
    }

    fn hold(&mut self, now: Moment, rows: Vec<Row>, credit: bool) {
        self.crowded.push((rows, credit));
        self.crowded_until.get_or_insert(now + CROWDED);
    }

    fn give_back(&mut self, credit: bool) {
        if credit {
            self.shared.owed.fetch_sub(1, Ordering::Relaxed);
            (self.freed)();
        }
    }

    fn spooled(&mut self, now: Moment, id: u64, kept: Result<(), SpoolError>) {
        let Some((rows, credit)) = self.spooling.remove(&id) else { return };
        match kept {
            Ok(()) => {
                self.give_back(credit);
                self.retry.spool_has_some(now);
            }
            Err(_) => self.hold(now, rows, credit),
        }
    }

    /// The store's connection, opened when it is needed.
    fn store(&mut self) -> Result<&mut Box<dyn ConnectionStore>, StoreError> {
        if self.store.is_none() {
            self.store = Some(self.stores.connections()?);
        }
        Ok(self.store.as_mut().expect("it was put there two lines up"))
    }

    fn probe(&mut self) {
        let answered = self.store().and_then(|store| store.ping());
        let now = self.rt.now();
        match answered {
            Ok(()) => {
                crate::mark!(store_reached_again);
                self.reached(now);
            }
            Err(error) => {
                log::debug!("the store is still away: {error}");
                self.store = None;
                self.retry.lost(now);
            }
        }
    }

    fn reached(&mut self, now: Moment) {
        self.shared.reach.store(true, Ordering::Relaxed);
        self.retry.reached(now);
    }

    /// Writes a batch again.
    fn write(&mut self, mut attempt: Attempt<Vec<Row>>) {
        self.retried.inc();
        let rows = std::mem::take(&mut attempt.batch);
        if let Some((left, why)) = self.settle(rows) {
            attempt.batch = left;
            let draw = self.rand.next_u64();
            self.retry.failed(self.rt.now(), draw, attempt, why);
        }
    }

    /// Writes rows that are pending; those that have to wait come back.
    fn settle(&mut self, rows: Vec<Row>) -> Option<(Vec<Row>, Failure)> {
        let (stored, dead, left) = self.try_to_settle(rows);
        moved(stored, &self.ledger.pending, &self.ledger.stored);
        moved(dead, &self.ledger.pending, &self.ledger.dead_lettered);
        left
    }

    fn try_to_settle(&mut self, rows: Vec<Row>) -> (usize, usize, Option<(Vec<Row>, Failure)>) {
        let at = self.rt.wall();
        let done = match self.store() {
            Ok(store) => settle(store.as_mut(), rows, at),
            Err(error) => super::settle::Settled { left: Some((rows, error)), ..Default::default() },
        };
        self.figures.splits.inc_by(done.splits as u64);
        let left = done.left.map(|(rows, error)| {
            self.figures.failures.inc();
            log::debug!("{} connection rows have to wait: {error}", rows.len());
            let why = failure(&error);
            if why == Failure::Unreachable {
                self.store = None;
                self.shared.reach.store(false, Ordering::Relaxed);
            }
            (rows, why)
        });
        if left.is_none() {
            self.shared.reach.store(true, Ordering::Relaxed);
        }
        (done.stored, done.dead, left)
    }

    fn ask_for_page(&mut self) {
        let own = self.own.clone();
        let done = Box::new(move |page| {
            let _ = own.control(ToRetries::Page(page));
        });
        // A full inbox means appends are under way; each of them says afterwards that there is more.
        if self.spool.control(ToSpool::Page { done }).is_ok() {
            self.page = Page::Asked;
        }
        self.retry.spool_asked();
    }

    /// Sends a page of the spool. Its records stay `spooled` until the spool has forgotten them.
    fn send_page(&mut self, now: Moment, page: Result<Vec<Kept>, SpoolError>) {
        self.page = Page::None;
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                log::error!("the spool cannot be read: {error}");
                let draw = self.rand.next_u64();
                return self.retry.spool_failed(now, draw, Failure::Conflict);
            }
        };
        let Some(last) = page.last() else { return self.retry.spool_is_empty() };
        let through = last.number;
        let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
        let mut merged = 0;
        let mut letters = Vec::new();
        for kept in &page {
            match spooler::row(&kept.item) {
                Ok(row) => match rows.entry(row.key()) {
                    std::collections::btree_map::Entry::Vacant(free) => _ = free.insert(row),
                    std::collections::btree_map::Entry::Occupied(mut held) => {
                        held.get_mut().merge(row);
                        merged += 1;
                    }
                },
                // Its checksum is right, so this was written by another towpath.
                Err(error) => letters.push(DeadLetter {
                    id: uuid::Uuid::from_bytes(kept.item.key),
                    record: String::from_utf8_lossy(&kept.item.payload).into_owned(),
                    error: format!("not_understood: {error}"),
                    at: kept.at,
                }),
            }
        }
        let unreadable = letters.len();
        let buried =
            if letters.is_empty() { Ok(()) } else { self.store().and_then(|store| store.bury(&letters)) };
        let (dead, left) = match buried {
            Ok(()) => {
                let (_, dead, left) = self.try_to_settle(rows.into_values().collect());
                (dead, left)
            }
            Err(error) => (0, Some((Vec::new(), failure(&error)))),
        };
        match left {
            Some((_, why)) => {
                let draw = self.rand.next_u64();
                self.retry.spool_failed(self.rt.now(), draw, why);
            }
            None => {
                let own = self.own.clone();
                let done = Box::new(move |forgotten| {
                    let _ = own.control(ToRetries::Forgotten(forgotten));
                });
                let settled = ToSpool::Settled { through, merged, dead: dead + unreadable, done };
                match self.spool.control(settled) {
                    Ok(()) => self.page = Page::Settled,
                    // Not forgotten: sent again, which the store does not mind.
                    Err(_) => self.retry.spool_failed(now, 0, Failure::Conflict),
                }
            }
        }
    }

    fn forgotten(&mut self, now: Moment, forgotten: Result<(), SpoolError>) {
        self.page = Page::None;
        match forgotten {
            Ok(()) => self.retry.spool_written(now),
            Err(error) => {
                log::error!("the spool cannot forget what was sent, which is sent again: {error}");
                let draw = self.rand.next_u64();
                self.retry.spool_failed(now, draw, Failure::Conflict);
            }
        }
    }

    fn take(&mut self, now: Moment, message: ToRetries) {
        match message {
            ToRetries::Failed { rows, why } => {
                if why == Failure::Unreachable {
                    self.shared.reach.store(false, Ordering::Relaxed);
                }
                self.place(now, rows, why, true);
            }
            ToRetries::Last { rows } => self.place(now, rows, Failure::Conflict, false),
            ToRetries::Spooled => {
                while let Ok((id, kept)) = self.answers.1.try_recv() {
                    self.spooled(now, id, kept);
                }
            }
            ToRetries::Page(page) => self.send_page(now, page),
            ToRetries::Forgotten(forgotten) => self.forgotten(now, forgotten),
            ToRetries::SpoolGrew => self.retry.spool_has_some(now),
        }
    }

    /// Does what is due, but not for so long that the inbox is forgotten.
    fn work(&mut self, now: Moment) {
        const STEPS: usize = 8;
        if self.crowded_until.is_some_and(|until| until <= now) {
            self.crowded_until = None;
            for (rows, credit) in std::mem::take(&mut self.crowded) {
                self.place(now, rows, Failure::Conflict, credit);
            }
        }
        if self.page != Page::None {
            // One page at a time; its answer starts the next.
            self.retry.spool_asked();
        }
        for _ in 0..STEPS {
            // Not the moment of the wake: what a probe brought back is due since it was answered, and
            // goes before the spool.
            match self.retry.next(self.rt.now()) {
                None => return,
                Some(Step::Probe) => self.probe(),
                Some(Step::Write(attempt)) => self.write(attempt),
                Some(Step::Spool) => self.ask_for_page(),
            }
        }
    }

    /// For whoever looks how far behind the store is.
    fn show(&self, now: Moment) {
        let waiting = (self.retry.len() + self.crowded.len() + self.spooling.len()) as u64;
        if self.ledger.waiting.swap(waiting, Ordering::Relaxed) == 0 {
            self.ledger.waiting_since.store(now.0, Ordering::Relaxed);
        }
    }

    /// Every batch in memory, oldest first.
    fn everything(&mut self) -> Vec<Vec<Row>> {
        let mut all: Vec<Vec<Row>> = self.retry.drain().collect();
        all.extend(std::mem::take(&mut self.crowded).into_iter().map(|(rows, _)| rows));
        all
    }

    fn spool_everything(&mut self) {
        for rows in self.everything() {
            let items = rows.iter().map(spooler::item).collect();
            let count = rows.len();
            let done = Box::new(move |kept: Result<(), SpoolError>| {
                if let Err(error) = kept {
                    log::error!("{count} connection records could not be spooled at the end: {error}");
                }
            });
            if self.spool.control(ToSpool::Append { items, from: Origin::Memory, done }).is_err() {
                log::error!("{count} connection records could not be spooled: the spool has ended");
            }
        }
    }
}

impl Room for Retries {
    type Message = ToRetries;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<ToRetries>) {
        for message in inbox.drain(..) {
            self.take(now, message);
        }
        self.work(now);
        self.show(now);
    }

    fn deadline(&self) -> Option<Moment> {
        let due = if self.page == Page::None { self.retry.deadline() } else { None };
        Moment::earliest(due, self.crowded_until)
    }

    /// One try for each batch while there is time, then the spool.
    fn end(&mut self, now: Moment, inbox: &mut Vec<ToRetries>) {
        for message in inbox.drain(..) {
            if !matches!(message, ToRetries::Page(_) | ToRetries::SpoolGrew) {
                self.take(now, message);
            }
        }
        // What the spool is asked to keep it may yet refuse.
        while !self.spooling.is_empty()
            && let Ok((id, kept)) = self.answers.1.recv_deadline(self.shared.deadline())
        {
            crate::mark!(spool_answered_at_the_end);
            self.spooled(self.rt.now(), id, kept);
        }
        let mut left = Vec::new();
        for rows in self.everything() {
            let hopeful = self.shared.reach.load(Ordering::Relaxed) && self.rt.now() < self.shared.deadline();
            let rest = if hopeful { self.settle(rows).map(|(rows, _)| rows) } else { Some(rows) };
            left.extend(rest.map(|rows| (rows, false)));
        }
        self.crowded = left;
        self.spool_everything();
    }

    fn salvage(&mut self) {
        self.spool_everything();
    }
}
