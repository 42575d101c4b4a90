//! `towpath man DIR`

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure};

/// Write a man page for each command into a folder
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath man /usr/local/share/man/man1\n  \
    towpath man . && man ./towpath-serve.1")]
pub(super) struct Man {
    /// The folder; made if missing
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<(), Failure> {
        let cannot = |error: std::io::Error| {
            Failure::new(Exit::CannotCreate, "io", format!("{}: {error}", self.dir.display()))
                .advice("name a folder you may write to")
        };
        std::fs::create_dir_all(&self.dir).map_err(cannot)?;
        clap_mangen::generate_to(super::command(), &self.dir).map_err(cannot)
    }
}
