//! `towpath connect`

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Exit, Failure, Remote};
use crate::engine::pipes::carrier::Socket;
use crate::engine::pipes::http::{HttpDialer, Proxy, Transport};
use crate::engine::pipes::{Event, Pipes, PipesHandle, Plan, Server, Settings};
use crate::rt::{Receiver, RecvTimeoutError, Rt, Sender};
use crate::state::pipe::{End, Ending, Liveness};
use crate::wire::ClientTls;

/// Carry standard input and output over a pipe that survives broken connections
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath connect https://edge.example.com host:22\n  \
    ssh -o ProxyCommand='towpath connect https://edge.example.com %h:%p' me@host\n\n\
    In ~/.ssh/config, so that ssh itself does not give up before the pipe does:\n  \
    Host *.work\n    \
      ProxyCommand towpath connect https://edge.example.com %h:%p\n    \
      ServerAliveInterval 0\n\n\
    SIGHUP dials now: the network changed. One line on standard error tells of each loss and recovery.\n\n\
    Exit codes: 0 both directions ended, 3 not let in, 4 target refused or not allowed,\n\
    5 the pipe was lost, 6 never connected, 7 protocol.")]
pub(super) struct Connect {
    /// The daemon: `https://edge.example.com`
    #[arg(value_name = "URL")]
    server: String,
    /// Where to, as the daemon sees it: `host:port` or `unix:/path`
    #[arg(value_name = "TARGET")]
    target: String,
    #[command(flatten)]
    way: Way,
}

/// How a client's pipe gets to its daemon.
#[derive(Clone, Debug, Args)]
pub(super) struct Way {
    /// A file whose first line is a token (or put the token into TOWPATH_TOKEN)
    #[arg(long, env = "TOWPATH_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How frames travel: the upgrade is fastest, a WebSocket passes more proxies
    #[arg(long, value_enum, default_value = "auto")]
    transport: Carriage,
    /// Go through `http://[user:password@]host:port` or `socks5://…` (or set HTTPS_PROXY)
    #[arg(long, value_name = "PROXY")]
    proxy: Option<String>,
    /// Trust the certificates in this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
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
        let proxy = proxy_for(server, self.proxy.clone())?;
        let trust = self.ca.as_deref().map(ClientTls::trusting).transpose()?;
        let transport = match self.transport {
            Carriage::Auto => Transport::Auto,
            Carriage::Upgrade => Transport::Upgrade,
            Carriage::Websocket => Transport::WebSocket,
        };
        Ok(Arc::new(HttpDialer::new(server, remote.token()?, transport, proxy, trust)?))
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

/// The proxy on the way to `server`: the one that was named, or the environment's.
pub(super) fn proxy_for(server: &str, named: Option<String>) -> Result<Option<Proxy>, Failure> {
    let variable = if server.starts_with("https:") { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let from_environment = || {
        let lower = variable.to_ascii_lowercase();
        std::env::var(variable).or_else(|_| std::env::var(lower)).ok().filter(|proxy| !proxy.is_empty())
    };
    // A proxy for the network is no way to this machine.
    let is_local = ["://127.", "://localhost", "://[::1]"].iter().any(|local| server.contains(local));
    let proxy = named.or_else(|| from_environment().filter(|_| !is_local));
    let proxy = proxy.map(|text| Proxy::parse(&text)).transpose();
    proxy.map_err(|why| Failure::new(Exit::Usage, "bad_proxy", why))
}

fn in_bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes / 1_024),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// What a pipe's end is to the shell.
pub(super) fn verdict(connected: bool, end: &End) -> Result<(), Failure> {
    let exit = match end.code {
        Ending::Eof => return Ok(()),
        Ending::Auth => 3,
        Ending::TargetRefused | Ending::NotAllowed => 4,
        Ending::TargetUnreachable if connected => 4,
        Ending::Protocol | Ending::Internal => 7,
        _ if !connected => 6,
        _ => 5,
    };
    let failure = Failure::new(Exit::Failed, end.code.as_str(), end.reason.clone()).exit_with(exit);
    Err(match end.code {
        Ending::Auth => {
            failure.advice("give a token with the role pipe: --token-file FILE, or TOWPATH_TOKEN")
        }
        Ending::NotAllowed => {
            failure.advice("the daemon lists what it may connect to: `towpath serve --allow TARGET`")
        }
        Ending::UnknownPipe => {
            failure.advice("the daemon was restarted, or nobody came back within its grace")
        }
        _ => failure,
    })
}

/// SIGHUP means: the network changed, dial now.
pub(super) fn redial_on_hangup(rt: &Rt, pipes: &PipesHandle) -> Result<(), Failure> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGHUP])?;
    let pipes = pipes.clone();
    let thread = rt.spawn("signals", move || {
        for _ in &mut signals {
            pipes.redial();
        }
    })?;
    // It waits for signals until the process ends.
    thread.detach();
    Ok(())
}

impl Connect {
    pub(super) fn run(self) -> Result<(), Failure> {
        let rt = Rt::real();
        let dialer = self.way.dialer(&self.server)?;
        let pipes = Pipes::start(&rt, Settings::default(), Server::none())?;
        redial_on_hangup(&rt, &pipes.handle())?;
        let (ours, theirs) = UnixStream::pair()?;
        // Standard input and output cannot be polled; a thread for each carries them to a socket that can.
        let (tell, told) = rt.channel("pipe-over", 1);
        let mut plan = self.way.plan(&dialer, &self.target);
        plan.events = {
            let (way, target) = (self.way.clone(), self.target.clone());
            let connected = std::sync::atomic::AtomicBool::new(false);
            Arc::new(move |event| {
                way.tell(&target, &event);
                match event {
                    Event::Connected { .. } => connected.store(true, std::sync::atomic::Ordering::Relaxed),
                    Event::Over(end) => {
                        over(&tell, connected.load(std::sync::atomic::Ordering::Relaxed), end)
                    }
                    _ => {}
                }
            })
        };
        pipes.handle().open_socket(plan, Socket::unix(theirs)?)?;
        let input = ours.try_clone()?;
        // It may sit in a read of standard input for ever; the process does not wait for it.
        rt.spawn("stdin", move || carry(io::stdin().lock(), &mut &input, true))?.detach();
        let done = rt.channel("stdout-done", 1);
        let output = rt.spawn("stdout", {
            let done = done.0;
            move || {
                let carried = carry(&ours, &mut io::stdout().lock(), false);
                // One message for a channel of one.
                let _ = done.try_send(());
                carried
            }
        })?;
        finish(&rt, &told, &done.1, output)
    }
}

fn over(tell: &Sender<(bool, End)>, connected: bool, end: End) {
    // One end for a channel of one.
    if tell.try_send((connected, end)).is_err() {
        log::debug!("pipes: a pipe ended twice");
    }
}

/// Waits for the pipe's end and for what it still brings.
fn finish(
    rt: &Rt,
    told: &Receiver<(bool, End)>,
    written: &Receiver<()>,
    output: crate::rt::Thread<io::Result<()>>,
) -> Result<(), Failure> {
    // Woken by the end of the pipe. A standard output that is gone shows as an end of the target's side.
    let (connected, end) =
        told.recv().map_err(|_| Failure::new(Exit::Failed, "internal", "the pipe's thread is gone"))?;
    // What came before the end still goes out, unless nobody takes it.
    match written.recv_deadline(rt.now() + Duration::from_secs(30)) {
        Ok(()) | Err(RecvTimeoutError::Disconnected) => drop(output),
        Err(RecvTimeoutError::Timeout) => output.detach(),
    }
    verdict(connected, &end)
}

/// Copies until the end; then tells the other side that this direction is over.
fn carry(mut from: impl Read, to: &mut (impl Write + EndOf), half_close: bool) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let copied = loop {
        match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                if let Err(error) = to.write_all(&buffer[..count]).and_then(|()| to.flush()) {
                    break Err(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    if half_close || copied.is_err() {
        to.end();
    }
    copied
}

/// What can be told that no more is written to it.
trait EndOf {
    fn end(&mut self) {}
}

impl EndOf for io::StdoutLock<'_> {}

impl EndOf for &UnixStream {
    fn end(&mut self) {
        if let Err(error) = self.shutdown(Shutdown::Write) {
            log::debug!("pipes: ending a direction: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_the_exit_code_the_manual_says() {
        let exit =
            |connected, code| verdict(connected, &End::new(code, "x")).map_or_else(|f| f.exit(), |()| 0);
        for (connected, code, expected) in [
            (true, Ending::Eof, 0),
            (false, Ending::Auth, 3),
            (true, Ending::Auth, 3),
            (false, Ending::TargetRefused, 4),
            (false, Ending::NotAllowed, 4),
            (true, Ending::GraceExpired, 5),
            (true, Ending::UnknownPipe, 5),
            (true, Ending::Killed, 5),
            (true, Ending::TargetReset, 5),
            (true, Ending::Shutdown, 5),
            (false, Ending::TargetUnreachable, 6),
            (false, Ending::Limit, 6),
            (true, Ending::Protocol, 7),
        ] {
            assert_eq!(exit(connected, code), expected, "{code} connected: {connected}");
        }
    }

    #[test]
    fn bytes_read_as_people_say_them() {
        assert_eq!([0, 1_023, 41 * 1_024, 3 << 20].map(in_bytes), ["0 B", "1023 B", "41 KiB", "3.0 MiB"]);
    }
}
