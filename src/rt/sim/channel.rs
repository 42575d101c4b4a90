//! Simulated channels: the messages beside, who waits for them in the scheduler's state.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::handle::Handle;
use super::scheduler::{Entry, Scheduler};
use super::state::{State, Tid, Why};
use super::trace::Kind;
use crate::rt::{Moment, Op, RecvTimeoutError, SendTimeoutError, TryRecvError, TrySendError};

#[derive(Default)]
pub(super) struct Chans {
    chans: Vec<Chan>,
    /// Slots whose both ends are gone: tokens come and go by the thousand.
    free: Vec<usize>,
}

struct Chan {
    name: &'static str,
    bound: usize,
    len: usize,
    /// Whether anything was ever put in.
    used: bool,
    senders: usize,
    receivers: usize,
    recv_waiters: Vec<Tid>,
    send_waiters: Vec<Tid>,
}

/// One operation a thread waits to carry out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    chan: usize,
    dir: Dir,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dir {
    Recv,
    Send,
}

impl Chan {
    fn ready(&self, dir: Dir) -> bool {
        match dir {
            Dir::Recv => self.len > 0 || self.senders == 0,
            Dir::Send => self.len < self.bound || self.receivers == 0,
        }
    }

    fn waiters(&mut self, dir: Dir) -> &mut Vec<Tid> {
        match dir {
            Dir::Recv => &mut self.recv_waiters,
            Dir::Send => &mut self.send_waiters,
        }
    }
}

impl Chans {
    fn add(&mut self, name: &'static str, bound: usize) -> usize {
        let chan = Chan {
            name,
            bound,
            len: 0,
            used: false,
            senders: 1,
            receivers: 1,
            recv_waiters: Vec::new(),
            send_waiters: Vec::new(),
        };
        if let Some(slot) = self.free.pop() {
            self.chans[slot] = chan;
            return slot;
        }
        self.chans.push(chan);
        self.chans.len() - 1
    }

    pub(super) fn forget(&mut self, waiting: Waiting, tid: Tid) {
        self.chans[waiting.chan].waiters(waiting.dir).retain(|other| *other != tid);
    }

    pub(super) fn name(&self, chan: u64) -> String {
        self.chans.get(chan as usize).map_or_else(String::new, |found| format!("{}#{chan}", found.name))
    }

    pub(super) fn names(&self) -> Vec<String> {
        (0..self.chans.len() as u64).map(|chan| self.name(chan)).collect()
    }

    pub(super) fn describe(&self, waiting: Waiting) -> String {
        let name = self.name(waiting.chan as u64);
        match waiting.dir {
            Dir::Recv => format!("to receive from {name}"),
            Dir::Send => format!("to send into {name}"),
        }
    }

    fn free_if_gone(&mut self, chan: usize) {
        if self.chans[chan].senders == 0 && self.chans[chan].receivers == 0 {
            self.free.push(chan);
        }
    }
}

impl State {
    fn chan(&mut self, chan: usize) -> &mut Chan {
        &mut self.chans.chans[chan]
    }

    fn wake(&mut self, chan: usize, dir: Dir) {
        for tid in std::mem::take(self.chan(chan).waiters(dir)) {
            self.make_runnable(tid);
        }
    }

    fn register(&mut self, tid: Tid, waiting: Waiting) {
        self.chan(waiting.chan).waiters(waiting.dir).push(tid);
        self.tasks[tid].waits.push(waiting);
    }

    fn log(&mut self, tid: Tid, kind: Kind, arg: usize) {
        let now = self.now;
        self.trace.add(now, tid, kind, arg as u64);
    }
}

struct End<T> {
    core: Arc<Scheduler>,
    chan: usize,
    name: &'static str,
    queue: Arc<Mutex<VecDeque<T>>>,
}

/// The simulated sending end.
pub(crate) struct ChanTx<T>(End<T>);

/// The simulated receiving end.
pub(crate) struct ChanRx<T>(End<T>);

impl Handle {
    pub(crate) fn channel<T>(&self, name: &'static str, bound: usize) -> (ChanTx<T>, ChanRx<T>) {
        let chan = self.core.touch().0.chans.add(name, bound);
        let queue = Arc::new(Mutex::new(VecDeque::new()));
        let end = |queue| End { core: self.core.clone(), chan, name, queue };
        (ChanTx(end(queue.clone())), ChanRx(end(queue)))
    }
}

impl<T> ChanTx<T> {
    pub(crate) fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let end = &self.0;
        let (mut state, me) = match end.core.enter(Op::Send, &[end.name]) {
            Entry::Running(state, me) => (state, me),
            Entry::Degraded(_) => return Err(TrySendError::Disconnected(message)),
        };
        let chan = state.chan(end.chan);
        if chan.receivers == 0 {
            return Err(TrySendError::Disconnected(message));
        }
        if chan.len >= chan.bound {
            return Err(TrySendError::Full(message));
        }
        self.put(&mut state, me, message);
        Ok(())
    }

    pub(crate) fn send(&self, message: T, deadline: Option<Moment>) -> Result<(), SendTimeoutError<T>> {
        let end = &self.0;
        let (mut state, me) = match end.core.enter(Op::Send, &[end.name]) {
            Entry::Running(state, me) => (state, me),
            Entry::Degraded(_) => return Err(SendTimeoutError::Disconnected(message)),
        };
        loop {
            let chan = state.chan(end.chan);
            if chan.receivers == 0 {
                return Err(SendTimeoutError::Disconnected(message));
            }
            if chan.len < chan.bound {
                self.put(&mut state, me, message);
                return Ok(());
            }
            if deadline.is_some_and(|deadline| deadline.0 <= state.now) {
                return Err(SendTimeoutError::Timeout(message));
            }
            state.register(me, Waiting { chan: end.chan, dir: Dir::Send });
            state = end.core.block(state, me, Why::Channels, deadline.map(|deadline| deadline.0));
        }
    }

    fn put(&self, state: &mut State, me: Tid, message: T) {
        let end = &self.0;
        end.queue.lock().push_back(message);
        let chan = state.chan(end.chan);
        (chan.len, chan.used) = (chan.len + 1, true);
        state.log(me, Kind::Send, end.chan);
        state.wake(end.chan, Dir::Recv);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.queue.lock().len()
    }
}

impl<T> Clone for ChanTx<T> {
    fn clone(&self) -> ChanTx<T> {
        let end = &self.0;
        end.core.touch().0.chan(end.chan).senders += 1;
        ChanTx(End { core: end.core.clone(), chan: end.chan, name: end.name, queue: end.queue.clone() })
    }
}

impl<T> Drop for ChanTx<T> {
    fn drop(&mut self) {
        let end = &self.0;
        let (mut state, me) = end.core.touch();
        let chan = state.chan(end.chan);
        chan.senders -= 1;
        if chan.senders == 0 {
            state.log(me, Kind::Close, end.chan);
            state.wake(end.chan, Dir::Recv);
            state.chans.free_if_gone(end.chan);
        }
    }
}

impl<T> ChanRx<T> {
    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        let end = &self.0;
        let (mut state, me) = match end.core.enter(Op::Recv, &[end.name]) {
            Entry::Running(state, me) => (state, me),
            Entry::Degraded(_) => return Err(TryRecvError::Disconnected),
        };
        if let Some(message) = self.take(&mut state, me) {
            return Ok(message);
        }
        Err(if state.chan(end.chan).senders == 0 { TryRecvError::Disconnected } else { TryRecvError::Empty })
    }

    pub(crate) fn recv(&self, deadline: Option<Moment>) -> Result<T, RecvTimeoutError> {
        let end = &self.0;
        let (mut state, me) = match end.core.enter(Op::Recv, &[end.name]) {
            Entry::Running(state, me) => (state, me),
            Entry::Degraded(_) => return Err(RecvTimeoutError::Disconnected),
        };
        loop {
            if let Some(message) = self.take(&mut state, me) {
                return Ok(message);
            }
            if state.chan(end.chan).senders == 0 {
                return Err(RecvTimeoutError::Disconnected);
            }
            if deadline.is_some_and(|deadline| deadline.0 <= state.now) {
                return Err(RecvTimeoutError::Timeout);
            }
            state.register(me, Waiting { chan: end.chan, dir: Dir::Recv });
            state = end.core.block(state, me, Why::Channels, deadline.map(|deadline| deadline.0));
        }
    }

    pub(crate) fn drain_into(&self, into: &mut Vec<T>, max: usize) {
        let end = &self.0;
        let (mut state, me) = match end.core.enter(Op::Recv, &[end.name]) {
            Entry::Running(state, me) => (state, me),
            Entry::Degraded(_) => return,
        };
        for _ in 0..max {
            let Some(message) = self.take(&mut state, me) else { return };
            into.push(message);
        }
    }

    fn take(&self, state: &mut State, me: Tid) -> Option<T> {
        let end = &self.0;
        let message = end.queue.lock().pop_front()?;
        state.chan(end.chan).len -= 1;
        state.log(me, Kind::Recv, end.chan);
        state.wake(end.chan, Dir::Send);
        Some(message)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.queue.lock().len()
    }
}

impl<T> Drop for ChanRx<T> {
    fn drop(&mut self) {
        let end = &self.0;
        let left = {
            let (mut state, me) = end.core.touch();
            let chan = state.chan(end.chan);
            chan.receivers -= 1;
            chan.len = 0;
            state.log(me, Kind::Close, end.chan);
            state.wake(end.chan, Dir::Send);
            state.chans.free_if_gone(end.chan);
            std::mem::take(&mut *end.queue.lock())
        };
        // Messages may own ends of other channels: they go with the state unlocked.
        drop(left);
    }
}

/// A select in the making.
pub(crate) struct Wait<'a> {
    handle: &'a Handle,
    biased: bool,
    waits: Vec<Waiting>,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(handle: &'a Handle, biased: bool) -> Wait<'a> {
        Wait { handle, biased, waits: Vec::new() }
    }

    pub(crate) fn recv<T>(&mut self, rx: &ChanRx<T>) -> usize {
        self.waits.push(Waiting { chan: rx.0.chan, dir: Dir::Recv });
        self.waits.len() - 1
    }

    pub(crate) fn send<T>(&mut self, tx: &ChanTx<T>) -> usize {
        self.waits.push(Waiting { chan: tx.0.chan, dir: Dir::Send });
        self.waits.len() - 1
    }

    pub(crate) fn ready(&mut self, deadline: Option<Moment>) -> Option<usize> {
        let core = &self.handle.core;
        let (mut state, me) = match core.enter(Op::Select, &[]) {
            Entry::Running(state, me) => (state, me),
            // Panicking: an answer that makes the caller look at a disconnected channel.
            Entry::Degraded(_) => return if deadline.is_some() { None } else { Some(0) },
        };
        loop {
            let ready: Vec<usize> = (0..self.waits.len())
                .filter(|index| {
                    let waiting = self.waits[*index];
                    state.chan(waiting.chan).ready(waiting.dir)
                })
                .collect();
            let due = deadline.is_some_and(|deadline| deadline.0 <= state.now);
            if let Some(first) = ready.first() {
                let chosen = if self.biased {
                    Some(*first)
                } else {
                    // A tie between a message and the deadline is a choice like any other.
                    let options = ready.len() as u64 + u64::from(due);
                    ready.get(state.choose(options)).copied()
                };
                match chosen {
                    Some(index) => state.log(me, Kind::Ready, index),
                    None => state.log(me, Kind::Timeout, 0),
                }
                return chosen;
            }
            if due {
                state.log(me, Kind::Timeout, 0);
                return None;
            }
            if let Some(index) = self.early(&mut state) {
                state.log(me, Kind::Ready, index);
                return Some(index);
            }
            for waiting in &self.waits {
                state.register(me, *waiting);
            }
            state = core.block(state, me, Why::Channels, deadline.map(|deadline| deadline.0));
        }
    }

    /// A sender that tells of a message which was taken in the meantime: nothing is ready, and the real select says
    /// that something is.
    fn early(&self, state: &mut State) -> Option<usize> {
        let one_in = state.config.early_wakes;
        if one_in == 0 {
            return None;
        }
        let told = |waiting: &Waiting| waiting.dir == Dir::Recv && state.chan(waiting.chan).used;
        let index = self.waits.iter().position(told)?;
        // 0 is benign: the early wake sits at the upper end.
        (state.draw("early wake", one_in) == one_in - 1).then_some(index)
    }
}

impl State {
    fn choose(&mut self, options: u64) -> usize {
        self.draw("ready", options) as usize
    }
}
