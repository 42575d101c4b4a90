//! The connection log.

use towpath::state::connection::Status::{Connected, Disconnected};

use super::*;

on_every_store! {
    connect_and_disconnect_become_one_row
    records_without_a_connection_are_never_merged
    any_order_of_records_gives_the_same_rows
    connections_are_found_by_every_filter
    connections_come_newest_first_in_pages_that_do_not_move
    old_connections_are_pruned_oldest_first
    dead_letters_are_kept_in_order
}

fn record(id: u128, time: i64, status: connection::Status, connection: Option<u128>) -> Record {
    let mut record = Record::new(Uuid::from_u128(id), Wall(time), ConnectionKind::Ssh, status);
    record.connection_id = connection.map(Uuid::from_u128);
    record
}

fn upsert(place: &Place, records: &[Record]) {
    let mut rows: BTreeMap<connection::Key, connection::Row> = BTreeMap::new();
    for record in records {
        let row = connection::Row::from(record.clone());
        match rows.entry(row.key()) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(row);
            }
            std::collections::btree_map::Entry::Occupied(mut there) => {
                there.get_mut().merge(row);
            }
        }
    }
    let rows: Vec<_> = rows.into_values().collect();
    place.stores.connections().expect("opens").upsert(&rows).expect("stored");
}

fn everything(place: &Place) -> Vec<connection::Row> {
    let all = ConnectionQuery { limit: 10_000, ..ConnectionQuery::default() };
    place.stores.connections().expect("opens").query(&all).expect("read")
}

fn connect_and_disconnect_become_one_row(place: &Place) {
    let mut begin = record(1, 100, Connected, Some(7));
    begin.workspace_name = Some("dev".into());
    begin.ip = Some("10.0.0.1".parse().expect("an address"));
    begin.user_agent = Some("ssh".into());
    begin.user_id = Some(Uuid::from_u128(77));
    begin.labels.insert("team".into(), "red".into());
    let mut end = record(2, 200, Disconnected, Some(7));
    end.code = Some(0);
    end.disconnect_reason = Some("bye".into());
    upsert(place, &[begin.clone()]);
    let rows = everything(place);
    assert_eq!(rows, [connection::Row::from(begin.clone())]);
    assert!(rows[0].is_ongoing());
    upsert(place, &[end]);
    let rows = everything(place);
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].id(), rows[0].connect_time), (begin.id, Wall(100)));
    assert_eq!(
        (rows[0].disconnect_time(), rows[0].code(), rows[0].disconnect_reason()),
        (Some(Wall(200)), Some(0), Some("bye"))
    );
    assert_eq!(rows[0].first.ip, begin.ip);
    assert_eq!(rows[0].first.labels, begin.labels);
    // The same connection id of another agent is another connection.
    let mut other = record(3, 300, Connected, Some(7));
    other.agent_name = "other".into();
    upsert(place, &[other]);
    assert_eq!(everything(place).len(), 2);
}

fn records_without_a_connection_are_never_merged(place: &Place) {
    let records = [record(1, 100, Connected, None), record(2, 100, Connected, None)];
    upsert(place, &records);
    upsert(place, &records);
    assert_eq!(everything(place).len(), 2, "and the same record come again is one");
}

fn any_order_of_records_gives_the_same_rows(place: &Place) {
    for seed in 1..=25_u64 {
        let mut draw = Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Ids differ from seed to seed, so that one database serves them all.
        let mut records: Vec<Record> = (0..20)
            .map(|i| {
                let status = if draw.below(2) == 0 { Connected } else { Disconnected };
                let key = u128::from(draw.below(4)) + u128::from(seed) * 1_000;
                // Shuffled, so that the order of ids is not the order of records.
                let id = u128::from(seed) * 1_000_000 + u128::from((i * 7_u32) % 20) + 1;
                let mut record = record(id, draw.below(6) as i64 + 1, status, Some(key));
                record.code = (draw.below(2) == 0).then(|| draw.below(3) as i32);
                record.disconnect_reason = (draw.below(2) == 0).then(|| format!("r{i}"));
                record.workspace_name = Some(format!("w{i}"));
                record.organization_id = Some(Uuid::from_u128(u128::from(seed)));
                record
            })
            .collect();
        // The naive model: all records of a key at once, by the rule's own words.
        let mut by_key: BTreeMap<Uuid, Vec<Record>> = BTreeMap::new();
        for record in &records {
            by_key.entry(record.connection_id.expect("given above")).or_default().push(record.clone());
        }
        let expected: BTreeMap<Uuid, _> = by_key
            .into_iter()
            .map(|(key, records)| {
                let first = records.iter().min_by_key(|r| (r.time, r.id)).expect("one at least");
                let end = records.iter().filter(|r| r.status == Disconnected).min_by_key(|r| (r.time, r.id));
                let told = end.unwrap_or(first);
                let connect = records.iter().map(|r| r.time).min();
                let row = (first.id, connect, first.workspace_name.clone(), end.map(|r| r.time));
                (key, (row, told.code, told.disconnect_reason.clone()))
            })
            .collect();
        // Any order, any batches, some of them twice.
        for i in (1..records.len()).rev() {
            records.swap(i, draw.below(i as u64 + 1) as usize);
        }
        let mut rest = &records[..];
        while !rest.is_empty() {
            let (batch, left) = rest.split_at((draw.below(6) as usize + 1).min(rest.len()));
            upsert(place, batch);
            if draw.below(3) == 0 {
                upsert(place, batch);
            }
            rest = left;
        }
        let query = ConnectionQuery {
            organization_id: Some(Uuid::from_u128(u128::from(seed))),
            limit: 100,
            ..ConnectionQuery::default()
        };
        let rows = place.stores.connections().expect("opens").query(&query).expect("read");
        let found: BTreeMap<Uuid, _> = rows
            .into_iter()
            .map(|row| {
                let parts = (
                    row.id(),
                    Some(row.connect_time),
                    row.first.workspace_name.clone(),
                    row.disconnect_time(),
                );
                let told = (parts, row.code(), row.disconnect_reason().map(str::to_owned));
                (row.first.connection_id.expect("given above"), told)
            })
            .collect();
        assert_eq!(found, expected, "seed {seed}");
    }
}

fn connections_are_found_by_every_filter(place: &Place) {
    let mut full = record(1, 100, Connected, Some(7));
    full.organization_id = Some(Uuid::from_u128(11));
    full.workspace_owner_id = Some(Uuid::from_u128(12));
    full.workspace_id = Uuid::from_u128(13);
    full.agent_name = "main".into();
    full.user_id = Some(Uuid::from_u128(14));
    full.labels = labels(&[("a", "1"), ("b", "2")]);
    let mut app = record(2, 200, Connected, None);
    app.kind = ConnectionKind::WorkspaceApp;
    let ended = record(3, 300, Disconnected, Some(8));
    upsert(place, &[full, app, ended]);
    let mut store = place.stores.connections().expect("opens");
    let mut found = |query: ConnectionQuery| {
        let query = ConnectionQuery { limit: 10, ..query };
        let rows = store.query(&query).expect("read");
        assert_eq!(store.count(&query, 100).expect("read"), Count { rows: rows.len() as u64, capped: false });
        rows.iter().map(|row| row.id().as_u128()).collect::<Vec<_>>()
    };
    let id = |id| Some(Uuid::from_u128(id));
    let none = ConnectionQuery::default;
    assert_eq!(found(none()), [3, 2, 1]);
    assert_eq!(found(ConnectionQuery { organization_id: id(11), ..none() }), [1]);
    assert_eq!(found(ConnectionQuery { workspace_owner_id: id(12), ..none() }), [1]);
    assert_eq!(found(ConnectionQuery { workspace_id: id(13), ..none() }), [1]);
    assert_eq!(found(ConnectionQuery { agent_name: Some("main".into()), ..none() }), [1]);
    assert_eq!(found(ConnectionQuery { user_id: id(14), ..none() }), [1]);
    assert_eq!(found(ConnectionQuery { connection_id: id(8), ..none() }), [3]);
    assert_eq!(found(ConnectionQuery { labels: labels(&[("b", "2")]), ..none() }), [1]);
    assert_eq!(found(ConnectionQuery { labels: labels(&[("b", "3")]), ..none() }), []);
    let kinds = vec![ConnectionKind::WorkspaceApp, ConnectionKind::Tunnel];
    assert_eq!(found(ConnectionQuery { kinds, ..none() }), [2]);
    assert_eq!(found(ConnectionQuery { ongoing: Some(true), ..none() }), [1], "an app is never ongoing");
    assert_eq!(found(ConnectionQuery { ongoing: Some(false), ..none() }), [3, 2]);
    assert_eq!(found(ConnectionQuery { connected_after: Some(Wall(200)), ..none() }), [3, 2], "inclusive");
    assert_eq!(found(ConnectionQuery { connected_before: Some(Wall(200)), ..none() }), [2, 1], "inclusive");
    assert_eq!(store.count(&none(), 2).expect("read"), Count { rows: 2, capped: true });
}

fn connections_come_newest_first_in_pages_that_do_not_move(place: &Place) {
    let records: Vec<Record> = (1..=7).map(|i| record(i, 100 + (i as i64 / 2), Connected, None)).collect();
    upsert(place, &records);
    let mut store = place.stores.connections().expect("opens");
    let page = |after, limit| ConnectionQuery { after, limit, ..ConnectionQuery::default() };
    let first = store.query(&page(None, 3)).expect("read");
    assert_eq!(first.iter().map(|row| row.id().as_u128()).collect::<Vec<_>>(), [7, 6, 5]);
    upsert(place, &[record(99, 999, Connected, None)]);
    let last = first.last().expect("three rows");
    let after = Some(Cursor { connect_time: last.connect_time, id: last.id() });
    let next = store.query(&page(after, 3)).expect("read");
    assert_eq!(next.iter().map(|row| row.id().as_u128()).collect::<Vec<_>>(), [4, 3, 2]);
    let offset = store.query(&ConnectionQuery { offset: 6, ..page(None, 10) }).expect("read");
    assert_eq!(offset.iter().map(|row| row.id().as_u128()).collect::<Vec<_>>(), [2, 1]);
}

fn old_connections_are_pruned_oldest_first(place: &Place) {
    let records: Vec<Record> = (1..=6).map(|i| record(i, i as i64 * 100, Connected, None)).collect();
    upsert(place, &records);
    let mut store = place.stores.connections().expect("opens");
    assert_eq!(store.prune(Wall(500), 3).expect("stored"), 3);
    assert_eq!(everything(place).iter().map(|row| row.id().as_u128()).collect::<Vec<_>>(), [6, 5, 4]);
    assert_eq!(store.prune(Wall(500), 3).expect("stored"), 1);
    assert_eq!(store.prune(Wall(500), 3).expect("stored"), 0);
}

fn dead_letters_are_kept_in_order(place: &Place) {
    let mut store = place.stores.connections().expect("opens");
    let letter = |id| DeadLetter {
        id: Uuid::from_u128(id),
        record: "{\"type\":\"ssh\"}".into(),
        error: "too odd".into(),
        at: Wall(0),
    };
    store.bury(&[letter(5), letter(4)]).expect("stored");
    place.advance(Duration::from_secs(1));
    store.bury(&[letter(3), letter(4)]).expect("stored");
    assert_eq!(store.dead_letter_count().expect("read"), 3);
    let first = store.dead_letters(None, 2).expect("read");
    let last = first.last().expect("two");
    let rest = store.dead_letters(Some((last.at, last.id)), 9).expect("read");
    let mut found: Vec<_> = first.iter().chain(&rest).map(|letter| letter.id.as_u128()).collect();
    assert_eq!(found.pop(), Some(3), "the newest comes last");
    assert_eq!((found.len(), first[0].error.as_str()), (2, "too odd"));
}
