//! The process is killed at random moments, or its disk refuses what it writes, and every append it acknowledged is
//! there, once and in its place.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::effort::{cycles, not_run};
use crate::fault_receipts::{agent, look, start, through_kills};
use crate::fault_spool::{strace, traced, until_free};

/// How many append at once, each to a stream of its own.
const WRITERS: usize = 4;

/// What a stream holds, a number a line.
fn numbers(url: &str, stream: usize) -> Vec<u64> {
    let (mut text, mut offset) = (String::new(), "-1".to_owned());
    loop {
        let answer = agent().get(format!("{url}/v1/stream/killed-{stream}?offset={offset}")).call();
        let mut answer = answer.expect("the daemon answers");
        assert_eq!(answer.status(), 200, "stream {stream} from {offset}");
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let (up_to_date, next) = (header("stream-up-to-date").is_some(), header("stream-next-offset"));
        offset = next.expect("an offset").to_owned();
        text.push_str(&answer.body_mut().read_to_string().expect("text"));
        if up_to_date {
            return text.lines().map(|line| line.parse().expect("a number")).collect();
        }
    }
}

#[test]
fn fault_every_append_outlives_a_kill_in_its_place() {
    let cycles = cycles(8, 500);
    let data = tempfile::tempdir().expect("a temporary folder");
    let acknowledged: Mutex<Vec<Vec<u64>>> = Mutex::new(vec![Vec::new(); WRITERS]);
    let next = AtomicU64::new(1);
    through_kills(cycles, data.path(), WRITERS, |stream, url| {
        let agent = agent();
        let path = format!("{url}/v1/stream/killed-{stream}");
        if agent.put(&path).header("content-type", "text/plain").send_empty().is_err() {
            return;
        }
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            match agent.post(&path).header("content-type", "text/plain").send(format!("{number}\n")) {
                Ok(answer) if answer.status() == 204 => {
                    acknowledged.lock().expect("no client panics")[stream].push(number);
                }
                Ok(answer) => panic!("{} to an append", answer.status()),
                Err(_) => return,
            }
        }
    });
    let daemon = start(data.path());
    let acknowledged = acknowledged.lock().expect("no client panics");
    let mut count = 0;
    for (stream, acknowledged) in acknowledged.iter().enumerate() {
        let held = numbers(&daemon.url, stream);
        assert!(held.is_sorted_by(|a, b| a < b), "stream {stream} is in order, and nothing in it is double");
        let lost: Vec<&u64> =
            acknowledged.iter().filter(|number| held.binary_search(number).is_err()).collect();
        assert!(lost.is_empty(), "{} of {} in stream {stream} are lost", lost.len(), acknowledged.len());
        count += acknowledged.len() as u64;
    }
    assert!(count > cycles, "only {count} appends in {cycles} cycles");
    println!("{count} appends through {cycles} kills");
}

/// Appends numbers one after the other to a stream until `enough` says so; which were acknowledged, and how many were
/// refused.
fn append(url: &str, stream: usize, mut enough: impl FnMut(u64, u16) -> bool) -> (Vec<u64>, u64) {
    let (agent, path) = (agent(), format!("{url}/v1/stream/killed-{stream}"));
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    for number in 1.. {
        let sent = agent.post(&path).header("content-type", "text/plain").send(format!("{number}\n"));
        let status = sent.expect("it answers").status().as_u16();
        match status {
            204 => acknowledged.push(number),
            // What became of it is not known: it may be there after all.
            500 | 503 | 507 => refused += 1,
            other => panic!("{other} to an append"),
        }
        if enough(number, status) {
            break;
        }
    }
    (acknowledged, refused)
}

#[test]
fn fault_a_log_that_cannot_be_written_costs_no_append_and_a_full_disk_only_time() {
    if !strace() {
        return not_run("system calls that fail: needs strace (`make setup`) and leave to trace");
    }
    const LOG: [&str; 2] = ["streams.ahead", "streams.ahead-2"];
    const DISK: [&str; 3] = ["streams.ahead", "streams.ahead-2", "streams.db-wal"];
    let runs = cycles(6, 200);
    let (mut kept, mut lost_time) = (0, 0);
    for run in 0..runs {
        let data = tempfile::tempdir().expect("a temporary folder");
        // The stream is made while all is well.
        let daemon = start(data.path());
        let made = agent().put(format!("{}/v1/stream/killed-0", daemon.url));
        made.header("content-type", "text/plain").send_empty().expect("the stream is made");
        drop(daemon);
        until_free(data.path());

        let call = ["pwrite64", "fdatasync,fsync"][(run % 2) as usize];
        let error = ["EIO", "ENOSPC"][(run / 2 % 2) as usize];
        let full = run % 3 == 2;
        // Behind what a start writes, and for a while.
        let n = if full { 40 } else { 3 } + run * 7_919 % 17;
        let when = if full { format!("{n}..{}", n + 30) } else { format!("{n}+") };
        let files: &[&str] = if full { &DISK } else { &LOG };
        let injection = format!("inject={call}:error={error}:when={when}");
        let daemon = traced(data.path(), files, std::slice::from_ref(&injection));
        let url = daemon.url.as_ref().expect("nothing failed at its start");
        let mut well = 0;
        let (acknowledged, refused) = append(url, 0, |number, status| {
            well = if status == 204 { well + 1 } else { 0 };
            assert!(number < 2_000, "appends are not taken again, with {injection}");
            number >= 60 && well >= 40
        });
        assert!(full || refused == 0, "the tables took what the log did not, with {injection}");
        assert_eq!(look(url, "/healthz").0, 200, "it lives, with {injection}");
        drop(daemon);
        until_free(data.path());
        let daemon = start(data.path());
        let held = numbers(&daemon.url, 0);
        assert!(held.is_sorted_by(|a, b| a < b), "in order, and nothing is double, with {injection}");
        let lost = acknowledged.iter().filter(|number| held.binary_search(number).is_err()).count();
        assert_eq!(lost, 0, "of {} acknowledged, with {injection}", acknowledged.len());
        kept += acknowledged.len();
        lost_time += refused;
    }
    println!("{runs} disks that fail: {kept} appends kept, {lost_time} refused");
}
