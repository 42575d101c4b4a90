//! `towpath metadata …`

use std::io::{BufRead, BufReader};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::remote::COME_BACK;
use super::{Failure, Remote, Table, say};
use crate::client::http::{ApiError, path_of};
use crate::rt::Rt;
use crate::state::backoff::{Backoff, Next};

/// Report and read what agents say of themselves
#[derive(Debug, Args)]
pub(super) struct Metadata {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Report values as an agent
    #[command(after_long_help = "Examples:\n  \
        towpath metadata set 6f1f3c1e-0000-4000-8000-000000000001 cpu=12% load=0.4\n  \
        towpath metadata set $AGENT disk= --error 'df: timed out'")]
    Set {
        /// The agent's UUID
        agent: String,
        /// KEY=VALUE, one or more
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = pair)]
        values: Vec<(String, String)>,
        /// Why the values could not be found
        #[arg(long)]
        error: Option<String>,
    },
    /// Print an agent's newest values
    #[command(after_long_help = "Examples:\n  towpath metadata get $AGENT --json")]
    Get {
        /// The agent's UUID
        agent: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print an agent's values whenever they change
    #[command(after_long_help = "Examples:\n  towpath metadata watch $AGENT | jq .metadata")]
    Watch {
        /// The agent's UUID
        agent: String,
    },
}

impl Metadata {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = self.remote.api()?;
        let at = |agent: &str| format!("/v1/agents/{}/metadata", path_of(agent));
        match self.command {
            Command::Set { agent, values, error } => {
                let rows: Vec<Value> = values
                    .into_iter()
                    .map(|(key, value)| match &error {
                        None => json!({ "key": key, "value": value }),
                        Some(error) => json!({ "key": key, "value": value, "error": error }),
                    })
                    .collect();
                api.post(&at(&agent), &json!({ "metadata": rows }))?;
                Ok(())
            }
            Command::Get { agent, json } => {
                let answer = api.get(&at(&agent))?;
                if json { say(answer.to_string()) } else { print(&answer) }
            }
            Command::Watch { agent } => {
                let rt = Rt::real();
                let mut wait = Backoff::new(COME_BACK);
                let mut rand = rt.rand("watch");
                loop {
                    match api.send(
                        "GET",
                        &format!("{}/watch", at(&agent)),
                        &[("accept", "text/event-stream")],
                        None,
                    ) {
                        Ok(answer) => {
                            for line in BufReader::new(answer.into_reader()).lines().map_while(Result::ok) {
                                wait.healthy(rt.now());
                                if let Some(data) = line.strip_prefix("data:") {
                                    say(data.trim_start())?;
                                }
                            }
                        }
                        Err(error @ ApiError::Problem { status, .. }) if status != 503 && status != 429 => {
                            return Err(error.into());
                        }
                        Err(_) => {}
                    }
                    if let Next::TryAt(moment) = wait.failed(rt.now(), rand.next_u64()) {
                        rt.sleep_until(moment);
                    }
                }
            }
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn print(answer: &Value) -> Result<(), Failure> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut table = Table::new(&["key", "value", "error", "collected"]);
    for row in answer["metadata"].as_array().into_iter().flatten() {
        table.row([text(&row["key"]), text(&row["value"]), text(&row["error"]), text(&row["collected_at"])]);
    }
    table.print()
}
