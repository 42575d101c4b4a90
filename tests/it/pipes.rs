//! Pipes from end to end in one process: windows, half-closes, replacements, crowds. And the list of every
//! kind of trouble a pipe has to live through, with the tests that show it.
//!
//! | # | trouble | shown by |
//! |---|---|---|
//! | 1 | a cut at every byte of the wire, either way | `pipe_cuts::a_plain_pipe_may_be_cut_after_any_byte`, `…a_pipe_to_a_daemon_…`, `codec::pipe::tests::a_cut_at_any_byte_of_the_wire_…`, `…a_second_cut_at_any_byte_of_the_resume_…`, `client::pipe::backed::tests::real_a_connection_may_break_after_any_byte`, `sim_pipes::sim_every_byte_arrives_once_…` |
//! | 2 | storms of resets, cuts in the replay and the handshake, lost welcomes | `fault_pipes::fault_a_storm_of_cuts_…`, `codec::pipe::tests::a_lost_welcome_…`, `pipe_wire::a_lost_welcome_…` |
//! | 3 | resume points: acked, sent, between, before, beyond | `pipe_wire::a_resume_point_is_the_truth_or_the_end`, `state::pipe::tests::a_resume_point_that_cannot_be_true_…` |
//! | 4 | DATA that overlaps, repeats, leaves a gap, exceeds a limit or a frame | `pipe_wire::what_no_peer_may_say_…`, `…what_a_peer_may_say_…`, `state::pipe::tests::duplicates_drop_themselves_…` |
//! | 5 | ACKs that are late, repeated, from the future, with a smaller limit | `pipe_wire::what_a_peer_may_say_…`, `state::pipe::tests::an_acknowledgement_may_be_late_…`, `…a_smaller_window_…` |
//! | 6 | full windows; a peer that never acknowledges | `pipe_wire::a_peer_that_reads_and_never_acknowledges_…`, `client::pipe::tests::real_a_writer_waits_…`, `…real_a_blocked_writer_is_woken_…`, `…real_shutting_down_wakes_…`, `state::pipe::tests::a_full_window_…` |
//! | 7 | two full windows at a resume | `two_full_windows_at_a_resume_do_not_wait_for_each_other`, `sim_pipes::sim_two_full_windows_…`, `codec::pipe::tests::two_full_windows_…` |
//! | 8 | questions behind bulk | `state::pipe::tests::control_frames_go_ahead_of_queued_bytes`, `any_byte_is_life` |
//! | 9 | half-closes lost, replayed, crossing; resets | `state::pipe::tests::the_end_of_a_direction_…`, `…a_target_that_breaks_off_…`, `half_closes_and_resets_arrive_as_what_they_are`, `a_client_that_breaks_off_…` |
//! | 10 | empty writes, single bytes, writes beyond the window | `bytes_one_by_one_none_at_all_and_more_than_a_window` |
//! | 11 | racing resumes, late bytes and errors of old carriers | `pipe_wire::a_thousand_racing_resumes_…`, `state::pipe::tests::whatever_an_old_carrier_says_is_ignored` |
//! | 12 | replacement under load; one that fails; GOAWAY | `a_carrier_is_replaced_under_load_…`, `a_replacement_that_fails_leaves_the_old_carrier`, `pipe_handshakes::a_replacement_whose_…`, `pipe_wire::a_server_that_drains_…` |
//! | 13 | offsets near 2^32, 2^63, 2^64 | `state::pipe::tests::large_offsets_…`, `…at_the_last_offset_…` |
//! | 14 | closing at any moment, twice, without a word; leaks | `client::pipe::backed::tests::real_closing_wakes_…`, `client::pipe::tests::real_closing_…`, `…real_starting_and_dropping_…` |
//! | 15 | grace, targets that end while detached, sleep | `what_a_target_said_last_is_delivered_after_a_resume`, `a_pipe_nobody_comes_back_for_…`, `pipe_paths::a_machine_that_slept_…`, `pipe_limits::what_a_target_said_before_it_broke_off_…`, `…a_pipe_that_was_ended_while_…`, `pipe_handshakes::a_grace_that_ends_…`, `…a_client_that_shows_nothing_…` |
//! | 16 | a server that restarted | `client::pipe::tests::real_a_server_that_restarted_…`, `cli_pipe::a_pipe_that_lost_its_daemon_…` |
//! | 17 | strangers | `pipe_wire`: racing, recorded, mixed, unknown, flooding, half a handshake, claimed sizes; `pipe_trust`: targets and tokens that are taken back, networks in the clear, a flood at a daemon; `tests/fuzz` |
//! | 18 | resets, ends, holes, trickles, portals, proxies | `cli_pipe::a_forwarded_stream_survives_…`, `…silence_in_one_direction_…`, `pipe_paths::a_portal_…`, `pipe_paths::pipes_pass_http_proxies_…`, `a_link_that_brings_one_byte_at_a_time_…`, `pipe_trust::encrypted_carriers_…` |
//! | 19 | standard input and output, exit codes | `cli_pipe::connect_…`, `…told_to_stop_…`, `…a_forward_whose_terminal_…`, `pipe_paths::standard_input_may_end_…`, `pipe_paths::exit_codes_…` |
//! | 20 | limits and crowds | `a_hundred_pipes_cut_at_once_all_come_back`, `client::pipe::tests::real_one_pipe_too_many_…`, `pipe_limits`, `cli_pipe::forward_without_descriptors_…`, `engine::pipes::ledger::tests` |
//! | 21 | real ssh, scp and rsync | `fault_pipes::fault_ssh_scp_and_rsync_…` |
//! | 22 | newer peers | `pipe_wire::what_a_peer_may_say_…` (a frame that may be skipped), `…a_handshake_in_the_wrong_order_or_of_another_version_…`, `codec::pipe::tests::a_known_frame_may_say_more_…` |

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use towpath::client::pipe::{Event, Pipe, PipeListener, State, ended_with};
use towpath::engine::pipes::carrier::Carrier;
use towpath::engine::pipes::dial::{DialError, Dialer, Patience, Plain};
use towpath::engine::pipes::{PipeInfo, Pipes, Plan, Server, Settings};
use towpath::rt::Rt;
use towpath::state::pipe::{End, Ending, WINDOW_MIN};

use crate::cli_pipe::{forward, text};
use crate::flaky::{Fault, Flaky, Weather};
use crate::process::{Daemon, PATIENCE};

fn dialing(rt: &Rt) -> Pipes {
    Pipes::start(rt, Settings::default(), Server::none()).expect("threads")
}

fn settings(window: u64) -> Settings {
    Settings { window, ..Settings::default() }
}

/// Dials through `inner` unless it may not.
struct Sometimes {
    inner: Plain,
    refuse: AtomicBool,
    dials: AtomicU64,
}

impl Sometimes {
    fn to(listener: &PipeListener) -> Arc<Sometimes> {
        let address = listener.address().expect("over TCP");
        let inner = Plain::Tcp(address.ip().to_string(), address.port());
        Arc::new(Sometimes { inner, refuse: AtomicBool::new(false), dials: AtomicU64::new(0) })
    }
}

impl Dialer for Sometimes {
    fn dial(&self, patience: &mut Patience) -> Result<Carrier, DialError> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        match self.refuse.load(Ordering::SeqCst) {
            true => Err(DialError::later(End::new(Ending::TargetUnreachable, "not now"))),
            false => self.inner.dial(patience),
        }
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn infos(listener: &PipeListener) -> Vec<PipeInfo> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    listener.pipes().list(move |infos| tell.send(infos).expect("somebody waits"));
    told.recv().expect("a list")
}

fn read_all(mut pipe: &Pipe) -> Vec<u8> {
    let mut got = Vec::new();
    pipe.read_to_end(&mut got).expect("it ends well");
    got
}

#[test]
fn two_full_windows_at_a_resume_do_not_wait_for_each_other() {
    let rt = Rt::real();
    let listener = PipeListener::bind_with(&rt, "127.0.0.1:0", settings(WINDOW_MIN), None).expect("a port");
    let flaky = Flaky::start(
        "127.0.0.1:0",
        &listener.address().expect("over TCP").to_string(),
        1,
        Weather::default(),
    );
    let flaky = flaky.expect("a free port");
    let pipes = dialing(&rt);
    let dialer = Plain::Tcp("127.0.0.1".into(), flaky.address().port());
    let plan = Plan { window: WINDOW_MIN, ..Plan::new(Arc::new(dialer), "x") };
    let ours = Pipe::open(&rt, &pipes.handle(), plan).expect("it opens");
    let theirs = listener.accept().expect("it was opened").pipe;
    let (up, down) = (text(6_000_000), text(5_000_000));
    thread::scope(|scope| {
        let (mut one, mut other) = (&ours, &theirs);
        let (up, down) = (&up, &down);
        scope.spawn(move || {
            one.write_all(up).expect("it takes them");
            one.shutdown().expect("open");
        });
        scope.spawn(move || {
            other.write_all(down).expect("it takes them");
            other.shutdown().expect("open");
        });
        // Nobody reads: both windows fill until neither end takes another byte.
        let list = || infos(&listener);
        wait_until("both are full", || list().iter().any(|info| info.buffered == 2 * WINDOW_MIN));
        for _ in 0..3 {
            while flaky.strike(Fault::Reset) == 0 {
                thread::yield_now();
            }
            wait_until("another carrier", || ours.state() == State::Connected);
        }
        let reading = scope.spawn(|| read_all(&ours));
        assert!(read_all(&theirs) == *up);
        assert!(reading.join().expect("no panic") == *down);
    });
}

#[test]
fn a_carrier_is_replaced_under_load_and_nobody_notices() {
    let rt = Rt::real();
    let listener = PipeListener::bind(&rt, "127.0.0.1:0").expect("a free port");
    let dialer = Sometimes::to(&listener);
    let pipes = dialing(&rt);
    let plan = Plan { carrier_age: Some(Duration::from_millis(100)), ..Plan::new(dialer.clone(), "x") };
    let ours = Pipe::open(&rt, &pipes.handle(), plan).expect("it opens");
    let events = ours.events().expect("given once");
    let theirs = listener.accept().expect("it was opened").pipe;
    let written = thread::scope(|scope| {
        let writing = scope.spawn(|| {
            // As long as it takes to be replaced five times, however fast or slow.
            let (mut hash, mut count) = (Sha256::new(), 0);
            let piece = text(1 << 20);
            let begun = Instant::now();
            while dialer.dials.load(Ordering::SeqCst) < 6 {
                assert!(begun.elapsed() < PATIENCE * 3, "it is not replaced");
                (&ours).write_all(&piece).expect("it is open");
                hash.update(&piece);
                count += piece.len();
            }
            ours.shutdown().expect("open");
            (hash.finalize(), count)
        });
        let (mut hash, mut count) = (Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = (&theirs).read(&mut buffer).expect("it ends well");
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            count += read;
        }
        let written = writing.join().expect("no panic");
        assert_eq!((hash.finalize(), count), written);
        written
    });
    theirs.shutdown().expect("open");
    drop(theirs);
    ours.wait_over(Some(PATIENCE)).expect("both directions ended");
    let told: Vec<Event> = std::iter::from_fn(|| events.try_recv().ok()).collect();
    assert!(!told.iter().any(|event| matches!(event, Event::Lost { .. })), "{told:?}");
    let seamless = told
        .iter()
        .filter(|event| matches!(event, Event::Recovered { down_for: Duration::ZERO, .. }))
        .count();
    assert!(seamless >= 4, "{} bytes, {told:?}", written.1);
}

#[test]
fn a_replacement_that_fails_leaves_the_old_carrier() {
    let rt = Rt::real();
    let listener = PipeListener::bind(&rt, "127.0.0.1:0").expect("a free port");
    let dialer = Sometimes::to(&listener);
    let pipes = dialing(&rt);
    let ours = Pipe::open(&rt, &pipes.handle(), Plan::new(dialer.clone(), "x")).expect("it opens");
    let events = ours.events().expect("given once");
    let mut theirs = listener.accept().expect("it was opened").pipe;
    ours.wait_connected(Some(PATIENCE)).expect("it connects");
    dialer.refuse.store(true, Ordering::SeqCst);
    let before = dialer.dials.load(Ordering::SeqCst);
    pipes.handle().redial();
    wait_until("a replacement was tried", || dialer.dials.load(Ordering::SeqCst) > before);
    (&ours).write_all(b"still here").expect("it is open");
    let mut got = [0; 10];
    theirs.read_exact(&mut got).expect("it comes");
    assert_eq!((&got, ours.state()), (b"still here", State::Connected));
    let told: Vec<Event> = std::iter::from_fn(|| events.try_recv().ok()).collect();
    assert!(!told.iter().any(|event| matches!(event, Event::Lost { .. })), "{told:?}");
}

#[test]
fn who_only_writes_hears_what_comes_though_it_writes_little() {
    let rt = Rt::real();
    let listener = PipeListener::bind(&rt, "127.0.0.1:0").expect("a port");
    let ours = Pipe::connect(&rt, listener.url(), "x").expect("it listens");
    let theirs = listener.accept().expect("it was opened").pipe;
    let heard = || infos(&listener)[0].bytes_to_target;
    thread::scope(|scope| {
        scope.spawn(|| read_all(&ours));
        // From here on nobody but the writer is expected to look what comes.
        (&theirs).write_all(&[0; 64 * 1024]).expect("it is taken");
        (&ours).write_all(b"hello").expect("it is taken");
        // By far less than it may write before it looks for that alone.
        let pieces = (0..2_000).take_while(|_| {
            (&theirs).write_all(&[0; 64]).expect("it is taken");
            heard() < 5
        });
        let pieces = pieces.count();
        theirs.shutdown().expect("it was open");
        assert!(pieces < 2_000, "nobody heard it");
    });
}

#[test]
fn bytes_one_by_one_none_at_all_and_more_than_a_window() {
    let rt = Rt::real();
    let listener = PipeListener::bind_with(&rt, "127.0.0.1:0", settings(WINDOW_MIN), None).expect("a port");
    let ours = Pipe::connect(&rt, listener.url(), "x").expect("it listens");
    let theirs = listener.accept().expect("it was opened").pipe;
    let single = text(20_000);
    let long = text(10 * WINDOW_MIN as usize);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut ours = &ours;
            assert_eq!(ours.write(b"").expect("nothing is always taken"), 0);
            for byte in &single {
                ours.write_all(std::slice::from_ref(byte)).expect("it takes it");
            }
            ours.write_all(&long).expect("it takes them, a window at a time");
            ours.shutdown().expect("open");
            assert!(ours.write(b"x").is_err(), "after the end of the direction");
        });
        assert_eq!((&theirs).read(&mut []).expect("nothing is always there"), 0);
        assert!(read_all(&theirs) == [single.clone(), long.clone()].concat());
    });
}

/// A target that is told what to do with each connection.
fn target(then: impl Fn(std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            then(stream.expect("a connection"));
        }
    });
    address
}

#[test]
fn half_closes_and_resets_arrive_as_what_they_are() {
    let resets = target(|mut stream| {
        // It answers a first byte, and breaks off at a second.
        stream.read_exact(&mut [0]).expect("a byte");
        stream.write_all(b"bye").expect("it reads");
        stream.read_exact(&mut [0]).expect("another");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
    });
    let daemon = Daemon::start(&["--allow", &resets]);
    let (_running, address) = forward(&daemon.url, &resets, &["--quiet"]);
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"x").expect("the pipe takes it");
    let mut got = [0; 3];
    stream.read_exact(&mut got).expect("its last words");
    assert_eq!(&got, b"bye");
    stream.write_all(b"y").expect("the pipe takes it");
    let error = stream.read(&mut got).expect_err("no plain end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_client_that_breaks_off_is_broken_off_at_the_target() {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let hears = target(move |mut stream| {
        stream.read_exact(&mut [0]).expect("a byte");
        stream.write_all(b"!").expect("it reads");
        let error = stream.read(&mut [0]).map_err(|error| error.kind());
        tell.send(error).expect("somebody waits");
    });
    let daemon = Daemon::start(&["--allow", &hears]);
    for flags in [&["--transport", "upgrade", "--quiet"], &["--transport", "websocket", "--quiet"]] {
        let (_running, address) = forward(&daemon.url, &hears, flags);
        let mut stream = std::net::TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(b"x").expect("the pipe takes it");
        stream.read_exact(&mut [0]).expect("it is connected");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
        drop(stream);
        let heard = told.recv_timeout(PATIENCE).expect("the target hears of it");
        assert_eq!(heard, Err(io::ErrorKind::ConnectionReset), "no plain end");
    }
}

#[test]
fn a_link_that_brings_one_byte_at_a_time_carries_a_small_session_whole() {
    let rt = Rt::real();
    let listener = PipeListener::bind(&rt, "127.0.0.1:0").expect("a free port");
    let weather = Weather { trickle: 2_000, split: 1, ..Weather::default() };
    let flaky = Flaky::start("127.0.0.1:0", &listener.address().expect("over TCP").to_string(), 1, weather);
    let flaky = flaky.expect("a free port");
    let ours = Pipe::connect(&rt, &format!("tcp://{}", flaky.address()), "x").expect("it gets through");
    let theirs = listener.accept().expect("it was opened").pipe;
    let (up, down) = (text(600), text(500));
    (&ours).write_all(&up).expect("room");
    (&theirs).write_all(&down).expect("room");
    // In the middle of a frame, most likely; what was under way is sent again, as slowly.
    flaky.strike(Fault::Reset);
    ours.shutdown().expect("open");
    theirs.shutdown().expect("open");
    assert!(read_all(&theirs) == up);
    assert!(read_all(&ours) == down);
    for end in [&ours, &theirs] {
        assert_eq!(end.wait_over(Some(PATIENCE)).map(|end| end.code), Some(Ending::Eof));
    }
}

#[test]
fn what_a_target_said_last_is_delivered_after_a_resume() {
    let (ask, asked) = std::sync::mpsc::sync_channel::<()>(1);
    let asked = std::sync::Mutex::new(asked);
    let leaves = target(move |mut stream| {
        stream.read_exact(&mut [0]).expect("a byte");
        asked.lock().expect("one at a time").recv().expect("it is asked to");
        stream.write_all(&text(300_000)).expect("it is taken");
    });
    let daemon = Daemon::start(&["--allow", &leaves]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let url = format!("http://{}", flaky.address());
    let (running, address) = forward(&url, &leaves, &["--quiet"]);
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"x").expect("the pipe takes it");
    let list = || {
        let (status, body) = daemon.get("/v1/pipes");
        assert_eq!(status, 200, "{body}");
        body
    };
    wait_until("it was heard", || list().contains("\"bytes_to_target\":1"));
    let signal = |name: &str| {
        let id = running.0.id().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.expect("kill runs").success());
    };
    // The client stands still while its link is cut, so that nothing bears the pipe; and the target leaves.
    signal("STOP");
    flaky.strike(Fault::Reset);
    wait_until("nothing bears it", || list().contains("\"detached\""));
    ask.send(()).expect("the target waits");
    wait_until("it has left", || list().contains("\"bytes_from_target\":300000"));
    signal("CONT");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("a good end");
    assert!(got == text(300_000), "{} bytes", got.len());
}

#[test]
fn a_pipe_nobody_comes_back_for_ends_when_its_grace_is_over_and_not_before() {
    let rt = Rt::real();
    let settings = Settings { grace: Some(Duration::from_secs(6)), ..Settings::default() };
    let listener = PipeListener::bind_with(&rt, "127.0.0.1:0", settings, None).expect("a free port");
    let dialer = Sometimes::to(&listener);
    let pipes = dialing(&rt);
    let ours = Pipe::open(&rt, &pipes.handle(), Plan::new(dialer.clone(), "x")).expect("it opens");
    let mut theirs = listener.accept().expect("it was opened").pipe;
    ours.wait_connected(Some(PATIENCE)).expect("it connects");
    // Away for less than the grace.
    dialer.refuse.store(true, Ordering::SeqCst);
    ours.reconnect_now();
    wait_until("it was tried", || ours.state() == State::Lost);
    dialer.refuse.store(false, Ordering::SeqCst);
    ours.wait_connected(Some(PATIENCE)).expect("it comes back");
    (&ours).write_all(b"back").expect("it is open");
    let mut got = [0; 4];
    theirs.read_exact(&mut got).expect("it comes");
    // And for more.
    dialer.refuse.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    ours.reconnect_now();
    let end = theirs.wait_over(Some(PATIENCE)).expect("it ends");
    assert!(begun.elapsed() >= Duration::from_secs(6), "after {:?}", begun.elapsed());
    assert_eq!(end.code, Ending::GraceExpired);
    let end = ours.wait_over(Some(PATIENCE)).expect("it gives up as well");
    assert_eq!(end.code, Ending::GraceExpired);
    let error = (&ours).write(b"x").expect_err("it is over");
    assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::GraceExpired));
}

#[test]
fn a_hundred_pipes_cut_at_once_all_come_back() {
    let rt = Rt::real();
    let listener = PipeListener::bind(&rt, "127.0.0.1:0").expect("a free port");
    let flaky = Flaky::start(
        "127.0.0.1:0",
        &listener.address().expect("over TCP").to_string(),
        1,
        Weather::default(),
    );
    let flaky = flaky.expect("a free port");
    let pipes = dialing(&rt);
    let dialer = Arc::new(Plain::Tcp("127.0.0.1".into(), flaky.address().port()));
    let both: Vec<(Pipe, Pipe)> = (0..100)
        .map(|_| {
            let ours = Pipe::open(&rt, &pipes.handle(), Plan::new(dialer.clone(), "x")).expect("it opens");
            (ours, listener.accept().expect("it was opened").pipe)
        })
        .collect();
    both.iter().for_each(|(ours, _)| ours.wait_connected(Some(PATIENCE)).expect("it connects"));
    for round in 0..3_u8 {
        assert!(flaky.strike(Fault::Reset) >= 100);
        for (ours, theirs) in &both {
            (&*ours).write_all(&[round]).expect("it takes it, attached or not");
            let mut got = [0];
            (&*theirs).read_exact(&mut got).expect("it comes");
            assert_eq!(got, [round]);
        }
    }
    assert_eq!(infos(&listener).iter().filter(|info| info.attached && info.resumes >= 3).count(), 100);
}
