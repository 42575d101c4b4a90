//! A stream that is followed or run here.

use crate::engine::streams::follower::{FollowerId, Format};
use crate::engine::streams::view::View;
use crate::rt::{Cancel, Moment, Wall};
use crate::state::stream::{Cursor, LeaseHash};
use crate::state::turn::Turn;
use crate::store::streams::Fence;
use crate::wire::Group;

use super::message::ReadTurn;
use super::relays::{Mirror, Served};
use super::uses::Poll;

/// A turn that runs here.
pub(super) struct HeldTurn {
    pub(super) turn: u32,
    pub(super) lease: LeaseHash,
    pub(super) cancel: Cancel,
    /// When it was claimed: an older renewal does not know it.
    pub(super) begun: Moment,
    /// When its producer was last heard of.
    pub(super) heard: Moment,
    pub(super) until: Wall,
}

/// Followers that stand at the same place and are told together.
#[derive(Default)]
pub(super) struct Crowd {
    pub(super) cursor: Cursor,
    pub(super) channels: Vec<FollowerId>,
    pub(super) sse: Option<Group>,
    pub(super) ws: Option<Group>,
    pub(super) durable: Option<Group>,
}

impl Crowd {
    pub(super) fn is_empty(&self) -> bool {
        let none = |group: &Option<Group>| group.as_ref().is_none_or(Group::is_empty);
        self.channels.is_empty() && none(&self.sse) && none(&self.ws) && none(&self.durable)
    }

    pub(super) fn group(&mut self, format: Format) -> &mut Option<Group> {
        match format {
            Format::Sse => &mut self.sse,
            Format::Ws => &mut self.ws,
            Format::Durable => &mut self.durable,
        }
    }
}

/// A stream that is followed or run here.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) view: Option<View>,
    /// The newest `(generation, pos)` that was heard of since the last read that asked for what is new
    /// was begun. A hint is spent by a read, so that one that lies costs one read.
    pub(super) hinted: (u32, u64),
    /// What was hinted when the read that is out was begun: it comes back if the read fails.
    pub(super) asked: (u32, u64),
    /// Turns whose parts are here: the current one, and those in their grace.
    pub(super) turns: Vec<Turn>,
    pub(super) held: Option<HeldTurn>,
    /// Those who read a turn and have all there is of it.
    pub(super) readers: Vec<ReadTurn>,
    /// Those who wait for the next message.
    pub(super) polls: Vec<Poll>,
    /// When the stream is next kept from running out, because it is in use.
    pub(super) renew_at: Option<Moment>,
    pub(super) followers: Vec<FollowerId>,
    /// Those of them who stand in no crowd: whatever happens, only these are looked at one by one.
    pub(super) apart: Vec<FollowerId>,
    pub(super) with_parts: Crowd,
    pub(super) without: Crowd,
    /// What brings the parts of a turn that another replica runs.
    pub(super) mirror: Option<Box<Mirror>>,
    /// Other replicas that follow turns here.
    pub(super) served: Vec<Served>,
    /// The number of the last read that was begun, and whether it is still out.
    pub(super) reads: u64,
    pub(super) reading: bool,
    /// After a failed read: not before this.
    pub(super) read_at: Moment,
    pub(super) degraded: bool,
    pub(super) alarm: Option<Moment>,
}

impl Entry {
    pub(super) fn is_idle(&self) -> bool {
        self.followers.is_empty()
            && self.held.is_none()
            && self.turns.is_empty()
            && self.served.is_empty()
            && self.mirror.is_none()
            && self.polls.is_empty()
            && !self.reading
    }

    /// Whether all that was heard of is in the view.
    pub(super) fn is_current(&self) -> bool {
        let asked = if self.reading { self.asked } else { (0, 0) };
        let (generation, pos) = self.hinted.max(asked);
        let has_all = |view: &View| view.is_whole() && !view.lags(generation, pos);
        !self.degraded && self.view.as_ref().is_some_and(has_all)
    }

    pub(super) fn turn(&mut self, number: u32) -> Option<&mut Turn> {
        self.turns.iter_mut().find(|turn| turn.number() == number)
    }

    pub(super) fn holds(&mut self, fence: Fence) -> Option<&mut HeldTurn> {
        self.held.as_mut().filter(|held| held.turn == fence.turn && held.lease == fence.lease)
    }

    /// Those who can have something waiting for them in this process, and some others.
    pub(super) fn by_hand(&self) -> impl Iterator<Item = &FollowerId> {
        self.apart.iter().chain(&self.with_parts.channels).chain(&self.without.channels)
    }

    pub(super) fn crowd(&mut self, parts: bool) -> &mut Crowd {
        if parts { &mut self.with_parts } else { &mut self.without }
    }
}
