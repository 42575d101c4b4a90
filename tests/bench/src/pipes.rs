//! Pipes beside plain TCP on loopback: bulk, echo, and what a cut costs. Both ends are in this process, as
//! both ends of the floor are; `pipes/far` has a round trip of 120 ms between them. With `TOWPATH_BIN` naming the
//! program, tunnels as well: echo, and bulk beside socat and wstunnel where those are on the path (`WSTUNNEL` names
//! one that is not).

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use towpath::client::pipe::{Incoming, Pipe, PipeListener, State};
use towpath::codec::pipe::{encode_control, encode_greeting};
use towpath::engine::pipes::dial::Plain;
use towpath::engine::pipes::http::{HttpDialer, Transport};
use towpath::engine::pipes::{self, Accepted, Mode, Pipes, Plan, Server, Settings};
use towpath::front::{self, Router};
use towpath::rt::{Receiver, Rt};
use towpath::state::pipe::Control;
use towpath::state::pipe::hello::{Asking, Want};
use towpath::wire::{IoThreads, Limits, Listener, Running};

use crate::flaky::{Flaky, Weather};
use crate::pairs::{Bench, Case, Sample};
use crate::ports::free_port;

const BULK: usize = 512 << 20;
const PIECE: usize = 128 << 10;
const ECHOES: u64 = 20_000;
const ECHO: usize = 64;
const CROWD: usize = 500;
/// There and back on the way of `pipes/far`, and how much goes along it.
const FAR: Duration = Duration::from_millis(120);
const FAR_BULK: usize = 128 << 20;

/// Writes on a thread of its own, reads here.
fn carry(writer: impl Write + Send, reader: impl Read) -> u64 {
    carry_bytes(BULK, writer, reader)
}

fn carry_bytes(bulk: usize, mut writer: impl Write + Send, mut reader: impl Read) -> u64 {
    thread::scope(|scope| {
        scope.spawn(move || {
            let piece = vec![0xa5; PIECE];
            (0..bulk / PIECE).for_each(|_| writer.write_all(&piece).expect("it takes them"));
        });
        let mut buffer = vec![0; PIECE];
        let mut left = bulk;
        while left > 0 {
            let count = reader.read(&mut buffer).expect("they come");
            assert!(count > 0, "{left} bytes are missing");
            left -= count;
        }
    });
    bulk as u64
}

fn echo(mut asks: impl Read + Write, mut answers: impl Read + Write + Send) -> u64 {
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; ECHO];
            for _ in 0..ECHOES {
                answers.read_exact(&mut buffer).expect("it comes");
                answers.write_all(&buffer).expect("it is taken");
            }
        });
        let mut buffer = [7; ECHO];
        for _ in 0..ECHOES {
            asks.write_all(&buffer).expect("it is taken");
            asks.read_exact(&mut buffer).expect("it comes back");
        }
    });
    ECHOES
}

fn sockets() -> (TcpStream, TcpStream) {
    connected_pair(|_| Ok(()))
}

/// A system whose default is BBR paces plain TCP on one machine; pipes take the pace from their carriers there.
fn unpaced_sockets() -> (TcpStream, TcpStream) {
    connected_pair(|socket| socket.set_tcp_congestion(b"reno"))
}

fn connected_pair(prepare: fn(&Socket) -> io::Result<()>) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let one = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    // What is accepted inherits it; once connected it would be too late.
    prepare(&SockRef::from(&listener)).and_then(|()| prepare(&one)).expect("a socket option");
    one.connect(&address.into()).expect("it listens");
    let (one, other) = (TcpStream::from(one), listener.accept().expect("a connection").0);
    one.set_nodelay(true).and_then(|()| other.set_nodelay(true)).expect("a socket option");
    (one, other)
}

/// Keeps what it writes, as many of the last bytes as it has room for.
struct Ring<'a> {
    socket: &'a TcpStream,
    bytes: Vec<u8>,
    at: usize,
}

impl Write for Ring<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.bytes.len() - self.at);
        let kept = &mut self.bytes[self.at..][..count];
        kept.copy_from_slice(&bytes[..count]);
        self.socket.write_all(kept)?;
        self.at = (self.at + count) % self.bytes.len();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Pipes behind the front door, as frames in WebSocket messages.
struct WebSockets {
    accepted: Receiver<Accepted>,
    running: Running,
    _pipes: Pipes,
}

impl WebSockets {
    fn start(rt: &Rt) -> WebSockets {
        let (accept, accepted) = rt.channel("accept", 16);
        let server = Server { mode: Mode::Listen(accept), ..Server::none() };
        let pipes = Pipes::start(rt, Settings::default(), server).expect("threads");
        let mut router = Router::new();
        front::pipes::routes(&mut router, rt, &pipes.handle());
        let io = IoThreads::new(rt, 1, None).expect("threads");
        let listener = Listener::bind("127.0.0.1:0").expect("a port");
        let running = io.start(Limits::default(), vec![listener], Arc::new(router)).expect("threads");
        WebSockets { accepted, running, _pipes: pipes }
    }

    fn open(&self, rt: &Rt, pipes: &Pipes) -> (Pipe, Pipe) {
        let url = format!("http://{}", self.running.addresses()[0]);
        let dialer = HttpDialer::new(&url, None, Transport::WebSocket, None, None).expect("a dialer");
        let ours = Pipe::open(rt, &pipes.handle(), Plan::new(Arc::new(dialer), "bench")).expect("it opens");
        let theirs = Incoming::from(self.accepted.recv().expect("it was opened")).pipe;
        (ours, theirs)
    }
}

/// Cuts the carriers of all pipes that lead there, and waits until they are gone.
fn cut_all(listener: &PipeListener, target: &'static str) -> u64 {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let handle = listener.pipes();
    handle.list(move |infos| {
        let ids = infos.into_iter().filter(|info| info.target == target && info.attached).map(|info| info.id);
        tell.send(ids.collect::<Vec<_>>()).expect("it is waited for");
    });
    let ids = told.recv().expect("it answers");
    let (tell, told) = std::sync::mpsc::sync_channel(ids.len());
    for id in &ids {
        let tell = tell.clone();
        handle.cut(*id, move |found| tell.send(found).expect("it is waited for"));
    }
    ids.iter().for_each(|_| assert!(told.recv().expect("it answers"), "it was there"));
    ids.len() as u64
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("linux");
    text.split_whitespace().nth(1).expect("a field").parse::<u64>().expect("a number") * 4_096
}

pub(crate) fn run(bench: &mut Bench) {
    if !bench.wants("pipes") {
        return;
    }
    let rt = Rt::real();
    // One principal opens the whole crowd, and loses all of it at once.
    let most = 4 * CROWD;
    let limits = pipes::Limits {
        pipes: most,
        detached: most,
        new_per_second: most as u32,
        ..pipes::Limits::default()
    };
    let settings = Settings { limits, ..Settings::default() };
    let listener = PipeListener::bind_with(&rt, "127.0.0.1:0", settings, None).expect("a port");
    let url = listener.url().to_owned();
    // First: what a pipe holds is seen only before large pieces have left their memory behind.
    weigh_detached(bench, &listener);
    crowd(bench, &rt, &listener);
    let pair = || {
        let ours = Pipe::connect(&rt, &url, "bench").expect("it listens");
        (ours, listener.accept().expect("it was opened").pipe)
    };
    let (ours, theirs) = pair();
    let (one, other) = sockets();

    let case = Case { name: "pipes/bulk", floor: "plain TCP", unit: "bytes", goal: 0.75 };
    bench.pair(&case, || Sample::take(|| carry(&one, &other)), || Sample::take(|| carry(&ours, &theirs)));

    let (from, to) = unpaced_sockets();
    let case =
        Case { name: "pipes/bulk-beside-unpaced", floor: "plain TCP, never BBR", unit: "bytes", goal: 0.7 };
    bench.pair(&case, || Sample::take(|| carry(&from, &to)), || Sample::take(|| carry(&ours, &theirs)));

    // What keeping a window of bytes costs by itself is 0.8 of plain TCP near by, of which the pipe has 0.75.
    let case = Case {
        name: "pipes/bulk-beside-a-ring",
        floor: "a copy into a ring of 8 MiB, plain TCP from there",
        unit: "bytes",
        goal: 0.94,
    };
    let mut ring = Ring { socket: &from, bytes: vec![0; Settings::default().window as usize], at: 0 };
    bench.pair(&case, || Sample::take(|| carry(&mut ring, &to)), || Sample::take(|| carry(&ours, &theirs)));

    if bench.wants("pipes/bulk-websocket") {
        let server = WebSockets::start(&rt);
        let dialing = Pipes::start(&rt, Settings::default(), Server::none()).expect("threads");
        let (near, far) = server.open(&rt, &dialing);
        let case = Case { name: "pipes/bulk-websocket-down", floor: "plain TCP", unit: "bytes", goal: 0.6 };
        bench.pair(&case, || Sample::take(|| carry(&other, &one)), || Sample::take(|| carry(&far, &near)));
        let case =
            Case { name: "pipes/bulk-websocket-up-masked", floor: "plain TCP", unit: "bytes", goal: 0.4 };
        bench.pair(&case, || Sample::take(|| carry(&one, &other)), || Sample::take(|| carry(&near, &far)));
    }

    // 6 µs there and back is what plain TCP takes, 25 what a pipe may.
    let case = Case { name: "pipes/echo", floor: "plain TCP", unit: "echoes", goal: 0.24 };
    bench.pair(&case, || Sample::take(|| echo(&one, &other)), || Sample::take(|| echo(&ours, &theirs)));

    let case = Case { name: "pipes/flows-again-after-a-cut", floor: "200 ms each", unit: "cuts", goal: 1.0 };
    bench.pair(
        &case,
        || Sample::recorded(5.0),
        || {
            Sample::take(|| {
                for round in 0..20_u8 {
                    assert_eq!(cut_all(&listener, "bench"), 1);
                    (&ours).write_all(&[round]).expect("it is taken");
                    let mut got = [0];
                    (&theirs).read_exact(&mut got).expect("it comes");
                    assert_eq!(got, [round]);
                }
                20
            })
        },
    );
    drop((ours, theirs));
    far(bench, &rt, &listener);
    if bench.wants("pipes/forward")
        || bench.wants("pipes/forward-wstunnel")
        || bench.wants("pipes/tunnel-echo")
    {
        tunnels(bench);
    }
}

/// A way on which bytes are under way for long: what the window allows on it is what has to go along it.
fn far(bench: &mut Bench, rt: &Rt, listener: &PipeListener) {
    let case = Case {
        name: "pipes/far",
        floor: "a window of 8 MiB each round trip of 120 ms",
        unit: "bytes",
        goal: 0.85,
    };
    if !bench.wants(case.name) {
        return;
    }
    let weather = Weather { delay: FAR / 2, ..Weather::default() };
    let to = listener.address().expect("over TCP").to_string();
    let way = Flaky::start("127.0.0.1:0", &to, 1, weather).expect("a port");
    let near = Pipe::connect(rt, &format!("tcp://{}", way.address()), "far").expect("it listens");
    let end = listener.accept().expect("it was opened").pipe;
    let window = Settings::default().window as f64;
    bench.pair(
        &case,
        || Sample::recorded(window / FAR.as_secs_f64()),
        || Sample::take(|| carry_bytes(FAR_BULK, &near, &end)),
    );
}

const MEBIBYTE: f64 = (1 << 20) as f64;

/// What a pipe costs that nothing bears and nothing waits in: its clients come by hand, and leave.
fn weigh_detached(bench: &mut Bench, listener: &PipeListener) {
    let case = Case {
        name: "pipes/idle-detached",
        floor: "the goal: 8 KiB a pipe without a carrier",
        unit: "pipes in a MiB",
        goal: 1.0,
    };
    if !bench.wants(case.name) {
        return;
    }
    let at = listener.address().expect("over TCP");
    let before = resident();
    let held: Vec<Pipe> = (0..CROWD)
        .map(|_| {
            let mut stream = TcpStream::connect(at).expect("it listens");
            let want = Want::New { target: "detached".into(), limit: 1 << 20 };
            let (_, hello) = Asking::begin([7; 16], 1, &want, None);
            let mut bytes = Vec::new();
            encode_greeting(&hello, &mut bytes);
            stream.write_all(&bytes).expect("it is taken");
            // The head of the welcome: the pipe is there. Then it is left alone.
            stream.read_exact(&mut [0; 4]).expect("a welcome");
            // One frame, so that the server knows that its client had it.
            let mut bytes = Vec::new();
            encode_control(&Control::Ping { token: 1 }, &mut bytes);
            stream.write_all(&bytes).expect("it is taken");
            listener.accept().expect("it was opened").pipe
        })
        .collect();
    let are_away = || {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        listener.pipes().list(move |infos| {
            tell.send(infos.iter().filter(|info| info.detached_for.is_some()).count())
                .expect("it is waited for")
        });
        told.recv().expect("it answers") >= CROWD
    };
    while !are_away() {
        thread::sleep(Duration::from_millis(5));
    }
    let each = resident().saturating_sub(before) as f64 / CROWD as f64;
    let goal = MEBIBYTE / 8_192.0;
    bench.pair(&case, || Sample::recorded(goal), || Sample::recorded(MEBIBYTE / each));
    drop(held);
}

/// Many pipes at once: how fast all of them are back after a cut of all, what each holds, and what it costs another
/// that they are there.
fn crowd(bench: &mut Bench, rt: &Rt, listener: &PipeListener) {
    let case = Case { name: "pipes/500-back-after-a-cut", floor: "2 s for all", unit: "pipes", goal: 1.0 };
    let weight = Case {
        name: "pipes/idle-attached",
        floor: "the goal: 64 KiB a pipe, here for both ends and their handles",
        unit: "pipes in a MiB",
        goal: 1.0,
    };
    let beside = Case {
        name: "pipes/echo-beside-500-idle",
        floor: "a pipe's echo without them",
        unit: "echoes",
        goal: 0.9,
    };
    if ![&case, &weight, &beside].iter().any(|case| bench.wants(case.name)) {
        return;
    }
    let dialing = Pipes::start(rt, Settings::default(), Server::none()).expect("threads");
    let address = listener.address().expect("over TCP");
    let dialer = Arc::new(Plain::Tcp(address.ip().to_string(), address.port()));
    let before = resident();
    let both: Vec<(Pipe, Pipe)> = (0..CROWD)
        .map(|_| {
            let ours =
                Pipe::open(rt, &dialing.handle(), Plan::new(dialer.clone(), "crowd")).expect("it opens");
            (ours, listener.accept().expect("it was opened").pipe)
        })
        .collect();
    let ask = |round: u8| {
        for (ours, theirs) in &both {
            (&*ours).write_all(&[round]).expect("it is taken");
            (&*theirs).read_exact(&mut [0]).expect("it comes");
        }
    };
    ask(0);
    let each = resident().saturating_sub(before) as f64 / CROWD as f64;
    bench.pair(&weight, || Sample::recorded(MEBIBYTE / 65_536.0), || Sample::recorded(MEBIBYTE / each));
    if bench.wants(beside.name) {
        let apart = PipeListener::bind(rt, "127.0.0.1:0").expect("a port");
        let open = |listener: &PipeListener| {
            (
                Pipe::connect(rt, listener.url(), "echo").expect("it listens"),
                listener.accept().expect("it was opened").pipe,
            )
        };
        let ((alone, answers), (one, other)) = (open(&apart), open(listener));
        bench.pair(
            &beside,
            || Sample::take(|| echo(&alone, &answers)),
            || Sample::take(|| echo(&one, &other)),
        );
    }
    bench.pair(
        &case,
        || Sample::recorded(CROWD as f64 / 2.0),
        || {
            Sample::take(|| {
                assert_eq!(cut_all(listener, "crowd"), CROWD as u64);
                ask(1);
                assert!(both.iter().all(|(ours, _)| ours.state() == State::Connected));
                CROWD as u64
            })
        },
    );
}

struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself; either way it is gone then.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A target that swallows, and says one byte when it has had enough.
fn sink() -> SocketAddr {
    serve_each(|mut stream| {
        let mut buffer = vec![0; PIECE];
        let mut left = BULK;
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            left -= count;
            if left == 0 {
                left = BULK;
                stream.write_all(b".").expect("it is taken");
            }
        }
    })
}

/// A target that sends everything back.
fn parrot() -> SocketAddr {
    serve_each(|mut stream| {
        stream.set_nodelay(true).expect("a socket option");
        let mut buffer = [0; 4_096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..count]).expect("it is taken");
        }
    })
}

fn serve_each(serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn through(mut stream: &TcpStream) -> u64 {
    let piece = vec![0xa5; PIECE];
    (0..BULK / PIECE).for_each(|_| stream.write_all(&piece).expect("it takes them"));
    stream.read_exact(&mut [0]).expect("it has had enough");
    BULK as u64
}

/// Says something and hears it again, many times; the rate is that of an echo that takes the median.
fn median_echo(mut stream: &TcpStream) -> Sample {
    let mut buffer = [7; ECHO];
    let mut took: Vec<Duration> = (0..ECHOES)
        .map(|_| {
            let begun = Instant::now();
            stream.write_all(&buffer).expect("it is taken");
            stream.read_exact(&mut buffer).expect("it comes back");
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    Sample::recorded(1.0 / took[took.len() / 2].as_secs_f64())
}

fn connected(address: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_nodelay(true).expect("a socket option");
                return stream;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn said(child: &mut Child, word: usize) -> String {
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
    line.split_whitespace().nth(word).expect("an address").to_owned()
}

fn free_address() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// A program of that name on the path, or where the variable says.
fn installed(name: &str, variable: &str) -> Option<OsString> {
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
        found.map(PathBuf::into_os_string)
    };
    std::env::var_os(variable).or_else(on_path)
}

/// One socat between a port and `target`, as a child of `running`.
fn socat(target: SocketAddr, running: &mut Children) -> Option<TcpStream> {
    let port = free_address();
    let socat = Command::new(installed("socat", "SOCAT")?)
        .args(["-b", "131072", &format!("TCP-LISTEN:{},bind=127.0.0.1,fork,reuseaddr,nodelay", port.port())])
        .arg(format!("TCP:{target},nodelay"))
        .spawn();
    running.0.push(socat.ok()?);
    Some(connected(port))
}

/// A wstunnel client and server between a port and `target`, over `ws://`.
fn wstunnel(target: SocketAddr, running: &mut Children) -> Option<TcpStream> {
    let program = installed("wstunnel", "WSTUNNEL")?;
    let (door, port) = (format!("ws://{}", free_address()), free_address());
    let mut run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).env("NO_COLOR", "1").stdout(Stdio::null()).stderr(Stdio::null());
        running.0.push(command.spawn().ok()?);
        Some(())
    };
    run(&["server", &door])?;
    connected(door.trim_start_matches("ws://").parse().expect("an address"));
    run(&["client", "-L", &format!("tcp://{port}:{target}"), &door])?;
    Some(connected(port))
}

/// `serve` and `forward` between a port and `target`.
fn tunnel(program: &OsStr, target: SocketAddr, data: &std::path::Path, running: &mut Children) -> TcpStream {
    let mut serve = Command::new(program);
    serve.args(["serve", "--listen", "127.0.0.1:0", "--allow", &target.to_string(), "--data"]).arg(data);
    let mut serve = serve.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let url = said(&mut serve, 2);
    running.0.push(serve);
    let mut forward = Command::new(program);
    forward.args(["forward", "-L", &format!("0:{target}"), &url]);
    let mut forward = forward.stdout(Stdio::piped()).spawn().expect("it starts");
    let address = said(&mut forward, 1).parse().expect("an address");
    running.0.push(forward);
    connected(address)
}

/// Two processes of ours between a writer and a sink, or one that asks and one that answers.
fn tunnels(bench: &mut Bench) {
    let Some(program) = std::env::var_os("TOWPATH_BIN") else {
        return println!("pipes/forward, pipes/tunnel-echo: not run, TOWPATH_BIN names no program");
    };
    let data = tempfile::tempdir().expect("a folder");
    let bulk = Case { name: "pipes/forward", floor: "socat -b 131072", unit: "bytes", goal: 0.5 };
    let beside = Case { name: "pipes/forward-wstunnel", floor: "wstunnel, ws://", unit: "bytes", goal: 1.0 };
    if bench.wants(bulk.name) || bench.wants(beside.name) {
        let (sink, mut running) = (sink(), Children(Vec::new()));
        let by_us = tunnel(&program, sink, &data.path().join("bulk"), &mut running);
        let others: [(_, fn(_, &mut _) -> _); 2] = [(&bulk, socat), (&beside, wstunnel)];
        for (case, other) in others {
            if !bench.wants(case.name) {
                continue;
            }
            match other(sink, &mut running) {
                Some(by) => {
                    bench.pair(case, || Sample::take(|| through(&by)), || Sample::take(|| through(&by_us)));
                }
                None => println!("{}: not run, {} is not installed", case.name, case.floor),
            }
        }
    }
    // 6 µs there and back is what plain TCP takes, 40 what two processes in between may; p50 of each.
    let echo = Case { name: "pipes/tunnel-echo", floor: "plain TCP, p50", unit: "echoes", goal: 0.15 };
    if bench.wants(echo.name) {
        let (parrot, mut running) = (parrot(), Children(Vec::new()));
        let by_us = tunnel(&program, parrot, &data.path().join("echo"), &mut running);
        let others: [(_, fn(_, &mut _) -> _); 2] = [("one socat", socat), ("two of wstunnel", wstunnel)];
        for (name, other) in others {
            if let Some(by) = other(parrot, &mut running) {
                println!("pipes/tunnel-echo: {:.1} µs through {name}", median_echo(&by).micros());
            }
        }
        let plain = connected(parrot);
        bench.pair(&echo, || median_echo(&plain), || median_echo(&by_us));
        println!("pipes/tunnel-echo: {:.1} µs through two processes of ours", median_echo(&by_us).micros());
    }
}
