//! Rows: what outlives a process, one trait per aspect.
//!
//! A store value belongs to one thread and to one connection; every call blocks until the database
//! has answered. What a rule decides (a stream is running elsewhere, an offset lies beyond the tail)
//! comes back as an outcome; a [`StoreError`] means that the database could not be asked.
//!
//! The same tables stand on SQLite and on PostgreSQL, and one suite of tests holds both to the same
//! answers. Time comes from the database alone, so that replicas whose clocks are wrong agree.

use std::fmt;

use uuid::Uuid;

use crate::error::{Code, Error};

mod ahead;
mod connection_rows;
pub mod connections;
#[cfg(feature = "postgres")]
pub(crate) mod dial;
pub(crate) mod held;
pub mod metadata;
mod metadata_rows;
#[cfg(feature = "postgres")]
pub mod postgres;
mod replica_rows;
pub mod replicas;
mod sql;
pub mod sqlite;
mod stream_rows;
pub mod streams;
#[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "only PostgreSQL takes rows over"))]
mod tables;

pub use connections::ConnectionStore;
pub use metadata::MetadataStore;
pub use replicas::ReplicaStore;
pub use streams::StreamStore;
pub use tables::Moved;

/// Labels: a small map that is filtered by.
pub type Labels = std::collections::BTreeMap<String, String>;

/// Where stores come from. Each call opens a connection of its own.
pub trait Stores: Send + Sync {
    /// Streams, their messages, queues and turns.
    fn streams(&self) -> Result<Box<dyn StreamStore>, StoreError>;
    /// Agents and their metadata.
    fn metadata(&self) -> Result<Box<dyn MetadataStore>, StoreError>;
    /// The connection log and its dead letters.
    fn connections(&self) -> Result<Box<dyn ConnectionStore>, StoreError>;
    /// The registry of replicas and the relay's keys.
    fn replicas(&self) -> Result<Box<dyn ReplicaStore>, StoreError>;
    /// Which store this is.
    fn identity(&self) -> Identity;
    /// True when several processes may use it at once.
    fn is_shared(&self) -> bool;
    /// True when appends may be durable before the tables have them: see [`StreamStore::settle`].
    fn writes_ahead(&self) -> bool {
        false
    }
}

/// Tables made by a newer towpath: refused, because what it means by them is not known here.
fn newer_schema(part: &str, version: u32, known: u32) -> StoreError {
    StoreError::fatal(
        "newer_schema",
        format!(
            "the {part} tables have schema version {version}, and this towpath knows versions up to {known}; \
             start the newer towpath, or restore a backup made before it"
        ),
    )
}

/// What every store can be asked.
pub trait Store: Send {
    /// Answers if the database can be written to now: a probe after failures, and for readiness.
    fn ping(&mut self) -> Result<(), StoreError>;
}

/// Which store this is. A store that was lost or restored has another epoch, and every token
/// handed out before is recognised as foreign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Drawn when the store was made.
    pub store: Uuid,
    /// Drawn again when it was restored.
    pub epoch: Uuid,
}

/// What to do about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Try the same again later: no connection, a timeout, a conflict between transactions, a server
    /// that shuts down. The outcome may be unknown; writes are idempotent or carry a key.
    Retry,
    /// Some row of the batch is not acceptable: halve it until the bad rows are alone.
    Split,
    /// Trying again will not help, nor will halving: wrong credentials, a missing table, a full disk
    /// that stays full, a newer schema.
    Fatal,
}

/// Why the database could not be asked, or did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError {
    /// What to do about it.
    pub class: Class,
    /// What went wrong, stable between versions: `unreachable`, `timeout`, `busy`, `constraint`,
    /// `encoding`, `newer_schema`, `full`, `damaged`, …
    pub code: &'static str,
    /// What and where, for a person.
    pub text: String,
}

impl StoreError {
    /// Worth the same call again.
    pub fn retry(code: &'static str, text: impl Into<String>) -> StoreError {
        StoreError { class: Class::Retry, code, text: text.into() }
    }

    /// A row of the batch is at fault.
    pub fn split(code: &'static str, text: impl Into<String>) -> StoreError {
        StoreError { class: Class::Split, code, text: text.into() }
    }

    /// Nothing will make this call succeed.
    pub fn fatal(code: &'static str, text: impl Into<String>) -> StoreError {
        StoreError { class: Class::Fatal, code, text: text.into() }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for StoreError {}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        let code = match error.class {
            Class::Retry => Code::StoreUnavailable,
            Class::Split => Code::BadRequest,
            Class::Fatal if error.code == "newer_schema" => Code::BadConfig,
            Class::Fatal => Code::Io,
        };
        Error::new(code, error.text)
    }
}
