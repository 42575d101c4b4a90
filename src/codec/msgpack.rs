//! River's binary codec: one MessagePack map a message.
//!
//! Written the way `@msgpack/msgpack` writes it (shortest integers, extension 0 for `bigint`, extension −1
//! for dates), and read more widely than it writes: any integer or float form of a number, lengths in any
//! form, unknown fields. What is too deep, too many-fold or meaningless *inside the payload* makes the
//! payload bad and leaves the envelope good, so that one stream fails and not its session; a frame whose
//! bytes do not add up is no message at all.

use bytes::Bytes;

use super::{BadFrame, Bounds, Fields};
use crate::state::envelope::{BadPayload, Envelope, Outgoing, Tracing};
use crate::state::value::{BigInt, Date, Value};

/// The largest number JavaScript counts with.
const SAFE: i128 = (1 << 53) - 1;

// ---- writing ----

/// Writes an envelope as one frame.
pub fn encode(out: Outgoing<'_>) -> Bytes {
    let message = out.message;
    let mut buffer = Vec::with_capacity(192);
    let count = 8 + 2 * usize::from(message.procedure.is_some()) + usize::from(message.tracing.is_some());
    write_map_len(&mut buffer, count);
    write_field(&mut buffer, "id", out.id);
    write_field(&mut buffer, "from", out.from);
    write_field(&mut buffer, "to", out.to);
    write_text(&mut buffer, "seq");
    write_uint(&mut buffer, out.seq);
    write_text(&mut buffer, "ack");
    write_uint(&mut buffer, out.ack);
    if let Some(procedure) = &message.procedure {
        write_field(&mut buffer, "serviceName", &procedure.service);
        write_field(&mut buffer, "procedureName", &procedure.name);
    }
    write_field(&mut buffer, "streamId", &message.stream);
    write_text(&mut buffer, "controlFlags");
    write_uint(&mut buffer, message.flags.0.into());
    if let Some(tracing) = &message.tracing {
        write_text(&mut buffer, "tracing");
        write_map_len(&mut buffer, 2);
        write_field(&mut buffer, "traceparent", &tracing.traceparent);
        write_field(&mut buffer, "tracestate", &tracing.tracestate);
    }
    write_text(&mut buffer, "payload");
    write_value(&mut buffer, &message.payload);
    Bytes::from(buffer)
}

/// Appends a value.
pub fn write_value(buffer: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => buffer.push(0xc0),
        Value::Bool(value) => buffer.push(0xc2 | u8::from(*value)),
        Value::Int(value) => write_int(buffer, *value),
        Value::Uint(value) => write_uint(buffer, *value),
        Value::Float(value) => {
            buffer.push(0xcb);
            buffer.extend_from_slice(&value.to_be_bytes());
        }
        Value::BigInt(value) => write_bigint(buffer, value),
        Value::Text(text) => write_text(buffer, text),
        Value::Bytes(bytes) => {
            write_len(buffer, bytes.len(), None, Some(0xc4), 0xc5, 0xc6);
            buffer.extend_from_slice(bytes);
        }
        Value::Date(date) => write_date(buffer, *date),
        Value::Ext(kind, bytes) => write_ext(buffer, *kind, bytes),
        Value::Array(items) => {
            write_len(buffer, items.len(), Some((0x90, 15)), None, 0xdc, 0xdd);
            items.iter().for_each(|item| write_value(buffer, item));
        }
        Value::Map(fields) => {
            write_map_len(buffer, fields.len());
            for (name, value) in fields {
                write_text(buffer, name);
                write_value(buffer, value);
            }
        }
    }
}

fn write_field(buffer: &mut Vec<u8>, name: &str, text: &str) {
    write_text(buffer, name);
    write_text(buffer, text);
}

fn write_text(buffer: &mut Vec<u8>, text: &str) {
    write_len(buffer, text.len(), Some((0xa0, 31)), Some(0xd9), 0xda, 0xdb);
    buffer.extend_from_slice(text.as_bytes());
}

fn write_map_len(buffer: &mut Vec<u8>, len: usize) {
    write_len(buffer, len, Some((0x80, 15)), None, 0xde, 0xdf);
}

/// Writes a length in its shortest form: inside the tag, or in one, two or four bytes after it.
fn write_len(buffer: &mut Vec<u8>, len: usize, fix: Option<(u8, usize)>, one: Option<u8>, two: u8, four: u8) {
    match (fix, one) {
        (Some((tag, max)), _) if len <= max => buffer.push(tag | len as u8),
        (_, Some(tag)) if len <= 0xff => buffer.extend_from_slice(&[tag, len as u8]),
        _ if len <= 0xffff => {
            buffer.push(two);
            buffer.extend_from_slice(&(len as u16).to_be_bytes());
        }
        // No frame comes near 4 GiB: links refuse anything over their message limit.
        _ => {
            buffer.push(four);
            buffer.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
}

fn write_uint(buffer: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x7f => buffer.push(value as u8),
        0x80..=0xff => buffer.extend_from_slice(&[0xcc, value as u8]),
        0x100..=0xffff => {
            buffer.push(0xcd);
            buffer.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            buffer.push(0xce);
            buffer.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            buffer.push(0xcf);
            buffer.extend_from_slice(&value.to_be_bytes());
        }
    }
}

fn write_int(buffer: &mut Vec<u8>, value: i64) {
    match value {
        0.. => write_uint(buffer, value as u64),
        -32..=-1 => buffer.push(value as u8),
        -0x80..=-33 => buffer.extend_from_slice(&[0xd0, value as u8]),
        -0x8000..=-0x81 => {
            buffer.push(0xd1);
            buffer.extend_from_slice(&(value as i16).to_be_bytes());
        }
        -0x8000_0000..=-0x8001 => {
            buffer.push(0xd2);
            buffer.extend_from_slice(&(value as i32).to_be_bytes());
        }
        _ => {
            buffer.push(0xd3);
            buffer.extend_from_slice(&value.to_be_bytes());
        }
    }
}

fn write_bigint(buffer: &mut Vec<u8>, value: &BigInt) {
    let mut body = Vec::with_capacity(24);
    match value.as_i128() {
        Some(small) if (-SAFE..=SAFE).contains(&small) => write_int(&mut body, small as i64),
        _ => write_text(&mut body, value.as_str()),
    }
    write_ext(buffer, 0, &body);
}

fn write_date(buffer: &mut Vec<u8>, date: Date) {
    match u64::try_from(date.seconds) {
        Ok(seconds) if seconds < 1 << 32 && date.nanos == 0 => {
            write_ext(buffer, -1, &(seconds as u32).to_be_bytes());
        }
        Ok(seconds) if seconds < 1 << 34 => {
            write_ext(buffer, -1, &(u64::from(date.nanos) << 34 | seconds).to_be_bytes());
        }
        _ => {
            let mut body = date.nanos.to_be_bytes().to_vec();
            body.extend_from_slice(&date.seconds.to_be_bytes());
            write_ext(buffer, -1, &body);
        }
    }
}

fn write_ext(buffer: &mut Vec<u8>, kind: i8, body: &[u8]) {
    match body.len() {
        1 => buffer.push(0xd4),
        2 => buffer.push(0xd5),
        4 => buffer.push(0xd6),
        8 => buffer.push(0xd7),
        16 => buffer.push(0xd8),
        len => write_len(buffer, len, None, Some(0xc7), 0xc8, 0xc9),
    }
    buffer.push(kind as u8);
    buffer.extend_from_slice(body);
}

// ---- reading ----

/// Reads one frame as an envelope.
pub fn decode(frame: &Bytes, bounds: Bounds) -> Result<Envelope, BadFrame> {
    bounds.check_size(frame.len())?;
    let mut reader = Reader::new(frame, bounds);
    let Head::Map(count) = reader.head()? else { return Err(BadFrame("the message is not a map")) };
    let mut fields = Fields::default();
    for _ in 0..count {
        let name = match reader.head()? {
            Head::Text(name) => name,
            head => {
                reader.skip_after(head)?;
                reader.skip()?;
                continue;
            }
        };
        match name {
            b"payload" => {
                let value = reader.value(bounds.depth)?;
                fields.payload = Some(match reader.bad.take() {
                    Some(bad) => Err(bad),
                    None => Ok(value),
                });
            }
            b"seq" => fields.seq = Some(reader.number()?),
            b"ack" => fields.ack = Some(reader.number()?),
            b"controlFlags" => fields.flags = Some(reader.number()?),
            b"id" => fields.id = Some(reader.text()?),
            b"from" => fields.from = Some(reader.text()?),
            b"to" => fields.to = Some(reader.text()?),
            b"streamId" => fields.stream = Some(reader.text()?),
            b"serviceName" => fields.service = Some(reader.text()?),
            b"procedureName" => fields.procedure = Some(reader.text()?),
            b"tracing" => fields.tracing = Some(reader.tracing()?),
            // Fields of a later version are carried by nobody and harm nobody.
            _ => reader.skip()?,
        }
    }
    if !reader.rest.is_empty() {
        return Err(BadFrame("bytes follow the message"));
    }
    fields.finish()
}

/// Reads a value that fills `bytes` exactly.
pub fn decode_value(bytes: &Bytes, bounds: Bounds) -> Result<Value, BadFrame> {
    bounds.check_size(bytes.len())?;
    let mut reader = Reader::new(bytes, bounds);
    let value = reader.value(bounds.depth)?;
    match reader.bad {
        Some(BadPayload(text)) => Err(BadFrame(text)),
        None if reader.rest.is_empty() => Ok(value),
        None => Err(BadFrame("bytes follow the value")),
    }
}

const SHORT: BadFrame = BadFrame("the message ends in the middle of a value");

/// What a tag announces; for scalars, the value itself.
enum Head<'a> {
    Scalar(Value),
    Text(&'a [u8]),
    Bytes(&'a [u8]),
    Ext(i8, &'a [u8]),
    Array(usize),
    Map(usize),
}

struct Reader<'a> {
    frame: &'a Bytes,
    rest: &'a [u8],
    /// Values that may still be read: a byte of input may not become 32 of memory without end.
    nodes_left: usize,
    /// The first thing that made the payload meaningless.
    bad: Option<BadPayload>,
}

impl<'a> Reader<'a> {
    fn new(frame: &'a Bytes, bounds: Bounds) -> Reader<'a> {
        Reader { frame, rest: frame, nodes_left: bounds.nodes, bad: None }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], BadFrame> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    fn be<const N: usize>(&mut self) -> Result<[u8; N], BadFrame> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn len1(&mut self) -> Result<usize, BadFrame> {
        Ok(usize::from(u8::from_be_bytes(self.be()?)))
    }
    fn len2(&mut self) -> Result<usize, BadFrame> {
        Ok(usize::from(u16::from_be_bytes(self.be()?)))
    }
    fn len4(&mut self) -> Result<usize, BadFrame> {
        Ok(u32::from_be_bytes(self.be()?) as usize)
    }

    fn ext(&mut self, len: usize) -> Result<Head<'a>, BadFrame> {
        let [kind] = self.be::<1>()?;
        Ok(Head::Ext(kind as i8, self.take(len)?))
    }

    fn head(&mut self) -> Result<Head<'a>, BadFrame> {
        let [tag] = self.be::<1>()?;
        Ok(match tag {
            0x00..=0x7f => Head::Scalar(Value::Int(tag.into())),
            0x80..=0x8f => Head::Map(usize::from(tag & 15)),
            0x90..=0x9f => Head::Array(usize::from(tag & 15)),
            0xa0..=0xbf => Head::Text(self.take(usize::from(tag & 31))?),
            0xc0 => Head::Scalar(Value::Null),
            0xc1 => return Err(BadFrame("the byte c1 starts no value")),
            0xc2 | 0xc3 => Head::Scalar(Value::Bool(tag == 0xc3)),
            0xc4 => Head::Bytes(self.len1().and_then(|len| self.take(len))?),
            0xc5 => Head::Bytes(self.len2().and_then(|len| self.take(len))?),
            0xc6 => Head::Bytes(self.len4().and_then(|len| self.take(len))?),
            0xc7 => self.len1().and_then(|len| self.ext(len))?,
            0xc8 => self.len2().and_then(|len| self.ext(len))?,
            0xc9 => self.len4().and_then(|len| self.ext(len))?,
            0xca => Head::Scalar(Value::Float(f32::from_be_bytes(self.be()?).into())),
            0xcb => Head::Scalar(Value::Float(f64::from_be_bytes(self.be()?))),
            0xcc => Head::Scalar(Value::Int(u8::from_be_bytes(self.be()?).into())),
            0xcd => Head::Scalar(Value::Int(u16::from_be_bytes(self.be()?).into())),
            0xce => Head::Scalar(Value::Int(u32::from_be_bytes(self.be()?).into())),
            0xcf => Head::Scalar(u64::from_be_bytes(self.be()?).into()),
            0xd0 => Head::Scalar(Value::Int(i8::from_be_bytes(self.be()?).into())),
            0xd1 => Head::Scalar(Value::Int(i16::from_be_bytes(self.be()?).into())),
            0xd2 => Head::Scalar(Value::Int(i32::from_be_bytes(self.be()?).into())),
            0xd3 => Head::Scalar(Value::Int(i64::from_be_bytes(self.be()?))),
            0xd4..=0xd8 => self.ext(1 << (tag - 0xd4))?,
            0xd9 => Head::Text(self.len1().and_then(|len| self.take(len))?),
            0xda => Head::Text(self.len2().and_then(|len| self.take(len))?),
            0xdb => Head::Text(self.len4().and_then(|len| self.take(len))?),
            0xdc => Head::Array(self.len2()?),
            0xdd => Head::Array(self.len4()?),
            0xde => Head::Map(self.len2()?),
            0xdf => Head::Map(self.len4()?),
            0xe0..=0xff => Head::Scalar(Value::Int((tag as i8).into())),
        })
    }

    /// The next value; one that means nothing is `Null` and noted in `bad`.
    fn value(&mut self, depth: usize) -> Result<Value, BadFrame> {
        let head = self.head()?;
        if self.nodes_left == 0 || (depth == 0 && matches!(head, Head::Array(_) | Head::Map(_))) {
            let text = if self.nodes_left == 0 { "too many values" } else { "nested too deeply" };
            self.skip_after(head)?;
            return Ok(self.no(text));
        }
        self.nodes_left -= 1;
        Ok(match head {
            Head::Scalar(value) => value,
            Head::Text(text) => Value::Text(lossy(text)),
            Head::Bytes(bytes) => Value::Bytes(self.share(bytes)),
            Head::Ext(0, body) => match bigint(body) {
                Some(value) => Value::BigInt(value),
                None => self.no("a bigint that is not one"),
            },
            Head::Ext(-1, body) => match date(body) {
                Some(date) => Value::Date(date),
                None => self.no("a timestamp that is not one"),
            },
            Head::Ext(kind, body) => Value::Ext(kind, self.share(body)),
            Head::Array(len) => {
                // A length is a claim: memory is taken for what has arrived.
                let mut items = Vec::with_capacity(len.min(self.rest.len()).min(64));
                for _ in 0..len {
                    let item = self.value(depth - 1)?;
                    // What is bad is thrown away whole: it need not be kept until then.
                    if self.bad.is_none() {
                        items.push(item);
                    }
                }
                Value::Array(items)
            }
            Head::Map(len) => {
                let mut fields = Vec::with_capacity(len.min(self.rest.len() / 2).min(16));
                for _ in 0..len {
                    let field = (self.key()?, self.value(depth - 1)?);
                    if self.bad.is_none() {
                        fields.push(field);
                    }
                }
                Value::Map(fields)
            }
        })
    }

    fn key(&mut self) -> Result<String, BadFrame> {
        match self.head()? {
            Head::Text(text) => Ok(lossy(text)),
            Head::Scalar(Value::Int(number)) => Ok(number.to_string()),
            Head::Scalar(Value::Uint(number)) => Ok(number.to_string()),
            head => {
                self.skip_after(head)?;
                self.no("a map key that is neither a string nor a number");
                Ok(String::new())
            }
        }
    }

    fn no(&mut self, text: &'static str) -> Value {
        self.bad.get_or_insert(BadPayload(text));
        Value::Null
    }

    /// Bytes that are most of their frame keep it; others are copied, so as not to.
    fn share(&self, bytes: &'a [u8]) -> Bytes {
        match bytes.len() * 2 > self.frame.len() {
            true => self.frame.slice_ref(bytes),
            false => Bytes::copy_from_slice(bytes),
        }
    }

    fn skip(&mut self) -> Result<(), BadFrame> {
        let head = self.head()?;
        self.skip_after(head)
    }

    /// Passes over the rest of a value without recursion, however deep it is.
    fn skip_after(&mut self, head: Head<'a>) -> Result<(), BadFrame> {
        let mut left = inside(&head);
        while left > 0 {
            left -= 1;
            left = left.saturating_add(inside(&self.head()?));
        }
        Ok(())
    }

    fn number(&mut self) -> Result<u64, BadFrame> {
        match self.head()? {
            Head::Scalar(value) => {
                value.as_u64().ok_or(BadFrame("a number of the envelope is not a natural one"))
            }
            _ => Err(BadFrame("a number of the envelope is not a number")),
        }
    }

    fn text(&mut self) -> Result<String, BadFrame> {
        match self.head()? {
            Head::Text(text) => Ok(lossy(text)),
            _ => Err(BadFrame("a name of the envelope is not text")),
        }
    }

    fn tracing(&mut self) -> Result<Tracing, BadFrame> {
        let Head::Map(count) = self.head()? else { return Err(BadFrame("tracing is not a map")) };
        let (mut traceparent, mut tracestate) = (None, None);
        for _ in 0..count {
            match self.key()?.as_str() {
                "traceparent" => traceparent = Some(self.text()?),
                "tracestate" => tracestate = Some(self.text()?),
                _ => self.skip()?,
            }
        }
        match (traceparent, tracestate) {
            (Some(traceparent), Some(tracestate)) => Ok(Tracing { traceparent, tracestate }),
            _ => Err(BadFrame("tracing lacks one of its two fields")),
        }
    }
}

/// How many values follow a head that belong to it.
fn inside(head: &Head<'_>) -> usize {
    match head {
        Head::Array(len) => *len,
        Head::Map(len) => len.saturating_mul(2),
        _ => 0,
    }
}

/// As JavaScript's `TextDecoder` reads it: bytes that are no letter become U+FFFD.
fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn bigint(body: &[u8]) -> Option<BigInt> {
    let body = Bytes::copy_from_slice(body);
    let mut reader = Reader::new(&body, Bounds::default());
    let number = match reader.head().ok()? {
        Head::Scalar(Value::Int(value)) => i128::from(value).into(),
        Head::Scalar(Value::Uint(value)) => i128::from(value).into(),
        Head::Text(text) => BigInt::parse(std::str::from_utf8(text).ok()?)?,
        _ => return None,
    };
    reader.rest.is_empty().then_some(number)
}

fn date(body: &[u8]) -> Option<Date> {
    let date = if let Ok(body) = <[u8; 4]>::try_from(body) {
        Date { seconds: u32::from_be_bytes(body).into(), nanos: 0 }
    } else if let Ok(body) = <[u8; 8]>::try_from(body) {
        let both = u64::from_be_bytes(body);
        Date { seconds: (both & ((1 << 34) - 1)) as i64, nanos: (both >> 34) as u32 }
    } else {
        let (nanos, seconds) = body.split_first_chunk::<4>()?;
        let seconds = <[u8; 8]>::try_from(seconds).ok()?;
        Date { seconds: i64::from_be_bytes(seconds), nanos: u32::from_be_bytes(*nanos) }
    };
    (date.nanos < 1_000_000_000).then_some(date)
}
