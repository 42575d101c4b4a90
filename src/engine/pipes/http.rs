//! Carriers behind HTTP: `Upgrade: towpath-pipe/1` or a WebSocket, directly or through a proxy.
//!
//! What is tried first is the raw upgrade, which costs least. Something in between that does not pass it
//! on answers with a status of its own; the WebSocket is tried then, and remembered.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::carrier::{Carrier, Socket};
use super::dial::{DialError, Dialer, Patience};
use crate::rt::Lock;
use crate::state::pipe::{End, Ending};
use crate::wire::dial::Address;

use crate::wire::{ClientTls, Target, websocket};

/// The protocol named in the upgrade.
pub const PROTOCOL: &str = "towpath-pipe/1";
/// Where pipes are asked for.
pub const PATH: &str = "/v1/pipe";
/// The longest answer to an upgrade that is read.
const HEAD_MAX: usize = 16 * 1024;

/// How frames travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The upgrade first, a WebSocket where that does not pass.
    Auto,
    /// Only the upgrade.
    Upgrade,
    /// Only a WebSocket.
    WebSocket,
}

/// What stands between here and the server.
#[derive(Clone, PartialEq, Eq)]
pub enum Proxy {
    /// An HTTP proxy that is asked to CONNECT.
    Http {
        /// Its address.
        host: String,
        /// Its port.
        port: u16,
        /// `user:password`, if it wants one.
        login: Option<String>,
    },
    /// A SOCKS5 proxy, which resolves names itself.
    Socks5 {
        /// Its address.
        host: String,
        /// Its port.
        port: u16,
        /// User and password, if it wants them.
        login: Option<(String, String)>,
    },
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proxy::Http { host, port, .. } => write!(f, "http://{host}:{port}"),
            Proxy::Socks5 { host, port, .. } => write!(f, "socks5://{host}:{port}"),
        }
    }
}

impl Proxy {
    /// Reads `http://[user:password@]host:port`, `socks5://…` or `host:port`.
    ///
    /// # Errors
    /// With what is wrong, in words.
    pub fn parse(text: &str) -> Result<Proxy, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let rest = rest.trim_end_matches('/');
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest),
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) => {
                (host, port.parse().map_err(|_| "the proxy's port is no number below 65536")?)
            }
            None if scheme == "http" => (place, 8080),
            None => (place, 1080),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err("the proxy has no host".into());
        }
        match scheme {
            "http" => Ok(Proxy::Http { host, port, login: login.map(str::to_owned) }),
            "socks5" | "socks5h" => {
                let login = login.map(|login| login.split_once(':').unwrap_or((login, "")));
                let login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
                Ok(Proxy::Socks5 { host, port, login })
            }
            other => Err(format!("a proxy is http:// or socks5://, not {other}://")),
        }
    }

    fn place(&self) -> (&str, u16) {
        match self {
            Proxy::Http { host, port, .. } | Proxy::Socks5 { host, port, .. } => (host, *port),
        }
    }
}

/// Dials a daemon's `/v1/pipe`.
pub struct HttpDialer {
    target: Lock<Target>,
    token: Option<String>,
    transport: Transport,
    proxy: Option<Proxy>,
    trust: Option<ClientTls>,
    /// The upgrade does not get through here.
    refused_upgrade: AtomicBool,
    path: String,
    /// What else the request says.
    headers: Vec<(&'static str, String)>,
}

impl HttpDialer {
    /// A daemon at `http(s)://host[:port]`.
    ///
    /// # Errors
    /// When the URL has no meaning, or nothing is trusted that `https` needs.
    pub fn new(
        url: &str,
        token: Option<String>,
        transport: Transport,
        proxy: Option<Proxy>,
        trust: Option<ClientTls>,
    ) -> crate::Result<HttpDialer> {
        let bad = |why: String| crate::Error::new(crate::Code::BadRequest, format!("{url}: {why}"));
        let target = Target::parse(url).map_err(|error| bad(error.to_string()))?;
        if !["http://", "https://", "unix:"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(bad("expected http://, https:// or unix:".into()));
        }
        let trust = match (trust, target.tls) {
            (None, true) => Some(ClientTls::system()?),
            (trust, _) => trust,
        };
        Ok(HttpDialer {
            target: Lock::new(target),
            token,
            transport,
            proxy,
            trust,
            refused_upgrade: AtomicBool::new(false),
            path: PATH.to_owned(),
            headers: Vec::new(),
        })
    }

    /// Another replica's relay, for a pipe that it has.
    ///
    /// # Errors
    /// When the URL has no meaning, or nothing is trusted that `https` needs.
    pub(super) fn to_replica(
        url: &str,
        path: String,
        headers: Vec<(&'static str, String)>,
        trust: Option<ClientTls>,
    ) -> crate::Result<HttpDialer> {
        let dialer = HttpDialer::new(url, None, Transport::Upgrade, None, trust)?;
        Ok(HttpDialer { path, headers, ..dialer })
    }

    fn connect(&self, target: &Target, patience: &mut Patience) -> Result<Socket, DialError> {
        match (&target.address, &self.proxy) {
            (Address::Unix(path), _) => {
                patience.connect_unix(path).map_err(|error| DialError::io("connecting to the server", &error))
            }
            (Address::Tcp(host, port), None) => patience
                .resolve(host, *port)
                .and_then(|addresses| patience.connect(&addresses))
                .map_err(|error| DialError::io(&format!("connecting to {host}:{port}"), &error)),
            (Address::Tcp(host, port), Some(proxy)) => {
                let (proxy_host, proxy_port) = proxy.place();
                let socket = patience
                    .resolve(proxy_host, proxy_port)
                    .and_then(|addresses| patience.connect(&addresses))
                    .map_err(|error| DialError::io(&format!("connecting to the proxy {proxy:?}"), &error));
                let mut socket = socket?;
                through(proxy, &mut patience.with(&mut socket), host, *port)?;
                Ok(socket)
            }
        }
    }

    /// One connection that speaks `transport`, or the status that came instead.
    fn upgrade(&self, patience: &mut Patience, websocket: bool) -> Result<Carrier, Refusal> {
        let target = self.target.lock().clone();
        let mut socket = self.connect(&target, patience)?;
        let mut tls = match (&self.trust, target.tls, &target.address) {
            (Some(trust), true, Address::Tcp(host, _)) => {
                let made = trust.connection(host).map_err(|error| DialError::io("preparing TLS", &error))?;
                Some(made)
            }
            _ => None,
        };
        let key = STANDARD.encode(patience.rt().secret::<16>());
        let mut request =
            format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\n", self.path, target.host());
        if websocket {
            request +=
                &format!("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n");
        } else {
            request += &format!("Upgrade: {PROTOCOL}\r\n");
        }
        if let Some(token) = &self.token {
            request += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in &self.headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += "\r\n";
        let seed = u64::from_be_bytes(patience.rt().secret());
        let waiting = &mut patience.with(&mut socket);
        let answered = match &mut tls {
            Some(tls) => ask(&mut Encrypted { tls, stream: waiting }, &request),
            None => ask(waiting, &request),
        };
        let (head, early) = answered.map_err(|error| match error.get_ref() {
            Some(inner) if inner.is::<rustls::Error>() => {
                // A certificate does not become valid by asking again, but a captive portal goes away.
                DialError::later(End::new(Ending::ServerUnreachable, format!("TLS failed: {error}")))
            }
            _ => DialError::io("the server did not answer the upgrade", &error),
        })?;
        if head.status != 101 {
            return Err(Refusal::Status(head));
        }
        if !websocket {
            return Ok(Carrier::raw(socket, tls, early));
        }
        if head.accept != websocket::accept_key(&key) {
            let end = End::new(Ending::Protocol, "the server's WebSocket answer has another key");
            return Err(DialError::later(end).into());
        }
        Ok(Carrier::websocket(socket, tls, early, websocket::Role::Client, seed))
    }
}

/// What an upgrade was answered with.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    accept: Option<String>,
    retry_after: u64,
    /// A daemon said so, and not something in between.
    is_ours: bool,
}

enum Refusal {
    Failed(DialError),
    Status(Answer),
}

impl From<DialError> for Refusal {
    fn from(error: DialError) -> Refusal {
        Refusal::Failed(error)
    }
}

impl Dialer for HttpDialer {
    fn dial(&self, patience: &mut Patience) -> Result<Carrier, DialError> {
        let websocket = match self.transport {
            Transport::Upgrade => false,
            Transport::WebSocket => true,
            Transport::Auto => self.refused_upgrade.load(Ordering::Relaxed),
        };
        match self.upgrade(patience, websocket) {
            Ok(carrier) => Ok(carrier),
            Err(Refusal::Failed(error)) => Err(error),
            Err(Refusal::Status(answer)) if is_final(&answer) => Err(refused(&answer)),
            Err(Refusal::Status(answer)) if self.transport == Transport::Auto && !websocket => {
                // Whoever answered may just not know this upgrade.
                match self.upgrade(patience, true) {
                    Ok(carrier) => {
                        self.refused_upgrade.store(true, Ordering::Relaxed);
                        Ok(carrier)
                    }
                    // The daemon itself, behind whatever does not pass the upgrade on.
                    Err(Refusal::Status(second)) if is_final(&second) => Err(refused(&second)),
                    Err(_) => Err(refused(&answer)),
                }
            }
            Err(Refusal::Status(answer)) => Err(refused(&answer)),
        }
    }

    fn moved(&self, url: &str) {
        match Target::parse(url) {
            Ok(target) if !self.target.lock().tls || target.tls => *self.target.lock() = target,
            // Never from an encrypted place to one in the clear.
            Ok(_) => log::warn!("pipes: not following the server to {url}, which is not encrypted"),
            Err(error) => log::warn!("pipes: the server points to {url}: {error}"),
        }
    }
}

fn is_final(answer: &Answer) -> bool {
    matches!(answer.status, 401 | 403) && answer.is_ours
}

fn refused(answer: &Answer) -> DialError {
    let text = |why: &str| format!("the server answered the upgrade with {} {why}", answer.status);
    let mut error = match answer.status {
        401 | 403 if answer.is_ours => {
            DialError::never(End::new(Ending::Auth, text("(a token with the role pipe is needed)")))
        }
        // A firewall, a captive portal, a login page: in another network it may be gone.
        401 | 403 => DialError::later(End::new(Ending::Auth, text("(and it is not a daemon that says so)"))),
        503 | 502 | 504 | 429 => DialError::later(End::new(Ending::Limit, text("(try again)"))),
        _ => DialError::later(End::new(Ending::ServerUnreachable, text("(is this a towpath daemon?)"))),
    };
    error.retry_after = std::time::Duration::from_secs(answer.retry_after.min(60));
    error
}

/// A stream inside TLS, for as long as it may wait.
struct Encrypted<'a, S> {
    tls: &'a mut rustls::Connection,
    stream: &'a mut S,
}

impl<S: Read + Write> Read for Encrypted<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.tls.complete_io(self.stream)? == (0, 0) {
                return Ok(0);
            }
        }
    }
}

impl<S: Read + Write> Write for Encrypted<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tls.is_handshaking() {
            self.tls.complete_io(self.stream)?;
        }
        let count = self.tls.writer().write(bytes)?;
        self.flush()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(self.stream)?;
        }
        Ok(())
    }
}

/// Sends a request, reads the head of the answer and what came behind it.
fn ask(stream: &mut (impl Read + Write), request: &str) -> io::Result<(Answer, Vec<u8>)> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let mut buffer = [0; 2048];
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"));
        }
        bytes.extend_from_slice(&buffer[..count]);
        if let Some((answer, length)) = parse(&bytes)? {
            return Ok((answer, bytes.split_off(length)));
        }
        if bytes.len() > HEAD_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer's head does not end"));
        }
    }
}

fn parse(bytes: &[u8]) -> io::Result<Option<(Answer, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let httparse::Status::Complete(length) = parsed else { return Ok(None) };
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(found.value).ok().map(|value| value.trim().to_owned())
    };
    let answer = Answer {
        status: response.code.unwrap_or_default(),
        accept: header("sec-websocket-accept"),
        retry_after: header("retry-after").and_then(|value| value.parse().ok()).unwrap_or(0),
        is_ours: header("content-type").is_some_and(|it| it.starts_with("application/problem+json")),
    };
    Ok(Some((answer, length)))
}

/// Asks a proxy to go on to `host:port`.
fn through(proxy: &Proxy, stream: &mut (impl Read + Write), host: &str, port: u16) -> Result<(), DialError> {
    let failed = |error: io::Error| DialError::io(&format!("the proxy {proxy:?}"), &error);
    match proxy {
        Proxy::Http { login, .. } => {
            let place =
                if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
            if let Some(login) = login {
                request += &format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(login));
            }
            request += "\r\n";
            let (answer, early) = ask(stream, &request).map_err(failed)?;
            match answer.status {
                200..=299 if early.is_empty() => Ok(()),
                407 => Err(DialError::never(End::new(
                    Ending::Auth,
                    format!("the proxy {proxy:?} wants a login"),
                ))),
                status => {
                    let text = format!("the proxy {proxy:?} answered {status}");
                    Err(DialError::later(End::new(Ending::ServerUnreachable, text)))
                }
            }
        }
        Proxy::Socks5 { login, .. } => socks(stream, login.as_ref(), host, port).map_err(failed),
    }
}

/// RFC 1928, and RFC 1929 where the proxy wants to know who it is.
fn socks(
    stream: &mut (impl Read + Write),
    login: Option<&(String, String)>,
    host: &str,
    port: u16,
) -> io::Result<()> {
    let refused = |what: String| io::Error::new(io::ErrorKind::ConnectionRefused, what);
    stream.write_all(if login.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] })?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen)?;
    match (chosen, login) {
        ([5, 0], _) => {}
        ([5, 2], Some((user, password))) => {
            let (user, password) = (short(user)?, short(password)?);
            let mut message = vec![1, user.len() as u8];
            message.extend_from_slice(user);
            message.push(password.len() as u8);
            message.extend_from_slice(password);
            stream.write_all(&message)?;
            let mut answer = [0; 2];
            stream.read_exact(&mut answer)?;
            if answer[1] != 0 {
                return Err(refused("the login was refused".into()));
            }
        }
        ([5, _], _) => return Err(refused("no way to log in that both know".into())),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no SOCKS5 proxy")),
    }
    let mut message = vec![5, 1, 0];
    match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(ip)) => {
            message.push(1);
            message.extend(ip.octets());
        }
        Ok(std::net::IpAddr::V6(ip)) => {
            message.push(4);
            message.extend(ip.octets());
        }
        Err(_) => {
            let host = short(host)?;
            message.extend([3, host.len() as u8]);
            message.extend_from_slice(host);
        }
    }
    message.extend(port.to_be_bytes());
    stream.write_all(&message)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    if answer[1] != 0 {
        return Err(refused(format!("it answered with code {}", answer[1])));
    }
    // The address it bound, which says nothing to us.
    let length = match answer[3] {
        1 => 4,
        4 => 16,
        3 => {
            let mut length = [0];
            stream.read_exact(&mut length)?;
            usize::from(length[0])
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "an address of no known kind")),
    };
    stream.read_exact(&mut vec![0; length + 2])
}

fn short(text: &str) -> io::Result<&[u8]> {
    match text.len() {
        0..=255 => Ok(text.as_bytes()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "longer than a SOCKS5 proxy takes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy whose answers were written down, and what it was told.
    struct Script {
        answers: io::Cursor<Vec<u8>>,
        told: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.answers.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.told.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn script(answers: &[u8]) -> Script {
        Script { answers: io::Cursor::new(answers.to_vec()), told: Vec::new() }
    }

    #[test]
    fn a_socks_proxy_gets_the_name_and_the_login() {
        let mut proxy = script(&[5, 2, 1, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let login = ("me".to_owned(), "pw".to_owned());
        socks(&mut proxy, Some(&login), "edge", 443).expect("as RFC 1928 says");
        let told =
            [&[5, 2, 0, 2][..], &[1, 2], b"me", &[2], b"pw", &[5, 1, 0, 3, 4], b"edge", &[1, 187]].concat();
        assert_eq!(proxy.told, told);
        let mut proxy = script(&[5, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert!(socks(&mut proxy, None, "10.0.0.1", 1).is_err(), "not allowed by its rules");
        assert_eq!(proxy.told, [5, 1, 0, 5, 1, 0, 1, 10, 0, 0, 1, 0, 1]);
    }

    #[test]
    fn an_http_proxy_is_asked_to_connect() {
        let proxy = Proxy::parse("http://me:pw@proxy:3128").expect("a proxy");
        let mut stream = script(b"HTTP/1.1 200 Connection established\r\n\r\n");
        through(&proxy, &mut stream, "edge", 443).expect("200");
        let told = String::from_utf8(stream.told).expect("text");
        assert!(told.starts_with("CONNECT edge:443 HTTP/1.1\r\nHost: edge:443\r\n"), "{told}");
        assert!(told.contains("Proxy-Authorization: Basic bWU6cHc=\r\n"), "{told}");
        assert_eq!(format!("{proxy:?}"), "http://proxy:3128", "without the login");
        let mut stream = script(b"HTTP/1.1 407 Login\r\n\r\n");
        let error = through(&proxy, &mut stream, "edge", 443).expect_err("407");
        assert!(!error.retriable);
    }

    #[test]
    fn what_stands_behind_the_answer_belongs_to_the_pipe() {
        let mut stream = script(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: towpath-pipe/1\r\n\r\nframes");
        let (answer, early) = ask(&mut stream, "GET / HTTP/1.1\r\n\r\n").expect("an answer");
        assert_eq!((answer.status, &early[..]), (101, &b"frames"[..]));
    }

    #[test]
    fn a_page_instead_of_an_answer_is_not_final() {
        let answer = |head: &[u8]| parse(head).expect("a head").expect("whole").0;
        let portal = answer(b"HTTP/1.1 302 Found\r\n\r\n");
        assert!(refused(&portal).retriable, "a captive portal goes away");
        let firewall = answer(b"HTTP/1.1 403 No\r\nContent-Type: text/html\r\n\r\n");
        assert_eq!(
            (is_final(&firewall), refused(&firewall).retriable),
            (false, true),
            "and so does a firewall"
        );
        let denied = answer(b"HTTP/1.1 401 No\r\nContent-Type: application/problem+json\r\n\r\n");
        assert_eq!((is_final(&denied), refused(&denied).retriable), (true, false), "a daemon means it");
    }

    #[test]
    fn a_proxy_reads_with_its_defaults() {
        for (text, expected) in [
            ("proxy:1", "http://proxy:1"),
            ("http://proxy", "http://proxy:8080"),
            ("socks5://u:p@[::1]:9", "socks5://::1:9"),
            ("socks5h://proxy", "socks5://proxy:1080"),
        ] {
            assert_eq!(format!("{:?}", Proxy::parse(text).expect("a proxy")), expected);
        }
        for bad in ["", "ftp://x", "http://:1", "http://x:99999"] {
            assert!(Proxy::parse(bad).is_err(), "{bad}");
        }
    }
}
