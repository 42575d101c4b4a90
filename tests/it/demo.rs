//! A small engine of the usual shapes, to prove the harness on: producers, a batching room with a
//! flush timer, a retry room, a merge room fed by dials, followers. About twenty threads. The same
//! code runs on real threads and under the simulator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use towpath::Result;
use towpath::engine::worker::{Bounds, Crew, Inbox, Room, Worker};
use towpath::mark;
use towpath::rt::{Lock, Moment, Op, Receiver, Rt, Sender, Thread};
use towpath::state::attempt::Attempts;

pub(crate) const PRODUCERS: u32 = 6;
pub(crate) const RECORDS: u32 = 4;
pub(crate) const DIALERS: usize = 4;
pub(crate) const FOLLOWERS: usize = 4;
pub(crate) const SWITCHES: u32 = 4;

const FLUSH_EVERY: Duration = Duration::from_millis(50);
const FLUSH_AT: usize = 5;
const RETRY_AFTER: Duration = Duration::from_millis(20);
const REDIAL_AFTER: Duration = Duration::from_millis(30);

/// What is in the store: a set, because writes are tried again after an unknown outcome.
#[derive(Clone, Default)]
pub(crate) struct Store {
    rows: Arc<Lock<BTreeMap<u32, u32>>>,
}

impl Store {
    /// Fails before or after the commit when the tape says so.
    fn write(&self, rt: &Rt, batch: &[u32]) -> std::result::Result<(), ()> {
        rt.point(Op::Store, &["write"]);
        let fault = rt.rand("store").below(4);
        if fault == 3 {
            return Err(());
        }
        {
            let mut rows = self.rows.lock();
            for record in batch {
                *rows.entry(*record).or_default() += 1;
            }
        }
        if fault == 2 { Err(()) } else { Ok(()) }
    }

    pub(crate) fn records(&self) -> BTreeSet<u32> {
        self.rows.lock().keys().copied().collect()
    }
}

struct Batching {
    rt: Rt,
    store: Store,
    retries: Inbox<Vec<u32>>,
    batch: Vec<u32>,
    due: Option<Moment>,
}

impl Batching {
    fn flush(&mut self) {
        self.due = None;
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        if self.store.write(&self.rt, &batch).is_err() {
            mark!(flush_failed);
            self.retries
                .control(batch)
                .expect("the retry room's reserve holds every batch of the demonstration");
        }
    }
}

impl Room for Batching {
    type Message = u32;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<u32>) {
        self.batch.append(inbox);
        if !self.batch.is_empty() && self.due.is_none() {
            self.due = Some(now + FLUSH_EVERY);
        }
        if self.batch.len() >= FLUSH_AT || self.due.is_some_and(|due| due <= now) {
            self.flush();
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.due
    }

    fn end(&mut self, _now: Moment, inbox: &mut Vec<u32>) {
        self.batch.append(inbox);
        self.flush();
    }
}

struct Retrying {
    rt: Rt,
    store: Store,
    waiting: Vec<(Moment, Vec<u32>)>,
}

impl Room for Retrying {
    type Message = Vec<u32>;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Vec<u32>>) {
        self.waiting.extend(inbox.drain(..).map(|batch| (now + RETRY_AFTER, batch)));
        for (due, batch) in std::mem::take(&mut self.waiting) {
            if due > now {
                self.waiting.push((due, batch));
            } else if self.store.write(&self.rt, &batch).is_err() {
                mark!(retry_failed);
                self.waiting.push((now + RETRY_AFTER, batch));
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.waiting.iter().map(|(due, _)| *due).min()
    }

    fn end(&mut self, now: Moment, inbox: &mut Vec<Vec<u32>>) {
        self.wake(now, inbox);
        for (_, batch) in std::mem::take(&mut self.waiting) {
            while self.store.write(&self.rt, &batch).is_err() {}
        }
    }
}

/// What the merge room is told.
pub(crate) enum Tell {
    /// This worker produces now.
    Wanted(u32),
    /// A dial has answered: a stream of this worker's parts, or nothing.
    Dialed { dial: u64, parts: Option<Parts> },
}

/// A link to a worker.
pub(crate) struct Parts {
    worker: u32,
    rx: Receiver<u32>,
}

/// What the merge room shows of itself.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) wanted: u32,
    pub(crate) attached: Option<u32>,
}

struct Merging {
    dial: Sender<(u64, u32)>,
    attempts: Attempts,
    wanted: u32,
    link: Option<Parts>,
    last: u32,
    redial_at: Option<Moment>,
    followers: Vec<Sender<(u32, u32)>>,
}

impl Merging {
    fn redial(&mut self, now: Moment) {
        self.link = None;
        self.redial_at = None;
        let dial = self.attempts.begin();
        if self.dial.try_send((dial, self.wanted)).is_err() {
            // Every dialer is busy with dials that were given up: they will be free again.
            self.attempts.end();
            self.redial_at = Some(now + REDIAL_AFTER);
        }
    }

    fn forward(&mut self, now: Moment) {
        let Some(link) = &self.link else { return };
        while let Ok(part) = link.rx.try_recv() {
            self.last = part;
            for follower in &self.followers {
                // A follower that is not there any more has left; a full one loses, and may.
                _ = follower.try_send((link.worker, part));
            }
        }
        self.redial_at = Some(now + REDIAL_AFTER);
    }
}

impl Room for Merging {
    type Message = Tell;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<Tell>) {
        for tell in inbox.drain(..) {
            match tell {
                Tell::Wanted(worker) if worker == self.wanted => {}
                Tell::Wanted(worker) => {
                    self.wanted = worker;
                    self.last = 0;
                    self.redial(now);
                }
                Tell::Dialed { dial, parts } => match self.attempts.settle(dial, parts, drop) {
                    Some(Some(parts)) => self.link = Some(parts),
                    Some(None) => {
                        mark!(dial_failed);
                        self.attempts.end();
                        self.redial_at = Some(now + REDIAL_AFTER);
                    }
                    None => {}
                },
            }
        }
        if self.link.is_some() {
            self.forward(now);
        } else if self.redial_at.is_some_and(|at| at <= now) {
            self.redial(now);
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.redial_at
    }

    fn show(&self, rt: &Rt) {
        rt.facts(|| Facts { wanted: self.wanted, attached: self.link.as_ref().map(|link| link.worker) });
    }
}

/// The engine: dropping it stops everything, in order.
pub(crate) struct Demo {
    pub(crate) store: Store,
    pub(crate) records: Inbox<u32>,
    pub(crate) merge: Inbox<Tell>,
    batching: Option<Worker>,
    retrying: Option<Worker>,
    merging: Option<Worker>,
    dialers: Vec<Thread>,
    followers: Vec<Thread<u32>>,
}

impl Demo {
    pub(crate) fn start(rt: &Rt) -> Result<Demo> {
        let crew = Crew::new(rt);
        let store = Store::default();
        let (retrying, retries) = Worker::spawn(&crew, "retrying", Bounds::of(64), |_| Retrying {
            rt: rt.clone(),
            store: store.clone(),
            waiting: Vec::new(),
        })?;
        let (batching, records) = Worker::spawn(&crew, "batching", Bounds::of(8), |_| Batching {
            rt: rt.clone(),
            store: store.clone(),
            retries,
            batch: Vec::new(),
            due: None,
        })?;
        let (mut outs, mut followers) = (Vec::new(), Vec::new());
        for index in 0..FOLLOWERS {
            let (tx, rx) = rt.channel::<(u32, u32)>("follower", 64);
            outs.push(tx);
            followers.push(rt.spawn(format!("follower-{index}"), move || follow(&rx))?);
        }
        // A dialer has a queue of its own: one consumer a receiver.
        let (dial, dials) = rt.channel::<(u64, u32)>("dials", DIALERS);
        let (merging, merge) = Worker::spawn(&crew, "merging", Bounds::of(64), |_| Merging {
            dial,
            attempts: Attempts::new(),
            wanted: 0,
            link: None,
            last: 0,
            redial_at: None,
            followers: outs,
        })?;
        let dialers = dialers(rt, dials, &merge)?;
        let (batching, retrying, merging) = (Some(batching), Some(retrying), Some(merging));
        Ok(Demo { store, records, merge, batching, retrying, merging, dialers, followers })
    }

    /// Stops everything; says how many parts the followers saw.
    pub(crate) fn stop(mut self) -> u32 {
        self.batching = None;
        self.retrying = None;
        self.merging = None;
        self.dialers.clear();
        self.followers.drain(..).map(|follower| follower.join().expect("a follower does not panic")).sum()
    }
}

/// Parts of one worker come in order, and never from an older worker after a newer one.
fn follow(rx: &Receiver<(u32, u32)>) -> u32 {
    let mut seen = 0;
    let mut last = (0, 0);
    for (worker, part) in rx.iter() {
        assert!(worker >= last.0, "a part of worker {worker} after one of worker {}", last.0);
        assert!(worker > last.0 || part > last.1, "part {part} of worker {worker} after {}", last.1);
        last = (worker, part);
        seen += 1;
    }
    seen
}

/// One thread hands dials to a few that carry them out, slowly, some failing.
fn dialers(rt: &Rt, dials: Receiver<(u64, u32)>, merge: &Inbox<Tell>) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    let mut hands = Vec::new();
    for index in 0..DIALERS {
        let (tx, rx) = rt.channel::<(u64, u32)>("dial", 1);
        hands.push(tx);
        let (rt, merge) = (rt.clone(), merge.clone());
        threads.push(rt.clone().spawn(format!("dial-{index}"), move || {
            let mut fate = rt.rand("dial");
            for (dial, worker) in rx.iter() {
                rt.point(Op::Dial, &["worker"]);
                rt.sleep(Duration::from_millis(1 + fate.below(6) * 8));
                let parts = (fate.below(4) != 3).then(|| produce(&rt, worker));
                // The room has ended: whoever answers late lets go of what it brings.
                _ = merge.control(Tell::Dialed { dial, parts });
            }
        })?);
    }
    threads.push(rt.spawn("dialing", move || {
        for (dial, worker) in dials.iter() {
            let hand = &hands[dial as usize % DIALERS];
            if hand.send((dial, worker)).is_err() {
                return;
            }
        }
    })?);
    Ok(threads)
}

/// A worker's parts, all produced already.
fn produce(rt: &Rt, worker: u32) -> Parts {
    let (tx, rx) = rt.channel("parts", 4);
    for part in 1..=3 {
        tx.try_send(part).expect("three fit");
    }
    Parts { worker, rx }
}

/// The scenario: producers record, somebody switches the worker, everything stops.
pub(crate) fn scenario(rt: &Rt) -> Result<()> {
    let demo = Demo::start(rt)?;
    let mut threads = Vec::new();
    for producer in 0..PRODUCERS {
        let (rt, records) = (rt.clone(), demo.records.clone());
        threads.push(rt.clone().spawn(format!("producer-{producer}"), move || {
            for record in 0..RECORDS {
                rt.sleep(Duration::from_millis(u64::from(producer + record)));
                records
                    .data(producer * RECORDS + record, Moment::NEVER)
                    .expect("the room lives as long as we");
            }
        })?);
    }
    let (clock, merge) = (rt.clone(), demo.merge.clone());
    threads.push(rt.spawn("switching", move || {
        for worker in 1..=SWITCHES {
            merge.control(Tell::Wanted(worker)).expect("the room lives as long as we");
            clock.sleep(Duration::from_millis(20));
        }
    })?);
    drop(threads);
    let store = demo.store.clone();
    demo.stop();
    assert_eq!(store.records(), (0..PRODUCERS * RECORDS).collect(), "every record, stored");
    Ok(())
}
