//! The stores on SQLite, read whole.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use uuid::Uuid;

use super::backup::MOVED;
use super::{AGENTS, CONNECTIONS, Part, STREAMS, SqliteStores, Where, failed, open_part};
use crate::state::time::Wall;
use crate::store::StoreError;
use crate::store::sql::Value;
use crate::store::tables::{Column, Kind, Tables};

impl SqliteStores {
    fn part(&self, part: &Part) -> Result<Connection, StoreError> {
        match &self.place {
            Where::Directory { path, .. } => open_part(path, part, &Arc::new(AtomicI64::new(0))),
            Where::Memory { .. } => {
                Err(StoreError::fatal("in_memory", "a store in memory is not read whole: it has no files"))
            }
        }
    }

    /// Says for good that the rows are elsewhere now: the directory is not opened again.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn leave(&self, to: &str) -> Result<(), StoreError> {
        let Where::Directory { path, .. } = &self.place else { return Ok(()) };
        let note = path.join(MOVED);
        std::fs::write(&note, format!("{to}\n")).map_err(|error| {
            StoreError::fatal("cannot_create", format!("cannot write {}: {error}", note.display()))
        })
    }
}

/// Refuses a directory whose rows were moved: two stores that both grow cannot be brought together again.
pub(super) fn check_not_moved(path: &Path) -> Result<(), StoreError> {
    let note = path.join(MOVED);
    let Ok(to) = std::fs::read_to_string(&note) else { return Ok(()) };
    let text = format!(
        "the rows of {} were moved to {}: serve with --store and that address, or remove {} to serve the \
         old rows",
        path.display(),
        to.trim(),
        note.display()
    );
    Err(StoreError::fatal("moved", text))
}

impl Tables for SqliteStores {
    fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for part in [&STREAMS, &AGENTS, &CONNECTIONS] {
            let at = |e| failed("listing tables", e);
            let connection = self.part(part)?;
            let mut statement = connection
                .prepare(
                    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' \
                     AND name <> 'schema_version'",
                )
                .map_err(at)?;
            let found = statement.query_map([], |row| row.get::<_, String>(0)).map_err(at)?;
            names.extend(found.collect::<Result<Vec<_>, _>>().map_err(at)?);
        }
        names.sort();
        Ok(names)
    }

    fn rows(
        &self,
        table: &str,
        columns: &[Column],
        each: &mut dyn FnMut(&[Value]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let at = |e| failed(&format!("reading the table {table}"), e);
        for part in [&STREAMS, &AGENTS, &CONNECTIONS] {
            let connection = self.part(part)?;
            if !connection.table_exists(None, table).map_err(at)? {
                continue;
            }
            let names: Vec<String> = columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
            let select = format!("SELECT {} FROM \"{table}\"", names.join(", "));
            let mut statement = connection.prepare(&select).map_err(at)?;
            let mut rows = statement.query([]).map_err(at)?;
            let mut values = Vec::with_capacity(columns.len());
            while let Some(row) = rows.next().map_err(at)? {
                values.clear();
                for (index, column) in columns.iter().enumerate() {
                    let held = row.get_ref(index).map_err(at)?;
                    values.push(value(held, column.kind).ok_or_else(|| {
                        let text = format!("{table}.{} holds what is no {:?}", column.name, column.kind);
                        StoreError::fatal("damaged", text)
                    })?);
                }
                each(&values)?;
            }
            return Ok(());
        }
        Err(StoreError::fatal("no_table", format!("the store has no table {table}")))
    }
}

/// What SQLite holds, as what it stands for.
fn value(held: ValueRef<'_>, kind: Kind) -> Option<Value> {
    Some(match (held, kind) {
        (ValueRef::Null, _) => Value::Null,
        (ValueRef::Integer(number), Kind::Time) => Value::Time(Wall(number)),
        (ValueRef::Integer(number), Kind::Int) => Value::Int(number),
        (ValueRef::Text(text), Kind::Text | Kind::Json) => {
            Value::Text(std::str::from_utf8(text).ok()?.to_owned())
        }
        (ValueRef::Blob(bytes), Kind::Id) => Value::Id(Uuid::from_slice(bytes).ok()?),
        (ValueRef::Blob(bytes), Kind::Bytes) => Value::Bytes(bytes.to_vec()),
        _ => return None,
    })
}
