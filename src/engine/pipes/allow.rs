//! Which targets a server dials for its pipes. Nothing unless it is listed.
//!
//! The resolved address is what is checked, not the name: a name that resolves to something else the
//! second time leads nowhere new. Addresses that only mean something on one machine or link (link-local,
//! and with it the metadata services of clouds) need a rule that names exactly them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A list of rules; a target is allowed if one of them says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    rules: Vec<Rule>,
}

/// One rule, as `--allow` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    place: Place,
    ports: (u16, u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Any address, by `*`.
    Any,
    /// A name, as it is asked for.
    Name(String),
    /// Addresses whose first bits are these.
    Net { ip: IpAddr, bits: u8 },
    /// A Unix-domain socket.
    Path(PathBuf),
}

/// What a pipe leads to, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A host, by name or address, and a port.
    Tcp(String, u16),
    /// A Unix-domain socket.
    Unix(PathBuf),
}

/// Why text is no rule or no target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTarget {
    text: String,
    why: &'static str,
}

impl fmt::Display for BadTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.text, self.why)
    }
}

impl std::error::Error for BadTarget {}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Target::Tcp(host, port) => write!(f, "{host}:{port}"),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Target {
    type Err = BadTarget;

    /// `host:port`, `[v6]:port` or `unix:/path`.
    fn from_str(text: &str) -> Result<Target, BadTarget> {
        let bad = |why| BadTarget { text: text.chars().take(200).collect(), why };
        if let Some(path) = text.strip_prefix("unix:") {
            return absolute(path).map(Target::Unix).map_err(bad);
        }
        let (host, port) = split(text).map_err(bad)?;
        let port = port.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| bad("the port is not a number from 1 to 65535"))?;
        if host.is_empty()
            || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte))
        {
            return Err(bad("the host is empty or holds characters no host has"));
        }
        Ok(Target::Tcp(host.to_ascii_lowercase(), port))
    }
}

fn absolute(path: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(path);
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && plain {
        Ok(path.to_owned())
    } else {
        Err("the path must be absolute and without `..`")
    }
}

/// The host without brackets, and what stands behind the last colon.
fn split(text: &str) -> Result<(&str, &str), &'static str> {
    let missing = "expected host:port, [v6]:port or unix:/path";
    match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once("]:").ok_or(missing)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| "what stands in brackets is no IPv6 address")?;
            Ok((host, port))
        }
        None => text.rsplit_once(':').filter(|(host, _)| !host.contains(':')).ok_or(missing),
    }
}

impl FromStr for Rule {
    type Err = BadTarget;

    /// `host:port`, `host:*`, `host:1000-2000`, `10.0.0.0/8:22`, `[fd00::]/8:22`, `*:443`, `unix:/path`.
    fn from_str(text: &str) -> Result<Rule, BadTarget> {
        let bad = |why| BadTarget { text: text.to_owned(), why };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = absolute(path).map_err(bad)?;
            return Ok(Rule { place: Place::Path(path), ports: (0, 0) });
        }
        let (place, ports) = text.rsplit_once(':').ok_or_else(|| bad("expected a port behind a colon"))?;
        let ports = match ports.split_once('-') {
            _ if ports == "*" => Some((1, u16::MAX)),
            Some((first, last)) => first.parse().ok().zip(last.parse().ok()),
            None => ports.parse().ok().map(|port: u16| (port, port)),
        };
        let ports = ports.filter(|(first, last)| *first > 0 && first <= last);
        let ports = ports.ok_or_else(|| bad("expected a port, a range first-last, or *"))?;
        Ok(Rule { place: Place::parse(place).map_err(bad)?, ports })
    }
}

impl Place {
    fn parse(text: &str) -> Result<Place, &'static str> {
        if text == "*" {
            return Ok(Place::Any);
        }
        let (host, bits) = match text.rsplit_once('/') {
            Some((host, bits)) => (host, Some(bits)),
            None => (text, None),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match (bare.parse::<IpAddr>(), bits) {
            (Ok(ip), bits) => {
                let all = if ip.is_ipv4() { 32 } else { 128 };
                let bits =
                    bits.map_or(Ok(all), |bits| bits.parse().map_err(|_| "the prefix length is no number"))?;
                if bits > all {
                    return Err("the prefix is longer than the address");
                }
                let canonical = ip.to_canonical();
                // An IPv4 address in IPv6's clothes loses the 96 bits that all of those have in common.
                let lost = if canonical.is_ipv4() { all - 32 } else { 0 };
                let bits = u8::checked_sub(bits, lost).ok_or("the prefix covers more than IPv4 addresses")?;
                Ok(Place::Net { ip: canonical, bits })
            }
            (Err(_), Some(_)) => Err("only addresses have a prefix length"),
            (Err(_), None) if bare.is_empty() || bare.contains(':') => {
                Err("the host is empty or needs brackets")
            }
            (Err(_), None) => Ok(Place::Name(bare.to_ascii_lowercase())),
        }
    }
}

impl Allow {
    /// Nothing is allowed.
    pub fn nothing() -> Allow {
        Allow::default()
    }

    /// What these rules say.
    pub fn new(rules: Vec<Rule>) -> Allow {
        Allow { rules }
    }

    /// Whether nothing is allowed.
    pub fn is_nothing(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a path is allowed.
    pub fn path(&self, path: &Path) -> bool {
        self.rules.iter().any(|rule| rule.place == Place::Path(path.to_owned()))
    }

    /// Whether an address is allowed that `host` resolved to.
    pub fn address(&self, host: &str, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.rules.iter().any(|rule| {
            let port = (rule.ports.0..=rule.ports.1).contains(&address.port());
            port && match &rule.place {
                Place::Any => !is_special(ip),
                // Whoever lists a name trusts what it resolves to, but not with this machine's own links.
                Place::Name(name) => name == host && !is_near(ip),
                Place::Net { ip: net, bits } => {
                    let exact = *bits == if net.is_ipv4() { 32 } else { 128 };
                    within(ip, *net, *bits) && (exact || !is_near(ip))
                }
                Place::Path(_) => false,
            }
        })
    }
}

/// Whether the first `bits` of both are the same.
fn within(ip: IpAddr, net: IpAddr, bits: u8) -> bool {
    match (ip, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => {
            let shift = 32 - u32::from(bits);
            ip.to_bits().checked_shr(shift).unwrap_or(0) == net.to_bits().checked_shr(shift).unwrap_or(0)
        }
        (IpAddr::V6(ip), IpAddr::V6(net)) => {
            let shift = 128 - u32::from(bits);
            ip.to_bits().checked_shr(shift).unwrap_or(0) == net.to_bits().checked_shr(shift).unwrap_or(0)
        }
        _ => false,
    }
}

/// Addresses that `*` does not mean: this machine, its links, and nobody at all.
fn is_special(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_near(ip)
}

/// Addresses that no rule means but one that lists exactly them: this machine's links, and where clouds tell a
/// machine its secrets.
fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_link_local()
                || [[100, 100, 100, 200], [168, 63, 129, 16], [192, 0, 0, 192]].contains(&ip.octets())
        }
        IpAddr::V6(ip) => {
            let start = ip.segments();
            ip.is_unicast_link_local()
                || [[0xfd00, 0x0ec2], [0xfd20, 0x00ce], [0xfd00, 0x00c1]].contains(&[start[0], start[1]])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(rules: &[&str]) -> Allow {
        Allow::new(rules.iter().map(|rule| rule.parse().expect("a rule")).collect())
    }

    /// (rules, host as asked for, address it resolved to, allowed)
    #[test]
    fn the_resolved_address_decides() {
        let cases: &[(&[&str], &str, &str, bool)] = &[
            (&[], "127.0.0.1", "127.0.0.1:22", false),
            (&["127.0.0.1:22"], "127.0.0.1", "127.0.0.1:22", true),
            (&["127.0.0.1:22"], "localhost", "127.0.0.1:22", true),
            (&["127.0.0.1:22"], "127.0.0.1", "127.0.0.1:23", false),
            (&["127.0.0.1:22"], "127.0.0.1", "[::ffff:127.0.0.1]:22", true),
            (&["10.0.0.0/8:1000-2000"], "a", "10.9.8.7:1000", true),
            (&["10.0.0.0/8:1000-2000"], "a", "10.9.8.7:2001", false),
            (&["10.0.0.0/8:*"], "a", "11.0.0.1:1", false),
            (&["0.0.0.0/0:80"], "a", "93.184.216.34:80", true),
            (&["0.0.0.0/0:80"], "a", "169.254.169.254:80", false),
            (&["169.254.169.254:80"], "a", "169.254.169.254:80", true),
            (&["*:443"], "a", "93.184.216.34:443", true),
            (&["*:443"], "a", "127.0.0.1:443", false),
            (&["*:443"], "a", "[::1]:443", false),
            (&["*:443"], "a", "[fe80::1]:443", false),
            (&["*:443"], "a", "[::ffff:169.254.169.254]:443", false),
            (&["db.internal:5432"], "db.internal", "10.0.0.9:5432", true),
            (&["db.internal:5432"], "db.internal", "169.254.169.254:5432", false),
            (&["db.internal:5432"], "other", "10.0.0.9:5432", false),
            (&["[fd00::]/8:22"], "a", "[fd12::1]:22", true),
            (&["[fd00::]/8:22"], "a", "[fd00:ec2::254]:22", false),
            (&["[::1]:22"], "a", "[::1]:22", true),
            (&["*:80"], "a", "100.100.100.200:80", false),
            (&["*:80"], "a", "168.63.129.16:80", false),
            (&["168.0.0.0/8:80"], "a", "168.63.129.16:80", false),
            (&["168.63.129.16:80"], "a", "168.63.129.16:80", true),
            (&["[::]/0:80"], "a", "[fd20:ce::254]:80", false),
            (&["[::ffff:10.0.0.0]/104:22"], "a", "10.1.2.3:22", true),
            (&["[::ffff:10.0.0.0]/104:22"], "a", "11.1.2.3:22", false),
            (&["[::ffff:10.0.0.1]:22"], "a", "10.0.0.1:22", true),
            (&["[::ffff:10.0.0.1]:22"], "a", "10.0.0.2:22", false),
            (&["unix:/run/x"], "a", "127.0.0.1:22", false),
        ];
        for (rules, host, address, expected) in cases {
            let address = address.parse().expect("an address");
            assert_eq!(allow(rules).address(host, address), *expected, "{rules:?} {host} {address}");
        }
    }

    #[test]
    fn a_path_is_allowed_by_its_own_name_only() {
        let allow = allow(&["unix:/run/db.sock"]);
        assert!(allow.path(Path::new("/run/db.sock")));
        assert!(!allow.path(Path::new("/run/db.sock2")));
    }

    #[test]
    fn what_is_no_rule_is_said_so() {
        for bad in [
            "",
            "host",
            "host:",
            "host:0",
            "host:9-3",
            "host:x",
            "10.0.0.0/33:1",
            "a/8:1",
            "unix:rel",
            ":1",
            "[::ffff:0.0.0.0]/95:1",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_target_reads_as_it_prints() {
        for good in ["host:22", "10.0.0.1:65535", "[::1]:22", "unix:/run/x.sock"] {
            assert_eq!(good.parse::<Target>().expect("a target").to_string(), good);
        }
        for bad in [
            "",
            "host",
            "host:0",
            "host:65536",
            "::1:22",
            "a b:1",
            "unix:x",
            "unix:/a/../b",
            "[x]:1",
            "h\n:1",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
