//! Two daemons in network namespaces of their own on one PostgreSQL, and the link between them pulled and put
//! back: who follows on the one sees what who follows on the other sees.
//!
//! The database and the test reach both over Unix sockets, which no namespace hides, so that only replicas lose
//! each other. A slice is always run; `SLOW=1` (or `CYCLES=`) pulls the link more often.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::asking::ask;
use crate::cluster;
use crate::effort::{cycles, not_run};
use crate::namespaces::{Namespaces, ip};
use crate::process::{Daemon, program};

/// How long anything may take on a machine where everything else runs too.
const PATIENCE: Duration = Duration::from_secs(60);
const TURNS: &str = "/v1/streams/chat/1/turns";

/// Two namespaces with a cable between them; gone when dropped.
struct Cable {
    ends: Namespaces,
}

impl Cable {
    fn lay() -> Result<Cable, String> {
        let ends = Namespaces::make("cable")?;
        let [a, b] = &ends.names;
        ip(&format!("-n {a} link add cable type veth peer name cable netns {b}"))?;
        for (at, name) in ends.names.iter().enumerate() {
            ip(&format!("-n {name} addr add {}/24 dev cable", Cable::address(at)))?;
            ip(&format!("-n {name} link set cable up"))?;
        }
        Ok(Cable { ends })
    }

    /// Addresses kept for documentation: nobody's.
    fn address(end: usize) -> String {
        format!("192.0.2.{}", end + 1)
    }

    fn pull(&self) {
        ip(&format!("-n {} link set cable down", self.ends.names[0])).expect("it was up");
    }

    fn put_back(&self) {
        ip(&format!("-n {} link set cable up", self.ends.names[0])).expect("it is there");
    }
}

/// A daemon in a namespace.
struct Replica {
    _daemon: Daemon,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Replica {
    fn start(cable: &Cable, end: usize, store: &str) -> Replica {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("front");
        let mut command = cable.ends.command(end, program());
        command.args([
            "serve",
            "--listen",
            &format!("unix:{}", socket.display()),
            "--store",
            store,
            "--data",
        ]);
        command.arg(folder.path().join("data"));
        command.args(["--relay-listen", &format!("{}:7701", Cable::address(end))]);
        Replica { _daemon: Daemon::start_command(command), socket, _folder: folder }
    }

    fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(&self.socket).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    }

    fn ask(&self, line: &str, headers: &str, body: &str) -> (u16, Value) {
        let (status, body) = ask(&mut self.connect(), line, headers, body);
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    fn follow(&self) -> Viewer {
        let mut socket = self.connect();
        socket.set_read_timeout(None).expect("a timeout");
        let head = "GET /v1/streams/chat/1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        socket.write_all(head.as_bytes()).expect("sent");
        let (tell, told) = sync_channel(100_000);
        std::thread::spawn(move || {
            let lines = BufReader::new(socket).lines();
            for line in lines.map_while(Result::ok) {
                let Some(data) = line.strip_prefix("data: ") else { continue };
                if tell.send(serde_json::from_str(data).expect("events are JSON")).is_err() {
                    return;
                }
            }
        });
        Viewer { events: told, seen: Vec::new(), degraded: 0 }
    }
}

/// A viewer, and what it saw of the stream itself.
struct Viewer {
    events: Receiver<Value>,
    seen: Vec<String>,
    degraded: usize,
}

impl Viewer {
    fn until(&mut self, what: &str) {
        while self.seen.last().is_none_or(|last| last != what) {
            let event = match self.events.recv_timeout(PATIENCE) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no {what} for {PATIENCE:?} after {:?}", self.tail())
                }
                Err(RecvTimeoutError::Disconnected) => panic!("it ended before {what}: {:?}", self.tail()),
            };
            match event["t"].as_str().expect("a type") {
                "part" => self.seen.push(format!("part {}.{} {}", event["turn"], event["n"], event["d"])),
                "message" => {
                    self.seen.push(format!("message {} {}", event["d"]["id"], event["d"]["content"]))
                }
                "status" => self.seen.push(format!("status {}", event["d"]["status"])),
                "reset" => self.seen.push(format!("reset {}", event["d"]["reason"])),
                "live" => self.seen.push("live".to_owned()),
                "degraded" => self.degraded += 1,
                _ => {}
            }
        }
    }

    fn tail(&self) -> &[String] {
        &self.seen[self.seen.len().saturating_sub(5)..]
    }
}

#[test]
fn fault_partition_of_two_replicas_leaves_both_with_the_same_sequence() {
    let store = match cluster::cluster() {
        Ok(cluster) => cluster.database_by_socket(),
        Err(why) => return not_run(&format!("a partition needs PostgreSQL: {why}")),
    };
    let cable = match Cable::lay() {
        Ok(cable) => cable,
        Err(why) => {
            return not_run(&format!("a partition needs network namespaces, root and iproute2: {why}"));
        }
    };
    let (a, b) = (Replica::start(&cable, 0, &store), Replica::start(&cable, 1, &store));
    assert_eq!(a.ask("PUT /v1/streams/chat/1", "", "").0, 201);
    let mut viewers = [a.follow(), b.follow()];
    viewers.iter_mut().for_each(|viewer| viewer.until("live"));
    let times = cycles(2, 50);
    let mut n = 0;
    let began = Instant::now();
    for time in 1..=times {
        let (status, claimed) = a.ask(&format!("POST {TURNS}"), "", "");
        assert_eq!(status, 201, "{claimed}");
        let turn = claimed["turn"].as_u64().expect("a turn");
        let lease = format!("Towpath-Lease: {}\r\n", claimed["lease"].as_str().expect("a lease"));
        let mut last = 0;
        let mut produce = |count: u64| {
            let lines: String = (0..count).map(|more| format!("{}\n", n + more)).collect();
            n += count;
            last += count;
            let (status, answer) = a.ask(&format!("POST {TURNS}/{turn}/parts"), &lease, &lines);
            assert_eq!((status, &answer["last"]), (200, &json!(last)), "{answer}");
            format!("part {turn}.{last} {}", n - 1)
        };
        let seen = produce(3);
        viewers.iter_mut().for_each(|viewer| viewer.until(&seen));
        cable.pull();
        let during = produce(5);
        viewers[0].until(&during);
        // Every other time for longer than a link may be silent, so that it is given up and dialed again.
        std::thread::sleep(Duration::from_millis(if time % 2 == 0 { 300 } else { 4_000 }));
        cable.put_back();
        viewers[1].until(&during);
        let after = produce(2);
        viewers.iter_mut().for_each(|viewer| viewer.until(&after));
        let said = json!({ "role": "assistant", "content": time }).to_string();
        assert_eq!(a.ask(&format!("POST {TURNS}/{turn}/commit"), &lease, &said).0, 201);
        assert_eq!(a.ask(&format!("POST {TURNS}/{turn}/finish"), &lease, r#"{"status":"done"}"#).0, 200);
        viewers.iter_mut().for_each(|viewer| viewer.until("status \"done\""));
    }
    assert_eq!(viewers[0].seen, viewers[1].seen, "the same, in the same order");
    let parts = viewers[1].seen.iter().filter(|event| event.starts_with("part ")).count() as u64;
    assert_eq!(parts, 10 * times, "each once");
    assert!(viewers[1].degraded >= 1, "a link that is silent for too long is said to be down");
    println!("{times} partitions healed in {:?}", began.elapsed());
}
