//! The simulated I/O thread: drives `Links` over connections in memory, round by round, as `wire::poll`
//! drives them over sockets.

use std::any::Any;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use super::{Net, Read, peer};
use crate::rt::{Cancel, Moment, Op, Receiver, Rt, Sender, Thread};
use crate::wire::dial::{Address, Adopted};
use crate::wire::dialer::{judge, request};
use crate::wire::http::ResponseReader;
use crate::wire::links::{Effect, GATHER_MAX, Links};
use crate::wire::order::{Errand, Orders, Port};
use crate::wire::{
    Dial, Doors, Front, Happened, Limits, LinkEvent, LinkId, Owner, Peer, Refused, Speak, Wire,
};

/// What one connection may read in one round.
const READ_BUDGET: usize = 64 * 1024;
/// How long a thread that must stop waits for its links.
const STOP_WAIT: Duration = Duration::from_secs(1);
/// How long an owner whose inbox is full is left alone between two offers.
const OFFER_WAIT: Duration = Duration::from_millis(5);

/// What the node's I/O thread will own.
pub(super) struct Seat {
    port: Arc<Port>,
    orders: Orders,
    pokes: Receiver<()>,
}

/// The way out of a node.
pub(super) struct SimWire {
    net: Net,
    name: String,
    rt: Rt,
    doors: Doors,
    stop: Cancel,
}

impl SimWire {
    pub(super) fn new(
        net: &Net,
        name: &str,
        rt: &Rt,
        poke: Sender<()>,
        pokes: Receiver<()>,
    ) -> (Arc<SimWire>, Seat) {
        // Full means that it is about to look anyway.
        let (port, orders) = Port::new(rt, move || _ = poke.try_send(()));
        let doors = Doors::new(vec![port.clone()]);
        let stop = rt.cancel_token();
        let wire = SimWire { net: net.clone(), name: name.to_owned(), rt: rt.clone(), doors, stop };
        (Arc::new(wire), Seat { port, orders, pokes })
    }
}

impl Wire for SimWire {
    fn dial(&self, dial: Dial) {
        let attempt = Attempt {
            net: self.net.clone(),
            from: self.name.clone(),
            rt: self.rt.clone(),
            doors: self.doors.clone(),
            stop: self.stop.child(),
        };
        match self.rt.spawn("dial", move || attempt.run(dial)) {
            Ok(thread) => thread.detach(),
            Err(error) => log::error!("dial_lost: no thread to dial on: {error}"),
        }
    }

    fn doors(&self) -> &Doors {
        &self.doors
    }
}

/// A connection in memory, seen from one end.
struct Carrier {
    net: Net,
    conn: u64,
    end: usize,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.net.close(self.conn, self.end);
    }
}

/// One dial on a thread of its own.
struct Attempt {
    net: Net,
    from: String,
    rt: Rt,
    doors: Doors,
    stop: Cancel,
}

impl Attempt {
    fn run(self, dial: Dial) {
        let owner = dial.owner.clone();
        match self.connect(dial) {
            Ok(adopted) => self.doors.adopt(adopted),
            Err(refused) => self.tell(&owner, refused),
        }
    }

    fn tell(&self, owner: &Owner, refused: Refused) {
        let what = Happened::Refused(refused);
        let mut batch = vec![LinkEvent { link: LinkId::NONE, tag: owner.tag, what }];
        while let Err(back) = owner.outlet.deliver(batch) {
            if self.stop.is_cancelled() {
                return;
            }
            batch = back;
            self.rt.sleep(OFFER_WAIT);
        }
    }

    fn connect(&self, dial: Dial) -> Result<Adopted, Refused> {
        let Address::Tcp(to, _) = &dial.target.address else {
            return Err(Refused::Unreachable("a simulated network has no files".into()));
        };
        self.rt.point(Op::Dial, &[&dial.target.host(), &self.from]);
        let faults = self.net.faults();
        if self.net.chance("refuse", faults.refuse) {
            return Err(Refused::Unreachable("connection refused".into()));
        }
        if self.net.chance("hang", faults.hang) {
            crate::mark!(net_dial_hung);
            return Err(self.wait(&dial, dial.deadline).err().unwrap_or(Refused::TimedOut));
        }
        if self.net.chance("slow", faults.slow.0) {
            let late = self.rt.now() + self.net.latency(faults.slow.1);
            self.wait(&dial, late.min(dial.deadline))?;
        }
        let until = self.rt.now() + self.net.latency(faults.latency_max);
        self.wait(&dial, until.min(dial.deadline))?;
        if self.rt.now() >= dial.deadline {
            return Err(Refused::TimedOut);
        }
        let conn = self.net.connect(&self.from, to);
        let conn = conn.ok_or_else(|| Refused::Unreachable(format!("nobody answers at {to}")))?;
        let carrier = Carrier { net: self.net.clone(), conn, end: 0 };
        let (head, early) = self.agree(&dial, &carrier)?;
        let peer = peer(Peer::DIALED);
        Ok(Adopted { carrier: Box::new(carrier), peer, speak: dial.speak, head, early, owner: dial.owner })
    }

    /// Waits, unless the dial is given up.
    fn wait(&self, dial: &Dial, until: Moment) -> Result<(), Refused> {
        let mut select = self.rt.select_biased();
        select.cancelled(&dial.cancel);
        select.cancelled(&self.stop);
        match select.ready(Some(until)) {
            Some(_) => Err(Refused::Cancelled),
            None => Ok(()),
        }
    }

    /// The upgrade, where one is asked for.
    fn agree(
        &self,
        dial: &Dial,
        carrier: &Carrier,
    ) -> Result<(Option<crate::wire::http::ResponseHead>, Vec<u8>), Refused> {
        let broken = || Refused::Unreachable("the connection broke".into());
        let key = match &dial.speak {
            Speak::Raw => return Ok((None, Vec::new())),
            // 16 bytes, base64: what RFC 6455 asks for, from the run's own randomness.
            Speak::WebSocket { .. } => Some(crate::wire::websocket::key_of(self.rt.secret())),
            Speak::Upgrade { .. } => None,
        };
        let text = request(dial, key.as_deref())?;
        self.net.write(carrier.conn, 0, text.as_bytes()).map_err(|()| broken())?;
        let mut reader = ResponseReader::default();
        loop {
            if self.rt.now() >= dial.deadline {
                return Err(Refused::TimedOut);
            }
            match self.net.read(carrier.conn, 0, 4096, self.rt.now()) {
                Read::Bytes(bytes) => {
                    if let Some((head, early)) = reader.feed(&bytes).map_err(Refused::Protocol)? {
                        judge(dial, key.as_deref(), &head, &early)?;
                        return Ok((Some(head), early));
                    }
                }
                Read::End => {
                    return Err(Refused::Protocol("the peer closed the connection before it answered"));
                }
                Read::Broken => return Err(broken()),
                // A dial thread may look again every tick; there are few of them.
                Read::Nothing => {
                    self.wait(dial, (self.rt.now() + self.net.shared.grid).min(dial.deadline))?
                }
            }
        }
    }
}

/// A simulated I/O thread that runs. Dropping it closes every link and joins the thread.
#[derive(Debug)]
pub struct Serving {
    doors: Doors,
    stop: Cancel,
    thread: Option<Thread>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
        self.doors.send_errand(0, Errand::Stop);
        self.thread = None;
    }
}

pub(super) fn start(
    net: &Net,
    name: &str,
    rt: &Rt,
    wire: &SimWire,
    seat: Seat,
    limits: Limits,
    front: Arc<dyn Front>,
) -> crate::Result<Serving> {
    let links = Links::new(rt, 0, limits, front, seat.port, seat.orders);
    let mut thread = IoThread {
        net: net.clone(),
        name: name.to_owned(),
        rt: rt.clone(),
        pokes: seat.pokes,
        links,
        connections: Vec::new(),
        full: Vec::new(),
        again: false,
        stop_by: None,
    };
    let thread = rt.spawn("io-0", move || thread.run())?;
    Ok(Serving { doors: wire.doors.clone(), stop: wire.stop.clone(), thread: Some(thread) })
}

struct IoThread {
    net: Net,
    name: String,
    rt: Rt,
    pokes: Receiver<()>,
    links: Links,
    connections: Vec<Option<Connection>>,
    /// Connections whose other side has yet to make room.
    full: Vec<usize>,
    /// Something may be read that nobody will poke for.
    again: bool,
    stop_by: Option<Moment>,
}

struct Connection {
    carrier: Carrier,
    /// The other side has ended or broken; it was said once.
    over: bool,
}

impl IoThread {
    fn run(&mut self) {
        while !self.stop_by.is_some_and(|by| self.links.len() == 0 || self.rt.now() >= by) {
            self.sleep();
            self.links.orders().woke();
            let now = self.rt.now();
            self.links.at(now, self.rt.wall());
            while let Some((conn, _from)) = self.net.take_accepted(&self.name, now) {
                let carrier = Carrier { net: self.net.clone(), conn, end: 1 };
                if self.stop_by.is_none()
                    && let Some(slot) = self.links.accept(peer(0))
                {
                    self.seat(slot, carrier);
                }
            }
            self.read_all(now);
            self.links.ring();
            self.take_orders();
            self.write_all();
            self.links.settle();
            self.apply();
        }
        self.links.end_all();
    }

    /// Woken by a poke (bytes arrived, room was made, an order was pushed) or by whatever is due next.
    fn sleep(&mut self) {
        if std::mem::take(&mut self.again)
            || self.links.has_own()
            || self.links.many() > 0
            || !self.links.orders().may_sleep()
        {
            return;
        }
        let due = self.net.next_due(&self.name, self.rt.now());
        let deadline = Moment::earliest(Moment::earliest(self.links.deadline(), due), self.stop_by);
        let mut select = self.rt.select_biased();
        select.recv(&self.pokes);
        if select.ready(deadline).is_some() {
            // Taken so that the next one is noticed; what it was for is found by looking.
            _ = self.pokes.try_recv();
            for slot in std::mem::take(&mut self.full) {
                self.links.writable(slot);
            }
        }
    }

    fn seat(&mut self, slot: usize, carrier: Carrier) {
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        self.connections[slot] = Some(Connection { carrier, over: false });
        self.again = true;
    }

    fn read_all(&mut self, now: Moment) {
        for slot in 0..self.connections.len() {
            let mut budget = READ_BUDGET;
            while budget > 0 && self.links.wants_bytes(slot) {
                let Some(connection) = self.connections[slot].as_mut().filter(|connection| !connection.over)
                else {
                    break;
                };
                let carrier = &connection.carrier;
                match self.net.read(carrier.conn, carrier.end, budget, now) {
                    Read::Bytes(bytes) => {
                        budget -= bytes.len();
                        self.links.feed(slot, &bytes);
                    }
                    Read::End => {
                        connection.over = true;
                        self.links.eof(slot);
                    }
                    Read::Broken => {
                        connection.over = true;
                        self.links.broke(slot, "the connection broke");
                    }
                    Read::Nothing => break,
                }
            }
            self.again |= budget == 0;
        }
    }

    fn take_orders(&mut self) {
        let mut errands = Vec::new();
        self.links.take_orders(&mut errands);
        for errand in errands {
            match errand {
                Errand::Adopt(mut adopted) => {
                    let carrier = std::mem::replace(&mut adopted.carrier, Box::new(()));
                    if let Some(carrier) = carrier_of(carrier) {
                        let slot = self.links.adopt(adopted);
                        self.seat(slot, carrier);
                    }
                }
                // There is one thread a node, so nobody deals connections out.
                Errand::Accepted { .. } => {}
                Errand::Stop => {
                    self.links.close_all();
                    self.stop_by = Some(self.rt.now() + STOP_WAIT);
                }
            }
        }
    }

    fn write_all(&mut self) {
        while let Some(slot) = self.links.next_own().or_else(|| self.links.next_of_many()) {
            self.write_one(slot);
        }
    }

    fn write_one(&mut self, slot: usize) {
        let Some(connection) = self.connections.get(slot).and_then(Option::as_ref) else { return };
        let (conn, end) = (connection.carrier.conn, connection.carrier.end);
        let all = loop {
            let bytes = {
                let mut slices = [IoSlice::new(&[]); GATHER_MAX];
                let count = self.links.gather(slot, &mut slices);
                slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>()
            };
            if bytes.is_empty() {
                break true;
            }
            match self.net.write(conn, end, &bytes) {
                Ok(0) => {
                    // Written again when the reader makes room and pokes.
                    self.full.push(slot);
                    break false;
                }
                Ok(n) => self.links.wrote(slot, n),
                Err(()) => {
                    self.links.broke(slot, "the connection broke");
                    return;
                }
            }
        };
        self.links.flushed(slot, all);
    }

    fn apply(&mut self) {
        let mut effects = Vec::new();
        self.links.take_effects(&mut effects);
        for effect in effects {
            match effect {
                // There is no socket to hand over here: whoever takes it sees a connection that broke.
                Effect::Close(slot) | Effect::HandOver(slot) => self.connections[slot] = None,
                Effect::FinishWriting(slot) => {
                    if let Some(connection) = &self.connections[slot] {
                        self.net.finish(connection.carrier.conn, connection.carrier.end);
                    }
                }
                // Every connection is looked at in every round.
                Effect::Resume(_) => self.again = true,
            }
        }
    }
}

fn carrier_of(carrier: Box<dyn Any + Send>) -> Option<Carrier> {
    carrier.downcast::<Carrier>().ok().map(|carrier| *carrier)
}
