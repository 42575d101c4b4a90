//! A turn as the chunk stream that the AI SDK's `useChat({ resume: true })` reads.
//!
//! A producer that speaks the SDK's own chunks (`{"type": "text-delta", …}`) has them passed on as they are.
//! One that writes plain strings, or objects with a `text`, has them told as one block of text. However the
//! turn ends, the stream does: with the chunk that says how, and `[DONE]`.

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::reader::{self, Gone};
use super::{or_answer, problem, stream_of};
use crate::codec::sse;
use crate::engine::streams::{StreamError, Streams, TurnRead};
use crate::front::{Op, Reply, Request, Response};
use crate::state::stream::Status;
use crate::store::streams::{Address, StreamRow};
use crate::wire::{Frame, LinkHandle, websocket};

/// Nobody answers at the moment: the SDK takes that for "nothing to resume".
fn nothing() -> Response {
    Response::new(204).header("cache-control", "no-store")
}

/// `GET …/live?format=aisdk`
pub(super) fn give(streams: &Streams, request: Request, reply: Reply) {
    let at = or_answer!(reply, stream_of(&request, Op::Follow));
    let query = or_answer!(reply, request.query_of(&["format", "ticket"]));
    if query.get("format") != Some("aisdk") {
        return reply.problem(400, "bad_parameter", "format is aisdk");
    }
    let known = streams.clone();
    streams.row_then(
        at,
        Box::new(move |row| match row {
            Err(error) => reply.send(problem(&error)),
            Ok(row) if row.state.status.run().is_none() => reply.send(nothing()),
            Ok(row) => open(known, row.id, row.state.turn_no, reply),
        }),
    );
}

fn open(streams: Streams, stream: Uuid, turn: u32, reply: Reply) {
    let known = streams.clone();
    let then = move |read: Result<TurnRead, StreamError>| match read {
        // It has ended meanwhile, or its beginning is in a message already and no longer kept.
        Err(StreamError::NoTurn { .. }) => reply.send(nothing()),
        Ok(read) if read.evicted => reply.send(nothing()),
        Err(error) => reply.send(problem(&error)),
        Ok(read) => {
            let response = Response::new(200)
                .header("cache-control", "no-cache, no-store")
                .header("x-vercel-ai-ui-message-stream", "v1");
            let (link, gone) = reader::open(say_expired, |owner| reply.sse_with(response, Some(owner)));
            let told = Told { streams: known, stream, turn, link, gone, chunks: Chunks::default() };
            told.go_on(read, true);
        }
    };
    streams.read_turn_then(stream, turn, 0, false, Box::new(then));
}

/// The last words to somebody whose credentials have ended.
fn say_expired(link: &LinkHandle) {
    let mut out = Vec::new();
    push(&mut out, r#"{"type":"error","errorText":"the credentials have ended"}"#);
    push(&mut out, "[DONE]");
    link.send(Frame::chunk(&out));
    link.finish();
}

/// One reader of a turn.
struct Told {
    streams: Streams,
    stream: Uuid,
    turn: u32,
    link: LinkHandle,
    gone: Gone,
    chunks: Chunks,
}

impl Told {
    fn go_on(mut self, read: TurnRead, first: bool) {
        if self.gone.is_gone() {
            return;
        }
        let mut out = Vec::new();
        for part in &read.parts {
            self.chunks.tell(part, &mut out);
        }
        if !out.is_empty() {
            let frame = Frame::chunk(&out);
            // What was there before the reader came says nothing about how fast it reads.
            if first { self.link.send_paced(frame) } else { self.link.send(frame) }
        }
        if read.closed {
            return self.end(read.folded_to >= read.last);
        }
        let (streams, stream, turn) = (self.streams.clone(), self.stream, self.turn);
        let then = move |more: Result<TurnRead, StreamError>| match more {
            Ok(more) if more.evicted => {
                self.say_end(Some("parts of the answer are gone; load the chat again"))
            }
            Ok(more) => self.go_on(more, false),
            // A reader sees that the answer is not whole, and may come back.
            Err(StreamError::Stopped | StreamError::Full) => {
                self.link.close(websocket::close::ABNORMAL, "try again");
            }
            Err(error) => self.say_end(Some(&error.to_string())),
        };
        streams.read_turn_then(stream, turn, read.last, true, Box::new(then));
    }

    /// The turn is over: how, the store knows. `kept` says whether messages stand for all of its parts.
    fn end(mut self, kept: bool) {
        if self.chunks.ended {
            return self.say_end(None);
        }
        let (streams, stream) = (self.streams.clone(), self.stream);
        let then = move |row: Result<StreamRow, StreamError>| {
            let state = row.ok().map(|row| row.state).filter(|state| state.turn_no == self.turn);
            let failure = match state.as_ref().map(|state| &state.status) {
                Some(Status::Failed) => {
                    Some(state.and_then(|state| state.error).unwrap_or_else(|| "failed".into()))
                }
                Some(Status::Idle) => {
                    self.chunks.aborted = true;
                    None
                }
                Some(Status::Done) => None,
                // It waits for another worker, has one, or is deleted: an answer that was kept is whole.
                _ => (!kept).then(|| "the worker was lost before the answer was whole".into()),
            };
            self.say_end(failure.as_deref());
        };
        streams.row_then(Address::Id(stream), Box::new(then));
    }

    fn say_end(mut self, failure: Option<&str>) {
        let mut out = Vec::new();
        self.chunks.end(failure, &mut out);
        self.link.send(Frame::chunk(&out));
        self.link.finish();
    }
}

/// Parts as chunks of the SDK.
#[derive(Default)]
struct Chunks {
    started: bool,
    /// Whether a block of text of ours is open.
    in_text: bool,
    /// Whether the producer has said how it ended.
    ended: bool,
    /// Whether the turn was given up.
    aborted: bool,
}

/// The id of the block that plain text goes into.
const TEXT_ID: &str = "text";

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

fn push(out: &mut Vec<u8>, data: &str) {
    sse::Event { data, ..sse::Event::default() }.write(out);
}

impl Chunks {
    fn tell(&mut self, part: &str, out: &mut Vec<u8>) {
        if part.starts_with('"') {
            return self.text(part, out);
        }
        let read = if part.starts_with('{') { serde_json::from_str::<Part<'_>>(part).ok() } else { None };
        match read {
            Some(Part { kind: Some(kind), .. }) => {
                if kind != "start" {
                    self.begin(out);
                }
                self.end_text(out);
                self.started = true;
                self.ended = matches!(kind.as_str(), "finish" | "abort" | "error");
                push(out, part);
            }
            Some(Part { text: Some(text), .. }) if text.get().starts_with('"') => self.text(text.get(), out),
            _ => {
                self.begin(out);
                self.end_text(out);
                push(out, &format!(r#"{{"type":"data-part","data":{part}}}"#));
            }
        }
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.started, true) {
            push(out, r#"{"type":"start"}"#);
        }
    }

    /// `delta` is a JSON string.
    fn text(&mut self, delta: &str, out: &mut Vec<u8>) {
        self.begin(out);
        if !std::mem::replace(&mut self.in_text, true) {
            push(out, &json!({ "type": "text-start", "id": TEXT_ID }).to_string());
        }
        push(out, &format!(r#"{{"type":"text-delta","id":"{TEXT_ID}","delta":{delta}}}"#));
    }

    fn end_text(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.in_text) {
            push(out, &json!({ "type": "text-end", "id": TEXT_ID }).to_string());
        }
    }

    fn end(&mut self, failure: Option<&str>, out: &mut Vec<u8>) {
        self.end_text(out);
        if !self.ended {
            self.begin(out);
            push(
                out,
                &match failure {
                    Some(why) => json!({ "type": "error", "errorText": why }).to_string(),
                    None if self.aborted => json!({ "type": "abort" }).to_string(),
                    None => json!({ "type": "finish" }).to_string(),
                },
            );
        }
        push(out, "[DONE]");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(parts: &[&str], failure: Option<&str>) -> Vec<String> {
        let (mut chunks, mut out) = (Chunks::default(), Vec::new());
        parts.iter().for_each(|part| chunks.tell(part, &mut out));
        chunks.end(failure, &mut out);
        let text = String::from_utf8(out).unwrap();
        text.split("\n\n")
            .filter(|event| !event.is_empty())
            .map(|event| event.replacen("data: ", "", 1))
            .collect()
    }

    #[test]
    fn plain_text_becomes_one_block_and_whatever_comes_between_ends_it() {
        assert_eq!(
            told(&[r#""He""#, r#"{"text":"llo"}"#, "7", r#""!""#], None),
            [
                r#"{"type":"start"}"#,
                r#"{"id":"text","type":"text-start"}"#,
                r#"{"type":"text-delta","id":"text","delta":"He"}"#,
                r#"{"type":"text-delta","id":"text","delta":"llo"}"#,
                r#"{"id":"text","type":"text-end"}"#,
                r#"{"type":"data-part","data":7}"#,
                r#"{"id":"text","type":"text-start"}"#,
                r#"{"type":"text-delta","id":"text","delta":"!"}"#,
                r#"{"id":"text","type":"text-end"}"#,
                r#"{"type":"finish"}"#,
                "[DONE]",
            ]
        );
    }

    #[test]
    fn chunks_of_the_sdk_pass_as_they_are_and_are_not_ended_twice() {
        let whole = [
            r#"{"type":"start","messageId":"m"}"#,
            r#"{"type":"text-start","id":"1"}"#,
            r#"{"type":"finish"}"#,
        ];
        assert_eq!(told(&whole, None), [&whole[..], &["[DONE]"]].concat());
        assert_eq!(
            told(&whole[..2], Some("the model is away")),
            [whole[0], whole[1], r#"{"errorText":"the model is away","type":"error"}"#, "[DONE]"]
        );
    }
}
