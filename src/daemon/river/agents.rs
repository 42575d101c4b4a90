//! The service `agents`: what `/v1/agents` does, as procedures.

use std::time::Duration;

use super::mirror::Mirror;
use super::{Behind, Late, failure_of, refused, value_of};
use crate::engine::watches::Watch;
use crate::front::agents;
use crate::service::schema::{Schema, array, integer, null, object, one_of, optional, text};
use crate::service::{Call, Failure, NotWritten, Procedure, Service, Writable};
use crate::state::value::Value;

/// How long a watch waits for news before it looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(500);
/// Agents that one call watches by their ids.
const WATCHED_MAX: usize = 1_000;

const ONE: &[(&str, &str)] = &[("agent", "id")];
const WATCH: Mirror = Mirror::get("/v1/agents/{id}/metadata/watch").params(ONE);
const WATCH_ALL: Mirror = Mirror::get("/v1/agents/watch").query();

fn one() -> Schema {
    object([("agent", text())])
}

fn agent() -> Schema {
    object([("id", text()), ("name", text())])
}

fn values() -> Schema {
    let row = object([
        ("key", text()),
        ("value", text()),
        ("error", text()),
        ("collected_at", text()),
        ("age_ms", integer()),
        ("display_name", text()),
        ("display_order", integer()),
    ]);
    object([("agent", text()), ("metadata", array(row))])
}

pub(super) fn service(behind: &Late) -> Service {
    let report = Mirror::post("/v1/agents/{id}/metadata").params(ONE).body();
    let read = Mirror::get("/v1/agents/{id}/metadata").params(ONE);
    let list = Mirror::get("/v1/agents").query();
    let name = Mirror::put("/v1/agents/{id}").params(ONE).body();
    let declare = Mirror::put("/v1/agents/{id}/keys").params(ONE).body_is("keys");
    let (watches, watches_all) = (behind.clone(), behind.clone());
    let watch = Procedure::subscription(move |call, init: Value, out| {
        let agents = watched(&watches, call, init)?;
        let Behind { metadata, .. } = watches.get()?;
        watch_into(metadata.watch_many(agents).map_err(|error| refused(&error))?, call, &out)
    });
    let watch_all = Procedure::subscription(move |call, init: Value, out| {
        let request = WATCH_ALL.request(&watches_all, call, init)?;
        let prefix = agents::prefix(&request).map_err(|response| failure_of(&response))?;
        let Behind { metadata, .. } = watches_all.get()?;
        watch_into(metadata.watch_all(prefix).map_err(|error| refused(&error))?, call, &out)
    });
    let entry = object([("key", text()), ("value", text()), ("error", optional(text()))]);
    let key =
        object([("key", text()), ("display_name", optional(text())), ("display_order", optional(integer()))]);
    Service::new("agents")
        .with(
            "report",
            report
                .procedure(behind)
                .about("Takes in metadata of an agent, as the latest.")
                .takes(object([("agent", text()), ("metadata", array(entry))]))
                .gives(object([("accepted", integer())])),
        )
        .with(
            "read",
            read.procedure(behind).about("What an agent last reported.").takes(one()).gives(values()),
        )
        .with(
            "watch",
            watch
                .about("What agents report, as it stands and whenever it changes.")
                .takes(one_of([one(), object([("agents", array(text()))])]))
                .gives(values()),
        )
        .with(
            "watch_all",
            watch_all
                .about("The same of all agents whose name begins with a prefix, those to come among them.")
                .takes(object([("prefix", optional(text()))]))
                .gives(values()),
        )
        .with(
            "list",
            list.procedure(behind)
                .about("Agents whose name begins with a prefix, by name.")
                .takes(object([
                    ("prefix", optional(text())),
                    ("limit", optional(integer())),
                    ("after", optional(one_of([text(), null()])).about("the next of the page before")),
                ]))
                .gives(object([("agents", array(agent())), ("next", one_of([text(), null()]))])),
        )
        .with(
            "name",
            name.procedure(behind)
                .about("Names an agent.")
                .takes(object([("agent", text()), ("name", text())]))
                .gives(agent()),
        )
        .with(
            "declare",
            declare
                .procedure(behind)
                .about("Says how an agent's keys are shown, and in which order.")
                .takes(object([("agent", text()), ("keys", array(key))]))
                .gives(object([("keys", integer())])),
        )
}

/// The agents a caller asks to watch, if it may: `agent` or `agents`.
fn watched(behind: &Late, call: &Call, init: Value) -> Result<Vec<uuid::Uuid>, Failure> {
    let inits = match init.get("agents") {
        Some(Value::Array(agents)) if agents.len() > WATCHED_MAX => {
            return Err(Failure::new("bad_field", format!("agents are at most {WATCHED_MAX}")));
        }
        Some(Value::Array(agents)) => {
            agents.iter().map(|agent| Value::map([("agent", agent.clone())])).collect()
        }
        _ => vec![init],
    };
    let asked = inits.into_iter().map(|init| {
        let request = WATCH.request(behind, call, init)?;
        agents::agent(&request).map_err(|response| failure_of(&response))
    });
    asked.collect()
}

fn watch_into(mut watch: Watch, call: &Call, out: &Writable<Value>) -> Result<(), Failure> {
    while !call.cancel_token().is_cancelled() {
        match watch.wait_until(call.rt().now() + LOOK) {
            Ok(values) => match out.write(&value_of(&agents::shown(&values).to_string())?) {
                Err(NotWritten::Closed) => return Ok(()),
                written => written?,
            },
            Err(error) if error.code() == crate::Code::TimedOut => {}
            Err(error) => return Err(refused(&error)),
        }
    }
    Ok(())
}
