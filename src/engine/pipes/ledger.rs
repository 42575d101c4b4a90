//! What each principal holds, over all threads of pipes.
//!
//! Invariant: an account exists as long as its principal has a pipe, and `away` lists those of its pipes
//! that no carrier bears, the longest first.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Limits;
use crate::rt::{Lock, Moment};
use crate::state::pipe::PipeId;

/// Every account.
#[derive(Default)]
pub(crate) struct Ledger {
    accounts: Lock<BTreeMap<Arc<str>, Account>>,
}

#[derive(Default)]
struct Account {
    pipes: usize,
    away: Vec<(Moment, PipeId)>,
    /// The second that new pipes are counted in, and how many there were.
    second: u64,
    new: u32,
}

impl Ledger {
    /// One more pipe. Gives one that has to go for it, or says why there can be none.
    pub(super) fn enter(
        &self,
        principal: &Arc<str>,
        now: Moment,
        limits: &Limits,
    ) -> Result<Option<PipeId>, String> {
        let mut accounts = self.accounts.lock();
        let account = accounts.entry(principal.clone()).or_default();
        let second = now.as_millis() / 1_000;
        if account.second != second {
            account.second = second;
            account.new = 0;
        }
        if account.new >= limits.new_per_second {
            return Err(format!("more than {} new pipes in one second", limits.new_per_second));
        }
        let evict = match account.pipes < limits.pipes {
            true => None,
            false if account.away.is_empty() => {
                return Err(format!("{} pipes are open already", limits.pipes));
            }
            false => Some(account.away.remove(0).1),
        };
        account.new += 1;
        account.pipes += 1;
        Ok(evict)
    }

    /// The pipe that entered never came to be.
    pub(super) fn leave(&self, principal: &Arc<str>) {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.get_mut(principal) {
            account.pipes -= 1;
            if account.pipes == 0 {
                accounts.remove(principal);
            }
        }
    }

    /// A pipe lost its carrier. Gives one that has been without one for longer, if these are too many.
    pub(super) fn away(&self, id: PipeId, principal: &Arc<str>, now: Moment, limit: usize) -> Option<PipeId> {
        let mut accounts = self.accounts.lock();
        let account = accounts.get_mut(principal)?;
        account.away.push((now, id));
        (account.away.len() > limit).then(|| account.away.remove(0).1)
    }

    /// A carrier bears it again.
    pub(super) fn back(&self, id: PipeId, principal: &Arc<str>) {
        if let Some(account) = self.accounts.lock().get_mut(principal) {
            account.away.retain(|(_, away)| *away != id);
        }
    }

    /// A pipe is over.
    pub(super) fn gone(&self, id: PipeId, principal: &Arc<str>) {
        self.back(id, principal);
        self.leave(principal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { pipes: 2, detached: 1, new_per_second: 3 };

    fn id(number: u8) -> PipeId {
        PipeId([number; 16])
    }

    #[test]
    fn one_pipe_too_many_evicts_the_longest_detached_of_the_same_principal_only() {
        let ledger = Ledger::default();
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        assert_eq!(ledger.enter(&bob, Moment::ZERO, &LIMITS), Ok(None));
        assert_eq!(ledger.away(id(9), &bob, Moment::ZERO, 1), None);
        assert_eq!(ledger.enter(&ann, Moment::ZERO, &LIMITS), Ok(None));
        assert_eq!(ledger.enter(&ann, Moment::ZERO, &LIMITS), Ok(None));
        assert!(ledger.enter(&ann, Moment::ZERO, &LIMITS).is_err(), "both are in use");
        assert_eq!(ledger.away(id(1), &ann, Moment::ZERO, 1), None);
        assert_eq!(ledger.away(id(2), &ann, Moment::ZERO, 1), Some(id(1)), "only one may be away");
        assert_eq!(ledger.enter(&ann, Moment::ZERO, &LIMITS), Ok(Some(id(2))));
    }

    #[test]
    fn a_cut_of_all_of_a_principals_pipes_evicts_none() {
        let limits = super::super::Settings::default().limits;
        let ledger = Ledger::default();
        let ann: Arc<str> = "ann".into();
        for number in 0..limits.pipes as u64 {
            let now = Moment::from_millis(number * 1_000);
            assert_eq!(ledger.enter(&ann, now, &limits), Ok(None));
        }
        for number in 0..limits.pipes as u128 {
            let id = PipeId(number.to_be_bytes());
            assert_eq!(ledger.away(id, &ann, Moment::ZERO, limits.detached), None, "pipe {number}");
        }
    }

    #[test]
    fn new_pipes_are_counted_by_the_second() {
        let limits = Limits { pipes: 9, ..LIMITS };
        let ledger = Ledger::default();
        let ann: Arc<str> = "ann".into();
        for _ in 0..3 {
            ledger.enter(&ann, Moment::from_millis(1_000), &limits).expect("three a second");
        }
        assert!(ledger.enter(&ann, Moment::from_millis(1_999), &limits).is_err());
        assert!(ledger.enter(&ann, Moment::from_millis(2_000), &limits).is_ok());
    }

    #[test]
    fn an_account_without_pipes_is_forgotten() {
        let ledger = Ledger::default();
        let ann: Arc<str> = "ann".into();
        ledger.enter(&ann, Moment::ZERO, &LIMITS).expect("the first");
        ledger.away(id(1), &ann, Moment::ZERO, 1);
        ledger.gone(id(1), &ann);
        assert!(ledger.accounts.lock().is_empty());
    }
}
