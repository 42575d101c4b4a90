//! The thread that owns pipes: their machines, their local sockets and their carriers.
//!
//! A byte crosses no thread: it is read from one socket into the replay log and written from there to
//! the other; where the local side is a handle, the thread that holds it moves its bytes (see `visit`). Any number of pipes share one thread and one poller (edge-triggered; what is readable
//! and writable is remembered, and a busy pipe gives way after [`TURN`] bytes).
//!
//! Invariant: a pipe without a carrier has a client that will dial (`redial_at` or an attempt out) or
//! is a server's that waits out its grace. Orders that come back from dial threads carry the serial of
//! the pipe and the number of the attempt; whatever is stale is closed in [`Attempts::settle`] or
//! dropped with its socket in [`Shard::find`].

mod bytes;
mod clock;
mod dials;
mod greet;
mod live;
mod splice;
mod visit;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::{Events, Poll, Registry, Token};

use self::visit::{GUEST_WAIT, Visit};
use super::allow::Target;
use super::carrier::{Carrier, Socket, Watched};
use super::dial::{self, DialError, Dialed, Dialer, Patience};
use super::duct::{Duct, Held, State, Visiting};
use super::ledger::Purse;
use super::relay::Way;
use super::{Accepted, CarrierPeer, Event, Mode, Note, Order, PipeInfo, Port, Shared};
use crate::codec::pipe::outbox::Outbox;
use crate::codec::pipe::{DATA_HEAD, Decoder, Piece, encode_greeting};
use crate::rt::{self, Cancel, Hasher, Lock, Moment, Rt, Thread};
use crate::state::attempt::Attempts;
use crate::state::backoff::{Backoff, Next};
use crate::state::pipe::hello::{
    Answered, Answering, Challenge, Claim, Greeting, HANDSHAKE_WAIT, Hello, Known, PROTO, Refuse, Want,
    Welcome, Wish,
};
use crate::state::pipe::proof::{Secret, Stand};
use crate::state::pipe::{self, Control, End, Ending, Pipe, PipeId, Settings, Side, Violation};
use crate::state::replay::{CHUNK, Pool};

/// How much one pipe moves before the others have their turn.
const TURN: usize = 2 << 20;
/// What is read at once from a local socket that brings much, and half of the window at most; it leaves before more
/// is read. In small bites the socket would never be empty, and its peer would wait for each of them to send again.
const TAKE: usize = 4 << 20;
/// What is read from a carrier at once.
const READ: usize = 512 * 1024;
/// Bytes of a long DATA frame are read to where they stay, so many at least...
const DIRECT: usize = 16 * 1024;
/// ...and the head of the next one, and small frames, by this many.
const HEADS: usize = 4 * 1024;
/// How long connecting may take, apart from the handshake.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// How many attempts to connect are out at once; the rest wait in line.
const DIALS_MAX: usize = 32;
/// A pipe whose client showed no frame by then never had one.
const CONFIRM_WAIT: Duration = Duration::from_secs(30);
/// How long a pipe that is done, but for the goodbye, waits for it without a carrier.
const LINGER: Duration = Duration::from_secs(30);
/// How many ends are remembered for those who come later.
const TOMBS_MAX: usize = 1024;
/// How long the peer has to close a carrier after the last word.
const GOODBYE_WAIT: Duration = Duration::from_secs(5);
/// A jump of the calendar against the clock by more than this is a sleep.
const SLEPT: Duration = Duration::from_secs(5);
/// How often somebody looks for one.
const TICK: Duration = Duration::from_secs(1);

/// The poller's token that means "look into the inbox".
pub(super) const WAKE: Token = Token(usize::MAX);

/// Carries the bytes of pipes until it is told to stop.
pub(crate) struct Shard {
    pub(super) rt: Rt,
    pub(super) index: u8,
    registry: Registry,
    pub(super) orders: rt::Receiver<Order>,
    pub(super) port: Arc<Port>,
    pub(super) shared: Arc<Shared>,
    rand: rt::Rand,
    slots: Vec<Slot>,
    free: Vec<usize>,
    serial: u64,
    ids: HashMap<PipeId, usize, Hasher>,
    /// How the last pipes ended, for clients that were not there to hear it; the oldest goes for a new one.
    tombs: VecDeque<Tomb>,
    /// Pipes whose local side is a handle, or that were opened here: handles know them by serial.
    serials: HashMap<u64, usize, Hasher>,
    alarms: BinaryHeap<Reverse<(Moment, usize, u64)>>,
    again: Vec<usize>,
    pool: Pool,
    buffer: Vec<u8>,
    /// For carriers that have to change what they write.
    spare: Vec<u8>,
    pieces: Vec<Range<usize>>,
    dials: Dials,
    clients: usize,
    tick: Option<(Moment, rt::Wall)>,
    /// How much the pipes of this thread hold.
    held: u64,
    /// The process is on its way out: no new pipes.
    draining: bool,
    /// By when the thread ends, once it was told to.
    stop_by: Option<Moment>,
}

enum Slot {
    Free,
    Greeter(Box<Greeter>),
    Live(Box<Live>),
    /// Another replica has the pipe.
    Splice(Box<splice::Splice>),
}

/// A carrier whose handshake is not through.
pub(crate) struct Greeter {
    serial: u64,
    carrier: Carrier,
    decoder: Decoder,
    answering: Answering,
    peer: CarrierPeer,
    deadline: Moment,
    stage: Stage,
}

enum Stage {
    /// The client's next message is awaited.
    Listening,
    /// This is to be sent before.
    Challenging(Challenge),
    /// A thread connects to the target, or will when it is this one's turn.
    Connecting(Asked, Cancel, Arc<AtomicBool>),
    /// A thread connects to the replica that has the pipe.
    Reaching(Cancel),
}

/// What a client asked for that wants a new pipe.
struct Asked {
    epoch: u64,
    limit: u64,
    target: String,
    principal: Arc<str>,
}

/// A pipe and everything that belongs to it.
struct Live {
    serial: u64,
    /// As it was asked for; while memory is short the pipe's own is smaller.
    window: u64,
    pipe: Pipe,
    bearer: Option<Bearer>,
    local: Local,
    role: Role,
    /// What the heap of alarms will wake it for.
    alarm: Option<Moment>,
    detached_at: Option<Moment>,
    /// What was received and what was acknowledged when a carrier was last lost.
    stood: (u64, u64),
    /// By when the peer has to close the carrier after the last word.
    goodbye_by: Option<Moment>,
    /// Since when nobody holds a handle of it.
    dropped_at: Option<Moment>,
    born: rt::Wall,
    up: u64,
    down: u64,
    /// Since when the local side cannot write any more.
    blocked_since: Option<Moment>,
    /// How many of the pipe's duplicate bytes were counted.
    duplicates: u64,
    /// How much of what it holds was counted.
    held: u64,
    /// Its window is small, because it holds much and memory is short.
    is_pressed: bool,
    /// When a guest was last there that is expected to come again: it goes on with the carrier.
    guest_at: Option<Moment>,
    /// A guest waits at the carrier for what comes.
    is_watched: bool,
    /// Guests move much at once; runs out with small pieces.
    stream: u8,
    /// When a guest last looked whether anything came, and how much was written by then.
    looked: (Moment, u64),
    /// The window was full, and is nearly so still.
    was_full: bool,
}

/// The carrier of an attached pipe and what is half read and half written on it.
struct Bearer {
    epoch: u64,
    carrier: Carrier,
    outbox: Outbox,
    decoder: Decoder,
    readable: bool,
    /// The peer has ended its direction, or the connection broke: to be read to its end.
    ends: bool,
    writable: bool,
    /// What the poller was asked.
    watched: Watched,
    /// For a guest that waits for it.
    sight: Option<Arc<OwnedFd>>,
    /// A guest found it broken.
    lost: Option<String>,
    /// A replacement has made its proof: nothing is taken from here and nothing sent any more.
    still: bool,
    peer: CarrierPeer,
    since: Moment,
}

/// Where the bytes come from and go to on this side.
pub(super) enum Local {
    /// A socket of its own.
    Socket(LocalSocket),
    /// Handles in this process.
    Duct(Arc<Duct>),
}

pub(super) struct LocalSocket {
    socket: Socket,
    readable: bool,
    /// The last read filled all it was given.
    flows: bool,
    writable: bool,
    write_ended: bool,
    /// It does not take bytes any more; what still comes for it is dropped.
    deaf: bool,
}

enum Role {
    Server(ServerSide),
    Client(Box<ClientSide>),
}

struct ServerSide {
    id: PipeId,
    secret: Secret,
    principal: Arc<str>,
    target: String,
    /// What it is really connected to, to be checked again at each resume.
    resolved: Option<std::net::SocketAddr>,
    /// Since when nothing has been heard of the client, until its first frame.
    unconfirmed: Option<Moment>,
    /// What all pipes of the principal hold.
    purse: Purse,
}

/// What is left of a server's pipe.
struct Tomb {
    id: PipeId,
    secret: Secret,
    principal: Arc<str>,
    end: End,
}

/// What a client's pipe needs besides its machine.
pub(crate) struct ClientSide {
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) target: String,
    pub(super) known: Option<Known>,
    pub(super) backoff: Backoff,
    /// How long to try before the first welcome.
    pub(super) patience: Option<Duration>,
    /// How long the server keeps the pipe without a carrier, or less if the user wants less.
    pub(super) grace: Option<Duration>,
    pub(super) carrier_age: Option<Duration>,
    pub(super) events: Arc<dyn Fn(Event) + Send + Sync>,
    pub(super) attempts: Attempts,
    pub(super) cancel: Option<Cancel>,
    pub(super) redial_at: Option<Moment>,
    pub(super) replace_at: Option<Moment>,
    /// Since when there is no carrier, and why.
    pub(super) lost_at: Moment,
    pub(super) last_error: Option<End>,
}

/// A new client's pipe on its way to its thread.
pub(crate) struct Opening {
    pub(super) settings: Settings,
    pub(super) local: LocalKind,
    pub(super) client: ClientSide,
    pub(super) serial: u64,
}

/// What becomes the local side on the thread.
pub(crate) enum LocalKind {
    Socket(Socket),
    Duct(Arc<Duct>),
}

/// Attempts to connect: those out, and those in line.
#[derive(Default)]
struct Dials {
    out: usize,
    line: VecDeque<Job>,
    /// When to go on after there was no thread to be had.
    again_at: Option<Moment>,
    threads: Vec<Thread<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread.
pub(super) fn run(mut shard: Box<Shard>, mut poll: Poll, rung: &rt::Receiver<()>) {
    let (rt, port) = (shard.rt.clone(), shard.port.clone());
    let mut events = Events::with_capacity(1024);
    let mut orders = Vec::new();
    loop {
        let wakes_at = shard.wants_to_wake();
        // First, so that whoever brings something from here on wakes it.
        port.dozes();
        port.seat.rest(shard, wakes_at);
        let timeout = match port.may_sleep() {
            Err(()) => Some(Duration::ZERO),
            // Rounded up: the poller counts milliseconds, and an early wake finds nothing to do.
            Ok(()) => wakes_at.map(|at| match at.since(rt.now()) {
                Duration::ZERO => Duration::ZERO,
                left => left + Duration::from_micros(500),
            }),
        };
        // Woken by a socket, by the waker behind the port, or by the next alarm.
        let polled = poll.poll(&mut events, timeout);
        port.woke();
        shard = port.seat.take(rung);
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                log::error!("pipes: the poller failed, and with it every pipe: {error}");
                return port.seat.close();
            }
            _ => {}
        }
        if !shard.wake(&events, &mut orders) {
            shard.end();
            return port.seat.close();
        }
    }
}

impl Shard {
    pub(super) fn new(
        rt: &Rt,
        index: u8,
        registry: Registry,
        orders: rt::Receiver<Order>,
        port: Arc<Port>,
        shared: Arc<Shared>,
    ) -> Shard {
        Shard {
            rt: rt.clone(),
            index,
            registry,
            orders,
            port,
            shared,
            rand: rt.rand("pipes"),
            slots: Vec::new(),
            free: Vec::new(),
            // Serials below are handed out by whoever opens a client's pipe.
            serial: 1 << 32,
            ids: HashMap::with_hasher(rt.hasher()),
            tombs: VecDeque::new(),
            serials: HashMap::with_hasher(rt.hasher()),
            alarms: BinaryHeap::new(),
            again: Vec::new(),
            // One window's worth; a burst allocates, and gives back.
            pool: Pool::new(128),
            buffer: vec![0; READ],
            spare: Vec::new(),
            pieces: Vec::new(),
            dials: Dials::default(),
            clients: 0,
            tick: None,
            held: 0,
            draining: false,
            stop_by: None,
        }
    }

    /// One wake. False when it was the last one.
    fn wake(&mut self, events: &Events, orders: &mut Vec<Order>) -> bool {
        let now = self.rt.now();
        for event in events {
            self.ready(event);
        }
        self.orders.drain_into(orders, 1024);
        for order in orders.drain(..) {
            match order {
                Order::Stop => {
                    self.stop_by.get_or_insert(now + Duration::from_secs(1));
                    self.stop(now);
                }
                order => self.order(now, order),
            }
        }
        if self.port.missed() {
            // An order of a handle found the inbox full: look at all of them.
            self.again.extend(0..self.slots.len());
        }
        self.ring(now);
        self.start_again(now);
        let mut turns = std::mem::take(&mut self.again);
        turns.sort_unstable();
        turns.dedup();
        for slot in turns {
            self.turn(now, slot);
        }
        self.port.level_chunks(&mut self.pool);
        self.look_for_sleep(now);
        self.stop_by.is_none_or(|by| now < by && !self.is_quiet())
    }

    /// When the thread has something to do, if nothing happens before.
    pub(super) fn wants_to_wake(&self) -> Option<Moment> {
        if !self.again.is_empty() {
            return Some(Moment::ZERO);
        }
        let alarm = self.alarms.peek().map(|Reverse((at, ..))| *at);
        let tick = self.tick.map(|(at, _)| at + TICK);
        [alarm, tick, self.stop_by, self.dials.again_at].into_iter().flatten().min()
    }

    fn ready(&mut self, event: &mio::event::Event) {
        if event.token() == WAKE {
            return;
        }
        let (slot, is_local) = (event.token().0 / 2, event.token().0 % 2 == 1);
        let readable = event.is_readable() || event.is_read_closed() || event.is_error();
        let writable = event.is_writable() || event.is_error();
        match self.slots.get_mut(slot) {
            Some(Slot::Live(live)) if is_local => {
                if let Local::Socket(local) = &mut live.local {
                    local.readable |= readable;
                    local.writable |= writable;
                    if event.is_error()
                        && let Some(error) = local.socket.take_error()
                    {
                        live.local_failed(&error, &mut self.pool);
                    }
                }
            }
            Some(Slot::Live(live)) => {
                if let Some(bearer) = &mut live.bearer {
                    bearer.readable |= readable;
                    bearer.ends |= event.is_read_closed() || event.is_error();
                    bearer.writable |= writable;
                }
            }
            Some(Slot::Greeter(_)) => {}
            // The odd one is the other replica.
            Some(Slot::Splice(splice)) => splice.ready(is_local, readable, writable),
            // A socket that was closed in this very round.
            Some(Slot::Free) | None => return,
        }
        self.again.push(slot);
    }

    // ---- orders

    fn order(&mut self, now: Moment, order: Order) {
        match order {
            Order::Carrier(carrier, peer) => {
                let greeter = Greeter {
                    serial: 0,
                    carrier: *carrier,
                    decoder: Decoder::new(),
                    answering: Answering::new(self.shared.instance),
                    peer,
                    deadline: now + HANDSHAKE_WAIT,
                    stage: Stage::Listening,
                };
                self.greet(now, Box::new(greeter));
            }
            Order::Greeter(greeter) => self.greet(now, greeter),
            Order::Open(opening) => self.open(now, *opening),
            Order::Dialed { slot, serial, dial, result } => {
                self.dial_ended();
                self.dialed(now, slot, serial, dial, result);
            }
            Order::StandStill { slot, serial, dial, answer } => self.stand_still(slot, serial, dial, &answer),
            Order::Target { slot, serial, result } => {
                self.dial_ended();
                self.target(now, slot, serial, result);
            }
            Order::Reached { slot, serial, result } => {
                self.dial_ended();
                self.reached(now, slot, serial, result);
            }
            Order::Local { serial } => {
                self.again.extend(self.serials.get(&serial));
            }
            Order::List(gather) => {
                let infos = self.slots.iter().filter_map(|slot| match slot {
                    Slot::Live(live) => live.info(now),
                    _ => None,
                });
                gather.add(infos.collect());
            }
            Order::Kill { id, end, answer } => {
                let slot = self.ids.get(&id).copied();
                if let Some(slot) = slot
                    && let Slot::Live(live) = &mut self.slots[slot]
                {
                    match live.pipe.is_done() {
                        // Only the goodbye is missing: that was a good end.
                        true => live.pipe.kill(End::new(Ending::Eof, ""), &mut self.pool),
                        false => live.pipe.abort(end, &mut self.pool),
                    }
                    self.again.push(slot);
                }
                answer(slot.is_some());
            }
            Order::Evict { id } => {
                if let Some(slot) = self.ids.get(&id).copied()
                    && let Slot::Live(live) = &mut self.slots[slot]
                    // It may have come back meanwhile, which no limit stands in the way of.
                    && live.bearer.is_none()
                {
                    let why = "a newer pipe of the same principal needed the place";
                    live.pipe.abort(End::new(Ending::Evicted, why), &mut self.pool);
                    self.again.push(slot);
                }
            }
            Order::Cut { id, answer } => {
                let slot = self.ids.get(&id).copied();
                if let Some(slot) = slot
                    && let Some(mut live) = self.take_live(slot)
                {
                    self.lose(now, slot, &mut live, "somebody cut it");
                    self.settle(now, slot, live);
                }
                answer(slot.is_some());
            }
            Order::Redial => {
                for slot in 0..self.slots.len() {
                    if let Slot::Live(live) = &mut self.slots[slot]
                        && let Role::Client(client) = &mut live.role
                    {
                        client.backoff.forget();
                        let is_out = client.attempts.wanted().is_some_and(|it| client.attempts.is_out(it));
                        match live.bearer.is_some() {
                            // The other one is on its way already.
                            true if is_out => {}
                            true => client.replace_at = Some(now),
                            false => {
                                // One that is out may hang where the network was.
                                client.give_up_dialing();
                                client.redial_at = Some(now);
                            }
                        }
                        self.again.push(slot);
                    }
                }
            }
            Order::CutSerial { serial } => {
                if let Some(slot) = self.serials.get(&serial).copied()
                    && let Some(mut live) = self.take_live(slot)
                {
                    self.lose(now, slot, &mut live, "somebody wants another one");
                    if let Role::Client(client) = &mut live.role {
                        // Whoever asks knows better than our patience.
                        client.backoff.forget();
                        if client.redial_at.is_some() {
                            client.redial_at = Some(now);
                        }
                    }
                    self.settle(now, slot, live);
                    self.again.push(slot);
                }
            }
            Order::Close { serial } => {
                if let Some(slot) = self.serials.get(&serial).copied()
                    && let Slot::Live(live) = &mut self.slots[slot]
                    // Both ends have everything already: that was a good end.
                    && !live.pipe.is_done()
                {
                    let end = End::new(Ending::Killed, "it was closed");
                    match &mut live.role {
                        // There is no pipe yet, and nobody to tell.
                        Role::Client(client) if client.known.is_none() => {
                            client.give_up_dialing();
                            live.pipe.kill(end, &mut self.pool);
                        }
                        _ => live.pipe.abort(end, &mut self.pool),
                    }
                    self.again.push(slot);
                }
            }
            Order::Drain { deadline } => self.drain(now, deadline),
            Order::Stop => unreachable!("taken out before"),
        }
    }

    fn place(&mut self, slot: Slot) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        }
    }

    fn take_live(&mut self, slot: usize) -> Option<Box<Live>> {
        match std::mem::replace(&mut self.slots[slot], Slot::Free) {
            Slot::Live(live) => Some(live),
            other => {
                self.slots[slot] = other;
                None
            }
        }
    }

    /// The pipe an answer is for, if it is still the one that asked.
    fn find(&mut self, slot: usize, serial: u64) -> Option<&mut Live> {
        match self.slots.get_mut(slot) {
            Some(Slot::Live(live)) if live.serial == serial => Some(live),
            _ => None,
        }
    }
}
