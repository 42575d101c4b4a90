//! Request heads that must not be accepted, sent over real sockets with a good request behind them; and
//! our parser against a second one that was written from the RFC alone.

mod second;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use towpath::front::{Reply, Request, Route, Router};
use towpath::rt::Rt;
use towpath::wire::http::{Framing, Head, HeadLimits, HeadReader};
use towpath::wire::{Bound, IoThreads, Limits, Listener, Running};

/// Requests and bodies as bytes, each with what is wrong with it.
fn malformed() -> Vec<(String, Vec<u8>)> {
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |what: &str, head: &[u8]| cases.push((what.to_owned(), head.to_vec()));
    for (what, head) in REQUEST_LINES {
        add(what, format!("{head}\r\nHost: a\r\n\r\n").as_bytes());
    }
    for (what, lines) in HEADERS {
        add(what, format!("POST /echo HTTP/1.1\r\n{lines}\r\n\r\n").as_bytes());
    }
    for (what, lines) in WITH_HOST {
        add(what, format!("POST /echo HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n").as_bytes());
    }
    for (what, head) in WHOLE {
        add(what, head.as_bytes());
    }
    for (what, body) in BODIES {
        add(
            what,
            format!("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}").as_bytes(),
        );
    }
    // Every control byte, everywhere (RFC 9110 5.5, 5.6.2; RFC 9112 3).
    for byte in (0u8..0x20).chain([0x7f]) {
        let with = |text: &str| {
            text.bytes().flat_map(|b| if b == b'@' { vec![byte] } else { vec![b] }).collect::<Vec<u8>>()
        };
        add(&format!("{byte:#04x} in the method"), &with("G@T / HTTP/1.1\r\nHost: a\r\n\r\n"));
        add(&format!("{byte:#04x} in the target"), &with("GET /a@b HTTP/1.1\r\nHost: a\r\n\r\n"));
        add(&format!("{byte:#04x} in a header name"), &with("GET / HTTP/1.1\r\nHost: a\r\nX@Y: 1\r\n\r\n"));
        if byte != b'\t' {
            add(
                &format!("{byte:#04x} in a header value"),
                &with("GET / HTTP/1.1\r\nHost: a\r\nX: 1@2\r\n\r\n"),
            );
        }
    }
    // Delimiters are no part of a name (RFC 9110 5.6.2).
    for delimiter in "\"(),/;<=>?@[\\]{}".chars() {
        add(
            &format!("{delimiter} in a header name"),
            format!("GET / HTTP/1.1\r\nHost: a\r\nX{delimiter}Y: 1\r\n\r\n").as_bytes(),
        );
        add(
            &format!("{delimiter} in the method"),
            format!("G{delimiter}T / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(),
        );
    }
    // Characters that stand in no URI (RFC 3986 2).
    for odd in "\"<>\\^`{|}#".chars() {
        add(&format!("{odd} in the target"), format!("GET /a{odd}b HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    }
    let long = "x".repeat(8 * 1024 + 1);
    add("a target over 8 KiB", format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    let large = "x".repeat(16 * 1024);
    add("a head over 16 KiB", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {large}\r\n\r\n").as_bytes());
    let many: String = (0..64).map(|n| format!("X-{n}: 1\r\n")).collect();
    add("65 headers", format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes());
    add("a target that is not ASCII", "GET /ü HTTP/1.1\r\nHost: a\r\n\r\n".as_bytes());
    add("a header name that is not ASCII", "GET / HTTP/1.1\r\nHost: a\r\nÜ: 1\r\n\r\n".as_bytes());
    add("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n");
    add("HTTP/2 without being asked", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    cases
}

const REQUEST_LINES: &[(&str, &str)] = &[
    ("no target", "GET"),
    ("no version", "GET /"),
    ("an empty target", "GET  HTTP/1.1"),
    ("two spaces behind the method", "GET  / HTTP/1.1"),
    ("two spaces before the version", "GET /  HTTP/1.1"),
    ("a tab instead of a space", "GET\t/ HTTP/1.1"),
    ("a tab before the version", "GET /\tHTTP/1.1"),
    ("a space before the method", " GET / HTTP/1.1"),
    ("a tab before the method", "\tGET / HTTP/1.1"),
    ("a space behind the version", "GET / HTTP/1.1 "),
    ("a tab behind the version", "GET / HTTP/1.1\t"),
    ("a space in the target", "GET /a b HTTP/1.1"),
    ("four words", "GET / HTTP/1.1 HTTP/1.1"),
    ("a version in lower case", "GET / http/1.1"),
    ("a version with a space", "GET / HTTP /1.1"),
    ("a version without a slash", "GET / HTTP1.1"),
    ("a version of one digit", "GET / HTTP/1"),
    ("a version without its last digit", "GET / HTTP/1."),
    ("a version without its first digit", "GET / HTTP/.1"),
    ("a version of three digits", "GET / HTTP/1.1.1"),
    ("a version with a leading zero", "GET / HTTP/01.1"),
    ("a version with a trailing zero", "GET / HTTP/1.10"),
    ("a version with a sign", "GET / HTTP/+1.1"),
    ("a version with letters", "GET / HTTP/1.x"),
    ("a version with a comma", "GET / HTTP/1,1"),
    ("another protocol", "GET / HTCPCP/1.1"),
    ("HTTP/0.9", "GET / HTTP/0.9"),
    ("HTTP/1.2", "GET / HTTP/1.2"),
    ("HTTP/2.0", "GET / HTTP/2.0"),
    ("HTTP/3.0", "GET / HTTP/3.0"),
    ("HTTP/9.9", "GET / HTTP/9.9"),
    ("a method in lower case", "get / HTTP/1.1"),
    ("an unknown method", "BREW / HTTP/1.1"),
    ("TRACE", "TRACE / HTTP/1.1"),
    ("CONNECT", "CONNECT a:443 HTTP/1.1"),
    ("a method that is a prefix", "GE / HTTP/1.1"),
    ("a method that goes on", "GETT / HTTP/1.1"),
    ("a quoted method", "\"GET\" / HTTP/1.1"),
    ("no method", " / HTTP/1.1"),
    ("a relative target", "GET index.html HTTP/1.1"),
    ("a target that begins with a query", "GET ?a=1 HTTP/1.1"),
    ("a target of an authority alone", "GET a:80 HTTP/1.1"),
    ("a star for GET", "GET * HTTP/1.1"),
    ("a star for POST", "POST * HTTP/1.1"),
    ("two stars", "OPTIONS ** HTTP/1.1"),
    ("a star with a query", "OPTIONS *?a HTTP/1.1"),
    ("an absolute target without a host", "GET http:// HTTP/1.1"),
    ("an absolute target with an empty host", "GET http:///a HTTP/1.1"),
    ("an absolute target with a port alone", "GET http://:80/ HTTP/1.1"),
    ("an absolute target of one slash", "GET http:/a HTTP/1.1"),
    ("an absolute target of another scheme", "GET ftp://a/ HTTP/1.1"),
    ("an absolute target of a script", "GET javascript:alert(1) HTTP/1.1"),
    ("an absolute target with user information", "GET http://user@a/ HTTP/1.1"),
    ("an absolute target with a password", "GET http://user:secret@a/ HTTP/1.1"),
    ("an absolute target with a port of letters", "GET http://a:b/ HTTP/1.1"),
    ("an absolute target with a long port", "GET http://a:123456/ HTTP/1.1"),
    ("an absolute target with half an IPv6 address", "GET http://[::1/ HTTP/1.1"),
    ("an absolute target with a wrong IPv6 address", "GET http://[::g]/ HTTP/1.1"),
    ("a fragment", "GET /a#b HTTP/1.1"),
    ("a percent sign at the end", "GET /a% HTTP/1.1"),
    ("a percent sign with one digit", "GET /a%2 HTTP/1.1"),
    ("a percent sign with no digits", "GET /a%zz HTTP/1.1"),
    ("a percent sign with half a digit", "GET /a%2g HTTP/1.1"),
    ("a percent sign in the query", "GET /a?b=% HTTP/1.1"),
    ("a response", "HTTP/1.1 200 OK"),
];

const HEADERS: &[(&str, &str)] = &[
    ("no Host", "X: 1"),
    ("an empty Host", "Host:"),
    ("a Host of spaces", "Host:   "),
    ("two Hosts", "Host: a\r\nHost: b"),
    ("the same Host twice", "Host: a\r\nHost: a"),
    ("two Hosts in different case", "Host: a\r\nhOST: a"),
    ("two Hosts in one line", "Host: a, b"),
    ("a Host with a space", "Host: a b"),
    ("a Host with a path", "Host: a/b"),
    ("a Host with a query", "Host: a?b"),
    ("a Host with a fragment", "Host: a#b"),
    ("a Host with user information", "Host: user@a"),
    ("a Host with a scheme", "Host: http://a"),
    ("a Host with a port of letters", "Host: a:b"),
    ("a Host with a signed port", "Host: a:+80"),
    ("a Host with two ports", "Host: a:80:80"),
    ("a Host with a long port", "Host: a:800000"),
    ("a Host that is a port", "Host: :80"),
    ("a Host with half an IPv6 address", "Host: [::1"),
    ("a Host with a wrong IPv6 address", "Host: [::1::2]"),
    ("a Host with something behind an IPv6 address", "Host: [::1]a"),
    ("a Host of an IPv6 address without brackets", "Host: ::1"),
    ("a Host with a backslash", "Host: a\\b"),
    ("a Host with a percent sign alone", "Host: a%"),
    ("a Host with quotes", "Host: \"a\""),
    ("a Host that is not ASCII", "Host: ü"),
    ("a first header line with a space before it", " Host: a"),
    ("a first header line with a tab before it", "\tHost: a"),
];

const WITH_HOST: &[(&str, &str)] = &[
    ("a space before the colon", "X : 1"),
    ("a tab before the colon", "X\t: 1"),
    ("a space in a name", "X Y: 1"),
    ("an empty name", ": 1"),
    ("a line without a colon", "X"),
    ("a line continued with a space", "X: 1\r\n 2"),
    ("a line continued with a tab", "X: 1\r\n\t2"),
    ("a line of a space", "X: 1\r\n "),
    ("a line that ends in LF", "X: 1\nY: 2"),
    ("a line that ends in CR", "X: 1\rY: 2"),
    ("a line that ends in CR CR LF", "X: 1\r\r\nY: 2"),
    ("Content-Length with a space before its colon", "Content-Length : 3"),
    ("Transfer-Encoding with a space before its colon", "Transfer-Encoding : chunked"),
    ("Content-Length and Transfer-Encoding", "Content-Length: 3\r\nTransfer-Encoding: chunked"),
    ("Transfer-Encoding and Content-Length", "Transfer-Encoding: chunked\r\nContent-Length: 3"),
    ("Content-Length 0 and Transfer-Encoding", "Content-Length: 0\r\nTransfer-Encoding: chunked"),
    ("two Content-Lengths", "Content-Length: 3\r\nContent-Length: 4"),
    ("the same Content-Length twice", "Content-Length: 3\r\nContent-Length: 3"),
    ("a list of Content-Lengths", "Content-Length: 3, 3"),
    ("an empty Content-Length", "Content-Length:"),
    ("a Content-Length with a plus", "Content-Length: +3"),
    ("a Content-Length with a minus", "Content-Length: -3"),
    ("a Content-Length in hex", "Content-Length: 0x3"),
    ("a Content-Length with a dot", "Content-Length: 3.0"),
    ("a Content-Length with an exponent", "Content-Length: 3e0"),
    ("a Content-Length with a space in it", "Content-Length: 3 3"),
    ("a Content-Length with an underscore", "Content-Length: 1_0"),
    ("a Content-Length in quotes", "Content-Length: \"3\""),
    ("a Content-Length of letters", "Content-Length: three"),
    ("a Content-Length with a semicolon", "Content-Length: 3;"),
    ("a Content-Length over 64 bits", "Content-Length: 18446744073709551616"),
    ("a Content-Length of forty digits", "Content-Length: 1000000000000000000000000000000000000000"),
    ("a Content-Length of other digits", "Content-Length: ٣"),
    ("a Content-Length and its double in lower case", "Content-Length: 3\r\ncontent-length: 30"),
    ("Transfer-Encoding identity", "Transfer-Encoding: identity"),
    ("Transfer-Encoding gzip", "Transfer-Encoding: gzip"),
    ("Transfer-Encoding gzip, chunked", "Transfer-Encoding: gzip, chunked"),
    ("Transfer-Encoding chunked, gzip", "Transfer-Encoding: chunked, gzip"),
    ("Transfer-Encoding chunked, identity", "Transfer-Encoding: chunked, identity"),
    ("Transfer-Encoding chunked twice", "Transfer-Encoding: chunked, chunked"),
    ("two Transfer-Encodings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    ("Transfer-Encoding and another one", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    ("Transfer-Encoding in another case", "Transfer-Encoding: CHUNKED"),
    ("Transfer-Encoding in mixed case", "Transfer-Encoding: cHuNkEd"),
    ("Transfer-Encoding xchunked", "Transfer-Encoding: xchunked"),
    ("Transfer-Encoding chunkedx", "Transfer-Encoding: chunkedx"),
    ("Transfer-Encoding in quotes", "Transfer-Encoding: \"chunked\""),
    ("Transfer-Encoding with a comma", "Transfer-Encoding: chunked,"),
    ("Transfer-Encoding with a comma before it", "Transfer-Encoding: ,chunked"),
    ("Transfer-Encoding with a parameter", "Transfer-Encoding: chunked;q=1"),
    ("an empty Transfer-Encoding", "Transfer-Encoding:"),
    ("Transfer-Encoding on a continued line", "Transfer-Encoding:\r\n chunked"),
    ("Transfer-Encoding behind a continued line", "X: 1\r\n Transfer-Encoding: chunked"),
    ("an expectation nobody can meet", "Expect: 200-ok\r\nContent-Length: 1"),
    ("two expectations", "Expect: 100-continue, x\r\nContent-Length: 1"),
];

const WHOLE: &[(&str, &str)] = &[
    ("two empty lines before it", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("an LF before it", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a CR before it", "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a request line that ends in LF", "GET / HTTP/1.1\nHost: a\r\n\r\n"),
    ("a request line that ends in CR", "GET / HTTP/1.1\rHost: a\r\n\r\n"),
    ("only LF", "GET / HTTP/1.1\nHost: a\n\n"),
    ("a last line that ends in LF", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
    ("a Host line that ends in LF", "GET / HTTP/1.1\r\nHost: a\n\r\n"),
    ("HTTP/0.9", "GET /\r\n\r\n"),
    ("chunks in HTTP/1.0", "POST /echo HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("HTTP/1.0 without a Host", "GET / HTTP/1.0\r\n\r\n"),
    ("HTTP/1.1 without a Host", "GET / HTTP/1.1\r\n\r\n"),
    ("an absolute target without a Host", "GET http://a/ HTTP/1.1\r\n\r\n"),
    ("an absolute target with two Hosts", "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
];

const BODIES: &[(&str, &str)] = &[
    ("a chunk without a size", "\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size of letters", "xyz\r\n0\r\n\r\n"),
    ("a chunk size with a minus", "-3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size with a plus", "+3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size with 0x", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size with a space before it", " 3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size with a space behind it", "3 \r\nabc\r\n0\r\n\r\n"),
    ("a chunk size of seventeen digits", "00000000000000003\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size over 64 bits", "FFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size that ends in LF", "3\nabc\r\n0\r\n\r\n"),
    ("a chunk size that ends in CR", "3\rabc\r\n0\r\n\r\n"),
    ("a chunk longer than its size", "3\r\nabcd\r\n0\r\n\r\n"),
    ("a chunk shorter than its size", "4\r\nabc\r\n0\r\n\r\n"),
    ("a chunk that ends in LF", "3\r\nabc\n0\r\n\r\n"),
    ("a chunk extension with a control byte", "3;a=\x01\r\nabc\r\n0\r\n\r\n"),
    ("an empty chunk extension", "3;\r\nabc\r\n0\r\n\r\n"),
    ("a chunk extension that ends in LF", "3;a=b\nabc\r\n0\r\n\r\n"),
    ("a trailer without a colon", "0\r\nX\r\n\r\n"),
    ("a trailer with a space before its colon", "0\r\nX : 1\r\n\r\n"),
    ("a trailer continued", "0\r\nX: 1\r\n 2\r\n\r\n"),
    ("a trailer that ends in LF", "0\r\nX: 1\n\r\n"),
    ("an end that ends in LF", "0\n\n"),
    ("an end with two CRs", "0\r\r\n\r\n"),
    ("a chunk size of two numbers", "3 3\r\nabc\r\n0\r\n\r\n"),
];

const BEHIND: &[u8] = b"GET /canary HTTP/1.1\r\nHost: a\r\n\r\n";

struct Server {
    running: Running,
    /// Paths of requests that reached a handler.
    served: Arc<std::sync::atomic::AtomicUsize>,
}

impl Server {
    fn start() -> Server {
        let served = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut router = Router::new();
        for route in [Route::get("/{any*}"), Route::post("/{any*}")] {
            let served = served.clone();
            router.add(route.to(move |_: Request, reply: Reply| {
                served.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                reply.empty(204);
            }));
        }
        let io = IoThreads::new(&Rt::real(), 1, None).unwrap();
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        Server { running: io.start(Limits::default(), vec![listener], Arc::new(router)).unwrap(), served }
    }

    fn served(&self) -> usize {
        self.served.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Sends all of it and reads until the server closes.
    fn ask(&self, bytes: &[u8]) -> String {
        let Bound::Tcp(address) = self.running.addresses()[0].clone() else { panic!("not TCP") };
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[test]
fn no_malformed_head_is_accepted_and_nothing_behind_one_is_served() {
    let server = Server::start();
    let cases = malformed();
    assert!(cases.len() >= 200, "only {} cases", cases.len());
    for (what, mut bytes) in cases {
        bytes.extend_from_slice(BEHIND);
        let answer = server.ask(&bytes);
        let status: u16 = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
        assert!((400..600).contains(&status), "{what}: {answer:?}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{what}: {answer:?}");
        assert_eq!(answer.matches("\r\ndate: ").count(), 1, "{what}: {answer:?}");
        assert_eq!(server.served(), 0, "{what}");
    }
}

#[test]
fn what_the_rfc_allows_is_accepted() {
    let server = Server::start();
    let cases = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhOsT:a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \t a \t \r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
        "GET http://b:80/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://b?y HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a%2Fb?c=%20&d=/?:@!$'()*+,; HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET // HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \t\r\nZ: a\tb\r\n!#$%&'*+-.^_`|~: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \u{fc}\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \tchunked \r\n\r\n0A;x=y;z\r\n0123456789\r\n000\r\nA: 1\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    ];
    for (at, case) in cases.iter().enumerate() {
        // A second request proves where the first one ended, except behind HTTP/1.0, which closes.
        let closing = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = server.ask(format!("{case}{closing}").as_bytes());
        let answers = if case.contains("HTTP/1.0") { 1 } else { 2 };
        assert_eq!(answer.matches("HTTP/1.1 204 ").count(), answers, "{case:?}: {answer}");
        assert!(server.served() > at);
    }
}

#[test]
fn no_cut_of_a_refused_head_makes_it_acceptable() {
    for (what, bytes) in malformed() {
        // Bodies are judged by the body reader, which has tests of its own.
        if BODIES.iter().any(|(body, _)| *body == what) {
            continue;
        }
        let limits = HeadLimits::default();
        assert!(HeadReader::default().read(&bytes, &limits).is_err(), "{what}");
        let step = (bytes.len() / 200).max(1);
        let mut reader = HeadReader::default();
        let ends = (1..bytes.len()).step_by(step).chain([bytes.len()]);
        let refused =
            ends.map(|end| reader.read(&bytes[..end], &limits)).find(|outcome| !matches!(outcome, Ok(None)));
        assert!(matches!(refused, Some(Err(_))), "{what}");
    }
}

// ---- two parsers

/// What both parsers have to agree on.
#[derive(Debug, PartialEq)]
struct Read {
    method: String,
    path: String,
    query: String,
    host: String,
    http11: bool,
    framing: Framing,
    taken: usize,
}

fn ours(bytes: &[u8]) -> Option<Read> {
    let (head, taken): (Head, usize) = HeadReader::default().read(bytes, &HeadLimits::default()).ok()??;
    Some(Read {
        method: head.method.as_str().to_owned(),
        path: head.path.clone(),
        query: head.query.clone(),
        host: head.host.clone(),
        http11: head.version == towpath::wire::http::Version::Http11,
        framing: head.framing,
        taken,
    })
}

fn pick(good: &'static [&'static str], odd: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        12 => proptest::sample::select(good).prop_map(str::to_owned),
        1 => proptest::sample::select(odd).prop_map(str::to_owned),
    ]
}

fn line_end() -> impl Strategy<Value = String> {
    pick(&["\r\n"], &["\n", "\r", "\r\r\n", "\r\n ", "\r\n\t", "\r\n\r\n", ""])
}

fn header() -> impl Strategy<Value = String> {
    let name = pick(
        &["X", "Host", "Content-Length", "Transfer-Encoding", "Connection", "Expect", "x-y.z", "host"],
        &["", "X Y", "X\u{0}", "(", "Ü", "X\t"],
    );
    let colon = pick(&[":", ": ", ":\t", ":  "], &["", " :", "\t:", "::", ";"]);
    let value = pick(
        &["a", "1", "0", "chunked", "close", "100-continue", "localhost:80", "[::1]", "", "a b", "ü"],
        &[
            "\u{1}",
            "chunked, gzip",
            "+1",
            "1, 1",
            "a,b",
            "99999999999999999999",
            "\u{7f}",
            "a@b",
            "a:b:c",
            "a%",
            "[::",
        ],
    );
    let behind = pick(&[""], &[" ", "\t ", "\u{b}"]);
    (name, colon, value, behind, line_end())
        .prop_map(|(name, colon, value, behind, end)| format!("{name}{colon}{value}{behind}{end}"))
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let before = pick(&[""], &["\r\n", "\r\n\r\n", "\n", " "]);
    let method = pick(&["GET", "POST", "OPTIONS", "DELETE"], &["get", "FOO", "", "G\tT", "GET "]);
    let gap = pick(&[" "], &["", "  ", "\t"]);
    let target = pick(
        &["/", "/a/b?c=d", "/%41", "http://h/p", "https://h:1?q", "*", "/a?b?c", "//x"],
        &[
            "",
            "a",
            "/a b",
            "/%",
            "/%4",
            "/#",
            "http://",
            "http://u@h/",
            "ftp://h/",
            "/\u{1}",
            "/ü",
            "http://h:x/",
            "**",
            "HTTP://h",
        ],
    );
    let version = pick(
        &["HTTP/1.1", "HTTP/1.1", "HTTP/1.0"],
        &["HTTP/2.0", "http/1.1", "HTTP/1.1 ", "HTTP/1.10", "", "HTTP/1.2"],
    );
    let host = pick(&["Host: a\r\n"], &["", "Host: a\r\nHost: a\r\n", "Host:\r\n"]);
    let rest = (host, proptest::collection::vec(header(), 0..4), pick(&["\r\n"], &["\n", "", "\r"]));
    let line = (before, method, gap, target, version, line_end());
    let flip = proptest::option::weighted(0.3, (any::<proptest::sample::Index>(), any::<u8>()));
    (line, rest, flip).prop_map(
        |((before, method, gap, target, version, end), (host, headers, last), flip)| {
            let text =
                format!("{before}{method}{gap}{target} {version}{end}{host}{}{last}tail", headers.concat());
            let mut bytes = text.into_bytes();
            if let Some((at, byte)) = flip {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn two_parsers_agree_on_what_a_request_is(bytes in request()) {
        prop_assert_eq!(ours(&bytes), second::read(&bytes), "{:?}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn the_two_parsers_agree_on_every_malformed_head() {
    for (what, bytes) in malformed() {
        // Limits are ours alone.
        if !what.contains("KiB") && !what.contains("65 headers") {
            assert_eq!(ours(&bytes), second::read(&bytes), "{what}");
        }
    }
}
