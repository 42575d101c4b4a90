//! Streams as a user of the command line and of curl meets them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use crate::ports::free_port;
use crate::process::{Daemon, run, told, towpath};

/// Runs a command against a daemon; it must work.
fn with(daemon: &Daemon, arguments: &[&str]) -> String {
    let (exit, text) = told(&towpath(arguments).env("TOWPATH_URL", &daemon.url).output().expect("runs"));
    assert_eq!(exit, 0, "{arguments:?}: {text}");
    text
}

/// A command that goes on.
fn spawn(daemon: &Daemon, arguments: &[&str]) -> Child {
    let mut command = towpath(arguments);
    command
        .env("TOWPATH_URL", &daemon.url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("it starts")
}

#[test]
fn what_is_appended_is_followed_and_listed() {
    let daemon = Daemon::start(&[]);
    with(&daemon, &["stream", "create", "chat/1", "--label", "team=a"]);
    assert_eq!(with(&daemon, &["stream", "append", "chat/1", "hello"]), "1\n");
    let listed = with(&daemon, &["stream", "ls", "--label", "team=a"]);
    assert!(listed.lines().nth(1).is_some_and(|line| line.starts_with("chat/1 ")), "{listed}");
    assert!(with(&daemon, &["stream", "show", "chat/1"]).contains("\"history_pos\""));
    assert_eq!(with(&daemon, &["follow", "chat/1", "--until-done"]), "user: hello\n");
    with(&daemon, &["stream", "rm", "chat/1"]);
    let (exit, text) =
        told(&towpath(&["stream", "show", "chat/1"]).env("TOWPATH_URL", &daemon.url).output().expect("runs"));
    assert_eq!(exit, 1, "{text}");
    assert!(
        text.contains("[not_found]") || text.contains("[no_stream]") || text.contains("[gone]"),
        "{text}"
    );
}

#[test]
fn a_follower_sees_parts_as_they_come_and_the_message_once() {
    let daemon = Daemon::start(&[]);
    with(&daemon, &["stream", "create", "chat/2"]);
    let mut follower = spawn(&daemon, &["follow", "chat/2", "--json"]);
    let mut events = BufReader::new(follower.stdout.take().expect("piped")).lines();
    let mut next = |kind: &str| loop {
        let line = events.next().expect("it goes on").expect("text");
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        if event["t"] == kind {
            return event;
        }
    };
    next("live");
    let mut producer = spawn(&daemon, &["publish", "chat/2", "--turn"]);
    let mut says = producer.stdin.take().expect("piped");
    for (n, word) in ["one", "two"].iter().enumerate() {
        writeln!(says, "{word}").expect("it listens");
        // The part is here while the producer is still writing.
        let part = next("part");
        assert_eq!(part["n"], n + 1);
        assert_eq!(part["d"], format!("{word}\n"));
    }
    drop(says);
    let message = next("message");
    assert_eq!(message["d"]["content"], "one\ntwo\n");
    assert_eq!(next("commit")["d"]["turn"], 1);
    assert!(producer.wait().expect("it ends").success());
    follower.kill().expect("it goes");
    follower.wait().expect("it went");
}

#[test]
fn what_was_appended_is_there_after_a_restart() {
    let mut daemon = Daemon::start(&[]);
    with(&daemon, &["stream", "create", "chat/3"]);
    with(&daemon, &["stream", "append", "chat/3", "kept"]);
    let data = std::mem::replace(&mut daemon.data, tempfile::tempdir().expect("a folder"));
    daemon.signal("TERM");
    assert_eq!(daemon.wait().0, 0);
    let daemon = Daemon::start_with(&[], |command| {
        command.arg("--data").arg(data.path());
    });
    assert_eq!(with(&daemon, &["follow", "chat/3", "--until-done"]), "user: kept\n");
}

#[test]
fn a_follower_goes_on_over_a_restart_without_a_message_missing_or_twice() {
    // It is started again at its address, and nobody else gets that meanwhile.
    let address = format!("127.0.0.1:{}", free_port());
    let mut daemon = Daemon::start(&["--listen", &address]);
    with(&daemon, &["stream", "create", "chat/4"]);
    with(&daemon, &["stream", "append", "chat/4", "before"]);
    let mut follower = spawn(&daemon, &["follow", "chat/4"]);
    let mut lines = BufReader::new(follower.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("it goes on").expect("text");
    assert_eq!(next(), "user: before");
    let data = std::mem::replace(&mut daemon.data, tempfile::tempdir().expect("a folder"));
    daemon.signal("TERM");
    assert_eq!(daemon.wait().0, 0);
    let daemon = Daemon::start_with(&[], |command| {
        command.args(["--listen", &address, "--data"]).arg(data.path());
    });
    with(&daemon, &["stream", "append", "chat/4", "after"]);
    assert_eq!(next(), "user: after");
    follower.kill().expect("it goes");
    follower.wait().expect("it went");
}

#[test]
fn lines_become_messages_of_a_stream_that_is_made_for_them() {
    let daemon = Daemon::start(&[]);
    let mut publisher = spawn(&daemon, &["publish", "notes/1"]);
    publisher.stdin.take().expect("piped").write_all(b"a\nb\n").expect("it listens");
    assert!(publisher.wait().expect("it ends").success());
    assert_eq!(with(&daemon, &["follow", "notes/1", "--until-done"]), "user: a\nuser: b\n");
}

#[test]
fn a_stream_that_is_not_there_is_told_at_once() {
    let daemon = Daemon::start(&[]);
    let (exit, text) = told(&run(&["follow", "nowhere", "--url", &daemon.url]));
    assert_eq!(exit, 1, "{text}");
}
