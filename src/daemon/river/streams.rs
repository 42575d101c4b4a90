//! The service `streams`: what `/v1/streams` and `/v1/turns/next` do, as procedures.

mod following;
mod uptake;

use std::time::Duration;

use self::uptake::Uptake;
use super::mirror::Mirror;
use super::{Behind, Late, failed, failure_of, value_of};
use crate::engine::streams::{StreamError, Streams, Then, TurnRead};
use crate::front::streams::{feeding, follow_asked, turn_asked};
use crate::service::schema::{
    Schema, any, array, boolean, integer, null, object, one_of, optional, record, text,
};
use crate::service::{Call, Failure, Later, NotWritten, Procedure, Resume, Service, Writable};
use crate::state::value::Value;

/// How long a reader waits for something before it looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(500);

const ONE: &[(&str, &str)] = &[("stream", "name")];
const ITEM: &[(&str, &str)] = &[("stream", "name"), ("id", "id")];
const TURN: &[(&str, &str)] = &[("stream", "name"), ("turn", "turn")];
const KEY: &[(&str, &str)] = &[("key", "idempotency-key")];
const LEASE: &[(&str, &str)] = &[("lease", "towpath-lease")];

const FOLLOW: Mirror = Mirror::get("/v1/streams/{name*}/events").params(ONE).query();
const READ_TURN: Mirror = Mirror::get("/v1/streams/{name*}/turns/{turn}").params(TURN);
const PARTS: Mirror = Mirror::post("/v1/streams/{name*}/turns/{turn}/parts")
    .params(TURN)
    .headers(&[("lease", "towpath-lease"), ("first", "towpath-part")]);

fn labels() -> Schema {
    optional(record(text()))
}

fn or_null(schema: Schema) -> Schema {
    one_of([schema, null()])
}

/// Makes an append, a claim or a commit one that can be sent again.
fn key() -> Schema {
    optional(text().about("the same again, under the same key, is done once"))
}

fn named() -> Schema {
    object([("stream", text())])
}

fn numbered() -> Schema {
    object([("stream", text()), ("id", integer())])
}

fn said() -> Schema {
    object([("stream", text()), ("role", optional(text())), ("content", any()), ("key", key())])
}

fn written() -> Schema {
    object([("id", integer()), ("o", text())])
}

fn held() -> Schema {
    object([("stream", text()), ("turn", integer()), ("lease", text())])
}

fn input() -> Schema {
    object([("id", integer()), ("role", or_null(text())), ("content", any())])
}

/// A stream as it stands.
fn stands() -> Schema {
    let turn = object([
        ("turn", integer()),
        ("last", integer()),
        ("folded_to", integer()),
        ("begun_at", or_null(text())),
    ]);
    object([
        ("name", text()),
        ("id", text()),
        ("status", text()),
        ("worker", or_null(text())),
        ("pos", integer()),
        ("history_pos", integer()),
        ("gen", integer()),
        ("turn", or_null(turn)),
        ("queue", array(input())),
        ("o", text()),
        ("error", or_null(text())),
        ("content_type", text()),
        ("labels", record(text())),
    ])
}

pub(super) fn service(behind: &Late) -> Service {
    turns(written_and_read(Service::new("streams"), behind), behind)
}

fn written_and_read(service: Service, behind: &Late) -> Service {
    let create = Mirror::put("/v1/streams/{name*}").params(ONE).body();
    let delete = Mirror::delete("/v1/streams/{name*}").params(ONE);
    let state = Mirror::get("/v1/streams/{name*}/state").params(ONE);
    let list = Mirror::get("/v1/streams").query();
    let append = Mirror::post("/v1/streams/{name*}/messages").params(ONE).headers(KEY).body();
    let edit = Mirror::patch("/v1/streams/{name*}/messages/{id}").params(ITEM).body();
    let remove = Mirror::delete("/v1/streams/{name*}/messages/{id}").params(ITEM);
    let queue = Mirror::post("/v1/streams/{name*}/queue").params(ONE).headers(KEY).body();
    let unqueue = Mirror::delete("/v1/streams/{name*}/queue/{id}").params(ITEM);
    let interrupt = Mirror::post("/v1/streams/{name*}/interrupt").params(ONE).body();
    let follows = behind.clone();
    let follow = Procedure::subscription(move |call, init: Value, out: Writable<Value>| {
        let request = FOLLOW.request(&follows, call, init)?;
        let (at, options) = follow_asked(&request).map_err(|response| failure_of(&response))?;
        let Behind { streams, .. } = follows.get()?;
        following::begin(streams, at, options, call, out);
        Ok(())
    })
    .inline();
    service
        .with(
            "create",
            create
                .procedure(behind)
                .about("Creates a stream, of JSON if nothing is said; the same again changes nothing.")
                .takes(object([
                    ("stream", text()),
                    ("content_type", optional(text())),
                    ("labels", labels()),
                    ("ttl_s", optional(integer())),
                    ("expires_at", optional(text())),
                    ("on_lost", optional(text().about("pending or failed"))),
                ]))
                .gives(stands()),
        )
        .with("delete", delete.procedure(behind).about("Deletes a stream.").takes(named()).gives(null()))
        .with("state", state.procedure(behind).about("A stream as it stands.").takes(named()).gives(stands()))
        .with(
            "list",
            list.procedure(behind)
                .about("Streams the caller may follow, oldest first; the queue of each is not shown.")
                .takes(object([
                    ("labels", labels()),
                    ("status", optional(one_of([text(), array(text())]))),
                    ("limit", optional(integer())),
                    ("after", optional(or_null(text())).about("the next of the page before")),
                ]))
                .gives(object([("streams", array(stands())), ("next", or_null(text()))])),
        )
        .with(
            "append",
            append.procedure(behind).about("Appends a durable message.").takes(said()).gives(written()),
        )
        .with(
            "edit",
            edit.procedure(behind)
                .about("Edits a message; followers get reset{history}.")
                .takes(object([("stream", text()), ("id", integer()), ("content", any())]))
                .gives(written()),
        )
        .with(
            "remove",
            remove
                .procedure(behind)
                .about("Removes a message; followers get reset{history}.")
                .takes(numbered())
                .gives(null()),
        )
        .with(
            "queue",
            queue
                .procedure(behind)
                .about("Queues an input for a worker.")
                .takes(said())
                .gives(object([("id", integer())])),
        )
        .with(
            "unqueue",
            unqueue
                .procedure(behind)
                .about("Takes an input out of the queue.")
                .takes(numbered())
                .gives(null()),
        )
        .with(
            "interrupt",
            interrupt
                .procedure(behind)
                .about("Asks the worker, wherever it runs, to stop.")
                .takes(object([("stream", text()), ("reason", optional(text()))])),
        )
        .with(
            "follow",
            follow
                .about("What is in a stream and what comes, in the event envelope of the HTTP door.")
                .takes(object([
                    ("stream", text()),
                    ("since", optional(text().about("a token, -1 or now"))),
                    ("parts", optional(boolean())),
                ]))
                .gives(object([
                    ("t", text()),
                    ("s", text()),
                    ("o", text()),
                    ("ts", integer()),
                    ("d", any()),
                    ("turn", optional(integer())),
                    ("n", optional(integer())),
                ])),
        )
}

fn turns(service: Service, behind: &Late) -> Service {
    let claim = Mirror::post("/v1/streams/{name*}/turns").params(ONE).headers(KEY).body();
    let next = Mirror::post("/v1/turns/next").headers(KEY).body();
    let commit = Mirror::post("/v1/streams/{name*}/turns/{turn}/commit")
        .params(TURN)
        .headers(&[("lease", "towpath-lease"), ("key", "idempotency-key")])
        .body();
    let finish = Mirror::post("/v1/streams/{name*}/turns/{turn}/finish").params(TURN).headers(LEASE).body();
    let abort = Mirror::post("/v1/streams/{name*}/turns/{turn}/abort").params(TURN).headers(LEASE).body();
    let keepalive = Mirror::post("/v1/streams/{name*}/turns/{turn}/keepalive").params(TURN).headers(LEASE);
    let (feeds, reads) = (behind.clone(), behind.clone());
    let parts = Procedure::upload_later(move |call, init: Value, later: Later<Value>, resume: Resume| {
        Uptake::open(feed(&feeds, call, init), later, resume)
    });
    let turn = Procedure::subscription(move |call, init: Value, out: Writable<Value>| {
        read_turn(&reads, call, init, &out)
    });
    service
        .with(
            "claim",
            claim
                .procedure(behind)
                .about("Claims a stream and begins a turn.")
                .takes(object([("stream", text()), ("key", key())]))
                .gives(object([("turn", integer()), ("lease", text()), ("input", optional(input()))])),
        )
        .with(
            "next",
            next.procedure(behind)
                .about("Claims whichever stream has been pending longest; null when none is.")
                .takes(object([("labels", labels()), ("key", key())]))
                .gives(or_null(object([
                    ("stream", text()),
                    ("turn", integer()),
                    ("lease", text()),
                    ("input", or_null(input())),
                ]))),
        )
        .with(
            "parts",
            parts
                .about(
                    "Adds parts to a turn, however long that takes. Answered when all are in, and at once when they are refused or the turn is asked to stop.",
                )
                .takes(object([
                    ("stream", text()),
                    ("turn", integer()),
                    ("lease", text()),
                    ("first", optional(integer().about("numbers the first part, from 1: what is there already is not added again"))),
                ]))
                .requests(object([("parts", array(any()).about("none at all is a sign of life"))]))
                .gives(object([
                    ("accepted", integer()),
                    ("last", integer()),
                    ("interrupted", optional(boolean())),
                ])),
        )
        .with(
            "turn",
            turn.about("The parts of a turn, from the first, until it ends.")
                .takes(object([("stream", text()), ("turn", integer())])),
        )
        .with(
            "commit",
            commit
                .procedure(behind)
                .about("Writes the message a turn has produced so far, which stands for its parts.")
                .takes(object([
                    ("stream", text()),
                    ("turn", integer()),
                    ("lease", text()),
                    ("role", optional(text())),
                    ("content", any()),
                    ("key", key()),
                ]))
                .gives(written()),
        )
        .with(
            "finish",
            finish.procedure(behind).about("Ends a turn.").takes(object([
                ("stream", text()),
                ("turn", integer()),
                ("lease", text()),
                ("status", text().about("done or failed")),
                ("error", optional(text())),
            ])),
        )
        .with("abort", abort.procedure(behind).about("Gives a turn up.").takes(held()))
        .with(
            "keepalive",
            keepalive
                .procedure(behind)
                .about("Says that a producer is alive.")
                .takes(held())
                .gives(object([("lease_until", text()), ("interrupted", boolean())])),
        )
}

/// What a caller asks to feed, if it may.
fn feed(behind: &Late, call: &Call, init: Value) -> uptake::Asked {
    let request = PARTS.request(behind, call, init)?;
    let asked = feeding(&request).map_err(|response| failure_of(&response))?;
    Ok((behind.get()?.streams.clone(), asked))
}

fn read_turn(behind: &Late, call: &Call, init: Value, out: &Writable<Value>) -> Result<(), Failure> {
    let request = READ_TURN.request(behind, call, init)?;
    let (at, turn) = turn_asked(&request).map_err(|response| failure_of(&response))?;
    let Behind { streams, .. } = behind.get()?;
    let Some(stream) = told(streams, call, |then| streams.resolve_then(at, then))? else { return Ok(()) };
    let (mut after, mut wait) = (0, false);
    loop {
        let read = told(streams, call, |then| streams.read_turn_then(stream, turn, after, wait, then))?;
        let Some(TurnRead { parts, last, closed, .. }) = read else { return Ok(()) };
        for part in &parts {
            match out.write(&value_of(part)?) {
                Err(NotWritten::Closed) => return Ok(()),
                written => written?,
            }
        }
        if closed {
            return Ok(());
        }
        (after, wait) = (last, true);
    }
}

/// Waits for what streams say; none once nobody listens any more.
fn told<T: Send + 'static>(
    streams: &Streams,
    call: &Call,
    ask: impl FnOnce(Then<T>),
) -> Result<Option<T>, Failure> {
    let rt = streams.rt();
    let (tell, told) = rt.channel("answer", 1);
    // Who has stopped waiting wants no answer.
    ask(Box::new(move |answer| drop(tell.try_send(answer))));
    while !call.cancel_token().is_cancelled() {
        // Woken by the answer, or by whoever was to give it being gone.
        match told.recv_deadline(rt.now() + LOOK) {
            Ok(answer) => return answer.map(Some).map_err(|error| failed(&error)),
            Err(crate::rt::RecvTimeoutError::Timeout) => {}
            Err(crate::rt::RecvTimeoutError::Disconnected) => return Err(failed(&StreamError::Stopped)),
        }
    }
    Ok(None)
}
