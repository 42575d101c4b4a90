//! Connections that stay on this machine are not paced.
//!
//! Congestion control is for a path that is shared with others. Where the system's default is BBR it spreads what is
//! sent over time, by timers, and between two programs on one machine those timers are all it does: they cost a
//! tunnel a sixth of its rate. Any process may choose the one that does without.

use std::net::IpAddr;
use std::os::fd::AsFd;

use socket2::SockRef;

/// What paces, in all its versions.
const PACES: &[u8] = b"bbr";
/// What does not, and is never forbidden.
const PLAIN: &[u8] = b"reno";

/// Takes the pace from a connection to `peer`, or from a listener at that address, if it is on this machine.
pub(crate) fn unpace(socket: &impl AsFd, peer: IpAddr) {
    if !peer.to_canonical().is_loopback() {
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
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

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
}
