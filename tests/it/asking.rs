//! Asking a daemon: by a whole client, or over a socket, byte by byte, where a client would hide what is looked at.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::process::{Daemon, PATIENCE};

/// Any request by a whole client, whatever its status.
pub(crate) fn send(
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> ureq::http::Response<ureq::Body> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .timeout_global(Some(PATIENCE))
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("{url}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    agent.run(request.body(body.to_owned()).expect("a request")).expect("the daemon answers")
}

/// A connection to the daemon's first address.
pub(crate) fn connect(daemon: &Daemon) -> TcpStream {
    let address = daemon.url.rsplit("//").next().expect("an address");
    let socket = TcpStream::connect(address).expect("the daemon listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// Reads a head up to and with its empty line; what has come of it if the peer closed before.
pub(crate) fn head(socket: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(socket.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("a head is text")
}

/// Reads an answer with a length: its status, its head, its body.
pub(crate) fn answer(socket: &mut impl Read) -> (u16, String, String) {
    let head = head(socket);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
    socket.read_exact(&mut body).expect("the body is whole");
    (status, head, String::from_utf8(body).expect("a body of text"))
}

/// Sends a request with a JSON body and these header lines, and reads the answer.
pub(crate) fn ask(socket: &mut (impl Read + Write), line: &str, headers: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         {headers}\r\n{body}"
    );
    socket.write_all(request.as_bytes()).expect("the request is sent");
    let (status, _, body) = answer(socket);
    (status, body)
}

/// The same on a connection of its own.
pub(crate) fn once(daemon: &Daemon, line: &str, headers: &str, body: &str) -> (u16, String) {
    ask(&mut connect(daemon), line, headers, body)
}

/// Reads until this has come, or panics with what came instead.
pub(crate) fn read_until(socket: &mut impl Read, wanted: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(wanted.as_bytes()) {
        match socket.read(&mut byte) {
            Ok(1) => text.push(byte[0]),
            ended => panic!("no {wanted:?} ({ended:?}): {}", String::from_utf8_lossy(&text)),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A figure of `/metrics`.
pub(crate) fn figure(daemon: &Daemon, name: &str) -> u64 {
    let (_, text) = daemon.get("/metrics");
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number") as u64
}
