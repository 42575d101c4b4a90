//! The spool as an SQLite file: `spool.db`, write-ahead log, every commit synced.
//!
//! Invariant: table `record` holds exactly the numbers `first..next` of table `span`, and each row's
//! checksum covers its number, time, key and payload. What breaks this was not written by us: the
//! file is set aside, what can be read goes into a new one, and what is missing is reported.
//!
//! A commit that failed to sync is never tried again on the same file: the system may have dropped
//! what it could not write, and would report success the next time.

mod paths;
mod report;
mod rows;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

pub(super) use self::paths::beside;
use self::paths::{Files, broken, new_beside, private};
pub use self::report::{Found, Report};
pub use self::rows::SCHEMA_VERSION;
pub(super) use self::rows::checksum;
use self::rows::{ROW_BYTES, SCHEMA, Span, kept_from, remove, write_span};
use super::salvage;
use super::{Appended, Item, Kept, Limits, Spool, SpoolError, Status, WhenFull};
use crate::state::time::Wall;

/// The spool in a file, or in memory for simulations.
#[derive(Debug)]
pub struct File {
    place: Place,
    limits: Limits,
    db: Option<Connection>,
    /// Why the file was to be replaced, if it could not be. Nothing is written to it any more.
    unsound: Option<Unsound>,
    span: Span,
    /// The last time heard of, to name what is set aside.
    now: Wall,
}

/// A file that is not to be written any more.
#[derive(Debug)]
struct Unsound {
    causes: Vec<String>,
    /// Its first number and the one after its last, if they are known.
    span: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
enum Place {
    Disk(PathBuf),
    Memory,
}

impl File {
    /// Opens `spool.db` in `dir`, making it if it is not there. Damage never refuses: it is reported.
    /// `now` names the file that is set aside.
    ///
    /// # Errors
    /// The directory cannot be written, or the file is of a newer layout.
    pub fn open(dir: &Path, limits: Limits, now: Wall) -> Result<(File, Found), SpoolError> {
        let path = dir.join("spool.db");
        Files::settle(&path).map_err(|error| broken(&path, &error))?;
        let place = Place::Disk(path.clone());
        let mut file = File { place, limits, db: None, unsound: None, span: Span::EMPTY, now };
        let before = salvage::log_of(&path);
        match file.connect().and_then(|()| file.examine(&before)) {
            Ok(causes) if causes.is_empty() => Ok((file, Found::Whole)),
            Ok(causes) | Err(Trouble::Damage(causes)) => {
                let report = file.replace(causes)?;
                Ok((file, Found::Damaged(report)))
            }
            Err(Trouble::Refused(error)) => Err(error),
        }
    }

    /// A spool that lives as long as the value, for simulations.
    ///
    /// # Errors
    /// Out of memory.
    pub fn memory(limits: Limits) -> Result<File, SpoolError> {
        let mut file =
            File { place: Place::Memory, limits, db: None, unsound: None, span: Span::EMPTY, now: Wall(0) };
        file.connect().map_err(Trouble::into_error)?;
        Ok(file)
    }

    /// Looks at a spool that another process may be writing, and changes nothing.
    ///
    /// # Errors
    /// There is no spool in `dir`, or it cannot be opened.
    pub fn look(dir: &Path) -> Result<File, SpoolError> {
        let path = dir.join("spool.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags).map_err(|error| broken(&path, &error))?;
        let mut file = File {
            place: Place::Disk(path),
            limits: Limits::default(),
            db: Some(db),
            unsound: None,
            span: Span::EMPTY,
            now: Wall(0),
        };
        // What can be told of a damaged file is told by `verify`.
        if let Ok(Some(span)) = file.read_span() {
            file.span = span;
        }
        Ok(file)
    }

    /// Checks every row. Nothing is changed.
    ///
    /// # Errors
    /// The file cannot be read at all.
    pub fn verify(&mut self) -> Result<Option<Report>, SpoolError> {
        let Place::Disk(path) = self.place.clone() else { return Ok(None) };
        let before = salvage::log_of(&path);
        let causes = match self.examine(&before) {
            Ok(causes) | Err(Trouble::Damage(causes)) => causes,
            Err(Trouble::Refused(error)) => return Err(error),
        };
        if causes.is_empty() {
            return Ok(None);
        }
        let (kept, mut report) = salvage::read(&path, self.known_span());
        report.causes = causes;
        report.salvaged = kept.len() as u64;
        Ok(Some(report))
    }

    /// The number the next item gets.
    pub fn next_number(&self) -> u64 {
        self.span.next
    }

    fn known_span(&mut self) -> Option<(u64, u64)> {
        let span = self.read_span().ok().flatten()?;
        Some((span.first, span.next))
    }

    /// Opens the file and, if it is new, lays it out.
    fn connect(&mut self) -> Result<(), Trouble> {
        let db = match &self.place {
            Place::Memory => Connection::open_in_memory(),
            Place::Disk(path) => {
                private(path).map_err(|error| Trouble::Refused(broken(path, &error)))?;
                Connection::open(path)
            }
        }
        .map_err(|error| self.trouble(&error))?;
        let setup = db
            .pragma_update(None, "page_size", salvage::PAGE as i64)
            .and_then(|()| db.pragma_update(None, "journal_mode", "WAL"))
            .and_then(|()| db.pragma_update(None, "synchronous", "FULL"))
            .and_then(|()| db.busy_timeout(std::time::Duration::from_secs(1)))
            .and_then(|()| db.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)));
        let version = setup.map_err(|error| self.trouble(&error))?;
        self.db = Some(db);
        match version {
            0 => self.lay_out(),
            SCHEMA_VERSION => Ok(()),
            // A flipped bit may look like a newer version; the tables tell.
            newer if self.read_span().is_ok_and(|span| span.is_some()) => {
                Err(Trouble::Damage(vec![format!("layout {newer} with the tables of {SCHEMA_VERSION}")]))
            }
            newer => Err(Trouble::Refused(SpoolError::Broken {
                text: format!(
                    "its layout is {newer} and this towpath knows {SCHEMA_VERSION}: use a newer one"
                ),
            })),
        }
    }

    fn lay_out(&mut self) -> Result<(), Trouble> {
        let tables = self
            .with(|db| db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)))?;
        if tables > 0 {
            return Err(Trouble::Damage(vec!["it has tables and no layout".into()]));
        }
        self.with(|db| {
            let tx = db.transaction()?;
            tx.execute_batch(SCHEMA)?;
            write_span(&tx, &Span::EMPTY)?;
            tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            tx.commit()
        })?;
        self.span = Span::EMPTY;
        Ok(())
    }

    /// Everything that is wrong with the file; nothing for one that is whole.
    fn examine(&mut self, log: &[u8]) -> Result<Vec<String>, Trouble> {
        let checked =
            self.with(|db| db.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0)))?;
        if checked != "ok" {
            return Ok(vec![format!("sqlite: {checked}")]);
        }
        let Some(span) = self.read_span().map_err(|error| self.trouble(&error))? else {
            return Ok(vec!["its own account of itself is unreadable".into()]);
        };
        self.span = span;
        let mut causes = Vec::new();
        let (mut expected, mut bytes) = (span.first, 0);
        let bad = self.with(|db| {
            let mut rows =
                db.prepare("SELECT n, key, at, payload, crc FROM record NOT INDEXED ORDER BY n")?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                let number = row.get::<_, i64>(0)? as u64;
                let (key, payload) = (row.get_ref(1)?.as_blob(), row.get_ref(3)?.as_blob());
                let (at, crc) = (row.get_ref(2)?.as_i64(), row.get_ref(4)?.as_i64());
                let (Ok(key), Ok(payload), Ok(at), Ok(crc)) = (key, payload, at, crc) else {
                    return Ok(Some(format!("record {number} has columns of another type")));
                };
                if number != expected {
                    return Ok(Some(format!("record {expected} is missing")));
                }
                if i64::from(checksum(number, Wall(at), key, payload)) != crc {
                    return Ok(Some(format!("record {number} has a wrong checksum")));
                }
                expected += 1;
                bytes += payload.len() as u64 + ROW_BYTES;
            }
            Ok(None)
        })?;
        causes.extend(bad);
        if causes.is_empty() && expected != span.next {
            causes.push(format!("it ends at record {} and should at {}", expected - 1, span.next - 1));
        }
        if causes.is_empty() && bytes != span.bytes {
            causes.push(format!("it holds {bytes} bytes and should {}", span.bytes));
        }
        // A flipped bit in the log makes SQLite end there without a word; what comes after is ours.
        if causes.is_empty()
            && let Some(number) = salvage::beyond(log, span.next)
        {
            causes.push(format!("its log holds record {number} and was not read that far"));
        }
        Ok(causes)
    }

    fn read_span(&mut self) -> rusqlite::Result<Option<Span>> {
        let Some(db) = self.db.as_ref() else { return Ok(None) };
        let found = db
            .query_row("SELECT first, next, bytes, lost, crc FROM span", [], |row| {
                let number = |column| Ok::<_, rusqlite::Error>(row.get::<_, i64>(column)? as u64);
                let span = Span { first: number(0)?, next: number(1)?, bytes: number(2)?, lost: number(3)? };
                Ok((span, row.get::<_, i64>(4)?))
            })
            .optional()?;
        Ok(found.and_then(|(span, crc)| (i64::from(span.crc()) == crc).then_some(span)))
    }

    /// Makes a new file of what can be read, and sets this one aside.
    fn replace(&mut self, causes: Vec<String>) -> Result<Report, SpoolError> {
        let span = self.known_span();
        self.replace_what_spans(Unsound { causes, span })
    }

    fn replace_what_spans(&mut self, unsound: Unsound) -> Result<Report, SpoolError> {
        let report = self.try_to_replace(&unsound).inspect_err(|_| {
            crate::mark!(spool_not_replaced);
            self.unsound = Some(unsound);
        })?;
        self.connect().map_err(Trouble::into_error)?;
        Ok(report)
    }

    /// The new file is whole and synced before the old one is touched: should any of this fail, or the power,
    /// everything that could be read still can be.
    fn try_to_replace(&mut self, unsound: &Unsound) -> Result<Report, SpoolError> {
        let Place::Disk(path) = self.place.clone() else {
            return Err(SpoolError::Broken { text: unsound.causes.join("; ") });
        };
        let span = unsound.span;
        let lost_before = if span.is_some() { self.span.lost } else { 0 };
        let (kept, mut report) = salvage::read(&path, span);
        // Closing may fail on a file like this; what matters has been read.
        drop(self.db.take());
        report.causes = unsound.causes.clone();
        report.salvaged = kept.len() as u64;
        // The salvaged are numbered anew, without holes: the holes have been reported. No number is
        // used twice, so that an answer about the old file cannot touch the new one.
        let start = kept.last().map_or(1, |kept| kept.number + 1).max(span.map_or(1, |(_, next)| next));
        let span = Span { first: start, next: start, bytes: 0, lost: lost_before + report.lost() };
        let new = new_beside(&path);
        let made = Files::remove(&new).map_err(|error| broken(&new, &error));
        let span = made.and_then(|()| File::of_salvaged(&new, self.limits, span, &kept))?;
        let aside = Files::swap(&path, &new, self.now).map_err(|error| broken(&path, &error))?;
        report.set_aside = Some(aside);
        self.span = span;
        Ok(report)
    }

    /// Makes a file of what was salvaged and closes it; what it then says about itself.
    fn of_salvaged(path: &Path, limits: Limits, span: Span, kept: &[Kept]) -> Result<Span, SpoolError> {
        let place = Place::Disk(path.to_owned());
        let mut file = File { place, limits, db: None, unsound: None, span: Span::EMPTY, now: Wall(0) };
        let mut fill = || -> Result<bool, Trouble> {
            file.connect()?;
            file.span = span;
            file.with(|db| write_span(db, &span))?;
            for chunk in kept.chunks(1_000) {
                file.insert(chunk.iter().map(|kept| (&kept.item, kept.at)), 0)?;
            }
            file.with(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)))
        };
        let busy = fill().map_err(Trouble::into_error)?;
        let closed = file.db.take().map_or(Ok(()), |db| db.close().map_err(|(_, error)| error));
        closed.map_err(|error| broken(path, &error))?;
        if busy {
            return Err(broken(path, &"somebody else is reading it"));
        }
        Ok(file.span)
    }

    /// One transaction: throws `evict` of the oldest out, then puts these in.
    fn insert<'a>(
        &mut self,
        items: impl Iterator<Item = (&'a Item, Wall)>,
        evict: u64,
    ) -> Result<Appended, Trouble> {
        let mut span = self.span;
        let mut done = Appended::default();
        self.with(|db| {
            let tx = db.transaction()?;
            if evict > 0 {
                let last = span.first + evict - 1;
                done.evicted = remove(&tx, &mut span, last)?;
            }
            {
                let mut insert = tx.prepare_cached(
                    "INSERT INTO record(n, key, at, payload, crc) VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT(key) DO NOTHING",
                )?;
                for (item, at) in items {
                    let crc = checksum(span.next, at, &item.key, &item.payload);
                    let row = params![span.next as i64, &item.key[..], at.0, &item.payload, crc];
                    if insert.execute(row)? == 1 {
                        span.next += 1;
                        span.bytes += item.payload.len() as u64 + ROW_BYTES;
                        done.new += 1;
                    } else {
                        done.known += 1;
                    }
                }
            }
            write_span(&tx, &span)?;
            tx.commit()
        })?;
        self.span = span;
        Ok(done)
    }

    /// How many of the oldest have to go so that `more` bytes fit.
    fn oldest_in_the_way(&mut self, more: u64) -> Result<u64, SpoolError> {
        let max_bytes = self.limits.max_bytes;
        let mut over = (self.span.bytes + more).saturating_sub(max_bytes);
        if over == 0 {
            return Ok(0);
        }
        let full = SpoolError::Full { bytes: self.span.bytes, max_bytes };
        if self.limits.when_full == WhenFull::Refuse || more > max_bytes {
            return Err(full);
        }
        let mut count = 0;
        self.with(|db| {
            let mut sizes = db.prepare_cached("SELECT length(payload) FROM record ORDER BY n")?;
            let mut sizes = sizes.query([])?;
            while over > 0
                && let Some(row) = sizes.next()?
            {
                over = over.saturating_sub(row.get::<_, i64>(0)? as u64 + ROW_BYTES);
                count += 1;
            }
            Ok(())
        })
        .map_err(Trouble::into_error)?;
        Ok(count)
    }

    fn check_free(&self) -> Result<(), SpoolError> {
        let Place::Disk(path) = &self.place else { return Ok(()) };
        let Some(dir) = path.parent() else { return Ok(()) };
        let stat = rustix::fs::statvfs(dir)
            .map_err(|error| SpoolError::Broken { text: format!("{}: {error}", dir.display()) })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < self.limits.min_free {
            let text = format!(
                "{free} bytes are free on {} and min_free is {}",
                dir.display(),
                self.limits.min_free
            );
            return Err(SpoolError::NoSpace { text });
        }
        Ok(())
    }

    fn with<T>(&mut self, call: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, Trouble> {
        let Some(db) = self.db.as_mut() else {
            return Err(Trouble::Refused(SpoolError::Broken { text: "the file is not open".into() }));
        };
        call(db).map_err(|error| self.trouble(&error))
    }

    fn trouble(&self, error: &rusqlite::Error) -> Trouble {
        let place = match &self.place {
            Place::Disk(path) => path.display().to_string(),
            Place::Memory => "in memory".into(),
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => {
                Trouble::Refused(SpoolError::NoSpace { text: format!("{place}: {error}") })
            }
            Some(
                ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::DatabaseBusy,
            ) => Trouble::Refused(SpoolError::Broken { text: format!("{place}: {error}") }),
            _ => Trouble::Damage(vec![error.to_string()]),
        }
    }

    /// Does it, and once more on a new file if this one turned out to be damaged.
    fn on_a_sound_file<T>(
        &mut self,
        mut call: impl FnMut(&mut File) -> Result<T, Trouble>,
    ) -> Result<T, SpoolError> {
        if let Some(unsound) = self.unsound.take() {
            let report = self.replace_what_spans(unsound)?;
            log::error!("spool: the file that failed was replaced: {report}");
        }
        if self.db.is_none() {
            self.connect().map_err(Trouble::into_error)?;
        }
        match call(self) {
            Ok(done) => Ok(done),
            Err(Trouble::Refused(error)) => Err(error),
            Err(Trouble::Damage(causes)) => {
                let report = self.replace(causes)?;
                log::error!("spool: the file failed and was replaced: {report}");
                call(self).map_err(Trouble::into_error)
            }
        }
    }
}

impl Spool for File {
    fn append(&mut self, items: &[Item], at: Wall) -> Result<Appended, SpoolError> {
        self.check_free()?;
        let more = items.iter().map(|item| item.payload.len() as u64 + ROW_BYTES).sum();
        let evict = self.oldest_in_the_way(more)?;
        self.now = at;
        self.on_a_sound_file(|file| file.insert(items.iter().map(|item| (item, at)), evict))
    }

    fn page(&mut self, after: u64, rows: usize, bytes: usize) -> Result<Vec<Kept>, SpoolError> {
        let read = |file: &mut File| -> Result<Vec<Kept>, Trouble> {
            file.with(|db| {
                let mut select = db.prepare_cached(
                    "SELECT n, key, at, payload, crc FROM record WHERE n > ?1 ORDER BY n LIMIT ?2",
                )?;
                let mut found = select.query(params![after as i64, rows as i64])?;
                let (mut page, mut held): (Vec<Kept>, usize) = (Vec::new(), 0);
                while let Some(row) = found.next()? {
                    let kept = kept_from(row)?;
                    let payload = kept.item.payload.len();
                    if held + payload > bytes && !page.is_empty() {
                        break;
                    }
                    held += payload;
                    page.push(kept);
                }
                Ok(page)
            })
        };
        self.on_a_sound_file(read)
    }

    fn forget(&mut self, number: u64) -> Result<usize, SpoolError> {
        // On a new file the numbers are new: nothing is forgotten there, and all of it is sent again.
        let removed = self.on_a_sound_file(|file| {
            let mut span = file.span;
            let removed = file.with(|db| {
                let tx = db.transaction()?;
                let removed = remove(&tx, &mut span, number)?;
                write_span(&tx, &span)?;
                tx.commit()?;
                Ok(removed)
            })?;
            file.span = span;
            Ok(removed)
        })?;
        let span = self.span;
        if span.first == span.next {
            self.give_back();
        }
        Ok(removed)
    }

    fn status(&mut self) -> Result<Status, SpoolError> {
        let oldest = self
            .with(|db| {
                db.prepare_cached("SELECT at FROM record ORDER BY n LIMIT 1")?
                    .query_row([], |row| row.get::<_, i64>(0))
                    .optional()
            })
            .map_err(Trouble::into_error)?;
        Ok(Status {
            records: self.span.next - self.span.first,
            bytes: self.span.bytes,
            oldest_at: oldest.map(Wall),
            lost: self.span.lost,
        })
    }
}

impl File {
    /// An empty spool gives the disk back what it needed during the outage.
    fn give_back(&mut self) {
        const WORTH_IT: i64 = 4_096; // pages: 16 MiB
        let given = self.with(|db| {
            let free: i64 = db.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
            if free > WORTH_IT { db.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)") } else { Ok(()) }
        });
        if let Err(trouble) = given {
            log::warn!("spool: cannot give space back, which does no harm: {}", trouble.into_error());
        }
    }
}

/// Why a call on the file did not succeed.
#[derive(Debug)]
enum Trouble {
    /// The file is not what was written, or may not be: use another.
    Damage(Vec<String>),
    /// The answer to whoever asked.
    Refused(SpoolError),
}

impl Trouble {
    fn into_error(self) -> SpoolError {
        match self {
            Trouble::Damage(causes) => SpoolError::Broken { text: causes.join("; ") },
            Trouble::Refused(error) => error,
        }
    }
}

#[cfg(test)]
mod tests;
