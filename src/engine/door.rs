//! Where producers leave what they have: a sharded map that merges where the caller stands.
//!
//! Adding takes one shard's lock for some tens of nanoseconds and never waits for a write. What is
//! held is bounded by the number of distinct keys and not by the rate. A flush room empties it.
//!
//! Invariant: `held` is the number of entries in all shards, give or take what is being added at this
//! instant. A sealed shard takes nothing more, so what was taken is found by the drain that follows
//! the seal.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::rt::{Guard, Lock, Moment, RecvTimeoutError, Rt, Sender};

/// One shard to a few producers: with 16, two of four producers meet one time in five.
const SHARDS: usize = 16;

/// The door is closed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sealed;

#[derive(Debug)]
pub(super) struct Door<S> {
    shards: Box<[Padded<S>]>,
    held: AtomicUsize,
    /// Those who wait for room.
    waiting: Lock<Vec<Sender<()>>>,
}

/// A shard on cache lines of its own: two, since they are fetched in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Padded<S>(Lock<Gate<S>>);

#[derive(Debug)]
struct Gate<S> {
    sealed: bool,
    shard: S,
}

/// One shard, locked: to be let go of within microseconds, and before the runtime is called.
#[derive(Debug)]
pub(super) struct Entered<'a, S>(Guard<'a, Gate<S>>);

impl<S> Deref for Entered<'_, S> {
    type Target = S;
    #[inline]
    fn deref(&self) -> &S {
        &self.0.shard
    }
}

impl<S> DerefMut for Entered<'_, S> {
    #[inline]
    fn deref_mut(&mut self) -> &mut S {
        &mut self.0.shard
    }
}

impl<S> Door<S> {
    pub(super) fn new(mut shard: impl FnMut() -> S) -> Door<S> {
        let shards = (0..SHARDS).map(|_| Padded(Lock::new(Gate { sealed: false, shard: shard() }))).collect();
        Door { shards, held: AtomicUsize::new(0), waiting: Lock::new(Vec::new()) }
    }

    /// The shard that `hash` falls into.
    #[inline]
    pub(super) fn enter(&self, hash: u64) -> Result<Entered<'_, S>, Sealed> {
        // Not the lowest bits nor the highest: the maps inside use those.
        let place = (hash >> 32) as usize % SHARDS;
        let gate = self.shards[place].0.lock();
        if gate.sealed { Err(Sealed) } else { Ok(Entered(gate)) }
    }

    /// Does something in every shard, one after the other, sealed or not.
    pub(super) fn each(&self, mut act: impl FnMut(&mut S)) {
        for padded in &self.shards {
            act(&mut padded.0.lock().shard);
        }
    }

    /// Nothing more is taken from here on, and whoever waits for room is told.
    pub(super) fn seal(&self) {
        for padded in &self.shards {
            padded.0.lock().sealed = true;
        }
        self.wake_all();
    }

    /// `by` more entries; how many there were before.
    #[inline]
    pub(super) fn grew(&self, by: usize) -> usize {
        self.held.fetch_add(by, Ordering::Relaxed)
    }

    /// `by` entries fewer; whoever waits for room tries again.
    pub(super) fn shrank(&self, by: usize) {
        self.held.fetch_sub(by, Ordering::Relaxed);
        self.wake_all();
    }

    #[inline]
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for room.
    pub(super) fn is_pressed(&self) -> bool {
        !self.waiting.lock().is_empty()
    }

    /// Waits until there may be room, until `bound` is more than what is held. `hurry` is called once
    /// it is certain that whoever makes room will see that somebody waits. False when it is too late.
    pub(super) fn wait(&self, rt: &Rt, bound: usize, deadline: Moment, hurry: impl FnOnce()) -> bool {
        let (tx, rx) = rt.channel("room at the door", 1);
        self.waiting.lock().push(tx);
        if self.held() < bound {
            return true;
        }
        hurry();
        match rx.recv_deadline(deadline) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => false,
        }
    }

    fn wake_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for tx in waiting {
            // Full or gone: it was told already, or gave up.
            let _ = tx.try_send(());
        }
    }
}
