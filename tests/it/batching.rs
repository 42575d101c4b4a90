//! The connection log and the metadata on real threads: each case that was a bug somewhere.
//!
//! | case | test |
//! |---|---|
//! | empty flush writes nothing and notifies nothing | `an_empty_flush_writes_nothing_and_notifies_nobody` |
//! | flush exactly at capacity, not one before | `sim_a_flush_comes_exactly_at_capacity_and_not_one_before` |
//! | capacity flush restarts the timer | `sim_a_capacity_flush_restarts_the_timer` |
//! | older timestamp ignored in any order | `any_order_of_metadata_leaves_the_newest` in store_conformance, and in state/metadata |
//! | two replicas, opposite order: no deadlock | `two_replicas_that_write_the_same_keys_in_opposite_order_…` in store_postgres |
//! | 0, 1, 363, 364, 727 ids per notice | `notices_of_0_1_363_364_and_727_agents_round_trip` in state/metadata, `changed_agents_are_named_in_chunks_…` |
//! | 20 threads, same keys | `twenty_threads_report_the_same_keys_and_the_newest_of_each_is_stored` |
//! | write fails before commit, after commit, hangs | `a_write_that_fails_before_…`, `…_after_its_commit_…`, `while_a_write_hangs_…` |
//! | retry queue overflows into the spool and comes back in order | `the_retry_queue_overflows_into_the_spool_and_comes_back_in_order` |
//! | one poison row in 1,000 | `one_poison_row_in_a_thousand_is_buried_and_the_others_are_stored` |
//! | close during a write in flight | `closing_while_a_write_is_in_flight_loses_nothing` |
//! | record racing close | `a_record_that_races_the_close_is_stored_or_refused` |
//! | kill -9 at random moments | `fault_every_receipt_outlives_a_kill_exactly_once`, `sim_every_receipt_outlives_two_power_cuts_once` |
//! | database away at 500 records a second | `fault_while_the_database_is_away_memory_stays_flat_and_all_is_stored_after` |
//! | disk full while spooling | `a_full_disk_is_an_answer_and_nothing_accepted_is_lost` |
//! | spool file with flipped bits | `every_flipped_bit_is_harmless_or_reported_…` in spool/file, `damage_to_the_spool_shows_in_readiness_…` |
//! | connect→disconnect in one batch and in two | `records_are_stored_and_…_one_batch`, `a_connection_is_one_row_from_two_batches_in_either_order` |
//! | disconnect before connect, both orders of time | `a_disconnect_before_its_connect_…`, `a_connect_that_is_later_…` in state/connection |
//! | two disconnects | `of_two_disconnects_in_two_batches_the_earlier_is_kept_as_one_unit` |
//! | web events never merged | `web_events_are_never_merged` |
//! | backends: one fails, one hangs, one panics | `of_the_backends_one_fails_one_hangs_one_panics_and_the_others_get_everything` |

mod kills;
mod own;
mod rig;
mod sim;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rig::{Fault, LIMITS, Plan, Rig, SEC, event, id, timeout, unreachable_now, visit};
use towpath::engine::backends::{Backend, LinesBackend};
use towpath::engine::connections::ConnectionSettings;
use towpath::engine::metadata::{MetadataSettings, ReportError};
use towpath::rt::Rt;
use towpath::spool::Limits;
use towpath::state::connection::{Row, Status};
use towpath::state::retry;
use towpath::store::connections::ConnectionQuery;
use towpath::{AgentValues, Code, Error};
use uuid::Uuid;

fn ids(rows: &[Row]) -> BTreeSet<Uuid> {
    rows.iter().map(Row::id).collect()
}

fn numbered(range: std::ops::Range<u64>) -> BTreeSet<Uuid> {
    range.map(id).collect()
}

#[test]
fn an_empty_flush_writes_nothing_and_notifies_nobody() {
    let rig = Rig::real();
    rig.metadata.flush().unwrap();
    rig.connections.flush().unwrap();
    assert_eq!(rig.faulty.writes.load(Relaxed), 0);
    assert_eq!(rig.faulty.metadata_writes.load(Relaxed), 0);
    assert!(rig.bus.published.lock().unwrap().is_empty());
}

#[test]
fn records_are_stored_and_a_connection_is_one_row_from_one_batch() {
    let rig = Rig::real();
    rig.connections.record(event(1, 7, Status::Connected)).unwrap();
    rig.connections.record(event(5, 7, Status::Disconnected)).unwrap();
    rig.connections.flush().unwrap();
    let rows = rig.faulty.all();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].id(), rows[0].disconnect_reason(), rows[0].code()),
        (id(1), Some("reason 5"), Some(0))
    );
    let account = rig.connections.account();
    assert_eq!((account.accepted, account.stored, account.merged, account.pending), (2, 1, 1, 0));
}

#[test]
fn a_connection_is_one_row_from_two_batches_in_either_order() {
    for turned in [false, true] {
        let rig = Rig::real();
        let mut events = vec![event(1, 7, Status::Connected), event(5, 7, Status::Disconnected)];
        if turned {
            events.reverse();
        }
        for event in events {
            rig.connections.record(event).unwrap();
            rig.connections.flush().unwrap();
        }
        let rows = rig.faulty.all();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].id(), rows[0].disconnect_time().map(|at| at.0)), (id(1), Some(6)));
    }
}

#[test]
fn of_two_disconnects_in_two_batches_the_earlier_is_kept_as_one_unit() {
    for turned in [false, true] {
        let rig = Rig::real();
        let mut events = vec![event(5, 7, Status::Disconnected), event(9, 7, Status::Disconnected)];
        if turned {
            events.reverse();
        }
        rig.connections.record(event(1, 7, Status::Connected)).unwrap();
        for event in events {
            rig.connections.record(event).unwrap();
            rig.connections.flush().unwrap();
        }
        let rows = rig.faulty.all();
        assert_eq!((rows.len(), rows[0].disconnect_reason()), (1, Some("reason 5")));
    }
}

#[test]
fn web_events_are_never_merged() {
    let rig = Rig::real();
    rig.connections.record(visit(1)).unwrap();
    rig.connections.record(visit(2)).unwrap();
    rig.connections.flush().unwrap();
    assert_eq!(ids(&rig.faulty.all()), numbered(1..3));
}

#[test]
fn a_write_that_fails_before_its_commit_is_tried_again() {
    let rig = Rig::real();
    rig.faulty.next(Fault::Before(timeout()));
    rig.connections.record(visit(1)).unwrap();
    rig.connections.flush().unwrap();
    rig.until("the row is stored", |rig| rig.connections.account().stored == 1);
    assert_eq!(ids(&rig.faulty.all()), numbered(1..2));
    rig.balanced();
}

#[test]
fn a_write_that_fails_after_its_commit_is_tried_again_and_not_doubled() {
    let rig = Rig::real();
    rig.faulty.next(Fault::After(timeout()));
    rig.connections.record(visit(1)).unwrap();
    rig.connections.record(event(2, 7, Status::Connected)).unwrap();
    rig.connections.flush().unwrap();
    rig.until("the rows are stored", |rig| rig.connections.account().stored == 2);
    assert_eq!(rig.faulty.all().len(), 2);
    assert_eq!(rig.connections.account().dead_lettered, 0);
    rig.balanced();
}

#[test]
fn while_a_write_hangs_records_are_taken_and_all_are_stored_in_the_end() {
    let rig = Rig::real();
    let (go, wait) = rig.rt.channel("go", 1);
    let (there, arrived) = rig.rt.channel("there", 1);
    rig.faulty.next(Fault::Hold(wait, there));
    rig.connections.record(visit(1)).unwrap();
    let flusher = {
        let connections = rig.connections.clone();
        rig.rt.spawn("flusher", move || connections.flush()).unwrap()
    };
    arrived.recv().unwrap();
    for n in 2..500 {
        rig.connections.record(visit(n)).unwrap();
    }
    assert_eq!(rig.connections.account().pending, 499);
    go.send(()).unwrap();
    flusher.join().unwrap().unwrap();
    rig.connections.flush().unwrap();
    assert_eq!(ids(&rig.faulty.all()), numbered(1..500));
    rig.balanced();
}

#[test]
fn one_poison_row_in_a_thousand_is_buried_and_the_others_are_stored() {
    let rig = Rig::real();
    rig.faulty.poison.lock().unwrap().insert(id(500));
    for n in 0..1_000 {
        rig.connections.record(visit(n)).unwrap();
    }
    rig.connections.flush().unwrap();
    rig.until("all is settled", |rig| rig.connections.account().pending == 0);
    let account = rig.connections.account();
    assert_eq!((account.stored, account.dead_lettered), (999, 1));
    let letters = rig.connections.dead_letters(None, 10).unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].id, id(500));
    assert!(letters[0].error.contains("constraint"), "{}", letters[0].error);
    assert!(serde_json::from_str::<serde_json::Value>(&letters[0].record).is_ok());
    let splits = rig.metrics.text();
    assert!(
        splits.contains("towpath_connections_splits_total 10")
            || splits.contains("towpath_connections_splits_total 9")
    );
    rig.balanced();
}

fn small_queue() -> ConnectionSettings {
    ConnectionSettings {
        capacity: 10,
        retry: retry::Settings { batches: 2, probe: Duration::from_millis(50), ..retry::Settings::default() },
        ..ConnectionSettings::default()
    }
}

#[test]
fn the_retry_queue_overflows_into_the_spool_and_comes_back_in_order() {
    let rig = Plan { connections: small_queue(), ..Plan::new(&Rt::real()) }.start();
    rig.faulty.set_away(true);
    for n in 0..100 {
        rig.connections.record(visit(n)).unwrap();
        if n % 10 == 9 {
            rig.connections.flush().unwrap();
            rig.until("the batch is placed", |rig| {
                let account = rig.connections.account();
                account.pending <= 20 && account.pending + account.spooled == n + 1
            });
        }
    }
    let account = rig.connections.account();
    assert_eq!((account.pending, account.spooled), (20, 80));
    rig.faulty.set_away(false);
    rig.until("all is stored", |rig| rig.connections.account().stored == 100);
    assert_eq!(*rig.faulty.stored.lock().unwrap(), (0..100).map(id).collect::<Vec<_>>());
    rig.balanced();
}

#[test]
fn a_receipt_means_that_the_record_outlives_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let rt = Rt::real();
    let rig = Plan { spool: Some(dir.path()), ..Plan::new(&rt) }.start();
    rig.faulty.set_away(true);
    for n in 0..20 {
        assert_eq!(rig.connections.record_durable(visit(n)).unwrap(), id(n));
    }
    assert_eq!(rig.connections.account().spooled, 20);
    drop(rig);
    let rig = Plan { spool: Some(dir.path()), ..Plan::new(&rt) }.start();
    rig.until("the spool is sent", |rig| rig.connections.account().spooled == 0);
    assert_eq!(ids(&rig.faulty.all()), numbered(0..20));
    assert_eq!(rig.connections.account().stored, 20);
    rig.balanced();
}

#[test]
fn a_durable_record_is_stored_without_waiting_for_the_interval() {
    let rig = Rig::real();
    rig.connections.record_durable(event(1, 7, Status::Connected)).unwrap();
    rig.connections.record_durable(event(5, 7, Status::Disconnected)).unwrap();
    rig.until("the spool is sent", |rig| rig.connections.account().spooled == 0);
    let rows = rig.faulty.all();
    assert_eq!((rows.len(), rows[0].disconnect_reason()), (1, Some("reason 5")));
    rig.balanced();
}

#[test]
fn a_poison_row_in_the_spool_is_buried_and_does_not_hold_up_the_others() {
    let rig = Rig::real();
    rig.faulty.poison.lock().unwrap().insert(id(7));
    let records = (0..50).map(visit).collect();
    rig.connections.record_all_durable(records).unwrap();
    rig.until("the spool is sent", |rig| rig.connections.account().spooled == 0);
    let account = rig.connections.account();
    assert_eq!((account.stored, account.dead_lettered), (49, 1));
    rig.balanced();
}

#[test]
fn a_full_disk_is_an_answer_and_nothing_accepted_is_lost() {
    let settings =
        ConnectionSettings { bound: 100, accept_timeout: Duration::from_millis(100), ..small_queue() };
    let rig = Plan { connections: settings, ..Plan::new(&Rt::real()) }.start();
    rig.faulty.set_away(true);
    rig.spool_faults.full.store(true, Relaxed);
    assert_eq!(rig.connections.record_durable(visit(9_999)).unwrap_err().code(), Code::Full);
    let mut taken = 0;
    let refused = loop {
        match rig.connections.record(visit(taken)) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100_000, "memory has no bound");
    };
    assert_eq!(refused.code(), Code::Full, "{refused}");
    assert_eq!(rig.connections.account().accepted, taken);
    rig.spool_faults.full.store(false, Relaxed);
    rig.until("the spool takes what memory has no room for", |rig| rig.connections.account().spooled > 0);
    rig.faulty.set_away(false);
    rig.connections.flush().unwrap();
    rig.until("all is stored", |rig| rig.connections.account().stored == taken);
    assert_eq!(ids(&rig.faulty.all()), numbered(0..taken));
    rig.balanced();
}

#[test]
fn a_full_spool_throws_the_oldest_out_only_where_that_was_chosen() {
    let spool_limits = Limits { max_bytes: 4_000, when_full: towpath::spool::WhenFull::OldestOut, ..LIMITS };
    let rig = Plan { spool_limits, ..Plan::new(&Rt::real()) }.start();
    rig.faulty.set_away(true);
    for n in 0..50 {
        rig.connections.record_durable(visit(n)).unwrap();
    }
    let account = rig.connections.account();
    assert_eq!(account.spooled + account.evicted, 50);
    assert!(account.evicted > 0);
    rig.balanced();
    rig.faulty.set_away(false);
    rig.until("the rest is stored", |rig| rig.connections.account().spooled == 0);
    assert_eq!(ids(&rig.faulty.all()), numbered(account.evicted..50), "the newest stay");
    rig.balanced();
}

#[test]
fn closing_while_a_write_is_in_flight_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Plan { spool: Some(dir.path()), ..Plan::new(&Rt::real()) }.start();
    let (go, wait) = rig.rt.channel("go", 1);
    let (there, arrived) = rig.rt.channel("there", 1);
    rig.faulty.next(Fault::Hold(wait, there));
    rig.faulty.next(Fault::Before(unreachable_now()));
    for n in 0..10 {
        rig.connections.record(visit(n)).unwrap();
    }
    let connections = rig.connections.clone();
    let flusher = rig.rt.spawn("flusher", move || connections.flush()).unwrap();
    arrived.recv().unwrap();
    for n in 10..20 {
        rig.connections.record(visit(n)).unwrap();
    }
    let opener = rig.rt.spawn("opener", move || go.send(())).unwrap();
    rig.stop();
    opener.join().unwrap().unwrap();
    drop(flusher.join());
    let account = rig.connections.account();
    assert_eq!((account.accepted, account.pending), (20, 0), "{account:?}");
    assert_eq!(account.stored + account.spooled, 20, "{account:?}");
    rig.balanced();
    assert_eq!(rig.connections.record(visit(99)).unwrap_err().code(), Code::Stopped);
    assert_eq!(rig.connections.record_durable(visit(99)).unwrap_err().code(), Code::Stopped);
}

#[test]
fn a_record_that_races_the_close_is_stored_or_refused() {
    for round in 0..10 {
        let mut rig = Rig::real();
        let taken = Arc::new(AtomicU64::new(0));
        let producers: Vec<_> = (0..4u64)
            .map(|producer| {
                let (connections, taken) = (rig.connections.clone(), taken.clone());
                let work = move || {
                    for n in 0..2_000 {
                        match connections.record(visit(producer << 32 | n)) {
                            Ok(()) => _ = taken.fetch_add(1, Relaxed),
                            Err(error) => return Some(error.code()),
                        }
                    }
                    None
                };
                rig.rt.spawn("producer", work).unwrap()
            })
            .collect();
        while taken.load(Relaxed) < 400 * round {
            std::thread::yield_now();
        }
        rig.stop();
        for producer in producers {
            assert!(matches!(producer.join().unwrap(), None | Some(Code::Stopped)));
        }
        let account = rig.connections.account();
        assert_eq!(account.accepted, taken.load(Relaxed));
        assert_eq!(account.stored, account.accepted, "{account:?}");
        assert_eq!(rig.faulty.all().len() as u64, account.stored);
    }
}

type Writes = Box<dyn FnMut(&[Row]) -> towpath::Result<()> + Send>;

struct Odd {
    name: &'static str,
    write: Writes,
    closed: Arc<AtomicBool>,
}

impl Backend for Odd {
    fn name(&self) -> &'static str {
        self.name
    }
    fn write(&mut self, rows: &[Row]) -> towpath::Result<()> {
        (self.write)(rows)
    }
    fn close(&mut self) -> towpath::Result<()> {
        self.closed.store(true, Relaxed);
        Ok(())
    }
}

#[test]
fn of_the_backends_one_fails_one_hangs_one_panics_and_the_others_get_everything() {
    let rt = Rt::real();
    let (go, wait) = rt.channel::<()>("go", 1);
    let good = Arc::new(AtomicU64::new(0));
    let closed = Arc::new(AtomicBool::new(false));
    let odd =
        |name, write: Writes| -> Box<dyn Backend> { Box::new(Odd { name, write, closed: closed.clone() }) };
    let counted = good.clone();
    let refused = Arc::new(AtomicU64::new(0));
    let refuses = refused.clone();
    let hung = Arc::new(AtomicBool::new(false));
    let hangs = hung.clone();
    let backends = vec![
        odd(
            "fails",
            Box::new(move |_| {
                refuses.fetch_add(1, Relaxed);
                Err(Error::new(Code::Io, "no"))
            }),
        ),
        odd(
            "hangs",
            Box::new(move |_| {
                hangs.store(true, Relaxed);
                wait.recv().map_err(|_| Error::new(Code::Io, "let go"))
            }),
        ),
        odd("panics", Box::new(|_| panic!("a backend of somebody else's"))),
        odd(
            "good",
            Box::new(move |rows| {
                counted.fetch_add(rows.len() as u64, Relaxed);
                Ok(())
            }),
        ),
    ];
    let mut rig = Plan { backends, ..Plan::new(&rt) }.start();
    // Let go of before the rig is, should an assertion fail: its end waits for all backends.
    let go = go;
    for n in 0..100 {
        rig.connections.record(visit(n)).unwrap();
        rig.connections.flush().unwrap();
        if n == 0 {
            // So that it holds this one, and its queue the next: each has a thread of its own.
            rig.until("the hanging one hangs", |_| hung.load(Relaxed));
        }
        // Where a panic takes its time to be printed, threads that do nothing wrong may not run for longer than
        // their queues are long.
        rig.until("the good one has all so far", |_| good.load(Relaxed) == n + 1);
        rig.until("the failing one has refused all so far", |_| refused.load(Relaxed) == n + 1);
    }
    rig.until("the failing one has failed at all", |rig| {
        rig.metrics.text().contains(r#"towpath_backend_failures_total{backend="fails"} 100"#)
    });
    assert_eq!(rig.connections.account().stored, 100);
    assert_eq!(rig.crew.poisoned(), None, "its panic is not the engine's");
    let text = rig.metrics.text();
    assert!(text.contains(r#"towpath_backend_dropped_total{backend="hangs"} 3"#), "{text}");
    drop(go);
    rig.stop();
    assert!(closed.load(Relaxed));
}

#[test]
fn lines_are_written_and_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("connections.jsonl");
    let mut backend = LinesBackend::new(&path, 2_000, 2);
    for n in 0..30 {
        backend.write(&[Row::from(visit(n))]).unwrap();
    }
    backend.close().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["connections.jsonl", "connections.jsonl.1", "connections.jsonl.2"]);
    let mut last = None;
    for name in names.iter().rev() {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(text.len() <= 2_000);
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(last.replace(row["id"].as_str().unwrap().to_owned()).as_deref() < row["id"].as_str());
        }
    }
    assert_eq!(last, Some(id(29).to_string()));
}

#[test]
fn queries_page_newest_first_and_an_export_sees_everything_once() {
    let rig = Rig::real();
    for n in 0..2_500 {
        rig.connections.record(visit(n)).unwrap();
    }
    rig.connections.flush().unwrap();
    rig.until("all is stored", |rig| rig.connections.account().stored == 2_500);
    let page = rig.connections.query(ConnectionQuery::default()).unwrap();
    assert_eq!((page.rows.len(), page.rows[0].id()), (100, id(2_499)));
    let next =
        rig.connections.query(ConnectionQuery { after: page.next, ..ConnectionQuery::default() }).unwrap();
    assert_eq!(next.rows[0].id(), id(2_399));
    let mut seen = Vec::new();
    let count = rig
        .connections
        .export(ConnectionQuery::default(), |row| {
            seen.push(row.id());
            Ok(())
        })
        .unwrap();
    assert_eq!(count, 2_500);
    assert_eq!(seen, (0..2_500).rev().map(id).collect::<Vec<_>>());
    assert_eq!(rig.connections.count(ConnectionQuery::default(), 1_000).unwrap().rows, 1_000);
    let pruned = rig.connections.prune(towpath::rt::Wall(1_001)).unwrap();
    assert_eq!(pruned, 1_000);
}

#[test]
fn twenty_threads_report_the_same_keys_and_the_newest_of_each_is_stored() {
    let rig = Rig::real();
    let agent = id(7);
    let threads: Vec<_> = (0..20)
        .map(|thread| {
            let metadata = rig.metadata.clone();
            let work = move || {
                for n in 0..200 {
                    let value = format!("{thread}/{n}");
                    metadata
                        .report(agent, &[("a", &value, ""), ("b", &value, ""), ("c", &value, "bad")])
                        .unwrap();
                }
            };
            rig.rt.spawn("agent", work).unwrap()
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    rig.metadata.report(agent, &[("a", "last", "")]).unwrap();
    rig.metadata.flush().unwrap();
    let values = rig.metadata.get(agent).unwrap().values;
    assert_eq!(values.iter().map(|value| value.key.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(values[0].value, "last");
    assert!(values[1].value.ends_with("/199"), "{}", values[1].value);
    assert_eq!(values[2].error, "bad");
    assert_eq!(rig.faulty.metadata_writes.load(Relaxed), 1, "12,001 reports are one statement");
}

#[test]
fn a_later_report_of_the_same_instant_wins_though_the_earlier_was_taken_to_be_written() {
    let rig = Rig::real();
    for n in 0..200 {
        let value = n.to_string();
        rig.metadata.report(id(1), &[("k", &value, "")]).unwrap();
        rig.metadata.flush().unwrap();
        assert_eq!(rig.metadata.get(id(1)).unwrap().values[0].value, value);
    }
}

#[test]
fn changed_agents_are_named_in_chunks_after_the_commit_and_unchanged_ones_are_not() {
    let rig = Rig::real();
    for n in 0..727 {
        rig.metadata.report(id(n), &[("k", "v", "")]).unwrap();
    }
    rig.metadata.flush().unwrap();
    let sizes: Vec<usize> = rig.bus.published.lock().unwrap().iter().map(|agents| agents.len()).collect();
    assert_eq!(sizes, [363, 363, 1]);
    assert_eq!(rig.faulty.metadata_writes.load(Relaxed), 1);
}

#[test]
fn keys_beyond_the_budget_are_left_out_and_named_while_the_others_are_stored() {
    let rig = Rig::real();
    let long = "k".repeat(6_000);
    let refused = rig.metadata.report(id(1), &[("a", "1", ""), (&long, "2", ""), ("b", "3", "")]);
    assert_eq!(refused, Ok(3));
    let longer = "k".repeat(6_144);
    let error =
        rig.metadata.report(id(1), &[("a", "4", ""), (&longer, "5", ""), ("b", "6", "")]).unwrap_err();
    assert!(error.to_string().starts_with("metadata keys of 6146 bytes exceeded 6144 bytes"), "{error}");
    let ReportError::KeysTooLong { accepted, left_out, .. } = error else { panic!("{error}") };
    assert_eq!((accepted, left_out), (1, vec![longer, "b".to_owned()]));
    rig.metadata.flush().unwrap();
    let values = rig.metadata.get(id(1)).unwrap().values;
    let value = |key: &str| values.iter().find(|value| value.key == key).map(|value| value.value.as_str());
    assert_eq!((value("a"), value("b")), (Some("4"), Some("3")));
}

#[test]
fn columns_of_unequal_length_are_refused_with_all_lengths() {
    let rig = Rig::real();
    let error = rig.metadata.report_columns(id(1), &["a", "b"], &["1"], &[]).unwrap_err();
    assert_eq!(error.to_string(), "a report has 2 keys, 1 values and 0 errors: it needs as many of each");
}

#[test]
fn beyond_the_bound_new_keys_are_refused_and_known_ones_taken() {
    let metadata = MetadataSettings { bound: 2, ..MetadataSettings::default() };
    let rig = Plan { metadata, ..Plan::new(&Rt::real()) }.start();
    rig.faulty.set_away(true);
    rig.metadata.report(id(1), &[("a", "1", ""), ("b", "1", "")]).unwrap();
    let error = rig.metadata.report(id(1), &[("c", "1", ""), ("a", "2", "")]).unwrap_err();
    assert_eq!(error, ReportError::Full { accepted: 1, left_out: vec!["c".into()], bound: 2 });
    rig.faulty.set_away(false);
    rig.metadata.flush().unwrap();
    assert_eq!(rig.metadata.get(id(1)).unwrap().values[0].value, "2");
}

#[test]
fn metadata_that_could_not_be_written_is_merged_back_under_what_is_newer() {
    let rig = Rig::real();
    rig.metadata.report(id(1), &[("a", "old", ""), ("b", "only", "")]).unwrap();
    rig.faulty.set_away(true);
    rig.metadata.flush().unwrap();
    assert_eq!(rig.metadata.pending(), 2);
    rig.metadata.report(id(1), &[("a", "new", "")]).unwrap();
    rig.faulty.set_away(false);
    rig.until("it is written", |rig| rig.metadata.flush().is_ok() && rig.metadata.pending() == 0);
    let values: Vec<String> =
        rig.metadata.get(id(1)).unwrap().values.into_iter().map(|value| value.value).collect();
    assert_eq!(values, ["new", "only"]);
}

#[test]
fn a_stop_writes_the_metadata_that_is_held() {
    let mut rig = Rig::real();
    rig.metadata.report(id(1), &[("a", "1", "")]).unwrap();
    rig.stop();
    let rows = rig.faulty.inner().metadata().unwrap().read(&[id(1)]).unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rig.metadata.report(id(1), &[("a", "2", "")]), Err(ReportError::Stopped));
}

#[test]
fn a_watcher_sees_the_first_look_and_then_each_change() {
    let rig = Rig::real();
    rig.metadata.report(id(1), &[("a", "1", "")]).unwrap();
    rig.metadata.flush().unwrap();
    let mut watch = rig.metadata.watch(id(1)).unwrap();
    assert_eq!(watch.wait().unwrap().values[0].value, "1");
    rig.metadata.report(id(1), &[("a", "2", "")]).unwrap();
    rig.metadata.flush().unwrap();
    loop {
        if watch.wait().unwrap().values[0].value == "2" {
            break;
        }
    }
}

#[test]
fn who_watches_by_name_sees_agents_that_are_made_later() {
    let rig = Rig::real();
    let mut watch = rig.metadata.watch_all("build-").unwrap();
    rig.metadata.name(id(2), "test-2").unwrap();
    rig.metadata.name(id(1), "build-1").unwrap();
    rig.metadata.report(id(2), &[("a", "no", "")]).unwrap();
    rig.metadata.report(id(1), &[("a", "yes", "")]).unwrap();
    rig.metadata.flush().unwrap();
    // It may be shown as soon as it has its name, before anything of it is stored.
    let stored = |seen: &Arc<AgentValues>| {
        assert_eq!(seen.agent, id(1));
        !seen.values.is_empty()
    };
    assert_eq!(watch.find(stored).unwrap().values[0].value, "yes");
}

#[test]
fn a_slow_watcher_gets_the_newest_and_not_a_backlog() {
    let rig = Rig::real();
    let mut slow = rig.metadata.watch(id(1)).unwrap();
    let mut quick = rig.metadata.watch(id(1)).unwrap();
    for n in 0..50 {
        let value = n.to_string();
        rig.metadata.report(id(1), &[("a", &value, "")]).unwrap();
        rig.metadata.flush().unwrap();
        while quick.wait().unwrap().values.first().is_none_or(|seen| seen.value != value) {}
    }
    let seen = slow.wait().unwrap();
    assert_eq!(seen.values[0].value, "49");
    assert!(slow.newest().is_none(), "and nothing behind it");
}

#[test]
fn a_watch_ends_with_the_engine() {
    let mut rig = Rig::real();
    let mut watch = rig.metadata.watch(id(1)).unwrap();
    let (signal, mut unread) = rig.metadata.watch(id(1)).unwrap().split();
    signal.recv_timeout(20 * SEC).expect("the first look");
    assert!(unread.newest().is_some());
    rig.stop();
    while watch.wait().is_some() {}
    while signal.recv().is_ok() {}
    assert_eq!(rig.metadata.watch(id(1)).unwrap_err().code(), Code::Stopped);
}
