//! `towpath demo`: something goes on in every part of the dashboard.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Daemon, PATIENCE, towpath};

#[test]
fn the_demo_has_something_going_on_in_every_part() {
    let demo = Daemon::start_command(towpath(&["demo", "--listen", "127.0.0.1:0"]));
    let get = |path: &str| -> Value {
        let (status, text) = demo.get(path);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    };
    let count = |value: &Value| value.as_array().map_or(0, Vec::len);
    let mut followed = 0;
    let mut recovered = 0;
    let mut said = false;
    // The flaky link lasts up to twelve seconds and is closed for up to five.
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        let living = get("/v1/admin/live");
        let followers = |row: &Value| row["followers"].as_u64().unwrap_or(0);
        followed = followed
            .max(living["streams"].as_array().into_iter().flatten().map(followers).max().unwrap_or(0));
        let pipes = get("/v1/pipes");
        let resumes = |row: &Value| row["resumes"].as_u64().unwrap_or(0);
        recovered = recovered.max(pipes["pipes"].as_array().into_iter().flatten().map(resumes).sum());
        let streams = get("/v1/streams");
        said |= streams["streams"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|row| row["history_pos"].as_u64() > Some(1));
        let seen = (
            followed >= 2,
            recovered >= 1,
            said,
            count(&get("/v1/agents?prefix=demo")["agents"]) == 12,
            count(&get("/v1/connections")["connections"]) > 0,
        );
        if seen == (true, true, true, true, true) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "two viewers, a recovered pipe, a chat, agents, visitors: {seen:?}"
        );
        std::thread::sleep(Duration::from_millis(100)); // so that asking is not all the daemon does
    }
    demo.signal("TERM");
    assert_eq!(demo.wait().0, 0);
}
