//! Who can run, who waits for what, what time it is: the data behind the token.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::channel::{Chans, Waiting};
use super::pool::Parker;
use super::scheduler::{Config, Failure, FailureKind, Policy};
use super::tape::Tapes;
use super::trace::{Kind, Trace};
use super::trap::{TrapId, Traps};
use crate::rt::rand::{SplitMix, mix};
use crate::state::time::{Moment, Wall};

/// Index of a simulated thread; the test itself is 0.
pub(super) type Tid = usize;

/// Simulations begin at 2024-01-01T00:00:00Z, as test clocks before this one did.
const BEGINNING: i64 = 1_704_067_200_000_000;

pub(super) struct State {
    pub(super) config: Config,
    pub(super) now: u64,
    pub(super) wall_offset: i64,
    pub(super) steps: u64,
    pub(super) handoffs: u64,
    pub(super) tasks: Vec<Task>,
    pub(super) runnable: Vec<Tid>,
    pub(super) timers: BTreeSet<(u64, Tid)>,
    pub(super) chans: Chans,
    pub(super) tapes: Tapes,
    pub(super) policy: Policy,
    /// Steps at which the running thread falls to the lowest priority.
    pub(super) change_points: BTreeSet<u64>,
    pub(super) lowest: i64,
    pub(super) trace: Trace,
    pub(super) traps: Traps,
    pub(super) driver: Option<Until>,
    /// Who holds the token.
    pub(super) holder: Option<Tid>,
    pub(super) failure: Option<Failure>,
    pub(super) ending: bool,
    pub(super) live: usize,
    pub(super) left: Vec<String>,
    pub(super) marks: BTreeSet<&'static str>,
    pub(super) secrets: SplitMix,
    pub(super) nodes: Vec<String>,
}

pub(super) struct Task {
    pub(super) name: String,
    pub(super) node: u32,
    pub(super) status: Status,
    pub(super) parker: Arc<Parker>,
    pub(super) deadline: Option<u64>,
    pub(super) killed: bool,
    pub(super) joiners: Vec<Tid>,
    pub(super) priority: i64,
    pub(super) waits: Vec<Waiting>,
}

/// What a thread is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Runnable,
    Blocked(Why),
    Done,
}

/// What a blocked thread waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Channels,
    Sleep,
    Stall,
    Join(Tid),
    Trap,
    Driver,
}

/// What the test waits for while it drives the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Nobody can run at this moment.
    Idle,
    /// Nobody can run and this moment has come; every deadline on the way was met.
    Moment(u64),
    /// The events of the next deadline are done.
    NextEvent,
    /// A trap holds a call.
    Trapped(TrapId, Option<u64>),
    /// Every thread of a node is gone.
    Gone(u32),
}

impl State {
    pub(super) fn new(config: Config) -> State {
        let seed = config.seed;
        let mut tapes = Tapes::new(seed, config.replay.clone());
        let policy = match config.policy {
            Policy::Mixed => match tapes.draw("policy", 6) {
                0 => Policy::RunToBlock,
                1 => Policy::Random { one_in: 2 },
                2 | 3 => Policy::Random { one_in: 4 },
                4 => Policy::Random { one_in: 16 },
                _ => Policy::Pct { changes: 3 },
            },
            chosen => chosen,
        };
        let mut change_points = BTreeSet::new();
        if let Policy::Pct { changes } = policy {
            // Among the first thousands of steps; later ones find the same by another seed.
            change_points.extend((0..changes).map(|_| tapes.draw("change", 4_000)).filter(|step| *step > 0));
        }
        State {
            config,
            now: 0,
            wall_offset: 0,
            steps: 0,
            handoffs: 0,
            tasks: Vec::new(),
            runnable: Vec::new(),
            timers: BTreeSet::new(),
            chans: Default::default(),
            tapes,
            policy,
            change_points,
            lowest: 0,
            trace: Trace::new(),
            traps: Traps::default(),
            driver: None,
            holder: None,
            failure: None,
            ending: false,
            live: 0,
            left: Vec::new(),
            marks: BTreeSet::new(),
            secrets: SplitMix(mix(seed ^ 0x5ec2_e75e)),
            nodes: vec!["test".to_owned()],
        }
    }

    pub(super) fn add_task(&mut self, name: String, node: u32) -> Tid {
        let tid = self.tasks.len();
        // Drawn for every policy, so that a tape fits whichever policy replays it.
        let priority = match self.policy {
            Policy::Pct { .. } => self.tapes.draw("priority", 1 << 16) as i64,
            _ => 0,
        };
        self.tasks.push(Task {
            name,
            node,
            status: Status::Runnable,
            parker: Parker::new(),
            deadline: None,
            killed: false,
            joiners: Vec::new(),
            priority,
            waits: Vec::new(),
        });
        self.runnable.push(tid);
        self.live += 1;
        tid
    }

    pub(super) fn make_runnable(&mut self, tid: Tid) {
        if !matches!(self.tasks[tid].status, Status::Blocked(_)) {
            return;
        }
        self.tasks[tid].status = Status::Runnable;
        if let Some(deadline) = self.tasks[tid].deadline.take() {
            self.timers.remove(&(deadline, tid));
        }
        for waiting in std::mem::take(&mut self.tasks[tid].waits) {
            self.chans.forget(waiting, tid);
        }
        self.runnable.push(tid);
    }

    pub(super) fn wake_driver(&mut self) {
        self.driver = None;
        self.make_runnable(0);
    }

    pub(super) fn highest(&self) -> Option<Tid> {
        // The first of equals: the order of becoming runnable.
        let mut best: Option<Tid> = None;
        for tid in &self.runnable {
            if best.is_none_or(|best| self.tasks[*tid].priority > self.tasks[best].priority) {
                best = Some(*tid);
            }
        }
        best
    }

    /// Who runs now that the holder cannot; moves time if nobody can.
    pub(super) fn next_runner(&mut self) -> Tid {
        loop {
            if self.ending {
                // In order: nothing is left to explore.
                let alive = self.tasks.iter().position(|task| task.status != Status::Done);
                return alive.expect("the caller counted a live thread");
            }
            if !self.runnable.is_empty() {
                if let Policy::Pct { .. } = self.policy {
                    return self.highest().expect("somebody is runnable");
                }
                let pick = self.tapes.draw("pick", self.runnable.len() as u64) as usize;
                return self.runnable[pick];
            }
            self.move_on();
        }
    }

    /// Nobody can run: the test goes on, or time does, or it is a deadlock.
    pub(super) fn move_on(&mut self) {
        let next = self.timers.first().copied();
        match (self.driver, next) {
            (Some(Until::Idle | Until::Gone(_) | Until::Trapped(_, None)), _) => self.wake_driver(),
            (Some(Until::Moment(until) | Until::Trapped(_, Some(until))), next)
                if next.is_none_or(|(at, _)| at > until) =>
            {
                self.now = self.now.max(until);
                self.wake_driver();
            }
            (Some(Until::NextEvent), None) => self.wake_driver(),
            (driver, Some((at, _))) => {
                self.now = self.now.max(at);
                while let Some((due, tid)) = self.timers.first().copied()
                    && due <= at
                {
                    self.timers.remove(&(due, tid));
                    self.tasks[tid].deadline = None;
                    self.make_runnable(tid);
                }
                if driver == Some(Until::NextEvent) {
                    self.driver = Some(Until::Idle);
                }
                if let Some(limit) = self.config.virtual_max
                    && self.now > nanos(limit)
                {
                    let said = format!("the run passed its limit of {limit:?} of virtual time");
                    self.fail(FailureKind::Limit, "limit: virtual time".to_owned(), said);
                }
            }
            (None | Some(Until::Moment(_) | Until::Trapped(..)), None) => {
                let said = "deadlock: no thread can run and no deadline is set".to_owned();
                self.fail(FailureKind::Deadlock, "deadlock".to_owned(), said);
            }
        }
    }

    pub(super) fn over_limit(&self) -> Option<(&'static str, String)> {
        (self.steps > self.config.steps_max).then(|| {
            let max = self.config.steps_max;
            (
                "steps",
                format!("the run passed its limit of {max} steps: something spins, or the limit is low"),
            )
        })
    }

    /// The first failure counts; what comes after it is the run falling apart.
    pub(super) fn fail(&mut self, kind: FailureKind, class: String, text: String) {
        if self.failure.is_none() && !self.ending {
            let threads = self.table();
            let at = Moment(self.now);
            let now = self.now;
            self.trace.note(now, 0, Kind::Fail, text.clone());
            self.failure = Some(Failure { kind, class, text, threads, at, step: self.steps });
        }
        self.end();
    }

    pub(super) fn end(&mut self) {
        self.ending = true;
        self.traps.close_all();
    }

    pub(super) fn alive(&self) -> Vec<String> {
        let alive = self.tasks.iter().skip(1).filter(|task| task.status != Status::Done);
        alive.map(|task| task.name.clone()).collect()
    }

    /// Every thread that is alive and what it waits for.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for task in self.tasks.iter().filter(|task| task.status != Status::Done) {
            let node = &self.nodes[task.node as usize];
            let waits = match task.status {
                Status::Runnable => "can run".to_owned(),
                Status::Done => continue,
                Status::Blocked(Why::Channels) => {
                    let on: Vec<_> = task.waits.iter().map(|waiting| self.chans.describe(*waiting)).collect();
                    if on.is_empty() {
                        "waits for nothing".to_owned()
                    } else {
                        format!("waits {}", on.join(" or "))
                    }
                }
                Status::Blocked(Why::Sleep) => "sleeps".to_owned(),
                Status::Blocked(Why::Stall) => "is stalled".to_owned(),
                Status::Blocked(Why::Join(tid)) => format!("joins {}", self.tasks[tid].name),
                Status::Blocked(Why::Trap) => "is held by a trap".to_owned(),
                Status::Blocked(Why::Driver) => "drives the clock".to_owned(),
            };
            let until = task.deadline.map_or_else(String::new, |at| format!(" until {:?}", Moment(at)));
            // Writing into a String cannot fail.
            _ = writeln!(text, "  {:<24} {:<8} {waits}{until}", task.name, node);
        }
        text
    }

    pub(super) fn draw(&mut self, tape: &'static str, n: u64) -> u64 {
        self.tapes.draw(tape, n)
    }

    pub(super) fn wall(&self) -> Wall {
        Wall(BEGINNING + (self.now / 1_000) as i64 + self.wall_offset)
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
