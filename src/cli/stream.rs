//! `towpath stream …`

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{Failure, Remote, Table, say};
use crate::client::http::path_of;

/// List, show and change streams
#[derive(Debug, Args)]
pub(super) struct Stream {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List streams
    #[command(
        after_long_help = "Examples:\n  towpath stream ls\n  towpath stream ls --status running --label team=a --json"
    )]
    Ls {
        /// Only those with this status: idle, pending, running, interrupting, done or failed
        #[arg(long)]
        status: Option<String>,
        /// Only those with this label (KEY=VALUE, may be repeated)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// At most this many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a stream is doing
    #[command(after_long_help = "Examples:\n  towpath stream show chat/7")]
    Show {
        /// The stream
        name: String,
    },
    /// Create a stream
    #[command(after_long_help = "Examples:\n  towpath stream create chat/7 --label team=a --ttl 86400")]
    Create {
        /// The stream
        name: String,
        /// A label (may be repeated)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// What its messages are
        #[arg(long, default_value = "application/json", value_name = "TYPE")]
        content_type: String,
        /// Seconds without use after which it goes
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u64>,
    },
    /// Append one message
    #[command(after_long_help = "Examples:\n  towpath stream append chat/7 'hello'\n  \
        towpath stream append chat/7 --role assistant '{\"text\":\"hi\"}'")]
    Append {
        /// The stream
        name: String,
        /// The content: JSON if it is JSON, otherwise text
        content: String,
        /// Who says it
        #[arg(long, default_value = "user")]
        role: String,
    },
    /// Ask whoever produces a turn to stop
    #[command(after_long_help = "Examples:\n  towpath stream interrupt chat/7 --reason 'wrong question'")]
    Interrupt {
        /// The stream
        name: String,
        /// Why, for the worker
        #[arg(long)]
        reason: Option<String>,
    },
    /// Delete a stream and everything in it
    #[command(after_long_help = "Examples:\n  towpath stream rm chat/7")]
    Rm {
        /// The stream
        name: String,
    },
}

impl Stream {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = self.remote.api()?;
        let at = |name: &str, rest: &str| format!("/v1/streams/{}{rest}", path_of(name));
        match self.command {
            Command::Ls { status, labels, limit, json } => {
                let mut query = format!("/v1/streams?limit={limit}");
                for (key, value) in status
                    .iter()
                    .map(|s| ("status".to_owned(), s))
                    .chain(labels.iter().map(|(key, value)| (format!("label.{key}"), value)))
                {
                    query += &format!("&{}={}", path_of(&key), path_of(value));
                }
                list(&api.get(&query)?, json)
            }
            Command::Show { name } => say(pretty(&api.get(&at(&name, "/state"))?)),
            Command::Create { name, labels, content_type, ttl } => {
                let labels: Map<String, Value> = labels.into_iter().map(|(k, v)| (k, v.into())).collect();
                let mut body = json!({ "content_type": content_type, "labels": labels });
                if let Some(ttl) = ttl {
                    body["ttl_s"] = ttl.into();
                }
                api.put(&at(&name, ""), &body)?;
                Ok(())
            }
            Command::Append { name, content, role } => {
                let content = serde_json::from_str(&content).unwrap_or(Value::String(content));
                let written =
                    api.post(&at(&name, "/messages"), &json!({ "role": role, "content": content }))?;
                say(written["id"].to_string())
            }
            Command::Interrupt { name, reason } => {
                let body = reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
                api.post(&at(&name, "/interrupt"), &body)?;
                Ok(())
            }
            Command::Rm { name } => {
                api.delete(&at(&name, ""))?;
                Ok(())
            }
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

fn list(answer: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(answer.to_string());
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut table = Table::new(&["name", "status", "messages to", "turn", "worker"]);
    for row in answer["streams"].as_array().into_iter().flatten() {
        let worker = row["worker"].as_str().unwrap_or_default();
        let turn = row["turn"]["turn"].as_u64().map(|turn| turn.to_string()).unwrap_or_default();
        table.row([
            text(&row["name"]),
            text(&row["status"]),
            text(&row["history_pos"]),
            turn,
            worker.to_owned(),
        ]);
    }
    table.print()
}
