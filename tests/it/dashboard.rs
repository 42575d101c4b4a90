//! The dashboard in a real browser. Where there is no Chromium or no Node with the packages of
//! tests/interop, it says so on the terminal and is not run.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::effort::not_run;
use crate::process::{Daemon, told, towpath};

/// A browser, if there is one with what drives it.
fn browser() -> Option<(PathBuf, &'static str)> {
    let interop = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    if !interop.join("node_modules/playwright-core").exists() {
        not_run("the dashboard in a browser: no packages: `make setup` runs npm ci in tests/interop");
        return None;
    }
    let places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let Some(chromium) = places.into_iter().find(|path| Path::new(path).exists()) else {
        not_run("the dashboard in a browser: no Chromium: `make setup` installs it");
        return None;
    };
    Some((interop, chromium))
}

/// Somewhere for a pipe to lead to.
struct Target {
    address: String,
    _listener: TcpListener,
}

impl Target {
    fn open() -> Target {
        // The kernel takes connections for a listener that never accepts; nothing has to be said on them.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        Target { address: listener.local_addr().expect("bound").to_string(), _listener: listener }
    }
}

/// A pipe that lasts as long as this.
struct Pipe(Child);

impl Pipe {
    fn open(daemon: &Daemon, target: &Target, token: Option<&Path>) -> Pipe {
        let mut command = towpath(&["connect", &daemon.url, &target.address]);
        if let Some(token) = token {
            command.arg("--token-file").arg(token);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Pipe(command.spawn().expect("it starts"))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // It may have ended, and then the test has failed elsewhere.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Something in every part of the dashboard, and a click through all of it.
fn click_through(arguments: &[&str], token: Option<(&Path, &str)>) {
    let Some((interop, chromium)) = browser() else { return };
    let target = Target::open();
    let daemon = Daemon::start(&[arguments, &["--allow", &target.address]].concat());
    let with = |arguments: &[&str]| {
        let mut command = towpath(arguments);
        if let Some((_, token)) = token {
            command.env("TOWPATH_TOKEN", token);
        }
        let (exit, text) = told(&command.env("TOWPATH_URL", &daemon.url).output().expect("runs"));
        assert_eq!(exit, 0, "{arguments:?} {text}");
    };
    with(&["stream", "create", "chat/1"]);
    with(&["stream", "create", "notes/2"]);
    with(&["stream", "append", "chat/1", "hello from a test"]);
    with(&["metadata", "set", "00000000-0000-4000-8000-000000000001", "cpu=12%"]);
    let mut post = ureq::post(format!("{}/v1/connections", daemon.url))
        .header("content-type", "application/json")
        .header("prefer", "durable");
    if let Some((_, token)) = token {
        post = post.header("authorization", format!("Bearer {token}"));
    }
    let record = r#"{"type":"ssh","status":"connected","ip":"192.0.2.7","agent_name":"main"}"#;
    assert_eq!(post.send(record).expect("it answers").status(), 202);
    let _pipe = Pipe::open(&daemon, &target, token.map(|(file, _)| file));

    let mut command = Command::new("node");
    command
        .arg("dashboard.mjs")
        .current_dir(&interop)
        .env("TOWPATH_URL", &daemon.url)
        .env("CHROMIUM", chromium);
    command.env_remove("TOWPATH_TOKEN");
    if let Some((_, token)) = token {
        command.env("TOWPATH_TOKEN", token);
    }
    let (exit, said) = told(&command.output().expect("node runs"));
    assert_eq!(exit, 0, "{said}");
}

#[test]
fn the_dashboard_shows_what_happens_and_complains_of_nothing() {
    click_through(&[], None);
}

/// A token of this role: the file of its hash, the file it is in, and itself.
fn token(folder: &Path, role: &str) -> (PathBuf, PathBuf, String) {
    let made = towpath(&["token", "new", role, "--role", role]).output().expect("runs");
    assert!(made.status.success(), "{made:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (token, line) = (text(&made.stdout), text(&made.stderr));
    let file = |name: String, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    (
        file(format!("{role}.hash"), format!("{line}\n")),
        file(format!("{role}.token"), format!("{token}\n")),
        token,
    )
}

#[test]
fn the_dashboard_works_with_a_token() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (hashes, own, token) = token(folder.path(), "admin");
    click_through(&["--token-file", hashes.to_str().expect("UTF-8")], Some((&own, &token)));
}

#[test]
fn the_dashboard_offers_a_follower_only_what_a_follower_may() {
    let Some((interop, chromium)) = browser() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (admin, _, secret) = token(folder.path(), "admin");
    let (follower, _, token) = token(folder.path(), "follower");
    let both = folder.path().join("both");
    let hash = |file| std::fs::read_to_string(file).expect("written");
    std::fs::write(&both, hash(admin) + &hash(follower)).expect("written");
    let daemon = Daemon::start(&["--token-file", both.to_str().expect("UTF-8")]);
    let create: &[&str] = &["stream", "create", "chat/1"];
    for arguments in [create, &["stream", "append", "chat/1", "hello from a test"]] {
        let mut command = towpath(arguments);
        command.env("TOWPATH_TOKEN", &secret).env("TOWPATH_URL", &daemon.url);
        let (exit, said) = told(&command.output().expect("runs"));
        assert_eq!(exit, 0, "{said}");
    }
    let mut command = Command::new("node");
    command
        .arg("dashboard_follower.mjs")
        .current_dir(&interop)
        .env("TOWPATH_URL", &daemon.url)
        .env("TOWPATH_TOKEN", &token)
        .env("CHROMIUM", chromium);
    let (exit, said) = told(&command.output().expect("node runs"));
    assert_eq!(exit, 0, "{said}");
}
