//! What a follower is told, and how it is written.

use std::sync::Arc;

use base64::Engine as _;
use uuid::Uuid;

use crate::codec::envelope::{Envelope, push_str};
use crate::codec::token::Token;
use crate::store::streams::{Kind, MessageRow, QueuedRow};

/// Something a follower is told. Whoever keeps the last `token` can come back with it and misses nothing.
///
/// ```
/// let engine = towpath::Engine::builder().start()?;
/// engine.streams().create("chat/1", Default::default())?;
/// let event = engine.streams().follow("chat/1", Default::default())?.next().expect("a follow says hello");
/// assert_eq!(event.what.name(), "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where the follower stands after it.
    pub token: Token,
    /// When it happened, in Unix milliseconds.
    pub ts: i64,
    /// What happened.
    pub what: What,
}

/// What a follower is told.
///
/// ```
/// use towpath::What;
///
/// /// Keeps a draft of what is being produced, as a viewer does.
/// fn show(draft: &mut Vec<String>, what: &What) {
///     match what {
///         What::Part { part, .. } => draft.push(part.to_string()),
///         What::Commit { .. } | What::Reset(_) => draft.clear(),
///         _ => {}
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The first event of every follow.
    Hello(Hello),
    /// What the stream is doing.
    Status {
        /// `idle`, `pending`, `running`, `interrupting`, `failed` or `done`.
        status: &'static str,
        /// Who runs it, while it runs.
        worker: Option<Uuid>,
        /// The turn that runs.
        turn: Option<u32>,
    },
    /// A durable message. One with a fold replaces the draft of its turn.
    Message(Arc<MessageRow>),
    /// A turn wrote a message: drop the draft, the message before this event has it.
    Commit {
        /// The turn.
        turn: u32,
        /// The message.
        id: u64,
    },
    /// All inputs that wait, after a change.
    Queue(Arc<[QueuedRow]>),
    /// The stream's error; none when it was cleared.
    Error(Option<String>),
    /// A piece of the message being produced.
    Part {
        /// Its turn.
        turn: u32,
        /// Its number in the turn: 1, 2, 3…
        n: u32,
        /// The piece, a JSON document.
        part: Arc<str>,
    },
    /// Clear what was accumulated: everything for `history` and `epoch`, the draft for `turn` and `gap`.
    Reset(Reset),
    /// The snapshot is complete; from here on events come as they happen.
    Live {
        /// Whether the follower went on where it had been.
        resumed: bool,
        /// How many messages it had missed.
        missed: u64,
    },
    /// The link to the worker, or to the store, is down. The stream goes on with what there is.
    Degraded {
        /// `relay` or `store`.
        what: &'static str,
    },
    /// It is up again.
    Restored {
        /// `relay` or `store`.
        what: &'static str,
    },
    /// This replica is about to stop: come back in a moment, to it or to another.
    Drain,
    /// Nothing more will come.
    Closed(Ended),
}

/// How a follow begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// This follow, for logs.
    pub session: Uuid,
    /// The replica that serves it.
    pub replica: Uuid,
    /// The most bytes that may wait for a follower before it is cut.
    pub queue_bytes_max: usize,
    /// Why an earlier follow over the same token was cut, if it was.
    pub previous: Option<&'static str>,
}

/// A quiet follower hears a comment or a ping this often.
pub const HEARTBEAT_MS: u64 = 15_000;
/// How long parts of a turn that ended can still be had: who comes back within it misses none.
const RECONNECT_WINDOW_MS: u64 = 15_000;

/// Why a follower must clear what it accumulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// An edit or a removal made history wrong.
    History,
    /// A new turn began before the parts of the last were in a message.
    Turn,
    /// Parts, or history before what is kept, are gone.
    Gap,
    /// The token is of another stream, another store, or a store as it was before it was restored.
    Epoch,
}

impl Reset {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Reset::History => "history",
            Reset::Turn => "turn",
            Reset::Gap => "gap",
            Reset::Epoch => "epoch",
        }
    }
}

/// Why a follow has ended for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The stream is closed and everything of it was seen.
    Closed,
    /// The stream was deleted.
    Deleted,
    /// Its time had come.
    Expired,
    /// The follower's credentials ran out.
    Auth,
    /// The follower did not keep up: it may come back with its token.
    Slow,
    /// The stream has as many followers here as it may have.
    Full,
    /// The engine has stopped: the follower may come back with its token.
    Stopped,
}

impl Ended {
    /// Every reason.
    pub(super) const ALL: [Ended; 7] = [
        Ended::Closed,
        Ended::Deleted,
        Ended::Expired,
        Ended::Auth,
        Ended::Slow,
        Ended::Full,
        Ended::Stopped,
    ];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Ended::Closed => "closed",
            Ended::Deleted => "deleted",
            Ended::Expired => "expired",
            Ended::Auth => "auth",
            Ended::Slow => "slow",
            Ended::Full => "full",
            Ended::Stopped => "stopped",
        }
    }
}

impl What {
    /// The type, as it is written.
    pub const fn name(&self) -> &'static str {
        match self {
            What::Hello(_) => "hello",
            What::Status { .. } => "status",
            What::Message(_) => "message",
            What::Commit { .. } => "commit",
            What::Queue(_) => "queue",
            What::Error(_) => "error",
            What::Part { .. } => "part",
            What::Reset(_) => "reset",
            What::Live { .. } => "live",
            What::Degraded { .. } => "degraded",
            What::Restored { .. } => "restored",
            What::Drain => "drain",
            What::Closed(_) => "closed",
        }
    }

    /// About how many bytes it takes.
    pub fn weight(&self) -> usize {
        match self {
            What::Message(row) => row.content.len() + 200,
            What::Part { part, .. } => part.len() + 150,
            What::Queue(queue) => queue.iter().map(|row| row.content.len() + 100).sum::<usize>() + 150,
            _ => 200,
        }
    }

    /// The payload as JSON. `text` says whether bytes of the stream are text.
    fn payload(&self, text: bool) -> String {
        let mut d = String::new();
        match self {
            What::Hello(hello) => {
                d = format!(
                    r#"{{"session":"{}","replica":"{}","heartbeat_ms":{HEARTBEAT_MS},"limits":{{"queue_bytes":{}}},"reconnect_window_ms":{RECONNECT_WINDOW_MS},"previous":"#,
                    hello.session, hello.replica, hello.queue_bytes_max
                );
                match hello.previous {
                    Some(previous) => push_str(&mut d, previous),
                    None => d.push_str("null"),
                }
                d.push('}');
            }
            What::Status { status, worker, turn } => {
                d = format!(r#"{{"status":"{status}""#);
                if let Some(worker) = worker {
                    d.push_str(&format!(r#","worker":"{worker}""#));
                }
                if let Some(turn) = turn {
                    d.push_str(&format!(r#","turn":{turn}"#));
                }
                d.push('}');
            }
            What::Message(row) => push_message(&mut d, row, text),
            What::Commit { turn, id } => d = format!(r#"{{"turn":{turn},"id":{id}}}"#),
            What::Queue(queue) => {
                d.push_str(r#"{"queue":"#);
                push_queue(&mut d, queue, text);
                d.push('}');
            }
            What::Error(error) => {
                d.push_str(r#"{"error":"#);
                match error {
                    Some(error) => push_str(&mut d, error),
                    None => d.push_str("null"),
                }
                d.push('}');
            }
            What::Part { part, .. } => d.push_str(part),
            What::Reset(reset) => d = format!(r#"{{"reason":"{}"}}"#, reset.name()),
            What::Live { resumed, missed } => d = format!(r#"{{"resumed":{resumed},"missed":{missed}}}"#),
            What::Degraded { what } | What::Restored { what } => d = format!(r#"{{"link":"{what}"}}"#),
            What::Drain => d.push_str("{}"),
            What::Closed(ended) => d = format!(r#"{{"reason":"{}"}}"#, ended.name()),
        }
        d
    }
}

impl Event {
    /// The event in its envelope. `name` is the stream's, `text` says whether its bytes are text.
    pub fn to_json(&self, name: &str, text: bool) -> String {
        let part = match self.what {
            What::Part { turn, n, .. } => Some((turn, n)),
            _ => None,
        };
        let d = self.what.payload(text);
        Envelope { t: self.what.name(), s: name, o: self.token, ts: self.ts, d: &d, part }.to_text()
    }
}

/// Appends `"content":…`, and how to read it if it is not JSON and not text.
fn push_content(d: &mut String, kind: Kind, content: &[u8], text: bool) {
    d.push_str(r#""content":"#);
    match (kind, std::str::from_utf8(content)) {
        (Kind::Json, Ok(json)) => d.push_str(json),
        (Kind::Bytes, Ok(said)) if text => push_str(d, said),
        _ => {
            push_str(d, &base64::engine::general_purpose::STANDARD.encode(content));
            d.push_str(r#","encoding":"base64""#);
        }
    }
}

fn push_role(d: &mut String, role: Option<&str>) {
    d.push_str(r#""role":"#);
    match role {
        Some(role) => push_str(d, role),
        None => d.push_str("null"),
    }
    d.push(',');
}

/// Appends a message as a JSON object.
pub fn push_message(d: &mut String, row: &MessageRow, text: bool) {
    d.push_str(&format!(r#"{{"id":{},"#, row.id));
    push_role(d, row.role.as_deref());
    push_content(d, row.kind, &row.content, text);
    if let Some(fold) = row.fold {
        d.push_str(&format!(r#","turn":{},"folded_to":{}"#, fold.turn, fold.upto));
    }
    d.push('}');
}

/// Appends one waiting input as a JSON object.
pub fn push_input(d: &mut String, row: &QueuedRow, text: bool) {
    d.push_str(&format!(r#"{{"id":{},"#, row.id));
    push_role(d, row.role.as_deref());
    push_content(d, row.kind, &row.content, text);
    d.push('}');
}

/// Appends a queue as a JSON array.
pub fn push_queue(d: &mut String, queue: &[QueuedRow], text: bool) {
    d.push('[');
    for (at, row) in queue.iter().enumerate() {
        if at > 0 {
            d.push(',');
        }
        push_input(d, row, text);
    }
    d.push(']');
}

/// Whether bytes of this content type are shown as text.
pub fn is_text(content_type: &str) -> bool {
    content_type.get(..5).is_some_and(|front| front.eq_ignore_ascii_case("text/"))
}
