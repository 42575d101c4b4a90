//! A program with a `select!` loop of its own takes an engine in: a stream, a fleet's metadata, its own timer
//! and its own end, all in one place. No signal handler, no logger, and no thread is left when it is over.
//! `cargo run --example embed_select` prints:
//!
//! ```text
//! the stream says "Hello"
//! agent at 42%
//! the loop ends; threads as before: true
//! ```

use std::error::Error;
use std::time::Duration;

use crossbeam_channel::{never, select, tick};
use towpath::{Engine, FollowOptions, What};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

fn main() -> Result<(), Box<dyn Error>> {
    let before = threads();
    let engine = Engine::builder().in_memory().threads(1).start()?;
    engine.streams().create("chat/1", Default::default())?;
    let mut events = engine.streams().follow("chat/1", FollowOptions::default())?.into_receiver();
    let agent = engine.rt().uuid_v4();
    let (news, mut unread) = engine.metadata().watch(agent)?.split();

    engine.streams().append("chat/1", Some("user"), &"Hello")?;
    let beat = tick(Duration::from_millis(10));
    loop {
        select! {
            recv(events) -> event => if let What::Message(row) = event?.what {
                println!("the stream says {}", String::from_utf8_lossy(&row.content));
                engine.metadata().report(agent, &[("load", "42%", "")])?;
                engine.metadata().flush()?;
                events = never(); // dropping a receiver ends its follow
            },
            recv(news) -> _ => if let Some(load) = unread.newest().and_then(|seen| seen.values.first().cloned()) {
                println!("agent at {}", load.value);
                break;
            },
            recv(beat) -> _ => {} // what the program does besides
        }
    }
    drop(engine);
    drop((news, unread));
    // The system takes a moment to take a joined thread off its list.
    let gone = (0..500).any(|_| {
        threads() == before || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }
    });
    println!("the loop ends; threads as before: {gone}");
    Ok(())
}
