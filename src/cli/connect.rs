//! `towpath connect`

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::way::Way;
use super::{Exit, Failure};
use crate::engine::pipes::carrier::Socket;
use crate::engine::pipes::{Event, Pipes, PipesHandle, Server, Settings};
use crate::rt::{Receiver, RecvTimeoutError, Rt, Sender};
use crate::state::pipe::{End, Ending};

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
}
