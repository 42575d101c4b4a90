//! Throws out rows that have grown too old: connections by when they began, metadata by when it was
//! collected; the oldest first, a bounded number at a time, and never two questions at once.
//!
//! Every replica does it. Two that meet delete what there is once.

use std::time::Duration;

use super::lookups::Lookups;
use super::worker::{Bounds, Crew, Inbox, Room, Worker};
use crate::error::Result;
use crate::metrics::{Counter, Metrics};
use crate::rt::{Moment, Rt, Wall};

/// Rows of one step: what a store deletes within some milliseconds.
pub const STEP: usize = 1_000;
/// Between two steps, while there is more: whoever else asks the store comes in between.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it looks when there is nothing to throw out.
const EVERY: Duration = Duration::from_secs(60);

/// How old rows may grow. None: as old as they like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// Since a connection began.
    pub connections: Option<Duration>,
    /// Since a value was collected.
    pub metadata: Option<Duration>,
}

/// Which rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Connections,
    Metadata,
}

#[derive(Debug)]
pub(crate) struct Pruned {
    job: usize,
    gone: Result<u64>,
}

#[derive(Debug)]
struct Job {
    of: Of,
    age: Duration,
    pruned: Counter,
    /// None while a step is under way.
    next: Option<Moment>,
}

/// The room.
#[derive(Debug)]
pub(crate) struct Retention {
    rt: Rt,
    lookups: Lookups,
    own: Inbox<Pruned>,
    jobs: Vec<Job>,
}

/// Starts it, if anything may grow too old: without an age there is no thread.
///
/// # Errors
/// There is no thread to be had.
pub fn start(crew: &Crew, ages: Ages, lookups: Lookups, metrics: &mut Metrics) -> Result<Option<Worker>> {
    let mut job = |of, age: Option<Duration>, name, help| {
        let pruned = metrics.counter(name, help);
        age.map(|age| Job { of, age, pruned, next: Some(Moment::ZERO) })
    };
    let jobs = [
        job(
            Of::Connections,
            ages.connections,
            "connections_pruned",
            "Connection rows thrown out because of their age.",
        ),
        job(
            Of::Metadata,
            ages.metadata,
            "metadata_pruned",
            "Metadata values thrown out because of their age.",
        ),
    ];
    let jobs: Vec<Job> = jobs.into_iter().flatten().collect();
    if jobs.is_empty() {
        return Ok(None);
    }
    let rt = crew.rt().clone();
    let (worker, _) = Worker::spawn(crew, "retention", Bounds::of(4), |own| Retention {
        rt,
        lookups,
        own: own.clone(),
        jobs,
    })?;
    Ok(Some(worker))
}

impl Retention {
    fn begin(&mut self, now: Moment, place: usize) {
        let Retention { rt, lookups, own, jobs } = self;
        let Some(job) = jobs.get_mut(place) else { return };
        let (of, age, own) = (job.of, job.age, own.clone());
        let before = Wall(rt.wall().0.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX)));
        let asked = lookups.submit(
            move |stores| match of {
                Of::Connections => stores.connections()?.prune(before, STEP),
                Of::Metadata => stores.metadata()?.prune(age, STEP),
            },
            move |gone| {
                // One step of each job is out at a time, so there is room; or the room has ended.
                let _ = own.control(Pruned { job: place, gone });
            },
        );
        job.next = match asked {
            Ok(()) => None,
            Err(error) => {
                log::debug!("retention waits: {error}");
                Some(now + EVERY)
            }
        };
    }

    fn ended(&mut self, now: Moment, pruned: Pruned) {
        let Some(job) = self.jobs.get_mut(pruned.job) else { return };
        job.next = Some(match pruned.gone {
            Ok(gone) => {
                job.pruned.inc_by(gone);
                now + if gone >= STEP as u64 { PAUSE } else { EVERY }
            }
            Err(error) => {
                log::warn!("rows that have grown too old cannot be thrown out now: {error}");
                now + EVERY
            }
        });
    }
}

impl Room for Retention {
    type Message = Pruned;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Pruned>) {
        for pruned in inbox.drain(..) {
            self.ended(now, pruned);
        }
        for place in 0..self.jobs.len() {
            if self.jobs[place].next.is_some_and(|at| at <= now) {
                self.begin(now, place);
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.jobs.iter().filter_map(|job| job.next).min()
    }

    /// What is old today is old tomorrow.
    fn end(&mut self, _: Moment, inbox: &mut Vec<Pruned>) {
        inbox.clear();
    }
}
