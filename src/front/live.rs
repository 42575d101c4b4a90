//! `/v1/admin/live`: what is followed and produced, for whoever operates the daemon.

use serde_json::{Value, json};

use super::{Answer, Role, Route};
use crate::engine::streams::{Living, Streams};

/// The route.
pub fn routes(streams: &Streams) -> Vec<Route> {
    let streams = streams.clone();
    vec![
        Route::get("/v1/admin/live")
            .about("How many follow each stream on this replica, and how many parts its newest turn has here")
            .needs(Role::Admin)
            .answers(&[200])
            .to_whole(move |_, reply| answer(&streams, reply)),
    ]
}

fn answer(streams: &Streams, reply: Answer) {
    let replica = streams.replica();
    streams.living_then(move |found| {
        let streams: Vec<Value> = found.iter().map(value).collect();
        reply.json(200, &json!({ "replica": replica, "streams": streams }));
    });
}

fn value(living: &Living) -> Value {
    json!({
        "stream": living.stream,
        "followers": living.followers,
        "turn": living.turn.map(|(turn, _)| turn),
        "parts": living.turn.map(|(_, last)| last),
    })
}
