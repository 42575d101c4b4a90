//! A second request parser, written from RFC 9112, RFC 9110 and RFC 3986 alone and as plainly as they can
//! be followed: one production of the grammar a function, no shared code with the first. What it adds is
//! what the daemon documents on top: known methods only, exactly one Host, exactly `chunked`.

use super::Read;
use towpath::wire::http::Framing;

/// What is left to read. Every production takes its part from the front or fails.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn literal(&mut self, text: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(text)?;
        Some(())
    }

    fn run(&mut self, allowed: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.0.iter().position(|&byte| !allowed(byte)).unwrap_or(self.0.len());
        let (run, rest) = self.0.split_at(end);
        self.0 = rest;
        run
    }
}

/// `HTTP-message = start-line CRLF *( field-line CRLF ) CRLF [ message-body ]`
pub(super) fn read(bytes: &[u8]) -> Option<Read> {
    let mut input = Input(bytes);
    // RFC 9112 2.2: at least one empty line before a request line is to be ignored. One is.
    if input.0.starts_with(b"\r\n") {
        input.literal(b"\r\n")?;
    }
    let method = text(input.run(is_tchar))?;
    if !["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].contains(&method) {
        return None;
    }
    input.literal(b" ")?;
    let target = text(input.run(|byte| byte > b' ' && byte < 0x7f))?;
    input.literal(b" ")?;
    let http11 = match text(input.run(|byte| byte > b' ' && byte < 0x7f))? {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return None,
    };
    input.literal(b"\r\n")?;
    let mut fields = Vec::new();
    while !input.0.starts_with(b"\r\n") {
        fields.push(field_line(&mut input)?);
    }
    input.literal(b"\r\n")?;
    let taken = bytes.len() - input.0.len();

    let hosts = values(&fields, "host");
    let [host] = hosts[..] else { return None };
    let host = text(host).filter(|host| uri_host_and_port(host))?;
    let (authority, path, query) = request_target(method, target)?;
    let framing = message_body(&fields, http11)?;
    // RFC 9110 10.1.1: 417 for an expectation that cannot be met; HTTP/1.0 has none.
    let expectations = values(&fields, "expect");
    let met = match &expectations[..] {
        [] => true,
        [one] => one.eq_ignore_ascii_case(b"100-continue"),
        _ => false,
    };
    if http11 && !met {
        return None;
    }
    Some(Read {
        method: method.to_owned(),
        path,
        query,
        host: authority.unwrap_or(host.to_owned()),
        http11,
        framing,
        taken,
    })
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// `tchar`, RFC 9110 5.6.2
fn is_tchar(byte: u8) -> bool {
    matches!(byte,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
}

/// `field-line = field-name ":" OWS field-value OWS`
fn field_line<'a>(input: &mut Input<'a>) -> Option<(String, &'a [u8])> {
    let name = input.run(is_tchar);
    if name.is_empty() {
        return None;
    }
    input.literal(b":")?;
    // field-vchar = VCHAR / obs-text; between them SP and HTAB.
    let value =
        input.run(|byte| byte == b'\t' || byte == b' ' || (0x21..0x7f).contains(&byte) || byte >= 0x80);
    input.literal(b"\r\n")?;
    let is_space = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let from = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let upto = value.iter().rposition(|byte| !is_space(byte)).map_or(from, |last| last + 1);
    Some((text(name)?.to_ascii_lowercase(), &value[from..upto]))
}

fn values<'a>(fields: &[(String, &'a [u8])], name: &str) -> Vec<&'a [u8]> {
    fields.iter().filter(|(own, _)| own == name).map(|(_, value)| *value).collect()
}

/// RFC 9112 6.3
fn message_body(fields: &[(String, &[u8])], http11: bool) -> Option<Framing> {
    let codings = values(fields, "transfer-encoding");
    let lengths = values(fields, "content-length");
    match (&codings[..], &lengths[..]) {
        ([], []) => Some(Framing::Empty),
        ([b"chunked"], []) if http11 => Some(Framing::Chunked),
        ([], [length]) => {
            // Content-Length = 1*DIGIT
            if length.is_empty() {
                return None;
            }
            let mut n: u64 = 0;
            for &byte in *length {
                let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
                n = n.checked_mul(10)?.checked_add(u64::from(digit))?;
            }
            Some(if n == 0 { Framing::Empty } else { Framing::Length(n) })
        }
        _ => None,
    }
}

/// RFC 9112 3.2: origin-form, absolute-form, asterisk-form.
fn request_target(method: &str, target: &str) -> Option<(Option<String>, String, String)> {
    if target == "*" {
        return (method == "OPTIONS").then(|| (None, "*".to_owned(), String::new()));
    }
    if target.starts_with('/') {
        let (path, query) = path_and_query(target)?;
        return Some((None, path, query));
    }
    let colon = target.find(':')?;
    let (scheme, rest) = target.split_at(colon);
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        return None;
    }
    let rest = rest.strip_prefix("://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    if !uri_host_and_port(authority) {
        return None;
    }
    let (path, query) = path_and_query(rest)?;
    Some((Some(authority.to_owned()), path, query))
}

/// `path-abempty [ "?" query ]`; an empty path is `/`.
fn path_and_query(target: &str) -> Option<(String, String)> {
    let (path, query) = match target.find('?') {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, ""),
    };
    // pchar = unreserved / pct-encoded / sub-delims / ":" / "@". Brackets are let through by both parsers:
    // browsers send them in queries.
    let pchar = |c: char| unreserved(c) || sub_delim(c) || matches!(c, ':' | '@' | '[' | ']');
    let fine = all(path, |c| pchar(c) || c == '/') && all(query, |c| pchar(c) || matches!(c, '/' | '?'));
    fine.then(|| (if path.is_empty() { "/".to_owned() } else { path.to_owned() }, query.to_owned()))
}

fn unreserved(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~')
}

fn sub_delim(c: char) -> bool {
    "!$&'()*+,;=".contains(c)
}

/// Every character is allowed, or `%` and two hex digits.
fn all(text: &str, allowed: impl Fn(char) -> bool) -> bool {
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let fine = match c {
            '%' => {
                [rest.next(), rest.next()].iter().all(|digit| digit.is_some_and(|c| c.is_ascii_hexdigit()))
            }
            c => allowed(c),
        };
        if !fine {
            return false;
        }
    }
    true
}

/// `uri-host [ ":" port ]`, RFC 9110 4.2.1 and 7.2; the host is not empty, a port has at most five digits.
fn uri_host_and_port(text: &str) -> bool {
    let (host_is_right, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some(end) = rest.find(']') else { return false };
        (rest[..end].parse::<std::net::Ipv6Addr>().is_ok(), &rest[end + 1..])
    } else {
        let end = text.find(':').unwrap_or(text.len());
        let host = &text[..end];
        (!host.is_empty() && all(host, |c| unreserved(c) || sub_delim(c)), &text[end..])
    };
    let port_is_right = match port.as_bytes() {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    host_is_right && port_is_right
}
