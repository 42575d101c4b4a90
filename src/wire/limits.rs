//! What links may use at most, and how long they may take.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::http::HeadLimits;
use crate::rt::{Hasher, Lock, Rt};
use crate::state::time::Moment;

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
    /// Links over all I/O threads; 503.
    pub links: usize,
    /// Links from one address: 4096; 503. Local ones are not counted.
    pub links_per_address: u32,
    /// Connections accepted in a second: 10,000. The others wait in the kernel's queue.
    pub accepts_per_second: u32,
    /// Messages a second that a WebSocket may say, in bursts of a second: not bounded. It is read more slowly.
    pub messages_per_second: Option<u64>,
    /// Bytes a second that a WebSocket may say, in the same way: not bounded.
    pub bytes_per_second: Option<u64>,
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
            links_per_address: 4096,
            accepts_per_second: 10_000,
            messages_per_second: None,
            bytes_per_second: None,
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
    /// Times a WebSocket said more than it may in a second, and was read later.
    pub slowed: Count,
}

/// A counter that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Count(std::sync::atomic::AtomicU64);

impl Count {
    /// What it stands at.
    pub fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    // Nobody else writes, so nothing is lost between the two halves, and no delivery pays for a locked bus.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.get().wrapping_sub(n), std::sync::atomic::Ordering::Relaxed);
    }
}

/// So many a second, in bursts of at most a tenth of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Time that one costs.
    each: Duration,
    /// How far the account may be ahead of the clock.
    burst: Duration,
    /// When everything taken so far is paid for.
    paid: Moment,
}

impl Rate {
    pub(crate) fn new(per_second: u32) -> Rate {
        let each = Duration::from_secs(1) / per_second.max(1);
        Rate { each, burst: each.max(Duration::from_millis(100)), paid: Moment::ZERO }
    }

    /// Takes one, or says when there is one to take.
    pub(crate) fn take(&mut self, now: Moment) -> Result<(), Moment> {
        let paid = self.paid.max(now) + self.each;
        if paid > now + self.burst {
            return Err(paid - self.burst);
        }
        self.paid = paid;
        Ok(())
    }
}

/// What one WebSocket may say in a second, in bursts of a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    messages: Option<Account>,
    bytes: Option<Account>,
}

/// Invariant: `paid` is when everything taken so far is paid for, at so many nanoseconds each.
#[derive(Clone, Copy, Debug)]
struct Account {
    each: u64,
    paid: Moment,
}

impl Pace {
    /// None where nothing is bounded.
    pub(crate) fn of(limits: &Limits) -> Option<Pace> {
        let account = |a_second: u64| Account { each: 1_000_000_000 / a_second.max(1), paid: Moment::ZERO };
        let (messages, bytes) =
            (limits.messages_per_second.map(account), limits.bytes_per_second.map(account));
        (messages.is_some() || bytes.is_some()).then_some(Pace { messages, bytes })
    }

    /// Takes what was said; until when nothing more should be heard, if it was too much.
    pub(crate) fn spend(&mut self, now: Moment, messages: usize, bytes: usize) -> Option<Moment> {
        let messages = self.messages.as_mut().and_then(|account| account.spend(now, messages));
        let bytes = self.bytes.as_mut().and_then(|account| account.spend(now, bytes));
        messages.max(bytes)
    }
}

impl Account {
    const BURST: Duration = Duration::from_secs(1);

    fn spend(&mut self, now: Moment, n: usize) -> Option<Moment> {
        let cost = Duration::from_nanos(self.each.saturating_mul(n as u64));
        self.paid = self.paid.max(now) + cost;
        (self.paid > now + Account::BURST).then(|| now + (self.paid.since(now) - Account::BURST))
    }
}

/// How many links each address has.
///
/// Invariant: an address stands here with the number of [`Place`]s that name it.
#[derive(Debug)]
pub(crate) struct Census {
    most: u32,
    addresses: Lock<HashMap<IpAddr, u32, Hasher>>,
}

/// One link's place in the [`Census`]; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    census: Arc<Census>,
    address: IpAddr,
}

impl Census {
    pub(crate) fn new(rt: &Rt, most: u32) -> Arc<Census> {
        Arc::new(Census { most, addresses: Lock::new(HashMap::with_hasher(rt.hasher())) })
    }

    /// A place for one more link from this address, if there is one.
    pub(crate) fn place(self: &Arc<Census>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut addresses = self.addresses.lock();
        let count = addresses.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { census: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut addresses = self.census.addresses.lock();
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let census = Census::new(&Rt::real(), 2);
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let first = census.place(one).unwrap();
        let _second = census.place(mapped).unwrap();
        assert!(census.place(one).is_none(), "an address counts the same in both its forms");
        assert!(census.place(other).is_some());
        drop(first);
        assert!(census.place(one).is_some());
        assert_eq!(census.addresses.lock().len(), 1, "who has no link is forgotten");
    }

    #[test]
    fn who_says_more_than_it_may_is_heard_later_and_not_for_ever() {
        let limits = Limits { messages_per_second: Some(100), ..Limits::default() };
        assert!(Pace::of(&Limits::default()).is_none());
        let mut pace = Pace::of(&limits).expect("messages are bounded");
        let now = Moment::from_millis(1_000);
        assert_eq!(
            pace.spend(now, 100, 1 << 30),
            None,
            "a second's worth at once, and bytes are not bounded"
        );
        assert_eq!(pace.spend(now, 50, 0), Some(Moment::from_millis(1_500)));
        assert_eq!(pace.spend(Moment::from_millis(10_000), 100, 0), None, "silence is no credit beyond that");
    }

    #[test]
    fn a_rate_lets_bursts_through_and_then_so_many_a_second() {
        let mut rate = Rate::new(100);
        let mut now = Moment::from_millis(1_000);
        let burst = (0..1_000).take_while(|_| rate.take(now).is_ok()).count();
        assert_eq!(burst, 10);
        let mut taken = 0;
        for _ in 0..100 {
            match rate.take(now) {
                Ok(()) => taken += 1,
                Err(later) => {
                    assert!(later > now && later <= now + Duration::from_millis(10));
                    now = later;
                }
            }
        }
        assert_eq!((taken, now), (50, Moment::from_millis(1_500)));
    }
}
