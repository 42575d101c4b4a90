//! How a pipe ended: a number for the wire, a word for whoever branches on it, a sentence for whoever reads it.

use std::fmt;

/// Why a pipe, or an attempt to have one, ended. The numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Ending {
    /// Both directions came to their end.
    Eof = 0,
    /// The target does not listen.
    TargetRefused = 1,
    /// The target cannot be reached, or its name cannot be resolved.
    TargetUnreachable = 2,
    /// The target, or the program at the other end, broke off.
    TargetReset = 3,
    /// The target is not on the allow-list.
    NotAllowed = 4,
    /// The caller is not known, or not the one the pipe belongs to.
    Auth = 5,
    /// Nobody came back in time.
    GraceExpired = 6,
    /// There is no such pipe (any more).
    UnknownPipe = 7,
    /// A newer carrier bears the pipe. The attempt is over, not the pipe.
    Superseded = 8,
    /// It made room for a newer pipe of the same principal.
    Evicted = 9,
    /// A limit was reached.
    Limit = 10,
    /// Somebody ended it by hand.
    Killed = 11,
    /// The server is going.
    Shutdown = 12,
    /// The peer broke the protocol.
    Protocol = 13,
    /// A bug.
    Internal = 14,
    /// The client cannot reach the server. A client says so of itself; it never goes over the wire.
    ServerUnreachable = 15,
}

impl Ending {
    /// Every ending, each at its number.
    pub const ALL: [Ending; 16] = [
        Ending::Eof,
        Ending::TargetRefused,
        Ending::TargetUnreachable,
        Ending::TargetReset,
        Ending::NotAllowed,
        Ending::Auth,
        Ending::GraceExpired,
        Ending::UnknownPipe,
        Ending::Superseded,
        Ending::Evicted,
        Ending::Limit,
        Ending::Killed,
        Ending::Shutdown,
        Ending::Protocol,
        Ending::Internal,
        Ending::ServerUnreachable,
    ];

    /// The ending with that number; one from a newer peer reads as [`Ending::Internal`].
    pub fn from_number(number: u16) -> Ending {
        Ending::ALL.get(usize::from(number)).copied().unwrap_or(Ending::Internal)
    }

    /// The code as problem documents, logs and metrics have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ending::Eof => "eof",
            Ending::TargetRefused => "target_refused",
            Ending::TargetUnreachable => "target_unreachable",
            Ending::TargetReset => "target_reset",
            Ending::NotAllowed => "not_allowed",
            Ending::Auth => "auth",
            Ending::GraceExpired => "grace_expired",
            Ending::UnknownPipe => "unknown_pipe",
            Ending::Superseded => "superseded",
            Ending::Evicted => "evicted",
            Ending::Limit => "limit",
            Ending::Killed => "killed",
            Ending::Shutdown => "shutdown",
            Ending::Protocol => "protocol",
            Ending::Internal => "internal",
            Ending::ServerUnreachable => "server_unreachable",
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a pipe ended, with a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The code to branch on.
    pub code: Ending,
    /// A lower-case fragment; may be empty.
    pub reason: String,
}

impl End {
    /// An ending and its sentence.
    pub fn new(code: Ending, reason: impl Into<String>) -> End {
        End { code, reason: reason.into() }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.as_str() {
            "" => write!(f, "{}", self.code),
            reason => write!(f, "{reason} ({})", self.code),
        }
    }
}
