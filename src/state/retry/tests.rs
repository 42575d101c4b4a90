use super::*;

/// The longest wait a draw can give.
const LONGEST: u64 = u64::MAX;

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

fn retry() -> Retry<u32> {
    Retry::new(Settings { batches: 2, bytes: 100, ..Settings::default() })
}

/// Everything there is to do at `ms`: batches by number, `0` for a probe, `-1` for the spool.
fn done(retry: &mut Retry<u32>, ms: u64) -> Vec<i64> {
    let mut done = Vec::new();
    while let Some(step) = retry.next(at(ms)) {
        match step {
            Step::Write(attempt) => done.push(i64::from(attempt.batch)),
            Step::Probe => {
                done.push(0);
                retry.reached(at(ms));
            }
            Step::Spool => {
                done.push(-1);
                retry.spool_is_empty();
            }
        }
    }
    done
}

#[test]
fn a_conflict_waits_with_doubling_ceilings_up_to_the_cap() {
    let mut retry = retry();
    retry.keep(at(0), LONGEST, 1, 10, Failure::Conflict).unwrap();
    let mut now = 0;
    for wait in [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        assert_eq!(retry.deadline(), Some(at(now + wait)));
        assert!(retry.next(at(now + wait - 1)).is_none());
        now += wait;
        let Some(Step::Write(attempt)) = retry.next(at(now)) else { panic!("due at {now}") };
        retry.failed(at(now), LONGEST, attempt, Failure::Conflict);
    }
}

#[test]
fn an_unreachable_store_is_probed_once_a_second_for_all_batches() {
    let mut retry = retry();
    retry.keep(at(0), LONGEST, 1, 10, Failure::Unreachable).unwrap();
    retry.keep(at(500), LONGEST, 2, 10, Failure::Unreachable).unwrap();
    assert_eq!(retry.deadline(), Some(at(1_000)), "the second failure does not put the probe off");
    assert!(matches!(retry.next(at(1_000)), Some(Step::Probe)));
    retry.lost(at(1_010));
    assert!(retry.next(at(1_010)).is_none());
    assert_eq!(retry.deadline(), Some(at(2_010)));
    assert_eq!(done(&mut retry, 2_010), [0, 1, 2], "its answer wakes all of them, oldest first");
}

#[test]
fn what_does_not_fit_comes_back_for_the_spool() {
    let mut retry = retry();
    assert_eq!(retry.keep(at(0), 0, 1, 60, Failure::Conflict), Ok(()));
    assert_eq!(retry.keep(at(0), 0, 2, 60, Failure::Conflict), Err(2), "too many bytes");
    assert_eq!(retry.keep(at(0), 0, 3, 40, Failure::Conflict), Ok(()));
    assert_eq!(retry.keep(at(0), 0, 4, 0, Failure::Conflict), Err(4), "too many batches");
}

#[test]
fn one_batch_larger_than_the_bound_may_wait_alone() {
    let mut retry = retry();
    assert_eq!(retry.keep(at(0), 0, 1, 1_000, Failure::Conflict), Ok(()));
    assert_eq!(retry.keep(at(0), 0, 2, 1, Failure::Conflict), Err(2));
}

#[test]
fn a_batch_that_was_tried_gives_its_room_back() {
    let mut retry = retry();
    retry.keep(at(0), 0, 1, 100, Failure::Conflict).unwrap();
    assert_eq!(done(&mut retry, 0), [1]);
    assert_eq!(retry.keep(at(0), 0, 2, 100, Failure::Conflict), Ok(()));
}

#[test]
fn the_spool_goes_out_after_what_is_in_memory() {
    let mut retry = retry();
    retry.spool_has_some(at(0));
    retry.keep(at(0), 0, 1, 10, Failure::Conflict).unwrap();
    assert_eq!(done(&mut retry, 0), [1, -1]);
    assert_eq!(retry.deadline(), None);
}

#[test]
fn a_store_that_is_away_is_probed_for_the_spool_alone() {
    let mut retry = retry();
    retry.spool_has_some(at(0));
    assert!(matches!(retry.next(at(0)), Some(Step::Spool)));
    retry.spool_failed(at(0), LONGEST, Failure::Unreachable);
    assert_eq!(retry.deadline(), Some(at(1_000)));
    assert_eq!(done(&mut retry, 1_000), [0, -1]);
}

#[test]
fn a_page_that_conflicts_backs_off_though_new_records_arrive() {
    let mut retry = retry();
    retry.spool_has_some(at(0));
    assert!(matches!(retry.next(at(0)), Some(Step::Spool)));
    retry.spool_failed(at(0), LONGEST, Failure::Conflict);
    retry.spool_has_some(at(10));
    assert_eq!(retry.deadline(), Some(at(250)));
}

#[test]
fn without_work_nothing_is_probed() {
    let mut retry = retry();
    retry.lost(at(0));
    assert_eq!(retry.deadline(), None);
    assert!(retry.next(at(10_000)).is_none());
}

#[test]
fn draining_gives_everything_oldest_first() {
    let mut retry = retry();
    retry.keep(at(0), 0, 1, 50, Failure::Unreachable).unwrap();
    retry.keep(at(0), 0, 2, 50, Failure::Conflict).unwrap();
    assert_eq!(retry.drain().collect::<Vec<_>>(), [1, 2]);
    assert!(retry.is_empty());
    assert_eq!(retry.keep(at(0), 0, 3, 100, Failure::Conflict), Ok(()), "the bytes are free again");
}
