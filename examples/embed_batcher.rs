//! Only the batcher: ten agents report a hundred times each from the program's own threads, and a watcher sees
//! the newest. A thousand reports become one write.
//! `cargo run --example embed_batcher` prints:
//!
//! ```text
//! 1000 reports, 10 values to write
//! the watcher saw load = 100%
//! ```

use std::error::Error;
use std::thread;

use towpath::{Engine, Part};

fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder().in_memory().only(&[Part::Metadata]).start()?;
    let agents: Vec<_> = (0..10).map(|_| engine.rt().uuid_v4()).collect();
    let metadata = engine.metadata();
    thread::scope(|scope| {
        for agent in &agents {
            scope.spawn(move || {
                for round in 1..=100 {
                    // An error here names the keys that were not taken; those before them were.
                    metadata.report(*agent, &[("load", &format!("{round}%"), "")]).expect("ten keys fit");
                }
            });
        }
    });
    println!("1000 reports, {} values to write", metadata.pending());
    metadata.flush()?;
    let seen = metadata.watch(agents[3])?.wait().ok_or("the engine ended")?;
    println!("the watcher saw {} = {}", seen.values[0].key, seen.values[0].value);
    Ok(())
}
