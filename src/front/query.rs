//! Query strings and percent-encoding.

/// The `key=value` pairs behind a `?`, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads a query string. `+` is a space; `None` if a part is not UTF-8.
    pub fn parse(text: &str) -> Option<Query> {
        let parts = text.split('&').filter(|part| !part.is_empty());
        let pairs = parts.map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Some((decode(&key.replace('+', " "))?, decode(&value.replace('+', " "))?))
        });
        Some(Query { pairs: pairs.collect::<Option<_>>()? })
    }

    /// A query of these pairs.
    pub(super) fn of(pairs: Vec<(String, String)>) -> Query {
        Query { pairs }
    }

    /// The value of a key, the first if it is there several times.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Every pair.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The first key that is neither in `known` nor begins with one of them that ends in a dot
    /// (`"label."` knows `label.env`), and the first that came twice: what makes a 400.
    pub fn surprise(&self, known: &[&str]) -> Option<&str> {
        let is_known =
            |key: &str| known.iter().any(|k| *k == key || (k.ends_with('.') && key.starts_with(k)));
        let twice = |at: usize, key: &str| self.pairs[..at].iter().any(|(k, _)| k == key);
        let mut keys = self.pairs.iter().enumerate().map(|(at, (key, _))| (at, key.as_str()));
        keys.find(|&(at, key)| !is_known(key) || twice(at, key)).map(|(_, key)| key)
    }

    /// Whether nothing was asked.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// Undoes percent-encoding; `None` if what comes out is not UTF-8 or a percent sign stands alone.
pub(crate) fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded() {
        let query = Query::parse("a=1&b=x+y%20z&&c&d=%C3%BC=").unwrap();
        let pairs: Vec<_> = query.iter().collect();
        assert_eq!(pairs, [("a", "1"), ("b", "x y z"), ("c", ""), ("d", "ü=")]);
        assert_eq!(Query::parse("a=%ff"), None);
        assert_eq!(Query::parse("a=%f"), None);
    }

    #[test]
    fn what_is_not_known_and_what_came_twice_is_a_surprise() {
        let query = Query::parse("limit=1&label.env=x&label.tier=y").unwrap();
        assert_eq!(query.surprise(&["limit", "label."]), None);
        assert_eq!(query.surprise(&["label."]), Some("limit"));
        assert_eq!(Query::parse("limit=1&limit=2").unwrap().surprise(&["limit"]), Some("limit"));
    }
}
