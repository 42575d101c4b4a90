//! An in-memory network behind the `wire` trait, with everything that goes wrong in real ones.
//!
//! Each node has one simulated I/O thread. It drives the same `Links` that sockets drive, so bytes
//! pass through the shipped HTTP, WebSocket and queueing code, split and merged by the seed. A
//! connection keeps the order of its bytes, as TCP does: a partition delays them until it heals, a cut
//! loses what was under way, a vanished node is heard of no more.
//!
//! Nodes are reached by name: `ws://b/path` dials the front of node `b`.

mod driver;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Test;
use crate::rt::{Lock, Moment, Rt, Sender};
use crate::wire::{Front, Limits, Peer, Wire};

/// How bad a network is. Chances are one in so many; 0 is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetFaults {
    /// Bytes and connections take up to this long, rounded to the grid.
    pub latency_max: Duration,
    /// A dial is refused.
    pub refuse: u64,
    /// A dial hangs until its deadline.
    pub hang: u64,
    /// A dial is answered only this late, if it is not given up before.
    pub slow: (u64, Duration),
    /// A write is cut at some byte, and its connection broken.
    pub cut: u64,
    /// A read gets only a part of what is there.
    pub split: u64,
}

impl NetFaults {
    /// A network without faults or latency.
    pub const CALM: NetFaults = NetFaults {
        latency_max: Duration::ZERO,
        refuse: 0,
        hang: 0,
        slow: (0, Duration::ZERO),
        cut: 0,
        split: 0,
    };

    /// A network people curse: up to 20 ms, and something goes wrong every few dozen operations.
    pub const ROUGH: NetFaults = NetFaults {
        latency_max: Duration::from_millis(20),
        refuse: 8,
        hang: 16,
        slow: (8, Duration::from_secs(4)),
        cut: 64,
        split: 4,
    };
}

/// A network of named nodes. Cheap to clone.
#[derive(Clone)]
pub struct Net {
    shared: Arc<Shared>,
}

struct Shared {
    rt: Rt,
    grid: Duration,
    state: Lock<State>,
}

struct State {
    faults: NetFaults,
    nodes: BTreeMap<String, Node>,
    conns: BTreeMap<u64, Conn>,
    next_conn: u64,
    /// Directions in which nothing arrives.
    blocked: BTreeSet<(String, String)>,
    /// Who is reached under the names of others.
    misled: BTreeMap<String, String>,
    vanished: BTreeSet<String>,
}

/// Where a node's I/O thread can be told that something is there for it.
struct Node {
    poke: Sender<()>,
    listening: bool,
    accepted: VecDeque<(u64, Moment)>,
}

struct Conn {
    ends: [String; 2],
    /// What travels from end 0 to end 1, and the other way.
    ways: [Way; 2],
    /// Ends that were closed by their own side.
    gone: [bool; 2],
}

/// One direction of a connection.
#[derive(Default)]
struct Way {
    travelling: VecDeque<(Moment, Parcel)>,
    /// Not yet read, counted so that a slow reader holds up its writer.
    bytes: usize,
    last: Moment,
    ended: bool,
    broken: bool,
    /// The writer was refused for lack of room and waits to be told.
    writer_waits: bool,
}

enum Parcel {
    Bytes(VecDeque<u8>),
    End,
    Break,
}

/// What fits into one direction.
const WINDOW: usize = 256 * 1024;

/// What a read found.
enum Read {
    Bytes(Vec<u8>),
    Nothing,
    End,
    Broken,
}

impl Net {
    pub(super) fn new(test: &Test, faults: NetFaults) -> Net {
        let state = State {
            faults,
            nodes: BTreeMap::new(),
            conns: BTreeMap::new(),
            next_conn: 0,
            blocked: BTreeSet::new(),
            misled: BTreeMap::new(),
            vanished: BTreeSet::new(),
        };
        let shared = Shared { rt: test.rt(), grid: test.grid(), state: Lock::new(state) };
        Net { shared: Arc::new(shared) }
    }

    /// A node whose I/O thread belongs to `rt` (from [`Test::node`]), so that killing the node kills it.
    /// Its wire dials at once; it listens once [`NetNode::serve`] was called.
    pub fn node(&self, name: &str, rt: &Rt) -> NetNode {
        NetNode::new(self, name, rt)
    }

    /// From now on the network is this bad.
    pub fn set_faults(&self, faults: NetFaults) {
        self.shared.state.lock().faults = faults;
    }

    /// Nothing passes between two nodes, in either direction, until it heals.
    pub fn partition(&self, one: &str, other: &str) {
        self.block(one, other);
        self.block(other, one);
    }

    /// Nothing arrives at `to` that comes from `from`.
    pub fn block(&self, from: &str, to: &str) {
        self.shared.state.lock().blocked.insert((from.to_owned(), to.to_owned()));
    }

    /// Whoever dials `name` reaches `other`, as with an address that somebody else got in the meantime, until it
    /// heals. Connections that are open stay as they are.
    pub fn mislead(&self, name: &str, other: &str) {
        self.shared.state.lock().misled.insert(name.to_owned(), other.to_owned());
    }

    /// Every partition ends, and names are right again; what was held up arrives.
    pub fn heal(&self) {
        {
            let mut state = self.shared.state.lock();
            state.blocked.clear();
            state.misled.clear();
        }
        self.poke_all();
    }

    /// Breaks every connection between two nodes; both ends notice at once.
    pub fn cut(&self, one: &str, other: &str) {
        let now = self.shared.rt.now();
        {
            let mut state = self.shared.state.lock();
            for conn in state.conns.values_mut() {
                if conn.joins(one, other) {
                    conn.break_at(now);
                }
            }
        }
        self.poke_all();
    }

    /// The node's machine is gone without a word: its connections stay open at the other ends and
    /// nothing arrives on them any more. Call it before [`Test::kill`] to lose power; a process that is
    /// only killed has its connections closed by the system.
    pub fn vanish(&self, node: &str) {
        let mut state = self.shared.state.lock();
        state.vanished.insert(node.to_owned());
        if let Some(node) = state.nodes.get_mut(node) {
            node.listening = false;
        }
    }

    /// How many connections are open between two nodes.
    pub fn connections(&self, one: &str, other: &str) -> usize {
        self.shared.state.lock().conns.values().filter(|conn| conn.joins(one, other)).count()
    }

    fn poke_all(&self) {
        let pokes: Vec<_> = self.shared.state.lock().nodes.values().map(|node| node.poke.clone()).collect();
        for poke in pokes {
            // Full means it is about to look anyway; gone means the node was killed.
            _ = poke.try_send(());
        }
    }

    fn poke(&self, node: &str) {
        let poke = self.shared.state.lock().nodes.get(node).map(|node| node.poke.clone());
        if let Some(poke) = poke {
            _ = poke.try_send(());
        }
    }

    /// A seeded latency on the grid.
    fn latency(&self, longest: Duration) -> Duration {
        let ticks = longest.as_nanos() / self.shared.grid.as_nanos().max(1);
        let ticks = self.shared.rt.rand("latency").below(ticks as u64 + 1);
        self.shared.grid.saturating_mul(ticks as u32)
    }

    fn chance(&self, tape: &'static str, one_in: u64) -> bool {
        // 0 is benign: the fault sits at the upper end.
        one_in > 0 && self.shared.rt.rand(tape).below(one_in) == one_in - 1
    }

    fn faults(&self) -> NetFaults {
        self.shared.state.lock().faults
    }

    /// Opens a connection, if somebody listens there and can be reached.
    fn connect(&self, from: &str, to: &str) -> Option<u64> {
        let latency = self.latency(self.faults().latency_max);
        let at = self.shared.rt.now() + latency;
        let mut reached = to.to_owned();
        let id = {
            let mut state = self.shared.state.lock();
            // Not to oneself: whoever dials its own address knows its own machine.
            if let Some(other) = state.misled.get(to).filter(|other| *other != from) {
                crate::mark!(net_dial_misled);
                reached.clone_from(other);
            }
            if state.is_blocked(from, &reached) || state.is_blocked(&reached, from) {
                return None;
            }
            let id = state.next_conn;
            let node = state.nodes.get_mut(&reached).filter(|node| node.listening)?;
            node.accepted.push_back((id, at));
            state.next_conn += 1;
            let ends = [from.to_owned(), reached.clone()];
            state.conns.insert(id, Conn { ends, ways: Default::default(), gone: [false; 2] });
            id
        };
        self.poke(&reached);
        Some(id)
    }

    /// Takes as much as fits; `Err` when the connection is broken.
    fn write(&self, conn: u64, end: usize, bytes: &[u8]) -> Result<usize, ()> {
        let faults = self.faults();
        let cut = self.chance("cut", faults.cut);
        let at_byte = if cut { self.shared.rt.rand("cut at").below(bytes.len() as u64) as usize } else { 0 };
        let due = self.shared.rt.now() + self.latency(faults.latency_max);
        let (taken, other) = {
            let mut state = self.shared.state.lock();
            let found = state.conns.get_mut(&conn).ok_or(())?;
            if found.ways[end].broken || found.ways[1 - end].broken || found.gone[1 - end] {
                return Err(());
            }
            let other = found.ends[1 - end].clone();
            let way = &mut found.ways[end];
            let room = WINDOW.saturating_sub(way.bytes);
            let taken = if cut { at_byte.min(room) } else { bytes.len().min(room) };
            way.writer_waits = taken < bytes.len() && !cut;
            if taken > 0 {
                way.bytes += taken;
                way.push(due, Parcel::Bytes(bytes[..taken].iter().copied().collect()));
            }
            if cut {
                crate::mark!(net_cut);
                found.break_at(due);
            }
            (taken, other)
        };
        self.poke(&other);
        if cut { Err(()) } else { Ok(taken) }
    }

    /// Ends one direction.
    fn finish(&self, conn: u64, end: usize) {
        let now = self.shared.rt.now();
        let other = {
            let mut state = self.shared.state.lock();
            let Some(found) = state.conns.get_mut(&conn) else { return };
            if found.ways[end].ended {
                return;
            }
            found.ways[end].ended = true;
            found.ways[end].push(now, Parcel::End);
            found.ends[1 - end].clone()
        };
        self.poke(&other);
    }

    fn read(&self, conn: u64, end: usize, max: usize, now: Moment) -> Read {
        let max = if self.chance("split", self.faults().split) {
            1 + self.shared.rt.rand("split at").below(max.min(64) as u64) as usize
        } else {
            max
        };
        let (read, writer) = {
            let mut state = self.shared.state.lock();
            let Some(found) = state.conns.get(&conn) else { return Read::Broken };
            if state.is_blocked(&found.ends[1 - end], &found.ends[end]) {
                return Read::Nothing;
            }
            let Some(found) = state.conns.get_mut(&conn) else { return Read::Broken };
            let way = &mut found.ways[1 - end];
            let read = way.take(max, now);
            let waits = matches!(read, Read::Bytes(_)) && std::mem::take(&mut way.writer_waits);
            (read, waits.then(|| found.ends[1 - end].clone()))
        };
        if let Some(writer) = writer {
            self.poke(&writer);
        }
        read
    }

    /// This side closed the connection: the other reads what is under way, then its end.
    fn close(&self, conn: u64, end: usize) {
        let now = self.shared.rt.now();
        let other = {
            let mut state = self.shared.state.lock();
            let Some(found) = state.conns.get_mut(&conn) else { return };
            found.gone[end] = true;
            if !std::mem::replace(&mut found.ways[end].ended, true) {
                found.ways[end].push(now, Parcel::End);
            }
            let other = found.ends[1 - end].clone();
            if found.gone[1 - end] {
                state.conns.remove(&conn);
            }
            other
        };
        self.poke(&other);
    }

    /// When the next thing arrives at a node by itself.
    fn next_due(&self, node: &str, now: Moment) -> Option<Moment> {
        let state = self.shared.state.lock();
        let accepted = state.nodes.get(node).and_then(|node| node.accepted.front().map(|(_, at)| *at));
        let arriving = state.conns.values().flat_map(|conn| {
            (0..2).filter_map(|end| {
                let arrives = conn.ends[end] == *node && !conn.gone[end];
                let open = arrives && !state.is_blocked(&conn.ends[1 - end], &conn.ends[end]);
                open.then(|| conn.ways[1 - end].travelling.front().map(|(at, _)| *at)).flatten()
            })
        });
        // What has arrived is read when its link wants it; only what is still under way is an alarm.
        arriving.chain(accepted).filter(|at| *at > now).min()
    }

    fn take_accepted(&self, node: &str, now: Moment) -> Option<(u64, String)> {
        let mut state = self.shared.state.lock();
        let accepted = &mut state.nodes.get_mut(node)?.accepted;
        if accepted.front()?.1 > now {
            return None;
        }
        let (conn, _) = accepted.pop_front()?;
        let from = state.conns.get(&conn)?.ends[0].clone();
        Some((conn, from))
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state.lock();
        write!(f, "Net({} nodes, {} connections)", state.nodes.len(), state.conns.len())
    }
}

impl State {
    fn is_blocked(&self, from: &str, to: &str) -> bool {
        self.vanished.contains(from)
            || self.vanished.contains(to)
            || self.blocked.iter().any(|(one, other)| one == from && other == to)
    }
}

impl Conn {
    fn joins(&self, one: &str, other: &str) -> bool {
        (self.ends[0] == one && self.ends[1] == other) || (self.ends[0] == other && self.ends[1] == one)
    }

    /// Both ends will find it broken, behind what is already under way.
    fn break_at(&mut self, at: Moment) {
        for way in &mut self.ways {
            way.broken = true;
            way.push(at, Parcel::Break);
        }
    }
}

impl Way {
    /// Nothing overtakes: what is sent later arrives later.
    fn push(&mut self, due: Moment, parcel: Parcel) {
        self.last = self.last.max(due);
        self.travelling.push_back((self.last, parcel));
    }

    fn take(&mut self, max: usize, now: Moment) -> Read {
        let Some((due, parcel)) = self.travelling.front_mut() else { return Read::Nothing };
        if *due > now {
            return Read::Nothing;
        }
        match parcel {
            Parcel::Bytes(bytes) => {
                let taken: Vec<u8> = bytes.drain(..max.min(bytes.len())).collect();
                self.bytes -= taken.len();
                if bytes.is_empty() {
                    self.travelling.pop_front();
                }
                Read::Bytes(taken)
            }
            // Both stay: whoever looks again finds the same.
            Parcel::End => Read::End,
            Parcel::Break => Read::Broken,
        }
    }
}

/// A node of a [`Net`]: what an engine is given instead of sockets.
pub struct NetNode {
    net: Net,
    name: String,
    rt: Rt,
    wire: Arc<driver::SimWire>,
    seat: Option<driver::Seat>,
}

impl NetNode {
    fn new(net: &Net, name: &str, rt: &Rt) -> NetNode {
        let (poke, pokes) = rt.channel("network", 1);
        let node = Node { poke: poke.clone(), listening: false, accepted: VecDeque::new() };
        {
            let mut state = net.shared.state.lock();
            state.vanished.remove(name);
            state.nodes.insert(name.to_owned(), node);
        }
        let (wire, seat) = driver::SimWire::new(net, name, rt, poke, pokes);
        NetNode { net: net.clone(), name: name.to_owned(), rt: rt.clone(), wire, seat: Some(seat) }
    }

    /// The network, for rooms.
    pub fn wire(&self) -> Arc<dyn Wire> {
        self.wire.clone()
    }

    /// Starts the node's I/O thread, which serves what is dialed to the node's name. Dropping what comes
    /// back closes every link and joins the thread.
    ///
    /// # Errors
    /// Never under a simulation; the signature is that of the real one.
    ///
    /// # Panics
    /// When called twice.
    pub fn serve(&mut self, limits: Limits, front: Arc<dyn Front>) -> crate::Result<Serving> {
        let seat = self.seat.take().expect("a node serves once");
        let serving = driver::start(&self.net, &self.name, &self.rt, &self.wire, seat, limits, front)?;
        if let Some(node) = self.net.shared.state.lock().nodes.get_mut(&self.name) {
            node.listening = true;
        }
        Ok(serving)
    }
}

impl std::fmt::Debug for NetNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NetNode({})", self.name)
    }
}

pub use driver::Serving;

/// Who a simulated connection comes from: all are on this machine.
fn peer(listener: u8) -> Peer {
    Peer { ip: Some(std::net::Ipv4Addr::LOCALHOST.into()), port: 1, tls: false, listener }
}
