//! Streams: messages, positions, keys, closing, retention.

use super::*;

on_every_store! {
    a_stream_is_made_once_and_found_by_name_and_by_id
    a_stream_made_again_is_compared_with_what_is_there
    each_message_takes_an_id_and_a_position
    pages_end_before_they_grow_too_big
    a_read_stays_at_the_position_it_began_with
    an_edit_keeps_the_place_and_makes_readers_start_again
    a_removed_message_is_not_read
    the_same_key_gets_the_same_answer_for_a_day
    a_producers_numbers_are_checked_in_order
    stream_seq_only_rises
    a_closed_stream_takes_nothing_more
    a_ttl_slides_with_use_and_then_ends_the_stream
    retention_removes_the_oldest_and_remembers_where
    streams_are_listed_by_label_and_status_in_pages
    positions_tell_where_streams_stand
    a_group_in_which_a_call_fails_is_undone_or_was_none
    another_epoch_has_other_tags
}

fn a_stream_is_made_once_and_found_by_name_and_by_id(place: &Place) {
    let mut store = place.streams();
    let row = make(&mut *store, "chat/1");
    assert_eq!(row.state.status, Status::Idle);
    assert_eq!(store.get(&Address::Id(row.id)).expect("read"), Found::Here(row.clone()));
    assert_eq!(store.get(&name("chat/1")).expect("read"), Found::Here(row.clone()));
    assert_eq!(store.get(&name("chat/2")).expect("read"), Found::Missing);
    assert_eq!(store.delete(&name("chat/1")).expect("stored"), Deleted::Gone(row.id));
    assert_eq!(store.get(&Address::Id(row.id)).expect("read"), Found::Missing);
    assert_eq!(store.delete(&name("chat/1")).expect("stored"), Deleted::Missing);
}

fn a_stream_made_again_is_compared_with_what_is_there(place: &Place) {
    let mut store = place.streams();
    let new = NewStream {
        content_type: Some("text/plain".into()),
        labels: Some(labels(&[("team", "red")])),
        expiry: Some(Expiry::Ttl(Duration::from_secs(60))),
        on_lost: Some(OnLost::Failed),
        closed: Some(false),
        ..NewStream::named(Uuid::now_v7(), "a")
    };
    make_as(&mut *store, new.clone());
    let again = |store: &mut dyn StreamStore, new: &NewStream| {
        let new = NewStream { id: Uuid::now_v7(), ..new.clone() };
        store.create(&new).expect("stored")
    };
    assert!(matches!(again(&mut *store, &new), Created::Same(_)));
    assert!(matches!(again(&mut *store, &NewStream::named(Uuid::nil(), "a")), Created::Same(_)));
    let differing = [
        NewStream { content_type: Some("text/html".into()), ..new.clone() },
        NewStream { labels: Some(Labels::new()), ..new.clone() },
        NewStream { expiry: Some(Expiry::Never), ..new.clone() },
        NewStream { on_lost: Some(OnLost::Pending), ..new.clone() },
        NewStream { closed: Some(true), ..new },
    ];
    for new in &differing {
        assert!(matches!(again(&mut *store, new), Created::Differs(_)), "{new:?}");
    }
}

fn each_message_takes_an_id_and_a_position(place: &Place) {
    let mut store = place.streams();
    let made = make(&mut *store, "a");
    let Appended::Done { change, first, last, pos, again: false, .. } =
        store.append(&name("a"), &messages([json("1"), json("22"), json("333")])).expect("stored")
    else {
        panic!("appended")
    };
    assert_eq!((first, last, pos), (1, 3, 3));
    assert_eq!(
        (change.stream, change.tag, change.state.pos, change.state.history_pos),
        (made.id, made.tag, 3, 3)
    );
    // A status and a queue change take positions of their own; the next message comes after them.
    store.push(&name("a"), &json("input"), None, 10).expect("stored");
    let Appended::Done { change, first: 4, pos, .. } = say(&mut *store, "a", "4444") else {
        panic!("appended")
    };
    assert!(pos > 4 && change.state.queue_pos > 3 && change.state.status_pos > 3, "{change:?}");
    let page = all_of(&mut *store, "a");
    assert_eq!(texts(&page), ["1", "22", "333", "4444"]);
    assert_eq!(page.messages.iter().map(|m| m.pos).collect::<Vec<_>>(), [1, 2, 3, pos]);
    assert_eq!((page.stream.bytes, page.upto, page.more), (10, change.state.pos, false));
    assert_eq!(page.queue.len(), 1);
    assert_eq!(page.messages[0].role.as_deref(), Some("user"));
}

fn pages_end_before_they_grow_too_big(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let big = "x".repeat(100_000);
    let sizes = ["s".repeat(10), big.clone(), big.clone(), big.clone(), "y".repeat(400_000), "s".into()];
    store.append(&name("a"), &messages(sizes.iter().map(|text| json(text)))).expect("stored");
    let (mut after, mut upto, mut pages) = (0, None, Vec::new());
    loop {
        let read = CatchUp { after, upto, bytes_max: PAGE_BYTES };
        let Found::Here(page) = store.catch_up(&name("a"), read).expect("read") else { panic!("there") };
        pages.push(page.messages.iter().map(|m| m.content.len()).collect::<Vec<_>>());
        (after, upto) = (page.messages.last().expect("a page has a row").pos, Some(page.upto));
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, [vec![10, 100_000, 100_000], vec![100_000], vec![400_000], vec![1]]);
}

fn a_read_stays_at_the_position_it_began_with(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    say(&mut *store, "a", "1");
    let first = all_of(&mut *store, "a");
    say(&mut *store, "a", "2");
    let read = CatchUp { after: 0, upto: Some(first.upto), bytes_max: PAGE_BYTES };
    let Found::Here(page) = store.catch_up(&name("a"), read).expect("read") else { panic!("there") };
    assert_eq!(texts(&page), ["1"]);
    let read = CatchUp { after: first.upto, upto: None, bytes_max: PAGE_BYTES };
    let Found::Here(page) = store.catch_up(&name("a"), read).expect("read") else { panic!("there") };
    assert_eq!(texts(&page), ["2"]);
}

fn an_edit_keeps_the_place_and_makes_readers_start_again(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    store.append(&name("a"), &messages([json("one"), json("two")])).expect("stored");
    let Edited::Done(change) =
        store.edit(&name("a"), 1, &Draft { role: None, ..json("ONE!") }).expect("stored")
    else {
        panic!("edited")
    };
    assert_eq!((change.state.generation, change.state.pos), (1, 3));
    let page = all_of(&mut *store, "a");
    assert_eq!(texts(&page), ["ONE!", "two"]);
    assert_eq!((page.messages[0].id, page.messages[0].pos, page.stream.bytes), (1, 1, 7));
    assert_eq!(page.messages[0].role.as_deref(), Some("user"), "an edit without a role keeps it");
    assert_eq!(store.edit(&name("a"), 9, &json("x")).expect("stored"), Edited::NoMessage);
    assert_eq!(store.edit(&name("b"), 1, &json("x")).expect("stored"), Edited::Missing);
}

fn a_removed_message_is_not_read(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    store.append(&name("a"), &messages([json("one"), json("two")])).expect("stored");
    assert!(matches!(store.remove(&name("a"), 1).expect("stored"), Edited::Done(_)));
    assert_eq!(store.remove(&name("a"), 1).expect("stored"), Edited::NoMessage);
    let page = all_of(&mut *store, "a");
    assert_eq!((texts(&page), page.stream.bytes, page.stream.state.generation), (vec!["two".into()], 3, 1));
    let Appended::Done { first: 3, .. } = say(&mut *store, "a", "three") else { panic!("ids go on") };
}

fn the_same_key_gets_the_same_answer_for_a_day(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let keyed = Append { key: Some("k".into()), ..messages([json("once")]) };
    let Appended::Done { first: 1, pos: 1, again: false, .. } =
        store.append(&name("a"), &keyed).expect("stored")
    else {
        panic!("appended")
    };
    let Appended::Done { first: 1, pos: 1, again: true, .. } =
        store.append(&name("a"), &keyed).expect("stored")
    else {
        panic!("remembered")
    };
    for again in [false, true] {
        let pushed = store.push(&name("a"), &json("in"), Some("k"), 1).expect("stored");
        assert!(matches!(pushed, Queued::Done { id: 1, again: a, .. } if a == again), "{pushed:?}");
    }
    let claim = Claim { key: Some("k".into()), ..claim_by(Uuid::now_v7()) };
    let first = turn(store.claim(&name("a"), &claim).expect("stored"));
    // The one who asks again has drawn another lease, and gets the first.
    let second = turn(store.claim(&name("a"), &Claim { lease: [1; 32], ..claim }).expect("stored"));
    assert_eq!((second.turn, second.lease, second.again), (first.turn, first.lease, true));
    assert_eq!(second.input, first.input);
    for again in [false, true] {
        let done = store.commit(&name("a"), fence(&first), &json("answer"), 2, Some("k")).expect("stored");
        assert!(
            matches!(&done, Committed::Done { message, again: a, .. } if message.id == 2 && *a == again),
            "{done:?}"
        );
    }
    make(&mut *store, "b");
    store.push(&name("b"), &json("work"), None, 1).expect("stored");
    let next = Claim { key: Some("n".into()), ..claim_by(Uuid::now_v7()) };
    let first = turn(store.claim_next(&Labels::new(), &next).expect("stored"));
    let again = turn(store.claim_next(&Labels::new(), &Claim { lease: [2; 32], ..next }).expect("stored"));
    assert_eq!((again.name.as_str(), again.lease, again.again), ("b", first.lease, true));

    assert_eq!(store.forget_keys(100).expect("stored"), 0);
    place.advance(Duration::from_secs(24 * 3_600 + 1));
    let Appended::Done { first: 3, again: false, .. } = store.append(&name("a"), &keyed).expect("stored")
    else {
        panic!("forgotten")
    };
    assert_eq!(store.forget_keys(2).expect("stored"), 2, "bounded");
    assert_eq!(store.forget_keys(100).expect("stored"), 2);
}

fn a_producers_numbers_are_checked_in_order(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let mut send = |epoch, seq, close| {
        let producer = Some(Producer { id: "p".into(), epoch, seq });
        let append = Append { producer, close, ..messages([json(&format!("{epoch}-{seq}"))]) };
        store.append(&name("a"), &append).expect("stored")
    };
    assert_eq!(send(0, 3, false), Appended::Gap { expected: 0 }, "a producer begins at 0");
    assert!(matches!(send(0, 0, false), Appended::Done { .. }));
    assert!(matches!(send(0, 1, false), Appended::Done { .. }));
    assert!(matches!(send(0, 0, false), Appended::Duplicate { seq: 1, .. }));
    assert_eq!(send(0, 3, false), Appended::Gap { expected: 2 });
    assert_eq!(send(1, 1, false), Appended::EpochNotAtZero);
    assert!(matches!(send(1, 0, false), Appended::Done { .. }));
    assert_eq!(send(0, 2, false), Appended::StaleEpoch(1));
    assert!(matches!(send(1, 1, true), Appended::Done { change, .. } if change.state.closed_pos.is_some()));
    // Closed comes after what is known to be stale or sent before, and before a gap.
    assert_eq!(send(0, 2, false), Appended::StaleEpoch(1));
    assert!(matches!(send(1, 1, true), Appended::Duplicate { seq: 1, .. }));
    assert!(matches!(send(1, 2, false), Appended::Closed(_)));
    assert!(matches!(send(1, 9, false), Appended::Closed(_)));
    assert_eq!(texts(&all_of(&mut *store, "a")), ["0-0", "0-1", "1-0", "1-1"]);
}

fn stream_seq_only_rises(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let mut send = |seq: &str| {
        let append = Append { stream_seq: Some(seq.into()), ..messages([json("1")]) };
        store.append(&name("a"), &append).expect("stored")
    };
    assert!(matches!(send("10"), Appended::Done { .. }));
    assert_eq!(send("10"), Appended::SeqRegressed("10".into()));
    assert!(matches!(send("9"), Appended::Done { .. }), "texts compare byte by byte");
    assert_eq!(send("80"), Appended::SeqRegressed("9".into()));
}

fn a_closed_stream_takes_nothing_more(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let close = Append { close: true, ..messages([json("last")]) };
    let Appended::Done { change, last: 1, .. } = store.append(&name("a"), &close).expect("stored") else {
        panic!("closed")
    };
    assert_eq!((change.state.history_pos, change.state.closed_pos), (1, Some(2)));
    assert!(matches!(say(&mut *store, "a", "more"), Appended::Closed(_)));
    let close = Append { close: true, ..Append::default() };
    assert!(matches!(store.append(&name("a"), &close).expect("stored"), Appended::Done { again: true, .. }));
    assert!(matches!(store.push(&name("a"), &json("1"), None, 9).expect("stored"), Queued::Closed(_)));
    assert!(matches!(
        store.claim(&name("a"), &claim_by(Uuid::now_v7())).expect("stored"),
        Claimed::Closed(_)
    ));
    let typed = Append { content_type: Some("text/plain".into()), ..messages([json("1")]) };
    make(&mut *store, "b");
    assert_eq!(
        store.append(&name("b"), &typed).expect("stored"),
        Appended::OtherType("application/json".into())
    );
    let made =
        NewStream { closed: Some(true), first: vec![json("all")], ..NewStream::named(Uuid::now_v7(), "c") };
    assert!(make_as(&mut *store, made).state.closed_pos.is_some());
}

fn a_ttl_slides_with_use_and_then_ends_the_stream(place: &Place) {
    let mut store = place.streams();
    let ttl = |at: &str| NewStream {
        expiry: Some(Expiry::Ttl(Duration::from_secs(100))),
        ..NewStream::named(Uuid::now_v7(), at)
    };
    let row = make_as(&mut *store, ttl("a"));
    let fixed = row.created_at + Duration::from_secs(200);
    let other = make_as(
        &mut *store,
        NewStream { expiry: Some(Expiry::At(fixed)), ..NewStream::named(Uuid::now_v7(), "fixed") },
    );
    // Too little to be worth a write.
    place.advance(Duration::from_secs(5));
    store.touch(&[row.id, other.id]).expect("stored");
    assert_eq!(state(&mut *store, "a").expires_at, row.expires_at);
    place.advance(Duration::from_secs(65));
    store.touch(&[row.id, other.id]).expect("stored");
    assert!(state(&mut *store, "a").expires_at > row.expires_at);
    assert_eq!(state(&mut *store, "fixed").expires_at, Some(fixed), "a fixed end never slides");
    place.advance(Duration::from_secs(90));
    say(&mut *store, "a", "an append slides it as well");
    place.advance(Duration::from_secs(90));
    assert_eq!(store.get(&name("fixed")).expect("read"), Found::Missing);
    state(&mut *store, "a");
    place.advance(Duration::from_secs(20));
    assert_eq!(store.get(&name("a")).expect("read"), Found::Missing);
    assert_eq!(say(&mut *store, "a", "too late"), Appended::Missing);
    assert_eq!(store.list(&ListStreams { limit: 10, ..ListStreams::default() }).expect("read"), []);
    // The name is free again before anyone swept it.
    make_as(&mut *store, ttl("a"));
    assert_eq!(store.expire(10).expect("stored"), [other.id]);
    assert_eq!(store.expire(10).expect("stored"), Vec::<Uuid>::new());
}

fn retention_removes_the_oldest_and_remembers_where(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "old");
    let own = Keep { bytes: Some(6), ..Keep::default() };
    make_as(
        &mut *store,
        NewStream {
            keep: own,
            content_type: Some("application/json".into()),
            ..NewStream::named(Uuid::now_v7(), "full")
        },
    );
    say(&mut *store, "old", "1");
    place.advance(Duration::from_secs(50));
    say(&mut *store, "old", "2");
    store.append(&name("full"), &messages(["aaa", "bbb", "ccc"].map(json))).expect("stored");
    place.advance(Duration::from_secs(20));
    let keep = Keep { age: Some(Duration::from_secs(60)), bytes: None };
    let changes = store.trim(keep, 10).expect("stored");
    assert_eq!(changes.iter().map(|c| c.state.trimmed_pos).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(texts(&all_of(&mut *store, "old")), ["2"]);
    assert_eq!(texts(&all_of(&mut *store, "full")), ["bbb", "ccc"]);
    let row = state(&mut *store, "full");
    assert_eq!((row.bytes, row.state.trimmed_pos, row.state.pos), (6, 1, 3));
    assert_eq!(store.trim(keep, 10).expect("stored"), []);
    let early = Some(ForkAt::Pos { tag: row.tag, generation: 0, pos: 0 });
    let new = NewStream { fork: fork("full", early, 0), ..NewStream::named(Uuid::now_v7(), "f") };
    assert!(matches!(store.create(&new).expect("stored"), Created::New(_)), "the beginning is always there");
}

fn streams_are_listed_by_label_and_status_in_pages(place: &Place) {
    let mut store = place.streams();
    for i in 0..5 {
        let new = NewStream {
            labels: Some(labels(&[("even", if i % 2 == 0 { "yes" } else { "no" })])),
            ..NewStream::named(Uuid::now_v7(), format!("s{i}"))
        };
        make_as(&mut *store, new);
    }
    store.push(&name("s4"), &json("1"), None, 1).expect("stored");
    let mut names = |list: ListStreams| {
        store.list(&list).expect("read").into_iter().map(|row| (row.name, row.id)).collect::<Vec<_>>()
    };
    let first = names(ListStreams { limit: 2, ..ListStreams::default() });
    assert_eq!(first.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["s0", "s1"]);
    let rest = names(ListStreams { after: Some(first[1].1), limit: 10, ..ListStreams::default() });
    assert_eq!(rest.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["s2", "s3", "s4"]);
    let even = labels(&[("even", "yes")]);
    let even = names(ListStreams {
        labels: even,
        status: vec!["idle", "done"],
        limit: 10,
        ..ListStreams::default()
    });
    assert_eq!(even.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["s0", "s2"]);
    assert_eq!(names(ListStreams { status: vec!["pending"], limit: 10, ..ListStreams::default() }).len(), 1);
}

fn positions_tell_where_streams_stand(place: &Place) {
    let mut store = place.streams();
    let mut ids = Vec::new();
    for i in 0..70 {
        ids.push(make(&mut *store, &format!("s{i}")).id);
    }
    say(&mut *store, "s3", "1");
    ids.push(Uuid::now_v7());
    let mut changes = store.positions(&ids).expect("read");
    changes.sort_by_key(|change| change.stream);
    assert_eq!(changes.iter().map(|change| change.stream).collect::<Vec<_>>(), ids[..70]);
    assert_eq!(changes[3], state(&mut *store, "s3").change());
    assert_eq!(changes[4].state.pos, 0);
}

fn a_group_in_which_a_call_fails_is_undone_or_was_none(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    let taken = make(&mut *store, "b").id;
    let mut outcomes = Vec::new();
    let fate = store
        .group(&mut |store| {
            outcomes.push(say(store, "a", "1"));
            outcomes.push(say(store, "a", "2"));
            assert_eq!(texts(&all_of(store, "a")), ["1", "2"]);
        })
        .expect("committed");
    assert_eq!(fate, Grouped::Durable);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Appended::Done { .. })));
    let mut other = place.streams();
    assert_eq!(texts(&all_of(&mut *other, "a")), ["1", "2"]);

    let fate = store
        .group(&mut |store| {
            say(store, "a", "3");
            // The id is taken: the database refuses the row.
            let failed = store.create(&NewStream::named(taken, "c"));
            assert_eq!(failed.expect_err("a double id").class, Class::Split);
            // Where the group is lost, what comes behind in it is not even tried.
            let behind = store.append(&name("a"), &Append::default());
            assert!(behind.is_ok() || behind.is_err_and(|error| error.code == "undone"));
        })
        .expect("ended");
    match fate {
        Grouped::Undone => assert_eq!(texts(&all_of(&mut *other, "a")), ["1", "2"]),
        Grouped::Durable => assert_eq!(texts(&all_of(&mut *other, "a")), ["1", "2", "3"]),
    }
    assert_eq!(other.get(&name("c")).expect("read"), Found::Missing);
    // And the store goes on.
    say(&mut *store, "a", "4");
    assert_eq!(texts(&all_of(&mut *other, "a")).last().map(String::as_str), Some("4"));
}

fn another_epoch_has_other_tags(place: &Place) {
    let mut store = place.streams();
    let (a, b) = (make(&mut *store, "a"), make(&mut *store, "b"));
    assert_ne!(a.tag, b.tag);
    assert_eq!(state(&mut *place.streams(), "a").tag, a.tag);
    assert_eq!(place.stores.identity(), place.stores.identity());
}
