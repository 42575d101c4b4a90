//! How the daemon is: what `/healthz` and `/readyz` answer and why.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::worker::Crew;
use crate::rt::{Lock, Rt};

/// A room that has been awake for longer than this is stuck, not busy.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// Something that must hold before work is taken: `None`, or why it does not.
pub(super) type Check = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Shared by the doors and the daemon's main thread.
pub(super) struct Condition {
    rt: Rt,
    crew: Crew,
    draining: AtomicBool,
    /// Written once, before the doors open.
    checks: Lock<Arc<[Check]>>,
    /// The same for what hinders nothing and is still worth a look.
    remarks: Lock<Arc<[Check]>>,
}

impl Condition {
    pub(super) fn new(crew: &Crew) -> Condition {
        let rt = crew.rt().clone();
        Condition {
            rt,
            crew: crew.clone(),
            draining: AtomicBool::new(false),
            checks: Lock::new(Arc::new([])),
            remarks: Lock::new(Arc::new([])),
        }
    }

    pub(super) fn check_with(&self, checks: Vec<Check>) {
        *self.checks.lock() = checks.into();
    }

    pub(super) fn remark_with(&self, remarks: Vec<Check>) {
        *self.remarks.lock() = remarks.into();
    }

    /// What somebody should look at although work may come here.
    pub(super) fn remarks(&self) -> Vec<String> {
        let remarks = self.remarks.lock().clone();
        remarks.iter().filter_map(|remark| remark()).collect()
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Why it is not well: a room that panicked, rooms that do not come back.
    pub(super) fn ails(&self) -> Vec<String> {
        let panicked = self.crew.poisoned();
        let stuck = self.crew.stuck(self.rt.now(), STUCK_AFTER);
        let stuck = stuck.into_iter().map(|(room, awake)| {
            format!("room {room} has been busy with one wake for {:.1} s", awake.as_secs_f64())
        });
        panicked.into_iter().chain(stuck).collect()
    }

    /// Why no work should come here.
    pub(super) fn hinders(&self) -> Vec<String> {
        let checks = self.checks.lock().clone();
        let draining = self.draining.load(Ordering::Acquire).then(|| "draining".to_owned());
        draining.into_iter().chain(self.ails()).chain(checks.iter().filter_map(|check| check())).collect()
    }

    /// What a dump shows.
    pub(super) fn dump(&self) -> Value {
        json!({ "rooms": self.crew.rooms(), "ails": self.ails(), "hinders": self.hinders() })
    }
}
