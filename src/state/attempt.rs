//! Attempts with a number, of which only the newest counts.
//!
//! A dial that was given up may still answer, and its answer holds a socket. Whoever starts
//! something that answers later takes a number here and brings the answer back with it;
//! [`Attempts::settle`] is the one place where an answer nobody waits for is closed.
//!
//! Invariant: numbers rise by one, and at most one attempt is out or open. Each answer is used or
//! closed exactly once.

/// The attempts at one thing: at most one of them is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    last: u64,
    now: Now,
}

/// Where the newest attempt stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Now {
    /// Nothing is wanted; whatever answers is stale.
    #[default]
    Idle,
    /// The newest attempt has not answered yet.
    Out,
    /// It answered, and what it brought is in use.
    Open,
}

impl Attempts {
    /// Nothing was tried yet.
    pub fn new() -> Attempts {
        Attempts::default()
    }

    /// Begins an attempt and gives its number. Every earlier one is stale from here on; what an
    /// earlier one had opened is the caller's to close.
    pub fn begin(&mut self) -> u64 {
        self.last += 1;
        self.now = Now::Out;
        self.last
    }

    /// Hands an answer to whoever waits for it, or closes it: it is stale if another attempt was
    /// begun, if this one was given up, or if it has answered before.
    pub fn settle<T>(&mut self, attempt: u64, answer: T, close: impl FnOnce(T)) -> Option<T> {
        if self.is_out(attempt) || crate::planted!("stale_dial_accepted") {
            self.now = Now::Open;
            return Some(answer);
        }
        crate::mark!(stale_answer_closed);
        close(answer);
        None
    }

    /// The newest attempt is over, whether it failed, was given up or lost what it had opened.
    /// Gives its number back if there was one.
    pub fn end(&mut self) -> Option<u64> {
        let ended = self.wanted();
        self.now = Now::Idle;
        ended
    }

    /// Ends `attempt` if it is the wanted one: for news that carry a number ("link 7 was lost").
    pub fn end_if(&mut self, attempt: u64) -> bool {
        let wanted = self.wanted() == Some(attempt);
        if wanted {
            self.now = Now::Idle;
        }
        wanted
    }

    /// The attempt that is out or open.
    pub fn wanted(&self) -> Option<u64> {
        (self.now != Now::Idle).then_some(self.last)
    }

    /// Whether `attempt` is the newest and still has to answer.
    pub fn is_out(&self, attempt: u64) -> bool {
        self.now == Now::Out && self.last == attempt
    }

    /// Whether what `attempt` opened is what is in use now.
    pub fn is_open(&self, attempt: u64) -> bool {
        self.now == Now::Open && self.last == attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_newest_answer_is_used_and_the_others_are_closed() {
        let mut attempts = Attempts::new();
        let first = attempts.begin();
        let second = attempts.begin();
        let mut closed = vec![];
        assert_eq!(attempts.settle(first, "first", |answer| closed.push(answer)), None);
        assert_eq!(attempts.settle(second, "second", |answer| closed.push(answer)), Some("second"));
        assert_eq!(attempts.settle(second, "again", |answer| closed.push(answer)), None);
        assert_eq!(closed, ["first", "again"]);
        assert!(attempts.is_open(second));
    }

    #[test]
    fn an_answer_after_giving_up_is_closed() {
        let mut attempts = Attempts::new();
        let dial = attempts.begin();
        assert_eq!(attempts.end(), Some(dial));
        assert_eq!(attempts.end(), None);
        let mut closed = false;
        assert_eq!(attempts.settle(dial, (), |()| closed = true), None);
        assert!(closed);
    }

    #[test]
    fn news_of_an_old_attempt_do_not_end_the_new_one() {
        let mut attempts = Attempts::new();
        let old = attempts.begin();
        let new = attempts.begin();
        assert!(!attempts.end_if(old));
        assert_eq!(attempts.wanted(), Some(new));
        assert!(attempts.end_if(new));
        assert_eq!(attempts.wanted(), None);
    }

    proptest! {
        /// The model remembers every attempt by itself; answers come in any order, late, twice.
        #[test]
        fn each_answer_is_used_or_closed_exactly_once(ops in prop::collection::vec((0..3u8, 0..8u64), 0..60)) {
            let mut attempts = Attempts::new();
            let mut begun = 0;
            let mut waiting = None;
            for (op, which) in ops {
                match op {
                    0 => {
                        begun += 1;
                        prop_assert_eq!(attempts.begin(), begun);
                        waiting = Some(begun);
                    }
                    1 => {
                        attempts.end();
                        waiting = None;
                    }
                    _ => {
                        let mut closed = 0;
                        let used = attempts.settle(which, which, |_| closed += 1).is_some();
                        prop_assert_eq!(used, waiting == Some(which));
                        prop_assert_eq!(closed, u32::from(!used));
                        if used {
                            waiting = None;
                        }
                    }
                }
            }
        }
    }
}
