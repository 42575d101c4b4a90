//! The little of SQL that both databases have in common, so that a rule is written once.
//!
//! Statements are written with `?1`, `?2`… and two comments that PostgreSQL's side turns into clauses
//! and SQLite reads as what they are: `/*lock*/` (`FOR UPDATE`) and `/*skip*/` (`FOR UPDATE SKIP LOCKED`).
//! SQLite needs neither: its writers are one after the other.
//!
//! Time comes from two functions that both databases have: `towpath_now()` and
//! `towpath_after(microseconds)`; `towpath_has(labels, wanted)` says whether labels contain others.

use std::borrow::Cow;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::metadata::{Sight, Upserted};
use super::streams::Grouped;
use super::{Labels, StoreError};
use crate::state::connection;
use crate::state::metadata::{Entry, Key};
use crate::state::time::Wall;

/// A parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg<'a> {
    Null,
    Int(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Id(Uuid),
    Time(Wall),
}

impl From<i64> for Arg<'_> {
    fn from(value: i64) -> Self {
        Arg::Int(value)
    }
}

impl From<u64> for Arg<'_> {
    /// Positions and sizes: none reaches 2^63.
    fn from(value: u64) -> Self {
        Arg::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Arg<'_> {
    fn from(value: u32) -> Self {
        Arg::Int(i64::from(value))
    }
}

impl From<i32> for Arg<'_> {
    fn from(value: i32) -> Self {
        Arg::Int(i64::from(value))
    }
}

impl From<usize> for Arg<'_> {
    fn from(value: usize) -> Self {
        Arg::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl<'a> From<&'a str> for Arg<'a> {
    fn from(value: &'a str) -> Self {
        Arg::Text(value)
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(value: &'a [u8]) -> Self {
        Arg::Bytes(value)
    }
}

impl From<Uuid> for Arg<'_> {
    fn from(value: Uuid) -> Self {
        Arg::Id(value)
    }
}

impl From<Wall> for Arg<'_> {
    fn from(value: Wall) -> Self {
        Arg::Time(value)
    }
}

impl<'a, T: Into<Arg<'a>>> From<Option<T>> for Arg<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Arg::Null, Into::into)
    }
}

/// Parameters from anything that is one: `args![id, pos, "text"]`.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::store::sql::Arg::from($value)),*] };
}
pub(crate) use args;

/// Gives the store another epoch and every stream another tag, so that no token handed out before is taken
/// for one of these rows. Streams that shared a tag, as forks do with their source, share the new one.
pub(super) fn begin_epoch(sql: &mut dyn Sql, store: Uuid, epoch: Uuid) -> Result<(), StoreError> {
    sql.execute("UPDATE store SET epoch = ?1", args![epoch])?;
    for mut row in sql.query("SELECT id, tag FROM streams", args![])? {
        let (id, tag) = (row.id()?, row.bytes()?);
        let hash = Sha256::new()
            .chain_update(store.as_bytes())
            .chain_update(epoch.as_bytes())
            .chain_update(tag)
            .finalize();
        sql.execute("UPDATE streams SET tag = ?2 WHERE id = ?1", args![id, &hash[..4]])?;
    }
    Ok(())
}

/// What a column holds. SQLite has no ids and no times: there they are bytes and integers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
    Id(Uuid),
    Time(Wall),
}

/// A row, read column by column from the left.
pub(crate) struct Row(std::vec::IntoIter<Value>);

impl Row {
    pub(crate) fn new(values: Vec<Value>) -> Row {
        Row(values.into_iter())
    }

    fn next(&mut self) -> Value {
        self.0.next().unwrap_or(Value::Null)
    }

    pub(crate) fn int_or_null(&mut self) -> Result<Option<i64>, StoreError> {
        match self.next() {
            Value::Null => Ok(None),
            Value::Int(value) => Ok(Some(value)),
            other => Err(odd("a number", &other)),
        }
    }

    pub(crate) fn int(&mut self) -> Result<i64, StoreError> {
        self.int_or_null()?.ok_or_else(|| odd("a number", &Value::Null))
    }

    /// A count, a position, a number of bytes.
    pub(crate) fn count(&mut self) -> Result<u64, StoreError> {
        let value = self.int()?;
        u64::try_from(value).map_err(|_| odd("a count", &Value::Int(value)))
    }

    pub(crate) fn count_or_null(&mut self) -> Result<Option<u64>, StoreError> {
        Ok(self.int_or_null()?.and_then(|value| u64::try_from(value).ok()))
    }

    /// A generation, a turn, a part.
    pub(crate) fn small(&mut self) -> Result<u32, StoreError> {
        let value = self.int()?;
        u32::try_from(value).map_err(|_| odd("a small count", &Value::Int(value)))
    }

    pub(crate) fn small_or_null(&mut self) -> Result<Option<u32>, StoreError> {
        Ok(self.int_or_null()?.and_then(|value| u32::try_from(value).ok()))
    }

    pub(crate) fn flag(&mut self) -> Result<bool, StoreError> {
        Ok(self.int_or_null()?.unwrap_or(0) != 0)
    }

    pub(crate) fn text_or_null(&mut self) -> Result<Option<String>, StoreError> {
        match self.next() {
            Value::Null => Ok(None),
            Value::Text(value) => Ok(Some(value)),
            other => Err(odd("a text", &other)),
        }
    }

    pub(crate) fn text(&mut self) -> Result<String, StoreError> {
        self.text_or_null()?.ok_or_else(|| odd("a text", &Value::Null))
    }

    pub(crate) fn bytes_or_null(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        match self.next() {
            Value::Null => Ok(None),
            Value::Bytes(value) => Ok(Some(value)),
            other => Err(odd("bytes", &other)),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        self.bytes_or_null()?.ok_or_else(|| odd("bytes", &Value::Null))
    }

    /// Bytes of a fixed length: a hash, a tag.
    pub(crate) fn exactly<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let bytes = self.bytes()?;
        <[u8; N]>::try_from(bytes).map_err(|bytes| odd("bytes of a fixed length", &Value::Bytes(bytes)))
    }

    pub(crate) fn id_or_null(&mut self) -> Result<Option<Uuid>, StoreError> {
        match self.next() {
            Value::Null => Ok(None),
            Value::Id(id) => Ok(Some(id)),
            Value::Bytes(bytes) => {
                Uuid::from_slice(&bytes).map(Some).map_err(|_| odd("an id", &Value::Bytes(bytes)))
            }
            other => Err(odd("an id", &other)),
        }
    }

    pub(crate) fn id(&mut self) -> Result<Uuid, StoreError> {
        self.id_or_null()?.ok_or_else(|| odd("an id", &Value::Null))
    }

    pub(crate) fn time_or_null(&mut self) -> Result<Option<Wall>, StoreError> {
        match self.next() {
            Value::Null => Ok(None),
            Value::Time(time) => Ok(Some(time)),
            Value::Int(micros) => Ok(Some(Wall(micros))),
            other => Err(odd("a time", &other)),
        }
    }

    pub(crate) fn time(&mut self) -> Result<Wall, StoreError> {
        self.time_or_null()?.ok_or_else(|| odd("a time", &Value::Null))
    }

    pub(crate) fn labels(&mut self) -> Result<Labels, StoreError> {
        let text = self.text()?;
        serde_json::from_str(&text).map_err(|_| odd("labels", &Value::Text(text)))
    }
}

/// A column that holds what this program never writes there.
fn odd(expected: &str, found: &Value) -> StoreError {
    StoreError::fatal(
        "damaged",
        format!("the database holds {found:?} where {expected} should be; restore it from a backup"),
    )
}

/// Labels as they are stored and asked for.
pub(crate) fn labels_text(labels: &Labels) -> Cow<'static, str> {
    if labels.is_empty() {
        return "{}".into();
    }
    serde_json::to_string(labels).expect("a map of texts is JSON").into()
}

/// What runs statements, inside a transaction or outside.
pub(crate) trait Sql {
    /// Runs a statement that answers nothing; how many rows it touched.
    fn execute(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, StoreError>;
    /// Runs a statement and collects its rows.
    fn query(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<Row>, StoreError>;

    /// Runs a statement that has one row or none.
    fn row(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Option<Row>, StoreError> {
        Ok(self.query(sql, args)?.into_iter().next())
    }

    /// Runs a statement that always has a row, as counts do.
    fn one(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Row, StoreError> {
        let row = self.row(sql, args)?;
        row.ok_or_else(|| StoreError::fatal("damaged", format!("no row from: {sql}")))
    }
}

/// How the statements of one piece of work hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One statement, which is a transaction by itself.
    Single,
    /// Several reads of one moment.
    Read,
    /// All or nothing.
    Write,
}

/// A connection to either database.
pub(crate) trait Database: Send {
    /// Does a piece of work. On an error nothing of it stays, unless the commit itself failed: then
    /// nobody knows.
    fn transact<T>(
        &mut self,
        mode: Mode,
        work: impl FnOnce(&mut dyn Sql) -> Result<T, StoreError>,
    ) -> Result<T, StoreError>;

    /// From here on what is written becomes durable together, at [`Database::end_group`].
    fn begin_group(&mut self) -> Result<(), StoreError>;

    /// Whether nothing in the group has failed so far.
    fn group_stands(&self) -> bool;

    /// Commits the group, or undoes it if something in it failed.
    fn end_group(&mut self) -> Result<Grouped, StoreError>;

    /// Answers if the database can be written to now.
    fn ping(&mut self) -> Result<(), StoreError>;

    /// Writes values whose ages count from `now` back, and from the database's time or from `floor`,
    /// whichever is later; which of the two it was.
    fn upsert_metadata(
        &mut self,
        rows: &[(Key, Entry)],
        now: Wall,
        floor: Option<Wall>,
        sight: Sight,
    ) -> Result<(Upserted, Wall), StoreError>;

    /// Merges connections into those that are stored.
    fn upsert_connections(&mut self, rows: &[connection::Row]) -> Result<(), StoreError>;
}
