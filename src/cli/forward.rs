//! `towpath forward`

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::way::Way;
use super::{Exit, Failure, say, signals};
use crate::daemon::limits;
use crate::engine::pipes::carrier::Socket;
use crate::engine::pipes::http::HttpDialer;
use crate::engine::pipes::{Event, Pipes, PipesHandle, Server, Settings};
use crate::rt::Rt;
use crate::wire::pace;

/// Listen on local ports and carry each connection over a pipe of its own
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath forward -L 5432:db.internal:5432 https://edge.example.com\n  \
    towpath forward -L 127.0.0.1:8080:web:80 -L 2222:host:22 https://edge.example.com\n  \
    towpath forward -L 5433:unix:/run/postgresql/.s.PGSQL.5432 https://edge.example.com\n\n\
    It prints one line for each port when it listens, and runs until it is stopped.\n\
    SIGHUP dials now: the network changed. SIGTERM, SIGINT and a closed terminal stop it: it takes\n\
    no more connections, ends its pipes on both sides and exits with 0; a second one ends it at once.")]
pub(super) struct Forward {
    /// `[address:]port:host:port` or `[address:]port:unix:/path`; port 0 takes any that is free
    #[arg(short = 'L', value_name = "SPEC", required = true)]
    local: Vec<String>,
    /// The daemon: `https://edge.example.com`
    #[arg(value_name = "URL")]
    server: String,
    #[command(flatten)]
    way: Way,
}

/// One `-L`.
#[derive(Debug, PartialEq, Eq)]
struct Spec {
    listen: String,
    target: String,
}

impl Spec {
    fn parse(text: &str) -> Result<Spec, Failure> {
        let bad = || {
            let text = format!("-L {text}: expected [address:]port:host:port or [address:]port:unix:/path");
            Failure::new(Exit::Usage, "bad_spec", text)
        };
        // The first number that stands alone is the local port; an IPv6 address stands in brackets.
        let (address, rest) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once("]:").ok_or_else(bad)?;
                (format!("[{address}]"), rest)
            }
            None => match text.split_once(':') {
                Some((first, _)) if first.parse::<u16>().is_ok() => ("127.0.0.1".to_owned(), text),
                Some((first, rest)) => (first.to_owned(), rest),
                None => return Err(bad()),
            },
        };
        let (port, target) = rest.split_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        target.parse::<crate::engine::pipes::allow::Target>().map_err(|_| bad())?;
        Ok(Spec { listen: format!("{address}:{port}"), target: target.to_owned() })
    }
}

/// A local port and where its connections go.
struct Port {
    listener: TcpListener,
    target: String,
    /// The system has no descriptor for another connection; that was said.
    is_stuck: bool,
}

/// What a connection needs to become a pipe.
struct Opener {
    pipes: PipesHandle,
    way: Way,
    dialer: Arc<HttpDialer>,
    /// The command was told to stop: how its pipes end is no news.
    stopping: Arc<AtomicBool>,
    /// How many connections are carried.
    carried: Arc<AtomicU64>,
}

/// How long nobody is accepted after the system had no descriptor for it: pipes that end give theirs back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The poller's token that means "somebody wants this to stop".
const STOP: Token = Token(usize::MAX);

impl Forward {
    pub(super) fn run(self) -> Result<(), Failure> {
        let rt = Rt::real();
        let specs: Vec<Spec> = self.local.iter().map(|spec| Spec::parse(spec)).collect::<Result<_, _>>()?;
        let dialer = self.way.dialer(&self.server)?;
        limits::raise_descriptors();
        let pipes = Pipes::start(&rt, Settings::default(), Server::none())?;
        let mut poll = Poll::new()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let waker = Waker::new(poll.registry(), STOP)?;
        let stop = stopping.clone();
        signals::listen(&rt, &pipes.handle(), move |_| {
            stop.store(true, Ordering::SeqCst);
            if let Err(error) = waker.wake() {
                log::error!("pipes: waking the thread that accepts failed: {error}");
            }
        })?;
        let mut ports: Vec<Port> =
            specs.into_iter().map(|spec| spec.listen(&poll)).collect::<Result<_, _>>()?;
        let carried = Arc::new(AtomicU64::new(0));
        let opener =
            Opener { pipes: pipes.handle(), way: self.way, dialer, stopping: stopping.clone(), carried };
        let mut events = Events::with_capacity(16);
        while !stopping.load(Ordering::SeqCst) {
            ports.iter_mut().for_each(|port| port.accept_all(&opener));
            if ports.iter().any(|port| port.is_stuck) {
                rt.sleep(ACCEPT_PAUSE);
                continue;
            }
            // Woken by a connection to a port, or by a signal.
            match poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
        }
        // The doors first, so that nobody comes in whose pipe would be over at once.
        drop(ports);
        signals::leave(&rt, pipes);
        Ok(())
    }
}

impl Spec {
    fn listen(self, poll: &Poll) -> Result<Port, Failure> {
        let listener = pace::listen(&self.listen).map_err(|error| {
            let text = format!("listening on {}: {error}", self.listen);
            Failure::new(Exit::CannotCreate, "cannot_listen", text)
        })?;
        listener.set_nonblocking(true)?;
        // Any number will do: whoever wakes looks at all of them.
        poll.registry().register(&mut SourceFd(&listener.as_raw_fd()), Token(0), Interest::READABLE)?;
        say(format!("forwarding {} to {}", listener.local_addr()?, self.target))?;
        Ok(Port { listener, target: self.target, is_stuck: false })
    }
}

impl Port {
    /// Takes whoever waits, as far as the system lets it.
    fn accept_all(&mut self, opener: &Opener) {
        while !opener.stopping.load(Ordering::SeqCst) {
            if !opener.has_room() {
                return self.stuck("as many are carried as there are descriptors for");
            }
            let opened = match self.listener.accept() {
                Ok((stream, peer)) => opener.open(stream, peer, &self.target),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.is_stuck = false;
                        return;
                    }
                    // Who came was gone before it was accepted.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    _ => return self.stuck(&error.to_string()),
                },
            };
            if let Err(failure) = opened {
                // This connection is closed; the others, and those to come, go on.
                failure.report();
            }
        }
    }

    fn stuck(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_stuck, true) {
            let text = format!("cannot accept a connection to {}: {why}; those who come wait", self.target);
            Failure::new(Exit::Failed, "accept_paused", text).report();
        }
    }
}

impl Opener {
    /// Whether there are descriptors for both ends of one more. Connections that took the last ones would have none to
    /// be carried by.
    fn has_room(&self) -> bool {
        self.carried.load(Ordering::SeqCst) < limits::descriptors() / 2
    }

    fn open(&self, stream: TcpStream, peer: SocketAddr, target: &str) -> Result<(), Failure> {
        let mut plan = self.way.plan(&self.dialer, target);
        let name = format!("{peer} to {target}");
        let (way, stopping, carried) = (self.way.clone(), self.stopping.clone(), self.carried.clone());
        plan.events = Arc::new(move |event| {
            way.tell(&name, &event);
            let Event::Over(end) = &event else { return };
            carried.fetch_sub(1, Ordering::SeqCst);
            if !stopping.load(Ordering::SeqCst)
                && let Err(failure) = super::connect::verdict(true, end)
            {
                failure.report();
            }
        });
        let socket = Socket::tcp(stream)?;
        // Counted before it can end.
        self.carried.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = self.pipes.open_socket(plan, socket) {
            self.carried.fetch_sub(1, Ordering::SeqCst);
            return Err(error.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_reads_like_that_of_ssh() {
        for (text, listen, target) in [
            ("5432:db.internal:5432", "127.0.0.1:5432", "db.internal:5432"),
            ("0.0.0.0:80:web:8080", "0.0.0.0:80", "web:8080"),
            ("[::1]:80:[fd00::1]:8080", "[::1]:80", "[fd00::1]:8080"),
            ("0:unix:/run/x", "127.0.0.1:0", "unix:/run/x"),
        ] {
            let spec = Spec::parse(text).expect("a spec");
            assert_eq!((spec.listen.as_str(), spec.target.as_str()), (listen, target), "{text}");
        }
        for bad in ["", "80", "80:host", "x:y:z", "99999:host:1", "80:host:0"] {
            assert!(Spec::parse(bad).is_err(), "{bad}");
        }
    }
}
