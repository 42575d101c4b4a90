//! The rooms behind the doors, over one store: streams, metadata, the connection log.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::directory::Directory;
use super::probe::{Found, Probe};
use crate::bus::Bus;
use crate::bus::local::LocalBus;
use crate::config::{Config, StoreAt, WhenFull};
use crate::engine::connections::{ConnectionOutside, ConnectionRooms, ConnectionSettings, Connections};
use crate::engine::lookups::Lookups;
use crate::engine::metadata::{Metadata, MetadataOutside, MetadataRooms, MetadataSettings};
use crate::engine::replicas::{ReplicasConfig, ReplicasEngine};
use crate::engine::streams::{Limits, RelayFigures, RelayWays, StreamsConfig, StreamsEngine};
use crate::engine::worker::{Bounds, Crew, Worker};
use crate::metrics::Metrics;
use crate::rt::{Moment, Rt};
use crate::spool;
use crate::store::sqlite::SqliteStores;
use crate::store::{Identity, Stores};
use crate::wire::{Doors, Wire};
use crate::{Code, Error, Result};

/// Everything that runs over the store.
pub(super) struct Parts {
    pub(super) metadata: Metadata,
    pub(super) connections: Connections,
    pub(super) replicas: ReplicasEngine,
    pub(super) streams: StreamsEngine,
    pub(super) store_trouble: Found,
    rooms: Rooms,
}

/// Dropped in this order: those who write last end last, and who they ask after them.
struct Rooms {
    _probe: Worker,
    metadata: MetadataRooms,
    connections: ConnectionRooms,
    _lookups: Worker,
    _bus: Arc<dyn Bus>,
    _stores: Arc<dyn Stores>,
}

impl Parts {
    pub(super) fn start(
        crew: &Crew,
        config: &Config,
        directory: &Directory,
        metrics: &mut Metrics,
        wire: &Arc<dyn Wire>,
        relay_url: Option<String>,
    ) -> Result<Parts> {
        let rt = crew.rt();
        let stores = open_stores(rt, config, directory)?;
        let bus = open_bus(rt, config)?;
        let (lookups, lookups_room) = Lookups::start(crew, "reader-lookups", stores.clone())?;

        let limits = spool::Limits {
            max_bytes: config.spool.max_bytes.bytes(),
            min_free: config.spool.min_free.bytes(),
            when_full: match config.spool.when_full {
                WhenFull::Refuse => spool::WhenFull::Refuse,
                WhenFull::OldestOut => spool::WhenFull::OldestOut,
            },
        };
        let spool = open_spool(rt, directory, limits)?;
        let settings = ConnectionSettings {
            capacity: in_memory(config.connections.entries),
            interval: config.connections.interval,
            accept_timeout: config.spool.accept_timeout,
            ..ConnectionSettings::default()
        };
        let (connections, connection_rooms) = Connections::start(
            settings,
            ConnectionOutside {
                crew,
                stores: stores.clone(),
                spool: Box::new(spool),
                durable: true,
                backends: Vec::new(),
                lookups: lookups.clone(),
                metrics,
            },
        )?;
        let settings = MetadataSettings {
            capacity: in_memory(config.metadata.entries),
            interval: config.metadata.interval,
            bound: in_memory(config.metadata.keys_max),
            ..MetadataSettings::default()
        };
        let (metadata, metadata_rooms) = Metadata::start(
            settings,
            MetadataOutside { crew, stores: stores.clone(), bus: bus.clone(), lookups, metrics },
        )?;
        let me = rt.uuid_v7();
        let replicas =
            ReplicasEngine::start(crew, this_replica(me, relay_url), &*stores, &bus, Some(wire.clone()))?;
        let figures = RelayFigures::describe(metrics);
        // A store that only this process may use has no other replicas.
        let relay = stores.is_shared().then(|| RelayWays {
            wire: wire.clone(),
            replicas: replicas.replicas().clone(),
            figures,
        });
        let limits = stream_limits(config);
        let streams = start_streams(crew, me, &stores, &bus, wire.doors(), relay, limits)?;
        let store_trouble = Found::default();
        let probe = Probe::new(stores.clone(), store_trouble.clone(), rt.now());
        let (probe, _) = Worker::spawn(crew, "probe", Bounds::of(1), |_| probe)?;
        let rooms = Rooms {
            _probe: probe,
            metadata: metadata_rooms,
            connections: connection_rooms,
            _lookups: lookups_room,
            _bus: bus,
            _stores: stores,
        };
        Ok(Parts { metadata, connections, replicas, streams, store_trouble, rooms })
    }

    /// What is held, for a dump.
    pub(super) fn dump(&self) -> Value {
        let log = self.connections.account();
        json!({
            "connection_records": {
                "accepted": log.accepted, "stored": log.stored, "pending": log.pending, "spooled": log.spooled,
            },
            "metadata_pending": self.metadata.pending(),
        })
    }

    /// When everything has to be over.
    pub(super) fn end_by(&self, deadline: Moment) {
        self.rooms.metadata.end_by(deadline);
        self.rooms.connections.end_by(deadline);
    }
}

/// This process, as its peers see it.
fn this_replica(id: Uuid, relay_url: Option<String>) -> ReplicasConfig {
    ReplicasConfig {
        id,
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        relay_url,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn stream_limits(config: &Config) -> Limits {
    Limits {
        lease: config.streams.lease,
        renew_every: config.streams.renew_every,
        producer_silence_max: config.streams.producer_silence,
        ..Limits::default()
    }
}

/// One room a processor; twice as many readers, since catching up is mostly waiting for the store.
fn start_streams(
    crew: &Crew,
    me: Uuid,
    stores: &Arc<dyn Stores>,
    bus: &Arc<dyn Bus>,
    doors: &Doors,
    relay: Option<RelayWays>,
    limits: Limits,
) -> Result<StreamsEngine> {
    let threads = crate::rt::parallelism();
    let config = StreamsConfig {
        doors: Some(doors.clone()),
        relay,
        limits,
        shards: threads,
        readers: 2 * threads,
        writers: threads,
        ..StreamsConfig::new(me, stores.clone(), bus.clone())
    };
    StreamsEngine::start(crew, config)
}

fn in_memory(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn open_stores(rt: &Rt, config: &Config, directory: &Directory) -> Result<Arc<dyn Stores>> {
    let fresh = Identity { store: Uuid::from_bytes(rt.secret()), epoch: Uuid::from_bytes(rt.secret()) };
    let clock = {
        let rt = rt.clone();
        Arc::new(move || rt.wall())
    };
    let opened = |error| Error::from(error).while_("opening the store");
    Ok(match &config.store.url {
        StoreAt::Sqlite => Arc::new(SqliteStores::open(directory.path(), clock, fresh).map_err(opened)?),
        StoreAt::Memory => Arc::new(SqliteStores::in_memory(clock, fresh).map_err(opened)?),
        StoreAt::Postgres(url) => {
            postgres::stores(url, fresh).map_err(|error| error.while_("opening the store"))?
        }
    })
}

fn open_bus(rt: &Rt, config: &Config) -> Result<Arc<dyn Bus>> {
    match &config.store.url {
        StoreAt::Sqlite | StoreAt::Memory => Ok(Arc::new(LocalBus::new())),
        StoreAt::Postgres(url) => postgres::bus(rt, url),
    }
}

/// Damage never stops the start: what was readable is in the new spool, the rest is told.
fn open_spool(rt: &Rt, directory: &Directory, limits: spool::Limits) -> Result<spool::File> {
    let (spool, found) = spool::File::open(directory.path(), limits, rt.wall())
        .map_err(|error| Error::new(Code::Io, error.to_string()).while_("opening the spool"))?;
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

    pub(super) fn stores(url: &str, fresh: Identity) -> Result<Arc<dyn Stores>> {
        Ok(Arc::new(PostgresStores::connect(url, Options::default(), fresh)?))
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

    pub(super) fn stores(_: &str, _: Identity) -> Result<Arc<dyn Stores>> {
        missing()
    }

    pub(super) fn bus(_: &Rt, _: &str) -> Result<Arc<dyn Bus>> {
        missing()
    }
}
