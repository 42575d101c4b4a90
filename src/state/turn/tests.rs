use proptest::prelude::*;

use super::*;

fn turn_of(parts: &[&str]) -> Turn {
    let mut turn = Turn::begin(1, 0);
    for part in parts {
        turn.push((*part).into(), TURN_BYTES_MAX).expect("open and small");
    }
    turn
}

fn lack(turn: &Turn, part: u32) -> (bool, u32, Vec<String>) {
    let lack = turn.after(part);
    (lack.evicted, lack.first, lack.parts.map(|part| part.to_string()).collect())
}

#[test]
fn parts_are_numbered_one_two_three() {
    let mut turn = Turn::begin(7, 0);
    assert_eq!(turn.push("a".into(), 10), Ok(1));
    assert_eq!(turn.push("b".into(), 10), Ok(2));
    assert_eq!((turn.number(), turn.last(), turn.bytes()), (7, 2, 2));
}

#[test]
fn a_follower_gets_what_it_lacks() {
    let turn = turn_of(&["a", "b", "c"]);
    assert_eq!(lack(&turn, 0), (false, 1, vec!["a".into(), "b".into(), "c".into()]));
    assert_eq!(lack(&turn, 2), (false, 3, vec!["c".into()]));
    assert_eq!(lack(&turn, 3), (false, 4, vec![]));
    assert_eq!(lack(&turn, 9), (false, 10, vec![]), "one that is ahead lacks nothing");
}

#[test]
fn a_turn_refuses_what_does_not_fit_and_says_what_helps() {
    let mut turn = turn_of(&["abc"]);
    let refused = turn.push("de".into(), 4).expect_err("five bytes do not fit in four");
    assert_eq!(refused, PartRefused::Full { held: 3, max: 4 });
    assert!(refused.to_string().contains("commit a message"));
    assert_eq!((turn.last(), turn.bytes()), (1, 3));
}

#[test]
fn folded_parts_make_room_for_new_ones_and_numbers_go_on() {
    let mut turn = turn_of(&["abc", "d"]);
    turn.fold(1);
    assert_eq!(turn.push("ef".into(), 4), Ok(3));
    assert_eq!(lack(&turn, 1), (false, 2, vec!["d".into(), "ef".into()]));
    assert_eq!(lack(&turn, 0), (true, 2, vec!["d".into(), "ef".into()]), "a full read says what is gone");
}

#[test]
fn folded_parts_stay_readable_until_their_room_is_needed() {
    let mut turn = turn_of(&["a", "b"]);
    turn.fold(2);
    assert!(!turn.has_draft());
    assert_eq!(lack(&turn, 0), (false, 1, vec!["a".into(), "b".into()]));
}

#[test]
fn a_closed_turn_takes_nothing_and_stays_for_its_grace() {
    let mut turn = turn_of(&["a"]);
    assert_eq!(turn.expires(), None);
    turn.close(Moment::from_millis(1_000));
    turn.close(Moment::from_millis(9_000));
    assert_eq!(turn.push("b".into(), 10), Err(PartRefused::Closed));
    assert_eq!(turn.expires(), Some(Moment::from_millis(16_000)), "it ends once");
}

#[test]
fn overlap_after_a_relay_reconnect_is_not_doubled() {
    let mut mirror = Turn::begin(1, 0);
    for (n, part, accepted) in [
        (1, "a", Accepted::New),
        (2, "b", Accepted::New),
        (1, "a", Accepted::Again),
        (2, "b", Accepted::Again),
        (4, "d", Accepted::Gap(2)),
        (3, "c", Accepted::New),
        (4, "d", Accepted::New),
    ] {
        assert_eq!(mirror.accept(n, part.into(), 100), accepted, "part {n}");
    }
    assert_eq!(lack(&mirror, 0).2, ["a", "b", "c", "d"]);
}

#[test]
fn a_message_that_comes_before_its_parts_makes_them_count_as_seen() {
    let mut mirror = Turn::begin(1, 0);
    mirror.accept(1, "a".into(), 100);
    mirror.fold(3);
    assert_eq!(mirror.accept(2, "b".into(), 100), Accepted::Again);
    assert_eq!(mirror.accept(4, "d".into(), 100), Accepted::New);
    assert_eq!(lack(&mirror, 3), (false, 4, vec!["d".into()]));
}

#[test]
fn a_mirror_keeps_the_newest_and_says_what_went() {
    let mut mirror = Turn::begin(1, 0);
    for n in 1..=5 {
        mirror.accept(n, "ab".into(), 4);
    }
    assert_eq!(mirror.bytes(), 4);
    assert_eq!(lack(&mirror, 1), (true, 4, vec!["ab".into(), "ab".into()]));
    assert!(!lack(&mirror, 3).0);
}

#[test]
fn a_mirror_that_skips_lost_parts_tells_who_had_less() {
    let mut mirror = Turn::begin(1, 0);
    mirror.accept(1, "a".into(), 100);
    mirror.skip_to(4);
    assert_eq!(mirror.accept(4, "d".into(), 100), Accepted::New);
    assert_eq!(lack(&mirror, 1), (true, 4, vec!["d".into()]));
    mirror.skip_to(2);
    assert_eq!(mirror.last(), 4, "what is here is not skipped");
}

#[derive(Clone, Debug)]
enum Do {
    Push(usize),
    Accept(u32, usize),
    Fold(u32),
    Shed(usize),
    ShedFolded(usize),
}

fn any_do() -> impl Strategy<Value = Do> {
    prop_oneof![
        4 => (0..20usize).prop_map(Do::Push),
        1 => (0..20u32, 0..20usize).prop_map(|(n, len)| Do::Accept(n, len)),
        1 => (0..20u32).prop_map(Do::Fold),
        1 => (0..60usize).prop_map(Do::Shed),
        1 => (0..60usize).prop_map(Do::ShedFolded),
    ]
}

proptest! {
    /// Against a model that keeps every part: numbers never jump, the bytes stay within the bound, and what a
    /// follower gets is exactly the tail it lacks, or it is told that something went.
    #[test]
    fn what_is_held_is_a_gapless_tail_within_the_bound(dos in prop::collection::vec(any_do(), 0..80)) {
        const MAX: usize = 64;
        let mut turn = Turn::begin(1, 0);
        let mut all: Vec<Option<Arc<str>>> = Vec::new();
        for step in dos {
            let before = turn.last();
            match step {
                Do::Push(len) => {
                    let part: Arc<str> = "x".repeat(len).into();
                    if let Ok(n) = turn.push(part.clone(), MAX) {
                        prop_assert_eq!(n, before + 1);
                        all.push(Some(part));
                    }
                }
                Do::Accept(n, len) => {
                    let part: Arc<str> = "y".repeat(len).into();
                    let accepted = turn.accept(n, part.clone(), MAX);
                    prop_assert_eq!(accepted == Accepted::New, n == before + 1);
                    if accepted == Accepted::New {
                        all.push(Some(part));
                    }
                }
                Do::Fold(upto) => {
                    turn.fold(upto);
                    all.resize(all.len().max(upto as usize), None);
                }
                Do::Shed(max) => turn.shed(max),
                Do::ShedFolded(max) => turn.shed_folded(max),
            }
            prop_assert_eq!(turn.last() as usize, all.len());
            prop_assert!(turn.bytes() <= MAX);
            prop_assert!(turn.folded_to() <= turn.last());
            for part in 0..=turn.last() {
                let lack = turn.after(part);
                prop_assert_eq!(lack.evicted, lack.first > part + 1);
                let got: Vec<_> = lack.parts.cloned().map(Some).collect();
                prop_assert_eq!(&got[..], &all[lack.first as usize - 1..]);
            }
        }
    }
}
