//! A long connection log leaves the daemon as it is read: memory stays flat, a reader that stalls holds up
//! nobody, and a person sees how far it is.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use towpath::rt::Rt;
use towpath::state::connection::{Kind, Record, Row, Status};
use towpath::store::Stores;
use towpath::store::sqlite::SqliteStores;

use crate::effort::not_run;
use crate::process::{Daemon, program, told, towpath};
use crate::store_conformance::fresh;

const ROWS: u64 = 50_000;

/// A daemon with so many rows in its log, each some hundred bytes.
fn filled(rows: u64) -> Daemon {
    let data = tempfile::tempdir().expect("a temporary folder");
    let rt = Rt::real();
    let clock = {
        let rt = rt.clone();
        Arc::new(move || rt.wall())
    };
    let stores = SqliteStores::open(data.path(), clock, fresh()).expect("opens");
    let mut store = stores.connections().expect("opens");
    let agent = "a browser with a long name ".repeat(10);
    for first in (0..rows).step_by(1_000) {
        let rows: Vec<Row> = (first..rows.min(first + 1_000))
            .map(|_| {
                let mut record = Record::new(rt.uuid_v7(), rt.wall(), Kind::WorkspaceApp, Status::Connected);
                record.user_agent = Some(agent.clone());
                Row::from(record)
            })
            .collect();
        store.upsert(&rows).expect("stored");
    }
    drop((store, stores));
    Daemon::start_in(data, &[], |_| {})
}

/// Memory of the daemon that is its own, in bytes.
fn resident(daemon: &Daemon) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

#[test]
fn an_export_of_fifty_thousand_rows_costs_no_memory_though_its_reader_stalls() {
    const GROWTH_MAX: u64 = 12 << 20;
    let daemon = filled(ROWS);
    // Everything that is made once is there before it is measured.
    assert_eq!(daemon.get("/v1/connections?limit=1000").0, 200);
    let before = resident(&daemon);
    let url = format!("{}/v1/connections/export", daemon.url);
    let answer = ureq::get(&url).call().expect("an export");
    let mut reader = BufReader::with_capacity(64 << 10, answer.into_body().into_reader());
    let (mut rows, mut bytes, mut most, mut last) = (0, 0, 0, String::new());
    let mut line = String::new();
    while reader.read_line(&mut line).expect("it goes on") > 0 {
        if rows == 100 {
            // The reader stalls here: others are served, and what it has not read is not held for it.
            for _ in 0..50 {
                assert_eq!(daemon.get("/v1/connections?limit=10").0, 200);
            }
            most = most.max(resident(&daemon));
        }
        if rows % 1_000 == 0 {
            let row: Value = serde_json::from_str(&line).expect("a whole row");
            last = row["id"].as_str().expect("an id").to_owned();
            most = most.max(resident(&daemon));
        }
        rows += 1;
        bytes += line.len() as u64;
        line.clear();
    }
    let growth = most.saturating_sub(before);
    println!("{rows} rows, {} MiB; the daemon grew by {} KiB", bytes >> 20, growth >> 10);
    assert_eq!(rows, ROWS, "the last one looked at was {last}");
    assert!(bytes > 2 * GROWTH_MAX, "{bytes} bytes would fit into memory");
    assert!(growth <= GROWTH_MAX, "the daemon grew by {growth} bytes");
    let (_, first) = daemon.get("/v1/connections?limit=1");
    let first: Value = serde_json::from_str(&first).expect("JSON");
    assert_eq!(first["count"], json!(10_000), "counted no further");
}

#[test]
fn a_person_sees_how_far_an_export_is_and_a_file_gets_only_rows() {
    let script = Command::new("script").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !script.is_ok_and(|status| status.success()) {
        return not_run("an export on a terminal: needs script(1) of util-linux");
    }
    for (rows, bar) in [(3_000, "100 %"), (11_000, "rows       11000")] {
        let daemon = filled(rows);
        let file = daemon.data.path().join("export.csv");
        let line = format!(
            "{} connections export --format csv --url {} > {}",
            program().display(),
            daemon.url,
            file.display()
        );
        let mut on_a_terminal = Command::new("script");
        on_a_terminal.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
        let (exit, seen) = told(&on_a_terminal.output().expect("script runs"));
        assert_eq!(exit, 0, "{seen}");
        assert!(seen.contains(bar) && seen.contains("\r"), "{seen:?}");
        let written = std::fs::read_to_string(&file).expect("written");
        assert_eq!(written.lines().count() as u64, rows + 1, "only rows and their headings");
        // Where nobody looks nothing is said.
        let export = ["connections", "export", "--filter", "type=workspace_app", "--url", &daemon.url];
        let output = towpath(&export).output().expect("runs");
        assert_eq!((output.stderr.len(), output.status.code()), (0, Some(0)));
        assert_eq!(output.stdout.lines().count() as u64, rows);
        let mut one = String::new();
        output.stdout.as_slice().take(400).read_to_string(&mut one).expect("text");
        assert!(one.starts_with("{\"id\":\""), "{one}");
    }
}
