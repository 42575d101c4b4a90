//! The recorded exchanges, frame by frame: what the client said is said to our server, and our server must answer
//! as the reference did, up to ids; then the other way round.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value as Json;
use towpath::client::session::{Answers, Caller, Dialer, RequestWriter};
use towpath::codec::{Bounds, Codec};
use towpath::engine::sessions::{Admission, Admitted};
use towpath::state::envelope::{Envelope, Flags, Message, Outgoing, Procedure};
use towpath::state::handshake::{Refusal, RefusalCode};
use towpath::state::value::Value;
use towpath::testing::Sim;
use towpath::wire::bearer::{Bearer, Ear, Heard};

use super::*;
use crate::effort::not_run;

fn recording(codec: Codec) -> Option<Json> {
    let name = format!("../shared/vectors/river/exchanges.{codec}.json");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).expect("a recording is JSON")),
        Err(error) => {
            not_run(&format!("the recorded River exchanges are not here ({}: {error})", path.display()));
            None
        }
    }
}

fn exchanges(codec: Codec) -> Vec<Json> {
    recording(codec).map_or_else(Vec::new, |whole| whole["exchanges"].as_array().expect("a list").clone())
}

fn bytes_of(frame: &Json) -> Bytes {
    let hex = frame["hex"].as_str().expect("hex").as_bytes();
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a hex digit") as u8;
    hex.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn read(codec: Codec, frame: &Bytes) -> Envelope {
    codec.decode(frame, Bounds::default()).expect("a frame that is a message")
}

/// The admission that was recorded: the token `bad` is refused, and without one the metadata is malformed.
struct Tokens;

impl Admission for Tokens {
    fn admit(&self, _: &str, metadata: Option<&Value>, _: Option<&Value>) -> Result<Admitted, Refusal> {
        let Some(metadata) = metadata else {
            return Ok(Admitted { metadata: Value::Null, expires_in: None });
        };
        match metadata.get("token").and_then(Value::as_str) {
            None => {
                let reason = "received malformed handshake metadata";
                Err(Refusal::new(RefusalCode::MalformedHandshakeMeta, reason))
            }
            Some("bad") => {
                Err(Refusal::new(RefusalCode::RejectedByCustomHandler, "rejected by handshake handler"))
            }
            Some(token) => Ok(Admitted { metadata: Value::map([("user", token.into())]), expires_in: None }),
        }
    }
}

fn stage(rt: &Rt, codec: Codec, title: &str) -> Stage {
    let heartbeat = if title.contains("heartbeats") { Duration::from_millis(150) } else { LONG };
    let timing = Timing { heartbeat, ..quiet() };
    let settings = Settings { timing, codec, ..Settings::default() };
    let extra = Service::new("extra");
    Stage::on(rt.clone(), timing, extra, |builder| builder.settings(settings).admission(Tokens))
}

struct Link {
    bearer: Box<dyn Bearer>,
    heard: Receiver<Heard>,
    line: Line,
    /// What the client of this link said that it has: what the reference sends again and we do not.
    client_has: u64,
}

impl Link {
    fn open(stage: &Stage) -> Link {
        let (tx, heard) = stage.rt.channel("heard", 256);
        let ear = Ear::new(move |heard| tx.send(heard).is_ok());
        let (bearer, line) = stage.server.memory(ear).expect("threads");
        Link { bearer, heard, line, client_has: 0 }
    }
}

fn play_to_server(rt: &Rt, codec: Codec, exchange: &Json) {
    let title = exchange["title"].as_str().expect("a title");
    let mut stage = stage(rt, codec, title);
    let mut links: BTreeMap<u64, Link> = BTreeMap::new();
    let mut at = 0;
    for frame in exchange["frames"].as_array().expect("frames") {
        let conn = frame["conn"].as_u64().expect("a number");
        if conn != at {
            if let Some(old) = links.get(&at) {
                old.line.cut();
            }
            if conn == 2 && title.contains("restarted") {
                links.clear();
                stage = self::stage(rt, codec, title);
            }
            links.insert(conn, Link::open(&stage));
            at = conn;
        }
        let link = links.get_mut(&conn).expect("opened above");
        let recorded = bytes_of(frame);
        let theirs = read(codec, &recorded);
        if frame["dir"] == "client->server" {
            if let Some(state) = theirs.payload.as_ref().ok().and_then(|p| p.get("expectedSessionState")) {
                link.client_has = state.get("nextExpectedSeq").and_then(Value::as_u64).expect("a number");
            }
            link.bearer.send(recorded);
            continue;
        }
        let kind = theirs.payload.as_ref().ok().and_then(|p| p.get("type")).and_then(Value::as_str);
        if kind != Some("HANDSHAKE_RESP") && theirs.seq < link.client_has {
            continue;
        }
        if kind == Some("REHANDSHAKE_REQ") {
            stage.server.refresh(None);
        }
        let heard = link.heard.recv_deadline(patience(&stage.rt));
        let Ok(Heard::Frame(frame)) = heard else {
            panic!("{codec} {title}: {heard:?} instead of {theirs:?}")
        };
        let ours = read(codec, &frame);
        let handshake = kind == Some("HANDSHAKE_RESP");
        let stream = if handshake { theirs.stream.clone() } else { ours.stream.clone() };
        let ours = Envelope { id: theirs.id.clone(), stream, ..ours };
        assert_eq!(ours, theirs, "{codec} {title}");
    }
}

#[test]
fn our_server_answers_every_recorded_exchange_as_the_reference_does() {
    for codec in [Codec::Json, Codec::Binary] {
        for exchange in exchanges(codec) {
            // The next beat, or value, waits for what is said meanwhile, which on real clocks it does not.
            Sim::new(1).run(move |test| play_to_server(&test.rt(), codec, &exchange)).assert_ok();
        }
    }
}

// ---- the other way round ----

/// Links whose other end is the recording.
struct Recorded {
    opened: towpath::rt::Sender<(u64, Ear)>,
    frames: towpath::rt::Sender<Bytes>,
}

struct Tape(towpath::rt::Sender<Bytes>);

impl Bearer for Tape {
    fn send(&self, frame: Bytes) {
        self.0.try_send(frame).expect("the tape is long enough");
    }
    fn pause(&self, _: bool) {}
    fn close(&self, _: u16, _: &'static str) {}
}

impl Dialer for Recorded {
    fn dial(&self, dial: u64, _: Moment, caller: &Caller) {
        self.opened.try_send((dial, caller.ear(dial))).expect("few dials");
        caller.dialed(dial, Box::new(Tape(self.frames.clone())));
    }
}

fn play_to_client(codec: Codec, exchange: &Json) {
    let title = exchange["title"].as_str().expect("a title");
    let rt = Rt::real();
    let (opened, dials) = rt.channel("dials", 16);
    let (frames_tx, frames) = rt.channel("frames", 256);
    let metadata: Vec<Value> = exchange["frames"]
        .as_array()
        .expect("frames")
        .iter()
        .filter_map(|frame| read(codec, &bytes_of(frame)).payload.ok()?.get("metadata").cloned())
        .collect();
    let made = Arc::new(AtomicUsize::new(0));
    let has_metadata = !metadata.is_empty();
    let make = move || Ok(metadata[made.fetch_add(1, Ordering::AcqRel)].clone());
    let options = Options {
        codec,
        timing: quiet(),
        metadata: has_metadata.then(|| Arc::new(make) as Arc<_>),
        ..Options::default()
    };
    let dialer = Arc::new(Recorded { opened, frames: frames_tx });
    let client = Client::start(&rt, "client-1", "SERVER", dialer, options).expect("threads");
    client.connect();

    let mut ear: Option<(u64, Ear)> = None;
    let mut conn = 0;
    // Theirs to ours: streams and sessions are named by the client.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut calls: BTreeMap<String, (Option<RequestWriter<Value>>, Answers<Value>)> = BTreeMap::new();
    for frame in exchange["frames"].as_array().expect("frames") {
        let theirs = read(codec, &bytes_of(frame));
        let payload = theirs.payload.clone().expect("good");
        let kind = payload.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if frame["conn"].as_u64() != Some(conn) {
            conn = frame["conn"].as_u64().expect("a number");
            // A lost link makes the client dial by itself; a refused one already has.
            if let Some((_, ear)) = ear.take() {
                ear.hear(Heard::Closed { code: 1006 });
            }
            ear = Some(next(&rt, &dials));
        }
        let (_, ear) = ear.as_ref().expect("a link was dialed");
        if frame["dir"] == "client->server" {
            match kind.as_str() {
                "HANDSHAKE_REQ" | "ACK" | "REHANDSHAKE_RESP" => {}
                _ if theirs.flags.has(Flags::OPEN) => {
                    let (service, name) =
                        (theirs.service.as_deref().unwrap(), theirs.procedure.as_deref().unwrap());
                    let call = if theirs.flags.has(Flags::CLOSED) {
                        (None, client.subscribe(service, name, &payload).expect("called"))
                    } else {
                        let (requests, answers) = client.stream(service, name, &payload).expect("called");
                        (Some(requests), answers)
                    };
                    calls.insert(theirs.stream.clone(), call);
                }
                "CLOSE" => {
                    calls.get_mut(&theirs.stream).and_then(|call| call.0.as_mut()).expect("open").close()
                }
                _ if theirs.flags.has(Flags::CANCEL) => calls[&theirs.stream].1.cancel(),
                _ => calls[&theirs.stream].0.as_ref().expect("open").write(&payload).expect("written"),
            }
            let ours = read(codec, &next(&rt, &frames));
            names.insert(theirs.stream.clone(), ours.stream.clone());
            let mut expected = theirs.clone();
            expected.id.clone_from(&ours.id);
            expected.stream.clone_from(&ours.stream);
            if let (Some(Value::Text(their_id)), Ok(our_payload)) = (payload.get("sessionId"), &ours.payload)
            {
                let our_id =
                    our_payload.get("sessionId").and_then(Value::as_str).expect("a session").to_owned();
                names.insert(their_id.clone(), our_id);
                expected.payload = Ok(renamed(&payload, &names));
            }
            assert_eq!(ours, expected, "{codec} {title}");
            continue;
        }
        let stream = names.get(&theirs.stream).unwrap_or(&theirs.stream).clone();
        let message = Message {
            procedure: theirs
                .service
                .clone()
                .zip(theirs.procedure.clone())
                .map(|(service, name)| Procedure { service, name }),
            tracing: theirs.tracing.clone(),
            ..Message::new(stream, theirs.flags, renamed(&payload, &names))
        };
        let again = codec.encode(Outgoing {
            id: &theirs.id,
            from: &theirs.from,
            to: &theirs.to,
            seq: theirs.seq,
            ack: theirs.ack,
            message: &message,
        });
        let has_it = conn == 2 && title.contains("forced") && theirs.seq < 4 && kind.is_empty();
        ear.hear(Heard::Frame(again));
        let Some((_, answers)) = calls.get_mut(&theirs.stream).filter(|_| !has_it) else { continue };
        // What the caller gets is what was sent; and it has it before the recording goes on.
        let got = answers.next_by(patience(&rt));
        match (payload.get("ok"), kind.as_str()) {
            (_, "CLOSE") => {
                // A call its caller has cancelled knows its end already.
                let ended = got.is_none_or(|got| got.is_err_and(|failure| failure.code == "CANCEL"));
                assert!(ended, "{codec} {title}");
            }
            (Some(Value::Bool(true)), _) => {
                assert_eq!(
                    got,
                    Some(Ok(renamed(payload.get("payload").expect("good"), &names))),
                    "{codec} {title}"
                );
            }
            _ => {
                let failure = got.expect("an answer").expect_err("an error");
                let code = payload.get("payload").and_then(|p| p.get("code")).and_then(Value::as_str);
                assert_eq!(Some(failure.code.as_str()), code, "{codec} {title}");
            }
        }
    }
    // Calls that are still open are let go of after the recording ends.
    drop(calls);
}

/// A payload with the names in it changed from theirs to ours.
fn renamed(value: &Value, names: &BTreeMap<String, String>) -> Value {
    match value {
        Value::Text(text) => Value::Text(names.get(text).unwrap_or(text).clone()),
        Value::Map(fields) => {
            Value::Map(fields.iter().map(|(name, value)| (name.clone(), renamed(value, names))).collect())
        }
        other => other.clone(),
    }
}

#[test]
fn our_client_says_what_the_reference_says_in_every_recorded_exchange() {
    for codec in [Codec::Json, Codec::Binary] {
        for exchange in exchanges(codec) {
            play_to_client(codec, &exchange);
        }
    }
}
