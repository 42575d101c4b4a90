//! Replicas that lie, workers that lost their turn, errands on bad links: what comes over a relay is held against
//! what was asked for, a turn that is another's takes nothing, and whoever asks is told once.

use std::collections::BTreeMap;

use serde_json::Value;
use towpath::engine::streams::{ClaimedTurn, RELAY_PATH, Then, Wanted, address};
use towpath::front::Route;
use towpath::rt::Lock;
use towpath::state::stream::LeaseHash;
use towpath::store::streams::{Draft, End, Fence, Kind};
use towpath::wire::{Frame, Happened, LinkBatch, LinkHandle, Outlet, Owner};

use super::*;

/// The door of a replica that lets everybody in and answers with what is not so.
struct Liar {
    rt: Rt,
    link: Lock<Option<LinkHandle>>,
}

impl Liar {
    fn serve(t: &Test, world: &World) -> Serving {
        let rt = t.node("liar");
        let mut node = world.net.node("liar", &rt);
        let mut router = Router::new();
        let route = Route::get(&format!("{RELAY_PATH}{{id}}")).about("Lies").open().answers(&[101]);
        router.add(route.to(move |_, reply| {
            let liar = Arc::new(Liar { rt: rt.clone(), link: Lock::new(None) });
            let hears = liar.clone();
            let outlet = Outlet::new(move |batch| {
                hears.hear(batch);
                Ok(())
            });
            *liar.link.lock() = reply.websocket(&[], 1 << 20, Owner::new(&outlet, 1));
        }));
        node.serve(Limits::default(), Arc::new(router)).expect("it starts")
    }

    fn hear(&self, batch: LinkBatch) {
        for event in batch {
            match event.what {
                Happened::Text(text) => {
                    let said: Value = serde_json::from_str(&text).expect("replicas speak JSON");
                    match (said["ask"][0].as_u64(), said["ask"][1].as_u64()) {
                        (Some(turn), Some(after)) => self.lie(turn, after),
                        // It lives: nobody is to find it out by its silence.
                        _ => self.say(&text),
                    }
                }
                Happened::Closed(_) => *self.link.lock() = None,
                _ => {}
            }
        }
    }

    fn lie(&self, turn: u64, after: u64) {
        let (older, newer) = (turn - 1, turn + 1);
        let lies = [
            format!(r#"{{"part":[{older},{},"of an older turn"]}}"#, after + 1),
            format!(r#"{{"part":[{turn},{after},"again"]}}"#),
            format!(r#"{{"part":[{turn},{},"behind a gap"]}}"#, after + 2),
            format!(r#"{{"part":[{turn},{},"made up"]}}"#, after + 1),
            format!(r#"{{"part":[{newer},1,"of a turn that nobody began"]}}"#),
            format!(r#"{{"evicted":[{turn},{}]}}"#, after + 5),
            format!(r#"{{"evicted":[{newer},3]}}"#),
            format!(r#"{{"ended":[{turn},{after}]}}"#),
            format!(r#"{{"ended":[{turn},{}]}}"#, after + 3),
            format!(r#"{{"ended":[{older},9]}}"#),
            r#"{"elsewhere":null}"#.to_owned(),
            format!(r#"{{"part":[{turn}]}}"#),
            "no JSON".to_owned(),
        ];
        for _ in 0..4 {
            let at = self.rt.rand("lie").below(lies.len() as u64) as usize;
            self.say(&lies[at]);
        }
    }

    fn say(&self, text: &str) {
        let link = self.link.lock().clone();
        if let Some(link) = link {
            link.send(Frame::text(text));
        }
    }
}

/// Three replicas, of which others look for the first at this address.
fn with_first_at(t: &Test, world: &World, url: &str) -> [Replica; 3] {
    let a = world.replica_reached_at("a", &t.node("a"), url).expect("it starts");
    let others = ["b", "c"].map(|name| world.replica(name, &t.node(name)).expect("it starts"));
    a.streams().create(CHAT, CreateStream::default()).expect("made");
    t.advance(secs(6));
    let [b, c] = others;
    [a, b, c]
}

fn lied_to(t: &Test) {
    let world = World::new(t);
    let _serving = Liar::serve(t, &world);
    let [a, b, c] = with_first_at(t, &world, "ws://liar");
    let mut viewers = [Viewer::of(&a), Viewer::of(&b), Viewer::of(&c)];
    viewers.iter_mut().for_each(Viewer::until_live);
    for round in 1..=3 {
        let turn = a.streams().run(CHAT).expect("nobody runs it");
        for n in 1..=3 {
            turn.part(&n).expect("held");
            t.advance(Duration::from_millis(t.draw("pause", 1_000)));
        }
        turn.commit(None, &"said").expect("held");
        turn.part(&4).expect("held");
        t.advance(Duration::from_millis(t.draw("pause", 1_000)));
        turn.finish().expect("held");
        for viewer in &mut viewers {
            viewer.until(is_status("done"));
            viewer.check();
            assert_eq!(
                viewer.messages,
                (1..=round).collect::<Vec<_>>(),
                "what is durable comes from the store"
            );
        }
    }
    // Each turn but the last left a draft, which the next one clears.
    let seen = (viewers[0].parts, &viewers[0].resets[..]);
    assert_eq!(seen, (12, &[Reset::Turn, Reset::Turn][..]), "where it runs nobody is lied to");
    drop(viewers);
    t.advance(secs(40));
    for replica in [&a, &b, &c] {
        assert_eq!(replica.figures.open_links(), (0, 0), "links that nobody closed on {}", replica.name);
    }
}

#[test]
fn sim_a_worker_that_lies_takes_nobody_out_of_order_and_hides_no_message() {
    sweep("sim_a_worker_that_lies_takes_nobody_out_of_order_and_hides_no_message", 20)
        .must_reach(&["relay_parts_evicted"])
        .run(lied_to)
        .assert_ok();
}

/// A dial that ends at another replica than the one it was for: it has no ticket for that one.
fn misled(t: &Test) {
    let world = World::new(t);
    let [a, b, c] = with_first_at(t, &world, "ws://c");
    let mut viewer = Viewer::of(&b);
    viewer.until_live();
    let turn = a.streams().run(CHAT).expect("nobody runs it");
    turn.part(&1).expect("held");
    viewer.until(|event| matches!(event.what, What::Degraded { what: "relay" }));
    turn.commit(None, &"said").expect("held");
    viewer.until(is_message(1));
    turn.finish().expect("held");
    viewer.until(is_status("done"));
    viewer.check();
    assert_eq!(viewer.parts, 0, "nobody else's parts");
    drop(viewer);
    t.advance(secs(40));
    assert_eq!((b.figures.open_links().0, c.figures.open_links().1), (0, 0));
}

#[test]
fn sim_a_dial_that_another_replica_answers_is_not_let_in() {
    sweep("sim_a_dial_that_another_replica_answers_is_not_let_in", 10).run(misled).assert_ok();
}

/// Asks and waits to be told.
fn asked<T: Send + 'static>(t: &Test, ask: impl FnOnce(Then<T>)) -> std::result::Result<T, StreamError> {
    let (tell, told) = t.rt().channel("asked", 1);
    ask(Box::new(move |answer| drop(tell.try_send(answer))));
    told.recv_deadline(t.now() + secs(120)).expect("whoever asks is told")
}

fn claim(t: &Test, replica: &Replica) -> (ClaimedTurn, Fence) {
    let claimed = asked(t, |then| replica.streams().claim_then(Wanted::Stream(address(CHAT)), None, then));
    let claimed = claimed.expect("nobody runs it").expect("the stream is there");
    let fence = Fence { turn: claimed.turn, lease: LeaseHash::of(&claimed.lease) };
    (claimed, fence)
}

fn draft(text: &str) -> Draft {
    Draft { kind: Kind::Json, role: None, content: format!("\"{text}\"").into_bytes().into() }
}

/// A worker whose lease ran out while it could not reach the store, and that has not heard of it.
fn fenced(t: &Test) {
    let world = World::new(t);
    let [a, b, c] = world.three(t);
    let mut viewers = [Viewer::of(&a), Viewer::of(&c)];
    let (claimed, old) = claim(t, &a);
    let stream = claimed.stream;
    let parts = |replica: &Replica, n: u32| {
        let part = vec![Arc::from(n.to_string())];
        asked(t, |then| replica.streams().parts_then(stream, old, Some(n), part, then))
    };
    for n in 1..=2 {
        parts(&a, n).expect("held");
    }
    viewers.iter_mut().for_each(|viewer| viewer.until(is_part(1, 2)));
    world.stores.set_faults(StoreFaults { before: 1, ..StoreFaults::CALM });
    t.advance(secs(45));
    world.stores.set_faults(StoreFaults::CALM);
    let mut new = b.streams().run(CHAT);
    let deadline = t.now() + secs(120);
    while new.is_err() {
        assert!(t.now() < deadline, "a worker that is silent keeps its turn: {new:?}");
        t.advance(secs(1));
        new = b.streams().run(CHAT);
    }
    let new = new.expect("it was claimed");
    new.part(&1).expect("held");
    for replica in [&a, &c] {
        let commit = asked(t, |then| {
            replica.streams().commit_then(stream, old, draft("late"), Some("key".into()), then)
        });
        assert!(commit.as_ref().is_err_and(is_over), "{}: {commit:?}", replica.name);
        let end = asked(t, |then| replica.streams().end_then(stream, old, End::Done, then));
        assert!(end.as_ref().is_err_and(is_over), "{}: {end:?}", replica.name);
    }
    // A part is fenced by the room, which knows as soon as it has read what was written elsewhere: after a read
    // that failed it tries again, and any of its threads may stall for a second meanwhile.
    let deadline = t.now() + secs(5);
    while !claimed.cancel.is_cancelled() {
        assert!(t.now() < deadline, "whoever feeds it is told to stop");
        t.advance(Duration::from_millis(100));
    }
    for replica in [&a, &c] {
        let part = parts(replica, 3);
        assert!(part.as_ref().is_err_and(is_over), "{}: {part:?}", replica.name);
    }
    new.commit(None, &"mine").expect("held");
    for viewer in &mut viewers {
        viewer.until(is_message(1));
        viewer.check();
        assert_eq!((&viewer.messages[..], viewer.turn), (&[1][..], new.number()));
    }
    new.finish().expect("held");
}

#[test]
fn sim_trap_a_worker_whose_lease_ran_out_unnoticed_is_fenced_on_every_replica() {
    sweep("sim_trap_a_worker_whose_lease_ran_out_unnoticed_is_fenced_on_every_replica", 10)
        .run(fenced)
        .assert_ok();
}

/// Errands over links that are cut: each asker is told once, and what is asked again under its key is done once.
fn errands(t: &Test) {
    let world = World::new(t);
    let [a, b, c] = world.three(t);
    let mut viewer = Viewer::of(&a);
    viewer.until_live();
    let (claimed, fence) = claim(t, &a);
    let stream = claimed.stream;
    let told: Arc<Lock<BTreeMap<u64, Vec<bool>>>> = Arc::default();
    let note = |n: u64| {
        let told = told.clone();
        move |well: bool| told.lock().entry(n).or_default().push(well)
    };
    let mut commits = Vec::new();
    let asks = 16;
    world.net.set_faults(NetFaults::ROUGH);
    for n in 0..asks {
        let via = [&b, &c][t.draw("via", 2) as usize];
        let (streams, note) = (via.streams(), note(n));
        match t.draw("errand", 5) {
            0 => streams.keepalive_then(stream, fence, Box::new(move |it| note(it.is_ok()))),
            1 => streams.read_turn_then(stream, 1, 0, false, Box::new(move |it| note(it.is_ok()))),
            2 => streams.cancel_of_then(stream, fence, Box::new(move |it| note(it.is_ok()))),
            3 => {
                let part = vec![Arc::from("1")];
                streams.parts_then(stream, fence, None, part, Box::new(move |it| note(it.is_ok())));
            }
            _ => {
                commits.push(n);
                let key = Some(format!("key {n}"));
                streams.commit_then(stream, fence, draft("x"), key, Box::new(move |it| note(it.is_ok())));
            }
        }
        match t.draw("trouble", 6) {
            0 => world.net.cut("a", &via.name),
            1 => world.net.partition("a", &via.name),
            2 => world.net.heal(),
            _ => {}
        }
        t.advance(Duration::from_millis(t.draw("pause", 60)));
    }
    world.net.set_faults(NetFaults::CALM);
    world.net.heal();
    t.advance(secs(40));
    let told = told.lock().clone();
    assert!(
        told.len() as u64 == asks && told.values().all(|times| times.len() == 1),
        "each is told once: {told:?}"
    );
    for n in &commits {
        let key = Some(format!("key {n}"));
        let again = asked(t, |then| c.streams().commit_then(stream, fence, draft("x"), key, then));
        again.expect("all is well");
    }
    asked(t, |then| b.streams().end_then(stream, fence, End::Done, then)).expect("held");
    viewer.until(is_status("done"));
    viewer.check();
    assert_eq!(viewer.messages.len(), commits.len(), "each key is one message");
}

#[test]
fn sim_what_is_carried_over_bad_links_is_told_once_and_done_once_under_its_key() {
    sweep("sim_what_is_carried_over_bad_links_is_told_once_and_done_once_under_its_key", 20)
        .run(errands)
        .assert_ok();
}

#[test]
fn sim_an_errand_that_is_lost_with_its_link_is_found() {
    is_found("errand lost with its link", 200, errands);
}

/// The worker changes while the link to the one before is still open.
fn moved_on(t: &Test) {
    let world = World::new(t);
    let [a, b, c] = world.three(t);
    for worker in [&a, &b, &a] {
        let (claimed, fence) = claim(t, worker);
        for n in 1..=3 {
            let part = vec![Arc::from(n.to_string())];
            let fed = asked(t, |then| c.streams().parts_then(claimed.stream, fence, None, part, then));
            assert_eq!(
                fed.map(|accepted| accepted.last),
                Ok(n),
                "through a replica that knew another worker"
            );
        }
        asked(t, |then| worker.streams().end_then(claimed.stream, fence, End::Done, then)).expect("held");
        t.advance(Duration::from_millis(t.draw("pause", 2_000)));
    }
}

#[test]
fn sim_a_turn_is_fed_through_a_replica_whose_link_leads_to_the_worker_before() {
    sweep("sim_a_turn_is_fed_through_a_replica_whose_link_leads_to_the_worker_before", 10)
        .must_reach(&["courier_turned_back"])
        .run(moved_on)
        .assert_ok();
}

/// A turn that has ended is read through any replica as long as its parts stay, and then through none.
fn read_afterwards(t: &Test) {
    let world = World::new(t);
    let all = world.three(t);
    let worker = t.draw("worker", 3) as usize;
    let (claimed, fence) = claim(t, &all[worker]);
    let parts: Vec<Arc<str>> = (1..=3).map(|n| Arc::from(n.to_string())).collect();
    let fed =
        asked(t, |then| all[worker].streams().parts_then(claimed.stream, fence, None, parts.clone(), then));
    assert!(fed.is_ok(), "{fed:?}");
    asked(t, |then| all[worker].streams().end_then(claimed.stream, fence, End::Done, then)).expect("held");
    t.advance(Duration::from_millis(t.draw("pause", 5_000)));
    let read = |replica: &Replica, turn: u32| {
        asked(t, |then| replica.streams().read_turn_then(claimed.stream, turn, 0, true, then))
    };
    for replica in &all {
        let read = read(replica, 1).unwrap_or_else(|error| panic!("through {}: {error}", replica.name));
        // Whether it has ended, its room may hear a moment after whoever ended it.
        assert_eq!((read.parts, read.last), (parts.clone(), 3), "through {}", replica.name);
    }
    t.advance(secs(20));
    for replica in &all {
        for turn in [1, 2] {
            let gone = read(replica, turn);
            assert!(matches!(gone, Err(StreamError::NoTurn { .. })), "through {}: {gone:?}", replica.name);
        }
    }
}

#[test]
fn sim_a_turn_that_has_ended_is_read_through_any_replica_while_its_parts_stay() {
    sweep("sim_a_turn_that_has_ended_is_read_through_any_replica_while_its_parts_stay", 10)
        .run(read_afterwards)
        .assert_ok();
}
