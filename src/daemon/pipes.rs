//! Pipes as the daemon has them: settings, the allow-list, and a row in the connection log for each.

use std::sync::Arc;

use uuid::Uuid;

use crate::config::Config;
use crate::engine::connections::Connections;
use crate::engine::pipes::allow::{Allow, BadTarget};
use crate::engine::pipes::{Mode, Note, PipeInfo, Pipes, Server, Settings};
use crate::rt::{Rt, Wall};
use crate::state::connection::{Kind, Record, Status};
use crate::{Code, Error, Result};

/// Starts the threads that carry pipes.
pub(super) fn start(rt: &Rt, config: &Config, connections: &Connections) -> Result<Pipes> {
    let settings = Settings {
        window: config.pipes.window.bytes(),
        budget: config.pipes.budget.bytes(),
        grace: config.pipes.grace.on().copied(),
        insecure: config.server.insecure,
        ..Settings::default()
    };
    let connections = connections.clone();
    let server = Server {
        mode: Mode::Tunnel,
        allow: allow_list(config)?,
        owner: rt.secret(),
        notes: Arc::new(move |note| {
            if let Some(record) = record(note) {
                // Never waits: this is a thread that carries bytes.
                connections.offer(record);
            }
        }),
        ..Server::none()
    };
    Pipes::start(rt, settings, server)
}

/// Where pipes may lead.
pub(super) fn allow_list(config: &Config) -> Result<Allow> {
    let rules = config.pipes.allow.iter().map(|rule| {
        rule.parse()
            .map_err(|error: BadTarget| Error::new(Code::BadConfig, error.to_string()).while_("pipes.allow"))
    });
    rules.collect::<Result<_>>().map(Allow::new)
}

/// What the connection log has of it: a pipe's beginning and its end. Carriers come and go in between, and
/// are not connections of anybody's.
fn record(note: &Note) -> Option<Record> {
    match note {
        Note::Opened(info) => Some(of_pipe(info, Status::Connected)),
        Note::Ended { info, end } => {
            let record = of_pipe(info, Status::Disconnected);
            Some(Record { disconnect_reason: Some(end.to_string()), ..record })
        }
        Note::Attached { .. } | Note::Detached { .. } => None,
    }
}

fn of_pipe(info: &PipeInfo, status: Status) -> Record {
    // Whoever accepts it gives it a name of its own and the time.
    let record = Record::new(Uuid::nil(), Wall(0), Kind::Pipe, status);
    Record {
        connection_id: Some(Uuid::from_bytes(info.id.0)),
        ip: info.peer.as_ref().and_then(|peer| peer.ip),
        slug_or_port: Some(info.target.clone()),
        labels: [("principal".to_owned(), info.principal.to_string())].into(),
        ..record
    }
}
