//! The room of one client: its machine, its link and its calls, on one thread at a time: that of whoever calls, of
//! the link, or its own.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::call::READ_AHEAD;
use super::dial::{Caller, Dialer};
use super::figures::{Figures, count};
use super::gate::Gate;
use super::options::{Listener, MakeMetadata, Options};
use crate::codec::{Bounds, Codec};
use crate::engine::worker::{self, Inbox, Room};
use crate::rt::{Cancel, Filler, Hasher, Lock, Rand, Rt, Sender};
use crate::state::envelope::{Envelope, Procedure, Tracing};
use crate::state::procedure::{Answer, Call, Called, Kind};
use crate::state::session::client::{Client as Machine, Input};
use crate::state::session::{Action, Cause, Options as SessionOptions};
use crate::state::time::Moment;
use crate::state::value::Value;
use crate::wire::bearer::{self, Bearer, Heard};
use crate::wire::{Happened, LinkBatch, LinkHandle, Outlet};

#[derive(Default)]
pub(super) struct Status {
    pub(super) connected: AtomicBool,
    pub(super) session: Lock<Option<String>>,
    pub(super) calls: AtomicUsize,
}

pub(super) struct BearerBox(pub(super) Box<dyn Bearer>);

pub(super) struct NewCall {
    pub(super) stream: String,
    pub(super) kind: Kind,
    pub(super) procedure: Procedure,
    pub(super) init: Value,
    pub(super) sink: AnswerSink,
}

pub(super) struct AnswerSink {
    pub(super) items: Items,
    pub(super) reading: Arc<Reading>,
}

/// Where answers go.
pub(super) enum Items {
    /// The call is answered once.
    One(Filler<Answer>),
    Many(Sender<Answer>),
}

/// How far the caller has read. Shared by the room and the caller.
#[derive(Default)]
pub(super) struct Reading {
    /// Answers not yet read.
    pub(super) waiting: AtomicUsize,
    /// The session is held back until they are.
    pub(super) held: AtomicBool,
    /// Nobody reads the requests of this call any more.
    pub(super) broken: AtomicBool,
}

impl AnswerSink {
    /// Takes an answer; whether the session has to be held back until more was read.
    fn take(&self, answer: Answer) -> bool {
        let items = match &self.items {
            // A second answer is one too many, and whoever was gone has cancelled.
            Items::One(filler) => {
                let _ = filler.fill(answer);
                return false;
            }
            Items::Many(items) => items,
        };
        let Reading { waiting, held, .. } = &*self.reading;
        let count = waiting.fetch_add(1, Ordering::AcqRel) + 1;
        // Full cannot be: the session is held back at half. Gone means that the caller reads no more, and its
        // cancellation is on its way.
        if items.try_send(answer).is_err() || count < READ_AHEAD {
            return false;
        }
        held.store(true, Ordering::Release);
        let read_meanwhile = waiting.load(Ordering::Acquire) < READ_AHEAD;
        !(read_meanwhile && held.swap(false, Ordering::AcqRel))
    }
}

pub(super) enum Message {
    Input(Input),
    Goodbye,
    Dialed { dial: u64, bearer: BearerBox },
    DialFailed { dial: u64, why: String },
    Heard { dial: u64, heard: Heard },
    Batch(LinkBatch),
    Metadata { link: u64, metadata: Result<Option<Value>, String> },
    Call(Box<NewCall>),
    Write { stream: String, value: Value },
    Close { stream: String },
    Cancel { stream: String },
    Resume { stream: String },
}

/// Messages kept while a caller does not read, before the link is no longer read.
const BACKLOG_MAX: usize = 2_048;

pub(super) struct ClientRoom {
    rt: Rt,
    codec: Codec,
    accepts: Bounds,
    connect: Duration,
    machine: Machine,
    called: Called,
    dialer: Arc<dyn Dialer>,
    caller: Caller,
    metadata: Option<Arc<MakeMetadata>>,
    tracing: Tracing,
    listener: Option<Arc<Listener>>,
    figures: Figures,
    link: Option<(u64, Box<dyn Bearer>)>,
    answers: HashMap<String, AnswerSink, Hasher>,
    held_by: BTreeSet<String>,
    backlog: VecDeque<Result<Envelope, &'static str>>,
    paused: bool,
    gate: Arc<Gate>,
    status: Arc<Status>,
    rand: Rand,
}

impl ClientRoom {
    pub(super) fn new(
        rt: &Rt,
        id: &str,
        server: &str,
        dialer: Arc<dyn Dialer>,
        options: Options,
        gate: Arc<Gate>,
        status: Arc<Status>,
        inbox: &Inbox<Message>,
        cancel: Cancel,
    ) -> ClientRoom {
        let session =
            SessionOptions { timing: options.timing, bounds: options.holds, encode: options.codec.encoder() };
        let mut machine = Machine::new(id, server, session, options.retry);
        machine.step(rt.now(), 0, Input::Reconnects(options.reconnects), &mut Vec::new());
        let (heavy, light) = (inbox.clone(), inbox.entering());
        let outlet = Outlet::new(move |batch| {
            let batches = if bearer::is_light(&batch) { &light } else { &heavy };
            match batches.try_data(Message::Batch(batch)) {
                Err(worker::Refused::Full(Message::Batch(batch))) => Err(batch),
                _ => Ok(()),
            }
        });
        ClientRoom {
            rt: rt.clone(),
            codec: options.codec,
            accepts: options.accepts,
            connect: options.timing.connect,
            machine,
            called: Called::new(server),
            dialer,
            caller: Caller { inbox: inbox.clone(), outlet, cancel },
            metadata: options.metadata,
            tracing: options.tracing,
            listener: options.listener,
            figures: options.figures,
            link: None,
            answers: HashMap::with_hasher(rt.hasher()),
            held_by: BTreeSet::new(),
            backlog: VecDeque::new(),
            paused: false,
            gate,
            status,
            rand: rt.rand("client-session"),
        }
    }

    fn handle(&mut self, now: Moment, message: Message) {
        match message {
            Message::Input(input) => self.step(now, input),
            Message::Goodbye => self.goodbye(now),
            Message::Dialed { dial, bearer } => self.dialed(now, dial, bearer.0),
            Message::DialFailed { dial, why } => {
                log::debug!("dial {dial} failed: {why}");
                self.figures.failed_dials.inc();
                self.step(now, Input::DialFailed { dial });
            }
            Message::Heard { dial, heard } => self.heard(now, dial, heard),
            Message::Batch(batch) => batch.into_iter().for_each(|event| match event.what {
                Happened::Opened(handle, _) => self.dialed(now, event.tag, Box::<LinkHandle>::new(handle)),
                Happened::Refused(why) => {
                    log::debug!("dial {} failed: {why}", event.tag);
                    self.figures.failed_dials.inc();
                    self.step(now, Input::DialFailed { dial: event.tag });
                }
                Happened::Binary(bytes) => self.heard(now, event.tag, Heard::Frame(bytes.into())),
                Happened::Text(_) => {
                    self.heard(now, event.tag, Heard::Garbage("a text came where bytes are spoken"))
                }
                Happened::Closed(closing) => self.heard(now, event.tag, Heard::Closed { code: closing.code }),
                _ => {}
            }),
            Message::Metadata { link, metadata } => self.step(now, Input::Metadata { link, metadata }),
            Message::Call(call) => {
                self.landed();
                let NewCall { stream, kind, procedure, init, sink } = *call;
                self.answers.insert(stream.clone(), sink);
                self.calls(now, |called, tracing, sink| {
                    called.call(&stream, kind, procedure, init, tracing, sink)
                });
            }
            Message::Write { stream, value } => {
                self.landed();
                self.calls(now, |called, _, sink| {
                    // Written to a call that is over: its answers say so.
                    let _ = called.write(&stream, value, sink);
                });
            }
            Message::Close { stream } => self.calls(now, |called, _, sink| called.close(&stream, sink)),
            Message::Cancel { stream } => {
                self.calls(now, |called, _, sink| called.cancel(&stream, "cancelled by client", sink));
            }
            Message::Resume { stream } => self.resume(now, &stream),
        }
    }

    /// Something that was on its way to the room has arrived.
    fn landed(&mut self) {
        self.gate.flying.fetch_sub(1, Ordering::AcqRel);
    }

    fn dialed(&mut self, now: Moment, dial: u64, bearer: Box<dyn Bearer>) {
        let before = self.link.replace((dial, bearer));
        self.step(now, Input::Dialed { dial });
        // A dial that was given up came through: the machine closed it, and the link there was goes on.
        if self.link.is_none() {
            self.link = before;
        }
    }

    fn heard(&mut self, now: Moment, dial: u64, heard: Heard) {
        let envelope = match heard {
            Heard::Frame(frame) => self.codec.decode(&frame, self.accepts).map_err(|bad| bad.0),
            Heard::Garbage(why) => Err(why),
            Heard::Closed { .. } => {
                self.flush_backlog(now, dial);
                if self.link.as_ref().is_some_and(|(number, _)| *number == dial) {
                    self.link = None;
                }
                return self.step(now, Input::Detached { link: dial });
            }
        };
        if self.held_by.is_empty() {
            return self.step(now, Input::Frame { link: dial, envelope });
        }
        if self.link.as_ref().is_none_or(|(number, _)| *number != dial) {
            return;
        }
        // Its number waits with it, but what it acknowledges, and that the server lives, is known now.
        let ack = envelope.as_ref().map_or(0, |envelope| envelope.ack);
        self.backlog.push_back(envelope);
        if self.backlog.len() >= BACKLOG_MAX && !self.paused {
            self.paused = true;
            if let Some((_, bearer)) = &self.link {
                bearer.pause(true);
            }
        }
        self.step(now, Input::Glimpse { link: dial, ack });
    }

    fn resume(&mut self, now: Moment, stream: &str) {
        self.held_by.remove(stream);
        if let Some((dial, _)) = &self.link {
            let dial = *dial;
            self.flush_backlog(now, dial);
        }
    }

    fn flush_backlog(&mut self, now: Moment, dial: u64) {
        while self.held_by.is_empty() {
            let Some(envelope) = self.backlog.pop_front() else {
                if std::mem::take(&mut self.paused)
                    && let Some((_, bearer)) = &self.link
                {
                    bearer.pause(false);
                }
                return;
            };
            self.step(now, Input::Frame { link: dial, envelope });
        }
    }

    fn step(&mut self, now: Moment, input: Input) {
        let mut sink = Vec::new();
        let draw = self.rand.next_u64();
        self.machine.step(now, draw, input, &mut sink);
        let mut delivered = Vec::new();
        for action in sink {
            match action {
                Action::Write { link, frame } => {
                    if let Some((_, bearer)) = self.link.as_ref().filter(|(number, _)| *number == link) {
                        bearer.send(frame);
                    }
                }
                Action::Deliver(envelope) => delivered.push(envelope),
                Action::Dial { dial } => {
                    self.forget_backlog();
                    self.figures.dials.inc();
                    self.dialer.dial(dial, now + self.connect, &self.caller);
                }
                Action::AskMetadata { link } => self.ask_metadata(link),
                Action::Close { link, cause } => {
                    if let Some((_, bearer)) = self.link.take_if(|(number, _)| *number == link) {
                        bearer.close(cause.code(), cause.as_str());
                    }
                }
                Action::Ended { cause, .. } => {
                    count(&self.figures.ended, "cause", cause.as_str());
                    self.forget_backlog();
                    // Whoever hears that its call has failed may ask at once how the session stands.
                    self.settle();
                    self.calls(now, |called, _, sink| called.disconnected(sink));
                }
                Action::Tell(event) => {
                    self.figures.tell(&event);
                    if let Some(listener) = &self.listener {
                        listener(&event);
                    }
                }
                Action::Began { .. } | Action::Writable | Action::CheckRefresh { .. } => {}
            }
        }
        for envelope in delivered {
            self.calls(now, |called, _, sink| called.arrived(envelope, sink));
        }
    }

    /// What an old link brought and nobody took is sent again on the next.
    fn forget_backlog(&mut self) {
        self.backlog.clear();
        self.paused = false;
    }

    fn ask_metadata(&mut self, link: u64) {
        let Some(make) = self.metadata.clone() else {
            let answer = Message::Metadata { link, metadata: Ok(None) };
            // To itself: at most one for each link, and the reserve holds more.
            let _ = self.caller.inbox.control(answer);
            return;
        };
        let inbox = self.caller.inbox.clone();
        let made = self.rt.spawn("metadata", move || {
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| make()));
            let metadata = made.unwrap_or_else(|_| Err("its constructor panicked".into())).map(Some);
            // A client that has ended asks for no metadata.
            let _ = inbox.control(Message::Metadata { link, metadata });
        });
        match made {
            // It may ask a token server: nobody waits for it, its answer carries the link's number.
            Ok(thread) => thread.detach(),
            Err(why) => {
                let metadata = Err(why.to_string());
                let _ = self.caller.inbox.control(Message::Metadata { link, metadata });
            }
        }
    }

    fn calls(&mut self, now: Moment, change: impl FnOnce(&mut Called, Tracing, &mut Vec<Call>)) {
        let mut sink = Vec::new();
        change(&mut self.called, self.tracing.clone(), &mut sink);
        for action in sink {
            match action {
                Call::Say(message) => self.step(now, Input::Say(message)),
                Call::Answered { stream, answer } => {
                    if self.answers.get(&stream).is_some_and(|sink| sink.take(answer)) {
                        self.held_by.insert(stream);
                    }
                }
                Call::AnswersEnded { stream } => {
                    self.answers.remove(&stream);
                    if self.held_by.contains(&stream) {
                        // What waits is taken with the next wake.
                        let _ = self.caller.inbox.control(Message::Resume { stream });
                    }
                }
                Call::RequestsBroken { stream } => {
                    if let Some(sink) = self.answers.get(&stream) {
                        sink.reading.broken.store(true, Ordering::Release);
                    }
                }
            }
        }
        let open = self.called.open();
        let before = self.status.calls.swap(open, Ordering::AcqRel);
        self.figures.calls.inc_by(open as i64 - before as i64);
    }

    /// Cancels what is open, so that the server knows at once, and leaves.
    fn goodbye(&mut self, now: Moment) {
        if self.machine.is_connected() {
            self.calls(now, |called, _, sink| called.cancel_all("the client left", sink));
        }
        self.step(now, Input::End(Cause::Goodbye));
    }

    fn settle(&mut self) {
        self.gate.full.store(self.machine.above_mark(), Ordering::Release);
        if self.gate.is_open() {
            self.gate.ring();
        }
        let connected = self.machine.is_connected();
        let before = self.status.connected.swap(connected, Ordering::AcqRel);
        self.figures.connected.inc_by(i64::from(connected) - i64::from(before));
        if before != connected || !connected {
            *self.status.session.lock() = self.machine.session().map(str::to_owned);
        }
    }

    fn wake_with(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        for message in inbox.drain(..) {
            self.handle(now, message);
        }
        if self.machine.deadline().is_some_and(|deadline| deadline <= now) {
            if let Some((dial, _)) = self.link.as_ref().filter(|_| self.paused) {
                // Its silence is our doing.
                let dial = *dial;
                self.step(now, Input::Glimpse { link: dial, ack: 0 });
            }
            self.step(now, Input::Alarm);
        }
        self.settle();
    }
}

impl Room for ClientRoom {
    type Message = Message;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        self.wake_with(now, inbox);
    }

    fn deadline(&self) -> Option<Moment> {
        self.machine.deadline()
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        self.wake_with(now, inbox);
        self.goodbye(now);
        self.settle();
        self.gate.ended.store(true, Ordering::Release);
        self.gate.waited_for.store(true, Ordering::SeqCst);
        self.gate.ring();
    }
}
