//! Clients that people already have, against the built daemon: the public suite and the client of Durable
//! Streams, EventSource in Node and in Chromium, the AI SDK. Where Node, its packages or Chromium are not to
//! be had, the test says so on the terminal and is not run.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::effort::{not_run, remark};
use crate::ports::free_port;
use crate::process::Daemon;

/// How long something of these may take: they are other people's programs, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(180);

/// A folder of tests/interop, if its packages are installed.
fn packages(folder: &str, wanted: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(folder);
    let is_there = folder.join("node_modules").join(wanted).is_dir();
    if !is_there {
        not_run(&format!("no {wanted}: `make setup` runs npm ci in tests/interop and tests/interop/durable"));
    }
    is_there.then_some(folder)
}

/// Runs a script to its end; it must end well.
fn node(folder: &Path, arguments: &[&str], url: &str) -> String {
    let output = Command::new("node")
        .args(arguments)
        .current_dir(folder)
        .env("TOWPATH_URL", url)
        .stdin(Stdio::null())
        .output()
        .expect("node runs");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// How many of the suite's tests there are to pass: all but those of subscriptions, which it skips itself.
const SUITE: u64 = 332;

/// Runs the suite, or what of it has a name like `only`: how many passed, and the names of those that failed.
fn suite(folder: &Path, daemon: &Daemon, only: Option<&str>) -> (u64, Vec<String>) {
    let results = daemon.data.path().join("results.json");
    let output = Command::new("node")
        .args(["node_modules/vitest/vitest.mjs", "run", "--reporter=json", "--outputFile"])
        .arg(&results)
        .args(only.iter().flat_map(|only| ["-t", only]))
        .current_dir(folder)
        .env("TOWPATH_URL", &daemon.url)
        .stdin(Stdio::null())
        .output()
        .expect("node runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let text =
        std::fs::read_to_string(&results).unwrap_or_else(|error| panic!("no results: {error}; {said}"));
    let results: Value = serde_json::from_str(&text).expect("results in JSON");
    let count = |name: &str| results[name].as_u64().unwrap_or_else(|| panic!("no {name} in {results}"));
    let (passed, failed, skipped) =
        (count("numPassedTests"), count("numFailedTests"), count("numPendingTests"));
    remark(&format!("Durable Streams suite: {passed} passed, {failed} failed, {skipped} skipped"));
    let failures: Vec<String> = results["testResults"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|file| file["assertionResults"].as_array().into_iter().flatten())
        .filter(|result| result["status"] == "failed")
        .map(|result| format!("{}: {}", result["fullName"], result["failureMessages"]))
        .collect();
    assert_eq!(failed, failures.len() as u64, "{results}");
    (passed, failures)
}

#[test]
fn interop_durable_streams_passes_the_public_suite() {
    let Some(folder) = packages("durable", "@durable-streams/server-conformance-tests") else { return };
    let daemon = Daemon::start(&["--allow-origin", "https://example.com"]);
    assert_eq!(suite(&folder, &daemon, None), (SUITE, Vec::new()));
}

/// What the suite does on PostgreSQL too, where not everything is asked for: what rests on the store, without
/// the seconds of TTLs and long polls.
#[cfg(feature = "postgres")]
const SLICE: &str = "Append Operations|Idempotent Producer|Stream Closure|Fork|SSE Mode|JSON Mode";
/// How many tests have such a name.
#[cfg(feature = "postgres")]
const SLICE_TESTS: u64 = 195;

#[cfg(feature = "postgres")]
#[test]
fn interop_durable_streams_passes_the_public_suite_on_postgresql() {
    let Some(folder) = packages("durable", "@durable-streams/server-conformance-tests") else { return };
    let Some(store) = crate::cluster::database() else { return };
    let daemon = Daemon::start(&["--allow-origin", "https://example.com", "--store", &store]);
    let (only, tests) = if crate::effort::slow() { (None, SUITE) } else { (Some(SLICE), SLICE_TESTS) };
    assert_eq!(suite(&folder, &daemon, only), (tests, Vec::new()));
}

#[test]
fn interop_durable_streams_client_reads_and_writes() {
    let Some(folder) = packages("durable", "@durable-streams/client") else { return };
    let daemon = Daemon::start(&[]);
    node(&folder, &["client.mjs"], &daemon.url);
}

#[test]
fn interop_ai_sdk_resumes_chats() {
    let Some(folder) = packages("durable", "ai") else { return };
    let daemon = Daemon::start(&[]);
    node(&folder, &["aisdk.mjs"], &daemon.url);
}

#[test]
fn interop_ai_sdk_for_react_resumes_chats() {
    let Some(folder) = packages("durable", "@ai-sdk/react") else { return };
    let daemon = Daemon::start(&[]);
    node(&folder, &["react.mjs"], &daemon.url);
}

#[test]
fn interop_ai_sdk_hears_of_a_worker_that_was_lost() {
    let Some(folder) = packages("durable", "ai") else { return };
    let daemon = Daemon::start_with(&[], |command| {
        command.env("TOWPATH_STREAMS__PRODUCER_SILENCE", "2s");
    });
    node(&folder, &["lost.mjs"], &daemon.url);
}

/// A program that follows a stream and says how far it is. Ended when it is dropped.
struct Follower {
    child: Child,
    said: std::sync::mpsc::Receiver<String>,
}

impl Follower {
    fn start(folder: &Path, daemon: &Daemon, stream: &str, chromium: &str) -> Follower {
        let mut child = Command::new("node")
            .arg("eventsource.mjs")
            .current_dir(folder)
            .envs([("TOWPATH_URL", daemon.url.as_str()), ("STREAM", stream), ("CHROMIUM", chromium)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let stdout = child.stdout.take().expect("piped");
        let (tell, said) = std::sync::mpsc::sync_channel(10_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Follower { child, said }
    }

    /// Waits for a line that begins so. A reset would be history that was lost.
    fn wait_for(&self, begin: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self
                .said
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .unwrap_or_else(|error| panic!("{begin:?} was not said: {error}"));
            assert!(!line.starts_with("reset") && !line.starts_with("broken"), "{line}");
            if line.starts_with(begin) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "it is there to be signalled");
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended already, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Appends numbered messages.
struct Appender {
    agent: ureq::Agent,
    stream: &'static str,
    n: u64,
}

impl Appender {
    fn new(stream: &'static str) -> Appender {
        let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
        Appender { agent, stream, n: 0 }
    }

    fn append(&mut self, daemon: &Daemon, count: u64, pad: usize, last: bool) {
        let url = format!("{}/v1/streams/{}/messages", daemon.url, self.stream);
        let pad = "#".repeat(pad);
        for _ in 0..count {
            self.n += 1;
            let message = json!({ "role": "user", "content": { "n": self.n, "last": last, "pad": pad } });
            let sent = self.agent.post(&url).content_type("application/json").send(message.to_string());
            sent.expect("it is appended");
        }
    }

    fn to(&mut self, daemon: &Daemon, n: u64) {
        self.append(daemon, n - self.n, 10, false);
    }
}

/// A stream is followed through a restart of the daemon and a cut for reading too slowly; every message must
/// come once, in order. `stall` makes the follower read nothing, `go_on` ends that.
fn follows_through_everything(
    stream: &'static str,
    start: impl FnOnce(&Daemon) -> Follower,
    stall: impl FnOnce(&mut Follower),
    go_on: impl FnOnce(&mut Follower),
) {
    // It is started again at its address, and nobody else gets that meanwhile.
    let address = format!("127.0.0.1:{}", free_port());
    let mut daemon = Daemon::start(&["--listen", &address]);
    let mut appender = Appender::new(stream);
    let created = appender.agent.put(format!("{}/v1/streams/{stream}", daemon.url)).send_empty();
    assert_eq!(created.expect("it is made").status(), 201);
    appender.to(&daemon, 100);
    let mut follower = start(&daemon);
    follower.wait_for("live");
    appender.to(&daemon, 200);
    follower.wait_for("got 200");

    let data = std::mem::replace(&mut daemon.data, tempfile::tempdir().expect("a folder"));
    daemon.signal("TERM");
    assert_eq!(daemon.wait().0, 0);
    let daemon = Daemon::start_with(&[], |command| {
        command.args(["--listen", &address, "--data"]).arg(data.path());
    });
    appender.to(&daemon, 400);
    follower.wait_for("got 400");

    stall(&mut follower);
    let deadline = Instant::now() + PATIENCE;
    while daemon.get("/metrics").1.contains("towpath_links_cut_slow_total 0\n") {
        assert!(Instant::now() < deadline, "a follower that reads nothing is cut");
        appender.append(&daemon, 10, 60_000, false);
    }
    go_on(&mut follower);
    appender.append(&daemon, 1, 10, true);
    assert_eq!(follower.wait_for("whole"), format!("whole {}", appender.n));
}

#[test]
fn interop_eventsource_of_npm_misses_nothing() {
    let Some(folder) = packages("durable", "eventsource") else { return };
    follows_through_everything(
        "eventsource/npm",
        |daemon| Follower::start(&folder, daemon, "eventsource/npm", ""),
        |follower| follower.signal("STOP"),
        |follower| follower.signal("CONT"),
    );
}

#[test]
fn interop_eventsource_of_chromium_misses_nothing() {
    let Some(folder) = packages("", "playwright-core") else { return };
    let chromium = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let Some(chromium) = chromium.into_iter().find(|path| Path::new(path).exists()) else {
        return not_run("EventSource of a browser: no Chromium: `make setup` installs it");
    };
    follows_through_everything(
        "eventsource/chromium",
        |daemon| Follower::start(&folder, daemon, "eventsource/chromium", chromium),
        |follower| {
            let stdin = follower.child.stdin.as_mut().expect("piped");
            stdin.write_all(b"stall\n").expect("it listens");
        },
        // The page goes on by itself once it has been cut.
        |_| {},
    );
}
