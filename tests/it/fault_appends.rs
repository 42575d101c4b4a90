//! The process is killed at random moments, and every append it acknowledged is there, once and in its place.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::effort::cycles;
use crate::fault_receipts::{agent, start, through_kills};

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
