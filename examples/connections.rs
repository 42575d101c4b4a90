//! A connection begins and ends, told out of order: one row, with the right times and the right reason.
//! `cargo run --example connections` prints the row as it is exported.

use std::error::Error;
use std::sync::Arc;

use towpath::codec::connection::{json_line, record_from};
use towpath::engine::connections::{ConnectionOutside, ConnectionSettings, Connections};
use towpath::engine::lookups::Lookups;
use towpath::engine::worker::Crew;
use towpath::metrics::Metrics;
use towpath::rt::Rt;
use towpath::spool::{File, Limits};
use towpath::store::connections::ConnectionQuery;
use towpath::store::sqlite::SqliteStores;
use towpath::store::{Identity, Stores};

fn main() -> Result<(), Box<dyn Error>> {
    let (rt, mut metrics) = (Rt::real(), Metrics::new());
    let (crew, clock) = (Crew::new(&rt), rt.clone());
    let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
    let stores: Arc<dyn Stores> = Arc::new(SqliteStores::in_memory(Arc::new(move || clock.wall()), fresh)?);
    let (lookups, _reader) = Lookups::start(&crew, "reader", stores.clone())?;
    let (spool, backends) = (Box::new(File::memory(Limits::default())?), Vec::new());
    let metrics = &mut metrics;
    let outside =
        ConnectionOutside { crew: &crew, stores, spool, durable: false, backends, lookups, metrics };
    let (log, _rooms) = Connections::start(ConnectionSettings::default(), outside)?;

    let who = r#""type":"ssh","connection_id":"00000000-0000-4000-8000-000000000007","user_agent":"OpenSSH""#;
    let ended =
        r#""status":"disconnected","time":"2026-01-01T00:05:00Z","code":0,"disconnect_reason":"left""#;
    let began = r#""status":"connected","time":"2026-01-01T00:00:00Z""#;
    for told in [ended, began] {
        log.record(record_from(format!("{{{who},{told}}}").as_bytes())?)?;
    }
    log.flush()?;
    log.export(ConnectionQuery::default(), |row| {
        print!("{}", json_line(&row));
        Ok(())
    })?;
    Ok(())
}
