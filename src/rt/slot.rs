//! One thing that one thread makes and another waits for.
//!
//! A channel would do, and in a simulation it does. But whoever waits for a channel first looks several times,
//! giving the processor away in between: that pays where the next message is near, and costs others their time
//! where an answer takes a while and many wait for theirs.

use std::fmt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::channel::{Receiver, Sender};
use super::{Arm, Moment, RecvTimeoutError, Rt, real};

/// The end that makes it. Dropping it says that nothing more is to come, and wakes whoever waits.
pub struct Filler<T>(FillerArm<T>);

/// The end that waits.
pub struct Slot<T>(SlotArm<T>);

enum FillerArm<T> {
    Real(Arc<Shared<T>>),
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "what a simulation uses"))]
    Channel(Sender<T>),
}

enum SlotArm<T> {
    Real(Arc<Shared<T>>),
    #[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "what a simulation uses"))]
    Channel(Receiver<T>),
}

struct Shared<T> {
    state: Mutex<State<T>>,
    over: Condvar,
}

struct State<T> {
    value: Option<T>,
    over: bool,
}

impl Rt {
    /// A slot for one thing, and who fills it. The name is for thread tables and traps.
    pub fn slot<T>(&self, name: &'static str) -> (Filler<T>, Slot<T>) {
        match &self.arm {
            Arm::Real => {
                _ = name;
                let state = Mutex::new(State { value: None, over: false });
                let shared = Arc::new(Shared { state, over: Condvar::new() });
                (Filler(FillerArm::Real(shared.clone())), Slot(SlotArm::Real(shared)))
            }
            #[cfg(feature = "testing")]
            Arm::Sim(_) => {
                let (tx, rx) = self.channel(name, 1);
                (Filler(FillerArm::Channel(tx)), Slot(SlotArm::Channel(rx)))
            }
        }
    }
}

impl<T> Filler<T> {
    /// Fills the slot; what comes when it is full, or when nobody waits any more, comes back.
    ///
    /// # Errors
    /// It is full, or nobody waits.
    pub fn fill(&self, value: T) -> Result<(), T> {
        match &self.0 {
            FillerArm::Real(shared) => {
                let mut state = shared.state.lock();
                if state.value.is_some() {
                    return Err(value);
                }
                state.value = Some(value);
                Ok(())
            }
            FillerArm::Channel(tx) => tx.try_send(value).map_err(super::TrySendError::into_inner),
        }
    }
}

impl<T> Drop for Filler<T> {
    fn drop(&mut self) {
        if let FillerArm::Real(shared) = &self.0 {
            shared.state.lock().over = true;
            shared.over.notify_one();
        }
    }
}

impl<T> Slot<T> {
    /// Waits until the filler is gone, at most until `deadline`, and takes what it left. Woken by its going.
    ///
    /// # Errors
    /// `Timeout`: it is not gone in time.
    pub fn wait(&self, deadline: Moment) -> Result<Option<T>, RecvTimeoutError> {
        match &self.0 {
            SlotArm::Real(shared) => {
                let mut state = shared.state.lock();
                while !state.over {
                    let late = shared.over.wait_until(&mut state, real::instant(deadline)).timed_out();
                    if late && !state.over {
                        return Err(RecvTimeoutError::Timeout);
                    }
                }
                Ok(state.value.take())
            }
            SlotArm::Channel(rx) => {
                let mut value = None;
                loop {
                    match rx.recv_deadline(deadline) {
                        Ok(first) => value = value.or(Some(first)),
                        Err(RecvTimeoutError::Disconnected) => return Ok(value),
                        Err(late) => return Err(late),
                    }
                }
            }
        }
    }
}

impl<T> fmt::Debug for Filler<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filler")
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_filled_first_is_there_once_the_filler_is_gone() {
        let rt = Rt::real();
        let (filler, slot) = rt.slot("answer");
        assert_eq!(filler.fill(1), Ok(()));
        assert_eq!(filler.fill(2), Err(2));
        assert_eq!(slot.wait(rt.now()), Err(RecvTimeoutError::Timeout), "it may still say something else");
        drop(filler);
        assert_eq!(slot.wait(Moment::NEVER), Ok(Some(1)));
        assert_eq!(slot.wait(Moment::NEVER), Ok(None), "it is taken once");
    }

    #[test]
    fn whoever_waits_is_woken_by_the_end_also_without_a_value() {
        let rt = Rt::real();
        let (filler, slot) = rt.slot::<u8>("answer");
        let waits = rt.spawn("waits", move || slot.wait(Moment::NEVER)).unwrap();
        drop(filler);
        assert_eq!(waits.join(), Ok(Ok(None)));
        let (filler, slot) = rt.slot("answer");
        let soon = rt.now() + Duration::from_secs(60);
        let waits = rt.spawn("waits", move || slot.wait(soon)).unwrap();
        assert_eq!(filler.fill(7), Ok(()));
        drop(filler);
        assert_eq!(waits.join(), Ok(Ok(Some(7))));
    }
}
