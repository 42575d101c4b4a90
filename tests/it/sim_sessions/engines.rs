//! Whole clients and servers of sessions over the simulated network.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towpath::client::session::{Client, Options as ClientOptions, WebSocket};
use towpath::codec::Codec;
use towpath::engine::sessions::Settings;
use towpath::front::{Router, river};
use towpath::service::server::Server;
use towpath::service::{Failure, Procedure, Readable, Service, Services, Writable};
use towpath::state::session::Timing;
use towpath::testing::{NetFaults, Sweep, Test};
use towpath::wire::{Limits, Target};

const SECOND: Duration = Duration::from_secs(1);
const MESSAGES: u64 = 120;

fn services() -> Services {
    let echo = Procedure::stream(|_, (): (), requests: Readable<u64>, out: Writable<u64>| {
        for request in requests {
            out.write(&request?)?;
        }
        Ok(())
    });
    let double = Procedure::rpc(|_, n: u64| Ok(n * 2)).inline();
    Services::new().with(Service::new("sim").with("echo", echo).with("double", double))
}

/// A client and a server on nodes of their own talk while links are cut, halves of them stall, and either side is
/// told to drop its link; then the network heals, and everything has arrived once and in order.
fn engines(test: &Test) -> Result<(), Box<dyn std::error::Error>> {
    let timing = Timing { grace: Duration::from_secs(3_600), ..Timing::default() };
    let net = test.net(NetFaults::CALM);
    let (near, far) = (test.node("a"), test.node("b"));
    let settings = Settings { timing, codec: Codec::Binary, ..Settings::default() };
    let server = Server::builder(&far, services()).settings(settings).start()?;
    let mut router = Router::new();
    router.add(river::route("/river", server.doorbell().clone()));
    let serving = net.node("b", &far).serve(Limits::default(), Arc::new(router))?;
    let mut node = net.node("a", &near);
    let dialing = node.serve(Limits::default(), Arc::new(Router::new()))?;
    let dialer = Arc::new(WebSocket::new(node.wire(), Target::parse("ws://b/river")?));
    let options = ClientOptions { timing, codec: Codec::Binary, ..ClientOptions::default() };
    let client = Client::start(&near, "client", "SERVER", dialer, options)?;

    let (requests, answers) = client.stream::<_, u64, u64>("sim", "echo", &())?;
    let writer = near.spawn("writer", {
        let near = near.clone();
        move || {
            (0..MESSAGES).try_for_each(|n| {
                near.sleep(Duration::from_millis(40));
                requests.write(&n)
            })
        }
    })?;
    let calls = near.spawn("caller", {
        let (client, near) = (client.clone(), near.clone());
        move || {
            (0..20u64).try_for_each(|n| {
                near.sleep(Duration::from_millis(200));
                let doubled: u64 = client.rpc("sim", "double", &n)?;
                if doubled == 2 * n {
                    Ok(())
                } else {
                    Err(Failure::uncaught(format!("{doubled}, not twice {n}")))
                }
            })
        }
    })?;
    let got = Arc::new(AtomicU64::new(0));
    let reader = near.spawn("reader", {
        let got = got.clone();
        move || {
            for answer in answers {
                let expected = got.fetch_add(1, Ordering::AcqRel);
                let answer = answer?;
                if answer != expected {
                    return Err(Failure::uncaught(format!("{answer} came where {expected} was due")));
                }
            }
            Ok(())
        }
    })?;

    let mut draw = test.rt().rand("chaos");
    net.set_faults(NetFaults { cut: 64, split: 4, refuse: 8, ..NetFaults::ROUGH });
    for _ in 0..12 {
        test.advance(Duration::from_millis(50 + draw.below(900)));
        match draw.below(6) {
            0 => net.cut("a", "b"),
            1 => net.partition("a", "b"),
            2 => net.block("b", "a"),
            3 => server.cut(None),
            4 => client.cut(),
            _ => net.heal(),
        }
    }
    net.heal();
    net.set_faults(NetFaults::CALM);
    // The longest wait between dials, a watchdog, a handshake, and the talk itself.
    test.advance(120 * SECOND);
    if !(writer.is_finished() && calls.is_finished() && reader.is_finished()) {
        return Err(format!("{} of {MESSAGES} came back in 120 s", got.load(Ordering::Acquire)).into());
    }
    writer.join()??;
    calls.join()??;
    reader.join()??;
    if got.load(Ordering::Acquire) != MESSAGES {
        return Err(format!("{} of {MESSAGES} came back", got.load(Ordering::Acquire)).into());
    }
    drop(client);
    drop((dialing, serving, server));
    Ok(())
}

#[test]
fn sim_sessions_over_a_rough_network_lose_double_and_reorder_nothing() {
    Sweep::new("sim_sessions_over_a_rough_network_lose_double_and_reorder_nothing", 40)
        .must_reach(&["room_has_a_guest", "room_waits_for_its_guest"])
        .run(engines)
        .assert_ok();
}
