//! What `towpath doctor` finds out about pipes: whether they get through, how, and for how long.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::super::way::proxy_for;
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
/// The daemon's default grace.
const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether the upgrade passes, or a WebSocket at least, and through which proxy.
pub(super) fn passage(rt: &Rt, remote: &Remote) -> Result<(Finding, Option<Transport>), Failure> {
    let proxy = proxy_for(&remote.url, None)?;
    let by = proxy.as_ref().map_or_else(|| "no proxy".to_owned(), |proxy| format!("through {proxy:?}"));
    let attempt = |transport| -> Result<Result<Duration, DialError>, Failure> {
        let made = HttpDialer::new(&remote.url, remote.token()?, transport, proxy.clone(), None)?;
        let dialer: Arc<dyn Dialer> = Arc::new(made);
        Ok(dial::probe(rt, &dialer))
    };
    let refused = match attempt(Transport::Upgrade)? {
        Ok(took) => {
            let found = format!("the upgrade passes, {by}, {} there and back", millis(took));
            return Ok((Finding::good("pipes", found), Some(Transport::Upgrade)));
        }
        Err(error) if error.end.code == Ending::Auth => {
            let found = format!("not tried: these credentials may not open pipes ({by})");
            return Ok((Finding::good("pipes", found), None));
        }
        Err(error) => error.end,
    };
    Ok(match attempt(Transport::WebSocket)? {
        Ok(took) => {
            let found = format!("a WebSocket passes, {by}, {} there and back", millis(took));
            let advice = "the upgrade does not pass, which would be faster: `Upgrade: towpath-pipe/1`";
            (Finding { advice: Some(advice), ..Finding::good("pipes", found) }, Some(Transport::WebSocket))
        }
        Err(error) => {
            let found = format!("{by}: {refused}; as a WebSocket: {}", error.end);
            let advice = "something in between takes the `Upgrade` header out (examples/deploy)";
            (Finding::bad("pipes", found, advice), None)
        }
    })
}

/// Opens a pipe and leaves it alone: its own questions are all that keeps what lies between from closing it.
pub(super) fn idle(
    rt: &Rt,
    remote: &Remote,
    transport: Transport,
    target: &str,
    wait: Duration,
) -> Result<Finding, Failure> {
    let dialer =
        HttpDialer::new(&remote.url, remote.token()?, transport, proxy_for(&remote.url, None)?, None)?;
    let pipes = Pipes::start(rt, Settings::default(), Server::none())?;
    let plan = Plan { patience: Some(BEGIN_WAIT), ..Plan::new(Arc::new(dialer), target) };
    let pipe = Pipe::open(rt, &pipes.handle(), plan)?;
    let events = pipe.events().expect("nobody has asked before");
    if let Err(error) = pipe.wait_connected(Some(BEGIN_WAIT)) {
        let advice = "the daemon lists what it may connect to: `towpath serve --allow TARGET`";
        return Ok(Finding::bad("pipe idle", format!("no pipe to {target}: {error}"), advice));
    }
    let began = rt.now();
    Ok(loop {
        // Woken by what happens to the pipe; otherwise it has lasted.
        match events.recv_deadline(began + wait) {
            Ok(Event::Lost { why }) => {
                let lasted = rt.now().since(began).as_secs_f64();
                let found = format!("lost after {lasted:.1} s without a byte ({why})");
                let advice = "something in between closes idle connections: give it a timeout above 30 s";
                break Finding::bad("pipe idle", found, advice);
            }
            Ok(Event::Over(end)) => {
                let found = format!("{target} ended it by itself ({end}): name one that waits");
                break Finding::good("pipe idle", found);
            }
            Ok(_) => {}
            Err(_) => {
                let found = format!("kept for {} s without a byte", wait.as_secs());
                break Finding::good("pipe idle", found);
            }
        }
    })
}

/// Whether ssh on this machine would end a session although its pipe comes back.
pub(super) fn ssh() -> Finding {
    // What ssh makes of its files; the name decides only about sections for certain hosts.
    let asked = Command::new("ssh").args(["-G", "host.invalid"]).stdin(Stdio::null()).output();
    let asked = match asked {
        Ok(asked) if asked.status.success() => String::from_utf8_lossy(&asked.stdout).into_owned(),
        _ => return Finding::good("ssh", "not looked at: there is no ssh here that says how it is set up"),
    };
    judge(&asked)
}

fn judge(settings: &str) -> Finding {
    let setting = |name: &str| {
        let value = settings.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        value.unwrap_or_default()
    };
    let (interval, count) = (setting("serveraliveinterval "), setting("serveralivecountmax "));
    let gives_up = Duration::from_secs(interval.saturating_mul(count.max(1)));
    if interval == 0 {
        Finding::good("ssh", "does not end a session by itself")
    } else if gives_up >= GRACE {
        Finding::good("ssh", format!("ends a session after {} s of silence", gives_up.as_secs()))
    } else {
        let found = format!("ends a session after {} s of silence, a pipe waits longer", gives_up.as_secs());
        let advice = "for hosts behind a pipe: ServerAliveInterval 0 in ~/.ssh/config (docs/pipes.md)";
        Finding { advice: Some(advice), ..Finding::good("ssh", found) }
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
        let judged = |interval: u64, count: u64| {
            judge(&format!("user me\nserveraliveinterval {interval}\nserveralivecountmax {count}\n"))
        };
        assert!(judged(0, 3).advice.is_none(), "off");
        assert!(judged(3_600, 24).advice.is_none(), "a day");
        let short = judged(15, 3);
        assert!(short.found.contains("45 s") && short.advice.is_some() && short.well, "{}", short.found);
    }
}
