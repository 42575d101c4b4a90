//! A worker answers in parts; a viewer that comes late gets what it missed, then the rest as it is said.
//! `cargo run --example publish_and_follow` prints:
//!
//! ```text
//! part 1: "Boats "
//! part 2: "may "
//! part 3: "stop."
//! message: "Boats may stop."
//! ```

use towpath::{Engine, FollowOptions, StreamError, What};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::builder().in_memory().start()?;
    let streams = engine.streams();
    streams.create("chat/1", Default::default())?;
    let turn = streams.run("chat/1")?;
    turn.part(&"Boats ")?; // nobody follows yet

    let viewer = streams.follow("chat/1", FollowOptions::default())?;
    let (caught_up, go_on) = crossbeam_channel::bounded(1); // only so that each run prints the same
    let worker = std::thread::spawn(move || -> Result<(), StreamError> {
        _ = go_on.recv();
        turn.part(&"may ")?;
        turn.part(&"stop.")?;
        turn.commit(Some("assistant"), &"Boats may stop.")?;
        turn.finish()
    });
    for event in viewer {
        match event.what {
            What::Live { .. } => _ = caught_up.send(()),
            What::Part { n, part, .. } => println!("part {n}: {part}"),
            What::Message(row) => println!("message: {}", String::from_utf8_lossy(&row.content)),
            What::Commit { .. } => break,
            _ => {}
        }
    }
    Ok(worker.join().expect("the worker does not panic")?)
}
