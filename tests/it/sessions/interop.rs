//! Against the reference itself, `@replit/river` from npm, both ways and in both codecs. Skipped, loudly, where
//! node or the package is not to be had.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value as Json, json};
use towpath::client::session::WebSocket;
use towpath::codec::Codec;
use towpath::front::{Router, river};
use towpath::state::session::{Event, HandshakeFailure};
use towpath::state::value::Value;
use towpath::wire::{IoThreads, Limits, Listener, Running, Target};

use super::*;
use crate::effort::not_run;

/// The reference as it is now, which speaks v2.0; none if it cannot be installed.
fn packages() -> Option<&'static Path> {
    static INSTALLED: OnceLock<Option<PathBuf>> = OnceLock::new();
    INSTALLED.get_or_init(|| install("river")).as_deref()
}

/// The reference when it spoke v1.1, and its handshake did not yet say where a client stands.
fn packages_v1() -> Option<&'static Path> {
    static INSTALLED: OnceLock<Option<PathBuf>> = OnceLock::new();
    INSTALLED.get_or_init(|| install("river-v1")).as_deref()
}

/// A folder of `tests/interop` with its packages in it.
fn install(folder: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(folder);
    if folder.join("node_modules/@replit/river").is_dir() {
        return Some(folder);
    }
    let flags = ["install", "--no-audit", "--no-fund", "--no-package-lock"];
    let output = Command::new("npm").args(flags).current_dir(&folder).output();
    let failed = match output {
        Ok(output) if output.status.success() => return Some(folder),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    not_run(&format!("@replit/river could not be installed in {}:\n{failed}", folder.display()));
    None
}

/// A node program; ended when it is dropped.
struct Node(Child);

impl Node {
    fn run(folder: &Path, arguments: &[&str]) -> Node {
        let mut command = Command::new("node");
        command.args(arguments).current_dir(folder).stdout(Stdio::piped()).stdin(Stdio::null());
        Node(command.spawn().expect("node runs where npm did"))
    }

    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        let out = self.0.stdout.take().expect("its output is a pipe");
        BufReader::new(out).lines().map_while(Result::ok)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // One that has ended needs no ending.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn doors(rt: &Rt, listeners: Vec<Listener>, router: Router) -> Running {
    let io = IoThreads::new(rt, 1, None).expect("threads");
    io.start(Limits::default(), listeners, Arc::new(router)).expect("threads")
}

#[test]
fn interop_the_reference_client_gets_from_us_what_it_gets_from_its_own_server() {
    let Some(folder) = packages() else { return };
    for codec in [Codec::Json, Codec::Binary] {
        let rt = Rt::real();
        let settings = Settings { codec, ..Settings::default() };
        let services = Services::new().with(reference::interop());
        let server = Server::builder(&rt, services).settings(settings).start().expect("threads");
        let mut router = Router::new();
        router.add(river::route("/", server.doorbell().clone()));
        let running = doors(&rt, vec![Listener::bind("127.0.0.1:0").expect("a port")], router);
        let url = format!("ws://{}/", running.addresses()[0]);
        let mut node = Node::run(folder, &["client.mjs", &url, &codec.to_string()]);
        let results: std::collections::BTreeMap<String, Json> = node
            .lines()
            .map(|line| serde_json::from_str::<Json>(&line).expect("a line of JSON"))
            .map(|line| (line["name"].as_str().expect("a name").to_owned(), line["result"].clone()))
            .collect();
        let failure =
            |code: &str, message: &str| json!({"ok": false, "payload": {"code": code, "message": message}});
        let ok = |payload: Json| json!({"ok": true, "payload": payload});
        let expected = [
            ("echo", ok(json!({"msg": "é", "n": 1.5, "list": [1, null]}))),
            ("divide", ok(json!({"result": 2}))),
            (
                "divide by zero",
                json!({"ok": false, "payload": {
                    "code": "DIV_BY_ZERO", "message": "Cannot divide by zero", "extras": {"test": "abc"},
                }}),
            ),
            ("throws", failure("UNCAUGHT_ERROR", "boom")),
            ("cancels", failure("CANCEL", "server says no")),
            ("count", json!([ok(json!({"i": 0})), ok(json!({"i": 1})), ok(json!({"i": 2}))])),
            ("subErr", json!([failure("NOT_FOUND", "no such thing")])),
            ("sum", ok(json!({"total": 6, "count": 3}))),
            ("echoStream", json!([ok(json!({"i": 0, "msg": ">m0"})), ok(json!({"i": 1, "msg": ">m1"}))])),
            ("forever", json!([true, true, true, false])),
            ("count over a cut", (0..40).collect()),
        ];
        for (name, expected) in expected {
            assert_eq!(results.get(name), Some(&expected), "{codec} {name}");
        }
    }
}

#[test]
fn interop_our_client_gets_from_the_reference_server_what_its_own_client_gets() {
    let Some(folder) = packages() else { return };
    for codec in [Codec::Json, Codec::Binary] {
        let rt = Rt::real();
        let mut node = Node::run(folder, &["server.mjs", &codec.to_string()]);
        let port = node.lines().next().expect("it says its port");
        let running = doors(&rt, vec![], Router::new());
        let target = Target::parse(&format!("ws://127.0.0.1:{port}/")).expect("a target");
        let dialer = Arc::new(WebSocket::new(running.wire(), target));
        let client = Client::start(&rt, "rust", "SERVER", dialer, Options { codec, ..Options::default() })
            .expect("threads");
        assert_eq!(client.rpc("interop", "echo", &json!({"a": [1.5, null]})), Ok(json!({"a": [1.5, null]})));
        let divided: Value = client.rpc("interop", "divide", &json!({"a": 6, "b": 3})).expect("divided");
        assert_eq!(divided.get("result").and_then(Value::as_f64), Some(2.0));
        let failure =
            client.rpc::<_, Value>("interop", "divide", &json!({"a": 1, "b": 0})).expect_err("by zero");
        assert_eq!(failure.code, "DIV_BY_ZERO");
        let failure = client.rpc::<_, Value>("interop", "throws", &json!({})).expect_err("it throws");
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("UNCAUGHT_ERROR", "boom"));
        let upload = client.upload::<_, _, Value>("interop", "sum", &json!({})).expect("called");
        (1..=3).for_each(|n| upload.write(&json!({ "n": n })).expect("written"));
        assert_eq!(upload.finish().expect("summed").get("total").and_then(Value::as_f64), Some(6.0));
        let (requests, mut answers) =
            client.stream::<_, Json, Json>("interop", "echoStream", &json!({"prefix": ">"})).expect("called");
        requests.write(&json!({"i": 0, "msg": "m0"})).expect("written");
        assert_eq!(answers.next().expect("an answer").expect("a line")["msg"], ">m0");
        drop(requests);
        assert!(answers.next().is_none());
        let ticks = client
            .subscribe::<_, Json>("interop", "count", &json!({"n": 60, "intervalMs": 5}))
            .expect("called");
        let mut seen = Vec::new();
        for tick in ticks {
            seen.push(tick.expect("a tick")["i"].as_f64().expect("a number") as i64);
            if seen.len() % 20 == 0 {
                client.cut();
            }
        }
        assert_eq!(seen, (0..60).collect::<Vec<_>>());
    }
}

/// What the client of v1.1 says of each of its calls.
fn check_v1(mut node: Node, how: &str, id: &str) {
    let results: std::collections::BTreeMap<String, Json> = node
        .lines()
        .map(|line| serde_json::from_str::<Json>(&line).expect("a line of JSON"))
        .map(|line| (line["name"].as_str().expect("a name").to_owned(), line["result"].clone()))
        .collect();
    let failure =
        |code: &str, message: &str| json!({"ok": false, "payload": {"code": code, "message": message}});
    let ok = |payload: Json| json!({"ok": true, "payload": payload});
    let expected = [
        ("echo", ok(json!({"msg": "é", "n": 1.5, "list": [1, null]}))),
        ("divide", ok(json!({"result": 2}))),
        (
            "divide by zero",
            json!({"ok": false, "payload": {
                "code": "DIV_BY_ZERO", "message": "Cannot divide by zero", "extras": {"test": "abc"},
            }}),
        ),
        ("throws", failure("UNCAUGHT_ERROR", "boom")),
        ("cancels", failure("CANCEL", "server says no")),
        ("whoami", json!(id)),
        ("count", json!([ok(json!({"i": 0})), ok(json!({"i": 1})), ok(json!({"i": 2}))])),
        ("subErr", json!([failure("NOT_FOUND", "no such thing")])),
        ("sum", ok(json!({"total": 6, "count": 3}))),
        ("echoStream", json!([ok(json!({"i": 0, "msg": ">m0"})), ok(json!({"i": 1, "msg": ">m1"}))])),
        ("throwStream", json!([failure("UNCAUGHT_ERROR", "stream boom")])),
        ("forever", json!([true, true, true])),
        ("count over a cut", (0..40).collect()),
        ("stats", json!(0)),
    ];
    for (name, expected) in expected {
        assert_eq!(results.get(name), Some(&expected), "{how} {name}");
    }
}

#[test]
fn interop_the_reference_client_of_v1_1_is_served_over_websockets_and_unix_sockets() {
    let Some(folder) = packages_v1() else { return };
    for codec in [Codec::Json, Codec::Binary] {
        let rt = Rt::real();
        let settings = Settings { codec, ..Settings::default() };
        let services = Services::new().with(reference::interop());
        let server = Server::builder(&rt, services).settings(settings).start().expect("threads");
        let mut router = Router::new();
        router.add(river::route("/", server.doorbell().clone()));
        let running = doors(&rt, vec![Listener::bind("127.0.0.1:0").expect("a port")], router);
        let url = format!("ws://{}/", running.addresses()[0]);
        let node = Node::run(folder, &["client.mjs", &url, &codec.to_string(), "over-ws"]);
        check_v1(node, &format!("{codec} over a WebSocket"), "over-ws");

        let place = tempfile::tempdir().expect("a folder");
        let socket = place.path().join("river.sock");
        server.listen_unix(&socket).expect("a socket");
        let url = format!("unix:{}", socket.display());
        let node = Node::run(folder, &["client.mjs", &url, &codec.to_string(), "over-unix"]);
        check_v1(node, &format!("{codec} over a Unix socket"), "over-unix");
    }
}

/// A client says v2.0 and nothing else; a server that wants v1.1 says no in a way that has no code yet, which to a
/// client is no answer: it is told, the call fails, and nothing dials again.
#[test]
fn interop_a_reference_server_of_v1_1_refuses_our_client_which_stops_and_says_so() {
    let Some(folder) = packages_v1() else { return };
    for codec in [Codec::Json, Codec::Binary] {
        let rt = Rt::real();
        let mut node = Node::run(folder, &["server.mjs", &codec.to_string()]);
        let mut lines = node.lines();
        let port = lines.next().expect("it says its port");
        let running = doors(&rt, vec![], Router::new());
        let target = Target::parse(&format!("ws://127.0.0.1:{port}/")).expect("a target");
        let dialer = Arc::new(WebSocket::new(running.wire(), target));
        let told = Arc::new(Lock::new(Vec::new()));
        let listener: Arc<towpath::client::session::Listener> = {
            let told = told.clone();
            Arc::new(move |event| told.lock().push(event.clone()))
        };
        let options = Options { codec, listener: Some(listener), ..Options::default() };
        let client = Client::start(&rt, "rust", "SERVER", dialer, options).expect("threads");
        let failure = client.rpc::<_, Json>("interop", "echo", &1).expect_err("nobody answers");
        assert_eq!(failure.code, "UNEXPECTED_DISCONNECT");
        assert_eq!(
            lines.next().as_deref(),
            Some("handshake_failed: incorrect version (got: v2.0 wanted v1.1)")
        );
        assert!(told.lock().contains(&Event::HandshakeFailed(HandshakeFailure::BadResponse)));
        assert_eq!((client.session(), client.is_connected()), (None, false));
    }
}
