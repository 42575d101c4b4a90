//! Time as the machines see it: numbers passed in, never read.
//!
//! [`Moment`] is monotonic and private to one run of one process; [`Wall`] is what a calendar says
//! and may jump. Rules are decided by moments; walls are only written down.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on the monotonic clock, in nanoseconds since the runtime began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// Where the clock begins.
    pub const ZERO: Moment = Moment(0);
    /// Later than anything that happens: an alarm that never rings.
    pub const NEVER: Moment = Moment(u64::MAX);

    /// The moment `ms` milliseconds after the beginning.
    pub const fn from_millis(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    /// Whole milliseconds since the beginning.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// How long ago `earlier` was; zero if it has not happened yet.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The earlier of two alarms, where none means never.
    pub fn earliest(one: Option<Moment>, other: Option<Moment>) -> Option<Moment> {
        match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

/// A duration in nanoseconds, at most what a [`Moment`] can hold (584 years).
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;
    fn sub(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(nanos(duration)))
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Moment::NEVER {
            return f.write_str("never");
        }
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// What the calendar says, in microseconds since 1970-01-01T00:00:00Z (what PostgreSQL keeps).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wall(pub i64);

impl Wall {
    /// The wall time `ms` milliseconds after 1970.
    pub const fn from_millis(ms: i64) -> Wall {
        Wall(ms.saturating_mul(1_000))
    }

    /// Whole milliseconds since 1970, rounded down: the `ts` of every envelope.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Microseconds since 1970.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// How long ago `earlier` was; zero if the calendar says it is still to come.
    pub fn since(self, earlier: Wall) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Add<Duration> for Wall {
    type Output = Wall;
    fn add(self, duration: Duration) -> Wall {
        Wall(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Wall {
    type Output = Wall;
    fn sub(self, duration: Duration) -> Wall {
        Wall(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_never_wraps() {
        assert_eq!(Moment::NEVER + Duration::from_secs(1), Moment::NEVER);
        assert_eq!(Moment::ZERO - Duration::from_secs(1), Moment::ZERO);
        assert_eq!(Moment::ZERO.since(Moment::from_millis(5)), Duration::ZERO);
    }

    #[test]
    fn the_earliest_of_two_alarms_ignores_one_that_is_not_set() {
        let one = Some(Moment(1));
        assert_eq!(Moment::earliest(one, None), one);
        assert_eq!(Moment::earliest(None, one), one);
        assert_eq!(Moment::earliest(Some(Moment(2)), one), one);
        assert_eq!(Moment::earliest(None, None), None);
    }

    #[test]
    fn a_wall_before_1970_rounds_down() {
        assert_eq!(Wall(-1).as_millis(), -1);
        assert_eq!(Wall::from_millis(-1).as_micros(), -1_000);
    }
}
