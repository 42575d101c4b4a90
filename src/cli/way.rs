//! How a client's pipe gets to its daemon: who it says it is, what it goes through, how patient it is.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Exit, Failure, Remote};
use crate::engine::pipes::http::{HttpDialer, Proxy, Transport};
use crate::engine::pipes::{Event, Plan};
use crate::state::pipe::Liveness;
use crate::wire::dial::Address;
use crate::wire::{ClientTls, Target};

/// How a client's pipe gets to its daemon.
#[derive(Clone, Debug, Args)]
pub(super) struct Way {
    /// A file whose first line is a token (or put the token into TOWPATH_TOKEN)
    #[arg(long, env = "TOWPATH_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    route: Route,
    /// Notice a dead connection within 5 seconds instead of 25, for more traffic when idle
    #[arg(long)]
    fast: bool,
    /// Give up sooner than the daemon would, when there is no connection for this many seconds
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u64>,
    /// How many seconds to try before the first connection
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    connect_timeout: u64,
    /// Replace a healthy connection at this age in seconds, before a balancer does; 0 never does
    #[arg(long, value_name = "SECONDS", default_value = "1200")]
    carrier_age: u64,
    /// Say nothing about losses and recoveries
    #[arg(long, short)]
    quiet: bool,
}

/// What a client's connections go through.
#[derive(Clone, Debug, Args)]
pub(super) struct Route {
    /// How frames travel: the upgrade is fastest, a WebSocket passes more proxies
    #[arg(long, value_enum, default_value = "auto")]
    transport: Carriage,
    /// Go through `http://[user:password@]host:port` or `socks5://…` (or set HTTPS_PROXY)
    #[arg(long, value_name = "PROXY")]
    proxy: Option<String>,
    /// Trust the certificates in this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Carriage {
    /// The upgrade first, a WebSocket where that does not pass
    Auto,
    /// Only the upgrade
    Upgrade,
    /// Only a WebSocket
    Websocket,
}

impl Way {
    /// What dials `server`.
    pub(super) fn dialer(&self, server: &str) -> Result<Arc<HttpDialer>, Failure> {
        let remote = Remote { url: server.to_owned(), token_file: self.token_file.clone() };
        Ok(Arc::new(self.route.dialer(&remote, self.route.transport())?))
    }

    /// A pipe to `target`.
    pub(super) fn plan(&self, dialer: &Arc<HttpDialer>, target: &str) -> Plan {
        let mut plan = Plan::new(dialer.clone(), target);
        plan.patience = Some(Duration::from_secs(self.connect_timeout));
        plan.grace = self.grace.map(Duration::from_secs);
        plan.carrier_age = (self.carrier_age > 0).then(|| Duration::from_secs(self.carrier_age));
        if self.fast {
            plan.liveness = Liveness::FAST;
        }
        plan
    }

    /// Tells a person what happens to a pipe, on standard error.
    pub(super) fn tell(&self, name: &str, event: &Event) {
        if self.quiet {
            return;
        }
        let line = match event {
            Event::Lost { why } => format!("{name}: link lost ({why}), reconnecting"),
            Event::Trouble(end) => format!("{name}: still trying: {end}"),
            // A healthy connection was replaced by a younger one: nobody noticed.
            Event::Recovered { down_for: Duration::ZERO, .. } => return,
            Event::Recovered { down_for, replayed } => {
                let down = down_for.as_secs_f64();
                format!("{name}: link lost {down:.1} s, replayed {}", in_bytes(*replayed))
            }
            Event::Connected { .. } | Event::Over(_) => return,
        };
        // Nobody reads standard error: then nobody wants to know.
        let _ = writeln!(io::stderr(), "towpath: {line}");
    }
}

impl Route {
    /// How frames are to travel.
    pub(super) fn transport(&self) -> Transport {
        match self.transport {
            Carriage::Auto => Transport::Auto,
            Carriage::Upgrade => Transport::Upgrade,
            Carriage::Websocket => Transport::WebSocket,
        }
    }

    /// The proxy on the way to `server`, if there is one.
    pub(super) fn proxy(&self, server: &str) -> Result<Option<Proxy>, Failure> {
        proxy_for(server, self.proxy.clone())
    }

    /// What dials a daemon this way.
    pub(super) fn dialer(&self, remote: &Remote, transport: Transport) -> Result<HttpDialer, Failure> {
        let proxy = self.proxy(&remote.url)?;
        let trust = self.ca.as_deref().map(ClientTls::trusting).transpose()?;
        Ok(HttpDialer::new(&remote.url, remote.token()?, transport, proxy, trust)?)
    }
}

/// The proxy on the way to `server`: the one that was named, or the environment's.
fn proxy_for(server: &str, named: Option<String>) -> Result<Option<Proxy>, Failure> {
    let variable = |name: &str| {
        let value = std::env::var(name).or_else(|_| std::env::var(name.to_ascii_lowercase())).ok();
        value.filter(|value| !value.is_empty())
    };
    let proxy = named.or_else(|| proxy_of_environment(server, variable));
    let proxy = proxy.map(|text| Proxy::parse(&text)).transpose();
    proxy.map_err(|why| Failure::new(Exit::Usage, "bad_proxy", why))
}

/// The environment's, unless `server` is on this machine or among those that are reached without one.
fn proxy_of_environment(server: &str, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    // What is no address is said by whoever dials it.
    let target = Target::parse(server).ok()?;
    let Address::Tcp(host, port) = target.address else { return None };
    let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if is_local || variable("NO_PROXY").is_some_and(|list| excepts(&list, &host, port)) {
        return None;
    }
    variable(if target.tls { "HTTPS_PROXY" } else { "HTTP_PROXY" })
}

/// Whether a list as in NO_PROXY names `host`: itself, a domain above it, or all of them.
fn excepts(list: &str, host: &str, port: u16) -> bool {
    let host = host.to_ascii_lowercase();
    list.split(',').map(str::trim).any(|entry| {
        // With more than one colon it is an IPv6 address, which has a port only behind brackets.
        let (name, at) = match entry.rsplit_once(':') {
            Some((name, digits)) if !name.contains(':') || name.ends_with(']') => (name, digits.parse().ok()),
            _ => (entry, Some(port)),
        };
        let name = name.trim_matches(['[', ']']).to_ascii_lowercase();
        let domain = name.trim_start_matches('*').trim_start_matches('.');
        let is_below = || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        at == Some(port) && (name == "*" || !domain.is_empty() && (host == domain || is_below()))
    })
}

fn in_bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes / 1_024),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_lists_hosts_the_domains_above_them_or_all() {
        for (list, url, is_direct) in [
            ("edge.example", "https://edge.example", true),
            ("edge.example", "https://a.edge.example", true),
            ("edge.example", "https://knowledge.example", false),
            (".example", "http://edge.example", true),
            ("*.example", "http://EDGE.example", true),
            ("other.test, Edge.Example ,", "https://edge.example", true),
            ("edge.example:8443", "https://edge.example:8443", true),
            ("edge.example:8443", "https://edge.example", false),
            ("10.0.0.7", "http://10.0.0.7:7700", true),
            ("0.0.7", "http://10.0.1.7:7700", false),
            ("fd00::7", "http://[fd00::7]:7700", true),
            ("[fd00::7]:7700", "http://[fd00::7]:7700", true),
            ("[fd00::7]:7700", "http://[fd00::7]:7701", false),
            ("*", "https://edge.example", true),
            ("", "https://edge.example", false),
            (",.,", "https://edge.example", false),
            ("", "http://127.0.0.1:7700", true),
            ("", "http://localhost:7700", true),
            ("", "http://localhost.example", false),
        ] {
            let variable = |name: &str| Some(if name == "NO_PROXY" { list } else { "proxy" }.to_owned());
            assert_eq!(proxy_of_environment(url, variable).is_none(), is_direct, "{list:?} for {url}");
        }
    }

    #[test]
    fn bytes_read_as_people_say_them() {
        assert_eq!([0, 1_023, 41 * 1_024, 3 << 20].map(in_bytes), ["0 B", "1023 B", "41 KiB", "3.0 MiB"]);
    }
}
