//! Every limit of a daemon, set by its configuration: what a client is told at it, and where it is counted.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::asking::{answer, ask, connect, figure, head, once, read_until};
use crate::process::Daemon;

fn with(settings: &[(&str, &str)]) -> Daemon {
    Daemon::start_with(&[], |command| {
        for (name, value) in settings {
            command.env(format!("TOWPATH_LIMITS__{}", name.to_uppercase()), value);
        }
    })
}

fn code(body: &str) -> String {
    let problem: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    problem["code"].as_str().expect("a code").to_owned()
}

#[test]
fn a_head_a_target_a_body_and_a_message_over_their_limits_are_told_so() {
    let daemon = with(&[("head", "2KiB"), ("target", "256B"), ("body", "512B"), ("message", "8KiB")]);
    assert_eq!(once(&daemon, "PUT /v1/streams/a", "", "").0, 201);
    let long = "x".repeat(3_000);
    assert_eq!(once(&daemon, "GET /healthz", &format!("X: {long}\r\n"), "").0, 431);
    assert_eq!(once(&daemon, &format!("GET /{}", &long[..300]), "", "").0, 414);
    let body = json!({"labels": {"k": &long[..600]}}).to_string();
    let (status, told) = once(&daemon, "PUT /v1/streams/b", "", &body);
    assert_eq!((status, code(&told).as_str()), (413, "too_large"));
    let say = |length| json!({"role": "u", "content": "x".repeat(length)}).to_string();
    assert_eq!(once(&daemon, "POST /v1/streams/a/messages", "", &say(7_000)).0, 201);
    for length in [8_300, 20_000] {
        let (status, told) = once(&daemon, "POST /v1/streams/a/messages", "", &say(length));
        assert_eq!((status, code(&told).as_str()), (413, "too_large"), "{length}");
    }
    assert!(figure(&daemon, "towpath_requests_refused_total") >= 2, "what was refused before its route");
}

#[test]
fn a_turn_and_a_queue_are_full_when_they_are() {
    let daemon = with(&[("turn", "4KiB"), ("inputs", "2")]);
    assert_eq!(once(&daemon, "PUT /v1/streams/a", "", "").0, 201);
    let input = r#"{"role":"u","content":"hello"}"#;
    let queued: Vec<u16> = (0..3).map(|_| once(&daemon, "POST /v1/streams/a/queue", "", input).0).collect();
    assert_eq!(queued, [201, 201, 429]);
    let (status, claimed) = once(&daemon, "POST /v1/streams/a/turns", "", "");
    assert_eq!(status, 201, "{claimed}");
    let claimed: Value = serde_json::from_str(&claimed).expect("JSON");
    let lease = format!("Towpath-Lease: {}\r\n", claimed["lease"].as_str().expect("a lease"));
    let line = format!("POST /v1/streams/a/turns/{}/parts", claimed["turn"]);
    let part = json!("x".repeat(3_000)).to_string();
    assert_eq!(once(&daemon, &line, &lease, &part).0, 200);
    let (status, told) = once(&daemon, &line, &lease, &part);
    assert_eq!((status, code(&told).as_str()), (413, "turn_full"));
}

fn websocket(daemon: &Daemon, path: &str) -> WebSocket<TcpStream> {
    tungstenite::client(format!("ws://{}{path}", daemon.address()), connect(daemon)).expect("a WebSocket").0
}

#[test]
fn a_socket_follows_so_many_streams_and_takes_messages_so_long() {
    let daemon = with(&[("follows", "1"), ("message", "2KiB")]);
    ["a", "b"]
        .iter()
        .for_each(|name| assert_eq!(once(&daemon, &format!("PUT /v1/streams/{name}"), "", "").0, 201));
    let mut socket = websocket(&daemon, "/v1/ws");
    let mut follow = |id: u64, name: &str| {
        let ask = json!({"id": id, "op": "follow", "s": name});
        socket.send(Message::text(ask.to_string())).expect("sent");
        loop {
            let text = socket.read().expect("an answer").into_text().expect("text").to_string();
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            if answer["re"] == id {
                return answer;
            }
        }
    };
    assert!(follow(1, "a")["ok"].is_object());
    assert_eq!(follow(2, "b")["error"]["code"], "full");
    // Its bound is that of a message and what stands around it.
    socket.send(Message::text("x".repeat(100_000))).expect("sent");
    let close = loop {
        if let Message::Close(close) = socket.read().expect("it closes as it should") {
            break close.expect("with a code");
        }
    };
    assert_eq!(u16::from(close.code), 1009);
}

#[test]
fn who_is_slow_or_idle_is_told_or_let_go_and_who_listens_hears_a_heartbeat() {
    let daemon = with(&[
        ("head_wait", "300ms"),
        ("body_wait", "300ms"),
        ("idle_wait", "500ms"),
        ("heartbeat", "200ms"),
    ]);
    assert_eq!(once(&daemon, "PUT /v1/streams/a", "", "").0, 201);
    let mut slow = connect(&daemon);
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: local").expect("sent");
    let mut stalled = connect(&daemon);
    let begun = b"POST /v1/streams/a/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n{";
    stalled.write_all(begun).expect("sent");
    let mut idle = connect(&daemon);
    for socket in [&mut slow, &mut stalled] {
        let (status, _, told) = answer(socket);
        assert_eq!((status, code(&told).as_str()), (408, "slow_request"));
    }
    assert_eq!(idle.read(&mut [0]).expect("closed, not reset"), 0);
    let mut events = connect(&daemon);
    events.write_all(b"GET /v1/streams/a/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    read_until(&mut events, "event: live");
    read_until(&mut events, "\n:\n\n");
    read_until(&mut events, "\n:\n\n");
}

#[test]
fn a_stream_has_so_many_followers_and_a_socket_is_heard_at_its_pace() {
    let daemon = with(&[("followers", "1"), ("messages_per_second", "20")]);
    assert_eq!(once(&daemon, "PUT /v1/streams/a", "", "").0, 201);
    let follow = || {
        let mut socket = connect(&daemon);
        socket.write_all(b"GET /v1/streams/a/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
        socket
    };
    let mut first = follow();
    read_until(&mut first, "event: live");
    let told = read_until(&mut follow(), "0\r\n\r\n");
    assert!(told.contains(r#"{"reason":"full"}"#), "{told}");
    assert_eq!(figure(&daemon, "towpath_followers_refused_total"), 1);

    let mut socket = websocket(&daemon, "/v1/ws");
    let begun = std::time::Instant::now();
    for id in 0..60 {
        socket.send(Message::text(json!({"id": id, "op": "unfollow", "s": "a"}).to_string())).expect("sent");
        if id % 20 == 19 {
            (0..20).for_each(|_| drop(socket.read().expect("each is answered")));
        }
    }
    // A second's worth at once, then twenty a second.
    assert!(begun.elapsed() >= std::time::Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(figure(&daemon, "towpath_links_slowed_total") >= 1);
}

#[test]
fn a_caller_has_so_many_live_reads_and_another_has_its_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let (mut lines, mut bearers) = (String::new(), Vec::new());
    for name in ["one", "other"] {
        let made = crate::process::run(&["token", "new", name, "--role", "admin"]);
        lines += &String::from_utf8_lossy(&made.stderr);
        bearers.push(format!("Authorization: Bearer {}\r\n", String::from_utf8_lossy(&made.stdout).trim()));
    }
    std::fs::write(&file, lines).expect("written");
    let daemon = Daemon::start_with(&["--token-file", file.to_str().expect("UTF-8")], |command| {
        command.env("TOWPATH_LIMITS__SESSIONS", "1");
    });
    assert_eq!(once(&daemon, "PUT /v1/streams/a", &bearers[0], "").0, 201);
    let follow = |bearer: &str| {
        let mut socket = connect(&daemon);
        let asked = format!("GET /v1/streams/a/events HTTP/1.1\r\nHost: localhost\r\n{bearer}\r\n");
        socket.write_all(asked.as_bytes()).expect("sent");
        let head = head(&mut socket);
        (head, socket)
    };
    let (told, first) = follow(&bearers[0]);
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    let (told, mut refused) = follow(&bearers[0]);
    assert!(told.starts_with("HTTP/1.1 429 ") && told.contains("retry-after: 1\r\n"), "{told}");
    assert!(read_until(&mut refused, "}").contains("too_many_sessions"));
    assert!(follow(&bearers[1]).0.starts_with("HTTP/1.1 200 "));
    let (_, figures) = once(&daemon, "GET /metrics", &bearers[0], "");
    assert!(figures.contains("towpath_sessions_refused_total 1\n"), "{figures}");
    drop(first);
    let deadline = std::time::Instant::now() + crate::process::PATIENCE;
    while !follow(&bearers[0]).0.starts_with("HTTP/1.1 200 ") {
        assert!(std::time::Instant::now() < deadline, "its place never came back");
    }
}

#[test]
fn there_are_so_many_links_and_the_next_is_turned_away_and_counted() {
    let daemon = with(&[("links", "5")]);
    let mut kept: Vec<TcpStream> = (0..4).map(|_| connect(&daemon)).collect();
    for socket in &mut kept {
        assert_eq!(ask(socket, "GET /healthz", "", "").0, 200);
    }
    let mut last = connect(&daemon);
    assert_eq!(ask(&mut last, "GET /healthz", "", "").0, 200);
    let refused = head(&mut connect(&daemon));
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1\r\n"), "{refused}");
    let asked = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    last.write_all(asked).expect("sent");
    let (_, _, figures) = answer(&mut last);
    let counted = figures.lines().find_map(|line| line.strip_prefix("towpath_links_turned_away_total "));
    assert_eq!(counted, Some("1"), "{figures}");
}

#[test]
fn connections_are_accepted_at_their_rate() {
    let daemon = with(&[("accepts_per_second", "20")]);
    let begun = std::time::Instant::now();
    // The first few are its burst; what is behind it waits in the kernel's queue and is answered all the same.
    for _ in 0..12 {
        assert_eq!(once(&daemon, "GET /healthz", "", "").0, 200);
    }
    assert!(begun.elapsed() >= std::time::Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[test]
fn a_reader_that_takes_nothing_is_cut_at_its_bound_and_counted() {
    let daemon = with(&[("queue", "128KiB"), ("write_wait", "60s")]);
    assert_eq!(once(&daemon, "PUT /v1/streams/a", "", "").0, 201);
    let mut stalled = connect(&daemon);
    stalled.write_all(b"GET /v1/streams/a/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    read_until(&mut stalled, "event: live");
    let message = json!({"role": "u", "content": "x".repeat(100_000)}).to_string();
    let mut writer = connect(&daemon);
    // The kernel's buffers first, whose size is the kernel's affair, and then the bound.
    for written in 0.. {
        assert!(written < 1_000, "it was never cut");
        assert_eq!(ask(&mut writer, "POST /v1/streams/a/messages", "", &message).0, 201);
        if written % 10 == 9 && figure(&daemon, "towpath_links_cut_slow_total") > 0 {
            break;
        }
    }
    assert_eq!(daemon.get("/healthz").0, 200);
}
