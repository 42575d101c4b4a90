//! Where the connection log goes besides the database, when it does not go: the built daemon with backends
//! that fail and hang, and an engine with one that panics.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use serde_json::{Value, json};
use towpath::engine::backends::{Backend, LinesBackend};
use towpath::rt::Wall;
use towpath::state::connection::Row;
use towpath::{ConnectionKind, ConnectionStatus, Engine, Record};
use uuid::Uuid;

use crate::own_links::{daemon, post, rows_until};
use crate::ports::free_port;
use crate::process::{Daemon, PATIENCE};

const RECORD: &str = r#"{"type":"ssh","status":"connected"}"#;

/// What `/readyz` says once it says what is waited for; it must be ready all the time.
pub(crate) fn reasons_until(daemon: &Daemon, is: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let patience = Instant::now() + PATIENCE;
    loop {
        let (status, text) = daemon.get("/readyz");
        let told: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((status, &told["ready"]), (200, &json!(true)), "backends hinder nothing: {told}");
        let reasons = told["reasons"].as_array().expect("reasons");
        if is(reasons) {
            return reasons.clone();
        }
        assert!(Instant::now() < patience, "it is never said: {told}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn backends_that_fail_are_told_of_in_one_sentence_and_hinder_nothing() {
    let url = format!("http://127.0.0.1:{}/hooks/opensesame", free_port());
    let settings = [
        ("TOWPATH_CONNECTIONS__LINES", "/dev/full"),
        ("TOWPATH_CONNECTIONS__TO_LOG", "true"),
        ("TOWPATH_CONNECTIONS__WEBHOOK", url.as_str()),
    ];
    let daemon = daemon(&[], &settings);
    assert_eq!(post(&daemon, RECORD), 202);
    let row = rows_until(&daemon, "type=ssh", |rows| rows.len() == 1).remove(0);
    daemon.wait_for_log(row["id"].as_str().expect("an id"));
    let told = reasons_until(&daemon, |reasons| {
        reasons.iter().any(|why| why.as_str().is_some_and(|why| why.starts_with("2 of 3 backends")))
    });
    let told = told[0].as_str().expect("a sentence");
    assert!(told.contains("lines: writing /dev/full: No space left"), "{told}");
    assert!(told.contains("webhook: posting to http://127.0.0.1: "), "{told}");
    assert!(!told.contains("opensesame"), "what opens the hook is nobody's business: {told}");
    let (_, figures) = daemon.get("/metrics");
    for name in ["lines", "webhook"] {
        let line = format!("towpath_backend_failures_total{{backend=\"{name}\"}} 1");
        assert!(figures.contains(&line), "{figures}");
    }
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("opensesame"), "{log}");
}

#[test]
fn a_backend_that_works_again_is_not_told_of_any_more() {
    let daemon = daemon(&[], &[("TOWPATH_CONNECTIONS__LINES", "later/log.jsonl")]);
    assert_eq!(post(&daemon, RECORD), 202);
    reasons_until(&daemon, |reasons| {
        reasons.first().and_then(Value::as_str).is_some_and(|why| why.contains("lines: opening"))
    });
    std::fs::create_dir(daemon.data.path().join("later")).expect("made");
    assert_eq!(post(&daemon, RECORD), 202);
    reasons_until(&daemon, <[Value]>::is_empty);
    let written = std::fs::read_to_string(daemon.data.path().join("later/log.jsonl")).expect("written");
    assert_eq!(written.lines().count(), 1, "what was refused is not written later");
}

#[test]
fn while_a_web_hook_hangs_the_daemon_is_well() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/", silent.local_addr().expect("bound"));
    // Two tries are longer than a room may be busy without being taken for stuck.
    let settings =
        [("TOWPATH_CONNECTIONS__WEBHOOK", url.as_str()), ("TOWPATH_CONNECTIONS__WEBHOOK_TIMEOUT", "4s")];
    let daemon = daemon(&[], &settings);
    assert_eq!(post(&daemon, RECORD), 202);
    let patience = Instant::now() + 2 * PATIENCE;
    while !daemon.get("/metrics").1.contains(r#"towpath_backend_failures_total{backend="webhook"} 1"#) {
        assert_eq!(daemon.get("/healthz").0, 200, "somebody else is slow, not this daemon");
        assert!(Instant::now() < patience, "it never gives up");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let told = reasons_until(&daemon, |reasons| !reasons.is_empty());
    assert!(told[0].as_str().is_some_and(|why| why.contains("timeout")), "{told:?}");
    drop(silent);
}

/// Panics, or counts what it was given.
struct Own(Option<Arc<AtomicU64>>);

impl Backend for Own {
    fn name(&self) -> &'static str {
        if self.0.is_some() { "counts" } else { "panics" }
    }
    fn write(&mut self, rows: &[Row]) -> towpath::Result<()> {
        let seen = self.0.as_ref().expect("a backend of somebody else's");
        seen.fetch_add(rows.len() as u64, Relaxed);
        Ok(())
    }
}

#[test]
fn an_engine_outlives_a_backend_that_panics() {
    let seen = Arc::new(AtomicU64::new(0));
    let engine =
        Engine::builder().backend(Own(None)).backend(Own(Some(seen.clone()))).start().expect("it starts");
    let (rt, log) = (engine.rt(), engine.connections());
    for n in 1..=3 {
        let record = Record::new(rt.uuid_v7(), rt.wall(), ConnectionKind::Ssh, ConnectionStatus::Connected);
        log.record(record).expect("there is room");
        log.flush().expect("it runs");
        let patience = Instant::now() + PATIENCE;
        while seen.load(Relaxed) < n || log.backend_trouble().is_none() {
            assert!(Instant::now() < patience, "the other one has {}", seen.load(Relaxed));
            std::thread::yield_now();
        }
    }
    let trouble = log.backend_trouble().expect("one fails");
    assert_eq!(trouble, "1 of 2 backends besides the database fail: panics: it panicked");
    assert_eq!(log.account().stored, 3);
}

#[test]
fn half_a_line_is_ended_before_the_next_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("log.jsonl");
    std::fs::write(&path, "{\"id\":\"ha").expect("written");
    let mut backend = LinesBackend::new(&path, 1 << 20, 1);
    let record = Record::new(Uuid::nil(), Wall(1), ConnectionKind::Ssh, ConnectionStatus::Connected);
    backend.write(&[Row::from(record)]).expect("there is room");
    backend.close().expect("closed");
    let text = std::fs::read_to_string(&path).expect("written");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "{\"id\":\"ha"));
    assert!(serde_json::from_str::<Value>(lines[1]).is_ok(), "{text}");
}
