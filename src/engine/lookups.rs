//! Reads apart from writes: one thread, its own store connections, no room waits for a query.

use std::sync::Arc;
use std::time::Duration;

use super::connections::stopped;
use super::worker::{Bounds, Crew, Inbox, Refused, Room, Worker};
use crate::error::{Code, Error, Result};
use crate::rt::{Moment, RecvTimeoutError, Rt};
use crate::store::{ConnectionStore, MetadataStore, StoreError, Stores};

/// How long a caller waits for an answer; the stores' own limits are shorter.
const PATIENCE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce(&mut Opened) + Send>;

/// The store connections of the reading thread, opened when they are needed.
pub struct Opened {
    stores: Arc<dyn Stores>,
    metadata: Option<Box<dyn MetadataStore>>,
    connections: Option<Box<dyn ConnectionStore>>,
}

impl Opened {
    /// Agents and metadata.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub fn metadata(&mut self) -> Result<&mut dyn MetadataStore, StoreError> {
        if self.metadata.is_none() {
            self.metadata = Some(self.stores.metadata()?);
        }
        Ok(self.metadata.as_mut().expect("it was put there two lines up").as_mut())
    }

    /// The connection log.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub fn connections(&mut self) -> Result<&mut dyn ConnectionStore, StoreError> {
        if self.connections.is_none() {
            self.connections = Some(self.stores.connections()?);
        }
        Ok(self.connections.as_mut().expect("it was put there two lines up").as_mut())
    }

    /// Lets go of connections that may be broken.
    fn forget(&mut self) {
        self.metadata = None;
        self.connections = None;
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opened")
    }
}

struct Reader {
    opened: Opened,
}

impl Room for Reader {
    type Message = Job;

    fn wake(&mut self, _: Moment, inbox: &mut Vec<Job>) {
        inbox.drain(..).for_each(|job| job(&mut self.opened));
    }

    fn deadline(&self) -> Option<Moment> {
        None
    }
}

/// The way to the reading thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lookups {
    rt: Rt,
    inbox: Inbox<Job>,
}

impl Lookups {
    /// Starts the thread.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn start(crew: &Crew, name: &'static str, stores: Arc<dyn Stores>) -> Result<(Lookups, Worker)> {
        let opened = Opened { stores, metadata: None, connections: None };
        let (worker, inbox) = Worker::spawn(crew, name, Bounds::of(256), |_| Reader { opened })?;
        Ok((Lookups { rt: crew.rt().clone(), inbox }, worker))
    }

    /// Asks, and waits for the answer: for callers from outside.
    ///
    /// # Errors
    /// What the store answered, or [`Code::Full`], [`Code::TimedOut`], [`Code::Stopped`].
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Opened) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T> {
        let deadline = self.rt.now() + PATIENCE;
        let (tx, rx) = self.rt.channel("answer", 1);
        let job = job(question, move |answer| _ = tx.try_send(answer));
        self.inbox.data(job, deadline).map_err(refused)?;
        match rx.recv_deadline(deadline) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                Err(Error::new(Code::TimedOut, "the store did not answer in time"))
            }
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
        }
    }

    /// Asks without waiting. `done` is called on the reading thread, which it must not hold up.
    ///
    /// # Errors
    /// [`Code::Full`] when too many questions wait, [`Code::Stopped`].
    pub fn submit<T: 'static>(
        &self,
        question: impl FnOnce(&mut Opened) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Result<()> {
        self.inbox.try_data(job(question, done)).map_err(refused)
    }
}

fn job<T>(
    question: impl FnOnce(&mut Opened) -> Result<T, StoreError> + Send + 'static,
    done: impl FnOnce(Result<T>) + Send + 'static,
) -> Job {
    Box::new(move |opened| {
        let answer = question(opened);
        if answer.is_err() {
            opened.forget();
        }
        done(answer.map_err(Error::from));
    })
}

fn refused<M>(refused: Refused<M>) -> Error {
    match refused {
        Refused::Full(_) => Error::new(Code::Full, "too many questions wait for the store: try again"),
        Refused::Ended(_) => stopped(),
    }
}
