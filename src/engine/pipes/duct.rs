//! The local side of a pipe that is a handle in this process instead of a socket.
//!
//! Two bounded queues, one for each direction, between the threads that hold handles and the one
//! thread that owns the pipe. Bytes change hands with the chunks they lie in, so the lock that protects the
//! queues is held for a moment only: large pieces are copied before and after. Whoever has to wait leaves a
//! sender of its own behind and waits outside of it.
//!
//! Invariant: what is in `up` was taken from a writer and not by the pipe; what is in `down` was taken
//! from the pipe and not by a reader. Each holds at most [`QUEUE`] bytes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::rt::{Lock, Moment, RecvTimeoutError, Rt, Sender};
use crate::state::pipe::{End, Ending, Pipe};
use crate::state::replay::{CHUNK, Pool, Replay};

/// How much waits in one direction outside of the pipe's own window.
const QUEUE: u64 = 8 * CHUNK as u64;
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
    poke: Box<dyn Fn() + Send + Sync>,
}

struct Queues {
    up: Replay,
    up_ended: bool,
    down: Replay,
    down_ended: bool,
    state: State,
    /// Nobody holds a handle any more.
    dropped: bool,
    /// Whoever waits for any of this to change, by ticket: a wait that ends by itself takes its own back.
    waiting: Waiting,
    tickets: u64,
}

type Waiting = BTreeMap<u64, Sender<()>>;

/// What the owner found in the duct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes went into the pipe.
    pub(super) moved: bool,
    /// The local side ended its direction.
    pub(super) ended: bool,
    /// Nobody holds a handle any more.
    pub(super) dropped: bool,
}

impl Duct {
    /// `poke` tells the owner that something changed here. It must not wait.
    pub(crate) fn new(rt: &Rt, chunks: &Arc<Lock<Pool>>, poke: impl Fn() + Send + Sync + 'static) -> Duct {
        let queues = Queues {
            up: Replay::new(0, QUEUE),
            up_ended: false,
            down: Replay::new(0, QUEUE),
            down_ended: false,
            state: State::Connecting,
            dropped: false,
            waiting: Waiting::new(),
            tickets: 0,
        };
        Duct {
            rt: rt.clone(),
            queues: Lock::new(queues),
            chunks: chunks.clone(),
            poked: AtomicBool::new(false),
            poke: Box::new(poke),
        }
    }

    fn poke(&self) {
        if !self.poked.swap(true, Ordering::SeqCst) {
            (self.poke)();
        }
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
                queues.tickets += 1;
                let ticket = queues.tickets;
                queues.waiting.insert(ticket, wake);
                ticket
            };
            // Woken by whoever changes something, or by the sender's end with the duct's.
            let woken = match until {
                Some(until) => woken.recv_deadline(until),
                None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if woken == Err(RecvTimeoutError::Timeout) {
                self.queues.lock().waiting.remove(&ticket);
                return None;
            }
        }
    }

    /// Takes bytes for the pipe; waits while there is no room.
    pub(crate) fn write(&self, bytes: &[u8], until: Option<Moment>) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
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
        self.poke();
        Ok(written)
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
        let mut piece = Replay::new(0, buffer.len() as u64);
        let mut pool = self.chunks.lock().draw(0);
        let read = self.wait(until, |queues| {
            let down = &mut queues.down;
            // The owner only has to know when its own side had to stop.
            let was_full = down.room() < CHUNK as u64;
            let moved = piece.pull_chunks(down, &mut pool);
            if moved > 0 {
                return Some(Ok((moved as usize, was_full)));
            }
            let count = copy_out(down, buffer);
            if count > 0 {
                down.ack(down.acked() + count as u64, &mut pool).expect("no more than there is");
                return Some(Ok((count, was_full)));
            }
            match &queues.state {
                _ if queues.down_ended => Some(Ok((0, false))),
                State::Over(end) if end.code == Ending::Eof => Some(Ok((0, false))),
                State::Over(end) => Some(Err(ended(end))),
                _ => None,
            }
        });
        let nothing = || Err(timed_out("nothing came over the pipe"));
        let (count, was_full) = read.unwrap_or_else(nothing)?;
        if was_full {
            self.poke();
        }
        copy_out(&piece, buffer);
        piece.clear(&mut pool);
        self.chunks.lock().put_back(pool);
        Ok(count)
    }

    /// Ends this side's direction.
    pub(crate) fn finish(&self) {
        self.queues.lock().up_ended = true;
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

    /// The owner is about to look at both queues: whatever changes from here on has to be told again.
    pub(super) fn looking(&self) {
        self.poked.store(false, Ordering::SeqCst);
    }

    /// Moves what was written into the pipe, as far as there is room.
    pub(super) fn take(&self, pipe: &mut Pipe, pool: &mut Pool) -> Found {
        let (found, waiting) = {
            let mut queues = self.queues.lock();
            let count = pipe.write_from(&mut queues.up, pool);
            let ended = queues.up_ended && queues.up.is_empty();
            let waiting = if count > 0 { std::mem::take(&mut queues.waiting) } else { Waiting::new() };
            (Found { moved: count > 0, ended, dropped: queues.dropped }, waiting)
        };
        wake(waiting);
        found
    }

    /// Moves what was received out of the pipe, as far as there is room. Gives how much.
    pub(super) fn give(&self, now: Moment, pipe: &mut Pipe, pool: &mut Pool) -> u64 {
        let (count, waiting) = {
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
            let waiting =
                if count > 0 || ends { std::mem::take(&mut queues.waiting) } else { Waiting::new() };
            (count, waiting)
        };
        wake(waiting);
        count
    }

    pub(super) fn set_state(&self, state: State) {
        let waiting = {
            let mut queues = self.queues.lock();
            if matches!(queues.state, State::Over(_)) || queues.state == state {
                return;
            }
            queues.state = state;
            std::mem::take(&mut queues.waiting)
        };
        wake(waiting);
    }
}

impl Queues {
    /// How much can be written now, or why nothing can any more; nothing if that is to be waited for.
    fn writable(&mut self) -> Option<io::Result<usize>> {
        if let State::Over(end) = &self.state {
            return Some(Err(ended(end)));
        }
        if self.up_ended {
            return Some(Err(io::Error::new(io::ErrorKind::BrokenPipe, "this direction was shut down")));
        }
        let room = usize::try_from(self.up.room()).unwrap_or(usize::MAX);
        (room > 0).then_some(Ok(room))
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
    for sender in waiting.into_values() {
        // Whoever stopped waiting does not need it; one wake is enough for whoever was woken already.
        let _ = sender.try_send(());
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// How the end of a pipe looks to whoever still uses it. The [`End`] is inside.
pub fn ended(end: &End) -> io::Error {
    let kind = match end.code {
        Ending::Eof => io::ErrorKind::BrokenPipe,
        Ending::TargetRefused => io::ErrorKind::ConnectionRefused,
        Ending::TargetUnreachable => io::ErrorKind::HostUnreachable,
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
