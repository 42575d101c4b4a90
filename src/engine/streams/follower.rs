//! A follower as the room holds it: where it stands, and how it is reached.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::codec::sse;
use crate::codec::token::Token;
use crate::rt::{Moment, Sender, TrySendError};
use crate::state::stream::{Cursor, Fold};
use crate::store::streams::StreamRow;
use crate::wire::websocket::close;
use crate::wire::{Frame, LinkHandle};

use super::super::visits::Visit;
use super::durable;
use super::event::{Ended, Event, Reset, What, is_text};
use super::slow::Who;
use super::view::Greeted;

/// How many bytes may wait for a follower before it is cut, by default: 1 MiB.
pub const QUEUE_BYTES_MAX: usize = 1 << 20;
/// How long the oldest of them may wait: 10 s.
pub const QUEUE_WAIT_MAX: Duration = Duration::from_secs(10);
/// One that has more than a quarter of its bound waiting gets parts and the message that stands for them as
/// the message alone.
const MERGE_ABOVE: usize = 4;
/// How often a follower that has not said that it has room again is looked at.
const RETRY: Duration = Duration::from_millis(20);

/// A number given to each follower of a room.
pub type FollowerId = u64;

/// Where somebody wants to follow from.
///
/// ```
/// use towpath::{FollowOptions, Since};
///
/// let options = FollowOptions { since: Since::Now, ..FollowOptions::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// From the first message.
    Start,
    /// From what happens next. The message that is being produced is what happens next.
    Now,
    /// From where it stood.
    After(Token),
}

/// The text format of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Server-sent events.
    Sse,
    /// WebSocket text.
    Ws,
    /// Server-sent events as the Durable Streams protocol has them: messages and nothing else.
    Durable,
}

impl Format {
    /// Every format.
    pub(super) const ALL: [Format; 3] = [Format::Sse, Format::Ws, Format::Durable];

    /// Events as frames of this format; those it does not speak of are left out.
    pub(super) fn frames(self, events: &[Event], voice: &Voice<'_>, mut send: impl FnMut(Frame)) {
        match self {
            Format::Ws => events.iter().for_each(|event| send(Frame::text(&voice.json(event)))),
            Format::Sse => {
                let mut bytes = Vec::new();
                for event in events {
                    let (id, json) = (event.token.to_string(), voice.json(event));
                    let name = Some(event.what.name());
                    sse::Event { event: name, id: Some(&id), data: &json, retry: None }.write(&mut bytes);
                    if bytes.len() >= CHUNK_BYTES {
                        send(Frame::chunk(&std::mem::take(&mut bytes)));
                    }
                }
                if !bytes.is_empty() {
                    send(Frame::chunk(&bytes));
                }
            }
            Format::Durable => {
                for share in shares(events) {
                    if let Some(bytes) = durable::say(share, voice) {
                        send(Frame::chunk(&bytes));
                    }
                }
            }
        }
    }
}

/// Events in order, so many at a time that what they carry stays about [`CHUNK_BYTES`].
fn shares(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    let carries = |event: &Event| match &event.what {
        What::Message(row) => row.content.len(),
        What::Part { part, .. } => part.len(),
        _ => 0,
    };
    let mut bytes = 0;
    events.split_inclusive(move |event| {
        bytes += carries(event);
        let full = bytes >= CHUNK_BYTES;
        if full {
            bytes = 0;
        }
        full
    })
}

/// When a chunk of events is long enough. A follower's bound is kept frame by frame: everything of a burst in
/// one frame would pass it whole, however long, whenever the queue happens to be empty.
const CHUNK_BYTES: usize = 64 * 1024;

/// What events are written with besides themselves: the stream they are of.
pub(super) struct Voice<'a> {
    /// The stream as it was last read.
    pub(super) row: &'a StreamRow,
    /// Up to where everything of it is known.
    pub(super) shown: u64,
    /// What a Durable Streams reader is to send along when it comes back.
    pub(super) cursor: u64,
}

impl Voice<'_> {
    fn json(&self, event: &Event) -> String {
        event.to_json(&self.row.name, is_text(&self.row.content_type))
    }
}

/// How a follower is reached.
#[derive(Debug)]
pub(super) enum Tap {
    /// A thread of this process.
    Channel(Channel),
    /// A peer over the network.
    Link {
        /// The way to it.
        link: LinkHandle,
        /// What it reads.
        format: Format,
        /// Set where the link is not the follow's alone.
        ends: Option<Ends>,
    },
}

/// Who hears that a follow has ended whose link goes on: which, why, and whether its peer was told.
#[derive(Clone)]
pub struct Ends(pub(super) Arc<dyn Fn(FollowerId, Ended, bool) + Send + Sync>);

impl Ends {
    /// Calls this on the room's thread: it must not block.
    pub fn new(hear: impl Fn(FollowerId, Ended, bool) + Send + Sync + 'static) -> Ends {
        Ends(Arc::new(hear))
    }
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ends")
    }
}

/// Who follows in this process, as its room reaches it: called on the room's thread, where nothing may wait.
pub(crate) trait Listener: Send {
    /// Takes an event, or gives it back: there is no room now, or nobody any more.
    fn tell(&mut self, event: Event) -> Result<(), TrySendError<Event>>;
    /// The follow has ended, and there was no room to say so.
    fn untold(&mut self, why: Ended);
}

impl Listener for Sender<Event> {
    fn tell(&mut self, event: Event) -> Result<(), TrySendError<Event>> {
        self.try_send(event)
    }

    /// Whoever reads finds out when it has taken what is there, and asks [`News`].
    fn untold(&mut self, _: Ended) {}
}

/// A follower in this process: whom to tell, and what did not fit.
pub(super) struct Channel {
    events: Box<dyn Listener>,
    backlog: VecDeque<Event>,
    bytes: usize,
    bytes_max: usize,
    since: Moment,
    news: Arc<News>,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel({} waiting)", self.backlog.len())
    }
}

/// What a follower and its room know of each other besides events.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Why the follow ended: one more than its place in [`Ended::ALL`].
    ended: AtomicU8,
    /// Set while something waits for room in the channel.
    behind: AtomicBool,
}

impl News {
    fn set(&self, why: Ended) {
        self.ended
            .store(1 + Ended::ALL.iter().position(|one| *one == why).unwrap_or(0) as u8, Ordering::Release);
    }

    /// Whether the room waits to be told that there is room. It is asked once.
    pub(super) fn takes_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed) && self.behind.swap(false, Ordering::AcqRel)
    }

    /// Why the follow ended; `Stopped` if nobody said.
    pub(super) fn ended(&self) -> Ended {
        let at = usize::from(self.ended.load(Ordering::Acquire));
        at.checked_sub(1).and_then(|at| Ended::ALL.get(at)).copied().unwrap_or(Ended::Stopped)
    }
}

/// What became of telling a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It has it, or will have it soon.
    Well,
    /// It is gone.
    Gone,
    /// It does not keep up.
    Slow,
}

impl Channel {
    /// A follower that is told so.
    pub(super) fn new(events: Box<dyn Listener>, bytes_max: usize, news: Arc<News>) -> Channel {
        Channel { events, backlog: VecDeque::new(), bytes: 0, bytes_max, since: Moment::ZERO, news }
    }

    /// Tells it, at once or as soon as there is room. History does not count against its bound: the room
    /// sends the next page when this one was taken.
    pub(super) fn tell(&mut self, now: Moment, event: Event, counts: bool) -> Told {
        if self.backlog.is_empty() {
            match self.events.tell(event) {
                Ok(()) => return Told::Well,
                Err(TrySendError::Disconnected(_)) => return Told::Gone,
                // Kept here, up to the bound: the room waits for nobody.
                Err(TrySendError::Full(event)) => self.keep(now, event),
            }
        } else {
            self.keep(now, event);
        }
        if counts && self.bytes > self.bytes_max { Told::Slow } else { Told::Well }
    }

    fn keep(&mut self, now: Moment, event: Event) {
        if self.backlog.is_empty() {
            self.since = now;
        }
        self.bytes += event.what.weight();
        if self.bytes > self.bytes_max / MERGE_ABOVE
            && let What::Message(row) = &event.what
            && let Some(fold) = row.fold
        {
            self.fold(fold);
        }
        self.backlog.push_back(event);
        self.news.behind.store(true, Ordering::Release);
    }

    /// A message that comes behind its own parts stands for them: those that still wait are not told, as they
    /// are not told to who comes back. What has left is what the message replaces.
    fn fold(&mut self, fold: Fold) {
        let bytes = &mut self.bytes;
        self.backlog.retain(|event| {
            let stays =
                !matches!(event.what, What::Part { turn, n, .. } if turn == fold.turn && n <= fold.upto);
            if !stays {
                *bytes -= event.what.weight();
            }
            stays
        });
    }

    /// Hands over what waits, as far as there is room now.
    pub(super) fn drain(&mut self, now: Moment) -> Told {
        while let Some(event) = self.backlog.pop_front() {
            let weight = event.what.weight();
            match self.events.tell(event) {
                Ok(()) => {
                    self.bytes -= weight;
                    self.since = now;
                }
                Err(TrySendError::Disconnected(_)) => return Told::Gone,
                Err(TrySendError::Full(event)) => {
                    self.backlog.push_front(event);
                    self.news.behind.store(true, Ordering::Release);
                    break;
                }
            }
        }
        let waits = !self.backlog.is_empty();
        if waits && now.since(self.since) >= QUEUE_WAIT_MAX { Told::Slow } else { Told::Well }
    }

    /// Whether something waits for room.
    pub(super) fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// When to look at it again.
    pub(super) fn deadline(&self, now: Moment) -> Option<Moment> {
        self.is_behind().then(|| (now + RETRY).min(self.since + QUEUE_WAIT_MAX))
    }

    /// It ends. If there is no room for the last event it finds out when it has taken what is there.
    fn end(&mut self, why: Ended, event: Option<&Event>) {
        self.news.set(why);
        let told = match (self.backlog.is_empty(), event) {
            (true, Some(event)) => self.events.tell(event.clone()).is_ok(),
            _ => false,
        };
        if !told {
            self.events.untold(why);
        }
    }
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It waits for a read that says whether its token is good.
    Opening {
        /// The first read that can tell.
        read: u64,
    },
    /// It gets its snapshot.
    Snapshot(Greeted),
    /// It is live.
    Live,
}

/// A follower.
#[derive(Debug)]
pub(super) struct Follower {
    /// The stream.
    pub(super) stream: Uuid,
    /// Where it came from.
    pub(super) since: Since,
    /// Whether it wants parts.
    pub(super) parts: bool,
    /// Where it stands; while it has joined, where it stood when it did.
    pub(super) cursor: Cursor,
    /// How far it is.
    pub(super) step: Step,
    /// Whether it has everything that all others have: then it is told with them.
    pub(super) joined: bool,
    /// Whether it waits until a page of history has left.
    pub(super) paced: bool,
    /// Whether it was told `live`.
    pub(super) told_live: bool,
    /// Whether it went on from its token.
    pub(super) resumed: bool,
    /// How many messages its snapshot had.
    pub(super) missed: u64,
    /// Who follows, if that is known.
    pub(super) who: Option<Who>,
    /// Why an earlier follow of the same client was cut.
    pub(super) previous: Option<&'static str>,
    /// How it is reached.
    pub(super) tap: Tap,
    /// Its place in the connection log.
    pub(super) visit: Visit,
}

impl Follower {
    /// Whether more history may be sent to it.
    pub(super) fn has_credit(&self) -> bool {
        !self.paced && !matches!(&self.tap, Tap::Channel(channel) if channel.is_behind())
    }

    /// Tells it alone. History is paced by the room, everything else counts against its bound.
    pub(super) fn tell(&mut self, now: Moment, events: &[Event], voice: &Voice<'_>) -> Told {
        let counts = self.told_live;
        match &mut self.tap {
            Tap::Channel(channel) => {
                let mut told = Told::Well;
                for event in events {
                    told = channel.tell(now, event.clone(), counts);
                    if told != Told::Well {
                        break;
                    }
                }
                told
            }
            Tap::Link { link, format, .. } => {
                let unsaid = |event: &Event| {
                    matches!(event.what, What::Reset(Reset::History | Reset::Epoch | Reset::Gap))
                };
                if *format == Format::Durable && events.iter().any(unsaid) {
                    // The protocol has no word for it: the reader comes back and hears 410.
                    link.close(CLOSE_NORMAL, "history");
                    return Told::Gone;
                }
                let send = |frame| if counts { link.send(frame) } else { link.send_paced(frame) };
                format.frames(events, voice, send);
                Told::Well
            }
        }
    }

    /// Ends it. `event` is the last one it gets, if it is known where it stands.
    pub(super) fn end(&mut self, id: FollowerId, why: Ended, event: Option<(&Event, &Voice<'_>)>) {
        match &mut self.tap {
            Tap::Channel(channel) => channel.end(why, event.map(|(event, _)| event)),
            Tap::Link { link, format, ends } => {
                if let Some((event, voice)) = event {
                    format.frames(std::slice::from_ref(event), voice, |frame| link.send(frame));
                }
                // A link that does not keep up, or whose engine stops, goes with all that it carries.
                if let Some(Ends(hear)) = ends
                    && !matches!(why, Ended::Slow | Ended::Stopped)
                {
                    return hear(id, why, event.is_some());
                }
                let code = match why {
                    Ended::Slow => CLOSE_SLOW,
                    Ended::Auth => close::EXPIRED,
                    Ended::Full => close::TRY_AGAIN,
                    Ended::Closed | Ended::Deleted | Ended::Expired | Ended::Stopped => CLOSE_NORMAL,
                };
                link.close(code, why.name());
            }
        }
    }
}

/// A WebSocket whose reader does not keep up is closed with this.
const CLOSE_SLOW: u16 = 4008;
/// The end of what there was to say.
const CLOSE_NORMAL: u16 = 1000;
