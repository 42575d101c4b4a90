//! The log on disk: two files, of which one is written to, record after record, while those of the other go into the
//! tables; a file begins again once all of its records are there.
//!
//! A record is the length of its payload (u32), a checksum over what follows (CRC-32), the number of this round
//! through a file (u64), and the payload; numbers are little-endian. Reading a file stops at the first record that
//! is cut, damaged or of another round: only what was never acknowledged is there, for records are synced in
//! their order. The file of the lower round is the older one. What was read is emptied before anything new is
//! written, so rounds need be told apart within one run only.
//!
//! Invariant: a file whose last write failed holds, behind `end`, what nobody was told of. It is never left for the
//! other: it begins again, so that this is overwritten or of an older round than what stands before it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{FILES, Logged};
use crate::state::time::Wall;
use crate::store::StoreError;
use crate::store::streams::{Kind, MessageRow};

/// Length, checksum, round.
const HEAD: usize = 16;
/// How much memory is kept for records to come.
const KEPT_MAX: usize = 256 * 1024;
/// What a payload has before its texts.
const FIXED: usize = 16 + 8 + 8 + 4 + 8 + 1 + 4;
/// The role of a message that has none.
const NO_ROLE: u32 = u32::MAX;

/// See the [module](self).
pub(super) struct Log {
    files: [File; 2],
    directory: PathBuf,
    /// Which of them is written to.
    at: usize,
    round: u64,
    /// Where the next record goes.
    end: u64,
    /// Records of this round.
    records: usize,
    /// Records that are put and not written.
    unwritten: Vec<u8>,
    /// Set by a failed write, after which nobody knows what the file holds behind `end`.
    failed: bool,
}

impl Log {
    /// Opens the files in a directory, which are made if they are not there, and reads what they hold.
    pub(super) fn open(directory: &Path) -> Result<(Log, Vec<Logged>), StoreError> {
        let mut rounds = Vec::new();
        let mut open = |name: &str| {
            let path = directory.join(name);
            let at = |error: io::Error| {
                StoreError::fatal("cannot_open", format!("cannot open {}: {error}", path.display()))
            };
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let mut file = options.open(&path).map_err(at)?;
            // That the file exists has to be as durable as what it holds.
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(at)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(at)?;
            rounds.extend(read(&bytes));
            Ok(file)
        };
        let files = [open(FILES[0])?, open(FILES[1])?];
        rounds.sort_by_key(|(round, _)| *round);
        let left = rounds.into_iter().flat_map(|(_, records)| records).collect();
        let (directory, unwritten) = (directory.to_owned(), Vec::new());
        Ok((Log { files, directory, at: 0, round: 0, end: 0, records: 0, unwritten, failed: false }, left))
    }

    /// The same log with nothing in it.
    pub(super) fn emptied(self) -> Result<Log, StoreError> {
        let emptied = self.files.iter().try_for_each(|file| file.set_len(0).and_then(|()| file.sync_all()));
        emptied.map_err(|error| self.refused(&error))?;
        Ok(self)
    }

    /// How much was written in this round: records, and their bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        (self.records, self.end)
    }

    /// Everything in it is in the tables: it begins again.
    pub(super) fn rewind(&mut self) {
        if self.end > 0 || self.failed {
            self.begin_round();
        }
    }

    /// Everything in the other file is in the tables: what comes goes there, and this one is left as it is.
    pub(super) fn turn(&mut self) {
        debug_assert!(!self.failed, "what nobody was told of would stay");
        self.at = 1 - self.at;
        self.begin_round();
    }

    fn begin_round(&mut self) {
        (self.round, self.end, self.records, self.failed) = (self.round + 1, 0, 0, false);
    }

    /// Whether what is written next would be found again.
    pub(super) fn is_sound(&self) -> bool {
        !self.failed
    }

    /// Adds a record to what is written next.
    pub(super) fn put(&mut self, logged: &Logged) {
        let row = &logged.row;
        let role = row.role.as_deref();
        let length = FIXED + role.map_or(0, str::len) + row.content.len();
        let out = &mut self.unwritten;
        let begin = out.len();
        out.reserve(HEAD + length);
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.round.to_le_bytes());
        out.extend_from_slice(logged.stream.as_bytes());
        out.extend_from_slice(&row.pos.to_le_bytes());
        out.extend_from_slice(&row.id.to_le_bytes());
        out.extend_from_slice(&logged.generation.to_le_bytes());
        out.extend_from_slice(&row.at.0.to_le_bytes());
        out.push(u8::from(row.kind == Kind::Bytes));
        out.extend_from_slice(&role.map_or(NO_ROLE, |role| role.len() as u32).to_le_bytes());
        out.extend_from_slice(role.unwrap_or_default().as_bytes());
        out.extend_from_slice(&row.content);
        let sum = crc32fast::hash(&out[begin + 8..]);
        out[begin + 4..begin + 8].copy_from_slice(&sum.to_le_bytes());
        self.records += 1;
    }

    /// What was put is not to be written after all.
    pub(super) fn drop_unwritten(&mut self) {
        self.unwritten.clear();
    }

    /// Writes what was put, and waits until it is on the disk.
    pub(super) fn write(&mut self) -> Result<(), StoreError> {
        let file = &self.files[self.at];
        let written = file.write_all_at(&self.unwritten, self.end).and_then(|()| file.sync_data());
        match written {
            Ok(()) => self.end += self.unwritten.len() as u64,
            Err(_) => self.failed = true,
        }
        self.unwritten.clear();
        self.unwritten.shrink_to(KEPT_MAX);
        written.map_err(|error| self.refused(&error))
    }

    fn refused(&self, error: &io::Error) -> StoreError {
        let text = format!("cannot write {}: {error}", self.directory.join(FILES[self.at]).display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::retry("full", text),
            _ => StoreError::retry("io", text),
        }
    }
}

/// The round that a file begins with, and its records; none if there are none.
fn read(bytes: &[u8]) -> Option<(u64, Vec<Logged>)> {
    let mut found: Option<(u64, Vec<Logged>)> = None;
    let mut rest = bytes;
    while let Some((head, behind)) = rest.split_first_chunk::<HEAD>() {
        let [length, sum] = [0, 4].map(|at| number(&head[at..at + 4]));
        let of = u64::from_le_bytes(std::array::from_fn(|i| head[8 + i]));
        let Some((payload, next)) = behind.split_at_checked(length as usize) else { break };
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&head[8..]);
        hasher.update(payload);
        if hasher.finalize() != sum || found.as_ref().is_some_and(|(round, _)| *round != of) {
            break;
        }
        let Some(logged) = record(payload) else { break };
        found.get_or_insert((of, Vec::new())).1.push(logged);
        rest = next;
    }
    found
}

fn number(four: &[u8]) -> u32 {
    four.try_into().map_or(0, u32::from_le_bytes)
}

fn record(payload: &[u8]) -> Option<Logged> {
    let (stream, rest) = payload.split_first_chunk::<16>()?;
    let (pos, rest) = rest.split_first_chunk::<8>()?;
    let (id, rest) = rest.split_first_chunk::<8>()?;
    let (generation, rest) = rest.split_first_chunk::<4>()?;
    let (at, rest) = rest.split_first_chunk::<8>()?;
    let ([kind], rest) = rest.split_first_chunk::<1>()?;
    let (role, rest) = rest.split_first_chunk::<4>()?;
    let (role, content) = match u32::from_le_bytes(*role) {
        NO_ROLE => (None, rest),
        length => {
            let (role, content) = rest.split_at_checked(length as usize)?;
            (Some(String::from_utf8(role.to_vec()).ok()?), content)
        }
    };
    Some(Logged {
        stream: Uuid::from_bytes(*stream),
        generation: u32::from_le_bytes(*generation),
        row: MessageRow {
            id: u64::from_le_bytes(*id),
            pos: u64::from_le_bytes(*pos),
            kind: if *kind == 0 { Kind::Json } else { Kind::Bytes },
            role,
            content: content.into(),
            fold: None,
            at: Wall(i64::from_le_bytes(*at)),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: u8, role: Option<&str>, content: &[u8]) -> Logged {
        let row = MessageRow {
            id: u64::from(n),
            pos: u64::from(n) + 10,
            kind: if n.is_multiple_of(2) { Kind::Json } else { Kind::Bytes },
            role: role.map(str::to_owned),
            content: content.into(),
            fold: None,
            at: Wall(i64::from(n) * 1_000),
        };
        Logged { stream: Uuid::from_u128(u128::from(n)), generation: u32::from(n) + 7, row }
    }

    fn three() -> [Logged; 3] {
        [message(1, None, b"one"), message(2, Some("user"), b""), message(3, Some(""), &[0xff; 300])]
    }

    fn written(directory: &Path, all: &[Logged]) -> Log {
        let (mut log, _) = Log::open(directory).expect("opens");
        add(&mut log, all);
        log
    }

    fn add(log: &mut Log, all: &[Logged]) {
        all.iter().for_each(|logged| log.put(logged));
        log.write().expect("written");
    }

    fn left(directory: &Path) -> Vec<Logged> {
        Log::open(directory).expect("opens").1
    }

    #[test]
    fn what_was_written_is_read_again_wherever_the_last_record_is_cut() {
        let directory = tempfile::tempdir().expect("a folder");
        drop(written(directory.path(), &three()));
        assert_eq!(left(directory.path()), three());
        let whole = std::fs::read(directory.path().join(FILES[0])).expect("read");
        let found = |bytes: &[u8]| read(bytes).map_or(Vec::new(), |(_, records)| records);
        let two = whole.len() - (HEAD + FIXED + 300);
        for length in two..whole.len() {
            assert_eq!(found(&whole[..length]), three()[..2], "cut at {length}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let found = found(&damaged);
            assert!(found.len() < 3 && found == three()[..found.len()], "damaged at {at}");
        }
    }

    #[test]
    fn what_an_earlier_round_left_behind_is_not_read() {
        let directory = tempfile::tempdir().expect("a folder");
        let mut log = written(directory.path(), &three());
        log.rewind();
        // As long as the first of the round before, whose second is behind it.
        add(&mut log, &[message(9, None, b"new")]);
        drop(log);
        assert_eq!(left(directory.path()), [message(9, None, b"new")]);
        let log = Log::open(directory.path()).expect("opens").0.emptied().expect("emptied");
        drop(log);
        assert_eq!(left(directory.path()), []);
    }

    #[test]
    fn the_older_file_is_read_first_whichever_it_is() {
        let directory = tempfile::tempdir().expect("a folder");
        let [one, two, three] = three();
        let mut log = written(directory.path(), std::slice::from_ref(&one));
        log.turn();
        add(&mut log, std::slice::from_ref(&two));
        assert_eq!(log.size(), (1, (HEAD + FIXED + 4) as u64));
        assert_eq!(left(directory.path()), [one, two.clone()]);
        log.turn();
        add(&mut log, std::slice::from_ref(&three));
        assert_eq!(left(directory.path()), [two, three], "the first is over");
    }
}
