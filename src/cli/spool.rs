//! `towpath spool …`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Exit, Failure, Remote, say};
use crate::rt::Rt;
use crate::spool::{File, Found, Kept, Limits, Spool as _};
use crate::store::held::{Asked, Held};

/// Look after what waits on disk for the database
#[derive(Debug, Args)]
pub(super) struct Spool {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How many records a daemon's spool holds, how old, how many were lost
    #[command(after_long_help = "Examples:\n  towpath spool status\n  towpath spool status --json")]
    Status {
        #[command(flatten)]
        remote: Remote,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print number, time and size of each record
    #[command(after_long_help = "Examples:\n  towpath spool list --data /var/lib/towpath")]
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Check every record; exits 1 when something is damaged
    #[command(after_long_help = "Examples:\n  towpath spool verify --data /var/lib/towpath")]
    Verify {
        #[command(flatten)]
        place: Place,
    },
    /// Set a damaged spool aside and save what can be read; no daemon may be running
    #[command(after_long_help = "Examples:\n  towpath spool repair --data /var/lib/towpath")]
    Repair {
        #[command(flatten)]
        place: Place,
    },
    /// Write every record as a line of JSON to standard output
    #[command(after_long_help = "Examples:\n  towpath spool export --data /var/lib/towpath > spool.ndjson")]
    Export {
        #[command(flatten)]
        place: Place,
    },
}

/// Where the spool is.
#[derive(Debug, Args)]
struct Place {
    /// The data directory
    #[arg(long, value_name = "DIR", default_value = "towpath-data")]
    data: PathBuf,
}

impl Spool {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Status { remote, json } => status(&remote, json),
            Command::List { place } => each(&place.data, |kept| {
                let time = crate::codec::connection::time_text(kept.at);
                say(format!("{}\t{time}\t{} bytes", kept.number, kept.item.payload.len()))
            }),
            Command::Export { place } => {
                each(&place.data, |kept| say(String::from_utf8_lossy(&kept.item.payload)))
            }
            Command::Verify { place } => verify(&place.data),
            Command::Repair { place } => repair(&place.data),
        }
    }
}

fn status(remote: &Remote, json: bool) -> Result<(), Failure> {
    let answer = remote.api()?.get("/v1/spool")?;
    if json {
        return say(answer.to_string());
    }
    for name in ["records", "bytes", "oldest_at", "dead_letters", "lost"] {
        let value = &answer[name];
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        say(format!("{name}\t{text}"))?;
    }
    Ok(())
}

/// Every record, oldest first, page by page, beside a daemon that may be running.
fn each(data: &Path, mut tell: impl FnMut(&Kept) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut spool = File::look(data).map_err(crate::Error::from)?;
    let mut after = 0;
    loop {
        let page = spool.page(after, 1_000, 4 << 20).map_err(crate::Error::from)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.number;
        page.iter().try_for_each(&mut tell)?;
    }
}

fn verify(data: &Path) -> Result<(), Failure> {
    let mut spool = File::look(data).map_err(crate::Error::from)?;
    match spool.verify().map_err(crate::Error::from)? {
        None => {
            let records = spool.status().map_err(crate::Error::from)?.records;
            say(format!("the spool is whole: {records} records"))
        }
        Some(report) => Err(Failure::new(
            Exit::Failed,
            "spool_damaged",
            format!(
                "{report}; `towpath spool repair` saves what can be read, and so does starting the daemon"
            ),
        )),
    }
}

fn repair(data: &Path) -> Result<(), Failure> {
    // The daemon holds this lock for as long as it runs.
    let _held = match Held::ask(&data.join("lock"))? {
        Asked::Held(held) => held,
        Asked::Taken(by) => {
            let text = format!("{} is in use by a running daemon{by}: stop it first", data.display());
            return Err(Failure::new(Exit::Failed, "directory_in_use", text));
        }
    };
    let (mut spool, found) =
        File::open(data, Limits::default(), Rt::real().wall()).map_err(crate::Error::from)?;
    match found {
        Found::Whole => {
            let records = spool.status().map_err(crate::Error::from)?.records;
            say(format!("the spool is whole: {records} records"))
        }
        Found::Damaged(report) => {
            let aside = report.set_aside.as_ref().map_or_else(String::new, |path| path.display().to_string());
            say(format!("{report}; the damaged file was set aside as {aside}"))
        }
    }
}
