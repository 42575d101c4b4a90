//! The requests of an upload on their way into a turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;

use crate::daemon::river::failure_of;
use crate::daemon::river::mirror::answering;
use crate::engine::streams::Streams;
use crate::front::Response;
use crate::front::streams::{Feed, Feeding};
use crate::rt::{Cancel, Lock};
use crate::service::{Failure, Later, Resume, Sink};
use crate::state::value::Value;

/// Requests whose parts the room has not taken, from which on the session is held back.
const OUT_MAX: usize = 64;

/// Where parts go, if the caller may.
pub(super) type Asked = Result<(Streams, Feeding), Failure>;

/// One request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parts {
    parts: Vec<Value>,
}

/// The requests of one upload.
pub(super) struct Uptake {
    shared: Arc<Shared>,
}

struct Shared {
    /// The session is held back.
    held: Arc<AtomicBool>,
    resume: Resume,
    state: Lock<State>,
}

#[derive(Default)]
struct State {
    feed: Option<Arc<Feed>>,
    /// What came while the turn was being looked for.
    early: Vec<Arc<str>>,
    ended: bool,
    gone: bool,
}

impl Uptake {
    /// Finds the turn; what comes meanwhile waits. Nobody is told to go on before it is found, or refused.
    pub(super) fn open(asked: Asked, later: Later<Value>, resume: Resume) -> Uptake {
        let held = Arc::new(AtomicBool::new(false));
        let (eases, goes_on) = (held.clone(), resume.clone());
        let shared = Arc::new(Shared { held, resume, state: Lock::default() });
        match asked {
            Err(failure) => {
                shared.state.lock().gone = true;
                later.give(Err(failure));
            }
            Ok((streams, feeding)) => {
                let settled = move |out: usize| {
                    if out <= OUT_MAX / 2 && eases.swap(false, Ordering::AcqRel) {
                        goes_on.now();
                    }
                };
                let opens = shared.clone();
                Feed::open(&streams, feeding, settled, move |found| match found {
                    Ok((feed, cancel)) => opens.found(&feed, &cancel, later),
                    Err(response) => opens.refused(&response, later),
                });
            }
        }
        Uptake { shared }
    }
}

impl Shared {
    fn refused(&self, response: &Response, later: Later<Value>) {
        let early = {
            let mut state = self.state.lock();
            state.gone = true;
            std::mem::take(&mut state.early)
        };
        drop(early);
        later.give(Err(failure_of(response)));
        self.go_on();
    }

    fn found(&self, feed: &Arc<Feed>, cancel: &Cancel, later: Later<Value>) {
        feed.begin(answering(later), cancel);
        // What came first goes first: the feed is not there for others before that has gone.
        let (ended, gone) = loop {
            let early = {
                let mut state = self.state.lock();
                if state.early.is_empty() {
                    state.feed = Some(feed.clone());
                    break (state.ended, state.gone);
                }
                std::mem::take(&mut state.early)
            };
            feed.submit(early);
        };
        if gone {
            feed.leave();
        } else if ended {
            feed.end(Vec::new());
        }
        self.go_on();
    }

    fn go_on(&self) {
        if self.held.swap(false, Ordering::AcqRel) {
            self.resume.now();
        }
    }
}

impl Sink<Parts> for Uptake {
    fn take(&mut self, request: Parts) -> bool {
        let texts = request.parts.iter().map(|part| serde_json::to_string(part).expect("a value is JSON"));
        let parts: Vec<Arc<str>> = texts.map(Arc::from).collect();
        let feed = {
            let mut state = self.shared.state.lock();
            if state.gone {
                return true;
            }
            match &state.feed {
                Some(feed) => feed.clone(),
                None => {
                    state.early.extend(parts);
                    self.shared.held.store(true, Ordering::Release);
                    return false;
                }
            }
        };
        feed.submit(parts);
        if feed.out() < OUT_MAX {
            return true;
        }
        self.shared.held.store(true, Ordering::Release);
        // The room may have taken everything in between, and would then have nothing to go on after.
        feed.out() <= OUT_MAX / 2 && self.shared.held.swap(false, Ordering::AcqRel)
    }

    fn ended(&mut self) {
        let feed = {
            let mut state = self.shared.state.lock();
            state.ended = true;
            state.feed.clone()
        };
        if let Some(feed) = feed {
            feed.end(Vec::new());
        }
    }

    fn gone(&mut self) {
        let feed = {
            let mut state = self.shared.state.lock();
            state.gone = true;
            state.feed.take()
        };
        if let Some(feed) = feed {
            feed.leave();
        }
    }
}
