//! Live streams: durable messages, a status, a queue, and the parts of what is being produced.
//!
//! [`Streams`] is the way in: it creates, appends, queues, claims and follows. Followers get a snapshot and
//! then events as they happen, each with a [`Token`](crate::codec::token::Token) to come back with ([`Follow`]). Whoever claims a stream
//! gets a [`TurnHandle`] to feed parts through.
//!
//! Behind it stand the rooms of the merge loop (one for each shard of the streams), pools of threads that
//! read and write ([`super::reader`]), and a keeper that renews leases and sweeps dead ones.

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
mod error;
pub mod event;
mod figures;
mod follow;
mod follower;
mod handle;
mod keeper;
mod names;
mod room;
mod rows;
mod slow;
mod turn;
mod view;
mod writes;

pub use carried::CarriedHere;
pub use courier::ERRANDS_PATH;
pub use error::StreamError;
pub use event::{Ended, Event, Hello, Reset, What};
pub use figures::RelayFigures;
pub use follow::{Follow, FollowOptions};
pub(crate) use follower::Listener;
pub use follower::{Ends, FollowerId, Format, QUEUE_BYTES_MAX, QUEUE_WAIT_MAX, Since};
pub use names::{address, check_name};
pub(crate) use room::Newcomer;
pub use room::{
    Accepted, Alive, Living, Polled, RELAY_MESSAGE_MAX, RELAY_PATH, RELAY_TICKET, RelayWays, Then, TurnRead,
};
pub use turn::TurnHandle;
pub use writes::Written;

use courier::Courier;
use errand::Errand;
use follower::Tap;
use handle::{draft, found};
use keeper::Keeper;
use names::Names;
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

/// How many messages wait for one room.
const ROOM_INBOX: usize = 16 * 1024;

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
        let names = Arc::new(Names::new(rt));
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

/// What a worker wants to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This stream.
    Stream(Address),
    /// Whichever has been pending longest of those with all of these labels.
    Next(Labels),
}

#[cfg(test)]
mod tests;
