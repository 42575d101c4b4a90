//! The daemon's own services at `/river`, over a WebSocket.

use serde_json::json;
use towpath::client::session::WebSocket;
use towpath::config::{Config, ListenAt};
use towpath::daemon::Daemon;
use towpath::front::{Role, Router, Scope, Secret, Tokens, new_token};
use towpath::state::value::Value;
use towpath::wire::{IoThreads, Limits, Running, Target};

use super::*;

/// A daemon on a folder of its own.
pub(super) fn daemon(rt: &Rt, folder: &std::path::Path) -> Daemon {
    daemon_with(rt, folder, |_| {})
}

fn daemon_with(rt: &Rt, folder: &std::path::Path, change: impl FnOnce(&mut Config)) -> Daemon {
    let mut config = Config::default();
    config.store.data = folder.to_owned();
    change(&mut config);
    config.server.listen = ListenAt::Tcp(([127, 0, 0, 1], 0).into());
    Daemon::start(rt, &config).expect("a daemon")
}

pub(crate) fn wire(rt: &Rt) -> Running {
    let io = IoThreads::new(rt, 1, None).expect("threads");
    io.start(Limits::default(), vec![], Arc::new(Router::new())).expect("threads")
}

pub(super) fn client(rt: &Rt, wire: &Running, daemon: &Daemon, options: Options) -> Client {
    client_called(rt, "client", wire, daemon, options)
}

fn client_called(rt: &Rt, id: &str, wire: &Running, daemon: &Daemon, options: Options) -> Client {
    client_at(rt, id, wire, &daemon.addresses()[0].to_string(), options)
}

pub(crate) fn client_at(rt: &Rt, id: &str, wire: &Running, address: &str, options: Options) -> Client {
    let target = Target::parse(&format!("ws://{address}/river")).expect("a target");
    let dialer = Arc::new(WebSocket::new(wire.wire(), target));
    Client::start(rt, id, "SERVER", dialer, options).expect("threads")
}

#[test]
fn a_stream_is_written_and_followed_over_a_session_that_is_cut() {
    let rt = Rt::real();
    let folder = tempfile::tempdir().unwrap();
    let (daemon, wire) = (daemon(&rt, folder.path()), wire(&rt));
    let client = client(&rt, &wire, &daemon, Options::default());
    let pong: Value = client.rpc("admin", "ping", &json!({})).unwrap();
    assert_eq!(pong.get("version").and_then(Value::as_str), Some(env!("CARGO_PKG_VERSION")));
    client.rpc::<_, Value>("streams", "create", &json!({"stream": "chat/7"})).unwrap();
    let append = |n: i64| -> Value {
        client.rpc("streams", "append", &json!({"stream": "chat/7", "role": "user", "content": n})).unwrap()
    };
    assert_eq!(append(1).get("id"), Some(&Value::Int(1)));
    let events = client.subscribe::<_, Value>("streams", "follow", &json!({"stream": "chat/7"})).unwrap();
    let mut messages = Vec::new();
    for event in events {
        let event = event.unwrap();
        match event.get("t").and_then(Value::as_str) {
            Some("live") => {
                client.cut();
                append(2);
            }
            Some("message") => messages.push(event.get("d").and_then(|d| d.get("content")).cloned().unwrap()),
            _ => {}
        }
        if messages.len() == 2 {
            break;
        }
    }
    assert_eq!(messages, [Value::Int(1), Value::Int(2)]);
    let failure =
        client.rpc::<_, Value>("streams", "interrupt", &json!({"stream": "none/such"})).unwrap_err();
    assert_eq!(failure.code, "not_found");
}

#[test]
fn the_services_do_what_the_http_doors_do() {
    let rt = Rt::real();
    let folder = tempfile::tempdir().unwrap();
    let (daemon, wire) = (daemon(&rt, folder.path()), wire(&rt));
    let client = client(&rt, &wire, &daemon, Options::default());
    let ask = |service: &str, procedure: &str, init: serde_json::Value| -> serde_json::Value {
        client.rpc(service, procedure, &init).unwrap_or_else(|why| panic!("{service}.{procedure}: {why}"))
    };
    let refused = |service: &str, procedure: &str, init: serde_json::Value| -> String {
        client.rpc::<_, Value>(service, procedure, &init).expect_err(procedure).code
    };

    ask("streams", "create", json!({"stream": "a/1"}));
    ask("streams", "create", json!({"stream": "a/2"}));
    let written = ask("streams", "append", json!({"stream": "a/1", "role": "user", "content": "one"}));
    let edited = json!({"stream": "a/1", "id": written["id"], "content": "uno"});
    assert_eq!(ask("streams", "edit", edited)["id"], written["id"]);
    ask("streams", "remove", json!({"stream": "a/1", "id": written["id"]}));
    let queued = ask("streams", "queue", json!({"stream": "a/1", "content": "do"}));
    let state = ask("streams", "state", json!({"stream": "a/1"}));
    assert_eq!(
        (&state["name"], &state["status"], &state["queue"][0]["content"]),
        (&json!("a/1"), &json!("pending"), &json!("do"))
    );
    ask("streams", "unqueue", json!({"stream": "a/1", "id": queued["id"]}));
    let page = ask("streams", "list", json!({"limit": 1}));
    assert_eq!(page["streams"][0]["name"], "a/1");
    let rest = ask("streams", "list", json!({"after": page["next"]}));
    assert_eq!(rest["streams"][0]["name"], "a/2");
    assert_eq!(refused("streams", "list", json!({"limit": 0})), "bad_parameter");
    ask("streams", "delete", json!({"stream": "a/2"}));
    assert_eq!(refused("streams", "state", json!({"stream": "a/2"})), "not_found");

    let agent = "0190a5c8-0000-7000-8000-000000000001";
    let watched = client.subscribe::<_, serde_json::Value>("agents", "watch", &json!({"agent": agent}));
    let mut watched = watched.expect("called");
    let entry = json!([{"key": "cpu", "value": "3"}]);
    assert_eq!(ask("agents", "report", json!({"agent": agent, "metadata": entry}))["accepted"], 1);
    let seen = std::iter::from_fn(|| watched.next()).map(|values| values.expect("values"));
    let reported = |values: &serde_json::Value| values["metadata"][0]["value"] == "3";
    assert!(seen.take(5).any(|values| reported(&values)), "the watch shows what was reported");
    drop(watched);
    until(&rt, "what was reported is read", || reported(&ask("agents", "read", json!({"agent": agent}))));
    ask("agents", "name", json!({"agent": agent, "name": "worker-1"}));
    let named = ask("agents", "list", json!({"prefix": "worker-"}));
    assert_eq!(named["agents"], json!([{"id": agent, "name": "worker-1"}]));

    let connection = "0190a5c8-0000-7000-8000-000000000002";
    let record = json!({
        "type": "ssh", "status": "connected", "agent_name": "main", "ip": "127.0.0.1",
        "workspace_id": "0190a5c8-0000-7000-8000-000000000003", "connection_id": connection,
    });
    ask("connections", "record", record);
    assert_eq!(refused("connections", "record", json!({"type": "ssh", "what": 1})), "unknown_field");
    let rows = || ask("connections", "list", json!({"connection_id": connection}))["connections"].clone();
    until(&rt, "the record is a row", || rows().as_array().is_some_and(|rows| rows.len() == 1));
    assert!(ask("connections", "spool", json!({}))["records"].is_u64());

    assert_eq!(ask("pipes", "list", json!({}))["pipes"], json!([]));
    let nobody = "0123456789abcdef0123456789abcdef";
    assert_eq!(refused("pipes", "cut", json!({"id": nobody})), "not_found");
    assert_eq!(refused("pipes", "kill", json!({"id": "short"})), "bad_id");
    assert!(ask("admin", "replicas", json!({}))["replicas"].is_array());
}

/// Options of a client that shows this token.
pub(crate) fn showing(token: &Secret) -> Options {
    let metadata = Value::Map(vec![("token".into(), Value::Text(token.reveal().into()))]);
    Options { metadata: Some(Arc::new(move || Ok(metadata.clone()))), ..Options::default() }
}

#[test]
fn a_token_with_too_small_a_role_is_refused_by_every_service_and_keeps_its_session() {
    use Role::{Agent, Follower, Pipe, Producer};
    let rt = Rt::real();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    let scope = Scope { matches: "chat/*".into(), ops: vec![towpath::front::Op::Follow] };
    let mut lines = String::new();
    let mut token = |name: &str, roles: &[Role], scopes: &[Scope]| {
        let token = new_token(&rt);
        lines += &Tokens::line(name, &token, roles, scopes).expect("a line");
        lines += "\n";
        token
    };
    let tokens: Vec<_> =
        Role::ALL.into_iter().map(|role| (role, token(role.as_str(), &[role], &[]))).collect();
    let narrow = token("narrow", &[Producer], &[scope]);
    std::fs::write(&file, lines).unwrap();
    let daemon = daemon_with(&rt, &folder.path().join("data"), |config| {
        config.auth.token_file = towpath::config::OrOff::On(file.clone());
    });
    let wire = wire(&rt);

    let agent = "0190a5c8-0000-7000-8000-000000000001";
    let (of, stream) = (json!({"agent": agent}), json!({"stream": "chat/1"}));
    let said = json!({"stream": "chat/1", "role": "user", "content": 1});
    let edited = json!({"stream": "chat/1", "id": 1, "content": 1});
    let first = json!({"stream": "chat/1", "id": 1});
    let turn = json!({"stream": "chat/1", "turn": 9, "lease": "no"});
    let committed = json!({"stream": "chat/1", "turn": 9, "lease": "no", "content": 1});
    let finished = json!({"stream": "chat/1", "turn": 9, "lease": "no", "status": "done"});
    let pipe = json!({"id": "0123456789abcdef0123456789abcdef"});
    let before = json!({"before": "2000-01-01T00:00:00Z"});
    let everybody: &[Role] = &[Producer, Follower, Agent, Pipe];
    // Who may, besides an admin. What they are answered otherwise is not asked here.
    let asks: &[(&str, &str, &serde_json::Value, &[Role])] = &[
        ("streams", "create", &stream, &[Producer]),
        ("streams", "append", &said, &[Producer]),
        ("streams", "edit", &edited, &[Producer]),
        ("streams", "remove", &first, &[Producer]),
        ("streams", "queue", &said, &[Producer]),
        ("streams", "unqueue", &first, &[Producer]),
        ("streams", "state", &stream, &[Producer, Follower]),
        // Which streams somebody sees is asked of each; that there is a list, of nobody.
        ("streams", "list", &json!({}), everybody),
        ("streams", "interrupt", &stream, &[Producer, Follower]),
        ("streams", "claim", &stream, &[Producer]),
        ("streams", "next", &json!({}), &[Producer]),
        ("streams", "commit", &committed, &[Producer]),
        ("streams", "finish", &finished, &[Producer]),
        ("streams", "abort", &turn, &[Producer]),
        ("streams", "keepalive", &turn, &[Producer]),
        ("agents", "report", &json!({"agent": agent, "metadata": []}), &[Agent]),
        ("agents", "read", &of, &[Agent, Follower]),
        ("agents", "list", &json!({"prefix": "a"}), &[Agent, Follower]),
        ("agents", "name", &json!({"agent": agent, "name": "a"}), &[Agent]),
        ("agents", "declare", &json!({"agent": agent, "keys": []}), &[Agent]),
        ("connections", "record", &json!({"what": 1}), &[Producer, Agent]),
        ("connections", "record_all", &json!({"records": []}), &[Producer, Agent]),
        ("connections", "list", &json!({}), &[]),
        ("connections", "prune", &before, &[]),
        ("connections", "spool", &json!({}), &[]),
        ("pipes", "list", &json!({}), &[Pipe]),
        ("pipes", "read", &pipe, &[Pipe]),
        ("pipes", "kill", &pipe, &[Pipe]),
        ("pipes", "cut", &pipe, &[Pipe]),
        ("admin", "replicas", &json!({}), &[]),
        ("admin", "live", &json!({}), &[]),
        ("admin", "reload", &json!({}), &[]),
        ("admin", "ping", &json!({}), everybody),
        ("admin", "whoami", &json!({}), everybody),
        ("admin", "ticket", &json!({}), everybody),
        ("admin", "health", &json!({}), everybody),
        ("admin", "ready", &json!({}), everybody),
        ("admin", "metrics", &json!({}), everybody),
        ("streams", "delete", &stream, &[Producer]),
    ];
    let subscribes: &[(&str, &str, &serde_json::Value, &[Role])] = &[
        ("streams", "follow", &json!({"stream": "none"}), &[Producer, Follower]),
        ("streams", "turn", &json!({"stream": "none", "turn": 1}), &[Producer, Follower]),
        ("agents", "watch", &of, &[Agent, Follower]),
        // The answer to a watch of nobody does not come.
        ("agents", "watch_all", &json!({"prefx": "a"}), &[Agent, Follower]),
        ("connections", "export", &json!({}), &[]),
        ("connections", "tail", &json!({"limit": 0}), &[]),
    ];
    let of_them =
        asks.iter().chain(subscribes).map(|(service, procedure, ..)| format!("{service}.{procedure}"));
    let asked: std::collections::BTreeSet<String> = of_them.chain(["streams.parts".to_owned()]).collect();
    let schema = towpath::daemon::river::described().json_schema();
    assert_eq!(asked, mirror::procedures_of(&schema), "every procedure is asked by every role");
    for (role, token) in &tokens {
        let client = client_called(&rt, role.as_str(), &wire, &daemon, showing(token));
        assert!(client.rpc::<_, Value>("admin", "ping", &json!({})).is_ok());
        let session = client.session();
        for (service, procedure, init, roles) in asks {
            let answer = client.rpc::<_, Value>(service, procedure, *init);
            let refused = answer.is_err_and(|why| why.code == "forbidden");
            let may = *role == Role::Admin || roles.contains(role);
            assert_eq!(refused, !may, "{service}.{procedure} by a token with the role {}", role.as_str());
        }
        for (service, procedure, init, roles) in subscribes {
            let mut answers = client.subscribe::<_, Value>(service, procedure, *init).unwrap();
            let refused = matches!(answers.next(), Some(Err(why)) if why.code == "forbidden");
            let may = *role == Role::Admin || roles.contains(role);
            assert_eq!(refused, !may, "{service}.{procedure} by a token with the role {}", role.as_str());
        }
        let parts = client.upload::<_, Value, Value>("streams", "parts", &turn).unwrap();
        let refused = parts.finish().is_err_and(|why| why.code == "forbidden");
        assert_eq!(refused, ![Role::Admin, Producer].contains(role), "parts by {}", role.as_str());
        let who: serde_json::Value = client.rpc("admin", "whoami", &json!({})).unwrap();
        assert_eq!((&who["name"], &who["roles"]), (&json!(role.as_str()), &json!([role.as_str()])));
        assert_eq!(client.session(), session, "a refusal is the call's and not the session's");
    }

    let narrow = client_called(&rt, "narrow", &wire, &daemon, showing(&narrow));
    let code = |procedure: &str, stream: &str| {
        narrow.rpc::<_, Value>("streams", procedure, &json!({"stream": stream})).expect_err(procedure).code
    };
    assert_eq!(code("state", "chat/1"), "not_found");
    assert_eq!(code("state", "other/1"), "forbidden");
    assert_eq!(code("create", "chat/1"), "forbidden", "its scope lets it follow, whatever its role");
    assert_eq!(code("claim", "chat/1"), "forbidden");
    let any = narrow.rpc::<_, Value>("streams", "next", &json!({})).expect_err("any stream").code;
    assert_eq!(any, "forbidden", "which it would be is known only when it is claimed");
    let turn = json!({"stream": "chat/1", "turn": 1, "lease": "no"});
    let parts = narrow.upload::<_, Value, Value>("streams", "parts", &turn).unwrap();
    assert_eq!(parts.finish().expect_err("parts").code, "forbidden");

    // A ticket lives no longer than who asked for it, and opens the other door to him alone.
    let ticket: serde_json::Value = narrow.rpc("admin", "ticket", &json!({})).unwrap();
    let url =
        format!("http://{}/v1/whoami?ticket={}", daemon.addresses()[0], ticket["ticket"].as_str().unwrap());
    let mut told = ureq::get(&url).call().expect("a ticket is good once");
    let told: serde_json::Value = serde_json::from_str(&told.body_mut().read_to_string().unwrap()).unwrap();
    assert_eq!(told, narrow.rpc::<_, serde_json::Value>("admin", "whoami", &json!({})).unwrap());
}
