//! The bytes that were sent and are not known to have arrived.
//!
//! They lie in chunks of 64 KiB that come from a [`Pool`] and go back to it as soon as every byte in
//! them is acknowledged, so a log that waits for nothing holds nothing. A log takes no more than its
//! bound; what it has taken it never lets go of before the peer said that it has it.
//!
//! Invariant: `base <= acked <= end`; `chunks` covers exactly `base..end` with every chunk but the
//! last one full, `acked` lies in the first chunk, and with `acked == end` there is no chunk at all.

use std::collections::VecDeque;
use std::fmt;

/// The size of one chunk.
pub const CHUNK: usize = 64 * 1024;

/// Chunks that are not in use, kept for the next who needs one. Last in, first out: the chunk that
/// was used a moment ago is still in the cache.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Chunk>,
    free_max: usize,
}

type Chunk = Box<[u8]>;

impl Pool {
    /// A pool that keeps at most `free_max` unused chunks.
    pub fn new(free_max: usize) -> Pool {
        Pool { free: Vec::new(), free_max }
    }

    /// How many unused chunks it keeps now.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    fn take(&mut self) -> Chunk {
        self.free.pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
    }

    fn give(&mut self, chunk: Chunk) {
        if self.free.len() < self.free_max {
            self.free.push(chunk);
        }
    }
}

/// Bytes by offset, from the oldest unacknowledged one on.
pub struct Replay {
    chunks: VecDeque<Chunk>,
    base: u64,
    acked: u64,
    end: u64,
    bound: u64,
}

/// Why bytes cannot be given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// They were let go of, because the peer said that it has them.
    Evicted {
        /// What was asked for.
        wanted: u64,
        /// The first byte there is.
        oldest: u64,
    },
    /// They were never sent.
    Future {
        /// What was asked for.
        wanted: u64,
        /// The offset the next byte will have.
        end: u64,
    },
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Evicted { wanted, oldest } => {
                write!(f, "byte {wanted} was acknowledged before; the oldest one kept is {oldest}")
            }
            ReplayError::Future { wanted, end } => {
                write!(f, "byte {wanted} was never sent; the next one will be {end}")
            }
        }
    }
}

impl std::error::Error for ReplayError {}

impl Replay {
    /// An empty log whose first byte will have the offset `start`, and which holds at most `bound`
    /// bytes.
    pub fn new(start: u64, bound: u64) -> Replay {
        Replay { chunks: VecDeque::new(), base: start, acked: start, end: start, bound }
    }

    /// The oldest byte that is kept: everything below was acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The offset that the next byte will have.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes are kept.
    pub fn len(&self) -> u64 {
        self.end - self.acked
    }

    /// Whether everything was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.end == self.acked
    }

    /// How many more bytes it takes now.
    pub fn room(&self) -> u64 {
        // Offsets end with u64; a log that gets there is full for good.
        self.bound.saturating_sub(self.len()).min(u64::MAX - self.end)
    }

    /// The bound can change at any time; below what is kept it only means that nothing is taken.
    pub fn set_bound(&mut self, bound: u64) {
        self.bound = bound;
    }

    /// How much memory its chunks take.
    pub fn memory(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    /// Takes as many of `bytes` as there is room for, and says how many.
    #[must_use = "what was not taken is still the caller's"]
    pub fn push(&mut self, mut bytes: &[u8], pool: &mut Pool) -> usize {
        let mut taken = 0;
        while !bytes.is_empty() {
            let space = self.space(pool);
            let count = space.len().min(bytes.len());
            if count == 0 {
                break;
            }
            space[..count].copy_from_slice(&bytes[..count]);
            self.commit(count);
            taken += count;
            bytes = &bytes[count..];
        }
        taken
    }

    /// Room for the next bytes in place, at most up to the end of a chunk: read into it, then
    /// [`commit`](Replay::commit) what came. Empty when the log is full.
    pub fn space(&mut self, pool: &mut Pool) -> &mut [u8] {
        let room = self.room();
        if room == 0 {
            return &mut [];
        }
        let used = (self.end - self.base) as usize;
        if used == self.chunks.len() * CHUNK {
            self.chunks.push_back(pool.take());
        }
        let last = self.chunks.back_mut().expect("pushed above if there was none with room");
        let from = used % CHUNK;
        let to = CHUNK.min(from + usize::try_from(room).unwrap_or(CHUNK).min(CHUNK));
        &mut last[from..to]
    }

    /// The first `count` bytes of what [`space`](Replay::space) gave are part of the log now.
    pub fn commit(&mut self, count: usize) {
        let end = self.end + count as u64;
        assert!(end - self.base <= (self.chunks.len() * CHUNK) as u64, "more was committed than given");
        self.end = end;
    }

    /// Gives back a chunk that [`space`](Replay::space) took and nothing was read into.
    pub fn tidy(&mut self, pool: &mut Pool) {
        if self.is_empty() {
            self.release_all(pool);
        }
    }

    /// The peer has everything below `upto`. Gives how many bytes were let go of: none for an old
    /// acknowledgement that comes late.
    pub fn ack(&mut self, upto: u64, pool: &mut Pool) -> Result<u64, ReplayError> {
        if upto > self.end {
            return Err(ReplayError::Future { wanted: upto, end: self.end });
        }
        let freed = upto.saturating_sub(self.acked);
        self.acked += freed;
        if self.is_empty() {
            self.release_all(pool);
        }
        while self.acked - self.base >= CHUNK as u64 {
            pool.give(self.chunks.pop_front().expect("acked lies within the chunks"));
            self.base += CHUNK as u64;
        }
        Ok(freed)
    }

    /// The bytes from `offset` on, at most `max`, in order and as they lie.
    pub fn since(&self, offset: u64, max: usize) -> Result<Slices<'_>, ReplayError> {
        if offset < self.acked {
            return Err(ReplayError::Evicted { wanted: offset, oldest: self.acked });
        }
        if offset > self.end {
            return Err(ReplayError::Future { wanted: offset, end: self.end });
        }
        let left = usize::try_from(self.end - offset).unwrap_or(usize::MAX).min(max);
        Ok(Slices { replay: self, at: (offset - self.base) as usize, left })
    }

    /// `count` bytes passed by without being kept. Only an empty log can be passed.
    pub fn skip(&mut self, count: u64, pool: &mut Pool) {
        assert!(self.is_empty(), "bytes cannot overtake the ones that are kept");
        self.release_all(pool);
        self.end += count;
        self.acked = self.end;
        self.base = self.end;
    }

    /// Lets go of everything, whatever the peer has: the pipe is over.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.acked = self.end;
        self.release_all(pool);
    }

    fn release_all(&mut self, pool: &mut Pool) {
        self.chunks.drain(..).for_each(|chunk| pool.give(chunk));
        self.base = self.end;
    }
}

impl fmt::Debug for Replay {
    // Not the bytes: they are somebody's secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replay({}..{}, {} chunks)", self.acked, self.end, self.chunks.len())
    }
}

/// Pieces of a [`Replay`], one for each chunk they touch.
#[derive(Clone, Debug)]
pub struct Slices<'a> {
    replay: &'a Replay,
    at: usize,
    left: usize,
}

impl Slices<'_> {
    /// How many bytes all of them hold.
    pub fn bytes(&self) -> usize {
        self.left
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let from = self.at % CHUNK;
        let count = (CHUNK - from).min(self.left);
        let slice = &self.replay.chunks[self.at / CHUNK][from..from + count];
        self.at += count;
        self.left -= count;
        Some(slice)
    }
}

#[cfg(test)]
mod tests;
