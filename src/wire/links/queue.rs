//! What is waiting to leave on one link.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use crate::wire::frame::Frame;
use crate::wire::http::Body;

/// Bytes on their way out.
#[derive(Debug)]
pub(super) enum Bytes {
    Own(Vec<u8>),
    Static(&'static [u8]),
    Shared(Arc<[u8]>),
    /// Counted once more by whoever fans it out: threads that counted the frame itself, for each of their links,
    /// would fight over one cache line.
    Frame(Arc<Frame>),
    /// A frame without what was put around it for another encoding.
    Payload(Arc<Frame>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Own(bytes) => bytes,
            Bytes::Static(bytes) => bytes,
            Bytes::Shared(bytes) => bytes,
            Bytes::Frame(frame) => frame.bytes(),
            Bytes::Payload(frame) => frame.payload(),
        }
    }
}

impl From<Body> for Bytes {
    fn from(body: Body) -> Bytes {
        match body {
            Body::Empty => Bytes::Static(&[]),
            Body::Bytes(bytes) => Bytes::Own(bytes),
            Body::Static(bytes) => Bytes::Static(bytes),
            Body::Shared(bytes) => Bytes::Shared(bytes),
        }
    }
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// Whether it counts against the link's bound.
    live: bool,
}

/// First in, first out.
///
/// Invariant: `front` bytes of the first piece have left; `live` is the sum of what has not left of
/// pieces that count; no piece is empty; `pushed - left` is what is queued. Nothing is behind no first piece,
/// and an empty queue has no buffer: a link that gets one message at a time never owns one.
#[derive(Debug, Default)]
pub(super) struct Queue {
    first: Option<Piece>,
    rest: VecDeque<Piece>,
    front: usize,
    live: usize,
    pushed: u64,
    left: u64,
}

/// The most pieces one gathered write takes.
pub(crate) const GATHER_MAX: usize = 64;
/// The most bytes one gathered write takes.
pub(super) const GATHER_BYTES: usize = 64 * 1024;

impl Queue {
    pub(super) fn push(&mut self, bytes: Bytes, live: bool) {
        let len = bytes.as_slice().len();
        if len == 0 {
            return;
        }
        self.pushed += len as u64;
        if live {
            self.live += len;
        }
        let piece = Piece { bytes, live };
        if self.first.is_none() {
            self.first = Some(piece);
        } else {
            self.rest.push_back(piece);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// How many pieces are queued.
    pub(super) fn pieces(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    /// Queued bytes that count.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// The position behind everything queued, as [`Queue::left`] will say once it has left.
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }

    /// How many bytes have left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// What to write next: at least one slice if anything is queued. Answers how many.
    pub(super) fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut total = 0;
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(self.first.iter().chain(&self.rest)) {
            let bytes = piece.bytes.as_slice();
            let bytes = if count == 0 { &bytes[self.front..] } else { bytes };
            *slice = IoSlice::new(bytes);
            total += bytes.len();
            count += 1;
            if total >= GATHER_BYTES {
                break;
            }
        }
        count
    }

    /// Forgets `n` bytes that were written.
    pub(super) fn wrote(&mut self, mut n: usize) {
        self.left += n as u64;
        while n > 0 {
            let Some(piece) = &self.first else { return };
            let here = (piece.bytes.as_slice().len() - self.front).min(n);
            if piece.live {
                self.live -= here;
            }
            n -= here;
            self.front += here;
            if self.front == piece.bytes.as_slice().len() {
                self.first = self.rest.pop_front();
                self.front = 0;
            }
        }
        if self.first.is_none() && self.rest.capacity() > 0 {
            self.rest = VecDeque::new();
        }
    }

    /// Drops everything behind the piece that has begun to leave.
    pub(super) fn drop_unbegun(&mut self) {
        let begun = if self.front > 0 { self.first.take() } else { None };
        for piece in self.first.take().into_iter().chain(std::mem::take(&mut self.rest)) {
            let len = piece.bytes.as_slice().len();
            self.pushed -= len as u64;
            if piece.live {
                self.live -= len;
            }
        }
        self.first = begun;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(queue: &Queue) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); GATHER_MAX];
        let count = queue.gather(&mut slices);
        slices[..count].iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn bytes_leave_in_order_however_they_are_cut() {
        for step in 1..12 {
            let mut queue = Queue::default();
            queue.push(Bytes::Static(b"abc"), true);
            queue.push(Bytes::Static(b""), true);
            queue.push(Bytes::Frame(Frame::text("de").into()), false);
            queue.push(Bytes::Payload(Frame::text("fg").into()), true);
            assert_eq!((queue.live(), queue.pushed()), (5, 9));
            let mut seen = Vec::new();
            while !queue.is_empty() {
                let bytes = flat(&queue);
                let n = step.min(bytes.len());
                seen.extend_from_slice(&bytes[..n]);
                queue.wrote(n);
            }
            assert_eq!(seen, b"abc\x81\x02defg");
            assert_eq!((queue.live(), queue.left()), (0, 9));
        }
    }

    #[test]
    fn what_has_begun_is_not_dropped() {
        let mut queue = Queue::default();
        queue.push(Bytes::Static(b"abc"), true);
        queue.push(Bytes::Static(b"def"), true);
        queue.wrote(1);
        queue.drop_unbegun();
        assert_eq!((flat(&queue), queue.live(), queue.pushed()), (b"bc".to_vec(), 2, 3));
        queue.wrote(2);
        queue.drop_unbegun();
        assert!(queue.is_empty());
    }

    #[test]
    fn one_write_takes_a_bounded_number_of_pieces() {
        let mut queue = Queue::default();
        for _ in 0..200 {
            queue.push(Bytes::Static(b"x"), true);
        }
        let mut slices = [IoSlice::new(&[]); GATHER_MAX];
        assert_eq!(queue.gather(&mut slices), GATHER_MAX);
    }
}
