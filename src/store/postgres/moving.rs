//! Taking over the rows of another store, all of them or none.

use postgres::binary_copy::BinaryCopyInWriter;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{ToSql, Type};
use postgres::{Statement, Transaction};

use super::{Arg, PostgresStores, Value, classify};
use crate::store::tables::{Column, Kind, Moved, Sum, Tables};
use crate::store::{Identity, StoreError};

impl PostgresStores {
    /// Copies every table of `source` into this store, which must be empty, reads every row back, compares,
    /// and commits. `tell` hears of each table. Ids, positions and who the store is stay what they were, so
    /// tokens stay good.
    ///
    /// # Errors
    /// `not_empty` when there are rows here already; `differs` when what was read back is not what was
    /// sent; and whatever either database says. Nothing is changed then.
    pub(crate) fn take_over(
        &mut self,
        source: &dyn Tables,
        identity: Identity,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<Vec<Moved>, StoreError> {
        let mut client = self.dial.connect()?;
        let mut all = client.transaction().map_err(|e| classify(&e))?;
        // A table may be large: a statement lasts as long as it lasts here.
        all.batch_execute("SET LOCAL statement_timeout = 0").map_err(|e| classify(&e))?;
        let tables = names(&mut all)?;
        let wanted = source.names()?;
        if tables != wanted {
            let text = format!("the two stores have different tables: {wanted:?} and {tables:?}");
            return Err(StoreError::fatal("differs", text));
        }
        let quoted: Vec<String> = tables.iter().map(|table| format!("\"{table}\"")).collect();
        all.batch_execute(&format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", quoted.join(", ")))
            .map_err(|e| classify(&e))?;
        // The one row there must be says who the store is; it becomes the source's.
        for table in tables.iter().filter(|table| *table != STORE) {
            let found = all
                .query_opt(&format!("SELECT 1 FROM \"{table}\" LIMIT 1"), &[])
                .map_err(|e| classify(&e))?;
            if found.is_some() {
                let text = format!("the target has rows in its table {table}: it must be an empty database");
                return Err(StoreError::fatal("not_empty", text));
            }
        }
        all.execute("DELETE FROM store", &[]).map_err(|e| classify(&e))?;
        let mut moved = Vec::new();
        for table in tables {
            let (statement, columns) = columns(&mut all, &table)?;
            let sent = fill(&mut all, source, &table, &statement, &columns)?;
            let kept = read_back(&mut all, &statement, &columns)?;
            if sent != kept {
                let text = format!(
                    "{table}: {} rows were sent and {} read back, and they are not the same",
                    sent.rows, kept.rows
                );
                return Err(StoreError::fatal("differs", text));
            }
            let done = Moved { table, rows: sent.rows };
            tell(&done);
            moved.push(done);
        }
        all.commit().map_err(|e| classify(&e))?;
        self.identity = identity;
        Ok(moved)
    }

    /// The address without its password, for messages.
    pub(crate) fn shown(&self) -> &str {
        &self.dial.shown
    }
}

/// The table whose one row says which store it is.
const STORE: &str = "store";

fn names(all: &mut Transaction<'_>) -> Result<Vec<String>, StoreError> {
    let rows = all.query(
        "SELECT c.relname::text FROM pg_class c WHERE c.relkind = 'r' AND c.relname <> 'schema_version' \
         AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'streams'::regclass)",
        &[],
    );
    let mut names: Vec<String> = rows.map_err(|e| classify(&e))?.into_iter().map(|row| row.get(0)).collect();
    names.sort();
    Ok(names)
}

/// A statement that reads the whole table, and what its columns are.
fn columns(all: &mut Transaction<'_>, table: &str) -> Result<(Statement, Vec<Column>), StoreError> {
    let statement = all.prepare(&format!("SELECT * FROM \"{table}\"")).map_err(|e| classify(&e))?;
    let columns = statement.columns().iter().map(|column| {
        let kind = match *column.type_() {
            Type::UUID => Kind::Id,
            Type::TIMESTAMPTZ => Kind::Time,
            Type::INT8 | Type::INT4 | Type::INT2 | Type::BOOL => Kind::Int,
            Type::TEXT | Type::VARCHAR => Kind::Text,
            Type::BYTEA => Kind::Bytes,
            Type::JSONB => Kind::Json,
            ref other => {
                let text = format!("{table}.{} is a {other}, which is not moved", column.name());
                return Err(StoreError::fatal("differs", text));
            }
        };
        Ok(Column { name: column.name().to_owned(), kind })
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    Ok((statement, columns))
}

fn fill(
    all: &mut Transaction<'_>,
    source: &dyn Tables,
    table: &str,
    statement: &Statement,
    columns: &[Column],
) -> Result<Sum, StoreError> {
    let named = |error: &postgres::Error| {
        let mut error = classify(error);
        error.text = format!("filling {table}: {}", error.text);
        error
    };
    let types: Vec<Type> = statement.columns().iter().map(|column| column.type_().clone()).collect();
    let names: Vec<String> = columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
    let copy = format!("COPY \"{table}\" ({}) FROM STDIN BINARY", names.join(", "));
    let writer = all.copy_in(&copy).map_err(|e| named(&e))?;
    let mut rows = BinaryCopyInWriter::new(writer, &types);
    let mut sum = Sum::default();
    source.rows(table, columns, &mut |row| {
        sum.add(columns, row);
        let row: Vec<Arg<'_>> = row.iter().map(Arg::from).collect();
        let row: Vec<&(dyn ToSql + Sync)> = row.iter().map(|value| value as _).collect();
        rows.write(&row).map_err(|e| named(&e))
    })?;
    rows.finish().map_err(|e| named(&e))?;
    Ok(sum)
}

fn read_back(
    all: &mut Transaction<'_>,
    statement: &Statement,
    columns: &[Column],
) -> Result<Sum, StoreError> {
    let mut sum = Sum::default();
    let mut rows = all.query_raw(statement, std::iter::empty::<&str>()).map_err(|e| classify(&e))?;
    while let Some(row) = rows.next().map_err(|e| classify(&e))? {
        let values: Result<Vec<Value>, _> = (0..row.len()).map(|column| row.try_get(column)).collect();
        sum.add(columns, &values.map_err(|e| classify(&e))?);
    }
    Ok(sum)
}
