//! What bears a session: something that carries whole messages both ways until it breaks.
//!
//! A [`Bearer`] is the way out; an [`Ear`] is told what comes in. A WebSocket on the I/O threads is one
//! ([`LinkHandle`] is a bearer); the others here stand on threads of their own, two a link: [`stream`] over
//! anything that reads and writes, with a length of four bytes (big-endian) before each message, and [`pair`]
//! in memory, with a [`Line`] between its ends that a test can cut and stall.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;

use super::link::LinkEvent;
use super::{Frame, Happened, LinkBatch, LinkHandle};
use crate::rt::{Lock, Receiver, Rt, Sender, Thread};

/// The way out of a link. Nothing here waits, and nothing is told but through the [`Ear`].
pub trait Bearer: Send {
    /// Sends one message. What a link cannot hold breaks it.
    fn send(&self, frame: Bytes);
    /// Stops or goes on hearing; what was heard already may still come.
    fn pause(&self, paused: bool);
    /// Sends what waits, then closes. Over a stream neither code nor reason reach the peer.
    fn close(&self, code: u16, reason: &'static str);
}

impl Bearer for LinkHandle {
    fn send(&self, frame: Bytes) {
        // A session bounds what it has in flight itself, and a replay is not a slow reader.
        self.send_paced(Frame::binary(&frame));
    }
    fn pause(&self, paused: bool) {
        LinkHandle::pause(self, paused);
    }
    fn close(&self, code: u16, reason: &'static str) {
        LinkHandle::close(self, code, reason);
    }
}

/// What is heard on a link. Nothing follows `Closed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A whole message.
    Frame(Bytes),
    /// What came was no message: a text where bytes are spoken.
    Garbage(&'static str),
    /// The link is gone.
    Closed {
        /// The peer's close code, 1006 if it had none.
        code: u16,
    },
}

/// What an I/O thread may do itself at once, in events and in bytes: more would keep its other links waiting.
const LIGHT: (usize, usize) = (64, 128 << 10);

/// Whether a room may do with these events what it does on the I/O thread that brings them.
pub(crate) fn is_light(batch: &LinkBatch) -> bool {
    let bytes = |event: &LinkEvent| match &event.what {
        Happened::Binary(bytes) | Happened::Bytes(bytes) => bytes.len(),
        Happened::Text(text) => text.len(),
        _ => 0,
    };
    batch.len() <= LIGHT.0 && batch.iter().map(bytes).sum::<usize>() <= LIGHT.1
}

/// The close code of a link that broke.
pub const BROKEN: u16 = 1006;

/// Who is told what a link hears. It may wait, on a thread of the link: that is how a full room holds back
/// whoever sends. It answers false when nobody listens any more.
#[derive(Clone)]
pub struct Ear(Arc<dyn Fn(Heard) -> bool + Send + Sync>);

impl Ear {
    /// An ear.
    pub fn new(hear: impl Fn(Heard) -> bool + Send + Sync + 'static) -> Ear {
        Ear(Arc::new(hear))
    }

    /// Tells it.
    pub fn hear(&self, heard: Heard) -> bool {
        (self.0)(heard)
    }
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ear")
    }
}

/// The threads of links that stand on their own, joined when this is dropped. Drop it after the rooms that
/// hold bearers and ears: their end is what ends the threads.
#[derive(Clone, Debug, Default)]
pub struct Carriers(Arc<Lock<Vec<Thread<()>>>>);

impl Carriers {
    fn add(&self, thread: Thread<()>) {
        let over: Vec<Thread<()>> = {
            let mut threads = self.0.lock();
            threads.push(thread);
            threads.extract_if(.., |thread| thread.is_finished()).collect()
        };
        drop(over);
    }
}

/// Bytes that wait for a peer who does not read, before the link breaks.
const LANE_MAX: usize = 96 << 20;

/// One direction of a link: what waits to be carried.
struct Lane {
    state: Lock<LaneState>,
    /// Rung when there is something to do; full when it was rung and nobody came yet.
    bell: Sender<()>,
}

#[derive(Default)]
struct LaneState {
    frames: VecDeque<Bytes>,
    bytes: usize,
    paused: bool,
    stalled: bool,
    /// Close after what waits was carried.
    closing: Option<u16>,
    /// Nothing is carried any more.
    broken: bool,
}

/// What a carrier found to do.
enum Load {
    Frames(VecDeque<Bytes>),
    Closing(u16),
    Broken,
}

impl Lane {
    fn new(rt: &Rt) -> (Arc<Lane>, Receiver<()>) {
        let (bell, rung) = rt.channel("bell", 1);
        (Arc::new(Lane { state: Lock::new(LaneState::default()), bell }), rung)
    }

    fn change(&self, change: impl FnOnce(&mut LaneState)) {
        change(&mut self.state.lock());
        // Full means that it was rung already and the carrier has yet to look.
        let _ = self.bell.try_send(());
    }

    fn send(&self, frame: Bytes) {
        self.change(|state| {
            if state.closing.is_some() || state.broken {
                return;
            }
            state.bytes += frame.len();
            state.frames.push_back(frame);
            state.broken |= state.bytes > LANE_MAX;
        });
    }

    fn break_off(&self) {
        self.change(|state| {
            state.broken = true;
            state.frames.clear();
        });
    }

    /// Waits for something to carry. Woken by the bell, which rings at every change.
    fn load(&self, rung: &Receiver<()>) -> Load {
        loop {
            {
                let mut state = self.state.lock();
                if state.broken {
                    return Load::Broken;
                }
                if !state.paused && !state.stalled {
                    if !state.frames.is_empty() {
                        state.bytes = 0;
                        return Load::Frames(std::mem::take(&mut state.frames));
                    }
                    if let Some(code) = state.closing {
                        return Load::Closing(code);
                    }
                }
            }
            if rung.recv().is_err() {
                return Load::Broken;
            }
        }
    }
}

/// One end of a link on threads.
struct End {
    out: Arc<Lane>,
    /// What the peer sends, where this end can hold it back.
    back: Arc<Lane>,
}

impl Bearer for End {
    fn send(&self, frame: Bytes) {
        self.out.send(frame);
    }
    fn pause(&self, paused: bool) {
        self.back.change(|state| state.paused = paused);
    }
    fn close(&self, code: u16, _: &'static str) {
        self.out.change(|state| state.closing = Some(code));
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Whoever lets go of a link without a word has lost it, and hears no more of it.
        self.out.change(|state| {
            state.closing.get_or_insert(BROKEN);
        });
        self.back.break_off();
    }
}

// ---- in memory ----

/// The line between two ends in memory, as a test holds it. The ends see what the network does, no more.
#[derive(Clone)]
pub struct Line {
    there: Arc<Lane>,
    back: Arc<Lane>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Line {
    /// Both ends lose the link; what was on its way is lost.
    pub fn cut(&self) {
        self.there.break_off();
        self.back.break_off();
    }

    /// Nothing is carried, either way or one way, until it goes on.
    pub fn stall(&self, there: bool, back: bool) {
        self.there.change(|state| state.stalled = there);
        self.back.change(|state| state.stalled = back);
    }
}

/// The near end, the far end, and the line between them.
pub type Ends = (Box<dyn Bearer>, Box<dyn Bearer>, Line);

/// Two ends in memory. What `near` sends, `far_ear` hears, and the other way round.
///
/// # Errors
/// When the system has no thread to give.
pub fn pair(rt: &Rt, carriers: &Carriers, near_ear: Ear, far_ear: Ear) -> crate::Result<Ends> {
    let (there, there_rung) = Lane::new(rt);
    let (back, back_rung) = Lane::new(rt);
    for (lane, other, rung, ear) in
        [(&there, &back, there_rung, far_ear), (&back, &there, back_rung, near_ear)]
    {
        let (lane, other) = (lane.clone(), other.clone());
        carriers.add(rt.spawn("line", move || carry(&lane, &other, &rung, &ear))?);
    }
    let near = End { out: there.clone(), back: back.clone() };
    let far = End { out: back.clone(), back: there.clone() };
    Ok((Box::new(near), Box::new(far), Line { there, back }))
}

fn carry(lane: &Lane, other: &Lane, rung: &Receiver<()>, ear: &Ear) {
    let code = loop {
        match lane.load(rung) {
            Load::Frames(frames) => {
                for frame in frames {
                    if !ear.hear(Heard::Frame(frame)) {
                        other.break_off();
                        return;
                    }
                    // A cut loses what is on its way, also in the middle of a burst.
                    if lane.state.lock().broken {
                        break;
                    }
                }
            }
            Load::Closing(code) => break code,
            Load::Broken => break BROKEN,
        }
    };
    // What is on its way in the other direction still arrives, unless the line was cut.
    other.change(|state| {
        state.closing.get_or_insert(BROKEN);
    });
    ear.hear(Heard::Closed { code });
}

// ---- over anything that reads and writes ----

/// The largest message a stream link lets in.
const MESSAGE_MAX: usize = 16 << 20;

/// A link over a stream: four bytes of length, big-endian, then the message. `shut` must make a blocked read
/// and a blocked write return, as `TcpStream::shutdown` does.
///
/// # Errors
/// When the system has no thread to give.
pub fn stream(
    rt: &Rt,
    carriers: &Carriers,
    reader: impl Read + Send + 'static,
    writer: impl Write + Send + 'static,
    shut: impl Fn() + Send + Sync + 'static,
    ear: Ear,
) -> crate::Result<Box<dyn Bearer>> {
    let (out, out_rung) = Lane::new(rt);
    let (back, back_rung) = Lane::new(rt);
    let shut = Arc::new(shut);
    let (lane, hold, close) = (out.clone(), back.clone(), shut.clone());
    carriers.add(rt.spawn("link-out", move || {
        write_all(&lane, &out_rung, writer);
        // The reader is blocked in the socket or held back: both end here.
        close();
        hold.break_off();
    })?);
    let (lane, hold) = (out.clone(), back.clone());
    carriers.add(rt.spawn("link-in", move || {
        read_all(&hold, &back_rung, reader, &ear);
        lane.break_off();
        shut();
        ear.hear(Heard::Closed { code: BROKEN });
    })?);
    Ok(Box::new(End { out, back }))
}

fn write_all(lane: &Lane, rung: &Receiver<()>, mut writer: impl Write) {
    // Small messages leave together; a large one does not wait to be copied.
    let mut batch = Vec::new();
    loop {
        let written = match lane.load(rung) {
            Load::Frames(frames) => frames.iter().try_for_each(|frame| {
                batch.extend_from_slice(&(frame.len() as u32).to_be_bytes());
                batch.extend_from_slice(frame);
                if batch.len() < 64 << 10 { Ok(()) } else { flush(&mut writer, &mut batch) }
            }),
            Load::Closing(_) | Load::Broken => return,
        };
        if written.and_then(|()| flush(&mut writer, &mut batch)).is_err() {
            return;
        }
    }
}

fn flush(writer: &mut impl Write, batch: &mut Vec<u8>) -> io::Result<()> {
    writer.write_all(batch)?;
    writer.flush()?;
    batch.clear();
    batch.shrink_to(128 << 10);
    Ok(())
}

fn read_all(hold: &Lane, rung: &Receiver<()>, reader: impl Read, ear: &Ear) {
    let mut reader = io::BufReader::with_capacity(16 << 10, reader);
    loop {
        let mut len = [0; 4];
        if reader.read_exact(&mut len).is_err() {
            return;
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > MESSAGE_MAX {
            ear.hear(Heard::Garbage("the message is over the limit of bytes"));
            return;
        }
        let mut frame = Vec::new();
        // Memory is taken for what arrives, not for what a length claims.
        match (&mut reader).take(len as u64).read_to_end(&mut frame) {
            Ok(read) if read == len => {}
            _ => return,
        }
        // Held back: woken by the bell when it goes on, or when the link breaks.
        loop {
            let state = hold.state.lock();
            if state.broken {
                return;
            }
            if !state.paused {
                break;
            }
            drop(state);
            if rung.recv().is_err() {
                return;
            }
        }
        if !ear.hear(Heard::Frame(frame.into())) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn ear(rt: &Rt) -> (Ear, Receiver<Heard>) {
        let (tx, rx) = rt.channel("heard", 64);
        (Ear::new(move |heard| tx.send(heard).is_ok()), rx)
    }

    fn next(rt: &Rt, heard: &Receiver<Heard>) -> Heard {
        heard.recv_deadline(rt.now() + Duration::from_secs(10)).expect("something is heard in time")
    }

    #[test]
    fn what_one_end_sends_the_other_hears_in_order_until_it_closes() {
        let rt = Rt::real();
        let carriers = Carriers::default();
        let ((near_ear, near_heard), (far_ear, far_heard)) = (ear(&rt), ear(&rt));
        let (near, far, _line) = pair(&rt, &carriers, near_ear, far_ear).unwrap();
        for n in 0..3u8 {
            near.send(vec![n].into());
        }
        near.close(4000, "bye");
        for n in 0..3u8 {
            assert_eq!(next(&rt, &far_heard), Heard::Frame(vec![n].into()));
        }
        assert_eq!(next(&rt, &far_heard), Heard::Closed { code: 4000 });
        assert_eq!(next(&rt, &near_heard), Heard::Closed { code: BROKEN });
        drop((near, far));
    }

    #[test]
    fn a_cut_line_is_lost_to_both_ends() {
        let rt = Rt::real();
        let carriers = Carriers::default();
        let ((near_ear, near_heard), (far_ear, far_heard)) = (ear(&rt), ear(&rt));
        let (_near, _far, line) = pair(&rt, &carriers, near_ear, far_ear).unwrap();
        line.cut();
        assert_eq!(next(&rt, &near_heard), Heard::Closed { code: BROKEN });
        assert_eq!(next(&rt, &far_heard), Heard::Closed { code: BROKEN });
    }

    #[test]
    fn messages_keep_their_bounds_over_a_stream() {
        let rt = Rt::real();
        let carriers = Carriers::default();
        let (one, other) = UnixStream::pair().unwrap();
        let link = |socket: UnixStream, ear: Ear| {
            let (reader, writer) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
            let shut = move || drop(socket.shutdown(std::net::Shutdown::Both));
            stream(&rt, &carriers, reader, writer, shut, ear).unwrap()
        };
        let ((one_ear, one_heard), (other_ear, other_heard)) = (ear(&rt), ear(&rt));
        let (one, other) = (link(one, one_ear), link(other, other_ear));
        for len in [0, 1, 70_000] {
            one.send(vec![7; len].into());
        }
        other.send(Bytes::from_static(b"back"));
        for len in [0, 1, 70_000] {
            assert_eq!(next(&rt, &other_heard), Heard::Frame(vec![7; len].into()));
        }
        assert_eq!(next(&rt, &one_heard), Heard::Frame(Bytes::from_static(b"back")));
        one.close(4000, "bye");
        assert_eq!(next(&rt, &other_heard), Heard::Closed { code: BROKEN });
        assert_eq!(next(&rt, &one_heard), Heard::Closed { code: BROKEN });
        drop((one, other));
    }
}
