//! The way in: which sockets are listened on, what they show, and whose credentials are good.
//!
//! Invariant: keys, tokens and certificates are read whole before any of them is used, so that a broken file
//! keeps what holds.

use std::path::Path;
use std::sync::Arc;

use listenfd::ListenFd;

use crate::config::{Config, ListenAt, OrOff};
use crate::front::{Gate, Tokens, Verifier};
use crate::wire::{ClientTls, Listener, ServerTls};
use crate::{Code, Error, Result};

/// What was read from the files that the settings name.
pub(super) struct Keys {
    tokens: Tokens,
    verifiers: Vec<Arc<dyn Verifier>>,
    tls: Option<ServerTls>,
}

impl Keys {
    pub(super) fn read(config: &Config) -> Result<Keys> {
        let tls = match (&config.tls.certificate, &config.tls.key) {
            (OrOff::On(chain), OrOff::On(key)) => Some(ServerTls::from_files(chain, key)?),
            _ => None,
        };
        Ok(Keys { tokens: tokens(config)?, verifiers: verifiers(config)?, tls })
    }
}

/// What follows from other keys.
pub(super) struct Changed {
    /// Credentials were taken back that were good.
    pub(super) ended: bool,
    /// A certificate came or went, which only a restart can follow.
    pub(super) needs_restart: bool,
}

/// The way in while the daemon runs.
pub(super) struct Entrance {
    tls: Option<ServerTls>,
}

impl Entrance {
    /// Reads every file.
    pub(super) fn open(config: &Config) -> Result<(Entrance, Keys)> {
        let keys = Keys::read(config)?;
        Ok((Entrance { tls: keys.tls.clone() }, keys))
    }

    /// Uses these from now on.
    pub(super) fn change(&self, keys: Keys, gate: &Gate) -> Changed {
        // Both, whatever the first says.
        let ended = gate.set_tokens(keys.tokens) | gate.set_verifiers(keys.verifiers);
        let stays = match (&self.tls, &keys.tls) {
            (Some(now), Some(new)) => {
                now.replace(new);
                true
            }
            (now, new) => now.is_none() && new.is_none(),
        };
        Changed { ended, needs_restart: !stays }
    }

    /// The sockets a service manager bound for us, or else those that the settings name.
    pub(super) fn listeners(&self, config: &Config) -> Result<Vec<Listener>> {
        let mut listeners = handed_over()?;
        if listeners.is_empty() {
            let all = std::iter::once(&config.server.listen).chain(&config.server.listen_also);
            listeners = all.map(|at| listen(at, config.server.reuse_port)).collect::<Result<_>>()?;
        }
        let dress = |listener: Listener| match &self.tls {
            // A Unix socket is on this machine, and its file says who may use it.
            Some(tls) if listener.is_tcp() => listener.with_tls(tls.clone()),
            _ => listener,
        };
        Ok(listeners.into_iter().map(dress).collect())
    }
}

/// Whom the daemon trusts when it dials, and what it shows there; `None` is whom the system trusts.
pub(super) fn trust(config: &Config) -> Result<Option<ClientTls>> {
    if let Some((authority, chain, key)) = among_replicas(config) {
        return ClientTls::among(authority, chain, key).map(Some);
    }
    config.tls.trust.on().map(|file| ClientTls::trusting(file)).transpose()
}

/// The authority of all replicas, and this one's chain and key.
pub(super) fn among_replicas(config: &Config) -> Option<(&Path, &Path, &Path)> {
    let relay = &config.relay;
    Some((relay.authority.on()?, relay.certificate.on()?, relay.key.on()?))
}

/// Sockets of systemd's socket activation (`LISTEN_FDS`); none if this process was started by hand.
fn handed_over() -> Result<Vec<Listener>> {
    let mut handed = ListenFd::from_env();
    let bad = |at: usize, error: std::io::Error| {
        let text = format!("socket {at} from the service manager is no listener of ours: {error}");
        Error::new(Code::BadConfig, text)
    };
    let mut listeners = Vec::new();
    for at in 0..handed.len() {
        let tcp = handed.take_tcp_listener(at);
        let listener = match tcp {
            Ok(socket) => socket.map(Listener::from_tcp),
            Err(_) => handed.take_unix_listener(at).map_err(|error| bad(at, error))?.map(Listener::from_unix),
        };
        listeners.extend(listener);
    }
    Ok(listeners)
}

pub(super) fn listen(at: &ListenAt, share: bool) -> Result<Listener> {
    // What went wrong says where already.
    Listener::bind_with(&at.to_string(), share).map_err(|error| {
        Error::new(Code::BadConfig, format!("{error}; stop whoever is there, or name another address"))
    })
}

/// The token file's tokens; none if there is no file.
fn tokens(config: &Config) -> Result<Tokens> {
    let Some(path) = config.auth.token_file.on() else { return Ok(Tokens::default()) };
    let bad =
        |text: String| Error::new(Code::BadConfig, format!("auth.token_file: {}{text}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| bad(format!(": {error}")))?;
    Tokens::parse(&text).map_err(|(line, error)| bad(format!(":{line}: {error}")))
}

#[cfg(feature = "jwt")]
fn verifiers(config: &Config) -> Result<Vec<Arc<dyn Verifier>>> {
    use crate::front::{Jwt, Secret};
    let read = |path: &String| -> Result<Arc<dyn Verifier>> {
        let bad = |text: String| Error::new(Code::BadConfig, format!("auth.jwt_keys: {path}: {text}"));
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let key = match text.contains("-----BEGIN ") {
            true => Jwt::from_pem(text.as_bytes()),
            false => Jwt::hs256(&Secret::new(text.trim())),
        };
        Ok(Arc::new(key.map_err(|error| bad(error.to_string()))?))
    };
    config.auth.jwt_keys.iter().map(read).collect()
}

#[cfg(not(feature = "jwt"))]
fn verifiers(config: &Config) -> Result<Vec<Arc<dyn Verifier>>> {
    if config.auth.jwt_keys.is_empty() {
        return Ok(Vec::new());
    }
    let text = "auth.jwt_keys: this towpath was built without JWTs (cargo feature `jwt`)";
    Err(Error::new(Code::BadConfig, text))
}
