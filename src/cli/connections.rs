//! `towpath connections …`

use std::io::{self, IsTerminal, Read, Write};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::progress::Progress;
use super::{Api, Failure, Remote, Table, say};
use crate::client::http::path_of;
use crate::rt::Rt;

/// Query the connection log
#[derive(Debug, Args)]
pub(super) struct Connections {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List connections, newest first
    #[command(
        after_long_help = "Examples:\n  towpath connections ls --filter status=ongoing --filter type=ssh,pipe\n  \
        towpath connections ls --json --limit 1000"
    )]
    Ls {
        #[command(flatten)]
        filter: Filter,
        /// At most this many (1,000 is the most)
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print connections as they are recorded
    #[command(after_long_help = "Examples:\n  towpath connections tail --filter type=ssh")]
    Tail {
        #[command(flatten)]
        filter: Filter,
    },
    /// Write everything that matches to standard output
    #[command(after_long_help = "Examples:\n  towpath connections export --format csv > connections.csv\n  \
        towpath connections export --filter connected_after=2026-01-01T00:00:00Z | gzip > log.ndjson.gz")]
    Export {
        #[command(flatten)]
        filter: Filter,
        /// How rows are written
        #[arg(long, value_enum, default_value_t = Format::Ndjson)]
        format: Format,
    },
    /// Delete connections that began before a moment
    #[command(after_long_help = "Examples:\n  towpath connections prune --before 2026-01-01T00:00:00Z")]
    Prune {
        /// An RFC 3339 time
        #[arg(long, value_name = "TIME")]
        before: String,
    },
}

#[derive(Debug, Args)]
struct Filter {
    /// NAME=VALUE, may be repeated: type, status, agent_name, user_id, connected_after, label.KEY…
    #[arg(long = "filter", value_name = "NAME=VALUE")]
    filters: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One JSON object a line
    Ndjson,
    /// A line of headings, then rows
    Csv,
}

impl Filter {
    fn query(&self) -> String {
        let pairs = self.filters.iter().map(|filter| {
            let (name, value) = filter.split_once('=').unwrap_or((filter, ""));
            format!("&{}={}", path_of(name), path_of(value))
        });
        pairs.collect()
    }
}

/// How often `tail` asks.
const TAIL_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
/// How far the daemon counts rows.
const COUNTED_TO: u64 = 10_000;

impl Connections {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = self.remote.api()?;
        match self.command {
            Command::Ls { filter, limit, json } => {
                let answer = api.get(&format!("/v1/connections?limit={limit}{}", filter.query()))?;
                if json { say(answer.to_string()) } else { print(&answer) }
            }
            Command::Tail { filter } => {
                let rt = Rt::real();
                let mut seen: Option<String> = None;
                loop {
                    let answer = api.get(&format!("/v1/connections?limit=200{}", filter.query()))?;
                    let rows = answer["connections"].as_array().cloned().unwrap_or_default();
                    let new: Vec<&Value> =
                        rows.iter().take_while(|row| row["id"].as_str() != seen.as_deref()).collect();
                    // The first look only says where to begin.
                    if seen.is_some() {
                        for row in new.iter().rev() {
                            say(row.to_string())?;
                        }
                    }
                    seen = rows
                        .first()
                        .and_then(|row| row["id"].as_str())
                        .map(str::to_owned)
                        .or(seen)
                        .or(Some(String::new()));
                    rt.sleep(TAIL_EVERY);
                }
            }
            Command::Export { filter, format } => {
                let (format, headings) = match format {
                    Format::Ndjson => ("ndjson", 0),
                    Format::Csv => ("csv", 1),
                };
                let path = format!("/v1/connections/export?format={format}{}", filter.query());
                let progress = progress(&api, &filter)?;
                copy(api.send("GET", &path, &[], None)?.into_reader(), progress, headings)
            }
            Command::Prune { before } => {
                // The daemon deletes in steps, so that nobody waits behind a large one.
                let (mut deleted, mut more) = (0, true);
                while more {
                    let step = api.post("/v1/admin/connections/prune", &json!({ "before": before }))?;
                    deleted += step["deleted"].as_u64().unwrap_or(0);
                    more = step["more"].as_bool().unwrap_or(false);
                }
                say(format!("{deleted} connections deleted"))
            }
        }
    }
}

/// A bar of as many rows as there are; without an end where the daemon did not count to the end. None if
/// nobody looks, or rows and bar would be mixed on one screen.
fn progress(api: &Api, filter: &Filter) -> Result<Option<Progress>, Failure> {
    if !io::stderr().is_terminal() || io::stdout().is_terminal() {
        return Ok(None);
    }
    let answer = api.get(&format!("/v1/connections?limit=1{}", filter.query()))?;
    let count = answer["count"].as_u64().filter(|count| *count < COUNTED_TO);
    Ok(Some(count.map_or_else(|| Progress::of_unknown("rows"), |count| Progress::new("rows", count))))
}

/// Copies to standard output as it comes, so that an export of any length needs no memory.
fn copy(mut from: impl Read, mut progress: Option<Progress>, headings: u64) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let mut buffer = vec![0; 64 * 1024];
    let mut lines: u64 = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        out.write_all(&buffer[..read])?;
        if let Some(progress) = &mut progress {
            lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
            progress.at(lines.saturating_sub(headings));
        }
    }
    Ok(out.flush()?)
}

fn print(answer: &Value) -> Result<(), Failure> {
    let text = |row: &Value, name: &str| match &row[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut table =
        Table::new(&["connected", "disconnected", "type", "agent", "ip", "user", "reason", "code"]);
    for row in answer["connections"].as_array().into_iter().flatten() {
        let fields = [
            "connect_time",
            "disconnect_time",
            "type",
            "agent_name",
            "ip",
            "user_id",
            "disconnect_reason",
            "code",
        ];
        table.row(fields.map(|name| text(row, name)));
    }
    table.print()
}
