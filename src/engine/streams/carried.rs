//! The worker's end of errands: what another replica asks of a turn that runs here.
//!
//! Never carried further: a turn that does not run here is answered so, and whoever asked looks again.

use std::sync::Arc;

use uuid::Uuid;

use crate::rt::{Cancel, CloserGuard, Lock};
use crate::store::streams::Fence;
use crate::wire::{Frame, Happened, LinkBatch, LinkHandle, Outlet};

use super::errand::{Asked, Carried, Did, Errand, Fail, FromWorker, ToWorker, read_lease, write_lease};
use super::room::{CancelOf, Commit, Ending, Keepalive, Message, Parts, ReadTurn, Then};
use super::{StreamError, Streams};

/// How many turns one link may watch: there is one running, and few that have just ended.
const WATCHED_MAX: usize = 64;

/// One link from another replica, for the turns of one stream.
pub struct CarriedHere {
    streams: Streams,
    stream: Uuid,
    link: Lock<Option<LinkHandle>>,
    /// Turns whose end the other side wants to hear of.
    watched: Lock<Vec<CloserGuard>>,
}

impl std::fmt::Debug for CarriedHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CarriedHere({})", self.stream)
    }
}

impl CarriedHere {
    /// For a link that is about to be opened.
    pub fn new(streams: &Streams, stream: Uuid) -> Arc<CarriedHere> {
        let (link, watched) = (Lock::new(None), Lock::new(Vec::new()));
        Arc::new(CarriedHere { streams: streams.clone(), stream, link, watched })
    }

    /// Where the link's events go.
    pub fn outlet(self: &Arc<CarriedHere>) -> Outlet {
        let hears = self.clone();
        Outlet::new(move |batch| {
            hears.hear(batch);
            Ok(())
        })
    }

    /// The link is there.
    pub fn opened(&self, link: LinkHandle) {
        *self.link.lock() = Some(link);
    }

    fn hear(self: &Arc<CarriedHere>, batch: LinkBatch) {
        for event in batch {
            match event.what {
                Happened::Text(text) => match serde_json::from_str::<ToWorker>(&text) {
                    Ok(ToWorker::Do(carried)) => self.run(carried),
                    Ok(ToWorker::Beat(sent)) => self.say(&FromWorker::Beat(sent)),
                    Err(error) => {
                        log::warn!("replica asks oddly stream={} error={error}", self.stream);
                        self.close();
                    }
                },
                Happened::Closed(_) => self.close(),
                _ => {}
            }
        }
    }

    fn close(&self) {
        let link = self.link.lock().take();
        let watched = std::mem::take(&mut *self.watched.lock());
        drop(watched);
        if let Some(link) = link {
            link.close(crate::wire::websocket::close::AWAY, "over");
        }
    }

    fn say(&self, what: &FromWorker) {
        let link = self.link.lock().clone();
        if let Some(link) = link {
            let text = serde_json::to_string(what).expect("strings and numbers are JSON");
            link.send(Frame::text(&text));
        }
    }

    /// Says under this number what came of it.
    fn told<T: Into<Did> + 'static>(self: &Arc<CarriedHere>, no: u64) -> Then<T> {
        let told = self.clone();
        Box::new(move |outcome| {
            let did = match outcome {
                Ok(it) => it.into(),
                Err(error) => Did::Failed(Fail::of(&error)),
            };
            told.say(&FromWorker::Did(no, did));
        })
    }

    fn run(self: &Arc<CarriedHere>, carried: Carried) {
        let Carried { no, turn, lease, what } = carried;
        let (stream, lease) = (self.stream, lease.as_deref().and_then(read_lease));
        let fence = lease.map(|lease| Fence { turn, lease });
        let errand = match (what, fence) {
            (Asked::Read { after, wait }, _) => {
                Errand::ReadTurn(ReadTurn { stream, turn, after, wait, then: self.told(no) })
            }
            (Asked::Parts { first, parts }, Some(fence)) => {
                let parts = parts.into_iter().map(|part| part.get().into()).collect();
                Errand::Parts(Parts { stream, fence, first, parts, then: self.told(no) })
            }
            (Asked::Commit { json, role, content, key }, Some(fence)) => {
                match Asked::draft(json, role, &content) {
                    Some(draft) => Errand::Commit(Commit { stream, fence, draft, key, then: self.told(no) }),
                    None => return self.close(),
                }
            }
            (Asked::End(end), Some(fence)) => {
                Errand::End(Ending { stream, fence, end: end.into_end(), then: self.told(no) })
            }
            (Asked::Keepalive, Some(fence)) => {
                Errand::Keepalive(Keepalive { stream, fence, then: self.told(no) })
            }
            (Asked::Watch, Some(fence)) => {
                let told = self.clone();
                let then = Box::new(move |cancel| told.watch(no, fence, cancel));
                Errand::CancelOf(CancelOf { stream, fence, then })
            }
            // Whoever sends this is not one of us.
            (_, None) => return self.close(),
        };
        self.streams.hand_carried(errand);
    }

    fn watch(self: &Arc<CarriedHere>, no: u64, fence: Fence, cancel: Result<Cancel, StreamError>) {
        let cancel = match cancel {
            Ok(cancel) => cancel,
            Err(error) => return self.say(&FromWorker::Did(no, Did::Failed(Fail::of(&error)))),
        };
        self.say(&FromWorker::Did(no, Did::Watched));
        // The link may go long before the turn: then nobody is told.
        let told = Arc::downgrade(self);
        let guard = cancel.on_cancel(move || {
            if let Some(told) = told.upgrade() {
                told.say(&FromWorker::Stopped(fence.turn, write_lease(fence.lease)));
            }
        });
        let oldest = {
            let mut watched = self.watched.lock();
            watched.push(guard);
            (watched.len() > WATCHED_MAX).then(|| watched.remove(0))
        };
        drop(oldest);
    }
}

impl Streams {
    /// Hands an errand that came from another replica to its room, which runs it or says that it does not.
    fn hand_carried(&self, errand: Errand) {
        use crate::engine::worker::Refused;
        let inbox = self.shared.shards.of(errand.stream());
        let (message, error) = match inbox.try_data(Message::Errand(Box::new(errand), true)) {
            Ok(()) => return,
            Err(Refused::Full(message)) => (message, StreamError::Full),
            Err(Refused::Ended(message)) => (message, StreamError::Stopped),
        };
        if let Message::Errand(errand, _) = message {
            errand.refuse(error);
        }
    }
}
