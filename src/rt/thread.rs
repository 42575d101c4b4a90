//! A named thread that is joined.

use std::any::Any;
use std::fmt;

use super::real;
#[cfg(feature = "testing")]
use super::sim;

/// A running thread. Dropping it waits for its end; [`Thread::detach`] lets go instead.
#[must_use = "dropping a thread waits for its end"]
pub struct Thread<T: Send + 'static = ()> {
    name: String,
    arm: Option<Arm<T>>,
}

enum Arm<T> {
    Real(std::thread::JoinHandle<T>),
    #[cfg(feature = "testing")]
    Sim(sim::Join<T>),
}

/// A thread ended by panicking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked {
    /// The thread's name.
    pub thread: String,
    /// What the panic said.
    pub message: String,
}

impl Panicked {
    pub(crate) fn new(thread: &str, payload: &(dyn Any + Send)) -> Panicked {
        Panicked { thread: thread.to_owned(), message: message(payload) }
    }
}

/// What a panic's payload says.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a payload that is not text".to_owned())
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} panicked: {}", self.thread, self.message)
    }
}

impl std::error::Error for Panicked {}

impl<T: Send + 'static> Thread<T> {
    pub(super) fn real(name: String, handle: std::thread::JoinHandle<T>) -> Thread<T> {
        Thread { name, arm: Some(Arm::Real(handle)) }
    }

    #[cfg(feature = "testing")]
    pub(super) fn simulated(name: String, join: sim::Join<T>) -> Thread<T> {
        Thread { name, arm: Some(Arm::Sim(join)) }
    }

    /// The name it was started with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for its end and gives what it returned.
    ///
    /// # Errors
    /// When it panicked.
    pub fn join(mut self) -> Result<T, Panicked> {
        let arm = self.arm.take().expect("only join, detach and drop take the arm, and each ends the handle");
        join(&self.name, arm)
    }

    /// Whether this is the thread that is asking: it cannot wait for its own end.
    pub fn is_current(&self) -> bool {
        match &self.arm {
            Some(Arm::Real(handle)) => handle.thread().id() == std::thread::current().id(),
            #[cfg(feature = "testing")]
            Some(Arm::Sim(join)) => join.is_current(),
            None => false,
        }
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        match &self.arm {
            Some(Arm::Real(handle)) => handle.is_finished(),
            #[cfg(feature = "testing")]
            Some(Arm::Sim(join)) => join.is_finished(),
            None => true,
        }
    }

    /// Lets go: nobody will wait for it.
    pub fn detach(mut self) {
        self.arm = None;
    }
}

fn join<T: Send + 'static>(name: &str, arm: Arm<T>) -> Result<T, Panicked> {
    match arm {
        Arm::Real(handle) => real::join(name, handle),
        #[cfg(feature = "testing")]
        Arm::Sim(handle) => handle.join(name),
    }
}

impl<T: Send + 'static> Drop for Thread<T> {
    fn drop(&mut self) {
        if self.arm.is_some() && self.is_current() {
            // It is dropping its own handle: waiting would never end.
            log::warn!("thread {} let go of itself; nobody will wait for its end", self.name);
            self.arm = None;
        }
        if let Some(arm) = self.arm.take()
            && let Err(panicked) = join(&self.name, arm)
        {
            log::error!("{panicked}");
        }
    }
}

impl<T: Send + 'static> fmt::Debug for Thread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Thread({})", self.name)
    }
}
