//! `towpath pipe`

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Failure, Remote, Table, say};

/// Look at pipes and end them
#[derive(Debug, Args)]
pub(super) struct Pipe {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List pipes
    #[command(after_long_help = "Examples:\n  towpath pipe ls\n  towpath pipe ls --json")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one pipe, as JSON
    #[command(after_long_help = "Example:\n  towpath pipe show 0f3c…")]
    Show {
        /// Its id
        id: String,
    },
    /// End a pipe: both sides are told
    #[command(after_long_help = "Example:\n  towpath pipe kill 0f3c…")]
    Kill {
        /// Its id
        id: String,
    },
    /// Cut a pipe's connection, to watch it recover
    #[command(after_long_help = "Example:\n  towpath pipe cut 0f3c…")]
    Cut {
        /// Its id
        id: String,
    },
}

impl Pipe {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = self.remote.api()?;
        match self.what {
            What::Ls { json } => {
                let answer = api.get("/v1/pipes")?;
                if json { say(answer["pipes"].to_string()) } else { table(&answer["pipes"]) }
            }
            What::Show { id } => say(format!("{:#}", api.get(&format!("/v1/pipes/{id}"))?)),
            What::Kill { id } => api.delete(&format!("/v1/pipes/{id}")).map(drop).map_err(Failure::from),
            What::Cut { id } => {
                api.post(&format!("/v1/pipes/{id}/cut"), &Value::Null).map(drop).map_err(Failure::from)
            }
        }
    }
}

fn table(pipes: &Value) -> Result<(), Failure> {
    let mut table = Table::new(&["id", "state", "principal", "target", "peer", "resumes", "buffered"]);
    for pipe in pipes.as_array().into_iter().flatten() {
        let text = |field: &str| match &pipe[field] {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
        let fields = ["id", "state", "principal", "target", "peer", "resumes", "buffered_bytes"];
        table.row(fields.map(text));
    }
    table.print()
}
