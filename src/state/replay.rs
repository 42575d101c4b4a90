//! The bytes that were sent and are not known to have arrived.
//!
//! They lie in chunks of 64 KiB that come from a [`Pool`] and go back to it as soon as every byte in
//! them is acknowledged, so a log that waits for nothing holds nothing. A log takes no more than its
//! bound; what it has taken it never lets go of before the peer said that it has it. From one log to
//! another bytes move with their chunk, or by copying where that would leave a chunk mostly empty.
//!
//! Invariant: the runs of `runs` follow each other without a gap up to `end`, `acked` lies in the first
//! one, and with `acked == end` there is none but perhaps an empty one that waits to be read into.

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

    /// Makes both hold the same number, as far as their bounds go: where chunks pass from the owner of one
    /// to the owner of the other, they have to find their way back.
    pub fn level(&mut self, other: &mut Pool) {
        let (from, to) = if self.free() > other.free() { (self, other) } else { (other, self) };
        let count = ((from.free() - to.free()) / 2).min(to.free_max.saturating_sub(to.free()));
        to.free.extend(from.free.drain(from.free() - count..));
    }

    /// At most `count` chunks that are not in use, as a pool of its own: for whoever cannot keep this one
    /// while it works. [`put_back`](Pool::put_back) ends that.
    pub fn draw(&mut self, count: usize) -> Pool {
        let from = self.free() - count.min(self.free());
        Pool { free: self.free.split_off(from), free_max: self.free_max }
    }

    /// Takes back what [`draw`](Pool::draw) gave, or what became of it.
    pub fn put_back(&mut self, drawn: Pool) {
        drawn.free.into_iter().for_each(|chunk| self.give(chunk));
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
    runs: VecDeque<Run>,
    acked: u64,
    end: u64,
    bound: u64,
}

/// Bytes that follow each other, in one chunk.
struct Run {
    chunk: Chunk,
    /// The offset of the first one.
    off: u64,
    /// Where in the chunk it lies.
    from: usize,
    len: usize,
}

impl Run {
    fn end(&self) -> u64 {
        self.off + self.len as u64
    }
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
        Replay { runs: VecDeque::new(), acked: start, end: start, bound }
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
        self.runs.len() * CHUNK
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
            self.commit(count, pool);
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
        if self.runs.back().is_none_or(|run| run.from + run.len == CHUNK) {
            self.runs.push_back(Run { chunk: pool.take(), off: self.end, from: 0, len: 0 });
        }
        let last = self.runs.back_mut().expect("pushed above if there was none with room");
        let from = last.from + last.len;
        let to = CHUNK.min(from + usize::try_from(room).unwrap_or(CHUNK).min(CHUNK));
        &mut last.chunk[from..to]
    }

    /// The same in as many chunks as it takes for `max` bytes, for one read into all of them.
    pub fn spaces(&mut self, max: usize, pool: &mut Pool) -> impl Iterator<Item = &mut [u8]> {
        let room = usize::try_from(self.room()).unwrap_or(usize::MAX).min(max);
        let mut there = self.runs.back().map_or(0, |last| CHUNK - last.from - last.len);
        let known = self.runs.len() - usize::from(there > 0);
        while there < room {
            self.runs.push_back(Run { chunk: pool.take(), off: self.end, from: 0, len: 0 });
            there += CHUNK;
        }
        let mut left = room;
        self.runs.range_mut(known..).map_while(move |run| {
            let from = run.from + run.len;
            let to = CHUNK.min(from + left);
            left -= to - from;
            (from < to).then(|| &mut run.chunk[from..to])
        })
    }

    /// The first `count` bytes of what [`space`](Replay::space) or [`spaces`](Replay::spaces) gave are part of the
    /// log now. Chunks that nothing came into go back.
    pub fn commit(&mut self, count: usize, pool: &mut Pool) {
        let mut left = count;
        let known = self.runs.iter().rposition(|run| run.len > 0).unwrap_or(0);
        for run in self.runs.range_mut(known.min(self.runs.len())..) {
            let fits = left.min(CHUNK - run.from - run.len);
            if run.len == 0 {
                run.off = self.end;
            }
            run.len += fits;
            self.end += fits as u64;
            left -= fits;
        }
        assert!(left == 0, "more was committed than given");
        while let Some(empty) = self.runs.pop_back_if(|last| last.len == 0) {
            pool.give(empty.chunk);
        }
    }

    /// Takes bytes out of the front of `other`, as many as there is room for, and says how many.
    #[must_use = "what was not taken is still in the other one"]
    pub fn pull(&mut self, other: &mut Replay, pool: &mut Pool) -> u64 {
        let mut taken = 0;
        loop {
            let moved = self.pull_chunks(other, pool);
            let copied = match other.since(other.acked, CHUNK).expect("the oldest byte is there").next() {
                Some(slice) => self.push(slice, pool) as u64,
                None => 0,
            };
            other.ack(other.acked + copied, pool).expect("no more than there is");
            taken += moved + copied;
            if moved + copied == 0 {
                return taken;
            }
        }
    }

    /// The same without copying: only chunks that are worth it, and have room whole.
    #[must_use = "what was not taken is still in the other one"]
    pub fn pull_chunks(&mut self, other: &mut Replay, pool: &mut Pool) -> u64 {
        let before = self.end;
        while let Some(run) = other.runs.front() {
            let skip = (other.acked - run.off) as usize;
            let len = run.len - skip;
            if len < CHUNK / 2 || len as u64 > self.room() {
                break;
            }
            if let Some(empty) = self.runs.pop_back_if(|last| last.len == 0) {
                pool.give(empty.chunk);
            }
            let run = other.runs.pop_front().expect("looked at just now");
            self.runs.push_back(Run { chunk: run.chunk, off: self.end, from: run.from + skip, len });
            self.end += len as u64;
            other.acked += len as u64;
        }
        self.end - before
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
        while let Some(run) = self.runs.pop_front_if(|run| run.end() <= self.acked) {
            pool.give(run.chunk);
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
        let index = self.runs.partition_point(|run| run.end() <= offset);
        let skip = self.runs.get(index).map_or(0, |run| (offset - run.off) as usize);
        Ok(Slices { replay: self, index, skip, left })
    }

    /// `count` bytes passed by without being kept. Only an empty log can be passed.
    pub fn skip(&mut self, count: u64, pool: &mut Pool) {
        assert!(self.is_empty(), "bytes cannot overtake the ones that are kept");
        self.release_all(pool);
        self.end += count;
        self.acked = self.end;
    }

    /// Lets go of everything, whatever the peer has: the pipe is over.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.acked = self.end;
        self.release_all(pool);
    }

    fn release_all(&mut self, pool: &mut Pool) {
        self.runs.drain(..).for_each(|run| pool.give(run.chunk));
    }
}

impl fmt::Debug for Replay {
    // Not the bytes: they are somebody's secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replay({}..{}, {} chunks)", self.acked, self.end, self.runs.len())
    }
}

/// Pieces of a [`Replay`], one for each chunk they touch.
#[derive(Clone, Debug)]
pub struct Slices<'a> {
    replay: &'a Replay,
    index: usize,
    /// How much of the run there is passed over.
    skip: usize,
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
        let run = &self.replay.runs[self.index];
        let count = (run.len - self.skip).min(self.left);
        let slice = &run.chunk[run.from + self.skip..][..count];
        self.index += 1;
        self.skip = 0;
        self.left -= count;
        Some(slice)
    }
}

#[cfg(test)]
mod tests;
