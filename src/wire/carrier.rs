//! One connection's socket, plain or encrypted: what reads, writes and ends it.

use std::any::Any;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::{Interest, Token};

use super::Target;
use super::limits::Place;
use super::link::Peer;
use super::tls::Tls;

/// A socket, plain or encrypted, on its way to an I/O thread or on one.
pub(super) struct Carrier {
    pub(super) socket: Socket,
    pub(super) tls: Option<Box<Tls>>,
    /// Its place among the links of its address, where those are counted.
    pub(super) place: Option<Place>,
}

pub(super) enum Socket {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.read(buffer),
            Socket::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.write(bytes),
            Socket::Unix(socket) => socket.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.write_vectored(slices),
            Socket::Unix(socket) => socket.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket {
    pub(super) fn register(&mut self, registry: &mio::Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self {
            Socket::Tcp(socket) => registry.register(socket, token, interest),
            Socket::Unix(socket) => registry.register(socket, token, interest),
        }
    }

    pub(super) fn finish(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
        }
    }
}

impl Carrier {
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.read(buffer),
            Some(tls) => tls.read(&mut self.socket, buffer),
        }
    }

    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            None => match slices {
                [one] => self.socket.write(one),
                _ => self.socket.write_vectored(slices),
            },
            Some(tls) => tls.write(&mut self.socket, slices),
        }
    }

    /// Sends what TLS holds back; whether nothing is left there.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        match &mut self.tls {
            None => Ok(true),
            Some(tls) => tls.flush(&mut self.socket),
        }
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.finish(&mut self.socket)?;
        }
        self.socket.finish()
    }
}

pub(super) fn carrier_of(carrier: Box<dyn Any + Send>) -> Option<Carrier> {
    carrier.downcast::<Carrier>().ok().map(|carrier| *carrier)
}

/// The peer of a socket that was dialed.
pub(super) fn dialed_peer(target: &Target, socket: &Socket) -> Peer {
    let address = match socket {
        Socket::Tcp(socket) => socket.peer_addr().ok(),
        Socket::Unix(_) => None,
    };
    Peer {
        ip: address.map(|address| address.ip()),
        port: address.map_or(0, |address| address.port()),
        tls: target.tls,
        listener: Peer::DIALED,
    }
}
