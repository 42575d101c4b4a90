//! Traps: hold a call of the runtime, look at it, let it go.
//!
//! A trap matches a call by its operation and by tags, all of which the call must carry; a thread's
//! name is a tag of all its calls. A held call reads the clock when it is released, not when it was
//! made. A call that several traps match goes on when all of them let it go.

use std::time::Duration;

use crate::rt::sim::{CallInfo, Handle, TrapId, Until};
use crate::rt::{Moment, Op};

/// Catches calls from the moment it is made until it is dropped.
///
/// A trap that is dropped while it holds calls nobody looked at fails the test.
#[must_use = "a trap that is dropped at once catches nothing"]
#[derive(Debug)]
pub struct Trap {
    handle: Handle,
    id: TrapId,
    op: Op,
    tags: Vec<String>,
}

impl Trap {
    pub(super) fn new(handle: Handle, op: Op) -> Trap {
        let id = handle.set_trap(op);
        Trap { handle, id, op, tags: Vec::new() }
    }

    /// Only calls that carry this tag too.
    pub fn on(mut self, tag: &str) -> Trap {
        self.handle.tag_trap(self.id, tag.to_owned());
        self.tags.push(tag.to_owned());
        self
    }

    /// Runs everybody until a call is held. Time does not move.
    ///
    /// # Panics
    /// At once when nobody can run any more and no such call was made, with the thread table.
    #[track_caller]
    pub fn wait(&self) -> Held<'_> {
        self.held(None)
    }

    /// The same, letting up to `duration` of virtual time pass.
    ///
    /// # Panics
    /// When no such call was made by then, with the thread table.
    #[track_caller]
    pub fn wait_within(&self, duration: Duration) -> Held<'_> {
        self.held(Some(duration))
    }

    /// Whether a call is held that nobody looked at yet.
    pub fn is_hit(&self) -> bool {
        self.handle.trap_has_call(self.id)
    }

    #[track_caller]
    fn held(&self, within: Option<Duration>) -> Held<'_> {
        if !self.is_hit() {
            let until = within.map(|within| (self.handle.now() + within).0);
            self.handle.drive(Until::Trapped(self.id, until));
        }
        let Some(info) = self.handle.take_call(self.id) else {
            let (op, tags, table) = (self.op, &self.tags, self.handle.table());
            panic!("no call of {op:?} tagged {tags:?} was made before everybody waited:\n{table}");
        };
        let call = Call { op: info.op, tags: info.tags.clone(), thread: info.thread.clone(), at: info.at };
        Held { trap: self, info, call }
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.handle.close_trap(self.id);
    }
}

/// A call of the runtime, as a trap sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// What was called.
    pub op: Op,
    /// The call's tags: what it is about.
    pub tags: Vec<String>,
    /// Who called.
    pub thread: String,
    /// When it was called.
    pub at: Moment,
}

/// A held call; dropping it lets the call go.
#[must_use = "dropping a held call lets it go"]
#[derive(Debug)]
pub struct Held<'a> {
    trap: &'a Trap,
    info: CallInfo,
    call: Call,
}

impl Held<'_> {
    /// What is held.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// Lets the call go on.
    pub fn release(self) {}
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.trap.handle.release(self.trap.id, &self.info);
    }
}
