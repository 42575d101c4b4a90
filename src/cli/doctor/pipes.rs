//! What `towpath doctor` finds out about pipes: whether they get through, how, and for how long.

use std::fmt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::super::way::Route;
use super::super::{Failure, Remote};
use super::Finding;
use crate::client::pipe::Pipe;
use crate::engine::pipes::dial::{self, DialError, Dialer};
use crate::engine::pipes::http::{HttpDialer, Transport};
use crate::engine::pipes::{Event, Pipes, Plan, Server, Settings};
use crate::rt::Rt;
use crate::state::pipe::Ending;

/// How long a pipe may take to begin.
const BEGIN_WAIT: Duration = Duration::from_secs(10);

/// How long the daemon keeps a pipe without a connection, as far as that is known.
#[derive(Clone, Copy)]
pub(super) enum Grace {
    /// No pipe was opened that would have told.
    Default,
    /// The daemon said so; none is for ever.
    Told(Option<Duration>),
}

impl Grace {
    /// Whether a pipe may come back after that long.
    fn outlasts(self, silence: Duration) -> bool {
        match self {
            Grace::Default => silence < Duration::from_secs(24 * 60 * 60),
            Grace::Told(grace) => grace.is_none_or(|grace| silence < grace),
        }
    }
}

impl fmt::Display for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grace::Default => f.write_str("a day, unless the daemon is set up otherwise (--pipe asks it)"),
            Grace::Told(Some(grace)) => write!(f, "{} s here", grace.as_secs()),
            Grace::Told(None) => f.write_str("for ever here"),
        }
    }
}

/// Whether the upgrade passes, or a WebSocket at least, and through which proxy.
pub(super) fn passage(
    rt: &Rt,
    remote: &Remote,
    route: &Route,
) -> Result<(Finding, Option<Transport>), Failure> {
    let proxy = route.proxy(&remote.url)?;
    let by = proxy.as_ref().map_or_else(|| "no proxy".to_owned(), |proxy| format!("through {proxy:?}"));
    let attempt = |transport| -> Result<Result<Duration, DialError>, Failure> {
        let dialer: Arc<dyn Dialer> = Arc::new(route.dialer(remote, transport)?);
        Ok(dial::probe(rt, &dialer))
    };
    let wanted = match route.transport() {
        Transport::Auto => &[Transport::Upgrade, Transport::WebSocket][..],
        Transport::Upgrade => &[Transport::Upgrade],
        Transport::WebSocket => &[Transport::WebSocket],
    };
    let mut refused = Vec::new();
    for transport in wanted {
        let name = if *transport == Transport::WebSocket { "a WebSocket" } else { "the upgrade" };
        match attempt(*transport)? {
            Ok(took) => {
                let found = format!("{name} passes, {by}, {} there and back", millis(took));
                let faster = "the upgrade does not pass, which would be faster: `Upgrade: towpath-pipe/1`";
                let advice = (!refused.is_empty()).then_some(faster);
                return Ok((Finding { advice, ..Finding::good("pipes", found) }, Some(*transport)));
            }
            Err(error) if error.end.code == Ending::Auth => {
                let found = format!("not tried: these credentials may not open pipes ({by})");
                return Ok((Finding::good("pipes", found), None));
            }
            Err(error) => refused.push(format!("{name}: {}", error.end)),
        }
    }
    let found = format!("{by}; {}", refused.join("; "));
    let advice = "something in between takes the `Upgrade` header out (examples/deploy)";
    Ok((Finding::bad("pipes", found, advice), None))
}

/// Opens a pipe and leaves it alone: its own questions are all that keeps what lies between from closing it.
/// Tells the daemon's grace as well.
pub(super) fn idle(
    rt: &Rt,
    dialer: HttpDialer,
    target: &str,
    wait: Duration,
) -> Result<(Finding, Grace), Failure> {
    let pipes = Pipes::start(rt, Settings::default(), Server::none())?;
    let plan = Plan { patience: Some(BEGIN_WAIT), ..Plan::new(Arc::new(dialer), target) };
    let pipe = Pipe::open(rt, &pipes.handle(), plan)?;
    let events = pipe.events().expect("nobody has asked before");
    if let Err(error) = pipe.wait_connected(Some(BEGIN_WAIT)) {
        let advice = "the daemon lists what it may connect to: `towpath serve --allow TARGET`";
        let found = format!("no pipe to {target}: {error}");
        return Ok((Finding::bad("pipe idle", found, advice), Grace::Default));
    }
    let began = rt.now();
    let mut told = Grace::Default;
    let finding = loop {
        // Woken by what happens to the pipe; otherwise it has lasted.
        match events.recv_deadline(began + wait) {
            Ok(Event::Connected { grace, .. }) => told = Grace::Told(grace),
            Ok(Event::Lost { why }) => {
                let lasted = rt.now().since(began).as_secs_f64();
                let found = format!("lost after {lasted:.1} s with nothing but its own questions ({why})");
                let advice = "something in between closes idle connections: give it a timeout above 30 s";
                break Finding::bad("pipe idle", found, advice);
            }
            Ok(Event::Over(end)) => {
                let found = format!("{target} ended it by itself ({end}): name one that waits");
                break Finding::good("pipe idle", found);
            }
            Ok(_) => {}
            Err(_) => {
                let found = format!("kept for {} s with nothing but its own questions", wait.as_secs());
                break Finding::good("pipe idle", found);
            }
        }
    };
    Ok((finding, told))
}

/// Whether ssh on this machine would end a session although its pipe comes back.
pub(super) fn ssh(host: Option<&str>, grace: Grace) -> Finding {
    // What ssh makes of its files. Sections for certain hosts only count for a host they match.
    let host = host.unwrap_or("host.invalid");
    let asked = Command::new("ssh").args(["-G", "--", host]).stdin(Stdio::null()).output();
    match asked {
        Ok(asked) if asked.status.success() => judge(&String::from_utf8_lossy(&asked.stdout), grace),
        _ => Finding::good("ssh", "not looked at: there is no ssh here that says how it is set up"),
    }
}

fn judge(settings: &str, grace: Grace) -> Finding {
    let setting = |name: &str| {
        let value = settings.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        value.unwrap_or_default()
    };
    let (interval, count) = (setting("serveraliveinterval "), setting("serveralivecountmax "));
    let gives_up = Duration::from_secs(interval.saturating_mul(count.max(1)));
    let silence = gives_up.as_secs();
    if interval == 0 {
        Finding::good("ssh", "does not end a session by itself")
    } else if grace.outlasts(gives_up) {
        let found = format!("ends a session after {silence} s of silence, a pipe is kept for {grace}");
        let advice = "for hosts behind a pipe: ServerAliveInterval 0 in ~/.ssh/config (docs/pipes.md)";
        Finding { advice: Some(advice), ..Finding::good("ssh", found) }
    } else {
        Finding::good("ssh", format!("ends a session after {silence} s of silence, later than a pipe does"))
    }
}

fn millis(took: Duration) -> String {
    format!("{:.2} ms", took.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_is_advised_only_when_it_would_give_up_before_the_pipe() {
        let judged = |interval: u64, count: u64, grace| {
            let settings = format!("user me\nserveraliveinterval {interval}\nserveralivecountmax {count}\n");
            judge(&settings, grace)
        };
        let told = |secs| Grace::Told(Some(Duration::from_secs(secs)));
        assert!(judged(0, 3, Grace::Told(None)).advice.is_none(), "off");
        assert!(judged(3_600, 24, Grace::Default).advice.is_none(), "a day");
        assert!(judged(3_600, 24, Grace::Told(None)).advice.is_some(), "a day is less than for ever");
        assert!(judged(15, 3, told(45)).advice.is_none(), "as long as this daemon's");
        assert!(judged(15, 3, told(46)).advice.is_some(), "a second less");
        let short = judged(15, 3, Grace::Default);
        assert!(short.found.contains("45 s") && short.advice.is_some() && short.well, "{}", short.found);
    }
}
