//! The connection log as rows.
//!
//! Records arrive in any order and more than once, so the merge commutes: `connect_time` is the
//! smallest known; a disconnect's time, reason and code come as one unit from the disconnect with the
//! smallest (time, id); everything else, the id included, comes from the record with the smallest
//! (time, id).

use uuid::Uuid;

use super::{Labels, Store, StoreError};
use crate::state::connection::{Kind, Row};
use crate::state::time::Wall;

/// The most rows one statement takes.
pub const ROWS_PER_STATEMENT: usize = 1_000;

/// What is asked of the connection log. Newest first.
///
/// ```
/// use towpath::{ConnectionKind, ConnectionQuery};
///
/// let query = ConnectionQuery { kinds: vec![ConnectionKind::Ssh], ongoing: Some(true), ..ConnectionQuery::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ConnectionQuery {
    /// Whose.
    pub organization_id: Option<Uuid>,
    /// Whose workspace.
    pub workspace_owner_id: Option<Uuid>,
    /// Which workspace.
    pub workspace_id: Option<Uuid>,
    /// Which agent.
    pub agent_name: Option<String>,
    /// Who.
    pub user_id: Option<Uuid>,
    /// Which connection.
    pub connection_id: Option<Uuid>,
    /// Any of these types; none means all.
    pub kinds: Vec<Kind>,
    /// `Some(true)`: has not ended and is of a type that lasts. `Some(false)`: all others.
    pub ongoing: Option<bool>,
    /// Connected at or after.
    pub connected_after: Option<Wall>,
    /// Connected at or before.
    pub connected_before: Option<Wall>,
    /// All of these.
    pub labels: Labels,
    /// Only rows after this one: the last of the page before.
    pub after: Option<Cursor>,
    /// Skip so many; counted after `after`.
    pub offset: u64,
    /// At most so many.
    pub limit: usize,
}

/// A row's place among all, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The row's connect time.
    pub connect_time: Wall,
    /// The row's id.
    pub id: Uuid,
}

/// How many rows a query has, counted no further than a cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Rows counted.
    pub rows: u64,
    /// True when there are more.
    pub capped: bool,
}

/// A record that no write accepted, kept with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The record's id.
    pub id: Uuid,
    /// The record as JSON.
    pub record: String,
    /// What the database said.
    pub error: String,
    /// When it was set aside; ignored when written.
    pub at: Wall,
}

/// The connection log.
pub trait ConnectionStore: Store {
    /// Writes rows whose keys are distinct, merging each with what is stored. Idempotent.
    fn upsert(&mut self, rows: &[Row]) -> Result<(), StoreError>;
    /// One page.
    fn query(&mut self, query: &ConnectionQuery) -> Result<Vec<Row>, StoreError>;
    /// How many rows the query has in all, pages aside, counted up to `cap`.
    fn count(&mut self, query: &ConnectionQuery, cap: u64) -> Result<Count, StoreError>;
    /// Deletes connections that began before `before`, oldest first, `limit` at most; how many.
    fn prune(&mut self, before: Wall, limit: usize) -> Result<u64, StoreError>;
    /// Sets records aside for a person to look at.
    fn bury(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError>;
    /// Records set aside, oldest first, after the last of the page before.
    fn dead_letters(
        &mut self,
        after: Option<(Wall, Uuid)>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError>;
    /// How many are set aside.
    fn dead_letter_count(&mut self) -> Result<u64, StoreError>;
}
