//! `towpath connect`

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use super::way::Way;
use super::{Exit, Failure, signals};
use crate::engine::pipes::carrier::Socket;
use crate::engine::pipes::{Event, Pipes, Server, Settings};
use crate::rt::{Receiver, Rt, Sender};
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
    SIGHUP dials now: the network changed. SIGTERM and SIGINT end the pipe on both sides, a second one\n\
    at once. One line on standard error tells of each loss and recovery.\n\n\
    Exit codes: 0 both directions ended, 3 not let in, 4 target refused or not allowed,\n\
    5 the pipe was lost, 6 never connected, 7 protocol, 128 and its number for a signal.")]
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

/// How long what came before the end may still take to be written, where somebody takes it.
const LINGER: Duration = Duration::from_secs(30);

/// What the main thread hears.
enum Word {
    /// The pipe is over.
    Over { connected: bool, end: End },
    /// Standard output has everything that came.
    Written,
    /// SIGTERM or SIGINT.
    Stop(i32),
}

/// One of each, which is all there can be: whoever sends never waits, and nothing is ever left out.
const WORDS_MAX: usize = 3;

impl Connect {
    pub(super) fn run(self) -> Result<(), Failure> {
        let rt = Rt::real();
        let dialer = self.way.dialer(&self.server)?;
        let pipes = Pipes::start(&rt, Settings::default(), Server::none())?;
        let (tell, told) = rt.channel("connect", WORDS_MAX);
        let stop = say_into(&tell);
        signals::listen(&rt, &pipes.handle(), move |signal| stop(Word::Stop(signal)))?;
        let (ours, theirs) = UnixStream::pair()?;
        let mut plan = self.way.plan(&dialer, &self.target);
        plan.events = {
            let (way, target, over) = (self.way.clone(), self.target.clone(), say_into(&tell));
            let connected = AtomicBool::new(false);
            Arc::new(move |event| {
                way.tell(&target, &event);
                match event {
                    Event::Connected { .. } => connected.store(true, Ordering::Relaxed),
                    Event::Over(end) => {
                        over(Word::Over { connected: connected.load(Ordering::Relaxed), end })
                    }
                    _ => {}
                }
            })
        };
        pipes.handle().open_socket(plan, Socket::unix(theirs)?)?;
        // Standard input and output cannot be polled; a thread for each carries them to a socket that can.
        // Either may sit there for ever; the process does not wait for them.
        let input = ours.try_clone()?;
        rt.spawn("stdin", move || carry(io::stdin().lock(), &mut &input, true))?.detach();
        let written = say_into(&tell);
        rt.spawn("stdout", move || {
            let carried = carry(&ours, &mut io::stdout().lock(), false);
            written(Word::Written);
            carried
        })?
        .detach();
        let verdict = wait(&rt, &told);
        signals::leave(&rt, pipes);
        verdict
    }
}

/// A way to tell the main thread.
fn say_into(tell: &Sender<Word>) -> impl Fn(Word) + Send + Sync + 'static {
    let tell = tell.clone();
    move |word| {
        // Full: it was said before. Disconnected: the command is over.
        let _ = tell.try_send(word);
    }
}

/// Waits for the pipe's end and for what it still brings, or for whoever wants it to end.
fn wait(rt: &Rt, told: &Receiver<Word>) -> Result<(), Failure> {
    let mut is_written = false;
    // Woken by the end of the pipe. A standard output that is gone shows as an end of the target's side.
    let (connected, end) = loop {
        match told.recv() {
            Ok(Word::Over { connected, end }) => break (connected, end),
            Ok(Word::Written) => is_written = true,
            Ok(Word::Stop(signal)) => return Err(stopped(signal)),
            Err(_) => return Err(Failure::new(Exit::Failed, "internal", "the pipe's thread is gone")),
        }
    };
    // What came before the end still goes out, unless nobody takes it.
    if !is_written && let Ok(Word::Stop(signal)) = told.recv_deadline(rt.now() + LINGER) {
        return Err(stopped(signal));
    }
    verdict(connected, &end)
}

/// Like a shell says it of a process that a signal ended: what was carried is not whole.
fn stopped(signal: i32) -> Failure {
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
    let exit = u8::try_from(128 + signal).expect("signals are small numbers");
    Failure::new(Exit::Failed, "stopped", format!("ended by {name}")).exit_with(exit)
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
