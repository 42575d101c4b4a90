//! Links and handshakes: who is let in, who takes over, and what each kind of bad input does.

use bytes::Bytes;
use serde_json::json;
use towpath::codec::{Bounds, Codec};
use towpath::engine::sessions::{Admission, Admitted};
use towpath::service::{Procedure, Writable};
use towpath::state::envelope::{Envelope, Flags, Message, Outgoing, Procedure as Name};
use towpath::state::handshake::{Expected, Refusal, RefusalCode, Request, Response, SecondClient, Version};
use towpath::state::seq::SendBounds;
use towpath::state::session::{Cause, Event, HandshakeFailure};
use towpath::state::value::Value;
use towpath::testing::Sim;
use towpath::wire::bearer::{self, Bearer, Carriers, Ear, Heard};

use super::*;

/// A client that says what a test wants.
struct Raw {
    bearer: Box<dyn Bearer>,
    heard: Receiver<Heard>,
    rt: Rt,
    seq: u64,
    received: u64,
}

impl Raw {
    fn open(stage: &Stage) -> Raw {
        let (tx, heard) = stage.rt.channel("heard", 512);
        let ear = Ear::new(move |heard| tx.send(heard).is_ok());
        let (bearer, _line) = stage.server.memory(ear).unwrap();
        Raw { bearer, heard, rt: stage.rt.clone(), seq: 0, received: 0 }
    }

    /// One whose session has begun.
    fn welcomed(stage: &Stage) -> Raw {
        let mut raw = Raw::open(stage);
        raw.handshake("s1", 0, 0);
        let answer = raw.envelope();
        assert_eq!(Response::read(&answer), Some(Response::Welcome { session: "s1".into() }));
        raw
    }

    fn frame(&self, from: &str, to: &str, seq: u64, message: &Message) -> Bytes {
        Codec::Json.encode(Outgoing { id: "raw", from, to, seq, ack: self.received, message })
    }

    fn handshake(&mut self, session: &str, next_expected: u64, next_sent: u64) {
        self.handshake_as(Version::V2_0, session, Expected { next_expected, next_sent });
    }

    fn handshake_as(&mut self, version: Version, session: &str, expected: Expected) {
        let request = Request { version, session: session.into(), expected: Some(expected), metadata: None };
        self.bearer.send(self.frame("raw", "SERVER", 0, &request.message("h".into())));
    }

    fn say(&mut self, message: &Message) {
        self.bearer.send(self.frame("raw", "SERVER", self.seq, message));
        self.seq += 1;
    }

    fn call(&mut self, stream: &str, name: &str, init: Value) {
        let procedure = Some(Name { service: "interop".into(), name: name.into() });
        self.say(&Message { procedure, ..Message::new(stream, Flags::OPEN_CLOSED, init) });
    }

    #[track_caller]
    fn envelope(&mut self) -> Envelope {
        match next(&self.rt, &self.heard) {
            Heard::Frame(frame) => Codec::Json.decode(&frame, Bounds::default()).expect("a message"),
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// The next message of a session, after which the link is still good.
    #[track_caller]
    fn answer(&mut self) -> Envelope {
        let envelope = self.envelope();
        assert_eq!(envelope.seq, self.received);
        self.received += 1;
        envelope
    }

    #[track_caller]
    fn closed(&mut self) -> u16 {
        match next(&self.rt, &self.heard) {
            Heard::Closed { code } => code,
            other => panic!("{other:?} instead of a close"),
        }
    }

    #[track_caller]
    fn refused(&mut self) -> Refusal {
        match Response::read(&self.envelope()) {
            Some(Response::Refused(refusal)) => refusal,
            other => panic!("{other:?} instead of a refusal"),
        }
    }
}

fn echo_works(raw: &mut Raw) {
    raw.call("works", "echo", Value::Int(7));
    let answer = raw.answer();
    assert_eq!(answer.payload.unwrap().get("payload"), Some(&Value::Int(7)));
}

#[test]
fn a_link_that_says_nothing_is_closed_after_its_handshakes_time() {
    let timing = Timing { handshake: Duration::from_millis(50), ..quiet() };
    let stage = Stage::with(timing, Service::new("extra"));
    assert_eq!(Raw::open(&stage).closed(), Cause::HandshakeTimeout.code());
}

#[test]
fn what_is_no_handshake_is_closed_without_an_answer() {
    let stage = Stage::new();
    for bad in ["", "not json", "{}", "[]", "{\"id\":1}"] {
        let mut raw = Raw::open(&stage);
        raw.bearer.send(Bytes::from_static(bad.as_bytes()));
        assert_eq!(raw.closed(), Cause::InvalidMessage.code(), "{bad:?}");
    }
}

#[test]
fn a_handshake_that_is_wrong_is_told_why_and_closed() {
    let stage = Stage::new();
    let mut malformed = Raw::open(&stage);
    let message = Message::new("h", Flags::NONE, Value::map([("type", "HANDSHAKE_REQ".into())]));
    malformed.bearer.send(malformed.frame("raw", "SERVER", 0, &message));
    assert_eq!(malformed.refused().code, RefusalCode::MalformedHandshake);
    assert_eq!(malformed.closed(), Cause::HandshakeRefused.code());
    let mut old = Raw::open(&stage);
    let Value::Map(mut fields) = message.payload.clone() else { unreachable!() };
    fields.extend([
        ("protocolVersion".to_owned(), "v0".into()),
        ("sessionId".to_owned(), "s".into()),
        (
            "expectedSessionState".to_owned(),
            Value::map([("nextExpectedSeq", 0.into()), ("nextSentSeq", 0.into())]),
        ),
    ]);
    old.bearer.send(old.frame("raw", "SERVER", 0, &Message::new("h", Flags::NONE, Value::Map(fields))));
    assert_eq!(old.refused().code, RefusalCode::ProtocolVersionMismatch);
}

#[test]
fn a_session_nobody_knows_and_numbers_that_cannot_be_are_a_mismatch() {
    let stage = Stage::new();
    for (next_expected, next_sent) in [(1, 0), (0, 1)] {
        let mut raw = Raw::open(&stage);
        raw.handshake("unknown", next_expected, next_sent);
        assert_eq!(raw.refused().code, RefusalCode::SessionStateMismatch);
    }
    let mut first = Raw::welcomed(&stage);
    echo_works(&mut first);
    let mut future = Raw::open(&stage);
    future.handshake("s1", 1, 5);
    assert!(future.refused().reason.contains("client is in the future"));
    echo_works(&mut first);
}

#[test]
fn each_kind_of_bad_message_does_what_it_should_and_no_more() {
    let good = |raw: &Raw| raw.frame("raw", "SERVER", raw.seq, &Message::heartbeat());
    let spoofed = |raw: &Raw| raw.frame("eve", "SERVER", raw.seq, &Message::heartbeat());
    let future = |raw: &Raw| raw.frame("raw", "SERVER", raw.seq + 1, &Message::heartbeat());
    let garbage = |_: &Raw| Bytes::from_static(b"\xff\xfe");
    let huge = |_: &Raw| Bytes::from(vec![b' '; Bounds::default().bytes + 1]);
    type Bad<'a> = &'a dyn Fn(&Raw) -> Bytes;
    let ends: [(&str, Bad<'_>, Cause); 4] = [
        ("spoofed", &spoofed, Cause::InvalidMessage),
        ("garbage", &garbage, Cause::InvalidMessage),
        ("huge", &huge, Cause::InvalidMessage),
        ("future", &future, Cause::OutOfOrder),
    ];
    for (name, bad, cause) in ends {
        let stage = Stage::new();
        let mut raw = Raw::welcomed(&stage);
        raw.bearer.send(good(&raw));
        raw.seq += 1;
        raw.bearer.send(bad(&raw));
        assert_eq!(raw.closed(), cause.code(), "{name}");
        // A session that lost its link is kept, one that was abused is gone.
        let mut again = Raw::open(&stage);
        again.handshake("s1", 0, 1);
        let kept = matches!(Response::read(&again.envelope()), Some(Response::Welcome { .. }));
        assert_eq!(kept, cause == Cause::OutOfOrder, "{name}");
    }
}

#[test]
fn what_comes_twice_or_is_for_somebody_else_changes_nothing() {
    let stage = Stage::new();
    let mut raw = Raw::welcomed(&stage);
    raw.call("once", "echo", Value::Int(1));
    let again = raw.frame("raw", "SERVER", 0, &Message::heartbeat());
    raw.bearer.send(again);
    // Taken for its number, not for what it asks.
    let elsewhere = raw.frame("raw", "OTHER", raw.seq, &Message::new("x", Flags::NONE, Value::Null));
    raw.bearer.send(elsewhere);
    raw.seq += 1;
    assert_eq!(raw.answer().stream, "once");
    echo_works(&mut raw);
}

#[test]
fn a_hostile_payload_fails_its_call_and_not_its_session() {
    let stage = Stage::new();
    let mut raw = Raw::welcomed(&stage);
    let deep = ["[".repeat(50_000), "]".repeat(50_000)].concat();
    for (n, hostile) in [r#"{"$t":"***"}"#, r#"{"$b":"x"}"#, &deep].iter().enumerate() {
        let message = Message {
            procedure: Some(Name { service: "interop".into(), name: "echo".into() }),
            ..Message::new(format!("hostile{n}"), Flags::OPEN_CLOSED, "PAYLOAD".into())
        };
        let text = String::from_utf8(raw.frame("raw", "SERVER", raw.seq, &message).to_vec()).unwrap();
        raw.bearer.send(text.replace("\"PAYLOAD\"", hostile).into());
        raw.seq += 1;
        let answer = raw.answer();
        assert_eq!(answer.flags, Flags::CANCEL);
        let failure = answer.payload.unwrap();
        let code = failure.get("payload").and_then(|p| p.get("code")).and_then(Value::as_str);
        assert_eq!(code, Some("INVALID_REQUEST"));
    }
    echo_works(&mut raw);
}

#[test]
fn a_link_taken_over_is_closed_and_its_session_goes_on() {
    let stage = Stage::new();
    let mut first = Raw::welcomed(&stage);
    echo_works(&mut first);
    let mut second = Raw::open(&stage);
    second.handshake("s1", 1, 1);
    assert!(matches!(Response::read(&second.envelope()), Some(Response::Welcome { .. })));
    assert_eq!(first.closed(), Cause::TakenOver.code());
    (second.seq, second.received) = (1, 1);
    echo_works(&mut second);
}

#[test]
fn a_second_client_with_the_same_id_takes_over_or_is_refused() {
    let stage = Stage::new();
    let mut first = Raw::welcomed(&stage);
    let mut second = Raw::open(&stage);
    second.handshake("s2", 0, 0);
    assert!(matches!(Response::read(&second.envelope()), Some(Response::Welcome { .. })));
    assert_eq!(first.closed(), Cause::Replaced.code());

    let settings = Settings { timing: quiet(), second: SecondClient::IsRefused, ..Settings::default() };
    let stage = Stage::built(quiet(), Service::new("extra"), |builder| builder.settings(settings));
    let mut first = Raw::welcomed(&stage);
    let mut second = Raw::open(&stage);
    second.handshake("s2", 0, 0);
    assert_eq!(second.refused().code, RefusalCode::RejectedByCustomHandler);
    echo_works(&mut first);
}

#[test]
fn a_v1_1_client_is_served_in_its_own_way() {
    let stage = Stage::new();
    let mut raw = Raw::open(&stage);
    raw.handshake_as(Version::V1_1, "s1", Expected::default());
    assert!(matches!(Response::read(&raw.envelope()), Some(Response::Welcome { .. })));
    let procedure = Some(Name { service: "interop".into(), name: "sum".into() });
    raw.say(&Message { procedure, ..Message::new("up", Flags::OPEN, Value::map([("n", 5.into())])) });
    raw.say(&Message::new("up", Flags::NONE, Value::map([("n", 6.into())])));
    raw.say(&Message::new("up", Flags(4), Value::map([("type", "CLOSE".into())])));
    let answer = raw.answer();
    assert_eq!(answer.flags, Flags(4));
    let total = answer.payload.unwrap().get("payload").and_then(|p| p.get("total")).cloned();
    assert_eq!(total, Some(Value::Int(11)), "the first message was a datum already");
}

#[test]
fn a_v1_1_client_that_does_not_say_where_it_stands_learns_by_the_servers_id_whether_it_goes_on() {
    let stage = Stage::new();
    let named = |stage: &Stage, session: &str| {
        let mut raw = Raw::open(stage);
        let request =
            Request { version: Version::V1_1, session: session.into(), expected: None, metadata: None };
        raw.bearer.send(raw.frame("raw", "SERVER", 0, &request.message("h".into())));
        match Response::read(&raw.envelope()) {
            Some(Response::Welcome { session }) => (raw, session),
            other => panic!("{other:?} instead of a welcome"),
        }
    };
    let (mut first, name) = named(&stage, "s1");
    assert_ne!(name, "s1", "an id of the server's own");
    first.call("lost", "echo", Value::Int(7));
    assert_eq!(first.answer().seq, 0);
    let (mut second, again) = named(&stage, "s1");
    assert_eq!(again, name, "the session goes on");
    assert_eq!(second.answer().stream, "lost", "and what it may not have is sent again");
    assert_ne!(named(&stage, "s2").1, name);
    assert_ne!(named(&Stage::new(), "s1").1, name, "another server has lost it");
}

#[test]
fn a_server_beats_and_a_client_answers_so_that_an_idle_session_lives() {
    Sim::new(1)
        .run(|test| {
            let timing = Timing { heartbeat: Duration::from_millis(400), ..quiet() };
            let stage = Stage::on(test.rt(), timing, Service::new("extra"), |builder| builder);
            let remote = stage.client();
            assert!(remote.client.rpc::<_, Value>("interop", "echo", &1).is_ok());
            // Without a beat it would be given up after 800 ms, or 1,200 at the latest.
            test.advance(Duration::from_secs(10));
            assert_eq!((remote.dials(), remote.client.is_connected()), (1, true));
        })
        .assert_ok();
}

#[test]
fn a_link_that_carries_nothing_is_given_up_and_what_it_held_arrives_over_another() {
    let timing = Timing { heartbeat: Duration::from_millis(30), ..quiet() };
    let stage = Stage::with(timing, Service::new("extra"));
    let remote = stage.client();
    assert!(remote.client.rpc::<_, Value>("interop", "echo", &1).is_ok());
    for line in remote.lines.lock().iter() {
        line.stall(true, true);
    }
    assert_eq!(remote.client.rpc("interop", "echo", &2), Ok(Value::Int(2)));
    // More, where the machine itself stalls for two heartbeats.
    assert!(remote.dials() >= 2);
}

#[test]
fn a_one_way_subscription_is_acknowledged_without_heartbeats() {
    let flood = Service::new("extra").with(
        "flood",
        Procedure::subscription(|_, upto: u64, out: Writable<u64>| {
            (0..upto).try_for_each(|n| out.write(&n)).map_err(Into::into)
        }),
    );
    let stage = Stage::with(quiet(), flood);
    let remote = stage.client();
    let answers = remote.client.subscribe::<_, u64>("extra", "flood", &30_000u64).unwrap();
    assert!(answers.map(Result::unwrap).eq(0..30_000), "with heartbeats alone it would take 50 minutes");
}

struct Tokens;

impl Admission for Tokens {
    fn admit(
        &self,
        client: &str,
        metadata: Option<&Value>,
        before: Option<&Value>,
    ) -> Result<Admitted, Refusal> {
        let token = metadata.and_then(|metadata| metadata.get("token")).and_then(Value::as_str);
        let seen = before.and_then(|before| before.get("seen")).and_then(Value::as_i64).unwrap_or(0);
        match token {
            None => Err(Refusal::new(RefusalCode::MalformedHandshakeMeta, "a token is missing")),
            Some("bad") => Err(Refusal::new(RefusalCode::RejectedByCustomHandler, "go away")),
            Some("panic") => panic!("looking at the token went wrong"),
            Some(token) => {
                let metadata = Value::map([
                    ("user", client.into()),
                    ("token", token.into()),
                    ("seen", (seen + 1).into()),
                ]);
                Ok(Admitted {
                    metadata,
                    // Asked for anew a handshake's time before, which is a moment after this one.
                    expires_in: token.starts_with("short").then_some(LONG + Duration::from_millis(20)),
                })
            }
        }
    }
}

fn guarded(extra: Service) -> Stage {
    Stage::built(quiet(), extra, |builder| builder.admission(Tokens))
}

fn with_tokens(tokens: &'static [&'static str]) -> (Options, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = made.clone();
    let make = move || {
        let at = counter.fetch_add(1, Ordering::AcqRel).min(tokens.len() - 1);
        match tokens[at] {
            "none" => Err("there is no token".to_owned()),
            token => Ok(Value::map([("token", token.into())])),
        }
    };
    (Options { metadata: Some(Arc::new(make)), ..Options::default() }, made)
}

fn metadata_service() -> Service {
    Service::new("extra")
        .with("metadata", Procedure::rpc(|call, (): ()| Ok((*call.metadata()).clone())).inline())
}

#[test]
fn handlers_learn_what_the_admission_made_of_the_handshake() {
    let stage = guarded(metadata_service());
    let remote = stage.client_with("ann", with_tokens(&["good"]).0);
    let metadata: Value = remote.client.rpc("extra", "metadata", &()).unwrap();
    assert_eq!(metadata.get("user"), Some(&"ann".into()));
    remote.cut();
    let metadata: Value = remote.client.rpc("extra", "metadata", &()).unwrap();
    assert_eq!(metadata.get("seen"), Some(&Value::Int(2)), "a reconnect shows it what it made before");
}

#[test]
fn a_client_that_is_not_let_in_is_told_and_does_not_come_back() {
    let stage = guarded(metadata_service());
    for (tokens, code) in [
        (&["bad"][..], RefusalCode::RejectedByCustomHandler),
        (&["panic"], RefusalCode::RejectedByCustomHandler),
    ] {
        let (told, tellings) = stage.rt.channel("events", 16);
        let (options, _) = with_tokens(tokens);
        let listener = move |event: &Event| _ = told.try_send(event.clone());
        let remote = stage.client_with("bob", Options { listener: Some(Arc::new(listener)), ..options });
        let failure = remote.client.rpc::<_, Value>("extra", "metadata", &()).unwrap_err();
        assert_eq!(failure.code, "UNEXPECTED_DISCONNECT");
        let failed = std::iter::from_fn(|| tellings.try_recv().ok())
            .find_map(|event| if let Event::HandshakeFailed(why) = event { Some(why) } else { None });
        assert!(matches!(failed, Some(HandshakeFailure::Refused(refusal)) if refusal.code == code));
        assert_eq!(remote.dials(), 1);
    }
}

#[test]
fn a_client_without_metadata_is_told_that_it_is_malformed() {
    let stage = guarded(metadata_service());
    let mut raw = Raw::open(&stage);
    raw.handshake("s1", 0, 0);
    assert_eq!(raw.refused().code, RefusalCode::MalformedHandshakeMeta);
}

#[test]
fn metadata_that_cannot_be_made_fails_the_calls_that_wait_for_it() {
    let stage = guarded(metadata_service());
    let remote = stage.client_with("bob", with_tokens(&["none"]).0);
    assert_eq!(
        remote.client.rpc::<_, Value>("extra", "metadata", &()).unwrap_err().code,
        "UNEXPECTED_DISCONNECT"
    );
}

#[test]
fn metadata_that_expires_is_refreshed_while_the_session_lives() {
    let stage = guarded(metadata_service());
    let (options, made) = with_tokens(&["short1", "short2", "long"]);
    let remote = stage.client_with("ann", options);
    let token = || -> Value { remote.client.rpc("extra", "metadata", &()).unwrap() };
    assert!(token().get("token").and_then(Value::as_str).is_some_and(|token| token.starts_with("short")));
    until(&stage.rt, "the last token is known", || token().get("token") == Some(&"long".into()));
    assert_eq!((made.load(Ordering::Acquire), remote.dials()), (3, 1));
}

#[test]
fn a_client_that_cannot_refresh_loses_its_session() {
    let stage = guarded(metadata_service());
    let (told, tellings) = stage.rt.channel("events", 64);
    let (options, _) = with_tokens(&["short", "bad"]);
    let listener = move |event: &Event| _ = told.try_send(event.clone());
    let options = Options { listener: Some(Arc::new(listener)), reconnects: false, ..options };
    let remote = stage.client_with("ann", options);
    assert!(remote.client.rpc::<_, Value>("extra", "metadata", &()).is_ok());
    loop {
        if let Event::Disconnected { .. } = next(&stage.rt, &tellings) {
            break;
        }
    }
}

#[test]
fn sessions_go_over_unix_sockets_as_over_memory() {
    let stage = Stage::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("river.sock");
    stage.server.listen_unix(&path).unwrap();
    let (rt, carriers) = (stage.rt.clone(), Carriers::default());
    let links = carriers.clone();
    let dialer = DialWith::new(&stage.rt, move |ear| {
        let socket = std::os::unix::net::UnixStream::connect(&path)?;
        let (reader, writer) = (socket.try_clone()?, socket.try_clone()?);
        let shut = move || _ = socket.shutdown(std::net::Shutdown::Both);
        bearer::stream(&rt, &links, reader, writer, shut, ear)
    });
    let options = Options { timing: quiet(), ..Options::default() };
    let client = Client::start(&stage.rt, "client", "SERVER", Arc::new(dialer), options).unwrap();
    for n in 0..50 {
        assert_eq!(client.rpc("interop", "echo", &n), Ok(Value::Int(n)));
        if n % 10 == 0 {
            client.cut();
        }
    }
    let big = "x".repeat(300_000);
    assert_eq!(client.rpc("interop", "echo", &big), Ok(Value::from(big.as_str())));
    drop((client, stage));
    drop(carriers);
}

/// A server that holds little for all sessions together, and a client of it that acknowledges nothing.
#[test]
fn what_all_sessions_hold_together_is_bounded_and_whoever_goes_over_pays() {
    let pour = Procedure::subscription(|_, (): (), out: Writable<String>| {
        let drop_of = "x".repeat(1 << 10);
        loop {
            match out.write(&drop_of) {
                Ok(()) => {}
                Err(_) => return Ok(()),
            }
        }
    });
    let settings = Settings {
        timing: quiet(),
        holds_total: 256 << 10,
        // Each alone may hold more than all together.
        holds: SendBounds { mark_messages: 1 << 20, mark_bytes: 64 << 20, ..SendBounds::default() },
        ..Settings::default()
    };
    let extra = Service::new("extra").with("pour", pour);
    let stage = Stage::built(quiet(), extra, |builder| builder.settings(settings));
    let other = stage.client_with("other", Options::default());
    assert_eq!(other.client.rpc("interop", "echo", &1), Ok(Value::Int(1)));
    let mut deaf = Raw::welcomed(&stage);
    let procedure = Some(Name { service: "extra".into(), name: "pour".into() });
    deaf.say(&Message { procedure, ..Message::new("pour", Flags::OPEN_CLOSED, Value::Null) });
    let code = loop {
        match next(&stage.rt, &deaf.heard) {
            Heard::Frame(_) => {}
            Heard::Closed { code } => break code,
            Heard::Garbage(what) => panic!("{what}"),
        }
    };
    assert_eq!(code, Cause::BufferFull.code());
    assert_eq!(other.client.rpc("interop", "echo", &2), Ok(Value::Int(2)), "the others go on");
    assert_eq!(other.dials(), 1);
}

/// A WebSocket to the stage's server, and what it says: text where bytes are spoken.
#[test]
fn a_text_frame_closes_a_link_without_an_answer_and_ends_a_session() {
    use towpath::front::{Router, river};
    use towpath::wire::{IoThreads, Limits, Listener};
    use tungstenite::Message as Frame;
    let stage = Stage::new();
    let mut router = Router::new();
    router.add(river::route("/", stage.server.doorbell().clone()));
    let io = IoThreads::new(&stage.rt, 1, None).expect("threads");
    let listener = Listener::bind("127.0.0.1:0").expect("a port");
    let running = io.start(Limits::default(), vec![listener], Arc::new(router)).expect("threads");
    let address = running.addresses()[0].to_string();
    let dial = || {
        let socket = std::net::TcpStream::connect(&address).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        tungstenite::client(format!("ws://{address}/"), socket).expect("an upgrade").0
    };
    let closed = |frame: Result<Frame, tungstenite::Error>| match frame {
        Ok(Frame::Close(Some(close))) => u16::from(close.code),
        other => panic!("{other:?} instead of a close"),
    };
    let mut early = dial();
    early.send(Frame::text("{}")).expect("sent");
    assert_eq!(closed(early.read()), Cause::InvalidMessage.code());

    let shaken = |session: &str| {
        let expected = Some(Expected::default());
        let request = Request { version: Version::V2_0, session: session.into(), expected, metadata: None };
        let message = request.message("h".into());
        let outgoing = Outgoing { id: "raw", from: "raw", to: "SERVER", seq: 0, ack: 0, message: &message };
        let mut link = dial();
        link.send(Frame::binary(Codec::Json.encode(outgoing))).expect("sent");
        let Ok(Frame::Binary(answer)) = link.read() else { panic!("no answer") };
        let answer = Codec::Json.decode(&answer, Bounds::default()).expect("a message");
        (link, Response::read(&answer))
    };
    let (mut late, answer) = shaken("s1");
    assert_eq!(answer, Some(Response::Welcome { session: "s1".into() }));
    late.send(Frame::text("{}")).expect("sent");
    assert_eq!(closed(late.read()), Cause::InvalidMessage.code());
    drop(running);
}

#[test]
fn a_server_whose_socket_file_is_gone_ends_all_the_same() {
    let stage = Stage::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("river.sock");
    stage.server.listen_unix(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let rt = stage.rt.clone();
    let ended = rt.spawn("end", move || drop(stage)).unwrap();
    until(&rt, "the server ends", || ended.is_finished());
}

#[test]
fn a_hundred_clients_each_have_their_own_session() {
    let stage = Stage::new();
    let remotes: Vec<Remote> =
        (0..100).map(|n| stage.client_with(&format!("client-{n}"), Options::default())).collect();
    for (n, remote) in remotes.iter().enumerate() {
        let who: Value = remote.client.rpc("interop", "whoami", &json!({})).unwrap();
        assert_eq!(who.get("from"), Some(&format!("client-{n}").into()));
        assert_eq!(who.get("sessionId").and_then(Value::as_str), remote.client.session().as_deref());
    }
    stage.server.cut(None);
    for remote in &remotes {
        assert!(remote.client.rpc::<_, Value>("interop", "whoami", &json!({})).is_ok());
        assert_eq!(remote.dials(), 2);
    }
}
