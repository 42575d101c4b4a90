//! The room that serves River sessions: links come in, sessions live on them, handlers answer.
//!
//! One room owns all sessions of one server id. What arrives on a link is decoded here, given to the
//! session's machine, and what that delivers to the table of streams; what both want done is carried out in
//! the order they said it, writes first, so that numbers leave in order also when a handler answers on the
//! spot. Handlers run behind [`Procedures`]: the room asks it to open a call, hands it requests and takes
//! answers, and never waits for any of them.
//!
//! *Backpressure.* A handler that does not read holds back its session: the room keeps what arrives,
//! unacknowledged, and past a bound stops reading the link, until the handler catches up. A peer that does not
//! acknowledge holds back its writers, through the session's [`Gate`].

mod admission;
mod calls;
mod client;
mod figures;
mod links;
mod mail;
mod serving;
mod settings;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::admission::admit;
pub use self::admission::{Admission, Admitted, Anybody};
pub use self::calls::{Answers, Opened, Opening, Procedures, Requests, Taken, Unsent};
pub use self::client::{Client, Gate};
pub use self::figures::Figures;
use self::figures::count;
use self::links::{Link, Stage};
use self::mail::Mail;
pub use self::mail::{BearerBox, Doorbell, Message};
pub use self::settings::Settings;
use super::handlers::Handlers;
use super::visits::Visit;
use super::worker::{Inbox, Room};
use crate::rt::{Hasher, Rand, Rt};
use crate::state::envelope::{Envelope, Ids};
use crate::state::procedure::{Serve, Served};
use crate::state::session::server::{Input, Session};
use crate::state::session::{Action, Cause, Event, Options, Timing};
use crate::state::time::Moment;
use crate::state::value::Value;
use crate::wire::Happened;
use crate::wire::bearer::{BROKEN, Heard};

/// A session as the room knows it.
struct Entry {
    session: Session,
    served: Served,
    client: Arc<Client>,
    requests: HashMap<String, Box<dyn Requests>, Hasher>,
    /// Streams whose handlers do not keep up.
    held_by: BTreeSet<String>,
    /// What arrived meanwhile. Not acknowledged, though its acknowledgements were heard.
    backlog: VecDeque<Result<Envelope, &'static str>>,
    /// Its link is not read.
    paused: bool,
    /// The alarm that is set for it.
    armed: Option<Moment>,
    unacked_bytes: usize,
    /// Its place in the connection log.
    visit: Visit,
}

/// Messages a held session keeps before its link is no longer read: enough for the acknowledgements of a peer
/// that respects its own mark to come through.
const BACKLOG_MAX: usize = 2_048;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    Link(u64),
    Session(u64),
}

/// The room.
pub struct Sessions<P> {
    rt: Rt,
    settings: Settings,
    options: Options,
    procedures: Arc<P>,
    admission: Arc<dyn Admission>,
    handlers: Arc<Handlers>,
    mail: Mail,
    figures: Figures,
    links: HashMap<u64, Link, Hasher>,
    waiting: usize,
    sessions: HashMap<u64, Entry, Hasher>,
    by_client: HashMap<String, u64, Hasher>,
    next_session: u64,
    alarms: BinaryHeap<Reverse<(Moment, Alarm)>>,
    ids: Ids,
    rand: Rand,
    open_calls: usize,
    unacked_bytes: usize,
    sinks: Vec<Vec<Action>>,
}

impl<P: Procedures> Sessions<P> {
    /// A room without sessions.
    pub fn new(
        rt: &Rt,
        settings: Settings,
        procedures: Arc<P>,
        admission: Arc<dyn Admission>,
        handlers: Arc<Handlers>,
        figures: Figures,
        inbox: &Inbox<Message>,
    ) -> Sessions<P> {
        let timing = match settings.resumable {
            true => settings.timing,
            // Without resuming, a session that lost its link has nothing to wait for.
            false => Timing { grace: Duration::ZERO, ..settings.timing },
        };
        let options = Options { timing, bounds: settings.holds, encode: settings.codec.encoder() };
        let mut rand = rt.rand("sessions");
        Sessions {
            rt: rt.clone(),
            options,
            procedures,
            admission,
            handlers,
            mail: Mail::new(inbox),
            figures,
            links: HashMap::with_hasher(rt.hasher()),
            waiting: 0,
            sessions: HashMap::with_hasher(rt.hasher()),
            by_client: HashMap::with_hasher(rt.hasher()),
            next_session: 0,
            alarms: BinaryHeap::new(),
            ids: Ids::new(rand.next_u64()),
            rand,
            open_calls: 0,
            unacked_bytes: 0,
            sinks: Vec::new(),
            settings,
        }
    }

    fn handle(&mut self, now: Moment, message: Message) {
        match message {
            Message::Opened { link, bearer, caller } => self.opened(now, link, bearer.0, caller),
            Message::Heard { link, heard } => self.heard(now, link, heard),
            Message::Batch(batch) => {
                for event in batch {
                    let heard = match event.what {
                        Happened::Binary(bytes) => Heard::Frame(bytes.into()),
                        Happened::Text(_) => Heard::Garbage("a text came where bytes are spoken"),
                        Happened::Closed(closing) => {
                            Heard::Closed { code: if closing.by_peer { closing.code } else { BROKEN } }
                        }
                        _ => continue,
                    };
                    self.heard(now, event.tag, heard);
                }
            }
            Message::Admitted { link, request, result } => self.admitted(now, link, request, result),
            Message::Answer { session, stream, answer } => {
                let Some(entry) = self.sessions.get_mut(&session) else { return };
                entry.client.gate.flying.fetch_sub(1, Ordering::AcqRel);
                let mut sink = Vec::new();
                entry.served.answer(&stream, answer, &mut sink);
                self.serve(now, session, sink);
                self.settle(session);
            }
            Message::CloseAnswers { session, stream } => {
                let Some(entry) = self.sessions.get_mut(&session) else { return };
                let mut sink = Vec::new();
                entry.served.close_answers(&stream, &mut sink);
                self.serve(now, session, sink);
                self.settle(session);
            }
            Message::Fail { session, stream, failure } => {
                let Some(entry) = self.sessions.get_mut(&session) else { return };
                let mut sink = Vec::new();
                entry.served.fail(&stream, failure, &mut sink);
                self.serve(now, session, sink);
                self.settle(session);
            }
            Message::Resume { session, stream } => self.resume(now, session, &stream),
            Message::Refresh(client) => {
                let of = self.of_client(client.as_deref());
                of.into_iter().for_each(|key| self.step(now, key, Input::AskRefresh));
            }
            Message::Recheck => {
                let mut stale = self.of_client(None);
                stale.retain(|key| !self.admission.holds(&self.sessions[key].client.metadata()));
                stale.into_iter().for_each(|key| self.step(now, key, Input::AskRefresh));
            }
            Message::EndClient(client, cause) => {
                if let Some(key) = self.by_client.get(&client).copied() {
                    self.step(now, key, Input::End(cause));
                }
            }
            Message::Cut(client) => {
                let of = self.of_client(client.as_deref());
                of.into_iter().for_each(|key| self.step(now, key, Input::Cut(Cause::LinkLost)));
            }
        }
    }

    /// The sessions of this client, or of all, in an order that is always the same.
    fn of_client(&self, client: Option<&str>) -> Vec<u64> {
        let of = |id: &str| client.is_none_or(|client| client == id);
        let mut all: Vec<u64> = self.by_client.iter().filter(|(id, _)| of(id)).map(|(_, key)| *key).collect();
        all.sort_unstable();
        all
    }

    // ---- sessions ----

    fn arrived(&mut self, now: Moment, key: u64, link: u64, envelope: Result<Envelope, &'static str>) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        if entry.held_by.is_empty() || entry.session.link() != Some(link) {
            return self.step(now, key, Input::Frame { link, envelope });
        }
        // Its numbers wait with it, but what it acknowledges, and that the peer lives, is known now.
        let ack = envelope.as_ref().map_or(0, |envelope| envelope.ack);
        entry.backlog.push_back(envelope);
        if entry.backlog.len() >= BACKLOG_MAX && !entry.paused {
            entry.paused = true;
            if let Some(link) = self.links.get(&link) {
                link.bearer.pause(true);
            }
        }
        self.step(now, key, Input::Glimpse { ack });
    }

    fn resume(&mut self, now: Moment, key: u64, stream: &str) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        entry.held_by.remove(stream);
        let Some(link) = entry.session.link() else { return };
        self.flush_backlog(now, key, link);
    }

    /// Takes what waited until a handler holds the session back again.
    fn flush_backlog(&mut self, now: Moment, key: u64, link: u64) {
        loop {
            let Some(entry) = self.sessions.get_mut(&key).filter(|entry| entry.held_by.is_empty()) else {
                return;
            };
            let Some(envelope) = entry.backlog.pop_front() else { break };
            self.step(now, key, Input::Frame { link, envelope });
        }
        if let Some(entry) = self.sessions.get_mut(&key).filter(|entry| entry.paused) {
            entry.paused = false;
            if let Some(link) = self.links.get(&link) {
                link.bearer.pause(false);
            }
        }
    }

    fn step(&mut self, now: Moment, key: u64, input: Input) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        let mut sink = self.sinks.pop().unwrap_or_default();
        entry.session.step(now, input, &mut sink);
        self.carry_out(now, key, &mut sink);
        sink.clear();
        self.sinks.push(sink);
        self.settle(key);
    }

    /// Does what the session wants. What it delivers comes last: a handler may answer on the spot, and its
    /// answer is numbered after what was written here.
    fn carry_out(&mut self, now: Moment, key: u64, sink: &mut Vec<Action>) {
        let mut delivered = Vec::new();
        for action in sink.drain(..) {
            match action {
                Action::Write { link, frame } => {
                    if let Some(link) = self.links.get(&link) {
                        link.bearer.send(frame);
                    }
                }
                Action::Deliver(envelope) => delivered.push(envelope),
                Action::Close { link, cause } => self.close_link(link, cause),
                Action::CheckRefresh { metadata } => self.check_refresh(now, key, metadata),
                Action::Ended { cause, .. } => self.ended(now, key, cause),
                Action::Tell(event) => self.tell(event),
                Action::Began { .. } | Action::Writable => {}
                Action::Dial { .. } | Action::AskMetadata { .. } => {}
            }
        }
        for envelope in delivered {
            let Some(entry) = self.sessions.get_mut(&key) else { return };
            let mut sink = Vec::new();
            entry.served.arrived(envelope, &*self.procedures, &mut sink);
            self.serve(now, key, sink);
        }
    }

    fn check_refresh(&mut self, now: Moment, key: u64, metadata: Value) {
        let Some(entry) = self.sessions.get(&key) else { return };
        let (Some(link), from, before) =
            (entry.session.link(), entry.client.id.clone(), entry.client.metadata())
        else {
            return;
        };
        let (admission, mail) = (self.admission.clone(), self.mail.clone());
        let check = move || admit(&*admission, &from, Some(&metadata), Some(&before));
        if self.admission.is_quick() {
            return self.mail.surely(Message::Admitted { link, request: None, result: check() });
        }
        let started = self.handlers.run(move || {
            mail.surely(Message::Admitted { link, request: None, result: check() });
        });
        if !started {
            self.step(now, key, Input::Refreshed { accepted: None });
        }
    }

    fn ended(&mut self, now: Moment, key: u64, cause: Cause) {
        let Some(mut entry) = self.sessions.remove(&key) else { return };
        count(&self.figures.ended, "cause", cause.as_str());
        entry.visit.end(cause.as_str());
        self.figures.sessions.dec();
        if self.by_client.get(&entry.client.id) == Some(&key) {
            self.by_client.remove(&entry.client.id);
        }
        self.unacked_bytes -= entry.unacked_bytes;
        entry.client.gate.ended.store(true, Ordering::Release);
        entry.client.gate.ring();
        let mut sink = Vec::new();
        entry.served.disconnected(&mut sink);
        for action in sink {
            match action {
                Serve::Broken { stream, failure } => {
                    if let Some(requests) = entry.requests.get_mut(&stream) {
                        requests.broken(failure);
                    }
                }
                Serve::Finished { stream } => {
                    self.open_calls -= 1;
                    self.figures.calls.dec();
                    if let Some(mut requests) = entry.requests.remove(&stream) {
                        requests.finished();
                    }
                }
                _ => {}
            }
        }
        let client = &entry.client.id;
        self.rt.trace(|| format!("session of {client} ended at {now:?}: {cause}"));
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Connected { resent, trimmed } => {
                self.figures.connected.inc();
                self.figures.resent.inc_by(resent as u64);
                self.figures.trimmed.inc_by(trimmed as u64);
            }
            Event::Disconnected { cause } => {
                self.figures.connected.dec();
                count(&self.figures.disconnects, "cause", cause.as_str());
            }
            Event::Duplicate => drop(self.figures.duplicates.inc()),
            Event::InvalidMessage(_) => drop(self.figures.invalid.inc()),
            Event::AckSaid => drop(self.figures.acks.inc()),
            Event::HandshakeFailed(_) | Event::Mismatch(_) | Event::RetriesExceeded => {}
        }
    }

    /// After anything happened to a session: its gate, its share of memory, its alarm.
    fn settle(&mut self, key: u64) {
        let Some(entry) = self.sessions.get_mut(&key) else { return };
        let gate = &entry.client.gate;
        gate.full.store(entry.session.above_mark(), Ordering::Release);
        if gate.waited_for.load(Ordering::SeqCst) && gate.is_open() {
            gate.ring();
        }
        let (_, bytes) = entry.session.unacked();
        self.unacked_bytes = self.unacked_bytes - entry.unacked_bytes + bytes;
        entry.unacked_bytes = bytes;
        self.figures.unacked_bytes.set(self.unacked_bytes as i64);
        let Some(deadline) = entry.session.deadline() else { return };
        if entry.armed.is_none_or(|armed| deadline < armed) {
            entry.armed = Some(deadline);
            self.alarms.push(Reverse((deadline, Alarm::Session(key))));
        }
        if self.unacked_bytes > self.settings.holds_total {
            // Whoever asked for the last byte pays for it: the sum has a bound, as each of them has.
            let now = self.rt.now();
            self.step(now, key, Input::End(Cause::BufferFull));
        }
    }

    fn ring_alarms(&mut self, now: Moment) {
        while let Some(Reverse((at, alarm))) =
            self.alarms.peek().copied().filter(|Reverse((at, _))| *at <= now)
        {
            self.alarms.pop();
            match alarm {
                Alarm::Link(link) => {
                    let late = self.links.get(&link).is_some_and(|link| match link.stage {
                        Stage::Waiting { until } | Stage::Admitting { until, .. } => until <= now,
                        Stage::Bound(_) => false,
                    });
                    if late {
                        count(&self.figures.handshakes, "result", "timed_out");
                        self.close_link(link, Cause::HandshakeTimeout);
                    }
                }
                Alarm::Session(key) => {
                    let Some(entry) = self.sessions.get_mut(&key).filter(|entry| entry.armed == Some(at))
                    else {
                        continue;
                    };
                    entry.armed = None;
                    if entry.paused {
                        // Its silence is our doing.
                        self.step(now, key, Input::Glimpse { ack: 0 });
                    }
                    self.step(now, key, Input::Alarm);
                }
            }
        }
    }

    fn wake_with(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        for message in inbox.drain(..) {
            self.handle(now, message);
        }
        if self.mail.inbox.is_empty() {
            let late = std::mem::take(&mut *self.mail.late.lock());
            for message in late {
                self.handle(now, message);
            }
        }
        self.ring_alarms(now);
    }
}

impl<P: Procedures> Room for Sessions<P> {
    type Message = Message;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        self.wake_with(now, inbox);
    }

    fn deadline(&self) -> Option<Moment> {
        let alarm = self.alarms.peek().map(|Reverse((at, _))| *at);
        // Late mail is looked at as soon as the inbox is empty.
        if self.mail.late.lock().is_empty() { alarm } else { Some(Moment::ZERO) }
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        self.wake_with(now, inbox);
        let mut all: Vec<u64> = self.sessions.keys().copied().collect();
        all.sort_unstable();
        for key in all {
            self.step(now, key, Input::End(Cause::GoingAway));
        }
        let links: Vec<u64> = self.links.keys().copied().collect();
        for link in links {
            self.close_link(link, Cause::GoingAway);
        }
    }
}
