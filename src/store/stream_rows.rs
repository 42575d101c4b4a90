//! [`StreamStore`] on any [`Database`]: lock the row, ask the rule, write back.
//!
//! Invariant: a stream's row is read under its lock before anything of it is written, and every write
//! of a message, an input, a producer or an answer happens under the same lock, in the same
//! transaction. Locks are taken child before parent (a fork, then its source), so they cannot cross.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::ahead::{Lead, Logged, Waiting, ends, stand, stand_among};
use super::sql::{Arg, Database, Mode, Row, Sql, args, labels_text};
use super::streams::*;
use super::{Identity, Labels, Store, StoreError};
use crate::rt;
use crate::state::stream::{Fold, LeaseHash, OnLost, Outcome, Place, Refused, Run, Status, Stream};
use crate::state::time::Wall;

macro_rules! select_stream {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, content_type, labels, ttl_s, expires_at, tag, \
             gen, pos, history_pos, queue_pos, status_pos, error_pos, trimmed_pos, last_msg, closed_pos, \
             status, on_lost, worker, lease_hash, lease_until, turn_no, turn_begun_pos, turn_closed_at, error, \
             turn_begun_at, turn_folded_to, stream_seq, forked_from, fork_pos, fork_sub, fork_count, \
             keep_age_s, keep_bytes, bytes, oldest_at, last_input, deleted_at, created_at, updated_at, \
             status_at, towpath_now() FROM streams ",
            $rest
        )
    };
}

/// Reads the row or answers for the caller, whose outcome has `Missing` and `Gone`.
macro_rules! here {
    ($sql:expr, $at:expr, $outcome:ident) => {
        match look_up($sql, $at)? {
            Lookup::Here(locked) => locked,
            Lookup::Missing => return Ok($outcome::Missing),
            Lookup::Gone => return Ok($outcome::Gone),
        }
    };
}

mod answers;
mod appending;
mod creation;
mod messages;
mod removal;
mod row;
mod turns;

use self::answers::*;
use self::appending::*;
use self::creation::*;
pub(super) use self::messages::bring;
use self::messages::*;
use self::removal::*;
use self::row::*;
use self::turns::*;

/// How many streams one statement of the poll asks about.
const POLL_IDS: usize = 32;

/// The streams of one database connection.
pub(crate) struct StreamRows<D> {
    db: D,
    identity: Identity,
    /// How plain appends are written ahead of the tables, where they are.
    lead: Option<Lead>,
    group: Group,
}

/// A group of a connection that writes ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// There is none.
    No,
    /// Nothing was asked of the database but reads.
    Ahead,
    /// The database has a group as well.
    Tables,
    /// The database has none, because it could not begin one: nothing of this one stays.
    Failed,
}

impl<D: Database> StreamRows<D> {
    pub(crate) fn new(db: D, identity: Identity, lead: Option<Lead>) -> StreamRows<D> {
        StreamRows { db, identity, lead, group: Group::No }
    }

    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Sql) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Some(lead) = &mut self.lead else { return self.db.transact(Mode::Write, work) };
        match self.group {
            Group::No => lead.hold()?,
            Group::Ahead => {
                self.group = Group::Failed;
                self.db.begin_group()?;
                self.group = Group::Tables;
            }
            Group::Tables => {}
            Group::Failed => return Err(StoreError::retry("undone", "an earlier call of the group failed")),
        }
        let done = self.db.transact(Mode::Write, |sql| {
            bring(sql, &lead.leave())?;
            work(sql)
        });
        if self.group == Group::No {
            lead.ended(done.is_ok());
        }
        done
    }

    /// Brings into the tables what waits, if anything does.
    fn bring_all(&mut self) -> Result<(), StoreError> {
        let Some(lead) = &self.lead else { return Ok(()) };
        let ahead = lead.ahead();
        if !lead.has_staged() && ahead.is_empty() {
            return Ok(());
        }
        if self.group != Group::No {
            return self.write(|_| Ok(()));
        }
        // Others may log meanwhile: what is brought is the same whoever brings it.
        let brought = self.db.transact(Mode::Write, |sql| {
            let waiting = ahead.all();
            bring(sql, &waiting).map(|()| ends(&waiting))
        })?;
        ahead.forget(&brought);
        Ok(())
    }

    /// Before a read: what this group appended has to be where the read looks.
    fn bring_staged(&mut self) -> Result<(), StoreError> {
        match &self.lead {
            Some(lead) if lead.has_staged() => self.write(|_| Ok(())),
            _ => Ok(()),
        }
    }

    /// What waits for a stream; to be asked before its tables are read.
    fn waiting(&mut self, at: &Address) -> Result<Vec<Logged>, StoreError> {
        self.bring_staged()?;
        Ok(self.lead.as_ref().map(|lead| lead.ahead().of(at)).unwrap_or_default())
    }

    /// The same of all streams.
    fn all_waiting(&mut self) -> Result<Waiting, StoreError> {
        self.bring_staged()?;
        Ok(self.lead.as_ref().map(|lead| lead.ahead().all()).unwrap_or_default())
    }

    /// Appends ahead of the tables, where that is possible: none says that it is not.
    fn append_ahead(&mut self, at: &Address, append: &Append) -> Result<Option<Appended>, StoreError> {
        let Some(lead) = self.lead.as_mut().filter(|lead| lead.takes(append)) else { return Ok(None) };
        if !lead.knows(at) {
            let waiting = lead.ahead().of(at);
            match self.db.transact(Mode::Read, |sql| fetch(sql, at))? {
                Some(locked) => lead.learn(locked.row, &waiting),
                None => return Ok(None),
            }
        }
        Ok(lead.append(at, append, is_same_type))
    }

    /// The stream's part of its tokens: another store, another epoch or another stream has another.
    fn tag(&self, stream: Uuid) -> [u8; 4] {
        let hash = Sha256::new()
            .chain_update(self.identity.store.as_bytes())
            .chain_update(self.identity.epoch.as_bytes())
            .chain_update(stream.as_bytes())
            .finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl<D: Database> Store for StreamRows<D> {
    fn ping(&mut self) -> Result<(), StoreError> {
        self.db.ping()
    }
}

impl<D: Database> StreamStore for StreamRows<D> {
    fn create(&mut self, new: &NewStream) -> Result<Created, StoreError> {
        let tag = self.tag(new.id);
        self.write(|sql| {
            let at = Address::Name(new.name.clone());
            // Twice, because another may take the name between the look and the insert.
            for _ in 0..2 {
                if let Some(there) = fetch(sql, &at)? {
                    let expired = there.expired();
                    let row = there.row;
                    if row.deleted {
                        return Ok(Created::Kept);
                    }
                    if !expired {
                        return Ok(match is_as_asked(&row, new) {
                            true => Created::Same(row),
                            false => Created::Differs(row),
                        });
                    }
                    if !delete_row(sql, row)? {
                        return Ok(Created::Kept);
                    }
                }
                let plan = match &new.fork {
                    None => None,
                    Some(fork) => match plan_fork(sql, fork, new.content_type.as_ref())? {
                        Ok(plan) => Some(plan),
                        Err(answer) => return Ok(answer),
                    },
                };
                let now = sql.one("SELECT towpath_now()", &[])?.time()?;
                let mut row = blank(new, tag, plan.as_ref(), now);
                if !insert_stream(sql, &row)? {
                    continue;
                }
                if let Some(plan) = &plan {
                    copy_history(sql, &mut row, plan, now)?;
                }
                for draft in &new.first {
                    let place = row.state.append().expect("a new stream is open");
                    insert_message(sql, &mut row, place, draft, None, now)?;
                }
                if new.closed == Some(true) {
                    row.state.close();
                }
                let expires_at = row.expires_at;
                save(sql, &mut row, now, &Status::Idle)?;
                debug_assert_eq!(expires_at, row.expires_at);
                return Ok(Created::New(row));
            }
            Err(StoreError::retry("busy", format!("stream {} is being made and removed by others", new.name)))
        })
    }

    fn delete(&mut self, at: &Address) -> Result<Deleted, StoreError> {
        self.write(|sql| {
            let Some(there) = fetch(sql, at)? else { return Ok(Deleted::Missing) };
            if there.row.deleted {
                return Ok(Deleted::Already);
            }
            let (id, expired) = (there.row.id, there.expired());
            let gone = delete_row(sql, there.row)?;
            Ok(match (expired, gone) {
                (true, _) => Deleted::Missing,
                (false, true) => Deleted::Gone(id),
                (false, false) => Deleted::Kept(id),
            })
        })
    }

    fn list(&mut self, list: &ListStreams) -> Result<Vec<StreamRow>, StoreError> {
        let all = Status::NAMES;
        let wanted = if list.status.is_empty() { &all[..] } else { &list.status[..] };
        let names: [Option<&str>; 6] = std::array::from_fn(|i| wanted.get(i).copied());
        let labels = labels_text(&list.labels);
        let after = list.after.unwrap_or(Uuid::nil());
        let waiting = self.all_waiting()?;
        self.db.transact(Mode::Single, |sql| {
            sql.query(
                select_stream!(
                    "WHERE id > ?1 AND status IN (?2, ?3, ?4, ?5, ?6, ?7) AND deleted_at IS NULL \
                     AND (expires_at IS NULL OR expires_at > towpath_now()) AND towpath_has(labels, ?8) \
                     ORDER BY id LIMIT ?9"
                ),
                args![
                    after, names[0], names[1], names[2], names[3], names[4], names[5], &*labels, list.limit
                ],
            )?
            .into_iter()
            .map(|row| {
                let mut row = read_stream(row)?.row;
                stand_among(&mut row, &waiting);
                Ok(row)
            })
            .collect()
        })
    }

    fn get(&mut self, at: &Address) -> Result<Found<StreamRow>, StoreError> {
        let waiting = self.waiting(at)?;
        self.db.transact(Mode::Single, |sql| {
            Ok(match peek(sql, at)? {
                Lookup::Here(Locked { mut row, .. }) => {
                    stand(&mut row, &waiting);
                    Found::Here(row)
                }
                Lookup::Missing => Found::Missing,
                Lookup::Gone => Found::Gone,
            })
        })
    }

    fn catch_up(&mut self, at: &Address, read: CatchUp) -> Result<Found<Page>, StoreError> {
        let waiting = self.waiting(at)?;
        self.db.transact(Mode::Read, |sql| catch_up_in(sql, at, read, &waiting))
    }

    fn positions(&mut self, streams: &[Uuid]) -> Result<Vec<Change>, StoreError> {
        let mut changes = Vec::with_capacity(streams.len());
        let waiting = self.all_waiting()?;
        for ids in streams.chunks(POLL_IDS) {
            let mut wanted = [Arg::Null; POLL_IDS];
            for (slot, id) in wanted.iter_mut().zip(ids) {
                *slot = Arg::Id(*id);
            }
            let rows = self.db.transact(Mode::Single, |sql| {
                sql.query(
                    select_stream!(
                        "WHERE deleted_at IS NULL AND (expires_at IS NULL OR expires_at > towpath_now()) AND \
                         id IN (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, \
                         ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32)"
                    ),
                    &wanted,
                )
            })?;
            for row in rows {
                let mut row = read_stream(row)?.row;
                stand_among(&mut row, &waiting);
                changes.push(row.change());
            }
        }
        Ok(changes)
    }

    fn append(&mut self, at: &Address, append: &Append) -> Result<Appended, StoreError> {
        match self.append_ahead(at, append)? {
            Some(appended) => Ok(appended),
            None => self.write(|sql| append_in(sql, at, append)),
        }
    }

    fn edit(&mut self, at: &Address, message: u64, draft: &Draft) -> Result<Edited, StoreError> {
        self.write(|sql| rewrite_in(sql, at, message, Some(draft)))
    }

    fn remove(&mut self, at: &Address, message: u64) -> Result<Edited, StoreError> {
        self.write(|sql| rewrite_in(sql, at, message, None))
    }

    fn push(
        &mut self,
        at: &Address,
        input: &Draft,
        key: Option<&str>,
        most: usize,
    ) -> Result<Queued, StoreError> {
        self.write(|sql| {
            let Locked { mut row, now } = here!(sql, at, Queued);
            if let Some(Answer::Pushed { id }) = recall(sql, row.id, Op::Push, key)? {
                return Ok(Queued::Done { change: row.change(), id, again: true });
            }
            if waiting(sql, row.id)? >= most {
                return Ok(Queued::Full);
            }
            let was = row.state.status;
            if row.state.enqueue().is_err() {
                return Ok(Queued::Closed(row.change()));
            }
            row.last_input += 1;
            let id = row.last_input;
            sql.execute(
                "INSERT INTO queue (stream_id, id, kind, role, content, ts) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                args![row.id, id, kind_number(input.kind), input.role.as_deref(), &*input.content, now],
            )?;
            save(sql, &mut row, now, &was)?;
            remember(sql, row.id, Op::Push, key, &Answer::Pushed { id })?;
            Ok(Queued::Done { change: row.change(), id, again: false })
        })
    }

    fn withdraw(&mut self, at: &Address, input: u64) -> Result<Dequeued, StoreError> {
        self.write(|sql| {
            let Locked { mut row, now } = here!(sql, at, Dequeued);
            let gone =
                sql.execute("DELETE FROM queue WHERE stream_id = ?1 AND id = ?2", args![row.id, input])?;
            if gone == 0 {
                return Ok(Dequeued::NoInput);
            }
            let was = row.state.status;
            let left = waiting(sql, row.id)?;
            row.state.dequeue(left);
            save(sql, &mut row, now, &was)?;
            Ok(Dequeued::Done(row.change()))
        })
    }

    fn claim(&mut self, at: &Address, claim: &Claim) -> Result<Claimed, StoreError> {
        self.write(|sql| {
            let locked = here!(sql, at, Claimed);
            let scope = locked.row.id;
            let key = claim.key.as_deref();
            if let (Some(answer), Some(key)) = (recall(sql, scope, Op::Claim, key)?, key)
                && let Some(claimed) = claimed_again(&locked.row, key, answer)
            {
                return Ok(claimed);
            }
            let claimed = claim_row(sql, locked, claim)?;
            remember_claim(sql, scope, Op::Claim, claim, &claimed)?;
            Ok(claimed)
        })
    }

    fn claim_next(&mut self, labels: &Labels, claim: &Claim) -> Result<Claimed, StoreError> {
        let wanted = labels_text(labels);
        self.write(|sql| claim_next_in(sql, &wanted, claim))
    }

    fn renew(&mut self, worker: Uuid, lease_for: Duration) -> Result<Vec<Held>, StoreError> {
        self.write(|sql| {
            sql.query(
                "UPDATE streams SET lease_until = towpath_after(?2), expires_at = CASE WHEN ttl_s IS NULL \
                 THEN expires_at ELSE towpath_after(ttl_s * 1000000) END \
                 WHERE id IN (SELECT id FROM streams WHERE worker = ?1 ORDER BY id /*lock*/) \
                 RETURNING id, turn_no, status, lease_until",
                args![worker, micros(lease_for)],
            )?
            .into_iter()
            .map(|mut row| {
                let (stream, turn, status) = (row.id()?, row.small()?, row.text()?);
                Ok(Held { stream, turn, interrupting: status == "interrupting", until: row.time()? })
            })
            .collect()
        })
    }

    fn commit(
        &mut self,
        at: &Address,
        fence: Fence,
        message: &Draft,
        folded_to: u32,
        key: Option<&str>,
    ) -> Result<Committed, StoreError> {
        self.write(|sql| {
            let Locked { mut row, now } = here!(sql, at, Committed);
            if let Some(Answer::Committed { id }) = recall(sql, row.id, Op::Commit, key)?
                && let Some(message) = message_of(sql, row.id, id)?
            {
                return Ok(Committed::Done { change: row.change(), message, again: true });
            }
            let was = row.state.status;
            let place = match row.state.commit(fence.turn, fence.lease) {
                Ok(place) => place,
                Err(Refused::Closed) => return Ok(Committed::Closed(row.change())),
                Err(Refused::Held { .. } | Refused::Lost { .. }) => return Ok(Committed::TurnLost),
            };
            let fold = Fold { turn: fence.turn, upto: folded_to };
            insert_message(sql, &mut row, place, message, Some(fold), now)?;
            row.turn_folded_to = row.turn_folded_to.max(folded_to);
            save(sql, &mut row, now, &was)?;
            remember(sql, row.id, Op::Commit, key, &Answer::Committed { id: place.id })?;
            let message = MessageRow {
                id: place.id,
                pos: place.pos,
                kind: message.kind,
                role: message.role.clone(),
                content: message.content.clone(),
                fold: Some(fold),
                at: now,
            };
            Ok(Committed::Done { change: row.change(), message, again: false })
        })
    }

    fn finish(&mut self, at: &Address, fence: Fence, end: &End) -> Result<Finished, StoreError> {
        self.write(|sql| finish_in(sql, at, fence, end))
    }

    fn interrupt(&mut self, at: &Address) -> Result<Interrupted, StoreError> {
        self.write(|sql| {
            let Locked { mut row, now } = here!(sql, at, Interrupted);
            let was = row.state.status;
            if !row.state.interrupt() {
                return Ok(Interrupted::Nothing(row.change()));
            }
            save(sql, &mut row, now, &was)?;
            Ok(Interrupted::Done(row.change()))
        })
    }

    fn sweep(&mut self, which: Sweep, limit: usize) -> Result<Vec<Change>, StoreError> {
        self.write(|sql| {
            let ids = match which {
                Sweep::Dead => sql.query(
                    "SELECT id FROM streams WHERE worker IS NOT NULL AND lease_until <= towpath_now() \
                     ORDER BY id LIMIT ?1 /*skip*/",
                    args![limit],
                )?,
                Sweep::HandBack(worker) => sql.query(
                    "SELECT id FROM streams WHERE worker = ?1 ORDER BY id LIMIT ?2 /*lock*/",
                    args![worker, limit],
                )?,
                Sweep::All => sql.query(
                    "SELECT id FROM streams WHERE worker IS NOT NULL ORDER BY id LIMIT ?1 /*lock*/",
                    args![limit],
                )?,
            };
            let mut changes = Vec::with_capacity(ids.len());
            for mut id in ids {
                if let Some(locked) = fetch(sql, &Address::Id(id.id()?))? {
                    changes.extend(sweep_row(sql, locked, which)?);
                }
            }
            Ok(changes)
        })
    }

    fn touch(&mut self, streams: &[Uuid]) -> Result<(), StoreError> {
        for id in streams {
            self.db.transact(Mode::Single, |sql| {
                sql.execute(
                    "UPDATE streams SET expires_at = towpath_after(ttl_s * 1000000) \
                     WHERE id = ?1 AND ttl_s IS NOT NULL AND deleted_at IS NULL \
                     AND expires_at > towpath_now() \
                     AND expires_at <= towpath_after(CASE WHEN ttl_s < 100 THEN ttl_s * 900000 \
                         ELSE (ttl_s - 10) * 1000000 END)",
                    args![*id],
                )
            })?;
        }
        Ok(())
    }

    fn expire(&mut self, limit: usize) -> Result<Vec<Uuid>, StoreError> {
        let due = self.db.transact(Mode::Single, |sql| {
            sql.query(
                "SELECT id FROM streams WHERE expires_at <= towpath_now() AND deleted_at IS NULL \
                 ORDER BY expires_at LIMIT ?1",
                args![limit],
            )
        })?;
        let mut gone = Vec::with_capacity(due.len());
        for mut id in due {
            let id = id.id()?;
            // One transaction each: a fork locks its source after itself, so two in one could cross.
            let deleted = self.write(|sql| match fetch(sql, &Address::Id(id))? {
                Some(there) if there.expired() && !there.row.deleted => {
                    delete_row(sql, there.row).map(|_| true)
                }
                _ => Ok(false),
            })?;
            gone.extend(deleted.then_some(id));
        }
        Ok(gone)
    }

    fn trim(&mut self, keep: Keep, limit: usize) -> Result<Vec<Change>, StoreError> {
        let age = keep.age.map_or(-1, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX / 1_000_000));
        let bytes = keep.bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        self.bring_all()?;
        let due = self.db.transact(Mode::Single, |sql| {
            sql.query(
                "SELECT id FROM streams WHERE (coalesce(keep_age_s, ?1) >= 0 AND \
                 oldest_at < towpath_after(-1000000 * coalesce(keep_age_s, ?1))) \
                 OR (coalesce(keep_bytes, ?2) >= 0 AND bytes > coalesce(keep_bytes, ?2)) \
                 ORDER BY id LIMIT ?3",
                args![age, bytes, limit],
            )
        })?;
        let mut changes = Vec::new();
        for mut id in due {
            let at = Address::Id(id.id()?);
            changes.extend(self.write(|sql| match fetch(sql, &at)? {
                Some(locked) => trim_row(sql, locked, keep),
                None => Ok(None),
            })?);
        }
        Ok(changes)
    }

    fn forget_keys(&mut self, limit: usize) -> Result<u64, StoreError> {
        self.db.transact(Mode::Single, |sql| {
            sql.execute(
                "DELETE FROM answers WHERE (scope, op, key) IN (\
                 SELECT scope, op, key FROM answers WHERE at <= towpath_after(?1) LIMIT ?2)",
                args![-micros(KEY_MEMORY), limit],
            )
        })
    }

    fn group(&mut self, work: &mut dyn FnMut(&mut dyn StreamStore)) -> Result<Grouped, StoreError> {
        let Some(lead) = &mut self.lead else {
            self.db.begin_group()?;
            work(self);
            return self.db.end_group();
        };
        let has_room = lead.begin()?;
        self.group = Group::Ahead;
        if !has_room && let Err(error) = self.write(|_| Ok(())) {
            log::warn!("what was written ahead does not get into the tables error={error}");
        }
        work(self);
        let stands = self.group != Group::Failed && self.db.group_stands();
        if let Some(Err(error)) = self.lead.as_mut().map(|lead| lead.log(stands)) {
            log::warn!("appends go into the tables at once error={error}");
            // A failure of this one is the group's.
            let _ = self.write(|_| Ok(()));
        }
        let fate = match std::mem::replace(&mut self.group, Group::No) {
            Group::Failed => Ok(Grouped::Undone),
            Group::Tables => self.db.end_group(),
            Group::Ahead | Group::No => Ok(Grouped::Durable),
        };
        if let Some(lead) = &mut self.lead {
            lead.ended(fate == Ok(Grouped::Durable));
        }
        fate
    }

    fn is_ahead(&self) -> bool {
        self.lead.as_ref().is_some_and(|lead| !lead.ahead().is_empty())
    }

    fn is_far_ahead(&self) -> bool {
        self.lead.as_ref().is_some_and(|lead| lead.ahead().is_much())
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        self.bring_all()
    }
}
