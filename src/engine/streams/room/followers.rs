//! Who follows, and what they are told.

use std::collections::HashMap;

use uuid::Uuid;

use crate::engine::streams::StreamError;
use crate::engine::streams::event::{Ended, Event, Hello, Reset, What};
use crate::engine::streams::follower::{Follower, FollowerId, Format, Since, Step, Tap, Told};
use crate::engine::streams::view::{Brought, Greeted, Stage};
use crate::rt::{self, Moment};
use crate::state::stream::Cursor;
use crate::wire::{Closing, Doors, Happened, LinkBatch};

use super::StreamsRoom;
use super::entry::Crowd;
use super::message::Newcomer;

impl StreamsRoom {
    pub(super) fn follow(&mut self, newcomer: Newcomer) {
        let Newcomer { id, stream, since, parts, tap, who, visit } = newcomer;
        // Whoever begins anew has lost nothing by the cut, and may be somebody else.
        let back = matches!(since, Since::After(_)) && self.slow.takes(self.around.rt.now(), stream, who);
        let previous = back.then(|| Ended::Slow.name());
        let hears_all = self.hears_all();
        let entry = self.enter(stream);
        let is_known = hears_all && entry.is_current();
        // Registered before anything is read for it: whatever happens from here on reaches it.
        entry.followers.push(id);
        entry.apart.push(id);
        let (read, count) = (entry.reads + 1, entry.followers.len());
        let cursor = match since {
            Since::Start | Since::Now => Cursor::default(),
            Since::After(token) => token.cursor,
        };
        let step = Step::Opening { read: if is_known { 0 } else { read } };
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

    pub(super) fn unfollow(&mut self, id: FollowerId) {
        let Some(mut follower) = self.followers.remove(&id) else { return };
        // Whoever knows better has said it before.
        follower.visit.end("unfollowed");
        let Some(entry) = self.streams.get_mut(&follower.stream) else { return };
        forget(&mut entry.followers, id);
        if follower.joined {
            let crowd = entry.crowd(follower.parts);
            match &follower.tap {
                Tap::Channel(_) => forget(&mut crowd.channels, id),
                Tap::Link { link, format, .. } => {
                    if let Some(group) = crowd.group(*format) {
                        group.leave(link);
                    }
                }
            }
        } else {
            forget(&mut entry.apart, id);
        }
        self.touched.push(follower.stream);
    }

    pub(super) fn drained(&mut self, now: Moment, id: FollowerId) {
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

    pub(super) fn passed(&mut self, id: FollowerId) {
        if let Some(follower) = self.followers.get_mut(&id) {
            follower.paced = false;
            self.touched.push(follower.stream);
        }
    }

    /// A frame for all was lost on the way to one. How far it came is not known here, but the client has the
    /// token of what it got last.
    pub(super) fn lost(&mut self, id: FollowerId) {
        self.leave_group(id);
        self.cut(id, Ended::Slow);
    }

    pub(super) fn links(&mut self, now: Moment, batch: LinkBatch) {
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
    pub(super) fn say_if_slow(&mut self, id: FollowerId, code: u16) {
        use crate::wire::websocket::close::{SLOW, TRY_AGAIN};
        let Some(follower) = self.followers.get(&id).filter(|_| matches!(code, SLOW | TRY_AGAIN)) else {
            return;
        };
        self.slow.note(self.around.rt.now(), follower.stream, follower.who);
        let view = self.streams.get(&follower.stream).and_then(|entry| entry.view.as_ref());
        let name = view.map_or("", |view| view.row.name.as_str());
        log::info!("follower ended stream={name} reason={}", Ended::Slow.name());
    }

    pub(super) fn link_gone(&mut self, id: FollowerId, why: &Closing) {
        self.say_if_slow(id, why.code);
        self.leave_group(id);
        if let Some(follower) = self.followers.get_mut(&id) {
            follower.visit.end(&why.reason);
        }
        self.unfollow(id);
    }

    /// The link has left its group by itself: it is counted out, not taken out.
    pub(super) fn leave_group(&mut self, id: FollowerId) {
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
    pub(super) fn cut(&mut self, id: FollowerId, why: Ended) {
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

    pub(super) fn close_stream(&mut self, stream: Uuid, why: Ended) {
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

    pub(super) fn cut_all(&mut self, cut: Vec<(FollowerId, Told)>) {
        for (id, told) in cut {
            match told {
                Told::Slow => self.cut(id, Ended::Slow),
                Told::Gone | Told::Well => self.unfollow(id),
            }
        }
    }

    // Bringing followers to where the view stands.

    /// Decides on the tokens of those who wait for it. `read` is the last read that has answered.
    pub(super) fn open_newcomers(&mut self, now: Moment, stream: Uuid, read: u64) {
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
    pub(super) fn tell(&mut self, now: Moment, stream: Uuid) {
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

    pub(super) fn bring_stragglers(&mut self, now: Moment, stream: Uuid, ts: i64) {
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

    pub(super) fn end_followers_of_closed(&mut self, stream: Uuid) {
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

/// Takes one out of many that stand in no order.
fn forget(all: &mut Vec<FollowerId>, one: FollowerId) {
    if let Some(at) = all.iter().position(|other| *other == one) {
        all.swap_remove(at);
    }
}
