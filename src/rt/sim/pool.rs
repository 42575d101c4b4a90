//! OS threads that outlive a run: starting twenty threads costs more than a short run does.
//!
//! A thread belongs to one processor and stays there: handing the token on costs half as much when nothing has
//! to wake another processor, and moving a thread costs more than waking it.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// What there is for each processor we may use.
static PLACES: OnceLock<Vec<Place>> = OnceLock::new();

/// How many runs are at each place.
static RUNS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A processor, and the threads there that have nothing to do.
struct Place {
    /// None where the system does not say which processors there are.
    cpu: Option<usize>,
    idle: Mutex<Vec<Arc<Seat>>>,
}

/// Where an idle thread finds its next job.
struct Seat {
    job: Mutex<Option<Job>>,
    thread: Thread,
}

fn places() -> &'static [Place] {
    PLACES.get_or_init(|| {
        let place = |cpu| Place { cpu, idle: Mutex::default() };
        let cpus = processors();
        if cpus.is_empty() {
            vec![place(None)]
        } else {
            cpus.into_iter().map(|cpu| place(Some(cpu))).collect()
        }
    })
}

/// Runs `job` on an idle thread of a place, or on a new one.
fn run(job: Job, at: usize) {
    let place = &places()[at];
    // The one that was busy last: its stack is still near.
    let seat = place.idle.lock().pop();
    if let Some(seat) = seat {
        *seat.job.lock() = Some(job);
        seat.thread.unpark();
        return;
    }
    let worker = move || {
        hold(place.cpu);
        let seat = Arc::new(Seat { job: Mutex::new(None), thread: std::thread::current() });
        let mut job = job;
        loop {
            job();
            place.idle.lock().push(seat.clone());
            job = loop {
                let next = seat.job.lock().take();
                match next {
                    Some(next) => break next,
                    None => std::thread::park(),
                }
            };
        }
    };
    std::thread::Builder::new()
        .name("sim".to_owned())
        .stack_size(1 << 20)
        .spawn(worker)
        .expect("the system has a thread left for the simulation");
}

/// A run's processor, for as long as it lasts: the one with the fewest runs, so that runs that go on side by
/// side do not share one while another has nothing to do.
pub(super) struct Berth(usize);

impl Berth {
    pub(super) fn take() -> Berth {
        let mut runs = RUNS.lock();
        runs.resize(places().len(), 0);
        let least = runs.iter().enumerate().min_by_key(|(_, count)| **count);
        let at = least.map_or(0, |(at, _)| at);
        runs[at] += 1;
        Berth(at)
    }

    pub(super) fn place(&self) -> usize {
        self.0
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        RUNS.lock()[self.0] -= 1;
    }
}

fn processors() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

fn hold(cpu: Option<usize>) {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let Some(cpu) = cpu else { return };
    let mut set = CpuSet::new();
    set.set(cpu);
    // Only speed depends on it, so a system that forbids it is no error.
    _ = sched_setaffinity(None, &set);
}

/// Where a simulated thread waits for the token. Its OS thread is taken from the pool when the token comes for
/// the first time, not before: one that woke only to wait would cost as much as a turn of its own.
#[derive(Default)]
pub(super) struct Parker {
    first: Mutex<Option<(Job, usize)>>,
    given: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Parker {
    pub(super) fn new() -> Arc<Parker> {
        Arc::default()
    }

    /// What runs, and where, once the token comes.
    pub(super) fn begin_with(&self, job: Job, place: usize) {
        *self.first.lock() = Some((job, place));
    }

    /// Called by the thread itself, before anybody can give it the token twice.
    pub(super) fn wait(&self) {
        self.thread.get_or_init(std::thread::current);
        // Pairs with the fence in `give`: of the two, at least one sees what the other wrote.
        fence(Ordering::SeqCst);
        while !self.given.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }

    pub(super) fn give(&self) {
        let first = self.first.lock().take();
        if let Some((job, place)) = first {
            run(job, place);
            return;
        }
        self.given.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        // A thread that has not come to wait yet will find the flag.
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
