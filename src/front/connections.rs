//! `/v1/connections` and `/v1/spool`: the connection log over HTTP.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answer, Query, Reply, Request, Response, Role, Route};
use crate::codec::connection::{
    Shown, csv_head, csv_line, cursor_from, cursor_text, json_line, record_from, time_from, time_text,
};
use crate::engine::connections::{Connections, Page, page, with_limit};
use crate::error::{Code, Error};
use crate::rt::Lock;
use crate::state::connection::{Kind, Record};
use crate::store::connections::{ConnectionQuery, Cursor};
use crate::wire::websocket::close;
use crate::wire::{Frame, Happened, LinkHandle, Outlet, Owner};

/// How far rows are counted for `count`: further, it costs more than it tells.
const COUNT_CAP: u64 = 10_000;

/// The filters of a query, and what pages it. An unknown one is a 400.
const FILTERS: &[&str] = &[
    "organization_id",
    "workspace_owner_id",
    "workspace_id",
    "agent_name",
    "user_id",
    "connection_id",
    "type",
    "status",
    "connected_after",
    "connected_before",
    "label.",
    "limit",
    "after",
    "offset",
    "format",
];

/// The routes of the connection log. With `durable`, every record is taken with a receipt, asked for or
/// not.
pub fn routes(connections: &Connections, durable: bool) -> Vec<Route> {
    let handle = || connections.clone();
    let (taking, listing, exporting, pruning, spool) = (handle(), handle(), handle(), handle(), handle());
    vec![
        Route::post("/v1/connections")
            .about("Takes connection records: one JSON object, or one a line as application/x-ndjson")
            .needs_one_of(&[Role::Producer, Role::Agent])
            .answers(&[202, 400, 503])
            .to_whole(move |request, answer| take(&taking, durable, &request, answer)),
        Route::get("/v1/connections")
            .about("Connection rows, newest first")
            .needs(Role::Admin)
            .takes_query(FILTERS)
            .answers(&[200, 400, 503])
            .to_whole(move |request, answer| list(&listing, &request, answer)),
        Route::get("/v1/connections/export")
            .about("Every connection row of a query, as NDJSON or CSV")
            .needs(Role::Admin)
            .takes_query(FILTERS)
            .answers(&[200, 400, 503])
            .to(move |request, reply| export(&exporting, &request, reply)),
        Route::post("/v1/admin/connections/prune")
            .about("Deletes the oldest of the connections that began before a moment, one step at a time")
            .needs(Role::Admin)
            .answers(&[200, 400, 503])
            .to_whole(move |request, answer| prune(&pruning, &request, answer)),
        Route::get("/v1/spool")
            .about("What waits on disk for the database")
            .needs(Role::Admin)
            .answers(&[200, 503])
            .to_whole(move |_, answer| show_spool(&spool, answer)),
    ]
}

/// An error of the library as a response.
pub(crate) fn refusal(error: &Error) -> Response {
    let (status, code) = match error.code() {
        Code::BadRequest => (400, "bad_request"),
        Code::NotFound => (404, "not_found"),
        Code::Conflict | Code::Exists => (409, "conflict"),
        Code::Full => (503, "full"),
        Code::StoreUnavailable => (503, "store_unavailable"),
        Code::TimedOut => (503, "timed_out"),
        Code::Stopped => (503, "stopping"),
        _ => (500, "internal"),
    };
    let response = Response::problem(status, code, &error.to_string());
    if status == 503 { response.header("retry-after", "1") } else { response }
}

fn take(connections: &Connections, durable: bool, request: &Request, reply: Answer) {
    let records = match records(request) {
        Ok(records) => records,
        Err(refused) => return reply.send(refused),
    };
    let accepted = records.len();
    let prefers = request
        .header("prefer")
        .is_some_and(|prefer| prefer.split(',').any(|wish| wish.trim().eq_ignore_ascii_case("durable")));
    let mut left = records;
    if !(durable || prefers) {
        // What memory has no room for goes the way that waits for the disk; the I/O thread does not.
        left =
            left.into_iter().filter_map(|record| connections.try_record(record).err()).map(|r| *r).collect();
        if left.is_empty() {
            return reply.json(202, &json!({ "accepted": accepted }));
        }
    }
    let reply = Arc::new(Lock::new(Some(reply)));
    let answer = {
        let reply = reply.clone();
        move |kept: Result<(), Error>| {
            let reply = reply.lock().take();
            if let Some(reply) = reply {
                reply.send(match kept {
                    Ok(()) if prefers => Response::json(202, &json!({ "accepted": accepted }))
                        .header("preference-applied", "durable"),
                    Ok(()) => Response::json(202, &json!({ "accepted": accepted })),
                    Err(error) => refusal(&error),
                });
            }
        }
    };
    if let Err(error) = connections.submit_durable(left, answer) {
        let reply = reply.lock().take();
        if let Some(reply) = reply {
            reply.send(refusal(&error));
        }
    }
}

/// The records of a body: all of them or none.
fn records(request: &Request) -> Result<Vec<Record>, Response> {
    if request.content_type() != "application/x-ndjson" {
        return record_of(request.body()).map(|record| vec![record]);
    }
    let bad = |text: String| Response::problem(400, bad_code(&text), &text);
    let lines = request.body().split(|byte| *byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .map(|(number, line)| record_from(line).map_err(|error| bad(format!("line {}: {error}", number + 1))))
        .collect()
}

/// The record in a JSON object.
pub(crate) fn record_of(json: &[u8]) -> Result<Record, Response> {
    record_from(json).map_err(|text| Response::problem(400, bad_code(&text), &text))
}

fn bad_code(text: &str) -> &'static str {
    if text.contains("unknown field") {
        "unknown_field"
    } else if ["invalid type", "unknown variant"].iter().any(|data| text.contains(data)) {
        "bad_field"
    } else if text.contains("expected") && text.contains("at line") {
        "bad_json"
    } else {
        "bad_field"
    }
}

/// A query from its parameters.
pub(crate) fn query_of(request: &Request) -> Result<ConnectionQuery, Response> {
    let asked = request.query_of(FILTERS)?;
    let bad = |key: &str, what: &str| {
        Response::problem(400, "bad_parameter", &format!("the query parameter `{key}` {what}"))
    };
    let id =
        |key| parsed(asked, key, |text| Uuid::try_parse(text).ok()).ok_or_else(|| bad(key, "is not a UUID"));
    let time = |key| {
        parsed(asked, key, |text| time_from(text).ok()).ok_or_else(|| bad(key, "is not an RFC 3339 time"))
    };
    let mut query = ConnectionQuery {
        organization_id: id("organization_id")?,
        workspace_owner_id: id("workspace_owner_id")?,
        workspace_id: id("workspace_id")?,
        user_id: id("user_id")?,
        connection_id: id("connection_id")?,
        agent_name: asked.get("agent_name").map(str::to_owned),
        connected_after: time("connected_after")?,
        connected_before: time("connected_before")?,
        ..ConnectionQuery::default()
    };
    if let Some(kinds) = asked.get("type") {
        let kinds: Option<Vec<Kind>> = kinds.split(',').map(|name| Kind::named(name.trim())).collect();
        query.kinds = kinds.ok_or_else(|| bad("type", "names a type there is not"))?;
    }
    if let Some(status) = asked.get("status") {
        let words: Vec<&str> = status.split(',').map(str::trim).collect();
        if words.iter().any(|word| !["ongoing", "completed"].contains(word)) {
            return Err(bad("status", "is `ongoing`, `completed` or both"));
        }
        let (ongoing, completed) = (words.contains(&"ongoing"), words.contains(&"completed"));
        query.ongoing = (ongoing != completed).then_some(ongoing);
    }
    query.labels = asked
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("label.")?.to_owned(), value.to_owned())))
        .collect();
    query.limit =
        parsed(asked, "limit", |text| text.parse().ok().filter(|limit| (1..=1_000).contains(limit)))
            .ok_or_else(|| bad("limit", "is a number from 1 to 1000"))?
            .unwrap_or(100);
    query.offset = parsed(asked, "offset", |text| text.parse().ok())
        .ok_or_else(|| bad("offset", "is a number"))?
        .unwrap_or(0);
    query.after = parsed(asked, "after", |text| {
        cursor_from(text).map(|(connect_time, id)| Cursor { connect_time, id })
    })
    .ok_or_else(|| bad("after", "is not a cursor of this log"))?;
    Ok(query)
}

/// `Some(None)` when it is not there, `None` when it is not what it should be.
fn parsed<T>(query: &Query, key: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    match query.get(key) {
        None => Some(None),
        Some(text) => parse(text).map(Some),
    }
}

#[derive(Serialize)]
struct Listed<'a> {
    connections: Vec<Shown<'a>>,
    next: Option<String>,
    count: u64,
}

fn cursor(next: Option<Cursor>) -> Option<String> {
    next.map(|next| cursor_text(next.connect_time, next.id))
}

fn list(connections: &Connections, request: &Request, reply: Answer) {
    let query = match query_of(request) {
        Ok(query) => with_limit(query),
        Err(refused) => return reply.send(refused),
    };
    ask(
        connections,
        reply,
        move |stores| {
            let store = stores.connections()?;
            let all = ConnectionQuery { after: None, offset: 0, ..query.clone() };
            let count = store.count(&all, COUNT_CAP)?;
            Ok((page(store, &query)?, count.rows))
        },
        |(page, count)| {
            let connections = page.rows.iter().map(Shown::from).collect();
            Response::json(200, &Listed { connections, next: cursor(page.next), count })
        },
    );
}

/// Asks the reading thread and answers from there.
fn ask<T: Send + 'static>(
    connections: &Connections,
    reply: Answer,
    question: impl FnOnce(&mut crate::engine::lookups::Opened) -> Result<T, crate::store::StoreError>
    + Send
    + 'static,
    answer: impl FnOnce(T) -> Response + Send + 'static,
) {
    super::agents::ask(connections.lookups(), reply, question, answer);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Lines,
    Csv,
}

fn export(connections: &Connections, request: &Request, reply: Reply) {
    let format = match request.query().get("format") {
        None | Some("ndjson") => Format::Lines,
        Some("csv") => Format::Csv,
        Some(_) => {
            let detail = "the query parameter `format` is `ndjson` or `csv`";
            return reply.problem(400, "bad_parameter", detail);
        }
    };
    let mut query = match query_of(request) {
        Ok(query) => query,
        Err(refused) => return reply.send(refused),
    };
    query.limit = 1_000;
    let lookups = connections.lookups().clone();
    let taken = Arc::new(Lock::new(Some(reply)));
    let first = query.clone();
    let back = taken.clone();
    let exporting = connections.clone();
    let submitted = lookups.submit(
        move |stores| page(stores.connections()?, &first),
        move |answer| {
            let Some(reply) = back.lock().take() else { return };
            match answer {
                // The first page comes before the status, so that a store that is away is a 503.
                Ok(page) => Export::begin(exporting, query, format, reply, page),
                Err(error) => reply.send(refusal(&error)),
            }
        },
    );
    if let Err(error) = submitted {
        let reply = taken.lock().take();
        if let Some(reply) = reply {
            reply.send(refusal(&error));
        }
    }
}

/// An export under way: a page is read when the one before has left.
struct Export {
    connections: Connections,
    format: Format,
    link: Lock<Option<LinkHandle>>,
    next: Lock<Option<ConnectionQuery>>,
}

impl Export {
    fn begin(connections: Connections, query: ConnectionQuery, format: Format, reply: Reply, page: Page) {
        let (kind, name) = match format {
            Format::Lines => ("application/x-ndjson", "connections.ndjson"),
            Format::Csv => ("text/csv; charset=utf-8", "connections.csv"),
        };
        let response = Response::new(200)
            .header("content-type", kind)
            .header("content-disposition", format!("attachment; filename=\"{name}\""))
            .header("cache-control", "no-store");
        let export =
            Arc::new(Export { connections, format, link: Lock::new(None), next: Lock::new(Some(query)) });
        let heard = export.clone();
        let outlet = Outlet::new(move |events| {
            for event in events {
                match event.what {
                    Happened::Passed(_) => heard.go_on(),
                    Happened::Closed(_) => heard.stop(),
                    _ => {}
                }
            }
            Ok(())
        });
        let link = reply.stream(response, Some(Owner::new(&outlet, 0)));
        *export.link.lock() = Some(link.clone());
        if format == Format::Csv {
            link.send_paced(Frame::chunk(csv_head().as_bytes()));
        }
        export.write(page);
    }

    fn write(&self, page: Page) {
        let Some(link) = self.link.lock().clone() else { return };
        let line = match self.format {
            Format::Lines => json_line,
            Format::Csv => csv_line,
        };
        let text: String = page.rows.iter().map(line).collect();
        link.send_paced(Frame::chunk(text.as_bytes()));
        match page.next {
            Some(next) => {
                if let Some(query) = self.next.lock().as_mut() {
                    query.after = Some(next);
                    query.offset = 0;
                }
                link.mark(1);
            }
            None => {
                self.stop();
                link.finish();
            }
        }
    }

    fn go_on(self: &Arc<Export>) {
        let Some(query) = self.next.lock().clone() else { return };
        let export = self.clone();
        let asked = self.connections.lookups().submit(
            move |stores| page(stores.connections()?, &query),
            move |answer| match answer {
                Ok(page) => export.write(page),
                Err(error) => export.break_off(&error),
            },
        );
        if let Err(error) = asked {
            self.break_off(&error);
        }
    }

    /// Leaves the answer visibly unfinished: half an export must not look like a whole one.
    fn break_off(&self, error: &Error) {
        log::warn!("an export of the connection log was broken off: {error}");
        let link = self.link.lock().take();
        if let Some(link) = link {
            link.close(close::ABNORMAL, "the store cannot be read");
        }
        self.stop();
    }

    fn stop(&self) {
        *self.next.lock() = None;
        *self.link.lock() = None;
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prune {
    before: String,
}

/// One bounded step, so that no question waits behind a large one.
fn prune(connections: &Connections, request: &Request, reply: Answer) {
    const STEP: usize = 1_000;
    let before = match request.json::<Prune>() {
        Ok(body) => time_from(&body.before),
        Err(refused) => return reply.send(refused),
    };
    let before = match before {
        Ok(before) => before,
        Err(error) => return reply.problem(400, "bad_field", &format!("before: {error}")),
    };
    ask(
        connections,
        reply,
        move |stores| stores.connections()?.prune(before, STEP),
        |deleted| Response::json(200, &json!({ "deleted": deleted, "more": deleted == STEP as u64 })),
    );
}

fn show_spool(connections: &Connections, reply: Answer) {
    let reply = Arc::new(Lock::new(Some(reply)));
    let back = reply.clone();
    let asking = connections.clone();
    let asked = connections.submit_spool_status(move |status| {
        let Some(reply) = back.lock().take() else { return };
        let status = match status {
            Ok(status) => status,
            Err(error) => return reply.send(refusal(&error)),
        };
        let show = move |dead_letters: Value| {
            json!({
                "records": status.records,
                "bytes": status.bytes,
                "oldest_at": status.oldest_at.map(time_text),
                "dead_letters": dead_letters,
                "lost": status.lost,
            })
        };
        let shared = Arc::new(Lock::new(Some((reply, show))));
        let late = shared.clone();
        let answer = move |count: Result<u64, Error>| {
            let Some((reply, show)) = late.lock().take() else { return };
            // While the store is away nobody knows how many it buried; the spool is what is asked for.
            reply.json(200, &show(count.map_or(Value::Null, Value::from)));
        };
        if asking.lookups().submit(|stores| stores.connections()?.dead_letter_count(), answer).is_err() {
            let held = shared.lock().take();
            if let Some((reply, show)) = held {
                reply.json(200, &show(Value::Null));
            }
        }
    });
    if let Err(error) = asked {
        let reply = reply.lock().take();
        if let Some(reply) = reply {
            reply.send(refusal(&error));
        }
    }
}
