//! How much a test does: a slice in `make test`, everything in `make faults` and `make soak`.
//!
//! The convention: a test that repeats a fault is called `fault_*` and asks [`cycles`] how often; one that
//! runs for a time is called `soak_*` and asks [`lasting`] how long. Both run in every `cargo test`, with
//! the slice they name.

use std::io::Write;
use std::time::{Duration, Instant};

/// Says what was not run and what it lacks: the test passes, and somebody has to know.
pub(crate) fn not_run(what: &str) {
    remark(&format!("NOT RUN: {what}"));
}

/// Says something past the test's own capture.
pub(crate) fn remark(what: &str) {
    // Nobody can be told that nobody can be told.
    let _ = writeln!(std::io::stderr(), "\n*** {what}\n");
}

/// How often to do it: `CYCLES` if that is set, `whole` with `SLOW=1`, `slice` otherwise.
pub(crate) fn cycles(slice: u64, whole: u64) -> u64 {
    number("CYCLES").unwrap_or(if slow() { whole } else { slice })
}

/// Whether everything is asked for: `SLOW=1`.
pub(crate) fn slow() -> bool {
    std::env::var_os("SLOW").is_some_and(|said| said != "0")
}

/// Whether a soak is asked for by name, and not only its slice.
pub(crate) fn soaking() -> bool {
    number("SOAK_MINUTES").is_some()
}

/// How long to go on: `SOAK_MINUTES` if that is set, `slice` otherwise.
pub(crate) fn lasting(slice: Duration) -> Until {
    let whole = number("SOAK_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    Until(Instant::now() + whole.unwrap_or(slice))
}

/// When a soak is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Until(Instant);

impl Until {
    /// Whether there is time left.
    pub(crate) fn goes_on(self) -> bool {
        Instant::now() < self.0
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}
