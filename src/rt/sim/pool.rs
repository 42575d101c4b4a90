//! OS threads that outlive a run: starting twenty threads costs more than a short run does.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

static IDLE: Mutex<Vec<crossbeam_channel::Sender<(Job, usize)>>> = Mutex::new(Vec::new());
static NEXT_CPU: AtomicUsize = AtomicUsize::new(0);

/// Runs `job` on an idle thread, or on a new one, held to processor `cpu` if the system lets us:
/// handing the token on costs half as much when nothing has to wake another processor.
pub(super) fn run(job: Job, cpu: usize) {
    let mut job = (job, cpu);
    while let Some(worker) = IDLE.lock().pop() {
        match worker.send(job) {
            Ok(()) => return,
            Err(back) => job = back.0,
        }
    }
    let (tx, rx) = crossbeam_channel::bounded::<(Job, usize)>(1);
    let mut pending = Some(job);
    let worker = move || {
        let mut held = None;
        loop {
            let Some((job, cpu)) = pending.take().or_else(|| rx.recv().ok()) else { return };
            if held != Some(cpu) {
                hold(cpu);
                held = Some(cpu);
            }
            job();
            IDLE.lock().push(tx.clone());
        }
    };
    std::thread::Builder::new()
        .name("sim".to_owned())
        .stack_size(1 << 20)
        .spawn(worker)
        .expect("the system has a thread left for the simulation");
}

/// The processor for the next run: runs that go on side by side spread over all.
pub(super) fn next_cpu() -> usize {
    NEXT_CPU.fetch_add(1, Ordering::Relaxed)
}

fn hold(cpu: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    let allowed = ALLOWED.get_or_init(|| {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
    });
    if allowed.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    set.set(allowed[cpu % allowed.len()]);
    // Only speed depends on it, so a system that forbids it is no error.
    _ = sched_setaffinity(None, &set);
}

/// Where a simulated thread waits for the token.
#[derive(Default)]
pub(super) struct Parker {
    given: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Parker {
    pub(super) fn new() -> Arc<Parker> {
        Arc::default()
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
        self.given.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        // A thread that has not come to wait yet will find the flag.
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
