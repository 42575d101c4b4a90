//! The daemon: from settings to threads and back.
//!
//! [`Daemon::start`] puts implementations behind traits, rooms on threads and routes before them;
//! [`serve`] does that, tells whoever waits, listens for signals, and takes it all down in the order
//! that can be read in [`Daemon::stop`].

mod backends;
mod condition;
mod entrance;
mod figures;
pub(crate) mod limits;
mod logger;
mod notify;
mod operations;
mod parts;
mod pipes;
mod private;
mod probe;
pub mod river;
mod signals;
pub mod upkeep;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Config, Durability};
use crate::engine::pipes::Pipes;
use crate::engine::worker::Crew;
use crate::front::{self, Credentials, Gate, Router, add_dashboard};
use crate::metrics::{Described, Metrics};
use crate::rt::{Moment, Receiver, RecvTimeoutError, Rt, Sender, Thread};
use crate::service::server::Server;
use crate::wire::{Bound, IoThreads, Running};
use crate::{Code, Error, Result};
use condition::Condition;
use entrance::Entrance;
use parts::Parts;
use private::Private;
use signals::Asked;

/// How often the main thread looks whether a room has panicked.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long a stop waits for the rooms to tell their followers.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// How a served daemon ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything was put away.
    Clean,
    /// A room panicked; what it held was salvaged and everything was put away.
    Panicked(String),
}

/// What a service may be asked to do from outside besides running.
pub struct Callbacks<'a> {
    /// Called once, when it takes requests, with its addresses.
    pub ready: &'a mut dyn FnMut(&[Bound]),
    /// Reads the configuration again, for SIGHUP.
    pub reload: &'a mut dyn FnMut() -> Result<Config, String>,
    /// Called when a stop took too long or a second one was asked for: ends the process.
    pub give_up: fn() -> !,
}

/// Serves until it is told to stop.
///
/// # Errors
/// When it cannot begin: the store, the data directory or an address is not to be had.
pub fn serve(mut config: Config, callbacks: Callbacks<'_>) -> Result<Ended> {
    let rt = Rt::real();
    if let Err(error) = logger::install(&rt, config.log.level, config.log.format) {
        return Err(Error::new(Code::Internal, format!("installing the daemon's logger: {error}")));
    }
    let manager = notify::Manager::find();
    // Before anything starts: a stop asked for while we begin must not kill us half-way.
    let (listener, asked) = signals::Listener::start(&rt)?;
    let daemon = Daemon::build(&rt, &config, Some(listener.teller()))?;
    (callbacks.ready)(daemon.addresses());
    manager.ready("serving");

    let mut alive_at = manager.watchdog().map(|_| rt.now());
    let ended = loop {
        if let Some(cause) = daemon.crew.poisoned() {
            break Ended::Panicked(cause);
        }
        if let (Some(every), Some(at)) = (manager.watchdog(), alive_at)
            && rt.now() >= at
            && daemon.condition.ails().is_empty()
        {
            manager.alive();
            alive_at = Some(rt.now() + every);
        }
        match asked.recv_deadline(rt.now() + LOOK_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Asked::Stop) | Err(RecvTimeoutError::Disconnected) => break Ended::Clean,
            Ok(Asked::Reload) => {
                manager.reloading(rt.now().0 / 1_000);
                let _ = reload(&daemon, &mut config, callbacks.reload);
                manager.ready("serving");
            }
            Ok(Asked::ReloadFor(reply)) => {
                manager.reloading(rt.now().0 / 1_000);
                match reload(&daemon, &mut config, callbacks.reload) {
                    Ok(later) => reply.json(200, &json!({ "needs_restart": later })),
                    Err(error) => reply.problem(409, "bad_config", &error),
                }
                manager.ready("serving");
            }
            Ok(Asked::Dump) => log::info!(target: "towpath/dump", "{}", daemon.dump(&config)),
        }
    };
    manager.stopping();
    let deadline = rt.now() + config.server.shutdown_total;
    let watch = Watch::start(&rt, asked, deadline, callbacks.give_up)?;
    daemon.stop(config.server.drain_window, deadline);
    drop(watch);
    drop(listener);
    log::info!(target: "towpath/stopped", "stopped");
    Ok(ended)
}

/// All or nothing: an error keeps what holds. Answers the settings that need a restart.
fn reload(
    daemon: &Daemon,
    config: &mut Config,
    read: &mut dyn FnMut() -> Result<Config, String>,
) -> Result<Vec<&'static str>, String> {
    let read = read().and_then(|new| {
        let said = |error: Error| error.to_string();
        let keys = entrance::Keys::read(&new).map_err(said)?;
        Ok((keys, pipes::allow_list(&new).map_err(said)?, new))
    });
    let (keys, allow, new) = match read {
        Ok(read) => read,
        Err(error) => {
            log::error!(target: "towpath/reload_failed", "the configuration stays as it was: {error}");
            return Err(error);
        }
    };
    let mut later = config.needs_restart(&new);
    let changed = daemon.entrance.change(keys, &daemon.gate);
    if changed.needs_restart {
        later.extend(["tls.certificate", "tls.key"]);
    }
    if changed.ended {
        daemon.doors.recheck();
        daemon.sessions.recheck();
    }
    config.auth.clone_from(&new.auth);
    daemon.pipes.handle().set_allow(allow);
    config.pipes.allow.clone_from(&new.pipes.allow);
    logger::set_level(new.log.level);
    config.log.level = new.log.level;
    config.server.drain_window = new.server.drain_window;
    config.server.shutdown_total = new.server.shutdown_total;
    if later.is_empty() {
        log::info!(target: "towpath/reloaded", "the configuration was read again");
    } else {
        let names = later.join(", ");
        log::warn!(target: "towpath/reloaded", "the configuration was read again; these need a restart: {names}");
    }
    Ok(later)
}

/// Ends the process when a stop takes too long, or at once when a second one is asked for.
struct Watch {
    /// Dropped first: the thread sees it and ends.
    _done: Sender<()>,
    _thread: Thread<()>,
}

impl Watch {
    fn start(rt: &Rt, asked: Receiver<Asked>, deadline: Moment, give_up: fn() -> !) -> Result<Watch> {
        let (done, is_done) = rt.channel::<()>("done", 1);
        let clock = rt.clone();
        let thread = rt.spawn("stop-watch", move || {
            // Wakes for good when `done` is dropped.
            loop {
                match is_done.recv_deadline(clock.now() + LOOK_EVERY.min(Duration::from_millis(50))) {
                    Err(RecvTimeoutError::Disconnected) | Ok(()) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if matches!(asked.try_recv(), Ok(Asked::Stop)) {
                    log::warn!(target: "towpath/stopped_at_once", "told to stop twice: what is spooled stays there");
                    give_up();
                }
                if clock.now() >= deadline {
                    log::error!(target: "towpath/stop_timed_out", "the stop took longer than server.shutdown_total");
                    give_up();
                }
            }
        })?;
        Ok(Watch { _done: done, _thread: thread })
    }
}

/// A daemon that takes requests.
pub struct Daemon {
    rt: Rt,
    crew: Crew,
    condition: Arc<Condition>,
    gate: Arc<Gate>,
    entrance: Entrance,
    figures: Vec<Described>,
    doors: Running,
    /// The door for other replicas, where there is one.
    private: Option<Running>,
    sessions: Server,
    parts: Parts,
    pipes: Pipes,
}

impl Daemon {
    /// Builds everything and opens the doors, last.
    ///
    /// # Errors
    /// When the store, the data directory, a thread or an address is not to be had.
    pub fn start(rt: &Rt, config: &Config) -> Result<Daemon> {
        Daemon::build(rt, config, None)
    }

    /// With `asked`, there is somebody who reads the configuration again when he is told to.
    fn build(rt: &Rt, config: &Config, asked: Option<Sender<Asked>>) -> Result<Daemon> {
        // Before anything is started: what is wrong with files is known at once.
        let (entrance, keys) = Entrance::open(config)?;
        let links = config.limits.links.unwrap_or_else(limits::raise_descriptors);
        limits::warn_of_few_mappings();
        let crew = Crew::new(rt);
        let condition = Arc::new(Condition::new(&crew));
        let threads = config.server.io_threads.unwrap_or_else(|| crate::rt::parallelism() as u64);
        let io = IoThreads::new(rt, usize::try_from(threads).unwrap_or(1), entrance::trust(config)?)?;
        let mut metrics = Metrics::new();
        figures::of_the_process(&mut metrics, rt);
        figures::of_the_doors(&mut metrics, io.doors());
        // Bound before the registry says where it is, opened when there is something behind it.
        let private = Private::bind(config)?;
        let builder = parts::builder(config, private.url())?.wire(io.wire());
        let parts = Parts::start(&crew, builder, &mut metrics)?;
        let engine = &parts.engine;
        let trouble = parts.store_trouble.clone();
        let log = || engine.connections().clone();
        let (spool, damaged, besides) = (log(), log(), log());
        let mut checks: Vec<condition::Check> = vec![
            Box::new(move || trouble.lock().clone()),
            Box::new(move || spool.spool_trouble().map(|why| format!("the spool takes nothing: {why}"))),
        ];
        if let Some(directory) = engine.directory() {
            checks.insert(0, Box::new(directory.has_room()));
        }
        condition.check_with(checks);
        let damage = move || match damaged.account().lost {
            0 => None,
            lost => Some(format!("{lost} records were lost to damage of the spool; the log says which")),
        };
        condition.remark_with(vec![Box::new(damage), Box::new(move || besides.backend_trouble())]);
        let gate = Arc::new(gate(rt, config));
        entrance.change(keys, &gate);
        let mut router = Router::new();
        router.body_max(config.limits.body.in_memory());
        let refused =
            metrics.counter("sessions_refused", "Live reads that were one too many for their caller.");
        router.sessions(front::Sessions::new(rt, config.limits.sessions, refused));
        router.guard(gate.clone());
        add_dashboard(&mut router);
        front::streams::routes(&mut router, engine.streams(), engine.metadata(), follows_max(config));
        front::durable::routes(&mut router, engine.streams());
        let others = [
            front::agents::routes(engine.metadata()),
            front::connections::routes(
                engine.connections(),
                config.connections.durability == Durability::SpoolFirst,
            ),
            front::replicas::routes(engine.replicas()),
            front::live::routes(engine.streams()),
        ];
        others.into_iter().flatten().for_each(|route| router.add(route));

        let pipes = pipes::start(rt, config, engine.visits(), engine.replicas())?;
        pipes.handle().describe(&mut metrics);
        front::pipes::routes(&mut router, rt, &pipes.handle());
        // What sessions ask of the routes, they ask once all routes are known.
        let local = Arc::new(OnceLock::new());
        let behind = river::Behind {
            gate: gate.clone(),
            streams: engine.streams().clone(),
            metadata: engine.metadata().clone(),
            connections: engine.connections().clone(),
            replicas: engine.replicas().clone(),
            visits: engine.visits().clone(),
            local: local.clone(),
        };
        let sessions = river::start(rt, behind, &mut metrics)?;
        router.add(front::river::route("/river", sessions.doorbell().clone()));

        let mut for_replicas = Router::new();
        front::relay::relay_routes(&mut for_replicas, engine.streams(), engine.replicas());
        front::pipes::relay_routes(&mut for_replicas, &pipes.handle(), engine.replicas());
        let private = private.open(rt, for_replicas)?;

        let figures = metrics.described();
        let replicas = engine.replicas();
        operations::add_routes(&mut router, &condition, &gate, replicas, metrics.into_exposition(), asked);
        local.set(router.local()).expect("it is filled once, here");
        let doors =
            io.start(limits::of_links(config, links), entrance.listeners(config)?, Arc::new(router))?;
        let room = engine.directory().map_or_else(String::new, |directory| format!("; {}", directory.room()));
        log::info!(target: "towpath/started", "holds up to {links} links on {threads} I/O threads{room}");
        Ok(Daemon {
            rt: rt.clone(),
            crew,
            condition,
            gate,
            entrance,
            figures,
            doors,
            private,
            sessions,
            parts,
            pipes,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[Bound] {
        self.doors.addresses()
    }

    /// Every figure that `/metrics` shows.
    pub fn figures(&self) -> &[Described] {
        &self.figures
    }

    /// What is going on, without secrets.
    fn dump(&self, config: &Config) -> Value {
        let settings: serde_json::Map<String, Value> =
            config.values().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        json!({
            "condition": self.condition.dump(),
            "links": self.doors.links(),
            "parts": self.parts.dump(),
            "data": self.parts.engine.directory().map(|directory| directory.path()),
            "settings": settings,
        })
    }

    /// Takes everything down. The order is the point: doors first, so that nothing new comes in; the
    /// store last, because everything writes to it.
    fn stop(self, window: Duration, deadline: Moment) {
        self.condition.drain();
        log::info!(target: "towpath/draining", "draining");
        self.parts.engine.streams().drain(window.min(TOLD_WITHIN));
        self.pipes.handle().drain(window);
        self.drain_links(window, deadline);
        self.parts.engine.end_by(deadline);
        drop(self.sessions);
        drop(self.doors);
        // Their peers are told why, within a second.
        drop(self.pipes);
        // What runs here is handed back when the parts go; until then others still fetch from it.
        drop(self.private);
        drop(self.parts);
    }

    /// Tells every link to go elsewhere and waits until they have, or the window is over.
    fn drain_links(&self, window: Duration, deadline: Moment) {
        self.doors.drain(window, self.rt.rand("drain").next_u64());
        let until = (self.rt.now() + window + LOOK_EVERY).min(deadline);
        // Links end on the I/O threads; looking is cheaper than a message for each of them.
        while self.doors.links() > 0 && self.rt.now() < until {
            self.rt.sleep(Duration::from_millis(20));
        }
    }
}

/// Who may come in, before any key is known.
fn gate(rt: &Rt, config: &Config) -> Gate {
    let credentials = match config.needs_credentials() {
        true => Credentials::Needed,
        // A page of a stranger may know a name that leads to 127.0.0.1; it must not use us through it.
        false => {
            Credentials::Off { loopback_hosts: config.server.listen.is_local() && !config.server.insecure }
        }
    };
    Gate::new(rt, credentials, config.server.allow_origins.clone())
}

fn follows_max(config: &Config) -> usize {
    usize::try_from(config.limits.follows).unwrap_or(usize::MAX)
}
