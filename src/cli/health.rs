//! `towpath health`

use clap::Args;

use super::{Exit, Failure, Remote};

/// Ask a daemon whether it is well; exit 0 if so
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath health\n  \
    towpath health --ready --url https://edge.example.com\n  \
    HEALTHCHECK CMD [\"towpath\", \"health\"]          in a Dockerfile")]
pub(super) struct Health {
    #[command(flatten)]
    remote: Remote,
    /// Ask whether it can take work (/readyz), not only whether it lives (/healthz)
    #[arg(long)]
    ready: bool,
    /// Print the daemon's answer
    #[arg(long)]
    json: bool,
}

impl Health {
    pub(super) fn run(self) -> Result<(), Failure> {
        let api = self.remote.api()?;
        let path = if self.ready { "/readyz" } else { "/healthz" };
        let answer = api.get(path)?;
        let well = ["ready", "healthy"].iter().any(|field| answer[*field] == true);
        if !well {
            let text = format!("{} is not well: {}", api.base(), answer["reasons"]);
            return Err(Failure::new(Exit::Failed, "not_ready", text));
        }
        if self.json { super::say(answer.to_string()) } else { super::say("ok") }
    }
}
