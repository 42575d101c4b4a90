//! Messages of a stream: stored, brought from the log that is ahead of the tables, and read by pages.

use super::*;

/// How many messages a page of history has at most, however short they are.
pub(super) const PAGE_ROWS: u64 = 1_000;

pub(super) fn read_message(mut row: Row) -> Result<MessageRow, StoreError> {
    let (id, pos, kind) = (row.count()?, row.count()?, read_kind(&mut row)?);
    let (role, content) = (row.text_or_null()?, row.bytes()?);
    let (turn, upto) = (row.small_or_null()?, row.small_or_null()?);
    let fold = turn.zip(upto).map(|(turn, upto)| Fold { turn, upto });
    Ok(MessageRow { id, pos, kind, role, content: content.into(), fold, at: row.time()? })
}

/// The message of an id, if it was not removed. No message has an id beyond its position, and both rise together,
/// so that the index on positions leads to it: past no more rows than there were changes that are no messages.
pub(super) fn message_of(sql: &mut dyn Sql, stream: Uuid, id: u64) -> Result<Option<MessageRow>, StoreError> {
    let row = sql.row(
        "SELECT removed, id, pos, kind, role, content, turn_no, folded_to, ts FROM messages \
         WHERE stream_id = ?1 AND pos >= ?2 AND id >= ?2 ORDER BY pos LIMIT 1",
        args![stream, id],
    )?;
    let Some(mut row) = row else { return Ok(None) };
    let removed = row.flag()?;
    read_message(row).map(|message| Some(message).filter(|message| message.id == id && !removed))
}

pub(super) fn read_kind(row: &mut Row) -> Result<Kind, StoreError> {
    Ok(if row.int()? == 0 { Kind::Json } else { Kind::Bytes })
}

pub(super) fn kind_number(kind: Kind) -> i64 {
    match kind {
        Kind::Json => 0,
        Kind::Bytes => 1,
    }
}

/// Brings messages into the tables that wait, but for those that are there. What waits for a stream that is gone
/// goes with it.
pub(in crate::store) fn bring(sql: &mut dyn Sql, waiting: &Waiting) -> Result<(), StoreError> {
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
pub(super) const GIVES_WAY_EVERY: usize = 16;

/// A message that stands for no parts, as those are which were written ahead.
pub(super) const BROUGHT: &str = "INSERT INTO messages (stream_id, id, pos, gen, kind, role, content, ts) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// What appending changes of a row.
pub(super) const APPENDED: &str = "UPDATE streams SET pos = ?2, history_pos = ?3, last_msg = ?4, bytes = ?5, oldest_at = ?6, \
     updated_at = ?7 WHERE id = ?1";

pub(super) fn insert_row(
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
pub(super) fn insert_message(
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

/// The rows after `pos` that a fork's `beyond` may speak of.
pub(super) fn next_rows(
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

pub(super) fn catch_up_in(
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
pub(super) fn add_waiting<'a>(page: &mut Page, waiting: impl Iterator<Item = &'a MessageRow>, read: CatchUp) {
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
pub(super) fn read_page(
    sql: &mut dyn Sql,
    page: &mut Page,
    read: CatchUp,
    end: u64,
) -> Result<(), StoreError> {
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
