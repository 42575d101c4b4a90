//! Many sessions of one server: what an idle one weighs, and how soon all are back after their links were cut.
//!
//! Three processes: this one keeps the time of day, one serves, one holds the clients' ends: the machines of as many
//! clients, bare, over sockets of one thread. Processor time is the server's alone.
//!
//! `SESSIONS_IDLE` sets how many are weighed (2,000), `SESSIONS_BACK` how many come back (10,000; a process here has
//! at most about 19,900 sockets).

use std::io::{BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use towpath::codec::{Bounds, Codec};
use towpath::metrics::{Exposition, Metrics};
use towpath::rt::{Rand, Rt};
use towpath::state::session::client::{Client, Input, Retry};
use towpath::state::session::{Action, Options, Timing};
use towpath::wire::websocket::{Message, Outgoing, Reader, Role, write_frame};

use super::fanout::{line, number, resident, role};
use super::pairs::{Bench, Case, Sample, process_cpu};
use super::sessions::serve;

/// What one idle session may cost the server, in bytes.
const IDLE_MAX: f64 = 8.0 * 1024.0;
/// How long many may take to be back.
const BACK_MAX: f64 = 3.0;
/// Clients that connect at once in the beginning.
const AT_ONCE: usize = 256;

pub(crate) fn run(bench: &mut Bench) {
    let mebibyte = f64::from(1u32 << 20);
    let case = Case {
        name: "sessions/idle",
        floor: "the goal: 8 KiB of user memory an idle session",
        unit: "sessions in a MiB",
        goal: 1.0,
    };
    if bench.wants(case.name) {
        let count = number("SESSIONS_IDLE", 2_000);
        let ours = || Sample::recorded(mebibyte / Herd::start(count).weigh(count));
        bench.pair(&case, || Sample::recorded(mebibyte / IDLE_MAX), ours);
    }
    let case = Case {
        name: "sessions/back",
        floor: "the goal: all are back 3 s after a cut of all",
        unit: "sessions",
        goal: 1.0,
    };
    if bench.wants(case.name) {
        let count = number("SESSIONS_BACK", 10_000);
        let mut herd = Herd::start(count);
        bench.pair(&case, || Sample::recorded(count as f64 / BACK_MAX), || herd.back());
    }
}

/// A server and the clients of its sessions.
struct Herd {
    server: Child,
    order: ChildStdin,
    told: BufReader<ChildStdout>,
    clients: Child,
    /// Open as long as the clients are to live.
    _clients: ChildStdin,
}

impl Herd {
    fn start(count: usize) -> Herd {
        let count = count.to_string();
        let (server, order, mut told) = role(&["--sessions-server", &count]);
        let address = line(&mut told);
        let (clients, stays, mut said) = role(&["--sessions-clients", &address, &count]);
        assert_eq!(line(&mut said), "connected");
        assert_eq!(line(&mut told), "all here");
        Herd { server, order, told, clients, _clients: stays }
    }

    /// Bytes of memory an idle session.
    fn weigh(mut self, count: usize) -> f64 {
        writeln!(self.order, "weigh").expect("the server reads");
        let grown: f64 = line(&mut self.told).parse().expect("a number");
        grown.max(1.0) / count as f64
    }

    /// Cuts every link and waits until each session has another.
    fn back(&mut self) -> Sample {
        writeln!(self.order, "cut").expect("the server reads");
        let told = line(&mut self.told);
        let numbers: Vec<u64> = told.split(' ').map(|number| number.parse().expect("a number")).collect();
        Sample::of(numbers[0], Duration::from_nanos(numbers[1]), Duration::from_nanos(numbers[2]))
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.clients] {
            // Both have nothing to lose.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Plays a role, if this process was started for one.
pub(crate) fn play() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--sessions-server", count] => server(count.parse().expect("a number")),
        ["--sessions-clients", address, count] => {
            let address = address.parse().expect("an address");
            Clients::new(address, count.parse().expect("a number")).run();
        }
        _ => return false,
    }
    true
}

fn server(count: u64) {
    let rt = Rt::real();
    let mut metrics = Metrics::new();
    let (server, running) = serve(&rt, &mut metrics);
    let shown = metrics.into_exposition();
    let before = resident();
    println!("{}", running.addresses()[0]);
    until(|| figure(&shown, "sessions_connected") == count);
    println!("all here");
    for order in std::io::stdin().lines().map_while(Result::ok) {
        if order == "weigh" {
            // Whatever brought them here has settled, and some heartbeats have passed.
            std::thread::sleep(Duration::from_secs(3));
            println!("{}", resident().saturating_sub(before));
            continue;
        }
        let resumed = || figure(&shown, "result=\"resumed\"");
        let due = resumed() + count;
        let (cpu, wall) = (process_cpu(), Instant::now());
        server.cut(None);
        until(|| resumed() >= due);
        let (cpu, wall) = (process_cpu().saturating_sub(cpu), wall.elapsed());
        assert_eq!(figure(&shown, "sessions_began"), count, "a session was lost");
        println!("{count} {} {}", wall.as_nanos(), cpu.as_nanos());
        until(|| figure(&shown, "sessions_connected") == count);
    }
}

fn until(done: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < patience, "it takes a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The sample whose line holds this text; 0 while there is none.
fn figure(shown: &Exposition, text: &str) -> u64 {
    let all = shown.text();
    let line = all.lines().find(|line| !line.starts_with('#') && line.contains(text));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// The machines of many clients, and their sockets.
struct Clients {
    rt: Rt,
    rand: Rand,
    address: std::net::SocketAddr,
    poll: Poll,
    members: Vec<(Client, Option<Socket>)>,
    buffer: Vec<u8>,
}

struct Socket {
    link: u64,
    stream: mio::net::TcpStream,
    out: Vec<u8>,
    stage: Stage,
}

enum Stage {
    /// The answer to the upgrade, as far as it came.
    Asked(Vec<u8>),
    Open(Box<Reader>),
}

impl Clients {
    fn new(address: std::net::SocketAddr, count: usize) -> Clients {
        let rt = Rt::real();
        let options = Options {
            timing: Timing::default(),
            bounds: towpath::state::seq::SendBounds::default(),
            encode: Codec::Binary.encoder(),
        };
        let member = |at| (Client::new(&format!("client-{at}"), "SERVER", options, Retry::default()), None);
        let members = (0..count).map(member).collect();
        let poll = Poll::new().expect("a poller");
        Clients { rand: rt.rand("herd"), rt, address, poll, members, buffer: vec![0; 64 << 10] }
    }

    /// Connects all of them, says so, and keeps them.
    fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        let (mut asked, mut told) = (0, false);
        loop {
            if !told {
                let connected = self.members.iter().filter(|(machine, _)| machine.is_connected()).count();
                while asked < self.members.len() && asked < connected + AT_ONCE {
                    self.step(asked, Input::Connect);
                    asked += 1;
                }
                told = connected == self.members.len();
                if told {
                    println!("connected");
                }
            }
            self.poll.poll(&mut events, Some(Duration::from_millis(5))).expect("it polls");
            for event in &events {
                self.go_on(event.token().0);
            }
            let now = self.rt.now();
            for at in 0..self.members.len() {
                if self.members[at].0.deadline().is_some_and(|deadline| deadline <= now) {
                    self.step(at, Input::Alarm);
                }
            }
        }
    }

    fn step(&mut self, at: usize, input: Input) {
        let mut sink = Vec::new();
        self.members[at].0.step(self.rt.now(), self.rand.next_u64(), input, &mut sink);
        for action in sink {
            match action {
                Action::Dial { dial } => self.dial(at, dial),
                Action::AskMetadata { link } => self.step(at, Input::Metadata { link, metadata: Ok(None) }),
                Action::Write { link, frame } => {
                    if let Some(socket) = self.members[at].1.as_mut().filter(|socket| socket.link == link) {
                        write_frame(&mut socket.out, Outgoing::Binary(&frame), Some([1, 2, 3, 4]));
                        socket.flush();
                    }
                }
                Action::Close { link, .. } => {
                    self.members[at].1.take_if(|socket| socket.link == link);
                }
                Action::Ended { cause, .. } => panic!("client {at} lost its session: {cause}"),
                _ => {}
            }
        }
    }

    fn dial(&mut self, at: usize, dial: u64) {
        let mut stream = mio::net::TcpStream::connect(self.address).expect("a socket");
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(at), interest).expect("watched");
        let out = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let stage = Stage::Asked(Vec::new());
        self.members[at].1 = Some(Socket { link: dial, stream, out: out.to_vec(), stage });
    }

    /// Writes and reads what can be.
    fn go_on(&mut self, at: usize) {
        let Some(socket) = self.members[at].1.as_mut() else { return };
        let link = socket.link;
        socket.flush();
        let mut frames = Vec::new();
        let mut opened = false;
        let mut over = loop {
            match socket.stream.read(&mut self.buffer) {
                Ok(0) => break true,
                Ok(n) => {
                    let mut bytes = &self.buffer[..n];
                    if let Stage::Asked(head) = &mut socket.stage {
                        head.extend_from_slice(bytes);
                        if !head.ends_with(b"\r\n\r\n") {
                            continue;
                        }
                        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(head));
                        socket.stage = Stage::Open(Box::new(Reader::new(Role::Client, 1 << 20)));
                        (opened, bytes) = (true, &[]);
                    }
                    if let Stage::Open(reader) = &mut socket.stage {
                        reader.feed(bytes, &mut frames).expect("the server keeps to the protocol");
                    }
                    continue;
                }
                Err(why) => break why.kind() != std::io::ErrorKind::WouldBlock,
            }
        };
        if opened {
            self.step(at, Input::Dialed { dial: link });
        }
        for frame in frames {
            match frame {
                Message::Binary(bytes) => {
                    let envelope =
                        Codec::Binary.decode(&bytes.into(), Bounds::default()).map_err(|bad| bad.0);
                    self.step(at, Input::Frame { link, envelope });
                }
                Message::Close(_) => over = true,
                _ => {}
            }
        }
        if over && let Some(socket) = self.members[at].1.take_if(|socket| socket.link == link) {
            match socket.stage {
                Stage::Asked(_) => self.step(at, Input::DialFailed { dial: link }),
                Stage::Open(_) => self.step(at, Input::Detached { link }),
            }
        }
    }
}

impl Socket {
    fn flush(&mut self) {
        // A socket that cannot be written is heard of when it is read.
        if let Ok(written) = self.stream.write(&self.out) {
            self.out.drain(..written);
        }
    }
}
