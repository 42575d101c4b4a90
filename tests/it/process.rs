//! The built program, run as a user would.
//!
//! The program is built apart, with default features: the one that `cargo test` builds carries the
//! simulator. `TOWPATH_BIN` names another to run instead.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// How long anything that should happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where the program is; built on first use.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("TOWPATH_BIN") {
        Some(path) => PathBuf::from(path),
        None => build(),
    })
}

fn build() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--bin", "towpath", "--message-format", "json"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "building towpath: {}", String::from_utf8_lossy(&output.stderr));
    let built = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "towpath")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the program it built");
    // The next build puts another program at the same path, with the features of its own.
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("towpath-{}", std::process::id()));
    copy_program(&built, &copy);
    copy
}

/// Copies a program that is run soon after, by another process: a child that another test forks would have the
/// copy open for writing as this one had, and the system runs no program that somebody writes to.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success(), "{} is copied", from.display());
}

/// A file of the tests' certificates.
pub(crate) fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

/// A command of the program, with no variable of ours in its environment.
pub(crate) fn towpath(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    unset_ours(&mut command);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Leaves no variable of ours in a command's environment.
pub(crate) fn unset_ours(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOWPATH_") {
            command.env_remove(name);
        }
    }
}

/// Runs a command to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    towpath(arguments).output().expect("towpath runs")
}

/// What a command exits with, and what it said on both outputs.
pub(crate) fn told(output: &Output) -> (i32, String) {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().expect("it exits by itself"), text)
}

/// A daemon with a data directory of its own. Killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) url: String,
    log: Receiver<String>,
    stdout: BufReader<std::process::ChildStdout>,
    pub(crate) data: tempfile::TempDir,
}

impl Daemon {
    /// Starts one on a free port and waits until it takes requests.
    pub(crate) fn start(arguments: &[&str]) -> Daemon {
        Daemon::start_with(arguments, |_| {})
    }

    pub(crate) fn start_with(arguments: &[&str], adjust: impl FnOnce(&mut Command)) -> Daemon {
        Daemon::start_in(tempfile::tempdir().expect("a temporary folder"), arguments, adjust)
    }

    /// Starts one on a data directory that was used before.
    pub(crate) fn start_in(
        data: tempfile::TempDir,
        arguments: &[&str],
        adjust: impl FnOnce(&mut Command),
    ) -> Daemon {
        let mut command = towpath(&["serve", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(data.path()).args(arguments);
        adjust(&mut command);
        let mut daemon = Daemon::start_command(command);
        daemon.data = data;
        daemon
    }

    /// Starts whatever serves and says so in one line.
    pub(crate) fn start_command(mut command: Command) -> Daemon {
        let data = tempfile::tempdir().expect("a temporary folder");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("towpath starts");
        let log = lines(child.stderr.take().expect("piped"));
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it says where it listens");
        let Some(url) = line.trim_end().strip_prefix("listening on ") else {
            let said: Vec<String> = log.iter().collect();
            panic!("towpath did not start: {line:?} {said:?}");
        };
        Daemon { child, url: url.to_owned(), log, stdout, data }
    }

    /// The address without the `http://`.
    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").expect("an address begins so")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, like `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "the daemon is there to be signalled");
    }

    /// Waits for a line of the log that contains `text`, and answers it.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        self.log_until(text).pop().expect("the last line is the one")
    }

    /// The same with every line before it.
    pub(crate) fn log_until(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            seen.push(line);
            if seen.last().is_some_and(|line| line.contains(text)) {
                return seen;
            }
        }
        panic!("no log line with {text:?} within {PATIENCE:?}; there were {seen:#?}");
    }

    /// Waits for its end; answers the exit code and what was left of both outputs.
    pub(crate) fn wait(mut self) -> (i32, String) {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).expect("standard output is text");
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            text += &line;
            text.push('\n');
        }
        let status = self.child.wait().expect("it can be waited for");
        (status.code().unwrap_or_else(|| panic!("killed: {status}; {text}")), text)
    }

    /// Stops it and waits for its end; its data directory.
    pub(crate) fn stop(mut self) -> tempfile::TempDir {
        self.signal("TERM");
        let status = self.child.wait().expect("it can be waited for");
        assert_eq!(status.code(), Some(0), "it stops when told");
        std::mem::replace(&mut self.data, tempfile::tempdir().expect("a temporary folder"))
    }

    /// GET; the status and the body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .into();
        let mut answer = agent.get(format!("{}{path}", self.url)).call().expect("the daemon answers");
        (answer.status().as_u16(), answer.body_mut().read_to_string().expect("a body of text"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already, which is what most tests wait for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe, read on a thread so that the writer never blocks.
pub(crate) fn lines(pipe: ChildStderr) -> Receiver<String> {
    let (tell, told) = sync_channel(100_000);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    told
}
