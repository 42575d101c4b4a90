//! The service `connections`: what `/v1/connections` and `/v1/spool` do, as procedures.

mod tail;

use serde::Serialize;

use super::mirror::Mirror;
use super::{Behind, Late, failure_of, refused};
use crate::codec::connection::Shown;
use crate::codec::typed;
use crate::engine::connections::{Connections, Page};
use crate::front::Role;
use crate::front::connections::{query_of, record_of};
use crate::service::schema::{
    Schema, any, array, boolean, integer, null, object, one_of, optional, record, text,
};
use crate::service::{Call, Failure, NotWritten, Procedure, Service, Writable};
use crate::state::value::Value;
use crate::store::connections::ConnectionQuery;

const TAKE: Mirror = Mirror::post("/v1/connections").headers(&[("durable", "prefer")]).lines_are("records");
const LIST: Mirror = Mirror::get("/v1/connections").query();
const EXPORT: Mirror = Mirror::get("/v1/connections/export").query();

/// Rows as they go out together.
#[derive(Serialize)]
struct Rows<'a> {
    connections: Vec<Shown<'a>>,
}

#[derive(Serialize)]
struct Taken {
    id: uuid::Uuid,
}

/// What rows are asked for, and how many at a time.
fn filters() -> Schema {
    let words = || optional(one_of([text(), array(text())]));
    object([
        ("organization_id", optional(text())),
        ("workspace_owner_id", optional(text())),
        ("workspace_id", optional(text())),
        ("agent_name", optional(text())),
        ("user_id", optional(text())),
        ("connection_id", optional(text())),
        ("type", words()),
        ("status", words().about("ongoing, completed or both")),
        ("connected_after", optional(text())),
        ("connected_before", optional(text())),
        ("labels", optional(record(text()))),
        ("limit", optional(integer().about("rows on a page"))),
        ("after", optional(one_of([text(), null()])).about("the next of the page before")),
        ("offset", optional(integer())),
    ])
}

fn row() -> Schema {
    let or_null = |schema| one_of([schema, null()]);
    object([
        ("id", text()),
        ("type", text()),
        ("status", text()),
        ("connect_time", text()),
        ("disconnect_time", or_null(text())),
        ("disconnect_reason", or_null(text())),
        ("code", or_null(integer())),
        ("ip", or_null(text())),
        ("user_agent", or_null(text())),
        ("user_id", or_null(text())),
        ("slug_or_port", or_null(text())),
        ("organization_id", or_null(text())),
        ("workspace_owner_id", or_null(text())),
        ("workspace_id", or_null(text())),
        ("workspace_name", or_null(text())),
        ("agent_name", or_null(text())),
        ("connection_id", or_null(text())),
        ("labels", record(text())),
    ])
}

fn rows() -> Schema {
    object([("connections", array(row()))])
}

pub(super) fn service(behind: &Late) -> Service {
    let prune = Mirror::post("/v1/admin/connections/prune").body();
    let spool = Mirror::get("/v1/spool");
    let (takes, exports, tails) = (behind.clone(), behind.clone(), behind.clone());
    let record = Procedure::rpc(move |call, init: Value| {
        let behind = takes.get()?;
        behind.must_be(call, &[Role::Producer, Role::Agent])?;
        // Read as the door reads it, so that the two refuse alike.
        let json = serde_json::to_vec(&init).map_err(Failure::uncaught)?;
        let record = record_of(&json).map_err(|response| failure_of(&response))?;
        let id = behind.connections.record_durable(record).map_err(|error| refused(&error))?;
        Ok(Taken { id })
    });
    let export = Procedure::subscription(move |call, init: Value, out| {
        let query = asked(EXPORT, &exports, call, init)?;
        let Behind { connections, .. } = exports.get()?;
        export_into(connections, query, call, &out)
    });
    let tail = Procedure::subscription(move |call, init: Value, out| {
        let query = asked(LIST, &tails, call, init)?;
        let Behind { connections, .. } = tails.get()?;
        tail::follow(connections, query, call, &out)
    });
    Service::new("connections")
        .with(
            "record",
            record
                .about("Takes a connection record, on disk before it answers.")
                .gives(object([("id", text())])),
        )
        .with(
            "record_all",
            TAKE.procedure(behind)
                .about("Takes connection records, all or none; with `durable` they are on disk before it answers.")
                .takes(object([("records", array(any())), ("durable", optional(boolean()))]))
                .gives(object([("accepted", integer())])),
        )
        .with(
            "list",
            LIST.procedure(behind)
                .about("Connection rows, newest first.")
                .takes(filters())
                .gives(object([
                    ("connections", array(row())),
                    ("next", one_of([text(), null()])),
                    ("count", integer().about("of all pages, counted to 10,000")),
                ])),
        )
        .with(
            "export",
            export
                .about("Every connection row of a query, newest first, a page in each answer.")
                .takes(filters())
                .gives(rows()),
        )
        .with(
            "tail",
            tail.about("Connection rows of a query that come from now on, oldest first, some in each answer.")
                .takes(filters())
                .gives(rows()),
        )
        .with(
            "prune",
            prune
                .procedure(behind)
                .about("Deletes the oldest of the connections that began before a moment, one step at a time.")
                .takes(object([("before", text())]))
                .gives(object([("deleted", integer()), ("more", boolean())])),
        )
        .with(
            "spool",
            spool.procedure(behind).about("What waits on disk for the database.").takes(object([])).gives(
                object([
                    ("records", integer()),
                    ("bytes", integer()),
                    ("oldest_at", one_of([text(), null()])),
                    ("dead_letters", one_of([integer(), null()])),
                    ("lost", integer()),
                ]),
            ),
        )
}

/// The query a caller asks for, if it may.
fn asked(mirror: Mirror, behind: &Late, call: &Call, init: Value) -> Result<ConnectionQuery, Failure> {
    let request = mirror.request(behind, call, init)?;
    query_of(&request).map_err(|response| failure_of(&response))
}

/// Hands out rows; false once nobody wants more.
fn give<'a>(
    rows: impl IntoIterator<Item = &'a crate::state::connection::Row>,
    out: &Writable<Value>,
) -> Result<bool, Failure> {
    let rows = Rows { connections: rows.into_iter().map(Shown::from).collect() };
    match out.write(&typed::to_value(&rows).map_err(Failure::uncaught)?) {
        Err(NotWritten::Closed) => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}

/// A page is read when there is room for it: the export of a slow reader waits with it, and costs a page.
fn export_into(
    connections: &Connections,
    mut query: ConnectionQuery,
    call: &Call,
    out: &Writable<Value>,
) -> Result<(), Failure> {
    while !call.cancel_token().is_cancelled() {
        let Page { rows, next } = connections.query(query.clone()).map_err(|error| refused(&error))?;
        if !rows.is_empty() && !give(&rows, out)? {
            break;
        }
        match next {
            Some(next) => query = ConnectionQuery { after: Some(next), offset: 0, ..query },
            None => break,
        }
    }
    Ok(())
}
