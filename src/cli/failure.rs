//! How a command says that it could not: what, where, what to do, a code, an exit code.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::client::http::ApiError;
use crate::config::ConfigError;
use crate::{Code, Error};

/// What a command exits with besides 0. Documented; scripts branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Exit {
    /// It did not work.
    Failed = 1,
    /// The command line has no meaning.
    Usage = 2,
    /// A stop took longer than it may.
    DrainTimedOut = 3,
    /// The daemon or its store cannot be reached now.
    Unavailable = 69,
    /// A file or folder cannot be made.
    CannotCreate = 73,
    /// The configuration has no meaning, or asks for what is refused.
    Configuration = 78,
}

/// Why a command did not do its work.
#[derive(Debug)]
pub struct Failure {
    exit: u8,
    code: String,
    text: String,
    advice: Option<String>,
}

impl Failure {
    /// A failure with its exit code, its stable code and its sentence (what, and where).
    pub fn new(exit: Exit, code: impl Into<String>, text: impl Into<String>) -> Failure {
        Failure { exit: exit as u8, code: code.into(), text: text.into(), advice: None }
    }

    /// The same with an exit code of the command's own, as `connect` has.
    #[must_use]
    pub fn exit_with(mut self, exit: u8) -> Failure {
        self.exit = exit;
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Failure {
        self.advice = Some(advice.into());
        self
    }

    /// What the process exits with.
    pub fn exit(&self) -> u8 {
        self.exit
    }

    pub(super) fn report(&self) -> ExitCode {
        // With standard error closed, the exit code is all that is left to say it with.
        let _ = io::stderr().write_all(format!("towpath: {self}\n").as_bytes());
        ExitCode::from(self.exit)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.text, self.code)?;
        match &self.advice {
            Some(advice) => write!(f, "\n  {advice}"),
            None => Ok(()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let exit = match error.code() {
            Code::BadConfig => Exit::Configuration,
            Code::StoreUnavailable => Exit::Unavailable,
            _ => Exit::Failed,
        };
        Failure::new(exit, error.code().as_str(), error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::new(Exit::Configuration, "bad_config", format!("configuration\n{error}"))
            .advice("`towpath config init` prints a file with every setting, explained")
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        let failure = |exit, code: &str| Failure::new(exit, code, error.to_string());
        match &error {
            ApiError::Unreachable { .. } => failure(Exit::Unavailable, "unreachable")
                .advice("is the daemon running there? `towpath serve` starts one; --url names another"),
            ApiError::Problem { status: 401, code, .. } => failure(Exit::Failed, code)
                .advice("give a token: --token-file FILE, or TOWPATH_TOKEN in the environment"),
            ApiError::Problem { code, .. } => {
                failure(if code == "store_unavailable" { Exit::Unavailable } else { Exit::Failed }, code)
            }
            ApiError::Garbled { .. } => {
                failure(Exit::Failed, "garbled").advice("does another program answer at this address?")
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            // `towpath … | head` has read enough: nothing failed.
            io::ErrorKind::BrokenPipe => Failure::new(Exit::Failed, "broken_pipe", "the reader went away"),
            _ => Failure::new(Exit::Failed, "io", error.to_string()),
        }
    }
}
