//! Calls `interop.divide {a: 6, b: 3}` about every 50 ms over one session and prints each answer, whatever
//! happens to the links: `cargo run --example river_client -- --url ws://127.0.0.1:7800 --codec binary`

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use towpath::client::session::{Client, Options, WebSocket};
use towpath::codec::Codec;
use towpath::front::Router;
use towpath::rt::Rt;
use towpath::state::session::Timing;
use towpath::state::value::Value;
use towpath::wire::{IoThreads, Limits, Target};

#[derive(Parser)]
struct Flags {
    /// The server's address, `ws://host:port/path`.
    #[arg(long, default_value = "ws://127.0.0.1:7800")]
    url: String,
    /// json or binary.
    #[arg(long, default_value = "json")]
    codec: Codec,
    #[arg(long, default_value = "SERVER")]
    server_id: String,
    #[arg(long, default_value = "river-client")]
    client_id: String,
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
    let running = IoThreads::new(&rt, 1, None)?.start(Limits::default(), vec![], Arc::new(Router::new()))?;
    let dialer = Arc::new(WebSocket::new(running.wire(), Target::parse(&flags.url)?));
    let options = Options { codec: flags.codec, timing, ..Options::default() };
    let client = Client::start(&rt, &flags.client_id, &flags.server_id, dialer, options)?;
    loop {
        match client.rpc::<_, Value>("interop", "divide", &json!({"a": 6, "b": 3})) {
            Ok(answer) => println!("ok {}", answer.get("result").and_then(Value::as_f64).unwrap_or(f64::NAN)),
            Err(failure) => println!("err {failure}"),
        }
        rt.sleep(Duration::from_millis(50));
    }
}
