//! A daemon that has run out of descriptors.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::process::{Daemon, PATIENCE};

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Clock ticks of processor time a process has used, of which there are a hundred in a second.
pub(crate) fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the daemon runs");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let number = |at: usize| fields[at].parse::<u64>().expect("a number");
    number(11) + number(12)
}

fn connect(daemon: &Daemon) -> TcpStream {
    let socket = TcpStream::connect(daemon.address()).expect("the kernel takes connections for it");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

#[test]
fn without_descriptors_it_neither_dies_nor_spins_and_is_back_when_there_are_some() {
    let daemon = Daemon::start(&[]);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).expect("a pid")).expect("not zero");
    let few = Rlimit { current: Some(64), maximum: Some(64) };
    prlimit(Some(pid), Resource::Nofile, few).expect("a process may lower the limit of its child");

    let mut sockets: Vec<TcpStream> = (0..150).map(|_| connect(&daemon)).collect();
    // Those that have gone away meanwhile were told so with a 503.
    sockets.iter_mut().for_each(|socket| _ = socket.write_all(HEALTH));
    daemon.wait_for_log("accept_paused");

    // How busy it is while it can accept nothing: this is what is measured, not waited for.
    let (before, begun) = (ticks(daemon.pid()), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let busy = (ticks(daemon.pid()) - before) as f64 / 100.0 / begun.elapsed().as_secs_f64();
    assert!(busy < 0.05, "{:.1} % of a processor", busy * 100.0);

    drop(sockets);
    let begun = Instant::now();
    loop {
        let mut answer = [0; 12];
        let mut socket = connect(&daemon);
        let asked = socket.write_all(HEALTH).and_then(|()| socket.read_exact(&mut answer));
        // Turned away while others are still leaving.
        if asked.is_ok() && &answer == b"HTTP/1.1 200" {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it never came back");
    }
}
