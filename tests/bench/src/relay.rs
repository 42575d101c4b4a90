//! From a part to its follower: on the same replica, and on another, as latencies that have goals; the same hops
//! bare are printed beside them.
//!
//! One at a time. What is in the table is one over the latency.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel as bare;
use towpath::bus::Bus;
use towpath::bus::local::LocalBus;
use towpath::engine::replicas::{ReplicasConfig, ReplicasEngine};
use towpath::engine::streams::{
    CreateStream, Follow, FollowOptions, RelayWays, StreamsConfig, StreamsEngine, TurnHandle, What,
};
use towpath::engine::worker::Crew;
use towpath::front::Router;
use towpath::front::relay::relay_routes;
use towpath::rt::Rt;
use towpath::store::sqlite::SqliteStores;
use towpath::store::{Identity, Stores};
use towpath::wire::{IoThreads, Limits, Listener, Running};

use crate::pairs::{Bench, Case, Sample};

const PARTS: u64 = 5_000;
const PART: &str = "\"a word or two of what a model says\"";

/// Dropped in this order.
type Replica = (StreamsEngine, ReplicasEngine, Running);

pub(crate) fn run(bench: &mut Bench) {
    for (name, floor, across, share, goal) in [
        ("streams/part-here-p50", "60 µs", false, 50, 60e-6),
        ("streams/part-here-p99", "300 µs", false, 99, 300e-6),
        ("streams/part-across-p50", "150 µs", true, 50, 150e-6),
    ] {
        let case = Case { name, floor, unit: "parts", goal: 1.0 };
        bench.pair(
            &case,
            || Sample::recorded(1.0 / goal),
            || {
                let (bare, ours) = (floor_of(across), ours(across));
                eprintln!(
                    "    {name}: p50 {:?}  p99 {:?}; bare p50 {:?}  p99 {:?}",
                    at(&ours, 50),
                    at(&ours, 99),
                    at(&bare, 50),
                    at(&bare, 99)
                );
                Sample::recorded(1.0 / at(&ours, share).as_secs_f64())
            },
        );
    }
}

/// How long each of many took, the shortest first.
fn timed(mut once: impl FnMut()) -> Vec<Duration> {
    let mut took: Vec<Duration> = Vec::with_capacity(PARTS as usize);
    for _ in 0..PARTS {
        let began = Instant::now();
        once();
        took.push(began.elapsed());
    }
    took.sort_unstable();
    took
}

fn at(took: &[Duration], share: usize) -> Duration {
    took[took.len() * share / 100]
}

/// The threads that a part crosses, with nothing in them: the room, and across replicas the I/O thread of the
/// link, the socket, the I/O thread of the other side and its room.
fn floor_of(across: bool) -> Vec<Duration> {
    let (to_room, room) = bare::bounded::<()>(16);
    let (to_follower, follower) = bare::bounded::<()>(16);
    let mut threads = Vec::new();
    if across {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut out = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (mut into, _) = listener.accept().expect("it was called");
        out.set_nodelay(true).expect("a socket");
        let (to_link, link) = bare::bounded::<()>(16);
        let (to_other, other) = bare::bounded::<()>(16);
        threads.push(std::thread::spawn(move || {
            room.iter().for_each(|()| to_link.send(()).expect("it goes on"))
        }));
        threads.push(std::thread::spawn(move || {
            link.iter().for_each(|()| out.write_all(PART.as_bytes()).expect("written"));
        }));
        threads.push(std::thread::spawn(move || {
            let mut part = [0; PART.len()];
            while into.read_exact(&mut part).is_ok() {
                to_other.send(()).expect("it goes on");
            }
        }));
        threads.push(std::thread::spawn(move || {
            other.iter().for_each(|()| to_follower.send(()).expect("it goes on"))
        }));
    } else {
        threads.push(std::thread::spawn(move || {
            room.iter().for_each(|()| to_follower.send(()).expect("it goes on"))
        }));
    }
    let took = timed(|| {
        to_room.send(()).expect("it goes on");
        follower.recv().expect("it comes");
    });
    drop(to_room);
    threads.into_iter().for_each(|thread| thread.join().expect("it ended"));
    took
}

fn replica(rt: &Rt, stores: &Arc<dyn Stores>, bus: &Arc<dyn Bus>) -> Replica {
    let crew = Crew::new(rt);
    let io = IoThreads::new(rt, 1, None).expect("threads");
    let door = Listener::bind("127.0.0.1:0").expect("a port");
    let config = ReplicasConfig {
        id: rt.uuid_v7(),
        hostname: "here".into(),
        relay_url: Some(format!("http://{}", door.address())),
        version: "0".into(),
    };
    let streams = StreamsConfig::new(config.id, stores.clone(), bus.clone());
    let registry = ReplicasEngine::start(&crew, config, &**stores, bus, Some(io.wire())).expect("it starts");
    let relay = RelayWays::new(io.wire(), registry.replicas().clone());
    let config = StreamsConfig { relay: Some(relay), ..streams };
    let engine = StreamsEngine::start(&crew, config).expect("it starts");
    let mut router = Router::new();
    relay_routes(&mut router, engine.streams(), registry.replicas());
    let running = io.start(Limits::default(), vec![door], Arc::new(router)).expect("it starts");
    (engine, registry, running)
}

fn next_part(follow: &mut Follow) {
    loop {
        let event = follow.next_within(Duration::from_secs(30)).expect("it goes on").expect("it comes");
        if matches!(event.what, What::Part { .. }) {
            return;
        }
    }
}

fn ours(across: bool) -> Vec<Duration> {
    let rt = Rt::real();
    let wall = rt.clone();
    let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
    let stores = SqliteStores::in_memory(Arc::new(move || wall.wall()), fresh).expect("memory is there");
    let (stores, bus): (Arc<dyn Stores>, Arc<dyn Bus>) =
        (Arc::new(stores.for_several_replicas()), Arc::new(LocalBus::new()));
    let (first, second) = (replica(&rt, &stores, &bus), replica(&rt, &stores, &bus));
    first.0.streams().create("chat/1", CreateStream::default()).expect("made");
    let follows = if across { &second } else { &first };
    let mut follow = follows.0.streams().follow("chat/1", FollowOptions::default()).expect("there");
    let turn: TurnHandle = first.0.streams().run("chat/1").expect("nobody runs it");
    turn.parts(vec![PART.into()]).expect("held");
    next_part(&mut follow);
    timed(|| {
        turn.parts(vec![PART.into()]).expect("held");
        next_part(&mut follow);
    })
}
