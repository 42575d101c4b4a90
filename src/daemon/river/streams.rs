//! The service `streams`: what `/v1/streams` does, as procedures.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Late, caller, may};
use crate::codec::token::Token;
use crate::engine::streams::{CreateStream, FollowOptions, Since, StreamError, Streams};
use crate::front::Op;
use crate::service::schema::{any, array, boolean, integer, object, optional, text};
use crate::service::{Call, Failure, NotWritten, Procedure, Service, Writable};
use crate::store::streams::{ListStreams, StreamRow};

/// How long a follow waits for an event before it looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(500);
/// Streams a page has, unless it is told otherwise.
const LIST: usize = 100;
const LIST_MAX: usize = 1_000;

#[derive(Deserialize)]
struct Named {
    stream: String,
}

#[derive(Deserialize)]
struct Said {
    stream: String,
    role: Option<String>,
    content: serde_json::Value,
}

#[derive(Serialize)]
struct Appended {
    id: u64,
    o: String,
}

#[derive(Deserialize)]
struct Edited {
    stream: String,
    id: u64,
    content: serde_json::Value,
}

#[derive(Deserialize)]
struct Numbered {
    stream: String,
    id: u64,
}

#[derive(Serialize)]
struct Queued {
    id: u64,
}

#[derive(Deserialize)]
struct List {
    limit: Option<usize>,
    after: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    streams: Vec<Stands>,
    next: Option<String>,
}

/// A stream as it stands.
#[derive(Serialize)]
struct Stands {
    name: String,
    id: String,
    status: &'static str,
    worker: Option<String>,
    pos: u64,
    history_pos: u64,
    #[serde(rename = "gen")]
    generation: u32,
    queued: usize,
    content_type: String,
}

impl Stands {
    fn new(row: &StreamRow, queued: usize) -> Stands {
        let state = &row.state;
        Stands {
            name: row.name.clone(),
            id: row.id.to_string(),
            status: state.status.name(),
            worker: state.status.worker().map(|worker| worker.to_string()),
            pos: state.pos,
            history_pos: state.history_pos,
            generation: state.generation,
            queued,
            content_type: row.content_type.clone(),
        }
    }
}

#[derive(Deserialize)]
struct Follow {
    stream: String,
    since: Option<String>,
    parts: Option<bool>,
}

fn failed(error: StreamError) -> Failure {
    Failure::new(error.code(), error.to_string())
}

/// An rpc about one stream, for those who may.
fn about<I, O>(
    behind: &Late,
    op: Op,
    stream: impl Fn(&I) -> &str + Send + Sync + 'static,
    act: impl Fn(&Streams, I) -> Result<O, StreamError> + Send + Sync + 'static,
) -> Procedure
where
    I: serde::de::DeserializeOwned + Send + 'static,
    O: Serialize,
{
    let behind = behind.clone();
    Procedure::rpc(move |call, ask: I| {
        may(call, op, stream(&ask))?;
        act(&behind.get()?.streams, ask).map_err(failed)
    })
}

pub(super) fn service(behind: &Late) -> Service {
    let named = || object([("stream", text())]);
    let numbered = || object([("stream", text()), ("id", integer())]);
    let said = || object([("stream", text()), ("role", optional(text())), ("content", any())]);
    let stands = || {
        object([
            ("name", text()),
            ("id", text()),
            ("status", text()),
            ("worker", any()),
            ("pos", integer()),
            ("history_pos", integer()),
            ("gen", integer()),
            ("queued", integer()),
            ("content_type", text()),
        ])
    };
    let create = about(
        behind,
        Op::Manage,
        |ask: &Named| ask.stream.as_str(),
        |streams, ask| streams.create(&ask.stream, json_messages()).map(|_| ()),
    );
    let delete = about(
        behind,
        Op::Manage,
        |ask: &Named| ask.stream.as_str(),
        |streams, ask| streams.delete(&ask.stream),
    );
    let state = about(
        behind,
        Op::Follow,
        |ask: &Named| ask.stream.as_str(),
        |streams, ask| streams.state(&ask.stream).map(|page| Stands::new(&page.stream, page.queue.len())),
    );
    let append = about(
        behind,
        Op::Append,
        |ask: &Said| ask.stream.as_str(),
        |streams, ask| {
            let written = streams.append(&ask.stream, ask.role.as_deref(), &ask.content)?;
            Ok(Appended { id: written.id, o: written.token.to_string() })
        },
    );
    let edit = about(
        behind,
        Op::Append,
        |ask: &Edited| ask.stream.as_str(),
        |streams, ask| {
            let written = streams.edit(&ask.stream, ask.id, &ask.content)?;
            Ok(Appended { id: written.id, o: written.token.to_string() })
        },
    );
    let remove = about(
        behind,
        Op::Append,
        |ask: &Numbered| ask.stream.as_str(),
        |streams, ask| streams.remove(&ask.stream, ask.id),
    );
    let queue = about(
        behind,
        Op::Append,
        |ask: &Said| ask.stream.as_str(),
        |streams, ask| streams.queue(&ask.stream, ask.role.as_deref(), &ask.content).map(|id| Queued { id }),
    );
    let unqueue = about(
        behind,
        Op::Append,
        |ask: &Numbered| ask.stream.as_str(),
        |streams, ask| streams.unqueue(&ask.stream, ask.id),
    );
    let interrupt = about(
        behind,
        Op::Interrupt,
        |ask: &Named| ask.stream.as_str(),
        |streams, ask| streams.interrupt(&ask.stream),
    );
    let (lists, follows) = (behind.clone(), behind.clone());
    let list = Procedure::rpc(move |call, ask: List| list(&lists.get()?.streams, call, &ask));
    let follow = Procedure::subscription(move |call, ask: Follow, out: Writable<serde_json::Value>| {
        may(call, Op::Follow, &ask.stream)?;
        follow_into(&follows.get()?.streams, call, &ask, &out)
    });
    Service::new("streams")
        .with(
            "create",
            create.about("Creates a stream of JSON messages; one that is there stays.").takes(named()),
        )
        .with("delete", delete.about("Deletes a stream.").takes(named()))
        .with("state", state.about("A stream as it stands.").takes(named()).gives(stands()))
        .with(
            "list",
            list.about("Streams the caller may follow, oldest first.")
                .takes(object([("limit", optional(integer())), ("after", optional(text()))]))
                .gives(object([("streams", array(stands())), ("next", any())])),
        )
        .with(
            "append",
            append
                .about("Appends a durable message.")
                .takes(said())
                .gives(object([("id", integer()), ("o", text())])),
        )
        .with(
            "edit",
            edit.about("Edits a message; followers get reset{history}.")
                .takes(object([("stream", text()), ("id", integer()), ("content", any())]))
                .gives(object([("id", integer()), ("o", text())])),
        )
        .with("remove", remove.about("Removes a message; followers get reset{history}.").takes(numbered()))
        .with(
            "queue",
            queue.about("Queues an input for a worker.").takes(said()).gives(object([("id", integer())])),
        )
        .with("unqueue", unqueue.about("Takes an input out of the queue.").takes(numbered()))
        .with("interrupt", interrupt.about("Asks the worker of the turn that runs to stop.").takes(named()))
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
                ])),
        )
}

fn json_messages() -> CreateStream {
    CreateStream { content_type: Some("application/json".into()), ..CreateStream::default() }
}

fn list(streams: &Streams, call: &Call, ask: &List) -> Result<Listed, Failure> {
    let limit = ask.limit.unwrap_or(LIST);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(Failure::new("bad_request", "limit is a number from 1 to 1000"));
    }
    let after = ask.after.as_deref().map(|after| super::uuid(after, "after")).transpose()?;
    let rows = streams.list(ListStreams { limit, after, ..ListStreams::default() }).map_err(failed)?;
    let next = rows.last().filter(|_| rows.len() == limit).map(|row| row.id.to_string());
    let who = caller(call);
    let seen = rows.iter().filter(|row| who.may(Op::Follow, &row.name));
    Ok(Listed { streams: seen.map(|row| Stands::new(row, 0)).collect(), next })
}

fn follow_into(
    streams: &Streams,
    call: &Call,
    ask: &Follow,
    out: &Writable<serde_json::Value>,
) -> Result<(), Failure> {
    let since = match ask.since.as_deref() {
        None | Some("-1") => Since::Start,
        Some("now") => Since::Now,
        Some(token) => {
            let token = token.parse::<Token>();
            Since::After(token.map_err(|_| Failure::new("bad_token", "this is not a token of a stream"))?)
        }
    };
    let options = FollowOptions { since, parts: ask.parts.unwrap_or(true) };
    let mut follow = streams
        .follow(&ask.stream, options)
        .map_err(|error| Failure::new(error.code(), error.to_string()))?;
    loop {
        if call.cancel_token().is_cancelled() {
            return Ok(());
        }
        match follow.next_within(LOOK) {
            Ok(None) => {}
            Ok(Some(event)) => {
                let json = event.to_json(&ask.stream, false);
                let json = serde_json::from_str(&json).map_err(Failure::uncaught)?;
                match out.write(&json) {
                    Err(NotWritten::Closed) => return Ok(()),
                    written => written?,
                }
            }
            // It was told why by the event before.
            Err(_) => return Ok(()),
        }
    }
}
