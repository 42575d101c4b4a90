//! The stores on SQLite: three files in a directory of one process, or one database in memory.
//!
//! On disk every connection is its owner's, in WAL mode with `synchronous = FULL`; writers begin with
//! `BEGIN IMMEDIATE`, so that they queue up instead of failing in the middle. In memory all share one
//! connection behind a lock, which is what makes a simulation deterministic.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rusqlite::functions::FunctionFlags;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, params_from_iter};

use super::ahead::{Ahead, Lead};
use super::connection_rows::ConnectionRows;
use super::held::{Asked, Held};
use super::metadata_rows::MetadataRows;
use super::replica_rows::ReplicaRows;
use super::sql::{Arg, Database, Mode, Row, Sql, Value, begin_epoch};
use super::stream_rows::{StreamRows, bring};
use super::streams::{Grouped, Sweep};
use super::*;
use crate::rt::Lock;
use crate::state::time::Wall;

pub mod backup;
mod batches;
mod tables;

/// What a clock says now. A simulation hands over its own.
pub type Clock = Arc<dyn Fn() -> Wall + Send + Sync>;

/// How long a writer waits for another one: longer than any transaction here takes on a slow disk.
const BUSY: Duration = Duration::from_secs(5);

/// How many pages are written ahead before they go to their places: 16 MiB. Whoever commits then waits for two
/// more syncs, and a page that was written many times meanwhile goes there once.
const CHECKPOINT_PAGES: u32 = 4_096;

/// A part of the schema, in a file of its own so that a large flush never holds up a stream's commit.
struct Part {
    name: &'static str,
    file: &'static str,
    /// Migration 1, 2, 3…
    migrations: &'static [&'static str],
}

const STREAMS: Part =
    Part { name: "streams", file: "streams.db", migrations: &[include_str!("schema/sqlite_streams.sql")] };
const AGENTS: Part =
    Part { name: "agents", file: "agents.db", migrations: &[include_str!("schema/sqlite_agents.sql")] };
const CONNECTIONS: Part = Part {
    name: "connections",
    file: "connections.db",
    migrations: &[include_str!("schema/sqlite_connections.sql")],
};

/// The stores on SQLite.
pub struct SqliteStores {
    place: Where,
    clock: Clock,
    identity: Identity,
}

enum Where {
    /// One connection for all, and whether several replicas of a simulation share it.
    Memory { connection: Arc<Shared>, several: bool },
    /// A directory that no other process may open.
    Directory { path: PathBuf, ahead: Option<Arc<Ahead>>, _held: Held },
}

/// A connection that several owners use in turn, with the time of whoever uses it now.
struct Shared {
    connection: Lock<Connection>,
    now: Arc<AtomicI64>,
}

impl SqliteStores {
    /// Stores in memory: gone when the last of them is dropped. `fresh` is who they are.
    pub fn in_memory(clock: Clock, fresh: Identity) -> Result<SqliteStores, StoreError> {
        let now = Arc::new(AtomicI64::new(clock().0));
        let mut connection =
            Connection::open_in_memory().map_err(|e| failed("opening a database in memory", e))?;
        prepare(&connection, &now)?;
        for part in [&STREAMS, &AGENTS, &CONNECTIONS] {
            migrate(&mut connection, part)?;
        }
        let identity = identify(&connection, fresh)?;
        let connection = Arc::new(Shared { connection: Lock::new(connection), now });
        Ok(SqliteStores { place: Where::Memory { connection, several: false }, clock, identity })
    }

    /// Stores in memory that several replicas of one simulation share.
    #[must_use]
    pub fn for_several_replicas(mut self) -> SqliteStores {
        if let Where::Memory { several, .. } = &mut self.place {
            *several = true;
        }
        self
    }

    /// Stores in a directory, which is made if it is not there. All leases of streams end: whoever held
    /// one was another run of this process. `fresh` is who the stores are if they are new; its epoch is also
    /// theirs when they come from a backup.
    pub fn open(path: &Path, clock: Clock, fresh: Identity) -> Result<SqliteStores, StoreError> {
        let at = |e: std::io::Error| {
            StoreError::fatal(
                "cannot_open",
                format!("cannot open the data directory {}: {e}", path.display()),
            )
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at)?;
        let held = match Held::ask(&path.join("towpath.lock")).map_err(at)? {
            Asked::Held(held) => held,
            Asked::Taken(by) => {
                let text =
                    format!("{} is in use by another towpath{by}; stop it or choose another", path.display());
                return Err(StoreError::fatal("directory_in_use", text));
            }
        };
        tables::check_not_moved(path)?;
        let now = Arc::new(AtomicI64::new(clock().0));
        for part in [&AGENTS, &CONNECTIONS] {
            migrate(&mut open_part(path, part, &now)?, part)?;
        }
        let mut connection = open_part(path, &STREAMS, &now)?;
        migrate(&mut connection, &STREAMS)?;
        let identity = identify(&connection, fresh)?;
        let place = Where::Directory { path: path.into(), ahead: None, _held: held };
        let mut stores = SqliteStores { place, clock: clock.clone(), identity };
        // What an earlier run acknowledged comes before anything else.
        let mut database = stores.database(&STREAMS)?;
        let left = Ahead::open(path, clock, |left| database.transact(Mode::Write, |sql| bring(sql, left)))?;
        if let Where::Directory { ahead, .. } = &mut stores.place {
            *ahead = Some(Arc::new(left));
        }
        let restored = path.join(backup::RESTORED);
        if restored.exists() {
            stores.begin_epoch(fresh.epoch)?;
            std::fs::remove_file(&restored).map_err(at)?;
            log::info!(target: "towpath/restored", "the store comes from a backup and begins a new epoch");
        }
        let mut streams = stores.streams()?;
        while streams.sweep(Sweep::All, 1_000)?.len() == 1_000 {}
        Ok(stores)
    }

    /// Gives the stores another epoch: they were restored from a backup, and what followers remember
    /// may never have happened in them. To be called before anything else uses the stores.
    pub fn begin_epoch(&mut self, epoch: Uuid) -> Result<(), StoreError> {
        let store = self.identity.store;
        self.database(&STREAMS)?.transact(Mode::Write, |sql| begin_epoch(sql, store, epoch))?;
        self.identity.epoch = epoch;
        Ok(())
    }

    fn database(&self, part: &Part) -> Result<SqliteDb, StoreError> {
        let link = match &self.place {
            Where::Memory { connection, .. } => Link::Shared(connection.clone()),
            Where::Directory { path, .. } => {
                let now = Arc::new(AtomicI64::new((self.clock)().0));
                Link::Own { connection: open_part(path, part, &now)?, now, group: Group::No }
            }
        };
        Ok(SqliteDb { link, clock: self.clock.clone() })
    }
}

impl Stores for SqliteStores {
    fn streams(&self) -> Result<Box<dyn StreamStore>, StoreError> {
        let ahead = match &self.place {
            Where::Memory { .. } => None,
            Where::Directory { ahead, .. } => ahead.clone(),
        };
        let lead = ahead.map(Lead::new).transpose()?;
        Ok(Box::new(StreamRows::new(self.database(&STREAMS)?, self.identity, lead)))
    }

    fn metadata(&self) -> Result<Box<dyn MetadataStore>, StoreError> {
        Ok(Box::new(MetadataRows::new(self.database(&AGENTS)?)))
    }

    fn connections(&self) -> Result<Box<dyn ConnectionStore>, StoreError> {
        Ok(Box::new(ConnectionRows::new(self.database(&CONNECTIONS)?)))
    }

    fn replicas(&self) -> Result<Box<dyn ReplicaStore>, StoreError> {
        Ok(Box::new(ReplicaRows::new(self.database(&STREAMS)?)))
    }

    fn identity(&self) -> Identity {
        self.identity
    }

    fn writes_ahead(&self) -> bool {
        matches!(self.place, Where::Directory { .. })
    }

    fn is_shared(&self) -> bool {
        matches!(self.place, Where::Memory { several: true, .. })
    }
}

/// A file that only its owner can read, made if it is not there.
fn private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn open_part(path: &Path, part: &Part, now: &Arc<AtomicI64>) -> Result<Connection, StoreError> {
    let file = path.join(part.file);
    let at = |e| failed(&format!("opening {}", file.display()), e);
    // SQLite makes its other files with the permissions of the first.
    private(&file)
        .map_err(|e| StoreError::fatal("cannot_open", format!("cannot open {}: {e}", file.display())))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&file, flags).map_err(at)?;
    connection.busy_timeout(BUSY).map_err(at)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(at)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(at)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).map_err(at)?;
    prepare(&connection, now)?;
    Ok(connection)
}

/// Gives a connection the functions that the shared statements use.
fn prepare(connection: &Connection, now: &Arc<AtomicI64>) -> Result<(), StoreError> {
    let at = |e| failed("preparing a connection", e);
    connection.set_prepared_statement_cache_capacity(256);
    let clock = now.clone();
    connection
        .create_scalar_function("towpath_now", 0, FunctionFlags::SQLITE_UTF8, move |_| {
            Ok(clock.load(Ordering::Relaxed))
        })
        .map_err(at)?;
    let clock = now.clone();
    connection
        .create_scalar_function("towpath_after", 1, FunctionFlags::SQLITE_UTF8, move |call| {
            Ok(clock.load(Ordering::Relaxed).saturating_add(call.get::<i64>(0)?))
        })
        .map_err(at)?;
    let pure = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection
        .create_scalar_function("towpath_has", 2, pure, |call| {
            let wanted = call.get_raw(1).as_str().unwrap_or("{}");
            if wanted == "{}" {
                return Ok(true);
            }
            let labels: Labels =
                serde_json::from_str(call.get_raw(0).as_str().unwrap_or("{}")).unwrap_or_default();
            let wanted: Labels = serde_json::from_str(wanted).unwrap_or_default();
            Ok(wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
        })
        .map_err(at)
}

/// Brings a part's tables up to what this program knows, one transaction a step.
fn migrate(connection: &mut Connection, part: &Part) -> Result<(), StoreError> {
    let at = |e| failed(&format!("migrating {}", part.name), e);
    let known = part.migrations.len() as u32;
    loop {
        let step =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(at)?;
        step.execute_batch(
            "CREATE TABLE IF NOT EXISTS schema_version (part TEXT NOT NULL, version INTEGER NOT NULL, \
             applied_at INTEGER NOT NULL, PRIMARY KEY (part, version))",
        )
        .map_err(at)?;
        let version: u32 = step
            .query_row(
                "SELECT coalesce(max(version), 0) FROM schema_version WHERE part = ?1",
                [part.name],
                |row| row.get(0),
            )
            .map_err(at)?;
        if version > known {
            return Err(newer_schema(part.name, version, known));
        }
        let Some(migration) = part.migrations.get(version as usize) else { return step.commit().map_err(at) };
        step.execute_batch(migration).map_err(at)?;
        step.execute("INSERT INTO schema_version VALUES (?1, ?2, towpath_now())", (part.name, version + 1))
            .map_err(at)?;
        step.commit().map_err(at)?;
    }
}

/// Which store this is: what the database says, or `fresh` if it is new.
fn identify(connection: &Connection, fresh: Identity) -> Result<Identity, StoreError> {
    let at = |e| failed("reading which store this is", e);
    connection
        .execute(
            "INSERT INTO store (store_id, epoch) SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM store)",
            (&fresh.store.as_bytes()[..], &fresh.epoch.as_bytes()[..]),
        )
        .map_err(at)?;
    let (store, epoch): (Vec<u8>, Vec<u8>) = connection
        .query_row("SELECT store_id, epoch FROM store", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(at)?;
    match (Uuid::from_slice(&store), Uuid::from_slice(&epoch)) {
        (Ok(store), Ok(epoch)) => Ok(Identity { store, epoch }),
        _ => Err(StoreError::fatal("damaged", "the store's id cannot be read; restore it from a backup")),
    }
}

/// A connection to one of the databases.
pub(super) struct SqliteDb {
    link: Link,
    clock: Clock,
}

enum Link {
    Own { connection: Connection, now: Arc<AtomicI64>, group: Group },
    Shared(Arc<Shared>),
}

/// How far a group is: what is written in one becomes durable at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// There is none.
    No,
    /// Every call so far went well.
    Well,
    /// One failed, perhaps halfway: nothing of the group will stay. A savepoint for each call would keep the
    /// others, and costs each of them two statements and a copy of every page it touches.
    Failed,
}

impl SqliteDb {
    /// Runs `work` in a transaction of its own, or in the group's.
    fn run<T>(
        &mut self,
        mode: Mode,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match &mut self.link {
            Link::Own { connection, now, group } => {
                now.store((self.clock)().0, Ordering::Relaxed);
                match group {
                    Group::No => {}
                    Group::Well => {
                        let result = work(connection);
                        if result.is_err() {
                            *group = Group::Failed;
                        }
                        return result;
                    }
                    Group::Failed => {
                        return Err(StoreError::retry("undone", "an earlier call of the group failed"));
                    }
                }
                within(
                    connection,
                    frame(mode),
                    || {
                        // Beginning may have waited for another writer.
                        now.store((self.clock)().0, Ordering::Relaxed);
                    },
                    work,
                )
            }
            Link::Shared(shared) => {
                // Asked before the lock is taken: a simulated clock may hand the turn to another thread.
                let time = (self.clock)().0;
                let connection = shared.connection.lock();
                shared.now.store(time, Ordering::Relaxed);
                if !connection.is_autocommit() {
                    // Whoever used it last unwound in the middle of its work.
                    step(&connection, "ROLLBACK")?;
                }
                within(&connection, frame(mode), || {}, work)
            }
        }
    }
}

/// How a piece of work begins, ends well, and ends badly.
type Frame = (&'static str, &'static str, &'static [&'static str]);

fn frame(mode: Mode) -> Frame {
    match mode {
        Mode::Single => ("", "", &[]),
        Mode::Read => ("BEGIN", "COMMIT", &["ROLLBACK"]),
        Mode::Write => ("BEGIN IMMEDIATE", "COMMIT", &["ROLLBACK"]),
    }
}

fn within<T>(
    connection: &Connection,
    (begin, commit, undo): Frame,
    begun: impl FnOnce(),
    work: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    step(connection, begin)?;
    begun();
    let result = work(connection).and_then(|done| step(connection, commit).map(|()| done));
    if result.is_err() && !connection.is_autocommit() {
        for statement in undo {
            step(connection, statement)?;
        }
    }
    result
}

fn step(connection: &Connection, statement: &str) -> Result<(), StoreError> {
    if statement.is_empty() {
        return Ok(());
    }
    let mut prepared = connection.prepare_cached(statement).map_err(|e| failed(statement, e))?;
    prepared.execute([]).map(|_| ()).map_err(|e| failed(statement, e))
}

impl Database for SqliteDb {
    fn transact<T>(
        &mut self,
        mode: Mode,
        work: impl FnOnce(&mut dyn Sql) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.run(mode, |connection| work(&mut Statements(connection)))
    }

    fn begin_group(&mut self) -> Result<(), StoreError> {
        match &mut self.link {
            Link::Own { connection, group, .. } => {
                step(connection, "BEGIN IMMEDIATE")?;
                *group = Group::Well;
                Ok(())
            }
            // Others would find themselves inside the group.
            Link::Shared(_) => Ok(()),
        }
    }

    fn group_stands(&self) -> bool {
        !matches!(self.link, Link::Own { group: Group::Failed, .. })
    }

    fn end_group(&mut self) -> Result<Grouped, StoreError> {
        let Link::Own { connection, group, .. } = &mut self.link else { return Ok(Grouped::Durable) };
        let (end, outcome) = match std::mem::replace(group, Group::No) {
            Group::No => return Ok(Grouped::Durable),
            Group::Well => ("COMMIT", Grouped::Durable),
            Group::Failed => ("", Grouped::Undone),
        };
        let ended = step(connection, end);
        if !connection.is_autocommit() {
            step(connection, "ROLLBACK")?;
        }
        ended.map(|()| outcome)
    }

    fn ping(&mut self) -> Result<(), StoreError> {
        // A write transaction needs the lock and, at its commit, the disk.
        self.run(Mode::Write, |connection| {
            step(connection, "UPDATE schema_version SET applied_at = applied_at WHERE version = 1")
        })
    }

    fn upsert_metadata(
        &mut self,
        rows: &[(crate::state::metadata::Key, crate::state::metadata::Entry)],
        now: Wall,
        floor: Option<Wall>,
        sight: metadata::Sight,
    ) -> Result<(metadata::Upserted, Wall), StoreError> {
        self.run(Mode::Write, |connection| batches::upsert_metadata(connection, rows, now, floor, sight))
    }

    fn upsert_connections(&mut self, rows: &[crate::state::connection::Row]) -> Result<(), StoreError> {
        self.run(Mode::Write, |connection| batches::upsert_connections(connection, rows))
    }
}

/// Statements on a connection, prepared once.
struct Statements<'a>(&'a Connection);

impl Sql for Statements<'_> {
    fn execute(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, StoreError> {
        let mut prepared = self.0.prepare_cached(sql).map_err(|e| failed(sql, e))?;
        prepared.execute(params_from_iter(args)).map(|rows| rows as u64).map_err(|e| failed(sql, e))
    }

    fn query(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<Row>, StoreError> {
        let mut found = Vec::new();
        self.each(sql, args, |row| {
            found.push(row);
            true
        })?;
        Ok(found)
    }

    fn row(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Option<Row>, StoreError> {
        let mut found = None;
        self.each(sql, args, |row| {
            found = Some(row);
            false
        })?;
        Ok(found)
    }
}

impl Statements<'_> {
    /// Reads row after row until `take` has enough.
    fn each(
        &mut self,
        sql: &'static str,
        args: &[Arg<'_>],
        mut take: impl FnMut(Row) -> bool,
    ) -> Result<(), StoreError> {
        let mut prepared = self.0.prepare_cached(sql).map_err(|e| failed(sql, e))?;
        let columns = prepared.column_count();
        let mut rows = prepared.query(params_from_iter(args)).map_err(|e| failed(sql, e))?;
        while let Some(row) = rows.next().map_err(|e| failed(sql, e))? {
            let mut values = Vec::with_capacity(columns);
            for column in 0..columns {
                values.push(match row.get_ref(column).map_err(|e| failed(sql, e))? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(value) => Value::Int(value),
                    ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                    ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
                    ValueRef::Real(_) => {
                        return Err(StoreError::fatal("damaged", "a number with a fraction in the database"));
                    }
                });
            }
            if !take(Row::new(values)) {
                break;
            }
        }
        Ok(())
    }
}

impl ToSql for Arg<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Arg::Null => ValueRef::Null,
            Arg::Int(value) => ValueRef::Integer(*value),
            Arg::Text(text) => ValueRef::Text(text.as_bytes()),
            Arg::Bytes(bytes) => ValueRef::Blob(bytes),
            Arg::Id(id) => ValueRef::Blob(id.as_bytes()),
            Arg::Time(time) => ValueRef::Integer(time.0),
        }))
    }
}

/// What SQLite's answer means for whoever asked.
fn failed(doing: &str, error: rusqlite::Error) -> StoreError {
    let doing: String = doing.chars().take(80).collect();
    let text = format!("SQLite: {error} ({doing})");
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::retry("busy", text),
        Some(ErrorCode::DiskFull) => StoreError::retry("full", text),
        Some(ErrorCode::SystemIoFailure) => StoreError::retry("io", text),
        Some(ErrorCode::OperationInterrupted | ErrorCode::OperationAborted) => {
            StoreError::retry("timeout", text)
        }
        Some(ErrorCode::OutOfMemory) => StoreError::retry("memory", text),
        Some(ErrorCode::ConstraintViolation) => StoreError::split("constraint", text),
        Some(ErrorCode::TooBig | ErrorCode::TypeMismatch) => StoreError::split("encoding", text),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::fatal("damaged", text),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreError::fatal("read_only", text),
        Some(ErrorCode::CannotOpen) => StoreError::fatal("cannot_open", text),
        _ => StoreError::fatal("sqlite", text),
    }
}
