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

/// How many messages a page of history has at most, however short they are.
const PAGE_ROWS: u64 = 1_000;

/// How many streams one statement of the poll asks about.
const POLL_IDS: usize = 32;

/// What a bytes stream is when nobody says.
const DEFAULT_TYPE: &str = "application/octet-stream";

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

/// A row under its lock, and the time it was read at.
struct Locked {
    row: StreamRow,
    now: Wall,
}

impl Locked {
    fn expired(&self) -> bool {
        self.row.expires_at.is_some_and(|at| at <= self.now)
    }
}

/// What an address leads to once its row is locked.
enum Lookup {
    Here(Locked),
    Missing,
    Gone,
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

/// The answer to a keyed request, as it is remembered.
#[derive(Serialize, Deserialize)]
enum Answer {
    Appended { first: u64, last: u64, pos: u64, generation: u32 },
    Pushed { id: u64 },
    Committed { id: u64 },
    Claimed { stream: Uuid, turn: u32, masked: [u8; 32], input: Option<InputAnswer> },
}

/// An input as a claim's answer keeps it: it is in the queue no more.
#[derive(Serialize, Deserialize)]
struct InputAnswer {
    id: u64,
    json: bool,
    role: Option<String>,
    content: Vec<u8>,
    at: i64,
}

impl InputAnswer {
    fn of(input: &QueuedRow) -> InputAnswer {
        InputAnswer {
            id: input.id,
            json: input.kind == Kind::Json,
            role: input.role.clone(),
            content: input.content.to_vec(),
            at: input.at.0,
        }
    }

    fn input(self) -> QueuedRow {
        QueuedRow {
            id: self.id,
            kind: if self.json { Kind::Json } else { Kind::Bytes },
            role: self.role,
            content: self.content.into(),
            at: Wall(self.at),
        }
    }
}

/// Which kind of request a key belongs to; the same key on another kind is another key.
#[derive(Clone, Copy)]
enum Op {
    Append = 1,
    Push = 2,
    Commit = 3,
    Claim = 4,
    ClaimNext = 5,
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

fn read_stream(mut row: Row) -> Result<Locked, StoreError> {
    let id = row.id()?;
    let name = row.text()?;
    let content_type = row.text()?;
    let labels = row.labels()?;
    let ttl = row.count_or_null()?;
    let expires_at = row.time_or_null()?;
    let tag = row.exactly()?;
    let (generation, pos, history_pos, queue_pos) = (row.small()?, row.count()?, row.count()?, row.count()?);
    let (status_pos, error_pos, trimmed_pos) = (row.count()?, row.count()?, row.count()?);
    let (last_msg, closed_pos) = (row.count()?, row.count_or_null()?);
    let status_name = row.text()?;
    let on_lost = row.text()?;
    let worker = row.id_or_null()?;
    let lease = row.bytes_or_null()?;
    let until = row.time_or_null()?;
    let run = match (worker, lease.map(<[u8; 32]>::try_from), until) {
        (Some(worker), Some(Ok(lease)), Some(until)) => Some(Run { worker, lease: LeaseHash(lease), until }),
        _ => None,
    };
    let status = match (status_name.as_str(), run) {
        ("idle", _) => Status::Idle,
        ("pending", _) => Status::Pending,
        ("failed", _) => Status::Failed,
        ("done", _) => Status::Done,
        ("running", Some(run)) => Status::Running(run),
        ("interrupting", Some(run)) => Status::Interrupting(run),
        _ => {
            let text = format!("stream {id} is {status_name} without a worker; restore it from a backup");
            return Err(StoreError::fatal("damaged", text));
        }
    };
    let (turn_no, turn_begun_pos, turn_closed_at) = (row.small()?, row.count()?, row.time_or_null()?);
    let error = row.text_or_null()?;
    let state = Stream {
        generation,
        pos,
        history_pos,
        queue_pos,
        status_pos,
        error_pos,
        trimmed_pos,
        last_msg,
        closed_pos,
        status,
        on_lost: on_lost.parse::<OnLost>().unwrap_or_default(),
        turn_no,
        turn_begun_pos,
        turn_closed_at,
        error,
    };
    let (turn_begun_at, turn_folded_to, stream_seq) =
        (row.time_or_null()?, row.small()?, row.text_or_null()?);
    let (source, fork_pos, beyond) = (row.id_or_null()?, row.count()?, row.count()?);
    let forks = row.small()?;
    let keep = Keep { age: row.count_or_null()?.map(Duration::from_secs), bytes: row.count_or_null()? };
    let (bytes, oldest_at, last_input) = (row.count()?, row.time_or_null()?, row.count()?);
    let deleted = row.time_or_null()?.is_some();
    let (created_at, updated_at, status_at) = (row.time()?, row.time()?, row.time()?);
    let expiry = match (ttl, expires_at) {
        (Some(seconds), _) => Expiry::Ttl(Duration::from_secs(seconds)),
        (None, Some(at)) => Expiry::At(at),
        (None, None) => Expiry::Never,
    };
    let row_read = StreamRow {
        id,
        name,
        content_type,
        labels,
        expiry,
        expires_at,
        tag,
        state,
        turn_begun_at,
        turn_folded_to,
        stream_seq,
        forked_from: source.map(|source| ForkedFrom { source, pos: fork_pos, beyond }),
        forks,
        keep,
        bytes,
        oldest_at,
        last_input,
        deleted,
        created_at,
        updated_at,
        status_at,
    };
    Ok(Locked { row: row_read, now: row.time()? })
}

fn read_message(mut row: Row) -> Result<MessageRow, StoreError> {
    let (id, pos, kind) = (row.count()?, row.count()?, read_kind(&mut row)?);
    let (role, content) = (row.text_or_null()?, row.bytes()?);
    let (turn, upto) = (row.small_or_null()?, row.small_or_null()?);
    let fold = turn.zip(upto).map(|(turn, upto)| Fold { turn, upto });
    Ok(MessageRow { id, pos, kind, role, content: content.into(), fold, at: row.time()? })
}

/// The message of an id, if it was not removed. No message has an id beyond its position, and both rise together,
/// so that the index on positions leads to it: past no more rows than there were changes that are no messages.
fn message_of(sql: &mut dyn Sql, stream: Uuid, id: u64) -> Result<Option<MessageRow>, StoreError> {
    let row = sql.row(
        "SELECT removed, id, pos, kind, role, content, turn_no, folded_to, ts FROM messages \
         WHERE stream_id = ?1 AND pos >= ?2 AND id >= ?2 ORDER BY pos LIMIT 1",
        args![stream, id],
    )?;
    let Some(mut row) = row else { return Ok(None) };
    let removed = row.flag()?;
    read_message(row).map(|message| Some(message).filter(|message| message.id == id && !removed))
}

fn read_input(mut row: Row) -> Result<QueuedRow, StoreError> {
    let (id, kind) = (row.count()?, read_kind(&mut row)?);
    Ok(QueuedRow { id, kind, role: row.text_or_null()?, content: row.bytes()?.into(), at: row.time()? })
}

fn read_kind(row: &mut Row) -> Result<Kind, StoreError> {
    Ok(if row.int()? == 0 { Kind::Json } else { Kind::Bytes })
}

fn kind_number(kind: Kind) -> i64 {
    match kind {
        Kind::Json => 0,
        Kind::Bytes => 1,
    }
}

/// The row an address leads to, whatever state it is in.
fn fetch(sql: &mut dyn Sql, at: &Address) -> Result<Option<Locked>, StoreError> {
    let row = match at {
        Address::Id(id) => sql.row(select_stream!("WHERE id = ?1 /*lock*/"), args![*id])?,
        Address::Name(name) => sql.row(select_stream!("WHERE name = ?1 /*lock*/"), args![name.as_str()])?,
    };
    row.map(read_stream).transpose()
}

/// The same without its lock: for reads, which see one moment anyway.
fn peek(sql: &mut dyn Sql, at: &Address) -> Result<Lookup, StoreError> {
    let row = match at {
        Address::Id(id) => sql.row(select_stream!("WHERE id = ?1"), args![*id])?,
        Address::Name(name) => sql.row(select_stream!("WHERE name = ?1"), args![name.as_str()])?,
    };
    Ok(judge(row.map(read_stream).transpose()?))
}

fn look_up(sql: &mut dyn Sql, at: &Address) -> Result<Lookup, StoreError> {
    Ok(judge(fetch(sql, at)?))
}

fn judge(found: Option<Locked>) -> Lookup {
    match found {
        None => Lookup::Missing,
        Some(locked) if locked.row.deleted => Lookup::Gone,
        Some(locked) if locked.expired() => Lookup::Missing,
        Some(locked) => Lookup::Here(locked),
    }
}

/// Writes back a row that a rule changed.
fn save(sql: &mut dyn Sql, row: &mut StreamRow, now: Wall, was: &Status) -> Result<(), StoreError> {
    row.updated_at = now;
    if row.state.status.name() != was.name() {
        row.status_at = now;
    }
    if let Expiry::Ttl(ttl) = row.expiry {
        row.expires_at = Some(now + ttl);
    }
    let state = &row.state;
    let run = state.status.run();
    sql.execute(
        "UPDATE streams SET gen = ?2, pos = ?3, history_pos = ?4, queue_pos = ?5, status_pos = ?6, \
         error_pos = ?7, trimmed_pos = ?8, last_msg = ?9, closed_pos = ?10, status = ?11, worker = ?12, \
         lease_hash = ?13, lease_until = ?14, turn_no = ?15, turn_begun_pos = ?16, turn_closed_at = ?17, \
         error = ?18, turn_begun_at = ?19, turn_folded_to = ?20, stream_seq = ?21, bytes = ?22, \
         oldest_at = ?23, last_input = ?24, updated_at = ?25, status_at = ?26, expires_at = ?27 WHERE id = ?1",
        args![
            row.id,
            state.generation,
            state.pos,
            state.history_pos,
            state.queue_pos,
            state.status_pos,
            state.error_pos,
            state.trimmed_pos,
            state.last_msg,
            state.closed_pos,
            state.status.name(),
            run.map(|run| run.worker),
            run.map(|run| run.lease.0.as_slice()),
            run.map(|run| run.until),
            state.turn_no,
            state.turn_begun_pos,
            state.turn_closed_at,
            state.error.as_deref(),
            row.turn_begun_at,
            row.turn_folded_to,
            row.stream_seq.as_deref(),
            row.bytes,
            row.oldest_at,
            row.last_input,
            row.updated_at,
            row.status_at,
            row.expires_at,
        ],
    )?;
    Ok(())
}

/// Writes back a row to which messages were added and nothing else: what most writes are. Most columns stay, and
/// with them every index.
fn save_appended(sql: &mut dyn Sql, row: &mut StreamRow, now: Wall) -> Result<(), StoreError> {
    row.updated_at = now;
    sql.execute(
        APPENDED,
        args![
            row.id,
            row.state.pos,
            row.state.history_pos,
            row.state.last_msg,
            row.bytes,
            row.oldest_at,
            row.updated_at,
        ],
    )?;
    Ok(())
}

/// Brings messages into the tables that wait, but for those that are there. What waits for a stream that is gone
/// goes with it.
pub(super) fn bring(sql: &mut dyn Sql, waiting: &Waiting) -> Result<(), StoreError> {
    let mut brought = 0_usize;
    for (stream, rows) in waiting {
        let stands = sql.row(
            "SELECT pos, last_msg, bytes, oldest_at FROM streams WHERE id = ?1 AND deleted_at IS NULL",
            args![*stream],
        )?;
        let Some(mut stands) = stands else { continue };
        let (mut pos, mut last_msg, mut bytes) = (stands.count()?, stands.count()?, stands.count()?);
        let mut oldest_at = stands.time_or_null()?;
        let before = pos;
        let mut updated_at = None;
        for Logged { generation, row, .. } in rows {
            if row.pos <= pos {
                continue;
            }
            if (row.pos, row.id) != (pos + 1, last_msg + 1) {
                log::error!(
                    "messages do not follow what is stored stream={stream} pos={pos} next={}",
                    row.pos
                );
                break;
            }
            brought += 1;
            if brought.is_multiple_of(GIVES_WAY_EVERY) {
                rt::give_way();
            }
            let (kind, role) = (kind_number(row.kind), row.role.as_deref());
            sql.execute(
                BROUGHT,
                args![*stream, row.id, row.pos, *generation, kind, role, &*row.content, row.at],
            )?;
            (pos, last_msg) = (row.pos, row.id);
            bytes += row.content.len() as u64;
            oldest_at.get_or_insert(row.at);
            updated_at = Some(row.at);
        }
        if pos > before {
            sql.execute(APPENDED, args![*stream, pos, pos, last_msg, bytes, oldest_at, updated_at])?;
        }
    }
    Ok(())
}

/// Nobody waits for rows, and they take milliseconds, for which a thread that has just synced a group would wait where
/// there is no other processor. So many take some fifty microseconds.
const GIVES_WAY_EVERY: usize = 16;

/// A message that stands for no parts, as those are which were written ahead.
const BROUGHT: &str = "INSERT INTO messages (stream_id, id, pos, gen, kind, role, content, ts) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// What appending changes of a row.
const APPENDED: &str = "UPDATE streams SET pos = ?2, history_pos = ?3, last_msg = ?4, bytes = ?5, oldest_at = ?6, \
     updated_at = ?7 WHERE id = ?1";

fn insert_row(
    sql: &mut dyn Sql,
    stream: Uuid,
    generation: u32,
    place: Place,
    kind: Kind,
    role: Option<&str>,
    content: &[u8],
    fold: Option<Fold>,
    at: Wall,
) -> Result<(), StoreError> {
    sql.execute(
        "INSERT INTO messages (stream_id, id, pos, gen, kind, role, content, removed, turn_no, folded_to, ts) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        args![
            stream,
            place.id,
            place.pos,
            generation,
            kind_number(kind),
            role,
            content,
            0_i64,
            fold.map(|fold| fold.turn),
            fold.map(|fold| fold.upto),
            at,
        ],
    )?;
    Ok(())
}

/// Writes a message that got its place.
fn insert_message(
    sql: &mut dyn Sql,
    row: &mut StreamRow,
    place: Place,
    draft: &Draft,
    fold: Option<Fold>,
    now: Wall,
) -> Result<(), StoreError> {
    row.bytes += draft.content.len() as u64;
    row.oldest_at.get_or_insert(now);
    let (generation, role) = (row.state.generation, draft.role.as_deref());
    insert_row(sql, row.id, generation, place, draft.kind, role, &draft.content, fold, now)
}

/// How many inputs wait.
fn waiting(sql: &mut dyn Sql, stream: Uuid) -> Result<usize, StoreError> {
    let count = sql.one("SELECT count(*) FROM queue WHERE stream_id = ?1", args![stream])?.count()?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

fn key_hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Hides a lease under the key that asks for it, so that the store alone gives neither away.
fn mask(lease: [u8; 32], key: &str) -> [u8; 32] {
    let pad: [u8; 32] = Sha256::new().chain_update("towpath lease ").chain_update(key).finalize().into();
    std::array::from_fn(|i| lease[i] ^ pad[i])
}

/// The answer a keyed request got before, if it did within [`KEY_MEMORY`].
fn recall(sql: &mut dyn Sql, scope: Uuid, op: Op, key: Option<&str>) -> Result<Option<Answer>, StoreError> {
    let Some(key) = key else { return Ok(None) };
    let row = sql.row(
        "SELECT answer FROM answers WHERE scope = ?1 AND op = ?2 AND key = ?3 AND at > towpath_after(?4)",
        args![scope, op as i64, &key_hash(key)[..], -micros(KEY_MEMORY)],
    )?;
    let Some(mut row) = row else { return Ok(None) };
    let text = row.text()?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|_| StoreError::fatal("damaged", "a remembered answer cannot be read; delete it"))
}

fn remember(
    sql: &mut dyn Sql,
    scope: Uuid,
    op: Op,
    key: Option<&str>,
    answer: &Answer,
) -> Result<(), StoreError> {
    let Some(key) = key else { return Ok(()) };
    let text = serde_json::to_string(answer).expect("an answer is JSON");
    // One that is there has aged out, or `recall` had found it.
    sql.execute(
        "INSERT INTO answers (scope, op, key, answer, at) VALUES (?1, ?2, ?3, ?4, towpath_now()) \
         ON CONFLICT (scope, op, key) DO UPDATE SET answer = excluded.answer, at = excluded.at",
        args![scope, op as i64, &key_hash(key)[..], text.as_str()],
    )?;
    Ok(())
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Removes a stream and everything of it, and the deleted streams that were kept only for it.
fn purge(sql: &mut dyn Sql, row: StreamRow) -> Result<(), StoreError> {
    let mut next = Some(row);
    while let Some(row) = next.take() {
        sql.execute("DELETE FROM messages WHERE stream_id = ?1", args![row.id])?;
        sql.execute("DELETE FROM queue WHERE stream_id = ?1", args![row.id])?;
        sql.execute("DELETE FROM producers WHERE stream_id = ?1", args![row.id])?;
        sql.execute("DELETE FROM answers WHERE scope = ?1", args![row.id])?;
        sql.execute("DELETE FROM streams WHERE id = ?1", args![row.id])?;
        let Some(from) = row.forked_from else { break };
        sql.execute("UPDATE streams SET fork_count = fork_count - 1 WHERE id = ?1", args![from.source])?;
        next = fetch(sql, &Address::Id(from.source))?
            .map(|source| source.row)
            .filter(|source| source.deleted && source.forks == 0);
    }
    Ok(())
}

/// Deletes a stream, or only hides it while forks need it. True when it is gone.
fn delete_row(sql: &mut dyn Sql, row: StreamRow) -> Result<bool, StoreError> {
    if row.forks == 0 {
        purge(sql, row)?;
        return Ok(true);
    }
    // Nobody runs or queues for it any more; only its history is kept.
    sql.execute("DELETE FROM queue WHERE stream_id = ?1", args![row.id])?;
    sql.execute(
        "UPDATE streams SET deleted_at = towpath_now(), status = 'idle', worker = NULL, lease_hash = NULL, \
         lease_until = NULL, expires_at = NULL, ttl_s = NULL WHERE id = ?1",
        args![row.id],
    )?;
    Ok(false)
}

/// True when the stream that is there is what was asked for.
fn is_as_asked(row: &StreamRow, new: &NewStream) -> bool {
    let fork_agrees = new.fork.as_ref().is_none_or(|fork| {
        row.forked_from.is_some_and(|from| {
            let source = match &fork.source {
                Address::Id(id) => *id == from.source,
                // The name was resolved when the fork was made; its source may be gone by now.
                Address::Name(_) => true,
            };
            let pos = match fork.at {
                None => true,
                Some(ForkAt::Start) => from.pos == 0,
                Some(ForkAt::Pos { pos, .. }) => from.pos == pos,
            };
            source && pos && from.beyond == fork.beyond
        })
    });
    fork_agrees
        && new.content_type.as_ref().is_none_or(|asked| is_same_type(asked, &row.content_type))
        && new.labels.as_ref().is_none_or(|asked| *asked == row.labels)
        && new.expiry.is_none_or(|asked| asked == row.expiry)
        && new.on_lost.is_none_or(|asked| asked == row.state.on_lost)
        && new.closed.is_none_or(|asked| asked == row.state.closed_pos.is_some())
}

/// What a fork begins with.
struct ForkPlan {
    source: StreamRow,
    /// Rows up to here are copied whole.
    pos: u64,
    /// The position the fork was asked at.
    asked: u64,
    beyond: u64,
    /// The beginning of the row after `pos`, if it is cut.
    cut: Option<MessageRow>,
    /// The id of the last row copied.
    last_msg: u64,
}

/// Where a fork leaves its source, or the answer for whoever asked.
fn plan_fork(
    sql: &mut dyn Sql,
    fork: &NewFork,
    content_type: Option<&String>,
) -> Result<Result<ForkPlan, Created>, StoreError> {
    let source = match look_up(sql, &fork.source)? {
        Lookup::Here(locked) => locked.row,
        Lookup::Missing => return Ok(Err(Created::NoSource)),
        Lookup::Gone => return Ok(Err(Created::SourceGone)),
    };
    if content_type.is_some_and(|asked| !is_same_type(asked, &source.content_type)) {
        return Ok(Err(Created::OtherType(source.content_type)));
    }
    let asked = match fork.at {
        None => source.state.history_pos,
        Some(ForkAt::Start) => 0,
        Some(ForkAt::Pos { tag, pos, .. }) if tag != source.tag || pos > source.state.history_pos => {
            return Ok(Err(Created::BadForkOffset));
        }
        Some(ForkAt::Pos { generation, .. }) if generation != source.state.generation => {
            return Ok(Err(Created::ForkTrimmed));
        }
        Some(ForkAt::Pos { pos, .. }) if pos > 0 && pos < source.state.trimmed_pos => {
            return Ok(Err(Created::ForkTrimmed));
        }
        Some(ForkAt::Pos { pos, .. }) => pos,
    };
    let (mut pos, mut cut) = (asked, None);
    if fork.beyond > 0 {
        let mut after = next_rows(sql, source.id, asked, source.content_type.as_str(), fork.beyond)?;
        if after.first().is_some_and(|row| row.kind == Kind::Bytes) {
            let row = after.swap_remove(0);
            let Ok(length) = usize::try_from(fork.beyond) else { return Ok(Err(Created::BadForkOffset)) };
            match row.content.get(..length) {
                None => return Ok(Err(Created::BadForkOffset)),
                Some(_) if length == row.content.len() => pos = row.pos,
                Some(head) => cut = Some(MessageRow { content: head.into(), ..row }),
            }
        } else {
            match after.last() {
                Some(row) if after.len() as u64 == fork.beyond => pos = row.pos,
                _ => return Ok(Err(Created::BadForkOffset)),
            }
        }
    }
    let last_msg = sql
        .one(
            "SELECT coalesce(max(id), 0) FROM messages WHERE stream_id = ?1 AND pos <= ?2",
            args![source.id, pos],
        )?
        .count()?;
    Ok(Ok(ForkPlan { source, pos, asked, beyond: fork.beyond, cut, last_msg }))
}

/// The rows after `pos` that a fork's `beyond` may speak of.
fn next_rows(
    sql: &mut dyn Sql,
    stream: Uuid,
    pos: u64,
    content_type: &str,
    beyond: u64,
) -> Result<Vec<MessageRow>, StoreError> {
    let rows = if is_json(content_type) { beyond } else { 1 };
    sql.query(
        "SELECT id, pos, kind, role, content, turn_no, folded_to, ts FROM messages \
         WHERE stream_id = ?1 AND pos > ?2 AND NOT removed ORDER BY pos LIMIT ?3",
        args![stream, pos, rows],
    )?
    .into_iter()
    .map(read_message)
    .collect()
}

/// Whether two content types are the same but for letter case and parameters (`; charset=utf-8`).
fn is_same_type(one: &str, other: &str) -> bool {
    let essence = |text: &str| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    one == other || essence(one) == essence(other)
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

/// What a new stream begins as, before its first messages.
fn blank(new: &NewStream, tag: [u8; 4], plan: Option<&ForkPlan>, now: Wall) -> StreamRow {
    let source = plan.map(|plan| &plan.source);
    let expiry = new.expiry.or(source.map(|source| source.expiry)).unwrap_or_default();
    let mut state = Stream { on_lost: new.on_lost.unwrap_or_default(), ..Stream::default() };
    if let Some(plan) = plan {
        let from = &plan.source.state;
        state.on_lost = new.on_lost.unwrap_or(from.on_lost);
        state.generation = from.generation;
        state.trimmed_pos = from.trimmed_pos.min(plan.pos);
        (state.pos, state.history_pos, state.last_msg) = (plan.pos, plan.pos, plan.last_msg);
        // Messages copied from the source name its turns: the fork's own must not use their numbers.
        state.turn_no = from.turn_no;
        state.turn_closed_at = (from.turn_no > 0).then_some(now);
    }
    StreamRow {
        id: new.id,
        name: new.name.clone(),
        content_type: new
            .content_type
            .clone()
            .or_else(|| source.map(|source| source.content_type.clone()))
            .unwrap_or_else(|| DEFAULT_TYPE.into()),
        labels: new.labels.clone().or_else(|| source.map(|source| source.labels.clone())).unwrap_or_default(),
        expiry,
        expires_at: match expiry {
            Expiry::Never => None,
            Expiry::Ttl(ttl) => Some(now + ttl),
            Expiry::At(at) => Some(at),
        },
        tag: source.map_or(tag, |source| source.tag),
        state,
        turn_begun_at: None,
        turn_folded_to: 0,
        stream_seq: None,
        forked_from: plan.map(|plan| ForkedFrom {
            source: plan.source.id,
            pos: plan.asked,
            beyond: plan.beyond,
        }),
        forks: 0,
        keep: new.keep,
        bytes: 0,
        oldest_at: None,
        last_input: 0,
        deleted: false,
        created_at: now,
        updated_at: now,
        status_at: now,
    }
}

/// Inserts the parts of a row that never change. False when the name is taken.
fn insert_stream(sql: &mut dyn Sql, row: &StreamRow) -> Result<bool, StoreError> {
    let ttl = match row.expiry {
        Expiry::Ttl(ttl) => Some(ttl.as_secs()),
        Expiry::Never | Expiry::At(_) => None,
    };
    let from = row.forked_from;
    let inserted = sql.execute(
        "INSERT INTO streams (id, name, content_type, labels, ttl_s, expires_at, tag, on_lost, status, \
         forked_from, fork_pos, fork_sub, keep_age_s, keep_bytes, created_at, updated_at, status_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'idle', ?9, ?10, ?11, ?12, ?13, ?14, ?14, ?14) \
         ON CONFLICT (name) DO NOTHING",
        args![
            row.id,
            row.name.as_str(),
            row.content_type.as_str(),
            &*labels_text(&row.labels),
            ttl,
            row.expires_at,
            &row.tag[..],
            row.state.on_lost.name(),
            from.map(|from| from.source),
            from.map_or(0, |from| from.pos),
            from.map_or(0, |from| from.beyond),
            row.keep.age.map(|age| age.as_secs()),
            row.keep.bytes,
            row.created_at,
        ],
    )?;
    Ok(inserted == 1)
}

/// Copies the source's history into a fork.
fn copy_history(
    sql: &mut dyn Sql,
    row: &mut StreamRow,
    plan: &ForkPlan,
    now: Wall,
) -> Result<(), StoreError> {
    sql.execute(
        "INSERT INTO messages (stream_id, id, pos, gen, kind, role, content, removed, turn_no, folded_to, ts) \
         SELECT ?1, id, pos, gen, kind, role, content, removed, turn_no, folded_to, ts FROM messages \
         WHERE stream_id = ?2 AND pos <= ?3",
        args![row.id, plan.source.id, plan.pos],
    )?;
    let mut sums = sql.one(
        "SELECT CAST(coalesce(sum(length(content)), 0) AS BIGINT), min(ts) FROM messages WHERE stream_id = ?1",
        args![row.id],
    )?;
    (row.bytes, row.oldest_at) = (sums.count()?, sums.time_or_null()?);
    if let Some(head) = &plan.cut {
        let place = row.state.append().expect("a new stream is open");
        let draft = Draft { kind: head.kind, role: head.role.clone(), content: head.content.clone() };
        insert_message(sql, row, place, &draft, None, now)?;
    }
    sql.execute("UPDATE streams SET fork_count = fork_count + 1 WHERE id = ?1", args![plan.source.id])?;
    Ok(())
}

/// Ends what a producer's numbers say, before anything is appended.
enum Sequence {
    /// Not from a producer, or the next of its numbers.
    Next,
    Refused(Appended),
    /// Only worth telling once it is known that the stream is open.
    Gap(u64),
}

fn check_producer(sql: &mut dyn Sql, row: &StreamRow, producer: &Producer) -> Result<Sequence, StoreError> {
    let known = sql.row(
        "SELECT epoch, seq FROM producers WHERE stream_id = ?1 AND producer_id = ?2",
        args![row.id, producer.id.as_str()],
    )?;
    let Some(mut known) = known else {
        return Ok(if producer.seq == 0 { Sequence::Next } else { Sequence::Gap(0) });
    };
    let (epoch, seq) = (known.count()?, known.count()?);
    Ok(if producer.epoch < epoch {
        Sequence::Refused(Appended::StaleEpoch(epoch))
    } else if producer.epoch > epoch {
        if producer.seq == 0 { Sequence::Next } else { Sequence::Refused(Appended::EpochNotAtZero) }
    } else if producer.seq <= seq {
        Sequence::Refused(Appended::Duplicate { change: row.change(), seq })
    } else if producer.seq > seq + 1 {
        Sequence::Gap(seq + 1)
    } else {
        Sequence::Next
    })
}

fn append_in(sql: &mut dyn Sql, at: &Address, append: &Append) -> Result<Appended, StoreError> {
    let Locked { mut row, now } = here!(sql, at, Appended);
    let key = append.key.as_deref();
    if let Some(Answer::Appended { first, last, pos, generation }) = recall(sql, row.id, Op::Append, key)? {
        return Ok(Appended::Done { change: row.change(), first, last, pos, generation, again: true });
    }
    let sequence = match &append.producer {
        Some(producer) => check_producer(sql, &row, producer)?,
        None => Sequence::Next,
    };
    if let Sequence::Refused(outcome) = sequence {
        return Ok(outcome);
    }
    if row.state.closed_pos.is_some() {
        // Closing what is closed is no news, unless a producer claims to have done it.
        let close_only = append.close && append.messages.is_empty() && append.producer.is_none();
        return Ok(match close_only {
            true => Appended::Done {
                change: row.change(),
                first: 0,
                last: 0,
                pos: row.state.history_pos,
                generation: row.state.generation,
                again: true,
            },
            false => Appended::Closed(row.change()),
        });
    }
    if append.content_type.as_ref().is_some_and(|given| !is_same_type(given, &row.content_type)) {
        return Ok(Appended::OtherType(row.content_type));
    }
    if let Sequence::Gap(expected) = sequence {
        return Ok(Appended::Gap { expected });
    }
    if let (Some(given), Some(last)) = (&append.stream_seq, &row.stream_seq)
        && given <= last
    {
        return Ok(Appended::SeqRegressed(last.clone()));
    }

    let was = row.state.status;
    let (mut first, mut last, mut pos) = (0, 0, row.state.history_pos);
    for draft in &append.messages {
        let place = row.state.append().expect("an open stream takes messages");
        insert_message(sql, &mut row, place, draft, None, now)?;
        first = if first == 0 { place.id } else { first };
        (last, pos) = (place.id, place.pos);
    }
    if append.close {
        row.state.close();
    }
    if append.stream_seq.is_some() {
        row.stream_seq.clone_from(&append.stream_seq);
    }
    if let Some(producer) = &append.producer {
        sql.execute(
            "INSERT INTO producers (stream_id, producer_id, epoch, seq, pos, used_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (stream_id, producer_id) DO UPDATE SET \
             epoch = excluded.epoch, seq = excluded.seq, pos = excluded.pos, used_at = excluded.used_at",
            args![row.id, producer.id.as_str(), producer.epoch, producer.seq, row.state.pos, now],
        )?;
    }
    match (append.close, &append.stream_seq, row.expiry) {
        (false, None, Expiry::Never | Expiry::At(_)) => save_appended(sql, &mut row, now)?,
        _ => save(sql, &mut row, now, &was)?,
    }
    let generation = row.state.generation;
    remember(sql, row.id, Op::Append, key, &Answer::Appended { first, last, pos, generation })?;
    Ok(Appended::Done { change: row.change(), first, last, pos, generation, again: false })
}

/// Replaces or removes a message that is there.
fn rewrite_in(
    sql: &mut dyn Sql,
    at: &Address,
    message: u64,
    draft: Option<&Draft>,
) -> Result<Edited, StoreError> {
    let Locked { mut row, now } = here!(sql, at, Edited);
    let Some(found) = message_of(sql, row.id, message)? else { return Ok(Edited::NoMessage) };
    row.bytes = row.bytes.saturating_sub(found.content.len() as u64);
    let was = row.state.status;
    row.state.rewrite();
    let empty: &[u8] = &[];
    let content = draft.map_or(empty, |draft| &*draft.content);
    row.bytes += content.len() as u64;
    sql.execute(
        "UPDATE messages SET gen = ?3, kind = coalesce(?4, kind), role = coalesce(?5, role), content = ?6, \
         removed = ?7 WHERE stream_id = ?1 AND pos = ?2",
        args![
            row.id,
            found.pos,
            row.state.generation,
            draft.map(|draft| kind_number(draft.kind)),
            draft.and_then(|draft| draft.role.as_deref()),
            content,
            i64::from(draft.is_none()),
        ],
    )?;
    save(sql, &mut row, now, &was)?;
    Ok(Edited::Done(row.change()))
}

/// Takes the head of the queue, if there is one.
fn take_input(sql: &mut dyn Sql, stream: Uuid) -> Result<Option<QueuedRow>, StoreError> {
    let head = sql.row(
        "SELECT id, kind, role, content, ts FROM queue WHERE stream_id = ?1 ORDER BY id LIMIT 1",
        args![stream],
    )?;
    let Some(head) = head.map(read_input).transpose()? else { return Ok(None) };
    sql.execute("DELETE FROM queue WHERE stream_id = ?1 AND id = ?2", args![stream, head.id])?;
    Ok(Some(head))
}

/// Claims a stream whose row is locked.
fn claim_row(sql: &mut dyn Sql, locked: Locked, claim: &Claim) -> Result<Claimed, StoreError> {
    let Locked { mut row, now } = locked;
    if row.state.closed_pos.is_some() {
        return Ok(Claimed::Closed(row.change()));
    }
    let was = row.state.status;
    let run = Run { worker: claim.worker, lease: LeaseHash::of(&claim.lease), until: now + claim.lease_for };
    let waiting = waiting(sql, row.id)?;
    let turn = match row.state.claim(run, now, waiting) {
        Ok(claimed) => claimed.turn,
        Err(Refused::Held { worker, turn }) => return Ok(Claimed::Running { worker, turn }),
        Err(Refused::Lost { .. } | Refused::Closed) => return Ok(Claimed::Closed(row.change())),
    };
    let input = take_input(sql, row.id)?;
    (row.turn_begun_at, row.turn_folded_to) = (Some(now), 0);
    row.status_at = now;
    save(sql, &mut row, now, &was)?;
    Ok(Claimed::Turn(TurnClaimed {
        change: row.change(),
        name: row.name,
        turn,
        lease: claim.lease,
        input,
        again: false,
    }))
}

/// Remembers a claim under its key.
fn remember_claim(
    sql: &mut dyn Sql,
    scope: Uuid,
    op: Op,
    claim: &Claim,
    claimed: &Claimed,
) -> Result<(), StoreError> {
    if let (Some(key), Claimed::Turn(turn)) = (&claim.key, claimed) {
        let answer = Answer::Claimed {
            stream: turn.change.stream,
            turn: turn.turn,
            masked: mask(claim.lease, key),
            input: turn.input.as_ref().map(InputAnswer::of),
        };
        remember(sql, scope, op, Some(key), &answer)?;
    }
    Ok(())
}

/// A claim's answer, given again.
fn claimed_again(row: &StreamRow, key: &str, answer: Answer) -> Option<Claimed> {
    let Answer::Claimed { turn, masked, input, .. } = answer else { return None };
    Some(Claimed::Turn(TurnClaimed {
        change: row.change(),
        name: row.name.clone(),
        turn,
        lease: mask(masked, key),
        input: input.map(InputAnswer::input),
        again: true,
    }))
}

fn claim_next_in(sql: &mut dyn Sql, wanted: &str, claim: &Claim) -> Result<Claimed, StoreError> {
    let key = claim.key.as_deref();
    if let (Some(answer), Some(key)) = (recall(sql, Uuid::nil(), Op::ClaimNext, key)?, key)
        && let Answer::Claimed { stream, .. } = answer
        && let Lookup::Here(locked) = look_up(sql, &Address::Id(stream))?
        && let Some(claimed) = claimed_again(&locked.row, key, answer)
    {
        return Ok(claimed);
    }
    // A row that another took while this one waited for it is skipped; then there may be others.
    for _ in 0..3 {
        let next = sql.row(
            "SELECT id FROM streams WHERE status = 'pending' AND closed_pos IS NULL AND deleted_at IS NULL \
             AND (expires_at IS NULL OR expires_at > towpath_now()) AND towpath_has(labels, ?1) \
             ORDER BY status_at, id LIMIT 1 /*skip*/",
            args![wanted],
        )?;
        let Some(mut next) = next else { continue };
        if let Lookup::Here(locked) = look_up(sql, &Address::Id(next.id()?))? {
            let claimed = claim_row(sql, locked, claim)?;
            remember_claim(sql, Uuid::nil(), Op::ClaimNext, claim, &claimed)?;
            return Ok(claimed);
        }
    }
    Ok(Claimed::Missing)
}

fn finish_in(sql: &mut dyn Sql, at: &Address, fence: Fence, end: &End) -> Result<Finished, StoreError> {
    let Locked { mut row, now } = here!(sql, at, Finished);
    let was = row.state.status;
    let waiting = waiting(sql, row.id)?;
    let (turn, lease) = (fence.turn, fence.lease);
    let state = &mut row.state;
    let ended = match end {
        End::Done => state.finish(turn, lease, Outcome::Done, now, waiting),
        End::Failed(why) => state.finish(turn, lease, Outcome::Failed(why.clone()), now, waiting),
        End::Lost => state.abandon(turn, lease, now),
        End::Aborted => state.abort(turn, lease, now),
        End::HandedBack => match state.status.run().copied() {
            Some(run) if state.turn_no == turn && run.lease == lease => {
                state.hand_back(run.worker, now);
                Ok(())
            }
            _ => Err(Refused::Lost { turn }),
        },
    };
    if ended.is_err() {
        return Ok(Finished::TurnLost);
    }
    save(sql, &mut row, now, &was)?;
    Ok(Finished::Done(row.change()))
}

fn catch_up_in(
    sql: &mut dyn Sql,
    at: &Address,
    read: CatchUp,
    waiting: &[Logged],
) -> Result<Found<Page>, StoreError> {
    let mut stream = match peek(sql, at)? {
        Lookup::Here(locked) => locked.row,
        Lookup::Missing => return Ok(Found::Missing),
        Lookup::Gone => return Ok(Found::Gone),
    };
    let queue = sql
        .query(
            "SELECT id, kind, role, content, ts FROM queue WHERE stream_id = ?1 ORDER BY id",
            args![stream.id],
        )?
        .into_iter()
        .map(read_input)
        .collect::<Result<Vec<_>, _>>()?;
    let (stored, stored_history) = (stream.state.pos, stream.state.history_pos);
    stand(&mut stream, waiting);
    let upto = read.upto.unwrap_or(stream.state.pos);
    let end = upto.min(stream.state.history_pos);
    if read.bytes_max == 0 || read.after >= end {
        let more = read.after < end;
        return Ok(Found::Here(Page { stream, queue, messages: Vec::new(), upto, more }));
    }
    let mut page = Page { stream, queue, messages: Vec::new(), upto, more: false };
    if read.after < stored_history {
        read_page(sql, &mut page, read, end.min(stored_history))?;
    }
    if !page.more {
        let here = waiting.iter().map(|logged| &logged.row);
        add_waiting(&mut page, here.filter(|row| row.pos > stored.max(read.after) && row.pos <= upto), read);
    }
    Ok(Found::Here(page))
}

/// Adds to a page what waits, as far as it goes.
fn add_waiting<'a>(page: &mut Page, waiting: impl Iterator<Item = &'a MessageRow>, read: CatchUp) {
    let mut bytes: usize = page.messages.iter().map(|message| message.content.len()).sum();
    for message in waiting {
        bytes += message.content.len();
        let is_full = bytes > read.bytes_max || page.messages.len() as u64 >= PAGE_ROWS;
        if is_full && !page.messages.is_empty() {
            page.more = true;
            return;
        }
        page.messages.push(message.clone());
    }
}

/// Reads a page of what is in the tables, where history ends at `end`.
fn read_page(sql: &mut dyn Sql, page: &mut Page, read: CatchUp, end: u64) -> Result<(), StoreError> {
    let (stream, upto) = (page.stream.id, page.upto);
    // The page ends before the row that would not fit; `length` reads no content.
    page.messages = sql
        .query(
            "SELECT id, pos, kind, role, content, turn_no, folded_to, ts FROM messages \
             WHERE stream_id = ?1 AND pos > ?2 AND NOT removed AND pos <= (\
               SELECT max(pos) FROM (\
                 SELECT pos, sum(length(content)) OVER (ORDER BY pos) AS total, length(content) AS size \
                 FROM messages WHERE stream_id = ?1 AND pos > ?2 AND pos <= ?3 AND NOT removed \
                 ORDER BY pos LIMIT ?5) AS sizes \
               WHERE total <= ?4 OR total = size) \
             ORDER BY pos",
            args![stream, read.after, upto, read.bytes_max, PAGE_ROWS],
        )?
        .into_iter()
        .map(read_message)
        .collect::<Result<Vec<_>, _>>()?;
    page.more = match page.messages.last() {
        Some(last) if last.pos < end => sql
            .one(
                "SELECT EXISTS (SELECT 1 FROM messages WHERE stream_id = ?1 AND pos > ?2 AND pos <= ?3 \
                 AND NOT removed)",
                args![stream, last.pos, upto],
            )?
            .flag()?,
        _ => false,
    };
    Ok(())
}

/// Ends the lease of a stream whose row is locked, if it is to end.
fn sweep_row(sql: &mut dyn Sql, locked: Locked, which: Sweep) -> Result<Option<Change>, StoreError> {
    let Locked { mut row, now } = locked;
    let was = row.state.status;
    let changed = match which {
        Sweep::Dead => row.state.sweep(now),
        Sweep::HandBack(worker) => row.state.hand_back(worker, now),
        Sweep::All => {
            if let Status::Running(run) | Status::Interrupting(run) = &mut row.state.status {
                run.until = now;
            }
            row.state.sweep(now)
        }
    };
    if !changed {
        return Ok(None);
    }
    save(sql, &mut row, now, &was)?;
    Ok(Some(row.change()))
}

/// Removes what is beyond the limits of one stream.
fn trim_row(sql: &mut dyn Sql, locked: Locked, keep: Keep) -> Result<Option<Change>, StoreError> {
    let Locked { mut row, now } = locked;
    let mut cut = 0;
    if let Some(age) = row.keep.age.or(keep.age) {
        let mut found = sql.one(
            "SELECT coalesce(max(pos), 0) FROM messages WHERE stream_id = ?1 AND ts < ?2",
            args![row.id, now - age],
        )?;
        cut = found.count()?;
    }
    if let Some(bytes) = row.keep.bytes.or(keep.bytes) {
        let mut found = sql.one(
            "SELECT coalesce(max(pos), 0) FROM (\
               SELECT pos, sum(length(content)) OVER (ORDER BY pos DESC) AS total FROM messages \
               WHERE stream_id = ?1) AS sizes WHERE total > ?2",
            args![row.id, bytes],
        )?;
        cut = cut.max(found.count()?);
    }
    if cut <= row.state.trimmed_pos {
        return Ok(None);
    }
    sql.execute("DELETE FROM messages WHERE stream_id = ?1 AND pos <= ?2", args![row.id, cut])?;
    let mut left = sql.one(
        "SELECT CAST(coalesce(sum(length(content)), 0) AS BIGINT), min(ts) FROM messages WHERE stream_id = ?1",
        args![row.id],
    )?;
    row.state.trimmed_pos = cut;
    sql.execute(
        "UPDATE streams SET trimmed_pos = ?2, bytes = ?3, oldest_at = ?4 WHERE id = ?1",
        args![row.id, cut, left.count()?, left.time_or_null()?],
    )?;
    Ok(Some(row.change()))
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
