//! The service `agents`: what `/v1/agents` does, as procedures.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Late, must_be, refused};
use crate::engine::metadata::Metadata;
use crate::front::{Role, agents};
use crate::service::schema::{any, array, integer, object, optional, text};
use crate::service::{Call, Failure, NotWritten, Procedure, Service, Writable};
use crate::store::metadata::AgentRow;

/// How long a watch waits for news before it looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(500);
const READERS: &[Role] = &[Role::Agent, Role::Follower];

#[derive(Deserialize)]
struct Report {
    agent: uuid::Uuid,
    metadata: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    key: String,
    value: String,
    error: Option<String>,
}

#[derive(Serialize)]
struct Accepted {
    accepted: usize,
}

#[derive(Deserialize)]
struct One {
    agent: uuid::Uuid,
}

#[derive(Deserialize)]
struct Name {
    agent: uuid::Uuid,
    name: String,
}

#[derive(Deserialize)]
struct List {
    prefix: Option<String>,
    limit: Option<usize>,
    after: Option<Agent>,
}

#[derive(Serialize, Deserialize)]
struct Agent {
    id: uuid::Uuid,
    name: String,
}

#[derive(Serialize)]
struct Listed {
    agents: Vec<Agent>,
    next: Option<Agent>,
}

fn report(metadata: &Metadata, ask: &Report) -> Result<Accepted, Failure> {
    let entries: Vec<(&str, &str, &str)> = ask
        .metadata
        .iter()
        .map(|entry| (entry.key.as_str(), entry.value.as_str(), entry.error.as_deref().unwrap_or_default()))
        .collect();
    let accepted = metadata.report(ask.agent, &entries);
    accepted.map(|accepted| Accepted { accepted }).map_err(|error| Failure::new("refused", error.to_string()))
}

fn list(metadata: &Metadata, ask: List) -> Result<Listed, Failure> {
    let limit = ask.limit.unwrap_or(100);
    if !(1..=1_000).contains(&limit) {
        return Err(Failure::new("bad_request", "limit is a number from 1 to 1000"));
    }
    let after = ask.after.map(|after| AgentRow { id: after.id, name: after.name });
    let rows = metadata.agents(ask.prefix.as_deref().unwrap_or_default(), after, limit + 1);
    let mut rows = rows.map_err(|error| refused(&error))?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let agent = |row: &AgentRow| Agent { id: row.id, name: row.name.clone() };
    Ok(Listed { agents: rows.iter().map(agent).collect(), next: rows.last().filter(|_| more).map(agent) })
}

fn watch(
    metadata: &Metadata,
    call: &Call,
    ask: &One,
    out: &Writable<serde_json::Value>,
) -> Result<(), Failure> {
    let mut watch = metadata.watch(ask.agent).map_err(|error| refused(&error))?;
    while !call.cancel_token().is_cancelled() {
        match watch.wait_until(call.rt().now() + LOOK) {
            Ok(values) => match out.write(&agents::shown(&values)) {
                Err(NotWritten::Closed) => return Ok(()),
                written => written?,
            },
            Err(error) if error.code() == crate::Code::TimedOut => {}
            Err(error) => return Err(refused(&error)),
        }
    }
    Ok(())
}

pub(super) fn service(behind: &Late) -> Service {
    let (reports, reads, watches, lists, names) =
        (behind.clone(), behind.clone(), behind.clone(), behind.clone(), behind.clone());
    let report = Procedure::rpc(move |call, ask: Report| {
        must_be(call, &[Role::Agent])?;
        report(&reports.get()?.metadata, &ask)
    });
    let read = Procedure::rpc(move |call, ask: One| {
        must_be(call, READERS)?;
        let values = reads.get()?.metadata.get(ask.agent).map_err(|error| refused(&error))?;
        Ok(agents::shown(&values))
    });
    let watch = Procedure::subscription(move |call, ask: One, out| {
        must_be(call, READERS)?;
        watch(&watches.get()?.metadata, call, &ask, &out)
    });
    let list = Procedure::rpc(move |call, ask: List| {
        must_be(call, READERS)?;
        list(&lists.get()?.metadata, ask)
    });
    let name = Procedure::rpc(move |call, ask: Name| {
        must_be(call, &[Role::Agent])?;
        names.get()?.metadata.name(ask.agent, ask.name).map(|_| ()).map_err(|error| refused(&error))
    });
    let entry = object([("key", text()), ("value", text()), ("error", optional(text()))]);
    let one = || object([("agent", text())]);
    let values = || object([("agent", text()), ("metadata", array(any()))]);
    let agent = || object([("id", text()), ("name", text())]);
    Service::new("agents")
        .with(
            "report",
            report
                .about("Takes in metadata of an agent, as the latest.")
                .takes(object([("agent", text()), ("metadata", array(entry))]))
                .gives(object([("accepted", integer())])),
        )
        .with("read", read.about("What an agent last reported.").takes(one()).gives(values()))
        .with(
            "watch",
            watch
                .about("What an agent reports, as it stands and whenever it changes.")
                .takes(one())
                .gives(values()),
        )
        .with(
            "list",
            list.about("Agents whose name begins with a prefix, by name.")
                .takes(object([
                    ("prefix", optional(text())),
                    ("limit", optional(integer())),
                    ("after", optional(agent())),
                ]))
                .gives(object([("agents", array(agent())), ("next", any())])),
        )
        .with("name", name.about("Names an agent.").takes(object([("agent", text()), ("name", text())])))
}
