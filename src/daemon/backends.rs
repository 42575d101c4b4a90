//! The connection log's backends besides the database, as the configuration names them.

use std::path::PathBuf;

use crate::Result;
use crate::config::{Config, OrOff};
use crate::engine::backends::{Backend, LinesBackend, LogBackend, WebhookBackend};

/// The backends that are on.
pub(super) fn named_by(config: &Config) -> Result<Vec<Box<dyn Backend>>> {
    let settings = &config.connections;
    let mut backends: Vec<Box<dyn Backend>> = Vec::new();
    if let OrOff::On(path) = &settings.lines {
        // A bare name lies where everything else of this daemon does.
        let path: PathBuf = config.store.data.join(path);
        let keep = u32::try_from(settings.lines_keep).unwrap_or(u32::MAX);
        backends.push(Box::new(LinesBackend::new(path, settings.lines_max.bytes(), keep)));
    }
    if settings.to_log {
        backends.push(Box::new(LogBackend));
    }
    if let OrOff::On(url) = &settings.webhook {
        let trust = config.tls.trust.on().map(PathBuf::as_path);
        backends.push(Box::new(WebhookBackend::new(url.reveal(), settings.webhook_timeout, trust)?));
    }
    Ok(backends)
}
