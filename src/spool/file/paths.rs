//! Where the file lies, and what lies beside it.

use std::path::{Path, PathBuf};

use crate::spool::SpoolError;
use crate::state::time::Wall;

/// The file and what SQLite keeps beside it.
pub(in crate::spool) fn beside(path: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// Where the file is made that is to take another's place.
pub(super) fn new_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// What is done to a file together with what SQLite keeps beside it.
pub(super) struct Files;

impl Files {
    /// Ends a swap that was interrupted: a new file is whole once the old one is gone, and of no use before.
    pub(super) fn settle(path: &Path) -> std::io::Result<()> {
        let new = new_beside(path);
        if path.exists() || !new.exists() {
            return Files::remove(&new);
        }
        // The old one's log, if it is still there: what can be read of it is in the new one.
        Files::remove(path)?;
        std::fs::rename(&new, path)?;
        sync_names(path)
    }

    pub(super) fn remove(path: &Path) -> std::io::Result<()> {
        beside(path).iter().try_for_each(|path| if_there(std::fs::remove_file(path)))
    }

    /// Sets the file at `path` aside, so that nothing of it is ever overwritten, and puts the one at `new`
    /// there; where the old one is now.
    pub(super) fn swap(path: &Path, new: &Path, now: Wall) -> std::io::Result<PathBuf> {
        let aside = free_name(path, now);
        Files::rename(path, &aside)?;
        let placed = std::fs::rename(new, path).and_then(|()| sync_names(path));
        if let Err(error) = placed {
            if_there(std::fs::rename(path, new))?;
            Files::rename(&aside, path)?;
            return Err(error);
        }
        Ok(aside)
    }

    /// All or none: a file without its log is less than half of it.
    fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
        let moves: Vec<(PathBuf, PathBuf)> = beside(from).into_iter().zip(beside(to)).collect();
        for (done, (from, to)) in moves.iter().enumerate() {
            if let Err(error) = if_there(std::fs::rename(from, to)) {
                for (from, to) in moves[..done].iter().rev() {
                    if let Err(error) = if_there(std::fs::rename(to, from)) {
                        log::error!("spool: {} cannot be moved back: {error}", to.display());
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

fn if_there(done: std::io::Result<()>) -> std::io::Result<()> {
    match done {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn free_name(path: &Path, now: Wall) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged-{}", now.as_millis()));
    let mut aside = PathBuf::from(&name);
    for again in 2.. {
        if !aside.exists() {
            break;
        }
        let mut other = name.clone();
        other.push(format!("-{again}"));
        aside = PathBuf::from(other);
    }
    aside
}

/// Makes renames in the file's folder outlive the power.
fn sync_names(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}

/// Makes the file readable for its owner alone, before anything is in it.
pub(super) fn private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn broken(path: &Path, error: &dyn std::fmt::Display) -> SpoolError {
    SpoolError::Broken { text: format!("{}: {error}", path.display()) }
}
