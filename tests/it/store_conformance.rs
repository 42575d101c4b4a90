//! One suite for every store: what holds on SQLite on disk holds in memory and on PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use towpath::state::batch::Merge;
use towpath::state::connection::{self, Kind as ConnectionKind, Record};
use towpath::state::metadata::{Entry, Key};
use towpath::state::stream::{Fold, LeaseHash, OnLost, Status};
use towpath::state::time::Wall;
use towpath::store::connections::{ConnectionQuery, Count, Cursor, DeadLetter};
use towpath::store::metadata::{AgentRow, KeyRow, Sight};
use towpath::store::replicas::{Beat, RelayKey, ReplicaRow};
use towpath::store::sqlite::SqliteStores;
use towpath::store::streams::*;
use towpath::store::{Class, Identity, Labels, Stores};
use uuid::Uuid;

/// A store under test, and its time.
struct Place {
    stores: Box<dyn Stores>,
    time: Time,
    in_groups: bool,
    _directory: Option<tempfile::TempDir>,
}

enum Time {
    /// SQLite asks a number that tests move.
    Set(Arc<AtomicI64>),
    /// PostgreSQL has a clock of its own, and a function that tests replace.
    #[cfg(feature = "postgres")]
    Shifted { url: String, by: AtomicI64 },
}

/// Who a new store is.
pub(crate) fn fresh() -> Identity {
    Identity { store: Uuid::new_v4(), epoch: Uuid::new_v4() }
}

/// A clock that stands still until it is moved.
pub(crate) fn clock_at(micros: &Arc<AtomicI64>) -> towpath::store::sqlite::Clock {
    let micros = micros.clone();
    Arc::new(move || Wall(micros.load(Ordering::Relaxed)))
}

const START: i64 = 1_767_225_600_000_000;

impl Place {
    fn on_disk() -> Option<Place> {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let time = Arc::new(AtomicI64::new(START));
        let stores = SqliteStores::open(directory.path(), clock_at(&time), fresh()).expect("opens");
        Some(Place {
            stores: Box::new(stores),
            time: Time::Set(time),
            in_groups: false,
            _directory: Some(directory),
        })
    }

    /// The same, where each append is a group of its own: it is written ahead.
    fn in_groups() -> Option<Place> {
        Some(Place { in_groups: true, ..Place::on_disk()? })
    }

    fn in_memory() -> Option<Place> {
        let time = Arc::new(AtomicI64::new(START));
        let stores = SqliteStores::in_memory(clock_at(&time), fresh()).expect("opens");
        Some(Place { stores: Box::new(stores), time: Time::Set(time), in_groups: false, _directory: None })
    }

    #[cfg(feature = "postgres")]
    fn on_postgres() -> Option<Place> {
        use towpath::store::postgres::{Options, PostgresStores};
        let url = crate::cluster::database()?;
        let stores = PostgresStores::connect(&url, Options::default(), fresh()).expect("connects");
        let time = Time::Shifted { url, by: AtomicI64::new(0) };
        Some(Place { stores: Box::new(stores), time, in_groups: false, _directory: None })
    }

    #[cfg(not(feature = "postgres"))]
    fn on_postgres() -> Option<Place> {
        None
    }

    /// Lets time pass in the store.
    fn advance(&self, duration: Duration) {
        let micros = i64::try_from(duration.as_micros()).expect("short");
        match &self.time {
            Time::Set(time) => {
                time.fetch_add(micros, Ordering::Relaxed);
            }
            #[cfg(feature = "postgres")]
            Time::Shifted { url, by } => {
                let by = by.fetch_add(micros, Ordering::Relaxed) + micros;
                let mut client = postgres::Client::connect(url, postgres::NoTls).expect("it runs");
                client
                    .batch_execute(&format!(
                        "CREATE OR REPLACE FUNCTION towpath_now() RETURNS timestamptz LANGUAGE plpgsql STABLE AS \
                         'BEGIN RETURN clock_timestamp() + {by} * interval ''1 microsecond''; END'"
                    ))
                    .expect("the clock is shifted");
            }
        }
    }

    fn streams(&self) -> Box<dyn StreamStore> {
        let store = self.stores.streams().expect("opens");
        if self.in_groups { Box::new(crate::store_ahead::InGroups(store)) } else { store }
    }
}

/// Makes each check a test of each store.
macro_rules! on_every_store {
    ($($check:ident)*) => {
        mod on_disk { $(#[test] fn $check() { super::$check(&super::Place::on_disk().expect("opens")); })* }
        mod on_disk_in_groups { $(#[test] fn $check() { super::$check(&super::Place::in_groups().expect("opens")); })* }
        mod in_memory { $(#[test] fn $check() { super::$check(&super::Place::in_memory().expect("opens")); })* }
        mod on_postgres {
            $(#[test] fn $check() {
                if let Some(place) = super::Place::on_postgres() { super::$check(&place); }
            })*
        }
    };
}

on_every_store! {
    a_stream_is_made_once_and_found_by_name_and_by_id
    a_stream_made_again_is_compared_with_what_is_there
    each_message_takes_an_id_and_a_position
    pages_end_before_they_grow_too_big
    a_read_stays_at_the_position_it_began_with
    an_edit_keeps_the_place_and_makes_readers_start_again
    a_removed_message_is_not_read
    an_input_makes_a_stream_pending_and_the_oldest_is_claimed_first
    the_queue_takes_no_more_than_it_may_hold
    an_input_withdrawn_is_not_claimed
    a_second_claim_names_the_holder
    a_dead_lease_may_be_taken_over_and_its_holder_is_fenced
    a_commit_folds_the_parts_of_its_turn
    a_finished_turn_leaves_the_stream_as_its_queue_says
    interrupt_asks_a_worker_and_takes_back_what_is_pending
    the_sweep_ends_dead_leases_as_each_stream_asks
    a_replica_that_stops_hands_its_streams_back
    one_renewal_keeps_every_lease_of_a_replica
    whoever_asks_for_work_gets_what_was_pending_longest
    the_same_key_gets_the_same_answer_for_a_day
    a_producers_numbers_are_checked_in_order
    stream_seq_only_rises
    a_closed_stream_takes_nothing_more
    a_fork_has_its_sources_history_and_goes_its_own_way
    a_fork_may_cut_the_next_row
    a_fork_of_json_counts_messages
    a_deleted_source_stays_until_its_last_fork_is_gone
    a_ttl_slides_with_use_and_then_ends_the_stream
    retention_removes_the_oldest_and_remembers_where
    streams_are_listed_by_label_and_status_in_pages
    positions_tell_where_streams_stand
    a_group_in_which_a_call_fails_is_undone_or_was_none
    another_epoch_has_other_tags
    older_metadata_never_replaces_newer
    any_order_of_metadata_leaves_the_newest
    metadata_says_which_agents_changed
    metadata_that_travelled_fast_is_not_older_than_what_travelled_slowly
    update_only_makes_no_keys
    metadata_is_read_in_the_order_declared
    agents_are_found_by_prefix_in_pages
    old_metadata_is_pruned_in_bounds
    connect_and_disconnect_become_one_row
    records_without_a_connection_are_never_merged
    any_order_of_records_gives_the_same_rows
    connections_are_found_by_every_filter
    connections_come_newest_first_in_pages_that_do_not_move
    old_connections_are_pruned_oldest_first
    dead_letters_are_kept_in_order
    a_replica_that_vanished_is_there_again_with_its_next_beat
    relay_keys_rotate_and_the_last_one_still_verifies
    every_store_answers_a_ping
}

fn name(name: &str) -> Address {
    Address::Name(name.into())
}

fn make(store: &mut dyn StreamStore, name: &str) -> StreamRow {
    make_as(
        store,
        NewStream { content_type: Some("application/json".into()), ..NewStream::named(Uuid::now_v7(), name) },
    )
}

fn make_as(store: &mut dyn StreamStore, new: NewStream) -> StreamRow {
    match store.create(&new).expect("stored") {
        Created::New(row) => row,
        other => panic!("{other:?}"),
    }
}

fn json(text: &str) -> Draft {
    Draft { kind: Kind::Json, role: Some("user".into()), content: text.as_bytes().into() }
}

fn bytes(content: &[u8]) -> Draft {
    Draft { kind: Kind::Bytes, role: None, content: content.into() }
}

fn messages(drafts: impl IntoIterator<Item = Draft>) -> Append {
    Append { messages: drafts.into_iter().collect(), ..Append::default() }
}

fn say(store: &mut dyn StreamStore, at: &str, text: &str) -> Appended {
    store.append(&name(at), &messages([json(text)])).expect("stored")
}

fn all_of(store: &mut dyn StreamStore, at: &str) -> Page {
    let read = CatchUp { after: 0, upto: None, bytes_max: PAGE_BYTES };
    match store.catch_up(&name(at), read).expect("read") {
        Found::Here(page) => page,
        other => panic!("{other:?}"),
    }
}

fn texts(page: &Page) -> Vec<String> {
    page.messages.iter().map(|m| String::from_utf8_lossy(&m.content).into_owned()).collect()
}

fn state(store: &mut dyn StreamStore, at: &str) -> StreamRow {
    match store.get(&name(at)).expect("read") {
        Found::Here(row) => row,
        other => panic!("{other:?}"),
    }
}

fn claim_by(worker: Uuid) -> Claim {
    Claim { worker, lease_for: Duration::from_secs(30), lease: [7; 32], key: None }
}

fn turn(claimed: Claimed) -> TurnClaimed {
    match claimed {
        Claimed::Turn(turn) => turn,
        other => panic!("{other:?}"),
    }
}

fn fence(turn: &TurnClaimed) -> Fence {
    Fence { turn: turn.turn, lease: LeaseHash::of(&turn.lease) }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn a_stream_is_made_once_and_found_by_name_and_by_id(place: &Place) {
    let mut store = place.streams();
    let row = make(&mut *store, "chat/1");
    assert_eq!(row.state.status, Status::Idle);
    assert_eq!(store.get(&Address::Id(row.id)).expect("read"), Found::Here(row.clone()));
    assert_eq!(store.get(&name("chat/1")).expect("read"), Found::Here(row.clone()));
    assert_eq!(store.get(&name("chat/2")).expect("read"), Found::Missing);
    assert_eq!(store.delete(&name("chat/1")).expect("stored"), Deleted::Gone(row.id));
    assert_eq!(store.get(&Address::Id(row.id)).expect("read"), Found::Missing);
    assert_eq!(store.delete(&name("chat/1")).expect("stored"), Deleted::Missing);
}

fn a_stream_made_again_is_compared_with_what_is_there(place: &Place) {
    let mut store = place.streams();
    let new = NewStream {
        content_type: Some("text/plain".into()),
        labels: Some(labels(&[("team", "red")])),
        expiry: Some(Expiry::Ttl(Duration::from_secs(60))),
        on_lost: Some(OnLost::Failed),
        closed: Some(false),
        ..NewStream::named(Uuid::now_v7(), "a")
    };
    make_as(&mut *store, new.clone());
    let again = |store: &mut dyn StreamStore, new: &NewStream| {
        let new = NewStream { id: Uuid::now_v7(), ..new.clone() };
        store.create(&new).expect("stored")
    };
    assert!(matches!(again(&mut *store, &new), Created::Same(_)));
    assert!(matches!(again(&mut *store, &NewStream::named(Uuid::nil(), "a")), Created::Same(_)));
    let differing = [
        NewStream { content_type: Some("text/html".into()), ..new.clone() },
        NewStream { labels: Some(Labels::new()), ..new.clone() },
        NewStream { expiry: Some(Expiry::Never), ..new.clone() },
        NewStream { on_lost: Some(OnLost::Pending), ..new.clone() },
        NewStream { closed: Some(true), ..new },
    ];
    for new in &differing {
        assert!(matches!(again(&mut *store, new), Created::Differs(_)), "{new:?}");
    }
}

fn each_message_takes_an_id_and_a_position(place: &Place) {
    let mut store = place.streams();
    let made = make(&mut *store, "a");
    let Appended::Done { change, first, last, pos, again: false, .. } =
        store.append(&name("a"), &messages([json("1"), json("22"), json("333")])).expect("stored")
    else {
        panic!("appended")
    };
    assert_eq!((first, last, pos), (1, 3, 3));
    assert_eq!(
        (change.stream, change.tag, change.state.pos, change.state.history_pos),
        (made.id, made.tag, 3, 3)
    );
    // A status and a queue change take positions of their own; the next message comes after them.
    store.push(&name("a"), &json("input"), None, 10).expect("stored");
    let Appended::Done { change, first: 4, pos, .. } = say(&mut *store, "a", "4444") else {
        panic!("appended")
    };
    assert!(pos > 4 && change.state.queue_pos > 3 && change.state.status_pos > 3, "{change:?}");
    let page = all_of(&mut *store, "a");
    assert_eq!(texts(&page), ["1", "22", "333", "4444"]);
    assert_eq!(page.messages.iter().map(|m| m.pos).collect::<Vec<_>>(), [1, 2, 3, pos]);
    assert_eq!((page.stream.bytes, page.upto, page.more), (10, change.state.pos, false));
    assert_eq!(page.queue.len(), 1);
    assert_eq!(page.messages[0].role.as_deref(), Some("user"));
}

fn pages_end_before_they_grow_too_big(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let big = "x".repeat(100_000);
    let sizes = ["s".repeat(10), big.clone(), big.clone(), big.clone(), "y".repeat(400_000), "s".into()];
    store.append(&name("a"), &messages(sizes.iter().map(|text| json(text)))).expect("stored");
    let (mut after, mut upto, mut pages) = (0, None, Vec::new());
    loop {
        let read = CatchUp { after, upto, bytes_max: PAGE_BYTES };
        let Found::Here(page) = store.catch_up(&name("a"), read).expect("read") else { panic!("there") };
        pages.push(page.messages.iter().map(|m| m.content.len()).collect::<Vec<_>>());
        (after, upto) = (page.messages.last().expect("a page has a row").pos, Some(page.upto));
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, [vec![10, 100_000, 100_000], vec![100_000], vec![400_000], vec![1]]);
}

fn a_read_stays_at_the_position_it_began_with(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    say(&mut *store, "a", "1");
    let first = all_of(&mut *store, "a");
    say(&mut *store, "a", "2");
    let read = CatchUp { after: 0, upto: Some(first.upto), bytes_max: PAGE_BYTES };
    let Found::Here(page) = store.catch_up(&name("a"), read).expect("read") else { panic!("there") };
    assert_eq!(texts(&page), ["1"]);
    let read = CatchUp { after: first.upto, upto: None, bytes_max: PAGE_BYTES };
    let Found::Here(page) = store.catch_up(&name("a"), read).expect("read") else { panic!("there") };
    assert_eq!(texts(&page), ["2"]);
}

fn an_edit_keeps_the_place_and_makes_readers_start_again(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    store.append(&name("a"), &messages([json("one"), json("two")])).expect("stored");
    let Edited::Done(change) =
        store.edit(&name("a"), 1, &Draft { role: None, ..json("ONE!") }).expect("stored")
    else {
        panic!("edited")
    };
    assert_eq!((change.state.generation, change.state.pos), (1, 3));
    let page = all_of(&mut *store, "a");
    assert_eq!(texts(&page), ["ONE!", "two"]);
    assert_eq!((page.messages[0].id, page.messages[0].pos, page.stream.bytes), (1, 1, 7));
    assert_eq!(page.messages[0].role.as_deref(), Some("user"), "an edit without a role keeps it");
    assert_eq!(store.edit(&name("a"), 9, &json("x")).expect("stored"), Edited::NoMessage);
    assert_eq!(store.edit(&name("b"), 1, &json("x")).expect("stored"), Edited::Missing);
}

fn a_removed_message_is_not_read(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    store.append(&name("a"), &messages([json("one"), json("two")])).expect("stored");
    assert!(matches!(store.remove(&name("a"), 1).expect("stored"), Edited::Done(_)));
    assert_eq!(store.remove(&name("a"), 1).expect("stored"), Edited::NoMessage);
    let page = all_of(&mut *store, "a");
    assert_eq!((texts(&page), page.stream.bytes, page.stream.state.generation), (vec!["two".into()], 3, 1));
    let Appended::Done { first: 3, .. } = say(&mut *store, "a", "three") else { panic!("ids go on") };
}

fn an_input_makes_a_stream_pending_and_the_oldest_is_claimed_first(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    for text in ["first", "second"] {
        let Queued::Done { change, .. } = store.push(&name("a"), &json(text), None, 10).expect("stored")
        else {
            panic!("queued")
        };
        assert_eq!(change.state.status, Status::Pending);
    }
    let worker = Uuid::now_v7();
    let claimed = turn(store.claim(&name("a"), &claim_by(worker)).expect("stored"));
    let input = claimed.input.expect("the head of the queue");
    assert_eq!((claimed.turn, input.id, &input.content[..]), (1, 1, b"first".as_slice()));
    assert_eq!(claimed.change.state.status.worker(), Some(worker));
    let page = all_of(&mut *store, "a");
    assert_eq!(page.queue.iter().map(|input| input.id).collect::<Vec<_>>(), [2]);
    assert_eq!(page.stream.turn_begun_at, Some(page.stream.status_at));
}

fn the_queue_takes_no_more_than_it_may_hold(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    assert!(matches!(
        store.push(&name("a"), &json("1"), None, 1).expect("stored"),
        Queued::Done { id: 1, .. }
    ));
    assert_eq!(store.push(&name("a"), &json("2"), None, 1).expect("stored"), Queued::Full);
    assert_eq!(store.push(&name("b"), &json("2"), None, 1).expect("stored"), Queued::Missing);
}

fn an_input_withdrawn_is_not_claimed(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    store.push(&name("a"), &json("1"), None, 10).expect("stored");
    let Dequeued::Done(change) = store.withdraw(&name("a"), 1).expect("stored") else { panic!("withdrawn") };
    assert_eq!(change.state.status, Status::Idle);
    assert_eq!(store.withdraw(&name("a"), 1).expect("stored"), Dequeued::NoInput);
    let claimed = turn(store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"));
    assert_eq!(claimed.input, None);
}

fn a_second_claim_names_the_holder(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let worker = Uuid::now_v7();
    turn(store.claim(&name("a"), &claim_by(worker)).expect("stored"));
    assert_eq!(
        store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"),
        Claimed::Running { worker, turn: 1 }
    );
    assert_eq!(store.claim(&name("b"), &claim_by(worker)).expect("stored"), Claimed::Missing);
}

fn a_dead_lease_may_be_taken_over_and_its_holder_is_fenced(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let old = turn(store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"));
    place.advance(Duration::from_secs(31));
    let new = Claim { lease: [8; 32], ..claim_by(Uuid::now_v7()) };
    let new = turn(store.claim(&name("a"), &new).expect("stored"));
    assert_eq!((new.turn, new.change.state.status.worker().is_some()), (2, true));
    let late = store.commit(&name("a"), fence(&old), &json("late"), 1, None).expect("stored");
    assert_eq!(late, Committed::TurnLost);
    assert_eq!(store.finish(&name("a"), fence(&old), &End::Done).expect("stored"), Finished::TurnLost);
    // The right turn with another lease is fenced as well.
    let forged = Fence { turn: 2, lease: LeaseHash::of(&[9; 32]) };
    assert_eq!(store.commit(&name("a"), forged, &json("x"), 1, None).expect("stored"), Committed::TurnLost);
    assert!(matches!(
        store.commit(&name("a"), fence(&new), &json("mine"), 1, None).expect("stored"),
        Committed::Done { .. }
    ));
    assert_eq!(texts(&all_of(&mut *store, "a")), ["mine"]);
}

fn a_commit_folds_the_parts_of_its_turn(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let claimed = turn(store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"));
    say(&mut *store, "a", "meanwhile");
    let Committed::Done { change, message, again: false } =
        store.commit(&name("a"), fence(&claimed), &json("answer"), 12, None).expect("stored")
    else {
        panic!("committed")
    };
    assert_eq!(message.fold, Some(Fold { turn: 1, upto: 12 }));
    let page = all_of(&mut *store, "a");
    assert_eq!(page.messages.last(), Some(&message), "the room gets the row that readers get");
    assert_eq!((page.stream.turn_folded_to, message.pos), (12, change.state.pos));
    assert_eq!(texts(&page), ["meanwhile", "answer"]);
}

fn a_finished_turn_leaves_the_stream_as_its_queue_says(place: &Place) {
    let mut store = place.streams();
    let ends = [
        ("done", End::Done, 0, "done", None),
        ("failed", End::Failed("no model".into()), 0, "failed", Some("no model")),
        ("more", End::Done, 1, "pending", None),
        ("aborted", End::Aborted, 1, "idle", None),
        ("lost", End::Lost, 0, "pending", None),
        ("handed back", End::HandedBack, 0, "pending", None),
    ];
    for (at, end, waiting, status, error) in ends {
        make(&mut *store, at);
        let claimed = turn(store.claim(&name(at), &claim_by(Uuid::now_v7())).expect("stored"));
        for _ in 0..waiting {
            store.push(&name(at), &json("next"), None, 10).expect("stored");
        }
        let Finished::Done(change) = store.finish(&name(at), fence(&claimed), &end).expect("stored") else {
            panic!("{at}")
        };
        assert_eq!((change.state.status.name(), change.state.error.as_deref()), (status, error), "{at}");
        assert_eq!(state(&mut *store, at).change(), change, "{at}");
        assert_eq!(
            store.finish(&name(at), fence(&claimed), &end).expect("stored"),
            Finished::TurnLost,
            "{at}"
        );
    }
}

fn interrupt_asks_a_worker_and_takes_back_what_is_pending(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    assert!(matches!(store.interrupt(&name("a")).expect("stored"), Interrupted::Nothing(_)));
    store.push(&name("a"), &json("1"), None, 10).expect("stored");
    let Interrupted::Done(change) = store.interrupt(&name("a")).expect("stored") else { panic!("pending") };
    assert_eq!(change.state.status, Status::Idle);
    let claimed = turn(store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"));
    let Interrupted::Done(change) = store.interrupt(&name("a")).expect("stored") else { panic!("running") };
    assert_eq!(change.state.status.name(), "interrupting");
    assert!(matches!(store.interrupt(&name("a")).expect("stored"), Interrupted::Nothing(_)));
    // What it has so far may still be committed.
    assert!(matches!(
        store.commit(&name("a"), fence(&claimed), &json("so far"), 3, None).expect("stored"),
        Committed::Done { .. }
    ));
    let Finished::Done(change) = store.finish(&name("a"), fence(&claimed), &End::Aborted).expect("stored")
    else {
        panic!("acknowledged")
    };
    assert_eq!(change.state.status, Status::Idle);
}

fn the_sweep_ends_dead_leases_as_each_stream_asks(place: &Place) {
    let mut store = place.streams();
    for (at, on_lost) in [("again", OnLost::Pending), ("fail", OnLost::Failed), ("stop", OnLost::Pending)] {
        make_as(&mut *store, NewStream { on_lost: Some(on_lost), ..NewStream::named(Uuid::now_v7(), at) });
        turn(store.claim(&name(at), &claim_by(Uuid::now_v7())).expect("stored"));
    }
    store.interrupt(&name("stop")).expect("stored");
    assert_eq!(store.sweep(Sweep::Dead, 10).expect("stored"), []);
    place.advance(Duration::from_secs(31));
    assert_eq!(store.sweep(Sweep::Dead, 2).expect("stored").len(), 2, "bounded");
    assert_eq!(store.sweep(Sweep::Dead, 10).expect("stored").len(), 1);
    assert_eq!(store.sweep(Sweep::Dead, 10).expect("stored"), []);
    assert_eq!(state(&mut *store, "again").state.status, Status::Pending);
    assert_eq!(state(&mut *store, "stop").state.status, Status::Idle);
    let failed = state(&mut *store, "fail").state;
    assert_eq!((failed.status, failed.error.as_deref()), (Status::Failed, Some("producer_lost")));
}

fn a_replica_that_stops_hands_its_streams_back(place: &Place) {
    let mut store = place.streams();
    let (mine, theirs) = (Uuid::now_v7(), Uuid::now_v7());
    for (at, worker) in [("a", mine), ("b", theirs), ("c", mine)] {
        make(&mut *store, at);
        turn(store.claim(&name(at), &claim_by(worker)).expect("stored"));
    }
    let changes = store.sweep(Sweep::HandBack(mine), 10).expect("stored");
    assert_eq!(changes.iter().map(|c| c.state.status).collect::<Vec<_>>(), [Status::Pending; 2]);
    assert_eq!(state(&mut *store, "b").state.status.worker(), Some(theirs));
}

fn one_renewal_keeps_every_lease_of_a_replica(place: &Place) {
    let mut store = place.streams();
    let worker = Uuid::now_v7();
    let mut ids = Vec::new();
    for at in ["a", "b", "c"] {
        ids.push(make(&mut *store, at).id);
        turn(store.claim(&name(at), &claim_by(worker)).expect("stored"));
    }
    store.interrupt(&name("c")).expect("stored");
    place.advance(Duration::from_secs(20));
    let mut held = store.renew(worker, Duration::from_secs(30)).expect("stored");
    held.sort_by_key(|held| held.stream);
    assert_eq!(held.iter().map(|held| held.stream).collect::<Vec<_>>(), ids);
    assert_eq!(held.iter().map(|held| held.interrupting).collect::<Vec<_>>(), [false, false, true]);
    place.advance(Duration::from_secs(20));
    assert_eq!(store.sweep(Sweep::Dead, 10).expect("stored"), []);
    assert_eq!(store.renew(Uuid::now_v7(), Duration::from_secs(30)).expect("stored"), []);
}

fn whoever_asks_for_work_gets_what_was_pending_longest(place: &Place) {
    let mut store = place.streams();
    for (at, team) in [("r1", "red"), ("b1", "blue"), ("r2", "red")] {
        let new = NewStream {
            labels: Some(labels(&[("team", team), ("kind", "chat")])),
            ..NewStream::named(Uuid::now_v7(), at)
        };
        make_as(&mut *store, new);
    }
    for at in ["r2", "b1", "r1"] {
        store.push(&name(at), &json(at), None, 10).expect("stored");
        place.advance(Duration::from_millis(5));
    }
    let red = labels(&[("team", "red")]);
    let claim = claim_by(Uuid::now_v7());
    let first = turn(store.claim_next(&red, &claim).expect("stored"));
    assert_eq!((first.name.as_str(), first.input.map(|i| i.content.to_vec())), ("r2", Some(b"r2".to_vec())));
    assert_eq!(turn(store.claim_next(&red, &claim).expect("stored")).name, "r1");
    assert_eq!(store.claim_next(&red, &claim).expect("stored"), Claimed::Missing);
    assert_eq!(turn(store.claim_next(&Labels::new(), &claim).expect("stored")).name, "b1");
}

fn the_same_key_gets_the_same_answer_for_a_day(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let keyed = Append { key: Some("k".into()), ..messages([json("once")]) };
    let Appended::Done { first: 1, pos: 1, again: false, .. } =
        store.append(&name("a"), &keyed).expect("stored")
    else {
        panic!("appended")
    };
    let Appended::Done { first: 1, pos: 1, again: true, .. } =
        store.append(&name("a"), &keyed).expect("stored")
    else {
        panic!("remembered")
    };
    for again in [false, true] {
        let pushed = store.push(&name("a"), &json("in"), Some("k"), 1).expect("stored");
        assert!(matches!(pushed, Queued::Done { id: 1, again: a, .. } if a == again), "{pushed:?}");
    }
    let claim = Claim { key: Some("k".into()), ..claim_by(Uuid::now_v7()) };
    let first = turn(store.claim(&name("a"), &claim).expect("stored"));
    // The one who asks again has drawn another lease, and gets the first.
    let second = turn(store.claim(&name("a"), &Claim { lease: [1; 32], ..claim }).expect("stored"));
    assert_eq!((second.turn, second.lease, second.again), (first.turn, first.lease, true));
    assert_eq!(second.input, first.input);
    for again in [false, true] {
        let done = store.commit(&name("a"), fence(&first), &json("answer"), 2, Some("k")).expect("stored");
        assert!(
            matches!(&done, Committed::Done { message, again: a, .. } if message.id == 2 && *a == again),
            "{done:?}"
        );
    }
    make(&mut *store, "b");
    store.push(&name("b"), &json("work"), None, 1).expect("stored");
    let next = Claim { key: Some("n".into()), ..claim_by(Uuid::now_v7()) };
    let first = turn(store.claim_next(&Labels::new(), &next).expect("stored"));
    let again = turn(store.claim_next(&Labels::new(), &Claim { lease: [2; 32], ..next }).expect("stored"));
    assert_eq!((again.name.as_str(), again.lease, again.again), ("b", first.lease, true));

    assert_eq!(store.forget_keys(100).expect("stored"), 0);
    place.advance(Duration::from_secs(24 * 3_600 + 1));
    let Appended::Done { first: 3, again: false, .. } = store.append(&name("a"), &keyed).expect("stored")
    else {
        panic!("forgotten")
    };
    assert_eq!(store.forget_keys(2).expect("stored"), 2, "bounded");
    assert_eq!(store.forget_keys(100).expect("stored"), 2);
}

fn a_producers_numbers_are_checked_in_order(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let mut send = |epoch, seq, close| {
        let producer = Some(Producer { id: "p".into(), epoch, seq });
        let append = Append { producer, close, ..messages([json(&format!("{epoch}-{seq}"))]) };
        store.append(&name("a"), &append).expect("stored")
    };
    assert_eq!(send(0, 3, false), Appended::Gap { expected: 0 }, "a producer begins at 0");
    assert!(matches!(send(0, 0, false), Appended::Done { .. }));
    assert!(matches!(send(0, 1, false), Appended::Done { .. }));
    assert!(matches!(send(0, 0, false), Appended::Duplicate { seq: 1, .. }));
    assert_eq!(send(0, 3, false), Appended::Gap { expected: 2 });
    assert_eq!(send(1, 1, false), Appended::EpochNotAtZero);
    assert!(matches!(send(1, 0, false), Appended::Done { .. }));
    assert_eq!(send(0, 2, false), Appended::StaleEpoch(1));
    assert!(matches!(send(1, 1, true), Appended::Done { change, .. } if change.state.closed_pos.is_some()));
    // Closed comes after what is known to be stale or sent before, and before a gap.
    assert_eq!(send(0, 2, false), Appended::StaleEpoch(1));
    assert!(matches!(send(1, 1, true), Appended::Duplicate { seq: 1, .. }));
    assert!(matches!(send(1, 2, false), Appended::Closed(_)));
    assert!(matches!(send(1, 9, false), Appended::Closed(_)));
    assert_eq!(texts(&all_of(&mut *store, "a")), ["0-0", "0-1", "1-0", "1-1"]);
}

fn stream_seq_only_rises(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let mut send = |seq: &str| {
        let append = Append { stream_seq: Some(seq.into()), ..messages([json("1")]) };
        store.append(&name("a"), &append).expect("stored")
    };
    assert!(matches!(send("10"), Appended::Done { .. }));
    assert_eq!(send("10"), Appended::SeqRegressed("10".into()));
    assert!(matches!(send("9"), Appended::Done { .. }), "texts compare byte by byte");
    assert_eq!(send("80"), Appended::SeqRegressed("9".into()));
}

fn a_closed_stream_takes_nothing_more(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let close = Append { close: true, ..messages([json("last")]) };
    let Appended::Done { change, last: 1, .. } = store.append(&name("a"), &close).expect("stored") else {
        panic!("closed")
    };
    assert_eq!((change.state.history_pos, change.state.closed_pos), (1, Some(2)));
    assert!(matches!(say(&mut *store, "a", "more"), Appended::Closed(_)));
    let close = Append { close: true, ..Append::default() };
    assert!(matches!(store.append(&name("a"), &close).expect("stored"), Appended::Done { again: true, .. }));
    assert!(matches!(store.push(&name("a"), &json("1"), None, 9).expect("stored"), Queued::Closed(_)));
    assert!(matches!(
        store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"),
        Claimed::Closed(_)
    ));
    let typed = Append { content_type: Some("text/plain".into()), ..messages([json("1")]) };
    make(&mut *store, "b");
    assert_eq!(
        store.append(&name("b"), &typed).expect("stored"),
        Appended::OtherType("application/json".into())
    );
    let made =
        NewStream { closed: Some(true), first: vec![json("all")], ..NewStream::named(Uuid::now_v7(), "c") };
    assert!(make_as(&mut *store, made).state.closed_pos.is_some());
}

fn fork(source: &str, at: Option<ForkAt>, beyond: u64) -> Option<NewFork> {
    Some(NewFork { source: name(source), at, beyond })
}

fn a_fork_has_its_sources_history_and_goes_its_own_way(place: &Place) {
    let mut store = place.streams();
    let source = make(&mut *store, "a");
    store.append(&name("a"), &messages([json("1"), json("2"), json("3")])).expect("stored");
    let at = Some(ForkAt::Pos { tag: source.tag, generation: 0, pos: 2 });
    let new = NewStream { fork: fork("a", at, 0), ..NewStream::named(Uuid::now_v7(), "f") };
    let forked = make_as(&mut *store, new.clone());
    assert_eq!((forked.tag, forked.content_type.as_str()), (source.tag, "application/json"));
    assert_eq!((forked.state.pos, forked.state.history_pos, forked.state.last_msg), (2, 2, 2));
    assert_eq!(forked.forked_from, Some(ForkedFrom { source: source.id, pos: 2, beyond: 0 }));
    assert!(matches!(
        store.create(&NewStream { id: Uuid::now_v7(), ..new }).expect("stored"),
        Created::Same(_)
    ));
    say(&mut *store, "f", "own");
    store.edit(&name("a"), 1, &json("changed")).expect("stored");
    assert_eq!(texts(&all_of(&mut *store, "f")), ["1", "2", "own"]);
    assert_eq!(texts(&all_of(&mut *store, "a")), ["changed", "2", "3"]);
    assert_eq!(state(&mut *store, "f").bytes, 5);

    let refused = |store: &mut dyn StreamStore, source: &str, at| {
        let new = NewStream { fork: fork(source, at, 0), ..NewStream::named(Uuid::now_v7(), "g") };
        store.create(&new).expect("stored")
    };
    let pos = |tag, generation, pos| Some(ForkAt::Pos { tag, generation, pos });
    assert_eq!(refused(&mut *store, "nobody", None), Created::NoSource);
    assert_eq!(refused(&mut *store, "a", pos(source.tag, 1, 99)), Created::BadForkOffset);
    assert_eq!(refused(&mut *store, "a", pos([0; 4], 1, 1)), Created::BadForkOffset);
    assert_eq!(refused(&mut *store, "a", pos(source.tag, 0, 1)), Created::ForkTrimmed, "before the edit");
    let typed = NewStream {
        content_type: Some("text/plain".into()),
        fork: fork("a", None, 0),
        ..NewStream::named(Uuid::now_v7(), "g")
    };
    assert_eq!(store.create(&typed).expect("stored"), Created::OtherType("application/json".into()));
    let empty =
        NewStream { fork: fork("a", Some(ForkAt::Start), 0), ..NewStream::named(Uuid::now_v7(), "e") };
    assert_eq!(make_as(&mut *store, empty).state.history_pos, 0);
}

fn a_fork_may_cut_the_next_row(place: &Place) {
    let mut store = place.streams();
    make_as(&mut *store, NewStream::named(Uuid::now_v7(), "a"));
    store.append(&name("a"), &messages([bytes(b"hello "), bytes(b"world")])).expect("stored");
    let tag = state(&mut *store, "a").tag;
    let at = Some(ForkAt::Pos { tag, generation: 0, pos: 1 });
    for (beyond, name, expected) in [(3, "cut", "hello wor"), (5, "whole", "hello world")] {
        let row = make_as(
            &mut *store,
            NewStream { fork: fork("a", at, beyond), ..NewStream::named(Uuid::now_v7(), name) },
        );
        assert_eq!(texts(&all_of(&mut *store, name)).concat(), expected);
        assert_eq!(row.state.history_pos, 2);
    }
    for (at, beyond) in [(at, 6), (None, 1)] {
        let new = NewStream { fork: fork("a", at, beyond), ..NewStream::named(Uuid::now_v7(), "x") };
        assert_eq!(store.create(&new).expect("stored"), Created::BadForkOffset);
    }
}

fn a_fork_of_json_counts_messages(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    store.append(&name("a"), &messages(["1", "2", "3", "4"].map(json))).expect("stored");
    let tag = state(&mut *store, "a").tag;
    let at = Some(ForkAt::Pos { tag, generation: 0, pos: 1 });
    make_as(&mut *store, NewStream { fork: fork("a", at, 2), ..NewStream::named(Uuid::now_v7(), "f") });
    assert_eq!(texts(&all_of(&mut *store, "f")), ["1", "2", "3"]);
    let new = NewStream { fork: fork("a", at, 4), ..NewStream::named(Uuid::now_v7(), "x") };
    assert_eq!(store.create(&new).expect("stored"), Created::BadForkOffset);
}

fn a_deleted_source_stays_until_its_last_fork_is_gone(place: &Place) {
    let mut store = place.streams();
    let root = make(&mut *store, "root");
    say(&mut *store, "root", "1");
    let middle = make_as(
        &mut *store,
        NewStream { fork: fork("root", None, 0), ..NewStream::named(Uuid::now_v7(), "middle") },
    );
    let leaf = make_as(
        &mut *store,
        NewStream { fork: fork("middle", None, 0), ..NewStream::named(Uuid::now_v7(), "leaf") },
    );
    assert_eq!(store.delete(&name("root")).expect("stored"), Deleted::Kept(root.id));
    assert_eq!(store.delete(&name("root")).expect("stored"), Deleted::Already);
    assert_eq!(store.get(&name("root")).expect("read"), Found::Gone);
    assert_eq!(say(&mut *store, "root", "2"), Appended::Gone);
    assert_eq!(store.create(&NewStream::named(Uuid::now_v7(), "root")).expect("stored"), Created::Kept);
    let new = NewStream { fork: fork("root", None, 0), ..NewStream::named(Uuid::now_v7(), "late") };
    assert_eq!(store.create(&new).expect("stored"), Created::SourceGone);
    assert_eq!(store.delete(&name("middle")).expect("stored"), Deleted::Kept(middle.id));
    assert_eq!(texts(&all_of(&mut *store, "leaf")), ["1"]);
    assert_eq!(store.delete(&name("leaf")).expect("stored"), Deleted::Gone(leaf.id));
    for at in ["root", "middle", "leaf"] {
        assert_eq!(store.get(&name(at)).expect("read"), Found::Missing, "{at}");
        make(&mut *store, at);
    }
}

fn a_ttl_slides_with_use_and_then_ends_the_stream(place: &Place) {
    let mut store = place.streams();
    let ttl = |at: &str| NewStream {
        expiry: Some(Expiry::Ttl(Duration::from_secs(100))),
        ..NewStream::named(Uuid::now_v7(), at)
    };
    let row = make_as(&mut *store, ttl("a"));
    let fixed = row.created_at + Duration::from_secs(200);
    let other = make_as(
        &mut *store,
        NewStream { expiry: Some(Expiry::At(fixed)), ..NewStream::named(Uuid::now_v7(), "fixed") },
    );
    // Too little to be worth a write.
    place.advance(Duration::from_secs(5));
    store.touch(&[row.id, other.id]).expect("stored");
    assert_eq!(state(&mut *store, "a").expires_at, row.expires_at);
    place.advance(Duration::from_secs(65));
    store.touch(&[row.id, other.id]).expect("stored");
    assert!(state(&mut *store, "a").expires_at > row.expires_at);
    assert_eq!(state(&mut *store, "fixed").expires_at, Some(fixed), "a fixed end never slides");
    place.advance(Duration::from_secs(90));
    say(&mut *store, "a", "an append slides it as well");
    place.advance(Duration::from_secs(90));
    assert_eq!(store.get(&name("fixed")).expect("read"), Found::Missing);
    state(&mut *store, "a");
    place.advance(Duration::from_secs(20));
    assert_eq!(store.get(&name("a")).expect("read"), Found::Missing);
    assert_eq!(say(&mut *store, "a", "too late"), Appended::Missing);
    assert_eq!(store.list(&ListStreams { limit: 10, ..ListStreams::default() }).expect("read"), []);
    // The name is free again before anyone swept it.
    make_as(&mut *store, ttl("a"));
    assert_eq!(store.expire(10).expect("stored"), [other.id]);
    assert_eq!(store.expire(10).expect("stored"), Vec::<Uuid>::new());
}

fn retention_removes_the_oldest_and_remembers_where(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "old");
    let own = Keep { bytes: Some(6), ..Keep::default() };
    make_as(
        &mut *store,
        NewStream {
            keep: own,
            content_type: Some("application/json".into()),
            ..NewStream::named(Uuid::now_v7(), "full")
        },
    );
    say(&mut *store, "old", "1");
    place.advance(Duration::from_secs(50));
    say(&mut *store, "old", "2");
    store.append(&name("full"), &messages(["aaa", "bbb", "ccc"].map(json))).expect("stored");
    place.advance(Duration::from_secs(20));
    let keep = Keep { age: Some(Duration::from_secs(60)), bytes: None };
    let changes = store.trim(keep, 10).expect("stored");
    assert_eq!(changes.iter().map(|c| c.state.trimmed_pos).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(texts(&all_of(&mut *store, "old")), ["2"]);
    assert_eq!(texts(&all_of(&mut *store, "full")), ["bbb", "ccc"]);
    let row = state(&mut *store, "full");
    assert_eq!((row.bytes, row.state.trimmed_pos, row.state.pos), (6, 1, 3));
    assert_eq!(store.trim(keep, 10).expect("stored"), []);
    let early = Some(ForkAt::Pos { tag: row.tag, generation: 0, pos: 0 });
    let new = NewStream { fork: fork("full", early, 0), ..NewStream::named(Uuid::now_v7(), "f") };
    assert!(matches!(store.create(&new).expect("stored"), Created::New(_)), "the beginning is always there");
}

fn streams_are_listed_by_label_and_status_in_pages(place: &Place) {
    let mut store = place.streams();
    for i in 0..5 {
        let new = NewStream {
            labels: Some(labels(&[("even", if i % 2 == 0 { "yes" } else { "no" })])),
            ..NewStream::named(Uuid::now_v7(), format!("s{i}"))
        };
        make_as(&mut *store, new);
    }
    store.push(&name("s4"), &json("1"), None, 1).expect("stored");
    let mut names = |list: ListStreams| {
        store.list(&list).expect("read").into_iter().map(|row| (row.name, row.id)).collect::<Vec<_>>()
    };
    let first = names(ListStreams { limit: 2, ..ListStreams::default() });
    assert_eq!(first.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["s0", "s1"]);
    let rest = names(ListStreams { after: Some(first[1].1), limit: 10, ..ListStreams::default() });
    assert_eq!(rest.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["s2", "s3", "s4"]);
    let even = labels(&[("even", "yes")]);
    let even = names(ListStreams {
        labels: even,
        status: vec!["idle", "done"],
        limit: 10,
        ..ListStreams::default()
    });
    assert_eq!(even.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["s0", "s2"]);
    assert_eq!(names(ListStreams { status: vec!["pending"], limit: 10, ..ListStreams::default() }).len(), 1);
}

fn positions_tell_where_streams_stand(place: &Place) {
    let mut store = place.streams();
    let mut ids = Vec::new();
    for i in 0..70 {
        ids.push(make(&mut *store, &format!("s{i}")).id);
    }
    say(&mut *store, "s3", "1");
    ids.push(Uuid::now_v7());
    let mut changes = store.positions(&ids).expect("read");
    changes.sort_by_key(|change| change.stream);
    assert_eq!(changes.iter().map(|change| change.stream).collect::<Vec<_>>(), ids[..70]);
    assert_eq!(changes[3], state(&mut *store, "s3").change());
    assert_eq!(changes[4].state.pos, 0);
}

fn a_group_in_which_a_call_fails_is_undone_or_was_none(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let taken = make(&mut *store, "b").id;
    let mut outcomes = Vec::new();
    let fate = store
        .group(&mut |store| {
            outcomes.push(say(store, "a", "1"));
            outcomes.push(say(store, "a", "2"));
            assert_eq!(texts(&all_of(store, "a")), ["1", "2"]);
        })
        .expect("committed");
    assert_eq!(fate, Grouped::Durable);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Appended::Done { .. })));
    let mut other = place.streams();
    assert_eq!(texts(&all_of(&mut *other, "a")), ["1", "2"]);

    let fate = store
        .group(&mut |store| {
            say(store, "a", "3");
            // The id is taken: the database refuses the row.
            let failed = store.create(&NewStream::named(taken, "c"));
            assert_eq!(failed.expect_err("a double id").class, Class::Split);
            // Where the group is lost, what comes behind in it is not even tried.
            let behind = store.append(&name("a"), &Append::default());
            assert!(behind.is_ok() || behind.is_err_and(|error| error.code == "undone"));
        })
        .expect("ended");
    match fate {
        Grouped::Undone => assert_eq!(texts(&all_of(&mut *other, "a")), ["1", "2"]),
        Grouped::Durable => assert_eq!(texts(&all_of(&mut *other, "a")), ["1", "2", "3"]),
    }
    assert_eq!(other.get(&name("c")).expect("read"), Found::Missing);
    // And the store goes on.
    say(&mut *store, "a", "4");
    assert_eq!(texts(&all_of(&mut *other, "a")).last().map(String::as_str), Some("4"));
}

fn another_epoch_has_other_tags(place: &Place) {
    let mut store = place.streams();
    let (a, b) = (make(&mut *store, "a"), make(&mut *store, "b"));
    assert_ne!(a.tag, b.tag);
    assert_eq!(state(&mut *place.streams(), "a").tag, a.tag);
    assert_eq!(place.stores.identity(), place.stores.identity());
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

fn record(id: u128, time: i64, status: connection::Status, connection: Option<u128>) -> Record {
    let mut record = Record::new(Uuid::from_u128(id), Wall(time), ConnectionKind::Ssh, status);
    record.connection_id = connection.map(Uuid::from_u128);
    record
}

use connection::Status::{Connected, Disconnected};

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

/// A small generator, so that a failure names a number that repeats it.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
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
