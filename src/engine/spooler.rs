//! The thread that owns the spool: it gathers receipts into one sync and keeps the books.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use sha2::{Digest, Sha256};

use super::ledger::{Ledger, moved};
use super::worker::Room;
use crate::rt::{Moment, Rt};
use crate::spool::{Appended, Gather, Item, Kept, Spool, SpoolError, Status};
use crate::state::connection::Row;

/// The most rows and bytes of one page: what one statement takes, and not a burden for memory.
const PAGE_ROWS: usize = 1_000;
const PAGE_BYTES: usize = 4 << 20;

/// What is done with an answer. Runs on the spool's thread and must not wait.
pub(super) type Done<T> = Box<dyn FnOnce(Result<T, SpoolError>) + Send>;

pub(super) enum ToSpool {
    /// Keep these. Answered once they are synced.
    Append { items: Vec<Item>, from: Origin, done: Done<()> },
    /// The oldest page.
    Page { done: Done<Vec<Kept>> },
    /// A page was settled: the store has it, or has buried it.
    Settled { through: u64, merged: usize, dead: usize, done: Done<()> },
    /// How the spool fares.
    Status { done: Done<Status> },
}

/// Where appended records were before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nowhere: whoever brings them wants a receipt.
    Caller,
    /// In memory.
    Memory,
}

/// A row as an item of the spool. The key is a digest: a row that comes again is the same bytes.
pub(super) fn item(row: &Row) -> Item {
    let payload = serde_json::to_vec(row).expect("a row has only string keys and finite numbers");
    let digest = Sha256::digest(&payload);
    Item { key: digest[..16].try_into().expect("a digest of 32 bytes has 16"), payload }
}

/// The row an item holds; the reason if it is none.
pub(super) fn row(item: &Item) -> Result<Row, String> {
    serde_json::from_slice(&item.payload).map_err(|error| error.to_string())
}

/// The spool's room.
pub(super) struct Spooler {
    rt: Rt,
    spool: Box<dyn Spool>,
    gather: Gather,
    ledger: Arc<Ledger>,
    /// What shares the next sync, and for whom.
    items: Vec<Item>,
    waiting: Vec<Waiting>,
    sync_at: Option<Moment>,
    /// Whether the last sync served more than one: then it pays to wait for company.
    crowded: bool,
    /// Tells the retry room that there is something to send.
    grew: Box<dyn Fn() + Send>,
}

struct Waiting {
    count: usize,
    from: Origin,
    done: Done<()>,
}

impl Spooler {
    /// The room of `spool`, whose content is entered into the books.
    pub(super) fn new(
        rt: &Rt,
        mut spool: Box<dyn Spool>,
        gather: Gather,
        ledger: Arc<Ledger>,
        grew: Box<dyn Fn() + Send>,
    ) -> Result<Spooler, SpoolError> {
        let status = spool.status()?;
        ledger.accepted.fetch_add(status.records + status.lost, Relaxed);
        ledger.spooled.store(status.records, Relaxed);
        ledger.lost.store(status.lost, Relaxed);
        note(&ledger, &status);
        Ok(Spooler {
            rt: rt.clone(),
            spool,
            gather,
            ledger,
            items: Vec::new(),
            waiting: Vec::new(),
            sync_at: None,
            crowded: false,
            grew,
        })
    }

    fn append(&mut self, now: Moment, mut items: Vec<Item>, from: Origin, done: Done<()>) {
        self.waiting.push(Waiting { count: items.len(), from, done });
        self.items.append(&mut items);
        let wait = if self.crowded { self.gather.window } else { std::time::Duration::ZERO };
        self.sync_at.get_or_insert(now + wait);
    }

    /// One sync for everybody who waits.
    fn sync(&mut self) {
        self.sync_at = None;
        self.crowded = self.waiting.len() > 1;
        let items = std::mem::take(&mut self.items);
        let waiting = std::mem::take(&mut self.waiting);
        match self.keep(&items, &waiting) {
            Ok(()) => waiting.into_iter().for_each(|one| (one.done)(Ok(()))),
            Err(error) if waiting.len() == 1 => {
                waiting.into_iter().for_each(|one| (one.done)(Err(error.clone())))
            }
            // Together they did not fit, or did not get through; some of them may.
            Err(_) => {
                let mut rest = &items[..];
                for one in waiting {
                    let (own, others) = rest.split_at(one.count);
                    rest = others;
                    let kept = self.keep(own, std::slice::from_ref(&one));
                    (one.done)(kept);
                }
            }
        }
    }

    fn keep(&mut self, items: &[Item], waiting: &[Waiting]) -> Result<(), SpoolError> {
        let at = self.rt.wall();
        let appended = self.spool.append(items, at);
        if let Ok(done) = &appended {
            self.enter(waiting, *done);
        }
        self.reconcile();
        *self.ledger.refused.lock() = appended.as_ref().err().map(|error| (self.rt.now(), error.clone()));
        appended?;
        (self.grew)();
        Ok(())
    }

    fn enter(&self, waiting: &[Waiting], done: Appended) {
        let of =
            |from| waiting.iter().filter(|one| one.from == from).map(|one| one.count as u64).sum::<u64>();
        let books = &self.ledger;
        books.accepted.fetch_add(of(Origin::Caller), Relaxed);
        books.pending.fetch_sub(of(Origin::Memory), Relaxed);
        books.spooled.fetch_add(done.new as u64, Relaxed);
        books.merged.fetch_add(done.known as u64, Relaxed);
        moved(done.evicted, &books.spooled, &books.evicted);
    }

    fn settled(&mut self, through: u64, merged: usize, dead: usize) -> Result<(), SpoolError> {
        // Less than the page when a full spool threw some of it out meanwhile; those are evicted.
        let gone = self.spool.forget(through)?;
        let dead = dead.min(gone);
        let merged = merged.min(gone - dead);
        let books = &self.ledger;
        if gone > 0 {
            *books.refused.lock() = None;
        }
        moved(dead, &books.spooled, &books.dead_lettered);
        moved(merged, &books.spooled, &books.merged);
        moved(gone - dead - merged, &books.spooled, &books.stored);
        self.reconcile();
        Ok(())
    }

    /// A damaged file may have been replaced by one with less in it: the books follow the file.
    fn reconcile(&mut self) {
        let Ok(status) = self.spool.status() else { return };
        let books = &self.ledger;
        note(books, &status);
        let lost = status.lost.saturating_sub(books.lost.load(Relaxed));
        let believed = books.spooled.load(Relaxed);
        let found = status.records + lost;
        if lost > 0 || found != believed {
            books.lost.fetch_add(lost, Relaxed);
            books.spooled.store(status.records, Relaxed);
            // More than believed: an append whose answer was a failure, and which is there.
            books.accepted.fetch_add(found.wrapping_sub(believed), Relaxed);
        }
    }
}

fn note(books: &Ledger, status: &Status) {
    books.spool_bytes.store(status.bytes, Relaxed);
    let oldest = status.oldest_at.map_or(0, |at| u64::try_from(at.0).unwrap_or(0));
    books.spool_oldest.store(oldest, Relaxed);
}

impl Room for Spooler {
    type Message = ToSpool;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<ToSpool>) {
        for message in inbox.drain(..) {
            match message {
                ToSpool::Append { items, from, done } => self.append(now, items, from, done),
                ToSpool::Page { done } => {
                    let page = self.spool.page(0, PAGE_ROWS, PAGE_BYTES);
                    self.reconcile();
                    done(page);
                }
                ToSpool::Settled { through, merged, dead, done } => done(self.settled(through, merged, dead)),
                ToSpool::Status { done } => done(self.spool.status()),
            }
        }
        if self.items.len() >= self.gather.items || self.sync_at.is_some_and(|at| at <= now) {
            self.sync();
        }
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<ToSpool>) {
        self.wake(now, inbox);
        self.salvage();
    }

    fn salvage(&mut self) {
        if !self.waiting.is_empty() {
            self.sync();
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.sync_at
    }
}
