//! Who may have a pipe, and over what: encrypted carriers, and what is looked at again whenever a client comes
//! back.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use towpath::client::pipe::Pipe;
use towpath::engine::pipes::http::{HttpDialer, Transport};
use towpath::engine::pipes::{Pipes, Plan, Server, Settings};
use towpath::rt::Rt;
use towpath::state::pipe::PipeId;
use towpath::state::pipe::hello::{Asked, Known};
use towpath::state::pipe::proof::Secret;
use towpath::wire::ClientTls;

use crate::cli_pipe::{echo, forward, text};
use crate::cli_token::made;
use crate::effort::not_run;
use crate::flaky::{Fault, Flaky, Weather};
use crate::namespaces::{Namespaces, ip};
use crate::pipe_paths::Connect;
use crate::pipe_wire::{Raw, stand};
use crate::process::{Daemon, PATIENCE, certificate, program, run, told, towpath};

/// A daemon with a certificate for `localhost`, and a network that breaks in front of it.
fn encrypted(target: &str) -> (Daemon, Flaky) {
    let daemon = Daemon::start_with(&["--allow", target], |command| {
        command
            .env("TOWPATH_TLS__CERTIFICATE", certificate("localhost.pem"))
            .env("TOWPATH_TLS__KEY", certificate("localhost.key"));
    });
    let address = daemon.url.strip_prefix("https://").expect("it speaks TLS");
    let flaky = Flaky::start("127.0.0.1:0", address, 3, Weather::default()).expect("a free port");
    (daemon, flaky)
}

/// Cuts both: one ends as it is to, the other goes on.
fn one_of_two_comes_back(flaky: &Flaky, ends: Connect, mut goes_on: Connect, (exit, why): (i32, &str)) {
    flaky.strike(Fault::Reset);
    goes_on.ask("came back");
    let (exited, said) = ends.end();
    assert_eq!(exited, exit, "{said}");
    assert!(said.contains(why), "{said}");
    goes_on.ask("still here");
    assert_eq!(goes_on.end(), (0, String::new()));
}

#[test]
fn encrypted_carriers_are_cut_and_the_stream_is_whole() {
    const STEP: usize = 512 << 10;
    let faults = [Fault::Reset, Fault::Close, Fault::Reset, Fault::Close, Fault::Reset];
    let rt = Rt::real();
    let target = echo().to_string();
    let (_daemon, flaky) = encrypted(&target);
    let url = format!("https://localhost:{}", flaky.address().port());
    let pipes = Pipes::start(&rt, Settings::default(), Server::none()).expect("threads");
    // One that does not begin or end where a frame or a record does.
    let sent = text((faults.len() + 1) * STEP + 4_321);
    for transport in [Transport::Upgrade, Transport::WebSocket] {
        let trust = ClientTls::trusting(&certificate("authority.pem")).expect("an authority");
        let dialer = HttpDialer::new(&url, None, transport, None, Some(trust)).expect("a URL");
        let plan = Plan::new(Arc::new(dialer), target.clone());
        let before = flaky.counts().1;
        let mut pipe = Pipe::open(&rt, &pipes.handle(), plan).expect("it opens");
        pipe.set_read_timeout(Some(PATIENCE));
        let (struck, all_struck) = sync_channel(1);
        thread::scope(|scope| {
            let (sent, mut writes) = (&sent, &pipe);
            scope.spawn(move || {
                // The last bytes wait for the last fault: each of them strikes in the middle.
                let (most, rest) = sent.split_at(faults.len() * STEP + 1);
                writes.write_all(most).expect("the pipe takes them");
                all_struck.recv_timeout(PATIENCE * 3).expect("all have struck");
                writes.write_all(rest).expect("the pipe takes them");
                writes.shutdown().expect("open");
            });
            let (mut reads, mut hash, mut count, mut next) = (&pipe, Sha256::new(), 0, 0);
            let mut buffer = vec![0; 65_536];
            loop {
                let read = reads.read(&mut buffer).expect("bytes keep coming");
                if read == 0 {
                    break;
                }
                hash.update(&buffer[..read]);
                count += read;
                if next < faults.len() && count > next * STEP {
                    let deadline = Instant::now() + PATIENCE;
                    while flaky.strike(faults[next]) == 0 {
                        assert!(Instant::now() < deadline, "{:?} found no connection", faults[next]);
                        thread::sleep(Duration::from_millis(1));
                    }
                    next += 1;
                    if next == faults.len() {
                        struck.send(()).expect("somebody waits");
                    }
                }
            }
            assert_eq!((count, next), (sent.len(), faults.len()), "{transport:?}");
            assert_eq!(hash.finalize(), Sha256::digest(sent), "{transport:?}");
        });
        let connections = flaky.counts().1 - before;
        assert!(connections > faults.len() as u64, "{transport:?}: {connections} connections");
    }
}

#[test]
fn a_certificate_is_asked_for_and_not_taken_from_just_anybody() {
    let target = echo().to_string();
    let (daemon, flaky) = encrypted(&target);
    let port = flaky.address().port();
    let (named, numbered) = (format!("https://localhost:{port}"), format!("https://127.0.0.1:{port}"));
    let ours = certificate("authority.pem").display().to_string();
    let others = certificate("replicas.pem").display().to_string();
    let mut connect = Connect::start(&mut towpath(&["connect", &named, &target, "--ca", &ours]));
    connect.ask("hello");
    flaky.strike(Fault::Reset);
    connect.ask("and again");
    assert_eq!(connect.end().0, 0);
    for (url, authority) in [(&named, &others), (&numbered, &ours)] {
        let arguments = ["connect", url, &target, "--ca", authority, "--connect-timeout", "1"];
        let (exit, said) = told(&run(&arguments));
        assert_eq!(exit, 6, "{url} {authority}: {said}");
        assert!(said.contains("TLS failed"), "{url} {authority}: {said}");
    }
    drop(daemon);
}

#[test]
fn a_target_that_is_taken_off_the_list_ends_its_pipes_when_their_clients_come_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("t.toml");
    let (gone, stays) = (echo().to_string(), echo().to_string());
    std::fs::write(&file, format!("[pipes]\nallow = [\"{gone}\", \"{stays}\"]\n")).expect("written");
    let daemon = Daemon::start(&["--config", file.to_str().expect("UTF-8")]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let url = format!("http://{}", flaky.address());
    let mut ends = Connect::start(&mut towpath(&["connect", &url, &gone, "-q"]));
    let mut goes_on = Connect::start(&mut towpath(&["connect", &url, &stays, "-q"]));
    ends.ask("hello");
    goes_on.ask("hello");

    std::fs::write(&file, format!("[pipes]\nallow = [\"{stays}\"]\n")).expect("written");
    daemon.signal("HUP");
    daemon.wait_for_log("read again");
    ends.ask("nobody came back yet");
    one_of_two_comes_back(&flaky, ends, goes_on, (4, "not_allowed"));
}

#[test]
fn a_token_that_is_taken_back_ends_its_pipes_when_their_clients_come_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tokens");
    let ((gone, of_gone), (stays, of_stays)) = (made("gone", "pipe"), made("stays", "pipe"));
    std::fs::write(&file, format!("{of_gone}\n{of_stays}\n")).expect("written");
    let target = echo().to_string();
    let daemon = Daemon::start(&["--allow", &target, "--token-file", file.to_str().expect("UTF-8")]);
    let flaky = Flaky::start("127.0.0.1:0", daemon.address(), 1, Weather::default()).expect("a free port");
    let url = format!("http://{}", flaky.address());
    let with = |token: &str| {
        let mut command = towpath(&["connect", &url, &target, "-q"]);
        Connect::start(command.env("TOWPATH_TOKEN", token))
    };
    let (mut ends, mut goes_on) = (with(&gone), with(&stays));
    ends.ask("hello");
    goes_on.ask("hello");

    std::fs::write(&file, format!("{of_stays}\n")).expect("written");
    daemon.signal("HUP");
    daemon.wait_for_log("read again");
    one_of_two_comes_back(&flaky, ends, goes_on, (3, "auth"));
}

#[test]
fn a_secret_is_not_sent_over_a_network_in_the_clear_unless_somebody_said_so() {
    let ends = Namespaces::make("clear").and_then(|ends| {
        // An address that is not this machine's own, and yet answers.
        ip(&format!("-n {} addr add 192.0.2.1/32 dev lo", ends.names[0])).map(|()| ends)
    });
    let ends = match ends {
        Ok(ends) => ends,
        Err(why) => {
            return not_run(&format!("a pipe in the clear needs namespaces, root and iproute2: {why}"));
        }
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tokens = folder.path().join("tokens");
    let (token, line) = made("ann", "pipe");
    std::fs::write(&tokens, format!("{line}\n")).expect("written");
    // Nobody listens at the target: who gets as far as that is told so.
    for (flags, code) in [(&[][..], "not_allowed"), (&["--insecure"][..], "target_refused")] {
        let mut serve = ends.command(0, program());
        serve.args(["serve", "--listen", "192.0.2.1:7700", "--allow", "127.0.0.1:7"]).args(flags);
        serve.arg("--token-file").arg(&tokens).arg("--data").arg(folder.path().join(code));
        let _daemon = Daemon::start_command(serve);
        let mut connect = ends.command(0, program());
        connect.args(["connect", "http://192.0.2.1:7700", "127.0.0.1:7"]).env("TOWPATH_TOKEN", &token);
        let (exit, said) = told(&connect.output().expect("it starts"));
        assert_eq!(exit, 4, "{flags:?}: {said}");
        assert!(said.contains(code), "{flags:?}: {said}");
        assert_eq!(said.contains("--insecure"), flags.is_empty(), "it says what to do: {said}");
    }
}

/// A target that swallows what comes, and says a byte for each piece.
fn swallows(piece: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut buffer = vec![0; piece];
        while stream.read_exact(&mut buffer).is_ok() {
            stream.write_all(b".").expect("it is open");
        }
    });
    at
}

/// Says that it is over, also when the test fails, so that nobody goes on for ever.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_flood_of_bad_resumes_at_a_daemon_slows_a_tunnel_no_more_than_one_somewhere_else() {
    const PIECE: usize = 1 << 20;
    const ROUNDS: usize = 5;
    const FLOODS: u64 = 200;
    let target = swallows(PIECE);
    let (here, beside) = (Daemon::start(&["--allow", &target]), Daemon::start(&[]));
    let (_running, address) = forward(&here.url, &target, &["--quiet"]);
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let places = [&beside, &here].map(|daemon| daemon.address().parse().expect("an address"));
    let flooded = [AtomicU64::new(0), AtomicU64::new(0)];
    let (place, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let nobodys = Known { id: PipeId([9; 16]), secret: Secret([1; 32]), instance: [0; 16] };
    let mut slowed = Vec::new();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let at = place.load(Ordering::SeqCst);
                    let raw = Raw::upgraded(places[at], "nobody");
                    let (mut raw, mut asking, proof) = raw.prove_on(&nobodys, 9, stand(0), None);
                    raw.greet(&proof);
                    let answer = asking.step(raw.greeting());
                    assert!(matches!(answer, Ok(Asked::Refused(_))), "{answer:?}");
                    flooded[at].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let _ends = Ends(&done);
        let piece = vec![7; PIECE];
        // How long a piece mostly takes while there is a flood there.
        let mut piece_takes = |at: usize| {
            place.store(at, Ordering::SeqCst);
            let until = flooded[at].load(Ordering::SeqCst) + FLOODS;
            let mut took = Vec::new();
            while flooded[at].load(Ordering::SeqCst) < until {
                let begun = Instant::now();
                stream.write_all(&piece).and_then(|()| stream.read_exact(&mut [0])).expect("it is carried");
                took.push(begun.elapsed());
            }
            took.sort_unstable();
            took[took.len() / 2].as_secs_f64()
        };
        for _ in 0..ROUNDS {
            let aside = piece_takes(0);
            slowed.push(piece_takes(1) / aside);
        }
    });
    // Whatever else the machine does may spoil a round or two.
    slowed.sort_unstable_by(f64::total_cmp);
    println!("tunnel beside a flood: {slowed:.2?} of the time a piece takes while another daemon is flooded");
    assert!(slowed[ROUNDS / 2] < 2.5, "{slowed:.1?}");
}
