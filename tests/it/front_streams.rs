//! Streams over HTTP, as a script would use them: each shape that is relied on from outside.

use std::io::{BufRead, BufReader};

use serde_json::{Value, json};

use crate::process::{Daemon, PATIENCE};

/// An answer: its status, its headers, its body as JSON (null where it is none).
struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header is text"))
    }

    fn refusal(&self) -> (u16, &str) {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.body);
        for field in ["type", "title", "status", "code", "detail"] {
            assert!(!self.body[field].is_null(), "a refusal has {field}: {}", self.body);
        }
        (self.status, self.body["code"].as_str().expect("a code"))
    }
}

fn call(daemon: &Daemon, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut answer = crate::asking::send(&daemon.url, method, path, headers, body);
    let text = answer.body_mut().read_to_string().expect("text");
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    Answer { status: answer.status().as_u16(), headers: answer.headers().clone(), body }
}

fn post(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    call(daemon, "POST", path, &[("content-type", "application/json")], &body.to_string())
}

/// The events of a follow up to and with the first of a type, as `(type, data)`; `id:` and the envelope
/// are checked on the way.
fn follow(daemon: &Daemon, path: &str, last: &str) -> Vec<(String, Value)> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
    let answer = agent.get(format!("{}{path}", daemon.url)).call().expect("a follow");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    assert_eq!(answer.headers()["x-accel-buffering"], "no");
    let mut lines = BufReader::new(answer.into_body().into_reader()).lines().map(|line| line.expect("text"));
    let mut events = Vec::new();
    let mut field = |name: &str| -> String {
        lines
            .by_ref()
            .find_map(|line| line.strip_prefix(name).map(str::to_owned))
            .expect("the follow goes on")
    };
    loop {
        let kind = field("event: ");
        let id = field("id: ");
        let data: Value = serde_json::from_str(&field("data: ")).expect("JSON");
        assert_eq!(data["t"], json!(kind), "{data}");
        assert_eq!(data["o"], json!(id), "{data}");
        assert_eq!(id.len(), 40, "{id}");
        assert!(data["ts"].is_u64() && data["s"].is_string(), "{data}");
        assert_eq!((kind == "part"), data.get("n").is_some(), "{data}");
        events.push((kind, data));
        if events.last().is_some_and(|(kind, _)| kind == last) {
            return events;
        }
    }
}

fn kinds(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(kind, _)| kind.as_str()).collect()
}

const CHAT: &str = "/v1/streams/chat/7";

#[test]
fn front_streams_are_made_once_and_listed_by_label_and_status() {
    let daemon = Daemon::start(&[]);
    let made = call(&daemon, "PUT", CHAT, &[("content-type", "application/json")], "");
    assert_eq!((made.status, made.header("location")), (201, CHAT));
    assert_eq!(made.header("stream-next-offset").len(), 40);
    assert_eq!(call(&daemon, "PUT", CHAT, &[], "").status, 200, "the same again");
    let other = call(&daemon, "PUT", CHAT, &[], r#"{"labels":{"team":"a"}}"#);
    assert_eq!(other.refusal(), (409, "stream_exists"));
    let body =
        json!({"labels": {"team": "a"}, "ttl_s": 600, "on_lost": "failed", "content_type": "text/plain"});
    assert_eq!(call(&daemon, "PUT", "/v1/streams/jobs/1", &[], &body.to_string()).status, 201);

    let list = |query: &str| {
        let listed = call(&daemon, "GET", &format!("/v1/streams{query}"), &[], "").body;
        let names =
            listed["streams"].as_array().expect("streams").iter().map(|s| s["name"].clone()).collect();
        (Value::Array(names), listed["next"].clone())
    };
    assert_eq!(list("?label.team=a"), (json!(["jobs/1"]), Value::Null));
    assert_eq!(list("?status=idle").0.as_array().map(Vec::len), Some(2));
    assert_eq!(list("?status=running").0, json!([]));
    let (first, next) = list("?limit=1");
    let (second, end) = list(&format!("?limit=1&after={}", next.as_str().expect("there is more")));
    assert_ne!(first, second);
    assert!(end.is_null() || list(&format!("?after={}", end.as_str().unwrap())).0 == json!([]));
    let unknown = call(&daemon, "GET", "/v1/streams?stat=idle", &[], "");
    assert_eq!(unknown.refusal(), (400, "unknown_parameter"));

    assert_eq!(call(&daemon, "DELETE", CHAT, &[], "").status, 204);
    assert_eq!(call(&daemon, "DELETE", CHAT, &[], "").refusal(), (404, "not_found"));
}

#[test]
fn front_names_that_are_not_for_streams_are_refused() {
    let daemon = Daemon::start(&[]);
    for name in [
        "chat/events",
        "chat/state",
        "chat/messages",
        "messages/1",
        "a/turns/1",
        "queue",
        "a/interrupt/b",
        "live",
        "a/snapshot",
        "a//b",
        "a/",
        "./a",
        "a/../b",
        "chat%2Fevents",
        "chat%2F..%2Fa",
        "0190f5fe-7c00-7000-8000-000000000001",
        "sp%20ace",
        "umlaut%C3%A4",
    ] {
        let refused = call_raw(&daemon, "PUT", &format!("/v1/streams/{name}"));
        assert_eq!(refused, (400, "reserved_name".to_owned()), "{name}");
    }
    let long = "a".repeat(201);
    assert_eq!(call_raw(&daemon, "PUT", &format!("/v1/streams/{long}")), (400, "reserved_name".to_owned()));
    assert_eq!(call_raw(&daemon, "PUT", &format!("/v1/streams/{}", &long[1..])).0, 201);
    assert_eq!(call_raw(&daemon, "PUT", "/v1/streams/A-Z.z_~9/b").0, 201);
}

/// A request whose path is sent as it stands.
fn call_raw(daemon: &Daemon, method: &str, path: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(daemon.address()).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        daemon.address()
    );
    socket.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let code = serde_json::from_str::<Value>(body).map(|body| body["code"].clone()).unwrap_or_default();
    (status, code.as_str().unwrap_or_default().to_owned())
}

#[test]
fn front_messages_are_appended_edited_removed_and_a_typo_does_not_vanish() {
    let daemon = Daemon::start(&[]);
    call(&daemon, "PUT", CHAT, &[], "");
    let messages = format!("{CHAT}/messages");
    let first = post(&daemon, &messages, &json!({"role": "user", "content": {"any": ["json"]}}));
    assert_eq!((first.status, &first.body["id"]), (201, &json!(1)));
    assert_eq!(first.body["o"].as_str().map(str::len), Some(40));
    for (body, code) in [
        (r#"{"role":"#, "bad_json"),
        (r#"{"role":"user","content":1,"contnet":2}"#, "unknown_field"),
        (r#"{"role":7,"content":1}"#, "bad_field"),
    ] {
        let refused = call(&daemon, "POST", &messages, &[], body);
        assert_eq!(refused.refusal(), (400, code), "{body}");
    }
    let missing = post(&daemon, "/v1/streams/nobody/messages", &json!({"role": "user", "content": 1}));
    assert_eq!(missing.refusal(), (404, "not_found"));
    let large = json!({"role": "user", "content": "x".repeat(1 << 20)});
    assert_eq!(post(&daemon, &messages, &large).refusal().0, 413);

    let same = [("idempotency-key", "k-1")];
    let once = call(&daemon, "POST", &messages, &same, r#"{"role":"user","content":2}"#);
    let again = call(&daemon, "POST", &messages, &same, r#"{"role":"user","content":2}"#);
    assert_eq!((once.status, &once.body), (201, &again.body), "the same key is one message");

    let edited = call(&daemon, "PATCH", &format!("{messages}/1"), &[], r#"{"content":"new"}"#);
    assert_eq!((edited.status, &edited.body["id"]), (200, &json!(1)));
    assert_eq!(call(&daemon, "DELETE", &format!("{messages}/2"), &[], "").status, 204);
    assert_eq!(call(&daemon, "DELETE", &format!("{messages}/9"), &[], "").refusal().0, 404);

    // Who had read what was edited is told to clear it.
    let token = once.body["o"].as_str().expect("a token");
    let events = follow(&daemon, &format!("{CHAT}/events?since={token}"), "live");
    assert_eq!(kinds(&events), ["hello", "status", "reset", "message", "live"]);
    assert_eq!(events[2].1["d"], json!({"reason": "history"}));
    assert_eq!(events[3].1["d"], json!({"id": 1, "role": "user", "content": "new"}));
}

#[test]
fn front_a_turn_is_claimed_fed_committed_and_finished_by_its_holder_alone() {
    let daemon = Daemon::start(&[]);
    call(&daemon, "PUT", CHAT, &[], "");
    let queued = post(&daemon, &format!("{CHAT}/queue"), &json!({"role": "user", "content": "q"}));
    assert_eq!((queued.status, &queued.body), (201, &json!({"id": 1})));
    let claim = post(&daemon, &format!("{CHAT}/turns"), &json!({}));
    assert_eq!((claim.status, &claim.body["turn"]), (201, &json!(1)));
    assert_eq!(claim.body["input"], json!({"id": 1, "role": "user", "content": "q"}), "the queue's head");
    let lease = claim.body["lease"].as_str().expect("a lease").to_owned();
    let second = post(&daemon, &format!("{CHAT}/turns"), &json!({}));
    assert_eq!(second.refusal(), (409, "turn_running"));
    assert!(second.body["worker"].is_string(), "{}", second.body);
    assert_eq!(post(&daemon, "/v1/turns/next", &json!({"labels": {"a": "b"}})).status, 204);

    let turn = format!("{CHAT}/turns/1");
    let mine = [("towpath-lease", lease.as_str())];
    let parts =
        |headers: &[(&str, &str)], body: &str| call(&daemon, "POST", &format!("{turn}/parts"), headers, body);
    let sent = parts(&mine, "{\"a\":1}\n\n{\"a\":2}\n");
    assert_eq!(
        (sent.status, &sent.body),
        (200, &json!({"accepted": 2, "last": 2})),
        "a blank line is no part"
    );
    let numbered = [mine[0], ("towpath-part", "2")];
    assert_eq!(parts(&numbered, "{\"a\":2}\n{\"a\":3}\n").body, json!({"accepted": 1, "last": 3}));
    let gap = parts(&[mine[0], ("towpath-part", "9")], "1\n");
    assert_eq!((gap.refusal(), &gap.body["last"]), ((409, "part_gap"), &json!(3)));
    for stranger in ["wrong", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let fenced = parts(&[("towpath-lease", stranger)], "1\n");
        assert_eq!(fenced.refusal(), (409, "turn_lost"), "{stranger}");
    }
    assert_eq!(parts(&[], "1\n").refusal(), (400, "no_lease"));

    let events = follow(&daemon, &format!("{CHAT}/events"), "live");
    assert_eq!(kinds(&events), ["hello", "status", "part", "part", "part", "live"]);
    assert_eq!(
        (&events[2].1["turn"], &events[2].1["n"], &events[2].1["d"]),
        (&json!(1), &json!(1), &json!({"a": 1}))
    );
    let bare = follow(&daemon, &format!("{CHAT}/events?parts=0"), "live");
    assert_eq!(kinds(&bare), ["hello", "status", "live"]);
    let state = call(&daemon, "GET", &format!("{CHAT}/state"), &[], "").body;
    assert_eq!(
        (&state["status"], &state["turn"]["last"], &state["queue"]),
        (&json!("running"), &json!(3), &json!([]))
    );
    assert!(state["turn"]["begun_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{state}");
    let alive = call(&daemon, "POST", &format!("{turn}/keepalive"), &mine, "");
    assert_eq!((alive.status, &alive.body["interrupted"]), (200, &json!(false)));

    let answer = r#"{"role":"assistant","content":"done"}"#;
    let commit = call(&daemon, "POST", &format!("{turn}/commit"), &mine, answer);
    assert_eq!((commit.status, &commit.body["id"]), (201, &json!(1)));
    let asked = post(&daemon, &format!("{CHAT}/interrupt"), &json!({"reason": "enough"}));
    assert_eq!(asked.status, 202);
    let stopped = parts(&mine, "{\"a\":4}\n");
    assert_eq!((stopped.status, &stopped.body["interrupted"]), (200, &json!(true)));
    let bad = call(&daemon, "POST", &format!("{turn}/finish"), &mine, r#"{"status":"well"}"#);
    assert_eq!(bad.refusal().0, 400);
    let finish =
        call(&daemon, "POST", &format!("{turn}/finish"), &mine, r#"{"status":"failed","error":"boo"}"#);
    assert_eq!(finish.status, 200);
    let late = call(&daemon, "POST", &format!("{turn}/finish"), &mine, r#"{"status":"done"}"#);
    assert_eq!(late.refusal(), (409, "turn_lost"));

    let events = follow(&daemon, &format!("{CHAT}/events"), "live");
    assert_eq!(kinds(&events), ["hello", "status", "message", "commit", "error", "live"]);
    assert_eq!(events[1].1["d"]["status"], "failed");
    assert_eq!(
        events[2].1["d"],
        json!({"id": 1, "role": "assistant", "content": "done", "turn": 1, "folded_to": 3})
    );
    assert_eq!(events[3].1["d"], json!({"turn": 1, "id": 1}));
    assert_eq!(post(&daemon, &format!("{CHAT}/interrupt"), &json!({})).status, 202, "idempotent");
}

#[test]
fn front_a_follow_with_a_token_that_is_none_is_told() {
    let daemon = Daemon::start(&[]);
    call(&daemon, "PUT", CHAT, &[], "");
    let refused = call(&daemon, "GET", &format!("{CHAT}/events?since=xyz"), &[], "");
    assert_eq!(refused.refusal(), (400, "bad_token"));
    let nobody = call(&daemon, "GET", "/v1/streams/nobody/events", &[], "");
    assert_eq!(nobody.refusal(), (404, "not_found"));
    // A token of another stream is recognised by its tag.
    call(&daemon, "PUT", "/v1/streams/chat/8", &[], "");
    let other = post(&daemon, "/v1/streams/chat/8/messages", &json!({"role": "user", "content": 1}));
    let token = other.body["o"].as_str().expect("a token");
    let events = follow(&daemon, &format!("{CHAT}/events?since={token}"), "live");
    assert_eq!(events[2].1["d"], json!({"reason": "epoch"}));
    assert_eq!(events.last().expect("live").1["d"], json!({"resumed": false, "missed": 0}));
}
