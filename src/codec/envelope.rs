//! The envelope every event of a stream travels in, the same in the `data:` of server-sent events and in
//! WebSocket text:
//!
//! ```json
//! {"t":"part","s":"chat/7","o":"<token>","ts":1763769600000,"d":{"delta":"Hel"},"turn":1,"n":1}
//! ```
//!
//! `t` is the type, `s` the stream, `o` where to follow on from, `ts` Unix milliseconds, `d` the payload.
//! Parts add `turn` and `n`.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::token::Token;

/// An event about to be written.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The type.
    pub t: &'a str,
    /// The stream, as its name is written in a path.
    pub s: &'a str,
    /// Where a follower stands after it.
    pub o: Token,
    /// When it happened, in Unix milliseconds.
    pub ts: i64,
    /// The payload, a JSON document.
    pub d: &'a str,
    /// Turn and number, for a part.
    pub part: Option<(u32, u32)>,
}

impl Envelope<'_> {
    /// Appends the envelope.
    pub fn write(&self, out: &mut String) {
        out.reserve(self.d.len() + self.s.len() + 120);
        out.push_str(r#"{"t":"#);
        push_str(out, self.t);
        out.push_str(r#","s":"#);
        push_str(out, self.s);
        let written = std::fmt::Write::write_fmt(
            out,
            format_args!(r#","o":"{}","ts":{},"d":{}"#, self.o, self.ts, self.d),
        );
        written.expect("a string takes everything");
        if let Some((turn, n)) = self.part {
            let written = std::fmt::Write::write_fmt(out, format_args!(r#","turn":{turn},"n":{n}"#));
            written.expect("a string takes everything");
        }
        out.push('}');
    }

    /// The envelope as text of its own.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }
}

/// Appends a text as a JSON string.
pub fn push_str(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                let written = std::fmt::Write::write_fmt(out, format_args!("\\u{:04x}", c as u32));
                written.expect("a string takes everything");
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// An event as a client reads it. Fields that later versions add are passed over.
#[derive(Clone, Debug, Deserialize)]
pub struct Received<'a> {
    /// The type.
    pub t: String,
    /// The stream.
    pub s: String,
    /// The token to come back with.
    pub o: String,
    /// Unix milliseconds.
    pub ts: i64,
    /// The payload.
    #[serde(borrow)]
    pub d: &'a RawValue,
    /// The turn, of a part.
    pub turn: Option<u32>,
    /// The number, of a part.
    pub n: Option<u32>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::token::Tag;
    use super::*;
    use crate::state::stream::Cursor;

    fn envelope<'a>(s: &'a str, d: &'a str, part: Option<(u32, u32)>) -> Envelope<'a> {
        let cursor = Cursor { generation: 0, pos: 1, turn: 1, part: 2 };
        Envelope { t: "part", s, o: Token { tag: Tag([0; 4]), cursor }, ts: 1_700_000_000_000, d, part }
    }

    #[test]
    fn fields_stand_in_the_order_that_is_promised() {
        assert_eq!(
            envelope("chat/7", r#"{"delta":"a"}"#, Some((1, 2))).to_text(),
            r#"{"t":"part","s":"chat/7","o":"040000000000000000000000000g000004000002","ts":1700000000000,"d":{"delta":"a"},"turn":1,"n":2}"#
        );
        assert!(envelope("chat/7", "null", None).to_text().ends_with(r#","d":null}"#));
    }

    proptest! {
        #[test]
        fn any_name_and_any_payload_come_through(name in "\\PC{0,40}|[\\x00-\\x20\"\\\\]{0,8}", said in any::<String>()) {
            let d = serde_json::to_string(&said).expect("a string is JSON");
            let text = envelope(&name, &d, None).to_text();
            let received: Received<'_> = serde_json::from_str(&text).expect("an envelope is JSON");
            prop_assert_eq!(received.s, name);
            prop_assert_eq!(serde_json::from_str::<String>(received.d.get()).expect("it was"), said);
        }
    }
}
