//! `towpath version`

use clap::Args;
use serde_json::json;

use super::Failure;

/// Print the version; with --json what it was built from
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  towpath version\n  towpath version --json | jq -r .commit")]
pub(super) struct Version {
    /// Commit, compiler, features and SQLite's version as JSON
    #[arg(long)]
    json: bool,
}

impl Version {
    pub(super) fn run(self) -> Result<(), Failure> {
        if !self.json {
            return super::say(format!("towpath {}", env!("CARGO_PKG_VERSION")));
        }
        let features: Vec<&str> = [
            ("jwt", cfg!(feature = "jwt")),
            ("postgres", cfg!(feature = "postgres")),
            ("testing", cfg!(feature = "testing")),
        ]
        .into_iter()
        .filter_map(|(name, on)| on.then_some(name))
        .collect();
        let told = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": option_env!("TOWPATH_COMMIT"),
            "rustc": option_env!("TOWPATH_RUSTC"),
            "features": features,
            "sqlite": rusqlite::version(),
        });
        super::say(told.to_string())
    }
}
