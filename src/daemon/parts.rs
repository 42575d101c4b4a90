//! The engine behind the doors, as the settings want it, and the probe that watches its store.

use serde_json::{Value, json};

use super::backends;
use super::probe::{Found, Probe};
use crate::Result;
use crate::config::{Config, StoreAt, WhenFull};
use crate::engine::builder::{Builder, Engine};
use crate::engine::connections::ConnectionSettings;
use crate::engine::metadata::MetadataSettings;
use crate::engine::retention::Ages;
use crate::engine::worker::{Bounds, Crew, Worker};
use crate::metrics::Metrics;
use crate::spool;
use crate::store::metadata::Sight;

/// Everything that runs over the store. Dropped in this order: the probe asks the engine's store.
pub(super) struct Parts {
    _probe: Worker,
    pub(super) store_trouble: Found,
    pub(super) engine: Engine,
}

impl Parts {
    pub(super) fn start(crew: &Crew, builder: Builder, metrics: &mut Metrics) -> Result<Parts> {
        let engine = builder.start_among(crew, metrics)?;
        let store_trouble = Found::default();
        let probe = Probe::new(engine.stores().clone(), store_trouble.clone(), crew.rt().now());
        let (probe, _) = Worker::spawn(crew, "probe", Bounds::of(1), |_| probe)?;
        Ok(Parts { _probe: probe, store_trouble, engine })
    }

    /// What is held, for a dump.
    pub(super) fn dump(&self) -> Value {
        let log = self.engine.connections().account();
        json!({
            "connection_records": {
                "accepted": log.accepted, "stored": log.stored, "pending": log.pending, "spooled": log.spooled,
            },
            "metadata_pending": self.engine.metadata().pending(),
        })
    }
}

/// The engine these settings ask for; others reach its relay at `relay_url`, if anywhere.
pub(super) fn builder(config: &Config, relay_url: Option<String>) -> Result<Builder> {
    let spool = spool::Limits {
        max_bytes: config.spool.max_bytes.bytes(),
        min_free: config.spool.min_free.bytes(),
        when_full: match config.spool.when_full {
            WhenFull::Refuse => spool::WhenFull::Refuse,
            WhenFull::OldestOut => spool::WhenFull::OldestOut,
        },
    };
    let connections = ConnectionSettings {
        capacity: in_memory(config.connections.entries),
        interval: config.connections.interval,
        accept_timeout: config.spool.accept_timeout,
        ..ConnectionSettings::default()
    };
    let metadata = MetadataSettings {
        capacity: in_memory(config.metadata.entries),
        interval: config.metadata.interval,
        bound: in_memory(config.metadata.keys_max),
        sight: if config.metadata.register { Sight::Register } else { Sight::UpdateOnly },
        ..MetadataSettings::default()
    };
    let ages = Ages {
        connections: config.connections.max_age.on().copied(),
        metadata: config.metadata.max_age.on().copied(),
    };
    let mut builder = Engine::builder()
        .data(&config.store.data)
        .streams(super::limits::of_streams(config))
        .spool(spool)
        .connections(connections)
        .metadata(metadata)
        .metadata_unlogged(config.metadata.unlogged)
        .own_links(config.connections.own)
        .ages(ages);
    for backend in backends::named_by(config)? {
        builder = builder.backend_boxed(backend);
    }
    let builder = match relay_url {
        Some(url) => builder.relay_url(url),
        None => builder,
    };
    match &config.store.url {
        StoreAt::Sqlite => Ok(builder),
        StoreAt::Memory => Ok(builder.in_memory()),
        StoreAt::Postgres(url) => Ok(builder.postgres(url)),
    }
}

fn in_memory(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
