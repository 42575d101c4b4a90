use super::*;
use proptest::prelude::*;

const CONNECTION: Uuid = Uuid::from_u128(7);

/// A record of the connection at `time`, which is also its id.
fn record(time: i64, status: Status) -> Record {
    let mut record = Record::new(Uuid::from_u128(time as u128), Wall(time), Kind::Ssh, status);
    record.connection_id = Some(CONNECTION);
    record.user_agent = Some(format!("client of {time}"));
    if status == Status::Disconnected {
        record.disconnect_reason = Some(format!("reason of {time}"));
        record.code = Some(time as i32);
    }
    record
}

fn connect(time: i64) -> Record {
    record(time, Status::Connected)
}

fn disconnect(time: i64) -> Record {
    record(time, Status::Disconnected)
}

fn merged(records: impl IntoIterator<Item = Record>) -> Row {
    let mut rows = records.into_iter().map(Row::from);
    let mut row = rows.next().expect("at least one record");
    rows.for_each(|other| row.merge(other));
    row
}

/// What matters of a row: id, connect time, disconnect time, reason.
fn check(records: &[Record], id: i64, began: i64, ended: Option<i64>) {
    let row = merged(records.iter().cloned());
    assert_eq!(row.id(), Uuid::from_u128(id as u128));
    assert_eq!(row.connect_time, Wall(began));
    assert_eq!(row.disconnect_time(), ended.map(Wall));
    assert_eq!(row.disconnect_reason(), ended.map(|time| format!("reason of {time}")).as_deref());
    assert_eq!(row.code(), ended.map(|time| time as i32));
    assert_eq!(row.first.user_agent.as_deref(), Some(format!("client of {id}").as_str()));
}

#[test]
fn a_connect_and_its_disconnect_are_one_row_with_the_connects_id() {
    check(&[connect(1), disconnect(5)], 1, 1, Some(5));
}

#[test]
fn a_disconnect_before_its_connect_gives_the_same_row() {
    check(&[disconnect(5), connect(1)], 1, 1, Some(5));
}

#[test]
fn a_connect_that_is_later_than_the_disconnect_does_not_move_the_beginning() {
    check(&[disconnect(5), connect(8)], 5, 5, Some(5));
    check(&[connect(8), disconnect(5)], 5, 5, Some(5));
}

#[test]
fn of_two_disconnects_the_earlier_is_the_end_as_one_unit() {
    check(&[connect(1), disconnect(9), disconnect(5)], 1, 1, Some(5));
    check(&[disconnect(5), connect(1), disconnect(9)], 1, 1, Some(5));
}

#[test]
fn a_lone_disconnect_uses_its_time_for_both() {
    check(&[disconnect(5)], 5, 5, Some(5));
}

#[test]
fn of_two_connects_the_earlier_gives_the_fields() {
    check(&[connect(3), connect(2)], 2, 2, None);
}

#[test]
fn exit_code_zero_survives() {
    let mut end = disconnect(5);
    end.code = Some(0);
    assert_eq!(merged([connect(1), end]).code(), Some(0));
}

#[test]
fn records_without_a_connection_are_each_a_key_of_their_own() {
    let mut visit = record(1, Status::Connected);
    visit.connection_id = None;
    let mut other = visit.clone();
    other.id = Uuid::from_u128(2);
    assert_ne!(Row::from(visit.clone()).key(), Row::from(other).key());
    assert_eq!(Row::from(visit.clone()).key(), Row::from(visit).key());
}

#[test]
fn the_key_is_the_databases_own_and_not_the_connection_alone() {
    let one = Row::from(connect(1));
    let mut other = connect(1);
    other.agent_name = "another".into();
    assert_ne!(one.key(), Row::from(other).key());
}

#[test]
fn acceptance_fills_what_is_unknown_and_empties_what_is_empty() {
    let mut record = Record::new(Uuid::nil(), Wall(0), Kind::Ssh, Status::Disconnected);
    record.user_agent = Some(String::new());
    record.connection_id = Some(Uuid::nil());
    record.code = Some(0);
    record.complete(Wall(7), Uuid::from_u128(9));
    assert_eq!((record.id, record.time), (Uuid::from_u128(9), Wall(7)));
    assert_eq!((record.user_agent, record.connection_id, record.code), (None, None, Some(0)));
}

#[test]
fn only_spans_are_ever_ongoing() {
    let ongoing: Vec<&str> = Kind::ALL
        .into_iter()
        .filter(|kind| Row::from(Record::new(CONNECTION, Wall(1), *kind, Status::Connected)).is_ongoing())
        .map(Kind::as_str)
        .collect();
    assert_eq!(ongoing, ["ssh", "vscode", "jetbrains", "reconnecting_pty", "stream", "session", "pipe"]);
}

#[test]
fn every_kind_is_found_by_its_name() {
    for kind in Kind::ALL {
        assert_eq!(Kind::named(kind.as_str()), Some(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
    }
    assert_eq!(Kind::named("telnet"), None);
}

/// Written without [`Merge`]: look at all records at once.
fn naive(records: &[Record]) -> Row {
    let first = records.iter().min_by_key(|record| record.stamp()).expect("not empty").clone();
    let end = records
        .iter()
        .filter(|record| record.status == Status::Disconnected)
        .min_by_key(|record| record.stamp())
        .map(|by| End { by: by.stamp(), reason: by.disconnect_reason.clone(), code: by.code });
    let connect_time = records.iter().map(|record| record.time).min().expect("not empty");
    Row { first, connect_time, end }
}

prop_compose! {
    /// Records of one connection with few distinct times, so that ties are common; ids are distinct.
    fn records()(drawn in prop::collection::vec((1..4i64, any::<bool>(), any::<u64>()), 1..7)) -> Vec<Record> {
        drawn
            .into_iter()
            .enumerate()
            .map(|(n, (time, end, salt))| {
                let mut record = record(time, if end { Status::Disconnected } else { Status::Connected });
                record.id = Uuid::from_u128(u128::from(salt) << 8 | n as u128);
                record.user_agent = Some(n.to_string());
                record.code = Some(n as i32);
                record
            })
            .collect()
    }
}

proptest! {
    #[test]
    fn any_order_gives_the_row_of_the_naive_model(
        (given, shuffled) in records().prop_flat_map(|records| (Just(records.clone()), Just(records).prop_shuffle()))
    ) {
        prop_assert_eq!(merged(shuffled), naive(&given));
    }

    #[test]
    fn any_grouping_gives_the_same_row(given in records(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(given.len());
        let mut right = naive(&given);
        if cut > 0 {
            let mut left = merged(given[..cut].iter().cloned());
            left.merge(merged(given[cut..].iter().cloned()));
            right.merge(left.clone());
            prop_assert_eq!(&left, &right);
        }
        prop_assert_eq!(right, naive(&given));
    }

    #[test]
    fn a_record_that_comes_again_changes_nothing(given in records(), again in any::<prop::sample::Index>()) {
        let mut row = merged(given.clone());
        row.merge(Row::from(given[again.index(given.len())].clone()));
        prop_assert_eq!(row, naive(&given));
    }

    #[test]
    fn a_row_survives_its_own_text(given in records()) {
        let row = merged(given);
        let text = serde_json::to_vec(&row).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Row>(&text).unwrap(), row);
    }
}
