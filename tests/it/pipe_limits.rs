//! What one caller may have of a server's pipes, and what becomes of pipes that end while their client is away.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use towpath::client::pipe::{Incoming, Pipe, PipeId, State, ended_with};
use towpath::engine::pipes::allow::{Allow, Rule};
use towpath::engine::pipes::carrier::{Carrier, Socket};
use towpath::engine::pipes::dial::{DialError, Dialer, Patience, Plain};
use towpath::engine::pipes::{CarrierPeer, Limits, Mode, PipeInfo, Pipes, Plan, Server, Settings};
use towpath::rt::Rt;
use towpath::state::pipe::{End, Ending, WINDOW_MIN};

use crate::cli_pipe::{echo, text};
use crate::process::PATIENCE;

/// A server of pipes in this process, at a plain address. A token is its caller's name.
struct Edge {
    rt: Rt,
    pipes: Pipes,
    address: SocketAddr,
    accepted: Option<towpath::rt::Receiver<towpath::engine::pipes::Accepted>>,
}

impl Edge {
    /// With pipes that lead to what is allowed.
    fn tunnel(settings: Settings, allow: &[&str]) -> Edge {
        let rules = allow.iter().map(|rule| rule.parse::<Rule>().expect("a rule")).collect();
        Edge::start(settings, Mode::Tunnel, Allow::new(rules), None)
    }

    /// With pipes that lead to the test.
    fn listen(settings: Settings) -> Edge {
        let (accept, accepted) = Rt::real().channel("accepted", 64);
        Edge::start(settings, Mode::Listen(accept), Allow::nothing(), Some(accepted))
    }

    fn start(
        settings: Settings,
        mode: Mode,
        allow: Allow,
        accepted: Option<towpath::rt::Receiver<towpath::engine::pipes::Accepted>>,
    ) -> Edge {
        let rt = Rt::real();
        let gate: towpath::engine::pipes::Gate =
            Arc::new(|token, _| Ok(Arc::from(token.unwrap_or("anybody"))));
        let pipes =
            Pipes::start(&rt, settings, Server { mode, allow, gate, ..Server::none() }).expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let handle = pipes.handle();
        // It goes with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let socket = Socket::tcp(stream.expect("a connection")).expect("a socket");
                let ip = Some(IpAddr::from([127, 0, 0, 1]));
                let peer = CarrierPeer { ip, confidential: true, ..CarrierPeer::default() };
                handle.carrier(Carrier::raw(socket, None, Vec::new()), peer);
            }
        });
        Edge { rt, pipes, address, accepted }
    }

    fn dialer(&self, caller: &'static str) -> Arc<Caller> {
        let inner = Plain::Tcp(self.address.ip().to_string(), self.address.port());
        Arc::new(Caller { inner, caller, is_away: AtomicBool::new(false) })
    }

    fn open(&self, near: &Pipes, dialer: &Arc<Caller>, target: &str) -> Pipe {
        Pipe::open(&self.rt, &near.handle(), Plan::new(dialer.clone(), target)).expect("it opens")
    }

    fn accept(&self) -> Incoming {
        self.accepted.as_ref().expect("it listens").recv().expect("it was opened").into()
    }

    fn list(&self) -> Vec<PipeInfo> {
        let (tell, told) = sync_channel(1);
        self.pipes.handle().list(move |infos| tell.send(infos).expect("somebody waits"));
        told.recv().expect("a list")
    }

    fn kill(&self, id: PipeId) {
        let (tell, told) = sync_channel(1);
        let end = End::new(Ending::Killed, "somebody ended it");
        self.pipes.handle().kill(id, end, move |there| tell.send(there).expect("somebody waits"));
        assert!(told.recv().expect("an answer"), "there is such a pipe");
    }
}

/// A client that may be away for a while.
struct Caller {
    inner: Plain,
    caller: &'static str,
    is_away: AtomicBool,
}

impl Caller {
    fn away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::SeqCst);
    }
}

impl Dialer for Caller {
    fn dial(&self, patience: &mut Patience) -> Result<Carrier, DialError> {
        match self.is_away.load(Ordering::SeqCst) {
            true => Err(DialError::later(End::new(Ending::TargetUnreachable, "no network"))),
            false => self.inner.dial(patience),
        }
    }

    fn token(&self) -> Option<&str> {
        Some(self.caller)
    }
}

/// Threads for clients, enough to dial for a hundred of them at once.
fn dialing() -> Pipes {
    Pipes::start(&Rt::real(), Settings { threads: 4, ..Settings::default() }, Server::none())
        .expect("threads")
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Cuts a pipe whose client will not come back for now.
fn go_away(edge: &Edge, caller: &Caller, pipe: &Pipe) {
    caller.away(true);
    pipe.reconnect_now();
    wait_until("nothing bears it", || edge.list().iter().any(|info| info.detached_for.is_some()));
}

fn over(pipe: &Pipe) -> Ending {
    pipe.wait_over(Some(PATIENCE)).expect("it ends").code
}

/// A listener that lets nobody in: whoever connects hears nothing.
fn silent() -> (TcpListener, Vec<TcpStream>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket2::SockRef::from(&listener).listen(0).expect("it listens");
    let address = listener.local_addr().expect("bound");
    // One fills the backlog; the next is not answered.
    let mut filling = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        filling.push(stream);
    }
    (listener, filling, address.to_string())
}

#[test]
fn targets_that_never_answer_cost_their_caller_no_place_for_good() {
    let (_listener, _filling, nowhere) = silent();
    let target = echo().to_string();
    let limits = Limits { pipes: 80, ..Limits::default() };
    let edge = Edge::tunnel(Settings { limits, ..Settings::default() }, &[&nowhere, &target]);
    let (near, dialer) = (dialing(), edge.dialer("ann"));
    // More than are connected at once, so that the last of them still wait when their time is over.
    let pipes: Vec<Pipe> = (0..80).map(|_| edge.open(&near, &dialer, &nowhere)).collect();
    for pipe in &pipes {
        let end = pipe.wait_over(Some(Duration::from_secs(60))).expect("it ends");
        assert_ne!(end.code, Ending::Eof, "nobody is there");
    }
    // Every place is free again.
    let pipes: Vec<Pipe> = (0..80).map(|_| edge.open(&near, &dialer, &target)).collect();
    for pipe in &pipes {
        pipe.wait_connected(Some(Duration::from_secs(60))).expect("there is a place");
    }
}

#[test]
fn a_request_that_comes_to_nothing_evicts_no_pipe_and_one_that_does_evicts_one() {
    let target = echo().to_string();
    let limits = Limits { pipes: 1, ..Limits::default() };
    let edge = Edge::tunnel(Settings { limits, ..Settings::default() }, &[&target]);
    let (near, away, here) = (dialing(), edge.dialer("ann"), edge.dialer("ann"));
    let mut first = edge.open(&near, &away, &target);
    first.set_read_timeout(Some(PATIENCE));
    first.wait_connected(Some(PATIENCE)).expect("it connects");
    go_away(&edge, &away, &first);

    assert_eq!(over(&edge.open(&near, &here, "127.0.0.1:1")), Ending::NotAllowed);
    away.away(false);
    first.write_all(b"still here").expect("it is open");
    let mut got = [0; 10];
    first.read_exact(&mut got).expect("the echo");
    assert_eq!(&got, b"still here");

    go_away(&edge, &away, &first);
    let second = edge.open(&near, &here, &target);
    second.wait_connected(Some(PATIENCE)).expect("in the place of the first");
    away.away(false);
    assert_eq!(over(&first), Ending::Evicted, "and it hears why");
}

#[test]
fn a_pipe_that_was_ended_while_its_client_was_away_is_gone_at_once_and_says_how() {
    let (tell, told) = sync_channel(1);
    let target = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = target.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        let (mut stream, _) = target.accept().expect("a connection");
        // Anything but more bytes is an end.
        tell.send(stream.read(&mut [0]).map_or(0, |count| count)).expect("somebody waits");
    });
    let edge = Edge::tunnel(Settings::default(), &[&at]);
    let (near, caller) = (dialing(), edge.dialer("ann"));
    let pipe = edge.open(&near, &caller, &at);
    pipe.wait_connected(Some(PATIENCE)).expect("it connects");
    go_away(&edge, &caller, &pipe);
    edge.kill(edge.list()[0].id);
    assert_eq!(told.recv_timeout(PATIENCE).expect("the target is let go of"), 0);
    wait_until("nothing is left of it", || edge.list().is_empty());
    caller.away(false);
    assert_eq!(over(&pipe), Ending::Killed, "and not that nobody knows it");
}

#[test]
fn what_a_target_said_before_it_broke_off_waits_for_as_long_as_the_pipe_does() {
    let (ask, asked) = sync_channel::<()>(1);
    let target = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = target.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        let (mut stream, _) = target.accept().expect("a connection");
        asked.recv().expect("it is asked to");
        stream.write_all(&text(100_000)).expect("it is taken");
        asked.recv().expect("it is asked to");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
    });
    let edge = Edge::tunnel(Settings::default(), &[&at]);
    let (near, caller) = (dialing(), edge.dialer("ann"));
    let mut pipe = edge.open(&near, &caller, &at);
    pipe.set_read_timeout(Some(PATIENCE));
    pipe.wait_connected(Some(PATIENCE)).expect("it connects");
    go_away(&edge, &caller, &pipe);
    ask.send(()).expect("the target waits");
    wait_until("it was taken", || edge.list()[0].buffered == 100_000);
    ask.send(()).expect("the target waits");
    // Longer than a pipe is kept that lacks nothing but a goodbye: what is shown takes that long.
    thread::sleep(Duration::from_secs(32));
    caller.away(false);
    let mut got = vec![0; 100_000];
    pipe.read_exact(&mut got).expect("its last words");
    assert!(got == text(100_000));
    let error = pipe.read(&mut got).expect_err("no good end");
    assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::TargetReset), "{error}");
}

/// Fills pipes of callers who are away until none takes more; then they all come back. Gives what was held for each.
fn fill(settings: Settings, callers: &[&'static str]) -> BTreeMap<&'static str, u64> {
    let edge = Edge::listen(settings);
    let near = dialing();
    let mut pairs = Vec::new();
    for caller in callers {
        let dialer = edge.dialer(caller);
        let ours = edge.open(&near, &dialer, "x");
        let theirs = edge.accept();
        ours.wait_connected(Some(PATIENCE)).expect("it connects");
        dialer.away(true);
        ours.reconnect_now();
        pairs.push((ours, theirs, dialer));
    }
    wait_until("all are away", || edge.list().iter().all(|info| info.detached_for.is_some()));
    let sent = text(64 * 1024);
    let counts: Vec<u64> = pairs
        .iter()
        .map(|(_, theirs, _)| {
            let mut count = 0;
            // No room for a while is no room: nobody takes anything.
            let mut far = theirs.pipe.clone();
            far.set_write_timeout(Some(Duration::from_millis(300)));
            while let Ok(written) = far.write(&sent[(count % sent.len() as u64) as usize..]) {
                count += written as u64;
            }
            count
        })
        .collect();
    let mut held = BTreeMap::new();
    for info in edge.list() {
        let caller = callers.iter().find(|caller| **caller == &*info.principal).expect("one of them");
        *held.entry(*caller).or_default() += info.buffered;
    }
    thread::scope(|scope| {
        for ((mut ours, theirs, dialer), count) in pairs.into_iter().zip(counts) {
            let sent = &sent;
            scope.spawn(move || {
                theirs.pipe.shutdown().expect("open");
                dialer.away(false);
                let mut got = Vec::new();
                ours.set_read_timeout(Some(PATIENCE));
                ours.read_to_end(&mut got).expect("it ends well");
                assert_eq!(got.len() as u64, count);
                let whole = got.chunks(sent.len()).all(|piece| *piece == sent[..piece.len()]);
                assert!(whole, "the same bytes in the same order");
            });
        }
    });
    held
}

#[test]
fn all_pipes_together_hold_what_they_may_and_a_little_and_lose_nothing() {
    let settings = Settings { budget: 4 << 20, ..Settings::default() };
    let held: u64 = fill(settings, &["ann"; 12]).into_values().sum();
    // Twelve windows would be 96 MiB.
    assert!(held >= 4 << 20, "{held} is not as much as they may");
    assert!(held <= (4 << 20) + 12 * 2 * WINDOW_MIN + (4 << 20), "{held} is more than they may");
}

#[test]
fn a_caller_who_holds_much_is_slowed_down_and_nobody_else() {
    let limits = Limits { buffered: 4 << 20, ..Limits::default() };
    let callers = ["ann", "ann", "ann", "ann", "ann", "bob"];
    let held = fill(Settings { limits, ..Settings::default() }, &callers);
    assert!(held["ann"] <= (4 << 20) + 5 * 2 * WINDOW_MIN + (4 << 20), "{held:?}");
    // One pipe's own window is more than his share, too.
    assert!(held["bob"] >= 4 << 20, "{held:?}");
}

/// Hangs the first time, until it is given up.
struct Hangs {
    inner: Plain,
    nowhere: Plain,
    why: Mutex<Option<std::sync::mpsc::SyncSender<DialError>>>,
    begun: std::sync::mpsc::SyncSender<()>,
}

impl Dialer for Hangs {
    fn dial(&self, patience: &mut Patience) -> Result<Carrier, DialError> {
        let first = self.why.lock().expect("no panic").take();
        let Some(tell) = first else { return self.inner.dial(patience) };
        self.begun.send(()).expect("somebody waits");
        let result = self.nowhere.dial(patience);
        tell.send(result.as_ref().err().cloned().expect("nobody is there")).expect("somebody waits");
        result
    }
}

fn hanging(edge: &Edge, nowhere: &str) -> (Arc<Hangs>, Receiver<()>, Receiver<DialError>) {
    let (tell, told) = sync_channel(1);
    let (begin, begun) = sync_channel(1);
    let nowhere: SocketAddr = nowhere.parse().expect("an address");
    let plain = |at: SocketAddr| Plain::Tcp(at.ip().to_string(), at.port());
    let (inner, nowhere) = (plain(edge.address), plain(nowhere));
    (Arc::new(Hangs { inner, nowhere, why: Mutex::new(Some(tell)), begun: begin }), begun, told)
}

#[test]
fn who_says_that_the_network_changed_does_not_wait_for_a_dial_on_the_old_one() {
    let (_listener, _filling, nowhere) = silent();
    let edge = Edge::listen(Settings::default());
    let (dialer, begun, told) = hanging(&edge, &nowhere);
    let near = dialing();
    let pipe = Pipe::open(&edge.rt, &near.handle(), Plan::new(dialer, "x")).expect("it opens");
    begun.recv_timeout(PATIENCE).expect("it dials");
    near.handle().redial();
    pipe.wait_connected(Some(PATIENCE)).expect("it connects");
    assert_eq!(pipe.state(), State::Connected);
    let error = told.recv_timeout(PATIENCE).expect("it came back");
    assert!(error.end.reason.contains("given up"), "{}", error.end);
}
