//! `towpath replicas`

use clap::Args;
use serde_json::Value;

use super::{Failure, Remote, Table, say};

/// List the replicas that serve together
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  towpath replicas\n  towpath replicas --json")]
pub(super) struct Replicas {
    #[command(flatten)]
    remote: Remote,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Replicas {
    pub(super) fn run(self) -> Result<(), Failure> {
        let answer = self.remote.api()?.get("/v1/replicas")?;
        if self.json {
            return say(answer.to_string());
        }
        let mut table = Table::new(&["id", "state", "hostname", "version", "relay", "updated", "error"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for row in answer["replicas"].as_array().into_iter().flatten() {
            let state = match (row["stopped_at"].is_string(), row["alive"].as_bool()) {
                (true, _) => "stopped",
                (false, Some(false)) => "silent",
                (false, _) => "alive",
            };
            let rest =
                ["hostname", "version", "relay_url", "updated_at", "error"].map(|name| text(&row[name]));
            table.row([text(&row["id"]), state.to_owned()].into_iter().chain(rest));
        }
        table.print()
    }
}
