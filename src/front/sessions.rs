//! How many live reads one caller has open.

use std::collections::HashMap;
use std::sync::Arc;

use super::auth::Principal;
use crate::metrics::Counter;
use crate::rt::{Hasher, Lock, Rt};
use crate::wire::http::Response;

/// Counts live links by the name of who opened them.
///
/// Invariant: a name stands here with the number of [`Seat`]s that name it.
pub struct Sessions {
    most: u64,
    refused: Counter,
    open: Lock<HashMap<String, u64, Hasher>>,
}

/// One live link's place; given back when it is dropped, which is when the link is gone.
pub(super) struct Seat {
    sessions: Arc<Sessions>,
    name: String,
}

impl Sessions {
    /// So many for each caller; `refused` counts those that were one too many.
    pub fn new(rt: &Rt, most: u64, refused: Counter) -> Arc<Sessions> {
        Arc::new(Sessions { most, refused, open: Lock::new(HashMap::with_hasher(rt.hasher())) })
    }

    /// A place for one more. Who is asked for no credentials is not told apart, and not counted.
    pub(super) fn seat(self: &Arc<Sessions>, who: &Principal) -> Result<Option<Seat>, Response> {
        if *who == Principal::anonymous() || *who == Principal::nobody() {
            return Ok(None);
        }
        let mut open = self.open.lock();
        let count = open.entry(who.name.clone()).or_default();
        if *count >= self.most {
            self.refused.inc();
            let detail = format!("{} live reads of {} are open already: close one", self.most, who.name);
            return Err(Response::problem(429, "too_many_sessions", &detail).header("retry-after", "1"));
        }
        *count += 1;
        Ok(Some(Seat { sessions: self.clone(), name: who.name.clone() }))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.sessions.open.lock();
        if let Some(count) = open.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_so_many_and_gets_them_back() {
        let sessions = Sessions::new(&Rt::real(), 1, Counter::default());
        let who = |name: &str| Principal { name: name.into(), ..Principal::nobody() };
        let first = sessions.seat(&who("a")).expect("there is room").expect("a seat");
        assert_eq!(sessions.seat(&who("a")).err().map(|response| response.status()), Some(429));
        assert!(sessions.seat(&who("b")).is_ok(), "another caller has a place of its own");
        assert!(sessions.seat(&Principal::anonymous()).expect("not counted").is_none());
        drop(first);
        assert!(sessions.seat(&who("a")).is_ok());
        assert_eq!(sessions.refused.get(), 1);
    }
}
