//! `towpath serve`

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, say};
use crate::Code;
use crate::config::{Config, Flag};
use crate::daemon::{self, Callbacks, Ended};
use crate::wire::Bound;

/// Run the daemon
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_long_help = "Examples:\n  \
    towpath serve                                      on 127.0.0.1:7700, data in ./towpath-data\n  \
    towpath serve --data /var/lib/towpath --listen 127.0.0.1:0\n  \
    towpath serve --config /etc/towpath.toml\n  \
    towpath serve --store postgres://me@db/towpath --listen 0.0.0.0:7700 --token-file tokens\n  \
    towpath serve --store postgres://me@db/towpath --relay-listen 10.0.0.7:7701    one of several replicas\n\n\
    It prints one line, `listening on http://ADDRESS`, when it takes requests.\n\
    SIGTERM stops it (a second one at once), SIGHUP reads the configuration again,\n\
    SIGUSR1 writes what is going on into the log.\n\n\
    Exit codes: 0 stopped when told, 1 failed, 3 the stop took too long, 69 store unavailable,\n\
    73 data directory cannot be made, 78 configuration or address refused."
)]
pub(super) struct Serve {
    /// A file of settings (`towpath config init` prints one)
    #[arg(long, env = "TOWPATH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen: `127.0.0.1:7700`, port 0 for any, or `unix:/path` [server.listen]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Where other replicas fetch what runs here [relay.listen]
    #[arg(long, value_name = "ADDRESS")]
    relay_listen: Option<String>,
    /// How other replicas reach that [relay.url]
    #[arg(long, value_name = "URL")]
    relay_url: Option<String>,
    /// The data directory [store.data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// The store: `sqlite`, `memory` or `postgres://…` [store.url]
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// A file of tokens that may come in [auth.token_file]
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// Let pipes lead there: `host:port`, `10.0.0.0/8:22`, `unix:/path` (repeat it for more) [pipes.allow]
    #[arg(long, value_name = "TARGET")]
    allow: Vec<String>,
    /// Let pages of this origin use the daemon, besides its own (repeat it for more) [server.allow_origins]
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Listen where strangers can reach it although there is no authentication, and let the secrets of pipes
    /// cross a network in the clear [server.insecure]
    #[arg(long)]
    insecure: bool,
    /// How much to say: error, warn, info, debug or trace [log.level]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let insecure = self.insecure.then(|| "true".to_owned());
        let allow = (!self.allow.is_empty()).then(|| self.allow.join(","));
        let origins = (!self.allow_origin.is_empty()).then(|| self.allow_origin.join(","));
        let flags = [
            ("--listen", "server.listen", self.listen),
            ("--relay-listen", "relay.listen", self.relay_listen),
            ("--relay-url", "relay.url", self.relay_url),
            ("--data", "store.data", self.data),
            ("--store", "store.url", self.store),
            ("--token-file", "auth.token_file", self.token_file),
            ("--allow", "pipes.allow", allow),
            ("--allow-origin", "server.allow_origins", origins),
            ("--insecure", "server.insecure", insecure),
            ("--log", "log.level", self.log),
        ];
        let given: Vec<(&'static str, &'static str, String)> =
            flags.into_iter().filter_map(|(flag, name, value)| Some((flag, name, value?))).collect();
        serve_with(self.config, &given, &mut |_| {})
    }
}

/// Serves with these settings until told to stop; `ready` hears the address.
pub(super) fn serve_with(
    file: Option<PathBuf>,
    flags: &[(&'static str, &'static str, String)],
    ready: &mut dyn FnMut(&str),
) -> Result<(), Failure> {
    let load = || -> Result<Config, Failure> {
        let flags = flags.iter().map(|(flag, name, value)| Flag { flag, name, value: value.clone() });
        let sources = super::config::sources(file.clone(), flags.collect())?;
        Ok(Config::load(&sources)?)
    };
    let config = load()?;
    let scheme = if config.tls.certificate.on().is_some() { "https" } else { "http" };
    let ended = daemon::serve(
        config,
        Callbacks {
            ready: &mut |addresses| {
                for address in addresses {
                    let scheme = if matches!(address, Bound::Unix(_)) { "http" } else { scheme };
                    let url = format!("{scheme}://{address}");
                    // Whoever started us may have closed its end by now; the daemon goes on.
                    let _ = say(format!("listening on {url}"));
                    ready(&url);
                }
            },
            reload: &mut || load().map_err(|failure| failure.to_string()),
            give_up: || std::process::exit(i32::from(Exit::DrainTimedOut as u8)),
        },
    );
    match ended {
        Ok(Ended::Clean) => Ok(()),
        Ok(Ended::Panicked(cause)) => Err(Failure::new(Exit::Failed, "internal", cause)
            .advice("this is a bug in towpath; what was held is in the store or in the spool")),
        Err(error) => {
            let exit = match error.code() {
                Code::BadConfig => Exit::Configuration,
                Code::StoreUnavailable => Exit::Unavailable,
                Code::Io | Code::NotFound => Exit::CannotCreate,
                _ => Exit::Failed,
            };
            Err(Failure::new(exit, error.code().as_str(), error.to_string()))
        }
    }
}
