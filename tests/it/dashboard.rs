//! The dashboard in a real browser. Where there is no Chromium or no Node with the packages of
//! tests/interop, it says so on the terminal and is not run.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::process::{Daemon, towpath};

/// What keeps it from running, said where a captured test is still heard.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "NOT RUN: the dashboard's browser test: {why}");
}

#[test]
fn the_dashboard_shows_what_happens_and_complains_of_nothing() {
    let interop = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    if !interop.join("node_modules/playwright-core").exists() {
        return skipped("no packages: `make setup` runs npm ci in tests/interop");
    }
    let chromium = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let Some(chromium) = chromium.into_iter().find(|path| Path::new(path).exists()) else {
        return skipped("no Chromium: `make setup` installs it");
    };
    let daemon = Daemon::start(&[]);
    let with = |arguments: &[&str]| {
        let output = towpath(arguments).env("TOWPATH_URL", &daemon.url).output().expect("runs");
        assert!(output.status.success(), "{arguments:?} {output:?}");
    };
    with(&["stream", "create", "chat/1"]);
    with(&["stream", "append", "chat/1", "hello from a test"]);
    with(&["metadata", "set", "00000000-0000-4000-8000-000000000001", "cpu=12%"]);
    let output = Command::new("node")
        .arg("dashboard.mjs")
        .current_dir(&interop)
        .env("TOWPATH_URL", &daemon.url)
        .env("CHROMIUM", chromium)
        .output()
        .expect("node runs");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
