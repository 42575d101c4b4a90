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
mod inbound;
mod liveness;
mod outbound;
pub mod proof;
mod violation;

pub use self::control::{Control, GoAway};
pub use self::end::{End, Ending};
pub use self::id::PipeId;
use self::liveness::Alarm;
pub use self::liveness::Liveness;
pub use self::violation::Violation;
use super::replay::{Pool, Replay};
use super::time::Moment;
use super::timers::Timers;
use std::time::Duration;

/// The most bytes one DATA frame carries.
pub const DATA_MAX: usize = 256 * 1024;
/// The smallest window a pipe may have.
pub const WINDOW_MIN: u64 = 64 * 1024;
/// The largest window a pipe may have.
pub const WINDOW_MAX: u64 = 256 * 1024 * 1024;
/// The window where nothing else was asked for: 560 Mbit/s at a round trip of 120 ms.
pub const WINDOW: u64 = 8 * 1024 * 1024;

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

    // ---- this side ends it

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

    // ---- carriers

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

    /// Everything besides bytes that a carrier brings.
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

    /// Whether this side has given it up: the peer only has to hear of it.
    pub fn is_aborted(&self) -> bool {
        matches!(self.phase, Phase::Ending(_)) && !self.is_done()
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
