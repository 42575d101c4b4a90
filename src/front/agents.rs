//! `/v1/agents`: metadata over HTTP, read once or watched.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::connections::refusal;
use super::watcher::Watcher;
use super::{Answer, Reply, Request, Response, Role, Route};
use crate::codec::connection::time_text;
use crate::codec::sse::Event;
use crate::engine::lookups::{Lookups, Opened};
use crate::engine::metadata::{Metadata, ReportError};
use crate::engine::watches::AgentValues;
use crate::error::Error;
use crate::rt::Lock;
use crate::state::watch::Scope;
use crate::store::StoreError;
use crate::store::metadata::{AgentRow, KeyRow};
use crate::wire::{Frame, Happened, Outlet, Owner};

/// Who may look at metadata.
pub(super) const READERS: &[Role] = &[Role::Agent, Role::Follower];

/// The routes of agents and their metadata.
pub fn routes(metadata: &Metadata) -> Vec<Route> {
    let handle = || metadata.clone();
    let (reporting, reading, watching, all, naming, listing, declaring) =
        (handle(), handle(), handle(), handle(), handle(), handle(), handle());
    vec![
        Route::post("/v1/agents/{id}/metadata")
            .about("Reports an agent's latest values")
            .needs(Role::Agent)
            .answers(&[202, 400, 503])
            .to_whole(move |request, answer| report(&reporting, &request, answer)),
        Route::get("/v1/agents/{id}/metadata")
            .about("An agent's latest values")
            .needs_one_of(READERS)
            .answers(&[200, 400, 503])
            .to_whole(move |request, answer| read(&reading, &request, answer)),
        Route::get("/v1/agents/{id}/metadata/watch")
            .live()
            .about("An agent's values as they change, as server-sent events or over a WebSocket")
            .needs_one_of(READERS)
            .answers(&[200, 101, 400, 503])
            .to(move |request, reply| match agent(&request) {
                Ok(agent) => watch(&watching, Scope::Agents(vec![agent]), &request, reply),
                Err(refused) => reply.send(refused),
            }),
        Route::get("/v1/agents/watch")
            .live()
            .about("The values of all agents whose name begins with a prefix, as they change")
            .needs_one_of(READERS)
            .takes_query(&["prefix"])
            .answers(&[200, 101, 400, 503])
            .to(move |request, reply| match prefix(&request) {
                Ok(prefix) => watch(&all, Scope::Prefix(prefix), &request, reply),
                Err(refused) => reply.send(refused),
            }),
        Route::put("/v1/agents/{id}")
            .about("Names an agent")
            .needs(Role::Agent)
            .answers(&[200, 400, 503])
            .to_whole(move |request, answer| name(&naming, &request, answer)),
        Route::get("/v1/agents")
            .about("Agents whose name begins with a prefix, by name")
            .needs_one_of(READERS)
            .takes_query(&["prefix", "limit", "after"])
            .answers(&[200, 400, 503])
            .to_whole(move |request, answer| list(&listing, &request, answer)),
        Route::put("/v1/agents/{id}/keys")
            .about("Says how an agent's keys are shown, and in which order")
            .needs(Role::Agent)
            .answers(&[200, 400, 503])
            .to_whole(move |request, answer| declare(&declaring, &request, answer)),
    ]
}

/// Asks the reading thread and answers from there.
pub(super) fn ask<T: Send + 'static>(
    lookups: &Lookups,
    reply: Answer,
    question: impl FnOnce(&mut Opened) -> Result<T, StoreError> + Send + 'static,
    answer: impl FnOnce(T) -> Response + Send + 'static,
) {
    let reply = Arc::new(Lock::new(Some(reply)));
    let back = reply.clone();
    let done = move |answered: Result<T, Error>| {
        let reply = back.lock().take();
        if let Some(reply) = reply {
            reply.send(match answered {
                Ok(value) => answer(value),
                Err(error) => refusal(&error),
            });
        }
    };
    if let Err(error) = lookups.submit(question, done) {
        let reply = reply.lock().take();
        if let Some(reply) = reply {
            reply.send(refusal(&error));
        }
    }
}

/// The agent a request is about.
pub(crate) fn agent(request: &Request) -> Result<Uuid, Response> {
    Uuid::try_parse(request.param("id"))
        .map_err(|_| Response::problem(400, "bad_agent", "an agent is named by its UUID"))
}

/// What the names begin with of the agents a request is about.
pub(crate) fn prefix(request: &Request) -> Result<String, Response> {
    Ok(request.query_of(&["prefix"])?.get("prefix").unwrap_or_default().to_owned())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reported {
    metadata: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    key: String,
    value: String,
    #[serde(default)]
    error: Option<String>,
}

fn report(metadata: &Metadata, request: &Request, reply: Answer) {
    let (agent, body) = match agent(request).and_then(|agent| Ok((agent, request.json::<Reported>()?))) {
        Ok(asked) => asked,
        Err(refused) => return reply.send(refused),
    };
    let items: Vec<(&str, &str, &str)> = body
        .metadata
        .iter()
        .map(|item| (item.key.as_str(), item.value.as_str(), item.error.as_deref().unwrap_or_default()))
        .collect();
    reply.send(match metadata.report(agent, &items) {
        Ok(accepted) => Response::json(202, &json!({ "accepted": accepted })),
        Err(error) => {
            let detail = error.to_string();
            let more = |accepted: &usize, left_out: &[String]| {
                let mut more = serde_json::Map::new();
                more.insert("accepted".into(), (*accepted).into());
                more.insert("left_out".into(), left_out.into());
                more
            };
            match &error {
                ReportError::KeysTooLong { accepted, left_out, .. } => {
                    Response::problem_with(400, "metadata_keys_too_long", &detail, more(accepted, left_out))
                }
                ReportError::Full { accepted, left_out, .. } => {
                    Response::problem_with(503, "full", &detail, more(accepted, left_out))
                        .header("retry-after", "5")
                }
                ReportError::Unequal { .. } => Response::problem(400, "unequal_lengths", &detail),
                ReportError::Stopped => refusal(&error.into()),
            }
        }
    });
}

/// An agent's values as they are shown everywhere.
pub fn shown(values: &AgentValues) -> Value {
    let rows: Vec<Value> = values
        .values
        .iter()
        .map(|row| {
            json!({
                "key": row.key,
                "value": row.value,
                "error": row.error,
                "collected_at": time_text(row.collected_at),
                "age_ms": u64::try_from(row.age.as_millis()).unwrap_or(u64::MAX),
                "display_name": row.display_name,
                "display_order": row.display_order,
            })
        })
        .collect();
    json!({ "agent": values.agent, "metadata": rows })
}

fn read(metadata: &Metadata, request: &Request, reply: Answer) {
    let agent = match agent(request) {
        Ok(agent) => agent,
        Err(refused) => return reply.send(refused),
    };
    ask(
        metadata.lookups(),
        reply,
        move |stores| Ok(AgentValues { agent, values: stores.metadata()?.read(&[agent])? }),
        |values| Response::json(200, &shown(&values)),
    );
}

fn watch(metadata: &Metadata, scope: Scope, request: &Request, reply: Reply) {
    let number = metadata.number();
    let websocket = request.wants_websocket();
    let dress = move |values: &AgentValues| {
        let text = shown(values).to_string();
        match websocket {
            true => Frame::text(&text),
            false => {
                Frame::chunk(&Event { event: Some("metadata"), data: &text, ..Event::default() }.to_vec())
            }
        }
    };
    let watcher = Watcher::new(1, Box::new(dress));
    let (heard, leaving) = (watcher.clone(), metadata.clone());
    let outlet = Outlet::new(move |events| {
        for event in events {
            match event.what {
                Happened::Passed(_) => heard.passed(),
                Happened::Closed(_) => {
                    heard.end();
                    leaving.unwatch(number);
                }
                _ => {}
            }
        }
        Ok(())
    });
    let owner = Owner::new(&outlet, number);
    let link = if websocket {
        let Some(link) = reply.websocket(&["towpath.v1"], 1 << 10, owner) else { return };
        link
    } else {
        reply.sse(Some(owner))
    };
    watcher.open(link.clone());
    let seeing = watcher.clone();
    if let Err(error) = metadata.watch_with(number, scope, Box::new(move |values| seeing.see(values))) {
        link.close(crate::wire::websocket::close::TRY_AGAIN, error.to_string());
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    name: String,
}

fn name(metadata: &Metadata, request: &Request, reply: Answer) {
    let (agent, body) = match agent(request).and_then(|agent| Ok((agent, request.json::<Name>()?))) {
        Ok(asked) => asked,
        Err(refused) => return reply.send(refused),
    };
    ask(
        metadata.lookups(),
        reply,
        move |stores| stores.metadata()?.put_agent(agent, &body.name).map(|_| body.name),
        move |name| Response::json(200, &json!({ "id": agent, "name": name })),
    );
}

fn list(metadata: &Metadata, request: &Request, reply: Answer) {
    let query = match request.query_of(&["prefix", "limit", "after"]) {
        Ok(query) => query,
        Err(refused) => return reply.send(refused),
    };
    let limit = query.get("limit").map_or(Some(100), |text| text.parse::<usize>().ok());
    let Some(limit) = limit.filter(|limit| (1..=1_000).contains(limit)) else {
        return reply.problem(400, "bad_parameter", "the query parameter `limit` is a number from 1 to 1000");
    };
    // A cursor is the id and the name of the last agent; names may hold anything.
    let after = query.get("after").map(|text| {
        let (id, name) = text.split_once(':')?;
        Some(AgentRow { id: Uuid::try_parse(id).ok()?, name: name.to_owned() })
    });
    let Some(after) = after.map_or(Some(None), |after| after.map(Some)) else {
        return reply.problem(
            400,
            "bad_parameter",
            "the query parameter `after` is not a cursor of this list",
        );
    };
    let prefix = query.get("prefix").unwrap_or_default().to_owned();
    ask(
        metadata.lookups(),
        reply,
        move |stores| {
            let mut agents = stores.metadata()?.agents(&prefix, after.as_ref(), limit + 1)?;
            let more = agents.len() > limit;
            agents.truncate(limit);
            let next = agents.last().filter(|_| more).map(|last| format!("{}:{}", last.id, last.name));
            Ok((agents, next))
        },
        |(agents, next)| {
            let agents: Vec<Value> =
                agents.iter().map(|agent| json!({ "id": agent.id, "name": agent.name })).collect();
            Response::json(200, &json!({ "agents": agents, "next": next }))
        },
    );
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    key: String,
    #[serde(default)]
    display_name: Option<String>,
    #[serde(default)]
    display_order: i32,
}

fn declare(metadata: &Metadata, request: &Request, reply: Answer) {
    let (agent, keys) = match agent(request).and_then(|agent| Ok((agent, request.json::<Vec<Declared>>()?))) {
        Ok(asked) => asked,
        Err(refused) => return reply.send(refused),
    };
    let rows: Vec<KeyRow> = keys
        .into_iter()
        .map(|declared| KeyRow {
            display_name: declared.display_name.unwrap_or_else(|| declared.key.clone()),
            key: declared.key,
            display_order: declared.display_order,
        })
        .collect();
    ask(
        metadata.lookups(),
        reply,
        move |stores| stores.metadata()?.declare(agent, &rows).map(|()| rows.len()),
        |count| Response::json(200, &json!({ "keys": count })),
    );
}
