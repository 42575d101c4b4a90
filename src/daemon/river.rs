//! The daemon's River services, behind the door `/river`.
//!
//! Who a client is, its handshake says: `{token}` in its metadata, judged by the same gate as every request. What
//! a client may do is asked with each call, by role and scope, as over HTTP. What a route answers with one whole
//! response, its procedure has from that route's handler ([`mirror`]).

mod admin;
mod agents;
mod connections;
mod mirror;
mod pipes;
mod streams;

use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::codec::typed;
use crate::engine::connections::Connections;
use crate::engine::metadata::Metadata;
use crate::engine::replicas::Replicas;
use crate::engine::sessions::{Admission, Admitted, Settings};
use crate::engine::streams::{StreamError, Streams};
use crate::engine::visits::Visits;
use crate::front::connections::refusal;
use crate::front::streams::problem;
use crate::front::{Gate, Local, Op, Principal, Response, Role, Scope};
use crate::metrics::Metrics;
use crate::rt::Rt;
use crate::service::server::Server;
use crate::service::{Call, Failure, Services};
use crate::state::handshake::{Refusal, RefusalCode};
use crate::state::time::Wall;
use crate::state::value::Value;

/// What the services stand on.
pub(super) struct Behind {
    pub(super) gate: Arc<Gate>,
    pub(super) streams: Streams,
    pub(super) metadata: Metadata,
    pub(super) connections: Connections,
    pub(super) replicas: Replicas,
    pub(super) visits: Visits,
    /// The routes, once all are known: before the doors open.
    pub(super) local: Arc<OnceLock<Local>>,
}

impl Behind {
    fn local(&self) -> Result<&Local, Failure> {
        self.local.get().ok_or_else(|| Failure::new("stopped", "the daemon is still starting: try again"))
    }

    /// Who calls, as long as the credentials are not taken back.
    fn caller(&self, call: &Call) -> Result<Principal, Failure> {
        let known = Known::of(call);
        let pass = match known.pass {
            Some(mark) => {
                let gone = || Failure::new("unauthorized", "these credentials are not, or no longer, good");
                Some(self.gate.pass(mark as u64).ok_or_else(gone)?)
            }
            None => None,
        };
        Ok(Principal { pass, ..known.principal() })
    }

    fn must_be(&self, call: &Call, roles: &[Role]) -> Result<(), Failure> {
        let who = self.caller(call)?;
        match roles.iter().any(|role| who.has(*role)) {
            true => Ok(()),
            false => Err(Failure::new("forbidden", "these credentials do not have the role this needs")),
        }
    }
}

/// Starts the sessions.
pub(super) fn start(rt: &Rt, behind: Behind, metrics: &mut Metrics) -> Result<Server> {
    let admission = ByToken { rt: rt.clone(), gate: behind.gate.clone() };
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

    fn holds(&self, made: &Value) -> bool {
        let known = typed::from_value::<Known>(made.clone());
        known.is_ok_and(|known| known.pass.is_none_or(|mark| self.gate.pass(mark as u64).is_some()))
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
    /// In microseconds.
    expires: Option<i64>,
    /// The mark of its pass, as the number that its bits are.
    pass: Option<i64>,
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
            expires: who.expires.map(Wall::as_micros),
            pass: who.pass.as_ref().map(|pass| pass.mark() as i64),
        }
    }
}

impl Known {
    /// Of who calls. What cannot be read is somebody with no rights.
    fn of(call: &Call) -> Known {
        let known = typed::from_value::<Known>((*call.metadata()).clone());
        known.unwrap_or_else(|_| Known::from(&Principal::nobody()))
    }

    fn principal(self) -> Principal {
        let scope = |(matches, ops): (String, Vec<String>)| Scope {
            matches,
            ops: ops.iter().filter_map(|op| Op::parse(op)).collect(),
        };
        Principal {
            name: self.name,
            roles: self.roles.iter().filter_map(|role| Role::parse(role)).collect(),
            scopes: self.scopes.map(|scopes| scopes.into_iter().map(scope).collect()),
            // The session ends then, or gets fresh ones; a ticket that it asks for must not live longer.
            expires: self.expires.map(Wall),
            pass: None,
        }
    }
}

/// What a response refuses with, as a service's error: the code and the words, and what else it says.
fn failure_of(response: &Response) -> Failure {
    const USUAL: [&str; 5] = ["type", "title", "status", "code", "detail"];
    let problem = serde_json::from_slice(response.content()).unwrap_or(Value::Null);
    let said = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let failure = Failure::new(said("code"), said("detail"));
    let Value::Map(fields) = problem else { return failure };
    let extras: Vec<_> = fields.into_iter().filter(|(name, _)| !USUAL.contains(&name.as_str())).collect();
    if extras.is_empty() { failure } else { failure.with(Value::Map(extras)) }
}

/// An error of the library as a service's error, as the HTTP door says it.
fn refused(error: &crate::Error) -> Failure {
    failure_of(&refusal(error))
}

/// An error of streams as a service's error, as the HTTP door says it.
fn failed(error: &StreamError) -> Failure {
    failure_of(&problem(error))
}

/// JSON that this crate wrote, as an answer.
fn value_of(json: &str) -> Result<Value, Failure> {
    serde_json::from_str(json).map_err(Failure::uncaught)
}
