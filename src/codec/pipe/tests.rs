use super::*;
use crate::state::pipe::hello::{Answered, Answering, Asked, Asking, Known, Want};
use crate::state::pipe::proof;
use crate::state::pipe::{Liveness, Pipe, Settings, Side, WINDOW_MIN};
use crate::state::replay::Pool;
use crate::state::time::Moment;
use outbox::Outbox;
use proptest::prelude::*;

// ---- frames

fn controls() -> Vec<Control> {
    vec![
        Control::Ack { recv: 1, limit: u64::MAX },
        Control::Fin { off: 1 << 40 },
        Control::Reset(End::new(Ending::Killed, "ended by hand")),
        Control::Ping { token: 7 },
        Control::Pong { token: 7, recv: 2, limit: 3 },
        Control::GoAway(GoAway {
            deadline: Duration::from_secs(5),
            retry_hint: Duration::from_millis(40),
            url: Some("https://other.example".into()),
        }),
    ]
}

fn greetings() -> Vec<Greeting> {
    let stand = Stand { recv: 9, fin: true, limit: 10 };
    let hello =
        |wish| Hello { proto_min: 1, proto_max: 2, nonce: [3; 16], auth: Some(Auth("t".into())), wish };
    vec![
        Greeting::Hello(hello(Wish::New { epoch: 1, target: "host:22".into(), limit: 5 })),
        Greeting::Hello(hello(Wish::Resume { id: PipeId([4; 16]) })),
        Greeting::Challenge(Challenge { instance: [5; 16], nonce: [6; 16] }),
        Greeting::Proof(Proof { epoch: 3, stand, tag: [7; 32] }),
        Greeting::Welcome(Welcome {
            proto: 1,
            instance: [8; 16],
            id: PipeId([9; 16]),
            epoch: 2,
            grace: Some(Duration::from_secs(86_400)),
            window: 1 << 23,
            stand,
            tag: [1; 32],
            secret: Some(Secret([2; 32])),
        }),
        Greeting::Refuse(Refuse {
            instance: [8; 16],
            end: End::new(Ending::Limit, "too many pipes"),
            retriable: true,
            retry_after: Duration::from_secs(2),
        }),
    ]
}

/// Everything above, one after another, and the frames it is made of, bytes put together.
fn everything() -> (Vec<u8>, Vec<String>) {
    let (mut wire, mut names) = (vec![], vec![]);
    for control in controls() {
        encode_control(&control, &mut wire);
        names.push(format!("{control:?}"));
        wire.extend(data_head(100, 3));
        wire.extend(b"abc");
        names.push("data 100 abc".into());
    }
    for greeting in greetings() {
        encode_greeting(&greeting, &mut wire);
        names.push(format!("{greeting:?}"));
    }
    (wire, names)
}

fn decode(decoder: &mut Decoder, mut input: &[u8], names: &mut Vec<String>) -> Result<(), FrameError> {
    while let Some(piece) = decoder.next(&mut input)? {
        match piece {
            Piece::Data { off, bytes } => {
                let text = String::from_utf8_lossy(bytes);
                let before = names.last().filter(|name| name.starts_with("data ") && off > 100).cloned();
                match before {
                    Some(before) => *names.last_mut().expect("there is one") = before + &text,
                    None => names.push(format!("data {off} {text}")),
                }
            }
            Piece::Control(control) => names.push(format!("{control:?}")),
            Piece::Greeting(greeting) => names.push(format!("{greeting:?}")),
        }
    }
    assert!(input.is_empty(), "a decoder stops only when its input is used up");
    Ok(())
}

#[test]
fn every_frame_reads_as_it_was_written_wherever_it_is_split() {
    let (wire, expected) = everything();
    for cut in 0..=wire.len() {
        let (mut decoder, mut names) = (Decoder::new(), vec![]);
        decode(&mut decoder, &wire[..cut], &mut names).expect("good frames");
        decode(&mut decoder, &wire[cut..], &mut names).expect("good frames");
        assert_eq!(names, expected, "split at {cut}");
        assert!(decoder.is_between_frames());
    }
    let (mut decoder, mut names) = (Decoder::new(), vec![]);
    for byte in &wire {
        decode(&mut decoder, std::slice::from_ref(byte), &mut names).expect("good frames");
    }
    assert_eq!(names, expected, "byte by byte");
}

#[test]
fn lengths_are_checked_before_room_is_made() {
    let max = DATA_MAX + 8;
    let cases: [(&[u8], FrameError); 9] = [
        (&[1, 0xff, 0xff, 0xff], FrameError::TooLong { kind: 1, len: 0xff_ffff, max }),
        (&[1, 0x04, 0x00, 0x09], FrameError::TooLong { kind: 1, len: max + 1, max }),
        (&[1, 0, 0, 7], FrameError::TooShort { kind: 1 }),
        (&[0x10, 0xff, 0, 0], FrameError::TooLong { kind: 0x10, len: 0xff_0000, max: CONTROL_MAX }),
        (&[0x02, 0, 0, 3, 1, 2, 3], FrameError::TooShort { kind: 2 }),
        (&[0x04, 0, 0, 4, 0, 1, 0xff, 0xff], FrameError::TooShort { kind: 4 }),
        (&[0x04, 0, 0, 5, 0, 1, 0, 1, 0xff], FrameError::BadField { kind: 4, field: "reason" }),
        // Bytes past the last offset there is: read in pieces they would all be the last.
        (b"\x01\0\0\x0a\xff\xff\xff\xff\xff\xff\xff\xfe", FrameError::BadField { kind: 1, field: "offset" }),
        (&[0x42, 0, 0, 0], FrameError::Unknown { kind: 0x42 }),
    ];
    for (bytes, expected) in cases {
        let mut input = bytes;
        assert_eq!(Decoder::new().next(&mut input), Err(expected), "{bytes:?}");
    }
}

#[test]
fn optional_frames_nobody_knows_are_skipped_at_any_length() {
    let mut wire = vec![0x80, 0, 0, 0, 0xff, 0x10, 0, 0];
    wire.extend(vec![7; 0x10_0000]);
    encode_control(&Control::Ping { token: 1 }, &mut wire);
    let (mut decoder, mut names) = (Decoder::new(), vec![]);
    for chunk in wire.chunks(1_000) {
        decode(&mut decoder, chunk, &mut names).expect("skipped");
    }
    assert_eq!(names, ["Ping { token: 1 }"]);
}

#[test]
fn a_known_frame_may_say_more_than_is_understood() {
    let mut input: &[u8] = &[FIN, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 9, 1, 2];
    assert_eq!(Decoder::new().next(&mut input), Ok(Some(Piece::Control(Control::Fin { off: 9 }))));
}

#[test]
fn a_sentence_that_is_too_long_is_cut_at_a_character() {
    let mut wire = vec![];
    encode_control(&Control::Reset(End::new(Ending::Internal, "é".repeat(2_000))), &mut wire);
    let mut input = &wire[..];
    let Ok(Some(Piece::Control(Control::Reset(end)))) = Decoder::new().next(&mut input) else {
        panic!("a reset")
    };
    assert_eq!(end.reason, "é".repeat(512));
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(wire in prop::collection::vec(any::<u8>(), 0..300), step in 1..40usize) {
        let mut decoder = Decoder::new();
        'chunks: for chunk in wire.chunks(step) {
            let mut input = chunk;
            loop {
                match decoder.next(&mut input) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'chunks,
                }
            }
        }
    }

    #[test]
    fn damaged_frames_do_not_panic_either(at in 0..600usize, bit in 0..8u8) {
        let (mut wire, _) = everything();
        let at = at % wire.len();
        wire[at] ^= 1 << bit;
        let mut input = &wire[..];
        let mut decoder = Decoder::new();
        while let Ok(Some(_)) = decoder.next(&mut input) {}
    }
}

// ---- two ends and a carrier that is cut

/// One end, with everything a driver of it needs.
struct Node {
    pipe: Pipe,
    pool: Pool,
    outbox: Outbox,
    decoder: Decoder,
    /// What this side still has to write; it finishes after the last byte.
    to_write: Vec<u8>,
    got: Vec<u8>,
    /// How much of what came it takes at once.
    reads: usize,
}

impl Node {
    fn new(side: Side, window: u64, to_write: Vec<u8>) -> Node {
        let settings = Settings { window, liveness: Liveness::NORMAL, ..Settings::new(side) };
        Node {
            pipe: Pipe::new(settings),
            pool: Pool::new(64),
            outbox: Outbox::new(),
            decoder: Decoder::new(),
            to_write,
            got: vec![],
            reads: usize::MAX,
        }
    }

    fn local(&mut self, now: Moment) {
        let count = self.pipe.write(&self.to_write, &mut self.pool);
        self.to_write.drain(..count);
        if self.to_write.is_empty() {
            self.pipe.finish();
        }
        let bytes: Vec<u8> = self.pipe.readable(self.reads).flatten().copied().collect();
        self.got.extend(&bytes);
        self.pipe.took(now, bytes.len() as u64, &mut self.pool);
    }

    /// The next piece, some of the bytes having been put where they stay before anybody asked.
    fn next<'a>(&mut self, now: Moment, epoch: u64, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        if let Some((off, left)) = self.decoder.amid_data()
            && off % 3 > 0
            && let Some(space) = self.pipe.arriving(epoch, off, (1, left), &mut self.pool)
        {
            let (direct, rest) = input.split_at(space.len().min(input.len()));
            space[..direct.len()].copy_from_slice(direct);
            *input = rest;
            self.pipe.arrived(now, direct.len(), &mut self.pool);
            self.decoder.passed(direct.len());
        }
        self.decoder.next(input).expect("our own frames")
    }

    fn stand(&mut self) -> Stand {
        let fin = self.pipe.peer_finished();
        let (recv, limit) = self.pipe.tell();
        Stand { recv, fin, limit }
    }

    /// Everything for the carrier, as bytes.
    fn outgoing(&mut self, now: Moment, max: usize) -> Vec<u8> {
        self.outbox.fill(now, &mut self.pipe);
        let mut bytes = vec![];
        let count = self.outbox.copy_to(&self.pipe, &mut bytes, max);
        self.outbox.wrote(count);
        bytes
    }
}

/// What is between the two: bytes in each direction, and how many more of them pass before it is
/// cut.
struct Carrier {
    up: Vec<u8>,
    down: Vec<u8>,
    up_left: usize,
    down_left: usize,
}

struct World {
    now: Moment,
    client: Node,
    server: Node,
    known: Option<Known>,
    epoch: u64,
    carrier: Option<Carrier>,
    asking: Option<Asking>,
    answering: Option<Answering>,
    /// How many bytes went each way, over all carriers.
    wire: (usize, usize),
    dials: usize,
    /// What the server's side writes, to begin anew if the first welcome was lost.
    down_text: Vec<u8>,
}

const INSTANCE: [u8; 16] = [1; 16];

impl World {
    fn new(window: u64, up: Vec<u8>, down: Vec<u8>) -> World {
        World {
            now: Moment::ZERO,
            client: Node::new(Side::Client, window, up),
            server: Node::new(Side::Server, window, vec![]),
            known: None,
            epoch: 0,
            carrier: None,
            asking: None,
            answering: None,
            wire: (0, 0),
            dials: 0,
            down_text: down,
        }
    }

    fn dial(&mut self, up_left: usize, down_left: usize) {
        self.epoch += 1;
        self.dials += 1;
        self.carrier = Some(Carrier { up: vec![], down: vec![], up_left, down_left });
        let want = match &self.known {
            Some(known) => Want::Resume(known.clone()),
            None => Want::New { target: "t".into(), limit: self.client.pipe.allows() },
        };
        if self.known.is_none() {
            self.client.pipe.tell();
        }
        self.client.decoder = Decoder::new();
        self.server.decoder = Decoder::new();
        self.client.outbox = Outbox::new();
        let (asking, hello) = Asking::begin([self.dials as u8; 16], self.epoch, &want, None);
        self.client.outbox.greet(&hello);
        self.asking = Some(asking);
        self.answering = Some(Answering::new(INSTANCE));
    }

    /// Moves what there is to move, at most `chunk` bytes each way. Gives whether anything moved.
    fn turn(&mut self, chunk: usize) -> bool {
        self.client.local(self.now);
        self.server.local(self.now);
        let Some(mut carrier) = self.carrier.take() else { return false };
        let up = self.client.outgoing(self.now, chunk);
        // The server's outbox is its own only while this carrier is the one it answers.
        let down = self.server.outgoing(self.now, chunk);
        let moved = !up.is_empty() || !down.is_empty();
        let mut cut = false;
        for (bytes, left, queue, total) in [
            (up, &mut carrier.up_left, &mut carrier.up, &mut self.wire.0),
            (down, &mut carrier.down_left, &mut carrier.down, &mut self.wire.1),
        ] {
            let count = bytes.len().min(*left);
            queue.extend(&bytes[..count]);
            *total += count;
            *left -= count;
            cut |= count < bytes.len();
        }
        let (up, down) = (std::mem::take(&mut carrier.up), std::mem::take(&mut carrier.down));
        self.carrier = Some(carrier);
        self.server_reads(&up);
        self.client_reads(&down);
        if cut {
            self.cut();
        }
        moved
    }

    fn cut(&mut self) {
        self.carrier = None;
        self.asking = None;
        self.answering = None;
        self.client.pipe.detach(self.epoch);
        let server_epoch = self.server.pipe.epoch();
        self.server.pipe.detach(server_epoch);
        self.server.outbox = Outbox::new();
        self.client.outbox = Outbox::new();
    }

    fn server_reads(&mut self, mut input: &[u8]) {
        let server = &mut self.server;
        server.pipe.heard(self.now);
        let epoch = server.pipe.epoch();
        while let Some(piece) = server.next(self.now, epoch, &mut input) {
            match piece {
                Piece::Data { off, bytes } => {
                    let fresh = server.pipe.data(epoch, off, bytes).expect("an honest peer");
                    server.pipe.hold(self.now, fresh, &mut server.pool);
                }
                Piece::Control(control) => {
                    server.pipe.control(self.now, epoch, control, &mut server.pool).expect("an honest peer");
                    if server.pipe.over_with().is_some() {
                        // The server closes after the last word; the client hears that.
                        self.client.pipe.closed_after_goodbye(&mut self.client.pool);
                        return;
                    }
                }
                Piece::Greeting(greeting) => {
                    let answering = self.answering.as_mut().expect("the carrier is new");
                    match answering.step(greeting, [self.dials as u8; 16]).expect("an honest peer") {
                        Answered::New(Hello { wish: Wish::New { epoch, limit, .. }, .. }) => {
                            // A pipe whose welcome was lost is left behind with what was written to it.
                            assert!(server.got.is_empty(), "no byte before a welcome");
                            let to_write = self.down_text.clone();
                            let reads = server.reads;
                            let decoder = std::mem::take(&mut server.decoder);
                            *server = Node::new(Side::Server, server.pipe.window(), to_write);
                            server.reads = reads;
                            server.decoder = decoder;
                            server
                                .pipe
                                .attach(self.now, epoch, 0, limit, &mut server.pool)
                                .expect("a fresh pipe");
                            let stand = server.stand();
                            let welcome = welcome(&server.pipe, stand, [0; 32], Some(Secret([9; 32])));
                            server.outbox.greet(&Greeting::Welcome(welcome));
                        }
                        Answered::New(_) => unreachable!("a wish for a new pipe"),
                        Answered::Challenge(_, id, challenge) => {
                            assert_eq!(id, PipeId([3; 16]));
                            server.outbox = Outbox::new();
                            server.outbox.greet(&Greeting::Challenge(challenge));
                        }
                        Answered::Claim(claim) => {
                            assert!(claim.holds(&Secret([9; 32])));
                            if server.pipe.over_with().is_some() {
                                server.outbox.greet(&Greeting::Refuse(Refuse {
                                    instance: INSTANCE,
                                    end: End::new(Ending::UnknownPipe, ""),
                                    retriable: false,
                                    retry_after: Duration::ZERO,
                                }));
                                return;
                            }
                            assert!(claim.epoch() > server.pipe.epoch(), "an epoch is used once");
                            let stand = server.stand();
                            server
                                .pipe
                                .attach(
                                    self.now,
                                    claim.epoch(),
                                    claim.stand().recv,
                                    claim.stand().limit,
                                    &mut server.pool,
                                )
                                .expect("an honest peer");
                            let tag = claim.answer(&Secret([9; 32]), &stand);
                            let welcome = welcome(&server.pipe, stand, tag, None);
                            server.outbox = Outbox::new();
                            server.outbox.greet(&Greeting::Welcome(welcome));
                        }
                    }
                }
            }
        }
    }

    fn client_reads(&mut self, mut input: &[u8]) {
        let client = &mut self.client;
        client.pipe.heard(self.now);
        while let Some(piece) = client.next(self.now, self.epoch, &mut input) {
            match piece {
                Piece::Data { off, bytes } => {
                    let fresh = client.pipe.data(self.epoch, off, bytes).expect("an honest peer");
                    client.pipe.hold(self.now, fresh, &mut client.pool);
                }
                Piece::Control(control) => {
                    client
                        .pipe
                        .control(self.now, self.epoch, control, &mut client.pool)
                        .expect("an honest peer");
                }
                Piece::Greeting(greeting) => {
                    let asking = self.asking.as_mut().expect("the carrier is new");
                    match asking.step(greeting).expect("an honest peer") {
                        Asked::StandStill => {
                            let stand = client.stand();
                            client.outbox.greet(&asking.prove(stand));
                        }
                        Asked::Welcome(welcome) => {
                            if let Some(secret) = welcome.secret {
                                self.known = Some(Known { id: welcome.id, secret, instance: INSTANCE });
                            }
                            client
                                .pipe
                                .attach(
                                    self.now,
                                    self.epoch,
                                    welcome.stand.recv,
                                    welcome.stand.limit,
                                    &mut client.pool,
                                )
                                .expect("an honest peer");
                            self.asking = None;
                        }
                        Asked::Refused(refuse) => {
                            assert_eq!(refuse.end.code, Ending::UnknownPipe);
                            assert_eq!(
                                client.pipe.ending().map(|end| end.code),
                                Some(Ending::Eof),
                                "only when done"
                            );
                            client.pipe.closed_after_goodbye(&mut client.pool);
                        }
                    }
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.client.pipe.over_with().is_some()
    }

    /// Runs until the client is over, dialling whenever there is no carrier, with the cuts given.
    fn run(&mut self, chunk: usize, mut cuts: impl Iterator<Item = (usize, usize)>) {
        for _ in 0..200_000 {
            if self.is_over() {
                // Slow readers still have what was received.
                while self.client.pipe.unread() + self.server.pipe.unread() > 0 {
                    self.client.local(self.now);
                    self.server.local(self.now);
                }
                return;
            }
            if self.carrier.is_none() {
                let (up, down) = cuts.next().unwrap_or((usize::MAX, usize::MAX));
                self.dial(up, down);
            }
            if self.turn(chunk) {
                continue;
            }
            // Nothing moves: let time pass to the next alarm of either end.
            let next = Moment::earliest(self.client.pipe.deadline(), self.server.pipe.deadline());
            let idle = self.carrier.is_some()
                && !self.client.pipe.wants_to_send()
                && !self.server.pipe.wants_to_send();
            if let Some(next) = next.filter(|_| idle) {
                self.now = self.now.max(next);
                assert_eq!(self.client.pipe.alarm(self.now), None, "nobody is silent here");
                assert_eq!(self.server.pipe.alarm(self.now), None, "nobody is silent here");
            }
            let bound = 2 * self.client.pipe.window() as usize + 2 * 65_536;
            assert!(self.client.pipe.memory() <= bound && self.server.pipe.memory() <= bound);
        }
        panic!("it does not come to an end: {:#?} {:#?}", self.client.pipe, self.server.pipe);
    }
}

fn welcome(pipe: &Pipe, stand: Stand, tag: proof::Tag, secret: Option<Secret>) -> Welcome {
    Welcome {
        proto: 1,
        instance: INSTANCE,
        id: PipeId([3; 16]),
        epoch: pipe.epoch(),
        grace: None,
        window: pipe.window(),
        stand,
        tag,
        secret,
    }
}

/// Bytes that differ at every offset that matters here.
fn text(seed: u64, count: usize) -> Vec<u8> {
    (0..count as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 ^ seed as u8).collect()
}

fn check(world: &World, up: &[u8], down: &[u8], what: &str) {
    assert!(world.server.got == up, "{what}: {} of {} bytes went up", world.server.got.len(), up.len());
    assert!(world.client.got == down, "{what}: {} of {} bytes came down", world.client.got.len(), down.len());
    assert_eq!(world.client.pipe.over_with().map(|end| end.code), Some(Ending::Eof), "{what}");
    assert_eq!(
        world.client.pipe.memory() + world.server.pipe.memory(),
        0,
        "{what}: nothing is held at the end"
    );
}

#[test]
fn a_cut_at_any_byte_of_the_wire_loses_and_doubles_nothing() {
    let (up, down) = (text(1, 70), text(2, 90));
    let mut calm = World::new(WINDOW_MIN, up.clone(), down.clone());
    calm.run(usize::MAX, std::iter::empty());
    check(&calm, &up, &down, "uncut");
    let (up_total, down_total) = calm.wire;
    assert!(up_total > 150 && down_total > 250, "the handshake is part of it: {:?}", calm.wire);
    for chunk in [7, usize::MAX] {
        for cut in 0..up_total.max(down_total) {
            for (cut, what) in [((cut, usize::MAX), "up"), ((usize::MAX, cut), "down"), ((cut, cut), "both")]
            {
                let mut world = World::new(WINDOW_MIN, up.clone(), down.clone());
                world.run(chunk, std::iter::once(cut));
                check(&world, &up, &down, &format!("cut {what} at {cut:?}, chunks of {chunk}"));
            }
        }
    }
}

#[test]
fn a_second_cut_at_any_byte_of_the_resume_loses_and_doubles_nothing() {
    let (up, down) = (text(3, 70), text(4, 90));
    for first in [215, 260] {
        for second in 0..330 {
            for cut in [(second, usize::MAX), (usize::MAX, second)] {
                let mut world = World::new(WINDOW_MIN, up.clone(), down.clone());
                world.run(13, [(first, first), cut].into_iter());
                check(&world, &up, &down, &format!("cut at {first}, then at {cut:?}"));
            }
        }
    }
}

#[test]
fn two_full_windows_at_once_do_not_wait_for_each_other() {
    let (up, down) = (text(5, 5 * WINDOW_MIN as usize), text(6, 5 * WINDOW_MIN as usize));
    let mut world = World::new(WINDOW_MIN, up.clone(), down.clone());
    // Every carrier dies before it has moved a window.
    world.run(10_000, std::iter::repeat_n((50_000, 50_000), 40));
    check(&world, &up, &down, "full both ways");
    assert!(world.client.pipe.counts().replayed > 0);
}

#[test]
fn a_lost_welcome_any_number_of_times_does_no_harm() {
    let (up, down) = (text(7, 1_000), text(8, 1_000));
    let mut world = World::new(WINDOW_MIN, up.clone(), down.clone());
    world.run(64, std::iter::repeat_n((usize::MAX, 150), 1).chain(std::iter::repeat_n((usize::MAX, 60), 20)));
    check(&world, &up, &down, "lost welcomes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn whatever_is_cut_wherever_the_bytes_are_the_same(
        up in 0..200_000usize,
        down in 0..200_000usize,
        chunk in prop_oneof![1..50usize, 1_000..100_000usize],
        reads in prop_oneof![Just(usize::MAX), 500..5_000usize],
        cuts in prop::collection::vec((0..150_000usize, 0..150_000usize), 0..12),
    ) {
        let chunk = chunk.max((up + down) / 2_000 + 1);
        let (up, down) = (text(9, up), text(10, down));
        let mut world = World::new(WINDOW_MIN, up.clone(), down.clone());
        world.client.reads = reads.max(chunk / 2);
        world.server.reads = reads.max(chunk / 2);
        world.run(chunk, cuts.into_iter());
        check(&world, &up, &down, "random cuts");
    }
}

#[test]
fn writes_that_take_a_little_make_no_tiny_frames() {
    let total = 4 << 20;
    let mut node = Node::new(Side::Server, 8 << 20, vec![7; total]);
    node.pipe.attach(Moment::ZERO, 1, 0, u64::MAX, &mut node.pool).expect("a fresh pipe");
    node.local(Moment::ZERO);
    let mut wire = Vec::new();
    for taken in (0..).map(|round| 1_000 + 7_919 * (round % 20)) {
        node.outbox.fill(Moment::ZERO, &mut node.pipe);
        if node.outbox.is_empty() {
            break;
        }
        let count = node.outbox.copy_to(&node.pipe, &mut wire, taken);
        node.outbox.wrote(count);
    }
    let (mut lengths, mut at) = (Vec::new(), 0);
    while at < wire.len() {
        let len = u32::from_be_bytes([0, wire[at + 1], wire[at + 2], wire[at + 3]]) as usize;
        if wire[at] == DATA {
            lengths.push(len - 8);
        }
        at += HEAD + len;
    }
    assert_eq!(lengths.iter().sum::<usize>(), total);
    let tiny = lengths.iter().filter(|len| **len < 60_000).count();
    assert!(tiny <= 1, "only the last one: {lengths:?}");
}

#[test]
fn a_short_frame_between_long_ones_hides_them_not() {
    let mut decoder = Decoder::new();
    for (len, lately) in [(200_000, 200_000), (12, 100_000), (12, 50_000), (70_000, 70_000)] {
        let mut bytes = data_head(0, len).to_vec();
        bytes.resize(DATA_HEAD + len, 0);
        let mut input = &bytes[..DATA_HEAD];
        assert_eq!(decoder.next(&mut input), Ok(None));
        assert_eq!((decoder.lately(), decoder.amid_data()), (lately, Some((0, len))));
        decoder.passed(len - 1);
        assert_eq!(decoder.amid_data(), Some((len as u64 - 1, 1)));
        decoder.passed(1);
        assert_eq!((decoder.amid_data(), decoder.is_between_frames()), (None, true));
    }
}
