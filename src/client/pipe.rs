//! Byte streams that outlive their connections, for programs.
//!
//! [`Pipe`] reads and writes like a socket. Behind it are a machine that keeps what was not acknowledged
//! and a dialer that comes back by itself; a cut, a new address or a closed lid is a pause, never a lost
//! or a doubled byte. [`PipeListener`] is the other end, for programs that want the pipe itself rather
//! than a target behind a daemon. [`Backed`] is the same machine over connections that the caller makes.
//!
//! ```
//! use std::io::{Read, Write};
//! use towpath::client::pipe::{Pipe, PipeListener};
//! use towpath::rt::Rt;
//!
//! let rt = Rt::real();
//! let listener = PipeListener::bind(&rt, "127.0.0.1:0")?;
//! let mut ours = Pipe::connect(&rt, listener.url(), "anything")?;
//! let mut theirs = listener.accept()?.pipe;
//!
//! ours.write_all(b"hello")?;
//! ours.reconnect_now(); // as if the network had changed
//! ours.shutdown()?;
//! let mut text = String::new();
//! theirs.read_to_string(&mut text)?;
//! assert_eq!(text, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod backed;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;

use crate::engine::pipes::carrier::{Carrier, Socket};
use crate::engine::pipes::dial::{Dialer, Plain};
use crate::engine::pipes::duct::Duct;
use crate::engine::pipes::{
    Accepted, CarrierPeer, Mode, OpenPipe, Pipes, PipesHandle, Plan, Server, Settings,
};
use crate::rt::{self, Cancel, Lock, Rt, Thread};
use crate::state::pipe::{End, Ending};
use crate::wire::listen::bind_unix;
use crate::wire::pace;

pub use self::backed::Backed;
pub use crate::engine::pipes::Event;
pub use crate::engine::pipes::duct::{PipeEnded, State};
pub use crate::state::pipe::PipeId;

/// How many events of a pipe wait for whoever wants them.
const EVENTS_MAX: usize = 64;
/// How many pipes wait to be accepted.
const BACKLOG: usize = 128;
/// How long nothing is accepted after the system had no descriptor for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long closing a pipe may take its thread.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// One end of a pipe. Reading and writing wait; clones are the same end.
///
/// Dropping the last clone ends this direction; what was written is still delivered while the program
/// runs and its [`Pipes`] live.
///
/// ```
/// use std::io::{Read, Write};
/// use towpath::{Pipe, PipeListener, Rt};
///
/// let rt = Rt::real();
/// let listener = PipeListener::bind(&rt, "127.0.0.1:0")?;
/// let mut near = Pipe::connect(&rt, listener.url(), "demo")?;
/// let mut far = listener.accept()?.pipe;
/// near.write_all(b"hello")?;
/// near.reconnect_now(); // as if the network had been lost
/// near.shutdown()?;
/// let mut got = Vec::new();
/// far.read_to_end(&mut got)?;
/// assert_eq!(got, b"hello");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Pipe {
    handles: Arc<Handles>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

/// What all clones share.
struct Handles {
    duct: Arc<Duct>,
    open: OpenPipe,
    events: Lock<Option<rt::Receiver<Event>>>,
    /// The threads, if this pipe brought its own.
    _own: Option<Pipes>,
}

impl Drop for Handles {
    fn drop(&mut self) {
        self.duct.drop_handles();
        if self._own.is_some() {
            // A pipe with threads of its own takes them with it: what was written has to leave first. An
            // end that is done, or cannot be, is as good.
            let until = self.duct.until(Some(Duration::from_secs(5)));
            if self.duct.wait_over(until).is_none() {
                log::debug!("pipes: a pipe was dropped before its peer had everything");
            }
        }
    }
}

impl Pipe {
    /// Connects to a listener at `tcp://host:port` or `unix:/path`, on threads of its own, and waits for
    /// the first welcome. `target` is what the listener is told.
    ///
    /// # Errors
    /// When the address cannot be read, or nobody welcomes the pipe within 30 seconds.
    pub fn connect(rt: &Rt, url: &str, target: &str) -> io::Result<Pipe> {
        let dialer = Arc::new(plain(url)?);
        let pipes = Pipes::start(rt, Settings::default(), Server::none()).map_err(io::Error::other)?;
        let handle = pipes.handle();
        let pipe = Pipe::start(rt, &handle, Plan::new(dialer, target), Some(pipes))?;
        pipe.wait_connected(Some(Duration::from_secs(30)))?;
        Ok(pipe)
    }

    /// Opens a pipe on threads that are there already, and does not wait: what is written meanwhile goes
    /// out with the first carrier.
    ///
    /// # Errors
    /// When too many are being opened at once.
    pub fn open(rt: &Rt, pipes: &PipesHandle, plan: Plan) -> io::Result<Pipe> {
        Pipe::start(rt, pipes, plan, None)
    }

    fn start(rt: &Rt, pipes: &PipesHandle, mut plan: Plan, own: Option<Pipes>) -> io::Result<Pipe> {
        let (tell, events) = rt.channel("pipe-events", EVENTS_MAX);
        let also = plan.events.clone();
        plan.events = Arc::new(move |event| {
            also(event.clone());
            // Full: nobody listens; `state` says how it stands.
            if tell.try_send(event).is_err() {
                log::trace!("pipes: an event nobody waits for");
            }
        });
        let (open, duct) = pipes.open_duct(plan).map_err(io::Error::other)?;
        Ok(Pipe::new(duct, open, Some(events), own))
    }

    fn new(duct: Arc<Duct>, open: OpenPipe, events: Option<rt::Receiver<Event>>, own: Option<Pipes>) -> Pipe {
        let handles = Handles { duct, open, events: Lock::new(events), _own: own };
        Pipe { handles: Arc::new(handles), read_timeout: None, write_timeout: None }
    }

    /// How it stands.
    pub fn state(&self) -> State {
        self.handles.duct.state()
    }

    /// Waits until a carrier bears it.
    ///
    /// # Errors
    /// When it is over, or `timeout` has passed.
    pub fn wait_connected(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.handles.duct.wait_connected(self.handles.duct.until(timeout))
    }

    /// Waits until it is over, and says how; nothing if `timeout` has passed.
    pub fn wait_over(&self, timeout: Option<Duration>) -> Option<End> {
        self.handles.duct.wait_over(self.handles.duct.until(timeout))
    }

    /// Lets go of the carrier, and dials another one now (a client's end) or waits for one (a server's).
    pub fn reconnect_now(&self) {
        self.handles.open.reconnect_now();
    }

    /// Ends this direction after what was written; the other one goes on. Whoever waits in a write of any clone
    /// gets an error that [`ended_with`] knows.
    ///
    /// # Errors
    /// When the pipe is over already.
    pub fn shutdown(&self) -> io::Result<()> {
        match self.handles.duct.state() {
            State::Over(end) if end.code != Ending::Eof => Err(crate::engine::pipes::duct::ended(&end)),
            _ => {
                self.handles.duct.finish();
                Ok(())
            }
        }
    }

    /// Ends it for both sides at once: bytes that wait to leave are dropped, the other end is told (with the next
    /// carrier, if there is none), and whoever waits in a read or a write of any clone gets an error that
    /// [`ended_with`] knows. A pipe that is over stays as it ended.
    ///
    /// ```
    /// use std::io::Read;
    /// use towpath::client::pipe::{Pipe, PipeListener, ended_with};
    /// use towpath::state::pipe::Ending;
    ///
    /// let rt = towpath::Rt::real();
    /// let listener = PipeListener::bind(&rt, "127.0.0.1:0")?;
    /// let near = Pipe::connect(&rt, listener.url(), "demo")?;
    /// let mut far = listener.accept()?.pipe;
    /// let mut clone = near.clone();
    /// let reader = std::thread::spawn(move || clone.read(&mut [0]));
    /// near.close();
    /// let error = reader.join().expect("no panic").expect_err("nothing will come");
    /// assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::Killed));
    /// let error = far.read(&mut [0]).expect_err("nor here");
    /// assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::Killed));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn close(&self) {
        self.handles.open.close();
        let until = self.handles.duct.until(Some(CLOSE_WAIT));
        if self.handles.duct.wait_over(until).is_none() {
            log::debug!("pipes: a pipe that was closed is not over yet");
        }
    }

    /// What happens to it, as it happens. Given once; a server's end has none.
    pub fn events(&self) -> Option<rt::Receiver<Event>> {
        self.handles.events.lock().take()
    }

    /// How long a read of this clone waits at most.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    /// How long a write of this clone waits at most.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    /// Writes as much as there is room for now.
    ///
    /// # Errors
    /// `TimedOut` when there is no room; otherwise as for a write.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.handles.duct.write(bytes, self.handles.duct.until(Some(Duration::ZERO)))
    }

    /// Reads what there is now.
    ///
    /// # Errors
    /// `TimedOut` when there is nothing; otherwise as for a read.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.handles.duct.read(buffer, self.handles.duct.until(Some(Duration::ZERO)))
    }
}

impl Read for &Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.handles.duct.read(buffer, self.handles.duct.until(self.read_timeout))
    }
}

impl Write for &Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.handles.duct.write(bytes, self.handles.duct.until(self.write_timeout))
    }

    /// Does nothing: bytes leave by themselves.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pipe({:?})", self.state())
    }
}

/// How the inner error of an `io::Error` says that a pipe ended, if it does.
pub fn ended_with(error: &io::Error) -> Option<&End> {
    error.get_ref()?.downcast_ref::<PipeEnded>().map(|ended| &ended.0)
}

fn plain(url: &str) -> io::Result<Plain> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{url}: {why}"));
    if let Some(path) = url.strip_prefix("unix:") {
        return Ok(Plain::Unix(path.into()));
    }
    let rest = url.strip_prefix("tcp://").ok_or_else(|| bad("expected tcp://host:port or unix:/path"))?;
    let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("a port is missing"))?;
    let port = port.parse().map_err(|_| bad("the port is no number below 65536"))?;
    Ok(Plain::Tcp(host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

/// A pipe somebody opened to this program.
pub struct Incoming {
    /// Its near end.
    pub pipe: Pipe,
    /// Its public name.
    pub id: PipeId,
    /// Whose it is.
    pub principal: Arc<str>,
    /// What was asked for.
    pub target: String,
    /// Who is at the other end.
    pub peer: CarrierPeer,
}

/// Accepts pipes over plain TCP and over Unix-domain sockets: for one machine, and for networks that are trusted. A
/// daemon accepts them behind HTTP.
///
/// ```
/// let rt = towpath::Rt::real();
/// let listener = towpath::PipeListener::bind(&rt, "127.0.0.1:0")?;
/// assert_ne!(listener.address().map(|address| address.port()), Some(0));
///
/// let path = std::env::temp_dir().join(format!("towpath-example-{}", std::process::id()));
/// let listener = towpath::PipeListener::bind(&rt, &format!("unix:{}", path.display()))?;
/// let _near = towpath::Pipe::connect(&rt, listener.url(), "demo")?;
/// assert_eq!(listener.accept()?.target, "demo");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct PipeListener {
    accepted: rt::Receiver<Accepted>,
    url: String,
    address: Option<SocketAddr>,
    // In this order: no new connections, then no new pipes.
    _accepting: Accepting,
    pipes: Pipes,
}

struct Accepting {
    cancel: Cancel,
    door: Arc<Door>,
    thread: Option<Thread<()>>,
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.cancel.cancel();
        // `accept` has no deadline: this ends it, and takes no descriptor, of which there may be none.
        if let Err(error) = self.door.shut() {
            log::debug!("pipes: waking a listener: {error}");
        }
        self.thread.take();
    }
}

/// Where connections come in.
enum Door {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Door {
    fn open(address: &str) -> io::Result<Door> {
        match address.strip_prefix("unix:") {
            Some(path) => Ok(Door::Unix(bind_unix(path.as_ref())?, path.into())),
            None => pace::listen(address).map(Door::Tcp),
        }
    }

    /// Where it is; an address, if it has one.
    fn place(&self) -> io::Result<(String, Option<SocketAddr>)> {
        Ok(match self {
            Door::Tcp(listener) => {
                let address = listener.local_addr()?;
                (format!("tcp://{address}"), Some(address))
            }
            Door::Unix(_, path) => (format!("unix:{}", path.display()), None),
        })
    }

    fn accept(&self) -> io::Result<(Socket, CarrierPeer)> {
        let (socket, ip) = match self {
            Door::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                (Socket::tcp(stream), Some(address.ip()))
            }
            Door::Unix(listener, _) => (Socket::unix(listener.accept()?.0), None),
        };
        let confidential = ip.is_none_or(|ip| ip.to_canonical().is_loopback());
        let socket = socket.map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error))?;
        Ok((socket, CarrierPeer { ip, confidential, ..CarrierPeer::default() }))
    }

    /// Ends an `accept` that waits, and every later one.
    fn shut(&self) -> io::Result<()> {
        match self {
            Door::Tcp(listener) => SockRef::from(listener),
            Door::Unix(listener, _) => SockRef::from(listener),
        }
        .shutdown(Shutdown::Both)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Door::Unix(_, path) = &*self
            && let Err(error) = std::fs::remove_file(path)
        {
            // Somebody else removed it: it was to go.
            log::debug!("pipes: removing {}: {error}", path.display());
        }
    }
}

impl PipeListener {
    /// Listens at `host:port` of this machine, where secrets do not leave it, or at `unix:/path`. The file of a
    /// listener that is gone is replaced; this one's goes when it is dropped.
    ///
    /// # Errors
    /// When the address is taken or is none.
    pub fn bind(rt: &Rt, address: &str) -> io::Result<PipeListener> {
        PipeListener::bind_with(rt, address, Settings::default(), None)
    }

    /// The same with settings. With a `token`, clients have to bring it.
    ///
    /// # Errors
    /// When the address is taken or is none.
    pub fn bind_with(
        rt: &Rt,
        address: &str,
        settings: Settings,
        token: Option<String>,
    ) -> io::Result<PipeListener> {
        let door = Arc::new(Door::open(address)?);
        let (url, address) = door.place()?;
        let (accept, accepted) = rt.channel("pipe-accept", BACKLOG);
        let gate = move |given: Option<&str>, _: &CarrierPeer| match (&token, given) {
            (None, _) => Ok(Arc::from("anybody")),
            (Some(token), Some(given)) if same(token, given) => Ok(Arc::from("token")),
            (Some(_), _) => Err(End::new(Ending::Auth, "the token is missing or not the one")),
        };
        let server = Server { mode: Mode::Listen(accept), gate: Arc::new(gate), ..Server::none() };
        let pipes = Pipes::start(rt, settings, server).map_err(io::Error::other)?;
        let cancel = rt.cancel_token();
        let mut accepting = Accepting { cancel: cancel.clone(), door: door.clone(), thread: None };
        let (accept, handle) = (move || door.accept(), pipes.handle());
        let clock = rt.clone();
        let thread = rt.spawn("pipe-listener", move || accept_all(&clock, accept, &handle, &cancel));
        accepting.thread = Some(thread.map_err(io::Error::other)?);
        Ok(PipeListener { accepted, url, address, _accepting: accepting, pipes })
    }

    /// Where it listens, as [`Pipe::connect`] takes it: `tcp://host:port` or `unix:/path`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address it listens at, if it is one of TCP.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The threads that carry its pipes.
    pub fn pipes(&self) -> PipesHandle {
        self.pipes.handle()
    }

    /// Waits for the next pipe.
    ///
    /// # Errors
    /// When the listener's threads are gone.
    pub fn accept(&self) -> io::Result<Incoming> {
        // Woken by a pipe, or by the end of the threads that could bring one.
        let accepted = self.accepted.recv().map_err(|_| io::Error::other("the listener has ended"))?;
        Ok(Incoming::from(accepted))
    }
}

/// For programs with a door of their own: what comes through [`Mode::Listen`].
impl From<Accepted> for Incoming {
    fn from(accepted: Accepted) -> Incoming {
        let open = OpenPipe { port: accepted.port, serial: accepted.serial };
        Incoming {
            pipe: Pipe::new(accepted.duct, open, None, None),
            id: accepted.id,
            principal: accepted.principal,
            target: accepted.target,
            peer: accepted.peer,
        }
    }
}

fn same(one: &str, other: &str) -> bool {
    use subtle::ConstantTimeEq;
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

/// Gives whoever comes to the pipes, until it is cancelled.
fn accept_all(
    rt: &Rt,
    mut accept: impl FnMut() -> io::Result<(Socket, CarrierPeer)>,
    pipes: &PipesHandle,
    cancelled: &Cancel,
) {
    let mut is_paused = false;
    loop {
        // Woken by a connection, or by whoever shuts the listener down.
        let accepted = accept();
        if cancelled.is_cancelled() {
            return;
        }
        match accepted {
            Ok((socket, peer)) => {
                is_paused = false;
                pipes.carrier(Carrier::raw(socket, None, Vec::new()), peer);
            }
            // It left again before it was accepted.
            Err(error) if left(&error) => log::debug!("pipes: a connection that broke at once: {error}"),
            Err(error) => {
                // No descriptors: asking at once would ask for ever. Those who come wait in the kernel's queue.
                if !std::mem::replace(&mut is_paused, true) {
                    log::warn!("pipes: cannot accept a connection, and waits: {error}");
                }
                let (goes, gone) = rt.channel::<()>("pipe-pause", 1);
                // Cut short by its other end, which goes when it is cancelled.
                let _guard = cancelled.on_cancel(move || drop(goes));
                let _ = gone.recv_deadline(rt.now() + ACCEPT_PAUSE);
            }
        }
    }
}

fn left(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

/// A dialer that brings a token, for listeners that want one.
pub struct WithToken<D> {
    inner: D,
    token: String,
}

impl<D> WithToken<D> {
    /// `inner`, with a token in the handshake.
    pub fn new(inner: D, token: impl Into<String>) -> WithToken<D> {
        WithToken { inner, token: token.into() }
    }
}

impl<D: Dialer> Dialer for WithToken<D> {
    fn dial(
        &self,
        patience: &mut crate::engine::pipes::dial::Patience,
    ) -> Result<Carrier, crate::engine::pipes::dial::DialError> {
        self.inner.dial(patience)
    }

    fn token(&self) -> Option<&str> {
        Some(&self.token)
    }
}

#[cfg(test)]
mod tests;
