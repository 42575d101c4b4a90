//! Several daemons on one PostgreSQL, as they are run: what one produces is followed live on the others, links
//! between them are cut, workers are killed, replicas restart.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use towpath::codec::ticket::{RelayKey, RelayTicket};
use towpath::state::time::Wall;
use towpath::wire::ClientTls;
use uuid::Uuid;

use crate::cluster;
use crate::flaky::{Fault, Flaky, Weather};
use crate::ports::free_port;
use crate::process::{Daemon, certificate, told, towpath};

/// How long anything may take on a machine where everything else runs too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A replica whose leases outlast any pause of a busy machine.
fn replica(store: &str, more: &[&str]) -> Daemon {
    replica_with(store, more, |_| {})
}

/// A replica whose leases end within seconds of its death.
fn replica_dying_soon(store: &str) -> Daemon {
    replica_with(store, &[], |command| {
        command.env("TOWPATH_STREAMS__LEASE", "3s");
    })
}

fn replica_with(store: &str, more: &[&str], adjust: impl FnOnce(&mut Command)) -> Daemon {
    let mut arguments = vec!["--store", store];
    if !more.contains(&"--relay-listen") {
        arguments.extend(["--relay-listen", "127.0.0.1:0"]);
    }
    arguments.extend(more);
    Daemon::start_with(&arguments, |command| {
        command.env("TOWPATH_STREAMS__RENEW_EVERY", "500ms").env("TOWPATH_SERVER__DRAIN_WINDOW", "500ms");
        adjust(command);
    })
}

fn agent(patience: Option<Duration>) -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(patience).build().into()
}

/// POST with a JSON body and, where a turn is spoken of, its lease.
fn post(daemon: &Daemon, path: &str, lease: Option<&str>, body: &str) -> (u16, Value) {
    let mut request = agent(Some(PATIENCE))
        .post(format!("{}{path}", daemon.url))
        .header("content-type", "application/json");
    if let Some(lease) = lease {
        request = request.header("towpath-lease", lease);
    }
    let mut answer = request.send(body).expect("the daemon answers");
    let text = answer.body_mut().read_to_string().expect("text");
    (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null))
}

fn create(daemon: &Daemon, name: &str) {
    let answer = agent(Some(PATIENCE))
        .put(format!("{}/v1/streams/{name}", daemon.url))
        .header("content-type", "application/json")
        .send("{}")
        .expect("the daemon answers");
    assert_eq!(answer.status().as_u16(), 201);
}

/// Waits until it holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Claims a stream as soon as it may be claimed; the turn and its lease.
fn claim(daemon: &Daemon, name: &str) -> (u64, String) {
    let mut claimed = Value::Null;
    eventually("a claim", || {
        let (status, answer) = post(daemon, &format!("/v1/streams/{name}/turns"), None, "{}");
        claimed = answer;
        status == 201
    });
    (claimed["turn"].as_u64().expect("a turn"), claimed["lease"].as_str().expect("a lease").to_owned())
}

/// Adds parts `from..=to`, each its own number.
fn produce(daemon: &Daemon, name: &str, (turn, lease): &(u64, String), from: u32, to: u32) {
    let lines: String = (from..=to).map(|n| format!("{n}\n")).collect();
    let path = format!("/v1/streams/{name}/turns/{turn}/parts");
    let (status, answer) = post(daemon, &path, Some(lease), &lines);
    assert_eq!((status, &answer["last"]), (200, &json!(to)), "{answer}");
}

fn figure(daemon: &Daemon, name: &str) -> u64 {
    let (_, text) = daemon.get("/metrics");
    let of = |line: &str| Some(line.strip_prefix(name)?.trim().parse::<f64>().ok()? as u64);
    text.lines().find_map(of).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// A viewer: checks as events come that nothing is lost, doubled or stale.
struct Viewer {
    name: String,
    events: Receiver<Value>,
    token: Option<String>,
    turn: u64,
    last: u64,
    parts: usize,
    messages: Vec<u64>,
}

fn open(daemon: &Daemon, name: &str, since: Option<&str>) -> Receiver<Value> {
    let since = since.map_or(String::new(), |token| format!("?since={token}"));
    let url = format!("{}/v1/streams/{name}/events{since}", daemon.url);
    let (tell, told) = sync_channel(100_000);
    std::thread::spawn(move || {
        let Ok(answer) = agent(None).get(url).call() else { return };
        if answer.status().as_u16() != 200 {
            return;
        }
        let lines = BufReader::new(answer.into_body().into_reader()).lines();
        for line in lines.map_while(Result::ok) {
            let Some(data) = line.strip_prefix("data: ").or(line.strip_prefix("data:")) else { continue };
            if tell.send(serde_json::from_str(data).expect("events are JSON")).is_err() {
                return;
            }
        }
    });
    told
}

impl Viewer {
    fn of(daemon: &Daemon, name: &str) -> Viewer {
        let events = open(daemon, name, None);
        let mut viewer = Viewer {
            name: name.to_owned(),
            events,
            token: None,
            turn: 0,
            last: 0,
            parts: 0,
            messages: Vec::new(),
        };
        viewer.until("live", |event| event["t"] == "live");
        viewer
    }

    /// The next event; none once the link has ended.
    fn next(&mut self, what: &str) -> Option<Value> {
        let event = match self.events.recv_timeout(PATIENCE) {
            Ok(event) => event,
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => panic!("waiting for {what}: nothing for {PATIENCE:?}"),
        };
        self.token = event["o"].as_str().map(str::to_owned);
        match event["t"].as_str().expect("a type") {
            "part" => {
                let (turn, n) =
                    (event["turn"].as_u64().expect("a turn"), event["n"].as_u64().expect("a number"));
                let next = if turn == self.turn { self.last + 1 } else { 1 };
                assert!(
                    turn >= self.turn && n == next,
                    "part {turn}.{n} after {}.{}: {event}",
                    self.turn,
                    self.last
                );
                (self.turn, self.last) = (turn, n);
                self.parts += 1;
            }
            "message" => {
                let id = event["d"]["id"].as_u64().expect("an id");
                assert!(self.messages.last().is_none_or(|last| *last < id), "{id} after {:?}", self.messages);
                self.messages.push(id);
                let folded = (event["d"]["turn"].as_u64(), event["d"]["folded_to"].as_u64());
                if let (Some(turn), Some(upto)) = folded
                    && (turn, upto) > (self.turn, self.last)
                {
                    (self.turn, self.last) = (turn, upto);
                }
            }
            "reset" => assert_ne!(event["d"]["reason"], "gap", "nothing was evicted: {event}"),
            _ => {}
        }
        Some(event)
    }

    fn until(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event =
                self.next(what).unwrap_or_else(|| panic!("{}: the link ended before {what}", self.name));
            if fits(&event) {
                return event;
            }
        }
    }

    fn until_part(&mut self, turn: u64, n: u64) {
        self.until(&format!("part {turn}.{n}"), |event| {
            event["t"] == "part" && event["turn"] == turn && event["n"] == n
        });
    }

    fn until_status(&mut self, status: &str) {
        self.until(status, |event| event["t"] == "status" && event["d"]["status"] == status);
    }
}

#[test]
fn real_a_viewer_elsewhere_sees_every_part_once_though_the_link_between_replicas_is_cut() {
    let Some(store) = cluster::database() else { return };
    let at = format!("127.0.0.1:{}", free_port());
    let between = Flaky::start("127.0.0.1:0", &at, 1, Weather::default()).expect("it listens");
    let url = format!("http://{}", between.address());
    let a = replica(&store, &["--relay-listen", &at, "--relay-url", &url]);
    let b = replica(&store, &[]);
    create(&a, "chat/1");
    let mut viewer = Viewer::of(&b, "chat/1");
    let turn = claim(&a, "chat/1");
    produce(&a, "chat/1", &turn, 1, 5);
    viewer.until_part(1, 5);
    for (round, fault) in [Fault::Reset, Fault::Close, Fault::Hole].into_iter().enumerate() {
        between.strike(fault);
        let from = 6 + 5 * round as u32;
        produce(&a, "chat/1", &turn, from, from + 4);
        viewer.until_part(1, u64::from(from) + 4);
    }
    let said = json!({ "role": "assistant", "content": "all of it" }).to_string();
    let (status, _) = post(&a, "/v1/streams/chat/1/turns/1/commit", Some(&turn.1), &said);
    assert_eq!(status, 201);
    viewer.until("the message", |event| event["t"] == "message");
    let (status, _) = post(&a, "/v1/streams/chat/1/turns/1/finish", Some(&turn.1), r#"{"status":"done"}"#);
    assert_eq!(status, 200);
    viewer.until_status("done");
    assert_eq!((viewer.parts, &viewer.messages[..]), (20, &[1][..]));
    assert!(between.counts().1 >= 4, "it was dialed again after each cut");
    assert_eq!(figure(&b, "towpath_relay_gaps_total"), 0);
    assert_eq!(figure(&b, "towpath_relay_parts_total"), 20);
}

#[test]
fn real_replicas_show_certificates_to_each_other_and_let_nobody_else_in() {
    let Some(store) = cluster::database() else { return };
    let start = |at: &str, url: &str| {
        let arguments = ["--store", &store, "--relay-listen", at, "--relay-url", url];
        Daemon::start_with(&arguments, |command| {
            command
                .env("TOWPATH_RELAY__AUTHORITY", certificate("replicas.pem"))
                .env("TOWPATH_RELAY__CERTIFICATE", certificate("replica.pem"))
                .env("TOWPATH_RELAY__KEY", certificate("replica.key"));
        })
    };
    let ports = [free_port(), free_port()];
    let [a, b] = ports.map(|port| start(&format!("127.0.0.1:{port}"), &format!("https://localhost:{port}")));
    create(&a, "chat/1");
    let mut viewer = Viewer::of(&b, "chat/1");
    let turn = claim(&a, "chat/1");
    produce(&a, "chat/1", &turn, 1, 5);
    viewer.until_part(1, 5);
    assert_eq!(figure(&b, "towpath_relay_parts_total"), 5, "they came over the link between replicas");

    // What another caller hears of /healthz there, with TLS and without.
    let health = |tls: Option<ClientTls>| {
        let mut socket = TcpStream::connect(("127.0.0.1", ports[0])).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut heard = String::new();
        match tls {
            None => socket.write_all(request).and_then(|()| socket.read_to_string(&mut heard)),
            Some(tls) => {
                let rustls::Connection::Client(mut client) = tls.connection("localhost").expect("a name")
                else {
                    panic!("not a client")
                };
                let mut stream = rustls::Stream::new(&mut client, &mut socket);
                let mut byte = [0];
                stream.write_all(request).and_then(|()| stream.read_exact(&mut byte)).map(|()| {
                    heard.push(char::from(byte[0]));
                    1
                })
            }
        }
        .map(|_| heard)
    };
    let own = ClientTls::among(
        &certificate("replicas.pem"),
        &certificate("replica.pem"),
        &certificate("replica.key"),
    )
    .expect("ours");
    assert_eq!(health(Some(own)).expect("a replica is heard"), "H");
    let other = ClientTls::among(
        &certificate("replicas.pem"),
        &certificate("localhost.pem"),
        &certificate("localhost.key"),
    );
    assert!(health(Some(other.expect("theirs"))).is_err(), "a certificate of another authority");
    let none = ClientTls::trusting(&certificate("replicas.pem")).expect("an authority");
    assert!(health(Some(none)).is_err(), "no certificate");
    let heard = health(None).unwrap_or_default();
    assert!(!heard.contains("HTTP"), "without TLS there is an alert at most: {heard:?}");
}

#[test]
fn real_two_viewers_share_one_link_and_the_list_shows_who_is_there() {
    let Some(store) = cluster::database() else { return };
    let a = replica(&store, &[]);
    let b = replica(&store, &[]);
    create(&a, "chat/1");
    let turn = claim(&a, "chat/1");
    produce(&a, "chat/1", &turn, 1, 3);
    let (mut one, mut other) = (Viewer::of(&b, "chat/1"), Viewer::of(&b, "chat/1"));
    produce(&a, "chat/1", &turn, 4, 6);
    one.until_part(1, 6);
    other.until_part(1, 6);
    assert_eq!((figure(&b, "towpath_relay_links"), figure(&a, "towpath_relay_serves")), (1, 1));
    assert_eq!(figure(&b, "towpath_relay_parts_total"), 6, "each part crossed once");

    let output = towpath(&["replicas"]).env("TOWPATH_URL", &b.url).output().expect("runs");
    let (exit, text) = told(&output);
    assert_eq!(exit, 0, "{text}");
    assert_eq!(text.lines().filter(|line| line.contains(" alive ")).count(), 2, "{text}");
    let mut seen = Value::Null;
    eventually("each sees the other", || {
        seen = serde_json::from_str(&b.get("/readyz").1).expect("JSON");
        seen["peers"].as_array().is_some_and(|peers| peers.len() == 1 && peers[0]["error"].is_null())
    });
    assert_eq!(seen["ready"], true, "{seen}");
}

#[test]
fn real_a_killed_worker_is_replaced_and_viewers_elsewhere_go_on() {
    let Some(store) = cluster::database() else { return };
    let a = replica_dying_soon(&store);
    let (b, c) = (replica(&store, &[]), replica(&store, &[]));
    create(&a, "chat/1");
    let mut viewers = [Viewer::of(&b, "chat/1"), Viewer::of(&c, "chat/1")];
    let turn = claim(&a, "chat/1");
    produce(&a, "chat/1", &turn, 1, 3);
    viewers.iter_mut().for_each(|viewer| viewer.until_part(1, 3));
    a.signal("KILL");
    viewers.iter_mut().for_each(|viewer| viewer.until_status("pending"));
    let next = claim(&c, "chat/1");
    assert_eq!(next.0, 2);
    produce(&c, "chat/1", &next, 1, 4);
    viewers.iter_mut().for_each(|viewer| viewer.until_part(2, 4));
    let (status, answer) = post(&b, "/v1/streams/chat/1/turns/1/parts", Some(&turn.1), "1\n");
    assert_eq!((status, &answer["code"]), (409, &json!("turn_lost")), "the old holder is fenced: {answer}");
    let (status, _) = post(&c, "/v1/streams/chat/1/turns/2/finish", Some(&next.1), r#"{"status":"done"}"#);
    assert_eq!(status, 200);
    viewers.iter_mut().for_each(|viewer| viewer.until_status("done"));
}

#[test]
fn real_a_turn_is_fed_read_stopped_and_ended_through_replicas_that_do_not_run_it() {
    let Some(store) = cluster::database() else { return };
    let a = replica(&store, &[]);
    let (b, c) = (replica(&store, &[]), replica(&store, &[]));
    create(&a, "chat/1");
    let mut viewer = Viewer::of(&c, "chat/1");
    let turn = claim(&a, "chat/1");
    let path = |what: &str| format!("/v1/streams/chat/1/turns/1{what}");
    produce(&b, "chat/1", &turn, 1, 4);
    viewer.until_part(1, 4);

    let (status, answer) = post(&b, &path("/keepalive"), Some(&turn.1), "");
    assert_eq!((status, &answer["interrupted"]), (200, &json!(false)), "{answer}");
    let said = json!({ "role": "assistant", "content": "half" }).to_string();
    let (status, answer) = post(&b, &path("/commit"), Some(&turn.1), &said);
    assert_eq!((status, &answer["id"]), (201, &json!(1)), "{answer}");
    viewer.until("the message", |event| event["t"] == "message" && event["d"]["folded_to"] == 4);

    let (status, answer) = post(&c, &path("/parts"), Some(&"A".repeat(43)), "5\n");
    assert_eq!((status, &answer["code"]), (409, &json!("turn_lost")), "without the lease nobody: {answer}");

    // A body that stays open at one replica is answered when another is told to stop the turn.
    let mut open = TcpStream::connect(b.address()).expect("it listens");
    open.set_read_timeout(Some(PATIENCE)).expect("a socket");
    write!(
        open,
        "POST {} HTTP/1.1\r\nHost: {}\r\nTowpath-Lease: {}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n5\n\r\n",
        path("/parts"),
        b.address(),
        turn.1
    )
    .expect("written");
    viewer.until_part(1, 5);
    let (status, _) = post(&c, "/v1/streams/chat/1/interrupt", None, "{}");
    assert_eq!(status, 202);
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("\"interrupted\":true") {
        let mut buffer = [0; 4096];
        let n = open.read(&mut buffer).expect("it is answered at once");
        assert!(n > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..n]);
    }
    drop(open);

    let (status, _) = post(&c, &path("/finish"), Some(&turn.1), r#"{"status":"done"}"#);
    assert_eq!(status, 200);
    viewer.until_status("done");
    assert_eq!(viewer.parts, 5);
    let (status, answer) = post(&b, &path("/parts"), Some(&turn.1), "6\n");
    assert_eq!((status, &answer["code"]), (409, &json!("turn_lost")), "it has ended: {answer}");
}

#[test]
fn real_a_turn_is_read_whole_through_a_replica_that_does_not_run_it() {
    let Some(store) = cluster::database() else { return };
    let (a, b) = (replica(&store, &[]), replica(&store, &[]));
    create(&a, "chat/1");
    let turn = claim(&a, "chat/1");
    produce(&a, "chat/1", &turn, 1, 3);
    let url = format!("{}/v1/streams/chat/1/turns/1", b.url);
    let answer = agent(None).get(url).call().expect("the daemon answers");
    assert_eq!(answer.status().as_u16(), 200);
    let mut lines = BufReader::new(answer.into_body().into_reader()).lines();
    let mut next = || lines.next().map(|line| line.expect("text"));
    assert_eq!([next(), next(), next()].map(Option::unwrap_or_default), ["1", "2", "3"]);
    produce(&a, "chat/1", &turn, 4, 4);
    assert_eq!(next().as_deref(), Some("4"), "it goes on while the turn does");
    let (status, _) = post(&a, "/v1/streams/chat/1/turns/1/finish", Some(&turn.1), r#"{"status":"done"}"#);
    assert_eq!(status, 200);
    assert_eq!(next(), None, "and ends with it");
}

#[test]
fn real_a_turn_that_has_just_ended_is_read_through_another_replica() {
    let Some(store) = cluster::database() else { return };
    let (a, b) = (replica(&store, &[]), replica(&store, &[]));
    create(&a, "chat/1");
    let turn = claim(&a, "chat/1");
    produce(&a, "chat/1", &turn, 1, 3);
    let (status, _) = post(&a, "/v1/streams/chat/1/turns/1/finish", Some(&turn.1), r#"{"status":"done"}"#);
    assert_eq!(status, 200);
    assert_eq!(b.get("/v1/streams/chat/1/turns/1"), (200, "1\n2\n3\n".to_owned()));
    assert_eq!(b.get("/v1/streams/chat/1/turns/2").0, 404, "of a turn that never was there is nothing");
}

#[test]
fn real_replicas_restart_one_after_another_and_no_follow_fails() {
    let Some(store) = cluster::database() else { return };
    let mut fleet = vec![replica(&store, &[]), replica(&store, &[])];
    create(&fleet[0], "chat/1");
    let mut viewer = Viewer::of(&fleet[1], "chat/1");
    let mut appended = 0;
    for round in 0..2 {
        let turn = claim(&fleet[0], "chat/1");
        produce(&fleet[0], "chat/1", &turn, 1, 3);
        viewer.until_part(turn.0, 3);
        // The worker goes, and hands back what it runs.
        let old = fleet.remove(0);
        old.signal("TERM");
        let (exit, text) = old.wait();
        assert_eq!(exit, 0, "{text}");
        fleet.push(replica(&store, &[]));
        viewer.until_status("pending");
        let said = json!({ "role": "user", "content": round }).to_string();
        let (status, _) = post(&fleet[0], "/v1/streams/chat/1/messages", None, &said);
        assert_eq!(status, 201);
        appended += 1;
        viewer.until("the message", |event| event["t"] == "message");
        // The viewer's own replica is next: it is told, and comes back elsewhere with its token.
        let own = fleet.remove(0);
        own.signal("TERM");
        let mut drained = false;
        while let Some(event) = viewer.next("the end of the link") {
            drained |= event["t"] == "drain";
        }
        assert!(drained, "it was told before the link went");
        let (exit, text) = own.wait();
        assert_eq!(exit, 0, "{text}");
        let mut hello = None;
        while hello.is_none() {
            viewer.events = open(&fleet[0], "chat/1", viewer.token.clone().as_deref());
            hello = viewer.next("hello");
        }
        viewer.until("live", |event| event["t"] == "live");
        fleet.push(replica(&store, &[]));
        fleet.reverse();
    }
    assert_eq!(viewer.messages.len(), appended);
}

/// Asks for an upgrade on the listener for replicas; the status and what was said.
fn knock(at: &str, path: &str, ticket: Option<&str>) -> String {
    let mut socket = TcpStream::connect(at).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let ticket = ticket.map_or(String::new(), |ticket| format!("towpath-ticket: {ticket}\r\n"));
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{ticket}\r\n"
    )
    .expect("written");
    let mut answer = [0; 1024];
    let n = socket.read(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

#[test]
fn real_only_replicas_come_in_through_their_door_each_ticket_once() {
    let Some(store) = cluster::database() else { return };
    let at = format!("127.0.0.1:{}", free_port());
    let a = replica(&store, &["--relay-listen", &at]);
    create(&a, "chat/1");
    let id: Uuid = serde_json::from_str::<Value>(&a.get("/v1/streams/chat/1/state").1).expect("JSON")["id"]
        .as_str()
        .and_then(|id| id.parse().ok())
        .expect("an id");
    let listed: Value = serde_json::from_str(&a.get("/v1/replicas").1).expect("JSON");
    let me: Uuid = listed["replicas"][0]["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    let mut database = postgres::Client::connect(&store, postgres::NoTls).expect("it runs");
    let secret: Vec<u8> = database.query_one("SELECT secret FROM relay_keys", &[]).expect("a key").get(0);
    let key = RelayKey::new(secret.try_into().expect("32 bytes"));
    let in_a_while = Wall(jiff::Timestamp::now().as_microsecond() + 20_000_000);
    let mut nonce = 0;
    let mut ticket = |change: &dyn Fn(&mut RelayTicket)| {
        nonce += 1;
        let from = Uuid::from_u128(7);
        let mut ticket = RelayTicket { expires: in_a_while, nonce: [nonce; 16], stream: id, from, to: me };
        change(&mut ticket);
        key.sign(&ticket)
    };
    for path in [format!("/relay/v1/streams/{id}"), format!("/relay/v1/turns/{id}")] {
        assert!(knock(&at, &path, None).starts_with("HTTP/1.1 401"), "no ticket");
        let good = ticket(&|_| {});
        assert!(knock(&at, &path, Some(&good)).starts_with("HTTP/1.1 101"), "a good one");
        let again = knock(&at, &path, Some(&good));
        assert!(again.starts_with("HTTP/1.1 401") && again.contains("used before"), "{again}");
        for (why, bad) in [
            ("another stream", ticket(&|ticket| ticket.stream = Uuid::from_u128(9))),
            ("another replica", ticket(&|ticket| ticket.to = Uuid::from_u128(9))),
            ("over", ticket(&|ticket| ticket.expires = Wall(1))),
            (
                "forged",
                RelayKey::new([1; 32]).sign(&RelayTicket {
                    expires: in_a_while,
                    nonce: [200; 16],
                    stream: id,
                    from: me,
                    to: me,
                }),
            ),
            ("no ticket at all", "rubbish".to_owned()),
        ] {
            assert!(knock(&at, &path, Some(&bad)).starts_with("HTTP/1.1 401"), "{why}");
        }
        // Neither door leads to what is behind the other.
        assert!(knock(a.address(), &path, Some(&ticket(&|_| {}))).starts_with("HTTP/1.1 404"));
    }
    assert!(knock(&at, "/v1/streams/chat/1/state", None).starts_with("HTTP/1.1 404"));
}
