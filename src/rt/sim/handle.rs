//! The facade's calls, as the simulation answers them.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::scheduler::{Entry, FailureKind, Invariant, Scheduler};
use super::state::{Status, Tid, Until, Why};
use super::trace::Kind;
use crate::rt::Op;
use crate::rt::rand::mix;
use crate::rt::thread::{Panicked, Thread};
use crate::state::time::{Moment, Wall};

/// One side of the facade: the scheduler and the node that spawned threads belong to.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(super) core: Arc<Scheduler>,
    pub(super) node: u32,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("simulated")
    }
}

/// Carries a thread's result from its end to whoever joins it.
pub(crate) struct Join<T> {
    core: Arc<Scheduler>,
    tid: Tid,
    result: Arc<Mutex<Option<T>>>,
}

impl<T> Join<T> {
    pub(crate) fn join(self, name: &str) -> Result<T, Panicked> {
        match self.core.enter(Op::Join, &[name]) {
            Entry::Running(mut state, me) => {
                let now = state.now;
                state.trace.add(now, me, Kind::Join, self.tid as u64);
                while state.tasks[self.tid].status != Status::Done {
                    state.tasks[self.tid].joiners.push(me);
                    state = self.core.block(state, me, Why::Join(self.tid), None);
                }
            }
            Entry::Degraded(_) => {}
        }
        let result = self.result.lock().take();
        let message = "it panicked, or its run or node ended before it".to_owned();
        result.ok_or_else(|| Panicked { thread: name.to_owned(), message })
    }

    pub(crate) fn is_current(&self) -> bool {
        self.core.is_current(self.tid)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.core.touch().0.tasks[self.tid].status == Status::Done
    }
}

impl Handle {
    pub(crate) fn now(&self) -> Moment {
        match self.core.enter(Op::Now, &[]) {
            Entry::Running(state, _) | Entry::Degraded(state) => Moment(state.now),
        }
    }

    pub(crate) fn wall(&self) -> Wall {
        match self.core.enter(Op::Wall, &[]) {
            Entry::Running(state, _) | Entry::Degraded(state) => state.wall(),
        }
    }

    pub(crate) fn sleep_until(&self, moment: Moment) {
        let Entry::Running(mut state, me) = self.core.enter(Op::Sleep, &[]) else { return };
        let now = state.now;
        state.trace.add(now, me, Kind::Sleep, moment.0);
        if moment.0 > now {
            drop(self.core.block(state, me, Why::Sleep, Some(moment.0)));
        }
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        name: String,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Thread<T> {
        let result = Arc::new(Mutex::new(None));
        let tid = match self.core.enter(Op::Spawn, &[&name]) {
            Entry::Running(mut state, me) => {
                let tid = state.add_task(name.clone(), self.node);
                let now = state.now;
                state.trace.add(now, me, Kind::Spawn, tid as u64);
                tid
            }
            // A panicking thread starts nothing new; the handle reads as one that ended.
            Entry::Degraded(mut state) => {
                let tid = state.add_task(name.clone(), self.node);
                state.tasks[tid].status = Status::Done;
                state.runnable.retain(|other| *other != tid);
                state.live -= 1;
                return Thread::simulated(name, Join { core: self.core.clone(), tid, result });
            }
        };
        let slot = result.clone();
        self.core.start(tid, move || {
            let value = f();
            *slot.lock() = Some(value);
        });
        Thread::simulated(name, Join { core: self.core.clone(), tid, result })
    }

    /// A draw for the program itself: jitter, faults, latencies.
    pub(crate) fn draw(&self, stream: &'static str, n: u64) -> u64 {
        let (mut state, _) = self.core.touch();
        state.tapes.draw(stream, n)
    }

    /// Not on a tape: a secret that shrinking turns to zeros would collide with the next one.
    pub(crate) fn secret(&self, bytes: &mut [u8]) {
        let (mut state, _) = self.core.touch();
        for chunk in bytes.chunks_mut(8) {
            let random = state.secrets.next().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }

    pub(crate) fn hash_seed(&self) -> u64 {
        mix(self.core.seed)
    }

    pub(crate) fn point(&self, op: Op, tags: &[&str]) {
        if let Entry::Running(mut state, me) = self.core.enter(op, tags) {
            let now = state.now;
            state.trace.note(now, me, Kind::Point, format!("{op:?} {}", tags.join(" ")));
        }
    }

    pub(crate) fn note(&self, line: String) {
        let (mut state, me) = self.core.touch();
        let now = state.now;
        state.trace.note(now, me, Kind::Note, line);
    }

    pub(crate) fn facts(&self, facts: Box<dyn Any + Send>) {
        let name = {
            let (state, me) = self.core.touch();
            let task = &state.tasks[me];
            if task.node == 0 {
                task.name.clone()
            } else {
                format!("{}/{}", state.nodes[task.node as usize], task.name)
            }
        };
        self.core.facts.lock().insert(name, facts);
        self.check();
    }

    /// Checks every invariant against the latest facts.
    fn check(&self) {
        let broken = {
            let (facts, invariants) = (self.core.facts.lock(), self.core.invariants.lock());
            invariants.iter().find_map(|(name, holds)| holds(&facts).err().map(|text| (name.clone(), text)))
        };
        if let Some((name, text)) = broken {
            let (mut state, _) = self.core.touch();
            state.fail(
                FailureKind::Invariant,
                format!("invariant: {name}"),
                format!("{name} does not hold: {text}"),
            );
        }
    }

    pub(crate) fn invariant(&self, name: &str, holds: Invariant) {
        self.core.invariants.lock().push((name.to_owned(), holds));
    }

    /// The same simulation, where threads belong to another node.
    pub(crate) fn node(&self, name: &str) -> Handle {
        let (mut state, _) = self.core.touch();
        let found = state.nodes.iter().position(|node| node == name);
        let node = found.unwrap_or_else(|| {
            state.nodes.push(name.to_owned());
            state.nodes.len() - 1
        });
        Handle { core: self.core.clone(), node: node as u32 }
    }

    /// Ends every thread of this handle's node where it stands.
    pub(crate) fn kill(&self) {
        let Entry::Running(mut state, me) = self.core.enter(Op::Custom("kill"), &[]) else { return };
        let victims: Vec<Tid> = (0..state.tasks.len())
            .filter(|tid| state.tasks[*tid].node == self.node && state.tasks[*tid].status != Status::Done)
            .collect();
        assert!(!victims.contains(&me), "a node cannot kill itself: kill it from the test");
        let now = state.now;
        for tid in &victims {
            state.trace.add(now, me, Kind::Kill, *tid as u64);
            state.tasks[*tid].killed = true;
            state.traps.forget(*tid);
            state.make_runnable(*tid);
        }
        if !victims.is_empty() {
            state.driver = Some(Until::Gone(self.node));
            drop(self.core.block(state, me, Why::Driver, None));
        }
    }

    /// Lets the others run until something is true; answers what time it is then.
    pub(crate) fn drive(&self, until: Until) -> Moment {
        let Entry::Running(mut state, me) = self.core.enter(Op::Custom("drive"), &[]) else {
            return Moment::ZERO;
        };
        assert_eq!(me, 0, "only the test itself moves time; other threads sleep");
        state.driver = Some(until);
        let state = self.core.block(state, me, Why::Driver, None);
        Moment(state.now)
    }

    /// When something is going to happen by itself.
    pub(crate) fn peek(&self) -> Option<Moment> {
        let (state, _) = self.core.touch();
        state.timers.first().map(|(at, _)| Moment(*at))
    }

    pub(crate) fn jump_wall(&self, micros: i64) {
        let (mut state, _) = self.core.touch();
        state.wall_offset += micros;
    }

    pub(crate) fn grid(&self) -> Duration {
        self.core.touch().0.config.grid
    }

    pub(crate) fn table(&self) -> String {
        self.core.touch().0.table()
    }
}
