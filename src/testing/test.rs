//! What a simulated test can do besides being a program: move time, trap, kill, state invariants.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use super::net::{Net, NetFaults};
use super::trap::Trap;
use crate::rt::sim::{Handle, Until};
use crate::rt::{Moment, Op, Rt};

/// The test's side of a simulation. Time stands still while the test itself runs; it moves when the
/// test asks for it, or when the test waits for something that only time brings.
#[derive(Debug)]
pub struct Test {
    handle: Handle,
}

impl Test {
    pub(super) fn new(handle: Handle) -> Test {
        Test { handle }
    }

    /// The name of the test that is running, as the test runner calls it.
    pub(super) fn caller() -> Option<String> {
        crate::rt::current_thread_name().filter(|name| name != "main")
    }

    /// The simulated runtime.
    pub fn rt(&self) -> Rt {
        Rt::simulated(self.handle.clone())
    }

    /// The runtime of a node of its own: its threads, and the threads they start, can be killed
    /// together.
    pub fn node(&self, name: &str) -> Rt {
        Rt::simulated(self.handle.node(name))
    }

    /// Ends every thread of a node where it stands, as `kill -9` does: destructors run, but can
    /// neither send nor wait.
    pub fn kill(&self, node: &str) {
        self.handle.node(node).kill();
    }

    /// The time now, without a call the scheduler would count.
    pub fn now(&self) -> Moment {
        self.rt().now()
    }

    /// Runs everybody until they wait, then time, deadline by deadline, until `duration` has passed.
    /// No event on the way is skipped, and those of the last moment have happened.
    pub fn advance(&self, duration: Duration) {
        let until = self.now() + duration;
        self.handle.drive(Until::Moment(until.0));
    }

    /// Moves to the next deadline and runs its events; answers how long that was. Zero when nothing
    /// is going to happen.
    pub fn advance_next(&self) -> Duration {
        let before = self.now();
        self.handle.drive(Until::NextEvent).since(before)
    }

    /// How long until something happens by itself; nothing if nothing will.
    pub fn peek(&self) -> Option<Duration> {
        let now = self.now();
        self.handle.peek().map(|at| at.since(now))
    }

    /// Runs everybody until nobody can run at this moment. Exact: the scheduler knows every thread.
    pub fn run_until_idle(&self) {
        self.handle.drive(Until::Idle);
    }

    /// Catches calls of the runtime: [`Rt::point`]s and the facade's own. See [`Trap`].
    pub fn trap(&self, op: Op) -> Trap {
        Trap::new(self.handle.clone(), op)
    }

    /// A network of named nodes. See [`Net`].
    pub fn net(&self, faults: NetFaults) -> Net {
        Net::new(self, faults)
    }

    /// Sets the calendar forward or back; the monotonic clock does not move.
    pub fn jump_wall(&self, micros: i64) {
        self.handle.jump_wall(micros);
    }

    /// A draw on a tape of the test's own; 0 is what happens when nothing is to be found there.
    pub fn draw(&self, tape: &'static str, n: u64) -> u64 {
        self.handle.draw(tape, n)
    }

    /// What latencies should be rounded to.
    pub fn grid(&self) -> Duration {
        self.handle.grid()
    }

    /// Checks `holds` after every change of what any thread shows with [`Rt::facts`].
    pub fn invariant(&self, name: &str, holds: impl Fn(&Facts<'_>) -> Result<(), String> + Send + 'static) {
        self.handle.invariant(name, Box::new(move |facts| holds(&Facts { facts })));
    }

    /// Every thread that is alive and what it waits for.
    pub fn threads(&self) -> String {
        self.handle.table()
    }
}

/// The latest facts of each thread.
pub struct Facts<'a> {
    facts: &'a BTreeMap<String, Box<dyn Any + Send>>,
}

impl<'a> Facts<'a> {
    /// The facts of type `F` with the name of the thread that showed them (`node/thread`).
    pub fn all<F: 'static>(&self) -> impl Iterator<Item = (&'a str, &'a F)> {
        self.facts.iter().filter_map(|(name, fact)| Some((name.as_str(), fact.downcast_ref::<F>()?)))
    }
}

impl std::fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.facts.keys()).finish()
    }
}
