//! How far something is, for a person who looks: on standard error, and only if that is a terminal.

use std::io::{self, IsTerminal, Write};

/// How wide a bar is drawn.
const WIDTH: u64 = 30;

/// A bar that is drawn over itself and goes when it is dropped.
pub(super) struct Progress {
    what: &'static str,
    of: u64,
    /// What is on the screen, in percent or in thousands; none if nobody looks.
    shown: Option<u64>,
}

impl Progress {
    /// A bar for so many steps.
    pub(super) fn new(what: &'static str, of: u64) -> Progress {
        let shown = io::stderr().is_terminal().then_some(u64::MAX);
        Progress { what, of: of.max(1), shown }
    }

    /// As above, where nobody knows how many there will be: it shows how many there are.
    pub(super) fn of_unknown(what: &'static str) -> Progress {
        Progress { of: u64::MAX, ..Progress::new(what, 0) }
    }

    /// So many are done.
    pub(super) fn at(&mut self, done: u64) {
        const SOME: u64 = 1_000;
        let unknown = self.of == u64::MAX;
        let look = if unknown { done / SOME } else { (done.saturating_mul(100) / self.of).min(100) };
        if self.shown.is_some_and(|shown| shown != look) {
            self.shown = Some(look);
            let drawn = if unknown { tally(self.what, done) } else { bar(self.what, look) };
            // A screen that cannot be written to shows no bar; nothing else depends on it.
            let _ = write!(io::stderr(), "\r{drawn}");
        }
    }
}

fn bar(what: &str, percent: u64) -> String {
    let full = (percent * WIDTH / 100) as usize;
    format!("{what:<10} [{}{}] {percent:>3} %", "#".repeat(full), " ".repeat(WIDTH as usize - full))
}

fn tally(what: &str, done: u64) -> String {
    format!("{what:<10} {done}")
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some_and(|shown| shown != u64::MAX) {
            let _ = write!(io::stderr(), "\r{}\r", " ".repeat(WIDTH as usize + 20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_at_the_start_as_at_the_end() {
        assert_eq!(bar("parts", 0).len(), bar("parts", 100).len());
        assert!(bar("parts", 50).contains("[###############               ]"));
    }
}
