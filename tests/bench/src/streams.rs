//! Streams in numbers: ten thousand followers that come back at once, and a hundred thousand streams in which nothing
//! happens.
//!
//! `STREAMS_FOLLOWERS` sets how many come back (10,000: the server is a process of its own, so that each side has its
//! sockets for itself), `STREAMS_IDLE` how many streams idle (100,000).

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath::engine::streams::Streams;
use towpath::front::{Router, streams::routes};
use towpath::rt::Rt;
use towpath::store::streams::NewStream;
use towpath::wire::{IoThreads, Limits, Listener, Running};
use towpath::{CreateStream, Engine};

use super::fanout::{line, number, resident, role};
use super::pairs::{Bench, Case, Sample};

/// What a follower has missed when it comes back.
const MISSED: usize = 20;
const MESSAGE: usize = 256;
/// How long all of them may take.
const BACK_WITHIN: Duration = Duration::from_secs(3);
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// What one idle stream may cost, in bytes.
const IDLE_MAX: f64 = 1024.0;

pub(crate) fn run(bench: &mut Bench) {
    let back = Case {
        name: "streams/followers-live-again",
        floor: "the goal: 3 s for 10,000 that come back at once",
        unit: "followers",
        goal: 1.0,
    };
    if bench.wants(back.name) {
        let followers = number("STREAMS_FOLLOWERS", 10_000);
        bench.pair(
            &back,
            || Sample::recorded(followers as f64 / BACK_WITHIN.as_secs_f64()),
            || come_back(followers),
        );
    }
    let idle = Case {
        name: "streams/idle",
        floor: "the goal: 1 KiB of memory an idle stream",
        unit: "streams in a MiB",
        goal: 1.0,
    };
    if bench.wants(idle.name) {
        let mebibyte = f64::from(1u32 << 20);
        let streams = number("STREAMS_IDLE", 100_000);
        bench.pair(
            &idle,
            || Sample::recorded(mebibyte / IDLE_MAX),
            || {
                let (mut child, order, mut told) = role(&["--streams-idle", &streams.to_string()]);
                let grown: f64 = line(&mut told).parse().expect("a number");
                eprintln!("    {:.0} bytes a stream", grown / streams as f64);
                drop(order);
                child.wait().expect("it ends");
                Sample::recorded(mebibyte / (grown.max(1.0) / streams as f64))
            },
        );
    }
}

/// Plays a role, if this process was started for one.
pub(crate) fn play() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--streams-server"] => serve(),
        ["--streams-idle", streams] => idle(streams.parse().expect("a number")),
        _ => return false,
    }
    true
}

/// An engine over a directory, with its doors open on every address of this machine.
fn open(directory: &std::path::Path) -> (Running, Engine) {
    let rt = Rt::real();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let io = IoThreads::new(&rt, threads, None).expect("pollers");
    let engine = Engine::builder().data(directory).wire(io.wire()).start_on(rt).expect("it starts");
    let mut router = Router::new();
    routes(&mut router, engine.streams(), engine.metadata(), 100);
    let limits = Limits { links: 100_000, links_per_address: 100_000, ..Limits::default() };
    let doors = vec![Listener::bind("0.0.0.0:0").expect("a port")];
    (io.start(limits, doors, Arc::new(router)).expect("it serves"), engine)
}

/// Serves a stream. For each line it reads, it appends what its followers will have missed, and says so once they
/// are gone.
fn serve() {
    let folder = tempfile::tempdir().expect("a folder");
    let (running, engine) = open(folder.path());
    let streams = engine.streams();
    streams.create("chat/1", CreateStream::default()).expect("made");
    streams.append("chat/1", None, &"the first").expect("written");
    println!("{}", running.addresses()[0]);
    for _ in std::io::stdin().lines().map_while(Result::ok) {
        for _ in 0..MISSED {
            streams.append("chat/1", None, &"x".repeat(MESSAGE)).expect("written");
        }
        // Descriptors of links that are about to be closed are still taken.
        while running.links() > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        println!("written");
    }
}

/// A follower: what of its events has not been understood yet, and where it stands.
struct Follower {
    socket: mio::net::TcpStream,
    rest: Vec<u8>,
    token: String,
    live: bool,
    /// The first line of the answer.
    heard: String,
}

impl Follower {
    /// Takes what has arrived: the token of every event, and whether it is live.
    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return };
        if self.heard.is_empty() {
            let first = self.rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
            self.heard = String::from_utf8_lossy(first).trim_end().to_owned();
        }
        for line in self.rest[..end].split(|byte| *byte == b'\n') {
            if let Some(token) = line.strip_prefix(b"id: ") {
                self.token = String::from_utf8_lossy(token).trim_end().to_owned();
            }
            self.live |= line.starts_with(b"event: live");
        }
        self.rest.drain(..=end);
    }
}

/// Connects so many to one of this machine's addresses and reads until all are live.
fn follow(followers: usize, host: Ipv4Addr, port: u16, tokens: &[String]) -> Vec<Follower> {
    let mut poll = mio::Poll::new().expect("a poller");
    let mut all: HashMap<usize, Follower> = HashMap::with_capacity(followers);
    let (mut events, mut buffer) = (mio::Events::with_capacity(1_024), vec![0; 64 * 1024]);
    let mut missing = followers;
    let mut connected = 0;
    let began = Instant::now();
    while missing > 0 {
        // As many as the server's queue of connections takes, then whatever has come.
        let next = (connected + 256).min(followers);
        for at in connected..next {
            let mut socket = TcpStream::connect(SocketAddr::from((host, port))).expect("the server listens");
            let since = tokens.get(at).map(|token| format!("?since={token}")).unwrap_or_default();
            write!(socket, "GET /v1/streams/chat/1/events{since} HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .expect("it asks");
            socket.set_nonblocking(true).expect("a socket");
            let mut socket = mio::net::TcpStream::from_std(socket);
            poll.registry().register(&mut socket, mio::Token(at), mio::Interest::READABLE).expect("watched");
            all.insert(
                at,
                Follower {
                    socket,
                    rest: Vec::new(),
                    token: String::new(),
                    live: false,
                    heard: String::new(),
                },
            );
        }
        connected = next;
        let patience = if connected < followers { Duration::ZERO } else { Duration::from_secs(1) };
        poll.poll(&mut events, Some(patience)).expect("it polls");
        for event in &events {
            let follower = all.get_mut(&event.token().0).expect("it was registered");
            let was = follower.live;
            while let Ok(length) = follower.socket.read(&mut buffer) {
                assert!(length > 0, "a follower was cut");
                follower.take(&buffer[..length]);
            }
            missing -= usize::from(follower.live && !was);
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{missing} of {followers} are not live within {PATIENCE:?}; one has heard {:?}",
            all.values().find(|follower| !follower.live).map(|follower| (&follower.heard, &follower.token))
        );
    }
    (0..followers).map(|at| all.remove(&at).expect("it is there")).collect()
}

/// All follow, all are cut, something is written, all come back: how long that takes.
fn come_back(followers: usize) -> Sample {
    let (mut server, mut order, mut told) = role(&["--streams-server"]);
    let address: SocketAddr = line(&mut told).parse().expect("an address");
    // Ports of connections that were closed rest for a minute; another address has ports of its own.
    let first = follow(followers, Ipv4Addr::new(127, 0, 0, 2), address.port(), &[]);
    let tokens: Vec<String> = first.iter().map(|follower| follower.token.clone()).collect();
    drop(first);
    writeln!(order, "more").expect("the server reads");
    assert_eq!(line(&mut told), "written");
    let cpu = cpu_of(server.id());
    let began = Instant::now();
    let all = follow(followers, Ipv4Addr::new(127, 0, 0, 3), address.port(), &tokens);
    let took = began.elapsed();
    let cpu = cpu_of(server.id()).saturating_sub(cpu);
    eprintln!("    all live again after {took:?}");
    assert!(all.iter().zip(&tokens).all(|(follower, token)| follower.token > *token), "tokens rise");
    drop(all);
    drop(order);
    drop(server.kill());
    drop(server.wait());
    Sample::of(followers as u64, took, cpu)
}

/// Processor time of another process.
fn cpu_of(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 =
        fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number");
    Duration::from_millis(10 * ticks)
}

/// Makes streams that nobody follows and says by how much memory has grown.
fn idle(streams: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let (_running, engine) = open(folder.path());
    let handle = engine.streams();
    // What a first use costs belongs to no stream.
    make(handle, "first", 0..100);
    let before = resident();
    make(handle, "idle", 0..streams);
    println!("{}", resident().saturating_sub(before));
    std::io::stdin().lock().read_line(&mut String::new()).expect("it is told when to end");
}

/// Makes streams, a few hundred at a time, so that they share commits.
fn make(streams: &Streams, kind: &str, range: std::ops::Range<usize>) {
    let (done, made) = std::sync::mpsc::sync_channel(512);
    let mut out = 0;
    for n in range {
        let done = done.clone();
        let mut new = NewStream::named(streams.new_id(), format!("{kind}/{n}"));
        new.content_type = Some("text/plain".into());
        let told = Box::new(move |answer: Result<_, _>| {
            answer.expect("made");
            done.send(()).expect("somebody counts");
        });
        streams.make_then(new, told);
        out += 1;
        if out == 512 {
            made.recv().expect("it comes");
            out -= 1;
        }
    }
    (0..out).for_each(|_| made.recv().expect("it comes"));
}
