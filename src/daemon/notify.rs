//! Telling a service manager how we are (systemd's `sd_notify`), if one asked to be told.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager.
#[derive(Debug)]
pub(super) struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// Finds the service manager of this process in its environment.
    pub(super) fn find() -> Manager {
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        // Half the time given, as systemd advises.
        let watchdog = watchdog.map(|micros: u64| Duration::from_micros(micros / 2));
        let socket = std::env::var("NOTIFY_SOCKET").ok().and_then(|path| match connect(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                log::warn!(target: "towpath/notify_failed", "the service manager at {path} cannot be told: {error}");
                None
            }
        });
        Manager { socket, watchdog }
    }

    /// How often to say [`Manager::alive`].
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.socket.is_some())
    }

    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}\n"));
    }

    pub(super) fn reloading(&self, now_micros: u64) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now_micros}\n"));
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    pub(super) fn alive(&self) {
        self.tell("WATCHDOG=1\n");
    }

    fn tell(&self, text: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            log::warn!(target: "towpath/notify_failed", "the service manager cannot be told: {error}");
        }
    }
}

fn connect(path: &str) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    Ok((UnixDatagram::unbound()?, address))
}
