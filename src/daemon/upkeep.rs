//! What is done to a data directory while no daemon of it is asked: a backup, a move to PostgreSQL.

use std::path::Path;

use uuid::Uuid;

use crate::engine::directory::Directory;
use crate::rt::Rt;
use crate::store::Moved;
use crate::store::sqlite::SqliteStores;
use crate::store::sqlite::backup::{self, BackedUp};
use crate::store::{Identity, StoreError, Stores};
use crate::{Code, Error, Result};

/// Copies a data directory's databases into one new archive, beside a daemon that may be running.
///
/// # Errors
/// [`Code::NotFound`] when there is no store in `data`, [`Code::Exists`] when `file` is there already,
/// [`Code::Io`] when it cannot be written.
pub fn back_up(rt: &Rt, data: &Path, file: &Path) -> Result<BackedUp> {
    backup::back_up(data, file, rt.wall()).map_err(|error| {
        let code = match error.code {
            "no_store" => Code::NotFound,
            "exists" => Code::Exists,
            "busy" => Code::StoreUnavailable,
            _ => Code::Io,
        };
        Error::new(code, error.text)
    })
}

/// Moves every row of a data directory's SQLite store into an empty PostgreSQL database. `tell` hears of
/// each table that is there. Afterwards the directory refuses to serve its old rows; its spool stays and is
/// written out by the daemon that serves the new store from the same directory.
///
/// # Errors
/// [`Code::Conflict`] when a daemon uses the directory or the target has rows, [`Code::NotFound`] when there
/// is no store in `data`, [`Code::StoreUnavailable`] when the target cannot be reached.
pub fn outgrow(rt: &Rt, data: &Path, to: &str, tell: &mut dyn FnMut(&Moved)) -> Result<Vec<Moved>> {
    if !data.join("streams.db").is_file() {
        return Err(Error::new(Code::NotFound, format!("{} holds no SQLite store", data.display())));
    }
    let directory = Directory::open(data)?;
    let clock = {
        let rt = rt.clone();
        std::sync::Arc::new(move || rt.wall())
    };
    let fresh = Identity { store: Uuid::from_bytes(rt.secret()), epoch: Uuid::from_bytes(rt.secret()) };
    // Brings the tables up to date and ends what was left of leases.
    let source = SqliteStores::open(directory.path(), clock, fresh).map_err(refused)?;
    postgres::fill(&source, source.identity(), to, tell)
}

fn refused(error: StoreError) -> Error {
    match error.code {
        "not_empty" | "moved" | "differs" => Error::new(Code::Conflict, error.text),
        "bad_address" => Error::new(Code::BadConfig, error.text),
        _ => error.into(),
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;
    use crate::store::postgres::{Options, PostgresStores};

    pub(super) fn fill(
        source: &SqliteStores,
        identity: Identity,
        to: &str,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<Vec<Moved>> {
        let mut target = PostgresStores::connect(to, Options::default(), identity).map_err(refused)?;
        let moved = target.take_over(source, identity, tell).map_err(refused)?;
        source.leave(target.shown()).map_err(refused)?;
        Ok(moved)
    }
}

#[cfg(not(feature = "postgres"))]
mod postgres {
    use super::*;

    pub(super) fn fill(
        _: &SqliteStores,
        _: Identity,
        _: &str,
        _: &mut dyn FnMut(&Moved),
    ) -> Result<Vec<Moved>> {
        let text = "this towpath was built without PostgreSQL (cargo feature `postgres`)";
        Err(Error::new(Code::BadConfig, text))
    }
}
