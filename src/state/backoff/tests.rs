use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const POLICY: Policy = Policy {
    first: Duration::from_millis(100),
    cap: Duration::from_secs(5),
    at_once: true,
    reset_after: Duration::from_secs(10),
    budget: Budget::Forever,
};

/// The longest waits a policy hands out one after another.
fn longest(policy: Policy, count: usize) -> Vec<Next> {
    let mut backoff = Backoff::new(policy);
    (0..count).map(|_| backoff.failed(Moment::ZERO, u64::MAX)).collect()
}

fn at(ms: u64) -> Next {
    Next::TryAt(Moment::from_millis(ms))
}

#[test]
fn waits_double_up_to_the_cap() {
    let expected = [0, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000].map(at);
    assert_eq!(longest(POLICY, 9), expected);
    let patient = Policy { at_once: false, ..POLICY };
    assert_eq!(longest(patient, 2), [at(100), at(200)]);
}

#[test]
fn the_draw_spreads_waits_over_the_whole_range() {
    let patient = Policy { at_once: false, ..POLICY };
    let draws = [0, u64::MAX / 4, u64::MAX / 2, u64::MAX];
    let waits = draws.map(|draw| match Backoff::new(patient).failed(Moment::ZERO, draw) {
        Next::TryAt(at) => at.as_millis(),
        Next::GiveUp => panic!("forever does not give up"),
    });
    assert_eq!(waits, [0, 25, 50, 100]);
}

#[test]
fn a_healthy_time_resets_and_a_short_one_does_not() {
    let mut backoff = Backoff::new(POLICY);
    for _ in 0..4 {
        let _ = backoff.failed(Moment::ZERO, 0);
    }
    backoff.healthy(Moment::from_millis(1_000));
    let _ = backoff.failed(Moment::from_millis(10_999), 0);
    assert_eq!(backoff.waits(), 5, "9.999 s were not enough");
    backoff.healthy(Moment::from_millis(20_000));
    assert_eq!(backoff.failed(Moment::from_millis(30_000), u64::MAX), at(30_000));
}

#[test]
fn healthy_said_twice_counts_from_the_first() {
    let mut backoff = Backoff::new(POLICY);
    let _ = backoff.failed(Moment::ZERO, 0);
    backoff.healthy(Moment::ZERO);
    backoff.healthy(Moment::from_millis(9_000));
    assert_eq!(backoff.failed(Moment::from_millis(10_000), u64::MAX), at(10_000));
}

#[test]
fn a_budget_of_time_counts_from_the_first_failure() {
    let mut backoff = Backoff::new(Policy { budget: Budget::For(1_000 * MS), ..POLICY });
    assert_eq!(backoff.failed(Moment::from_millis(500), 0), at(500));
    assert_eq!(backoff.failed(Moment::from_millis(1_499), 0), at(1_499));
    assert_eq!(backoff.failed(Moment::from_millis(1_500), 0), Next::GiveUp);
    assert_eq!(backoff.failed(Moment::from_millis(1_501), 0), Next::GiveUp);
}

#[test]
fn a_budget_of_waits_is_used_up() {
    let policy = Policy { budget: Budget::Waits(2), ..POLICY };
    assert_eq!(longest(policy, 4), [at(0), at(100), Next::GiveUp, Next::GiveUp]);
}

proptest! {
    #[test]
    fn no_wait_is_over_its_ceiling(draws in prop::collection::vec(any::<u64>(), 1..80), at_once: bool) {
        let policy = Policy { at_once, ..POLICY };
        let mut backoff = Backoff::new(policy);
        for (n, draw) in draws.into_iter().enumerate() {
            let Next::TryAt(at) = backoff.failed(Moment::ZERO, draw) else { panic!("forever") };
            let doublings = if at_once { n as i32 - 1 } else { n as i32 };
            let model = if doublings < 0 { 0.0 } else { (100.0 * 2f64.powi(doublings)).min(5_000.0) };
            prop_assert!(at.as_millis() as f64 <= model);
        }
    }
}
