//! The Durable Streams path beside the Rust server of that protocol, on the same work: appends, fan-out over
//! server-sent events, more of it than fits, and followers that stop reading. Fan-out over WebSocket, which that
//! server does not have, is beside its server-sent events.
//!
//! `make bench-peers` installs the peer outside the repository and runs this. Both servers are programs of
//! their own, started fresh for each run and in turn; this process is the load. `BENCH_PAIRS=n` sets how
//! many pairs, `FOLLOWERS=100,1000` how many follow, `WORK=overload` only what has that in its name.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll;

/// Bytes of a message, unless the work says otherwise.
const MESSAGE: usize = 256;
/// How many append at once, each to a stream of its own.
const WRITERS: usize = 16;
/// How long appends are counted.
const APPEND_FOR: Duration = Duration::from_secs(5);
/// Deliveries offered a second.
const OFFERED: u64 = 50_000;
/// How long fan-out is measured.
const FANOUT_FOR: Duration = Duration::from_secs(10);
/// Clock ticks of `/proc/<pid>/stat` a second, on every Linux there is.
const TICKS: f64 = 100.0;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Towpath,
    Peer,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Who::Towpath => "towpath",
            Who::Peer => "durable-streams 0.1.5",
        }
    }
}

/// A server of its own process and folder.
struct Server {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Server {
    fn start(who: Who, programs: &Path) -> Outcome<Server> {
        // Nobody else takes a port that was free a moment ago, on a machine that measures.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder = std::env::temp_dir().join(format!("towpath-peers-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let mut command = match who {
            Who::Towpath => {
                let mut command = Command::new(programs.join("release/towpath"));
                command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(&folder);
                command
            }
            Who::Peer => {
                let mut command = Command::new(programs.join("peers/bin/durable-streams-server"));
                command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--data-dir"]).arg(&folder);
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Server { child, address: SocketAddr::from(([127, 0, 0, 1], port)), folder };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(server.address).is_err() {
            if Instant::now() > deadline {
                return Err("the server did not start".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Processor seconds it has used.
    fn cpu(&self) -> Outcome<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS)
    }

    /// The most memory it has had, in MiB.
    fn peak(&self) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
        Ok(line.split_whitespace().nth(1).ok_or("no figure")?.parse::<f64>()? / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What cannot be ended or removed is left to the system.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// A connection that sends one request after the other.
struct Client {
    reader: BufReader<TcpStream>,
    request: Vec<u8>,
}

impl Client {
    fn open(address: SocketAddr) -> Outcome<Client> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        Ok(Client { reader: BufReader::new(socket), request: Vec::new() })
    }

    /// The status of the answer, whose body is read and dropped.
    fn send(&mut self, method: &str, path: &str, body: &[u8]) -> Outcome<u16> {
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        self.request.extend_from_slice(body);
        self.reader.get_mut().write_all(&self.request)?;
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            self.reader.read_line(&mut line)?;
            let text = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = text.strip_prefix("http/1.1 ") {
                status = rest[..3].parse()?;
            } else if let Some(value) = text.strip_prefix("content-length: ") {
                length = value.parse()?;
            } else if text.is_empty() {
                break;
            }
        }
        std::io::copy(&mut self.reader.by_ref().take(length), &mut std::io::sink())?;
        Ok(status)
    }

    fn must(&mut self, method: &str, path: &str, body: &[u8]) -> Outcome<()> {
        match self.send(method, path, body)? {
            200..=299 => Ok(()),
            status => Err(format!("{method} {path}: {status}").into()),
        }
    }
}

/// What one run came to.
struct Figures {
    /// Appends or deliveries a second.
    rate: f64,
    /// Of deliveries, in milliseconds.
    p99: f64,
    cpu_per_million: f64,
    peak: f64,
    /// How many of those that stopped reading were cut.
    cut: f64,
    /// Milliseconds until all followers were back after all their connections had been reset at once.
    back: f64,
}

fn appends(server: &Server) -> Outcome<Figures> {
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (cpu, begun) = (server.cpu()?, Instant::now());
    std::thread::scope(|scope| -> Outcome<()> {
        let mut writers = Vec::with_capacity(WRITERS);
        for n in 0..WRITERS {
            let (done, stop) = (&done, &stop);
            let mut client = Client::open(server.address)?;
            let path = format!("/v1/stream/append-{n}");
            client.must("PUT", &path, b"")?;
            writers.push(scope.spawn(move || -> Result<(), String> {
                while !stop.load(Ordering::Relaxed) {
                    client.must("POST", &path, &[b'#'; MESSAGE]).map_err(|error| error.to_string())?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        std::thread::sleep(APPEND_FOR);
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().map_err(|_| "a writer panicked")??;
        }
        Ok(())
    })?;
    let units = done.load(Ordering::Relaxed) as f64;
    let (cpu, wall) = (server.cpu()? - cpu, begun.elapsed().as_secs_f64());
    Ok(Figures {
        rate: units / wall,
        p99: 0.0,
        cpu_per_million: cpu / units * 1e6,
        peak: server.peak()?,
        cut: 0.0,
        back: 0.0,
    })
}

/// One follower's connection, and what of a mark has arrived.
struct Follower {
    socket: TcpStream,
    rest: Vec<u8>,
}

/// A mark in a message: when it was sent, between two signs that stand nowhere else.
const MARK: usize = 22;

/// The work of fan-out.
#[derive(Clone, Copy)]
struct Load {
    followers: usize,
    /// How many of them stop reading once they follow.
    stalled: usize,
    /// Between two messages.
    every: Duration,
    /// Of a message.
    bytes: usize,
    /// Ours is followed over the WebSocket of its own door.
    websocket: bool,
    /// In the end all connections are reset at once, and everybody comes back.
    resets: bool,
}

impl Load {
    /// Small messages, at the rate that is offered in every table.
    fn steady(followers: usize) -> Load {
        let every = Duration::from_nanos(1_000_000_000 * followers as u64 / OFFERED);
        Load { followers, stalled: 0, every, bytes: MESSAGE, websocket: false, resets: false }
    }
}

/// The stream that is followed, by the door it is written and followed through.
#[derive(Clone, Copy)]
enum Door {
    DurableStreams,
    WebSocket,
}

impl Door {
    fn create(self, publisher: &mut Client) -> Outcome<()> {
        match self {
            Door::DurableStreams => publisher.must("PUT", "/v1/stream/fanout", b""),
            Door::WebSocket => publisher.must("PUT", "/v1/streams/fanout", b""),
        }
    }

    fn publish(self, publisher: &mut Client, message: &[u8]) -> Outcome<()> {
        match self {
            Door::DurableStreams => publisher.must("POST", "/v1/stream/fanout", message),
            Door::WebSocket => {
                let content = std::str::from_utf8(message)?;
                let body = format!(r#"{{"role":"user","content":"{content}"}}"#);
                publisher.must("POST", "/v1/streams/fanout/messages", body.as_bytes())
            }
        }
    }

    /// Follows from the end; back once it has heard where that is.
    fn follow(self, address: SocketAddr) -> Outcome<TcpStream> {
        let mut socket = TcpStream::connect(address)?;
        let live: &[u8] = match self {
            Door::DurableStreams => {
                let path = "/v1/stream/fanout?offset=now&live=sse";
                write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
                b"upToDate"
            }
            Door::WebSocket => {
                write!(
                    socket,
                    "GET /v1/streams/fanout/events?since=now HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
                     Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: towpath.v1\r\n\r\n"
                )?;
                br#""t":"live""#
            }
        };
        let mut heard = Vec::new();
        while !heard.windows(live.len()).any(|window| window == live) {
            let mut buffer = [0; 1024];
            let length = socket.read(&mut buffer)?;
            if length == 0 {
                return Err(format!("a follower was refused: {}", String::from_utf8_lossy(&heard)).into());
            }
            heard.extend_from_slice(&buffer[..length]);
        }
        Ok(socket)
    }
}

/// How many of these are over, once what had been sent is read.
fn cut(stalled: Vec<TcpStream>) -> Outcome<usize> {
    let mut over = 0;
    let mut buffer = vec![0; 64 * 1024];
    for mut socket in stalled {
        // What was queued for it comes now; who is not cut has nothing more to say, or goes on for ever.
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            match socket.read(&mut buffer) {
                Ok(0) => {
                    over += 1;
                    break;
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    over += 1;
                    break;
                }
                Err(_) => break,
            }
        }
    }
    Ok(over)
}

/// Resets all connections at once; how long until as many follow again.
fn come_back(door: Door, address: SocketAddr, all: Vec<Follower>) -> Outcome<Duration> {
    let count = all.len();
    // A connection that is closed with something unread is reset: the last message lies in all of them.
    door.publish(&mut Client::open(address)?, &[b'#'; MESSAGE])?;
    for follower in &all {
        follower.socket.set_nonblocking(false)?;
        follower.socket.peek(&mut [0])?;
    }
    drop(all);
    let begun = Instant::now();
    // From two threads, as this machine has two cores.
    std::thread::scope(|scope| {
        let half = |count: usize| {
            scope.spawn(move || -> Result<Vec<TcpStream>, String> {
                (0..count).map(|_| door.follow(address).map_err(|error| error.to_string())).collect()
            })
        };
        let halves = [half(count / 2), half(count - count / 2)];
        for back in halves {
            back.join().map_err(|_| "a follower panicked")??;
        }
        Ok(begun.elapsed())
    })
}

fn fanout(who: Who, server: &Server, load: Load) -> Outcome<Figures> {
    let door = if who == Who::Towpath && load.websocket { Door::WebSocket } else { Door::DurableStreams };
    let mut publisher = Client::open(server.address)?;
    door.create(&mut publisher)?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let healthy = load.followers - load.stalled;
    let mut all = Vec::with_capacity(healthy);
    for n in 0..healthy {
        let socket = door.follow(server.address)?;
        socket.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(n as u64);
        epoll::add(&set, socket.as_fd(), data, epoll::EventFlags::IN)?;
        all.push(Follower { socket, rest: Vec::new() });
    }
    let stalled =
        (0..load.stalled).map(|_| door.follow(server.address)).collect::<Outcome<Vec<TcpStream>>>()?;
    let messages = (FANOUT_FOR.as_nanos() / load.every.as_nanos()) as usize;
    let base = Instant::now();
    let cpu = server.cpu()?;
    let publishing = std::thread::spawn(move || -> Result<(), String> {
        for n in 0..messages {
            let at = load.every * n as u32;
            std::thread::sleep(at.saturating_sub(base.elapsed()));
            let mut message = format!("@{:020}@", base.elapsed().as_nanos()).into_bytes();
            message.resize(load.bytes, b'#');
            door.publish(&mut publisher, &message).map_err(|error| error.to_string())?;
        }
        Ok(())
    });
    let wanted = messages * healthy;
    let mut waits = Vec::with_capacity(wanted);
    let mut events = Vec::with_capacity(1_024);
    let mut buffer = vec![0; 64 * 1024];
    let deadline = base + 3 * FANOUT_FOR;
    while waits.len() < wanted && Instant::now() < deadline {
        events.clear();
        let patience = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        epoll::wait(&set, rustix::buffer::spare_capacity(&mut events), Some(&patience))?;
        for event in &events {
            let follower = &mut all[event.data.u64() as usize];
            let length = follower.socket.read(&mut buffer)?;
            if length == 0 {
                return Err("a follower was cut".into());
            }
            take_marks(&mut follower.rest, &buffer[..length], base, &mut waits);
        }
    }
    publishing.join().map_err(|_| "the publisher panicked")??;
    if waits.len() < wanted {
        return Err(format!("{} of {wanted} deliveries came", waits.len()).into());
    }
    let (cpu, wall) = (server.cpu()? - cpu, base.elapsed().as_secs_f64());
    waits.sort_unstable();
    let peak = server.peak()?;
    let cut = cut(stalled)? as f64;
    let back = if load.resets { come_back(door, server.address, all)? } else { Duration::ZERO };
    Ok(Figures {
        rate: wanted as f64 / wall,
        p99: waits[wanted * 99 / 100] as f64 / 1e6,
        cpu_per_million: cpu / wanted as f64 * 1e6,
        peak,
        cut,
        back: back.as_secs_f64() * 1e3,
    })
}

/// Finds whole marks in what has arrived and keeps what may be the beginning of one.
fn take_marks(rest: &mut Vec<u8>, arrived: &[u8], base: Instant, waits: &mut Vec<u64>) {
    let now = base.elapsed().as_nanos() as u64;
    rest.extend_from_slice(arrived);
    let mut at = 0;
    while let Some(begin) = rest[at..].iter().position(|byte| *byte == b'@').map(|found| at + found) {
        let Some(mark) = rest.get(begin..begin + MARK) else {
            at = begin;
            break;
        };
        let digits = std::str::from_utf8(&mark[1..MARK - 1]).unwrap_or_default();
        match digits.parse::<u64>() {
            Ok(sent) if mark.ends_with(b"@") => {
                waits.push(now.saturating_sub(sent));
                at = begin + MARK;
            }
            // A byte of a frame's length.
            _ => at = begin + 1,
        }
    }
    let begun = rest[at..].iter().position(|byte| *byte == b'@').map_or(rest.len(), |found| at + found);
    rest.drain(..begun);
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Outcome<()> {
    let programs = PathBuf::from(std::env::args().nth(1).ok_or("say where the programs are: target")?);
    let pairs: usize = std::env::var("BENCH_PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(3);
    let followers = std::env::var("FOLLOWERS").unwrap_or_else(|_| "100,1000".into());
    let only = std::env::var("WORK").unwrap_or_default();
    println!("| work | who | a second | p99 ms | CPU s per million | peak MiB | cut | back ms |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut works: Vec<(String, Option<Load>)> = vec![(format!("append, {WRITERS} writers"), None)];
    for count in followers.split(',') {
        works.push((format!("fan-out to {count}"), Some(Load::steady(count.trim().parse()?))));
    }
    let websocket = Load { websocket: true, ..Load::steady(1_000) };
    works.push(("fan-out to 1000, ours over WebSocket".into(), Some(websocket)));
    let overload = Load { every: Duration::from_micros(2_500), resets: true, ..Load::steady(1_000) };
    works.push(("overload: 1000 followers, 400 messages a second".into(), Some(overload)));
    let every = Duration::from_millis(2);
    let stalled = Load { stalled: 20, every, bytes: 8 * 1024, ..Load::steady(40) };
    works.push(("stalled: 20 of 40 do not read 8 KiB, 500 times a second".into(), Some(stalled)));
    works.push((
        "stalled: none of 20, to compare".into(),
        Some(Load { followers: 20, stalled: 0, ..stalled }),
    ));
    for (name, load) in works.into_iter().filter(|(name, _)| name.contains(&only)) {
        let mut runs: [Vec<Figures>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..pairs {
            for (side, who) in [Who::Peer, Who::Towpath].into_iter().enumerate() {
                let server = Server::start(who, &programs)?;
                let run = match load {
                    None => appends(&server),
                    Some(load) => fanout(who, &server, load),
                };
                match run {
                    Ok(figures) => runs[side].push(figures),
                    Err(error) => println!("| {name} | {} | failed: {error} |", who.name()),
                }
            }
        }
        if runs.iter().any(Vec::is_empty) {
            continue;
        }
        for (who, runs) in [Who::Peer, Who::Towpath].into_iter().zip(&runs) {
            let of = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure));
            println!(
                "| {name} | {} | {:.0} | {:.2} | {:.2} | {:.1} | {:.0} | {:.0} |",
                who.name(),
                of(|run| run.rate),
                of(|run| run.p99),
                of(|run| run.cpu_per_million),
                of(|run| run.peak),
                of(|run| run.cut),
                of(|run| run.back),
            );
        }
        let ratio = |figure: fn(&Figures) -> f64| {
            median(runs[1].iter().zip(&runs[0]).map(|(ours, peer)| figure(ours) / figure(peer).max(1e-9)))
        };
        println!(
            "| {name} | ratio, ours to the peer's | {:.2} | {:.2} | {:.2} | {:.2} | | |",
            ratio(|run| run.rate),
            ratio(|run| run.p99),
            ratio(|run| run.cpu_per_million),
            ratio(|run| run.peak),
        );
    }
    Ok(())
}
