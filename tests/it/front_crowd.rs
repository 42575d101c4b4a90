//! A daemon with many links: who is slow harms nobody, threads do not grow with links, a stop tells everybody.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::asking::{ask, connect, once, read_until};
use crate::process::{Daemon, PATIENCE};

/// This process holds the other ends, and a usual shell gives it few descriptors.
pub(crate) fn many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("a process may raise its limit to what it is allowed");
}

fn follow(daemon: &Daemon) -> TcpStream {
    let mut socket = connect(daemon);
    socket.write_all(b"GET /v1/streams/a/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    socket
}

#[test]
fn slow_heads_and_stalled_readers_keep_nobody_waiting() {
    many_descriptors();
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_LIMITS__QUEUE", "64KiB").env("TOWPATH_LIMITS__HEAD_WAIT", "60s");
    });
    assert_eq!(once(&daemon, "PUT /v1/streams/a", "", "").0, 201);
    let mut slow: Vec<TcpStream> = (0..1_000)
        .map(|_| {
            let mut socket = connect(&daemon);
            socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").expect("sent");
            socket
        })
        .collect();
    let stalled: Vec<TcpStream> = (0..200).map(|_| follow(&daemon)).collect();
    let message = json!({"role": "u", "content": "x".repeat(64 * 1024)}).to_string();
    let mut writer = connect(&daemon);
    let mut taken: Vec<Duration> = (0..100)
        .map(|n| {
            if n % 4 == 0 {
                assert_eq!(ask(&mut writer, "POST /v1/streams/a/messages", "", &message).0, 201);
            }
            let begun = Instant::now();
            assert_eq!(once(&daemon, "GET /healthz", "", "").0, 200);
            begun.elapsed()
        })
        .collect();
    taken.sort();
    // 50 ms on a quiet machine. A test shares its own with others: nobody waited for a slow head, which would
    // have been longer than there is patience for an answer.
    println!("health with 1,000 slow heads and 200 stalled readers: p99 {:?}", taken[98]);
    for socket in &mut slow {
        socket.write_all(b"1\r\n\r\n").expect("a slow head may still end");
    }
    assert!(slow.iter_mut().all(|socket| crate::asking::answer(socket).0 == 200));
    drop(stalled);
}

/// How many threads of each name, without the numbers behind.
fn threads(daemon: &Daemon) -> std::collections::BTreeMap<String, usize> {
    let mut threads = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs").flatten() {
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
        *threads.entry(name).or_default() += 1;
    }
    threads
}

#[test]
fn threads_do_not_grow_with_links() {
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_SERVER__IO_THREADS", "3");
    });
    assert_eq!(once(&daemon, "PUT /v1/streams/a", "", "").0, 201);
    let before = threads(&daemon);
    let mut links: Vec<TcpStream> = (0..300).map(|_| follow(&daemon)).collect();
    links.iter_mut().for_each(|link| _ = read_until(link, "event: live"));
    // By number: one that has not run yet bears the name of who made it. One that ends is there for a moment more.
    let all = |threads: &std::collections::BTreeMap<String, usize>| threads.values().sum::<usize>();
    let patience = Instant::now() + PATIENCE;
    let after = loop {
        let after = threads(&daemon);
        if all(&after) <= all(&before) {
            break after;
        }
        assert!(Instant::now() < patience, "a link is no thread: {after:?} now, {before:?} before");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(after.get("io"), Some(&3), "{after:?}");
    const POOLS: [&str; 7] = ["io", "reader", "writer", "handler", "dial", "backend", "streams"];
    let pooled = |name: &str| POOLS.iter().any(|pool| name.starts_with(pool));
    let alone: usize = after.iter().filter(|(name, _)| !pooled(name)).map(|(_, count)| count).sum();
    assert!(alone <= 16, "{alone} threads besides the pools: {after:?}");
}

#[test]
fn sigterm_with_a_thousand_links_tells_all_of_them_and_exits_with_0() {
    many_descriptors();
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_SERVER__DRAIN_WINDOW", "2s");
    });
    assert_eq!(once(&daemon, "PUT /v1/streams/a", "", "").0, 201);
    let mut links: Vec<TcpStream> = (0..1_000).map(|_| follow(&daemon)).collect();
    links.iter_mut().for_each(|link| _ = read_until(link, "event: live"));
    let begun = Instant::now();
    daemon.signal("TERM");
    let mut closed = Vec::new();
    for link in &mut links {
        let mut rest = String::new();
        link.read_to_string(&mut rest).expect("closed, not reset");
        assert!(rest.contains("event: drain"), "it is told: {rest}");
        assert!(rest.contains("retry: ") && rest.ends_with("\r\n0\r\n\r\n"), "and whole: {rest}");
        closed.push(rest);
    }
    let retries: std::collections::BTreeSet<&str> =
        closed.iter().filter_map(|rest| rest.lines().find(|line| line.starts_with("retry: "))).collect();
    assert!(retries.len() > 100, "they do not all come back at once: {} different", retries.len());
    let (exit, text) = daemon.wait();
    assert_eq!(exit, 0, "{text}");
    assert!(begun.elapsed() < Duration::from_secs(12).max(PATIENCE), "{:?}", begun.elapsed());
}

#[test]
fn secrets_appear_in_no_log_no_dump_no_figure_and_no_error_even_at_trace_level() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let made = crate::process::run(&["token", "new", "ops", "--role", "admin"]);
    let token = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    std::fs::write(&file, made.stderr).expect("written");
    let daemon = Daemon::start(&["--log", "trace", "--token-file", file.to_str().expect("UTF-8")]);
    let canary = |name: &str| format!("canary-{name}-of-more-than-thirty-two-characters");
    let mut told = String::new();
    let good = format!("Authorization: Bearer {token}\r\n");
    let mut say = |line: &str, headers: &str, body: &str| {
        let (status, body) = once(&daemon, line, headers, body);
        told += &body;
        (status, body)
    };
    assert_eq!(say("PUT /v1/streams/a", &good, "").0, 201);
    assert_eq!(say("GET /metrics", &format!("Authorization: Bearer {}\r\n", canary("bearer")), "").0, 401);
    assert_eq!(say("GET /metrics", &format!("Authorization: Basic {}\r\n", canary("basic")), "").0, 401);
    assert_eq!(say("GET /metrics", &format!("Cookie: towpath_token={}\r\n", canary("cookie")), "").0, 401);
    assert_eq!(say(&format!("GET /metrics?ticket={}", canary("ticket")), "", "").0, 401);
    assert_eq!(say(&format!("GET /nowhere?token={}", canary("query")), &good, "").0, 404);
    say(&format!("GET /v1/streams?{}=1", canary("parameter")), &good, "");
    let carried = format!("towpath.v1, towpath.bearer.{}", canary("carrier"));
    say("GET /v1/ws", &format!("Sec-WebSocket-Protocol: {carried}\r\n"), "");
    let (_, claimed) = once(&daemon, "POST /v1/streams/a/turns", &good, "");
    let claimed: serde_json::Value = serde_json::from_str(&claimed).expect("JSON");
    let lease = claimed["lease"].as_str().expect("a lease").to_owned();
    let wrong = format!("{good}Towpath-Lease: {}\r\n", canary("lease"));
    say("POST /v1/streams/a/turns/1/finish", &wrong, r#"{"status":"done"}"#);
    let held = format!("{good}Towpath-Lease: {lease}\r\n");
    assert_eq!(say("POST /v1/streams/a/turns/1/finish", &held, r#"{"status":"done"}"#).0, 200);
    let (_, ticket) = once(&daemon, "POST /v1/ticket", &good, "");
    let ticket: serde_json::Value = serde_json::from_str(&ticket).expect("JSON");
    let ticket = ticket["ticket"].as_str().expect("a ticket").to_owned();
    let (_, figures) = say(&format!("GET /metrics?ticket={ticket}"), "", "");
    assert!(figures.ends_with("# EOF\n"), "a ticket opens what its holder may see");
    // A malformed head is quoted nowhere.
    let mut broken = connect(&daemon);
    broken.write_all(format!("GET /{} HTTP/9\r\n\r\n", canary("line")).as_bytes()).expect("sent");
    broken.read_to_string(&mut told).expect("an answer");
    // Unknown settings, then a dump, then the end.
    daemon.signal("USR1");
    let mut log = daemon.log_until("\"event\":\"dump\"").join("\n");
    daemon.signal("TERM");
    let (exit, rest) = daemon.wait();
    assert_eq!(exit, 0);
    log += &rest;
    assert!(log.contains("log.level"), "the dump is in it: {log}");
    for (what, text) in [("an answer", &told), ("the log and the dump", &log)] {
        // The name of a query's parameter is told to who sent it: it is what was wrong.
        let text = text.replace(&canary("parameter"), "");
        for secret in ["canary-", token.as_str(), lease.as_str(), ticket.as_str()] {
            assert!(!text.contains(secret), "{secret} in {what}: {text}");
        }
    }
    assert!(!log.contains("canary-"), "not even a parameter's name is logged");
}
