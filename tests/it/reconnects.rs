//! Many followers that come back at once, each with its token: what they missed is read for all of them
//! together, one read for each page.

use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath::bus::local::LocalBus;
use towpath::engine::streams::{
    CreateStream, FollowOptions, Since, StreamError, StreamsConfig, StreamsEngine, What,
};
use towpath::engine::worker::Crew;
use towpath::rt::Rt;
use towpath::store::Identity;
use towpath::store::sqlite::SqliteStores;
use towpath::store::streams::Address;
use towpath::testing::{FaultyStores, StoreFaults};

use crate::effort::slow;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// History that a room does not keep in memory, in several pages.
const MISSED: u64 = 16;
const BYTES: usize = 60 * 1024;

/// An engine on a store that counts what it is asked.
struct Counted {
    engine: StreamsEngine,
    stores: Arc<FaultyStores<SqliteStores>>,
    _crew: Crew,
}

impl Counted {
    fn start() -> Counted {
        let rt = Rt::real();
        let clock = {
            let rt = rt.clone();
            Arc::new(move || rt.wall())
        };
        let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
        let stores = SqliteStores::in_memory(clock, fresh).expect("memory is there");
        let stores = Arc::new(FaultyStores::new(stores, &rt, StoreFaults::CALM));
        let crew = Crew::new(&rt);
        let bus = Arc::new(LocalBus::default());
        let config = StreamsConfig::new(rt.uuid_v4(), stores.clone(), bus);
        let engine = StreamsEngine::start(&crew, config).expect("it starts");
        Counted { engine, stores, _crew: crew }
    }
}

#[test]
fn who_follows_what_others_follow_already_costs_no_read_where_nobody_else_writes() {
    let Counted { engine, stores, .. } = &Counted::start();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let follow = |since| {
        let options = FollowOptions { since, ..FollowOptions::default() };
        let mut follow = streams.follow("chat/1", options).expect("the stream is there");
        let mut seen = 0;
        loop {
            let event = follow.next_within(PATIENCE).expect("nobody is cut").expect("in time");
            match event.what {
                What::Message(_) => seen += 1,
                What::Live { .. } => return (follow, seen),
                _ => {}
            }
        }
    };
    let (_first, _) = follow(Since::Start);
    let before = stores.calls("catch_up");
    let mut all = Vec::new();
    for n in 1..=50 {
        let token = streams.append("chat/1", None, &n).expect("written").token;
        for (since, expected) in [(Since::Start, n), (Since::After(token), 0), (Since::Now, 0)] {
            let (follow, seen) = follow(since);
            assert_eq!(seen, expected, "what was written before is there before it is live: {since:?}");
            all.push(follow);
        }
    }
    let reads = stores.calls("catch_up") - before;
    // One after the poll that looks every ten seconds whether anything was missed, on a slow machine.
    assert!(reads <= 3, "{reads} reads for {} followers", all.len());
    for follow in &mut all[150 - 3..] {
        streams.append("chat/1", None, &"more").expect("written");
        let more = follow.next_within(PATIENCE).expect("nobody is cut").expect("in time");
        assert!(matches!(more.what, What::Message(_)), "{more:?}");
    }
}

#[test]
fn how_a_followed_stream_stands_costs_no_read_where_nobody_else_writes() {
    let Counted { engine, stores, .. } = &Counted::start();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let asks = || {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let then = move |row| tell.send(row).expect("it is waited for");
        streams.stands_then(Address::Name("chat/1".into()), Box::new(then));
        told.recv_timeout(PATIENCE).expect("in time")
    };
    assert_eq!(
        asks().expect("it is there").state.pos,
        0,
        "nobody follows it: it is read, and its name known"
    );
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("the stream is there");
    while !matches!(follow.next().expect("nobody is cut").what, What::Live { .. }) {}
    let before = stores.calls("get");
    for n in 1..=50 {
        let token = streams.append("chat/1", None, &n).expect("written").token;
        assert_eq!(asks().expect("it is there").state.pos, token.cursor.pos, "what was answered is known");
    }
    let reads = stores.calls("get") - before;
    assert!(reads <= 3, "{reads} reads");
    streams.delete("chat/1").expect("it is there");
    assert!(matches!(asks(), Err(StreamError::Missing)), "its name is forgotten");
}

#[test]
fn many_that_come_back_at_once_share_one_read_for_each_page() {
    let many: usize = if slow() { 10_000 } else { 1_000 };
    let Counted { engine, stores, .. } = &Counted::start();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let token = streams.append("chat/1", None, &"seen").expect("written").token;
    for n in 0..MISSED {
        streams.append("chat/1", None, &format!("{n}:{}", "x".repeat(BYTES))).expect("written");
    }

    let options = FollowOptions { since: Since::After(token), ..FollowOptions::default() };
    let (before, rows_before) = (stores.calls("catch_up"), stores.calls("get"));
    // Nobody is answered before all have come.
    stores.set_faults(StoreFaults { hang: (1, Duration::from_millis(500)), ..StoreFaults::CALM });
    let mut follows: Vec<_> =
        (0..many).map(|_| streams.follow("chat/1", options).expect("the stream is there")).collect();
    // The HTTP door looks first whether there is anything left to follow: more at once than a reader has places.
    let asked = if slow() { 60_000 } else { 20_000 };
    let (tell, told) = std::sync::mpsc::sync_channel(asked);
    for _ in 0..asked {
        let tell = tell.clone();
        let at = Address::Name("chat/1".into());
        streams.row_then(at, Box::new(move |row| drop(tell.send(row.map(|row| row.state.pos)))));
    }
    stores.set_faults(StoreFaults::CALM);
    for _ in 0..asked {
        assert_eq!(told.recv_timeout(PATIENCE).expect("it is answered"), Ok(MISSED + 1));
    }
    let rows = stores.calls("get") - rows_before;
    assert!(rows <= 10, "{rows} reads of one row for {asked} who asked at once");
    let deadline = Instant::now() + PATIENCE;
    for follow in &mut follows {
        let mut missed = Vec::new();
        loop {
            assert!(Instant::now() < deadline, "not all are live again within {PATIENCE:?}");
            let event = follow.next_within(Duration::from_secs(1)).expect("nobody is cut");
            match event.map(|event| event.what) {
                Some(What::Message(row)) => missed.push(row.id),
                Some(What::Live { resumed, missed: counted }) => {
                    assert_eq!((resumed, counted), (true, MISSED));
                    break;
                }
                Some(What::Reset(why)) => panic!("its token is good: {why:?}"),
                _ => {}
            }
        }
        assert_eq!(missed, (2..=MISSED + 1).collect::<Vec<_>>(), "each once, in order");
    }
    let reads = stores.calls("catch_up") - before;
    let pages = (MISSED as usize * BYTES).div_ceil(towpath::store::streams::PAGE_BYTES) as u64;
    println!("{many} followers back at once: {reads} reads of {pages} pages");
    // Some for who stands where; never one for each follower.
    assert!(reads <= 3 * pages + 6, "{reads} reads of {pages} pages for {many} followers");
}
