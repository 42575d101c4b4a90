//! One frame to many links: the I/O threads beside a bare loop of `write` over the same sockets.
//!
//! Three processes: this one keeps the time of day, one serves (ours or the floor), one reads. The server says
//! when everything it sent has left, and what it cost itself: the processor time is the server's alone.
//!
//! `FANOUT_LINKS` sets how many links there are (500), `FANOUT_IDLE` how many idle WebSockets are weighed (2,000;
//! `make bench BENCH=fanout/idle FANOUT_IDLE=15000` is the whole of it).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath::front::{Route, Router};
use towpath::rt::Rt;
use towpath::wire::{Frame, IoThreads, Limits, LinkHandle, Listener, Outlet, Owner};

use super::pairs::{Bench, Case, Sample, process_cpu};

/// What is sent: as long as the peers' measurements had it.
const PAYLOAD: usize = 256;
/// Fan-outs in one sample.
const ROUNDS: u64 = 400;
/// What one idle link may cost, in bytes.
const IDLE_MAX: f64 = 1.5 * 1024.0;

pub(crate) fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub(crate) fn run(bench: &mut Bench) {
    let links = number("FANOUT_LINKS", 500);
    let cases = [
        Case {
            name: "fanout/one",
            floor: "a loop of write over the sockets, one message each",
            unit: "deliveries",
            goal: 0.7,
        },
        Case {
            name: "fanout/coalesced",
            floor: "the same, sixteen messages a write",
            unit: "deliveries",
            goal: 0.7,
        },
    ];
    for (case, batch) in cases.iter().zip([1, 16]) {
        if bench.wants(case.name) {
            let (mut floor, mut ours) = (Pair::start("floor", links), Pair::start("ours", links));
            bench.pair(case, || floor.sample(batch), || ours.sample(batch));
        }
    }
    let idle = Case {
        name: "fanout/idle",
        floor: "the goal: 1.5 KiB of user memory an idle WebSocket",
        unit: "links in a MiB",
        goal: 1.0,
    };
    if bench.wants(idle.name) {
        let mebibyte = f64::from(1u32 << 20);
        let links = number("FANOUT_IDLE", 2_000);
        bench.pair(
            &idle,
            || Sample::recorded(mebibyte / IDLE_MAX),
            || Sample::recorded(mebibyte / Pair::start("idle", links).weigh(links)),
        );
    }
}

/// A process of this program in another role.
pub(crate) fn role(arguments: &[&str]) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts again");
    let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    (child, stdin, BufReader::new(stdout))
}

/// A server and its readers.
struct Pair {
    server: Child,
    order: ChildStdin,
    told: BufReader<ChildStdout>,
    readers: Child,
    /// Ends the readers when it is dropped.
    _readers: ChildStdin,
}

impl Pair {
    fn start(kind: &str, links: usize) -> Pair {
        let (server, order, mut told) = role(&["--fanout-server", kind, &links.to_string()]);
        let address = line(&mut told);
        let upgrade = if kind == "idle" { "websocket" } else { "" };
        let (readers, stays, mut said) =
            role(&["--fanout-readers", &address, &links.to_string(), kind, upgrade]);
        assert_eq!(line(&mut said), "connected");
        assert_eq!(line(&mut told), "all here");
        Pair { server, order, told, readers, _readers: stays }
    }

    fn sample(&mut self, batch: u64) -> Sample {
        writeln!(self.order, "{batch}").expect("the server reads");
        let told = line(&mut self.told);
        let numbers: Vec<u64> = told.split(' ').map(|number| number.parse().expect("a number")).collect();
        Sample::of(numbers[0], Duration::from_nanos(numbers[1]), Duration::from_nanos(numbers[2]))
    }

    /// Bytes of memory an idle link.
    fn weigh(mut self, links: usize) -> f64 {
        writeln!(self.order, "0").expect("the server reads");
        let grown: f64 = line(&mut self.told).parse().expect("a number");
        grown.max(1.0) / links as f64
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.readers] {
            // Both have nothing to lose.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("a line");
    line.trim().to_owned()
}

/// Plays a role, if this process was started for one.
pub(crate) fn play() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--fanout-server", "floor", links] => serve_floor(links.parse().expect("a number")),
        ["--fanout-server", _, links] => serve_ours(links.parse().expect("a number")),
        ["--fanout-readers", address, links, kind, upgrade] => {
            read_all(address, links.parse().expect("a number"), kind, upgrade);
        }
        _ => return false,
    }
    true
}

/// Reads orders (how many messages at a time) and answers what each cost.
fn take_orders(links: usize, mut fan_out: impl FnMut(u64)) {
    for batch in std::io::stdin().lines().map_while(Result::ok) {
        let batch: u64 = batch.parse().expect("a number");
        let (cpu, wall) = (process_cpu(), Instant::now());
        for _ in 0..ROUNDS {
            fan_out(batch);
        }
        let (cpu, wall) = (process_cpu().saturating_sub(cpu), wall.elapsed());
        println!("{} {} {}", ROUNDS * batch * links as u64, wall.as_nanos(), cpu.as_nanos());
    }
}

/// The floor: sockets that do not block, a poller for those that are full, and nothing else.
fn serve_floor(links: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("bound"));
    let mut sockets: Vec<mio::net::TcpStream> = (0..links)
        .map(|_| {
            let (mut socket, _) = listener.accept().expect("a reader");
            let mut asked = [0; 64];
            let _ = socket.read(&mut asked).expect("it asks");
            socket.set_nodelay(true).expect("a socket");
            socket.set_nonblocking(true).expect("a socket");
            mio::net::TcpStream::from_std(socket)
        })
        .collect();
    let mut poll = mio::Poll::new().expect("a poller");
    for (at, socket) in sockets.iter_mut().enumerate() {
        poll.registry().register(socket, mio::Token(at), mio::Interest::WRITABLE).expect("watched");
    }
    let mut events = mio::Events::with_capacity(1_024);
    println!("all here");
    take_orders(links, |batch| {
        let frame = vec![b'x'; PAYLOAD * batch as usize];
        let mut late: Vec<(usize, usize)> = Vec::new();
        for (at, socket) in sockets.iter_mut().enumerate() {
            let written = written(socket.write(&frame));
            if written < frame.len() {
                late.push((at, written));
            }
        }
        while !late.is_empty() {
            poll.poll(&mut events, None).expect("it polls");
            late.retain_mut(|(at, done)| {
                *done += written(sockets[*at].write(&frame[*done..]));
                *done < frame.len()
            });
        }
    });
}

fn written(outcome: std::io::Result<usize>) -> usize {
    match outcome {
        Ok(n) => n,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
        Err(error) => panic!("a reader went away: {error}"),
    }
}

/// Ours: a group on the I/O threads, a room that is this thread.
fn serve_ours(links: usize) {
    let rt = Rt::real();
    let (to_opened, opened) = rt.channel::<LinkHandle>("opened", links.max(1));
    let outlet = Outlet::new(|_| Ok(()));
    let mut router = Router::new();
    router.add(Route::get("/").to(move |request, reply| {
        let owner = Owner::new(&outlet, 0);
        let link = match request.wants_websocket() {
            true => reply.websocket(&[], 1 << 20, owner),
            false => Some(reply.sse(Some(owner))),
        };
        if let Some(link) = link {
            to_opened.try_send(link).expect("there is room for all");
        }
    }));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let io = IoThreads::new(&rt, threads, None).expect("pollers");
    let wire = io.wire();
    let before = resident();
    let running = io
        .start(Limits::default(), vec![Listener::bind("127.0.0.1:0").expect("a port")], Arc::new(router))
        .expect("it serves");
    println!("{}", running.addresses()[0]);
    let mut group = wire.doors().group();
    for _ in 0..links {
        let link = opened.recv_deadline(rt.now() + Duration::from_secs(60)).expect("a reader");
        group.join(&link);
    }
    println!("all here");
    let sent = || wire.doors().counts().map(|counts| counts.bytes_out.get()).sum::<u64>();
    let frame = Frame::chunk(&[b'x'; PAYLOAD]);
    let each = frame.len() as u64 * links as u64;
    // What opened the links has left before anything is counted.
    let mut quiet = sent();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        if std::mem::replace(&mut quiet, sent()) == quiet {
            break;
        }
    }
    let mut due = sent();
    if std::env::args().any(|argument| argument == "idle") {
        for _ in std::io::stdin().lines().map_while(Result::ok) {
            println!("{}", resident().saturating_sub(before));
        }
        return;
    }
    take_orders(links, |batch| {
        (0..batch).for_each(|_| group.fanout(frame.clone()));
        due += each * batch;
        // As the floor does: the next one when this one has left.
        while sent() < due {
            std::thread::sleep(Duration::from_micros(20));
        }
    });
}

/// Bytes of memory that this process asked for: what it reads of its own program is not counted.
pub(crate) fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux says it");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024
}

/// The readers: connects all of them, then reads whatever comes.
fn read_all(address: &str, links: usize, kind: &str, upgrade: &str) {
    let request = match upgrade {
        "" if kind == "floor" => String::from("x"),
        "" => String::from("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        _ => String::from(
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        ),
    };
    let mut poll = mio::Poll::new().expect("a poller");
    let mut sockets: Vec<mio::net::TcpStream> = (0..links)
        .map(|at| {
            let mut socket = TcpStream::connect(address).expect("the server listens");
            socket.write_all(request.as_bytes()).expect("it asks");
            socket.set_nonblocking(true).expect("a socket");
            let mut socket = mio::net::TcpStream::from_std(socket);
            poll.registry().register(&mut socket, mio::Token(at), mio::Interest::READABLE).expect("watched");
            socket
        })
        .collect();
    println!("connected");
    let mut events = mio::Events::with_capacity(1_024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        poll.poll(&mut events, None).expect("it polls");
        for event in &events {
            while sockets[event.token().0].read(&mut buffer).is_ok_and(|n| n == buffer.len()) {}
        }
    }
}
