//! The I/O threads: sockets that do not block, over mio.
//!
//! Each thread owns its poller, its sockets and a [`Links`], which decides everything; what is here is
//! system calls and fairness. Thread 0 also owns the listeners and deals connections out in turn.
//!
//! Readiness is edge-triggered: a socket is registered once, a flag remembers that it may be read or
//! written until the kernel says it would block, and each round gives a connection a bounded number of
//! bytes, so that one busy peer starves nobody.

use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::time::Duration;

use mio::Token;

use super::carrier::{Carrier, Socket, carrier_of};
use super::dialer::Dialer;
use super::exchange::{Front, Handed, HandedSocket};
use super::laps::Laps;
use super::limits::{Census, Limits, Rate};
use super::link::{Doors, Peer};
use super::links::{Effect, GATHER_MAX, Handing, Links};
use super::listen::{Accepting, Bound, Listener};
use super::order::{Errand, Orders, Port};
use super::tls::ClientTls;
use super::{Dial, Wire};
use crate::error::{Code, Error, Result};
use crate::rt::{self, Rt, Thread};
use crate::state::time::Moment;

/// What one connection may read in one round.
const READ_BUDGET: usize = 64 * 1024;
/// What one connection may write in one round.
const WRITE_BUDGET: usize = 512 * 1024;
/// How many connections one round writes with something of their own, and how many with what many are told: some
/// hundred microseconds.
const WRITES_MAX: usize = 64;
/// After how many rounds that left something to write the thread gives way. After each one, a thread that does nothing
/// but write loses a seventh of what it could; after every fourth, news is half as late again.
const GIVE_WAY_AFTER: u32 = 2;
/// How long a thread that must stop waits for its links.
const STOP_WAIT: Duration = Duration::from_secs(1);
/// How long nothing is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const WAKER: Token = Token(usize::MAX);
const FIRST_LISTENER: usize = usize::MAX - 256;

/// The I/O threads before they run: rooms and routes can be made with [`IoThreads::wire`], then
/// [`IoThreads::start`] serves.
///
/// ```
/// use std::sync::Arc;
/// use towpath::front::{Route, Router};
/// use towpath::rt::Rt;
/// use towpath::wire::{IoThreads, Limits, Listener};
///
/// let rt = Rt::real();
/// let io = IoThreads::new(&rt, 1, None)?;
/// let mut router = Router::new();
/// router.add(Route::get("/healthz").open().to(|_, reply| reply.json(200, &"ok")));
/// let listener = Listener::bind("127.0.0.1:0")?;
/// let running = io.start(Limits::default(), vec![listener], Arc::new(router))?;
/// println!("listening on http://{}", running.addresses()[0]);
/// drop(running); // closes every link within a second, then joins the threads
/// # Ok::<(), towpath::Error>(())
/// ```
pub struct IoThreads {
    rt: Rt,
    name: &'static str,
    seats: Vec<Seat>,
    wire: Arc<Outside>,
}

/// What a thread will own.
struct Seat {
    poll: mio::Poll,
    port: Arc<Port>,
    orders: Orders,
}

/// The way out and the doors, as rooms see them.
struct Outside {
    doors: Doors,
    dialer: Dialer,
}

impl Wire for Outside {
    fn dial(&self, dial: Dial) {
        self.dialer.dial(dial);
    }

    fn doors(&self) -> &Doors {
        &self.doors
    }
}

impl IoThreads {
    /// So many I/O threads (0 counts as 1), which dial with this trust (`None` is the system's).
    ///
    /// # Errors
    /// When the system has no poller to give.
    pub fn new(rt: &Rt, threads: usize, trust: Option<ClientTls>) -> Result<IoThreads> {
        IoThreads::named(rt, "io", threads, trust)
    }

    /// The same under another name than `io-0…`, for a second set.
    ///
    /// # Errors
    /// When the system has no poller to give.
    pub fn named(rt: &Rt, name: &'static str, threads: usize, trust: Option<ClientTls>) -> Result<IoThreads> {
        let seats: Vec<Seat> =
            (0..threads.clamp(1, 256)).map(|_| Seat::new(rt)).collect::<io::Result<_>>()?;
        let doors = Doors::new(seats.iter().map(|seat| seat.port.clone()).collect());
        let dialer = Dialer::new(rt, &doors, trust);
        Ok(IoThreads { rt: rt.clone(), name, seats, wire: Arc::new(Outside { doors, dialer }) })
    }

    /// The network, for rooms.
    pub fn wire(&self) -> Arc<dyn Wire> {
        self.wire.clone()
    }

    /// The I/O threads, for groups.
    pub fn doors(&self) -> &Doors {
        &self.wire.doors
    }

    /// Serves what comes through the listeners.
    ///
    /// # Errors
    /// When a listener cannot be watched or a thread cannot be started.
    pub fn start(self, limits: Limits, listeners: Vec<Listener>, front: Arc<dyn Front>) -> Result<Running> {
        let IoThreads { rt, name, seats, wire } = self;
        let addresses = listeners.iter().map(Listener::address).collect();
        let mut listeners = Some(listeners);
        let mut running = Running { wire, threads: Vec::new(), addresses };
        for (at, seat) in seats.into_iter().enumerate() {
            let Seat { poll, port, orders } = seat;
            let links = Links::new(&rt, at as u8, limits, front.clone(), port, orders);
            let mut thread = IoThread::new(&rt, poll, links, running.wire.doors.clone(), &limits);
            for listener in listeners.take().unwrap_or_default() {
                thread.listen(listener)?;
            }
            running.threads.push(rt.spawn(format!("{name}-{at}"), move || thread.run())?);
        }
        Ok(running)
    }
}

impl Seat {
    fn new(rt: &Rt) -> io::Result<Seat> {
        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), WAKER)?;
        let wake = move || {
            // The only way this fails is a full counter, which means it is awake.
            let _ = waker.wake();
        };
        let (port, orders) = Port::new(rt, wake);
        Ok(Seat { poll, port, orders })
    }
}

/// The I/O threads while they run. Dropping it closes every link and joins them.
pub struct Running {
    wire: Arc<Outside>,
    threads: Vec<Thread<()>>,
    addresses: Vec<Bound>,
}

impl Running {
    /// Where the listeners listen, in the order they were given.
    pub fn addresses(&self) -> &[Bound] {
        &self.addresses
    }

    /// The network, for rooms.
    pub fn wire(&self) -> Arc<dyn Wire> {
        self.wire.clone()
    }

    /// Ends the links whose pass has ended; see [`Doors::recheck`].
    pub fn recheck(&self) {
        self.wire.doors.recheck();
    }

    /// Stops accepting and closes links over a window; see [`Doors::drain`].
    pub fn drain(&self, window: Duration, draw: u64) {
        self.wire.doors.drain(window, draw);
    }

    /// How many links are left.
    pub fn links(&self) -> u64 {
        self.wire.doors.counts().map(|counts| counts.links.get()).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.wire.dialer.stop();
        for at in 0..self.threads.len() {
            self.wire.doors.send_errand(at, Errand::Stop);
        }
        self.threads.clear();
    }
}

/// A connection and what the kernel last said about it.
struct Connection {
    carrier: Carrier,
    readable: bool,
    writable: bool,
    /// Whether the peer has ended its half, or the connection broke: it is read to the very end.
    ending: bool,
    /// Whether it stands in the list of those to be read.
    listed: bool,
}

/// Everything one thread owns.
struct IoThread {
    rt: Rt,
    poll: mio::Poll,
    links: Links,
    doors: Doors,
    connections: Vec<Option<Connection>>,
    /// Connections that may have bytes, to be read in the next round.
    ready: Vec<usize>,
    listeners: Vec<Accepting>,
    /// Nothing is accepted before this moment.
    accept_from: Moment,
    /// Held so that there is one to give when there are no more.
    spare: Option<std::fs::File>,
    rate: Rate,
    links_max: u64,
    census: Arc<Census>,
    /// Whose turn it is to get a connection.
    turn: usize,
    laps: Laps,
    buffer: Box<[u8]>,
    effects: Vec<Effect>,
    errands: Vec<Errand>,
    /// When it has to be over, once it has been told to stop.
    stop_by: Option<Moment>,
}

impl IoThread {
    fn new(rt: &Rt, poll: mio::Poll, links: Links, doors: Doors, limits: &Limits) -> IoThread {
        IoThread {
            rt: rt.clone(),
            poll,
            links,
            doors,
            connections: Vec::new(),
            ready: Vec::new(),
            listeners: Vec::new(),
            accept_from: Moment::ZERO,
            spare: None,
            rate: Rate::new(limits.accepts_per_second),
            links_max: limits.links as u64,
            census: Census::new(rt, limits.links_per_address),
            turn: 0,
            laps: Laps::Idle,
            buffer: vec![0; READ_BUDGET].into_boxed_slice(),
            effects: Vec::new(),
            errands: Vec::new(),
            stop_by: None,
        }
    }

    fn listen(&mut self, listener: Listener) -> Result<()> {
        let at = self.listeners.len();
        if at >= usize::from(Peer::DIALED) {
            return Err(Error::new(Code::BadConfig, "more listeners than there may be"));
        }
        let accepting = listener.watch(self.poll.registry(), Token(FIRST_LISTENER + at), at as u8)?;
        self.listeners.push(accepting);
        self.spare = spare();
        Ok(())
    }

    fn run(mut self) {
        let mut events = mio::Events::with_capacity(1024);
        let mut rounds = 0;
        while !self.is_over() {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
                Err(error) => {
                    // A poller that fails takes its links with it; they are told, and the process goes on.
                    log::error!(target: "towpath/io_failed", "the poller failed: {error}");
                    break;
                }
            }
            self.links.orders().woke();
            self.links.at(self.rt.now(), self.rt.wall());
            for event in &events {
                self.note(event);
            }
            self.round();
            rounds = if self.links.many() > 0 { rounds + 1 } else { 0 };
            if rounds == GIVE_WAY_AFTER {
                rounds = 0;
                // On a machine that has more to do than it can, whoever reads, stores and answers would wait for a
                // whole slice of time behind thousands of writes, each of which can take more along if it comes
                // later.
                rt::give_way();
            }
        }
        self.links.end_all();
    }

    fn is_over(&self) -> bool {
        self.stop_by.is_some_and(|by| self.links.len() == 0 || self.rt.now() >= by)
    }

    fn timeout(&self) -> Option<Duration> {
        let rest = self.laps.rests_until().filter(|_| self.links.many() > 0);
        let writes = self.links.has_own() || (self.links.many() > 0 && rest.is_none());
        if !self.ready.is_empty() || writes || !self.links.orders().may_sleep() {
            return Some(Duration::ZERO);
        }
        let waiting = self.listeners.iter().any(|listener| listener.acceptable);
        let accept = waiting.then_some(self.accept_from);
        let deadlines = [self.links.deadline(), accept, self.stop_by, rest];
        let deadline = deadlines.into_iter().flatten().min()?;
        Some(deadline.since(self.rt.now()))
    }

    /// Remembers what the kernel said.
    fn note(&mut self, event: &mio::event::Event) {
        let token = event.token();
        if token == WAKER {
            return;
        }
        if token.0 >= FIRST_LISTENER {
            if let Some(listener) = self.listeners.get_mut(token.0 - FIRST_LISTENER) {
                listener.acceptable = true;
            }
            return;
        }
        let Some(connection) = self.connections.get_mut(token.0).and_then(Option::as_mut) else { return };
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            connection.readable = true;
            connection.ending |= event.is_read_closed() || event.is_error();
            if !std::mem::replace(&mut connection.listed, true) {
                self.ready.push(token.0);
            }
        }
        if event.is_writable() || event.is_write_closed() {
            // It is said with every arrival. Where nothing was held up there is nothing to go on with, but in TLS.
            let was_held_up = !std::mem::replace(&mut connection.writable, true);
            if was_held_up || connection.carrier.tls.is_some() {
                self.links.writable(token.0);
            }
        }
    }

    fn round(&mut self) {
        self.accept_all();
        self.read_all();
        self.links.ring();
        self.take_orders();
        self.write_some();
        self.links.settle();
        if !self.links.orders().is_empty() {
            // What came has been answered on the spot.
            self.take_orders();
            self.write_some();
            self.links.settle();
        }
        self.apply();
    }

    // ---- accepting

    fn accept_all(&mut self) {
        let waiting = self.listeners.iter().any(|listener| listener.acceptable);
        if !(waiting || self.links.is_draining()) || self.rt.now() < self.accept_from {
            return;
        }
        for at in 0..self.listeners.len() {
            while self.listeners[at].acceptable {
                if let Err(later) = self.rate.take(self.rt.now()) {
                    self.accept_from = later;
                    return;
                }
                match self.listeners[at].accept() {
                    Ok((carrier, peer)) => self.deal(carrier, peer),
                    Err(error) => match error.kind() {
                        io::ErrorKind::WouldBlock => self.listeners[at].acceptable = false,
                        // The peer was gone before it was accepted.
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                        _ => {
                            self.out_of_descriptors(at, &error);
                            return;
                        }
                    },
                }
            }
        }
        if self.links.is_draining() {
            // What the kernel had accepted for us has been taken; now nothing new comes in.
            self.listeners.clear();
        }
    }

    /// No descriptor for another connection: one peer is told, with the spare; then a pause, in which
    /// the others wait in the kernel's queue and links that end give theirs back.
    fn out_of_descriptors(&mut self, at: usize, error: &io::Error) {
        log::warn!(target: "towpath/accept_paused", "cannot accept a connection: {error}");
        if self.spare.take().is_some()
            && let Ok((carrier, _)) = self.listeners[at].accept()
        {
            turn_away(carrier);
        }
        self.spare = spare();
        self.accept_from = self.rt.now() + ACCEPT_PAUSE;
    }

    /// Gives a connection to the next thread, if there may be one more.
    fn deal(&mut self, mut carrier: Carrier, peer: Peer) {
        let links: u64 = self.doors.counts().map(|counts| counts.links.get()).sum();
        if let Some(ip) = peer.ip.filter(|_| !peer.is_local()) {
            carrier.place = self.census.place(ip);
        }
        if links >= self.links_max || (carrier.place.is_none() && !peer.is_local()) {
            if let Some(counts) = self.doors.counts().next() {
                counts.turned_away.add(1);
            }
            turn_away(carrier);
            return;
        }
        let threads = self.doors.counts().count();
        self.turn = (self.turn + 1) % threads;
        if self.turn == 0 {
            self.take_in(carrier, peer);
        } else {
            self.doors.send_errand(self.turn, Errand::Accepted { carrier: Box::new(carrier), peer });
        }
    }

    fn take_in(&mut self, carrier: Carrier, peer: Peer) {
        // A link that is turned away is closed by dropping its socket.
        if let Some(slot) = self.links.accept(peer) {
            self.seat(slot, carrier);
        }
    }

    fn seat(&mut self, slot: usize, mut carrier: Carrier) {
        if let Err(error) = carrier.socket.register(self.poll.registry(), Token(slot)) {
            log::warn!(target: "towpath/link_refused", "cannot watch a connection: {error}");
            self.links.broke(slot, "the connection cannot be watched");
            return;
        }
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        // Both are assumed until the kernel says otherwise: bytes may be there already.
        self.connections[slot] =
            Some(Connection { carrier, readable: true, writable: true, ending: false, listed: true });
        self.ready.push(slot);
    }

    // ---- reading

    fn read_all(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for slot in ready {
            if let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) {
                connection.listed = false;
                self.read_one(slot);
            }
        }
    }

    fn read_one(&mut self, slot: usize) {
        let mut budget = READ_BUDGET;
        while budget > 0 {
            // Left readable: `Resume` comes when it wants bytes again.
            if !self.links.wants_bytes(slot) {
                return;
            }
            let Some(connection) = self.connections[slot].as_mut() else { return };
            if !connection.readable {
                return;
            }
            match connection.carrier.read(&mut self.buffer[..budget]) {
                Ok(0) => {
                    connection.readable = false;
                    self.links.eof(slot);
                    return;
                }
                Ok(n) => {
                    // A socket that gave less than it was asked for has no more, and says when it has (epoll(7));
                    // TLS gives what it has decrypted.
                    let drained = n < budget && !connection.ending && connection.carrier.tls.is_none();
                    connection.readable = !drained;
                    budget -= n;
                    self.links.feed(slot, &self.buffer[..n]);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => connection.readable = false,
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        self.links.broke(slot, "the connection broke");
                        return;
                    }
                },
            }
        }
        // The others first, then this one again.
        if let Some(connection) = self.connections[slot].as_mut()
            && !std::mem::replace(&mut connection.listed, true)
        {
            self.ready.push(slot);
        }
    }

    // ---- orders

    fn take_orders(&mut self) {
        let mut errands = std::mem::take(&mut self.errands);
        self.links.take_orders(&mut errands);
        for errand in errands.drain(..) {
            match errand {
                Errand::Adopt(mut adopted) => {
                    let carrier = std::mem::replace(&mut adopted.carrier, Box::new(()));
                    if let Some(carrier) = carrier_of(carrier) {
                        let slot = self.links.adopt(adopted);
                        self.seat(slot, carrier);
                    }
                }
                Errand::Accepted { carrier, peer } => {
                    if let Some(carrier) = carrier_of(carrier) {
                        self.take_in(carrier, peer);
                    }
                }
                Errand::Stop => {
                    self.listeners.clear();
                    self.links.close_all();
                    self.stop_by = Some(self.rt.now() + STOP_WAIT);
                }
            }
        }
        self.errands = errands;
        if self.links.is_draining() && !self.listeners.is_empty() {
            self.accept_from = Moment::ZERO;
            for listener in &mut self.listeners {
                listener.acceptable = true;
            }
            self.accept_all();
        }
    }

    // ---- writing

    /// A part of what is to be written. The rest comes in the next round, which waits for nothing.
    fn write_some(&mut self) {
        self.write_to(WRITES_MAX, Links::next_own);
        let waiting = self.links.many();
        if waiting > 0 {
            let turns = self.laps.turns(self.rt.now(), waiting).min(WRITES_MAX);
            let count = self.write_to(turns, Links::next_of_many);
            self.laps.wrote(self.rt.now(), count, self.links.many());
        }
    }

    /// Writes to so many of those at most; gives how many had their turn.
    fn write_to(&mut self, turns: usize, next: fn(&mut Links) -> Option<usize>) -> usize {
        for turn in 0..turns {
            let Some(slot) = next(&mut self.links) else { return turn };
            if !self.write_one(slot) {
                self.links.writable(slot);
            }
        }
        turns
    }

    /// Writes until the kernel or the queue says enough; false if only the budget did.
    fn write_one(&mut self, slot: usize) -> bool {
        let mut budget = WRITE_BUDGET;
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else {
            return true;
        };
        if !connection.writable {
            return true;
        }
        let all = loop {
            let pieces = self.links.pieces(slot);
            let written = match pieces {
                0 => connection
                    .carrier
                    .flush()
                    .and_then(|done| if done { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) }),
                // What is sent one at a time needs no table of slices.
                1 => {
                    let mut slices = [IoSlice::new(&[])];
                    self.links.gather(slot, &mut slices);
                    connection.carrier.write(&slices)
                }
                _ => {
                    let mut slices = [IoSlice::new(&[]); GATHER_MAX];
                    let count = self.links.gather(slot, &mut slices);
                    connection.carrier.write(&slices[..count])
                }
            };
            match written {
                Ok(0) => break pieces == 0,
                Ok(n) => {
                    self.links.wrote(slot, n);
                    if n >= budget {
                        return false;
                    }
                    budget -= n;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        connection.writable = false;
                        break false;
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        self.links.broke(slot, "the connection broke");
                        return true;
                    }
                },
            }
        };
        self.links.flushed(slot, all);
        true
    }

    // ---- what the links decided about their sockets

    fn apply(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        self.links.take_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Close(slot) => self.connections[slot] = None,
                Effect::HandOver(slot) => {
                    let handing = self.links.take_handing(slot);
                    let connection = self.connections[slot].take();
                    if let (Some(handing), Some(connection)) = (handing, connection) {
                        self.hand_over(handing, connection.carrier);
                    }
                }
                Effect::FinishWriting(slot) => {
                    if let Some(connection) = self.connections[slot].as_mut() {
                        // A peer that has gone already will be noticed when it is read.
                        let _ = connection.carrier.finish();
                    }
                }
                Effect::Resume(slot) => {
                    if let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut)
                        && connection.readable
                        && !std::mem::replace(&mut connection.listed, true)
                    {
                        self.ready.push(slot);
                    }
                }
            }
        }
        self.effects = effects;
    }

    fn hand_over(&mut self, handing: Handing, carrier: Carrier) {
        // Its place is free again: whoever takes it counts it by its own limits.
        let Carrier { mut socket, tls, place: _ } = carrier;
        let registry = self.poll.registry();
        let left = match &mut socket {
            Socket::Tcp(socket) => registry.deregister(socket),
            Socket::Unix(socket) => registry.deregister(socket),
        };
        if let Err(error) = left {
            log::warn!("link_refused: a connection cannot be handed over: {error}");
            return;
        }
        let Handing { to, head, early, peer } = handing;
        let socket = match socket {
            Socket::Tcp(socket) => HandedSocket::Tcp(socket),
            Socket::Unix(socket) => HandedSocket::Unix(socket),
        };
        to.hand(Handed { socket, tls: tls.map(|tls| tls.into_connection()), head, early, peer });
    }
}

/// Tells a peer that there is no room, and closes.
fn turn_away(mut carrier: Carrier) {
    const SORRY: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    // Over TLS there is nothing to say before hands were shaken, which would cost more than the place.
    if carrier.tls.is_none() {
        // It may have gone already; there is nobody else to tell.
        let _ = carrier.socket.write(SORRY);
    }
}

/// A descriptor to give away when there are no more.
fn spare() -> Option<std::fs::File> {
    std::fs::File::open("/dev/null").ok()
}
