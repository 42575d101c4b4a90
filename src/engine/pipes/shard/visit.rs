//! Guests: threads that hold a handle, and move its bytes themselves.
//!
//! A guest reads what the carrier has straight into the buffer it came with, and writes what it brought to the
//! carrier while the bytes are in its cache, behind what waits only. It does nothing else: a carrier that is broken and a pipe that is over
//! are noted for the pipes' thread.
//!
//! While guests move much the poller is not asked about bytes on the carrier: each arrival would wake the pipes'
//! thread to find that somebody is at it. A guest that has to wait for bytes does so at the carrier (see `lookout`),
//! or asks the poller again before it waits elsewhere; if none comes for [`GUEST_WAIT`] the pipes' thread asks it.

use super::*;

/// So long a guest is expected back before the pipes' thread goes on with what it left on the carrier.
pub(super) const GUEST_WAIT: Duration = Duration::from_millis(5);
/// From here on what a guest moves at once is a stream of bytes rather than words...
const MUCH: usize = 32 * 1024;
/// ...and so many small pieces are words again: the last of a burst may be as small.
const WORDS: u8 = 8;
/// A writer waits while more than this cannot leave, though the peer would take it: what is written next then
/// finds a carrier that takes it at once.
const BACKLOG: u64 = 64 * 1024;

/// How much a guest may write before it looks whether anything came, within [`GUEST_WAIT`].
const LOOK: u64 = 256 * 1024;
/// The most that a guest writes at once.
const BRINGS_MAX: usize = 512 * 1024;

/// Who moves bytes, and what of them.
pub(super) enum Visit<'a> {
    /// The pipes' own thread does, what there is.
    Own,
    /// A guest is here to read: where to, and how much of it is filled.
    Reads(&'a mut [u8], usize),
    /// A guest is here to write this.
    Writes(&'a [u8]),
}

impl Visit<'_> {
    /// Not the pipes' thread.
    pub(super) fn is_guest(&self) -> bool {
        !matches!(self, Visit::Own)
    }

    /// Where received bytes may go.
    pub(super) fn space(&mut self) -> &mut [u8] {
        match self {
            Visit::Reads(to, filled) => &mut to[*filled..],
            Visit::Own | Visit::Writes(_) => &mut [],
        }
    }

    /// How many bytes that is.
    pub(super) fn room(&self) -> usize {
        match self {
            Visit::Reads(to, filled) => to.len() - filled,
            Visit::Own | Visit::Writes(_) => 0,
        }
    }

    /// The first `count` bytes of its space have come.
    pub(super) fn filled(&mut self, count: usize) {
        if let Visit::Reads(_, filled) = self {
            *filled += count;
        }
    }

    /// Copies as many of them as there is room for; gives how many.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        self.space()[..count].copy_from_slice(&bytes[..count]);
        self.filled(count);
        count
    }

    /// What it has to write.
    pub(super) fn brings(&self) -> &[u8] {
        match self {
            Visit::Writes(bytes) => bytes,
            Visit::Own | Visit::Reads(..) => &[],
        }
    }

    /// The first `count` of those are the pipe's now.
    pub(super) fn gave(&mut self, count: usize) {
        if let Visit::Writes(bytes) = self {
            *bytes = &bytes[count..];
        }
    }

    /// How much it has yet to read or write.
    fn size(&self) -> usize {
        self.room().max(self.brings().len())
    }

    /// It has done all it came for.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Visit::Own => false,
            Visit::Reads(to, filled) => !to.is_empty() && to.len() == *filled,
            Visit::Writes(left) => left.is_empty(),
        }
    }
}

impl Shard {
    /// A guest is here. Gives how many of the bytes that it brought, or wants, were moved.
    pub(in super::super) fn visit(&mut self, serial: u64, why: Visiting<'_>) -> usize {
        let Some(slot) = self.serials.get(&serial).copied() else { return 0 };
        let Slot::Live(live) = &mut self.slots[slot] else { return 0 };
        let now = self.rt.now();
        let (mut visit, writes) = match why {
            Visiting::Waits if live.is_watched => return 0,
            Visiting::Waits | Visiting::Leaves => {
                live.leave_alone(&self.registry, slot);
                if live.bearer.as_ref().is_some_and(|bearer| bearer.readable && !bearer.still) {
                    self.again.push(slot);
                }
                return 0;
            }
            Visiting::Reads(to) => {
                // Whoever comes to read does not wait at the carrier meanwhile.
                live.is_watched &= to.is_empty();
                let dry =
                    matches!(&live.local, Local::Duct(duct) if duct.is_dry()) && live.pipe.unread() == 0;
                (Visit::Reads(if dry { to } else { &mut [] }, 0), false)
            }
            Visiting::Writes(bytes) => (Visit::Writes(&bytes[..bytes.len().min(BRINGS_MAX)]), true),
        };
        if let Some(bearer) = live.bearer.as_mut().filter(|bearer| bearer.lost.is_none())
            && !live.is_watched
        {
            let written = live.pipe.written().0;
            // Whoever writes much need not look each time: what comes is mostly that it has arrived.
            let (looked_at, looked_with) = live.looked;
            if !writes || written - looked_with >= LOOK || looked_at + GUEST_WAIT <= now {
                live.looked = (now, written);
                bearer.readable |= bearer.is_calm();
            }
            live.guest_at = Some(now);
        }
        let all = visit.size();
        self.turn_with(now, slot, &mut visit);
        self.port.level_chunks(&mut self.pool);
        let moved = all - visit.size();
        if let Some(Slot::Live(live)) = self.slots.get_mut(slot)
            && (moved > 0 || writes)
        {
            live.stream = match moved >= MUCH {
                true => WORDS,
                false => live.stream.saturating_sub(1),
            };
            live.come_again(&self.registry, slot);
        }
        moved
    }

    /// A guest waits for bytes. Gives the carrier if that is where they come from next, and nobody else waits for them.
    pub(in super::super) fn look_out(&mut self, serial: u64) -> Option<Arc<OwnedFd>> {
        let slot = self.serials.get(&serial).copied()?;
        let Slot::Live(live) = &mut self.slots[slot] else { return None };
        let carrier = live.sight();
        match &carrier {
            Some(_) => {
                if let Some(bearer) = &mut live.bearer {
                    bearer.watch(&self.registry, slot, false);
                }
                (live.is_watched, live.guest_at) = (true, None);
            }
            None => {
                live.leave_alone(&self.registry, slot);
                if live.bearer.as_ref().is_some_and(|bearer| bearer.readable && !bearer.still) {
                    self.again.push(slot);
                }
            }
        }
        carrier
    }
}

impl Bearer {
    /// Whether the poller says nothing when bytes come.
    fn is_calm(&self) -> bool {
        !self.watched.bytes
    }

    /// Has the poller say when bytes come or not, and when there is room if there is none.
    pub(super) fn watch(&mut self, registry: &Registry, slot: usize, bytes: bool) {
        let room = !self.writable;
        if self.watched.bytes == bytes && (self.watched.room || !room) {
            return;
        }
        let about = Watched { bytes, room };
        match self.carrier.socket().watch(registry, Token(slot * 2), self.watched, about) {
            Ok(()) => self.watched = about,
            Err(error) => {
                log::warn!("pipes: cannot watch a carrier: {error}");
                self.lost.get_or_insert(error.to_string());
            }
        }
    }
}

impl Live {
    /// A guest leaves that will be back.
    fn come_again(&mut self, registry: &Registry, slot: usize) {
        if self.stream > 0
            && let Local::Duct(duct) = &self.local
            && let Some(bearer) = &mut self.bearer
            && !bearer.is_calm()
            && duct.readers() == 0
        {
            bearer.watch(registry, slot, false);
        }
    }

    /// No guest is expected any more.
    pub(super) fn leave_alone(&mut self, registry: &Registry, slot: usize) {
        (self.guest_at, self.is_watched) = (None, false);
        if let Some(bearer) = &mut self.bearer {
            bearer.watch(registry, slot, true);
        }
    }

    /// Time has passed: whether one was here lately.
    pub(super) fn ask_for_guests(&mut self, now: Moment, registry: &Registry, slot: usize) {
        if self.guest_at.is_some_and(|at| at + GUEST_WAIT <= now) {
            self.leave_alone(registry, slot);
        }
    }

    /// Whether what the carrier brought is for a guest: one that waits is called, one that was here a moment ago
    /// comes by itself.
    pub(super) fn is_left_to_guests(&mut self, now: Moment, registry: &Registry, slot: usize) -> bool {
        let Local::Duct(duct) = &self.local else { return false };
        match &self.bearer {
            Some(bearer) if bearer.readable && !bearer.ends && !bearer.still => {}
            _ => return false,
        }
        if duct.call_readers() {
            self.guest_at = Some(now);
            self.come_again(registry, slot);
        }
        self.guest_at.is_some() || self.is_watched
    }

    /// The carrier, to wait at for what comes next.
    fn sight(&mut self) -> Option<Arc<OwnedFd>> {
        let Local::Duct(duct) = &self.local else { return None };
        let bearer = self.bearer.as_mut()?;
        let is_quiet = !bearer.readable && !bearer.ends && !bearer.still && bearer.lost.is_none();
        if !is_quiet || duct.readers() != 1 {
            return None;
        }
        if bearer.sight.is_none() {
            bearer.sight = bearer.carrier.socket().duplicate().map(Arc::new);
        }
        bearer.sight.clone()
    }

    /// There is no carrier any more; whoever looks out for it looks elsewhere.
    pub(super) fn take_bearer(&mut self) -> Option<Bearer> {
        self.is_watched = false;
        if let Local::Duct(duct) = &self.local {
            duct.call_readers();
        }
        self.bearer.take()
    }

    /// Writers wait while what they brought cannot leave, and once the window is full until there is room for more
    /// than a piece: each wake should be worth it.
    pub(super) fn hold_writers(&mut self) {
        let Local::Duct(duct) = &self.local else { return };
        let room = self.pipe.room();
        let little = room > 0 && room < self.pipe.window() / 4;
        self.was_full = self.pipe.is_full() || (self.was_full && little);
        let stuck = self.bearer.as_ref().is_some_and(|bearer| {
            !bearer.writable && bearer.outbox.queued() as u64 + self.pipe.sendable() > BACKLOG
        });
        duct.hold_writers(match self.was_full {
            true => Some(Held::Window),
            false => stuck.then_some(Held::Carrier),
        });
    }
}
