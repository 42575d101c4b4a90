//! [`MetadataStore`] on any [`Database`].

use std::time::Duration;

use uuid::Uuid;

use super::metadata::*;
use super::sql::{Arg, Database, Mode, args};
use super::{Store, StoreError};
use crate::state::metadata::{Entry, Key};
use crate::state::time::Wall;

/// How many agents one statement reads.
const READ_IDS: usize = 32;

/// The metadata of one database connection.
///
/// Invariant: `last` pairs an engine's time with the database time its ages were taken from. A later
/// write never takes its ages from an earlier database time than that plus what the engine's clock has
/// advanced: otherwise a value that travelled fast would look older than one sent before it that
/// travelled slowly, and lose against it.
pub(crate) struct MetadataRows<D> {
    db: D,
    last: Option<(Wall, Wall)>,
}

impl<D: Database> MetadataRows<D> {
    pub(crate) fn new(db: D) -> MetadataRows<D> {
        MetadataRows { db, last: None }
    }

    /// The database time that ages taken at `now` may not start before.
    fn floor(&self, now: Wall) -> Option<Wall> {
        let (engine, database) = self.last?;
        (now >= engine).then(|| database + now.since(engine))
    }
}

impl<D: Database> Store for MetadataRows<D> {
    fn ping(&mut self) -> Result<(), StoreError> {
        self.db.ping()
    }
}

impl<D: Database> MetadataStore for MetadataRows<D> {
    fn upsert(&mut self, rows: &[(Key, Entry)], now: Wall, sight: Sight) -> Result<Upserted, StoreError> {
        let mut floor = self.floor(now);
        let mut all = Upserted::default();
        for chunk in rows.chunks(ROWS_PER_STATEMENT) {
            let (part, used) = self.db.upsert_metadata(chunk, now, floor, sight)?;
            all.rows += part.rows;
            let new = part.changed.into_iter().filter(|agent| all.changed.last() != Some(agent));
            all.changed.extend(new.collect::<Vec<_>>());
            floor = Some(used);
            self.last = Some((now, used));
        }
        Ok(all)
    }

    fn read(&mut self, agents: &[Uuid]) -> Result<Vec<MetadataRead>, StoreError> {
        let mut sorted = agents.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let mut values = Vec::new();
        for ids in sorted.chunks(READ_IDS) {
            let mut wanted = [Arg::Null; READ_IDS];
            for (slot, id) in wanted.iter_mut().zip(ids) {
                *slot = Arg::Id(*id);
            }
            let rows = self.db.transact(Mode::Single, |sql| {
                sql.query(
                    "SELECT m.agent_id, m.key, m.value, m.error, m.collected_at, towpath_now(), \
                     k.display_name, coalesce(k.display_order, 0) AS place FROM metadata m \
                     LEFT JOIN agent_keys k ON k.agent_id = m.agent_id AND k.key = m.key \
                     WHERE m.agent_id IN (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, \
                     ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32) \
                     ORDER BY m.agent_id, place, m.key",
                    &wanted,
                )
            })?;
            for mut row in rows {
                let (agent, key, value) = (row.id()?, row.text()?, row.text()?);
                let (error, collected_at, now) = (row.text()?, row.time()?, row.time()?);
                let display_name = row.text_or_null()?;
                let display_order = i32::try_from(row.int()?).unwrap_or(0);
                let age = now.since(collected_at);
                values.push(MetadataRead {
                    agent,
                    key,
                    value,
                    error,
                    collected_at,
                    age,
                    display_name,
                    display_order,
                });
            }
        }
        Ok(values)
    }

    fn put_agent(&mut self, agent: Uuid, name: &str) -> Result<bool, StoreError> {
        self.db.transact(Mode::Single, |sql| {
            let changed = sql.execute(
                "INSERT INTO agents (id, name) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE \
                 SET name = excluded.name WHERE agents.name <> excluded.name",
                args![agent, name],
            )?;
            Ok(changed > 0)
        })
    }

    fn agent(&mut self, agent: Uuid) -> Result<Option<AgentRow>, StoreError> {
        self.db.transact(Mode::Single, |sql| {
            let row = sql.row("SELECT name FROM agents WHERE id = ?1", args![agent])?;
            row.map(|mut row| Ok(AgentRow { id: agent, name: row.text()? })).transpose()
        })
    }

    fn agents(
        &mut self,
        prefix: &str,
        after: Option<&AgentRow>,
        limit: usize,
    ) -> Result<Vec<AgentRow>, StoreError> {
        let (after_name, after_id) = after.map_or(("", Uuid::nil()), |row| (row.name.as_str(), row.id));
        self.db.transact(Mode::Single, |sql| {
            sql.query(
                "SELECT id, name FROM agents WHERE name >= ?1 \
                 AND substr(name, 1, length(CAST(?1 AS TEXT))) = ?1 AND (name, id) > (?2, ?3) \
                 ORDER BY name, id LIMIT ?4",
                args![prefix, after_name, after_id, limit],
            )?
            .into_iter()
            .map(|mut row| Ok(AgentRow { id: row.id()?, name: row.text()? }))
            .collect()
        })
    }

    fn declare(&mut self, agent: Uuid, keys: &[KeyRow]) -> Result<(), StoreError> {
        self.db.transact(Mode::Write, |sql| {
            let name = agent.to_string();
            sql.execute(
                "INSERT INTO agents (id, name) VALUES (?1, ?2) ON CONFLICT (id) DO NOTHING",
                args![agent, name.as_str()],
            )?;
            sql.execute("DELETE FROM agent_keys WHERE agent_id = ?1", args![agent])?;
            for key in keys {
                sql.execute(
                    "INSERT INTO agent_keys (agent_id, key, display_name, display_order) \
                     VALUES (?1, ?2, ?3, ?4)",
                    args![agent, key.key.as_str(), key.display_name.as_str(), key.display_order],
                )?;
            }
            Ok(())
        })
    }

    fn declared(&mut self, agent: Uuid) -> Result<Vec<KeyRow>, StoreError> {
        self.db.transact(Mode::Single, |sql| {
            sql.query(
                "SELECT key, display_name, display_order FROM agent_keys WHERE agent_id = ?1 \
                 ORDER BY display_order, key",
                args![agent],
            )?
            .into_iter()
            .map(|mut row| {
                let (key, display_name) = (row.text()?, row.text()?);
                Ok(KeyRow { key, display_name, display_order: i32::try_from(row.int()?).unwrap_or(0) })
            })
            .collect()
        })
    }

    fn prune(&mut self, older_than: Duration, limit: usize) -> Result<u64, StoreError> {
        let age = i64::try_from(older_than.as_micros()).unwrap_or(i64::MAX);
        self.db.transact(Mode::Single, |sql| {
            sql.execute(
                "DELETE FROM metadata WHERE (agent_id, key) IN (SELECT agent_id, key FROM metadata \
                 WHERE collected_at < towpath_after(?1) ORDER BY collected_at LIMIT ?2)",
                args![-age, limit],
            )
        })
    }
}
