//! Followers that do not read, over real sockets: they are cut with a reason, come back with their token and have
//! everything, and nobody else waits for them. (Followers that are channels: `src/engine/streams/tests.rs`.)

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::Daemon;

const PATIENCE: Duration = Duration::from_secs(60);
/// More than fits into a queue and what kernels hold on loopback.
const MESSAGES: u64 = 60;
const BYTES: usize = 512 * 1024;

fn request(daemon: &Daemon, head: &str) -> TcpStream {
    let mut socket = TcpStream::connect(daemon.address()).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    write!(socket, "{head}\r\nHost: {}\r\n\r\n", daemon.address()).expect("written");
    socket
}

fn follow(daemon: &Daemon, upgrade: bool, since: &str) -> TcpStream {
    let upgrade = match upgrade {
        true => {
            "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        }
        false => "",
    };
    request(daemon, &format!("GET /v1/streams/chat/1/events?since={since} HTTP/1.1{upgrade}"))
}

/// Reads until `text` has come, or the end; everything read is kept.
fn read_until(socket: &mut TcpStream, kept: &mut Vec<u8>, text: &str) -> bool {
    let mut buffer = vec![0; 1 << 20];
    let mut looked = 0;
    loop {
        // Anew from a little before where it ended, since the text may lie across two reads.
        let from = kept.len().min(looked).saturating_sub(text.len());
        if String::from_utf8_lossy(&kept[from..]).contains(text) {
            return true;
        }
        looked = kept.len();
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return false,
            Ok(n) => kept.extend_from_slice(&buffer[..n]),
        }
    }
}

fn append(daemon: &Daemon, n: u64) {
    let body = json!({ "role": "user", "content": format!("{n}:{}", "x".repeat(BYTES)) }).to_string();
    let mut socket = request(
        daemon,
        &format!(
            "POST /v1/streams/chat/1/messages HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}",
            body.len()
        ),
    );
    socket.write_all(body.as_bytes()).expect("written");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

/// The ids of the messages in what was read, and the last token among whole events.
fn shown(read: &[u8]) -> (Vec<u64>, Option<String>) {
    let text = String::from_utf8_lossy(read);
    let (mut ids, mut token) = (Vec::new(), None);
    for event in text.split("{\"t\":\"").skip(1) {
        let whole = format!("{{\"t\":\"{event}");
        // What is behind an event's end belongs to the framing.
        let mut values = serde_json::Deserializer::from_str(&whole).into_iter::<Value>();
        let Some(Ok(event)) = values.next() else { continue };
        if event["t"] == "message" {
            ids.push(event["d"]["id"].as_u64().expect("an id"));
        }
        token = event["o"].as_str().map(str::to_owned).or(token);
    }
    (ids, token)
}

/// One that stalls beside one that reads; `upgrade` is whether both are WebSockets.
fn one_stalls(upgrade: bool) {
    let daemon = Daemon::start(&[]);
    let mut made =
        request(&daemon, "PUT /v1/streams/chat/1 HTTP/1.1\r\nConnection: close\r\nContent-Length: 0");
    let mut answer = String::new();
    made.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");

    let (mut stalled, mut healthy) = (follow(&daemon, upgrade, "-1"), follow(&daemon, upgrade, "-1"));
    let mut kept = Vec::new();
    assert!(read_until(&mut stalled, &mut kept, "\"t\":\"live\""), "it follows");
    let (tell, told) = sync_channel(MESSAGES as usize);
    let reader = std::thread::spawn(move || {
        for n in 1..=MESSAGES {
            let came = read_until(&mut healthy, &mut Vec::new(), &format!("\"content\":\"{n}:"));
            assert!(came, "a slow one slows nobody else");
            tell.send(n).expect("somebody waits for it");
        }
    });
    for n in 1..=MESSAGES {
        append(&daemon, n);
        assert_eq!(told.recv_timeout(PATIENCE), Ok(n), "the one that reads has it");
    }
    reader.join().expect("it read everything");
    let deadline = Instant::now() + PATIENCE;
    while !daemon.get("/metrics").1.contains("towpath_links_cut_slow_total 1") {
        assert!(Instant::now() < deadline, "the stalled one was not cut");
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon.wait_for_log("reason=slow");

    // What had left is read; then the link is at its end, and the token goes on from there.
    assert!(!read_until(&mut stalled, &mut kept, "never sent"), "it was cut");
    let (mut ids, token) = shown(&kept);
    assert!((ids.len() as u64) < MESSAGES, "it did not get everything");
    let mut back = follow(&daemon, upgrade, &token.expect("it had begun"));
    let mut rest = Vec::new();
    assert!(read_until(&mut back, &mut rest, "\"t\":\"live\""), "it follows again");
    let hello = String::from_utf8_lossy(&rest).into_owned();
    assert!(hello.contains("\"previous\":\"slow\""), "it is told why its last link ended: {hello:.600}");
    ids.extend(shown(&rest).0);
    assert_eq!(ids, (1..=MESSAGES).collect::<Vec<_>>(), "each once, in order");
}

#[test]
fn real_a_stalled_sse_follower_is_cut_and_its_token_makes_it_whole() {
    one_stalls(false);
}

#[test]
fn real_a_stalled_websocket_follower_is_cut_and_its_token_makes_it_whole() {
    one_stalls(true);
}
