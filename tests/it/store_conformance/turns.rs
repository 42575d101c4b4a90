//! The queue of a stream, and who runs its turns.

use super::*;

on_every_store! {
    an_input_makes_a_stream_pending_and_the_oldest_is_claimed_first
    the_queue_takes_no_more_than_it_may_hold
    an_input_withdrawn_is_not_claimed
    a_second_claim_names_the_holder
    a_dead_lease_may_be_taken_over_and_its_holder_is_fenced
    a_commit_folds_the_parts_of_its_turn
    a_finished_turn_leaves_the_stream_as_its_queue_says
    interrupt_asks_a_worker_and_takes_back_what_is_pending
    the_sweep_ends_dead_leases_as_each_stream_asks
    a_replica_that_stops_hands_its_streams_back
    one_renewal_keeps_every_lease_of_a_replica
    whoever_asks_for_work_gets_what_was_pending_longest
}

fn an_input_makes_a_stream_pending_and_the_oldest_is_claimed_first(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    for text in ["first", "second"] {
        let Queued::Done { change, .. } = store.push(&name("a"), &json(text), None, 10).expect("stored")
        else {
            panic!("queued")
        };
        assert_eq!(change.state.status, Status::Pending);
    }
    let worker = Uuid::now_v7();
    let claimed = turn(store.claim(&name("a"), &claim_by(worker)).expect("stored"));
    let input = claimed.input.expect("the head of the queue");
    assert_eq!((claimed.turn, input.id, &input.content[..]), (1, 1, b"first".as_slice()));
    assert_eq!(claimed.change.state.status.worker(), Some(worker));
    let page = all_of(&mut *store, "a");
    assert_eq!(page.queue.iter().map(|input| input.id).collect::<Vec<_>>(), [2]);
    assert_eq!(page.stream.turn_begun_at, Some(page.stream.status_at));
}

fn the_queue_takes_no_more_than_it_may_hold(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    assert!(matches!(
        store.push(&name("a"), &json("1"), None, 1).expect("stored"),
        Queued::Done { id: 1, .. }
    ));
    assert_eq!(store.push(&name("a"), &json("2"), None, 1).expect("stored"), Queued::Full);
    assert_eq!(store.push(&name("b"), &json("2"), None, 1).expect("stored"), Queued::Missing);
}

fn an_input_withdrawn_is_not_claimed(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    store.push(&name("a"), &json("1"), None, 10).expect("stored");
    let Dequeued::Done(change) = store.withdraw(&name("a"), 1).expect("stored") else { panic!("withdrawn") };
    assert_eq!(change.state.status, Status::Idle);
    assert_eq!(store.withdraw(&name("a"), 1).expect("stored"), Dequeued::NoInput);
    let claimed = turn(store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"));
    assert_eq!(claimed.input, None);
}

fn a_second_claim_names_the_holder(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let worker = Uuid::now_v7();
    turn(store.claim(&name("a"), &claim_by(worker)).expect("stored"));
    assert_eq!(
        store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"),
        Claimed::Running { worker, turn: 1 }
    );
    assert_eq!(store.claim(&name("b"), &claim_by(worker)).expect("stored"), Claimed::Missing);
}

fn a_dead_lease_may_be_taken_over_and_its_holder_is_fenced(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let old = turn(store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"));
    place.advance(Duration::from_secs(31));
    let new = Claim { lease: [8; 32], ..claim_by(Uuid::now_v7()) };
    let new = turn(store.claim(&name("a"), &new).expect("stored"));
    assert_eq!((new.turn, new.change.state.status.worker().is_some()), (2, true));
    let late = store.commit(&name("a"), fence(&old), &json("late"), 1, None).expect("stored");
    assert_eq!(late, Committed::TurnLost);
    assert_eq!(store.finish(&name("a"), fence(&old), &End::Done).expect("stored"), Finished::TurnLost);
    // The right turn with another lease is fenced as well.
    let forged = Fence { turn: 2, lease: LeaseHash::of(&[9; 32]) };
    assert_eq!(store.commit(&name("a"), forged, &json("x"), 1, None).expect("stored"), Committed::TurnLost);
    assert!(matches!(
        store.commit(&name("a"), fence(&new), &json("mine"), 1, None).expect("stored"),
        Committed::Done { .. }
    ));
    assert_eq!(texts(&all_of(&mut *store, "a")), ["mine"]);
}

fn a_commit_folds_the_parts_of_its_turn(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let claimed = turn(store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"));
    say(&mut *store, "a", "meanwhile");
    let Committed::Done { change, message, again: false } =
        store.commit(&name("a"), fence(&claimed), &json("answer"), 12, None).expect("stored")
    else {
        panic!("committed")
    };
    assert_eq!(message.fold, Some(Fold { turn: 1, upto: 12 }));
    let page = all_of(&mut *store, "a");
    assert_eq!(page.messages.last(), Some(&message), "the room gets the row that readers get");
    assert_eq!((page.stream.turn_folded_to, message.pos), (12, change.state.pos));
    assert_eq!(texts(&page), ["meanwhile", "answer"]);
}

fn a_finished_turn_leaves_the_stream_as_its_queue_says(place: &Place) {
    let mut store = place.streams();
    let ends = [
        ("done", End::Done, 0, "done", None),
        ("failed", End::Failed("no model".into()), 0, "failed", Some("no model")),
        ("more", End::Done, 1, "pending", None),
        ("aborted", End::Aborted, 1, "idle", None),
        ("lost", End::Lost, 0, "pending", None),
        ("handed back", End::HandedBack, 0, "pending", None),
    ];
    for (at, end, waiting, status, error) in ends {
        make(&mut *store, at);
        let claimed = turn(store.claim(&name(at), &claim_by(Uuid::now_v7())).expect("stored"));
        for _ in 0..waiting {
            store.push(&name(at), &json("next"), None, 10).expect("stored");
        }
        let Finished::Done(change) = store.finish(&name(at), fence(&claimed), &end).expect("stored") else {
            panic!("{at}")
        };
        assert_eq!((change.state.status.name(), change.state.error.as_deref()), (status, error), "{at}");
        assert_eq!(state(&mut *store, at).change(), change, "{at}");
        assert_eq!(
            store.finish(&name(at), fence(&claimed), &end).expect("stored"),
            Finished::TurnLost,
            "{at}"
        );
    }
}

fn interrupt_asks_a_worker_and_takes_back_what_is_pending(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    assert!(matches!(store.interrupt(&name("a")).expect("stored"), Interrupted::Nothing(_)));
    store.push(&name("a"), &json("1"), None, 10).expect("stored");
    let Interrupted::Done(change) = store.interrupt(&name("a")).expect("stored") else { panic!("pending") };
    assert_eq!(change.state.status, Status::Idle);
    let claimed = turn(store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"));
    let Interrupted::Done(change) = store.interrupt(&name("a")).expect("stored") else { panic!("running") };
    assert_eq!(change.state.status.name(), "interrupting");
    assert!(matches!(store.interrupt(&name("a")).expect("stored"), Interrupted::Nothing(_)));
    // What it has so far may still be committed.
    assert!(matches!(
        store.commit(&name("a"), fence(&claimed), &json("so far"), 3, None).expect("stored"),
        Committed::Done { .. }
    ));
    let Finished::Done(change) = store.finish(&name("a"), fence(&claimed), &End::Aborted).expect("stored")
    else {
        panic!("acknowledged")
    };
    assert_eq!(change.state.status, Status::Idle);
}

fn the_sweep_ends_dead_leases_as_each_stream_asks(place: &Place) {
    let mut store = place.streams();
    for (at, on_lost) in [("again", OnLost::Pending), ("fail", OnLost::Failed), ("stop", OnLost::Pending)] {
        make_as(&mut *store, NewStream { on_lost: Some(on_lost), ..NewStream::named(Uuid::now_v7(), at) });
        turn(store.claim(&name(at), &claim_by(Uuid::now_v7())).expect("stored"));
    }
    store.interrupt(&name("stop")).expect("stored");
    assert_eq!(store.sweep(Sweep::Dead, 10).expect("stored"), []);
    place.advance(Duration::from_secs(31));
    assert_eq!(store.sweep(Sweep::Dead, 2).expect("stored").len(), 2, "bounded");
    assert_eq!(store.sweep(Sweep::Dead, 10).expect("stored").len(), 1);
    assert_eq!(store.sweep(Sweep::Dead, 10).expect("stored"), []);
    assert_eq!(state(&mut *store, "again").state.status, Status::Pending);
    assert_eq!(state(&mut *store, "stop").state.status, Status::Idle);
    let failed = state(&mut *store, "fail").state;
    assert_eq!((failed.status, failed.error.as_deref()), (Status::Failed, Some("producer_lost")));
}

fn a_replica_that_stops_hands_its_streams_back(place: &Place) {
    let mut store = place.streams();
    let (mine, theirs) = (Uuid::now_v7(), Uuid::now_v7());
    for (at, worker) in [("a", mine), ("b", theirs), ("c", mine)] {
        make(&mut *store, at);
        turn(store.claim(&name(at), &claim_by(worker)).expect("stored"));
    }
    let changes = store.sweep(Sweep::HandBack(mine), 10).expect("stored");
    assert_eq!(changes.iter().map(|c| c.state.status).collect::<Vec<_>>(), [Status::Pending; 2]);
    assert_eq!(state(&mut *store, "b").state.status.worker(), Some(theirs));
}

fn one_renewal_keeps_every_lease_of_a_replica(place: &Place) {
    let mut store = place.streams();
    let worker = Uuid::now_v7();
    let mut ids = Vec::new();
    for at in ["a", "b", "c"] {
        ids.push(make(&mut *store, at).id);
        turn(store.claim(&name(at), &claim_by(worker)).expect("stored"));
    }
    store.interrupt(&name("c")).expect("stored");
    place.advance(Duration::from_secs(20));
    let mut held = store.renew(worker, Duration::from_secs(30)).expect("stored");
    held.sort_by_key(|held| held.stream);
    assert_eq!(held.iter().map(|held| held.stream).collect::<Vec<_>>(), ids);
    assert_eq!(held.iter().map(|held| held.interrupting).collect::<Vec<_>>(), [false, false, true]);
    place.advance(Duration::from_secs(20));
    assert_eq!(store.sweep(Sweep::Dead, 10).expect("stored"), []);
    assert_eq!(store.renew(Uuid::now_v7(), Duration::from_secs(30)).expect("stored"), []);
}

fn whoever_asks_for_work_gets_what_was_pending_longest(place: &Place) {
    let mut store = place.streams();
    for (at, team) in [("r1", "red"), ("b1", "blue"), ("r2", "red")] {
        let new = NewStream {
            labels: Some(labels(&[("team", team), ("kind", "chat")])),
            ..NewStream::named(Uuid::now_v7(), at)
        };
        make_as(&mut *store, new);
    }
    for at in ["r2", "b1", "r1"] {
        store.push(&name(at), &json(at), None, 10).expect("stored");
        place.advance(Duration::from_millis(5));
    }
    let red = labels(&[("team", "red")]);
    let claim = claim_by(Uuid::now_v7());
    let first = turn(store.claim_next(&red, &claim).expect("stored"));
    assert_eq!((first.name.as_str(), first.input.map(|i| i.content.to_vec())), ("r2", Some(b"r2".to_vec())));
    assert_eq!(turn(store.claim_next(&red, &claim).expect("stored")).name, "r1");
    assert_eq!(store.claim_next(&red, &claim).expect("stored"), Claimed::Missing);
    assert_eq!(turn(store.claim_next(&Labels::new(), &claim).expect("stored")).name, "b1");
}
