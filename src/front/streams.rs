//! Streams over HTTP: `/v1/streams/…` and `/v1/turns/next`, in the shapes that scripts rely on.
//!
//! Handlers run on an I/O thread: they read the request, hand it on with its [`Reply`], and return. Whoever
//! did the work answers, from a writer's, a reader's or a room's thread.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, json};
use uuid::Uuid;

use super::{Answer, Op, Reply, Request, Response, Role, Route, Router};
use crate::codec::sse;
use crate::codec::token::{Tag, Token};
use crate::engine::metadata::Metadata;
use crate::engine::streams::event::{is_text, push_input, push_queue};
use crate::engine::streams::{
    ClaimedTurn, CreateStream, FollowOptions, Format, Guest, Newcomer, Since, StreamError, Streams, Wanted,
    Written, address,
};
use crate::state::stream::{Cursor, LeaseHash, OnLost};
use crate::state::time::Wall;
use crate::state::turn::PartRefused;
use crate::store::streams::{Address, Draft, End, Expiry, Fence, Kind, ListStreams, QueuedRow, StreamRow};
use crate::wire::{Frame, Owner};

mod aisdk;
mod parts;
mod reader;
mod socket;

pub(crate) use self::parts::{Feed, Feeding, feeding, turn_asked};

/// The most streams on a page of the list.
const LIST_MAX: usize = 1_000;
/// How many streams a page has if nothing is said.
const LIST: usize = 100;
/// What a message's body may have besides its content.
const AROUND: usize = 4 * 1024;

/// Adds the routes; the guard stands before this is called. A `/v1/ws` may follow so many streams and agents.
pub fn routes(router: &mut Router, streams: &Streams, metadata: &Metadata, follows_max: usize) {
    let with = |route: Route, handle: fn(&Streams, Request, Answer)| {
        let streams = streams.clone();
        route.to_whole(move |request, answer| handle(&streams, request, answer))
    };
    let staying = |route: Route, handle: fn(&Streams, Request, Reply)| {
        let streams = streams.clone();
        route.to(move |request, reply| handle(&streams, request, reply))
    };
    let body_max = streams.limits().message_bytes_max + AROUND;
    let all = [
        with(
            Route::put("/v1/streams/{name*}")
                .about("Creates a stream")
                .needs(Role::Producer)
                .answers(&[201, 200, 409]),
            create,
        ),
        with(
            Route::delete("/v1/streams/{name*}")
                .about("Deletes a stream")
                .needs(Role::Producer)
                .answers(&[204, 404]),
            delete,
        ),
        with(
            Route::get("/v1/streams")
                .about("Lists streams, oldest first")
                .takes_query(&["label.", "status", "limit", "after"])
                .answers(&[200]),
            list,
        ),
        with(
            Route::get("/v1/streams/{name*}/state").about("A stream as it stands").answers(&[200, 404]),
            state,
        ),
        staying(
            Route::get("/v1/streams/{name*}/live")
                .about("The answer being produced, as the AI SDK resumes it; 204 when none is")
                .takes_query(&["format"])
                .answers(&[200, 204, 404]),
            aisdk::give,
        ),
        staying(
            Route::get("/v1/streams/{name*}/events")
                .live()
                .about("Follows a stream: server-sent events, or a WebSocket on Upgrade")
                .takes_query(&["since", "parts"])
                .answers(&[200, 101, 204, 404]),
            events,
        ),
        with(
            Route::post("/v1/streams/{name*}/messages")
                .about("Appends a message")
                .needs(Role::Producer)
                .body_max(body_max)
                .answers(&[201, 404, 409]),
            append,
        ),
        with(
            Route::patch("/v1/streams/{name*}/messages/{id}")
                .about("Edits a message; followers get reset{history}")
                .needs(Role::Producer)
                .body_max(body_max)
                .answers(&[200, 404]),
            edit,
        ),
        with(
            Route::delete("/v1/streams/{name*}/messages/{id}")
                .about("Removes a message; followers get reset{history}")
                .needs(Role::Producer)
                .answers(&[204, 404]),
            remove,
        ),
        with(
            Route::post("/v1/streams/{name*}/queue")
                .about("Queues an input for a worker")
                .needs(Role::Producer)
                .body_max(body_max)
                .answers(&[201, 404, 409]),
            queue,
        ),
        with(
            Route::delete("/v1/streams/{name*}/queue/{id}")
                .about("Takes an input out of the queue")
                .needs(Role::Producer)
                .answers(&[204, 404]),
            unqueue,
        ),
        with(
            Route::post("/v1/streams/{name*}/turns")
                .about("Claims a stream and begins a turn")
                .needs(Role::Producer)
                .answers(&[201, 404, 409]),
            claim,
        ),
        with(
            Route::post("/v1/turns/next")
                .about("Claims whichever stream has been pending longest")
                .needs(Role::Producer)
                .answers(&[200, 204]),
            next,
        ),
        staying(
            Route::post("/v1/streams/{name*}/turns/{turn}/parts")
                .about("Adds parts, one JSON a line; the body may stay open")
                .needs(Role::Producer)
                .streamed()
                .answers(&[200, 409]),
            parts::take,
        ),
        staying(
            Route::get("/v1/streams/{name*}/turns/{turn}")
                .live()
                .about("The parts of a turn, one JSON a line, until it ends")
                .answers(&[200, 404]),
            parts::give,
        ),
        with(
            Route::post("/v1/streams/{name*}/turns/{turn}/commit")
                .about("Writes the message a turn has produced so far")
                .needs(Role::Producer)
                .body_max(body_max)
                .answers(&[201, 409]),
            commit,
        ),
        with(
            Route::post("/v1/streams/{name*}/turns/{turn}/finish")
                .about("Ends a turn")
                .needs(Role::Producer)
                .answers(&[200, 409]),
            finish,
        ),
        with(
            Route::post("/v1/streams/{name*}/turns/{turn}/abort")
                .about("Gives a turn up")
                .needs(Role::Producer)
                .answers(&[200, 409]),
            abort,
        ),
        with(
            Route::post("/v1/streams/{name*}/turns/{turn}/keepalive")
                .about("Says that a producer is alive")
                .needs(Role::Producer)
                .answers(&[200, 409]),
            keepalive,
        ),
        with(
            Route::post("/v1/streams/{name*}/interrupt")
                .about("Asks the worker, wherever it runs, to stop")
                .needs_one_of(&[Role::Producer, Role::Follower])
                .answers(&[202, 404]),
            interrupt,
        ),
    ];
    for route in all {
        router.add(route);
    }
    let behind = socket::Behind {
        streams: streams.clone(),
        metadata: metadata.clone(),
        guard: router.guarded_by().clone(),
    };
    let socket = Route::get("/v1/ws")
        .live()
        .about("Many follows, watches and writes on one WebSocket, subprotocol towpath.v1")
        .answers(&[101]);
    router.add(socket.to(move |request, reply| socket::open(&behind, follows_max, request, reply)));
}

/// What went wrong, as a problem document.
pub(crate) fn problem(error: &StreamError) -> Response {
    let mut extra = Map::new();
    let status = match error {
        StreamError::Missing
        | StreamError::NoMessage { .. }
        | StreamError::NoInput { .. }
        | StreamError::NoTurn { .. } => 404,
        StreamError::Gone => 410,
        StreamError::TurnRunning { worker, turn } => {
            extra.insert("worker".into(), worker.to_string().into());
            extra.insert("turn".into(), (*turn).into());
            409
        }
        StreamError::Part { why, accepted, last } => {
            extra.insert("accepted".into(), (*accepted).into());
            extra.insert("last".into(), (*last).into());
            if matches!(why, PartRefused::Full { .. }) { 413 } else { 409 }
        }
        StreamError::Exists
        | StreamError::Closed
        | StreamError::TurnLost { .. }
        | StreamError::NotHere
        | StreamError::OtherType { .. }
        | StreamError::Conflict(_) => 409,
        StreamError::QueueFull { .. } => 429,
        StreamError::TooLarge { .. } => 413,
        StreamError::BadName(_) | StreamError::BadJson(_) => 400,
        StreamError::Unreachable | StreamError::Store(_) | StreamError::Full | StreamError::Stopped => 503,
    };
    let response = Response::problem_with(status, error.code(), &error.to_string(), extra);
    if status == 503 { response.header("retry-after", "1") } else { response }
}

/// Answers with what `shape` makes of the outcome.
fn answer<T: 'static>(
    reply: Answer,
    shape: impl FnOnce(T) -> Response + Send + 'static,
) -> Box<dyn FnOnce(Result<T, StreamError>) + Send> {
    Box::new(move |outcome| {
        reply.send(match outcome {
            Ok(it) => shape(it),
            Err(error) => problem(&error),
        });
    })
}

/// Gives up with the response that says why.
macro_rules! or_answer {
    ($reply:expr, $attempt:expr) => {
        match $attempt {
            Ok(value) => value,
            Err(response) => return $reply.send(response),
        }
    };
}
pub(super) use or_answer;

/// The stream of a request, if its caller may do this with it.
fn stream_of(request: &Request, op: Op) -> Result<Address, Response> {
    let name = request.param("name");
    request.may(op, name)?;
    Ok(address(name))
}

fn number<T: std::str::FromStr>(request: &Request, param: &str) -> Result<T, Response> {
    let bad = || Response::problem(400, "bad_request", &format!("{param} in the path is not a number"));
    request.param(param).parse().map_err(|_| bad())
}

fn idempotency_key(request: &Request) -> Result<Option<String>, Response> {
    let Some(key) = request.header("idempotency-key") else { return Ok(None) };
    if key.is_empty() || key.len() > 200 {
        return Err(Response::problem(400, "bad_key", "an Idempotency-Key has 1 to 200 characters"));
    }
    // The same key means the same thing only to the same caller and path.
    Ok(Some(format!("{} {} {key}", request.who().name, request.path())))
}

/// The turn a request speaks of, and the proof that it is the caller's.
fn fence(request: &Request) -> Result<Fence, Response> {
    let turn = number(request, "turn")?;
    let bad = || {
        let detail = "the header Towpath-Lease must be there: the lease that the claim gave";
        Response::problem(400, "no_lease", detail)
    };
    let lease = request.header("towpath-lease").map(read_lease).ok_or_else(bad)?;
    Ok(Fence { turn, lease })
}

/// The lease as it is kept. A text that no claim gave is one that fits no turn: the writer is fenced like
/// any other, and learns nothing from how it is refused.
fn read_lease(text: &str) -> LeaseHash {
    match URL_SAFE_NO_PAD.decode(text) {
        Ok(secret) => LeaseHash::of(&secret),
        Err(_) => LeaseHash::of(text.as_bytes()),
    }
}

/// Where a follow begins.
fn since(text: Option<&str>) -> Result<Since, Response> {
    match text {
        None | Some("-1" | "") => Ok(Since::Start),
        Some("now") => Ok(Since::Now),
        Some(token) => match token.parse::<Token>() {
            Ok(token) => Ok(Since::After(token)),
            Err(why) => Err(Response::problem(400, "bad_token", &why.to_string())),
        },
    }
}

pub(super) fn rfc3339(wall: Wall) -> String {
    match jiff::Timestamp::from_microsecond(wall.as_micros()) {
        Ok(at) => at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        // Beyond the year 9999, where no store's clock is.
        Err(_) => "9999-12-31T23:59:59.999Z".into(),
    }
}

fn token_of(row: &StreamRow, pos: u64) -> Token {
    let cursor = Cursor { generation: row.state.generation, pos, turn: 0, part: 0 };
    Token { tag: Tag(row.tag), cursor }
}

/// A stream as `state` and `list` show it. `last` is the last part of its turn.
fn shape(row: &StreamRow, queue: &[QueuedRow], last: u32) -> Box<RawValue> {
    let state = &row.state;
    let mut queued = String::new();
    push_queue(&mut queued, queue, is_text(&row.content_type));
    let queue = RawValue::from_string(queued).expect("what this crate writes is JSON");
    let turn = state.status.run().map(|_| {
        json!({
            "turn": state.turn_no,
            "last": last.max(row.turn_folded_to),
            "folded_to": row.turn_folded_to,
            "begun_at": row.turn_begun_at.map(rfc3339),
        })
    });
    #[derive(serde::Serialize)]
    struct Shape<'a> {
        name: &'a str,
        id: Uuid,
        status: &'static str,
        worker: Option<Uuid>,
        pos: u64,
        history_pos: u64,
        #[serde(rename = "gen")]
        generation: u32,
        turn: Option<serde_json::Value>,
        queue: Box<RawValue>,
        o: String,
        error: Option<&'a str>,
        content_type: &'a str,
        labels: &'a crate::store::Labels,
    }
    let shape = Shape {
        name: &row.name,
        id: row.id,
        status: state.status.name(),
        worker: state.status.worker(),
        pos: state.pos,
        history_pos: state.history_pos,
        generation: state.generation,
        turn,
        queue,
        o: token_of(row, state.pos).to_string(),
        error: state.error.as_deref(),
        content_type: &row.content_type,
        labels: &row.labels,
    };
    serde_json::value::to_raw_value(&shape).expect("strings and numbers are JSON")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    content_type: Option<String>,
    labels: Option<crate::store::Labels>,
    ttl_s: Option<u64>,
    expires_at: Option<String>,
    on_lost: Option<String>,
}

fn create(streams: &Streams, request: Request, reply: Answer) {
    let name = request.param("name").to_owned();
    or_answer!(reply, request.may(Op::Manage, &name));
    let asked = or_answer!(reply, request.json::<Create>());
    let bad = |detail: &str| Response::problem(400, "bad_field", detail);
    let expiry = or_answer!(
        reply,
        match (asked.ttl_s, asked.expires_at) {
            (None, None) => Ok(None),
            (Some(0), _) => Err(bad("ttl_s must be at least 1; leave it out for a stream that stays")),
            (Some(ttl), None) => Ok(Some(Expiry::Ttl(std::time::Duration::from_secs(ttl)))),
            (None, Some(at)) => match at.parse::<jiff::Timestamp>() {
                Ok(at) => Ok(Some(Expiry::At(Wall(at.as_microsecond())))),
                Err(_) => Err(bad("expires_at must be a time as in RFC 3339")),
            },
            (Some(_), Some(_)) => Err(bad("ttl_s and expires_at exclude each other")),
        }
    );
    let on_lost = or_answer!(
        reply,
        asked
            .on_lost
            .map(|name| name.parse::<OnLost>())
            .transpose()
            .map_err(|()| bad("on_lost is pending or failed"))
    );
    let create = CreateStream { content_type: asked.content_type, labels: asked.labels, expiry, on_lost };
    streams.create_then(
        &name,
        create,
        answer(reply, |(row, new): (StreamRow, bool)| {
            Response::json(if new { 201 } else { 200 }, &shape(&row, &[], 0))
                .header("location", format!("/v1/streams/{}", row.name))
                .header("stream-next-offset", token_of(&row, row.state.history_pos).to_string())
        }),
    );
}

fn delete(streams: &Streams, request: Request, reply: Answer) {
    let at = or_answer!(reply, stream_of(&request, Op::Manage));
    streams.delete_then(at, answer(reply, |()| Response::new(204)));
}

fn list(streams: &Streams, request: Request, reply: Answer) {
    let query = or_answer!(reply, request.query_of(&["label.", "status", "limit", "after"]));
    let bad = |detail: &str| Response::problem(400, "bad_parameter", detail);
    let mut list = ListStreams { limit: LIST, ..ListStreams::default() };
    for (key, value) in query.iter() {
        match key {
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=LIST_MAX).contains(limit));
                list.limit = or_answer!(reply, limit.ok_or_else(|| bad("limit is a number from 1 to 1000")));
            }
            "after" => {
                list.after =
                    Some(or_answer!(reply, value.parse().map_err(|_| bad("after is the next of a page"))));
            }
            "status" => {
                for name in value.split(',') {
                    let known = crate::state::stream::Status::NAMES.into_iter().find(|known| *known == name);
                    let unknown =
                        || bad("status is one of idle, pending, running, interrupting, failed, done");
                    list.status.push(or_answer!(reply, known.ok_or_else(unknown)));
                }
            }
            _ => {
                if let Some(label) = key.strip_prefix("label.") {
                    list.labels.insert(label.to_owned(), value.to_owned());
                }
            }
        }
    }
    let limit = list.limit;
    let who = request.who().clone();
    streams.list_then(
        list,
        answer(reply, move |rows: Vec<StreamRow>| {
            let next = (rows.len() == limit).then(|| rows.last().map(|row| row.id)).flatten();
            let seen = rows.iter().filter(|row| who.may(Op::Follow, &row.name));
            let streams: Vec<_> = seen.map(|row| shape(row, &[], 0)).collect();
            #[derive(serde::Serialize)]
            struct Page {
                streams: Vec<Box<RawValue>>,
                next: Option<Uuid>,
            }
            Response::json(200, &Page { streams, next })
        }),
    );
}

fn state(streams: &Streams, request: Request, reply: Answer) {
    let at = or_answer!(reply, stream_of(&request, Op::Follow));
    let rooms = streams.clone();
    streams.state_then(
        at,
        Box::new(move |page| {
            let page = match page {
                Ok(page) => page,
                Err(error) => return reply.send(problem(&error)),
            };
            // How far the turn is, its room knows; one that runs elsewhere is as far as its last message.
            let (stream, turn) = (page.stream.id, page.stream.state.turn_no);
            let then = move |last: Result<u32, StreamError>| {
                reply.json(200, &shape(&page.stream, &page.queue, last.unwrap_or(0)));
            };
            rooms.last_part_then(stream, turn, Box::new(then));
        }),
    );
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    role: Option<String>,
    content: Box<RawValue>,
}

impl Said {
    fn draft(self) -> Draft {
        Draft { kind: Kind::Json, role: self.role, content: self.content.get().as_bytes().into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    content: Box<RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn written(status: u16) -> impl FnOnce(Written) -> Response + Send + 'static {
    move |written| Response::json(status, &json!({ "id": written.id, "o": written.token.to_string() }))
}

fn append(streams: &Streams, request: Request, reply: Answer) {
    let at = or_answer!(reply, stream_of(&request, Op::Append));
    let key = or_answer!(reply, idempotency_key(&request));
    let said = or_answer!(reply, request.json::<Said>());
    streams.append_then(at, said.draft(), key, answer(reply, written(201)));
}

fn edit(streams: &Streams, request: Request, reply: Answer) {
    let at = or_answer!(reply, stream_of(&request, Op::Append));
    let id = or_answer!(reply, number(&request, "id"));
    let edit = or_answer!(reply, request.json::<Edit>());
    let said = Said { role: None, content: edit.content };
    streams.edit_then(at, id, said.draft(), answer(reply, written(200)));
}

fn remove(streams: &Streams, request: Request, reply: Answer) {
    let at = or_answer!(reply, stream_of(&request, Op::Append));
    let id = or_answer!(reply, number(&request, "id"));
    streams.remove_then(at, id, answer(reply, |_| Response::new(204)));
}

fn queue(streams: &Streams, request: Request, reply: Answer) {
    let at = or_answer!(reply, stream_of(&request, Op::Append));
    let key = or_answer!(reply, idempotency_key(&request));
    let said = or_answer!(reply, request.json::<Said>());
    let then = answer(reply, |id: u64| Response::json(201, &json!({ "id": id })));
    streams.queue_then(at, said.draft(), key, then);
}

fn unqueue(streams: &Streams, request: Request, reply: Answer) {
    let at = or_answer!(reply, stream_of(&request, Op::Append));
    let id = or_answer!(reply, number(&request, "id"));
    streams.unqueue_then(at, id, answer(reply, |()| Response::new(204)));
}

fn lease_text(claimed: &ClaimedTurn) -> String {
    URL_SAFE_NO_PAD.encode(claimed.lease)
}

fn input_of(claimed: &ClaimedTurn) -> Option<Box<RawValue>> {
    let mut text = String::new();
    push_input(&mut text, claimed.input.as_ref()?, true);
    Some(RawValue::from_string(text).expect("what this crate writes is JSON"))
}

fn claim(streams: &Streams, request: Request, reply: Answer) {
    let at = or_answer!(reply, stream_of(&request, Op::Produce));
    let key = or_answer!(reply, idempotency_key(&request));
    let Nothing {} = or_answer!(reply, request.json::<Nothing>());
    #[derive(serde::Serialize)]
    struct Turn {
        turn: u32,
        lease: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        input: Option<Box<RawValue>>,
    }
    let then = answer(reply, |claimed: Option<ClaimedTurn>| match claimed {
        Some(claimed) => {
            let turn = Turn { turn: claimed.turn, lease: lease_text(&claimed), input: input_of(&claimed) };
            Response::json(201, &turn).header("cache-control", "no-store")
        }
        None => problem(&StreamError::Missing),
    });
    streams.claim_then(Wanted::Stream(at), key, then);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Next {
    #[serde(default)]
    labels: crate::store::Labels,
}

fn next(streams: &Streams, request: Request, reply: Answer) {
    if request.who().scopes.is_some() {
        // Which stream it would be is known only when it has been claimed.
        let detail = "credentials that are for some streams only cannot ask for any; claim one by its name";
        return reply.problem(403, "forbidden", detail);
    }
    let key = or_answer!(reply, idempotency_key(&request));
    let asked = or_answer!(reply, request.json::<Next>());
    #[derive(serde::Serialize)]
    struct Turn {
        stream: String,
        turn: u32,
        lease: String,
        input: Option<Box<RawValue>>,
    }
    let then = answer(reply, |claimed: Option<ClaimedTurn>| match claimed {
        Some(claimed) => {
            let (lease, input) = (lease_text(&claimed), input_of(&claimed));
            let turn = Turn { turn: claimed.turn, lease, input, stream: claimed.name };
            Response::json(200, &turn).header("cache-control", "no-store")
        }
        None => Response::new(204),
    });
    streams.claim_then(Wanted::Next(asked.labels), key, then);
}

/// Finds the stream of a turn and does something with it.
fn with_turn(
    streams: &Streams,
    request: &Request,
    reply: Answer,
    run: impl FnOnce(&Streams, Uuid, Fence, Answer) + Send + 'static,
) {
    let at = or_answer!(reply, stream_of(request, Op::Produce));
    let fence = or_answer!(reply, fence(request));
    let known = streams.clone();
    streams.resolve_then(
        at,
        Box::new(move |stream| match stream {
            Ok(stream) => run(&known, stream, fence, reply),
            Err(error) => reply.send(problem(&error)),
        }),
    );
}

fn commit(streams: &Streams, request: Request, reply: Answer) {
    let key = or_answer!(reply, idempotency_key(&request));
    let said = or_answer!(reply, request.json::<Said>());
    with_turn(streams, &request, reply, move |streams, stream, fence, reply| {
        streams.commit_then(stream, fence, said.draft(), key, answer(reply, written(201)));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Finish {
    status: String,
    error: Option<String>,
}

fn finish(streams: &Streams, request: Request, reply: Answer) {
    let asked = or_answer!(reply, request.json::<Finish>());
    let end = match (asked.status.as_str(), asked.error) {
        ("done", None) => End::Done,
        ("failed", error) => End::Failed(error.unwrap_or_else(|| "failed".into())),
        _ => {
            let detail = "status is done, or failed with an error";
            return reply.problem(400, "bad_field", detail);
        }
    };
    end_turn(streams, &request, reply, end);
}

fn abort(streams: &Streams, request: Request, reply: Answer) {
    let Nothing {} = or_answer!(reply, request.json::<Nothing>());
    end_turn(streams, &request, reply, End::Aborted);
}

fn end_turn(streams: &Streams, request: &Request, reply: Answer, end: End) {
    with_turn(streams, request, reply, move |streams, stream, fence, reply| {
        streams.end_then(stream, fence, end, answer(reply, |()| Response::json(200, &json!({}))));
    });
}

fn keepalive(streams: &Streams, request: Request, reply: Answer) {
    with_turn(streams, &request, reply, |streams, stream, fence, reply| {
        let then = answer(reply, |alive: crate::engine::streams::Alive| {
            let lease_until = rfc3339(alive.lease_until);
            Response::json(200, &json!({ "lease_until": lease_until, "interrupted": alive.interrupted }))
        });
        streams.keepalive_then(stream, fence, then);
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Interrupt {
    reason: Option<String>,
}

fn interrupt(streams: &Streams, request: Request, reply: Answer) {
    let at = or_answer!(reply, stream_of(&request, Op::Interrupt));
    let asked = or_answer!(reply, request.json::<Interrupt>());
    if let Some(reason) = asked.reason {
        log::info!("interrupt asked stream={} reason={reason:?}", request.param("name"));
    }
    streams.interrupt_then(at, answer(reply, |()| Response::json(202, &json!({}))));
}

/// What a request asks to follow, and how.
pub(crate) fn follow_asked(request: &Request) -> Result<(Address, FollowOptions), Response> {
    let at = stream_of(request, Op::Follow)?;
    let query = request.query_of(&["since", "parts", "ticket"])?;
    // What a browser sends when it comes back is newer than what stands in the address.
    let text = request.header("last-event-id").filter(|id| !id.is_empty()).or(query.get("since"));
    let since = since(text)?;
    let parts = match query.get("parts") {
        None | Some("1") => true,
        Some("0") => false,
        Some(_) => return Err(Response::problem(400, "bad_parameter", "parts is 0 or 1")),
    };
    Ok((at, FollowOptions { since, parts }))
}

fn events(streams: &Streams, request: Request, reply: Reply) {
    let (at, options) = or_answer!(reply, follow_asked(&request));
    let since = options.since;
    let format = if request.wants_websocket() { Format::Ws } else { Format::Sse };
    let visit = {
        let (streams, caller, name) = (streams.clone(), request.caller(), request.param("name").to_owned());
        let how = if format == Format::Ws { "websocket" } else { "sse" };
        move || streams.visit(&caller, &name, how)
    };
    let known = streams.clone();
    // A token may stand at the end of a closed stream, where an EventSource must be told to stay away.
    if matches!(since, Since::After(_)) || matches!(at, Address::Id(_)) {
        let comes = move |row: Result<StreamRow, StreamError>| match row {
            Err(error) => {
                reply.send(problem(&error));
                None
            }
            Ok(row) if is_over(&row, since) => {
                reply.empty(204);
                None
            }
            Ok(row) => newcomer(&known, row.id, options, format, visit(), reply),
        };
        streams.come(at, Box::new(comes));
    } else {
        streams.resolve_then(
            at,
            Box::new(move |stream| match stream {
                Ok(stream) => {
                    if let Some(newcomer) = newcomer(&known, stream, options, format, visit(), reply) {
                        known.enter(newcomer);
                    }
                }
                Err(error) => reply.send(problem(&error)),
            }),
        );
    }
}

fn is_over(row: &StreamRow, since: Since) -> bool {
    let Since::After(token) = since else { return false };
    let at = (token.tag.0, token.cursor.generation);
    row.state.closed_pos.is_some()
        && at == (row.tag, row.state.generation)
        && token.cursor.pos >= row.state.pos
}

/// Answers with a link that stays, and gives who follows over it.
fn newcomer(
    streams: &Streams,
    stream: Uuid,
    options: FollowOptions,
    format: Format,
    guest: Guest,
    reply: Reply,
) -> Option<Newcomer> {
    /// A follower has nothing to say that is longer.
    const SAID_MAX: u32 = 4 * 1024;
    let id = streams.next_follower();
    let owner = Owner::new(&streams.outlet(stream), id);
    let link = match format {
        Format::Sse | Format::Durable => reply.sse(Some(owner)),
        Format::Ws => reply.follower_websocket(&["towpath.v1"], SAID_MAX, owner)?,
    };
    if format == Format::Sse {
        link.send_paced(Frame::chunk(&sse::retry(std::time::Duration::from_secs(1))));
    }
    Some(Newcomer::on_link(id, stream, options, link, format, guest))
}

/// Parts as they are added: each line a JSON document.
fn part_of(line: &[u8]) -> Result<Arc<str>, Response> {
    let part: Box<RawValue> = super::from_json(line)?;
    Ok(part.get().into())
}
