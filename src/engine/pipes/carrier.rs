//! The connection that bears a pipe: bytes in, bytes out, never waiting.
//!
//! Frames are a stream of bytes to everything here. On a plain socket they go out by a gathered write
//! straight from the replay log, behind the heads of WebSocket messages as well; where they are masked or
//! encrypted they pass through `out`, which holds at most one write's worth. What comes in WebSocket
//! messages is unmasked where it was read to.
//!
//! Invariant: while `owed` bytes of an announced message are missing, `out` holds nothing but the rest of
//! its head, and what else there is to say waits in `later`.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use crate::wire::websocket::{self, InPlace, Message, Outgoing, Reader, Role};

/// The most that waits between the frames and the socket, where anything does, and the longest WebSocket
/// message that goes out.
const OUT_MAX: usize = 256 * 1024;
/// The longest WebSocket message that is let in: a DATA frame with its head, and then some.
const MESSAGE_MAX: u32 = 1 << 20;

/// A connected socket of either kind.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
}

/// What the poller is asked about a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    /// Whether bytes come.
    pub(super) bytes: bool,
    /// Whether bytes can go.
    pub(super) room: bool,
}

impl Watched {
    /// As [`Socket::register`] does.
    pub(super) const ALL: Watched = Watched { bytes: true, room: true };

    pub(super) const NOTHING: Watched = Watched { bytes: false, room: false };

    fn interest(self) -> Option<Interest> {
        match (self.bytes, self.room) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        }
    }
}

impl Socket {
    /// A TCP connection that was made by waiting for it.
    pub fn tcp(stream: std::net::TcpStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Socket::Tcp(TcpStream::from_std(stream)))
    }

    /// A Unix-domain connection.
    pub fn unix(stream: std::os::unix::net::UnixStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(Socket::Unix(UnixStream::from_std(stream)))
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Socket::Tcp(stream) => stream,
            Socket::Unix(stream) => stream,
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.source(), token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Asks the poller about something else than before. What there is already is told once more.
    pub(super) fn watch(
        &mut self,
        registry: &Registry,
        token: Token,
        before: Watched,
        now: Watched,
    ) -> io::Result<()> {
        match (before.interest(), now.interest()) {
            (None, None) => Ok(()),
            (None, Some(interest)) => registry.register(self.source(), token, interest),
            // Bytes that come would wake the poller whatever else it was asked, only to find that nobody did.
            (Some(_), None) => registry.deregister(self.source()),
            (Some(_), Some(interest)) => registry.reregister(self.source(), token, interest),
        }
    }

    /// The socket is closed right after; epoll forgets it then anyway, so a failure changes nothing.
    pub(super) fn deregister(&mut self, registry: &Registry) {
        if let Err(error) = registry.deregister(self.source()) {
            log::debug!("pipes: taking a socket out of the poller: {error}");
        }
    }

    /// Ends one direction or both. A socket that is gone already needs no ending.
    pub(super) fn shutdown(&self, how: Shutdown) {
        let ended = match self {
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Unix(stream) => stream.shutdown(how),
        };
        if let Err(error) = ended {
            log::trace!("pipes: ending a direction of a socket: {error}");
        }
    }

    /// Makes closing it break the connection off, so that the program behind it sees a reset.
    pub(super) fn break_on_close(&self) {
        if let Socket::Tcp(stream) = self {
            let stream = socket2::SockRef::from(stream);
            if let Err(error) = stream.set_linger(Some(std::time::Duration::ZERO)) {
                log::debug!("pipes: a broken pipe ends as a plain end of its socket: {error}");
            }
        }
    }

    /// Another name for it, to wait at. Nothing if there are no more descriptors.
    pub(super) fn duplicate(&self) -> Option<OwnedFd> {
        let duplicate = match self {
            Socket::Tcp(stream) => stream.as_fd().try_clone_to_owned(),
            Socket::Unix(stream) => stream.as_fd().try_clone_to_owned(),
        };
        duplicate.inspect_err(|error| log::debug!("pipes: a carrier cannot be waited at: {error}")).ok()
    }

    /// An error the system noticed while nobody read or wrote.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        match self {
            Socket::Tcp(stream) => stream.take_error().ok().flatten(),
            Socket::Unix(stream) => stream.take_error().ok().flatten(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Unix(stream) => stream.read(buffer),
        }
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read_vectored(slices),
            Socket::Unix(stream) => stream.read_vectored(slices),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Unix(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write_vectored(slices),
            Socket::Unix(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection that bears, or wants to bear, a pipe.
pub struct Carrier {
    socket: Socket,
    tls: Option<Box<rustls::Connection>>,
    framing: Framing,
    /// What was framed or encrypted, or is to be, and not written.
    out: Vec<u8>,
    out_at: usize,
    /// Frames that were read and not asked for yet (from WebSocket messages, or with the handshake).
    early: Vec<u8>,
    early_at: usize,
    ended: bool,
    /// The last read took all there was on the socket.
    drained: bool,
    /// Whether `out` still holds what goes in front of the frames.
    head: bool,
}

enum Framing {
    /// The bytes as they are.
    Raw,
    /// In WebSocket binary messages.
    WebSocket { reader: Box<Reader>, role: Role, masks: Masks, owed: usize, later: Vec<u8> },
}

/// Masks that a proxy in between cannot foresee, from one secret seed.
struct Masks {
    state: u64,
}

impl Masks {
    fn next(&mut self) -> [u8; 4] {
        // SplitMix64: masks protect proxies from chosen bytes, not secrets from readers.
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) as u32).to_be_bytes()
    }
}

impl Carrier {
    /// Frames as they are. `early` came with the handshake that led here.
    pub fn raw(socket: Socket, tls: Option<rustls::Connection>, early: Vec<u8>) -> Carrier {
        Carrier::new(socket, tls, Framing::Raw, early)
    }

    /// Frames inside WebSocket messages. `seed` is secret.
    pub fn websocket(
        socket: Socket,
        tls: Option<rustls::Connection>,
        early: Vec<u8>,
        role: Role,
        seed: u64,
    ) -> Carrier {
        let reader = Box::new(Reader::new(role, MESSAGE_MAX));
        let masks = Masks { state: seed };
        let framing = Framing::WebSocket { reader, role, masks, owed: 0, later: Vec::new() };
        let mut carrier = Carrier::new(socket, tls, framing, Vec::new());
        let (mut early, mut pieces) = (early, Vec::new());
        if carrier.unwrap(&mut early, &mut pieces).is_err() {
            carrier.ended = true;
        }
        carrier.early = pieces.into_iter().flat_map(|piece| early[piece].to_vec()).collect();
        carrier
    }

    fn new(socket: Socket, tls: Option<rustls::Connection>, framing: Framing, early: Vec<u8>) -> Carrier {
        let tls = tls.map(Box::new);
        Carrier {
            socket,
            tls,
            framing,
            out: Vec::new(),
            out_at: 0,
            early,
            early_at: 0,
            ended: false,
            drained: false,
            head: false,
        }
    }

    /// Bytes that go out as they are before every frame: the answer to the upgrade that led here.
    pub fn begin_with(&mut self, head: Vec<u8>) {
        debug_assert!(self.out.is_empty(), "the head comes first");
        self.out = head;
        self.head = true;
    }

    pub(super) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Whether frames come as they are, maybe encrypted.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self.framing, Framing::Raw)
    }

    /// Whether the last read took all there was: unless the peer has ended its direction the next one would
    /// find nothing, and what comes later is told by the poller.
    pub(super) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Whether bytes go to the socket as they are.
    fn is_plain(&self) -> bool {
        self.tls.is_none() && matches!(self.framing, Framing::Raw) && !self.head
    }

    /// Reads frame bytes. 0 is the end of the connection; `WouldBlock` means later.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut pieces = Vec::new();
        let count = self.read_pieces(buffer, &mut pieces)?;
        let mut at = 0;
        for piece in pieces {
            let len = piece.len();
            buffer.copy_within(piece, at);
            at += len;
        }
        Ok(count)
    }

    /// The same, leaving frame bytes where they were read to; gives how many there are in all `pieces`.
    pub(super) fn read_pieces(
        &mut self,
        buffer: &mut [u8],
        pieces: &mut Vec<Range<usize>>,
    ) -> io::Result<usize> {
        self.drained = false;
        loop {
            if self.early_at < self.early.len() {
                let count = buffer.len().min(self.early.len() - self.early_at);
                buffer[..count].copy_from_slice(&self.early[self.early_at..self.early_at + count]);
                self.early_at += count;
                if self.early_at == self.early.len() {
                    // The next one may be small; an idle carrier keeps no large buffer.
                    self.early = Vec::new();
                    self.early_at = 0;
                }
                pieces.push(0..count);
                return Ok(count);
            }
            if self.ended {
                return Ok(0);
            }
            let count = self.read_decrypted(buffer)?;
            if matches!(self.framing, Framing::Raw) || count == 0 {
                pieces.push(0..count);
                return Ok(count);
            }
            self.unwrap(&mut buffer[..count], pieces)?;
            if self.has_more() {
                // A pong may be owed.
                match self.flush() {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                    _ => {}
                }
            }
            let count = pieces.iter().map(Range::len).sum();
            if count > 0 {
                return Ok(count);
            }
        }
    }

    /// Reads frame bytes as they are to `to`, and what follows them to `beyond`; gives how many of each. 0 and an
    /// error mean the same as everywhere.
    pub(super) fn read_across(&mut self, to: &mut [u8], beyond: &mut [u8]) -> io::Result<(usize, usize)> {
        debug_assert!(self.is_raw(), "messages lie between frames elsewhere");
        if self.tls.is_some() || !self.early.is_empty() {
            return self.read(to).map(|count| (count, 0));
        }
        let room = to.len() + beyond.len();
        let first = to.len();
        let count = self.socket.read_vectored(&mut [IoSliceMut::new(to), IoSliceMut::new(beyond)])?;
        self.drained = count < room;
        Ok((count.min(first), count.saturating_sub(first)))
    }

    fn read_decrypted(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            let count = self.socket.read(buffer)?;
            self.drained = count < buffer.len();
            return Ok(count);
        };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The peer ended TLS, or the connection without a word: both are an end here, since
                // frames say by themselves whether they were whole.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if tls.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Finds frames in WebSocket messages.
    fn unwrap(&mut self, wrapped: &mut [u8], pieces: &mut Vec<Range<usize>>) -> io::Result<()> {
        let Framing::WebSocket { reader, role, masks, owed, later } = &mut self.framing else {
            unreachable!("only WebSocket carriers unwrap")
        };
        let mut found = Vec::new();
        let fed = reader.feed_in_place(wrapped, &mut found);
        for found in found {
            match found {
                InPlace::Bytes(piece) => pieces.push(piece),
                InPlace::Message(Message::Ping(payload)) => {
                    let mask = (*role == Role::Client).then(|| masks.next());
                    let out = if *owed > 0 { &mut *later } else { &mut self.out };
                    websocket::write_frame(out, Outgoing::Pong(&payload), mask);
                }
                InPlace::Message(Message::Pong(_)) => {}
                InPlace::Message(Message::Close(_)) => self.ended = true,
                InPlace::Message(Message::Text(_) | Message::Binary(_)) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a text message on a pipe"));
                }
            }
        }
        fed.map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, violation.reason))
    }

    /// Writes frame bytes, as many as go. `WouldBlock` means none, later.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.is_plain() {
            return self.socket.write_vectored(slices);
        }
        if !self.is_amid_message() {
            self.flush()?;
        }
        if self.is_plain() {
            return self.socket.write_vectored(slices);
        }
        let mut taken = 0;
        match &mut self.framing {
            Framing::WebSocket { role: Role::Server, owed, later, .. } if self.tls.is_none() => {
                if *owed == 0 {
                    *owed = slices.iter().map(|slice| slice.len()).sum::<usize>().min(OUT_MAX);
                    websocket::write_binary_head(&mut self.out, *owed, None);
                }
                let head = &self.out[self.out_at..];
                let mut all = Vec::with_capacity(slices.len() + 1);
                all.push(IoSlice::new(head));
                let mut left = *owed;
                for slice in slices {
                    let count = slice.len().min(left);
                    all.push(IoSlice::new(&slice[..count]));
                    left -= count;
                }
                let head = head.len();
                let written = self.socket.write_vectored(&all)?;
                self.out_at += written.min(head);
                taken = written.saturating_sub(head);
                *owed -= taken;
                if self.out_at == self.out.len() {
                    self.out.clear();
                    self.out_at = 0;
                }
                if *owed == 0 {
                    self.out.append(later);
                }
                return Ok(taken);
            }
            Framing::Raw => {
                let tls = self.tls.as_mut().expect("a raw carrier without TLS is plain");
                for slice in slices {
                    let count = tls.writer().write(slice)?;
                    taken += count;
                    if count < slice.len() {
                        // rustls holds as much as it will.
                        break;
                    }
                }
            }
            Framing::WebSocket { role, masks, .. } => {
                let all = slices.iter().map(|slice| slice.len()).sum::<usize>().min(OUT_MAX);
                let mask = (*role == Role::Client).then(|| masks.next());
                websocket::write_binary_head(&mut self.out, all, mask);
                for slice in slices {
                    let count = slice.len().min(all - taken);
                    websocket::write_payload(&mut self.out, &slice[..count], mask, taken);
                    taken += count;
                }
            }
        }
        match self.flush() {
            // It was taken; the rest goes when the socket has room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(taken),
            flushed => flushed.map(|()| taken),
        }
    }

    /// Whether a message was announced of which bytes are missing. They come with the next write, or never.
    fn is_amid_message(&self) -> bool {
        matches!(self.framing, Framing::WebSocket { owed: 1.., .. })
    }

    /// Lends a buffer for what has to be changed before it is written, so that no idle carrier has one.
    pub(super) fn lend(&mut self, spare: &mut Vec<u8>) {
        if self.out.capacity() == 0 {
            std::mem::swap(&mut self.out, spare);
        }
    }

    /// Takes it back, unless something in it waits.
    pub(super) fn take_back(&mut self, spare: &mut Vec<u8>) {
        if self.out.is_empty() {
            let buffer = std::mem::take(&mut self.out);
            if spare.capacity() < buffer.capacity() {
                *spare = buffer;
            }
        }
    }

    /// Whether bytes wait that were taken.
    pub(super) fn has_more(&self) -> bool {
        self.out_at < self.out.len() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Writes what was taken. `WouldBlock` means that some of it waits.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            loop {
                // rustls has a bound of its own; what it does not take waits here.
                self.out_at += tls.writer().write(&self.out[self.out_at..])?;
                if !tls.wants_write() {
                    break;
                }
                if tls.write_tls(&mut self.socket)? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
        } else {
            while self.out_at < self.out.len() {
                let count = self.socket.write(&self.out[self.out_at..])?;
                if count == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.out_at += count;
            }
        }
        if self.out_at == self.out.len() {
            self.out.clear();
            self.out_at = 0;
            self.head = false;
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// Says goodbye in the way of the transport, as far as that goes without waiting.
    pub(super) fn close(&mut self) {
        // In the middle of a message there is no room for any other.
        if let Framing::WebSocket { role, masks, owed: 0, .. } = &mut self.framing {
            let mask = (*role == Role::Client).then(|| masks.next());
            websocket::write_frame(&mut self.out, Outgoing::Close(websocket::close::NORMAL, ""), mask);
        }
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        if let Err(error) = self.flush() {
            log::trace!("pipes: the last bytes of a carrier: {error}");
        }
        self.socket.shutdown(Shutdown::Write);
    }
}

impl std::fmt::Debug for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match (&self.framing, &self.tls) {
            (Framing::Raw, None) => "raw",
            (Framing::Raw, Some(_)) => "raw over TLS",
            (Framing::WebSocket { .. }, None) => "WebSocket",
            (Framing::WebSocket { .. }, Some(_)) => "WebSocket over TLS",
        };
        write!(f, "Carrier({how})")
    }
}

#[cfg(test)]
mod tests;
