//! A private PostgreSQL for the tests: made on first use, gone when this process is.
//!
//! A guardian holds the other end of a pipe. However this process ends, the pipe closes, and the
//! guardian stops the server and removes its files.

use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::ports::free_port;

/// A running server.
pub(crate) struct Cluster {
    bin: PathBuf,
    base: PathBuf,
    port: u16,
    user: Option<(u32, u32)>,
    /// Closed by the kernel when this process ends.
    _alive: ChildStdin,
}

/// A database of its own for one test, or why there is none: then the test is skipped, loudly.
pub(crate) fn database() -> Option<String> {
    match cluster() {
        Ok(cluster) => Some(cluster.database()),
        Err(why) => {
            not_run(&why);
            None
        }
    }
}

/// Says, past a test's own capture, that there is no server.
pub(crate) fn not_run(why: &str) {
    // Nobody can be told that nobody can be told.
    let _ =
        writeln!(std::io::stderr(), "\n*** NOT RUN, needs PostgreSQL: {why}\n*** `make setup` installs it\n");
}

/// The server that all tests share.
pub(crate) fn cluster() -> Result<&'static Cluster, String> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start).as_ref().map_err(Clone::clone)
}

impl Cluster {
    /// Another server, for a test that stops and starts it.
    pub(crate) fn start() -> Result<Cluster, String> {
        let bin = binaries().ok_or("no initdb in /usr/lib/postgresql/*/bin nor in PATH")?;
        let user = unprivileged()?;
        let base =
            tempfile::Builder::new().prefix("towpath-pg-").tempdir().map_err(|e| e.to_string())?.keep();
        if let Some((uid, gid)) = user {
            chown(&base, Some(uid), Some(gid)).map_err(|e| e.to_string())?;
        }
        let port = free_port();
        let alive = guardian(&bin, &base, user)?;
        let cluster = Cluster { bin, base, port, user, _alive: alive };
        cluster.run("initdb", &["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "-D", "data"])?;
        cluster.up()?;
        Ok(cluster)
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn up(&self) -> Result<(), String> {
        self.up_with("")
    }

    /// Starts the server with TLS and a certificate that it signed itself; the certificate's file.
    pub(crate) fn up_with_tls(&self) -> Result<PathBuf, String> {
        let request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 \
                       -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
                       -keyout server.key -out server.crt";
        let made = self.command(Path::new("openssl")).args(request.split(' ')).stderr(Stdio::null()).status();
        if !made.map_err(|e| format!("openssl: {e}"))?.success() {
            return Err("openssl made no certificate".into());
        }
        let file = |name: &str| self.base.join(name);
        let (certificate, key) = (file("server.crt"), file("server.key"));
        let options =
            format!("-c ssl=on -c ssl_cert_file={} -c ssl_key_file={}", certificate.display(), key.display());
        self.up_with(&options).map(|()| certificate)
    }

    fn up_with(&self, more: &str) -> Result<(), String> {
        let options = format!(
            "-p {} -k {} -c listen_addresses=127.0.0.1 -c max_connections=200 -c fsync=on \
             -c shared_buffers=64MB -c log_min_messages=fatal {more}",
            self.port,
            self.base.display()
        );
        self.run("pg_ctl", &["-D", "data", "-w", "-t", "60", "-l", "log", "-o", &options, "start"])
    }

    /// Stops the server: `fast`, or `immediate` as if the power went.
    pub(crate) fn down(&self, mode: &str) -> Result<(), String> {
        self.run("pg_ctl", &["-D", "data", "-w", "-t", "60", "-m", mode, "stop"])
    }

    /// The address of a database of this server.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// A new, empty database, reached over the server's Unix socket; its address.
    pub(crate) fn database_by_socket(&self) -> String {
        let folder = self.base.display().to_string().replace('/', "%2F");
        self.database().replace("127.0.0.1", &folder)
    }

    /// A new, empty database; its address.
    pub(crate) fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut client = postgres::Client::connect(&self.url("postgres"), postgres::NoTls).expect("it runs");
        client.batch_execute(&format!("CREATE DATABASE {name}")).expect("a database is made");
        self.url(&name)
    }

    /// A program run as the server's user, in its folder.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.base).stdin(Stdio::null()).stdout(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<(), String> {
        let mut command = self.command(&self.bin.join(program));
        command.args(args);
        // Not a pipe: the server would inherit it and hold it open.
        let errors = fs::File::create(self.base.join("errors")).map_err(|e| e.to_string())?;
        let status = command.stderr(errors).status().map_err(|e| format!("{program}: {e}"))?;
        match status.success() {
            true => Ok(()),
            false => {
                let errors = fs::read_to_string(self.base.join("errors")).unwrap_or_default();
                let log = fs::read_to_string(self.base.join("log")).unwrap_or_default();
                Err(format!("{program} failed: {errors}{log}"))
            }
        }
    }
}

fn guardian(bin: &Path, base: &Path, user: Option<(u32, u32)>) -> Result<ChildStdin, String> {
    // `cat` ends when the pipe does. A process group of its own, so that Ctrl-C reaches only the tests.
    let script =
        "trap '' INT TERM HUP; cat >/dev/null; \"$1\"/pg_ctl -D \"$2\"/data -m immediate stop; rm -rf \"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "towpath-pg-guardian"]).arg(bin).arg(base);
    command.current_dir("/").process_group(0);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("sh: {e}"))?;
    child.stdin.take().ok_or_else(|| "the guardian has no pipe".into())
}

/// The newest installed PostgreSQL.
fn binaries() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    found.sort();
    found.extend(std::env::split_paths(&std::env::var_os("PATH")?).collect::<Vec<_>>().into_iter().rev());
    found.into_iter().rev().find(|dir| dir.join("initdb").is_file() && dir.join("pg_ctl").is_file())
}

/// The server refuses to run as root: then it runs as `postgres` or as `nobody`.
fn unprivileged() -> Result<Option<(u32, u32)>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = fs::read_to_string("/etc/passwd").map_err(|e| e.to_string())?;
    let find = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2).map(|field| field.parse::<u32>().ok());
        Some((fields.next()??, fields.next()??))
    };
    find("postgres").or_else(|| find("nobody")).map(Some).ok_or_else(|| "no user to run it as".into())
}
