//! What agents report.

use super::*;

on_every_store! {
    older_metadata_never_replaces_newer
    any_order_of_metadata_leaves_the_newest
    metadata_says_which_agents_changed
    metadata_that_travelled_fast_is_not_older_than_what_travelled_slowly
    update_only_makes_no_keys
    metadata_is_read_in_the_order_declared
    agents_are_found_by_prefix_in_pages
    old_metadata_is_pruned_in_bounds
}

fn value(agent: u128, key: &str, value: &str, collected_at: i64) -> (Key, Entry) {
    let entry = Entry { value: value.into(), error: String::new(), collected_at: Wall(collected_at) };
    (Key { agent: Uuid::from_u128(agent), key: key.into() }, entry)
}

fn ids(ids: &[u128]) -> Vec<Uuid> {
    ids.iter().map(|id| Uuid::from_u128(*id)).collect()
}

fn older_metadata_never_replaces_newer(place: &Place) {
    let (mut one, mut other) =
        (place.stores.metadata().expect("opens"), place.stores.metadata().expect("opens"));
    let now = Wall(10_000_000);
    one.upsert(&[value(1, "cpu", "new", 9_000_000)], now, Sight::Register).expect("stored");
    // Another replica, later, with something older.
    let late = other.upsert(&[value(1, "cpu", "old", 0)], now, Sight::Register).expect("stored");
    assert_eq!((late.changed, late.rows), (vec![], 0));
    let read = one.read(&ids(&[1])).expect("read");
    assert_eq!((read.len(), read[0].value.as_str()), (1, "new"));
    assert!(
        read[0].age >= Duration::from_secs(1) && read[0].age < Duration::from_secs(5),
        "{:?}",
        read[0].age
    );
    place.advance(Duration::from_secs(60));
    assert!(one.read(&ids(&[1])).expect("read")[0].age >= Duration::from_secs(61));
}

fn metadata_says_which_agents_changed(place: &Place) {
    let mut store = place.stores.metadata().expect("opens");
    let now = Wall(10_000_000);
    let rows = ["a", "b"]
        .map(|key| value(1, key, "1", 5_000_000))
        .into_iter()
        .chain([value(2, "a", "1", 5_000_000)])
        .collect::<Vec<_>>();
    let first = store.upsert(&rows, now, Sight::Register).expect("stored");
    assert_eq!((first.changed, first.rows), (ids(&[1, 2]), 3));
    let rows = [value(1, "a", "0", 1_000_000), value(2, "a", "2", 9_000_000), value(3, "a", "1", 5)];
    let second = store.upsert(&rows, now, Sight::Register).expect("stored");
    assert_eq!((second.changed, second.rows), (ids(&[2, 3]), 2));
    // A new key beside one that is there.
    let rows = [value(1, "a", "3", 9_500_000), value(1, "c", "1", 9_500_000)];
    let third = store.upsert(&rows, now, Sight::Register).expect("stored");
    assert_eq!((third.changed, third.rows), (ids(&[1]), 2), "each is written once");
    assert_eq!(store.upsert(&[], now, Sight::Register).expect("stored").rows, 0);
    // Registered on sight, under their ids until someone names them.
    let agent = store.agent(Uuid::from_u128(3)).expect("read").expect("registered");
    assert_eq!(agent.name, Uuid::from_u128(3).to_string());
}

fn metadata_that_travelled_fast_is_not_older_than_what_travelled_slowly(place: &Place) {
    let mut store = place.stores.metadata().expect("opens");
    // Collected at 0, but the database saw it half a second later.
    place.advance(Duration::from_millis(500));
    store.upsert(&[value(1, "cpu", "first", 0)], Wall(0), Sight::Register).expect("stored");
    // Collected a millisecond after it, sent when the first write was through, arrived at once.
    let second =
        store.upsert(&[value(1, "cpu", "second", 1_000)], Wall(501_000), Sight::Register).expect("stored");
    assert_eq!(second.rows, 1);
    assert_eq!(store.read(&ids(&[1])).expect("read")[0].value, "second");
}

fn update_only_makes_no_keys(place: &Place) {
    let mut store = place.stores.metadata().expect("opens");
    let now = Wall(10_000_000);
    store.upsert(&[value(1, "a", "1", 0)], now, Sight::Register).expect("stored");
    let rows = [value(1, "a", "2", 9_000_000), value(1, "b", "1", 9_000_000), value(2, "a", "1", 9_000_000)];
    let updated = store.upsert(&rows, now, Sight::UpdateOnly).expect("stored");
    assert_eq!((updated.changed, updated.rows), (ids(&[1]), 1));
    let older = [value(1, "a", "1", 8_000_000)];
    assert_eq!(store.upsert(&older, now, Sight::UpdateOnly).expect("stored").rows, 0, "not newer");
    assert_eq!(store.agent(Uuid::from_u128(2)).expect("read"), None);
    let read = store.read(&ids(&[1, 2])).expect("read");
    assert_eq!(read.iter().map(|row| row.value.as_str()).collect::<Vec<_>>(), ["2"]);
}

fn metadata_is_read_in_the_order_declared(place: &Place) {
    let mut store = place.stores.metadata().expect("opens");
    let now = Wall(10_000_000);
    let rows = ["Z", "a", "b", "c"].map(|key| value(1, key, key, 0));
    store.upsert(&rows, now, Sight::Register).expect("stored");
    let declare = |key: &str, name: &str, order| KeyRow {
        key: key.into(),
        display_name: name.into(),
        display_order: order,
    };
    let keys = vec![declare("c", "First", -1), declare("a", "Last", 7)];
    store.declare(Uuid::from_u128(1), &keys).expect("stored");
    assert_eq!(store.declared(Uuid::from_u128(1)).expect("read"), keys);
    let read = store.read(&ids(&[1])).expect("read");
    assert_eq!(read.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(), ["c", "Z", "b", "a"]);
    assert_eq!(read[0].display_name.as_deref(), Some("First"));
    assert_eq!((read[1].display_name.as_deref(), read[1].display_order), (None, 0));
    store.declare(Uuid::from_u128(1), &keys[1..]).expect("stored");
    assert_eq!(store.declared(Uuid::from_u128(1)).expect("read"), keys[1..]);
}

fn agents_are_found_by_prefix_in_pages(place: &Place) {
    let mut store = place.stores.metadata().expect("opens");
    for (id, name) in [(1, "web-1"), (2, "web-2"), (3, "Web-3"), (4, "wed"), (5, "web-1")] {
        assert!(store.put_agent(Uuid::from_u128(id), name).expect("stored"));
    }
    assert!(!store.put_agent(Uuid::from_u128(1), "web-1").expect("stored"), "nothing changed");
    let page = store.agents("web-", None, 2).expect("read");
    let agent = |id, name: &str| AgentRow { id: Uuid::from_u128(id), name: name.into() };
    assert_eq!(page, [agent(1, "web-1"), agent(5, "web-1")]);
    assert_eq!(store.agents("web-", page.last(), 2).expect("read"), [agent(2, "web-2")]);
    assert_eq!(store.agents("", None, 10).expect("read").len(), 5);
    assert_eq!(store.agents("%", None, 10).expect("read"), []);
}

fn old_metadata_is_pruned_in_bounds(place: &Place) {
    let mut store = place.stores.metadata().expect("opens");
    let rows: Vec<_> = (0..10).map(|i| value(1, &format!("k{i}"), "x", 0)).collect();
    store.upsert(&rows, Wall(0), Sight::Register).expect("stored");
    assert_eq!(store.prune(Duration::from_secs(60), 100).expect("stored"), 0);
    place.advance(Duration::from_secs(61));
    assert_eq!(store.prune(Duration::from_secs(60), 4).expect("stored"), 4);
    assert_eq!(store.prune(Duration::from_secs(60), 100).expect("stored"), 6);
}

fn any_order_of_metadata_leaves_the_newest(place: &Place) {
    const HOUR: i64 = 3_600_000_000;
    let now = Wall(100 * HOUR);
    let mut store = place.stores.metadata().expect("opens");
    for seed in 1..=25_u64 {
        let mut draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Hours apart, so that what a call takes makes nobody older than another. Agents differ from seed to
        // seed, so that one database serves them all.
        let mut reports: Vec<(Key, Entry)> = (1..=30)
            .map(|hour| {
                let agent = u128::from(draw.below(3)) + u128::from(seed) * 1_000;
                value(agent, ["cpu", "disk"][draw.below(2) as usize], &hour.to_string(), hour * HOUR)
            })
            .collect();
        // The naive model: they came in the order of their hours, and the last of each key holds.
        let expected: BTreeMap<Key, String> =
            reports.iter().map(|(key, entry)| (key.clone(), entry.value.clone())).collect();
        for i in (1..reports.len()).rev() {
            reports.swap(i, draw.below(i as u64 + 1) as usize);
        }
        let mut rest = &reports[..];
        while !rest.is_empty() {
            let (some, left) = rest.split_at((draw.below(8) as usize + 1).min(rest.len()));
            // As a door merges them: one of a key, sorted.
            let mut batch: BTreeMap<Key, Entry> = BTreeMap::new();
            for (key, entry) in some {
                batch
                    .entry(key.clone())
                    .and_modify(|held| held.merge(entry.clone()))
                    .or_insert(entry.clone());
            }
            let batch: Vec<(Key, Entry)> = batch.into_iter().collect();
            store.upsert(&batch, now, Sight::Register).expect("stored");
            if draw.below(3) == 0 {
                let again = store.upsert(&batch, now, Sight::Register).expect("stored");
                let known: BTreeSet<Uuid> = batch.iter().map(|(key, _)| key.agent).collect();
                assert!(again.changed.iter().all(|agent| known.contains(agent)));
            }
            rest = left;
        }
        let agents: Vec<Uuid> =
            expected.keys().map(|key| key.agent).collect::<BTreeSet<_>>().into_iter().collect();
        let found: BTreeMap<Key, String> = store
            .read(&agents)
            .expect("read")
            .into_iter()
            .map(|row| (Key { agent: row.agent, key: row.key.as_str().into() }, row.value))
            .collect();
        assert_eq!(found, expected, "seed {seed}");
    }
}
