//! Who carries what is asked of turns that run on other replicas.
//!
//! A producer may come back through any replica. What it asks of a turn goes to the room of the stream here,
//! and from there, if the turn is not there, to this room: it looks in the store who runs the turn, opens one
//! link to that replica for the stream, and sends everything over it in the order in which it came.
//!
//! Invariant: an errand is in one place alone, in `waiting` until it is sent and in `out` until it is answered,
//! and whoever asked is told once. What was sent and not answered when a link is lost is not sent again, since
//! nobody knows whether it was done: its asker hears `worker_unreachable`, and asks again under the same
//! `Idempotency-Key` or part number.
//!
//! A worker may have changed since its link was opened. One that says that it does not run the turn has done
//! nothing, so the errand goes back to where it waited and the store is asked again. A turn that has ended is read
//! where it ran as long as its parts stay; nobody writes down where that was, so the replicas that are alive are
//! asked one after another.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::engine::reader::Pool;
use crate::engine::worker::{Inbox, Refused, Room};
use crate::rt::{self, Cancel, Moment, Rt, Wall};
use crate::state::relay::SILENCE_MAX;
use crate::state::turn::GRACE;
use crate::store::StoreError;
use crate::store::streams::{Address, Fence, Found, StreamRow};
use crate::wire::websocket::close;
use crate::wire::{Dial, Frame, Happened, LinkBatch, LinkEvent, LinkHandle, Outlet, Owner, Speak, Target};

use super::StreamError;
use super::errand::{Did, Errand, FromWorker, read_lease};
use super::room::{RELAY_MESSAGE_MAX, RELAY_TICKET, RelayWays};

/// Where errands for turns are taken, before the stream's id.
pub const ERRANDS_PATH: &str = "/relay/v1/turns/";
/// How often a link is asked whether it lives.
const BEAT: Duration = Duration::from_secs(1);
/// How long a dial may take.
const DIAL_WAIT: Duration = Duration::from_secs(5);
/// How long an errand may wait for a link: shorter than its asker waits.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// How long a link stays that nobody needs.
const IDLE_MAX: Duration = Duration::from_secs(15);
/// The first wait after a dial that failed; it doubles up to the last.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Bytes sent and not answered, so that a link's queue is never what runs over.
const OUT_BYTES: usize = 256 * 1024;
/// Bytes that may wait for one stream's link.
const WAITING_BYTES: usize = 4 << 20;
/// Errands that may wait for one stream's link.
const WAITING: usize = 1_024;

/// What the courier hears.
pub(super) enum Word {
    /// Carry this.
    Carry(Errand),
    /// Who runs a stream.
    Found(Uuid, Box<Result<Found<StreamRow>, StoreError>>),
    /// Something happened on links.
    Links(LinkBatch),
}

/// How far the way to a stream's worker is.
enum Way {
    /// The store is being asked who it is.
    Looking,
    /// It is called.
    Dialing { tag: u64, cancel: Cancel },
    /// There is a link.
    Open { tag: u64, link: LinkHandle, heard: Moment },
    /// It was not reached: to be looked for again then.
    Resting { until: Moment },
}

/// An errand on the link.
struct Sent {
    errand: Errand,
    bytes: usize,
    until: Moment,
    again: bool,
}

/// An errand that waits for the link.
struct Waiting {
    errand: Errand,
    text: String,
    no: u64,
    until: Moment,
    /// Whether a replica has said already that it has not got the turn.
    again: bool,
}

/// Everything about one stream.
struct Line {
    way: Way,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    out: BTreeMap<u64, Sent>,
    out_bytes: usize,
    /// Whoever feeds a turn hears through this that it was asked to stop.
    watched: Vec<(Fence, Cancel)>,
    /// The other end does not run the turn: nothing more is sent there, and the store is asked again.
    astray: bool,
    /// Who is still to be asked for a turn that has ended.
    seeks: Option<Vec<Uuid>>,
    wait: Duration,
    used: Moment,
}

/// See the [module](self).
pub(super) struct Courier {
    pub(super) rt: Rt,
    pub(super) replica: Uuid,
    pub(super) readers: Pool,
    pub(super) ways: RelayWays,
    pub(super) numbers: Arc<AtomicU64>,
    pub(super) inbox: Inbox<Word>,
    lines: HashMap<Uuid, Line, rt::Hasher>,
    /// Which stream a tag of a link stands for, until its dial has failed or its link is closed.
    tags: HashMap<u64, Uuid, rt::Hasher>,
    no: u64,
    beat_at: Moment,
}

impl Courier {
    pub(super) fn new(
        rt: &Rt,
        replica: Uuid,
        readers: Pool,
        ways: RelayWays,
        numbers: Arc<AtomicU64>,
        inbox: Inbox<Word>,
    ) -> Courier {
        Courier {
            rt: rt.clone(),
            replica,
            readers,
            ways,
            numbers,
            inbox,
            lines: HashMap::with_hasher(rt.hasher()),
            tags: HashMap::with_hasher(rt.hasher()),
            no: 0,
            beat_at: rt.now() + BEAT,
        }
    }

    fn carry(&mut self, now: Moment, errand: Errand) {
        let stream = errand.stream();
        self.no += 1;
        let text = errand.carried(self.no);
        let is_new = !self.lines.contains_key(&stream);
        let line = self.lines.entry(stream).or_insert_with(|| Line {
            way: Way::Looking,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            out: BTreeMap::new(),
            out_bytes: 0,
            watched: Vec::new(),
            astray: false,
            seeks: None,
            wait: REDIAL.0,
            used: now,
        });
        line.used = now;
        if line.waiting.len() >= WAITING || line.waiting_bytes + text.len() > WAITING_BYTES {
            return errand.refuse(StreamError::Full);
        }
        line.waiting_bytes += text.len();
        line.waiting.push_back(Waiting { errand, text, no: self.no, until: now + SEND_WAIT, again: false });
        if is_new {
            return self.look(stream);
        }
        self.send(stream);
    }

    /// Sends what waits, as far as the link may be filled.
    fn send(&mut self, stream: Uuid) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        let Way::Open { link, .. } = &line.way else { return };
        while !line.astray
            && line.out_bytes < OUT_BYTES
            && let Some(waiting) = line.waiting.pop_front()
        {
            let Waiting { errand, text, no, until, again } = waiting;
            link.send(Frame::text(&text));
            line.waiting_bytes -= text.len();
            line.out_bytes += text.len();
            line.out.insert(no, Sent { errand, bytes: text.len(), until, again });
        }
    }

    fn look(&mut self, stream: Uuid) {
        let inbox = self.inbox.clone();
        self.readers.ask(
            stream.as_u64_pair().1,
            move |store| store.get(&Address::Id(stream)),
            move |found| {
                // Its place is reserved: one question is out for each stream.
                if let Err(Refused::Full(_)) = inbox.control(Word::Found(stream, Box::new(found))) {
                    log::error!("the courier has no place for the answer to its own question");
                }
            },
        );
    }

    fn found(&mut self, now: Moment, stream: Uuid, found: Result<Found<StreamRow>, StoreError>) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        if !matches!(line.way, Way::Looking) {
            return;
        }
        let row = match found {
            Ok(Found::Here(row)) => row,
            Ok(Found::Missing) => return self.give_up(stream, |_| StreamError::Missing),
            Ok(Found::Gone) => return self.give_up(stream, |_| StreamError::Gone),
            Err(error) => {
                log::info!("courier could not look stream={stream} error={error}");
                return self.rest(now, stream);
            }
        };
        let (turn, run) = (row.state.turn_no, row.state.status.run().copied());
        // The store's clock is not this one's.
        let stays = |at: Wall| self.rt.wall() < at + GRACE + GRACE;
        if run.is_none() && row.state.turn_closed_at.is_some_and(stays) {
            return self.seek(now, stream, turn);
        }
        line.seeks = None;
        let Some(run) = run.filter(|run| run.worker != self.replica) else {
            // Nobody runs it, or this replica does, whose room has just said that it does not.
            return self.give_up(stream, Errand::over);
        };
        let holds = |fence: Fence| fence.turn == turn && fence.lease == run.lease;
        line.watched.retain(|(fence, cancel)| {
            if !holds(*fence) {
                cancel.cancel();
            }
            holds(*fence)
        });
        let (for_it, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut line.waiting)
            .into_iter()
            .partition(|waiting| waiting.errand.fence().map_or(waiting.errand.turn() == turn, holds));
        line.waiting = for_it;
        for waiting in others {
            line.waiting_bytes -= waiting.text.len();
            let error = waiting.errand.over();
            waiting.errand.refuse(error);
        }
        if line.waiting.is_empty() && line.watched.is_empty() {
            self.lines.remove(&stream);
            return;
        }
        self.dial(now, stream, run.worker);
    }

    /// Reads of the turn that has just ended go to the next replica that may have run it; nothing else can come
    /// of what waits.
    fn seek(&mut self, now: Moment, stream: Uuid, turn: u32) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        let is_read = |waiting: &Waiting| {
            matches!(waiting.errand, Errand::ReadTurn(_)) && waiting.errand.turn() == turn
        };
        let (reads, others): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut line.waiting).into_iter().partition(is_read);
        line.waiting = reads;
        for (_, cancel) in line.watched.drain(..) {
            cancel.cancel();
        }
        for waiting in others {
            line.waiting_bytes -= waiting.text.len();
            let error = waiting.errand.over();
            waiting.errand.refuse(error);
        }
        let replicas = &self.ways.replicas;
        let alive = || {
            let reached = replicas.peers().into_iter().filter(|peer| peer.relay_url.is_some());
            reached.map(|peer| peer.id).collect()
        };
        let next = match line.waiting.is_empty() {
            true => None,
            false => line.seeks.get_or_insert_with(alive).pop(),
        };
        match next {
            Some(peer) => self.dial(now, stream, peer),
            None => self.give_up(stream, Errand::over),
        }
    }

    fn dial(&mut self, now: Moment, stream: Uuid, worker: Uuid) {
        self.rt.point(rt::Op::Dial, &["relay", "errands"]);
        let target = self.ways.replicas.relay_url(worker).and_then(|url| {
            let url = format!("{}{ERRANDS_PATH}{stream}", url.trim_end_matches('/'));
            Target::parse(&url).ok()
        });
        let (Some(target), Some(ticket)) = (target, self.ways.replicas.ticket(worker, stream)) else {
            log::info!("courier has no address stream={stream} worker={worker}");
            return self.rest(now, stream);
        };
        let Some(line) = self.lines.get_mut(&stream) else { return };
        let tag = self.numbers.fetch_add(1, Ordering::Relaxed);
        let cancel = self.rt.cancel_token();
        line.way = Way::Dialing { tag, cancel: cancel.clone() };
        self.tags.insert(tag, stream);
        let inbox = self.inbox.clone();
        let outlet = Outlet::new(move |batch| match inbox.try_data(Word::Links(batch)) {
            Err(Refused::Full(Word::Links(batch))) => Err(batch),
            // Taken; or ended, and nobody is left to hear.
            _ => Ok(()),
        });
        self.ways.wire.dial(Dial {
            target,
            speak: Speak::WebSocket { protocols: Vec::new(), message_max: RELAY_MESSAGE_MAX },
            headers: vec![(RELAY_TICKET.into(), ticket)],
            deadline: now + DIAL_WAIT,
            cancel,
            owner: Owner::new(&outlet, tag),
        });
    }

    /// The worker was not reached; what waits goes on waiting as long as it may.
    fn rest(&mut self, now: Moment, stream: Uuid) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        line.astray = false;
        line.way = Way::Resting { until: now + line.wait };
        line.wait = (line.wait * 2).min(REDIAL.1);
    }

    /// Nothing can come of what waits for a stream.
    fn give_up(&mut self, stream: Uuid, why: impl Fn(&Errand) -> StreamError) {
        let Some(line) = self.lines.remove(&stream) else { return };
        for waiting in line.waiting {
            let error = why(&waiting.errand);
            waiting.errand.refuse(error);
        }
        for (_, cancel) in line.watched {
            cancel.cancel();
        }
    }

    fn heard(&mut self, now: Moment, event: LinkEvent) {
        let tag = event.tag;
        let Some(&stream) = self.tags.get(&tag) else {
            if let Happened::Opened(link, _) = event.what {
                link.close(close::ABNORMAL, "stale");
            }
            return;
        };
        let ends = matches!(event.what, Happened::Refused(_) | Happened::Closed(_));
        if ends {
            self.tags.remove(&tag);
        }
        let Some(line) = self.lines.get_mut(&stream).filter(|line| line.way.is(tag)) else {
            // A dial that was given up has answered all the same.
            if let Happened::Opened(link, _) = event.what {
                link.close(close::ABNORMAL, "stale");
            }
            return;
        };
        match event.what {
            Happened::Opened(link, _) => {
                line.way = Way::Open { tag, link, heard: now };
                line.wait = REDIAL.0;
                self.watch_again(stream);
                self.send(stream);
            }
            Happened::Refused(why) => {
                log::info!("courier not let in stream={stream} reason={why}");
                self.rest(now, stream);
            }
            Happened::Closed(_) => self.lost(now, stream),
            Happened::Text(text) => {
                line.way.is_alive(now);
                match serde_json::from_str::<FromWorker>(&text) {
                    Ok(FromWorker::Did(no, did)) => self.did(now, stream, no, did),
                    Ok(FromWorker::Stopped(turn, lease)) => line.stopped(turn, &lease),
                    Ok(FromWorker::Beat(_)) => {}
                    Err(error) => {
                        log::warn!("worker answers oddly stream={stream} error={error}");
                        self.lost(now, stream);
                    }
                }
            }
            _ => {}
        }
    }

    /// What feeds a turn is to hear of its end on the new link too. Nobody waits for these answers.
    fn watch_again(&mut self, stream: Uuid) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        let Way::Open { link, .. } = &line.way else { return };
        for (fence, _) in &line.watched {
            let then = Box::new(|_| {});
            let errand = Errand::CancelOf(super::room::CancelOf { stream, fence: *fence, then });
            link.send(Frame::text(&errand.carried(0)));
        }
    }

    fn did(&mut self, now: Moment, stream: Uuid, no: u64, did: Did) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        line.used = now;
        let Some(Sent { errand, bytes, until, again }) = line.out.remove(&no) else { return };
        line.out_bytes -= bytes;
        if did.is_elsewhere() && (!again || line.seeks.is_some()) {
            // Its number is its place among those that wait.
            let text = errand.carried(no);
            let at = line.waiting.partition_point(|waiting| waiting.no < no);
            line.waiting_bytes += text.len();
            line.waiting.insert(at, Waiting { errand, text, no, until, again: true });
            line.astray = true;
            return self.turn_back(now, stream);
        }
        let (rt, watched) = (&self.rt, &mut line.watched);
        errand.settle(did, |fence| match watched.iter().find(|(of, _)| *of == fence) {
            Some((_, cancel)) => cancel.clone(),
            None => {
                let cancel = rt.cancel_token();
                watched.push((fence, cancel.clone()));
                cancel
            }
        });
        self.turn_back(now, stream);
        self.send(stream);
    }

    /// Leaves a replica that does not run the turn, once it has answered everything.
    fn turn_back(&mut self, now: Moment, stream: Uuid) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        if line.astray && line.out.is_empty() {
            crate::mark!(courier_turned_back);
            line.hang_up();
            self.rest(now, stream);
        }
    }

    /// The link is gone. What was sent on it may or may not have been done.
    fn lost(&mut self, now: Moment, stream: Uuid) {
        let Some(line) = self.lines.get_mut(&stream) else { return };
        line.hang_up();
        line.out_bytes = 0;
        for (_, sent) in std::mem::take(&mut line.out) {
            match &sent.errand {
                // Reading and watching change nothing.
                Errand::ReadTurn(_) | Errand::CancelOf(_) | Errand::Keepalive(_) => {
                    self.no += 1;
                    let text = sent.errand.carried(self.no);
                    line.waiting_bytes += text.len();
                    let until = now + SEND_WAIT;
                    let again = sent.again;
                    line.waiting.push_back(Waiting { errand: sent.errand, text, no: self.no, until, again });
                }
                _ if crate::planted!("errand lost with its link") => {}
                _ => sent.errand.refuse(StreamError::Unreachable),
            }
        }
        if line.waiting.is_empty() && line.watched.is_empty() {
            self.lines.remove(&stream);
        } else {
            self.rest(now, stream);
        }
    }

    /// Beats, silence, what has waited too long, and links that nobody needs.
    fn ring(&mut self, now: Moment) {
        if self.beat_at > now {
            return;
        }
        self.beat_at = now + BEAT;
        let mut silent = Vec::new();
        for (stream, line) in &mut self.lines {
            line.drop_late(now);
            match &line.way {
                Way::Open { heard, .. } if *heard + SILENCE_MAX <= now => silent.push(*stream),
                Way::Open { link, .. } => {
                    let beat = format!(r#"{{"beat":{}}}"#, now.0);
                    link.send(Frame::text(&beat));
                }
                _ => {}
            }
        }
        for stream in silent {
            self.lost(now, stream);
        }
        self.lines.retain(|_, line| {
            let needed = !line.waiting.is_empty() || !line.out.is_empty() || !line.watched.is_empty();
            let stays = needed || (matches!(line.way, Way::Open { .. }) && now < line.used + IDLE_MAX);
            if !stays && !matches!(line.way, Way::Looking) {
                line.hang_up();
                return false;
            }
            true
        });
    }

    fn look_again(&mut self, stream: Uuid) {
        if let Some(line) = self.lines.get_mut(&stream) {
            line.way = Way::Looking;
            self.look(stream);
        }
    }
}

impl Way {
    fn is_alive(&mut self, now: Moment) {
        if let Way::Open { heard, .. } = self {
            *heard = now;
        }
    }

    fn is(&self, of: u64) -> bool {
        matches!(self, Way::Dialing { tag, .. } | Way::Open { tag, .. } if *tag == of)
    }
}

impl Line {
    /// Gives up the dial, or closes the link.
    fn hang_up(&mut self) {
        match &self.way {
            Way::Dialing { cancel, .. } => cancel.cancel(),
            Way::Open { link, .. } => link.close(close::AWAY, "over"),
            Way::Looking | Way::Resting { .. } => {}
        }
    }

    fn is_due(&self, now: Moment) -> bool {
        matches!(self.way, Way::Resting { until } if until <= now)
    }

    fn stopped(&mut self, turn: u32, lease: &str) {
        let Some(lease) = read_lease(lease) else { return };
        let fence = Fence { turn, lease };
        self.watched.retain(|(of, cancel)| {
            if *of == fence {
                cancel.cancel();
            }
            *of != fence
        });
    }

    fn drop_late(&mut self, now: Moment) {
        while self.waiting.front().is_some_and(|first| first.until <= now)
            && let Some(late) = self.waiting.pop_front()
        {
            self.waiting_bytes -= late.text.len();
            late.errand.refuse(StreamError::Unreachable);
        }
    }
}

impl Room for Courier {
    type Message = Word;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Word>) {
        for word in inbox.drain(..) {
            match word {
                Word::Carry(errand) => self.carry(now, errand),
                Word::Found(stream, found) => self.found(now, stream, *found),
                Word::Links(batch) => batch.into_iter().for_each(|event| self.heard(now, event)),
            }
        }
        let due: Vec<Uuid> =
            self.lines.iter().filter(|(_, line)| line.is_due(now)).map(|(at, _)| *at).collect();
        due.into_iter().for_each(|stream| self.look_again(stream));
        self.ring(now);
    }

    fn deadline(&self) -> Option<Moment> {
        let rests = self.lines.values().filter_map(|line| match line.way {
            Way::Resting { until } => Some(until),
            _ => None,
        });
        rests.chain((!self.lines.is_empty()).then_some(self.beat_at)).min()
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<Word>) {
        self.wake(now, inbox);
        for (_, line) in std::mem::take(&mut self.lines) {
            let mut line = line;
            line.hang_up();
            let out = line.out.into_values().map(|sent| sent.errand);
            out.chain(line.waiting.into_iter().map(|waiting| waiting.errand))
                .for_each(|errand| errand.refuse(StreamError::Stopped));
        }
    }
}
