//! Streams that begin with the history of another.

use super::*;

on_every_store! {
    a_fork_has_its_sources_history_and_goes_its_own_way
    a_fork_may_cut_the_next_row
    a_fork_of_json_counts_messages
    a_deleted_source_stays_until_its_last_fork_is_gone
}

fn a_fork_has_its_sources_history_and_goes_its_own_way(place: &Place) {
    let mut store = place.streams();
    let source = make(&mut *store, "a");
    store.append(&name("a"), &messages([json("1"), json("2"), json("3")])).expect("stored");
    let at = Some(ForkAt::Pos { tag: source.tag, generation: 0, pos: 2 });
    let new = NewStream { fork: fork("a", at, 0), ..NewStream::named(Uuid::now_v7(), "f") };
    let forked = make_as(&mut *store, new.clone());
    assert_eq!((forked.tag, forked.content_type.as_str()), (source.tag, "application/json"));
    assert_eq!((forked.state.pos, forked.state.history_pos, forked.state.last_msg), (2, 2, 2));
    assert_eq!(forked.forked_from, Some(ForkedFrom { source: source.id, pos: 2, beyond: 0 }));
    assert!(matches!(
        store.create(&NewStream { id: Uuid::now_v7(), ..new }).expect("stored"),
        Created::Same(_)
    ));
    say(&mut *store, "f", "own");
    store.edit(&name("a"), 1, &json("changed")).expect("stored");
    assert_eq!(texts(&all_of(&mut *store, "f")), ["1", "2", "own"]);
    assert_eq!(texts(&all_of(&mut *store, "a")), ["changed", "2", "3"]);
    assert_eq!(state(&mut *store, "f").bytes, 5);

    let refused = |store: &mut dyn StreamStore, source: &str, at| {
        let new = NewStream { fork: fork(source, at, 0), ..NewStream::named(Uuid::now_v7(), "g") };
        store.create(&new).expect("stored")
    };
    let pos = |tag, generation, pos| Some(ForkAt::Pos { tag, generation, pos });
    assert_eq!(refused(&mut *store, "nobody", None), Created::NoSource);
    assert_eq!(refused(&mut *store, "a", pos(source.tag, 1, 99)), Created::BadForkOffset);
    assert_eq!(refused(&mut *store, "a", pos([0; 4], 1, 1)), Created::BadForkOffset);
    assert_eq!(refused(&mut *store, "a", pos(source.tag, 0, 1)), Created::ForkTrimmed, "before the edit");
    let typed = NewStream {
        content_type: Some("text/plain".into()),
        fork: fork("a", None, 0),
        ..NewStream::named(Uuid::now_v7(), "g")
    };
    assert_eq!(store.create(&typed).expect("stored"), Created::OtherType("application/json".into()));
    let empty =
        NewStream { fork: fork("a", Some(ForkAt::Start), 0), ..NewStream::named(Uuid::now_v7(), "e") };
    assert_eq!(make_as(&mut *store, empty).state.history_pos, 0);
}

fn a_fork_may_cut_the_next_row(place: &Place) {
    let mut store = place.streams();
    make_as(&mut *store, NewStream::named(Uuid::now_v7(), "a"));
    store.append(&name("a"), &messages([bytes(b"hello "), bytes(b"world")])).expect("stored");
    let tag = state(&mut *store, "a").tag;
    let at = Some(ForkAt::Pos { tag, generation: 0, pos: 1 });
    for (beyond, name, expected) in [(3, "cut", "hello wor"), (5, "whole", "hello world")] {
        let row = make_as(
            &mut *store,
            NewStream { fork: fork("a", at, beyond), ..NewStream::named(Uuid::now_v7(), name) },
        );
        assert_eq!(texts(&all_of(&mut *store, name)).concat(), expected);
        assert_eq!(row.state.history_pos, 2);
    }
    for (at, beyond) in [(at, 6), (None, 1)] {
        let new = NewStream { fork: fork("a", at, beyond), ..NewStream::named(Uuid::now_v7(), "x") };
        assert_eq!(store.create(&new).expect("stored"), Created::BadForkOffset);
    }
}

fn a_fork_of_json_counts_messages(place: &Place) {
    let mut store = place.streams();
    make(&mut *store, "a");
    store.append(&name("a"), &messages(["1", "2", "3", "4"].map(json))).expect("stored");
    let tag = state(&mut *store, "a").tag;
    let at = Some(ForkAt::Pos { tag, generation: 0, pos: 1 });
    make_as(&mut *store, NewStream { fork: fork("a", at, 2), ..NewStream::named(Uuid::now_v7(), "f") });
    assert_eq!(texts(&all_of(&mut *store, "f")), ["1", "2", "3"]);
    let new = NewStream { fork: fork("a", at, 4), ..NewStream::named(Uuid::now_v7(), "x") };
    assert_eq!(store.create(&new).expect("stored"), Created::BadForkOffset);
}

fn a_deleted_source_stays_until_its_last_fork_is_gone(place: &Place) {
    let mut store = place.streams();
    let root = make(&mut *store, "root");
    say(&mut *store, "root", "1");
    let middle = make_as(
        &mut *store,
        NewStream { fork: fork("root", None, 0), ..NewStream::named(Uuid::now_v7(), "middle") },
    );
    let leaf = make_as(
        &mut *store,
        NewStream { fork: fork("middle", None, 0), ..NewStream::named(Uuid::now_v7(), "leaf") },
    );
    assert_eq!(store.delete(&name("root")).expect("stored"), Deleted::Kept(root.id));
    assert_eq!(store.delete(&name("root")).expect("stored"), Deleted::Already);
    assert_eq!(store.get(&name("root")).expect("read"), Found::Gone);
    assert_eq!(say(&mut *store, "root", "2"), Appended::Gone);
    assert_eq!(store.create(&NewStream::named(Uuid::now_v7(), "root")).expect("stored"), Created::Kept);
    let new = NewStream { fork: fork("root", None, 0), ..NewStream::named(Uuid::now_v7(), "late") };
    assert_eq!(store.create(&new).expect("stored"), Created::SourceGone);
    assert_eq!(store.delete(&name("middle")).expect("stored"), Deleted::Kept(middle.id));
    assert_eq!(texts(&all_of(&mut *store, "leaf")), ["1"]);
    assert_eq!(store.delete(&name("leaf")).expect("stored"), Deleted::Gone(leaf.id));
    for at in ["root", "middle", "leaf"] {
        assert_eq!(store.get(&name(at)).expect("read"), Found::Missing, "{at}");
        make(&mut *store, at);
    }
}
