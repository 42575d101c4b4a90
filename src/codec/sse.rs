//! Server-sent events: what an `EventSource` reads, and a reader of our own.

use std::time::Duration;

/// What keeps a quiet stream alive on its way through proxies: a comment.
pub const HEARTBEAT: &[u8] = b":\n\n";

/// One event about to be written. A line end inside `data` begins another `data:` line, as the format
/// asks; line ends in `id` and `event` cannot be written and are left out.
///
/// ```
/// use towpath::codec::sse::Event;
/// let mut out = Vec::new();
/// Event { event: Some("part"), id: Some("000a"), data: "{}", ..Event::default() }.write(&mut out);
/// assert_eq!(out, b"event: part\nid: 000a\ndata: {}\n\n");
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Event<'a> {
    /// The type; without one it is `message`.
    pub event: Option<&'a str>,
    /// What `Last-Event-ID` will say when the client comes back.
    pub id: Option<&'a str>,
    /// How long the client waits before it comes back.
    pub retry: Option<Duration>,
    /// The payload.
    pub data: &'a str,
}

impl Event<'_> {
    /// Appends the event with the empty line that ends it.
    pub fn write(&self, out: &mut Vec<u8>) {
        if let Some(event) = self.event {
            field(out, "event", event);
        }
        if let Some(id) = self.id {
            field(out, "id", id);
        }
        if let Some(retry) = self.retry {
            field(out, "retry", &retry.as_millis().to_string());
        }
        each_line(self.data, |line| {
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(line.as_bytes());
            out.push(b'\n');
        });
        out.push(b'\n');
    }

    /// The event as bytes of its own.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.data.len() + 64);
        self.write(&mut out);
        out
    }
}

/// Calls `write` with each line. A carriage return alone ends one too, which `str::lines` does not know.
pub(crate) fn each_line(text: &str, mut write: impl FnMut(&str)) {
    // Most payloads are JSON, which has no line ends.
    if has_none_of(text, [b'\n', b'\r']) {
        return write(text);
    }
    text.replace("\r\n", "\n").split(['\n', '\r']).for_each(write);
}

/// Looks at many bytes at once.
fn has_none_of<const N: usize>(text: &str, bytes: [u8; N]) -> bool {
    let is_clean = |some: &[u8]| !some.iter().fold(false, |found, byte| found | bytes.contains(byte));
    text.as_bytes().chunks(64).all(is_clean)
}

fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    match has_none_of(value, [b'\r', b'\n', 0]) {
        true => out.extend_from_slice(value.as_bytes()),
        false => out.extend(value.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0))),
    }
    out.push(b'\n');
}

/// `retry:` on its own, which tells a client when to come back without giving it an event.
pub fn retry(wait: Duration) -> Vec<u8> {
    format!("retry: {}\n\n", wait.as_millis()).into_bytes()
}

/// An event that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The type, `message` if none was given.
    pub event: String,
    /// The last id that was given, by this event or one before.
    pub id: String,
    /// The payload.
    pub data: String,
}

/// Reads a stream of events, however it is cut into pieces (WHATWG HTML 9.2.6).
///
/// Invariant: `line` holds no line end; `data` holds the complete lines of the event being read.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    after_cr: bool,
    begun: bool,
    event: String,
    id: String,
    data: String,
    has_data: bool,
    retry: Option<Duration>,
}

/// A line or an event over this is refused: nothing that speaks this format to us sends more.
const EVENT_MAX: usize = 16 * 1024 * 1024;

/// An event grew over what is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl Reader {
    /// Takes what arrived and pushes every event that is now whole.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<Received>) -> Result<(), TooLong> {
        for &byte in bytes {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    self.end_line(out);
                }
                _ if self.line.len() + self.data.len() > EVENT_MAX => return Err(TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    /// How long the server asked to wait before coming back, if it did.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// The id to send as `Last-Event-ID`.
    pub fn last_id(&self) -> &str {
        &self.id
    }

    fn end_line(&mut self, out: &mut Vec<Received>) {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        let text = match self.begun {
            false => text.strip_prefix('\u{feff}').unwrap_or(&text),
            true => &text,
        };
        self.begun = true;
        if text.is_empty() {
            self.dispatch(out);
            return;
        }
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => self.event = value.to_owned(),
            "id" if !value.contains('\0') => self.id = value.to_owned(),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry);
            }
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            // Comments and fields of a later version.
            _ => {}
        }
    }

    fn dispatch(&mut self, out: &mut Vec<Received>) {
        let event = std::mem::take(&mut self.event);
        let data = std::mem::take(&mut self.data);
        if std::mem::take(&mut self.has_data) {
            let event = if event.is_empty() { "message".to_owned() } else { event };
            out.push(Received { event, id: self.id.clone(), data });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> Vec<Received> {
        let (mut reader, mut out) = (Reader::default(), Vec::new());
        for piece in pieces {
            reader.feed(piece.as_bytes(), &mut out).unwrap();
        }
        out
    }

    fn received(event: &str, id: &str, data: &str) -> Received {
        Received { event: event.into(), id: id.into(), data: data.into() }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for data in ["", "one", "one\ntwo", "one\r\ntwo", "one\rtwo", "\n", " leading", "ü"] {
            let written = Event { event: Some("part"), id: Some("7"), data, retry: None }.to_vec();
            let normal = data.replace("\r\n", "\n").replace('\r', "\n");
            let text = String::from_utf8(written).unwrap();
            assert_eq!(read(&[&text]), [received("part", "7", &normal)], "{data:?}");
        }
    }

    #[test]
    fn pieces_may_be_cut_anywhere() {
        let text = "\u{feff}: hello\r\nretry: 50\r\nid: 1\r\ndata: a\r\ndata:b\r\n\r\nevent: x\rdata\r\rdata: late\n";
        let whole = read(&[text]);
        assert_eq!(whole, [received("message", "1", "a\nb"), received("x", "1", "")]);
        let mut reader = Reader::default();
        let mut out = Vec::new();
        for byte in text.bytes() {
            reader.feed(&[byte], &mut out).unwrap();
        }
        assert_eq!(out, whole);
        assert_eq!(reader.retry(), Some(Duration::from_millis(50)));
        assert_eq!(reader.last_id(), "1");
    }

    #[test]
    fn a_line_end_in_an_id_begins_no_field() {
        let written = Event { id: Some("1\ndata: forged"), data: "x", ..Event::default() }.to_vec();
        assert_eq!(written, b"id: 1data: forged\ndata: x\n\n");
    }
}
