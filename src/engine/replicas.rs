//! The registry of replicas: this one's row kept fresh, its peers known and probed, the relay's keys at hand.
//!
//! [`Replicas`] is what others ask: where a worker's relay listens, and for the tickets that open it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::worker::{Bounds, Crew, Inbox, Refused, Room, Worker};
use crate::bus::{Bus, BusEvent, Delivery, Notice, Topic};
use crate::codec::ticket::{Checker, RelayKey, RelayTicket, TicketRefused};
use crate::rt::{self, Cancel, Moment, Rt, Wall};
use crate::state::replica::{ALIVE_FOR, FORGOTTEN_AFTER, PROBE_WAIT, Peers, SYNC_EVERY, is_alive};
use crate::store::replicas::{RelayKey as StoredKey, ReplicaRead, ReplicaRow};
use crate::store::{ReplicaStore, StoreError, Stores};
use crate::wire::{Dial, Happened, LinkBatch, Outlet, Owner, Speak, Target, Wire};

/// How old the key is when another one is made.
const ROTATE_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// How long a ticket is good: a dial may take a while, and clocks differ.
const TICKET_LIFE: Duration = Duration::from_secs(30);
/// Every so many syncs, rows of the dead are removed.
const CLEAN_EVERY: u32 = 60;

/// Who this replica is.
#[derive(Clone, Debug)]
pub struct ReplicasConfig {
    /// New at each start.
    pub id: Uuid,
    /// The machine.
    pub hostname: String,
    /// Where others reach its relay; none when it has none.
    pub relay_url: Option<String>,
    /// Which towpath.
    pub version: String,
}

/// Another replica, as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSeen {
    /// Which.
    pub id: Uuid,
    /// Its machine.
    pub hostname: String,
    /// Where its relay listens; none when it has none.
    pub relay_url: Option<String>,
    /// Why the last probe of its relay failed.
    pub error: Option<String>,
}

/// What is known of the replicas. Cheap to clone.
#[derive(Clone)]
pub struct Replicas {
    shared: Arc<Shared>,
}

struct Shared {
    rt: Rt,
    me: Uuid,
    known: rt::Lock<Known>,
}

#[derive(Default)]
struct Known {
    rows: Vec<ReplicaRead>,
    urls: BTreeMap<Uuid, String>,
    /// The newest first.
    keys: Vec<Key>,
    error: String,
    failed: BTreeMap<Uuid, String>,
}

struct Key {
    id: Uuid,
    made: Wall,
    signs: RelayKey,
    checker: Checker,
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replicas({})", self.shared.me)
    }
}

impl Replicas {
    /// This replica.
    pub fn me(&self) -> Uuid {
        self.shared.me
    }

    /// Every row, as of the last sync.
    pub fn list(&self) -> Vec<ReplicaRead> {
        self.shared.known.lock().rows.clone()
    }

    /// Which peers cannot be reached; empty when all is well.
    pub fn error(&self) -> String {
        self.shared.known.lock().error.clone()
    }

    /// The other replicas that are alive, and what keeps this one from reaching them.
    pub fn peers(&self) -> Vec<PeerSeen> {
        let known = self.shared.known.lock();
        let alive = known
            .rows
            .iter()
            .filter(|row| row.replica.id != self.shared.me && is_alive(row.age, row.stopped_at.is_some()));
        let seen = alive.map(|row| PeerSeen {
            id: row.replica.id,
            hostname: row.replica.hostname.clone(),
            relay_url: row.replica.relay_url.clone(),
            error: known.failed.get(&row.replica.id).cloned(),
        });
        seen.collect()
    }

    /// Where the relay of a replica listens, if it is alive.
    pub fn relay_url(&self, replica: Uuid) -> Option<String> {
        self.shared.known.lock().urls.get(&replica).cloned()
    }

    /// A ticket that opens another replica's relay for one stream, once.
    pub fn ticket(&self, to: Uuid, stream: Uuid) -> Option<String> {
        let ticket = RelayTicket {
            expires: self.shared.rt.wall() + TICKET_LIFE,
            nonce: self.shared.rt.secret(),
            stream,
            from: self.shared.me,
            to,
        };
        let now = self.shared.rt.wall();
        let known = self.shared.known.lock();
        // A key that was just made is not known everywhere yet; the one before it is.
        let spread = |key: &&Key| key.made.as_micros() + ALIVE_FOR.as_micros() as i64 <= now.as_micros();
        let key = known.keys.iter().find(spread).or(known.keys.last());
        key.map(|key| key.signs.sign(&ticket))
    }

    /// Accepts a ticket for this replica, once.
    ///
    /// # Errors
    /// Why not.
    pub fn accept(&self, ticket: &str) -> Result<RelayTicket, TicketRefused> {
        let now = self.shared.rt.wall();
        let mut known = self.shared.known.lock();
        let mut refused = TicketRefused::Forged;
        for key in &mut known.keys {
            match key.checker.accept(ticket, now) {
                // Perhaps it was signed with an older key.
                Err(TicketRefused::Forged) => {}
                Err(why) => refused = why,
                Ok(ticket) => return Ok(ticket),
            }
        }
        Err(refused)
    }
}

/// The thread behind [`Replicas`]. Dropping it marks the replica as stopped.
pub struct ReplicasEngine {
    replicas: Replicas,
    _worker: Worker,
}

impl fmt::Debug for ReplicasEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.replicas.fmt(f)
    }
}

impl ReplicasEngine {
    /// Writes this replica's row and starts the thread that keeps it fresh. Without a wire nobody is probed.
    ///
    /// # Errors
    /// The store cannot be reached, or there is no thread to have.
    pub fn start(
        crew: &Crew,
        config: ReplicasConfig,
        stores: &dyn Stores,
        bus: &Arc<dyn Bus>,
        wire: Option<Arc<dyn Wire>>,
    ) -> crate::Result<ReplicasEngine> {
        let rt = crew.rt();
        let shared = Arc::new(Shared { rt: rt.clone(), me: config.id, known: rt::Lock::default() });
        let replicas = Replicas { shared };
        let mut registrar = Registrar {
            replicas: replicas.clone(),
            config,
            store: stores.replicas()?,
            bus: bus.clone(),
            wire,
            outlet: None,
            cancel: rt.cancel_token(),
            peers: Peers::default(),
            told: String::new(),
            sync_at: rt.now(),
            syncs: 0,
        };
        // Before anybody can ask: who follows right after the start finds workers, and its tickets are good.
        registrar.sync(rt.now())?;
        let (worker, inbox) = Worker::spawn(crew, "replicas", Bounds::of(256), |inbox| {
            registrar.outlet = Some(outlet(inbox));
            registrar
        })?;
        bus.subscribe(Topic::Replica, Box::new(move |event| deliver(&inbox, event)));
        Ok(ReplicasEngine { replicas, _worker: worker })
    }

    /// What is known of the replicas.
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }
}

fn outlet(inbox: &Inbox<News>) -> Outlet {
    let inbox = inbox.clone();
    Outlet::new(move |batch| match inbox.try_data(News::Links(batch)) {
        Err(Refused::Full(News::Links(batch))) => Err(batch),
        // Taken; or ended, and nobody is left to hear.
        _ => Ok(()),
    })
}

fn deliver(inbox: &Inbox<News>, event: BusEvent) -> Delivery {
    let news = match event {
        BusEvent::Notice(Notice::Replica(replica)) => News::Changed(Some(replica)),
        BusEvent::Notice(_) => return Delivery::Taken,
        BusEvent::Dropped => News::Changed(None),
    };
    match inbox.try_data(news) {
        Ok(()) => Delivery::Taken,
        Err(Refused::Full(_)) => Delivery::Full,
        Err(Refused::Ended(_)) => Delivery::Gone,
    }
}

/// What the room hears.
enum News {
    /// A replica changed, or some did.
    Changed(Option<Uuid>),
    /// Probes have answered.
    Links(LinkBatch),
}

struct Registrar {
    replicas: Replicas,
    config: ReplicasConfig,
    store: Box<dyn ReplicaStore>,
    bus: Arc<dyn Bus>,
    wire: Option<Arc<dyn Wire>>,
    outlet: Option<Outlet>,
    cancel: Cancel,
    peers: Peers,
    /// The error as others were last told of it.
    told: String,
    sync_at: Moment,
    syncs: u32,
}

impl Registrar {
    fn rt(&self) -> &Rt {
        &self.replicas.shared.rt
    }

    fn sync(&mut self, now: Moment) -> Result<(), StoreError> {
        self.sync_at = now + SYNC_EVERY;
        let error = self.peers.error();
        let ReplicasConfig { id, hostname, relay_url, version } = self.config.clone();
        self.store.beat(&ReplicaRow { id, hostname, relay_url, version, error: error.clone() })?;
        let rows = self.store.list()?;
        let fresh =
            StoredKey { id: self.rt().uuid_v7(), secret: self.rt().secret(), created_at: self.rt().wall() };
        let keys = self.store.relay_keys(fresh, ROTATE_AFTER)?;
        if self.syncs.is_multiple_of(CLEAN_EVERY) {
            self.store.clean(FORGOTTEN_AFTER)?;
        }
        self.syncs = self.syncs.wrapping_add(1);
        let urls: BTreeMap<Uuid, String> = rows
            .iter()
            .filter(|row| row.replica.id != id && is_alive(row.age, row.stopped_at.is_some()))
            .filter_map(|row| Some((row.replica.id, row.replica.relay_url.clone()?)))
            .collect();
        {
            let mut known = self.replicas.shared.known.lock();
            let mut old = std::mem::take(&mut known.keys);
            // A key that is still good keeps what it remembers of tickets used.
            known.keys = keys
                .into_iter()
                .map(|key| match old.iter().position(|of| of.id == key.id) {
                    Some(at) => old.swap_remove(at),
                    None => {
                        let signs = RelayKey::new(key.secret);
                        let checker = Checker::new(signs.clone(), id);
                        Key { id: key.id, made: key.created_at, signs, checker }
                    }
                })
                .collect();
            known.rows = rows;
            known.urls.clone_from(&urls);
            known.error.clone_from(&error);
            known.failed.clone_from(self.peers.failed());
        }
        if self.syncs == 1 || error != self.told {
            self.told = error;
            self.bus.publish(Notice::Replica(id));
        }
        let probes = self.peers.sync(urls);
        self.probe(now, probes);
        Ok(())
    }

    fn probe(&mut self, now: Moment, probes: Vec<(u64, String)>) {
        let (Some(wire), Some(outlet)) = (&self.wire, &self.outlet) else { return };
        // Those of the last round that have not answered are given up.
        self.cancel.cancel();
        self.cancel = self.replicas.shared.rt.cancel_token();
        for (number, url) in probes {
            match Target::parse(&url) {
                Ok(target) => wire.dial(Dial {
                    target,
                    speak: Speak::Raw,
                    headers: Vec::new(),
                    deadline: now + PROBE_WAIT,
                    cancel: self.cancel.clone(),
                    owner: Owner::new(outlet, number),
                }),
                Err(why) => self.peers.probed(number, Err(why.to_string())),
            }
        }
    }
}

impl Room for Registrar {
    type Message = News;

    fn wake(&mut self, now: Moment, inbox: &mut Vec<News>) {
        for news in inbox.drain(..) {
            match news {
                News::Changed(who) if who == Some(self.config.id) => {}
                // However many changed, they are read once.
                News::Changed(_) => self.sync_at = now,
                News::Links(batch) => {
                    for event in batch {
                        match event.what {
                            Happened::Opened(link, _) => {
                                link.close(crate::wire::websocket::close::ABNORMAL, "probe");
                                self.peers.probed(event.tag, Ok(()));
                            }
                            Happened::Refused(why) => self.peers.probed(event.tag, Err(why.to_string())),
                            _ => {}
                        }
                    }
                }
            }
        }
        if self.sync_at <= now
            && let Err(error) = self.sync(now)
        {
            log::warn!("replicas not synced error={error}");
        }
    }

    fn deadline(&self) -> Option<Moment> {
        Some(self.sync_at)
    }

    /// Peers need not wait until it is not heard of any more.
    fn end(&mut self, _now: Moment, _inbox: &mut Vec<News>) {
        self.cancel.cancel();
        if let Err(error) = self.store.stop(self.config.id) {
            log::warn!("replica not marked as stopped error={error}");
        }
        self.bus.publish(Notice::Replica(self.config.id));
    }
}
