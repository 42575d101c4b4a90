//! Connecting: to a server for a client's pipe, to a target for a server's.
//!
//! Each attempt has a thread of its own for as long as it takes, with a deadline; it waits in one
//! poller that also hears when the attempt is given up. Only the system's resolver cannot be woken.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use super::carrier::{Carrier, Socket};
use crate::codec::pipe::{Decoder, Piece, encode_greeting};
use crate::rt::{Cancel, Moment, Rt};
use crate::state::pipe::hello::{Asked, Asking, Greeting, HANDSHAKE_WAIT, Known, Refuse, Want, Welcome};
use crate::state::pipe::proof::{Secret, Stand};
use crate::state::pipe::{End, Ending, PipeId};
use crate::wire::pace;

const SOCKET: Token = Token(0);
const GIVEN_UP: Token = Token(1);

/// Where a client's carriers come from.
pub trait Dialer: Send + Sync + 'static {
    /// Makes one connection, by `patience.deadline()` at the latest, and says what speaks over it.
    fn dial(&self, patience: &mut Patience) -> Result<Carrier, DialError>;

    /// The token that goes into HELLO, where nothing else carries it.
    fn token(&self) -> Option<&str> {
        None
    }

    /// The server says where to come next.
    fn moved(&self, url: &str) {
        log::debug!("pipes: staying where we are although the server points to {url}");
    }
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialError {
    /// What it was.
    pub end: End,
    /// Whether the same may go well later.
    pub retriable: bool,
    /// How long to wait at least.
    pub retry_after: Duration,
}

impl DialError {
    /// It did not work now.
    pub fn later(end: End) -> DialError {
        DialError { end, retriable: true, retry_after: Duration::ZERO }
    }

    /// It will not work.
    pub fn never(end: End) -> DialError {
        DialError { end, retriable: false, retry_after: Duration::ZERO }
    }

    /// The connection broke, or never came to be.
    pub fn io(doing: &str, error: &io::Error) -> DialError {
        DialError::later(End::new(Ending::ServerUnreachable, format!("{doing}: {error}")))
    }
}

impl From<Refuse> for DialError {
    fn from(refuse: Refuse) -> DialError {
        DialError { end: refuse.end, retriable: refuse.retriable, retry_after: refuse.retry_after }
    }
}

/// Waits for sockets on behalf of one attempt: until its deadline, or until it is given up.
pub struct Patience {
    rt: Rt,
    poll: Poll,
    events: Events,
    deadline: Moment,
    cancel: Cancel,
    _closer: crate::rt::CloserGuard,
}

impl Patience {
    pub(super) fn new(rt: &Rt, deadline: Moment, cancel: &Cancel) -> io::Result<Patience> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), GIVEN_UP)?;
        let closer = cancel.on_cancel(move || {
            // The thread looks at the token by itself when it next wakes.
            if let Err(error) = waker.wake() {
                log::debug!("pipes: waking a dial that was given up: {error}");
            }
        });
        let events = Events::with_capacity(4);
        Ok(Patience { rt: rt.clone(), poll, events, deadline, cancel: cancel.clone(), _closer: closer })
    }

    /// When the attempt has failed.
    pub fn deadline(&self) -> Moment {
        self.deadline
    }

    /// The runtime it runs in.
    pub fn rt(&self) -> &Rt {
        &self.rt
    }

    fn extend(&mut self, deadline: Moment) {
        self.deadline = deadline;
    }

    /// Waits until something may be possible that was not.
    fn wait(&mut self) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the attempt was given up"));
        }
        let left = self.deadline.since(self.rt.now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
        }
        match self.poll.poll(&mut self.events, Some(left)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }

    /// Connects to one of the addresses.
    pub fn connect(&mut self, addresses: &[SocketAddr]) -> io::Result<Socket> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for (index, address) in addresses.iter().enumerate() {
            // An address that swallows everything must leave time for the others.
            let rest = self.deadline;
            let share = rest.since(self.rt.now()) / (addresses.len() - index) as u32;
            self.deadline = self.rt.now() + share;
            let connected = self.connect_one(*address);
            self.deadline = rest;
            match connected {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn connect_one(&mut self, address: SocketAddr) -> io::Result<Socket> {
        let mut socket = Socket::Tcp(pace::connect(address)?);
        socket.register(self.poll.registry(), SOCKET)?;
        loop {
            self.wait()?;
            if let Some(error) = socket.take_error() {
                return Err(error);
            }
            let Socket::Tcp(stream) = &socket else { unreachable!("made above") };
            match stream.peer_addr() {
                Ok(_) => {
                    stream.set_nodelay(true)?;
                    return Ok(socket);
                }
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Connects to a Unix-domain socket.
    pub fn connect_unix(&mut self, path: &std::path::Path) -> io::Result<Socket> {
        let mut socket = Socket::unix(std::os::unix::net::UnixStream::connect(path)?)?;
        socket.register(self.poll.registry(), SOCKET)?;
        Ok(socket)
    }

    /// Resolves a name. The resolver has its own idea of time.
    pub fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((host, port).to_socket_addrs()?.collect())
    }

    /// The socket as something that waits: for what has to be said before frames.
    pub fn with<'a>(&'a mut self, socket: &'a mut Socket) -> Waiting<'a> {
        Waiting { patience: self, socket }
    }

    fn read(&mut self, carrier: &mut Carrier, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match carrier.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                other => return other,
            }
        }
    }

    fn write(&mut self, carrier: &mut Carrier, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match carrier.write(&[IoSlice::new(bytes)]) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                Err(error) => return Err(error),
            }
        }
        while carrier.has_more() {
            match carrier.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                other => return other,
            }
        }
        Ok(())
    }

    /// Lets go of the socket: another poller will watch it.
    pub(super) fn release(&mut self, socket: &mut Socket) {
        socket.deregister(self.poll.registry());
    }
}

/// A socket that waits instead of saying `WouldBlock`.
pub struct Waiting<'a> {
    patience: &'a mut Patience,
    socket: &'a mut Socket,
}

impl Read for Waiting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.patience.wait()?,
                other => return other,
            }
        }
    }
}

impl Write for Waiting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.socket.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.patience.wait()?,
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A carrier that passed the handshake, on its way to the thread that owns the pipe.
pub(crate) struct Dialed {
    pub(super) carrier: Carrier,
    /// Where the bytes after the handshake go on.
    pub(super) decoder: Decoder,
    /// Bytes that came behind the welcome.
    pub(super) rest: Vec<u8>,
    pub(super) welcome: Welcome,
}

/// One attempt, from nothing to a welcome. `stand_still` is asked once the server's challenge is here
/// and answers how the pipe stands; nothing if the pipe does not want this attempt any more.
pub(super) fn dial(
    dialer: &Arc<dyn Dialer>,
    patience: &mut Patience,
    epoch: u64,
    want: &Want,
    stand_still: impl FnOnce() -> Option<Stand>,
) -> Result<Dialed, DialError> {
    let mut carrier = dialer.dial(patience)?;
    // Connecting has a deadline of its own; what was connected gets the time of a handshake.
    patience.extend(patience.rt.now() + HANDSHAKE_WAIT);
    let (mut asking, hello) = Asking::begin(patience.rt.secret(), epoch, want, dialer.token());
    let mut bytes = Vec::new();
    encode_greeting(&hello, &mut bytes);
    let broke = |error: io::Error| DialError::io("the handshake broke off", &error);
    patience.write(&mut carrier, &bytes).map_err(broke)?;
    let mut stand_still = Some(stand_still);
    let mut decoder = Decoder::new();
    let mut buffer = [0; 4096];
    loop {
        let count = patience.read(&mut carrier, &mut buffer).map_err(broke)?;
        if count == 0 {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection");
            return Err(broke(error));
        }
        let mut input = &buffer[..count];
        let protocol = |text: String| DialError::later(End::new(Ending::Protocol, text));
        while let Some(piece) = decoder.next(&mut input).map_err(|error| protocol(error.to_string()))? {
            let Piece::Greeting(greeting) = piece else {
                return Err(protocol("a frame came before the welcome".into()));
            };
            match asking.step(greeting).map_err(DialError::never)? {
                Asked::StandStill => {
                    let stand = stand_still.take().and_then(|ask| ask());
                    let Some(stand) = stand else {
                        return Err(DialError::later(End::new(
                            Ending::Superseded,
                            "the attempt was given up",
                        )));
                    };
                    let mut bytes = Vec::new();
                    let proof: Greeting = asking.prove(stand);
                    encode_greeting(&proof, &mut bytes);
                    patience.write(&mut carrier, &bytes).map_err(broke)?;
                }
                Asked::Welcome(welcome) => {
                    patience.release(carrier.socket());
                    return Ok(Dialed { carrier, decoder, rest: input.to_vec(), welcome });
                }
                Asked::Refused(refuse) => return Err(refuse.into()),
            }
        }
    }
}

/// Looks whether pipes get through to a server, and how long a question takes there and back. No pipe
/// begins: it asks for one that nobody has, and leaves when the proof is asked for.
///
/// # Errors
/// What a pipe would hear.
pub fn probe(rt: &Rt, dialer: &Arc<dyn Dialer>) -> Result<Duration, DialError> {
    let cancel = rt.cancel_token();
    let broke = |error: io::Error| DialError::io("the handshake broke off", &error);
    let mut patience = Patience::new(rt, rt.now() + HANDSHAKE_WAIT, &cancel).map_err(broke)?;
    let mut carrier = dialer.dial(&mut patience)?;
    let nobodys = Known { id: PipeId(rt.secret()), secret: Secret(rt.secret()), instance: [0; 16] };
    let (mut asking, hello) = Asking::begin(rt.secret(), 1, &Want::Resume(nobodys), dialer.token());
    let mut bytes = Vec::new();
    encode_greeting(&hello, &mut bytes);
    let asked = rt.now();
    patience.write(&mut carrier, &bytes).map_err(broke)?;
    let (mut decoder, mut buffer) = (Decoder::new(), [0; 1024]);
    let protocol = |text: String| DialError::later(End::new(Ending::Protocol, text));
    loop {
        let count = patience.read(&mut carrier, &mut buffer).map_err(broke)?;
        if count == 0 {
            return Err(broke(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut input = &buffer[..count];
        match decoder.next(&mut input).map_err(|error| protocol(error.to_string()))? {
            None => {}
            Some(Piece::Greeting(greeting)) => match asking.step(greeting).map_err(DialError::never)? {
                Asked::Refused(refuse) => return Err(refuse.into()),
                Asked::StandStill | Asked::Welcome(_) => return Ok(rt.now().since(asked)),
            },
            Some(_) => return Err(protocol("a frame came before the challenge".into())),
        }
    }
}

/// A connection to the replica that has a pipe, with a client's first words said on it.
pub(super) fn reach(
    dialer: &Arc<dyn Dialer>,
    patience: &mut Patience,
    words: &[u8],
) -> Result<Carrier, DialError> {
    let mut carrier = dialer.dial(patience)?;
    let said = patience.write(&mut carrier, words);
    said.map_err(|error| DialError::io("the handshake broke off", &error))?;
    patience.release(carrier.socket());
    Ok(carrier)
}

/// Frames on a plain connection, for trusted paths: `tcp://host:port` and `unix:/path`.
#[derive(Clone, Debug)]
pub enum Plain {
    /// Over TCP.
    Tcp(String, u16),
    /// On this machine.
    Unix(PathBuf),
}

impl Dialer for Plain {
    fn dial(&self, patience: &mut Patience) -> Result<Carrier, DialError> {
        let socket = match self {
            Plain::Tcp(host, port) => patience
                .resolve(host, *port)
                .and_then(|addresses| patience.connect(&addresses))
                .map_err(|error| DialError::io(&format!("connecting to {host}:{port}"), &error))?,
            Plain::Unix(path) => patience
                .connect_unix(path)
                .map_err(|error| DialError::io(&format!("connecting to {}", path.display()), &error))?,
        };
        Ok(Carrier::raw(socket, None, Vec::new()))
    }
}
