//! Who asks for the row of a stream. Those who ask before it is read share one read: ten thousand followers that
//! come back at once with their tokens are one job of a reader, which has no place for as many. Where the room of the
//! stream knows as much as the store, whoever comes to follow costs none.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::room::{Message, Newcomer};
use super::{StreamError, Streams, Then, found, writes};
use crate::engine::reader::Pool;
use crate::engine::worker::{Inbox, Refused};
use crate::rt::{Hasher, Lock};
use crate::store::streams::{Address, StreamRow};

/// How many may wait for one row. More than there are links, but whoever speaks River may ask without one each.
const ASKERS_MAX: usize = 64 * 1024;

type Askers = Vec<Then<StreamRow>>;

/// Somebody who comes to a stream: what is made of how it stands, maybe a follower.
type Comes = Box<dyn FnOnce(Result<StreamRow, StreamError>) -> Option<Newcomer> + Send>;

impl Streams {
    /// The row of a stream alone. Those who ask for the same at once share a read.
    pub fn row_then(&self, at: Address, then: Then<StreamRow>) {
        self.shared.rows.ask(&self.shared.readers, at, then);
    }

    /// The same for somebody who comes to follow it.
    pub fn stands_then(&self, at: Address, then: Then<StreamRow>) {
        let told = |row| {
            then(row);
            None
        };
        self.meet(at, Box::new(told), |inbox, message| inbox.try_data(message));
    }

    /// Tells somebody how a stream stands, who may follow it then. Where others follow it already and nobody else
    /// writes to the store, the room that tells them does both: nothing is read, and the calling thread, which is
    /// not a room's, goes in if nobody is there.
    pub(crate) fn come(&self, at: Address, comes: Comes) {
        self.meet(at, comes, |inbox, message| inbox.entering().try_data(message));
    }

    fn meet(
        &self,
        at: Address,
        comes: Comes,
        put: impl FnOnce(&Inbox<Message>, Message) -> Result<(), Refused<Message>>,
    ) {
        let id = match &at {
            Address::Id(id) => Some(*id),
            Address::Name(name) => self.shared.names.get(name),
        };
        let Some(id) = id.filter(|id| self.shared.shards.interested(*id).is_some()) else {
            return self.read_for(at, comes);
        };
        let streams = self.clone();
        let known = move |row: Option<StreamRow>| match row {
            Some(row) => comes(Ok(row)),
            None => {
                streams.read_for(at, comes);
                None
            }
        };
        // A room that takes nothing says nothing either: it is read.
        if let Err(Refused::Full(refused) | Refused::Ended(refused)) =
            put(self.shared.shards.of(id), Message::Stands(id, Box::new(known)))
            && let Message::Stands(_, known) = refused
        {
            known(None);
        }
    }

    fn read_for(&self, at: Address, comes: Comes) {
        let streams = self.clone();
        let found = move |row: Result<StreamRow, StreamError>| {
            if let Ok(row) = &row {
                streams.shared.names.put(row.name.clone(), row.id);
            }
            if let Some(newcomer) = comes(row) {
                streams.enter(newcomer);
            }
        };
        self.row_then(at, Box::new(found));
    }
}

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
