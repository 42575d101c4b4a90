//! Somebody who reads a turn over one answer: whether it is still there, and that its credentials do not
//! outlive their end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::rt::Lock;
use crate::wire::{Happened, LinkHandle, Outlet, Owner};

/// Nothing needs to be said to it any more.
#[derive(Clone)]
pub(super) struct Gone(Arc<AtomicBool>);

impl Gone {
    pub(super) fn is_gone(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Opens the answer. `expired` ends it when the credentials do: without that, the end that the link makes by
/// itself looks like the end of the turn.
pub(super) fn open(expired: fn(&LinkHandle), open: impl FnOnce(Owner) -> LinkHandle) -> (LinkHandle, Gone) {
    let gone = Arc::new(AtomicBool::new(false));
    let held = Arc::new(Lock::new(None));
    let (left, known) = (gone.clone(), held.clone());
    let outlet = Outlet::new(move |batch| {
        for event in batch {
            let ends = matches!(event.what, Happened::Expired);
            if ends || matches!(event.what, Happened::Closed(_)) {
                left.store(true, Ordering::Release);
                let link = known.lock().take();
                link.iter().filter(|_| ends).for_each(expired);
            }
        }
        Ok(())
    });
    let link = open(Owner::new(&outlet, 0));
    *held.lock() = Some(link.clone());
    (link, Gone(gone))
}
