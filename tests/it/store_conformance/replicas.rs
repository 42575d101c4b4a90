//! Who else is there.

use super::*;

on_every_store! {
    a_replica_that_vanished_is_there_again_with_its_next_beat
    relay_keys_rotate_and_the_last_one_still_verifies
    every_store_answers_a_ping
}

fn a_replica_that_vanished_is_there_again_with_its_next_beat(place: &Place) {
    let mut store = place.stores.replicas().expect("opens");
    let replica = |id, error: &str| ReplicaRow {
        id: Uuid::from_u128(id),
        hostname: "here".into(),
        relay_url: Some("http://here:1".into()),
        version: "0.1.0".into(),
        error: error.into(),
    };
    assert_eq!(store.beat(&replica(1, "")).expect("stored"), Beat::Inserted);
    place.advance(Duration::from_secs(10));
    assert_eq!(store.beat(&replica(2, "")).expect("stored"), Beat::Inserted);
    assert_eq!(store.beat(&replica(2, "cannot reach 1")).expect("stored"), Beat::Updated);
    let rows = store.list().expect("read");
    assert_eq!(
        rows.iter().map(|row| row.replica.clone()).collect::<Vec<_>>(),
        [replica(1, ""), replica(2, "cannot reach 1")]
    );
    assert!(rows[0].age >= Duration::from_secs(10) && rows[1].age < Duration::from_secs(5));
    assert_eq!(store.clean(Duration::from_secs(5)).expect("stored"), 1);
    place.advance(Duration::from_secs(1));
    assert_eq!(store.beat(&replica(1, "")).expect("stored"), Beat::Inserted);
    store.stop(Uuid::from_u128(2)).expect("stored");
    let rows = store.list().expect("read");
    assert_eq!(rows.iter().map(|row| row.stopped_at.is_some()).collect::<Vec<_>>(), [true, false]);
}

fn relay_keys_rotate_and_the_last_one_still_verifies(place: &Place) {
    let mut store = place.stores.replicas().expect("opens");
    let day = Duration::from_secs(86_400);
    let mut keys = |n: u8| {
        let fresh = RelayKey { id: Uuid::from_u128(n.into()), secret: [n; 32], created_at: Wall(0) };
        let keys = store.relay_keys(fresh, day).expect("stored");
        keys.iter().map(|key| key.secret[0]).collect::<Vec<_>>()
    };
    assert_eq!(keys(1), [1]);
    assert_eq!(keys(2), [1], "young enough");
    place.advance(day);
    assert_eq!(keys(3), [3, 1]);
    place.advance(day);
    assert_eq!(keys(4), [4, 3]);
}

fn every_store_answers_a_ping(place: &Place) {
    place.streams().ping().expect("streams");
    place.stores.metadata().expect("opens").ping().expect("metadata");
    place.stores.connections().expect("opens").ping().expect("connections");
    place.stores.replicas().expect("opens").ping().expect("replicas");
}
