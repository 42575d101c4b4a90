//! Both ends of a pipe under the simulator: connections in memory that end after any number of bytes, in
//! every order of threads, and every byte arrives once.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use towpath::client::pipe::State;
use towpath::client::pipe::backed::{Backed, Link, Side};
use towpath::codec::pipe::{Decoder, Piece, encode_control};
use towpath::rt::{Lock, Rt, Sender};
use towpath::state::pipe::{Control, Ending};
use towpath::testing::{Sweep, Test};

/// One direction of a connection in memory.
struct Wire {
    rt: Rt,
    state: Lock<WireState>,
}

struct WireState {
    bytes: VecDeque<u8>,
    /// How many more bytes it takes before it breaks.
    left: usize,
    over: bool,
    waiting: Vec<Sender<()>>,
}

/// How much lies on a wire: less than a window, so that writers wait.
const ON_WIRE: usize = 10_000;

impl Wire {
    fn new(rt: &Rt, left: usize) -> Arc<Wire> {
        let state = WireState { bytes: VecDeque::new(), left, over: false, waiting: Vec::new() };
        Arc::new(Wire { rt: rt.clone(), state: Lock::new(state) })
    }

    fn look<T>(&self, mut ready: impl FnMut(&mut WireState) -> Option<T>) -> T {
        loop {
            let (wake, woken) = self.rt.channel("wire", 1);
            let (found, waiting) = {
                let mut state = self.state.lock();
                let found = ready(&mut state);
                if found.is_none() {
                    state.waiting.push(wake);
                }
                let waiting = if found.is_some() { std::mem::take(&mut state.waiting) } else { Vec::new() };
                (found, waiting)
            };
            waiting.into_iter().for_each(|sender| sender.try_send(()).unwrap_or_default());
            match found {
                Some(found) => return found,
                None => drop(woken.recv()),
            }
        }
    }

    fn end(&self) {
        self.look(|state| {
            state.over = true;
            Some(())
        });
    }
}

/// One end of a connection in memory: a break of either direction is the end of both.
#[derive(Clone)]
struct Socket {
    inbound: Arc<Wire>,
    outbound: Arc<Wire>,
}

impl Socket {
    fn end(&self) {
        self.inbound.end();
        self.outbound.end();
    }

    fn link(self) -> Link {
        let (reader, writer) = (self.clone(), self.clone());
        Link::new(reader, writer, move || self.end())
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.inbound.look(|state| {
            let count = buffer.len().min(state.bytes.len());
            if count == 0 {
                return state.over.then_some(0);
            }
            for (slot, byte) in buffer.iter_mut().zip(state.bytes.drain(..count)) {
                *slot = byte;
            }
            Some(count)
        }))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.outbound.look(|state| {
            if state.over || state.left == 0 {
                return Some(None);
            }
            let room = ON_WIRE.saturating_sub(state.bytes.len());
            let count = bytes.len().min(room).min(state.left);
            state.bytes.extend(&bytes[..count]);
            state.left -= count;
            (count > 0).then_some(Some(count))
        });
        written.ok_or_else(|| {
            // What is on the wire still arrives, and then the end.
            self.end();
            io::ErrorKind::BrokenPipe.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Both ends of a connection that breaks after so many bytes each way.
fn connection(rt: &Rt, up: usize, down: usize) -> (Socket, Socket) {
    let (up, down) = (Wire::new(rt, up), Wire::new(rt, down));
    let mine = Socket { inbound: up.clone(), outbound: down.clone() };
    (mine, Socket { inbound: down, outbound: up })
}

/// Where both ends make their connections.
struct Meeting {
    rt: Rt,
    seats: Lock<[Option<Seat>; 2]>,
    /// How long the connections live that break, in bytes each way.
    lives: Lock<Vec<(usize, usize)>>,
}

struct Seat {
    recv: u64,
    tell: Sender<(Socket, u64)>,
}

impl Meeting {
    fn meet(&self, side: usize, recv: u64) -> io::Result<(Socket, u64)> {
        let (tell, told) = self.rt.channel("meeting", 1);
        if let Some(other) = self.sit(side, recv, tell) {
            let (up, down) = self.lives.lock().pop().unwrap_or((usize::MAX, usize::MAX));
            let (mine, theirs) = connection(&self.rt, up, down);
            let left = || io::Error::new(io::ErrorKind::TimedOut, "it has left again");
            other.tell.try_send((theirs, recv)).map_err(|_| left())?;
            return Ok((mine, other.recv));
        }
        let deadline = self.rt.now() + Duration::from_secs(60);
        told.recv_deadline(deadline).map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "nobody came"))
    }

    /// Whoever waits for this side; else this side waits.
    fn sit(&self, side: usize, recv: u64, tell: Sender<(Socket, u64)>) -> Option<Seat> {
        let mut seats = self.seats.lock();
        let other = seats[1 - side].take();
        if other.is_none() {
            seats[side] = Some(Seat { recv, tell });
        }
        other
    }

    fn end(self: &Arc<Meeting>, side: Side) -> towpath::Result<Backed> {
        let meeting = self.clone();
        let seat = usize::from(side == Side::Client);
        Backed::new(&self.rt, side, 64 << 10, move |recv| {
            let (socket, theirs) = meeting.meet(seat, recv)?;
            Ok((socket.link(), theirs))
        })
    }
}

fn text(seed: u64, count: usize) -> Vec<u8> {
    (0..count as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 ^ seed as u8).collect()
}

fn meeting(t: &Test, breaks: u64, longest: u64) -> Arc<Meeting> {
    let lives =
        (0..breaks).map(|_| (t.draw("up", longest) as usize, t.draw("down", longest) as usize)).collect();
    Arc::new(Meeting { rt: t.rt(), seats: Lock::default(), lives: Lock::new(lives) })
}

/// Writes and reads on threads of the simulation; gives what came.
fn exchange(rt: &Rt, meeting: &Arc<Meeting>, up: &[u8], down: &[u8]) -> towpath::Result<(Vec<u8>, Vec<u8>)> {
    let (ours, theirs) = (Arc::new(meeting.end(Side::Client)?), Arc::new(meeting.end(Side::Server)?));
    let write = |pipe: &Arc<Backed>, bytes: &[u8]| {
        let (pipe, bytes) = (pipe.clone(), bytes.to_vec());
        rt.spawn("writer", move || {
            (&*pipe).write_all(&bytes).expect("it takes them");
            pipe.shutdown();
        })
    };
    let read = |pipe: &Arc<Backed>| {
        let pipe = pipe.clone();
        rt.spawn("reader", move || {
            let mut got = Vec::new();
            (&*pipe).read_to_end(&mut got).expect("it ends well");
            got
        })
    };
    let other = theirs.clone();
    let connecting = rt.spawn("connect", move || other.connect())?;
    ours.connect().expect("somebody comes");
    connecting.join().expect("no panic").expect("somebody comes");
    let writing = [write(&ours, up)?, write(&theirs, down)?];
    let (at_ours, at_theirs) = (read(&ours)?, read(&theirs)?);
    let got = (at_theirs.join().expect("no panic"), at_ours.join().expect("no panic"));
    writing.into_iter().for_each(|writer| writer.join().expect("no panic"));
    for end in [&ours, &theirs] {
        let over = end.wait_over(Some(Duration::from_secs(600))).expect("both directions ended");
        assert_eq!(over.code, Ending::Eof);
        end.close().expect("that is a good end");
    }
    Ok(got)
}

#[test]
fn sim_every_byte_arrives_once_wherever_connections_break() {
    let swept = Sweep::new("sim_every_byte_arrives_once_wherever_connections_break", 40).run(|t: &Test| {
        let (up, down) = (text(1, t.draw("size", 3_000) as usize), text(2, t.draw("size", 3_000) as usize));
        let meeting = meeting(t, 1 + t.draw("breaks", 8), 900);
        let (at_server, at_client) = exchange(&t.rt(), &meeting, &up, &down)?;
        assert!(at_server == up, "{} of {} bytes went up", at_server.len(), up.len());
        assert!(at_client == down, "{} of {} bytes came down", at_client.len(), down.len());
        Ok::<(), towpath::Error>(())
    });
    swept.assert_ok();
    println!("{} seeds, {} distinct traces", swept.runs(), swept.distinct());
}

#[test]
fn sim_two_full_windows_and_breaks_do_not_wait_for_each_other() {
    let swept =
        Sweep::new("sim_two_full_windows_and_breaks_do_not_wait_for_each_other", 10).run(|t: &Test| {
            let (up, down) = (text(3, 300_000), text(4, 300_000));
            let meeting = meeting(t, 6, 90_000);
            let (at_server, at_client) = exchange(&t.rt(), &meeting, &up, &down)?;
            assert!(at_server == up && at_client == down, "{} and {}", at_server.len(), at_client.len());
            Ok::<(), towpath::Error>(())
        });
    swept.assert_ok();
}

/// The other end of a pipe, frame by frame.
struct Peer {
    socket: Socket,
    decoder: Decoder,
    heard: VecDeque<Control>,
}

impl Peer {
    fn new(socket: Socket) -> Peer {
        Peer { socket, decoder: Decoder::new(), heard: VecDeque::new() }
    }

    fn say(&mut self, control: &Control) {
        let mut bytes = Vec::new();
        encode_control(control, &mut bytes);
        self.socket.write_all(&bytes).expect("it takes them");
    }

    /// Reads until such a frame comes; false if the connection ends before.
    fn hears(&mut self, wanted: impl Fn(&Control) -> bool) -> bool {
        loop {
            while let Some(control) = self.heard.pop_front() {
                if wanted(&control) {
                    return true;
                }
            }
            let mut buffer = [0; 100];
            let count = self.socket.read(&mut buffer).expect("it is read");
            if count == 0 {
                return false;
            }
            controls(&mut self.decoder, &buffer[..count], &mut self.heard);
        }
    }
}

fn controls(decoder: &mut Decoder, mut bytes: &[u8], heard: &mut VecDeque<Control>) {
    while let Some(piece) = decoder.next(&mut bytes).expect("frames") {
        if let Piece::Control(control) = piece {
            heard.push_back(control);
        }
    }
}

fn nobody() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, "nobody is there")
}

const LIMIT: u64 = 64 << 10;

/// The goodbye of an end that has gone was on a connection that broke: whoever waits for it has everything,
/// and goes after a while.
#[test]
fn sim_an_end_that_is_done_does_not_wait_for_ever_for_a_goodbye() {
    let name = "sim_an_end_that_is_done_does_not_wait_for_ever_for_a_goodbye";
    let swept = Sweep::new(name, 20).run(|t: &Test| {
        let rt = t.rt();
        let (ours, theirs) = connection(&rt, usize::MAX, usize::MAX);
        let mut first = Some(ours);
        let pipe = Backed::new(&rt, Side::Server, LIMIT, move |_| match first.take() {
            Some(socket) => Ok((socket.link(), 0)),
            None => Err(nobody()),
        })?;
        pipe.connect().expect("the first one is there");
        pipe.shutdown();
        let mut peer = Peer::new(theirs);
        peer.say(&Control::Ack { recv: 0, limit: LIMIT });
        peer.say(&Control::Fin { off: 0 });
        assert!(peer.hears(|control| *control == Control::Fin { off: 0 }));
        peer.say(&Control::Ack { recv: 1, limit: LIMIT });
        peer.say(&Control::Ping { token: 7 });
        assert!(peer.hears(|control| matches!(control, Control::Pong { token: 7, recv: 1, .. })));
        let since = rt.now();
        peer.socket.end();
        let over = pipe.wait_over(Some(Duration::from_secs(120))).expect("it does not wait for ever");
        assert_eq!(over.code, Ending::Eof);
        assert!(rt.now().since(since) >= Duration::from_secs(30), "a goodbye would have had its time");
        pipe.close().expect("everything arrived");
        Ok::<(), towpath::Error>(())
    });
    swept.assert_ok();
}

/// Breaks the connection instead of writing a goodbye.
struct NoGoodbye {
    socket: Socket,
    decoder: Decoder,
}

impl Write for NoGoodbye {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut controls_in_it = VecDeque::new();
        controls(&mut self.decoder, bytes, &mut controls_in_it);
        if controls_in_it.iter().any(|control| matches!(control, Control::Reset(_))) {
            self.socket.end();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.socket.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection that ends while the goodbye is being written is not one on which it was heard.
#[test]
fn sim_a_goodbye_that_did_not_leave_is_said_again() {
    let swept = Sweep::new("sim_a_goodbye_that_did_not_leave_is_said_again", 40).run(|t: &Test| {
        let rt = t.rt();
        let (ours, theirs) = connection(&rt, usize::MAX, usize::MAX);
        let (again, there) = connection(&rt, usize::MAX, usize::MAX);
        let (reader, closer) = (ours.clone(), ours.clone());
        let writer = NoGoodbye { socket: ours, decoder: Decoder::new() };
        let mut links = [(Link::new(reader, writer, move || closer.end()), 0), (again.link(), 1)].into_iter();
        let pipe = Backed::new(&rt, Side::Client, LIMIT, move |_| links.next().ok_or_else(nobody))?;
        pipe.connect().expect("the first one is there");
        pipe.shutdown();
        let mut peer = Peer::new(theirs);
        peer.say(&Control::Ack { recv: 0, limit: LIMIT });
        peer.say(&Control::Fin { off: 0 });
        assert!(peer.hears(|control| *control == Control::Fin { off: 0 }));
        peer.say(&Control::Ack { recv: 1, limit: LIMIT });
        assert!(!peer.hears(|control| matches!(control, Control::Reset(_))), "it never leaves");
        let mut peer = Peer::new(there);
        let goodbye = |control: &Control| matches!(control, Control::Reset(end) if end.code == Ending::Eof);
        let listening = rt.spawn("peer", move || {
            let heard = peer.hears(goodbye);
            peer.socket.end();
            heard
        })?;
        let over = pipe.wait_over(Some(Duration::from_secs(60))).expect("both directions ended");
        assert_eq!(over.code, Ending::Eof);
        pipe.close().expect("that is a good end");
        drop(pipe);
        assert!(listening.join().expect("no panic"), "the goodbye came");
        Ok::<(), towpath::Error>(())
    });
    swept.assert_ok();
}

/// Whoever writes, reads and dials while both ends are closed comes back, each with an end or an error.
#[test]
fn sim_closing_at_any_moment_ends_every_wait() {
    let swept = Sweep::new("sim_closing_at_any_moment_ends_every_wait", 30).run(|t: &Test| {
        let rt = t.rt();
        let meeting = meeting(t, t.draw("breaks", 4), 2_000);
        let ends = [Arc::new(meeting.end(Side::Client)?), Arc::new(meeting.end(Side::Server)?)];
        let mut waiting = Vec::new();
        for end in &ends {
            let pipe = end.clone();
            waiting.push(rt.spawn("dialer", move || {
                for attempt in 0..4 {
                    let asked = if attempt % 2 == 0 { pipe.connect() } else { pipe.force_reconnect() };
                    if asked.is_err() && matches!(pipe.state(), State::Over(_)) {
                        return;
                    }
                }
            })?);
            let pipe = end.clone();
            waiting.push(rt.spawn("writer", move || {
                // More than lies between two ends of which one does not read.
                let written = (&*pipe).write_all(&[7; 150_000]);
                pipe.shutdown();
                assert!(written.is_err() || pipe.try_write(b"x").is_err(), "this direction has ended");
            })?);
            let pipe = end.clone();
            waiting.push(rt.spawn("reader", move || {
                // A few bytes at first; then as fast as they come, or never again.
                let mut buffer = [0; 5_000];
                while (&*pipe).read(&mut buffer).is_ok_and(|count| count > 0) {}
            })?);
        }
        let closes: Vec<Duration> =
            (0..3).map(|_| Duration::from_millis(t.draw("close after", 3_000))).collect();
        for (index, after) in closes.into_iter().enumerate() {
            // Both ends, and one of them twice, perhaps at once.
            let (pipe, clock) = (ends[index % 2].clone(), rt.clone());
            waiting.push(rt.spawn("closer", move || {
                clock.sleep(after);
                // What it says is of no matter here: it comes back.
                drop(pipe.close());
            })?);
        }
        waiting.into_iter().for_each(|thread| thread.join().expect("no panic"));
        for end in &ends {
            assert!(matches!(end.state(), State::Over(_)), "{:?}", end.state());
            assert!((&**end).write(b"x").is_err());
            end.close().expect("it is said once");
        }
        Ok::<(), towpath::Error>(())
    });
    swept.assert_ok();
}
