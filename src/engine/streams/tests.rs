use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::bus::{BusHealth, Sink};
use crate::store::Identity;
use crate::store::sqlite::SqliteStores;

/// A bus of one process that can be told to lose everything.
#[derive(Default)]
struct Wires {
    sinks: rt::Lock<Vec<(Topic, Sink)>>,
    cut: AtomicBool,
}

impl Bus for Wires {
    fn publish(&self, notice: Notice) {
        if self.cut.load(Ordering::Acquire) {
            return;
        }
        let mut sinks = std::mem::take(&mut *self.sinks.lock());
        sinks.retain_mut(|(topic, sink)| {
            *topic != notice.topic() || sink(BusEvent::Notice(notice.clone())) != Delivery::Gone
        });
        self.sinks.lock().append(&mut sinks);
    }

    fn subscribe(&self, topic: Topic, sink: Sink) {
        self.sinks.lock().push((topic, sink));
    }

    fn health(&self) -> BusHealth {
        BusHealth::default()
    }
}

struct World {
    crew: Crew,
    bus: Arc<Wires>,
    stores: Arc<dyn Stores>,
}

impl World {
    fn new() -> World {
        let rt = Rt::real();
        let clock = {
            let rt = rt.clone();
            Arc::new(move || rt.wall())
        };
        let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
        let stores = SqliteStores::in_memory(clock, fresh).expect("memory is there").for_several_replicas();
        World { crew: Crew::new(&rt), bus: Arc::default(), stores: Arc::new(stores) }
    }

    fn replica_with(&self, limits: Limits) -> StreamsEngine {
        let id = self.crew.rt().uuid_v4();
        let config =
            StreamsConfig { limits, ..StreamsConfig::new(id, self.stores.clone(), self.bus.clone()) };
        StreamsEngine::start(&self.crew, config).expect("threads are to be had")
    }

    fn replica(&self) -> StreamsEngine {
        self.replica_with(Limits::default())
    }
}

/// An event in a few words.
fn brief(event: &Event) -> String {
    let text = |content: &[u8]| String::from_utf8_lossy(content).into_owned();
    match &event.what {
        What::Status { status, .. } => format!("status {status}"),
        What::Message(row) => format!("message {} {}", row.id, text(&row.content)),
        What::Commit { turn, id } => format!("commit {turn} {id}"),
        What::Queue(queue) => format!("queue {}", queue.len()),
        What::Error(error) => format!("error {}", error.as_deref().unwrap_or("none")),
        What::Part { turn, n, part } => format!("part {turn}.{n} {part}"),
        What::Reset(reset) => format!("reset {}", reset.name()),
        What::Live { resumed, missed } => format!("live {resumed} {missed}"),
        What::Closed(why) => format!("closed {}", why.name()),
        other => other.name().to_owned(),
    }
}

const SOON: Duration = Duration::from_secs(10);

/// The next events, until one of them begins with `last`.
fn until(follow: &mut Follow, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match follow.next_within(SOON) {
            Ok(Some(event)) => all.push(brief(&event)),
            Ok(None) => panic!("nothing came after {all:?}, {last} was to come"),
            Err(why) => panic!("it ended ({why:?}) after {all:?}, {last} was to come"),
        }
        if all.last().is_some_and(|event| event.starts_with(last)) {
            return all;
        }
    }
}

fn from(since: Since) -> FollowOptions {
    FollowOptions { since, parts: true }
}

fn after(follow: &Follow) -> FollowOptions {
    from(Since::After(follow.token().expect("something came")))
}

#[test]
fn a_fresh_follow_gets_hello_status_messages_and_then_live() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    streams.append("chat/1", Some("user"), &"hi").expect("written");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    assert_eq!(until(&mut follow, "live"), ["hello", "status idle", "message 1 \"hi\"", "live false 0"]);
    streams.append("chat/1", Some("user"), &"more").expect("written");
    assert_eq!(until(&mut follow, "message"), ["message 2 \"more\""]);
}

#[test]
fn a_turn_is_followed_part_by_part_until_its_message_replaces_them() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let turn = streams.run("chat/1").expect("nobody runs it");
    assert_eq!(turn.part(&json!({"delta": "a"})), Ok(1));
    assert_eq!(turn.part(&json!({"delta": "b"})), Ok(2));
    assert_eq!(turn.commit(Some("assistant"), &"ab").expect("held").id, 1);
    turn.finish().expect("held");
    assert_eq!(
        until(&mut follow, "status done"),
        [
            "status running",
            "part 1.1 {\"delta\":\"a\"}",
            "part 1.2 {\"delta\":\"b\"}",
            "message 1 \"ab\"",
            "commit 1 1",
            "status done",
        ]
    );
}

#[test]
fn committed_parts_are_not_replayed_and_the_draft_is() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let turn = streams.run("chat/1").expect("nobody runs it");
    turn.part(&1).expect("held");
    turn.commit(None, &"one").expect("held");
    turn.part(&2).expect("held");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    assert_eq!(
        until(&mut follow, "live"),
        ["hello", "status running", "message 1 \"one\"", "commit 1 1", "part 1.2 2", "live false 0"]
    );
    let mut tail = streams.follow("chat/1", from(Since::Now)).expect("there");
    assert_eq!(until(&mut tail, "live"), ["hello", "status running", "part 1.2 2", "live false 0"]);
}

#[test]
fn what_an_ended_turn_left_uncommitted_is_not_shown_to_who_comes_later() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let turn = streams.run("chat/1").expect("nobody runs it");
    turn.part(&1).expect("held");
    turn.commit(None, &"one").expect("held");
    turn.part(&2).expect("held");
    turn.finish().expect("held");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    let expected = ["hello", "status done", "message 1 \"one\"", "commit 1 1", "live false 0"];
    assert_eq!(until(&mut follow, "live"), expected);
}

/// More than its channel holds waits for a follower, and the message that stands for it comes behind.
#[test]
fn parts_that_wait_are_left_out_when_their_message_comes_and_nothing_is_lost() {
    let world = World::new();
    let limits = Limits { queue_bytes_max: 64 * 1024, ..Limits::default() };
    let engine = world.replica_with(limits);
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let turn = streams.run("chat/1").expect("nobody runs it");
    let parts = 400;
    for n in 1..=parts {
        turn.part(&n).expect("held");
    }
    turn.commit(None, &"all").expect("held");
    turn.part(&"next").expect("held");
    turn.finish().expect("held");
    let seen = until(&mut follow, "status done");
    let told = |seen: &[String], n: u32| seen.iter().any(|event| event.starts_with(&format!("part 1.{n} ")));
    let left_out = (1..=parts).filter(|n| !told(&seen, *n)).count();
    assert!((1..parts as usize).contains(&left_out), "{left_out} of {parts}");
    // Up to some part all came, behind it none, until the message.
    let message = seen.iter().position(|event| event.starts_with("message 1 ")).expect("it came");
    let before = seen[..message].iter().filter(|event| event.starts_with("part ")).count() as u32;
    assert!((1..=before).all(|n| told(&seen, n)) && before as usize + left_out == parts as usize, "{before}");
    assert_eq!(seen[message + 1..], ["commit 1 1", "part 1.401 \"next\"", "status done"]);
}

#[test]
fn whoever_comes_back_gets_what_it_missed_and_nothing_twice() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    streams.append("chat/1", None, &1).expect("written");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let turn = streams.run("chat/1").expect("nobody runs it");
    turn.part(&"a").expect("held");
    until(&mut follow, "part");
    let here = after(&follow);
    drop(follow);
    streams.append("chat/1", None, &2).expect("written");
    turn.part(&"b").expect("held");
    let mut follow = streams.follow("chat/1", here).expect("there");
    assert_eq!(
        until(&mut follow, "live"),
        ["hello", "status running", "message 2 2", "part 1.2 \"b\"", "live true 1"]
    );
    let mut again = streams.follow("chat/1", after(&follow)).expect("there");
    assert_eq!(until(&mut again, "live"), ["hello", "status running", "live true 0"]);
}

#[test]
fn a_cut_at_any_event_of_a_follow_loses_and_doubles_nothing() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    for n in 0..3 {
        streams.append("chat/1", None, &n).expect("written");
    }
    let turn = streams.run("chat/1").expect("nobody runs it");
    turn.part(&"a").expect("held");
    turn.commit(None, &"A").expect("held");
    turn.part(&"b").expect("held");
    let durable = |events: &[Event]| -> Vec<String> {
        let told = |event: &&Event| matches!(event.what, What::Message(_) | What::Part { .. });
        events.iter().filter(told).map(brief).collect()
    };
    let whole = streams.follow("chat/1", FollowOptions::default()).expect("there");
    let whole: Vec<Event> = whole.take(9).collect();
    assert_eq!(brief(whole.last().expect("nine came")), "live false 0");
    for cut in 1..whole.len() {
        let before = durable(&whole[..cut]);
        let rest = streams.follow("chat/1", from(Since::After(whole[cut - 1].token))).expect("there");
        let mut rest_events = Vec::new();
        for event in rest {
            let live = matches!(event.what, What::Live { .. });
            rest_events.push(event);
            if live {
                break;
            }
        }
        assert_eq!([before, durable(&rest_events)].concat(), durable(&whole), "cut after {cut} events");
    }
}

#[test]
fn an_edit_resets_history_for_those_who_are_live_and_those_who_come_back() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    streams.append("chat/1", None, &1).expect("written");
    streams.append("chat/1", None, &2).expect("written");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let before = after(&follow);
    streams.edit("chat/1", 1, &"one").expect("there");
    assert_eq!(until(&mut follow, "message 2"), ["reset history", "message 1 \"one\"", "message 2 2"]);
    streams.remove("chat/1", 1).expect("there");
    assert_eq!(until(&mut follow, "message 2"), ["reset history", "message 2 2"]);
    streams.append("chat/1", None, &3).expect("written");
    assert_eq!(until(&mut follow, "message 3"), ["message 3 3"]);
    let mut back = streams.follow("chat/1", before).expect("there");
    assert_eq!(
        until(&mut back, "live"),
        ["hello", "status idle", "reset history", "message 2 2", "message 3 3", "live false 0"]
    );
}

#[test]
fn an_emptied_queue_is_an_event() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let id = streams.queue("chat/1", Some("user"), &"do this").expect("queued");
    assert_eq!(until(&mut follow, "status"), ["queue 1", "status pending"]);
    let away = after(&follow);
    drop(follow);
    streams.unqueue("chat/1", id).expect("waiting");
    let mut follow = streams.follow("chat/1", away).expect("there");
    assert_eq!(until(&mut follow, "live"), ["hello", "status idle", "queue 0", "live true 0"]);
}

#[test]
fn a_worker_gets_the_input_that_waited_longest() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    let labels = Labels::from([("kind".to_owned(), "chat".to_owned())]);
    assert!(streams.next(&labels).expect("asked").is_none());
    streams
        .create("chat/1", CreateStream { labels: Some(labels.clone()), ..CreateStream::default() })
        .expect("made");
    streams.queue("chat/1", Some("user"), &"first").expect("queued");
    streams.queue("chat/1", Some("user"), &"second").expect("queued");
    let turn = streams.next(&labels).expect("asked").expect("one is pending");
    assert_eq!(turn.input().map(|input| &*input.content), Some(&br#""first""#[..]));
    turn.finish().expect("held");
    assert_eq!(
        streams.state("chat/1").expect("there").stream.state.status.name(),
        "pending",
        "another waits"
    );
}

#[test]
fn a_second_claim_is_refused_and_names_the_holder() {
    let world = World::new();
    let (one, other) = (world.replica(), world.replica());
    one.streams().create("chat/1", CreateStream::default()).expect("made");
    let turn = one.streams().run("chat/1").expect("nobody runs it");
    let refused = other.streams().run("chat/1").expect_err("it runs");
    assert_eq!(refused, StreamError::TurnRunning { worker: one.streams().replica(), turn: 1 });
    turn.finish().expect("held");
    assert_eq!(other.streams().run("chat/1").expect("nobody runs it").number(), 2);
}

#[test]
fn an_interrupt_on_another_replica_cancels_the_turn_and_abort_acknowledges_it() {
    let world = World::new();
    let (one, other) = (world.replica(), world.replica());
    one.streams().create("chat/1", CreateStream::default()).expect("made");
    let mut follow = one.streams().follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let turn = one.streams().run("chat/1").expect("nobody runs it");
    until(&mut follow, "status running");
    let (heard, hears) = one.streams().rt().channel("cancelled", 1);
    let _closer = turn.cancelled().on_cancel(move || heard.try_send(()).expect("cancelled once"));
    other.streams().interrupt("chat/1").expect("there");
    other.streams().interrupt("chat/1").expect("asking again changes nothing");
    let deadline = one.streams().rt().now() + SOON;
    assert_eq!(hears.recv_deadline(deadline), Ok(()));
    turn.commit(None, &"as far as it came").expect("a commit is allowed while it is asked to stop");
    turn.abort().expect("held");
    assert_eq!(
        until(&mut follow, "status idle"),
        ["status interrupting", "message 1 \"as far as it came\"", "commit 1 1", "status idle"]
    );
}

#[test]
fn a_producer_that_goes_away_leaves_the_stream_to_the_next_and_followers_clear_their_draft() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let turn = streams.run("chat/1").expect("nobody runs it");
    turn.part(&"a").expect("held");
    drop(turn);
    assert_eq!(until(&mut follow, "status pending"), ["status running", "part 1.1 \"a\"", "status pending"]);
    let turn = streams.run("chat/1").expect("nobody runs it");
    turn.part(&"b").expect("held");
    assert_eq!(until(&mut follow, "part"), ["reset turn", "status running", "part 2.1 \"b\""]);
}

#[test]
fn a_lost_turn_writes_nothing_and_is_told_so() {
    let world = World::new();
    let limits = Limits { lease: Duration::from_millis(1), ..Limits::default() };
    let (one, other) = (world.replica_with(limits), world.replica());
    one.streams().create("chat/1", CreateStream::default()).expect("made");
    let old = one.streams().run("chat/1").expect("nobody runs it");
    let new = loop {
        match other.streams().run("chat/1") {
            Ok(turn) => break turn,
            Err(StreamError::TurnRunning { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(old.commit(None, &"too late"), Err(StreamError::TurnLost { turn: 1 }));
    assert_eq!(old.finish(), Err(StreamError::TurnLost { turn: 1 }));
    new.commit(None, &"in time").expect("held");
    let mut follow = one.streams().follow("chat/1", FollowOptions::default()).expect("there");
    assert_eq!(
        until(&mut follow, "live"),
        ["hello", "status running", "message 1 \"in time\"", "commit 2 1", "live false 0"]
    );
}

#[test]
fn a_turn_that_is_full_says_so_and_a_commit_makes_room() {
    let world = World::new();
    let engine = world.replica_with(Limits { turn_bytes_max: 8, ..Limits::default() });
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let turn = streams.run("chat/1").expect("nobody runs it");
    turn.part(&"abcd").expect("held");
    let why = PartRefused::Full { held: 6, max: 8 };
    assert_eq!(turn.part(&"efgh"), Err(StreamError::Part { why, accepted: 0, last: 1 }));
    turn.commit(None, &"abcd").expect("held");
    assert_eq!(turn.part(&"efgh"), Ok(2));
}

#[test]
fn parts_sent_again_are_not_doubled_and_a_gap_is_refused() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let claimed = streams
        .wait(|then| streams.claim_then(Wanted::Stream(address("chat/1")), None, then))
        .expect("claimed")
        .expect("it is there");
    let fence = Fence { turn: 1, lease: LeaseHash::of(&claimed.lease) };
    let parts = |first, texts: &[&str]| {
        let parts = texts.iter().map(|text| Arc::from(*text)).collect();
        streams.wait(|then| streams.parts_then(claimed.stream, fence, first, parts, then))
    };
    assert_eq!(parts(Some(1), &["1", "2"]), Ok(Accepted { accepted: 2, last: 2, interrupted: false }));
    assert_eq!(parts(Some(2), &["2", "3"]), Ok(Accepted { accepted: 1, last: 3, interrupted: false }));
    let why = PartRefused::Gap { last: 3 };
    assert_eq!(parts(Some(5), &["5"]), Err(StreamError::Part { why, accepted: 0, last: 3 }));
    let read = streams.wait(|then| streams.read_turn_then(claimed.stream, 1, 0, false, then)).expect("kept");
    assert_eq!(read.parts.iter().map(|part| &**part).collect::<Vec<_>>(), ["1", "2", "3"]);
}

#[test]
fn long_history_comes_in_pages_and_once_while_more_is_written() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let long = "x".repeat(10_000);
    for n in 0..200 {
        streams.append("chat/1", None, &json!([n, long])).expect("written");
    }
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    let writer = {
        let streams = streams.clone();
        streams.clone().rt().spawn("writer", move || {
            for n in 200..260 {
                streams.append("chat/1", None, &json!([n, ""])).expect("written");
            }
        })
    };
    let mut ids = Vec::new();
    while ids.len() < 260 {
        match follow.next_within(SOON).expect("it goes on").expect("more comes").what {
            What::Message(row) => ids.push(row.id),
            What::Closed(why) => panic!("{why:?}"),
            _ => {}
        }
    }
    assert_eq!(ids, (1..=260).collect::<Vec<_>>());
    drop(writer);
}

#[test]
fn a_follower_that_does_not_keep_up_is_cut_and_made_whole_by_its_token() {
    let world = World::new();
    let engine = world.replica_with(Limits { queue_bytes_max: 64 * 1024, ..Limits::default() });
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let mut slow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    let mut fast = streams.follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut slow, "live");
    until(&mut fast, "live");
    let long = "x".repeat(1_000);
    let mut ids = Vec::new();
    for n in 1..=1_000u64 {
        streams.append("chat/1", None, &long).expect("written");
        let event = fast.next_within(SOON).expect("it goes on").expect("it came");
        assert!(matches!(event.what, What::Message(row) if row.id == n), "a slow one slows nobody else");
    }
    while ids.len() < 1_000 {
        match slow.next_within(SOON) {
            Ok(Some(event)) => {
                if let What::Message(row) = event.what {
                    ids.push(row.id);
                }
            }
            Ok(None) => panic!("nothing came after {}", ids.len()),
            Err(why) => {
                assert_eq!(why, Ended::Slow);
                assert!(ids.len() < 1_000, "it was cut");
                slow = streams.follow("chat/1", after(&slow)).expect("there");
            }
        }
    }
    assert_eq!(ids, (1..=1_000).collect::<Vec<_>>());
}

#[test]
fn a_token_of_another_stream_or_of_the_future_starts_over() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    streams.create("chat/2", CreateStream::default()).expect("made");
    streams.append("chat/1", None, &1).expect("written");
    let mut follow = streams.follow("chat/2", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let other = follow.token().expect("something came");
    let again = ["hello", "status idle", "reset epoch", "message 1 1", "live false 0"];
    let mut follow = streams.follow("chat/1", from(Since::After(other))).expect("there");
    assert_eq!(until(&mut follow, "live"), again);
    let mut future = follow.token().expect("something came");
    future.cursor.pos += 5;
    let mut follow = streams.follow("chat/1", from(Since::After(future))).expect("there");
    assert_eq!(until(&mut follow, "live"), again);
}

#[test]
fn a_token_that_is_ahead_of_a_replica_that_missed_a_notice_is_good() {
    let world = World::new();
    let (one, other) = (world.replica(), world.replica());
    one.streams().create("chat/1", CreateStream::default()).expect("made");
    let mut behind = other.streams().follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut behind, "live");
    world.bus.cut.store(true, Ordering::Release);
    one.streams().append("chat/1", None, &1).expect("written");
    let mut ahead = one.streams().follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut ahead, "live");
    let mut moved = other.streams().follow("chat/1", after(&ahead)).expect("there");
    assert_eq!(until(&mut moved, "live"), ["hello", "status idle", "live true 0"]);
    assert_eq!(until(&mut behind, "message"), ["message 1 1"], "the same read helps who is behind");
}

#[test]
fn a_deleted_stream_says_so_and_is_another_when_it_is_made_again() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let old = after(&follow);
    streams.delete("chat/1").expect("there");
    assert_eq!(until(&mut follow, "closed"), ["closed deleted"]);
    assert_eq!(streams.append("chat/1", None, &1), Err(StreamError::Missing));
    streams.create("chat/1", CreateStream::default()).expect("made");
    streams.append("chat/1", None, &2).expect("written");
    let mut follow = streams.follow("chat/1", old).expect("there");
    assert_eq!(
        until(&mut follow, "live"),
        ["hello", "status idle", "reset epoch", "message 1 2", "live false 0"]
    );
}

#[test]
fn a_replica_that_stops_hands_its_streams_back_and_ends_its_follows() {
    let world = World::new();
    let (one, other) = (world.replica(), world.replica());
    one.streams().create("chat/1", CreateStream::default()).expect("made");
    let turn = one.streams().run("chat/1").expect("nobody runs it");
    turn.part(&1).expect("held");
    let mut here = one.streams().follow("chat/1", FollowOptions::default()).expect("there");
    let mut there = other.streams().follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut here, "live");
    until(&mut there, "live");
    drop(one);
    assert_eq!(until(&mut here, "closed"), ["closed stopped"]);
    assert_eq!(until(&mut there, "status"), ["status pending"]);
    assert!(turn.cancelled().is_cancelled());
    assert_eq!(turn.part(&2), Err(StreamError::Stopped));
    assert!(other.streams().run("chat/1").is_ok());
}

#[test]
fn a_follow_without_parts_gets_messages_alone() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let options = FollowOptions { since: Since::Start, parts: false };
    let mut follow = streams.follow("chat/1", options).expect("there");
    until(&mut follow, "live");
    let turn = streams.run("chat/1").expect("nobody runs it");
    turn.part(&1).expect("held");
    turn.commit(None, &"one").expect("held");
    turn.finish().expect("held");
    assert_eq!(
        until(&mut follow, "status done"),
        ["status running", "message 1 \"one\"", "commit 1 1", "status done"]
    );
}

#[test]
fn a_failed_turn_shows_its_error_until_the_next_begins() {
    let world = World::new();
    let engine = world.replica();
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    let mut follow = streams.follow("chat/1", FollowOptions::default()).expect("there");
    until(&mut follow, "live");
    let turn = streams.run("chat/1").expect("nobody runs it");
    until(&mut follow, "status running");
    turn.fail("no model").expect("held");
    assert_eq!(until(&mut follow, "status failed"), ["error no model", "status failed"]);
    let mut late = streams.follow("chat/1", FollowOptions::default()).expect("there");
    assert_eq!(until(&mut late, "live"), ["hello", "status failed", "error no model", "live false 0"]);
    let _turn = streams.run("chat/1").expect("nobody runs it");
    assert_eq!(until(&mut follow, "status running"), ["error none", "status running"]);
}

#[test]
fn names_are_checked_before_anything_is_made() {
    for (name, good) in [
        ("chat/7", true),
        ("a", true),
        ("A-Z.a_z~0/9", true),
        ("", false),
        ("chat//7", false),
        ("chat/../7", false),
        ("chat/events", false),
        ("state", false),
        ("chat 7", false),
        ("chät", false),
        ("018f0000-0000-7000-8000-000000000000", false),
    ] {
        assert_eq!(check_name(name).is_ok(), good, "{name}");
    }
    assert!(check_name(&"a".repeat(200)).is_ok());
    assert!(check_name(&"a".repeat(201)).is_err());
}

#[test]
fn a_place_in_a_rooms_inbox_is_small() {
    // There are twenty thousand of them for each room, whether or not anything ever waits.
    assert!(size_of::<Message>() <= 96, "{} bytes", size_of::<Message>());
}

#[test]
fn only_rooms_that_have_something_of_a_stream_are_told_of_it() {
    let attended = Arc::new(Attended::default());
    let shards = Shards { rooms: Vec::new().into(), attended: attended.clone() };
    let (one, other) = (Uuid::from_u128(1 << 16), Uuid::from_u128(2 << 16));
    let told = |stream| shards.attended.may_have(stream);
    attended.enter(one);
    attended.enter(one);
    attended.leave(one);
    assert_eq!((told(one), told(other)), (true, false));
    attended.leave(one);
    assert!(!told(one));
    attended.close();
    assert!(told(one) && told(other), "who tells a room that has ended is to hear so");
}
