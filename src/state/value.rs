//! What a River payload can hold: everything either codec can say, without loss.
//!
//! River peers are mostly JavaScript, where one kind of number serves for all; here a whole number
//! stays whole and a float stays a float, and the typed layer (`codec::typed`) lets either stand in for
//! the other where no digit is lost. A field that JavaScript calls `undefined` does not exist.

use std::fmt;

use bytes::Bytes;

/// A payload, or a piece of one.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, said aloud.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number above `i64::MAX`; smaller ones are always [`Value::Int`].
    Uint(u64),
    /// A number with a fraction, one of the three that are not numbers, or a whole one that was sent so.
    Float(f64),
    /// JavaScript's `bigint`, a kind of its own on the wire.
    BigInt(BigInt),
    /// Text.
    Text(String),
    /// Bytes; shared with the frame they arrived in when they are most of it.
    Bytes(Bytes),
    /// A point on the calendar.
    Date(Date),
    /// A MessagePack extension with no meaning here, carried as it came.
    Ext(i8, Bytes),
    /// A list.
    Array(Vec<Value>),
    /// Named fields in the order they were sent. Should a name occur twice, the last one counts.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// A map from fields.
    pub fn map<const N: usize>(fields: [(&str, Value); N]) -> Value {
        Value::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The field of that name, if this is a map that has it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Map(fields) => {
                fields.iter().rev().find(|(field, _)| field == name).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The text, if this is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The boolean, if this is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The whole number, if this is one or a float without a fraction.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Float(value) => whole(*value),
            _ => None,
        }
    }

    /// The whole number that is not negative, if this is one or a float without a fraction.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Uint(value) => Some(*value),
            other => other.as_i64().and_then(|value| u64::try_from(value).ok()),
        }
    }

    /// The number as a float, if this is a number. Above 2^53 digits may be lost.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Int(value) => Some(*value as f64),
            Value::Uint(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// What kind of value this is, in a word for error messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Uint(_) => "an integer",
            Value::Float(_) => "a number",
            Value::BigInt(_) => "a bigint",
            Value::Text(_) => "a string",
            Value::Bytes(_) => "bytes",
            Value::Date(_) => "a date",
            Value::Ext(..) => "an extension",
            Value::Array(_) => "an array",
            Value::Map(_) => "an object",
        }
    }
}

/// The float as a whole number, if it is exactly one that fits.
pub(crate) fn whole(value: f64) -> Option<i64> {
    // 2^63 as a float; the cast below is exact under it.
    let fits =
        value.fract() == 0.0 && (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&value);
    fits.then_some(value as i64)
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}
impl From<i64> for Value {
    fn from(value: i64) -> Value {
        Value::Int(value)
    }
}
impl From<i32> for Value {
    fn from(value: i32) -> Value {
        Value::Int(value.into())
    }
}
impl From<u64> for Value {
    fn from(value: u64) -> Value {
        i64::try_from(value).map_or(Value::Uint(value), Value::Int)
    }
}
impl From<f64> for Value {
    fn from(value: f64) -> Value {
        Value::Float(value)
    }
}
impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Text(value.to_owned())
    }
}
impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::Text(value)
    }
}

/// A whole number of any size, kept as its decimal digits: towpath carries them and never counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BigInt(String);

impl BigInt {
    /// From decimal digits with an optional minus in front; nothing else is a number.
    pub fn parse(text: &str) -> Option<BigInt> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        valid.then(|| BigInt(text.to_owned()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number, if it fits.
    pub fn as_i128(&self) -> Option<i128> {
        self.0.parse().ok()
    }
}

impl From<i128> for BigInt {
    fn from(value: i128) -> BigInt {
        BigInt(value.to_string())
    }
}

impl fmt::Display for BigInt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A point on the calendar, as MessagePack's timestamp holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1,000,000,000.
    pub nanos: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_float_is_a_whole_number_only_when_no_digit_is_lost() {
        assert_eq!(Value::Float(2.0).as_i64(), Some(2));
        assert_eq!(Value::Float(2.5).as_i64(), None);
        assert_eq!(Value::Float(f64::NAN).as_i64(), None);
        assert_eq!(Value::Float(1e300).as_i64(), None);
        assert_eq!(Value::Float(-9_223_372_036_854_775_808.0).as_i64(), Some(i64::MIN));
        assert_eq!(Value::Float(9_223_372_036_854_775_808.0).as_i64(), None);
        assert_eq!(Value::from(u64::MAX).as_u64(), Some(u64::MAX));
    }

    #[test]
    fn of_a_name_given_twice_the_last_counts() {
        let map = Value::map([("a", 1.into()), ("a", 2.into())]);
        assert_eq!(map.get("a"), Some(&Value::Int(2)));
    }

    #[test]
    fn a_bigint_is_decimal_digits_and_nothing_else() {
        for bad in ["", "-", "+5", "0x10", " 5", "5n", "--5", "1e3"] {
            assert_eq!(BigInt::parse(bad), None, "{bad:?}");
        }
        assert_eq!(BigInt::parse("-12").map(|n| n.as_i128()), Some(Some(-12)));
    }
}
