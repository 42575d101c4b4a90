//! The data directory: made if missing, its owner's alone, used by one engine at a time.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use crate::store::held::{Asked, Held};
use crate::{Code, Error, Result};

/// Below this SQLite and the spool may fail at any write.
const FREE_MIN: u64 = 16 * 1024 * 1024;

/// A data directory that nobody else uses. Dropping it lets the next engine in.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _held: Held,
}

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Directory> {
        let cannot = |doing: &str, error: std::io::Error| {
            Error::new(Code::Io, format!("{doing} the data directory {}: {error}", path.display()))
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| cannot("making", error))?;
        let path = fs::canonicalize(path).map_err(|error| cannot("finding", error))?;
        let held = match Held::ask(&path.join("lock")).map_err(|error| cannot("locking", error))? {
            Asked::Held(held) => held,
            Asked::Taken(by) => {
                let text = format!(
                    "another towpath{by} uses the data directory {}; stop it, or use another directory (--data)",
                    path.display()
                );
                return Err(Error::new(Code::Conflict, text));
            }
        };
        Ok(Directory { path, _held: held })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is free on its disk, for the log.
    pub(crate) fn room(&self) -> String {
        let free = statvfs(&self.path).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) >> 20);
        free.map_or_else(
            |error| format!("free disk unknown: {error}"),
            |mib| format!("{mib} MiB of disk free"),
        )
    }

    /// A check for readiness: whether there is room to write.
    pub(crate) fn has_room(&self) -> impl Fn() -> Option<String> + Send + Sync + 'static {
        let path = self.path.clone();
        move || match statvfs(&path) {
            Ok(disk) => {
                let free = disk.f_bavail.saturating_mul(disk.f_frsize);
                let low = free < FREE_MIN;
                low.then(|| format!("the data directory {} has {free} bytes left", path.display()))
            }
            Err(error) => Some(format!("the data directory {} cannot be looked at: {error}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_serves_one_engine_at_a_time_and_its_owner_alone() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let path = place.path().join("a/b");
        let first = Directory::open(&path).expect("free");
        let mode = fs::metadata(first.path()).expect("made").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let second = Directory::open(&path).expect_err("held");
        assert_eq!(second.code(), Code::Conflict);
        assert!(second.to_string().contains(&format!("(process {})", std::process::id())), "{second}");
        drop(first);
        Directory::open(&path).expect("free again");
    }
}
