//! A file that one engine, of all processes, holds at a time.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held as long as this lives; the system lets go of it however the process ends.
#[derive(Debug)]
pub(crate) struct Held(File);

/// What became of asking for it.
#[derive(Debug)]
pub(crate) enum Asked {
    Held(Held),
    Taken(By),
}

/// Who has it already, if it said so: the end of "another towpath".
#[derive(Debug)]
pub(crate) struct By(Option<u32>);

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |process| write!(f, " (process {process})"))
    }
}

impl Held {
    /// Makes the file if it is not there, its owner's alone, and writes down who holds it.
    pub(crate) fn ask(path: &Path) -> io::Result<Asked> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Ok(Asked::Taken(By(fs::read_to_string(path)?.trim().parse().ok())));
            }
            Err(error) => return Err(error.into()),
        }
        let mut held = Held(file);
        // Only for whoever wonders who holds it.
        held.0.set_len(0)?;
        writeln!(held.0, "{}", std::process::id())?;
        Ok(Asked::Held(held))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing would not do: a child that another thread just forked has the file too, until it becomes
        // its own program, and the lock is the file's, not the process's. An unlocking that fails leaves what
        // closing leaves.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(path: &Path) -> Held {
        match Held::ask(path).expect("asked") {
            Asked::Held(held) => held,
            Asked::Taken(by) => panic!("taken{by}"),
        }
    }

    #[test]
    fn it_has_one_holder_which_says_who_it_is() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let path = place.path().join("lock");
        let first = held(&path);
        let second = Held::ask(&path).expect("asked");
        assert!(matches!(second, Asked::Taken(By(Some(by))) if by == std::process::id()), "{second:?}");
        drop(first);
        held(&path);
    }

    #[test]
    fn it_is_free_at_once_though_a_child_was_forked_meanwhile() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let path = place.path().join("lock");
        let first = held(&path);
        // What a fork does to it: one more descriptor of the same open file.
        let childs = first.0.try_clone().expect("a descriptor");
        drop(first);
        held(&path);
        drop(childs);
    }
}
