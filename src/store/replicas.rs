//! The registry of replicas and the relay's keys, as rows.

use std::time::Duration;

use uuid::Uuid;

use super::{Store, StoreError};
use crate::state::time::Wall;

/// What a replica says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// New at each start.
    pub id: Uuid,
    /// The machine.
    pub hostname: String,
    /// Where its relay listens; none when it has none.
    pub relay_url: Option<String>,
    /// Which towpath.
    pub version: String,
    /// Which of its peers it cannot reach; empty when all is well.
    pub error: String,
}

/// A replica as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRead {
    /// What it says about itself.
    pub replica: ReplicaRow,
    /// When it started.
    pub started_at: Wall,
    /// When it was last heard of.
    pub updated_at: Wall,
    /// How long ago that is, by the database's clock.
    pub age: Duration,
    /// When it stopped, if it said so.
    pub stopped_at: Option<Wall>,
}

/// What a beat found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The row was there.
    Updated,
    /// It was not, and is again.
    Inserted,
}

/// A key that relay tickets are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct RelayKey {
    /// Which one.
    pub id: Uuid,
    /// The secret.
    pub secret: [u8; 32],
    /// When it was made.
    pub created_at: Wall,
}

impl std::fmt::Debug for RelayKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelayKey({}, [redacted])", self.id)
    }
}

/// The registry of replicas.
pub trait ReplicaStore: Store {
    /// Writes the own row: makes it, brings it up to date, or makes it again if it vanished.
    fn beat(&mut self, replica: &ReplicaRow) -> Result<Beat, StoreError>;
    /// All rows, by start.
    fn list(&mut self) -> Result<Vec<ReplicaRead>, StoreError>;
    /// Marks the own row as cleanly stopped.
    fn stop(&mut self, replica: Uuid) -> Result<(), StoreError>;
    /// Deletes rows not heard of for this long; how many.
    fn clean(&mut self, silent_for: Duration) -> Result<u64, StoreError>;
    /// The keys in use, the one to sign with first. `fresh` becomes a key if there is none younger
    /// than `rotate_after`; keys older than twice that are deleted.
    fn relay_keys(&mut self, fresh: RelayKey, rotate_after: Duration) -> Result<Vec<RelayKey>, StoreError>;
}
