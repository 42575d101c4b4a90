//! One end of a byte pipe that outlives its connections.
//!
//! Bytes are numbered from a start (0 unless a test wants otherwise), and the end of a direction
//! takes one number after its last byte, so that a half-close is acknowledged and replayed like a
//! byte. The connection that bears the pipe now is its *carrier*; each has an *epoch*, and whatever
//! an older one still says is ignored here, in one place.
//!
//! How to drive one: give it what the local side writes ([`write`](Pipe::write), or
//! [`spaces`](Pipe::spaces) and [`commit`](Pipe::commit) in place), what the carrier brings
//! ([`data`](Pipe::data), [`control`](Pipe::control)), tell it what the local side took
//! ([`took`](Pipe::took)); then put on the carrier what [`next`](Pipe::next) says until it says
//! nothing, and call [`alarm`](Pipe::alarm) at [`deadline`](Pipe::deadline). When a carrier is lost
//! call [`detach`](Pipe::detach); with a new one that passed the handshake, [`attach`](Pipe::attach).
//!
//! Invariant: `replay` holds exactly the bytes `acked..end`; a byte leaves it only because the peer
//! said it has it, never because it was written to a socket. `acked <= sent <= high <= end` (plus
//! one for the end of the direction). `inbound` holds what was received and not taken, at most the
//! window: `taken <= recv <= limit told`.
//!
//! What is absent: sockets, threads, the handshake (see `hello`), and the decision when to dial.

mod control;
mod end;
pub mod hello;
mod id;
pub mod proof;
mod violation;

pub use self::control::{Control, GoAway};
pub use self::end::{End, Ending};
pub use self::id::PipeId;
pub use self::violation::Violation;
use super::replay::{Pool, Replay, Slices};
use super::time::Moment;
use super::timers::{Key, Timers};
use std::time::Duration;

/// The most bytes one DATA frame carries.
pub const DATA_MAX: usize = 256 * 1024;
/// The smallest window a pipe may have.
pub const WINDOW_MIN: u64 = 64 * 1024;
/// The largest window a pipe may have.
pub const WINDOW_MAX: u64 = 256 * 1024 * 1024;
/// The window where nothing else was asked for: 560 Mbit/s at a round trip of 120 ms.
pub const WINDOW: u64 = 8 * 1024 * 1024;

/// Acknowledge at the latest after this many new bytes...
const ACK_BYTES: u64 = 1024 * 1024;
/// ...or after this long.
const ACK_WAIT: Duration = Duration::from_millis(25);

/// How soon a dead carrier is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Ask after hearing nothing for this long.
    pub idle: Duration,
    /// Dead when the question stays unanswered for this long.
    pub idle_dead: Duration,
    /// The same while something is not acknowledged, which is when it hurts.
    pub busy: Duration,
    /// The same while something is not acknowledged.
    pub busy_dead: Duration,
}

impl Liveness {
    /// 15 s and 10 s; 3 s and 3 s with unacknowledged bytes. A balancer that reaps idle links does
    /// so after 30 s at the earliest.
    pub const NORMAL: Liveness = Liveness {
        idle: Duration::from_secs(15),
        idle_dead: Duration::from_secs(10),
        busy: Duration::from_secs(3),
        busy_dead: Duration::from_secs(3),
    };
    /// For somebody who waits in front of a screen: 2 s and 3 s.
    pub const FAST: Liveness = Liveness {
        idle: Duration::from_secs(2),
        idle_dead: Duration::from_secs(3),
        busy: Duration::from_secs(1),
        busy_dead: Duration::from_secs(2),
    };
}

/// Which end of the pipe this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Dials, and says the last word.
    Client,
    /// Is dialled.
    Server,
}

/// How one end behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Which end it is.
    pub side: Side,
    /// How much may lie between the two ends in one direction.
    pub window: u64,
    /// How soon a dead carrier is noticed.
    pub liveness: Liveness,
    /// The number of the first byte, in both directions. 0, except in tests of large numbers.
    pub start: u64,
}

impl Settings {
    /// The defaults of one side.
    pub fn new(side: Side) -> Settings {
        Settings { side, window: WINDOW, liveness: Liveness::NORMAL, start: 0 }
    }
}

/// What to put on the carrier next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// A frame without bytes.
    Control(Control),
    /// A DATA frame with `len` bytes, which [`Pipe::bytes`] gives.
    Data {
        /// The number of the first byte.
        off: u64,
        /// How many.
        len: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    /// Something received was not acknowledged yet.
    Ack,
    /// The carrier may have been silent for long enough to ask.
    Probe,
    /// The answer may be overdue.
    Dead,
}

impl Key<3> for Alarm {
    const ALL: [Alarm; 3] = [Alarm::Ack, Alarm::Probe, Alarm::Dead];
    fn index(self) -> usize {
        self as usize
    }
}

/// Whether a carrier bears the pipe.
#[derive(Clone, Debug)]
enum Link {
    /// None; nothing can be sent.
    Detached,
    /// This one, and what it owes and is owed.
    Attached(Carrier),
}

#[derive(Clone, Debug)]
struct Carrier {
    epoch: u64,
    /// When the last byte came from it.
    heard: Moment,
    /// What to say besides bytes, ahead of them.
    ack_due: bool,
    ping_due: Option<u64>,
    pong_due: Option<u64>,
    fin_sent: bool,
    /// A RESET went out; nothing may follow it.
    reset_sent: bool,
    go_away_due: Option<GoAway>,
    /// The PING that has no answer yet, and when it went out.
    asked: Option<(u64, Moment)>,
    /// Since when an answer is waited for. Whatever is heard later is life.
    probed: Moment,
    /// When it began, until something is heard: a client's first frame answers the welcome.
    welcomed: Option<Moment>,
}

/// How far the pipe is with ending.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Bytes may flow.
    Open,
    /// This side broke off, or said its last word; the peer has to hear it.
    Ending(End),
    /// Over for both; every later input is ignored.
    Over(End),
}

/// One end of a pipe.
#[derive(Debug)]
pub struct Pipe {
    settings: Settings,
    phase: Phase,
    link: Link,
    /// The newest epoch that was ever attached.
    epoch: u64,

    // What this side sends.
    replay: Replay,
    /// The next byte to put on this carrier.
    sent: u64,
    /// The furthest `sent` ever was, on any carrier.
    high: u64,
    /// The peer allows bytes below this.
    limit: u64,
    finished: bool,
    /// This direction ends with a RESET instead of a FIN.
    broken: Option<End>,
    /// Whether any carrier ever bore our FIN.
    fin_high: bool,
    fin_acked: bool,

    // What this side receives.
    inbound: Replay,
    peer_fin: bool,
    /// What the last ACK on any carrier said.
    told: Told,

    timers: Timers<Alarm, 3>,
    next_token: u64,
    round_trip: Option<Duration>,
    /// Whether `round_trip` was measured since somebody last asked.
    trip_is_new: bool,
    go_away: Option<GoAway>,
    counts: Counts,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    recv: u64,
    limit: u64,
}

/// What a pipe did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes sent again after a resume.
    pub replayed: u64,
    /// Bytes that came although they were here already.
    pub duplicates: u64,
    /// How often a carrier took over after the first.
    pub resumes: u64,
}

impl Pipe {
    /// A pipe that no carrier bears yet. What is written waits for the first one.
    pub fn new(settings: Settings) -> Pipe {
        let window = settings.window.clamp(WINDOW_MIN, WINDOW_MAX);
        let settings = Settings { window, ..settings };
        let start = settings.start;
        Pipe {
            settings,
            phase: Phase::Open,
            link: Link::Detached,
            epoch: 0,
            replay: Replay::new(start, window),
            sent: start,
            high: start,
            limit: start,
            finished: false,
            broken: None,
            fin_high: false,
            fin_acked: false,
            inbound: Replay::new(start, window),
            peer_fin: false,
            told: Told { recv: start, limit: start },
            timers: Timers::new(),
            next_token: 1,
            round_trip: None,
            trip_is_new: false,
            go_away: None,
            counts: Counts::default(),
        }
    }

    // ---- the local side writes

    /// Takes as many of `bytes` as there is room for. Takes none after [`finish`](Pipe::finish), or
    /// when the pipe is over.
    #[must_use = "what was not taken is still the caller's"]
    pub fn write(&mut self, bytes: &[u8], pool: &mut Pool) -> usize {
        if self.accepts() { self.replay.push(bytes, pool) } else { 0 }
    }

    /// Takes bytes out of the front of `from`, as many as there is room for; gives how many.
    #[must_use = "what was not taken is still there"]
    pub fn write_from(&mut self, from: &mut Replay, pool: &mut Pool) -> u64 {
        if self.accepts() { self.replay.pull(from, pool) } else { 0 }
    }

    /// Room for the next `max` bytes in place, or for fewer; nothing when there is none.
    pub fn spaces(&mut self, max: usize, pool: &mut Pool) -> impl Iterator<Item = &mut [u8]> {
        let max = if self.accepts() { max } else { 0 };
        self.replay.spaces(max, pool)
    }

    /// The first `count` bytes of [`spaces`](Pipe::spaces) are written now.
    pub fn commit(&mut self, count: usize, pool: &mut Pool) {
        self.replay.commit(count, pool);
    }

    /// How much [`write`](Pipe::write) would take.
    pub fn room(&self) -> u64 {
        if self.accepts() { self.replay.room() } else { 0 }
    }

    /// This direction ends after what was written so far. The other one goes on.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// The local side broke off, after what was written so far: the peer gets those bytes, and then
    /// the reason. What the peer still sends is nobody's.
    pub fn break_off(&mut self, end: End, pool: &mut Pool) {
        if self.phase == Phase::Open && self.broken.is_none() {
            self.finished = true;
            self.broken = Some(end);
            self.inbound.clear(pool);
        }
    }

    /// Breaks off at once: bytes that wait are dropped, and the peer is told why, on the next carrier if
    /// there is none now.
    pub fn abort(&mut self, end: End, pool: &mut Pool) {
        if self.phase == Phase::Open {
            self.phase = Phase::Ending(end);
            if self.attached().is_none() {
                self.replay.clear(pool);
            }
            // Otherwise the rest of a frame whose head is on the carrier still comes from there; the next
            // carrier, or the end, lets go of it.
            self.inbound.clear(pool);
            self.timers.stop(Alarm::Ack);
        }
    }

    /// Ends it here and now, without a word to the peer: it cannot be reached, or need not know.
    pub fn kill(&mut self, end: End, pool: &mut Pool) {
        if !matches!(self.phase, Phase::Over(_)) {
            self.over(end, pool);
        }
    }

    fn accepts(&self) -> bool {
        self.phase == Phase::Open && !self.finished
    }

    // ---- the local side reads

    /// What was received and not taken yet.
    pub fn readable(&self, max: usize) -> Slices<'_> {
        self.inbound.since(self.inbound.acked(), max).expect("the oldest byte is there")
    }

    /// How many bytes were received and not taken yet.
    pub fn unread(&self) -> u64 {
        self.inbound.len()
    }

    /// The local side took `count` received bytes.
    pub fn took(&mut self, now: Moment, count: u64, pool: &mut Pool) {
        if count == 0 {
            return;
        }
        let upto = self.inbound.acked() + count;
        self.inbound.ack(upto, pool).expect("no more is taken than was received");
        self.owe_ack(now);
    }

    /// The local side takes received bytes into `to`, as many as it has room for; gives how many.
    pub fn give_to(&mut self, now: Moment, to: &mut Replay, pool: &mut Pool) -> u64 {
        let count = to.pull(&mut self.inbound, pool);
        if count > 0 {
            self.owe_ack(now);
        }
        count
    }

    /// Whether the peer's direction has ended and everything before was taken.
    pub fn at_end(&self) -> bool {
        self.peer_fin && self.inbound.is_empty()
    }

    // ---- carriers

    /// What this side has: everything below. Counts the end of the peer's direction as one. It is
    /// final for a carrier only once nothing is accepted from the one before.
    pub fn received(&self) -> u64 {
        self.inbound.end() + u64::from(self.peer_fin)
    }

    /// Whether [`received`](Pipe::received) counts the end of the peer's direction.
    pub fn peer_finished(&self) -> bool {
        self.peer_fin
    }

    /// Up to where the peer may send now.
    pub fn allows(&self) -> u64 {
        self.inbound.acked().saturating_add(self.settings.window).max(self.told.limit)
    }

    /// The newest epoch there was.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The epoch of the carrier that bears the pipe now.
    pub fn attached(&self) -> Option<u64> {
        match &self.link {
            Link::Attached(carrier) => Some(carrier.epoch),
            Link::Detached => None,
        }
    }

    /// Checks what the peer says it has received, without a change: this goes before anything else
    /// in a takeover, so that a claim that cannot be true does not cost the live carrier.
    pub fn check_peer(&self, peer_recv: u64) -> Result<(), Violation> {
        if self.phase != Phase::Open {
            return Ok(());
        }
        let acked = self.replay.acked() + u64::from(self.fin_acked);
        if peer_recv < acked {
            return Err(Violation::Lost { peer_has: peer_recv, oldest: acked });
        }
        if peer_recv > self.high_mark() {
            return Err(Violation::FromTheFuture { peer_has: peer_recv, sent: self.high_mark() });
        }
        Ok(())
    }

    /// A carrier passed the handshake and bears the pipe from here on; the one before is nothing
    /// any more. `peer_recv` and `peer_limit` are what the peer said in it. Gives how many bytes go out a second time.
    pub fn attach(
        &mut self,
        now: Moment,
        epoch: u64,
        peer_recv: u64,
        peer_limit: u64,
        pool: &mut Pool,
    ) -> Result<u64, Violation> {
        debug_assert!(epoch > self.epoch, "a carrier needs an epoch above {}, not {epoch}", self.epoch);
        self.check_peer(peer_recv)?;
        if self.epoch > 0 {
            self.counts.resumes += 1;
        }
        let replayed = match self.phase {
            Phase::Open => {
                self.peer_has(peer_recv, pool);
                let replayed = self.high - self.replay.acked();
                self.sent = self.replay.acked();
                replayed
            }
            Phase::Ending(_) | Phase::Over(_) => {
                self.replay.clear(pool);
                0
            }
        };
        self.counts.replayed += replayed;
        self.limit = self.limit.max(peer_limit);
        self.epoch = epoch;
        self.link = Link::Attached(Carrier {
            epoch,
            heard: now,
            ack_due: true,
            ping_due: None,
            pong_due: None,
            fin_sent: self.fin_acked,
            reset_sent: false,
            go_away_due: None,
            asked: None,
            probed: now,
            welcomed: (self.settings.side == Side::Server).then_some(now),
        });
        self.timers.stop_all();
        self.timers.set(Alarm::Probe, now + self.quiet_for());
        Ok(replayed)
    }

    /// The carrier with that epoch is gone. Gives whether it was the one that bore the pipe.
    pub fn detach(&mut self, epoch: u64) -> bool {
        let current = self.attached() == Some(epoch);
        if current {
            self.link = Link::Detached;
            self.timers.stop_all();
        }
        current
    }

    // ---- what a carrier brings

    /// Bytes arrived, or a piece of a frame: life.
    pub fn heard(&mut self, now: Moment) {
        if let Link::Attached(carrier) = &mut self.link {
            carrier.heard = now;
            if let Some(welcomed) = carrier.welcomed.take() {
                self.round_trip = Some(now.since(welcomed));
                self.trip_is_new = true;
            }
        }
    }

    /// When the carrier that bears the pipe was last heard.
    pub fn heard_at(&self) -> Option<Moment> {
        match &self.link {
            Link::Attached(carrier) => Some(carrier.heard),
            Link::Detached => None,
        }
    }

    /// Bytes of a DATA frame, or the piece of it that is here. Gives those that are new; the caller
    /// must deliver them in order and call [`took`](Pipe::took), or [`hold`](Pipe::hold) them: they
    /// count as received. Bytes from any but the newest carrier are not new.
    pub fn data<'a>(&mut self, epoch: u64, off: u64, bytes: &'a [u8]) -> Result<&'a [u8], Violation> {
        self.data_behind(0, epoch, off, bytes)
    }

    /// The same behind `pending` fresh bytes that are neither held nor passed yet.
    pub fn data_behind<'a>(
        &mut self,
        pending: u64,
        epoch: u64,
        off: u64,
        bytes: &'a [u8],
    ) -> Result<&'a [u8], Violation> {
        if self.attached() != Some(epoch) || self.phase != Phase::Open {
            return Ok(&[]);
        }
        let end = off.checked_add(bytes.len() as u64).ok_or(Violation::Overflow)?;
        let expected = self.inbound.end() + pending;
        if off > expected {
            return Err(Violation::Gap { expected, came: off });
        }
        if end > self.told.limit {
            return Err(Violation::OverLimit { limit: self.told.limit, came: end });
        }
        let known = (expected - off).min(bytes.len() as u64);
        self.counts.duplicates += known;
        let fresh = &bytes[known as usize..];
        if self.peer_fin && !fresh.is_empty() {
            return Err(Violation::AfterFin { fin: expected, came: end });
        }
        Ok(fresh)
    }

    /// Room for the bytes that come next on a carrier, from `off` on, so that they need not be copied: read
    /// into it, then say how many [`arrived`](Pipe::arrived). At least `min` bytes and at most `max`; nothing
    /// where such bytes would not be new, allowed and for somebody, in one piece: [`data`](Pipe::data) decides
    /// about those.
    pub fn arriving(
        &mut self,
        epoch: u64,
        off: u64,
        (min, max): (usize, usize),
        pool: &mut Pool,
    ) -> Option<&mut [u8]> {
        if !self.expects(epoch, off) {
            return None;
        }
        let allowed = usize::try_from(self.told.limit.saturating_sub(off)).unwrap_or(usize::MAX);
        let len = self.inbound.space(pool).len().min(allowed).min(max);
        if len < min {
            self.inbound.tidy(pool);
            return None;
        }
        Some(&mut self.inbound.space(pool)[..len])
    }

    /// Whether `count` bytes that come next on a carrier, from `off` on, may go to the local side without being
    /// kept: tell it with [`passed`](Pipe::passed).
    pub fn may_pass(&self, epoch: u64, off: u64, count: usize) -> bool {
        let allowed = self.told.limit.saturating_sub(off);
        self.expects(epoch, off) && self.inbound.is_empty() && count as u64 <= allowed
    }

    /// Whether bytes from `off` on would be new and for somebody.
    fn expects(&self, epoch: u64, off: u64) -> bool {
        let open = self.attached() == Some(epoch) && self.phase == Phase::Open;
        open && self.broken.is_none() && !self.peer_fin && off == self.inbound.end()
    }

    /// The first `count` bytes of what [`arriving`](Pipe::arriving) gave have come.
    pub fn arrived(&mut self, now: Moment, count: usize, pool: &mut Pool) {
        self.inbound.commit(count, pool);
        if count > 0 {
            self.owe_ack(now);
        }
    }

    /// Keeps fresh bytes for the local side, which takes them when it can.
    pub fn hold(&mut self, now: Moment, fresh: &[u8], pool: &mut Pool) {
        if self.phase != Phase::Open || fresh.is_empty() {
            return;
        }
        if self.broken.is_some() {
            return self.passed(now, fresh.len(), pool);
        }
        let taken = self.inbound.push(fresh, pool);
        debug_assert_eq!(taken, fresh.len(), "what is within the limit fits the window");
        self.owe_ack(now);
    }

    /// Fresh bytes went to the local side without being kept.
    pub fn passed(&mut self, now: Moment, count: usize, pool: &mut Pool) {
        self.inbound.skip(count as u64, pool);
        self.owe_ack(now);
    }

    /// Everything else that travels on a carrier.
    pub fn control(
        &mut self,
        now: Moment,
        epoch: u64,
        control: Control,
        pool: &mut Pool,
    ) -> Result<(), Violation> {
        if self.attached() != Some(epoch) || matches!(self.phase, Phase::Over(_)) {
            return Ok(());
        }
        match (control, &self.phase) {
            (Control::Reset(end), phase) => {
                let end = self.last_word(end, phase);
                self.over(end, pool);
            }
            (Control::Ack { recv, limit }, Phase::Open) => self.acked(recv, limit, pool)?,
            (Control::Pong { token, recv, limit }, Phase::Open) => {
                self.acked(recv, limit, pool)?;
                self.answered(now, token);
            }
            (Control::Fin { off }, Phase::Open) => self.peer_ends(off)?,
            (Control::Ping { token }, _) => {
                if let Link::Attached(carrier) = &mut self.link {
                    // Only the newest question matters to whoever asks.
                    carrier.pong_due = Some(token);
                }
            }
            (Control::GoAway(notice), Phase::Open) => self.go_away = Some(notice),
            // This side has broken off; what the peer still says of bytes has no meaning.
            (_, Phase::Ending(_) | Phase::Over(_)) => {}
        }
        self.say_goodbye();
        Ok(())
    }

    fn acked(&mut self, recv: u64, limit: u64, pool: &mut Pool) -> Result<(), Violation> {
        let fin_sent = matches!(&self.link, Link::Attached(carrier) if carrier.fin_sent);
        let sent = self.sent + u64::from(fin_sent);
        if recv > sent {
            return Err(Violation::FromTheFuture { peer_has: recv, sent });
        }
        self.peer_has(recv, pool);
        self.limit = self.limit.max(limit);
        Ok(())
    }

    /// The peer has everything below `recv`, which is at most what was sent.
    fn peer_has(&mut self, recv: u64, pool: &mut Pool) {
        let end = self.replay.end();
        self.fin_acked |= self.finished && self.fin_high && recv > end;
        self.replay.ack(recv.min(end), pool).expect("cut to the end");
    }

    fn peer_ends(&mut self, off: u64) -> Result<(), Violation> {
        let expected = self.inbound.end();
        if off > expected {
            return Err(Violation::Gap { expected, came: off });
        }
        if off < expected {
            return Err(Violation::AfterFin { fin: off, came: expected });
        }
        off.checked_add(1).ok_or(Violation::Overflow)?;
        self.peer_fin = true;
        self.ack_at_once();
        Ok(())
    }

    fn answered(&mut self, now: Moment, token: u64) {
        if let Link::Attached(carrier) = &mut self.link
            && let Some((asked, at)) = carrier.asked
            && asked == token
        {
            carrier.asked = None;
            self.round_trip = Some(now.since(at));
            self.trip_is_new = true;
        }
    }

    /// What a RESET from the peer means here. A client whose directions both ended says EOF as its
    /// last word; that, and only that, is a good end for a server that was done as well.
    fn last_word(&self, end: End, phase: &Phase) -> End {
        match phase {
            Phase::Ending(mine) if mine.code != Ending::Eof => mine.clone(),
            Phase::Open if let Some(mine) = &self.broken => mine.clone(),
            _ if end.code == Ending::Eof && !self.is_done() => {
                End::new(Ending::Protocol, "the peer said goodbye before both directions had ended")
            }
            _ => end,
        }
    }

    /// Both directions came to their end and the peer knows: the client says so, once.
    fn say_goodbye(&mut self) {
        let told = self.told.recv == self.received();
        if self.settings.side == Side::Client && self.phase == Phase::Open && self.is_done() && told {
            self.phase = Phase::Ending(End::new(Ending::Eof, ""));
        }
    }

    // ---- what goes on the carrier

    /// What to put on the carrier next; nothing when it is up to the others. Call it only when the
    /// frame before is on its way. DATA carries at most `max` bytes.
    pub fn next(&mut self, now: Moment, max: usize) -> Option<Outgoing> {
        let Link::Attached(carrier) = &mut self.link else { return None };
        if let Some(token) = carrier.pong_due.take() {
            let (recv, limit) = self.tell();
            return Some(Outgoing::Control(Control::Pong { token, recv, limit }));
        }
        if let Some(token) = carrier.ping_due.take() {
            carrier.asked = Some((token, now));
            return Some(Outgoing::Control(Control::Ping { token }));
        }
        match &self.phase {
            Phase::Open => self.next_open(now, max),
            Phase::Ending(end) if !carrier.reset_sent => {
                carrier.reset_sent = true;
                Some(Outgoing::Control(Control::Reset(end.clone())))
            }
            Phase::Ending(_) | Phase::Over(_) => None,
        }
    }

    fn next_open(&mut self, now: Moment, max: usize) -> Option<Outgoing> {
        let len = self.sendable().min(max.min(DATA_MAX) as u64);
        let news = self.told.recv != self.received();
        let Link::Attached(carrier) = &mut self.link else { return None };
        if let Some(notice) = carrier.go_away_due.take() {
            return Some(Outgoing::Control(Control::GoAway(notice)));
        }
        // An ACK rides ahead of bytes that go anyway.
        if carrier.ack_due || (news && len > 0) {
            carrier.ack_due = false;
            let (recv, limit) = self.tell();
            self.say_goodbye();
            return Some(Outgoing::Control(Control::Ack { recv, limit }));
        }
        if len > 0 {
            let off = self.sent;
            self.sent += len;
            self.high = self.high.max(self.sent);
            self.timers.set_by(Alarm::Probe, now + self.settings.liveness.busy);
            return Some(Outgoing::Data { off, len: len as usize });
        }
        if self.sent < self.replay.end() || !self.finished {
            return None;
        }
        if let Some(end) = &self.broken {
            let due = !std::mem::replace(&mut carrier.reset_sent, true);
            return due.then(|| Outgoing::Control(Control::Reset(end.clone())));
        }
        if !carrier.fin_sent {
            carrier.fin_sent = true;
            self.fin_high = true;
            self.timers.set_by(Alarm::Probe, now + self.settings.liveness.busy);
            return Some(Outgoing::Control(Control::Fin { off: self.sent }));
        }
        if self.phase != Phase::Open { self.next(now, max) } else { None }
    }

    /// The bytes of a DATA frame from [`next`](Pipe::next), or the rest of it. The peer may have
    /// acknowledged the start of a frame whose rest is not written yet; the rest is always here.
    pub fn bytes(&self, off: u64, len: usize) -> Slices<'_> {
        self.replay.since(off, len).expect("what is not on the carrier yet cannot be acknowledged")
    }

    /// Whether [`next`](Pipe::next) could have something: cheap enough to ask after every input.
    pub fn wants_to_send(&self) -> bool {
        let Link::Attached(carrier) = &self.link else { return false };
        let asked = carrier.pong_due.is_some() || carrier.ping_due.is_some();
        asked
            || match self.phase {
                Phase::Open => {
                    let said = if self.broken.is_some() { carrier.reset_sent } else { carrier.fin_sent };
                    carrier.ack_due
                        || carrier.go_away_due.is_some()
                        || self.sendable() > 0
                        || (self.finished && !said && self.sent == self.replay.end())
                }
                Phase::Ending(_) => !carrier.reset_sent,
                Phase::Over(_) => false,
            }
    }

    /// How many bytes the peer would take that no DATA frame bears yet.
    pub fn sendable(&self) -> u64 {
        self.limit.min(self.replay.end()).saturating_sub(self.sent)
    }

    /// What an ACK or a handshake says, and remembers as said.
    pub fn tell(&mut self) -> (u64, u64) {
        self.told = Told { recv: self.received(), limit: self.allows() };
        self.timers.stop(Alarm::Ack);
        (self.told.recv, self.told.limit)
    }

    fn ack_at_once(&mut self) {
        if let Link::Attached(carrier) = &mut self.link {
            carrier.ack_due = true;
        }
    }

    /// Something was received or taken: the peer hears of it now, soon, or when it matters.
    fn owe_ack(&mut self, now: Moment) {
        let Link::Attached(carrier) = &mut self.link else { return };
        let step = (self.settings.window / 4).min(ACK_BYTES);
        let fresh = self.inbound.end() - self.told.recv.min(self.inbound.end());
        let allows = self.inbound.acked().saturating_add(self.settings.window);
        let wider = allows.saturating_sub(self.told.limit);
        let starving = self.told.limit - self.inbound.end() < step;
        if fresh >= step || (wider >= step && starving) || (wider >= 2 * step) {
            carrier.ack_due = true;
        } else if fresh > 0 || (wider > 0 && starving) {
            self.timers.set_by(Alarm::Ack, now + ACK_WAIT);
        }
    }

    // ---- time

    /// When to call [`alarm`](Pipe::alarm).
    pub fn deadline(&self) -> Option<Moment> {
        self.timers.next()
    }

    /// Time has passed. Gives the epoch of a carrier that must be taken for dead: close it, and
    /// [`detach`](Pipe::detach).
    pub fn alarm(&mut self, now: Moment) -> Option<u64> {
        while let Some(alarm) = self.timers.due(now) {
            let (quiet, within) = (self.quiet_for(), self.dead_after());
            let Link::Attached(carrier) = &mut self.link else { continue };
            match alarm {
                Alarm::Ack => carrier.ack_due = true,
                // The question is out already; `Dead` sets this again.
                Alarm::Probe if self.timers.get(Alarm::Dead).is_some() => {}
                Alarm::Probe if carrier.heard + quiet > now => {
                    self.timers.set(Alarm::Probe, carrier.heard + quiet)
                }
                Alarm::Probe => self.probe(now, within),
                Alarm::Dead if carrier.heard <= carrier.probed => return Some(carrier.epoch),
                Alarm::Dead => self.timers.set(Alarm::Probe, carrier.heard + quiet),
            }
        }
        None
    }

    /// Asks now, and takes the carrier for dead unless something is heard `within`: for a machine
    /// that just woke from sleep, or whose address changed.
    pub fn probe(&mut self, now: Moment, within: Duration) {
        let Link::Attached(carrier) = &mut self.link else { return };
        carrier.ping_due = Some(self.next_token);
        carrier.probed = now;
        self.next_token += 1;
        self.timers.stop(Alarm::Probe);
        self.timers.set(Alarm::Dead, now + within);
    }

    fn quiet_for(&self) -> Duration {
        if self.is_owed() { self.settings.liveness.busy } else { self.settings.liveness.idle }
    }

    fn dead_after(&self) -> Duration {
        if self.is_owed() { self.settings.liveness.busy_dead } else { self.settings.liveness.idle_dead }
    }

    /// Whether the peer has yet to acknowledge something: what was put on this carrier, or what would be if it had
    /// said that there is room, which may have been lost.
    fn is_owed(&self) -> bool {
        !self.replay.is_empty() || (self.fin_high && !self.fin_acked)
    }

    // ---- how it stands

    /// How the pipe ended, once it is over for both sides.
    pub fn over_with(&self) -> Option<&End> {
        match &self.phase {
            Phase::Over(end) => Some(end),
            _ => None,
        }
    }

    /// How the pipe ends, if this side has broken off or everything is done but the goodbye.
    pub fn ending(&self) -> Option<&End> {
        match &self.phase {
            Phase::Ending(end) | Phase::Over(end) => Some(end),
            Phase::Open => self.broken.as_ref(),
        }
    }

    /// Whether the last word is on the carrier: the peer closes it when it has heard.
    pub fn goodbye_sent(&self) -> bool {
        matches!(&self.link, Link::Attached(carrier) if carrier.reset_sent)
    }

    /// The carrier ended in good order after the last word: the peer has heard it.
    pub fn closed_after_goodbye(&mut self, pool: &mut Pool) {
        if let (false, Some(end)) = (self.over_with().is_some(), self.ending()) {
            self.over(end.clone(), pool);
        }
    }

    /// Whether both directions have ended and everything sent was acknowledged.
    pub fn is_done(&self) -> bool {
        self.fin_acked && self.peer_fin
    }

    /// Whether this direction was ended by this side.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The carrier will go: say so to the peer.
    pub fn go_away(&mut self, notice: GoAway) {
        if let Link::Attached(carrier) = &mut self.link {
            carrier.go_away_due = Some(notice);
        }
    }

    /// The peer's notice that the carrier will go, given once.
    pub fn take_go_away(&mut self) -> Option<GoAway> {
        self.go_away.take()
    }

    /// Changes how much may wait, in both directions. What the peer was allowed stays allowed.
    pub fn set_window(&mut self, now: Moment, window: u64) {
        self.settings.window = window.clamp(WINDOW_MIN, WINDOW_MAX);
        self.replay.set_bound(self.settings.window);
        // Bytes within the old permission still have to fit.
        let allowed = self.told.limit - self.inbound.acked();
        self.inbound.set_bound(self.settings.window.max(allowed));
        self.owe_ack(now);
    }

    /// How much may wait in one direction.
    pub fn window(&self) -> u64 {
        self.settings.window
    }

    /// How many bytes wait, in both directions.
    pub fn buffered(&self) -> u64 {
        self.replay.len() + self.inbound.len()
    }

    /// The bytes this side has written, and those that were acknowledged.
    pub fn written(&self) -> (u64, u64) {
        (self.replay.end(), self.replay.acked())
    }

    /// How much memory its buffers take.
    pub fn memory(&self) -> usize {
        self.replay.memory() + self.inbound.memory()
    }

    /// How long the last question took to come back: a PING, or for a server a WELCOME.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// A round trip that was measured since the last call.
    pub fn take_round_trip(&mut self) -> Option<Duration> {
        std::mem::take(&mut self.trip_is_new).then_some(self.round_trip).flatten()
    }

    /// Whether the local side cannot write because everything it may write ahead waits already.
    pub fn is_full(&self) -> bool {
        self.accepts() && self.replay.room() == 0
    }

    /// What it did so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn over(&mut self, end: End, pool: &mut Pool) {
        self.phase = Phase::Over(end);
        self.replay.clear(pool);
        // What was received before stays readable: a reset takes back nothing.
        self.timers.stop_all();
    }

    fn high_mark(&self) -> u64 {
        self.high + u64::from(self.fin_high)
    }
}

#[cfg(test)]
mod tests;
