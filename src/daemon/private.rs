//! The door for other replicas: a listener of its own, with an I/O thread of its own.
//!
//! It is bound before this replica is in the registry, so that the address written there is the one that is
//! listened on, and takes requests once the rooms behind it are there. What is behind it asks for tickets; no
//! guard looks for users' credentials, since none travel this way.

use std::sync::Arc;

use crate::Result;
use crate::config::{Config, UrlOrAuto};
use crate::front::Router;
use crate::rt::Rt;
use crate::wire::{Bound, IoThreads, Limits, Listener, Running, ServerTls};

/// Replicas and their streams: more links than that come from nobody we know.
const LINKS_MAX: usize = 20_000;
/// Eight turns at their default limit.
const QUEUE_BYTES: usize = 8 << 20;

/// The listener, if there is to be one, and where others reach it.
pub(super) struct Private {
    listener: Option<Listener>,
    url: Option<String>,
}

impl Private {
    pub(super) fn bind(config: &Config) -> Result<Private> {
        let Some(at) = config.relay.listen.on() else { return Ok(Private { listener: None, url: None }) };
        let listener = super::entrance::listen(at, false)?;
        let tls = super::entrance::among_replicas(config)
            .map(|(authority, chain, key)| ServerTls::among(authority, chain, key))
            .transpose()?;
        let url = match &config.relay.url {
            UrlOrAuto::At(url) => url.clone(),
            UrlOrAuto::Auto => url_of(&listener.address(), tls.is_some()),
        };
        let listener = match tls {
            Some(tls) => listener.with_tls(tls),
            None => listener,
        };
        Ok(Private { listener: Some(listener), url: Some(url) })
    }

    /// Where other replicas reach it.
    pub(super) fn url(&self) -> Option<String> {
        self.url.clone()
    }

    /// Takes requests from now on.
    pub(super) fn open(self, rt: &Rt, router: Router) -> Result<Option<Running>> {
        let Some(listener) = self.listener else { return Ok(None) };
        let io = IoThreads::named(rt, "relay-io", 1, None)?;
        // All of them come from a few addresses, and all at once when a replica starts.
        let limits = Limits {
            links: LINKS_MAX,
            links_per_address: LINKS_MAX as u32,
            // What is left of a turn goes out at once, and it may be long.
            queue_bytes: QUEUE_BYTES,
            ..Limits::default()
        };
        let running = io.start(limits, vec![listener], Arc::new(router))?;
        log::info!(target: "towpath/relay_listening", "replicas reach this one at {}", self.url.unwrap_or_default());
        Ok(Some(running))
    }
}

/// The address, or this machine's name where every address is listened on.
fn url_of(bound: &Bound, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    match bound {
        Bound::Tcp(at) if at.ip().is_unspecified() => {
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            format!("{scheme}://{name}:{}", at.port())
        }
        bound => format!("{scheme}://{bound}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listened_on_is_what_others_are_told() {
        let told = |at: &str| url_of(&Bound::Tcp(at.parse().expect("an address")), false);
        assert_eq!(told("10.0.0.7:7701"), "http://10.0.0.7:7701");
        assert_eq!(told("[fd00::7]:7701"), "http://[fd00::7]:7701");
        let with_tls = url_of(&Bound::Tcp("10.0.0.7:7701".parse().expect("an address")), true);
        assert_eq!(with_tls, "https://10.0.0.7:7701");
        let everywhere = told("0.0.0.0:7701");
        assert!(!everywhere.contains("0.0.0.0") && everywhere.ends_with(":7701"), "{everywhere}");
    }
}
