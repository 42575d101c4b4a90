//! A small session whose first connection is cut after every single byte, in either direction, on real sockets and
//! by the drivers that programs use: the bytes arrive whole, and once.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use towpath::client::pipe::{Pipe, PipeListener};
use towpath::engine::pipes::dial::{Dialer, Plain};
use towpath::engine::pipes::http::{HttpDialer, Transport};
use towpath::engine::pipes::{Limits, Pipes, Plan, Server, Settings};
use towpath::rt::Rt;
use towpath::state::pipe::Ending;

use crate::process::{Daemon, PATIENCE};

/// How many sessions go on at once.
const AT_ONCE: usize = 4;
/// More than there will ever be words to tell of.
const WORDS: usize = 10_000;

/// A proxy that passes on so many bytes of its first connection in one direction, and cuts it then. Whatever
/// connects later passes whole.
struct Cutter {
    address: SocketAddr,
    inner: Arc<Inner>,
    acceptor: Option<thread::JoinHandle<()>>,
}

struct Inner {
    to: SocketAddr,
    /// What the first connection may pass on, up and down.
    may: [usize; 2],
    /// What it did.
    passed: [AtomicUsize; 2],
    was_cut: AtomicBool,
    stopped: AtomicBool,
}

impl Cutter {
    fn start(to: SocketAddr, may: [usize; 2]) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (was_cut, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
        let inner = Arc::new(Inner { to, may, passed: Default::default(), was_cut, stopped });
        let accepting = inner.clone();
        let acceptor = thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let client = client.expect("a connection");
                let server = TcpStream::connect(accepting.to).expect("it listens");
                let streams = Arc::new([client, server]);
                for way in [0, 1] {
                    let (inner, streams) = (accepting.clone(), streams.clone());
                    thread::spawn(move || inner.pass(way, &streams, number == 0));
                }
            }
        });
        Cutter { address, inner, acceptor: Some(acceptor) }
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.inner.stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        self.acceptor.take().map(thread::JoinHandle::join);
    }
}

impl Inner {
    fn pass(&self, way: usize, streams: &[TcpStream; 2], is_first: bool) {
        let (mut from, mut to) = (&streams[way], &streams[1 - way]);
        for stream in streams {
            stream.set_nodelay(true).expect("a socket option");
        }
        let may = if is_first { self.may[way] } else { usize::MAX };
        let (mut passed, mut buffer) = (0, [0; 4_096]);
        while passed < may {
            let most = buffer.len().min(may - passed);
            let count = from.read(&mut buffer[..most]).unwrap_or(0);
            if count == 0 || to.write_all(&buffer[..count]).is_err() {
                // A half-close passes through; what is broken, breaks.
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            passed += count;
            if is_first {
                self.passed[way].store(passed, Ordering::SeqCst);
            }
        }
        self.was_cut.store(true, Ordering::SeqCst);
        for stream in streams {
            // Whoever has left already does not mind.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The far end of a session: hears everything, tells of it, and says it backwards.
fn answer(mut stream: impl Read + Write, heard: &SyncSender<Vec<u8>>) {
    let mut got = Vec::new();
    // A pipe whose client never learned of it ends with an error, and has brought nothing.
    let well = stream.read_to_end(&mut got).is_ok();
    if !got.is_empty() {
        heard.send(got.clone()).expect("there is room for all");
    }
    if well {
        got.reverse();
        // Likewise.
        let _ = stream.write_all(&got);
    }
}

/// What is dialed through a proxy.
type Dial<'a> = &'a (dyn Fn(SocketAddr) -> Arc<dyn Dialer> + Sync);

/// Somewhere sessions lead to.
struct Far<'a> {
    name: &'static str,
    /// Where its connections go.
    to: SocketAddr,
    target: &'a str,
    dial: Dial<'a>,
}

impl Far<'_> {
    /// One session; what its first connection passed on each way, and whether it was cut.
    fn session(&self, rt: &Rt, pipes: &Pipes, text: &[u8], may: [usize; 2]) -> ([usize; 2], bool) {
        let cutter = Cutter::start(self.to, may);
        let plan = Plan { patience: Some(PATIENCE), ..Plan::new((self.dial)(cutter.address), self.target) };
        let mut pipe = Pipe::open(rt, &pipes.handle(), plan).expect("it opens");
        pipe.set_read_timeout(Some(PATIENCE));
        let what = || String::from_utf8_lossy(text);
        pipe.write_all(text).expect("it is open");
        pipe.shutdown().expect("it is open");
        let mut got = Vec::new();
        pipe.read_to_end(&mut got).unwrap_or_else(|error| panic!("{}: {error}, after {got:?}", what()));
        got.reverse();
        assert!(got == text, "{}: {got:?}", what());
        let end = pipe.wait_over(Some(PATIENCE)).unwrap_or_else(|| panic!("{}: no end", what()));
        assert_eq!(end.code, Ending::Eof, "{}: {end}", what());
        let passed = [0, 1].map(|way| cutter.inner.passed[way].load(Ordering::SeqCst));
        (passed, cutter.inner.was_cut.load(Ordering::SeqCst))
    }

    /// A session for every byte of either direction. The texts that were sent.
    fn check(&self, rt: &Rt) -> Vec<Vec<u8>> {
        let begun = std::time::Instant::now();
        let pipes = Pipes::start(rt, Settings::default(), Server::none()).expect("threads");
        let text = |what: &str, at: usize| format!("{} {what} {at:05}", self.name).into_bytes();
        let whole = text("all", 0);
        let (long, was_cut) = self.session(rt, &pipes, &whole, [usize::MAX; 2]);
        assert!(!was_cut && long[0] > 100 && long[1] > 100, "{long:?}");
        let places: Vec<(usize, usize)> =
            [0, 1].into_iter().flat_map(|way| (0..=long[way]).map(move |at| (way, at))).collect();
        let (next, cuts) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let one = |way: usize, at: usize| text(["up", "dn"][way], at);
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let Some((way, at)) = places.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let mut may = [usize::MAX; 2];
                        may[*way] = *at;
                        let (_, was_cut) = self.session(rt, &pipes, &one(*way, *at), may);
                        cuts.fetch_add(usize::from(was_cut), Ordering::SeqCst);
                    }
                });
            }
        });
        let cuts = cuts.into_inner();
        println!("{}: {long:?} bytes, {cuts} of {} cut, {:?}", self.name, places.len(), begun.elapsed());
        // How often something is acknowledged by itself depends on time, and so does where the last bytes are.
        assert!(cuts >= places.len() * 3 / 4, "{}: {cuts} of {}", self.name, places.len());
        places.iter().map(|(way, at)| one(*way, *at)).chain([whole]).collect()
    }
}

/// Each text was heard once, and nothing else.
fn check_heard(sent: &[Vec<u8>], heard: &Receiver<Vec<u8>>) {
    let mut times: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for text in heard {
        *times.entry(text).or_default() += 1;
    }
    for (text, count) in &times {
        assert!(sent.contains(text) && *count == 1, "{count} times: {}", String::from_utf8_lossy(text));
    }
    assert_eq!(times.len(), sent.len());
}

#[test]
fn a_plain_pipe_may_be_cut_after_any_byte() {
    let rt = Rt::real();
    let limits = Limits { new_per_second: 100_000, pipes: 100_000, detached: 100_000 };
    let settings = Settings { limits, ..Settings::default() };
    let listener = PipeListener::bind_with(&rt, "127.0.0.1:0", settings, None).expect("a free port");
    let address = listener.address().expect("over TCP");
    let (tell, heard) = sync_channel(WORDS);
    let accepting = thread::spawn(move || {
        while let Ok(incoming) = listener.accept() {
            if incoming.target == "stop" {
                return;
            }
            let tell = tell.clone();
            thread::spawn(move || answer(incoming.pipe, &tell));
        }
    });
    let plain = |to: SocketAddr| Arc::new(Plain::Tcp(to.ip().to_string(), to.port())) as Arc<dyn Dialer>;
    let far = Far { name: "plain", to: address, target: "answer", dial: &plain };
    let sent = far.check(&rt);
    // It is over as soon as it is there.
    drop(Pipe::connect(&rt, &format!("tcp://{address}"), "stop"));
    accepting.join().expect("no panic");
    check_heard(&sent, &heard);
}

#[test]
fn a_pipe_to_a_daemon_may_be_cut_after_any_byte() {
    let rt = Rt::real();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = listener.local_addr().expect("bound");
    let (tell, heard) = sync_channel(WORDS);
    let stopped = Arc::new(AtomicBool::new(false));
    let accepting = thread::spawn({
        let stopped = stopped.clone();
        move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, tell) = (stream.expect("a connection"), tell.clone());
                thread::spawn(move || answer(stream, &tell));
            }
        }
    });
    let target_text = target.to_string();
    let daemon = Daemon::start(&["--allow", &target_text]);
    let to = daemon.address().parse().expect("an address");
    let mut sent = Vec::new();
    let ways = [("upgrade", Transport::Upgrade), ("websocket", Transport::WebSocket)];
    for (name, transport) in ways {
        let dial = |to: SocketAddr| {
            let dialer = HttpDialer::new(&format!("http://{to}"), None, transport, None, None);
            Arc::new(dialer.expect("a URL")) as Arc<dyn Dialer>
        };
        let far = Far { name, to, target: &target_text, dial: &dial };
        sent.extend(far.check(&rt));
    }
    drop(daemon);
    stopped.store(true, Ordering::SeqCst);
    drop(TcpStream::connect(target));
    accepting.join().expect("no panic");
    check_heard(&sent, &heard);
}
