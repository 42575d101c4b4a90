//! Stores that fail: before the commit, after it, late, or not at all, by the seed.
//!
//! A call is: a fault or a delay, then the whole transaction without a call of the runtime, then a
//! fault or a delay. So a transaction is one step of the simulation, and what an engine sees of it is
//! every way a database can answer: "failed after commit" looks exactly like "failed before".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::rt::{Lock, Op, Rt, Wall};
use crate::state::connection::Row;
use crate::state::metadata::{Entry, Key};
use crate::store::connections::{ConnectionQuery, Count, DeadLetter};
use crate::store::metadata::{AgentRow, KeyRow, MetadataRead, Sight, Upserted};
use crate::store::replicas::{Beat, RelayKey, ReplicaRead, ReplicaRow};
use crate::store::streams::*;
use crate::store::{
    ConnectionStore, Identity, Labels, MetadataStore, ReplicaStore, Store, StoreError, Stores, StreamStore,
};

/// How bad a store is. Chances are one in so many; 0 is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreFaults {
    /// Fails, and nothing was written.
    pub before: u64,
    /// Fails, and everything was written.
    pub after: u64,
    /// Answers only after this long.
    pub hang: (u64, Duration),
    /// Every call takes up to this long.
    pub latency_max: Duration,
}

impl StoreFaults {
    /// A store without faults.
    pub const CALM: StoreFaults =
        StoreFaults { before: 0, after: 0, hang: (0, Duration::ZERO), latency_max: Duration::ZERO };

    /// Up to 10 ms a call; one call in eight fails, half of them after the commit; some hang for 10 s.
    pub const ROUGH: StoreFaults = StoreFaults {
        before: 16,
        after: 16,
        hang: (200, Duration::from_secs(10)),
        latency_max: Duration::from_millis(10),
    };
}

/// Anything that fails the way a database does.
#[derive(Debug)]
pub struct Faulty<S> {
    inner: S,
    rt: Rt,
    /// Shared with whoever made it, which may change its mind.
    faults: Arc<Lock<StoreFaults>>,
    calls: Calls,
}

/// How often each call was made.
type Calls = Arc<Lock<BTreeMap<String, u64>>>;

impl<S> Faulty<S> {
    /// Wraps `inner`; its calls are on the tapes of `rt`'s run.
    pub fn new(inner: S, rt: &Rt, faults: StoreFaults) -> Faulty<S> {
        Faulty { inner, rt: rt.clone(), faults: Arc::new(Lock::new(faults)), calls: Calls::default() }
    }

    /// One call: `broken` makes the error of a call that failed on the way.
    ///
    /// # Errors
    /// What `transaction` answers, or what `broken` makes.
    pub fn call<T, E>(
        &mut self,
        name: &str,
        broken: impl FnOnce(&'static str) -> E,
        transaction: impl FnOnce(&mut S) -> Result<T, E>,
    ) -> Result<T, E> {
        self.rt.point(Op::Store, &[name]);
        *self.calls.lock().entry(name.to_owned()).or_default() += 1;
        let faults = *self.faults.lock();
        self.delay(faults);
        if self.chance("store before", faults.before) {
            crate::mark!(store_failed_before_commit);
            return Err(broken("the connection was lost before the commit"));
        }
        let answer = transaction(&mut self.inner);
        if self.chance("store after", faults.after) {
            crate::mark!(store_failed_after_commit);
            return Err(broken(
                "the connection was lost, whether before the commit or after it is not known",
            ));
        }
        answer
    }

    fn delay(&self, faults: StoreFaults) {
        let (one_in, hang) = faults.hang;
        if self.chance("store hang", one_in) {
            self.rt.sleep(hang);
        }
        let millis = faults.latency_max.as_millis() as u64;
        if millis > 0 {
            self.rt.sleep(Duration::from_millis(self.rt.rand("store latency").below(millis + 1)));
        }
    }

    fn chance(&self, tape: &'static str, one_in: u64) -> bool {
        // 0 is benign: the fault sits at the upper end.
        one_in > 0 && self.rt.rand(tape).below(one_in) == one_in - 1
    }
}

fn lost(text: &'static str) -> StoreError {
    StoreError::retry("unreachable", text)
}

/// Stores whose every value is [`Faulty`].
pub struct FaultyStores<S> {
    inner: S,
    rt: Rt,
    faults: Arc<Lock<StoreFaults>>,
    calls: Calls,
}

impl<S: Stores> FaultyStores<S> {
    /// Wraps `inner`.
    pub fn new(inner: S, rt: &Rt, faults: StoreFaults) -> FaultyStores<S> {
        FaultyStores { inner, rt: rt.clone(), faults: Arc::new(Lock::new(faults)), calls: Calls::default() }
    }

    /// How often a method of any of them was called, by its name.
    pub fn calls(&self, name: &str) -> u64 {
        self.calls.lock().get(name).copied().unwrap_or_default()
    }

    /// From now on they are this bad, those that were opened before too.
    pub fn set_faults(&self, faults: StoreFaults) {
        *self.faults.lock() = faults;
    }

    fn faulty<T>(&self, inner: T) -> Faulty<T> {
        Faulty { inner, rt: self.rt.clone(), faults: self.faults.clone(), calls: self.calls.clone() }
    }
}

impl<S> std::fmt::Debug for FaultyStores<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FaultyStores({:?})", *self.faults.lock())
    }
}

impl<S: Stores> Stores for FaultyStores<S> {
    fn streams(&self) -> Result<Box<dyn StreamStore>, StoreError> {
        Ok(Box::new(self.faulty(self.inner.streams()?)))
    }

    fn metadata(&self) -> Result<Box<dyn MetadataStore>, StoreError> {
        Ok(Box::new(self.faulty(self.inner.metadata()?)))
    }

    fn connections(&self) -> Result<Box<dyn ConnectionStore>, StoreError> {
        Ok(Box::new(self.faulty(self.inner.connections()?)))
    }

    fn replicas(&self) -> Result<Box<dyn ReplicaStore>, StoreError> {
        Ok(Box::new(self.faulty(self.inner.replicas()?)))
    }

    fn identity(&self) -> Identity {
        self.inner.identity()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }
}

/// Passes each call on through [`Faulty::call`].
macro_rules! faulty {
    ($trait:ident { $(fn $name:ident(&mut self $(, $arg:ident: $type:ty)*) -> $answer:ty;)* }) => {
        impl Store for Faulty<Box<dyn $trait>> {
            fn ping(&mut self) -> Result<(), StoreError> {
                self.call("ping", lost, |store| store.ping())
            }
        }

        impl $trait for Faulty<Box<dyn $trait>> {
            $(fn $name(&mut self $(, $arg: $type)*) -> Result<$answer, StoreError> {
                self.call(stringify!($name), lost, |store| store.$name($($arg),*))
            })*
        }
    };
}

faulty!(StreamStore {
    fn create(&mut self, new: &NewStream) -> Created;
    fn delete(&mut self, at: &Address) -> Deleted;
    fn list(&mut self, list: &ListStreams) -> Vec<StreamRow>;
    fn get(&mut self, at: &Address) -> Found<StreamRow>;
    fn catch_up(&mut self, at: &Address, read: CatchUp) -> Found<Page>;
    fn positions(&mut self, streams: &[Uuid]) -> Vec<Change>;
    fn append(&mut self, at: &Address, append: &Append) -> Appended;
    fn edit(&mut self, at: &Address, message: u64, draft: &Draft) -> Edited;
    fn remove(&mut self, at: &Address, message: u64) -> Edited;
    fn push(&mut self, at: &Address, input: &Draft, key: Option<&str>, most: usize) -> Queued;
    fn withdraw(&mut self, at: &Address, input: u64) -> Dequeued;
    fn claim(&mut self, at: &Address, claim: &Claim) -> Claimed;
    fn claim_next(&mut self, labels: &Labels, claim: &Claim) -> Claimed;
    fn renew(&mut self, worker: Uuid, lease_for: Duration) -> Vec<Held>;
    fn commit(&mut self, at: &Address, fence: Fence, message: &Draft, folded_to: u32, key: Option<&str>) -> Committed;
    fn finish(&mut self, at: &Address, fence: Fence, end: &End) -> Finished;
    fn interrupt(&mut self, at: &Address) -> Interrupted;
    fn sweep(&mut self, which: Sweep, limit: usize) -> Vec<Change>;
    fn touch(&mut self, streams: &[Uuid]) -> ();
    fn expire(&mut self, limit: usize) -> Vec<Uuid>;
    fn trim(&mut self, keep: Keep, limit: usize) -> Vec<Change>;
    fn forget_keys(&mut self, limit: usize) -> u64;
    fn group(&mut self, work: &mut dyn FnMut(&mut dyn StreamStore)) -> Grouped;
});

faulty!(ConnectionStore {
    fn upsert(&mut self, rows: &[Row]) -> ();
    fn query(&mut self, query: &ConnectionQuery) -> Vec<Row>;
    fn count(&mut self, query: &ConnectionQuery, cap: u64) -> Count;
    fn prune(&mut self, before: Wall, limit: usize) -> u64;
    fn bury(&mut self, letters: &[DeadLetter]) -> ();
    fn dead_letters(&mut self, after: Option<(Wall, Uuid)>, limit: usize) -> Vec<DeadLetter>;
    fn dead_letter_count(&mut self) -> u64;
});

faulty!(MetadataStore {
    fn upsert(&mut self, rows: &[(Key, Entry)], now: Wall, sight: Sight) -> Upserted;
    fn read(&mut self, agents: &[Uuid]) -> Vec<MetadataRead>;
    fn put_agent(&mut self, agent: Uuid, name: &str) -> bool;
    fn agent(&mut self, agent: Uuid) -> Option<AgentRow>;
    fn agents(&mut self, prefix: &str, after: Option<&AgentRow>, limit: usize) -> Vec<AgentRow>;
    fn declare(&mut self, agent: Uuid, keys: &[KeyRow]) -> ();
    fn declared(&mut self, agent: Uuid) -> Vec<KeyRow>;
    fn prune(&mut self, older_than: Duration, limit: usize) -> u64;
});

faulty!(ReplicaStore {
    fn beat(&mut self, replica: &ReplicaRow) -> Beat;
    fn list(&mut self) -> Vec<ReplicaRead>;
    fn stop(&mut self, replica: Uuid) -> ();
    fn clean(&mut self, silent_for: Duration) -> u64;
    fn relay_keys(&mut self, fresh: RelayKey, rotate_after: Duration) -> Vec<RelayKey>;
});
