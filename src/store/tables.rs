//! Whole tables, row by row, whatever they mean: what moving a store to another database needs.
//!
//! Nothing here names a table or a column: both sides are asked what they have, so that a table added by
//! a later migration is moved without anybody remembering to.

use sha2::{Digest, Sha256};

use super::StoreError;
use super::sql::{Arg, Value};

/// How a column's values are to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Id,
    Time,
    Int,
    Text,
    Bytes,
    /// A JSON document: two that differ only in order and spacing are one.
    Json,
}

/// A column by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// A store that can be read whole.
pub(crate) trait Tables {
    /// The names of its tables, sorted, but for the one that counts migrations.
    fn names(&self) -> Result<Vec<String>, StoreError>;

    /// Gives every row of a table, in no particular order.
    fn rows(
        &self,
        table: &str,
        columns: &[Column],
        each: &mut dyn FnMut(&[Value]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;
}

/// What a move did with one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The table.
    pub table: String,
    /// How many rows it has, on both sides.
    pub rows: u64,
}

/// How many rows, and a sum over all of them that does not depend on their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) rows: u64,
    digest: u128,
}

impl Sum {
    /// Counts a row in.
    pub(crate) fn add(&mut self, columns: &[Column], row: &[Value]) {
        let mut hash = Sha256::new();
        for (column, value) in columns.iter().zip(row) {
            let (mark, bytes) = match (value, column.kind) {
                (Value::Null, _) => (0u8, Vec::new()),
                (Value::Int(number), _) => (1, number.to_be_bytes().to_vec()),
                (Value::Text(text), Kind::Json) => (2, canonical(text).into_bytes()),
                (Value::Text(text), _) => (2, text.clone().into_bytes()),
                (Value::Bytes(bytes), _) => (3, bytes.clone()),
                (Value::Id(id), _) => (4, id.as_bytes().to_vec()),
                (Value::Time(time), _) => (5, time.0.to_be_bytes().to_vec()),
            };
            hash.update([mark]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        }
        let mut start = [0; 16];
        start.copy_from_slice(&hash.finalize()[..16]);
        self.rows += 1;
        self.digest = self.digest.wrapping_add(u128::from_be_bytes(start));
    }
}

/// One spelling of a document. What is no JSON stays as it is, and differs.
fn canonical(text: &str) -> String {
    serde_json::from_str::<serde_json::Value>(text).map_or_else(|_| text.to_owned(), |json| json.to_string())
}

impl<'a> From<&'a Value> for Arg<'a> {
    fn from(value: &'a Value) -> Arg<'a> {
        match value {
            Value::Null => Arg::Null,
            Value::Int(number) => Arg::Int(*number),
            Value::Text(text) => Arg::Text(text),
            Value::Bytes(bytes) => Arg::Bytes(bytes),
            Value::Id(id) => Arg::Id(*id),
            Value::Time(time) => Arg::Time(*time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(rows: &[&[Value]]) -> Sum {
        let columns = [Kind::Int, Kind::Json].map(|kind| Column { name: "column".to_owned(), kind });
        let mut sum = Sum::default();
        rows.iter().for_each(|row| sum.add(&columns, row));
        sum
    }

    #[test]
    fn a_sum_knows_each_value_and_neither_order_nor_spelling() {
        let (a, b) = ([Value::Int(1), Value::Text("{\"b\":1,\"a\":2}".into())], [Value::Int(2), Value::Null]);
        let again = [Value::Int(1), Value::Text("{\"a\": 2, \"b\": 1}".into())];
        assert_eq!(sum(&[&a, &b]), sum(&[&b, &again]));
        assert_ne!(sum(&[&a, &b]), sum(&[&a, &a]));
        assert_ne!(sum(&[&b]), sum(&[&[Value::Int(2), Value::Int(0)]]));
    }
}
