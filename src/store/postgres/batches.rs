//! The two big writes: one prepared statement from parallel arrays, whatever the number of rows.

use postgres::types::ToSql;
use uuid::Uuid;

use super::super::connection_rows::{Columns, merge_sql};
use super::super::metadata::{Sight, Upserted};
use super::super::sql::labels_text;
use super::super::{StoreError, dial::classify};
use super::{Link, Timestamp, during};
use crate::state::connection::Row;
use crate::state::metadata::{Entry, Key};
use crate::state::time::Wall;

/// Rows come sorted by key and are locked in that order, so two replicas that write the same keys
/// wait for each other in turn, never in a circle.
const REGISTER: &str = "\
    WITH clock AS MATERIALIZED (SELECT greatest(towpath_now(), ?6::timestamptz) AS now), \
    given AS MATERIALIZED (SELECT * FROM unnest(?1::uuid[], ?2::text[], ?3::text[], ?4::text[], ?5::bigint[]) \
        AS row (agent_id, key, value, error, age)), \
    made AS (INSERT INTO agents (id, name) SELECT DISTINCT agent_id, agent_id::text AS name FROM given \
        ORDER BY agent_id ON CONFLICT (id) DO NOTHING), \
    written AS (INSERT INTO metadata (agent_id, key, value, error, collected_at) \
        SELECT agent_id, key, value, error, now - age * interval '1 microsecond' FROM given, clock \
        ORDER BY agent_id, key COLLATE \"C\" \
        ON CONFLICT (agent_id, key) DO UPDATE SET value = excluded.value, error = excluded.error, \
            collected_at = excluded.collected_at WHERE excluded.collected_at > metadata.collected_at \
        RETURNING agent_id) \
    SELECT now, agent_id, count FROM clock LEFT JOIN \
        (SELECT agent_id, count(*) AS count FROM written GROUP BY agent_id) AS changed ON true \
    ORDER BY agent_id";

/// An update takes its locks in whatever order it meets the rows, so they are locked in order first.
const UPDATE_ONLY: &str = "\
    WITH clock AS MATERIALIZED (SELECT greatest(towpath_now(), ?6::timestamptz) AS now), \
    given AS MATERIALIZED (SELECT * FROM unnest(?1::uuid[], ?2::text[], ?3::text[], ?4::text[], ?5::bigint[]) \
        AS row (agent_id, key, value, error, age)), \
    there AS MATERIALIZED (SELECT m.agent_id, m.key FROM metadata m JOIN given USING (agent_id, key) \
        ORDER BY m.agent_id, m.key FOR UPDATE OF m), \
    written AS (UPDATE metadata m SET value = given.value, error = given.error, \
            collected_at = now - age * interval '1 microsecond' \
        FROM there JOIN given USING (agent_id, key), clock \
        WHERE m.agent_id = there.agent_id AND m.key = there.key \
            AND m.collected_at < now - age * interval '1 microsecond' RETURNING m.agent_id) \
    SELECT now, agent_id, count FROM clock LEFT JOIN \
        (SELECT agent_id, count(*) AS count FROM written GROUP BY agent_id) AS changed ON true \
    ORDER BY agent_id";

pub(super) fn upsert_metadata(
    link: &mut Link,
    rows: &[(Key, Entry)],
    now: Wall,
    floor: Option<Wall>,
    sight: Sight,
) -> Result<(Upserted, Wall), StoreError> {
    let sql = match sight {
        Sight::Register => REGISTER,
        Sight::UpdateOnly => UPDATE_ONLY,
    };
    let statement = link.prepared(sql)?;
    let agents: Vec<Uuid> = rows.iter().map(|(key, _)| key.agent).collect();
    let keys: Vec<&str> = rows.iter().map(|(key, _)| &*key.key).collect();
    let values: Vec<&str> = rows.iter().map(|(_, entry)| entry.value.as_str()).collect();
    let errors: Vec<&str> = rows.iter().map(|(_, entry)| entry.error.as_str()).collect();
    let ages: Vec<i64> = rows
        .iter()
        // Less than nothing for what was dated after a write before it: it must stay after it.
        .map(|(_, entry)| now.0.saturating_sub(entry.collected_at.0))
        .collect();
    let floor = floor.map(Timestamp);
    let args: [&(dyn ToSql + Sync); 6] = [&agents, &keys, &values, &errors, &ages, &floor];
    let found = link.client.query(&statement, &args).map_err(|e| during(sql, &e))?;
    let mut upserted = Upserted::default();
    let mut used = now;
    for row in found {
        if let super::Value::Time(time) = row.try_get(0).map_err(|e| classify(&e))? {
            used = time;
        }
        if let Some(agent) = row.try_get(1).map_err(|e| classify(&e))? {
            upserted.changed.push(agent);
            let count: i64 = row.try_get(2).map_err(|e| classify(&e))?;
            upserted.rows += u64::try_from(count).unwrap_or(0);
        }
    }
    Ok((upserted, used))
}

macro_rules! unnested {
    ($kind:ident) => {
        merge_sql!(
            "SELECT c.id, c.connect_time, c.type, c.organization_id, c.workspace_owner_id, c.workspace_id, \
             c.workspace_name, c.agent_name, c.ip, c.user_agent, c.user_id, c.slug_or_port, c.connection_id, \
             c.disconnect_time, c.disconnect_reason, c.code, c.first_time, c.ended_by, c.labels::jsonb \
             FROM unnest(?1::uuid[], ?2::timestamptz[], ?3::text[], ?4::uuid[], ?5::uuid[], ?6::uuid[], \
             ?7::text[], ?8::text[], ?9::text[], ?10::text[], ?11::uuid[], ?12::text[], ?13::uuid[], \
             ?14::timestamptz[], ?15::text[], ?16::int4[], ?17::timestamptz[], ?18::uuid[], ?19::text[]) \
             AS c (id, connect_time, type, organization_id, workspace_owner_id, workspace_id, \
             workspace_name, agent_name, ip, user_agent, user_id, slug_or_port, connection_id, \
             disconnect_time, disconnect_reason, code, first_time, ended_by, labels)",
            $kind
        )
    };
}

pub(super) fn upsert_connections(link: &mut Link, rows: &[Row]) -> Result<(), StoreError> {
    let (mut joined, mut alone): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.first.connection_id.is_some());
    // In the order of their keys, so that two replicas cannot wait for each other in a circle.
    joined.sort_by(|a, b| {
        let key = |row: &Row| (row.first.connection_id, row.first.workspace_id);
        key(a).cmp(&key(b)).then_with(|| a.first.agent_name.cmp(&b.first.agent_name))
    });
    alone.sort_by_key(|row| row.first.id);
    insert(link, unnested!(joined), &joined)?;
    insert(link, unnested!(alone), &alone)
}

fn insert(link: &mut Link, sql: &'static str, rows: &[&Row]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = link.prepared(sql)?;
    let columns: Vec<Columns<'_>> = rows.iter().map(|row| Columns::of(row)).collect();
    macro_rules! column {
        ($row:ident => $value:expr) => {
            rows.iter().map(|$row| $value).collect::<Vec<_>>()
        };
    }
    macro_rules! derived {
        ($row:ident => $value:expr) => {
            columns.iter().map(|$row| $value).collect::<Vec<_>>()
        };
    }
    let args: [&(dyn ToSql + Sync); 19] = [
        &column!(row => row.first.id),
        &column!(row => Timestamp(row.connect_time)),
        &column!(row => row.first.kind.as_str()),
        &column!(row => row.first.organization_id),
        &column!(row => row.first.workspace_owner_id),
        &column!(row => row.first.workspace_id),
        &derived!(row => row.workspace_name),
        &column!(row => row.first.agent_name.as_str()),
        &derived!(row => row.ip.as_deref()),
        &derived!(row => row.user_agent),
        &column!(row => row.first.user_id),
        &derived!(row => row.slug_or_port),
        &column!(row => row.first.connection_id),
        &derived!(row => row.disconnect_time.map(Timestamp)),
        &derived!(row => row.disconnect_reason),
        &derived!(row => row.code),
        &column!(row => Timestamp(row.first.time)),
        &derived!(row => row.ended_by),
        &column!(row => labels_text(&row.first.labels)),
    ];
    link.client.execute(&statement, &args).map(|_| ()).map_err(|e| during(sql, &e))
}
