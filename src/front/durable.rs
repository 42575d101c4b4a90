//! The Durable Streams protocol 1.0 at `/v1/stream/{name}` (singular): the same streams as under
//! `/v1/streams`, in the words of its clients.
//!
//! A name is any path here. Offsets are tokens that stand for a position in history; `-1`, the protocol's
//! zero and `now` stand for both ends. What the protocol knows nothing of (status, queue, parts) is not told.

use std::time::Duration;

use super::streams::{or_answer, problem, rfc3339};
use super::{Body, Op, Reply, Request, Response, Role, Route, Router};
use crate::codec::token::Token;
use crate::engine::streams::durable::{Mode, offset};
use crate::engine::streams::{FollowOptions, Format, Newcomer, Since, StreamError, Streams};
use crate::engine::visits::Caller;
use crate::state::stream::Cursor;
use crate::store::streams::{Address, Expiry, MessageRow, Page, StreamRow};
use crate::wire::Owner;

mod write;

/// The offset before everything, as the protocol's other servers write it.
const ZERO: &str = "0000000000000000_0000000000000000";
/// How long a long poll waits: less than what proxies and the protocol's tests have patience for.
const POLL_WAIT: Duration = Duration::from_secs(15);
/// The longest name.
const NAME_MAX: usize = 1_024;

/// Adds the routes.
pub fn routes(router: &mut Router, streams: &Streams) {
    let with = |route: Route, handle: fn(&Streams, Request, Reply)| {
        let streams = streams.clone();
        route.to(move |request, reply| handle(&streams, request, reply))
    };
    let body_max = streams.limits().message_bytes_max + write::AROUND;
    let path = "/v1/stream/{name*}";
    let all = [
        with(
            Route::put(path)
                .about("Durable Streams: creates or forks a stream, with what it begins with")
                .needs(Role::Producer)
                .body_max(body_max)
                .answers(&[200, 201, 400, 404, 409]),
            write::create,
        ),
        with(
            Route::post(path)
                .about("Durable Streams: appends, closes, or both")
                .needs(Role::Producer)
                .body_max(body_max)
                .answers(&[200, 204, 400, 403, 404, 409, 410]),
            write::append,
        ),
        with(
            Route::get(path)
                .about("Durable Streams: reads from an offset; live=long-poll and live=sse wait for more")
                .takes_query(&["offset", "live", "cursor"])
                .answers(&[200, 204, 304, 400, 404, 410]),
            read,
        ),
        with(Route::head(path).about("Durable Streams: where a stream ends").answers(&[200, 404, 410]), head),
        with(
            Route::delete(path)
                .about("Durable Streams: deletes a stream, or hides it while it has forks")
                .needs(Role::Producer)
                .answers(&[204, 404, 410]),
            delete,
        ),
    ];
    for route in all {
        router.add(route);
    }
}

/// What every answer of this door carries, so that no browser takes a stream for a script or a page.
fn dressed(response: Response) -> Response {
    response.ours("x-content-type-options", "nosniff").ours("cross-origin-resource-policy", "cross-origin")
}

fn bad(code: &str, detail: &str) -> Response {
    dressed(Response::problem(400, code, detail))
}

fn failed(error: &StreamError) -> Response {
    dressed(problem(error))
}

/// The stream of a request, if its caller may do this with it. Names are names here, also those shaped like
/// a UUID.
fn stream_of(request: &Request, op: Op) -> Result<Address, Response> {
    let name = request.param("name");
    request.may(op, name).map_err(dressed)?;
    match name.len() {
        1..=NAME_MAX => Ok(Address::Name(name.to_owned())),
        _ => Err(bad("reserved_name", "a stream's name has 1 to 1024 characters")),
    }
}

/// Where a read begins, or a fork leaves its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offset {
    Start,
    Now,
    After(Token),
}

fn read_offset(text: &str) -> Result<Offset, Response> {
    match text {
        "-1" | ZERO => Ok(Offset::Start),
        "now" => Ok(Offset::Now),
        token => {
            token.parse().map(Offset::After).map_err(|why| bad("bad_offset", &format!("the offset: {why}")))
        }
    }
}

/// The position an offset stands for in a stream, or why it stands for none.
fn position(row: &StreamRow, offset: Offset) -> Result<u64, Response> {
    let state = &row.state;
    let token = match offset {
        Offset::Start => return Ok(0),
        Offset::Now => return Ok(state.history_pos),
        Offset::After(token) => token,
    };
    let gone = |detail| {
        let earliest = offset_text(row, state.trimmed_pos);
        Err(dressed(Response::problem(410, "offset_gone", detail)).header("stream-earliest-offset", earliest))
    };
    if token.tag.0 != row.tag {
        return gone("the offset is of another stream, or of one before it was made again; begin with -1");
    }
    if token.cursor.generation < state.generation {
        return gone("history before this offset was edited; begin with -1");
    }
    if token.cursor.generation > state.generation || token.cursor.pos > state.pos {
        return Err(bad("bad_offset", "the offset lies beyond the end of the stream"));
    }
    if token.cursor.pos < state.trimmed_pos {
        return gone("what followed this offset is no longer kept; begin with -1");
    }
    // A token of a follower may have seen a status after the last message.
    Ok(token.cursor.pos.min(state.history_pos))
}

fn offset_text(row: &StreamRow, pos: u64) -> String {
    offset(row, pos).to_string()
}

/// A conditional request that has what it would get.
fn matches(request: &Request, etag: &str) -> bool {
    let all = request.head().headers("if-none-match").flat_map(|value| value.split(','));
    all.map(str::trim).any(|given| given == "*" || given.strip_prefix("W/").unwrap_or(given) == etag)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Live {
    No,
    LongPoll,
    Sse,
}

fn read(streams: &Streams, request: Request, reply: Reply) {
    let at = or_answer!(reply, stream_of(&request, Op::Follow));
    let query = request.query();
    if query.iter().filter(|(key, _)| *key == "offset").count() > 1 {
        return reply.send(bad("bad_offset", "there is more than one offset"));
    }
    let given = query.get("offset");
    let live = match query.get("live") {
        None => Live::No,
        Some("long-poll") => Live::LongPoll,
        Some("sse") => Live::Sse,
        Some(_) => return reply.send(bad("bad_parameter", "live is long-poll or sse")),
    };
    if live != Live::No && given.is_none() {
        return reply
            .send(bad("bad_offset", "a live read needs an offset; -1 is the beginning, now is the end"));
    }
    let offset = or_answer!(reply, given.map_or(Ok(Offset::Start), read_offset));
    let theirs = query.get("cursor").and_then(|cursor| cursor.parse().ok());
    match live {
        Live::Sse => follow(streams, request.caller(), at, offset, theirs, reply),
        Live::No | Live::LongPoll => {
            let after = match offset {
                Offset::Start => 0,
                // Nothing is read, only where the end is.
                Offset::Now => i64::MAX as u64,
                Offset::After(token) => token.cursor.pos,
            };
            let read = Read {
                streams: streams.clone(),
                request,
                reply,
                offset,
                theirs,
                waits: live == Live::LongPoll,
            };
            streams.page_then(at, after, Box::new(move |page| read.answer(page)));
        }
    }
}

/// A read that is not answered yet.
struct Read {
    streams: Streams,
    request: Request,
    reply: Reply,
    offset: Offset,
    /// The cursor the reader came with.
    theirs: Option<u64>,
    /// Whether it waits for something to come.
    waits: bool,
}

impl Read {
    fn answer(self, page: Result<Page, StreamError>) {
        let page = match page {
            Ok(page) => page,
            Err(error) => return self.reply.send(failed(&error)),
        };
        let row = &page.stream;
        if matches!(row.expiry, Expiry::Ttl(_)) {
            self.streams.renew(row.id);
        }
        let after = or_answer!(self.reply, position(row, self.offset));
        let closed = row.state.closed_pos.is_some();
        if !page.messages.is_empty() || !self.waits {
            return self.give(row, after, page.messages.iter(), page.more);
        }
        if closed {
            return self.give_nothing(row);
        }
        let from = Cursor { generation: row.state.generation, pos: after, turn: 0, part: 0 };
        let (streams, id) = (self.streams.clone(), row.id);
        streams.poll_then(
            id,
            from,
            POLL_WAIT,
            Box::new(move |polled| match polled {
                Err(error) => self.reply.send(failed(&error)),
                Ok(polled) if !polled.news => self.give_nothing(&polled.row),
                Ok(polled) => {
                    let row = &polled.row;
                    let token = Offset::After(Token { cursor: from, ..offset(row, after) });
                    or_answer!(self.reply, position(row, token));
                    match polled.messages {
                        Some(messages) if messages.is_empty() => self.give_nothing(row),
                        Some(messages) => self.give(row, after, messages.iter().map(|row| &**row), false),
                        // More than what is at hand: read it, and wait no more.
                        None => {
                            let again = Read { waits: false, offset: token, ..self };
                            let streams = again.streams.clone();
                            streams.page_then(
                                Address::Id(id),
                                after,
                                Box::new(move |page| again.answer(page)),
                            );
                        }
                    }
                }
            }),
        );
    }

    fn cursor(&self) -> String {
        let rt = self.streams.rt();
        self.streams.cursors().after(rt.wall(), self.theirs, &mut rt.rand("stream-cursor")).to_string()
    }

    /// Messages, or the empty answer that says where the end is.
    fn give<'a>(
        self,
        row: &StreamRow,
        after: u64,
        messages: impl Iterator<Item = &'a MessageRow> + Clone,
        more: bool,
    ) {
        let state = &row.state;
        let last = messages.clone().last().map(|message| message.pos);
        let next = match (last, more) {
            (Some(last), true) => last,
            _ => state.history_pos.max(last.unwrap_or(0)),
        };
        let over = !more && state.closed_pos.is_some();
        let from_now = self.offset == Offset::Now;
        let etag =
            format!("\"{}:{}:{after}:{next}{}\"", row.id, state.generation, if over { ":c" } else { "" });
        let mut response = Response::new(200);
        if !from_now
            && !self.waits
            && self.request.method() == super::Method::Get
            && matches(&self.request, &etag)
        {
            response = Response::new(304);
        } else {
            let body = Mode::of(&row.content_type).body(messages);
            response = response.header("content-type", &row.content_type).body(Body::Bytes(body));
        }
        if !from_now {
            response = response.header("etag", etag);
        }
        if !more {
            response = response.header("stream-up-to-date", "true");
        }
        if over {
            response = response.header("stream-closed", "true");
        }
        if self.waits {
            response = response.header("stream-cursor", self.cursor());
        }
        // Who may read it is decided at each request, so that nobody between may answer in our place. A page
        // that is full changes only when history is edited.
        let keep = match (from_now || self.waits, more) {
            (true, _) => "no-store",
            (false, true) => "private, max-age=60, stale-while-revalidate=300",
            (false, false) => "private, no-cache",
        };
        let response =
            response.header("stream-next-offset", offset_text(row, next)).header("cache-control", keep);
        self.reply.send(dressed(response));
    }

    /// A long poll that ends without a message.
    fn give_nothing(self, row: &StreamRow) {
        let mut response = Response::new(204)
            .header("stream-next-offset", offset_text(row, row.state.history_pos))
            .header("stream-up-to-date", "true")
            .header("stream-cursor", self.cursor())
            .header("cache-control", "no-store");
        if row.state.closed_pos.is_some() {
            response = response.header("stream-closed", "true");
        }
        self.reply.send(dressed(response));
    }
}

/// `live=sse`
fn follow(streams: &Streams, caller: Caller, at: Address, offset: Offset, theirs: Option<u64>, reply: Reply) {
    let known = streams.clone();
    streams.come(
        at,
        Box::new(move |row| {
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    reply.send(failed(&error));
                    return None;
                }
            };
            let pos = match position(&row, offset) {
                Ok(pos) => pos,
                Err(answer) => {
                    reply.send(answer);
                    return None;
                }
            };
            let since = match offset {
                Offset::Start => Since::Start,
                Offset::Now | Offset::After(_) => {
                    Since::After(crate::engine::streams::durable::offset(&row, pos))
                }
            };
            known.cursors().pass(known.rt().wall(), theirs);
            let mut response = Response::new(200).header("cache-control", "no-cache, no-store");
            if Mode::of(&row.content_type) == Mode::Bytes {
                response = response.header("stream-sse-data-encoding", "base64");
            }
            let id = known.next_follower();
            let owner = Owner::new(&known.outlet(row.id), id);
            let link = reply.sse_with(dressed(response), Some(owner));
            let options = FollowOptions { since, parts: false };
            let visit = known.visit(&caller, &row.name, "durable");
            Some(Newcomer::on_link(id, row.id, options, link, Format::Durable, visit))
        }),
    );
}

fn head(streams: &Streams, request: Request, reply: Reply) {
    let at = or_answer!(reply, stream_of(&request, Op::Follow));
    streams.row_then(
        at,
        Box::new(move |row| {
            let row = match row {
                Ok(row) => row,
                Err(error) => return reply.send(failed(&error)),
            };
            let response = about(&row, Response::new(200)).header("cache-control", "no-store");
            reply.send(dressed(response));
        }),
    );
}

/// What a stream is, as headers.
fn about(row: &StreamRow, response: Response) -> Response {
    let mut response = response
        .header("content-type", &row.content_type)
        .header("stream-next-offset", offset_text(row, row.state.history_pos));
    match row.expiry {
        Expiry::Never => {}
        Expiry::Ttl(ttl) => response = response.header("stream-ttl", ttl.as_secs().to_string()),
        Expiry::At(at) => response = response.header("stream-expires-at", rfc3339(at)),
    }
    if row.state.closed_pos.is_some() {
        response = response.header("stream-closed", "true");
    }
    response
}

fn delete(streams: &Streams, request: Request, reply: Reply) {
    let at = or_answer!(reply, stream_of(&request, Op::Manage));
    let then = move |deleted: Result<(), StreamError>| {
        reply.send(match deleted {
            Ok(()) => dressed(Response::new(204)),
            Err(error) => failed(&error),
        });
    };
    streams.delete_then(at, Box::new(then));
}
