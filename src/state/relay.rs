//! The link that brings a stream's parts here from the replica that runs it.
//!
//! One relay serves every follower of a stream on this replica. It decides when to dial and whom, which
//! answers count, which parts are next, and when to look again at who owns the stream.
//!
//! Invariant: at most one dial is out or open, and it is the newest; anything another one brings is
//! dropped, and the dial closed, in one place (`stale`). `last` only rises within a turn, by one.
//!
//! Whoever drives it carries out the actions in order, brings back what comes of them with the dial's
//! number, and calls [`Relay::step`] with [`Input::Alarm`] when [`Relay::deadline`] has come.

use std::time::Duration;

use uuid::Uuid;

use super::backoff::{Backoff, Budget, Next, Policy};
use super::time::Moment;

/// How long a link may be silent before it is dead; each side beats three times as often.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How many parts of a turn that was not seen to begin are kept while the database is asked.
pub const EARLY_MAX: usize = 64;

/// 100 ms to 5 s: what Coder's relay waited at least, and what a viewer takes for a stall at most. Never
/// at once: the owner is read before each try, and a worker that just died is still its owner.
const REDIAL: Policy = Policy {
    first: Duration::from_millis(100),
    cap: Duration::from_secs(5),
    at_once: false,
    reset_after: Duration::from_secs(10),
    budget: Budget::Forever,
};

/// What the followers need: the parts of `turn` after number `after`, from `worker`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The replica that runs the turn.
    pub worker: Uuid,
    /// The turn.
    pub turn: u32,
    /// The last part that is here, or in a message.
    pub after: u32,
}

/// Where the link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nothing is wanted.
    Idle,
    /// A dial is out.
    Dialing {
        /// Its number.
        dial: u64,
        /// Whom it calls.
        worker: Uuid,
    },
    /// Parts come in.
    Attached {
        /// The dial that brought it.
        dial: u64,
        /// Who is at the other end.
        worker: Uuid,
        /// The turn that was asked for.
        turn: u32,
        /// The last part of it that is here.
        last: u32,
        /// When the other end was last heard of.
        heard: Moment,
    },
    /// The last dial or link failed.
    Waiting {
        /// When to look again at who owns the stream; never while somebody is looking.
        until: Moment,
        /// Who owned it.
        worker: Uuid,
    },
}

/// What happens to a relay. `P` is a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input<P> {
    /// The stream runs elsewhere and somebody here follows it.
    Wanted(Want),
    /// The run has ended; what is left of it may still be fetched.
    Over,
    /// Nobody follows, or the stream runs here.
    Unwanted,
    /// A dial came to its end.
    Dialed {
        /// Which.
        dial: u64,
        /// Whether there is a link now.
        ok: bool,
    },
    /// A part came.
    Part {
        /// On which link.
        dial: u64,
        /// Of which turn.
        turn: u32,
        /// Its number.
        n: u32,
        /// The part.
        part: P,
    },
    /// The worker let go of the parts before `first`.
    Evicted {
        /// On which link.
        dial: u64,
        /// Of which turn.
        turn: u32,
        /// The first part it still has.
        first: u32,
    },
    /// The worker says that the turn has ended with part `last`.
    Ended {
        /// On which link.
        dial: u64,
        /// Which turn.
        turn: u32,
        /// Its last part.
        last: u32,
    },
    /// The other end is alive.
    Beat {
        /// On which link.
        dial: u64,
    },
    /// The other end does not run the stream, or the link is gone.
    Closed {
        /// Which link.
        dial: u64,
    },
    /// Whoever looked says who owns the stream: nobody else, or this.
    Checked(Option<Want>),
    /// Looking failed.
    Unchecked,
    /// The deadline has come.
    Alarm,
}

/// Why a dial is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A stream was seen to run elsewhere.
    Wanted,
    /// A dial or a link had failed.
    Redial,
}

/// Why a link or a dial is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Another worker has the stream.
    Superseded,
    /// Nobody needs it any more.
    Unwanted,
    /// The turn has ended and everything is here.
    Complete,
    /// It was silent for too long.
    Silent,
    /// The answer of a dial that was given up.
    Stale,
}

/// What must be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<P> {
    /// Call `worker`; the answer is [`Input::Dialed`].
    Dial {
        /// The number of this dial.
        dial: u64,
        /// Whom.
        worker: Uuid,
        /// Why.
        source: Source,
    },
    /// Ask on an open link for the parts of `turn` after `after`.
    Ask {
        /// Which link.
        dial: u64,
        /// Which turn.
        turn: u32,
        /// The last part that is here.
        after: u32,
    },
    /// Give up a dial, or close a link.
    Close {
        /// Which.
        dial: u64,
        /// Why.
        why: Why,
    },
    /// The next part of the turn is here.
    Take {
        /// The turn.
        turn: u32,
        /// Its number.
        n: u32,
        /// The part.
        part: P,
    },
    /// Parts of the turn are lost: followers clear their draft and go on at `first`.
    Gap {
        /// The turn.
        turn: u32,
        /// The first part there is.
        first: u32,
    },
    /// Look in the store at who owns the stream; the answer is [`Input::Checked`] or
    /// [`Input::Unchecked`].
    Check,
    /// Something newer than the stream's last read was seen: read it.
    Read,
    /// The link is down, or up again after it was: followers are told.
    Degraded(bool),
}

/// The relay of one stream.
#[derive(Clone, Debug)]
pub struct Relay<P> {
    link: Link,
    /// What is wanted; kept through dials and waits.
    want: Option<Want>,
    /// The run has ended: owners need not be looked for, and once all parts are here the link goes.
    over: bool,
    dials: u64,
    backoff: Backoff,
    source: Source,
    degraded: bool,
    early: Vec<(u32, u32, P)>,
}

impl<P> Default for Relay<P> {
    fn default() -> Relay<P> {
        Relay::new()
    }
}

impl<P> Relay<P> {
    /// Nothing is wanted yet.
    pub fn new() -> Relay<P> {
        Relay {
            link: Link::Idle,
            want: None,
            over: false,
            dials: 0,
            backoff: Backoff::new(REDIAL),
            source: Source::Wanted,
            degraded: false,
            early: Vec::new(),
        }
    }

    /// Where the link stands.
    pub fn link(&self) -> Link {
        self.link
    }

    /// When to call `step` though nothing happens.
    pub fn deadline(&self) -> Option<Moment> {
        match self.link {
            Link::Idle | Link::Dialing { .. } => None,
            Link::Attached { heard, .. } => Some(heard + SILENCE_MAX),
            Link::Waiting { until, .. } => (until != Moment::NEVER).then_some(until),
        }
    }

    /// Decides. `draw` is any random number.
    pub fn step(&mut self, now: Moment, draw: u64, input: Input<P>, sink: &mut Vec<Action<P>>) {
        match (self.link, input) {
            (_, Input::Unwanted) => self.rest(Why::Unwanted, sink),

            (link, Input::Wanted(want)) => self.wanted(now, link, want, sink),

            (Link::Waiting { until: Moment::NEVER, .. }, Input::Checked(Some(want))) => {
                self.want = Some(want);
                self.over = false;
                self.dial(want.worker, sink);
            }
            (Link::Waiting { until: Moment::NEVER, .. }, Input::Checked(None)) => {
                self.rest(Why::Unwanted, sink)
            }
            (Link::Waiting { until: Moment::NEVER, worker }, Input::Unchecked) => {
                self.wait(now, draw, worker)
            }

            // The run ended while a dial was in flight: it goes on, for what is left.
            (_, Input::Over) => self.over = true,

            (Link::Dialing { dial, worker }, Input::Dialed { dial: answer, ok })
                if dial == answer || (ok && crate::planted!("stale relay dial accepted")) =>
            {
                if ok {
                    self.attach(now, dial, worker, sink);
                } else {
                    self.lost(now, draw, worker, sink);
                }
            }

            (Link::Attached { dial, .. }, Input::Part { dial: from, turn, n, part }) if dial == from => {
                self.heard(now);
                self.part(turn, n, part, sink);
            }
            (Link::Attached { dial, turn, last, .. }, Input::Evicted { dial: from, turn: of, first })
                if dial == from =>
            {
                self.heard(now);
                if of == turn && first > last + 1 {
                    sink.push(Action::Gap { turn, first });
                    self.passed(first - 1);
                }
            }
            (Link::Attached { dial, turn, .. }, Input::Ended { dial: from, turn: of, last })
                if dial == from =>
            {
                self.heard(now);
                self.ended(turn, of, last, sink);
            }
            (Link::Attached { dial, .. }, Input::Beat { dial: from }) if dial == from => self.heard(now),
            (Link::Attached { dial, worker, .. }, Input::Closed { dial: closed }) if dial == closed => {
                self.lost(now, draw, worker, sink);
            }
            (Link::Dialing { dial, worker }, Input::Closed { dial: closed }) if dial == closed => {
                self.lost(now, draw, worker, sink);
            }

            (Link::Attached { dial, worker, heard, .. }, Input::Alarm) if heard + SILENCE_MAX <= now => {
                sink.push(Action::Close { dial, why: Why::Silent });
                self.lost(now, draw, worker, sink);
            }
            (Link::Waiting { until, worker }, Input::Alarm) if until <= now => {
                if self.over {
                    // The turn is closed: whoever ran it is the one to ask, whoever owns the stream now.
                    self.dial(worker, sink);
                } else {
                    self.link = Link::Waiting { until: Moment::NEVER, worker };
                    sink.push(Action::Check);
                }
            }

            // The only place where the answer of a dial that was given up ends.
            (_, Input::Dialed { dial, ok: true }) => {
                crate::mark!(relay_stale_dial_dropped);
                sink.push(Action::Close { dial, why: Why::Stale });
            }
            // From links that were let go of, alarms that came early, and answers nobody waits for.
            (
                _,
                Input::Dialed { ok: false, .. }
                | Input::Part { .. }
                | Input::Evicted { .. }
                | Input::Ended { .. }
                | Input::Beat { .. }
                | Input::Closed { .. }
                | Input::Checked(_)
                | Input::Unchecked
                | Input::Alarm,
            ) => {}
        }
        debug_assert!(self.early.len() <= EARLY_MAX);
    }

    fn wanted(&mut self, now: Moment, link: Link, want: Want, sink: &mut Vec<Action<P>>) {
        self.want = Some(want);
        self.over = false;
        match link {
            Link::Idle => {
                self.source = Source::Wanted;
                self.dial(want.worker, sink);
            }
            // The same worker again changes nothing; the turn is asked for once the link is there.
            Link::Dialing { worker, .. } | Link::Waiting { worker, .. } if worker == want.worker => {}
            Link::Attached { dial, worker, turn, last, .. } if worker == want.worker => {
                if turn != want.turn {
                    self.ask(now, dial, want, sink);
                } else if want.after > last {
                    // A message came before the parts it stands for.
                    self.passed(want.after);
                }
            }
            Link::Dialing { dial, .. } | Link::Attached { dial, .. } => {
                crate::mark!(relay_worker_switched);
                sink.push(Action::Close { dial, why: Why::Superseded });
                self.source = Source::Wanted;
                self.dial(want.worker, sink);
            }
            Link::Waiting { .. } => {
                self.source = Source::Wanted;
                self.dial(want.worker, sink);
            }
        }
    }

    fn dial(&mut self, worker: Uuid, sink: &mut Vec<Action<P>>) {
        self.dials += 1;
        self.early.clear();
        self.link = Link::Dialing { dial: self.dials, worker };
        sink.push(Action::Dial { dial: self.dials, worker, source: self.source });
    }

    fn attach(&mut self, now: Moment, dial: u64, worker: Uuid, sink: &mut Vec<Action<P>>) {
        let Some(want) = self.want else {
            sink.push(Action::Close { dial, why: Why::Unwanted });
            self.link = Link::Idle;
            return;
        };
        debug_assert_eq!(want.worker, worker, "a dial to another worker would have been superseded");
        self.backoff.healthy(now);
        self.ask(now, dial, want, sink);
        if std::mem::take(&mut self.degraded) {
            sink.push(Action::Degraded(false));
        }
    }

    fn ask(&mut self, now: Moment, dial: u64, want: Want, sink: &mut Vec<Action<P>>) {
        let Want { worker, turn, mut after } = want;
        if after > 0 && crate::planted!("relay resumes one part late") {
            after += 1;
        }
        self.link = Link::Attached { dial, worker, turn, last: after, heard: now };
        sink.push(Action::Ask { dial, turn, after });
        for (turn, n, part) in std::mem::take(&mut self.early) {
            self.part(turn, n, part, sink);
        }
    }

    fn part(&mut self, of: u32, n: u32, part: P, sink: &mut Vec<Action<P>>) {
        let Link::Attached { dial, turn, last, .. } = self.link else { return };
        if of > turn {
            // The turn was not seen to begin yet: the store says whether it has.
            if self.early.len() < EARLY_MAX {
                self.early.push((of, n, part));
            }
            crate::mark!(relay_part_came_early);
            sink.push(Action::Read);
        } else if of < turn || n <= last {
            crate::mark!(relay_part_again);
        } else if n == last + 1 {
            self.passed(n);
            sink.push(Action::Take { turn, n, part });
        } else {
            crate::mark!(relay_gap_asked);
            sink.push(Action::Ask { dial, turn, after: last });
        }
    }

    fn ended(&mut self, turn: u32, of: u32, end: u32, sink: &mut Vec<Action<P>>) {
        let Link::Attached { dial, last, .. } = self.link else { return };
        match of.cmp(&turn) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Greater => sink.push(Action::Read),
            std::cmp::Ordering::Equal if last < end => sink.push(Action::Ask { dial, turn, after: last }),
            // All of it is here. The link stays if the worker may go on with another turn.
            std::cmp::Ordering::Equal if self.over => self.rest(Why::Complete, sink),
            std::cmp::Ordering::Equal => sink.push(Action::Read),
        }
    }

    /// The dial or the link failed.
    fn lost(&mut self, now: Moment, draw: u64, worker: Uuid, sink: &mut Vec<Action<P>>) {
        self.source = Source::Redial;
        self.wait(now, draw, worker);
        if !self.degraded {
            self.degraded = true;
            sink.push(Action::Degraded(true));
        }
    }

    fn wait(&mut self, now: Moment, draw: u64, worker: Uuid) {
        let Next::TryAt(until) = self.backoff.failed(now, draw) else {
            unreachable!("the policy has no budget to use up")
        };
        self.link = Link::Waiting { until, worker };
    }

    fn rest(&mut self, why: Why, sink: &mut Vec<Action<P>>) {
        if let Link::Dialing { dial, .. } | Link::Attached { dial, .. } = self.link {
            sink.push(Action::Close { dial, why });
        }
        if std::mem::take(&mut self.degraded) {
            sink.push(Action::Degraded(false));
        }
        self.link = Link::Idle;
        self.want = None;
        self.over = false;
        self.early.clear();
    }

    fn heard(&mut self, now: Moment) {
        if let Link::Attached { heard, .. } = &mut self.link {
            *heard = now;
        }
    }

    /// Parts up to `n` are here, or will not come. A redial asks for what follows.
    fn passed(&mut self, n: u32) {
        if let Link::Attached { last, .. } = &mut self.link {
            *last = (*last).max(n);
        }
        if let Some(want) = &mut self.want {
            want.after = want.after.max(n);
        }
    }
}

#[cfg(test)]
mod tests;
