//! What a room is told, and what it answers.

use std::sync::Arc;

use uuid::Uuid;

use crate::bus::StreamNotice;
use crate::engine::streams::errand::Errand;
use crate::engine::streams::event::Ended;
use crate::engine::streams::follower::{FollowerId, Format, Since, Tap};
use crate::engine::streams::slow::Who;
use crate::engine::streams::{FollowOptions, Guest, StreamError, writes};
use crate::engine::visits::Visit;
use crate::rt::{self, Cancel, Moment, Wall};
use crate::state::stream::LeaseHash;
use crate::store::StoreError;
use crate::store::streams::{Change, Draft, End, Fence, Held, MessageRow, StreamRow};
use crate::wire::{Closing, LinkBatch, LinkHandle};

use super::reads::Answer;
use super::uses::Poll;

/// What the room is told. Large things are boxed: an inbox has a place for each message it may ever hold, as large
/// as the largest of them.
pub(in crate::engine::streams) enum Message {
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
    /// Somebody wants to know how a stream stands, nothing if that has to be read, and may follow it then.
    Stands(Uuid, Box<dyn FnOnce(Option<StreamRow>) -> Option<Newcomer> + Send>),
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
pub(crate) struct Newcomer {
    pub(in crate::engine::streams) id: FollowerId,
    pub(in crate::engine::streams) stream: Uuid,
    pub(in crate::engine::streams) since: Since,
    pub(in crate::engine::streams) parts: bool,
    pub(in crate::engine::streams) tap: Tap,
    pub(in crate::engine::streams) who: Option<Who>,
    pub(in crate::engine::streams) visit: Visit,
}

impl Newcomer {
    pub(in crate::engine::streams) fn new(
        id: FollowerId,
        stream: Uuid,
        options: FollowOptions,
        tap: Tap,
        guest: Guest,
    ) -> Newcomer {
        let FollowOptions { since, parts } = options;
        let Guest { visit, who } = guest;
        Newcomer { id, stream, since, parts, tap, who, visit }
    }

    /// Over a link of its own, whose events must reach [`Streams::outlet`](super::super::Streams::outlet) of the
    /// stream under the follower's number.
    pub(crate) fn on_link(
        id: FollowerId,
        stream: Uuid,
        options: FollowOptions,
        link: LinkHandle,
        format: Format,
        guest: Guest,
    ) -> Newcomer {
        Newcomer::new(id, stream, options, Tap::Link { link, format, ends: None }, guest)
    }
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
pub(in crate::engine::streams) struct Begin {
    pub change: Change,
    pub turn: u32,
    pub lease: LeaseHash,
    pub cancel: Cancel,
}

/// Called with what became of it, on the room's thread or a writer's: must not block.
pub type Then<T> = Box<dyn FnOnce(Result<T, StreamError>) + Send>;

/// Parts of a turn.
pub(in crate::engine::streams) struct Parts {
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
pub(in crate::engine::streams) struct Commit {
    pub stream: Uuid,
    pub fence: Fence,
    pub draft: Draft,
    pub key: Option<String>,
    pub then: Then<writes::Written>,
}

/// The end of a turn.
pub(in crate::engine::streams) struct Ending {
    pub stream: Uuid,
    pub fence: Fence,
    pub end: End,
    pub then: Then<()>,
}

/// A sign of life.
pub(in crate::engine::streams) struct Keepalive {
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
pub(in crate::engine::streams) struct ReadTurn {
    pub stream: Uuid,
    pub turn: u32,
    pub after: u32,
    /// Whether to wait until there is something after `after`, or the turn has ended.
    pub wait: bool,
    pub then: Then<TurnRead>,
}

/// Somebody wants to hear when a turn is asked to stop.
pub(in crate::engine::streams) struct CancelOf {
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
