//! Batching: the doors, the big writes and the spool, each beside the bare work.
//!
//! PostgreSQL is started as the tests start it; without it those cases are skipped, and say so.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use towpath::bus::Bus;
use towpath::bus::local::LocalBus;
use towpath::bus::postgres::PostgresBus;
use towpath::engine::connections::{ConnectionOutside, ConnectionRooms, ConnectionSettings, Connections};
use towpath::engine::lookups::Lookups;
use towpath::engine::metadata::{Metadata, MetadataOutside, MetadataRooms, MetadataSettings};
use towpath::engine::worker::{Crew, Worker};
use towpath::metrics::Metrics;
use towpath::rt::{Rt, Wall};
use towpath::spool::{File, Item, Limits, Spool, WhenFull};
use towpath::state::connection::{Kind, Record, Row, Status};
use towpath::state::metadata::{Entry, Key};
use towpath::store::metadata::Sight;
use towpath::store::postgres::{Options, Patience, PostgresStores};
use towpath::store::sqlite::SqliteStores;
use towpath::store::{ConnectionStore, Identity, MetadataStore, Stores};
use uuid::Uuid;

use crate::cluster;
use crate::pairs::{Bench, Case, Sample};

pub(crate) fn run(bench: &mut Bench) {
    adds(bench);
    records(bench);
    spool(bench);
    sqlite(bench);
    if !ON_POSTGRES.iter().any(|name| bench.wants(name)) {
        return;
    }
    match cluster::cluster() {
        Ok(cluster) => on_postgres(bench, &cluster.database()),
        Err(why) => println!("SKIPPED, needs PostgreSQL: {why}"),
    }
}

const ON_POSTGRES: [&str; 3] = ["batching/pg-connections", "batching/pg-metadata", "batching/watcher-p50"];

/// The connection log and the metadata over a store, without doors to the world.
struct Engine {
    rt: Rt,
    metadata: Metadata,
    connections: Connections,
    // Dropped in this order: those who write, then who reads.
    _rooms: (MetadataRooms, ConnectionRooms),
    _lookups: Worker,
    _crew: Crew,
}

impl Engine {
    fn start(stores: Arc<dyn Stores>, bus: Arc<dyn Bus>, interval: Duration) -> Engine {
        let (rt, mut metrics) = (Rt::real(), Metrics::new());
        let crew = Crew::new(&rt);
        let (lookups, worker) = Lookups::start(&crew, "reader", stores.clone()).expect("a thread");
        let settings = MetadataSettings { interval, ..MetadataSettings::default() };
        let (metadata, metadata_rooms) = Metadata::start(
            settings,
            MetadataOutside {
                crew: &crew,
                stores: stores.clone(),
                bus,
                lookups: lookups.clone(),
                metrics: &mut metrics,
            },
        )
        .expect("threads");
        let spool = Box::new(File::memory(LIMITS).expect("a spool in memory"));
        let settings = ConnectionSettings { interval, ..ConnectionSettings::default() };
        let (connections, connection_rooms) = Connections::start(
            settings,
            ConnectionOutside {
                crew: &crew,
                stores,
                spool,
                durable: false,
                backends: Vec::new(),
                lookups,
                metrics: &mut metrics,
            },
        )
        .expect("threads");
        Engine {
            rt,
            metadata,
            connections,
            _rooms: (metadata_rooms, connection_rooms),
            _lookups: worker,
            _crew: crew,
        }
    }
}

const LIMITS: Limits = Limits { max_bytes: 1 << 40, min_free: 0, when_full: WhenFull::Refuse };
const NEVER: Duration = Duration::from_secs(86_400);

fn in_memory() -> Arc<dyn Stores> {
    let rt = Rt::real();
    let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
    Arc::new(SqliteStores::in_memory(Arc::new(move || rt.wall()), fresh).expect("a store in memory"))
}

/// So many threads do `work`, each with its number; how much they did together.
fn together(threads: u64, work: impl Fn(u64) -> u64 + Sync) -> u64 {
    std::thread::scope(|scope| {
        let work = &work;
        let all: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        all.into_iter().map(|one| one.join().expect("it only counts")).sum()
    })
}

const AGENTS: u64 = 64;
const KEYS: [&str; 15] = [
    "cpu", "disk", "load", "memory", "swap", "procs", "uptime", "net_in", "net_out", "branch", "commit",
    "ide", "users", "temp", "fans",
];
const REPORTS: u64 = 100_000;

fn agent(n: u64) -> Uuid {
    Uuid::from_u128(u128::from(n) << 64 | 7)
}

/// Metadata at the door: hot keys, nothing is written meanwhile.
fn adds(bench: &mut Bench) {
    if !["add-1", "add-2", "add-4", "add-queue"].iter().any(|name| bench.wants(&format!("batching/{name}"))) {
        return;
    }
    let engine = Engine::start(in_memory(), Arc::new(LocalBus::new()), NEVER);
    let report: Vec<(&str, &str, &str)> = KEYS.iter().map(|key| (*key, "12.5%", "")).collect();
    let ours = |threads: u64| {
        Sample::take(|| {
            together(threads, |thread| {
                for n in 0..REPORTS / threads {
                    engine.metadata.report(agent((n * threads + thread) % AGENTS), &report).expect("room");
                }
                REPORTS / threads * KEYS.len() as u64
            })
        })
    };
    // 20 M/s of real rows beside 75 / 65 / 50 M/s of numbers.
    let cases = [("batching/add-1", 1, 0.27), ("batching/add-2", 2, 0.31), ("batching/add-4", 4, 0.4)];
    for (name, threads, goal) in cases {
        let case = Case { name, floor: "sharded map of numbers", unit: "values", goal };
        let hasher = std::hash::RandomState::new();
        let shards: Vec<Mutex<HashMap<u64, u64>>> = (0..16).map(|_| Mutex::default()).collect();
        bench.pair(
            &case,
            || {
                Sample::take(|| {
                    together(threads, |thread| {
                        let count = REPORTS / threads * KEYS.len() as u64;
                        for n in 0..count {
                            let key = (n * threads + thread) % (AGENTS * KEYS.len() as u64);
                            let shard = &shards[hasher.hash_one(key) as usize % 16];
                            shard.lock().expect("nobody panics").insert(key, n);
                        }
                        count
                    })
                })
            },
            || ours(threads),
        );
    }
    let case = Case {
        name: "batching/add-queue",
        floor: "a channel and select! per item",
        unit: "values",
        goal: 10.0,
    };
    bench.pair(&case, channel_and_select, || ours(2));
}

/// How batchers are usually built: each value through a channel, one thread that selects for each of them.
fn channel_and_select() -> Sample {
    Sample::take(|| {
        let count = REPORTS / 10 * KEYS.len() as u64;
        let (tx, rx) = crossbeam_channel::bounded::<(Uuid, &str, String)>(2_500);
        let (stop, stopped) = crossbeam_channel::bounded::<()>(1);
        let tick = crossbeam_channel::tick(Duration::from_secs(5));
        let owner = std::thread::spawn(move || {
            let mut held: HashMap<(Uuid, &str), String> = HashMap::new();
            loop {
                crossbeam_channel::select! {
                    recv(rx) -> value => match value {
                        Ok((agent, key, value)) => _ = held.insert((agent, key), value),
                        Err(_) => return held.len() as u64,
                    },
                    recv(tick) -> _ => held.clear(),
                    recv(stopped) -> _ => return held.len() as u64,
                }
            }
        });
        together(2, |thread| {
            for n in 0..count / 2 {
                let key = KEYS[(n % KEYS.len() as u64) as usize];
                tx.send((agent((n * 2 + thread) % AGENTS), key, "12.5%".to_owned())).expect("it listens");
            }
            count / 2
        });
        drop(tx);
        owner.join().expect("it only merges");
        drop(stop);
        count
    })
}

fn record(rt: &Rt, n: u64) -> Record {
    let mut record =
        Record::new(rt.uuid_v7(), Wall(1_700_000_000_000_000 + n as i64), Kind::Ssh, Status::Connected);
    record.connection_id = Some(rt.uuid_v7());
    record.workspace_id = agent(n % 500);
    record.workspace_name = Some("dev".into());
    record.agent_name = "main".into();
    record.user_agent = Some("OpenSSH_9.6".into());
    record.user_id = Some(agent(n % 50));
    record.ip = Some([10, 0, 0, 1].into());
    record
}

fn rows(rt: &Rt, count: u64) -> Vec<Row> {
    let mut rows: Vec<Row> = (0..count).map(|n| Row::from(record(rt, n))).collect();
    rows.sort_by_key(|row| row.first.connection_id);
    rows
}

/// `record()` into a store that throws away, so that the door is what is measured.
fn records(bench: &mut Bench) {
    const RECORDS: u64 = 400_000;
    let cases = [("batching/record-1", 1, 3e6), ("batching/record-4", 4, 4e6)];
    for (name, threads, goal) in cases {
        if !bench.wants(name) {
            continue;
        }
        let engine = Engine::start(
            Arc::new(Discard(in_memory())),
            Arc::new(LocalBus::new()),
            Duration::from_millis(50),
        );
        let case = Case { name, floor: "the goal", unit: "records", goal: 1.0 };
        bench.pair(
            &case,
            || Sample::recorded(goal),
            || {
                // Made before: what a record costs its maker is not the door's.
                let made: Vec<Mutex<Vec<Record>>> = (0..threads)
                    .map(|_| Mutex::new((0..RECORDS / threads).map(|n| record(&engine.rt, n)).collect()))
                    .collect();
                Sample::take(|| {
                    together(threads, |thread| {
                        let records =
                            std::mem::take(&mut *made[thread as usize].lock().expect("nobody panics"));
                        let count = records.len() as u64;
                        for record in records {
                            engine.connections.record(record).expect("it is taken");
                        }
                        count
                    })
                })
            },
        );
    }
}

/// A store that has everything written and nothing to show for it.
struct Discard(Arc<dyn Stores>);

struct Nothing;

impl Stores for Discard {
    fn streams(&self) -> Result<Box<dyn towpath::store::StreamStore>, towpath::store::StoreError> {
        self.0.streams()
    }
    fn metadata(&self) -> Result<Box<dyn MetadataStore>, towpath::store::StoreError> {
        self.0.metadata()
    }
    fn connections(&self) -> Result<Box<dyn ConnectionStore>, towpath::store::StoreError> {
        Ok(Box::new(Nothing))
    }
    fn replicas(&self) -> Result<Box<dyn towpath::store::ReplicaStore>, towpath::store::StoreError> {
        self.0.replicas()
    }
    fn identity(&self) -> Identity {
        self.0.identity()
    }
    fn is_shared(&self) -> bool {
        false
    }
}

impl towpath::store::Store for Nothing {
    fn ping(&mut self) -> Result<(), towpath::store::StoreError> {
        Ok(())
    }
}

impl ConnectionStore for Nothing {
    fn upsert(&mut self, _: &[Row]) -> Result<(), towpath::store::StoreError> {
        Ok(())
    }
    fn query(
        &mut self,
        _: &towpath::store::connections::ConnectionQuery,
    ) -> Result<Vec<Row>, towpath::store::StoreError> {
        Ok(Vec::new())
    }
    fn count(
        &mut self,
        _: &towpath::store::connections::ConnectionQuery,
        _: u64,
    ) -> Result<towpath::store::connections::Count, towpath::store::StoreError> {
        Ok(towpath::store::connections::Count { rows: 0, capped: false })
    }
    fn prune(&mut self, _: Wall, _: usize) -> Result<u64, towpath::store::StoreError> {
        Ok(0)
    }
    fn bury(
        &mut self,
        _: &[towpath::store::connections::DeadLetter],
    ) -> Result<(), towpath::store::StoreError> {
        Ok(())
    }
    fn dead_letters(
        &mut self,
        _: Option<(Wall, Uuid)>,
        _: usize,
    ) -> Result<Vec<towpath::store::connections::DeadLetter>, towpath::store::StoreError> {
        Ok(Vec::new())
    }
    fn dead_letter_count(&mut self) -> Result<u64, towpath::store::StoreError> {
        Ok(0)
    }
}

/// Group commits of 256 receipts, as the spool's thread makes them.
fn spool(bench: &mut Bench) {
    const GROUPS: u64 = 100;
    const GROUP: u64 = 256;
    if !bench.wants("batching/spool-receipts") {
        return;
    }
    let (ours_at, floor_at) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let rt = Rt::real();
    let (mut spool, _) = File::open(ours_at.path(), LIMITS, rt.wall()).expect("a spool");
    let bare = rusqlite::Connection::open(floor_at.path().join("bare.db")).expect("a file");
    bare.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE record (n INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, at INTEGER, payload BLOB, crc INTEGER)",
    )
    .expect("a table");
    let payload = vec![b'x'; 300];
    let next = AtomicU64::new(1);
    let key = || -> [u8; 16] {
        let n = next.fetch_add(1, Relaxed);
        (u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).to_be_bytes()
    };
    let case = Case {
        name: "batching/spool-receipts",
        floor: "bare SQLite, same groups",
        unit: "receipts",
        goal: 0.8,
    };
    bench.pair(
        &case,
        || {
            Sample::take(|| {
                for _ in 0..GROUPS {
                    bare.execute_batch("BEGIN IMMEDIATE").expect("ours alone");
                    let mut insert = bare
                        .prepare_cached("INSERT INTO record (key, at, payload, crc) VALUES (?1, ?2, ?3, ?4)")
                        .expect("SQL");
                    for _ in 0..GROUP {
                        insert.execute(rusqlite::params![key(), 1, payload, 1]).expect("stored");
                    }
                    bare.execute_batch("COMMIT").expect("synced");
                }
                GROUPS * GROUP
            })
        },
        || {
            Sample::take(|| {
                for _ in 0..GROUPS {
                    let items: Vec<Item> =
                        (0..GROUP).map(|_| Item { key: key(), payload: payload.clone() }).collect();
                    spool.append(&items, Wall(1)).expect("kept");
                }
                GROUPS * GROUP
            })
        },
    );
}

/// 1,000 rows a transaction on disk.
fn sqlite(bench: &mut Bench) {
    const BATCHES: u64 = 10;
    if !bench.wants("batching/sqlite-connections") {
        return;
    }
    let rt = Rt::real();
    let (ours_at, floor_at) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let open = |at: &tempfile::TempDir| {
        let clock = rt.clone();
        let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
        SqliteStores::open(at.path(), Arc::new(move || clock.wall()), fresh).expect("a store")
    };
    let (ours, floor) = (open(&ours_at), open(&floor_at));
    let mut store = ours.connections().expect("opens");
    // The same table with the same indexes, written without the merge.
    drop(floor);
    let bare = rusqlite::Connection::open(floor_at.path().join("connections.db")).expect("a file");
    bare.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").expect("set");
    let case = Case {
        name: "batching/sqlite-connections",
        floor: "bare inserts, same table",
        unit: "rows",
        goal: 0.9,
    };
    bench.pair(
        &case,
        || {
            let batches: Vec<Vec<Row>> = (0..BATCHES).map(|_| rows(&rt, 1_000)).collect();
            Sample::take(|| {
                for batch in &batches {
                    bare.execute_batch("BEGIN IMMEDIATE").expect("ours alone");
                    let mut insert = bare
                        .prepare_cached(
                            "INSERT INTO connections (id, connect_time, type, workspace_id, workspace_name, \
                             agent_name, ip, user_agent, user_id, connection_id, first_time, labels) \
                             VALUES (?1, ?2, 'ssh', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?2, '{}')",
                        )
                        .expect("SQL");
                    for row in batch {
                        let first = &row.first;
                        insert
                            .execute(rusqlite::params![
                                first.id.as_bytes(),
                                row.connect_time.0,
                                first.workspace_id.as_bytes(),
                                first.workspace_name,
                                first.agent_name,
                                first.ip.map(|ip| ip.to_string()),
                                first.user_agent,
                                first.user_id.as_ref().map(|id| id.as_bytes().as_slice()),
                                first.connection_id.as_ref().map(|id| id.as_bytes().as_slice()),
                            ])
                            .expect("stored");
                    }
                    bare.execute_batch("COMMIT").expect("synced");
                }
                BATCHES * 1_000
            })
        },
        || {
            let batches: Vec<Vec<Row>> = (0..BATCHES).map(|_| rows(&rt, 1_000)).collect();
            Sample::take(|| {
                batches.iter().for_each(|batch| store.upsert(batch).expect("stored"));
                BATCHES * 1_000
            })
        },
    );
}

fn on_postgres(bench: &mut Bench, url: &str) {
    let rt = Rt::real();
    let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
    let stores: Arc<dyn Stores> =
        Arc::new(PostgresStores::connect(url, Options::default(), fresh).expect("a store"));
    let mut bare = postgres::Client::connect(url, postgres::NoTls).expect("it runs");
    pg_connections(bench, &stores, &mut bare);
    pg_metadata(bench, &stores, &mut bare);
    watcher(bench, &stores, url);
}

/// From `record()` to the row in the table, beside one prepared UNNEST of as many rows into a table like it.
fn pg_connections(bench: &mut Bench, stores: &Arc<dyn Stores>, bare: &mut postgres::Client) {
    const ROWS: u64 = 30_000;
    if !bench.wants("batching/pg-connections") {
        return;
    }
    bare.batch_execute("CREATE TABLE bare_connections (LIKE connections INCLUDING ALL)").expect("a table");
    let statement = bare
        .prepare(
            "INSERT INTO bare_connections (id, connect_time, type, workspace_id, workspace_name, agent_name, ip, \
             user_agent, user_id, connection_id, first_time) \
             SELECT id, to_timestamp(t / 1e6), 'ssh', w, wn, a, ip, ua, u, c, to_timestamp(t / 1e6) \
             FROM unnest($1::uuid[], $2::int8[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], \
             $8::uuid[], $9::uuid[]) AS r (id, t, w, wn, a, ip, ua, u, c) \
             ON CONFLICT (connection_id, workspace_id, agent_name) WHERE connection_id IS NOT NULL \
             DO UPDATE SET connect_time = least(excluded.connect_time, bare_connections.connect_time)",
        )
        .expect("SQL");
    let engine = Engine::start(stores.clone(), Arc::new(LocalBus::new()), Duration::from_millis(50));
    let case =
        Case { name: "batching/pg-connections", floor: "bare UNNEST of 1,000", unit: "rows", goal: 0.9 };
    bench.pair(
        &case,
        || {
            let all: Vec<Row> = rows(&engine.rt, ROWS);
            Sample::take(|| {
                for chunk in all.chunks(1_000) {
                    let ids: Vec<Uuid> = chunk.iter().map(|row| row.first.id).collect();
                    let times: Vec<i64> = chunk.iter().map(|row| row.connect_time.0).collect();
                    let workspaces: Vec<Uuid> = chunk.iter().map(|row| row.first.workspace_id).collect();
                    let names: Vec<_> = chunk.iter().map(|row| row.first.workspace_name.as_deref()).collect();
                    let agents: Vec<_> = chunk.iter().map(|row| row.first.agent_name.as_str()).collect();
                    let ips: Vec<_> = chunk.iter().map(|row| row.first.ip.map(|ip| ip.to_string())).collect();
                    let with: Vec<_> = chunk.iter().map(|row| row.first.user_agent.as_deref()).collect();
                    let users: Vec<_> = chunk.iter().map(|row| row.first.user_id).collect();
                    let connections: Vec<_> = chunk.iter().map(|row| row.first.connection_id).collect();
                    bare.execute(
                        &statement,
                        &[&ids, &times, &workspaces, &names, &agents, &ips, &with, &users, &connections],
                    )
                    .expect("stored");
                }
                ROWS
            })
        },
        || {
            let all: Vec<Record> = (0..ROWS).map(|n| record(&engine.rt, n)).collect();
            let before = engine.connections.account().stored;
            Sample::take(|| {
                for record in all {
                    engine.connections.record(record).expect("it is taken");
                }
                engine.connections.flush().expect("it is tried");
                while engine.connections.account().stored < before + ROWS {
                    std::thread::sleep(Duration::from_micros(200));
                }
                ROWS
            })
        },
    );
}

/// 500 known keys, updated again and again.
fn pg_metadata(bench: &mut Bench, stores: &Arc<dyn Stores>, bare: &mut postgres::Client) {
    const ROWS: u64 = 500;
    const ROUNDS: u64 = 50;
    if !bench.wants("batching/pg-metadata") {
        return;
    }
    bare.batch_execute("CREATE TABLE bare_metadata (LIKE metadata INCLUDING ALL)").expect("a table");
    bare.batch_execute("ALTER TABLE bare_metadata SET (fillfactor = 50)").expect("a table");
    let insert = "INSERT INTO bare_metadata (agent_id, key, value, error, collected_at) \
                  SELECT a, k, v, '', now() FROM unnest($1::uuid[], $2::text[], $3::text[]) AS r (a, k, v)";
    let update = bare
        .prepare(
            "UPDATE bare_metadata m SET value = r.v, error = r.e, collected_at = to_timestamp(r.t / 1e6) \
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int8[]) AS r (a, k, v, e, t) \
             WHERE m.agent_id = r.a AND m.key = r.k",
        )
        .expect("SQL");
    let agents: Vec<Uuid> = (0..ROWS).map(|n| agent(n / 15)).collect();
    let keys: Vec<&str> = (0..ROWS).map(|n| KEYS[(n % 15) as usize]).collect();
    let values: Vec<String> = (0..ROWS).map(|n| n.to_string()).collect();
    bare.execute(insert, &[&agents, &keys, &values]).expect("stored");
    let errors = vec![""; ROWS as usize];
    let mut store = stores.metadata().expect("opens");
    // Made before, as the floor's arrays are.
    let mut rows: Vec<(Key, Entry)> = (0..ROWS as usize)
        .map(|n| {
            let entry = Entry { value: values[n].clone(), ..Entry::default() };
            (Key { agent: agents[n], key: keys[n].into() }, entry)
        })
        .collect();
    rows.sort_by(|(a, _), (b, _)| a.cmp(b));
    let rt = Rt::real();
    let case =
        Case { name: "batching/pg-metadata", floor: "bare UPDATE FROM unnest", unit: "rows", goal: 0.85 };
    bench.pair(
        &case,
        || {
            Sample::take(|| {
                for _ in 0..ROUNDS {
                    let times = vec![rt.wall().0; ROWS as usize];
                    let updated =
                        bare.execute(&update, &[&agents, &keys, &values, &errors, &times]).expect("stored");
                    assert_eq!(updated, ROWS);
                }
                ROUNDS * ROWS
            })
        },
        || {
            Sample::take(|| {
                for _ in 0..ROUNDS {
                    let now = rt.wall();
                    rows.iter_mut().for_each(|(_, entry)| entry.collected_at = now);
                    let done = store.upsert(&rows, now, Sight::Register).expect("stored");
                    assert_eq!(done.rows, ROWS);
                }
                ROUNDS * ROWS
            })
        },
    );
}

/// From the commit to the watcher that sees the value, through PostgreSQL's notices. The floor is the goal: a
/// millisecond in the median.
fn watcher(bench: &mut Bench, stores: &Arc<dyn Stores>, url: &str) {
    const ROUNDS: usize = 300;
    if !bench.wants("batching/watcher-p50") {
        return;
    }
    let rt = Rt::real();
    let bus = Arc::new(PostgresBus::start(&rt, url, Patience::default()).expect("a bus"));
    let engine = Engine::start(stores.clone(), bus, NEVER);
    let mut watch = engine.metadata.watch(agent(9_999)).expect("a watch");
    let worst = Mutex::new(Duration::ZERO);
    let case = Case { name: "batching/watcher-p50", floor: "1 ms", unit: "looks", goal: 1.0 };
    bench.pair(
        &case,
        || Sample::recorded(1_000.0),
        || {
            let mut took: Vec<Duration> = (0..ROUNDS)
                .map(|n| {
                    let value = format!("{n} {:?}", Instant::now());
                    engine.metadata.report(agent(9_999), &[("cpu", &value, "")]).expect("room");
                    engine.metadata.flush().expect("it is written");
                    let committed = Instant::now();
                    while watch.wait().expect("the engine runs").values.iter().all(|seen| seen.value != value)
                    {
                    }
                    committed.elapsed()
                })
                .collect();
            took.sort();
            let (p50, p99) = (took[ROUNDS / 2], took[ROUNDS * 99 / 100]);
            let mut worst = worst.lock().expect("nobody panics");
            *worst = worst.max(p99);
            Sample::recorded(1.0 / p50.as_secs_f64().max(1e-9))
        },
    );
    println!("batching/watcher: p99 {:?} at most, the goal is 5 ms", worst.lock().expect("nobody panics"));
}
