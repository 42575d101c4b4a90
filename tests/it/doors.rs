//! The I/O threads over real sockets: HTTP, server-sent events, WebSockets, uploads, dials.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use towpath::front::{Reply, Request, Route, Router};
use towpath::rt::{Receiver, Rt};
use towpath::wire::http::Response;
use towpath::wire::{
    Bound, Dial, Frame, Happened, IoThreads, Limits, LinkBatch, LinkEvent, LinkHandle, Listener, Outlet,
    Owner, Refused, Running, Speak, Target, Wire,
};
use tungstenite::Message;

use crate::ports::free_port;

/// Long enough for anything that happens at all; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(20);

/// A door with routes that answer in every way there is. Its one room is the test itself.
struct Door {
    running: Running,
    wire: Arc<dyn Wire>,
    rt: Rt,
    outlet: Outlet,
    events: Receiver<LinkBatch>,
    opened: Receiver<LinkHandle>,
    /// Replies of `/upload` that are still owed.
    replies: Receiver<Reply>,
    heard: Vec<LinkEvent>,
}

impl Door {
    fn open(limits: Limits) -> Door {
        Door::open_with(limits, 64, 2)
    }

    fn open_with(limits: Limits, batches: usize, threads: usize) -> Door {
        let rt = Rt::real();
        let (to_events, events) = rt.channel("events", batches);
        let (to_opened, opened) = rt.channel("opened", 64);
        let (to_replies, replies) = rt.channel("replies", 64);
        let outlet = Outlet::channel(to_events);
        let io = IoThreads::new(&rt, threads, None).unwrap();
        let wire = io.wire();
        let mut router = Router::new();
        router.add(
            Route::get("/healthz")
                .open()
                .about("Is it alive")
                .to(|_, reply| reply.json(200, &json!({"ok": true}))),
        );
        router.add(Route::post("/echo").body_max(100_000).to(|mut request: Request, reply: Reply| {
            let body = request.take_body();
            reply.send(Response::bytes(200, "application/octet-stream", body));
        }));
        router.add(Route::get("/large").to(|_, reply: Reply| {
            reply.send(Response::bytes(200, "text/plain", vec![b'#'; 3_000_000]));
        }));
        let here = (outlet.clone(), to_opened.clone());
        router.add(Route::get("/events").to(move |request: Request, reply: Reply| {
            let owner = Owner::new(&here.0, 7);
            let link = match request.wants_websocket() {
                true => reply.websocket(&["b", "a"], 1 << 20, owner),
                false => Some(reply.sse(Some(owner))),
            };
            if let Some(link) = link {
                here.1.try_send(link).unwrap();
            }
        }));
        let here = (outlet.clone(), to_opened.clone());
        router.add(Route::post("/upload").streamed().to(move |_, reply: Reply| {
            here.1.try_send(reply.stream_body(Owner::new(&here.0, 8))).unwrap();
            // Answered once the body has ended, by whoever saw that.
            to_replies.try_send(reply).unwrap();
        }));
        let here = (outlet.clone(), to_opened);
        router.add(Route::get("/raw").to(move |_, reply: Reply| {
            if let Some(link) = reply.upgrade("rope", Owner::new(&here.0, 9)) {
                here.1.try_send(link).unwrap();
            }
        }));
        router.add(Route::get("/dropped").to(|_, reply: Reply| drop(reply)));
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let running = io.start(limits, vec![listener], Arc::new(router)).unwrap();
        Door { running, wire, rt, outlet, events, opened, replies, heard: Vec::new() }
    }

    fn address(&self) -> std::net::SocketAddr {
        match &self.running.addresses()[0] {
            Bound::Tcp(address) => *address,
            Bound::Unix(path) => panic!("not a path: {}", path.display()),
        }
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// The next event, from whichever link.
    fn hear(&mut self) -> LinkEvent {
        while self.heard.is_empty() {
            let batch = self.events.recv_deadline(self.rt.now() + PATIENCE).expect("an event in time");
            self.heard.extend(batch);
        }
        self.heard.remove(0)
    }

    fn link(&self) -> LinkHandle {
        self.opened.recv_deadline(self.rt.now() + PATIENCE).expect("a link in time")
    }

    fn websocket(&self) -> tungstenite::WebSocket<TcpStream> {
        let url = format!("ws://{}/events", self.address());
        let (socket, _) = tungstenite::client(url, self.connect()).unwrap();
        socket
    }
}

/// Reads one response with a `Content-Length` and gives its status line, headers and body.
fn response(socket: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(
            socket.read(&mut byte).unwrap(),
            1,
            "the head ended early: {}",
            String::from_utf8_lossy(&head)
        );
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    socket.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Reads until what was read ends like this.
fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        assert_eq!(socket.read(&mut byte).unwrap(), 1, "it ended early: {}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn requests_on_one_connection_are_answered_in_order() {
    let door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\noneGET /healthz HTTP/1.1\r\nHost: a\r\n\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(response(&mut socket).1, "one");
    assert_eq!(response(&mut socket).1, "{\"ok\":true}");
    assert_eq!(response(&mut socket).1, "two");
    let (head, body) = response(&mut socket);
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert!(body.contains("\"code\":\"not_found\""), "{body}");
    assert_eq!(socket.read(&mut [0]).unwrap(), 0, "it closes when asked to");
}

#[test]
fn a_head_request_has_every_header_and_no_body() {
    let door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket
        .write_all(b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /dropped HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let head = read_until(&mut socket, "\r\n\r\n");
    assert!(head.contains("content-length: 11\r\n"), "{head}");
    let (head, _) = response(&mut socket);
    assert!(head.starts_with("HTTP/1.1 500 "), "a reply that is dropped answers: {head}");
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_to_go_on() {
    let door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket
        .write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(read_until(&mut socket, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"one").unwrap();
    assert_eq!(response(&mut socket).1, "one");
    // Refused before the body: no 100, and the connection closes.
    socket
        .write_all(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    assert!(response(&mut socket).0.starts_with("HTTP/1.1 413 "));
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_chunked_body_over_its_limit_is_a_413() {
    let door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
    // The second of these is over; the peer may have closed before all of it was written.
    let _ = socket.write_all(&chunk).and_then(|()| socket.write_all(&chunk));
    assert!(response(&mut socket).0.starts_with("HTTP/1.1 413 "));
}

#[test]
fn nothing_behind_a_refused_head_is_served() {
    let door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut all = String::new();
    socket.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 400 ") && all.contains("connection: close\r\n"), "{all}");
    assert_eq!(all.matches("HTTP/1.1").count(), 1, "{all}");
}

#[test]
fn a_large_answer_arrives_whole() {
    let door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut all = Vec::new();
    socket.read_to_end(&mut all).unwrap();
    assert_eq!(all.iter().filter(|&&byte| byte == b'#').count(), 3_000_000);
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket.write_all(b"GET /events HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
    let link = door.link();
    link.send(Frame::chunk(b"data: x\n\n"));
    link.finish();
    let mut all = String::new();
    socket.read_to_string(&mut all).unwrap();
    assert!(!all.contains("transfer-encoding") && all.ends_with("\r\n\r\ndata: x\n\n"), "{all}");
}

#[test]
fn events_stream_with_heartbeats_and_the_connection_goes_on_after_them() {
    let limits = Limits { heartbeat: Duration::from_millis(20), ..Limits::default() };
    let mut door = Door::open(limits);
    let mut socket = door.connect();
    socket
        .write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let link = door.link();
    let head = read_until(&mut socket, "\r\n\r\n");
    for header in [
        "content-type: text/event-stream",
        "cache-control: no-store",
        "x-accel-buffering: no",
        "transfer-encoding: chunked",
    ] {
        assert!(head.contains(header), "{header} is missing: {head}");
    }
    const BEAT: &str = "3\r\n:\n\n\r\n";
    link.send(Frame::chunk(b"data: x\n\n"));
    let sent = read_until(&mut socket, "9\r\ndata: x\n\n\r\n");
    let before = sent.strip_suffix("9\r\ndata: x\n\n\r\n").unwrap();
    assert_eq!(before.replace(BEAT, ""), "", "nothing but heartbeats come before it");
    assert_eq!(read_until(&mut socket, "\n\n\r\n"), BEAT);
    link.finish();
    let rest = read_until(&mut socket, "0\r\n\r\n");
    assert!(rest.ends_with("0\r\n\r\n"));
    assert_eq!(response(&mut socket).1, "{\"ok\":true}", "the request behind it is served");
    let event = door.hear();
    assert!(matches!(&event.what, Happened::Closed(closing) if !closing.by_peer), "{event:?}");
    // Whatever is still sent to the old answer meets nobody.
    link.send(Frame::chunk(b"late"));
    link.close(1000, "late");
    socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(response(&mut socket).1, "{\"ok\":true}");
}

#[test]
fn a_reader_that_leaves_is_noticed() {
    let mut door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let link = door.link();
    drop(socket);
    let event = door.hear();
    assert_eq!((event.link, event.tag), (link.id(), 7));
    assert!(matches!(event.what, Happened::Closed(closing) if closing.by_peer));
}

#[test]
fn a_websocket_carries_messages_both_ways_and_closes_with_a_code() {
    let mut door = Door::open(Limits::default());
    let mut socket = door.websocket();
    let link = door.link();
    socket.send(Message::text("hello")).unwrap();
    assert!(matches!(door.hear().what, Happened::Text(text) if text == "hello"));
    let large = vec![7; 300_000];
    socket.send(Message::binary(large.clone())).unwrap();
    assert!(matches!(door.hear().what, Happened::Binary(bytes) if bytes == large));
    link.send(Frame::text("one"));
    link.send(Frame::binary(b"two"));
    link.mark(42);
    assert_eq!(socket.read().unwrap(), Message::text("one"));
    assert_eq!(socket.read().unwrap(), Message::binary(b"two".to_vec()));
    assert!(matches!(door.hear().what, Happened::Passed(42)));
    link.close(4000, "enough");
    let Message::Close(Some(frame)) = socket.read().unwrap() else { panic!("not a close") };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4000, "enough"));
    assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));
    assert!(
        matches!(door.hear().what, Happened::Closed(closing) if closing.code == 4000 && !closing.by_peer)
    );
}

#[test]
fn a_websocket_that_the_peer_closes_is_answered() {
    let mut door = Door::open(Limits::default());
    let mut socket = door.websocket();
    door.link();
    socket
        .close(Some(tungstenite::protocol::CloseFrame { code: 4001.into(), reason: "bye".into() }))
        .unwrap();
    let Message::Close(Some(frame)) = socket.read().unwrap() else { panic!("not a close") };
    assert_eq!(u16::from(frame.code), 4001);
    assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));
    let event = door.hear();
    assert!(
        matches!(&event.what, Happened::Closed(closing) if closing.code == 4001 && closing.reason == "bye" && closing.by_peer),
        "{event:?}"
    );
}

#[test]
fn a_websocket_without_a_sign_of_life_is_pinged_and_then_given_up() {
    let limits = Limits { heartbeat: Duration::from_millis(30), ..Limits::default() };
    let mut door = Door::open(limits);
    let mut socket = door.websocket();
    door.link();
    // Reading answers pings; the first one proves that they come.
    assert_eq!(socket.read().unwrap(), Message::Ping(Default::default()));
    // Not reading any more answers none.
    let event = door.hear();
    assert!(matches!(&event.what, Happened::Closed(closing) if closing.code == 1006), "{event:?}");
}

#[test]
fn a_subprotocol_is_chosen_and_a_plain_request_is_told_to_upgrade() {
    let door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: x, a\r\n\r\n").unwrap();
    let head = read_until(&mut socket, "\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    assert!(head.contains("sec-websocket-protocol: a\r\n"), "{head}");
    let mut socket = door.connect();
    socket.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 12\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut all = String::new();
    socket.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 426 ") && all.contains("sec-websocket-version: 13\r\n"), "{all}");
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "a refused upgrade drops what follows: {all}");
}

#[test]
fn an_open_body_flows_while_it_is_written() {
    let mut door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket
        .write_all(
            b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    door.link();
    assert_eq!(read_until(&mut socket, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"3\r\none\r\n").unwrap();
    assert!(matches!(door.hear().what, Happened::Bytes(bytes) if bytes == b"one"));
    socket.write_all(b"3\r\ntwo\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(matches!(door.hear().what, Happened::Bytes(bytes) if bytes == b"two"));
    assert!(matches!(door.hear().what, Happened::Ended));
    let reply = door.replies.recv_deadline(door.rt.now() + PATIENCE).unwrap();
    reply.json(200, &json!({"accepted": 2}));
    assert_eq!(response(&mut socket).1, "{\"accepted\":2}");
    assert_eq!(response(&mut socket).1, "{\"ok\":true}");
}

#[test]
fn raw_bytes_flow_behind_an_upgrade_and_either_half_may_end() {
    let mut door = Door::open(Limits::default());
    let mut socket = door.connect();
    socket
        .write_all(b"GET /raw HTTP/1.1\r\nHost: a\r\nUpgrade: rope\r\nConnection: Upgrade\r\n\r\nearly")
        .unwrap();
    let link = door.link();
    assert!(read_until(&mut socket, "\r\n\r\n").starts_with("HTTP/1.1 101 "));
    assert!(matches!(door.hear().what, Happened::Bytes(bytes) if bytes == b"early"));
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(door.hear().what, Happened::Ended));
    link.send(Frame::raw(b"back"));
    link.finish();
    let mut all = String::new();
    socket.read_to_string(&mut all).unwrap();
    assert_eq!(all, "back");
    assert!(matches!(door.hear().what, Happened::Closed(_)));
}

#[test]
fn one_frame_reaches_every_member_of_a_group_in_order() {
    let mut door = Door::open(Limits::default());
    let mut group = door.wire.doors().group();
    let mut sockets: Vec<_> = (0..20).map(|_| door.websocket()).collect();
    let links: Vec<_> = sockets.iter().map(|_| door.link()).collect();
    for (at, link) in links.iter().enumerate() {
        link.send_paced(Frame::text(&format!("history {at}")));
        group.join(link);
    }
    for n in 0..100 {
        group.fanout(Frame::text(&format!("news {n}")));
    }
    group.leave(&links[0]);
    group.fanout(Frame::text("more"));
    for (at, socket) in sockets.iter_mut().enumerate() {
        assert!(matches!(socket.read().unwrap(), Message::Text(text) if text.starts_with("history")));
        for n in 0..100 {
            assert_eq!(socket.read().unwrap(), Message::text(format!("news {n}")), "socket {at}");
        }
    }
    assert_eq!(group.members(), 19);
    let _ = door.heard.pop();
}

#[test]
fn a_reader_that_does_not_read_is_cut_and_the_others_are_not() {
    let limits = Limits { queue_bytes: 256 * 1024, ..Limits::default() };
    let mut door = Door::open(limits);
    let mut group = door.wire.doors().group();
    let mut good = door.websocket();
    let good_link = door.link();
    let stalled = door.websocket();
    let stalled_link = door.link();
    group.join(&good_link);
    group.join(&stalled_link);
    let frame = Frame::binary(&vec![1; 64 * 1024]);
    let mut sent = 0;
    loop {
        group.fanout(frame.clone());
        sent += 1;
        assert!(matches!(good.read().unwrap(), Message::Binary(_)));
        if door.running.wire().doors().counts().map(|counts| counts.cut_slow.get()).sum::<u64>() > 0 {
            break;
        }
        assert!(sent < 10_000, "a reader that takes nothing was never cut");
    }
    let event = door.hear();
    assert_eq!(event.link, stalled_link.id());
    assert!(matches!(&event.what, Happened::Closed(closing) if closing.code == 1013), "{event:?}");
    drop(stalled);
}

#[test]
fn a_full_room_holds_its_links_and_loses_nothing() {
    // One batch in the channel, and nobody takes it for a while.
    let mut door = Door::open_with(Limits::default(), 1, 1);
    let mut socket = door.websocket();
    door.link();
    socket.get_ref().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut written = 0u64;
    // Until the kernel's buffers are full, too: the I/O thread has stopped reading.
    while socket.send(Message::binary(vec![0; 16 * 1024])).is_ok() {
        written += 1;
        assert!(written < 100_000, "the I/O thread reads although its room is full");
    }
    // Or it has not had a turn yet, on a machine that is busy.
    let patience = door.rt.now() + PATIENCE;
    while door.wire.doors().counts().all(|counts| counts.parked.get() == 0) {
        assert!(door.rt.now() < patience, "a room that is full holds nobody back");
        door.rt.sleep(Duration::from_millis(5));
    }
    // The room wakes up: everything is there, in order. The last message may be cut off in the middle.
    for _ in 0..written {
        let event = door.hear();
        assert!(matches!(&event.what, Happened::Binary(bytes) if bytes.len() == 16 * 1024), "{event:?}");
    }
}

#[test]
fn a_dialed_websocket_speaks_with_an_accepted_one() {
    let mut door = Door::open(Limits::default());
    let target = Target::parse(&format!("ws://{}/events", door.address())).unwrap();
    door.wire.dial(Dial {
        target,
        speak: Speak::WebSocket { protocols: vec!["a".into()], message_max: 1 << 20 },
        headers: vec![("x-test".into(), "1".into())],
        deadline: door.rt.now() + PATIENCE,
        cancel: door.rt.cancel_token(),
        owner: Owner::new(&door.outlet, 99),
    });
    let accepted = door.link();
    let event = door.hear();
    assert_eq!(event.tag, 99);
    let Happened::Opened(dialed, head) = event.what else { panic!("not opened: {event:?}") };
    assert_eq!(head.unwrap().header("sec-websocket-protocol"), Some("a"));
    dialed.send(Frame::text("to the server"));
    assert!(
        matches!(door.hear(), LinkEvent { tag: 7, what: Happened::Text(text), .. } if text == "to the server")
    );
    accepted.send(Frame::binary(b"to the client"));
    assert!(
        matches!(door.hear(), LinkEvent { tag: 99, what: Happened::Binary(bytes), .. } if bytes == b"to the client")
    );
    dialed.close(1000, "done");
    let (one, other) = (door.hear(), door.hear());
    let mut closed: Vec<u64> = [one, other].iter().map(|event| event.tag).collect();
    closed.sort();
    assert_eq!(closed, [7, 99]);
}

#[test]
fn a_dial_that_fails_says_why() {
    let mut door = Door::open(Limits::default());
    let nobody = format!("127.0.0.1:{}", free_port());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let patience = door.rt.now() + PATIENCE;
    let soon = door.rt.now() + Duration::from_millis(100);
    let speak = Speak::WebSocket { protocols: vec![], message_max: 1 << 20 };
    let cancelled = door.rt.cancel_token();
    let cases = [
        (1, format!("ws://{nobody}/"), patience, door.rt.cancel_token()),
        (2, format!("ws://{}/healthz", door.address()), patience, door.rt.cancel_token()),
        (3, format!("ws://{}/", silent.local_addr().unwrap()), soon, door.rt.cancel_token()),
        (4, format!("ws://{}/", silent.local_addr().unwrap()), patience, cancelled.clone()),
    ];
    for (number, target, deadline, cancel) in cases {
        let (target, owner) = (Target::parse(&target).unwrap(), Owner::new(&door.outlet, number));
        door.wire.dial(Dial { target, speak: speak.clone(), headers: vec![], deadline, cancel, owner });
    }
    cancelled.cancel();
    for _ in 0..4 {
        let event = door.hear();
        let Happened::Refused(refused) = event.what else { panic!("not refused: {event:?}") };
        match event.tag {
            1 => assert!(matches!(refused, Refused::Unreachable(_)), "{refused}"),
            2 => assert_eq!(refused, Refused::Answered { status: 200, code: None }),
            3 => assert_eq!(refused, Refused::TimedOut),
            _ => assert_eq!(refused, Refused::Cancelled),
        }
    }
}

#[test]
fn a_drain_answers_what_is_in_flight_and_sends_live_links_away() {
    let mut door = Door::open(Limits::default());
    let mut idle = door.connect();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    response(&mut idle);
    let mut upload = door.connect();
    upload.write_all(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none").unwrap();
    door.link();
    assert!(matches!(door.hear().what, Happened::Bytes(_)));
    assert!(matches!(door.hear().what, Happened::Ended));
    let mut websocket = door.websocket();
    door.link();
    let mut events = door.connect();
    events.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    door.link();
    door.running.drain(Duration::from_millis(50), 1);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "an idle connection closes");
    let Message::Close(Some(frame)) = websocket.read().unwrap() else { panic!("not a close") };
    assert_eq!(u16::from(frame.code), 1012);
    let mut all = String::new();
    events.read_to_string(&mut all).unwrap();
    assert!(all.contains("retry: ") && all.ends_with("\r\n0\r\n\r\n"), "{all}");
    door.replies.recv_deadline(door.rt.now() + PATIENCE).unwrap().json(200, &json!({}));
    let (head, body) = response(&mut upload);
    assert!(head.contains("connection: close\r\n") && body == "{}", "{head}");
    // A child that another test forks just now has the listener too until it becomes its own program.
    let patience = door.rt.now() + PATIENCE;
    while TcpStream::connect(door.address()).is_ok() {
        assert!(door.rt.now() < patience, "nothing new is accepted");
        door.rt.sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_unix_socket_serves_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("door");
    let rt = Rt::real();
    let mut router = Router::new();
    router.add(Route::get("/healthz").open().to(|request: Request, reply: Reply| {
        reply.json(200, &json!({"local": request.peer().is_local()}));
    }));
    let io = IoThreads::new(&rt, 1, None).unwrap();
    let listener = Listener::bind(&format!("unix:{}", path.display())).unwrap();
    let running = io.start(Limits::default(), vec![listener], Arc::new(router)).unwrap();
    let mut socket = std::os::unix::net::UnixStream::connect(&path).unwrap();
    socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut all = String::new();
    socket.read_to_string(&mut all).unwrap();
    assert!(all.ends_with("{\"local\":true}"), "{all}");
    drop(running);
    assert!(!path.exists(), "the socket file is removed");
}

#[test]
fn slow_heads_and_stalled_readers_keep_nobody_waiting() {
    // A test process shares its machine with others: the figure of the issue (50 ms) is checked by the
    // load driver; here, that nobody waits for a slow head, which would be longer than the test has patience.
    crate::front_crowd::many_descriptors();
    let limits = Limits { head_wait: 3 * PATIENCE, ..Limits::default() };
    let mut door = Door::open(limits);
    let mut group = door.wire.doors().group();
    let slow: Vec<TcpStream> = (0..1_000)
        .map(|_| {
            let mut socket = door.connect();
            socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").unwrap();
            socket
        })
        .collect();
    let stalled: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut socket = door.connect();
            socket.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            group.join(&door.link());
            socket
        })
        .collect();
    let frame = Frame::chunk(&vec![b'x'; 32 * 1024]);
    for _ in 0..40 {
        group.fanout(frame.clone());
    }
    for _ in 0..200 {
        let mut socket = door.connect();
        socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!(response(&mut socket).1, "{\"ok\":true}");
    }
    for mut socket in slow {
        socket.write_all(b"1\r\n\r\n").unwrap();
        assert!(response(&mut socket).0.starts_with("HTTP/1.1 404 "), "a slow head that ends is answered");
    }
    drop(stalled);
    door.hear();
}

#[test]
fn an_address_with_too_many_links_is_turned_away_and_local_ones_are_not_counted() {
    let limits = Limits { links: 3, links_per_address: 1, ..Limits::default() };
    let door = Door::open(limits);
    let mut kept: Vec<TcpStream> = (0..3).map(|_| door.connect()).collect();
    for socket in &mut kept {
        socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(response(socket).1, "{\"ok\":true}");
    }
    let mut refused = String::new();
    door.connect().read_to_string(&mut refused).unwrap();
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1\r\n"), "{refused}");
    let turned_away: u64 = door.wire.doors().counts().map(|counts| counts.turned_away.get()).sum();
    assert_eq!(turned_away, 1);
}

#[test]
fn tls_carries_requests_and_dials() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
    let server = towpath::wire::ServerTls::from_files(
        &fixtures.join("localhost.pem"),
        &fixtures.join("localhost.key"),
    );
    let trust = towpath::wire::ClientTls::trusting(&fixtures.join("authority.pem")).unwrap();
    let rt = Rt::real();
    let (to_events, events) = rt.channel("events", 16);
    let outlet = Outlet::channel(to_events);
    let (to_opened, opened) = rt.channel("opened", 4);
    let mut router = Router::new();
    let here = outlet.clone();
    router.add(Route::get("/ws").to(move |request: Request, reply: Reply| {
        assert!(request.peer().tls);
        to_opened.try_send(reply.websocket(&[], 1 << 22, Owner::new(&here, 1)).unwrap()).unwrap();
    }));
    let io = IoThreads::new(&rt, 2, Some(trust)).unwrap();
    let wire = io.wire();
    let listener = Listener::bind("127.0.0.1:0").unwrap().with_tls(server.unwrap());
    let running = io.start(Limits::default(), vec![listener], Arc::new(router)).unwrap();
    let dial = |host: &str, number| {
        let Bound::Tcp(address) = running.addresses()[0].clone() else { panic!("not TCP") };
        wire.dial(Dial {
            target: Target::parse(&format!("wss://{host}:{}/ws", address.port())).unwrap(),
            speak: Speak::WebSocket { protocols: vec![], message_max: 1 << 22 },
            headers: vec![],
            deadline: rt.now() + PATIENCE,
            cancel: rt.cancel_token(),
            owner: Owner::new(&outlet, number),
        });
    };
    let hear = || events.recv_deadline(rt.now() + PATIENCE).unwrap();
    dial("localhost", 7);
    let accepted: LinkHandle = opened.recv_deadline(rt.now() + PATIENCE).unwrap();
    let mut heard: Vec<LinkEvent> = hear();
    let Happened::Opened(dialed, _) = heard.remove(0).what else { panic!("not opened") };
    let large = vec![3; 1 << 20];
    dialed.send_paced(Frame::binary(&large));
    accepted.send_paced(Frame::binary(&large));
    let mut arrived = Vec::new();
    while arrived.len() < 2 {
        arrived.extend(hear());
    }
    assert!(arrived.iter().all(|event| matches!(&event.what, Happened::Binary(bytes) if *bytes == large)));
    // The certificate is for localhost, not for its address.
    dial("127.0.0.1", 8);
    let refused = hear().remove(0);
    assert!(matches!(&refused.what, Happened::Refused(Refused::Tls(_))), "{refused:?}");
}
