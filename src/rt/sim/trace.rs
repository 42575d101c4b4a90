//! What happened in a run, in order: the thing that must be the same for the same seed.

use std::fmt::Write as _;
use std::sync::OnceLock;

use super::tape::fingerprint;
use crate::rt::rand::mix;
use crate::state::time::Moment;

/// The kinds of event a trace holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The token went to this thread.
    Run,
    Spawn,
    End,
    Send,
    Recv,
    Close,
    Ready,
    Timeout,
    Sleep,
    Stall,
    Join,
    Trapped,
    Released,
    Kill,
    Point,
    Note,
    Fail,
}

#[derive(Clone, Copy)]
pub(super) struct Event {
    at: u64,
    thread: u32,
    kind: Kind,
    arg: u64,
}

/// A trace that has ended. It becomes text when somebody asks: nobody reads that of a run that went well, and
/// writing it costs more than a short run.
pub(crate) struct Told {
    trace: Trace,
    threads: Vec<String>,
    channels: Vec<String>,
    text: OnceLock<String>,
}

impl Told {
    pub(super) fn new(trace: Trace, threads: Vec<String>, channels: Vec<String>) -> Told {
        Told { trace, threads, channels, text: OnceLock::new() }
    }

    pub(crate) fn text(&self) -> &str {
        self.text.get_or_init(|| {
            let thread = |tid: usize| self.threads[tid].as_str();
            let channel = |chan: u64| self.channels.get(chan as usize).map_or("", String::as_str);
            self.trace.render(thread, channel)
        })
    }
}

/// Events and notes, and a hash over all of them, also those that are no longer kept.
pub(super) struct Trace {
    events: Vec<Event>,
    notes: Vec<String>,
    hash: u64,
    /// 16 MiB of events: enough for any scenario a person would read.
    limit: usize,
    dropped: u64,
}

impl Trace {
    pub(super) fn new() -> Trace {
        Trace {
            events: Vec::new(),
            notes: Vec::new(),
            hash: 0x746f_7770_6174_6821,
            limit: 500_000,
            dropped: 0,
        }
    }

    pub(super) fn add(&mut self, at: u64, thread: usize, kind: Kind, arg: u64) {
        self.hash = mix(self.hash ^ at.rotate_left(20) ^ ((thread as u64) << 8 | kind as u64)) ^ arg;
        if self.events.len() < self.limit {
            self.events.push(Event { at, thread: thread as u32, kind, arg });
        } else {
            self.dropped += 1;
        }
    }

    pub(super) fn note(&mut self, at: u64, thread: usize, kind: Kind, text: String) {
        let arg = fingerprint(text.as_bytes());
        self.hash = mix(self.hash ^ arg);
        let index = self.notes.len() as u64;
        self.notes.push(text);
        self.add(at, thread, kind, index);
    }

    pub(super) fn hash(&self) -> u64 {
        mix(self.hash)
    }

    /// The trace as text, a line an event.
    fn render<'a>(&self, thread: impl Fn(usize) -> &'a str, chan: impl Fn(u64) -> &'a str) -> String {
        let mut text = String::with_capacity(self.events.len() * 40);
        for event in &self.events {
            let what = match event.kind {
                Kind::Run => "runs".to_owned(),
                Kind::Spawn => format!("starts {}", thread(event.arg as usize)),
                Kind::End => "ends".to_owned(),
                Kind::Send => format!("sends into {}", chan(event.arg)),
                Kind::Recv => format!("receives from {}", chan(event.arg)),
                Kind::Close => format!("closes its end of {}", chan(event.arg)),
                Kind::Ready => format!("finds {} ready", event.arg),
                Kind::Timeout => "meets its deadline".to_owned(),
                Kind::Sleep => format!("sleeps until {:?}", Moment(event.arg)),
                Kind::Stall => format!("is stalled until {:?}", Moment(event.arg)),
                Kind::Join => format!("joins {}", thread(event.arg as usize)),
                Kind::Trapped => "is trapped".to_owned(),
                Kind::Released => "is released".to_owned(),
                Kind::Kill => format!("kills {}", thread(event.arg as usize)),
                Kind::Point | Kind::Note | Kind::Fail => {
                    self.notes.get(event.arg as usize).cloned().unwrap_or_default()
                }
            };
            // Writing into a String cannot fail.
            _ = writeln!(text, "{:?} {} {what}", Moment(event.at), thread(event.thread as usize));
        }
        if self.dropped > 0 {
            _ = writeln!(text, "… and {} more events, in the hash only", self.dropped);
        }
        text
    }
}
