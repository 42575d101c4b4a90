//! What becomes of calls when links break and sessions end.

use serde_json::json;
use towpath::client::session::Answers;
use towpath::service::{Failure, Procedure, Writable};
use towpath::state::session::Event;
use towpath::state::session::client::Retry;
use towpath::state::value::Value;

use super::*;

fn lost() -> Failure {
    Failure::new("UNEXPECTED_DISCONNECT", "SERVER unexpectedly disconnected")
}

/// A call of each shape, open and waiting.
struct Open {
    rpc: towpath::rt::Thread<Result<Value, Failure>>,
    subscription: Answers<Value>,
    upload: towpath::client::session::Upload<Value, Value>,
    stream: Answers<Value>,
    _requests: towpath::client::session::RequestWriter<Value>,
}

impl Open {
    fn on(stage: &Stage, remote: &Remote) -> Open {
        let client = &remote.client;
        let caller = client.clone();
        let rpc = move || caller.rpc("interop", "slow", &json!({"ms": 60_000}));
        let rpc = stage.rt.spawn("rpc", rpc).unwrap();
        let subscription = client.subscribe("interop", "forever", &json!({"intervalMs": 1})).unwrap();
        let upload = client.upload("interop", "sum", &json!({})).unwrap();
        let (requests, stream) = client.stream("interop", "echoStream", &json!({})).unwrap();
        until(&stage.rt, "all four are open", || client.open_calls() >= 4 && open_streams(client) == 4);
        Open { rpc, subscription, upload, stream, _requests: requests }
    }

    #[track_caller]
    fn all_end_with(self, failure: &Failure) {
        assert_eq!(self.rpc.join().unwrap().unwrap_err(), *failure);
        assert_eq!(self.subscription.last().unwrap().unwrap_err(), *failure);
        assert_eq!(self.upload.finish().unwrap_err(), *failure);
        assert_eq!(self.stream.last().unwrap().unwrap_err(), *failure);
    }
}

#[test]
fn a_session_that_ends_at_the_server_fails_every_call_at_the_client() {
    let stage = Stage::new();
    let remote = stage.client();
    let open = Open::on(&stage, &remote);
    remote.client.reconnects(false);
    stage.server.end("client");
    // The client keeps its session for its grace, and finds out with the next dial that nobody knows it.
    until(&stage.rt, "the link is gone", || !remote.client.is_connected());
    remote.client.reconnects(true);
    remote.client.connect();
    open.all_end_with(&lost());
    stage.settles(&remote);
}

#[test]
fn a_client_that_leaves_ends_its_calls_at_the_server_at_once() {
    let stage = Stage::new();
    let (remote, other) = (stage.client(), stage.client_with("other", Options::default()));
    let open = Open::on(&stage, &remote);
    remote.client.disconnect();
    // Long before its grace, which is 100 s here.
    until(&stage.rt, "no call is left open", || open_streams(&other.client) == 0);
    open.all_end_with(&Failure::new("CANCEL", "the client left"));
}

#[test]
fn a_client_that_is_dropped_leaves_nothing_at_the_server() {
    let stage = Stage::new();
    let (remote, other) = (stage.client(), stage.client_with("other", Options::default()));
    let forever =
        remote.client.subscribe::<_, Value>("interop", "forever", &json!({"intervalMs": 1})).unwrap();
    until(&stage.rt, "it is open", || open_streams(&other.client) == 1);
    drop((forever, remote));
    until(&stage.rt, "it is gone", || open_streams(&other.client) == 0);
}

#[test]
fn a_cut_in_the_middle_is_not_noticed_by_any_call() {
    let stage = Stage::new();
    let retry = Retry { base: Duration::from_millis(1), jitter_max: Duration::ZERO, ..Retry::default() };
    let remote = stage.client_with("client", Options { retry, ..Options::default() });
    let ticks =
        remote.client.subscribe::<_, Value>("interop", "count", &json!({"n": 300, "intervalMs": 1})).unwrap();
    let upload = remote.client.upload::<_, _, Value>("interop", "sum", &json!({})).unwrap();
    let mut expected = 0;
    for tick in ticks {
        assert_eq!(tick.unwrap().get("i"), Some(&Value::Int(expected)));
        expected += 1;
        upload.write(&json!({"n": 1})).unwrap();
        if expected % 60 == 0 {
            remote.cut();
            // What was read ahead goes on coming meanwhile.
            until(&stage.rt, "it is dialed again", || !remote.lines.lock().is_empty());
        }
    }
    assert_eq!(expected, 300);
    assert_eq!(upload.finish().unwrap().get("total"), Some(&Value::Int(300)));
    assert_eq!(remote.dials(), 6, "the first, and one for each cut");
}

#[test]
fn what_is_called_while_there_is_no_link_is_answered_when_there_is_one() {
    let stage = Stage::new();
    let remote = stage.client();
    assert!(remote.client.rpc::<_, Value>("interop", "echo", &1).is_ok());
    remote.unreachable.store(true, Ordering::Release);
    remote.cut();
    until(&stage.rt, "the link is gone", || !remote.client.is_connected());
    let client = remote.client.clone();
    let caller = stage.rt.spawn("caller", move || client.rpc::<_, Value>("interop", "echo", &2)).unwrap();
    // The third is asked for when the second has failed.
    until(&stage.rt, "it was dialed in vain", || remote.dials() >= 3);
    remote.unreachable.store(false, Ordering::Release);
    assert_eq!(caller.join().unwrap(), Ok(Value::Int(2)));
}

#[test]
fn a_grace_that_ends_fails_calls_and_the_next_call_begins_anew() {
    let timing = Timing { grace: Duration::from_millis(150), ..quiet() };
    let stage = Stage::with(timing, Service::new("extra"));
    let remote = stage.client();
    let open = Open::on(&stage, &remote);
    let session = remote.client.session();
    remote.unreachable.store(true, Ordering::Release);
    remote.cut();
    open.all_end_with(&lost());
    let dials = remote.dials();
    remote.unreachable.store(false, Ordering::Release);
    assert_eq!(remote.client.rpc("interop", "echo", &3), Ok(Value::Int(3)));
    assert_eq!(remote.dials(), dials + 1, "nothing dialed in between");
    assert_ne!(remote.client.session(), session);
    stage.settles(&remote);
}

#[test]
fn with_no_grace_every_drop_is_a_new_session() {
    let timing = Timing { grace: Duration::ZERO, ..quiet() };
    let stage = Stage::with(timing, Service::new("extra"));
    let remote = stage.client();
    assert!(remote.client.rpc::<_, Value>("interop", "echo", &1).is_ok());
    let session = remote.client.session();
    remote.cut();
    until(&stage.rt, "the session is over", || remote.client.session().is_none());
    assert!(remote.client.rpc::<_, Value>("interop", "echo", &1).is_ok());
    assert_ne!(remote.client.session(), session);
}

#[test]
fn a_client_of_a_server_that_was_restarted_starts_anew_at_once() {
    let rt = Rt::real();
    let start = || {
        let settings = Settings { timing: quiet(), ..Settings::default() };
        Server::builder(&rt, Services::new().with(reference::interop())).settings(settings).start().unwrap()
    };
    let server = Arc::new(Lock::new(start()));
    let (told, tellings) = rt.channel("events", 64);
    let dialed = server.clone();
    let dialer = DialWith::new(&rt, move |ear| Ok(dialed.lock().memory(ear)?.0));
    let listener = move |event: &Event| _ = told.try_send(event.clone());
    let options = Options { timing: quiet(), listener: Some(Arc::new(listener)), ..Options::default() };
    let client = Client::start(&rt, "client", "SERVER", Arc::new(dialer), options).unwrap();
    assert!(client.rpc::<_, Value>("interop", "echo", &1).is_ok());
    let session = client.session();
    // What was waiting to be answered is lost with the server, and says so.
    let forever = client.subscribe::<_, Value>("interop", "forever", &json!({"intervalMs": 1})).unwrap();
    let old = std::mem::replace(&mut *server.lock(), start());
    drop(old);
    assert_eq!(forever.last().unwrap().unwrap_err(), lost());
    assert_eq!(client.rpc("interop", "echo", &2), Ok(Value::Int(2)));
    assert_ne!(client.session(), session);
    let events: Vec<Event> = std::iter::from_fn(|| tellings.try_recv().ok()).collect();
    assert!(events.iter().any(|event| matches!(event, Event::Mismatch(_))), "{events:?}");
}

#[test]
fn a_handler_of_a_client_that_is_gone_reads_that_and_may_write_no_more() {
    let rt = Rt::real();
    let (told, tells) = rt.channel("told", 4);
    let watched = Service::new("extra").with(
        "watched",
        Procedure::stream::<(), (), u64, _>(move |_, (), requests, out: Writable<u64>| {
            let last = requests.last().map(|last| last.map_err(|failure| failure.code));
            told.send((last, out.write(&1).is_err())).map_err(Failure::uncaught)
        }),
    );
    let timing = Timing { grace: Duration::from_millis(100), ..quiet() };
    let stage = Stage::with(timing, watched);
    let remote = stage.client();
    let (_requests, _answers) = remote.client.stream::<_, (), u64>("extra", "watched", &()).unwrap();
    until(&stage.rt, "it is open", || open_streams(&remote.client) == 1);
    remote.unreachable.store(true, Ordering::Release);
    remote.cut();
    assert_eq!(next(&rt, &tells), (Some(Err("UNEXPECTED_DISCONNECT".to_owned())), true));
}

#[test]
fn a_server_that_is_dropped_ends_everything_and_joins_its_threads() {
    let stage = Stage::new();
    let remote = stage.client();
    let open = Open::on(&stage, &remote);
    remote.client.reconnects(false);
    drop(stage.server);
    until(&stage.rt, "the link is gone", || !remote.client.is_connected());
    remote.client.disconnect();
    open.all_end_with(&lost());
}

#[test]
fn a_client_counts_what_happens_to_its_session() {
    let mut metrics = towpath::metrics::Metrics::new();
    let figures = towpath::client::session::Figures::describe(&mut metrics);
    let shown = metrics.into_exposition();
    let figure = |line: &str| -> i64 {
        let text = shown.text();
        let found = text.lines().find_map(|one| one.strip_prefix(&format!("towpath_client_{line} ")));
        found.map_or(0, |value| value.parse().expect("a number"))
    };
    let stage = Stage::new();
    let remote = stage.client_with("client", Options { figures, ..Options::default() });
    assert_eq!((figure("sessions_connected"), figure("dials_total")), (0, 0), "it has not dialed");
    open_streams(&remote.client);
    assert_eq!((figure("sessions_connected"), figure("dials_total")), (1, 1));
    assert_eq!(figure("handshakes_total{result=\"welcome\"}"), 1);
    remote.unreachable.store(true, Ordering::Release);
    remote.cut();
    until(&stage.rt, "a dial fails", || figure("dials_failed_total") > 0);
    assert_eq!(figure("sessions_connected"), 0);
    assert!(figure("disconnects_total{cause=\"link_lost\"}") >= 1);
    remote.unreachable.store(false, Ordering::Release);
    open_streams(&remote.client);
    assert_eq!(figure("sessions_connected"), 1);
    assert_eq!(figure("handshakes_total{result=\"welcome\"}"), 2);
    assert_eq!(figure("sessions_ended_total{cause=\"goodbye\"}"), 0);
    drop(remote);
    assert_eq!(figure("sessions_ended_total{cause=\"goodbye\"}"), 1);
    assert_eq!((figure("sessions_connected"), figure("calls")), (0, 0));
}
