//! What goes: a stream, what expires, and history that is over its limits.

use super::*;

/// Removes a stream and everything of it, and the deleted streams that were kept only for it.
pub(super) fn purge(sql: &mut dyn Sql, row: StreamRow) -> Result<(), StoreError> {
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
pub(super) fn delete_row(sql: &mut dyn Sql, row: StreamRow) -> Result<bool, StoreError> {
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

/// Ends the lease of a stream whose row is locked, if it is to end.
pub(super) fn sweep_row(
    sql: &mut dyn Sql,
    locked: Locked,
    which: Sweep,
) -> Result<Option<Change>, StoreError> {
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
pub(super) fn trim_row(sql: &mut dyn Sql, locked: Locked, keep: Keep) -> Result<Option<Change>, StoreError> {
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
