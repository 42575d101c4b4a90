//! The bus of many processes, on a private PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use towpath::bus::postgres::PostgresBus;
use towpath::bus::{Bus, BusEvent, Notice, StreamNotice, Topic, receiver};
use towpath::rt::{Receiver, Rt};
use towpath::store::postgres::Patience;
use uuid::Uuid;

use crate::cluster::{Cluster, database};

/// Longer than anything here takes; a test that waits this long has failed.
const SOON: Duration = Duration::from_secs(30);

fn start(url: &str) -> PostgresBus {
    PostgresBus::start(&Rt::real(), url, Patience::default()).expect("connects")
}

fn next(rt: &Rt, events: &Receiver<BusEvent>) -> BusEvent {
    events.recv_deadline(rt.now() + SOON).expect("an event")
}

fn stream(pos: u64) -> Notice {
    Notice::Stream(StreamNotice {
        stream: Uuid::from_u128(1),
        pos,
        generation: 2,
        worker: Some(Uuid::from_u128(3)),
        turn: 4,
        deleted: false,
    })
}

#[test]
fn a_notice_reaches_every_replica_in_order_and_as_it_was_sent() {
    let Some(url) = database() else { return };
    let rt = Rt::real();
    let (one, other) = (start(&url), start(&url));
    let here = receiver(&one, &rt, Topic::Stream, 4_096);
    let there = receiver(&other, &rt, Topic::Stream, 4_096);
    for pos in 0..1_000 {
        one.publish(stream(pos));
    }
    for events in [&here, &there] {
        for pos in 0..1_000 {
            assert_eq!(next(&rt, events), BusEvent::Notice(stream(pos)));
        }
    }
    let health = one.health();
    assert!(health.connected && health.published >= 1_000 && health.dropped == 0, "{health:?}");
    assert!(health.batches < health.published, "many notices share a transaction: {health:?}");
}

#[test]
fn metadata_goes_out_in_chunks_that_postgresql_takes() {
    let Some(url) = database() else { return };
    let rt = Rt::real();
    let bus = start(&url);
    let events = receiver(&bus, &rt, Topic::Metadata, 64);
    for (count, chunks) in
        [(1_u128, vec![1]), (363, vec![363]), (364, vec![363, 1]), (727, vec![363, 363, 1])]
    {
        let agents: Arc<[Uuid]> = (1..=count).map(|id| Uuid::from_u128(id + count * 1_000)).collect();
        bus.publish(Notice::Metadata(agents.clone()));
        let mut told = Vec::new();
        for chunk in chunks {
            let BusEvent::Notice(Notice::Metadata(agents)) = next(&rt, &events) else { panic!("metadata") };
            assert_eq!(agents.len(), chunk);
            told.extend(agents.iter().copied());
        }
        assert_eq!(told[..], agents[..]);
    }
    bus.publish(Notice::Metadata(Arc::new([])));
    bus.publish(Notice::Metadata(Arc::new([Uuid::nil()])));
    let nil = BusEvent::Notice(Notice::Metadata(Arc::new([Uuid::nil()])));
    assert_eq!(next(&rt, &events), nil, "no agents, no notice");
}

#[test]
fn what_cannot_be_read_is_a_drop_marker() {
    let Some(url) = database() else { return };
    let rt = Rt::real();
    let bus = start(&url);
    let events = receiver(&bus, &rt, Topic::Stream, 8);
    let metadata = receiver(&bus, &rt, Topic::Metadata, 8);
    let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("connects");
    client.batch_execute("NOTIFY towpath_stream, '9,from,the,future'").expect("sent");
    assert_eq!(next(&rt, &events), BusEvent::Dropped);
    client.batch_execute("NOTIFY towpath_metadata, 'not ids'").expect("sent");
    assert_eq!(next(&rt, &metadata), BusEvent::Dropped);
    bus.publish(stream(1));
    assert_eq!(next(&rt, &events), BusEvent::Notice(stream(1)));
}

#[test]
fn a_heartbeat_goes_the_whole_way_round() {
    let Some(url) = database() else { return };
    let rt = Rt::real();
    let bus = start(&url);
    let deadline = rt.now() + SOON;
    while bus.health().latency.is_none() {
        assert!(rt.now() < deadline, "{:?}", bus.health());
        std::thread::yield_now();
    }
    assert!(bus.health().latency < Some(Duration::from_secs(5)));
}

#[test]
fn a_lost_connection_is_made_again_and_everyone_reads_again() {
    let Some(url) = database() else { return };
    let rt = Rt::real();
    let bus = start(&url);
    let events = [Topic::Stream, Topic::Metadata, Topic::Replica].map(|topic| receiver(&bus, &rt, topic, 8));
    let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("connects");
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client.query(cut, &[]).expect("cut");
    // One marker when it was lost, one when everything is heard again.
    for events in &events {
        assert_eq!([next(&rt, events), next(&rt, events)], [BusEvent::Dropped, BusEvent::Dropped]);
    }
    bus.publish(stream(7));
    assert_eq!(next(&rt, &events[0]), BusEvent::Notice(stream(7)));
    let health = bus.health();
    assert!(health.connected && health.disconnects == 1, "{health:?}");
}

#[test]
fn a_bus_that_cannot_connect_does_not_start_and_one_that_is_dropped_lets_go() {
    if database().is_none() {
        return;
    }
    let server = Cluster::start().expect("a server of its own");
    let url = server.url("postgres");
    let bus = start(&url);
    server.down("immediate").expect("stopped");
    let error = PostgresBus::start(&Rt::real(), &url, Patience::default());
    assert_eq!(error.err().map(|e| e.code), Some("unreachable"));
    // Publishing while the server is away blocks nobody, and neither does dropping.
    for pos in 0..100 {
        bus.publish(stream(pos));
    }
    drop(bus);
}
