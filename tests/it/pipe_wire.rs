//! Pipes against a peer that speaks the frames by hand: what no client of ours would ever say.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use towpath::client::pipe::{Pipe, PipeListener, ended_with};
use towpath::codec::pipe::{Decoder, Piece, data_head, encode_control, encode_greeting};
use towpath::engine::pipes::Settings;
use towpath::rt::Rt;
use towpath::state::pipe::hello::{Asked, Asking, Auth, Greeting, Hello, Known, Proof, Refuse, Want, Wish};
use towpath::state::pipe::proof::{Secret, Stand};
use towpath::state::pipe::{Control, DATA_MAX, Ending, PipeId, WINDOW_MIN};

use crate::cli_pipe::echo;
use crate::cli_token::made;
use crate::process::{Daemon, PATIENCE};

/// A connection on which everything is said by hand.
pub(crate) struct Raw {
    stream: TcpStream,
    decoder: Decoder,
    frames: std::collections::VecDeque<Frame>,
}

#[derive(Debug)]
pub(crate) enum Frame {
    Data(u64, Vec<u8>),
    Control(Control),
    Greeting(Greeting),
}

impl Raw {
    pub(crate) fn dial(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Raw { stream, decoder: Decoder::new(), frames: std::collections::VecDeque::new() }
    }

    /// Behind the door of a daemon.
    pub(crate) fn upgraded(daemon: SocketAddr, token: &str) -> Raw {
        let mut raw = Raw::dial(daemon);
        let request = format!(
            "GET /v1/pipe HTTP/1.1\r\nHost: {daemon}\r\nConnection: Upgrade\r\nUpgrade: towpath-pipe/1\r\n\
             Authorization: Bearer {token}\r\n\r\n",
        );
        raw.bytes(request.as_bytes());
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            raw.stream.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        raw
    }

    /// Bytes as they are. A peer that has closed already does not hear them, which is as good.
    fn bytes(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            let gone = [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset];
            assert!(gone.contains(&error.kind()), "{error}");
        }
    }

    pub(crate) fn greet(&mut self, greeting: &Greeting) {
        let mut bytes = Vec::new();
        encode_greeting(greeting, &mut bytes);
        self.bytes(&bytes);
    }

    pub(crate) fn control(&mut self, control: &Control) {
        let mut bytes = Vec::new();
        encode_control(control, &mut bytes);
        self.bytes(&bytes);
    }

    fn data(&mut self, off: u64, bytes: &[u8]) {
        self.bytes(&[&data_head(off, bytes.len())[..], bytes].concat());
    }

    /// The next frame; nothing when the connection has ended.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut buffer = [0; 65_536];
        while self.frames.is_empty() {
            let count = match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing more came: {error}"),
            };
            let mut input = &buffer[..count];
            while let Some(piece) = self.decoder.next(&mut input).expect("our own frames") {
                self.frames.push_back(match piece {
                    Piece::Data { off, bytes } => Frame::Data(off, bytes.to_vec()),
                    Piece::Control(control) => Frame::Control(control),
                    Piece::Greeting(greeting) => Frame::Greeting(greeting),
                });
            }
        }
        self.frames.pop_front()
    }

    pub(crate) fn greeting(&mut self) -> Greeting {
        match self.next() {
            Some(Frame::Greeting(greeting)) => greeting,
            other => panic!("expected a greeting, {other:?} came"),
        }
    }

    /// Reads until the peer ends the pipe, and gives why; nothing if it just closed the connection.
    fn ending(&mut self) -> Option<Ending> {
        loop {
            match self.next()? {
                Frame::Control(Control::Reset(end)) => return Some(end.code),
                Frame::Greeting(Greeting::Refuse(refuse)) => return Some(refuse.end.code),
                _ => {}
            }
        }
    }

    /// Opens a pipe, and gives what resumes it.
    pub(crate) fn open(address: SocketAddr, token: Option<&str>) -> (Raw, Known) {
        Raw::dial(address).open_to("anything", token)
    }

    fn open_to(self, target: &str, token: Option<&str>) -> (Raw, Known) {
        let mut raw = self;
        let want = Want::New { target: target.into(), limit: 1 << 20 };
        let (mut asking, hello) = Asking::begin([7; 16], 1, &want, token);
        raw.greet(&hello);
        let welcome = match asking.step(raw.greeting()).expect("an honest server") {
            Asked::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        };
        let secret = welcome.secret.expect("a new pipe has one");
        (raw, Known { id: welcome.id, secret, instance: welcome.instance })
    }

    /// Up to the challenge; gives the proof that would take the pipe over.
    pub(crate) fn prove(
        address: SocketAddr,
        known: &Known,
        epoch: u64,
        stand: Stand,
        token: Option<&str>,
    ) -> (Raw, Asking, Greeting) {
        Raw::dial(address).prove_on(known, epoch, stand, token)
    }

    pub(crate) fn prove_on(
        self,
        known: &Known,
        epoch: u64,
        stand: Stand,
        token: Option<&str>,
    ) -> (Raw, Asking, Greeting) {
        let mut raw = self;
        let nonce = [epoch as u8; 16];
        let (mut asking, hello) = Asking::begin(nonce, epoch, &Want::Resume(known.clone()), token);
        raw.greet(&hello);
        assert_eq!(asking.step(raw.greeting()).expect("a challenge"), Asked::StandStill);
        let proof = asking.prove(stand);
        (raw, asking, proof)
    }

    /// The whole of it.
    pub(crate) fn resume(
        address: SocketAddr,
        known: &Known,
        epoch: u64,
        stand: Stand,
    ) -> (Raw, Result<Stand, Refuse>) {
        let (mut raw, mut asking, proof) = Raw::prove(address, known, epoch, stand, None);
        raw.greet(&proof);
        let answer = match asking.step(raw.greeting()).expect("an honest server") {
            Asked::Welcome(welcome) => Ok(welcome.stand),
            Asked::Refused(refuse) => Err(refuse),
            Asked::StandStill => panic!("challenged twice"),
        };
        (raw, answer)
    }
}

/// Whether this is a process for that one test. If not, it was run in one, and passed.
fn alone(name: &str) -> bool {
    const ALONE: &str = "TOWPATH_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let myself = std::env::current_exe().expect("a test's program");
    let mut command = std::process::Command::new(myself);
    let output = command.args(["--exact", name]).env(ALONE, "1").output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

pub(crate) fn stand(recv: u64) -> Stand {
    Stand { recv, fin: false, limit: 1 << 20 }
}

fn listener(rt: &Rt) -> PipeListener {
    PipeListener::bind(rt, "127.0.0.1:0").expect("a free port")
}

fn at(listener: &PipeListener) -> SocketAddr {
    listener.address().expect("over TCP")
}

/// A pipe opened by hand, and the program's end of it.
fn opened(listener: &PipeListener) -> (Raw, Known, Pipe) {
    let (raw, known) = Raw::open(at(listener), None);
    let mut pipe = listener.accept().expect("it was opened").pipe;
    pipe.set_read_timeout(Some(PATIENCE));
    pipe.set_write_timeout(Some(PATIENCE));
    (raw, known, pipe)
}

fn expect(pipe: &Pipe, text: &[u8]) {
    let mut got = vec![0; text.len()];
    (&*pipe).read_exact(&mut got).expect("it comes");
    assert_eq!(got, text);
}

fn code(error: &std::io::Error) -> Option<Ending> {
    ended_with(error).map(|end| end.code)
}

#[test]
fn a_thousand_racing_resumes_leave_one_carrier_and_every_byte_in_its_place() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (_first, known, pipe) = opened(&listener);
    let address = at(&listener);
    let next = AtomicU64::new(2);
    let carriers = thread::scope(|scope| {
        let racing: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = std::collections::VecDeque::new();
                    for _ in 0..125 {
                        let epoch = next.fetch_add(1, Ordering::SeqCst);
                        match Raw::resume(address, &known, epoch, stand(0)) {
                            (raw, Ok(theirs)) => {
                                assert_eq!(theirs.recv, 0, "nobody has sent a byte");
                                // The last few stay open, to be late.
                                mine.push_back((epoch, raw));
                                if mine.len() > 10 {
                                    mine.pop_front();
                                }
                            }
                            (_, Err(refuse)) => {
                                assert_eq!((refuse.end.code, refuse.retriable), (Ending::Superseded, true));
                            }
                        }
                    }
                    mine
                })
            })
            .collect();
        racing.into_iter().flat_map(|race| race.join().expect("no panic")).collect::<Vec<_>>()
    });
    let best = carriers.iter().map(|(epoch, _)| *epoch).max().expect("the highest of all cannot lose");
    assert_eq!(best, 1_001, "a proven epoch above all others is adopted");
    let (mut winner, answer) = Raw::resume(address, &known, 2_000, stand(0));
    assert_eq!(answer.expect("above all of them").recv, 0);
    for (_, mut late) in carriers {
        late.data(0, b"stolen");
    }
    winner.data(0, b"rightful");
    expect(&pipe, b"rightful");
    (&pipe).write_all(b"answer").expect("it is open");
    loop {
        if let Some(Frame::Data(0, bytes)) = winner.next() {
            assert_eq!(bytes, b"answer");
            break;
        }
    }
}

#[test]
fn a_recorded_proof_and_the_proof_of_another_pipe_are_worth_nothing() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let address = at(&listener);
    let (mut live, known, pipe) = opened(&listener);
    let (_other, other_known, _other_pipe) = opened(&listener);

    // Recorded, never sent by its owner, and sent by somebody else on another connection.
    let (_dropped, _, recorded) = Raw::prove(address, &known, 5, stand(0), None);
    let (mut thief, _, _) = Raw::prove(address, &known, 5, stand(0), None);
    thief.greet(&recorded);
    assert_eq!(thief.ending(), Some(Ending::UnknownPipe), "the server's nonce is another one");

    // The right secret of the wrong pipe.
    let mixed = Known { secret: other_known.secret.clone(), ..known.clone() };
    let (mut thief, answer) = Raw::resume(address, &mixed, 9, stand(0));
    assert_eq!(answer.expect_err("not theirs").end.code, Ending::UnknownPipe);
    assert!(thief.next().is_none(), "and the connection is closed");

    // A proof for one epoch with another one written over it.
    let (mut thief, _, proof) = Raw::prove(address, &known, 3, stand(0), None);
    let Greeting::Proof(proof) = proof else { panic!("a proof") };
    thief.greet(&Greeting::Proof(Proof { epoch: 100, ..proof }));
    assert_eq!(thief.ending(), Some(Ending::UnknownPipe));
    // The same with what was received.
    let (mut thief, _, _) = Raw::prove(address, &known, 3, stand(0), None);
    thief.greet(&Greeting::Proof(Proof { stand: stand(1), ..proof }));
    assert_eq!(thief.ending(), Some(Ending::UnknownPipe));

    live.data(0, b"undisturbed");
    expect(&pipe, b"undisturbed");
}

#[test]
fn an_unknown_pipe_and_a_bad_proof_look_alike_in_words_and_in_time() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let address = at(&listener);
    let (mut live, known, pipe) = opened(&listener);
    let bad = Known { secret: Secret([1; 32]), ..known.clone() };
    let mut unknown = bad.clone();
    // Of the same thread and owner: only the part in between is another.
    unknown.id.0[9] ^= 0xff;
    let ask = |known: &Known| {
        let (mut raw, mut asking, proof) = Raw::prove(address, known, 9, stand(0), None);
        let asked = Instant::now();
        raw.greet(&proof);
        let answer = asking.step(raw.greeting());
        let took = asked.elapsed();
        match answer {
            Ok(Asked::Refused(refuse)) => (refuse, took),
            other => panic!("{other:?}"),
        }
    };
    // Which of a pair is faster must be a coin's toss. Whatever else the machine does comes and goes; what the server
    // does differently shows in every round, and in one direction.
    const PAIRS: u32 = 300;
    let mut draw = 1_u32;
    let mut round = || {
        let mut unknown_was_slower = 0;
        for _ in 0..PAIRS {
            draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (of_unknown, of_bad) = if draw >> 31 == 0 {
                let first = ask(&unknown);
                (first, ask(&bad))
            } else {
                let first = ask(&bad);
                (ask(&unknown), first)
            };
            assert_eq!(of_unknown.0, of_bad.0, "word for word");
            assert_eq!(of_bad.0.end.code, Ending::UnknownPipe);
            unknown_was_slower += u32::from(of_unknown.1 > of_bad.1);
        }
        unknown_was_slower
    };
    // Six standard deviations of a fair coin.
    let limits = (PAIRS / 2 - 52, PAIRS / 2 + 52);
    let rounds = [round(), round(), round()];
    let one_sided =
        rounds.iter().all(|slower| *slower < limits.0) || rounds.iter().all(|slower| *slower > limits.1);
    assert!(!one_sided, "the unknown one was slower in {rounds:?} of {PAIRS}");
    live.data(0, b"undisturbed");
    expect(&pipe, b"undisturbed");
}

#[test]
fn a_flood_of_bad_resumes_leaves_the_live_pipe_running_and_does_not_slow_it() {
    const ROUNDS: usize = 5;
    const FLOODS: u64 = 200;
    const PIECES: usize = 10;
    const PIECE: usize = 2 << 20;
    let rt = Rt::real();
    let listener = listener(&rt);
    let ours = Pipe::connect(&rt, listener.url(), "echo").expect("it listens");
    let mut theirs = listener.accept().expect("it was opened").pipe;
    let events = ours.events().expect("given once");
    // The same flood goes to a server beside it: it takes as much of the machine, and nothing of the pipe's.
    let beside = PipeListener::bind(&rt, "127.0.0.1:0").expect("a free port");
    let floods = [&beside, &listener].map(|listener| {
        let (_raw, known, _pipe) = opened(listener);
        (at(listener), Known { secret: Secret([1; 32]), ..known })
    });
    let there = AtomicUsize::new(0);
    let flooded = [AtomicU64::new(0), AtomicU64::new(0)];
    let done = AtomicBool::new(false);
    let mut slowed = Vec::new();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let target = there.load(Ordering::SeqCst);
                    let (address, bad) = &floods[target];
                    let (_, answer) = Raw::resume(*address, bad, 9, stand(0));
                    assert_eq!(answer.expect_err("never").end.code, Ending::UnknownPipe);
                    flooded[target].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // It takes a piece, and says so with its last byte.
        let far = scope.spawn(move || {
            let mut buffer = vec![0; PIECE];
            while theirs.read_exact(&mut buffer).is_ok() {
                theirs.write_all(&buffer[PIECE - 1..]).expect("it is open");
            }
        });
        let mut sent = vec![0; PIECE];
        // How long a piece mostly takes while there is a flood there.
        let mut piece_takes = |target: usize| {
            there.store(target, Ordering::SeqCst);
            let until = flooded[target].load(Ordering::SeqCst) + FLOODS;
            let mut took = Vec::new();
            while took.len() < PIECES || flooded[target].load(Ordering::SeqCst) < until {
                let begun = Instant::now();
                sent[PIECE - 1] ^= 1;
                (&ours).write_all(&sent).expect("it is open");
                expect(&ours, &sent[PIECE - 1..]);
                took.push(begun.elapsed());
            }
            took.sort_unstable();
            took[took.len() / 2].as_secs_f64()
        };
        for _ in 0..ROUNDS {
            let aside = piece_takes(0);
            slowed.push(piece_takes(1) / aside);
        }
        done.store(true, Ordering::SeqCst);
        ours.shutdown().expect("open");
        far.join().expect("no panic");
    });
    // Whatever else the machine does may spoil a round or two.
    slowed.sort_unstable_by(f64::total_cmp);
    let half = slowed[ROUNDS / 2];
    assert!(half < 4.0, "mostly {half:.1} times slower than when others are flooded: {slowed:.1?}");
    let lost = events.iter().find(|event| matches!(event, towpath::client::pipe::Event::Lost { .. }));
    drop(ours);
    assert!(lost.is_none(), "its carrier was disturbed: {lost:?}");
}

#[test]
fn the_right_secret_is_not_enough_for_another_caller() {
    let rt = Rt::real();
    let settings = Settings::default();
    let listener = PipeListener::bind_with(&rt, "127.0.0.1:0", settings, Some("the token".into()));
    let listener = listener.expect("a free port");
    let address = at(&listener);
    let (mut live, known) = Raw::open(address, Some("the token"));
    let pipe = listener.accept().expect("it was opened").pipe;
    for token in [None, Some("another")] {
        let mut raw = Raw::dial(address);
        let auth = token.map(|token| Auth(token.to_owned()));
        let hello =
            Hello { proto_min: 1, proto_max: 1, nonce: [3; 16], auth, wish: Wish::Resume { id: known.id } };
        raw.greet(&Greeting::Hello(hello));
        assert_eq!(raw.ending(), Some(Ending::Auth), "before it even sees a challenge");
    }
    live.data(0, b"undisturbed");
    expect(&pipe, b"undisturbed");
}

#[test]
fn a_known_caller_with_the_right_secret_of_anothers_pipe_is_told_that_there_is_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokens");
    let ((ann, of_ann), (bob, of_bob)) = (made("ann", "pipe"), made("bob", "pipe"));
    std::fs::write(&file, format!("{of_ann}\n{of_bob}\n")).expect("written");
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target, "--token-file", file.to_str().expect("UTF-8")]);
    let at = daemon.address().parse().expect("an address");
    let (mut live, known) = Raw::upgraded(at, &ann).open_to(&target, None);
    let (mut raw, _, proof) = Raw::upgraded(at, &bob).prove_on(&known, 2, stand(0), None);
    raw.greet(&proof);
    let Greeting::Refuse(refuse) = raw.greeting() else { panic!("bob has ann's pipe") };
    assert_eq!((refuse.end.code, refuse.retriable), (Ending::UnknownPipe, false));
    // The words are those for a pipe that does not exist.
    let nobodys = Known { id: PipeId([1; 16]), ..known.clone() };
    let (mut raw, _, proof) = Raw::upgraded(at, &bob).prove_on(&nobodys, 2, stand(0), None);
    raw.greet(&proof);
    assert_eq!(raw.greeting(), Greeting::Refuse(refuse));
    // Ann's pipe does not notice, and she may take it over herself.
    live.data(0, b"undisturbed");
    let echoed = loop {
        match live.next().expect("the pipe goes on") {
            Frame::Data(0, bytes) => break bytes,
            Frame::Control(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(b"undisturbed".starts_with(&echoed[..]) && !echoed.is_empty());
    let (mut raw, mut asking, proof) = Raw::upgraded(at, &ann).prove_on(&known, 3, stand(0), None);
    raw.greet(&proof);
    assert!(matches!(asking.step(raw.greeting()), Ok(Asked::Welcome(_))));
}

#[test]
fn what_no_peer_may_say_ends_the_pipe_with_a_protocol_error() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let limit = 8 << 20;
    let too_long = {
        let mut frame = data_head(0, DATA_MAX).to_vec();
        let length = (DATA_MAX + 9) as u32;
        frame[1..4].copy_from_slice(&length.to_be_bytes()[1..]);
        frame
    };
    type Say = Box<dyn Fn(&mut Raw)>;
    let cases: Vec<(&str, Say)> = vec![
        ("a gap", Box::new(|raw| raw.data(1, b"x"))),
        ("beyond the limit", Box::new(move |raw| raw.data(limit, b"x"))),
        ("an offset that overflows", Box::new(|raw| raw.data(u64::MAX, b"xy"))),
        ("more than a frame holds", Box::new(move |raw| raw.bytes(&too_long))),
        (
            "bytes after the end",
            Box::new(|raw| {
                raw.control(&Control::Fin { off: 0 });
                raw.data(0, b"x");
            }),
        ),
        ("an end before the bytes", Box::new(|raw| raw.control(&Control::Fin { off: 3 }))),
        (
            "an acknowledgement of what was never sent",
            Box::new(|raw| raw.control(&Control::Ack { recv: 1, limit: 9 })),
        ),
        (
            "an answer that knows the future",
            Box::new(|raw| raw.control(&Control::Pong { token: 1, recv: u64::MAX, limit: 0 })),
        ),
        ("a frame nobody knows", Box::new(|raw| raw.bytes(&[0x42, 0, 0, 1, 9]))),
        ("a frame that is too short", Box::new(|raw| raw.bytes(&[0x02, 0, 0, 3, 1, 2, 3]))),
        (
            "a second handshake",
            Box::new(|raw| {
                let want = Want::New { target: "x".into(), limit: 0 };
                raw.greet(&Asking::begin([1; 16], 2, &want, None).1);
            }),
        ),
    ];
    for (what, say) in cases {
        let (mut raw, _known, pipe) = opened(&listener);
        say(&mut raw);
        assert_eq!(raw.ending(), Some(Ending::Protocol), "{what}");
        drop(raw);
        let end = pipe.wait_over(Some(PATIENCE)).expect("it is over");
        assert_eq!(end.code, Ending::Protocol, "{what}");
        let error = (&pipe).write(b"x").expect_err("it is over");
        assert_eq!(code(&error), Some(Ending::Protocol), "{what}");
    }
}

#[test]
fn what_a_peer_may_say_does_no_harm() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut raw, _known, pipe) = opened(&listener);
    raw.bytes(&[0xC2, 0, 0, 3, 1, 2, 3]);
    raw.data(0, b"");
    raw.data(0, b"abc");
    raw.data(0, b"abc");
    raw.data(1, b"bcde");
    raw.control(&Control::Ack { recv: 0, limit: 1 << 20 });
    raw.control(&Control::Ack { recv: 0, limit: 5 });
    raw.control(&Control::Ping { token: 77 });
    expect(&pipe, b"abcde");
    let pong = loop {
        match raw.next().expect("it stays open") {
            Frame::Control(Control::Pong { token, recv, .. }) => break (token, recv),
            Frame::Control(Control::Ack { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(pong, (77, 5));
    (&pipe).write_all(b"an older limit took nothing back").expect("it is open");
    let mut got = Vec::new();
    while got.len() < 32 {
        if let Frame::Data(off, bytes) = raw.next().expect("it stays open") {
            assert_eq!(off, got.len() as u64);
            got.extend(bytes);
        }
    }
    assert_eq!(got, b"an older limit took nothing back");
}

#[test]
fn a_handshake_in_the_wrong_order_or_of_another_version_is_refused() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let address = at(&listener);
    let hello = |min, max, epoch| {
        let wish = Wish::New { epoch, target: "x".into(), limit: 0 };
        Greeting::Hello(Hello { proto_min: min, proto_max: max, nonce: [1; 16], auth: None, wish })
    };
    let proof = || Greeting::Proof(Proof { epoch: 1, stand: stand(0), tag: [0; 32] });
    for (what, greeting) in
        [("a newer protocol", hello(2, 9, 1)), ("no epoch", hello(1, 1, 0)), ("a proof of nothing", proof())]
    {
        let mut raw = Raw::dial(address);
        raw.greet(&greeting);
        assert_eq!(raw.ending(), Some(Ending::Protocol), "{what}");
        assert!(raw.next().is_none(), "{what}: and it is closed");
    }
    let mut raw = Raw::dial(address);
    raw.data(0, b"no handshake");
    assert_eq!(raw.ending(), Some(Ending::Protocol));
    let mut raw = Raw::dial(address);
    raw.greet(&hello(1, 9, 1));
    assert!(matches!(raw.greeting(), Greeting::Welcome(welcome) if welcome.proto == 1), "the one both know");
}

#[test]
fn a_handshake_that_stops_in_the_middle_is_given_up() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let mut slow = Raw::dial(at(&listener));
    slow.stream.set_read_timeout(Some(PATIENCE * 3)).expect("a timeout");
    slow.bytes(&[0x10, 0]);
    let begun = Instant::now();
    assert!(slow.next().is_none(), "closed without a word");
    assert!(begun.elapsed() > Duration::from_secs(5), "but not at once");
}

#[test]
fn a_resume_point_is_the_truth_or_the_end() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let address = at(&listener);
    // The server sends 10 bytes, of which 4 are acknowledged.
    let sent = |listener: &PipeListener| {
        let (mut raw, known, pipe) = opened(listener);
        (&pipe).write_all(b"0123456789").expect("it is open");
        let mut got = 0;
        while got < 10 {
            if let Frame::Data(_, bytes) = raw.next().expect("it is open") {
                got += bytes.len();
            }
        }
        raw.control(&Control::Ack { recv: 4, limit: 1 << 20 });
        // The answer comes after the acknowledgement was read.
        raw.control(&Control::Ping { token: 1 });
        while !matches!(raw.next(), Some(Frame::Control(Control::Pong { token: 1, .. }))) {}
        (raw, known, pipe)
    };
    for (recv, replayed) in [(4, "456789"), (7, "789"), (10, "")] {
        let (_old, known, pipe) = sent(&listener);
        let (mut raw, answer) = Raw::resume(address, &known, 2, stand(recv));
        assert_eq!(answer.expect("that is true").recv, 0);
        (&pipe).write_all(b"!").expect("it is open");
        let mut got = Vec::new();
        while got.last() != Some(&b'!') {
            if let Frame::Data(off, bytes) = raw.next().expect("it is open") {
                assert_eq!(off, recv + got.len() as u64);
                got.extend(bytes);
            }
        }
        assert_eq!(got, [replayed.as_bytes(), b"!"].concat(), "after {recv}");
    }
    for recv in [0, 3, 11, 1 << 40, u64::MAX] {
        let (mut old, known, pipe) = sent(&listener);
        let (_raw, answer) = Raw::resume(address, &known, 2, stand(recv));
        assert_eq!(answer.expect_err("that cannot be").end.code, Ending::Protocol, "{recv}");
        assert_eq!(old.ending(), Some(Ending::Protocol), "{recv}: the old carrier is told as well");
        assert_eq!(pipe.wait_over(Some(PATIENCE)).expect("it is over").code, Ending::Protocol, "{recv}");
    }
}

#[test]
fn a_lost_welcome_any_number_of_times_does_no_harm() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut first, known, pipe) = opened(&listener);
    first.data(0, b"before, ");
    expect(&pipe, b"before, ");
    for epoch in 2..30 {
        // The server moves the pipe, and its answer is never read.
        let (mut raw, _asking, proof) = Raw::prove(at(&listener), &known, epoch, stand(0), None);
        raw.greet(&proof);
        drop(raw);
    }
    // Whatever of them is still on its way is older than this.
    let (mut last, answer) = Raw::resume(at(&listener), &known, 100, stand(0));
    assert_eq!(answer.expect("the newest").recv, 8);
    last.data(0, b"before, after");
    expect(&pipe, b"after");
}

#[test]
fn a_peer_that_reads_and_never_acknowledges_blocks_the_writer_and_nothing_else() {
    let rt = Rt::real();
    let settings = Settings { window: WINDOW_MIN, ..Settings::default() };
    let listener = PipeListener::bind_with(&rt, "127.0.0.1:0", settings, None).expect("a free port");
    let (mut raw, known, mut pipe) = opened(&listener);
    pipe.set_write_timeout(None);
    let blocked = pipe.clone();
    let (tell, told) = rt.channel("blocked", 1);
    let writing = thread::spawn(move || {
        let error = (&blocked).write_all(&vec![7; 4 << 20]).expect_err("there is never room for all of it");
        tell.send(()).expect("somebody waits");
        error
    });
    // It reads as much as there is to read, answers no question with news, and keeps the carrier alive.
    let mut got = 0;
    while got < WINDOW_MIN {
        if let Frame::Data(_, bytes) = raw.next().expect("it stays open") {
            got += bytes.len() as u64;
        }
    }
    assert_eq!(got, WINDOW_MIN, "the window, and not a byte more");
    // The other direction goes on.
    raw.data(0, b"still here");
    expect(&pipe, b"still here");
    assert!(told.try_recv().is_err(), "the writer waits");
    let (tell, done) = rt.channel("killed", 1);
    let end = towpath::state::pipe::End::new(Ending::Killed, "somebody ended it by hand");
    listener.pipes().kill(known.id, end, move |found| tell.try_send(found).expect("one answer"));
    assert_eq!(done.recv(), Ok(true));
    assert_eq!(code(&writing.join().expect("no panic")), Some(Ending::Killed), "a typed error, no deadlock");
    assert_eq!(raw.ending(), Some(Ending::Killed));
}

#[test]
fn a_server_that_drains_says_so_takes_resumes_and_refuses_what_is_new() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (mut raw, known, pipe) = opened(&listener);
    let ours = Pipe::connect(&rt, listener.url(), "ours").expect("it listens");
    let events = ours.events().expect("given once");
    let theirs = listener.accept().expect("it was opened").pipe;
    listener.pipes().drain(Duration::from_secs(2));
    let notice = loop {
        match raw.next().expect("it stays open") {
            Frame::Control(Control::GoAway(notice)) => break notice,
            Frame::Control(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(notice.deadline == Duration::from_secs(2) && notice.retry_hint <= Duration::from_secs(1));
    let (mut again, answer) = Raw::resume(at(&listener), &known, 2, stand(0));
    assert_eq!(answer.expect("what is there may come another way").recv, 0);
    again.data(0, b"moved");
    expect(&pipe, b"moved");

    // A client of ours comes with another carrier before the old one goes: nothing was ever lost.
    let replaced = events.recv_deadline(rt.now() + PATIENCE).expect("an event");
    let replaced = match replaced {
        towpath::client::pipe::Event::Connected { .. } => {
            events.recv_deadline(rt.now() + PATIENCE).expect("another")
        }
        other => other,
    };
    let seamless = towpath::client::pipe::Event::Recovered { down_for: Duration::ZERO, replayed: 0 };
    assert_eq!(replaced, seamless);
    (&ours).write_all(b"and so did we").expect("it is open");
    expect(&theirs, b"and so did we");

    let mut new = Raw::dial(at(&listener));
    let want = Want::New { target: "x".into(), limit: 0 };
    new.greet(&Asking::begin([1; 16], 1, &want, None).1);
    match new.greeting() {
        Greeting::Refuse(refuse) => {
            assert_eq!((refuse.end.code, refuse.retriable), (Ending::Shutdown, true));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn sizes_a_peer_claims_cost_no_memory() {
    const CLAIMS: usize = 64;
    const NAME: &str = "pipe_wire::sizes_a_peer_claims_cost_no_memory";
    if !alone(NAME) {
        return;
    }
    let rt = Rt::real();
    let listener = listener(&rt);
    // What was asked of the system, touched or not.
    let taken = || {
        let text = std::fs::read_to_string("/proc/self/status").expect("linux");
        let line = text.lines().find_map(|line| line.strip_prefix("VmData:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    };
    // Whoever comes later is heard later.
    let heard = || {
        let (mut raw, _known, pipe) = opened(&listener);
        raw.data(0, b"x");
        expect(&pipe, b"x");
    };
    heard();
    let before = taken();
    let raws: Vec<Raw> = (0..CLAIMS)
        .map(|_| {
            let mut raw = Raw::dial(at(&listener));
            // A greeting of 16 KiB, a skipped frame of 16 MiB: announced, and not sent.
            raw.bytes(&[0x10, 0, 0x40, 0]);
            raw
        })
        .chain((0..CLAIMS).map(|_| {
            let (mut raw, _known, _pipe) = opened(&listener);
            raw.control(&Control::Ack { recv: 0, limit: u64::MAX });
            raw.bytes(&[0xFF, 0xFF, 0xFF, 0xFF]);
            raw
        }))
        .collect();
    heard();
    let grown = taken().saturating_sub(before);
    // A gigabyte was claimed: four of those claims would be seen.
    assert!(grown < 64 << 20, "{} MiB for {} claims", grown >> 20, raws.len());
}

#[test]
fn an_id_says_nothing_about_the_secret() {
    let rt = Rt::real();
    let listener = listener(&rt);
    let (_one, one, _pipe) = opened(&listener);
    let (_two, two, _pipe_two) = opened(&listener);
    assert_ne!(one.id, two.id);
    assert_ne!(one.secret, two.secret);
    assert!(!one.secret.0.windows(8).any(|part| one.id.0.windows(8).any(|other| part == other)));
    let told = format!("{one:?}");
    assert!(told.contains("[redacted]") && told.contains(&one.id.to_string()), "{told}");
    let found = PipeId::parse(&one.id.to_string());
    assert_eq!(found, Some(one.id));
    drop(Arc::new(listener));
}
