use super::*;
use crate::state::envelope::{Message, Procedure};
use crate::state::value::{BigInt, Date};

/// The folder of recordings of the reference implementation, if this machine has them.
fn recordings(name: &str) -> Option<serde_json::Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors/river").join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(serde_json::from_str(&text).expect("a recording is JSON")),
        #[allow(clippy::print_stderr, reason = "whoever runs the tests must see what was not tested")]
        Err(error) => {
            eprintln!("SKIPPED: the recorded River exchanges are not here ({}: {error})", path.display());
            None
        }
    }
}

/// What is in the repository for everyone: frames written by this codec, and by hand where that matters.
fn fixtures() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../tests/fixtures/river.json")).expect("the fixtures are JSON")
}

fn hex(text: &str) -> Bytes {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a hex digit") as u8;
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Whether a value is what a recording says it decoded to in JavaScript.
fn same(ours: &Value, theirs: &serde_json::Value) -> bool {
    use serde_json::Value as Json;
    if let Some(bytes) = theirs.get("$bytes_hex") {
        return matches!(ours, Value::Bytes(ours) if *ours == hex(bytes.as_str().unwrap()));
    }
    if let Some(number) = theirs.get("$bigint") {
        return matches!(ours, Value::BigInt(ours) if ours.as_str() == number.as_str().unwrap());
    }
    if let Some(date) = theirs.get("$date") {
        let at: jiff::Timestamp = date.as_str().unwrap().parse().unwrap();
        let nanos = at.as_nanosecond();
        let at = Date {
            seconds: nanos.div_euclid(1_000_000_000) as i64,
            nanos: nanos.rem_euclid(1_000_000_000) as u32,
        };
        return *ours == Value::Date(at);
    }
    match (ours, theirs) {
        (Value::Null, Json::Null) => true,
        // The recordings are JSON, which has no word for what is not a number.
        (Value::Float(ours), Json::Null) => !ours.is_finite(),
        (Value::Bool(ours), Json::Bool(theirs)) => ours == theirs,
        (Value::Text(ours), Json::String(theirs)) => ours == theirs,
        (ours, Json::Number(theirs)) => ours.as_f64() == theirs.as_f64(),
        (Value::Array(ours), Json::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| same(ours, theirs))
        }
        (Value::Map(fields), Json::Object(theirs)) => {
            fields.len() == theirs.len()
                && theirs.iter().all(|(name, theirs)| ours.get(name).is_some_and(|ours| same(ours, theirs)))
        }
        _ => false,
    }
}

fn decode_value(codec: Codec, bytes: &Bytes) -> Result<Value, BadFrame> {
    match codec {
        Codec::Json => json::decode_value(bytes, Bounds::default()),
        Codec::Binary => msgpack::decode_value(bytes, Bounds::default()),
    }
}

fn encode_value(codec: Codec, value: &Value) -> Bytes {
    let mut buffer = Vec::new();
    match codec {
        Codec::Json => json::write_value(&mut buffer, value),
        Codec::Binary => msgpack::write_value(&mut buffer, value),
    }
    buffer.into()
}

fn check_values(codec: Codec, values: &serde_json::Value) {
    let values = values["values"].as_array().unwrap();
    assert!(values.len() > 20);
    for case in values {
        let name = case["name"].as_str().unwrap();
        let bytes = hex(case["hex"].as_str().unwrap());
        let value = decode_value(codec, &bytes).unwrap_or_else(|error| panic!("{codec} {name}: {error}"));
        assert!(same(&value, &case["decodes_to"]), "{codec} {name}: {value:?} is not {}", case["decodes_to"]);
        assert_eq!(encode_value(codec, &value), bytes, "{codec} {name} is written as it was read");
    }
}

#[test]
fn every_recorded_value_is_read_and_written_as_the_reference_does() {
    for codec in [Codec::Json, Codec::Binary] {
        if let Some(values) = recordings(&format!("values.{codec}.json")) {
            check_values(codec, &values);
        }
    }
}

#[test]
fn every_value_of_the_fixtures_is_read_and_written_byte_for_byte() {
    let fixtures = fixtures();
    for codec in [Codec::Json, Codec::Binary] {
        check_values(codec, &fixtures[codec.to_string()]);
    }
}

fn check_frame(codec: Codec, title: &str, frame: &serde_json::Value) {
    let bytes = hex(frame["hex"].as_str().unwrap());
    let ours = codec.decode(&bytes, Bounds::default()).unwrap_or_else(|error| panic!("{title}: {error}"));
    let theirs = &frame["decoded"];
    let as_value = |ours: &Envelope| {
        let mut fields = vec![
            ("id", Value::from(ours.id.as_str())),
            ("from", ours.from.as_str().into()),
            ("to", ours.to.as_str().into()),
            ("seq", ours.seq.into()),
            ("ack", ours.ack.into()),
            ("streamId", ours.stream.as_str().into()),
            ("controlFlags", i64::from(ours.flags.0).into()),
            ("payload", ours.payload.clone().expect("a recorded payload is good")),
        ];
        fields.extend(ours.service.as_deref().map(|name| ("serviceName", name.into())));
        fields.extend(ours.procedure.as_deref().map(|name| ("procedureName", name.into())));
        fields.extend(ours.tracing.as_ref().map(|t| {
            let parent = ("traceparent", t.traceparent.as_str().into());
            ("tracing", Value::map([parent, ("tracestate", t.tracestate.as_str().into())]))
        }));
        Value::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    };
    assert!(same(&as_value(&ours), theirs), "{title}: {ours:?} is not {theirs}");

    // Written again and read again it is the same envelope.
    let message = Message {
        stream: ours.stream.clone(),
        flags: ours.flags,
        procedure: ours
            .service
            .clone()
            .zip(ours.procedure.clone())
            .map(|(service, name)| Procedure { service, name }),
        tracing: ours.tracing.clone(),
        payload: ours.payload.clone().unwrap(),
    };
    let again = codec.encode(Outgoing {
        id: &ours.id,
        from: &ours.from,
        to: &ours.to,
        seq: ours.seq,
        ack: ours.ack,
        message: &message,
    });
    assert_eq!(again.len(), bytes.len(), "{title}: the same fields in another order");
    assert_eq!(codec.decode(&again, Bounds::default()).unwrap(), ours, "{title}");
}

#[test]
fn every_recorded_frame_is_read_and_written_again_without_loss() {
    for codec in [Codec::Json, Codec::Binary] {
        let Some(recording) = recordings(&format!("exchanges.{codec}.json")) else { continue };
        let exchanges = recording["exchanges"].as_array().unwrap();
        assert!(exchanges.len() >= 24);
        for exchange in exchanges {
            for frame in exchange["frames"].as_array().unwrap() {
                check_frame(codec, exchange["title"].as_str().unwrap(), frame);
            }
        }
    }
}

#[test]
fn every_frame_of_the_fixtures_is_read_and_written_again_without_loss() {
    let fixtures = fixtures();
    for codec in [Codec::Json, Codec::Binary] {
        for frame in fixtures[codec.to_string()]["frames"].as_array().unwrap() {
            check_frame(codec, frame["title"].as_str().unwrap(), frame);
        }
    }
}

/// An envelope whose payload is these bytes.
fn frame_around(codec: Codec, payload: &[u8]) -> Bytes {
    let message = Message::new("s1", Flags::NONE, Value::from("PAYLOAD"));
    let outgoing = Outgoing { id: "i", from: "a", to: "b", seq: 0, ack: 0, message: &message };
    let whole = codec.encode(outgoing).to_vec();
    let placeholder: &[u8] = match codec {
        Codec::Json => b"\"PAYLOAD\"",
        Codec::Binary => b"\xa7PAYLOAD",
    };
    let at = whole.windows(placeholder.len()).position(|w| w == placeholder).unwrap();
    [&whole[..at], payload, &whole[at + placeholder.len()..]].concat().into()
}

fn payload_of(codec: Codec, payload: &[u8]) -> Result<Value, BadPayload> {
    let frame = frame_around(codec, payload);
    codec.decode(&frame, Bounds::default()).expect("the envelope is good").payload
}

#[test]
fn a_hostile_payload_leaves_the_envelope_good() {
    for hostile in
        [r#"{"$t":"***"}"#, r#"{"$t":5}"#, r#"{"$b":"1.5"}"#, r#"{"$b":""}"#, r#"{"deep":[{"$t":null}]}"#]
    {
        let payload = payload_of(Codec::Json, hostile.as_bytes());
        assert!(payload.is_err(), "{hostile} gave {payload:?}");
    }
    // A bigint that is a map, one that is text but no number, a timestamp of three bytes, a nil key.
    for hostile in
        [&[0xd4, 0x00, 0x80][..], &[0xd5, 0x00, 0xa1, b'x'], &[0xc7, 3, 0xff, 0, 0, 0], &[0x81, 0xc0, 0x01]]
    {
        let payload = payload_of(Codec::Binary, hostile);
        assert!(payload.is_err(), "{hostile:02x?} gave {payload:?}");
    }
}

#[test]
fn a_depth_bomb_costs_its_bytes_and_spoils_its_payload_alone() {
    let depth = 100_000;
    let json = ["[".repeat(depth), "]".repeat(depth)].concat();
    assert_eq!(payload_of(Codec::Json, json.as_bytes()), Err(BadPayload("nested too deeply")));
    let objects = [r#"{"a":"#.repeat(depth), "1".to_owned(), "}".repeat(depth)].concat();
    assert_eq!(payload_of(Codec::Json, objects.as_bytes()), Err(BadPayload("nested too deeply")));
    let binary = [vec![0x91; depth], vec![0xc0]].concat();
    assert_eq!(payload_of(Codec::Binary, &binary), Err(BadPayload("nested too deeply")));
}

#[test]
fn the_depth_allowed_is_the_same_in_both_codecs() {
    for (depth, good) in [(64, true), (65, false)] {
        let json = ["[".repeat(depth), "]".repeat(depth)].concat();
        assert_eq!(payload_of(Codec::Json, json.as_bytes()).is_ok(), good);
        let binary = [vec![0x91; depth - 1], vec![0x90]].concat();
        assert_eq!(payload_of(Codec::Binary, &binary).is_ok(), good);
    }
}

#[test]
fn many_small_values_are_refused_before_they_become_memory() {
    let many = Bounds::default().nodes + 1;
    let json = format!("[{}0]", "0,".repeat(many));
    assert_eq!(payload_of(Codec::Json, json.as_bytes()), Err(BadPayload("too many values")));
    let mut binary = vec![0xdd];
    binary.extend_from_slice(&(many as u32).to_be_bytes());
    binary.extend(vec![0xc0; many]);
    assert_eq!(payload_of(Codec::Binary, &binary), Err(BadPayload("too many values")));
}

#[test]
fn a_claimed_length_takes_no_memory() {
    for claim in [
        &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
    ] {
        assert!(Codec::Binary.decode(&frame_around(Codec::Binary, claim), Bounds::default()).is_err());
    }
}

#[test]
fn what_is_not_an_envelope_is_no_message() {
    let good = frame_around(Codec::Json, b"1");
    let text = std::str::from_utf8(&good).unwrap();
    let mut bad: Vec<String> = ["", "1", "[]", "null", "{}", "\u{feff}{}"].map(str::to_owned).into();
    bad.push(format!("{text}x"));
    bad.push(text[..text.len() - 1].to_owned());
    for (from, to) in [
        ("\"seq\":0", "\"seq\":-1"),
        ("\"seq\":0", "\"seq\":0.5"),
        ("\"seq\":0", "\"seq\":\"0\""),
        ("\"ack\":0", "\"ack\":null"),
        ("\"controlFlags\":0", "\"controlFlags\":4294967296"),
        ("\"streamId\":\"s1\"", "\"streamId\":1"),
        ("\"payload\":1", "\"other\":1"),
        ("\"payload\":1", "\"payload\":1,\"tracing\":{\"traceparent\":\"\"}"),
    ] {
        assert!(text.contains(from), "{from}");
        bad.push(text.replace(from, to));
    }
    for text in bad {
        let frame = Bytes::from(text.clone());
        assert!(Codec::Json.decode(&frame, Bounds::default()).is_err(), "{text}");
    }
    let good = frame_around(Codec::Binary, &[1]);
    for cut in 0..good.len() {
        assert!(Codec::Binary.decode(&good.slice(..cut), Bounds::default()).is_err(), "cut at {cut}");
    }
    assert!(Codec::Binary.decode(&[&good[..], &[0]].concat().into(), Bounds::default()).is_err());
    assert!(Codec::Binary.decode(&Bytes::from_static(&[0xc1]), Bounds::default()).is_err());
}

#[test]
fn fields_of_a_later_version_are_accepted() {
    let text = String::from_utf8(frame_around(Codec::Json, b"1").to_vec()).unwrap();
    let later = text.replace("{\"id\"", "{\"later\":{\"a\":[1]},\"id\"").replace("\"seq\":0", "\"seq\":0.0");
    assert!(Codec::Json.decode(&later.into(), Bounds::default()).is_ok());
    let binary = frame_around(Codec::Binary, &[1]);
    let more = [&[binary[0] + 1][..], b"\xa5later\x81\xa1a\x91\x01", &binary[1..]].concat();
    assert!(Codec::Binary.decode(&more.into(), Bounds::default()).is_ok());
}

#[test]
fn a_message_over_the_limit_is_refused_by_its_size() {
    let frame = frame_around(Codec::Binary, &[1]);
    let bounds = Bounds { bytes: frame.len() - 1, ..Bounds::default() };
    assert_eq!(Codec::Binary.decode(&frame, bounds), Err(BadFrame("the message is over the limit of bytes")));
}

#[test]
fn large_bytes_are_shared_with_their_frame() {
    let frame = encode_value(Codec::Binary, &Value::Bytes(vec![7; 4096].into()));
    let Ok(Value::Bytes(bytes)) = decode_value(Codec::Binary, &frame) else { panic!("bytes come back") };
    assert!(frame.as_ptr_range().contains(&bytes.as_ptr()));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (0..10i64).prop_map(Value::Int),
            ((i64::MAX as u64 + 1)..).prop_map(Value::Uint),
            any::<f64>().prop_filter("numbers", |f| f.is_finite()).prop_map(Value::Float),
            any::<i128>().prop_map(|n| Value::BigInt(BigInt::from(n))),
            ".*".prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..80).prop_map(|b| Value::Bytes(b.into())),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
                proptest::collection::vec(("[a-z]{0,40}", inner), 0..20).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_value_comes_back_from_either_codec(value in values()) {
            for codec in [Codec::Json, Codec::Binary] {
                prop_assert_eq!(decode_value(codec, &encode_value(codec, &value)), Ok(value.clone()));
            }
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for codec in [Codec::Json, Codec::Binary] {
                let _ = codec.decode(&bytes.clone().into(), Bounds::default());
                let _ = decode_value(codec, &bytes.clone().into());
            }
        }

        #[test]
        fn no_flipped_byte_makes_a_decoder_panic(value in values(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
            for codec in [Codec::Json, Codec::Binary] {
                let mut payload = encode_value(codec, &value).to_vec();
                let at = at.index(payload.len());
                payload[at] = to;
                let _ = codec.decode(&frame_around(codec, &payload), Bounds::default());
            }
        }
    }
}

/// A change of what the codecs write shows as a change of this file: `BLESS=1 cargo test --lib the_fixtures_are`.
#[test]
fn the_fixtures_are_what_these_codecs_write() {
    use serde_json::json;
    fn described(value: &Value) -> serde_json::Value {
        match value {
            Value::Null => json!(null),
            Value::Bool(value) => json!(value),
            Value::Int(value) => json!(value),
            Value::Uint(value) => json!(value),
            Value::Float(value) => json!(value),
            Value::BigInt(value) => json!({"$bigint": value.as_str()}),
            Value::Text(text) => json!(text),
            Value::Bytes(bytes) | Value::Ext(_, bytes) => json!({ "$bytes_hex": in_hex(bytes) }),
            Value::Date(date) => {
                let nanos = i128::from(date.seconds) * 1_000_000_000 + i128::from(date.nanos);
                let at = jiff::Timestamp::from_nanosecond(nanos).unwrap();
                json!({ "$date": at.to_string() })
            }
            Value::Array(items) => items.iter().map(described).collect(),
            Value::Map(fields) => {
                serde_json::Value::Object(fields.iter().map(|(k, v)| (k.clone(), described(v))).collect())
            }
        }
    }
    fn in_hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    let ints =
        [0, 1, 127, 128, 255, 256, 65_535, 65_536, 4_294_967_295, 4_294_967_296, (1 << 53) - 1, i64::MAX];
    let negative = [-1, -32, -33, -128, -129, -32_768, -32_769, -2_147_483_648, -2_147_483_649, i64::MIN];
    let mut values: Vec<(String, Value)> = Vec::new();
    values.extend(ints.into_iter().chain(negative).map(|n| (format!("int {n}"), Value::Int(n))));
    values.push(("int 2^64-1".into(), Value::Uint(u64::MAX)));
    values.extend([0.5, -1.5, 1e300].map(|f| (format!("float {f}"), Value::Float(f))));
    values.extend([0, 31, 32, 255, 256].map(|n| (format!("text of {n}"), "é".repeat(n / 2).as_str().into())));
    values.extend([0, 4, 255, 256].map(|n| (format!("bytes of {n}"), Value::Bytes(vec![0xa5; n].into()))));
    let bigints = ["0", "-5", "9007199254740991", "9007199254740992", "-1180591620717411303424"];
    values.extend(bigints.map(|n| (format!("bigint {n}"), Value::BigInt(BigInt::parse(n).unwrap()))));
    values.push(("nothing and truth".into(), Value::Array(vec![Value::Null, true.into(), false.into()])));
    values.push((
        "nested".into(),
        Value::map([("a", Value::map([("", Value::Array(vec![]))])), ("\"\\\n", 1.into())]),
    ));
    let dates = [(0, 0), (1_700_000_000, 123_000_000), (1 << 35, 1_000_000), (-1, 999_000_000)];
    let dates = dates
        .map(|(seconds, nanos)| (format!("date {seconds}.{nanos}"), Value::Date(Date { seconds, nanos })));

    let opening = Message {
        procedure: Some(Procedure { service: "fix".into(), name: "open".into() }),
        tracing: Some(Tracing { traceparent: "00-1-2-01".into(), tracestate: String::new() }),
        ..Message::new("stream-1", Flags::OPEN, Value::map([("bytes", Value::Bytes(vec![1, 2, 3].into()))]))
    };
    let messages = [
        ("opens an upload", opening),
        ("a heartbeat", Message::heartbeat()),
        ("closes", Message::close("stream-1")),
        ("cancels", Message::new("stream-1", Flags::CANCEL, Value::map([("ok", false.into())]))),
        (
            "an answer",
            Message::new(
                "stream-1",
                Flags::CLOSED,
                Value::map([("ok", true.into()), ("payload", 1.5.into())]),
            ),
        ),
    ];
    let mut whole = serde_json::Map::new();
    for codec in [Codec::Json, Codec::Binary] {
        let all = values.iter().chain(dates.iter().filter(|_| codec == Codec::Binary));
        let values: Vec<_> = all
            .map(|(name, value)| {
                json!({"name": name, "hex": in_hex(&encode_value(codec, value)), "decodes_to": described(value)})
            })
            .collect();
        let frames: Vec<_> = (300u64..).zip(&messages).map(|(seq, (title, message))| {
            let (id, from, to) = ("0123456789ab", "client", "server");
            let frame = codec.encode(Outgoing { id, from, to, seq, ack: 5_000_000_000, message });
            let mut decoded = json!({
                "id": id, "from": from, "to": to, "seq": seq, "ack": 5_000_000_000u64,
                "streamId": message.stream, "controlFlags": message.flags.0, "payload": described(&message.payload),
            });
            if let (Some(procedure), Some(tracing)) = (&message.procedure, &message.tracing) {
                decoded["serviceName"] = json!(procedure.service);
                decoded["procedureName"] = json!(procedure.name);
                decoded["tracing"] = json!({"traceparent": tracing.traceparent, "tracestate": tracing.tracestate});
            }
            json!({"title": title, "hex": in_hex(&frame), "decoded": decoded})
        }).collect();
        whole.insert(codec.to_string(), json!({"values": values, "frames": frames}));
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/river.json");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, serde_json::to_string_pretty(&whole).unwrap() + "\n").unwrap();
    } else {
        assert_eq!(serde_json::Value::Object(whole), fixtures());
    }
}
