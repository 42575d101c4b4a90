//! What the harness promises, shown on the demonstration engine.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use towpath::rt::Rt;
use towpath::testing::{Sim, Sweep, Test};

use crate::demo::{self, Facts};

fn scenario(t: &Test) -> towpath::Result<()> {
    t.invariant("the attached worker is the wanted one", |facts| {
        for (room, seen) in facts.all::<Facts>() {
            if seen.attached.is_some_and(|attached| attached != seen.wanted) {
                return Err(format!("{room}: {seen:?}"));
            }
        }
        Ok(())
    });
    demo::scenario(&t.rt())
}

/// As many as `SEEDS` asks for, or a slice that keeps the gate short.
fn seeds(slice: u64) -> u64 {
    let Ok(asked) = std::env::var("SEEDS") else { return slice };
    asked.parse().unwrap_or_else(|error| panic!("SEEDS={asked}: {error}"))
}

#[test]
fn sim_one_seed_is_one_trace_of_the_whole_engine() {
    let first = Sim::new(11).stalls(1, 20).run(scenario);
    first.assert_clean();
    let runs = seeds(30).min(1_000);
    for _ in 0..runs {
        let again = Sim::new(11).stalls(1, 20).run(scenario);
        assert_eq!(again.hash(), first.hash());
        assert_eq!(again.trace(), first.trace());
    }
    println!("{runs} runs of one seed: identical traces of {} KiB", first.trace().len() / 1_024);
}

#[test]
fn sim_seeds_differ_and_no_seed_fails_without_a_bug() {
    let swept = Sweep::new("sim_seeds_differ_and_no_seed_fails_without_a_bug", 60)
        .at_least(10_000)
        .must_reach(&["stale_answer_closed", "flush_failed", "retry_failed", "dial_failed"])
        .run(scenario);
    swept.assert_ok();
    assert!(
        swept.distinct() as u64 * 1_000 >= swept.runs() * 999,
        "{} of {}",
        swept.distinct(),
        swept.runs()
    );
    println!("{} seeds: {} distinct traces, no false alarm", swept.runs(), swept.distinct());
}

#[test]
fn sim_a_planted_stale_dial_is_found_and_shrunk() {
    let swept = Sweep::new("sim_a_planted_stale_dial_is_found_and_shrunk", 1_000)
        .exactly()
        .sim(|sim| sim.plant("stale_dial_accepted"))
        .run(scenario);
    let small = swept.first_failure().expect("found within 1,000 seeds");
    let found = small.outcome.failure().unwrap_or_default();
    assert!(
        found.contains("wanted") || found.contains("after one of worker"),
        "another bug was found: {found}"
    );
    let (before, after) = small.weight;
    assert!(after <= 12 && after < before, "shrunk from {before} to {after} only: {:?}", small.choices);
    println!("stale dial found at run {}, shrunk from {before} to {after} choices", swept.runs());
}

#[test]
fn real_the_same_rooms_pass_on_the_real_runtime() {
    demo::scenario(&Rt::real()).expect("the scenario runs");
}

/// A token handed round rings of twenty bare threads, one ring to a processor, with nothing else: what the
/// scheduler is measured against. Each ring is held to its processor, as the threads of a simulation are.
fn bare_handoffs_a_second(rings: usize) -> f64 {
    const THREADS: usize = 20;
    const ROUNDS: u32 = 1_000;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for cpu in 0..rings {
            scope.spawn(move || {
                hold(cpu);
                let given: Vec<AtomicBool> = (0..THREADS).map(|_| AtomicBool::new(false)).collect();
                let others: Vec<OnceLock<Thread>> = (0..THREADS).map(|_| OnceLock::new()).collect();
                std::thread::scope(|ring| {
                    for me in 0..THREADS {
                        let (given, others) = (&given, &others);
                        ring.spawn(move || {
                            hold(cpu);
                            others[me].get_or_init(std::thread::current);
                            for _ in 0..ROUNDS {
                                while !given[me].swap(false, Ordering::SeqCst) {
                                    std::thread::park();
                                }
                                let next = (me + 1) % THREADS;
                                given[next].store(true, Ordering::SeqCst);
                                // One that has not come to wait yet will find the flag.
                                if let Some(next) = others[next].get() {
                                    next.unpark();
                                }
                            }
                        });
                    }
                    given[0].store(true, Ordering::SeqCst);
                    if let Some(first) = others[0].get() {
                        first.unpark();
                    }
                });
            });
        }
    });
    (rings * THREADS) as f64 * f64::from(ROUNDS) / begun.elapsed().as_secs_f64()
}

/// Holds the calling thread to one of the processors it may use; without the right to, it runs anywhere.
fn hold(cpu: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut one = CpuSet::new();
    let Some(cpu) = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).nth(cpu) else { return };
    one.set(cpu);
    // Only speed depends on it.
    _ = sched_setaffinity(None, &one);
}

#[test]
fn sim_figures() {
    let whole = std::env::var("SEEDS").is_ok();
    if !whole {
        println!("figures are printed by `make sim`; this is the short slice");
    }
    let rings = std::thread::available_parallelism().map_or(1, usize::from);
    // In turn, so that a busy moment of the machine meets both; the best pair counts.
    let mut best = 0.0_f64;
    for _ in 0..if whole { 5 } else { 1 } {
        let bare = bare_handoffs_a_second(rings);
        let swept = Sweep::new("sim_figures", if whole { 600 } else { 40 }).exactly().run(scenario);
        swept.assert_ok();
        let seconds = swept.wall().as_secs_f64();
        let (runs, handoffs) = (swept.runs() as f64 / seconds, swept.handoffs() as f64 / seconds);
        println!(
            "busy: {runs:.0} runs a second of a scenario of 20 threads; {handoffs:.0} hand-offs a second of {bare:.0} \
             of bare threads: {:.2}",
            handoffs / bare
        );
        best = best.max(handoffs / bare);
    }
    // A debug build is not what is promised.
    assert!(!whole || cfg!(debug_assertions) || best >= 0.5, "{best:.2} of bare hand-offs, and not half");
    let begun = Instant::now();
    let idle = Sim::new(1).run(|t| {
        let rt = t.rt();
        let token = rt.cancel_token();
        let mut hearts = Vec::new();
        for index in 0..3 {
            let (rt, token) = (rt.clone(), token.clone());
            hearts.push(rt.clone().spawn(format!("heart-{index}"), move || {
                loop {
                    let mut select = rt.select_biased();
                    select.cancelled(&token);
                    if select.ready(Some(rt.now() + Duration::from_secs(5))).is_some() {
                        return;
                    }
                }
            })?);
        }
        t.advance(Duration::from_secs(3_600));
        token.cancel();
        drop(hearts);
        Ok::<(), towpath::Error>(())
    });
    idle.assert_clean();
    let hours = idle.virtual_time().as_secs_f64() / 3_600.0 / begun.elapsed().as_secs_f64();
    println!("idle: {hours:.0} virtual hours a second of three heartbeats every 5 s");
}
