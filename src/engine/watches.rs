//! The room of those who watch metadata.
//!
//! It is subscribed to the bus before anybody watches, asks the reading thread for what the rules in
//! [`state::watch`](crate::state::watch) want read, and hands each answer to everybody it concerns.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::connections::stopped;
use super::lookups::{Lookups, Opened};
use super::worker::{Inbox, Refused, Room};
use crate::bus::{Bus, BusEvent, Delivery, Notice, Topic};
use crate::error::{Code, Error};
use crate::metrics::{Counter, Gauge, Metrics};
use crate::rt::{Lock, Moment, Receiver, RecvTimeoutError, Rt, Sender, TryRecvError};
use crate::state::watch::{self, Ask, Scope};
use crate::store::StoreError;
use crate::store::metadata::{AgentRow, MetadataRead};

/// An agent's values at one moment, by display order, then key.
///
/// ```
/// let engine = towpath::Engine::builder().start()?;
/// let agent = engine.rt().uuid_v4();
/// assert!(engine.metadata().get(agent)?.values.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentValues {
    /// Whose.
    pub agent: Uuid,
    /// What it last reported under each key.
    pub values: Vec<MetadataRead>,
}

/// Takes what a watcher is to see, on the room's thread, without waiting. False: it wants no more.
pub type Sink = Box<dyn FnMut(&Arc<AgentValues>) -> bool + Send>;

pub(super) enum ToWatches {
    Watch { number: u64, scope: Scope, sink: Sink },
    Unwatch { number: u64 },
    Bus(BusEvent),
    Answer { asked: Ask, answer: crate::error::Result<Answer> },
}

/// What the reading thread found.
pub(super) enum Answer {
    Read(Vec<(AgentValues, Option<String>)>),
    Listed(Vec<(Uuid, String)>),
}

/// Subscribes the room to the bus. A full inbox becomes a drop marker.
pub(super) fn subscribe(bus: &dyn Bus, inbox: &Inbox<ToWatches>) {
    let inbox = inbox.clone();
    bus.subscribe(
        Topic::Metadata,
        Box::new(move |event| match inbox.try_data(ToWatches::Bus(event)) {
            Ok(()) => Delivery::Taken,
            Err(Refused::Full(_)) => Delivery::Full,
            Err(Refused::Ended(_)) => Delivery::Gone,
        }),
    );
}

pub(super) fn refused<M>(refused: Refused<M>) -> Error {
    match refused {
        Refused::Full(_) => Error::new(Code::Full, "too many watchers come at once: try again"),
        Refused::Ended(_) => stopped(),
    }
}

pub(super) struct Watches {
    rt: Rt,
    rules: watch::Watches,
    sinks: BTreeMap<u64, Sink>,
    lookups: Lookups,
    own: Inbox<ToWatches>,
    watchers: Gauge,
    reads: Counter,
    sent: Counter,
    resyncs: Counter,
}

impl Watches {
    pub(super) fn new(
        rt: Rt,
        settings: watch::Settings,
        lookups: Lookups,
        own: Inbox<ToWatches>,
        metrics: &mut Metrics,
    ) -> Watches {
        Watches {
            rt,
            rules: watch::Watches::new(settings),
            sinks: BTreeMap::new(),
            lookups,
            own,
            watchers: metrics.gauge("metadata_watchers", "Watchers of metadata on this replica."),
            reads: metrics.counter("metadata_watch_reads", "Reads made for watchers of metadata."),
            sent: metrics.counter("metadata_watch_sent", "Snapshots handed to watchers of metadata."),
            resyncs: metrics.counter(
                "metadata_watch_resyncs",
                "Times watchers' agents were read again because notices were lost.",
            ),
        }
    }

    fn take(&mut self, now: Moment, message: ToWatches) {
        match message {
            ToWatches::Watch { number, scope, sink } => {
                self.sinks.insert(number, sink);
                self.rules.watch(now, number, scope);
            }
            ToWatches::Unwatch { number } => self.forget(number),
            ToWatches::Bus(BusEvent::Notice(Notice::Metadata(agents))) => self.rules.noticed(&agents),
            ToWatches::Bus(BusEvent::Notice(_)) => {}
            ToWatches::Bus(BusEvent::Dropped) => {
                crate::mark!(metadata_notices_dropped);
                self.resyncs.inc();
                if !crate::planted!("no_resync_after_drop") {
                    self.rules.dropped();
                }
            }
            ToWatches::Answer { asked, answer } => self.answered(now, asked, answer),
        }
    }

    fn answered(&mut self, now: Moment, asked: Ask, answer: crate::error::Result<Answer>) {
        match answer {
            Ok(Answer::Listed(agents)) => self.rules.listed(agents),
            Ok(Answer::Read(agents)) => {
                for (values, name) in agents {
                    let watchers = self.rules.read(values.agent, name.as_deref());
                    self.hand_out(&Arc::new(values), watchers);
                }
                self.rules.read_ended();
            }
            Err(error) => {
                log::warn!("metadata cannot be read for its watchers: {error}");
                self.rules.failed(now, asked);
            }
        }
    }

    fn hand_out(&mut self, values: &Arc<AgentValues>, watchers: impl IntoIterator<Item = u64>) {
        for number in watchers {
            let Some(sink) = self.sinks.get_mut(&number) else { continue };
            if sink(values) {
                self.sent.inc();
            } else {
                self.forget(number);
            }
        }
    }

    fn forget(&mut self, number: u64) {
        self.sinks.remove(&number);
        self.rules.unwatch(number);
    }

    fn ask(&mut self, asked: Ask) {
        self.reads.inc();
        let question = asked.clone();
        let own = self.own.clone();
        let told = asked.clone();
        let done = move |answer| {
            // One question is out at a time, so the reserve has room; or the room has ended.
            let _ = own.control(ToWatches::Answer { asked: told, answer });
        };
        if let Err(error) = self.lookups.submit(move |stores| look(stores, &question), done) {
            log::debug!("watchers of metadata wait: {error}");
            self.rules.failed(self.rt.now(), asked);
        }
    }
}

impl Room for Watches {
    type Message = ToWatches;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<ToWatches>) {
        for message in inbox.drain(..) {
            self.take(now, message);
        }
        while let Some(asked) = self.rules.next(now) {
            self.ask(asked);
        }
        self.watchers.set(self.sinks.len() as i64);
    }

    fn deadline(&self) -> Option<Moment> {
        self.rules.deadline()
    }

    /// Dropping the sinks is what tells the watchers.
    fn end(&mut self, _: Moment, inbox: &mut Vec<ToWatches>) {
        inbox.clear();
        self.sinks.clear();
    }
}

/// Asks the store, on the reading thread.
fn look(stores: &mut Opened, asked: &Ask) -> Result<Answer, StoreError> {
    let store = stores.metadata()?;
    match asked {
        Ask::Read { agents, names } => {
            let mut read = Vec::with_capacity(agents.len());
            let mut of_each = BTreeMap::new();
            for row in store.read(agents)? {
                of_each.entry(row.agent).or_insert_with(Vec::new).push(row);
            }
            for agent in agents {
                let name = if *names { store.agent(*agent)?.map(|row| row.name) } else { None };
                let values = of_each.remove(agent).unwrap_or_default();
                read.push((AgentValues { agent: *agent, values }, name));
            }
            Ok(Answer::Read(read))
        }
        Ask::List { prefixes } => {
            const PAGE: usize = 1_000;
            let mut listed = Vec::new();
            for prefix in prefixes {
                let mut after: Option<AgentRow> = None;
                loop {
                    let page = store.agents(prefix, after.as_ref(), PAGE)?;
                    let more = page.len() == PAGE;
                    after = page.last().cloned();
                    listed.extend(page.into_iter().map(|row| (row.id, row.name)));
                    if !more {
                        break;
                    }
                }
            }
            Ok(Answer::Listed(listed))
        }
    }
}

/// The newest snapshot of each agent that a watcher has not seen yet.
type Unseen = Arc<Lock<BTreeMap<Uuid, Arc<AgentValues>>>>;

/// Follows metadata. Iterate over it, or wait for its [signal](Watch::split) in a `select!` of your
/// own. It ends with the engine. Dropping it ends it.
///
/// ```
/// let engine = towpath::Engine::builder().start()?;
/// let agent = engine.rt().uuid_v4();
/// engine.metadata().report(agent, &[("load", "12%", "")])?;
/// engine.metadata().flush()?;
/// let mut watch = engine.metadata().watch(agent)?;
/// let seen = watch.find(|seen| !seen.values.is_empty()).expect("the engine runs");
/// assert_eq!(seen.values[0].value, "12%");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Watch {
    number: u64,
    unseen: Unseen,
    signal: Receiver<()>,
    leave: Leave,
}

/// Tells the room that a watcher is gone.
struct Leave {
    number: u64,
    watches: Inbox<ToWatches>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        // Refused: the room has ended, or is flooded and finds the signal's end gone next time.
        let _ = self.watches.control(ToWatches::Unwatch { number: self.number });
    }
}

impl Watch {
    pub(super) fn new(rt: &Rt, number: u64, watches: Inbox<ToWatches>) -> (Watch, Sink) {
        let (tx, signal): (Sender<()>, _) = rt.channel("watch", 1);
        let unseen = Unseen::default();
        let newest = unseen.clone();
        let sink = Box::new(move |values: &Arc<AgentValues>| {
            newest.lock().insert(values.agent, values.clone());
            // Full: it has not looked since the last signal, and will see this too.
            !matches!(tx.try_send(()), Err(crate::rt::TrySendError::Disconnected(())))
        });
        (Watch { number, unseen, signal, leave: Leave { number, watches } }, sink)
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The newest values of an agent that were not seen yet; waits for them. Nothing: the engine has
    /// ended.
    pub fn wait(&mut self) -> Option<Arc<AgentValues>> {
        loop {
            if let Some(values) = self.newest() {
                return Some(values);
            }
            if self.signal.recv().is_err() {
                return self.newest();
            }
        }
    }

    /// The same, until `deadline`.
    ///
    /// # Errors
    /// [`Code::TimedOut`], or [`Code::Stopped`] when the engine has ended.
    pub fn wait_until(&mut self, deadline: Moment) -> crate::error::Result<Arc<AgentValues>> {
        loop {
            if let Some(values) = self.newest() {
                return Ok(values);
            }
            match self.signal.recv_deadline(deadline) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Error::new(Code::TimedOut, "nothing new was seen in that time"));
                }
                Err(RecvTimeoutError::Disconnected) => return self.newest().ok_or_else(stopped),
            }
        }
    }

    /// What is there now.
    pub fn newest(&mut self) -> Option<Arc<AgentValues>> {
        let values = self.unseen.lock().pop_first().map(|(_, values)| values);
        if values.is_none() {
            // A signal for what was seen already.
            match self.signal.try_recv() {
                Ok(()) => return self.unseen.lock().pop_first().map(|(_, values)| values),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
            }
        }
        values
    }

    /// A receiver for a `select!` of one's own, ready when there is something to take, disconnected
    /// when the engine has ended; and where to take it from.
    pub fn split(self) -> (crossbeam_channel::Receiver<()>, Unread) {
        (self.signal.into_crossbeam(), Unread { unseen: self.unseen, _leave: self.leave })
    }
}

impl Iterator for Watch {
    type Item = Arc<AgentValues>;

    fn next(&mut self) -> Option<Arc<AgentValues>> {
        self.wait()
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({})", self.leave.number)
    }
}

/// What a split [`Watch`] has not seen yet. Dropping it ends the watch.
pub struct Unread {
    unseen: Unseen,
    _leave: Leave,
}

impl Unread {
    /// The newest values of an agent that were not seen yet; call it until there are none.
    pub fn newest(&mut self) -> Option<Arc<AgentValues>> {
        self.unseen.lock().pop_first().map(|(_, values)| values)
    }
}

impl std::fmt::Debug for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unread({})", self.unseen.lock().len())
    }
}
