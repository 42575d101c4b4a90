use super::*;
use crate::engine::pipes::Limits;
use crate::state::pipe::Liveness;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

/// How long anything that should happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn listener(rt: &Rt) -> PipeListener {
    PipeListener::bind(rt, "127.0.0.1:0").expect("a free port")
}

fn connect(rt: &Rt, listener: &PipeListener) -> (Pipe, Pipe) {
    let ours = Pipe::connect(rt, listener.url(), "anything").expect("it listens");
    let theirs = listener.accept().expect("it was opened").pipe;
    (ours, theirs)
}

fn text(count: usize) -> Vec<u8> {
    (0..count as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

#[test]
fn real_both_directions_end_by_themselves_and_then_it_is_over() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut ours, mut theirs) = connect(&rt, &listener);
    ours.write_all(b"question").expect("room");
    ours.shutdown().expect("open");
    let mut got = String::new();
    theirs.read_to_string(&mut got).expect("an end");
    assert_eq!(got, "question");
    assert!(ours.write(b"more").is_err(), "this direction is over");
    theirs.write_all(b"answer").expect("the other is not");
    theirs.shutdown().expect("open");
    let mut got = String::new();
    ours.read_to_string(&mut got).expect("an end");
    assert_eq!(got, "answer");
    let timeout = Some(Duration::from_secs(5));
    assert_eq!(ours.wait_over(timeout).map(|end| end.code), Some(Ending::Eof));
    assert_eq!(theirs.wait_over(timeout).map(|end| end.code), Some(Ending::Eof));
}

#[test]
fn real_bytes_are_the_same_however_often_the_carrier_is_cut() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (ours, theirs) = connect(&rt, &listener);
    let sent = text(24 << 20);
    let write = |pipe: Pipe, sent: Vec<u8>| {
        thread::spawn(move || {
            (&pipe).write_all(&sent).expect("room in the end");
            pipe.shutdown().expect("open");
        })
    };
    let writers = [write(ours.clone(), sent.clone()), write(theirs.clone(), sent.clone())];
    // Every megabyte that arrives cuts once: progress, not time, is what paces it.
    let (tell, told) = std::sync::mpsc::sync_channel(64);
    let read = |pipe: Pipe| {
        let tell = tell.clone();
        thread::spawn(move || {
            let mut got = Vec::new();
            while (&pipe).take(1 << 20).read_to_end(&mut got).expect("an end") > 0 {
                tell.send(()).expect("somebody cuts");
            }
            got
        })
    };
    let readers = [read(ours.clone()), read(theirs.clone())];
    drop(tell);
    let mut cuts = 0;
    for () in told {
        if cuts % 2 == 0 {
            ours.reconnect_now()
        } else {
            theirs.reconnect_now()
        }
        cuts += 1;
    }
    for writer in writers {
        writer.join().expect("no panic");
    }
    for reader in readers {
        let got = reader.join().expect("no panic");
        assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
    }
    assert!(cuts >= 48, "only {cuts} cuts");
}

#[test]
fn real_pieces_of_all_sizes_arrive_in_order_both_ways_at_once() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut ours, mut theirs) = connect(&rt, &listener);
    for pipe in [&mut ours, &mut theirs] {
        pipe.set_read_timeout(Some(Duration::from_secs(60)));
        pipe.set_write_timeout(Some(Duration::from_secs(60)));
    }
    let sent = text(24 << 20);
    thread::scope(|scope| {
        for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
            let (sent, mut from, mut to) = (&sent, from, to);
            scope.spawn(move || {
                let mut left = &sent[..];
                for size in [1, 64, 131_072, 5, 300_000, 70_000].into_iter().cycle() {
                    let (piece, rest) = left.split_at(left.len().min(size));
                    from.write_all(piece).expect("room in time");
                    left = rest;
                    if left.is_empty() {
                        break;
                    }
                }
            });
            scope.spawn(move || {
                let mut at = 0;
                let mut buffer = vec![0; 200_000];
                for size in [131_072, 1, 50, 200_000, 4_096].into_iter().cycle() {
                    let count = to.read(&mut buffer[..size]).expect("bytes in time");
                    assert!(buffer[..count] == sent[at..at + count], "other bytes at {at}");
                    at += count;
                    if at == sent.len() {
                        break;
                    }
                }
            });
        }
    });
}

#[test]
fn real_an_end_whose_program_pauses_in_mid_stream_still_notices_that_its_carrier_is_gone() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut ours, mut theirs) = connect(&rt, &listener);
    theirs.write_all(&text(4 << 20)).expect("room");
    // Large reads one after the other: whoever reads looks after the carrier by himself...
    let mut got = vec![0; 2 << 20];
    ours.read_exact(&mut got).expect("it is there");
    // ...and then does not. The other end lets go of the carrier, and only this one can make another.
    theirs.reconnect_now();
    theirs
        .wait_connected(Some(Duration::from_secs(8)))
        .expect("a carrier, before any question goes unanswered");
    let mut rest = vec![0; 2 << 20];
    ours.read_exact(&mut rest).expect("it is there");
    assert!([got, rest].concat() == text(4 << 20));
}

#[test]
fn real_a_reader_that_waits_gets_what_the_next_carrier_brings_and_the_last_one_is_closed() {
    const CUTS: usize = 200;
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("linux").count();
    let rt = Rt::real();
    let listener = listener(&rt);
    let (ours, theirs) = connect(&rt, &listener);
    for pipe in [&ours, &theirs] {
        (&*pipe).write_all(b"?").expect("room");
    }
    for pipe in [&ours, &theirs] {
        (&*pipe).read_exact(&mut [0]).expect("a byte");
    }
    let before = descriptors();
    for (reader, writer) in [(&ours, &theirs), (&theirs, &ours)] {
        thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            scope.spawn(move || {
                for round in 0..CUTS {
                    let mut got = [0];
                    (&*reader).read_exact(&mut got).expect("it comes over one carrier or another");
                    assert_eq!(usize::from(got[0]), round % 256);
                    tell.send(()).expect("somebody cuts");
                }
            });
            for round in 0..CUTS {
                if round % 2 == 0 {
                    ours.reconnect_now()
                } else {
                    theirs.reconnect_now()
                }
                (&*writer).write_all(&[(round % 256) as u8]).expect("room");
                told.recv_timeout(Duration::from_secs(30)).expect("it was read");
            }
        });
    }
    // Other tests of this process have some of their own.
    let after = descriptors();
    assert!(after < before + CUTS, "{before} descriptors before {CUTS} cuts each way, {after} after");
}

#[test]
fn real_a_reader_that_gave_up_waiting_leaves_the_carrier_to_the_pipes() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut ours, mut theirs) = connect(&rt, &listener);
    for _ in 0..2 {
        ours.set_read_timeout(Some(Duration::from_millis(20)));
        let error = ours.read(&mut [0]).expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Nobody reads here: only the pipes' thread can find that the carrier is gone, and dial.
        theirs.reconnect_now();
        theirs.wait_connected(Some(Duration::from_secs(8))).expect("a carrier, before anything is asked");
        theirs.write_all(b"x").expect("room");
        ours.set_read_timeout(Some(Duration::from_secs(30)));
        ours.read_exact(&mut [0]).expect("it comes");
    }
}

#[test]
fn real_readers_of_one_end_share_what_comes() {
    const WORDS: usize = 2_000;
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut ours, theirs) = connect(&rt, &listener);
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let readers = [theirs.clone(), theirs.clone(), theirs].map(|mut pipe| {
        let tell = tell.clone();
        thread::spawn(move || {
            let mut read = 0;
            while pipe.read(&mut [0]).expect("an end") > 0 {
                read += 1;
                tell.send(()).expect("somebody counts");
            }
            read
        })
    });
    for _ in 0..WORDS {
        ours.write_all(b"x").expect("room");
        told.recv_timeout(Duration::from_secs(30)).expect("one of them has it");
    }
    ours.shutdown().expect("open");
    let read: Vec<usize> = readers.map(|reader| reader.join().expect("no panic")).into();
    assert_eq!(read.iter().sum::<usize>(), WORDS);
}

#[test]
fn real_a_writer_waits_for_the_reader_and_times_out_with_its_bytes() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut ours, mut theirs) = connect(&rt, &listener);
    ours.set_write_timeout(Some(Duration::from_millis(300)));
    let chunk = text(1 << 20);
    let mut sent = 0;
    let error = loop {
        match ours.write(&chunk) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let window = crate::state::pipe::WINDOW as usize;
    assert!((window..3 * window).contains(&sent), "{sent} bytes went in");
    assert_eq!(ours.try_write(b"x").expect_err("still full").kind(), io::ErrorKind::TimedOut);
    let mut got = vec![0; sent];
    theirs.read_exact(&mut got).expect("all of it is there");
    ours.write_all(b"goes on").expect("room again");
}

#[test]
fn real_a_blocked_writer_is_woken_with_a_typed_error_when_the_pipe_ends() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (ours, theirs) = connect(&rt, &listener);
    let writer = thread::spawn(move || {
        loop {
            if let Err(error) = (&ours).write_all(&[7; 65_536]) {
                return ended_with(&error).map(|end| end.code);
            }
        }
    });
    let pipes = listener.pipes();
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    pipes.list(move |infos| tell.send(infos).expect("somebody waits"));
    let infos = told.recv_timeout(Duration::from_secs(5)).expect("an answer");
    assert_eq!(infos.len(), 1);
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let end = End::new(Ending::Killed, "by the test");
    pipes.kill(infos[0].id, end, move |found| tell.send(found).expect("somebody waits"));
    assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(true));
    assert_eq!(writer.join().expect("no panic"), Some(Ending::Killed));
    assert_eq!(theirs.wait_over(Some(Duration::from_secs(5))).map(|end| end.code), Some(Ending::Killed));
}

/// Waits until so many threads wait at this end.
fn wait_until_blocked(pipe: &Pipe, count: usize) {
    let begun = Instant::now();
    while pipe.handles.duct.waiting() < count {
        assert!(begun.elapsed() < PATIENCE, "{} of {count} wait", pipe.handles.duct.waiting());
        thread::yield_now();
    }
}

/// Does something on a thread, and gives where the code comes out that it ends with.
fn ends(
    mut act: impl FnMut() -> io::Result<()> + Send + 'static,
) -> std::sync::mpsc::Receiver<Option<Ending>> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    thread::spawn(move || {
        let error = loop {
            if let Err(error) = act() {
                break error;
            }
        };
        tell.send(ended_with(&error).map(|end| end.code)).expect("somebody waits");
    });
    told
}

/// What it has taken, up to where the peer has no room for more.
fn fill(pipe: &Pipe) -> usize {
    let mut clone = pipe.clone();
    clone.set_write_timeout(Some(Duration::from_millis(300)));
    std::iter::from_fn(|| clone.write(&[7; 65_536]).ok()).sum()
}

#[test]
fn real_shutting_down_wakes_a_writer_that_nobody_makes_room_for() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (ours, mut theirs) = connect(&rt, &listener);
    let filled = fill(&ours);
    let mut clone = ours.clone();
    let writer = ends(move || clone.write(&[7; 65_536]).map(drop));
    wait_until_blocked(&ours, 1);
    ours.shutdown().expect("open");
    assert_eq!(writer.recv_timeout(PATIENCE), Ok(Some(Ending::Eof)), "there will be no room");
    // What was taken arrives, and the other direction goes on.
    let mut got = Vec::new();
    theirs.read_to_end(&mut got).expect("an end");
    assert_eq!(got.len(), filled);
    theirs.write_all(b"still here").expect("room");
    (&ours).read_exact(&mut [0; 10]).expect("it comes");
}

/// A way to `to` for one connection, on which nothing goes up any more once `frozen` says so, until `over` ends.
fn freezing(to: &PipeListener, frozen: Arc<AtomicBool>, over: std::sync::mpsc::Receiver<()>) -> SocketAddr {
    let door = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (address, to) = (door.local_addr().expect("bound"), to.address().expect("over TCP"));
    thread::spawn(move || {
        let (near, far) =
            (door.accept().expect("somebody comes").0, TcpStream::connect(to).expect("it listens"));
        let (mut from, mut back) = (far.try_clone().expect("a clone"), near.try_clone().expect("a clone"));
        thread::spawn(move || io::copy(&mut from, &mut back));
        let (mut near, mut far, mut buffer) = (near, far, [0; 4_096]);
        while !frozen.load(Ordering::SeqCst) {
            match near.read(&mut buffer) {
                Ok(count @ 1..) => far.write_all(&buffer[..count]).expect("it is taken"),
                _ => return,
            }
        }
        over.recv().expect_err("nobody says anything");
    });
    address
}

#[test]
fn real_shutting_down_wakes_a_writer_whose_carrier_takes_nothing() {
    let rt = Rt::real();
    // What the carrier does not take must be less than what the pipe would.
    let window = 64 << 20;
    // Nobody asks meanwhile whether the carrier is alive.
    let liveness = Liveness { idle: 10 * PATIENCE, busy: 10 * PATIENCE, ..Liveness::NORMAL };
    let settings = Settings { window, liveness, ..Settings::default() };
    let listener = PipeListener::bind_with(&rt, "127.0.0.1:0", settings, None).expect("a free port");
    let frozen = Arc::new(AtomicBool::new(false));
    let (_end, over) = std::sync::mpsc::sync_channel(1);
    let way = freezing(&listener, frozen.clone(), over);
    let pipes = Pipes::start(&rt, Settings::default(), Server::none()).expect("threads");
    let dialer = Arc::new(Plain::Tcp(way.ip().to_string(), way.port()));
    let plan = Plan { window, liveness, ..Plan::new(dialer, "x") };
    let ours = Pipe::open(&rt, &pipes.handle(), plan).expect("it opens");
    ours.wait_connected(Some(PATIENCE)).expect("it connects");
    frozen.store(true, Ordering::SeqCst);
    let filled = fill(&ours);
    assert!(filled < window as usize, "{filled} bytes");
    let mut clone = ours.clone();
    let writer = ends(move || clone.write(&[7; 65_536]).map(drop));
    wait_until_blocked(&ours, 1);
    ours.shutdown().expect("open");
    assert_eq!(writer.recv_timeout(PATIENCE), Ok(Some(Ending::Eof)));
}

#[test]
fn real_closing_wakes_whoever_waits_and_tells_the_other_end() {
    for attached in [true, false] {
        let rt = Rt::real();
        let listener = listener(&rt);
        let (ours, theirs) = connect(&rt, &listener);
        fill(&ours);
        let blocked: Vec<_> = (0..2)
            .flat_map(|_| {
                let (mut reads, mut writes) = (ours.clone(), ours.clone());
                [ends(move || reads.read_exact(&mut [0])), ends(move || writes.write(&[7; 65_536]).map(drop))]
            })
            .collect();
        wait_until_blocked(&ours, 4);
        if !attached {
            ours.reconnect_now();
        }
        ours.close();
        assert!(matches!(ours.state(), State::Over(_)), "no later than that");
        for (number, blocked) in blocked.into_iter().enumerate() {
            assert_eq!(blocked.recv_timeout(PATIENCE), Ok(Some(Ending::Killed)), "number {number}");
        }
        // Bytes that came before may still be read; then it is told.
        let mut far = theirs.clone();
        let far = ends(move || far.read(&mut [0; 65_536]).map(drop));
        assert_eq!(far.recv_timeout(PATIENCE), Ok(Some(Ending::Killed)), "the other end");
        assert_eq!(theirs.wait_over(Some(PATIENCE)), Some(End::new(Ending::Killed, "it was closed")));
        ours.close();
        theirs.close();
        let error = ours.shutdown().expect_err("it is over");
        assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::Killed));
    }
}

#[test]
fn real_closing_from_the_end_that_accepted_or_after_a_good_end() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (ours, theirs) = connect(&rt, &listener);
    let mut clone = ours.clone();
    let reader = ends(move || clone.read_exact(&mut [0]));
    theirs.close();
    assert_eq!(reader.recv_timeout(PATIENCE), Ok(Some(Ending::Killed)));

    let (ours, theirs) = connect(&rt, &listener);
    for pipe in [&ours, &theirs] {
        pipe.shutdown().expect("open");
    }
    for pipe in [&ours, &theirs] {
        assert_eq!(pipe.wait_over(Some(PATIENCE)).map(|end| end.code), Some(Ending::Eof));
        pipe.close();
        assert_eq!((&*pipe).read(&mut [0]).expect("a good end stays one"), 0);
    }
}

#[test]
fn real_a_pipe_over_a_unix_socket_survives_cuts_and_its_file_comes_and_goes() {
    let rt = Rt::real();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("pipes");
    let url = format!("unix:{}", path.display());
    // Left over from a process that is gone.
    drop(UnixListener::bind(&path).expect("a path of its own"));
    assert!(path.exists());
    let listener = PipeListener::bind(&rt, &url).expect("nobody listens there");
    assert_eq!((listener.url(), listener.address()), (&*url, None));
    let taken = PipeListener::bind(&rt, &url).err().expect("somebody listens there");
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);

    let (ours, theirs) = connect(&rt, &listener);
    let sent = text(3 << 20);
    thread::scope(|scope| {
        for (mut from, mut to) in [(&ours, &theirs), (&theirs, &ours)] {
            let sent = &sent;
            scope.spawn(move || {
                from.write_all(sent).expect("room");
                from.shutdown().expect("open");
            });
            scope.spawn(move || {
                let mut got = vec![0; 1 << 20];
                for (round, piece) in sent.chunks(1 << 20).enumerate() {
                    to.read_exact(&mut got).expect("it comes");
                    assert!(got == piece, "other bytes in piece {round}");
                    to.reconnect_now();
                }
                assert_eq!(to.read(&mut got).expect("an end"), 0);
            });
        }
    });
    for end in [&ours, &theirs] {
        assert_eq!(end.wait_over(Some(PATIENCE)).map(|end| end.code), Some(Ending::Eof));
    }
    drop(listener);
    assert!(!path.exists(), "its file goes with it");
    // What is no socket is nobody's to remove.
    std::fs::write(&path, "mine").expect("written");
    assert!(PipeListener::bind(&rt, &url).is_err());
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "mine");
}

#[test]
fn real_a_listener_without_descriptors_pauses_between_two_attempts_and_ends_when_told() {
    const EMFILE: i32 = 24;
    let rt = Rt::real();
    let pipes = Pipes::start(&rt, Settings::default(), Server::none()).expect("threads");
    let cancel = rt.cancel_token();
    let mut asked = 0;
    let began = rt.now();
    let accept = || {
        asked += 1;
        match asked {
            // Whoever left again is no reason to pause.
            1..=1_000 => Err(io::ErrorKind::ConnectionAborted.into()),
            1_001..=1_005 => Err(io::Error::from_raw_os_error(EMFILE)),
            _ => {
                cancel.cancel();
                Err(io::Error::from_raw_os_error(EMFILE))
            }
        }
    };
    accept_all(&rt, accept, &pipes.handle(), &cancel);
    assert_eq!(asked, 1_006);
    let took = rt.now().since(began);
    assert!(took >= 5 * ACCEPT_PAUSE, "{took:?}");
    assert!(took < PATIENCE, "{took:?}: only the pauses are waited for");
}

#[test]
fn real_a_server_that_restarted_ends_the_pipe_at_once() {
    let rt = Rt::real();
    let first = listener(&rt);
    let address = first.address().expect("over TCP");
    let (mut ours, theirs) = connect(&rt, &first);
    drop(theirs);
    drop(first);
    let second = PipeListener::bind(&rt, &address.to_string()).expect("the port is free again");
    let end = ours.wait_over(Some(Duration::from_secs(10))).expect("it ends");
    assert!(matches!(end.code, Ending::Shutdown | Ending::UnknownPipe), "{end}");
    assert!(ours.write(b"x").is_err());
    drop(second);
}

#[test]
fn real_a_wrong_token_is_refused_and_does_not_print() {
    let rt = Rt::real();
    let token = Some("a-token-of-thirty-two-characters".to_owned());
    let listener =
        PipeListener::bind_with(&rt, "127.0.0.1:0", Settings::default(), token).expect("a free port");
    let error = Pipe::connect(&rt, listener.url(), "x").expect_err("no token");
    assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::Auth), "{error}");
    let pipes = Pipes::start(&rt, Settings::default(), Server::none()).expect("threads");
    let address = listener.address().expect("over TCP");
    let plain = Plain::Tcp(address.ip().to_string(), address.port());
    let dialer = Arc::new(WithToken::new(plain, "a-token-of-thirty-two-characters"));
    let ours = Pipe::open(&rt, &pipes.handle(), Plan::new(dialer, "x")).expect("room");
    ours.wait_connected(Some(Duration::from_secs(5))).expect("the right token");
    assert_eq!(&*listener.accept().expect("opened").principal, "token");
}

#[test]
fn real_one_pipe_too_many_is_refused_with_its_code() {
    let rt = Rt::real();
    let limits = Limits { pipes: 1, ..Settings::default().limits };
    let settings = Settings { limits, ..Settings::default() };
    let listener = PipeListener::bind_with(&rt, "127.0.0.1:0", settings, None).expect("a free port");
    let (_ours, _theirs) = connect(&rt, &listener);
    let pipes = Pipes::start(&rt, Settings::default(), Server::none()).expect("threads");
    let address = listener.address().expect("over TCP");
    let mut plan = Plan::new(Arc::new(Plain::Tcp(address.ip().to_string(), address.port())), "x");
    plan.patience = Some(Duration::from_millis(500));
    let second = Pipe::open(&rt, &pipes.handle(), plan).expect("room");
    let end = second.wait_over(Some(Duration::from_secs(10))).expect("it gives up");
    assert_eq!(end.code, Ending::Limit, "{end}");
}

#[test]
fn real_events_tell_the_story_of_a_pipe() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (ours, theirs) = connect(&rt, &listener);
    let events = ours.events().expect("the first to ask");
    assert!(ours.events().is_none(), "given once");
    assert!(matches!(events.recv(), Ok(Event::Connected { .. })));
    theirs.reconnect_now();
    assert!(matches!(events.recv(), Ok(Event::Lost { .. })));
    assert!(matches!(events.recv(), Ok(Event::Recovered { replayed: 0, .. })));
    ours.shutdown().expect("open");
    theirs.shutdown().expect("open");
    assert!(matches!(events.recv(), Ok(Event::Over(End { code: Ending::Eof, .. }))));
}

#[test]
fn real_a_pipe_whose_other_end_is_dropped_still_delivers() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut ours, mut theirs) = connect(&rt, &listener);
    theirs.write_all(b"last words").expect("room");
    drop(theirs);
    let mut got = String::new();
    ours.read_to_string(&mut got).expect("an end");
    assert_eq!(got, "last words");
}

#[test]
fn real_starting_and_dropping_leaves_no_thread_and_no_descriptor() {
    const ALONE: &str = "TOWPATH_LEAKS_ALONE";
    if std::env::var_os(ALONE).is_none() {
        // In a process of its own: what the other tests of this one have comes and goes.
        let name = "client::pipe::tests::real_starting_and_dropping_leaves_no_thread_and_no_descriptor";
        let myself = std::env::current_exe().expect("a test's program");
        let mut command = std::process::Command::new(myself);
        let output = command.args(["--exact", name]).env(ALONE, "1").output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let cycles = if std::env::var_os("SLOW").is_some_and(|said| said != "0") { 1_000 } else { 200 };
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).expect("linux").count();
    let rt = Rt::real();
    let cycle = |number: usize| {
        let listener = listener(&rt);
        let (mut ours, mut theirs) = connect(&rt, &listener);
        ours.write_all(b"x").expect("room");
        theirs.read_exact(&mut [0]).expect("a byte");
        // Ended well, dropped as it is, cut before, and closed.
        match number % 4 {
            0 => {
                ours.shutdown().expect("open");
                theirs.shutdown().expect("open");
            }
            1 => {}
            2 => theirs.reconnect_now(),
            _ => ours.close(),
        }
    };
    // What is made once is there from here on.
    (0..4).for_each(cycle);
    let before = (count("fd"), count("task"));
    (0..cycles).for_each(cycle);
    let after = (count("fd"), count("task"));
    // One for every tenth cycle would be too many; a thread that has just ended may be listed still.
    assert!(
        after.0 <= before.0 + 10 && after.1 <= before.1 + 10,
        "{before:?} descriptors and threads before, {after:?} after {cycles} cycles"
    );
}
