//! The River services against the HTTP API: each route has its procedure, which does, allows and refuses the same.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};

use serde_json::{Value, json};
use towpath::daemon::{Daemon, river};
use towpath::wire::Running;

use super::daemon::{client, daemon, wire};
use super::*;

/// A daemon, a session with it, and its HTTP door.
struct Both {
    rt: Rt,
    client: Client,
    url: String,
    _wire: Running,
    _daemon: Daemon,
    _folder: tempfile::TempDir,
}

impl Both {
    fn new() -> Both {
        let rt = Rt::real();
        let folder = tempfile::tempdir().unwrap();
        let (daemon, wire) = (daemon(&rt, folder.path()), wire(&rt));
        let client = client(&rt, &wire, &daemon, Options::default());
        let url = format!("http://{}", daemon.addresses()[0]);
        Both { rt, client, url, _wire: wire, _daemon: daemon, _folder: folder }
    }

    #[track_caller]
    fn ask(&self, service: &str, procedure: &str, init: Value) -> Value {
        let answer = self.client.rpc(service, procedure, &init);
        answer.unwrap_or_else(|why| panic!("{service}.{procedure} {init}: {why}"))
    }

    #[track_caller]
    fn streams(&self, procedure: &str, init: Value) -> Value {
        self.ask("streams", procedure, init)
    }

    #[track_caller]
    fn refused(&self, service: &str, procedure: &str, init: Value) -> towpath::service::Failure {
        let answer = self.client.rpc::<_, Value>(service, procedure, &init);
        answer.expect_err(&format!("{service}.{procedure} {init}"))
    }

    fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let mut answer = crate::asking::send(&self.url, method, path, headers, body);
        let text = answer.body_mut().read_to_string().expect("text");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (answer.status().as_u16(), body)
    }

    /// The events of a follow over HTTP.
    fn follow(&self, path: &str) -> impl Iterator<Item = Value> + use<> {
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
        let answer = agent.get(format!("{}{path}", self.url)).call().expect("a follow");
        let lines = BufReader::new(answer.into_body().into_reader()).lines().map(|line| line.expect("text"));
        lines.filter_map(|line| Some(serde_json::from_str(line.strip_prefix("data: ")?).expect("JSON")))
    }

    /// A claimed turn: the fields that its procedures take.
    fn claim(&self, stream: &str) -> Value {
        let turn = self.streams("claim", json!({"stream": stream}));
        json!({"stream": stream, "turn": turn["turn"], "lease": turn["lease"]})
    }

    fn upload(&self, init: &Value) -> towpath::client::session::Upload<Value, Value> {
        self.client.upload("streams", "parts", init).expect("a client")
    }

    fn last(&self, stream: &str) -> u64 {
        self.streams("state", json!({"stream": stream}))["turn"]["last"].as_u64().unwrap_or(0)
    }
}

/// The same fields and these.
fn with(init: &Value, more: Value) -> Value {
    let (Value::Object(mut all), Value::Object(more)) = (init.clone(), more) else { panic!("two objects") };
    all.extend(more);
    Value::Object(all)
}

/// Which procedure does what a route does, or why there is none.
const ROUTES: &[(&str, Result<&str, &str>)] = &[
    ("put /v1/streams/{name}", Ok("streams.create")),
    ("delete /v1/streams/{name}", Ok("streams.delete")),
    ("get /v1/streams", Ok("streams.list")),
    ("get /v1/streams/{name}/state", Ok("streams.state")),
    ("get /v1/streams/{name}/events", Ok("streams.follow")),
    ("get /v1/streams/{name}/live", Err(AI_SDK)),
    ("post /v1/streams/{name}/messages", Ok("streams.append")),
    ("patch /v1/streams/{name}/messages/{id}", Ok("streams.edit")),
    ("delete /v1/streams/{name}/messages/{id}", Ok("streams.remove")),
    ("post /v1/streams/{name}/queue", Ok("streams.queue")),
    ("delete /v1/streams/{name}/queue/{id}", Ok("streams.unqueue")),
    ("post /v1/streams/{name}/turns", Ok("streams.claim")),
    ("post /v1/turns/next", Ok("streams.next")),
    ("post /v1/streams/{name}/turns/{turn}/parts", Ok("streams.parts")),
    ("get /v1/streams/{name}/turns/{turn}", Ok("streams.turn")),
    ("post /v1/streams/{name}/turns/{turn}/commit", Ok("streams.commit")),
    ("post /v1/streams/{name}/turns/{turn}/finish", Ok("streams.finish")),
    ("post /v1/streams/{name}/turns/{turn}/abort", Ok("streams.abort")),
    ("post /v1/streams/{name}/turns/{turn}/keepalive", Ok("streams.keepalive")),
    ("post /v1/streams/{name}/interrupt", Ok("streams.interrupt")),
    ("put /v1/stream/{name}", Err(DURABLE)),
    ("post /v1/stream/{name}", Err(DURABLE)),
    ("get /v1/stream/{name}", Err(DURABLE)),
    ("head /v1/stream/{name}", Err(DURABLE)),
    ("delete /v1/stream/{name}", Err(DURABLE)),
    ("post /v1/agents/{id}/metadata", Ok("agents.report")),
    ("get /v1/agents/{id}/metadata", Ok("agents.read")),
    ("get /v1/agents/{id}/metadata/watch", Ok("agents.watch")),
    ("get /v1/agents/watch", Ok("agents.watch_all")),
    ("put /v1/agents/{id}", Ok("agents.name")),
    ("get /v1/agents", Ok("agents.list")),
    ("put /v1/agents/{id}/keys", Ok("agents.declare")),
    ("post /v1/connections", Ok("connections.record_all")),
    ("get /v1/connections", Ok("connections.list")),
    ("get /v1/connections/export", Ok("connections.export")),
    ("post /v1/admin/connections/prune", Ok("connections.prune")),
    ("get /v1/spool", Ok("connections.spool")),
    ("get /v1/pipes", Ok("pipes.list")),
    ("get /v1/pipes/{id}", Ok("pipes.read")),
    ("delete /v1/pipes/{id}", Ok("pipes.kill")),
    ("post /v1/pipes/{id}/cut", Ok("pipes.cut")),
    ("get /v1/replicas", Ok("admin.replicas")),
    ("get /v1/admin/live", Ok("admin.live")),
    ("post /v1/admin/reload", Ok("admin.reload")),
    ("get /v1/whoami", Ok("admin.whoami")),
    ("post /v1/ticket", Ok("admin.ticket")),
    ("get /healthz", Ok("admin.health")),
    ("get /readyz", Ok("admin.ready")),
    ("get /metrics", Ok("admin.metrics")),
    ("get /v1/ws", Err("what it carries are calls of a session: follow, watch, append, parts, interrupt")),
    ("get /v1/pipe", Err("a pipe's bytes have a link of their own, so that no session holds them up")),
    ("get /river", Err("it is the door of the sessions themselves")),
    ("get /", Err(PAGE)),
    ("get /dashboard.css", Err(PAGE)),
    ("get /dashboard.js", Err(PAGE)),
    ("get /openapi.json", Err("it describes HTTP; `towpath river schema` describes the services")),
];
const AI_SDK: &str = "it speaks as the AI SDK expects over HTTP; `streams.turn` has the same parts";
const DURABLE: &str = "the Durable Streams protocol is one of HTTP; its streams are those of `streams`";
const PAGE: &str = "the dashboard is a page";

/// Procedures that mirror no route.
const OWN: &[&str] = &[
    "admin.ping",
    // As one of `record_all`, on disk before it answers.
    "connections.record",
    // As `towpath connections tail`, which asks again and again.
    "connections.tail",
];

/// Query parameters that no procedure needs.
const HTTP_ONLY: &[(&str, &str)] = &[("connections.list", "format"), ("connections.export", "format")];

#[test]
fn every_route_has_a_procedure_with_all_its_parameters_or_a_reason_why_not() {
    let both = Both::new();
    let (_, described) = both.http("GET", "/openapi.json", &[], "");
    let schema = river::described().json_schema();
    let mut routes = BTreeSet::new();
    let mut procedures: BTreeSet<String> = OWN.iter().map(|own| (*own).to_owned()).collect();
    for (path, methods) in described["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let route = format!("{method} {path}");
            let known = ROUTES.iter().find(|(known, _)| *known == route);
            let (_, answer) = known.unwrap_or_else(|| {
                panic!("{route} has neither a River procedure nor a reason: add it to ROUTES, or here")
            });
            routes.insert(route.clone());
            let Ok(name) = answer else { continue };
            procedures.insert((*name).to_owned());
            let (service, procedure) = name.split_once('.').expect("a service and a procedure");
            let init = &schema["services"][service]["procedures"][procedure]["init"];
            assert!(init.is_object(), "{name}, which stands for {route}, is not served");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let parameter_name = parameter["name"].as_str().expect("a name");
                if parameter["in"] != "query" || HTTP_ONLY.contains(&(*name, parameter_name)) {
                    continue;
                }
                let field = if parameter_name == "label." { "labels" } else { parameter_name };
                assert!(init["properties"][field].is_object(), "{name} takes no {field}, as {route} does");
            }
        }
    }
    for (route, _) in ROUTES {
        assert!(routes.contains(*route), "{route} stands in ROUTES and is no route");
    }
    let served = procedures_of(&schema);
    assert_eq!(served, procedures, "each procedure stands for a route, or is in OWN");
    let types = river::described().typescript();
    for name in served {
        let (_, procedure) = name.split_once('.').expect("a service and a procedure");
        assert!(types.contains(&format!("    {procedure}: {{ type: ")), "{name} has a TypeScript type");
    }
}

/// `service.procedure` of everything that is served.
pub(super) fn procedures_of(schema: &Value) -> BTreeSet<String> {
    let services = schema["services"].as_object().expect("services");
    let of = |(service, described): (&String, &Value)| {
        let procedures = described["procedures"].as_object().expect("procedures").clone();
        let service = service.clone();
        procedures.into_iter().map(move |(procedure, _)| format!("{service}.{procedure}"))
    };
    services.iter().flat_map(of).collect()
}

#[test]
fn a_turn_produced_over_a_session_is_seen_by_a_follower_over_http() {
    let both = Both::new();
    both.streams("create", json!({"stream": "chat/7", "labels": {"team": "red"}}));
    let mut seen = both.follow("/v1/streams/chat/7/events");
    let mut until = |t: &str| -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            events.push(seen.next().expect("the follow goes on"));
            if events.last().is_some_and(|event| event["t"] == t) {
                return events;
            }
        }
    };
    until("live");
    both.streams("queue", json!({"stream": "chat/7", "role": "user", "content": "say it"}));
    let next = both.streams("next", json!({"labels": {"team": "blue"}}));
    assert_eq!(next, Value::Null, "nobody of that team waits");
    let next = both.streams("next", json!({"labels": {"team": "red"}}));
    assert_eq!((&next["stream"], &next["turn"]), (&json!("chat/7"), &json!(1)));
    assert_eq!((&next["input"]["role"], &next["input"]["content"]), (&json!("user"), &json!("say it")));
    let turn = json!({"stream": "chat/7", "turn": 1, "lease": next["lease"]});

    let upload = both.upload(&turn);
    upload.write(&json!({"parts": [{"z": 1, "a": [2]}, "two"]})).unwrap();
    upload.write(&json!({"parts": []})).unwrap();
    upload.write(&json!({"parts": [3]})).unwrap();
    assert_eq!(upload.finish(), Ok(json!({"accepted": 3, "last": 3})));
    let alive = both.streams("keepalive", turn.clone());
    assert!(alive["lease_until"].is_string() && alive["interrupted"] == false, "{alive}");
    let message = json!({"role": "assistant", "content": {"b": 1, "a": 2}, "key": "once"});
    let committed = both.streams("commit", with(&turn, message.clone()));
    assert_eq!(both.streams("commit", with(&turn, message)), committed, "the same key, the same message");
    both.streams("finish", with(&turn, json!({"status": "done"})));

    let events = until("commit");
    let of = |t: &str| -> Vec<&Value> { events.iter().filter(|event| event["t"] == t).collect() };
    let parts: Vec<_> = of("part").iter().map(|part| (part["n"].clone(), part["d"].clone())).collect();
    let expected = [json!({"z": 1, "a": [2]}), json!("two"), json!(3)];
    assert_eq!(parts, (1..=3).map(|n| json!(n)).zip(expected).collect::<Vec<_>>());
    let messages = of("message");
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!(messages[0]["d"]["content"], json!({"b": 1, "a": 2}));
    assert_eq!((&messages[0]["d"]["turn"], &messages[0]["d"]["id"]), (&json!(1), &committed["id"]));
    assert_eq!(until("status").last().expect("one")["d"]["status"], "done");
}

#[test]
fn a_session_cut_in_the_middle_of_an_upload_loses_no_part_and_doubles_none() {
    const REQUESTS: u64 = 600;
    let both = Both::new();
    both.streams("create", json!({"stream": "chat/7"}));
    let turn = both.claim("chat/7");
    let session = both.client.session();
    let upload = both.upload(&turn);
    for n in 0..REQUESTS {
        upload.write(&json!({"parts": [2 * n + 1, 2 * n + 2]})).unwrap();
        if n % 50 == 25 {
            both.client.cut();
        }
    }
    both.client.cut();
    assert_eq!(upload.finish(), Ok(json!({"accepted": 2 * REQUESTS, "last": 2 * REQUESTS})));
    assert_eq!(both.client.session(), session, "cut, and never begun anew");
    both.streams("finish", with(&turn, json!({"status": "done"})));

    let expected: Vec<Value> = (1..=2 * REQUESTS).map(Value::from).collect();
    let read = both.client.subscribe::<_, Value>("streams", "turn", &json!({"stream": "chat/7", "turn": 1}));
    let parts: Vec<Value> = read.unwrap().map(|part| part.expect("a part")).collect();
    assert_eq!(parts, expected, "over a session");
    let (_, lines) = both.http("GET", "/v1/streams/chat/7/turns/1", &[], "");
    let lines = lines.as_str().expect("lines").lines().map(|line| serde_json::from_str(line).expect("JSON"));
    assert_eq!(lines.collect::<Vec<Value>>(), expected, "over HTTP");
}

#[test]
fn parts_that_are_numbered_may_be_sent_again_and_a_gap_is_told() {
    let both = Both::new();
    both.streams("create", json!({"stream": "a"}));
    let turn = both.claim("a");
    let send = |first: Option<u64>, parts: Value| {
        let first = first.map_or(json!({}), |first| json!({ "first": first }));
        let upload = both.upload(&with(&turn, first));
        upload.write(&json!({"parts": parts})).unwrap();
        upload.finish()
    };
    assert_eq!(send(Some(1), json!([1, 2, 3])), Ok(json!({"accepted": 3, "last": 3})));
    assert_eq!(send(Some(2), json!([2, 3, 4])), Ok(json!({"accepted": 1, "last": 4})));
    let gap = send(Some(9), json!([9])).unwrap_err();
    let lease = turn["lease"].as_str().unwrap();
    let headers = [("towpath-lease", lease), ("towpath-part", "9")];
    let (status, over_http) = both.http("POST", "/v1/streams/a/turns/1/parts", &headers, "9\n");
    assert_eq!((status, &over_http["code"]), (409, &json!(gap.code)), "{over_http}");
    assert_eq!(gap.extras.as_ref().and_then(|extras| extras.get("last")?.as_u64()), Some(4), "{gap:?}");
    assert_eq!(gap.code, "part_gap");
    assert_eq!(send(Some(0), json!([1])).unwrap_err().code, "bad_request");
    assert_eq!(send(None, json!(["x".repeat(2 << 20)])).unwrap_err().code, "turn_full");
    assert_eq!(send(None, json!(1)).unwrap_err().code, "INVALID_REQUEST", "parts are a list");
    assert_eq!(both.last("a"), 4);
}

#[test]
fn an_open_upload_is_answered_at_once_when_its_turn_is_asked_to_stop() {
    let both = Both::new();
    both.streams("create", json!({"stream": "a"}));
    let turn = both.claim("a");
    let mut upload = both.upload(&turn);
    upload.write(&json!({"parts": ["one"]})).unwrap();
    until(&both.rt, "the part is in", || both.last("a") == 1);
    assert_eq!(both.http("POST", "/v1/streams/a/interrupt", &[], "{}").0, 202);
    let answer = upload.answer_by(patience(&both.rt)).expect("it is answered while it is open");
    assert_eq!(answer, Ok(json!({"accepted": 1, "last": 1, "interrupted": true})));
    // What is still written is not added, and harms nothing.
    upload.write(&json!({"parts": ["two"]})).unwrap();
    drop(upload);
    assert_eq!(both.streams("keepalive", turn.clone())["interrupted"], true);
    both.streams("abort", turn);
    let state = both.streams("state", json!({"stream": "a"}));
    assert_eq!((&state["status"], &state["turn"]), (&json!("idle"), &Value::Null));
}

#[test]
fn what_an_older_claim_writes_is_refused_as_over_http() {
    let both = Both::new();
    both.streams("create", json!({"stream": "a"}));
    let first = both.claim("a");
    let running = both.refused("streams", "claim", json!({"stream": "a"}));
    let (status, over_http) = both.http("POST", "/v1/streams/a/turns", &[], "");
    assert_eq!((status, &over_http["code"]), (409, &json!(running.code)));
    let worker = running.extras.as_ref().and_then(|extras| extras.get("worker")?.as_str());
    assert_eq!(worker, over_http["worker"].as_str(), "who runs it is told");
    both.streams("abort", first.clone());
    let second = both.claim("a");
    assert_eq!(second["turn"], 2);

    let stolen = with(&second, json!({"lease": first["lease"]}));
    for turn in [&first, &stolen] {
        let path = format!("/v1/streams/a/turns/{}", turn["turn"]);
        let headers = [("towpath-lease", turn["lease"].as_str().unwrap())];
        for (procedure, more) in [
            ("commit", json!({"content": 1})),
            ("finish", json!({"status": "done"})),
            ("abort", json!({})),
            ("keepalive", json!({})),
        ] {
            let refused = both.refused("streams", procedure, with(turn, more.clone()));
            let (_, over_http) =
                both.http("POST", &format!("{path}/{procedure}"), &headers, &more.to_string());
            assert_eq!(refused.code, "turn_lost", "{procedure} of turn {}", turn["turn"]);
            assert_eq!(over_http["code"], refused.code, "{procedure} of turn {}", turn["turn"]);
        }
        let upload = both.upload(turn);
        upload.write(&json!({"parts": [1]})).unwrap();
        let refused = upload.finish().unwrap_err();
        let (_, over_http) = both.http("POST", &format!("{path}/parts"), &headers, "1\n");
        assert_eq!((refused.code.as_str(), &over_http["code"]), ("turn_lost", &json!("turn_lost")));
    }
    both.streams("commit", with(&second, json!({"content": "mine"})));
    assert_eq!(both.last("a"), 0, "nothing of the others came in");
}

#[test]
fn what_is_wrong_with_a_request_is_said_in_the_words_of_http() {
    let both = Both::new();
    both.streams("create", json!({"stream": "a"}));
    let long = "x".repeat((1 << 20) + 10);
    let long_body = json!({ "content": long }).to_string();
    let agent = "0190a5c8-0000-7000-8000-000000000001";
    let path_of_agent = format!("/v1/agents/{agent}");
    let keys = format!("{path_of_agent}/keys");
    // The route and its body; the procedure and its init; the code.
    let cases: &[(&str, &str, &str, &str, Value, &str)] = &[
        ("PUT", "/v1/streams/a/state", "", "streams.create", json!({"stream": "a/state"}), "reserved_name"),
        (
            "PUT",
            "/v1/streams/b",
            r#"{"ttl_s":0}"#,
            "streams.create",
            json!({"stream": "b", "ttl_s": 0}),
            "bad_field",
        ),
        (
            "PUT",
            "/v1/streams/b",
            r#"{"tll":1}"#,
            "streams.create",
            json!({"stream": "b", "tll": 1}),
            "unknown_field",
        ),
        (
            "PUT",
            "/v1/streams/a",
            r#"{"labels":{"k":"v"}}"#,
            "streams.create",
            json!({"stream": "a", "labels": {"k": "v"}}),
            "stream_exists",
        ),
        ("GET", "/v1/streams?limit=0", "", "streams.list", json!({"limit": 0}), "bad_parameter"),
        ("GET", "/v1/streams?status=odd", "", "streams.list", json!({"status": "odd"}), "bad_parameter"),
        ("GET", "/v1/streams?stats=idle", "", "streams.list", json!({"stats": "idle"}), "unknown_parameter"),
        ("GET", "/v1/streams/none/state", "", "streams.state", json!({"stream": "none"}), "not_found"),
        (
            "POST",
            "/v1/streams/a/messages",
            &long_body,
            "streams.append",
            json!({"stream": "a", "content": long}),
            "too_large",
        ),
        (
            "PATCH",
            "/v1/streams/a/messages/9",
            r#"{"content":1}"#,
            "streams.edit",
            json!({"stream": "a", "id": 9, "content": 1}),
            "no_message",
        ),
        (
            "DELETE",
            "/v1/streams/a/queue/9",
            "",
            "streams.unqueue",
            json!({"stream": "a", "id": 9}),
            "no_input",
        ),
        (
            "POST",
            "/v1/streams/a/interrupt",
            r#"{"why":1}"#,
            "streams.interrupt",
            json!({"stream": "a", "why": 1}),
            "unknown_field",
        ),
        ("GET", "/v1/agents/seven/metadata", "", "agents.read", json!({"agent": "seven"}), "bad_agent"),
        ("GET", "/v1/agents?limit=1001", "", "agents.list", json!({"limit": 1001}), "bad_parameter"),
        ("GET", "/v1/agents?after=x", "", "agents.list", json!({"after": "x"}), "bad_parameter"),
        (
            "PUT",
            &path_of_agent,
            r#"{"name":"a","x":1}"#,
            "agents.name",
            json!({"agent": agent, "name": "a", "x": 1}),
            "unknown_field",
        ),
        (
            "PUT",
            &keys,
            r#"[{"key":"a","x":1}]"#,
            "agents.declare",
            json!({"agent": agent, "keys": [{"key": "a", "x": 1}]}),
            "unknown_field",
        ),
        (
            "GET",
            "/v1/connections?user_id=7",
            "",
            "connections.list",
            json!({"user_id": "7"}),
            "bad_parameter",
        ),
        (
            "GET",
            "/v1/connections?type=odd",
            "",
            "connections.list",
            json!({"type": ["odd"]}),
            "bad_parameter",
        ),
        (
            "POST",
            "/v1/connections",
            r#"{"type":"ssh","status":"connected","x":1}"#,
            "connections.record",
            json!({"type": "ssh", "status": "connected", "x": 1}),
            "unknown_field",
        ),
        (
            "POST",
            "/v1/connections",
            r#"{"type":"odd","status":"connected"}"#,
            "connections.record_all",
            json!({"records": [{"type": "odd", "status": "connected"}]}),
            "bad_field",
        ),
        (
            "POST",
            "/v1/admin/connections/prune",
            r#"{"before":"now"}"#,
            "connections.prune",
            json!({"before": "now"}),
            "bad_field",
        ),
        ("GET", "/v1/pipes/short", "", "pipes.read", json!({"id": "short"}), "bad_id"),
        (
            "DELETE",
            "/v1/pipes/0123456789abcdef0123456789abcdef",
            "",
            "pipes.kill",
            json!({"id": "0123456789abcdef0123456789abcdef"}),
            "not_found",
        ),
        ("POST", "/v1/admin/reload", "", "admin.reload", json!({}), "no_configuration"),
    ];
    for (method, path, body, name, init, code) in cases {
        let (service, procedure) = name.split_once('.').unwrap();
        let (status, over_http) = both.http(method, path, &[], body);
        assert!(status >= 400, "{method} {path}: {status} {over_http}");
        assert_eq!(over_http["code"], *code, "{method} {path}");
        assert_eq!(both.refused(service, procedure, init.clone()).code, *code, "{name}");
    }
    // Streams that stay open refuse in the same words.
    let first = |procedure: &str, init: Value| {
        let mut answers = both.client.subscribe::<_, Value>("streams", procedure, &init).unwrap();
        answers.next().expect("an answer").expect_err("a refusal").code
    };
    let missing = "0190a5c8-0000-7000-8000-00000000000f";
    for (path, procedure, init, code) in [
        ("/v1/streams/none/events", "follow", json!({"stream": "none"}), "not_found"),
        (&*format!("/v1/streams/{missing}/events"), "follow", json!({"stream": missing}), "not_found"),
        ("/v1/streams/a/events?since=x", "follow", json!({"stream": "a", "since": "x"}), "bad_token"),
        (
            "/v1/streams/a/events?sinse=now",
            "follow",
            json!({"stream": "a", "sinse": "now"}),
            "unknown_parameter",
        ),
        ("/v1/streams/a/turns/9", "turn", json!({"stream": "a", "turn": 9}), "no_turn"),
    ] {
        assert_eq!(both.http("GET", path, &[], "").1["code"], code, "{path}");
        assert_eq!(first(procedure, init), code, "{path}");
    }
    let key = both.refused("streams", "append", json!({"stream": "a", "content": 1, "key": "ü"}));
    assert_eq!(key.code, "bad_field", "a key that cannot be compared is not one to rely on");
    let key = both.refused("streams", "append", json!({"stream": "a", "content": 1, "key": "k".repeat(201)}));
    assert_eq!(key.code, "bad_key");
}

#[test]
fn a_key_holds_over_both_doors() {
    let both = Both::new();
    both.streams("create", json!({"stream": "a"}));
    let said = json!({"stream": "a", "content": {"z": 1, "a": 2}, "key": "k1"});
    let written = both.streams("append", said.clone());
    assert_eq!(both.streams("append", said), written);
    let headers = [("idempotency-key", "k1")];
    let (_, again) = both.http("POST", "/v1/streams/a/messages", &headers, r#"{"content":{"z":1,"a":2}}"#);
    assert_eq!(again, written);
    let queued = both.streams("queue", json!({"stream": "a", "content": 1, "key": "k2"}));
    assert_eq!(both.streams("queue", json!({"stream": "a", "content": 1, "key": "k2"})), queued);
    let claimed = both.streams("claim", json!({"stream": "a", "key": "k3"}));
    assert_eq!(claimed["input"]["content"], 1);
    let (status, again) = both.http("POST", "/v1/streams/a/turns", &[("idempotency-key", "k3")], "");
    assert_eq!((status, &again["lease"]), (201, &claimed["lease"]), "a repeated claim gives its lease again");
}

#[test]
fn streams_are_shown_listed_and_followed_as_over_http() {
    let both = Both::new();
    both.streams("create", json!({"stream": "a/1", "labels": {"team": "red"}}));
    both.streams("create", json!({"stream": "a/2", "labels": {"team": "blue"}, "on_lost": "failed"}));
    both.streams("queue", json!({"stream": "a/1", "content": "do"}));
    for (path, procedure, init) in [
        ("/v1/streams/a/1/state", "state", json!({"stream": "a/1"})),
        ("/v1/streams", "list", json!({})),
        ("/v1/streams?label.team=red", "list", json!({"labels": {"team": "red"}})),
        ("/v1/streams?status=idle,failed", "list", json!({"status": ["idle", "failed"]})),
        ("/v1/streams?limit=1", "list", json!({"limit": 1})),
    ] {
        let (status, over_http) = both.http("GET", path, &[], "");
        assert_eq!(status, 200, "{over_http}");
        assert_eq!(both.streams(procedure, init), over_http, "{path}");
    }
    let turn = both.claim("a/1");
    let upload = both.upload(&turn);
    upload.write(&json!({"parts": ["p"]})).unwrap();
    upload.finish().unwrap();
    let follow = |init: Value| -> Vec<Value> {
        let mut events = Vec::new();
        for event in both.client.subscribe::<_, Value>("streams", "follow", &init).unwrap() {
            events.push(event.expect("an event"));
            if events.last().is_some_and(|event| event["t"] == "live") {
                break;
            }
        }
        events
    };
    let kinds = |events: &[Value]| -> Vec<String> {
        events.iter().map(|event| event["t"].as_str().expect("a type").to_owned()).collect()
    };
    let whole = follow(json!({"stream": "a/1"}));
    assert_eq!(kinds(&whole), ["hello", "status", "part", "live"]);
    assert_eq!((&whole[2]["d"], &whole[2]["turn"], &whole[2]["n"]), (&json!("p"), &json!(1), &json!(1)));
    assert_eq!(kinds(&follow(json!({"stream": "a/1", "parts": false}))), ["hello", "status", "live"]);
    let token = whole[3]["o"].clone();
    assert_eq!(kinds(&follow(json!({"stream": "a/1", "since": token}))), ["hello", "status", "live"]);
    let id = both.streams("state", json!({"stream": "a/1"}))["id"].clone();
    assert_eq!(follow(json!({"stream": id}))[0]["s"], "a/1", "by its id, under its name");

    // What is text is shown as text.
    let (status, _) = both.http("PUT", "/v1/stream/t", &[("content-type", "text/plain")], "");
    assert_eq!(status, 201);
    both.http("POST", "/v1/stream/t", &[("content-type", "text/plain")], "hello");
    let events = follow(json!({"stream": "t"}));
    let said = events.iter().find(|event| event["t"] == "message").expect("a message");
    assert_eq!(said["d"]["content"], "hello");
}

#[test]
fn follows_cost_no_threads_and_end_with_their_calls_and_their_stream() {
    // More than there are threads for handlers that wait.
    const FOLLOWS: usize = 300;
    let both = Both::new();
    both.streams("create", json!({"stream": "a"}));
    let mut follows: Vec<_> = (0..FOLLOWS)
        .map(|_| both.client.subscribe::<_, Value>("streams", "follow", &json!({"stream": "a"})).unwrap())
        .collect();
    let until_event = |follow: &mut towpath::client::session::Answers<Value>, t: &str| loop {
        let event = follow.next_by(patience(&both.rt)).expect("the follow goes on").expect("an event");
        if event["t"] == t {
            return event;
        }
    };
    follows.iter_mut().for_each(|follow| _ = until_event(follow, "live"));
    both.streams("append", json!({"stream": "a", "content": "all"}));
    for follow in &mut follows {
        assert_eq!(until_event(follow, "message")["d"]["content"], "all");
    }
    let followers = || {
        let live = both.ask("admin", "live", json!({}));
        live["streams"][0]["followers"].as_u64().unwrap_or(0)
    };
    assert_eq!(followers(), FOLLOWS as u64);
    let last = follows.split_off(FOLLOWS - 1);
    drop(follows);
    until(&both.rt, "those whose calls were cancelled are gone", || followers() == 1);
    both.streams("delete", json!({"stream": "a"}));
    let mut last = last.into_iter().next().expect("one is left");
    assert_eq!(until_event(&mut last, "closed")["d"]["reason"], "deleted");
    assert_eq!(last.next(), None);
}

#[test]
fn a_session_that_does_not_read_is_told_that_its_follow_was_too_slow() {
    let both = Both::new();
    both.streams("create", json!({"stream": "a"}));
    let mut follow = both.client.subscribe::<_, Value>("streams", "follow", &json!({"stream": "a"})).unwrap();
    while follow.next().expect("it goes on").expect("an event")["t"] != "live" {}
    // More than the client, the session and the follow hold together, and nobody reads. It goes the other way in.
    let body = json!({ "content": "x".repeat(64 << 10) }).to_string();
    for _ in 0..500 {
        let (status, written) = both.http("POST", "/v1/streams/a/messages", &[], &body);
        assert_eq!(status, 201, "{written}");
    }
    let mut last = None;
    for event in follow {
        last = Some(event);
    }
    let why = last.expect("it was told something").expect_err("it ended too early");
    assert_eq!(why.code, "slow");
}

#[test]
fn a_turn_that_runs_is_read_until_it_ends() {
    let both = Both::new();
    both.streams("create", json!({"stream": "a"}));
    let turn = both.claim("a");
    let upload = both.upload(&turn);
    upload.write(&json!({"parts": [1]})).unwrap();
    let read = both.client.subscribe::<_, Value>("streams", "turn", &json!({"stream": "a", "turn": 1}));
    let mut parts = read.unwrap();
    assert_eq!(parts.next(), Some(Ok(json!(1))));
    upload.write(&json!({"parts": [{"two": 2}]})).unwrap();
    assert_eq!(parts.next(), Some(Ok(json!({"two": 2}))));
    upload.finish().unwrap();
    both.streams("finish", with(&turn, json!({"status": "failed", "error": "no more"})));
    assert_eq!(parts.next(), None, "the turn is over, and so are its parts");
}

/// A connection that began in this second of the epoch.
fn record(second: u64, kind: &str) -> Value {
    let id = format!("0190a5c8-0000-7000-8000-{second:012}");
    let time = format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
    json!({
        "id": id, "time": time, "type": kind, "status": "connected", "agent_name": "main", "ip": "127.0.0.1",
        "workspace_id": "0190a5c8-0000-7000-8000-000000000003", "labels": {"zone": format!("z{}", second % 2)},
    })
}

#[test]
fn connections_are_filtered_exported_followed_and_pruned() {
    const ROWS: u64 = 450;
    let both = Both::new();
    let ask = |procedure: &str, init: Value| both.ask("connections", procedure, init);
    let records: Vec<Value> =
        (1..=ROWS).map(|n| record(n, if n % 3 == 0 { "ssh" } else { "vscode" })).collect();
    assert_eq!(ask("record_all", json!({"records": records, "durable": true})), json!({"accepted": ROWS}));
    let count = || ask("list", json!({"limit": 1, "agent_name": "main"}))["count"].clone();
    until(&both.rt, "the records are rows", || count() == ROWS);
    assert_eq!(ask("record_all", json!({"records": []})), json!({"accepted": 0}));

    for (query, init) in [
        ("?agent_name=main&limit=7", json!({"agent_name": "main", "limit": 7})),
        ("?type=ssh&status=ongoing", json!({"type": "ssh", "status": ["ongoing"]})),
        ("?label.zone=z1&limit=3", json!({"labels": {"zone": "z1"}, "limit": 3})),
        (
            "?connected_after=2026-01-01T00:01:00Z&connected_before=2026-01-01T00:02:00Z",
            json!({"connected_after": "2026-01-01T00:01:00Z", "connected_before": "2026-01-01T00:02:00Z"}),
        ),
        ("?agent_name=main&offset=440", json!({"agent_name": "main", "offset": 440})),
    ] {
        let (status, over_http) = both.http("GET", &format!("/v1/connections{query}"), &[], "");
        assert_eq!(status, 200, "{over_http}");
        assert_eq!(ask("list", init), over_http, "{query}");
    }

    let (_, lines) = both.http("GET", "/v1/connections/export?agent_name=main", &[], "");
    let lines: Vec<Value> = lines
        .as_str()
        .expect("lines")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let pages = both.client.subscribe::<_, Value>(
        "connections",
        "export",
        &json!({"agent_name": "main", "limit": 100}),
    );
    let pages: Vec<Value> = pages.unwrap().map(|page| page.expect("a page")["connections"].clone()).collect();
    let lengths: Vec<usize> = pages.iter().map(|page| page.as_array().expect("rows").len()).collect();
    assert_eq!(lengths, [100, 100, 100, 100, 50]);
    let rows: Vec<Value> = pages.iter().flat_map(|page| page.as_array().expect("rows").clone()).collect();
    assert_eq!(rows, lines, "the rows of the export over HTTP, in their order");

    // Nothing is told of what was there; so one after the other is recorded until the tail has begun.
    let mut tail =
        both.client.subscribe::<_, Value>("connections", "tail", &json!({"labels": {"zone": "z1"}})).unwrap();
    let mut second = 1_001;
    let seen = loop {
        assert!(second < 1_100, "a tail shows what comes");
        ask("record_all", json!({"records": [record(second, "ssh")], "durable": true}));
        second += 2;
        match tail.next_by(both.rt.now() + Duration::from_millis(700)) {
            Some(Ok(rows)) => break rows["connections"].clone(),
            Some(Err(why)) => assert_eq!(why.code, "TIMED_OUT"),
            None => panic!("the tail ended"),
        }
    };
    let told = |rows: &Value| -> Vec<String> {
        rows.as_array()
            .expect("rows")
            .iter()
            .map(|row| row["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let mut before = told(&seen);
    ask(
        "record_all",
        json!({"records": [record(second, "ssh"), record(second + 1, "ssh")], "durable": true}),
    );
    let last = record(second, "ssh")["id"].as_str().expect("an id").to_owned();
    while !before.contains(&last) {
        let rows = tail.next_by(patience(&both.rt)).expect("it goes on").expect("rows");
        let rows = told(&rows["connections"]);
        assert!(rows.iter().all(|id| !before.contains(id)), "{rows:?} after {before:?}");
        before.extend(rows);
    }
    let other = record(second + 1, "ssh")["id"].as_str().expect("an id").to_owned();
    assert!(!before.contains(&other), "the tail has its filter");
    assert!(before.is_sorted(), "oldest first: {before:?}");

    let pruned = ask("prune", json!({"before": "2026-01-01T00:00:11Z"}));
    assert_eq!(pruned, json!({"deleted": 10, "more": false}));
    let (_, over_http) = both.http("GET", "/v1/spool", &[], "");
    assert_eq!(ask("spool", json!({}))["dead_letters"], over_http["dead_letters"]);
}

#[test]
fn agents_are_declared_and_watched_one_many_and_all_of_a_name() {
    let both = Both::new();
    let id = |n: u32| format!("0190a5c8-0000-7000-8000-{n:012}");
    let ask = |procedure: &str, init: Value| both.ask("agents", procedure, init);
    for n in 1..=3 {
        ask("name", json!({"agent": id(n), "name": if n < 3 { format!("w-{n}") } else { "x".into() }}));
        ask("report", json!({"agent": id(n), "metadata": [{"key": "cpu", "value": n.to_string()}]}));
    }
    let keys = json!([{"key": "cpu", "display_name": "CPU", "display_order": 3}]);
    assert_eq!(ask("declare", json!({"agent": id(1), "keys": keys})), json!({"keys": 1}));
    // Each agent that a watch shows with its value.
    let watch = |procedure: &str, init: Value, wanted: &[u32]| {
        let mut left: BTreeSet<String> = wanted.iter().map(|n| id(*n)).collect();
        let answers = both.client.subscribe::<_, Value>("agents", procedure, &init).unwrap();
        for values in answers {
            let values = values.expect("values");
            let agent = values["agent"].as_str().expect("an id").to_owned();
            assert!(wanted.iter().any(|n| id(*n) == agent), "{procedure} {init} shows {values}");
            if values["metadata"][0]["value"].is_string() {
                left.remove(&agent);
            }
            if left.is_empty() {
                return;
            }
        }
        panic!("{procedure} {init} ended");
    };
    watch("watch", json!({"agent": id(3)}), &[3]);
    watch("watch", json!({"agents": [id(1), id(3)]}), &[1, 3]);
    watch("watch_all", json!({"prefix": "w-"}), &[1, 2]);
    watch("watch_all", json!({}), &[1, 2, 3]);
    let (_, over_http) = both.http("GET", &format!("/v1/agents/{}/metadata", id(1)), &[], "");
    let mut read = ask("read", json!({"agent": id(1)}));
    read["metadata"][0]["age_ms"] = over_http["metadata"][0]["age_ms"].clone();
    assert_eq!(read, over_http);
    assert_eq!(read["metadata"][0]["display_name"], "CPU");
    let page = ask("list", json!({"prefix": "w-", "limit": 1}));
    let rest = ask("list", json!({"prefix": "w-", "after": page["next"]}));
    assert_eq!((&page["agents"][0]["name"], &rest["agents"][0]["name"]), (&json!("w-1"), &json!("w-2")));
    assert_eq!(rest["next"], Value::Null);
    let bad = |procedure: &str, init: Value| {
        let mut answers = both.client.subscribe::<_, Value>("agents", procedure, &init).unwrap();
        answers.next().expect("an answer").expect_err("a refusal").code
    };
    assert_eq!(bad("watch", json!({"agents": ["seven"]})), "bad_agent");
    assert_eq!(bad("watch", json!({"agents": vec![id(1); 1_001]})), "bad_field");
    assert_eq!(bad("watch_all", json!({"prefx": "w"})), "unknown_parameter");
}

#[test]
fn operators_ask_over_a_session_what_they_ask_over_http() {
    let both = Both::new();
    for (path, procedure) in
        [("/v1/whoami", "whoami"), ("/healthz", "health"), ("/readyz", "ready"), ("/v1/admin/live", "live")]
    {
        assert_eq!(both.ask("admin", procedure, json!({})), both.http("GET", path, &[], "").1, "{path}");
    }
    let replicas = both.ask("admin", "replicas", json!({}));
    assert_eq!(
        replicas["replicas"][0]["id"],
        both.http("GET", "/v1/replicas", &[], "").1["replicas"][0]["id"]
    );
    let metrics = both.ask("admin", "metrics", json!({}));
    assert!(metrics.as_str().expect("text").contains("towpath_sessions 1"), "{metrics}");
    let ticket = both.ask("admin", "ticket", json!({}));
    assert!(ticket["ticket"].is_string() && ticket["expires_in_s"] == 30, "{ticket}");
}
