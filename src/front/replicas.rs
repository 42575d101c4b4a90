//! `/v1/replicas`: who else serves the same store.

use serde_json::{Value, json};

use super::streams::rfc3339;
use super::{Role, Route};
use crate::engine::replicas::Replicas;
use crate::state::replica::is_alive;
use crate::store::replicas::ReplicaRead;

/// The routes of the registry.
pub fn routes(replicas: &Replicas) -> Vec<Route> {
    let replicas = replicas.clone();
    vec![
        Route::get("/v1/replicas")
            .about("The replicas of this store, as of the last sync")
            .needs(Role::Admin)
            .answers(&[200])
            .to_whole(move |_, answer| {
                let rows: Vec<Value> = replicas.list().iter().map(row).collect();
                answer.json(200, &json!({ "replicas": rows }));
            }),
    ]
}

fn row(read: &ReplicaRead) -> Value {
    let replica = &read.replica;
    json!({
        "id": replica.id,
        "hostname": replica.hostname,
        "relay_url": replica.relay_url,
        "version": replica.version,
        "started_at": rfc3339(read.started_at),
        "updated_at": rfc3339(read.updated_at),
        "stopped_at": read.stopped_at.map(rfc3339),
        "alive": is_alive(read.age, read.stopped_at.is_some()),
        "error": replica.error,
    })
}
