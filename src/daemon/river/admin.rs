//! The service `admin`: what operators ask.

use serde::{Deserialize, Serialize};

use super::{Late, must_be};
use crate::codec::connection::time_text;
use crate::front::Role;
use crate::service::schema::{any, array, integer, object, text};
use crate::service::{Procedure, Service};

#[derive(Deserialize)]
struct Nothing {}

#[derive(Serialize)]
struct Pong {
    version: &'static str,
    replicas: usize,
}

#[derive(Serialize)]
struct Replica {
    id: uuid::Uuid,
    hostname: String,
    relay_url: Option<String>,
    version: String,
    started_at: String,
    updated_at: String,
    stopped_at: Option<String>,
    error: String,
}

#[derive(Serialize)]
struct Replicas {
    replicas: Vec<Replica>,
}

pub(super) fn service(behind: &Late) -> Service {
    let (pings, lists) = (behind.clone(), behind.clone());
    let ping = Procedure::rpc(move |_, _: Nothing| {
        Ok(Pong { version: env!("CARGO_PKG_VERSION"), replicas: pings.get()?.replicas.list().len() })
    });
    let replicas = Procedure::rpc(move |call, _: Nothing| {
        must_be(call, &[Role::Admin])?;
        let replica = |read: crate::store::replicas::ReplicaRead| Replica {
            id: read.replica.id,
            hostname: read.replica.hostname,
            relay_url: read.replica.relay_url,
            version: read.replica.version,
            started_at: time_text(read.started_at),
            updated_at: time_text(read.updated_at),
            stopped_at: read.stopped_at.map(time_text),
            error: read.replica.error,
        };
        Ok(Replicas { replicas: lists.get()?.replicas.list().into_iter().map(replica).collect() })
    });
    let replica = object([
        ("id", text()),
        ("hostname", text()),
        ("relay_url", any()),
        ("version", text()),
        ("started_at", text()),
        ("updated_at", text()),
        ("stopped_at", any()),
        ("error", text()),
    ]);
    Service::new("admin")
        .with(
            "ping",
            ping.about("Says which version answers, and how many replicas it knows.")
                .takes(object([]))
                .gives(object([("version", text()), ("replicas", integer())])),
        )
        .with(
            "replicas",
            replicas
                .about("The replicas of this store, as of the last sync.")
                .takes(object([]))
                .gives(object([("replicas", array(replica))])),
        )
}
