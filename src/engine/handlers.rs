//! Threads for handlers that block: as many as are busy at once, up to a bound, and none while all is quiet.
//!
//! A job gets a thread at once or comes back; it never waits, because whoever brings it is a room.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::rt::{Lock, Rt, Sender, Thread};

/// How long a thread without a job stays: long enough to serve a trickle without starting anew.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Dropping it waits for the jobs that run: cancel them first.
pub struct Handlers {
    rt: Rt,
    max: usize,
    shared: Arc<Lock<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// Threads that wait, newest last: the newest is the warmest, and the oldest gets to leave.
    idle: Vec<(u64, Sender<Job>)>,
    threads: Vec<Thread<()>>,
    alive: usize,
    next: u64,
    ended: bool,
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handlers({} of {})", self.busy(), self.max)
    }
}

impl Handlers {
    /// A pool of at most `max` threads.
    pub fn new(rt: &Rt, max: usize) -> Handlers {
        Handlers { rt: rt.clone(), max, shared: Arc::default() }
    }

    /// How many jobs run.
    pub fn busy(&self) -> usize {
        let shared = self.shared.lock();
        shared.alive - shared.idle.len()
    }

    /// Runs a job. False when every thread is busy and there may be no more, or the system has none to give;
    /// the job is then dropped.
    #[must_use]
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let job: Job = Box::new(job);
        let (waiting, over) = {
            let mut shared = self.shared.lock();
            if shared.ended {
                return false;
            }
            let over: Vec<Thread<()>> =
                shared.threads.extract_if(.., |thread| thread.is_finished()).collect();
            let waiting = shared.idle.pop();
            if waiting.is_none() && shared.alive >= self.max {
                return false;
            }
            shared.alive += usize::from(waiting.is_none());
            shared.next += 1;
            (waiting.ok_or(shared.next), over)
        };
        drop(over);
        match waiting {
            // It holds one job and has none: it was in the list.
            Ok((_, thread)) => thread.try_send(job).is_ok(),
            Err(number) => self.start(number, job),
        }
    }

    fn start(&self, number: u64, job: Job) -> bool {
        let (rt, shared) = (self.rt.clone(), self.shared.clone());
        let started = self.rt.spawn(format!("handlers-{number}"), move || serve(&rt, &shared, number, job));
        let mut shared = self.shared.lock();
        match started {
            Ok(thread) => {
                shared.threads.push(thread);
                true
            }
            Err(_) => {
                shared.alive -= 1;
                false
            }
        }
    }
}

fn serve(rt: &Rt, shared: &Lock<Shared>, number: u64, job: Job) {
    let (tx, jobs) = rt.channel::<Job>("handlers", 1);
    let mut job = Some(job);
    loop {
        if let Some(job) = job.take() {
            // Jobs answer for their own panics; one that does not must not take the thread with it.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
        {
            let mut shared = shared.lock();
            if shared.ended {
                shared.alive -= 1;
                return;
            }
            shared.idle.push((number, tx.clone()));
        }
        job = jobs.recv_deadline(rt.now() + IDLE).ok();
        if job.is_none() {
            let mut shared = shared.lock();
            let listed = shared.idle.iter().position(|(idle, _)| *idle == number);
            if let Some(at) = listed {
                shared.idle.remove(at);
                shared.alive -= 1;
                return;
            }
            drop(shared);
            // Taken out of the list in this very moment, to be given a job or an end.
            match jobs.recv() {
                Ok(late) => job = Some(late),
                Err(_) => return,
            }
        }
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        let (threads, idle) = {
            let mut shared = self.shared.lock();
            shared.ended = true;
            (std::mem::take(&mut shared.threads), std::mem::take(&mut shared.idle))
        };
        for (_, thread) in idle {
            // Wakes it, so that it sees the end.
            let _ = thread.try_send(Box::new(|| {}));
        }
        drop(threads);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_gets_a_thread_or_comes_back() {
        let rt = Rt::real();
        let pool = Handlers::new(&rt, 2);
        let (hold, held) = rt.channel::<()>("hold", 1);
        let (started, starts) = rt.channel::<()>("started", 4);
        let (release, released) = rt.channel::<()>("release", 1);
        let begun = started.clone();
        assert!(pool.run(move || {
            begun.send(()).unwrap();
            held.recv().unwrap();
        }));
        assert!(pool.run(move || {
            started.send(()).unwrap();
            released.recv().unwrap();
        }));
        starts.recv().unwrap();
        starts.recv().unwrap();
        assert!(!pool.run(|| {}), "both threads are busy");
        hold.send(()).unwrap();
        release.send(()).unwrap();
        drop(pool);
    }

    #[test]
    fn one_thread_serves_one_job_after_the_other_and_survives_a_panic() {
        let rt = Rt::real();
        let pool = Handlers::new(&rt, 1);
        let (done, dones) = rt.channel::<u64>("done", 1);
        for n in 0..50 {
            let done = done.clone();
            // The thread is listed as idle a moment after the job before said that it was done.
            while !pool.run({
                let done = done.clone();
                move || {
                    done.send(n).unwrap();
                    assert!(n % 2 == 0, "half of them panic, as is meant");
                }
            }) {
                std::thread::yield_now();
            }
            assert_eq!(dones.recv(), Ok(n));
        }
        drop(pool);
    }
}
