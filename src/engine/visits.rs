//! towpath's own links in its connection log: who followed, who held a session or a pipe, and why it ended.
//!
//! A [`Visit`] writes its beginning when it is made and its end when it is ended, or dropped. Both are
//! handed over through [`Connections::offer`], which never waits, so that threads that carry connections
//! may make and drop visits. A visit without a log behind it is nothing, and costs nothing.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use uuid::Uuid;

use super::connections::Connections;
use super::pipes::Note;
use crate::rt::Wall;
use crate::state::connection::{Kind, Record, Status};

/// Why a visit ended that nobody ended before the engine did.
const STOPPED: &str = "stopped";

/// Where towpath's own links are recorded.
#[derive(Clone, Default)]
pub struct Visits {
    log: Option<Connections>,
}

/// Who came, as far as the door knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The address, if it has one.
    pub ip: Option<IpAddr>,
    /// With what, in its own words.
    pub user_agent: Option<Box<str>>,
    /// Whose credentials it showed.
    pub principal: Option<Box<str>>,
}

/// A link while it lasts.
#[derive(Default)]
pub struct Visit {
    open: Option<Box<Open>>,
}

struct Open {
    log: Connections,
    connection: Uuid,
    kind: Kind,
}

impl Visits {
    /// Recorded in this log.
    pub fn in_log(log: &Connections) -> Visits {
        Visits { log: Some(log.clone()) }
    }

    /// Somebody comes: written now, and again when the visit ends.
    pub fn begin(&self, kind: Kind, caller: &Caller, labels: &[(&str, &str)]) -> Visit {
        let Some(log) = &self.log else { return Visit::default() };
        self.begin_as(log.new_id(), kind, caller, None, labels)
    }

    /// Somebody follows a stream.
    pub fn follower(&self, caller: &Caller, labels: &[(&str, &str)]) -> Visit {
        self.begin(Kind::Stream, caller, labels)
    }

    /// What a server's pipes tell of themselves. They have names of their own.
    pub fn of_pipes(self) -> Arc<dyn Fn(&Note) + Send + Sync> {
        Arc::new(move |note| match (note, &self.log) {
            (Note::Opened(pipe), Some(_)) => {
                let caller = Caller {
                    ip: pipe.peer.as_ref().and_then(|peer| peer.ip),
                    user_agent: None,
                    principal: Some((&*pipe.principal).into()),
                };
                let target = pipe.target.as_str();
                let mut visit = self.begin_as(
                    Uuid::from_bytes(pipe.id.0),
                    Kind::Pipe,
                    &caller,
                    Some(target),
                    &[("target", target)],
                );
                // It ends by its note below, and not with this borrow.
                visit.open = None;
            }
            (Note::Ended { info, end }, Some(log)) => {
                let connection = Uuid::from_bytes(info.id.0);
                let open = Open { log: log.clone(), connection, kind: Kind::Pipe };
                let reason = match end.reason.as_str() {
                    "" => end.code.to_string(),
                    sentence => format!("{}: {sentence}", end.code),
                };
                Visit { open: Some(Box::new(open)) }.end(&reason);
            }
            (Note::Opened(_) | Note::Ended { .. } | Note::Attached { .. } | Note::Detached { .. }, _) => {}
        })
    }

    fn begin_as(
        &self,
        connection: Uuid,
        kind: Kind,
        caller: &Caller,
        target: Option<&str>,
        labels: &[(&str, &str)],
    ) -> Visit {
        let Some(log) = &self.log else { return Visit::default() };
        // Time and id are filled in where the record is taken.
        let mut record = Record::new(Uuid::nil(), Wall(0), kind, Status::Connected);
        record.connection_id = Some(connection);
        record.ip = caller.ip;
        record.slug_or_port = target.map(str::to_owned);
        record.user_agent = caller.user_agent.as_deref().map(str::to_owned);
        let principal = caller.principal.as_deref().map(|name| ("principal", name));
        let labels = labels.iter().copied().chain(principal);
        record.labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        log.offer(record);
        Visit { open: Some(Box::new(Open { log: log.clone(), connection, kind })) }
    }
}

impl fmt::Debug for Visits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.log.is_some() { "Visits" } else { "Visits(none)" })
    }
}

impl Visit {
    /// It is over, for this reason. Only the first reason counts.
    pub fn end(&mut self, reason: &str) {
        let Some(open) = self.open.take() else { return };
        let mut record = Record::new(Uuid::nil(), Wall(0), open.kind, Status::Disconnected);
        record.connection_id = Some(open.connection);
        // A peer may close without a word.
        record.disconnect_reason = Some(if reason.is_empty() { "closed" } else { reason }.to_owned());
        open.log.offer(record);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.end(STOPPED);
    }
}

impl fmt::Debug for Visit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.open.is_some() { "Visit" } else { "Visit(over)" })
    }
}
