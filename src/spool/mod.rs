//! What must outlive a crash or an outage: records that were accepted and are not yet in the store.
//!
//! A spool is a queue on disk. [`Spool::append`] returns once everything it was given is synced, and
//! that is what a receipt promises. Pages are read oldest first and forgotten only after the store
//! has committed them, so a record is sent twice rather than not at all.
//!
//! A spool belongs to one thread. [`File`] is the one that is used; the trait is there so that tests
//! can fail any of its calls.

mod file;
mod salvage;

use std::fmt;
use std::time::Duration;

use crate::error::{Code, Error};
use crate::state::time::Wall;

pub use file::{File, Found, Report, SCHEMA_VERSION};

/// Something to keep. Two items with one key are one record that came twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Tells a record that comes again.
    pub key: [u8; 16],
    /// What the store will be given; the spool does not look inside.
    pub payload: Vec<u8>,
}

/// An item as it lies in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its number. Numbers are contiguous, so that a missing one is a lost one.
    pub number: u64,
    /// When it was put in.
    pub at: Wall,
    /// The item.
    pub item: Item,
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Appended {
    /// Items that are in the spool now and were not before.
    pub new: usize,
    /// Items that were there already.
    pub known: usize,
    /// Old items that had to make room, where that was asked for.
    pub evicted: usize,
}

/// How full a spool may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all items together.
    pub max_bytes: u64,
    /// Bytes that stay free on the file system.
    pub min_free: u64,
    /// What happens beyond.
    pub when_full: WhenFull,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_bytes: 1 << 30, min_free: 256 << 20, when_full: WhenFull::Refuse }
    }
}

/// What a full spool does with something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// Refuses it; whoever brought it waits or is told.
    #[default]
    Refuse,
    /// Throws the oldest out, and counts it.
    OldestOut,
}

/// How a spool fares.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Status {
    /// Items in it.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest was put in.
    pub oldest_at: Option<Wall>,
    /// Items that damage took, since the spool was made.
    pub lost: u64,
}

/// Why the spool did not do it. Nothing was kept, forgotten or evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpoolError {
    /// It holds as much as it may.
    Full {
        /// Bytes in it.
        bytes: u64,
        /// Bytes it may have.
        max_bytes: u64,
    },
    /// The disk is full, or nearly.
    NoSpace {
        /// What the system said.
        text: String,
    },
    /// The file cannot be written or read, and neither could a new one.
    Broken {
        /// What the system said.
        text: String,
    },
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpoolError::Full { bytes, max_bytes } => {
                write!(
                    f,
                    "the spool holds {bytes} of {max_bytes} bytes: wait until the store is back, or raise max_bytes"
                )
            }
            SpoolError::NoSpace { text } => write!(f, "no space left for the spool: {text}"),
            SpoolError::Broken { text } => write!(f, "the spool cannot be used: {text}"),
        }
    }
}

impl std::error::Error for SpoolError {}

impl From<SpoolError> for Error {
    fn from(error: SpoolError) -> Error {
        let code = match error {
            SpoolError::Full { .. } | SpoolError::NoSpace { .. } => Code::Full,
            SpoolError::Broken { .. } => Code::Io,
        };
        Error::new(code, error.to_string())
    }
}

/// A queue on disk.
pub trait Spool: Send {
    /// Keeps all of these or none, synced before it returns.
    ///
    /// # Errors
    /// It is full, or the disk is, or cannot be written.
    fn append(&mut self, items: &[Item], at: Wall) -> Result<Appended, SpoolError>;

    /// The oldest items after number `after` (0: from the beginning), at most `rows`, and no more
    /// than `bytes` of payload unless the first alone is larger.
    ///
    /// # Errors
    /// The file cannot be read.
    fn page(&mut self, after: u64, rows: usize, bytes: usize) -> Result<Vec<Kept>, SpoolError>;

    /// Forgets everything up to and including `number`; how many that were.
    ///
    /// # Errors
    /// The file cannot be written.
    fn forget(&mut self, number: u64) -> Result<usize, SpoolError>;

    /// How it fares.
    ///
    /// # Errors
    /// The file cannot be read.
    fn status(&mut self) -> Result<Status, SpoolError>;
}

/// How the thread that writes a spool gathers receipts into one sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    /// How long the first waits for company, when the last one had some.
    pub window: Duration,
    /// With this many items it waits no longer.
    pub items: usize,
}

impl Default for Gather {
    fn default() -> Gather {
        Gather { window: Duration::from_millis(2), items: 256 }
    }
}
