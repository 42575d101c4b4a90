//! A request as a handler sees it.

use std::fmt;

use serde::de::DeserializeOwned;

use super::auth::{Op, Principal};
use super::query::Query;
use crate::engine::visits::Caller;
use crate::wire::Peer;
use crate::wire::http::{Head, Method, Response};

/// A request: head, path parameters, who asks, and the body (empty on a streamed route).
pub struct Request {
    pub(super) head: Head,
    pub(super) path: String,
    pub(super) params: Vec<(String, String)>,
    pub(super) query: Query,
    pub(super) who: Principal,
    pub(super) peer: Peer,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The method.
    pub fn method(&self) -> Method {
        self.head.method
    }

    /// The path, decoded.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A parameter of the route's pattern, decoded; `{name*}` may hold slashes. Empty if the pattern has
    /// none of that name.
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// What stands behind the `?`.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// The query, if it holds no key but these (`"label."` stands for all that begin so), none twice.
    ///
    /// # Errors
    /// A 400 to send: a typo in a filter must not answer with everything.
    pub fn query_of(&self, known: &[&str]) -> Result<&Query, Response> {
        // What may come by ticket may come to any route.
        match self.query.surprise(&[known, &["ticket"]].concat()) {
            None => Ok(&self.query),
            Some(key) => {
                let detail = format!("the query parameter `{key}` is unknown here or came twice");
                Err(Response::problem(400, "unknown_parameter", &detail))
            }
        }
    }

    /// A header that came exactly once and is ASCII (name in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The whole head, for what the methods here do not cover.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Who asks.
    pub fn who(&self) -> &Principal {
        &self.who
    }

    /// Who asks, and where from, as the connection log has it.
    pub fn caller(&self) -> Caller {
        let user_agent = self.header("user-agent").map(|text| cut(text, USER_AGENT_MAX).into());
        Caller { ip: self.peer.ip, user_agent, principal: Some(self.who.name.as_str().into()) }
    }

    /// Where it comes from.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether who asks may do this with this stream.
    ///
    /// # Errors
    /// A 403 to send.
    pub fn may(&self, op: Op, stream: &str) -> Result<(), Response> {
        if self.who.may(op, stream) {
            return Ok(());
        }
        Err(Response::problem(
            403,
            "forbidden",
            &format!("these credentials do not allow to {op} this stream"),
        ))
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Takes the body out.
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// The media type, without parameters, in lower case; empty if there is none.
    pub fn content_type(&self) -> String {
        let whole = self.header("content-type").unwrap_or_default();
        whole.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    /// The body as JSON. An empty body is `{}`, so that `POST …/turns` needs none.
    ///
    /// # Errors
    /// A 400 to send, with the code `bad_json` (not JSON, not UTF-8), `unknown_field`, or `bad_field`
    /// (wrong type, missing).
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Response> {
        let body = if self.body.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &self.body[..] };
        from_json(body)
    }

    /// Whether a WebSocket is asked for.
    pub fn wants_websocket(&self) -> bool {
        self.head.upgrade().is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"))
    }

    /// The protocol of an `Upgrade`, if one is asked for.
    pub fn upgrade(&self) -> Option<&str> {
        self.head.upgrade()
    }
}

/// How much of a user agent is recorded.
const USER_AGENT_MAX: usize = 512;

/// The beginning of a text, at most `max` bytes of whole characters.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// One JSON text as a value; also for the lines of an NDJSON body.
///
/// # Errors
/// A 400 to send, as in [`Request::json`].
pub fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, Response> {
    serde_json::from_slice(text).map_err(|error| {
        let said = error.to_string();
        let code = match error.classify() {
            serde_json::error::Category::Data if said.starts_with("unknown field") => "unknown_field",
            serde_json::error::Category::Data => "bad_field",
            _ => "bad_json",
        };
        Response::problem(400, code, &format!("the body: {said}"))
    })
}

impl fmt::Debug for Request {
    /// Method and path: the rest may carry secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.head)
    }
}
