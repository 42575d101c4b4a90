//! What is asked over `/v1/ws`, read from its text.
//!
//! The number and the operation are read first, so that what is wrong with the rest is answered under the
//! number. Contents and parts stay the text that they came as.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::front::Secret;

/// A code and a sentence.
pub(super) type Wrong = (&'static str, String);

/// One message of a client.
pub(super) struct Asked {
    /// What the answer refers to; null if nothing was given or nothing could be read.
    pub(super) id: Value,
    pub(super) what: Result<Ask, Wrong>,
}

/// What is to be done.
pub(super) enum Ask {
    Follow(Follow),
    Unfollow(Named),
    Append(Append),
    Parts(Parts),
    Interrupt(Named),
    Watch(OfAgent),
    Unwatch(OfAgent),
    Auth(Auth),
}

/// The fields of an operation, besides its number and its name. Others are refused, so that a typo does not
/// vanish.
macro_rules! operation {
    ($name:ident { $($field:ident: $kind:ty),* }) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            #[serde(default, rename = "id")]
            _id: IgnoredAny,
            #[serde(rename = "op")]
            _op: IgnoredAny,
            $(pub(super) $field: $kind,)*
        }
    };
}

operation!(Follow { s: String, since: Option<String>, parts: Option<bool> });
operation!(Named { s: String });
operation!(Append { s: String, role: Option<String>, content: Box<RawValue> });
operation!(Parts { s: String, turn: u32, lease: String, d: Vec<Box<RawValue>> });
operation!(OfAgent { agent: Uuid });
operation!(Auth { token: Secret });

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    op: Value,
}

/// Reads one message.
pub(super) fn read(text: &str) -> Asked {
    if !text.trim_start().starts_with('{') {
        return Asked { id: Value::Null, what: Err(("bad_json", "send one JSON object".into())) };
    }
    let Head { id, op } = match serde_json::from_str(text) {
        Ok(head) => head,
        Err(error) => return Asked { id: Value::Null, what: Err(wrong(&error)) },
    };
    let what = match op.as_str() {
        Some("follow") => fields(text).map(Ask::Follow),
        Some("unfollow") => fields(text).map(Ask::Unfollow),
        Some("append") => fields(text).map(Ask::Append),
        Some("parts") => fields(text).map(Ask::Parts),
        Some("interrupt") => fields(text).map(Ask::Interrupt),
        Some("watch") => fields(text).map(Ask::Watch),
        Some("unwatch") => fields(text).map(Ask::Unwatch),
        Some("auth") => fields(text).map(Ask::Auth),
        _ => Err((
            "unknown_op",
            "op is one of follow, unfollow, append, parts, interrupt, watch, unwatch, auth".into(),
        )),
    };
    Asked { id, what }
}

fn fields<T: DeserializeOwned>(text: &str) -> Result<T, Wrong> {
    serde_json::from_str(text).map_err(|error| wrong(&error))
}

/// The same codes as for the body of a request.
fn wrong(error: &serde_json::Error) -> Wrong {
    let said = error.to_string();
    let code = match error.classify() {
        Category::Data if said.starts_with("unknown field") => "unknown_field",
        Category::Data => "bad_field",
        Category::Io | Category::Syntax | Category::Eof => "bad_json",
    };
    (code, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (Value, &'static str) {
        let asked = read(text);
        (asked.id, asked.what.err().map_or("nothing", |(code, _)| code))
    }

    #[test]
    fn what_is_wrong_is_said_under_the_number_it_was_asked_with() {
        let one = Value::from(1);
        assert_eq!(
            refused(r#"{"id":1,"op":"follow","s":"a","sinse":"now"}"#),
            (one.clone(), "unknown_field")
        );
        assert_eq!(refused(r#"{"id":1,"op":"follow"}"#), (one.clone(), "bad_field"));
        assert_eq!(refused(r#"{"id":1,"op":"watch","agent":"seven"}"#), (one.clone(), "bad_field"));
        assert_eq!(refused(r#"{"id":1,"op":"dance"}"#), (one.clone(), "unknown_op"));
        assert_eq!(refused(r#"{"id":1}"#), (one, "unknown_op"));
        assert_eq!(refused(r#"{"id":"a","op":7}"#), (Value::from("a"), "unknown_op"));
        for text in [r#"{"id":1,"op":"#, "", "[1,\"follow\",\"a\"]", "7"] {
            assert_eq!(refused(text), (Value::Null, "bad_json"), "{text}");
        }
    }

    #[test]
    fn contents_and_parts_stay_as_they_were_written() {
        let text =
            r#"{"id":1,"op":"append","s":"a","content":{"n": 1.0e2, "big":123456789012345678901234567890}}"#;
        let Ok(Ask::Append(append)) = read(text).what else { panic!("it is whole") };
        assert_eq!(append.content.get(), r#"{"n": 1.0e2, "big":123456789012345678901234567890}"#);
        let text = r#"{"op":"parts","s":"a","turn":1,"lease":"x","d":[1.50, {"b" :2}]}"#;
        let Ok(Ask::Parts(parts)) = read(text).what else { panic!("it is whole") };
        assert_eq!(parts.d.iter().map(|part| part.get()).collect::<Vec<_>>(), ["1.50", r#"{"b" :2}"#]);
    }
}
