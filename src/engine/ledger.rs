//! Where every accepted connection record is, and the figures that show it.
//!
//! Invariant, whenever no call is under way: `accepted = stored + merged + pending + spooled +
//! dead_lettered + evicted + lost`. A record is in exactly one place, and `spooled` until its row has
//! been committed, even while it is being sent. `lost` counts what damage to the spool took, `evicted`
//! what a full spool threw out because its operator chose so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::metrics::{Counter, Histogram, Metrics};
use crate::rt::{Lock, Moment, Rt, Wall};
use crate::spool::SpoolError;
use crate::state::batch::Reason;

/// How many records are where, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Account {
    /// Records taken in since the start, and those found in the spool then.
    pub accepted: u64,
    /// Rows committed to the store.
    pub stored: u64,
    /// Records that became part of another's row before it was written.
    pub merged: u64,
    /// Records in memory: at the door, being written, or waiting to be tried again.
    pub pending: u64,
    /// Records in the spool.
    pub spooled: u64,
    /// Records that the store refuses, kept in its dead letters.
    pub dead_lettered: u64,
    /// Records thrown out of a full spool by its operator's choice.
    pub evicted: u64,
    /// Records that damage to the spool took.
    pub lost: u64,
}

impl Account {
    /// Whether every accepted record is somewhere.
    pub fn balances(&self) -> bool {
        let somewhere = self.stored + self.merged + self.pending + self.spooled;
        self.accepted == somewhere + self.dead_lettered + self.evicted + self.lost
    }
}

/// The running totals behind an [`Account`], without what is still at the door.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) accepted: AtomicU64,
    pub(super) stored: AtomicU64,
    pub(super) merged: AtomicU64,
    pub(super) pending: AtomicU64,
    pub(super) spooled: AtomicU64,
    pub(super) dead_lettered: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) lost: AtomicU64,
    /// Bytes in the spool.
    pub(super) spool_bytes: AtomicU64,
    /// When the oldest record in the spool was put there, in microseconds; 0 while there is none.
    pub(super) spool_oldest: AtomicU64,
    /// Batches in memory that wait to be tried again.
    pub(super) waiting: AtomicU64,
    /// Since when there have been some, in nanoseconds of the runtime's clock.
    pub(super) waiting_since: AtomicU64,
    /// When the spool last took nothing, and why; none once it took something.
    pub(super) refused: Lock<Option<(Moment, SpoolError)>>,
}

/// How long a refusal counts after which nobody asked again. One for want of room in the spool counts until
/// there is some.
const REFUSED_FOR: Duration = Duration::from_secs(10);

impl Ledger {
    /// Why the spool takes nothing now, if it does not.
    pub(super) fn spool_trouble(&self, now: Moment) -> Option<SpoolError> {
        let (at, error) = self.refused.lock().clone()?;
        let stays = matches!(error, SpoolError::Full { .. });
        (stays || now.since(at) < REFUSED_FOR).then_some(error)
    }

    pub(super) fn account(&self) -> Account {
        Account {
            accepted: self.accepted.load(Relaxed),
            stored: self.stored.load(Relaxed),
            merged: self.merged.load(Relaxed),
            pending: self.pending.load(Relaxed),
            spooled: self.spooled.load(Relaxed),
            dead_lettered: self.dead_lettered.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
            lost: self.lost.load(Relaxed),
        }
    }
}

/// Adds to one total what another loses.
pub(super) fn moved(count: usize, from: &AtomicU64, to: &AtomicU64) {
    from.fetch_sub(count as u64, Relaxed);
    to.fetch_add(count as u64, Relaxed);
}

/// Shows how full the queues behind the doors are, and how old what is in them.
pub(super) fn describe_queues(metrics: &mut Metrics, rt: &Rt, ledger: &Arc<Ledger>) {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let books = ledger.clone();
    metrics.gauge_from("spool_bytes", "Bytes of the records in the spool.", move || {
        whole(books.spool_bytes.load(Relaxed))
    });
    let (books, clock) = (ledger.clone(), rt.clone());
    let help = "How long the oldest record in the spool has been there.";
    metrics.gauge_from("spool_oldest_seconds", help, move || match books.spool_oldest.load(Relaxed) {
        0 => 0,
        oldest => whole(clock.wall().since(Wall(whole(oldest))).as_secs()),
    });
    let books = ledger.clone();
    let help = "Batches of connection rows in memory that wait to be tried again.";
    metrics.gauge_from("connections_waiting_batches", help, move || whole(books.waiting.load(Relaxed)));
    let (books, clock) = (ledger.clone(), rt.clone());
    let help = "How long there has been a batch of connection rows that waits to be tried again.";
    metrics.gauge_from("connections_waiting_seconds", help, move || match books.waiting.load(Relaxed) {
        0 => 0,
        _ => whole(clock.now().since(Moment(books.waiting_since.load(Relaxed))).as_secs()),
    });
}

/// What a flush room shows of its flushes.
#[derive(Clone, Debug)]
pub(super) struct Flushes {
    batches: [Counter; Reason::ALL.len()],
    entries: [Counter; Reason::ALL.len()],
    seconds: [Histogram; Reason::ALL.len()],
    sizes: Histogram,
    /// Writes that failed and will be tried again.
    pub(super) failures: Counter,
    /// Batches that were halved because of a row in them.
    pub(super) splits: Counter,
}

/// The names of a flush room's figures.
pub(super) struct Names {
    pub(super) batches: (&'static str, &'static str),
    pub(super) entries: (&'static str, &'static str),
    pub(super) seconds: (&'static str, &'static str),
    pub(super) sizes: (&'static str, &'static str),
    pub(super) failures: (&'static str, &'static str),
    pub(super) splits: (&'static str, &'static str),
}

impl Flushes {
    pub(super) fn describe(metrics: &mut Metrics, names: &Names) -> Flushes {
        let batches = metrics.counters(names.batches.0, names.batches.1);
        let entries = metrics.counters(names.entries.0, names.entries.1);
        let seconds = metrics.seconds_by(names.seconds.0, names.seconds.1);
        let labels = |reason: Reason| vec![("reason", reason.as_str())];
        Flushes {
            batches: Reason::ALL.map(|reason| batches.get_or_create_owned(&labels(reason))),
            entries: Reason::ALL.map(|reason| entries.get_or_create_owned(&labels(reason))),
            seconds: Reason::ALL.map(|reason| seconds.get_or_create_owned(&labels(reason))),
            sizes: metrics.sizes(names.sizes.0, names.sizes.1),
            failures: metrics.counter(names.failures.0, names.failures.1),
            splits: metrics.counter(names.splits.0, names.splits.1),
        }
    }

    /// A batch was written.
    pub(super) fn written(&self, reason: Reason, rows: usize, took: Duration) {
        let place = reason as usize;
        self.batches[place].inc();
        self.entries[place].inc_by(rows as u64);
        self.seconds[place].observe(took.as_secs_f64());
        self.sizes.observe(rows as f64);
    }
}

/// Shows an [`Account`] as gauges and counters.
pub(super) fn describe_account(metrics: &mut Metrics, read: impl Fn() -> Account + Send + Sync + 'static) {
    let read = Arc::new(read);
    let mut counter = |name, help, pick: fn(&Account) -> u64| {
        let read = read.clone();
        metrics.counter_from(name, help, move || pick(&read()));
    };
    counter(
        "connections_accepted",
        "Connection records taken in, and those found in the spool at the start.",
        |a| a.accepted,
    );
    counter("connections_stored", "Connection rows committed to the store.", |a| a.stored);
    counter(
        "connections_merged",
        "Connection records that became part of another's row before it was written.",
        |a| a.merged,
    );
    counter(
        "connections_dead_lettered",
        "Connection records the store refuses, kept in its dead letters.",
        |a| a.dead_lettered,
    );
    counter(
        "spool_evicted",
        "Records thrown out of a full spool because its operator chose oldest-out.",
        |a| a.evicted,
    );
    counter("spool_lost", "Records that damage to the spool took.", |a| a.lost);
    let mut gauge = |name, help, pick: fn(&Account) -> u64| {
        let read = read.clone();
        metrics.gauge_from(name, help, move || i64::try_from(pick(&read())).unwrap_or(i64::MAX));
    };
    gauge(
        "connections_pending",
        "Connection records in memory: at most these are lost when the process is killed.",
        |a| a.pending,
    );
    gauge("spool_records", "Records in the spool.", |a| a.spooled);
}
