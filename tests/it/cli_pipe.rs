//! Pipes as a user has them: a daemon, `connect`, `forward` and `pipe`, over networks that break.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use sha2::{Digest, Sha256};

use crate::asking::figure;
use crate::effort::not_run;
use crate::flaky::{Fault, Flaky, Weather};
use crate::front_scarce::ticks;
use crate::ports::free_port;
use crate::process::{Daemon, PATIENCE, lines, program, run, told, towpath};

/// A target that sends back what it gets, and ends when it is told to.
pub(crate) fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            thread::spawn(move || {
                let (mut from, mut to) = (&stream, &stream);
                // A client that is gone ends it as well.
                if std::io::copy(&mut from, &mut to).is_ok() {
                    let _ = stream.shutdown(Shutdown::Write);
                }
            });
        }
    });
    address
}

pub(crate) fn text(count: usize) -> Vec<u8> {
    (0..count as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// A process that is killed when the test is done with it.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Killed {
    /// Sends a signal by name, like `TERM`.
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "it is there to be signalled");
    }

    /// What it exits with, by itself.
    fn exit(&mut self) -> i32 {
        let mut status = None;
        until("it exits", || {
            status = self.0.try_wait().expect("it can be waited for");
            status.is_some()
        });
        status.and_then(|status| status.code()).expect("not by a signal")
    }
}

/// Looks until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a line with `text` in it.
fn heard(said: &Receiver<String>, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let line = said.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        if line.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {text}")).contains(text) {
            return;
        }
    }
}

/// The daemon's pipes, as `towpath pipe ls` has them.
fn listed(daemon: &Daemon) -> serde_json::Value {
    let (exit, said) = told(&run(&["pipe", "ls", "--json", "--url", &daemon.url]));
    assert_eq!(exit, 0, "{said}");
    serde_json::from_str(&said).expect("JSON")
}

/// A target that greets with a byte and then only listens; it tells how much came when a connection ends.
fn listener() -> (SocketAddr, Receiver<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (tell, told) = sync_channel(16);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, tell) = (stream.expect("a connection"), tell.clone());
            thread::spawn(move || {
                stream.write_all(b"!").expect("it is there");
                // An end and a reset are both one.
                let mut count = 0;
                let mut buffer = vec![0; 65_536];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    count += read as u64;
                }
                // The test may be over.
                let _ = tell.send(count);
            });
        }
    });
    (address, told)
}

/// `towpath connect` to a [`listener`], through which its byte has come.
fn connected(url: &str, target: SocketAddr, flags: &[&str]) -> Killed {
    let mut command = towpath(&["connect", url, &target.to_string()]);
    command.args(flags).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("towpath starts");
    child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("the target's greeting");
    Killed(child)
}

/// `towpath forward` to a target, and where it listens.
pub(crate) fn forward(url: &str, target: &str, flags: &[&str]) -> (Killed, SocketAddr) {
    let spec = format!("0:{target}");
    let mut command = towpath(&["forward", "-L", &spec, url]);
    command.args(flags).stdout(Stdio::piped());
    let mut running = Killed(command.spawn().expect("towpath starts"));
    let address = forwards_at(&mut running);
    (running, address)
}

fn forwards_at(running: &mut Killed) -> SocketAddr {
    let mut line = String::new();
    let stdout = running.0.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
    let address = line.split_whitespace().nth(1).expect("forwarding ADDRESS to TARGET");
    address.parse().expect("an address")
}

/// Sends `bytes` to an echo and checks what comes back, both at once. `look` hears how many came so far.
pub(crate) fn check_echo(address: SocketAddr, bytes: &[u8], mut look: impl FnMut(usize)) {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(bytes).expect("the pipe takes them");
            stream.shutdown(Shutdown::Write).expect("open");
        });
        let (mut hash, mut count) = (Sha256::new(), 0);
        let mut buffer = vec![0; 65_536];
        loop {
            let read = (&stream).read(&mut buffer).expect("bytes keep coming");
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            count += read;
            look(count);
        }
        assert_eq!(count, bytes.len());
        assert_eq!(hash.finalize(), Sha256::digest(bytes));
    });
}

#[test]
fn connect_carries_both_directions_and_exits_with_zero() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    for transport in ["auto", "upgrade", "websocket"] {
        let mut command = towpath(&["connect", &daemon.url, &target, "--transport", transport]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("towpath starts");
        let sent = text(3_000_000);
        let mut stdin = child.stdin.take().expect("piped");
        let writing = thread::spawn({
            let sent = sent.clone();
            move || stdin.write_all(&sent).expect("it reads")
        });
        let output = child.wait_with_output().expect("it ends");
        writing.join().expect("no panic");
        assert!(output.status.success(), "{transport}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == sent, "{transport}: {} bytes came back", output.stdout.len());
    }
}

#[test]
fn connect_says_by_its_exit_code_why_there_is_no_pipe() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let daemon = Daemon::start(&["--allow", &nobody]);
    let nowhere = format!("http://{nobody}");
    // No resolver has to be asked about a name that is longer than names are.
    let nameless = format!("{}.invalid:22", "x".repeat(64));
    let absent = "unix:/no/such/socket";
    let unreached = Daemon::start(&["--allow", &nameless, "--allow", absent]);
    let cases: [(&[&str], i32, &str); 6] = [
        (&["connect", &daemon.url, &nobody], 4, "target_refused"),
        (&["connect", &daemon.url, "127.0.0.1:1"], 4, "not_allowed"),
        (&["connect", &daemon.url, "not a target"], 4, "not_allowed"),
        // Each would be tried for 30 seconds if that could help.
        (&["connect", &unreached.url, &nameless], 4, "target_unreachable"),
        (&["connect", &unreached.url, absent], 4, "target_unreachable"),
        (&["connect", &nowhere, &nobody, "--connect-timeout", "1"], 6, "server_unreachable"),
    ];
    for (arguments, expected, code) in cases {
        let begun = Instant::now();
        let (exit, said) = told(&run(arguments));
        assert_eq!(exit, expected, "{arguments:?}: {said}");
        assert!(begun.elapsed() < PATIENCE, "{arguments:?} took {:?}", begun.elapsed());
        assert!(said.contains(code), "{arguments:?}: {said}");
    }
}

#[test]
fn told_to_stop_they_end_their_pipes_on_both_sides() {
    let (target, ended) = listener();
    let daemon = Daemon::start(&["--allow", &target.to_string()]);
    for signal in ["TERM", "INT"] {
        let (mut running, address) = forward(&daemon.url, &target.to_string(), &[]);
        let mut local = TcpStream::connect(address).expect("it listens");
        local.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        local.read_exact(&mut [0]).expect("the target's greeting");
        running.signal(signal);
        assert_eq!(running.exit(), 0, "forward was told to stop, and did");
        ended.recv_timeout(PATIENCE).expect("the target sees its connection end");
        until("the daemon has no pipe", || listed(&daemon) == serde_json::json!([]));
        assert!(TcpStream::connect(address).is_err(), "nobody accepts any more");

        // Its standard input stays open, and a thread of it sits there.
        let mut running = connected(&daemon.url, target, &[]);
        running.signal(signal);
        assert_eq!(running.exit(), if signal == "TERM" { 143 } else { 130 });
        ended.recv_timeout(PATIENCE).expect("the target sees its connection end");
        until("the daemon has no pipe", || listed(&daemon) == serde_json::json!([]));
    }
}

#[test]
fn connect_ends_when_nobody_takes_what_comes() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let mut command = towpath(&["connect", &daemon.url, &target]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("towpath starts");
    let mut running = Killed(child);
    let mut stdin = running.0.stdin.take().expect("piped");
    stdin.write_all(b"a").expect("it reads");
    running.0.stdout.take().expect("piped").read_exact(&mut [0]).expect("it comes back");
    // Who read has left, as `head` does; standard input stays open.
    stdin.write_all(b"b").expect("it reads");
    assert_eq!(running.exit(), 1);
    until("the daemon has no pipe", || listed(&daemon) == serde_json::json!([]));
    drop(stdin);
}

#[test]
fn who_reads_what_connect_prints_sees_the_end_of_it_while_it_is_still_written_to() {
    let (target, told) = ends_after(b"bye".to_vec());
    let daemon = Daemon::start(&["--allow", &target]);
    let mut command = towpath(&["connect", &daemon.url, &target]);
    let mut child =
        Killed(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("towpath starts"));
    let mut got = String::new();
    child.0.stdout.take().expect("piped").read_to_string(&mut got).expect("text");
    assert_eq!(got, "bye");
    let mut input = child.0.stdin.take().expect("piped");
    input.write_all(b"and more").expect("it is there");
    drop(input);
    assert_eq!(told.recv_timeout(PATIENCE).expect("the target's end"), "and more");
    assert_eq!(child.0.wait().expect("it ends").code(), Some(0));
}

#[test]
fn a_reader_of_connect_that_is_slow_gets_all_of_it() {
    let (target, _) = ends_after(text(180_000));
    let daemon = Daemon::start(&["--allow", &target]);
    let mut command = towpath(&["connect", &daemon.url, &target]);
    let mut child = Killed(command.stdout(Stdio::piped()).spawn().expect("towpath starts"));
    until("the pipe is over", || {
        let (exit, said) = told(&run(&["connections", "ls", "--json", "--url", &daemon.url]));
        exit == 0 && said.contains("eof")
    });
    // As long as what came after a bad end may take; how slow a reader may be has no bound.
    thread::sleep(Duration::from_secs(32));
    let mut got = Vec::new();
    child.0.stdout.take().expect("piped").read_to_end(&mut got).expect("bytes");
    assert!(got == text(180_000), "{} bytes", got.len());
    assert_eq!(child.0.wait().expect("it ends").code(), Some(0));
}

/// A target that says something and ends, and what it heard.
fn ends_after(words: Vec<u8>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = listener.local_addr().expect("bound").to_string();
    let (tell, told) = sync_channel(1);
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.write_all(&words).expect("it is there");
        stream.shutdown(Shutdown::Write).expect("open");
        let mut got = String::new();
        stream.read_to_string(&mut got).expect("text");
        tell.send(got).expect("somebody waits");
    });
    (target, told)
}

#[test]
fn connect_that_has_all_and_was_told_all_leaves_when_its_connection_is_lost_for_long() {
    let (target, _) = ends_after(b"bye".to_vec());
    let daemon = Daemon::start(&["--allow", &target]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let mut command = towpath(&["connect", &format!("http://{}", flaky.address()), &target]);
    let mut child =
        Killed(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("towpath starts"));
    let mut got = String::new();
    child.0.stdout.take().expect("piped").read_to_string(&mut got).expect("text");
    assert_eq!(got, "bye");
    // The way is gone before its input ends.
    drop(flaky);
    drop(child.0.stdin.take());
    assert_eq!(child.exit(), 5);
}

#[test]
fn a_forward_whose_terminal_is_closed_leaves() {
    if !Path::new("/usr/bin/script").exists() {
        return not_run("a terminal to close needs /usr/bin/script, and there is none");
    }
    let (target, _) = listener();
    let daemon = Daemon::start(&["--allow", &target.to_string()]);
    let place = tempfile::tempdir().expect("a temporary folder");
    let said = place.path().join("said");
    let port = free_port();
    // A shell between them sends a SIGHUP of its own, beside the system's.
    let inside = format!(
        "bash -ic '{} forward -L {port}:{target} {} > {}; true'",
        program().display(),
        daemon.url,
        said.display()
    );
    let mut terminal = Command::new("/usr/bin/script");
    terminal.args(["-qc", &inside, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let terminal = Killed(terminal.spawn().expect("it starts"));
    until("it listens", || std::fs::read_to_string(&said).is_ok_and(|text| text.contains("forwarding")));
    let mut local = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    local.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    local.read_exact(&mut [0]).expect("the target's greeting");
    drop(terminal);
    // Not by connecting: that would be one more pipe, which might begin just when it leaves.
    until("it has left", || TcpListener::bind(("127.0.0.1", port)).is_ok());
    until("and its pipes with it", || listed(&daemon) == serde_json::json!([]));
}

#[test]
fn connect_leaves_when_nobody_is_left_at_its_end_and_there_is_no_connection() {
    let (target, _ended) = listener();
    let daemon = Daemon::start(&["--allow", &target.to_string()]);
    let mut running = connected(&daemon.url, target, &[]);
    let said = lines(running.0.stderr.take().expect("piped"));
    daemon.signal("KILL");
    heard(&said, "link lost");
    // What ssh does when it ends: both pipes close, and its ProxyCommand gets a SIGHUP.
    running.signal("HUP");
    drop((running.0.stdin.take(), running.0.stdout.take()));
    assert_eq!(running.exit(), 5);
    heard(&said, "left_alone");
}

#[test]
fn what_connect_was_given_arrives_although_nobody_waits_for_an_answer() {
    let (target, ended) = listener();
    let daemon = Daemon::start(&["--allow", &target.to_string()]);
    let mut running = connected(&daemon.url, target, &[]);
    drop(running.0.stdout.take());
    let mut stdin = running.0.stdin.take().expect("piped");
    stdin.write_all(&text(3_000_000)).expect("it reads");
    drop(stdin);
    assert_eq!(ended.recv_timeout(PATIENCE), Ok(3_000_000));
    assert_eq!(running.exit(), 0);
}

#[test]
fn forward_without_descriptors_says_so_once_and_waits() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let mut command = towpath(&["forward", "-L", &format!("0:{target}"), &daemon.url]);
    command.arg("--quiet").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Killed(command.spawn().expect("towpath starts"));
    let address = forwards_at(&mut running);
    let said = lines(running.0.stderr.take().expect("piped"));
    let pid = Pid::from_raw(i32::try_from(running.0.id()).expect("a pid")).expect("not zero");
    let few = Rlimit { current: Some(64), maximum: Some(64) };
    prlimit(Some(pid), Resource::Nofile, few).expect("a process may lower the limit of its child");

    let sockets: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(address).expect("the kernel takes it")).collect();
    heard(&said, "accept_paused");
    // Those that were taken are carried, however many wait behind them.
    let mut first = &sockets[0];
    first.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    first.write_all(b"x").and_then(|()| first.read_exact(&mut [0])).expect("it comes back");

    // How busy it is while it can accept nothing: this is what is measured, not waited for.
    let (before, begun) = (ticks(running.0.id()), Instant::now());
    thread::sleep(Duration::from_secs(1));
    let busy = (ticks(running.0.id()) - before) as f64 / 100.0 / begun.elapsed().as_secs_f64();
    assert!(busy < 0.2, "{:.1} % of a processor", busy * 100.0);
    let again = said.try_iter().filter(|line| line.contains("accept_paused")).count();
    assert_eq!(again, 0, "said once for as long as it lasts");

    drop(sockets);
    until("it carries again", || {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).is_ok()
    });
}

#[test]
fn a_pipe_that_lost_its_daemon_ends_with_five_once_another_one_answers() {
    let target = echo().to_string();
    // Another daemon gets the address of the first one, and nobody else meanwhile.
    let address = format!("127.0.0.1:{}", free_port());
    let daemon = Daemon::start(&["--allow", &target, "--listen", &address]);
    let mut command = towpath(&["connect", &daemon.url, &target]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"hello").expect("it reads");
    let mut got = [0; 5];
    child.stdout.as_mut().expect("piped").read_exact(&mut got).expect("it comes back");
    daemon.signal("KILL");
    drop(daemon);
    let data = tempfile::tempdir().expect("a temporary folder");
    let mut second = towpath(&["serve", "--listen", &address, "--data"]);
    let _second = Killed(second.arg(data.path()).spawn().expect("towpath starts"));
    let output = child.wait_with_output().expect("it ends");
    let (exit, said) = told(&output);
    assert_eq!(exit, 5, "{said}");
    assert!(said.contains("link lost") && said.contains("unknown_pipe"), "{said}");
}

#[test]
fn a_forwarded_stream_survives_every_kind_of_break() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let weather = Weather { split: 20_000, ..Weather::default() };
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 7, weather).expect("a free port");
    let url = format!("http://{}", flaky.address());
    let faults = [
        Fault::Reset,
        Fault::Close,
        Fault::Freeze,
        Fault::Reset,
        Fault::HoleUp,
        Fault::Close,
        Fault::HoleDown,
    ];
    // What lies between the two ends when the last of them strikes is less than what is still to come, so
    // each strikes in the middle of the stream, however fast or slow the machine is.
    let (step, rest) = (1 << 20, 32 << 20);
    for transport in ["upgrade", "websocket"] {
        let before = flaky.counts();
        let (_running, address) = forward(&url, &target, &["--fast", "--quiet", "--transport", transport]);
        let mut next = 0;
        check_echo(address, &text(faults.len() * step + rest), |count| {
            if next < faults.len() && count > (next + 1) * step {
                // Between two connections there is nothing to break: then a moment later.
                let deadline = Instant::now() + PATIENCE;
                while flaky.strike(faults[next]) == 0 {
                    assert!(Instant::now() < deadline, "{:?} found no connection", faults[next]);
                    thread::sleep(Duration::from_millis(1));
                }
                next += 1;
            }
        });
        assert_eq!(next, faults.len(), "{transport}");
        let (struck, connections) = flaky.counts();
        assert!(struck >= before.0 + faults.len() as u64, "{transport}: {struck} faults in all");
        // A pipe that froze keeps its connection; every other break costs one.
        let broken = faults.iter().filter(|fault| **fault != Fault::Freeze).count() as u64;
        assert!(connections > before.1 + broken, "{transport}: {connections} connections in all");
    }
}

#[test]
fn silence_in_one_direction_or_both_is_noticed_and_healed() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let (_running, address) =
        forward(&format!("http://{}", flaky.address()), &target, &["--fast", "--quiet"]);
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut ask = |what: &[u8]| {
        stream.write_all(what).expect("the pipe takes it");
        let mut got = vec![0; what.len()];
        let asked = Instant::now();
        stream.read_exact(&mut got).expect("it comes back");
        assert_eq!(got, what);
        asked.elapsed()
    };
    ask(b"calm");
    for hole in [Fault::Hole, Fault::HoleUp, Fault::HoleDown] {
        flaky.strike(hole);
        let took = ask(b"are you there");
        assert!(took < Duration::from_secs(12), "{hole:?} was noticed after {took:?}");
    }
}

#[test]
fn after_a_cut_whose_path_is_up_bytes_flow_again_at_once() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let (_running, address) = forward(&format!("http://{}", flaky.address()), &target, &["--quiet"]);
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut waits = Vec::new();
    for round in 0..21_u8 {
        let begun = Instant::now();
        stream.write_all(&[round]).expect("the pipe takes it");
        let mut got = [0];
        stream.read_exact(&mut got).expect("it comes back");
        assert_eq!(got, [round]);
        waits.push(begun.elapsed());
        flaky.strike(Fault::Reset);
    }
    waits.sort_unstable();
    assert!(waits[10] < Duration::from_secs(1), "half of the recoveries took longer than {:?}", waits[10]);
}

#[test]
fn pipes_are_listed_cut_and_killed_and_strangers_see_none() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let (_running, address) = forward(&daemon.url, &target, &["--quiet"]);
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut got = [0; 2];
    stream.write_all(b"hi").expect("the pipe takes it");
    stream.read_exact(&mut got).expect("it comes back");

    let pipes = listed(&daemon);
    let id = pipes[0]["id"].as_str().expect("a pipe").to_owned();
    assert_eq!((pipes[0]["target"].as_str(), pipes[0]["state"].as_str()), (Some(&*target), Some("attached")));
    assert_eq!(
        (pipes[0]["bytes_to_target"].as_u64(), pipes[0]["bytes_from_target"].as_u64()),
        (Some(2), Some(2))
    );

    let (exit, said) = told(&run(&["pipe", "cut", &id, "--url", &daemon.url]));
    assert_eq!(exit, 0, "{said}");
    stream.write_all(b"hi").expect("the pipe takes it");
    stream.read_exact(&mut got).expect("it recovers");
    let pipes = listed(&daemon);
    assert_eq!((&pipes[0]["resumes"], &pipes[0]["epoch"]), (&1.into(), &2.into()), "one dial for one cut");
    assert!(pipes[0]["round_trip_us"].as_u64().is_some(), "{pipes}");

    let (exit, said) = told(&run(&["pipe", "kill", &id, "--url", &daemon.url]));
    assert_eq!(exit, 0, "{said}");
    assert!(stream.read(&mut got).map_or(true, |count| count == 0), "it is over");
    let (exit, said) = told(&run(&["pipe", "show", &id, "--url", &daemon.url]));
    assert!(exit != 0 && said.contains("not_found"), "{said}");
    let (status, figures) = daemon.get("/metrics");
    assert_eq!(status, 200);
    let lines = [
        "towpath_pipe_resumes_total 1",
        "towpath_pipe_resumes_by_result_total{result=\"resumed\"} 1",
        "towpath_pipe_resumes_by_result_total{result=\"unknown_pipe\"} 0",
        "towpath_pipe_refusals_total{code=\"not_allowed\"} 0",
        "towpath_pipes_open 0",
        "towpath_pipes_attached 0",
        "towpath_pipes_detached 0",
    ];
    for line in lines {
        assert!(figures.lines().any(|found| found == line), "no line {line} in {figures}");
    }
    // The first welcome and that of the resume were answered, and whatever was asked since.
    assert!(figure(&daemon, "towpath_pipe_round_trip_seconds_count") >= 2);
}

#[test]
fn a_pipe_costs_the_daemon_no_thread() {
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target]);
    let (_running, address) = forward(&daemon.url, &target, &["--quiet"]);
    let open = || {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(b"x").expect("the pipe takes it");
        stream.read_exact(&mut [0]).expect("it comes back");
        stream
    };
    let threads = || std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("linux").count();
    let _first = open();
    let before = threads();
    let _pipes: Vec<TcpStream> = (0..50).map(|_| open()).collect();
    // Those that dialed the target may still be about to end.
    let patience = Instant::now() + PATIENCE;
    while threads() > before + 1 {
        assert!(Instant::now() < patience, "{} threads, {before} before", threads());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_no_upgrade_is_told_what_to_ask_for() {
    let daemon = Daemon::start(&[]);
    let (status, said) = daemon.get("/v1/pipe");
    assert_eq!((status, said.contains("towpath-pipe/1")), (426, true), "{said}");
}
