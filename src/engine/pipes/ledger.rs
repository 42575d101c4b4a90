//! What each principal holds, over all threads of pipes.
//!
//! Invariant: `open` counts its pipes, `coming` those whose target is being connected, and `away` lists the pipes
//! that no carrier bears, the longest first. An account without pipes outlives the second in which it opened one:
//! its count is of that second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Limits;
use crate::rt::{Lock, Moment};
use crate::state::pipe::PipeId;

/// Every account.
#[derive(Default)]
pub(crate) struct Ledger {
    accounts: Lock<Accounts>,
}

#[derive(Default)]
struct Accounts {
    of: BTreeMap<Arc<str>, Account>,
    /// The second in which those without pipes were last forgotten.
    swept: u64,
}

#[derive(Default)]
struct Account {
    open: usize,
    coming: usize,
    away: Vec<(Moment, PipeId)>,
    /// The second that new pipes are counted in, and how many there were.
    second: u64,
    new: u32,
    purse: Purse,
}

/// How many bytes the pipes of one principal hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Purse(Arc<AtomicU64>);

impl Purse {
    /// One of its pipes holds `now` instead of `before`. Gives what all of them hold.
    pub(super) fn change(&self, before: u64, now: u64) -> u64 {
        let change = now.wrapping_sub(before);
        self.0.fetch_add(change, Ordering::Relaxed).wrapping_add(change)
    }
}

/// A place for one more pipe.
pub(super) struct Place {
    /// A pipe that has to go for it.
    pub(super) evict: Option<PipeId>,
    pub(super) purse: Purse,
}

impl Ledger {
    /// One more pipe may come; it takes its place with [`enter`](Ledger::enter), or gives it back with
    /// [`leave`](Ledger::leave). Otherwise says why there can be none.
    pub(super) fn expect(&self, principal: &Arc<str>, now: Moment, limits: &Limits) -> Result<(), String> {
        let mut accounts = self.accounts.lock();
        let second = now.as_millis() / 1_000;
        if accounts.swept != second {
            accounts.swept = second;
            accounts.of.retain(|_, account| account.open + account.coming > 0);
        }
        let account = accounts.of.entry(principal.clone()).or_default();
        if account.second != second {
            account.second = second;
            account.new = 0;
        }
        if account.new >= limits.new_per_second {
            return Err(format!("more than {} new pipes in one second", limits.new_per_second));
        }
        account.new += 1;
        account.has_room(limits)?;
        account.coming += 1;
        Ok(())
    }

    /// The pipe that was expected is here. Only now another has to go for it, if one has to.
    pub(super) fn enter(&self, principal: &Arc<str>, limits: &Limits) -> Result<Place, String> {
        let mut accounts = self.accounts.lock();
        let account = accounts.of.entry(principal.clone()).or_default();
        account.coming = account.coming.saturating_sub(1);
        account.has_room(limits)?;
        let evict = (account.open >= limits.pipes).then(|| account.away.remove(0).1);
        account.open += 1;
        Ok(Place { evict, purse: account.purse.clone() })
    }

    /// The pipe that has just entered is refused after all; nothing has to go for it.
    pub(super) fn give_back(&self, principal: &Arc<str>, now: Moment, evict: Option<PipeId>) {
        if let Some(account) = self.accounts.lock().of.get_mut(principal) {
            account.open = account.open.saturating_sub(1);
            if let Some(evict) = evict {
                account.away.insert(0, (now, evict));
            }
        }
    }

    /// The pipe that was expected never came to be.
    pub(super) fn leave(&self, principal: &Arc<str>) {
        if let Some(account) = self.accounts.lock().of.get_mut(principal) {
            account.coming = account.coming.saturating_sub(1);
        }
    }

    /// A pipe lost its carrier. Gives one that has been without one for longer, if these are too many.
    pub(super) fn away(&self, id: PipeId, principal: &Arc<str>, now: Moment, limit: usize) -> Option<PipeId> {
        let mut accounts = self.accounts.lock();
        let account = accounts.of.get_mut(principal)?;
        account.away.push((now, id));
        (account.away.len() > limit).then(|| account.away.remove(0).1)
    }

    /// A carrier bears it again.
    pub(super) fn back(&self, id: PipeId, principal: &Arc<str>) {
        if let Some(account) = self.accounts.lock().of.get_mut(principal) {
            account.away.retain(|(_, away)| *away != id);
        }
    }

    /// A pipe is over.
    pub(super) fn gone(&self, id: PipeId, principal: &Arc<str>) {
        if let Some(account) = self.accounts.lock().of.get_mut(principal) {
            account.away.retain(|(_, away)| *away != id);
            account.open = account.open.saturating_sub(1);
        }
    }
}

impl Account {
    /// Whether there is a place for one more, if need be that of a pipe without a carrier.
    fn has_room(&self, limits: &Limits) -> Result<(), String> {
        match self.open + self.coming < limits.pipes + self.away.len() {
            true => Ok(()),
            false => Err(format!("{} pipes are open already", limits.pipes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { pipes: 2, detached: 1, new_per_second: 9, buffered: 0 };

    fn id(number: u8) -> PipeId {
        PipeId([number; 16])
    }

    /// One more pipe, from the wish to its place: what has to go for it.
    fn open(
        ledger: &Ledger,
        principal: &Arc<str>,
        now: Moment,
        limits: &Limits,
    ) -> Result<Option<PipeId>, String> {
        ledger.expect(principal, now, limits)?;
        ledger.enter(principal, limits).map(|place| place.evict)
    }

    #[test]
    fn one_pipe_too_many_evicts_the_longest_detached_of_the_same_principal_only() {
        let ledger = Ledger::default();
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        let open = |principal| open(&ledger, principal, Moment::ZERO, &LIMITS);
        assert_eq!(open(&bob), Ok(None));
        assert_eq!(ledger.away(id(9), &bob, Moment::ZERO, 1), None);
        assert_eq!(open(&ann), Ok(None));
        assert_eq!(open(&ann), Ok(None));
        assert!(open(&ann).is_err(), "both are in use");
        assert_eq!(ledger.away(id(1), &ann, Moment::ZERO, 1), None);
        assert_eq!(ledger.away(id(2), &ann, Moment::ZERO, 1), Some(id(1)), "only one may be away");
        assert_eq!(open(&ann), Ok(Some(id(2))));
    }

    #[test]
    fn a_pipe_that_never_comes_to_be_costs_no_other_and_no_place() {
        let ledger = Ledger::default();
        let ann: Arc<str> = "ann".into();
        for _ in 0..2 {
            assert_eq!(open(&ledger, &ann, Moment::ZERO, &LIMITS), Ok(None));
        }
        assert_eq!(ledger.away(id(1), &ann, Moment::ZERO, 1), None);
        for _ in 0..5 {
            assert_eq!(ledger.expect(&ann, Moment::ZERO, &LIMITS), Ok(()), "the place of the detached one");
            assert!(ledger.expect(&ann, Moment::ZERO, &LIMITS).is_err(), "which there is once");
            ledger.leave(&ann);
            // The second in which they are counted is over.
            ledger.accounts.lock().of.get_mut(&ann).expect("it has pipes").new = 0;
        }
        ledger.back(id(1), &ann);
        assert!(ledger.expect(&ann, Moment::ZERO, &LIMITS).is_err(), "it was not evicted");
    }

    #[test]
    fn a_pipe_that_came_back_while_another_one_was_on_its_way_keeps_its_place() {
        let ledger = Ledger::default();
        let ann: Arc<str> = "ann".into();
        for _ in 0..2 {
            assert_eq!(open(&ledger, &ann, Moment::ZERO, &LIMITS), Ok(None));
        }
        assert_eq!(ledger.away(id(1), &ann, Moment::ZERO, 1), None);
        assert_eq!(ledger.expect(&ann, Moment::ZERO, &LIMITS), Ok(()));
        ledger.back(id(1), &ann);
        assert!(ledger.enter(&ann, &LIMITS).is_err());
        ledger.gone(id(1), &ann);
        assert_eq!(open(&ledger, &ann, Moment::ZERO, &LIMITS), Ok(None));
    }

    #[test]
    fn a_pipe_that_nobody_accepts_costs_no_other_its_place() {
        let ledger = Ledger::default();
        let ann: Arc<str> = "ann".into();
        for _ in 0..2 {
            assert_eq!(open(&ledger, &ann, Moment::ZERO, &LIMITS), Ok(None));
        }
        assert_eq!(ledger.away(id(1), &ann, Moment::ZERO, 1), None);
        let evict = open(&ledger, &ann, Moment::ZERO, &LIMITS).expect("in the place of the detached one");
        assert_eq!(evict, Some(id(1)));
        ledger.give_back(&ann, Moment::ZERO, evict);
        assert_eq!(open(&ledger, &ann, Moment::ZERO, &LIMITS), Ok(Some(id(1))), "it is as it was");
    }

    #[test]
    fn a_cut_of_all_of_a_principals_pipes_evicts_none() {
        let limits = super::super::Settings::default().limits;
        let ledger = Ledger::default();
        let ann: Arc<str> = "ann".into();
        for number in 0..limits.pipes as u64 {
            let now = Moment::from_millis(number * 1_000);
            assert_eq!(open(&ledger, &ann, now, &limits), Ok(None));
        }
        for number in 0..limits.pipes as u128 {
            let id = PipeId(number.to_be_bytes());
            assert_eq!(ledger.away(id, &ann, Moment::ZERO, limits.detached), None, "pipe {number}");
        }
    }

    #[test]
    fn new_pipes_are_counted_by_the_second_also_those_that_are_gone_or_never_came() {
        let limits = Limits { new_per_second: 3, ..LIMITS };
        let ledger = Ledger::default();
        let ann: Arc<str> = "ann".into();
        let expect = |millis| ledger.expect(&ann, Moment::from_millis(millis), &limits);
        expect(1_000).expect("the first");
        ledger.enter(&ann, &limits).expect("there is room");
        ledger.gone(id(1), &ann);
        for _ in 0..2 {
            expect(1_100).expect("three a second");
            ledger.leave(&ann);
        }
        assert!(expect(1_999).is_err());
        assert!(expect(2_000).is_ok());
    }

    #[test]
    fn an_account_without_pipes_is_forgotten() {
        let ledger = Ledger::default();
        let (ann, bob): (Arc<str>, Arc<str>) = ("ann".into(), "bob".into());
        open(&ledger, &ann, Moment::ZERO, &LIMITS).expect("the first");
        ledger.away(id(1), &ann, Moment::ZERO, 1);
        ledger.gone(id(1), &ann);
        ledger.expect(&bob, Moment::from_millis(1_000), &LIMITS).expect("the first");
        assert_eq!(ledger.accounts.lock().of.keys().collect::<Vec<_>>(), [&bob]);
    }

    #[test]
    fn what_the_pipes_of_one_hold_is_summed() {
        let ledger = Ledger::default();
        let ann: Arc<str> = "ann".into();
        let purse = || {
            ledger.expect(&ann, Moment::ZERO, &LIMITS).expect("room");
            ledger.enter(&ann, &LIMITS).expect("room").purse
        };
        let (one, other) = (purse(), purse());
        assert_eq!(one.change(0, 100), 100);
        assert_eq!(other.change(0, 50), 150);
        assert_eq!(one.change(100, 20), 70);
        assert_eq!(other.change(50, 0), 20);
    }
}
