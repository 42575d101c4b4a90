//! A connection begins and ends, told out of order: one row, with the right times and the right reason.
//! `cargo run --example connections` prints the row as it is exported:
//!
//! ```text
//! {…"connect_time":"2026-01-01T00:00:00.000Z"…"disconnect_time":"2026-01-01T00:05:00.000Z"…"left"…}
//! ```

use std::error::Error;

use towpath::codec::connection::{json_line, record_from};
use towpath::{ConnectionQuery, Engine, Part};

fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder().in_memory().only(&[Part::Connections]).start()?;
    let log = engine.connections();

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
