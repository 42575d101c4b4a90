//! The Durable Streams path beside the Rust server of that protocol, on the same work: appends, and fan-out
//! over server-sent events.
//!
//! `make bench-peers` installs the peer outside the repository and runs this. Both servers are programs of
//! their own, started fresh for each run and in turn; this process is the load. `BENCH_PAIRS=n` sets how
//! many pairs, `FOLLOWERS=100,1000` how many follow.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll;

/// Bytes of a message.
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
    Ok(Figures { rate: units / wall, p99: 0.0, cpu_per_million: cpu / units * 1e6, peak: server.peak()? })
}

/// One follower's connection, and what of a mark has arrived.
struct Follower {
    socket: TcpStream,
    rest: Vec<u8>,
}

/// A mark in a message: when it was sent, between two signs that stand nowhere else.
const MARK: usize = 22;

fn fanout(server: &Server, followers: usize) -> Outcome<Figures> {
    let path = "/v1/stream/fanout";
    let mut publisher = Client::open(server.address)?;
    publisher.must("PUT", path, b"")?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut all = Vec::with_capacity(followers);
    for n in 0..followers {
        let mut socket = TcpStream::connect(server.address)?;
        write!(socket, "GET {path}?offset=now&live=sse HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        // It follows once it has heard where the end is.
        let mut heard = Vec::new();
        while !heard.windows(8).any(|window| window == b"upToDate") {
            let mut buffer = [0; 1024];
            let length = socket.read(&mut buffer)?;
            if length == 0 {
                return Err("a follower was refused".into());
            }
            heard.extend_from_slice(&buffer[..length]);
        }
        socket.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(n as u64);
        epoll::add(&set, socket.as_fd(), data, epoll::EventFlags::IN)?;
        all.push(Follower { socket, rest: Vec::new() });
    }
    let every = Duration::from_nanos(1_000_000_000 * followers as u64 / OFFERED);
    let messages = (FANOUT_FOR.as_nanos() / every.as_nanos()) as usize;
    let base = Instant::now();
    let cpu = server.cpu()?;
    let publishing = std::thread::spawn(move || -> Result<(), String> {
        for n in 0..messages {
            let at = every * n as u32;
            std::thread::sleep(at.saturating_sub(base.elapsed()));
            let mut message = format!("@{:020}@", base.elapsed().as_nanos()).into_bytes();
            message.resize(MESSAGE, b'#');
            publisher.must("POST", path, &message).map_err(|error| error.to_string())?;
        }
        Ok(())
    });
    let wanted = messages * followers;
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
    Ok(Figures {
        rate: wanted as f64 / wall,
        p99: waits[wanted * 99 / 100] as f64 / 1e6,
        cpu_per_million: cpu / wanted as f64 * 1e6,
        peak: server.peak()?,
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
        let sent: u64 =
            std::str::from_utf8(&mark[1..MARK - 1]).ok().and_then(|it| it.parse().ok()).unwrap_or(now);
        waits.push(now.saturating_sub(sent));
        at = begin + MARK;
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
    println!("| work | who | a second | p99 ms | CPU s per million | peak MiB |");
    println!("|---|---|---|---|---|---|");
    let mut works: Vec<(String, Option<usize>)> = vec![(format!("append, {WRITERS} writers"), None)];
    for count in followers.split(',') {
        works.push((format!("fan-out to {count}"), Some(count.trim().parse()?)));
    }
    for (name, followers) in works {
        let mut runs: [Vec<Figures>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..pairs {
            for (side, who) in [Who::Peer, Who::Towpath].into_iter().enumerate() {
                let server = Server::start(who, &programs)?;
                runs[side].push(match followers {
                    None => appends(&server)?,
                    Some(count) => fanout(&server, count)?,
                });
            }
        }
        for (who, runs) in ["durable-streams 0.1.5", "towpath"].into_iter().zip(&runs) {
            let of = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure));
            println!(
                "| {name} | {who} | {:.0} | {:.2} | {:.2} | {:.1} |",
                of(|run| run.rate),
                of(|run| run.p99),
                of(|run| run.cpu_per_million),
                of(|run| run.peak),
            );
        }
        let ratio = |figure: fn(&Figures) -> f64| {
            median(runs[1].iter().zip(&runs[0]).map(|(ours, peer)| figure(ours) / figure(peer).max(1e-9)))
        };
        println!(
            "| {name} | ratio, ours to the peer's | {:.2} | {:.2} | {:.2} | {:.2} |",
            ratio(|run| run.rate),
            ratio(|run| run.p99),
            ratio(|run| run.cpu_per_million),
            ratio(|run| run.peak),
        );
    }
    Ok(())
}
