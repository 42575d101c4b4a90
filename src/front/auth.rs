//! Who asks, and what they may.

use std::fmt;

use serde_json::{Value, json};

use super::query::Query;
use super::router::Need;
use super::streams::rfc3339;
use crate::wire::http::{Head, Response};
use crate::wire::{Pass, Peer};

/// What a caller is trusted with. `Admin` may do everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Everything.
    Admin,
    /// Produces: creates streams, appends, runs turns, records connections.
    Producer,
    /// Reads streams.
    Follower,
    /// Reports metadata and connections of one agent or a fleet.
    Agent,
    /// Opens pipes.
    Pipe,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 5] = [Role::Admin, Role::Producer, Role::Follower, Role::Agent, Role::Pipe];

    /// As it stands in a token file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Producer => "producer",
            Role::Follower => "follower",
            Role::Agent => "agent",
            Role::Pipe => "pipe",
        }
    }

    /// The role of that name.
    pub fn parse(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.as_str() == name)
    }

    pub(super) const fn alone(self) -> &'static [Role] {
        match self {
            Role::Admin => &[Role::Admin],
            Role::Producer => &[Role::Producer],
            Role::Follower => &[Role::Follower],
            Role::Agent => &[Role::Agent],
            Role::Pipe => &[Role::Pipe],
        }
    }
}

/// What is done with a stream, for scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Reading it, live or not.
    Follow,
    /// Appending, editing, queueing.
    Append,
    /// Running turns.
    Produce,
    /// Asking a worker to stop.
    Interrupt,
    /// Creating and deleting.
    Manage,
}

impl Op {
    /// Every operation.
    pub const ALL: [Op; 5] = [Op::Follow, Op::Append, Op::Produce, Op::Interrupt, Op::Manage];

    /// As it stands in a scope.
    pub const fn as_str(self) -> &'static str {
        match self {
            Op::Follow => "follow",
            Op::Append => "append",
            Op::Produce => "produce",
            Op::Interrupt => "interrupt",
            Op::Manage => "manage",
        }
    }

    /// The operation of that name.
    pub fn parse(name: &str) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.as_str() == name)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Streams and what may be done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// A stream's name, or a beginning of names that ends in `*` (`chat/*`).
    pub matches: String,
    /// What may be done.
    pub ops: Vec<Op>,
}

impl Scope {
    fn allows(&self, op: Op, stream: &str) -> bool {
        let fits = match self.matches.strip_suffix('*') {
            Some(beginning) => stream.starts_with(beginning),
            None => stream == self.matches,
        };
        fits && self.ops.contains(&op)
    }
}

/// Somebody who was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// A name for logs and limits; never a secret.
    pub name: String,
    /// The roles.
    pub roles: Vec<Role>,
    /// Which streams; `None` is all of them.
    pub scopes: Option<Vec<Scope>>,
    /// When the credentials end; live reads end then with `auth`.
    pub expires: Option<crate::state::time::Wall>,
    /// Whether they have been taken back; live reads end then, too. `None` is never.
    pub pass: Option<Pass>,
}

impl Principal {
    /// Who asks where nobody is asked for credentials.
    pub fn anonymous() -> Principal {
        Principal {
            name: "anonymous".into(),
            roles: vec![Role::Admin],
            scopes: None,
            expires: None,
            pass: None,
        }
    }

    /// Who asks for what needs nothing, and showed nothing.
    pub fn nobody() -> Principal {
        Principal { name: "nobody".into(), roles: Vec::new(), scopes: None, expires: None, pass: None }
    }

    /// Whether it has this role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.iter().any(|&own| own == role || own == Role::Admin)
    }

    /// Whether it may do this with this stream: by role, and inside its scopes.
    pub fn may(&self, op: Op, stream: &str) -> bool {
        let by_role = match op {
            Op::Follow => self.has(Role::Follower) || self.has(Role::Producer),
            Op::Interrupt => self.has(Role::Follower) || self.has(Role::Producer),
            Op::Append | Op::Produce | Op::Manage => self.has(Role::Producer),
        };
        by_role
            && self.scopes.as_ref().is_none_or(|scopes| scopes.iter().any(|scope| scope.allows(op, stream)))
    }

    /// What it is told about itself: never a secret.
    pub fn told(&self) -> Value {
        let streams = self.scopes.as_ref().map(|scopes| {
            let one = |scope: &Scope| {
                let ops: Vec<_> = scope.ops.iter().map(|op| op.as_str()).collect();
                json!({ "match": scope.matches, "ops": ops })
            };
            scopes.iter().map(one).collect::<Vec<_>>()
        });
        let roles: Vec<_> = self.roles.iter().map(|role| role.as_str()).collect();
        let expires = self.expires.map(rfc3339);
        json!({ "name": self.name, "roles": roles, "streams": streams, "expires_at": expires })
    }

    pub(super) fn meets(&self, need: Need) -> bool {
        match need {
            Need::Nothing | Need::Anybody => true,
            Need::Roles(roles) => roles.iter().any(|&role| self.has(role)),
        }
    }
}

/// What stands before the routes.
pub trait Guard: Send + Sync {
    /// Judges `Host` and `Origin` before anything else; what it answers is added to the response's
    /// headers (CORS).
    ///
    /// # Errors
    /// The response to refuse with.
    fn origin(&self, head: &Head, peer: &Peer) -> Result<Vec<(&'static str, String)>, Response>;

    /// Who asks, if they may.
    ///
    /// # Errors
    /// The response to refuse with: 401 or 403.
    fn admit(&self, head: &Head, query: &Query, peer: &Peer, need: Need) -> Result<Principal, Box<Response>>;

    /// Who holds a token that is shown later than with a request, as the `auth` operation of a WebSocket does.
    fn holder(&self, token: &str) -> Option<Principal>;

    /// The answer to a CORS preflight.
    fn preflight(&self, head: &Head, allowed: &str) -> Response;
}

/// A guard that lets everybody in. For tests and for programs that embed towpath behind a door of
/// their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenDoor;

impl Guard for OpenDoor {
    fn origin(&self, _: &Head, _: &Peer) -> Result<Vec<(&'static str, String)>, Response> {
        Ok(Vec::new())
    }

    fn admit(&self, _: &Head, _: &Query, _: &Peer, need: Need) -> Result<Principal, Box<Response>> {
        let who = Principal::anonymous();
        debug_assert!(who.meets(need), "an admin meets every need");
        Ok(who)
    }

    fn holder(&self, _: &str) -> Option<Principal> {
        Some(Principal::anonymous())
    }

    fn preflight(&self, _: &Head, _: &str) -> Response {
        Response::new(204)
    }
}
