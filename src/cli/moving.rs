//! `towpath move`

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{Exit, Failure, Table, say};
use crate::Code;
use crate::daemon::upkeep;
use crate::rt::Rt;

/// Move every row from a data directory into an empty PostgreSQL database
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath move --from /var/lib/towpath --to postgres://me@db/towpath\n\n\
    For when one machine is not enough. Stop the daemon first. All tables move or none do; every row\n\
    is read back and compared before the move counts. Ids, positions and tokens stay what they\n\
    were: followers come back and go on where they stood. Afterwards:\n  \
    towpath serve --data /var/lib/towpath --store postgres://me@db/towpath\n\n\
    The old rows stay where they are, and are not served any more.\n\n\
    Exit codes: 0 done, 1 refused or different, 69 the database cannot be reached, 78 its address\n\
    has no meaning.")]
pub(super) struct Move {
    /// The data directory that is outgrown
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The database, empty: `postgres://…`
    #[arg(long, value_name = "STORE")]
    to: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Move {
    pub(super) fn run(self) -> Result<(), Failure> {
        if !(self.to.starts_with("postgres://") || self.to.starts_with("postgresql://")) {
            return Err(Failure::new(
                Exit::Usage,
                "bad_address",
                "--to is an address like postgres://me@db/towpath",
            ));
        }
        let watched = io::stderr().is_terminal();
        let moved = upkeep::outgrow(&Rt::real(), &self.from, &self.to, &mut |moved| {
            if watched {
                // Nobody is left to see it if that fails.
                let _ = writeln!(io::stderr(), "{}: {} rows", moved.table, moved.rows);
            }
        })
        .map_err(|error| {
            let advice = match error.code() {
                Code::NotFound => "--from names the directory that `serve --data` was given",
                Code::Conflict => "nothing was moved; the old rows are as they were",
                Code::StoreUnavailable => "does the database run there, and may this user in?",
                _ => return Failure::from(error),
            };
            Failure::from(error).advice(advice)
        })?;
        let rows: u64 = moved.iter().map(|moved| moved.rows).sum();
        if self.json {
            let tables: Vec<Value> =
                moved.iter().map(|moved| json!({ "table": moved.table, "rows": moved.rows })).collect();
            return say(json!({ "tables": tables, "rows": rows, "verified": true }).to_string());
        }
        let mut table = Table::new(&["table", "rows"]);
        for moved in &moved {
            table.row([moved.table.clone(), moved.rows.to_string()]);
        }
        table.print()?;
        say(format!("{rows} rows moved, read back and found the same"))
    }
}
