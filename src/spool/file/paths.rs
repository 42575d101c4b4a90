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

/// Renames the file and its log, so that nothing of them is ever overwritten.
pub(super) fn set_aside(path: &Path, now: Wall) -> std::io::Result<PathBuf> {
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
    for (from, to) in beside(path).iter().zip(beside(&aside)) {
        match std::fs::rename(from, to) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(aside)
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
