//! Looking after a store: backup and restore, the move to PostgreSQL, reading the configuration again.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::process::{Daemon, PATIENCE, run, told, towpath};

const AGENT: &str = "00000000-0000-4000-8000-000000000001";

fn with(daemon: &Daemon, arguments: &[&str]) -> String {
    let (exit, text) = told(&towpath(arguments).env("TOWPATH_URL", &daemon.url).output().expect("runs"));
    assert_eq!(exit, 0, "{arguments:?}: {text}");
    text
}

/// The events of a stream up to `live`, as JSON lines.
fn events(daemon: &Daemon, stream: &str, since: &str) -> Vec<serde_json::Value> {
    let text = with(daemon, &["follow", stream, "--json", "--until-done", "--since", since]);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// Something in every part of the store.
fn fill(daemon: &Daemon) {
    with(daemon, &["stream", "create", "chat/1", "--label", "team=a"]);
    with(daemon, &["stream", "append", "chat/1", "hello"]);
    with(daemon, &["metadata", "set", AGENT, "cpu=12%"]);
    let record = r#"{"type":"ssh","status":"connected","ip":"192.0.2.7","agent_name":"main"}"#;
    let agent: ureq::Agent = ureq::Agent::new_with_defaults();
    let answer = agent
        .post(format!("{}/v1/connections", daemon.url))
        .header("content-type", "application/json")
        .header("prefer", "durable")
        .send(record)
        .expect("the daemon answers");
    assert_eq!(answer.status(), 202);
    // What was accepted is in memory or in the spool until the next flush.
    shows(daemon, &["metadata", "get", AGENT], "12%");
    shows(daemon, &["connections", "ls"], "192.0.2.7");
}

/// Waits until a command prints `text`.
fn shows(daemon: &Daemon, arguments: &[&str], text: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !with(daemon, arguments).contains(text) {
        assert!(Instant::now() < deadline, "{arguments:?} does not print {text}");
    }
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_backup_of_a_running_daemon_is_restored_as_another_epoch() {
    let daemon = Daemon::start(&[]);
    fill(&daemon);
    let before = events(&daemon, "chat/1", "-1");
    let token = before.last().expect("live")["o"].as_str().expect("a token").to_owned();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("b.tar");
    let data = text_of(daemon.data.path());
    let (exit, said) = told(&run(&["backup", text_of(&file), "--data", data]));
    assert_eq!(exit, 0, "{said}");
    assert!(said.contains("spool.db, streams.db, agents.db, connections.db"), "{said}");
    // A second one replaces nothing.
    let (exit, said) = told(&run(&["backup", text_of(&file), "--data", data]));
    assert_eq!(exit, 73, "{said}");
    // What came after the backup never was, for whoever reads the restored one.
    with(&daemon, &["stream", "append", "chat/1", "later"]);
    drop(daemon);

    let restored = tempfile::tempdir().expect("a temporary folder");
    let unpacked =
        Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(restored.path()).status().expect("tar runs");
    assert!(unpacked.success());
    let daemon = Daemon::start_in(restored, &[], |_| {});
    let after = events(&daemon, "chat/1", &token);
    let kinds: Vec<&str> = after.iter().filter_map(|event| event["t"].as_str()).collect();
    let reset = after.iter().find(|event| event["t"] == "reset");
    assert_eq!(reset.map(|event| &event["d"]["reason"]), Some(&"epoch".into()), "{kinds:?}");
    let said: Vec<&serde_json::Value> =
        after.iter().filter(|event| event["t"] == "message").map(|event| &event["d"]["content"]).collect();
    assert_eq!(said, ["hello"]);
    assert!(with(&daemon, &["metadata", "get", AGENT]).contains("12%"));
    assert!(with(&daemon, &["connections", "ls"]).contains("192.0.2.7"));
    // The epoch begins once, not at every start.
    let token = after.last().expect("live")["o"].as_str().expect("a token").to_owned();
    let daemon = Daemon::start_in(daemon.stop(), &[], |_| {});
    assert!(events(&daemon, "chat/1", &token).iter().all(|event| event["t"] != "reset"));
}

#[test]
fn a_backup_of_nothing_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("b.tar");
    let (exit, said) = told(&run(&["backup", text_of(&file), "--data", text_of(folder.path())]));
    assert_eq!(exit, 1, "{said}");
    assert!(said.contains("holds no SQLite store") && said.contains("--data"), "{said}");
    assert!(!file.exists());
}

#[test]
fn reload_says_what_needs_a_restart_and_refuses_what_has_no_meaning() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("t.toml");
    std::fs::write(&file, "").expect("written");
    let daemon = Daemon::start(&["--config", text_of(&file)]);
    let reload = || told(&towpath(&["reload", "--url", &daemon.url]).output().expect("runs"));
    assert_eq!(reload(), (0, "the configuration was read again\n".to_owned()));
    std::fs::write(&file, "[store]\nreaders = 3\n").expect("written");
    assert_eq!(reload().1, "the configuration was read again; these need a restart: store.readers\n");
    std::fs::write(&file, "[log]\nlvl = 1\n").expect("written");
    let (exit, said) = reload();
    assert_eq!(exit, 78, "{said}");
    assert!(said.contains("unknown key `log.lvl`") && said.contains("keeps what it had"), "{said}");
}

#[cfg(feature = "postgres")]
#[test]
fn a_store_that_outgrew_its_machine_moves_whole_and_its_tokens_stay_good() {
    let Some(to) = crate::cluster::database() else { return };
    let daemon = Daemon::start(&[]);
    fill(&daemon);
    with(&daemon, &["stream", "create", "notes/1"]);
    let queued: ureq::Agent = ureq::Agent::new_with_defaults();
    queued
        .post(format!("{}/v1/streams/notes/1/queue", daemon.url))
        .header("content-type", "application/json")
        .send(r#"{"role":"user","content":{"b":1,"a":[null,"\u00e9"]}}"#)
        .expect("queued");
    let before = events(&daemon, "chat/1", "-1");
    let token = before.last().expect("live")["o"].as_str().expect("a token").to_owned();
    let from = text_of(daemon.data.path()).to_owned();
    // Not under a daemon's feet.
    let (exit, said) = told(&run(&["move", "--from", &from, "--to", &to]));
    assert_eq!(exit, 1, "{said}");
    assert!(said.contains("another towpath"), "{said}");
    let data = daemon.stop();
    let output = run(&["move", "--from", &from, "--to", &to, "--json"]);
    let (exit, said) = told(&output);
    assert_eq!(exit, 0, "{said}");
    let told_of: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = |table: &str| {
        let tables = told_of["tables"].as_array().expect("tables");
        tables.iter().find(|row| row["table"] == table).and_then(|row| row["rows"].as_u64())
    };
    assert_eq!(
        [rows("store"), rows("streams"), rows("messages"), rows("queue"), rows("metadata")],
        [Some(1), Some(2), Some(1), Some(1), Some(1)],
        "{said}"
    );
    // The record that was sent, and the follower of this test.
    assert_eq!(rows("connections"), Some(2), "{said}");

    // The same data directory, for its spool, over the new store.
    let daemon = Daemon::start_in(data, &["--store", &to], |_| {});
    let after = events(&daemon, "chat/1", &token);
    assert!(after.iter().all(|event| event["t"] != "reset" && event["t"] != "message"), "{after:?}");
    let again = events(&daemon, "chat/1", "-1");
    let messages = |events: &[serde_json::Value]| -> Vec<serde_json::Value> {
        events.iter().filter(|event| event["t"] == "message").cloned().collect()
    };
    assert_eq!(messages(&again), messages(&before), "with the same ids and tokens");
    assert_eq!(with(&daemon, &["stream", "append", "chat/1", "and on"]), "2\n");
    assert!(with(&daemon, &["metadata", "get", AGENT]).contains("12%"));
    assert!(with(&daemon, &["connections", "ls"]).contains("192.0.2.7"));
    assert!(with(&daemon, &["stream", "show", "notes/1"]).contains("é"));

    // A database that was restored begins its epoch by the statements that the manual gives.
    let token = again.last().expect("live")["o"].as_str().expect("a token").to_owned();
    let data = daemon.stop();
    let manual = include_str!("../../docs/operations.md");
    let block =
        manual.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of SQL");
    let mut client = postgres::Client::connect(&to, postgres::NoTls).expect("it runs");
    client.batch_execute(block).expect("the manual's SQL");
    let daemon = Daemon::start_in(data, &["--store", &to], |_| {});
    let after = events(&daemon, "chat/1", &token);
    let reset = after.iter().find(|event| event["t"] == "reset");
    assert_eq!(reset.map(|event| &event["d"]["reason"]), Some(&"epoch".into()), "{after:?}");

    // The old rows are not served by mistake, and are not moved twice.
    let data = daemon.stop();
    let (exit, said) = told(&run(&["serve", "--listen", "127.0.0.1:0", "--data", text_of(data.path())]));
    assert_ne!(exit, 0);
    assert!(said.contains("were moved to postgres://127.0.0.1"), "{said}");
    std::fs::remove_file(data.path().join("moved")).expect("a note");
    let (exit, said) = told(&run(&["move", "--from", &from, "--to", &to]));
    assert_eq!(exit, 1, "{said}");
    assert!(said.contains("must be an empty database"), "{said}");
}
