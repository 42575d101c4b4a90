//! The demo's pipes: a harbour that sends back what arrives, and a boat that goes there and back, on a good
//! network or on one that is cut every few seconds.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::pause;
use crate::cli::Failure;
use crate::engine::pipes::carrier::Socket;
use crate::engine::pipes::http::{HttpDialer, Transport};
use crate::engine::pipes::{Pipes, Plan, Server, Settings};
use crate::rt::{Receiver, Rt, Sender, Thread};
use crate::state::pipe::Liveness;

/// How often a thread that waits for the network looks whether it is over.
const LOOK_EVERY: u64 = 50;

/// A TCP service that says everything back. Dropping it closes it.
pub(super) struct Harbour {
    address: SocketAddr,
    /// Dropped first: the thread sees it and ends.
    _stop: Sender<()>,
    _thread: Thread<()>,
}

impl Harbour {
    pub(super) fn open(rt: &Rt) -> Result<Harbour, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = rt.channel("stop", 1);
        let clock = rt.clone();
        let thread = rt.spawn("demo-harbour", move || {
            let mut berths = Vec::new();
            while pause(&clock, &stopped, LOOK_EVERY) {
                let Ok((socket, _)) = listener.accept() else { continue };
                match echo(&clock, &socket) {
                    Ok(thread) => berths.push((socket, thread)),
                    Err(error) => log::warn!("the demo's harbour turned somebody away: {error:?}"),
                }
            }
            for (socket, _) in &berths {
                end(socket);
            }
        })?;
        Ok(Harbour { address, _stop: stop, _thread: thread })
    }

    /// Where it is.
    pub(super) fn target(&self) -> String {
        self.address.to_string()
    }
}

fn echo(rt: &Rt, socket: &TcpStream) -> Result<Thread<()>, Failure> {
    socket.set_nonblocking(false)?;
    let (mut from, mut to) = (socket.try_clone()?, socket.try_clone()?);
    Ok(rt.spawn("demo-echo", move || {
        // An end of either direction is the end of the visit.
        let _ = io::copy(&mut from, &mut to);
        end(&to);
    })?)
}

/// Whoever reads or writes there stops; it may be closed already.
fn end(socket: &TcpStream) {
    let _ = socket.shutdown(Shutdown::Both);
}

/// Sends a line now and then through a pipe to the harbour, and reads it when it comes back.
pub(super) fn sail(rt: &Rt, stopped: &Receiver<()>, url: &str, target: &str, flaky: bool) {
    if let Err(failure) = try_to_sail(rt, stopped, url, target, flaky) {
        log::warn!("the demo's boat stays ashore: {failure}");
    }
}

fn try_to_sail(rt: &Rt, stopped: &Receiver<()>, url: &str, target: &str, flaky: bool) -> Result<(), Failure> {
    let link = match flaky {
        true => Some(Link::start(rt, url.trim_start_matches("http://").to_owned())?),
        false => None,
    };
    let way = link.as_ref().map_or_else(|| url.to_owned(), |link| format!("http://{}", link.address));
    let dialer = Arc::new(HttpDialer::new(&way, None, Transport::Auto, None, None)?);
    let pipes = Pipes::start(rt, Settings::default(), Server::none())?;
    let mut plan = Plan::new(dialer, target);
    plan.liveness = Liveness::FAST;
    let (ours, theirs) = UnixStream::pair()?;
    pipes.handle().open_socket(plan, Socket::unix(theirs)?)?;
    ours.set_read_timeout(Some(Duration::from_millis(LOOK_EVERY)))?;
    // A pipe that is full says so by taking nothing; the next line waits.
    ours.set_write_timeout(Some(Duration::from_secs(1)))?;
    let mut rand = rt.rand("demo-boat");
    let mut page = [0; 16 * 1_024];
    while pause(rt, stopped, 50) {
        let load = vec![b'~'; 64 + rand.below(4_000) as usize];
        if (&ours).write_all(&load).is_err() {
            continue;
        }
        // What has come back; nothing, while the link is down.
        while (&ours).read(&mut page).is_ok_and(|read| read == page.len()) {}
    }
    Ok(())
}

/// A TCP link to the daemon that does not last. Dropping it ends it.
struct Link {
    address: SocketAddr,
    _stop: Sender<()>,
    _thread: Thread<()>,
}

impl Link {
    fn start(rt: &Rt, to: String) -> Result<Link, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = rt.channel("stop", 1);
        let clock = rt.clone();
        let thread = rt.spawn("demo-link", move || {
            let mut rand = clock.rand("demo-link");
            let mut crossing: Option<Crossing> = None;
            let mut cut_at = clock.now();
            // Now and then nobody gets through for a while.
            let mut closed_until = clock.now();
            while pause(&clock, &stopped, LOOK_EVERY) {
                if crossing.is_some() && clock.now() >= cut_at {
                    crossing = None;
                    closed_until = clock.now() + Duration::from_millis(rand.below(5_000));
                }
                let Ok((near, _)) = listener.accept() else { continue };
                if clock.now() < closed_until {
                    end(&near);
                    continue;
                }
                crossing = Crossing::start(&clock, near, &to)
                    .inspect_err(|error| log::debug!("the demo's link: {error:?}"))
                    .ok();
                cut_at = clock.now() + Duration::from_millis(3_000 + rand.below(9_000));
            }
        })?;
        Ok(Link { address, _stop: stop, _thread: thread })
    }
}

/// One connection through the link. Dropping it cuts both sides.
struct Crossing {
    near: TcpStream,
    far: TcpStream,
    _threads: [Thread<()>; 2],
}

impl Crossing {
    fn start(rt: &Rt, near: TcpStream, to: &str) -> Result<Crossing, Failure> {
        near.set_nonblocking(false)?;
        let far = TcpStream::connect(to)?;
        let carry = |from: &TcpStream, to: &TcpStream| -> Result<Thread<()>, Failure> {
            let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
            Ok(rt.spawn("demo-crossing", move || {
                let _ = io::copy(&mut from, &mut to);
                end(&to);
            })?)
        };
        let threads = [carry(&near, &far)?, carry(&far, &near)?];
        Ok(Crossing { near, far, _threads: threads })
    }
}

impl Drop for Crossing {
    fn drop(&mut self) {
        end(&self.near);
        end(&self.far);
    }
}
