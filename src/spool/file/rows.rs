//! What lies in the file: rows, each its own proof, and what the file says about itself.

use rusqlite::{Connection, params};

use crate::spool::{Item, Kept};
use crate::state::time::Wall;

/// The layout of the file. A newer one is refused.
pub const SCHEMA_VERSION: i64 = 1;

/// What a row costs beside its payload, for the bounds.
pub(super) const ROW_BYTES: u64 = 64;

pub(super) const SCHEMA: &str = "
    CREATE TABLE record(n INTEGER PRIMARY KEY, key BLOB NOT NULL, at INTEGER NOT NULL, payload BLOB NOT NULL,
                        crc INTEGER NOT NULL);
    CREATE UNIQUE INDEX record_key ON record(key);
    CREATE TABLE span(one INTEGER PRIMARY KEY CHECK (one = 1), first INTEGER NOT NULL, next INTEGER NOT NULL,
                      bytes INTEGER NOT NULL, lost INTEGER NOT NULL, crc INTEGER NOT NULL);
";

/// What the file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) next: u64,
    pub(super) bytes: u64,
    pub(super) lost: u64,
}

impl Span {
    pub(super) const EMPTY: Span = Span { first: 1, next: 1, bytes: 0, lost: 0 };

    pub(super) fn crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for number in [self.first, self.next, self.bytes, self.lost] {
            hasher.update(&number.to_be_bytes());
        }
        hasher.finalize()
    }
}

/// The checksum of a row.
pub(in crate::spool) fn checksum(number: u64, at: Wall, key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_be_bytes());
    hasher.update(&at.0.to_be_bytes());
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize()
}

/// A row as it was written; an error if it is not.
pub(super) fn kept_from(row: &rusqlite::Row<'_>) -> rusqlite::Result<Kept> {
    let number = row.get::<_, i64>(0)? as u64;
    let (key, at): (Vec<u8>, i64) = (row.get(1)?, row.get(2)?);
    let (payload, crc): (Vec<u8>, i64) = (row.get(3)?, row.get(4)?);
    let damaged = || {
        let error = format!("record {number} has a wrong checksum").into();
        rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Blob, error)
    };
    if i64::from(checksum(number, Wall(at), &key, &payload)) != crc {
        return Err(damaged());
    }
    let key = key.try_into().map_err(|_| damaged())?;
    Ok(Kept { number, at: Wall(at), item: Item { key, payload } })
}

pub(super) fn write_span(db: &Connection, span: &Span) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO span(one, first, next, bytes, lost, crc) VALUES(1, ?1, ?2, ?3, ?4, ?5)
         ON CONFLICT(one) DO UPDATE SET first = excluded.first, next = excluded.next, bytes = excluded.bytes,
                                        lost = excluded.lost, crc = excluded.crc",
    )?
    .execute(params![
        span.first as i64,
        span.next as i64,
        span.bytes as i64,
        span.lost as i64,
        span.crc()
    ])?;
    Ok(())
}

/// Deletes everything up to and including `number`, and says how many rows that were.
pub(super) fn remove(db: &Connection, span: &mut Span, number: u64) -> rusqlite::Result<usize> {
    let last = number.min(span.next - 1);
    if last < span.first {
        return Ok(0);
    }
    let bytes: i64 = db
        .prepare_cached("SELECT coalesce(sum(length(payload)), 0) FROM record WHERE n <= ?1")?
        .query_row([last as i64], |row| row.get(0))?;
    let removed = db.prepare_cached("DELETE FROM record WHERE n <= ?1")?.execute([last as i64])?;
    span.bytes = span.bytes.saturating_sub(bytes as u64 + removed as u64 * ROW_BYTES);
    span.first = last + 1;
    Ok(removed)
}
