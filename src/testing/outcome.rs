//! What came of a run.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::tape::{Choices, weight};
use crate::rt::sim::{Failure, Finished, Policy};

/// What came of a run: whether it failed, and everything needed to see why and to see it again.
#[must_use = "an outcome that nobody looks at proves nothing; call assert_ok"]
pub struct Outcome {
    name: String,
    seed: u64,
    finished: Finished,
    again: String,
}

impl Outcome {
    pub(super) fn new(name: String, seed: u64, finished: Finished, again: Option<String>) -> Outcome {
        let again = again.unwrap_or_else(|| command(&name));
        Outcome { name, seed, finished, again }
    }

    /// Whether nothing went wrong.
    pub fn is_ok(&self) -> bool {
        self.finished.failure.is_none()
    }

    /// What went wrong, in a sentence.
    pub fn failure(&self) -> Option<&str> {
        self.finished.failure.as_ref().map(|failure| failure.text.as_str())
    }

    /// What two failures share that are the same bug: the place of the panic, the invariant's name.
    pub fn class(&self) -> Option<&str> {
        self.finished.failure.as_ref().map(|failure| failure.class.as_str())
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The test's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The policy the run had, also if the seed chose it.
    pub fn policy(&self) -> Policy {
        self.finished.policy
    }

    /// A number that is the same for the same trace.
    pub fn hash(&self) -> u64 {
        self.finished.hash
    }

    /// Everything that happened, a line an event.
    pub fn trace(&self) -> &str {
        self.finished.trace.text()
    }

    /// Every choice that was made.
    pub fn choices(&self) -> &Choices {
        &self.finished.choices
    }

    /// Calls of the runtime.
    pub fn steps(&self) -> u64 {
        self.finished.steps
    }

    /// How often the token went to another thread.
    pub fn handoffs(&self) -> u64 {
        self.finished.handoffs
    }

    /// How much virtual time passed.
    pub fn virtual_time(&self) -> Duration {
        self.finished.virtual_time
    }

    /// The marks that were reached.
    pub fn marks(&self) -> &BTreeSet<&'static str> {
        &self.finished.marks
    }

    /// Threads that were alive when the test returned; a test of a clean stop asserts that there are
    /// none.
    pub fn left_running(&self) -> &[String] {
        &self.finished.left
    }

    /// # Panics
    /// If the run failed: with the seed, the policy, the trace hash and the command that replays it.
    #[track_caller]
    pub fn assert_ok(&self) {
        if let Some(failure) = &self.finished.failure {
            panic!("{}", self.report(failure));
        }
    }

    /// # Panics
    /// If it failed, or threads were still alive when the test returned.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.assert_ok();
        assert!(
            self.left_running().is_empty(),
            "still running at the end: {}",
            self.left_running().join(", ")
        );
    }

    pub(super) fn report(&self, failure: &Failure) -> String {
        let lines: Vec<_> = self.trace().lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n  ");
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "simulation {name} failed: {text}\n  seed {seed}, policy {policy:?}, towpath {version}, step {step}, virtual \
             time {at:?}, trace {hash:016x}, {weight} choices that are not benign\n  replay: {replay}\nthreads:\n{threads}\
             the last of the trace:\n  {tail}\n",
            name = self.name,
            text = failure.text,
            seed = self.seed,
            policy = self.finished.policy,
            step = failure.step,
            at = failure.at,
            hash = self.finished.hash,
            weight = weight(&self.finished.choices),
            replay = self.replay_command(),
            threads = failure.threads,
        )
    }

    /// The command that plays this run again.
    pub fn replay_command(&self) -> String {
        format!("SEED={} {}", self.seed, self.again)
    }

    /// The same for choices that were kept in a file.
    pub(super) fn replay_tape(&self, path: &Path) -> String {
        format!("TAPE={} {}", path.display(), self.again)
    }
}

/// How a test is run again: by this package's Makefile, or by cargo in a package of somebody else.
fn command(name: &str) -> String {
    match std::env::var("CARGO_PKG_NAME") {
        Ok(package) if package != env!("CARGO_PKG_NAME") => {
            format!("cargo test -p {package} {name} -- --nocapture")
        }
        _ => format!("make sim TEST={name}"),
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.finished.failure {
            Some(failure) => f.write_str(&self.report(failure)),
            None => write!(f, "Outcome({}, seed {}, ok)", self.name, self.seed),
        }
    }
}
