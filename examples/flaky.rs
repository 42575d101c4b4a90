//! A TCP proxy that behaves like a bad network, from a seed: connections are reset, closed, frozen,
//! delayed, trickled, split into small pieces, or swallowed in one direction or both.
//!
//!     cargo run --example flaky -- --listen 127.0.0.1:7001 --to 127.0.0.1:7700 --seed 7 --every 1-5s
//!
//! Without `--every` it passes bytes on as they are. Faults: all of them by default, or those of
//! `--faults reset,close,half-open,freeze,hole,hole-up,hole-down`; and for every byte `--delay 10ms`, `--split 100`,
//! `--trickle 65536` (bytes a second).
//! Tests include this file and drive [`Flaky`] directly.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// What can happen to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both sides see a reset.
    Reset,
    /// Both sides see an end.
    Close,
    /// The client sees an end, the server nothing: for it the connection stays, and nothing comes any more.
    HalfOpen,
    /// Nothing passes for a while, then everything.
    Freeze,
    /// Nothing passes any more, in neither direction; both sides stay connected.
    Hole,
    /// The same, only from the client to the server.
    HoleUp,
    /// The same, only from the server to the client.
    HoleDown,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 7] = [
        Fault::Reset,
        Fault::Close,
        Fault::HalfOpen,
        Fault::Freeze,
        Fault::Hole,
        Fault::HoleUp,
        Fault::HoleDown,
    ];

    fn parse(name: &str) -> Option<Fault> {
        Some(match name {
            "reset" => Fault::Reset,
            "close" => Fault::Close,
            "half-open" => Fault::HalfOpen,
            "freeze" => Fault::Freeze,
            "hole" => Fault::Hole,
            "hole-up" => Fault::HoleUp,
            "hole-down" => Fault::HoleDown,
            _ => return None,
        })
    }
}

/// What the network is like.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// How long a connection lives before something happens to it; never, if there is no range.
    pub every: Option<Range<Duration>>,
    /// What happens then.
    pub faults: Vec<Fault>,
    /// How long every piece is under way.
    pub delay: Duration,
    /// The longest piece that is passed on at once; no bound, if it is 0.
    pub split: usize,
    /// Bytes a second in each direction; no bound, if it is 0.
    pub trickle: usize,
}

/// How many pieces are under way at once on a way that takes time.
const UNDER_WAY: usize = 1024;

/// Pieces, each with the moment it arrives.
type UnderWay = Receiver<(Instant, io::Result<Vec<u8>>)>;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound.max(1)
    }
}

/// A running proxy. Dropping it cuts everything.
pub struct Flaky {
    address: SocketAddr,
    inner: Arc<Inner>,
    acceptor: Option<thread::JoinHandle<()>>,
}

struct Inner {
    to: SocketAddr,
    seed: u64,
    weather: Weather,
    lines: Mutex<BTreeMap<u64, Arc<Line>>>,
    next: AtomicU64,
    faults: AtomicU64,
    stopped: AtomicBool,
}

/// One connection through the proxy.
struct Line {
    client: TcpStream,
    server: TcpStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    frozen_until: Option<Instant>,
    hole_up: bool,
    hole_down: bool,
    half_open: bool,
    over: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Flaky {
    /// Passes on what comes to `listen`.
    pub fn start(listen: &str, to: &str, seed: u64, weather: Weather) -> io::Result<Flaky> {
        let listener = TcpListener::bind(listen)?;
        let to = to.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
        let inner = Arc::new(Inner {
            to,
            seed,
            weather,
            lines: Mutex::default(),
            next: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let address = listener.local_addr()?;
        let accepting = inner.clone();
        let acceptor = thread::spawn(move || accept_all(&listener, &accepting));
        Ok(Flaky { address, inner, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this to every connection there is. Gives how many it hit: those that bytes still passed
    /// through.
    pub fn strike(&self, fault: Fault) -> usize {
        let lines: Vec<Arc<Line>> = lock(&self.inner.lines).values().cloned().collect();
        let hit = lines.iter().filter(|line| line.suffer(fault, Duration::from_millis(500))).count();
        self.inner.faults.fetch_add(hit as u64, Ordering::SeqCst);
        hit
    }

    /// How many faults there were, and how many connections.
    pub fn counts(&self) -> (u64, u64) {
        (self.inner.faults.load(Ordering::SeqCst), self.inner.next.load(Ordering::SeqCst))
    }
}

impl Drop for Flaky {
    fn drop(&mut self) {
        self.inner.stopped.store(true, Ordering::SeqCst);
        self.strike(Fault::Reset);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

fn accept_all(listener: &TcpListener, inner: &Arc<Inner>) {
    for client in listener.incoming() {
        if inner.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        let Ok(server) = TcpStream::connect(inner.to) else {
            reset(&client);
            continue;
        };
        let number = inner.next.fetch_add(1, Ordering::SeqCst);
        let inner = inner.clone();
        thread::spawn(move || {
            if let Err(error) = run(client, server, number, &inner) {
                eprintln!("flaky: connection {number}: {error}");
            }
            lock(&inner.lines).remove(&number);
        });
    }
}

fn reset(stream: &TcpStream) {
    drop(socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

fn run(client: TcpStream, server: TcpStream, number: u64, inner: &Inner) -> io::Result<()> {
    let weather = &inner.weather;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let line = Arc::new(Line { client, server, state: Mutex::default(), changed: Condvar::new() });
    lock(&inner.lines).insert(number, line.clone());
    let mut dice = Dice(inner.seed ^ number.wrapping_mul(0xD134_2543_DE82_EF95));
    let pump = |up: bool| {
        let (line, weather) = (line.clone(), weather.clone());
        thread::spawn(move || line.pump(up, &weather))
    };
    let pumps = [pump(true), pump(false)];
    if let Some(every) = &weather.every {
        loop {
            let span = (every.end - every.start).as_millis() as u64;
            let life = every.start + Duration::from_millis(dice.below(span + 1));
            if line.wait_over(life) {
                break;
            }
            let fault = weather.faults[dice.below(weather.faults.len() as u64) as usize];
            inner.faults.fetch_add(1, Ordering::SeqCst);
            line.suffer(fault, Duration::from_millis(100 + dice.below(900)));
        }
    }
    for pump in pumps {
        drop(pump.join());
    }
    Ok(())
}

impl Line {
    /// Waits for the end of the connection; false if it outlives `life`.
    fn wait_over(&self, life: Duration) -> bool {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, life, |state| !state.over);
        waited.map_or(true, |(state, _)| state.over)
    }

    /// False if no bytes passed through it anyway.
    fn suffer(&self, fault: Fault, freeze: Duration) -> bool {
        let mut state = lock(&self.state);
        let hit = !state.over && !state.hole_up && !state.hole_down;
        match fault {
            Fault::Reset | Fault::Close => state.over = true,
            Fault::HalfOpen => (state.hole_up, state.hole_down, state.half_open) = (true, true, true),
            Fault::Freeze => state.frozen_until = Some(Instant::now() + freeze),
            Fault::Hole => (state.hole_up, state.hole_down) = (true, true),
            Fault::HoleUp => state.hole_up = true,
            Fault::HoleDown => state.hole_down = true,
        }
        drop(state);
        self.changed.notify_all();
        let ended = match fault {
            Fault::Reset | Fault::Close => &[&self.client, &self.server][..],
            Fault::HalfOpen => &[&self.client][..],
            _ => &[],
        };
        for stream in ended {
            if fault == Fault::Reset {
                reset(stream);
            }
            // Ends the reads of its pumps; they drop the sockets.
            drop(stream.shutdown(Shutdown::Both));
        }
        hit
    }

    fn pump(&self, up: bool, weather: &Weather) {
        let (from, to) = if up { (&self.client, &self.server) } else { (&self.server, &self.client) };
        let passed = self.pass(up, from, to, weather);
        if up && lock(&self.state).half_open {
            // The server is not told.
        } else if passed.is_ok() {
            // A half-close passes through.
            drop(to.shutdown(Shutdown::Write));
        } else {
            lock(&self.state).over = true;
            self.changed.notify_all();
            drop(from.shutdown(Shutdown::Both));
            drop(to.shutdown(Shutdown::Both));
        }
    }

    fn pass(&self, up: bool, mut from: &TcpStream, to: &TcpStream, weather: &Weather) -> io::Result<()> {
        let mut buffer = vec![0; if weather.split > 0 { weather.split } else { 64 * 1024 }];
        if weather.delay.is_zero() {
            loop {
                let count = from.read(&mut buffer)?;
                if !self.deliver(up, to, &buffer[..count], weather)? {
                    return Ok(());
                }
            }
        }
        thread::scope(|scope| {
            let (depart, under_way) = sync_channel(UNDER_WAY);
            let arriving = scope.spawn(move || {
                let arrived = self.deliver_all(up, to, &under_way, weather);
                if arrived.is_err() {
                    // Ends the read below.
                    drop(from.shutdown(Shutdown::Both));
                }
                arrived
            });
            loop {
                let piece = from.read(&mut buffer).map(|count| buffer[..count].to_vec());
                let ends = piece.as_ref().map_or(true, Vec::is_empty);
                if depart.send((Instant::now() + weather.delay, piece)).is_err() || ends {
                    break;
                }
            }
            arriving.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
        })
    }

    /// Passes on what is under way, each piece at its time.
    fn deliver_all(
        &self,
        up: bool,
        to: &TcpStream,
        under_way: &UnderWay,
        weather: &Weather,
    ) -> io::Result<()> {
        for (at, piece) in under_way {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if !self.deliver(up, to, &piece?, weather)? {
                break;
            }
        }
        Ok(())
    }

    /// Passes a piece on; false after the last one, which is empty.
    fn deliver(&self, up: bool, mut to: &TcpStream, piece: &[u8], weather: &Weather) -> io::Result<bool> {
        if weather.trickle > 0 {
            thread::sleep(Duration::from_secs_f64(piece.len() as f64 / weather.trickle as f64));
        }
        if !self.may_pass(up) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let swallowed = {
            let state = lock(&self.state);
            if up { state.hole_up } else { state.hole_down }
        };
        if !swallowed && !piece.is_empty() {
            to.write_all(piece)?;
        }
        Ok(!piece.is_empty())
    }

    /// Waits until it thaws; false when it is over.
    fn may_pass(&self, _up: bool) -> bool {
        let mut state = lock(&self.state);
        while !state.over {
            let Some(until) = state.frozen_until else { return true };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.frozen_until = None;
                return true;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(_) => return false,
            };
        }
        false
    }
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let number: f64 = number.parse().ok()?;
    (number >= 0.0).then(|| Duration::from_secs_f64(number * unit))
}

fn range(text: &str) -> Option<Range<Duration>> {
    let (first, last) = text.split_once('-')?;
    let unit = if last.ends_with("ms") { "ms" } else { "s" };
    let first = duration(&format!("{}{unit}", first.trim_end_matches(|c: char| c.is_alphabetic())))?;
    let last = duration(last)?;
    (first <= last).then_some(first..last)
}

#[allow(dead_code, reason = "tests include this file and bring a main of their own")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut listen, mut to, mut seed) = ("127.0.0.1:0".to_owned(), None, 0);
    let mut weather = Weather { faults: Fault::ALL.to_vec(), ..Weather::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let bad = || format!("{flag} {value}: cannot be understood");
        match flag.as_str() {
            "--listen" => listen = value,
            "--to" => to = Some(value),
            "--seed" => seed = value.parse()?,
            "--every" => weather.every = Some(range(&value).ok_or_else(bad)?),
            "--faults" => {
                let faults = value.split(',').map(Fault::parse);
                weather.faults = faults.collect::<Option<_>>().ok_or_else(bad)?;
            }
            "--delay" => weather.delay = duration(&value).ok_or_else(bad)?,
            "--split" => weather.split = value.parse()?,
            "--trickle" => weather.trickle = value.parse()?,
            _ => return Err(format!("{flag}: unknown").into()),
        }
    }
    let Some(to) = to else {
        println!("flaky passes TCP connections on and breaks them: --to HOST:PORT says where");
        return Ok(());
    };
    let flaky = Flaky::start(&listen, &to, seed, weather)?;
    println!("flaky listens on {} for {to}, seed {seed}", flaky.address());
    loop {
        thread::sleep(Duration::from_secs(10));
        let (faults, connections) = flaky.counts();
        println!("{connections} connections, {faults} faults");
    }
}
