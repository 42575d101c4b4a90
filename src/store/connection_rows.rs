//! [`ConnectionStore`] on any [`Database`], and the merge rule as SQL.
//!
//! The rule is the one of [`crate::state::connection`]: whatever order batches arrive in, the same row
//! comes out. It stands here once, for both databases.

use std::net::IpAddr;

use uuid::Uuid;

use super::connections::*;
use super::sql::{Arg, Database, Mode, args, labels_text};
use super::{Store, StoreError};
use crate::state::connection::{End, Kind, Record, Row, Stamp, Status};
use crate::state::time::Wall;

/// An insert of connections, from values or from arrays, that merges with what is there (`joined`) or
/// is about single records (`alone`), which are there already if they come again.
macro_rules! merge_sql {
    ($source:literal, joined) => {
        concat!(
            merge_sql!(@head),
            $source,
            " ON CONFLICT (connection_id, workspace_id, agent_name) WHERE connection_id IS NOT NULL \
              DO UPDATE SET \
              connect_time = CASE WHEN excluded.connect_time < connections.connect_time \
                THEN excluded.connect_time ELSE connections.connect_time END, ",
            merge_sql!(@first "id"), ", ", merge_sql!(@first "type"), ", ",
            merge_sql!(@first "organization_id"), ", ", merge_sql!(@first "workspace_owner_id"), ", ",
            merge_sql!(@first "workspace_name"), ", ", merge_sql!(@first "ip"), ", ",
            merge_sql!(@first "user_agent"), ", ", merge_sql!(@first "user_id"), ", ",
            merge_sql!(@first "slug_or_port"), ", ", merge_sql!(@first "first_time"), ", ",
            merge_sql!(@first "labels"), ", ",
            merge_sql!(@end "disconnect_time"), ", ", merge_sql!(@end "ended_by"), ", ",
            merge_sql!(@end "disconnect_reason"), ", ", merge_sql!(@end "code")
        )
    };
    ($source:literal, alone) => {
        concat!(merge_sql!(@head), $source, " ON CONFLICT (id) DO NOTHING")
    };
    (@head) => {
        "INSERT INTO connections (id, connect_time, type, organization_id, workspace_owner_id, workspace_id, \
         workspace_name, agent_name, ip, user_agent, user_id, slug_or_port, connection_id, disconnect_time, \
         disconnect_reason, code, first_time, ended_by, labels) "
    };
    // Everything but the end comes from the record with the smallest (time, id).
    (@first $column:literal) => {
        concat!(
            $column, " = CASE WHEN (excluded.first_time, excluded.id) < (connections.first_time, connections.id) \
             THEN excluded.", $column, " ELSE connections.", $column, " END"
        )
    };
    // The end is one unit, from the disconnect with the smallest (time, id). While there is none,
    // reason and code are the first record's own.
    (@end $column:literal) => {
        concat!(
            $column, " = CASE WHEN excluded.disconnect_time IS NOT NULL AND (connections.disconnect_time IS NULL \
             OR (excluded.disconnect_time, excluded.ended_by) \
                < (connections.disconnect_time, connections.ended_by)) THEN excluded.", $column,
            " WHEN connections.disconnect_time IS NOT NULL THEN connections.", $column,
            " WHEN (excluded.first_time, excluded.id) < (connections.first_time, connections.id) \
             THEN excluded.", $column, " ELSE connections.", $column, " END"
        )
    };
}
pub(super) use merge_sql;

/// The columns of a row that are not plain fields of its first record.
pub(super) struct Columns<'a> {
    pub(super) workspace_name: Option<&'a str>,
    pub(super) ip: Option<String>,
    pub(super) user_agent: Option<&'a str>,
    pub(super) slug_or_port: Option<&'a str>,
    pub(super) disconnect_time: Option<Wall>,
    pub(super) disconnect_reason: Option<&'a str>,
    pub(super) code: Option<i32>,
    pub(super) ended_by: Option<Uuid>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(row: &'a Row) -> Columns<'a> {
        Columns {
            workspace_name: row.first.workspace_name.as_deref(),
            ip: row.first.ip.map(|ip| ip.to_string()),
            user_agent: row.first.user_agent.as_deref(),
            slug_or_port: row.first.slug_or_port.as_deref(),
            disconnect_time: row.disconnect_time(),
            disconnect_reason: row.disconnect_reason(),
            code: row.code(),
            ended_by: row.end.as_ref().map(|end| end.by.id),
        }
    }
}

/// Rows that name a connection and rows that do not, each in the order of their keys: so two replicas on
/// PostgreSQL cannot wait for each other in a circle, and SQLite finds its pages one after the other.
pub(super) fn in_order(rows: &[Row]) -> (Vec<&Row>, Vec<&Row>) {
    let (mut joined, mut alone): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.first.connection_id.is_some());
    joined.sort_by(|a, b| {
        let key = |row: &Row| (row.first.connection_id, row.first.workspace_id);
        key(a).cmp(&key(b)).then_with(|| a.first.agent_name.cmp(&b.first.agent_name))
    });
    alone.sort_by_key(|row| row.first.id);
    (joined, alone)
}

/// What a query filters by, pages aside: parameters 1 to 21.
macro_rules! filtered {
    ($head:literal, $tail:literal) => {
        concat!(
            $head,
            " FROM connections WHERE (organization_id = ?1 OR ?1 IS NULL) \
              AND (workspace_owner_id = ?2 OR ?2 IS NULL) AND (workspace_id = ?3 OR ?3 IS NULL) \
              AND (agent_name = ?4 OR ?4 IS NULL) AND (user_id = ?5 OR ?5 IS NULL) \
              AND (connection_id = ?6 OR ?6 IS NULL) \
              AND (connect_time >= ?7 OR ?7 IS NULL) AND (connect_time <= ?8 OR ?8 IS NULL) \
              AND ((disconnect_time IS NULL AND type NOT IN \
                ('workspace_app', 'port_forwarding', 'tunnel', 'file_transfer')) = ?9 OR ?9 IS NULL) \
              AND (type IN (?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20) OR ?10 IS NULL) \
              AND towpath_has(labels, ?21) ",
            $tail
        )
    };
}

const COLUMNS_IN_ORDER: &str = filtered!(
    "SELECT id, connect_time, type, organization_id, workspace_owner_id, workspace_id, workspace_name, \
     agent_name, ip, user_agent, user_id, slug_or_port, connection_id, disconnect_time, disconnect_reason, \
     code, first_time, ended_by, labels",
    "AND ((connect_time, id) < (?22, ?23) OR ?22 IS NULL) \
     ORDER BY connect_time DESC, id DESC LIMIT ?24 OFFSET ?25"
);

const COUNTED: &str = filtered!("SELECT count(*) FROM (SELECT 1 AS one", "LIMIT ?22) AS found");

/// The connection log through one database connection.
pub(crate) struct ConnectionRows<D> {
    db: D,
}

impl<D: Database> ConnectionRows<D> {
    pub(crate) fn new(db: D) -> ConnectionRows<D> {
        ConnectionRows { db }
    }
}

impl<D: Database> Store for ConnectionRows<D> {
    fn ping(&mut self) -> Result<(), StoreError> {
        self.db.ping()
    }
}

/// The parameters every query has.
fn filters<'a>(query: &'a ConnectionQuery, labels: &'a str) -> Vec<Arg<'a>> {
    let mut args: Vec<Arg<'a>> = vec![
        query.organization_id.into(),
        query.workspace_owner_id.into(),
        query.workspace_id.into(),
        query.agent_name.as_deref().into(),
        query.user_id.into(),
        query.connection_id.into(),
        query.connected_after.into(),
        query.connected_before.into(),
        query.ongoing.map(i64::from).into(),
    ];
    let kinds = Kind::ALL.len();
    args.extend((0..kinds).map(|i| Arg::from(query.kinds.get(i).map(|kind| kind.as_str()))));
    args.push(labels.into());
    args
}

fn read_connection(mut row: super::sql::Row) -> Result<Row, StoreError> {
    let (id, connect_time, kind) = (row.id()?, row.time()?, row.text()?);
    let kind = Kind::named(&kind).ok_or_else(|| {
        StoreError::fatal("damaged", format!("connection {id} has the unknown type {kind}"))
    })?;
    let (organization_id, workspace_owner_id, workspace_id) =
        (row.id_or_null()?, row.id_or_null()?, row.id()?);
    let (workspace_name, agent_name) = (row.text_or_null()?, row.text()?);
    let ip = row.text_or_null()?.and_then(|ip| ip.parse::<IpAddr>().ok());
    let (user_agent, user_id, slug_or_port) = (row.text_or_null()?, row.id_or_null()?, row.text_or_null()?);
    let connection_id = row.id_or_null()?;
    let (disconnect_time, reason) = (row.time_or_null()?, row.text_or_null()?);
    let code = row.int_or_null()?.and_then(|code| i32::try_from(code).ok());
    let (first_time, ended_by, labels) = (row.time()?, row.id_or_null()?, row.labels()?);

    let first = Stamp { time: first_time, id };
    let by = disconnect_time.zip(ended_by).map(|(time, id)| Stamp { time, id });
    let (own_code, own_reason, end) = match by {
        Some(by) => (None, None, Some(End { by, reason, code })),
        None => (code, reason, None),
    };
    let status = if by == Some(first) { Status::Disconnected } else { Status::Connected };
    Ok(Row {
        first: Record {
            id,
            time: first_time,
            kind,
            status,
            organization_id,
            workspace_owner_id,
            workspace_id,
            workspace_name,
            agent_name,
            code: own_code,
            ip,
            user_agent,
            user_id,
            slug_or_port,
            connection_id,
            disconnect_reason: own_reason,
            labels,
        },
        connect_time,
        end,
    })
}

impl<D: Database> ConnectionStore for ConnectionRows<D> {
    fn upsert(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        for chunk in rows.chunks(ROWS_PER_STATEMENT) {
            self.db.upsert_connections(chunk)?;
        }
        Ok(())
    }

    fn query(&mut self, query: &ConnectionQuery) -> Result<Vec<Row>, StoreError> {
        let labels = labels_text(&query.labels);
        let mut args = filters(query, &labels);
        args.push(query.after.map(|after| after.connect_time).into());
        args.push(query.after.map(|after| after.id).into());
        args.push(query.limit.into());
        args.push(query.offset.into());
        let rows = self.db.transact(Mode::Single, |sql| sql.query(COLUMNS_IN_ORDER, &args))?;
        rows.into_iter().map(read_connection).collect()
    }

    fn count(&mut self, query: &ConnectionQuery, cap: u64) -> Result<Count, StoreError> {
        let labels = labels_text(&query.labels);
        let mut args = filters(query, &labels);
        args.push(cap.saturating_add(1).into());
        let found = self.db.transact(Mode::Single, |sql| sql.one(COUNTED, &args)?.count())?;
        Ok(Count { rows: found.min(cap), capped: found > cap })
    }

    fn prune(&mut self, before: Wall, limit: usize) -> Result<u64, StoreError> {
        self.db.transact(Mode::Single, |sql| {
            sql.execute(
                "DELETE FROM connections WHERE id IN (SELECT id FROM connections WHERE connect_time < ?1 \
                 ORDER BY connect_time, id LIMIT ?2)",
                args![before, limit],
            )
        })
    }

    fn bury(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        self.db.transact(Mode::Write, |sql| {
            for letter in letters {
                sql.execute(
                    "INSERT INTO dead_letters (id, record, error, at) VALUES (?1, ?2, ?3, towpath_now()) \
                     ON CONFLICT (id) DO NOTHING",
                    args![letter.id, letter.record.as_str(), letter.error.as_str()],
                )?;
            }
            Ok(())
        })
    }

    fn dead_letters(
        &mut self,
        after: Option<(Wall, Uuid)>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let (at, id) = after.unwrap_or((Wall(0), Uuid::nil()));
        self.db.transact(Mode::Single, |sql| {
            sql.query(
                "SELECT id, record, error, at FROM dead_letters WHERE (at, id) > (?1, ?2) \
                 ORDER BY at, id LIMIT ?3",
                args![at, id, limit],
            )?
            .into_iter()
            .map(|mut row| {
                Ok(DeadLetter { id: row.id()?, record: row.text()?, error: row.text()?, at: row.time()? })
            })
            .collect()
        })
    }

    fn dead_letter_count(&mut self) -> Result<u64, StoreError> {
        self.db.transact(Mode::Single, |sql| sql.one("SELECT count(*) FROM dead_letters", &[])?.count())
    }
}
