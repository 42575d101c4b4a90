//! Metadata: the latest value an agent reported under a key.
//!
//! Rules only: what is cut at intake, which of two values wins, and how a notice names agents.
//! `collected_at` is the receiving engine's time and strictly increasing within it, so two values
//! with the same stamp are the same report come twice: the first is kept.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use uuid::Uuid;

use super::batch::Merge;
use super::time::Wall;

/// What a value is stored under. Sorts by agent, then by key: the order every writer locks rows in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Who reports.
    pub agent: Uuid,
    /// What is reported.
    pub key: Box<str>,
}

/// A value as it was last reported.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Entry {
    /// What the agent measured.
    pub value: String,
    /// Why it could not measure it; empty when it could.
    pub error: String,
    /// When this engine took it in.
    pub collected_at: Wall,
}

impl Merge for Entry {
    /// The strictly newer one wins; of two of one moment the one that is here stays.
    fn merge(&mut self, other: Entry) {
        let newer = other.collected_at > self.collected_at;
        if newer || crate::planted!("equal_timestamp_overwrites") && other.collected_at == self.collected_at {
            *self = other;
        }
    }
}

/// How long what an agent reports may be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A longer value is cut, and its error says so.
    pub value: usize,
    /// A longer error is replaced by one that says so.
    pub error: usize,
    /// The keys of one report together. What does not fit is left out.
    pub keys: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { value: 2_048, error: 2_048, keys: 6_144 }
    }
}

/// The keys of a report are longer, together, than [`Limits::keys`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeysTooLong {
    /// How many of the keys fit, from the first on. The others are left out.
    pub fit: usize,
    /// The bytes of all keys.
    pub bytes: usize,
    /// What they may have.
    pub limit: usize,
}

impl std::fmt::Display for KeysTooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "metadata keys of {} bytes exceeded {} bytes", self.bytes, self.limit)
    }
}

impl Limits {
    /// The value and the error as they are stored. Both are borrowed when both are short enough.
    pub fn cut<'a>(&self, value: &'a str, error: &'a str) -> (&'a str, Cow<'a, str>) {
        let mut kept = (value, Cow::Borrowed(error));
        if value.len() > self.value {
            let text = format!("value of {} bytes exceeded {} bytes", value.len(), self.value);
            kept = (&value[..value.floor_char_boundary(self.value)], Cow::Owned(text));
        }
        if error.len() > self.error {
            let text = format!("error of {} bytes exceeded {} bytes", error.len(), self.error);
            kept.1 = Cow::Owned(text);
        }
        kept
    }

    /// Whether the keys of one report fit. The budget is spent in the order given, and everything
    /// after the first key that does not fit is left out, so that what is stored is a prefix.
    pub fn fit<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Result<(), KeysTooLong> {
        let (mut bytes, mut fit) = (0, 0);
        for key in keys {
            bytes += key.len();
            fit += usize::from(bytes <= self.keys);
        }
        if bytes > self.keys { Err(KeysTooLong { fit, bytes, limit: self.keys }) } else { Ok(()) }
    }
}

/// How many agents one notice names: 363 × 22 = 7,986 bytes, and PostgreSQL takes 7,999.
pub const AGENTS_PER_NOTICE: usize = 363;

/// The characters one agent takes in a notice: 16 bytes as base64 without padding.
const ID_CHARS: usize = 22;

/// A notice is not a row of agent ids. Its reader must read again whatever it watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadNotice;

impl std::fmt::Display for BadNotice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a metadata notice is not made of agent ids")
    }
}

/// The notices that name `agents`, each at most [`AGENTS_PER_NOTICE`] of them. No agents, no notice.
pub fn notices(agents: &[Uuid]) -> impl Iterator<Item = String> + '_ {
    agents.chunks(AGENTS_PER_NOTICE).map(|chunk| {
        let mut text = String::with_capacity(chunk.len() * ID_CHARS);
        for agent in chunk {
            STANDARD_NO_PAD.encode_string(agent.as_bytes(), &mut text);
        }
        text
    })
}

/// The agents a notice names.
pub fn named_in(notice: &str) -> Result<Vec<Uuid>, BadNotice> {
    let bytes = notice.as_bytes();
    if !bytes.len().is_multiple_of(ID_CHARS) {
        return Err(BadNotice);
    }
    let mut agents = Vec::with_capacity(bytes.len() / ID_CHARS);
    for id in bytes.chunks_exact(ID_CHARS) {
        // The decoder wants room for a whole last group: 18 bytes for the 16 that come out.
        let mut raw = [0; 18];
        match STANDARD_NO_PAD.decode_slice(id, &mut raw) {
            Ok(16) => agents.push(Uuid::from_bytes(raw[..16].try_into().map_err(|_| BadNotice)?)),
            _ => return Err(BadNotice),
        }
    }
    Ok(agents)
}

#[cfg(test)]
#[path = "metadata/tests.rs"]
mod tests;
