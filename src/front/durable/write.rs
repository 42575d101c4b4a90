//! Creating, forking, appending and closing.

use serde_json::value::RawValue;

use super::{Offset, about, bad, dressed, failed, read_offset, stream_of};
use crate::engine::streams::durable::{Mode, offset_of};
use crate::engine::streams::{StreamError, Streams};
use crate::front::streams::or_answer;
use crate::front::{Op, Reply, Request, Response};
use crate::state::time::Wall;
use crate::store::streams::{
    Address, Append, Appended, Change, Created, Draft, Expiry, ForkAt, Kind, NewFork, NewStream, Producer,
};

/// What a body may have besides one message: brackets, commas and spaces of a batch.
pub(super) const AROUND: usize = 64 * 1024;
/// The largest number a JavaScript reader takes for what it is.
const SAFE_MAX: u64 = (1 << 53) - 1;

/// A whole number in the protocol's notation: digits alone, no zero before others.
fn whole(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|number| plain && *number <= SAFE_MAX)
}

/// A header that may be there once.
fn once<'a>(request: &'a Request, name: &str) -> Result<Option<&'a str>, Response> {
    match (request.head().has(name), request.header(name)) {
        (false, _) => Ok(None),
        (true, Some(value)) => Ok(Some(value)),
        (true, None) => Err(bad("bad_header", &format!("{name} came twice, or is not ASCII"))),
    }
}

fn is_closing(request: &Request) -> bool {
    request.header("stream-closed").is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// The messages of a body: JSON mode takes an array apart, one level of it.
fn messages(mode: Mode, body: &[u8]) -> Result<Vec<Draft>, Response> {
    let bytes = |kind, content: &[u8]| Draft { kind, role: None, content: content.into() };
    if mode != Mode::Json {
        return Ok(if body.is_empty() { Vec::new() } else { vec![bytes(Kind::Bytes, body)] });
    }
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let not_json = |error: serde_json::Error| bad("bad_json", &format!("the body: {error}"));
    let json = |text: &RawValue| bytes(Kind::Json, text.get().as_bytes());
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        let all: Vec<&RawValue> = serde_json::from_slice(body).map_err(not_json)?;
        Ok(all.into_iter().map(json).collect())
    } else {
        let one: &RawValue = serde_json::from_slice(body).map_err(not_json)?;
        Ok(vec![json(one)])
    }
}

fn expiry(request: &Request) -> Result<Option<Expiry>, Response> {
    let (ttl, at) = (once(request, "stream-ttl")?, once(request, "stream-expires-at")?);
    match (ttl, at) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(bad("bad_header", "Stream-TTL and Stream-Expires-At exclude each other")),
        (Some(ttl), None) => match whole(ttl) {
            Some(ttl) => Ok(Some(Expiry::Ttl(std::time::Duration::from_secs(ttl)))),
            None => Err(bad("bad_header", "Stream-TTL is a number of seconds, digits alone")),
        },
        (None, Some(at)) => match at.parse::<jiff::Timestamp>() {
            Ok(at) => Ok(Some(Expiry::At(Wall(at.as_microsecond())))),
            Err(_) => Err(bad("bad_header", "Stream-Expires-At is a time as in RFC 3339")),
        },
    }
}

/// The fork that is asked for, and the name of its source.
fn fork(request: &Request) -> Result<Option<(NewFork, String)>, Response> {
    let from = once(request, "stream-forked-from")?;
    let at = once(request, "stream-fork-offset")?;
    let beyond = once(request, "stream-fork-sub-offset")?;
    let Some(from) = from else {
        if at.is_some() || beyond.is_some() {
            return Err(bad("bad_header", "a fork's offsets mean nothing without Stream-Forked-From"));
        }
        return Ok(None);
    };
    // A path, or the whole address of the source.
    let name = from.split_once("/v1/stream/").and_then(|(_, name)| crate::front::query::decode(name));
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Err(bad("bad_header", "Stream-Forked-From is the path of a stream: /v1/stream/…"));
    };
    let at = match at.map(read_offset).transpose()? {
        None | Some(Offset::Now) => None,
        Some(Offset::Start) => Some(ForkAt::Start),
        Some(Offset::After(token)) => {
            let (generation, pos) = (token.cursor.generation, token.cursor.pos);
            Some(ForkAt::Pos { tag: token.tag.0, generation, pos })
        }
    };
    let beyond = match beyond.map(whole) {
        None => 0,
        Some(Some(beyond)) => beyond,
        Some(None) => return Err(bad("bad_header", "Stream-Fork-Sub-Offset is a number, digits alone")),
    };
    Ok(Some((NewFork { source: Address::Name(name.clone()), at, beyond }, name)))
}

/// `PUT`
pub(super) fn create(streams: &Streams, mut request: Request, reply: Reply) {
    let Address::Name(name) = or_answer!(reply, stream_of(&request, Op::Manage)) else {
        unreachable!("names are names here");
    };
    let content_type =
        or_answer!(reply, once(&request, "content-type")).filter(|it| !it.is_empty()).map(str::to_owned);
    let expiry = or_answer!(reply, expiry(&request));
    let fork = or_answer!(reply, fork(&request));
    if let Some((_, source)) = &fork {
        or_answer!(reply, request.may(Op::Follow, source).map_err(dressed));
    }
    let scheme = if request.peer().tls { "https" } else { "http" };
    let location = format!("{scheme}://{}{}", request.head().host, request.head().path);
    let mut new = NewStream::named(streams.new_id(), name);
    new.expiry = expiry;
    new.closed = Some(is_closing(&request));
    let body = request.take_body();
    let make = Make { streams: streams.clone(), reply, location, new, body };
    match fork {
        // What a fork begins with is of its source's type, which only the store knows.
        Some((fork, _)) if content_type.is_none() && !make.body.is_empty() => {
            let source = fork.source.clone();
            let then = move |row: Result<crate::store::streams::StreamRow, StreamError>| match row {
                Ok(row) => make.of(Some(row.content_type), Some(fork)),
                Err(StreamError::Gone) => make.reply.send(source_gone()),
                Err(error) => make.reply.send(failed(&error)),
            };
            streams.row_then(source, Box::new(then));
        }
        fork => make.of(content_type, fork.map(|(fork, _)| fork)),
    }
}

/// A stream about to be made.
struct Make {
    streams: Streams,
    reply: Reply,
    location: String,
    new: NewStream,
    body: Vec<u8>,
}

impl Make {
    fn of(self, content_type: Option<String>, fork: Option<NewFork>) {
        let Make { streams, reply, location, mut new, body } = self;
        let mode = Mode::of(content_type.as_deref().unwrap_or_default());
        new.first = or_answer!(reply, messages(mode, &body));
        (new.content_type, new.fork) = (content_type, fork);
        if new.fork.is_none() && new.content_type.is_none() {
            new.content_type = Some("application/octet-stream".into());
        }
        streams.make_then(
            new,
            Box::new(move |created| {
                reply.send(match created {
                    Ok(created) => answer_to(created, &location),
                    Err(error) => failed(&error),
                });
            }),
        );
    }
}

fn source_gone() -> Response {
    dressed(Response::problem(409, "source_gone", "the stream to fork was deleted"))
}

fn answer_to(created: Created, location: &str) -> Response {
    let conflict = |detail: &str| dressed(Response::problem(409, "stream_exists", detail));
    match created {
        Created::New(row) => dressed(about(&row, Response::new(201)).header("location", location)),
        Created::Same(row) => dressed(about(&row, Response::new(200))),
        Created::Differs(_) => conflict("a stream of this name exists, and differs from what was asked for"),
        Created::Kept => conflict("a stream of this name was deleted, and is kept for its forks"),
        Created::NoSource => dressed(Response::problem(404, "not_found", "there is no such stream to fork")),
        Created::SourceGone => source_gone(),
        Created::BadForkOffset => {
            bad("bad_offset", "the fork's offset is not one of the stream, or lies beyond its end")
        }
        Created::ForkTrimmed => {
            dressed(Response::problem(410, "offset_gone", "history at the fork's offset is no longer kept"))
        }
        Created::OtherType(is) => failed(&StreamError::OtherType { is }),
    }
}

fn producer(request: &Request) -> Result<Option<Producer>, Response> {
    let id = once(request, "producer-id")?;
    let (epoch, seq) = (once(request, "producer-epoch")?, once(request, "producer-seq")?);
    match (id, epoch, seq) {
        (None, None, None) => Ok(None),
        (Some(id), Some(epoch), Some(seq)) if !id.is_empty() => match (whole(epoch), whole(seq)) {
            (Some(epoch), Some(seq)) => Ok(Some(Producer { id: id.to_owned(), epoch, seq })),
            _ => Err(bad("bad_header", "Producer-Epoch and Producer-Seq are numbers, digits alone")),
        },
        _ => Err(bad("bad_header", "Producer-Id, Producer-Epoch and Producer-Seq come together, none empty")),
    }
}

/// `POST`
pub(super) fn append(streams: &Streams, request: Request, reply: Reply) {
    let at = or_answer!(reply, stream_of(&request, Op::Append));
    let producer = or_answer!(reply, producer(&request));
    let stream_seq = or_answer!(reply, once(&request, "stream-seq")).map(str::to_owned);
    let close = is_closing(&request);
    let content_type =
        or_answer!(reply, once(&request, "content-type")).filter(|it| !it.is_empty()).map(str::to_owned);
    let body = request.body();
    let drafts = match &content_type {
        _ if body.is_empty() && close => Vec::new(),
        _ if body.is_empty() => return reply.send(bad("empty_body", "there is nothing to append")),
        None => return reply.send(bad("bad_header", "a Content-Type says what is appended: the stream's")),
        Some(content_type) => or_answer!(reply, messages(Mode::of(content_type), body)),
    };
    if drafts.is_empty() && !body.is_empty() {
        return reply.send(bad("empty_body", "an empty array appends nothing"));
    }
    // Closing alone says nothing about what the stream holds.
    let content_type = content_type.filter(|_| !drafts.is_empty());
    // The protocol says 200 only where something new was written.
    let (asked, status) =
        (producer.clone(), if producer.is_some() && !drafts.is_empty() { 200 } else { 204 });
    let append = Append { messages: drafts, close, content_type, producer, stream_seq, key: None };
    streams.write_then(
        at,
        append,
        Box::new(move |appended| {
            reply.send(match appended {
                Ok(appended) => answer(appended, asked.as_ref(), status),
                Err(error) => failed(&error),
            });
        }),
    );
}

/// Where a stream ends, and whether for good.
fn tail(change: &Change, response: Response) -> Response {
    let state = &change.state;
    let next = offset_of(change.tag, state.generation, state.history_pos).to_string();
    let response = dressed(response.ours("stream-next-offset", next));
    if state.closed_pos.is_some() { response.ours("stream-closed", "true") } else { response }
}

fn answer(appended: Appended, asked: Option<&Producer>, status: u16) -> Response {
    let counted = |response: Response, epoch: u64, seq: u64| {
        response.header("producer-epoch", epoch.to_string()).header("producer-seq", seq.to_string())
    };
    match (appended, asked) {
        (Appended::Done { change, .. }, None) => tail(&change, Response::new(status)),
        (Appended::Done { change, .. }, Some(asked)) => {
            counted(tail(&change, Response::new(status)), asked.epoch, asked.seq)
        }
        (Appended::Duplicate { change, seq }, asked) => {
            counted(tail(&change, Response::new(204)), asked.map_or(0, |asked| asked.epoch), seq)
        }
        (Appended::StaleEpoch(epoch), _) => {
            let detail = "a newer epoch of this producer has begun; this one may write no more";
            dressed(Response::problem(403, "stale_epoch", detail)).header("producer-epoch", epoch.to_string())
        }
        (Appended::EpochNotAtZero, _) => bad("bad_epoch", "a new epoch begins with sequence number 0"),
        (Appended::Gap { expected }, asked) => {
            let detail = "a sequence number is missing before this one";
            dressed(Response::problem(409, "sequence_gap", detail))
                .header("producer-expected-seq", expected.to_string())
                .header("producer-received-seq", asked.map_or(0, |asked| asked.seq).to_string())
        }
        (Appended::Closed(change), _) => tail(&change, crate::front::streams::problem(&StreamError::Closed)),
        (Appended::SeqRegressed(last), _) => {
            let detail = format!("Stream-Seq must be greater than the last one, {last:?}");
            dressed(Response::problem(409, "sequence_conflict", &detail))
        }
        (Appended::OtherType(is), _) => failed(&StreamError::OtherType { is }),
        (Appended::Missing, _) => failed(&StreamError::Missing),
        (Appended::Gone, _) => failed(&StreamError::Gone),
    }
}
