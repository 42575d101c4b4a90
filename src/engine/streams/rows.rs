//! Who asks for the row of a stream. Those who ask before it is read share one read: ten thousand followers that
//! come back at once with their tokens are one job of a reader, which has no place for as many.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{StreamError, Then, found, writes};
use crate::engine::reader::Pool;
use crate::rt::{Hasher, Lock};
use crate::store::streams::{Address, StreamRow};

/// How many may wait for one row. More than there are links, but whoever speaks River may ask without one each.
const ASKERS_MAX: usize = 64 * 1024;

type Askers = Vec<Then<StreamRow>>;

/// Who waits for rows that are still to be read.
pub(super) struct Rows {
    waiting: Arc<Lock<HashMap<Address, Askers, Hasher>>>,
}

impl Rows {
    pub(super) fn new(hasher: Hasher) -> Rows {
        Rows { waiting: Arc::new(Lock::new(HashMap::with_hasher(hasher))) }
    }

    /// Tells `then` how a stream stands when this is called, or later.
    pub(super) fn ask(&self, readers: &Pool, at: Address, then: Then<StreamRow>) {
        let refused = {
            let mut waiting = self.waiting.lock();
            match waiting.get_mut(&at) {
                Some(askers) if askers.len() >= ASKERS_MAX => Some(then),
                Some(askers) => return askers.push(then),
                None => {
                    waiting.insert(at.clone(), vec![then]);
                    None
                }
            }
        };
        if let Some(then) = refused {
            return then(Err(StreamError::Full));
        }
        let key = writes::key_of(&at);
        let read = Arc::new(Read {
            waiting: self.waiting.clone(),
            at,
            begun: AtomicBool::new(false),
            askers: Lock::new(Vec::new()),
        });
        let tells = read.clone();
        readers.ask(
            key,
            move |store| {
                read.begin();
                store.get(&read.at)
            },
            move |answer| tells.tell(&found(answer)),
        );
    }
}

/// One read, and who it is for once it has begun.
struct Read {
    waiting: Arc<Lock<HashMap<Address, Askers, Hasher>>>,
    at: Address,
    begun: AtomicBool,
    askers: Lock<Askers>,
}

impl Read {
    /// Whoever asks from now on might want to know more than this read sees: theirs is another.
    fn begin(&self) {
        if !self.begun.swap(true, Ordering::AcqRel) {
            let askers = self.waiting.lock().remove(&self.at);
            *self.askers.lock() = askers.unwrap_or_default();
        }
    }

    fn tell(&self, answer: &Result<StreamRow, StreamError>) {
        // A read that a reader had no place for has not begun.
        self.begin();
        let askers = std::mem::take(&mut *self.askers.lock());
        for then in askers {
            then(answer.clone());
        }
    }
}

impl Drop for Read {
    /// The engine stops and reads nothing more: who waits is let go.
    fn drop(&mut self) {
        self.begin();
    }
}
