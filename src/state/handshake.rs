//! The first message of every link, and what may be answered to it.
//!
//! Pure: a request is read, compared with the session there may be, and a decision comes out. Who sends
//! what, and when, is the session's affair.

use std::fmt;

use super::envelope::{Envelope, Flags, Message, REHANDSHAKE_STREAM, Tracing};
use super::value::Value;

/// The versions of River's protocol that are spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Version {
    /// Clients from before cancellation: one bit closes, and closing either side closes both.
    V1_1,
    /// What this client speaks.
    #[default]
    V2_0,
}

impl Version {
    fn parse(text: &str) -> Option<Version> {
        match text {
            "v1.1" => Some(Version::V1_1),
            "v2.0" => Some(Version::V2_0),
            _ => None,
        }
    }

    /// As it is written in a handshake.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V1_1 => "v1.1",
            Version::V2_0 => "v2.0",
        }
    }

    /// The bit that ends one side of a stream.
    pub fn close_flag(self) -> Flags {
        match self {
            Version::V1_1 => Flags(4),
            Version::V2_0 => Flags::CLOSED,
        }
    }
}

/// Why a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// The two sides do not mean the same session; a new one may begin at once.
    SessionStateMismatch,
    /// The request is not one.
    MalformedHandshake,
    /// The metadata does not have the shape that is asked for.
    MalformedHandshakeMeta,
    /// A version that is not spoken here.
    ProtocolVersionMismatch,
    /// The server looked at the metadata and said no.
    RejectedByCustomHandler,
    /// The server does not serve such clients.
    RejectedUnsupportedClient,
}

impl RefusalCode {
    const ALL: [RefusalCode; 6] = [
        RefusalCode::SessionStateMismatch,
        RefusalCode::MalformedHandshake,
        RefusalCode::MalformedHandshakeMeta,
        RefusalCode::ProtocolVersionMismatch,
        RefusalCode::RejectedByCustomHandler,
        RefusalCode::RejectedUnsupportedClient,
    ];

    /// As it is written on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            RefusalCode::SessionStateMismatch => "SESSION_STATE_MISMATCH",
            RefusalCode::MalformedHandshake => "MALFORMED_HANDSHAKE",
            RefusalCode::MalformedHandshakeMeta => "MALFORMED_HANDSHAKE_META",
            RefusalCode::ProtocolVersionMismatch => "PROTOCOL_VERSION_MISMATCH",
            RefusalCode::RejectedByCustomHandler => "REJECTED_BY_CUSTOM_HANDLER",
            RefusalCode::RejectedUnsupportedClient => "REJECTED_UNSUPPORTED_CLIENT",
        }
    }

    /// Whether a client should begin a new session and try again.
    pub const fn is_retriable(self) -> bool {
        matches!(self, RefusalCode::SessionStateMismatch)
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A handshake refused: a code to branch on, a sentence to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: RefusalCode,
    /// The sentence.
    pub reason: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Refusal {
        Refusal { code, reason: reason.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

/// Where the client believes the session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Expected {
    /// The number it expects from the server next.
    pub next_expected: u64,
    /// The number of the oldest message the server may not have.
    pub next_sent: u64,
}

impl Expected {
    fn read(state: &Value) -> Option<Expected> {
        let next_expected = state.get("nextExpectedSeq")?.as_u64()?;
        let next_sent = match state.get("nextSentSeq") {
            Some(number) => number.as_u64()?,
            None => 0,
        };
        Some(Expected { next_expected, next_sent })
    }
}

/// A client asks to begin a session or to go on with one.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What it speaks.
    pub version: Version,
    /// The session, named by the client.
    pub session: String,
    /// Where it stands. The first clients of v1.1 do not say.
    pub expected: Option<Expected>,
    /// What the server wants to know of its clients: a token, say.
    pub metadata: Option<Value>,
}

impl Request {
    /// Reads a request.
    pub fn read(envelope: &Envelope) -> Result<Request, Refusal> {
        let malformed =
            || Refusal::new(RefusalCode::MalformedHandshake, "received invalid handshake message");
        let payload = envelope.payload.as_ref().map_err(|_| malformed())?;
        let text = |name| payload.get(name).and_then(Value::as_str);
        if text("type") != Some("HANDSHAKE_REQ") {
            return Err(malformed());
        }
        let version = text("protocolVersion").ok_or_else(malformed)?;
        let session = text("sessionId").ok_or_else(malformed)?;
        let expected = match payload.get("expectedSessionState") {
            Some(state) => Some(Expected::read(state).ok_or_else(malformed)?),
            None if version == Version::V1_1.as_str() => None,
            None => return Err(malformed()),
        };
        let version = Version::parse(version).ok_or_else(|| {
            let reason =
                format!("consumer and producer protocol version mismatch: got {version}, wanted v2.0");
            Refusal::new(RefusalCode::ProtocolVersionMismatch, reason)
        })?;
        Ok(Request {
            version,
            session: session.to_owned(),
            expected,
            metadata: payload.get("metadata").cloned(),
        })
    }

    /// How many messages the client has, as far as it says; nothing is to be sent again below that.
    pub fn peer_has(&self) -> u64 {
        self.expected.map_or(0, |expected| expected.next_expected)
    }

    /// Writes the request.
    pub fn message(self, stream: String) -> Message {
        let mut fields = vec![
            ("type".to_owned(), "HANDSHAKE_REQ".into()),
            ("protocolVersion".to_owned(), self.version.as_str().into()),
            ("sessionId".to_owned(), self.session.into()),
        ];
        let state = self.expected.map(|Expected { next_expected, next_sent }| {
            Value::map([("nextExpectedSeq", next_expected.into()), ("nextSentSeq", next_sent.into())])
        });
        fields.extend(state.map(|state| ("expectedSessionState".to_owned(), state)));
        fields.extend(self.metadata.map(|metadata| ("metadata".to_owned(), metadata)));
        let message = Message::new(stream, Flags::NONE, Value::Map(fields));
        Message { tracing: Some(Tracing::default()), ..message }
    }
}

/// What the server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The session goes on, or begins.
    Welcome {
        /// The session the server means.
        session: String,
    },
    /// It does not.
    Refused(Refusal),
}

impl Response {
    /// Reads a response; `None` if it is none, or has a code that is not known.
    pub fn read(envelope: &Envelope) -> Option<Response> {
        let payload = envelope.payload.as_ref().ok()?;
        if payload.get("type")?.as_str()? != "HANDSHAKE_RESP" {
            return None;
        }
        let status = payload.get("status")?;
        if status.get("ok")?.as_bool()? {
            return Some(Response::Welcome { session: status.get("sessionId")?.as_str()?.to_owned() });
        }
        let code = status.get("code")?.as_str()?;
        let code = RefusalCode::ALL.into_iter().find(|known| known.as_str() == code)?;
        Some(Response::Refused(Refusal::new(code, status.get("reason")?.as_str()?)))
    }

    /// Writes the response.
    pub fn message(&self, stream: String) -> Message {
        let status = match self {
            Response::Welcome { session } => {
                Value::map([("ok", true.into()), ("sessionId", session.as_str().into())])
            }
            Response::Refused(Refusal { code, reason }) => Value::map([
                ("ok", false.into()),
                ("code", code.as_str().into()),
                ("reason", reason.as_str().into()),
            ]),
        };
        let payload = Value::map([("type", "HANDSHAKE_RESP".into()), ("status", status)]);
        Message::new(stream, Flags::NONE, payload)
    }
}

/// What a server knows of the session a client already has.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its id.
    pub session: &'a str,
    /// Whether a link bears it now.
    pub connected: bool,
    /// The number expected from the client next.
    pub received: u64,
    /// The number of the oldest message the client may not have.
    pub oldest: u64,
    /// The number the next message to the client gets.
    pub next: u64,
}

/// What becomes of a second live client with an id that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SecondClient {
    /// The newcomer takes over and the session there was ends, as in River.
    #[default]
    TakesOver,
    /// The newcomer is refused while the other is connected.
    IsRefused,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on with the session there is.
    Resume,
    /// Begin a new one; whatever the client had here ends.
    Begin,
    /// Answer no; whatever the client had here stays.
    Refuse(Refusal),
}

/// Decides about a request whose metadata was accepted.
pub fn decide(
    request: &Request,
    known: Option<Known<'_>>,
    second: SecondClient,
    resumable: bool,
) -> Decision {
    let mismatch = |reason: String| Decision::Refuse(Refusal::new(RefusalCode::SessionStateMismatch, reason));
    // A client that does not say where it stands is told by the id in the answer whether its session goes on.
    let Expected { next_expected, next_sent } = request.expected.unwrap_or_default();
    match known {
        Some(known) if known.session == request.session && resumable => {
            if request.expected.is_none() {
                return Decision::Resume;
            }
            if next_sent > known.received {
                let want = known.received;
                return mismatch(format!(
                    "client is in the future: server wanted next message to be {want} but client would have sent {next_sent}"
                ));
            }
            if known.oldest > next_expected {
                let ours = known.oldest;
                return mismatch(format!(
                    "server is in the future: server would send {ours} but client wanted next message to be {next_expected}"
                ));
            }
            // Beyond the reference: a server that lost this session and began it anew, for a handshake that was long
            // on its way, would repeat numbers the client has, and the client would drop them unheard.
            if next_expected > known.next {
                let ours = known.next;
                return mismatch(format!(
                    "client has what was never sent: server would send {ours} but client wanted next message to be {next_expected}"
                ));
            }
            Decision::Resume
        }
        Some(known)
            if known.connected && second == SecondClient::IsRefused && known.session != request.session =>
        {
            let reason = "another client with this id is connected";
            Decision::Refuse(Refusal::new(RefusalCode::RejectedByCustomHandler, reason))
        }
        _ if next_sent > 0 || next_expected > 0 => mismatch(format!(
            "client is trying to reconnect to a session the server don't know about: {}",
            request.session
        )),
        _ => Decision::Begin,
    }
}

/// Asks the client for fresh metadata.
pub fn rehandshake_request() -> Message {
    Message::new(REHANDSHAKE_STREAM, Flags::NONE, Value::map([("type", "REHANDSHAKE_REQ".into())]))
}

/// Gives the server fresh metadata.
pub fn rehandshake_response(metadata: Value) -> Message {
    let payload = Value::map([("type", "REHANDSHAKE_RESP".into()), ("metadata", metadata)]);
    Message::new(REHANDSHAKE_STREAM, Flags::NONE, payload)
}

/// Whether this asks for fresh metadata.
pub fn is_rehandshake_request(envelope: &Envelope) -> bool {
    rehandshake_kind(envelope) == Some("REHANDSHAKE_REQ")
}

/// The fresh metadata this brings.
pub fn rehandshake_metadata(envelope: &Envelope) -> Option<&Value> {
    let payload = envelope.payload.as_ref().ok()?;
    (rehandshake_kind(envelope) == Some("REHANDSHAKE_RESP")).then(|| payload.get("metadata"))?
}

fn rehandshake_kind(envelope: &Envelope) -> Option<&str> {
    envelope.payload.as_ref().ok()?.get("type")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(payload: Value) -> Envelope {
        Envelope {
            id: "i".into(),
            from: "client".into(),
            to: "server".into(),
            seq: 0,
            ack: 0,
            service: None,
            procedure: None,
            stream: "s".into(),
            flags: Flags::NONE,
            tracing: None,
            payload: Ok(payload),
        }
    }

    fn request(session: &str, next_expected: u64, next_sent: u64) -> Request {
        let expected = Some(Expected { next_expected, next_sent });
        Request { version: Version::V2_0, session: session.into(), expected, metadata: Some("m".into()) }
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let sent = request("s1", 3, 2);
        let message = sent.clone().message("stream".into());
        assert_eq!(Request::read(&envelope(message.payload)), Ok(sent));
    }

    #[test]
    fn a_response_is_read_as_it_was_written() {
        let refusal = Refusal::new(RefusalCode::RejectedUnsupportedClient, "too old");
        for sent in [Response::Welcome { session: "s1".into() }, Response::Refused(refusal)] {
            assert_eq!(Response::read(&envelope(sent.message("x".into()).payload)), Some(sent));
        }
    }

    #[test]
    fn a_request_that_lacks_anything_is_malformed() {
        let Value::Map(whole) = request("s", 0, 0).message("x".into()).payload else { unreachable!() };
        for at in 0..4 {
            let mut fields = whole.clone();
            let (name, _) = fields.remove(at);
            let refusal = Request::read(&envelope(Value::Map(fields))).expect_err(&name);
            assert_eq!(refusal.code, RefusalCode::MalformedHandshake, "without {name}");
        }
    }

    #[test]
    fn a_version_that_is_not_spoken_is_told_so() {
        for (version, code) in [("v1.0", true), ("v1.1", false), ("v2.0", false), ("v3.0", true), ("", true)]
        {
            let Value::Map(mut fields) = request("s", 0, 0).message("x".into()).payload else {
                unreachable!()
            };
            fields[1].1 = version.into();
            let read = Request::read(&envelope(Value::Map(fields)));
            assert_eq!(
                read.is_err_and(|r| r.code == RefusalCode::ProtocolVersionMismatch),
                code,
                "{version}"
            );
        }
    }

    #[test]
    fn a_response_with_an_unknown_code_is_no_response() {
        let refusal = Refusal::new(RefusalCode::MalformedHandshake, "r");
        let mut message = Response::Refused(refusal).message("x".into());
        let Value::Map(fields) = &mut message.payload else { unreachable!() };
        let Value::Map(status) = &mut fields[1].1 else { unreachable!() };
        status[1].1 = "SOMETHING_NEW".into();
        assert_eq!(Response::read(&envelope(message.payload)), None);
    }

    #[track_caller]
    fn check(
        known: Option<(&str, bool, u64, u64)>,
        request: Request,
        second: SecondClient,
        expect: Result<Decision, &str>,
    ) {
        let known = known.map(|(session, connected, received, oldest)| Known {
            session,
            connected,
            received,
            oldest,
            next: 9,
        });
        let decision = decide(&request, known, second, true);
        match (expect, decision) {
            (Ok(expected), decision) => assert_eq!(decision, expected),
            (Err(part), Decision::Refuse(refusal)) => {
                assert!(refusal.to_string().contains(part), "{refusal}")
            }
            (Err(part), decision) => panic!("{decision:?} is not a refusal with {part}"),
        }
    }

    #[test]
    fn a_known_session_goes_on_when_neither_side_has_lost_anything() {
        let takes = SecondClient::TakesOver;
        check(Some(("s", false, 5, 3)), request("s", 3, 5), takes, Ok(Decision::Resume));
        check(Some(("s", true, 5, 3)), request("s", 9, 0), takes, Ok(Decision::Resume));
        check(Some(("s", false, 5, 3)), request("s", 3, 6), takes, Err("client is in the future"));
        check(Some(("s", false, 5, 3)), request("s", 2, 5), takes, Err("server is in the future"));
        check(Some(("s", false, 5, 3)), request("s", 10, 5), takes, Err("never sent"));
    }

    #[test]
    fn a_v1_1_client_that_does_not_say_where_it_stands_begins_or_goes_on() {
        let silent = |session: &str| Request {
            version: Version::V1_1,
            expected: None,
            metadata: None,
            session: session.into(),
        };
        let read = |sent: Request| Request::read(&envelope(sent.message("x".into()).payload));
        assert_eq!(read(silent("s")), Ok(silent("s")));
        let newer = Request { version: Version::V2_0, ..silent("s") };
        assert_eq!(read(newer).map_err(|refusal| refusal.code), Err(RefusalCode::MalformedHandshake));
        let takes = SecondClient::TakesOver;
        check(None, silent("s"), takes, Ok(Decision::Begin));
        check(Some(("s", true, 5, 3)), silent("s"), takes, Ok(Decision::Resume));
        check(Some(("other", true, 5, 3)), silent("s"), takes, Ok(Decision::Begin));
        check(Some(("other", true, 5, 3)), silent("s"), SecondClient::IsRefused, Err("another client"));
    }

    #[test]
    fn an_unknown_session_begins_only_from_nothing() {
        let takes = SecondClient::TakesOver;
        check(None, request("s", 0, 0), takes, Ok(Decision::Begin));
        check(None, request("s", 1, 0), takes, Err("SESSION_STATE_MISMATCH"));
        check(None, request("s", 0, 1), takes, Err("SESSION_STATE_MISMATCH"));
        check(Some(("other", true, 5, 5)), request("s", 0, 0), takes, Ok(Decision::Begin));
        check(Some(("other", true, 5, 5)), request("s", 0, 1), takes, Err("SESSION_STATE_MISMATCH"));
    }

    #[test]
    fn a_second_live_client_may_be_refused() {
        let refused = SecondClient::IsRefused;
        check(Some(("other", true, 5, 5)), request("s", 0, 0), refused, Err("another client"));
        check(Some(("other", false, 5, 5)), request("s", 0, 0), refused, Ok(Decision::Begin));
        check(Some(("s", true, 5, 5)), request("s", 5, 5), refused, Ok(Decision::Resume));
    }
}
