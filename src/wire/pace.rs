//! Connections that stay on this machine are not paced.
//!
//! Congestion control is for a path that is shared with others. Where the system's default is BBR it spreads what is
//! sent over time, by timers, and between two programs on one machine those timers are all it does. Any process may
//! choose the one that does without.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// What paces, in all its versions.
const PACES: &[u8] = b"bbr";
/// What does not, and is never forbidden.
const PLAIN: &[u8] = b"reno";

/// Listens, at one of what `address` resolves to.
pub(crate) fn listen(address: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    unpace(&listener, listener.local_addr()?.ip());
    Ok(listener)
}

/// Begins to connect, without a pace if that is on this machine. Whether it is connected is told by a poller.
pub(crate) fn connect(address: SocketAddr) -> io::Result<mio::net::TcpStream> {
    let how = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), how, Some(Protocol::TCP))?;
    unpace(&socket, address.ip());
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(mio::net::TcpStream::from_std(socket.into())),
    }
}

/// Takes the pace from a socket that is about to connect to `address`, or from a listener there, whose connections
/// inherit it. Once a connection is there its timers stay, whatever it is told.
pub(crate) fn unpace(socket: &impl AsFd, address: IpAddr) {
    if !address.to_canonical().is_loopback() {
        return;
    }
    let socket = SockRef::from(socket);
    let unpaced = match socket.tcp_congestion() {
        Ok(name) if name.starts_with(PACES) => socket.set_tcp_congestion(PLAIN),
        asked => asked.map(drop),
    };
    if let Err(error) = unpaced {
        // A kernel without a choice: slower, and otherwise the same.
        log::debug!("a connection on this machine stays paced: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn congestion(socket: &impl AsFd) -> Vec<u8> {
        SockRef::from(socket).tcp_congestion().expect("it says so")
    }

    #[test]
    fn only_what_stays_on_this_machine_loses_its_pace() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let before = congestion(&socket);
        unpace(&socket, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(congestion(&socket), before);
        // Where the system paces nothing, nothing changes.
        let after = if before.starts_with(PACES) { PLAIN.to_vec() } else { before };
        for here in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
            IpAddr::from(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
        ] {
            let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
            unpace(&socket, here);
            assert!(congestion(&socket).starts_with(&after), "{here}");
        }
    }

    #[test]
    fn both_ends_of_a_connection_on_this_machine_are_without_a_pace() {
        let listener = listen("127.0.0.1:0").expect("a port");
        let near = connect(listener.local_addr().expect("bound")).expect("it listens");
        let (far, _) = listener.accept().expect("somebody came");
        assert!(!congestion(&near).starts_with(PACES));
        assert!(!congestion(&far).starts_with(PACES));
    }
}
