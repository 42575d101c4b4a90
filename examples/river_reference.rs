//! Serves the reference services of River's test kits: one service, `interop`, with a procedure for each shape
//! and each way to fail. `cargo run --example river_reference -- --listen 127.0.0.1:7800 --codec binary`
//! prints `listening on ws://127.0.0.1:7800` when it is ready, and serves until it is killed.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use towpath::codec::Codec;
use towpath::engine::sessions::Settings;
use towpath::front::{Router, river};
use towpath::rt::Rt;
use towpath::service::server::Server;
use towpath::service::{Services, reference};
use towpath::state::session::Timing;
use towpath::wire::{IoThreads, Limits, Listener};

#[derive(Parser)]
struct Flags {
    /// Where to listen; any path is served.
    #[arg(long, default_value = "127.0.0.1:7800")]
    listen: String,
    /// json or binary.
    #[arg(long, default_value = "json")]
    codec: Codec,
    /// The server's client id.
    #[arg(long, default_value = "SERVER")]
    server_id: String,
    #[arg(long, default_value_t = 1_000)]
    heartbeat_ms: u64,
    #[arg(long, default_value_t = 2)]
    heartbeats_until_dead: u32,
    #[arg(long, default_value_t = 5_000)]
    grace_ms: u64,
    #[arg(long, default_value_t = 1_000)]
    handshake_ms: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    let rt = Rt::real();
    let timing = Timing {
        heartbeat: Duration::from_millis(flags.heartbeat_ms),
        heartbeats_until_dead: flags.heartbeats_until_dead,
        grace: Duration::from_millis(flags.grace_ms),
        handshake: Duration::from_millis(flags.handshake_ms),
        ..Timing::default()
    };
    let settings = Settings { id: flags.server_id, codec: flags.codec, timing, ..Settings::default() };
    let services = Services::new().with(reference::interop());
    let server = Server::builder(&rt, services).settings(settings).start()?;

    let io = IoThreads::new(&rt, 1, None)?;
    let mut router = Router::new();
    router.add(river::route("/", server.doorbell().clone()));
    router.add(river::route("/{any*}", server.doorbell().clone()));
    let running = io.start(Limits::default(), vec![Listener::bind(&flags.listen)?], Arc::new(router))?;
    println!("listening on ws://{}", running.addresses()[0]);
    std::io::stdout().flush()?;
    // Until it is killed: nothing but the process's end wakes this.
    loop {
        rt.sleep(Duration::from_secs(3_600));
    }
}
