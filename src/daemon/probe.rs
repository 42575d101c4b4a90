//! Whether the store takes writes now, asked every few seconds so that `/readyz` need not wait for it.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::worker::Room;
use crate::rt::{Lock, Moment};
use crate::store::{StoreError, Stores, StreamStore};

/// A load balancer asks about as often.
const EVERY: Duration = Duration::from_secs(2);

/// What was found last: nothing, or why the store cannot be written to.
pub(super) type Found = Arc<Lock<Option<String>>>;

/// The room that asks.
pub(super) struct Probe {
    stores: Arc<dyn Stores>,
    /// None after a failure: the next try opens a connection of its own.
    store: Option<Box<dyn StreamStore>>,
    found: Found,
    next: Moment,
}

impl Probe {
    pub(super) fn new(stores: Arc<dyn Stores>, found: Found, now: Moment) -> Probe {
        Probe { stores, store: None, found, next: now }
    }

    fn ask(&mut self) -> Result<(), StoreError> {
        let mut store = match self.store.take() {
            Some(store) => store,
            None => self.stores.streams()?,
        };
        store.ping()?;
        self.store = Some(store);
        Ok(())
    }
}

impl Room for Probe {
    type Message = ();

    fn wake(&mut self, now: Moment, _: &mut Vec<()>) {
        if now < self.next {
            return;
        }
        let found = self.ask().err().map(|error| format!("the store cannot be written to: {error}"));
        let before = std::mem::replace(&mut *self.found.lock(), found.clone());
        match (before, found) {
            (None, Some(trouble)) => log::warn!(target: "towpath/store_lost", "{trouble}"),
            (Some(_), None) => log::info!(target: "towpath/store_back", "the store takes writes again"),
            _ => {}
        }
        self.next = now + EVERY;
    }

    fn deadline(&self) -> Option<Moment> {
        Some(self.next)
    }

    fn end(&mut self, _: Moment, _: &mut Vec<()>) {}
}
