//! The service `connections`: what `/v1/connections` and `/v1/spool` do, as procedures.

use serde::{Deserialize, Serialize};

use super::{Late, must_be, refused, shown};
use crate::codec::connection::{Shown, cursor_from, cursor_text, record_from, time_text};
use crate::engine::connections::with_limit;
use crate::front::Role;
use crate::service::schema::{any, array, boolean, integer, object, optional, text};
use crate::service::{Failure, Procedure, Service};
use crate::store::connections::{ConnectionQuery, Cursor};

#[derive(Deserialize)]
struct List {
    agent_name: Option<String>,
    workspace_id: Option<uuid::Uuid>,
    connection_id: Option<uuid::Uuid>,
    ongoing: Option<bool>,
    limit: Option<usize>,
    after: Option<String>,
}

#[derive(Serialize)]
struct Taken {
    id: uuid::Uuid,
}

#[derive(Serialize)]
struct Listed {
    connections: Vec<serde_json::Value>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Waiting {
    records: u64,
    bytes: u64,
    oldest_at: Option<String>,
    lost: u64,
}

#[derive(Deserialize)]
struct Nothing {}

impl List {
    fn query(self) -> Result<ConnectionQuery, Failure> {
        let bad = |text: &str| Failure::new("bad_request", text);
        let limit = self.limit.unwrap_or(100);
        if !(1..=1_000).contains(&limit) {
            return Err(bad("limit is a number from 1 to 1000"));
        }
        let after = self.after.map(|after| {
            let (connect_time, id) =
                cursor_from(&after).ok_or_else(|| bad("after is not a cursor of this log"))?;
            Ok::<_, Failure>(Cursor { connect_time, id })
        });
        Ok(ConnectionQuery {
            agent_name: self.agent_name,
            workspace_id: self.workspace_id,
            connection_id: self.connection_id,
            ongoing: self.ongoing,
            after: after.transpose()?,
            limit,
            ..ConnectionQuery::default()
        })
    }
}

pub(super) fn service(behind: &Late) -> Service {
    let (takes, lists, spools) = (behind.clone(), behind.clone(), behind.clone());
    let record = Procedure::rpc(move |call, ask: serde_json::Value| {
        must_be(call, &[Role::Producer, Role::Agent])?;
        // Read as the door reads it, so that the two refuse alike.
        let record = record_from(ask.to_string().as_bytes()).map_err(|why| Failure::new("bad_field", why))?;
        let id = takes.get()?.connections.record_durable(record).map_err(|error| refused(&error))?;
        Ok(Taken { id })
    });
    let list = Procedure::rpc(move |call, ask: List| {
        must_be(call, &[Role::Admin])?;
        let query = with_limit(ask.query()?);
        let page = lists.get()?.connections.query(query).map_err(|error| refused(&error))?;
        let connections = page.rows.iter().map(|row| shown(&Shown::from(row))).collect::<Result<_, _>>()?;
        Ok(Listed { connections, next: page.next.map(|next| cursor_text(next.connect_time, next.id)) })
    });
    let spool = Procedure::rpc(move |call, _: Nothing| {
        must_be(call, &[Role::Admin])?;
        let status = spools.get()?.connections.spool_status().map_err(|error| refused(&error))?;
        let oldest_at = status.oldest_at.map(time_text);
        Ok(Waiting { records: status.records, bytes: status.bytes, oldest_at, lost: status.lost })
    });
    Service::new("connections")
        .with(
            "record",
            record
                .about("Takes a connection record, on disk before it answers.")
                .gives(object([("id", text())])),
        )
        .with(
            "list",
            list.about("Connection rows, newest first.")
                .takes(object([
                    ("agent_name", optional(text())),
                    ("workspace_id", optional(text())),
                    ("connection_id", optional(text())),
                    ("ongoing", optional(boolean())),
                    ("limit", optional(integer())),
                    ("after", optional(text().about("the next of the page before"))),
                ]))
                .gives(object([("connections", array(any())), ("next", any())])),
        )
        .with(
            "spool",
            spool.about("What waits on disk for the database.").takes(object([])).gives(object([
                ("records", integer()),
                ("bytes", integer()),
                ("oldest_at", any()),
                ("lost", integer()),
            ])),
        )
}
