//! System calls on the spool that fail: the built daemon under strace, which makes the n-th write or sync of
//! the spool's files answer with an error. A receipt that was given is honoured after a kill; what could not
//! be kept was refused; the daemon lives. `make faults` makes hundreds fail.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::effort::{cycles, not_run};
use crate::fault_receipts::{agent, look, record, start, stored};
use crate::process::{PATIENCE, towpath};

/// A daemon in a process group with its tracer; both are killed when it is dropped.
pub(crate) struct Traced {
    child: Child,
    pub(crate) url: Option<String>,
}

impl Drop for Traced {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        // One that ended by itself is as dead as it should be.
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

/// Starts a daemon on whose files calls fail.
pub(crate) fn traced(data: &Path, files: &[&str], injections: &[String]) -> Traced {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null"]);
    for name in files {
        command.arg("-P").arg(data.join(name));
    }
    for injection in injections {
        command.args(["-e", injection]);
    }
    let program = towpath(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(program.get_program()).args(program.get_args()).arg(data);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().expect("strace was found before");
    let mut said = std::io::BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).expect("it says something or ends");
    let url = line.trim_end().strip_prefix("listening on ").map(str::to_owned);
    Traced { child, url }
}

/// Waits until nobody holds the data directory: a killed daemon takes a moment to be gone.
pub(crate) fn until_free(data: &Path) {
    let Ok(lock) = std::fs::OpenOptions::new().write(true).open(data.join("towpath.lock")) else { return };
    let patience = Instant::now() + PATIENCE;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        assert!(Instant::now() < patience, "a killed daemon holds its directory");
        std::thread::sleep(Duration::from_millis(5));
    }
    // By name: a child that another test forks just now has the file too, and would go on holding it.
    flock(&lock, FlockOperation::Unlock).expect("it was locked");
}

/// Whether strace is there and may trace.
pub(crate) fn strace() -> bool {
    let tried =
        Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

#[test]
fn fault_a_system_call_that_fails_on_the_spool_costs_no_receipt() {
    if !strace() {
        return not_run("system calls that fail: needs strace (`make setup`) and leave to trace");
    }
    let runs = cycles(8, 500);
    const SPOOL: [&str; 4] = ["spool.db", "spool.db-wal", "spool.db.new", "spool.db.new-wal"];
    const RENAMES: &str = "rename,renameat,renameat2";
    let calls = ["fdatasync,fsync", "pwrite64,write", "ftruncate", "fdatasync,fsync"];
    let (mut receipts, mut refused, mut unstarted) = (0, 0, 0);
    for run in 0..runs {
        let data = tempfile::tempdir().expect("a temporary folder");
        let call = calls[(run % 4) as usize];
        let error = ["EIO", "ENOSPC"][(run / 4 % 2) as usize];
        // From the 2nd call on up to far into the run; some fail once, some for ever.
        let n = 2 + run * 7_919 % 97;
        let ever = if run % 2 == 0 { "+" } else { "" };
        let mut injections = vec![format!("inject={call}:error={error}:when={n}{ever}")];
        if run % 4 == 3 {
            // The file that fails cannot be set aside either: at all, at first, or not with its log.
            let which = ["1+", "1", "2"][(run / 4 % 3) as usize];
            injections.push(format!("inject={RENAMES}:error=EACCES:when={which}"));
        }
        let daemon = traced(data.path(), &SPOOL, &injections);
        let injection = injections.join(" and ");
        let mut given = Vec::new();
        match &daemon.url {
            None => unstarted += 1,
            Some(url) => {
                let agent = agent();
                for id in 1..=40_u128 {
                    let id = uuid::Uuid::from_u128(id).to_string();
                    match record(&agent, url, &id).expect("it answers") {
                        202 => given.push(id),
                        500 | 503 => refused += 1,
                        other => panic!("{other} to a record, with {injection}"),
                    }
                }
                assert_eq!(look(url, "/healthz").0, 200, "it lives, with {injection}");
            }
        }
        drop(daemon);
        until_free(data.path());
        let daemon = start(data.path());
        let found = stored(&daemon.url, Duration::from_secs(60));
        let wrong: Vec<&String> = given.iter().filter(|id| found.get(*id) != Some(&1)).collect();
        assert!(
            wrong.is_empty(),
            "{} of {} receipts are not kept, with {injection}",
            wrong.len(),
            given.len()
        );
        receipts += given.len();
    }
    assert!(receipts > 0, "no receipt was ever given");
    println!(
        "{runs} injections: {receipts} receipts kept, {refused} records refused, {unstarted} did not start"
    );
}
