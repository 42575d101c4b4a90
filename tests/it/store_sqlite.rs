//! What only SQLite's stores promise: one process a directory, schema versions, leases that end.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use towpath::store::sqlite::SqliteStores;
use towpath::store::streams::*;
use towpath::store::{Class, Stores};
use uuid::Uuid;

use crate::store_conformance::{clock_at, fresh};

fn open(path: &std::path::Path) -> Result<SqliteStores, towpath::store::StoreError> {
    SqliteStores::open(path, clock_at(&Arc::new(AtomicI64::new(1_000_000))), fresh())
}

fn refused(path: &std::path::Path) -> towpath::store::StoreError {
    match open(path) {
        Ok(_) => panic!("it must be refused"),
        Err(error) => error,
    }
}

#[test]
fn a_directory_belongs_to_one_process() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let first = open(directory.path()).expect("opens");
    let second = refused(directory.path());
    assert_eq!((second.class, second.code), (Class::Fatal, "directory_in_use"));
    assert!(second.text.contains("in use by another towpath"), "{second}");
    let identity = first.identity();
    drop(first);
    assert_eq!(open(directory.path()).expect("opens again").identity(), identity);
}

#[test]
fn a_start_ends_all_leases() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let stores = open(directory.path()).expect("opens");
    let mut store = stores.streams().expect("opens");
    store.create(&NewStream::named(Uuid::now_v7(), "a")).expect("stored");
    let claim = Claim {
        worker: Uuid::now_v7(),
        lease_for: std::time::Duration::from_secs(3_600),
        lease: [1; 32],
        key: None,
    };
    assert!(matches!(store.claim(&Address::Name("a".into()), &claim).expect("stored"), Claimed::Turn(_)));
    drop((store, stores));
    let mut store = open(directory.path()).expect("opens").streams().expect("opens");
    let Found::Here(row) = store.get(&Address::Name("a".into())).expect("read") else { panic!("there") };
    assert_eq!(row.state.status.name(), "pending");
}

#[test]
fn a_newer_schema_is_refused_with_both_numbers() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    drop(open(directory.path()).expect("opens"));
    let file = rusqlite::Connection::open(directory.path().join("agents.db")).expect("opens");
    file.execute("INSERT INTO schema_version VALUES ('agents', 9, 0)", []).expect("written");
    drop(file);
    let error = refused(directory.path());
    assert_eq!((error.class, error.code), (Class::Fatal, "newer_schema"));
    assert!(error.text.contains("version 9") && error.text.contains("up to 1"), "{error}");
}

#[test]
fn only_the_owner_may_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().expect("a temporary folder");
    let path = parent.path().join("data");
    let stores = open(&path).expect("opens");
    stores.streams().expect("opens").create(&NewStream::named(Uuid::now_v7(), "a")).expect("stored");
    let mode = |path: &std::path::Path| path.metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for entry in std::fs::read_dir(&path).expect("readable") {
        let file = entry.expect("readable").path();
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn a_restored_store_begins_an_epoch_and_every_token_is_foreign() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let mut stores = open(directory.path()).expect("opens");
    let before = stores.identity();
    stores.begin_epoch(Uuid::from_u128(5)).expect("stored");
    assert_eq!((stores.identity().store, stores.identity().epoch), (before.store, Uuid::from_u128(5)));
    drop(stores);
    assert_eq!(open(directory.path()).expect("opens").identity().epoch, Uuid::from_u128(5));
}

#[test]
fn a_damaged_file_is_named() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(directory.path().join("streams.db"), [7; 5_000]).expect("written");
    let error = refused(directory.path());
    assert_eq!((error.class, error.code), (Class::Fatal, "damaged"));
    assert!(error.text.contains("streams.db"), "{error}");
}
