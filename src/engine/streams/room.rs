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

use crate::bus::StreamNotice;
use crate::engine::reader::Pool;
use crate::engine::visits::{Visit, Visits};
use crate::engine::worker::{Inbox, Refused, Room};
use crate::metrics::Counter;
use crate::rt::{self, Cancel, Moment, Rt, Wall};
use crate::state::stream::{Cursor, LeaseHash};
use crate::state::turn::{PartRefused, Turn};
use crate::store::StoreError;
use crate::store::streams::{
    Address, CatchUp, Change, Draft, End, Fence, Found, Held, MessageRow, PAGE_BYTES, Page,
};
use crate::wire::{Closing, Doors, Group, Happened, LinkBatch, LinkHandle};

use super::StreamError;
use super::courier::Word;
use super::durable::Cursors;
use super::errand::Errand;
use super::event::{Ended, Event, Hello, Reset, What};
use super::follower::{Follower, FollowerId, Format, Since, Step, Tap, Told};
use super::slow::{SlowOnes, Who};
use super::view::{Brought, Greeted, Stage, View};
use super::writes::{self, Desk};

mod relays;
mod uses;

use relays::{Mirror, Relays, Served};
pub use relays::{RELAY_MESSAGE_MAX, RELAY_PATH, RELAY_TICKET, RelayWays};
pub(super) use uses::Poll;
pub use uses::Polled;

/// How often what is followed or run here is compared with the store: what makes up for lost notices.
const POLL: Duration = Duration::from_secs(10);
/// How long to wait after a failed read.
const READ_RETRY: Duration = Duration::from_millis(250);

/// A hint that is newer than anything: it causes one read.
const LOOK: (u32, u64) = (u32::MAX, u64::MAX);

/// What the room is told. Large things are boxed: an inbox has a place for each message it may ever hold, as large
/// as the largest of them.
pub(super) enum Message {
    /// Somebody wants to follow.
    Follow(Box<Newcomer>),
    /// A follower is gone.
    Unfollow(FollowerId),
    /// A follower in this process has taken what waited for it.
    Drained(FollowerId),
    /// A page of history has left for a follower whose link belongs to somebody else.
    Passed(FollowerId),
    /// The link of a follower is gone that belongs to somebody else, for this reason.
    LinkGone(FollowerId, Closing),
    /// A follow is over whose link goes on: once nothing more comes of it, this is called.
    Leave(FollowerId, Box<dyn FnOnce() + Send>),
    /// A follow is to end, and its peer to be told why.
    End(FollowerId, Ended),
    /// A claim of this replica was written.
    Begin(Box<Begin>),
    /// Something asked of a turn, and whether it has to stay here if the turn does not run here.
    Errand(Box<Errand>, bool),
    /// Somebody waits for the next message.
    Poll(Poll),
    /// Something was written by this replica.
    Written(Box<(Change, Option<MessageRow>)>),
    /// A stream is gone.
    Deleted(Uuid, Ended),
    /// What the store knows of a stream is not what this room knows.
    LookAgain(Uuid),
    /// Something was written somewhere.
    Notice(StreamNotice),
    /// A read has answered.
    Read(Uuid, Box<Answer>),
    /// The poll has answered; these were asked for.
    Polled(Vec<Uuid>, Result<Vec<Change>, StoreError>),
    /// These turns are still this replica's, as of the claims before this moment.
    Renewed(Arc<[Held]>, Moment),
    /// Something happened on links of followers and relays.
    Links(LinkBatch),
    /// Another replica wants the parts of a stream that runs here.
    Serve {
        /// Which stream.
        stream: Uuid,
        /// What events of the link are tagged with.
        tag: u64,
        /// The link.
        link: LinkHandle,
    },
    /// Somebody wants to know what is followed and produced here.
    Living(Box<dyn FnOnce(Vec<Living>) + Send>),
    /// The engine is about to stop.
    Drain(rt::Sender<()>),
    /// Hints were lost: look at the flag.
    Wake,
}

/// Somebody who wants to follow.
pub(super) struct Newcomer {
    pub id: FollowerId,
    pub stream: Uuid,
    pub since: Since,
    pub parts: bool,
    pub tap: Tap,
    pub who: Option<Who>,
    pub visit: Visit,
}

/// What goes on in a stream on one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Living {
    /// Which stream.
    pub stream: Uuid,
    /// How many follow it here.
    pub followers: usize,
    /// The newest turn whose parts are here, and the number of its last part.
    pub turn: Option<(u32, u32)>,
}

/// A claim that was written.
pub(super) struct Begin {
    pub change: Change,
    pub turn: u32,
    pub lease: LeaseHash,
    pub cancel: Cancel,
}

/// Called with what became of it, on the room's thread or a writer's: must not block.
pub type Then<T> = Box<dyn FnOnce(Result<T, StreamError>) + Send>;

/// Parts of a turn.
pub(super) struct Parts {
    pub stream: Uuid,
    pub fence: Fence,
    /// The number of the first of them, if the producer counts.
    pub first: Option<u32>,
    pub parts: Vec<Arc<str>>,
    pub then: Then<Accepted>,
}

/// What became of parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// How many were taken now.
    pub accepted: u32,
    /// The turn's last part.
    pub last: u32,
    /// Whether the turn was asked to stop.
    pub interrupted: bool,
}

/// A message of a turn.
pub(super) struct Commit {
    pub stream: Uuid,
    pub fence: Fence,
    pub draft: Draft,
    pub key: Option<String>,
    pub then: Then<writes::Written>,
}

/// The end of a turn.
pub(super) struct Ending {
    pub stream: Uuid,
    pub fence: Fence,
    pub end: End,
    pub then: Then<()>,
}

/// A sign of life.
pub(super) struct Keepalive {
    pub stream: Uuid,
    pub fence: Fence,
    pub then: Then<Alive>,
}

/// What a producer hears when it says that it is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive {
    /// Until when the lease is good.
    pub lease_until: Wall,
    /// Whether the turn was asked to stop.
    pub interrupted: bool,
}

/// Somebody reads a turn.
pub(super) struct ReadTurn {
    pub stream: Uuid,
    pub turn: u32,
    pub after: u32,
    /// Whether to wait until there is something after `after`, or the turn has ended.
    pub wait: bool,
    pub then: Then<TurnRead>,
}

/// Somebody wants to hear when a turn is asked to stop.
pub(super) struct CancelOf {
    pub stream: Uuid,
    pub fence: Fence,
    pub then: Then<Cancel>,
}

/// What there is of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnRead {
    /// The number of the first part.
    pub first: u32,
    /// The parts from there on.
    pub parts: Vec<Arc<str>>,
    /// The number of the last part.
    pub last: u32,
    /// Whether the turn has ended: no more will come.
    pub closed: bool,
    /// Whether parts before `first` are gone.
    pub evicted: bool,
    /// The last part that a message stands for. What comes after it goes if the turn is lost.
    pub folded_to: u32,
}

/// What a read found.
pub(super) struct Answer {
    no: u64,
    after: u64,
    /// Whether it was of history only, up to where everybody else stands.
    history: bool,
    page: Result<Found<Page>, StoreError>,
}

/// A turn that runs here.
struct HeldTurn {
    turn: u32,
    lease: LeaseHash,
    cancel: Cancel,
    /// When it was claimed: an older renewal does not know it.
    begun: Moment,
    /// When its producer was last heard of.
    heard: Moment,
    until: Wall,
}

/// Followers that stand at the same place and are told together.
#[derive(Default)]
struct Crowd {
    cursor: Cursor,
    channels: Vec<FollowerId>,
    sse: Option<Group>,
    ws: Option<Group>,
    durable: Option<Group>,
}

impl Crowd {
    fn is_empty(&self) -> bool {
        let none = |group: &Option<Group>| group.as_ref().is_none_or(Group::is_empty);
        self.channels.is_empty() && none(&self.sse) && none(&self.ws) && none(&self.durable)
    }

    fn group(&mut self, format: Format) -> &mut Option<Group> {
        match format {
            Format::Sse => &mut self.sse,
            Format::Ws => &mut self.ws,
            Format::Durable => &mut self.durable,
        }
    }
}

/// A stream that is followed or run here.
#[derive(Default)]
struct Entry {
    view: Option<View>,
    /// The newest `(generation, pos)` that was heard of since the last read that asked for what is new
    /// was begun. A hint is spent by a read, so that one that lies costs one read.
    hinted: (u32, u64),
    /// What was hinted when the read that is out was begun: it comes back if the read fails.
    asked: (u32, u64),
    /// Turns whose parts are here: the current one, and those in their grace.
    turns: Vec<Turn>,
    held: Option<HeldTurn>,
    /// Those who read a turn and have all there is of it.
    readers: Vec<ReadTurn>,
    /// Those who wait for the next message.
    polls: Vec<Poll>,
    /// When the stream is next kept from running out, because it is in use.
    renew_at: Option<Moment>,
    followers: Vec<FollowerId>,
    /// Those of them who stand in no crowd: whatever happens, only these are looked at one by one.
    apart: Vec<FollowerId>,
    with_parts: Crowd,
    without: Crowd,
    /// What brings the parts of a turn that another replica runs.
    mirror: Option<Box<Mirror>>,
    /// Other replicas that follow turns here.
    served: Vec<Served>,
    /// The number of the last read that was begun, and whether it is still out.
    reads: u64,
    reading: bool,
    /// After a failed read: not before this.
    read_at: Moment,
    degraded: bool,
    alarm: Option<Moment>,
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.followers.is_empty()
            && self.held.is_none()
            && self.turns.is_empty()
            && self.served.is_empty()
            && self.mirror.is_none()
            && self.polls.is_empty()
            && !self.reading
    }

    fn turn(&mut self, number: u32) -> Option<&mut Turn> {
        self.turns.iter_mut().find(|turn| turn.number() == number)
    }

    fn holds(&mut self, fence: Fence) -> Option<&mut HeldTurn> {
        self.held.as_mut().filter(|held| held.turn == fence.turn && held.lease == fence.lease)
    }

    /// Those who can have something waiting for them in this process, and some others.
    fn by_hand(&self) -> impl Iterator<Item = &FollowerId> {
        self.apart.iter().chain(&self.with_parts.channels).chain(&self.without.channels)
    }

    fn crowd(&mut self, parts: bool) -> &mut Crowd {
        if parts { &mut self.with_parts } else { &mut self.without }
    }
}

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

    fn follow(&mut self, newcomer: Newcomer) {
        let Newcomer { id, stream, since, parts, tap, who, visit } = newcomer;
        // Whoever begins anew has lost nothing by the cut, and may be somebody else.
        let back = matches!(since, Since::After(_)) && self.slow.takes(self.around.rt.now(), stream, who);
        let previous = back.then(|| Ended::Slow.name());
        let entry = self.enter(stream);
        // Registered before anything is read for it: whatever happens from here on reaches it.
        entry.followers.push(id);
        entry.apart.push(id);
        let (read, count) = (entry.reads + 1, entry.followers.len());
        let cursor = match since {
            Since::Start | Since::Now => Cursor::default(),
            Since::After(token) => token.cursor,
        };
        let step = Step::Opening { read };
        let follower = Follower {
            stream,
            since,
            parts,
            cursor,
            step,
            joined: false,
            paced: false,
            told_live: false,
            resumed: false,
            missed: 0,
            who,
            previous,
            tap,
            visit,
        };
        self.followers.insert(id, follower);
        let is_full = count > self.around.limits.followers_max;
        self.touched.push(stream);
        if is_full {
            self.around.followers_refused.inc();
            self.cut(id, Ended::Full);
        }
    }

    fn unfollow(&mut self, id: FollowerId) {
        let Some(mut follower) = self.followers.remove(&id) else { return };
        // Whoever knows better has said it before.
        follower.visit.end("unfollowed");
        let Some(entry) = self.streams.get_mut(&follower.stream) else { return };
        entry.followers.retain(|other| *other != id);
        if follower.joined {
            let crowd = entry.crowd(follower.parts);
            match &follower.tap {
                Tap::Channel(_) => crowd.channels.retain(|other| *other != id),
                Tap::Link { link, format, .. } => {
                    if let Some(group) = crowd.group(*format) {
                        group.leave(link);
                    }
                }
            }
        } else {
            entry.apart.retain(|other| *other != id);
        }
        self.touched.push(follower.stream);
    }

    fn drained(&mut self, now: Moment, id: FollowerId) {
        let Some(follower) = self.followers.get_mut(&id) else { return };
        let stream = follower.stream;
        if let Tap::Channel(channel) = &mut follower.tap {
            match channel.drain(now) {
                Told::Well => {}
                Told::Gone => self.unfollow(id),
                Told::Slow => self.cut(id, Ended::Slow),
            }
        }
        self.touched.push(stream);
    }

    fn passed(&mut self, id: FollowerId) {
        if let Some(follower) = self.followers.get_mut(&id) {
            follower.paced = false;
            self.touched.push(follower.stream);
        }
    }

    /// A frame for all was lost on the way to one. How far it came is not known here, but the client has the
    /// token of what it got last.
    fn lost(&mut self, id: FollowerId) {
        self.leave_group(id);
        self.cut(id, Ended::Slow);
    }

    fn links(&mut self, now: Moment, batch: LinkBatch) {
        for event in batch {
            let dialed = matches!(event.what, Happened::Opened(..) | Happened::Refused(_));
            if dialed || self.relays.knows(event.tag) {
                self.relay_event(now, event);
                continue;
            }
            match event.what {
                Happened::Passed(id) => self.passed(id),
                Happened::Closed(closing) => self.link_gone(event.tag, &closing),
                Happened::Reset(_) => self.lost(event.tag),
                Happened::Expired => self.cut(event.tag, Ended::Auth),
                // A follower has nothing to say; what it says is not read on.
                Happened::Opened(..)
                | Happened::Refused(_)
                | Happened::Text(_)
                | Happened::Binary(_)
                | Happened::Bytes(_)
                | Happened::Ended => {}
            }
        }
    }

    /// A reader that did not keep up was cut where its bytes are queued; why, it may never read.
    fn say_if_slow(&mut self, id: FollowerId, code: u16) {
        use crate::wire::websocket::close::{SLOW, TRY_AGAIN};
        let Some(follower) = self.followers.get(&id).filter(|_| matches!(code, SLOW | TRY_AGAIN)) else {
            return;
        };
        self.slow.note(self.around.rt.now(), follower.stream, follower.who);
        let view = self.streams.get(&follower.stream).and_then(|entry| entry.view.as_ref());
        let name = view.map_or("", |view| view.row.name.as_str());
        log::info!("follower ended stream={name} reason={}", Ended::Slow.name());
    }

    fn link_gone(&mut self, id: FollowerId, why: &Closing) {
        self.say_if_slow(id, why.code);
        self.leave_group(id);
        if let Some(follower) = self.followers.get_mut(&id) {
            follower.visit.end(&why.reason);
        }
        self.unfollow(id);
    }

    /// The link has left its group by itself: it is counted out, not taken out.
    fn leave_group(&mut self, id: FollowerId) {
        let Some(follower) = self.followers.get_mut(&id) else { return };
        let (true, Tap::Link { link, format, .. }) = (follower.joined, &follower.tap) else { return };
        let (link, format) = (link.id(), *format);
        follower.joined = false;
        if let Some(entry) = self.streams.get_mut(&follower.stream)
            && let Some(group) = entry.crowd(follower.parts).group(format)
        {
            group.forget(link);
        }
    }

    /// Ends one follower; its token makes it whole when it comes back.
    fn cut(&mut self, id: FollowerId, why: Ended) {
        let ts = self.ts();
        let Some(follower) = self.followers.get_mut(&id) else { return };
        let Some(entry) = self.streams.get_mut(&follower.stream) else { return };
        let crowd = entry.crowd(follower.parts).cursor;
        let cursor = if follower.joined { crowd } else { follower.cursor };
        let name = entry.view.as_ref().map_or("", |view| view.row.name.as_str());
        let hint = self.around.cursor();
        // What one that is slow has really got, only itself knows.
        let known = entry.view.as_ref().filter(|_| why != Ended::Slow);
        let event = known.map(|view| Event { token: view.token(cursor), ts, what: What::Closed(why) });
        log::info!("follower ended stream={name} reason={}", why.name());
        let voice = entry.view.as_ref().map(|view| view.voice(hint));
        if why == Ended::Slow {
            self.slow.note(self.around.rt.now(), follower.stream, follower.who);
        }
        follower.end(id, why, event.as_ref().zip(voice.as_ref()));
        follower.visit.end(why.name());
        self.unfollow(id);
    }

    fn close_stream(&mut self, stream: Uuid, why: Ended) {
        self.around.names.forget(stream);
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        if let Some(held) = entry.held.take() {
            held.cancel.cancel();
        }
        entry.turns.clear();
        self.touched.push(stream);
        for id in entry.followers.clone() {
            self.cut(id, why);
        }
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.view = None;
            for poll in std::mem::take(&mut entry.polls) {
                (poll.then)(Err(StreamError::Missing));
            }
            for read in std::mem::take(&mut entry.readers) {
                (read.then)(Err(StreamError::NoTurn { turn: read.turn }));
            }
        }
        self.touched.push(stream);
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

    // Turns that run here.

    fn begin(&mut self, now: Moment, begin: Begin) {
        let Begin { change, turn, lease, cancel } = begin;
        let stream = change.stream;
        let entry = self.enter(stream);
        let until = change.state.status.run().map_or(Wall(0), |run| run.until);
        let held = HeldTurn { turn, lease, cancel, begun: now, heard: now, until };
        // Claimed again under the same key: the turn is there, with its parts.
        if entry.turn(turn).is_none() {
            for older in &mut entry.turns {
                older.close(now);
            }
            entry.turns.push(Turn::begin(turn, 0));
        }
        if let Some(older) = entry.held.replace(held)
            && older.turn != turn
        {
            older.cancel.cancel();
        }
        self.written(change, None);
    }

    /// Something is asked of a turn: by its producer or its readers, here or through another replica.
    fn errand(&mut self, now: Moment, errand: Errand, stays: bool) {
        if !self.is_for_here(&errand) {
            return self.elsewhere(errand, stays);
        }
        match errand {
            Errand::Parts(parts) => self.parts(now, parts),
            Errand::Commit(commit) => self.commit(now, commit),
            Errand::End(ending) => self.end_turn(now, ending),
            Errand::Keepalive(keepalive) => self.keepalive(now, keepalive),
            Errand::ReadTurn(read) => self.read_turn(read),
            Errand::CancelOf(asked) => self.cancel_of(asked),
        }
    }

    fn is_for_here(&mut self, errand: &Errand) -> bool {
        let Some(entry) = self.streams.get_mut(&errand.stream()) else { return false };
        match errand {
            // What was folded before this replica began to mirror a turn is with its worker only.
            Errand::ReadTurn(read) => {
                let mirrored = entry.mirror.is_some();
                entry.turn(read.turn).is_some_and(|turn| !(mirrored && turn.after(read.after).evicted))
            }
            _ => errand.fence().is_some_and(|fence| entry.holds(fence).is_some()),
        }
    }

    /// What does not run here may run on another replica.
    fn elsewhere(&self, errand: Errand, stays: bool) {
        let courier = match &self.around.courier {
            Some(courier) if !stays => courier,
            _ => {
                let error = errand.not_here();
                return errand.refuse(error);
            }
        };
        match courier.try_data(Word::Carry(errand)) {
            Ok(()) => {}
            Err(Refused::Full(Word::Carry(errand))) => errand.refuse(StreamError::Full),
            Err(Refused::Ended(Word::Carry(errand))) => errand.refuse(StreamError::Stopped),
            Err(_) => unreachable!("what comes back is what was sent"),
        }
    }

    fn parts(&mut self, now: Moment, parts: Parts) {
        let Parts { stream, fence, first, parts, then } = parts;
        let Some(entry) = self.streams.get_mut(&stream) else { return then(Err(StreamError::NotHere)) };
        let Some(held) = entry.holds(fence) else { return then(Err(StreamError::NotHere)) };
        held.heard = now;
        let interrupted = held.cancel.is_cancelled();
        let budget = self.around.limits.turns_bytes_max;
        if self.parts_bytes > budget {
            self.shed(budget);
        }
        let max = self.around.limits.turn_bytes_max;
        let Some(turn) = self.streams.get_mut(&stream).and_then(|entry| entry.turn(fence.turn)) else {
            return then(Err(StreamError::TurnLost { turn: fence.turn }));
        };
        let before = turn.bytes();
        let mut accepted = 0;
        let mut refused = None;
        for (n, part) in (first.unwrap_or(turn.last() + 1)..).zip(parts) {
            let pushed = match n.cmp(&(turn.last() + 1)) {
                // Sent again after a cut: it is there.
                std::cmp::Ordering::Less => continue,
                std::cmp::Ordering::Equal => turn.push(part, max),
                std::cmp::Ordering::Greater => Err(PartRefused::Gap { last: turn.last() }),
            };
            if let Err(why) = pushed {
                refused = Some(why);
                break;
            }
            accepted += 1;
        }
        let last = turn.last();
        self.parts_bytes = self.parts_bytes + turn.bytes() - before;
        self.touched.push(stream);
        then(match refused {
            None => Ok(Accepted { accepted, last, interrupted }),
            Some(why) => Err(StreamError::Part { why, accepted, last }),
        });
    }

    /// All turns together hold too much: what is folded or over goes first, wherever it is.
    fn shed(&mut self, budget: usize) {
        let mut bytes = 0;
        for entry in self.streams.values_mut() {
            for turn in &mut entry.turns {
                if turn.is_closed() {
                    turn.shed(0);
                } else {
                    turn.shed_folded(0);
                }
                bytes += turn.bytes();
            }
        }
        self.parts_bytes = bytes;
        if bytes > budget {
            log::warn!(
                "turns hold {bytes} bytes of parts, more than {budget}: nothing more can be let go of"
            );
        }
    }

    fn commit(&mut self, now: Moment, commit: Commit) {
        let Commit { stream, fence, draft, key, then } = commit;
        let Some(entry) = self.streams.get_mut(&stream) else { return then(Err(StreamError::NotHere)) };
        let Some(held) = entry.holds(fence) else { return then(Err(StreamError::NotHere)) };
        held.heard = now;
        let folded_to = entry.turn(fence.turn).map_or(0, |turn| turn.last());
        self.around.desk.commit(stream, fence, draft, folded_to, key, then);
    }

    fn end_turn(&mut self, now: Moment, ending: Ending) {
        let Ending { stream, fence, end, then } = ending;
        let Some(entry) = self.streams.get_mut(&stream) else { return then(Err(StreamError::NotHere)) };
        let Some(held) = entry.holds(fence) else { return then(Err(StreamError::NotHere)) };
        held.heard = now;
        self.around.desk.end(stream, fence, end, then);
    }

    fn keepalive(&mut self, now: Moment, keepalive: Keepalive) {
        let Keepalive { stream, fence, then } = keepalive;
        let held = self.streams.get_mut(&stream).and_then(|entry| entry.holds(fence));
        then(match held {
            None => Err(StreamError::NotHere),
            Some(held) => {
                held.heard = now;
                Ok(Alive { lease_until: held.until, interrupted: held.cancel.is_cancelled() })
            }
        });
        self.touched.push(stream);
    }

    fn read_turn(&mut self, read: ReadTurn) {
        let Some(entry) = self.streams.get_mut(&read.stream) else {
            return (read.then)(Err(StreamError::NoTurn { turn: read.turn }));
        };
        self.touched.push(read.stream);
        entry.readers.push(read);
    }

    /// Answers those who read turns, as far as there is something to read.
    fn serve_readers(&mut self, stream: Uuid) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        for read in std::mem::take(&mut entry.readers) {
            let Some(turn) = entry.turns.iter().find(|turn| turn.number() == read.turn) else {
                (read.then)(Err(StreamError::NoTurn { turn: read.turn }));
                continue;
            };
            let lack = turn.after(read.after);
            if read.wait && lack.parts.len() == 0 && !turn.is_closed() {
                entry.readers.push(read);
                continue;
            }
            (read.then)(Ok(TurnRead {
                first: lack.first,
                evicted: lack.evicted,
                closed: turn.is_closed(),
                last: turn.last(),
                folded_to: turn.folded_to(),
                parts: lack.parts.cloned().collect(),
            }));
        }
    }

    fn cancel_of(&mut self, asked: CancelOf) {
        let held = self.streams.get_mut(&asked.stream).and_then(|entry| entry.holds(asked.fence));
        (asked.then)(held.map(|held| held.cancel.clone()).ok_or(StreamError::NotHere));
    }

    /// Claims that were written and whose answer was lost: their leases are renewed with all the others, and
    /// nobody has them. Whoever claimed may ask again under the same key; after as long as a producer may be
    /// silent they are ended like one that went silent.
    fn end_orphans(&mut self, held: &[Held], asked: Moment) {
        let silence_max = self.around.limits.producer_silence_max;
        let is_orphan = |held: &&Held| {
            let mine = self.streams.get(&held.stream).and_then(|entry| entry.held.as_ref());
            mine.is_none_or(|mine| mine.turn < held.turn)
        };
        let found: Vec<(Uuid, u32)> =
            held.iter().filter(is_orphan).map(|held| (held.stream, held.turn)).collect();
        self.orphans.retain(|stream, (turn, _)| found.contains(&(*stream, *turn)));
        for (stream, turn) in found {
            let (_, since) = *self.orphans.entry(stream).or_insert((turn, asked));
            if since + silence_max <= asked {
                crate::mark!(orphaned_turn_ended);
                log::warn!("turn that nobody has is ended stream={stream} turn={turn}");
                self.around.desk.end_orphan(stream, turn, self.around.replica);
            }
        }
    }

    fn renewed(&mut self, held: &[Held], asked: Moment) {
        self.end_orphans(held, asked);
        let streams: Vec<Uuid> = self.streams.keys().copied().collect();
        for stream in streams {
            let Some(entry) = self.streams.get_mut(&stream) else { continue };
            let Some(mine) = &mut entry.held else { continue };
            match held.iter().find(|held| held.stream == stream && held.turn == mine.turn) {
                Some(held) => {
                    mine.until = held.until;
                    if held.interrupting && !mine.cancel.is_cancelled() {
                        mine.cancel.cancel();
                        self.touched.push(stream);
                    }
                }
                None if mine.begun < asked => {
                    // Somebody took over, or the sweep found the lease dead: the store says what is.
                    self.look_again(stream);
                }
                None => {}
            }
        }
    }

    // What was written, here or elsewhere.

    fn written(&mut self, change: Change, message: Option<MessageRow>) {
        let Some(entry) = self.streams.get_mut(&change.stream) else { return };
        let (stream, at) = (change.stream, (change.state.generation, change.state.pos));
        if let Some(fold) = message.as_ref().and_then(|message| message.fold)
            && let Some(turn) = entry.turn(fold.turn)
        {
            turn.fold(fold.upto);
        }
        match (&mut entry.view, message) {
            (Some(view), Some(message)) => {
                view.apply_written(&change, message);
            }
            (Some(view), None) => view.apply_state(&change),
            (None, _) => {}
        }
        entry.hinted = entry.hinted.max(at);
        self.touched.push(stream);
    }

    fn noticed(&mut self, notice: StreamNotice) {
        if notice.deleted {
            return self.look_again(notice.stream);
        }
        let Some(entry) = self.streams.get_mut(&notice.stream) else { return };
        if entry.view.as_ref().is_some_and(|view| !view.lags(notice.generation, notice.pos)) {
            // What was written here was told here first.
            return;
        }
        entry.hinted = entry.hinted.max((notice.generation, notice.pos));
        self.touched.push(notice.stream);
    }

    fn look_again(&mut self, stream: Uuid) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        entry.hinted = LOOK;
        self.touched.push(stream);
    }

    fn hints_lost(&mut self, now: Moment) {
        crate::mark!(hints_lost);
        self.poll_at = now;
    }

    fn poll(&mut self, now: Moment) {
        self.poll_at = now + POLL;
        if self.polling || self.streams.is_empty() {
            return;
        }
        let asked: Vec<Uuid> = self.streams.keys().copied().collect();
        let inbox = self.inbox.clone();
        let ids = asked.clone();
        self.polling = true;
        self.around.readers.ask(
            now.0,
            move |store| store.positions(&ids),
            move |answer| answered(&inbox, Message::Polled(asked, answer)),
        );
    }

    fn polled(&mut self, now: Moment, asked: &[Uuid], answer: Result<Vec<Change>, StoreError>) {
        self.polling = false;
        let changes = match answer {
            Ok(changes) => changes,
            Err(error) => {
                log::warn!("poll failed error={error}");
                self.poll_at = self.poll_at.min(now + Duration::from_secs(1));
                return;
            }
        };
        let mut known: HashMap<Uuid, &Change, rt::Hasher> = HashMap::with_hasher(self.around.rt.hasher());
        known.extend(changes.iter().map(|change| (change.stream, change)));
        for stream in asked {
            let Some(entry) = self.streams.get_mut(stream) else { continue };
            let at = match known.get(stream) {
                Some(change) => (change.state.generation, change.state.pos),
                // Gone: the read says so.
                None => LOOK,
            };
            if entry.view.as_ref().is_some_and(|view| view.lags(at.0, at.1)) {
                entry.hinted = entry.hinted.max(at);
                self.touched.push(*stream);
            }
        }
    }

    // Reads.

    fn ask_read(&mut self, stream: Uuid, after: u64, upto: Option<u64>) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        entry.reads += 1;
        entry.asked = (0, 0);
        if upto.is_none() {
            entry.asked = std::mem::take(&mut entry.hinted);
        }
        let no = entry.reads;
        let inbox = self.inbox.clone();
        let read = CatchUp { after, upto, bytes_max: PAGE_BYTES };
        entry.reading = true;
        self.around.readers.ask(
            stream.as_u64_pair().1,
            move |store| store.catch_up(&Address::Id(stream), read),
            move |page| {
                let answer = Answer { no, after, history: upto.is_some(), page };
                answered(&inbox, Message::Read(stream, Box::new(answer)));
            },
        );
    }

    fn read(&mut self, now: Moment, stream: Uuid, answer: Answer) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        entry.reading = false;
        self.touched.push(stream);
        let page = match answer.page {
            Ok(Found::Here(page)) => page,
            Ok(Found::Missing | Found::Gone) => return self.close_stream(stream, Ended::Deleted),
            Err(error) => {
                log::warn!("read failed stream={stream} error={error}");
                let entry = self.streams.get_mut(&stream).expect("it was there a moment ago");
                entry.hinted = entry.hinted.max(entry.asked);
                entry.read_at = now + READ_RETRY;
                self.relay_checked(now, stream, false);
                return self.set_degraded(now, stream, true);
            }
        };
        self.set_degraded(now, stream, false);
        let entry = self.streams.get_mut(&stream).expect("it was there a moment ago");
        let at = (page.stream.state.generation, page.stream.state.pos);
        match &mut entry.view {
            None => entry.view = Some(View::new(answer.after, page)),
            // The page that brings everybody on.
            Some(view) if !answer.history || at.0 != view.generation() => {
                entry.hinted = entry.hinted.max(at);
                view.apply(page);
            }
            Some(view) => {
                entry.hinted = entry.hinted.max(at);
                let upto = if page.more { page.messages.last().map_or(0, |row| row.pos) } else { page.upto };
                let upto = upto.min(view.shown());
                let rows: Vec<Arc<MessageRow>> =
                    page.messages.into_iter().filter(|row| row.pos <= upto).map(Arc::new).collect();
                self.tell_page(now, stream, answer.after, upto, &rows);
            }
        }
        if !answer.history {
            self.relay_checked(now, stream, true);
        }
        self.open_newcomers(now, stream, answer.no);
    }

    /// One page for everybody who stands inside it.
    fn tell_page(&mut self, now: Moment, stream: Uuid, after: u64, upto: u64, rows: &[Arc<MessageRow>]) {
        let hint = self.around.cursor();
        let Some(entry) = self.streams.get(&stream) else { return };
        let Some(view) = &entry.view else { return };
        let mut cut = Vec::new();
        for id in &entry.apart {
            let follower = self.followers.get_mut(id).expect("a follower of an entry exists");
            let stands_here = matches!(follower.step, Step::Snapshot(_) | Step::Live)
                && follower.cursor.generation == view.generation()
                && (after..upto).contains(&follower.cursor.pos);
            if !stands_here || !follower.has_credit() {
                continue;
            }
            self.events.clear();
            view.tell_page(rows, &mut follower.cursor, follower.parts, &mut self.events);
            follower.missed +=
                self.events.iter().filter(|e| matches!(e.what, What::Message(_))).count() as u64;
            follower.cursor.pos = upto;
            let told = follower.tell(now, &self.events, &view.voice(hint));
            if let Tap::Link { link, .. } = &follower.tap {
                // The next page goes out when this one has left.
                link.mark(*id);
                follower.paced = true;
            }
            if told != Told::Well {
                cut.push((*id, told));
            }
        }
        self.cut_all(cut);
    }

    fn cut_all(&mut self, cut: Vec<(FollowerId, Told)>) {
        for (id, told) in cut {
            match told {
                Told::Slow => self.cut(id, Ended::Slow),
                Told::Gone | Told::Well => self.unfollow(id),
            }
        }
    }

    fn set_degraded(&mut self, now: Moment, stream: Uuid, degraded: bool) {
        let (ts, hint) = (self.ts(), self.around.cursor());
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        if std::mem::replace(&mut entry.degraded, degraded) == degraded {
            return;
        }
        let Some(view) = &entry.view else { return };
        let what = match degraded {
            true => What::Degraded { what: "store" },
            false => What::Restored { what: "store" },
        };
        for id in &entry.followers {
            let follower = self.followers.get_mut(id).expect("a follower of an entry exists");
            let cursor = if follower.joined { view.tip(&entry.turns) } else { follower.cursor };
            let event = Event { token: view.token(cursor), ts, what: what.clone() };
            if follower.told_live {
                // One that does not keep up is found out by what comes next.
                follower.tell(now, &[event], &view.voice(hint));
            }
        }
    }

    // Bringing followers to where the view stands.

    /// Decides on the tokens of those who wait for it. `read` is the last read that has answered.
    fn open_newcomers(&mut self, now: Moment, stream: Uuid, read: u64) {
        let (ts, hint) = (self.ts(), self.around.cursor());
        let Some(entry) = self.streams.get(&stream) else { return };
        let Some(view) = &entry.view else { return };
        // While the store cannot be reached, what is here is all there is.
        let asked = if entry.reading { entry.asked } else { (0, 0) };
        let (generation, pos) = entry.hinted.max(asked);
        let knows_of_more = view.lags(generation, pos) && !entry.degraded;
        let mut cut = Vec::new();
        for id in &entry.apart {
            let follower = self.followers.get_mut(id).expect("a follower of an entry exists");
            let Step::Opening { read: needed } = follower.step else { continue };
            if read < needed && knows_of_more {
                // It comes after what was written, and is to find it: the read that brings that is on its way.
                continue;
            }
            let came = follower.cursor;
            let reset = match follower.since {
                Since::Start | Since::Now => None,
                Since::After(token) if token.tag.0 != view.row.tag => Some(Reset::Epoch),
                Since::After(_)
                    if view.lags(came.generation, came.pos) || came.turn > view.row.state.turn_no =>
                {
                    if read < needed {
                        // Another replica has seen more than this one: only a read can tell whether it is so.
                        continue;
                    }
                    Some(Reset::Epoch)
                }
                Since::After(_) if came.generation < view.generation() => Some(Reset::History),
                Since::After(_) if came.pos < view.row.state.trimmed_pos => Some(Reset::Gap),
                Since::After(_) if follower.parts && view.has_open_draft(came) => Some(Reset::Turn),
                Since::After(_) => None,
            };
            let start = Cursor::start_of(view.generation());
            follower.cursor = match (follower.since, reset) {
                (Since::Start, _) | (_, Some(Reset::Epoch | Reset::History)) => start,
                (Since::Now, _) => {
                    let folded = if follower.parts { view.row.turn_folded_to } else { 0 };
                    let turn = if follower.parts { view.row.state.turn_no } else { 0 };
                    Cursor { pos: view.shown(), turn, part: folded, ..start }
                }
                (Since::After(_), _) => came,
            };
            follower.resumed = matches!(follower.since, Since::After(_)) && reset.is_none();
            let rest =
                (follower.resumed || matches!(reset, Some(Reset::Turn | Reset::Gap))).then_some(came.pos);
            follower.step = Step::Snapshot(Greeted { status: view.row.state.status_pos, rest });
            // The token a follower is greeted with is the one it came with: a cut before its history has come
            // must not skip it.
            let token = match (follower.since, reset) {
                (Since::After(token), None | Some(Reset::Turn | Reset::Gap)) => token,
                _ => view.token(follower.cursor),
            };
            let hello = Hello {
                session: self.around.rt.uuid_v4(),
                replica: self.around.replica,
                queue_bytes_max: self.around.limits.queue_bytes_max,
                previous: follower.previous,
            };
            let mut events =
                vec![Event { token, ts, what: What::Hello(hello) }, Event { token, ts, what: view.status() }];
            if let Some(reset) = reset {
                events.push(Event { token, ts, what: What::Reset(reset) });
            }
            let told = follower.tell(now, &events, &view.voice(hint));
            if told != Told::Well {
                cut.push((*id, told));
            }
        }
        self.cut_all(cut);
    }

    /// Tells everybody what is new, and lets those join who have caught up.
    fn tell(&mut self, now: Moment, stream: Uuid) {
        let (ts, hint) = (self.ts(), self.around.cursor());
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let Some(view) = &mut entry.view else { return };
        let mut cut = Vec::new();

        for (parts, crowd) in [(true, &mut entry.with_parts), (false, &mut entry.without)] {
            if crowd.is_empty() {
                continue;
            }
            if crowd.cursor.generation != view.generation() {
                scatter(crowd, &entry.followers, parts, &mut self.followers, &mut entry.apart);
                continue;
            }
            self.events.clear();
            let brought =
                view.bring(&entry.turns, &mut crowd.cursor, Stage::Live, parts, ts, &mut self.events);
            debug_assert_eq!(brought, Brought::UpToDate, "what a crowd lacks is in memory");
            let voice = view.voice(hint);
            for format in Format::ALL {
                if let Some(group) = crowd.group(format).as_mut().filter(|group| !group.is_empty()) {
                    format.frames(&self.events, &voice, |frame| group.fanout(frame));
                }
            }
            for event in &self.events {
                for id in &crowd.channels {
                    let follower = self.followers.get_mut(id).expect("a member of a crowd exists");
                    if let Tap::Channel(channel) = &mut follower.tap {
                        follower.cursor = event.token.cursor;
                        let told = channel.tell(now, event.clone(), true);
                        if told != Told::Well {
                            cut.push((*id, told));
                        }
                    }
                }
            }
        }
        self.cut_all(cut);
        self.bring_stragglers(now, stream, ts);
        if let Some(view) = self.streams.get_mut(&stream).and_then(|entry| entry.view.as_mut()) {
            view.trim();
        }
    }

    fn bring_stragglers(&mut self, now: Moment, stream: Uuid, ts: i64) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let Some(view) = &entry.view else { return };
        let hint = self.around.cursor();
        let mut cut = Vec::new();
        for id in &entry.apart {
            let follower = self.followers.get_mut(id).expect("a follower of an entry exists");
            if matches!(follower.step, Step::Opening { .. }) {
                continue;
            }
            self.events.clear();
            if follower.cursor.generation != view.generation() {
                let known = follower.cursor.pos;
                follower.step = Step::Snapshot(Greeted { status: known, rest: Some(known) });
                follower.cursor = Cursor::start_of(view.generation());
                let token = view.token(follower.cursor);
                self.events.push(Event { token, ts, what: What::Reset(Reset::History) });
            }
            let stage = match follower.step {
                Step::Snapshot(greeted) => Stage::Snapshot(greeted),
                Step::Opening { .. } | Step::Live => Stage::Live,
            };
            let brought = match follower.has_credit() {
                true => view.bring(
                    &entry.turns,
                    &mut follower.cursor,
                    stage,
                    follower.parts,
                    ts,
                    &mut self.events,
                ),
                false => Brought::NeedsHistory,
            };
            if brought == Brought::UpToDate {
                if !follower.told_live {
                    let messages = self.events.iter().filter(|e| matches!(e.what, What::Message(_))).count();
                    let missed = if follower.resumed { follower.missed + messages as u64 } else { 0 };
                    let what = What::Live { resumed: follower.resumed, missed };
                    self.events.push(Event { token: view.token(follower.cursor), ts, what });
                }
                follower.step = Step::Live;
            }
            let mut told = follower.tell(now, &self.events, &view.voice(hint));
            if brought == Brought::UpToDate {
                follower.told_live = true;
                let tip = view.tip(&entry.turns);
                let stands = (follower.cursor.turn, follower.cursor.part) <= (tip.turn, tip.part);
                if view.shown() == view.row.state.pos && (stands || !follower.parts) {
                    let tip = if follower.parts { tip } else { Cursor { turn: 0, part: 0, ..tip } };
                    let crowd = if follower.parts { &mut entry.with_parts } else { &mut entry.without };
                    if told == Told::Well {
                        told = join(*id, follower, crowd, tip, self.around.doors.as_ref());
                    }
                }
            }
            if told != Told::Well {
                cut.push((*id, told));
            }
        }
        entry.apart.retain(|id| !self.followers[id].joined);
        self.cut_all(cut);
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

    fn end_followers_of_closed(&mut self, stream: Uuid) {
        let Some(entry) = self.streams.get(&stream) else { return };
        let Some(view) = &entry.view else { return };
        if view.row.state.closed_pos.is_none() || view.shown() != view.row.state.pos {
            return;
        }
        let done: Vec<FollowerId> =
            entry.followers.iter().filter(|id| self.followers[id].told_live).copied().collect();
        for id in done {
            self.cut(id, Ended::Closed);
        }
    }

    fn read_what_lacks(&mut self, now: Moment, stream: Uuid) {
        let Some(entry) = self.streams.get(&stream) else { return };
        if entry.reading || entry.read_at > now {
            return;
        }
        let Some(view) = &entry.view else {
            let unused = entry.followers.is_empty() && entry.polls.is_empty();
            if unused && entry.held.is_none() && entry.served.is_empty() {
                return;
            }
            // Where the one stands who is furthest back, if it is from here: small streams are read once.
            let stands = |id: &FollowerId| match self.followers[id].since {
                Since::Start => 0,
                Since::After(token) => token.cursor.pos,
                Since::Now => u64::MAX,
            };
            let polled = entry.polls.iter().map(|poll| poll.after.pos);
            let after = entry.followers.iter().map(stands).chain(polled).min().unwrap_or(u64::MAX);
            return self.ask_read(stream, after.min(i64::MAX as u64), None);
        };
        let waits = |id: &&FollowerId| matches!(self.followers[*id].step, Step::Opening { .. });
        if view.lags(entry.hinted.0, entry.hinted.1) || entry.apart.iter().any(|id| waits(&id)) {
            let after = view.shown();
            return self.ask_read(stream, after, None);
        }
        let behind = entry
            .apart
            .iter()
            .map(|id| &self.followers[id])
            .filter(|follower| follower.has_credit() && !view.has_history_after(follower.cursor.pos));
        if let Some(after) = behind.map(|follower| follower.cursor.pos).min() {
            let upto = view.shown();
            self.ask_read(stream, after, Some(upto));
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

/// Everybody in a crowd goes on alone: history was made wrong.
fn scatter(
    crowd: &mut Crowd,
    followers: &[FollowerId],
    parts: bool,
    all: &mut HashMap<FollowerId, Follower, rt::Hasher>,
    apart: &mut Vec<FollowerId>,
) {
    for id in followers {
        let follower = all.get_mut(id).expect("a follower of an entry exists");
        if !follower.joined || follower.parts != parts {
            continue;
        }
        follower.joined = false;
        apart.push(*id);
        follower.cursor = crowd.cursor;
        if let Tap::Link { link, format, .. } = &follower.tap
            && let Some(group) = crowd.group(*format)
        {
            group.leave(link);
        }
    }
    crowd.channels.clear();
}

fn join(
    id: FollowerId,
    follower: &mut Follower,
    crowd: &mut Crowd,
    tip: Cursor,
    doors: Option<&Doors>,
) -> Told {
    debug_assert!(crowd.is_empty() || crowd.cursor == tip, "a crowd stands at the tip");
    match &follower.tap {
        Tap::Channel(_) => crowd.channels.push(id),
        Tap::Link { link, format, .. } => {
            // A link without doors cannot be: whoever made it has them.
            let Some(doors) = doors else { return Told::Gone };
            crowd.group(*format).get_or_insert_with(|| doors.group()).join(link);
        }
    }
    crowd.cursor = tip;
    follower.cursor = tip;
    follower.joined = true;
    Told::Well
}

/// Brings an answer home. Its place in the inbox is reserved: there is at most one for each question.
fn answered(inbox: &Inbox<Message>, message: Message) {
    // Ended: nobody waits for it any more.
    if let Err(Refused::Full(_)) = inbox.control(message) {
        log::error!("the streams room has no place for the answer to its own question");
    }
}

impl Room for StreamsRoom {
    type Message = Message;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Message>) {
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
