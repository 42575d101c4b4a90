//! The local side of a pipe that is a handle in this process instead of a socket.
//!
//! Two bounded queues, one for each direction, between the threads that hold handles and the one
//! thread that owns the pipe. Bytes change hands with the chunks they lie in, so the lock that protects the
//! queues is held for a moment only: large pieces are copied before and after. Whoever has to wait leaves a
//! sender of its own behind and waits outside of it. Whoever can moves its bytes over the carrier itself.
//!
//! Invariant: what is in `up` was taken from a writer and not by the pipe; what is in `down` was taken
//! from the pipe and not by a reader. Each holds at most [`QUEUE`] bytes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::lookout::Lookout;
use crate::rt::{Lock, Moment, Receiver, RecvTimeoutError, Rt, Sender};
use crate::state::pipe::{End, Ending, Pipe};
use crate::state::replay::{CHUNK, Pool, Replay};

/// How much waits in one direction outside of the pipe's own window.
const QUEUE: u64 = 8 * CHUNK as u64;
/// How many chunks a reader holds for as long as it copies from them.
const CHUNKS_HELD: usize = (QUEUE / CHUNK as u64) as usize;
/// From here on a piece is copied outside of the lock.
const LARGE: usize = CHUNK / 2;

/// How a pipe stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No carrier has borne it yet.
    Connecting,
    /// Bytes flow.
    Connected,
    /// The carrier was lost; bytes wait.
    Lost,
    /// It is over.
    Over(End),
}

/// What both sides share.
pub(crate) struct Duct {
    rt: Rt,
    queues: Lock<Queues>,
    /// Where chunks come from and go back to: a duct that holds no bytes holds no chunk.
    chunks: Arc<Lock<Pool>>,
    /// Whether the owner was told that there is something, and has not looked yet.
    poked: AtomicBool,
    /// Whether somebody is about to wait who could not say so.
    waits: AtomicBool,
    owner: Box<dyn Owner>,
}

/// The thread that owns the pipe. Neither of these waits for more than another one who is at it.
pub(crate) trait Owner: Send + Sync {
    /// Something changed here.
    fn poke(&self);

    /// Looks after the pipe on the calling thread: what was written leaves, and what came is read. Gives how many
    /// bytes of those that the guest brought were moved. Nothing is done if somebody else is at it, for too long.
    fn visit(&self, why: Visiting<'_>, until: Option<Moment>) -> Option<usize>;

    /// The calling thread is about to wait for bytes, where it can be called already. Gives the carrier, if it may
    /// wait there: it does not wait elsewhere then, and visits at once when something comes.
    fn look_out(&self, until: Option<Moment>) -> Option<Arc<OwnedFd>>;
}

/// Why writers wait although there is room here: what they wrote before has to get further first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// The carrier takes nothing now.
    Carrier,
    /// All that may wait for the peer's acknowledgement does.
    Window,
}

/// Why a handle's thread looks after its pipe.
#[derive(Debug)]
pub(crate) enum Visiting<'a> {
    /// It has these to write, behind what waits; none if all of it waits already.
    Writes(&'a [u8]),
    /// It wants what there is here, unless others wait in front of it.
    Reads(&'a mut [u8]),
    /// It goes to wait for something to happen, where it can be called already.
    Waits,
    /// It has waited at the carrier, and does not any more.
    Leaves,
}

impl Visiting<'_> {
    /// Whether it is worth waiting a moment for whoever is at it.
    pub(crate) fn is_worth_a_wait(&self) -> bool {
        !matches!(self, Visiting::Writes(bytes) if bytes.len() < LARGE)
    }
}

struct Queues {
    up: Replay,
    up_ended: bool,
    down: Replay,
    down_ended: bool,
    state: State,
    /// Nobody holds a handle any more.
    dropped: bool,
    held: Option<Held>,
    /// Whoever waits for any of this to change, by ticket: a wait that ends by itself takes its own back.
    waiting: Waiting,
    /// The same of those that wait for bytes.
    readers: Waiting,
    tickets: u64,
    /// For the next one of those.
    lookout: Option<Arc<Lookout>>,
}

type Waiting = BTreeMap<u64, Call>;

/// How somebody who waits is called.
enum Call {
    Word(Sender<()>),
    Lookout(Arc<Lookout>),
}

/// What the owner found in the duct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// What is written next may go into the pipe at once.
    pub(super) passes: bool,
    /// The local side ended its direction.
    pub(super) ended: bool,
    /// Nobody holds a handle any more.
    pub(super) dropped: bool,
}

impl Duct {
    pub(crate) fn new(rt: &Rt, chunks: &Arc<Lock<Pool>>, owner: impl Owner + 'static) -> Duct {
        let queues = Queues {
            up: Replay::new(0, QUEUE),
            up_ended: false,
            down: Replay::new(0, QUEUE),
            down_ended: false,
            state: State::Connecting,
            dropped: false,
            held: None,
            waiting: Waiting::new(),
            readers: Waiting::new(),
            tickets: 0,
            lookout: None,
        };
        Duct {
            rt: rt.clone(),
            queues: Lock::new(queues),
            chunks: chunks.clone(),
            poked: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            owner: Box::new(owner),
        }
    }

    fn poke(&self) {
        if !self.poked.swap(true, Ordering::SeqCst) {
            self.owner.poke();
        }
    }

    /// Does it here, or has it done.
    fn visit(&self, why: Visiting<'_>, until: Option<Moment>) -> usize {
        let waits = matches!(why, Visiting::Waits | Visiting::Leaves);
        self.owner.visit(why, until).unwrap_or_else(|| {
            self.waits.fetch_or(waits, Ordering::SeqCst);
            self.poke();
            0
        })
    }

    // ---- threads that hold handles

    /// Waits until `ready` gives something. `None` when `until` has come.
    fn wait<T>(&self, until: Option<Moment>, mut ready: impl FnMut(&mut Queues) -> Option<T>) -> Option<T> {
        // Most calls find what they came for.
        if let Some(found) = ready(&mut self.queues.lock()) {
            return Some(found);
        }
        loop {
            let (wake, woken) = self.rt.channel("pipe-wait", 1);
            let ticket = {
                let mut queues = self.queues.lock();
                if let Some(found) = ready(&mut queues) {
                    return Some(found);
                }
                let ticket = queues.ticket();
                queues.waiting.insert(ticket, Call::Word(wake));
                ticket
            };
            if !Self::wait_for(&woken, until) {
                self.queues.lock().waiting.remove(&ticket);
                return None;
            }
        }
    }

    /// Waits there. False when `until` has come.
    fn wait_for(woken: &Receiver<()>, until: Option<Moment>) -> bool {
        // Woken by whoever changes something, or by the sender's end with the duct's.
        let woken = match until {
            Some(until) => woken.recv_deadline(until),
            None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        woken != Err(RecvTimeoutError::Timeout)
    }

    /// Takes bytes for the pipe; waits while there is no room.
    pub(crate) fn write(&self, bytes: &[u8], until: Option<Moment>) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.is_full() {
            self.visit(Visiting::Reads(&mut []), until);
        }
        if self.is_full() {
            // What the peer will say about room is to be heard.
            self.visit(Visiting::Waits, until);
        } else if let Some(written @ 1..) = self.owner.visit(Visiting::Writes(bytes), until) {
            return Ok(written);
        }
        self.write_queued(bytes, until)
    }

    /// The same for bytes that the pipe does not take yet: they wait here.
    fn write_queued(&self, bytes: &[u8], until: Option<Moment>) -> io::Result<usize> {
        let no_room = || Err(timed_out("no room in the pipe"));
        let mut piece = Replay::new(0, QUEUE);
        let mut pool = Pool::new(0);
        if bytes.len() >= LARGE {
            let room = self.wait(until, Queues::writable).unwrap_or_else(no_room)?;
            let count = bytes.len().min(room);
            if count >= LARGE {
                pool = self.draw(count);
                let _all = piece.push(&bytes[..count], &mut pool);
            }
        }
        let written = self.wait(until, |queues| {
            queues
                .writable()?
                .map(|_| match piece.is_empty() {
                    true => {
                        pool = self.draw(bytes.len().min(CHUNK));
                        queues.up.push(bytes, &mut pool)
                    }
                    false => queues.up.pull(&mut piece, &mut pool) as usize,
                })
                .into()
        });
        piece.clear(&mut pool);
        self.chunks.lock().put_back(pool);
        let written = written.unwrap_or_else(no_room)?;
        self.visit(Visiting::Writes(&[]), until);
        Ok(written)
    }

    /// Whether nothing fits before the peer has said something.
    fn is_full(&self) -> bool {
        let queues = self.queues.lock();
        match queues.held {
            Some(held) => held == Held::Window,
            None => queues.up.room() == 0,
        }
    }

    /// Chunks for so many bytes, as far as there are any.
    fn draw(&self, bytes: usize) -> Pool {
        self.chunks.lock().draw(bytes.div_ceil(CHUNK) + 1)
    }

    /// Gives bytes of the pipe; waits while there are none. 0 is the end of the peer's direction.
    pub(crate) fn read(&self, buffer: &mut [u8], until: Option<Moment>) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(read) = self.read_queued(buffer) {
                return read;
            }
            match self.visit(Visiting::Reads(buffer), until) {
                0 => {}
                count => return Ok(count),
            }
            let lookout = self.queues.lock().lookout.take();
            let in_time = match lookout.or_else(|| Lookout::new().map(Arc::new)) {
                Some(lookout) => self.wait_at(&lookout, until),
                None => self.wait_to_be_called(until),
            };
            if !in_time {
                return Err(timed_out("nothing came over the pipe"));
            }
        }
    }

    /// Waits for bytes. False when `until` has come.
    fn wait_at(&self, lookout: &Arc<Lookout>, until: Option<Moment>) -> bool {
        let place = self.line_up(Call::Lookout(lookout.clone()));
        let in_time = place.is_none() || {
            let carrier = self.owner.look_out(until);
            let time = until.map(|until| until.since(self.rt.now()));
            lookout.wait(carrier.as_deref(), time)
        };
        {
            let mut queues = self.queues.lock();
            place.and_then(|ticket| queues.readers.remove(&ticket));
            queues.lookout.get_or_insert_with(|| lookout.clone());
        }
        if !in_time {
            self.visit(Visiting::Leaves, None);
        }
        in_time
    }

    /// The same where there is nothing to look out with.
    fn wait_to_be_called(&self, until: Option<Moment>) -> bool {
        let (wake, woken) = self.rt.channel("pipe-wait", 1);
        let Some(ticket) = self.line_up(Call::Word(wake)) else { return true };
        self.visit(Visiting::Waits, until);
        let in_time = Self::wait_for(&woken, until);
        if !in_time {
            self.queues.lock().readers.remove(&ticket);
        }
        in_time
    }

    /// A place among those that are called when there is something to read, unless there is.
    fn line_up(&self, call: Call) -> Option<u64> {
        let mut queues = self.queues.lock();
        if queues.is_readable() {
            return None;
        }
        let ticket = queues.ticket();
        queues.readers.insert(ticket, call);
        Some(ticket)
    }

    /// What waits to be read, or the end; nothing if it has yet to come.
    fn read_queued(&self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let mut piece = Replay::new(0, buffer.len() as u64);
        let mut pool = Pool::new(CHUNKS_HELD);
        let (count, was_full) = {
            let mut queues = self.queues.lock();
            let down = &mut queues.down;
            if down.is_empty() {
                return match &queues.state {
                    _ if queues.down_ended => Some(Ok(0)),
                    State::Over(end) if end.code == Ending::Eof => Some(Ok(0)),
                    State::Over(end) => Some(Err(ended(end))),
                    _ => None,
                };
            }
            // The owner only has to know when its own side had to stop.
            let was_full = down.room() < CHUNK as u64;
            let mut count = piece.pull_chunks(down, &mut pool) as usize;
            if count == 0 {
                count = copy_out(down, buffer);
                down.ack(down.acked() + count as u64, &mut pool).expect("no more than there is");
            }
            (count, was_full)
        };
        if was_full {
            self.poke();
        }
        copy_out(&piece, buffer);
        piece.clear(&mut pool);
        self.chunks.lock().put_back(pool);
        Some(Ok(count))
    }

    /// Ends this side's direction. Whoever waits for room hears that there will be none.
    pub(crate) fn finish(&self) {
        let waiting = {
            let mut queues = self.queues.lock();
            queues.up_ended = true;
            std::mem::take(&mut queues.waiting)
        };
        wake(waiting);
        self.poke();
    }

    /// The last handle is gone.
    pub(crate) fn drop_handles(&self) {
        {
            let mut queues = self.queues.lock();
            queues.up_ended = true;
            queues.dropped = true;
        }
        self.poke();
    }

    pub(crate) fn state(&self) -> State {
        self.queues.lock().state.clone()
    }

    /// How many wait for something to change here.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        let queues = self.queues.lock();
        queues.waiting.len() + queues.readers.len()
    }

    /// Waits until the pipe is connected. An error when it is over, or when `until` has come.
    pub(crate) fn wait_connected(&self, until: Option<Moment>) -> io::Result<()> {
        let answer = self.wait(until, |queues| match &queues.state {
            State::Connected => Some(Ok(())),
            State::Over(end) => Some(Err(ended(end))),
            State::Connecting | State::Lost => None,
        });
        answer.unwrap_or_else(|| Err(timed_out("the pipe is not connected yet")))
    }

    /// Waits until the pipe is over, and says how.
    pub(crate) fn wait_over(&self, until: Option<Moment>) -> Option<End> {
        self.wait(until, |queues| match &queues.state {
            State::Over(end) => Some(end.clone()),
            _ => None,
        })
    }

    pub(crate) fn until(&self, timeout: Option<Duration>) -> Option<Moment> {
        timeout.map(|timeout| self.rt.now() + timeout)
    }

    // ---- the thread that owns the pipe

    /// The owner is about to look at both queues: whatever changes from here on has to be told again. Gives
    /// whether somebody waits for more than was looked at by himself.
    pub(super) fn looking(&self) -> bool {
        self.poked.store(false, Ordering::SeqCst);
        self.waits.swap(false, Ordering::SeqCst)
    }

    /// Moves what was written into the pipe, as far as there is room.
    pub(super) fn take(&self, pipe: &mut Pipe, pool: &mut Pool) -> Found {
        let (found, waiting) = {
            let mut queues = self.queues.lock();
            let count = pipe.write_from(&mut queues.up, pool);
            let ended = queues.up_ended && queues.up.is_empty();
            let waiting = if count > 0 { std::mem::take(&mut queues.waiting) } else { Waiting::new() };
            let passes = queues.up.is_empty() && matches!(queues.writable(), Some(Ok(_)));
            (Found { passes, ended, dropped: queues.dropped }, waiting)
        };
        wake(waiting);
        found
    }

    /// Moves what was received out of the pipe, as far as there is room. Gives how much.
    pub(super) fn give(&self, now: Moment, pipe: &mut Pipe, pool: &mut Pool) -> u64 {
        let (count, readers) = {
            let mut queues = self.queues.lock();
            let count = if queues.dropped {
                // Nobody is there to read it.
                let count = pipe.unread();
                pipe.took(now, count, pool);
                count
            } else {
                pipe.give_to(now, &mut queues.down, pool)
            };
            let ends = pipe.at_end() && !queues.down_ended;
            queues.down_ended |= ends;
            let readers =
                if count > 0 || ends { std::mem::take(&mut queues.readers) } else { Waiting::new() };
            (count, readers)
        };
        wake(readers);
        count
    }

    /// Whether nothing waits to be read.
    pub(super) fn is_dry(&self) -> bool {
        let queues = self.queues.lock();
        queues.down.is_empty() && !queues.down_ended
    }

    /// How many wait for bytes.
    pub(super) fn readers(&self) -> usize {
        self.queues.lock().readers.len()
    }

    /// Has whoever waits for bytes look for them. Gives whether there was somebody.
    pub(super) fn call_readers(&self) -> bool {
        let readers = std::mem::take(&mut self.queues.lock().readers);
        let called = !readers.is_empty();
        wake(readers);
        called
    }

    /// Writers wait, or need not any more.
    pub(super) fn hold_writers(&self, held: Option<Held>) {
        let waiting = {
            let mut queues = self.queues.lock();
            match (std::mem::replace(&mut queues.held, held), held) {
                (Some(_), None) => std::mem::take(&mut queues.waiting),
                _ => return,
            }
        };
        wake(waiting);
    }

    pub(super) fn set_state(&self, state: State) {
        let waiting = {
            let mut queues = self.queues.lock();
            if matches!(queues.state, State::Over(_)) || queues.state == state {
                return;
            }
            queues.state = state;
            let mut waiting = std::mem::take(&mut queues.waiting);
            waiting.append(&mut queues.readers);
            waiting
        };
        wake(waiting);
    }
}

impl Queues {
    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// How much can be written now, or why nothing can any more; nothing if that is to be waited for.
    fn writable(&mut self) -> Option<io::Result<usize>> {
        if let State::Over(end) = &self.state {
            return Some(Err(ended(end)));
        }
        if self.up_ended {
            return Some(Err(shut_down()));
        }
        let room = usize::try_from(self.up.room()).unwrap_or(usize::MAX);
        (room > 0 && self.held.is_none()).then_some(Ok(room))
    }

    /// Whether a read finds something, or that nothing will come.
    fn is_readable(&self) -> bool {
        !self.down.is_empty() || self.down_ended || matches!(self.state, State::Over(_))
    }
}

/// The first bytes of a queue, as many as `buffer` holds.
fn copy_out(queue: &Replay, buffer: &mut [u8]) -> usize {
    let mut count = 0;
    for slice in queue.since(queue.acked(), buffer.len()).expect("the oldest byte is there") {
        buffer[count..count + slice.len()].copy_from_slice(slice);
        count += slice.len();
    }
    count
}

fn wake(waiting: Waiting) {
    for call in waiting.into_values() {
        match call {
            // Whoever stopped waiting does not need it; one wake is enough for whoever was woken already.
            Call::Word(sender) => drop(sender.try_send(())),
            Call::Lookout(lookout) => lookout.call(),
        }
    }
}

/// What a write is told after this side has ended its direction.
pub(crate) fn shut_down() -> io::Error {
    ended(&End::new(Ending::Eof, "this direction was shut down"))
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// How the end of a pipe looks to whoever still uses it. The [`End`] is inside.
pub fn ended(end: &End) -> io::Error {
    let kind = match end.code {
        Ending::Eof => io::ErrorKind::BrokenPipe,
        Ending::TargetRefused => io::ErrorKind::ConnectionRefused,
        Ending::TargetUnreachable | Ending::ServerUnreachable => io::ErrorKind::HostUnreachable,
        Ending::TargetReset => io::ErrorKind::ConnectionReset,
        Ending::NotAllowed | Ending::Auth => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, PipeEnded(end.clone()))
}

/// The inner error of what a pipe that is over answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipeEnded(pub End);

impl std::fmt::Display for PipeEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the pipe has ended: {}", self.0)
    }
}

impl std::error::Error for PipeEnded {}
