//! A route of the HTTP door as a procedure: its handler is asked, so that both do, allow and refuse the same.
//!
//! The fields of a procedure's init are what a request has in its path, its headers, its query and its body.

use super::{Behind, Late, failure_of};
use crate::front::{Answer, Ask, Method, Request, Response};
use crate::service::{Call, Failure, Later, Procedure};
use crate::state::value::Value;

type Pairs = &'static [(&'static str, &'static str)];

/// Where the fields of an init stand in a request.
#[derive(Clone, Copy)]
pub(super) struct Mirror {
    method: Method,
    pattern: &'static str,
    /// Fields and the parameters of the pattern.
    params: Pairs,
    /// Fields and headers.
    headers: Pairs,
    others: Others,
}

/// What becomes of the other fields.
#[derive(Clone, Copy)]
enum Others {
    /// There are none.
    None,
    /// They are the query.
    Query,
    /// They are the fields of the body.
    Body,
    /// This one is the body.
    Whole(&'static str),
    /// The items of this one are the lines of the body.
    Lines(&'static str),
}

impl Mirror {
    const fn new(method: Method, pattern: &'static str) -> Mirror {
        Mirror { method, pattern, params: &[], headers: &[], others: Others::None }
    }

    pub(super) const fn get(pattern: &'static str) -> Mirror {
        Mirror::new(Method::Get, pattern)
    }

    pub(super) const fn post(pattern: &'static str) -> Mirror {
        Mirror::new(Method::Post, pattern)
    }

    pub(super) const fn put(pattern: &'static str) -> Mirror {
        Mirror::new(Method::Put, pattern)
    }

    pub(super) const fn patch(pattern: &'static str) -> Mirror {
        Mirror::new(Method::Patch, pattern)
    }

    pub(super) const fn delete(pattern: &'static str) -> Mirror {
        Mirror::new(Method::Delete, pattern)
    }

    /// These fields are these parameters of the pattern.
    pub(super) const fn params(self, params: Pairs) -> Mirror {
        Mirror { params, ..self }
    }

    /// These fields are these headers. A field that is true is a header with its name as the value.
    pub(super) const fn headers(self, headers: Pairs) -> Mirror {
        Mirror { headers, ..self }
    }

    /// The other fields are the query.
    pub(super) const fn query(self) -> Mirror {
        Mirror { others: Others::Query, ..self }
    }

    /// The other fields are the body.
    pub(super) const fn body(self) -> Mirror {
        Mirror { others: Others::Body, ..self }
    }

    /// This field is the body.
    pub(super) const fn body_is(self, field: &'static str) -> Mirror {
        Mirror { others: Others::Whole(field), ..self }
    }

    /// The items of this field are the lines of the body.
    pub(super) const fn lines_are(self, field: &'static str) -> Mirror {
        Mirror { others: Others::Lines(field), ..self }
    }

    /// The procedure that asks this route.
    pub(super) fn procedure(self, behind: &Late) -> Procedure {
        let behind = behind.clone();
        Procedure::rpc_later(move |call, init: Value, later: Later<Value>| {
            let asked = behind.get().and_then(|behind| Ok((behind.local()?, self.ask(behind, call, init)?)));
            match asked {
                Ok((local, ask)) => local.ask(ask, move |response| later.give(answer_of(&response))),
                Err(failure) => later.give(Err(failure)),
            }
        })
    }

    /// The request of this route, if the caller may make it: for procedures that answer by themselves.
    pub(super) fn request(self, behind: &Late, call: &Call, init: Value) -> Result<Request, Failure> {
        let behind = behind.get()?;
        let ask = self.ask(behind, call, init)?;
        behind.local()?.request(ask).map_err(|response| failure_of(&response))
    }

    fn ask(self, behind: &Behind, call: &Call, init: Value) -> Result<Ask, Failure> {
        let mut ask = self.fill(init)?;
        ask.who = behind.caller(call)?;
        Ok(ask)
    }

    /// The request, by nobody.
    fn fill(self, init: Value) -> Result<Ask, Failure> {
        let mut rest = match init {
            Value::Map(fields) => fields,
            Value::Null => Vec::new(),
            _ => return Err(bad("an init is an object")),
        };
        let mut take = |name: &str| -> Option<Value> {
            // Of a name that occurs twice the last counts.
            let found = rest.extract_if(.., |(field, _)| field == name).last();
            found.map(|(_, value)| value).filter(|value| *value != Value::Null)
        };
        let (mut params, mut headers, mut body) = (Vec::new(), Vec::new(), Vec::new());
        for (field, param) in self.params {
            let value = take(field).ok_or_else(|| bad(&format!("{field} is missing")))?;
            params.push(((*param).to_owned(), text_of(field, value)?));
        }
        for (field, header) in self.headers {
            match take(field) {
                None | Some(Value::Bool(false)) => {}
                Some(Value::Bool(true)) => headers.push((*header, (*field).to_owned())),
                Some(value) => headers.push((*header, text_of(field, value)?)),
            }
        }
        match self.others {
            Others::Whole(field) => body = json_of(&take(field).unwrap_or(Value::Null))?,
            Others::Lines(field) => {
                let Some(Value::Array(items)) = take(field) else {
                    return Err(bad(&format!("{field} is a list")));
                };
                for item in items {
                    body.append(&mut json_of(&item)?);
                    body.push(b'\n');
                }
                headers.push(("content-type", "application/x-ndjson".to_owned()));
            }
            Others::None | Others::Query | Others::Body => {}
        }
        let mut query = Vec::new();
        match self.others {
            Others::Query => {
                for (field, value) in rest {
                    push_query(&mut query, field, value)?;
                }
            }
            Others::Body => body = json_of(&Value::Map(rest))?,
            Others::None | Others::Whole(_) | Others::Lines(_) => {
                if let Some((field, _)) = rest.first() {
                    return Err(Failure::new("unknown_field", format!("the field {field} is unknown here")));
                }
            }
        }
        let (method, pattern, who) = (self.method, self.pattern, crate::front::Principal::nobody());
        Ok(Ask { method, pattern, who, params, query, headers, body })
    }
}

fn bad(detail: &str) -> Failure {
    Failure::new("bad_field", detail)
}

fn json_of(value: &Value) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|why| bad(&why.to_string()))
}

/// A value as it stands in a path, a header or a query.
fn text_of(field: &str, value: Value) -> Result<String, Failure> {
    Ok(match value {
        Value::Text(text) => text,
        Value::Bool(yes) => u8::from(yes).to_string(),
        Value::Array(items) => {
            let items: Result<Vec<_>, _> = items.into_iter().map(|item| text_of(field, item)).collect();
            items?.join(",")
        }
        number => match (number.as_u64(), number.as_i64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(whole)) => whole.to_string(),
            (None, None) => return Err(bad(&format!("{field} is {}", number.kind()))),
        },
    })
}

/// A field as it stands in a query: `labels` are many, `label.k=v`.
fn push_query(query: &mut Vec<(String, String)>, field: String, value: Value) -> Result<(), Failure> {
    match value {
        Value::Null => {}
        Value::Map(labels) if field == "labels" => {
            for (name, value) in labels {
                let value = text_of(&name, value)?;
                query.push((format!("label.{name}"), value));
            }
        }
        value => {
            let value = text_of(&field, value)?;
            query.push((field, value));
        }
    }
    Ok(())
}

/// What a route answered, as the answer of a procedure: no body is null, and what is no JSON is text.
pub(super) fn answer_of(response: &Response) -> Result<Value, Failure> {
    let kind = response.header_value("content-type").unwrap_or_default();
    let content = response.content();
    match kind.split(';').next().unwrap_or_default() {
        "application/problem+json" => Err(failure_of(response)),
        _ if content.is_empty() => Ok(Value::Null),
        "application/json" => serde_json::from_slice(content).map_err(Failure::uncaught),
        _ => Ok(Value::Text(String::from_utf8_lossy(content).into_owned())),
    }
}

/// Answers a call with what a response says.
pub(super) fn answering(later: Later<Value>) -> Answer {
    Answer::local(move |response| later.give(answer_of(&response)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: Mirror = Mirror::post("/v1/{name*}/say")
        .params(&[("stream", "name")])
        .headers(&[("key", "k"), ("durable", "d")]);

    fn map<const N: usize>(fields: [(&str, Value); N]) -> Value {
        Value::map(fields)
    }

    #[test]
    fn fields_go_where_a_request_has_them_and_keep_their_order() {
        let init = map([
            ("b", 1.into()),
            ("stream", "a/1".into()),
            ("key", "x".into()),
            ("durable", true.into()),
            ("a", Value::Null),
        ]);
        let ask = ROUTE.body().fill(init).expect("it fits");
        assert_eq!(ask.params, [("name".to_owned(), "a/1".to_owned())]);
        assert_eq!(ask.headers, [("k", "x".to_owned()), ("d", "durable".to_owned())]);
        assert_eq!(ask.body, br#"{"b":1,"a":null}"#);

        let labels = map([("team", "red".into())]);
        let kinds = Value::Array(vec!["ssh".into(), "app".into()]);
        let init = map([
            ("stream", "a".into()),
            ("limit", Value::Float(5.0)),
            ("labels", labels),
            ("type", kinds),
            ("after", Value::Null),
            ("parts", false.into()),
        ]);
        let ask = ROUTE.query().fill(init).expect("it fits");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let told =
            [pair("limit", "5"), pair("label.team", "red"), pair("type", "ssh,app"), pair("parts", "0")];
        assert_eq!(ask.query, told);
        assert!(ask.body.is_empty());

        let records = Value::Array(vec![map([("a", 1.into())]), 2.into()]);
        let init = map([("stream", "a".into()), ("records", records)]);
        let ask = ROUTE.lines_are("records").fill(init).expect("it fits");
        assert_eq!(ask.body, b"{\"a\":1}\n2\n");
    }

    #[test]
    fn what_fits_nowhere_is_refused() {
        let code = |mirror: Mirror, init: Value| mirror.fill(init).map(|_| ()).expect_err("refused").code;
        assert_eq!(code(ROUTE, Value::Null), "bad_field", "the stream is missing");
        assert_eq!(code(ROUTE, map([("stream", "a".into()), ("sinse", 1.into())])), "unknown_field");
        assert_eq!(code(ROUTE.query(), map([("stream", "a".into()), ("limit", 1.5.into())])), "bad_field");
        assert_eq!(code(ROUTE.lines_are("records"), map([("stream", "a".into())])), "bad_field");
    }

    #[test]
    fn a_response_is_an_answer_or_a_failure_that_says_as_much() {
        let mut more = serde_json::Map::new();
        more.insert("turn".into(), 3.into());
        let problem = Response::problem_with(409, "turn_running", "wait", more);
        let failure = answer_of(&problem).expect_err("a problem");
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("turn_running", "wait"));
        assert_eq!(failure.extras, Some(map([("turn", 3.into())])));
        assert_eq!(failure_of(&Response::problem(404, "not_found", "no")).extras, None);
        assert_eq!(answer_of(&Response::new(204)), Ok(Value::Null));
        assert_eq!(answer_of(&Response::json(503, &[1])), Ok(Value::Array(vec![1.into()])));
        assert_eq!(answer_of(&Response::text(200, "a 1")), Ok(Value::Text("a 1".into())));
    }
}
