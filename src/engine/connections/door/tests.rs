use super::*;
use crate::rt::Wall;
use crate::state::connection::{Kind, Record, Status};

fn row(rt: &Rt, connection: u128, status: Status) -> Row {
    let connection_id = Some(uuid::Uuid::from_u128(connection));
    Row::from(Record { connection_id, ..Record::new(rt.uuid_v7(), Wall(1), Kind::Ssh, status) })
}

fn merged(added: Added) -> bool {
    matches!(added, Added::Merged)
}

#[test]
fn two_keys_of_one_hash_are_two_rows_and_each_takes_in_its_own() {
    let rt = Rt::real();
    let (door, ledger) = (ConnectionDoor::new(&rt, 10), Ledger::default());
    assert!(!merged(door.add_at(u64::MAX, row(&rt, 1, Status::Connected))));
    assert!(!merged(door.add_at(u64::MAX, row(&rt, 2, Status::Connected))));
    assert!(merged(door.add_at(u64::MAX, row(&rt, 1, Status::Disconnected))));
    assert!(merged(door.add_at(u64::MAX, row(&rt, 2, Status::Disconnected))));

    let rows = door.drain(&ledger);
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.end.is_some()));
    assert_eq!(ledger.account().merged, 2);
    assert_eq!(door.held(), 0);
    assert!(!merged(door.add_at(u64::MAX, row(&rt, 1, Status::Connected))), "the room has what was there");
}

#[test]
fn a_full_door_gives_a_new_row_back_and_still_merges() {
    let rt = Rt::real();
    let door = ConnectionDoor::new(&rt, 1);
    assert!(matches!(door.add(row(&rt, 1, Status::Connected)), Added::New { before: 0 }));
    assert!(matches!(door.add(row(&rt, 2, Status::Connected)), Added::Full(_)));
    assert!(merged(door.add(row(&rt, 1, Status::Disconnected))));
}
