//! The front of the library: what an engine leaves behind (nothing), and what it does not start.
//!
//! Threads and descriptors are counted in a process of the test's own, where no other test has any.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use towpath::testing::{Sim, Sweep, Test};
use towpath::{
    Code, ConnectionKind, ConnectionQuery, ConnectionStatus, CreateStream, Engine, FollowOptions, Part,
    Record, StreamError, What,
};

use crate::effort::cycles;

/// Runs a test of this file in a process where it is alone. True in that process.
fn alone(test: &str) -> bool {
    const MARK: &str = "TEST_IS_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", &format!("engine::{test}"), "--nocapture", "--test-threads", "1"])
        .env(MARK, "1")
        .output()
        .expect("this program starts");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}", output.status);
    for line in said.lines().filter(|line| line.starts_with("alone: ") || line.starts_with("***")) {
        println!("{line}");
    }
    false
}

/// How many threads and descriptors this process has.
fn held() -> (usize, usize) {
    let count = |folder| std::fs::read_dir(folder).expect("Linux has it").count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

/// Waits until this process holds what it held: a thread that was joined stays on the system's list for a
/// moment.
fn assert_held(before: (usize, usize), after: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while held() != before {
        assert!(
            Instant::now() < deadline,
            "threads and descriptors were {before:?} and are {:?} after {after}",
            held()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The names of this process's threads, as the system cuts them.
fn thread_names() -> BTreeSet<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux has it").flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// A line of `/proc/self/status`.
fn status(name: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    text.lines().find(|line| line.starts_with(name)).expect("a line of that name").to_owned()
}

fn record(engine: &Engine) -> Record {
    let rt = engine.rt();
    Record::new(rt.uuid_v7(), rt.wall(), ConnectionKind::Ssh, ConnectionStatus::Connected)
}

/// Uses every handle, ends the engine while they are still about, and looks what they answer then.
fn live_and_die(engine: Engine) {
    let (streams, metadata, log) =
        (engine.streams().clone(), engine.metadata().clone(), engine.connections().clone());
    let name = format!("chat/{}", engine.rt().uuid_v4());
    streams.create(&name, CreateStream::default()).expect("created");
    let mut follow = streams.follow(&name, FollowOptions::default()).expect("followed");
    let turn = streams.run(&name).expect("claimed");
    assert_eq!(turn.part(&"a"), Ok(1));
    turn.commit(Some("assistant"), &"a").expect("committed");
    turn.finish().expect("finished");
    assert!(follow.any(|event| matches!(event.what, What::Message(_))), "the message arrives");
    let agent = engine.rt().uuid_v4();
    let mut watch = metadata.watch(agent).expect("watched");
    metadata.report(agent, &[("load", "1", "")]).expect("taken");
    log.record(record(&engine)).expect("taken");
    let late = record(&engine);
    drop(engine);

    assert_eq!(streams.append(&name, None, &1), Err(StreamError::Stopped));
    assert_eq!(follow.last().map(|event| event.what.name()), Some("closed"));
    assert_eq!(log.record(late).map_err(|error| error.code()), Err(Code::Stopped));
    while watch.wait().is_some() {}
    assert_eq!(metadata.get(agent).map_err(|error| error.code()).err(), Some(Code::Stopped));
}

#[test]
fn fault_starts_and_drops_leave_no_thread_and_no_descriptor() {
    if !alone("fault_starts_and_drops_leave_no_thread_and_no_descriptor") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = |round: u64| {
        let builder = Engine::builder();
        // On disk every other time, with what the last one left there.
        let builder = if round.is_multiple_of(2) { builder.in_memory() } else { builder.data(folder.path()) };
        builder.threads(1).start().expect("it starts")
    };
    // Whatever a process makes once is made.
    live_and_die(start(0));
    live_and_die(start(1));
    let before = held();
    let rounds = cycles(30, 1_000);
    let begun = Instant::now();
    for round in 0..rounds {
        live_and_die(start(round));
        if round % 100 == 99 {
            assert_held(before, &format!("{} rounds", round + 1));
        }
    }
    assert_held(before, "all rounds");
    println!("alone: {rounds} starts and drops in {:?}: {before:?} threads and descriptors", begun.elapsed());
}

#[cfg(feature = "postgres")]
#[test]
fn fault_starts_and_drops_on_postgresql_leave_nothing_though_handles_are_kept() {
    if !alone("fault_starts_and_drops_on_postgresql_leave_nothing_though_handles_are_kept") {
        return;
    }
    let Some(url) = crate::cluster::database() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start =
        || Engine::builder().postgres(&url).data(folder.path()).threads(1).start().expect("it starts");
    live_and_die(start());
    let before = held();
    let mut kept = Vec::new();
    for _ in 0..cycles(3, 100) {
        let engine = start();
        kept.push(engine.streams().clone());
        live_and_die(engine);
    }
    assert_held(before, "all rounds");
}

#[test]
fn an_engine_starts_the_threads_it_says_and_touches_neither_signals_nor_the_logger() {
    if !alone("an_engine_starts_the_threads_it_says_and_touches_neither_signals_nor_the_logger") {
        return;
    }
    let (before, signals) = (thread_names(), status("SigCgt"));
    let engine = Engine::builder().threads(1).start().expect("it starts");
    // A thread names itself when it first runs, and stays on the system's list for a moment after its end.
    let names = |expected: &[&str]| {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let new: Vec<String> = thread_names().difference(&before).cloned().collect();
            if new == expected {
                return;
            }
            assert!(Instant::now() < deadline, "the threads are {new:?}, and not {expected:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // Fifteen letters is what the system keeps. No I/O thread: no door is open.
    names(&[
        "flush-connectio",
        "flush-metadata",
        "reader-0",
        "reader-1",
        "reader-lookups",
        "replicas",
        "retries",
        "spool",
        "streams-0",
        "streams-keeper",
        "watches",
        "writer-0",
    ]);
    assert_eq!((status("SigCgt"), log::max_level()), (signals, log::LevelFilter::Off));
    assert_eq!(engine.poisoned(), None);
    drop(engine);
    names(&[]);

    let batcher = Engine::builder().only(&[Part::Metadata]).start().expect("it starts");
    names(&["flush-metadata", "reader-lookups", "watches"]);
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| batcher.streams().clone()));
    let why = asked.expect_err("it has no streams");
    let why = why.downcast_ref::<String>().expect("a sentence");
    assert!(why.contains("without Streams") && why.contains("Builder::only"), "{why}");
}

#[test]
fn a_second_engine_on_the_same_directory_is_refused_with_who_has_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let engine = Engine::builder().data(folder.path()).threads(1).start().expect("it starts");
    let refused = Engine::builder().data(folder.path()).start().expect_err("it is in use");
    assert_eq!(refused.code(), Code::Conflict);
    assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
    // What was written is there for the next one.
    engine.connections().record_durable(record(&engine)).expect("a receipt");
    engine.stop_within(Duration::from_secs(20));
    let engine = Engine::builder().data(folder.path()).threads(1).start().expect("it is free");
    let deadline = Instant::now() + Duration::from_secs(30);
    while engine.connections().query(ConnectionQuery::default()).expect("answered").rows.is_empty() {
        assert!(Instant::now() < deadline, "the record with a receipt never comes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn receipts_without_a_directory_and_postgresql_without_a_server_are_refused_with_what_to_do() {
    let engine = Engine::builder().threads(1).start().expect("it starts");
    let refused = engine.connections().record_durable(record(&engine)).expect_err("nothing outlives it");
    assert_eq!(refused.code(), Code::BadConfig);
    assert!(refused.to_string().contains("data directory"), "{refused}");
    let refused =
        Engine::builder().postgres("postgres://x@127.0.0.1:1/none").start().expect_err("nobody there");
    assert!(refused.to_string().starts_with("opening the store: "), "{refused}");
    assert!(!format!("{:?}", Engine::builder().postgres("postgres://x:secret@h/d")).contains("secret"));
}

/// A whole engine in a simulation: a worker, a follower, an agent with a watcher, and the engine's end.
fn scenario(t: &Test) -> towpath::Result<()> {
    let engine = Engine::builder().start_on(t.rt())?;
    let streams = engine.streams().clone();
    streams.create("chat/1", CreateStream::default())?;
    let follower = {
        let streams = streams.clone();
        t.rt().spawn("follower", move || {
            let (mut seen, mut folded) = (Vec::new(), None);
            for event in streams.follow("chat/1", FollowOptions::default()).expect("it is there") {
                match event.what {
                    What::Part { n, .. } => seen.push(n),
                    What::Message(row) => folded = row.fold.map(|fold| fold.upto),
                    What::Commit { .. } => break,
                    _ => {}
                }
            }
            (seen, folded)
        })?
    };
    let turn = streams.run("chat/1")?;
    for word in ["a", "b", "c"] {
        turn.part(&word)?;
    }
    turn.commit(Some("assistant"), &"abc")?;
    turn.finish()?;
    let (seen, folded) = follower.join().expect("the follower does not panic");
    assert_eq!(folded, Some(3), "the message stands for all parts");
    assert!(seen.iter().copied().eq(1..=seen.len() as u32), "parts came as {seen:?}");

    let agent = t.rt().uuid_v4();
    let mut watch = engine.metadata().watch(agent)?;
    engine.metadata().report(agent, &[("load", "1", "")])?;
    while !watch.wait().is_some_and(|values| values.values.iter().any(|value| value.value == "1")) {}
    drop(engine);
    assert!(watch.wait().is_none_or(|_| watch.wait().is_none()), "the watch ends with the engine");
    assert_eq!(streams.append("chat/1", None, &1), Err(StreamError::Stopped));
    Ok(())
}

#[test]
fn sim_an_engine_runs_and_ends_whole_under_every_seed() {
    let swept = Sweep::new("sim_an_engine_runs_and_ends_whole_under_every_seed", 20).run(scenario);
    swept.assert_ok();
    assert!(swept.distinct() > 1);
}

#[test]
fn sim_one_seed_is_one_trace_of_a_real_engine() {
    let first = Sim::new(5).stalls(1, 20).run(scenario);
    first.assert_clean();
    let again = Sim::new(5).stalls(1, 20).run(scenario);
    assert_eq!(first.trace(), again.trace());
}
