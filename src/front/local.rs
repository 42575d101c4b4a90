//! The routes asked over no connection: what River procedures do is what HTTP does, because the same handlers do
//! it. Roles, scopes, limits, keys and error codes are those of the routes.

use std::collections::BTreeMap;

use super::auth::Principal;
use super::query::Query;
use super::reply::Answer;
use super::request::Request;
use super::router::{Handler, Route, Router, too_large};
use crate::wire::Peer;
use crate::wire::http::{Head, Method, Response};

/// A header's value is no longer.
const HEADER_MAX: usize = 4 * 1024;

fn over_http_only() -> Response {
    Response::problem(501, "not_implemented", "this route answers over HTTP only")
}

/// A request that comes over no connection.
#[derive(Debug)]
pub struct Ask {
    /// The route's method.
    pub method: Method,
    /// The route's pattern, as it was added.
    pub pattern: &'static str,
    /// Who asks.
    pub who: Principal,
    /// What stands for the pattern's parameters.
    pub params: Vec<(String, String)>,
    /// The query.
    pub query: Vec<(String, String)>,
    /// Headers, their names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// The routes of a [`Router`], for who asks over no connection.
pub struct Local {
    /// By pattern.
    routes: BTreeMap<String, Vec<Route>>,
    body_max: usize,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Local({} patterns)", self.routes.len())
    }
}

impl Router {
    /// The routes that were added so far, to be asked over no connection. Of those whose answers may stay open only
    /// what they ask of a caller is kept: nothing here holds their handlers.
    pub fn local(&self) -> Local {
        let mut routes: BTreeMap<String, Vec<Route>> = BTreeMap::new();
        for route in self.routes() {
            let kept = match route.handler() {
                Handler::Whole(_) => route.clone(),
                Handler::Any(_) => route.clone().to_whole(|_, answer| answer.send(over_http_only())),
            };
            routes.entry(route.pattern().to_owned()).or_default().push(kept);
        }
        Local { routes, body_max: self.body_bound() }
    }
}

impl Local {
    /// Makes the request, if who asks may; an error is the answer. For what answers by itself, and reads the request
    /// as the route does.
    pub fn request(&self, ask: Ask) -> Result<Request, Response> {
        self.prepare(ask).map(|(_, request)| request)
    }

    /// Asks. `then` is called with the answer, perhaps before this returns, and is dropped if there is none because
    /// everything stops.
    pub fn ask(&self, ask: Ask, then: impl FnOnce(Response) + Send + 'static) {
        match self.prepare(ask) {
            Ok((Handler::Whole(handler), request)) => handler(request, Answer::local(then)),
            Ok((Handler::Any(_), _)) => then(over_http_only()),
            Err(response) => then(response),
        }
    }

    fn prepare(&self, ask: Ask) -> Result<(&Handler, Request), Response> {
        let Ask { method, pattern, who, params, query, headers, body } = ask;
        let found = self.routes.get(pattern).into_iter().flatten().find(|route| route.method() == method);
        let route = found.ok_or_else(|| Response::problem(404, "not_found", "there is no such route"))?;
        if !who.meets(route.need()) {
            let detail = "these credentials do not have the role this needs";
            return Err(Response::problem(403, "forbidden", detail));
        }
        if headers.iter().any(|(_, value)| !value.is_ascii() || value.len() > HEADER_MAX) {
            let detail = "keys and leases are ASCII, and short";
            return Err(Response::problem(400, "bad_field", detail));
        }
        let max = route.body_bound().unwrap_or(self.body_max);
        if body.len() > max {
            return Err(too_large(max));
        }
        let path = route.path_of(&params);
        let head = Head::local(method, &path, &headers);
        let peer = Peer { ip: None, port: 0, tls: false, listener: Peer::DIALED };
        Ok((route.handler(), Request { head, path, params, query: Query::of(query), who, peer, body }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::front::Role;

    fn local() -> Local {
        let mut router = Router::new();
        router.body_max(8);
        let told = |request: Request, answer: Answer| {
            let said = format!("{} {}", request.path(), request.header("idempotency-key").unwrap_or("none"));
            answer.json(200, &said);
        };
        router.add(Route::post("/v1/{name*}/say/{id}").needs(Role::Producer).to_whole(told));
        router.add(Route::get("/v1/{name*}/say/{id}").needs(Role::Producer).to(|_, reply| reply.empty(204)));
        router.local()
    }

    fn ask(method: Method, role: Role, key: &str, body: &[u8]) -> (u16, String) {
        let who = Principal { name: "me".into(), roles: vec![role], scopes: None, expires: None, pass: None };
        let (tell, told) = mpsc::sync_channel(1);
        let ask = Ask {
            method,
            pattern: "/v1/{name*}/say/{id}",
            who,
            params: vec![("name".into(), "a/b".into()), ("id".into(), "7".into())],
            query: vec![],
            headers: vec![("idempotency-key", key.into())],
            body: body.to_vec(),
        };
        local().ask(ask, move |response| tell.send(response).expect("somebody waits"));
        let response = told.try_recv().expect("it answers on the spot");
        (response.status(), String::from_utf8_lossy(response.content()).into_owned())
    }

    #[test]
    fn a_route_is_asked_as_over_http() {
        assert_eq!(ask(Method::Post, Role::Producer, "k", b"{}"), (200, "\"/v1/a/b/say/7 k\"".into()));
        assert_eq!(ask(Method::Post, Role::Follower, "k", b"{}").0, 403);
        assert_eq!(ask(Method::Post, Role::Admin, "k", b"123456789").0, 413);
        assert_eq!(ask(Method::Post, Role::Admin, "ü", b"{}").0, 400);
        assert_eq!(ask(Method::Put, Role::Admin, "k", b"{}").0, 404);
        assert_eq!(ask(Method::Get, Role::Admin, "k", b"").0, 501, "its answer may stay open");
    }
}
