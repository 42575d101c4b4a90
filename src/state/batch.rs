//! What has been accepted and not yet been written: one value a key, and the moment it is due.
//!
//! Invariant: `entries` holds at most `bound` keys; `opened` is `Some` exactly while it holds any,
//! and is the moment the oldest of them came in. Writing, waiting and retrying are for the room that
//! owns the batch.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use super::time::Moment;

/// A value that can take in another of the same key.
///
/// `one.merge(two)` leaves in `one` what both say together. It must not matter in which order a set
/// of values is merged, nor whether one of them is merged twice: retries and the spool deliver in
/// any order, and again.
pub trait Merge {
    /// Takes in what `other` says about the same key.
    fn merge(&mut self, other: Self);
}

/// How a batch is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// With this many keys the batch is due at once.
    pub capacity: usize,
    /// With this many keys a new key is refused. At least `capacity`.
    pub bound: usize,
    /// The oldest key waits no longer than this.
    pub interval: Duration,
}

/// What became of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is the first of its key.
    Accepted,
    /// It was merged into the one that was there.
    Coalesced,
    /// The batch is at its bound and the key is new; nothing changed.
    Full,
}

/// Why a batch is written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It has reached its capacity.
    Capacity,
    /// Its oldest entry has waited long enough.
    Scheduled,
    /// Somebody waits for room.
    Pressure,
    /// The engine stops.
    Shutdown,
}

impl Reason {
    /// Every reason, in the order metrics show them.
    pub const ALL: [Reason; 4] = [Reason::Capacity, Reason::Scheduled, Reason::Pressure, Reason::Shutdown];

    /// The word used in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Capacity => "capacity",
            Reason::Scheduled => "scheduled",
            Reason::Pressure => "pressure",
            Reason::Shutdown => "shutdown",
        }
    }
}

/// One value a key, sorted by key when taken, so that two writers lock rows in the same order.
#[derive(Clone, Debug)]
pub struct Batch<K, V> {
    entries: BTreeMap<K, V>,
    bounds: Bounds,
    opened: Option<Moment>,
}

impl<K: Ord, V: Merge> Batch<K, V> {
    /// An empty batch.
    pub fn new(bounds: Bounds) -> Batch<K, V> {
        let bound = bounds.bound.max(bounds.capacity);
        Batch { entries: BTreeMap::new(), bounds: Bounds { bound, ..bounds }, opened: None }
    }

    /// Adds a value, or merges it into the one its key has.
    pub fn add(&mut self, now: Moment, key: K, value: V) -> Added {
        let full = self.entries.len() >= self.bounds.bound;
        match self.entries.entry(key) {
            Entry::Occupied(mut held) => {
                held.get_mut().merge(value);
                Added::Coalesced
            }
            Entry::Vacant(_) if full => Added::Full,
            Entry::Vacant(free) => {
                free.insert(value);
                self.opened.get_or_insert(now);
                Added::Accepted
            }
        }
    }

    /// Why the batch should be written at `now`, if it should. An empty batch never is.
    pub fn due(&self, now: Moment) -> Option<Reason> {
        let opened = self.opened?;
        if self.entries.len() >= self.bounds.capacity {
            Some(Reason::Capacity)
        } else if now >= opened + self.bounds.interval {
            Some(Reason::Scheduled)
        } else {
            None
        }
    }

    /// When [`Batch::due`] changes by itself.
    pub fn deadline(&self) -> Option<Moment> {
        self.opened.map(|opened| opened + self.bounds.interval)
    }

    /// Everything, sorted by key. The timer starts again with the next entry.
    pub fn take(&mut self) -> Vec<(K, V)> {
        self.opened = None;
        std::mem::take(&mut self.entries).into_iter().collect()
    }

    /// The first `max` entries, sorted by key. What stays is as old as it was, so it stays due.
    pub fn take_some(&mut self, max: usize) -> Vec<(K, V)> {
        if self.entries.len() <= max {
            return self.take();
        }
        let mut taken = Vec::with_capacity(max);
        while taken.len() < max {
            let Some(entry) = self.entries.pop_first() else { break };
            taken.push(entry);
        }
        taken
    }

    /// How many keys are held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
#[path = "batch/tests.rs"]
mod tests;
