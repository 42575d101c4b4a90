//! What was found in a spool that was opened, and what damage did.

use std::ops::RangeInclusive;
use std::path::PathBuf;

/// What was found when the spool was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is as it was left.
    Whole,
    /// It was damaged. It was set aside, and a new one was made of what could be read.
    Damaged(Report),
}

/// What damage did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Report {
    /// Where the damaged file is now; nothing when it was only looked at.
    pub set_aside: Option<PathBuf>,
    /// What is wrong with it.
    pub causes: Vec<String>,
    /// Records that could be read.
    pub salvaged: u64,
    /// Numbers of records that could not be read.
    pub missing: Vec<RangeInclusive<u64>>,
    /// Whether there may be more than those: where the spool ended could not be read.
    pub end_unknown: bool,
}

impl Report {
    /// How many records are missing.
    pub fn lost(&self) -> u64 {
        self.missing.iter().map(|range| range.end() - range.start() + 1).sum()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {} records salvaged, {} lost", self.causes.join("; "), self.salvaged, self.lost())?;
        for range in &self.missing {
            write!(f, " [{}-{}]", range.start(), range.end())?;
        }
        if self.end_unknown {
            f.write_str(", where it ended is not known")?;
        }
        Ok(())
    }
}
