//! Pipes as the daemon has them: settings, the allow-list, and a row in the connection log for each.

use crate::config::Config;
use crate::engine::pipes::allow::{Allow, BadTarget};
use crate::engine::pipes::{Limits, Mode, Pipes, Server, Settings, relay};
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
        limits: limits(config),
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

/// What one caller may have.
fn limits(config: &Config) -> Limits {
    let pipes = &config.pipes;
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Limits {
        pipes: count(pipes.per_caller),
        detached: count(pipes.detached_per_caller),
        new_per_second: u32::try_from(pipes.new_per_second).unwrap_or(u32::MAX),
        buffered: pipes.budget_per_caller.bytes(),
    }
}

/// Where pipes may lead.
pub(super) fn allow_list(config: &Config) -> Result<Allow> {
    let rules = config.pipes.allow.iter().map(|rule| {
        rule.parse()
            .map_err(|error: BadTarget| Error::new(Code::BadConfig, error.to_string()).while_("pipes.allow"))
    });
    rules.collect::<Result<_>>().map(Allow::new)
}
