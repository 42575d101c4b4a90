//! Dial threads: one attempt to connect each, with a deadline and a way to give it up.
//!
//! At most [`THREADS`] run; the rest wait their turn. A connection that was made goes to an I/O thread,
//! whose owner hears of it; one that was not is told to the owner from here.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use mio::{Interest, Token};

use super::carrier::{Carrier, Socket, dialed_peer};
use super::dial::{Address, Adopted, Dial, Refused, Speak};
use super::http::{ResponseHead, ResponseReader};
use super::link::{Doors, Happened, LinkEvent, LinkId, Owner};
use super::listen::{is_exhausted, keep_lively};
use super::pace;
use super::tls::{ClientTls, Tls};
use super::websocket;
use crate::rt::{Cancel, Lock, Op, Rt};
use crate::state::time::Moment;

/// Dial threads at most.
const THREADS: usize = 32;
/// Dials that wait for one of them at most.
const WAITING: usize = 4096;
/// How long an owner whose inbox is full is waited for between two offers.
const OFFER_WAIT: Duration = Duration::from_millis(5);

/// Starts and counts dial threads.
pub(super) struct Dialer {
    inner: Arc<Inner>,
}

struct Inner {
    rt: Rt,
    doors: Doors,
    /// Read on the first dial that needs it.
    trust: Lock<Option<ClientTls>>,
    work: Lock<Work>,
    /// Cancels every dial.
    stop: Cancel,
}

#[derive(Default)]
struct Work {
    running: usize,
    waiting: VecDeque<Dial>,
}

impl Dialer {
    pub(super) fn new(rt: &Rt, doors: &Doors, trust: Option<ClientTls>) -> Dialer {
        let inner = Inner {
            rt: rt.clone(),
            doors: doors.clone(),
            trust: Lock::new(trust),
            work: Lock::new(Work::default()),
            stop: rt.cancel_token(),
        };
        Dialer { inner: Arc::new(inner) }
    }

    /// Starts a dial, or queues it behind the others.
    pub(super) fn dial(&self, dial: Dial) {
        let inner = self.inner.clone();
        let refused = {
            let mut work = inner.work.lock();
            if work.waiting.len() >= WAITING {
                Some(dial)
            } else {
                work.waiting.push_back(dial);
                if work.running >= THREADS {
                    return;
                }
                work.running += 1;
                None
            }
        };
        if let Some(dial) = refused {
            // Told from a thread of its own, since the caller may be the very room that has to hear.
            let text = "too many dials wait already".to_owned();
            tell_apart(&inner, dial.owner, Refused::Exhausted(text));
            return;
        }
        let worker = inner.clone();
        match inner.rt.spawn("dial", move || worker.work_off()) {
            // It ends by itself once nothing waits; `stop` cancels what it does.
            Ok(thread) => thread.detach(),
            Err(error) => {
                let dial = {
                    let mut work = inner.work.lock();
                    work.running -= 1;
                    work.waiting.pop_back()
                };
                if let Some(dial) = dial {
                    offer_once(&dial.owner, Refused::Exhausted(error.to_string()));
                }
            }
        }
    }

    /// Gives up every dial.
    pub(super) fn stop(&self) {
        self.inner.stop.cancel();
    }
}

fn tell_apart(inner: &Arc<Inner>, owner: Owner, refused: Refused) {
    let teller = inner.clone();
    match inner.rt.spawn("dial", move || teller.tell(&owner, refused)) {
        Ok(thread) => thread.detach(),
        Err(error) => {
            log::error!(target: "towpath/dial_lost", "no thread to say that a dial was refused: {error}")
        }
    }
}

fn event(owner: &Owner, refused: Refused) -> Vec<LinkEvent> {
    vec![LinkEvent { link: LinkId::NONE, tag: owner.tag, what: Happened::Refused(refused) }]
}

fn offer_once(owner: &Owner, refused: Refused) {
    if owner.outlet.deliver(event(owner, refused)).is_err() {
        log::error!(target: "towpath/dial_lost", "a room with a full inbox was not told that its dial was refused");
    }
}

impl Inner {
    fn work_off(&self) {
        loop {
            let next = {
                let mut work = self.work.lock();
                let next = work.waiting.pop_front();
                if next.is_none() {
                    work.running -= 1;
                }
                next
            };
            let Some(dial) = next else { return };
            let owner = dial.owner.clone();
            match self.connect(dial) {
                Ok(adopted) => self.doors.adopt(adopted),
                Err(refused) => self.tell(&owner, refused),
            }
        }
    }

    /// Offers the refusal until the room takes it: a dial thread may wait, and the answer is one of a
    /// bounded number.
    fn tell(&self, owner: &Owner, refused: Refused) {
        let mut batch = event(owner, refused);
        while let Err(back) = owner.outlet.deliver(batch) {
            if self.stop.is_cancelled() {
                return;
            }
            batch = back;
            self.rt.sleep(OFFER_WAIT);
        }
    }

    fn connect(&self, dial: Dial) -> Result<Adopted, Refused> {
        self.rt.point(Op::Dial, &[&dial.target.host()]);
        let attempt = Attempt { rt: &self.rt, cancels: [&dial.cancel, &self.stop], deadline: dial.deadline };
        attempt.check()?;
        let (socket, host) = match &dial.target.address {
            Address::Unix(path) => {
                let socket =
                    std::os::unix::net::UnixStream::connect(path).map_err(|error| attempt.said(&error))?;
                (Plain::Unix(socket), "localhost".to_owned())
            }
            Address::Tcp(host, port) => (Plain::Tcp(attempt.connect_tcp(host, *port)?), host.clone()),
        };
        let tls = match dial.target.tls {
            true => {
                Some(Tls::client(&self.trust()?, &host).map_err(|error| Refused::Tls(error.to_string()))?)
            }
            false => None,
        };
        // Blocking from here on: a cancel shuts the socket down, the deadline is its timeout.
        let closers = attempt.closers(&socket)?;
        let mut channel = Channel { socket, tls, attempt: &attempt };
        let (head, early) = channel.agree(&dial)?;
        drop(closers);
        attempt.check()?;
        let Channel { socket, tls, .. } = channel;
        let socket = socket.unblocked().map_err(|error| attempt.said(&error))?;
        let peer = dialed_peer(&dial.target, &socket);
        let carrier = Carrier { socket, tls: tls.map(Box::new), place: None };
        Ok(Adopted { carrier: Box::new(carrier), peer, speak: dial.speak, head, early, owner: dial.owner })
    }

    fn trust(&self) -> Result<ClientTls, Refused> {
        if let Some(trust) = self.trust.lock().clone() {
            return Ok(trust);
        }
        let trust = ClientTls::system().map_err(|error| Refused::Tls(error.to_string()))?;
        *self.trust.lock() = Some(trust.clone());
        Ok(trust)
    }
}

/// One attempt's clock and ways to be given up.
struct Attempt<'a> {
    rt: &'a Rt,
    cancels: [&'a Cancel; 2],
    deadline: Moment,
}

impl Attempt<'_> {
    fn check(&self) -> Result<(), Refused> {
        if self.cancels.iter().any(|cancel| cancel.is_cancelled()) {
            return Err(Refused::Cancelled);
        }
        if self.rt.now() >= self.deadline {
            return Err(Refused::TimedOut);
        }
        Ok(())
    }

    /// What an error means, given what else may have happened.
    fn said(&self, error: &io::Error) -> Refused {
        if let Err(refused) = self.check() {
            return refused;
        }
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Refused::TimedOut,
            _ if is_exhausted(error) => Refused::Exhausted(error.to_string()),
            _ => Refused::Unreachable(error.to_string()),
        }
    }

    fn connect_tcp(&self, host: &str, port: u16) -> Result<std::net::TcpStream, Refused> {
        let found = (host, port).to_socket_addrs().map_err(|error| self.said(&error))?;
        let mut last = Refused::Unreachable(format!("{host} has no address"));
        let addresses: Vec<SocketAddr> = found.collect();
        for (at, address) in addresses.iter().enumerate() {
            self.check()?;
            // Each of the remaining addresses gets its share of the time.
            let left = self.deadline.since(self.rt.now()) / (addresses.len() - at) as u32;
            match self.connect_one(*address, self.rt.now() + left) {
                Ok(socket) => return Ok(socket),
                Err(refused) => last = refused,
            }
        }
        Err(last)
    }

    /// Connects without blocking, so that a cancel wakes the poller instead of waiting for the kernel.
    fn connect_one(&self, address: SocketAddr, until: Moment) -> Result<std::net::TcpStream, Refused> {
        let said = |error: io::Error| self.said(&error);
        let mut poll = mio::Poll::new().map_err(said)?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), Token(1)).map_err(said)?);
        let guards = self.cancels.map(|cancel| {
            let waker = waker.clone();
            cancel.on_cancel(move || {
                // A full counter means that it is awake.
                let _ = waker.wake();
            })
        });
        let mut socket = pace::connect(address).map_err(said)?;
        poll.registry().register(&mut socket, Token(0), Interest::WRITABLE).map_err(said)?;
        let mut events = mio::Events::with_capacity(4);
        loop {
            self.check()?;
            let now = self.rt.now();
            if now >= until {
                return Err(Refused::TimedOut);
            }
            match poll.poll(&mut events, Some(until.since(now))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(self.said(&error)),
                _ => {}
            }
            if let Some(error) = socket.take_error().map_err(said)? {
                return Err(self.said(&error));
            }
            if socket.peer_addr().is_ok() {
                break;
            }
        }
        drop(guards);
        poll.registry().deregister(&mut socket).map_err(said)?;
        keep_lively(&socket);
        let socket = std::net::TcpStream::from(socket);
        socket.set_nonblocking(false).map_err(said)?;
        Ok(socket)
    }

    /// What shuts the socket down when the attempt is given up.
    fn closers(&self, socket: &Plain) -> Result<Vec<crate::rt::CloserGuard>, Refused> {
        let mut guards = Vec::new();
        for cancel in self.cancels {
            let other = socket.try_clone().map_err(|error| self.said(&error))?;
            guards.push(cancel.on_cancel(move || other.shut()));
        }
        Ok(guards)
    }
}

/// A socket that blocks.
enum Plain {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Plain {
    fn try_clone(&self) -> io::Result<Plain> {
        Ok(match self {
            Plain::Tcp(socket) => Plain::Tcp(socket.try_clone()?),
            Plain::Unix(socket) => Plain::Unix(socket.try_clone()?),
        })
    }

    fn shut(&self) {
        // Already closed is as good.
        let _ = match self {
            Plain::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Plain::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }

    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Plain::Tcp(socket) => {
                socket.set_read_timeout(Some(timeout))?;
                socket.set_write_timeout(Some(timeout))
            }
            Plain::Unix(socket) => {
                socket.set_read_timeout(Some(timeout))?;
                socket.set_write_timeout(Some(timeout))
            }
        }
    }

    fn unblocked(self) -> io::Result<Socket> {
        Ok(match self {
            Plain::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                Socket::Tcp(mio::net::TcpStream::from_std(socket))
            }
            Plain::Unix(socket) => {
                socket.set_nonblocking(true)?;
                Socket::Unix(mio::net::UnixStream::from_std(socket))
            }
        })
    }
}

impl AsFd for Plain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Plain::Tcp(socket) => socket.as_fd(),
            Plain::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Plain::Tcp(socket) => socket.read(buffer),
            Plain::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Plain::Tcp(socket) => socket.write(bytes),
            Plain::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection while both ends agree what to speak.
struct Channel<'a> {
    socket: Plain,
    tls: Option<Tls>,
    attempt: &'a Attempt<'a>,
}

impl Channel<'_> {
    /// TLS, then the upgrade where one is asked for. Answers the head and what came behind it.
    fn agree(&mut self, dial: &Dial) -> Result<(Option<ResponseHead>, Vec<u8>), Refused> {
        self.shake_hands()?;
        let key = match &dial.speak {
            Speak::Raw => return Ok((None, Vec::new())),
            Speak::WebSocket { .. } => Some(tungstenite::handshake::client::generate_key()),
            Speak::Upgrade { .. } => None,
        };
        self.write(request(dial, key.as_deref())?.as_bytes())?;
        let mut reader = ResponseReader::default();
        let mut buffer = [0; 4096];
        loop {
            let n = self.read(&mut buffer)?;
            if n == 0 {
                // Whoever gives a dial up closes its socket.
                self.attempt.check()?;
                return Err(Refused::Protocol("the peer closed the connection before it answered"));
            }
            if let Some((head, early)) = reader.feed(&buffer[..n]).map_err(Refused::Protocol)? {
                judge(dial, key.as_deref(), &head, &early)?;
                return Ok((Some(head), early));
            }
        }
    }

    fn shake_hands(&mut self) -> Result<(), Refused> {
        self.arm()?;
        let Some(tls) = &mut self.tls else { return Ok(()) };
        let shaken = tls.shake_hands(&mut self.socket);
        shaken.map_err(|error| self.said(&error))
    }

    /// The time that is left becomes the socket's timeout.
    fn arm(&self) -> Result<(), Refused> {
        self.attempt.check()?;
        let left = self.attempt.deadline.since(self.attempt.rt.now()).max(Duration::from_millis(1));
        self.socket.set_timeout(left).map_err(|error| self.attempt.said(&error))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Refused> {
        self.arm()?;
        let read = match &mut self.tls {
            None => self.socket.read(buffer),
            Some(tls) => tls.read(&mut self.socket, buffer),
        };
        read.map_err(|error| self.said(&error))
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Refused> {
        while !bytes.is_empty() {
            self.arm()?;
            let written = match &mut self.tls {
                None => self.socket.write(bytes),
                Some(tls) => tls.write(&mut self.socket, &[IoSlice::new(bytes)]),
            };
            match written.map_err(|error| self.said(&error))? {
                0 => return Err(Refused::Unreachable("the connection takes nothing".into())),
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    fn said(&self, error: &io::Error) -> Refused {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Refused::Tls(tls.to_string()),
            None => self.attempt.said(error),
        }
    }
}

pub(crate) fn request(dial: &Dial, key: Option<&str>) -> Result<String, Refused> {
    let mut text = format!(
        "GET {} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\n",
        dial.target.path,
        dial.target.host()
    );
    match &dial.speak {
        Speak::WebSocket { protocols, .. } => {
            text.push_str("upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: ");
            text.push_str(key.unwrap_or_default());
            text.push_str("\r\n");
            if !protocols.is_empty() {
                text.push_str(&format!("sec-websocket-protocol: {}\r\n", protocols.join(", ")));
            }
        }
        Speak::Upgrade { protocol } => text.push_str(&format!("upgrade: {protocol}\r\n")),
        Speak::Raw => {}
    }
    for (name, value) in &dial.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    // Checked once, at the end: whatever was put in, lines end only where we ended them.
    let lines = 3 + text.matches("\r\n").count();
    if text.bytes().any(|byte| byte < 0x20 && !matches!(byte, b'\r' | b'\n' | b'\t'))
        || lines != 3 + text.matches('\n').count()
    {
        return Err(Refused::Protocol("a request header holds bytes that no header holds"));
    }
    text.push_str("\r\n");
    Ok(text)
}

/// Whether the answer is the one that was asked for.
pub(crate) fn judge(
    dial: &Dial,
    key: Option<&str>,
    head: &ResponseHead,
    early: &[u8],
) -> Result<(), Refused> {
    if head.status != 101 {
        let problem: Option<serde_json::Value> = serde_json::from_slice(early).ok();
        let code = problem.as_ref().and_then(|problem| problem.get("code")).and_then(|code| code.as_str());
        return Err(Refused::Answered { status: head.status, code: code.map(str::to_owned) });
    }
    let wanted = match &dial.speak {
        Speak::WebSocket { protocols, .. } => {
            let accept = key.and_then(websocket::accept_key);
            if head.header("sec-websocket-accept").map(str::to_owned) != accept {
                return Err(Refused::Protocol("the peer answered another WebSocket key"));
            }
            if head
                .header("sec-websocket-protocol")
                .is_some_and(|chosen| !protocols.iter().any(|ours| ours == chosen))
            {
                return Err(Refused::Protocol("the peer chose a subprotocol that was not offered"));
            }
            "websocket"
        }
        Speak::Upgrade { protocol } => protocol,
        Speak::Raw => return Ok(()),
    };
    match head.header("upgrade") {
        Some(protocol) if protocol.eq_ignore_ascii_case(wanted) => Ok(()),
        _ => Err(Refused::Protocol("the peer upgraded to another protocol")),
    }
}
