//! The links between replicas in the connection log: two daemons on one PostgreSQL, both ends of a link.

use serde_json::{Value, json};

use crate::cluster;
use crate::own_links::{daemon, follow, has_ended, put, rows_until};
use crate::process::Daemon;

fn replica(store: &str) -> Daemon {
    daemon(&["--store", store, "--relay-listen", "127.0.0.1:0"], &[])
}

/// Begins a turn.
fn claim(daemon: &Daemon, stream: &str) {
    let url = format!("{}/v1/streams/{stream}/turns", daemon.url);
    let answer = ureq::post(url).header("content-type", "application/json").send("{}").expect("it is free");
    assert_eq!(answer.status(), 201);
}

fn the_ended(rows: Vec<Value>) -> Value {
    rows.into_iter().find(|row| row["status"] == "disconnected").expect("one has ended")
}

#[test]
fn a_link_between_replicas_is_recorded_at_both_ends_with_its_reason() {
    let Some(store) = cluster::database() else { return };
    let (runs, follows) = (replica(&store), replica(&store));
    put(&runs, "/v1/streams/chat/1");
    let state: Value = serde_json::from_str(&runs.get("/v1/streams/chat/1/state").1).expect("JSON");
    claim(&runs, "chat/1");
    let viewer = follow(&follows, "chat/1");

    let ongoing = |via: &str| {
        let query = format!("type=stream&status=ongoing&label.via={via}");
        rows_until(&runs, &query, |rows| rows.len() == 1).remove(0)
    };
    let (out, inward) = (ongoing("relay_out"), ongoing("relay_in"));
    for row in [&out, &inward] {
        assert_eq!(row["labels"]["stream_id"], state["id"], "{row}");
        assert_eq!(row["disconnect_time"], Value::Null, "{row}");
    }
    assert_ne!(out["connection_id"], inward["connection_id"], "each end tells of itself");
    // Both write into one database, whoever is asked.
    assert_eq!(follows.get("/v1/connections?label.via=relay_in").0, 200);

    drop(viewer);
    let ended = |via: &str| the_ended(rows_until(&follows, &format!("label.via={via}"), has_ended));
    let (out, inward) = (ended("relay_out"), ended("relay_in"));
    assert_eq!(out["disconnect_reason"], json!("unwanted"), "{out}");
    assert!(inward["disconnect_reason"].as_str().is_some_and(|why| !why.is_empty()), "{inward}");
}

#[test]
fn a_replica_that_dies_leaves_its_own_end_open_and_the_other_end_says_when() {
    let Some(store) = cluster::database() else { return };
    let (runs, follows) = (replica(&store), replica(&store));
    put(&runs, "/v1/streams/chat/1");
    claim(&runs, "chat/1");
    let _viewer = follow(&follows, "chat/1");
    for via in ["relay_out", "relay_in"] {
        rows_until(&follows, &format!("status=ongoing&label.via={via}"), |rows| rows.len() == 1);
    }
    runs.signal("KILL");
    let out = the_ended(rows_until(&follows, "label.via=relay_out", has_ended));
    assert!(out["disconnect_reason"].as_str().is_some_and(|why| !why.is_empty()), "{out}");
    // Nobody was there to write its end.
    let left = rows_until(&follows, "label.via=relay_in", |rows| rows.len() == 1).remove(0);
    assert_eq!(left["disconnect_time"], Value::Null, "{left}");
}
