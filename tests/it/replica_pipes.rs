//! Pipes behind a balancer: two daemons on one PostgreSQL, and a resume that comes to the one that does not
//! have the pipe.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli_pipe::{echo, forward, text};
use crate::cluster;
use crate::process::{Daemon, run, told};

/// How long anything may take on a machine where everything else runs too.
const PATIENCE: Duration = Duration::from_secs(60);

fn replica(store: &str, target: &str) -> Daemon {
    let arguments = ["--store", store, "--relay-listen", "127.0.0.1:0", "--allow", target];
    Daemon::start_with(&arguments, |command| {
        command.env("TOWPATH_SERVER__DRAIN_WINDOW", "500ms");
    })
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn knows_two(daemon: &Daemon) -> bool {
    let (_, text) = daemon.get("/v1/replicas");
    let listed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    listed["replicas"].as_array().is_some_and(|replicas| replicas.len() == 2)
}

fn figure(daemon: &Daemon, name: &str) -> u64 {
    let (_, text) = daemon.get("/metrics");
    let of = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
    text.lines().find_map(of).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Sends every new connection where it is told to, and can cut those there are.
#[derive(Clone)]
struct Balancer {
    address: SocketAddr,
    inner: Arc<Mutex<Balanced>>,
}

struct Balanced {
    to: String,
    open: Vec<TcpStream>,
}

impl Balancer {
    fn start(to: &Daemon) -> Balancer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let balanced = Balanced { to: to.address().to_owned(), open: Vec::new() };
        let balancer = Balancer { address, inner: Arc::new(Mutex::new(balanced)) };
        let accepts = balancer.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                accepts.join(client);
            }
        });
        balancer
    }

    fn with<T>(&self, act: impl FnOnce(&mut Balanced) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn join(&self, client: TcpStream) {
        let to = self.with(|balanced| balanced.to.clone());
        // Nobody there: the client sees a closed connection.
        let Ok(server) = TcpStream::connect(to) else { return };
        let clone = |stream: &TcpStream| stream.try_clone().expect("a clone");
        self.with(|balanced| balanced.open.extend([clone(&client), clone(&server)]));
        for (mut from, mut to) in [(clone(&client), clone(&server)), (server, client)] {
            thread::spawn(move || {
                // Whichever breaks takes the other one along.
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
            });
        }
    }

    /// The same, and the pipe that `owner` has comes back that way before anything else happens: cuts that follow
    /// each other sooner than it dials would be one.
    fn move_to(&self, daemon: &Daemon, owner: &Daemon) {
        let resumed = || figure(owner, "towpath_pipe_resumes_total");
        let before = resumed();
        self.go_to(daemon);
        eventually("the pipe came back", || resumed() > before);
    }

    /// From now on there, and what was elsewhere is cut.
    fn go_to(&self, daemon: &Daemon) {
        let cut = self.with(|balanced| {
            balanced.to = daemon.address().to_owned();
            std::mem::take(&mut balanced.open)
        });
        for stream in cut {
            // It may be gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

#[test]
fn a_pipe_made_through_one_replica_resumes_through_another_byte_for_byte() {
    let Some(store) = cluster::database() else { return };
    let target = echo().to_string();
    let (one, other) = (replica(&store, &target), replica(&store, &target));
    eventually("both know both", || knows_two(&one) && knows_two(&other));
    let balancer = Balancer::start(&one);
    for transport in ["upgrade", "websocket"] {
        balancer.go_to(&one);
        let flags = ["--quiet", "--transport", transport];
        let (_running, address) = forward(&balancer.url(), &target, &flags);
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let sent = text(8 << 20);
        for (piece, to) in sent.chunks(1 << 20).zip([&other, &one].into_iter().cycle()) {
            stream.write_all(piece).expect("the pipe takes it");
            balancer.move_to(to, &one);
            let mut got = vec![0; piece.len()];
            stream.read_exact(&mut got).expect("it comes back");
            assert!(got == piece, "{transport}: other bytes");
        }
    }
    assert_eq!(
        (figure(&one, "towpath_pipes_opened_total"), figure(&other, "towpath_pipes_opened_total")),
        (2, 0)
    );
    let carried = figure(&other, "towpath_pipe_carriers_carried_on_total");
    assert!(carried >= 2, "{carried} carriers came to the other one");
    let resumed = figure(&one, "towpath_pipe_resumes_total");
    assert!(resumed >= carried, "{resumed} resumes, {carried} of them by way of the other one");
}

#[test]
fn a_pipe_of_a_replica_that_is_gone_is_nobodys_and_the_client_hears_it() {
    let Some(store) = cluster::database() else { return };
    let target = echo().to_string();
    let (one, other) = (replica(&store, &target), replica(&store, &target));
    eventually("both know both", || knows_two(&one) && knows_two(&other));
    let balancer = Balancer::start(&one);
    let (_running, address) = forward(&balancer.url(), &target, &["--quiet"]);
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"x").expect("the pipe takes it");
    stream.read_exact(&mut [0]).expect("it comes back");
    one.signal("KILL");
    balancer.go_to(&other);
    // Until the dead one is known to be dead it may come back; then the answer is final.
    let ended = stream.read(&mut [0]);
    assert!(
        ended.as_ref().map_or_else(|e| e.kind() == std::io::ErrorKind::ConnectionReset, |n| *n == 0),
        "{ended:?}"
    );
    let (_, figures) = other.get("/metrics");
    let unknown = "towpath_pipe_resumes_by_result_total{result=\"unknown_pipe\"} 1";
    assert!(figures.contains(unknown), "{figures}");
    let (exit, said) = told(&run(&["pipe", "ls", "--json", "--url", &other.url]));
    assert_eq!((exit, said.trim()), (0, "[]"));
}
