//! The connection log and the metadata of one engine, with a store, a spool and a bus that fail when
//! they are told to. Runs on real threads and in simulations alike.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towpath::bus::{Bus, BusEvent, BusHealth, Delivery, Notice, Sink, Topic};
use towpath::engine::backends::Backend;
use towpath::engine::connections::{ConnectionOutside, ConnectionRooms, ConnectionSettings, Connections};
use towpath::engine::lookups::Lookups;
use towpath::engine::metadata::{Metadata, MetadataOutside, MetadataRooms, MetadataSettings};
use towpath::engine::worker::{Crew, Worker};
use towpath::metrics::Metrics;
use towpath::rt::{Rt, Wall};
use towpath::spool::{
    Appended, File, Item, Kept, Limits, Spool, SpoolError, Status as SpoolStatus, WhenFull,
};
use towpath::state::connection::{Kind, Record, Row, Status};
use towpath::state::metadata::{Entry, Key};
use towpath::store::connections::{ConnectionQuery, Count, DeadLetter};
use towpath::store::metadata::{AgentRow, KeyRow, MetadataRead, Sight, Upserted};
use towpath::store::sqlite::SqliteStores;
use towpath::store::{
    ConnectionStore, Identity, MetadataStore, ReplicaStore, Store, StoreError, Stores, StreamStore,
};
use uuid::Uuid;

pub(super) const SEC: Duration = Duration::from_secs(1);

/// What the next writes of connection rows do; without any, they succeed.
pub(super) enum Fault {
    /// Fails, and nothing was written.
    Before(StoreError),
    /// Fails, and everything was written.
    After(StoreError),
    /// Waits for a word, then writes.
    Hold(towpath::rt::Receiver<()>, towpath::rt::Sender<()>),
}

/// A store that fails when it is told to, and remembers what it was asked.
pub(super) struct Faulty {
    inner: Arc<dyn Stores>,
    rt: Rt,
    pub(super) away: AtomicBool,
    pub(super) poison: Mutex<BTreeSet<Uuid>>,
    pub(super) script: Mutex<VecDeque<Fault>>,
    /// Out of a thousand calls, how many fail, in simulations.
    pub(super) chance: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) rows: AtomicU64,
    pub(super) metadata_writes: AtomicU64,
    /// How long a write of metadata takes to begin, in milliseconds.
    pub(super) metadata_lag: AtomicU64,
    /// So many writes of metadata are committed and answered with a failure.
    pub(super) metadata_lost_answers: AtomicU64,
    /// The ids of every row a write of which was answered with success, in order.
    pub(super) stored: Mutex<Vec<Uuid>>,
}

impl Faulty {
    pub(super) fn around(rt: &Rt, inner: Arc<dyn Stores>) -> Arc<Faulty> {
        Arc::new(Faulty {
            inner,
            rt: rt.clone(),
            away: AtomicBool::new(false),
            poison: Mutex::default(),
            script: Mutex::default(),
            chance: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            metadata_writes: AtomicU64::new(0),
            metadata_lag: AtomicU64::new(0),
            metadata_lost_answers: AtomicU64::new(0),
            stored: Mutex::default(),
        })
    }

    pub(super) fn memory(rt: &Rt) -> Arc<Faulty> {
        let clock = {
            let rt = rt.clone();
            Arc::new(move || rt.wall())
        };
        let identity = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
        let stores = SqliteStores::in_memory(clock, identity).expect("a store in memory");
        Faulty::around(rt, Arc::new(stores.for_several_replicas()))
    }

    pub(super) fn set_away(&self, away: bool) {
        self.away.store(away, Relaxed);
    }

    pub(super) fn next(&self, fault: Fault) {
        self.script.lock().unwrap().push_back(fault);
    }

    /// What is in the store, oldest first.
    pub(super) fn all(&self) -> Vec<Row> {
        let query = ConnectionQuery { limit: 1_000_000, ..ConnectionQuery::default() };
        let mut rows = self.inner.connections().unwrap().query(&query).unwrap();
        rows.reverse();
        rows
    }

    pub(super) fn inner(&self) -> Arc<dyn Stores> {
        self.inner.clone()
    }

    fn gate(&self) -> Result<(), StoreError> {
        if self.away.load(Relaxed) { Err(unreachable_now()) } else { Ok(()) }
    }

    /// A seeded failure: none, before, or after the commit; with a seeded delay.
    fn drawn(&self) -> (bool, bool) {
        let chance = self.chance.load(Relaxed);
        if chance == 0 {
            return (false, false);
        }
        let mut rand = self.rt.rand("store faults");
        self.rt.sleep(Duration::from_millis(rand.below(20)));
        let failed = |rand: &mut towpath::rt::Rand| rand.below(1_000) >= 1_000 - chance;
        (failed(&mut rand), failed(&mut rand))
    }
}

pub(super) fn unreachable_now() -> StoreError {
    StoreError::retry("unreachable", "the store is away")
}

pub(super) fn timeout() -> StoreError {
    StoreError::retry("timeout", "the store took too long")
}

/// The way to the shared faults from one connection.
struct Conn<S: ?Sized> {
    faulty: Arc<Faulty>,
    store: Box<S>,
}

pub(super) struct FaultyStores(pub(super) Arc<Faulty>);

impl Stores for FaultyStores {
    fn streams(&self) -> Result<Box<dyn StreamStore>, StoreError> {
        self.0.inner.streams()
    }
    fn metadata(&self) -> Result<Box<dyn MetadataStore>, StoreError> {
        self.0.gate()?;
        Ok(Box::new(Conn { faulty: self.0.clone(), store: self.0.inner.metadata()? }))
    }
    fn connections(&self) -> Result<Box<dyn ConnectionStore>, StoreError> {
        self.0.gate()?;
        Ok(Box::new(Conn { faulty: self.0.clone(), store: self.0.inner.connections()? }))
    }
    fn replicas(&self) -> Result<Box<dyn ReplicaStore>, StoreError> {
        self.0.inner.replicas()
    }
    fn identity(&self) -> Identity {
        self.0.inner.identity()
    }
    fn is_shared(&self) -> bool {
        self.0.inner.is_shared()
    }
}

impl Store for Conn<dyn ConnectionStore> {
    fn ping(&mut self) -> Result<(), StoreError> {
        self.faulty.gate()?;
        self.store.ping()
    }
}

impl ConnectionStore for Conn<dyn ConnectionStore> {
    fn upsert(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        let faulty = self.faulty.clone();
        faulty.gate()?;
        faulty.writes.fetch_add(1, Relaxed);
        let (before, after) = faulty.drawn();
        if before {
            return Err(timeout());
        }
        let fault = faulty.script.lock().unwrap().pop_front();
        match fault {
            Some(Fault::Before(error)) => return Err(error),
            Some(Fault::Hold(go, there)) => {
                let _ = there.try_send(());
                let _ = go.recv();
            }
            Some(Fault::After(error)) => {
                self.store.upsert(rows)?;
                return Err(error);
            }
            None => {}
        }
        let poison = faulty.poison.lock().unwrap().clone();
        if rows.iter().any(|row| poison.contains(&row.id())) {
            return Err(StoreError::split("constraint", "some row is not acceptable"));
        }
        self.store.upsert(rows)?;
        if after {
            return Err(timeout());
        }
        faulty.rows.fetch_add(rows.len() as u64, Relaxed);
        faulty.stored.lock().unwrap().extend(rows.iter().map(Row::id));
        Ok(())
    }
    fn query(&mut self, query: &ConnectionQuery) -> Result<Vec<Row>, StoreError> {
        self.faulty.gate()?;
        self.store.query(query)
    }
    fn count(&mut self, query: &ConnectionQuery, cap: u64) -> Result<Count, StoreError> {
        self.store.count(query, cap)
    }
    fn prune(&mut self, before: Wall, limit: usize) -> Result<u64, StoreError> {
        self.store.prune(before, limit)
    }
    fn bury(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        self.faulty.gate()?;
        self.store.bury(letters)
    }
    fn dead_letters(
        &mut self,
        after: Option<(Wall, Uuid)>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.store.dead_letters(after, limit)
    }
    fn dead_letter_count(&mut self) -> Result<u64, StoreError> {
        self.store.dead_letter_count()
    }
}

impl Store for Conn<dyn MetadataStore> {
    fn ping(&mut self) -> Result<(), StoreError> {
        self.faulty.gate()?;
        self.store.ping()
    }
}

impl MetadataStore for Conn<dyn MetadataStore> {
    fn upsert(&mut self, rows: &[(Key, Entry)], now: Wall, sight: Sight) -> Result<Upserted, StoreError> {
        self.faulty.gate()?;
        self.faulty.metadata_writes.fetch_add(1, Relaxed);
        let (before, after) = self.faulty.drawn();
        if before {
            return Err(timeout());
        }
        let lag = self.faulty.metadata_lag.load(Relaxed);
        if lag > 0 {
            self.faulty.rt.sleep(Duration::from_millis(lag));
        }
        let done = self.store.upsert(rows, now, sight)?;
        let lost = self.faulty.metadata_lost_answers.load(Relaxed);
        self.faulty.metadata_lost_answers.store(lost.saturating_sub(1), Relaxed);
        if after || lost > 0 { Err(timeout()) } else { Ok(done) }
    }
    fn read(&mut self, agents: &[Uuid]) -> Result<Vec<MetadataRead>, StoreError> {
        self.faulty.gate()?;
        self.store.read(agents)
    }
    fn put_agent(&mut self, agent: Uuid, name: &str) -> Result<bool, StoreError> {
        self.store.put_agent(agent, name)
    }
    fn agent(&mut self, agent: Uuid) -> Result<Option<AgentRow>, StoreError> {
        self.store.agent(agent)
    }
    fn agents(
        &mut self,
        prefix: &str,
        after: Option<&AgentRow>,
        limit: usize,
    ) -> Result<Vec<AgentRow>, StoreError> {
        self.store.agents(prefix, after, limit)
    }
    fn declare(&mut self, agent: Uuid, keys: &[KeyRow]) -> Result<(), StoreError> {
        self.store.declare(agent, keys)
    }
    fn declared(&mut self, agent: Uuid) -> Result<Vec<KeyRow>, StoreError> {
        self.store.declared(agent)
    }
    fn prune(&mut self, older_than: Duration, limit: usize) -> Result<u64, StoreError> {
        self.store.prune(older_than, limit)
    }
}

/// A spool that outlives the engine that writes it.
pub(super) type Disk = Arc<Mutex<File>>;

/// A spool that fails when it is told to.
pub(super) struct FaultySpool {
    pub(super) inner: Disk,
    pub(super) faults: Arc<SpoolFaults>,
}

#[derive(Default)]
pub(super) struct SpoolFaults {
    pub(super) full: AtomicBool,
    pub(super) appends: AtomicU64,
}

impl Spool for FaultySpool {
    fn append(&mut self, items: &[Item], at: Wall) -> Result<Appended, SpoolError> {
        self.faults.appends.fetch_add(1, Relaxed);
        if self.faults.full.load(Relaxed) {
            return Err(SpoolError::NoSpace { text: "the disk is full".into() });
        }
        self.inner.lock().unwrap().append(items, at)
    }
    fn page(&mut self, after: u64, rows: usize, bytes: usize) -> Result<Vec<Kept>, SpoolError> {
        self.inner.lock().unwrap().page(after, rows, bytes)
    }
    fn forget(&mut self, number: u64) -> Result<usize, SpoolError> {
        self.inner.lock().unwrap().forget(number)
    }
    fn status(&mut self) -> Result<SpoolStatus, SpoolError> {
        self.inner.lock().unwrap().status()
    }
}

/// A bus of one process that loses what it is told to lose, and remembers what was published.
#[derive(Default)]
pub(super) struct TestBus {
    sinks: Mutex<Vec<Sink>>,
    pub(super) deaf: AtomicBool,
    pub(super) published: Mutex<Vec<Arc<[Uuid]>>>,
}

impl TestBus {
    pub(super) fn send(&self, event: &BusEvent) {
        // Not called while the list is locked: a sink may hand the processor to somebody else.
        let sinks = std::mem::take(&mut *self.sinks.lock().unwrap());
        let mut kept: Vec<Sink> = sinks
            .into_iter()
            .filter_map(|sink| match sink(event.clone()) {
                Delivery::Gone => None,
                Delivery::Taken | Delivery::Full => Some(sink),
            })
            .collect();
        self.sinks.lock().unwrap().append(&mut kept);
    }
}

impl Bus for TestBus {
    fn publish(&self, notice: Notice) {
        if let Notice::Metadata(agents) = &notice {
            self.published.lock().unwrap().push(agents.clone());
        }
        if !self.deaf.load(Relaxed) {
            self.send(&BusEvent::Notice(notice));
        }
    }
    fn subscribe(&self, topic: Topic, sink: Sink) {
        assert_eq!(topic, Topic::Metadata);
        self.sinks.lock().unwrap().push(sink);
    }
    fn health(&self) -> BusHealth {
        BusHealth { connected: true, ..BusHealth::default() }
    }
}

/// One engine's batching. Dropping it stops it, in the engine's order.
pub(super) struct Rig {
    pub(super) connections: Connections,
    pub(super) metadata: Metadata,
    pub(super) faulty: Arc<Faulty>,
    pub(super) bus: Arc<TestBus>,
    pub(super) spool_faults: Arc<SpoolFaults>,
    pub(super) crew: Crew,
    pub(super) rt: Rt,
    pub(super) metrics: towpath::metrics::Exposition,
    pub(super) metadata_rooms: Option<MetadataRooms>,
    pub(super) connection_rooms: Option<ConnectionRooms>,
    _lookups: Worker,
}

/// What a rig is made of, where a test wants it otherwise.
pub(super) struct Plan<'a> {
    pub(super) rt: Rt,
    pub(super) faulty: Arc<Faulty>,
    pub(super) spool: Option<&'a Path>,
    /// A spool that another engine had before.
    pub(super) disk: Option<Disk>,
    pub(super) spool_limits: Limits,
    pub(super) connections: ConnectionSettings,
    pub(super) metadata: MetadataSettings,
    pub(super) backends: Vec<Box<dyn Backend>>,
}

pub(super) const LIMITS: Limits = Limits { max_bytes: 1 << 30, min_free: 0, when_full: WhenFull::Refuse };

impl Plan<'_> {
    pub(super) fn new(rt: &Rt) -> Plan<'static> {
        Plan {
            rt: rt.clone(),
            faulty: Faulty::memory(rt),
            spool: None,
            disk: None,
            spool_limits: LIMITS,
            connections: ConnectionSettings::default(),
            metadata: MetadataSettings::default(),
            backends: Vec::new(),
        }
    }

    pub(super) fn start(self) -> Rig {
        let rt = self.rt;
        let crew = Crew::new(&rt);
        let stores: Arc<dyn Stores> = Arc::new(FaultyStores(self.faulty.clone()));
        let mut metrics = Metrics::new();
        let (lookups, worker) = Lookups::start(&crew, "reader-0", stores.clone()).unwrap();
        let bus = Arc::new(TestBus::default());
        let (metadata, metadata_rooms) = Metadata::start(
            self.metadata,
            MetadataOutside {
                crew: &crew,
                stores: stores.clone(),
                bus: bus.clone(),
                lookups: lookups.clone(),
                metrics: &mut metrics,
            },
        )
        .unwrap();
        let inner = match (self.disk, self.spool) {
            (Some(disk), _) => disk,
            (None, None) => Arc::new(Mutex::new(File::memory(self.spool_limits).unwrap())),
            (None, Some(dir)) => {
                Arc::new(Mutex::new(File::open(dir, self.spool_limits, rt.wall()).unwrap().0))
            }
        };
        let spool_faults = Arc::new(SpoolFaults::default());
        let (connections, connection_rooms) = Connections::start(
            self.connections,
            ConnectionOutside {
                crew: &crew,
                stores,
                spool: Box::new(FaultySpool { inner, faults: spool_faults.clone() }),
                durable: true,
                backends: self.backends,
                lookups,
                metrics: &mut metrics,
            },
        )
        .unwrap();
        Rig {
            connections,
            metadata,
            faulty: self.faulty,
            bus,
            spool_faults,
            crew,
            rt,
            metrics: metrics.into_exposition(),
            metadata_rooms: Some(metadata_rooms),
            connection_rooms: Some(connection_rooms),
            _lookups: worker,
        }
    }
}

impl Rig {
    pub(super) fn real() -> Rig {
        Plan::new(&Rt::real()).start()
    }

    /// Waits, on real threads, until something is so; panics with `what` if it never is.
    pub(super) fn until(&self, what: &str, mut is_so: impl FnMut(&Rig) -> bool) {
        let patience = self.rt.now() + 20 * SEC;
        while !is_so(self) {
            assert!(self.rt.now() < patience, "never happened: {what}; {:?}", self.connections.account());
            self.rt.sleep(Duration::from_millis(2));
        }
    }

    /// Stops the connection log and the metadata.
    pub(super) fn stop(&mut self) {
        self.metadata_rooms = None;
        self.connection_rooms = None;
    }

    pub(super) fn balanced(&self) {
        let account = self.connections.account();
        assert!(account.balances(), "{account:?}");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A record without a connection; its number is its id and its time.
pub(super) fn visit(n: u64) -> Record {
    Record::new(id(n), Wall(n as i64 + 1), Kind::WorkspaceApp, Status::Connected)
}

pub(super) fn event(n: u64, connection: u64, status: Status) -> Record {
    let mut record = Record::new(id(n), Wall(n as i64 + 1), Kind::Ssh, status);
    record.connection_id = Some(id(1 << 40 | connection));
    if status == Status::Disconnected {
        record.disconnect_reason = Some(format!("reason {n}"));
        record.code = Some(0);
    }
    record
}

pub(super) fn id(n: u64) -> Uuid {
    Uuid::from_u128(u128::from(n) + 1)
}
