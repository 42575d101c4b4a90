//! The thread that owns pipes: their machines, their local sockets and their carriers.
//!
//! A byte crosses no thread: it is read from one socket into the replay log and written from there to
//! the other. Any number of pipes share one thread and one poller (edge-triggered; what is readable
//! and writable is remembered, and a busy pipe gives way after [`TURN`] bytes).
//!
//! Invariant: a pipe without a carrier has a client that will dial (`redial_at` or an attempt out) or
//! is a server's that waits out its grace. Orders that come back from dial threads carry the serial of
//! the pipe and the number of the attempt; whatever is stale is closed in [`Attempts::settle`] or
//! dropped with its socket in [`Shard::find`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::allow::Target;
use super::carrier::{Carrier, Socket};
use super::dial::{self, DialError, Dialed, Dialer, Patience};
use super::duct::{Duct, State};
use super::{Accepted, CarrierPeer, Event, Mode, Note, Order, PipeInfo, Port, Shared};
use crate::codec::pipe::outbox::Outbox;
use crate::codec::pipe::{Decoder, Piece, encode_greeting};
use crate::rt::{self, Cancel, Hasher, Moment, Rt, Thread};
use crate::state::attempt::Attempts;
use crate::state::backoff::{Backoff, Next};
use crate::state::pipe::hello::{
    Answered, Answering, Challenge, Claim, Greeting, HANDSHAKE_WAIT, Hello, Known, PROTO, Refuse, Want,
    Welcome, Wish,
};
use crate::state::pipe::proof::{Secret, Stand};
use crate::state::pipe::{self, Control, End, Ending, Pipe, PipeId, Settings, Side, Violation};
use crate::state::replay::Pool;

/// How much one pipe moves before the others have their turn.
const TURN: usize = 1 << 20;
/// What is read from a carrier at once.
const READ: usize = 256 * 1024;
/// How long connecting may take, apart from the handshake.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// How many attempts to connect are out at once; the rest wait in line.
const DIALS_MAX: usize = 32;
/// A pipe whose client showed no frame by then never had one.
const CONFIRM_WAIT: Duration = Duration::from_secs(30);
/// How long a pipe that is done, but for the goodbye, waits for it without a carrier.
const LINGER: Duration = Duration::from_secs(30);
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
    pub(super) poll: Poll,
    pub(super) orders: rt::Receiver<Order>,
    pub(super) port: Arc<Port>,
    pub(super) shared: Arc<Shared>,
    rand: rt::Rand,
    slots: Vec<Slot>,
    free: Vec<usize>,
    serial: u64,
    ids: HashMap<PipeId, usize, Hasher>,
    /// Pipes whose local side is a handle, or that were opened here: handles know them by serial.
    serials: HashMap<u64, usize, Hasher>,
    alarms: BinaryHeap<Reverse<(Moment, usize, u64)>>,
    again: Vec<usize>,
    pool: Pool,
    buffer: Vec<u8>,
    dials: Dials,
    clients: usize,
    tick: Option<(Moment, rt::Wall)>,
    pressed: bool,
}

enum Slot {
    Free,
    Greeter(Box<Greeter>),
    Live(Box<Live>),
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
    /// A thread connects to the target.
    Connecting(Asked, Cancel),
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
    pipe: Pipe,
    bearer: Option<Bearer>,
    local: Local,
    role: Role,
    /// What the heap of alarms will wake it for.
    alarm: Option<Moment>,
    detached_at: Option<Moment>,
    /// By when the peer has to close the carrier after the last word.
    goodbye_by: Option<Moment>,
    /// Since when nobody holds a handle of it.
    dropped_at: Option<Moment>,
    born: rt::Wall,
    up: u64,
    down: u64,
}

/// The carrier of an attached pipe and what is half read and half written on it.
struct Bearer {
    epoch: u64,
    carrier: Carrier,
    outbox: Outbox,
    decoder: Decoder,
    readable: bool,
    writable: bool,
    /// A replacement has made its proof: nothing is taken from here and nothing sent any more.
    still: bool,
    peer: CarrierPeer,
    /// What was received and what was acknowledged when it began.
    began: (u64, u64),
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
    writable: bool,
    write_ended: bool,
    /// It does not take bytes any more; what still comes for it is dropped.
    deaf: bool,
}

impl Local {
    pub(super) fn socket(socket: Socket) -> Local {
        Local::Socket(LocalSocket { socket, readable: true, writable: true, write_ended: false, deaf: false })
    }
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
    threads: Vec<Thread<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Shard {
    pub(super) fn new(
        rt: &Rt,
        index: u8,
        poll: Poll,
        orders: rt::Receiver<Order>,
        port: Arc<Port>,
        shared: Arc<Shared>,
    ) -> Shard {
        Shard {
            rt: rt.clone(),
            index,
            poll,
            orders,
            port,
            shared,
            rand: rt.rand("pipes"),
            slots: Vec::new(),
            free: Vec::new(),
            // Serials below are handed out by whoever opens a client's pipe.
            serial: 1 << 32,
            ids: HashMap::with_hasher(rt.hasher()),
            serials: HashMap::with_hasher(rt.hasher()),
            alarms: BinaryHeap::new(),
            again: Vec::new(),
            // One window's worth; a burst allocates, and gives back.
            pool: Pool::new(128),
            buffer: vec![0; READ],
            dials: Dials::default(),
            clients: 0,
            tick: None,
            pressed: false,
        }
    }

    /// The thread.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut orders = Vec::new();
        let mut stop_by = None;
        loop {
            let timeout = self.timeout(stop_by);
            // Woken by a socket, by the waker behind the port, or by the next alarm.
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    log::error!("pipes: the poller failed, and with it every pipe: {error}");
                    return;
                }
                _ => {}
            }
            self.port.woke();
            let now = self.rt.now();
            for event in &events {
                self.ready(event);
            }
            self.orders.drain_into(&mut orders, 1024);
            for order in orders.drain(..) {
                match order {
                    Order::Stop => {
                        stop_by.get_or_insert(now + Duration::from_secs(1));
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
            let mut turns = std::mem::take(&mut self.again);
            turns.sort_unstable();
            turns.dedup();
            for slot in turns {
                self.turn(now, slot);
            }
            self.look_for_sleep(now);
            if let Some(by) = stop_by
                && (now >= by || self.is_quiet())
            {
                break;
            }
        }
        self.end();
    }

    fn timeout(&self, stop_by: Option<Moment>) -> Option<Duration> {
        if !self.again.is_empty() || self.port.may_sleep().is_err() {
            return Some(Duration::ZERO);
        }
        let alarm = self.alarms.peek().map(|Reverse((at, ..))| *at);
        let tick = self.tick.map(|(at, _)| at + TICK);
        let next = [alarm, tick, stop_by].into_iter().flatten().min()?;
        // Rounded up: the poller counts milliseconds, and an early wake finds nothing to do.
        Some(next.since(self.rt.now()) + Duration::from_micros(500))
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
                    bearer.writable |= writable;
                }
            }
            Some(Slot::Greeter(_)) => {}
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
                    live.pipe.abort(end, &mut self.pool);
                    self.again.push(slot);
                }
                answer(slot.is_some());
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
                        match client.attempts.wanted() {
                            Some(attempt) if client.attempts.is_out(attempt) => {}
                            _ if live.bearer.is_some() => client.replace_at = Some(now),
                            _ => client.redial_at = Some(now),
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
                    self.settle(now, slot, live);
                }
            }
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

    // ---- the server's handshake

    fn greet(&mut self, now: Moment, mut greeter: Box<Greeter>) {
        self.serial += 1;
        greeter.serial = self.serial;
        let slot = self.place(Slot::Free);
        if let Err(error) = greeter.carrier.socket().register(self.poll.registry(), Token(slot * 2)) {
            log::warn!("pipes: cannot watch a new carrier: {error}");
            self.free.push(slot);
            return;
        }
        self.alarms.push(Reverse((greeter.deadline, slot, greeter.serial)));
        self.slots[slot] = Slot::Greeter(greeter);
        self.turn(now, slot);
    }

    fn turn_greeter(&mut self, now: Moment, slot: usize, mut greeter: Box<Greeter>) {
        if now >= greeter.deadline {
            return self.dismiss(slot, greeter);
        }
        if greeter.carrier.has_more() {
            // The answer to the upgrade, which the client waits for.
            match greeter.carrier.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return self.dismiss(slot, greeter);
                }
                _ => {}
            }
        }
        if let Stage::Challenging(challenge) = &greeter.stage {
            let challenge = Greeting::Challenge(*challenge);
            greeter.stage = Stage::Listening;
            if greeter.say(&challenge).is_err() {
                return self.dismiss(slot, greeter);
            }
        }
        if matches!(greeter.stage, Stage::Connecting(..)) {
            // The client has nothing to say before its welcome; its end is noticed then.
            self.slots[slot] = Slot::Greeter(greeter);
            return;
        }
        loop {
            let mut buffer = [0; 4096];
            let count = match greeter.carrier.read(&mut buffer) {
                Ok(0) => return self.dismiss(slot, greeter),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.dismiss(slot, greeter),
            };
            let mut input = &buffer[..count];
            loop {
                let piece = match greeter.decoder.next(&mut input) {
                    Ok(Some(piece)) => piece,
                    Ok(None) => break,
                    Err(error) => {
                        return self.refuse(
                            slot,
                            greeter,
                            End::new(Ending::Protocol, error.to_string()),
                            None,
                        );
                    }
                };
                let Piece::Greeting(greeting) = piece else {
                    let end = End::new(Ending::Protocol, "a frame came before the handshake was through");
                    return self.refuse(slot, greeter, end, None);
                };
                match greeter.answering.step(greeting, self.rt.secret()) {
                    Err(end) => return self.refuse(slot, greeter, end, None),
                    Ok(Answered::New(hello)) => return self.new_pipe(now, slot, greeter, hello),
                    Ok(Answered::Challenge(hello, id, challenge)) => {
                        if let Err(end) =
                            greeter.authenticate(&self.shared, hello.auth.as_ref().map(|auth| &*auth.0))
                        {
                            return self.refuse(slot, greeter, end, None);
                        }
                        greeter.stage = Stage::Challenging(challenge);
                        let owner = usize::from(id.0[15]) % self.shared.ports().len();
                        if owner != usize::from(self.index) {
                            return self.hand_over(slot, greeter, owner);
                        }
                        if greeter.say(&Greeting::Challenge(challenge)).is_err() {
                            return self.dismiss(slot, greeter);
                        }
                        greeter.stage = Stage::Listening;
                    }
                    Ok(Answered::Claim(claim)) => {
                        let rest = input.to_vec();
                        return self.claim(now, slot, greeter, claim, &rest);
                    }
                }
            }
        }
        self.slots[slot] = Slot::Greeter(greeter);
    }

    /// Moves a carrier to the thread that owns the pipe it wants, known or not.
    fn hand_over(&mut self, slot: usize, mut greeter: Box<Greeter>, owner: usize) {
        greeter.carrier.socket().deregister(self.poll.registry());
        self.free.push(slot);
        // Full: the carrier is closed by being dropped, and the client comes back in a moment.
        if self.shared.ports()[owner].try_send(Order::Greeter(greeter)).is_err() {
            self.shared.figures.refused(Ending::Limit);
        }
    }

    fn dismiss(&mut self, slot: usize, mut greeter: Box<Greeter>) {
        greeter.carrier.socket().deregister(self.poll.registry());
        self.free.push(slot);
    }

    fn refuse(&mut self, slot: usize, mut greeter: Box<Greeter>, end: End, retry_after: Option<Duration>) {
        self.shared.figures.refused(end.code);
        log::debug!("pipes: refused {}: {end}", greeter.peer);
        let refuse = Refuse {
            instance: self.shared.instance,
            end,
            retriable: retry_after.is_some(),
            retry_after: retry_after.unwrap_or_default(),
        };
        // If it does not go out the client sees a closed connection, and asks again.
        if let Err(error) = greeter.say(&Greeting::Refuse(refuse)) {
            log::trace!("pipes: a refusal did not go out: {error}");
        }
        greeter.carrier.close();
        self.dismiss(slot, greeter);
    }

    fn new_pipe(&mut self, now: Moment, slot: usize, mut greeter: Box<Greeter>, hello: Hello) {
        let Wish::New { epoch, target, limit } = hello.wish else { unreachable!("a wish for a new pipe") };
        let principal = match greeter.authenticate(&self.shared, hello.auth.as_ref().map(|auth| &*auth.0)) {
            Ok(principal) => principal,
            Err(end) => return self.refuse(slot, greeter, end, None),
        };
        if !greeter.peer.confidential && !self.shared.settings.insecure {
            let why = "a pipe's secret is only given over TLS or on one machine; use https, or start the server with --insecure";
            return self.refuse(slot, greeter, End::new(Ending::NotAllowed, why), None);
        }
        if epoch == 0 {
            return self.refuse(slot, greeter, End::new(Ending::Protocol, "an epoch is above 0"), None);
        }
        match self.shared.ledger.enter(&principal, now, &self.shared.settings.limits) {
            Ok(None) => {}
            Ok(Some(evict)) => self.shared.evict(evict),
            Err(why) => {
                return self.refuse(
                    slot,
                    greeter,
                    End::new(Ending::Limit, why),
                    Some(Duration::from_secs(1)),
                );
            }
        }
        let asked = Asked { epoch, limit, target, principal };
        match &self.shared.mode {
            Mode::Nothing => {
                self.shared.ledger.leave(&asked.principal);
                self.refuse(slot, greeter, End::new(Ending::NotAllowed, "this server has no targets"), None);
            }
            Mode::Listen(_) => {
                self.serial += 1;
                let serial = self.serial;
                let duct = Arc::new(self.port.duct(&self.rt, serial));
                self.admit(now, slot, greeter, asked, serial, Local::Duct(duct), None);
            }
            Mode::Tunnel => {
                let target: Target = match asked.target.parse() {
                    Ok(target) => target,
                    Err(error) => {
                        self.shared.ledger.leave(&asked.principal);
                        let end = End::new(Ending::NotAllowed, format!("the target {error}"));
                        return self.refuse(slot, greeter, end, None);
                    }
                };
                let cancel = self.rt.cancel_token();
                greeter.deadline = now + CONNECT_WAIT + HANDSHAKE_WAIT;
                greeter.stage = Stage::Connecting(asked, cancel.clone());
                let serial = greeter.serial;
                self.alarms.push(Reverse((greeter.deadline, slot, serial)));
                self.slots[slot] = Slot::Greeter(greeter);
                let (rt, port, shared) = (self.rt.clone(), self.port.clone(), self.shared.clone());
                self.start(Box::new(move || {
                    let result = connect(&rt, &shared, &target, &cancel);
                    port.send(Order::Target { slot, serial, result });
                }));
            }
        }
    }

    fn target(
        &mut self,
        now: Moment,
        slot: usize,
        serial: u64,
        result: Result<(Socket, Option<std::net::SocketAddr>), End>,
    ) {
        let current =
            matches!(self.slots.get(slot), Some(Slot::Greeter(greeter)) if greeter.serial == serial);
        if !current {
            // Whoever asked has left; the socket is closed by being dropped.
            return;
        }
        let Slot::Greeter(mut greeter) = std::mem::replace(&mut self.slots[slot], Slot::Free) else {
            unreachable!("looked at above")
        };
        let Stage::Connecting(asked, _) = std::mem::replace(&mut greeter.stage, Stage::Listening) else {
            unreachable!("only a connecting one has a target out")
        };
        match result {
            Ok((socket, resolved)) => {
                self.serial += 1;
                let serial = self.serial;
                self.admit(now, slot, greeter, asked, serial, Local::socket(socket), resolved);
            }
            Err(end) => {
                self.shared.ledger.leave(&asked.principal);
                self.refuse(slot, greeter, end, None);
            }
        }
    }

    /// Everything is in place: the pipe begins.
    fn admit(
        &mut self,
        now: Moment,
        slot: usize,
        greeter: Box<Greeter>,
        asked: Asked,
        serial: u64,
        mut local: Local,
        resolved: Option<std::net::SocketAddr>,
    ) {
        if let Local::Socket(local) = &mut local
            && let Err(error) = local.socket.register(self.poll.registry(), Token(slot * 2 + 1))
        {
            self.shared.ledger.leave(&asked.principal);
            return self.refuse(
                slot,
                greeter,
                End::new(Ending::Internal, error.to_string()),
                Some(Duration::from_secs(1)),
            );
        }
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.shared.owner);
        id[8..].copy_from_slice(&self.rt.secret::<8>());
        // The last byte names the thread, so that a resume finds it without a lock.
        let threads = self.shared.ports().len() as u8;
        id[15] = id[15] / threads.max(1) * threads.max(1);
        id[15] = if id[15].checked_add(self.index).is_some() { id[15] + self.index } else { self.index };
        let id = PipeId(id);
        let secret = Secret(self.rt.secret());
        let settings = self.shared.settings.pipe(Side::Server);
        let mut pipe = Pipe::new(settings);
        if let Err(violation) = pipe.attach(now, asked.epoch, settings.start, asked.limit, &mut self.pool) {
            unreachable!("a fresh pipe can be attached: {violation}");
        }
        let accepted = match (&self.shared.mode, &local) {
            (Mode::Listen(accept), Local::Duct(duct)) => {
                let accepted = Accepted {
                    duct: duct.clone(),
                    port: self.port.clone(),
                    serial,
                    id,
                    principal: asked.principal.clone(),
                    target: asked.target.clone(),
                    peer: greeter.peer.clone(),
                };
                duct.set_state(State::Connected);
                // Full: the program does not accept as fast as pipes come; the client asks again.
                accept.try_send(accepted).is_ok()
            }
            _ => true,
        };
        if !accepted {
            self.shared.ledger.leave(&asked.principal);
            let end = End::new(Ending::Limit, "too many pipes wait to be accepted");
            return self.refuse(slot, greeter, end, Some(Duration::from_millis(200)));
        }
        let stand = stand(&mut pipe);
        let welcome = Welcome {
            proto: PROTO,
            instance: self.shared.instance,
            id,
            epoch: asked.epoch,
            grace: self.shared.settings.grace,
            window: pipe.window(),
            stand,
            tag: [0; 32],
            secret: Some(secret.clone()),
        };
        let mut bearer = Bearer::new(&pipe, greeter.carrier, greeter.decoder, greeter.peer);
        bearer.outbox.greet(&Greeting::Welcome(welcome));
        let server = ServerSide {
            id,
            secret,
            principal: asked.principal,
            target: asked.target,
            resolved,
            unconfirmed: Some(now),
        };
        let live = Live {
            serial,
            pipe,
            bearer: Some(bearer),
            local,
            role: Role::Server(server),
            alarm: None,
            detached_at: None,
            goodbye_by: None,
            dropped_at: None,
            born: self.rt.wall(),
            up: 0,
            down: 0,
        };
        self.ids.insert(id, slot);
        if matches!(live.local, Local::Duct(_)) {
            self.serials.insert(serial, slot);
        }
        self.shared.figures.opened();
        (self.shared.notes)(&Note::Opened(live.info(now).expect("a server's pipe has a name")));
        self.slots[slot] = Slot::Live(Box::new(live));
        self.again.push(slot);
    }

    /// Somebody says that a pipe is theirs.
    fn claim(&mut self, now: Moment, slot: usize, greeter: Box<Greeter>, claim: Claim, rest: &[u8]) {
        let owner = self.ids.get(&claim.id()).copied();
        let made_up = Secret(self.shared.instance.repeat(2).try_into().expect("twice sixteen"));
        let server = owner.and_then(|owner| match &self.slots[owner] {
            Slot::Live(live) => match &live.role {
                Role::Server(server) => Some(server),
                Role::Client(_) => None,
            },
            _ => None,
        });
        // The same work and the same words, whether there is no such pipe, the proof is bad, or it
        // belongs to somebody else.
        let holds = claim.holds(server.map_or(&made_up, |server| &server.secret));
        let Some(server) =
            server.filter(|server| holds && greeter.peer.principal.as_ref() == Some(&server.principal))
        else {
            let end = End::new(Ending::UnknownPipe, "there is no such pipe here (any more)");
            self.shared.figures.resumed(false);
            return self.refuse(slot, greeter, end, None);
        };
        let still_allowed = match (&self.shared.mode, server.target.parse::<Target>()) {
            (Mode::Tunnel, Ok(target)) => self.shared.allows(&target, server.resolved),
            (Mode::Tunnel, Err(_)) => false,
            _ => true,
        };
        let (secret, principal) = (server.secret.clone(), server.principal.clone());
        let owner = owner.expect("a pipe was found");
        let mut live = self.take_live(owner).expect("it was there a moment ago");
        if !still_allowed {
            let end = End::new(Ending::NotAllowed, "the target is not on the allow-list any more");
            live.pipe.abort(end.clone(), &mut self.pool);
            self.settle(now, owner, live);
            return self.refuse(slot, greeter, end, None);
        }
        if claim.epoch() <= live.pipe.epoch() {
            self.slots[owner] = Slot::Live(live);
            let end = End::new(Ending::Superseded, "a newer carrier bears the pipe");
            self.shared.figures.resumed(false);
            return self.refuse(slot, greeter, end, Some(Duration::ZERO));
        }
        if let Err(violation) = live.pipe.check_peer(claim.stand().recv) {
            let end = End::new(Ending::Protocol, violation.to_string());
            live.pipe.abort(end.clone(), &mut self.pool);
            self.settle(now, owner, live);
            self.shared.figures.resumed(false);
            return self.refuse(slot, greeter, end, None);
        }
        // The order of a takeover: the proof held and the epoch is new; let go of the old carrier;
        // only then say what was received.
        if let Some(old) = live.bearer.take() {
            self.drop_bearer(old);
        }
        let mut greeter = greeter;
        greeter.carrier.socket().deregister(self.poll.registry());
        self.free.push(slot);
        if let Err(error) = greeter.carrier.socket().register(self.poll.registry(), Token(owner * 2)) {
            log::warn!("pipes: cannot watch a carrier: {error}");
            live.pipe.detach(live.pipe.epoch());
            return self.settle(now, owner, live);
        }
        let stand = stand(&mut live.pipe);
        let tag = claim.answer(&secret, &stand);
        let welcome = Welcome {
            proto: PROTO,
            instance: self.shared.instance,
            id: claim.id(),
            epoch: claim.epoch(),
            grace: self.shared.settings.grace,
            window: live.pipe.window(),
            stand,
            tag,
            secret: None,
        };
        let theirs = claim.stand();
        let replayed = match live.pipe.attach(now, claim.epoch(), theirs.recv, theirs.limit, &mut self.pool) {
            Ok(replayed) => replayed,
            Err(violation) => unreachable!("checked above: {violation}"),
        };
        self.shared.figures.resumed(true);
        self.shared.figures.replayed(replayed);
        let mut bearer = Bearer::new(&live.pipe, greeter.carrier, greeter.decoder, greeter.peer);
        bearer.outbox.greet(&Greeting::Welcome(welcome));
        live.bearer = Some(bearer);
        live.goodbye_by = None;
        if let Some(since) = live.detached_at.take() {
            self.shared.ledger.back(claim.id(), &principal);
            self.shared.figures.detached(now.since(since));
        }
        (self.shared.notes)(&Note::Attached { id: claim.id(), replayed });
        if !rest.is_empty() {
            self.take_in(now, &mut live, rest);
        }
        self.settle(now, owner, live);
        self.again.push(owner);
    }

    // ---- the client's dials

    fn open(&mut self, now: Moment, opening: Opening) {
        let slot = self.place(Slot::Free);
        let local = match opening.local {
            LocalKind::Duct(duct) => Local::Duct(duct),
            LocalKind::Socket(mut socket) => {
                if let Err(error) = socket.register(self.poll.registry(), Token(slot * 2 + 1)) {
                    self.free.push(slot);
                    let end = End::new(Ending::Internal, format!("cannot watch the local socket: {error}"));
                    return (opening.client.events)(Event::Over(end));
                }
                Local::socket(socket)
            }
        };
        let live = Live {
            serial: opening.serial,
            pipe: Pipe::new(opening.settings),
            bearer: None,
            local,
            role: Role::Client(Box::new(opening.client)),
            alarm: None,
            detached_at: None,
            goodbye_by: None,
            dropped_at: None,
            born: self.rt.wall(),
            up: 0,
            down: 0,
        };
        self.clients += 1;
        self.serials.insert(opening.serial, slot);
        self.tick.get_or_insert((now, self.rt.wall()));
        self.slots[slot] = Slot::Live(Box::new(live));
        self.again.push(slot);
    }

    /// Starts an attempt to connect if the pipe wants one now.
    fn dial_if_due(&mut self, now: Moment, slot: usize, live: &mut Live) {
        let serial = live.serial;
        let Role::Client(client) = &mut live.role else { return };
        let due = |at: Option<Moment>| at.is_some_and(|at| at <= now);
        let replacing = live.bearer.is_some();
        if live.pipe.over_with().is_some()
            || !(due(client.redial_at) || (replacing && due(client.replace_at)))
        {
            return;
        }
        client.redial_at = None;
        client.replace_at = None;
        let epoch = client.attempts.begin();
        let cancel = self.rt.cancel_token();
        client.cancel = Some(cancel.clone());
        let want = match &client.known {
            Some(known) => Want::Resume(known.clone()),
            None => Want::New { target: client.target.clone(), limit: live.pipe.tell().1 },
        };
        // Without a carrier nothing more is received: how it stands now is how it will stand.
        let standing = (!replacing).then(|| stand(&mut live.pipe));
        let (rt, port, dialer) = (self.rt.clone(), self.port.clone(), client.dialer.clone());
        self.start(Box::new(move || {
            let result = attempt(&rt, &dialer, &cancel, epoch, &want, || match standing {
                Some(stand) => Some(stand),
                None => {
                    let (answer, answered) = rt.channel("stand-still", 1);
                    port.send(Order::StandStill { slot, serial, dial: epoch, answer });
                    // Answered by the pipe's thread, or disconnected with it.
                    answered.recv().ok()
                }
            });
            port.send(Order::Dialed { slot, serial, dial: epoch, result: result.map(Box::new) });
        }));
    }

    fn stand_still(&mut self, slot: usize, serial: u64, dial: u64, answer: &rt::Sender<Stand>) {
        let Some(live) = self.find(slot, serial) else { return };
        let Role::Client(client) = &live.role else { return };
        if !client.attempts.is_out(dial) {
            return;
        }
        if let Some(bearer) = &mut live.bearer {
            bearer.still = true;
        }
        let stand = stand(&mut live.pipe);
        // One answer for a channel of one.
        if answer.try_send(stand).is_err() {
            log::debug!("pipes: a dial did not wait for its answer");
        }
    }

    fn dialed(
        &mut self,
        now: Moment,
        slot: usize,
        serial: u64,
        dial: u64,
        result: Result<Box<Dialed>, DialError>,
    ) {
        if self.find(slot, serial).is_none() {
            return;
        }
        let Some(mut live) = self.take_live(slot) else { return };
        let Role::Client(client) = &mut live.role else { unreachable!("only clients dial") };
        let result = client.attempts.settle(dial, result, drop);
        match result {
            // The attempt was given up; its socket is closed.
            None => {}
            Some(Ok(dialed)) => self.welcomed(now, slot, &mut live, dial, *dialed),
            Some(Err(error)) => {
                client.attempts.end();
                self.dial_failed(now, slot, &mut live, error);
            }
        }
        self.settle(now, slot, live);
        self.again.push(slot);
    }

    fn welcomed(&mut self, now: Moment, slot: usize, live: &mut Live, dial: u64, dialed: Dialed) {
        let Dialed { mut carrier, decoder, rest, welcome } = dialed;
        if let Some(old) = live.bearer.take() {
            self.drop_bearer(old);
        }
        let was_known = {
            let Role::Client(client) = &mut live.role else { unreachable!("only clients dial") };
            let was_known = client.known.is_some();
            if let Some(secret) = welcome.secret {
                client.known = Some(Known { id: welcome.id, secret, instance: welcome.instance });
            }
            client.grace = match (client.grace, welcome.grace) {
                (Some(mine), Some(theirs)) => Some(mine.min(theirs)),
                (mine, theirs) => mine.or(theirs),
            };
            was_known
        };
        let watched = carrier.socket().register(self.poll.registry(), Token(slot * 2));
        let attached = live.pipe.attach(now, dial, welcome.stand.recv, welcome.stand.limit, &mut self.pool);
        let replayed = match (watched, attached) {
            (Ok(()), Ok(replayed)) => replayed,
            (Err(error), Ok(_)) => {
                live.pipe.detach(dial);
                let error = DialError::io("watching the carrier", &error);
                return self.dial_failed(now, slot, live, error);
            }
            (_, Err(violation)) => {
                // The server has other bytes than ours; nothing can be saved.
                return live.pipe.kill(End::new(Ending::Protocol, violation.to_string()), &mut self.pool);
            }
        };
        live.bearer = Some(Bearer::new(&live.pipe, carrier, decoder, CarrierPeer::default()));
        let draw = self.rand.next_u64();
        let Role::Client(client) = &mut live.role else { unreachable!("only clients dial") };
        client.backoff.healthy(now);
        client.last_error = None;
        client.replace_at = client.carrier_age.map(|age| now + spread(age, draw));
        let down_for = now.since(client.lost_at);
        (client.events)(match was_known {
            false => Event::Connected { id: welcome.id },
            true => Event::Recovered { down_for, replayed },
        });
        self.shared.figures.replayed(replayed);
        if let Local::Duct(duct) = &live.local {
            duct.set_state(State::Connected);
        }
        live.detached_at = None;
        live.goodbye_by = None;
        if !rest.is_empty() {
            self.take_in(now, live, &rest);
        }
    }

    fn dial_failed(&mut self, now: Moment, slot: usize, live: &mut Live, error: DialError) {
        let draw = self.rand.next_u64();
        if live.bearer.is_some() {
            // A replacement failed. If the old carrier was not frozen yet it simply stays; if it was, the
            // server may have moved the pipe already: begin afresh.
            if live.bearer.as_ref().is_some_and(|bearer| bearer.still) {
                self.lose(now, slot, live, "its replacement failed half way");
            } else if let Role::Client(client) = &mut live.role {
                client.replace_at = Some(now + spread(Duration::from_secs(30), draw));
            }
            return;
        }
        let Role::Client(client) = &mut live.role else { unreachable!("only clients dial") };
        let never = client.known.is_none();
        let budget = if never { client.patience } else { client.grace };
        let spent = budget.is_some_and(|budget| now.since(client.lost_at) >= budget);
        let done = live.pipe.ending().is_some();
        if done && error.end.code == Ending::UnknownPipe {
            // The server has forgotten what both sides were done with.
            return live.pipe.closed_after_goodbye(&mut self.pool);
        }
        if done && now.since(client.lost_at) >= LINGER {
            let end = live.pipe.ending().cloned().expect("it is done");
            return live.pipe.kill(end, &mut self.pool);
        }
        if !error.retriable || spent {
            let end = match (spent && error.retriable, never) {
                (true, false) => End::new(Ending::GraceExpired, format!("gave up; at last: {}", error.end)),
                _ => error.end,
            };
            return live.pipe.kill(end, &mut self.pool);
        }
        let at = match client.backoff.failed(now, draw) {
            Next::TryAt(at) => at.max(now + error.retry_after),
            Next::GiveUp => now + error.retry_after.max(Duration::from_secs(5)),
        };
        client.redial_at = Some(at);
        if client.last_error.as_ref() != Some(&error.end) {
            (client.events)(Event::Trouble(error.end.clone()));
        }
        client.last_error = Some(error.end);
    }

    fn start(&mut self, job: Job) {
        if self.dials.out >= DIALS_MAX {
            // In line: as many as there are pipes without a carrier.
            self.dials.line.push_back(job);
            return;
        }
        self.dials.threads.retain(|thread| !thread.is_finished());
        match self.rt.spawn(format!("dial-pipe-{}", self.index), job) {
            Ok(thread) => {
                self.dials.out += 1;
                self.dials.threads.push(thread);
            }
            // The pipe has no attempt out then; its own alarm will ask again.
            Err(error) => log::warn!("pipes: no thread to connect with: {error}"),
        }
    }

    fn dial_ended(&mut self) {
        self.dials.out -= 1;
        if let Some(job) = self.dials.line.pop_front() {
            self.start(job);
        }
    }

    // ---- bytes

    fn turn(&mut self, now: Moment, slot: usize) {
        match std::mem::replace(&mut self.slots[slot], Slot::Free) {
            Slot::Free => {}
            Slot::Greeter(greeter) => self.turn_greeter(now, slot, greeter),
            Slot::Live(mut live) => {
                self.dial_if_due(now, slot, &mut live);
                if let Local::Duct(duct) = &live.local {
                    duct.looking();
                }
                let mut moved = 0;
                loop {
                    let count = self.read_carrier(now, slot, &mut live)
                        + self.give_local(now, &mut live)
                        + self.take_local(now, &mut live)
                        + self.write_carrier(now, slot, &mut live);
                    moved += count;
                    if count == 0 {
                        break;
                    }
                    if moved >= TURN {
                        self.again.push(slot);
                        break;
                    }
                }
                self.settle(now, slot, live);
            }
        }
    }

    fn read_carrier(&mut self, now: Moment, slot: usize, live: &mut Live) -> usize {
        let Some(bearer) = live.bearer.as_mut().filter(|bearer| bearer.readable && !bearer.still) else {
            return 0;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = bearer.carrier.read(&mut buffer);
        let count = match read {
            Ok(0) => {
                if live.pipe.goodbye_sent() {
                    live.pipe.closed_after_goodbye(&mut self.pool);
                    if let Some(bearer) = live.bearer.take() {
                        self.drop_bearer(bearer);
                    }
                } else {
                    self.lose(now, slot, live, "the peer closed it");
                }
                0
            }
            Ok(count) => {
                self.take_in(now, live, &buffer[..count]);
                count
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bearer.readable = false;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 1,
            Err(error) => {
                self.lose(now, slot, live, &error.to_string());
                0
            }
        };
        self.buffer = buffer;
        count
    }

    /// Frames arrived.
    fn take_in(&mut self, now: Moment, live: &mut Live, mut input: &[u8]) {
        let Some(bearer) = &mut live.bearer else { return };
        let epoch = bearer.epoch;
        live.pipe.heard(now);
        if let Role::Server(server) = &mut live.role {
            server.unconfirmed = None;
        }
        loop {
            let result = match bearer.decoder.next(&mut input) {
                Ok(None) => return,
                Ok(Some(Piece::Data { off, bytes })) => match live.pipe.data(epoch, off, bytes) {
                    Ok(fresh) => {
                        live.down += fresh.len() as u64;
                        let direct = if live.pipe.unread() == 0 { live.local.write_now(fresh) } else { 0 };
                        if direct > 0 {
                            live.pipe.passed(now, direct, &mut self.pool);
                        }
                        live.pipe.hold(now, &fresh[direct..], &mut self.pool);
                        Ok(())
                    }
                    Err(violation) => Err(violation.to_string()),
                },
                Ok(Some(Piece::Control(control))) => {
                    if let Control::Reset(end) = &control {
                        log::debug!("pipes: the peer ends a pipe: {end}");
                    }
                    let handled: Result<(), Violation> =
                        live.pipe.control(now, epoch, control, &mut self.pool);
                    handled.map_err(|violation| violation.to_string())
                }
                Ok(Some(Piece::Greeting(_))) => Err("a second handshake on one carrier".into()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = result {
                log::warn!("pipes: a peer broke the protocol: {why}");
                live.pipe.abort(End::new(Ending::Protocol, why), &mut self.pool);
                return;
            }
        }
    }

    /// Received bytes go to the local side.
    fn give_local(&mut self, now: Moment, live: &mut Live) -> usize {
        let over = live.pipe.over_with().is_some();
        match &mut live.local {
            Local::Duct(duct) => {
                if live.pipe.unread() == 0 && !live.pipe.at_end() {
                    return 0;
                }
                duct.give(now, &mut live.pipe, &mut self.pool) as usize
            }
            Local::Socket(local) => {
                let mut given = 0;
                while live.pipe.unread() > 0 && (local.writable || local.deaf) {
                    let result = if local.deaf {
                        Ok(live.pipe.unread() as usize)
                    } else {
                        let slices: Vec<IoSlice<'_>> = live.pipe.readable(READ).map(IoSlice::new).collect();
                        local.socket.write_vectored(&slices)
                    };
                    match result {
                        Ok(count) => {
                            live.pipe.took(now, count as u64, &mut self.pool);
                            given += count;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => local.writable = false,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => local.deaf = true,
                    }
                }
                if local.deaf
                    && given > 0
                    && live.pipe.is_finished()
                    && live.pipe.written().0 == live.pipe.written().1
                {
                    // It has given everything it had and takes nothing: the peer talks to nobody.
                    let end = End::new(
                        Ending::TargetReset,
                        "the target closed while bytes were on their way to it",
                    );
                    live.pipe.break_off(end, &mut self.pool);
                }
                if live.pipe.at_end() && !local.write_ended && !over {
                    local.write_ended = true;
                    local.socket.shutdown(Shutdown::Write);
                }
                given
            }
        }
    }

    /// Bytes of the local side go into the pipe.
    fn take_local(&mut self, now: Moment, live: &mut Live) -> usize {
        if live.pipe.over_with().is_some() {
            return 0;
        }
        match &mut live.local {
            Local::Duct(duct) => {
                let before = live.pipe.written().0;
                let found = duct.take(&mut live.pipe, &mut self.pool);
                if found.ended {
                    live.pipe.finish();
                }
                if found.dropped {
                    live.dropped_at.get_or_insert(now);
                }
                let count = live.pipe.written().0 - before;
                live.up += count;
                count as usize
            }
            Local::Socket(local) => {
                let mut taken = 0;
                while local.readable && taken < READ {
                    let space = live.pipe.space(&mut self.pool);
                    if space.is_empty() {
                        break;
                    }
                    let result = local.socket.read(space);
                    live.pipe.commit(*result.as_ref().unwrap_or(&0), &mut self.pool);
                    match result {
                        Ok(0) => {
                            local.readable = false;
                            live.pipe.finish();
                        }
                        Ok(count) => taken += count,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => local.readable = false,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => {
                            local.readable = false;
                            local.deaf = true;
                            live.local_failed(&error, &mut self.pool);
                            break;
                        }
                    }
                }
                live.up += taken as u64;
                taken
            }
        }
    }

    fn write_carrier(&mut self, now: Moment, slot: usize, live: &mut Live) -> usize {
        let mut written = 0;
        let failed = loop {
            let Some(bearer) = live.bearer.as_mut().filter(|bearer| bearer.writable && !bearer.still) else {
                break None;
            };
            if bearer.outbox.is_empty() && !live.pipe.wants_to_send() && !bearer.carrier.has_more() {
                break None;
            }
            bearer.outbox.fill(now, &mut live.pipe);
            let result = if bearer.outbox.is_empty() {
                bearer.carrier.flush().map(|()| 0)
            } else {
                let mut slices = Vec::with_capacity(16);
                bearer.outbox.slices(&live.pipe, &mut slices, 64);
                bearer.carrier.write(&slices)
            };
            match result {
                Ok(count) => {
                    bearer.outbox.wrote(count);
                    written += count;
                    if written >= TURN {
                        break None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    bearer.writable = false;
                    break None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error.to_string()),
            }
        };
        if let Some(why) = failed {
            self.lose(now, slot, live, &why);
        }
        written
    }

    /// The carrier is gone; the pipe is not.
    fn lose(&mut self, now: Moment, _slot: usize, live: &mut Live, why: &str) {
        let Some(bearer) = live.bearer.take() else { return };
        live.pipe.detach(bearer.epoch);
        let was_of_use = bearer.was_of_use(&live.pipe);
        self.drop_bearer(bearer);
        live.detached_at = Some(now);
        live.goodbye_by = None;
        self.shared.figures.lost();
        let draw = self.rand.next_u64();
        match &mut live.role {
            Role::Server(server) => {
                let limit = self.shared.settings.limits.detached;
                if let Some(evict) = self.shared.ledger.away(server.id, &server.principal, now, limit) {
                    self.shared.evict(evict);
                }
                (self.shared.notes)(&Note::Detached { id: server.id, why: why.to_owned() });
            }
            Role::Client(client) => {
                client.lost_at = now;
                client.replace_at = None;
                // Whatever attempt was out to replace it goes on as an attempt like any other, unless it
                // waits for an answer about a carrier that is gone: begin afresh.
                client.attempts.end();
                if let Some(cancel) = client.cancel.take() {
                    cancel.cancel();
                }
                if was_of_use {
                    // However often the path is cut: as long as each carrier gets the pipe further, there
                    // is nothing to be patient about.
                    client.backoff.forget();
                }
                client.redial_at = Some(match client.backoff.failed(now, draw) {
                    Next::TryAt(at) => at,
                    Next::GiveUp => now + Duration::from_secs(5),
                });
                if live.pipe.ending().is_none() {
                    (client.events)(Event::Lost { why: why.to_owned() });
                    if let Local::Duct(duct) = &live.local {
                        duct.set_state(State::Lost);
                    }
                }
            }
        }
    }

    fn drop_bearer(&mut self, mut bearer: Bearer) {
        bearer.carrier.socket().deregister(self.poll.registry());
        bearer.carrier.close();
    }

    /// After anything happened to a pipe: is it over, when is it next to be looked at.
    fn settle(&mut self, now: Moment, slot: usize, mut live: Box<Live>) {
        if let Some(notice) = live.pipe.take_go_away()
            && let Role::Client(client) = &mut live.role
        {
            if let Some(url) = &notice.url {
                client.dialer.moved(url);
            }
            client.replace_at = Some(now + notice.retry_hint);
        }
        if live.pipe.goodbye_sent() && live.goodbye_by.is_none() {
            live.goodbye_by = Some(now + GOODBYE_WAIT);
        }
        if live.is_finished() {
            return self.remove(now, slot, live);
        }
        let next = live.next_alarm(&self.shared);
        if let Some(next) = next
            && live.alarm.is_none_or(|alarm| next < alarm)
        {
            live.alarm = Some(next);
            self.alarms.push(Reverse((next, slot, live.serial)));
        }
        self.slots[slot] = Slot::Live(live);
    }

    fn remove(&mut self, now: Moment, slot: usize, mut live: Box<Live>) {
        let end = live.pipe.over_with().cloned().expect("only what is over is removed");
        if let Some(mut bearer) = live.bearer.take() {
            // The last frames may still fit into the socket.
            bearer.outbox.fill(now, &mut live.pipe);
            self.drop_bearer(bearer);
        }
        match &mut live.local {
            Local::Socket(local) => {
                local.socket.deregister(self.poll.registry());
                if end.code != Ending::Eof {
                    local.socket.break_on_close();
                } else if !local.write_ended {
                    local.socket.shutdown(Shutdown::Write);
                }
            }
            Local::Duct(duct) => duct.set_state(State::Over(end.clone())),
        }
        self.serials.remove(&live.serial);
        let info = live.info(now);
        match live.role {
            Role::Server(server) => {
                self.ids.remove(&server.id);
                self.shared.ledger.gone(server.id, &server.principal);
                self.shared.figures.ended(end.code);
                (self.shared.notes)(&Note::Ended { info: info.expect("a server's pipe has a name"), end });
            }
            Role::Client(client) => {
                if let Some(cancel) = client.cancel {
                    cancel.cancel();
                }
                self.clients -= 1;
                if self.clients == 0 {
                    self.tick = None;
                }
                (client.events)(Event::Over(end));
            }
        }
        self.free.push(slot);
    }

    // ---- time

    fn ring(&mut self, now: Moment) {
        while let Some(Reverse((at, slot, serial))) = self.alarms.peek().copied() {
            if at > now {
                break;
            }
            self.alarms.pop();
            match self.slots.get(slot) {
                Some(Slot::Greeter(greeter)) if greeter.serial == serial => self.again.push(slot),
                Some(Slot::Live(live)) if live.serial == serial => {
                    let mut live = self.take_live(slot).expect("looked at just now");
                    live.alarm = None;
                    self.alarm(now, slot, &mut live);
                    // Its turn, later in this round, dials what is due and sets the next alarm.
                    self.slots[slot] = Slot::Live(live);
                    self.again.push(slot);
                }
                // Whoever set it has left.
                _ => {}
            }
        }
    }

    fn alarm(&mut self, now: Moment, slot: usize, live: &mut Live) {
        if live.pipe.alarm(now).is_some() {
            self.shared.figures.found_dead();
            self.lose(now, slot, live, "nothing was heard of the peer");
        }
        if live.goodbye_by.is_some_and(|by| by <= now) {
            self.lose(now, slot, live, "the peer did not close it after the last word");
        }
        if live.dropped_at.is_some_and(|since| since + LINGER <= now) {
            let end = End::new(Ending::TargetReset, "the program let go of its end");
            live.pipe.abort(end, &mut self.pool);
        }
        let expired = live.expires_at(&self.shared).is_some_and(|at| at <= now);
        if expired && live.pipe.over_with().is_none() {
            let end = match live.pipe.ending() {
                Some(end) => end.clone(),
                None if live.pipe.is_done() => End::new(Ending::Eof, ""),
                None if let Role::Client(client) = &live.role
                    && client.known.is_none() =>
                {
                    let silent = || End::new(Ending::TargetUnreachable, "no server answered in time");
                    client.last_error.clone().unwrap_or_else(silent)
                }
                None => End::new(Ending::GraceExpired, "nobody came back for it in time"),
            };
            live.pipe.kill(end, &mut self.pool);
        }
    }

    /// A laptop that was closed: the calendar went on, the clock did not.
    fn look_for_sleep(&mut self, now: Moment) {
        let Some((then, then_wall)) = self.tick else { return self.look_at_budget(now) };
        if now.since(then) < TICK {
            return;
        }
        let wall = self.rt.wall();
        self.tick = Some((now, wall));
        if wall.since(then_wall) > now.since(then) + SLEPT {
            for slot in 0..self.slots.len() {
                if let Slot::Live(live) = &mut self.slots[slot] {
                    live.pipe.probe(now, Duration::from_secs(2));
                    if let Role::Client(client) = &mut live.role {
                        client.backoff.forget();
                        if client.redial_at.is_some() {
                            client.redial_at = Some(now);
                        }
                    }
                    self.again.push(slot);
                }
            }
        }
        self.look_at_budget(now);
    }

    /// All pipes together hold only so much: above it, the big ones get small windows until it eases.
    fn look_at_budget(&mut self, now: Moment) {
        let held: usize = self
            .slots
            .iter()
            .map(|slot| match slot {
                Slot::Live(live) if live.bearer.is_some() || live.pipe.buffered() > 0 => live.pipe.memory(),
                _ => 0,
            })
            .sum();
        let all = self.shared.figures.hold(usize::from(self.index), held as u64);
        let budget = self.shared.settings.budget;
        let press = if self.pressed { all > budget / 5 * 4 } else { all > budget };
        if press == self.pressed && !press {
            return;
        }
        self.pressed = press;
        let window = self.shared.settings.window;
        for slot in &mut self.slots {
            if let Slot::Live(live) = slot {
                let big = live.pipe.memory() as u64 > pipe::WINDOW_MIN;
                live.pipe.set_window(now, if press && big { pipe::WINDOW_MIN } else { window });
            }
        }
    }

    // ---- the end

    fn stop(&mut self, now: Moment) {
        let why = End::new(Ending::Shutdown, "the other side is going");
        for slot in 0..self.slots.len() {
            if let Slot::Live(live) = &mut self.slots[slot] {
                live.pipe.abort(why.clone(), &mut self.pool);
                if live.bearer.is_none() {
                    live.pipe.kill(why.clone(), &mut self.pool);
                }
            }
            self.turn(now, slot);
        }
    }

    /// Whether every last word is on its way.
    fn is_quiet(&self) -> bool {
        self.slots.iter().all(|slot| match slot {
            Slot::Live(live) => live
                .bearer
                .as_ref()
                .is_none_or(|bearer| bearer.outbox.is_empty() && !live.pipe.wants_to_send()),
            _ => true,
        })
    }

    fn end(mut self) {
        let now = self.rt.now();
        for slot in 0..self.slots.len() {
            if let Slot::Greeter(greeter) = &self.slots[slot]
                && let Stage::Connecting(_, cancel) = &greeter.stage
            {
                cancel.cancel();
            }
            if let Some(mut live) = self.take_live(slot) {
                live.pipe.closed_after_goodbye(&mut self.pool);
                live.pipe.kill(End::new(Ending::Shutdown, "the program is going"), &mut self.pool);
                self.remove(now, slot, live);
            }
        }
        // Dial threads were cancelled and find nobody to tell: the inbox goes first, then they are joined.
        drop(self.orders);
        drop(self.dials);
    }
}

impl Greeter {
    fn say(&mut self, greeting: &Greeting) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode_greeting(greeting, &mut bytes);
        // A greeting is smaller than any socket's buffer; a carrier that takes only half is no carrier.
        let count = self.carrier.write(&[IoSlice::new(&bytes)])?;
        if count < bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Who it is: as the door found out, or by the token in HELLO.
    fn authenticate(&mut self, shared: &Shared, token: Option<&str>) -> Result<Arc<str>, End> {
        if let Some(principal) = &self.peer.principal {
            return Ok(principal.clone());
        }
        let principal = (shared.gate)(token, &self.peer)?;
        self.peer.principal = Some(principal.clone());
        Ok(principal)
    }
}

impl Bearer {
    /// Bears `pipe`, which was attached a moment ago.
    fn new(pipe: &Pipe, carrier: Carrier, decoder: Decoder, peer: CarrierPeer) -> Bearer {
        Bearer {
            epoch: pipe.epoch(),
            carrier,
            outbox: Outbox::new(),
            decoder,
            readable: true,
            writable: true,
            still: false,
            peer,
            began: (pipe.received(), pipe.written().1),
        }
    }

    /// Whether the pipe got further with it.
    fn was_of_use(&self, pipe: &Pipe) -> bool {
        pipe.received() > self.began.0 || pipe.written().1 > self.began.1
    }
}

impl Local {
    /// Writes bytes that nothing waits in front of; gives how many went.
    fn write_now(&mut self, bytes: &[u8]) -> usize {
        match self {
            Local::Socket(local) if local.writable && !local.deaf => match local.socket.write(bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    local.writable = false;
                    0
                }
                // Found again, and handled, by whoever writes what is held.
                Err(_) => 0,
            },
            _ => 0,
        }
    }
}

impl Live {
    /// Reading from the local side failed, or the system noticed that it is broken.
    fn local_failed(&mut self, error: &io::Error, pool: &mut Pool) {
        if let Local::Socket(local) = &mut self.local {
            local.deaf = true;
        }
        let text = format!("the connection behind the pipe broke: {error}");
        self.pipe.break_off(End::new(Ending::TargetReset, text), pool);
    }

    /// Over for the peer, and the local side has everything it will get.
    fn is_finished(&self) -> bool {
        let Some(end) = self.pipe.over_with() else { return false };
        if self.pipe.unread() == 0 {
            return true;
        }
        match (&self.local, end.code) {
            (Local::Socket(local), Ending::Eof) => local.deaf,
            // What can be delivered at once was; the rest is lost with the connection, as with TCP.
            (Local::Socket(_), _) => true,
            (Local::Duct(_), code) => code != Ending::Eof && code != Ending::TargetReset,
        }
    }

    fn next_alarm(&self, shared: &Shared) -> Option<Moment> {
        let role = match &self.role {
            Role::Server(_) => None,
            Role::Client(client) => {
                let replace_at = client.replace_at.filter(|_| self.bearer.is_some());
                Moment::earliest(client.redial_at, replace_at)
            }
        };
        let over = self.pipe.over_with().is_some();
        let dropped = self.dropped_at.filter(|_| self.pipe.ending().is_none()).map(|since| since + LINGER);
        let alarms = [self.pipe.deadline(), role, self.goodbye_by, dropped, self.expires_at(shared)];
        alarms.into_iter().flatten().min().filter(|_| !over)
    }

    /// When it is given up if nothing happens.
    fn expires_at(&self, shared: &Shared) -> Option<Moment> {
        match &self.role {
            Role::Server(server) => {
                let unconfirmed = server.unconfirmed.map(|since| since + CONFIRM_WAIT);
                let linger = self.pipe.is_done() || self.pipe.ending().is_some();
                let detached = match (self.detached_at, linger, shared.settings.grace) {
                    (Some(since), true, grace) => {
                        Some(since + grace.map_or(LINGER, |grace| grace.min(LINGER)))
                    }
                    (Some(since), false, Some(grace)) => Some(since + grace),
                    _ => None,
                };
                [unconfirmed, detached].into_iter().flatten().min()
            }
            Role::Client(client) => {
                let budget = if client.known.is_none() { client.patience } else { client.grace };
                budget.filter(|_| self.bearer.is_none()).map(|budget| client.lost_at + budget)
            }
        }
    }

    fn info(&self, now: Moment) -> Option<PipeInfo> {
        let Role::Server(server) = &self.role else { return None };
        Some(PipeInfo {
            id: server.id,
            attached: self.bearer.is_some(),
            detached_for: self.detached_at.map(|since| now.since(since)),
            principal: server.principal.clone(),
            target: server.target.clone(),
            peer: self.bearer.as_ref().map(|bearer| bearer.peer.clone()),
            created_at: self.born,
            epoch: self.pipe.epoch(),
            resumes: self.pipe.counts().resumes,
            replayed: self.pipe.counts().replayed,
            duplicates: self.pipe.counts().duplicates,
            buffered: self.pipe.buffered(),
            bytes_to_target: self.down,
            bytes_from_target: self.up,
            round_trip: self.pipe.round_trip(),
        })
    }
}

fn stand(pipe: &mut Pipe) -> Stand {
    let fin = pipe.peer_finished();
    let (recv, limit) = pipe.tell();
    Stand { recv, fin, limit }
}

/// Ten percent less to ten percent more.
fn spread(around: Duration, draw: u64) -> Duration {
    let share = (draw >> 32) as f64 / f64::from(u32::MAX);
    around.mul_f64(0.9 + 0.2 * share)
}

/// One attempt of a client, on a thread of its own.
fn attempt(
    rt: &Rt,
    dialer: &Arc<dyn Dialer>,
    cancel: &Cancel,
    epoch: u64,
    want: &Want,
    stand_still: impl FnOnce() -> Option<Stand>,
) -> Result<Dialed, DialError> {
    let mut patience = Patience::new(rt, rt.now() + CONNECT_WAIT, cancel)
        .map_err(|error| DialError::io("preparing to connect", &error))?;
    dial::dial(dialer, &mut patience, epoch, want, stand_still)
}

/// Connects to a target for a client, on a thread of its own.
fn connect(
    rt: &Rt,
    shared: &Shared,
    target: &Target,
    cancel: &Cancel,
) -> Result<(Socket, Option<std::net::SocketAddr>), End> {
    let not_allowed = || End::new(Ending::NotAllowed, format!("{target} is not on the server's allow-list"));
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::ConnectionRefused => Ending::TargetRefused,
            _ => Ending::TargetUnreachable,
        };
        End::new(code, format!("connecting to {target}: {error}"))
    };
    let mut patience = Patience::new(rt, rt.now() + CONNECT_WAIT + CONNECT_WAIT, cancel).map_err(failed)?;
    match target {
        Target::Unix(path) => {
            if !shared.allows(target, None) {
                return Err(not_allowed());
            }
            let mut socket = patience.connect_unix(path).map_err(failed)?;
            patience.release(&mut socket);
            Ok((socket, None))
        }
        Target::Tcp(host, port) => {
            if shared.allow.lock().is_nothing() {
                // Nothing is listed: not even a name is looked up for a stranger.
                return Err(not_allowed());
            }
            let mut addresses = patience.resolve(host, *port).map_err(failed)?;
            addresses.retain(|address| shared.allows(target, Some(*address)));
            if addresses.is_empty() {
                return Err(not_allowed());
            }
            let mut socket = patience.connect(&addresses).map_err(failed)?;
            patience.release(&mut socket);
            let resolved = match &socket {
                Socket::Tcp(stream) => stream.peer_addr().ok(),
                Socket::Unix(_) => None,
            };
            Ok((socket, resolved))
        }
    }
}
