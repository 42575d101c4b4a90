//! Traps: a facade call that matches one is held until every trap that matched lets it go.

use std::collections::{BTreeMap, VecDeque};

use super::handle::Handle;
use super::scheduler::FailureKind;
use super::state::Tid;
use crate::rt::Op;
use crate::state::time::Moment;

/// Names a trap within its run.
pub(crate) type TrapId = u64;

/// A held call, as the test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallInfo {
    pub(crate) thread: String,
    pub(crate) op: Op,
    pub(crate) tags: Vec<String>,
    /// When the call was made; the call itself reads the clock when it is released.
    pub(crate) at: Moment,
    tid: Tid,
}

#[derive(Default)]
pub(super) struct Traps {
    next: TrapId,
    open: BTreeMap<TrapId, Trap>,
    /// How many traps still hold a thread.
    holds: BTreeMap<Tid, usize>,
}

struct Trap {
    op: Op,
    tags: Vec<String>,
    /// Held and not yet looked at.
    arrived: VecDeque<CallInfo>,
    /// Looked at and not yet released.
    taken: Vec<Tid>,
}

impl Traps {
    pub(super) fn any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Says which traps hold the call; nothing when none does.
    pub(super) fn arrive(
        &mut self,
        tid: Tid,
        thread: &str,
        op: Op,
        tags: &[&str],
        now: u64,
    ) -> Option<Vec<TrapId>> {
        let mut hit = Vec::new();
        for (id, trap) in &mut self.open {
            let known = |tag: &String| tags.contains(&tag.as_str()) || tag == thread;
            if trap.op == op && trap.tags.iter().all(known) {
                let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
                trap.arrived.push_back(CallInfo {
                    thread: thread.to_owned(),
                    op,
                    tags,
                    at: Moment(now),
                    tid,
                });
                hit.push(*id);
            }
        }
        if hit.is_empty() {
            return None;
        }
        self.holds.insert(tid, hit.len());
        Some(hit)
    }

    fn has_arrived(&self, id: TrapId) -> bool {
        self.open.get(&id).is_some_and(|trap| !trap.arrived.is_empty())
    }

    /// One trap lets a thread go; true when it was the last.
    fn let_go(&mut self, tid: Tid) -> bool {
        let Some(holds) = self.holds.get_mut(&tid) else { return false };
        *holds -= 1;
        let free = *holds == 0;
        if free {
            self.holds.remove(&tid);
        }
        free
    }

    /// The thread was killed: nobody will release it.
    pub(super) fn forget(&mut self, tid: Tid) {
        self.holds.remove(&tid);
        for trap in self.open.values_mut() {
            trap.arrived.retain(|call| call.tid != tid);
            trap.taken.retain(|taken| *taken != tid);
        }
    }

    pub(super) fn close_all(&mut self) {
        self.open.clear();
        self.holds.clear();
    }
}

impl Handle {
    pub(crate) fn set_trap(&self, op: Op) -> TrapId {
        let (mut state, _) = self.core.touch();
        let id = state.traps.next;
        state.traps.next += 1;
        let trap = Trap { op, tags: Vec::new(), arrived: VecDeque::new(), taken: Vec::new() };
        state.traps.open.insert(id, trap);
        id
    }

    pub(crate) fn tag_trap(&self, id: TrapId, tag: String) {
        let (mut state, _) = self.core.touch();
        if let Some(trap) = state.traps.open.get_mut(&id) {
            trap.tags.push(tag);
        }
    }

    pub(crate) fn trap_has_call(&self, id: TrapId) -> bool {
        self.core.touch().0.traps.has_arrived(id)
    }

    pub(crate) fn take_call(&self, id: TrapId) -> Option<CallInfo> {
        let (mut state, _) = self.core.touch();
        let trap = state.traps.open.get_mut(&id)?;
        let call = trap.arrived.pop_front()?;
        trap.taken.push(call.tid);
        Some(call)
    }

    pub(crate) fn release(&self, id: TrapId, call: &CallInfo) {
        let (mut state, _) = self.core.touch();
        let Some(trap) = state.traps.open.get_mut(&id) else { return };
        let Some(place) = trap.taken.iter().position(|tid| *tid == call.tid) else { return };
        trap.taken.swap_remove(place);
        if state.traps.let_go(call.tid) {
            state.make_runnable(call.tid);
        }
    }

    /// Closes a trap: nothing is held any more. Calls it held that nobody looked at are a mistake of
    /// the test, unless it is failing anyway.
    pub(crate) fn close_trap(&self, id: TrapId) {
        let (mut state, _) = self.core.touch();
        let Some(trap) = state.traps.open.remove(&id) else { return };
        let unseen = trap.arrived.len();
        for tid in trap.arrived.iter().map(|call| call.tid).chain(trap.taken) {
            if state.traps.let_go(tid) {
                state.make_runnable(tid);
            }
        }
        if unseen > 0 && !std::thread::panicking() {
            let text = format!(
                "a trap on {:?} {:?} was closed with {unseen} calls nobody waited for",
                trap.op, trap.tags
            );
            state.fail(FailureKind::Trap, "trap: unreleased".to_owned(), text);
        }
    }
}
