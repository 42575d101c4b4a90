use super::*;

/// `t.rpc`, `t.up`, `t.sub` and `t.str`, numbered in that order.
struct Procedures;

impl Catalog for Procedures {
    fn find(&self, service: &str, procedure: &str) -> Result<(Kind, usize), Missing> {
        if service != "t" {
            return Err(Missing::Service);
        }
        match procedure {
            "rpc" => Ok((Kind::Rpc, 0)),
            "up" => Ok((Kind::Upload, 1)),
            "sub" => Ok((Kind::Subscription, 2)),
            "str" => Ok((Kind::Stream, 3)),
            _ => Err(Missing::Procedure),
        }
    }

    fn init_is_data(&self, _: usize, payload: &Value) -> bool {
        matches!(payload, Value::Int(_))
    }
}

fn message(flags: Flags, procedure: Option<(&str, &str)>, payload: Value) -> Envelope {
    Envelope {
        id: "i".into(),
        from: "client".into(),
        to: "server".into(),
        seq: 0,
        ack: 0,
        service: procedure.map(|(service, _)| service.into()),
        procedure: procedure.map(|(_, name)| name.into()),
        stream: "s".into(),
        flags,
        tracing: None,
        payload: Ok(payload),
    }
}

fn opening(name: &str) -> Envelope {
    let flags = if matches!(name, "rpc" | "sub") { Flags::OPEN_CLOSED } else { Flags::OPEN };
    message(flags, Some(("t", name)), Value::Map(vec![]))
}

fn data(n: i64) -> Envelope {
    message(Flags::NONE, None, Value::Int(n))
}

fn close() -> Envelope {
    message(Flags::CLOSED, None, Value::map([("type", "CLOSE".into())]))
}

fn cancelled(payload: Value) -> Envelope {
    message(Flags::CANCEL, None, payload)
}

fn failure_payload(code: &str) -> Value {
    write_answer(Err(Failure::new(code, "m")))
}

fn say(message: &Message) -> String {
    let what = match &message.payload {
        payload if is_close(payload) => "CLOSE".to_owned(),
        payload => match read_answer(payload.clone()) {
            Some(Ok(value)) => format!("ok {value:?}"),
            Some(Err(failure)) => format!("err {failure}"),
            None => format!("{payload:?}"),
        },
    };
    format!("say {:?} {what}", message.flags)
}

fn serve_words(sink: &mut Vec<Serve>) -> Vec<String> {
    sink.drain(..)
        .map(|action| match action {
            Serve::Say(message) => say(&message),
            Serve::Open { procedure, init, .. } => format!("open {procedure} {init:?}"),
            Serve::Data { value, .. } => format!("data {value:?}"),
            Serve::RequestsEnded { .. } => "requests ended".into(),
            Serve::Broken { failure, .. } => format!("broken {failure}"),
            Serve::Finished { .. } => "finished".into(),
        })
        .collect()
}

struct Server {
    served: Served,
    sink: Vec<Serve>,
}

impl Server {
    fn new() -> Server {
        Server::speaking(Version::V2_0)
    }

    fn speaking(version: Version) -> Server {
        Server { served: Served::new("server", version, 10), sink: Vec::new() }
    }

    /// One on which a call of that procedure has begun.
    fn with(name: &str) -> Server {
        let mut this = Server::new();
        this.hears(opening(name));
        this
    }

    fn hears(&mut self, envelope: Envelope) -> Vec<String> {
        self.served.arrived(envelope, &Procedures, &mut self.sink);
        serve_words(&mut self.sink)
    }

    fn answers(&mut self, n: i64) -> Vec<String> {
        self.served.answer("s", Ok(Value::Int(n)), &mut self.sink);
        serve_words(&mut self.sink)
    }

    fn closes(&mut self) -> Vec<String> {
        self.served.close_answers("s", &mut self.sink);
        serve_words(&mut self.sink)
    }

    fn fails(&mut self, code: &str) -> Vec<String> {
        self.served.fail("s", Failure::new(code, "m"), &mut self.sink);
        serve_words(&mut self.sink)
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn an_rpc_is_one_message_each_way() {
    let mut server = Server::new();
    assert_eq!(server.hears(opening("rpc")), ["open 0 Map([])", "requests ended"]);
    assert_eq!(server.answers(1), ["say Closed ok Int(1)", "finished"]);
    assert_eq!(server.served.open(), 0);
    assert_eq!(server.answers(2), NOTHING, "there is one answer");
}

#[test]
fn an_upload_is_answered_once_and_stays_until_the_client_closes() {
    let mut server = Server::with("up");
    assert_eq!(server.hears(data(1)), ["data Int(1)"]);
    assert_eq!(server.answers(1), ["say Closed ok Int(1)"], "it may be answered early");
    assert_eq!(server.hears(data(2)), ["data Int(2)"]);
    assert_eq!(server.hears(close()), ["requests ended", "finished"]);
}

#[test]
fn a_subscription_goes_on_after_an_error_until_it_is_closed() {
    let mut server = Server::with("sub");
    assert_eq!(server.answers(1), ["say - ok Int(1)"]);
    server.served.answer("s", Err(Failure::new("NOT_FOUND", "no")), &mut server.sink);
    assert_eq!(serve_words(&mut server.sink), ["say - err NOT_FOUND: no"]);
    assert_eq!(server.answers(2), ["say - ok Int(2)"]);
    assert_eq!(server.closes(), ["say Closed CLOSE", "finished"]);
    assert_eq!(server.closes(), NOTHING, "closing again changes nothing");
}

#[test]
fn either_side_of_a_stream_may_close_first() {
    let mut server = Server::with("str");
    assert_eq!(server.hears(close()), ["requests ended"]);
    assert_eq!(server.answers(1), ["say - ok Int(1)"]);
    assert_eq!(server.closes(), ["say Closed CLOSE", "finished"]);
    let mut server = Server::with("str");
    assert_eq!(server.closes(), ["say Closed CLOSE"]);
    assert_eq!(server.hears(data(1)), ["data Int(1)"]);
    assert_eq!(server.hears(close()), ["requests ended", "finished"]);
}

#[test]
fn the_last_datum_may_bring_the_close_with_it() {
    let mut server = Server::with("up");
    let last = message(Flags::CLOSED, None, Value::Int(7));
    assert_eq!(server.hears(last), ["data Int(7)", "requests ended"]);
}

#[test]
fn a_client_that_cancels_gets_the_end_of_what_streams_and_nothing_of_what_answers_once() {
    for (name, said) in [("rpc", false), ("up", false), ("sub", true), ("str", true)] {
        let mut server = Server::with(name);
        let words = server.hears(cancelled(failure_payload(CANCEL)));
        let mut expected = if said { vec!["say Closed CLOSE"] } else { vec![] };
        expected.extend(["broken CANCEL: m", "finished"]);
        assert_eq!(words, expected, "{name}");
        assert_eq!(server.answers(1), NOTHING, "{name}: nobody listens");
        assert_eq!(server.hears(data(1)), NOTHING, "{name}: what was on its way is ignored");
    }
}

#[test]
fn a_cancellation_that_makes_no_sense_is_one_all_the_same() {
    for payload in [Value::Null, failure_payload("WHATEVER"), write_answer(Ok(Value::Null))] {
        let words = Server::with("str").hears(cancelled(payload));
        assert_eq!(words[1], "broken CANCEL: stream cancelled, client sent invalid payload");
    }
}

#[test]
fn a_handler_that_cancels_or_fails_ends_the_stream_and_leaves_a_tombstone() {
    for (code, name) in
        [CANCEL, UNCAUGHT_ERROR].into_iter().flat_map(|c| ["rpc", "up", "sub", "str"].map(|n| (c, n)))
    {
        let mut server = Server::with(name);
        let broken = format!("broken {code}: m");
        assert_eq!(server.fails(code), [&format!("say Cancel err {code}: m"), &broken, "finished"]);
        assert_eq!(server.fails(code), NOTHING, "failing again changes nothing");
        assert_eq!(server.hears(data(1)), NOTHING);
        assert_eq!(server.hears(close()), NOTHING);
        assert_eq!(server.hears(cancelled(Value::Null)), NOTHING);
    }
}

#[test]
fn every_invalid_request_says_what_is_wrong_with_it() {
    let cases = [
        (
            data(1),
            "can't create a new procedure stream from a message that doesn't have the stream open bit set",
        ),
        (message(Flags::OPEN, None, Value::Null), "missing service name in stream open message"),
        (message(Flags::OPEN, Some(("", "rpc")), Value::Null), "missing service name in stream open message"),
        (message(Flags::OPEN, Some(("t", "")), Value::Null), "missing procedure name in stream open message"),
        (message(Flags::OPEN, Some(("nosuch", "x")), Value::Null), "couldn't find service nosuch"),
        (
            message(Flags::OPEN, Some(("t", "nope")), Value::Null),
            "couldn't find a matching procedure for t.nope",
        ),
    ];
    for (envelope, text) in cases {
        let mut server = Server::new();
        assert_eq!(server.hears(envelope.clone()), [format!("say Cancel err INVALID_REQUEST: {text}")]);
        assert_eq!(server.hears(envelope), NOTHING, "a tombstone answers once");
    }
}

#[test]
fn a_message_after_the_request_side_closed_is_invalid() {
    for name in ["rpc", "sub"] {
        let words = Server::with(name).hears(data(1));
        let text = "INVALID_REQUEST: received message after request stream is closed";
        assert_eq!(
            words,
            [&format!("say Cancel err {text}"), &format!("broken {text}"), "finished"],
            "{name}"
        );
    }
    let mut server = Server::with("str");
    server.hears(close());
    assert!(server.hears(close())[0].contains("INVALID_REQUEST"));
}

#[test]
fn a_payload_that_cannot_be_read_fails_its_stream_alone() {
    let bad = |mut envelope: Envelope| {
        envelope.payload = Err(super::super::envelope::BadPayload("hostile"));
        envelope
    };
    assert!(
        Server::new().hears(bad(opening("rpc")))[0]
            .contains("INVALID_REQUEST: procedure init cannot be read")
    );
    let words = Server::with("up").hears(bad(data(1)));
    assert!(words[0].contains("INVALID_REQUEST: request data cannot be read: hostile"), "{words:?}");
}

#[test]
fn tombstones_evict_the_oldest_and_are_their_sessions() {
    let mut server = Server::new();
    let orphan = |n: usize| Envelope { stream: format!("s{n}"), ..data(1) };
    for n in 0..=200 {
        assert_eq!(server.hears(orphan(n)).len(), 1);
    }
    assert_eq!(server.hears(orphan(200)), NOTHING);
    assert_eq!(server.hears(orphan(1)), NOTHING);
    assert_eq!(server.hears(orphan(0)).len(), 1, "the oldest was forgotten");
    assert_eq!(Server::new().hears(orphan(200)).len(), 1, "another session knows nothing of it");
}

#[test]
fn a_message_to_somebody_else_is_ignored() {
    let mut server = Server::new();
    assert_eq!(server.hears(Envelope { to: "other".into(), ..opening("rpc") }), NOTHING);
}

#[test]
fn a_session_that_ends_breaks_every_stream_and_says_nothing() {
    let mut server = Server::new();
    for n in 0..3 {
        server.hears(Envelope { stream: format!("s{n}"), ..opening("str") });
    }
    server.served.disconnected(&mut server.sink);
    let words = serve_words(&mut server.sink);
    assert_eq!(words.len(), 6);
    assert_eq!(words[..2], ["broken UNEXPECTED_DISCONNECT: client unexpectedly disconnected", "finished"]);
    assert_eq!(server.served.open(), 0);
}

#[test]
fn more_streams_than_allowed_are_refused_with_that_reason() {
    let mut server = Server::new();
    let nth = |n: usize| Envelope { stream: format!("s{n}"), ..opening("str") };
    for n in 0..10 {
        assert_eq!(server.hears(nth(n)).len(), 1);
    }
    assert!(server.hears(nth(10))[0].contains("too many streams"));
}

#[test]
fn a_v1_1_client_closes_with_the_bit_that_now_cancels_and_closes_both_sides() {
    let mut server = Server::speaking(Version::V1_1);
    assert_eq!(
        server.hears(message(Flags::OPEN, Some(("t", "str")), Value::Map(vec![]))),
        ["open 3 Map([])"]
    );
    let closing = message(Flags(4), None, Value::map([("type", "CLOSE".into())]));
    assert_eq!(server.hears(closing.clone()), ["requests ended", "say Cancel CLOSE", "finished"]);
    let mut server = Server::speaking(Version::V1_1);
    server.hears(message(Flags(6), Some(("t", "rpc")), Value::Map(vec![])));
    assert_eq!(server.answers(1), ["say Cancel ok Int(1)", "finished"]);
    let mut server = Server::speaking(Version::V1_1);
    server.hears(message(Flags::OPEN, Some(("t", "up")), Value::Int(5)));
    assert_eq!(server.hears(closing), ["requests ended"], "an upload is answered after its close");
    assert_eq!(server.answers(1), ["say Cancel ok Int(1)", "finished"]);
}

#[test]
fn a_v1_1_client_is_told_why_a_stream_fails_before_it_is_closed() {
    let mut server = Server::speaking(Version::V1_1);
    server.hears(message(Flags::OPEN, Some(("t", "str")), Value::Map(vec![])));
    let broken = "broken UNCAUGHT_ERROR: m";
    assert_eq!(
        server.fails(UNCAUGHT_ERROR),
        ["say - err UNCAUGHT_ERROR: m", "say Cancel CLOSE", broken, "finished"]
    );
    let mut server = Server::speaking(Version::V1_1);
    server.hears(message(Flags(6), Some(("t", "rpc")), Value::Map(vec![])));
    assert_eq!(server.fails(UNCAUGHT_ERROR), ["say Cancel err UNCAUGHT_ERROR: m", broken, "finished"]);
}

#[test]
fn a_v1_1_client_may_begin_with_data_where_the_init_is_empty() {
    let mut server = Server::speaking(Version::V1_1);
    let first = message(Flags::OPEN, Some(("t", "up")), Value::Int(5));
    assert_eq!(server.hears(first.clone()), ["open 1 Map([])", "data Int(5)"]);
    assert_eq!(Server::new().hears(first), ["open 1 Int(5)"]);
}

// ---- the side that asks ----

struct Caller {
    called: Called,
    sink: Vec<Call>,
}

impl Caller {
    fn calling(kind: Kind) -> Caller {
        let mut called = Called::new("SERVER");
        let mut sink = Vec::new();
        let procedure = Procedure { service: "t".into(), name: "p".into() };
        called.call("s", kind, procedure, Value::Null, Tracing::default(), &mut sink);
        let flags = if kind.has_requests() { "Open" } else { "Open|Closed" };
        let mut this = Caller { called, sink };
        assert_eq!(this.words(), [format!("say {flags} Null")]);
        this
    }

    fn words(&mut self) -> Vec<String> {
        self.sink
            .drain(..)
            .map(|action| match action {
                Call::Say(message) => say(&message),
                Call::Answered { answer: Ok(value), .. } => format!("ok {value:?}"),
                Call::Answered { answer: Err(failure), .. } => format!("err {failure}"),
                Call::AnswersEnded { .. } => "answers ended".into(),
                Call::RequestsBroken { .. } => "requests broken".into(),
            })
            .collect()
    }

    fn hears(&mut self, flags: Flags, payload: Value) -> Vec<String> {
        self.called.arrived(message(flags, None, payload), &mut self.sink);
        self.words()
    }
}

#[test]
fn an_answer_that_closes_ends_an_rpc() {
    let mut caller = Caller::calling(Kind::Rpc);
    assert_eq!(caller.hears(Flags::CLOSED, write_answer(Ok(Value::Int(1)))), ["ok Int(1)", "answers ended"]);
    assert_eq!(caller.called.open(), 0);
    assert_eq!(
        caller.hears(Flags::CLOSED, write_answer(Ok(Value::Int(1)))),
        NOTHING,
        "the stream is unknown now"
    );
}

#[test]
fn requests_go_out_until_the_caller_closes() {
    let mut caller = Caller::calling(Kind::Upload);
    assert!(caller.called.write("s", Value::Int(1), &mut caller.sink));
    caller.called.close("s", &mut caller.sink);
    caller.called.close("s", &mut caller.sink);
    assert!(!caller.called.write("s", Value::Int(2), &mut caller.sink));
    assert_eq!(caller.words(), ["say - Int(1)", "say Closed CLOSE"]);
    assert_eq!(caller.hears(Flags::CLOSED, write_answer(Ok(Value::Null))), ["ok Null", "answers ended"]);
    assert_eq!(caller.called.open(), 0);
}

#[test]
fn a_caller_that_cancels_gets_its_own_error_and_hears_nothing_after_it() {
    let mut caller = Caller::calling(Kind::Stream);
    caller.called.cancel("s", "cancelled by client", &mut caller.sink);
    let text = "CANCEL: cancelled by client";
    let expected =
        [&format!("say Cancel err {text}"), "requests broken", &format!("err {text}"), "answers ended"];
    assert_eq!(caller.words(), expected);
    caller.called.cancel("s", "again", &mut caller.sink);
    assert_eq!(caller.words(), NOTHING);
    assert_eq!(caller.hears(Flags::NONE, write_answer(Ok(Value::Null))), NOTHING);
}

#[test]
fn a_server_that_cancels_ends_both_sides() {
    for code in [CANCEL, UNCAUGHT_ERROR, INVALID_REQUEST, UNEXPECTED_DISCONNECT] {
        let mut caller = Caller::calling(Kind::Upload);
        let words = caller.hears(Flags::CANCEL, failure_payload(code));
        assert_eq!(words, ["requests broken", &format!("err {code}: m"), "answers ended"]);
        assert!(!caller.called.write("s", Value::Null, &mut caller.sink), "nothing more may be sent on it");
    }
    for payload in [Value::Null, failure_payload("NOT_FOUND"), write_answer(Ok(Value::Null))] {
        let words = Caller::calling(Kind::Rpc).hears(Flags::CANCEL, payload);
        assert_eq!(words[0], "err CANCEL: stream cancelled with invalid payload");
    }
}

#[test]
fn what_is_no_answer_is_dropped() {
    let mut caller = Caller::calling(Kind::Subscription);
    for payload in [
        Value::Null,
        Value::map([("ok", true.into())]),
        Value::map([("ok", false.into()), ("payload", 1.into())]),
    ] {
        assert_eq!(caller.hears(Flags::NONE, payload), NOTHING);
    }
    assert_eq!(caller.hears(Flags::NONE, write_answer(Ok(Value::Int(1)))), ["ok Int(1)"]);
}

#[test]
fn a_session_that_ends_tells_every_caller() {
    let mut caller = Caller::calling(Kind::Upload);
    caller.called.disconnected(&mut caller.sink);
    let text = "err UNEXPECTED_DISCONNECT: SERVER unexpectedly disconnected";
    assert_eq!(caller.words(), ["requests broken", text, "answers ended"]);
    assert_eq!(caller.called.open(), 0);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Hears(u32, u8),
        Answers,
        Closes,
        Fails,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u32..16, 0u8..4).prop_map(|(flags, payload)| Step::Hears(flags, payload)),
            Just(Step::Answers),
            Just(Step::Closes),
            Just(Step::Fails),
        ];
        proptest::collection::vec(step, 1..30)
    }

    proptest! {
        /// A handler hears `finished` once for every `open`, nothing after it, and no `data` after the end of
        /// requests; the client hears nothing after what closed or cancelled.
        #[test]
        fn streams_end_once_whatever_comes(name in 0usize..4, steps in steps(), old in any::<bool>()) {
            let names = ["rpc", "up", "sub", "str"];
            let version = if old { Version::V1_1 } else { Version::V2_0 };
            let mut server = Server::speaking(version);
            let mut log = server.hears(opening(names[name]));
            for step in steps {
                log.extend(match step {
                    Step::Hears(flags, payload) => {
                        let payload = match payload {
                            0 => Value::Int(1),
                            1 => Value::map([("type", "CLOSE".into())]),
                            2 => failure_payload(CANCEL),
                            _ => Value::Null,
                        };
                        server.hears(message(Flags(flags), Some(("t", names[name])), payload))
                    }
                    Step::Answers => server.answers(1),
                    Step::Closes => server.closes(),
                    Step::Fails => server.fails(CANCEL),
                });
            }
            let (mut open, mut requests) = (false, false);
            for word in &log {
                match word.as_str() {
                    word if word.starts_with("open") => {
                        prop_assert!(!open, "{:?}", log);
                        (open, requests) = (true, true);
                    }
                    "finished" => {
                        prop_assert!(open, "{:?}", log);
                        open = false;
                    }
                    word if word.starts_with("data") => prop_assert!(open && requests, "{:?}", log),
                    "requests ended" => {
                        prop_assert!(open && requests, "{:?}", log);
                        requests = false;
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(server.served.open(), usize::from(open));
        }
    }
}
