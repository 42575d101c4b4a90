//! A server and a client in one program; the link between them is cut in the middle, and nobody notices.
//! `cargo run --example session_rpc` prints the numbers 1 to 10, once each and in order, and how many links it took:
//! two, unless the machine is so busy that one of them was given up.
//!
//! ```text
//! 1
//! 2
//! 3
//! 4
//! 5
//! 6
//! 7
//! 8
//! 9
//! 10
//! 42, over … links
//! ```

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use towpath::client::session::{Client, DialWith, Options};
use towpath::rt::Rt;
use towpath::service::server::Server;
use towpath::service::{Procedure, Service, Services, Writable};

fn main() -> Result<(), Box<dyn Error>> {
    let rt = Rt::real();
    let count = Service::new("demo").with("double", Procedure::rpc(|_, n: u64| Ok(n * 2)).inline()).with(
        "count",
        Procedure::subscription(|_, upto: u64, out: Writable<u64>| {
            for n in 1..=upto {
                out.write(&n)?;
            }
            Ok(())
        }),
    );
    let server = Server::builder(&rt, Services::new().with(count)).start()?;

    let (memory, links) = (server.memory_dialer(), Arc::new(AtomicUsize::new(0)));
    let dials = links.clone();
    let dialer = DialWith::new(&rt, move |ear| {
        dials.fetch_add(1, Ordering::Relaxed);
        Ok(memory.dial(ear)?.0)
    });
    let client = Client::start(&rt, "me", "SERVER", Arc::new(dialer), Options::default())?;

    for n in client.subscribe::<_, u64>("demo", "count", &10)? {
        let n = n?;
        println!("{n}");
        if n == 5 {
            client.cut();
        }
    }
    let doubled: u64 = client.rpc("demo", "double", &21)?;
    println!("{doubled}, over {} links", links.load(Ordering::Relaxed));
    Ok(())
}
