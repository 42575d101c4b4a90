//! `towpath connect`

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::Errno;
use socket2::SockRef;

use super::way::Way;
use super::{Exit, Failure, signals};
use crate::engine::pipes::carrier::Socket;
use crate::engine::pipes::{Event, Pipes, Server, Settings};
use crate::rt::{Lock, Moment, Receiver, RecvTimeoutError, Rt, Sender};
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
    SIGHUP dials now: the network changed. SIGTERM, SIGINT and a closed terminal end the pipe on\n\
    both sides, a second one at once. One line on standard error tells of each loss and recovery.\n\
    When nobody reads its output any more the next byte that comes ends it, as with nc and socat.\n\n\
    Exit codes: 0 both directions ended, 1 nobody takes the output, 3 not let in, 4 target refused,\n\
    not reached or not allowed, 5 the pipe was lost, 6 never connected, 7 protocol, 128 and its number\n\
    for a signal.")]
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
        Ending::TargetRefused | Ending::TargetUnreachable | Ending::NotAllowed => 4,
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
/// How long a pipe that nobody waits for at this end may be without a connection. Enough for the first eight
/// attempts; who started this process has left, and nobody will end it if it does not by itself.
const ALONE_WAIT: Duration = Duration::from_secs(10);

/// What the main thread hears.
enum Word {
    /// The pipe is over.
    Over(End),
    /// Standard output has everything that came, or does not take it.
    Written(io::Result<()>),
    /// Standard input has ended.
    Read,
    /// The same, and nobody reads standard output any more.
    Alone,
    /// SIGTERM or SIGINT.
    Stop(i32),
}

/// One of each, which is all there can be: whoever sends never waits, and nothing is ever left out.
const WORDS_MAX: usize = 5;

/// How the pipe stands with its daemon.
#[derive(Clone, Copy)]
enum Link {
    /// There was none yet.
    Sought {
        since: Moment,
    },
    Up,
    Lost {
        since: Moment,
    },
}

impl Link {
    fn down_since(self) -> Option<Moment> {
        match self {
            Link::Up => None,
            Link::Sought { since } | Link::Lost { since } => Some(since),
        }
    }
}

impl Connect {
    pub(super) fn run(self) -> Result<(), Failure> {
        let rt = Rt::real();
        let dialer = self.way.dialer(&self.server)?;
        let pipes = Pipes::start(&rt, Settings::default(), Server::none())?;
        let (tell, told) = rt.channel("connect", WORDS_MAX);
        let stop = say_into(&tell);
        signals::listen(&rt, &pipes.handle(), move |signal| stop(Word::Stop(signal)))?;
        let (ours, theirs) = UnixStream::pair()?;
        let link = Arc::new(Lock::new(Link::Sought { since: rt.now() }));
        let mut plan = self.way.plan(&dialer, &self.target);
        plan.events = {
            let (rt, way, target) = (rt.clone(), self.way.clone(), self.target.clone());
            let (link, over) = (link.clone(), say_into(&tell));
            Arc::new(move |event| {
                way.tell(&target, &event);
                let now = rt.now();
                match event {
                    Event::Connected { .. } | Event::Recovered { .. } => *link.lock() = Link::Up,
                    Event::Lost { .. } => *link.lock() = Link::Lost { since: now },
                    Event::Trouble(_) => {}
                    Event::Over(end) => over(Word::Over(end)),
                }
            })
        };
        pipes.handle().open_socket(plan, Socket::unix(theirs)?)?;
        // Standard input and output cannot be polled; a thread for each carries them to a socket that can.
        // Either may sit there for ever; the process does not wait for them.
        let (input, say) = (ours.try_clone()?, say_into(&tell));
        rt.spawn("stdin", move || {
            // Not taken any more: the pipe is over, and whoever waits for that hears of it.
            let _ = carry(io::stdin().lock(), &input);
            if let Err(error) = input.shutdown(Shutdown::Write) {
                log::debug!("pipes: ending a direction: {error}");
            }
            say(Word::Read);
            match until_nobody_reads() {
                Ok(()) => say(Word::Alone),
                Err(error) => log::debug!("pipes: watching standard output: {error}"),
            }
        })?
        .detach();
        let written = say_into(&tell);
        rt.spawn("stdout", move || {
            let carried = carry(&ours, io::stdout().lock());
            if carried.is_ok()
                && let Err(error) = end_output()
            {
                // Everything was written; that it was all is seen when this process ends.
                log::debug!("pipes: ending standard output: {error}");
            }
            written(Word::Written(carried));
        })?
        .detach();
        let verdict = wait(&rt, &told, &link);
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

fn look(link: &Lock<Link>) -> Link {
    *link.lock()
}

/// How far the main thread has come.
enum Stage {
    Carrying,
    /// Nobody is left at this end. What was sent still gets there, as it would over TCP, if there is a way.
    Alone {
        since: Moment,
    },
    /// The pipe is over. What came before still goes out: all of it after a good end, however slow its reader is;
    /// otherwise what is taken by then.
    Over {
        end: End,
        by: Option<Moment>,
    },
}

impl Stage {
    /// When to look again although nothing is heard.
    fn until(&self, now: Moment, link: Link) -> Option<Moment> {
        match self {
            Stage::Carrying => None,
            // With a link it is up to the target; whether there still is one is looked at then.
            Stage::Alone { since } => Some(link.down_since().unwrap_or(now).max(*since) + ALONE_WAIT),
            Stage::Over { by, .. } => *by,
        }
    }
}

/// Waits for the pipe's end and for what it still brings, or for a reason to leave before.
fn wait(rt: &Rt, told: &Receiver<Word>, link: &Lock<Link>) -> Result<(), Failure> {
    let mut stage = Stage::Carrying;
    let (mut is_written, mut is_read) = (false, false);
    loop {
        let standing = look(link);
        let word = match stage.until(rt.now(), standing) {
            Some(until) => told.recv_deadline(until),
            None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let standing = look(link);
        let connected = !matches!(standing, Link::Sought { .. });
        stage = match (stage, word) {
            (_, Ok(Word::Stop(signal))) => return Err(stopped(signal)),
            (Stage::Over { end, .. }, Ok(Word::Written(written))) => {
                return verdict(connected, &end).and(written.map_err(Failure::from));
            }
            (Stage::Over { end, .. }, Err(_)) => return verdict(connected, &end),
            // Nobody reads it any more, or the disk is full: what comes would have nowhere to go.
            (_, Ok(Word::Written(Err(error)))) => return Err(error.into()),
            (stage, Ok(word @ (Word::Written(Ok(())) | Word::Read))) => {
                is_written |= matches!(word, Word::Written(_));
                is_read |= matches!(word, Word::Read);
                match stage {
                    // Whoever reads has all there will be, and nothing more is said: nobody waits for anything.
                    Stage::Carrying if is_written && is_read => Stage::Alone { since: rt.now() },
                    stage => stage,
                }
            }
            (_, Ok(Word::Over(end))) if is_written => return verdict(connected, &end),
            (_, Ok(Word::Over(end))) => {
                let by = (end.code != Ending::Eof).then(|| rt.now() + LINGER);
                Stage::Over { end, by }
            }
            (Stage::Carrying, Ok(Word::Alone)) => Stage::Alone { since: rt.now() },
            (stage, Ok(Word::Alone)) => stage,
            (stage @ Stage::Alone { .. }, Err(RecvTimeoutError::Timeout)) => {
                if standing.down_since().is_some_and(|since| since + ALONE_WAIT <= rt.now()) {
                    let text = "no connection, and nobody left at this end who waits for one";
                    return Err(Failure::new(Exit::Failed, "left_alone", text).exit_with(5));
                }
                stage
            }
            (Stage::Carrying | Stage::Alone { .. }, Err(_)) => {
                return Err(Failure::new(Exit::Failed, "internal", "the pipe's thread is gone"));
            }
        };
    }
}

/// Like a shell says it of a process that a signal ended: what was carried is not whole.
fn stopped(signal: i32) -> Failure {
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
    let exit = u8::try_from(128 + signal).expect("signals are small numbers");
    Failure::new(Exit::Failed, "stopped", format!("ended by {name}")).exit_with(exit)
}

/// Copies until there is no more; an error if it is not taken any more.
fn carry(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count]).and_then(|()| to.flush())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // A terminal that was closed, a pipe that broke off: nothing more comes from there.
                log::debug!("pipes: reading: {error}");
                return Ok(());
            }
        }
    }
}

/// The target's direction is over, and whoever reads standard output is to see it while standard input goes on.
fn end_output() -> io::Result<()> {
    let stdout = io::stdout();
    let (read, written) = (fstat(io::stdin())?, fstat(&stdout)?);
    if (read.st_dev, read.st_ino) == (written.st_dev, written.st_ino) {
        // One socket for both, as an inetd hands it over, or a terminal, which has no half.
        return match SockRef::from(&stdout).shutdown(Shutdown::Write) {
            Err(error) if error.raw_os_error() == Some(Errno::NOTSOCK.raw_os_error()) => Ok(()),
            other => other,
        };
    }
    // It ends by being closed, unless others have it too. Its place is kept: nothing that is opened later may become it.
    let nowhere = File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(&nowhere)?)
}

/// Waits until nobody reads standard output any more: for ever, if it is a file.
fn until_nobody_reads() -> io::Result<()> {
    let stdout = io::stdout();
    // Asked for nothing, the system still tells of a broken pipe and of a closed socket.
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    // A poll holds on to what it watches, which would not end for its reader while it lasts.
    let a_while = Timespec { tv_sec: 1, tv_nsec: 0 };
    loop {
        match poll(&mut watched, Some(&a_while)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
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
            (false, Ending::TargetUnreachable, 4),
            (false, Ending::ServerUnreachable, 6),
            (false, Ending::Limit, 6),
            (true, Ending::Protocol, 7),
        ] {
            assert_eq!(exit(connected, code), expected, "{code} connected: {connected}");
        }
    }
}
