//! What links may use at most, and how long they may take.

use std::time::Duration;

use super::http::HeadLimits;

/// Bounds and waits of the I/O threads. Every one has an answer a peer can read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Request heads: 16 KiB, 8 KiB of target, 64 lines; 431, 414.
    pub head: HeadLimits,
    /// From the first byte of a head to its last: 10 s; 408.
    pub head_wait: Duration,
    /// A connection without a request: 75 s; closed.
    pub idle_wait: Duration,
    /// A body (of a route that wants it whole) without progress: 30 s; 408.
    pub body_wait: Duration,
    /// A peer that takes nothing of what is queued: 30 s; cut with `TRY_AGAIN`.
    pub write_wait: Duration,
    /// Silence after which a comment or a ping goes out: 15 s. Three of them without a sign of life end a
    /// WebSocket.
    pub heartbeat: Duration,
    /// What a link that is being closed may still take: 1 s for what is queued and the peer's own close.
    pub close_wait: Duration,
    /// Live bytes queued for one link: 1 MiB; cut with `TRY_AGAIN`.
    pub queue_bytes: usize,
    /// Bytes read from one link that nobody took yet: 64 KiB; it is not read until they are taken.
    pub held_bytes: usize,
    /// The same over all links of an I/O thread: 64 MiB.
    pub parked_bytes: usize,
    /// Links on one I/O thread.
    pub links: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head: HeadLimits::default(),
            head_wait: Duration::from_secs(10),
            idle_wait: Duration::from_secs(75),
            body_wait: Duration::from_secs(30),
            write_wait: Duration::from_secs(30),
            heartbeat: Duration::from_secs(15),
            close_wait: Duration::from_secs(1),
            queue_bytes: 1024 * 1024,
            held_bytes: 64 * 1024,
            parked_bytes: 64 * 1024 * 1024,
            links: 1 << 20,
        }
    }
}

/// Counters of one I/O thread, for metrics. They only grow, except `links`.
#[derive(Debug, Default)]
pub struct Counts {
    /// Links at this moment.
    pub links: Count,
    /// Connections taken in.
    pub accepted: Count,
    /// Connections turned away because of a limit.
    pub turned_away: Count,
    /// Requests whose head was accepted.
    pub requests: Count,
    /// Requests refused before a route was looked up (malformed, too large, too slow).
    pub refused: Count,
    /// Frames queued for links, a fan-out counted once for each member.
    pub deliveries: Count,
    /// Bytes read.
    pub bytes_in: Count,
    /// Bytes written.
    pub bytes_out: Count,
    /// Links cut because their peer did not keep up.
    pub cut_slow: Count,
    /// Links cut, or groups reset, because an I/O thread's inbox was full.
    pub cut_full: Count,
    /// Times a room's inbox was full and its links were parked.
    pub parked: Count,
}

/// A counter that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Count(std::sync::atomic::AtomicU64);

impl Count {
    /// What it stands at.
    pub fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, std::sync::atomic::Ordering::Relaxed);
    }
}
