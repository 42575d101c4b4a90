//! `towpath backup FILE`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Exit, Failure, say};
use crate::Code;
use crate::daemon::upkeep;
use crate::rt::Rt;

/// Copy a data directory's databases into one file, while the daemon runs or not
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath backup towpath-$(date +%F).tar --data /var/lib/towpath\n\n\
    To restore, unpack it into an empty directory and serve from there:\n  \
    mkdir -m 700 restored && tar -xf towpath-2026-01-31.tar -C restored\n  \
    towpath serve --data restored\n\n\
    A restored store begins a new epoch: followers that come back with a token of before hear\n\
    `reset` with the reason `epoch` and get everything again, instead of something else than they\n\
    think. Rows in PostgreSQL are backed up with its own tools (docs/operations.md).\n\n\
    Exit codes: 0 done, 1 there is no store, 69 the store is busy, 73 FILE cannot be made or is there.")]
pub(super) struct Backup {
    /// The archive to make; it may not be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The data directory
    #[arg(long, value_name = "DIR", default_value = "towpath-data")]
    data: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub(super) fn run(self) -> Result<(), Failure> {
        let done = upkeep::back_up(&Rt::real(), &self.data, &self.file).map_err(|error| {
            let failure = |exit| Failure::new(exit, error.code().as_str(), error.to_string());
            match error.code() {
                Code::NotFound => {
                    failure(Exit::Failed).advice("--data names the directory that `serve` was given")
                }
                Code::Exists => {
                    failure(Exit::CannotCreate).advice("choose another name: a backup replaces none")
                }
                Code::StoreUnavailable => failure(Exit::Unavailable),
                _ => failure(Exit::CannotCreate),
            }
        })?;
        if self.json {
            let told = json!({ "file": self.file, "bytes": done.bytes, "databases": done.databases });
            return say(told.to_string());
        }
        say(format!("{}: {} bytes, {}", self.file.display(), done.bytes, done.databases.join(", ")))
    }
}
