//! The numbers of a session: what was sent and not yet acknowledged, and what is expected next.
//!
//! Invariant: `unacked` holds exactly the frames numbered `oldest()..next`, and `bytes` is their sum. A frame
//! leaves only because the peer said it has it, never because it was written to a link.

use std::collections::VecDeque;

use bytes::Bytes;

/// How much may wait for acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendBounds {
    /// Messages after which writers are asked to wait. 1,024, as in the reference.
    pub mark_messages: usize,
    /// Bytes after which writers are asked to wait. 4 MiB.
    pub mark_bytes: usize,
    /// Messages a session may hold at all; one more ends it. 65,536.
    pub max_messages: usize,
    /// Bytes a session may hold at all; beyond them it ends. 64 MiB.
    pub max_bytes: usize,
}

impl Default for SendBounds {
    fn default() -> SendBounds {
        SendBounds { mark_messages: 1_024, mark_bytes: 4 << 20, max_messages: 1 << 16, max_bytes: 64 << 20 }
    }
}

/// What the number of a message that arrived says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was received before.
    Duplicate,
    /// It is the one expected.
    Next,
    /// Some before it are missing.
    Future,
}

/// Both directions of a session, by number.
#[derive(Debug)]
pub struct Numbers {
    next: u64,
    received: u64,
    unacked: VecDeque<Bytes>,
    bytes: usize,
    bounds: SendBounds,
}

impl Numbers {
    /// A session that begins.
    pub fn new(bounds: SendBounds) -> Numbers {
        Numbers { next: 0, received: 0, unacked: VecDeque::new(), bytes: 0, bounds }
    }

    /// The number the next message gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// How many messages were received: the number expected next.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The number of the oldest message the peer may not have; `next` if it has them all.
    pub fn oldest(&self) -> u64 {
        self.next - self.unacked.len() as u64
    }

    /// Messages that wait for acknowledgement.
    pub fn unacked(&self) -> usize {
        self.unacked.len()
    }

    /// Their bytes.
    pub fn unacked_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether writers should wait.
    pub fn above_mark(&self) -> bool {
        self.unacked.len() >= self.bounds.mark_messages || self.bytes >= self.bounds.mark_bytes
    }

    /// Whether it is time to ask the peer what it has.
    pub fn half_full(&self) -> bool {
        self.unacked.len() * 2 >= self.bounds.mark_messages || self.bytes * 2 >= self.bounds.mark_bytes
    }

    /// Keeps the frame of the message numbered `next`. False if that is more than may be held; the frame is
    /// then not kept and the session cannot go on.
    #[must_use]
    pub fn keep(&mut self, frame: Bytes) -> bool {
        let fits = self.unacked.len() < self.bounds.max_messages
            && self.bytes + frame.len() <= self.bounds.max_bytes;
        if fits {
            self.bytes += frame.len();
            self.unacked.push_back(frame);
            self.next += 1;
        }
        fits
    }

    /// Lets go of what the peer has: everything below `peer_has`. A peer that claims what was never sent gets
    /// no more than there is.
    pub fn forget_below(&mut self, peer_has: u64) -> usize {
        let count = peer_has.saturating_sub(self.oldest()).min(self.unacked.len() as u64) as usize;
        for frame in self.unacked.drain(..count) {
            self.bytes -= frame.len();
        }
        // A burst is over: an idle session keeps no room for it.
        if self.unacked.is_empty() && self.unacked.capacity() > 64 {
            self.unacked = VecDeque::new();
        }
        count
    }

    /// The frames the peer may not have, oldest first.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.unacked.iter()
    }

    fn expected(&self) -> u64 {
        // The first message after a reconnect is where counting from one shows.
        let off_by_one = crate::planted!("session_seq_off_by_one") && self.received > 2;
        self.received + u64::from(off_by_one)
    }

    /// What to make of a message with this number.
    pub fn judge(&self, seq: u64) -> Verdict {
        match seq.cmp(&self.expected()) {
            std::cmp::Ordering::Less => Verdict::Duplicate,
            std::cmp::Ordering::Equal => Verdict::Next,
            std::cmp::Ordering::Greater => Verdict::Future,
        }
    }

    /// Counts the message numbered `received` as received.
    pub fn accept(&mut self) {
        self.received += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(len: usize) -> Bytes {
        vec![0; len].into()
    }

    #[test]
    fn a_frame_leaves_only_when_the_peer_has_it() {
        let mut numbers = Numbers::new(SendBounds::default());
        for len in [1, 2, 3] {
            assert!(numbers.keep(frame(len)));
        }
        assert_eq!(numbers.forget_below(0), 0);
        assert_eq!(numbers.forget_below(2), 2);
        assert_eq!((numbers.oldest(), numbers.next(), numbers.unacked_bytes()), (2, 3, 3));
        assert_eq!(numbers.forget_below(1), 0, "an older acknowledgement says nothing new");
    }

    #[test]
    fn a_peer_that_claims_what_was_never_sent_gets_no_more_than_there_is() {
        let mut numbers = Numbers::new(SendBounds::default());
        assert!(numbers.keep(frame(1)));
        assert_eq!(numbers.forget_below(u64::MAX), 1);
        assert_eq!((numbers.oldest(), numbers.next()), (1, 1));
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_takes_no_number() {
        let bounds = SendBounds { max_messages: 2, max_bytes: 10, ..SendBounds::default() };
        let mut numbers = Numbers::new(bounds);
        assert!(!numbers.keep(frame(11)));
        assert!(numbers.keep(frame(5)) && numbers.keep(frame(5)));
        assert!(!numbers.keep(frame(0)));
        assert_eq!(numbers.next(), 2);
    }

    proptest! {
        #[test]
        fn the_buffer_is_what_was_sent_and_not_acknowledged(steps in proptest::collection::vec((any::<bool>(), 0u64..40), 1..80)) {
            let mut numbers = Numbers::new(SendBounds::default());
            let (mut sent, mut acked) = (0u64, 0u64);
            for (send, number) in steps {
                if send {
                    prop_assert!(numbers.keep(frame(number as usize)));
                    sent += 1;
                } else {
                    numbers.forget_below(number);
                    acked = acked.max(number.min(sent));
                }
                prop_assert_eq!((numbers.oldest(), numbers.next()), (acked, sent));
                prop_assert_eq!(numbers.frames().map(Bytes::len).sum::<usize>(), numbers.unacked_bytes());
                prop_assert_eq!(numbers.frames().len() as u64, sent - acked);
            }
        }
    }
}
