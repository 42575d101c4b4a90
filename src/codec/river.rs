//! What River's two codecs share: which of them, how much they accept, and what makes an envelope whole.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use super::{json, msgpack};
use crate::state::envelope::{BadPayload, Envelope, Flags, Outgoing, Tracing};
use crate::state::value::Value;

/// How messages are written. Both ends are told; nothing on the wire says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Codec {
    /// JSON text, River's "naive" default; bytes and bigints are wrapped in `$t` and `$b`.
    #[default]
    Json,
    /// MessagePack: smaller, faster, and everything arrives as what it was.
    Binary,
}

impl Codec {
    /// Writes one frame.
    pub fn encode(self, out: Outgoing<'_>) -> Bytes {
        match self {
            Codec::Json => json::encode(out),
            Codec::Binary => msgpack::encode(out),
        }
    }

    /// Reads one frame.
    pub fn decode(self, frame: &Bytes, bounds: Bounds) -> Result<Envelope, BadFrame> {
        match self {
            Codec::Json => json::decode(frame, bounds),
            Codec::Binary => msgpack::decode(frame, bounds),
        }
    }

    /// The function that writes frames, for machines that must not know codecs.
    pub fn encoder(self) -> fn(Outgoing<'_>) -> Bytes {
        match self {
            Codec::Json => json::encode,
            Codec::Binary => msgpack::encode,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::Json => "json",
            Codec::Binary => "binary",
        })
    }
}

impl FromStr for Codec {
    type Err = String;
    fn from_str(text: &str) -> Result<Codec, String> {
        match text {
            "json" => Ok(Codec::Json),
            "binary" | "msgpack" => Ok(Codec::Binary),
            other => Err(format!("no codec is called {other:?}: json or binary")),
        }
    }
}

/// How much of a frame is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a frame. 4 MiB.
    pub bytes: usize,
    /// Arrays and maps within one another in a payload. 64.
    pub depth: usize,
    /// Values in a payload, counted one by one: each costs memory many times its bytes. 262,144.
    pub nodes: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { bytes: 4 << 20, depth: 64, nodes: 1 << 18 }
    }
}

impl Bounds {
    pub(super) fn check_size(&self, len: usize) -> Result<(), BadFrame> {
        if len <= self.bytes { Ok(()) } else { Err(BadFrame("the message is over the limit of bytes")) }
    }
}

/// Why a frame is no message. The session it came on cannot go on: what it was numbered is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame(pub &'static str);

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadFrame {}

/// The fields of an envelope as they are found, in any order.
#[derive(Default)]
pub(super) struct Fields {
    pub(super) id: Option<String>,
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    pub(super) seq: Option<u64>,
    pub(super) ack: Option<u64>,
    pub(super) service: Option<String>,
    pub(super) procedure: Option<String>,
    pub(super) stream: Option<String>,
    pub(super) flags: Option<u64>,
    pub(super) tracing: Option<Tracing>,
    pub(super) payload: Option<Result<Value, BadPayload>>,
}

impl Fields {
    pub(super) fn finish(self) -> Result<Envelope, BadFrame> {
        let flags = self.flags.ok_or(BadFrame("controlFlags is missing"))?;
        Ok(Envelope {
            id: self.id.ok_or(BadFrame("id is missing"))?,
            from: self.from.ok_or(BadFrame("from is missing"))?,
            to: self.to.ok_or(BadFrame("to is missing"))?,
            seq: self.seq.ok_or(BadFrame("seq is missing"))?,
            ack: self.ack.ok_or(BadFrame("ack is missing"))?,
            service: self.service,
            procedure: self.procedure,
            stream: self.stream.ok_or(BadFrame("streamId is missing"))?,
            flags: Flags(u32::try_from(flags).map_err(|_| BadFrame("controlFlags is over 32 bits"))?),
            tracing: self.tracing,
            payload: self.payload.ok_or(BadFrame("payload is missing"))?,
        })
    }
}

#[cfg(test)]
mod tests;
