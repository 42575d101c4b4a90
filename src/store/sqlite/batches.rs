//! The two big writes: prepared statements in one transaction, which is what SQLite likes best.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::super::connection_rows::{Columns, in_order, merge_sql};
use super::super::metadata::{Sight, Upserted};
use super::super::{StoreError, sql::labels_text};
use super::failed;
use crate::state::connection::Row;
use crate::state::metadata::{Entry, Key};
use crate::state::time::Wall;

const INSERT_VALUE: &str = "INSERT INTO metadata (agent_id, key, value, error, collected_at) \
     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (agent_id, key) DO UPDATE SET value = excluded.value, \
     error = excluded.error, collected_at = excluded.collected_at \
     WHERE excluded.collected_at > metadata.collected_at";
const UPDATE_VALUE: &str = "UPDATE metadata SET value = ?3, error = ?4, collected_at = ?5 \
     WHERE agent_id = ?1 AND key = ?2 AND collected_at < ?5";

pub(super) fn upsert_metadata(
    connection: &Connection,
    rows: &[(Key, Entry)],
    now: Wall,
    floor: Option<Wall>,
    sight: Sight,
) -> Result<(Upserted, Wall), StoreError> {
    let at = |e| failed("writing metadata", e);
    let here: i64 = connection.query_row("SELECT towpath_now()", [], |row| row.get(0)).map_err(at)?;
    let here = floor.map_or(Wall(here), |floor| floor.max(Wall(here)));
    let statement = match sight {
        Sight::Register => INSERT_VALUE,
        Sight::UpdateOnly => UPDATE_VALUE,
    };
    let mut write = connection.prepare_cached(statement).map_err(at)?;
    let mut register = connection
        .prepare_cached("INSERT INTO agents (id, name) VALUES (?1, ?2) ON CONFLICT (id) DO NOTHING")
        .map_err(at)?;
    let mut changed = BTreeSet::new();
    let mut count = 0;
    let mut last = None;
    for (key, entry) in rows {
        let agent = key.agent.as_bytes().as_slice();
        if sight == Sight::Register && last != Some(key.agent) {
            register.execute(params![agent, key.agent.to_string()]).map_err(at)?;
            last = Some(key.agent);
        }
        // Less than nothing for what was dated after a write before it: it must stay after it.
        let collected_at = Wall(here.0.saturating_sub(now.0.saturating_sub(entry.collected_at.0)));
        let wrote =
            write.execute(params![agent, &*key.key, entry.value, entry.error, collected_at.0]).map_err(at)?;
        if wrote > 0 {
            changed.insert(key.agent);
            count += 1;
        }
    }
    Ok((Upserted { changed: changed.into_iter().collect(), rows: count }, here))
}

/// An id as SQLite keeps it.
fn blob(id: Option<&Uuid>) -> Option<&[u8]> {
    id.map(|id| id.as_bytes().as_slice())
}

pub(super) fn upsert_connections(connection: &Connection, rows: &[Row]) -> Result<(), StoreError> {
    let at = |e| failed("writing connections", e);
    let mut merged = connection
        .prepare_cached(merge_sql!(
            "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
            joined
        ))
        .map_err(at)?;
    let mut alone = connection
        .prepare_cached(merge_sql!(
            "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
            alone
        ))
        .map_err(at)?;
    let (joined, single) = in_order(rows);
    for row in joined.into_iter().chain(single) {
        let columns = Columns::of(row);
        let statement = if row.first.connection_id.is_some() { &mut merged } else { &mut alone };
        statement
            .execute(params![
                blob(Some(&row.first.id)),
                row.connect_time.0,
                row.first.kind.as_str(),
                blob(row.first.organization_id.as_ref()),
                blob(row.first.workspace_owner_id.as_ref()),
                blob(Some(&row.first.workspace_id)),
                columns.workspace_name,
                row.first.agent_name,
                columns.ip,
                columns.user_agent,
                blob(row.first.user_id.as_ref()),
                columns.slug_or_port,
                blob(row.first.connection_id.as_ref()),
                columns.disconnect_time.map(|time| time.0),
                columns.disconnect_reason,
                columns.code,
                row.first.time.0,
                blob(columns.ended_by.as_ref()),
                labels_text(&row.first.labels),
            ])
            .map_err(at)?;
    }
    Ok(())
}
