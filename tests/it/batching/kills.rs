//! Power cuts under the simulator: an engine is killed wherever it stands, another begins with what is on
//! disk, and every receipt is honoured once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towpath::Result;
use towpath::engine::connections::ConnectionSettings;
use towpath::spool::File;
use towpath::state::retry;
use towpath::testing::{Sweep, Test};
use uuid::Uuid;

use super::rig::{Disk, Faulty, LIMITS, Plan, SEC, visit};

/// Small bounds, so that every one of them is met.
fn settings() -> ConnectionSettings {
    ConnectionSettings {
        capacity: 8,
        bound: 24,
        accept_timeout: 20 * SEC,
        retry: retry::Settings { batches: 2, ..retry::Settings::default() },
        ..ConnectionSettings::default()
    }
}

/// Three engines one after the other, each but the last killed at a moment that is drawn, over a store that
/// fails before and after its commits and a disk that fills up.
fn power_cuts(t: &Test) -> Result<()> {
    let faulty = Faulty::memory(&t.rt());
    let disk: Disk = Arc::new(Mutex::new(File::memory(LIMITS).expect("a spool in memory")));
    let receipts: Arc<Mutex<BTreeSet<Uuid>>> = Arc::default();
    for (life, node) in ["first", "second", "third"].into_iter().enumerate() {
        let rt = t.node(node);
        let rig = Plan {
            connections: settings(),
            faulty: faulty.clone(),
            disk: Some(disk.clone()),
            ..Plan::new(&rt)
        }
        .start();
        let watched = rig.connections.clone();
        t.invariant("the books balance", move |_| {
            let account = watched.account();
            if account.balances() { Ok(()) } else { Err(format!("{account:?}")) }
        });
        faulty.chance.store(t.draw("how often the store fails", 4) * 100, Relaxed);
        faulty.set_away(t.draw("the store is away", 3) == 2);
        rig.spool_faults.full.store(t.draw("the disk is full", 5) == 4, Relaxed);
        let mut producers = Vec::new();
        for producer in 0..2_u64 {
            let (connections, receipts, clock) = (rig.connections.clone(), receipts.clone(), rt.clone());
            let first = (life as u64) << 32 | producer << 16;
            producers.push(rt.spawn("producer", move || {
                let mut rand = clock.rand("pace");
                for n in first..first + 12 {
                    clock.sleep(Duration::from_millis(rand.below(300)));
                    let receipt = n % 3 != 0;
                    let taken = if receipt {
                        connections.record_durable(visit(n)).map(|_| ())
                    } else {
                        connections.record(visit(n))
                    };
                    if receipt && taken.is_ok() {
                        receipts.lock().expect("no producer panics").insert(visit(n).id);
                    }
                }
            })?);
        }
        if life < 2 {
            t.advance(Duration::from_millis(t.draw("until the power goes", 4_000)));
            t.kill(node);
            // They ended where they stood.
            producers.into_iter().for_each(towpath::rt::Thread::detach);
            drop(rig);
        } else {
            t.advance(5 * SEC);
            faulty.chance.store(0, Relaxed);
            faulty.set_away(false);
            rig.spool_faults.full.store(false, Relaxed);
            t.advance(120 * SEC);
            producers.into_iter().for_each(|producer| producer.join().expect("no producer panics"));
            let account = rig.connections.account();
            assert_eq!((account.spooled, account.pending, account.lost), (0, 0, 0), "{account:?}");
        }
    }
    let mut found: BTreeMap<Uuid, u32> = BTreeMap::new();
    for row in faulty.all() {
        *found.entry(row.id()).or_default() += 1;
    }
    let receipts = receipts.lock().expect("no producer panics").clone();
    for receipt in &receipts {
        assert_eq!(found.get(receipt), Some(&1), "a receipt was given for {receipt}");
    }
    Ok(())
}

#[test]
fn sim_every_receipt_outlives_two_power_cuts_once() {
    Sweep::new("sim_every_receipt_outlives_two_power_cuts_once", 100).run(power_cuts).assert_ok();
}
