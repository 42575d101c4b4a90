//! Appends that are written ahead of the tables, which groups on disk are: nobody can tell, whatever comes between.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use towpath::state::stream::Status;
use towpath::store::sqlite::SqliteStores;
use towpath::store::streams::*;
use towpath::store::{Class, Identity, Labels, Store, StoreError, Stores, StreamStore};
use uuid::Uuid;

use crate::store_conformance::{clock_at, fresh};

/// A store whose appends are groups of their own, as a writer's are.
pub(crate) struct InGroups(pub(crate) Box<dyn StreamStore>);

impl Store for InGroups {
    fn ping(&mut self) -> Result<(), StoreError> {
        self.0.ping()
    }
}

/// Hands calls on as they are.
macro_rules! handed_on {
    ($(fn $name:ident(&mut self $(, $arg:ident: $type:ty)*) -> $answer:ty;)*) => {
        impl StreamStore for InGroups {
            fn append(&mut self, at: &Address, append: &Append) -> Result<Appended, StoreError> {
                let mut outcome = None;
                let fate = self.0.group(&mut |store| outcome = Some(store.append(at, append)))?;
                assert_eq!(fate, Grouped::Durable);
                outcome.expect("it was asked")
            }

            fn is_ahead(&self) -> bool {
                self.0.is_ahead()
            }

            fn settle(&mut self) -> Result<(), StoreError> {
                self.0.settle()
            }

            $(fn $name(&mut self $(, $arg: $type)*) -> Result<$answer, StoreError> {
                self.0.$name($($arg),*)
            })*
        }
    };
}

handed_on! {
    fn create(&mut self, new: &NewStream) -> Created;
    fn delete(&mut self, at: &Address) -> Deleted;
    fn list(&mut self, list: &ListStreams) -> Vec<StreamRow>;
    fn get(&mut self, at: &Address) -> Found<StreamRow>;
    fn catch_up(&mut self, at: &Address, read: CatchUp) -> Found<Page>;
    fn positions(&mut self, streams: &[Uuid]) -> Vec<Change>;
    fn edit(&mut self, at: &Address, message: u64, draft: &Draft) -> Edited;
    fn remove(&mut self, at: &Address, message: u64) -> Edited;
    fn push(&mut self, at: &Address, input: &Draft, key: Option<&str>, most: usize) -> Queued;
    fn withdraw(&mut self, at: &Address, input: u64) -> Dequeued;
    fn claim(&mut self, at: &Address, claim: &Claim) -> Claimed;
    fn claim_next(&mut self, labels: &Labels, claim: &Claim) -> Claimed;
    fn renew(&mut self, worker: Uuid, lease_for: Duration) -> Vec<Held>;
    fn commit(&mut self, at: &Address, fence: Fence, message: &Draft, folded_to: u32, key: Option<&str>) -> Committed;
    fn finish(&mut self, at: &Address, fence: Fence, end: &End) -> Finished;
    fn interrupt(&mut self, at: &Address) -> Interrupted;
    fn sweep(&mut self, which: Sweep, limit: usize) -> Vec<Change>;
    fn touch(&mut self, streams: &[Uuid]) -> ();
    fn expire(&mut self, limit: usize) -> Vec<Uuid>;
    fn trim(&mut self, keep: Keep, limit: usize) -> Vec<Change>;
    fn forget_keys(&mut self, limit: usize) -> u64;
    fn group(&mut self, work: &mut dyn FnMut(&mut dyn StreamStore)) -> Grouped;
}

fn open(path: &Path) -> SqliteStores {
    SqliteStores::open(path, clock_at(&Arc::new(AtomicI64::new(1_000_000))), fresh()).expect("opens")
}

fn name(name: &str) -> Address {
    Address::Name(name.into())
}

fn make(store: &mut dyn StreamStore, name: &str) -> Uuid {
    let id = Uuid::now_v7();
    let made = store.create(&NewStream::named(id, name)).expect("stored");
    assert!(matches!(made, Created::New(_)), "{made:?}");
    id
}

fn said(text: &str) -> Append {
    let draft = Draft { kind: Kind::Bytes, role: None, content: text.as_bytes().into() };
    Append { messages: vec![draft], ..Append::default() }
}

fn page(store: &mut dyn StreamStore, at: &str) -> Page {
    match store.catch_up(&name(at), CatchUp { after: 0, upto: None, bytes_max: 1 << 20 }).expect("read") {
        Found::Here(page) => page,
        other => panic!("{at}: {other:?}"),
    }
}

fn texts(store: &mut dyn StreamStore, at: &str) -> Vec<String> {
    let text = |message: &MessageRow| String::from_utf8(message.content.to_vec()).expect("text");
    page(store, at).messages.iter().map(text).collect()
}

/// How many messages the tables have, whatever waits.
fn in_tables(path: &Path) -> i64 {
    let file = rusqlite::Connection::open(path.join("streams.db")).expect("opens");
    file.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).expect("counted")
}

#[test]
fn a_group_of_appends_is_seen_by_all_before_the_tables_have_it_and_outlives_the_process() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let stores = open(directory.path());
    let (mut store, mut other) = (stores.streams().expect("opens"), stores.streams().expect("opens"));
    let (a, b) = (make(&mut *store, "a"), make(&mut *store, "b"));
    let fate = store.group(&mut |store| {
        for n in 1..=3 {
            let done = store.append(&name("a"), &said(&format!("a{n}"))).expect("appended");
            assert!(matches!(done, Appended::Done { first, pos, .. } if (first, pos) == (n, n)), "{done:?}");
        }
        store.append(&Address::Id(b), &said("b1")).expect("appended");
    });
    assert_eq!(fate.expect("logged"), Grouped::Durable);
    assert_eq!(in_tables(directory.path()), 0, "they wait");
    assert!(store.is_ahead() && other.is_ahead());
    let all = ["a1", "a2", "a3"];
    let check = |store: &mut dyn StreamStore| {
        assert_eq!(texts(store, "a"), all);
        assert_eq!(texts(store, "b"), ["b1"]);
        let Found::Here(row) = store.get(&Address::Id(a)).expect("read") else { panic!("it is there") };
        assert_eq!((row.state.pos, row.state.history_pos, row.state.last_msg, row.bytes), (3, 3, 3, 6));
        assert_eq!(row.oldest_at, Some(row.updated_at));
        let listed = store.list(&ListStreams { limit: 9, ..ListStreams::default() }).expect("read");
        assert!(listed.contains(&row), "{listed:?}");
        let mut known = store.positions(&[a, b]).expect("read");
        known.sort_by_key(|change| change.stream);
        assert_eq!(known.iter().map(|change| change.state.pos).collect::<Vec<_>>(), [3, 1]);
    };
    check(&mut *store);
    check(&mut *other);
    // As a kill would leave it: nobody gets to put anything away.
    drop((store, other, stores));
    assert_eq!(in_tables(directory.path()), 0);
    let stores = open(directory.path());
    assert_eq!(in_tables(directory.path()), 4, "a start brings what an earlier run left");
    check(&mut *stores.streams().expect("opens"));
}

#[test]
fn pages_go_from_the_tables_on_into_what_waits() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let stores = open(directory.path());
    let mut store = InGroups(stores.streams().expect("opens"));
    make(&mut store, "a");
    for n in 0..4 {
        store.append(&name("a"), &said(&format!("{n}...."))).expect("appended");
        if n == 1 {
            store.settle().expect("settled");
        }
    }
    assert_eq!(in_tables(directory.path()), 2);
    let mut read = |after, upto, bytes_max| {
        let Found::Here(page) = store.catch_up(&name("a"), CatchUp { after, upto, bytes_max }).expect("read")
        else {
            panic!("it is there")
        };
        (page.messages.iter().map(|message| message.pos).collect::<Vec<_>>(), page.more, page.upto)
    };
    assert_eq!(read(0, None, 100), (vec![1, 2, 3, 4], false, 4));
    assert_eq!(read(0, None, 15), (vec![1, 2, 3], true, 4));
    assert_eq!(read(0, None, 14), (vec![1, 2], true, 4));
    assert_eq!(read(0, None, 1), (vec![1], true, 4));
    assert_eq!(read(2, None, 1), (vec![3], true, 4), "one is always given");
    assert_eq!(read(3, None, 1), (vec![4], false, 4));
    assert_eq!(read(0, Some(3), 100), (vec![1, 2, 3], false, 3), "a read stays where it began");
    assert_eq!(read(4, None, 100), (vec![], false, 4));
    assert_eq!(read(0, None, 0), (vec![], true, 4));
    assert_eq!(read(i64::MAX as u64, None, 100), (vec![], false, 4));
}

#[test]
fn whatever_else_is_written_comes_after_what_waits() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let stores = open(directory.path());
    let mut store = InGroups(stores.streams().expect("opens"));
    // Another connection: what the first remembers of streams is wrong after each of these.
    let mut other = stores.streams().expect("opens");
    make(&mut store, "a");
    store.append(&name("a"), &said("1")).expect("appended");
    let edited = Draft { kind: Kind::Bytes, role: None, content: (*b"edited").into() };
    assert!(
        matches!(other.edit(&name("a"), 1, &edited).expect("stored"), Edited::Done(change) if change.state.pos == 2)
    );
    store.append(&name("a"), &said("2")).expect("appended");
    assert_eq!(texts(&mut store, "a"), ["edited", "2"]);
    let Found::Here(row) = other.get(&name("a")).expect("read") else { panic!("it is there") };
    assert_eq!((row.state.generation, row.state.pos, row.state.last_msg), (1, 3, 2));

    let worker = Uuid::now_v7();
    let claim = Claim { worker, lease_for: Duration::from_secs(60), lease: [1; 32], key: None };
    assert!(matches!(other.claim(&name("a"), &claim).expect("stored"), Claimed::Turn(_)));
    let Appended::Done { change, pos, .. } = store.append(&name("a"), &said("3")).expect("appended") else {
        panic!("it is open")
    };
    assert!(matches!(change.state.status, Status::Running(run) if run.worker == worker), "{change:?}");
    // The claim took a position as well.
    assert_eq!(pos, 5);
    // A renewal moves the lease that the answer to the next append tells.
    let renewed = other.renew(worker, Duration::from_secs(600)).expect("stored");
    let Appended::Done { change, .. } = store.append(&name("a"), &said("4")).expect("appended") else {
        panic!("it is open")
    };
    assert!(matches!(change.state.status, Status::Running(run) if run.until == renewed[0].until));

    let fork = NewFork { source: name("a"), at: None, beyond: 0 };
    let forked = NewStream { fork: Some(fork), ..NewStream::named(Uuid::now_v7(), "fork") };
    assert!(matches!(other.create(&forked).expect("stored"), Created::New(_)));
    assert_eq!(texts(&mut *other, "fork"), ["edited", "2", "3", "4"]);

    store.append(&name("a"), &said("5")).expect("appended");
    let keep = Keep { age: None, bytes: Some(2) };
    assert_eq!(other.trim(keep, 10).expect("stored").len(), 2, "what waits counts");
    assert_eq!(texts(&mut store, "a"), ["4", "5"]);

    let close = Append { close: true, ..Append::default() };
    assert!(matches!(other.append(&name("a"), &close).expect("stored"), Appended::Done { .. }));
    assert!(matches!(store.append(&name("a"), &said("6")).expect("asked"), Appended::Closed(_)));
    store.append(&name("fork"), &said("6")).expect("appended");
    assert!(matches!(other.delete(&name("fork")).expect("stored"), Deleted::Gone(_)));
    assert_eq!(store.append(&name("fork"), &said("7")).expect("asked"), Appended::Missing);
    make(&mut *other, "fork");
    store.append(&name("fork"), &said("anew")).expect("appended");
    assert_eq!(texts(&mut store, "fork"), ["anew"]);
}

#[test]
fn a_stream_that_has_run_out_takes_nothing_ahead_either() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let time = Arc::new(AtomicI64::new(1_000_000));
    let stores = SqliteStores::open(directory.path(), clock_at(&time), fresh()).expect("opens");
    let mut store = InGroups(stores.streams().expect("opens"));
    let end = towpath::state::time::Wall(5_000_000);
    let new = NewStream { expiry: Some(Expiry::At(end)), ..NewStream::named(Uuid::now_v7(), "a") };
    store.create(&new).expect("stored");
    assert!(matches!(store.append(&name("a"), &said("1")).expect("appended"), Appended::Done { .. }));
    time.store(5_000_000, Ordering::Relaxed);
    assert_eq!(store.append(&name("a"), &said("2")).expect("asked"), Appended::Missing);
    assert_eq!(store.expire(10).expect("stored").len(), 1);
}

#[test]
fn a_group_that_fails_leaves_nothing_ahead() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let stores = open(directory.path());
    let mut store = stores.streams().expect("opens");
    let taken = make(&mut *store, "a");
    make(&mut *store, "b");
    for fails_first in [true, false] {
        let fate = store.group(&mut |store| {
            let fail = |store: &mut dyn StreamStore| {
                // The id is taken: the database refuses the row.
                let failed = store.create(&NewStream::named(taken, "c"));
                assert_eq!(failed.expect_err("a double id").class, Class::Split);
            };
            if fails_first {
                fail(store);
            }
            // What comes behind a failure may be refused, and is lost in any case.
            let _ = store.append(&name("a"), &said("lost"));
            let _ = store.append(&name("b"), &said("lost"));
            if !fails_first {
                fail(store);
            }
        });
        assert_eq!(fate.expect("ended"), Grouped::Undone);
        assert!(!store.is_ahead());
        assert_eq!(texts(&mut *store, "a"), [""; 0]);
    }
    // Alone in its group, one that fails takes nobody with it.
    let fate = store.group(&mut |store| drop(store.append(&name("a"), &said("1")).expect("appended")));
    assert_eq!(fate.expect("logged"), Grouped::Durable);
    let fate = store.group(&mut |store| {
        let done = store.append(&name("a"), &said("2")).expect("appended");
        assert!(matches!(done, Appended::Done { last: 2, pos: 2, .. }), "{done:?}");
        // Half of the group is written by SQL: the other half has to be there for it.
        assert_eq!(texts(store, "a"), ["1", "2"]);
        assert!(matches!(store.remove(&name("a"), 2).expect("stored"), Edited::Done(_)));
        store.append(&name("a"), &said("3")).expect("appended");
    });
    assert_eq!(fate.expect("stored"), Grouped::Durable);
    assert!(!store.is_ahead());
    assert_eq!(texts(&mut *stores.streams().expect("opens"), "a"), ["1", "3"]);
}

#[test]
fn a_log_that_is_older_than_the_tables_brings_nothing_twice() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let log = directory.path().join("streams.ahead");
    let stores = open(directory.path());
    let mut store = InGroups(stores.streams().expect("opens"));
    for stream in ["kept", "edited", "gone", "anew"] {
        make(&mut store, stream);
        store.append(&name(stream), &said("1")).expect("appended");
        store.append(&name(stream), &said("2")).expect("appended");
    }
    let old = std::fs::read(&log).expect("read");
    assert!(matches!(store.remove(&name("edited"), 2).expect("stored"), Edited::Done(_)));
    store.delete(&name("gone")).expect("stored");
    store.delete(&name("anew")).expect("stored");
    make(&mut store, "anew");
    drop((store, stores));
    // A crash between the commit and the next record: the log still holds what the tables have.
    std::fs::write(&log, &old).expect("written");
    let mut store = open(directory.path()).streams().expect("opens");
    assert_eq!(texts(&mut *store, "kept"), ["1", "2"]);
    assert_eq!(texts(&mut *store, "edited"), ["1"]);
    assert_eq!(store.get(&name("gone")).expect("read"), Found::Missing);
    assert_eq!(texts(&mut *store, "anew"), [""; 0]);
    let Found::Here(row) = store.get(&name("kept")).expect("read") else { panic!("it is there") };
    assert_eq!((row.state.pos, row.state.last_msg, row.bytes), (2, 2, 2));
}

#[test]
fn what_waits_is_brought_into_the_tables_before_it_is_much() {
    for somebody_settles in [true, false] {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let stores = open(directory.path());
        let mut store = InGroups(stores.streams().expect("opens"));
        let mut other = stores.streams().expect("opens");
        make(&mut store, "a");
        let (mut most, mut asked) = (0, 0);
        let size = |file: &str| std::fs::metadata(directory.path().join(file)).expect("there").len();
        for n in 0..9_000 {
            store.append(&name("a"), &said(&n.to_string())).expect("appended");
            most = most.max(size("streams.ahead")).max(size("streams.ahead-2"));
            if somebody_settles && store.0.is_far_ahead() {
                other.settle().expect("settled");
                asked += 1;
            }
        }
        // Without anybody, whoever appends does it, later.
        assert!(in_tables(directory.path()) >= if somebody_settles { 8_192 } else { 4_096 });
        assert_eq!(asked, if somebody_settles { 4 } else { 0 });
        assert!(most < 200 * 1024, "the log goes on from its beginning, and has {most} bytes");
        let read = CatchUp { after: 8_990, upto: None, bytes_max: 1 << 20 };
        let all = store.catch_up(&name("a"), read).expect("read");
        assert!(matches!(all, Found::Here(page) if page.messages.len() == 10));
    }
}

#[test]
fn appends_go_on_while_somebody_settles_and_a_kill_at_any_moment_loses_none() {
    const GROUPS: u64 = 600;
    let directory = tempfile::tempdir().expect("a temporary folder");
    let stores = open(directory.path());
    let mut store = stores.streams().expect("opens");
    for stream in ["a", "b", "c"] {
        make(&mut *store, stream);
    }
    let over = AtomicBool::new(false);
    let copies = tempfile::tempdir().expect("a temporary folder");
    let acknowledged = std::thread::scope(|scope| {
        let (stores, over) = (&stores, &over);
        scope.spawn(move || {
            let mut store = stores.streams().expect("opens");
            while !over.load(Ordering::Relaxed) {
                store.settle().expect("settled");
            }
        });
        let reader = scope.spawn(move || {
            let mut store = stores.streams().expect("opens");
            let mut seen = 0;
            while !over.load(Ordering::Relaxed) {
                let read = CatchUp { after: seen, upto: None, bytes_max: 1 << 20 };
                let Found::Here(page) = store.catch_up(&name("a"), read).expect("read") else {
                    panic!("it is there")
                };
                for message in &page.messages {
                    assert_eq!(message.pos, seen + 1, "history has no gap, wherever it lies");
                    seen += 1;
                }
            }
        });
        let mut acknowledged = Vec::new();
        for n in 0..GROUPS {
            let fate = store.group(&mut |store| {
                for stream in ["a", "a", "b", "a", "c", "a", "a", "a"] {
                    store.append(&name(stream), &said(&n.to_string())).expect("appended");
                }
            });
            assert_eq!(fate.expect("logged"), Grouped::Durable);
            if n.is_multiple_of(60) {
                // What a kill would leave: the log's files first, as what leaves them is in the tables by then.
                let copy = copies.path().join(n.to_string());
                towpath::store::sqlite::backup::back_up(
                    directory.path(),
                    &copy,
                    towpath::state::time::Wall(0),
                )
                .expect("copied");
                acknowledged.push((copy, n + 1));
            }
        }
        over.store(true, Ordering::Relaxed);
        reader.join().expect("the reader saw no gap");
        acknowledged
    });
    for (copy, groups) in acknowledged {
        let restored = tempfile::tempdir().expect("a temporary folder");
        let unpacked =
            std::process::Command::new("tar").arg("-xf").arg(&copy).arg("-C").arg(restored.path()).status();
        assert!(unpacked.expect("tar is there").success());
        let mut store = open(restored.path()).streams().expect("opens");
        for (stream, each) in [("a", 6), ("b", 1), ("c", 1)] {
            let Found::Here(row) = store.get(&name(stream)).expect("read") else { panic!("it is there") };
            assert_eq!(row.state.pos, each * groups, "stream {stream} after {groups} groups");
        }
    }
}

/// Numbers that are drawn the same each time.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Does one thing, drawn, and says what came of it.
fn one_thing(store: &mut dyn StreamStore, draws: &mut Draws, fences: &mut [Option<Fence>; 3]) -> String {
    let which = draws.below(3) as usize;
    let at = name(["a", "b", "c"][which]);
    let text = draws.below(1_000).to_string().repeat(draws.below(40) as usize);
    let draft = Draft {
        kind: Kind::Bytes,
        role: text.len().is_multiple_of(2).then(|| "user".into()),
        content: text.as_bytes().into(),
    };
    let (message, number) = (1 + draws.below(12), draws.below(5));
    let producer = Producer { id: "p".into(), epoch: number / 4, seq: draws.below(6) };
    let plain = Append { messages: vec![draft.clone(); 1 + number as usize % 3], ..Append::default() };
    match draws.below(24) {
        0 => format!("{:?}", store.edit(&at, message, &draft)),
        1 => format!("{:?}", store.remove(&at, message)),
        2 => format!("{:?}", store.append(&at, &Append { producer: Some(producer), ..plain })),
        3 => format!("{:?}", store.append(&at, &Append { key: Some(number.to_string()), ..plain })),
        4 => format!("{:?}", store.append(&at, &Append { content_type: Some("text/x".into()), ..plain })),
        5 => format!("{:?}", store.push(&at, &draft, None, 3)),
        6 => {
            let lease_for = Duration::from_secs(60);
            let claim = Claim { worker: Uuid::nil(), lease_for, lease: [number as u8; 32], key: None };
            let claimed = store.claim(&at, &claim).expect("asked");
            if let Claimed::Turn(turn) = &claimed {
                let lease = towpath::state::stream::LeaseHash::of(&claim.lease);
                fences[which] = Some(Fence { turn: turn.turn, lease });
            }
            format!("{claimed:?}")
        }
        7 => match fences[which] {
            Some(fence) => format!("{:?}", store.commit(&at, fence, &draft, 1, None)),
            None => String::new(),
        },
        8 => match fences[which].take() {
            Some(fence) => format!("{:?}", store.finish(&at, fence, &End::Done)),
            None => String::new(),
        },
        9 if number == 0 => format!("{:?}", store.delete(&at)),
        10 => {
            let id = Uuid::from_u128(u128::from(draws.below(1 << 30)) << 40);
            let Address::Name(name) = at else { unreachable!("names are names here") };
            format!(
                "{:?}",
                store.create(&NewStream::named(id, name)).map(|made| matches!(made, Created::New(_)))
            )
        }
        11 => format!("{:?}", store.trim(Keep { age: None, bytes: Some(400) }, 10)),
        _ => format!("{:?}", store.append(&at, &plain)),
    }
}

#[test]
fn any_order_of_writes_comes_to_the_same_with_and_without() {
    let time = Arc::new(AtomicI64::new(1_000_000));
    let identity: Identity = fresh();
    for seed in 0..crate::effort::cycles(12, 400) {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let plain = SqliteStores::in_memory(clock_at(&time), identity).expect("opens");
        let mut plain = plain.streams().expect("opens");
        let mut stores =
            Some(SqliteStores::open(directory.path(), clock_at(&time), identity).expect("opens"));
        let ahead = |stores: &Option<SqliteStores>| stores.as_ref().map(|it| it.streams().expect("opens"));
        let (mut store, mut reader) = (ahead(&stores), ahead(&stores));
        let mut draws = Draws(seed);
        let (mut held, mut held_ahead) = ([None; 3], [None; 3]);
        for (id, stream) in [(1, "a"), (2, "b"), (3, "c")] {
            let new = NewStream::named(Uuid::from_u128(id), stream);
            plain.create(&new).expect("stored");
            store.as_mut().expect("open").create(&new).expect("stored");
        }
        let mut waited = 0;
        for n in 0..150 {
            time.fetch_add(1_000, Ordering::Relaxed);
            let ops = 1 + draws.below(4);
            let begun = draws.0;
            let mut outcomes = Vec::new();
            for _ in 0..ops {
                outcomes.push(one_thing(&mut *plain, &mut draws, &mut held));
            }
            let mut again = Draws(begun);
            let mut seen = Vec::new();
            let writer = store.as_mut().expect("open");
            let fate = writer.group(&mut |store| {
                for _ in 0..ops {
                    seen.push(one_thing(store, &mut again, &mut held_ahead));
                }
            });
            // A double id fails: then the group is done again, each by itself.
            if fate.expect("ended") == Grouped::Undone {
                panic!("seed {seed}, round {n}: {seen:?}");
            }
            assert_eq!(seen, outcomes, "seed {seed}, round {n}");
            waited += u32::from(writer.is_ahead());
            match draws.below(12) {
                0 => {
                    // A kill: only what is on the disk is there again.
                    drop((store.take(), reader.take(), stores.take()));
                    stores =
                        Some(SqliteStores::open(directory.path(), clock_at(&time), identity).expect("opens"));
                    (store, reader) = (ahead(&stores), ahead(&stores));
                    // A start ends all leases.
                    plain.sweep(Sweep::All, 100).expect("stored");
                }
                1 => store.as_mut().expect("open").settle().expect("settled"),
                _ => {}
            }
            let read = CatchUp { after: draws.below(30), upto: None, bytes_max: draws.below(300) as usize };
            for at in ["a", "b", "c"] {
                for from in [&mut store, &mut reader] {
                    let found = from.as_mut().expect("open").catch_up(&name(at), read).expect("read");
                    let expected = plain.catch_up(&name(at), read).expect("read");
                    assert_eq!(found, expected, "seed {seed}, round {n}, stream {at}, {read:?}");
                }
            }
        }
        assert!(waited > 10, "in {waited} rounds of seed {seed} something waited");
    }
}
