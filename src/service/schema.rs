//! What a procedure takes and gives, as data: checked when a message arrives, served as JSON Schema, and
//! written as TypeScript.
//!
//! ```
//! use towpath::service::schema::{Schema, number, object, optional, text};
//!
//! let divide = object([("a", number()), ("b", number()), ("note", optional(text()))]);
//! assert_eq!(divide.typescript(), "{ a: number; b: number; note?: string }");
//! ```

use serde_json::json;

use crate::state::value::Value;

/// The shape of a payload.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    shape: Shape,
    optional: bool,
    about: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Any,
    Null,
    Bool,
    Number,
    Integer,
    BigInt,
    Text,
    Bytes,
    Date,
    Literal(Value),
    Array(Box<Schema>),
    Object(Vec<(String, Schema)>),
    Record(Box<Schema>),
    OneOf(Vec<Schema>),
}

/// What is wrong with a payload, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// `/field/0/field`, empty for the whole.
    pub path: String,
    /// `must be number`.
    pub message: String,
}

impl From<Shape> for Schema {
    fn from(shape: Shape) -> Schema {
        Schema { shape, optional: false, about: None }
    }
}

/// Anything at all.
pub fn any() -> Schema {
    Shape::Any.into()
}
/// Nothing, said aloud.
pub fn null() -> Schema {
    Shape::Null.into()
}
/// True or false.
pub fn boolean() -> Schema {
    Shape::Bool.into()
}
/// A number.
pub fn number() -> Schema {
    Shape::Number.into()
}
/// A number without a fraction.
pub fn integer() -> Schema {
    Shape::Integer.into()
}
/// A number of any size, JavaScript's `bigint`.
pub fn bigint() -> Schema {
    Shape::BigInt.into()
}
/// Text.
pub fn text() -> Schema {
    Shape::Text.into()
}
/// Bytes.
pub fn bytes() -> Schema {
    Shape::Bytes.into()
}
/// A point on the calendar; over JSON it arrives as text.
pub fn date() -> Schema {
    Shape::Date.into()
}
/// Exactly this.
pub fn literal(value: impl Into<Value>) -> Schema {
    Shape::Literal(value.into()).into()
}
/// A list.
pub fn array(items: Schema) -> Schema {
    Shape::Array(Box::new(items)).into()
}
/// Named fields; others are let through.
pub fn object<const N: usize>(fields: [(&str, Schema); N]) -> Schema {
    Shape::Object(fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()).into()
}
/// Any names, all values of one shape.
pub fn record(values: Schema) -> Schema {
    Shape::Record(Box::new(values)).into()
}
/// One of several shapes.
pub fn one_of<const N: usize>(shapes: [Schema; N]) -> Schema {
    Shape::OneOf(shapes.into()).into()
}
/// A field that need not be there.
pub fn optional(schema: Schema) -> Schema {
    Schema { optional: true, ..schema }
}

impl Schema {
    /// Says in a sentence what it is for.
    #[must_use]
    pub fn about(mut self, text: &str) -> Schema {
        self.about = Some(text.to_owned());
        self
    }

    /// What is wrong with a payload; nothing if all is well.
    pub fn check(&self, value: &Value) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        self.complain(value, "", &mut complaints);
        complaints
    }

    /// Whether nothing is wrong with a payload.
    pub fn fits(&self, value: &Value) -> bool {
        matches!(self.shape, Shape::Any) || self.check(value).is_empty()
    }

    fn complain(&self, value: &Value, path: &str, complaints: &mut Vec<Complaint>) {
        let mut no =
            |message: &str| complaints.push(Complaint { path: path.to_owned(), message: message.to_owned() });
        match (&self.shape, value) {
            (Shape::Any, _)
            | (Shape::Null, Value::Null)
            | (Shape::Bool, Value::Bool(_))
            | (Shape::BigInt, Value::BigInt(_))
            | (Shape::Text, Value::Text(_))
            | (Shape::Bytes, Value::Bytes(_))
            | (Shape::Date, Value::Date(_) | Value::Text(_)) => {}
            (Shape::Number, value) if value.as_f64().is_some() => {}
            (Shape::Integer, value) if value.as_i64().is_some() || value.as_u64().is_some() => {}
            (Shape::Literal(literal), value) if same(literal, value) => {}
            (Shape::Array(items), Value::Array(values)) => {
                for (at, value) in values.iter().enumerate() {
                    items.complain(value, &format!("{path}/{at}"), complaints);
                }
            }
            (Shape::Object(fields), Value::Map(_)) => {
                let lacks =
                    |(name, schema): &&(String, Schema)| !schema.optional && value.get(name).is_none();
                let missing: Vec<&str> = fields.iter().filter(lacks).map(|(name, _)| name.as_str()).collect();
                if !missing.is_empty() {
                    no(&format!("must have required properties {}", missing.join(", ")));
                }
                for (name, schema) in fields {
                    if let Some(value) = value.get(name) {
                        schema.complain(value, &format!("{path}/{name}"), complaints);
                    }
                }
            }
            (Shape::Record(values), Value::Map(fields)) => {
                for (name, value) in fields {
                    values.complain(value, &format!("{path}/{name}"), complaints);
                }
            }
            (Shape::OneOf(shapes), value) if shapes.iter().any(|shape| shape.fits(value)) => {}
            (Shape::Null, _) => no("must be null"),
            (Shape::Bool, _) => no("must be boolean"),
            (Shape::Number, _) => no("must be number"),
            (Shape::Integer, _) => no("must be integer"),
            (Shape::BigInt, _) => no("must be bigint"),
            (Shape::Text, _) => no("must be string"),
            (Shape::Bytes, _) => no("must be Uint8Array"),
            (Shape::Date, _) => no("must be Date"),
            (Shape::Literal(_), _) => no("must be equal to constant"),
            (Shape::Array(_), _) => no("must be array"),
            (Shape::Object(_) | Shape::Record(_), _) => no("must be object"),
            (Shape::OneOf(_), _) => no("must match a schema in anyOf"),
        }
    }

    /// As JSON Schema.
    pub fn json_schema(&self) -> serde_json::Value {
        let mut schema = match &self.shape {
            Shape::Any => json!({}),
            Shape::Null => json!({"type": "null"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Number => json!({"type": "number"}),
            Shape::Integer => json!({"type": "integer"}),
            // JSON Schema knows neither; the words are those of the reference's schemas.
            Shape::BigInt => json!({"type": "bigint"}),
            Shape::Bytes => json!({"type": "Uint8Array"}),
            Shape::Date => json!({"type": "Date"}),
            Shape::Text => json!({"type": "string"}),
            Shape::Literal(value) => json!({"const": plain(value)}),
            Shape::Array(items) => json!({"type": "array", "items": items.json_schema()}),
            Shape::Object(fields) => {
                let required: Vec<&str> = fields
                    .iter()
                    .filter(|(_, schema)| !schema.optional)
                    .map(|(name, _)| name.as_str())
                    .collect();
                let properties: serde_json::Map<_, _> =
                    fields.iter().map(|(name, schema)| (name.clone(), schema.json_schema())).collect();
                json!({"type": "object", "properties": properties, "required": required})
            }
            Shape::Record(values) => json!({"type": "object", "additionalProperties": values.json_schema()}),
            Shape::OneOf(shapes) => {
                json!({"anyOf": shapes.iter().map(Schema::json_schema).collect::<Vec<_>>()})
            }
        };
        if let Some(about) = &self.about {
            schema["description"] = json!(about);
        }
        schema
    }

    /// As a TypeScript type.
    pub fn typescript(&self) -> String {
        match &self.shape {
            Shape::Any => "unknown".into(),
            Shape::Null => "null".into(),
            Shape::Bool => "boolean".into(),
            Shape::Number | Shape::Integer => "number".into(),
            Shape::BigInt => "bigint".into(),
            Shape::Text => "string".into(),
            Shape::Bytes => "Uint8Array".into(),
            Shape::Date => "Date".into(),
            Shape::Literal(value) => plain(value).to_string(),
            Shape::Array(items) => format!("Array<{}>", items.typescript()),
            Shape::Object(fields) if fields.is_empty() => "Record<string, never>".into(),
            Shape::Object(fields) => {
                let field = |(name, schema): &(String, Schema)| {
                    let mark = if schema.optional { "?" } else { "" };
                    format!("{}{mark}: {}", property(name), schema.typescript())
                };
                format!("{{ {} }}", fields.iter().map(field).collect::<Vec<_>>().join("; "))
            }
            Shape::Record(values) => format!("Record<string, {}>", values.typescript()),
            Shape::OneOf(shapes) => shapes.iter().map(Schema::typescript).collect::<Vec<_>>().join(" | "),
        }
    }
}

/// A property's name as TypeScript wants it.
pub(super) fn property(name: &str) -> String {
    let plain = !name.is_empty()
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == '$')
        && !name.starts_with(|letter: char| letter.is_ascii_digit());
    if plain { name.to_owned() } else { json!(name).to_string() }
}

fn same(one: &Value, other: &Value) -> bool {
    one == other || (one.as_f64().is_some() && one.as_f64() == other.as_f64())
}

/// A literal as plain JSON.
fn plain(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(value) => json!(value),
        Value::Text(text) => json!(text),
        value => {
            value.as_i64().map(|n| json!(n)).or_else(|| value.as_f64().map(|f| json!(f))).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_says_where_and_what() {
        let schema = object([("n", number()), ("list", optional(array(object([("s", text())]))))]);
        let check = |value: Value| -> Vec<(String, String)> {
            schema.check(&value).into_iter().map(|c| (c.path, c.message)).collect()
        };
        assert_eq!(check(Value::map([("n", 1.into())])), []);
        assert_eq!(check(Value::map([("n", "x".into())])), [("/n".into(), "must be number".into())]);
        assert_eq!(check(Value::Map(vec![])), [("".into(), "must have required properties n".into())]);
        assert_eq!(check(Value::Null), [("".into(), "must be object".into())]);
        let list = Value::Array(vec![Value::map([("s", 1.into())])]);
        let found = check(Value::map([("n", 1.5.into()), ("list", list)]));
        assert_eq!(found, [("/list/0/s".into(), "must be string".into())]);
    }

    #[test]
    fn a_number_without_a_fraction_is_an_integer_however_it_was_sent() {
        assert!(integer().fits(&Value::Float(2.0)) && number().fits(&Value::Int(2)));
        assert!(!integer().fits(&Value::Float(2.5)));
    }

    #[test]
    fn a_schema_is_written_for_tools_and_for_typescript() {
        let schema =
            object([("kind", one_of([literal("a"), literal("b")])), ("x y", optional(record(bytes())))]);
        assert_eq!(schema.typescript(), r#"{ kind: "a" | "b"; "x y"?: Record<string, Uint8Array> }"#);
        let written = schema.json_schema();
        assert_eq!(written["required"], json!(["kind"]));
        assert_eq!(written["properties"]["x y"]["additionalProperties"]["type"], "Uint8Array");
    }
}
