//! A pipe over connections that the caller makes.
//!
//! [`Backed`] has no opinion about addresses, encryption or who may come in: a function of the caller's
//! makes each connection and exchanges with the other end how much each of them has received. What is
//! here is the rest of it: bytes are kept until the other end has them, sent again after a loss, dropped
//! when they come twice, and a full window makes the writer wait.
//!
//! On a connection travel the frames of a pipe (DATA, ACK, FIN, RESET, PING, PONG); the other end is
//! another [`Backed`], of the other [`Side`].
//!
//! ```
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//! use towpath::client::pipe::backed::{Backed, Link, Side};
//! use towpath::rt::Rt;
//!
//! let rt = Rt::real();
//! let (near, far) = UnixStream::pair()?;
//! // One connection for each, and nobody has received anything yet.
//! let (mut near, mut far) = (Some(near), Some(far));
//! let gone = || std::io::Error::other("there was only one connection");
//! let ours = Backed::new(&rt, Side::Client, 1 << 20, move |_my_recv| {
//!     Ok((Link::try_from(near.take().ok_or_else(gone)?)?, 0))
//! })?;
//! let theirs = Backed::new(&rt, Side::Server, 1 << 20, move |_my_recv| {
//!     Ok((Link::try_from(far.take().ok_or_else(gone)?)?, 0))
//! })?;
//!
//! (&ours).write_all(b"written before there is a connection")?;
//! ours.shutdown();
//! ours.connect()?;
//! theirs.connect()?;
//! let mut text = String::new();
//! (&theirs).read_to_string(&mut text)?;
//! assert_eq!(text, "written before there is a connection");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Threads: one that keeps the connection, and a reader and a writer for as long as there is one. Invariant:
//! a connection's threads act only while its epoch bears the pipe; whatever an older one still brings is
//! dropped under the lock.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::State;
use crate::codec::pipe::outbox::Outbox;
use crate::codec::pipe::{Decoder, Piece};
use crate::engine::pipes::duct::{ended, shut_down};
use crate::rt::{Lock, Moment, Rt, Sender, Thread};
use crate::state::backoff::{Backoff, Budget, Next, Policy};
use crate::state::pipe::{self as machine, End, Ending};
use crate::state::replay::Pool;

pub use crate::state::pipe::Side;

/// How a lost connection is made again: at once, then 100 ms doubling to 5 s, until the pipe is closed.
const REDIAL: Policy = Policy {
    first: Duration::from_millis(100),
    cap: Duration::from_secs(5),
    at_once: true,
    reset_after: Duration::from_secs(10),
    budget: Budget::Forever,
};
/// What is read or written at once.
const PIECE: usize = 64 * 1024;
/// How often the keeper looks whether the other end is still heard, for a writer that is stuck in a write.
const LOOK: Duration = Duration::from_secs(1);
/// How long the last word may take to leave.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long the other end has to close the connection after the last word.
const GOODBYE_WAIT: Duration = Duration::from_secs(5);
/// How long an end that has and gave everything, and only waits for the goodbye, tries to be reached.
const LINGER: Duration = Duration::from_secs(30);

/// One connection: its two directions, and what ends both, so that whoever waits in them is woken.
pub struct Link {
    reader: Box<dyn Read + Send>,
    writer: Box<dyn Write + Send>,
    close: Closer,
}

type Closer = Box<dyn FnOnce() + Send>;

impl Link {
    /// A connection from its halves. `close` has to end a read and a write that wait.
    pub fn new(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        close: impl FnOnce() + Send + 'static,
    ) -> Link {
        Link { reader: Box::new(reader), writer: Box::new(writer), close: Box::new(close) }
    }
}

/// Ending a connection that is gone already is what was wanted.
fn end_quietly(ended: io::Result<()>) {
    if let Err(error) = ended {
        log::trace!("pipes: ending a connection: {error}");
    }
}

impl TryFrom<TcpStream> for Link {
    type Error = io::Error;

    fn try_from(stream: TcpStream) -> io::Result<Link> {
        stream.set_nodelay(true)?;
        let (reader, writer) = (stream.try_clone()?, stream.try_clone()?);
        Ok(Link::new(reader, writer, move || end_quietly(stream.shutdown(Shutdown::Both))))
    }
}

impl TryFrom<UnixStream> for Link {
    type Error = io::Error;

    fn try_from(stream: UnixStream) -> io::Result<Link> {
        let (reader, writer) = (stream.try_clone()?, stream.try_clone()?);
        Ok(Link::new(reader, writer, move || end_quietly(stream.shutdown(Shutdown::Both))))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

/// One end of a pipe over the caller's connections. Reading and writing wait; `&Backed` reads and writes
/// as well, so that any number of threads may share it.
pub struct Backed {
    inner: Arc<Inner>,
    keeper: Option<Thread<()>>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

struct Inner {
    rt: Rt,
    core: Lock<Core>,
}

struct Core {
    pipe: machine::Pipe,
    pool: Pool,
    outbox: Outbox,
    decoder: Decoder,
    /// What closes the connection that bears the pipe.
    link: Option<Closer>,
    /// Bytes are with the writer and may not be on the connection yet.
    writing: bool,
    dial: Dial,
    backoff: Backoff,
    draws: u64,
    /// What was received and what was acknowledged when a connection was last lost, and when that was.
    stood: (u64, u64),
    lost_at: Option<Moment>,
    /// Whether there ever was a connection: from then on losses are healed by themselves.
    was_connected: bool,
    /// By when the other end has to close the connection after the last word.
    goodbye_by: Option<Moment>,
    /// The first thing that went wrong since it last worked.
    trouble: Option<Trouble>,
    /// This side has broken it off.
    closing: bool,
    closed: bool,
    askers: Vec<Asker>,
    /// Whoever waits for a change, by ticket: a wait that ends by itself takes its own back.
    waiting: BTreeMap<u64, Sender<()>>,
    tickets: u64,
    /// Connections to close once the lock is let go of.
    doomed: Vec<Closer>,
    /// Whoever is to be answered then.
    answers: Vec<(Asker, Result<(), Trouble>)>,
}

type Asker = Sender<Result<(), Trouble>>;

/// Whether the caller's function is asked for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dial {
    /// Not asked: there is one, or nobody wants one.
    Rest,
    /// To be asked at that moment.
    At(Moment),
    /// It has been asked and has not answered.
    Out,
}

/// An `io::Error` that can be told to several callers.
#[derive(Clone, Debug)]
struct Trouble {
    kind: io::ErrorKind,
    text: String,
}

impl From<&io::Error> for Trouble {
    fn from(error: &io::Error) -> Trouble {
        Trouble { kind: error.kind(), text: error.to_string() }
    }
}

impl From<Trouble> for io::Error {
    fn from(trouble: Trouble) -> io::Error {
        io::Error::new(trouble.kind, trouble.text)
    }
}

/// What a look under the lock came to.
enum Look<T> {
    /// Go, with this.
    Go(T),
    /// Look again when something changed, or at this moment.
    Wait(Option<Moment>),
}

impl Inner {
    /// Looks until there is something to go with. Whatever changed is told to everybody who waits.
    fn look<T>(&self, mut ready: impl FnMut(&mut Core, Moment) -> Look<T>) -> T {
        let mut ticket = None;
        loop {
            let now = self.rt.now();
            let (wake, woken) = self.rt.channel("backed-wait", 1);
            let (look, waiting, doomed, answers) = {
                let mut core = self.core.lock();
                let core = &mut *core;
                if let Some(ticket) = ticket.take() {
                    core.waiting.remove(&ticket);
                }
                let look = ready(core, now);
                let (doomed, answers) = (std::mem::take(&mut core.doomed), std::mem::take(&mut core.answers));
                let waiting = match &look {
                    Look::Go(_) => std::mem::take(&mut core.waiting),
                    Look::Wait(_) => {
                        core.tickets += 1;
                        core.waiting.insert(core.tickets, wake);
                        ticket = Some(core.tickets);
                        BTreeMap::new()
                    }
                };
                (look, waiting, doomed, answers)
            };
            for close in doomed {
                close();
            }
            for (asker, answer) in answers {
                // One answer for a channel of one; whoever asked waits for it.
                let _ = asker.try_send(answer);
            }
            for sender in waiting.into_values() {
                // One wake is enough for whoever was woken already.
                let _ = sender.try_send(());
            }
            let until = match look {
                Look::Go(found) => return found,
                Look::Wait(until) => until,
            };
            // Woken by whoever changes something, or by the time. Either way the next look decides.
            match until {
                Some(until) => drop(woken.recv_deadline(until)),
                None => drop(woken.recv()),
            }
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Core, Moment) -> T) -> T {
        let mut change = Some(change);
        self.look(|core, now| Look::Go(change.take().expect("goes at the first look")(core, now)))
    }
}

impl Core {
    fn bears(&self, epoch: u64) -> bool {
        self.pipe.attached() == Some(epoch)
    }

    /// The connection is gone; the pipe is not.
    fn lose(&mut self, now: Moment, why: Trouble) {
        let Some(epoch) = self.pipe.attached() else { return };
        self.pipe.detach(epoch);
        self.doomed.extend(self.link.take());
        self.goodbye_by = None;
        log::debug!("pipes: a connection was lost: {}", why.text);
        self.trouble.get_or_insert(why);
        self.lost_at = Some(now);
        let stand = self.stand();
        if std::mem::replace(&mut self.stood, stand) != stand {
            // However often the path is cut: as long as the pipe gets further between two losses, there is
            // nothing to be patient about.
            self.backoff.forget();
        }
        self.redial(now);
    }

    fn stand(&self) -> (u64, u64) {
        (self.pipe.received(), self.pipe.written().1)
    }

    fn redial(&mut self, now: Moment) {
        self.draws = self.draws.wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.dial = Dial::At(match self.backoff.failed(now, self.draws) {
            Next::TryAt(at) => at,
            Next::GiveUp => now + REDIAL.cap,
        });
    }

    /// Ends it: nothing is waited for any more.
    fn end(&mut self, end: End) {
        self.pipe.kill(end, &mut self.pool);
        self.settle();
    }

    /// After anything that may have ended the pipe.
    fn settle(&mut self) {
        let Some(end) = self.pipe.over_with().cloned() else { return };
        self.doomed.extend(self.link.take());
        if self.dial != Dial::Out {
            self.dial = Dial::Rest;
        }
        self.answer(&Err(Trouble::from(&ended(&end))));
    }

    fn answer(&mut self, answer: &Result<(), Trouble>) {
        self.answers.extend(self.askers.drain(..).map(|asker| (asker, answer.clone())));
    }

    /// Bytes came. False if they came from a connection that bears nothing any more.
    fn take_in(&mut self, now: Moment, epoch: u64, mut input: &[u8]) -> bool {
        if !self.bears(epoch) {
            return false;
        }
        self.pipe.heard(now);
        loop {
            let handled = match self.decoder.next(&mut input) {
                Ok(None) => return true,
                Ok(Some(Piece::Data { off, bytes })) => match self.pipe.data(epoch, off, bytes) {
                    Ok(fresh) => {
                        self.pipe.hold(now, fresh, &mut self.pool);
                        Ok(())
                    }
                    Err(violation) => Err(violation.to_string()),
                },
                Ok(Some(Piece::Control(control))) => self
                    .pipe
                    .control(now, epoch, control, &mut self.pool)
                    .map_err(|violation| violation.to_string()),
                Ok(Some(Piece::Greeting(_))) => Err("a handshake where there is none".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = handled {
                self.pipe.abort(End::new(Ending::Protocol, why), &mut self.pool);
                return true;
            }
            if self.pipe.over_with().is_some() {
                self.settle();
                return false;
            }
        }
    }

    /// Nothing may be heard of the other end for ever.
    fn look_after(&mut self, now: Moment) {
        if self.pipe.deadline().is_some_and(|at| at <= now) && self.pipe.alarm(now).is_some() {
            let text = "nothing was heard of the other end".to_owned();
            self.lose(now, Trouble { kind: io::ErrorKind::TimedOut, text });
        }
        if self.pipe.goodbye_sent() {
            let by = *self.goodbye_by.get_or_insert(now + GOODBYE_WAIT);
            if by <= now {
                self.pipe.closed_after_goodbye(&mut self.pool);
                self.settle();
            }
        }
    }
}

impl Backed {
    /// A pipe that is not connected. `reconnect` makes a connection: it is told how much this end has
    /// received, and gives the connection and how much the other end has. It is called on a thread of the
    /// pipe's own, one call at a time, and must come back: give it a deadline.
    ///
    /// `window` is how much may wait in one direction (64 KiB to 256 MiB).
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn new(
        rt: &Rt,
        side: Side,
        window: u64,
        reconnect: impl FnMut(u64) -> io::Result<(Link, u64)> + Send + 'static,
    ) -> crate::Result<Backed> {
        let pipe = machine::Pipe::new(machine::Settings { window, ..machine::Settings::new(side) });
        let core = Core {
            pipe,
            pool: Pool::new(4),
            outbox: Outbox::new(),
            decoder: Decoder::new(),
            link: None,
            writing: false,
            dial: Dial::Rest,
            backoff: Backoff::new(REDIAL),
            draws: rt.rand("backed").next_u64(),
            stood: (0, 0),
            lost_at: None,
            was_connected: false,
            goodbye_by: None,
            trouble: None,
            closing: false,
            closed: false,
            askers: Vec::new(),
            waiting: BTreeMap::new(),
            tickets: 0,
            doomed: Vec::new(),
            answers: Vec::new(),
        };
        let inner = Arc::new(Inner { rt: rt.clone(), core: Lock::new(core) });
        let kept = inner.clone();
        let keeper = rt.spawn("backed-keeper", move || keep(&kept, reconnect))?;
        Ok(Backed { inner, keeper: Some(keeper), read_timeout: None, write_timeout: None })
    }

    /// Makes the first connection, or the next one now if the last was lost. What was written before goes
    /// out with it.
    ///
    /// # Errors
    /// When there is a connection, when the pipe is closed, or with what `reconnect` said. A first
    /// connection that fails is not tried again by itself.
    pub fn connect(&self) -> io::Result<()> {
        self.ask(|core, now| {
            if core.pipe.attached().is_some() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the pipe is connected"));
            }
            if core.dial != Dial::Out {
                core.dial = Dial::At(now);
            }
            Ok(())
        })
    }

    /// Lets go of the connection, if there is one, and makes another. Callers at the same time share one
    /// attempt and its result.
    ///
    /// # Errors
    /// When the pipe is closed, or with what `reconnect` said; a pipe that was connected goes on trying.
    pub fn force_reconnect(&self) -> io::Result<()> {
        self.ask(|core, now| {
            if core.pipe.attached().is_some() {
                let text = "another connection was asked for".to_owned();
                core.lose(now, Trouble { kind: io::ErrorKind::ConnectionAborted, text });
            }
            if core.dial != Dial::Out {
                core.dial = Dial::At(now);
            }
            Ok(())
        })
    }

    fn ask(&self, order: impl FnOnce(&mut Core, Moment) -> io::Result<()>) -> io::Result<()> {
        let (answer, answered) = self.inner.rt.channel("backed-answer", 1);
        self.inner.change(|core, now| {
            if let Some(end) = core.pipe.ending().or(core.pipe.over_with()) {
                return Err(ended(end));
            }
            order(core, now)?;
            core.askers.push(answer);
            Ok(())
        })?;
        // Answered when the attempt has an end, or the pipe has.
        match answered.recv() {
            Ok(answer) => answer.map_err(io::Error::from),
            Err(_) => Err(io::Error::other("the pipe is gone")),
        }
    }

    /// How it stands.
    pub fn state(&self) -> State {
        let core = self.inner.core.lock();
        match (core.pipe.over_with(), core.pipe.attached()) {
            (Some(end), _) => State::Over(end.clone()),
            (None, Some(_)) => State::Connected,
            (None, None) if core.was_connected => State::Lost,
            (None, None) => State::Connecting,
        }
    }

    /// Waits until it is over, and says how; nothing if `timeout` has passed. With both directions shut down
    /// it is over, and well, once both ends have everything.
    pub fn wait_over(&self, timeout: Option<Duration>) -> Option<End> {
        let until = self.until(timeout);
        self.inner.look(|core, now| match (core.pipe.over_with(), until) {
            (Some(end), _) => Look::Go(Some(end.clone())),
            (None, Some(until)) if until <= now => Look::Go(None),
            (None, until) => Look::Wait(until),
        })
    }

    /// Ends this direction after what was written; the other one goes on.
    pub fn shutdown(&self) {
        self.inner.change(|core, _| core.pipe.finish());
    }

    /// How long a read waits at most.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    /// How long a write waits at most.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    /// Writes as much as there is room for now.
    ///
    /// # Errors
    /// `TimedOut` when there is no room; otherwise as for a write.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write_within(bytes, Some(Duration::ZERO))
    }

    /// Reads what there is now.
    ///
    /// # Errors
    /// `TimedOut` when there is nothing; otherwise as for a read.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_within(buffer, Some(Duration::ZERO))
    }

    fn until(&self, timeout: Option<Duration>) -> Option<Moment> {
        timeout.map(|timeout| self.inner.rt.now() + timeout)
    }

    fn write_within(&self, bytes: &[u8], timeout: Option<Duration>) -> io::Result<usize> {
        let until = self.until(timeout);
        self.inner.look(|core, now| {
            if let Some(end) = core.pipe.ending().or(core.pipe.over_with()) {
                return Look::Go(Err(ended(end)));
            }
            if core.pipe.is_finished() {
                return Look::Go(Err(shut_down()));
            }
            match core.pipe.write(bytes, &mut core.pool) {
                0 if !bytes.is_empty() => wait_or_time_out(now, until, "no room in the pipe"),
                count => Look::Go(Ok(count)),
            }
        })
    }

    fn read_within(&self, buffer: &mut [u8], timeout: Option<Duration>) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let until = self.until(timeout);
        self.inner.look(|core, now| {
            let mut count = 0;
            for slice in core.pipe.readable(buffer.len()) {
                buffer[count..count + slice.len()].copy_from_slice(slice);
                count += slice.len();
            }
            if count > 0 {
                core.pipe.took(now, count as u64, &mut core.pool);
                return Look::Go(Ok(count));
            }
            if core.pipe.at_end() {
                return Look::Go(Ok(0));
            }
            match core.pipe.ending().or(core.pipe.over_with()) {
                Some(end) if end.code == Ending::Eof => Look::Go(Ok(0)),
                Some(end) => Look::Go(Err(ended(end))),
                None => wait_or_time_out(now, until, "nothing came over the pipe"),
            }
        })
    }

    /// Ends everything: the other end is told if there is a connection, bytes that wait are dropped, and
    /// whoever waits in a read or a write gets a typed error.
    ///
    /// # Errors
    /// The first thing that went wrong and was not healed, once.
    pub fn close(&self) -> io::Result<()> {
        // A change of its own: the writer has to hear that there is a last word, and whoever waits in a
        // read or a write that there is nothing to wait for.
        let since = self.inner.change(|core, now| {
            if !core.closed && core.pipe.over_with().is_none() && !core.pipe.is_done() {
                core.closing = true;
                core.pipe.abort(End::new(Ending::Killed, "it was closed"), &mut core.pool);
            }
            now
        });
        self.inner.look(|core, now| {
            if core.closed {
                return Look::Go(Ok(()));
            }
            let over_before = core.pipe.over_with().cloned();
            if over_before.is_none() {
                let said = core.pipe.goodbye_sent() && !core.writing;
                if core.pipe.attached().is_some() && !said && now < since + LAST_WORD {
                    return Look::Wait(Some(since + LAST_WORD));
                }
                core.end(core.pipe.ending().cloned().unwrap_or(End::new(Ending::Eof, "")));
            }
            core.closed = true;
            Look::Go(match (over_before, core.trouble.take()) {
                (Some(end), _) if end.code != Ending::Eof && !core.closing => Err(ended(&end)),
                (Some(end), _) if end.code == Ending::Eof => Ok(()),
                (_, Some(trouble)) => Err(trouble.into()),
                _ => Ok(()),
            })
        })
    }
}

fn wait_or_time_out<T>(now: Moment, until: Option<Moment>, what: &'static str) -> Look<io::Result<T>> {
    match until {
        Some(until) if until <= now => Look::Go(Err(io::Error::new(io::ErrorKind::TimedOut, what))),
        until => Look::Wait(until),
    }
}

/// The thread that has the caller's function: makes connections, and starts the threads of each.
fn keep(inner: &Arc<Inner>, mut reconnect: impl FnMut(u64) -> io::Result<(Link, u64)>) {
    loop {
        let asked = inner.look(|core, now| {
            core.look_after(now);
            if core.pipe.over_with().is_some() {
                return Look::Go(None);
            }
            match core.dial {
                Dial::At(at) if at <= now => {
                    core.dial = Dial::Out;
                    // Nothing more is received without a connection: how it stands now is how it will.
                    Look::Go(Some((core.pipe.received(), core.pipe.epoch() + 1)))
                }
                Dial::At(at) => Look::Wait(Some(at)),
                _ => Look::Wait(core.pipe.attached().map(|_| now + LOOK)),
            }
        });
        let Some((my_recv, epoch)) = asked else { return };
        let made = reconnect(my_recv);
        let halves = inner.change(|core, now| connected(core, now, epoch, made));
        if let Some((reader, writer)) = halves {
            start(inner, epoch, reader, writer);
        }
    }
}

type Halves = (Box<dyn Read + Send>, Box<dyn Write + Send>);

/// The caller's function has answered.
fn connected(core: &mut Core, now: Moment, epoch: u64, made: io::Result<(Link, u64)>) -> Option<Halves> {
    core.dial = Dial::Rest;
    let (link, peer_recv) = match made {
        Ok(made) => made,
        Err(error) => {
            let trouble = Trouble::from(&error);
            core.trouble.get_or_insert(trouble.clone());
            match core.pipe.ending().cloned() {
                // Only the last word was missing, and nobody is there to hear it.
                Some(end) => core.end(end),
                // Both directions are through, and the other end knows. It would have said goodbye; it has
                // done so on a connection that broke, and has gone.
                None if core.pipe.is_done() && core.lost_at.is_some_and(|at| at + LINGER <= now) => {
                    core.end(End::new(Ending::Eof, ""));
                }
                None if core.was_connected => core.redial(now),
                None => {}
            }
            core.answer(&Err(trouble));
            return None;
        }
    };
    let Link { reader, writer, close } = link;
    if core.pipe.over_with().is_some() {
        core.doomed.push(close);
        return None;
    }
    // What may be sent is said by the other end's first ACK.
    if let Err(violation) = core.pipe.attach(now, epoch, peer_recv, 0, &mut core.pool) {
        // The other end has other bytes than ours; nothing can be saved.
        core.doomed.push(close);
        core.end(End::new(Ending::Protocol, violation.to_string()));
        return None;
    }
    core.lost_at = None;
    core.link = Some(close);
    core.outbox = Outbox::new();
    core.decoder = Decoder::new();
    core.writing = false;
    core.was_connected = true;
    core.trouble = None;
    core.backoff.healthy(now);
    core.answer(&Ok(()));
    Some((reader, writer))
}

fn start(inner: &Arc<Inner>, epoch: u64, reader: Box<dyn Read + Send>, writer: Box<dyn Write + Send>) {
    let (reads, writes) = (inner.clone(), inner.clone());
    let started = inner
        .rt
        .spawn("backed-reader", move || read_all(&reads, epoch, reader))
        // They end with their connection, which `close` wakes them from.
        .map(Thread::detach)
        .and_then(|()| inner.rt.spawn("backed-writer", move || write_all(&writes, epoch, writer)))
        .map(Thread::detach);
    if let Err(error) = started {
        let trouble = Trouble { kind: io::ErrorKind::OutOfMemory, text: error.to_string() };
        inner.change(|core, now| core.lose(now, trouble));
    }
}

fn read_all(inner: &Inner, epoch: u64, mut reader: impl Read) {
    let mut buffer = vec![0; PIECE];
    loop {
        // Woken by bytes, or by whoever closes the connection.
        match reader.read(&mut buffer) {
            Ok(0) => {
                return inner.look(|core, now| {
                    if !core.bears(epoch) {
                        return Look::Go(());
                    }
                    if !core.pipe.goodbye_sent() {
                        let text = "the other end closed the connection".to_owned();
                        core.lose(now, Trouble { kind: io::ErrorKind::UnexpectedEof, text });
                        return Look::Go(());
                    }
                    if core.writing {
                        // The last word may not have left: the writer will know. Whoever looks after the
                        // goodbye ends a write that is stuck.
                        return Look::Wait(None);
                    }
                    core.pipe.closed_after_goodbye(&mut core.pool);
                    core.settle();
                    Look::Go(())
                });
            }
            Ok(count) => {
                if !inner.change(|core, now| core.take_in(now, epoch, &buffer[..count])) {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return broke(inner, epoch, &error),
        }
    }
}

fn write_all(inner: &Inner, epoch: u64, mut writer: impl Write) {
    let mut bytes = Vec::with_capacity(PIECE);
    loop {
        bytes.clear();
        let goes_on = inner.look(|core, now| {
            if !core.bears(epoch) || core.pipe.over_with().is_some() {
                return Look::Go(false);
            }
            core.writing = false;
            core.look_after(now);
            if !core.bears(epoch) || core.pipe.over_with().is_some() {
                return Look::Go(false);
            }
            core.outbox.fill(now, &mut core.pipe);
            if core.outbox.is_empty() {
                return Look::Wait(Moment::earliest(core.pipe.deadline(), core.goodbye_by));
            }
            let count = core.outbox.copy_to(&core.pipe, &mut bytes, PIECE);
            core.outbox.wrote(count);
            core.writing = true;
            Look::Go(true)
        });
        if !goes_on {
            return;
        }
        if let Err(error) = writer.write_all(&bytes).and_then(|()| writer.flush()) {
            return broke(inner, epoch, &error);
        }
        // So that whoever waits for the last word to leave hears of it.
        inner.change(|core, _| core.writing &= !core.bears(epoch));
    }
}

fn broke(inner: &Inner, epoch: u64, error: &io::Error) {
    inner.change(|core, now| {
        if core.bears(epoch) {
            core.lose(now, Trouble::from(error));
        }
    });
}

impl Drop for Backed {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::debug!("pipes: a pipe was dropped with trouble: {error}");
        }
        let Some(keeper) = self.keeper.take() else { return };
        if self.inner.core.lock().dial == Dial::Out {
            // In the caller's function, which nothing here can wake.
            keeper.detach();
        }
    }
}

impl Read for &Backed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_within(buffer, self.read_timeout)
    }
}

impl Write for &Backed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_within(bytes, self.write_timeout)
    }

    /// Does nothing: bytes leave by themselves.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Backed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Backed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Backed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backed({:?})", self.state())
    }
}

#[cfg(test)]
mod tests;
