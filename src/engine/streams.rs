//! Live streams: durable messages, a status, a queue, and the parts of what is being produced.
//!
//! [`Streams`] is the way in: it creates, appends, queues, claims and follows. Followers get a snapshot and
//! then events as they happen, each with a [`Token`](crate::codec::token::Token) to come back with ([`Follow`]). Whoever claims a stream
//! gets a [`TurnHandle`] to feed parts through.
//!
//! Behind it stand the rooms of the merge loop (one for each shard of the streams), pools of threads that
//! read and write ([`super::reader`]), and a keeper that renews leases and sweeps dead ones.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::bus::{Bus, BusEvent, Delivery, Notice, Topic};
use crate::error::{Code, Error};
use crate::metrics::Counter;
use crate::rt::{self, Rt};
use crate::state::stream::{LeaseHash, OnLost};
use crate::state::turn::{PartRefused, TURN_BYTES_MAX};
use crate::store::streams::{
    Address, Append, CatchUp, Claim, Claimed, Created, Deleted, Draft, Expiry, Fence, Found, Kind,
    ListStreams, NewStream, Page, QueuedRow, StreamRow, Sweep,
};
use crate::store::{Labels, StoreError, Stores};
use crate::wire::{Closing, Doors, LinkHandle, Outlet};

use super::reader::{Hand, Pool};
use super::visits::{Caller, Visit, Visits};
use super::worker::{Bounds, Crew, Inbox, Refused, Worker};

mod carried;
mod courier;
pub mod durable;
mod errand;
pub mod event;
mod figures;
mod follow;
mod follower;
mod keeper;
mod room;
mod rows;
mod slow;
mod turn;
mod view;
mod writes;

pub use carried::CarriedHere;
pub use courier::ERRANDS_PATH;
pub use event::{Ended, Event, Hello, Reset, What};
pub use figures::RelayFigures;
pub use follow::{Follow, FollowOptions};
pub(crate) use follower::Listener;
pub use follower::{Ends, FollowerId, Format, QUEUE_BYTES_MAX, QUEUE_WAIT_MAX, Since};
pub(crate) use room::Newcomer;
pub use room::{
    Accepted, Alive, Living, Polled, RELAY_MESSAGE_MAX, RELAY_PATH, RELAY_TICKET, RelayWays, Then, TurnRead,
};
pub use turn::TurnHandle;
pub use writes::Written;

use courier::Courier;
use errand::Errand;
use follower::Tap;
use keeper::Keeper;
use room::{Begin, CancelOf, Commit, Ending, Keepalive, Message, Parts, ReadTurn, StreamsRoom, Surroundings};
use writes::{Attended, Desk, Shards};

/// What bounds streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message: 1 MiB.
    pub message_bytes_max: usize,
    /// Bytes of one turn's parts that no message has folded: 1 MiB.
    pub turn_bytes_max: usize,
    /// Bytes of all parts of one shard: 256 MiB.
    pub turns_bytes_max: usize,
    /// Bytes that may wait for one follower: 1 MiB.
    pub queue_bytes_max: usize,
    /// Inputs that may wait in one stream's queue: 1,000.
    pub inputs_max: usize,
    /// Followers of one stream on this replica: 100,000.
    pub followers_max: usize,
    /// How long a lease is good unless it is renewed: 30 s.
    pub lease: Duration,
    /// How often leases are renewed and dead ones swept: 10 s.
    pub renew_every: Duration,
    /// How long a producer may be silent: 60 s.
    pub producer_silence_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            message_bytes_max: crate::state::stream::MESSAGE_BYTES_MAX,
            turn_bytes_max: TURN_BYTES_MAX,
            turns_bytes_max: 256 << 20,
            queue_bytes_max: QUEUE_BYTES_MAX,
            inputs_max: 1_000,
            followers_max: 100_000,
            lease: Duration::from_secs(30),
            renew_every: Duration::from_secs(10),
            producer_silence_max: Duration::from_secs(60),
        }
    }
}

/// Why something could not be done with a stream.
///
/// ```
/// use towpath::{Engine, StreamError};
///
/// let engine = Engine::builder().start()?;
/// let refused = engine.streams().append("nowhere", None, &1).unwrap_err();
/// assert_eq!((refused.code(), &refused), ("not_found", &StreamError::Missing));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamError {
    /// There is no such stream.
    Missing,
    /// It was deleted, and is kept for its forks.
    Gone,
    /// It exists, and is not what was asked for.
    Exists,
    /// It is closed.
    Closed,
    /// There is no such message, or it was removed.
    NoMessage {
        /// Its id.
        id: u64,
    },
    /// There is no such waiting input; a worker may have it.
    NoInput {
        /// Its id.
        id: u64,
    },
    /// The turn never was, or its parts are no longer kept.
    NoTurn {
        /// Its number.
        turn: u32,
    },
    /// A turn runs already.
    TurnRunning {
        /// Who runs it.
        worker: Uuid,
        /// Its number.
        turn: u32,
    },
    /// The turn is no longer the caller's.
    TurnLost {
        /// Its number.
        turn: u32,
    },
    /// The turn does not run on this replica.
    NotHere,
    /// A part was refused; those before it were taken.
    Part {
        /// Why.
        why: PartRefused,
        /// How many were taken now.
        accepted: u32,
        /// The turn's last part.
        last: u32,
    },
    /// As many inputs wait as may.
    QueueFull {
        /// How many may.
        most: usize,
    },
    /// It is too long.
    TooLarge {
        /// How many bytes it has.
        bytes: usize,
        /// How many it may have.
        max: usize,
    },
    /// What was sent is of another type than the stream.
    OtherType {
        /// What the stream is.
        is: String,
    },
    /// The name is not one a stream may have.
    BadName(&'static str),
    /// What was sent is not JSON.
    BadJson(String),
    /// It contradicts what was before.
    Conflict(&'static str),
    /// The replica that runs the turn cannot be reached; whether it did what was asked is not known.
    Unreachable,
    /// The store could not be asked.
    Store(StoreError),
    /// There is more to do than can be done.
    Full,
    /// The engine has stopped.
    Stopped,
}

impl StreamError {
    /// What programs branch on; doors show it.
    pub fn code(&self) -> &'static str {
        match self {
            StreamError::Missing => "not_found",
            StreamError::Gone => "gone",
            StreamError::Exists => "stream_exists",
            StreamError::Closed => "stream_closed",
            StreamError::NoMessage { .. } => "no_message",
            StreamError::NoInput { .. } => "no_input",
            StreamError::NoTurn { .. } => "no_turn",
            StreamError::TurnRunning { .. } => "turn_running",
            StreamError::TurnLost { .. } | StreamError::NotHere => "turn_lost",
            StreamError::Part { why: PartRefused::Gap { .. }, .. } => "part_gap",
            StreamError::Part { why: PartRefused::Full { .. }, .. } => "turn_full",
            StreamError::Part { why: PartRefused::Closed, .. } => "turn_lost",
            StreamError::QueueFull { .. } => "queue_full",
            StreamError::TooLarge { .. } => "too_large",
            StreamError::OtherType { .. } => "other_type",
            StreamError::BadName(_) => "reserved_name",
            StreamError::BadJson(_) => "bad_json",
            StreamError::Conflict(_) => "conflict",
            StreamError::Unreachable => "worker_unreachable",
            StreamError::Store(error) if error.code == "full" => "full",
            StreamError::Store(_) => "store_unavailable",
            StreamError::Full => "full",
            StreamError::Stopped => "stopped",
        }
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamError::Missing => f.write_str("there is no such stream; create it first"),
            StreamError::Gone => f.write_str("the stream was deleted"),
            StreamError::Exists => {
                f.write_str("a stream of this name exists, and differs from what was asked for")
            }
            StreamError::Closed => f.write_str("the stream is closed; nothing can be added to it"),
            StreamError::NoMessage { id } => write!(f, "the stream has no message {id}"),
            StreamError::NoInput { id } => write!(f, "no input {id} waits; a worker may have taken it"),
            StreamError::NoTurn { turn } => write!(f, "the parts of turn {turn} are not kept here"),
            StreamError::TurnRunning { worker, turn } => {
                write!(f, "turn {turn} runs on replica {worker}; wait for it or interrupt it")
            }
            StreamError::TurnLost { turn } => {
                write!(
                    f,
                    "turn {turn} is not yours any more: it ended, or another worker took over; claim again"
                )
            }
            StreamError::NotHere => f.write_str("the turn does not run, or not under this lease"),
            StreamError::Part { why, .. } => why.fmt(f),
            StreamError::QueueFull { most } => {
                write!(f, "{most} inputs wait already; let a worker take some")
            }
            StreamError::TooLarge { bytes, max } => write!(f, "{bytes} bytes are over the limit of {max}"),
            StreamError::OtherType { is } => write!(f, "the stream's content type is {is}"),
            StreamError::BadName(why) => write!(f, "not a name for a stream: {why}"),
            StreamError::BadJson(why) => write!(f, "not JSON: {why}"),
            StreamError::Conflict(what) => f.write_str(what),
            StreamError::Unreachable => f.write_str(
                "the replica that runs the turn cannot be reached: try again, with the same part number or \
                 Idempotency-Key, since it may have been done",
            ),
            StreamError::Store(error) => write!(f, "the store: {error}"),
            StreamError::Full => f.write_str("too much to do at the moment; try again"),
            StreamError::Stopped => f.write_str("the engine has stopped"),
        }
    }
}

impl std::error::Error for StreamError {}

impl From<StreamError> for Error {
    fn from(error: StreamError) -> Error {
        let code = match &error {
            StreamError::Missing
            | StreamError::Gone
            | StreamError::NoMessage { .. }
            | StreamError::NoInput { .. }
            | StreamError::NoTurn { .. } => Code::NotFound,
            StreamError::Exists => Code::Exists,
            StreamError::Closed
            | StreamError::TurnRunning { .. }
            | StreamError::TurnLost { .. }
            | StreamError::NotHere
            | StreamError::Part { why: PartRefused::Closed | PartRefused::Gap { .. }, .. }
            | StreamError::Conflict(_) => Code::Conflict,
            StreamError::Part { why: PartRefused::Full { .. }, .. }
            | StreamError::QueueFull { .. }
            | StreamError::Full => Code::Full,
            StreamError::TooLarge { .. }
            | StreamError::OtherType { .. }
            | StreamError::BadName(_)
            | StreamError::BadJson(_) => Code::BadRequest,
            StreamError::Store(store) => return Error::from(store.clone()).while_("streams"),
            StreamError::Unreachable => Code::TimedOut,
            StreamError::Stopped => Code::Stopped,
        };
        Error::new(code, error.to_string())
    }
}

/// What a stream is made with.
///
/// ```
/// use towpath::{CreateStream, Engine};
///
/// let engine = Engine::builder().start()?;
/// let labels = [("team".to_owned(), "red".to_owned())].into();
/// let row = engine.streams().create("jobs/1", CreateStream { labels: Some(labels), ..CreateStream::default() })?;
/// assert_eq!(row.name, "jobs/1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateStream {
    /// What its messages are; JSON if nothing is said.
    pub content_type: Option<String>,
    /// What it is found by.
    pub labels: Option<Labels>,
    /// When it ends by itself.
    pub expiry: Option<Expiry>,
    /// What becomes of it when its worker is lost.
    pub on_lost: Option<OnLost>,
}

/// What a claim brought.
#[derive(Clone)]
pub struct ClaimedTurn {
    /// The stream.
    pub stream: Uuid,
    /// Its name.
    pub name: String,
    /// The turn.
    pub turn: u32,
    /// The secret that proves the claim.
    pub lease: [u8; 32],
    /// The input that was waiting.
    pub input: Option<QueuedRow>,
    /// Cancelled when the turn is asked to stop, or is lost.
    pub cancel: rt::Cancel,
}

impl fmt::Debug for ClaimedTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimedTurn({} turn {}, lease [redacted])", self.name, self.turn)
    }
}

/// How streams are put together.
pub struct StreamsConfig {
    /// This replica.
    pub replica: Uuid,
    /// Rows.
    pub stores: Arc<dyn Stores>,
    /// Notices.
    pub bus: Arc<dyn Bus>,
    /// The I/O threads, where a door is open.
    pub doors: Option<Doors>,
    /// The way to other replicas, where there are any.
    pub relay: Option<RelayWays>,
    /// Where followers and relays are recorded.
    pub visits: Visits,
    /// What bounds it.
    pub limits: Limits,
    /// How many rooms share the streams.
    pub shards: usize,
    /// How many threads read.
    pub readers: usize,
    /// How many threads write.
    pub writers: usize,
    /// Counts followers that were one too many for their stream.
    pub followers_refused: Counter,
}

impl StreamsConfig {
    /// One replica without doors, with the default limits.
    pub fn new(replica: Uuid, stores: Arc<dyn Stores>, bus: Arc<dyn Bus>) -> StreamsConfig {
        StreamsConfig {
            replica,
            stores,
            bus,
            doors: None,
            relay: None,
            visits: Visits::default(),
            limits: Limits::default(),
            shards: 1,
            readers: 1,
            writers: 1,
            followers_refused: Counter::default(),
        }
    }
}

/// The threads behind [`Streams`]. Dropping it ends the follows, hands back what runs here, writes what was
/// handed in and joins the threads.
pub struct StreamsEngine {
    // Dropped in this order: rooms first, then who renews their leases (it hands back what still runs), then
    // those who read and write for both.
    rooms: Vec<Worker>,
    /// Where there are other replicas.
    courier: Option<Worker>,
    keeper: Option<Worker>,
    pools: Vec<Worker>,
    streams: Streams,
}

impl Drop for StreamsEngine {
    fn drop(&mut self) {
        self.streams.shared.stopped.store(true, Ordering::Release);
        self.rooms.clear();
        self.courier = None;
        self.keeper = None;
        self.pools.clear();
    }
}

impl fmt::Debug for StreamsEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamsEngine")
    }
}

/// The way to the streams. Cheap to clone.
///
/// ```
/// use towpath::{CreateStream, Engine};
///
/// let engine = Engine::builder().start()?;
/// let streams = engine.streams().clone();
/// streams.create("chat/1", CreateStream::default())?;
/// let first = streams.append("chat/1", Some("user"), &"hello")?;
/// streams.edit("chat/1", first.id, &"Hello!")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Streams {
    shared: Arc<Shared>,
}

struct Shared {
    rt: Rt,
    replica: Uuid,
    limits: Limits,
    readers: Pool,
    rows: rows::Rows,
    desk: Desk,
    shards: Shards,
    /// What happens on links of followers, room by room.
    outlets: Vec<Outlet>,
    numbers: Arc<AtomicU64>,
    cursors: Arc<durable::Cursors>,
    stopped: AtomicBool,
    names: Arc<Names>,
    visits: Visits,
    /// What callers are told apart by.
    hasher: rt::Hasher,
}

/// Somebody who follows over a link: who it is, and its place in the connection log.
#[derive(Debug)]
pub struct Guest {
    visit: Visit,
    who: Option<slow::Who>,
}

/// Where streams were found, by name: ten thousand followers of one stream look it up once.
///
/// A deleted one is taken out. Whoever follows one that was deleted without this replica hearing of it is
/// told `closed`, and that takes it out as well.
struct Names(rt::Lock<HashMap<String, Uuid, rt::Hasher>>);

/// How many names are remembered; when there are more, all are forgotten.
const NAMES_MAX: usize = 10_000;

impl Names {
    fn get(&self, name: &str) -> Option<Uuid> {
        self.0.lock().get(name).copied()
    }

    fn put(&self, name: String, id: Uuid) {
        let mut names = self.0.lock();
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(name, id);
    }

    /// Forgets a stream that is gone. Rare, so that it may look through all of them.
    fn forget(&self, id: Uuid) {
        self.0.lock().retain(|_, known| *known != id);
    }
}
/// How many messages wait for one room.
const ROOM_INBOX: usize = 16 * 1024;
/// How long a caller waits for an answer. Stores have timeouts of their own, which are shorter.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

impl StreamsEngine {
    /// Starts the threads.
    ///
    /// # Errors
    /// When there is no thread to have.
    pub fn start(crew: &Crew, config: StreamsConfig) -> crate::Result<StreamsEngine> {
        let rt = crew.rt();
        let StreamsConfig {
            replica,
            stores,
            bus,
            doors,
            relay,
            visits,
            limits,
            shards,
            readers,
            writers,
            followers_refused,
        } = config;
        let numbers = Arc::new(AtomicU64::new(1));
        let cursors = Arc::new(durable::Cursors::default());
        let (mut pools, readers) =
            Pool::start(crew, "reader", Hand::Reads, readers, &stores, doors.as_ref())?;
        let (writing, writers) = Pool::start(crew, "writer", Hand::Writes, writers, &stores, doors.as_ref())?;
        pools.extend(writing);

        let attended = Arc::new(Attended::default());
        let names = Arc::new(Names(rt::Lock::new(HashMap::with_hasher(rt.hasher()))));
        let desk = |shards| Desk::new(rt.clone(), writers.clone(), bus.clone(), shards);
        let (courier, carries) = match relay.clone() {
            None => (None, None),
            Some(ways) => {
                let bounds = Bounds::of(ROOM_INBOX);
                let (worker, inbox) = Worker::spawn(crew, "courier", bounds, |inbox| {
                    Courier::new(rt, replica, readers.clone(), ways, numbers.clone(), inbox.clone())
                })?;
                (Some(worker), Some(inbox))
            }
        };
        let mut rooms = Vec::new();
        let mut inboxes = Vec::new();
        let mut flags = Vec::new();
        for n in 0..shards.max(1) {
            let hints_lost = Arc::new(AtomicBool::new(false));
            flags.push(hints_lost.clone());
            let bounds = Bounds::of(ROOM_INBOX);
            let (worker, inbox) = Worker::spawn_open(crew, format!("streams-{n}"), bounds, |inbox| {
                let around = Surroundings {
                    rt: rt.clone(),
                    replica,
                    readers: readers.clone(),
                    // What a room writes is of its own streams.
                    desk: desk(Shards { rooms: [inbox.clone()].into(), attended: attended.clone() }),
                    doors: doors.clone(),
                    limits,
                    followers_refused: followers_refused.clone(),
                    alone: !stores.is_shared(),
                    hints_lost,
                    names: names.clone(),
                    numbers: numbers.clone(),
                    cursors: cursors.clone(),
                    relay: relay.clone(),
                    courier: carries.clone(),
                    visits: visits.clone(),
                };
                StreamsRoom::new(around, inbox.clone())
            })?;
            rooms.push(worker);
            inboxes.push(inbox);
        }
        let shards = Shards { rooms: inboxes.into(), attended };
        let desk = desk(shards.clone());
        subscribe(&*bus, &shards, flags, names.clone());

        if !stores.is_shared() {
            // Nobody else can be running anything on a store that only this process may use.
            hand_back(&*stores, &desk, Sweep::All)?;
        }
        let (keeper, _) = Worker::spawn(crew, "streams-keeper", Bounds::of(16), |inbox| {
            Keeper::new(desk.clone(), inbox.clone(), replica, limits)
        })?;
        let outlets = shards.rooms.iter().map(outlet_of).collect();
        let shared = Shared {
            rt: rt.clone(),
            replica,
            limits,
            readers,
            rows: rows::Rows::new(rt.hasher()),
            desk,
            shards,
            outlets,
            numbers,
            cursors,
            stopped: AtomicBool::new(false),
            names,
            visits,
            hasher: rt.hasher(),
        };
        let streams = Streams { shared: Arc::new(shared) };
        Ok(StreamsEngine { rooms, courier, keeper: Some(keeper), pools, streams })
    }

    /// The way to the streams.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }
}

/// Hints go to the room of their stream. One that does not fit, or a marker that some were lost, makes the
/// rooms poll.
fn subscribe(bus: &dyn Bus, shards: &Shards, flags: Vec<Arc<AtomicBool>>, names: Arc<Names>) {
    let shards = shards.clone();
    let sink = move |event| {
        let mut gone = false;
        let lose = |n: usize| flags[n].store(true, Ordering::Release);
        match event {
            BusEvent::Notice(Notice::Stream(notice)) => {
                if notice.deleted {
                    names.forget(notice.stream);
                }
                if let Some(at) = shards.interested(notice.stream) {
                    match shards.rooms[at].try_data(Message::Notice(notice)) {
                        Ok(()) => {}
                        Err(Refused::Full(_)) => lose(at),
                        Err(Refused::Ended(_)) => gone = true,
                    }
                }
            }
            BusEvent::Notice(_) => {}
            BusEvent::Dropped if crate::planted!("no new read after a drop marker") => {}
            BusEvent::Dropped => (0..shards.rooms.len()).for_each(|at| {
                lose(at);
                // Full: it will be awake in a moment by itself.
                gone |= matches!(shards.rooms[at].try_data(Message::Wake), Err(Refused::Ended(_)));
            }),
        }
        if gone { Delivery::Gone } else { Delivery::Taken }
    };
    bus.subscribe(Topic::Stream, Box::new(sink));
}

/// Where links tell a room what happens to them.
fn outlet_of(room: &Inbox<Message>) -> Outlet {
    let inbox = room.clone();
    Outlet::new(move |batch| match inbox.try_data(Message::Links(batch)) {
        Ok(()) => Ok(()),
        Err(Refused::Full(Message::Links(batch))) => Err(batch),
        // Ended: nobody is left to hear.
        Err(_) => Ok(()),
    })
}

/// Ends leases until there is none left to end.
fn hand_back(stores: &dyn Stores, desk: &Desk, which: Sweep) -> crate::Result<()> {
    let mut store = stores.streams()?;
    loop {
        let changes = store.sweep(which, keeper::SWEEP_MAX)?;
        for change in &changes {
            desk.announce(change, None);
        }
        if changes.len() < keeper::SWEEP_MAX {
            return Ok(());
        }
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Streams({})", self.shared.replica)
    }
}

/// A stream by its name, or by its UUID.
pub fn address(name: &str) -> Address {
    match Uuid::try_parse(name) {
        Ok(id) => Address::Id(id),
        Err(_) => Address::Name(name.to_owned()),
    }
}

/// Says why a name is not one a stream may have.
///
/// # Errors
/// A fragment that says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    const RESERVED: [&str; 8] =
        ["events", "state", "messages", "turns", "queue", "interrupt", "live", "snapshot"];
    if name.is_empty() || name.len() > 200 {
        return Err("it must have 1 to 200 characters");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~-/".contains(&byte)) {
        return Err("it may hold letters, digits and . _ ~ - / only");
    }
    if Uuid::try_parse(name).is_ok() {
        return Err("it is shaped like a UUID");
    }
    for segment in name.split('/') {
        match segment {
            "" => return Err("it has an empty segment"),
            "." | ".." => return Err("it has a segment . or .."),
            segment if RESERVED.contains(&segment) => {
                return Err("it has a segment that is a word of the API");
            }
            _ => {}
        }
    }
    Ok(())
}

impl Streams {
    /// The runtime it runs on.
    pub(crate) fn rt(&self) -> &Rt {
        &self.shared.rt
    }

    /// This replica.
    pub fn replica(&self) -> Uuid {
        self.shared.replica
    }

    /// What bounds it.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Waits for an answer. Woken by it, by its sender being dropped, by the deadline.
    fn wait<T: Send + 'static>(&self, start: impl FnOnce(Then<T>)) -> Result<T, StreamError> {
        if self.shared.stopped.load(Ordering::Acquire) {
            return Err(StreamError::Stopped);
        }
        let (tx, rx) = self.shared.rt.channel("answer", 1);
        // A caller that has stopped waiting wants no answer.
        start(Box::new(move |answer| drop(tx.try_send(answer))));
        match rx.recv_deadline(self.shared.rt.now() + ANSWER_WAIT) {
            Ok(answer) => answer,
            Err(rt::RecvTimeoutError::Disconnected) => Err(StreamError::Stopped),
            Err(rt::RecvTimeoutError::Timeout) => Err(StreamError::Full),
        }
    }

    /// Hands a message to a stream's room, or tells `then` why not.
    fn to_room(&self, stream: Uuid, message: Message) -> Result<(), StreamError> {
        self.shared.shards.of(stream).try_data(message).map_err(|refused| match refused {
            Refused::Full(_) => StreamError::Full,
            Refused::Ended(_) => StreamError::Stopped,
        })
    }

    // Streams as a whole.

    /// Makes a stream; true if it was not there before.
    pub fn create_then(&self, name: &str, create: CreateStream, then: Then<(StreamRow, bool)>) {
        if let Err(why) = check_name(name) {
            return then(Err(StreamError::BadName(why)));
        }
        let new = NewStream {
            content_type: Some(create.content_type.unwrap_or_else(|| "application/json".into())),
            labels: create.labels,
            expiry: create.expiry,
            on_lost: create.on_lost,
            ..NewStream::named(self.shared.rt.uuid_v7(), name)
        };
        let key = writes::key_of(&Address::Name(name.to_owned()));
        let read = |_: &Desk, answer| match answer {
            Created::New(row) => Ok((row, true)),
            Created::Same(row) => Ok((row, false)),
            Created::Differs(_) | Created::Kept | Created::OtherType(_) => Err(StreamError::Exists),
            // Nothing was to be forked.
            Created::NoSource | Created::SourceGone | Created::BadForkOffset | Created::ForkTrimmed => {
                Err(StreamError::Conflict("the stream to fork is not what it was said to be"))
            }
        };
        self.shared.desk.ask(key, move |store| store.create(&new), read, then);
    }

    /// Makes a stream, or finds it as it was asked for.
    pub fn create(&self, name: &str, create: CreateStream) -> Result<StreamRow, StreamError> {
        self.wait(|then| self.create_then(name, create, then)).map(|(row, _)| row)
    }

    /// Deletes a stream: its followers hear `closed`.
    pub fn delete_then(&self, at: Address, then: Then<()>) {
        let names = self.shared.names.clone();
        let read = move |desk: &Desk, answer| match answer {
            Deleted::Gone(stream) | Deleted::Kept(stream) => {
                names.forget(stream);
                desk.announce_deleted(stream, Ended::Deleted);
                Ok(())
            }
            Deleted::Missing => Err(StreamError::Missing),
            Deleted::Already => Err(StreamError::Gone),
        };
        self.shared.desk.ask(writes::key_of(&at), move |store| store.delete(&at), read, then);
    }

    /// Deletes a stream: its followers hear `closed`.
    pub fn delete(&self, name: &str) -> Result<(), StreamError> {
        self.wait(|then| self.delete_then(address(name), then))
    }

    /// A page of streams, oldest first.
    pub fn list_then(&self, list: ListStreams, then: Then<Vec<StreamRow>>) {
        let key = self.shared.numbers.load(Ordering::Relaxed);
        self.shared.readers.ask(
            key,
            move |store| store.list(&list),
            move |answer| then(answer.map_err(StreamError::Store)),
        );
    }

    /// A page of streams, oldest first.
    pub fn list(&self, list: ListStreams) -> Result<Vec<StreamRow>, StreamError> {
        self.wait(|then| self.list_then(list, then))
    }

    /// A stream as it stands, with what waits in its queue and no history.
    pub fn state_then(&self, at: Address, then: Then<Page>) {
        let read = CatchUp { after: i64::MAX as u64, upto: None, bytes_max: 1 };
        self.shared.readers.ask(
            writes::key_of(&at),
            move |store| store.catch_up(&at, read),
            move |answer| then(found(answer)),
        );
    }

    /// A stream as it stands, with what waits in its queue.
    pub fn state(&self, name: &str) -> Result<Page, StreamError> {
        self.wait(|then| self.state_then(address(name), then))
    }

    // Messages and inputs.

    fn check_size(&self, draft: &Draft) -> Result<(), StreamError> {
        let (bytes, max) = (draft.content.len(), self.shared.limits.message_bytes_max);
        if bytes > max { Err(StreamError::TooLarge { bytes, max }) } else { Ok(()) }
    }

    /// Appends a message. With a key, the same again is not written twice.
    pub fn append_then(&self, at: Address, draft: Draft, key: Option<String>, then: Then<Written>) {
        if let Err(error) = self.check_size(&draft) {
            return then(Err(error));
        }
        self.shared.desk.append(at, Append { messages: vec![draft], key, ..Append::default() }, then);
    }

    /// Appends a message: any JSON, under a role if it has one. Tries again while the store is away, without
    /// ever writing it twice.
    pub fn append(
        &self,
        name: &str,
        role: Option<&str>,
        content: &impl serde::Serialize,
    ) -> Result<Written, StreamError> {
        let draft = draft(role, content)?;
        let key = self.shared.rt.uuid_v4().to_string();
        self.patiently(|| {
            self.wait(|then| self.append_then(address(name), draft.clone(), Some(key.clone()), then))
        })
    }

    /// Replaces a message: followers hear `reset{history}` and everything again.
    pub fn edit_then(&self, at: Address, message: u64, draft: Draft, then: Then<Written>) {
        if let Err(error) = self.check_size(&draft) {
            return then(Err(error));
        }
        self.shared.desk.rewrite(at, message, Some(draft), then);
    }

    /// Replaces a message: followers hear `reset{history}` and everything again.
    pub fn edit(
        &self,
        name: &str,
        message: u64,
        content: &impl serde::Serialize,
    ) -> Result<Written, StreamError> {
        let draft = draft(None, content)?;
        self.wait(|then| self.edit_then(address(name), message, draft, then))
    }

    /// Removes a message: followers hear `reset{history}` and everything again.
    pub fn remove_then(&self, at: Address, message: u64, then: Then<Written>) {
        self.shared.desk.rewrite(at, message, None, then);
    }

    /// Removes a message: followers hear `reset{history}` and everything again.
    pub fn remove(&self, name: &str, message: u64) -> Result<(), StreamError> {
        self.wait(|then| self.remove_then(address(name), message, then)).map(drop)
    }

    /// Queues an input; a stream that does not run waits for a worker then.
    pub fn queue_then(&self, at: Address, draft: Draft, key: Option<String>, then: Then<u64>) {
        if let Err(error) = self.check_size(&draft) {
            return then(Err(error));
        }
        self.shared.desk.push(at, draft, key, self.shared.limits.inputs_max, then);
    }

    /// Queues an input; a stream that does not run waits for a worker then.
    pub fn queue(
        &self,
        name: &str,
        role: Option<&str>,
        content: &impl serde::Serialize,
    ) -> Result<u64, StreamError> {
        let draft = draft(role, content)?;
        let key = self.shared.rt.uuid_v4().to_string();
        self.patiently(|| {
            self.wait(|then| self.queue_then(address(name), draft.clone(), Some(key.clone()), then))
        })
    }

    /// Takes an input back before a worker has it.
    pub fn unqueue_then(&self, at: Address, input: u64, then: Then<()>) {
        self.shared.desk.withdraw(at, input, then);
    }

    /// Takes an input back before a worker has it.
    pub fn unqueue(&self, name: &str, input: u64) -> Result<(), StreamError> {
        self.wait(|then| self.unqueue_then(address(name), input, then))
    }

    /// Asks the worker, wherever it runs, to stop; asking again changes nothing.
    pub fn interrupt_then(&self, at: Address, then: Then<()>) {
        self.shared.desk.interrupt(at, then);
    }

    /// Asks the worker, wherever it runs, to stop; asking again changes nothing.
    pub fn interrupt(&self, name: &str) -> Result<(), StreamError> {
        self.wait(|then| self.interrupt_then(address(name), then))
    }

    /// Tries again while the store cannot be reached, for as long as a caller waits for an answer.
    fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, StreamError>) -> Result<T, StreamError> {
        let rt = &self.shared.rt;
        let deadline = rt.now() + ANSWER_WAIT;
        let mut wait = Duration::from_millis(20);
        loop {
            match attempt() {
                Err(StreamError::Store(error))
                    if error.class == crate::store::Class::Retry && rt.now() + wait < deadline =>
                {
                    rt.sleep(wait);
                    wait = (wait * 2).min(Duration::from_secs(1));
                }
                answer => return answer,
            }
        }
    }

    // Turns.

    /// Claims a stream, or whichever has waited longest of those with these labels.
    pub fn claim_then(&self, what: Wanted, key: Option<String>, then: Then<Option<ClaimedTurn>>) {
        let claim = Claim {
            worker: self.shared.replica,
            lease_for: self.shared.limits.lease,
            lease: self.shared.rt.secret(),
            key,
        };
        let key = match &what {
            Wanted::Stream(at) => writes::key_of(at),
            Wanted::Next(_) => 0,
        };
        let run = move |store: &mut dyn crate::store::StreamStore| match &what {
            Wanted::Stream(at) => store.claim(at, &claim).map(|answer| (answer, false)),
            Wanted::Next(labels) => store.claim_next(labels, &claim).map(|answer| (answer, true)),
        };
        let read = |desk: &Desk, (answer, next): (Claimed, bool)| match answer {
            Claimed::Turn(claimed) => {
                let cancel = desk.rt.cancel_token();
                let lease = LeaseHash::of(&claimed.lease);
                let stream = claimed.change.stream;
                let begin = Begin {
                    change: claimed.change.clone(),
                    turn: claimed.turn,
                    lease,
                    cancel: cancel.clone(),
                };
                // Before anybody else can hear of it: parts and questions of other replicas find the turn.
                desk.shards.of(stream).try_data(Message::Begin(Box::new(begin))).map_err(|refused| {
                    match refused {
                        // The lease runs out by itself.
                        Refused::Full(_) => StreamError::Full,
                        Refused::Ended(_) => StreamError::Stopped,
                    }
                })?;
                if !claimed.again {
                    desk.announce(&claimed.change, None);
                }
                Ok(Some(ClaimedTurn {
                    stream,
                    name: claimed.name,
                    turn: claimed.turn,
                    lease: claimed.lease,
                    input: claimed.input,
                    cancel,
                }))
            }
            Claimed::Running { worker, turn } => Err(StreamError::TurnRunning { worker, turn }),
            Claimed::Closed(_) => Err(StreamError::Closed),
            Claimed::Missing if next => Ok(None),
            Claimed::Missing => Err(StreamError::Missing),
            Claimed::Gone => Err(StreamError::Gone),
        };
        self.shared.desk.ask(key, run, read, then);
    }

    /// Claims a stream and begins a turn, with the input that has waited longest.
    pub fn run(&self, name: &str) -> Result<TurnHandle, StreamError> {
        let claimed = self.wait(|then| self.claim_then(Wanted::Stream(address(name)), None, then))?;
        claimed.map(|claimed| TurnHandle::new(self.clone(), claimed)).ok_or(StreamError::Missing)
    }

    /// Claims whichever stream has been pending longest of those with these labels.
    pub fn next(&self, labels: &Labels) -> Result<Option<TurnHandle>, StreamError> {
        let claimed = self.wait(|then| self.claim_then(Wanted::Next(labels.clone()), None, then))?;
        Ok(claimed.map(|claimed| TurnHandle::new(self.clone(), claimed)))
    }

    /// Adds parts to a turn. `first` numbers the first of them, for a producer that sends again after a cut.
    pub fn parts_then(
        &self,
        stream: Uuid,
        fence: Fence,
        first: Option<u32>,
        parts: Vec<Arc<str>>,
        then: Then<Accepted>,
    ) {
        self.or_tell(stream, |then| Errand::Parts(Parts { stream, fence, first, parts, then }), then);
    }

    /// Writes a turn's message, which stands for its parts so far.
    pub fn commit_then(
        &self,
        stream: Uuid,
        fence: Fence,
        draft: Draft,
        key: Option<String>,
        then: Then<Written>,
    ) {
        if let Err(error) = self.check_size(&draft) {
            return then(Err(error));
        }
        self.or_tell(stream, |then| Errand::Commit(Commit { stream, fence, draft, key, then }), then);
    }

    /// Ends a turn.
    pub fn end_then(&self, stream: Uuid, fence: Fence, end: crate::store::streams::End, then: Then<()>) {
        self.or_tell(stream, |then| Errand::End(Ending { stream, fence, end, then }), then);
    }

    /// Says that a producer is alive.
    pub fn keepalive_then(&self, stream: Uuid, fence: Fence, then: Then<Alive>) {
        self.or_tell(stream, |then| Errand::Keepalive(Keepalive { stream, fence, then }), then);
    }

    /// Reads the parts of a turn after number `after`, and waits for some if `wait` is set and the turn has
    /// not ended.
    pub fn read_turn_then(&self, stream: Uuid, turn: u32, after: u32, wait: bool, then: Then<TurnRead>) {
        self.or_tell(stream, |then| Errand::ReadTurn(ReadTurn { stream, turn, after, wait, then }), then);
    }

    /// The number of the last part of a turn that is here, wherever it runs.
    pub fn last_part_then(&self, stream: Uuid, turn: u32, then: Then<u32>) {
        let after = u32::MAX;
        let read = Box::new(|read: Result<TurnRead, StreamError>| then(read.map(|read| read.last)));
        let ask = |then| Errand::ReadTurn(ReadTurn { stream, turn, after, wait: false, then });
        self.or_tell_from(stream, true, ask, read);
    }

    /// Gives the token that is cancelled when a turn is asked to stop.
    pub fn cancel_of_then(&self, stream: Uuid, fence: Fence, then: Then<rt::Cancel>) {
        self.or_tell(stream, |then| Errand::CancelOf(CancelOf { stream, fence, then }), then);
    }

    /// Hands a question to a room. A room that is full answers nothing, so this does.
    fn or_tell<T: Send + 'static>(&self, stream: Uuid, ask: impl FnOnce(Then<T>) -> Errand, then: Then<T>) {
        self.or_tell_from(stream, false, ask, then);
    }

    fn or_tell_from<T: Send + 'static>(
        &self,
        stream: Uuid,
        stays: bool,
        ask: impl FnOnce(Then<T>) -> Errand,
        then: Then<T>,
    ) {
        let slot = Arc::new(rt::Lock::new(Some(then)));
        let take = |slot: &rt::Lock<Option<Then<T>>>| slot.lock().take();
        let other = slot.clone();
        let errand = ask(Box::new(move |answer| {
            if let Some(then) = take(&other) {
                then(answer);
            }
        }));
        let message = Message::Errand(Box::new(errand), stays);
        if let Err(error) = self.to_room(stream, message)
            && let Some(then) = take(&slot)
        {
            then(Err(error));
        }
    }

    // Following.

    /// Finds a stream's id.
    pub fn resolve_then(&self, at: Address, then: Then<Uuid>) {
        let name = match at {
            Address::Id(id) => return then(Ok(id)),
            Address::Name(name) => name,
        };
        if let Some(id) = self.shared.names.get(&name) {
            return then(Ok(id));
        }
        let names = self.shared.names.clone();
        let at = Address::Name(name.clone());
        self.shared.readers.ask(
            writes::key_of(&at),
            move |store| store.get(&at),
            move |answer| {
                let id = found(answer).map(|row| row.id);
                if let Ok(id) = id {
                    names.put(name, id);
                }
                then(id);
            },
        );
    }

    /// A number for a new follower.
    pub fn next_follower(&self) -> FollowerId {
        self.shared.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Somebody follows the stream of that name: what a [`Newcomer`] is given.
    pub fn visit(&self, caller: &Caller, name: &str, how: &'static str) -> Guest {
        let visit = self.shared.visits.follower(caller, &[("stream", name), ("via", how)]);
        Guest { visit, who: slow::Who::of(caller, &self.shared.hasher) }
    }

    /// Lets somebody in. One for whom there is no room just now is told to come again.
    pub(crate) fn enter(&self, newcomer: Newcomer) {
        let stream = newcomer.stream;
        let link = match &newcomer.tap {
            Tap::Link { link, .. } => Some(link.clone()),
            Tap::Channel(_) => None,
        };
        if let Err(error) = self.to_room(stream, Message::Follow(Box::new(newcomer))) {
            log::warn!("follow refused stream={stream} error={error}");
            if let Some(link) = link {
                link.close(1013, "try again later");
            }
        }
    }

    /// Follows over a WebSocket that carries other follows too: one that ends leaves the link to the others,
    /// and says so to `ends`.
    pub fn follow_shared(
        &self,
        id: FollowerId,
        stream: Uuid,
        options: FollowOptions,
        link: LinkHandle,
        ends: Ends,
        guest: Guest,
    ) -> Result<(), StreamError> {
        let tap = Tap::Link { link, format: Format::Ws, ends: Some(ends) };
        self.follow_tap(id, stream, options, tap, guest)
    }

    fn follow_tap(
        &self,
        id: FollowerId,
        stream: Uuid,
        options: FollowOptions,
        tap: Tap,
        guest: Guest,
    ) -> Result<(), StreamError> {
        let newcomer = Newcomer::new(id, stream, options, tap, guest);
        self.to_room(stream, Message::Follow(Box::new(newcomer)))
    }

    /// A follower's link, which belongs to somebody else, has sent a page of history.
    pub fn link_passed(&self, stream: Uuid, id: FollowerId) {
        // At most one for each page that was sent.
        drop(self.shared.shards.of(stream).control(Message::Passed(id)));
    }

    /// A follower's link, which belongs to somebody else, is gone, for this reason.
    pub fn link_gone(&self, stream: Uuid, id: FollowerId, why: Closing) {
        // Once for each follower.
        drop(self.shared.shards.of(stream).control(Message::LinkGone(id, why)));
    }

    /// Ends a follow on a link that goes on. `then` is called once nothing more comes of it.
    pub fn leave_link(
        &self,
        stream: Uuid,
        id: FollowerId,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<(), StreamError> {
        self.to_room(stream, Message::Leave(id, Box::new(then)))
    }

    /// Ends a follow for this reason; its peer is told.
    pub fn end_follow(&self, stream: Uuid, id: FollowerId, why: Ended) -> Result<(), StreamError> {
        self.to_room(stream, Message::End(id, why))
    }

    /// Ends a follow.
    pub fn unfollow(&self, stream: Uuid, id: FollowerId) {
        // Full: the link is gone or will be, and the room hears of that.
        drop(self.to_room(stream, Message::Unfollow(id)));
    }

    /// Takes a link over which another replica follows the turns of a stream that run here. Its events must
    /// reach [`Streams::outlet`] under this tag, which comes from [`Streams::next_follower`].
    pub fn serve_relay(&self, tag: u64, stream: Uuid, link: LinkHandle) -> Result<(), StreamError> {
        self.to_room(stream, Message::Serve { stream, tag, link })
    }

    /// Where the links of a stream's followers tell what happens to them: one for all of a room.
    pub fn outlet(&self, stream: Uuid) -> Outlet {
        self.shared.outlets[self.shared.shards.index(stream)].clone()
    }

    /// Gives what goes on in the streams that are followed or produced on this replica, in no order.
    pub fn living_then(&self, then: impl FnOnce(Vec<Living>) + Send + 'static) {
        let shards = &self.shared.shards.rooms;
        let gathered = Arc::new(rt::Lock::new((shards.len(), Vec::new(), Some(then))));
        for inbox in shards.iter() {
            let gather = {
                let gathered = gathered.clone();
                move |found: Vec<Living>| {
                    let mut all = gathered.lock();
                    all.0 -= 1;
                    all.1.extend(found);
                    let over = (all.0 == 0).then(|| (std::mem::take(&mut all.1), all.2.take()));
                    drop(all);
                    if let Some((found, Some(then))) = over {
                        then(found);
                    }
                }
            };
            // A room that is full or has ended says nothing; what the others say still counts.
            let silent = gather.clone();
            if inbox.try_data(Message::Living(Box::new(gather))).is_err() {
                silent(Vec::new());
            }
        }
    }

    /// Tells followers that this replica is about to stop, and waits until they have all been told, at most
    /// this long: a link that is closed before would leave its peer without the word.
    pub fn drain(&self, wait: Duration) {
        let rt = &self.shared.rt;
        let (done, told) = rt.channel::<()>("drained", 1);
        for inbox in self.shared.shards.rooms.iter() {
            // Full or ended: they hear of it when their links close.
            drop(inbox.control(Message::Drain(done.clone())));
        }
        drop(done);
        // Nothing is ever sent: the last room that is through lets go of the channel.
        let _ = told.recv_deadline(rt.now() + wait);
    }
}

/// What a worker wants to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This stream.
    Stream(Address),
    /// Whichever has been pending longest of those with all of these labels.
    Next(Labels),
}

fn found<T>(answer: Result<Found<T>, StoreError>) -> Result<T, StreamError> {
    match answer {
        Ok(Found::Here(it)) => Ok(it),
        Ok(Found::Missing) => Err(StreamError::Missing),
        Ok(Found::Gone) => Err(StreamError::Gone),
        Err(error) => Err(StreamError::Store(error)),
    }
}

/// A message or an input of JSON.
fn draft(role: Option<&str>, content: &impl serde::Serialize) -> Result<Draft, StreamError> {
    let content = serde_json::to_vec(content).map_err(|error| StreamError::BadJson(error.to_string()))?;
    Ok(Draft { kind: Kind::Json, role: role.map(str::to_owned), content: content.into() })
}

#[cfg(test)]
mod tests;
