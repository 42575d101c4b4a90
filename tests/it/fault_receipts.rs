//! The process is killed at random moments, and every receipt it gave is honoured.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::effort::cycles;
use crate::process::towpath;

/// A daemon that is killed when it is dropped.
pub(crate) struct Killable {
    child: Child,
    pub(crate) url: String,
}

#[cfg(feature = "postgres")]
impl Killable {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        // SIGKILL: nothing gets to put anything away.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn start(data: &Path) -> Killable {
    start_with(data, |_| {})
}

pub(crate) fn start_with(data: &Path, adjust: impl FnOnce(&mut Command)) -> Killable {
    let mut command = towpath(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data).stdout(Stdio::piped()).stderr(Stdio::null());
    adjust(&mut command);
    let mut child = command.spawn().expect("towpath starts");
    let mut line = String::new();
    let mut said = BufReader::new(child.stdout.take().expect("piped"));
    said.read_line(&mut line).expect("it says where it listens");
    let url = line.trim_end().strip_prefix("listening on ").expect("it listens").to_owned();
    Killable { child, url }
}

pub(crate) fn agent() -> ureq::Agent {
    patient(Duration::from_secs(10))
}

fn patient(wait: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(wait)).build().into()
}

/// Records something of this id and has it synced before the answer, which this is the status of.
pub(crate) fn record(agent: &ureq::Agent, url: &str, id: &str) -> Result<u16, ureq::Error> {
    let sent = agent
        .post(format!("{url}/v1/connections"))
        .header("prefer", "durable")
        .header("content-type", "application/json")
        .send(json!({"id": id, "type": "workspace_app", "status": "connected"}).to_string());
    sent.map(|answer| answer.status().as_u16())
}

/// GET; the status and the body.
pub(crate) fn look(url: &str, path: &str) -> (u16, String) {
    // An export after a hundred restarts is longer than what is read by itself, and takes longer than other answers.
    let agent = patient(Duration::from_secs(300));
    let mut answer = agent.get(format!("{url}{path}")).call().expect("the daemon answers");
    let body = answer.body_mut().with_config().limit(1 << 30).read_to_string();
    (answer.status().as_u16(), body.expect("text"))
}

fn get(url: &str, path: &str) -> String {
    look(url, path).1
}

/// How often each id is in the store, once nothing waits in the spool.
pub(crate) fn stored(url: &str, patience: Duration) -> BTreeMap<String, u32> {
    let patience = Instant::now() + patience;
    loop {
        let spool: Value = serde_json::from_str(&get(url, "/v1/spool")).expect("JSON");
        assert_eq!(spool["lost"], json!(0), "{spool}");
        if (&spool["records"], &spool["dead_letters"]) == (&json!(0), &json!(0)) {
            break;
        }
        assert!(Instant::now() < patience, "the spool is never sent: {spool}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    for line in get(url, "/v1/connections/export").lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        *found.entry(row["id"].as_str().expect("an id").to_owned()).or_default() += 1;
    }
    found
}

/// Starts the daemon and kills it so many times, while as many clients go on, each with its number, until what they ask
/// is not answered any more.
pub(crate) fn through_kills(cycles: u64, data: &Path, clients: usize, client: impl Fn(usize, &str) + Sync) {
    for cycle in 0..cycles {
        let daemon = start(data);
        let url = daemon.url.clone();
        std::thread::scope(|scope| {
            for number in 0..clients {
                let (client, url) = (&client, &url);
                scope.spawn(move || client(number, url));
            }
            // The moment of the kill, not a wait for anything: 40 to 200 ms, by a fixed rule.
            std::thread::sleep(Duration::from_millis(40 + cycle * 7_919 % 160));
            drop(daemon);
        });
    }
}

#[test]
fn fault_every_receipt_outlives_a_kill_exactly_once() {
    let cycles = cycles(30, 1_000);
    let data = tempfile::tempdir().expect("a temporary folder");
    let receipts: Mutex<Vec<String>> = Mutex::default();
    let next = AtomicU64::new(1);
    through_kills(cycles, data.path(), 3, |_, url| {
        let agent = agent();
        loop {
            let id = uuid::Uuid::from_u128(next.fetch_add(1, Ordering::Relaxed).into()).to_string();
            match record(&agent, url, &id) {
                Ok(202) => receipts.lock().expect("no client panics").push(id),
                Ok(status) => panic!("{status} to a record"),
                Err(_) => return,
            }
        }
    });
    let daemon = start(data.path());
    let found = stored(&daemon.url, Duration::from_secs(60));
    let receipts = receipts.lock().expect("no client panics");
    assert!(receipts.len() as u64 > cycles, "only {} receipts in {cycles} cycles", receipts.len());
    let wrong: Vec<&String> = receipts.iter().filter(|id| found.get(*id) != Some(&1)).collect();
    assert!(wrong.is_empty(), "{} of {} receipts are not there exactly once", wrong.len(), receipts.len());
    assert!(found.values().all(|times| *times == 1), "something is there twice");
    println!("{} receipts through {cycles} kills", receipts.len());
}
