//! A response: built by a handler, written by a link, read by a dialer.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::head::{Refusal, Version};
use crate::state::time::Wall;

/// What a response carries.
#[derive(Clone)]
pub enum Body {
    /// Nothing.
    Empty,
    /// Bytes of its own.
    Bytes(Vec<u8>),
    /// Bytes that live as long as the program.
    Static(&'static [u8]),
    /// Bytes shared with others.
    Shared(Arc<[u8]>),
}

impl Body {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Body::Empty => &[],
            Body::Bytes(bytes) => bytes,
            Body::Static(bytes) => bytes,
            Body::Shared(bytes) => bytes,
        }
    }
}

/// An answer: a status, headers, a body that is whole.
///
/// ```
/// use towpath::wire::http::Response;
/// let created = Response::json(201, &serde_json::json!({"id": 1})).header("location", "/v1/streams/a");
/// let gone = Response::problem(404, "not_found", "there is no stream of that name");
/// ```
#[derive(Clone)]
pub struct Response {
    status: u16,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    body: Body,
    close: bool,
}

impl Response {
    /// An answer without a body.
    pub fn new(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Body::Empty, close: false }
    }

    /// An answer in JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Response {
        match serde_json::to_vec(value) {
            Ok(bytes) => {
                Response::new(status).header("content-type", "application/json").body(Body::Bytes(bytes))
            }
            // Only a map with keys that are not strings, or a `Serialize` that fails on purpose.
            Err(error) => {
                Response::problem(500, "internal", &format!("the answer cannot be written as JSON: {error}"))
            }
        }
    }

    /// An error: `application/problem+json` with a stable `code`.
    pub fn problem(status: u16, code: &str, detail: &str) -> Response {
        Response::problem_with(status, code, detail, serde_json::Map::new())
    }

    /// An error that says more: `extra` members stand beside the usual ones (`"worker"` of a 409).
    pub fn problem_with(
        status: u16,
        code: &str,
        detail: &str,
        extra: serde_json::Map<String, serde_json::Value>,
    ) -> Response {
        let mut problem = serde_json::Map::new();
        problem.insert("type".into(), "about:blank".into());
        problem.insert("title".into(), reason_phrase(status).into());
        problem.insert("status".into(), status.into());
        problem.insert("code".into(), code.into());
        problem.insert("detail".into(), detail.into());
        problem.extend(extra);
        let text = serde_json::Value::Object(problem).to_string();
        Response::new(status)
            .header("content-type", "application/problem+json")
            .header("cache-control", "no-store")
            .body(Body::Bytes(text.into_bytes()))
    }

    /// Plain text.
    pub fn text(status: u16, text: impl Into<String>) -> Response {
        Response::new(status)
            .header("content-type", "text/plain; charset=utf-8")
            .body(Body::Bytes(text.into().into_bytes()))
    }

    /// Bytes of some type.
    pub fn bytes(status: u16, content_type: &str, bytes: Vec<u8>) -> Response {
        Response::new(status).header("content-type", content_type).body(Body::Bytes(bytes))
    }

    /// Adds a header (name in lower case). Bytes that no header value holds become spaces, so that
    /// nothing a peer sent can begin a line of its own.
    #[must_use]
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl AsRef<str>) -> Response {
        let is_odd = |byte: u8| byte.is_ascii_control() && byte != b'\t';
        let value = value.as_ref();
        let value = match value.bytes().any(is_odd) {
            true => value.replace(|c: char| u8::try_from(c).is_ok_and(is_odd), " "),
            false => value.to_owned(),
        };
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds a header whose value is ours from the first letter to the last: it is neither looked at nor copied.
    #[must_use]
    pub(crate) fn ours(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Response {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: Body) -> Response {
        self.body = body;
        self
    }

    /// Closes the connection behind this answer.
    #[must_use]
    pub fn closing(mut self) -> Response {
        self.close = true;
        self
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// What it carries.
    pub fn content(&self) -> &[u8] {
        self.body.as_slice()
    }

    /// The value of a header that was set (name in lower case), the first if there are several.
    pub fn header_value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }

    /// Whether the connection closes behind it.
    pub fn closes(&self) -> bool {
        self.close
    }

    /// Writes status line, headers and the empty line, framed as `framing` says, and gives the body
    /// back for the caller to send (empty where the answer has none: HEAD, 204, 304).
    pub fn write(self, out: &mut Vec<u8>, how: Head) -> Body {
        let bare = self.status == 204 || self.status == 304 || self.status < 200;
        out.extend_from_slice(b"HTTP/1.1 ");
        push_number(out, u64::from(self.status));
        out.push(b' ');
        out.extend_from_slice(reason_phrase(self.status).as_bytes());
        out.extend_from_slice(b"\r\n");
        if self.status >= 200 {
            out.extend_from_slice(b"date: ");
            out.extend_from_slice(&http_date(how.wall));
            out.extend_from_slice(b"\r\n");
        }
        for (name, value) in &self.headers {
            push_header(out, name, value);
        }
        match how.body {
            Framed::Whole if bare => {}
            Framed::Whole => {
                out.extend_from_slice(b"content-length: ");
                push_number(out, self.body.as_slice().len() as u64);
                out.extend_from_slice(b"\r\n");
            }
            Framed::Chunked => push_header(out, "transfer-encoding", "chunked"),
            Framed::UntilClose => {}
        }
        if how.close && self.status >= 200 {
            push_header(out, "connection", "close");
        }
        out.extend_from_slice(b"\r\n");
        if bare || how.head_only { Body::Empty } else { self.body }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({}, {} bytes)", self.status, self.body.as_slice().len())
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Response {
        Response::problem(refusal.status, refusal.code, refusal.detail).closing()
    }
}

/// How a response is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framed {
    /// `Content-Length` and the whole body.
    Whole,
    /// Chunks follow.
    Chunked,
    /// Bytes follow until the connection closes (HTTP/1.0), or another protocol does (101).
    UntilClose,
}

/// What a link adds to a response when it writes it.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// What the calendar says, for `Date`.
    pub wall: Wall,
    /// How the body is delimited.
    pub body: Framed,
    /// Whether the connection closes behind it.
    pub close: bool,
    /// Whether the request was a HEAD: everything but the body.
    pub head_only: bool,
}

fn push_header(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

const DAYS: &[u8; 21] = b"MonTueWedThuFriSatSun";
const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
/// The last second of the year 9999, behind which a year has more digits.
const LAST: i64 = 253_402_300_799;

/// A date as HTTP writes it (RFC 9110 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
///
/// By hand, without a format: every answer has one.
pub fn http_date(wall: Wall) -> [u8; 29] {
    let seconds = wall.as_millis().div_euclid(1_000).clamp(0, LAST);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that the day that is not always there is the last: 400 of them have 146,097 days.
    let (era, day) = ((days + 719_468) / 146_097, (days + 719_468) % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year + i64::from(month >= 10);
    let month = (month + 2) % 12;
    let mut text = *b"ddd, 00 mmm 0000 00:00:00 GMT";
    let mut word = |at: usize, words: &[u8], which: i64| {
        text[at..at + 3].copy_from_slice(&words[which as usize * 3..which as usize * 3 + 3]);
    };
    // 1970 began on a Thursday.
    word(0, DAYS, (days + 3) % 7);
    word(8, MONTHS, month);
    let mut two = |at: usize, number: i64| {
        text[at..at + 2].copy_from_slice(&[b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]);
    };
    two(5, day);
    two(12, year / 100);
    two(14, year % 100);
    two(17, second / 3_600);
    two(20, second / 60 % 60);
    two(23, second % 60);
    text
}

/// The words behind a status.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Unknown",
    }
}

/// Reads the head of a response, for the end that dialed.
#[derive(Debug, Default)]
pub struct ResponseReader {
    held: Vec<u8>,
}

/// A response head as a dialer sees it.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// The protocol version.
    pub version: Version,
    /// The status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
}

impl ResponseHead {
    /// The value of a header that came exactly once (name in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let value = found.next().map(|(_, value)| value.as_str());
        if found.next().is_some() { None } else { value }
    }
}

impl ResponseReader {
    /// A response head over this is not waited for.
    const MAX: usize = 16 * 1024;

    /// Adds what arrived; answers the head and the bytes behind it once it is whole. Interim answers
    /// (1xx but 101) are skipped.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<(ResponseHead, Vec<u8>)>, &'static str> {
        self.held.extend_from_slice(bytes);
        loop {
            let Some(at) = self.held.windows(4).position(|four| four == b"\r\n\r\n") else {
                return match self.held.len() > ResponseReader::MAX {
                    true => Err("the head of the answer is too large"),
                    false => Ok(None),
                };
            };
            let rest = self.held.split_off(at + 4);
            let head = parse_response(&std::mem::replace(&mut self.held, rest))?;
            if !(100..200).contains(&head.status) || head.status == 101 {
                return Ok(Some((head, std::mem::take(&mut self.held))));
            }
        }
    }
}

fn parse_response(bytes: &[u8]) -> Result<ResponseHead, &'static str> {
    let mut slots = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut slots);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) | Err(_) => return Err("the answer is not HTTP/1.1"),
    }
    let headers = response.headers.iter();
    let headers = headers
        .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned()));
    Ok(ResponseHead {
        version: if response.version == Some(1) { Version::Http11 } else { Version::Http10 },
        status: response.code.ok_or("the answer has no status")?,
        headers: headers.collect(),
    })
}
