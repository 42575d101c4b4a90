//! Which daemon a command talks to, and how it says who it is.

use std::path::PathBuf;
use std::time::Duration;

use super::{Api, Exit, Failure};
use crate::client::http::ApiError;
use crate::rt::Rt;
use crate::state::backoff::{Backoff, Budget, Next, Policy};

/// How a command that lasts comes back after a lost connection: soon, and then every few seconds.
pub(super) const COME_BACK: Policy = Policy {
    first: Duration::from_millis(250),
    cap: Duration::from_secs(5),
    at_once: true,
    reset_after: Duration::from_secs(10),
    budget: Budget::Forever,
};

/// How a single request is tried again: a script would rather fail after a minute than hang.
const TRY_AGAIN: Policy = Policy { budget: Budget::For(Duration::from_secs(60)), ..COME_BACK };

/// Asks until the daemon answers; what it refuses is not asked again. Only for requests that may be
/// made twice.
pub(super) fn retried<T>(rt: &Rt, mut ask: impl FnMut() -> Result<T, ApiError>) -> Result<T, ApiError> {
    let mut wait = Backoff::new(TRY_AGAIN);
    let mut rand = rt.rand("retried");
    loop {
        let error = match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let again =
            matches!(error, ApiError::Unreachable { .. } | ApiError::Problem { status: 429 | 503, .. });
        match wait.failed(rt.now(), rand.next_u64()) {
            Next::TryAt(moment) if again => rt.sleep_until(moment),
            _ => return Err(error),
        }
    }
}

/// Flags of every command that talks to a daemon: flatten it into the command's arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Remote {
    /// The daemon's address
    #[arg(
        long,
        env = "TOWPATH_URL",
        default_value = "http://127.0.0.1:7700",
        value_name = "URL",
        global = true
    )]
    pub url: String,
    /// A file whose first line is a token (or put the token into TOWPATH_TOKEN)
    #[arg(long, env = "TOWPATH_TOKEN_FILE", value_name = "FILE", global = true)]
    pub token_file: Option<PathBuf>,
}

impl Remote {
    /// The token given, if any. Never a flag's value: those show in process lists.
    ///
    /// # Errors
    /// When the file cannot be read or is empty.
    pub fn token(&self) -> Result<Option<String>, Failure> {
        let Some(file) = &self.token_file else {
            return Ok(std::env::var("TOWPATH_TOKEN").ok().filter(|token| !token.is_empty()));
        };
        let unreadable = |why: String| {
            Failure::new(Exit::Configuration, "bad_token_file", format!("{}: {why}", file.display()))
        };
        let text = std::fs::read_to_string(file).map_err(|error| unreadable(error.to_string()))?;
        match text.lines().next().map(str::trim) {
            None | Some("") => Err(unreadable("the first line should be a token".to_owned())),
            Some(token) => Ok(Some(token.to_owned())),
        }
    }

    /// A client for the daemon.
    ///
    /// # Errors
    /// When the address or the token has no meaning.
    pub fn api(&self) -> Result<Api, Failure> {
        Ok(Api::new(&self.url, self.token()?)?)
    }
}
