//! Reading a damaged spool: whatever still carries a right checksum, wherever it lies.
//!
//! SQLite is asked first. Then every byte of the file and of its log is tried as the beginning of a
//! row, without believing any header, page type or pointer: a row is its own proof. What is found
//! below the spool's first number was sent long ago and is left out, if that number is known.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::file::{Report, beside, checksum};
use super::{Item, Kept};
use crate::state::time::Wall;

/// The page size of every spool: SQLite's default, which the file sets for itself.
pub(super) const PAGE: usize = 4_096;
const LOG_HEAD: usize = 32;
const FRAME_HEAD: usize = 24;

/// The log beside the file as it is before SQLite opens it; empty when there is none.
pub(super) fn log_of(path: &Path) -> Vec<u8> {
    std::fs::read(&beside(path)[1]).unwrap_or_default()
}

/// Everything that can be read of a spool, by number, and what is missing of `span` (first, next).
pub(super) fn read(path: &Path, span: Option<(u64, u64)>) -> (Vec<Kept>, Report) {
    let mut found = BTreeMap::new();
    let [main, log, _] = beside(path);
    let main = std::fs::read(main).unwrap_or_default();
    let log = std::fs::read(log).unwrap_or_default();
    let pages = Pages::new(&main, &log);
    for page in pages.all() {
        pages.rows(page, &mut |kept| {
            found.entry(kept.number).or_insert(kept);
        });
    }
    for kept in ask_sqlite(path) {
        found.entry(kept.number).or_insert(kept);
    }
    let first = span.map_or(0, |(first, _)| first);
    found.retain(|number, _| *number >= first);
    let missing = holes(&found, span);
    (found.into_values().collect(), Report { missing, end_unknown: span.is_none(), ..Report::default() })
}

/// A number at or beyond `next` in the log, that was committed or is damaged: what SQLite silently
/// leaves out when a bit of its log is wrong. What a process was writing when it was killed is
/// neither: no commit follows it.
pub(super) fn beyond(log: &[u8], next: u64) -> Option<u64> {
    let pages = Pages::new(&[], log);
    let frames: Vec<&[u8]> = log.get(LOG_HEAD..)?.chunks_exact(FRAME_HEAD + PAGE).collect();
    let salt = |frame: &[u8]| u64::from_be_bytes(frame[8..16].try_into().expect("eight bytes of sixteen"));
    // One flipped bit does not make it another generation; those differ in some sixteen.
    let same = |one: u64, other: u64| (one ^ other).count_ones() <= 1;
    for (place, frame) in frames.iter().enumerate() {
        let mut number = None;
        pages.rows(&frame[FRAME_HEAD..], &mut |kept| {
            if kept.number >= next {
                number = number.max(Some(kept.number));
            }
        });
        let Some(number) = number else { continue };
        let proves = |later: usize| {
            let committed = frames[later][4..8] != [0; 4];
            same(salt(frames[later]), salt(frame)) && (committed || !is_sound(log, &frames, later))
        };
        if (place..frames.len()).any(proves) {
            return Some(number);
        }
    }
    None
}

/// Whether a frame's checksum follows from the one before it.
fn is_sound(log: &[u8], frames: &[&[u8]], place: usize) -> bool {
    let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
    // The magic number's last bit says in which order the sums read their words.
    let big = log[3] & 1 == 1;
    let (mut one, mut two) = match place.checked_sub(1).map(|before| frames[before]) {
        Some(before) => (word(&before[16..20]), word(&before[20..24])),
        None => (word(&log[24..28]), word(&log[28..32])),
    };
    let mut sum = |bytes: &[u8]| {
        for pair in bytes.chunks_exact(8) {
            let read = |bytes: &[u8]| if big { word(bytes) } else { word(bytes).swap_bytes() };
            one = one.wrapping_add(read(&pair[..4])).wrapping_add(two);
            two = two.wrapping_add(read(&pair[4..])).wrapping_add(one);
        }
    };
    sum(&frames[place][..8]);
    sum(&frames[place][FRAME_HEAD..]);
    (one, two) == (word(&frames[place][16..20]), word(&frames[place][20..24]))
}

/// The ranges of numbers that should be there and are not.
fn holes(found: &BTreeMap<u64, Kept>, span: Option<(u64, u64)>) -> Vec<std::ops::RangeInclusive<u64>> {
    let ends = (found.keys().next().copied(), found.keys().next_back().map(|last| last + 1));
    let (first, next) = match (span, ends) {
        (Some((first, next)), (_, end)) => (first, next.max(end.unwrap_or(0))),
        (None, (Some(first), Some(next))) => (first, next),
        (None, _) => return Vec::new(),
    };
    let mut missing = Vec::new();
    let mut expected = first;
    for number in found.keys().copied().chain([next]) {
        if number > expected {
            missing.push(expected..=number - 1);
        }
        expected = number + 1;
    }
    missing
}

/// What SQLite itself can still read, from both ends.
fn ask_sqlite(path: &Path) -> Vec<Kept> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(db) = Connection::open_with_flags(path, flags) else { return Vec::new() };
    let mut kept = Vec::new();
    for order in ["ASC", "DESC"] {
        let sql = format!("SELECT n, key, at, payload, crc FROM record NOT INDEXED ORDER BY n {order}");
        let Ok(mut rows) = db.prepare(&sql) else { continue };
        let Ok(mut rows) = rows.query([]) else { continue };
        // The first page that cannot be read ends this direction.
        while let Ok(Some(row)) = rows.next() {
            if let (Ok(number), Ok(key), Ok(at), Ok(payload), Ok(crc)) = (
                row.get::<_, i64>(0),
                row.get::<_, Vec<u8>>(1),
                row.get::<_, i64>(2),
                row.get::<_, Vec<u8>>(3),
                row.get::<_, i64>(4),
            ) {
                kept.extend(proven(number as u64, &key, Wall(at), &payload, crc));
            }
        }
    }
    kept
}

/// The row, if its checksum is right.
fn proven(number: u64, key: &[u8], at: Wall, payload: &[u8], crc: i64) -> Option<Kept> {
    let key: [u8; 16] = key.try_into().ok()?;
    let right = i64::from(checksum(number, at, &key, payload)) == crc;
    right.then(|| Kept { number, at, item: Item { key, payload: payload.to_vec() } })
}

/// The pages of a file and of its log, in every version there is.
struct Pages<'a> {
    main: &'a [u8],
    /// The newest version of a page in the log.
    newest: BTreeMap<u32, &'a [u8]>,
    log: Vec<&'a [u8]>,
}

impl<'a> Pages<'a> {
    fn new(main: &'a [u8], log: &'a [u8]) -> Pages<'a> {
        let frames = log.get(LOG_HEAD..).unwrap_or_default().chunks_exact(FRAME_HEAD + PAGE);
        let mut newest = BTreeMap::new();
        let mut versions = Vec::new();
        for frame in frames {
            let (head, page) = frame.split_at(FRAME_HEAD);
            newest.insert(u32::from_be_bytes(head[..4].try_into().expect("four bytes")), page);
            versions.push(page);
        }
        Pages { main, newest, log: versions }
    }

    fn all(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.log.iter().rev().copied().chain(self.main.chunks(PAGE))
    }

    /// Every row that begins in `page` and proves itself.
    fn rows(&self, page: &[u8], each: &mut dyn FnMut(Kept)) {
        for start in 0..page.len() {
            if let Some(kept) = self.row(&page[start..]) {
                each(kept);
            }
        }
    }

    /// A cell of a table's leaf: the payload's length, the row's number, and a record of five
    /// columns: null (the number again), a key of 16 bytes, an integer, bytes, an integer.
    fn row(&self, cell: &[u8]) -> Option<Kept> {
        let (length, cell) = varint(cell)?;
        let (number, cell) = varint(cell)?;
        // Cheap first: a header of at most 12 bytes, a null, then 16 bytes (44).
        if !(6..=12).contains(cell.first()?) || cell.get(1..3)? != [0, 44] {
            return None;
        }
        let length = usize::try_from(length).ok().filter(|length| *length < 1 << 26)?;
        let local = local_part(length);
        let mut record = cell.get(..local)?.to_vec();
        if local < length {
            let next = u32::from_be_bytes(cell.get(local..local + 4)?.try_into().ok()?);
            // Where the rest lies was either rewritten in the log or never was.
            let with = |page: &dyn Fn(u32) -> Option<&'a [u8]>| follow(next, length - local, page);
            let in_main =
                |number: u32| self.main.get((number as usize).checked_sub(1)? * PAGE..)?.get(..PAGE);
            let whole = |rest: Vec<u8>| {
                let mut whole = record.clone();
                whole.extend(rest);
                columns(number, &whole)
            };
            let newest = |number: u32| self.newest.get(&number).copied().or_else(|| in_main(number));
            return with(&newest).and_then(whole).or_else(|| with(&in_main).and_then(whole));
        }
        record.truncate(length);
        columns(number, &record)
    }
}

/// Gathers `left` bytes from a chain of overflow pages.
fn follow<'a>(mut next: u32, mut left: usize, page: &dyn Fn(u32) -> Option<&'a [u8]>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while left > 0 {
        let page = page(next)?;
        next = u32::from_be_bytes(page[..4].try_into().ok()?);
        let here = left.min(PAGE - 4);
        bytes.extend_from_slice(&page[4..4 + here]);
        left -= here;
    }
    Some(bytes)
}

fn columns(number: u64, record: &[u8]) -> Option<Kept> {
    let head = usize::from(*record.first()?);
    let mut kinds = record.get(1..head)?;
    let mut body = record.get(head..)?;
    let mut column = || {
        let (kind, rest) = varint(kinds)?;
        kinds = rest;
        let (value, rest) = body.split_at_checked(width(kind)?)?;
        body = rest;
        Some((kind, value))
    };
    let (_, (_, key), (_, at), (_, payload), (_, crc)) =
        (column()?, column()?, column()?, column()?, column()?);
    proven(number, key, Wall(integer(at)?), payload, integer(crc)?)
}

/// How much of a record of `length` bytes is in its leaf.
fn local_part(length: usize) -> usize {
    let (most, least) = (PAGE - 35, (PAGE - 12) * 32 / 255 - 23);
    if length <= most {
        return length;
    }
    let fits = least + (length - least) % (PAGE - 4);
    if fits <= most { fits } else { least }
}

/// The bytes a column of this kind takes: integers and byte strings, as ours are.
fn width(kind: u64) -> Option<usize> {
    match kind {
        0 | 8 | 9 => Some(0),
        1..=4 => Some(kind as usize),
        5 => Some(6),
        6 => Some(8),
        kind if kind >= 12 => usize::try_from((kind - 12) / 2).ok(),
        _ => None,
    }
}

/// A signed integer of up to eight bytes. (Zero and one have kinds of their own and no bytes; a time
/// or a checksum of one is not worth a branch: such a row is found by SQLite or not at all.)
fn integer(bytes: &[u8]) -> Option<i64> {
    if bytes.len() > 8 {
        return None;
    }
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let mut whole = if negative { [0xff; 8] } else { [0; 8] };
    whole[8 - bytes.len()..].copy_from_slice(bytes);
    Some(i64::from_be_bytes(whole))
}

/// SQLite's variable-length integer: seven bits a byte, eight in the ninth.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(9).enumerate() {
        if place == 8 {
            return Some((value << 8 | u64::from(*byte), &bytes[9..]));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
}
