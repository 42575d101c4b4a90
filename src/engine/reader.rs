//! Threads that own a store connection each and do what they are handed.
//!
//! Rooms and I/O threads never wait for a query: they hand a job to a [`Pool`] and hear of it later. Reads
//! that bring followers up to date and writes of callers have pools of their own, so that a row lock never
//! holds up catching up. A full pool gives the job back; whoever asked says so to its caller.
//!
//! A writer runs everything that waits as one group ([`StreamStore::group`]): one sync to disk for all of
//! it. Only then does anybody hear that it was written. If one of them fails, which is rare, the group leaves
//! nothing behind, and each is done again by itself. Where a store has a log ahead of its tables, a thread of its own
//! takes the rows there, so that no writer has to stop for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::worker::{Bounds, Crew, Inbox, Refused, Room, Worker};
use crate::rt::{Moment, Op, Rt};
use crate::store::streams::Grouped;
use crate::store::{StoreError, Stores, StreamStore};
use crate::wire::Doors;

/// How many writes wait for one thread before it is full; each may bring a megabyte.
const WRITES_MAX: usize = 1_024;
/// The same of reads, which bring nothing: as many as a room takes, so that followers of as many streams may come at
/// once.
const READS_MAX: usize = 16 * 1024;

/// How long nothing has to come before what only a log has is given its place in the tables.
const QUIET: Duration = Duration::from_secs(1);

/// Something to do with a store, and somebody to tell.
trait Work: Send {
    /// Asks the store. Called again if what it did was undone.
    fn run(&mut self, store: &mut dyn StreamStore);
    /// Tells whoever asked; `fate` is what became of the group.
    fn settle(self: Box<Self>, fate: Result<(), StoreError>);
}

struct Ask<T, R, S> {
    run: R,
    answer: Option<Result<T, StoreError>>,
    then: S,
}

impl<T, R, S> Work for Ask<T, R, S>
where
    T: Send,
    R: FnMut(&mut dyn StreamStore) -> Result<T, StoreError> + Send,
    S: FnOnce(Result<T, StoreError>) + Send,
{
    fn run(&mut self, store: &mut dyn StreamStore) {
        self.answer = Some((self.run)(store));
    }

    fn settle(self: Box<Self>, fate: Result<(), StoreError>) {
        let unasked = || Err(StoreError::retry("unreachable", "the store could not be reached"));
        let answer = self.answer.unwrap_or_else(unasked);
        (self.then)(fate.and(answer));
    }
}

/// Some threads with a store connection each. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    threads: Arc<[Inbox<Job>]>,
}

/// A job on its way. What it does is its sender's business.
pub struct Job(Box<dyn Work>);

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads.len())
    }
}

impl Pool {
    /// Starts `threads` threads called `<name>-0…`, each with a connection of its own, whose answers leave through
    /// `doors`.
    ///
    /// # Errors
    /// When there is no thread to have. A store that cannot be reached is tried again at each job.
    pub fn start(
        crew: &Crew,
        name: &str,
        hand: Hand,
        threads: usize,
        stores: &Arc<dyn Stores>,
        doors: Option<&Doors>,
    ) -> crate::Result<(Vec<Worker>, Pool)> {
        let mut workers = Vec::new();
        let mut inboxes = Vec::new();
        let mut settler = None;
        if hand == Hand::Writes && stores.writes_ahead() {
            let (thread, pool) = Pool::start(crew, "settler", Hand::Reads, 1, stores, None)?;
            workers.extend(thread);
            settler = Some(Settler { pool, asked: Arc::default() });
        }
        let jobs_max = match hand {
            Hand::Reads => READS_MAX,
            Hand::Writes => WRITES_MAX,
        };
        for n in 0..threads.max(1) {
            let settler = settler.clone();
            let (worker, inbox) = Worker::spawn(crew, format!("{name}-{n}"), Bounds::of(jobs_max), |_| {
                let (rt, stores) = (crew.rt().clone(), stores.clone());
                Clerk { hand, rt, stores, store: None, settler, settle_at: None, doors: doors.cloned() }
            })?;
            workers.push(worker);
            inboxes.push(inbox);
        }
        Ok((workers, Pool { threads: inboxes.into() }))
    }

    /// Hands a job over: `run` asks the store, `then` is told what came of it, both on the pool's thread.
    /// Jobs with the same `key` are done in the order they came. Never waits: a thread that has as many jobs
    /// as it may answers `full` at once.
    pub fn ask<T: Send + 'static>(
        &self,
        key: u64,
        run: impl FnMut(&mut dyn StreamStore) -> Result<T, StoreError> + Send + 'static,
        then: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        let inbox = &self.threads[(key % self.threads.len() as u64) as usize];
        let job = Job(Box::new(Ask { run, answer: None, then }));
        let (job, error) = match inbox.try_data(job) {
            Ok(()) => return,
            Err(Refused::Full(job)) => {
                (job, StoreError::retry("full", "too much to do at the moment: try again"))
            }
            Err(Refused::Ended(job)) => (job, StoreError::retry("stopped", "the engine has stopped")),
        };
        job.0.settle(Err(error));
    }
}

/// How a thread of a pool does what waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// One thing after the other: reads, for which a group would take the place of whoever writes.
    Reads,
    /// All of it as one group.
    Writes,
}

/// A thread of a pool.
struct Clerk {
    hand: Hand,
    rt: Rt,
    stores: Arc<dyn Stores>,
    /// None until the store was reached.
    store: Option<Box<dyn StreamStore>>,
    settler: Option<Settler>,
    /// When what only a log has is given its place, unless more comes before.
    settle_at: Option<Moment>,
    /// Through which most answers leave.
    doors: Option<Doors>,
}

/// Who gives what only a log has its place in the tables, while writers write.
#[derive(Clone)]
struct Settler {
    pool: Pool,
    /// Whether it was asked and is not through: it takes all that waits when it begins.
    asked: Arc<AtomicBool>,
}

impl Settler {
    fn ask(&self) {
        if self.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let asked = self.asked.clone();
        let done = move |settled| {
            asked.store(false, Ordering::Release);
            say(settled);
        };
        self.pool.ask(0, |store| store.settle(), done);
    }
}

fn say(settled: Result<(), StoreError>) {
    if let Err(error) = settled {
        log::warn!("what was logged is not in the tables yet error={error}");
    }
}

impl Clerk {
    fn do_all(&mut self, jobs: &mut [Job]) -> Result<(), StoreError> {
        self.rt.point(Op::Store, &["streams"]);
        let store = match &mut self.store {
            Some(store) => store,
            none => none.insert(self.stores.streams()?),
        };
        let mut all = |store: &mut dyn StreamStore| jobs.iter_mut().for_each(|job| job.0.run(store));
        if self.hand == Hand::Reads || store.group(&mut all)? == Grouped::Undone {
            all(store.as_mut());
        }
        Ok(())
    }

    fn settle(&mut self) {
        self.settle_at = None;
        if let Some(store) = &mut self.store {
            say(store.settle());
        }
    }
}

impl Room for Clerk {
    type Message = Job;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Job>) {
        if inbox.is_empty() {
            if self.settle_at.is_some_and(|at| at <= now) {
                self.settle();
            }
            return;
        }
        let fate = self.do_all(inbox);
        let quietly = self.doors.as_ref().map(Doors::quietly);
        for job in inbox.drain(..) {
            job.0.settle(fate.clone());
        }
        drop(quietly);
        if let (Some(settler), Some(store)) = (&self.settler, &self.store)
            && store.is_far_ahead()
        {
            settler.ask();
        }
        let is_ahead = self.store.as_ref().is_some_and(|store| store.is_ahead());
        self.settle_at = (self.hand == Hand::Writes && is_ahead).then(|| now + QUIET);
    }

    fn deadline(&self) -> Option<Moment> {
        self.settle_at
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<Job>) {
        self.wake(now, inbox);
        if self.settle_at.is_some() {
            self.settle();
        }
    }
}
