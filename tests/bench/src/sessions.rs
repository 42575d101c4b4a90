//! River sessions, ours to ours over a WebSocket on loopback, both ends in this process, beside what was recorded
//! of the reference with both of its ends in one Node process on the same kind of machine. One I/O thread carries
//! both ends, as one thread does there; with 32 calls in flight each end has one of its own, as two programs have.

use std::sync::Arc;

use towpath::client::session::{Client, Options, WebSocket};
use towpath::codec::Codec;
use towpath::codec::typed::Blob;
use towpath::engine::sessions::Settings;
use towpath::front::{Router, river};
use towpath::metrics::Metrics;
use towpath::rt::Rt;
use towpath::service::server::Server;
use towpath::service::{Procedure, Service, Services, Writable};
use towpath::wire::{IoThreads, Limits, Listener, Running, Target};

use crate::pairs::{Bench, Case, Sample};

const CALLS: u64 = 20_000;
const CALLERS: u64 = 32;
const BIG: usize = 64 << 10;
const TICKS: u64 = 400_000;

struct Stage {
    client: Client,
    // Dropped after the client: links first, then the sessions behind them.
    _calling: Option<Running>,
    _running: Running,
    _server: Server,
}

/// A server behind a door on this machine.
pub(crate) fn serve(rt: &Rt, metrics: &mut Metrics) -> (Server, Running) {
    let ticks = Procedure::subscription(|_, upto: u64, out: Writable<u64>| {
        (0..upto).try_for_each(|n| out.write(&n)).map_err(Into::into)
    });
    let bench = Service::new("bench")
        .with("add", Procedure::rpc(|_, (a, b): (u64, u64)| Ok(a + b)).inline())
        .with("add-apart", Procedure::rpc(|_, (a, b): (u64, u64)| Ok(a + b)))
        .with("echo", Procedure::rpc(|_, blob: Blob| Ok(blob)).inline())
        .with("ticks", ticks);
    let settings = Settings { codec: Codec::Binary, ..Settings::default() };
    let server = Server::builder(rt, Services::new().with(bench)).settings(settings).metrics(metrics);
    let server = server.start().expect("threads");
    let mut router = Router::new();
    router.add(river::route("/", server.doorbell().clone()));
    let io = IoThreads::new(rt, 1, None).expect("threads");
    let listener = Listener::bind("127.0.0.1:0").expect("a port");
    let running = io.start(Limits::default(), vec![listener], Arc::new(router)).expect("threads");
    (server, running)
}

/// Both ends; `apart` if the client's has an I/O thread of its own.
fn stage(rt: &Rt, apart: bool) -> Stage {
    let (server, running) = serve(rt, &mut Metrics::new());
    let target = Target::parse(&format!("ws://{}/", running.addresses()[0])).expect("a target");
    let calling = apart.then(|| {
        let io = IoThreads::new(rt, 1, None).expect("threads");
        io.start(Limits::default(), Vec::new(), Arc::new(Router::new())).expect("threads")
    });
    let wire = calling.as_ref().unwrap_or(&running).wire();
    let options = Options { codec: Codec::Binary, ..Options::default() };
    let dialer = Arc::new(WebSocket::new(wire, target));
    let client = Client::start(rt, "bench", "SERVER", dialer, options).expect("threads");
    Stage { client, _calling: calling, _running: running, _server: server }
}

fn add(client: &Client, procedure: &str, n: u64) {
    let sum: u64 = client.rpc("bench", procedure, &(n, 1u64)).expect("an answer");
    assert_eq!(sum, n + 1);
}

pub(crate) fn run(bench: &mut Bench) {
    let names = ["rpc-sequential", "rpc-apart", "rpc-32-in-flight", "rpc-64KiB", "subscription"];
    if !names.iter().any(|name| bench.wants(&format!("sessions/{name}"))) {
        return;
    }
    let rt = Rt::real();
    let (stage, apart) = (stage(&rt, false), stage(&rt, true));
    let floor = "@replit/river 0.220, recorded";

    let case = Case { name: "sessions/rpc-sequential", floor, unit: "calls", goal: 2.5 };
    bench.pair(
        &case,
        || Sample::recorded(10_500.0),
        || {
            Sample::take(|| {
                (0..CALLS).for_each(|n| add(&stage.client, "add", n));
                CALLS
            })
        },
    );

    // A handler that may block is run by a thread of its own: two threads more are crossed.
    let case = Case { name: "sessions/rpc-apart", floor, unit: "calls", goal: 1.5 };
    bench.pair(
        &case,
        || Sample::recorded(10_500.0),
        || {
            Sample::take(|| {
                (0..CALLS).for_each(|n| add(&stage.client, "add-apart", n));
                CALLS
            })
        },
    );

    let case = Case { name: "sessions/rpc-32-in-flight", floor, unit: "calls", goal: 10.0 };
    bench.pair(
        &case,
        || Sample::recorded(10_000.0),
        || {
            Sample::take(|| {
                let call = |caller| {
                    let client = apart.client.clone();
                    rt.spawn(format!("caller-{caller}"), move || {
                        (0..CALLS / 4).for_each(|n| add(&client, "add", n))
                    })
                };
                let callers: Vec<_> = (0..CALLERS).map(|caller| call(caller).expect("a thread")).collect();
                callers.into_iter().for_each(|caller| caller.join().expect("it called"));
                CALLERS * (CALLS / 4)
            })
        },
    );

    // 100 MiB/s each way are 1,600 calls of 64 KiB a second.
    let case = Case { name: "sessions/rpc-64KiB", floor, unit: "calls", goal: 4.0 };
    let blob = Blob(vec![0xa5; BIG]);
    bench.pair(
        &case,
        || Sample::recorded(1_600.0),
        || {
            Sample::take(|| {
                for _ in 0..2_000 {
                    let back: Blob = stage.client.rpc("bench", "echo", &blob).expect("an answer");
                    assert_eq!(back.0.len(), BIG);
                }
                2_000
            })
        },
    );

    let case = Case { name: "sessions/subscription", floor, unit: "answers", goal: 143.0 };
    bench.pair(
        &case,
        || Sample::recorded(1_400.0),
        || {
            Sample::take(|| {
                let answers = stage.client.subscribe::<_, u64>("bench", "ticks", &TICKS).expect("called");
                assert_eq!(answers.inspect(|n| assert!(n.is_ok(), "{n:?}")).count() as u64, TICKS);
                TICKS
            })
        },
    );
}
