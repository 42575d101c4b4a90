//! Pipes as the daemon has them: settings, the allow-list, and a row in the connection log for each.

use crate::config::Config;
use crate::engine::pipes::allow::{Allow, BadTarget};
use crate::engine::pipes::{Mode, Pipes, Server, Settings, relay};
use crate::engine::replicas::Replicas;
use crate::engine::visits::Visits;
use crate::rt::Rt;
use crate::{Code, Error, Result};

/// Starts the threads that carry pipes.
pub(super) fn start(rt: &Rt, config: &Config, visits: &Visits, replicas: &Replicas) -> Result<Pipes> {
    let settings = Settings {
        window: config.pipes.window.bytes(),
        budget: config.pipes.budget.bytes(),
        grace: config.pipes.grace.on().copied(),
        insecure: config.server.insecure,
        ..Settings::default()
    };
    let server = Server {
        mode: Mode::Tunnel,
        allow: allow_list(config)?,
        owner: relay::owner(replicas.me()),
        notes: visits.clone().of_pipes(),
        ..Server::none()
    };
    let server = match config.relay.listen.on() {
        // A replica of its own: nobody else has pipes.
        None => server,
        Some(_) => Server { ways: relay::ways(replicas, super::entrance::trust(config)?), ..server },
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
