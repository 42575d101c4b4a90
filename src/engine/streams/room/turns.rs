//! Turns that run here: their parts, their readers, their leases.

use uuid::Uuid;

use crate::engine::streams::StreamError;
use crate::engine::streams::courier::Word;
use crate::engine::streams::errand::Errand;
use crate::engine::worker::Refused;
use crate::rt::{Moment, Wall};
use crate::state::turn::{PartRefused, Turn};
use crate::store::streams::Held;

use super::StreamsRoom;
use super::entry::HeldTurn;
use super::message::{
    Accepted, Alive, Begin, CancelOf, Commit, Ending, Keepalive, Parts, ReadTurn, TurnRead,
};

impl StreamsRoom {
    // Turns that run here.

    pub(super) fn begin(&mut self, now: Moment, begin: Begin) {
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
    pub(super) fn errand(&mut self, now: Moment, errand: Errand, stays: bool) {
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

    pub(super) fn is_for_here(&mut self, errand: &Errand) -> bool {
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
    pub(super) fn elsewhere(&self, errand: Errand, stays: bool) {
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

    pub(super) fn parts(&mut self, now: Moment, parts: Parts) {
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
    pub(super) fn shed(&mut self, budget: usize) {
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

    pub(super) fn commit(&mut self, now: Moment, commit: Commit) {
        let Commit { stream, fence, draft, key, then } = commit;
        let Some(entry) = self.streams.get_mut(&stream) else { return then(Err(StreamError::NotHere)) };
        let Some(held) = entry.holds(fence) else { return then(Err(StreamError::NotHere)) };
        held.heard = now;
        let folded_to = entry.turn(fence.turn).map_or(0, |turn| turn.last());
        self.around.desk.commit(stream, fence, draft, folded_to, key, then);
    }

    pub(super) fn end_turn(&mut self, now: Moment, ending: Ending) {
        let Ending { stream, fence, end, then } = ending;
        let Some(entry) = self.streams.get_mut(&stream) else { return then(Err(StreamError::NotHere)) };
        let Some(held) = entry.holds(fence) else { return then(Err(StreamError::NotHere)) };
        held.heard = now;
        self.around.desk.end(stream, fence, end, then);
    }

    pub(super) fn keepalive(&mut self, now: Moment, keepalive: Keepalive) {
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

    pub(super) fn read_turn(&mut self, read: ReadTurn) {
        let Some(entry) = self.streams.get_mut(&read.stream) else {
            return (read.then)(Err(StreamError::NoTurn { turn: read.turn }));
        };
        self.touched.push(read.stream);
        entry.readers.push(read);
    }

    /// Answers those who read turns, as far as there is something to read.
    pub(super) fn serve_readers(&mut self, stream: Uuid) {
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

    pub(super) fn cancel_of(&mut self, asked: CancelOf) {
        let held = self.streams.get_mut(&asked.stream).and_then(|entry| entry.holds(asked.fence));
        (asked.then)(held.map(|held| held.cancel.clone()).ok_or(StreamError::NotHere));
    }

    /// Claims that were written and whose answer was lost: their leases are renewed with all the others, and
    /// nobody has them. Whoever claimed may ask again under the same key; after as long as a producer may be
    /// silent they are ended like one that went silent.
    pub(super) fn end_orphans(&mut self, held: &[Held], asked: Moment) {
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

    pub(super) fn renewed(&mut self, held: &[Held], asked: Moment) {
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
}
