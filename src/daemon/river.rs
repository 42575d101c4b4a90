//! The daemon's River services, behind the door `/river`.
//!
//! Who a client is, its handshake says: `{token}` in its metadata, judged by the same gate as every request. What
//! a client may do is asked with each call, by role and scope, as over HTTP.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::codec::token::Token;
use crate::codec::typed;
use crate::engine::metadata::Metadata;
use crate::engine::replicas::Replicas;
use crate::engine::sessions::{Admission, Admitted};
use crate::engine::streams::{CreateStream, FollowOptions, Since, Streams};
use crate::front::{Gate, Op, Principal, Role, Scope};
use crate::metrics::Metrics;
use crate::rt::Rt;
use crate::service::schema::{any, array, boolean, integer, object, optional, text};
use crate::service::server::Server;
use crate::service::{Call, Failure, NotWritten, Procedure, Service, Services, Writable};
use crate::state::handshake::{Refusal, RefusalCode};
use crate::state::value::Value;

/// How long a follow waits for an event before it looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(500);

/// What the services stand on.
pub(super) struct Behind {
    pub(super) streams: Streams,
    pub(super) metadata: Metadata,
    pub(super) replicas: Replicas,
}

/// Starts the sessions.
pub(super) fn start(rt: &Rt, gate: Arc<Gate>, behind: Behind, metrics: &mut Metrics) -> Result<Server> {
    let admission = ByToken { rt: rt.clone(), gate };
    Server::builder(rt, services(&Late(Arc::new(Some(behind))))).admission(admission).metrics(metrics).start()
}

/// The services as they are described, with nothing behind them: for `towpath river schema` and `types`.
pub fn described() -> Services {
    services(&Late(Arc::new(None)))
}

/// What the handlers stand on, where there is a daemon and not only its description.
#[derive(Clone)]
struct Late(Arc<Option<Behind>>);

impl Late {
    fn get(&self) -> Result<&Behind, Failure> {
        (*self.0)
            .as_ref()
            .ok_or_else(|| Failure::uncaught("these services are a description and serve nobody"))
    }
}

fn services(behind: &Late) -> Services {
    Services::new().with(of_streams(behind)).with(of_agents(behind)).with(of_admins(behind))
}

// ---- who asks ----

struct ByToken {
    rt: Rt,
    gate: Arc<Gate>,
}

impl Admission for ByToken {
    fn admit(&self, _: &str, metadata: Option<&Value>, _: Option<&Value>) -> Result<Admitted, Refusal> {
        let who = match metadata.and_then(|metadata| metadata.get("token")) {
            Some(Value::Text(token)) => self.gate.holder(token).ok_or_else(|| {
                Refusal::new(RefusalCode::RejectedByCustomHandler, "the token is not known, or has expired")
            })?,
            None if !self.gate.needs_credentials() => Principal::anonymous(),
            _ => {
                let reason = "the handshake's metadata must hold a token: {\"token\": \"…\"}";
                return Err(Refusal::new(RefusalCode::MalformedHandshakeMeta, reason));
            }
        };
        let expires_in = who.expires.map(|at| at.since(self.rt.wall()));
        let metadata = typed::to_value(&Known::from(&who))
            .map_err(|why| Refusal::new(RefusalCode::RejectedByCustomHandler, why.to_string()))?;
        Ok(Admitted { metadata, expires_in })
    }

    fn is_quick(&self) -> bool {
        true
    }
}

/// A principal as a session carries it.
#[derive(Serialize, Deserialize)]
struct Known {
    name: String,
    roles: Vec<String>,
    scopes: Option<Vec<(String, Vec<String>)>>,
}

impl From<&Principal> for Known {
    fn from(who: &Principal) -> Known {
        let scope = |scope: &Scope| {
            (scope.matches.clone(), scope.ops.iter().map(|op| op.as_str().to_owned()).collect())
        };
        Known {
            name: who.name.clone(),
            roles: who.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            scopes: who.scopes.as_ref().map(|scopes| scopes.iter().map(scope).collect()),
        }
    }
}

/// Who calls. What cannot be read is somebody with no rights.
fn caller(call: &Call) -> Principal {
    let Ok(known) = typed::from_value::<Known>((*call.metadata()).clone()) else {
        return Principal::nobody();
    };
    let scope = |(matches, ops): (String, Vec<String>)| Scope {
        matches,
        ops: ops.iter().filter_map(|op| Op::parse(op)).collect(),
    };
    Principal {
        name: known.name,
        roles: known.roles.iter().filter_map(|role| Role::parse(role)).collect(),
        scopes: known.scopes.map(|scopes| scopes.into_iter().map(scope).collect()),
        // The session ends with the credentials, or gets fresh ones.
        expires: None,
    }
}

fn may(call: &Call, op: Op, stream: &str) -> Result<(), Failure> {
    match caller(call).may(op, stream) {
        true => Ok(()),
        false => Err(Failure::new("forbidden", format!("this token may not {} {stream}", op.as_str()))),
    }
}

fn must_be(call: &Call, role: Role) -> Result<(), Failure> {
    match caller(call).has(role) {
        true => Ok(()),
        false => Err(Failure::new("forbidden", format!("this needs the role {}", role.as_str()))),
    }
}

// ---- streams ----

#[derive(Deserialize)]
struct Append {
    stream: String,
    role: Option<String>,
    content: serde_json::Value,
}

#[derive(Serialize)]
struct Appended {
    id: u64,
    o: String,
}

#[derive(Deserialize)]
struct Follow {
    stream: String,
    since: Option<String>,
    parts: Option<bool>,
}

#[derive(Deserialize)]
struct Named {
    stream: String,
}

fn of_streams(behind: &Late) -> Service {
    let (appends, interrupts, follows) = (behind.clone(), behind.clone(), behind.clone());
    let creates = behind.clone();
    let create = Procedure::rpc(move |call, ask: Named| {
        may(call, Op::Manage, &ask.stream)?;
        let created = creates.get()?.streams.create(&ask.stream, json_messages());
        created.map(|_| ()).map_err(|error| Failure::new(error.code(), error.to_string()))
    });
    let append = Procedure::rpc(move |call, ask: Append| {
        may(call, Op::Append, &ask.stream)?;
        let written = appends.get()?.streams.append(&ask.stream, ask.role.as_deref(), &ask.content);
        let written = written.map_err(|error| Failure::new(error.code(), error.to_string()))?;
        Ok(Appended { id: written.id, o: written.token.to_string() })
    });
    let interrupt = Procedure::rpc(move |call, ask: Named| {
        may(call, Op::Interrupt, &ask.stream)?;
        let streams = &interrupts.get()?.streams;
        streams.interrupt(&ask.stream).map_err(|error| Failure::new(error.code(), error.to_string()))
    });
    let follow = Procedure::subscription(move |call, ask: Follow, out: Writable<serde_json::Value>| {
        may(call, Op::Follow, &ask.stream)?;
        follow_into(&follows.get()?.streams, call, &ask, &out)
    });
    Service::new("streams")
        .with(
            "append",
            append
                .about("Appends a durable message.")
                .takes(object([("stream", text()), ("role", optional(text())), ("content", any())]))
                .gives(object([("id", integer()), ("o", text())])),
        )
        .with(
            "create",
            create
                .about("Creates a stream of JSON messages; one that is there stays.")
                .takes(object([("stream", text())])),
        )
        .with(
            "interrupt",
            interrupt
                .about("Asks the worker of the turn that runs to stop.")
                .takes(object([("stream", text())])),
        )
        .with(
            "follow",
            follow
                .about("What is in a stream and what comes, in the event envelope of the HTTP door.")
                .takes(object([
                    ("stream", text()),
                    ("since", optional(text().about("a token, -1 or now"))),
                    ("parts", optional(boolean())),
                ]))
                .gives(object([
                    ("t", text()),
                    ("s", text()),
                    ("o", text()),
                    ("ts", integer()),
                    ("d", any()),
                ])),
        )
}

fn json_messages() -> CreateStream {
    CreateStream { content_type: Some("application/json".into()), ..CreateStream::default() }
}

fn follow_into(
    streams: &Streams,
    call: &Call,
    ask: &Follow,
    out: &Writable<serde_json::Value>,
) -> Result<(), Failure> {
    let since = match ask.since.as_deref() {
        None | Some("-1") => Since::Start,
        Some("now") => Since::Now,
        Some(token) => {
            let token = token.parse::<Token>();
            Since::After(token.map_err(|_| Failure::new("bad_token", "this is not a token of a stream"))?)
        }
    };
    let options = FollowOptions { since, parts: ask.parts.unwrap_or(true) };
    let mut follow = streams
        .follow(&ask.stream, options)
        .map_err(|error| Failure::new(error.code(), error.to_string()))?;
    loop {
        if call.cancel_token().is_cancelled() {
            return Ok(());
        }
        match follow.next_within(LOOK) {
            Ok(None) => {}
            Ok(Some(event)) => {
                let json = event.to_json(&ask.stream, false);
                let json = serde_json::from_str(&json).map_err(Failure::uncaught)?;
                match out.write(&json) {
                    Err(NotWritten::Closed) => return Ok(()),
                    written => written?,
                }
            }
            // It was told why by the event before.
            Err(_) => return Ok(()),
        }
    }
}

// ---- agents ----

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

fn of_agents(behind: &Late) -> Service {
    let behind = behind.clone();
    let report = Procedure::rpc(move |call, ask: Report| {
        must_be(call, Role::Agent)?;
        let entries: Vec<(&str, &str, &str)> = ask
            .metadata
            .iter()
            .map(|entry| {
                (entry.key.as_str(), entry.value.as_str(), entry.error.as_deref().unwrap_or_default())
            })
            .collect();
        let accepted = behind.get()?.metadata.report(ask.agent, &entries);
        let accepted = accepted.map_err(|error| Failure::new("refused", error.to_string()))?;
        Ok(Accepted { accepted })
    });
    let entry = object([("key", text()), ("value", text()), ("error", optional(text()))]);
    Service::new("agents").with(
        "report",
        report
            .about("Takes in metadata of an agent, as the latest.")
            .takes(object([("agent", text()), ("metadata", array(entry))]))
            .gives(object([("accepted", integer())])),
    )
}

// ---- operations ----

#[derive(Deserialize)]
struct Nothing {}

#[derive(Serialize)]
struct Pong {
    version: &'static str,
    replicas: usize,
}

fn of_admins(behind: &Late) -> Service {
    let behind = behind.clone();
    let ping = Procedure::rpc(move |_, _: Nothing| {
        Ok(Pong { version: env!("CARGO_PKG_VERSION"), replicas: behind.get()?.replicas.list().len() })
    });
    Service::new("admin").with(
        "ping",
        ping.about("Says which version answers, and how many replicas it knows.")
            .takes(object([]))
            .gives(object([("version", text()), ("replicas", integer())])),
    )
}
