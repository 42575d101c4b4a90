//! What is asked of a running turn, and how it is carried to the replica that runs it.
//!
//! A room that does not run the turn gives the errand to the courier. Over the link between replicas it is one
//! JSON text with a number, and the answer has the same number; `{"stopped":[turn,lease]}` and `{"beat":moment}`
//! come in between. The hash of the lease travels, which every replica reads in the store anyway; the lease
//! itself, and whatever let its holder in, stay where they were given.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::codec::token::Token;
use crate::rt::{Cancel, Wall};
use crate::state::stream::LeaseHash;
use crate::state::turn::PartRefused;
use crate::store::StoreError;
use crate::store::streams::{Draft, End, Fence, Kind};

use super::StreamError;
use super::room::{Accepted, Alive, CancelOf, Commit, Ending, Keepalive, Parts, ReadTurn, TurnRead};
use super::writes::Written;

/// Something asked of a running turn.
pub(super) enum Errand {
    /// Take parts.
    Parts(Parts),
    /// Write its message.
    Commit(Commit),
    /// End it.
    End(Ending),
    /// Its producer is alive.
    Keepalive(Keepalive),
    /// Give its parts.
    ReadTurn(ReadTurn),
    /// Say when it is asked to stop.
    CancelOf(CancelOf),
}

impl Errand {
    pub(super) fn stream(&self) -> Uuid {
        match self {
            Errand::Parts(it) => it.stream,
            Errand::Commit(it) => it.stream,
            Errand::End(it) => it.stream,
            Errand::Keepalive(it) => it.stream,
            Errand::ReadTurn(it) => it.stream,
            Errand::CancelOf(it) => it.stream,
        }
    }

    /// What proves that the turn is the caller's; reading needs no proof.
    pub(super) fn fence(&self) -> Option<Fence> {
        match self {
            Errand::Parts(it) => Some(it.fence),
            Errand::Commit(it) => Some(it.fence),
            Errand::End(it) => Some(it.fence),
            Errand::Keepalive(it) => Some(it.fence),
            Errand::ReadTurn(_) => None,
            Errand::CancelOf(it) => Some(it.fence),
        }
    }

    pub(super) fn turn(&self) -> u32 {
        match self {
            Errand::ReadTurn(read) => read.turn,
            _ => self.fence().map_or(0, |fence| fence.turn),
        }
    }

    /// What it is told where the turn does not run.
    pub(super) fn not_here(&self) -> StreamError {
        match self {
            Errand::ReadTurn(read) => StreamError::NoTurn { turn: read.turn },
            _ => StreamError::NotHere,
        }
    }

    /// What it is told once the store says that nobody runs the turn for it.
    pub(super) fn over(&self) -> StreamError {
        match self {
            Errand::ReadTurn(_) => self.not_here(),
            _ => StreamError::TurnLost { turn: self.turn() },
        }
    }

    /// Tells whoever asked that nothing came of it.
    pub(super) fn refuse(self, error: StreamError) {
        match self {
            Errand::Parts(it) => (it.then)(Err(error)),
            Errand::Commit(it) => (it.then)(Err(error)),
            Errand::End(it) => (it.then)(Err(error)),
            Errand::Keepalive(it) => (it.then)(Err(error)),
            Errand::ReadTurn(it) => (it.then)(Err(error)),
            Errand::CancelOf(it) => (it.then)(Err(error)),
        }
    }

    /// Tells whoever asked what came of it. `watch` gives the token that stands for the worker's.
    pub(super) fn settle(self, did: Did, watch: impl FnOnce(Fence) -> Cancel) {
        let odd = || StreamError::Store(StoreError::retry("elsewhere", "the worker answered something else"));
        match (self, did) {
            (errand, Did::Failed(fail)) => errand.refuse(fail.into_error()),
            (Errand::Parts(it), Did::Accepted { accepted, last, interrupted }) => {
                (it.then)(Ok(Accepted { accepted, last, interrupted }));
            }
            (Errand::Commit(it), Did::Written { id, token }) => match token.parse::<Token>() {
                Ok(token) => (it.then)(Ok(Written { id, token })),
                Err(_) => (it.then)(Err(odd())),
            },
            (Errand::End(it), Did::Ended) => (it.then)(Ok(())),
            (Errand::Keepalive(it), Did::Alive { lease_until, interrupted }) => {
                (it.then)(Ok(Alive { lease_until: Wall(lease_until), interrupted }));
            }
            (Errand::ReadTurn(it), Did::Read { first, parts, last, closed, evicted, folded_to }) => {
                let parts = parts.into_iter().map(|part| part.get().into()).collect();
                (it.then)(Ok(TurnRead { first, parts, last, closed, evicted, folded_to }));
            }
            (Errand::CancelOf(it), Did::Watched) => (it.then)(Ok(watch(it.fence))),
            (errand, _) => errand.refuse(odd()),
        }
    }

    /// The errand as it travels.
    pub(super) fn carried(&self, no: u64) -> String {
        let what = match self {
            Errand::Parts(it) => Asked::Parts { first: it.first, parts: it.parts.iter().map(raw).collect() },
            Errand::Commit(it) => Asked::Commit {
                json: it.draft.kind == Kind::Json,
                role: it.draft.role.clone(),
                content: URL_SAFE_NO_PAD.encode(&it.draft.content),
                key: it.key.clone(),
            },
            Errand::End(it) => Asked::End(match &it.end {
                End::Done => HowEnded::Done,
                End::Failed(why) => HowEnded::Failed(why.clone()),
                End::Lost => HowEnded::Lost,
                End::HandedBack => HowEnded::HandedBack,
                End::Aborted => HowEnded::Aborted,
            }),
            Errand::Keepalive(_) => Asked::Keepalive,
            Errand::ReadTurn(it) => Asked::Read { after: it.after, wait: it.wait },
            Errand::CancelOf(_) => Asked::Watch,
        };
        let lease = self.fence().map(|fence| URL_SAFE_NO_PAD.encode(fence.lease.0));
        let carried = ToWorker::Do(Carried { no, turn: self.turn(), lease, what });
        serde_json::to_string(&carried).expect("strings and numbers are JSON")
    }
}

/// A part as it is: it was JSON when it was taken in.
fn raw(part: &Arc<str>) -> Box<RawValue> {
    RawValue::from_string(part.to_string()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

pub(super) fn read_lease(text: &str) -> Option<LeaseHash> {
    Some(LeaseHash(URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?))
}

pub(super) fn write_lease(lease: LeaseHash) -> String {
    URL_SAFE_NO_PAD.encode(lease.0)
}

/// What goes to the worker.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToWorker {
    /// An errand.
    Do(Carried),
    /// A sign of life, answered with the same.
    Beat(u64),
}

/// An errand under its number.
#[derive(Deserialize, Serialize)]
pub(super) struct Carried {
    pub(super) no: u64,
    pub(super) turn: u32,
    pub(super) lease: Option<String>,
    pub(super) what: Asked,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Asked {
    Parts { first: Option<u32>, parts: Vec<Box<RawValue>> },
    Commit { json: bool, role: Option<String>, content: String, key: Option<String> },
    End(HowEnded),
    Keepalive,
    Read { after: u32, wait: bool },
    Watch,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum HowEnded {
    Done,
    Failed(String),
    Lost,
    HandedBack,
    Aborted,
}

impl HowEnded {
    pub(super) fn into_end(self) -> End {
        match self {
            HowEnded::Done => End::Done,
            HowEnded::Failed(why) => End::Failed(why),
            HowEnded::Lost => End::Lost,
            HowEnded::HandedBack => End::HandedBack,
            HowEnded::Aborted => End::Aborted,
        }
    }
}

impl Asked {
    /// A message as it was before it travelled.
    pub(super) fn draft(json: bool, role: Option<String>, content: &str) -> Option<Draft> {
        let content = URL_SAFE_NO_PAD.decode(content).ok()?;
        Some(Draft { kind: if json { Kind::Json } else { Kind::Bytes }, role, content: content.into() })
    }
}

/// What comes from the worker.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromWorker {
    /// What came of the errand of this number.
    Did(u64, Did),
    /// The turn was asked to stop, or is lost.
    Stopped(u32, String),
    /// The answer to a sign of life.
    Beat(u64),
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Did {
    Accepted { accepted: u32, last: u32, interrupted: bool },
    Written { id: u64, token: String },
    Ended,
    Alive { lease_until: i64, interrupted: bool },
    Read { first: u32, parts: Vec<Box<RawValue>>, last: u32, closed: bool, evicted: bool, folded_to: u32 },
    Watched,
    Failed(Fail),
}

impl Did {
    /// Whether the other end has not got the turn, and so did nothing.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, Did::Failed(Fail::NotHere | Fail::NoTurn(_)))
    }
}

impl From<Accepted> for Did {
    fn from(it: Accepted) -> Did {
        Did::Accepted { accepted: it.accepted, last: it.last, interrupted: it.interrupted }
    }
}

impl From<Written> for Did {
    fn from(it: Written) -> Did {
        Did::Written { id: it.id, token: it.token.to_string() }
    }
}

impl From<()> for Did {
    fn from((): ()) -> Did {
        Did::Ended
    }
}

impl From<Alive> for Did {
    fn from(it: Alive) -> Did {
        Did::Alive { lease_until: it.lease_until.as_micros(), interrupted: it.interrupted }
    }
}

impl From<TurnRead> for Did {
    fn from(it: TurnRead) -> Did {
        let parts = it.parts.iter().map(raw).collect();
        Did::Read {
            first: it.first,
            parts,
            last: it.last,
            closed: it.closed,
            evicted: it.evicted,
            folded_to: it.folded_to,
        }
    }
}

/// A [`StreamError`] as it travels.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fail {
    NotHere,
    TurnLost(u32),
    NoTurn(u32),
    PartGap {
        accepted: u32,
        last: u32,
    },
    PartFull {
        held: usize,
        max: usize,
        accepted: u32,
        last: u32,
    },
    PartClosed {
        accepted: u32,
        last: u32,
    },
    TooLarge {
        bytes: usize,
        max: usize,
    },
    Closed,
    Missing,
    Gone,
    Full,
    Stopped,
    /// The store, or anything else, in words.
    Else(String),
}

impl Fail {
    pub(super) fn of(error: &StreamError) -> Fail {
        match error {
            StreamError::NotHere => Fail::NotHere,
            StreamError::TurnLost { turn } => Fail::TurnLost(*turn),
            StreamError::NoTurn { turn } => Fail::NoTurn(*turn),
            StreamError::Part { why, accepted, last } => {
                let (accepted, last) = (*accepted, *last);
                match *why {
                    PartRefused::Gap { .. } => Fail::PartGap { accepted, last },
                    PartRefused::Full { held, max } => Fail::PartFull { held, max, accepted, last },
                    PartRefused::Closed => Fail::PartClosed { accepted, last },
                }
            }
            StreamError::TooLarge { bytes, max } => Fail::TooLarge { bytes: *bytes, max: *max },
            StreamError::Closed => Fail::Closed,
            StreamError::Missing => Fail::Missing,
            StreamError::Gone => Fail::Gone,
            StreamError::Full => Fail::Full,
            StreamError::Stopped => Fail::Stopped,
            other => Fail::Else(other.to_string()),
        }
    }

    pub(super) fn into_error(self) -> StreamError {
        match self {
            Fail::NotHere => StreamError::NotHere,
            Fail::TurnLost(turn) => StreamError::TurnLost { turn },
            Fail::NoTurn(turn) => StreamError::NoTurn { turn },
            Fail::PartGap { accepted, last } => {
                StreamError::Part { why: PartRefused::Gap { last }, accepted, last }
            }
            Fail::PartFull { held, max, accepted, last } => {
                StreamError::Part { why: PartRefused::Full { held, max }, accepted, last }
            }
            Fail::PartClosed { accepted, last } => {
                StreamError::Part { why: PartRefused::Closed, accepted, last }
            }
            Fail::TooLarge { bytes, max } => StreamError::TooLarge { bytes, max },
            Fail::Closed => StreamError::Closed,
            Fail::Missing => StreamError::Missing,
            Fail::Gone => StreamError::Gone,
            Fail::Full => StreamError::Full,
            // The worker stops: the turn is handed back, and here nothing stops.
            Fail::Stopped => StreamError::NotHere,
            Fail::Else(text) => StreamError::Store(StoreError::retry("elsewhere", text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(errand: &Errand) -> Carried {
        match serde_json::from_str(&errand.carried(7)).expect("it reads back") {
            ToWorker::Do(carried) => carried,
            ToWorker::Beat(_) => panic!("an errand is no beat"),
        }
    }

    #[test]
    fn what_is_carried_is_what_was_asked_and_no_lease_is_in_it() {
        let secret = [9; 32];
        let fence = Fence { turn: 3, lease: LeaseHash::of(&secret) };
        let parts = vec![Arc::from(r#"{"a": 1.0}"#), Arc::from("\"b\"")];
        let errand = Errand::Parts(Parts {
            stream: Uuid::nil(),
            fence,
            first: Some(4),
            parts,
            then: Box::new(|_| {}),
        });
        let text = errand.carried(7);
        assert!(!text.contains(&URL_SAFE_NO_PAD.encode(secret)), "{text}");
        let carried = there_and_back(&errand);
        assert_eq!((carried.no, carried.turn), (7, 3));
        assert_eq!(carried.lease.as_deref().and_then(read_lease), Some(fence.lease));
        let Asked::Parts { first: Some(4), parts } = carried.what else { panic!("{text}") };
        assert_eq!(parts.iter().map(|part| part.get()).collect::<Vec<_>>(), [r#"{"a": 1.0}"#, "\"b\""]);
    }

    #[test]
    fn an_error_that_a_caller_acts_on_is_the_same_on_the_other_side() {
        for error in [
            StreamError::NotHere,
            StreamError::TurnLost { turn: 2 },
            StreamError::NoTurn { turn: 2 },
            StreamError::Part { why: PartRefused::Gap { last: 4 }, accepted: 1, last: 4 },
            StreamError::Part { why: PartRefused::Full { held: 5, max: 6 }, accepted: 1, last: 4 },
            StreamError::TooLarge { bytes: 8, max: 7 },
            StreamError::Closed,
            StreamError::Full,
        ] {
            let text = serde_json::to_string(&Did::Failed(Fail::of(&error))).expect("JSON");
            let Did::Failed(fail) = serde_json::from_str(&text).expect("it reads back") else {
                panic!("{text}")
            };
            assert_eq!(fail.into_error(), error);
        }
    }
}
