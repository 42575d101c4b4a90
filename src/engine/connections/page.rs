//! Pages of the connection log.

use crate::state::connection::Row;
use crate::store::connections::{ConnectionQuery, Cursor};

/// A page of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The rows, newest first.
    pub rows: Vec<Row>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
}

/// A query with its default limit.
pub fn with_limit(query: ConnectionQuery) -> ConnectionQuery {
    let limit = if query.limit == 0 { 100 } else { query.limit.min(1_000) };
    ConnectionQuery { limit, ..query }
}

/// One page: one row more is asked for, to know whether there is a next.
pub fn page(
    store: &mut dyn crate::store::ConnectionStore,
    query: &ConnectionQuery,
) -> Result<Page, crate::store::StoreError> {
    let mut rows = store.query(&ConnectionQuery { limit: query.limit + 1, ..query.clone() })?;
    let more = rows.len() > query.limit;
    rows.truncate(query.limit);
    let last = rows.last().filter(|_| more);
    let next = last.map(|row| Cursor { connect_time: row.connect_time, id: row.id() });
    Ok(Page { rows, next })
}
