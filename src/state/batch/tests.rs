use super::*;

/// The largest wins: commutes, associates, is idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Max(u32);

impl Merge for Max {
    fn merge(&mut self, other: Max) {
        self.0 = self.0.max(other.0);
    }
}

const SEC: Duration = Duration::from_secs(1);

fn batch(capacity: usize, bound: usize) -> Batch<u32, Max> {
    Batch::new(Bounds { capacity, bound, interval: 5 * SEC })
}

fn at(secs: u64) -> Moment {
    Moment::from_millis(secs * 1_000)
}

#[test]
fn an_empty_batch_is_never_due() {
    let mut batch = batch(1, 1);
    assert_eq!(batch.due(at(100)), None);
    assert_eq!(batch.deadline(), None);
    assert!(batch.take().is_empty());
}

#[test]
fn it_is_due_exactly_at_capacity_and_not_one_before() {
    let mut batch = batch(3, 10);
    batch.add(at(0), 1, Max(1));
    batch.add(at(0), 2, Max(1));
    assert_eq!(batch.due(at(0)), None);
    assert_eq!(batch.add(at(0), 2, Max(2)), Added::Coalesced);
    assert_eq!(batch.due(at(0)), None, "a merged value takes no room");
    batch.add(at(0), 3, Max(1));
    assert_eq!(batch.due(at(0)), Some(Reason::Capacity));
}

#[test]
fn the_oldest_entry_waits_one_interval_and_no_longer() {
    let mut batch = batch(10, 10);
    batch.add(at(2), 1, Max(1));
    batch.add(at(6), 2, Max(1));
    assert_eq!(batch.deadline(), Some(at(7)));
    assert_eq!(batch.due(at(6)), None);
    assert_eq!(batch.due(at(7)), Some(Reason::Scheduled));
}

#[test]
fn a_capacity_flush_restarts_the_timer() {
    let mut batch = batch(2, 10);
    batch.add(at(0), 1, Max(1));
    batch.add(at(4), 2, Max(1));
    assert_eq!(batch.due(at(4)), Some(Reason::Capacity));
    batch.take();
    batch.add(at(4), 3, Max(1));
    assert_eq!(batch.due(at(5)), None, "the old timer is gone");
    assert_eq!(batch.due(at(9)), Some(Reason::Scheduled));
}

#[test]
fn at_its_bound_it_refuses_new_keys_and_merges_known_ones() {
    let mut batch = batch(2, 2);
    batch.add(at(0), 1, Max(1));
    batch.add(at(0), 2, Max(1));
    assert_eq!(batch.add(at(0), 3, Max(9)), Added::Full);
    assert_eq!(batch.add(at(0), 2, Max(9)), Added::Coalesced);
    assert_eq!(batch.take(), [(1, Max(1)), (2, Max(9))]);
}

#[test]
fn what_is_taken_is_sorted_and_what_stays_keeps_its_age() {
    let mut batch = batch(2, 10);
    for key in [5, 1, 4, 2] {
        batch.add(at(1), key, Max(key));
    }
    assert_eq!(batch.take_some(3), [(1, Max(1)), (2, Max(2)), (4, Max(4))]);
    assert_eq!(batch.due(at(6)), Some(Reason::Scheduled));
    assert_eq!(batch.take_some(3), [(5, Max(5))]);
    assert_eq!(batch.deadline(), None);
}
