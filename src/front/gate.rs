//! The guard of a daemon: Host, Origin, credentials.
//!
//! Order: Host (an unauthenticated loopback daemon must not be reached under a name that a foreign page
//! chose), Origin (a page of another site may not use it unless it is on the list), then credentials.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::auth::{Guard, Principal};
use super::query::Query;
use super::router::Need;
use super::secret::Secret;
use super::token::Tokens;
use crate::rt::{Hasher, Lock, Rt};
use crate::state::time::Moment;
use crate::wire::http::{Head, Method, Response};
use crate::wire::{Pass, Peer};

/// How long a ticket is good for.
pub const TICKET_LIFE: Duration = Duration::from_secs(30);
/// Tickets that wait to be used at most; more are a 503.
const TICKETS_MAX: usize = 10_000;
/// The subprotocol that carries a token, for browsers, whose WebSockets can send no header.
const CARRIER: &str = "towpath.bearer.";
/// The cookie that carries one.
const COOKIE: &str = "towpath_token";

/// Whether callers have to show who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// No: everybody is an admin. With `loopback_hosts`, only requests for a loopback name are served, as
    /// it has to be where only loopback is listened on.
    Off {
        /// Whether `Host` must be a loopback name.
        loopback_hosts: bool,
    },
    /// Yes.
    Needed,
}

/// What somebody shows to get in, besides static tokens. Asked on an I/O thread: it must not block.
pub trait Verifier: Send + Sync {
    /// Who holds this token; `None` if it is nobody's.
    fn holder(&self, token: &str, rt: &Rt) -> Option<Principal>;

    /// What all that it lets in is let in with; ended when it is replaced by another one. `None` if nothing
    /// but their own end ends its credentials.
    fn pass(&self) -> Option<&Pass> {
        None
    }
}

/// A daemon's [`Guard`]. Tokens can be replaced while it stands ([`Gate::set_tokens`]).
pub struct Gate {
    rt: Rt,
    credentials: Credentials,
    allow_origins: Vec<String>,
    tokens: Lock<Arc<Tokens>>,
    verifiers: Lock<Arc<[Arc<dyn Verifier>]>>,
    tickets: Lock<Tickets>,
}

/// Tickets by the hash of their text, so that a dump of memory holds none that could be used.
struct Tickets {
    open: HashMap<[u8; 32], (Principal, Moment), Hasher>,
}

impl Gate {
    /// A gate. `allow_origins` are origins besides the daemon's own (`https://app.example.com`).
    pub fn new(rt: &Rt, credentials: Credentials, allow_origins: Vec<String>) -> Gate {
        Gate {
            rt: rt.clone(),
            credentials,
            allow_origins,
            tokens: Lock::new(Arc::new(Tokens::default())),
            verifiers: Lock::new(Arc::new([])),
            tickets: Lock::new(Tickets { open: HashMap::with_hasher(rt.hasher()) }),
        }
    }

    /// Replaces the static tokens. True if passes of older ones ended: have the links looked at
    /// ([`Doors::recheck`](crate::wire::Doors::recheck)).
    pub fn set_tokens(&self, mut tokens: Tokens) -> bool {
        let mut known = self.tokens.lock();
        let ended = tokens.succeed(&known);
        *known = Arc::new(tokens);
        ended
    }

    /// Replaces the ways to be known besides static tokens. True if passes of older ones ended.
    pub fn set_verifiers(&self, verifiers: Vec<Arc<dyn Verifier>>) -> bool {
        let mut known = self.verifiers.lock();
        let of = |verifiers: &[Arc<dyn Verifier>], pass: &Pass| {
            verifiers.iter().find(|one| one.pass() == Some(pass)).cloned()
        };
        // One that was there before stays, with its pass.
        let stays = |new: Arc<dyn Verifier>| new.pass().and_then(|pass| of(&known, pass)).unwrap_or(new);
        let verifiers: Vec<_> = verifiers.into_iter().map(stays).collect();
        let passes = known.iter().filter_map(|one| one.pass());
        let ended =
            passes.filter(|pass| of(&verifiers, pass).is_none()).inspect(|pass| pass.end()).count() > 0;
        *known = verifiers.into();
        ended
    }

    /// The pass of this mark; `None` if it has ended.
    pub fn pass(&self, mark: u64) -> Option<Pass> {
        let (tokens, verifiers) = (self.tokens.lock().clone(), self.verifiers.lock().clone());
        let mut passes = tokens.passes().chain(verifiers.iter().filter_map(|one| one.pass()));
        passes.find(|pass| pass.mark() == mark).cloned()
    }

    /// Whether callers have to show who they are.
    pub fn needs_credentials(&self) -> bool {
        self.credentials == Credentials::Needed
    }

    /// Who holds this token, if it is good now. For what carries a token elsewhere than in a request's
    /// head: the `auth` operation of a WebSocket, the metadata of a River handshake.
    pub fn holder(&self, token: &str) -> Option<Principal> {
        if !self.needs_credentials() {
            return Some(Principal::anonymous());
        }
        let tokens = self.tokens.lock().clone();
        let wall = self.rt.wall();
        let verifiers = self.verifiers.lock().clone();
        let known = tokens.holder(token).cloned();
        let known = known.or_else(|| verifiers.iter().find_map(|verifier| verifier.holder(token, &self.rt)));
        known.filter(|who| who.expires.is_none_or(|expires| wall < expires))
    }

    /// A ticket for somebody who is in already: good once, for [`TICKET_LIFE`], in a query string, where
    /// a token that lives longer must never stand.
    ///
    /// # Errors
    /// A 503 to send, when too many wait to be used.
    pub fn issue_ticket(&self, who: &Principal) -> Result<Secret, Response> {
        let ticket = Secret::new(URL_SAFE_NO_PAD.encode(self.rt.secret::<32>()));
        let now = self.rt.now();
        let mut tickets = self.tickets.lock();
        if tickets.open.len() >= TICKETS_MAX {
            tickets.open.retain(|_, (_, until)| now < *until);
        }
        if tickets.open.len() >= TICKETS_MAX {
            return Err(Response::problem(503, "full", "too many tickets wait to be used: try again"));
        }
        tickets.open.insert(Sha256::digest(ticket.reveal()).into(), (who.clone(), now + TICKET_LIFE));
        Ok(ticket)
    }

    fn spend_ticket(&self, ticket: &str) -> Option<Principal> {
        let now = self.rt.now();
        let hash: [u8; 32] = Sha256::digest(ticket).into();
        let (who, until) = self.tickets.lock().open.remove(&hash)?;
        let good = now < until && who.pass.as_ref().is_none_or(Pass::is_good);
        good.then_some(who)
    }

    /// What the request shows, in the order in which it is looked for.
    fn shown<'a>(&self, head: &'a Head, query: &'a Query) -> Option<Shown<'a>> {
        if head.has("authorization") {
            let value = head.header("authorization").unwrap_or_default();
            let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
            let is_bearer = scheme.eq_ignore_ascii_case("bearer");
            return Some(Shown::Token(if is_bearer { token.trim() } else { "" }));
        }
        if let Some(token) = head.list("sec-websocket-protocol").find_map(|one| one.strip_prefix(CARRIER)) {
            return Some(Shown::Token(token));
        }
        if let Some(ticket) = query.get("ticket") {
            return Some(Shown::Ticket(ticket));
        }
        cookie(head).map(Shown::Cookie)
    }

    fn known(&self, head: &Head, query: &Query) -> Option<Principal> {
        match self.shown(head, query)? {
            Shown::Token(token) => self.holder(token),
            Shown::Ticket(ticket) => self.spend_ticket(ticket),
            // A browser sends its cookies with requests that a foreign page makes, too. Those that change
            // something carry an Origin, which has been judged by now; reading is harmless without.
            Shown::Cookie(token) if head.has("origin") || is_read(head) => self.holder(token),
            Shown::Cookie(_) => None,
        }
    }
}

enum Shown<'a> {
    Token(&'a str),
    Ticket(&'a str),
    Cookie(&'a str),
}

fn is_read(head: &Head) -> bool {
    matches!(head.method, Method::Get | Method::Head) && head.upgrade().is_none()
}

fn cookie(head: &Head) -> Option<&str> {
    let pairs = head.headers("cookie").flat_map(|value| value.split(';'));
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value)
}

fn is_loopback_name(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let host = host.to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Whether an origin is the daemon's own: the authority that the request was sent to, under either
/// scheme (a proxy may have taken the TLS off).
fn is_own(origin: &str, host: &str) -> bool {
    let authority = |scheme, port: &str| {
        let origin: &str = origin.strip_prefix(scheme)?;
        Some(
            origin.eq_ignore_ascii_case(host)
                || origin.eq_ignore_ascii_case(host.strip_suffix(port).unwrap_or(host)),
        )
    };
    authority("http://", ":80").or_else(|| authority("https://", ":443")).unwrap_or(false)
}

impl Guard for Gate {
    fn origin(&self, head: &Head, peer: &Peer) -> Result<Vec<(&'static str, String)>, Response> {
        if self.credentials == (Credentials::Off { loopback_hosts: true })
            && peer.ip.is_some()
            && !is_loopback_name(&head.host)
        {
            let detail = "without authentication only requests for a loopback name are served";
            return Err(Response::problem(421, "foreign_host", detail).closing());
        }
        if !head.has("origin") {
            return Ok(Vec::new());
        }
        let origin = head.header("origin").unwrap_or_default();
        if is_own(origin, &head.host) {
            return Ok(Vec::new());
        }
        if !self.allow_origins.iter().any(|allowed| allowed == origin) {
            let detail = "pages of this origin may not use the daemon: see server.allow_origins";
            return Err(Response::problem(403, "foreign_origin", detail).closing());
        }
        Ok(vec![
            ("access-control-allow-origin", origin.to_owned()),
            ("access-control-allow-credentials", "true".to_owned()),
            ("access-control-expose-headers", EXPOSED.to_owned()),
            ("vary", "Origin".to_owned()),
        ])
    }

    fn admit(&self, head: &Head, query: &Query, _: &Peer, need: Need) -> Result<Principal, Box<Response>> {
        if !self.needs_credentials() {
            return Ok(Principal::anonymous());
        }
        if need == Need::Nothing {
            return Ok(Principal::nobody());
        }
        let Some(who) = self.known(head, query) else {
            let shown = self.shown(head, query).is_some();
            let (challenge, detail) = match shown {
                true => ("Bearer error=\"invalid_token\"", "these credentials are not, or no longer, good"),
                false => ("Bearer", "show a token: `Authorization: Bearer …`"),
            };
            let response =
                Response::problem(401, "unauthorized", detail).header("www-authenticate", challenge);
            return Err(Box::new(response));
        };
        if !who.meets(need) {
            let detail = "these credentials do not have the role this needs";
            return Err(Box::new(Response::problem(403, "forbidden", detail)));
        }
        Ok(who)
    }

    fn holder(&self, token: &str) -> Option<Principal> {
        Gate::holder(self, token)
    }

    fn preflight(&self, head: &Head, allowed: &str) -> Response {
        let response = Response::new(204);
        if !head.has("access-control-request-method") {
            return response;
        }
        response
            .header("access-control-allow-methods", allowed)
            .header("access-control-allow-headers", ACCEPTED)
            .header("access-control-max-age", "600")
    }
}

/// Request headers that a page of an allowed origin may set.
const ACCEPTED: &str = "authorization, content-type, idempotency-key, if-match, if-none-match, last-event-id, prefer, \
     producer-epoch, producer-id, producer-seq, stream-closed, stream-expires-at, stream-fork-offset, \
     stream-fork-sub-offset, stream-forked-from, stream-seq, stream-ttl, towpath-lease, towpath-part";
/// Response headers that it may read.
const EXPOSED: &str = "etag, location, retry-after, stream-closed, stream-cursor, stream-expires-at, stream-next-offset, \
     stream-sse-data-encoding, stream-ttl, stream-up-to-date, x-vercel-ai-ui-message-stream, producer-epoch, producer-seq, producer-expected-seq, producer-received-seq";

#[cfg(test)]
mod tests;
