//! What this replica knows of a stream that somebody follows or runs here, and what a follower lacks.
//!
//! Events are never made from notices: they are the difference between a follower's [`Cursor`] and the
//! view, and the view holds what the store said. One function, [`View::bring`], makes them all, for a
//! follower that arrives and for those that are live.
//!
//! Invariant: `recent` holds every message after `recent_from` up to `shown` that was not removed, in order; `shown <= row.state.pos`; `shown` only rises within a generation.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::codec::token::{Tag, Token};
use crate::state::stream::{Cursor, Fold};
use crate::state::turn::Turn;
use crate::store::streams::{Change, MessageRow, Page, QueuedRow, StreamRow};

use super::event::{Event, Reset, What};
use super::follower::Voice;

/// How much of the latest history is kept in memory, so that who comes back soon costs no read.
const RECENT_BYTES_MAX: usize = 64 * 1024;

/// A stream as it was last read. See the [module](self).
#[derive(Debug)]
pub(super) struct View {
    pub(super) row: StreamRow,
    queue: Arc<[QueuedRow]>,
    recent: VecDeque<Arc<MessageRow>>,
    recent_bytes: usize,
    recent_from: u64,
    shown: u64,
    /// The last fold of the turn before: what of an older draft is in a message.
    older_fold: Option<Fold>,
}

/// What a follower knew when its snapshot began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeted {
    /// It was told the status as of this position.
    pub(super) status: u64,
    /// It knows the queue and the error as of this position; a new follower knows of none.
    pub(super) rest: Option<u64>,
}

/// Which kind of follower events are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is getting its snapshot.
    Snapshot(Greeted),
    /// It is live.
    Live,
}

/// What became of bringing a follower up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    /// It has everything there is.
    UpToDate,
    /// It lacks messages that are not in memory: read them.
    NeedsHistory,
}

impl View {
    /// A view of what the first read found, which asked for messages after `after`.
    pub(super) fn new(after: u64, page: Page) -> View {
        let Page { stream: row, queue, messages, upto, more } = page;
        let mut view = View {
            row,
            queue: queue.into(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_from: upto,
            shown: upto,
            older_fold: None,
        };
        if !more && after < upto {
            (view.recent_from, view.shown) = (after, after);
            for message in messages {
                view.remember(Arc::new(message));
            }
            view.shown = upto;
        }
        view
    }

    /// Up to where everything is known.
    pub(super) fn shown(&self) -> u64 {
        self.shown
    }

    /// The generation everything is known of.
    pub(super) fn generation(&self) -> u32 {
        self.row.state.generation
    }

    /// Whether the store is known to have more than what is here.
    pub(super) fn lags(&self, generation: u32, pos: u64) -> bool {
        (generation, pos) > (self.row.state.generation, self.shown)
    }

    /// Whether nothing of the stream as it was read last is still to be read.
    pub(super) fn is_whole(&self) -> bool {
        self.shown >= self.row.state.pos
    }

    /// The parts of the turn the stream is in, or was in last.
    fn current<'a>(&self, turns: &'a [Turn]) -> Option<&'a Turn> {
        turns.iter().find(|turn| turn.number() == self.row.state.turn_no)
    }

    fn tag(&self) -> Tag {
        Tag(self.row.tag)
    }

    /// The token of a follower of this stream.
    pub(super) fn token(&self, cursor: Cursor) -> Token {
        Token { tag: self.tag(), cursor }
    }

    /// Where a follower stands that has seen everything.
    pub(super) fn tip(&self, turns: &[Turn]) -> Cursor {
        let (turn, part) = match self.current(turns) {
            Some(turn) => (turn.number(), turn.last()),
            None => (self.row.state.turn_no, self.row.turn_folded_to),
        };
        Cursor { generation: self.generation(), pos: self.shown, turn, part }
    }

    /// Takes a page that was read after `shown`. Older pages change nothing.
    pub(super) fn apply(&mut self, page: Page) {
        let new = &page.stream.state;
        let old = &self.row.state;
        if (new.generation, new.pos) < (old.generation, old.pos) {
            return;
        }
        if new.generation != old.generation {
            // Everything is read again, by who needs it.
            let upto = new.pos;
            self.settle_turn(new.turn_no);
            self.set_row(page.stream, page.queue);
            self.recent.clear();
            self.recent_bytes = 0;
            (self.recent_from, self.shown) = (upto, upto);
            return;
        }
        self.settle_turn(new.turn_no);
        let upto = if page.more { page.messages.last().map_or(self.shown, |row| row.pos) } else { page.upto };
        for message in page.messages {
            self.remember(Arc::new(message));
        }
        self.set_row(page.stream, page.queue);
        self.shown = self.shown.max(upto);
    }

    /// Takes a message that was just written, if it is the next change. False asks for a read.
    pub(super) fn apply_written(&mut self, change: &Change, message: MessageRow) -> bool {
        let next = self.shown + 1;
        let fits = self.shown == self.row.state.pos
            && change.state.generation == self.generation()
            && change.state.pos == next
            && message.pos == next
            && change.state.turn_no == self.row.state.turn_no;
        if fits {
            if let Some(fold) = message.fold
                && fold.turn == change.state.turn_no
            {
                self.row.turn_folded_to = self.row.turn_folded_to.max(fold.upto);
            }
            self.remember(Arc::new(message));
            self.row.state = change.state.clone();
            self.shown = next;
        }
        fits
    }

    /// Takes a change of the row alone (its status, its error) that was just written, if nothing that has
    /// to be read lies between what is known and it. Without this the parts of a turn that has just begun
    /// would wait for a read, and a turn as short as that read would be told as its message alone.
    pub(super) fn apply_state(&mut self, change: &Change) {
        let (new, old) = (&change.state, &self.row.state);
        let fits = self.shown == old.pos
            && new.pos > old.pos
            && new.generation == old.generation
            && new.history_pos == old.history_pos
            && new.queue_pos == old.queue_pos;
        if fits {
            self.settle_turn(new.turn_no);
            if new.turn_no != self.row.state.turn_no {
                self.row.turn_folded_to = 0;
            }
            self.row.state = new.clone();
            self.shown = new.pos;
        }
    }

    fn set_row(&mut self, row: StreamRow, queue: Vec<QueuedRow>) {
        if row.state.queue_pos != self.row.state.queue_pos {
            self.queue = queue.into();
        }
        self.row = row;
    }

    /// A newer turn than `turn_no` is the current one: what is known of the draft before it is kept.
    fn settle_turn(&mut self, turn_no: u32) {
        if turn_no != self.row.state.turn_no {
            self.older_fold = Some(Fold { turn: self.row.state.turn_no, upto: self.row.turn_folded_to });
        }
    }

    fn remember(&mut self, message: Arc<MessageRow>) {
        if message.pos <= self.shown {
            return;
        }
        if let Some(fold) = message.fold
            && let Some(older) = &mut self.older_fold
            && (fold.turn, fold.upto) > (older.turn, older.upto)
            && fold.turn <= self.row.state.turn_no
        {
            *older = fold;
        }
        self.recent_bytes += message.content.len();
        self.recent.push_back(message);
    }

    /// Makes room. Call it once everybody who is live was brought here.
    pub(super) fn trim(&mut self) {
        while self.recent_bytes > RECENT_BYTES_MAX {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest.content.len();
            self.recent_from = oldest.pos;
        }
    }

    /// What events of this stream are written with.
    pub(super) fn voice(&self, cursor: u64) -> Voice<'_> {
        Voice { row: &self.row, shown: self.shown, cursor }
    }

    /// Every message after `pos`, if they are in memory.
    pub(super) fn recent_after(&self, pos: u64) -> Option<Vec<Arc<MessageRow>>> {
        self.has_history_after(pos).then(|| self.after(pos).cloned().collect())
    }

    /// What is in memory of what comes after `pos`.
    fn after(&self, pos: u64) -> impl Iterator<Item = &Arc<MessageRow>> {
        self.recent.range(self.recent.partition_point(|row| row.pos <= pos)..)
    }

    /// Whether every message after `pos` is in memory.
    pub(super) fn has_history_after(&self, pos: u64) -> bool {
        pos >= self.recent_from
    }

    /// Brings a cursor to where the view stands and appends the events that takes. `parts` says whether
    /// the follower wants parts.
    pub(super) fn bring(
        &self,
        turns: &[Turn],
        cursor: &mut Cursor,
        stage: Stage,
        parts: bool,
        ts: i64,
        out: &mut Vec<Event>,
    ) -> Brought {
        if !self.has_history_after(cursor.pos) {
            return Brought::NeedsHistory;
        }
        let messages = self.after(cursor.pos);
        match stage {
            Stage::Snapshot(greeted) => {
                for row in messages {
                    self.tell_message(row, cursor, parts, out);
                }
                cursor.pos = self.shown;
                self.tell_rest_of_snapshot(greeted, *cursor, ts, out);
            }
            Stage::Live => self.tell_changes(messages, cursor, parts, ts, out),
        }
        if let Some(turn) = self.current(turns).filter(|_| parts && self.shown == self.row.state.pos) {
            self.tell_parts(turn, cursor, stage, ts, out);
        }
        Brought::UpToDate
    }

    /// Tells a page of history that was read for somebody who is further back than `recent`.
    pub(super) fn tell_page(
        &self,
        page: &[Arc<MessageRow>],
        cursor: &mut Cursor,
        parts: bool,
        out: &mut Vec<Event>,
    ) {
        let from = cursor.pos;
        for row in page.iter().filter(|row| row.pos > from) {
            self.tell_message(row, cursor, parts, out);
        }
    }

    fn tell_message(&self, row: &Arc<MessageRow>, cursor: &mut Cursor, parts: bool, out: &mut Vec<Event>) {
        // Who wants no parts keeps a cursor without them, so that it gets them when it comes back for them.
        cursor.pass_message(row.pos, row.fold.filter(|_| parts));
        let token = self.token(*cursor);
        let ts = row.at.as_millis();
        out.push(Event { token, ts, what: What::Message(row.clone()) });
        if let Some(fold) = row.fold {
            out.push(Event { token, ts, what: What::Commit { turn: fold.turn, id: row.id } });
        }
    }

    /// The status as it stands.
    pub(super) fn status(&self) -> What {
        let status = &self.row.state.status;
        let runs = status.run().is_some();
        What::Status {
            status: status.name(),
            worker: status.worker(),
            turn: runs.then_some(self.row.state.turn_no),
        }
    }

    fn tell_rest_of_snapshot(&self, greeted: Greeted, cursor: Cursor, ts: i64, out: &mut Vec<Event>) {
        let state = &self.row.state;
        let token = self.token(cursor);
        let mut tell = |what| out.push(Event { token, ts, what });
        // It changed while history was read.
        if state.status_pos > greeted.status {
            tell(self.status());
        }
        // Who knew of a queue or an error hears that it is empty now.
        let changed = |pos| greeted.rest.is_some_and(|known| pos > known);
        if !self.queue.is_empty() || changed(state.queue_pos) {
            tell(What::Queue(self.queue.clone()));
        }
        if state.error.is_some() || changed(state.error_pos) {
            tell(What::Error(state.error.clone()));
        }
    }

    fn tell_changes<'a>(
        &self,
        messages: impl Iterator<Item = &'a Arc<MessageRow>>,
        cursor: &mut Cursor,
        parts: bool,
        ts: i64,
        out: &mut Vec<Event>,
    ) {
        let state = &self.row.state;
        let from = cursor.pos;
        let mut others: Vec<(u64, What)> = Vec::new();
        if parts && state.turn_begun_pos > from && self.has_open_draft(*cursor) {
            others.push((state.turn_begun_pos, What::Reset(Reset::Turn)));
        }
        if state.status_pos > from {
            others.push((state.status_pos, self.status()));
        }
        if state.queue_pos > from {
            others.push((state.queue_pos, What::Queue(self.queue.clone())));
        }
        if state.error_pos > from {
            others.push((state.error_pos, What::Error(state.error.clone())));
        }
        others.retain(|(pos, _)| *pos <= self.shown);
        others.sort_by_key(|(pos, _)| *pos); // stable: the reset stands before the status of its turn
        let mut others = others.into_iter().peekable();
        for row in messages {
            while let Some((pos, what)) = others.next_if(|(pos, _)| *pos < row.pos) {
                self.tell_other(pos, what, cursor, ts, out);
            }
            self.tell_message(row, cursor, parts, out);
        }
        for (pos, what) in others {
            self.tell_other(pos, what, cursor, ts, out);
        }
        cursor.pos = self.shown;
    }

    fn tell_other(&self, pos: u64, what: What, cursor: &mut Cursor, ts: i64, out: &mut Vec<Event>) {
        cursor.pos = cursor.pos.max(pos);
        out.push(Event { token: self.token(*cursor), ts, what });
    }

    /// Whether a follower holds parts of an older turn that are not known to be in a message.
    pub(super) fn has_open_draft(&self, cursor: Cursor) -> bool {
        let state = &self.row.state;
        let folded = match self.older_fold {
            Some(fold) if fold.turn == cursor.turn => fold.upto,
            _ => 0,
        };
        cursor.turn < state.turn_no && cursor.part > folded
    }

    fn tell_parts(&self, turn: &Turn, cursor: &mut Cursor, stage: Stage, ts: i64, out: &mut Vec<Event>) {
        let knows_turn = cursor.turn == turn.number();
        // A message of the turn that the snapshot had does not make a newcomer know its draft.
        let is_new = matches!(stage, Stage::Snapshot(greeted) if !knows_turn || greeted.rest.is_none());
        if turn.is_closed() && is_new {
            // The draft of a turn that has ended is nothing to begin with.
            return;
        }
        let seen = if knows_turn { cursor.part } else { 0 };
        let lack = turn.after(seen.max(turn.folded_to()));
        cursor.pass_part(turn.number(), turn.folded_to());
        if lack.evicted {
            cursor.pass_part(turn.number(), lack.first - 1);
            out.push(Event { token: self.token(*cursor), ts, what: What::Reset(Reset::Gap) });
        }
        for (n, part) in (lack.first..).zip(lack.parts) {
            cursor.pass_part(turn.number(), n);
            let what = What::Part { turn: turn.number(), n, part: part.clone() };
            out.push(Event { token: self.token(*cursor), ts, what });
        }
    }
}
