//! Outgoing links: where to, what to speak, and who hears.
//!
//! A dial is one attempt. Its number is the tag of its [`Owner`]: the owner hears [`Happened::Opened`]
//! with the link or [`Happened::Refused`] with the reason, both under that number, so an answer to a dial
//! it has given up on is known as stale (close the link it brought).
//!
//! [`Happened::Opened`]: super::Happened::Opened
//! [`Happened::Refused`]: super::Happened::Refused

use std::any::Any;
use std::fmt;

use super::http::ResponseHead;
use super::link::{Doors, Owner, Peer};
use crate::rt::Cancel;
use crate::state::time::Moment;

/// The network as rooms see it: they dial through it and send to groups of what came in.
pub trait Wire: Send + Sync {
    /// Starts one attempt to connect. Answers at once; the owner hears how it went.
    fn dial(&self, dial: Dial);
    /// The I/O threads.
    fn doors(&self) -> &Doors;
}

/// One attempt to connect.
pub struct Dial {
    /// Where to.
    pub target: Target,
    /// What to speak once connected.
    pub speak: Speak,
    /// Request headers (names in lower case), for what speaks HTTP.
    pub headers: Vec<(String, String)>,
    /// When it has failed at the latest: connecting, TLS and the upgrade together.
    pub deadline: Moment,
    /// Gives the attempt up.
    pub cancel: Cancel,
    /// Who hears; the tag is the number of this dial.
    pub owner: Owner,
}

/// What a dialed link speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speak {
    /// Bytes, from the first one on.
    Raw,
    /// A WebSocket, with the subprotocols offered (may be none).
    WebSocket {
        /// Offered in this order.
        protocols: Vec<String>,
        /// The largest message let in, in bytes.
        message_max: u32,
    },
    /// Bytes behind an HTTP `Upgrade` to this protocol.
    Upgrade {
        /// The name of the protocol.
        protocol: String,
    },
}

/// Where a dial goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Whether to encrypt.
    pub tls: bool,
    /// What to connect to.
    pub address: Address,
    /// Path and query of the request, for what speaks HTTP.
    pub path: String,
}

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host name or address (IPv6 without brackets) and a port.
    Tcp(String, u16),
    /// A Unix-domain socket.
    Unix(std::path::PathBuf),
}

/// Why text is not a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTarget(pub &'static str);

impl fmt::Display for BadTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadTarget {}

impl Target {
    /// Reads `ws://`, `wss://`, `http://`, `https://`, `tcp://host:port` or `unix:/path`.
    pub fn parse(text: &str) -> Result<Target, BadTarget> {
        if let Some(path) = text.strip_prefix("unix:") {
            let address = Address::Unix(path.trim_start_matches("//").into());
            return Ok(Target { tls: false, address, path: "/".into() });
        }
        let bad = BadTarget("expected ws://, wss://, http://, https://, tcp:// or unix:");
        let (scheme, rest) = text.split_once("://").ok_or(bad.clone())?;
        let (tls, default_port) = match scheme {
            "ws" | "http" => (false, Some(80)),
            "wss" | "https" => (true, Some(443)),
            "tcp" => (false, None),
            _ => return Err(bad),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = split_authority(authority)?;
        let port = port.or(default_port).ok_or(BadTarget("tcp:// needs a port"))?;
        if path.bytes().any(|byte| !(0x21..0x7f).contains(&byte) || byte == b'#') {
            return Err(BadTarget("the path holds bytes that no path holds"));
        }
        let path = match path.as_bytes().first() {
            None => "/".to_owned(),
            Some(b'?') => format!("/{path}"),
            Some(_) => path.to_owned(),
        };
        Ok(Target { tls, address: Address::Tcp(host.to_owned(), port), path })
    }

    /// The value of the `Host` header.
    pub fn host(&self) -> String {
        match &self.address {
            Address::Unix(_) => "localhost".into(),
            Address::Tcp(host, port) => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                match (self.tls, port) {
                    (false, 80) | (true, 443) => host,
                    _ => format!("{host}:{port}"),
                }
            }
        }
    }
}

fn split_authority(authority: &str) -> Result<(&str, Option<u16>), BadTarget> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or(BadTarget("an IPv6 address without its closing bracket"))?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(digits) => Some(digits.parse().map_err(|_| BadTarget("the port is not a number below 65536"))?),
        None if port.is_empty() => None,
        None => return Err(BadTarget("something stands between the host and the port")),
    };
    let odd = |byte: u8| !(byte.is_ascii_alphanumeric() || b".-_:".contains(&byte));
    if host.is_empty() || host.bytes().any(odd) {
        return Err(BadTarget("the host is empty or holds bytes that no host holds"));
    }
    Ok((host, port))
}

impl fmt::Debug for Target {
    /// Without the query: it may carry a ticket.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.split('?').next().unwrap_or_default();
        match &self.address {
            Address::Unix(socket) => write!(f, "unix:{}", socket.display()),
            Address::Tcp(..) => write!(f, "{}{path}", self.host()),
        }
    }
}

/// Why a dial failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nobody answers there, or the name means nothing.
    Unreachable(String),
    /// It took longer than its deadline.
    TimedOut,
    /// It was given up.
    Cancelled,
    /// The certificate is not trusted, or TLS could not be spoken.
    Tls(String),
    /// The peer answered, with another status than the one asked for.
    Answered {
        /// Its status.
        status: u16,
        /// The `code` of its problem document, if it sent one.
        code: Option<String>,
    },
    /// The peer does not speak the protocol.
    Protocol(&'static str),
    /// This process has no descriptor, thread or memory for it: try again later.
    Exhausted(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Unreachable(why) => write!(f, "cannot be reached: {why}"),
            Refused::TimedOut => f.write_str("did not answer in time"),
            Refused::Cancelled => f.write_str("was given up"),
            Refused::Tls(why) => write!(f, "TLS failed: {why}"),
            Refused::Answered { status, code: Some(code) } => write!(f, "answered {status} ({code})"),
            Refused::Answered { status, code: None } => write!(f, "answered {status}"),
            Refused::Protocol(why) => f.write_str(why),
            Refused::Exhausted(why) => write!(f, "nothing left to connect with: {why}"),
        }
    }
}

impl std::error::Error for Refused {}

/// A connection that a dial made, on its way to an I/O thread.
pub struct Adopted {
    /// The connection, as the driver of the I/O threads knows it.
    pub(crate) carrier: Box<dyn Any + Send>,
    pub(crate) peer: Peer,
    pub(crate) speak: Speak,
    /// What the peer answered, where HTTP was spoken.
    pub(crate) head: Option<ResponseHead>,
    /// Bytes that came behind the answer.
    pub(crate) early: Vec<u8>,
    pub(crate) owner: Owner,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_with_its_defaults() {
        for (text, host, path, tls) in [
            ("ws://a", "a", "/", false),
            ("wss://a.b:444/x/y?z=1", "a.b:444", "/x/y?z=1", true),
            ("http://[::1]:80?q", "[::1]", "/?q", false),
            ("https://a:443/", "a", "/", true),
            ("tcp://10.0.0.1:22", "10.0.0.1:22", "/", false),
            ("unix:/run/towpath.sock", "localhost", "/", false),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(
                (target.host().as_str(), target.path.as_str(), target.tls),
                (host, path, tls),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_target_is_said_so() {
        for text in [
            "",
            "a",
            "ftp://a",
            "tcp://a",
            "ws://",
            "ws://:1",
            "ws://a:b",
            "ws://a:70000",
            "ws://[::1",
            "ws://u@a",
            "ws://a/ b",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_target_prints_without_its_query() {
        let target = Target::parse("wss://a/v1/ws?ticket=canary").unwrap();
        assert_eq!(format!("{target:?}"), "a/v1/ws");
    }
}
