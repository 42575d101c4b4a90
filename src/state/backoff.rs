//! How long to wait before trying again.
//!
//! Exponential with full jitter: the n-th wait is drawn evenly from zero to `first` doubled n times,
//! at most `cap`. Full jitter, because a thousand links that lost the same balancer must not come
//! back in step. The draw is handed in, so that a seed replays it.
//!
//! Invariant: `waits` counts the waits handed out since the last time things were healthy for
//! `reset_after`; `since` is the moment of the first failure among them.

use super::time::Moment;
use std::time::Duration;

/// How a [`Backoff`] grows and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The longest the first drawn wait can be.
    pub first: Duration,
    /// No wait is longer than this.
    pub cap: Duration,
    /// Whether the first try after a healthy time comes without any wait: a link that was just cut
    /// is most often cut for that link alone.
    pub at_once: bool,
    /// How long things must stay healthy before earlier failures are forgotten. A link that lives
    /// for a moment and dies again must not be redialled without end at full speed.
    pub reset_after: Duration,
    /// When to stop trying.
    pub budget: Budget,
}

/// When a [`Backoff`] gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Never.
    Forever,
    /// When this long has passed since the first failure.
    For(Duration),
    /// When this many waits have been handed out.
    Waits(u32),
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Try again at this moment.
    TryAt(Moment),
    /// The budget is used up.
    GiveUp,
}

/// One thing that is tried again and again.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: Policy,
    waits: u32,
    since: Option<Moment>,
    healthy_since: Option<Moment>,
}

impl Backoff {
    /// Nothing has failed yet.
    pub fn new(policy: Policy) -> Backoff {
        Backoff { policy, waits: 0, since: None, healthy_since: None }
    }

    /// It works from now on; earlier failures are forgotten once it has worked for `reset_after`.
    pub fn healthy(&mut self, now: Moment) {
        self.healthy_since.get_or_insert(now);
    }

    /// It failed, or stopped working. `draw` is any random number.
    pub fn failed(&mut self, now: Moment, draw: u64) -> Next {
        if let Some(healthy_since) = self.healthy_since.take()
            && now.since(healthy_since) >= self.policy.reset_after
        {
            self.forget();
        }
        let since = *self.since.get_or_insert(now);
        let spent = match self.policy.budget {
            Budget::Forever => false,
            Budget::For(limit) => now.since(since) >= limit,
            Budget::Waits(limit) => self.waits >= limit,
        };
        if spent {
            return Next::GiveUp;
        }
        let wait = within(self.ceiling(), draw);
        self.waits = self.waits.saturating_add(1);
        Next::TryAt(now + wait)
    }

    /// Forgets every failure: somebody knows better (a signal, an address that changed).
    pub fn forget(&mut self) {
        self.waits = 0;
        self.since = None;
        self.healthy_since = None;
    }

    /// How many waits were handed out since things were last healthy.
    pub fn waits(&self) -> u32 {
        self.waits
    }

    /// The longest the next wait can be.
    fn ceiling(&self) -> Duration {
        let doublings = match (self.policy.at_once, self.waits) {
            (true, 0) => return Duration::ZERO,
            (true, waits) => waits - 1,
            (false, waits) => waits,
        };
        // 2^31 times anything is past every cap; `saturating_mul` takes care of the rest.
        self.policy.first.saturating_mul(1 << doublings.min(31)).min(self.policy.cap)
    }
}

/// An even choice from zero to `ceiling`, both included as near as nanoseconds go.
fn within(ceiling: Duration, draw: u64) -> Duration {
    let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
    // The high half of the product: unbiased enough for a wait, and without a division.
    Duration::from_nanos(((u128::from(draw) * (u128::from(nanos) + 1)) >> 64) as u64)
}

#[cfg(test)]
mod tests;
