//! The engine's own records, which never wait; the backends of records with receipts; retention.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use towpath::engine::backends::Backend;
use towpath::engine::connections::ConnectionSettings;
use towpath::engine::lookups::Lookups;
use towpath::engine::metadata::MetadataSettings;
use towpath::engine::retention::{self, Ages};
use towpath::engine::visits::{Caller, Visits};
use towpath::metrics::Metrics;
use towpath::rt::Rt;
use towpath::state::connection::{Kind, Row};
use towpath::store::connections::ConnectionQuery;
use towpath::testing::{Sim, Test};

use super::rig::{Plan, Rig, SEC, id, visit};

fn calmly(scenario: impl FnOnce(&Test) + Send + 'static) {
    Sim::new(1)
        .stalls(0, 1)
        .run(|t| {
            scenario(t);
            Ok::<(), towpath::Error>(())
        })
        .assert_ok();
}

fn caller() -> Caller {
    Caller { ip: Some([127, 0, 0, 1].into()), user_agent: Some("curl".into()), principal: None }
}

#[test]
fn a_visit_is_one_row_with_its_reason_and_a_dropped_one_was_stopped() {
    let rig = Rig::real();
    let visits = Visits::in_log(&rig.connections);
    let mut ended = visits.begin(Kind::Session, &caller(), &[("client", "a")]);
    ended.end("goodbye");
    ended.end("and again");
    drop(visits.begin(Kind::Pipe, &caller(), &[]));
    // Without a reason a row that has ended would look as if nobody knew.
    visits.begin(Kind::Stream, &caller(), &[]).end("");
    rig.connections.flush().unwrap();
    let mut told: Vec<(Kind, String)> = rig
        .faulty
        .all()
        .iter()
        .map(|row| (row.first.kind, row.disconnect_reason().unwrap_or("none").to_owned()))
        .collect();
    told.sort();
    let of = |kind, reason: &str| (kind, reason.to_owned());
    assert_eq!(told, [of(Kind::Stream, "closed"), of(Kind::Session, "goodbye"), of(Kind::Pipe, "stopped")]);
    assert!(rig.faulty.all().iter().all(|row| row.disconnect_time() >= Some(row.connect_time)));
}

#[test]
fn sim_own_records_beyond_the_bound_go_to_the_spool_and_nobody_waits() {
    calmly(|t| {
        let connections = ConnectionSettings { bound: 10, capacity: 4, ..ConnectionSettings::default() };
        let rig = Plan { connections, ..Plan::new(&t.rt()) }.start();
        rig.faulty.set_away(true);
        let before = t.now();
        for n in 0..100 {
            rig.connections.offer(visit(n));
        }
        assert_eq!(t.now(), before, "nobody waited");
        t.advance(2 * SEC);
        let account = rig.connections.account();
        assert_eq!(account.accepted, 100, "{account:?}");
        assert!(account.spooled > 0, "{account:?}");
        rig.balanced();
        rig.faulty.set_away(false);
        t.advance(60 * SEC);
        assert_eq!(rig.connections.account().stored, 100);
        assert!(rig.metrics.text().contains("towpath_connections_own_lost_total 0"));
    });
}

#[test]
fn sim_own_records_that_neither_memory_nor_disk_can_take_are_counted() {
    calmly(|t| {
        let connections = ConnectionSettings { bound: 10, capacity: 4, ..ConnectionSettings::default() };
        let rig = Plan { connections, ..Plan::new(&t.rt()) }.start();
        rig.faulty.set_away(true);
        rig.spool_faults.full.store(true, Relaxed);
        for n in 0..500 {
            rig.connections.offer(visit(n));
        }
        t.advance(2 * SEC);
        let accepted = rig.connections.account().accepted;
        let lost = 500 - accepted;
        assert!(lost > 0, "memory has a bound");
        let text = rig.metrics.text();
        assert!(text.contains(&format!("towpath_connections_own_lost_total {lost}\n")), "{lost}: {text}");
        rig.balanced();
        assert!(rig.connections.spool_trouble().is_some(), "and readiness knows");
        rig.spool_faults.full.store(false, Relaxed);
        rig.faulty.set_away(false);
        t.advance(60 * SEC);
        assert_eq!(rig.connections.account().stored, accepted);
        assert!(rig.connections.spool_trouble().is_none(), "and knows that it is over");
    });
}

#[test]
fn sim_a_record_with_a_receipt_is_in_the_database_at_once() {
    calmly(|t| {
        let rig = Plan::new(&t.rt()).start();
        let before = t.now();
        for n in 0..3 {
            rig.connections.record_durable(visit(n)).unwrap();
        }
        // No interval is waited for: nothing but the work itself lies between the receipt and the row.
        t.run_until_idle();
        assert_eq!(rig.connections.account().stored, 3);
        rig.connections.record_all_durable((3..1_003).map(visit).collect()).unwrap();
        let writes = rig.faulty.writes.load(Relaxed);
        t.run_until_idle();
        assert_eq!(rig.connections.account().stored, 1_003);
        assert!(rig.faulty.writes.load(Relaxed) - writes <= 2, "and records that come together go together");
        assert!(t.now().since(before) < Duration::from_millis(50), "{:?}", t.now().since(before));
    });
}

struct Counts(Arc<AtomicU64>);

impl Backend for Counts {
    fn name(&self) -> &'static str {
        "counts"
    }
    fn write(&mut self, rows: &[Row]) -> towpath::Result<()> {
        self.0.fetch_add(rows.len() as u64, Relaxed);
        Ok(())
    }
}

#[test]
fn backends_get_records_with_receipts_once_they_are_kept_and_refused_ones_never() {
    let seen = Arc::new(AtomicU64::new(0));
    let backends: Vec<Box<dyn Backend>> = vec![Box::new(Counts(seen.clone()))];
    let rig = Plan { backends, ..Plan::new(&Rt::real()) }.start();
    rig.spool_faults.full.store(true, Relaxed);
    rig.connections.record_durable(visit(1)).unwrap_err();
    rig.spool_faults.full.store(false, Relaxed);
    rig.connections.record_durable(visit(2)).unwrap();
    rig.connections.record_all_durable(vec![visit(3), visit(4)]).unwrap();
    rig.until("the backend has three", |_| seen.load(Relaxed) == 3);
    assert_eq!(seen.load(Relaxed), 3, "and never the one that was refused");
}

#[test]
fn sim_old_rows_are_thrown_out_some_at_a_time_and_young_ones_stay() {
    calmly(|t| {
        let rt = t.rt();
        let metadata = MetadataSettings { interval: SEC, ..MetadataSettings::default() };
        let rig = Plan { metadata, ..Plan::new(&rt) }.start();
        let (lookups, _reader) = Lookups::start(&rig.crew, "reader-retention", rig.faulty.inner()).unwrap();
        let ages = Ages { connections: Some(3_600 * SEC), metadata: Some(1_800 * SEC) };
        let mut metrics = Metrics::new();
        let _retention = retention::start(&rig.crew, ages, lookups, &mut metrics).unwrap();
        let metrics = metrics.into_exposition();
        let began = rt.wall();
        for n in 0..2_500 {
            let mut record = visit(n);
            record.time = began + Duration::from_micros(n);
            rig.connections.record(record).unwrap();
            rig.metadata.report(id(n), &[("k", "v", "")]).unwrap();
        }
        t.advance(1_700 * SEC);
        let late = rt.wall();
        let mut record = visit(9_999);
        record.time = late;
        rig.connections.record(record).unwrap();
        rig.metadata.report(id(9_999), &[("k", "v", "")]).unwrap();
        t.advance(60 * SEC);
        let connections = |rig: &Rig| rig.connections.count(ConnectionQuery::default(), 10_000).unwrap().rows;
        let values = |n| rig.metadata.get(id(n)).unwrap().values.len();
        assert_eq!((connections(&rig), values(0), values(9_999)), (2_501, 1, 1), "nothing is old yet");
        t.advance(240 * SEC);
        assert_eq!((connections(&rig), values(0), values(2_499), values(9_999)), (2_501, 0, 0, 1));
        t.advance(1_800 * SEC);
        assert_eq!(connections(&rig), 1);
        assert_eq!(rig.connections.query(ConnectionQuery::default()).unwrap().rows[0].id(), id(9_999));
        let text = metrics.text();
        assert!(text.contains("towpath_connections_pruned_total 2500"), "{text}");
        assert!(text.contains("towpath_metadata_pruned_total 2501"), "{text}");
    });
}
