//! Carriers of other replicas' pipes: bytes go through as they are, both ways, on the thread that has them.
//!
//! Nothing of the pipe is known here, and nothing is kept but what one write did not take: a peer that does
//! not read stops the other one from being read. Each end notices by itself when the other is gone; one
//! that was silent for longer than both would be is closed.

use super::*;

/// What is passed at once.
const PIECE: usize = 64 * 1024;
/// Both ends ask after 15 s of silence and give up 10 s later: nobody is there any more.
const SILENT_FOR: Duration = Duration::from_secs(120);

/// A client's carrier and the connection to the replica that has its pipe.
pub(super) struct Splice {
    pub(super) serial: u64,
    near: Hand,
    far: Hand,
    /// What went in and has not gone out.
    up: Vec<u8>,
    down: Vec<u8>,
    moved_at: Moment,
    looks_at: Moment,
}

struct Hand {
    carrier: Carrier,
    readable: bool,
    writable: bool,
    ended: bool,
}

impl Hand {
    fn new(carrier: Carrier) -> Hand {
        Hand { carrier, readable: true, writable: true, ended: false }
    }

    /// Whether an error only means "later".
    fn is_later(error: &io::Error) -> bool {
        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
    }
}

/// One direction has come to its end.
struct Ended;

/// Passes what there is, as far as it goes. Gives how much went in or out.
fn pass(from: &mut Hand, to: &mut Hand, kept: &mut Vec<u8>, buffer: &mut [u8]) -> Result<usize, Ended> {
    let mut moved = 0;
    while to.writable && (!kept.is_empty() || to.carrier.has_more()) {
        let written = match kept.is_empty() {
            true => to.carrier.flush().map(|()| 0),
            false => to.carrier.write(&[IoSlice::new(kept)]),
        };
        match written {
            Ok(count) if count == kept.len() => *kept = Vec::new(),
            Ok(count) => drop(kept.drain(..count)),
            Err(error) if Hand::is_later(&error) => to.writable = error.kind() != io::ErrorKind::WouldBlock,
            Err(_) => return Err(Ended),
        }
        moved += 1;
    }
    if kept.is_empty() && from.readable && !from.ended && to.writable {
        match from.carrier.read(&mut buffer[..PIECE]) {
            Ok(0) => from.ended = true,
            Ok(count) => {
                moved += count;
                // What does not go now waits until it can.
                let written = match to.carrier.write(&[IoSlice::new(&buffer[..count])]) {
                    Ok(written) => written,
                    Err(error) if Hand::is_later(&error) => {
                        to.writable = error.kind() != io::ErrorKind::WouldBlock;
                        0
                    }
                    Err(_) => return Err(Ended),
                };
                kept.extend_from_slice(&buffer[written..count]);
            }
            Err(error) if Hand::is_later(&error) => from.readable = error.kind() != io::ErrorKind::WouldBlock,
            Err(_) => from.ended = true,
        }
    }
    if from.ended && kept.is_empty() && !to.carrier.has_more() {
        return Err(Ended);
    }
    Ok(moved)
}

impl Splice {
    pub(super) fn ready(&mut self, is_far: bool, readable: bool, writable: bool) {
        let hand = if is_far { &mut self.far } else { &mut self.near };
        hand.readable |= readable;
        hand.writable |= writable;
    }
}

impl Shard {
    /// Another replica has the pipe: a thread connects to it, and repeats the client's first words.
    pub(super) fn carry_on(
        &mut self,
        now: Moment,
        slot: usize,
        mut greeter: Box<Greeter>,
        hello: Hello,
        dialer: Arc<dyn Dialer>,
        rest: &[u8],
    ) {
        let cancel = self.rt.cancel_token();
        greeter.deadline = now + CONNECT_WAIT + HANDSHAKE_WAIT;
        greeter.stage = Stage::Reaching(cancel.clone());
        let serial = greeter.serial;
        self.alarms.push(Reverse((greeter.deadline, slot, serial)));
        self.slots[slot] = Slot::Greeter(greeter);
        let mut words = Vec::new();
        // The user's token stays here; a ticket says who it is.
        encode_greeting(&Greeting::Hello(Hello { auth: None, ..hello }), &mut words);
        words.extend_from_slice(rest);
        let (rt, port) = (self.rt.clone(), self.port.clone());
        self.start(Box::new(move || {
            let result = Patience::new(&rt, rt.now() + CONNECT_WAIT, &cancel)
                .map_err(|error| DialError::io("preparing to connect", &error))
                .and_then(|mut patience| dial::reach(&dialer, &mut patience, &words));
            port.send(Order::Reached { slot, serial, result: result.map(Box::new) });
        }));
    }

    pub(super) fn reached(
        &mut self,
        now: Moment,
        slot: usize,
        serial: u64,
        result: Result<Box<Carrier>, DialError>,
    ) {
        let current =
            matches!(self.slots.get(slot), Some(Slot::Greeter(greeter)) if greeter.serial == serial);
        if !current {
            // The client has left; the connection is closed by being dropped.
            return;
        }
        let Slot::Greeter(greeter) = std::mem::replace(&mut self.slots[slot], Slot::Free) else {
            unreachable!("looked at above")
        };
        let watched = result.and_then(|mut far| {
            let watched = far.socket().register(&self.registry, Token(slot * 2 + 1));
            watched.map_err(|error| DialError::io("watching the connection", &error))?;
            Ok(far)
        });
        match watched {
            Ok(far) => {
                self.shared.figures.carried_on(true);
                let looks_at = now + SILENT_FOR;
                self.alarms.push(Reverse((looks_at, slot, serial)));
                self.slots[slot] = Slot::Splice(Box::new(Splice {
                    serial,
                    near: Hand::new(greeter.carrier),
                    far: Hand::new(*far),
                    up: Vec::new(),
                    down: Vec::new(),
                    moved_at: now,
                    looks_at,
                }));
                self.again.push(slot);
            }
            Err(error) => self.not_reached(slot, greeter, &error.end.reason),
        }
    }

    /// The client comes again: by then the replica is back, or known to be gone.
    pub(super) fn not_reached(&mut self, slot: usize, greeter: Box<Greeter>, why: &str) {
        self.shared.figures.carried_on(false);
        let text = format!("another replica has the pipe, and cannot be reached: {why}");
        let end = End::new(Ending::TargetUnreachable, text);
        self.refuse(slot, greeter, end, Some(Duration::from_millis(500)));
    }

    pub(super) fn turn_splice(&mut self, now: Moment, slot: usize, mut splice: Box<Splice>) {
        let mut moved = 0;
        splice.near.carrier.lend(&mut self.spare);
        let over = loop {
            let Splice { near, far, up, down, .. } = &mut *splice;
            let passed = pass(near, far, up, &mut self.buffer)
                .and_then(|up| Ok(up + pass(far, near, down, &mut self.buffer)?));
            match passed {
                Ok(0) => break false,
                Ok(count) => moved += count,
                Err(Ended) => break true,
            }
            if moved >= TURN {
                self.again.push(slot);
                break false;
            }
        };
        splice.near.carrier.take_back(&mut self.spare);
        splice.far.carrier.take_back(&mut self.spare);
        if moved > 0 {
            splice.moved_at = now;
        }
        let silent_at = splice.moved_at + SILENT_FOR;
        if over || now >= silent_at {
            for hand in [&mut splice.near, &mut splice.far] {
                hand.carrier.socket().deregister(&self.registry);
                hand.carrier.close();
            }
            self.free.push(slot);
            return;
        }
        if now >= splice.looks_at {
            splice.looks_at = silent_at;
            self.alarms.push(Reverse((silent_at, slot, splice.serial)));
        }
        self.slots[slot] = Slot::Splice(splice);
    }
}
