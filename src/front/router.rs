//! Method and path to handler.

use std::any::Any;
use std::sync::Arc;

use super::auth::{Guard, OpenDoor, Role};
use super::query::{Query, decode};
use super::reply::{Answer, Reply};
use super::request::Request;
use super::sessions::Sessions;
use crate::wire::http::{Framing, Head, Method, Response};
use crate::wire::{Exchange, Front, Peer, Plan, Terms};

/// What a pattern's names stand for.
type Params = Vec<(String, String)>;

/// Who answers.
#[derive(Clone)]
pub(super) enum Handler {
    /// With whatever a [`Reply`] can be.
    Any(Arc<dyn Fn(Request, Reply) + Send + Sync>),
    /// With one whole response, also to who asks over no connection.
    Whole(Arc<dyn Fn(Request, Answer) + Send + Sync>),
}

impl Handler {
    fn call(&self, request: Request, reply: Reply) {
        match self {
            Handler::Any(handler) => handler(request, reply),
            Handler::Whole(handler) => handler(request, reply.into()),
        }
    }
}

/// What a caller must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: health, metrics on a private listener, the dashboard's page.
    Nothing,
    /// Any valid credentials.
    Anybody,
    /// One of these roles (or `admin`).
    Roles(&'static [Role]),
}

/// How a route takes its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// All of it, up to so many bytes or else the router's bound, before the handler is called.
    Whole(Option<usize>),
    /// The handler is called with the head and asks for the body.
    Streamed,
}

/// The body a route takes if neither it nor its router says anything.
const BODY_MAX: usize = 1024 * 1024;

/// One method on one path. Built in a chain that ends with [`Route::to`] or [`Route::to_whole`].
///
/// A pattern is made of literal segments, `{name}` (one segment) and at most one `{name*}` (one segment or
/// more). Of several patterns that match, the one with the most literal segments is taken.
#[derive(Clone)]
pub struct Route {
    method: Method,
    pattern: String,
    /// How much of the pattern is before its first parameter: what most paths do not begin with.
    front: usize,
    segments: Vec<Segment>,
    about: String,
    need: Need,
    takes: Takes,
    answers: Vec<u16>,
    query: Vec<String>,
    handler: Handler,
    live: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    One(String),
    Many(String),
}

impl Route {
    /// A route for any method.
    ///
    /// # Panics
    /// If the pattern does not begin with a slash or has two `{name*}`: routes are written by us.
    pub fn new(method: Method, pattern: &str) -> Route {
        let path = pattern.strip_prefix('/').expect("a pattern begins with a slash");
        let segments: Vec<Segment> = path.split('/').map(segment).collect();
        let many = segments.iter().filter(|segment| matches!(segment, Segment::Many(_))).count();
        assert!(many <= 1, "{pattern} has more than one parameter that may hold slashes");
        Route {
            method,
            pattern: pattern.to_owned(),
            front: pattern.find('{').unwrap_or(pattern.len()),
            segments,
            about: String::new(),
            need: Need::Anybody,
            takes: Takes::Whole(None),
            answers: vec![200],
            query: Vec::new(),
            live: false,
            handler: Handler::Whole(Arc::new(|_, answer| {
                answer.problem(501, "not_implemented", "this route has no handler");
            })),
        }
    }

    /// A route for GET (and HEAD, whose answer is the same without its body).
    pub fn get(pattern: &str) -> Route {
        Route::new(Method::Get, pattern)
    }

    /// A route for POST.
    pub fn post(pattern: &str) -> Route {
        Route::new(Method::Post, pattern)
    }

    /// A route for PUT.
    pub fn put(pattern: &str) -> Route {
        Route::new(Method::Put, pattern)
    }

    /// A route for PATCH.
    pub fn patch(pattern: &str) -> Route {
        Route::new(Method::Patch, pattern)
    }

    /// A route for DELETE.
    pub fn delete(pattern: &str) -> Route {
        Route::new(Method::Delete, pattern)
    }

    /// A route for HEAD, where it is not what GET answers without the body.
    pub fn head(pattern: &str) -> Route {
        Route::new(Method::Head, pattern)
    }

    /// What it does, in a line, for `/openapi.json`.
    #[must_use]
    pub fn about(mut self, about: &str) -> Route {
        about.clone_into(&mut self.about);
        self
    }

    /// Needs this role (or `admin`).
    #[must_use]
    pub fn needs(self, role: Role) -> Route {
        self.needs_one_of(role.alone())
    }

    /// Needs one of these roles (or `admin`).
    #[must_use]
    pub fn needs_one_of(mut self, roles: &'static [Role]) -> Route {
        self.need = Need::Roles(roles);
        self
    }

    /// Needs nothing at all.
    #[must_use]
    pub fn open(mut self) -> Route {
        self.need = Need::Nothing;
        self
    }

    /// The largest body (1 MiB if this is not called); a larger one is a 413.
    #[must_use]
    pub fn body_max(mut self, bytes: usize) -> Route {
        self.takes = Takes::Whole(Some(bytes));
        self
    }

    /// Its answer is a read that stays open: one of the caller's sessions.
    #[must_use]
    pub fn live(mut self) -> Route {
        self.live = true;
        self
    }

    /// Calls the handler as soon as the head is there; [`Reply::stream_body`] lets the body flow.
    #[must_use]
    pub fn streamed(mut self) -> Route {
        self.takes = Takes::Streamed;
        self
    }

    /// The statuses it answers with, for `/openapi.json` (errors that every route has are added).
    #[must_use]
    pub fn answers(mut self, statuses: &[u16]) -> Route {
        self.answers = statuses.to_vec();
        self
    }

    /// The query parameters it knows, for `/openapi.json`.
    #[must_use]
    pub fn takes_query(mut self, names: &[&str]) -> Route {
        self.query = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// Who answers.
    #[must_use]
    pub fn to(mut self, handler: impl Fn(Request, Reply) + Send + Sync + 'static) -> Route {
        self.handler = Handler::Any(Arc::new(handler));
        self
    }

    /// Who answers, always with one whole response: such a route can also be asked over no connection.
    #[must_use]
    pub fn to_whole(mut self, handler: impl Fn(Request, Answer) + Send + Sync + 'static) -> Route {
        self.handler = Handler::Whole(Arc::new(handler));
        self
    }

    /// Its method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Its pattern.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// What a caller must show.
    pub fn need(&self) -> Need {
        self.need
    }

    pub(super) fn handler(&self) -> &Handler {
        &self.handler
    }

    /// The largest body, where the route says one.
    pub(super) fn body_bound(&self) -> Option<usize> {
        match self.takes {
            Takes::Whole(max) => max,
            Takes::Streamed => None,
        }
    }

    /// The path with these parameters.
    pub(super) fn path_of(&self, params: &[(String, String)]) -> String {
        let value = |name: &str| params.iter().find(|(of, _)| of == name).map_or("", |(_, value)| value);
        let mut path = String::new();
        for segment in &self.segments {
            path.push('/');
            path.push_str(match segment {
                Segment::Literal(text) => text,
                Segment::One(name) | Segment::Many(name) => value(name),
            });
        }
        path
    }

    pub(super) fn summary(&self) -> &str {
        &self.about
    }

    pub(super) fn statuses(&self) -> &[u16] {
        &self.answers
    }

    pub(super) fn query_names(&self) -> &[String] {
        &self.query
    }

    pub(super) fn param_names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::One(name) | Segment::Many(name) => Some(name.as_str()),
        })
    }

    /// How many segments are literal: what makes one pattern win over another.
    fn literals(&self) -> usize {
        self.segments.iter().filter(|segment| matches!(segment, Segment::Literal(_))).count()
    }

    /// The parameters, if the path fits the pattern.
    fn fit(&self, path: &[&str]) -> Option<Params> {
        let mut params = Vec::new();
        self.walk(path, |name, value| params.push((name.to_owned(), value.join("/")))).then_some(params)
    }

    /// Whether the path fits the pattern; `found` hears each parameter on the way.
    fn walk(&self, path: &[&str], mut found: impl FnMut(&str, &[&str])) -> bool {
        let mut rest = path;
        let mut segments = &self.segments[..];
        while let Some((segment, behind)) = segments.split_first() {
            let take = match segment {
                Segment::Many(_) => match rest.len().checked_sub(behind.len()) {
                    Some(some) => some.max(1),
                    None => return false,
                },
                _ => 1,
            };
            let Some((here, next)) = rest.split_at_checked(take) else { return false };
            match segment {
                Segment::Literal(text) if text == here[0] => {}
                Segment::Literal(_) => return false,
                Segment::One(_) if here[0].is_empty() => return false,
                Segment::One(name) | Segment::Many(name) => found(name, here),
            }
            (segments, rest) = (behind, next);
        }
        rest.is_empty()
    }
}

fn segment(text: &str) -> Segment {
    match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        None => Segment::Literal(text.to_owned()),
        Some(name) => match name.strip_suffix('*') {
            Some(name) => Segment::Many(name.to_owned()),
            None => Segment::One(name.to_owned()),
        },
    }
}

/// All routes, and the guard before them. Built once, then shared by the I/O threads.
pub struct Router {
    routes: Vec<Route>,
    /// The routes of each pattern.
    places: Vec<Vec<usize>>,
    guard: Arc<dyn Guard>,
    body_max: usize,
    sessions: Option<Arc<Sessions>>,
}

impl Default for Router {
    fn default() -> Router {
        Router::new()
    }
}

impl Router {
    /// A router without routes that lets everybody in.
    pub fn new() -> Router {
        Router {
            routes: Vec::new(),
            places: Vec::new(),
            guard: Arc::new(OpenDoor),
            body_max: BODY_MAX,
            sessions: None,
        }
    }

    /// Puts a guard before the routes.
    pub fn guard(&mut self, guard: Arc<dyn Guard>) {
        self.guard = guard;
    }

    /// What stands before the routes.
    pub fn guarded_by(&self) -> &Arc<dyn Guard> {
        &self.guard
    }

    /// Bounds how many live reads one caller has open.
    pub fn sessions(&mut self, sessions: Arc<Sessions>) {
        self.sessions = Some(sessions);
    }

    /// The largest body of a route that names no bound of its own: 1 MiB.
    pub fn body_max(&mut self, bytes: usize) {
        self.body_max = bytes;
    }

    /// Adds a route.
    ///
    /// # Panics
    /// If the method and pattern are there already: routes are written by us.
    pub fn add(&mut self, route: Route) {
        let twice = |other: &&Route| other.method == route.method && other.pattern == route.pattern;
        if let Some(other) = self.routes.iter().find(twice) {
            panic!("the route {} {} is there twice", other.method, other.pattern);
        }
        let at = self.routes.len();
        match self.places.iter_mut().find(|place| self.routes[place[0]].pattern == route.pattern) {
            Some(place) => place.push(at),
            None => self.places.push(vec![at]),
        }
        self.routes.push(route);
    }

    /// The largest body of a route that names no bound of its own.
    pub(super) fn body_bound(&self) -> usize {
        self.body_max
    }

    /// Every route.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The best pattern that fits, and its parameters: first those that know the method, so that creating a
    /// stream under a word that is another route's is told that the name is reserved, not that the method is.
    fn find(&self, path: &str, method: Method) -> Option<(&[usize], Params)> {
        let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let fits = |route: &Route| {
            path.starts_with(&route.pattern[..route.front]) && route.walk(&segments, |_, _| {})
        };
        let fitting = self.places.iter().filter(|place| fits(&self.routes[place[0]]));
        let best = fitting.max_by_key(|place| {
            let route = &self.routes[place[0]];
            let knows = self.at(place, method).is_some();
            (knows, route.literals(), std::cmp::Reverse(route.pattern.len()))
        })?;
        Some((best, self.routes[best[0]].fit(&segments)?))
    }

    /// The route of a place that answers a method.
    fn at(&self, place: &[usize], method: Method) -> Option<&Route> {
        let of = |method| place.iter().map(|at| &self.routes[*at]).find(|route| route.method == method);
        match method {
            Method::Head => of(Method::Head).or_else(|| of(Method::Get)),
            _ => of(method),
        }
    }

    fn allowed(&self, place: &[usize]) -> String {
        let mut methods: Vec<Method> = place.iter().map(|at| self.routes[*at].method).collect();
        if methods.contains(&Method::Get) && !methods.contains(&Method::Head) {
            methods.push(Method::Head);
        }
        methods.push(Method::Options);
        methods.sort();
        let names: Vec<&str> = methods.into_iter().map(Method::as_str).collect();
        names.join(", ")
    }
}

impl Front for Router {
    fn request(&self, head: Head, peer: &Peer, exchange: Exchange) -> Plan {
        let extra = match self.guard.origin(&head, peer) {
            Ok(extra) => extra,
            Err(response) => return refuse(exchange, response),
        };
        let mut reply = Reply::new(exchange, &head, extra);
        let seated = self.prepare(head, peer).and_then(|(route, request)| {
            let sessions = self.sessions.as_ref().filter(|_| route.live);
            let seat = sessions.map(|sessions| sessions.seat(&request.who)).transpose()?.flatten();
            Ok((route, request, seat))
        });
        match seated.map(|(route, request, seat)| {
            let kept = seat.map(|seat| Box::new(seat) as Box<dyn Any + Send>);
            reply.terms(Terms { good_until: request.who.expires, pass: request.who.pass.clone(), kept });
            (route, request)
        }) {
            Ok((route, request)) => match route.takes {
                Takes::Streamed => {
                    route.handler.call(request, reply);
                    Plan::Streamed
                }
                Takes::Whole(max) => {
                    let max = max.unwrap_or(self.body_max);
                    if matches!(request.head.framing, Framing::Length(length) if length > max as u64) {
                        reply.send(too_large(max));
                        return Plan::Answered;
                    }
                    let handler = route.handler.clone();
                    let then = Box::new(move |body| handler.call(Request { body, ..request }, reply));
                    Plan::Whole { max, then }
                }
            },
            Err(response) => {
                reply.send(*response);
                Plan::Answered
            }
        }
    }
}

fn refuse(exchange: Exchange, response: Response) -> Plan {
    exchange.answer(response);
    Plan::Answered
}

/// What a body over its limit is answered with.
pub(crate) fn too_large(max: usize) -> Response {
    Response::problem(413, "too_large", &format!("the body is over its limit of {max} bytes")).closing()
}

impl Router {
    /// Finds the route and checks who asks; an `Err` is the answer.
    fn prepare(&self, head: Head, peer: &Peer) -> Result<(&Route, Request), Box<Response>> {
        let bad = |detail| Box::new(Response::problem(400, "bad_request", detail));
        let path = decode(&head.path).filter(|path| !path.chars().any(char::is_control));
        let path = path.ok_or_else(|| bad("the path is not UTF-8 or holds control characters"))?;
        let query = Query::parse(&head.query).ok_or_else(|| bad("the query is not UTF-8"))?;
        if head.method == Method::Options && path == "*" {
            return Err(Box::new(
                Response::new(204).header("allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            ));
        }
        let Some((place, params)) = self.find(&path, head.method) else {
            return Err(Box::new(Response::problem(404, "not_found", "there is nothing at this path")));
        };
        let Some(route) = self.at(place, head.method) else {
            let allowed = self.allowed(place);
            return Err(Box::new(match head.method {
                Method::Options => self.guard.preflight(&head, &allowed).header("allow", allowed),
                _ => {
                    let detail = format!("this path knows {allowed}");
                    Response::problem(405, "method_not_allowed", &detail).header("allow", allowed)
                }
            }));
        };
        let who = self.guard.admit(&head, &query, peer, route.need)?;
        Ok((route, Request { head, path, params, query, who, peer: *peer, body: Vec::new() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(patterns: &[&str], path: &str) -> Option<(String, Vec<(String, String)>)> {
        let mut router = Router::new();
        patterns.iter().for_each(|pattern| router.add(Route::get(pattern)));
        router
            .find(path, Method::Get)
            .map(|(place, params)| (router.routes[place[0]].pattern.clone(), params))
    }

    const STREAMS: &[&str] = &[
        "/v1/streams",
        "/v1/streams/{name*}",
        "/v1/streams/{name*}/messages",
        "/v1/streams/{name*}/messages/{id}",
        "/v1/streams/{name*}/turns/{turn}/parts",
    ];

    #[test]
    fn a_name_may_hold_slashes_and_the_pattern_with_most_words_wins() {
        for (path, pattern, params) in [
            ("/v1/streams", "/v1/streams", ""),
            ("/v1/streams/a", "/v1/streams/{name*}", "name=a"),
            ("/v1/streams/a/b/c", "/v1/streams/{name*}", "name=a/b/c"),
            ("/v1/streams/a/b/messages", "/v1/streams/{name*}/messages", "name=a/b"),
            ("/v1/streams/a/messages/7", "/v1/streams/{name*}/messages/{id}", "name=a id=7"),
            ("/v1/streams/a/b/turns/3/parts", "/v1/streams/{name*}/turns/{turn}/parts", "name=a/b turn=3"),
            ("/v1/streams//b", "/v1/streams/{name*}", "name=/b"),
            ("/v1/streams/", "/v1/streams/{name*}", "name="),
        ] {
            let (at, found) = found(STREAMS, path).unwrap();
            let found: Vec<String> = found.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!((at.as_str(), found.join(" ").as_str()), (pattern, params), "{path}");
        }
        for path in ["/", "/v1", "/v2/streams", "v1/streams", "/v1/streamsx"] {
            assert_eq!(found(STREAMS, path), None, "{path}");
        }
    }

    #[test]
    fn a_method_that_a_better_pattern_lacks_is_looked_for_in_the_others() {
        let mut router = Router::new();
        router.add(Route::put("/v1/streams/{name*}"));
        router.add(Route::get("/v1/streams/{name*}/events"));
        let found = |method| {
            let (place, _) = router.find("/v1/streams/a/events", method)?;
            Some(router.routes[place[0]].pattern.as_str())
        };
        assert_eq!(found(Method::Get), Some("/v1/streams/{name*}/events"));
        assert_eq!(found(Method::Put), Some("/v1/streams/{name*}"), "whose handler says: a reserved name");
        assert_eq!(found(Method::Post), Some("/v1/streams/{name*}/events"), "which says what it knows");
    }

    #[test]
    fn a_path_says_which_methods_it_knows() {
        let mut router = Router::new();
        router.add(Route::get("/a"));
        router.add(Route::delete("/a"));
        let (place, _) = router.find("/a", Method::Get).unwrap();
        assert_eq!(router.allowed(place), "GET, HEAD, DELETE, OPTIONS");
        assert!(router.at(place, Method::Head).is_some(), "HEAD is what GET answers without the body");
        assert!(router.at(place, Method::Put).is_none());
    }

    #[test]
    #[should_panic(expected = "is there twice")]
    fn a_route_that_is_added_twice_is_a_mistake_of_ours() {
        let mut router = Router::new();
        router.add(Route::get("/a"));
        router.add(Route::get("/a"));
    }
}
