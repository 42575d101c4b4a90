//! Streams over several replicas, simulated: relays, cuts, workers that change, workers that die.

use std::sync::Arc;
use std::time::Duration;

use towpath::Result;
use towpath::bus::Bus;
use towpath::bus::local::LocalBus;
use towpath::engine::replicas::{ReplicasConfig, ReplicasEngine};
use towpath::engine::streams::{
    CreateStream, Event, Follow, FollowOptions, RelayWays, Reset, Streams, StreamsConfig, StreamsEngine, What,
};
use towpath::engine::worker::Crew;
use towpath::front::Router;
use towpath::front::relay::relay_routes;
use towpath::rt::Rt;
use towpath::store::sqlite::SqliteStores;
use towpath::store::{Identity, Stores};
use towpath::testing::{Net, NetFaults, Serving, Sim, Sweep, Test};
use towpath::wire::Limits;

/// What all replicas share.
struct World {
    net: Net,
    bus: Arc<dyn Bus>,
    stores: Arc<dyn Stores>,
}

/// One replica. Dropped in this order.
struct Replica {
    engine: StreamsEngine,
    _registry: ReplicasEngine,
    _serving: Serving,
}

impl World {
    fn new(t: &Test) -> World {
        let rt = t.rt();
        let clock = {
            let rt = rt.clone();
            Arc::new(move || rt.wall())
        };
        let fresh = Identity { store: rt.uuid_v4(), epoch: rt.uuid_v4() };
        let stores = SqliteStores::in_memory(clock, fresh).expect("memory is there").for_several_replicas();
        World { net: t.net(NetFaults::CALM), bus: Arc::new(LocalBus::new()), stores: Arc::new(stores) }
    }

    fn replica(&self, name: &str, rt: &Rt) -> Result<Replica> {
        let crew = Crew::new(rt);
        let mut node = self.net.node(name, rt);
        let wire = node.wire();
        let config = ReplicasConfig {
            id: rt.uuid_v4(),
            hostname: name.to_owned(),
            relay_url: Some(format!("ws://{name}")),
            version: "0".into(),
        };
        let id = config.id;
        let registry = ReplicasEngine::start(&crew, config, &*self.stores, &self.bus, Some(wire.clone()))?;
        let replicas = registry.replicas().clone();
        let config = StreamsConfig {
            doors: Some(wire.doors().clone()),
            relay: Some(RelayWays::new(wire, replicas.clone())),
            ..StreamsConfig::new(id, self.stores.clone(), self.bus.clone())
        };
        let engine = StreamsEngine::start(&crew, config)?;
        let mut router = Router::new();
        relay_routes(&mut router, engine.streams(), &replicas);
        let serving = node.serve(Limits::default(), Arc::new(router))?;
        Ok(Replica { engine, _registry: registry, _serving: serving })
    }
}

impl Replica {
    fn streams(&self) -> &Streams {
        self.engine.streams()
    }

    fn follow(&self) -> Follow {
        self.streams().follow("chat/1", FollowOptions::default()).expect("there")
    }
}

/// What a client would show: checks as it takes events that nothing is lost, doubled or stale.
#[derive(Default)]
struct Shown {
    messages: Vec<u64>,
    turn: u32,
    last: u32,
    part_count: usize,
    failed: Option<String>,
}

impl Shown {
    fn take(&mut self, event: &Event) {
        match &event.what {
            What::Message(row) => {
                if self.messages.last().is_some_and(|last| *last >= row.id) {
                    self.failed = Some(format!("message {} after {:?}", row.id, self.messages));
                }
                self.messages.push(row.id);
                if let Some(fold) = row.fold
                    && (fold.turn, fold.upto) > (self.turn, self.last)
                {
                    (self.turn, self.last) = (fold.turn, fold.upto);
                }
            }
            What::Part { turn, n, .. } => {
                let next = if *turn == self.turn { self.last + 1 } else { 1 };
                if *turn < self.turn || *n != next {
                    self.failed = Some(format!("part {turn}.{n} after {}.{}", self.turn, self.last));
                }
                (self.turn, self.last) = (*turn, *n);
                self.part_count += 1;
            }
            What::Reset(Reset::Gap) => self.failed = Some("a gap, though nothing was evicted".into()),
            What::Closed(why) => self.failed = Some(format!("closed {}", why.name())),
            _ => {}
        }
    }

    /// Takes events until one fits, or for 30 s.
    fn until(&mut self, follow: &mut Follow, fits: impl Fn(&Event) -> bool) {
        loop {
            match follow.next_within(Duration::from_secs(30)) {
                Ok(Some(event)) => {
                    self.take(&event);
                    if fits(&event) || self.failed.is_some() {
                        return;
                    }
                }
                Ok(None) => return self.failed = Some("nothing came for 30 s".into()),
                Err(why) => return self.failed = Some(format!("ended: {why:?}")),
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.failed, None);
    }
}

fn is_part(turn: u32, n: u32) -> impl Fn(&Event) -> bool {
    move |event| matches!(event.what, What::Part { turn: of, n: number, .. } if (of, number) == (turn, n))
}

fn is_status(name: &'static str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event.what, What::Status { status, .. } if status == name)
}

#[test]
fn sim_a_viewer_on_another_replica_sees_every_part_once_though_the_link_is_cut() {
    Sweep::new("sim_a_viewer_on_another_replica_sees_every_part_once_though_the_link_is_cut", 20)
        .run(|t| {
            let world = World::new(t);
            let a = world.replica("a", &t.node("a")).expect("it starts");
            let b = world.replica("b", &t.node("b")).expect("it starts");
            a.streams().create("chat/1", CreateStream::default()).expect("made");
            let mut follow = b.follow();
            let mut shown = Shown::default();
            shown.until(&mut follow, |event| matches!(event.what, What::Live { .. }));
            let turn = a.streams().run("chat/1").expect("nobody runs it");
            for n in 1..=5 {
                turn.part(&n).expect("held");
            }
            shown.until(&mut follow, is_part(1, 5));
            world.net.cut("a", "b");
            for n in 6..=10 {
                turn.part(&n).expect("held");
            }
            shown.until(&mut follow, is_part(1, 10));
            turn.commit(None, &"all").expect("held");
            turn.finish().expect("held");
            shown.until(&mut follow, is_status("done"));
            shown.check();
            assert_eq!((shown.part_count, &shown.messages[..]), (10, &[1][..]));
        })
        .assert_ok();
}

#[test]
fn sim_two_viewers_share_one_relay() {
    Sim::new(7)
        .run(|t| {
            let world = World::new(t);
            let a = world.replica("a", &t.node("a")).expect("it starts");
            let b = world.replica("b", &t.node("b")).expect("it starts");
            a.streams().create("chat/1", CreateStream::default()).expect("made");
            let turn = a.streams().run("chat/1").expect("nobody runs it");
            turn.part(&1).expect("held");
            let (mut one, mut other) = (b.follow(), b.follow());
            let mut shown = [Shown::default(), Shown::default()];
            shown[0].until(&mut one, is_part(1, 1));
            shown[1].until(&mut other, is_part(1, 1));
            shown.iter().for_each(Shown::check);
            assert_eq!(world.net.connections("a", "b"), 1, "one link, however many viewers");
        })
        .assert_ok();
}

#[test]
fn sim_a_new_worker_takes_over_and_no_part_of_the_old_one_comes_after() {
    Sweep::new("sim_a_new_worker_takes_over_and_no_part_of_the_old_one_comes_after", 20)
        .run(|t| {
            let world = World::new(t);
            let a = world.replica("a", &t.node("a")).expect("it starts");
            let b = world.replica("b", &t.node("b")).expect("it starts");
            let c = world.replica("c", &t.node("c")).expect("it starts");
            a.streams().create("chat/1", CreateStream::default()).expect("made");
            let mut follow = c.follow();
            let mut shown = Shown::default();
            let turn = a.streams().run("chat/1").expect("nobody runs it");
            turn.part(&1).expect("held");
            shown.until(&mut follow, is_part(1, 1));
            turn.abort().expect("held");
            let turn = b.streams().run("chat/1").expect("nobody runs it");
            turn.part(&1).expect("held");
            turn.part(&2).expect("held");
            shown.until(&mut follow, is_part(2, 2));
            turn.finish().expect("held");
            shown.until(&mut follow, is_status("done"));
            shown.check();
        })
        .assert_ok();
}

#[test]
fn sim_a_worker_that_is_killed_loses_its_lease_and_followers_go_on_with_the_next() {
    Sim::new(3)
        .run(|t| {
            let world = World::new(t);
            let node = t.node("a");
            let a = world.replica("a", &node).expect("it starts");
            let b = world.replica("b", &t.node("b")).expect("it starts");
            a.streams().create("chat/1", CreateStream::default()).expect("made");
            let mut follow = b.follow();
            let mut shown = Shown::default();
            let turn = a.streams().run("chat/1").expect("nobody runs it");
            turn.part(&1).expect("held");
            shown.until(&mut follow, is_part(1, 1));
            t.kill("a");
            shown.until(&mut follow, is_status("pending"));
            let next = b.streams().run("chat/1").expect("the lease is dead");
            next.part(&1).expect("held");
            shown.until(&mut follow, is_part(2, 1));
            shown.check();
            drop((turn, next, a));
        })
        .assert_ok();
}
