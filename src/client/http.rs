//! A daemon's JSON API from the outside: blocking, one request at a time.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::wire::http_trust;

/// How long a connection may take to come about. Answers may take longer: a follow lasts for hours.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer that is read whole.
const ANSWER_MAX: u64 = 64 * 1024 * 1024;

/// A client for one daemon.
#[derive(Clone)]
pub struct Api {
    base: String,
    token: Option<String>,
    agent: ureq::Agent,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Api({})", self.base)
    }
}

/// Why the API did not answer with what was asked for.
#[derive(Debug)]
#[non_exhaustive]
pub enum ApiError {
    /// Nobody answered.
    Unreachable {
        /// Where.
        url: String,
        /// What the system said.
        text: String,
    },
    /// The daemon said no.
    Problem {
        /// The HTTP status.
        status: u16,
        /// What to branch on.
        code: String,
        /// For people.
        detail: String,
    },
    /// Something answered that is not a towpath daemon.
    Garbled {
        /// Where.
        url: String,
        /// What was wrong with it.
        text: String,
    },
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::Unreachable { url, text } => write!(f, "cannot reach {url}: {text}"),
            ApiError::Problem { status, code, detail } if detail.is_empty() => write!(f, "{code} ({status})"),
            ApiError::Problem { detail, .. } => f.write_str(detail),
            ApiError::Garbled { url, text } => write!(f, "{url} did not answer as towpath does: {text}"),
        }
    }
}

impl std::error::Error for ApiError {}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status, 2xx.
    pub status: u16,
    body: ureq::Body,
}

impl Answer {
    /// The body as it arrives: a follow's events, an export's rows.
    pub fn into_reader(self) -> impl Read {
        self.body.into_reader()
    }
}

impl Api {
    /// A client for the daemon at `base`, like `https://edge.example.com`.
    ///
    /// # Errors
    /// When `base` is no `http://` or `https://` address.
    pub fn new(base: &str, token: Option<String>) -> Result<Api, ApiError> {
        Api::by_way(base, token, None, ureq::Proxy::try_from_env())
    }

    /// The same, trusting the certificates of a file if there is one, and through this proxy or none.
    pub(crate) fn by_way(
        base: &str,
        token: Option<String>,
        trusted: Option<&Path>,
        proxy: Option<ureq::Proxy>,
    ) -> Result<Api, ApiError> {
        let base = base.trim_end_matches('/').to_owned();
        if !(base.starts_with("http://") || base.starts_with("https://")) {
            let text = "an address begins with http:// or https://".to_owned();
            return Err(ApiError::Unreachable { url: base, text });
        }
        let tls = http_trust(trusted)
            .map_err(|error| ApiError::Unreachable { url: base.clone(), text: error.to_string() })?;
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .user_agent(concat!("towpath/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Api { base, token, agent })
    }

    /// Where it asks.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET, the answer as JSON.
    ///
    /// # Errors
    /// As [`Api::send`], and when the answer is not JSON.
    pub fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.json(self.send("GET", path, &[], None)?)
    }

    /// DELETE; an answer without a body is `null`.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn delete(&self, path: &str) -> Result<Value, ApiError> {
        self.json(self.send("DELETE", path, &[], None)?)
    }

    /// POST of JSON, the answer as JSON.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.with_json("POST", path, body)
    }

    /// PUT of JSON, the answer as JSON.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.with_json("PUT", path, body)
    }

    fn with_json(&self, method: &str, path: &str, body: &Value) -> Result<Value, ApiError> {
        let text = body.to_string();
        let headers = [("content-type", "application/json")];
        self.json(self.send(method, path, &headers, Some(&mut text.as_bytes()))?)
    }

    /// Any request. The body is sent as it is read, so it may stay open.
    ///
    /// # Errors
    /// When nobody answers, or the daemon says no.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&mut dyn Read>,
    ) -> Result<Answer, ApiError> {
        let url = format!("{}{path}", self.base);
        let mut request = ureq::http::Request::builder().method(method).uri(&url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        // What the system says about an address may repeat it; nothing else of the request is in there.
        let unreachable = |text: String| ApiError::Unreachable { url: url.clone(), text };
        let answer = match body {
            None => request
                .body(())
                .map_err(|e| unreachable(e.to_string()))
                .and_then(|request| self.agent.run(request).map_err(|error| unreachable(error.to_string()))),
            Some(mut body) => request
                .body(ureq::SendBody::from_reader(&mut body))
                .map_err(|e| unreachable(e.to_string()))
                .and_then(|request| self.agent.run(request).map_err(|error| unreachable(error.to_string()))),
        }?;
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        if (200..300).contains(&status) {
            return Ok(Answer { status, body });
        }
        let text = body.with_config().limit(64 * 1024).read_to_string().unwrap_or_default();
        Err(problem(status, &text))
    }

    fn json(&self, mut answer: Answer) -> Result<Value, ApiError> {
        let garbled = |text: String| ApiError::Garbled { url: self.base.clone(), text };
        let text = answer
            .body
            .with_config()
            .limit(ANSWER_MAX)
            .read_to_string()
            .map_err(|error| garbled(error.to_string()))?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| garbled(error.to_string()))
    }
}

/// A name as it stands in a path or a query: everything but letters, digits, `-._~` and slashes is
/// percent-encoded.
pub fn path_of(name: &str) -> String {
    let mut path = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                path.push(byte.into())
            }
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

/// Reads `application/problem+json`; anything else is told by its status.
fn problem(status: u16, text: &str) -> ApiError {
    let document: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let field = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let code = Some(field("code")).filter(|code| !code.is_empty());
    ApiError::Problem {
        status,
        code: code.unwrap_or_else(|| format!("http_{status}")),
        detail: field("detail"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_document_becomes_its_code_and_sentence() {
        let error = problem(409, r#"{"code":"turn_running","detail":"a turn runs on b","status":409}"#);
        assert!(matches!(&error, ApiError::Problem { status: 409, code, .. } if code == "turn_running"));
        assert_eq!(error.to_string(), "a turn runs on b");
        assert_eq!(problem(502, "<html>").to_string(), "http_502 (502)");
    }

    #[test]
    fn names_keep_their_slashes_and_nothing_that_means_something() {
        assert_eq!(path_of("chat/7 a?b#c%"), "chat/7%20a%3Fb%23c%25");
        assert_eq!(path_of("é"), "%C3%A9");
    }

    #[test]
    fn an_address_says_how_it_is_spoken_to() {
        assert!(Api::new("127.0.0.1:7700", None).is_err());
        assert_eq!(Api::new("http://localhost:1/", None).expect("an address").base(), "http://localhost:1");
    }

    #[test]
    fn nobody_there_is_unreachable_and_names_the_address() {
        let api = Api::new("http://127.0.0.1:1", None).expect("an address");
        let error = api.get("/healthz").expect_err("nobody listens on port 1");
        assert!(error.to_string().starts_with("cannot reach http://127.0.0.1:1/healthz: "), "{error}");
    }
}
