use super::*;

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

fn agent(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn watches() -> Watches {
    Watches::new(Settings { agents_per_read: 2, ..Settings::default() })
}

fn read(agents: &[u128]) -> Option<Ask> {
    Some(Ask::Read { agents: agents.iter().copied().map(agent).collect(), names: false })
}

fn list(prefixes: &[&str]) -> Option<Ask> {
    Some(Ask::List { prefixes: prefixes.iter().map(|prefix| prefix.to_string()).collect() })
}

#[test]
fn a_new_watcher_is_owed_a_first_look_and_one_read_serves_all() {
    let mut watches = watches();
    watches.watch(at(0), 1, Scope::Agents(vec![agent(7)]));
    watches.watch(at(0), 2, Scope::Agents(vec![agent(7)]));
    assert_eq!(watches.next(at(0)), read(&[7]));
    assert_eq!(watches.next(at(0)), None, "one question at a time");
    assert_eq!(watches.read(agent(7), None), BTreeSet::from([1, 2]));
    watches.read_ended();
    assert_eq!(watches.next(at(0)), None);
}

#[test]
fn a_notice_during_a_read_causes_another_and_a_burst_only_one() {
    let mut watches = watches();
    watches.watch(at(0), 1, Scope::Agents(vec![agent(7)]));
    assert_eq!(watches.next(at(0)), read(&[7]));
    for _ in 0..100 {
        watches.noticed(&[agent(7), agent(8)]);
    }
    watches.read_ended();
    assert_eq!(watches.next(at(1)), read(&[7]), "and nobody watches 8");
    watches.read_ended();
    assert_eq!(watches.next(at(2)), None);
}

#[test]
fn a_drop_marker_reads_everything_again_in_pages() {
    let mut watches = watches();
    watches.watch(at(0), 1, Scope::Agents(vec![agent(1), agent(2), agent(3)]));
    for _ in 0..2 {
        assert_eq!(watches.next(at(0)), read(&[1, 2]));
        watches.read_ended();
        assert_eq!(watches.next(at(0)), read(&[3]));
        watches.read_ended();
        assert_eq!(watches.next(at(0)), None);
        watches.dropped();
    }
}

#[test]
fn everything_watched_is_read_every_five_seconds() {
    let mut watches = watches();
    watches.watch(at(1_000), 1, Scope::Agents(vec![agent(7)]));
    assert_eq!(watches.next(at(1_000)), read(&[7]));
    watches.read_ended();
    assert_eq!(watches.deadline(), Some(at(6_000)));
    assert_eq!(watches.next(at(5_999)), None);
    assert_eq!(watches.next(at(6_000)), read(&[7]));
    watches.unwatch(1);
    assert_eq!(watches.deadline(), None, "nobody is left to refresh for");
}

#[test]
fn a_failed_read_is_tried_again_after_a_second() {
    let mut watches = watches();
    watches.watch(at(0), 1, Scope::Agents(vec![agent(7)]));
    let asked = watches.next(at(0)).unwrap();
    watches.failed(at(10), asked);
    assert_eq!(watches.next(at(1_009)), None);
    assert_eq!(watches.deadline(), Some(at(1_010)));
    assert_eq!(watches.next(at(1_010)), read(&[7]));
}

#[test]
fn who_watches_by_name_sees_agents_that_come_later() {
    let mut watches = watches();
    watches.watch(at(0), 1, Scope::Prefix("build-".into()));
    assert_eq!(watches.next(at(0)), list(&["build-"]));
    watches.listed([(agent(1), "build-1".into())]);
    assert_eq!(watches.next(at(0)), read(&[1]));
    assert_eq!(watches.read(agent(1), None), BTreeSet::from([1]));
    watches.read_ended();
    watches.noticed(&[agent(2), agent(3)]);
    let asked = Ask::Read { agents: vec![agent(2), agent(3)], names: true };
    assert_eq!(watches.next(at(1)), Some(asked));
    assert_eq!(watches.read(agent(2), Some("build-2")), BTreeSet::from([1]));
    assert_eq!(watches.read(agent(3), Some("test-3")), BTreeSet::new());
    watches.read_ended();
    watches.noticed(&[agent(3)]);
    assert_eq!(watches.next(at(2)), None, "it is known not to be watched");
}

#[test]
fn a_prefix_within_another_is_not_listed_twice() {
    let mut watches = watches();
    for (watcher, prefix) in ["a", "ab", "b", "abc"].into_iter().enumerate() {
        watches.watch(at(0), watcher as u64, Scope::Prefix(prefix.into()));
    }
    assert_eq!(watches.next(at(0)), list(&["a", "b"]));
    watches.listed([(agent(1), "abd".into())]);
    assert_eq!(watches.read(agent(1), None), BTreeSet::from([0, 1]));
}

#[test]
fn a_watcher_that_left_gets_nothing_and_costs_nothing() {
    let mut watches = watches();
    watches.watch(at(0), 1, Scope::Agents(vec![agent(1)]));
    watches.watch(at(0), 2, Scope::Prefix(String::new()));
    watches.unwatch(1);
    watches.unwatch(2);
    watches.unwatch(2);
    watches.noticed(&[agent(1)]);
    watches.dropped();
    assert_eq!(watches.next(at(60_000)), None);
    assert!(watches.is_empty());
}
