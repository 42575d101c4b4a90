//! The name of a pipe, and who made it.

use std::fmt;

/// The public name of a pipe. Knowing it gives no right.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PipeId(pub [u8; 16]);

impl PipeId {
    /// Which replica made it: another one carries a resume on to that one.
    pub fn owner(self) -> [u8; 8] {
        self.0[..8].try_into().expect("eight of sixteen bytes")
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<PipeId> {
        if text.len() != 32 || !text.is_ascii() {
            return None;
        }
        let mut id = [0; 16];
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        }
        // `from_str_radix` takes a sign; a name is digits only, so that it has one spelling.
        (PipeId(id).to_string() == text.to_ascii_lowercase()).then_some(PipeId(id))
    }
}

impl fmt::Display for PipeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PipeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
