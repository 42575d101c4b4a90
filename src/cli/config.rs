//! `towpath config …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Exit, Failure, Table, say};
use crate::config::{self, Sources};

/// Explain, check and show settings
#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a file with every setting at its default, explained
    #[command(after_long_help = "Examples:\n  towpath config init > towpath.toml")]
    Init,
    /// Print the manual of all settings as Markdown
    #[command(after_long_help = "Examples:\n  towpath config doc | less")]
    Doc,
    /// Say what is wrong with a file and the environment; exit 78 if anything is
    #[command(after_long_help = "Examples:\n  towpath config check towpath.toml\n  \
        TOWPATH_LOG__LEVEL=debug towpath config check")]
    Check {
        /// The file; without one, only the environment is checked
        file: Option<PathBuf>,
    },
    /// Print what holds, secrets taken out
    #[command(after_long_help = "Examples:\n  towpath config show --config towpath.toml --origin")]
    Show {
        /// The file
        #[arg(long, env = "TOWPATH_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        /// Say where each value came from
        #[arg(long)]
        origin: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

impl Config {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Init => say(config::sample().trim_end()),
            Command::Doc => say(config::manual().trim_end()),
            Command::Check { file } => {
                config::Config::load(&sources(file, Vec::new())?)?;
                say("ok")
            }
            Command::Show { config, origin, json } => show(&sources(config, Vec::new())?, origin, json),
        }
    }
}

/// A file if there is one, the process's environment, and flags.
pub(super) fn sources(file: Option<PathBuf>, flags: Vec<config::Flag>) -> Result<Sources, Failure> {
    let file = match file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(&path).map_err(|error| {
                Failure::new(Exit::Configuration, "bad_config", format!("{}: {error}", path.display()))
                    .advice("`towpath config init` prints a file to begin with")
            })?;
            Some((path, text))
        }
    };
    // A variable that is not UTF-8 is none of ours.
    let environment = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .collect();
    Ok(Sources { file, environment, flags })
}

fn show(sources: &Sources, with_origin: bool, as_json: bool) -> Result<(), Failure> {
    let config = config::Config::load(sources)?;
    let values = config.values();
    if as_json {
        let told: serde_json::Map<String, serde_json::Value> = values
            .into_iter()
            .map(|(name, value)| {
                (name.to_owned(), json!({ "value": value, "origin": config.origin(name).to_string() }))
            })
            .collect();
        return say(serde_json::Value::Object(told).to_string());
    }
    if !with_origin {
        return values.into_iter().try_for_each(|(name, value)| say(format!("{name} = {value}")));
    }
    let mut table = Table::new(&["setting", "value", "from"]);
    for (name, value) in values {
        table.row([name.to_owned(), value, config.origin(name).to_string()]);
    }
    table.print()
}
