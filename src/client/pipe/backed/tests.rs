use super::*;
use crate::client::pipe::ended_with;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Where the two ends of a pipe make their connections: each comes with what it has received, and both
/// leave with a socket and what the other one has.
struct Meeting {
    rt: Rt,
    seats: Lock<[Option<Seat>; 2]>,
    /// The connection there is, to cut it.
    line: Lock<Option<UnixStream>>,
    dials: AtomicUsize,
}

struct Seat {
    recv: u64,
    tell: Sender<(UnixStream, u64)>,
}

impl Meeting {
    fn new(rt: &Rt) -> Arc<Meeting> {
        let (seats, line, dials) = (Lock::default(), Lock::default(), AtomicUsize::new(0));
        Arc::new(Meeting { rt: rt.clone(), seats, line, dials })
    }

    fn meet(&self, side: usize, recv: u64) -> io::Result<(UnixStream, u64)> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        let (tell, told) = self.rt.channel("meeting", 1);
        let other = self.sit(side, recv, tell);
        if let Some(other) = other {
            let (mine, theirs) = UnixStream::pair()?;
            *self.line.lock() = Some(mine.try_clone()?);
            if other.tell.try_send((theirs, recv)).is_ok() {
                return Ok((mine, other.recv));
            }
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it has left again"));
        }
        let deadline = self.rt.now() + Duration::from_millis(500);
        told.recv_deadline(deadline).map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "nobody came"))
    }

    /// Whoever waits for this side; else this side waits.
    fn sit(&self, side: usize, recv: u64, tell: Sender<(UnixStream, u64)>) -> Option<Seat> {
        let mut seats = self.seats.lock();
        let other = seats[1 - side].take();
        if other.is_none() {
            seats[side] = Some(Seat { recv, tell });
        }
        other
    }

    fn end(self: &Arc<Meeting>, side: Side, window: u64) -> Backed {
        let meeting = self.clone();
        let seat = usize::from(side == Side::Client);
        let reconnect = move |recv| {
            let (stream, theirs) = meeting.meet(seat, recv)?;
            Ok((Link::try_from(stream)?, theirs))
        };
        Backed::new(&self.rt, side, window, reconnect).expect("a thread")
    }

    fn cut(&self) {
        if let Some(line) = self.line.lock().take() {
            end_quietly(line.shutdown(Shutdown::Both));
        }
    }
}

/// Two ends that met.
fn pair(rt: &Rt, window: u64) -> (Arc<Meeting>, Backed, Backed) {
    let meeting = Meeting::new(rt);
    let (ours, theirs) = (meeting.end(Side::Client, window), meeting.end(Side::Server, window));
    meet(&ours, &theirs);
    (meeting, ours, theirs)
}

fn meet(ours: &Backed, theirs: &Backed) {
    thread::scope(|scope| {
        // Whoever comes first may wait in vain on a machine that is slow enough, and comes again.
        let come = |end: &Backed| {
            while end.state() != State::Connected {
                if let Err(error) = end.connect() {
                    let again = [io::ErrorKind::TimedOut, io::ErrorKind::AlreadyExists];
                    assert!(again.contains(&error.kind()), "{error}");
                }
            }
        };
        scope.spawn(move || come(theirs));
        come(ours);
    });
}

fn text(count: usize) -> Vec<u8> {
    (0..count as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn read_all_of(mut pipe: &Backed) -> Vec<u8> {
    let mut got = Vec::new();
    pipe.read_to_end(&mut got).expect("it ends well");
    got
}

#[test]
fn real_what_is_written_before_the_first_connection_waits_up_to_the_window() {
    let rt = Rt::real();
    let meeting = Meeting::new(&rt);
    let (ours, theirs) = (meeting.end(Side::Client, 65_536), meeting.end(Side::Server, 65_536));
    assert_eq!(ours.state(), State::Connecting);
    let sent = text(65_536);
    (&ours).write_all(&sent).expect("a window's worth");
    assert_eq!(ours.try_write(b"x").expect_err("no more").kind(), io::ErrorKind::TimedOut);
    assert_eq!(meeting.dials.load(Ordering::SeqCst), 0, "nobody asked for a connection");
    ours.shutdown();
    meet(&ours, &theirs);
    assert!(read_all_of(&theirs) == sent);
}

#[test]
fn real_connecting_fails_where_there_is_a_connection_and_after_the_end() {
    let rt = Rt::real();
    let (_meeting, ours, theirs) = pair(&rt, 1 << 20);
    assert_eq!(ours.connect().expect_err("it is connected").kind(), io::ErrorKind::AlreadyExists);
    ours.close().expect("nothing went wrong");
    let error = ours.connect().expect_err("it is closed");
    assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::Killed));
    ours.close().expect("twice is once");
    let error = (&theirs).read(&mut [0]).expect_err("the other end hears of it");
    assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::Killed));
}

#[test]
fn real_bytes_are_the_same_however_often_the_connection_is_cut() {
    let rt = Rt::real();
    let (meeting, ours, theirs) = pair(&rt, 256 << 10);
    let (up, down) = (text(4_000_000), text(3_000_000));
    thread::scope(|scope| {
        scope.spawn(|| {
            (&ours).write_all(&up).expect("it takes them");
            ours.shutdown();
        });
        scope.spawn(|| {
            (&theirs).write_all(&down).expect("it takes them");
            theirs.shutdown();
        });
        let reading = scope.spawn(|| read_all_of(&ours));
        let (mut got, mut buffer) = (Vec::new(), vec![0; 65_536]);
        let mut cuts = 0;
        loop {
            let count = (&theirs).read(&mut buffer).expect("it ends well");
            if count == 0 {
                break;
            }
            got.extend_from_slice(&buffer[..count]);
            if got.len() > (cuts + 1) * 150_000 && cuts < 20 {
                meeting.cut();
                cuts += 1;
            }
        }
        assert!(got == up, "{} of {} bytes", got.len(), up.len());
        assert!(reading.join().expect("no panic") == down);
    });
    assert!(meeting.dials.load(Ordering::SeqCst) >= 20, "it was cut in the middle");
    for end in [&ours, &theirs] {
        let over = end.wait_over(Some(Duration::from_secs(60))).expect("both directions ended");
        assert_eq!(over.code, Ending::Eof);
        end.close().expect("that is a good end");
    }
}

#[test]
fn real_callers_at_the_same_time_share_one_attempt() {
    let rt = Rt::real();
    let (go, gate) = rt.channel::<()>("gate", 8);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    // Kept open, and silent.
    let (keep, _kept) = rt.channel("kept", 8);
    let ours = Backed::new(&rt, Side::Client, 1 << 20, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        gate.recv().map_err(io::Error::other)?;
        let (mine, theirs) = UnixStream::pair()?;
        keep.try_send(theirs).map_err(|_| io::Error::other("more attempts than places"))?;
        Ok((Link::try_from(mine)?, 0))
    })
    .expect("a thread");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| ours.force_reconnect().expect("the one attempt goes well"));
        }
        while ours.inner.core.lock().askers.len() < 8 {
            thread::yield_now();
        }
        go.send(()).expect("somebody waits at the gate");
    });
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(ours.state(), State::Connected);
}

#[test]
fn real_closing_wakes_whoever_waits_with_a_typed_error() {
    let rt = Rt::real();
    let (_meeting, ours, theirs) = pair(&rt, 65_536);
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            // Nobody reads at the other end: both windows fill, and then it waits.
            (&ours).write_all(&text(1 << 20)).expect_err("it is closed before there is room")
        });
        let reading = scope.spawn(|| (&ours).read(&mut [0; 10]).expect_err("nothing ever comes"));
        while ours.inner.core.lock().pipe.room() > 0 {
            thread::yield_now();
        }
        ours.close().expect("nothing went wrong before");
        for error in [writing.join().expect("no panic"), reading.join().expect("no panic")] {
            assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::Killed), "{error}");
        }
    });
    assert!(matches!(ours.state(), State::Over(end) if end.code == Ending::Killed));
    drop(theirs);
}

#[test]
fn real_a_first_connection_that_fails_is_the_callers_and_a_lost_one_is_healed() {
    let rt = Rt::real();
    let meeting = Meeting::new(&rt);
    let (ours, theirs) = (meeting.end(Side::Client, 1 << 20), meeting.end(Side::Server, 1 << 20));
    assert_eq!(ours.connect().expect_err("nobody came").kind(), io::ErrorKind::TimedOut);
    assert_eq!((ours.state(), meeting.dials.load(Ordering::SeqCst)), (State::Connecting, 1));
    meet(&ours, &theirs);
    let before = meeting.dials.load(Ordering::SeqCst);
    meeting.cut();
    (&ours).write_all(b"after the cut").expect("there is room");
    let mut got = [0; 13];
    (&theirs).read_exact(&mut got).expect("it comes");
    assert_eq!(&got, b"after the cut");
    assert!(meeting.dials.load(Ordering::SeqCst) >= before + 2, "by itself");
}

#[test]
fn real_closing_gives_the_first_thing_that_was_not_healed() {
    let rt = Rt::real();
    let mut first = true;
    let ours = Backed::new(&rt, Side::Client, 1 << 20, move |_| {
        if !std::mem::take(&mut first) {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "not again"));
        }
        let (mine, theirs) = UnixStream::pair()?;
        drop(theirs);
        Ok((Link::try_from(mine)?, 0))
    })
    .expect("a thread");
    ours.connect().expect("the first one");
    while ours.inner.core.lock().trouble.is_none() {
        thread::yield_now();
    }
    let error = ours.close().expect_err("it was lost and never healed");
    assert_ne!(error.kind(), io::ErrorKind::ConnectionRefused, "that came second: {error}");
    ours.close().expect("it is said once");
}

#[test]
fn real_a_peer_that_has_what_was_never_sent_ends_the_pipe() {
    let rt = Rt::real();
    let ours = Backed::new(&rt, Side::Client, 1 << 20, |_| {
        let (mine, _theirs) = UnixStream::pair()?;
        Ok((Link::try_from(mine)?, 7))
    })
    .expect("a thread");
    assert!(ours.connect().is_err());
    assert!(matches!(ours.state(), State::Over(end) if end.code == Ending::Protocol));
    let error = (&ours).write(b"x").expect_err("it is over");
    assert_eq!(ended_with(&error).map(|end| end.code), Some(Ending::Protocol));
    assert!(ours.close().is_err(), "and closing says so");
}

/// A writer that breaks after so many bytes.
struct Short {
    stream: UnixStream,
    left: usize,
}

impl Write for Short {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.left);
        if count == 0 {
            end_quietly(self.stream.shutdown(Shutdown::Both));
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = self.stream.write(&bytes[..count])?;
        self.left -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn real_a_connection_may_break_after_any_byte() {
    let rt = Rt::real();
    // Everything one side puts on the wire here is shorter than this.
    for cut in 1..110 {
        let meeting = Meeting::new(&rt);
        let theirs = meeting.end(Side::Server, 65_536);
        let (meets, mut left) = (meeting.clone(), Some(cut));
        let ours = Backed::new(&rt, Side::Client, 65_536, move |recv| {
            let (stream, their_recv) = meets.meet(1, recv)?;
            let short = Short { stream: stream.try_clone()?, left: left.take().unwrap_or(usize::MAX) };
            let reader = stream.try_clone()?;
            let link = Link::new(reader, short, move || end_quietly(stream.shutdown(Shutdown::Both)));
            Ok((link, their_recv))
        })
        .expect("a thread");
        (&ours).write_all(b"up and").expect("there is room");
        ours.shutdown();
        (&theirs).write_all(b"down").expect("there is room");
        theirs.shutdown();
        meet_once(&ours, &theirs);
        assert_eq!(read_all_of(&theirs), b"up and", "cut after {cut}");
        assert_eq!(read_all_of(&ours), b"down", "cut after {cut}");
    }
}

/// The first connection of both; it may be over before either has looked.
fn meet_once(ours: &Backed, theirs: &Backed) {
    thread::scope(|scope| {
        let come = |end: &Backed| {
            while end.state() == State::Connecting {
                if let Err(error) = end.connect() {
                    let again = [io::ErrorKind::TimedOut, io::ErrorKind::AlreadyExists];
                    assert!(again.contains(&error.kind()), "{error}");
                }
            }
        };
        scope.spawn(move || come(theirs));
        come(ours);
    });
}
