//! The bus of many processes: LISTEN and NOTIFY of PostgreSQL.
//!
//! Two connections and two threads. `bus` listens on a few fixed channels, makes its connection again
//! when it was lost (after 1 s, doubling to 60 s) and then tells every subscriber that hints are
//! missing. `bus-publish` sends: at once when nothing waits, and otherwise as many as have gathered, in
//! one transaction, because PostgreSQL lets one transaction with a NOTIFY commit at a time, whatever
//! the number of notices in it. A heartbeat goes the whole way round every 15 s; when three of them are
//! missing, the connection is taken for dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Statement};
use uuid::Uuid;

use super::{Bus, BusHealth, Notice, Sink, StreamNotice, Subscribers, Topic};
use crate::codec::notice::{PAYLOAD_MAX, StreamAt, id, named};
use crate::rt::{Lock, Receiver, RecvTimeoutError, Rt, Sender, Thread};
use crate::state::metadata::{AGENTS_PER_NOTICE, named_in, notices};
use crate::state::time::Moment;
use crate::store::StoreError;
use crate::store::dial::{Dial, Patience, classify};

/// How many notices wait to be sent before one is dropped: what a second of a busy replica has.
const WAITING: usize = 8_192;

/// How many go out in one transaction: half a megabyte of arguments at the longest.
const BATCH: usize = 512;

/// Under load, how long notices gather. A person does not notice, and a commit takes about as long.
const GATHER: Duration = Duration::from_millis(2);

/// How often the listener looks up from its connection: bounds how long stopping takes.
const LOOK_UP: Duration = Duration::from_millis(100);

/// How often a heartbeat goes round.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How long after the last heartbeat the connection is taken for dead.
const SILENCE: Duration = Duration::from_secs(45);

/// Between attempts to connect again.
const RECONNECT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

const STREAM: &str = "towpath_stream";
const METADATA: &str = "towpath_metadata";
const REPLICA: &str = "towpath_replica";
const BEAT: &str = "towpath_heartbeat";

/// The bus of many processes. Dropping it stops and joins its threads.
pub struct PostgresBus {
    shared: Arc<Shared>,
    /// Dropped first: the publisher ends when nobody can send any more.
    outbox: Option<Sender<Outgoing>>,
    publisher: Option<Thread<()>>,
    /// Dropped before the listener is joined, which waits on its other end.
    stop: Option<Sender<()>>,
    listener: Option<Thread<()>>,
}

struct Outgoing {
    channel: &'static str,
    payload: String,
    /// Who is told when it cannot be sent.
    topic: Option<Topic>,
}

struct Shared {
    rt: Rt,
    dial: Dial,
    /// Tells this bus's heartbeats from those of others.
    own: Uuid,
    subscribers: Subscribers,
    connected: AtomicBool,
    published: AtomicU64,
    batches: AtomicU64,
    unsent: AtomicU64,
    disconnects: AtomicU64,
    /// The heartbeat that is out, and what the last one told.
    pulse: Lock<Pulse>,
}

#[derive(Clone, Copy)]
struct Pulse {
    number: u64,
    sent: Moment,
    back: Moment,
    latency: Option<Duration>,
}

impl PostgresBus {
    /// Connects, listens, and starts both threads. Fails where the database cannot be reached: a bus
    /// that never worked is a mistake in the configuration, one that stops working is the weather.
    pub fn start(rt: &Rt, url: &str, patience: Patience) -> Result<PostgresBus, StoreError> {
        let dial = Dial::parse(url, patience)?;
        let now = rt.now();
        let shared = Arc::new(Shared {
            rt: rt.clone(),
            own: rt.uuid_v4(),
            subscribers: Subscribers::default(),
            connected: AtomicBool::new(true),
            published: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            disconnects: AtomicU64::new(0),
            pulse: Lock::new(Pulse { number: 0, sent: now, back: now, latency: None }),
            dial,
        });
        let client = listen(&shared.dial)?;
        let sending = Sending::connect(&shared.dial)?;
        let (outbox, waiting) = rt.channel("bus-publish", WAITING);
        let (stop, stopped) = rt.channel("bus-stop", 1);
        let no_thread = |e: crate::Error| StoreError::retry("threads", e.to_string());
        let publisher = {
            let shared = shared.clone();
            rt.spawn("bus-publish", move || publish(&shared, &waiting, Some(sending))).map_err(no_thread)?
        };
        let listener = {
            let (shared, outbox) = (shared.clone(), outbox.clone());
            rt.spawn("bus", move || Listener { shared, outbox, stopped }.run(client)).map_err(no_thread)?
        };
        Ok(PostgresBus {
            shared,
            outbox: Some(outbox),
            publisher: Some(publisher),
            stop: Some(stop),
            listener: Some(listener),
        })
    }

    fn send(&self, outgoing: Outgoing) {
        let Some(outbox) = &self.outbox else { return };
        // Full: the database is away or far behind. Those here read again; those elsewhere have their
        // poll, which is what heals any hint that is lost.
        if let Err(refused) = outbox.try_send(outgoing) {
            self.shared.unsent(refused.into_inner().topic, 1);
        }
    }
}

impl Bus for PostgresBus {
    fn publish(&self, notice: Notice) {
        let topic = Some(notice.topic());
        match notice {
            Notice::Stream(at) => {
                let payload = StreamAt {
                    stream: at.stream,
                    pos: at.pos,
                    generation: at.generation,
                    worker: at.worker,
                    turn: at.turn,
                    deleted: at.deleted,
                }
                .encode();
                self.send(Outgoing { channel: STREAM, payload, topic });
            }
            Notice::Metadata(agents) => {
                for payload in notices(&agents) {
                    debug_assert!(payload.len() <= PAYLOAD_MAX && AGENTS_PER_NOTICE * 22 <= PAYLOAD_MAX);
                    self.send(Outgoing { channel: METADATA, payload, topic });
                }
            }
            Notice::Replica(replica) => {
                self.send(Outgoing { channel: REPLICA, payload: id(replica), topic });
            }
        }
    }

    fn subscribe(&self, topic: Topic, sink: Sink) {
        self.shared.subscribers.add(topic, sink);
    }

    fn health(&self) -> BusHealth {
        let shared = &self.shared;
        let pulse = *shared.pulse.lock();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BusHealth {
            connected: shared.connected.load(Ordering::Relaxed),
            latency: pulse.latency,
            silent: Some(shared.rt.now().since(pulse.back)),
            published: count(&shared.published),
            batches: count(&shared.batches),
            received: count(&shared.subscribers.received),
            dropped: count(&shared.subscribers.dropped) + count(&shared.unsent),
            disconnects: count(&shared.disconnects),
        }
    }
}

impl Drop for PostgresBus {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.listener.take());
        // The listener held a sender for its heartbeats: only now does the publisher end.
        drop(self.outbox.take());
        drop(self.publisher.take());
    }
}

impl Shared {
    /// Notices that nobody was sent.
    fn unsent(&self, topic: Option<Topic>, count: u64) {
        self.unsent.fetch_add(count, Ordering::Relaxed);
        self.subscribers.lost(topic);
    }
}

/// A connection that listens on every channel.
fn listen(dial: &Dial) -> Result<Client, StoreError> {
    let mut client = dial.connect()?;
    for channel in [STREAM, METADATA, REPLICA, BEAT] {
        client.batch_execute(&format!("LISTEN {channel}")).map_err(|e| classify(&e))?;
    }
    Ok(client)
}

struct Listener {
    shared: Arc<Shared>,
    outbox: Sender<Outgoing>,
    stopped: Receiver<()>,
}

impl Listener {
    fn run(self, client: Client) {
        let mut client = Some(client);
        let mut wait = RECONNECT.0;
        loop {
            match client.take() {
                Some(connected) => {
                    wait = RECONNECT.0;
                    if !self.hear(connected) {
                        return;
                    }
                    self.shared.disconnects.fetch_add(1, Ordering::Relaxed);
                    self.shared.connected.store(false, Ordering::Relaxed);
                    log::warn!("bus: the connection to {} was lost", self.shared.dial.shown);
                    self.shared.subscribers.lost(None);
                }
                None => {
                    if self.stops_before(self.shared.rt.now() + wait) {
                        return;
                    }
                    wait = (wait * 2).min(RECONNECT.1);
                    match listen(&self.shared.dial) {
                        Ok(connected) => {
                            log::info!("bus: connected to {} again", self.shared.dial.shown);
                            self.restart_pulse();
                            self.shared.connected.store(true, Ordering::Relaxed);
                            // From here on everything is heard; what was said before is not.
                            self.shared.subscribers.lost(None);
                            client = Some(connected);
                        }
                        Err(error) => log::debug!("bus: {error}"),
                    }
                }
            }
        }
    }

    /// Hands on what arrives until the connection is gone (true) or the bus is dropped (false).
    fn hear(&self, mut client: Client) -> bool {
        let mut beat_at = self.shared.rt.now();
        loop {
            let mut notifications = client.notifications();
            let mut waiting = notifications.timeout_iter(LOOK_UP);
            // A `None` is the time limit, or the end of the connection.
            loop {
                match waiting.next() {
                    Ok(Some(notification)) => self.heard(notification.channel(), notification.payload()),
                    Ok(None) => break,
                    Err(error) => {
                        log::debug!("bus: {error}");
                        return true;
                    }
                }
            }
            drop(waiting);
            drop(notifications);
            if self.stops_before(self.shared.rt.now()) {
                return false;
            }
            let now = self.shared.rt.now();
            if client.is_closed() || now.since(self.shared.pulse.lock().back) > SILENCE {
                return true;
            }
            if now >= beat_at {
                beat_at = now + HEARTBEAT;
                self.beat(now);
            }
            self.shared.subscribers.settle();
        }
    }

    fn heard(&self, channel: &str, payload: &str) {
        let notice = match channel {
            BEAT => return self.heartbeat(payload),
            STREAM => StreamAt::decode(payload).ok().map(|at| {
                Notice::Stream(StreamNotice {
                    stream: at.stream,
                    pos: at.pos,
                    generation: at.generation,
                    worker: at.worker,
                    turn: at.turn,
                    deleted: at.deleted,
                })
            }),
            METADATA => named_in(payload).ok().map(|agents| Notice::Metadata(agents.into())),
            REPLICA => named(payload).ok().map(Notice::Replica),
            // Not one of those listened to.
            _ => return,
        };
        match notice {
            Some(notice) => self.shared.subscribers.deliver(&notice),
            // Someone speaks another version: something changed, and that is all there is to know.
            None => self.shared.subscribers.lost(match channel {
                STREAM => Some(Topic::Stream),
                METADATA => Some(Topic::Metadata),
                _ => Some(Topic::Replica),
            }),
        }
    }

    fn beat(&self, now: Moment) {
        let number = {
            let mut pulse = self.shared.pulse.lock();
            pulse.number += 1;
            pulse.sent = now;
            pulse.number
        };
        let payload = format!("{},{number}", id(self.shared.own));
        // Full: then there is enough to tell whether the connection lives, and the next one fits.
        if self.outbox.try_send(Outgoing { channel: BEAT, payload, topic: None }).is_err() {
            self.restart_pulse();
        }
    }

    fn heartbeat(&self, payload: &str) {
        let mine = payload.split_once(',').filter(|(whose, _)| *whose == id(self.shared.own));
        let Some(number) = mine.and_then(|(_, number)| number.parse::<u64>().ok()) else { return };
        let now = self.shared.rt.now();
        let mut pulse = self.shared.pulse.lock();
        if number == pulse.number {
            pulse.back = now;
            pulse.latency = Some(now.since(pulse.sent));
        }
    }

    fn restart_pulse(&self) {
        let now = self.shared.rt.now();
        self.shared.pulse.lock().back = now;
    }

    /// Waits until then; true if the bus is dropped meanwhile.
    fn stops_before(&self, moment: Moment) -> bool {
        !matches!(self.stopped.recv_deadline(moment), Err(RecvTimeoutError::Timeout))
    }
}

/// The connection that notifies.
struct Sending {
    client: Client,
    notify: Statement,
}

impl Sending {
    fn connect(dial: &Dial) -> Result<Sending, StoreError> {
        let mut client = dial.connect()?;
        let notify = client
            .prepare("SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS n (channel, payload)")
            .map_err(|e| classify(&e))?;
        Ok(Sending { client, notify })
    }

    fn send(&mut self, batch: &[Outgoing]) -> Result<(), StoreError> {
        let channels: Vec<&str> = batch.iter().map(|outgoing| outgoing.channel).collect();
        let payloads: Vec<&str> = batch.iter().map(|outgoing| outgoing.payload.as_str()).collect();
        self.client.execute(&self.notify, &[&channels, &payloads]).map(|_| ()).map_err(|e| classify(&e))
    }
}

/// Sends what waits until nobody can add to it.
fn publish(shared: &Shared, waiting: &Receiver<Outgoing>, mut sending: Option<Sending>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut sent = Moment::ZERO;
    let mut dial_at = Moment::ZERO;
    while let Ok(first) = waiting.recv() {
        batch.push(first);
        waiting.drain_into(&mut batch, BATCH - 1);
        // One alone goes at once. When several wait there is load, and a little more gathers first.
        while batch.len() > 1 && batch.len() < BATCH {
            match waiting.recv_deadline(sent + GATHER) {
                Ok(more) => batch.push(more),
                Err(_) => break,
            }
        }
        // One try on the connection there is, and one on a new one: it may have been cut while idle.
        let mut done = sending.as_mut().is_some_and(|sending| sending.send(&batch).is_ok());
        if !done && shared.rt.now() >= dial_at {
            sending = Sending::connect(&shared.dial).inspect_err(|error| log::debug!("bus: {error}")).ok();
            done = sending.as_mut().is_some_and(|sending| sending.send(&batch).is_ok());
            dial_at = shared.rt.now() + RECONNECT.0;
        }
        sent = shared.rt.now();
        if done {
            shared.published.fetch_add(batch.len() as u64, Ordering::Relaxed);
            shared.batches.fetch_add(1, Ordering::Relaxed);
        } else {
            sending = None;
            for topic in Topic::ALL {
                let count = batch.iter().filter(|outgoing| outgoing.topic == Some(topic)).count();
                if count > 0 {
                    shared.unsent(Some(topic), count as u64);
                }
            }
        }
        batch.clear();
    }
}
