//! When what many are told is written.
//!
//! A thread writes to everybody who has something to be told, one after the other: a lap. Where more has come for
//! them before it ends, laps that follow each other at once would use all there is of a processor to carry one
//! message a write. So the thread rests after such a lap for as long as it took, and each write of the next one takes
//! along what came meanwhile: it costs the same, and leaves time for whoever stores, answers and reads. Where
//! nothing more has come there is no rest, and what comes then goes at once.

use std::time::Duration;

use crate::state::time::Moment;

/// A lap that took less is followed by the next one at once: the poller counts milliseconds.
const REST_MIN: Duration = Duration::from_millis(1);
/// The longest rest: how much later news may be than it had to.
const REST_MAX: Duration = Duration::from_millis(2);

/// Laps and rests.
#[derive(Debug)]
pub(super) enum Laps {
    /// Nobody waited when the last lap ended.
    Idle,
    /// So many have not had their turn.
    Running { began: Moment, left: usize },
    /// Until then.
    Resting(Moment),
}

impl Laps {
    /// How many may be written to now, of those that wait.
    pub(super) fn turns(&mut self, now: Moment, waiting: usize) -> usize {
        match *self {
            Laps::Resting(until) if now < until => 0,
            Laps::Idle | Laps::Resting(_) if waiting > 0 => {
                *self = Laps::Running { began: now, left: waiting };
                waiting
            }
            Laps::Idle | Laps::Resting(_) => {
                *self = Laps::Idle;
                0
            }
            Laps::Running { left, .. } => left,
        }
    }

    /// So many had their turn; `waiting` wait now, those that had it maybe for the next one.
    pub(super) fn wrote(&mut self, now: Moment, count: usize, waiting: usize) {
        let Laps::Running { began, left } = self else { return };
        *left -= count.min(*left);
        if *left > 0 && waiting > 0 {
            return;
        }
        let took = now.since(*began);
        *self = match waiting > 0 && took >= REST_MIN {
            true => Laps::Resting(now + took.min(REST_MAX)),
            false => Laps::Idle,
        };
    }

    /// By when to look again, if those who wait have to wait for that.
    pub(super) fn rests_until(&self) -> Option<Moment> {
        match self {
            Laps::Resting(until) => Some(*until),
            Laps::Idle | Laps::Running { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Moment {
        Moment::ZERO + Duration::from_micros(micros)
    }

    /// A lap of so many, that has just begun.
    fn begun(waiting: usize) -> Laps {
        let mut laps = Laps::Idle;
        assert_eq!(laps.turns(at(0), waiting), waiting);
        laps
    }

    #[test]
    fn news_for_those_who_had_none_goes_at_once() {
        let mut laps = begun(500);
        laps.wrote(at(5_000), 500, 0);
        assert_eq!(laps.turns(at(5_001), 500), 500);
    }

    #[test]
    fn a_lap_during_which_more_came_is_followed_by_as_long_a_rest() {
        let mut laps = begun(500);
        laps.wrote(at(500), 64, 500);
        assert_eq!(laps.turns(at(500), 500), 436, "those who had their turn wait for the next lap");
        laps.wrote(at(1_500), 436, 500);
        assert_eq!(laps.rests_until(), Some(at(3_000)));
        assert_eq!(laps.turns(at(2_999), 500), 0);
        assert_eq!(laps.turns(at(3_000), 500), 500);
    }

    #[test]
    fn a_rest_is_two_milliseconds_at_most() {
        let mut laps = begun(10_000);
        laps.wrote(at(90_000), 10_000, 1);
        assert_eq!(laps.rests_until(), Some(at(92_000)));
    }

    #[test]
    fn a_short_lap_is_followed_by_the_next_one_at_once() {
        let mut laps = begun(10);
        laps.wrote(at(900), 10, 10);
        assert_eq!(laps.turns(at(900), 10), 10);
    }

    #[test]
    fn links_that_end_do_not_hold_up_a_lap() {
        let mut laps = begun(10);
        laps.wrote(at(10), 3, 0);
        assert_eq!(laps.turns(at(20), 0), 0);
        assert_eq!(laps.turns(at(30), 2), 2);
    }
}
