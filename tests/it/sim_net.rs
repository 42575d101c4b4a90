//! The simulated network: dials, echoes, partitions, cuts; through the shipped link code.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use towpath::Result;
use towpath::engine::worker::{Bounds, Crew, Inbox, Refused, Room, Worker};
use towpath::front::{Request, Route, Router};
use towpath::rt::{Moment, Op, Receiver, Rt};
use towpath::testing::{Net, NetFaults, NetNode, Serving, Sim, Sweep, Test};
use towpath::wire::{
    Dial, Frame, Happened, Limits, LinkBatch, LinkEvent, LinkHandle, LinkId, Outlet, Owner, Speak, Target,
    Wire,
};

const SECOND: Duration = Duration::from_secs(1);

/// Says back what it hears.
struct Echo {
    links: BTreeMap<LinkId, LinkHandle>,
}

enum ToEcho {
    Opened(LinkHandle),
    Heard(LinkBatch),
}

impl Room for Echo {
    type Message = ToEcho;

    fn wake(&mut self, _now: Moment, inbox: &mut Vec<ToEcho>) {
        // A link may be heard of before it is handed over: handles first.
        let (opened, heard): (Vec<_>, Vec<_>) =
            inbox.drain(..).partition(|message| matches!(message, ToEcho::Opened(_)));
        for message in opened.into_iter().chain(heard) {
            match message {
                ToEcho::Opened(link) => _ = self.links.insert(link.id(), link),
                ToEcho::Heard(batch) => batch.into_iter().for_each(|event| self.hear(event)),
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        None
    }
}

impl Echo {
    fn hear(&mut self, event: LinkEvent) {
        match (self.links.get(&event.link), event.what) {
            (Some(link), Happened::Text(text)) => link.send(Frame::text(&text)),
            (_, Happened::Closed(_)) => _ = self.links.remove(&event.link),
            _ => {}
        }
    }
}

/// Node `name` with an echo behind `/echo`.
struct Server {
    _serving: Serving,
    _echo: Worker,
}

fn server(net: &Net, name: &str, rt: &Rt) -> Result<Server> {
    let crew = Crew::new(rt);
    let (echo, inbox) = Worker::spawn(&crew, "echo", Bounds::of(64), |_| Echo { links: BTreeMap::new() })?;
    let mut router = Router::new();
    router.add(Route::get("/echo").open().to(move |_: Request, reply| {
        let owner = Owner::new(&outlet(&inbox), 0);
        if let Some(link) = reply.websocket(&[], 1 << 16, owner) {
            // Refused only once the room has ended, and then the link is closed with it.
            _ = inbox.control(ToEcho::Opened(link));
        }
    }));
    let serving = net.node(name, rt).serve(Limits::default(), Arc::new(router))?;
    Ok(Server { _serving: serving, _echo: echo })
}

fn outlet(inbox: &Inbox<ToEcho>) -> Outlet {
    let inbox = inbox.clone();
    Outlet::new(move |batch| match inbox.try_data(ToEcho::Heard(batch)) {
        Ok(()) => Ok(()),
        Err(Refused::Full(ToEcho::Heard(batch))) => Err(batch),
        Err(_) => Ok(()),
    })
}

/// A client that dials `b` and reads what happens itself.
struct Client {
    wire: Arc<dyn Wire>,
    _serving: Serving,
    outlet: Outlet,
    heard: Receiver<LinkBatch>,
    rt: Rt,
}

fn client(net: &Net, rt: &Rt) -> Result<Client> {
    let (tx, heard) = rt.channel("heard", 64);
    let mut node: NetNode = net.node("a", rt);
    let serving = node.serve(Limits::default(), Arc::new(Router::new()))?;
    Ok(Client { wire: node.wire(), _serving: serving, outlet: Outlet::channel(tx), heard, rt: rt.clone() })
}

impl Client {
    fn dial(&self, number: u64) {
        self.wire.dial(Dial {
            target: Target::parse("ws://b/echo").expect("it is a target"),
            speak: Speak::WebSocket { protocols: Vec::new(), message_max: 1 << 16 },
            headers: Vec::new(),
            deadline: self.rt.now() + 3 * SECOND,
            cancel: self.rt.cancel_token(),
            owner: Owner::new(&self.outlet, number),
        });
    }

    fn next(&self) -> Vec<LinkEvent> {
        self.heard.recv().expect("the outlet lives in the client")
    }

    /// Dials until a link opens.
    fn open(&self, number: &mut u64) -> LinkHandle {
        loop {
            *number += 1;
            self.dial(*number);
            loop {
                let answers = self.next().into_iter().filter(|event| event.tag == *number);
                match answers.last().map(|event| event.what) {
                    Some(Happened::Opened(link, _)) => return link,
                    Some(Happened::Refused(_)) => break,
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn sim_a_message_passes_the_whole_wire_and_comes_back() {
    Sim::new(1)
        .run(|t| {
            let net = t.net(NetFaults::CALM);
            let _server = server(&net, "b", &t.node("b"))?;
            let client = client(&net, &t.node("a"))?;
            let link = client.open(&mut 0);
            link.send(Frame::text("ahoy"));
            let said = client.next().pop().map(|event| event.what);
            assert!(matches!(&said, Some(Happened::Text(text)) if text == "ahoy"), "{said:?}");
            assert_eq!(net.connections("a", "b"), 1);
            net.cut("a", "b");
            let closed = client.next().pop().map(|event| event.what);
            assert!(matches!(closed, Some(Happened::Closed(_))), "{closed:?}");
            t.run_until_idle();
            assert_eq!(net.connections("a", "b"), 0);
            Ok::<(), towpath::Error>(())
        })
        .assert_clean();
}

#[test]
fn sim_a_partition_holds_bytes_back_and_healing_delivers_them() {
    Sim::new(2)
        .run(|t| {
            let net = t.net(NetFaults::CALM);
            let _server = server(&net, "b", &t.node("b"))?;
            let client = client(&net, &t.node("a"))?;
            let link = client.open(&mut 0);
            net.partition("a", "b");
            link.send(Frame::text("wait for it"));
            t.advance(SECOND);
            assert!(client.heard.is_empty(), "nothing passes a partition");
            client.dial(7);
            t.advance(SECOND);
            let refused = client.next().pop().map(|event| (event.tag, event.what));
            assert!(matches!(refused, Some((7, Happened::Refused(_)))), "{refused:?}");
            net.heal();
            let said = client.next().pop().map(|event| event.what);
            assert!(matches!(&said, Some(Happened::Text(text)) if text == "wait for it"), "{said:?}");
            Ok::<(), towpath::Error>(())
        })
        .assert_clean();
}

#[test]
fn sim_a_dial_can_be_trapped_and_a_killed_node_closes_its_connections() {
    Sim::new(3)
        .run(|t| {
            let net = t.net(NetFaults::CALM);
            let server = server(&net, "b", &t.node("b"))?;
            let client = client(&net, &t.node("a"))?;
            let trap = t.trap(Op::Dial).on("b");
            client.dial(1);
            let held = trap.wait();
            t.advance(SECOND);
            assert!(client.heard.is_empty());
            held.release();
            drop(trap);
            let opened = client.next().pop().map(|event| event.what);
            assert!(matches!(opened, Some(Happened::Opened(..))), "{opened:?}");
            // Its threads are killed, not joined.
            let _server = std::mem::ManuallyDrop::new(server);
            t.kill("b");
            let closed = client.next().pop().map(|event| event.what);
            assert!(matches!(closed, Some(Happened::Closed(_))), "{closed:?}");
            Ok::<(), towpath::Error>(())
        })
        .assert_ok();
}

/// Ten messages, one after the other, each said until it comes back, over a network that breaks.
fn stubborn(t: &Test) -> Result<()> {
    let net = t.net(NetFaults::ROUGH);
    let _server = server(&net, "b", &t.node("b"))?;
    let client = client(&net, &t.node("a"))?;
    let (mut number, mut link) = (0, None::<LinkHandle>);
    for message in 0..10 {
        'said: loop {
            let open = link.get_or_insert_with(|| client.open(&mut number)).clone();
            open.send(Frame::text(&format!("{message}")));
            loop {
                let mut is_back = false;
                // All of them, also behind the one that was waited for: the link may have ended with it.
                for event in client.next() {
                    match event.what {
                        Happened::Text(text) if text == format!("{message}") => is_back = true,
                        Happened::Text(text) => {
                            assert!(
                                text.parse::<u32>().expect("a number") < message,
                                "{text} before its time"
                            );
                        }
                        Happened::Closed(_) if event.tag == number => link = None,
                        _ => {}
                    }
                }
                if is_back {
                    break 'said;
                }
                if link.is_none() {
                    break;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn sim_every_message_gets_through_a_network_that_breaks() {
    Sweep::new("sim_every_message_gets_through_a_network_that_breaks", 40)
        .must_reach(&["net_cut", "net_dial_hung"])
        .run(stubborn)
        .assert_ok();
}
