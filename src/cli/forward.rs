//! `towpath forward`

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use clap::Args;

use super::connect::redial_on_hangup;
use super::way::Way;
use super::{Exit, Failure, say};
use crate::engine::pipes::carrier::Socket;
use crate::engine::pipes::http::HttpDialer;
use crate::engine::pipes::{Pipes, PipesHandle, Server, Settings};
use crate::rt::Rt;
use crate::wire::pace;

/// Listen on local ports and carry each connection over a pipe of its own
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    towpath forward -L 5432:db.internal:5432 https://edge.example.com\n  \
    towpath forward -L 127.0.0.1:8080:web:80 -L 2222:host:22 https://edge.example.com\n  \
    towpath forward -L 5433:unix:/run/postgresql/.s.PGSQL.5432 https://edge.example.com\n\n\
    It prints one line for each port when it listens, and runs until it is stopped.\n\
    SIGHUP dials now: the network changed.")]
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

impl Forward {
    pub(super) fn run(self) -> Result<(), Failure> {
        let rt = Rt::real();
        let specs: Vec<Spec> = self.local.iter().map(|spec| Spec::parse(spec)).collect::<Result<_, _>>()?;
        let dialer = self.way.dialer(&self.server)?;
        let pipes = Pipes::start(&rt, Settings::default(), Server::none())?;
        redial_on_hangup(&rt, &pipes.handle())?;
        let mut threads = Vec::new();
        for spec in specs {
            let listener = pace::listen(&spec.listen).map_err(|error| {
                Failure::new(
                    Exit::CannotCreate,
                    "cannot_listen",
                    format!("listening on {}: {error}", spec.listen),
                )
            })?;
            say(format!("forwarding {} to {}", listener.local_addr()?, spec.target))?;
            let (handle, way, dialer) = (pipes.handle(), self.way.clone(), dialer.clone());
            threads.push(rt.spawn(format!("forward-{}", spec.listen), move || {
                accept_all(&listener, &spec.target, &handle, &way, &dialer);
            })?);
        }
        // They accept until the process is stopped.
        drop(threads);
        Ok(())
    }
}

fn accept_all(
    listener: &TcpListener,
    target: &str,
    pipes: &PipesHandle,
    way: &Way,
    dialer: &Arc<HttpDialer>,
) {
    for stream in listener.incoming() {
        let opened =
            stream.map_err(Failure::from).and_then(|stream| open(stream, target, pipes, way, dialer));
        if let Err(failure) = opened {
            // This connection is closed; the others, and those to come, go on.
            failure.report();
        }
    }
}

fn open(
    stream: TcpStream,
    target: &str,
    pipes: &PipesHandle,
    way: &Way,
    dialer: &Arc<HttpDialer>,
) -> Result<(), Failure> {
    let mut plan = way.plan(dialer, target);
    let name = stream.peer_addr().map(|peer| format!("{peer} to {target}"));
    let name = name.unwrap_or_else(|_: io::Error| target.to_owned());
    let way = way.clone();
    plan.events = Arc::new(move |event| {
        way.tell(&name, &event);
        if let crate::engine::pipes::Event::Over(end) = &event
            && let Err(failure) = super::connect::verdict(true, end)
        {
            failure.report();
        }
    });
    pipes.open_socket(plan, Socket::tcp(stream)?)?;
    Ok(())
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
