//! A program of your own under the deterministic harness: two clerks sell the last seat twice.
//! `cargo run --example find_a_race` prints how the race was found, how small it was made, and the command
//! that plays it again.
//!
//! ```text
//! found: …one seat, sold once…
//! choices that matter: …
//! play it again: SEED=… cargo run --example find_a_race
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use towpath::Result;
use towpath::rt::Rt;
use towpath::testing::Sweep;

/// Looks first and sells later: what happens in between is the bug.
fn sell(rt: &Rt, seats: &AtomicU32, sold: &AtomicU32) {
    if seats.load(Ordering::SeqCst) > 0 {
        rt.sleep(Duration::from_millis(1)); // printing the ticket
        seats.fetch_sub(1, Ordering::SeqCst);
        sold.fetch_add(1, Ordering::SeqCst);
    }
}

fn evening(rt: &Rt) -> Result<()> {
    let (seats, sold) = (Arc::new(AtomicU32::new(1)), Arc::new(AtomicU32::new(0)));
    let mut clerks = Vec::new();
    for (name, opens) in [("ann", 0), ("bob", 3)] {
        let (clock, seats, sold) = (rt.clone(), seats.clone(), sold.clone());
        clerks.push(rt.spawn(name, move || {
            let mut customers = clock.rand("customers");
            clock.sleep(Duration::from_secs(opens + customers.below(10)));
            sell(&clock, &seats, &sold);
        })?);
    }
    drop(clerks); // waits for both
    assert_eq!(sold.load(Ordering::SeqCst), 1, "one seat, sold once");
    Ok(())
}

fn main() -> Result<()> {
    // On real threads the two rarely meet: the evening is ten seconds long. Under the simulator it
    // takes microseconds, and a hundred evenings are tried.
    let swept = Sweep::new("find_a_race", 100)
        .sim(|sim| sim.run_by("cargo run --example find_a_race"))
        .run(|t| evening(&t.rt()));
    let found = swept.first_failure().expect("a hundred evenings are enough");
    println!("found: {}", found.outcome.failure().unwrap_or_default().lines().next().unwrap_or_default());
    println!("choices that matter: {}", found.weight.1);
    println!("play it again: {}", found.outcome.replay_command());
    Ok(())
}
