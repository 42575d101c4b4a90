//! One stream's row: found, locked, judged and saved.

use super::*;

/// A row under its lock, and the time it was read at.
pub(super) struct Locked {
    pub(super) row: StreamRow,
    pub(super) now: Wall,
}

impl Locked {
    pub(super) fn expired(&self) -> bool {
        self.row.expires_at.is_some_and(|at| at <= self.now)
    }
}

/// What an address leads to once its row is locked.
pub(super) enum Lookup {
    Here(Locked),
    Missing,
    Gone,
}

pub(super) fn read_stream(mut row: Row) -> Result<Locked, StoreError> {
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

/// The row an address leads to, whatever state it is in.
pub(super) fn fetch(sql: &mut dyn Sql, at: &Address) -> Result<Option<Locked>, StoreError> {
    let row = match at {
        Address::Id(id) => sql.row(select_stream!("WHERE id = ?1 /*lock*/"), args![*id])?,
        Address::Name(name) => sql.row(select_stream!("WHERE name = ?1 /*lock*/"), args![name.as_str()])?,
    };
    row.map(read_stream).transpose()
}

/// The same without its lock: for reads, which see one moment anyway.
pub(super) fn peek(sql: &mut dyn Sql, at: &Address) -> Result<Lookup, StoreError> {
    let row = match at {
        Address::Id(id) => sql.row(select_stream!("WHERE id = ?1"), args![*id])?,
        Address::Name(name) => sql.row(select_stream!("WHERE name = ?1"), args![name.as_str()])?,
    };
    Ok(judge(row.map(read_stream).transpose()?))
}

pub(super) fn look_up(sql: &mut dyn Sql, at: &Address) -> Result<Lookup, StoreError> {
    Ok(judge(fetch(sql, at)?))
}

pub(super) fn judge(found: Option<Locked>) -> Lookup {
    match found {
        None => Lookup::Missing,
        Some(locked) if locked.row.deleted => Lookup::Gone,
        Some(locked) if locked.expired() => Lookup::Missing,
        Some(locked) => Lookup::Here(locked),
    }
}

/// Writes back a row that a rule changed.
pub(super) fn save(
    sql: &mut dyn Sql,
    row: &mut StreamRow,
    now: Wall,
    was: &Status,
) -> Result<(), StoreError> {
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
pub(super) fn save_appended(sql: &mut dyn Sql, row: &mut StreamRow, now: Wall) -> Result<(), StoreError> {
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
