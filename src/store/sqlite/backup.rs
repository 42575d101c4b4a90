//! A data directory as one file, taken whether a daemon writes to it or not, and what makes a restored
//! one a new epoch.
//!
//! The file is a tar archive, so that restoring needs nothing but `tar`. Each database in it is whole, as
//! of one moment. The spool's moment is the first: a record that leaves the spool for the log meanwhile is
//! in both copies, where it becomes one row, and never in neither.
//!
//! The archive also holds an empty file, [`RESTORED`]. A store that finds it beside its databases begins a
//! new epoch: what followers remember of the time after the backup never happened in it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::{AGENTS, BUSY, CONNECTIONS, STREAMS, failed};
use crate::state::time::Wall;
use crate::store::{StoreError, ahead};

/// The file that says: these databases come from a backup.
pub(super) const RESTORED: &str = "restored";

/// The file that says where the rows are now.
pub(super) const MOVED: &str = "moved";

/// The databases of a data directory; the spool's first. It is missing where nothing was ever spooled.
const FILES: &[(&str, bool)] =
    &[("spool.db", false), (STREAMS.file, true), (AGENTS.file, true), (CONNECTIONS.file, true)];

/// What a backup wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackedUp {
    /// The databases in it.
    pub databases: Vec<String>,
    /// How large the archive is.
    pub bytes: u64,
}

/// Copies the databases of `data` into the new archive `file`.
///
/// # Errors
/// `no_store` when there is no store in `data`, `exists` when `file` is there already, `cannot_create`
/// when it cannot be written.
pub fn back_up(data: &Path, file: &Path, now: Wall) -> Result<BackedUp, StoreError> {
    if !data.join(STREAMS.file).is_file() {
        let text = format!("{} holds no SQLite store (no {})", data.display(), STREAMS.file);
        return Err(StoreError::fatal("no_store", text));
    }
    if file.exists() {
        return Err(StoreError::fatal("exists", format!("{} is there already", file.display())));
    }
    let cannot = |error: io::Error| {
        StoreError::fatal("cannot_create", format!("cannot write {}: {error}", file.display()))
    };
    let workshop = Workshop::beside(file).map_err(cannot)?;
    let partial = workshop.0.join("archive");
    let mut archive =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial).map_err(cannot)?;
    // Before the tables: what leaves the log meanwhile is in them.
    for name in ahead::FILES {
        let log = data.join(name);
        if log.is_file() {
            add(&mut archive, name, now, &log).map_err(cannot)?;
        }
    }
    let mut databases = Vec::new();
    for (name, needed) in FILES {
        let source = data.join(name);
        if !needed && !source.is_file() {
            continue;
        }
        let copied = workshop.0.join(name);
        copy(&source, &copied)?;
        add(&mut archive, name, now, &copied).map_err(cannot)?;
        fs::remove_file(&copied).map_err(cannot)?;
        databases.push((*name).to_owned());
    }
    entry(&mut archive, RESTORED, 0, now).map_err(cannot)?;
    // Two blocks of zeros end an archive.
    archive.write_all(&[0; 2 * BLOCK]).and_then(|()| archive.sync_all()).map_err(cannot)?;
    let bytes = archive.metadata().map_err(cannot)?.len();
    fs::hard_link(&partial, file).map_err(cannot)?;
    Ok(BackedUp { databases, bytes })
}

/// A folder for copies that are on their way into the archive, on the disk that has room for it. Gone
/// when dropped.
struct Workshop(PathBuf);

impl Workshop {
    fn beside(file: &Path) -> io::Result<Workshop> {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let path = file.with_file_name(name);
        // Left over from a backup that was killed.
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Workshop(path))
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::warn!("{} stays behind: {error}", self.0.display());
        }
    }
}

/// A whole copy of one database. It is read in one go: in steps, a daemon that writes all the time would
/// make it begin again all the time. Writers do not wait for it.
fn copy(source: &Path, to: &Path) -> Result<(), StoreError> {
    let at = |error| failed(&format!("copying {}", source.display()), error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let from = Connection::open_with_flags(source, flags).map_err(at)?;
    from.busy_timeout(BUSY).map_err(at)?;
    let mut into = Connection::open(to).map_err(at)?;
    {
        let backup = Backup::new(&from, &mut into).map_err(at)?;
        match backup.step(-1).map_err(at)? {
            StepResult::Done => {}
            _ => {
                let text = format!("{} is busy; try again", source.display());
                return Err(StoreError::retry("busy", text));
            }
        }
    }
    let well: String = into.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(at)?;
    if well != "ok" {
        let text = format!("{} is damaged: {well}; start the daemon, it says what to do", source.display());
        return Err(StoreError::fatal("damaged", text));
    }
    // One file, whatever was written ahead.
    into.pragma_update(None, "journal_mode", "DELETE").map_err(at)?;
    into.close().map_err(|(_, error)| at(error))
}

const BLOCK: usize = 512;

/// A file as an entry of a tar archive.
fn add(archive: &mut File, name: &str, now: Wall, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    entry(archive, name, size, now)?;
    let copied = io::copy(&mut (&mut file).take(size), archive)?;
    if copied != size {
        return Err(io::Error::other(format!("{} got shorter while it was read", path.display())));
    }
    let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    archive.write_all(&[0; BLOCK][..padding as usize])
}

/// The header of an entry, in the format that POSIX calls `ustar`.
fn entry(archive: &mut File, name: &str, size: u64, now: Wall) -> io::Result<()> {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    let seconds = now.as_micros().max(0) / 1_000_000;
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    match size {
        // Eleven octal digits…
        0..0o100_000_000_000 => put(124, format!("{size:011o}\0").as_bytes()),
        // …or, what every tar of today reads, a marked number of bytes.
        _ => {
            put(124, &[0x80, 0, 0, 0]);
            put(128, &size.to_be_bytes());
        }
    }
    put(136, format!("{seconds:011o}\0").as_bytes());
    // The checksum counts its own place as spaces.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.write_all(&header)
}
