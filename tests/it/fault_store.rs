//! The built daemon on a PostgreSQL that goes away: stopped as if the power went, again and again, and
//! stopped for long. `make faults` stops it more often, and for longer.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::Cluster;
use crate::effort::{cycles, slow};
use crate::fault_receipts::{Killable, agent, look, start_with, stored};

/// A server that only this test stops, or nothing, said loudly.
fn cluster() -> Option<Cluster> {
    match Cluster::start() {
        Ok(cluster) => Some(cluster),
        Err(why) => {
            crate::cluster::not_run(&why);
            None
        }
    }
}

fn daemon(cluster: &Cluster, data: &std::path::Path) -> Killable {
    let url = cluster.database();
    start_with(data, |command| {
        command.env("TOWPATH_STORE__URL", url).env("TOWPATH_CONNECTIONS__INTERVAL", "500ms");
    })
}

/// Producers that bring some 500 records a second, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    taken: Arc<Mutex<BTreeSet<String>>>,
    producers: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(url: &str) -> Load {
        const A_POST: u64 = 25;
        const EVERY: Duration = Duration::from_millis(100);
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1)));
        let taken: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        // One with receipts and one without: this process is not killed, so neither may lose anything.
        let producers = ["durable", "handling=lenient"].map(|prefer| {
            let (url, stop, next, taken) = (url.to_owned(), stop.clone(), next.clone(), taken.clone());
            std::thread::spawn(move || {
                let agent = agent();
                let mut due = Instant::now();
                while !stop.load(Relaxed) {
                    let first = next.fetch_add(A_POST, Relaxed);
                    let ids: Vec<String> = (first..first + A_POST)
                        .map(|n| uuid::Uuid::from_u128(n.into()).to_string())
                        .collect();
                    let body: String = ids
                        .iter()
                        .map(|id| {
                            json!({"id": id, "type": "workspace_app", "status": "connected"}).to_string()
                                + "\n"
                        })
                        .collect();
                    let sent = agent
                        .post(format!("{url}/v1/connections"))
                        .header("prefer", prefer)
                        .header("content-type", "application/x-ndjson")
                        .send(body);
                    let answer = sent.expect("the daemon answers, whatever its database does");
                    assert_eq!(answer.status(), 202, "there is room in the spool");
                    taken.lock().expect("nobody panics with it").extend(ids);
                    due += EVERY;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            })
        });
        Load { stop, taken, producers: producers.into() }
    }

    fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Relaxed);
        self.producers.into_iter().for_each(|producer| producer.join().expect("no producer panics"));
        std::mem::take(&mut *self.taken.lock().expect("nobody panics with it"))
    }
}

/// A figure of `/metrics`.
fn figure(url: &str, name: &str) -> u64 {
    let (_, text) = look(url, "/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.and_then(|number| number.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name} in {text}")) as u64
}

/// Waits until the daemon stores rows again; how long that took.
fn until_stored_again(url: &str) -> Duration {
    let began = Instant::now();
    let before = figure(url, "towpath_connections_stored_total");
    while figure(url, "towpath_connections_stored_total") == before {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing is stored though the database answers");
        std::thread::sleep(Duration::from_millis(20));
    }
    began.elapsed()
}

/// Everything that was taken is in the store, once.
fn check(url: &str, taken: &BTreeSet<String>) {
    // What is in memory is written one interval later, and the spool takes as long as there is in it: what
    // must not be is that nothing moves.
    let waiting = || figure(url, "towpath_connections_pending") + figure(url, "towpath_spool_records");
    let (mut left, mut moved) = (waiting(), Instant::now());
    while left > 0 {
        std::thread::sleep(Duration::from_millis(50));
        let now = waiting();
        if now < left {
            (left, moved) = (now, Instant::now());
        }
        assert!(moved.elapsed() < Duration::from_secs(60), "{left} records wait and nothing is stored");
    }
    let found = stored(url, Duration::from_secs(60));
    let wrong: Vec<&String> = taken.iter().filter(|id| found.get(*id) != Some(&1)).collect();
    assert!(wrong.is_empty(), "{} of {} are not there exactly once: {wrong:?}", wrong.len(), taken.len());
    assert_eq!(found.len(), taken.len(), "something is there that nobody brought");
}

#[test]
fn fault_the_database_is_stopped_at_once_under_load_and_nothing_is_lost_or_doubled() {
    let Some(cluster) = cluster() else { return };
    let data = tempfile::tempdir().expect("a temporary folder");
    let daemon = daemon(&cluster, data.path());
    let load = Load::start(&daemon.url);
    let restarts = cycles(5, 100);
    let mut longest = Duration::ZERO;
    for restart in 0..restarts {
        // The moment of the stop, by a fixed rule; not a wait for anything.
        std::thread::sleep(Duration::from_millis(100 + restart * 7_919 % 700));
        cluster.down("immediate").expect("it stops");
        cluster.up().expect("it starts");
        longest = longest.max(until_stored_again(&daemon.url));
    }
    let taken = load.end();
    check(&daemon.url, &taken);
    println!(
        "{} records through {restarts} stops; stored again {longest:?} after the database at the latest",
        taken.len()
    );
}

/// Memory of a process that is its own.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

#[test]
fn fault_while_the_database_is_away_memory_stays_flat_and_all_is_stored_after() {
    const GROWTH_MAX: u64 = 64 << 20;
    let Some(cluster) = cluster() else { return };
    let data = tempfile::tempdir().expect("a temporary folder");
    let daemon = daemon(&cluster, data.path());
    let load = Load::start(&daemon.url);
    until_stored_again(&daemon.url);
    let before = resident(daemon.pid());
    cluster.down("fast").expect("it stops");
    let away = Duration::from_secs(if slow() { 600 } else { 8 });
    let until = Instant::now() + away;
    let mut most = 0;
    while Instant::now() < until {
        most = most.max(resident(daemon.pid()));
        std::thread::sleep(Duration::from_millis(200));
    }
    let (status, _) = look(&daemon.url, "/readyz");
    assert_eq!(status, 503, "no work should come to a daemon whose store is away");
    let growth = most.saturating_sub(before);
    assert!(growth <= GROWTH_MAX, "memory grew by {growth} bytes in {away:?}");
    let taken = load.end();
    cluster.up().expect("it starts");
    let back = Instant::now();
    check(&daemon.url, &taken);
    println!(
        "{} records through {away:?} away: memory grew by {} MiB, all stored {:?} after",
        taken.len(),
        growth >> 20,
        back.elapsed()
    );
}
