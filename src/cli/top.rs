//! `towpath top`

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::figures::Figures;
use super::{Api, Failure, Remote, Table, say};
use crate::client::http::ApiError;
use crate::rt::{Moment, Rt};

/// Show what a daemon does, as it does it: streams, sessions, pipes, flushes
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath top                       until Ctrl-C, every two seconds\n  \
    towpath top --every 10 --rows 40\n  \
    towpath top --count 2 | cat       plain text: two looks, one below the other\n  \
    towpath top --json --count 1      one line of JSON a look\n\n\
    Rates are over the time since the look before; the first look takes one interval. Where standard\n\
    output is no terminal, it prints one look (or --count) without control characters.")]
pub(super) struct Top {
    #[command(flatten)]
    remote: Remote,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    every: u64,
    /// How many looks; without it, until it is stopped (one, if this is no terminal)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// How many streams and pipes to show at most
    #[arg(long, value_name = "NUMBER", default_value = "20", value_parser = clap::value_parser!(u64).range(1..=1_000))]
    rows: u64,
    /// As JSON, one line a look
    #[arg(long)]
    json: bool,
}

/// One look at everything.
struct Look {
    at: Moment,
    figures: Figures,
    streams: Vec<Value>,
    /// None where the credentials do not allow to see pipes.
    pipes: Option<Vec<Value>>,
}

/// What is put beside each other, and where it stands in the figures.
const RATES: &[(&str, &str)] = &[
    ("deliveries", "towpath_deliveries_total"),
    ("requests", "towpath_requests_total"),
    ("bytes out", "towpath_bytes_out_total"),
    ("metadata values written", "towpath_metadata_flushed_total"),
    ("metadata flushes", "towpath_metadata_flushes_total"),
    ("connection rows written", "towpath_connections_flushed_total"),
    ("connection flushes", "towpath_connections_flushes_total"),
];

const NOW: &[(&str, &str)] = &[
    ("links", "towpath_links"),
    ("sessions", "towpath_sessions"),
    ("sessions connected", "towpath_sessions_connected"),
    ("pipes", "towpath_pipes_open"),
    ("metadata waiting", "towpath_metadata_pending"),
    ("connection records waiting", "towpath_connections_pending"),
    ("spooled", "towpath_spool_records"),
];

impl Top {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = self.remote.api()?;
        let rt = Rt::real();
        let terminal = io::stdout().is_terminal();
        let looks = self.count.or((!terminal).then_some(1));
        let mut before = self.look(&rt, &api)?;
        let mut done = 0;
        while looks.is_none_or(|looks| done < looks) {
            rt.sleep(Duration::from_secs(self.every));
            let look = self.look(&rt, &api)?;
            let seconds = look.at.since(before.at).as_secs_f64().max(1e-3);
            if self.json {
                say(json_of(&look, &before, seconds).to_string())?;
            } else {
                let text = text_of(&api, &look, &before, seconds);
                // Home, the text with the rest of each line cleared, and what is below it: nothing flickers.
                match terminal {
                    true => {
                        let clear = if done == 0 { "\x1b[2J" } else { "" };
                        say(format!("{clear}\x1b[H{}\x1b[K\x1b[J", text.replace('\n', "\x1b[K\n")))?;
                    }
                    false => say(text)?,
                }
            }
            before = look;
            done += 1;
        }
        Ok(())
    }

    fn look(&self, rt: &Rt, api: &Api) -> Result<Look, Failure> {
        // What runs now is worth more than what once ran.
        let mut streams = Vec::new();
        for status in ["running,interrupting,pending", "failed,idle,done"] {
            let room = self.rows - streams.len() as u64;
            if room > 0 {
                let answer = api.get(&format!("/v1/streams?limit={room}&status={status}"))?;
                streams.extend(answer["streams"].as_array().cloned().unwrap_or_default());
            }
        }
        // Followers and parts are known where the stream is followed or produced, and to an admin.
        let living = match api.get("/v1/admin/live") {
            Ok(answer) => answer["streams"].as_array().cloned().unwrap_or_default(),
            Err(ApiError::Problem { status: 403, .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        for row in &mut streams {
            let here = living.iter().find(|here| here["stream"] == row["id"]);
            row["followers"] = here.map_or(Value::Null, |here| here["followers"].clone());
            row["parts"] = here.map_or(Value::Null, |here| here["parts"].clone());
        }
        let pipes = match api.get("/v1/pipes") {
            Ok(answer) => Some(answer["pipes"].as_array().cloned().unwrap_or_default()),
            Err(ApiError::Problem { status: 403, .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Look { at: rt.now(), figures: Figures::read(api)?, streams, pipes })
    }
}

fn name_of(stream: &Value) -> &str {
    stream["name"].as_str().or_else(|| stream["id"].as_str()).unwrap_or_default()
}

/// How far a stream moved since the look before, each second: its rows, and the parts of its turn.
fn stream_rates(look: &Look, before: &Look, seconds: f64) -> BTreeMap<String, f64> {
    let count = |row: &Value, name: &str| row[name].as_u64().unwrap_or(0);
    let was: BTreeMap<&str, &Value> = before.streams.iter().map(|row| (name_of(row), row)).collect();
    let moved = |row: &Value| {
        let Some(then) = was.get(name_of(row)) else { return 0.0 };
        let of = |name| count(row, name).saturating_sub(count(then, name));
        (of("pos") + of("parts")) as f64 / seconds
    };
    look.streams.iter().map(|row| (name_of(row).to_owned(), moved(row))).collect()
}

fn json_of(look: &Look, before: &Look, seconds: f64) -> Value {
    let rates: serde_json::Map<String, Value> = RATES
        .iter()
        .map(|(_, name)| ((*name).to_owned(), json!(look.figures.since(&before.figures, name) / seconds)))
        .collect();
    let now: serde_json::Map<String, Value> =
        NOW.iter().map(|(_, name)| ((*name).to_owned(), json!(look.figures.get(name)))).collect();
    let streams = stream_rates(look, before, seconds);
    let streams: Vec<Value> = look
        .streams
        .iter()
        .map(|row| {
            let turn = &row["turn"]["turn"];
            json!({
                "name": name_of(row), "status": row["status"], "worker": row["worker"], "turn": turn,
                "followers": row["followers"], "changes_per_second": streams[name_of(row)],
            })
        })
        .collect();
    json!({ "seconds": seconds, "now": now, "per_second": rates, "streams": streams, "pipes": look.pipes })
}

fn text_of(api: &Api, look: &Look, before: &Look, seconds: f64) -> String {
    let mut text = format!("{} over {seconds:.1} s\n", api.base());
    for (label, name) in NOW {
        text += &format!("{label} {}  ", figure(look.figures.get(name)));
    }
    text.truncate(text.trim_end().len());
    text.push_str("\n\n");
    let mut rates = Table::new(&["each second", ""]);
    for (label, name) in RATES {
        rates.row([(*label).to_owned(), figure(look.figures.since(&before.figures, name) / seconds)]);
    }
    text += &rates.text();
    text.push_str("\n\n");
    let moved = stream_rates(look, before, seconds);
    let mut streams = Table::new(&["stream", "status", "worker", "turn", "followers", "changes/s"]);
    for row in &look.streams {
        let short = |value: &Value| value.as_str().unwrap_or_default().chars().take(8).collect::<String>();
        streams.row([
            name_of(row).to_owned(),
            row["status"].as_str().unwrap_or_default().to_owned(),
            short(&row["worker"]),
            row["turn"]["turn"].as_u64().map_or_else(String::new, |turn| turn.to_string()),
            row["followers"].as_u64().map_or_else(String::new, |followers| followers.to_string()),
            figure(moved[name_of(row)]),
        ]);
    }
    text += &streams.text();
    match &look.pipes {
        None => text.push_str("\n\npipes: these credentials may not see them"),
        Some(pipes) if pipes.is_empty() => {}
        Some(pipes) => {
            let mut table = Table::new(&["pipe", "state", "target", "in", "out", "resumes", "waiting"]);
            for pipe in pipes {
                let count = |name: &str| figure(pipe[name].as_f64().unwrap_or(0.0));
                // The end tells pipes apart; the beginning is the moment they began.
                let id = pipe["id"].as_str().unwrap_or_default();
                let id = id[id.len().saturating_sub(8)..].to_owned();
                let text = |name: &str| pipe[name].as_str().unwrap_or_default().to_owned();
                table.row([
                    id,
                    text("state"),
                    text("target"),
                    count("bytes_to_target"),
                    count("bytes_from_target"),
                    count("resumes"),
                    count("buffered_bytes"),
                ]);
            }
            text.push_str("\n\n");
            text += &table.text();
        }
    }
    text
}

/// A number as short as it can be read.
fn figure(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.1} G", v / 1e9),
        v if v >= 1e6 => format!("{:.1} M", v / 1e6),
        v if v >= 1e4 => format!("{:.1} k", v / 1e3),
        v if v == v.trunc() => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let told: Vec<String> = [0.0, 3.0, 3.25, 12_300.0, 4.5e6, 7e9].into_iter().map(figure).collect();
        assert_eq!(told, ["0", "3", "3.2", "12.3 k", "4.5 M", "7.0 G"]);
    }

    #[test]
    fn a_stream_that_was_not_there_before_has_no_rate_yet() {
        let look = |rows: &[(&str, u64)]| Look {
            at: Moment::ZERO,
            figures: Figures::default(),
            streams: rows.iter().map(|(name, pos)| json!({ "name": name, "pos": pos })).collect(),
            pipes: None,
        };
        let rates = stream_rates(&look(&[("a", 30), ("new", 50)]), &look(&[("a", 10)]), 2.0);
        assert_eq!((rates["a"], rates["new"]), (10.0, 0.0));
    }
}
