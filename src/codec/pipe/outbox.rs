//! What is on its way to a carrier: the frame that is half written, and the small ones behind it.
//!
//! Bytes of DATA frames are never copied here: they are written out of the pipe's replay log, where
//! they have to stay anyway. Only heads and control frames lie in `small`.
//!
//! Invariant: `parts` lists what is to be written in order; `small` holds exactly the bytes of its
//! `Small` parts. At most [`AHEAD`] bytes are taken from the pipe before they are needed, so that a
//! PONG never waits behind more than that.

use crate::state::pipe::{Outgoing, Pipe};
use crate::state::time::Moment;
use std::collections::VecDeque;
use std::io::IoSlice;

use super::{data_head, encode_control, encode_greeting};
use crate::state::pipe::hello::Greeting;

/// How many bytes are taken from the pipe for one write.
const AHEAD: usize = 512 * 1024;
/// Nothing is taken for less room than this: what a partial write freed is no reason for a tiny frame.
const WORTH: usize = 64 * 1024;

/// What is on its way to one carrier.
#[derive(Debug, Default)]
pub struct Outbox {
    parts: VecDeque<Part>,
    small: Vec<u8>,
    /// How much of `small` was written.
    at: usize,
    queued: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// That many bytes of `small`.
    Small(usize),
    /// Bytes out of the replay log.
    Data { off: u64, len: usize },
}

impl Outbox {
    /// A carrier to which nothing is on its way.
    pub fn new() -> Outbox {
        Outbox::default()
    }

    /// Puts a frame of the handshake behind what waits.
    pub fn greet(&mut self, greeting: &Greeting) {
        self.put(|small| encode_greeting(greeting, small));
    }

    /// Takes from the pipe what it wants to send, until enough waits for one write.
    pub fn fill(&mut self, now: Moment, pipe: &mut Pipe) {
        while self.queued <= AHEAD - WORTH {
            match pipe.next(now, AHEAD - self.queued) {
                Some(Outgoing::Control(control)) => self.put(|small| encode_control(&control, small)),
                Some(Outgoing::Data { off, len }) => {
                    self.put(|small| small.extend(data_head(off, len)));
                    self.parts.push_back(Part::Data { off, len });
                    self.queued += len;
                }
                None => break,
            }
        }
    }

    fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.small.len();
        write(&mut self.small);
        let count = self.small.len() - before;
        self.queued += count;
        match self.parts.back_mut() {
            Some(Part::Small(len)) => *len += count,
            _ => self.parts.push_back(Part::Small(count)),
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// How many bytes wait.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// What waits, for one gathered write.
    pub fn slices<'a>(&'a self, pipe: &'a Pipe, out: &mut Vec<IoSlice<'a>>, max: usize) {
        let mut at = self.at;
        for part in &self.parts {
            match *part {
                Part::Small(len) => {
                    out.push(IoSlice::new(&self.small[at..at + len]));
                    at += len;
                }
                Part::Data { off, len } => out.extend(pipe.bytes(off, len).map(IoSlice::new)),
            }
            if out.len() >= max {
                out.truncate(max);
                return;
            }
        }
    }

    /// The first `count` bytes of what waits are written.
    pub fn wrote(&mut self, mut count: usize) {
        self.queued -= count;
        while count > 0 {
            let part = self.parts.front_mut().expect("no more is written than waits");
            let done = match part {
                Part::Small(len) => {
                    let done = count.min(*len);
                    *len -= done;
                    self.at += done;
                    count -= done;
                    *len == 0
                }
                Part::Data { off, len } => {
                    let done = count.min(*len);
                    *off += done as u64;
                    *len -= done;
                    count -= done;
                    *len == 0
                }
            };
            if done {
                self.parts.pop_front();
            }
        }
        if self.queued == 0 {
            // An idle carrier owns no buffer worth mentioning.
            self.small.clear();
            self.small.shrink_to(64);
            self.at = 0;
        }
    }

    /// Everything that waits as one run of bytes, at most `max`: for carriers that have to change
    /// the bytes (masked WebSocket frames). Call [`wrote`](Outbox::wrote) with what was taken.
    pub fn copy_to(&self, pipe: &Pipe, out: &mut Vec<u8>, max: usize) -> usize {
        let mut slices = Vec::new();
        self.slices(pipe, &mut slices, 64);
        let mut left = max;
        for slice in slices {
            let count = slice.len().min(left);
            out.extend_from_slice(&slice[..count]);
            left -= count;
        }
        max - left
    }
}
