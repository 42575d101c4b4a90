//! `/v1/ws` of the built daemon over real sockets: every operation, what is wrong with one said under its
//! number, and a follow that ends leaving the socket to the others.

use std::collections::VecDeque;
use std::net::TcpStream;

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::asking::{connect, once};
use crate::process::Daemon;

/// A client of `/v1/ws`: what came is kept until it is looked for.
struct Socket {
    socket: WebSocket<TcpStream>,
    next: u64,
    came: VecDeque<Value>,
}

impl Socket {
    fn open(daemon: &Daemon) -> Socket {
        let url = format!("ws://{}/v1/ws", daemon.address());
        let socket = tungstenite::client(url, connect(daemon)).expect("a WebSocket").0;
        Socket { socket, next: 1, came: VecDeque::new() }
    }

    fn read(&mut self) -> Value {
        loop {
            match self.socket.read().expect("the socket stays open") {
                Message::Text(text) => {
                    return serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                }
                Message::Ping(_) => {}
                other => panic!("neither an event nor an answer: {other:?}"),
            }
        }
    }

    fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).expect("sent");
    }

    /// Sends an operation under the next number.
    fn say(&mut self, mut ask: Value) -> u64 {
        let id = self.next;
        self.next += 1;
        ask["id"] = json!(id);
        self.send(&ask.to_string());
        id
    }

    /// The answer to a number; events that come before it are kept.
    fn answer(&mut self, id: u64) -> Value {
        loop {
            let came = self.read();
            match came.get("re") {
                Some(re) if *re == id => return came,
                Some(_) => panic!("{id} was to be answered, and this came: {came}"),
                None => self.came.push_back(came),
            }
        }
    }

    /// Asks and takes what it was answered with.
    fn ask(&mut self, ask: Value) -> Value {
        let id = self.say(ask.clone());
        let answer = self.answer(id);
        assert!(answer["ok"].is_object(), "{ask} was answered with {answer}");
        answer["ok"].clone()
    }

    /// Asks for what is refused; the code.
    fn refused(&mut self, ask: Value) -> String {
        let id = self.say(ask.clone());
        let answer = self.answer(id);
        assert!(answer["error"]["detail"].is_string(), "{ask} was answered with {answer}");
        answer["error"]["code"].as_str().expect("a code").to_owned()
    }

    /// The next event that fits; those before it are dropped.
    fn until(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let came = match self.came.pop_front() {
                Some(came) => came,
                None => self.read(),
            };
            if fits(&came) {
                return came;
            }
        }
    }

    fn until_event(&mut self, kind: &str, stream: &str) -> Value {
        self.until(|event| event["t"] == kind && event["s"] == stream)
    }
}

fn create(daemon: &Daemon, name: &str) {
    assert_eq!(once(daemon, &format!("PUT /v1/streams/{name}"), "", "").0, 201);
}

/// A claim; the turn and its lease.
fn claim(daemon: &Daemon, name: &str) -> (u64, String) {
    let (status, claimed) = once(daemon, &format!("POST /v1/streams/{name}/turns"), "", "");
    assert_eq!(status, 201, "{claimed}");
    let claimed: Value = serde_json::from_str(&claimed).expect("JSON");
    (claimed["turn"].as_u64().expect("a turn"), claimed["lease"].as_str().expect("a lease").to_owned())
}

#[test]
fn front_a_socket_follows_many_streams_and_each_event_names_its_own() {
    let daemon = Daemon::start(&[]);
    let names: Vec<String> = (0..40).map(|n| format!("chat/{n}")).collect();
    names.iter().for_each(|name| create(&daemon, name));
    let mut socket = Socket::open(&daemon);
    for name in &names {
        socket.say(json!({"op": "follow", "s": name}));
    }
    let mut seen = std::collections::BTreeMap::<String, Vec<String>>::new();
    let mut answered = 0;
    while seen.values().filter(|kinds| kinds.last().is_some_and(|kind| kind == "live")).count() < names.len()
    {
        let came = socket.read();
        match came["s"].as_str() {
            Some(name) => {
                assert_eq!(came["o"].as_str().map(str::len), Some(40), "{came}");
                assert!(came["ts"].is_u64(), "{came}");
                seen.entry(name.to_owned()).or_default().push(came["t"].as_str().expect("a type").to_owned());
            }
            None => {
                assert_eq!(came["ok"], json!({}), "{came}");
                answered += 1;
            }
        }
    }
    assert_eq!(answered, names.len());
    assert!(seen.values().all(|kinds| kinds[..] == ["hello", "status", "live"]), "{seen:?}");

    // Appended over the same socket; the answer's token is where the event stands.
    let written = socket.ask(json!({"op": "append", "s": "chat/7", "role": "user", "content": {"n": 1.50}}));
    assert_eq!(written["id"], 1);
    let event = socket.until_event("message", "chat/7");
    assert_eq!((&event["o"], &event["d"]["content"]), (&written["o"], &json!({"n": 1.5})));
    assert_eq!(event["d"]["role"], "user");

    // From a token on: what came before is not told again.
    let mut other = Socket::open(&daemon);
    let second = other.ask(json!({"op": "append", "s": "chat/7", "content": 2}));
    assert_eq!(second["id"], 2);
    other.ask(json!({"op": "follow", "s": "chat/7", "since": written["o"]}));
    assert_eq!(other.until_event("message", "chat/7")["d"]["id"], 2);
    assert_eq!(other.until_event("live", "chat/7")["d"], json!({"resumed": true, "missed": 1}));
}

#[test]
fn front_a_turn_is_fed_and_interrupted_over_a_socket() {
    let daemon = Daemon::start(&[]);
    create(&daemon, "a");
    let mut socket = Socket::open(&daemon);
    socket.ask(json!({"op": "follow", "s": "a"}));
    let mut without = Socket::open(&daemon);
    without.ask(json!({"op": "follow", "s": "a", "parts": false}));
    let (turn, lease) = claim(&daemon, "a");
    socket.until(|event| event["t"] == "status" && event["d"]["status"] == "running");
    let parts = |d: Value| json!({"op": "parts", "s": "a", "turn": turn, "lease": lease, "d": d});
    let accepted = socket.ask(parts(json!([{"delta": "x"}, "y"])));
    assert_eq!(accepted, json!({"accepted": 2, "last": 2, "interrupted": false}));
    for n in 1..=2 {
        let part = socket.until_event("part", "a");
        assert_eq!((&part["turn"], &part["n"]), (&json!(turn), &json!(n)));
    }
    let stranger = json!({"op": "parts", "s": "a", "turn": turn, "lease": "A".repeat(43), "d": [1]});
    assert_eq!(socket.refused(stranger), "turn_lost");
    assert_eq!(socket.ask(json!({"op": "interrupt", "s": "a"})), json!({}));
    socket.until(|event| event["t"] == "status" && event["d"]["status"] == "interrupting");
    assert_eq!(socket.ask(parts(json!([3])))["interrupted"], json!(true), "its producer hears of it");
    // Who wants no parts got none.
    let seen = without.until(|event| {
        event["t"] == "part" || (event["t"] == "status" && event["d"]["status"] == "interrupting")
    });
    assert_eq!(seen["t"], "status");
}

#[test]
fn front_a_follow_that_ends_leaves_the_socket_to_the_others() {
    let daemon = Daemon::start(&[]);
    ["a", "b", "c"].iter().for_each(|name| create(&daemon, name));
    let mut socket = Socket::open(&daemon);
    for name in ["a", "b", "c"] {
        socket.ask(json!({"op": "follow", "s": name}));
        socket.until_event("live", name);
    }
    let (status, _) = once(&daemon, "DELETE /v1/streams/a", "", "");
    assert_eq!(status, 204);
    assert_eq!(socket.until_event("closed", "a")["d"], json!({"reason": "deleted"}));
    let (status, _) = once(&daemon, "POST /v1/stream/b", "Stream-Closed: true\r\n", "");
    assert!((200..300).contains(&status), "{status}");
    assert_eq!(socket.until_event("closed", "b")["d"], json!({"reason": "closed"}));

    assert_eq!(socket.ask(json!({"op": "append", "s": "c", "content": 1}))["id"], 1);
    assert_eq!(socket.until_event("message", "c")["d"]["id"], 1, "the third goes on");
    // What has ended is not followed any more, and may be followed again.
    assert_eq!(socket.refused(json!({"op": "unfollow", "s": "a"})), "not_found");
    create(&daemon, "a");
    socket.ask(json!({"op": "follow", "s": "a"}));
    socket.until_event("live", "a");
    socket.ask(json!({"op": "follow", "s": "b"}));
    assert_eq!(socket.until_event("closed", "b")["d"], json!({"reason": "closed"}), "it is still closed");

    // Behind the answer to an unfollow nothing comes of it.
    socket.ask(json!({"op": "unfollow", "s": "c"}));
    socket.came.clear();
    socket.ask(json!({"op": "append", "s": "c", "content": 2}));
    socket.ask(json!({"op": "append", "s": "a", "content": 3}));
    let next = socket.until(|event| event["t"] == "message");
    assert_eq!((&next["s"], &next["d"]["content"]), (&json!("a"), &json!(3)));
}

#[test]
fn front_agents_are_watched_over_a_socket_until_they_are_not() {
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_METADATA__INTERVAL", "200ms");
    });
    let agents = [uuid::Uuid::from_u128(7), uuid::Uuid::from_u128(8)];
    let report = |agent: uuid::Uuid, value: &str| {
        let body = json!({"metadata": [{"key": "cpu", "value": value}]}).to_string();
        assert_eq!(once(&daemon, &format!("POST /v1/agents/{agent}/metadata"), "", &body).0, 202);
    };
    let shows = |agent: uuid::Uuid, value: &'static str| {
        move |event: &Value| {
            event["t"] == "metadata"
                && event["agent"] == json!(agent)
                && event["d"]["metadata"][0]["value"] == value
        }
    };
    create(&daemon, "a");
    let mut socket = Socket::open(&daemon);
    socket.ask(json!({"op": "follow", "s": "a"}));
    report(agents[0], "1%");
    for agent in agents {
        socket.ask(json!({"op": "watch", "agent": agent}));
        // The first one at once, whether anything was reported or not.
        let first = socket.until(|event| event["t"] == "metadata" && event["agent"] == json!(agent));
        assert_eq!(first["d"]["agent"], json!(agent), "{first}");
        assert!(first["ts"].is_u64() && first["d"]["metadata"].is_array(), "{first}");
    }
    assert_eq!(socket.refused(json!({"op": "watch", "agent": agents[0]})), "exists");
    for (agent, value) in [(agents[0], "2%"), (agents[1], "3%"), (agents[0], "4%")] {
        report(agent, value);
        socket.until(shows(agent, value));
    }
    socket.ask(json!({"op": "unwatch", "agent": agents[0]}));
    assert_eq!(socket.refused(json!({"op": "unwatch", "agent": agents[0]})), "not_found");
    socket.came.clear();
    report(agents[0], "5%");
    report(agents[1], "6%");
    let next = socket.until(|event| event["t"] == "metadata" && !shows(agents[1], "3%")(event));
    assert!(shows(agents[1], "6%")(&next), "of the other nothing comes any more: {next}");
    // Follows and watches share a socket and do not disturb each other.
    socket.ask(json!({"op": "append", "s": "a", "content": 1}));
    socket.until_event("message", "a");
}

#[test]
fn front_what_is_wrong_with_an_operation_is_said_under_its_number() {
    let daemon = Daemon::start(&[]);
    create(&daemon, "a");
    let mut socket = Socket::open(&daemon);
    for (ask, code) in [
        (json!({"op": "dance"}), "unknown_op"),
        (json!({"s": "a"}), "unknown_op"),
        (json!({"op": "follow", "s": "a", "sinse": "now"}), "unknown_field"),
        (json!({"op": "follow"}), "bad_field"),
        (json!({"op": "follow", "s": "a", "since": "xyz"}), "bad_token"),
        (json!({"op": "follow", "s": "nobody"}), "not_found"),
        (json!({"op": "follow", "s": uuid::Uuid::from_u128(9)}), "not_found"),
        (json!({"op": "append", "s": "nobody", "content": 1}), "not_found"),
        (json!({"op": "append", "s": "a"}), "bad_field"),
        (json!({"op": "append", "s": "a", "content": "x".repeat(1 << 20)}), "too_large"),
        (json!({"op": "interrupt", "s": "nobody"}), "not_found"),
        (json!({"op": "unfollow", "s": "a"}), "not_found"),
        (json!({"op": "watch", "agent": "seven"}), "bad_field"),
        (json!({"op": "unwatch", "agent": uuid::Uuid::from_u128(9)}), "not_found"),
    ] {
        assert_eq!(socket.refused(ask.clone()), code, "{ask}");
    }
    for (text, re, code) in [
        (r#"{"id":"#, Value::Null, "bad_json"),
        ("[1]", Value::Null, "bad_json"),
        (r#"{"id":"a name","op":"follow"}"#, json!("a name"), "bad_field"),
    ] {
        socket.send(text);
        let answer = socket.read();
        assert_eq!((&answer["re"], &answer["error"]["code"]), (&re, &json!(code)), "{text}: {answer}");
    }
    // One stream twice, under its name and its id.
    socket.ask(json!({"op": "follow", "s": "a"}));
    assert_eq!(socket.refused(json!({"op": "follow", "s": "a"})), "exists");
    let (_, state) = once(&daemon, "GET /v1/streams/a/state", "", "");
    let state: Value = serde_json::from_str(&state).expect("JSON");
    assert_eq!(socket.refused(json!({"op": "follow", "s": state["id"]})), "exists");
    // And the socket is as good as before.
    socket.ask(json!({"op": "append", "s": "a", "content": 1}));
    socket.until_event("message", "a");
}

#[test]
fn front_a_socket_goes_on_with_the_same_token_and_not_with_another() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let made = crate::process::run(&["token", "new", "ops", "--role", "admin"]);
    let token = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    std::fs::write(&file, made.stderr).expect("written");
    let daemon = Daemon::start(&["--token-file", file.to_str().expect("UTF-8")]);
    let bearer = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(once(&daemon, "PUT /v1/streams/a", &bearer, "").0, 201);
    let request = {
        use tungstenite::client::IntoClientRequest;
        let url = format!("ws://{}/v1/ws", daemon.address());
        let mut request = url.into_client_request().expect("a request");
        let value = format!("Bearer {token}").parse().expect("a header");
        request.headers_mut().insert("authorization", value);
        request
    };
    let socket = tungstenite::client(request, connect(&daemon)).expect("a WebSocket").0;
    let mut socket = Socket { socket, next: 1, came: VecDeque::new() };
    socket.ask(json!({"op": "follow", "s": "a"}));
    socket.until_event("live", "a");
    assert_eq!(socket.refused(json!({"op": "auth", "token": "x".repeat(40)})), "unauthorized");
    assert_eq!(socket.ask(json!({"op": "auth", "token": token})), json!({"ended": 0}));
    socket.ask(json!({"op": "append", "s": "a", "content": 1}));
    socket.until_event("message", "a");
}
