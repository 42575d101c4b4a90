use proptest::prelude::*;

use super::*;

const WORKER: Uuid = Uuid::from_u128(1);
const OTHER: Uuid = Uuid::from_u128(2);
const NOW: Wall = Wall(1_000);
const ALIVE: Wall = Wall(2_000);
const LATER: Wall = Wall(3_000);

fn lease(n: u8) -> LeaseHash {
    LeaseHash([n; 32])
}

fn run_by(worker: Uuid, n: u8) -> Run {
    Run { worker, lease: lease(n), until: ALIVE }
}

fn running() -> Stream {
    let mut stream = Stream::default();
    stream.claim(run_by(WORKER, 1), NOW, 0).expect("nobody holds it");
    stream
}

#[test]
fn each_changed_thing_takes_one_position() {
    let mut stream = Stream::default();
    assert_eq!(stream.append(), Ok(Place { id: 1, pos: 1 }));
    assert_eq!(stream.append(), Ok(Place { id: 2, pos: 2 }));
    stream.enqueue().expect("open"); // the queue, and the status
    assert_eq!((stream.queue_pos, stream.status_pos, stream.pos), (3, 4, 4));
    stream.claim(run_by(WORKER, 1), NOW, 1).expect("nobody holds it"); // the queue, and the status
    assert_eq!((stream.queue_pos, stream.status_pos, stream.turn_begun_pos, stream.pos), (5, 6, 6, 6));
    assert_eq!(stream.history_pos, 2);
}

#[test]
fn an_edit_keeps_ids_and_raises_generation_and_position() {
    let mut stream = Stream::default();
    stream.append().expect("open");
    stream.rewrite();
    assert_eq!((stream.generation, stream.pos, stream.history_pos, stream.last_msg), (1, 2, 2, 1));
}

#[test]
fn a_queued_input_on_a_stream_that_is_not_running_makes_it_pending() {
    for (status, after) in [
        (Status::Idle, "pending"),
        (Status::Done, "pending"),
        (Status::Failed, "pending"),
        (Status::Pending, "pending"),
        (Status::Running(run_by(WORKER, 1)), "running"),
        (Status::Interrupting(run_by(WORKER, 1)), "interrupting"),
    ] {
        let mut stream = Stream { status, ..Stream::default() };
        stream.enqueue().expect("open");
        assert_eq!(stream.status.name(), after);
    }
}

#[test]
fn a_claim_is_possible_in_any_status_but_under_a_live_lease() {
    for status in [Status::Idle, Status::Pending, Status::Failed, Status::Done] {
        let mut stream = Stream { status, turn_no: 4, ..Stream::default() };
        let claimed = stream.claim(run_by(WORKER, 1), NOW, 0);
        assert_eq!(claimed, Ok(Claimed { turn: 5, takes_input: false }));
        assert_eq!(stream.status.worker(), Some(WORKER));
    }
    for status in [Status::Running(run_by(WORKER, 1)), Status::Interrupting(run_by(WORKER, 1))] {
        let mut stream = Stream { status, turn_no: 4, ..Stream::default() };
        let before = stream.clone();
        let refused = stream.claim(run_by(OTHER, 2), NOW, 1);
        assert_eq!(refused, Err(Refused::Held { worker: WORKER, turn: 4 }));
        assert_eq!(stream, before, "a refused claim changes nothing");
        assert!(stream.claim(run_by(OTHER, 2), ALIVE, 0).is_ok(), "a dead lease may be taken over");
        assert_eq!((stream.turn_no, stream.status.worker()), (5, Some(OTHER)));
    }
}

#[test]
fn a_claim_takes_the_head_of_the_queue_and_clears_the_error() {
    let mut stream = Stream { error: Some("no".into()), status: Status::Failed, ..Stream::default() };
    assert!(stream.claim(run_by(WORKER, 1), NOW, 2).expect("nobody holds it").takes_input);
    assert_eq!((stream.queue_pos, stream.error_pos, stream.status_pos), (1, 2, 3));
    assert_eq!(stream.error, None);
}

#[test]
fn writes_of_an_old_holder_are_refused() {
    let mut stream = running();
    stream.claim(run_by(OTHER, 2), LATER, 0).expect("the lease is dead");
    let before = stream.clone();
    let lost = Err(Refused::Lost { turn: 1 });
    assert_eq!(stream.commit(1, lease(1)).map(drop), lost);
    assert_eq!(stream.finish(1, lease(1), Outcome::Done, LATER, 0), lost);
    assert_eq!(stream.abort(1, lease(1), LATER), lost);
    assert_eq!(stream.renew(1, lease(1), LATER), lost);
    assert_eq!(stream.abandon(1, lease(1), LATER), lost);
    assert_eq!(
        stream.commit(2, lease(1)).map(drop),
        Err(Refused::Lost { turn: 2 }),
        "turn alone is no proof"
    );
    assert_eq!(stream.commit(1, lease(2)).map(drop), lost, "a lease alone is no proof");
    assert_eq!(stream, before);
}

#[test]
fn a_message_of_a_user_does_not_end_the_turn() {
    let mut stream = running();
    stream.append().expect("open");
    stream.rewrite();
    stream.enqueue().expect("open");
    assert!(stream.commit(1, lease(1)).is_ok());
    assert!(stream.finish(1, lease(1), Outcome::Done, NOW, 0).is_ok());
}

#[test]
fn finish_makes_it_pending_if_inputs_wait_and_else_done_or_failed() {
    for (outcome, waiting, after) in [
        (Outcome::Done, 0, "done"),
        (Outcome::Failed("out of memory".into()), 0, "failed"),
        (Outcome::Done, 1, "pending"),
        (Outcome::Failed("out of memory".into()), 1, "pending"),
    ] {
        for interrupted in [false, true] {
            let mut stream = running();
            if interrupted {
                stream.interrupt();
            }
            stream.finish(1, lease(1), outcome.clone(), NOW, waiting).expect("held");
            assert_eq!(stream.status.name(), after);
            assert_eq!(stream.error.is_some(), matches!(outcome, Outcome::Failed(_)));
            assert_eq!(stream.turn_closed_at, Some(NOW));
        }
    }
}

#[test]
fn interrupt_stops_what_runs_takes_back_what_waits_and_else_does_nothing() {
    let run = run_by(WORKER, 1);
    for (status, after, changed) in [
        (Status::Running(run), "interrupting", true),
        (Status::Pending, "idle", true),
        (Status::Interrupting(run), "interrupting", false),
        (Status::Idle, "idle", false),
        (Status::Failed, "failed", false),
        (Status::Done, "done", false),
    ] {
        let mut stream = Stream { status, ..Stream::default() };
        assert_eq!(stream.interrupt(), changed);
        assert_eq!(stream.status.name(), after);
        assert_eq!(stream.pos, u64::from(changed), "no change takes no position");
    }
}

#[test]
fn commit_is_allowed_while_interrupting_and_abort_acknowledges() {
    let mut stream = running();
    stream.interrupt();
    assert!(stream.commit(1, lease(1)).is_ok());
    assert!(stream.abort(1, lease(1), NOW).is_ok());
    assert_eq!(stream.status, Status::Idle);
    assert_eq!(stream.commit(1, lease(1)), Err(Refused::Lost { turn: 1 }));
}

#[test]
fn a_dead_lease_becomes_what_the_stream_asks_for() {
    for (on_lost, interrupted, after, error) in [
        (OnLost::Pending, false, "pending", None),
        (OnLost::Failed, false, "failed", Some(PRODUCER_LOST)),
        (OnLost::Pending, true, "idle", None),
        (OnLost::Failed, true, "idle", None),
    ] {
        let mut stream = Stream { on_lost, ..running() };
        if interrupted {
            stream.interrupt();
        }
        assert!(!stream.sweep(NOW), "a live lease is left alone");
        assert!(stream.sweep(ALIVE));
        assert_eq!((stream.status.name(), stream.error.as_deref()), (after, error));
        assert!(!stream.sweep(LATER), "a swept stream has no lease");
    }
}

#[test]
fn a_renewed_lease_outlives_the_sweep_without_a_position() {
    let mut stream = running();
    let pos = stream.pos;
    stream.renew(1, lease(1), LATER).expect("held");
    assert!(!stream.sweep(ALIVE));
    assert_eq!(stream.pos, pos);
}

#[test]
fn a_replica_that_stops_hands_back_only_its_own() {
    let mut stream = running();
    assert!(!stream.hand_back(OTHER, NOW));
    assert!(stream.hand_back(WORKER, NOW));
    assert_eq!(stream.status, Status::Pending);
    let mut stream = running();
    stream.interrupt();
    assert!(stream.hand_back(WORKER, NOW));
    assert_eq!(stream.status, Status::Idle, "it was asked to stop, and it has");
}

#[test]
fn removing_the_last_waiting_input_asks_for_nothing() {
    let mut stream = Stream::default();
    stream.enqueue().expect("open");
    stream.enqueue().expect("open");
    stream.dequeue(1);
    assert_eq!(stream.status, Status::Pending);
    stream.dequeue(0);
    assert_eq!(stream.status, Status::Idle);
}

#[test]
fn a_closed_stream_takes_no_message_and_no_input() {
    let mut stream = Stream::default();
    stream.close();
    stream.close();
    assert_eq!(stream.closed_pos, Some(1), "closing again changes nothing");
    assert_eq!(stream.append(), Err(Refused::Closed));
    assert_eq!(stream.enqueue(), Err(Refused::Closed));
}

#[test]
fn a_message_that_folds_parts_moves_both_coordinates() {
    let mut cursor = Cursor { generation: 0, pos: 3, turn: 1, part: 2 };
    cursor.pass_message(4, Some(Fold { turn: 1, upto: 5 }));
    assert_eq!(cursor, Cursor { generation: 0, pos: 4, turn: 1, part: 5 });
    cursor.pass_message(5, Some(Fold { turn: 1, upto: 3 }));
    assert_eq!((cursor.turn, cursor.part), (1, 5), "an older fold moves nothing back");
    cursor.pass_part(2, 1);
    assert_eq!((cursor.turn, cursor.part), (2, 1));
    cursor.pass_part(1, 9);
    assert_eq!((cursor.turn, cursor.part), (2, 1), "a part of an older turn moves nothing back");
}

/// Anything that can be asked of a stream.
#[derive(Clone, Debug)]
enum Ask {
    Append,
    Rewrite,
    Enqueue,
    Dequeue(usize),
    Claim(u8, usize),
    Commit(u8),
    Finish(u8, bool, usize),
    Abort(u8),
    Interrupt,
    Sweep,
    HandBack,
    Wait,
}

fn any_ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        Just(Ask::Append),
        Just(Ask::Rewrite),
        Just(Ask::Enqueue),
        (0..2usize).prop_map(Ask::Dequeue),
        (0..3u8, 0..2usize).prop_map(|(n, waiting)| Ask::Claim(n, waiting)),
        (0..3u8).prop_map(Ask::Commit),
        (0..3u8, any::<bool>(), 0..2usize).prop_map(|(n, well, waiting)| Ask::Finish(n, well, waiting)),
        (0..3u8).prop_map(Ask::Abort),
        Just(Ask::Interrupt),
        Just(Ask::Sweep),
        Just(Ask::HandBack),
        Just(Ask::Wait),
    ]
}

proptest! {
    /// Whatever is asked in whatever order: positions only rise, no coordinate is above `pos`, a turn number
    /// is never given twice, and only the newest holder writes.
    #[test]
    fn positions_rise_and_only_the_newest_holder_writes(asks in prop::collection::vec(any_ask(), 0..60)) {
        let mut stream = Stream::default();
        let mut now = NOW;
        let mut turns = Vec::new();
        let mut holder = None;
        for ask in asks {
            let before = stream.clone();
            let turn = stream.turn_no;
            match ask {
                Ask::Append => drop(stream.append()),
                Ask::Rewrite => stream.rewrite(),
                Ask::Enqueue => drop(stream.enqueue()),
                Ask::Dequeue(left) => stream.dequeue(left),
                Ask::Claim(n, waiting) => {
                    let until = now + std::time::Duration::from_micros(3);
                    if let Ok(claimed) = stream.claim(Run { until, ..run_by(WORKER, n) }, now, waiting) {
                        prop_assert!(!turns.contains(&claimed.turn));
                        turns.push(claimed.turn);
                        holder = Some(n);
                    }
                }
                Ask::Commit(n) => {
                    let written = stream.commit(turn, lease(n)).is_ok();
                    prop_assert_eq!(written, before.status.run().is_some() && holder == Some(n));
                }
                Ask::Finish(n, well, waiting) => {
                    let outcome = if well { Outcome::Done } else { Outcome::Failed("no".into()) };
                    drop(stream.finish(turn, lease(n), outcome, now, waiting));
                }
                Ask::Abort(n) => drop(stream.abort(turn, lease(n), now)),
                Ask::Interrupt => drop(stream.interrupt()),
                Ask::Sweep => drop(stream.sweep(now)),
                Ask::HandBack => drop(stream.hand_back(WORKER, now)),
                Ask::Wait => now = now + std::time::Duration::from_micros(1),
            }
            prop_assert!(stream.pos >= before.pos);
            let highest = [stream.history_pos, stream.queue_pos, stream.status_pos, stream.error_pos];
            prop_assert!(highest.iter().all(|pos| *pos <= stream.pos));
            prop_assert_eq!(stream.pos == before.pos, stream == before, "a change takes a position, and only a change");
            prop_assert_eq!(stream.status != before.status, stream.status_pos != before.status_pos);
        }
    }
}
