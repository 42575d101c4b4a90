//! How far something is, for a person who looks: on standard error, and only if that is a terminal.

use std::io::{self, IsTerminal, Write};

/// How wide a bar is drawn.
const WIDTH: u64 = 30;

/// A bar that is drawn over itself and goes when it is dropped.
pub(super) struct Progress {
    what: &'static str,
    of: u64,
    /// The percent that is on the screen; none if nobody looks.
    shown: Option<u64>,
}

impl Progress {
    /// A bar for so many steps.
    pub(super) fn new(what: &'static str, of: u64) -> Progress {
        let shown = io::stderr().is_terminal().then_some(u64::MAX);
        Progress { what, of: of.max(1), shown }
    }

    /// So many are done.
    pub(super) fn at(&mut self, done: u64) {
        let percent = (done * 100 / self.of).min(100);
        if self.shown.is_some_and(|shown| shown != percent) {
            self.shown = Some(percent);
            // A screen that cannot be written to shows no bar; nothing else depends on it.
            let _ = write!(io::stderr(), "\r{}", bar(self.what, percent));
        }
    }
}

fn bar(what: &str, percent: u64) -> String {
    let full = (percent * WIDTH / 100) as usize;
    format!("{what:<10} [{}{}] {percent:>3} %", "#".repeat(full), " ".repeat(WIDTH as usize - full))
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some_and(|shown| shown <= 100) {
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
