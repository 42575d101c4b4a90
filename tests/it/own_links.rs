//! The daemon's own links in its connection log, and where the log goes besides the database: the built
//! program, as an operator sees it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use towpath::client::session::{Client, Options, WebSocket};
use towpath::front::Router;
use towpath::rt::Rt;
use towpath::wire::{IoThreads, Limits, Target};

use crate::backends::reasons_until;
use crate::process::{Daemon, PATIENCE, certificate, towpath};

/// A daemon that writes what it records soon.
pub(crate) fn daemon(arguments: &[&str], settings: &[(&str, &str)]) -> Daemon {
    Daemon::start_with(arguments, |command| {
        command.env("TOWPATH_CONNECTIONS__INTERVAL", "50ms");
        for (name, value) in settings {
            command.env(name, value);
        }
    })
}

/// The rows of a query, once there are some of which `is` holds.
pub(crate) fn rows_until(daemon: &Daemon, query: &str, is: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let patience = Instant::now() + PATIENCE;
    loop {
        let (status, text) = daemon.get(&format!("/v1/connections?{query}"));
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let rows = answer["connections"].as_array().cloned().unwrap_or_default();
        if status == 200 && is(&rows) {
            return rows;
        }
        assert!(Instant::now() < patience, "it never happened: {query}: {status} {text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn has_ended(rows: &[Value]) -> bool {
    rows.iter().any(|row| row["status"] == "disconnected")
}

pub(crate) fn put(daemon: &Daemon, path: &str) {
    let url = format!("{}{path}", daemon.url);
    let answer = ureq::put(url).header("content-type", "application/json").send("{}").expect("it is made");
    assert_eq!(answer.status(), 201);
}

pub(crate) fn post(daemon: &Daemon, body: &str) -> u16 {
    let url = format!("{}/v1/connections", daemon.url);
    let answer = ureq::post(url).header("content-type", "application/json").send(body).expect("it is taken");
    answer.status().as_u16()
}

/// A follow over a bare socket, read up to its first event.
pub(crate) fn follow(daemon: &Daemon, stream: &str) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(daemon.address()).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let host = daemon.address();
    let head =
        format!("GET /v1/streams/{stream}/events HTTP/1.1\r\nHost: {host}\r\nUser-Agent: a test\r\n\r\n");
    socket.write_all(head.as_bytes()).expect("it reads");
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    while !line.starts_with("event: live") {
        line.clear();
        assert_ne!(reader.read_line(&mut line).expect("the follow goes on"), 0, "the follow ended");
    }
    reader
}

#[test]
fn a_follower_is_recorded_when_it_comes_and_when_and_why_it_goes() {
    let daemon = daemon(&[], &[]);
    put(&daemon, "/v1/streams/chat/7");
    let first = follow(&daemon, "chat/7");
    let rows = rows_until(&daemon, "type=stream&status=ongoing", |rows| rows.len() == 1);
    let row = &rows[0];
    assert_eq!((&row["ip"], &row["user_agent"]), (&json!("127.0.0.1"), &json!("a test")), "{row}");
    assert_eq!(row["labels"], json!({"stream": "chat/7", "via": "sse", "principal": "anonymous"}));
    assert_eq!(row["disconnect_time"], Value::Null);
    drop(first);
    let rows = rows_until(&daemon, "type=stream&label.stream=chat/7", has_ended);
    let reason = rows[0]["disconnect_reason"].as_str().expect("a reason");
    assert!(reason.starts_with("the peer") || reason.contains("reset"), "{reason}");
    assert_eq!(rows.len(), 1, "one row, not two: {rows:?}");
    assert_eq!(rows[0]["connection_id"], row["connection_id"]);

    put(&daemon, "/v1/streams/short");
    let mut second = follow(&daemon, "short");
    let deleted = ureq::delete(format!("{}/v1/streams/short", daemon.url)).call().expect("it is deleted");
    assert_eq!(deleted.status(), 204);
    let mut rest = String::new();
    second.read_to_string(&mut rest).expect("the follow ends");
    let rows = rows_until(&daemon, "type=stream&label.stream=short", has_ended);
    assert_eq!(rows[0]["disconnect_reason"], "deleted");
}

#[test]
fn a_session_is_recorded_with_its_client_and_its_end() {
    let daemon = daemon(&[], &[]);
    let rt = Rt::real();
    let io = IoThreads::new(&rt, 1, None).expect("threads");
    let wire = io.start(Limits::default(), vec![], Arc::new(Router::new())).expect("threads");
    let target = Target::parse(&format!("ws://{}/river", daemon.address())).expect("a target");
    let dialer = Arc::new(WebSocket::new(wire.wire(), target));
    let client = Client::start(&rt, "laptop", "SERVER", dialer, Options::default()).expect("threads");
    client.rpc::<_, towpath::state::value::Value>("admin", "ping", &json!({})).expect("it answers");
    let rows = rows_until(&daemon, "type=session&status=ongoing", |rows| rows.len() == 1);
    assert_eq!(rows[0]["labels"]["client"], "laptop", "{rows:?}");
    assert_eq!(rows[0]["ip"], "127.0.0.1");
    drop(client);
    drop(wire);
    let rows = rows_until(&daemon, "type=session", has_ended);
    let reason = rows[0]["disconnect_reason"].as_str().expect("a reason");
    assert!(["goodbye", "grace_over"].contains(&reason), "{reason}");
}

#[test]
fn a_pipe_is_recorded_with_its_target_and_its_end() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = listener.local_addr().expect("bound").to_string();
    let daemon = daemon(&["--allow", &target], &[]);
    let mut command = towpath(&["connect", &daemon.url, &target]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("towpath starts");
    let (mut accepted, _) = listener.accept().expect("the daemon dials it");
    let query = format!("type=pipe&label.target={target}");
    rows_until(&daemon, &format!("{query}&status=ongoing"), |rows| rows.len() == 1);
    drop(child.stdin.take());
    let mut rest = Vec::new();
    accepted.read_to_end(&mut rest).expect("the end comes through");
    drop(accepted);
    assert!(child.wait().expect("it ends").success());
    let rows = rows_until(&daemon, &query, has_ended);
    assert_eq!((rows.len(), &rows[0]["disconnect_reason"]), (1, &json!("eof")), "{rows:?}");
}

#[test]
fn nothing_is_recorded_where_the_operator_wants_no_own_links() {
    let daemon = daemon(&[], &[("TOWPATH_CONNECTIONS__OWN", "false")]);
    put(&daemon, "/v1/streams/chat");
    drop(follow(&daemon, "chat"));
    assert_eq!(post(&daemon, r#"{"type":"ssh","status":"connected"}"#), 202);
    let rows = rows_until(&daemon, "", |rows| !rows.is_empty());
    assert_eq!((rows.len(), &rows[0]["type"]), (1, &json!("ssh")), "{rows:?}");
}

trait Both: Read + Write {}
impl<T: Read + Write> Both for T {}

/// Takes posts and hands their bodies on.
fn hook(tls: Option<Arc<ServerConfig>>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let url = format!("http{}://localhost:{port}/hook/secret", if tls.is_some() { "s" } else { "" });
    let (tell, told) = sync_channel(1_000);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let stream: Box<dyn Both> = match &tls {
                None => Box::new(stream),
                Some(tls) => {
                    let connection = ServerConnection::new(tls.clone()).expect("a configuration that works");
                    Box::new(StreamOwned::new(connection, stream))
                }
            };
            let mut reader = BufReader::new(stream);
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
                line.clear();
            }
            let mut body = vec![0; length];
            // Whoever does not trust our certificate leaves without having said anything.
            if length == 0 || reader.read_exact(&mut body).is_err() {
                continue;
            }
            let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
            reader.get_mut().write_all(answer).expect("it reads the answer");
            if tell.send(String::from_utf8(body).expect("text")).is_err() {
                return;
            }
        }
    });
    (url, told)
}

#[test]
fn the_log_goes_to_a_file_to_the_daemons_log_and_to_a_web_hook_besides() {
    let (url, posts) = hook(None);
    let settings = [
        ("TOWPATH_CONNECTIONS__LINES", "log.jsonl"),
        ("TOWPATH_CONNECTIONS__TO_LOG", "true"),
        ("TOWPATH_CONNECTIONS__WEBHOOK", url.as_str()),
    ];
    let daemon = daemon(&[], &settings);
    assert_eq!(post(&daemon, r#"{"type":"ssh","status":"connected","agent_name":"main"}"#), 202);
    let row = rows_until(&daemon, "type=ssh", |rows| rows.len() == 1).remove(0);
    let posted: Value =
        serde_json::from_str(posts.recv_timeout(PATIENCE).expect("it is posted").trim()).expect("one line");
    assert_eq!(posted["id"], row["id"]);
    daemon.wait_for_log(row["id"].as_str().expect("an id"));
    let path = daemon.data.path().join("log.jsonl");
    let patience = Instant::now() + PATIENCE;
    let written = loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.ends_with('\n') {
            break text;
        }
        assert!(Instant::now() < patience, "nothing is in {}", path.display());
        std::thread::sleep(Duration::from_millis(20));
    };
    let line: Value = serde_json::from_str(written.trim()).expect("one line");
    assert_eq!((&line["id"], &line["agent_name"]), (&row["id"], &json!("main")));
    daemon.signal("USR1");
    let dump = daemon.wait_for_log("webhook");
    assert!(dump.contains("/[redacted]") && !dump.contains("secret"), "{dump}");
}

#[test]
fn a_web_hook_over_tls_is_posted_to_where_its_certificate_is_trusted() {
    let chain = CertificateDer::pem_file_iter(certificate("localhost.pem")).expect("a chain");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(certificate("localhost.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they belong together");
    let (url, posts) = hook(Some(Arc::new(tls)));
    let authority = certificate("authority.pem");
    let mut settings = vec![("TOWPATH_CONNECTIONS__WEBHOOK", url.as_str())];

    let stranger = daemon(&[], &settings);
    assert_eq!(post(&stranger, r#"{"type":"ssh","status":"connected"}"#), 202);
    let told = reasons_until(&stranger, |reasons| !reasons.is_empty());
    let told = told[0].as_str().expect("a sentence");
    assert!(
        told.contains("webhook: posting to https://localhost: ") && told.contains("UnknownIssuer"),
        "{told}"
    );
    assert!(posts.try_recv().is_err(), "nothing is said to somebody who is not trusted");

    settings.push(("TOWPATH_TLS__TRUST", authority.to_str().expect("UTF-8")));
    let daemon = daemon(&[], &settings);
    assert_eq!(post(&daemon, r#"{"type":"ssh","status":"connected"}"#), 202);
    let row = rows_until(&daemon, "type=ssh", |rows| rows.len() == 1).remove(0);
    let posted = posts.recv_timeout(PATIENCE).expect("it is posted");
    let posted: Value = serde_json::from_str(posted.trim()).expect("one line");
    assert_eq!(posted["id"], row["id"]);
}

#[test]
fn a_web_hook_that_nobody_answers_holds_up_nothing() {
    // Taken, and never answered: the slowest there is.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/", silent.local_addr().expect("bound"));
    let settings = [
        ("TOWPATH_CONNECTIONS__LINES", "log.jsonl"),
        ("TOWPATH_CONNECTIONS__WEBHOOK", url.as_str()),
        ("TOWPATH_CONNECTIONS__WEBHOOK_TIMEOUT", "1s"),
        ("TOWPATH_CONNECTIONS__DURABILITY", "spool-first"),
    ];
    let daemon = daemon(&[], &settings);
    for n in 0..20 {
        let body = json!({"type": "workspace_app", "status": "connected", "slug_or_port": n.to_string()});
        assert_eq!(post(&daemon, &body.to_string()), 202);
    }
    rows_until(&daemon, "type=workspace_app", |rows| rows.len() == 20);
    let path = daemon.data.path().join("log.jsonl");
    let patience = Instant::now() + PATIENCE;
    while std::fs::read_to_string(&path).unwrap_or_default().lines().count() < 20 {
        assert!(Instant::now() < patience, "the file waits for the web hook");
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.signal("TERM");
    let (code, told) = daemon.wait();
    assert_eq!(code, 0, "a stop waits for nobody who does not answer: {told}");
    drop(silent);
}

#[test]
fn damage_to_the_spool_shows_in_readiness_and_hinders_nothing() {
    use towpath::spool::{File, Item, Spool as _, WhenFull};
    use towpath::state::connection::{Kind, Record, Row, Status};
    let data = tempfile::tempdir().expect("a temporary folder");
    let rt = Rt::real();
    let limits = towpath::spool::Limits { max_bytes: 1 << 20, min_free: 0, when_full: WhenFull::Refuse };
    let (mut spool, _) = File::open(data.path(), limits, rt.wall()).expect("a new spool");
    let items: Vec<Item> = (0..50u8)
        .map(|n| {
            let mut record = Record::new(rt.uuid_v7(), rt.wall(), Kind::WorkspaceApp, Status::Connected);
            record.slug_or_port = Some(format!("needle-{n}-needle"));
            let payload = serde_json::to_vec(&Row::from(record)).expect("a row is JSON");
            Item { key: [n; 16], payload }
        })
        .collect();
    spool.append(&items, rt.wall()).expect("there is room");
    drop(spool);
    for name in ["spool.db", "spool.db-wal"] {
        let path = data.path().join(name);
        let Ok(mut bytes) = std::fs::read(&path) else { continue };
        let needle = b"needle-7-needle";
        let places: Vec<usize> = (0..bytes.len().saturating_sub(needle.len()))
            .filter(|at| bytes[*at..].starts_with(needle))
            .collect();
        for at in places {
            bytes[at] ^= 1;
        }
        std::fs::write(&path, bytes).expect("it can be written");
    }
    let damaged = crate::fault_receipts::start(data.path());
    let (status, text) = crate::fault_receipts::look(&damaged.url, "/readyz");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &told["ready"]), (200, &json!(true)), "{told}");
    assert!(told["reasons"][0].as_str().is_some_and(|why| why.starts_with("1 records were lost")), "{told}");
    let patience = Instant::now() + PATIENCE;
    loop {
        let (_, text) = crate::fault_receipts::look(&damaged.url, "/v1/connections?limit=100");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        if answer["connections"].as_array().map(Vec::len) == Some(49) {
            break;
        }
        assert!(Instant::now() < patience, "the others are not sent: {answer}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
