//! River's JSON codec: one JSON object a message, in UTF-8, in a binary frame.
//!
//! Bytes travel as `{"$t": base64}` and bigints as `{"$b": digits}`; any object that has such a key is read
//! as one, as the reference does. Where the reference then breaks its session on a `$t` that is not
//! base64, here only the payload is bad and its stream fails. Dates are written as ISO text, where the
//! reference writes `{}`.

use std::cell::Cell;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::{BadFrame, Bounds, Fields};
use crate::state::envelope::{BadPayload, Envelope, Outgoing, Tracing};
use crate::state::value::{BigInt, Date, Value};

// ---- writing ----

/// Writes an envelope as one frame.
pub fn encode(out: Outgoing<'_>) -> Bytes {
    let message = out.message;
    let mut buffer = Vec::with_capacity(256);
    buffer.extend_from_slice(b"{\"id\":");
    write_text(&mut buffer, out.id);
    write_field(&mut buffer, "from", out.from);
    write_field(&mut buffer, "to", out.to);
    write_number(&mut buffer, "seq", out.seq);
    write_number(&mut buffer, "ack", out.ack);
    if let Some(procedure) = &message.procedure {
        write_field(&mut buffer, "serviceName", &procedure.service);
        write_field(&mut buffer, "procedureName", &procedure.name);
    }
    write_field(&mut buffer, "streamId", &message.stream);
    write_number(&mut buffer, "controlFlags", message.flags.0.into());
    if let Some(tracing) = &message.tracing {
        buffer.extend_from_slice(b",\"tracing\":{\"traceparent\":");
        write_text(&mut buffer, &tracing.traceparent);
        write_field(&mut buffer, "tracestate", &tracing.tracestate);
        buffer.push(b'}');
    }
    buffer.extend_from_slice(b",\"payload\":");
    write_value(&mut buffer, &message.payload);
    buffer.push(b'}');
    Bytes::from(buffer)
}

/// Appends a value.
pub fn write_value(buffer: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => buffer.extend_from_slice(b"null"),
        Value::Bool(true) => buffer.extend_from_slice(b"true"),
        Value::Bool(false) => buffer.extend_from_slice(b"false"),
        Value::Int(value) => write_json(buffer, value),
        Value::Uint(value) => write_json(buffer, value),
        // What is not a number is null, here and in the reference.
        Value::Float(value) => write_json(buffer, value),
        Value::BigInt(value) => {
            buffer.extend_from_slice(b"{\"$b\":\"");
            buffer.extend_from_slice(value.as_str().as_bytes());
            buffer.extend_from_slice(b"\"}");
        }
        Value::Text(text) => write_text(buffer, text),
        // JSON knows no extensions: their bytes arrive, their number does not.
        Value::Bytes(bytes) | Value::Ext(_, bytes) => write_bytes(buffer, bytes),
        Value::Date(date) => write_text(buffer, &iso(*date)),
        Value::Array(items) => {
            buffer.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    buffer.push(b',');
                }
                write_value(buffer, item);
            }
            buffer.push(b']');
        }
        Value::Map(fields) => {
            buffer.push(b'{');
            for (at, (name, value)) in fields.iter().enumerate() {
                if at > 0 {
                    buffer.push(b',');
                }
                write_text(buffer, name);
                buffer.push(b':');
                write_value(buffer, value);
            }
            buffer.push(b'}');
        }
    }
}

fn write_json(buffer: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(buffer, value)
        .expect("numbers and text are written into memory, where nothing fails");
}

fn write_text(buffer: &mut Vec<u8>, text: &str) {
    write_json(buffer, text);
}

fn write_field(buffer: &mut Vec<u8>, name: &str, text: &str) {
    write_name(buffer, name);
    write_text(buffer, text);
}

fn write_number(buffer: &mut Vec<u8>, name: &str, number: u64) {
    write_name(buffer, name);
    write_json(buffer, &number);
}

fn write_name(buffer: &mut Vec<u8>, name: &str) {
    buffer.extend_from_slice(b",\"");
    buffer.extend_from_slice(name.as_bytes());
    buffer.extend_from_slice(b"\":");
}

fn write_bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.extend_from_slice(b"{\"$t\":\"");
    let start = buffer.len();
    buffer.resize(start + bytes.len().div_ceil(3) * 4, 0);
    STANDARD
        .encode_slice(bytes, &mut buffer[start..])
        .expect("four letters were made room for per three bytes");
    buffer.extend_from_slice(b"\"}");
}

/// As `Date.prototype.toISOString` writes it, to the millisecond.
fn iso(date: Date) -> String {
    let moment = jiff::Timestamp::new(date.seconds, (date.nanos / 1_000_000 * 1_000_000) as i32);
    match moment {
        Ok(moment) => format!("{moment:.3}"),
        // Beyond the year 9999: the reference has no text for it either.
        Err(_) => format!("{}.{:03}", date.seconds, date.nanos / 1_000_000),
    }
}

// ---- reading ----

/// Padding may be missing, as in what `atob` accepts.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads one frame as an envelope.
pub fn decode(frame: &Bytes, bounds: Bounds) -> Result<Envelope, BadFrame> {
    bounds.check_size(frame.len())?;
    let mut deserializer = serde_json::Deserializer::from_slice(frame);
    let fields = deserializer.deserialize_map(EnvelopeVisitor { bounds }).map_err(bad_frame)?;
    deserializer.end().map_err(|_| BadFrame("bytes follow the message"))?;
    fields.finish()
}

/// Reads a value that fills `bytes` exactly.
pub fn decode_value(bytes: &Bytes, bounds: Bounds) -> Result<Value, BadFrame> {
    bounds.check_size(bytes.len())?;
    let notes = Notes::new(bounds);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value =
        Seed { depth: bounds.depth, notes: &notes }.deserialize(&mut deserializer).map_err(bad_frame)?;
    deserializer.end().map_err(|_| BadFrame("bytes follow the value"))?;
    notes.bad.get().map_or(Ok(value), |BadPayload(text)| Err(BadFrame(text)))
}

fn bad_frame(error: serde_json::Error) -> BadFrame {
    match error.classify() {
        serde_json::error::Category::Eof => BadFrame("the message ends in the middle of a value"),
        serde_json::error::Category::Data => BadFrame("the message is not an envelope"),
        _ => BadFrame("the message is not JSON"),
    }
}

struct EnvelopeVisitor {
    bounds: Bounds,
}

impl<'de> Visitor<'de> for EnvelopeVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an envelope")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key_seed(KeySeed)? {
            match name.as_ref() {
                "payload" => {
                    let notes = Notes::new(self.bounds);
                    let value = map.next_value_seed(Seed { depth: self.bounds.depth, notes: &notes })?;
                    fields.payload = Some(notes.bad.get().map_or(Ok(value), Err));
                }
                "seq" => fields.seq = Some(map.next_value_seed(NumberSeed)?),
                "ack" => fields.ack = Some(map.next_value_seed(NumberSeed)?),
                "controlFlags" => fields.flags = Some(map.next_value_seed(NumberSeed)?),
                "id" => fields.id = Some(map.next_value()?),
                "from" => fields.from = Some(map.next_value()?),
                "to" => fields.to = Some(map.next_value()?),
                "streamId" => fields.stream = Some(map.next_value()?),
                "serviceName" => fields.service = Some(map.next_value()?),
                "procedureName" => fields.procedure = Some(map.next_value()?),
                "tracing" => {
                    let TracingFields { traceparent, tracestate } = map.next_value()?;
                    fields.tracing = Some(Tracing { traceparent, tracestate });
                }
                // Fields of a later version are carried by nobody and harm nobody.
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

#[derive(serde::Deserialize)]
struct TracingFields {
    traceparent: String,
    tracestate: String,
}

/// A name, borrowed from the frame unless it holds escapes.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = std::borrow::Cow<'de, str>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(KeySeed)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = std::borrow::Cow<'de, str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(text.into())
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(text.to_owned().into())
    }
}

/// A natural number, also when it is written as a float.
struct NumberSeed;

impl<'de> DeserializeSeed<'de> for NumberSeed {
    type Value = u64;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_any(NumberSeed)
    }
}

impl Visitor<'_> for NumberSeed {
    type Value = u64;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a natural number")
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }
    fn visit_f64<E: Error>(self, number: f64) -> Result<u64, E> {
        Value::Float(number).as_u64().ok_or_else(|| E::custom("not a natural number"))
    }
}

/// What is noticed while a payload is read.
struct Notes {
    bad: Cell<Option<BadPayload>>,
    nodes_left: Cell<usize>,
}

impl Notes {
    fn new(bounds: Bounds) -> Notes {
        Notes { bad: Cell::new(None), nodes_left: Cell::new(bounds.nodes) }
    }

    fn no(&self, text: &'static str) -> Value {
        self.bad.set(self.bad.get().or(Some(BadPayload(text))));
        Value::Null
    }
}

/// Reads any value; one that means nothing is `Null` and noted.
struct Seed<'n> {
    depth: usize,
    notes: &'n Notes,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.notes.nodes_left.get();
        if left == 0 {
            IgnoredAny::deserialize(deserializer)?;
            return Ok(self.notes.no("too many values"));
        }
        self.notes.nodes_left.set(left - 1);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }
    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        if self.depth == 0 {
            // `IgnoredAny` passes over a value without recursion, however deep it is.
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(self.notes.no("nested too deeply"));
        }
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Seed { depth: self.depth - 1, notes: self.notes })? {
            // What is bad is thrown away whole: it need not be kept until then.
            if self.notes.bad.get().is_none() {
                items.push(item);
            }
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        if self.depth == 0 {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(self.notes.no("nested too deeply"));
        }
        let mut fields = Vec::new();
        while let Some(name) = map.next_key_seed(KeySeed)? {
            let value = map.next_value_seed(Seed { depth: self.depth - 1, notes: self.notes })?;
            if self.notes.bad.get().is_none() {
                fields.push((name.into_owned(), value));
            }
        }
        Ok(self.notes.revive(fields))
    }
}

impl Notes {
    /// An object that has `$t` or `$b` stands for bytes or a bigint.
    fn revive(&self, fields: Vec<(String, Value)>) -> Value {
        let map = Value::Map(fields);
        if let Some(inner) = map.get("$t") {
            let bytes = inner.as_str().and_then(|text| BASE64.decode(text).ok());
            bytes.map_or_else(|| self.no("a $t that is not base64"), |bytes| Value::Bytes(bytes.into()))
        } else if let Some(inner) = map.get("$b") {
            let number = inner.as_str().and_then(BigInt::parse);
            number.map_or_else(|| self.no("a $b that is not a whole number"), Value::BigInt)
        } else {
            map
        }
    }
}
