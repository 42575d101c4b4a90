//! Pipes in storms. A slice of each is always run; `SLOW=1` runs all of it: 1 GiB both ways through 1,000
//! cuts, and files of 256 MiB through ssh.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use towpath::client::pipe::{Event, Pipe, PipeListener};
use towpath::engine::pipes::dial::Plain;
use towpath::engine::pipes::{Pipes, Plan, Server, Settings};
use towpath::rt::Rt;
use towpath::state::pipe::Liveness;

use crate::cli_pipe::{Killed, text};
use crate::effort::{not_run, slow};
use crate::flaky::{Fault, Flaky, Weather};
use crate::namespaces::Namespaces;
use crate::ports::free_port;
use crate::process::{Daemon, PATIENCE, copy_program, program};

/// Writes `count` bytes and gives their hash.
fn write_all(mut pipe: &Pipe, count: usize, piece: &[u8]) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut left = count;
    while left > 0 {
        let piece = &piece[..left.min(piece.len())];
        pipe.write_all(piece).expect("it takes them");
        hash.update(piece);
        left -= piece.len();
    }
    pipe.shutdown().expect("open");
    hash.finalize().to_vec()
}

fn read_all(mut pipe: &Pipe, mut look: impl FnMut(usize)) -> (usize, Vec<u8>) {
    let (mut hash, mut count) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = pipe.read(&mut buffer).expect("it ends well");
        if read == 0 {
            return (count, hash.finalize().to_vec());
        }
        hash.update(&buffer[..read]);
        count += read;
        look(count);
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn fault_a_storm_of_cuts_loses_and_doubles_nothing() {
    let (total, cuts, holes_every, liveness) = match slow() {
        true => (1 << 30, 1_000, 10, Liveness::NORMAL),
        false => (64 << 20, 24, 12, Liveness::FAST),
    };
    let rt = Rt::real();
    let listener = PipeListener::bind(&rt, "127.0.0.1:0").expect("a free port");
    let flaky = Flaky::start(
        "127.0.0.1:0",
        &listener.address().expect("over TCP").to_string(),
        1,
        Weather::default(),
    );
    let flaky = flaky.expect("a free port");
    let pipes = Pipes::start(&rt, Settings::default(), Server::none()).expect("threads");
    let dialer = Arc::new(Plain::Tcp("127.0.0.1".into(), flaky.address().port()));
    let (recovered, at) = sync_channel(10_000);
    let plan = Plan {
        liveness,
        carrier_age: None,
        events: Arc::new(move |event| {
            if matches!(event, Event::Recovered { .. }) {
                recovered.try_send(Instant::now()).expect("somebody listens");
            }
        }),
        ..Plan::new(dialer, "storm")
    };
    let ours = Pipe::open(&rt, &pipes.handle(), plan).expect("it opens");
    let theirs = listener.accept().expect("it was opened").pipe;
    let (mut after_resets, mut after_holes) = (Vec::new(), Vec::new());
    let piece = text(1 << 20);
    let piece = &piece[..];
    thread::scope(|scope| {
        let up = scope.spawn(|| write_all(&ours, total, piece));
        let down = scope.spawn(|| write_all(&theirs, total, &piece[1..]));
        let at_ours = scope.spawn(|| read_all(&ours, |_| {}));
        // The last cut comes with more still to go up than can lie between the ends.
        let step = (total - (20 << 20)) / cuts;
        let mut done = 0;
        let at_theirs = read_all(&theirs, |count| {
            if done == cuts || count < (done + 1) * step {
                return;
            }
            done += 1;
            let fault = match done {
                _ if done % holes_every == 0 => {
                    [Fault::Hole, Fault::HoleUp, Fault::HoleDown][done / holes_every % 3]
                }
                _ => [Fault::Close, Fault::Reset, Fault::HalfOpen][done % 3],
            };
            while at.try_recv().is_ok() {}
            let deadline = Instant::now() + PATIENCE;
            while flaky.strike(fault) == 0 {
                assert!(Instant::now() < deadline, "no connection to break");
                thread::yield_now();
            }
            let struck = Instant::now();
            // Another connection bears it: the next cut hits that one.
            let back = at.recv_timeout(PATIENCE * 2).expect("it recovers");
            let took = back.saturating_duration_since(struck);
            if done % holes_every == 0 { after_holes.push(took) } else { after_resets.push(took) }
        });
        assert_eq!(done, cuts);
        let (up, down) = (up.join().expect("no panic"), down.join().expect("no panic"));
        let at_ours = at_ours.join().expect("no panic");
        assert_eq!(at_theirs, (total, up), "what went up");
        assert_eq!(at_ours, (total, down), "what came down");
    });
    println!(
        "{} MiB each way through {cuts} cuts: recovery after resets, ends and half-open ones {:?} (median), {:?} (worst); \
         after holes {:?} (median), {:?} (worst)",
        total >> 20,
        median(after_resets.clone()),
        after_resets.iter().max().expect("some"),
        median(after_holes.clone()),
        after_holes.iter().max().expect("some"),
    );
    if slow() {
        assert!(median(after_resets) < Duration::from_secs(1));
        assert!(median(after_holes) <= Duration::from_secs(7));
    }
}

fn has(tool: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).exists()))
}

/// A user of this machine.
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

/// Whom a test that runs as root can be instead, with a shell to log in to.
fn somebody() -> Option<User> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, _, shell] = fields[..] else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let logs_in = shell.ends_with("/bash") || shell.ends_with("/sh");
        (uid != 0 && logs_in).then(|| User { name: name.to_owned(), uid, gid })
    })
}

/// A private sshd for an unprivileged user where there is one, on a port of its own.
struct Sshd {
    _running: Killed,
    port: u16,
    user: User,
    home: tempfile::TempDir,
}

impl Sshd {
    fn start() -> Result<Sshd, String> {
        for tool in ["ssh", "scp", "ssh-keygen", "rsync"] {
            if !has(tool) {
                return Err(format!("{tool} is not installed (tests/setup.sh)"));
            }
        }
        let server =
            ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|path| Path::new(path).exists());
        let server = server.ok_or("sshd is not installed (tests/setup.sh)")?;
        let home = tempfile::tempdir().map_err(|error| error.to_string())?;
        let at = |name: &str| home.path().join(name).display().to_string();
        for key in ["host", "user"] {
            let arguments = ["-q", "-t", "ed25519", "-N", "", "-f", &at(key)];
            let made = Command::new("ssh-keygen").args(arguments).status().expect("ssh-keygen runs");
            assert!(made.success());
        }
        std::fs::copy(at("user.pub"), at("known")).expect("copied");
        let port = free_port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             UsePAM no\nStrictModes no\nPasswordAuthentication no\n\
             ClientAliveInterval 0\nSubsystem sftp internal-sftp\n",
            at("host"),
            at("known")
        );
        std::fs::write(at("config"), config).expect("written");
        copy_program(program(), &home.path().join("towpath"));
        let user = match rustix::process::geteuid().is_root() {
            true => somebody().ok_or("there is no user besides root who could log in")?,
            false => {
                let me = Command::new("id").arg("-un").output().expect("id runs");
                let name = String::from_utf8_lossy(&me.stdout).trim().to_owned();
                User {
                    name,
                    uid: rustix::process::geteuid().as_raw(),
                    gid: rustix::process::getegid().as_raw(),
                }
            }
        };
        let files = ["", "host", "user", "known", "config", "towpath"].map(|name| home.path().join(name));
        for file in files {
            chown(file, Some(user.uid), Some(user.gid)).map_err(|error| error.to_string())?;
        }
        let mut child = Command::new(server)
            .args(["-D", "-e", "-f", &at("config")])
            .uid(user.uid)
            .gid(user.gid)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            if said.read_line(&mut line).unwrap_or(0) == 0 {
                return Err("sshd does not start here".into());
            }
        }
        // It goes on talking; nobody listens, and nobody must make it wait.
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(Sshd { _running: Killed(child), port, user, home })
    }

    /// A program run by whoever the server is for.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.uid(self.user.uid).gid(self.user.gid).env("HOME", self.home.path());
        command
    }

    /// What ssh, scp and rsync are told.
    fn options(&self, url: &str) -> Vec<String> {
        let proxy = format!(
            "{} connect {url} 127.0.0.1:{} --quiet",
            self.home.path().join("towpath").display(),
            self.port
        );
        [
            format!("ProxyCommand={proxy}"),
            format!("IdentityFile={}", self.home.path().join("user").display()),
            "IdentitiesOnly=yes".into(),
            "StrictHostKeyChecking=no".into(),
            "UserKnownHostsFile=/dev/null".into(),
            "LogLevel=ERROR".into(),
            "BatchMode=yes".into(),
            "ServerAliveInterval=0".into(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect()
    }
}

/// Cuts whatever there is, again and again, until it is dropped.
struct Storm {
    over: Arc<AtomicBool>,
    struck: Arc<AtomicU64>,
}

impl Storm {
    fn over(flaky: &Arc<Flaky>, every: Duration) -> Storm {
        let (over, struck) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (flaky, ends, counts) = (flaky.clone(), over.clone(), struck.clone());
        thread::spawn(move || {
            while !ends.load(Ordering::SeqCst) {
                thread::sleep(every);
                counts.fetch_add(flaky.strike(Fault::Reset) as u64, Ordering::SeqCst);
            }
        });
        Storm { over, struck }
    }

    fn end(self) -> u64 {
        self.over.store(true, Ordering::SeqCst);
        self.struck.load(Ordering::SeqCst)
    }
}

fn ran_well(output: &Output, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {} {said}", output.status);
    assert_eq!(said, "", "{what} has nothing to complain of");
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let (tell, told) = sync_channel(1_000);
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    told
}

#[test]
fn fault_ssh_scp_and_rsync_notice_nothing_of_a_storm_of_resets() {
    let sshd = match Sshd::start() {
        Ok(sshd) => sshd,
        Err(why) => return not_run(&format!("ssh, scp and rsync in a storm: {why}")),
    };
    // Megabits a second keep a transfer going for long enough that the storm has its chances.
    let (size, megabits, every) = match slow() {
        true => (256 << 20, 64, Duration::from_secs(2)),
        false => (8 << 20, 16, Duration::from_millis(400)),
    };
    let target = format!("127.0.0.1:{}", sshd.port);
    let daemon = Daemon::start(&["--allow", &target]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let flaky = Arc::new(flaky);
    let options = sshd.options(&format!("http://{}", flaky.address()));
    let host = format!("{}@127.0.0.1", sshd.user.name);
    let at = |name: &str| sshd.home.path().join(name);

    // A session: each line is answered although its connection is cut before each.
    let mut session = sshd.command("ssh");
    session.args(&options).arg(&host).arg("cat");
    session.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut session = session.spawn().expect("ssh starts");
    let lines = lines_of(&mut session);
    let mut stdin = session.stdin.take().expect("piped");
    for round in 0..10 {
        writeln!(stdin, "line {round}").expect("ssh reads");
        assert_eq!(lines.recv_timeout(PATIENCE * 2).expect("it comes back"), format!("line {round}"));
        while flaky.strike(Fault::Reset) == 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    drop(stdin);
    ran_well(&session.wait_with_output().expect("it ends"), "ssh");

    // A file there.
    let bytes = text(size);
    std::fs::write(at("sent"), &bytes).expect("written");
    let storm = Storm::over(&flaky, every);
    let mut copy = sshd.command("scp");
    copy.arg("-q").args(["-l", &(megabits * 1_000).to_string()]).args(&options).arg(at("sent"));
    copy.arg(format!("{host}:{}", at("received").display()));
    ran_well(&copy.output().expect("scp runs"), "scp");
    let by_scp = storm.end();
    assert!(std::fs::read(at("received")).expect("it is there") == bytes, "scp");

    // A folder back.
    std::fs::create_dir(at("folder")).expect("made");
    for (number, part) in bytes.chunks(size / 16).enumerate() {
        std::fs::write(at("folder").join(number.to_string()), part).expect("written");
    }
    let storm = Storm::over(&flaky, every);
    let mut sync = sshd.command("rsync");
    let shell = ["ssh".to_owned()].into_iter().chain(options.iter().map(|option| format!("'{option}'")));
    sync.args(["-a", "--whole-file", "--bwlimit", &(megabits * 125).to_string()]);
    sync.args(["-e", &shell.collect::<Vec<_>>().join(" ")]);
    sync.arg(format!("{host}:{}/", at("folder").display())).arg(at("synced"));
    ran_well(&sync.output().expect("rsync runs"), "rsync");
    let by_rsync = storm.end();
    for (number, part) in bytes.chunks(size / 16).enumerate() {
        let got = std::fs::read(at("synced").join(number.to_string())).expect("it is there");
        assert!(got == part, "rsync: file {number}");
    }
    assert!(by_scp > 0 && by_rsync > 0, "{by_scp} and {by_rsync} cuts");
    println!("ssh 10 cuts, scp {} MiB {by_scp} cuts, rsync {by_rsync} cuts: all of it equal", size >> 20);
}

/// Two namespaces, and a link between them that loses a part of the packets; gone when dropped.
struct Lossy {
    // Dropped, and so ended, before the namespaces.
    link: Killed,
    said: Receiver<String>,
    ends: Namespaces,
}

impl Lossy {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/lossy.py");

    fn lay(percent: u32) -> Result<Lossy, String> {
        let ends = Namespaces::make("lossy")?;
        let mut link = Command::new("python3");
        link.arg(Lossy::SCRIPT).args(&ends.names).args([&percent.to_string(), "1"]);
        link.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut link = link.spawn().map_err(|error| format!("python3: {error}"))?;
        let said = lines_of(&mut link);
        let lossy = Lossy { link: Killed(link), said, ends };
        match lossy.said.recv_timeout(PATIENCE) {
            Ok(line) if line == "ready" => Ok(lossy),
            _ => Err("there is no tun device here that lossy.py could use".into()),
        }
    }

    /// How many packets were lost, and of how many.
    fn lost(&mut self) -> (u64, u64) {
        // That is how it is told that everything has passed.
        drop(self.link.0.stdin.take());
        let line = self.said.recv_timeout(PATIENCE).expect("it says what it did");
        let number = |at: usize| line.split(' ').nth(at).and_then(|word| word.parse().ok());
        (number(0).expect("a number"), number(2).expect("a number"))
    }
}

#[test]
fn fault_a_link_that_loses_three_packets_of_ten_costs_time_and_no_byte() {
    const PERCENT: u32 = 30;
    let mut lossy = match Lossy::lay(PERCENT) {
        Ok(lossy) => lossy,
        Err(why) => return not_run(&format!("a pipe over a link that loses packets: {why}")),
    };
    let size = if slow() { 16 << 20 } else { 256 << 10 };
    let data = tempfile::tempdir().expect("a temporary folder");
    // The pipe leads to something that sends everything back.
    let echo = "import socket\ns = socket.create_server(('127.0.0.1', 7))\nprint('ready', flush=True)\n\
                c = s.accept()[0]\nwhile b := c.recv(65536): c.sendall(b)\nc.shutdown(socket.SHUT_WR)";
    let mut echo = lossy
        .ends
        .command(1, "python3")
        .args(["-c", echo])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let said = lines_of(&mut echo);
    let _echo = Killed(echo);
    assert_eq!(said.recv_timeout(PATIENCE).expect("it listens"), "ready");
    let mut serve = lossy.ends.command(1, program());
    serve.args(["serve", "--insecure", "--listen", "192.0.2.2:7700", "--allow", "127.0.0.1:7", "--data"]);
    serve.arg(data.path().join("data"));
    let _daemon = Daemon::start_command(serve);

    let sent = text(size);
    let begun = Instant::now();
    let mut connect = lossy.ends.command(0, program());
    connect.args(["connect", "http://192.0.2.2:7700", "127.0.0.1:7", "--quiet"]);
    connect.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut connect = connect.spawn().expect("it starts");
    let mut stdin = connect.stdin.take().expect("piped");
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&sent).expect("it takes them");
            drop(stdin);
        });
        connect.wait_with_output().expect("it ends")
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == sent, "{} of {size} bytes came back", output.stdout.len());
    let took = begun.elapsed();
    let (lost, of) = lossy.lost();
    assert!(lost * 100 > of * u64::from(PERCENT) / 2, "{lost} of {of}: hardly any were lost");
    println!("{} KiB there and back through a link that lost {lost} of {of} packets: {took:?}", size >> 10);
}
