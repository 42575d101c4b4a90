//! Metadata: the handle that agents' reports are given to, and what stands behind it.

mod door;
mod figures;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use uuid::Uuid;

pub(super) use self::door::MetadataDoor;
use self::figures::describe;
use super::door::Sealed;
use super::flush::{FlushMetadata, MetadataParts, ToFlush, flush_now};
use super::lookups::Lookups;
use super::retries::Shared;
use super::watches::{self, AgentValues, ToWatches, Watch, Watches};
use super::worker::{Bounds as InboxBounds, Crew, Inbox, Worker};
use crate::bus::Bus;
use crate::error::{Code, Error, Result};
use crate::metrics::Metrics;
use crate::rt::{Moment, Rt};
use crate::state::batch::Bounds;
use crate::state::metadata::Limits;
use crate::state::watch::{self, Scope};
use crate::store::Stores;
use crate::store::metadata::{AgentRow, KeyRow, Sight};

/// How metadata gathers.
///
/// ```
/// use std::time::Duration;
/// use towpath::MetadataSettings;
///
/// let settings = MetadataSettings { interval: Duration::from_millis(500), ..MetadataSettings::default() };
/// ```
#[derive(Clone, Debug)]
pub struct MetadataSettings {
    /// With this many distinct keys they are written at once. 5,000, so that 600 agents of 15 keys
    /// every 10 s are one statement every 5 s.
    pub capacity: usize,
    /// The oldest value waits no longer than this.
    pub interval: Duration,
    /// With this many distinct keys in memory new ones are refused.
    pub bound: usize,
    /// How long what is reported may be.
    pub limits: Limits,
    /// Whether agents and keys are made when they are first seen.
    pub sight: Sight,
    /// How watchers are served.
    pub watch: watch::Settings,
}

impl Default for MetadataSettings {
    fn default() -> MetadataSettings {
        MetadataSettings {
            capacity: 5_000,
            interval: Duration::from_secs(5),
            bound: 1_000_000,
            limits: Limits::default(),
            sight: Sight::Register,
            watch: watch::Settings::default(),
        }
    }
}

/// What metadata needs from outside.
pub struct MetadataOutside<'a> {
    /// The rooms it joins.
    pub crew: &'a Crew,
    /// Where values go.
    pub stores: Arc<dyn Stores>,
    /// Tells every replica who has new values.
    pub bus: Arc<dyn Bus>,
    /// Reads apart from writes.
    pub lookups: Lookups,
    /// Where its figures are described.
    pub metrics: &'a mut Metrics,
}

impl std::fmt::Debug for MetadataOutside<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MetadataOutside")
    }
}

/// The latest value an agent reported under each of its keys.
///
/// Reports are merged where the caller stands and written together, so thousands of agents cost the
/// database one statement every few seconds. A value that could not be written stays in memory until
/// it can be or a newer one replaces it; it is not spooled, since the next report replaces it anyway.
///
/// ```
/// let engine = towpath::Engine::builder().start()?;
/// let metadata = engine.metadata();
/// let agent = engine.rt().uuid_v4();
/// for percent in ["10%", "20%", "30%"] {
///     metadata.report(agent, &[("load", percent, "")])?;
/// }
/// assert_eq!(metadata.pending(), 1); // only the newest is written
/// metadata.flush()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Metadata {
    shared: Arc<Inner>,
}

struct Inner {
    rt: Rt,
    settings: MetadataSettings,
    door: Arc<MetadataDoor>,
    flush: Inbox<ToFlush>,
    watches: Inbox<ToWatches>,
    lookups: Lookups,
    next_watch: std::sync::atomic::AtomicU64,
}

/// The threads behind a [`Metadata`]. Dropping it ends the watchers, writes what is held and joins
/// them.
#[derive(Debug)]
#[must_use = "dropping it stops the metadata"]
pub struct MetadataRooms {
    rt: Rt,
    shared: Arc<Shared>,
    watches: Option<Worker>,
    flush: Option<Worker>,
}

/// Why not all of a report was taken. What is not named here was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportError {
    /// The keys are too long together; the first `accepted` of them were taken.
    KeysTooLong {
        /// How many were taken.
        accepted: usize,
        /// The others.
        left_out: Vec<String>,
        /// The bytes of all.
        bytes: usize,
        /// What they may have.
        limit: usize,
    },
    /// As many distinct keys as may be are in memory, and these are new. Known ones were taken.
    Full {
        /// How many were taken.
        accepted: usize,
        /// The others.
        left_out: Vec<String>,
        /// How many keys there may be.
        bound: usize,
    },
    /// The columns of a report are not of one length; nothing was taken.
    Unequal {
        /// How many keys there are.
        keys: usize,
        /// How many values.
        values: usize,
        /// How many errors.
        errors: usize,
    },
    /// The engine has ended; nothing was taken.
    Stopped,
}

impl std::fmt::Display for ReportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReportError::KeysTooLong { left_out, bytes, limit, .. } => {
                write!(
                    f,
                    "metadata keys of {bytes} bytes exceeded {limit} bytes, left out: {}",
                    left_out.join(", ")
                )
            }
            ReportError::Full { left_out, bound, .. } => {
                write!(f, "{bound} distinct metadata keys are in memory, left out: {}", left_out.join(", "))
            }
            ReportError::Unequal { keys, values, errors } => {
                write!(
                    f,
                    "a report has {keys} keys, {values} values and {errors} errors: it needs as many of each"
                )
            }
            ReportError::Stopped => f.write_str("the engine has stopped"),
        }
    }
}

impl std::error::Error for ReportError {}

impl From<ReportError> for Error {
    fn from(error: ReportError) -> Error {
        let code = match error {
            ReportError::KeysTooLong { .. } | ReportError::Unequal { .. } => Code::BadRequest,
            ReportError::Full { .. } => Code::Full,
            ReportError::Stopped => Code::Stopped,
        };
        Error::new(code, error.to_string())
    }
}

impl Metadata {
    /// Starts the metadata.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(
        settings: MetadataSettings,
        outside: MetadataOutside<'_>,
    ) -> Result<(Metadata, MetadataRooms)> {
        let MetadataOutside { crew, stores, bus, lookups, metrics } = outside;
        let rt = crew.rt().clone();
        let door = Arc::new(MetadataDoor::new(&rt, settings.bound));
        let (figures, more) = describe(metrics, &door);
        let shared = Arc::new(Shared::new());
        let (watches, watch_inbox) = Worker::spawn(crew, "watches", InboxBounds::of(4_096), |own| {
            Watches::new(rt.clone(), settings.watch, lookups.clone(), own.clone(), metrics)
        })?;
        watches::subscribe(bus.as_ref(), &watch_inbox);
        let parts = MetadataParts {
            rt: rt.clone(),
            door: door.clone(),
            stores,
            bus,
            shared: shared.clone(),
            bounds: Bounds {
                capacity: settings.capacity,
                bound: settings.bound,
                interval: settings.interval,
            },
            sight: settings.sight,
            figures,
            more,
        };
        let (flush, flush_inbox) =
            Worker::spawn(crew, "flush-metadata", InboxBounds::of(64), |_| FlushMetadata::new(parts))?;
        let rooms = MetadataRooms { rt: rt.clone(), shared, watches: Some(watches), flush: Some(flush) };
        let inner = Inner {
            rt,
            settings,
            door,
            flush: flush_inbox,
            watches: watch_inbox,
            lookups,
            next_watch: std::sync::atomic::AtomicU64::new(1),
        };
        Ok((Metadata { shared: Arc::new(inner) }, rooms))
    }

    /// Takes what an agent reports: key, value, error (empty when there is none). The time is this
    /// engine's. Returns how many were taken, which is all of them.
    ///
    /// # Errors
    /// See [`ReportError`]; what it does not name was taken.
    pub fn report(
        &self,
        agent: Uuid,
        report: &[(&str, &str, &str)],
    ) -> std::result::Result<usize, ReportError> {
        let inner = &*self.shared;
        let limits = &inner.settings.limits;
        let fit = limits.fit(report.iter().map(|(key, ..)| *key));
        let taken = &report[..fit.as_ref().map_or_else(|long| long.fit, |()| report.len())];
        let added =
            inner.door.add(agent, inner.rt.now(), taken, limits).map_err(|Sealed| ReportError::Stopped)?;
        inner.wake(added.before, added.new);
        if !added.refused.is_empty() {
            return Err(ReportError::Full {
                accepted: taken.len() - added.refused.len(),
                left_out: added.refused,
                bound: inner.settings.bound,
            });
        }
        fit.map(|()| report.len()).map_err(|long| ReportError::KeysTooLong {
            accepted: long.fit,
            left_out: report[long.fit..].iter().map(|(key, ..)| (*key).to_owned()).collect(),
            bytes: long.bytes,
            limit: long.limit,
        })
    }

    /// [`Metadata::report`] for a report that comes as columns.
    ///
    /// # Errors
    /// As there, and when the columns are of unequal length.
    pub fn report_columns(
        &self,
        agent: Uuid,
        keys: &[&str],
        values: &[&str],
        errors: &[&str],
    ) -> std::result::Result<usize, ReportError> {
        let lengths = (keys.len(), values.len(), errors.len());
        if lengths.0 != lengths.1 || lengths.0 != lengths.2 {
            return Err(ReportError::Unequal { keys: lengths.0, values: lengths.1, errors: lengths.2 });
        }
        let report: Vec<(&str, &str, &str)> =
            keys.iter().zip(values).zip(errors).map(|((key, value), error)| (*key, *value, *error)).collect();
        self.report(agent, &report)
    }

    /// An agent's values as they are stored, by display order, then key.
    ///
    /// # Errors
    /// The store cannot be asked, or the engine has ended.
    pub fn get(&self, agent: Uuid) -> Result<AgentValues> {
        self.shared.lookups.ask(move |stores| {
            let values = stores.metadata()?.read(&[agent])?;
            Ok(AgentValues { agent, values })
        })
    }

    /// Follows an agent's values: the first look at once, then whenever they change, and at least
    /// every five seconds, so that ages stay right. Who is slow gets the newest state, not a backlog.
    ///
    /// # Errors
    /// The engine has ended, or too much is asked of it at once.
    pub fn watch(&self, agent: Uuid) -> Result<Watch> {
        self.watch_many(vec![agent])
    }

    /// [`Metadata::watch`] for several agents.
    ///
    /// # Errors
    /// As there.
    pub fn watch_many(&self, agents: Vec<Uuid>) -> Result<Watch> {
        self.watch_scope(Scope::Agents(agents))
    }

    /// [`Metadata::watch`] for all agents whose name begins with `prefix`, those to come among them.
    /// The empty prefix is every agent.
    ///
    /// # Errors
    /// As there.
    pub fn watch_all(&self, prefix: impl Into<String>) -> Result<Watch> {
        self.watch_scope(Scope::Prefix(prefix.into()))
    }

    fn watch_scope(&self, scope: Scope) -> Result<Watch> {
        let (watch, sink) = Watch::new(&self.shared.rt, self.number(), self.shared.watches.clone());
        self.watch_with(watch.number(), scope, sink)?;
        Ok(watch)
    }

    /// A number for a watcher that brings its own sink.
    pub fn number(&self) -> u64 {
        self.shared.next_watch.fetch_add(1, Relaxed)
    }

    /// Follows with a sink of one's own: called on the thread of the watches, which it must not hold
    /// up; it answers false when it wants no more.
    ///
    /// # Errors
    /// As [`Metadata::watch`].
    pub fn watch_with(&self, number: u64, scope: Scope, sink: watches::Sink) -> Result<()> {
        let message = ToWatches::Watch { number, scope, sink };
        self.shared.watches.try_data(message).map_err(watches::refused)
    }

    /// Ends what [`Metadata::watch_with`] began.
    pub fn unwatch(&self, number: u64) {
        // Refused when the room has ended, and the watcher with it; or when it is flooded, and then
        // the sink says so itself the next time.
        let _ = self.shared.watches.control(ToWatches::Unwatch { number });
    }

    /// Writes what is held now, and returns once that was tried.
    ///
    /// # Errors
    /// [`Code::Stopped`] after the engine's end, [`Code::TimedOut`] after ten seconds.
    pub fn flush(&self) -> Result<()> {
        flush_now(&self.shared.rt, &self.shared.flush, Duration::from_secs(10))
    }

    /// Makes an agent or gives it another name. True when that changed something.
    ///
    /// # Errors
    /// The store cannot be asked, or the engine has ended.
    pub fn name(&self, agent: Uuid, name: impl Into<String>) -> Result<bool> {
        let name = name.into();
        self.shared.lookups.ask(move |stores| stores.metadata()?.put_agent(agent, &name))
    }

    /// Says how an agent's keys are shown.
    ///
    /// # Errors
    /// As [`Metadata::name`].
    pub fn declare(&self, agent: Uuid, keys: Vec<KeyRow>) -> Result<()> {
        self.shared.lookups.ask(move |stores| stores.metadata()?.declare(agent, &keys))
    }

    /// Agents whose name begins with `prefix`, by name, after the last of the page before.
    ///
    /// # Errors
    /// As [`Metadata::name`].
    pub fn agents(&self, prefix: &str, after: Option<AgentRow>, limit: usize) -> Result<Vec<AgentRow>> {
        let prefix = prefix.to_owned();
        self.shared.lookups.ask(move |stores| stores.metadata()?.agents(&prefix, after.as_ref(), limit))
    }

    /// Deletes values collected longer ago than this, in bounded steps; how many.
    ///
    /// # Errors
    /// As [`Metadata::name`].
    pub fn prune(&self, older_than: Duration) -> Result<u64> {
        const STEP: usize = 1_000;
        let mut pruned = 0;
        loop {
            let gone = self.shared.lookups.ask(move |stores| stores.metadata()?.prune(older_than, STEP))?;
            pruned += gone;
            if gone < STEP as u64 {
                return Ok(pruned);
            }
        }
    }

    /// Reads apart from writes, for doors that must not wait.
    pub fn lookups(&self) -> &Lookups {
        &self.shared.lookups
    }

    /// How many values are in memory, not yet written.
    pub fn pending(&self) -> usize {
        self.shared.door.held() + self.shared.door.kept.load(Relaxed)
    }
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metadata").field("pending", &self.pending()).finish()
    }
}

impl Inner {
    /// Wakes the flush room when the first entry came, or the one that makes it enough.
    fn wake(&self, before: usize, new: usize) {
        let capacity = self.settings.capacity;
        if new > 0 && (before == 0 || before < capacity && before + new >= capacity) {
            // A full inbox: it is about to look anyway.
            let _ = self.flush.control(ToFlush::Look);
        }
    }
}

impl MetadataRooms {
    /// When everything has to be over; what is not written by then is counted as unsaved.
    pub fn end_by(&self, deadline: Moment) {
        self.shared.deadline.store(deadline.0, Relaxed);
    }
}

impl Drop for MetadataRooms {
    fn drop(&mut self) {
        if self.shared.deadline() == Moment::NEVER {
            self.end_by(self.rt.now() + Duration::from_secs(10));
        }
        self.watches = None;
        self.flush = None;
    }
}
