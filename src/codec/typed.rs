//! Rust types to payloads and back, through serde.
//!
//! JavaScript has one kind of number, so a whole number is accepted where a float is wanted and a float
//! without a fraction where a whole one is; a `bigint` is accepted where its digits fit. `Bytes` fields
//! want [`Blob`]: serde would otherwise write a list of numbers.

use std::fmt;

use bytes::Bytes;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, VariantAccess, Visitor};
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTupleVariant,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::state::value::{BigInt, Date, Value, whole};

/// Why a Rust value is no payload, or a payload no such Rust value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

impl serde::de::Error for Mismatch {
    fn custom<T: fmt::Display>(text: T) -> Mismatch {
        Mismatch(text.to_string())
    }
}

impl serde::ser::Error for Mismatch {
    fn custom<T: fmt::Display>(text: T) -> Mismatch {
        Mismatch(text.to_string())
    }
}

/// The payload that stands for a Rust value.
pub fn to_value<T: Serialize + ?Sized>(value: &T) -> Result<Value, Mismatch> {
    value.serialize(Writer)
}

/// The Rust value a payload stands for.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Mismatch> {
    T::deserialize(Reader(value))
}

/// Bytes in a typed message.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        struct BlobVisitor;
        impl Visitor<'_> for BlobVisitor {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(BlobVisitor)
    }
}

/// A value passes through as it is, when it is written and read by this module; elsewhere it is what serde
/// makes of it.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Int(value) => serializer.serialize_i64(*value),
            Value::Uint(value) => serializer.serialize_u64(*value),
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::BigInt(value) => serializer.serialize_newtype_struct(BIGINT, value.as_str()),
            Value::Text(value) => serializer.serialize_str(value),
            Value::Bytes(value) => serializer.serialize_bytes(value),
            Value::Date(date) => serializer.serialize_newtype_struct(DATE, &(date.seconds, date.nanos)),
            Value::Ext(kind, body) => {
                serializer.serialize_newtype_struct(EXT, &(*kind, Value::Bytes(body.clone())))
            }
            Value::Array(items) => serializer.collect_seq(items),
            Value::Map(fields) => serializer.collect_map(fields.iter().map(|(name, value)| (name, value))),
        }
    }
}

const VALUE: &str = "$towpath.value";
const BIGINT: &str = "$towpath.bigint";
const DATE: &str = "$towpath.date";
const EXT: &str = "$towpath.ext";

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
                Value::deserialize(inner)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Int(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::from(value))
            }
            fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
                Ok(Value::BigInt(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }
            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::from(text))
            }
            fn visit_string<E>(self, text: String) -> Result<Value, E> {
                Ok(Value::Text(text))
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
                Ok(Value::Bytes(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Value, E> {
                Ok(Value::Bytes(bytes.into()))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Value::Array(items))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Value::Map(fields))
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
                inner.deserialize_any(ValueVisitor)
            }
            /// The kinds serde has no word for, as this module's reader gives them.
            fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Value, A::Error> {
                let (name, body) = data.variant::<String>()?;
                revive(&name, body.newtype_variant()?).map_err(serde::de::Error::custom)
            }
        }
        deserializer.deserialize_newtype_struct(VALUE, ValueVisitor)
    }
}

/// Takes one of the kinds serde has no word for out of its disguise.
fn revive(name: &str, value: Value) -> Result<Value, Mismatch> {
    let pair = match &value {
        Value::Array(items) => items.as_slice(),
        _ => &[],
    };
    let revived = match (name, pair) {
        (BIGINT, _) => value.as_str().and_then(BigInt::parse).map(Value::BigInt),
        (DATE, [seconds, nanos]) => seconds.as_i64().zip(nanos.as_u64()).and_then(|(seconds, nanos)| {
            let nanos = u32::try_from(nanos).ok()?;
            Some(Value::Date(Date { seconds, nanos }))
        }),
        (EXT, [kind, Value::Bytes(body)]) => {
            kind.as_i64().and_then(|kind| i8::try_from(kind).ok()).map(|kind| Value::Ext(kind, body.clone()))
        }
        _ => None,
    };
    revived.ok_or_else(|| Mismatch(format!("{name} is a name kept for payloads")))
}

// ---- writing ----

struct Writer;

/// A list on its way, and the variant it belongs to if it does.
struct ListWriter {
    items: Vec<Value>,
    variant: Option<&'static str>,
}

/// Fields on their way.
struct FieldsWriter {
    fields: Vec<(String, Value)>,
    key: Option<String>,
    variant: Option<&'static str>,
}

fn tagged(variant: Option<&'static str>, value: Value) -> Value {
    match variant {
        Some(name) => Value::map([(name, value)]),
        None => value,
    }
}

impl Serializer for Writer {
    type Ok = Value;
    type Error = Mismatch;
    type SerializeSeq = ListWriter;
    type SerializeTuple = ListWriter;
    type SerializeTupleStruct = ListWriter;
    type SerializeTupleVariant = ListWriter;
    type SerializeMap = FieldsWriter;
    type SerializeStruct = FieldsWriter;
    type SerializeStructVariant = FieldsWriter;

    fn serialize_bool(self, value: bool) -> Result<Value, Mismatch> {
        Ok(Value::Bool(value))
    }
    fn serialize_i8(self, value: i8) -> Result<Value, Mismatch> {
        Ok(Value::Int(value.into()))
    }
    fn serialize_i16(self, value: i16) -> Result<Value, Mismatch> {
        Ok(Value::Int(value.into()))
    }
    fn serialize_i32(self, value: i32) -> Result<Value, Mismatch> {
        Ok(Value::Int(value.into()))
    }
    fn serialize_i64(self, value: i64) -> Result<Value, Mismatch> {
        Ok(Value::Int(value))
    }
    fn serialize_i128(self, value: i128) -> Result<Value, Mismatch> {
        Ok(Value::BigInt(value.into()))
    }
    fn serialize_u8(self, value: u8) -> Result<Value, Mismatch> {
        Ok(Value::Int(value.into()))
    }
    fn serialize_u16(self, value: u16) -> Result<Value, Mismatch> {
        Ok(Value::Int(value.into()))
    }
    fn serialize_u32(self, value: u32) -> Result<Value, Mismatch> {
        Ok(Value::Int(value.into()))
    }
    fn serialize_u64(self, value: u64) -> Result<Value, Mismatch> {
        Ok(Value::from(value))
    }
    fn serialize_f32(self, value: f32) -> Result<Value, Mismatch> {
        Ok(Value::Float(value.into()))
    }
    fn serialize_f64(self, value: f64) -> Result<Value, Mismatch> {
        Ok(Value::Float(value))
    }
    fn serialize_char(self, value: char) -> Result<Value, Mismatch> {
        Ok(Value::Text(value.into()))
    }
    fn serialize_str(self, value: &str) -> Result<Value, Mismatch> {
        Ok(Value::from(value))
    }
    fn serialize_bytes(self, value: &[u8]) -> Result<Value, Mismatch> {
        Ok(Value::Bytes(Bytes::copy_from_slice(value)))
    }
    fn serialize_none(self) -> Result<Value, Mismatch> {
        Ok(Value::Null)
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, Mismatch> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<Value, Mismatch> {
        Ok(Value::Null)
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<Value, Mismatch> {
        // River's procedures without arguments take `{}`.
        Ok(Value::Map(Vec::new()))
    }
    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<Value, Mismatch> {
        Ok(Value::from(variant))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Value, Mismatch> {
        let value = value.serialize(self)?;
        match name {
            BIGINT | DATE | EXT => revive(name, value),
            _ => Ok(value),
        }
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, Mismatch> {
        Ok(tagged(Some(variant), value.serialize(self)?))
    }
    fn serialize_seq(self, len: Option<usize>) -> Result<ListWriter, Mismatch> {
        Ok(ListWriter { items: Vec::with_capacity(len.unwrap_or(0)), variant: None })
    }
    fn serialize_tuple(self, len: usize) -> Result<ListWriter, Mismatch> {
        self.serialize_seq(Some(len))
    }
    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<ListWriter, Mismatch> {
        self.serialize_seq(Some(len))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<ListWriter, Mismatch> {
        Ok(ListWriter { items: Vec::with_capacity(len), variant: Some(variant) })
    }
    fn serialize_map(self, len: Option<usize>) -> Result<FieldsWriter, Mismatch> {
        Ok(FieldsWriter { fields: Vec::with_capacity(len.unwrap_or(0)), key: None, variant: None })
    }
    fn serialize_struct(self, _: &'static str, len: usize) -> Result<FieldsWriter, Mismatch> {
        self.serialize_map(Some(len))
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<FieldsWriter, Mismatch> {
        Ok(FieldsWriter { fields: Vec::with_capacity(len), key: None, variant: Some(variant) })
    }
}

impl SerializeSeq for ListWriter {
    type Ok = Value;
    type Error = Mismatch;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Mismatch> {
        self.items.push(value.serialize(Writer)?);
        Ok(())
    }
    fn end(self) -> Result<Value, Mismatch> {
        Ok(tagged(self.variant, Value::Array(self.items)))
    }
}

impl serde::ser::SerializeTuple for ListWriter {
    type Ok = Value;
    type Error = Mismatch;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Mismatch> {
        SerializeSeq::serialize_element(self, value)
    }
    fn end(self) -> Result<Value, Mismatch> {
        SerializeSeq::end(self)
    }
}

impl serde::ser::SerializeTupleStruct for ListWriter {
    type Ok = Value;
    type Error = Mismatch;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Mismatch> {
        SerializeSeq::serialize_element(self, value)
    }
    fn end(self) -> Result<Value, Mismatch> {
        SerializeSeq::end(self)
    }
}

impl SerializeTupleVariant for ListWriter {
    type Ok = Value;
    type Error = Mismatch;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Mismatch> {
        SerializeSeq::serialize_element(self, value)
    }
    fn end(self) -> Result<Value, Mismatch> {
        SerializeSeq::end(self)
    }
}

impl SerializeMap for FieldsWriter {
    type Ok = Value;
    type Error = Mismatch;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Mismatch> {
        self.key = Some(match key.serialize(Writer)? {
            Value::Text(text) => text,
            Value::Int(number) => number.to_string(),
            Value::Uint(number) => number.to_string(),
            other => return Err(Mismatch(format!("{} cannot name a field", other.kind()))),
        });
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Mismatch> {
        let key = self.key.take().ok_or_else(|| Mismatch("a value came before its key".into()))?;
        self.fields.push((key, value.serialize(Writer)?));
        Ok(())
    }
    fn end(self) -> Result<Value, Mismatch> {
        Ok(tagged(self.variant, Value::Map(self.fields)))
    }
}

impl SerializeStruct for FieldsWriter {
    type Ok = Value;
    type Error = Mismatch;
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Mismatch> {
        self.fields.push((name.to_owned(), value.serialize(Writer)?));
        Ok(())
    }
    fn end(self) -> Result<Value, Mismatch> {
        SerializeMap::end(self)
    }
}

impl SerializeStructVariant for FieldsWriter {
    type Ok = Value;
    type Error = Mismatch;
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Mismatch> {
        SerializeStruct::serialize_field(self, name, value)
    }
    fn end(self) -> Result<Value, Mismatch> {
        SerializeMap::end(self)
    }
}

// ---- reading ----

struct Reader(Value);

impl IntoDeserializer<'_, Mismatch> for Reader {
    type Deserializer = Reader;
    fn into_deserializer(self) -> Reader {
        self
    }
}

impl Reader {
    /// The number this is when a whole one is wanted.
    fn whole(self) -> Value {
        match self.0 {
            Value::Float(value) => whole(value).map_or(Value::Float(value), Value::Int),
            Value::BigInt(number) => match number.as_i128() {
                Some(small) if i64::try_from(small).is_ok() => Value::Int(small as i64),
                Some(small) if u64::try_from(small).is_ok() => Value::Uint(small as u64),
                _ => Value::BigInt(number),
            },
            other => other,
        }
    }
}

macro_rules! whole_numbers {
    ($($name:ident)*) => {$(
        fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            Reader(self.whole()).deserialize_any(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Int(value) => visitor.visit_i64(value),
            Value::Uint(value) => visitor.visit_u64(value),
            Value::Float(value) => visitor.visit_f64(value),
            Value::BigInt(number) => match number.as_i128() {
                Some(small) => visitor.visit_i128(small),
                None => visitor.visit_str(number.as_str()),
            },
            Value::Text(text) => visitor.visit_string(text),
            Value::Bytes(bytes) | Value::Ext(_, bytes) => visitor.visit_byte_buf(bytes.into()),
            Value::Date(date) => {
                visitor.visit_f64(date.seconds as f64 * 1e3 + f64::from(date.nanos / 1_000) / 1e3)
            }
            Value::Array(items) => {
                let mut list = SeqDeserializer::new(items.into_iter().map(Reader));
                let value = visitor.visit_seq(&mut list)?;
                list.end()?;
                Ok(value)
            }
            Value::Map(fields) => {
                let mut map =
                    MapDeserializer::new(fields.into_iter().map(|(name, value)| (name, Reader(value))));
                let value = visitor.visit_map(&mut map)?;
                map.end()?;
                Ok(value)
            }
        }
    }

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            other => visitor.visit_some(Reader(other)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let disguised = match self.0 {
            Value::BigInt(number) if name == VALUE => (BIGINT, Value::Text(number.to_string())),
            Value::Date(date) if name == VALUE => {
                (DATE, Value::Array(vec![date.seconds.into(), i64::from(date.nanos).into()]))
            }
            Value::Ext(kind, body) if name == VALUE => {
                (EXT, Value::Array(vec![i64::from(kind).into(), Value::Bytes(body)]))
            }
            other => return visitor.visit_newtype_struct(Reader(other)),
        };
        visitor.visit_enum(Variant((disguised.0.to_owned(), disguised.1)))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Text(name) => visitor.visit_enum(name.into_deserializer()),
            Value::Map(mut fields) if fields.len() == 1 => {
                visitor.visit_enum(Variant(fields.pop().expect("one was counted")))
            }
            other => Err(Mismatch(format!("{} names no variant", other.kind()))),
        }
    }

    /// `{}` stands for nothing, as River's procedures without arguments say it.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match &self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Map(fields) if fields.is_empty() => visitor.visit_unit(),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match &self.0 {
            Value::Map(_) => visitor.visit_unit(),
            _ => self.deserialize_unit(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        bool f32 f64 char str string bytes byte_buf seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Variant((String, Value));

impl<'de> EnumAccess<'de> for Variant {
    type Error = Mismatch;
    type Variant = Reader;
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Reader), Mismatch> {
        let (name, value) = self.0;
        Ok((seed.deserialize(IntoDeserializer::<Mismatch>::into_deserializer(name))?, Reader(value)))
    }
}

impl<'de> VariantAccess<'de> for Reader {
    type Error = Mismatch;
    fn unit_variant(self) -> Result<(), Mismatch> {
        <()>::deserialize(self)
    }
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Mismatch> {
        seed.deserialize(self)
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_any(visitor)
    }
    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.deserialize_any(visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
        whole: u32,
        float: f64,
        blob: Blob,
        maybe: Option<i64>,
        list: Vec<Choice>,
        any: Value,
        map: BTreeMap<String, bool>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Choice {
        Empty,
        One(i32),
        Named { at: u64 },
    }

    #[test]
    fn a_type_comes_back_from_its_payload() {
        let sample = Sample {
            name: "n".into(),
            whole: 7,
            float: 1.5,
            blob: Blob(vec![0, 1, 255]),
            maybe: None,
            list: vec![Choice::Empty, Choice::One(-3), Choice::Named { at: u64::MAX }],
            any: Value::Array(vec![Value::Null, Value::Float(2.0)]),
            map: [("t".to_owned(), true)].into(),
        };
        let value = to_value(&sample).unwrap();
        assert_eq!(value.get("blob"), Some(&Value::Bytes(vec![0, 1, 255].into())));
        assert_eq!(from_value::<Sample>(value).unwrap(), sample);
    }

    #[test]
    fn numbers_stand_in_for_one_another_where_no_digit_is_lost() {
        assert_eq!(from_value::<f64>(Value::Int(2)), Ok(2.0));
        assert_eq!(from_value::<u8>(Value::Float(2.0)), Ok(2));
        assert!(from_value::<u8>(Value::Float(2.5)).is_err());
        assert!(from_value::<u8>(Value::Int(256)).is_err());
        assert_eq!(from_value::<u64>(Value::BigInt(BigInt::from(i128::from(u64::MAX)))), Ok(u64::MAX));
        assert!(from_value::<i64>(Value::BigInt(BigInt::from(i128::MAX))).is_err());
    }

    #[test]
    fn a_value_inside_a_typed_message_is_carried_as_it_is() {
        let whole = Value::map([
            ("big", Value::BigInt(BigInt::parse("1180591620717411303424").unwrap())),
            ("date", Value::Date(Date { seconds: -1, nanos: 5 })),
            ("ext", Value::Ext(42, Bytes::from_static(b"x"))),
        ]);
        assert_eq!(to_value(&whole).unwrap(), whole);
        assert_eq!(from_value::<Value>(whole.clone()).unwrap(), whole);
    }

    #[test]
    fn nothing_is_written_as_an_empty_object_where_a_procedure_takes_nothing() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Nothing;
        assert_eq!(to_value(&Nothing).unwrap(), Value::Map(vec![]));
        assert_eq!(from_value::<Nothing>(Value::map([("extra", 1.into())])), Ok(Nothing));
        assert_eq!(from_value::<()>(Value::Map(vec![])), Ok(()));
    }
}
