//! A request head: collected, then judged.

use std::fmt;

/// What a head may be at most.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the whole head, its empty line included (16 KiB).
    pub head_bytes: usize,
    /// Bytes of the request target (8 KiB).
    pub target_bytes: usize,
    /// Header lines (64).
    pub headers: usize,
}

impl Default for HeadLimits {
    fn default() -> HeadLimits {
        HeadLimits { head_bytes: 16 * 1024, target_bytes: 8 * 1024, headers: MAX_HEADERS }
    }
}

/// More header lines than this are never parsed, whatever the limits say.
const MAX_HEADERS: usize = 64;

/// Why a request was not accepted: what to answer before closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status to answer with.
    pub status: u16,
    /// The code of the problem document.
    pub code: &'static str,
    /// What was wrong.
    pub detail: &'static str,
}

const fn bad(detail: &'static str) -> Refusal {
    Refusal { status: 400, code: "bad_request", detail }
}

/// The methods that are known; others are answered with 501.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    #[allow(missing_docs)]
    Get,
    #[allow(missing_docs)]
    Head,
    #[allow(missing_docs)]
    Post,
    #[allow(missing_docs)]
    Put,
    #[allow(missing_docs)]
    Patch,
    #[allow(missing_docs)]
    Delete,
    #[allow(missing_docs)]
    Options,
}

impl Method {
    /// As it stands on the request line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
        }
    }

    fn parse(token: &str) -> Result<Method, Refusal> {
        // Methods are case-sensitive: `get` is another method than `GET`.
        Ok(match token {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "PATCH" => Method::Patch,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            _ => {
                return Err(Refusal {
                    status: 501,
                    code: "unknown_method",
                    detail: "the method is not known here",
                });
            }
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The protocol version of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: whole answers, no chunks, and the connection closes unless asked otherwise (it closes).
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How the body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// This many bytes.
    Length(u64),
    /// Chunks until one of size zero.
    Chunked,
}

/// A request head that was accepted.
#[derive(Clone)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The path as it came: origin form, percent-encoded, or `*`.
    pub path: String,
    /// What follows the `?`, as it came; empty if there is none.
    pub query: String,
    /// The protocol version.
    pub version: Version,
    /// The authority the request is for: from an absolute target, else from `Host`.
    pub host: String,
    /// How its body is delimited.
    pub framing: Framing,
    /// Whether the connection may be used again after the answer.
    pub keep_alive: bool,
    /// Whether the peer waits for a `100 Continue`.
    pub expects_continue: bool,
    headers: Headers,
}

/// Header lines in one buffer: names in lower case.
#[derive(Clone, Default)]
struct Headers {
    text: Vec<u8>,
    /// (name start, value start, end) in `text`.
    lines: Vec<(u16, u16, u16)>,
}

impl Headers {
    /// The values of every line of that name (in lower case).
    fn of<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let is_it = move |&&(begin, middle, _): &&(u16, u16, u16)| {
            self.text[usize::from(begin)..usize::from(middle)] == *name.as_bytes()
        };
        self.lines
            .iter()
            .filter(is_it)
            .map(|&(_, value, end)| &self.text[usize::from(value)..usize::from(end)])
    }

    fn push(&mut self, name: &[u8], value: &[u8]) {
        // A head is at most 16 KiB, so positions fit; a larger limit is cut to that in `HeadReader`.
        let start = self.text.len() as u16;
        self.text.extend_from_slice(name);
        self.text[usize::from(start)..].make_ascii_lowercase();
        let middle = self.text.len() as u16;
        self.text.extend_from_slice(value);
        self.lines.push((start, middle, self.text.len() as u16));
    }
}

impl Head {
    /// The head of a request that came over no connection. Of `headers`, names are in lower case, and values are
    /// ASCII and short.
    pub(crate) fn local(method: Method, path: &str, headers: &[(&str, String)]) -> Head {
        let mut head = Head {
            method,
            path: path.to_owned(),
            query: String::new(),
            version: Version::Http11,
            host: String::new(),
            framing: Framing::Empty,
            keep_alive: false,
            expects_continue: false,
            headers: Headers::default(),
        };
        headers.iter().for_each(|(name, value)| head.headers.push(name.as_bytes(), value.as_bytes()));
        head
    }

    /// The value of a header that came exactly once (name in lower case). Absent, repeated and
    /// non-ASCII values are all `None`: nothing is decided by a header that says two things.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.of(name);
        // Counted before values are looked at: a second one that is not ASCII is a second one.
        match (found.next(), found.next()) {
            (Some(value), None) => ascii(value),
            _ => None,
        }
    }

    /// All values of a header that are ASCII (name in lower case).
    pub fn headers<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers.of(name).filter_map(ascii)
    }

    /// Whether a header is there at all, whatever it says.
    pub fn has(&self, name: &str) -> bool {
        self.headers.of(name).next().is_some()
    }

    /// The members of a comma-separated header, over all its lines, trimmed.
    pub fn list<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers(name)
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|member| !member.is_empty())
    }

    /// Whether a comma-separated header has this member, in any case.
    pub fn lists(&self, name: &str, member: &str) -> bool {
        self.list(name).any(|one| one.eq_ignore_ascii_case(member))
    }

    /// The protocol an `Upgrade` asks for, if the request is one: HTTP/1.1, `Connection: upgrade`, and
    /// exactly one protocol.
    pub fn upgrade(&self) -> Option<&str> {
        if self.version != Version::Http11 || !self.lists("connection", "upgrade") {
            return None;
        }
        self.header("upgrade").filter(|protocol| is_token_list_of_one(protocol))
    }
}

fn ascii(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().filter(|value| value.is_ascii())
}

fn is_token_list_of_one(protocol: &str) -> bool {
    !protocol.is_empty() && protocol.bytes().all(|byte| is_token(byte) || byte == b'/')
}

impl fmt::Debug for Head {
    /// Method and path only: query strings and headers may carry secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Collects one head, however it is cut into pieces.
///
/// Invariant: `scanned` bytes of the head being collected have been looked at, and no line in them
/// ended with anything but CR LF.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadReader {
    scanned: usize,
    /// Where the current line began.
    line: usize,
}

impl HeadReader {
    /// Looks at everything that has arrived since the end of the last request, and answers the head
    /// and how many bytes it took, `None` if more must come.
    ///
    /// A line that ends without CR is refused as soon as its LF is seen, so a head that would never
    /// end does not have to time out.
    pub fn read(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<(Head, usize)>, Refusal> {
        // RFC 9112 2.2: one empty line before a request line is forgiven (old clients send it after a
        // POST), a second is not.
        let skip = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
        if skip == 2 && self.scanned == 0 {
            *self = HeadReader { scanned: 2, line: 2 };
        }
        let limit = limits.head_bytes.min(usize::from(u16::MAX));
        while let Some(at) = find_line_end(bytes, self.scanned) {
            if bytes[at] == b'\r' {
                match bytes.get(at + 1) {
                    Some(b'\n') => {}
                    Some(_) => return Err(bad("a carriage return without a line feed")),
                    None => {
                        self.scanned = at;
                        break;
                    }
                }
                let empty = at == self.line;
                if empty && at == skip {
                    return Err(bad("empty lines before the request line"));
                }
                (self.scanned, self.line) = (at + 2, at + 2);
                if empty {
                    let end = at + 2;
                    if end - skip > limit {
                        return Err(HEAD_TOO_LARGE);
                    }
                    let head = parse(&bytes[skip..end], limits)?;
                    *self = HeadReader::default();
                    return Ok(Some((head, end)));
                }
            } else {
                return Err(bad("a line feed without a carriage return"));
            }
        }
        if bytes.get(self.scanned) != Some(&b'\r') {
            self.scanned = bytes.len().max(skip);
        }
        if bytes.len() - skip.min(bytes.len()) > limit {
            return Err(HEAD_TOO_LARGE);
        }
        self.judge_beginning(&bytes[skip.min(bytes.len())..], limits)?;
        Ok(None)
    }

    /// What can be refused before the head is whole: bytes no request line holds (a TLS handshake, a
    /// binary protocol), a target over its limit.
    fn judge_beginning(&self, bytes: &[u8], limits: &HeadLimits) -> Result<(), Refusal> {
        let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
        if line.iter().take(limits.target_bytes + 64).any(|&byte| !(0x20..0x7f).contains(&byte)) {
            return Err(bad("bytes in the request line that no request line holds"));
        }
        if line.len() > limits.target_bytes + 64 {
            return Err(TARGET_TOO_LONG);
        }
        Ok(())
    }
}

const HEAD_TOO_LARGE: Refusal =
    Refusal { status: 431, code: "head_too_large", detail: "the request head is over its limit" };
const TARGET_TOO_LONG: Refusal =
    Refusal { status: 414, code: "uri_too_long", detail: "the request target is over its limit" };

fn find_line_end(bytes: &[u8], from: usize) -> Option<usize> {
    let found = bytes.get(from..)?.iter().position(|&byte| byte == b'\r' || byte == b'\n')?;
    Some(from + found)
}

/// RFC 9110 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = table(b"!#$%&'*+-.^_`|~");
    TOKEN[usize::from(byte)]
}

/// Letters, digits and these.
const fn table(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
}

/// Judges a whole head whose lines are known to end in CR LF.
fn parse(bytes: &[u8], limits: &HeadLimits) -> Result<Head, Refusal> {
    let line_end = find_line_end(bytes, 0).unwrap_or(bytes.len());
    let (method, target, version) = request_line(&bytes[..line_end], limits)?;
    let lines = &bytes[line_end + 2..bytes.len() - 2];
    let mut headers = Headers { text: Vec::with_capacity(lines.len()), lines: Vec::with_capacity(8) };
    let mut rest = lines;
    while !rest.is_empty() {
        let end = find_line_end(rest, 0).unwrap_or(rest.len());
        let (name, value) = judge_line(&rest[..end])?;
        if headers.lines.len() == limits.headers.min(MAX_HEADERS) {
            return Err(TOO_MANY_HEADERS);
        }
        headers.push(name, value);
        rest = rest.get(end + 2..).unwrap_or_default();
    }
    judge(method, target, version, headers)
}

const TOO_MANY_HEADERS: Refusal =
    Refusal { status: 431, code: "too_many_headers", detail: "more header lines than are accepted" };

/// `method SP request-target SP HTTP-version`, one space each, no more.
fn request_line<'a>(line: &'a [u8], limits: &HeadLimits) -> Result<(Method, &'a str, Version), Refusal> {
    let line =
        std::str::from_utf8(line).ok().filter(|line| line.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
    let line = line.ok_or(bad("bytes in the request line that no request line holds"))?;
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad("the request line is not `method target version`"));
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(bad("the method is not a token"));
    }
    if target.len() > limits.target_bytes {
        return Err(TARGET_TOO_LONG);
    }
    let version = match version {
        "HTTP/1.1" => Version::Http11,
        "HTTP/1.0" => Version::Http10,
        other if is_http_version(other) => {
            return Err(Refusal {
                status: 505,
                code: "http_version",
                detail: "only HTTP/1.1 is spoken here",
            });
        }
        _ => return Err(bad("the request line does not end in an HTTP version")),
    };
    Ok((Method::parse(method)?, target, version))
}

fn is_http_version(text: &str) -> bool {
    matches!(text.as_bytes(), [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// One `field-name ":" OWS field-value OWS`, taken apart; also what trailers are held to. No continuation lines, no
/// spaces before the colon, no control bytes in values.
pub(super) fn judge_line(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
        return Err(bad("a header continued on a second line"));
    }
    let Some(colon) = line.iter().position(|&byte| byte == b':') else {
        return Err(bad("a header line without a colon"));
    };
    if colon == 0 || !line[..colon].iter().all(|&byte| is_token(byte)) {
        return Err(bad("a header name that is not a token"));
    }
    // Tab, the visible bytes and those above 0x7f, which have no meaning but are allowed.
    if line[colon..].iter().any(|&byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f) {
        return Err(bad("a control byte in a header value"));
    }
    Ok((&line[..colon], line[colon + 1..].trim_ascii()))
}

fn judge(method: Method, target: &str, version: Version, headers: Headers) -> Result<Head, Refusal> {
    let host = only(&headers, "host", bad("more than one Host"))?.ok_or(bad("no Host"))?;
    let host = std::str::from_utf8(host).ok().filter(|host| is_authority(host));
    let host = host.ok_or(bad("a Host that is not a host and a port"))?;
    let (authority, path, query) = split_target(method, target)?;
    let host = authority.unwrap_or(host).to_owned();
    let framing = framing(&headers, version)?;

    let mut head = Head {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        version,
        host,
        framing,
        keep_alive: false,
        expects_continue: false,
        headers,
    };
    head.keep_alive = version == Version::Http11 && !head.lists("connection", "close");
    if version == Version::Http11 && head.has("expect") {
        // RFC 9110 10.1.1: the only expectation there is.
        if !head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            let detail = "the only expectation that can be met is `100-continue`";
            return Err(Refusal { status: 417, code: "expectation_failed", detail });
        }
        head.expects_continue = framing != Framing::Empty;
    }
    Ok(head)
}

fn only<'a>(headers: &'a Headers, name: &str, twice: Refusal) -> Result<Option<&'a [u8]>, Refusal> {
    let mut found = headers.of(name);
    let first = found.next();
    match found.next() {
        Some(_) => Err(twice),
        None => Ok(first),
    }
}

/// RFC 9112 6: the one place that decides how long a body is.
fn framing(headers: &Headers, version: Version) -> Result<Framing, Refusal> {
    let length = only(headers, "content-length", bad("more than one Content-Length"))?;
    let coding = only(headers, "transfer-encoding", bad("more than one Transfer-Encoding"))?;
    match (length, coding) {
        (None, None) => Ok(Framing::Empty),
        (Some(_), Some(_)) => Err(bad("Content-Length together with Transfer-Encoding")),
        // A sender of HTTP/1.0 cannot know what chunks are; the framing was tampered with.
        (None, Some(_)) if version == Version::Http10 => Err(bad("Transfer-Encoding in HTTP/1.0")),
        // Exactly this word: coding names may be in any case, but nobody sends another, and what two
        // readers may understand differently is where smuggling lives.
        (None, Some(b"chunked")) => Ok(Framing::Chunked),
        (None, Some(_)) => Err(bad("a Transfer-Encoding other than `chunked`")),
        (Some(digits), None) => {
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return Err(bad("a Content-Length that is not a number"));
            }
            let digits = std::str::from_utf8(digits).expect("only digits");
            match digits.parse() {
                Ok(0) => Ok(Framing::Empty),
                Ok(length) => Ok(Framing::Length(length)),
                Err(_) => Err(bad("a Content-Length that no machine can hold")),
            }
        }
    }
}

/// Authority (from an absolute target), path and query.
fn split_target(method: Method, target: &str) -> Result<(Option<&str>, &str, &str), Refusal> {
    if target == "*" {
        return match method {
            Method::Options => Ok((None, "*", "")),
            _ => Err(bad("the target `*` is for OPTIONS")),
        };
    }
    if !target.bytes().all(is_uri) {
        return Err(bad("bytes in the request target that no target holds"));
    }
    if !percents_are_whole(target) {
        return Err(bad("a percent sign without two hex digits in the request target"));
    }
    let (authority, rest) = match target.strip_prefix('/') {
        Some(_) => (None, target),
        None => absolute(target)?,
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    Ok((authority, if path.is_empty() { "/" } else { path }, query))
}

fn absolute(target: &str) -> Result<(Option<&str>, &str), Refusal> {
    let (scheme, rest) = target.split_once("://").ok_or(bad("a request target of an unknown form"))?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(bad("a request target of an unknown scheme"));
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !is_authority(authority) {
        return Err(bad("a request target without a host"));
    }
    Ok((Some(authority), path))
}

/// Everything of RFC 3986 but `#`, which never travels.
fn is_uri(byte: u8) -> bool {
    const URI: [bool; 256] = table(b"-._~:/?[]@!$&'()*+,;=%");
    URI[usize::from(byte)]
}

fn percents_are_whole(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut percents = (0..bytes.len()).filter(|&at| bytes[at] == b'%');
    percents.all(|at| matches!(bytes.get(at + 1..at + 3), Some([a, b]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

/// `host [":" port]`: a name, an IPv4 address, or an IPv6 address in brackets. No user information.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return false;
                }
                ("v6", port)
            }
            None => return false,
        },
        None => match text.find(':') {
            Some(colon) => text.split_at(colon),
            None => (text, ""),
        },
    };
    let port_is_right = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.len() <= 5,
        None => port.is_empty(),
    };
    let name_is_right =
        host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&byte));
    !host.is_empty() && port_is_right && name_is_right && percents_are_whole(host)
}
