//! Two replicas of one store in one program: what the first produces is followed live on the second, part by
//! part, over a link between them.
//!
//!     cargo run --example two_replicas
//!
//! ```text
//! 1: "one"
//! 2: "two"
//! 3: "three"
//! "one two three"
//! done
//! ```

use std::sync::Arc;

use towpath::bus::{Bus, local::LocalBus};
use towpath::engine::replicas::{ReplicasConfig, ReplicasEngine};
use towpath::engine::streams::{CreateStream, FollowOptions, RelayWays, StreamsConfig, StreamsEngine, What};
use towpath::engine::worker::Crew;
use towpath::front::{Router, relay::relay_routes};
use towpath::rt::Rt;
use towpath::store::{Identity, Stores, sqlite::SqliteStores};
use towpath::wire::{IoThreads, Limits, Listener, Running};

/// Dropped in this order.
type Replica = (StreamsEngine, ReplicasEngine, Running);

fn replica(rt: &Rt, stores: &Arc<dyn Stores>, bus: &Arc<dyn Bus>) -> towpath::Result<Replica> {
    let (crew, io, door) = (Crew::new(rt), IoThreads::new(rt, 1, None)?, Listener::bind("127.0.0.1:0")?);
    let config = ReplicasConfig {
        id: rt.uuid_v7(),
        hostname: "here".into(),
        relay_url: Some(format!("http://{}", door.address())),
        version: "0".into(),
    };
    let streams = StreamsConfig::new(config.id, stores.clone(), bus.clone());
    let registry = ReplicasEngine::start(&crew, config, &**stores, bus, Some(io.wire()))?;
    let relay = RelayWays::new(io.wire(), registry.replicas().clone());
    let engine = StreamsEngine::start(&crew, StreamsConfig { relay: Some(relay), ..streams })?;
    let mut router = Router::new();
    relay_routes(&mut router, engine.streams(), registry.replicas());
    Ok((engine, registry, io.start(Limits::default(), vec![door], Arc::new(router))?))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rt = Rt::real();
    let wall = rt.clone();
    let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
    // Several daemons share a PostgreSQL; in one program this does.
    let stores = SqliteStores::in_memory(Arc::new(move || wall.wall()), fresh)?.for_several_replicas();
    let (stores, bus): (Arc<dyn Stores>, Arc<dyn Bus>) = (Arc::new(stores), Arc::new(LocalBus::new()));
    let (first, second) = (replica(&rt, &stores, &bus)?, replica(&rt, &stores, &bus)?);

    first.0.streams().create("chat/1", CreateStream::default())?;
    let follow = second.0.streams().follow("chat/1", FollowOptions::default())?;
    let turn = first.0.streams().run("chat/1")?;
    for word in ["one", "two", "three"] {
        turn.part(&word)?;
    }
    let mut turn = Some(turn);
    for event in follow {
        match event.what {
            What::Part { n, part, .. } => {
                println!("{n}: {part}");
                if n == 3
                    && let Some(turn) = turn.take()
                {
                    turn.commit(Some("assistant"), &"one two three")?;
                    turn.finish()?;
                }
            }
            What::Message(row) => println!("{}", String::from_utf8_lossy(&row.content)),
            What::Status { status: "done", .. } => break,
            _ => {}
        }
    }
    println!("done");
    Ok(())
}
