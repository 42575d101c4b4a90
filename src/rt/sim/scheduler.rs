//! The scheduler: hands the token from thread to thread and watches over the run.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::handle::Handle;
use super::pool::Berth;
use super::state::{State, Status, Tid, Until, Why, nanos};
use super::tape::Choices;
use super::trace::{Kind, Told, Trace};
use crate::rt::lock::assert_none_held;
use crate::rt::thread::message;
use crate::rt::{Op, marks};
use crate::state::time::Moment;

/// How the next runner is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// One of the other two or this with a rate of its own, by the seed.
    Mixed,
    /// At each facade call, once in so many, another runnable thread goes on.
    Random {
        /// How rarely: 2 is every other call.
        one_in: u32,
    },
    /// A thread runs until it waits. Finds what needs long uninterrupted stretches.
    RunToBlock,
    /// Priorities with a few seeded change points (Burckhardt and others, 2010): finds bugs that need
    /// few but exact preemptions.
    Pct {
        /// How many times a running thread falls to the lowest priority.
        changes: u32,
    },
}

#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) policy: Policy,
    pub(crate) replay: Option<Choices>,
    /// `num` in `den` facade calls stall their thread.
    pub(crate) stalls: (u32, u32),
    pub(crate) stall_max: Duration,
    /// One in so many selects that find nothing say that something is ready; 0 is none.
    pub(crate) early_wakes: u64,
    pub(crate) grid: Duration,
    pub(crate) planted: Option<&'static str>,
    pub(crate) steps_max: u64,
    pub(crate) virtual_max: Option<Duration>,
    pub(crate) wall_max: Duration,
    pub(crate) silence_max: Duration,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// What two runs must share to count as the same failure while shrinking.
    pub(crate) class: String,
    pub(crate) text: String,
    pub(crate) threads: String,
    pub(crate) at: Moment,
    pub(crate) step: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    Panic,
    Deadlock,
    Invariant,
    Trap,
    Limit,
    Blocked,
}

/// What is left of a run when it has ended.
pub(crate) struct Finished {
    pub(crate) failure: Option<Failure>,
    pub(crate) hash: u64,
    pub(crate) trace: Told,
    pub(crate) choices: Choices,
    pub(crate) steps: u64,
    pub(crate) handoffs: u64,
    pub(crate) virtual_time: Duration,
    pub(crate) marks: BTreeSet<&'static str>,
    pub(crate) policy: Policy,
    /// Threads that were still alive when the test returned.
    pub(crate) left: Vec<String>,
}

/// What must hold of the latest facts of all threads.
pub(super) type Invariant = Box<dyn Fn(&BTreeMap<String, Box<dyn Any + Send>>) -> Result<(), String> + Send>;

pub(crate) struct Scheduler {
    pub(super) state: Mutex<State>,
    pub(super) facts: Mutex<BTreeMap<String, Box<dyn Any + Send>>>,
    pub(super) invariants: Mutex<Vec<(String, Invariant)>>,
    pub(super) seed: u64,
    planted: Option<&'static str>,
    /// Which processor the threads of the run are held to.
    place: usize,
    /// For the watchdog, which must not wait for the state.
    progress: AtomicU64,
    ended: AtomicBool,
    runner: std::thread::Thread,
}

/// The private payload with which a thread leaves a run that has ended.
struct Unwinding;

/// Tells the end of a run from a panic.
pub(crate) fn as_unwinding(payload: Box<dyn Any + Send>) -> Result<Box<dyn Any + Send>, Box<dyn Any + Send>> {
    if payload.is::<Unwinding>() { Ok(payload) } else { Err(payload) }
}

thread_local! {
    static CURRENT: RefCell<Option<(Arc<Scheduler>, Tid)>> = const { RefCell::new(None) };
    static LAST_PANIC: Cell<Option<(String, String)>> = const { Cell::new(None) };
}

/// Panics inside a simulation are reported with it, not on the terminal in between.
fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let simulated = CURRENT.try_with(|current| current.try_borrow().is_ok_and(|c| c.is_some()));
            if simulated != Ok(true) {
                return before(info);
            }
            let place = info.location().map_or_else(String::new, ToString::to_string);
            let text = message(info.payload());
            LAST_PANIC.with(|last| last.set(Some((place, text))));
        }));
    });
}

/// Runs `test` as thread 0 of a simulation and waits for its end.
pub(crate) fn run(config: Config, test: impl FnOnce(Handle) + Send + 'static) -> Finished {
    listen_to_panics();
    let berth = Berth::take();
    let core = Scheduler::new(config, berth.place());
    let handle = Handle { core: core.clone(), node: 0 };
    let first = core.state.lock().add_task("test".to_owned(), 0);
    core.start(first, move || test(handle));
    core.pass(core.state.lock(), first);
    core.watch()
}

impl Scheduler {
    fn new(config: Config, place: usize) -> Arc<Scheduler> {
        let (seed, planted) = (config.seed, config.planted);
        Arc::new(Scheduler {
            state: Mutex::new(State::new(config)),
            facts: Mutex::default(),
            invariants: Mutex::default(),
            seed,
            planted,
            place,
            progress: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            runner: std::thread::current(),
        })
    }

    /// Whether the calling thread is this one.
    pub(super) fn is_current(&self, tid: Tid) -> bool {
        CURRENT.with(|current| {
            current
                .borrow()
                .as_ref()
                .is_some_and(|(core, me)| std::ptr::eq(Arc::as_ptr(core), self) && *me == tid)
        })
    }

    /// Says what a task does once the token comes to it for the first time.
    pub(super) fn start(self: &Arc<Scheduler>, tid: Tid, body: impl FnOnce() + Send + 'static) {
        let core = self.clone();
        let parker = self.state.lock().tasks[tid].parker.clone();
        let job = move || {
            CURRENT.with(|current| *current.borrow_mut() = Some((core.clone(), tid)));
            LAST_PANIC.with(|last| last.set(None));
            marks::begin(core.planted);
            let over = {
                let state = core.state.lock();
                state.ending || state.tasks[tid].killed
            };
            // What the body captured is dropped under the same roof: its drops are facade calls too.
            let outcome = catch_unwind(AssertUnwindSafe(move || {
                if over {
                    let _captured = body;
                    resume_unwind(Box::new(Unwinding));
                }
                body();
            }));
            let panic = outcome.err().filter(|payload| !payload.is::<Unwinding>());
            let panic = panic.map(|payload| {
                LAST_PANIC.with(Cell::take).unwrap_or_else(|| (String::new(), message(payload.as_ref())))
            });
            let reached = marks::end();
            CURRENT.with(|current| *current.borrow_mut() = None);
            core.finish(tid, panic, reached);
        };
        parker.begin_with(Box::new(job), self.place);
    }

    /// The thread has ended: the token goes on, or the run is over.
    fn finish(&self, tid: Tid, panic: Option<(String, String)>, reached: BTreeSet<&'static str>) {
        let mut state = self.state.lock();
        state.marks.extend(reached);
        if let Some((place, text)) = panic {
            let name = state.tasks[tid].name.clone();
            let said = format!("thread {name} panicked at {place}: {text}");
            state.fail(FailureKind::Panic, format!("panic at {place}"), said);
        }
        let at = state.now;
        state.trace.add(at, tid, Kind::End, 0);
        state.tasks[tid].status = Status::Done;
        state.runnable.retain(|other| *other != tid);
        state.live -= 1;
        for joiner in std::mem::take(&mut state.tasks[tid].joiners) {
            state.make_runnable(joiner);
        }
        if tid == 0 && !state.ending {
            state.left = state.alive();
            state.end();
        }
        if let Some(Until::Gone(node)) = state.driver
            && !state.tasks.iter().any(|task| task.node == node && task.status != Status::Done)
        {
            state.wake_driver();
        }
        if state.live == 0 {
            drop(state);
            self.ended.store(true, Ordering::Release);
            self.runner.unpark();
            return;
        }
        let next = state.next_runner();
        self.pass(state, next);
    }

    fn pass(&self, mut state: MutexGuard<'_, State>, next: Tid) {
        let at = state.now;
        state.trace.add(at, next, Kind::Run, 0);
        state.handoffs += 1;
        state.holder = Some(next);
        let parker = state.tasks[next].parker.clone();
        drop(state);
        parker.give();
    }

    /// Waits for the end of the run, and gives up on threads that block where the scheduler cannot
    /// see them.
    fn watch(self: Arc<Scheduler>) -> Finished {
        let (wall_max, silence_max) = {
            let state = self.state.lock();
            (state.config.wall_max, state.config.silence_max)
        };
        let begun = Instant::now();
        let mut seen = (0, begun);
        while !self.ended.load(Ordering::Acquire) {
            std::thread::park_timeout(Duration::from_millis(250));
            let progress = self.progress.load(Ordering::Relaxed);
            if progress != seen.0 {
                seen = (progress, Instant::now());
            }
            if seen.1.elapsed() > silence_max && !self.ended.load(Ordering::Acquire) {
                let mut state = self.state.lock();
                let holder =
                    state.holder.map_or_else(|| "nobody".to_owned(), |tid| state.tasks[tid].name.clone());
                let said = format!(
                    "thread {holder} has held the token for {silence_max:?} without a call to the runtime: it blocks \
                     or spins where the simulator cannot see it (a bare channel, a socket, a lock, std::thread::sleep)"
                );
                state.fail(FailureKind::Blocked, format!("blocked: {holder}"), said);
                drop(state);
                break;
            }
            if begun.elapsed() > wall_max {
                let mut state = self.state.lock();
                let said = format!("the run took longer than its limit of {wall_max:?} on the wall");
                state.fail(FailureKind::Limit, "limit: wall".to_owned(), said);
                // Its threads leave at their next facade call; silence is what ends the wait otherwise.
            }
        }
        let mut state = self.state.lock();
        let hash = state.trace.hash();
        let trace = std::mem::replace(&mut state.trace, Trace::new());
        let threads = state.tasks.iter().map(|task| task.name.clone()).collect();
        Finished {
            failure: state.failure.clone(),
            hash,
            trace: Told::new(trace, threads, state.chans.names()),
            choices: state.tapes.choices(),
            steps: state.steps,
            handoffs: state.handoffs,
            virtual_time: Duration::from_nanos(state.now),
            marks: state.marks.clone(),
            policy: state.policy,
            left: state.left.clone(),
        }
    }
}

/// What a facade call may do.
pub(super) enum Entry<'a> {
    /// The caller holds the token.
    Running(MutexGuard<'a, State>, Tid),
    /// The caller is panicking, or does not belong to the run (it lets go of something afterwards):
    /// it must neither wait nor unwind.
    Degraded(MutexGuard<'a, State>),
}

impl Scheduler {
    /// Where every facade call begins: traps, stalls and preemption happen here.
    pub(super) fn enter(&self, op: Op, tags: &[&str]) -> Entry<'_> {
        assert_none_held(op);
        let Some(me) = self.me(op) else { return Entry::Degraded(self.state.lock()) };
        let mut state = self.leave_if_over(self.state.lock(), me);
        state.steps += 1;
        self.progress.store(state.steps, Ordering::Relaxed);
        if let Some(said) = state.over_limit() {
            state.fail(FailureKind::Limit, format!("limit: {}", said.0), said.1);
            state = self.leave_if_over(state, me);
        }
        if me != 0 && state.traps.any_open() {
            let name = state.tasks[me].name.clone();
            let now = state.now;
            if let Some(hit) = state.traps.arrive(me, &name, op, tags, now) {
                state.trace.add(now, me, Kind::Trapped, 0);
                if let Some(Until::Trapped(awaited, _)) = state.driver
                    && hit.contains(&awaited)
                {
                    state.wake_driver();
                }
                state = self.block(state, me, Why::Trap, None);
                let now = state.now;
                state.trace.add(now, me, Kind::Released, 0);
            }
        }
        if me != 0 && state.config.stalls.0 > 0 {
            state = self.maybe_stall(state, me);
        }
        state = self.maybe_yield(state, me);
        Entry::Running(state, me)
    }

    /// Bookkeeping that neither waits nor counts as a step: letting go of a channel's end.
    pub(super) fn touch(&self) -> (MutexGuard<'_, State>, Tid) {
        let me = CURRENT.with(|current| current.borrow().as_ref().map_or(0, |(_, tid)| *tid));
        (self.state.lock(), me)
    }

    /// The calling thread, if it may take part.
    fn me(&self, op: Op) -> Option<Tid> {
        if std::thread::panicking() {
            return None;
        }
        CURRENT.with(|current| match &*current.borrow() {
            Some((core, tid)) if std::ptr::eq(Arc::as_ptr(core), self) => Some(*tid),
            Some(_) => panic!("{op:?} on another simulation's runtime: each run has its own"),
            None if self.ended.load(Ordering::Acquire) => None,
            None => panic!(
                "{op:?} on a simulated runtime from a thread the simulation did not start: use Rt::spawn, and make the \
                 runtime's things inside Sim::run"
            ),
        })
    }

    fn leave_if_over<'a>(&self, state: MutexGuard<'a, State>, me: Tid) -> MutexGuard<'a, State> {
        if state.ending || state.tasks[me].killed {
            drop(state);
            resume_unwind(Box::new(Unwinding));
        }
        state
    }

    /// Gives the token away until something makes this thread runnable and the token comes back.
    pub(super) fn block<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        me: Tid,
        why: Why,
        deadline: Option<u64>,
    ) -> MutexGuard<'a, State> {
        state.tasks[me].status = Status::Blocked(why);
        state.runnable.retain(|tid| *tid != me);
        if let Some(deadline) = deadline.filter(|deadline| *deadline != u64::MAX) {
            state.tasks[me].deadline = Some(deadline);
            state.timers.insert((deadline, me));
        }
        let next = state.next_runner();
        self.hand_over(state, me, next)
    }

    fn hand_over<'a>(&'a self, state: MutexGuard<'a, State>, me: Tid, next: Tid) -> MutexGuard<'a, State> {
        if next == me {
            return self.leave_if_over(state, me);
        }
        let parker = state.tasks[me].parker.clone();
        self.pass(state, next);
        parker.wait();
        self.leave_if_over(self.state.lock(), me)
    }

    fn maybe_stall<'a>(&'a self, mut state: MutexGuard<'a, State>, me: Tid) -> MutexGuard<'a, State> {
        let (num, den) = state.config.stalls;
        // 0 is benign, so the stalls sit at the upper end.
        if state.tapes.draw("stall", u64::from(den)) < u64::from(den - num.min(den)) {
            return state;
        }
        let grid = nanos(state.config.grid).max(1);
        let longest = (nanos(state.config.stall_max) / grid).max(1);
        let doublings = u64::from(u64::BITS - longest.leading_zeros());
        let ticks = (1 << state.tapes.draw("stall for", doublings)).min(longest);
        let until = state.now + ticks * grid;
        let now = state.now;
        state.trace.add(now, me, Kind::Stall, until);
        self.block(state, me, Why::Stall, Some(until))
    }

    fn maybe_yield<'a>(&'a self, mut state: MutexGuard<'a, State>, me: Tid) -> MutexGuard<'a, State> {
        if state.runnable.len() < 2 {
            return state;
        }
        let next = match state.policy {
            Policy::RunToBlock | Policy::Mixed => return state,
            Policy::Random { one_in } => {
                let one_in = u64::from(one_in.max(2));
                if state.tapes.draw("switch", one_in) != one_in - 1 {
                    return state;
                }
                let others = state.runnable.len() as u64 - 1;
                let pick = state.tapes.draw("pick", others) as usize;
                let next = state.runnable.iter().filter(|tid| **tid != me).nth(pick).copied();
                next.unwrap_or(me)
            }
            Policy::Pct { .. } => {
                let step = state.steps;
                if state.change_points.remove(&step) {
                    state.lowest -= 1;
                    state.tasks[me].priority = state.lowest;
                }
                state.highest().unwrap_or(me)
            }
        };
        self.hand_over(state, me, next)
    }
}
