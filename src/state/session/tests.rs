use std::collections::VecDeque;

use proptest::prelude::*;

use super::client::{self, Client, Retry};
use super::server;
use super::*;
use crate::codec::{Bounds, Codec};
use crate::state::handshake::{Decision, Expected, RefusalCode, Request, Response, SecondClient, decide};
use crate::state::time::Moment;
use crate::state::value::Value;

const CODEC: Codec = Codec::Binary;

fn options() -> Options {
    Options { timing: Timing::default(), bounds: SendBounds::default(), encode: CODEC.encoder() }
}

fn with_timing(timing: Timing) -> Options {
    Options { timing, ..options() }
}

fn ms(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

fn read(frame: &Bytes) -> Envelope {
    CODEC.decode(frame, Bounds::default()).expect("a machine writes good frames")
}

fn say(n: i64) -> Message {
    Message::new("s", Flags::NONE, Value::Int(n))
}

/// What a client's server would send: any message numbered as the test wants.
fn from_server(seq: u64, ack: u64, message: &Message) -> Result<Envelope, &'static str> {
    Ok(read(&CODEC.encode(Outgoing { id: "i", from: "server", to: "client", seq, ack, message })))
}

fn from_client(seq: u64, ack: u64, message: &Message) -> Result<Envelope, &'static str> {
    Ok(read(&CODEC.encode(Outgoing { id: "i", from: "client", to: "server", seq, ack, message })))
}

fn welcome(session: &str) -> Result<Envelope, &'static str> {
    from_server(0, 0, &Response::Welcome { session: session.into() }.message("x".into()))
}

fn refused(code: RefusalCode) -> Result<Envelope, &'static str> {
    from_server(0, 0, &Response::Refused(Refusal::new(code, "why")).message("x".into()))
}

/// What a machine did, in words that one can compare: frames as what they say, ids left out.
fn words(sink: &mut Vec<Action>) -> Vec<String> {
    sink.drain(..)
        .map(|action| match action {
            Action::Write { link, frame } => {
                let e = read(&frame);
                let what = match e.payload.as_ref().expect("good").get("type").and_then(Value::as_str) {
                    Some(kind) => kind.to_owned(),
                    None => format!("{:?}", e.payload.as_ref().expect("good")),
                };
                format!("write {link}: {what} seq {} ack {}", e.seq, e.ack)
            }
            Action::Deliver(e) => format!("deliver {:?}", e.payload.expect("good")),
            Action::Began { .. } => "began".into(),
            Action::Ended { cause, .. } => format!("ended {cause}"),
            Action::Close { link, cause } => format!("close {link} {cause}"),
            Action::Dial { dial } => format!("dial {dial}"),
            Action::AskMetadata { link } => format!("metadata {link}"),
            Action::CheckRefresh { metadata } => format!("check {metadata:?}"),
            Action::Writable => "writable".into(),
            Action::Tell(event) => format!("tell {event:?}"),
        })
        .collect()
}

struct TestClient {
    /// Small numbers: two sessions differ, and no wait gets longer by them.
    draws: u64,
    client: Client,
    sink: Vec<Action>,
}

impl TestClient {
    fn new(options: Options) -> TestClient {
        TestClient {
            draws: 0,
            client: Client::new("client", "server", options, Retry::default()),
            sink: Vec::new(),
        }
    }

    /// One that has a link, numbered 1, since the moment zero.
    fn connected(options: Options) -> TestClient {
        let mut this = TestClient::new(options);
        this.step(0, client::Input::Connect);
        this.attach(0, 1);
        this
    }

    fn step(&mut self, at: u64, input: client::Input) -> Vec<String> {
        self.draws += 1;
        self.client.step(ms(at), self.draws, input, &mut self.sink);
        words(&mut self.sink)
    }

    fn alarm(&mut self, at: u64) -> Vec<String> {
        self.step(at, client::Input::Alarm)
    }

    fn frame(&mut self, at: u64, link: u64, envelope: Result<Envelope, &'static str>) -> Vec<String> {
        self.step(at, client::Input::Frame { link, envelope })
    }

    /// Takes the dial through its handshake.
    fn attach(&mut self, at: u64, dial: u64) -> Vec<String> {
        self.step(at, client::Input::Dialed { dial });
        self.step(at, client::Input::Metadata { link: dial, metadata: Ok(None) });
        let session = self.client.session().expect("a session is being attached").to_owned();
        self.frame(at, dial, welcome(&session))
    }
}

struct TestServer {
    session: server::Session,
    sink: Vec<Action>,
}

impl TestServer {
    /// One that has a link, numbered 1, since the moment zero.
    fn connected(options: Options) -> TestServer {
        let version = Version::V2_0;
        let request =
            Request { version, session: "s1".into(), expected: Some(Default::default()), metadata: None };
        let mut sink = Vec::new();
        let session = server::Session::begin("server", "client", &request, 7, options, &mut sink);
        let mut this = TestServer { session, sink };
        this.attach(0, 1, 0);
        this
    }

    fn step(&mut self, at: u64, input: server::Input) -> Vec<String> {
        self.session.step(ms(at), input, &mut self.sink);
        words(&mut self.sink)
    }

    fn attach(&mut self, at: u64, link: u64, peer_has: u64) -> Vec<String> {
        self.step(at, server::Input::Attached { link, peer_has, refresh_at: None })
    }

    fn frame(&mut self, at: u64, link: u64, envelope: Result<Envelope, &'static str>) -> Vec<String> {
        self.step(at, server::Input::Frame { link, envelope })
    }

    fn say(&mut self, at: u64, n: i64) -> Vec<String> {
        self.step(at, server::Input::Say(say(n)))
    }
}

fn has(words: &[String], part: &str) -> bool {
    words.iter().any(|word| word.contains(part))
}

// ---- the client's transitions ----

#[test]
fn constructing_a_client_never_dials() {
    let client = TestClient::new(options());
    assert_eq!((client.client.deadline(), client.client.session()), (None, None));
}

#[test]
fn the_first_thing_to_say_begins_a_session_and_dials_at_once() {
    let mut client = TestClient::new(options());
    assert_eq!(client.step(0, client::Input::Say(say(1))), ["began", "dial 1"]);
    assert_eq!(client.step(10, client::Input::Dialed { dial: 1 }), ["metadata 1"]);
    let asked = client.step(10, client::Input::Metadata { link: 1, metadata: Ok(None) });
    assert_eq!(asked, ["write 1: HANDSHAKE_REQ seq 0 ack 0"]);
    let session = client.client.session().unwrap().to_owned();
    assert_eq!(
        client.frame(20, 1, welcome(&session)),
        ["write 1: Int(1) seq 0 ack 0", "tell Connected { resent: 1, trimmed: 0 }"]
    );
    assert!(client.client.is_connected());
}

#[test]
fn consecutive_connects_use_the_one_dial() {
    let mut client = TestClient::new(options());
    assert_eq!(client.step(0, client::Input::Connect), ["began", "dial 1"]);
    assert!(client.step(1, client::Input::Connect).is_empty());
    client.attach(2, 1);
    assert!(client.step(3, client::Input::Connect).is_empty());
}

#[test]
fn a_lost_link_is_dialed_again_and_what_was_not_acknowledged_is_sent_again_with_the_same_bytes() {
    let mut client = TestClient::connected(options());
    client.step(10, client::Input::Say(say(1)));
    client.step(10, client::Input::Say(say(2)));
    client.frame(20, 1, from_server(0, 1, &say(9)));
    // One dial was spent and a link that lived 2 s gave it back: the next goes at once.
    let lost = client.step(2_000, client::Input::Detached { link: 1 });
    assert_eq!(lost, ["tell Disconnected { cause: LinkLost }", "dial 2"]);
    client.step(2_001, client::Input::Say(say(3)));
    let attached = client.attach(2_002, 2);
    assert_eq!(
        attached,
        [
            "write 2: Int(2) seq 1 ack 0",
            "write 2: Int(3) seq 2 ack 1",
            "tell Connected { resent: 2, trimmed: 0 }"
        ],
        "a frame sent again is the frame that was sent, with the acknowledgement it had"
    );
}

#[test]
fn the_handshake_says_where_the_client_stands() {
    let mut client = TestClient::connected(options());
    client.step(10, client::Input::Say(say(1)));
    client.step(10, client::Input::Say(say(2)));
    client.frame(20, 1, from_server(0, 1, &say(9)));
    client.step(2_000, client::Input::Detached { link: 1 });
    client.client.step(ms(2_000), 0, client::Input::Dialed { dial: 2 }, &mut client.sink);
    client.sink.clear();
    let input = client::Input::Metadata { link: 2, metadata: Ok(Some("token".into())) };
    client.client.step(ms(2_000), 0, input, &mut client.sink);
    let Some(Action::Write { frame, .. }) = client.sink.first() else { panic!("a request is written") };
    let request = Request::read(&read(frame)).unwrap();
    assert_eq!(request.expected, Some(Expected { next_expected: 1, next_sent: 1 }));
    assert_eq!(request.metadata, Some("token".into()));
}

#[test]
fn the_grace_is_carried_through_every_state_without_a_link() {
    // 5 s of grace from the loss at 1 s, whatever state they end in.
    let after_loss = || {
        let mut client = TestClient::connected(options());
        client.step(1_000, client::Input::Detached { link: 1 });
        client
    };
    let mut connecting = after_loss();
    connecting.step(1_500, client::Input::DialFailed { dial: 2 });
    let mut handshaking = after_loss();
    handshaking.step(2_999, client::Input::Dialed { dial: 2 });
    for (name, mut client) in [("backing off", connecting), ("handshaking", handshaking)] {
        let mut at = 3_000;
        let mut ended = Vec::new();
        while at < 7_000 && client.client.session().is_some() {
            at = client.client.deadline().expect("a session without a link has an alarm").as_millis().max(at);
            ended = client.alarm(at);
        }
        assert_eq!(at, 6_000, "{name}");
        assert!(has(&ended, "ended grace_over"), "{name}: {ended:?}");
    }
}

#[test]
fn after_the_grace_nothing_dials_until_there_is_something_to_say() {
    let mut client = TestClient::new(options());
    client.step(0, client::Input::Connect);
    client.step(1, client::Input::DialFailed { dial: 1 });
    while let Some(at) = client.client.deadline() {
        client.alarm(at.as_millis());
    }
    assert_eq!(client.client.session(), None);
    let words = client.step(60_000, client::Input::Say(say(1)));
    assert_eq!(words[0], "began");
}

#[test]
fn with_no_grace_a_lost_link_ends_the_session() {
    let timing = Timing { grace: Duration::ZERO, ..Timing::default() };
    let mut client = TestClient::connected(with_timing(timing));
    let words = client.step(10, client::Input::Detached { link: 1 });
    assert_eq!(words, ["tell Disconnected { cause: LinkLost }", "ended grace_over"]);
    let mut server = TestServer::connected(with_timing(timing));
    let words = server.step(10, server::Input::Detached { link: 1, goodbye: false });
    assert!(has(&words, "ended grace_over"));
}

#[test]
fn a_dial_that_takes_too_long_is_given_up_and_closed_when_it_comes_through() {
    let mut client = TestClient::new(options());
    client.step(0, client::Input::Connect);
    assert_eq!(client.alarm(2_000), ["tell Disconnected { cause: LinkLost }"]);
    assert_eq!(client.step(2_001, client::Input::Dialed { dial: 1 }), ["close 1 not_wanted"]);
    assert_eq!(client.alarm(2_150), ["dial 2"]);
    client.step(2_151, client::Input::End(Cause::Goodbye));
    assert_eq!(client.step(2_200, client::Input::Dialed { dial: 2 }), ["close 2 not_wanted"]);
}

#[test]
fn a_handshake_that_takes_too_long_closes_the_link_and_keeps_the_session() {
    let mut client = TestClient::new(options());
    client.step(0, client::Input::Connect);
    client.step(0, client::Input::Dialed { dial: 1 });
    let session = client.client.session().map(str::to_owned);
    assert_eq!(
        client.alarm(1_000),
        ["close 1 handshake_timeout", "tell Disconnected { cause: HandshakeTimeout }"]
    );
    assert_eq!(client.client.session().map(str::to_owned), session);
}

#[test]
fn a_mismatch_begins_another_session_at_once() {
    let mut client = TestClient::new(options());
    client.step(0, client::Input::Connect);
    client.step(0, client::Input::Dialed { dial: 1 });
    let old = client.client.session().map(str::to_owned);
    let words = client.frame(1, 1, refused(RefusalCode::SessionStateMismatch));
    assert!(has(&words, "ended mismatch") && has(&words, "began"), "{words:?}");
    assert_ne!(client.client.session().map(str::to_owned), old);
}

#[test]
fn a_fatal_refusal_is_told_and_not_dialed_again() {
    for code in [
        RefusalCode::MalformedHandshake,
        RefusalCode::MalformedHandshakeMeta,
        RefusalCode::ProtocolVersionMismatch,
        RefusalCode::RejectedByCustomHandler,
        RefusalCode::RejectedUnsupportedClient,
    ] {
        let mut client = TestClient::new(options());
        client.step(0, client::Input::Connect);
        client.step(0, client::Input::Dialed { dial: 1 });
        let words = client.frame(1, 1, refused(code));
        assert!(has(&words, "HandshakeFailed") && has(&words, "ended handshake_refused"), "{words:?}");
        assert_eq!(client.client.deadline(), None, "{code}");
    }
}

#[test]
fn an_answer_for_another_session_and_one_that_is_none_are_told() {
    for (answer, told) in [
        (welcome("somebody's"), "OtherSession"),
        (from_server(0, 0, &say(1)), "BadResponse"),
        (Err("not a message"), "BadResponse"),
    ] {
        let mut client = TestClient::new(options());
        client.step(0, client::Input::Connect);
        client.step(0, client::Input::Dialed { dial: 1 });
        let words = client.frame(1, 1, answer);
        assert!(has(&words, told) && has(&words, "close 1"), "{words:?}");
        assert_eq!(client.client.session(), None);
    }
}

#[test]
fn metadata_that_cannot_be_made_fails_the_handshake() {
    let mut client = TestClient::new(options());
    client.step(0, client::Input::Connect);
    client.step(0, client::Input::Dialed { dial: 1 });
    let words = client.step(0, client::Input::Metadata { link: 1, metadata: Err("no token".into()) });
    assert!(has(&words, "NoMetadata") && has(&words, "ended"), "{words:?}");
}

#[test]
fn waits_double_up_to_their_limit_and_jitter_comes_on_top() {
    let retry = Retry::default();
    let waits: Vec<u64> = (0..12).map(|spent| retry.wait(spent, 0).as_millis() as u64).collect();
    assert_eq!(waits, [0, 150, 300, 600, 1200, 2400, 4800, 9600, 19200, 32000, 32000, 32000]);
    assert_eq!(retry.wait(0, u64::MAX), Duration::ZERO);
    let most = retry.wait(11, u64::MAX);
    assert!(most > Duration::from_millis(32_199) && most < Duration::from_millis(32_200));
}

#[test]
fn a_spent_budget_is_told_once_and_dialing_goes_on_until_the_grace_ends() {
    let timing = Timing { grace: Duration::from_secs(60), ..Timing::default() };
    let mut client = TestClient::new(with_timing(timing));
    client.step(0, client::Input::Connect);
    let (mut told, mut dials, mut at) = (0, 1, 0);
    loop {
        for word in client.step(at, client::Input::DialFailed { dial: dials }) {
            told += usize::from(word.contains("RetriesExceeded"));
        }
        at = client.client.deadline().expect("it goes on").as_millis();
        let words = client.alarm(at);
        if has(&words, "ended grace_over") {
            break;
        }
        dials += 1;
        assert_eq!(words, [format!("dial {dials}")]);
    }
    assert_eq!((told, at), (1, 60_000));
    assert!(dials > 8, "{dials}");
}

#[test]
fn a_link_that_lived_earns_its_dials_back() {
    let mut client = TestClient::connected(options());
    client.step(100, client::Input::Detached { link: 1 });
    assert_eq!(client.client.deadline(), Some(ms(250)), "too short a life: 150 ms");
    assert_eq!(client.alarm(250), ["dial 2"]);
    client.attach(250, 2);
    let words = client.step(650, client::Input::Detached { link: 2 });
    assert!(has(&words, "dial 3"), "two dials, 400 ms: as if nothing had been spent. {words:?}");
}

#[test]
fn a_client_told_not_to_reconnect_waits_to_be_asked() {
    let mut client = TestClient::connected(options());
    client.step(0, client::Input::Reconnects(false));
    assert_eq!(
        client.step(1_000, client::Input::Detached { link: 1 }),
        ["tell Disconnected { cause: LinkLost }"]
    );
    assert_eq!(client.step(1_500, client::Input::Connect), ["dial 2"]);
}

#[test]
fn a_hard_disconnect_ends_the_session_at_once() {
    let mut client = TestClient::connected(options());
    let words = client.step(10, client::Input::End(Cause::Goodbye));
    assert_eq!(words, ["close 1 goodbye", "tell Disconnected { cause: Goodbye }", "ended goodbye"]);
    assert_eq!(client.client.deadline(), None);
}

// ---- the server's transitions ----

#[test]
fn a_server_keeps_a_session_without_a_link_for_its_grace() {
    let mut server = TestServer::connected(options());
    server.step(1_000, server::Input::Detached { link: 1, goodbye: false });
    assert_eq!(server.session.deadline(), Some(ms(6_000)));
    assert!(server.say(2_000, 1).is_empty(), "what is said meanwhile waits");
    assert!(server.step(5_999, server::Input::Alarm).is_empty());
    assert_eq!(server.step(6_000, server::Input::Alarm), ["ended grace_over"]);
    assert!(server.say(6_001, 1).is_empty());
}

#[test]
fn a_reconnect_replays_only_what_the_client_lacks() {
    let mut server = TestServer::connected(options());
    for n in 0..4 {
        server.say(0, n);
    }
    server.step(10, server::Input::Detached { link: 1, goodbye: false });
    assert_eq!(
        server.attach(20, 2, 3),
        [
            "write 2: HANDSHAKE_RESP seq 0 ack 0",
            "write 2: Int(3) seq 3 ack 0",
            "tell Connected { resent: 1, trimmed: 3 }"
        ]
    );
}

#[test]
fn a_takeover_closes_the_old_link_first() {
    let mut server = TestServer::connected(options());
    let words = server.attach(10, 2, 0);
    assert_eq!(words[..2], ["close 1 taken_over", "tell Disconnected { cause: TakenOver }"]);
    assert!(server.frame(11, 1, from_client(0, 0, &say(1))).is_empty(), "a stale link delivers nothing");
    assert_eq!(server.frame(11, 2, from_client(0, 0, &say(1))), ["deliver Int(1)"]);
    assert!(server.step(12, server::Input::Detached { link: 1, goodbye: false }).is_empty());
    assert_eq!(server.session.link(), Some(2));
}

#[test]
fn a_goodbye_ends_the_session_without_grace() {
    let mut server = TestServer::connected(options());
    assert_eq!(server.step(5, server::Input::Detached { link: 1, goodbye: true }), ["ended goodbye"]);
}

#[test]
fn the_server_beats_and_the_client_answers() {
    let mut server = TestServer::connected(options());
    assert_eq!(server.session.deadline(), Some(ms(1_000)));
    assert_eq!(server.step(1_000, server::Input::Alarm), ["write 1: ACK seq 0 ack 0"]);
    let mut client = TestClient::connected(options());
    assert_eq!(
        client.frame(1_000, 1, from_server(0, 0, &Message::heartbeat())),
        ["write 1: ACK seq 0 ack 1"]
    );
    assert!(
        server.frame(1_001, 1, from_client(0, 1, &Message::heartbeat())).is_empty(),
        "which is not answered"
    );
    assert_eq!(server.session.unacked(), (0, 0));
}

#[test]
fn a_silent_peer_is_given_up_after_two_heartbeats_and_its_session_kept() {
    let mut server = TestServer::connected(options());
    server.step(1_000, server::Input::Alarm);
    let words = server.step(2_000, server::Input::Alarm);
    assert_eq!(words, ["close 1 silent", "tell Disconnected { cause: Silent }"]);
    assert!(!server.session.is_ended());
    let mut client = TestClient::connected(options());
    assert!(client.alarm(1_000).is_empty(), "a client never beats by itself");
    assert!(has(&client.alarm(2_000), "close 1 silent"));
}

#[test]
fn whatever_comes_in_keeps_a_link_alive() {
    for envelope in [from_client(0, 0, &say(1)), from_client(0, 0, &Message::heartbeat())] {
        let mut server = TestServer::connected(options());
        server.step(1_000, server::Input::Alarm);
        server.frame(1_500, 1, envelope.clone());
        assert!(!has(&server.step(2_000, server::Input::Alarm), "silent"));
        // A message that was received before is no news, but its sender lives.
        server.frame(2_500, 1, envelope);
        assert!(!has(&server.step(3_000, server::Input::Alarm), "silent"));
        assert!(!has(&server.step(4_000, server::Input::Alarm), "silent"));
        assert!(has(&server.step(5_000, server::Input::Alarm), "silent"));
    }
}

// ---- what arrives ----

#[test]
fn a_message_received_before_is_dropped() {
    let mut server = TestServer::connected(options());
    assert_eq!(server.frame(1, 1, from_client(0, 0, &say(1))), ["deliver Int(1)"]);
    assert_eq!(server.frame(2, 1, from_client(0, 0, &say(1))), ["tell Duplicate"]);
}

#[test]
fn a_message_from_the_future_closes_the_link_and_keeps_the_session() {
    let mut server = TestServer::connected(options());
    let words = server.frame(1, 1, from_client(1, 0, &say(1)));
    assert_eq!(words, ["close 1 out_of_order", "tell Disconnected { cause: OutOfOrder }"]);
    assert!(!server.session.is_ended());
    let mut client = TestClient::connected(options());
    let words = client.frame(1_000, 1, from_server(5, 0, &say(1)));
    assert!(has(&words, "close 1 out_of_order") && has(&words, "dial 2"), "{words:?}");
}

#[test]
fn what_is_no_message_or_from_somebody_else_ends_the_session() {
    let spoofed =
        read(&CODEC.encode(Outgoing { id: "i", from: "eve", to: "x", seq: 0, ack: 0, message: &say(1) }));
    for bad in [Err("not a message"), Ok(spoofed)] {
        let mut server = TestServer::connected(options());
        let words = server.frame(1, 1, bad.clone());
        assert!(has(&words, "InvalidMessage") && has(&words, "ended invalid_message"), "{words:?}");
        let mut client = TestClient::connected(options());
        let words = client.frame(1, 1, bad);
        assert!(has(&words, "InvalidMessage") && has(&words, "ended invalid_message"), "{words:?}");
        assert_eq!(client.client.deadline(), None, "nothing is dialed until there is something to say");
    }
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_changes_nothing() {
    let mut server = TestServer::connected(options());
    server.say(0, 1);
    assert_eq!(server.frame(1, 1, from_client(0, 99, &say(1))), ["deliver Int(1)"]);
    assert_eq!(server.say(2, 2), ["write 1: Int(2) seq 1 ack 1"]);
}

// ---- acknowledgements and bounds ----

#[test]
fn whoever_only_listens_says_an_acknowledgement_after_256_messages() {
    let mut server = TestServer::connected(options());
    let mut client = TestClient::connected(options());
    for n in 0..1_024u64 {
        let words = server.frame(1, 1, from_client(n, 0, &say(1)));
        assert_eq!(has(&words, "ACK"), n % 256 == 255, "{n}: {words:?}");
        let words = client.frame(1, 1, from_server(n, 0, &say(1)));
        assert_eq!(has(&words, "ACK"), n % 256 == 255, "{n}: {words:?}");
    }
}

#[test]
fn whoever_talks_says_no_acknowledgements_besides() {
    let mut server = TestServer::connected(options());
    for n in 0..1_024u64 {
        server.say(1, 1);
        let words = server.frame(1, 1, from_client(n, n + 1, &say(1)));
        assert_eq!(words, ["deliver Int(1)"]);
    }
}

#[test]
fn a_server_whose_buffer_is_half_full_asks_once_and_again_after_the_answer() {
    let mut server = TestServer::connected(options());
    let mut asked = Vec::new();
    for n in 0..700 {
        if has(&server.say(1, n), "ACK") {
            asked.push(n);
        }
    }
    assert_eq!(asked, [511]);
    server.frame(2, 1, from_client(0, 701, &Message::heartbeat()));
    assert_eq!(server.session.unacked(), (0, 0));
    assert!((0..512).any(|n| has(&server.say(3, n), "ACK")));
}

#[test]
fn writers_are_told_when_they_may_go_on() {
    let mut server = TestServer::connected(options());
    for n in 0..1_024 {
        server.say(1, n);
    }
    assert!(server.session.above_mark());
    assert!(!has(&server.frame(2, 1, from_client(0, 0, &Message::heartbeat())), "writable"));
    assert!(has(&server.frame(2, 1, from_client(1, 2, &Message::heartbeat())), "writable"));
    assert!(!server.session.above_mark());
}

#[test]
fn a_session_that_holds_more_than_it_may_ends_with_that_reason() {
    let bounds = SendBounds { max_messages: 10, ..SendBounds::default() };
    let mut server = TestServer::connected(Options { bounds, ..options() });
    let mut client = TestClient::connected(Options { bounds, ..options() });
    for n in 0..10 {
        assert!(!has(&server.say(1, n), "ended"));
        assert!(!has(&client.step(1, client::Input::Say(say(n))), "ended"));
    }
    assert!(has(&server.say(1, 10), "ended buffer_full"));
    assert!(has(&client.step(1, client::Input::Say(say(10))), "ended buffer_full"));
}

// ---- fresh metadata ----

#[test]
fn a_client_is_asked_for_fresh_metadata_and_answers() {
    let mut server = TestServer::connected(options());
    server.step(0, server::Input::Attached { link: 2, peer_has: 0, refresh_at: Some(ms(500)) });
    assert_eq!(server.session.deadline(), Some(ms(500)));
    assert_eq!(server.step(500, server::Input::Alarm), ["write 2: REHANDSHAKE_REQ seq 0 ack 0"]);
    let response = crate::state::handshake::rehandshake_response("fresh".into());
    assert_eq!(server.frame(600, 2, from_client(0, 1, &response)), ["check Text(\"fresh\")"]);
    assert!(server.step(700, server::Input::Refreshed { accepted: Some(Some(ms(9_000))) }).is_empty());
    let mut client = TestClient::connected(options());
    let request = crate::state::handshake::rehandshake_request();
    assert_eq!(client.frame(1, 1, from_server(0, 0, &request)), ["metadata 1"]);
    let answered = client.step(2, client::Input::Metadata { link: 1, metadata: Ok(Some("fresh".into())) });
    assert_eq!(answered, ["write 1: REHANDSHAKE_RESP seq 0 ack 1"]);
}

#[test]
fn fresh_metadata_that_is_late_malformed_or_refused_ends_the_session() {
    let asked = || {
        let mut server = TestServer::connected(options());
        server.step(100, server::Input::AskRefresh);
        server
    };
    let mut late = asked();
    late.step(1_000, server::Input::Alarm);
    assert!(has(&late.step(1_100, server::Input::Alarm), "ended refresh_failed"));
    let mut malformed = asked();
    let message = Message::new(super::super::envelope::REHANDSHAKE_STREAM, Flags::NONE, Value::Null);
    assert!(has(&malformed.frame(200, 1, from_client(0, 1, &message)), "ended refresh_failed"));
    let mut rejected = asked();
    let response = crate::state::handshake::rehandshake_response("stale".into());
    rejected.frame(200, 1, from_client(0, 1, &response));
    assert!(has(&rejected.step(300, server::Input::Refreshed { accepted: None }), "ended refresh_failed"));
}

#[test]
fn a_refresh_nobody_asked_for_is_consumed() {
    let mut server = TestServer::connected(options());
    let response = crate::state::handshake::rehandshake_response("x".into());
    assert!(server.frame(1, 1, from_client(0, 0, &response)).is_empty());
    assert_eq!(server.frame(1, 1, from_client(1, 0, &say(1))), ["deliver Int(1)"]);
}

// ---- both together, over a network that does what it likes ----

/// A client and a server with a network between them that may cut, stall and reorder nothing.
struct World {
    now: u64,
    client: Client,
    server: Option<server::Session>,
    /// The link that is open, and the frames on their way each way.
    link: Option<(u64, VecDeque<Bytes>, VecDeque<Bytes>)>,
    /// What the server's side of an unfinished handshake waits on.
    waiting: Option<u64>,
    dial: Option<u64>,
    options: Options,
    said: [Vec<i64>; 2],
    heard: [Vec<i64>; 2],
}

impl World {
    fn new(options: Options) -> World {
        World {
            now: 0,
            client: Client::new("client", "server", options, Retry::default()),
            server: None,
            link: None,
            waiting: None,
            dial: None,
            options,
            said: [Vec::new(), Vec::new()],
            heard: [Vec::new(), Vec::new()],
        }
    }

    fn client(&mut self, input: client::Input) {
        let mut sink = Vec::new();
        self.client.step(ms(self.now), 0x9e37_79b9 * self.now, input, &mut sink);
        for action in sink {
            match action {
                Action::Dial { dial } => self.dial = Some(dial),
                Action::AskMetadata { link } => {
                    self.client(client::Input::Metadata { link, metadata: Ok(None) })
                }
                Action::Write { link, frame } => {
                    if let Some((open, up, _)) = self.link.as_mut().filter(|(open, ..)| *open == link) {
                        assert_eq!(*open, link);
                        up.push_back(frame);
                    }
                }
                Action::Close { link, .. } => {
                    if self.link.as_ref().is_some_and(|(open, ..)| *open == link) {
                        self.link = None;
                        self.server_lost(link);
                    }
                }
                Action::Deliver(envelope) => self.heard[0].push(envelope.payload.unwrap().as_i64().unwrap()),
                Action::Ended { cause, .. } => panic!("the client's session ended: {cause}"),
                Action::CheckRefresh { .. } | Action::Began { .. } | Action::Writable | Action::Tell(_) => {}
            }
        }
    }

    fn server(&mut self, input: server::Input) {
        let Some(session) = &mut self.server else { return };
        let mut sink = Vec::new();
        session.step(ms(self.now), input, &mut sink);
        self.server_actions(sink);
    }

    fn server_actions(&mut self, sink: Vec<Action>) {
        for action in sink {
            match action {
                Action::Write { link, frame } => {
                    if let Some((_, _, down)) = self.link.as_mut().filter(|(open, ..)| *open == link) {
                        down.push_back(frame);
                    }
                }
                Action::Close { link, .. } if self.link.as_ref().is_some_and(|(open, ..)| *open == link) => {
                    self.link = None;
                    self.client(client::Input::Detached { link });
                }
                Action::Deliver(envelope) => self.heard[1].push(envelope.payload.unwrap().as_i64().unwrap()),
                Action::Ended { cause, .. } => panic!("the server's session ended: {cause}"),
                _ => {}
            }
        }
    }

    fn server_lost(&mut self, link: u64) {
        self.waiting = self.waiting.filter(|waiting| *waiting != link);
        self.server(server::Input::Detached { link, goodbye: false });
    }

    /// The dial that is out succeeds.
    fn connect(&mut self) {
        let Some(dial) = self.dial.take() else { return };
        self.link = Some((dial, VecDeque::new(), VecDeque::new()));
        self.waiting = Some(dial);
        self.client(client::Input::Dialed { dial });
    }

    /// One frame arrives at the server.
    fn up(&mut self) {
        let Some((link, up, _)) = &mut self.link else { return };
        let (link, Some(frame)) = (*link, up.pop_front()) else { return };
        let envelope = read(&frame);
        if self.waiting != Some(link) {
            return self.server(server::Input::Frame { link, envelope: Ok(envelope) });
        }
        self.waiting = None;
        let request = Request::read(&envelope).expect("our client asks well");
        let known = self.server.as_ref().map(server::Session::known);
        let mut sink = Vec::new();
        match decide(&request, known, SecondClient::TakesOver, true) {
            Decision::Resume => {}
            Decision::Begin => {
                assert!(self.server.is_none(), "nothing here makes the client forget its session");
                self.server =
                    Some(server::Session::begin("server", "client", &request, 5, self.options, &mut sink));
            }
            Decision::Refuse(refusal) => panic!("refused: {refusal}"),
        }
        let peer_has = request.peer_has();
        self.server(server::Input::Attached { link, peer_has, refresh_at: None });
    }

    /// One frame arrives at the client.
    fn down(&mut self) {
        let Some((link, _, down)) = &mut self.link else { return };
        let (link, Some(frame)) = (*link, down.pop_front()) else { return };
        let envelope = Ok(read(&frame));
        self.client(client::Input::Frame { link, envelope });
    }

    fn cut(&mut self) {
        if let Some((link, ..)) = self.link.take() {
            self.client(client::Input::Detached { link });
            self.server_lost(link);
        }
    }

    fn alarms(&mut self) {
        self.client(client::Input::Alarm);
        self.server(server::Input::Alarm);
    }

    fn check(&self) {
        for (heard, said) in [(&self.heard[0], &self.said[1]), (&self.heard[1], &self.said[0])] {
            assert!(said.starts_with(heard), "{heard:?} is not how {said:?} begins");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    ClientSays,
    ServerSays,
    Connect,
    Up(u8),
    Down(u8),
    Cut,
    Time(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::ClientSays),
        4 => Just(Step::ServerSays),
        4 => Just(Step::Connect),
        6 => (1u8..8).prop_map(Step::Up),
        6 => (1u8..8).prop_map(Step::Down),
        2 => Just(Step::Cut),
        3 => (1u16..1_500).prop_map(Step::Time),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No loss, no duplicate, in order, whatever the network does; and all arrives once it heals.
    #[test]
    fn everything_said_is_heard_once_and_in_order(steps in steps()) {
        // A grace longer than any of these runs: what a session's end loses is another matter.
        let timing = Timing { grace: Duration::from_secs(100_000), ..Timing::default() };
        let mut world = World::new(with_timing(timing));
        let mut next = 0;
        world.client(client::Input::Connect);
        for step in steps {
            match step {
                Step::ClientSays => {
                    next += 1;
                    world.said[0].push(next);
                    world.client(client::Input::Say(say(next)));
                }
                Step::ServerSays if world.server.is_some() => {
                    next += 1;
                    world.said[1].push(next);
                    world.server(server::Input::Say(say(next)));
                }
                Step::ServerSays => {}
                Step::Connect => world.connect(),
                Step::Up(n) => (0..n).for_each(|_| world.up()),
                Step::Down(n) => (0..n).for_each(|_| world.down()),
                Step::Cut => world.cut(),
                Step::Time(by) => {
                    world.now += u64::from(by);
                    world.alarms();
                }
            }
            world.check();
        }
        for _ in 0..300 {
            world.now += 400;
            world.connect();
            for _ in 0..150 {
                world.up();
                world.down();
            }
            world.alarms();
        }
        world.check();
        prop_assert_eq!(&world.heard[0], &world.said[1]);
        prop_assert_eq!(&world.heard[1], &world.said[0]);
        prop_assert_eq!(world.client.unacked().0 + world.server.map_or(0, |s| s.unacked().0) <= 2, true);
    }
}
