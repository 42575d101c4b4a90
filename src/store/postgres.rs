//! The stores on PostgreSQL, for more than one machine.
//!
//! Each store value has a connection of its own and makes it again when it was lost; the call that
//! noticed fails with [`super::Class::Retry`], because whether it was carried out is not known.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::Arc;

use postgres::types::private::BytesMut;
use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, Statement};
use uuid::Uuid;

use super::connection_rows::{ConnectionRows, in_order};
use super::dial::{Dial, classify};
use super::metadata::{Sight, Upserted};
use super::metadata_rows::MetadataRows;
use super::replica_rows::ReplicaRows;
use super::sql::{Arg, Database, Mode, Row, Sql, Value, begin_epoch};
use super::stream_rows::StreamRows;
use super::streams::Grouped;
use super::{
    ConnectionStore, Identity, MetadataStore, ReplicaStore, StoreError, Stores, StreamStore, newer_schema,
};
use crate::state::connection;
use crate::state::metadata::{Entry, Key};
use crate::state::time::Wall;

mod batches;
mod moving;

pub use super::dial::Patience;

/// Migration 1, 2, 3…
const MIGRATIONS: &[&str] = &[include_str!("schema/postgres.sql")];

/// One number for all towpaths, so that their migrations never run side by side.
const MIGRATION_LOCK: i64 = 0x0074_6f77_7061_7468;

/// Between the years 1970 and 2000, in microseconds: PostgreSQL counts from the latter.
const FROM_1970_TO_2000: i64 = 946_684_800_000_000;

/// What may be set about a PostgreSQL store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// Time limits.
    pub patience: Patience,
    /// Keep metadata out of the write-ahead log: faster, and gone when the server crashes.
    pub metadata_unlogged: bool,
}

/// The stores on PostgreSQL.
pub struct PostgresStores {
    dial: Arc<Dial>,
    identity: Identity,
}

impl PostgresStores {
    /// Connects, migrates, and says which store it is. `fresh` is who it is if it is new.
    pub fn connect(url: &str, options: Options, fresh: Identity) -> Result<PostgresStores, StoreError> {
        let dial = Arc::new(Dial::parse(url, options.patience)?);
        let mut client = dial.connect()?;
        migrate(&mut client)?;
        let identity = identify(&mut client, fresh)?;
        set_unlogged(&mut client, options.metadata_unlogged)?;
        Ok(PostgresStores { dial, identity })
    }

    /// Gives the store another epoch: it was restored from a backup, and what followers remember may
    /// never have happened in it. To be called before anything else uses the store.
    pub fn begin_epoch(&mut self, epoch: Uuid) -> Result<(), StoreError> {
        let store = self.identity.store;
        self.database()?.transact(Mode::Write, |sql| begin_epoch(sql, store, epoch))?;
        self.identity.epoch = epoch;
        Ok(())
    }

    fn database(&self) -> Result<PgDb, StoreError> {
        let mut db = PgDb { dial: self.dial.clone(), link: None };
        db.link()?;
        Ok(db)
    }
}

impl Stores for PostgresStores {
    fn streams(&self) -> Result<Box<dyn StreamStore>, StoreError> {
        Ok(Box::new(StreamRows::new(self.database()?, self.identity, None)))
    }

    fn metadata(&self) -> Result<Box<dyn MetadataStore>, StoreError> {
        Ok(Box::new(MetadataRows::new(self.database()?)))
    }

    fn connections(&self) -> Result<Box<dyn ConnectionStore>, StoreError> {
        Ok(Box::new(ConnectionRows::new(self.database()?)))
    }

    fn replicas(&self) -> Result<Box<dyn ReplicaStore>, StoreError> {
        Ok(Box::new(ReplicaRows::new(self.database()?)))
    }

    fn identity(&self) -> Identity {
        self.identity
    }

    fn is_shared(&self) -> bool {
        true
    }
}

/// Brings the tables up to what this program knows, one transaction a step, one program at a time.
fn migrate(client: &mut Client) -> Result<(), StoreError> {
    let known = MIGRATIONS.len() as u32;
    loop {
        let mut step = client.transaction().map_err(|e| classify(&e))?;
        // Another program may take longer for its migration than a lock usually may.
        step.batch_execute("SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = '10min'")
            .and_then(|()| step.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK]).map(|_| ()))
            .and_then(|()| {
                step.batch_execute(
                    "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, \
                     applied_at timestamptz NOT NULL DEFAULT clock_timestamp())",
                )
            })
            .map_err(|e| classify(&e))?;
        let version: i32 = step
            .query_one("SELECT coalesce(max(version), 0) FROM schema_version", &[])
            .map_err(|e| classify(&e))?
            .get(0);
        let version = u32::try_from(version).unwrap_or(0);
        if version > known {
            return Err(newer_schema("PostgreSQL", version, known));
        }
        let Some(migration) = MIGRATIONS.get(version as usize) else {
            return step.commit().map_err(|e| classify(&e));
        };
        let next = version as i32 + 1;
        step.batch_execute(migration)
            .and_then(|()| {
                step.execute("INSERT INTO schema_version (version) VALUES ($1)", &[&next]).map(|_| ())
            })
            .map_err(|e| classify(&e))?;
        step.commit().map_err(|e| classify(&e))?;
    }
}

fn identify(client: &mut Client, fresh: Identity) -> Result<Identity, StoreError> {
    let mut one = client.transaction().map_err(|e| classify(&e))?;
    one.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK]).map_err(|e| classify(&e))?;
    one.execute(
        "INSERT INTO store (store_id, epoch) SELECT $1::uuid, $2::uuid WHERE NOT EXISTS (SELECT 1 FROM store)",
        &[&fresh.store, &fresh.epoch],
    )
    .map_err(|e| classify(&e))?;
    let row = one.query_one("SELECT store_id, epoch FROM store", &[]).map_err(|e| classify(&e))?;
    let identity = Identity { store: row.get(0), epoch: row.get(1) };
    one.commit().map_err(|e| classify(&e))?;
    Ok(identity)
}

/// Rewrites the table only if it is not what is asked for.
fn set_unlogged(client: &mut Client, unlogged: bool) -> Result<(), StoreError> {
    let now: String = client
        .query_one("SELECT relpersistence::text FROM pg_class WHERE oid = 'metadata'::regclass", &[])
        .map_err(|e| classify(&e))?
        .get(0);
    let statement = match (now.as_str(), unlogged) {
        ("u", false) => "ALTER TABLE metadata SET LOGGED",
        ("p", true) => "ALTER TABLE metadata SET UNLOGGED",
        _ => return Ok(()),
    };
    client.batch_execute(statement).map_err(|e| classify(&e))
}

/// A connection that makes itself again.
pub(super) struct PgDb {
    dial: Arc<Dial>,
    link: Option<Link>,
}

struct Link {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl PgDb {
    /// The connection, made again if it was lost.
    fn link(&mut self) -> Result<&mut Link, StoreError> {
        if self.link.as_ref().is_some_and(|link| link.client.is_closed()) {
            self.link = None;
        }
        match &mut self.link {
            Some(link) => Ok(link),
            slot => Ok(slot.insert(Link { client: self.dial.connect()?, statements: HashMap::new() })),
        }
    }

    /// Runs `work` in a transaction. Whatever fails, the connection is left outside of one, or dropped.
    fn run<T>(
        &mut self,
        mode: Mode,
        work: impl FnOnce(&mut Link) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let link = self.link()?;
        let begin = match mode {
            Mode::Single => "",
            Mode::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Mode::Write => "BEGIN",
        };
        let result = link.step(begin).and_then(|()| work(link)).and_then(|done| {
            link.step(if begin.is_empty() { "" } else { "COMMIT" })?;
            Ok(done)
        });
        let Err(error) = result else { return result };
        // Statements may be stale: they are cheap to prepare again.
        let keep = !link.client.is_closed()
            && error.code != "unreachable"
            && (begin.is_empty() || link.step("ROLLBACK").is_ok());
        if !keep {
            self.link = None;
        } else if error.code == "busy" {
            link.statements.clear();
        }
        Err(error)
    }
}

impl Link {
    fn step(&mut self, statement: &str) -> Result<(), StoreError> {
        if statement.is_empty() {
            return Ok(());
        }
        self.client.batch_execute(statement).map_err(|e| classify(&e))
    }

    /// The statement, prepared once a connection.
    fn prepared(&mut self, sql: &'static str) -> Result<Statement, StoreError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&dialect(sql)).map_err(|e| during(sql, &e))?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }
}

/// A statement as PostgreSQL wants it written.
fn dialect(sql: &str) -> String {
    sql.replace('?', "$").replace("/*lock*/", "FOR UPDATE").replace("/*skip*/", "FOR UPDATE SKIP LOCKED")
}

fn during(sql: &str, error: &postgres::Error) -> StoreError {
    let mut error = classify(error);
    let start: String = sql.chars().take(80).collect();
    error.text = format!("{} ({start})", error.text);
    error
}

impl Database for PgDb {
    fn transact<T>(
        &mut self,
        mode: Mode,
        work: impl FnOnce(&mut dyn Sql) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.run(mode, |link| work(link))
    }

    /// Transactions of several streams in one would hold the locks of all of them, in any order, and
    /// two replicas would wait for each other. The server groups commits of many connections itself.
    fn begin_group(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn group_stands(&self) -> bool {
        true
    }

    fn end_group(&mut self) -> Result<Grouped, StoreError> {
        Ok(Grouped::Durable)
    }

    fn ping(&mut self) -> Result<(), StoreError> {
        // A server that recovers or follows another one cannot write.
        let recovering = self.run(Mode::Single, |link| {
            let row = link.client.query_one("SELECT pg_is_in_recovery()", &[]).map_err(|e| classify(&e))?;
            Ok(row.get::<_, bool>(0))
        })?;
        match recovering {
            false => Ok(()),
            true => {
                Err(StoreError::retry("read_only", "PostgreSQL is recovering and cannot be written to yet"))
            }
        }
    }

    fn upsert_metadata(
        &mut self,
        rows: &[(Key, Entry)],
        now: Wall,
        floor: Option<Wall>,
        sight: Sight,
    ) -> Result<(Upserted, Wall), StoreError> {
        self.run(Mode::Single, |link| batches::upsert_metadata(link, rows, now, floor, sight))
    }

    fn upsert_connections(&mut self, rows: &[connection::Row]) -> Result<(), StoreError> {
        let (joined, alone) = in_order(rows);
        // One statement is a transaction by itself, without a word to begin it and one to end it.
        let mode = if joined.is_empty() || alone.is_empty() { Mode::Single } else { Mode::Write };
        self.run(mode, |link| batches::upsert_connections(link, &joined, &alone))
    }
}

impl Sql for Link {
    fn execute(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, StoreError> {
        let statement = self.prepared(sql)?;
        let args: Vec<&(dyn ToSql + Sync)> = args.iter().map(|arg| arg as _).collect();
        self.client.execute(&statement, &args).map_err(|e| during(sql, &e))
    }

    fn query(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<Row>, StoreError> {
        let statement = self.prepared(sql)?;
        let args: Vec<&(dyn ToSql + Sync)> = args.iter().map(|arg| arg as _).collect();
        let rows = self.client.query(&statement, &args).map_err(|e| during(sql, &e))?;
        rows.into_iter()
            .map(|row| {
                let values = (0..row.len()).map(|column| row.try_get(column).map_err(|e| during(sql, &e)));
                Ok(Row::new(values.collect::<Result<_, _>>()?))
            })
            .collect()
    }
}

/// A time as PostgreSQL sends and takes it.
#[derive(Clone, Copy, Debug)]
struct Timestamp(Wall);

impl ToSql for Timestamp {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(&self.0.0.saturating_sub(FROM_1970_TO_2000).to_be_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl ToSql for Arg<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match (self, ty) {
            (Arg::Null, _) => return Ok(IsNull::Yes),
            (Arg::Int(value), &Type::INT8) => out.extend_from_slice(&value.to_be_bytes()),
            (Arg::Int(value), &Type::INT4) => out.extend_from_slice(&i32::try_from(*value)?.to_be_bytes()),
            (Arg::Int(value), &Type::INT2) => out.extend_from_slice(&i16::try_from(*value)?.to_be_bytes()),
            (Arg::Int(value), &Type::BOOL) => out.extend_from_slice(&[u8::from(*value != 0)]),
            (Arg::Text(text), &Type::JSONB) => {
                // The version of the format comes first.
                out.extend_from_slice(&[1]);
                out.extend_from_slice(text.as_bytes());
            }
            (Arg::Text(text), &Type::TEXT | &Type::VARCHAR) => out.extend_from_slice(text.as_bytes()),
            (Arg::Bytes(bytes), &Type::BYTEA) => out.extend_from_slice(bytes),
            (Arg::Id(id), &Type::UUID) => out.extend_from_slice(id.as_bytes()),
            (Arg::Time(time), &Type::TIMESTAMPTZ) => return Timestamp(*time).to_sql(ty, out),
            (arg, ty) => return Err(format!("{arg:?} is not a {ty}").into()),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        // `to_sql` says what does not fit, by name.
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Value, Box<dyn StdError + Sync + Send>> {
        Ok(match *ty {
            Type::INT8 => Value::Int(i64::from_sql(ty, raw)?),
            Type::INT4 => Value::Int(i32::from_sql(ty, raw)?.into()),
            Type::INT2 => Value::Int(i16::from_sql(ty, raw)?.into()),
            Type::BOOL => Value::Int(bool::from_sql(ty, raw)?.into()),
            Type::TEXT | Type::VARCHAR => Value::Text(String::from_sql(ty, raw)?),
            Type::BYTEA => Value::Bytes(raw.to_vec()),
            Type::UUID => Value::Id(Uuid::from_slice(raw)?),
            Type::TIMESTAMPTZ => {
                Value::Time(Wall(i64::from_be_bytes(raw.try_into()?).saturating_add(FROM_1970_TO_2000)))
            }
            Type::JSONB => Value::Text(String::from_utf8(raw.get(1..).unwrap_or_default().to_vec())?),
            ref other => return Err(format!("a column of type {other}").into()),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Value, Box<dyn StdError + Sync + Send>> {
        Ok(Value::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
