//! Credentials that are taken back: what was opened with them ends, what others opened goes on.

use std::net::TcpStream;

use serde_json::{Value, json};
use towpath::Rt;
use towpath::client::session::Client;
use towpath::front::{Role, Secret, Tokens, new_token};
use tungstenite::{Message, WebSocket};

use crate::asking::{connect, once, read_until};
use crate::process::{Daemon, PATIENCE};
use crate::sessions::daemon::{client_at, showing, wire};

/// Somebody with a token, and what they have open.
struct Caller {
    token: Secret,
    line: String,
}

impl Caller {
    fn new(rt: &Rt, name: &str) -> Caller {
        let token = new_token(rt);
        let line = Tokens::line(name, &token, &[Role::Producer, Role::Follower], &[]).expect("a line");
        Caller { token, line }
    }

    fn header(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.token.reveal())
    }

    fn events(&self, daemon: &Daemon) -> TcpStream {
        use std::io::Write;
        let mut socket = connect(daemon);
        let head = format!("GET /v1/streams/a/events HTTP/1.1\r\nHost: localhost\r\n{}\r\n", self.header());
        socket.write_all(head.as_bytes()).expect("sent");
        read_until(&mut socket, "event: live");
        socket
    }

    fn socket(&self, daemon: &Daemon) -> WebSocket<TcpStream> {
        use tungstenite::client::IntoClientRequest;
        let url = format!("ws://{}/v1/ws", daemon.address());
        let mut request = url.into_client_request().expect("a request");
        let value = format!("Bearer {}", self.token.reveal()).parse().expect("a header");
        request.headers_mut().insert("authorization", value);
        tungstenite::client(request, connect(daemon)).expect("it is let in").0
    }
}

/// Who the daemon says this session's caller is, or the code it refuses with.
fn who(client: &Client) -> Result<String, String> {
    let told = client.rpc::<_, Value>("admin", "whoami", &json!({})).map_err(|failure| failure.code)?;
    Ok(told["name"].as_str().expect("a name").to_owned())
}

#[test]
fn what_was_opened_with_a_token_ends_when_a_reload_finds_it_gone() {
    let rt = Rt::real();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let (gone, stays) = (Caller::new(&rt, "gone"), Caller::new(&rt, "stays"));
    std::fs::write(&file, format!("{}\n{}\n", gone.line, stays.line)).expect("written");
    let daemon = Daemon::start(&["--token-file", file.to_str().expect("UTF-8")]);
    assert_eq!(once(&daemon, "PUT /v1/streams/a", &stays.header(), "").0, 201);

    let (mut ends, mut goes_on) = (gone.events(&daemon), stays.events(&daemon));
    let (mut closed, mut open) = (gone.socket(&daemon), stays.socket(&daemon));
    let wire = wire(&rt);
    let refused = client_at(&rt, "gone", &wire, daemon.address(), showing(&gone.token));
    let served = client_at(&rt, "stays", &wire, daemon.address(), showing(&stays.token));
    assert_eq!((who(&refused), who(&served)), (Ok("gone".into()), Ok("stays".into())));
    let session = served.session();
    let (status, ticket) = once(&daemon, "POST /v1/ticket", &gone.header(), "");
    assert_eq!(status, 201, "{ticket}");
    let ticket: Value = serde_json::from_str(&ticket).expect("JSON");

    // The same tokens again, in other words: nobody notices.
    std::fs::write(&file, format!("# who may\n{}\n\n{}\n", stays.line, gone.line)).expect("written");
    daemon.signal("HUP");
    daemon.wait_for_log("read again");
    let say = |n: u32| {
        let message = json!({ "role": "user", "content": n }).to_string();
        assert_eq!(once(&daemon, "POST /v1/streams/a/messages", &stays.header(), &message).0, 201);
    };
    say(1);
    read_until(&mut ends, "event: message");
    read_until(&mut goes_on, "event: message");
    assert_eq!(who(&refused), Ok("gone".into()));

    std::fs::write(&file, format!("{}\n", stays.line)).expect("written");
    daemon.signal("HUP");
    let last = read_until(&mut ends, "0\r\n\r\n");
    assert!(last.contains("event: closed") && last.contains(r#"{"reason":"auth"}"#), "{last}");
    let close = loop {
        if let Message::Close(close) = closed.read().expect("it is closed as it should be") {
            break close.expect("with a code");
        }
    };
    assert_eq!((u16::from(close.code), close.reason.as_str()), (4401, "auth"));
    // The session is asked for a token, shows the same, and is ended; no other one is begun for it.
    let deadline = rt.now() + PATIENCE;
    while who(&refused).is_ok() {
        assert!(rt.now() < deadline, "its session is served still");
    }
    let path = format!("GET /v1/streams/a/state?ticket={}", ticket["ticket"].as_str().expect("a ticket"));
    assert_eq!(once(&daemon, &path, "", "").0, 401, "a ticket is worth what its holder is");
    assert_eq!(once(&daemon, "GET /v1/streams/a/state", &gone.header(), "").0, 401);

    say(2);
    let came = read_until(&mut goes_on, r#""content":2"#);
    assert!(!came.contains("event: closed"), "{came}");
    open.send(Message::text(json!({"id": 1, "op": "follow", "s": "a"}).to_string())).expect("sent");
    open.read().expect("an answer");
    assert_eq!(who(&served), Ok("stays".into()));
    assert_eq!(served.session(), session, "its session was not ended");
}

#[test]
fn narrower_scopes_hold_for_what_is_open_too() {
    let rt = Rt::real();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let caller = Caller::new(&rt, "reader");
    std::fs::write(&file, format!("{}\n", caller.line)).expect("written");
    let daemon = Daemon::start(&["--token-file", file.to_str().expect("UTF-8")]);
    assert_eq!(once(&daemon, "PUT /v1/streams/a", &caller.header(), "").0, 201);
    let mut events = caller.events(&daemon);
    std::fs::write(&file, format!("{} b/*=follow\n", caller.line)).expect("written");
    daemon.signal("HUP");
    let last = read_until(&mut events, "0\r\n\r\n");
    assert!(last.contains(r#"{"reason":"auth"}"#), "{last}");
    // It comes back with the same token, as an EventSource does, and is told why not.
    assert_eq!(once(&daemon, "GET /v1/streams/a/events", &caller.header(), "").0, 403);
    let path = "GET /v1/streams/b%2F1/state";
    assert_eq!(once(&daemon, path, &caller.header(), "").0, 404, "what it may see is not there yet");
}
