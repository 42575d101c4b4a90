//! One River message: who, to whom, its number, its stream, what it carries.

use std::fmt;

use super::value::Value;

/// The stream id of heartbeats and of the acknowledgements that answer them.
pub const HEARTBEAT_STREAM: &str = "heartbeat";
/// The stream id of a refresh of the session's metadata.
pub const REHANDSHAKE_STREAM: &str = "rehandshake";

/// The bits of `controlFlags`. Bits without a meaning here are carried and ignored.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u32);

impl Flags {
    /// A message of a stream that opens and closes nothing.
    pub const NONE: Flags = Flags(0);
    /// An acknowledgement and nothing else; a client answers it with one of its own.
    pub const ACK: Flags = Flags(1);
    /// Opens the stream.
    pub const OPEN: Flags = Flags(2);
    /// Ends the stream at once, both ways.
    pub const CANCEL: Flags = Flags(4);
    /// The sender's last message on this stream.
    pub const CLOSED: Flags = Flags(8);
    /// Opens a stream on which nothing more is sent: rpc and subscription.
    pub const OPEN_CLOSED: Flags = Flags(10);

    /// Whether all bits of `other` are set here.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Flags::ACK, "Ack"),
            (Flags::OPEN, "Open"),
            (Flags::CANCEL, "Cancel"),
            (Flags::CLOSED, "Closed"),
        ];
        let set: Vec<&str> =
            names.iter().filter(|(flag, _)| self.has(*flag)).map(|(_, name)| *name).collect();
        write!(f, "{}", if set.is_empty() { "-".to_owned() } else { set.join("|") })
    }
}

/// W3C trace context, carried from caller to handler.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tracing {
    /// `traceparent`; empty when the caller does not trace.
    pub traceparent: String,
    /// `tracestate`.
    pub tracestate: String,
}

/// A payload that is not one: the envelope around it could be read, so only its stream suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPayload(pub &'static str);

impl fmt::Display for BadPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What one stream says, before the session numbers it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The stream's id.
    pub stream: String,
    /// Opens, closes, cancels.
    pub flags: Flags,
    /// Present on the opening message only.
    pub procedure: Option<Procedure>,
    /// Present on the opening message only.
    pub tracing: Option<Tracing>,
    /// The payload.
    pub payload: Value,
}

impl Message {
    /// A message that opens nothing.
    pub fn new(stream: impl Into<String>, flags: Flags, payload: Value) -> Message {
        Message { stream: stream.into(), flags, procedure: None, tracing: None, payload }
    }

    /// The heartbeat, and what answers it.
    pub fn heartbeat() -> Message {
        Message::new(HEARTBEAT_STREAM, Flags::ACK, Value::map([("type", "ACK".into())]))
    }

    /// The end of one side of a stream.
    pub fn close(stream: &str) -> Message {
        Message::new(stream, Flags::CLOSED, Value::map([("type", "CLOSE".into())]))
    }
}

/// The name of a procedure: `service.procedure`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Procedure {
    /// The service.
    pub service: String,
    /// The procedure in it.
    pub name: String,
}

/// One message as it goes over the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Unique among the sender's messages; the same again when it is sent again.
    pub id: String,
    /// The sender's client id.
    pub from: String,
    /// The receiver's client id.
    pub to: String,
    /// The number of this message in its session.
    pub seq: u64,
    /// How many messages the sender has received: the number it expects next.
    pub ack: u64,
    /// The service, on opening messages.
    pub service: Option<String>,
    /// The procedure, on opening messages.
    pub procedure: Option<String>,
    /// The stream.
    pub stream: String,
    /// Opens, closes, cancels, acknowledges.
    pub flags: Flags,
    /// The caller's trace, on opening messages and handshakes.
    pub tracing: Option<Tracing>,
    /// What it carries, or why that cannot be read.
    pub payload: Result<Value, BadPayload>,
}

/// A borrowed envelope, for writing one without copying what a message already holds.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// See [`Envelope::id`].
    pub id: &'a str,
    /// See [`Envelope::from`].
    pub from: &'a str,
    /// See [`Envelope::to`].
    pub to: &'a str,
    /// See [`Envelope::seq`].
    pub seq: u64,
    /// See [`Envelope::ack`].
    pub ack: u64,
    /// What is said.
    pub message: &'a Message,
}

/// The letters of River's ids: digits and letters without `w` and `W`.
const LETTERS: &[u8; 60] = b"0123456789abcdefghijklmnopqrstuvxyzABCDEFGHIJKLMNOPQRSTUVXYZ";

/// Makes 12-letter ids that differ among themselves and, by the draw they start from, from those of others.
#[derive(Clone, Debug)]
pub struct Ids {
    prefix: [u8; 6],
    next: u64,
}

impl Ids {
    /// `draw` is a random number; two makers with different draws make different ids (but for one chance in
    /// 46 thousand million).
    pub fn new(draw: u64) -> Ids {
        let mut prefix = [0; 6];
        letters(draw, &mut prefix);
        Ids { prefix, next: 0 }
    }

    /// One id all of whose letters come from the draw: for what must not be guessed from what came before.
    pub fn drawn(draw: u64) -> String {
        let mut id = [0; 12];
        letters(draw, &mut id);
        String::from_utf8_lossy(&id).into_owned()
    }

    /// The next id.
    pub fn make(&mut self) -> String {
        let mut id = [0; 12];
        id[..6].copy_from_slice(&self.prefix);
        letters(self.next, &mut id[6..]);
        self.next += 1;
        // Wraps after 46 thousand million ids; the prefix moves on, so that none is given twice.
        if self.next == 60u64.pow(6) {
            self.next = 0;
            for letter in &mut self.prefix {
                let at = LETTERS.iter().position(|l| l == letter).expect("every letter came from LETTERS");
                *letter = LETTERS[(at + 1) % LETTERS.len()];
                if at + 1 < LETTERS.len() {
                    break;
                }
            }
        }
        String::from_utf8_lossy(&id).into_owned()
    }
}

/// Writes `number` in base 60, least letter last, dropping what does not fit.
fn letters(mut number: u64, into: &mut [u8]) {
    for letter in into.iter_mut().rev() {
        *letter = LETTERS[(number % 60) as usize];
        number /= 60;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_twelve_letters_of_rivers_alphabet_and_differ() {
        let mut ids = Ids::new(u64::MAX);
        let made: std::collections::BTreeSet<String> = (0..1_000).map(|_| ids.make()).collect();
        assert_eq!(made.len(), 1_000);
        for id in &made {
            assert_eq!(id.len(), 12);
            assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() && b != b'w' && b != b'W'), "{id}");
        }
        assert!(!made.contains(&Ids::new(7).make()));
    }
}
