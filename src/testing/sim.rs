//! One test under one seed.

use std::fmt::Display;
use std::time::Duration;

use super::outcome::Outcome;
use super::tape::Choices;
use super::test::Test;
use crate::rt::sim::{Config, Policy, run};

/// What a simulated test may return.
pub trait Verdict {
    /// What went wrong, if anything did.
    fn error(self) -> Option<String>;
}

impl Verdict for () {
    fn error(self) -> Option<String> {
        None
    }
}

impl<E: Display> Verdict for Result<(), E> {
    fn error(self) -> Option<String> {
        self.err().map(|error| error.to_string())
    }
}

/// A simulation in the making: one seed, and how hard it tries.
#[derive(Clone)]
#[must_use = "a simulation does nothing until it is run"]
pub struct Sim {
    config: Config,
    name: Option<String>,
    again: Option<String>,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sim(seed {})", self.config.seed)
    }
}

impl Sim {
    /// A simulation without stalls, whose policy comes from the seed.
    pub fn new(seed: u64) -> Sim {
        let config = Config {
            seed,
            policy: Policy::Mixed,
            replay: None,
            stalls: (0, 1),
            stall_max: Duration::from_secs(1),
            early_wakes: 0,
            grid: Duration::from_millis(1),
            planted: None,
            steps_max: 2_000_000,
            virtual_max: None,
            wall_max: Duration::from_secs(120),
            silence_max: Duration::from_secs(20),
        };
        Sim { config, name: None, again: None }
    }

    /// The name in reports and in the replay command; the test's own thread name otherwise.
    pub fn name(mut self, name: impl Into<String>) -> Sim {
        self.name = Some(name.into());
        self
    }

    /// The command that runs this test, for reports: they put `SEED=…` before it. `make sim` or `cargo test`
    /// with the test's name otherwise.
    pub fn run_by(mut self, command: impl Into<String>) -> Sim {
        self.again = Some(command.into());
        self
    }

    /// How the next thread is chosen.
    pub fn policy(mut self, policy: Policy) -> Sim {
        self.config.policy = policy;
        self
    }

    /// Stalls the calling thread at `num` in `den` calls of the runtime for a seeded while.
    pub fn stalls(mut self, num: u32, den: u32) -> Sim {
        assert!(den > 0 && num <= den, "stalls are `num` in `den`: {num} in {den} is no fraction");
        self.config.stalls = (num, den);
        self
    }

    /// The longest stall; a second otherwise.
    pub fn stall_max(mut self, longest: Duration) -> Sim {
        self.config.stall_max = longest;
        self
    }

    /// One in so many selects that find nothing say all the same that something can be received, as the real one
    /// does now and then: a sender is heard of only after its message can be taken, and then it may be gone.
    pub fn early_wakes(mut self, one_in: u64) -> Sim {
        self.config.early_wakes = one_in;
        self
    }

    /// What stalls and latencies are rounded to, so that things happen at the same instant and have
    /// to be ordered; a millisecond otherwise.
    pub fn grid(mut self, grid: Duration) -> Sim {
        self.config.grid = grid;
        self
    }

    /// Plants a known bug, to show that it is found; see [`planted!`](crate::planted).
    pub fn plant(mut self, bug: &'static str) -> Sim {
        self.config.planted = Some(bug);
        self
    }

    /// Replays recorded choices; everything after their end is benign.
    pub fn replay(mut self, choices: Choices) -> Sim {
        self.config.replay = Some(choices);
        self
    }

    /// Fails after so many calls of the runtime; two million otherwise.
    pub fn steps_max(mut self, steps: u64) -> Sim {
        self.config.steps_max = steps;
        self
    }

    /// Fails when virtual time passes this; never otherwise.
    pub fn virtual_max(mut self, limit: Duration) -> Sim {
        self.config.virtual_max = Some(limit);
        self
    }

    /// Fails when the run takes longer than this on the wall; two minutes otherwise.
    pub fn wall_max(mut self, limit: Duration) -> Sim {
        self.config.wall_max = limit;
        self
    }

    /// Fails when a thread keeps the token for so long without a call of the runtime: it blocks where
    /// the scheduler cannot see it. 20 s otherwise, because machines are busy.
    pub fn silence_max(mut self, limit: Duration) -> Sim {
        self.config.silence_max = limit;
        self
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.config.seed
    }

    /// Runs the test on a thread of its own under the scheduler and waits for the end. The run ends
    /// when the test returns: threads still alive then are unwound at their next call.
    pub fn run<V: Verdict>(self, test: impl FnOnce(&Test) -> V + Send + 'static) -> Outcome {
        let name = self.name.unwrap_or_else(|| Test::caller().unwrap_or_else(|| "unnamed".to_owned()));
        let seed = self.config.seed;
        let finished = run(self.config, move |handle| {
            let error = test(&Test::new(handle)).error();
            if let Some(error) = error {
                panic!("the test returned an error: {error}");
            }
        });
        Outcome::new(name, seed, finished, self.again)
    }
}
