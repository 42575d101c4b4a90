//! The harness itself: time, traps, kills, failures, limits; and that a seed is a trace.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towpath::engine::worker::{Bounds, Crew, Room, Worker};
use towpath::rt::{Moment, Op, Rt, Sender, TryRecvError};
use towpath::testing::{Policy, Sim, Sweep, Test};

const OK: towpath::Result<()> = Ok(());
const SECOND: Duration = Duration::from_secs(1);

/// Five threads pass numbers round while a sixth looks at the clock.
fn busy(t: &Test) -> towpath::Result<()> {
    let rt = t.rt();
    let (done_tx, done) = rt.channel("done", 64);
    let mut threads = Vec::new();
    let (first_tx, mut rx) = rt.channel::<u32>("ring", 2);
    for index in 0..5 {
        let (tx, next) = rt.channel::<u32>("ring", 2);
        let (mine, done_tx, sleeper) = (std::mem::replace(&mut rx, next), done_tx.clone(), rt.clone());
        threads.push(rt.spawn(format!("pass-{index}"), move || {
            let mut jitter = sleeper.rand("jitter");
            for number in mine.iter() {
                sleeper.sleep(Duration::from_millis(jitter.below(5)));
                if tx.send(number + 1).is_err() || done_tx.send(number).is_err() {
                    return;
                }
            }
        })?);
    }
    drop(done_tx);
    for round in 0..8 {
        first_tx
            .send(round * 100)
            .map_err(|_| towpath::Error::new(towpath::Code::Internal, "the ring broke"))?;
    }
    drop(first_tx);
    let sum: u32 = rx.iter().sum();
    assert_eq!(sum, (0..8).map(|round| round * 100 + 5).sum::<u32>());
    assert_eq!(done.iter().count(), 40);
    drop(threads);
    Ok(())
}

#[test]
fn one_seed_is_one_trace() {
    let first = Sim::new(42).stalls(1, 10).run(busy);
    first.assert_clean();
    assert!(first.trace().lines().count() > 200, "the scenario is a real one:\n{}", first.trace());
    for _ in 0..50 {
        let again = Sim::new(42).stalls(1, 10).run(busy);
        assert_eq!(again.hash(), first.hash());
        assert_eq!(again.trace(), first.trace());
    }
}

#[test]
fn seeds_differ() {
    let swept = Sweep::new("seeds_differ", 200).exactly().run(busy);
    swept.assert_ok();
    assert_eq!((swept.runs(), swept.distinct()), (200, 200));
}

#[test]
fn recorded_choices_replay_the_run_under_any_seed() {
    let recorded = Sim::new(7).stalls(1, 10).run(busy);
    let replayed = Sim::new(8).stalls(1, 10).replay(recorded.choices().clone()).run(busy);
    assert_eq!(replayed.trace(), recorded.trace());
}

#[test]
fn advancing_meets_every_deadline_on_the_way_in_order() {
    Sim::new(1)
        .run(|t| {
            let rt = t.rt();
            let (tx, rx) = rt.channel("rings", 64);
            let mut alarms = Vec::new();
            for at in [5, 1, 3, 1, 9] {
                let (rt, tx) = (rt.clone(), tx.clone());
                alarms.push(rt.clone().spawn("alarm", move || {
                    rt.sleep_until(Moment::from_millis(at));
                    tx.send((at, rt.now())).expect("the test listens");
                })?);
            }
            assert_eq!(t.now(), Moment::ZERO);
            t.run_until_idle();
            assert_eq!(t.now(), Moment::ZERO, "being idle takes no time");
            assert_eq!(t.peek(), Some(Duration::from_millis(1)));
            assert_eq!(t.advance_next(), Duration::from_millis(1));
            assert_eq!(rx.len(), 2, "both of the same instant");
            t.advance(Duration::from_millis(6));
            assert_eq!(t.now(), Moment::from_millis(7));
            let rang: Vec<_> = std::iter::from_fn(|| rx.try_recv().ok()).collect();
            assert_eq!(rang.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1, 1, 3, 5]);
            assert!(rang.iter().all(|(at, now)| *now == Moment::from_millis(*at)), "{rang:?}");
            t.advance(SECOND);
            assert_eq!((t.peek(), t.advance_next()), (None, Duration::ZERO));
            drop(alarms);
            OK
        })
        .assert_ok();
}

#[test]
fn the_calendar_jumps_without_the_clock() {
    Sim::new(1)
        .run(|t| {
            let rt = t.rt();
            let before = rt.wall();
            t.jump_wall(-3_600_000_000);
            t.advance(SECOND);
            assert_eq!(rt.wall().as_micros() - before.as_micros(), 1_000_000 - 3_600_000_000);
            assert_eq!(rt.now(), Moment::from_millis(1_000));
        })
        .assert_ok();
}

#[test]
fn a_trapped_call_reads_the_clock_when_it_is_released() {
    Sim::new(1)
        .run(|t| {
            let rt = t.rt();
            let (tx, rx) = rt.channel("when", 1);
            let trap = t.trap(Op::Now).on("reader");
            let reader = rt.clone().spawn("reader", move || _ = tx.send(rt.now()))?;
            let held = trap.wait();
            assert_eq!((held.call().op, held.call().at), (Op::Now, Moment::ZERO));
            assert_eq!(held.call().thread, "reader");
            t.advance(SECOND);
            assert_eq!(rx.try_recv(), Err(TryRecvError::Empty));
            held.release();
            drop(reader);
            assert_eq!(rx.recv(), Ok(Moment::from_millis(1_000)));
            OK
        })
        .assert_ok();
}

#[test]
fn a_call_two_traps_match_goes_on_when_both_let_go() {
    Sim::new(1)
        .run(|t| {
            let rt = t.rt();
            let (tx, rx) = rt.channel("dialed", 4);
            let (by_kind, by_target) = (t.trap(Op::Dial).on("relay"), t.trap(Op::Dial).on("a"));
            let unrelated = t.trap(Op::Dial).on("b");
            let dialer = rt.clone().spawn("dialer", move || {
                rt.point(Op::Dial, &["relay", "a"]);
                _ = tx.send(());
            })?;
            let one = by_kind.wait();
            let other = by_target.wait();
            assert!(!unrelated.is_hit());
            one.release();
            t.run_until_idle();
            assert!(rx.is_empty());
            other.release();
            t.run_until_idle();
            assert_eq!(rx.len(), 1);
            drop(dialer);
            OK
        })
        .assert_ok();
}

#[test]
fn a_trap_that_is_never_reached_fails_at_once_with_the_thread_table() {
    let outcome = Sim::new(1).run(|t| {
        let rt = t.rt();
        let (_tx, rx) = rt.channel::<()>("nothing", 1);
        let waiter = rt.spawn("waiter", move || rx.recv().is_ok())?;
        let trap = t.trap(Op::Dial).on("relay");
        trap.wait().release();
        drop(waiter);
        OK
    });
    let said = outcome.failure().expect("nobody dials");
    assert!(
        said.contains("Dial") && said.contains("waiter") && said.contains("receive from nothing"),
        "{said}"
    );
}

#[test]
fn a_trap_closed_over_calls_nobody_looked_at_fails_the_test() {
    let outcome = Sim::new(1).run(|t| {
        let rt = t.rt();
        let trap = t.trap(Op::Dial);
        let dialer = rt.clone().spawn("dialer", move || rt.point(Op::Dial, &[]))?;
        t.run_until_idle();
        drop(trap);
        drop(dialer);
        OK
    });
    assert_eq!(outcome.class(), Some("trap: unreleased"));
}

#[test]
fn a_panic_ends_the_run_with_its_thread_its_place_and_the_replay_command() {
    let outcome = Sim::new(99).name("it_panics").run(|t| {
        let rt = t.rt();
        let (_tx, rx) = rt.channel::<()>("never", 1);
        let bystander = rt.spawn("bystander", move || rx.recv().is_ok())?;
        let faulty = rt.spawn("faulty", || panic!("the boat sank"))?;
        t.advance(SECOND);
        drop((bystander, faulty));
        OK
    });
    let report = format!("{outcome:?}");
    for part in
        ["thread faulty panicked at", "sim_harness.rs", "the boat sank", "SEED=99 make sim TEST=it_panics"]
    {
        assert!(report.contains(part), "{part} is missing from:\n{report}");
    }
}

#[test]
fn a_deadlock_names_every_thread_and_what_it_waits_for() {
    let outcome = Sim::new(3).run(|t| {
        let rt = t.rt();
        let (left_tx, left) = rt.channel::<()>("left", 1);
        let (right_tx, right) = rt.channel::<()>("right", 1);
        let one = rt.spawn("one", move || (left.recv().is_ok(), right_tx.send(()).is_ok()))?;
        let other = rt.spawn("other", move || (right.recv().is_ok(), left_tx.send(()).is_ok()))?;
        assert_eq!((one.join(), other.join()), (Ok((true, true)), Ok((true, true))));
        OK
    });
    assert_eq!(outcome.class(), Some("deadlock"));
    let report = format!("{outcome:?}");
    for part in ["one", "receive from left", "other", "receive from right", "joins one"] {
        assert!(report.contains(part), "{part} is missing from:\n{report}");
    }
}

#[test]
fn a_run_over_a_limit_says_which() {
    let spin = |t: &Test| {
        let rt = t.rt();
        loop {
            rt.sleep(Duration::from_millis(1));
        }
    };
    let steps = Sim::new(1).steps_max(1_000).run(move |t| -> () { spin(t) });
    assert_eq!(steps.class(), Some("limit: steps"));
    let time = Sim::new(1).virtual_max(SECOND).run(move |t| -> () { spin(t) });
    assert_eq!(time.class(), Some("limit: virtual time"));
    // Steps without end: a fast build would meet that limit first.
    let wall =
        Sim::new(1).steps_max(u64::MAX).wall_max(Duration::from_millis(1)).run(move |t| -> () { spin(t) });
    assert_eq!(wall.class(), Some("limit: wall"));
}

#[test]
fn a_thread_that_blocks_outside_is_named() {
    let (go, gate) = crossbeam_channel::bounded::<()>(1);
    // On the wall: the others, which do not block, must have had their turns on a busy machine.
    let outcome = Sim::new(1).silence_max(Duration::from_secs(3)).run(move |t| {
        let rt = t.rt();
        let blocker = rt.spawn("blocker", move || _ = gate.recv())?;
        t.run_until_idle();
        drop(blocker);
        OK
    });
    drop(go);
    assert_eq!(outcome.class(), Some("blocked: blocker"));
}

#[test]
fn killing_a_node_ends_its_threads_where_they_stand_and_no_others() {
    struct Says(Sender<&'static str>, &'static str);
    impl Drop for Says {
        fn drop(&mut self) {
            // A killed thread cannot send; a living one can.
            _ = self.0.try_send(self.1);
        }
    }
    Sim::new(5)
        .run(|t| {
            let (tx, rx) = t.rt().channel("last words", 8);
            let mut threads = Vec::new();
            for name in ["a", "b"] {
                let rt = t.node(name);
                let says = Says(tx.clone(), name);
                let (_hold, never) = rt.channel::<()>("never", 1);
                threads.push(rt.spawn(name, move || {
                    let _says = says;
                    let _hold = _hold;
                    never.recv().is_ok()
                })?);
            }
            t.run_until_idle();
            t.kill("a");
            assert!(t.threads().contains("b ") && !t.threads().contains("a   "), "{}", t.threads());
            t.run_until_idle();
            assert_eq!(rx.try_recv(), Err(TryRecvError::Empty), "the killed one said nothing");
            for thread in threads {
                thread.detach();
            }
            OK
        })
        .assert_ok();
}

#[test]
fn an_invariant_is_checked_at_every_change_of_facts() {
    let outcome = Sim::new(1).run(|t| {
        t.invariant("few", |facts| {
            let sum: u32 = facts.all::<u32>().map(|(_, held)| held).sum();
            if sum <= 5 { Ok(()) } else { Err(format!("{sum} are held")) }
        });
        let rt = t.rt();
        let thread = rt.clone().spawn("holder", move || {
            for held in [1u32, 5, 6, 1] {
                rt.facts(|| held);
            }
        })?;
        drop(thread);
        OK
    });
    assert_eq!(outcome.class(), Some("invariant: few"));
    assert!(outcome.failure().is_some_and(|said| said.contains("6 are held")), "{outcome:?}");
}

#[test]
#[should_panic(expected = "while holding 1 lock")]
fn a_facade_call_under_a_lock_is_a_bug() {
    Sim::new(1)
        .run(|t| {
            let lock = towpath::rt::Lock::new(());
            let _guard = lock.lock();
            t.rt().now();
        })
        .assert_ok();
}

#[test]
#[should_panic(expected = "no bare receiver")]
fn a_bare_receiver_is_refused_with_advice() {
    Sim::new(1)
        .run(|t| {
            let (_tx, rx) = t.rt().channel::<()>("bare", 1);
            _ = rx.into_crossbeam();
        })
        .assert_ok();
}

/// Two threads take the same slot without a reservation: the second look finds another's mark.
fn lost_update(t: &Test) -> towpath::Result<()> {
    let rt = t.rt();
    let shared = Arc::new(AtomicU64::new(0));
    let threads: Result<Vec<_>, _> = (0..2)
        .map(|index| {
            let (rt, shared) = (rt.clone(), shared.clone());
            rt.clone().spawn(format!("adder-{index}"), move || {
                let seen = shared.load(Ordering::SeqCst);
                rt.point(Op::Custom("between"), &[]);
                shared.store(seen + 1, Ordering::SeqCst);
            })
        })
        .collect();
    for thread in threads? {
        thread.join().expect("adding does not panic");
    }
    assert_eq!(shared.load(Ordering::SeqCst), 2, "an update was lost");
    Ok(())
}

#[test]
fn a_lost_update_is_found_by_every_policy_and_shrunk_to_almost_nothing() {
    for policy in [Policy::Random { one_in: 4 }, Policy::Pct { changes: 2 }, Policy::Mixed] {
        let swept =
            Sweep::new("lost_update", 200).exactly().sim(move |sim| sim.policy(policy)).run(lost_update);
        let small =
            swept.first_failure().unwrap_or_else(|| panic!("{policy:?} did not find it in 200 seeds"));
        assert!(small.weight.1 <= 4, "{policy:?} left {} choices: {:?}", small.weight.1, small.choices);
        assert!(small.outcome.failure().is_some_and(|said| said.contains("an update was lost")));
    }
}

#[test]
fn marks_that_no_seed_reaches_fail_the_sweep() {
    let swept =
        Sweep::new("marks", 3).exactly().must_reach(&["reached", "never"]).run(|_t| towpath::mark!(reached));
    assert!(swept.marks().contains("reached"));
    let failed = std::panic::catch_unwind(|| swept.assert_ok());
    assert!(failed.is_err(), "nobody reached the mark called never");
}

#[test]
fn randomness_and_uuids_come_from_the_seed() {
    let draw = |seed| {
        let (tx, rx) = crossbeam_channel::bounded(1);
        let outcome = Sim::new(seed).run(move |t| {
            let rt: Rt = t.rt();
            let drawn = (rt.uuid_v4(), rt.uuid_v7(), rt.secret::<8>(), rt.rand("x").next_u64());
            tx.send(drawn).expect("the test listens");
        });
        outcome.assert_ok();
        rx.recv().expect("the run drew")
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

/// Counts what it is woken with.
struct Counter {
    left: usize,
    done: Sender<()>,
}

impl Room for Counter {
    type Message = u32;

    fn wake(&mut self, _now: Moment, inbox: &mut Vec<u32>) {
        self.left -= inbox.drain(..).count();
        if self.left == 0 {
            self.done.try_send(()).expect("the test waits for one");
        }
    }

    fn deadline(&self) -> Option<Moment> {
        None
    }
}

/// Three threads that wait for a room with hardly a place.
fn crowded(t: &Test) {
    let rt = t.rt();
    let (done, is_done) = rt.channel("done", 1);
    let bounds = Bounds { data: 2, control: 64, drain: 2 };
    let counter = |_: &_| Counter { left: 3 * 20, done };
    let (_worker, inbox) = Worker::spawn(&Crew::new(&rt), "counter", bounds, counter).expect("a thread");
    let send = |_| {
        let inbox = inbox.clone();
        let send = move || (0..20).for_each(|n| inbox.data(n, Moment::NEVER).expect("the room is there"));
        rt.spawn("sender", send).expect("a thread")
    };
    let senders: Vec<_> = (0..3).map(send).collect();
    is_done.recv().expect("everything is heard");
    senders.into_iter().for_each(|sender| sender.join().expect("it sent"));
}

#[test]
fn sim_a_room_that_is_woken_for_nothing_goes_on_hearing() {
    Sweep::new("sim_a_room_that_is_woken_for_nothing_goes_on_hearing", 50)
        .sim(|sim| sim.early_wakes(4))
        .run(crowded)
        .assert_ok();
}
