//! A watcher of metadata behind a link: it sees the newest state, and a slow reader costs no memory beyond it.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::engine::watches::AgentValues;
use crate::rt::Lock;
use crate::wire::{Frame, LinkHandle};

/// Values as they go out on a link.
pub(super) type Dress = Box<dyn Fn(&AgentValues) -> Frame + Send + Sync>;

/// At most one round of frames is on its way; what comes meanwhile replaces what waits.
pub(super) struct Watcher {
    link: Lock<Option<LinkHandle>>,
    dress: Dress,
    /// What the link says when a round has left.
    mark: u64,
    waiting: Lock<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// A round has not left yet.
    busy: bool,
    /// The link is gone, or the watch was ended.
    gone: bool,
    newest: BTreeMap<Uuid, Arc<AgentValues>>,
}

impl Watcher {
    /// One that has no link yet: it keeps what it sees until it has.
    pub(super) fn new(mark: u64, dress: Dress) -> Arc<Watcher> {
        Arc::new(Watcher { link: Lock::new(None), dress, mark, waiting: Lock::default() })
    }

    /// There is a link.
    pub(super) fn open(&self, link: LinkHandle) {
        *self.link.lock() = Some(link);
        self.send(false);
    }

    /// New values; false once nobody wants them any more.
    pub(super) fn see(&self, values: &Arc<AgentValues>) -> bool {
        {
            let mut waiting = self.waiting.lock();
            if waiting.gone {
                return false;
            }
            waiting.newest.insert(values.agent, values.clone());
        }
        self.send(false);
        true
    }

    /// The last round has left.
    pub(super) fn passed(&self) {
        self.send(true);
    }

    /// Nothing is sent any more.
    pub(super) fn end(&self) {
        let newest = {
            let mut waiting = self.waiting.lock();
            waiting.gone = true;
            std::mem::take(&mut waiting.newest)
        };
        drop(newest);
        *self.link.lock() = None;
    }

    /// Sends what waits, unless something is still on its way.
    fn send(&self, passed: bool) {
        let link = self.link.lock().clone();
        let Some(link) = link else { return };
        let newest = {
            let mut waiting = self.waiting.lock();
            waiting.busy &= !passed;
            if waiting.busy || waiting.newest.is_empty() {
                return;
            }
            waiting.busy = true;
            std::mem::take(&mut waiting.newest)
        };
        for values in newest.values() {
            link.send_paced((self.dress)(values));
        }
        link.mark(self.mark);
    }
}
