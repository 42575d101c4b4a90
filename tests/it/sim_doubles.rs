//! The doubles for stores and buses: what they may do to a program, and what they may not.

use std::sync::Arc;
use std::time::Duration;

use towpath::bus::{Bus, BusEvent, Delivery, Notice, Topic};
use towpath::rt::{Receiver, Rt};
use towpath::testing::{BusFaults, Faulty, FlakyBus, Sim, StoreFaults, Sweep, Test};
use uuid::Uuid;

/// A store that counts what was committed; a write is tried again until it is known to be there.
fn insist(t: &Test) {
    let mut store = Faulty::new(0_u32, &t.rt(), StoreFaults::ROUGH);
    let mut acknowledged = 0;
    for _ in 0..40 {
        loop {
            let committed = store.call(
                "write",
                |why| why,
                |rows| {
                    *rows += 1;
                    Ok(*rows)
                },
            );
            if let Ok(rows) = committed {
                acknowledged += 1;
                assert!(rows >= acknowledged, "acknowledged but not there");
                break;
            }
        }
    }
}

#[test]
fn sim_a_faulty_store_fails_on_both_sides_of_the_commit_and_never_lies_about_success() {
    Sweep::new("sim_a_faulty_store", 20)
        .must_reach(&["store_failed_before_commit", "store_failed_after_commit"])
        .run(insist)
        .assert_ok();
}

fn listen(rt: &Rt, bus: &Arc<FlakyBus>) -> Receiver<BusEvent> {
    let (tx, rx) = rt.channel("heard", 256);
    bus.subscribe(
        Topic::Replica,
        Box::new(move |event| match tx.try_send(event) {
            Ok(()) => Delivery::Taken,
            Err(refused) => match refused {
                towpath::rt::TrySendError::Full(_) => Delivery::Full,
                towpath::rt::TrySendError::Disconnected(_) => Delivery::Gone,
            },
        }),
    );
    rx
}

fn heard(rx: &Receiver<BusEvent>) -> Vec<BusEvent> {
    std::iter::from_fn(|| rx.try_recv().ok()).collect()
}

#[test]
fn sim_a_calm_bus_delivers_every_notice_once_and_in_order_to_its_topic_only() {
    Sim::new(4)
        .run(|t| {
            let rt = t.rt();
            let bus = Arc::new(FlakyBus::start(&rt, BusFaults::CALM)?);
            let (one, other) = (listen(&rt, &bus), listen(&rt, &bus));
            let ids: Vec<Uuid> = (0..5).map(|_| rt.uuid_v7()).collect();
            for id in &ids {
                bus.publish(Notice::Replica(*id));
                bus.publish(Notice::Metadata(Arc::from([*id])));
            }
            t.run_until_idle();
            let expected: Vec<_> = ids.iter().map(|id| BusEvent::Notice(Notice::Replica(*id))).collect();
            assert_eq!(heard(&one), expected);
            assert_eq!(heard(&other), expected);
            Ok::<(), towpath::Error>(())
        })
        .assert_clean();
}

/// Notices may be lost, doubled and late; none is made up, and a lost connection is always told.
fn rough(t: &Test) -> towpath::Result<()> {
    let rt = t.rt();
    let bus = Arc::new(FlakyBus::start(&rt, BusFaults::ROUGH)?);
    let rx = listen(&rt, &bus);
    let ids: Vec<Uuid> = (0..60).map(|_| rt.uuid_v7()).collect();
    for id in &ids {
        bus.publish(Notice::Replica(*id));
        rt.sleep(Duration::from_millis(5));
    }
    t.advance(Duration::from_secs(10));
    let events = heard(&rx);
    let drops = events.iter().filter(|event| **event == BusEvent::Dropped).count() as u64;
    assert_eq!(drops, bus.health().disconnects, "each lost connection leaves one marker");
    for event in events {
        if let BusEvent::Notice(Notice::Replica(id)) = event {
            assert!(ids.contains(&id), "{id} was never published");
        }
    }
    Ok(())
}

#[test]
fn sim_a_rough_bus_makes_nothing_up_and_marks_every_lost_connection() {
    Sweep::new("sim_a_rough_bus", 20)
        .must_reach(&["notice_lost", "notice_overtaken", "bus_disconnected"])
        .run(rough)
        .assert_ok();
}
