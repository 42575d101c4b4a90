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
use towpath::state::value::Value;
use towpath::wire::{IoThreads, Limits, Listener, Running, Target};

use super::*;

/// The folder with the packages in it, installed once; none if they cannot be.
fn packages() -> Option<&'static Path> {
    static INSTALLED: OnceLock<Option<PathBuf>> = OnceLock::new();
    let install = || {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/river");
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
        #[allow(clippy::print_stderr, reason = "whoever runs the tests must see what was not tested")]
        {
            eprintln!(
                "SKIPPED: @replit/river could not be installed, so nothing was run against it:\n{failed}"
            );
        }
        None
    };
    INSTALLED.get_or_init(install).as_deref()
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
