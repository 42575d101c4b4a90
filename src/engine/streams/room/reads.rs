//! What is read of the store: because somebody said that there is something new, or because nobody did.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use uuid::Uuid;

use crate::bus::StreamNotice;
use crate::engine::streams::event::{Ended, Event, What};
use crate::engine::streams::follower::{FollowerId, Since, Step, Tap, Told};
use crate::engine::streams::view::View;
use crate::engine::worker::{Inbox, Refused};
use crate::rt::{self, Moment};
use crate::store::StoreError;
use crate::store::streams::{Address, CatchUp, Change, Found, MessageRow, PAGE_BYTES, Page, StreamRow};

use super::message::Message;
use super::{POLL, StreamsRoom};

/// How long to wait after a failed read.
pub(super) const READ_RETRY: Duration = Duration::from_millis(250);
/// A hint that is newer than anything: it causes one read.
pub(super) const LOOK: (u32, u64) = (u32::MAX, u64::MAX);

/// What a read found.
pub(in crate::engine::streams) struct Answer {
    pub(super) no: u64,
    pub(super) after: u64,
    /// Whether it was of history only, up to where everybody else stands.
    pub(super) history: bool,
    pub(super) page: Result<Found<Page>, StoreError>,
}

impl StreamsRoom {
    // What was written, here or elsewhere.

    pub(super) fn written(&mut self, change: Change, message: Option<MessageRow>) {
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

    pub(super) fn noticed(&mut self, notice: StreamNotice) {
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

    pub(super) fn look_again(&mut self, stream: Uuid) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        entry.hinted = LOOK;
        self.touched.push(stream);
    }

    /// Whether everything that anybody writes is told here, and nothing of it was lost.
    pub(super) fn hears_all(&self) -> bool {
        self.around.alone && !self.polling && !self.around.hints_lost.load(Ordering::Acquire)
    }

    /// A stream as it stands, if that is known without a read.
    pub(super) fn stands(&self, stream: Uuid) -> Option<StreamRow> {
        let entry = self.streams.get(&stream).filter(|entry| self.hears_all() && entry.is_current())?;
        let row = &entry.view.as_ref()?.row;
        // What has run out, or may have been given more time, only the store knows.
        row.expires_at.is_none().then(|| row.clone())
    }

    pub(super) fn hints_lost(&mut self, now: Moment) {
        crate::mark!(hints_lost);
        self.poll_at = now;
    }

    pub(super) fn poll(&mut self, now: Moment) {
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

    pub(super) fn polled(&mut self, now: Moment, asked: &[Uuid], answer: Result<Vec<Change>, StoreError>) {
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

    pub(super) fn ask_read(&mut self, stream: Uuid, after: u64, upto: Option<u64>) {
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

    pub(super) fn read(&mut self, now: Moment, stream: Uuid, answer: Answer) {
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
    pub(super) fn tell_page(
        &mut self,
        now: Moment,
        stream: Uuid,
        after: u64,
        upto: u64,
        rows: &[Arc<MessageRow>],
    ) {
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

    pub(super) fn set_degraded(&mut self, now: Moment, stream: Uuid, degraded: bool) {
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

    pub(super) fn read_what_lacks(&mut self, now: Moment, stream: Uuid) {
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
}

/// Brings an answer home. Its place in the inbox is reserved: there is at most one for each question.
fn answered(inbox: &Inbox<Message>, message: Message) {
    // Ended: nobody waits for it any more.
    if let Err(Refused::Full(_)) = inbox.control(message) {
        log::error!("the streams room has no place for the answer to its own question");
    }
}
