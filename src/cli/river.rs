//! `towpath river …`

use clap::{Args, Subcommand};

use super::{Failure, say};
use crate::daemon::river;

/// Describe the River services of the daemon
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  towpath river schema | jq .services\n  towpath river types > towpath.d.ts"
)]
pub(super) struct River {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print kinds and shapes as JSON Schema
    #[command(after_long_help = "Example:\n  towpath river schema | jq .services")]
    Schema,
    /// Print a TypeScript declaration file
    #[command(after_long_help = "Example:\n  towpath river types > towpath.d.ts")]
    Types,
}

impl River {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.what {
            What::Schema => say(river::described().json_schema().to_string()),
            What::Types => say(river::described().typescript().trim_end()),
        }
    }
}
