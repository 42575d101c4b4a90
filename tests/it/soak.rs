//! What must hold for hours holds for seconds in every run; `make soak MINUTES=600` asks for more.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};
use towpath::rt::Rt;

use crate::asking::{ask, connect, once, read_until};
use crate::demo;
use crate::effort::{lasting, soaking};
use crate::front_crowd::many_descriptors;
use crate::process::{Daemon, PATIENCE};

#[test]
fn soak_the_demonstration_engine_runs_again_and_again() {
    let until = lasting(Duration::from_secs(2));
    let mut rounds = 0_u64;
    while until.goes_on() {
        demo::scenario(&Rt::real()).expect("the scenario runs");
        rounds += 1;
    }
    println!("{rounds} rounds of the demonstration engine on the real runtime");
}

/// Microseconds since 1970, as messages carry them.
fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than that");
    u64::try_from(since.as_micros()).expect("for some ages yet")
}

/// One follower's end: an answer in chunks, and the number of the last message in it.
struct Follower {
    socket: TcpStream,
    /// What has come and was not read: the end of a line, or a chunk's head.
    rest: Vec<u8>,
    /// Bytes of the chunk under way that are still to come.
    chunk: usize,
    line: Vec<u8>,
    last: u64,
}

impl Follower {
    fn of(daemon: &Daemon) -> Follower {
        let mut socket = connect(daemon);
        socket.write_all(b"GET /v1/streams/a/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
        Follower { socket, rest: Vec::new(), chunk: 0, line: Vec::new(), last: 0 }
    }

    /// Reads what is there; each message is the next one, and `delay` hears how old it is.
    fn read(&mut self, buffer: &mut [u8], mut delay: impl FnMut(u64)) {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => panic!("a follower was dropped after message {}", self.last),
                Ok(count) => self.take(&buffer[..count], &mut delay),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a follower was dropped after message {}: {error}", self.last),
            }
        }
    }

    fn take(&mut self, bytes: &[u8], delay: &mut impl FnMut(u64)) {
        self.rest.extend_from_slice(bytes);
        let mut rest = std::mem::take(&mut self.rest);
        let mut at = 0;
        while at < rest.len() {
            if self.chunk > 0 {
                let some = self.chunk.min(rest.len() - at);
                self.chunk -= some;
                for line in rest[at..at + some].split_inclusive(|byte| *byte == b'\n') {
                    self.line.extend_from_slice(line);
                    if line.ends_with(b"\n") {
                        self.read_line(delay);
                        self.line.clear();
                    }
                }
                at += some;
                continue;
            }
            // The end of the chunk before, and the size of the next.
            let Some(end) = rest[at..].windows(2).skip(2).position(|two| two == b"\r\n") else { break };
            let head = std::str::from_utf8(&rest[at..at + 2 + end]).expect("digits").trim();
            self.chunk = usize::from_str_radix(head, 16).expect("a size");
            at += end + 4;
        }
        self.rest = rest.split_off(at.min(rest.len()));
    }

    fn read_line(&mut self, delay: &mut impl FnMut(u64)) {
        let Some(data) = self.line.strip_prefix(b"data: ") else { return };
        if !data.starts_with(b"{\"t\":\"message\"") {
            return;
        }
        let event: Value = serde_json::from_slice(data).expect("JSON");
        assert_eq!(event["d"]["id"], self.last + 1, "each message once, in order");
        self.last += 1;
        let said = event["d"]["content"].as_str().expect("text");
        let sent: u64 = said.split(' ').next().expect("a word").parse().expect("a number");
        delay(micros().saturating_sub(sent));
    }
}

/// Ten thousand links and fifty thousand deliveries a second with `make soak MINUTES=10`.
#[test]
fn soak_followers_at_a_steady_rate_miss_nothing_and_none_is_dropped() {
    many_descriptors();
    let (links, a_second) = if soaking() { (10_000_u64, 5) } else { (200, 5) };
    let daemon = Daemon::start(&[]);
    assert_eq!(once(&daemon, "PUT /v1/streams/a", "", "").0, 201);
    let mut followers: Vec<Follower> = (0..links).map(|_| Follower::of(&daemon)).collect();
    let mut poll = Poll::new().expect("a poll");
    for (at, follower) in followers.iter_mut().enumerate() {
        // Up to the end of the chunk it stands in, so that what follows begins with a chunk's end.
        read_until(&mut follower.socket, "event: live");
        read_until(&mut follower.socket, "\n\n");
        follower.socket.set_nonblocking(true).expect("a socket option");
        let fd = follower.socket.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(at), Interest::READABLE).expect("it is polled");
    }
    let mut writer = connect(&daemon);
    let (mut events, mut buffer) = (Events::with_capacity(1_024), vec![0; 64 * 1024]);
    let (until, begun) = (lasting(Duration::from_secs(3)), Instant::now());
    let pause = Duration::from_secs(1) / a_second;
    // Delays by the power of two of their microseconds.
    let (mut delays, mut sent) = ([0_u64; 40], 0_u64);
    let mut look = |poll: &mut Poll, followers: &mut [Follower], wait: Duration| {
        poll.poll(&mut events, Some(wait)).expect("it is polled");
        for event in &events {
            let delay = |micros: u64| delays[(64 - micros.leading_zeros()) as usize] += 1;
            followers[event.token().0].read(&mut buffer, delay);
        }
    };
    while until.goes_on() {
        let next = begun + pause * u32::try_from(sent).expect("for years yet");
        while let Some(left) = next.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            look(&mut poll, &mut followers, left);
        }
        let content = format!("{} {}", micros(), "x".repeat(230));
        let message = json!({ "role": "user", "content": content }).to_string();
        assert_eq!(ask(&mut writer, "POST /v1/streams/a/messages", "", &message).0, 201);
        sent += 1;
    }
    let deadline = Instant::now() + PATIENCE;
    while followers.iter().any(|follower| follower.last < sent) {
        assert!(Instant::now() < deadline, "not everybody has all {sent}");
        look(&mut poll, &mut followers, Duration::from_millis(100));
    }
    let all: u64 = delays.iter().sum();
    assert_eq!(all, links * sent);
    let mut below = 0;
    let p99 = delays.iter().position(|count| {
        below += count;
        below * 100 >= all * 99
    });
    println!(
        "{links} followers, {all} deliveries at {} a second: none dropped, p99 under {:?}",
        links * u64::from(a_second),
        Duration::from_micros(1 << p99.unwrap_or_default())
    );
}
