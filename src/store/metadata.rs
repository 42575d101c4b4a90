//! Agents and the latest value of each of their keys, as rows.

use std::time::Duration;

use uuid::Uuid;

use super::{Store, StoreError};
use crate::state::metadata::{Entry, Key};
use crate::state::time::Wall;

/// The most rows one statement takes.
pub const ROWS_PER_STATEMENT: usize = 5_000;

/// What a key that is not there yet means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sight {
    /// The agent and the key are made.
    #[default]
    Register,
    /// Only keys that are there are written.
    UpdateOnly,
}

/// What a write of metadata did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Upserted {
    /// The agents with at least one row that changed, in order.
    pub changed: Vec<Uuid>,
    /// How many rows changed.
    pub rows: u64,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRow {
    /// Its key.
    pub id: Uuid,
    /// What people call it; its id, until someone named it.
    pub name: String,
}

/// How a key is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// The key.
    pub key: String,
    /// What people call it.
    pub display_name: String,
    /// Where it stands among the agent's keys.
    pub display_order: i32,
}

/// A value as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataRead {
    /// Who reported.
    pub agent: Uuid,
    /// What.
    pub key: String,
    /// What was measured.
    pub value: String,
    /// Why it could not be; empty when it could.
    pub error: String,
    /// When it was collected, by the database's clock.
    pub collected_at: Wall,
    /// How long ago that was when it was read.
    pub age: Duration,
    /// What people call the key, if declared.
    pub display_name: Option<String>,
    /// Where it stands, 0 unless declared.
    pub display_order: i32,
}

/// Agents and their metadata.
pub trait MetadataStore: Store {
    /// Writes rows that are sorted by key and name each key once. An older value never replaces a newer
    /// one.
    ///
    /// `now` is the clock that stamped the entries: what is stored is the database's time less the
    /// entry's age, so that only the database's clock counts between replicas. Two writes through one
    /// store keep the order of their entries even when the first took longer to arrive.
    fn upsert(&mut self, rows: &[(Key, Entry)], now: Wall, sight: Sight) -> Result<Upserted, StoreError>;
    /// The values of these agents, by agent, display order, key.
    fn read(&mut self, agents: &[Uuid]) -> Result<Vec<MetadataRead>, StoreError>;
    /// Makes an agent or gives it another name. True when something changed.
    fn put_agent(&mut self, agent: Uuid, name: &str) -> Result<bool, StoreError>;
    /// One agent.
    fn agent(&mut self, agent: Uuid) -> Result<Option<AgentRow>, StoreError>;
    /// Agents whose name begins with `prefix`, by (name, id), after the last of the page before.
    fn agents(
        &mut self,
        prefix: &str,
        after: Option<&AgentRow>,
        limit: usize,
    ) -> Result<Vec<AgentRow>, StoreError>;
    /// Says how an agent's keys are shown; what was said before is replaced.
    fn declare(&mut self, agent: Uuid, keys: &[KeyRow]) -> Result<(), StoreError>;
    /// How an agent's keys are shown.
    fn declared(&mut self, agent: Uuid) -> Result<Vec<KeyRow>, StoreError>;
    /// Deletes values collected longer ago than this, `limit` at most; how many.
    fn prune(&mut self, older_than: Duration, limit: usize) -> Result<u64, StoreError>;
}
