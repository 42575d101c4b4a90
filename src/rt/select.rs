//! Waiting for one of several channels, or for a deadline.

use super::cancel::Cancel;
use super::channel::{Receiver, ReceiverArm, Sender, SenderArm};
#[cfg(feature = "testing")]
use super::sim;
use super::{Arm, Moment, Rt, real};

/// Waits until one of several operations would not wait. Made by [`Rt::select`] (any ready one with
/// the same chance) or [`Rt::select_biased`] (the first one added wins).
///
/// Each `recv`, `send` and `cancelled` returns the index that [`Select::ready`] answers with. As
/// with readiness anywhere, carry the operation out with its `try_` form.
pub struct Select<'a> {
    arm: SelectArm<'a>,
}

enum SelectArm<'a> {
    Real(crossbeam_channel::Select<'a>),
    #[cfg(feature = "testing")]
    Sim(sim::Wait<'a>),
}

impl<'a> Select<'a> {
    pub(super) fn new(rt: &'a Rt, biased: bool) -> Select<'a> {
        let arm = match &rt.arm {
            Arm::Real if biased => SelectArm::Real(crossbeam_channel::Select::new_biased()),
            Arm::Real => SelectArm::Real(crossbeam_channel::Select::new()),
            #[cfg(feature = "testing")]
            Arm::Sim(handle) => SelectArm::Sim(sim::Wait::new(handle, biased)),
        };
        Select { arm }
    }

    /// Ready when a message is there or every sender is gone.
    pub fn recv<T>(&mut self, receiver: &'a Receiver<T>) -> usize {
        match (&mut self.arm, &receiver.arm) {
            (SelectArm::Real(select), ReceiverArm::Real(rx)) => select.recv(rx),
            #[cfg(feature = "testing")]
            (SelectArm::Sim(wait), ReceiverArm::Sim(rx)) => wait.recv(rx),
            #[cfg(feature = "testing")]
            _ => panic!("{MIXED}"),
        }
    }

    /// Ready when there is room or the receiver is gone.
    pub fn send<T>(&mut self, sender: &'a Sender<T>) -> usize {
        match (&mut self.arm, &sender.arm) {
            (SelectArm::Real(select), SenderArm::Real(tx)) => select.send(tx),
            #[cfg(feature = "testing")]
            (SelectArm::Sim(wait), SenderArm::Sim(tx)) => wait.send(tx),
            #[cfg(feature = "testing")]
            _ => panic!("{MIXED}"),
        }
    }

    /// Ready when the token is cancelled.
    pub fn cancelled(&mut self, token: &'a Cancel) -> usize {
        self.recv(token.closed())
    }

    /// Waits until one is ready and says which; nothing when the deadline passed first.
    pub fn ready(&mut self, deadline: Option<Moment>) -> Option<usize> {
        match &mut self.arm {
            SelectArm::Real(select) => match deadline {
                None => Some(select.ready()),
                Some(deadline) => select.ready_deadline(real::instant(deadline)).ok(),
            },
            #[cfg(feature = "testing")]
            SelectArm::Sim(wait) => wait.ready(deadline),
        }
    }
}

#[cfg(feature = "testing")]
const MIXED: &str =
    "a select mixes channels of the real runtime and of a simulation: make all of them from one Rt";

impl std::fmt::Debug for Select<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Select")
    }
}
