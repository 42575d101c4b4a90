//! The same under the simulator: time is a number, faults are drawn, and the books balance after
//! every step.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towpath::Result;
use towpath::codec::connection::json_line;
use towpath::engine::connections::ConnectionSettings;
use towpath::engine::metadata::MetadataSettings;
use towpath::rt::Wall;
use towpath::state::batch::Merge;
use towpath::state::connection::{Key, Record, Row, Status};
use towpath::state::metadata::Entry;
use towpath::state::retry;
use towpath::testing::{Sim, Sweep, Test};

use super::rig::{Plan, SEC, event, id, visit};

/// Small bounds, so that every one of them is met.
fn settings() -> ConnectionSettings {
    ConnectionSettings {
        capacity: 8,
        bound: 24,
        accept_timeout: 120 * SEC,
        retry: retry::Settings { batches: 2, ..retry::Settings::default() },
        ..ConnectionSettings::default()
    }
}

/// What a producer records: events of a few connections, and visits.
fn record_of(t: &Test, producer: u64, n: u64) -> Record {
    let number = producer << 20 | n;
    match t.draw("what is recorded", 3) {
        0 => visit(number),
        1 => event(number, t.draw("which connection", 4), Status::Connected),
        _ => event(number, t.draw("which connection", 4), Status::Disconnected),
    }
}

/// Written without the batching: every record merged with the others of its key.
fn model(records: &[Record]) -> BTreeMap<Key, Row> {
    let mut rows: BTreeMap<Key, Row> = BTreeMap::new();
    for record in records {
        let row = Row::from(record.clone());
        match rows.get_mut(&row.key()) {
            Some(held) => held.merge(row),
            None => _ = rows.insert(row.key(), row),
        }
    }
    rows
}

/// Producers, a store that fails before and after its commits, goes away and comes back, and a disk
/// that is full for a while; then calm, and everything must be where the books say.
fn outage(t: &Test) -> Result<()> {
    let rt = t.rt();
    let mut rig = Plan { connections: settings(), ..Plan::new(&rt) }.start();
    let watched = rig.connections.clone();
    t.invariant("the books balance", move |_| {
        let account = watched.account();
        if account.balances() { Ok(()) } else { Err(format!("{account:?}")) }
    });
    rig.faulty.chance.store(t.draw("how often the store fails", 4) * 100, Relaxed);
    let taken: Arc<Mutex<Vec<Record>>> = Arc::default();
    let mut producers = Vec::new();
    for producer in 0..3 {
        let records: Vec<(Record, bool)> =
            (0..30).map(|n| (record_of(t, producer, n), t.draw("with a receipt", 5) == 4)).collect();
        let (connections, taken, clock) = (rig.connections.clone(), taken.clone(), rt.clone());
        producers.push(rt.spawn("producer", move || {
            let mut rand = clock.rand("pace");
            for (record, durable) in records {
                clock.sleep(Duration::from_millis(rand.below(400)));
                let done = if durable {
                    connections.record_durable(record.clone()).map(|_| ())
                } else {
                    connections.record(record.clone())
                };
                // Refused is refused: only what was taken must be found.
                if done.is_ok() {
                    taken.lock().expect("no producer panics").push(record);
                }
            }
        })?);
    }
    for _ in 0..4 {
        t.advance(Duration::from_millis(t.draw("until it changes", 4_000)));
        rig.faulty.set_away(t.draw("the store is away", 2) == 1);
        rig.spool_faults.full.store(t.draw("the disk is full", 4) == 3, Relaxed);
    }
    rig.faulty.set_away(false);
    rig.spool_faults.full.store(false, Relaxed);
    rig.faulty.chance.store(0, Relaxed);
    for producer in producers {
        producer.join().expect("no producer panics");
    }
    if t.draw("stop in mid-flight", 2) == 1 {
        rig.stop();
    } else {
        t.advance(90 * SEC);
    }
    let account = rig.connections.account();
    let taken = taken.lock().expect("no producer panics").clone();
    assert_eq!(account.accepted, taken.len() as u64, "{account:?}");
    assert_eq!((account.pending, account.dead_lettered, account.lost), (0, 0, 0), "{account:?}");
    if account.spooled == 0 {
        // As they are shown: a row that ended has no other reason and code than those of its end.
        let mut found: Vec<String> = rig.faulty.all().iter().map(json_line).collect();
        let mut expected: Vec<String> = model(&taken).values().map(json_line).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }
    Ok(())
}

#[test]
fn sim_no_record_is_lost_or_doubled_through_outages() {
    Sweep::new("sim_no_record_is_lost_or_doubled_through_outages", 100)
        .must_reach(&["retry_queue_overflowed", "store_reached_again", "flush_knew_the_store_is_away"])
        .run(outage)
        .assert_ok();
}

/// The bug is found within so many seeds.
fn finds(bug: &'static str, seeds: u64, scenario: fn(&Test) -> Result<()>) {
    let swept = Sweep::new("a planted bug", seeds).exactly().sim(move |sim| sim.plant(bug)).run(scenario);
    assert!(swept.first_failure().is_some(), "{bug} was not found in {} seeds", swept.runs());
}

#[test]
fn sim_a_planted_double_flush_is_found() {
    finds("double_flush", 50, outage);
}

#[test]
fn sim_a_planted_lost_final_flush_is_found() {
    finds("lost_final_flush", 200, outage);
}

#[test]
fn sim_a_planted_drop_on_a_full_retry_queue_is_found() {
    finds("drop_on_full_retry_queue", 200, outage);
}

/// Agents report while the store fails; watchers must end up with the last report of each key
/// without waiting for the slow poll, unless notices were lost.
fn fleet(t: &Test) -> Result<()> {
    let rt = t.rt();
    // No poll in the time of the test: notices alone must do.
    let watch = towpath::state::watch::Settings { refresh: 3_600 * SEC, ..Default::default() };
    let metadata = MetadataSettings { capacity: 6, watch, ..MetadataSettings::default() };
    let rig = Plan { metadata, ..Plan::new(&rt) }.start();
    rig.faulty.chance.store(t.draw("how often the store fails", 3) * 100, Relaxed);
    let mut watch = rig.metadata.watch_many((0..4).map(id).collect())?;
    let mut last = BTreeMap::new();
    for n in 0..t.draw("reports", 30) {
        let agent = id(t.draw("agent", 4));
        let key = ["a", "b", "c"][t.draw("key", 3) as usize];
        let value = n.to_string();
        rig.metadata.report(agent, &[(key, &value, "")]).expect("there is room");
        last.insert((agent, key.to_owned()), value);
        t.advance(Duration::from_millis(t.draw("pause", 800)));
    }
    rig.faulty.chance.store(0, Relaxed);
    t.advance(20 * SEC);
    assert_eq!(rig.metadata.pending(), 0);
    let mut seen = BTreeMap::new();
    while let Some(values) = watch.newest() {
        for value in &values.values {
            seen.insert((value.agent, value.key.clone()), value.value.clone());
        }
    }
    assert_eq!(seen, last);
    Ok(())
}

#[test]
fn sim_watchers_end_up_with_the_last_report_of_each_key() {
    Sweep::new("sim_watchers_end_up_with_the_last_report_of_each_key", 100)
        .must_reach(&["metadata_merged_back"])
        .run(fleet)
        .assert_ok();
}

#[test]
fn sim_what_is_reported_while_a_slow_write_is_under_way_is_what_stays() {
    for fails in [false, true] {
        calmly(move |t| {
            let rig = Plan::new(&t.rt()).start();
            rig.faulty.metadata_lag.store(3_000, Relaxed);
            rig.metadata.report(id(1), &[("k", "old", "")]).unwrap();
            let metadata = rig.metadata.clone();
            let flusher = t.rt().spawn("flusher", move || metadata.flush()).unwrap();
            t.advance(SEC);
            rig.metadata.report(id(1), &[("k", "new", "")]).unwrap();
            rig.faulty.metadata_lag.store(0, Relaxed);
            t.advance(2 * SEC);
            flusher.join().unwrap().unwrap();
            if fails {
                // The next write fails once and is merged back under what comes then.
                rig.faulty.set_away(true);
                rig.metadata.flush().unwrap();
                rig.metadata.report(id(1), &[("k", "newest", "")]).unwrap();
                rig.faulty.set_away(false);
            }
            t.advance(30 * SEC);
            let values = rig.metadata.get(id(1)).unwrap().values;
            assert_eq!(values[0].value, if fails { "newest" } else { "new" });
        });
    }
}

/// The same within one microsecond, where the first write fails after its commit: the next must not be as old
/// as what it replaces.
#[test]
fn sim_what_is_reported_while_a_write_fails_after_its_commit_is_what_stays() {
    calmly(|t| {
        let rig = Plan::new(&t.rt()).start();
        rig.faulty.metadata_lag.store(3, Relaxed);
        rig.faulty.metadata_lost_answers.store(1, Relaxed);
        rig.metadata.report(id(1), &[("k", "old", "")]).unwrap();
        let metadata = rig.metadata.clone();
        let flusher = t.rt().spawn("flusher", move || metadata.flush()).unwrap();
        t.run_until_idle();
        rig.metadata.report(id(1), &[("k", "new", "")]).unwrap();
        rig.faulty.metadata_lag.store(0, Relaxed);
        t.advance(30 * SEC);
        flusher.join().unwrap().unwrap();
        assert_eq!(rig.metadata.get(id(1)).unwrap().values[0].value, "new");
    });
}

/// A slow write has the store date what follows it later than it was; a failure must not make it forget that.
#[test]
fn sim_what_is_reported_before_a_write_fails_is_newer_than_what_a_slow_one_dated() {
    calmly(|t| {
        let rig = Plan::new(&t.rt()).start();
        rig.faulty.metadata_lag.store(18, Relaxed);
        rig.metadata.report(id(1), &[("k", "oldest", "")]).unwrap();
        let metadata = rig.metadata.clone();
        let flusher = t.rt().spawn("flusher", move || metadata.flush()).unwrap();
        t.advance(SEC);
        flusher.join().unwrap().unwrap();
        rig.faulty.metadata_lag.store(0, Relaxed);
        rig.metadata.report(id(1), &[("k", "old", "")]).unwrap();
        rig.metadata.flush().unwrap();
        rig.metadata.report(id(1), &[("k", "new", "")]).unwrap();
        rig.faulty.set_away(true);
        rig.metadata.flush().unwrap();
        rig.faulty.set_away(false);
        t.advance(30 * SEC);
        assert_eq!(rig.metadata.get(id(1)).unwrap().values[0].value, "new");
    });
}

#[test]
fn sim_a_planted_notice_before_the_commit_is_found() {
    finds("notice_before_commit", 200, fleet);
}

#[test]
fn sim_a_planted_overwrite_by_an_equal_timestamp_is_found() {
    finds("equal_timestamp_overwrites", 1, |_| {
        let entry = |value: &str| Entry { value: value.into(), error: String::new(), collected_at: Wall(1) };
        let mut held = entry("first");
        held.merge(entry("second"));
        assert_eq!(held.value, "first");
        Ok(())
    });
}

/// Runs one scenario under the seed's calm schedule.
fn calmly(scenario: impl FnOnce(&Test) + Send + 'static) {
    Sim::new(1)
        .stalls(0, 1)
        .run(|t| {
            scenario(t);
            Ok::<(), towpath::Error>(())
        })
        .assert_ok();
}

#[test]
fn sim_a_flush_comes_exactly_at_capacity_and_not_one_before() {
    calmly(|t| {
        let rig = Plan { connections: settings(), ..Plan::new(&t.rt()) }.start();
        for n in 0..7 {
            rig.connections.record(visit(n)).unwrap();
        }
        t.run_until_idle();
        assert_eq!(rig.faulty.writes.load(Relaxed), 0);
        rig.connections.record(visit(7)).unwrap();
        t.run_until_idle();
        assert_eq!((rig.faulty.writes.load(Relaxed), rig.faulty.rows.load(Relaxed)), (1, 8));
        assert!(rig.metrics.text().contains(r#"towpath_connections_flushes_total{reason="capacity"} 1"#));
    });
}

#[test]
fn sim_a_capacity_flush_restarts_the_timer() {
    calmly(|t| {
        let rig = Plan { connections: settings(), ..Plan::new(&t.rt()) }.start();
        rig.connections.record(visit(0)).unwrap();
        t.advance(4 * SEC);
        for n in 1..8 {
            rig.connections.record(visit(n)).unwrap();
        }
        t.run_until_idle();
        rig.connections.record(visit(8)).unwrap();
        t.advance(Duration::from_millis(4_900));
        assert_eq!(rig.faulty.rows.load(Relaxed), 8, "five seconds after the first, and the ninth waits");
        t.advance(Duration::from_millis(200));
        assert_eq!(rig.faulty.rows.load(Relaxed), 9);
        assert!(rig.metrics.text().contains(r#"towpath_connections_flushes_total{reason="scheduled"} 1"#));
    });
}

#[test]
fn sim_six_hundred_agents_cost_two_statements_in_ten_seconds() {
    calmly(|t| {
        let rig = Plan::new(&t.rt()).start();
        let keys: Vec<String> = (0..15).map(|n| format!("key{n}")).collect();
        for round in 0..6u64 {
            for agent in 0..600 {
                let value = round.to_string();
                let report: Vec<(&str, &str, &str)> =
                    keys.iter().map(|key| (key.as_str(), value.as_str(), "")).collect();
                rig.metadata.report(id(agent), &report).unwrap();
                if agent % 60 == 59 {
                    t.advance(SEC);
                }
            }
        }
        let statements = rig.faulty.metadata_writes.load(Relaxed);
        assert!(statements <= 24, "{statements} statements in 60 s, and 0.4 a second is the goal");
        assert!(rig.bus.published.lock().unwrap().len() as u64 <= 60);
    });
}

#[test]
fn sim_an_hour_without_work_costs_nothing() {
    calmly(|t| {
        let rig = Plan::new(&t.rt()).start();
        t.advance(3_600 * SEC);
        assert_eq!(rig.faulty.writes.load(Relaxed) + rig.faulty.metadata_writes.load(Relaxed), 0);
        assert!(rig.connections.account().balances());
    });
}

#[test]
fn sim_a_lost_notice_is_healed_by_the_poll_within_five_seconds() {
    calmly(|t| {
        let rig = Plan::new(&t.rt()).start();
        let mut watch = rig.metadata.watch(id(1)).unwrap();
        t.run_until_idle();
        while watch.newest().is_some() {}
        rig.bus.deaf.store(true, Relaxed);
        rig.metadata.report(id(1), &[("a", "1", "")]).unwrap();
        rig.metadata.flush().unwrap();
        t.run_until_idle();
        assert!(watch.newest().is_none(), "nobody said anything");
        t.advance(Duration::from_millis(5_100));
        assert_eq!(watch.newest().unwrap().values[0].value, "1");
    });
}

#[test]
fn sim_a_drop_marker_causes_a_read_at_once() {
    calmly(|t| {
        let rig = Plan::new(&t.rt()).start();
        let mut watch = rig.metadata.watch(id(1)).unwrap();
        t.run_until_idle();
        while watch.newest().is_some() {}
        rig.bus.deaf.store(true, Relaxed);
        rig.metadata.report(id(1), &[("a", "1", "")]).unwrap();
        rig.metadata.flush().unwrap();
        rig.bus.send(&towpath::bus::BusEvent::Dropped);
        t.run_until_idle();
        assert_eq!(watch.newest().unwrap().values[0].value, "1");
    });
}

#[test]
fn sim_a_caller_waits_for_room_and_is_told_when_there_is_none() {
    calmly(|t| {
        let accept_timeout = 3 * SEC;
        let rig =
            Plan { connections: ConnectionSettings { accept_timeout, ..settings() }, ..Plan::new(&t.rt()) }
                .start();
        rig.faulty.set_away(true);
        rig.spool_faults.full.store(true, Relaxed);
        let connections = rig.connections.clone();
        let clock = t.rt();
        let producer = t
            .rt()
            .spawn("producer", move || {
                let mut n = 0;
                loop {
                    let began = clock.now();
                    if let Err(error) = connections.record(visit(n)) {
                        return (n, error.code(), clock.now().since(began));
                    }
                    n += 1;
                }
            })
            .unwrap();
        t.advance(60 * SEC);
        let (taken, code, waited) = producer.join().unwrap();
        assert_eq!((code, waited), (towpath::Code::Full, accept_timeout));
        assert_eq!(rig.connections.account().accepted, taken);
        rig.spool_faults.full.store(false, Relaxed);
        rig.faulty.set_away(false);
        t.advance(60 * SEC);
        let account = rig.connections.account();
        assert_eq!((account.stored, account.pending, account.spooled), (taken, 0, 0), "{account:?}");
    });
}
