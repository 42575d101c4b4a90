//! The daemon's own services at `/river`, over a WebSocket.

use serde_json::json;
use towpath::client::session::WebSocket;
use towpath::config::{Config, ListenAt};
use towpath::daemon::Daemon;
use towpath::front::Router;
use towpath::state::value::Value;
use towpath::wire::{IoThreads, Limits, Running, Target};

use super::*;

/// A daemon on a folder of its own.
fn daemon(rt: &Rt, folder: &std::path::Path) -> Daemon {
    let mut config = Config::default();
    config.store.data = folder.to_owned();
    config.server.listen = ListenAt::Tcp(([127, 0, 0, 1], 0).into());
    Daemon::start(rt, &config).expect("a daemon")
}

fn wire(rt: &Rt) -> Running {
    let io = IoThreads::new(rt, 1, None).expect("threads");
    io.start(Limits::default(), vec![], Arc::new(Router::new())).expect("threads")
}

fn client(rt: &Rt, wire: &Running, daemon: &Daemon, options: Options) -> Client {
    let target = Target::parse(&format!("ws://{}/river", daemon.addresses()[0])).expect("a target");
    let dialer = Arc::new(WebSocket::new(wire.wire(), target));
    Client::start(rt, "client", "SERVER", dialer, options).expect("threads")
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
        (&state["name"], &state["status"], &state["queued"]),
        (&json!("a/1"), &json!("pending"), &json!(1))
    );
    ask("streams", "unqueue", json!({"stream": "a/1", "id": queued["id"]}));
    let page = ask("streams", "list", json!({"limit": 1}));
    assert_eq!(page["streams"][0]["name"], "a/1");
    let rest = ask("streams", "list", json!({"after": page["next"]}));
    assert_eq!(rest["streams"][0]["name"], "a/2");
    assert_eq!(refused("streams", "list", json!({"limit": 0})), "bad_request");
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
    assert_eq!(refused("connections", "record", json!({"type": "ssh", "what": 1})), "bad_field");
    let rows = || ask("connections", "list", json!({"connection_id": connection}))["connections"].clone();
    until(&rt, "the record is a row", || rows().as_array().is_some_and(|rows| rows.len() == 1));
    assert!(ask("connections", "spool", json!({}))["records"].is_u64());

    assert_eq!(ask("pipes", "list", json!({}))["pipes"], json!([]));
    let nobody = "0123456789abcdef0123456789abcdef";
    assert_eq!(refused("pipes", "cut", json!({"id": nobody})), "not_found");
    assert_eq!(refused("pipes", "kill", json!({"id": "short"})), "bad_id");
    assert!(ask("admin", "replicas", json!({}))["replicas"].is_array());
}
