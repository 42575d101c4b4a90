//! Who was cut lately because it did not keep up: its next `hello` says so.
//!
//! The client itself may never have read why its link ended. It is known again by who it is (its address, its
//! name, its program) and by its stream, and only when it comes back with a token; the first that does so
//! takes the word. Each replica remembers its own.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::time::Duration;

use uuid::Uuid;

use super::super::visits::Caller;
use crate::rt::{Hasher, Moment};

/// How long it is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How many are remembered; of more, the oldest are forgotten.
const MOST: usize = 1_024;

/// A caller, as far as it matters whether two are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who(u64);

impl Who {
    /// None for a caller of whom nothing is known.
    pub(super) fn of(caller: &Caller, hasher: &Hasher) -> Option<Who> {
        let Caller { ip, user_agent, principal } = caller;
        let known = ip.is_some() || principal.is_some();
        known.then(|| Who(hasher.hash_one((ip, user_agent, principal))))
    }
}

/// See the [module](self). The oldest is in front.
#[derive(Debug, Default)]
pub(super) struct SlowOnes(VecDeque<(Moment, Uuid, Who)>);

impl SlowOnes {
    /// It was cut.
    pub(super) fn note(&mut self, now: Moment, stream: Uuid, who: Option<Who>) {
        let Some(who) = who else { return };
        self.forget(now);
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back((now, stream, who));
    }

    /// Whether it was cut and is back. It is told once.
    pub(super) fn takes(&mut self, now: Moment, stream: Uuid, who: Option<Who>) -> bool {
        self.forget(now);
        let Some(who) = who else { return false };
        let at = self.0.iter().position(|(_, of, one)| (*of, *one) == (stream, who));
        at.and_then(|at| self.0.remove(at)).is_some()
    }

    fn forget(&mut self, now: Moment) {
        while self.0.front().is_some_and(|(at, ..)| *at + REMEMBERED <= now) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: Uuid = Uuid::from_u128(1);

    fn at(secs: u64) -> Moment {
        Moment::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn whoever_was_cut_is_told_once_within_a_minute_and_nobody_else_is() {
        let (one, other) = (Some(Who(1)), Some(Who(2)));
        let mut slow = SlowOnes::default();
        slow.note(at(0), CHAT, one);
        slow.note(at(0), CHAT, None);
        assert!(!slow.takes(at(1), CHAT, other));
        assert!(!slow.takes(at(1), CHAT, None), "nobody is nobody in particular");
        assert!(!slow.takes(at(1), Uuid::from_u128(2), one), "it was another stream");
        assert!(slow.takes(at(1), CHAT, one));
        assert!(!slow.takes(at(1), CHAT, one), "it was told");
        slow.note(at(2), CHAT, one);
        assert!(!slow.takes(at(62), CHAT, one), "it is forgotten");
    }

    #[test]
    fn of_too_many_the_oldest_are_forgotten() {
        let mut slow = SlowOnes::default();
        (0..=MOST as u64).for_each(|n| slow.note(at(0), CHAT, Some(Who(n))));
        assert!(!slow.takes(at(0), CHAT, Some(Who(0))));
        assert!(slow.takes(at(0), CHAT, Some(Who(1))));
    }
}
