//! The way into a daemon, set by its configuration: addresses, TLS, credentials, where sockets come from.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::asking::{answer, ask, connect, once, read_until};
use crate::effort::not_run;
use crate::ports::free_port;
use crate::process::{Daemon, PATIENCE, certificate, told, towpath};

/// What `/healthz` answers over TLS to somebody who trusts this file; why not, if not.
fn health_over_tls(address: &str, trusted: &Path) -> Result<u16, String> {
    let trust = towpath::wire::ClientTls::trusting(trusted).map_err(|error| error.to_string())?;
    let mut socket = TcpStream::connect(address).map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let rustls::Connection::Client(mut tls) = trust.connection("localhost").expect("a client") else {
        panic!("not a client")
    };
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .map_err(|error| error.to_string())?;
    Ok(answer(&mut stream).0)
}

#[test]
fn a_certificate_is_shown_and_a_new_one_is_shown_after_sighup() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    let install = |from_chain: &Path, from_key: &Path| {
        std::fs::copy(from_chain, &chain).expect("copied");
        std::fs::copy(from_key, &key).expect("copied");
    };
    install(&certificate("localhost.pem"), &certificate("localhost.key"));
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_TLS__CERTIFICATE", &chain).env("TOWPATH_TLS__KEY", &key);
    });
    let address = daemon.url.strip_prefix("https://").expect("it says that it speaks TLS").to_owned();
    let authority = certificate("authority.pem");
    assert_eq!(health_over_tls(&address, &authority), Ok(200));
    let mut plain = connect(&daemon);
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    let mut said = Vec::new();
    // An alert, or the end.
    let _ = plain.read_to_end(&mut said);
    assert!(!String::from_utf8_lossy(&said).contains("HTTP/1.1"), "nothing is answered in the clear");

    let port = address.rsplit(':').next().expect("a port");
    let mut health = towpath(&["health", "--url", &format!("https://localhost:{port}")]);
    let asked = health.env("SSL_CERT_FILE", &authority).output().expect("it runs");
    assert_eq!(told(&asked), (0, "ok\n".to_owned()), "the program's own client trusts whom it is told to");

    // A key that is no key: what holds stays.
    std::fs::write(&key, "nonsense").expect("written");
    daemon.signal("HUP");
    let line = daemon.wait_for_log("stays as it was");
    assert!(line.contains("key.pem"), "{line}");
    assert_eq!(health_over_tls(&address, &authority), Ok(200));

    let other = folder.path().join("other.pem");
    let other_key = folder.path().join("other.key");
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
                .split(' '),
        )
        .args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&other_key)
        .arg("-out")
        .arg(&other)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        return not_run("a second certificate needs openssl, and there is none");
    }
    install(&other, &other_key);
    daemon.signal("HUP");
    daemon.wait_for_log("read again");
    assert_eq!(health_over_tls(&address, &other), Ok(200), "the new certificate is shown");
    assert!(health_over_tls(&address, &authority).is_err(), "the old one is not");
}

#[test]
fn a_unix_socket_beside_the_port_serves_the_same_and_its_file_goes_with_the_daemon() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("door");
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_SERVER__LISTEN_ALSO", format!("unix:{}", path.display()));
    });
    let mut socket = UnixStream::connect(&path).expect("it listens there, too");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert_eq!(ask(&mut socket, "GET /healthz", "", "").0, 200);
    assert_eq!(daemon.get("/healthz").0, 200);
    daemon.signal("TERM");
    let (exit, text) = daemon.wait();
    assert_eq!(exit, 0, "{text}");
    assert!(text.contains(&format!("listening on http://unix:{}", path.display())), "{text}");
    assert!(!path.exists());
}

#[test]
fn settings_that_would_leave_a_door_open_are_refused_with_78() {
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[("TOWPATH_SERVER__LISTEN_ALSO", "0.0.0.0:0")], "server.listen_also"),
        (&[("TOWPATH_TLS__CERTIFICATE", "/nowhere.pem")], "tls.certificate"),
        (
            &[("TOWPATH_TLS__CERTIFICATE", "/nowhere.pem"), ("TOWPATH_TLS__KEY", "/nowhere.key")],
            "/nowhere.pem",
        ),
        (&[("TOWPATH_AUTH__JWT_KEYS", "/nowhere.jwt")], "/nowhere.jwt"),
        (&[("TOWPATH_SERVER__REUSE_PORT", "true")], "server.reuse_port"),
    ];
    for (environment, named) in cases {
        let data = tempfile::tempdir().expect("a temporary folder");
        let mut command = towpath(&["serve", "--listen", "127.0.0.1:0", "--data"]);
        let refused = command.arg(data.path()).envs(environment.iter().copied()).output().expect("it runs");
        let (exit, text) = told(&refused);
        assert_eq!(exit, 78, "{environment:?}: {text}");
        assert!(text.contains(named), "{environment:?}: {text}");
    }
}

#[test]
fn an_address_that_somebody_has_is_named_once_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let data = tempfile::tempdir().expect("a temporary folder");
    let refused = towpath(&["serve", "--listen", &address, "--data"]).arg(data.path()).output();
    let (exit, text) = told(&refused.expect("it runs"));
    assert_eq!(exit, 78, "{text}");
    assert_eq!(text.matches(&address).count(), 1, "{text}");
    assert!(text.contains("in use") && text.contains("name another address"), "{text}");
}

const SECRET: &str = "a-shared-secret-of-more-than-thirty-two-characters";

/// A JWT signed with HS256.
fn jwt(secret: &str, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "HS256", "typ": "JWT"})), part(claims));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// A JWT signed by `openssl` with this private key; nothing where there is no openssl.
fn jwt_by(alg: &str, key: &Path, claims: &Value) -> Option<String> {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": alg, "typ": "JWT"})), part(claims));
    let text = key.with_extension("text");
    std::fs::write(&text, &signed).expect("written");
    let mut openssl = Command::new("openssl");
    match alg {
        "EdDSA" => openssl.args(["pkeyutl", "-sign", "-rawin", "-in"]).arg(&text).arg("-inkey").arg(key),
        _ => openssl.args(["dgst", "-sha256", "-sign"]).arg(key).arg(&text),
    };
    let made = openssl.output().ok()?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(made.stdout)))
}

#[test]
fn jwts_of_an_rsa_and_of_an_ed25519_key_are_good_beside_each_other_and_only_as_signed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pair = |name: &str, algorithm: &[&str]| {
        let (private, public) = (folder.path().join(name), folder.path().join(format!("{name}.pub")));
        let made = Command::new("openssl").arg("genpkey").args(algorithm).arg("-out").arg(&private).output();
        if !made.is_ok_and(|made| made.status.success()) {
            return None;
        }
        let shown = Command::new("openssl")
            .args(["pkey", "-pubout", "-in"])
            .arg(&private)
            .arg("-out")
            .arg(&public)
            .output();
        assert!(shown.expect("it ran a moment ago").status.success());
        Some((private, public))
    };
    let rsa = pair("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let (Some((rsa, rsa_public)), Some((ed, ed_public))) = (rsa, pair("ed", &["-algorithm", "ED25519"]))
    else {
        return not_run("JWTs of RSA and Ed25519 keys need openssl, and there is none");
    };
    let keys = format!("{},{}", rsa_public.display(), ed_public.display());
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_AUTH__JWT_KEYS", &keys);
    });
    let claims = json!({
        "sub": "w", "exp": now() + 3_600, "streams": [{"match": "*", "ops": ["append", "manage"]}],
    });
    let status =
        |name: &str, token: &str| once(&daemon, &format!("PUT /v1/streams/{name}"), &bearer(token), "").0;
    let signed = |alg: &str, key: &Path| jwt_by(alg, key, &claims).expect("openssl is there");
    assert_eq!(status("a", &signed("RS256", &rsa)), 201);
    assert_eq!(status("b", &signed("EdDSA", &ed)), 201);
    // A public key is no secret: what is signed with it as if it were one is nobody's.
    for public in [&rsa_public, &ed_public] {
        let text = std::fs::read_to_string(public).expect("a key");
        assert_eq!(status("c", &jwt(&text, &claims)), 401, "{}", public.display());
        assert_eq!(status("c", &jwt(text.trim(), &claims)), 401, "{}", public.display());
    }
    let (head, signature) = (signed("RS256", &rsa), signed("EdDSA", &ed));
    let (signed_part, _) = head.rsplit_once('.').expect("three parts");
    let (_, other) = signature.rsplit_once('.').expect("three parts");
    assert_eq!(status("c", &format!("{signed_part}.{other}")), 401, "another key's signature");
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// What ends with a token, opened by `open` before that is over, whose moment it is told. Where a machine is too
/// busy for that, it is opened again with a token that lasts longer; but it is let in while the token lasts.
fn in_time<T>(open: impl Fn(u64) -> Option<T>) -> T {
    for seconds in [5, 10, 15] {
        let end = now() + seconds;
        if let Some(opened) = open(end) {
            return opened;
        }
        assert!(now() >= end, "it was ended {} s before its token", end - now());
    }
    panic!("15 s were too short to open everything");
}

/// Reads until this has come; nothing if it is refused, or ends before.
fn comes(socket: &mut TcpStream, wanted: &str) -> Option<()> {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(wanted.as_bytes()) {
        match socket.read(&mut byte) {
            Ok(1) if text == b"HTTP/1.1 401" => return None,
            Ok(1) => text.push(byte[0]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no {wanted:?}: {}", String::from_utf8_lossy(&text));
            }
            Ok(_) | Err(_) => return None,
        }
    }
    Some(())
}

/// Asks a socket; nothing if it has ended.
fn say(socket: &mut WebSocket<TcpStream>, value: Value) -> Option<Value> {
    socket.send(Message::text(value.to_string())).ok()?;
    loop {
        let text = match socket.read().ok()? {
            Message::Text(text) => text,
            Message::Close(_) => return None,
            _ => continue,
        };
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        if answer.get("re").is_some() {
            return Some(answer);
        }
    }
}

#[test]
fn a_jwt_opens_the_streams_it_names_and_live_reads_end_with_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("key.jwt");
    std::fs::write(&key, format!("{SECRET}\n")).expect("written");
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_AUTH__JWT_KEYS", &key);
    });
    let streams = |ops: &[&str]| json!([{"match": "chat/*", "ops": ops}]);
    let all = streams(&["follow", "append", "produce", "manage", "interrupt"]);
    let writer = bearer(&jwt(SECRET, &json!({"sub": "w", "exp": now() + 3_600, "streams": all})));
    assert_eq!(once(&daemon, "PUT /v1/streams/chat/1", "", "").0, 401, "nobody comes in without");
    assert_eq!(once(&daemon, "PUT /v1/streams/chat/1", &writer, "").0, 201);
    assert_eq!(once(&daemon, "PUT /v1/streams/other", &writer, "").0, 403, "its scope ends at chat/");

    let reader = |sub: &str, exp: u64| json!({"sub": sub, "exp": exp, "streams": streams(&["follow"])});
    let fresh = jwt(SECRET, &reader("r", now() + 3_600));
    let message = r#"{"role":"u","content":1}"#;
    let refused = once(&daemon, "POST /v1/streams/chat/1/messages", &bearer(&fresh), message);
    assert_eq!(refused.0, 403, "a follower does not write: {}", refused.1);

    let websocket = |path: &str, token: &str| {
        let carried = format!("towpath.v1, towpath.bearer.{token}");
        let request = tungstenite::http::Request::builder()
            .uri(format!("ws://{}{path}", daemon.address()))
            .header("host", "localhost")
            .header("upgrade", "websocket")
            .header("connection", "Upgrade")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", carried)
            .body(())
            .expect("a request");
        tungstenite::client(request, connect(&daemon)).ok().map(|(socket, _)| socket)
    };
    let strangers = jwt(SECRET, &reader("s", now() + 3_600));
    let forged = jwt("another-secret-of-more-than-32-characters", &reader("r", now() + 3_600));
    let (short, mut renewed, mut follow, mut many, mut events) = in_time(|end| {
        let short = jwt(SECRET, &reader("r", end));
        let mut renewed = websocket("/v1/ws", &short)?;
        let answer = say(&mut renewed, json!({"id": 1, "op": "auth", "token": strangers}))?;
        assert_eq!(answer["error"]["code"], "forbidden", "somebody else's: {answer}");
        let answer = say(&mut renewed, json!({"id": 2, "op": "auth", "token": forged}))?;
        assert_eq!(answer["error"]["code"], "unauthorized", "{answer}");
        let answer = say(&mut renewed, json!({"id": 3, "op": "auth", "token": fresh}))?;
        assert!(answer["ok"].is_object(), "{answer}");
        let follow = websocket("/v1/streams/chat/1/events", &short)?;
        let many = websocket("/v1/ws", &short)?;
        let mut events = connect(&daemon);
        let head =
            format!("GET /v1/streams/chat/1/events HTTP/1.1\r\nHost: localhost\r\n{}\r\n", bearer(&short));
        events.write_all(head.as_bytes()).expect("sent");
        comes(&mut events, "event: live")?;
        Some((short, renewed, follow, many, events))
    });

    let last = read_until(&mut events, "0\r\n\r\n");
    assert!(last.contains("event: closed") && last.contains(r#"{"reason":"auth"}"#), "{last}");
    for (socket, what) in [(&mut follow, "a follow"), (&mut many, "many follows")] {
        let close = loop {
            match socket.read().expect("it is closed as it should be") {
                Message::Close(close) => break close.expect("with a code"),
                Message::Text(text) => assert!(!text.contains("\"t\":\"message\""), "{text}"),
                _ => {}
            }
        };
        assert_eq!((u16::from(close.code), close.reason.as_str()), (4401, "auth"), "{what}");
    }
    let answer = say(&mut renewed, json!({"id": 4, "op": "follow", "s": "chat/1"}));
    let answer = answer.expect("the one with fresh credentials goes on");
    assert!(answer["ok"].is_object(), "{answer}");
    assert_eq!(
        once(&daemon, "GET /v1/streams/chat/1/state", &bearer(&short), "").0,
        401,
        "the token is over"
    );

    // Another key after SIGHUP: what the old one signed is nobody's.
    std::fs::write(&key, "another-secret-of-more-than-32-characters").expect("written");
    daemon.signal("HUP");
    daemon.wait_for_log("read again");
    assert_eq!(once(&daemon, "GET /v1/streams/chat/1/state", &writer, "").0, 401);
}

/// What of an answer arrives until its connection ends, and whether the last chunk was there.
fn to_the_end(socket: &mut TcpStream) -> (String, bool) {
    let mut said = Vec::new();
    let mut buffer = [0; 4_096];
    let whole = loop {
        match socket.read(&mut buffer) {
            Ok(length @ 1..) => said.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("it is still open: {}", String::from_utf8_lossy(&said));
            }
            // A connection that is broken off ends with an error, or without one.
            Ok(_) | Err(_) => break false,
        }
        if said.ends_with(b"0\r\n\r\n") {
            break true;
        }
    };
    (String::from_utf8_lossy(&said).into_owned(), whole)
}

#[test]
fn the_doors_of_other_clients_end_with_the_credentials_too() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("key.jwt");
    std::fs::write(&key, format!("{SECRET}\n")).expect("written");
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_AUTH__JWT_KEYS", &key);
    });
    let streams = |ops: &[&str]| json!([{"match": "chat/*", "ops": ops}]);
    let all = streams(&["follow", "append", "produce", "manage"]);
    let writer = bearer(&jwt(SECRET, &json!({"sub": "w", "exp": now() + 3_600, "streams": all})));
    assert_eq!(once(&daemon, "PUT /v1/streams/chat/1", &writer, "").0, 201);
    let (status, begun) = once(&daemon, "POST /v1/streams/chat/1/turns", &writer, "{}");
    assert_eq!(status, 201, "{begun}");
    let begun: Value = serde_json::from_str(&begun).expect("JSON");
    let lease = begun["lease"].as_str().expect("a lease");
    let held = format!("{writer}Towpath-Lease: {lease}\r\nContent-Type: application/x-ndjson\r\n");
    let (status, said) = once(&daemon, "POST /v1/streams/chat/1/turns/1/parts", &held, "\"Once \"\n");
    assert_eq!(status, 200, "{said}");

    let (end, short, [mut durable, mut aisdk, mut turn]) = in_time(|end| {
        let short = bearer(&jwt(SECRET, &json!({"sub": "r", "exp": end, "streams": streams(&["follow"])})));
        let open = |path: &str, heard: &str| {
            let mut socket = connect(&daemon);
            let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{short}\r\n");
            socket.write_all(head.as_bytes()).expect("sent");
            comes(&mut socket, heard).map(|()| socket)
        };
        let durable = open("/v1/stream/chat/1?offset=-1&live=sse", "upToDate")?;
        let aisdk = open("/v1/streams/chat/1/live?format=aisdk", "Once ")?;
        let turn = open("/v1/streams/chat/1/turns/1", "Once ")?;
        Some((end, short, [durable, aisdk, turn]))
    });

    let (said, whole) = to_the_end(&mut durable);
    assert!(whole && !said.contains("streamClosed"), "the stream goes on, for others: {said}");
    let (said, whole) = to_the_end(&mut aisdk);
    let last = said.find(r#"{"type":"error","errorText":"the credentials have ended"}"#);
    assert!(whole && last < said.find("[DONE]") && last.is_some(), "{said}");
    let (said, whole) = to_the_end(&mut turn);
    assert!(!whole, "the turn goes on, and nobody takes this for its end: {said}");
    assert!(now() >= end, "none of them ended before");
    for path in ["/v1/stream/chat/1", "/v1/streams/chat/1/turns/1"] {
        assert_eq!(once(&daemon, &format!("GET {path}"), &short, "").0, 401, "{path}");
    }
    assert_eq!(once(&daemon, "GET /v1/streams/chat/1/state", &writer, "").0, 200);
}

#[test]
fn whoever_asks_who_they_are_is_told_their_roles_and_streams_and_no_secret() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let made =
        crate::process::run(&["token", "new", "viewer", "--role", "follower", "--scope", "chat/*=follow"]);
    let token = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    std::fs::write(&file, made.stderr).expect("written");
    let told = |daemon: &Daemon, headers: &str| {
        let (status, body) = once(daemon, "GET /v1/whoami", headers, "");
        (status, serde_json::from_str::<Value>(&body).expect("JSON"))
    };
    let daemon = Daemon::start(&["--token-file", file.to_str().expect("UTF-8")]);
    let viewer = json!({
        "name": "viewer", "roles": ["follower"], "expires_at": null,
        "streams": [{ "match": "chat/*", "ops": ["follow"] }],
    });
    assert_eq!(told(&daemon, &bearer(&token)), (200, viewer));
    assert_eq!(told(&daemon, "").0, 401);
    let open = Daemon::start(&[]);
    let anybody = json!({ "name": "anonymous", "roles": ["admin"], "streams": null, "expires_at": null });
    assert_eq!(told(&open, ""), (200, anybody));
}

#[test]
fn an_origin_from_the_list_may_read_with_a_ticket_and_another_may_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let made = crate::process::run(&["token", "new", "ops", "--role", "admin"]);
    let token = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    std::fs::write(&file, made.stderr).expect("written");
    let daemon = Daemon::start_with(&["--token-file", file.to_str().expect("UTF-8")], |command| {
        command.env("TOWPATH_SERVER__ALLOW_ORIGINS", "https://app.example.com");
    });
    let token = bearer(&token);
    assert_eq!(once(&daemon, "PUT /v1/streams/a", &token, "").0, 201);
    let (status, ticket) = once(&daemon, "POST /v1/ticket", &token, "");
    assert_eq!(status, 201, "{ticket}");
    let ticket: Value = serde_json::from_str(&ticket).expect("JSON");
    let path = format!("GET /v1/streams/a/events?ticket={}", ticket["ticket"].as_str().expect("a ticket"));
    let open = |origin: &str| {
        let mut socket = connect(&daemon);
        let request = format!("{path} HTTP/1.1\r\nHost: {}\r\nOrigin: {origin}\r\n\r\n", daemon.address());
        socket.write_all(request.as_bytes()).expect("sent");
        crate::asking::head(&mut socket)
    };
    assert!(open("https://evil.example.com").starts_with("HTTP/1.1 403 "), "and the ticket is not spent");
    let head = open("https://app.example.com");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("access-control-allow-origin: https://app.example.com\r\n"), "{head}");
    assert!(open("https://app.example.com").starts_with("HTTP/1.1 401 "), "a ticket is good once");
}

#[test]
fn sockets_that_a_service_manager_bound_are_served() {
    use std::os::fd::AsRawFd;
    if !Path::new("/bin/bash").exists() {
        return not_run("handing a socket over needs /bin/bash, and there is none");
    }
    let bound = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = bound.local_addr().expect("bound");
    rustix::io::fcntl_setfd(&bound, rustix::io::FdFlags::empty()).expect("children inherit it");
    let data = tempfile::tempdir().expect("a temporary folder");
    let program = crate::process::program().to_owned();
    let script = format!(
        "exec 3<&{}; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" serve --listen 127.0.0.1:1 --data \"$1\"",
        bound.as_raw_fd()
    );
    let mut child = Command::new("/bin/bash")
        .args(["-c", &script])
        .arg(program)
        .arg(data.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    let mut said = std::io::BufReader::new(child.stdout.take().expect("piped"));
    std::io::BufRead::read_line(&mut said, &mut line).expect("a line");
    let mut socket = TcpStream::connect(address).expect("somebody bound it");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let health = line.starts_with("listening").then(|| ask(&mut socket, "GET /healthz", "", "").0);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert_eq!((line.trim(), health), (format!("listening on http://{address}").as_str(), Some(200)));
}

#[cfg(feature = "postgres")]
#[test]
fn two_daemons_share_a_port_and_one_of_them_may_go() {
    let Some(url) = crate::cluster::database() else { return };
    let address = format!("127.0.0.1:{}", free_port());
    let start = || {
        Daemon::start_with(&["--listen", &address, "--store", &url], |command| {
            command.env("TOWPATH_SERVER__REUSE_PORT", "true");
        })
    };
    let (old, new) = (start(), start());
    assert_eq!(once(&new, "PUT /v1/streams/a", "", "").0, 201);
    old.signal("TERM");
    let (exit, text) = old.wait();
    assert_eq!(exit, 0, "{text}");
    // Whoever comes now meets the one that stayed, and what the other wrote.
    for _ in 0..20 {
        assert_eq!(once(&new, "GET /v1/streams/a/state", "", "").0, 200);
    }
}
