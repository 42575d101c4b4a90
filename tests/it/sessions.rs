//! River sessions: the recorded exchanges of the reference played against our server and our client, and what
//! the reference's own tests check, on real threads over links in memory that can be cut.

mod calls;
mod daemon;
mod disconnects;
mod interop;
mod links;
mod replay;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use towpath::client::session::{Client, DialWith, Options};
use towpath::engine::sessions::Settings;
use towpath::rt::{Lock, Moment, Receiver, Rt};
use towpath::service::server::{Builder, Memory, Server};
use towpath::service::{Service, Services, reference};
use towpath::state::session::Timing;
use towpath::wire::bearer::Line;

/// How long something that must happen may take before a test says that it does not.
const PATIENCE: Duration = Duration::from_secs(10);

fn patience(rt: &Rt) -> Moment {
    rt.now() + PATIENCE
}

/// What comes out of a channel in time.
#[track_caller]
fn next<T>(rt: &Rt, from: &Receiver<T>) -> T {
    from.recv_deadline(patience(rt)).unwrap_or_else(|_| panic!("nothing came in {PATIENCE:?}"))
}

/// Waits until something holds that nothing rings for.
#[track_caller]
fn until(rt: &Rt, what: &str, holds: impl Fn() -> bool) {
    let deadline = patience(rt);
    while !holds() {
        assert!(rt.now() < deadline, "{what}: not in {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Heartbeats that come when nobody waits for them, graces that do not end by themselves.
fn quiet() -> Timing {
    Timing { heartbeat: Duration::from_secs(100), grace: Duration::from_secs(100), ..Timing::default() }
}

/// A server and clients of it over lines in memory.
struct Stage {
    rt: Rt,
    server: Server,
    timing: Timing,
}

impl Stage {
    fn new() -> Stage {
        Stage::with(quiet(), Service::new("extra"))
    }

    fn with(timing: Timing, extra: Service) -> Stage {
        Stage::built(timing, extra, |builder| builder)
    }

    fn built(timing: Timing, extra: Service, build: impl FnOnce(Builder) -> Builder) -> Stage {
        let rt = Rt::real();
        let services = Services::new().with(reference::interop()).with(extra);
        let settings = Settings { timing, ..Settings::default() };
        let server = build(Server::builder(&rt, services).settings(settings)).start().expect("threads");
        Stage { rt, server, timing }
    }

    fn client(&self) -> Remote {
        self.client_with("client", Options::default())
    }

    fn client_with(&self, id: &str, options: Options) -> Remote {
        Remote::new(&self.rt, id, self.server.memory_dialer(), Options { timing: self.timing, ..options })
    }

    /// Waits until the server has no call open.
    #[track_caller]
    fn settles(&self, remote: &Remote) {
        let client = &remote.client;
        until(&self.rt, "no call is left open at the client", || client.open_calls() == 0);
        until(&self.rt, "no call is left open at the server", || open_streams(client) == 0);
    }
}

fn open_streams(client: &Client) -> u64 {
    let stats: towpath::state::value::Value =
        client.rpc("interop", "stats", &serde_json::json!({})).expect("stats answers");
    stats.get("openStreams").and_then(towpath::state::value::Value::as_u64).expect("a number")
}

/// A client whose links a test holds.
struct Remote {
    client: Client,
    lines: Arc<Lock<Vec<Line>>>,
    dials: Arc<AtomicUsize>,
    /// Dials fail while this is set.
    unreachable: Arc<std::sync::atomic::AtomicBool>,
}

impl Remote {
    fn new(rt: &Rt, id: &str, memory: Memory, options: Options) -> Remote {
        let (lines, dials) = (Arc::new(Lock::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let unreachable = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (kept, counted, refused) = (lines.clone(), dials.clone(), unreachable.clone());
        let dialer = DialWith::new(rt, move |ear| {
            counted.fetch_add(1, Ordering::AcqRel);
            if refused.load(Ordering::Acquire) {
                return Err(towpath::Error::new(towpath::Code::Io, "the network is away"));
            }
            let (bearer, line) = memory.dial(ear)?;
            kept.lock().push(line);
            Ok(bearer)
        });
        let client = Client::start(rt, id, "SERVER", Arc::new(dialer), options).expect("threads");
        Remote { client, lines, dials, unreachable }
    }

    fn cut(&self) {
        for line in self.lines.lock().drain(..) {
            line.cut();
        }
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Acquire)
    }
}
