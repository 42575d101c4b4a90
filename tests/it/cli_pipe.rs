//! Pipes as a user has them: a daemon, `connect`, `forward` and `pipe`, over networks that break.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::asking::figure;
use crate::flaky::{Fault, Flaky, Weather};
use crate::ports::free_port;
use crate::process::{Daemon, PATIENCE, run, told, towpath};

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

/// `towpath forward` to a target, and where it listens.
pub(crate) fn forward(url: &str, target: &str, flags: &[&str]) -> (Killed, SocketAddr) {
    let spec = format!("0:{target}");
    let mut command = towpath(&["forward", "-L", &spec, url]);
    command.args(flags).stdout(Stdio::piped());
    let mut child = command.spawn().expect("towpath starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
    let address = line.split_whitespace().nth(1).expect("forwarding ADDRESS to TARGET");
    let address = address.parse().expect("an address");
    (Killed(child), address)
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
    let cases: [(&[&str], i32, &str); 4] = [
        (&["connect", &daemon.url, &nobody], 4, "target_refused"),
        (&["connect", &daemon.url, "127.0.0.1:1"], 4, "not_allowed"),
        (&["connect", &daemon.url, "not a target"], 4, "not_allowed"),
        (&["connect", &nowhere, &nobody, "--connect-timeout", "1"], 6, "target_unreachable"),
    ];
    for (arguments, expected, code) in cases {
        let (exit, said) = told(&run(arguments));
        assert_eq!(exit, expected, "{arguments:?}: {said}");
        assert!(said.contains(code), "{arguments:?}: {said}");
    }
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

    let list = || {
        let (exit, said) = told(&run(&["pipe", "ls", "--json", "--url", &daemon.url]));
        assert_eq!(exit, 0, "{said}");
        serde_json::from_str::<serde_json::Value>(&said).expect("JSON")
    };
    let pipes = list();
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
    let pipes = list();
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
