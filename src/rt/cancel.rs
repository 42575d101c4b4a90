//! Cancellation tokens: a tree, each usable in a select, each able to close what blocks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::channel::{Receiver, Sender};
use super::{Lock, Rt};

type Closer = Box<dyn FnOnce() + Send>;

/// Cancels what was started with it, and its children. Cheap to clone.
///
/// Waiting: [`Select::cancelled`](super::Select::cancelled). Blocking I/O: register a closer with
/// [`Cancel::on_cancel`] that shuts the socket down.
#[derive(Clone)]
pub struct Cancel {
    shared: Arc<Shared>,
}

struct Shared {
    rt: Rt,
    cancelled: AtomicBool,
    /// Never carries anything: it disconnects when the token is cancelled.
    closed: Receiver<Infallible>,
    inner: Lock<Inner>,
}

struct Inner {
    /// Gone once cancelled.
    open: Option<Sender<Infallible>>,
    children: Vec<Weak<Shared>>,
    closers: BTreeMap<u64, Closer>,
    next_closer: u64,
}

impl Cancel {
    pub(super) fn new(rt: &Rt) -> Cancel {
        let (open, closed) = rt.channel("cancel", 1);
        let inner =
            Inner { open: Some(open), children: Vec::new(), closers: BTreeMap::new(), next_closer: 0 };
        let cancelled = AtomicBool::new(false);
        Cancel { shared: Arc::new(Shared { rt: rt.clone(), cancelled, closed, inner: Lock::new(inner) }) }
    }

    /// A token that is cancelled with this one, or alone.
    pub fn child(&self) -> Cancel {
        let child = Cancel::new(&self.shared.rt);
        let adopted = {
            let mut inner = self.shared.inner.lock();
            let alive = inner.open.is_some();
            if alive {
                inner.children.retain(|child| child.strong_count() > 0);
                inner.children.push(Arc::downgrade(&child.shared));
            }
            alive
        };
        if !adopted {
            child.cancel();
        }
        child
    }

    /// Cancels it and its children and runs what was registered. The second call does nothing.
    pub fn cancel(&self) {
        // A list instead of recursion: a tree may be deeper than a stack.
        let mut pending = vec![self.shared.clone()];
        while let Some(shared) = pending.pop() {
            let (open, children, closers) = {
                let mut inner = shared.inner.lock();
                shared.cancelled.store(true, Ordering::Release);
                (inner.open.take(), std::mem::take(&mut inner.children), std::mem::take(&mut inner.closers))
            };
            drop(open);
            for closer in closers.into_values() {
                closer();
            }
            pending.extend(children.iter().filter_map(Weak::upgrade));
        }
    }

    /// Whether it was cancelled.
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Acquire)
    }

    /// Runs `closer` when the token is cancelled, at once if it already is. Dropping the guard takes
    /// it back.
    pub fn on_cancel(&self, closer: impl FnOnce() + Send + 'static) -> CloserGuard {
        let registered = {
            let mut inner = self.shared.inner.lock();
            if inner.open.is_some() {
                let key = inner.next_closer;
                inner.next_closer += 1;
                inner.closers.insert(key, Box::new(closer));
                Ok(key)
            } else {
                Err(closer)
            }
        };
        let key = match registered {
            Ok(key) => Some(key),
            Err(closer) => {
                closer();
                None
            }
        };
        CloserGuard { token: Arc::downgrade(&self.shared), key }
    }

    pub(super) fn closed(&self) -> &Receiver<Infallible> {
        &self.shared.closed
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_cancelled() { "Cancel(cancelled)" } else { "Cancel(open)" })
    }
}

/// Keeps a closer registered; see [`Cancel::on_cancel`].
#[must_use = "dropping the guard takes the closer back at once"]
pub struct CloserGuard {
    token: Weak<Shared>,
    key: Option<u64>,
}

impl Drop for CloserGuard {
    fn drop(&mut self) {
        if let (Some(token), Some(key)) = (self.token.upgrade(), self.key) {
            // Taken out under the lock, dropped after it: a closer may own a channel's end.
            let closer = token.inner.lock().closers.remove(&key);
            drop(closer);
        }
    }
}

impl fmt::Debug for CloserGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloserGuard({:?})", self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelling_a_parent_cancels_its_children_and_not_the_reverse() {
        let rt = Rt::real();
        let parent = rt.cancel_token();
        let (one, other) = (parent.child(), parent.child());
        one.cancel();
        assert!(one.is_cancelled() && !parent.is_cancelled() && !other.is_cancelled());
        parent.cancel();
        assert!(other.is_cancelled());
        assert!(parent.child().is_cancelled(), "a late child is cancelled at once");
    }

    #[test]
    fn a_closer_runs_once_and_not_after_its_guard_is_gone() {
        let rt = Rt::real();
        let (tx, rx) = rt.channel("closed", 4);
        let token = rt.cancel_token();
        let say = |word: &'static str| {
            let tx = tx.clone();
            move || tx.try_send(word).expect("the channel has room for every closer")
        };
        let kept = token.on_cancel(say("kept"));
        drop(token.on_cancel(say("dropped")));
        token.cancel();
        token.cancel();
        drop((kept, token.on_cancel(say("late"))));
        drop(tx);
        assert_eq!(rx.iter().collect::<Vec<_>>(), ["kept", "late"]);
    }

    #[test]
    fn a_select_wakes_when_its_token_is_cancelled() {
        let rt = Rt::real();
        let token = rt.cancel_token();
        let (waiting, seen) = (token.clone(), rt.clone());
        let waiter = rt.spawn("waiter", move || {
            let (_tx, rx) = seen.channel::<()>("never", 1);
            let mut select = seen.select();
            let (_, cancelled) = (select.recv(&rx), select.cancelled(&waiting));
            select.ready(None) == Some(cancelled)
        });
        token.cancel();
        assert_eq!(waiter.expect("a thread can be started").join(), Ok(true));
    }
}
