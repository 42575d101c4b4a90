//! Pipes: byte streams that outlive their connections, on a few threads.
//!
//! [`Pipes`] owns the threads. Each owns any number of pipes whole: their machines, local sockets and
//! carriers, so that a byte crosses no thread and a pipe costs none. A pipe's id names its thread, which
//! is how a resume that arrives on another one finds it without a lock.
//!
//! A server's pipes begin with [`PipesHandle::carrier`]: a connection somebody else accepted and
//! authenticated (an HTTP upgrade, a WebSocket, a plain listener). A client's begin with
//! [`PipesHandle::open`] and dial by themselves.
//!
//! Shared between the threads, each under a lock held for microseconds: the allow-list, and what each
//! principal holds.

pub mod allow;
pub mod carrier;
pub mod dial;
pub mod duct;
mod figures;
pub mod http;
mod ledger;
mod lookout;
pub mod relay;
mod seat;
mod shard;

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mio::{Poll, Waker};

use self::allow::{Allow, Target};
use self::carrier::{Carrier, Socket};
use self::dial::{DialError, Dialed, Dialer};
use self::duct::{Duct, Owner, Visiting};
use self::figures::Figures;
use self::ledger::Ledger;
use self::relay::{Way, Ways};
use self::seat::Seat;
use self::shard::{ClientSide, Greeter, LocalKind, Opening, Shard, WAKE};
use crate::metrics::Metrics;
use crate::rt::{self, Lock, Moment, Rt, Thread, TrySendError, Wall};
use crate::state::attempt::Attempts;
use crate::state::backoff::{Backoff, Budget, Policy};
use crate::state::pipe::proof::Stand;
use crate::state::pipe::{self, End, Ending, Liveness, PipeId, Side};
use crate::state::replay::Pool;

/// How pipes behave, for all of them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many threads share them. One carries some gigabytes a second.
    pub threads: u8,
    /// How much may lie between the two ends of one pipe, in each direction.
    pub window: u64,
    /// How much all pipes together may hold before the big ones are slowed down.
    pub budget: u64,
    /// How long a pipe without a carrier is kept; none is for ever.
    pub grace: Option<Duration>,
    /// How soon a dead carrier is noticed.
    pub liveness: Liveness,
    /// Whether secrets may cross a network in the clear.
    pub insecure: bool,
    /// What one principal may have.
    pub limits: Limits,
}

/// What one principal may have. None of it ever stands in the way of a resume.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pipes at once. One more evicts the principal's own pipe that has been without a carrier longest.
    pub pipes: usize,
    /// Pipes without a carrier at once; one more evicts the oldest of them. As many as there may be pipes unless
    /// something else is asked for: a path that breaks takes all of a principal's carriers at once, and none of
    /// those pipes may be lost for it.
    pub detached: usize,
    /// New pipes in one second, counting those that were refused.
    pub new_per_second: u32,
    /// Bytes that its pipes hold before the big ones among them are slowed down.
    pub buffered: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { pipes: 1024, detached: 1024, new_per_second: 256, buffered: 256 << 20 }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            threads: 1,
            window: pipe::WINDOW,
            budget: 512 << 20,
            grace: Some(Duration::from_secs(24 * 60 * 60)),
            liveness: Liveness::NORMAL,
            insecure: false,
            limits: Limits::default(),
        }
    }
}

impl Settings {
    fn pipe(&self, side: Side) -> pipe::Settings {
        pipe::Settings { window: self.window, liveness: self.liveness, ..pipe::Settings::new(side) }
    }
}

/// Where a server's pipes lead.
pub enum Mode {
    /// Nowhere: this process only dials.
    Nothing,
    /// To targets on the allow-list.
    Tunnel,
    /// To whoever listens in this process.
    Listen(rt::Sender<Accepted>),
}

/// Who came with a carrier, as far as its door knows.
#[derive(Clone, Debug, Default)]
pub struct CarrierPeer {
    /// The address, if it has one.
    pub ip: Option<IpAddr>,
    /// Whether nobody on the way can read along: TLS, or the same machine.
    pub confidential: bool,
    /// Who it is, if the door asked; otherwise the token in HELLO decides.
    pub principal: Option<Arc<str>>,
    /// Whether another replica carries it on to here: for a resume, and no further.
    pub relayed: bool,
}

impl fmt::Display for CarrierPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.ip, &self.principal) {
            (Some(ip), Some(who)) => write!(f, "{who} at {ip}"),
            (Some(ip), None) => write!(f, "somebody at {ip}"),
            (None, Some(who)) => write!(f, "{who} on this machine"),
            (None, None) => f.write_str("somebody on this machine"),
        }
    }
}

/// Says who a token in HELLO belongs to.
pub type Gate = Arc<dyn Fn(Option<&str>, &CarrierPeer) -> Result<Arc<str>, End> + Send + Sync>;

/// What happens to a client's pipe. Told on the pipes' thread: whoever listens must not wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first carrier bears it.
    Connected {
        /// Its public name.
        id: PipeId,
        /// How long the server keeps it without a carrier; none is for ever.
        grace: Option<Duration>,
    },
    /// The carrier was lost. Bytes wait.
    Lost {
        /// Why.
        why: String,
    },
    /// An attempt to connect failed in a new way; others follow.
    Trouble(End),
    /// Another carrier bears it.
    Recovered {
        /// How long there was none; zero when one replaced another.
        down_for: Duration,
        /// Bytes that go out a second time.
        replayed: u64,
    },
    /// It is over.
    Over(End),
}

/// What happens to a server's pipes, for whoever keeps a record. Told on the pipes' threads.
#[derive(Clone, Debug)]
pub enum Note {
    /// A new one.
    Opened(PipeInfo),
    /// Another carrier bears it.
    Attached {
        /// Which.
        id: PipeId,
        /// Bytes that go out a second time.
        replayed: u64,
    },
    /// Its carrier was lost.
    Detached {
        /// Which.
        id: PipeId,
        /// Why.
        why: String,
    },
    /// It is over.
    Ended {
        /// As it was at the end.
        info: PipeInfo,
        /// How.
        end: End,
    },
}

/// One of a server's pipes, as lists show it.
#[derive(Clone, Debug)]
pub struct PipeInfo {
    /// Its public name.
    pub id: PipeId,
    /// Whether a carrier bears it.
    pub attached: bool,
    /// How long none has.
    pub detached_for: Option<Duration>,
    /// Whose it is.
    pub principal: Arc<str>,
    /// Where it leads.
    pub target: String,
    /// Who is at the other end of the carrier.
    pub peer: Option<CarrierPeer>,
    /// When it began.
    pub created_at: Wall,
    /// The number of its newest carrier.
    pub epoch: u64,
    /// How often another carrier took over.
    pub resumes: u64,
    /// Bytes sent a second time.
    pub replayed: u64,
    /// Bytes that came a second time and were dropped.
    pub duplicates: u64,
    /// Bytes that wait, in both directions.
    pub buffered: u64,
    /// Bytes from the client to the target.
    pub bytes_to_target: u64,
    /// Bytes from the target to the client.
    pub bytes_from_target: u64,
    /// How long the last question took to come back.
    pub round_trip: Option<Duration>,
}

/// A pipe somebody opened to this process.
pub struct Accepted {
    pub(crate) duct: Arc<Duct>,
    pub(crate) port: Arc<Port>,
    pub(crate) serial: u64,
    /// Its public name.
    pub id: PipeId,
    /// Whose it is.
    pub principal: Arc<str>,
    /// What was asked for.
    pub target: String,
    /// Who is at the other end.
    pub peer: CarrierPeer,
}

/// A client's pipe to be.
pub struct Plan {
    /// Where carriers come from.
    pub dialer: Arc<dyn Dialer>,
    /// Where it leads, in the words of the server.
    pub target: String,
    /// How much may lie between the two ends, in each direction.
    pub window: u64,
    /// How soon a dead carrier is noticed.
    pub liveness: Liveness,
    /// How long to try before the first welcome; none is for ever.
    pub patience: Option<Duration>,
    /// Give up sooner than the server would.
    pub grace: Option<Duration>,
    /// Replace a healthy carrier at this age, before a balancer does.
    pub carrier_age: Option<Duration>,
    /// What happens, as it happens.
    pub events: Arc<dyn Fn(Event) + Send + Sync>,
}

impl Plan {
    /// The defaults: 8 MiB, 30 s for the first welcome, a new carrier every 20 minutes.
    pub fn new(dialer: Arc<dyn Dialer>, target: impl Into<String>) -> Plan {
        Plan {
            dialer,
            target: target.into(),
            window: pipe::WINDOW,
            liveness: Liveness::NORMAL,
            patience: Some(Duration::from_secs(30)),
            grace: None,
            carrier_age: Some(Duration::from_secs(20 * 60)),
            events: Arc::new(|_| {}),
        }
    }
}

/// How a client redials: at once, then 100 ms doubling to 5 s. When to give up is decided by the grace
/// the server announced.
const REDIAL: Policy = Policy {
    first: Duration::from_millis(100),
    cap: Duration::from_secs(5),
    at_once: true,
    reset_after: Duration::from_secs(10),
    budget: Budget::Forever,
};

/// How many chunks wait for the handles of one thread's pipes.
const CHUNKS_MAX: usize = 64;

/// What a thread of pipes is asked to do.
pub(crate) enum Order {
    /// A connection wants to bear a pipe.
    Carrier(Box<Carrier>, CarrierPeer),
    /// The same, half way through its handshake on another thread.
    Greeter(Box<Greeter>),
    Open(Box<Opening>),
    Dialed {
        slot: usize,
        serial: u64,
        dial: u64,
        result: Result<Box<Dialed>, DialError>,
    },
    StandStill {
        slot: usize,
        serial: u64,
        dial: u64,
        answer: rt::Sender<Stand>,
    },
    Target {
        slot: usize,
        serial: u64,
        result: Result<(Socket, Option<std::net::SocketAddr>), End>,
    },
    /// Another replica, for a pipe that it has.
    Reached {
        slot: usize,
        serial: u64,
        result: Result<Box<Carrier>, DialError>,
    },
    /// A handle has something.
    Local {
        serial: u64,
    },
    List(Arc<Gather>),
    Kill {
        id: PipeId,
        end: End,
        answer: Box<dyn FnOnce(bool) + Send>,
    },
    /// Ends a pipe that no carrier bears.
    Evict {
        id: PipeId,
    },
    Cut {
        id: PipeId,
        answer: Box<dyn FnOnce(bool) + Send>,
    },
    CutSerial {
        serial: u64,
    },
    Close {
        serial: u64,
    },
    /// Dial now, whatever the timers say.
    Redial,
    /// The process will go within this time: tell the peers, begin nothing new.
    Drain {
        deadline: Duration,
    },
    Stop,
}

/// Orders that wait for a thread of pipes. Each is small; what a carrier or a handle sends travels
/// elsewhere.
const ORDERS_MAX: usize = 4096;

/// The near side of one thread's inbox.
pub(crate) struct Port {
    orders: rt::Sender<Order>,
    awake: AtomicBool,
    waker: Waker,
    missed: AtomicBool,
    seat: Seat,
    /// Chunks for the handles of this thread's pipes; the thread sees to it that there are some.
    chunks: Arc<Lock<Pool>>,
}

impl Port {
    /// For threads that may wait: dial threads.
    pub(crate) fn send(&self, order: Order) {
        // Disconnected: the thread has stopped, and what came too late is closed by being dropped.
        if self.orders.send(order).is_ok() {
            self.rouse();
        }
    }

    /// For threads that may not. What did not fit comes back.
    pub(crate) fn try_send(&self, order: Order) -> Result<(), Order> {
        match self.orders.try_send(order) {
            Ok(()) => {
                self.rouse();
                Ok(())
            }
            Err(TrySendError::Full(order)) => Err(order),
            // As above.
            Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    fn rouse(&self) {
        if !self.awake.swap(true, Ordering::SeqCst)
            && let Err(error) = self.waker.wake()
        {
            log::error!("pipes: waking a thread failed: {error}");
        }
    }

    /// The thread is about to sleep: from here on whoever brings something wakes it.
    pub(crate) fn dozes(&self) {
        self.awake.store(false, Ordering::SeqCst);
    }

    /// An error if something came in before and it must not sleep.
    pub(crate) fn may_sleep(&self) -> Result<(), ()> {
        if self.orders.is_empty() && !self.missed.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.woke();
        Err(())
    }

    pub(crate) fn woke(&self) {
        self.awake.store(true, Ordering::SeqCst);
    }

    /// Whether a handle found the inbox full since somebody last asked.
    pub(crate) fn missed(&self) -> bool {
        self.missed.swap(false, Ordering::SeqCst)
    }

    /// Chunks go one way with the bytes in them, and back through here.
    pub(crate) fn level_chunks(&self, pool: &mut Pool) {
        self.chunks.lock().level(pool);
    }

    /// The local side of a pipe on this thread.
    pub(crate) fn duct(self: &Arc<Port>, rt: &Rt, serial: u64) -> Duct {
        Duct::new(rt, &self.chunks, OwnerOf { rt: rt.clone(), port: self.clone(), serial })
    }
}

/// The thread that owns one pipe, as its duct knows it.
struct OwnerOf {
    rt: Rt,
    port: Arc<Port>,
    serial: u64,
}

impl Owner for OwnerOf {
    fn poke(&self) {
        // Full: the thread looks at every handle instead, so nothing is forgotten.
        if self.port.try_send(Order::Local { serial: self.serial }).is_err() {
            self.port.missed.store(true, Ordering::SeqCst);
            self.port.rouse();
        }
    }

    fn visit(&self, why: Visiting<'_>, until: Option<Moment>) -> Option<usize> {
        let seat = &self.port.seat;
        let mut guest = match why.is_worth_a_wait() {
            true => seat.enter_in_turn(&self.rt, &self.port, until)?,
            false => seat.enter(&self.port)?,
        };
        Some(guest.shard().visit(self.serial, why))
    }

    fn look_out(&self, until: Option<Moment>) -> Option<Arc<OwnedFd>> {
        let mut guest = self.port.seat.enter_in_turn(&self.rt, &self.port, until)?;
        guest.shard().look_out(self.serial)
    }
}

/// What the threads of pipes have in common.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) mode: Mode,
    pub(crate) gate: Gate,
    pub(crate) allow: Lock<Allow>,
    pub(crate) notes: Arc<dyn Fn(&Note) + Send + Sync>,
    /// This run of this process.
    pub(crate) instance: [u8; 16],
    /// What the ids of its pipes begin with.
    pub(crate) owner: [u8; 8],
    pub(crate) ways: Ways,
    pub(crate) ledger: Ledger,
    pub(crate) figures: Figures,
    ports: OnceLock<Vec<Arc<Port>>>,
}

impl Shared {
    pub(crate) fn ports(&self) -> &[Arc<Port>] {
        self.ports.get().map_or(&[], |ports| ports)
    }

    fn port_of(&self, id: PipeId) -> &Arc<Port> {
        &self.ports()[usize::from(id.0[15]) % self.ports().len()]
    }

    /// Makes room for another pipe of the same principal.
    pub(crate) fn evict(&self, id: PipeId) {
        // Full: it stays a while longer; the limit is looked at again with the next pipe.
        if self.port_of(id).try_send(Order::Evict { id }).is_err() {
            log::debug!("pipes: {id} was not evicted, its thread is busy");
        }
    }

    /// Whether a target is on the allow-list; `resolved` is what its name stands for.
    pub(crate) fn allows(&self, target: &Target, resolved: Option<std::net::SocketAddr>) -> bool {
        let allow = self.allow.lock();
        match target {
            Target::Unix(path) => allow.path(path),
            Target::Tcp(host, _) => resolved.is_some_and(|address| allow.address(host, address)),
        }
    }
}

/// Collects an answer from every thread.
pub(crate) struct Gather {
    inner: Lock<Gathered>,
}

struct Gathered {
    left: usize,
    infos: Vec<PipeInfo>,
    done: Option<Box<dyn FnOnce(Vec<PipeInfo>) + Send>>,
}

impl Gather {
    pub(crate) fn add(&self, mut infos: Vec<PipeInfo>) {
        let done = {
            let mut inner = self.inner.lock();
            inner.infos.append(&mut infos);
            inner.left -= 1;
            if inner.left > 0 {
                return;
            }
            inner.infos.sort_by_key(|info| (info.created_at, info.id));
            let infos = std::mem::take(&mut inner.infos);
            inner.done.take().map(|done| (done, infos))
        };
        if let Some((done, infos)) = done {
            done(infos);
        }
    }
}

/// The threads that own pipes. Dropping it ends every pipe (the peers are told) and joins them.
pub struct Pipes {
    handle: PipesHandle,
    threads: Vec<Thread<()>>,
}

/// A way to the threads that own pipes. Cheap to clone.
///
/// ```
/// use std::sync::mpsc;
/// use towpath::{Pipe, PipeListener, Rt};
///
/// let rt = Rt::real();
/// let listener = PipeListener::bind(&rt, "127.0.0.1:0")?;
/// let _near = Pipe::connect(&rt, listener.url(), "demo")?;
/// let _far = listener.accept()?.pipe;
/// let (tell, told) = mpsc::channel();
/// listener.pipes().list(move |pipes| drop(tell.send(pipes.len())));
/// assert_eq!(told.recv()?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct PipesHandle {
    rt: Rt,
    shared: Arc<Shared>,
    next: Arc<AtomicU64>,
}

/// What a server needs besides its settings.
pub struct Server {
    /// Where pipes lead.
    pub mode: Mode,
    /// Who is who, for carriers whose door did not ask.
    pub gate: Gate,
    /// What may be dialled.
    pub allow: Allow,
    /// Hears what happens.
    pub notes: Arc<dyn Fn(&Note) + Send + Sync>,
    /// What the ids of its pipes begin with: the replica.
    pub owner: [u8; 8],
    /// Where the pipes of other replicas are.
    pub ways: Ways,
}

impl Server {
    /// For a process that only dials.
    pub fn none() -> Server {
        Server {
            mode: Mode::Nothing,
            gate: Arc::new(|_, _| Err(End::new(Ending::Auth, "nobody may come in here"))),
            allow: Allow::nothing(),
            notes: Arc::new(|_| {}),
            owner: [0; 8],
            ways: Arc::new(|_, _| Way::Here),
        }
    }
}

impl Pipes {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system has no poller or no thread to give.
    pub fn start(rt: &Rt, settings: Settings, server: Server) -> crate::Result<Pipes> {
        let threads = settings.threads.clamp(1, 64);
        let shared = Arc::new(Shared {
            settings: Settings { threads, ..settings },
            mode: server.mode,
            gate: server.gate,
            allow: Lock::new(server.allow),
            notes: server.notes,
            instance: rt.secret(),
            owner: server.owner,
            ways: server.ways,
            ledger: Ledger::default(),
            figures: Figures::new(usize::from(threads)),
            ports: OnceLock::new(),
        });
        let mut shards = Vec::new();
        let mut ports = Vec::new();
        for index in 0..threads {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), WAKE)?;
            let (orders, inbox) = rt.channel("pipes", ORDERS_MAX);
            let (bell, rung) = rt.channel("pipes-seat", 1);
            let port = Arc::new(Port {
                orders,
                awake: AtomicBool::new(true),
                waker,
                missed: AtomicBool::new(false),
                seat: Seat::new(bell),
                chunks: Arc::new(Lock::new(Pool::new(CHUNKS_MAX))),
            });
            ports.push(port.clone());
            let registry = poll.registry().try_clone()?;
            let shard = Box::new(Shard::new(rt, index, registry, inbox, port, shared.clone()));
            shards.push((index, shard, poll, rung));
        }
        if shared.ports.set(ports).is_err() {
            unreachable!("made a moment ago");
        }
        let handle = PipesHandle { rt: rt.clone(), shared, next: Arc::new(AtomicU64::new(1)) };
        let mut pipes = Pipes { handle, threads: Vec::new() };
        for (index, shard, poll, rung) in shards {
            // On an error the ones that run already are stopped and joined by the drop.
            pipes.threads.push(rt.spawn(format!("pipes-{index}"), move || shard::run(shard, poll, &rung))?);
        }
        Ok(pipes)
    }

    /// A way to it, to give away.
    pub fn handle(&self) -> PipesHandle {
        self.handle.clone()
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        for port in self.handle.shared.ports() {
            // Waits for a place; the thread drains its inbox each round.
            port.send(Order::Stop);
        }
        self.threads.clear();
    }
}

impl PipesHandle {
    /// A connection that wants to bear a pipe. It is closed if there is no room for it.
    pub fn carrier(&self, carrier: Carrier, peer: CarrierPeer) {
        let ports = self.shared.ports();
        let port = &ports[self.next.fetch_add(1, Ordering::Relaxed) as usize % ports.len()];
        // Full: it is closed by being dropped; whoever dialled comes again.
        if port.try_send(Order::Carrier(Box::new(carrier), peer)).is_err() {
            self.shared.figures.refused(Ending::Limit);
        }
    }

    /// Opens a pipe whose local side is a connected socket. It dials by itself, from now on.
    ///
    /// # Errors
    /// When too much is asked at once.
    pub fn open_socket(&self, plan: Plan, socket: Socket) -> crate::Result<OpenPipe> {
        self.open(plan, |_, _| LocalKind::Socket(socket)).map(|(pipe, _)| pipe)
    }

    /// Opens a pipe whose local side is a handle.
    pub(crate) fn open_duct(&self, plan: Plan) -> crate::Result<(OpenPipe, Arc<Duct>)> {
        let rt = self.rt.clone();
        let (pipe, duct) =
            self.open(plan, |port, serial| LocalKind::Duct(Arc::new(port.duct(&rt, serial))))?;
        Ok((pipe, duct.expect("made by the closure above")))
    }

    fn open(
        &self,
        plan: Plan,
        local: impl FnOnce(&Arc<Port>, u64) -> LocalKind,
    ) -> crate::Result<(OpenPipe, Option<Arc<Duct>>)> {
        let ports = self.shared.ports();
        let serial = self.next.fetch_add(1, Ordering::Relaxed);
        let port = &ports[serial as usize % ports.len()];
        let local = local(port, serial);
        let duct = match &local {
            LocalKind::Duct(duct) => Some(duct.clone()),
            LocalKind::Socket(_) => None,
        };
        let settings = pipe::Settings {
            window: plan.window,
            liveness: plan.liveness,
            ..pipe::Settings::new(Side::Client)
        };
        let now = self.rt.now();
        let client = ClientSide {
            dialer: plan.dialer,
            target: plan.target,
            known: None,
            backoff: Backoff::new(REDIAL),
            patience: plan.patience,
            grace: plan.grace,
            carrier_age: plan.carrier_age,
            events: plan.events,
            attempts: Attempts::new(),
            cancel: None,
            redial_at: Some(now),
            replace_at: None,
            lost_at: now,
            last_error: None,
        };
        let opening = Box::new(Opening { settings, local, client, serial });
        if port.try_send(Order::Open(opening)).is_err() {
            return Err(crate::Error::new(crate::Code::Full, "too many pipes are being opened: try again"));
        }
        Ok((OpenPipe { port: port.clone(), serial }, duct))
    }

    /// Every pipe of this server. `done` is called on one of the pipes' threads, and must not wait.
    pub fn list(&self, done: impl FnOnce(Vec<PipeInfo>) + Send + 'static) {
        let ports = self.shared.ports();
        let inner = Gathered { left: ports.len(), infos: Vec::new(), done: Some(Box::new(done)) };
        let gather = Arc::new(Gather { inner: Lock::new(inner) });
        for port in ports {
            if port.try_send(Order::List(gather.clone())).is_err() {
                // A thread that busy is left out rather than waited for.
                gather.add(Vec::new());
            }
        }
    }

    /// Ends a pipe. `done` hears whether there was one; it must not wait.
    pub fn kill(&self, id: PipeId, end: End, done: impl FnOnce(bool) + Send + 'static) {
        self.ask(id, Order::Kill { id, end, answer: Box::new(done) });
    }

    /// Cuts the carrier of a pipe, to see it recover.
    pub fn cut(&self, id: PipeId, done: impl FnOnce(bool) + Send + 'static) {
        self.ask(id, Order::Cut { id, answer: Box::new(done) });
    }

    fn ask(&self, id: PipeId, order: Order) {
        // Full: said as if there were none, which a caller has to be ready for anyway.
        let sent = self.shared.port_of(id).try_send(order);
        if let Err(Order::Kill { answer, .. } | Order::Cut { answer, .. }) = sent {
            answer(false);
        }
    }

    /// Every client's pipe of this process dials now, whatever its timers say: the network changed.
    pub fn redial(&self) {
        for port in self.shared.ports() {
            port.send(Order::Redial);
        }
    }

    /// The process will go within `deadline`: every peer is told, so that those who can come another way do
    /// so in time. New pipes are refused from now on, to be asked for elsewhere; resumes are not.
    pub fn drain(&self, deadline: Duration) {
        for port in self.shared.ports() {
            port.send(Order::Drain { deadline });
        }
    }

    /// Replaces the allow-list. Pipes that are not on it any more end at their next resume.
    pub fn set_allow(&self, allow: Allow) {
        *self.shared.allow.lock() = allow;
    }

    /// Describes the figures of pipes.
    pub fn describe(&self, metrics: &mut Metrics) {
        figures::describe(&self.shared, metrics);
    }
}

/// A client's pipe, seen from outside of its thread.
#[derive(Clone)]
pub struct OpenPipe {
    pub(crate) port: Arc<Port>,
    pub(crate) serial: u64,
}

impl OpenPipe {
    /// Lets go of the carrier; the pipe dials another one.
    pub fn reconnect_now(&self) {
        self.port.send(Order::CutSerial { serial: self.serial });
    }

    /// Ends it for both sides, whatever waits.
    pub(crate) fn close(&self) {
        self.port.send(Order::Close { serial: self.serial });
    }
}

impl fmt::Debug for Pipes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipes({} threads)", self.threads.len())
    }
}
