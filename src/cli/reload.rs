//! `towpath reload`

use clap::Args;
use serde_json::{Value, json};

use super::{Exit, Failure, Remote, say};
use crate::client::http::ApiError;

/// Have a daemon read its configuration again, all or nothing
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  towpath reload\n  towpath reload --json\n\n\
    The same as SIGHUP, with an answer: which settings need a restart, or what is wrong. An error\n\
    keeps everything as it was. Needs the role `admin`.\n\n\
    Exit codes: 0 read again, 69 nobody answers, 78 the configuration is refused.")]
pub(super) struct Reload {
    #[command(flatten)]
    remote: Remote,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub(super) fn run(self) -> Result<(), Failure> {
        let answer = match self.remote.api()?.post("/v1/admin/reload", &json!({})) {
            Ok(answer) => answer,
            Err(ApiError::Problem { code, detail, .. }) if code == "bad_config" => {
                return Err(Failure::new(Exit::Configuration, code, detail)
                    .advice("the daemon keeps what it had; `towpath config check FILE` says the same"));
            }
            Err(error) => return Err(error.into()),
        };
        if self.json {
            return say(answer.to_string());
        }
        let later: Vec<&str> =
            answer["needs_restart"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        match later.is_empty() {
            true => say("the configuration was read again"),
            false => {
                say(format!("the configuration was read again; these need a restart: {}", later.join(", ")))
            }
        }
    }
}
