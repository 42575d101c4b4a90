//! The daemon's River services, behind the door `/river`.
//!
//! Who a client is, its handshake says: `{token}` in its metadata, judged by the same gate as every request. What
//! a client may do is asked with each call, by role and scope, as over HTTP.

mod admin;
mod agents;
mod connections;
mod pipes;
mod streams;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::codec::typed;
use crate::engine::connections::Connections;
use crate::engine::metadata::Metadata;
use crate::engine::pipes::PipesHandle;
use crate::engine::replicas::Replicas;
use crate::engine::sessions::{Admission, Admitted, Settings};
use crate::engine::streams::Streams;
use crate::engine::visits::Visits;
use crate::front::{Gate, Op, Principal, Role, Scope};
use crate::metrics::Metrics;
use crate::rt::Rt;
use crate::service::server::Server;
use crate::service::{Call, Failure, Services};
use crate::state::handshake::{Refusal, RefusalCode};
use crate::state::value::Value;

/// What the services stand on.
pub(super) struct Behind {
    pub(super) streams: Streams,
    pub(super) metadata: Metadata,
    pub(super) connections: Connections,
    pub(super) pipes: PipesHandle,
    pub(super) replicas: Replicas,
    pub(super) visits: Visits,
}

/// Starts the sessions.
pub(super) fn start(rt: &Rt, gate: Arc<Gate>, behind: Behind, metrics: &mut Metrics) -> Result<Server> {
    let admission = ByToken { rt: rt.clone(), gate };
    let settings = Settings { visits: behind.visits.clone(), ..Settings::default() };
    let services = services(&Late(Arc::new(Some(behind))));
    Server::builder(rt, services).settings(settings).admission(admission).metrics(metrics).start()
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
    Services::new()
        .with(streams::service(behind))
        .with(agents::service(behind))
        .with(connections::service(behind))
        .with(pipes::service(behind))
        .with(admin::service(behind))
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

fn must_be(call: &Call, roles: &[Role]) -> Result<(), Failure> {
    let who = caller(call);
    if roles.iter().any(|role| who.has(*role)) {
        return Ok(());
    }
    let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    Err(Failure::new("forbidden", format!("this needs the role {}", names.join(" or "))))
}

/// An error of the library as a service's error, with the codes of the HTTP door.
fn refused(error: &crate::Error) -> Failure {
    use crate::Code;
    let code = match error.code() {
        Code::BadRequest => "bad_request",
        Code::NotFound => "not_found",
        Code::Conflict | Code::Exists => "conflict",
        Code::Full => "full",
        Code::StoreUnavailable => "store_unavailable",
        Code::TimedOut => "timed_out",
        Code::Stopped => "stopping",
        _ => "internal",
    };
    Failure::new(code, error.to_string())
}

/// What the HTTP door would show, as the answer of a procedure.
fn shown(shown: &impl Serialize) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(shown).map_err(Failure::uncaught)
}

fn uuid(text: &str, of: &str) -> Result<uuid::Uuid, Failure> {
    uuid::Uuid::try_parse(text).map_err(|_| Failure::new("bad_request", format!("{of} is not a UUID")))
}
