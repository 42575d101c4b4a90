//! One suite for every store: what holds on SQLite on disk holds in memory and on PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use towpath::state::batch::Merge;
use towpath::state::connection::{self, Kind as ConnectionKind, Record};
use towpath::state::metadata::{Entry, Key};
use towpath::state::stream::{Fold, LeaseHash, OnLost, Status};
use towpath::state::time::Wall;
use towpath::store::connections::{ConnectionQuery, Count, Cursor, DeadLetter};
use towpath::store::metadata::{AgentRow, KeyRow, Sight};
use towpath::store::replicas::{Beat, RelayKey, ReplicaRow};
use towpath::store::sqlite::SqliteStores;
use towpath::store::streams::*;
use towpath::store::{Class, Identity, Labels, Stores};
use uuid::Uuid;

/// A store under test, and its time.
struct Place {
    stores: Box<dyn Stores>,
    time: Time,
    in_groups: bool,
    _directory: Option<tempfile::TempDir>,
}

enum Time {
    /// SQLite asks a number that tests move.
    Set(Arc<AtomicI64>),
    /// PostgreSQL has a clock of its own, and a function that tests replace.
    #[cfg(feature = "postgres")]
    Shifted { url: String, by: AtomicI64 },
}

/// Who a new store is.
pub(crate) fn fresh() -> Identity {
    Identity { store: Uuid::new_v4(), epoch: Uuid::new_v4() }
}

/// A clock that stands still until it is moved.
pub(crate) fn clock_at(micros: &Arc<AtomicI64>) -> towpath::store::sqlite::Clock {
    let micros = micros.clone();
    Arc::new(move || Wall(micros.load(Ordering::Relaxed)))
}

const START: i64 = 1_767_225_600_000_000;

impl Place {
    fn on_disk() -> Option<Place> {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let time = Arc::new(AtomicI64::new(START));
        let stores = SqliteStores::open(directory.path(), clock_at(&time), fresh()).expect("opens");
        Some(Place {
            stores: Box::new(stores),
            time: Time::Set(time),
            in_groups: false,
            _directory: Some(directory),
        })
    }

    /// The same, where each append is a group of its own: it is written ahead.
    fn in_groups() -> Option<Place> {
        Some(Place { in_groups: true, ..Place::on_disk()? })
    }

    fn in_memory() -> Option<Place> {
        let time = Arc::new(AtomicI64::new(START));
        let stores = SqliteStores::in_memory(clock_at(&time), fresh()).expect("opens");
        Some(Place { stores: Box::new(stores), time: Time::Set(time), in_groups: false, _directory: None })
    }

    #[cfg(feature = "postgres")]
    fn on_postgres() -> Option<Place> {
        use towpath::store::postgres::{Options, PostgresStores};
        let url = crate::cluster::database()?;
        let stores = PostgresStores::connect(&url, Options::default(), fresh()).expect("connects");
        let time = Time::Shifted { url, by: AtomicI64::new(0) };
        Some(Place { stores: Box::new(stores), time, in_groups: false, _directory: None })
    }

    #[cfg(not(feature = "postgres"))]
    fn on_postgres() -> Option<Place> {
        None
    }

    /// Lets time pass in the store.
    fn advance(&self, duration: Duration) {
        let micros = i64::try_from(duration.as_micros()).expect("short");
        match &self.time {
            Time::Set(time) => {
                time.fetch_add(micros, Ordering::Relaxed);
            }
            #[cfg(feature = "postgres")]
            Time::Shifted { url, by } => {
                let by = by.fetch_add(micros, Ordering::Relaxed) + micros;
                let mut client = postgres::Client::connect(url, postgres::NoTls).expect("it runs");
                client
                    .batch_execute(&format!(
                        "CREATE OR REPLACE FUNCTION towpath_now() RETURNS timestamptz LANGUAGE plpgsql STABLE AS \
                         'BEGIN RETURN clock_timestamp() + {by} * interval ''1 microsecond''; END'"
                    ))
                    .expect("the clock is shifted");
            }
        }
    }

    fn streams(&self) -> Box<dyn StreamStore> {
        let store = self.stores.streams().expect("opens");
        if self.in_groups { Box::new(crate::store_ahead::InGroups(store)) } else { store }
    }
}

/// Makes each check a test of each store.
macro_rules! on_every_store {
    ($($check:ident)*) => {
        mod on_disk { $(#[test] fn $check() { super::$check(&super::Place::on_disk().expect("opens")); })* }
        mod on_disk_in_groups { $(#[test] fn $check() { super::$check(&super::Place::in_groups().expect("opens")); })* }
        mod in_memory { $(#[test] fn $check() { super::$check(&super::Place::in_memory().expect("opens")); })* }
        mod on_postgres {
            $(#[test] fn $check() {
                if let Some(place) = super::Place::on_postgres() { super::$check(&place); }
            })*
        }
    };
}

mod connections;
mod forks;
mod metadata;
mod replicas;
mod streams;
mod turns;

fn name(name: &str) -> Address {
    Address::Name(name.into())
}

fn make(store: &mut dyn StreamStore, name: &str) -> StreamRow {
    make_as(
        store,
        NewStream { content_type: Some("application/json".into()), ..NewStream::named(Uuid::now_v7(), name) },
    )
}

fn make_as(store: &mut dyn StreamStore, new: NewStream) -> StreamRow {
    match store.create(&new).expect("stored") {
        Created::New(row) => row,
        other => panic!("{other:?}"),
    }
}

fn json(text: &str) -> Draft {
    Draft { kind: Kind::Json, role: Some("user".into()), content: text.as_bytes().into() }
}

fn bytes(content: &[u8]) -> Draft {
    Draft { kind: Kind::Bytes, role: None, content: content.into() }
}

fn messages(drafts: impl IntoIterator<Item = Draft>) -> Append {
    Append { messages: drafts.into_iter().collect(), ..Append::default() }
}

fn say(store: &mut dyn StreamStore, at: &str, text: &str) -> Appended {
    store.append(&name(at), &messages([json(text)])).expect("stored")
}

fn all_of(store: &mut dyn StreamStore, at: &str) -> Page {
    let read = CatchUp { after: 0, upto: None, bytes_max: PAGE_BYTES };
    match store.catch_up(&name(at), read).expect("read") {
        Found::Here(page) => page,
        other => panic!("{other:?}"),
    }
}

fn texts(page: &Page) -> Vec<String> {
    page.messages.iter().map(|m| String::from_utf8_lossy(&m.content).into_owned()).collect()
}

fn state(store: &mut dyn StreamStore, at: &str) -> StreamRow {
    match store.get(&name(at)).expect("read") {
        Found::Here(row) => row,
        other => panic!("{other:?}"),
    }
}

fn claim_by(worker: Uuid) -> Claim {
    Claim { worker, lease_for: Duration::from_secs(30), lease: [7; 32], key: None }
}

fn turn(claimed: Claimed) -> TurnClaimed {
    match claimed {
        Claimed::Turn(turn) => turn,
        other => panic!("{other:?}"),
    }
}

fn fence(turn: &TurnClaimed) -> Fence {
    Fence { turn: turn.turn, lease: LeaseHash::of(&turn.lease) }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// A small generator, so that a failure names a number that repeats it.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn fork(source: &str, at: Option<ForkAt>, beyond: u64) -> Option<NewFork> {
    Some(NewFork { source: name(source), at, beyond })
}
