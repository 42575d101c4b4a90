//! One test under many seeds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::outcome::Outcome;
use super::shrink::{Shrunk, shrink};
use super::sim::{Sim, Verdict};
use super::tape::{from_text, to_text};
use super::test::Test;
use crate::rt::{Lock, Rt};

/// Runs of a test under many seeds, side by side on all processors.
///
/// `fixed` seeds (0, 1, 2, …) are the same every time; as many fresh ones follow. The environment
/// decides otherwise: `SEEDS=100000` says how many, `SEED=17` plays one again and prints its trace,
/// `TAPE=file` plays a shrunk one.
#[must_use = "a sweep does nothing until it is run"]
pub struct Sweep {
    name: String,
    fixed: u64,
    fresh: u64,
    first_fresh: u64,
    configure: Arc<dyn Fn(Sim) -> Sim + Send + Sync>,
    marks: BTreeSet<&'static str>,
    shrink_runs: usize,
    stop_at_first: bool,
    environment: bool,
    asked_min: u64,
}

impl Sweep {
    /// A sweep over `fixed` seeds and as many fresh ones, with stalls.
    pub fn new(name: &str, fixed: u64) -> Sweep {
        let first_fresh = u64::from_le_bytes(Rt::real().secret()) >> 16;
        Sweep {
            name: name.to_owned(),
            fixed,
            fresh: fixed,
            first_fresh,
            configure: Arc::new(|sim| sim),
            marks: BTreeSet::new(),
            shrink_runs: 400,
            stop_at_first: true,
            environment: true,
            asked_min: 0,
        }
    }

    /// Only the fixed seeds, whatever the environment says: for tests of the harness itself, and for
    /// bugs that must be found within a stated number of seeds.
    pub fn exactly(mut self) -> Sweep {
        self.fresh = 0;
        self.environment = false;
        self
    }

    /// When the environment asks for a number of seeds, no fewer than this: for a short scenario that should
    /// show more than a long one can.
    pub fn at_least(mut self, seeds: u64) -> Sweep {
        self.asked_min = seeds;
        self
    }

    /// How each simulation is set up. Stalls of 1 in 20 are there before.
    pub fn sim(mut self, configure: impl Fn(Sim) -> Sim + Send + Sync + 'static) -> Sweep {
        self.configure = Arc::new(configure);
        self
    }

    /// Marks at least one seed must reach. See [`mark!`](crate::mark).
    pub fn must_reach(mut self, marks: &[&'static str]) -> Sweep {
        self.marks.extend(marks);
        self
    }

    /// Goes on after the first failure, to count them.
    pub fn count_failures(mut self) -> Sweep {
        self.stop_at_first = false;
        self
    }

    /// Runs the test under every seed and shrinks the first failure.
    pub fn run<V: Verdict + 'static>(self, test: impl Fn(&Test) -> V + Send + Sync + 'static) -> Swept {
        let test = Arc::new(test);
        let name = self.name.clone();
        let configure = self.configure.clone();
        let play = move |sim: Sim| {
            let test = test.clone();
            configure(sim.stalls(1, 20)).name(name.clone()).run(move |t| test(t))
        };
        let asked = if self.environment { Asked::read() } else { Asked::default() };
        if let Some(one) = asked.one {
            return self.one(one, &play);
        }
        self.many(asked.seeds, play)
    }

    fn one(self, one: One, play: &dyn Fn(Sim) -> Outcome) -> Swept {
        let outcome = match one {
            One::Seed(seed) => play(Sim::new(seed)),
            One::Tape(path) => {
                let text =
                    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("TAPE={path}: {error}"));
                let choices = from_text(&text).unwrap_or_else(|error| panic!("TAPE={path}: {error}"));
                play(Sim::new(0).replay(choices))
            }
        };
        let marks = outcome.marks().clone();
        // The marks are a matter of all seeds, not of this one.
        let mut swept = Swept::new(self.name, BTreeSet::new());
        swept.replayed = Some(outcome.trace().to_owned());
        swept.add(&outcome, marks);
        if !outcome.is_ok() {
            swept.first =
                Some(Shrunk { choices: outcome.choices().clone(), weight: (0, 0), runs: 0, outcome });
        }
        swept
    }

    fn many(self, asked: Option<u64>, play: impl Fn(Sim) -> Outcome + Send + Sync + 'static) -> Swept {
        let rt = Rt::real();
        let begun = rt.now();
        let total = asked.map_or(self.fixed + self.fresh, |seeds| seeds.max(self.asked_min));
        let (fixed, first_fresh) = (self.fixed.min(total), self.first_fresh);
        let play = Arc::new(play);
        let next = Arc::new(AtomicU64::new(0));
        let swept = Arc::new(Lock::new(Swept::new(self.name.clone(), self.marks.clone())));
        let failed: Arc<Lock<Option<(u64, Outcome)>>> = Arc::default();
        let stop_at_first = self.stop_at_first;
        let runners: Vec<_> = (0..crate::rt::parallelism())
            .map(|index| {
                let (play, next, swept, failed) = (play.clone(), next.clone(), swept.clone(), failed.clone());
                rt.spawn(format!("seeds-{index}"), move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= total {
                            return;
                        }
                        let seed = if number < fixed { number } else { first_fresh + number };
                        let outcome = play(Sim::new(seed));
                        swept.lock().add(&outcome, outcome.marks().clone());
                        if !outcome.is_ok() {
                            let mut first = failed.lock();
                            // The lowest seed, whichever processor was faster.
                            if first.as_ref().is_none_or(|(lowest, _)| number < *lowest) {
                                *first = Some((number, outcome));
                            }
                            if stop_at_first {
                                next.store(total, Ordering::Relaxed);
                            }
                        }
                    }
                })
                .expect("the system has a thread left to run seeds on")
            })
            .collect();
        for runner in runners {
            runner.join().expect("running a seed does not panic; failures are outcomes");
        }
        let mut swept = Arc::into_inner(swept).expect("every runner was joined").into_inner();
        swept.wall = rt.now().since(begun);
        if let Some((_, outcome)) = Arc::into_inner(failed).and_then(Lock::into_inner) {
            let seed = outcome.seed();
            swept.first = shrink(outcome, self.shrink_runs, |choices| play(Sim::new(seed).replay(choices)));
        }
        swept
    }
}

impl std::fmt::Debug for Sweep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sweep({}, {} seeds)", self.name, self.fixed + self.fresh)
    }
}

/// What the environment asks for.
#[derive(Default)]
struct Asked {
    seeds: Option<u64>,
    one: Option<One>,
}

enum One {
    Seed(u64),
    Tape(String),
}

impl Asked {
    fn read() -> Asked {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
        };
        let seed = number("SEED").map(One::Seed);
        Asked { seeds: number("SEEDS"), one: seed.or_else(|| std::env::var("TAPE").ok().map(One::Tape)) }
    }
}

/// What came of a sweep.
#[derive(Debug)]
#[must_use = "a sweep that nobody looks at proves nothing; call assert_ok"]
pub struct Swept {
    name: String,
    wanted: BTreeSet<&'static str>,
    marks: BTreeSet<&'static str>,
    runs: u64,
    failures: u64,
    hashes: BTreeSet<u64>,
    steps: u64,
    handoffs: u64,
    virtual_time: Duration,
    wall: Duration,
    first: Option<Shrunk>,
    replayed: Option<String>,
}

impl Swept {
    fn new(name: String, wanted: BTreeSet<&'static str>) -> Swept {
        Swept {
            name,
            wanted,
            marks: BTreeSet::new(),
            runs: 0,
            failures: 0,
            hashes: BTreeSet::new(),
            steps: 0,
            handoffs: 0,
            virtual_time: Duration::ZERO,
            wall: Duration::ZERO,
            first: None,
            replayed: None,
        }
    }

    fn add(&mut self, outcome: &Outcome, marks: BTreeSet<&'static str>) {
        self.runs += 1;
        self.failures += u64::from(!outcome.is_ok());
        self.hashes.insert(outcome.hash());
        self.marks.extend(marks);
        self.steps += outcome.steps();
        self.handoffs += outcome.handoffs();
        self.virtual_time += outcome.virtual_time();
    }

    /// How many seeds ran.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// How many of them failed.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// How many traces differ.
    pub fn distinct(&self) -> usize {
        self.hashes.len()
    }

    /// How often the token went to another thread, over all runs.
    pub fn handoffs(&self) -> u64 {
        self.handoffs
    }

    /// Virtual time over all runs.
    pub fn virtual_time(&self) -> Duration {
        self.virtual_time
    }

    /// How long it took.
    pub fn wall(&self) -> Duration {
        self.wall
    }

    /// The marks that were reached.
    pub fn marks(&self) -> &BTreeSet<&'static str> {
        &self.marks
    }

    /// The first failure, made small.
    pub fn first_failure(&self) -> Option<&Shrunk> {
        self.first.as_ref()
    }

    /// # Panics
    /// If a seed failed, with its report and the commands that replay it, or if a mark was never
    /// reached.
    #[track_caller]
    pub fn assert_ok(&self) {
        if let Some(shrunk) = &self.first {
            let (before, after) = shrunk.weight;
            let tape = self.keep_tape(shrunk);
            panic!(
                "{:?}\n{} of {} seeds failed; shrunk from {before} to {after} choices in {} runs{tape}\n{}",
                shrunk.outcome,
                self.failures,
                self.runs,
                shrunk.runs,
                self.replayed.as_deref().unwrap_or_default(),
            );
        }
        let missed: Vec<_> = self.wanted.difference(&self.marks).collect();
        assert!(missed.is_empty(), "{}: none of {} seeds reached {missed:?}", self.name, self.runs);
    }

    /// Writes the shrunk choices beside the build, where a person can play them again.
    fn keep_tape(&self, shrunk: &Shrunk) -> String {
        let folder = std::path::Path::new("target/sim");
        let path = folder.join(format!("{}-{}.tape", self.name.replace("::", "-"), shrunk.outcome.seed()));
        let written =
            std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, to_text(&shrunk.choices)));
        match written {
            Ok(()) => format!("; replay the small one: {}", shrunk.outcome.replay_tape(&path)),
            Err(error) => format!("; its tape could not be kept: {error}"),
        }
    }
}
