//! [`ReplicaStore`] on any [`Database`].

use std::time::Duration;

use uuid::Uuid;

use super::replicas::*;
use super::sql::{Database, Mode, Row, args};
use super::{Store, StoreError};

/// The registry through one database connection.
pub(crate) struct ReplicaRows<D> {
    db: D,
}

impl<D: Database> ReplicaRows<D> {
    pub(crate) fn new(db: D) -> ReplicaRows<D> {
        ReplicaRows { db }
    }
}

impl<D: Database> Store for ReplicaRows<D> {
    fn ping(&mut self) -> Result<(), StoreError> {
        self.db.ping()
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn read_replica(mut row: Row) -> Result<ReplicaRead, StoreError> {
    let replica = ReplicaRow {
        id: row.id()?,
        hostname: row.text()?,
        relay_url: row.text_or_null()?,
        version: row.text()?,
        error: row.text()?,
    };
    let (started_at, updated_at, stopped_at) = (row.time()?, row.time()?, row.time_or_null()?);
    Ok(ReplicaRead { replica, started_at, updated_at, age: row.time()?.since(updated_at), stopped_at })
}

impl<D: Database> ReplicaStore for ReplicaRows<D> {
    fn beat(&mut self, replica: &ReplicaRow) -> Result<Beat, StoreError> {
        self.db.transact(Mode::Write, |sql| {
            let args = args![
                replica.id,
                replica.hostname.as_str(),
                replica.relay_url.as_deref(),
                replica.version.as_str(),
                replica.error.as_str(),
            ];
            let updated = sql.execute(
                "UPDATE replicas SET hostname = ?2, relay_url = ?3, version = ?4, error = ?5, \
                 updated_at = towpath_now(), stopped_at = NULL WHERE id = ?1",
                args,
            )?;
            if updated > 0 {
                return Ok(Beat::Updated);
            }
            sql.execute(
                "INSERT INTO replicas (id, hostname, relay_url, version, error, started_at, updated_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, towpath_now(), towpath_now()) ON CONFLICT (id) DO NOTHING",
                args,
            )?;
            Ok(Beat::Inserted)
        })
    }

    fn list(&mut self) -> Result<Vec<ReplicaRead>, StoreError> {
        self.db.transact(Mode::Single, |sql| {
            sql.query(
                "SELECT id, hostname, relay_url, version, error, started_at, updated_at, stopped_at, \
                 towpath_now() FROM replicas ORDER BY started_at, id",
                &[],
            )?
            .into_iter()
            .map(read_replica)
            .collect()
        })
    }

    fn stop(&mut self, replica: Uuid) -> Result<(), StoreError> {
        self.db.transact(Mode::Single, |sql| {
            sql.execute(
                "UPDATE replicas SET stopped_at = towpath_now(), updated_at = towpath_now() WHERE id = ?1",
                args![replica],
            )?;
            Ok(())
        })
    }

    fn clean(&mut self, silent_for: Duration) -> Result<u64, StoreError> {
        self.db.transact(Mode::Single, |sql| {
            sql.execute(
                "DELETE FROM replicas WHERE updated_at < towpath_after(?1)",
                args![-micros(silent_for)],
            )
        })
    }

    fn relay_keys(&mut self, fresh: RelayKey, rotate_after: Duration) -> Result<Vec<RelayKey>, StoreError> {
        let age = micros(rotate_after);
        self.db.transact(Mode::Write, |sql| {
            // Two replicas may both find no young key: then there are two, and both verify.
            sql.execute(
                "INSERT INTO relay_keys (id, secret, created_at) SELECT ?1, ?2, towpath_now() \
                 WHERE NOT EXISTS (SELECT 1 FROM relay_keys WHERE created_at > towpath_after(?3))",
                args![fresh.id, &fresh.secret[..], -age],
            )?;
            sql.execute(
                "DELETE FROM relay_keys WHERE created_at <= towpath_after(?1)",
                args![age.saturating_mul(-2)],
            )?;
            sql.query("SELECT id, secret, created_at FROM relay_keys ORDER BY created_at DESC, id", &[])?
                .into_iter()
                .map(|mut row| {
                    Ok(RelayKey { id: row.id()?, secret: row.exactly()?, created_at: row.time()? })
                })
                .collect()
        })
    }
}
