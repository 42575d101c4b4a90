use super::*;
use proptest::prelude::*;

fn entry(at: i64, value: &str) -> Entry {
    Entry { value: value.into(), error: String::new(), collected_at: Wall(at) }
}

fn merged(mut one: Entry, other: Entry) -> Entry {
    one.merge(other);
    one
}

#[test]
fn an_older_value_is_ignored_in_any_order() {
    assert_eq!(merged(entry(2, "new"), entry(1, "old")), entry(2, "new"));
    assert_eq!(merged(entry(1, "old"), entry(2, "new")), entry(2, "new"));
}

#[test]
fn of_two_values_of_one_moment_the_first_is_kept() {
    assert_eq!(merged(entry(1, "first"), entry(1, "second")), entry(1, "first"));
}

#[test]
fn a_long_value_is_cut_at_a_character_and_its_error_says_so() {
    let limits = Limits { value: 5, error: 2_048, keys: 6_144 };
    let (value, error) = limits.cut("abcdé", "was fine");
    assert_eq!(value, "abcd");
    assert_eq!(error, "value of 6 bytes exceeded 5 bytes");
    assert_eq!(limits.cut("abcde", "was fine"), ("abcde", "was fine".into()));
}

#[test]
fn a_long_error_is_replaced_by_one_that_says_so() {
    let long = "x".repeat(2_049);
    let (value, error) = Limits::default().cut("ok", &long);
    assert_eq!((value, error.as_ref()), ("ok", "error of 2049 bytes exceeded 2048 bytes"));
    let (value, error) = Limits::default().cut(&long, &long);
    assert_eq!((value.len(), error.as_ref()), (2_048, "error of 2049 bytes exceeded 2048 bytes"));
}

#[test]
fn the_key_budget_is_cumulative_and_stops_at_the_first_that_does_not_fit() {
    let limits = Limits { keys: 10, ..Limits::default() };
    assert_eq!(limits.fit(["aaaaa", "bbbbb"].into_iter()), Ok(()));
    let refused = limits.fit(["aaaaa", "bbbbbb", "c"].into_iter()).unwrap_err();
    assert_eq!(refused, KeysTooLong { fit: 1, bytes: 12, limit: 10 });
    assert_eq!(refused.to_string(), "metadata keys of 12 bytes exceeded 10 bytes");
}

#[test]
fn notices_of_0_1_363_364_and_727_agents_round_trip() {
    for (count, chunks) in [(0, 0), (1, 1), (363, 1), (364, 2), (727, 3)] {
        let agents: Vec<Uuid> = (0..count).map(|n| Uuid::from_u128(n << 64 | n)).collect();
        let texts: Vec<String> = notices(&agents).collect();
        assert_eq!(texts.len(), chunks, "{count} agents");
        assert!(texts.iter().all(|text| text.len() <= 7_986));
        let back: Vec<Uuid> = texts.iter().flat_map(|text| named_in(text).unwrap()).collect();
        assert_eq!(back, agents);
    }
}

#[test]
fn a_malformed_notice_is_told_from_an_empty_one() {
    assert_eq!(named_in(""), Ok(vec![]));
    assert_eq!(named_in("AAAA"), Err(BadNotice));
    assert_eq!(named_in("!!!!!!!!!!!!!!!!!!!!!!"), Err(BadNotice));
    assert_eq!(named_in("ééééééééééé"), Err(BadNotice), "22 bytes that are no base64");
}

proptest! {
    #[test]
    fn any_notice_is_read_or_refused(text in ".{0,64}") {
        let _ = named_in(&text);
    }

    #[test]
    fn merging_in_any_order_keeps_the_newest(order in Just((0..12i64).collect::<Vec<_>>()).prop_shuffle(), again in 0..12usize) {
        let mut held = entry(order[0], &order[0].to_string());
        for at in order.iter().chain([&order[again]]) {
            held.merge(entry(*at, &at.to_string()));
        }
        prop_assert_eq!(held, entry(11, "11"));
    }
}
