//! Handshakes that break off at the worst moment: a proxy lets frames through until one that must not arrive.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use towpath::client::pipe::{Pipe, PipeListener};
use towpath::engine::pipes::dial::Plain;
use towpath::engine::pipes::{Pipes, Plan, Server, Settings};
use towpath::rt::Rt;
use towpath::state::pipe::hello::Asked;
use towpath::state::pipe::proof::Stand;
use towpath::state::pipe::{Control, Ending};

use crate::cli_pipe::text;
use crate::pipe_limits::wait_until;
use crate::pipe_wire::{Frame, Raw, stand};
use crate::process::PATIENCE;

const PROOF: u8 = 0x12;
const WELCOME: u8 = 0x13;

/// Carries frames between a client and a pipe listener; connection `nth` (from 0) ends where a frame of `kind` comes,
/// which is not passed on.
struct Cutter {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Cutter {
    fn before(target: SocketAddr, nth: usize, kind: u8) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        // It goes with the test's process, as the threads of its connections go with those.
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.expect("a connection");
                let cut = (count.fetch_add(1, Ordering::SeqCst) == nth).then_some(kind);
                let far = TcpStream::connect(target).expect("it listens");
                let ends = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                for (from, to) in [(ends(&near), ends(&far)), (far, near)] {
                    thread::spawn(move || {
                        // Its end is what was asked for, or that of the connection.
                        let _ = frames(&from, &to, cut);
                        for stream in [from, to] {
                            let _ = stream.shutdown(Shutdown::Both);
                        }
                    });
                }
            }
        });
        Cutter { address, connections }
    }
}

/// Passes whole frames on until one of `cut` comes.
fn frames(mut from: &TcpStream, mut to: &TcpStream, cut: Option<u8>) -> io::Result<()> {
    loop {
        let mut head = [0; 4];
        from.read_exact(&mut head)?;
        if cut == Some(head[0]) {
            return Ok(());
        }
        let mut frame = head.to_vec();
        frame.resize(4 + u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize, 0);
        from.read_exact(&mut frame[4..])?;
        to.write_all(&frame)?;
    }
}

/// Carriers are replaced at once; the first replacement loses a frame of `kind`. Bytes go both ways all the while.
fn a_replacement_loses(kind: u8) {
    let rt = Rt::real();
    let listener = PipeListener::bind(&rt, "127.0.0.1:0").expect("a port");
    let cutter = Cutter::before(listener.address().expect("over TCP"), 1, kind);
    let near = Pipes::start(&rt, Settings::default(), Server::none()).expect("threads");
    let dialer = Arc::new(Plain::Tcp(cutter.address.ip().to_string(), cutter.address.port()));
    let carrier_age = Some(Duration::from_millis(200));
    let ours =
        Pipe::open(&rt, &near.handle(), Plan { carrier_age, ..Plan::new(dialer, "x") }).expect("it opens");
    let mut theirs = listener.accept().expect("it was opened").pipe;
    thread::scope(|scope| {
        // It sends back what comes.
        scope.spawn(|| {
            let mut buffer = vec![0; 10_000];
            while let Ok(count @ 1..) = theirs.read(&mut buffer) {
                theirs.write_all(&buffer[..count]).expect("it is taken");
            }
            theirs.shutdown().expect("open");
        });
        let mut client = ours.clone();
        client.set_read_timeout(Some(PATIENCE));
        let (sent, mut got) = (text(10_000), vec![0; 10_000]);
        // The one that was lost, one after it, and another replacement.
        while cutter.connections.load(Ordering::SeqCst) < 4 {
            client.write_all(&sent).expect("it is taken");
            client.read_exact(&mut got).expect("it comes back");
            assert!(got == sent, "the same bytes");
        }
        ours.shutdown().expect("open");
        assert_eq!(client.read(&mut got).expect("a good end"), 0);
    });
}

#[test]
fn a_replacement_whose_welcome_is_lost_begins_afresh_and_loses_nothing() {
    a_replacement_loses(WELCOME);
}

#[test]
fn a_replacement_whose_proof_is_lost_begins_afresh_and_loses_nothing() {
    a_replacement_loses(PROOF);
}

fn listens(grace: Duration) -> (PipeListener, SocketAddr) {
    let settings = Settings { grace: Some(grace), ..Settings::default() };
    let listener = PipeListener::bind_with(&Rt::real(), "127.0.0.1:0", settings, None).expect("a port");
    let address = listener.address().expect("over TCP");
    (listener, address)
}

fn count(listener: &PipeListener) -> usize {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    listener.pipes().list(move |infos| tell.send(infos.len()).expect("somebody waits"));
    told.recv().expect("a list")
}

#[test]
fn who_comes_too_late_for_the_goodbye_hears_that_all_ended_well() {
    let (listener, address) = listens(Duration::from_millis(300));
    let (mut raw, known) = Raw::open(address, None);
    let theirs = listener.accept().expect("it was opened").pipe;
    theirs.shutdown().expect("open");
    while !matches!(raw.next().expect("frames"), Frame::Control(Control::Fin { off: 0 })) {}
    raw.control(&Control::Fin { off: 0 });
    raw.control(&Control::Ack { recv: 1, limit: 1 << 20 });
    while !matches!(raw.next().expect("frames"), Frame::Control(Control::Ack { recv: 1, .. })) {}
    // Both directions are over and both know it. What is lost is the last word.
    drop(raw);
    wait_until("it is gone", || count(&listener) == 0);
    let stand = Stand { recv: 1, fin: true, limit: 1 << 20 };
    let (_raw, answer) = Raw::resume(address, &known, 2, stand);
    let refuse = answer.expect_err("there is nothing to come back to");
    assert_eq!((refuse.end.code, refuse.retriable), (Ending::Eof, false));
}

#[test]
fn a_grace_that_ends_in_the_middle_of_a_handshake_is_told_as_that() {
    let (listener, address) = listens(Duration::from_millis(300));
    let (mut raw, known) = Raw::open(address, None);
    raw.control(&Control::Ping { token: 1 });
    while !matches!(raw.next().expect("frames"), Frame::Control(Control::Pong { .. })) {}
    drop(raw);
    let (mut late, mut asking, proof) = Raw::prove(address, &known, 2, stand(0), None);
    wait_until("it is gone", || count(&listener) == 0);
    late.greet(&proof);
    let Ok(Asked::Refused(refuse)) = asking.step(late.greeting()) else { panic!("it is over") };
    assert_eq!(refuse.end.code, Ending::GraceExpired);
}

#[test]
fn a_client_that_shows_nothing_behind_its_welcome_has_no_pipe_for_long() {
    let (listener, address) = listens(Duration::from_secs(24 * 60 * 60));
    let (raw, _) = Raw::open(address, None);
    let (mut shows, _) = Raw::open(address, None);
    shows.control(&Control::Ping { token: 1 });
    while !matches!(shows.next().expect("frames"), Frame::Control(Control::Pong { .. })) {}
    assert_eq!(count(&listener), 2);
    // Thirty seconds by the book: what is shown takes that long.
    let deadline = Instant::now() + Duration::from_secs(60);
    while count(&listener) == 2 {
        assert!(Instant::now() < deadline, "it is still there");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(count(&listener), 1, "and the other one stays");
    drop((raw, shows));
}
