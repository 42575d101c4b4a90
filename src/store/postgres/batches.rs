//! The two big writes: prepared statements from parallel arrays, whatever the number of rows.

use std::collections::BTreeMap;

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

/// A write of metadata: the database's time that ages count from, and what is done with the rows given.
///
/// Writers take turns, so two replicas that write the same keys never wait for each other in a circle, whatever
/// order the planner has them locked in. Locking the rows in order before updating them, or inserting all of
/// them on conflict, costs the server half as much again. Their time is taken before they wait for their turn.
macro_rules! metadata_sql {
    ($now:literal, $written:literal) => {
        concat!(
            "WITH clock AS MATERIALIZED (SELECT ",
            $now,
            " AS now, pg_advisory_xact_lock(8390055955569931361) AS turn), \
             given AS MATERIALIZED (SELECT row.agent_id, row.key, row.value, row.error, \
                now - age * interval '1 microsecond' AS at FROM clock, \
                unnest(?1::uuid[], ?2::text[], ?3::text[], ?4::text[], ?5::bigint[]) \
                AS row (agent_id, key, value, error, age)), ",
            $written,
            " SELECT now, agent_id, count FROM clock LEFT JOIN \
                (SELECT agent_id, count(*) AS count FROM written GROUP BY agent_id) AS changed ON true"
        )
    };
}

/// Nearly always all there is to do.
const UPDATE: &str = metadata_sql!(
    "greatest(towpath_now(), ?6::timestamptz)",
    "written AS (UPDATE metadata m SET value = given.value, error = given.error, collected_at = given.at \
        FROM given WHERE m.agent_id = given.agent_id AND m.key = given.key AND m.collected_at < given.at \
        RETURNING m.agent_id)"
);

/// For agents with keys that the update did not find. What it did write is as new as it would be now, and
/// stays.
const REGISTER: &str = metadata_sql!(
    "?6::timestamptz",
    "made AS (INSERT INTO agents (id, name) SELECT DISTINCT agent_id, agent_id::text AS name FROM given \
        ORDER BY agent_id ON CONFLICT (id) DO NOTHING), \
    written AS (INSERT INTO metadata (agent_id, key, value, error, collected_at) \
        SELECT agent_id, key, value, error, at FROM given \
        ON CONFLICT (agent_id, key) DO UPDATE SET value = excluded.value, error = excluded.error, \
            collected_at = excluded.collected_at WHERE excluded.collected_at > metadata.collected_at \
        RETURNING agent_id)"
);

pub(super) fn upsert_metadata(
    link: &mut Link,
    rows: &[(Key, Entry)],
    now: Wall,
    floor: Option<Wall>,
    sight: Sight,
) -> Result<(Upserted, Wall), StoreError> {
    let all: Vec<&(Key, Entry)> = rows.iter().collect();
    let (mut changed, used) = write_metadata(link, UPDATE, &all, now, floor)?;
    if sight == Sight::Register && changed.values().sum::<usize>() < rows.len() {
        let mut given: BTreeMap<Uuid, usize> = BTreeMap::new();
        all.iter().for_each(|(key, _)| *given.entry(key.agent).or_default() += 1);
        let left: Vec<_> =
            all.into_iter().filter(|(key, _)| changed.get(&key.agent) != given.get(&key.agent)).collect();
        let (made, _) = write_metadata(link, REGISTER, &left, now, Some(used))?;
        made.into_iter().for_each(|(agent, count)| *changed.entry(agent).or_default() += count);
    }
    let rows = changed.values().sum::<usize>() as u64;
    Ok((Upserted { changed: changed.into_keys().collect(), rows }, used))
}

/// How many rows of each agent changed, and the database's time.
fn write_metadata(
    link: &mut Link,
    sql: &'static str,
    rows: &[&(Key, Entry)],
    now: Wall,
    floor: Option<Wall>,
) -> Result<(BTreeMap<Uuid, usize>, Wall), StoreError> {
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
    let mut changed = BTreeMap::new();
    let mut used = now;
    for row in found {
        if let super::Value::Time(time) = row.try_get(0).map_err(|e| classify(&e))? {
            used = time;
        }
        if let Some(agent) = row.try_get(1).map_err(|e| classify(&e))? {
            let count: i64 = row.try_get(2).map_err(|e| classify(&e))?;
            changed.insert(agent, usize::try_from(count).unwrap_or(0));
        }
    }
    Ok((changed, used))
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

/// Writes rows that name a connection and rows that do not, each sorted by key; either may be none.
pub(super) fn upsert_connections(link: &mut Link, joined: &[&Row], alone: &[&Row]) -> Result<(), StoreError> {
    insert(link, unnested!(joined), joined)?;
    insert(link, unnested!(alone), alone)
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
