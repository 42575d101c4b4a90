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
use crate::front::{Answer, Op, Reply, Request, Response};
use crate::rt::{Cancel, CloserGuard, Lock};
use crate::store::streams::{Address, Fence};
use crate::wire::{Frame, Happened, LinkBatch, LinkHandle, Outlet, Owner, websocket};

/// What a request asks to feed: a turn, the proof that it is the caller's, and the number of its first part if it
/// counts.
pub(crate) struct Feeding {
    at: Address,
    fence: Fence,
    first: Option<u32>,
}

/// Reads it.
pub(crate) fn feeding(request: &Request) -> Result<Feeding, Response> {
    let (at, fence) = (stream_of(request, Op::Produce)?, fence(request)?);
    let first = match request.header("towpath-part").map(str::parse::<u32>) {
        None => None,
        Some(Ok(first)) if first > 0 => Some(first),
        Some(_) => {
            let detail = "Towpath-Part is the number of the first line, from 1";
            return Err(Response::problem(400, "bad_request", detail));
        }
    };
    Ok(Feeding { at, fence, first })
}

/// Parts on their way into one turn: any number of batches, and one answer for all of them.
pub(crate) struct Feed {
    streams: Streams,
    stream: Uuid,
    fence: Fence,
    /// Told whenever a batch was answered, with how many are still out.
    settled: Box<dyn Fn(usize) + Send + Sync>,
    state: Lock<State>,
}

#[derive(Default)]
struct State {
    to: Option<Answer>,
    /// What to answer, once it is decided: before everything has come if it is refused or interrupted.
    response: Option<Response>,
    decided: bool,
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
type Leaving = (Option<(Answer, Response)>, Option<CloserGuard>);

impl State {
    fn answer(&mut self, interrupted: bool) -> Leaving {
        let mut shape = serde_json::json!({ "accepted": self.accepted, "last": self.last });
        if interrupted {
            shape["interrupted"] = true.into();
        }
        self.decide(Response::json(200, &shape))
    }

    /// What is still to come is not read.
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
        if self.to.is_none() || self.response.is_none() {
            return (None, None);
        }
        (self.to.take().zip(self.response.take()), self.guard.take())
    }
}

impl Feed {
    /// Finds the turn, and what is cancelled when that is asked to stop or is lost. Whoever may not write hears so
    /// before it sends anything.
    pub(crate) fn open(
        streams: &Streams,
        asked: Feeding,
        settled: impl Fn(usize) + Send + Sync + 'static,
        then: impl FnOnce(Result<(Arc<Feed>, Cancel), Response>) + Send + 'static,
    ) {
        let Feeding { at, fence, first } = asked;
        let known = streams.clone();
        let resolved = move |stream: Result<Uuid, StreamError>| {
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => return then(Err(problem(&error))),
            };
            let streams = known.clone();
            let found = move |cancel: Result<Cancel, StreamError>| {
                then(match cancel {
                    Ok(cancel) => {
                        let state = Lock::new(State { first, ..State::default() });
                        let settled = Box::new(settled);
                        Ok((Arc::new(Feed { streams, stream, fence, settled, state }), cancel))
                    }
                    Err(error) => Err(problem(&error).closing()),
                });
            };
            known.cancel_of_then(stream, fence, Box::new(found));
        };
        streams.resolve_then(at, Box::new(resolved));
    }

    /// From here on there is somebody to answer, also when the turn is asked to stop.
    pub(crate) fn begin(self: &Arc<Feed>, to: Answer, cancel: &Cancel) {
        let ready = {
            let mut state = self.state.lock();
            state.to = Some(to);
            // Everything may have been here and gone while the answer was on its way.
            state.leave()
        };
        send(ready);
        let interrupted = self.clone();
        let guard = cancel.on_cancel(move || interrupted.interrupted());
        let late = {
            let mut state = self.state.lock();
            match state.decided {
                true => Some(guard),
                false => state.guard.replace(guard),
            }
        };
        drop(late);
    }

    /// The turn was asked to stop, or is lost: it is answered at once, however much is to come.
    fn interrupted(&self) {
        let answered = self.state.lock().answer(true);
        send(answered);
    }

    /// Whoever fed has left.
    pub(crate) fn leave(&self) {
        let gone = {
            let mut state = self.state.lock();
            state.decided = true;
            (state.to.take(), state.guard.take())
        };
        drop(gone);
    }

    /// No more parts come, once these are in.
    pub(crate) fn end(self: &Arc<Feed>, parts: Vec<Arc<str>>) {
        self.state.lock().ended = true;
        self.submit(parts);
    }

    fn refuse(&self, response: Response) {
        let refused = self.state.lock().refuse(response);
        send(refused);
    }

    /// Hands parts to the room; none at all is a sign of life, and asks how far the turn is.
    pub(crate) fn submit(self: &Arc<Feed>, parts: Vec<Arc<str>>) {
        let first = {
            let mut state = self.state.lock();
            if state.decided {
                return;
            }
            state.out += 1;
            let first = state.first;
            state.first = first.map(|first| first.saturating_add(parts.len() as u32));
            first
        };
        let feed = self.clone();
        let then = Box::new(move |outcome| feed.settle(outcome));
        self.streams.parts_then(self.stream, self.fence, first, parts, then);
    }

    /// Batches that the room has not answered.
    pub(crate) fn out(&self) -> usize {
        self.state.lock().out
    }

    /// The room has answered a batch, on its own thread.
    fn settle(&self, outcome: Result<Accepted, StreamError>) {
        let (answered, out) = {
            let mut state = self.state.lock();
            state.out -= 1;
            let answered = match outcome {
                Ok(accepted) => {
                    state.accepted += accepted.accepted;
                    state.last = state.last.max(accepted.last);
                    if accepted.interrupted || (state.ended && state.out == 0) {
                        state.answer(accepted.interrupted)
                    } else {
                        (None, None)
                    }
                }
                Err(StreamError::Part { why, accepted, last }) => {
                    state.accepted += accepted;
                    let accepted = state.accepted;
                    state.refuse(problem(&StreamError::Part { why, accepted, last }))
                }
                Err(error) => state.refuse(problem(&error)),
            };
            (answered, state.out)
        };
        send(answered);
        (self.settled)(out);
    }
}

fn send((answered, guard): Leaving) {
    drop(guard);
    if let Some((to, response)) = answered {
        to.send(response);
    }
}

/// An NDJSON body that feeds a turn.
struct Body {
    feed: Arc<Feed>,
    /// The line that has not ended yet.
    line: Lock<Vec<u8>>,
}

/// `POST …/turns/{turn}/parts`
pub(super) fn take(streams: &Streams, request: Request, reply: Reply) {
    let asked = or_answer!(reply, feeding(&request));
    Feed::open(
        streams,
        asked,
        |_| {},
        move |feed| match feed {
            Ok((feed, cancel)) => {
                let body = Arc::new(Body { feed: feed.clone(), line: Lock::default() });
                let outlet = Outlet::new(move |batch| body.hear(batch));
                let _link = reply.stream_body(Owner::new(&outlet, 0));
                feed.begin(reply.into(), &cancel);
            }
            Err(response) => reply.send(response),
        },
    );
}

impl Body {
    /// What arrived of the body, on its I/O thread.
    fn hear(&self, batch: LinkBatch) -> Result<(), LinkBatch> {
        for event in batch {
            match event.what {
                Happened::Bytes(bytes) => self.take(&bytes),
                Happened::Expired => {}
                Happened::Ended => {
                    // A last line need not end.
                    let rest = std::mem::take(&mut *self.line.lock());
                    match parts_of(&[&rest]) {
                        (parts, None) => self.feed.end(parts),
                        (_, Some(refused)) => self.feed.refuse(refused),
                    }
                }
                Happened::Closed(_) => self.feed.leave(),
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

    fn take(&self, bytes: &[u8]) {
        let max = self.feed.streams.limits().turn_bytes_max;
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            let too_long = {
                let mut line = self.line.lock();
                line.extend_from_slice(bytes);
                line.len() > max
            };
            if too_long {
                self.feed.refuse(problem(&StreamError::TooLarge { bytes: max + 1, max }));
            }
            return;
        };
        let whole = {
            let mut line = self.line.lock();
            let mut whole = std::mem::take(&mut *line);
            whole.extend_from_slice(&bytes[..end]);
            line.extend_from_slice(&bytes[end + 1..]);
            whole
        };
        let lines: Vec<&[u8]> = whole.split(|byte| *byte == b'\n').collect();
        let (parts, refused) = parts_of(&lines);
        self.feed.submit(parts);
        if let Some(refused) = refused {
            self.feed.refuse(refused);
        }
    }
}

/// The parts in these lines, up to the first that is none, and what is wrong with that one.
fn parts_of(lines: &[&[u8]]) -> (Vec<Arc<str>>, Option<Response>) {
    let mut parts = Vec::with_capacity(lines.len());
    for line in lines {
        // A blank line is a sign of life.
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match part_of(line) {
            Ok(part) => parts.push(part),
            Err(response) => return (parts, Some(response)),
        }
    }
    (parts, None)
}

/// Which turn a request asks to read.
pub(crate) fn turn_asked(request: &Request) -> Result<(Address, u32), Response> {
    Ok((stream_of(request, Op::Follow)?, super::number(request, "turn")?))
}

/// `GET …/turns/{turn}`
pub(super) fn give(streams: &Streams, request: Request, reply: Reply) {
    let (at, turn) = or_answer!(reply, turn_asked(&request));
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
