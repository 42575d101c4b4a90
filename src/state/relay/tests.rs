use proptest::prelude::*;

use super::*;

const A: Uuid = Uuid::from_u128(0xa);
const B: Uuid = Uuid::from_u128(0xb);
/// The draw that gives the longest wait.
const LONGEST: u64 = u64::MAX;

fn want(worker: Uuid, turn: u32, after: u32) -> Input<u32> {
    Input::Wanted(Want { worker, turn, after })
}

fn part(dial: u64, turn: u32, n: u32) -> Input<u32> {
    Input::Part { dial, turn, n, part: n }
}

fn take(turn: u32, n: u32) -> Action<u32> {
    Action::Take { turn, n, part: n }
}

fn dial(dial: u64, worker: Uuid) -> Action<u32> {
    Action::Dial { dial, worker, source: Source::Wanted }
}

fn redial(dial: u64, worker: Uuid) -> Action<u32> {
    Action::Dial { dial, worker, source: Source::Redial }
}

fn ask(dial: u64, turn: u32, after: u32) -> Action<u32> {
    Action::Ask { dial, turn, after }
}

fn close(dial: u64, why: Why) -> Action<u32> {
    Action::Close { dial, why }
}

fn up(dial: u64) -> Input<u32> {
    Input::Dialed { dial, ok: true }
}

fn down(dial: u64) -> Input<u32> {
    Input::Dialed { dial, ok: false }
}

/// Plays inputs at milliseconds and compares all that comes of them.
fn check(inputs: &[(u64, Input<u32>)], expected: &[Action<u32>]) -> Relay<u32> {
    let mut relay = Relay::new();
    let mut actions = Vec::new();
    for (ms, input) in inputs {
        relay.step(Moment::from_millis(*ms), LONGEST, input.clone(), &mut actions);
    }
    assert_eq!(actions, expected);
    relay
}

#[test]
fn parts_of_a_remote_turn_are_taken_in_order() {
    check(
        &[(0, want(A, 1, 0)), (1, up(1)), (2, part(1, 1, 1)), (3, part(1, 1, 2))],
        &[dial(1, A), ask(1, 1, 0), take(1, 1), take(1, 2)],
    );
}

#[test]
fn the_same_worker_wanted_again_is_a_no_op() {
    check(
        &[(0, want(A, 1, 0)), (1, want(A, 1, 0)), (2, up(1)), (3, want(A, 1, 0)), (4, part(1, 1, 1))],
        &[dial(1, A), ask(1, 1, 0), take(1, 1)],
    );
}

#[test]
fn a_new_turn_on_the_same_worker_goes_over_the_same_link() {
    check(
        &[(0, want(A, 1, 0)), (1, up(1)), (2, part(1, 1, 1)), (3, want(A, 2, 0)), (4, part(1, 2, 1))],
        &[dial(1, A), ask(1, 1, 0), take(1, 1), ask(1, 2, 0), take(2, 1)],
    );
}

#[test]
fn a_new_turn_while_dialing_is_what_the_link_asks_for() {
    check(&[(0, want(A, 1, 0)), (1, want(A, 2, 0)), (2, up(1))], &[dial(1, A), ask(1, 2, 0)]);
}

#[test]
fn another_worker_without_idle_between_closes_the_first() {
    check(
        &[
            (0, want(A, 1, 0)),
            (1, up(1)),
            (2, want(B, 2, 0)),
            (3, part(1, 1, 1)),
            (4, up(2)),
            (5, part(2, 2, 1)),
        ],
        &[dial(1, A), ask(1, 1, 0), close(1, Why::Superseded), dial(2, B), ask(2, 2, 0), take(2, 1)],
    );
}

#[test]
fn a_dial_of_a_superseded_worker_is_given_up_and_its_answer_closed() {
    check(
        &[
            (0, want(A, 1, 0)),
            (1, want(B, 2, 0)),
            (2, up(1)),
            (3, part(1, 1, 1)),
            (4, up(2)),
            (5, part(2, 2, 1)),
        ],
        &[dial(1, A), close(1, Why::Superseded), dial(2, B), close(1, Why::Stale), ask(2, 2, 0), take(2, 1)],
    );
}

#[test]
fn a_to_idle_to_a_does_not_let_the_first_answer_serve_the_second_dial() {
    check(
        &[
            (0, want(A, 1, 0)),
            (1, Input::Unwanted),
            (2, want(A, 2, 0)),
            (3, up(1)),
            (4, part(1, 1, 1)),
            (5, up(2)),
            (6, part(2, 2, 1)),
        ],
        &[dial(1, A), close(1, Why::Unwanted), dial(2, A), close(1, Why::Stale), ask(2, 2, 0), take(2, 1)],
    );
}

#[test]
fn a_stale_dial_after_an_interrupt_is_closed() {
    check(
        &[(0, want(A, 1, 0)), (1, Input::Unwanted), (2, up(1)), (3, down(1))],
        &[dial(1, A), close(1, Why::Unwanted), close(1, Why::Stale)],
    );
}

#[test]
fn the_first_dial_failing_is_retried_after_looking_who_owns_the_stream() {
    check(
        &[
            (0, want(A, 1, 0)),
            (1, down(1)),
            (50, Input::Alarm), // early: 100 ms were drawn
            (101, Input::Alarm),
            (102, Input::Checked(Some(Want { worker: B, turn: 2, after: 0 }))),
            (103, up(2)),
            (104, part(2, 2, 1)),
        ],
        &[
            dial(1, A),
            Action::Degraded(true),
            Action::Check,
            redial(2, B),
            ask(2, 2, 0),
            Action::Degraded(false),
            take(2, 1),
        ],
    );
}

#[test]
fn a_database_error_while_looking_is_retried() {
    check(
        &[
            (0, want(A, 1, 0)),
            (1, down(1)),
            (101, Input::Alarm),
            (102, Input::Unchecked),
            (302, Input::Alarm), // doubled: 200 ms
            (303, Input::Checked(Some(Want { worker: A, turn: 1, after: 0 }))),
        ],
        &[dial(1, A), Action::Degraded(true), Action::Check, Action::Check, redial(2, A)],
    );
}

#[test]
fn looking_and_finding_that_nobody_runs_it_ends_the_relay() {
    let relay = check(
        &[(0, want(A, 1, 0)), (1, down(1)), (101, Input::Alarm), (102, Input::Checked(None))],
        &[dial(1, A), Action::Degraded(true), Action::Check, Action::Degraded(false)],
    );
    assert_eq!((relay.link(), relay.deadline()), (Link::Idle, None));
}

#[test]
fn a_cut_link_resumes_after_the_last_part() {
    check(
        &[
            (0, want(A, 1, 0)),
            (1, up(1)),
            (2, part(1, 1, 1)),
            (3, part(1, 1, 2)),
            (4, Input::Closed { dial: 1 }),
            (104, Input::Alarm),
            (105, Input::Checked(Some(Want { worker: A, turn: 1, after: 2 }))),
            (106, up(2)),
            (107, part(2, 1, 2)), // overlap
            (108, part(2, 1, 3)),
        ],
        &[
            dial(1, A),
            ask(1, 1, 0),
            take(1, 1),
            take(1, 2),
            Action::Degraded(true),
            Action::Check,
            redial(2, A),
            ask(2, 1, 2),
            Action::Degraded(false),
            take(1, 3),
        ],
    );
}

#[test]
fn a_gap_is_fetched_by_number() {
    check(
        &[(0, want(A, 1, 0)), (1, up(1)), (2, part(1, 1, 2)), (3, part(1, 1, 1)), (4, part(1, 1, 2))],
        &[dial(1, A), ask(1, 1, 0), ask(1, 1, 0), take(1, 1), take(1, 2)],
    );
}

#[test]
fn parts_of_a_turn_not_seen_to_begin_are_held_and_cause_a_read() {
    check(
        &[
            (0, want(A, 1, 0)),
            (1, up(1)),
            (2, part(1, 2, 1)),
            (3, part(1, 2, 2)),
            (4, want(A, 2, 0)),
            (5, part(1, 2, 3)),
        ],
        &[
            dial(1, A),
            ask(1, 1, 0),
            Action::Read,
            Action::Read,
            ask(1, 2, 0),
            take(2, 1),
            take(2, 2),
            take(2, 3),
        ],
    );
}

#[test]
fn more_early_parts_than_fit_are_fetched_by_number_later() {
    let mut relay = Relay::new();
    let mut actions = Vec::new();
    let at = Moment::ZERO;
    relay.step(at, 0, want(A, 1, 0), &mut actions);
    relay.step(at, 0, up(1), &mut actions);
    for n in 1..=EARLY_MAX as u32 + 6 {
        relay.step(at, 0, part(1, 2, n), &mut actions);
    }
    actions.clear();
    relay.step(at, 0, want(A, 2, 0), &mut actions);
    assert_eq!(actions.len(), 1 + EARLY_MAX, "the question, and what was held");
    actions.clear();
    relay.step(at, 0, part(1, 2, EARLY_MAX as u32 + 7), &mut actions);
    assert_eq!(actions, [ask(1, 2, EARLY_MAX as u32)]);
}

#[test]
fn a_fast_run_that_ended_before_the_relay_attached_is_fetched_and_then_closed() {
    check(
        &[
            (0, want(A, 1, 0)),
            (1, Input::Over),
            (2, up(1)),
            (3, part(1, 1, 1)),
            (4, Input::Ended { dial: 1, turn: 1, last: 2 }),
            (5, part(1, 1, 2)),
            (6, Input::Ended { dial: 1, turn: 1, last: 2 }),
        ],
        &[dial(1, A), ask(1, 1, 0), take(1, 1), ask(1, 1, 1), take(1, 2), close(1, Why::Complete)],
    );
}

#[test]
fn a_dial_that_fails_after_the_run_ended_is_tried_again_at_the_same_worker() {
    check(
        &[(0, want(A, 1, 0)), (1, Input::Over), (2, down(1)), (102, Input::Alarm), (103, up(2))],
        &[dial(1, A), Action::Degraded(true), redial(2, A), ask(2, 1, 0), Action::Degraded(false)],
    );
}

#[test]
fn evicted_parts_are_a_gap_the_followers_are_told_of() {
    check(
        &[
            (0, want(A, 1, 0)),
            (1, up(1)),
            (2, Input::Evicted { dial: 1, turn: 1, first: 4 }),
            (3, part(1, 1, 4)),
        ],
        &[dial(1, A), ask(1, 1, 0), Action::Gap { turn: 1, first: 4 }, take(1, 4)],
    );
}

#[test]
fn a_silent_link_is_dead_in_three_seconds() {
    let relay = check(
        &[
            (0, want(A, 1, 0)),
            (1, up(1)),
            (1_000, Input::Beat { dial: 1 }),
            (3_001, Input::Alarm),
            (4_000, Input::Alarm),
        ],
        &[dial(1, A), ask(1, 1, 0), close(1, Why::Silent), Action::Degraded(true)],
    );
    assert_eq!(relay.deadline(), Some(Moment::from_millis(4_100)));
}

#[test]
fn parts_that_a_message_folded_first_are_not_taken() {
    check(
        &[(0, want(A, 1, 0)), (1, up(1)), (2, want(A, 1, 3)), (3, part(1, 1, 1)), (4, part(1, 1, 4))],
        &[dial(1, A), ask(1, 1, 0), take(1, 4)],
    );
}

#[test]
fn waits_grow_to_five_seconds_and_a_link_that_lives_forgets_them() {
    let mut relay = Relay::<u32>::new();
    let mut actions = Vec::new();
    let mut now = Moment::ZERO;
    relay.step(now, LONGEST, want(A, 1, 0), &mut actions);
    let mut waits = Vec::new();
    for n in 1..9 {
        relay.step(now, LONGEST, down(n), &mut actions);
        let until = relay.deadline().expect("it waits");
        waits.push(until.since(now).as_millis());
        now = until;
        relay.step(now, LONGEST, Input::Alarm, &mut actions);
        relay.step(now, LONGEST, Input::Checked(Some(Want { worker: A, turn: 1, after: 0 })), &mut actions);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
    relay.step(now, LONGEST, up(9), &mut actions);
    now += Duration::from_secs(10);
    relay.step(now, LONGEST, Input::Closed { dial: 9 }, &mut actions);
    assert_eq!(relay.deadline().expect("it waits").since(now).as_millis(), 100);
}

fn any_input() -> impl Strategy<Value = Input<u32>> {
    let worker = prop_oneof![Just(A), Just(B)];
    let a_want = (worker, 1..4u32, 0..4u32).prop_map(|(worker, turn, after)| Want { worker, turn, after });
    prop_oneof![
        3 => a_want.clone().prop_map(Input::Wanted),
        1 => Just(Input::Over),
        1 => Just(Input::Unwanted),
        4 => (1..9u64, any::<bool>()).prop_map(|(dial, ok)| Input::Dialed { dial, ok }),
        6 => (1..9u64, 1..4u32, 1..7u32).prop_map(|(dial, turn, n)| part(dial, turn, n)),
        1 => (1..9u64, 1..4u32, 1..7u32).prop_map(|(dial, turn, first)| Input::Evicted { dial, turn, first }),
        1 => (1..9u64, 1..4u32, 1..7u32).prop_map(|(dial, turn, last)| Input::Ended { dial, turn, last }),
        1 => (1..9u64).prop_map(|dial| Input::Beat { dial }),
        1 => (1..9u64).prop_map(|dial| Input::Closed { dial }),
        1 => prop::option::of(a_want).prop_map(Input::Checked),
        1 => Just(Input::Unchecked),
        3 => Just(Input::Alarm),
    ]
}

proptest! {
    /// Whatever comes in whatever order: at most one dial is live; what a link brings is taken in order and
    /// once; a closed link is never asked; degraded and restored alternate.
    #[test]
    fn at_most_one_link_is_live_and_parts_come_in_order(inputs in prop::collection::vec((any_input(), 0..2_000u64), 0..80)) {
        let mut relay = Relay::new();
        let mut now = Moment::ZERO;
        let mut live: Option<u64> = None;
        let mut degraded = false;
        let mut asked = None;
        let mut answered = 0;
        for (input, ms) in inputs {
            now += Duration::from_millis(ms);
            if let Input::Dialed { dial, .. } = &input
                && live == Some(*dial)
            {
                if answered == *dial {
                    continue; // a dial answers once
                }
                answered = *dial;
            }
            let ends = match &input {
                Input::Dialed { dial, ok: false } | Input::Closed { dial } => Some(*dial),
                _ => None,
            };
            let mut actions = Vec::new();
            relay.step(now, LONGEST / 2, input, &mut actions);
            if ends.is_some() && live == ends {
                live = None;
            }
            for action in actions {
                match action {
                    Action::Dial { dial, .. } => {
                        prop_assert_eq!(live, None, "a second live dial");
                        live = Some(dial);
                        asked = None;
                    }
                    Action::Close { dial, why } if why != Why::Stale => {
                        prop_assert_eq!(live, Some(dial));
                        live = None;
                    }
                    Action::Close { dial, .. } => prop_assert_ne!(live, Some(dial)),
                    Action::Ask { dial, turn, after } => {
                        prop_assert_eq!(live, Some(dial), "a closed link is not asked");
                        asked = Some((turn, after));
                    }
                    Action::Take { turn, n, .. } => {
                        let (of, last) = asked.expect("parts come after a question");
                        prop_assert_eq!(turn, of);
                        prop_assert!(n > last);
                        asked = Some((turn, n));
                    }
                    Action::Gap { turn, first } => asked = Some((turn, first - 1)),
                    Action::Degraded(is) => {
                        prop_assert_ne!(is, degraded);
                        degraded = is;
                    }
                    Action::Check | Action::Read => {}
                }
            }
            let linked = match relay.link() {
                Link::Dialing { dial, .. } | Link::Attached { dial, .. } => Some(dial),
                Link::Idle | Link::Waiting { .. } => None,
            };
            prop_assert_eq!(linked, live, "what is live is what the machine thinks is");
        }
    }
}
