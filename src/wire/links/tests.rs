use std::io::IoSlice;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::rt;
use crate::wire::exchange::{Exchange, Front, Opening, Plan, Terms};
use crate::wire::frame::Frame;
use crate::wire::http::{Head, Response};
use crate::wire::link::{Doors, LinkBatch, Outlet, Owner};
use crate::wire::pass::Pass;
use crate::wire::websocket::Outgoing as WsFrame;

/// Answers `/now`, drops what asks for `/never` into a list, opens events on `/events`, a WebSocket on `/ws`
/// and streams bodies of `/body`.
struct Routes {
    outlet: Outlet,
    kept: rt::Sender<Exchange>,
    links: rt::Sender<LinkHandle>,
    asked: AtomicUsize,
}

impl Front for Routes {
    fn request(&self, head: Head, _: &Peer, exchange: Exchange) -> Plan {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let owner = Some(Owner::new(&self.outlet, 1));
        match head.path.as_str() {
            "/never" => _ = self.kept.try_send(exchange),
            "/events" => {
                let link = exchange.open(Opening::Events { response: Response::new(200) }, owner);
                self.links.try_send(link).unwrap();
            }
            "/ws" => {
                let opening = Opening::WebSocket {
                    response: Response::new(101),
                    message_max: 1_000,
                    slow: close::TRY_AGAIN,
                };
                self.links.try_send(exchange.open(opening, owner)).unwrap();
            }
            "/body" => {
                self.links.try_send(exchange.stream_body(Owner::new(&self.outlet, 2))).unwrap();
                self.kept.try_send(exchange).unwrap();
                return Plan::Streamed;
            }
            _ => {
                return Plan::Whole {
                    max: 10,
                    then: Box::new(move |body| exchange.answer(Response::bytes(200, "a/b", body))),
                };
            }
        }
        Plan::Answered
    }
}

/// Links without sockets: what would be written is kept, and time is a number.
struct Bench {
    links: Links,
    now: Moment,
    doors: Doors,
    batches: rt::Receiver<LinkBatch>,
    kept: rt::Receiver<Exchange>,
    opened: rt::Receiver<LinkHandle>,
    written: std::collections::BTreeMap<usize, Vec<u8>>,
    effects: Vec<Effect>,
    /// Peers that take nothing.
    stalled: Vec<usize>,
}

impl Bench {
    fn new(limits: Limits, batches: usize) -> Bench {
        let rt = Rt::real();
        let (port, orders) = Port::new(&rt, || {});
        let (to_batches, batches) = rt.channel("batches", batches);
        let (kept_tx, kept) = rt.channel("kept", 16);
        let (links_tx, opened) = rt.channel("opened", 16);
        let outlet = Outlet::channel(to_batches);
        let front = Arc::new(Routes { outlet, kept: kept_tx, links: links_tx, asked: AtomicUsize::new(0) });
        let doors = Doors::new(vec![port.clone()]);
        let links = Links::new(&rt, 0, limits, front, port, orders);
        let now = Moment::from_millis(1_000);
        let mut bench = Bench {
            links,
            now,
            doors,
            batches,
            kept,
            opened,
            written: Default::default(),
            effects: Vec::new(),
            stalled: Vec::new(),
        };
        bench.links.at(now, Wall(0));
        bench
    }

    fn connect(&mut self) -> usize {
        self.links.accept(Peer { ip: None, port: 0, tls: false, listener: 0 }).unwrap()
    }

    fn feed(&mut self, slot: usize, bytes: &str) {
        self.links.feed(slot, bytes.replace('\n', "\r\n").as_bytes());
        self.round();
    }

    /// A round of the driver.
    fn round(&mut self) {
        self.links.at(self.now, Wall(0));
        self.links.ring();
        self.links.take_orders(&mut Vec::new());
        let mut left = Vec::new();
        while let Some(slot) = self.links.next_own().or_else(|| self.links.next_of_many()) {
            if self.stalled.contains(&slot) {
                self.links.flushed(slot, false);
                left.push(slot);
                continue;
            }
            loop {
                let mut slices = [IoSlice::new(&[]); GATHER_MAX];
                let count = self.links.gather(slot, &mut slices);
                let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                if bytes.is_empty() {
                    break;
                }
                self.links.wrote(slot, bytes.len());
                self.written.entry(slot).or_default().extend(bytes);
            }
            self.links.flushed(slot, true);
        }
        self.links.settle();
        self.links.take_effects(&mut self.effects);
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.round();
    }

    /// What was written to this peer since the last time.
    fn wrote(&mut self, slot: usize) -> String {
        String::from_utf8_lossy(&self.written.remove(&slot).unwrap_or_default()).into_owned()
    }

    fn events(&self) -> Vec<String> {
        let mut events = Vec::new();
        while let Ok(batch) = self.batches.try_recv() {
            events.extend(batch.into_iter().map(|event| format!("{} {:?}", event.tag, event.what)));
        }
        events
    }

    fn websocket(&mut self) -> (usize, LinkHandle) {
        let slot = self.connect();
        self.feed(slot, "GET /ws HTTP/1.1\nHost: a\n\n");
        self.wrote(slot);
        (slot, self.opened.try_recv().unwrap())
    }

    fn is_closed(&self, slot: usize) -> bool {
        self.effects.contains(&Effect::Close(slot))
    }
}

#[test]
fn an_answer_leaves_before_what_many_are_told_and_news_with_what_still_waits() {
    let mut bench = Bench::new(Limits::default(), 16);
    let mut group = bench.doors.group();
    let many: Vec<usize> = (0..3)
        .map(|_| bench.websocket())
        .map(|(slot, link)| {
            group.join(&link);
            slot
        })
        .collect();
    let asks = bench.connect();
    bench.feed(asks, "GET /never HTTP/1.1\nHost: a\n\n");
    let answer = |bench: &Bench| bench.kept.try_recv().unwrap().answer(Response::new(204));
    group.fanout(Frame::text("1"));
    answer(&bench);
    bench.links.take_orders(&mut Vec::new());
    assert_eq!(bench.links.next_own(), Some(asks), "though it was ordered last");
    assert_eq!(bench.links.next_own(), None);
    assert_eq!(bench.links.next_of_many(), Some(many[0]));
    bench.links.wrote(many[0], 3);
    // The driver looks what has come before it writes to all others.
    assert!(bench.links.many() > 0);
    group.fanout(Frame::text("2"));
    bench.links.take_orders(&mut Vec::new());
    let turns: Vec<_> = std::iter::from_fn(|| bench.links.next_of_many()).collect();
    assert_eq!(turns, [many[1], many[2], many[0]], "in turn: whoever has had one piece comes last");
    let pieces: Vec<_> = turns.iter().map(|slot| bench.links.pieces(*slot)).collect();
    assert_eq!(pieces, [2, 2, 1]);
    assert_eq!(bench.links.many(), 0);
}

#[test]
fn an_answer_does_not_wait_in_a_line_that_its_link_stood_in_before() {
    let mut bench = Bench::new(Limits::default(), 16);
    let asks = bench.connect();
    bench.feed(asks, "GET /never HTTP/1.1\nHost: a\n\n");
    bench.links.writable(asks);
    assert_eq!(bench.links.many(), 1);
    bench.kept.try_recv().unwrap().answer(Response::new(204));
    bench.links.take_orders(&mut Vec::new());
    assert_eq!(bench.links.next_own(), Some(asks));
    assert_eq!(bench.links.next_of_many(), None, "it has had its turn");
}

#[test]
fn who_has_many_things_to_say_wakes_a_thread_once_and_when_all_is_said() {
    let (rt, woken) = (Rt::real(), Arc::new(AtomicUsize::new(0)));
    let count = woken.clone();
    let (port, orders) = Port::new(&rt, move || _ = count.fetch_add(1, Ordering::Relaxed));
    let doors = Doors::new(vec![port]);
    let say = || doors.tell_all(|| Order::Drain(crate::wire::Drain { window: Duration::ZERO, draw: 0 }));
    let woken = || woken.load(Ordering::Relaxed);
    assert!(orders.may_sleep());
    let quietly = doors.quietly();
    say();
    say();
    assert_eq!(woken(), 0);
    drop(quietly);
    assert_eq!(woken(), 1);

    // One for whom there was nothing sleeps on, and can be woken.
    orders.take(&mut Vec::new());
    assert!(orders.may_sleep());
    drop(doors.quietly());
    assert_eq!(woken(), 1);
    say();
    assert_eq!(woken(), 2);
    orders.take(&mut Vec::new());

    // One that is up finds it by itself; one that goes to sleep meanwhile is woken by what comes then.
    orders.woke();
    let quietly = doors.quietly();
    say();
    assert!(!orders.may_sleep(), "there is something");
    orders.take(&mut Vec::new());
    assert!(orders.may_sleep());
    assert_eq!(woken(), 2);
    say();
    assert_eq!(woken(), 3);
    drop(quietly);
    assert_eq!(woken(), 3);
}

#[test]
fn a_head_that_takes_its_time_is_answered_408() {
    let mut bench = Bench::new(Limits::default(), 16);
    let slot = bench.connect();
    bench.pass(9_000);
    for byte in "GET /now HTTP/1.1".chars() {
        bench.feed(slot, &byte.to_string());
        bench.pass(500);
    }
    assert_eq!(bench.wrote(slot), "", "the time of a head begins with its first byte");
    bench.pass(1_500);
    assert!(bench.wrote(slot).starts_with("HTTP/1.1 408 "));
    assert_eq!(bench.effects.last(), Some(&Effect::FinishWriting(slot)));
    bench.pass(1_000);
    assert!(bench.is_closed(slot), "a peer that does not leave is left");
}

#[test]
fn a_connection_without_a_request_is_closed_in_the_end() {
    let mut bench = Bench::new(Limits::default(), 16);
    let slot = bench.connect();
    bench.pass(74_999);
    assert!(!bench.is_closed(slot));
    bench.pass(1);
    assert!(bench.is_closed(slot));
    assert_eq!(bench.wrote(slot), "");
    assert_eq!((bench.links.len(), bench.links.deadline()), (0, None));
}

#[test]
fn a_body_that_stops_is_answered_408_and_one_that_is_streamed_is_not() {
    let mut bench = Bench::new(Limits::default(), 16);
    let (whole, streamed) = (bench.connect(), bench.connect());
    bench.feed(whole, "POST /now HTTP/1.1\nHost: a\nContent-Length: 9\n\nabc");
    bench.feed(streamed, "POST /body HTTP/1.1\nHost: a\nContent-Length: 9\n\nabc");
    bench.pass(30_000);
    assert!(bench.wrote(whole).starts_with("HTTP/1.1 408 "));
    bench.pass(300_000);
    assert_eq!(bench.wrote(streamed), "", "a model may think for as long as it likes");
    assert_eq!(bench.events(), ["2 Bytes([97, 98, 99])"]);
}

#[test]
fn requests_wait_for_the_answer_before_them() {
    let mut bench = Bench::new(Limits::default(), 16);
    let slot = bench.connect();
    bench.feed(slot, "GET /never HTTP/1.1\nHost: a\n\nGET /now HTTP/1.1\nHost: a\n\n");
    assert_eq!(bench.wrote(slot), "");
    bench.kept.try_recv().unwrap().answer(Response::new(204));
    bench.round();
    // The handler of the second one answers into the next round.
    bench.round();
    let wrote = bench.wrote(slot);
    assert!(wrote.starts_with("HTTP/1.1 204 ") && wrote.contains("HTTP/1.1 200 "), "{wrote}");
}

#[test]
fn what_waits_behind_a_request_is_bounded() {
    let mut bench = Bench::new(Limits::default(), 16);
    let slot = bench.connect();
    bench.feed(slot, "GET /never HTTP/1.1\nHost: a\n\n");
    assert!(bench.links.wants_bytes(slot));
    bench.feed(slot, &"x".repeat(64 * 1024));
    assert!(!bench.links.wants_bytes(slot), "64 KiB are enough to wait behind a request");
}

#[test]
fn an_answer_meets_only_the_request_it_is_for() {
    let mut bench = Bench::new(Limits::default(), 16);
    let slot = bench.connect();
    bench.feed(slot, "GET /never HTTP/1.1\nHost: a\n\n");
    let late = bench.kept.try_recv().unwrap();
    bench.links.broke(slot, "gone");
    bench.round();
    let again = bench.connect();
    assert_eq!(again, slot, "the place is used again");
    bench.feed(again, "GET /never HTTP/1.1\nHost: a\n\n");
    late.answer(Response::new(204));
    bench.round();
    assert_eq!(bench.wrote(again), "");
}

#[test]
fn an_owner_hears_of_a_link_that_was_gone_before_it_was_opened() {
    let mut bench = Bench::new(Limits::default(), 16);
    let slot = bench.connect();
    bench.feed(slot, "GET /never HTTP/1.1\nHost: a\n\n");
    let exchange = bench.kept.try_recv().unwrap();
    bench.links.broke(slot, "gone");
    bench.round();
    let (tx, rx) = Rt::real().channel("other", 4);
    exchange
        .open(Opening::Chunks { response: Response::new(200) }, Some(Owner::new(&Outlet::channel(tx), 5)));
    bench.round();
    let batch = rx.try_recv().unwrap();
    assert!(matches!(&batch[..], [event] if event.tag == 5 && matches!(event.what, Happened::Closed(_))));
}

#[test]
fn credentials_that_are_taken_back_end_a_link_that_is_open_and_one_that_opens_later() {
    let mut bench = Bench::new(Limits::default(), 16);
    let pass = Pass::new(1);
    let ask = |bench: &mut Bench| {
        let slot = bench.connect();
        bench.feed(slot, "GET /never HTTP/1.1\nHost: a\n\n");
        let mut exchange = bench.kept.try_recv().unwrap();
        exchange.terms(Terms { pass: Some(pass.clone()), ..Terms::default() });
        (slot, exchange)
    };
    let open = |exchange: Exchange| exchange.open(Opening::Events { response: Response::new(200) }, None);
    let ((early, first), (late, second)) = (ask(&mut bench), ask(&mut bench));
    open(first);
    bench.doors.recheck();
    bench.pass(5_000);
    assert!(!bench.is_closed(early), "its pass has not ended");

    pass.end();
    bench.doors.recheck();
    bench.round();
    let second = open(second);
    bench.pass(500);
    // Others are shown for the second in time, and are good.
    second.good_until(None, Some(Pass::new(2)));
    bench.pass(5_000);
    bench.pass(5_000);
    let said = bench.wrote(early);
    assert!(bench.is_closed(early) && said.contains("auth"), "{said}");
    let said = bench.wrote(late);
    assert!(!bench.is_closed(late) && !said.contains("auth"), "{said}");
    // What is shown may have been taken back by then.
    second.good_until(None, Some(pass.clone()));
    bench.round();
    for _ in 0..3 {
        bench.pass(1_500);
    }
    let said = bench.wrote(late);
    assert!(bench.is_closed(late) && said.contains("auth"), "{said}");
}

#[test]
fn a_dropped_exchange_answers_500() {
    let mut bench = Bench::new(Limits::default(), 16);
    let slot = bench.connect();
    bench.feed(slot, "GET /never HTTP/1.1\nHost: a\n\n");
    drop(bench.kept.try_recv().unwrap());
    bench.round();
    assert!(bench.wrote(slot).starts_with("HTTP/1.1 500 "));
}

#[test]
fn a_link_over_its_bound_is_cut_and_paced_frames_do_not_count() {
    let limits = Limits { queue_bytes: 1_000, ..Limits::default() };
    let mut bench = Bench::new(limits, 16);
    let (slot, link) = bench.websocket();
    bench.stalled.push(slot);
    for _ in 0..100 {
        link.send_paced(Frame::text(&"h".repeat(100)));
    }
    for _ in 0..9 {
        link.send(Frame::text(&"n".repeat(100)));
    }
    bench.round();
    assert_eq!(bench.events(), [] as [String; 0]);
    link.send(Frame::text(&"n".repeat(100)));
    bench.round();
    assert_eq!(bench.events().len(), 1, "closed, and told so");
    bench.stalled.clear();
    bench.links.writable(slot);
    bench.round();
    let wrote = bench.written.remove(&slot).unwrap();
    assert_eq!(&wrote[..4], &[0x88, wrote[1], 0x03, 0xf5], "only the reason is sent: 1013");
    assert!(bench.effects.contains(&Effect::FinishWriting(slot)));
}

#[test]
fn a_peer_that_takes_nothing_for_long_is_cut() {
    let mut bench = Bench::new(Limits::default(), 16);
    let slot = bench.connect();
    bench.feed(slot, "GET /events HTTP/1.1\nHost: a\n\n");
    let link = bench.opened.try_recv().unwrap();
    bench.stalled.push(slot);
    link.send_paced(Frame::chunk(b"data: x\n\n"));
    bench.round();
    bench.pass(29_999);
    assert_eq!(bench.events(), [] as [String; 0]);
    bench.pass(1);
    assert!(bench.events()[0].contains("code: 1013"));
}

#[test]
fn marks_pass_when_what_was_before_them_has_left() {
    let mut bench = Bench::new(Limits::default(), 16);
    let (slot, link) = bench.websocket();
    link.mark(1);
    bench.stalled.push(slot);
    link.send_paced(Frame::text("a"));
    link.mark(2);
    link.send_paced(Frame::text("b"));
    link.mark(3);
    bench.round();
    assert_eq!(bench.events(), ["1 Passed(1)"]);
    bench.links.wrote(slot, 3);
    bench.round();
    assert_eq!(bench.events(), ["1 Passed(2)"]);
    bench.stalled.clear();
    bench.links.writable(slot);
    bench.round();
    assert_eq!(bench.events(), ["1 Passed(3)"]);
}

#[test]
fn a_full_room_parks_its_links_and_gets_everything_later_in_order() {
    let mut bench = Bench::new(Limits::default(), 1);
    let (slot, _link) = bench.websocket();
    let message = |text: &str| {
        let mut bytes = Vec::new();
        websocket::write_frame(&mut bytes, WsFrame::Text(text.as_bytes()), Some([0; 4]));
        bytes
    };
    for text in ["a", "b", "c"] {
        bench.links.feed(slot, &message(text));
        bench.round();
    }
    assert!(!bench.links.wants_bytes(slot), "its room is full");
    assert_eq!(bench.links.deadline(), Some(bench.now + STUCK_WAIT));
    bench.links.eof(slot);
    bench.round();
    assert!(bench.is_closed(slot));
    let mut heard = bench.events();
    bench.pass(5);
    heard.extend(bench.events());
    let closed = heard.pop().unwrap();
    assert_eq!(heard, ["1 Text(\"a\")", "1 Text(\"b\")", "1 Text(\"c\")"]);
    assert!(closed.starts_with("1 Closed("), "behind every byte");
}

#[test]
fn a_full_inbox_resets_a_group_and_nobody_sees_a_gap() {
    let mut bench = Bench::new(Limits::default(), 16);
    let (slot, link) = bench.websocket();
    let mut group = bench.doors.group();
    group.join(&link);
    bench.round();
    // The thread does not look: its inbox fills up.
    for n in 0..5_000 {
        group.fanout(Frame::text(&format!("{n:04}")));
    }
    bench.round();
    let wrote = bench.wrote(slot);
    let seen = wrote.matches("\u{fffd}\u{4}").count();
    assert!((4_000..5_000).contains(&seen), "{seen}");
    for n in 0..seen {
        assert!(wrote.contains(&format!("\u{fffd}\u{4}{n:04}")), "frame {n} is missing before the gap");
    }
    assert!(bench.events()[0].starts_with("1 Reset("), "told to start again by its cursor");
    group.forget(link.id());
    group.fanout(Frame::text("nobody"));
    group.join(&link);
    group.fanout(Frame::text("again"));
    bench.round();
    assert_eq!(bench.wrote(slot), "\u{fffd}\u{5}again");
}

#[test]
fn a_full_inbox_cuts_the_link_that_an_order_was_for() {
    let mut bench = Bench::new(Limits { queue_bytes: 1 << 30, ..Limits::default() }, 16);
    let (slot, link) = bench.websocket();
    for n in 0..5_000 {
        link.send(Frame::text(&format!("{n:04}")));
    }
    link.send(Frame::text("behind the gap"));
    bench.round();
    assert!(bench.events()[0].contains("code: 1013"));
    let wrote = bench.wrote(slot);
    assert!(!wrote.contains("behind the gap") && !wrote.contains("4999"), "nothing is sent behind a gap");
}

#[test]
fn an_answer_is_given_even_when_the_inbox_is_full() {
    let mut bench = Bench::new(Limits { queue_bytes: 1 << 30, ..Limits::default() }, 16);
    let slot = bench.connect();
    bench.feed(slot, "GET /never HTTP/1.1\nHost: a\n\n");
    let exchange = bench.kept.try_recv().unwrap();
    let (_, other) = bench.websocket();
    for _ in 0..5_000 {
        other.send(Frame::text("x"));
    }
    exchange.answer(Response::new(204));
    bench.round();
    assert!(bench.wrote(slot).starts_with("HTTP/1.1 204 "));
}

#[test]
fn what_a_group_is_told_at_once_is_one_piece_for_each_link() {
    let limits = Limits { queue_bytes: 1_000, ..Limits::default() };
    let mut bench = Bench::new(limits, 16);
    let ((socket, link), mut group) = (bench.websocket(), bench.doors.group());
    let events = bench.connect();
    bench.feed(events, "GET /events HTTP/1.1\nHost: a\n\n");
    bench.wrote(events);
    let reader = bench.opened.try_recv().unwrap();
    group.join(&link);
    group.join(&reader);
    bench.round();
    bench.stalled.extend([socket, events]);
    // The stream's links speak chunks, the other one does not: it gets its own copies, in the same order.
    for text in ["a", "bc", "def"] {
        group.fanout(Frame::chunk(text.as_bytes()));
    }
    bench.round();
    assert_eq!((bench.links.pieces(events), bench.links.pieces(socket)), (1, 3));
    group.fanout(Frame::text("ghi"));
    group.fanout(Frame::text("jk"));
    group.fanout(Frame::chunk(b"l"));
    bench.round();
    assert_eq!((bench.links.pieces(events), bench.links.pieces(socket)), (1 + 2 + 1, 3 + 1 + 1));
    // So much at once that some of it fits: that much is queued before the link is cut, and nothing behind it.
    (0..3).for_each(|_| group.fanout(Frame::chunk(&[b'x'; 400])));
    bench.round();
    assert_eq!(bench.events().len(), 2, "both are closed, and told so");
    bench.stalled.clear();
    bench.links.writable(events);
    bench.links.writable(socket);
    bench.round();
    assert!(bench.written.contains_key(&socket), "it is told why");
}

#[test]
fn members_that_leave_make_room_for_the_others() {
    let mut bench = Bench::new(Limits::default(), 16);
    let mut group = bench.doors.group();
    let members: Vec<_> = (0..5).map(|_| bench.websocket()).collect();
    members.iter().for_each(|(_, link)| group.join(link));
    group.leave(&members[1].1);
    bench.round();
    bench.links.broke(members[0].0, "gone");
    group.fanout(Frame::text("x"));
    bench.round();
    let reached: Vec<bool> = members.iter().map(|(slot, _)| !bench.wrote(*slot).is_empty()).collect();
    assert_eq!(reached, [false, false, true, true, true]);
    for (slot, _) in &members[2..] {
        bench.links.broke(*slot, "gone");
    }
    assert!(bench.links.groups.is_empty(), "a group without members is nothing");
}

#[test]
fn bytes_may_arrive_in_any_pieces() {
    let text = "POST /now HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\nGET /ws HTTP/1.1\nHost: a\n\n";
    let mut stream = text.replace('\n', "\r\n").into_bytes();
    let mut frames = Vec::new();
    websocket::write_frame(&mut frames, WsFrame::Text("hello".as_bytes()), Some([1, 2, 3, 4]));
    websocket::write_frame(&mut frames, WsFrame::Ping(b"?"), Some([9, 9, 9, 9]));
    stream.extend_from_slice(&frames);
    let mut outcomes = Vec::new();
    for piece in [1, 2, 3, 7, 50, stream.len()] {
        let mut bench = Bench::new(Limits::default(), 64);
        let slot = bench.connect();
        for part in stream.chunks(piece) {
            bench.links.feed(slot, part);
            bench.round();
            bench.round();
        }
        outcomes.push((bench.wrote(slot), bench.events()));
    }
    assert!(outcomes[0].0.ends_with("\u{fffd}\u{1}?"), "{:?}", outcomes[0]);
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
}

#[test]
fn a_drain_sends_links_away_inside_its_window() {
    let mut bench = Bench::new(Limits::default(), 64);
    let members: Vec<_> = (0..10).map(|_| bench.websocket()).collect();
    let idle = bench.connect();
    bench.doors.drain(Duration::from_secs(5), 7);
    bench.round();
    assert!(bench.is_closed(idle));
    let mut closed_at = Vec::new();
    for _ in 0..50 {
        bench.pass(100);
        closed_at.push(members.iter().filter(|(slot, _)| bench.written.contains_key(slot)).count());
    }
    assert_eq!(closed_at.last(), Some(&10));
    assert!(closed_at[24] > 1 && closed_at[24] < 10, "spread over the window: {closed_at:?}");
}

#[test]
fn an_idle_link_is_small() {
    assert!(size_of::<Link>() <= 512, "{} bytes", size_of::<Link>());
    assert!(size_of::<websocket::Reader>() <= 128, "{} bytes", size_of::<websocket::Reader>());
}
