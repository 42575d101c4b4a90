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
