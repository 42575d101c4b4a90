//! An engine: its rooms over one store, and the builder that puts them together.
//!
//! Invariant: no thread and no descriptor is left once an [`Engine`] was dropped, whatever handles are
//! still about; those answer `stopped`. What is absent: signal handlers, a logger, and, where no wire was
//! given, I/O threads.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::backends::Backend;
use super::connections::{ConnectionOutside, ConnectionRooms, ConnectionSettings, Connections};
use super::directory::Directory;
use super::lookups::Lookups;
use super::metadata::{Metadata, MetadataOutside, MetadataRooms, MetadataSettings};
use super::pipes::{self, Pipes, PipesHandle};
use super::replicas::{Replicas, ReplicasConfig, ReplicasEngine};
use super::retention::{self, Ages};
use super::streams::{self, RelayFigures, RelayWays, Streams, StreamsConfig, StreamsEngine};
use super::visits::Visits;
use super::worker::{Crew, Worker};
use crate::bus::local::LocalBus;
use crate::bus::{Bus, BusHealth, Notice, Sink, Topic};
use crate::metrics::{Exposition, Metrics};
use crate::rt::{Lock, Moment, Rt};
use crate::spool;
use crate::store::sqlite::SqliteStores;
use crate::store::{Identity, Stores};
use crate::wire::Wire;
use crate::{Code, Error, Result};

/// What an engine can be made of; [`Builder::only`] leaves the others out.
///
/// ```
/// use towpath::{Engine, Part};
///
/// let engine = Engine::builder().only(&[Part::Streams, Part::Metadata]).start()?;
/// # Ok::<(), towpath::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Live streams: their rooms, readers, writers, and this replica's place in the registry.
    Streams,
    /// Batched metadata and its watchers.
    Metadata,
    /// The connection log, its retries, its spool.
    Connections,
}

impl Part {
    const ALL: [Part; 3] = [Part::Streams, Part::Metadata, Part::Connections];
}

/// Where rows are.
enum Store {
    /// The data directory if there is one, memory otherwise.
    Unsaid,
    Memory,
    Postgres(String),
    Given(Arc<dyn Stores>),
}

/// An engine in the making. Everything has a default: an engine that was told nothing keeps its rows in
/// memory and runs all its parts.
///
/// ```
/// use std::time::Duration;
/// use towpath::{ConnectionSettings, Engine, MetadataSettings};
///
/// let engine = Engine::builder()
///     .in_memory()
///     .threads(1)
///     .metadata(MetadataSettings { interval: Duration::from_secs(1), ..MetadataSettings::default() })
///     .connections(ConnectionSettings { capacity: 100, ..ConnectionSettings::default() })
///     .start()?;
/// assert_eq!(engine.poisoned(), None);
/// # Ok::<(), towpath::Error>(())
/// ```
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    store: Store,
    data: Option<PathBuf>,
    parts: BTreeSet<Part>,
    bus: Option<Arc<dyn Bus>>,
    wire: Option<Arc<dyn Wire>>,
    relay_url: Option<String>,
    threads: Option<usize>,
    streams: streams::Limits,
    metadata: MetadataSettings,
    connections: ConnectionSettings,
    spool: spool::Limits,
    backends: Vec<Box<dyn Backend>>,
    own_links: bool,
    ages: Ages,
    metadata_unlogged: bool,
    pipes: Option<(pipes::Settings, pipes::Server)>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL of a store: it may have a password in it.
        f.debug_struct("Builder")
            .field("parts", &self.parts)
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            store: Store::Unsaid,
            data: None,
            parts: Part::ALL.into(),
            bus: None,
            wire: None,
            relay_url: None,
            threads: None,
            streams: streams::Limits::default(),
            metadata: MetadataSettings::default(),
            connections: ConnectionSettings::default(),
            spool: spool::Limits::default(),
            backends: Vec::new(),
            own_links: false,
            ages: Ages::default(),
            metadata_unlogged: false,
            pipes: None,
        }
    }
}

impl Builder {
    /// Rows in memory: gone with the engine. For tests, demonstrations and state that may be lost.
    ///
    /// ```
    /// let engine = towpath::Engine::builder().in_memory().start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn in_memory(mut self) -> Builder {
        self.store = Store::Memory;
        self
    }

    /// A data directory, made if it is missing and used by one engine at a time: the spool lies there, and
    /// the rows unless another store was named.
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path();
    /// let engine = towpath::Engine::builder().data(path).start()?;
    /// engine.streams().create("chat/1", Default::default())?;
    /// drop(engine);
    /// // Another engine finds what the first one wrote.
    /// let engine = towpath::Engine::builder().data(path).start()?;
    /// engine.streams().append("chat/1", Some("user"), &"hi")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn data(mut self, directory: impl Into<PathBuf>) -> Builder {
        self.data = Some(directory.into());
        self
    }

    /// Rows in a PostgreSQL database, which other replicas may use as well: notices between them travel
    /// through it. With a [`Builder::data`] directory besides, receipts outlive an outage of the database.
    ///
    /// ```no_run
    /// let engine = towpath::Engine::builder()
    ///     .postgres("postgres://towpath@localhost/towpath")
    ///     .data("/var/lib/towpath")
    ///     .start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn postgres(mut self, url: impl Into<String>) -> Builder {
        self.store = Store::Postgres(url.into());
        self
    }

    /// A store of one's own, or one that fails on purpose (`testing::FaultyStores`).
    ///
    /// ```
    /// use std::sync::Arc;
    /// use towpath::store::sqlite::SqliteStores;
    /// use towpath::store::{Identity, Stores};
    /// use towpath::{Engine, Rt};
    ///
    /// let rt = Rt::real();
    /// let clock = { let rt = rt.clone(); Arc::new(move || rt.wall()) };
    /// let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
    /// let stores: Arc<dyn Stores> = Arc::new(SqliteStores::in_memory(clock, fresh)?.for_several_replicas());
    /// let one = Engine::builder().store(stores.clone()).start()?;
    /// let other = Engine::builder().store(stores).start()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn store(mut self, stores: Arc<dyn Stores>) -> Builder {
        self.store = Store::Given(stores);
        self
    }

    /// A bus of one's own: engines of one process that share a store share a bus.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use towpath::bus::local::LocalBus;
    ///
    /// let engine = towpath::Engine::builder().bus(Arc::new(LocalBus::new())).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn bus(mut self, bus: Arc<dyn Bus>) -> Builder {
        self.bus = Some(bus);
        self
    }

    /// The way to other machines. Without one nothing is dialed and no I/O thread exists.
    ///
    /// ```
    /// use towpath::wire::IoThreads;
    /// use towpath::{Engine, Rt};
    ///
    /// let rt = Rt::real();
    /// let io = IoThreads::new(&rt, 1, None)?;
    /// let engine = Engine::builder().wire(io.wire()).relay_url("ws://10.0.0.1:7701").start_on(rt)?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn wire(mut self, wire: Arc<dyn Wire>) -> Builder {
        self.wire = Some(wire);
        self
    }

    /// Where other replicas reach the relay that somebody serves for this engine.
    ///
    /// ```
    /// let engine = towpath::Engine::builder().relay_url("ws://10.0.0.1:7701").start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn relay_url(mut self, url: impl Into<String>) -> Builder {
        self.relay_url = Some(url.into());
        self
    }

    /// Only these parts; the others cost no thread.
    ///
    /// ```
    /// use towpath::{Engine, Part};
    ///
    /// let engine = Engine::builder().only(&[Part::Metadata]).start()?;
    /// assert_eq!(engine.metadata().pending(), 0);
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn only(mut self, parts: &[Part]) -> Builder {
        self.parts = parts.iter().copied().collect();
        self
    }

    /// How many rooms share the streams; twice as many threads read, and as many write where the store is
    /// PostgreSQL (SQLite has one writer). One for each processor otherwise; in a simulation one.
    ///
    /// ```
    /// let engine = towpath::Engine::builder().threads(2).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn threads(mut self, threads: usize) -> Builder {
        self.threads = Some(threads.max(1));
        self
    }

    /// What bounds streams.
    ///
    /// ```
    /// use towpath::engine::streams::Limits;
    ///
    /// let limits = Limits { inputs_max: 10, ..Limits::default() };
    /// let engine = towpath::Engine::builder().streams(limits).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn streams(mut self, limits: streams::Limits) -> Builder {
        self.streams = limits;
        self
    }

    /// How metadata gathers.
    ///
    /// ```
    /// use towpath::{Engine, MetadataSettings};
    ///
    /// let settings = MetadataSettings { bound: 10_000, ..MetadataSettings::default() };
    /// let engine = Engine::builder().metadata(settings).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn metadata(mut self, settings: MetadataSettings) -> Builder {
        self.metadata = settings;
        self
    }

    /// How the connection log gathers.
    ///
    /// ```
    /// use towpath::{ConnectionSettings, Engine};
    ///
    /// let engine = Engine::builder().connections(ConnectionSettings { bound: 1_000, ..Default::default() }).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn connections(mut self, settings: ConnectionSettings) -> Builder {
        self.connections = settings;
        self
    }

    /// How full the spool may get.
    ///
    /// ```
    /// use towpath::spool::Limits;
    ///
    /// let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
    /// let engine = towpath::Engine::builder().spool(limits).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn spool(mut self, limits: spool::Limits) -> Builder {
        self.spool = limits;
        self
    }

    /// Somewhere connection rows go besides the store. May be said several times.
    ///
    /// ```
    /// use towpath::engine::backends::LogBackend;
    ///
    /// let engine = towpath::Engine::builder().backend(LogBackend).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn backend(mut self, backend: impl Backend) -> Builder {
        self.backends.push(Box::new(backend));
        self
    }

    pub(crate) fn backend_boxed(mut self, backend: Box<dyn Backend>) -> Builder {
        self.backends.push(backend);
        self
    }

    /// Whether the engine's own followers and relays are rows of its connection log, as a daemon's are. Not
    /// unless this is said.
    ///
    /// ```
    /// let engine = towpath::Engine::builder().own_links(true).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn own_links(mut self, recorded: bool) -> Builder {
        self.own_links = recorded;
        self
    }

    /// How old rows may grow before they are thrown out. As old as they like unless this is said.
    ///
    /// ```
    /// use std::time::Duration;
    /// use towpath::engine::retention::Ages;
    ///
    /// let ages = Ages { connections: Some(Duration::from_secs(90 * 86_400)), ..Ages::default() };
    /// let engine = towpath::Engine::builder().ages(ages).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn ages(mut self, ages: Ages) -> Builder {
        self.ages = ages;
        self
    }

    /// Whether PostgreSQL keeps metadata out of its write-ahead log: faster, and gone when it crashes. Not
    /// unless this is said; without PostgreSQL it means nothing.
    ///
    /// ```
    /// let engine = towpath::Engine::builder().metadata_unlogged(true).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn metadata_unlogged(mut self, unlogged: bool) -> Builder {
        self.metadata_unlogged = unlogged;
        self
    }

    /// Byte pipes, on threads of their own. [`pipes::Server::none`] is for a program that only dials.
    ///
    /// ```
    /// use towpath::engine::pipes::{Server, Settings};
    ///
    /// let engine = towpath::Engine::builder().pipes(Settings::default(), Server::none()).start()?;
    /// assert!(engine.pipes().is_some());
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn pipes(mut self, settings: pipes::Settings, server: pipes::Server) -> Builder {
        self.pipes = Some((settings, server));
        self
    }

    /// Starts it on real threads.
    ///
    /// # Errors
    /// The store cannot be opened, another engine uses the data directory, or there is no thread to have.
    pub fn start(self) -> Result<Engine> {
        self.start_on(Rt::real())
    }

    /// Starts it on a runtime, which may be a simulated one.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start_on(self, rt: Rt) -> Result<Engine> {
        let mut metrics = Metrics::new();
        let mut engine = self.start_among(&Crew::new(&rt), &mut metrics)?;
        engine.figures = Some(metrics.into_exposition());
        Ok(engine)
    }

    /// Starts it among the rooms of a daemon, whose figures are described with its own.
    pub(crate) fn start_among(self, crew: &Crew, metrics: &mut Metrics) -> Result<Engine> {
        let rt = crew.rt();
        let directory = self.data.as_deref().map(Directory::open).transpose()?;
        let stores = open_stores(rt, &self.store, self.metadata_unlogged, directory.as_ref())?;
        let bus = match self.bus {
            Some(bus) => bus,
            None => open_bus(rt, &self.store)?,
        };
        let bus = Arc::new(UntilTheEnd(Lock::new(Some(bus))));
        let notices: Arc<dyn Bus> = bus.clone();
        let has = |part| self.parts.contains(&part);
        let lookups = if has(Part::Metadata) || has(Part::Connections) {
            Some(Lookups::start(crew, "reader-lookups", stores.clone())?)
        } else {
            None
        };
        let reads = |lookups: &Option<(Lookups, Worker)>| {
            lookups.as_ref().map(|(reads, _)| reads.clone()).expect("started above for both who read")
        };
        let mut connections = None;
        if has(Part::Connections) {
            let spool: Box<dyn spool::Spool> = Box::new(open_spool(rt, directory.as_ref(), self.spool)?);
            let outside = ConnectionOutside {
                crew,
                stores: stores.clone(),
                spool,
                durable: directory.is_some(),
                backends: self.backends,
                lookups: reads(&lookups),
                metrics,
            };
            connections = Some(Connections::start(self.connections, outside)?);
        }
        let mut metadata = None;
        if has(Part::Metadata) {
            let (stores, bus, lookups) = (stores.clone(), notices.clone(), reads(&lookups));
            let outside = MetadataOutside { crew, stores, bus, lookups, metrics };
            metadata = Some(Metadata::start(self.metadata, outside)?);
        }
        let mut retention = None;
        if let Some((lookups, _)) = &lookups {
            retention = retention::start(crew, self.ages, lookups.clone(), metrics)?;
        }
        let visits = match &connections {
            Some((log, _)) if self.own_links => Visits::in_log(log),
            _ => Visits::default(),
        };
        let (mut replicas, mut streams) = (None, None);
        if has(Part::Streams) {
            let me = this_replica(rt, self.relay_url);
            let id = me.id;
            let registry = ReplicasEngine::start(crew, me, &*stores, &notices, self.wire.clone())?;
            let figures = RelayFigures::describe(metrics);
            // A store that only this process may use has no other replicas.
            let relay = self.wire.clone().filter(|_| stores.is_shared());
            let threads =
                self.threads.unwrap_or(if rt.is_simulated() { 1 } else { crate::rt::parallelism() });
            let config = StreamsConfig {
                doors: self.wire.as_ref().map(|wire| wire.doors().clone()),
                relay: relay.map(|wire| RelayWays { wire, replicas: registry.replicas().clone(), figures }),
                limits: self.streams,
                shards: threads,
                // Catching up is mostly waiting for the store.
                readers: 2 * threads,
                // Of a store of one process one connection writes at a time: a second writer would only find
                // it taken, sleep, and share no commit with the first.
                writers: if stores.is_shared() { threads } else { 1 },
                visits: visits.clone(),
                followers_refused: metrics
                    .counter("followers_refused", "Followers that were one too many for their stream."),
                ..StreamsConfig::new(id, stores.clone(), notices.clone())
            };
            streams = Some(StreamsEngine::start(crew, config)?);
            replicas = Some(registry);
        }
        let pipes = match self.pipes {
            None => None,
            Some(_) if rt.is_simulated() => {
                let text = "pipes have sockets of their own, which a simulation cannot follow";
                return Err(Error::new(Code::BadConfig, text));
            }
            Some((settings, server)) => {
                let pipes = Pipes::start(rt, settings, server)?;
                pipes.handle().describe(metrics);
                Some((pipes.handle(), pipes))
            }
        };
        Ok(Engine {
            crew: crew.clone(),
            figures: None,
            streams,
            pipes,
            replicas,
            metadata,
            connections,
            visits,
            retention,
            _lookups: lookups.map(|(_, worker)| worker),
            bus,
            stores,
            directory,
        })
    }
}

/// A running engine. Dropping it writes what is held, spools what cannot be written, and joins every
/// thread; handles that are still about answer `stopped` from then on.
///
/// ```
/// use towpath::{Engine, FollowOptions, What};
///
/// let engine = Engine::builder().in_memory().start()?;
/// let streams = engine.streams();
/// streams.create("chat/1", Default::default())?;
/// let turn = streams.run("chat/1")?;
/// turn.part(&"Hel")?;
/// turn.part(&"lo")?;
/// turn.commit(Some("assistant"), &"Hello")?;
/// turn.finish()?;
///
/// let mut said = Vec::new();
/// for event in streams.follow("chat/1", FollowOptions::default())? {
///     match event.what {
///         What::Message(row) => said.push(String::from_utf8_lossy(&row.content).into_owned()),
///         What::Live { .. } => break, // the snapshot is complete
///         _ => {}
///     }
/// }
/// assert_eq!(said, [r#""Hello""#]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping an engine stops it"]
pub struct Engine {
    crew: Crew,
    figures: Option<Exposition>,
    // Dropped in the order they are declared: those who are fed first, those who write last after them, and
    // what all of them stand on in the end.
    streams: Option<StreamsEngine>,
    pipes: Option<(PipesHandle, Pipes)>,
    replicas: Option<ReplicasEngine>,
    metadata: Option<(Metadata, MetadataRooms)>,
    connections: Option<(Connections, ConnectionRooms)>,
    /// Where its own links are recorded.
    visits: Visits,
    retention: Option<Worker>,
    _lookups: Option<Worker>,
    bus: Arc<UntilTheEnd>,
    stores: Arc<dyn Stores>,
    directory: Option<Directory>,
}

impl Engine {
    /// An engine in the making.
    ///
    /// ```
    /// let engine = towpath::Engine::builder().start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Live streams: create, append, run turns, follow.
    ///
    /// # Panics
    /// If the engine was built without them ([`Builder::only`]).
    ///
    /// ```
    /// let engine = towpath::Engine::builder().start()?;
    /// engine.streams().create("jobs/1", Default::default())?;
    /// let written = engine.streams().append("jobs/1", None, &serde_json::json!({"step": 1}))?;
    /// assert_eq!(written.id, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn streams(&self) -> &Streams {
        self.streams.as_ref().unwrap_or_else(|| left_out(Part::Streams)).streams()
    }

    /// The latest value of each agent under each key.
    ///
    /// # Panics
    /// If the engine was built without it ([`Builder::only`]).
    ///
    /// ```
    /// let engine = towpath::Engine::builder().start()?;
    /// let agent = engine.rt().uuid_v4();
    /// engine.metadata().report(agent, &[("load", "12%", "")])?;
    /// engine.metadata().flush()?;
    /// assert_eq!(engine.metadata().get(agent)?.values[0].value, "12%");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata.as_ref().unwrap_or_else(|| left_out(Part::Metadata)).0
    }

    /// The connection log: who connected, when, for how long, and why it ended.
    ///
    /// # Panics
    /// If the engine was built without it ([`Builder::only`]).
    ///
    /// ```
    /// use towpath::{ConnectionKind, ConnectionQuery, ConnectionStatus, Engine, Record};
    ///
    /// let engine = Engine::builder().start()?;
    /// let (id, now) = (engine.rt().uuid_v7(), engine.rt().wall());
    /// let log = engine.connections();
    /// log.record(Record::new(id, now, ConnectionKind::Ssh, ConnectionStatus::Connected))?;
    /// log.flush()?;
    /// assert_eq!(log.query(ConnectionQuery::default())?.rows[0].id(), id);
    /// # Ok::<(), towpath::Error>(())
    /// ```
    #[track_caller]
    pub fn connections(&self) -> &Connections {
        &self.connections.as_ref().unwrap_or_else(|| left_out(Part::Connections)).0
    }

    /// Byte pipes, where [`Builder::pipes`] asked for them.
    pub fn pipes(&self) -> Option<&PipesHandle> {
        self.pipes.as_ref().map(|(handle, _)| handle)
    }

    /// The runtime it runs on: its clock, its randomness, and what
    /// [`Sessions::builder`](crate::Sessions::builder) wants.
    ///
    /// ```
    /// use towpath::{Engine, Services, Sessions};
    ///
    /// let engine = Engine::builder().start()?;
    /// let sessions = Sessions::builder(engine.rt(), Services::new()).start()?;
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn rt(&self) -> &Rt {
        self.crew.rt()
    }

    /// What the first room that panicked said. Such an engine has put into safety what the room held; drop
    /// it and start another.
    ///
    /// ```
    /// let engine = towpath::Engine::builder().start()?;
    /// assert_eq!(engine.poisoned(), None);
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn poisoned(&self) -> Option<String> {
        self.crew.poisoned()
    }

    /// Every figure as OpenMetrics text, for the program's own `/metrics`.
    ///
    /// ```
    /// let engine = towpath::Engine::builder().start()?;
    /// assert!(engine.metrics().ends_with("# EOF\n"));
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn metrics(&self) -> String {
        self.figures.as_ref().map(Exposition::text).unwrap_or_default()
    }

    /// Stops and joins everything; what cannot be written within `patience` is spooled. Dropping the engine
    /// is the same with ten seconds.
    ///
    /// ```
    /// let engine = towpath::Engine::builder().start()?;
    /// engine.stop_within(std::time::Duration::from_secs(2));
    /// # Ok::<(), towpath::Error>(())
    /// ```
    pub fn stop_within(self, patience: Duration) {
        self.end_by(self.rt().now() + patience);
    }

    /// When everything has to be over.
    pub(crate) fn end_by(&self, deadline: Moment) {
        if let Some((_, rooms)) = &self.metadata {
            rooms.end_by(deadline);
        }
        if let Some((_, rooms)) = &self.connections {
            rooms.end_by(deadline);
        }
    }

    /// Who else runs on the same store.
    #[track_caller]
    pub(crate) fn replicas(&self) -> &Replicas {
        self.replicas.as_ref().unwrap_or_else(|| left_out(Part::Streams)).replicas()
    }

    pub(crate) fn visits(&self) -> &Visits {
        &self.visits
    }

    pub(crate) fn stores(&self) -> &Arc<dyn Stores> {
        &self.stores
    }

    pub(crate) fn directory(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The fields after them follow by themselves. The bus ends here and not with its last handle: a
        // `Streams` that outlives the engine has one.
        self.streams = None;
        self.pipes = None;
        self.replicas = None;
        self.metadata = None;
        self.connections = None;
        self.retention = None;
        self._lookups = None;
        self.bus.end();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("crew", &self.crew).finish_non_exhaustive()
    }
}

#[track_caller]
fn left_out(part: Part) -> ! {
    panic!("this engine was built without {part:?}: add it to Builder::only")
}

/// The bus for as long as the engine runs. Handles that outlive it publish to nobody.
struct UntilTheEnd(Lock<Option<Arc<dyn Bus>>>);

impl UntilTheEnd {
    /// Sends are made without the lock.
    fn now(&self) -> Option<Arc<dyn Bus>> {
        self.0.lock().clone()
    }

    fn end(&self) {
        let bus = self.0.lock().take();
        drop(bus);
    }
}

impl Bus for UntilTheEnd {
    fn publish(&self, notice: Notice) {
        if let Some(bus) = self.now() {
            bus.publish(notice);
        }
    }

    fn subscribe(&self, topic: Topic, sink: Sink) {
        if let Some(bus) = self.now() {
            bus.subscribe(topic, sink);
        }
    }

    fn health(&self) -> BusHealth {
        self.now().map(|bus| bus.health()).unwrap_or_default()
    }
}

/// This engine, as its peers see it.
fn this_replica(rt: &Rt, relay_url: Option<String>) -> ReplicasConfig {
    let hostname = if rt.is_simulated() {
        "simulated".to_owned()
    } else {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    };
    ReplicasConfig { id: rt.uuid_v7(), hostname, relay_url, version: env!("CARGO_PKG_VERSION").to_owned() }
}

fn open_stores(
    rt: &Rt,
    store: &Store,
    unlogged: bool,
    directory: Option<&Directory>,
) -> Result<Arc<dyn Stores>> {
    let fresh = Identity { store: Uuid::from_bytes(rt.secret()), epoch: Uuid::from_bytes(rt.secret()) };
    let clock = {
        let rt = rt.clone();
        Arc::new(move || rt.wall())
    };
    let opened = |error| Error::from(error).while_("opening the store");
    Ok(match (store, directory) {
        (Store::Given(stores), _) => stores.clone(),
        (Store::Postgres(url), _) => {
            postgres::stores(url, unlogged, fresh).map_err(|error| error.while_("opening the store"))?
        }
        (Store::Unsaid, Some(directory)) => {
            Arc::new(SqliteStores::open(directory.path(), clock, fresh).map_err(opened)?)
        }
        (Store::Memory | Store::Unsaid, _) => {
            Arc::new(SqliteStores::in_memory(clock, fresh).map_err(opened)?)
        }
    })
}

fn open_bus(rt: &Rt, store: &Store) -> Result<Arc<dyn Bus>> {
    match store {
        Store::Unsaid | Store::Memory | Store::Given(_) => Ok(Arc::new(LocalBus::new())),
        Store::Postgres(url) => postgres::bus(rt, url),
    }
}

/// Damage never stops the start: what was readable is in the new spool, the rest is told.
fn open_spool(rt: &Rt, directory: Option<&Directory>, limits: spool::Limits) -> Result<spool::File> {
    let bad = |error: spool::SpoolError| Error::new(Code::Io, error.to_string()).while_("opening the spool");
    let Some(directory) = directory else { return spool::File::memory(limits).map_err(bad) };
    let (spool, found) = spool::File::open(directory.path(), limits, rt.wall()).map_err(bad)?;
    if let spool::Found::Damaged(report) = found {
        log::error!(target: "towpath/spool_damaged", "{report}");
    }
    Ok(spool)
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;
    use crate::bus::postgres::PostgresBus;
    use crate::store::postgres::{Options, Patience, PostgresStores};

    pub(super) fn stores(url: &str, unlogged: bool, fresh: Identity) -> Result<Arc<dyn Stores>> {
        let options = Options { metadata_unlogged: unlogged, ..Options::default() };
        Ok(Arc::new(PostgresStores::connect(url, options, fresh)?))
    }

    pub(super) fn bus(rt: &Rt, url: &str) -> Result<Arc<dyn Bus>> {
        let bus = PostgresBus::start(rt, url, Patience::default());
        Ok(Arc::new(bus.map_err(|error| Error::from(error).while_("connecting the bus"))?))
    }
}

#[cfg(not(feature = "postgres"))]
mod postgres {
    use super::*;

    fn missing<T>() -> Result<T> {
        let text = "this towpath was built without PostgreSQL (cargo feature `postgres`)";
        Err(Error::new(Code::BadConfig, text))
    }

    pub(super) fn stores(_: &str, _: bool, _: Identity) -> Result<Arc<dyn Stores>> {
        missing()
    }

    pub(super) fn bus(_: &Rt, _: &str) -> Result<Arc<dyn Bus>> {
        missing()
    }
}
