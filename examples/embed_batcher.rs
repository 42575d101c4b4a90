//! Ten agents report a hundred times each, and a watcher sees the newest: 1,000 reports are one write.
//! `cargo run --example metadata` prints what the watcher saw and how many values had to be written.

use std::error::Error;
use std::sync::Arc;

use towpath::bus::local::LocalBus;
use towpath::engine::lookups::Lookups;
use towpath::engine::metadata::{Metadata, MetadataOutside, MetadataSettings};
use towpath::engine::worker::Crew;
use towpath::metrics::Metrics;
use towpath::rt::Rt;
use towpath::store::sqlite::SqliteStores;
use towpath::store::{Identity, Stores};

fn main() -> Result<(), Box<dyn Error>> {
    let (rt, mut metrics) = (Rt::real(), Metrics::new());
    let (crew, clock) = (Crew::new(&rt), rt.clone());
    let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
    let stores: Arc<dyn Stores> = Arc::new(SqliteStores::in_memory(Arc::new(move || clock.wall()), fresh)?);
    let (lookups, _reader) = Lookups::start(&crew, "reader", stores.clone())?;
    let bus = Arc::new(LocalBus::new());
    let outside = MetadataOutside { crew: &crew, stores, bus, lookups, metrics: &mut metrics };
    let (metadata, _rooms) = Metadata::start(MetadataSettings::default(), outside)?;

    let agents: Vec<_> = (0..10).map(|_| rt.uuid_v4()).collect();
    for round in 1..=100 {
        for agent in &agents {
            metadata.report(*agent, &[("load", &format!("{round}%"), "")])?;
        }
    }
    println!("1000 reports, {} values to write", metadata.pending());
    metadata.flush()?;
    let seen = metadata.watch(agents[3])?.wait().ok_or("the engine ended")?;
    println!("the watcher saw {} = {}", seen.values[0].key, seen.values[0].value);
    Ok(())
}
