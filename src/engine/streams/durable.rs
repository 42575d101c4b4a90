//! Streams as the Durable Streams protocol 1.0 sees them: messages alone, addressed by offsets.
//!
//! An offset is a [`Token`] with turn and part 0. It moves with history: a change of status or queue leaves
//! it where it was. What is said over a live link are `data` and `control` events; everything else a
//! follower of ours would hear is left out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use uuid::Uuid;

use crate::codec::sse;
use crate::codec::token::{Tag, Token};
use crate::rt::{Lock, Rand, Wall};
use crate::state::stream::Cursor;
use crate::store::streams::{
    Address, Append, Appended, CatchUp, Created, MessageRow, NewStream, PAGE_BYTES, Page, StreamRow,
};

use super::event::{Ended, Event, What};
use super::follower::Voice;
use super::room::{Message, Poll, Polled, Then};
use super::{Desk, Streams, found, writes};

/// How the messages of a stream are said over server-sent events and in one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As one JSON array.
    Json,
    /// As text, one message right behind the other.
    Text,
    /// As bytes, one message right behind the other; base64 where only text can be.
    Bytes,
}

impl Mode {
    /// How messages of this content type are said.
    pub fn of(content_type: &str) -> Mode {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        match essence.get(..5) {
            _ if essence.eq_ignore_ascii_case("application/json") => Mode::Json,
            Some(front) if front.eq_ignore_ascii_case("text/") => Mode::Text,
            _ => Mode::Bytes,
        }
    }

    /// Messages as one body.
    pub fn body<'a>(self, rows: impl Iterator<Item = &'a MessageRow>) -> Vec<u8> {
        let mut body = Vec::new();
        if self == Mode::Json {
            body.push(b'[');
        }
        for row in rows {
            if self == Mode::Json && body.len() > 1 {
                body.push(b',');
            }
            body.extend_from_slice(&row.content);
        }
        if self == Mode::Json {
            body.push(b']');
        }
        body
    }
}

/// The offset of a position in a stream.
pub fn offset(row: &StreamRow, pos: u64) -> Token {
    offset_of(row.tag, row.state.generation, pos)
}

/// The offset of a position.
pub fn offset_of(tag: [u8; 4], generation: u32, pos: u64) -> Token {
    Token { tag: Tag(tag), cursor: Cursor { generation, pos, turn: 0, part: 0 } }
}

/// The numbers that keep caches between us and readers from going round in circles: time in steps of 20 s,
/// and never less than any that a reader came with.
///
/// One clock for all readers, so that a frame for many can carry it.
#[derive(Debug, Default)]
pub struct Cursors {
    highest: AtomicU64,
}

/// 9 October 2024, midnight UTC, in milliseconds: where the protocol begins to count.
const CURSOR_EPOCH_MS: i64 = 1_728_432_000_000;
/// The length of a step.
const CURSOR_STEP_MS: i64 = 20_000;
/// A cursor further ahead than this was never ours; it moves nobody else's. Half a year.
const CURSOR_AHEAD_MAX: u64 = 1 << 20;
/// How far a reader is moved on at most whose cursor is not behind: an hour, as the protocol says.
const CURSOR_JUMP_MAX: u64 = 180;

impl Cursors {
    fn step(wall: Wall) -> u64 {
        u64::try_from((wall.as_millis() - CURSOR_EPOCH_MS) / CURSOR_STEP_MS).unwrap_or(0)
    }

    /// The number for everybody.
    pub fn now(&self, wall: Wall) -> u64 {
        Cursors::step(wall).max(self.highest.load(Ordering::Relaxed))
    }

    /// The number for one answer to a reader that came with `theirs`: greater than that.
    pub fn after(&self, wall: Wall, theirs: Option<u64>, rand: &mut Rand) -> u64 {
        let now = self.now(wall);
        match theirs {
            Some(theirs) if theirs >= now => theirs.saturating_add(1 + rand.below(CURSOR_JUMP_MAX)),
            _ => now,
        }
    }

    /// A reader that came with `theirs` stays: from here on everybody's number is greater than that.
    pub fn pass(&self, wall: Wall, theirs: Option<u64>) {
        if let Some(theirs) = theirs
            && theirs >= self.now(wall)
            && theirs < Cursors::step(wall) + CURSOR_AHEAD_MAX
        {
            self.highest.fetch_max(theirs + 1, Ordering::Relaxed);
        }
    }
}

/// Events in the words of the protocol, if it has any for them.
pub(super) fn say(events: &[Event], voice: &Voice<'_>) -> Option<Vec<u8>> {
    let rows = || {
        events.iter().filter_map(|event| match &event.what {
            What::Message(row) => Some(&**row),
            _ => None,
        })
    };
    let live = events.iter().any(|event| matches!(event.what, What::Live { .. }));
    let closed = events.iter().any(|event| matches!(event.what, What::Closed(Ended::Closed)));
    let last = rows().next_back().map(|row| row.pos);
    if last.is_none() && !live && !closed {
        return None;
    }
    let state = &voice.row.state;
    let mode = Mode::of(&voice.row.content_type);
    let mut out = Vec::new();
    if last.is_some() {
        push_data(&mut out, mode, &mode.body(rows()));
    }
    let tail = state.history_pos.min(voice.shown);
    let up_to_date = live || closed || last.is_some_and(|last| last >= state.history_pos);
    let pos = if up_to_date { tail.max(last.unwrap_or(0)) } else { last.unwrap_or(0) };
    let over = closed || (up_to_date && state.closed_pos.is_some() && voice.shown == state.pos);
    let offset = offset(voice.row, pos);
    let mut control = format!("event: control\ndata:{{\"streamNextOffset\":\"{offset}\"");
    if over {
        control.push_str(r#","streamClosed":true"#);
    } else {
        control.push_str(&format!(r#","streamCursor":"{}""#, voice.cursor));
    }
    if up_to_date {
        control.push_str(r#","upToDate":true"#);
    }
    control.push_str("}\n\n");
    out.extend_from_slice(control.as_bytes());
    Some(out)
}

/// A `data` event. Its readers want no space behind the colon; one that the text begins with is kept from
/// being taken for it.
fn push_data(out: &mut Vec<u8>, mode: Mode, body: &[u8]) {
    let text = match mode {
        Mode::Json | Mode::Text => String::from_utf8_lossy(body),
        Mode::Bytes => base64::engine::general_purpose::STANDARD.encode(body).into(),
    };
    out.extend_from_slice(b"event: data\n");
    sse::each_line(&text, |line| {
        out.extend_from_slice(if line.starts_with(' ') { b"data: " } else { b"data:" });
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    });
    out.push(b'\n');
}

impl Streams {
    /// The cursors of this process.
    pub fn cursors(&self) -> &Cursors {
        &self.shared.cursors
    }

    /// Makes a stream with everything that a stream may begin with. Its name is the caller's to judge.
    pub fn make_then(&self, new: NewStream, then: Then<Created>) {
        if let Some(Err(error)) = new.first.iter().map(|draft| self.check_size(draft)).find(Result::is_err) {
            return then(Err(error));
        }
        let names = self.shared.names.clone();
        let key = writes::key_of(&Address::Name(new.name.clone()));
        let read = move |_: &Desk, created| {
            if let Created::New(row) = &created {
                // One of that name that ran out may still be remembered.
                names.put(row.name.clone(), row.id);
            }
            Ok(created)
        };
        self.shared.desk.ask(key, move |store| store.create(&new), read, then);
    }

    /// A key for a new stream.
    pub fn new_id(&self) -> Uuid {
        self.shared.rt.uuid_v7()
    }

    /// Appends, closes, or both, and says exactly what became of it.
    pub fn write_then(&self, at: Address, append: Append, then: Then<Appended>) {
        if let Some(Err(error)) =
            append.messages.iter().map(|draft| self.check_size(draft)).find(Result::is_err)
        {
            return then(Err(error));
        }
        self.shared.desk.write(at, append, then);
    }

    /// A page of history after a position.
    pub fn page_then(&self, at: Address, after: u64, then: Then<Page>) {
        let read = CatchUp { after, upto: None, bytes_max: PAGE_BYTES };
        self.shared.readers.ask(
            writes::key_of(&at),
            move |store| store.catch_up(&at, read),
            move |answer| then(found(answer)),
        );
    }

    /// Moves the expiry of a stream that was just read.
    pub fn renew(&self, stream: Uuid) {
        self.shared.desk.touch(vec![stream]);
    }

    /// Waits until there is something after an offset, the stream is closed, or `wait` has passed.
    pub fn poll_then(&self, stream: Uuid, after: Cursor, wait: std::time::Duration, then: Then<Polled>) {
        let deadline = self.shared.rt.now() + wait;
        let then = Arc::new(Lock::new(Some(then)));
        let told = then.clone();
        // Whoever is told takes it along: the room, or this when the room takes nothing.
        let tell = move |answer| {
            let then = told.lock().take();
            if let Some(then) = then {
                then(answer);
            }
        };
        let poll = Poll { stream, after, deadline, then: Box::new(tell) };
        if let Err(error) = self.to_room(stream, Message::Poll(poll)) {
            let then = then.lock().take();
            if let Some(then) = then {
                then(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests;
