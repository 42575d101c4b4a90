//! Where connections come in: TCP and Unix-domain sockets.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use mio::{Interest, Token};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use std::time::Duration;

use super::carrier::{Carrier, Socket};
use super::link::Peer;
use super::pace::unpace;
use super::tls::{ServerTls, Tls};
use crate::error::{Error, Result};

/// How many connections the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 4096;

/// A socket that is bound and listens; [`IoThreads::start`](super::IoThreads::start) accepts from it.
#[derive(Debug)]
pub struct Listener {
    socket: Listening,
    tls: Option<ServerTls>,
}

#[derive(Debug)]
enum Listening {
    Tcp(std::net::TcpListener),
    Unix(UnixListener, PathBuf),
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A path.
    Unix(PathBuf),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Tcp(address) => write!(f, "{address}"),
            Bound::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Listener {
    /// Binds `host:port` or `unix:/path`. Port 0 takes any that is free.
    ///
    /// # Errors
    /// If the address cannot be understood or is not to be had.
    pub fn bind(address: &str) -> Result<Listener> {
        Listener::bind_with(address, false)
    }

    /// The same; with `share`, several processes may listen on the port and the kernel spreads
    /// connections over them (`SO_REUSEPORT`, for rolling restarts).
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn bind_with(address: &str, share: bool) -> Result<Listener> {
        let said = |error: io::Error| Error::from(error).while_(format_args!("listening on {address}"));
        let socket = match address.strip_prefix("unix:") {
            Some(path) => {
                let path = Path::new(path);
                Listening::Unix(bind_unix(path).map_err(said)?, path.to_owned())
            }
            None => bind_tcp(address, share).map_err(said)?,
        };
        Ok(Listener { socket, tls: None })
    }

    /// A socket that somebody else bound (socket activation).
    #[must_use]
    pub fn from_tcp(socket: std::net::TcpListener) -> Listener {
        Listener { socket: Listening::Tcp(socket), tls: None }
    }

    /// The same for a Unix-domain socket; its file is left where it is.
    #[must_use]
    pub fn from_unix(socket: UnixListener) -> Listener {
        Listener { socket: Listening::Unix(socket, Path::new("").to_owned()), tls: None }
    }

    /// Whether connections come over TCP.
    pub fn is_tcp(&self) -> bool {
        matches!(self.socket, Listening::Tcp(_))
    }

    /// Speaks TLS to whoever comes.
    #[must_use]
    pub fn with_tls(mut self, tls: ServerTls) -> Listener {
        self.tls = Some(tls);
        self
    }

    /// Where it listens.
    pub fn address(&self) -> Bound {
        match &self.socket {
            Listening::Tcp(socket) => {
                Bound::Tcp(socket.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0))))
            }
            Listening::Unix(socket, path) if path.as_os_str().is_empty() => {
                let address = socket.local_addr().ok();
                Bound::Unix(address.and_then(|at| at.as_pathname().map(Path::to_owned)).unwrap_or_default())
            }
            Listening::Unix(_, path) => Bound::Unix(path.clone()),
        }
    }

    pub(super) fn watch(self, registry: &mio::Registry, token: Token, number: u8) -> io::Result<Accepting> {
        let socket = match self.socket {
            Listening::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                // What is accepted has it from here: five system calls less for each.
                keep_lively(&socket);
                unpace(&socket, socket.local_addr()?.ip());
                let mut socket = mio::net::TcpListener::from_std(socket);
                registry.register(&mut socket, token, Interest::READABLE)?;
                Watched::Tcp(socket)
            }
            Listening::Unix(socket, path) => {
                socket.set_nonblocking(true)?;
                let mut socket = mio::net::UnixListener::from_std(socket);
                registry.register(&mut socket, token, Interest::READABLE)?;
                Watched::Unix(socket, path)
            }
        };
        Ok(Accepting { socket, tls: self.tls, number, acceptable: true })
    }
}

fn bind_tcp(address: &str, share: bool) -> io::Result<Listening> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address of that name");
    for address in address.to_socket_addrs()? {
        match bind_one(address, share) {
            Ok(socket) => return Ok(Listening::Tcp(socket)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr, share: bool) -> io::Result<std::net::TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    // A restart must not wait for the connections of the last run to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket file that is left over from a process that is gone is replaced; one that answers is not.
pub(crate) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// A listener on its I/O thread.
pub(super) struct Accepting {
    socket: Watched,
    tls: Option<ServerTls>,
    number: u8,
    /// Whether the kernel may have connections for us.
    pub(super) acceptable: bool,
}

enum Watched {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener, PathBuf),
}

impl Accepting {
    pub(super) fn accept(&self) -> io::Result<(Carrier, Peer)> {
        let (socket, address) = match &self.socket {
            Watched::Tcp(listener) => {
                let (socket, address) = listener.accept()?;
                (Socket::Tcp(socket), Some(address))
            }
            Watched::Unix(listener, _) => (Socket::Unix(listener.accept()?.0), None),
        };
        let tls = self.tls.as_ref().map(Tls::server).transpose()?.map(Box::new);
        let peer = Peer {
            ip: address.map(|address| address.ip()),
            port: address.map_or(0, |address| address.port()),
            tls: tls.is_some(),
            listener: self.number,
        };
        Ok((Carrier { socket, tls, place: None }, peer))
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        if let Watched::Unix(_, path) = &self.socket
            && !path.as_os_str().is_empty()
        {
            // It may have been replaced or removed by somebody else: either way it is not ours any more.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Small frames leave at once, and a peer that vanished is noticed within a minute and a half.
pub(super) fn keep_lively(socket: &impl AsFd) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let socket = SockRef::from(socket);
    // Neither can fail on a socket that listens or is connected, and one that is neither will be noticed.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Whether an error says that this process may have no more descriptors.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE)) || error.kind() == io::ErrorKind::OutOfMemory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_connection_is_kept_lively() {
        let mut poll = mio::Poll::new().expect("a poller");
        let listener = Listener::bind("127.0.0.1:0").expect("a port");
        let Bound::Tcp(address) = listener.address() else { panic!("a TCP address") };
        let accepting = listener.watch(poll.registry(), Token(0), 0).expect("it is watched");
        let _peer = std::net::TcpStream::connect(address).expect("it listens");
        let mut events = mio::Events::with_capacity(1);
        while events.is_empty() {
            poll.poll(&mut events, None).expect("it polls");
        }
        let (carrier, _) = accepting.accept().expect("somebody came");
        let Socket::Tcp(socket) = carrier.socket else { panic!("a TCP connection") };
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().expect("it says so"));
        assert!(socket.keepalive().expect("it says so"));
        assert_eq!(socket.tcp_keepalive_time().expect("it says so"), Duration::from_secs(60));
    }
}
