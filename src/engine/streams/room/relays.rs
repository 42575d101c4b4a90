//! Relays: the parts of streams that other replicas run brought here, and those that run here sent there.
//!
//! Both ends speak JSON over a WebSocket on the replicas' own listener, one link for each (stream, worker):
//! `{"ask":[turn,after]}` and `{"beat":moment}` go to the worker; `{"part":[turn,n,…]}`,
//! `{"evicted":[turn,first]}`, `{"ended":[turn,last]}`, `{"elsewhere":null}` and `{"beat":…}` come from it, the
//! last with the moment it answers, or null when it comes by itself.
//! Who dials and what counts is decided by [`Relay`]; this carries it out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Entry, Message, StreamsRoom};
use crate::engine::replicas::Replicas;
use crate::engine::streams::event::{Event, What};
use crate::engine::streams::figures::{RelayFigures, word};
use crate::engine::streams::follower::FollowerId;
use crate::engine::visits::{Caller, Visit};
use crate::engine::worker::Refused;
use crate::rt::{self, Cancel, Moment, Op, Rand};
use crate::state::relay::{Action, Input, Link, Relay, SILENCE_MAX, Source, Want};
use crate::state::turn::{GRACE, Turn};
use crate::wire::{Dial, Frame, Happened, LinkEvent, LinkHandle, Outlet, Owner, Speak, Target, Wire};

/// How often each side says that it is alive: three times before the other takes it for dead.
const BEAT: Duration = Duration::from_secs(1);
/// How long a dial may take.
const DIAL_WAIT: Duration = Duration::from_secs(5);
/// The longest message: a part in its envelope.
pub const RELAY_MESSAGE_MAX: u32 = 4 << 20;
/// Where the relay of a replica serves, before the stream's id.
pub const RELAY_PATH: &str = "/relay/v1/streams/";
/// The header that carries the ticket.
pub const RELAY_TICKET: &str = "towpath-ticket";

/// Why a link of a relay is closed that is not needed any more.
const OVER: &str = "over";

/// What relays need of the engine around them.
#[derive(Clone)]
pub struct RelayWays {
    /// Connections to other replicas.
    pub wire: Arc<dyn Wire>,
    /// Who they are.
    pub replicas: Replicas,
    /// What is counted.
    pub figures: RelayFigures,
}

impl RelayWays {
    /// Ways whose figures are shown nowhere.
    pub fn new(wire: Arc<dyn Wire>, replicas: Replicas) -> RelayWays {
        RelayWays { wire, replicas, figures: RelayFigures::default() }
    }
}

/// The relays of one shard.
pub(super) struct Relays {
    ways: Option<RelayWays>,
    rand: Rand,
    figures: RelayFigures,
    /// What a tag of a link stands for. It stays until the dial has answered and its link is closed.
    dials: HashMap<u64, Dialed, rt::Hasher>,
    /// Which stream a tag of a link stands for that another replica opened.
    serves: HashMap<u64, Uuid, rt::Hasher>,
    beat_at: Moment,
}

/// One dial, out or open.
struct Dialed {
    stream: Uuid,
    dial: u64,
    source: Source,
    /// Nobody waits for it any more: a link that it brings is closed. Dials of one stream are numbered anew
    /// when it was not relayed for a while, so that the number alone does not tell.
    given_up: bool,
}

/// The link that brings a stream's parts here.
pub(super) struct Mirror {
    relay: Relay<Arc<str>>,
    /// The newest dial, while it is out or open: its tag, what gives it up, and the link it brought.
    dial: Option<(u64, Cancel)>,
    link: Option<LinkHandle>,
    /// The link's place in the connection log.
    visit: Visit,
    checking: bool,
    /// When what is left of a run that ended is not worth waiting for any more.
    until: Moment,
}

/// Another replica that follows a turn here.
pub(super) struct Served {
    tag: u64,
    link: LinkHandle,
    turn: u32,
    sent: u32,
    told_end: bool,
    heard: Moment,
    visit: Visit,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum FromFollower {
    Ask(u32, u32),
    Beat(Option<u64>),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum FromWorker {
    Part(u32, u32, Box<RawValue>),
    Evicted(u32, u32),
    Ended(u32, u32),
    Elsewhere(()),
    Beat(Option<u64>),
}

/// A sign of life. With a moment it is answered with the same moment.
fn beat(sent: Option<u64>) -> Frame {
    match sent {
        Some(sent) => Frame::text(&format!(r#"{{"beat":{sent}}}"#)),
        None => Frame::text(r#"{"beat":null}"#),
    }
}

impl Relays {
    pub(super) fn new(rt: &rt::Rt, ways: Option<RelayWays>) -> Relays {
        let figures = ways.as_ref().map(|ways| ways.figures.clone()).unwrap_or_default();
        Relays {
            ways,
            figures,
            rand: rt.rand("relay"),
            dials: HashMap::with_hasher(rt.hasher()),
            serves: HashMap::with_hasher(rt.hasher()),
            beat_at: rt.now() + BEAT,
        }
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        (!self.dials.is_empty() || !self.serves.is_empty()).then_some(self.beat_at)
    }

    /// Whether an event of a link is about a relay.
    pub(super) fn knows(&self, tag: u64) -> bool {
        self.dials.contains_key(&tag) || self.serves.contains_key(&tag)
    }
}

impl Mirror {
    pub(super) fn deadline(&self) -> Option<Moment> {
        Moment::earliest(self.relay.deadline(), (self.until != Moment::NEVER).then_some(self.until))
    }
}

impl StreamsRoom {
    /// What a link of a relay says.
    pub(super) fn relay_event(&mut self, now: Moment, event: LinkEvent) {
        if self.relays.dials.contains_key(&event.tag) {
            self.dial_event(now, event);
        } else if let Some(&stream) = self.relays.serves.get(&event.tag) {
            self.served_event(now, stream, event);
        } else if let Happened::Opened(link, _) = event.what {
            debug_assert!(false, "a dial is known until it has answered");
            link.close(crate::wire::websocket::close::ABNORMAL, "stale");
        }
    }

    /// What becomes of a dial that was given up: in one place, and once.
    fn stale_event(&mut self, event: LinkEvent) {
        let Some(dialed) = self.relays.dials.get(&event.tag) else { return };
        match event.what {
            Happened::Opened(link, _) => {
                crate::mark!(relay_stale_dial_dropped);
                self.relays.figures.dialed(dialed.source, "stale");
                link.close(crate::wire::websocket::close::ABNORMAL, "stale");
            }
            Happened::Refused(_) => {
                self.relays.figures.dialed(dialed.source, "cancelled");
                self.relays.dials.remove(&event.tag);
            }
            Happened::Closed(_) => _ = self.relays.dials.remove(&event.tag),
            _ => {}
        }
    }

    fn dial_event(&mut self, now: Moment, event: LinkEvent) {
        let tag = event.tag;
        let Some(&Dialed { stream, dial, source, given_up }) = self.relays.dials.get(&tag) else { return };
        if given_up && !crate::planted!("stale relay dial accepted") {
            return self.stale_event(event);
        }
        let input = match event.what {
            Happened::Opened(link, _) => {
                self.relays.figures.dialed(source, "success");
                self.relays.figures.links.inc();
                let visits = self.around.visits.clone();
                if let Some(mirror) = self.mirror(stream) {
                    mirror.link = Some(link);
                    let labels = [("stream_id", &*stream.to_string()), ("via", "relay_out")];
                    mirror.visit = visits.follower(&Caller::default(), &labels);
                }
                Input::Dialed { dial, ok: true }
            }
            Happened::Refused(why) => {
                log::info!("relay dial failed stream={stream} reason={why}");
                self.relays.figures.dialed(source, "error");
                self.relays.dials.remove(&tag);
                Input::Dialed { dial, ok: false }
            }
            Happened::Closed(why) => {
                self.relays.figures.closed(None);
                self.relays.dials.remove(&tag);
                if let Some(mirror) = self.mirror(stream)
                    && mirror.dial.as_ref().is_some_and(|(newest, _)| *newest == tag)
                {
                    mirror.visit.end(&why.reason);
                }
                Input::Closed { dial }
            }
            Happened::Text(text) => match serde_json::from_str::<FromWorker>(&text) {
                Ok(FromWorker::Part(turn, n, part)) => Input::Part { dial, turn, n, part: part.get().into() },
                Ok(FromWorker::Evicted(turn, first)) => Input::Evicted { dial, turn, first },
                Ok(FromWorker::Ended(turn, last)) => Input::Ended { dial, turn, last },
                Ok(FromWorker::Beat(sent)) => {
                    if let Some(sent) = sent {
                        self.relays.figures.round_trip.observe(now.since(Moment(sent)).as_secs_f64());
                    }
                    Input::Beat { dial }
                }
                Ok(FromWorker::Elsewhere(_)) => Input::Closed { dial },
                Err(error) => {
                    log::warn!("relay link speaks oddly stream={stream} error={error}");
                    Input::Closed { dial }
                }
            },
            Happened::Binary(_)
            | Happened::Bytes(_)
            | Happened::Ended
            | Happened::Expired
            | Happened::Passed(_)
            | Happened::Reset(_) => return,
        };
        let closes = matches!(input, Input::Closed { .. });
        self.relay_step(now, stream, input);
        if closes {
            self.hang_up(stream, tag);
        }
    }

    /// Gives up a dial, or closes the link it brought.
    fn hang_up(&mut self, stream: Uuid, tag: u64) {
        if let Some(dialed) = self.relays.dials.get_mut(&tag) {
            dialed.given_up = true;
        }
        let Some(mirror) = self.mirror(stream) else { return };
        let Some((_, cancel)) = mirror.dial.take_if(|(newest, _)| *newest == tag) else { return };
        let link = mirror.link.take();
        mirror.visit.end(OVER);
        cancel.cancel();
        if let Some(link) = link {
            self.relays.figures.links.dec();
            link.close(crate::wire::websocket::close::AWAY, OVER);
        }
    }

    fn mirror(&mut self, stream: Uuid) -> Option<&mut Mirror> {
        self.streams.get_mut(&stream)?.mirror.as_deref_mut()
    }

    /// Says to the relay of a stream what is wanted of it.
    pub(super) fn want_relay(&mut self, now: Moment, stream: Uuid) {
        let replica = self.around.replica;
        if self.relays.ways.is_none() {
            return;
        }
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let Some(view) = &entry.view else {
            // Deleted, with its followers told: whatever is still being brought is for nobody.
            if entry.followers.is_empty() && entry.mirror.is_some() {
                self.relay_step(now, stream, Input::Unwanted);
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.mirror = None;
                }
            }
            return;
        };
        let state = &view.row.state;
        let wanted_here = !entry.with_parts.is_empty()
            || entry.apart.iter().any(|id| self.followers[id].parts)
            || entry.readers.iter().any(|read| read.turn == state.turn_no);
        let worker = state.status.worker().filter(|worker| *worker != replica && wanted_here);
        let (turn_no, folded_to) = (state.turn_no, view.row.turn_folded_to);
        let Some(worker) = worker else {
            let Some(mirror) = entry.mirror.as_deref_mut() else { return };
            if !wanted_here || state.status.worker() == Some(replica) || mirror.until <= now {
                self.relay_step(now, stream, Input::Unwanted);
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.mirror = None;
                }
            } else if mirror.until == Moment::NEVER {
                // The run has ended; what is left of its parts is still worth having for a while.
                mirror.until = now + GRACE;
                self.relay_step(now, stream, Input::Over);
            }
            return;
        };
        if entry.turn(turn_no).is_none() {
            entry.turns.push(Turn::begin(turn_no, folded_to));
        }
        let after = entry.turn(turn_no).map_or(folded_to, |turn| turn.last());
        let mirror = entry.mirror.get_or_insert_with(|| {
            Box::new(Mirror {
                relay: Relay::new(),
                dial: None,
                link: None,
                visit: Visit::default(),
                checking: false,
                until: Moment::NEVER,
            })
        });
        mirror.until = Moment::NEVER;
        self.relay_step(now, stream, Input::Wanted(Want { worker, turn: turn_no, after }));
    }

    /// The store was looked at for a relay that asked who owns the stream.
    pub(super) fn relay_checked(&mut self, now: Moment, stream: Uuid, well: bool) {
        let replica = self.around.replica;
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let Some(mirror) = entry.mirror.as_deref_mut() else { return };
        if !std::mem::replace(&mut mirror.checking, false) {
            return;
        }
        let Some(view) = entry.view.as_ref().filter(|_| well) else {
            self.relays.figures.checked("failed");
            return self.relay_step(now, stream, Input::Unchecked);
        };
        let state = &view.row.state;
        let (turn, folded_to) = (state.turn_no, view.row.turn_folded_to);
        let want = state.status.worker().filter(|worker| *worker != replica).map(|worker| {
            let after = entry.turns.iter().find(|held| held.number() == turn).map_or(folded_to, Turn::last);
            Want { worker, turn, after: after.max(folded_to) }
        });
        self.relays.figures.checked(if want.is_some() { "elsewhere" } else { "over" });
        self.relay_step(now, stream, Input::Checked(want));
    }

    pub(super) fn relay_alarm(&mut self, now: Moment, stream: Uuid) {
        if self.mirror(stream).is_some_and(|mirror| mirror.relay.deadline().is_some_and(|at| at <= now)) {
            self.relay_step(now, stream, Input::Alarm);
        }
    }

    fn relay_step(&mut self, now: Moment, stream: Uuid, input: Input<Arc<str>>) {
        let draw = self.relays.rand.next_u64();
        let mut actions = Vec::new();
        let what = match &input {
            Input::Part { .. } => "part",
            Input::Dialed { .. } => "dial_failed",
            Input::Closed { .. } => "link_lost",
            Input::Alarm => "silent",
            Input::Unchecked => "check_failed",
            _ => "other",
        };
        let Some(mirror) = self.mirror(stream) else { return };
        let before = mirror.relay.link();
        mirror.relay.step(now, draw, input, &mut actions);
        let after = mirror.relay.link();
        let waits = matches!(after, Link::Waiting { .. });
        let figures = &self.relays.figures;
        match after {
            Link::Waiting { until, .. } if after != before && until != Moment::NEVER => {
                figures.reconnects(what)
            }
            _ => {}
        }
        if what == "part" {
            if actions.is_empty() {
                figures.duplicates.inc();
            } else if actions.iter().any(|action| matches!(action, Action::Ask { .. })) {
                figures.gaps_healed.inc();
            }
        }
        // What changes nothing asks for nothing: the same want is said again whenever the stream is looked at.
        // A wait that has begun may do nothing now, and wants its alarm.
        if !actions.is_empty() || (waits && after != before) {
            self.touched.push(stream);
        }
        for action in actions {
            self.relay_act(now, stream, action);
        }
    }

    fn relay_act(&mut self, now: Moment, stream: Uuid, action: Action<Arc<str>>) {
        match action {
            Action::Dial { dial, worker, source } => self.relay_dial(now, stream, dial, worker, source),
            Action::Ask { turn, after, .. } => {
                if let Some(link) = self.mirror(stream).and_then(|mirror| mirror.link.as_ref()) {
                    link.send(Frame::text(&format!(r#"{{"ask":[{turn},{after}]}}"#)));
                }
            }
            Action::Close { dial, why } => {
                let is_it = |of: &Dialed| of.stream == stream && of.dial == dial && !of.given_up;
                let tag = self.relays.dials.iter().find(|(_, of)| is_it(of)).map(|(tag, _)| *tag);
                if let Some(tag) = tag {
                    if let Some(mirror) = self.mirror(stream).filter(|mirror| mirror.link.is_some()) {
                        mirror.visit.end(word(why));
                        self.relays.figures.closed(Some(why));
                    }
                    self.hang_up(stream, tag);
                }
            }
            Action::Take { turn, n, part } => {
                self.relays.figures.parts.inc();
                let max = self.around.limits.turn_bytes_max;
                if let Some(entry) = self.streams.get_mut(&stream)
                    && let Some(held) = entry.turn(turn)
                {
                    held.accept(n, part, max);
                }
            }
            Action::Gap { turn, first } => {
                if let Some(entry) = self.streams.get_mut(&stream)
                    && let Some(held) = entry.turn(turn)
                {
                    crate::mark!(relay_parts_evicted);
                    self.relays.figures.gaps.inc();
                    held.skip_to(first);
                }
            }
            Action::Check => {
                if let Some(mirror) = self.mirror(stream) {
                    mirror.checking = true;
                }
                self.look_again(stream);
            }
            Action::Read => self.look_again(stream),
            Action::Degraded(is) => self.tell_of_relay(now, stream, is),
        }
    }

    fn relay_dial(&mut self, now: Moment, stream: Uuid, dial: u64, worker: Uuid, source: Source) {
        let Some(ways) = self.relays.ways.clone() else { return };
        let rt = self.around.rt.clone();
        rt.point(Op::Dial, &["relay", "parts"]);
        let target = ways.replicas.relay_url(worker).and_then(|url| {
            let url = format!("{}{RELAY_PATH}{stream}", url.trim_end_matches('/'));
            Target::parse(&url).ok()
        });
        let (Some(target), Some(ticket)) = (target, ways.replicas.ticket(worker, stream)) else {
            // Not in the registry, or not yet: looked up again after a while.
            log::info!("relay has no address stream={stream} worker={worker}");
            self.relays.figures.dialed(source, "no_address");
            return self.relay_step(now, stream, Input::Dialed { dial, ok: false });
        };
        debug_assert!(
            !self.relays.dials.values().any(|of| of.stream == stream && !of.given_up),
            "the dial before was given up"
        );
        let tag = self.next_tag();
        let cancel = rt.cancel_token();
        self.relays.dials.insert(tag, Dialed { stream, dial, source, given_up: false });
        if let Some(mirror) = self.mirror(stream) {
            mirror.dial = Some((tag, cancel.clone()));
            mirror.link = None;
        }
        let inbox = self.inbox.clone();
        let outlet = Outlet::new(move |batch| match inbox.try_data(Message::Links(batch)) {
            Err(Refused::Full(Message::Links(batch))) => Err(batch),
            // Taken; or ended, and nobody is left to hear.
            _ => Ok(()),
        });
        ways.wire.dial(Dial {
            target,
            speak: Speak::WebSocket { protocols: Vec::new(), message_max: RELAY_MESSAGE_MAX },
            headers: vec![(RELAY_TICKET.into(), ticket)],
            deadline: now + DIAL_WAIT,
            cancel,
            owner: Owner::new(&outlet, tag),
        });
    }

    fn next_tag(&self) -> FollowerId {
        self.around.numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    fn tell_of_relay(&mut self, now: Moment, stream: Uuid, degraded: bool) {
        let (ts, hint) = (self.ts(), self.around.cursor());
        let Some(entry) = self.streams.get(&stream) else { return };
        let Some(view) = &entry.view else { return };
        let what = if degraded { What::Degraded { what: "relay" } } else { What::Restored { what: "relay" } };
        for id in &entry.followers {
            let follower = self.followers.get_mut(id).expect("a follower of an entry exists");
            if follower.told_live && follower.parts {
                let cursor = if follower.joined { entry.with_parts.cursor } else { follower.cursor };
                let event = Event { token: view.token(cursor), ts, what: what.clone() };
                // One that does not keep up is found out by what comes next.
                follower.tell(now, &[event], &view.voice(hint));
            }
        }
    }

    // The worker's side.

    /// Another replica has opened a link for a stream.
    pub(super) fn serve(&mut self, now: Moment, stream: Uuid, tag: u64, link: LinkHandle) {
        let labels = [("stream_id", &*stream.to_string()), ("via", "relay_in")];
        let visit = self.around.visits.follower(&Caller::default(), &labels);
        let entry = self.enter(stream);
        entry.served.push(Served { tag, link, turn: 0, sent: 0, told_end: false, heard: now, visit });
        self.relays.serves.insert(tag, stream);
        self.relays.figures.serves.inc();
        self.look_again(stream);
    }

    fn served_event(&mut self, now: Moment, stream: Uuid, event: LinkEvent) {
        let tag = event.tag;
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let Some(served) = entry.served.iter_mut().find(|served| served.tag == tag) else { return };
        served.heard = now;
        match event.what {
            Happened::Text(text) => match serde_json::from_str::<FromFollower>(&text) {
                Ok(FromFollower::Ask(turn, after)) => {
                    (served.turn, served.sent, served.told_end) = (turn, after, false);
                    self.touched.push(stream);
                }
                // Comes back as it is: whoever sent it knows what it is.
                Ok(FromFollower::Beat(sent)) => served.link.send(beat(sent)),
                Err(error) => {
                    log::warn!("relay peer speaks oddly stream={stream} error={error}");
                    served.visit.end("it spoke oddly");
                    self.unserve(stream, tag);
                }
            },
            Happened::Closed(why) => {
                served.visit.end(&why.reason);
                self.unserve(stream, tag);
            }
            _ => {}
        }
    }

    fn unserve(&mut self, stream: Uuid, tag: u64) {
        if self.relays.serves.remove(&tag).is_some() {
            self.relays.figures.serves.dec();
        }
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.served.retain_mut(|served| {
                if served.tag == tag {
                    served.visit.end(OVER);
                    served.link.close(crate::wire::websocket::close::AWAY, OVER);
                }
                served.tag != tag
            });
        }
        self.touched.push(stream);
    }

    /// Sends other replicas what they lack of the turns that run here.
    pub(super) fn serve_relays(&mut self, stream: Uuid) {
        let replica = self.around.replica;
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let newest = entry.held.as_ref().map(|held| held.turn);
        let Entry { served, turns, view, .. } = entry;
        let mut done = Vec::new();
        for served in served.iter_mut().filter(|served| served.turn > 0) {
            // What runs now is sent without being asked for: who follows has not seen it begin yet.
            if let Some(newest) = newest.filter(|newest| *newest > served.turn && served.told_end) {
                (served.turn, served.sent, served.told_end) = (newest, 0, false);
            }
            let Some(turn) = turns.iter().find(|turn| turn.number() == served.turn) else {
                // Not seen to begin yet, or run by somebody else, or forgotten: the store knows, once it was asked.
                let known = view.as_ref().map(|view| &view.row.state);
                if known.is_some_and(|state| {
                    state.turn_no >= served.turn
                        && (state.turn_no > served.turn || state.status.worker() != Some(replica))
                }) {
                    served.link.send(Frame::text(r#"{"elsewhere":null}"#));
                    done.push(served.tag);
                }
                continue;
            };
            let lack = turn.after(served.sent);
            if lack.evicted {
                served.link.send(Frame::text(&format!(r#"{{"evicted":[{},{}]}}"#, served.turn, lack.first)));
            }
            for (n, part) in (lack.first..).zip(lack.parts) {
                served.link.send(Frame::text(&format!(r#"{{"part":[{},{n},{part}]}}"#, served.turn)));
            }
            served.sent = served.sent.max(turn.last());
            if turn.is_closed() && !served.told_end {
                served.told_end = true;
                served.link.send(Frame::text(&format!(r#"{{"ended":[{},{}]}}"#, served.turn, turn.last())));
            }
        }
        for tag in done {
            self.unserve(stream, tag);
        }
    }

    /// Both sides say that they are alive, and let go of who does not.
    pub(super) fn relay_beats(&mut self, now: Moment) {
        if self.relays.beat_at > now {
            return;
        }
        self.relays.beat_at = now + BEAT;
        let beats = beat(Some(now.0));
        for dialed in self.relays.dials.values().filter(|dialed| !dialed.given_up) {
            let entry = self.streams.get(&dialed.stream);
            if let Some(link) = entry.and_then(|entry| entry.mirror.as_ref()?.link.as_ref()) {
                link.send(beats.clone());
            }
        }
        let mut silent = Vec::new();
        for (tag, stream) in &self.relays.serves {
            let Some(entry) = self.streams.get_mut(stream) else { continue };
            for served in entry.served.iter_mut().filter(|served| served.tag == *tag) {
                if served.heard + SILENCE_MAX <= now {
                    served.visit.end("nothing was heard of it");
                    silent.push((*stream, *tag));
                } else {
                    served.link.send(beat(None));
                }
            }
        }
        for (stream, tag) in silent {
            self.unserve(stream, tag);
        }
    }
}
