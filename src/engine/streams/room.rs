//! The merge loop: one room for each shard of the streams.
//!
//! What comes in are commands, parts, notices, answers of reads, link events; what goes out are events to
//! followers. Each stream that somebody follows or runs here has an [`Entry`]: what was read of it, its
//! turns, its followers. The order of work is what makes following gapless: a follower is in the entry
//! before anything is read for it, history is read up to a fixed position, and only who stands where all
//! others stand is told together with them.
//!
//! Notices are hints. They raise `hinted`, which causes a read, and what the read says is told. A hint that
//! got lost is made up for by the poll.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::engine::reader::Pool;
use crate::engine::visits::Visits;
use crate::engine::worker::{Inbox, Room};
use crate::metrics::Counter;
use crate::rt::{self, Moment, Rt};
use crate::state::turn::Turn;
use crate::store::streams::{End, Fence};
use crate::wire::Doors;

use super::StreamError;
use super::courier::Word;
use super::durable::Cursors;
use super::event::{Ended, Event, What};
use super::follower::{Follower, FollowerId, Tap};
use super::slow::SlowOnes;
use super::writes::Desk;

mod entry;
mod followers;
mod message;
mod reads;
mod relays;
mod turns;
mod uses;

use entry::Entry;
pub(crate) use message::Newcomer;
pub use message::{Accepted, Alive, Living, Then, TurnRead};
pub(super) use message::{Begin, CancelOf, Commit, Ending, Keepalive, Message, Parts, ReadTurn};
use relays::Relays;
pub use relays::{RELAY_MESSAGE_MAX, RELAY_PATH, RELAY_TICKET, RelayWays};
pub(super) use uses::Poll;
pub use uses::Polled;

/// How often what is followed or run here is compared with the store: what makes up for lost notices.
const POLL: Duration = Duration::from_secs(10);

/// What a room needs of the engine around it.
pub(super) struct Surroundings {
    pub rt: Rt,
    pub replica: Uuid,
    pub readers: Pool,
    pub desk: Desk,
    /// None where no door is open: then all followers are threads of this process.
    pub doors: Option<Doors>,
    pub limits: super::Limits,
    /// Counts followers that were one too many.
    pub followers_refused: Counter,
    /// Nobody but this engine writes to the store.
    pub alone: bool,
    /// Set by the bus when hints were lost.
    pub hints_lost: Arc<AtomicBool>,
    pub names: Arc<super::Names>,
    /// Numbers for followers and for links of relays.
    pub numbers: Arc<AtomicU64>,
    /// What Durable Streams readers send along when they come back.
    pub cursors: Arc<Cursors>,
    /// None where there are no other replicas.
    pub relay: Option<RelayWays>,
    /// Who carries what is asked of turns that run there.
    pub courier: Option<Inbox<Word>>,
    /// Where followers and relays are recorded.
    pub visits: Visits,
}

/// One shard.
pub(super) struct StreamsRoom {
    around: Surroundings,
    inbox: Inbox<Message>,
    streams: HashMap<Uuid, Entry, rt::Hasher>,
    followers: HashMap<FollowerId, Follower, rt::Hasher>,
    alarms: BTreeSet<(Moment, Uuid)>,
    touched: Vec<Uuid>,
    poll_at: Moment,
    polling: bool,
    events: Vec<Event>,
    parts_bytes: usize,
    /// Turns that the store says run here and that nobody here has: which, and since when that is seen.
    orphans: HashMap<Uuid, (u32, Moment), rt::Hasher>,
    relays: Relays,
    slow: SlowOnes,
}

impl StreamsRoom {
    pub(super) fn new(around: Surroundings, inbox: Inbox<Message>) -> StreamsRoom {
        let poll_at = around.rt.now() + POLL;
        StreamsRoom {
            inbox,
            streams: HashMap::with_hasher(around.rt.hasher()),
            followers: HashMap::with_hasher(around.rt.hasher()),
            alarms: BTreeSet::new(),
            touched: Vec::new(),
            poll_at,
            polling: false,
            events: Vec::new(),
            parts_bytes: 0,
            orphans: HashMap::with_hasher(around.rt.hasher()),
            relays: Relays::new(&around.rt, around.relay.clone()),
            slow: SlowOnes::default(),
            around,
        }
    }

    fn ts(&self) -> i64 {
        self.around.rt.wall().as_millis()
    }

    fn handle(&mut self, now: Moment, message: Message) {
        match message {
            Message::Follow(newcomer) => self.follow(*newcomer),
            Message::Unfollow(id) => self.unfollow(id),
            Message::Drained(id) => self.drained(now, id),
            Message::Passed(id) => self.passed(id),
            Message::LinkGone(id, why) => self.link_gone(id, &why),
            Message::Leave(id, then) => {
                self.unfollow(id);
                then();
            }
            Message::End(id, why) => self.cut(id, why),
            Message::Poll(poll) => self.wait_for_news(poll),
            Message::Stands(stream, then) => {
                if let Some(newcomer) = then(self.stands(stream)) {
                    self.follow(newcomer);
                }
            }
            Message::Begin(begin) => self.begin(now, *begin),
            Message::Errand(errand, stays) => self.errand(now, *errand, stays),
            Message::Written(written) => {
                let (change, message) = *written;
                self.written(change, message);
            }
            Message::Deleted(stream, ended) => self.close_stream(stream, ended),
            Message::LookAgain(stream) => self.look_again(stream),
            Message::Notice(notice) => self.noticed(notice),
            Message::Read(stream, answer) => self.read(now, stream, *answer),
            Message::Polled(asked, answer) => self.polled(now, &asked, answer),
            Message::Renewed(held, asked) => self.renewed(&held, asked),
            Message::Links(batch) => self.links(now, batch),
            Message::Serve { stream, tag, link } => self.serve(now, stream, tag, link),
            Message::Living(then) => then(self.living()),
            Message::Drain(done) => {
                self.drain(now);
                drop(done);
            }
            Message::Wake => {}
        }
    }

    /// The entry of a stream; from here on this room is told what is written to it.
    fn enter(&mut self, stream: Uuid) -> &mut Entry {
        self.streams.entry(stream).or_insert_with(|| {
            self.around.desk.shards.attended.enter(stream);
            Entry::default()
        })
    }

    // Followers come and go.

    /// What goes on in each stream that is followed or has parts here.
    fn living(&self) -> Vec<Living> {
        let some = self.streams.iter().filter(|(_, entry)| !entry.is_idle());
        some.map(|(id, entry)| Living {
            stream: *id,
            followers: entry.followers.len(),
            turn: entry.turns.last().map(|turn| (turn.number(), turn.last())),
        })
        .collect()
    }

    fn drain(&mut self, now: Moment) {
        let (ts, hint) = (self.ts(), self.around.cursor());
        for follower in self.followers.values_mut() {
            let Some(entry) = self.streams.get(&follower.stream) else { continue };
            let Some(view) = &entry.view else { continue };
            // One that has joined the others stands where they do: it comes back with this token.
            let crowd = if follower.parts { &entry.with_parts } else { &entry.without };
            let cursor = if follower.joined { crowd.cursor } else { follower.cursor };
            let event = Event { token: view.token(cursor), ts, what: What::Drain };
            follower.tell(now, &[event], &view.voice(hint));
        }
        self.end_polls();
    }

    /// What a stream needs after something happened to it: reads, alarms, its end.
    fn settle(&mut self, now: Moment, stream: Uuid) {
        self.heed(now, stream);
        self.relay_alarm(now, stream);
        self.want_relay(now, stream);
        self.open_newcomers(now, stream, 0);
        self.tell(now, stream);
        self.end_followers_of_closed(stream);
        self.read_what_lacks(now, stream);
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        entry.turns.retain(|turn| turn.expires().is_none_or(|at| at > now));
        self.serve_readers(stream);
        self.serve_polls(now, stream);
        self.keep_what_is_used(now, stream);
        self.serve_relays(stream);
        let next = self.next_alarm(now, stream);
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        if let Some(alarm) = entry.alarm.take() {
            self.alarms.remove(&(alarm, stream));
        }
        if entry.is_idle() {
            self.streams.remove(&stream);
            self.around.desk.shards.attended.leave(stream);
        } else if let Some(next) = next {
            entry.alarm = Some(next);
            self.alarms.insert((next, stream));
        }
    }

    /// What the store says about a turn that runs here.
    fn heed(&mut self, now: Moment, stream: Uuid) {
        let silence_max = self.around.limits.producer_silence_max;
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let Some(view) = &entry.view else { return };
        let state = &view.row.state;
        let folded_to = view.row.turn_folded_to;
        if let Some(turn) = entry.turns.iter_mut().find(|turn| turn.number() == state.turn_no) {
            turn.fold(folded_to);
            if state.status.run().is_none() {
                turn.close(now);
            }
        }
        let Some(held) = &entry.held else { return };
        let runs_here = state.status.run().is_some_and(|run| run.lease == held.lease);
        let over = state.turn_no > held.turn || (state.turn_no == held.turn && !runs_here);
        if over {
            let held = entry.held.take().expect("it was there two lines up");
            held.cancel.cancel();
            if let Some(turn) = entry.turn(held.turn) {
                turn.close(now);
            }
        } else if state.turn_no == held.turn
            && matches!(state.status, crate::state::stream::Status::Interrupting(_))
        {
            held.cancel.cancel();
        } else if held.heard + silence_max <= now {
            let fence = Fence { turn: held.turn, lease: held.lease };
            log::warn!("producer lost stream={} turn={}", view.row.name, held.turn);
            // Asked once a silence: what the store says ends the turn here.
            if let Some(held) = &mut entry.held {
                held.heard = now;
            }
            self.around.desk.end(stream, fence, End::Lost, Box::new(|_| {}));
        }
    }

    fn next_alarm(&self, now: Moment, stream: Uuid) -> Option<Moment> {
        let entry = self.streams.get(&stream)?;
        let mut next = entry.turns.iter().filter_map(Turn::expires).min();
        if let Some(held) = &entry.held {
            next = Moment::earliest(next, Some(held.heard + self.around.limits.producer_silence_max));
        }
        next = Moment::earliest(next, entry.mirror.as_ref().and_then(|mirror| mirror.deadline()));
        next = Moment::earliest(next, entry.polls.iter().map(|poll| poll.deadline).min());
        next = Moment::earliest(next, entry.renew_at);
        if entry.read_at > now {
            next = Moment::earliest(next, Some(entry.read_at));
        }
        for id in entry.by_hand() {
            if let Tap::Channel(channel) = &self.followers[id].tap {
                next = Moment::earliest(next, channel.deadline(now));
            }
        }
        next
    }

    fn ring(&mut self, now: Moment) {
        while let Some(&(at, stream)) = self.alarms.first() {
            if at > now {
                break;
            }
            self.alarms.pop_first();
            let Some(entry) = self.streams.get_mut(&stream) else { continue };
            entry.alarm = None;
            let is_behind = |id: &&FollowerId| matches!(&self.followers[*id].tap, Tap::Channel(channel) if channel.is_behind());
            let behind: Vec<FollowerId> = entry.by_hand().filter(is_behind).copied().collect();
            for id in behind {
                self.drained(now, id);
            }
            self.touched.push(stream);
        }
        if self.around.hints_lost.swap(false, Ordering::AcqRel) {
            self.hints_lost(now);
        }
        if self.poll_at <= now {
            self.poll(now);
        }
        self.relay_beats(now);
    }
}

impl Room for StreamsRoom {
    type Message = Message;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        let doors = self.around.doors.clone();
        let _quietly = doors.as_ref().map(Doors::quietly);
        for message in inbox.drain(..) {
            self.handle(now, message);
        }
        self.ring(now);
        // One turn for each stream, however much arrived for it.
        let mut touched = std::mem::take(&mut self.touched);
        while !touched.is_empty() {
            touched.sort_unstable();
            touched.dedup();
            for stream in touched.drain(..) {
                self.settle(now, stream);
            }
            std::mem::swap(&mut touched, &mut self.touched);
        }
        self.touched = touched;
    }

    fn deadline(&self) -> Option<Moment> {
        let alarm = Moment::earliest(self.alarms.first().map(|(at, _)| *at), self.relays.deadline());
        Moment::earliest(alarm, Some(self.poll_at))
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<Message>) {
        self.wake(now, inbox);
        let all: Vec<FollowerId> = self.followers.keys().copied().collect();
        for id in all {
            self.cut(id, Ended::Stopped);
        }
        self.around.desk.shards.attended.close();
        for entry in self.streams.values_mut() {
            if let Some(held) = &entry.held {
                held.cancel.cancel();
            }
            entry.polls.drain(..).for_each(|poll| (poll.then)(Err(StreamError::Stopped)));
            entry.readers.drain(..).for_each(|read| (read.then)(Err(StreamError::Stopped)));
        }
    }
}
