//! Calls of each shape: what they carry, how they end, and that nothing of them is left.

use serde_json::json;
use towpath::client::session::TIMED_OUT;
use towpath::codec::Codec;
use towpath::codec::typed::Blob;
use towpath::service::schema::{any, bytes, number, object};
use towpath::service::{Failure, Later, NotWritten, Procedure, Resume, Sink, Writable};
use towpath::state::value::Value;

use super::*;

type Tick = std::collections::BTreeMap<String, i64>;

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Line {
    i: i64,
    msg: String,
}

fn line(i: i64) -> Line {
    Line { i, msg: format!("m{i}") }
}

fn both_codecs(check: impl Fn(&Stage, &Remote)) {
    for codec in [Codec::Json, Codec::Binary] {
        let settings = Settings { timing: quiet(), codec, ..Settings::default() };
        let stage = Stage::built(quiet(), extra(), |builder| builder.settings(settings));
        let remote = stage.client_with("client", Options { codec, ..Options::default() });
        check(&stage, &remote);
        stage.settles(&remote);
    }
}

/// What the reference services do not have.
fn extra() -> Service {
    Service::new("extra")
        .with(
            "reverse",
            Procedure::rpc(|_, blob: Blob| Ok(Blob(blob.0.into_iter().rev().collect()))).takes(bytes()),
        )
        .with("panics", Procedure::rpc(|_, (): ()| -> Result<(), Failure> { panic!("went wrong") }))
        .with("number", Procedure::rpc(|_, n: f64| Ok(n)).takes(number()).inline())
        .with(
            "pushed",
            // The handler returns at once and holds no thread: whoever it hands the writable to writes later.
            Procedure::subscription(|call, upto: u64, out: Writable<u64>| {
                let rt = call.rt().clone();
                let pusher = rt.spawn("pusher", move || (0..upto).try_for_each(|n| out.write(&n)));
                pusher.map(towpath::rt::Thread::detach).map_err(Failure::uncaught)
            })
            .inline(),
        )
}

#[test]
fn an_rpc_gives_an_answer_or_the_services_error() {
    both_codecs(|_, remote| {
        let answer: Value = remote.client.rpc("interop", "divide", &json!({"a": 6, "b": 3})).unwrap();
        assert_eq!(answer.get("result"), Some(&Value::Int(2)));
        let failure =
            remote.client.rpc::<_, Value>("interop", "divide", &json!({"a": 1, "b": 0})).unwrap_err();
        assert_eq!(
            (failure.code.as_str(), failure.message.as_str()),
            ("DIV_BY_ZERO", "Cannot divide by zero")
        );
        assert_eq!(failure.extras, Some(Value::map([("test", "abc".into())])));
    });
}

#[test]
fn bytes_arrive_as_bytes_and_what_is_no_object_arrives_as_it_is() {
    both_codecs(|_, remote| {
        let back: Blob = remote.client.rpc("extra", "reverse", &Blob(vec![1, 2, 255])).unwrap();
        assert_eq!(back, Blob(vec![255, 2, 1]));
        assert_eq!(remote.client.rpc("extra", "number", &2), Ok(2.0));
    });
}

#[test]
fn a_handler_that_panics_fails_its_call_alone() {
    both_codecs(|_, remote| {
        let failure = remote.client.rpc::<_, Value>("extra", "panics", &()).unwrap_err();
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("UNCAUGHT_ERROR", "went wrong"));
        assert!(remote.client.rpc::<_, Value>("interop", "echo", &1).is_ok());
    });
}

#[test]
fn a_subscription_gives_its_answers_in_order_and_ends() {
    both_codecs(|_, remote| {
        let ticks: Vec<i64> = remote
            .client
            .subscribe::<_, Tick>("interop", "count", &json!({"n": 5}))
            .unwrap()
            .map(|tick| tick.unwrap()["i"])
            .collect();
        assert_eq!(ticks, [0, 1, 2, 3, 4]);
        let none = remote.client.subscribe::<_, Tick>("interop", "count", &json!({"n": 0})).unwrap();
        assert_eq!(none.count(), 0, "an empty one just ends");
    });
}

#[test]
fn a_subscription_goes_on_after_an_error_of_the_service() {
    both_codecs(|_, remote| {
        let mut answers = remote.client.subscribe::<_, Value>("interop", "subErr", &json!({})).unwrap();
        assert_eq!(answers.next(), Some(Err(Failure::new("NOT_FOUND", "no such thing"))));
        assert_eq!(answers.next(), None);
    });
}

#[test]
fn a_subscription_may_be_fed_by_somebody_else_after_its_handler_returned() {
    both_codecs(|_, remote| {
        let answers = remote.client.subscribe::<_, u64>("extra", "pushed", &3_000u64).unwrap();
        let got: Vec<u64> = answers.map(Result::unwrap).collect();
        assert!(got.iter().copied().eq(0..3_000));
    });
}

#[test]
fn an_upload_is_answered_after_its_last_request() {
    both_codecs(|_, remote| {
        let upload = remote.client.upload::<_, _, Value>("interop", "sum", &json!({})).unwrap();
        for n in 1..=3 {
            upload.write(&json!({ "n": n })).unwrap();
        }
        let total = upload.finish().unwrap();
        assert_eq!((total.get("total"), total.get("count")), (Some(&Value::Int(6)), Some(&Value::Int(3))));
        let empty = remote.client.upload::<_, Value, Value>("interop", "sum", &json!({})).unwrap();
        assert_eq!(empty.finish().unwrap().get("count"), Some(&Value::Int(0)));
    });
}

#[test]
fn a_stream_carries_both_ways_and_closes_each_way_apart() {
    both_codecs(|_, remote| {
        let (mut requests, mut answers) =
            remote.client.stream::<_, Line, Line>("interop", "echoStream", &json!({"prefix": ">"})).unwrap();
        for i in 0..50 {
            requests.write(&line(i)).unwrap();
            assert_eq!(answers.next(), Some(Ok(Line { i, msg: format!(">m{i}") })));
        }
        requests.close();
        requests.close();
        assert_eq!(answers.next(), None);
    });
}

#[test]
fn what_does_not_fit_the_schema_is_an_invalid_request() {
    both_codecs(|_, remote| {
        let call = |service: &str, name: &str, init: serde_json::Value| {
            remote.client.rpc::<_, Value>(service, name, &init).unwrap_err()
        };
        let cases = [
            (call("interop", "divide", json!({"a": "x", "b": 1})), "procedure init failed validation"),
            (call("interop", "nope", json!({})), "couldn't find a matching procedure for interop.nope"),
            (call("nosuch", "x", json!({})), "couldn't find service nosuch"),
        ];
        for (failure, message) in cases {
            assert_eq!((failure.code.as_str(), failure.message.as_str()), ("INVALID_REQUEST", message));
        }
        let upload = remote.client.upload::<_, _, Value>("interop", "sum", &json!({})).unwrap();
        upload.write(&json!({"n": "no"})).unwrap();
        let failure = upload.finish().unwrap_err();
        assert_eq!(failure.message, "message in requestData position did not match schema");
        let extras = failure.extras.expect("it says what is wrong");
        assert_eq!(extras.get("totalErrors"), Some(&Value::Int(1)));
    });
}

#[test]
fn many_calls_at_once_get_their_own_answers() {
    both_codecs(|stage, remote| {
        let callers: Vec<_> = (0..16i64)
            .map(|caller| {
                let client = remote.client.clone();
                let call = move || {
                    for n in 0..30 {
                        let answer: Value = client.rpc("interop", "echo", &(caller * 1_000 + n)).unwrap();
                        assert_eq!(answer, Value::Int(caller * 1_000 + n));
                    }
                };
                stage.rt.spawn("caller", call).unwrap()
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
    });
}

#[test]
fn a_client_that_cancels_stops_the_handler_and_gets_its_own_error() {
    both_codecs(|_, remote| {
        let mut forever =
            remote.client.subscribe::<_, Tick>("interop", "forever", &json!({"intervalMs": 1})).unwrap();
        assert!(forever.next().unwrap().is_ok());
        forever.cancel();
        let last = forever.by_ref().last().expect("an error comes last");
        assert_eq!(last, Err(Failure::new("CANCEL", "cancelled by client")));
        forever.cancel();
        let upload = remote.client.upload::<_, Value, Value>("interop", "sum", &json!({})).unwrap();
        upload.cancel();
        assert_eq!(upload.finish().unwrap_err().code, "CANCEL");
        let (_requests, mut answers) =
            remote.client.stream::<_, Line, Line>("interop", "echoStream", &json!({})).unwrap();
        answers.cancel();
        assert_eq!(answers.next().unwrap().unwrap_err().code, "CANCEL");
        assert_eq!(answers.next(), None);
    });
}

#[test]
fn a_handler_that_cancels_or_fails_ends_the_call_both_ways() {
    both_codecs(|stage, remote| {
        let rpc = |name| remote.client.rpc::<_, Value>("interop", name, &json!({})).unwrap_err();
        assert_eq!(rpc("throws"), Failure::new("UNCAUGHT_ERROR", "boom"));
        assert_eq!(rpc("cancels"), Failure::new("CANCEL", "server says no"));
        let capped = remote.client.upload::<_, _, Value>("interop", "capped", &json!({})).unwrap();
        capped.write(&json!({"n": 9})).unwrap();
        capped.write(&json!({"n": 5})).unwrap();
        until(&stage.rt, "writing fails", || capped.write(&json!({"n": 1})).is_err());
        assert_eq!(capped.finish().unwrap_err(), Failure::new("CANCEL", "can't add more than 10"));
        let (requests, mut answers) =
            remote.client.stream::<_, Value, Value>("interop", "throwStream", &json!({})).unwrap();
        requests.write(&Value::Null).unwrap();
        assert_eq!(answers.next(), Some(Err(Failure::new("UNCAUGHT_ERROR", "stream boom"))));
        assert_eq!(answers.next(), None);
    });
}

#[test]
fn a_call_over_its_time_is_cancelled_at_the_server() {
    both_codecs(|stage, remote| {
        let limit = Some(Duration::from_millis(30));
        let late = remote.client.rpc_within::<_, Value>("interop", "slow", &json!({"ms": 60_000}), limit);
        assert_eq!(late.unwrap_err().code, TIMED_OUT);
        stage.settles(remote);
    });
}

#[test]
fn answers_that_are_dropped_end_their_call() {
    both_codecs(|stage, remote| {
        let forever = remote.client.subscribe::<_, Tick>("interop", "forever", &json!({"intervalMs": 1}));
        drop(forever);
        stage.settles(remote);
    });
}

#[test]
fn a_handlers_token_fires_when_its_call_is_over() {
    let rt = Rt::real();
    let (fired, fires) = rt.channel("fired", 4);
    let watched = Service::new("extra").with(
        "watched",
        Procedure::stream::<(), (), (), _>(move |call, (), requests, _out| {
            let over = requests.count() == 0 && call.wait(PATIENCE);
            fired.send(over).map_err(Failure::uncaught)
        }),
    );
    let stage = Stage::with(quiet(), watched);
    let remote = stage.client();
    let (requests, answers) = remote.client.stream::<_, (), ()>("extra", "watched", &()).unwrap();
    drop(requests);
    answers.cancel();
    assert!(next(&rt, &fires));
}

#[test]
fn a_slow_reader_holds_its_writer_back_and_nothing_is_lost() {
    let rt = Rt::real();
    let (wrote, writes) = rt.channel("wrote", 1);
    let flood = Service::new("extra").with(
        "flood",
        Procedure::subscription(move |_, upto: u64, out: Writable<u64>| {
            let mut full = 0u64;
            for n in 0..upto {
                // What `write` does by itself, counted.
                match out.try_write(&n) {
                    Ok(()) => {}
                    Err(NotWritten::Full) => {
                        full += 1;
                        out.write(&n)?;
                    }
                    Err(why) => return Err(why.into()),
                }
            }
            wrote.send(full).map_err(Failure::uncaught)
        }),
    );
    let stage = Stage::with(quiet(), flood);
    let remote = stage.client();
    let upto = 20_000;
    let mut answers = remote.client.subscribe::<_, u64>("extra", "flood", &upto).unwrap();
    assert_eq!(answers.next(), Some(Ok(0)));
    // Nobody reads: the writer comes to a stop with what fits between the two.
    assert!(writes.recv_deadline(rt.now() + Duration::from_millis(200)).is_err());
    for n in 1..upto {
        assert_eq!(answers.next(), Some(Ok(n)));
    }
    assert_eq!(answers.next(), None);
    assert!(next(&rt, &writes) > 0, "it had to wait");
}

#[test]
fn a_slow_handler_holds_its_client_back_and_nothing_is_lost() {
    let rt = Rt::real();
    let (go, gone) = rt.channel::<()>("go", 1);
    let gone = Lock::new(Some(gone));
    let slow = Service::new("extra").with(
        "slow",
        Procedure::upload(move |_, (): (), requests: towpath::service::Readable<u64>| {
            let gate = gone.lock().take();
            if let Some(gate) = gate {
                gate.recv().map_err(Failure::uncaught)?;
            }
            let mut expected = 0u64;
            for request in requests {
                if request? != expected {
                    return Err(Failure::uncaught(format!("{expected} was expected")));
                }
                expected += 1;
            }
            Ok(expected)
        })
        .requests(any()),
    );
    let stage = Stage::with(quiet(), slow);
    let remote = stage.client();
    let upload = remote.client.upload::<_, u64, u64>("extra", "slow", &()).unwrap();
    let writer = {
        let client = stage.rt.clone();
        client
            .spawn("writer", move || {
                for n in 0..20_000 {
                    upload.write(&n).unwrap();
                }
                upload.finish().unwrap()
            })
            .unwrap()
    };
    // Everything the two ends hold is taken up long before; then the handler begins to read.
    stage.rt.sleep(Duration::from_millis(100));
    assert!(!writer.is_finished());
    go.send(()).unwrap();
    assert_eq!(writer.join().unwrap(), 20_000);
}

#[test]
fn schemas_are_served_for_tools_and_for_typescript() {
    let services = Services::new().with(reference::interop()).with(
        Service::new("more").with("one", Procedure::rpc(|_, (): ()| Ok(1)).takes(object([])).gives(number())),
    );
    let schema = services.json_schema();
    assert_eq!(schema["services"]["interop"]["procedures"]["sum"]["type"], "upload");
    assert_eq!(
        schema["services"]["interop"]["procedures"]["sum"]["input"]["properties"]["n"]["type"],
        "number"
    );
    let types = services.typescript();
    assert!(
        types.contains("divide: { type: \"rpc\"; init: { a: number; b: number }; output: { result: number }"),
        "{types}"
    );
}

#[test]
fn a_call_is_answered_later_by_anybody_and_one_that_nobody_answers_fails() {
    let (to_whoever_knows, asked) = std::sync::mpsc::sync_channel::<(u64, Later<u64>)>(8);
    let later = Procedure::rpc_later(move |_, n: u64, later| {
        to_whoever_knows.try_send((n, later)).expect("there is room");
    });
    let forgets = Procedure::rpc_later(|_, _: u64, later: Later<u64>| drop(later));
    let panics = Procedure::rpc_later(|_, _: u64, _: Later<u64>| panic!("it cannot"));
    let refuses =
        Procedure::rpc_later(|_, _: u64, later: Later<u64>| later.give(Err(Failure::new("NO", "not today"))));
    let extra = Service::new("extra").with("later", later).with("forgets", forgets);
    let extra = extra.with("panics", panics).with("refuses", refuses);
    // There is no thread for a handler that would wait.
    let stage = Stage::built(quiet(), extra, |builder| builder.handlers_max(0));
    let remote = stage.client();
    let knows = std::thread::spawn(move || {
        for (n, later) in asked.iter().take(2) {
            later.give(Ok(n + 1));
        }
    });
    for n in [1_u64, 2] {
        assert_eq!(remote.client.rpc("extra", "later", &n), Ok(n + 1));
    }
    knows.join().unwrap();
    let code = |procedure: &str| remote.client.rpc::<_, u64>("extra", procedure, &1_u64).unwrap_err().code;
    assert_eq!(code("forgets"), "UNCAUGHT_ERROR");
    assert_eq!(code("panics"), "UNCAUGHT_ERROR");
    assert_eq!(code("refuses"), "NO");
    until(&stage.rt, "no call is left open", || remote.client.open_calls() == 0);
}

/// Adds up, and holds its session back after every tenth number until somebody lets it go on.
struct Sum {
    total: u64,
    taken: u64,
    later: Option<Later<u64>>,
    resume: Resume,
    held: std::sync::mpsc::SyncSender<Option<Resume>>,
}

impl Sink<u64> for Sum {
    fn take(&mut self, n: u64) -> bool {
        self.total += n;
        self.taken += 1;
        let holds = self.taken.is_multiple_of(10);
        if holds {
            self.held.try_send(Some(self.resume.clone())).expect("one at a time");
        }
        !holds
    }
    fn ended(&mut self) {
        if let Some(later) = self.later.take() {
            later.give(Ok(self.total));
        }
    }
    fn gone(&mut self) {
        // Full cannot be: a session that is held back has taken no more.
        let _ = self.held.try_send(None);
    }
}

#[test]
fn an_upload_goes_into_a_sink_that_holds_its_session_back_and_hears_of_the_end() {
    let (held, holds) = std::sync::mpsc::sync_channel(8);
    let sum = Procedure::upload_later(move |_, (): (), later: Later<u64>, resume| Sum {
        total: 0,
        taken: 0,
        later: Some(later),
        resume,
        held: held.clone(),
    });
    let extra = Service::new("extra").with("sum", sum.requests(number()));
    let stage = Stage::built(quiet(), extra, |builder| builder.handlers_max(0));
    let remote = stage.client();
    let upload = remote.client.upload::<_, u64, u64>("extra", "sum", &()).unwrap();
    (1..=100).for_each(|n| upload.write(&n).unwrap());
    let patience = Duration::from_secs(10);
    for n in 0..10 {
        if n % 3 == 1 {
            remote.cut();
        }
        holds.recv_timeout(patience).expect("it holds back").expect("and is not over").now();
    }
    assert_eq!(upload.finish(), Ok(5_050));
    assert!(holds.recv_timeout(patience).expect("it hears").is_none(), "of the end");

    let mut upload = remote.client.upload::<_, serde_json::Value, u64>("extra", "sum", &()).unwrap();
    upload.write(&serde_json::json!("one")).unwrap();
    let refused = upload.answer_by(stage.rt.now() + patience).expect("before it is closed").unwrap_err();
    assert_eq!(refused.code, "INVALID_REQUEST");
    assert!(holds.recv_timeout(patience).expect("it hears").is_none(), "of a call that broke");
    drop(upload);
    until(&stage.rt, "no call is left open", || remote.client.open_calls() == 0);
}
