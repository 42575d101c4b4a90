//! Parts over HTTP: an NDJSON body that may stay open while a model writes, and an NDJSON answer that
//! stays open until the turn ends.
//!
//! The body is cut into lines on its I/O thread, and each piece that arrived goes to the stream's room as
//! one batch. A room that is full parks the link: the producer feels it as backpressure.

use std::sync::Arc;

use uuid::Uuid;

use super::reader::{self, Gone};
use super::{fence, or_answer, part_of, problem, stream_of};
use crate::engine::streams::{Accepted, StreamError, Streams, TurnRead};
use crate::front::{Op, Reply, Request, Response};
use crate::rt::{CloserGuard, Lock};
use crate::store::streams::Fence;
use crate::wire::{Frame, Happened, LinkBatch, LinkHandle, Outlet, Owner, websocket};

/// A body of parts on its way in.
#[derive(Default)]
struct Body {
    reply: Option<Reply>,
    /// What to answer, once it is decided: before the body has ended if it is refused or interrupted.
    response: Option<Response>,
    decided: bool,
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// The number of the next part, if the producer counts.
    first: Option<u32>,
    accepted: u32,
    last: u32,
    /// Batches that the room has not answered.
    out: usize,
    ended: bool,
    guard: Option<CloserGuard>,
}

/// What leaves the lock before it is used.
type Leaving = (Option<(Reply, Response)>, Option<CloserGuard>);

impl Body {
    fn answer(&mut self, interrupted: bool) -> Leaving {
        let mut shape = serde_json::json!({ "accepted": self.accepted, "last": self.last });
        if interrupted {
            shape["interrupted"] = true.into();
        }
        self.decide(Response::json(200, &shape))
    }

    /// What of the body is still to come is not read.
    fn refuse(&mut self, response: Response) -> Leaving {
        self.decide(response.closing())
    }

    fn decide(&mut self, response: Response) -> Leaving {
        if !std::mem::replace(&mut self.decided, true) {
            self.response = Some(response);
        }
        self.leave()
    }

    fn leave(&mut self) -> Leaving {
        if self.reply.is_none() || self.response.is_none() {
            return (None, None);
        }
        (self.reply.take().zip(self.response.take()), self.guard.take())
    }
}

/// One body and the turn it feeds.
struct Feed {
    streams: Streams,
    stream: Uuid,
    fence: Fence,
    body: Lock<Body>,
}

/// `POST …/turns/{turn}/parts`
pub(super) fn take(streams: &Streams, request: Request, reply: Reply) {
    let at = or_answer!(reply, stream_of(&request, Op::Produce));
    let fence = or_answer!(reply, fence(&request));
    let first = match request.header("towpath-part").map(str::parse::<u32>) {
        None => None,
        Some(Ok(first)) if first > 0 => Some(first),
        Some(_) => {
            return reply.problem(400, "bad_request", "Towpath-Part is the number of the first line, from 1");
        }
    };
    let known = streams.clone();
    streams.resolve_then(
        at,
        Box::new(move |stream| match stream {
            Ok(stream) => Feed::open(known, stream, fence, first, reply),
            Err(error) => reply.send(problem(&error)),
        }),
    );
}

impl Feed {
    fn open(streams: Streams, stream: Uuid, fence: Fence, first: Option<u32>, reply: Reply) {
        // Whoever may not write hears so before it sends anything, and whoever may hears of an interrupt.
        let known = streams.clone();
        known.cancel_of_then(
            stream,
            fence,
            Box::new(move |cancel| {
                let cancel = match cancel {
                    Ok(cancel) => cancel,
                    Err(error) => return reply.send(problem(&error).closing()),
                };
                let body = Body { first, ..Body::default() };
                let feed = Arc::new(Feed { streams, stream, fence, body: Lock::new(body) });
                let (hears, interrupted) = (feed.clone(), feed.clone());
                let outlet = Outlet::new(move |batch| hears.hear(batch));
                let _link = reply.stream_body(Owner::new(&outlet, 0));
                let ready = {
                    let mut body = feed.body.lock();
                    body.reply = Some(reply);
                    // The body may have been here and gone while the reply was on its way.
                    body.leave()
                };
                send(ready);
                let guard = cancel.on_cancel(move || interrupted.interrupted());
                feed.body.lock().guard = Some(guard);
            }),
        );
    }

    /// The turn was asked to stop, or is lost: the body is answered at once, wherever it is.
    fn interrupted(self: &Arc<Feed>) {
        let answered = self.body.lock().answer(true);
        send(answered);
    }

    /// What arrived of the body, on its I/O thread.
    fn hear(self: &Arc<Feed>, batch: LinkBatch) -> Result<(), LinkBatch> {
        for event in batch {
            match event.what {
                Happened::Bytes(bytes) => self.feed(&bytes),
                Happened::Expired => {}
                Happened::Ended => {
                    // A last line need not end.
                    let rest = {
                        let mut body = self.body.lock();
                        body.ended = true;
                        std::mem::take(&mut body.line)
                    };
                    if rest.iter().all(u8::is_ascii_whitespace) {
                        self.submit(Vec::new());
                    } else {
                        self.feed_lines(&[&rest]);
                    }
                }
                Happened::Closed(_) => {
                    let gone = {
                        let mut body = self.body.lock();
                        body.decided = true;
                        (body.reply.take(), body.guard.take())
                    };
                    drop(gone);
                }
                Happened::Opened(..)
                | Happened::Refused(_)
                | Happened::Text(_)
                | Happened::Binary(_)
                | Happened::Passed(_)
                | Happened::Reset(_) => {}
            }
        }
        Ok(())
    }

    fn feed(self: &Arc<Feed>, bytes: &[u8]) {
        let max = self.streams.limits().turn_bytes_max;
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            let refused = {
                let mut body = self.body.lock();
                body.line.extend_from_slice(bytes);
                let too_long = body.line.len() > max;
                if too_long {
                    body.refuse(problem(&StreamError::TooLarge { bytes: max + 1, max }))
                } else {
                    (None, None)
                }
            };
            return send(refused);
        };
        let whole = {
            let mut body = self.body.lock();
            let mut whole = std::mem::take(&mut body.line);
            whole.extend_from_slice(&bytes[..end]);
            body.line.extend_from_slice(&bytes[end + 1..]);
            whole
        };
        let lines: Vec<&[u8]> = whole.split(|byte| *byte == b'\n').collect();
        self.feed_lines(&lines);
    }

    fn feed_lines(self: &Arc<Feed>, lines: &[&[u8]]) {
        let mut parts = Vec::with_capacity(lines.len());
        for line in lines {
            // A blank line is a sign of life.
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match part_of(line) {
                Ok(part) => parts.push(part),
                Err(response) => {
                    self.submit(parts);
                    let refused = self.body.lock().refuse(response);
                    return send(refused);
                }
            }
        }
        self.submit(parts);
    }

    /// Hands parts to the room; none at all is a sign of life, and asks how far the turn is.
    fn submit(self: &Arc<Feed>, parts: Vec<Arc<str>>) {
        let first = {
            let mut body = self.body.lock();
            if body.decided {
                return;
            }
            body.out += 1;
            let first = body.first;
            body.first = first.map(|first| first.saturating_add(parts.len() as u32));
            first
        };
        let feed = self.clone();
        let then = Box::new(move |outcome| feed.settle(outcome));
        self.streams.parts_then(self.stream, self.fence, first, parts, then);
    }

    /// The room has answered a batch, on its own thread.
    fn settle(self: &Arc<Feed>, outcome: Result<Accepted, StreamError>) {
        let answered = {
            let mut body = self.body.lock();
            body.out -= 1;
            match outcome {
                Ok(accepted) => {
                    body.accepted += accepted.accepted;
                    body.last = body.last.max(accepted.last);
                    if accepted.interrupted || (body.ended && body.out == 0) {
                        body.answer(accepted.interrupted)
                    } else {
                        (None, None)
                    }
                }
                Err(StreamError::Part { why, accepted, last }) => {
                    body.accepted += accepted;
                    let accepted = body.accepted;
                    body.refuse(problem(&StreamError::Part { why, accepted, last }))
                }
                Err(error) => body.refuse(problem(&error)),
            }
        };
        send(answered);
    }
}

fn send((answered, guard): Leaving) {
    drop(guard);
    if let Some((reply, response)) = answered {
        reply.send(response);
    }
}

/// `GET …/turns/{turn}`
pub(super) fn give(streams: &Streams, request: Request, reply: Reply) {
    let at = or_answer!(reply, stream_of(&request, Op::Follow));
    let turn = or_answer!(reply, super::number(&request, "turn"));
    let known = streams.clone();
    streams.resolve_then(
        at,
        Box::new(move |stream| {
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => return reply.send(problem(&error)),
            };
            let reading = known.clone();
            known.read_turn_then(
                stream,
                turn,
                0,
                false,
                Box::new(move |read| match read {
                    Err(error) => reply.send(problem(&error)),
                    Ok(read) => {
                        let response = Response::new(200)
                            .header("content-type", "application/x-ndjson")
                            .header("cache-control", "no-store")
                            .header("x-accel-buffering", "no");
                        let (link, gone) =
                            reader::open(say_expired, |owner| reply.stream(response, Some(owner)));
                        // What was there before the reader came says nothing about how fast it reads.
                        link.send_paced(lines(&read));
                        pass_on(Reading { streams: reading, stream, turn, link, gone }, read);
                    }
                }),
            );
        }),
    );
}

/// A reader sees an answer that is not whole.
fn say_expired(link: &LinkHandle) {
    link.close(websocket::close::ABNORMAL, "auth");
}

fn lines(read: &TurnRead) -> Frame {
    let mut lines = String::new();
    for part in &read.parts {
        lines.push_str(part);
        lines.push('\n');
    }
    Frame::chunk(lines.as_bytes())
}

/// One reader of a turn.
struct Reading {
    streams: Streams,
    stream: Uuid,
    turn: u32,
    link: LinkHandle,
    gone: Gone,
}

/// Waits for what follows `read`, which was sent, until the turn ends.
fn pass_on(reading: Reading, read: TurnRead) {
    if reading.gone.is_gone() {
        return;
    }
    if read.closed {
        return reading.link.finish();
    }
    let streams = reading.streams.clone();
    let (stream, turn) = (reading.stream, reading.turn);
    streams.read_turn_then(
        stream,
        turn,
        read.last,
        true,
        Box::new(move |read| match read {
            Ok(read) => {
                reading.link.send(lines(&read));
                pass_on(reading, read);
            }
            // The engine stops, or the stream is gone: a reader sees that the answer is not whole.
            Err(_) => reading.link.close(websocket::close::ABNORMAL, "the turn is gone"),
        }),
    );
}
