//! What only PostgreSQL can do wrong: two transactions at once, and a server that goes away.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use towpath::state::connection::{self, Kind as ConnectionKind, Record};
use towpath::state::metadata::{Entry, Key};
use towpath::state::time::Wall;
use towpath::store::connections::ConnectionQuery;
use towpath::store::metadata::Sight;
use towpath::store::postgres::{Options, Patience, PostgresStores};
use towpath::store::streams::*;
use towpath::store::{Class, Labels, MetadataStore, StoreError, Stores};
use uuid::Uuid;

use crate::cluster::{Cluster, database};
use crate::effort::not_run;
use crate::store_conformance::fresh;

fn connect(url: &str) -> Result<PostgresStores, StoreError> {
    PostgresStores::connect(url, Options::default(), fresh())
}

fn stores() -> Option<(PostgresStores, String)> {
    let url = database()?;
    Some((connect(&url).expect("connects"), url))
}

fn name(name: &str) -> Address {
    Address::Name(name.into())
}

fn json(text: &str) -> Draft {
    Draft { kind: Kind::Json, role: None, content: text.as_bytes().into() }
}

fn claim_by(worker: u128) -> Claim {
    Claim { worker: Uuid::from_u128(worker), lease_for: Duration::from_secs(30), lease: [1; 32], key: None }
}

/// Runs two pieces of work, each on a thread of its own, and gives what both answered.
fn both<T: Send>(one: impl FnOnce() -> T + Send, other: impl FnOnce() -> T + Send) -> (T, T) {
    thread::scope(|scope| {
        let other = scope.spawn(other);
        (one(), other.join().expect("no panic"))
    })
}

#[test]
fn two_replicas_that_write_the_same_keys_in_opposite_order_never_deadlock_and_the_newest_wins() {
    let Some((stores, _)) = stores() else { return };
    let (mut one, mut other) = (stores.metadata().expect("opens"), stores.metadata().expect("opens"));
    let rounds = 20;
    let barrier = Barrier::new(2);
    let rows = |value: &str, age: i64| -> Vec<(Key, Entry)> {
        (0..300)
            .map(|i| {
                let key = Key { agent: Uuid::from_u128(i / 10 + 1), key: format!("k{i}").into() };
                (key, Entry { value: value.into(), error: String::new(), collected_at: Wall(-age) })
            })
            .collect()
    };
    both(
        || {
            for round in 0..rounds {
                barrier.wait();
                one.upsert(&rows("newer", 0), Wall(round), Sight::Register).expect("no deadlock");
            }
        },
        || {
            for round in 0..rounds {
                let mut rows = rows("older", 60_000_000);
                rows.reverse();
                barrier.wait();
                other.upsert(&rows, Wall(round), Sight::Register).expect("no deadlock");
            }
        },
    );
    let agents: Vec<Uuid> = (1..=30).map(Uuid::from_u128).collect();
    let read = one.read(&agents).expect("read");
    assert_eq!(read.len(), 300);
    assert!(read.iter().all(|row| row.value == "newer"));
    // Updates alone lock rows in whatever order they are given, one writer after the other.
    let barrier = Barrier::new(2);
    let again = |store: &mut dyn MetadataStore, value: &str, turned: bool| {
        for round in 0..rounds {
            let mut rows = rows(value, -1);
            if turned {
                rows.reverse();
            }
            barrier.wait();
            store.upsert(&rows, Wall(1_000_000 + round), Sight::UpdateOnly).expect("no deadlock");
        }
    };
    both(|| again(one.as_mut(), "a", false), || again(other.as_mut(), "b", true));
}

#[test]
fn two_replicas_that_merge_the_same_connections_never_deadlock() {
    let Some((stores, _)) = stores() else { return };
    let (mut one, mut other) = (stores.connections().expect("opens"), stores.connections().expect("opens"));
    let rows = |first: u128, status| -> Vec<connection::Row> {
        (0..200_u128)
            .map(|i| {
                let mut record =
                    Record::new(Uuid::from_u128(first + i), Wall(first as i64), ConnectionKind::Ssh, status);
                record.connection_id = Some(Uuid::from_u128(i + 1));
                connection::Row::from(record)
            })
            .collect()
    };
    let barrier = Barrier::new(2);
    for round in 0..10_u128 {
        let connects = rows(1_000 + round * 10_000, connection::Status::Connected);
        let mut disconnects = rows(6_000 + round * 10_000, connection::Status::Disconnected);
        disconnects.reverse();
        both(
            || {
                barrier.wait();
                one.upsert(&connects).expect("no deadlock");
            },
            || {
                barrier.wait();
                other.upsert(&disconnects).expect("no deadlock");
            },
        );
    }
    let rows = one.query(&ConnectionQuery { limit: 1_000, ..ConnectionQuery::default() }).expect("read");
    assert_eq!(rows.len(), 200);
    let expected = (Wall(1_000), Some(Wall(6_000)));
    assert!(rows.iter().all(|row| (row.connect_time, row.disconnect_time()) == expected));
}

#[test]
fn of_two_claims_at_once_one_wins_and_the_other_learns_who() {
    let Some((stores, _)) = stores() else { return };
    let (mut one, mut other) = (stores.streams().expect("opens"), stores.streams().expect("opens"));
    let barrier = Barrier::new(2);
    for round in 0..20 {
        let at = format!("s{round}");
        one.create(&NewStream::named(Uuid::now_v7(), at.as_str())).expect("stored");
        one.push(&name(&at), &json("input"), None, 1).expect("stored");
        let claimed = both(
            || {
                barrier.wait();
                one.claim(&name(&at), &claim_by(1)).expect("answered")
            },
            || {
                barrier.wait();
                other.claim(&name(&at), &claim_by(2)).expect("answered")
            },
        );
        let (winner, told) = match claimed {
            (Claimed::Turn(turn), Claimed::Running { worker, .. }) => (turn, worker),
            (Claimed::Running { worker, .. }, Claimed::Turn(turn)) => (turn, worker),
            both => panic!("{both:?}"),
        };
        assert_eq!(winner.change.state.status.worker(), Some(told));
        assert!(winner.input.is_some());
    }
}

#[test]
fn two_workers_that_ask_for_work_share_it_out() {
    let Some((stores, _)) = stores() else { return };
    let mut store = stores.streams().expect("opens");
    for i in 0..40 {
        store.create(&NewStream::named(Uuid::now_v7(), format!("s{i}"))).expect("stored");
        store.push(&name(&format!("s{i}")), &json("1"), None, 1).expect("stored");
    }
    let work = |worker| {
        let mut store = stores.streams().expect("opens");
        let mut names = Vec::new();
        while names.len() < 40 {
            match store.claim_next(&Labels::new(), &claim_by(worker)).expect("answered") {
                Claimed::Turn(turn) => names.push(turn.name),
                Claimed::Missing => break,
                other => panic!("{other:?}"),
            }
        }
        names
    };
    let (mut mine, theirs) = both(|| work(1), || work(2));
    // Whoever found every row taken by the other may have stopped early; nothing is given out twice.
    mine.extend(theirs);
    mine.extend(work(3));
    mine.sort();
    mine.dedup();
    assert_eq!(mine.len(), 40);
}

#[test]
fn a_name_is_given_once_however_many_ask() {
    let Some((stores, _)) = stores() else { return };
    let (mut one, mut other) = (stores.streams().expect("opens"), stores.streams().expect("opens"));
    let barrier = Barrier::new(2);
    for round in 0..20 {
        let new = |n: &str| NewStream { labels: Some(Labels::new()), ..NewStream::named(Uuid::now_v7(), n) };
        let at = format!("s{round}");
        let made = both(
            || {
                barrier.wait();
                one.create(&new(&at)).expect("answered")
            },
            || {
                barrier.wait();
                other.create(&new(&at)).expect("answered")
            },
        );
        match made {
            (Created::New(new), Created::Same(same)) | (Created::Same(same), Created::New(new)) => {
                assert_eq!(new.id, same.id);
            }
            both => panic!("{both:?}"),
        }
    }
}

#[test]
fn a_lower_position_never_becomes_visible_later() {
    let Some((stores, _)) = stores() else { return };
    let mut store = stores.streams().expect("opens");
    store.create(&NewStream::named(Uuid::now_v7(), "a")).expect("stored");
    let write = |writer: &str| {
        let mut store = stores.streams().expect("opens");
        for i in 0..60 {
            let append = Append { messages: vec![json(&format!("{writer}{i}"))], ..Append::default() };
            assert!(matches!(store.append(&name("a"), &append).expect("stored"), Appended::Done { .. }));
        }
    };
    let seen = thread::scope(|scope| {
        let writers = [scope.spawn(|| write("x")), scope.spawn(|| write("y"))];
        let mut seen = Vec::new();
        while seen.len() < 120 {
            let read =
                CatchUp { after: seen.last().copied().unwrap_or(0), upto: None, bytes_max: PAGE_BYTES };
            let Found::Here(page) = store.catch_up(&name("a"), read).expect("read") else { panic!("there") };
            seen.extend(page.messages.iter().map(|message| message.pos));
        }
        for writer in writers {
            writer.join().expect("no panic");
        }
        seen
    });
    assert_eq!(seen, (1..=120).collect::<Vec<u64>>());
}

#[test]
fn two_programs_that_start_at_once_migrate_once() {
    let Some(url) = database() else { return };
    let (one, other) = both(|| connect(&url), || connect(&url));
    assert_eq!(one.expect("connects").identity(), other.expect("connects").identity());
}

#[test]
fn a_newer_schema_is_refused_with_both_numbers() {
    let Some((_, url)) = stores() else { return };
    let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("connects");
    client.execute("INSERT INTO schema_version (version) VALUES (9)", &[]).expect("written");
    let Err(error) = connect(&url) else { panic!("it must be refused") };
    assert_eq!((error.class, error.code), (Class::Fatal, "newer_schema"));
    assert!(error.text.contains("version 9") && error.text.contains("up to 1"), "{error}");
}

#[test]
fn metadata_may_be_kept_out_of_the_log() {
    let Some((_, url)) = stores() else { return };
    let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("connects");
    let mut kept = |unlogged| {
        let options = Options { metadata_unlogged: unlogged, ..Options::default() };
        PostgresStores::connect(&url, options, fresh()).expect("connects");
        let how = "SELECT relpersistence::text FROM pg_class WHERE relname = 'metadata'";
        client.query_one(how, &[]).expect("read").get::<_, String>(0)
    };
    assert_eq!([kept(false), kept(true), kept(true), kept(false)], ["p", "u", "u", "p"]);
}

#[test]
fn a_row_that_cannot_be_written_asks_for_a_split_and_the_rest_goes_in() {
    let Some((stores, _)) = stores() else { return };
    let mut store = stores.connections().expect("opens");
    let mut record = Record::new(Uuid::now_v7(), Wall(1), ConnectionKind::Ssh, connection::Status::Connected);
    let good = connection::Row::from(record.clone());
    record.id = Uuid::now_v7();
    record.user_agent = Some("a\0b".into());
    let bad = connection::Row::from(record.clone());
    let error = store.upsert(&[good.clone(), bad]).expect_err("PostgreSQL has no such character");
    assert_eq!((error.class, error.code), (Class::Split, "encoding"));
    // The same id under another key.
    store.upsert(std::slice::from_ref(&good)).expect("stored");
    record = good.first.clone();
    record.connection_id = Some(Uuid::now_v7());
    let error = store.upsert(&[connection::Row::from(record)]).expect_err("the id is taken");
    assert_eq!((error.class, error.code), (Class::Split, "constraint"));
}

#[test]
fn a_lock_that_is_held_too_long_is_worth_another_try() {
    let Some(url) = database() else { return };
    let patience = Patience { lock: Duration::from_millis(50), ..Patience::default() };
    let stores =
        PostgresStores::connect(&url, Options { patience, ..Options::default() }, fresh()).expect("connects");
    let mut store = stores.streams().expect("opens");
    store.create(&NewStream::named(Uuid::now_v7(), "a")).expect("stored");
    let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("connects");
    let mut holder = client.transaction().expect("begun");
    holder.execute("SELECT 1 FROM streams FOR UPDATE", &[]).expect("locked");
    let append = Append { messages: vec![json("1")], ..Append::default() };
    let error = store.append(&name("a"), &append).expect_err("locked");
    assert_eq!((error.class, error.code), (Class::Retry, "timeout"));
    // Reading takes no lock and waits for none.
    assert!(matches!(store.get(&name("a")).expect("read"), Found::Here(_)));
    drop(holder);
    assert!(matches!(store.append(&name("a"), &append).expect("stored"), Appended::Done { first: 1, .. }));
}

#[test]
fn a_connection_that_was_cut_is_made_again() {
    let Some((stores, url)) = stores() else { return };
    let mut store = stores.streams().expect("opens");
    store.create(&NewStream::named(Uuid::now_v7(), "a")).expect("stored");
    let mut client = postgres::Client::connect(&url, postgres::NoTls).expect("connects");
    let cut = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client.query(cut, &[]).expect("cut");
    let error = store.ping().expect_err("the connection is gone");
    assert_eq!(error.class, Class::Retry, "{error}");
    store.ping().expect("made again");
    assert!(matches!(store.get(&name("a")).expect("read"), Found::Here(_)));
}

#[test]
fn a_server_that_is_away_is_worth_another_try_until_it_is_back() {
    if database().is_none() {
        return;
    }
    let cluster = Cluster::start().expect("a server of its own");
    let stores = connect(&cluster.url("postgres")).expect("connects");
    let mut store = stores.streams().expect("opens");
    store.create(&NewStream::named(Uuid::now_v7(), "a")).expect("stored");
    cluster.down("immediate").expect("stopped");
    for _ in 0..2 {
        let error = store.get(&name("a")).expect_err("away");
        assert_eq!((error.class, error.code), (Class::Retry, "unreachable"), "{error}");
    }
    cluster.up().expect("started");
    let found = store.get(&name("a")).or_else(|_| store.get(&name("a")));
    assert!(matches!(found.expect("read"), Found::Here(_)));
    cluster.down("fast").expect("stopped");
}

#[test]
fn wrong_credentials_are_not_worth_another_try() {
    let Some(url) = database() else { return };
    let Err(error) = connect(&url.replace("postgres@", "nobody-here@")) else { panic!("no such role") };
    assert_eq!((error.class, error.code), (Class::Fatal, "credentials"), "{error}");
}

#[test]
fn tls_is_used_when_the_address_asks_and_the_server_must_prove_itself_when_told_how() {
    if database().is_none() {
        return;
    }
    let server = Cluster::start().expect("a server of its own");
    server.down("fast").expect("stopped");
    let certificate = match server.up_with_tls() {
        Ok(certificate) => certificate,
        Err(why) => return not_run(&format!("PostgreSQL over TLS needs openssl: {why}")),
    };
    let url = server.url("postgres");
    let encrypted = |url: &str| {
        let stores = connect(url)?;
        let mut client =
            postgres::Client::connect(&server.url("postgres"), postgres::NoTls).expect("connects");
        let mut store = stores.streams()?;
        store.ping()?;
        let row = client.query_one("SELECT count(*) FROM pg_stat_ssl WHERE ssl", &[]).expect("read");
        Ok::<bool, StoreError>(row.get::<_, i64>(0) > 0)
    };
    assert_eq!(encrypted(&url), Ok(false));
    assert_eq!(encrypted(&format!("{url}?sslmode=require")), Ok(true));
    let root = certificate.display();
    assert_eq!(encrypted(&format!("{url}?sslmode=verify-full&sslrootcert={root}")), Ok(true));
    // Another authority: nobody is who they say.
    let other = tempfile::NamedTempFile::new().expect("a temporary file");
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=other",
            "-keyout",
            "/dev/null",
            "-out",
        ])
        .arg(other.path())
        .stderr(std::process::Stdio::null())
        .status();
    assert!(made.expect("openssl ran").success());
    let other = format!("{url}?sslmode=verify-full&sslrootcert={}", other.path().display());
    assert!(encrypted(&other).is_err());
}
