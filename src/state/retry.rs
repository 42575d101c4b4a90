//! Batches whose write failed, and when each is tried again.
//!
//! A batch that failed for a reason of its own waits with exponential backoff and full jitter. When
//! the store cannot be reached nothing waits by itself: one probe for all of them goes out every
//! second, and the first that is answered makes every batch due at once. Tries are not limited; what
//! is limited is how much waits in memory, and what does not fit is handed back for the spool.
//!
//! Invariant: `waiting` holds at most `batches` batches of at most `bytes` together, unless it is a
//! single larger one. Nothing is `Due::WithProbe` while the store is `Up`.

use std::collections::VecDeque;
use std::time::Duration;

use super::backoff::{Backoff, Budget, Next, Policy};
use super::time::Moment;

/// How long to wait and how much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The longest first wait of a batch that failed by itself.
    pub first: Duration,
    /// The longest wait of all.
    pub cap: Duration,
    /// How often a store that cannot be reached is asked again.
    pub probe: Duration,
    /// How many batches may wait in memory.
    pub batches: usize,
    /// How many bytes they may have together.
    pub bytes: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            first: Duration::from_millis(250),
            cap: Duration::from_secs(30),
            probe: Duration::from_secs(1),
            batches: 10,
            bytes: 16 << 20,
        }
    }
}

impl Settings {
    fn backoff(&self) -> Backoff {
        Backoff::new(Policy {
            first: self.first,
            cap: self.cap,
            at_once: false,
            reset_after: Duration::ZERO,
            budget: Budget::Forever,
        })
    }
}

/// Why a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The store could not be reached; nothing is wrong with the batch.
    Unreachable,
    /// The store answered, and this batch is to be tried again: a timeout, a conflict.
    Conflict,
}

/// A batch that is out to be written again. Give it back with [`Retry::failed`] if that fails.
#[derive(Debug)]
pub struct Attempt<B> {
    /// What to write.
    pub batch: B,
    bytes: usize,
    backoff: Backoff,
}

/// What to do now.
#[derive(Debug)]
pub enum Step<B> {
    /// Ask the store whether it is there; answer with [`Retry::reached`] or [`Retry::lost`].
    Probe,
    /// Write this batch again.
    Write(Attempt<B>),
    /// Write the oldest page of the spool; answer with [`Retry::spool_failed`] if that fails.
    Spool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    At(Moment),
    WithProbe,
}

#[derive(Debug)]
struct Waiting<B> {
    attempt: Attempt<B>,
    due: Due,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Up,
    Down { probe_at: Moment },
}

/// The retry queue of one store. See the module's words.
#[derive(Debug)]
pub struct Retry<B> {
    settings: Settings,
    waiting: VecDeque<Waiting<B>>,
    bytes: usize,
    reach: Reach,
    spool: Backoff,
    spool_due: Option<Moment>,
}

impl<B> Retry<B> {
    /// Nothing waits, and the store is thought to be there.
    pub fn new(settings: Settings) -> Retry<B> {
        Retry {
            settings,
            waiting: VecDeque::new(),
            bytes: 0,
            reach: Reach::Up,
            spool: settings.backoff(),
            spool_due: None,
        }
    }

    /// A batch whose first write failed.
    ///
    /// # Errors
    /// There is no room for it; it comes back, for the spool.
    pub fn keep(&mut self, now: Moment, draw: u64, batch: B, bytes: usize, why: Failure) -> Result<(), B> {
        self.note(now, why);
        let alone = self.waiting.is_empty();
        if !alone && (self.waiting.len() >= self.settings.batches || self.bytes + bytes > self.settings.bytes)
        {
            return Err(batch);
        }
        self.wait(now, draw, Attempt { batch, bytes, backoff: self.settings.backoff() }, why);
        Ok(())
    }

    /// A batch that was tried again and failed again. It had its room and keeps it.
    pub fn failed(&mut self, now: Moment, draw: u64, attempt: Attempt<B>, why: Failure) {
        self.note(now, why);
        self.wait(now, draw, attempt, why);
    }

    /// The spool has something to send, or still has. Does not shorten a wait after a failure.
    pub fn spool_has_some(&mut self, now: Moment) {
        self.spool_due.get_or_insert(now);
    }

    /// A page of the spool is on its way; nothing about it is due until that is answered.
    pub fn spool_asked(&mut self) {
        self.spool_due = None;
    }

    /// Everything in the spool was sent.
    pub fn spool_is_empty(&mut self) {
        self.spool_due = None;
        self.spool.forget();
    }

    /// A page of the spool was written.
    pub fn spool_written(&mut self, now: Moment) {
        self.spool.forget();
        self.spool_due = Some(now);
        self.reached(now);
    }

    /// A page of the spool could not be written. It stays in the spool.
    pub fn spool_failed(&mut self, now: Moment, draw: u64, why: Failure) {
        self.note(now, why);
        self.spool_due = Some(match (why, self.spool.failed(now, draw)) {
            // The probe brings it back.
            (Failure::Unreachable, _) | (Failure::Conflict, Next::GiveUp) => now,
            (Failure::Conflict, Next::TryAt(at)) => at,
        });
    }

    /// The store answered: everything that waited for that is due at once.
    pub fn reached(&mut self, now: Moment) {
        self.reach = Reach::Up;
        for waiting in &mut self.waiting {
            if waiting.due == Due::WithProbe {
                waiting.due = Due::At(now);
            }
        }
    }

    /// The store did not answer.
    pub fn lost(&mut self, now: Moment) {
        self.reach = Reach::Down { probe_at: now + self.settings.probe };
    }

    /// What to do at `now`, if anything. Ask until it answers nothing.
    pub fn next(&mut self, now: Moment) -> Option<Step<B>> {
        if let Reach::Down { probe_at } = self.reach {
            return (now >= probe_at && self.has_work()).then_some(Step::Probe);
        }
        let due = |waiting: &Waiting<B>| matches!(waiting.due, Due::At(at) if at <= now);
        if let Some(place) = self.waiting.iter().position(due) {
            let waiting = self.waiting.remove(place)?;
            self.bytes -= waiting.attempt.bytes;
            return Some(Step::Write(waiting.attempt));
        }
        self.spool_due.is_some_and(|at| at <= now).then_some(Step::Spool)
    }

    /// When [`Retry::next`] has something to say by itself.
    pub fn deadline(&self) -> Option<Moment> {
        match self.reach {
            Reach::Down { probe_at } => self.has_work().then_some(probe_at),
            Reach::Up => {
                let batches = self.waiting.iter().filter_map(|waiting| match waiting.due {
                    Due::At(at) => Some(at),
                    Due::WithProbe => None,
                });
                Moment::earliest(batches.min(), self.spool_due)
            }
        }
    }

    /// Everything that waits, oldest first: the engine stops.
    pub fn drain(&mut self) -> impl Iterator<Item = B> {
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.attempt.batch)
    }

    /// What waits in memory.
    pub fn iter(&self) -> impl Iterator<Item = &B> {
        self.waiting.iter().map(|waiting| &waiting.attempt.batch)
    }

    /// How many batches wait in memory.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the store is thought to be there.
    pub fn is_up(&self) -> bool {
        self.reach == Reach::Up
    }

    fn has_work(&self) -> bool {
        !self.waiting.is_empty() || self.spool_due.is_some()
    }

    fn note(&mut self, now: Moment, why: Failure) {
        match (why, self.reach) {
            // The probe that is under way is not put off by more failures.
            (Failure::Unreachable, Reach::Down { .. }) | (Failure::Conflict, _) => {}
            (Failure::Unreachable, Reach::Up) => self.lost(now),
        }
    }

    fn wait(&mut self, now: Moment, draw: u64, mut attempt: Attempt<B>, why: Failure) {
        let due = match (why, attempt.backoff.failed(now, draw)) {
            (Failure::Unreachable, _) => Due::WithProbe,
            (Failure::Conflict, Next::TryAt(at)) => Due::At(at),
            (Failure::Conflict, Next::GiveUp) => Due::At(now + self.settings.cap),
        };
        self.bytes += attempt.bytes;
        self.waiting.push_back(Waiting { attempt, due });
    }
}

#[cfg(test)]
#[path = "retry/tests.rs"]
mod tests;
