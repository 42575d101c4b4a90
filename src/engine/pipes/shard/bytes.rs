//! Bytes between a pipe's local side and its carrier, and the loss and end of either.

use super::*;

/// How many pieces go to the local side by one write.
const PIECES: usize = 64;

/// Bytes that have just come and go on together: each write to a socket wakes whoever reads there.
#[derive(Default)]
struct Fresh<'a> {
    pieces: Vec<&'a [u8]>,
    len: u64,
}

impl<'a> Fresh<'a> {
    fn push(&mut self, bytes: &'a [u8]) {
        if !bytes.is_empty() {
            self.pieces.push(bytes);
            self.len += bytes.len() as u64;
        }
    }
}

impl Shard {
    pub(super) fn turn(&mut self, now: Moment, slot: usize) {
        self.turn_with(now, slot, &mut Visit::Own);
    }

    pub(super) fn turn_with(&mut self, now: Moment, slot: usize, visit: &mut Visit<'_>) {
        match std::mem::replace(&mut self.slots[slot], Slot::Free) {
            Slot::Free => {}
            Slot::Greeter(greeter) => self.turn_greeter(now, slot, greeter),
            Slot::Splice(splice) => self.turn_splice(now, slot, splice),
            Slot::Live(mut live) => {
                if !visit.is_guest() {
                    if let Some(why) = live.bearer.as_mut().and_then(|bearer| bearer.lost.take()) {
                        self.lose(now, slot, &mut live, &why);
                    }
                    self.dial_if_due(now, slot, &mut live);
                }
                if let Local::Duct(duct) = &live.local
                    && duct.looking()
                {
                    live.leave_alone(&self.registry, slot);
                }
                let mut moved = 0;
                loop {
                    let count = self.read_carrier(now, slot, &mut live, visit)
                        + self.give_local(now, &mut live)
                        + self.take_local(now, &mut live, visit)
                        + self.write_carrier(now, slot, &mut live, visit);
                    moved += count;
                    if count == 0 {
                        break;
                    }
                    if moved >= TURN {
                        self.again.push(slot);
                        break;
                    }
                    if visit.is_done() {
                        break;
                    }
                }
                let is_over = live.pipe.over_with().is_some();
                if visit.is_guest() && is_over && (live.bearer.is_some() || live.is_finished()) {
                    // Its end, and that of its carrier, is for the pipes' thread.
                    self.slots[slot] = Slot::Live(live);
                    return self.again.push(slot);
                }
                self.settle(now, slot, live);
            }
        }
    }

    fn read_carrier(&mut self, now: Moment, slot: usize, live: &mut Live, visit: &mut Visit<'_>) -> usize {
        if !visit.is_guest() && live.is_left_to_guests(now, &self.registry, slot) {
            return 0;
        }
        let Some(bearer) = live.bearer.as_mut().filter(|bearer| bearer.readable && !bearer.still) else {
            return 0;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut pieces = std::mem::take(&mut self.pieces);
        // A socket takes what comes from here at once, unless it has yet to take what came before.
        let stay = matches!(live.local, Local::Duct(_)) || live.pipe.unread() > 0;
        let in_place = stay && bearer.carrier.is_raw();
        let amid = bearer.decoder.amid_data().filter(|_| in_place);
        let straight = amid.map_or(0, |(off, left)| {
            let count = left.min(visit.room());
            if live.pipe.may_pass(bearer.epoch, off, count) { count } else { 0 }
        });
        let direct = match amid.filter(|_| straight == 0) {
            Some((off, left)) => live.pipe.arriving(bearer.epoch, off, (DIRECT, left), &mut self.pool),
            None => None,
        };
        let is_direct = direct.is_some();
        let (mut head, mut beyond) = ([0; DATA_HEAD], 0);
        let read = match direct {
            Some(space) => bearer.carrier.read_pieces(space, &mut pieces),
            None if straight > 0 => {
                // With the end of a frame comes the head of the next, so that its bytes go straight as well.
                let ends = amid.is_some_and(|(_, left)| left == straight);
                let head = if ends { &mut head[..] } else { &mut [] };
                let read = bearer.carrier.read_across(&mut visit.space()[..straight], head);
                read.map(|(count, more)| {
                    beyond = more;
                    count
                })
            }
            // Behind the head of a frame that is as long as the last ones the rest is read to where it stays.
            None if in_place && bearer.decoder.lately() >= CHUNK => {
                bearer.carrier.read_pieces(&mut buffer[..HEADS], &mut pieces)
            }
            None => {
                let some = if visit.room() > 0 { visit.room().clamp(HEADS, READ) } else { READ };
                bearer.carrier.read_pieces(&mut buffer[..some], &mut pieces)
            }
        };
        if bearer.carrier.is_drained() && !bearer.ends {
            bearer.readable = false;
        }
        if is_direct || straight > 0 {
            let count = *read.as_ref().unwrap_or(&0);
            match is_direct {
                true => live.pipe.arrived(now, count, &mut self.pool),
                false => {
                    live.pipe.passed(now, count, &mut self.pool);
                    visit.filled(count);
                }
            }
            bearer.decoder.passed(count);
        }
        let count = match read {
            Ok(0) if visit.is_guest() => {
                (bearer.ends, bearer.readable) = (true, true);
                self.again.push(slot);
                0
            }
            Ok(0) => {
                if live.pipe.goodbye_sent() && bearer.outbox.is_empty() && !bearer.carrier.has_more() {
                    live.pipe.closed_after_goodbye(&mut self.pool);
                    if let Some(bearer) = live.take_bearer() {
                        self.drop_bearer(bearer);
                    }
                } else {
                    self.lose(now, slot, live, "the peer closed it");
                }
                0
            }
            Ok(count) => {
                live.heard(now);
                if is_direct || straight > 0 {
                    live.down += count as u64;
                    self.take_in(now, live, &head[..beyond], visit);
                } else {
                    pieces.iter().for_each(|piece| self.take_in(now, live, &buffer[piece.clone()], visit));
                }
                count
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bearer.readable = false;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 1,
            Err(error) => {
                self.broke(now, slot, live, &error.to_string(), visit);
                0
            }
        };
        self.buffer = buffer;
        pieces.clear();
        self.pieces = pieces;
        count
    }

    /// Frames arrived.
    pub(super) fn take_in(&mut self, now: Moment, live: &mut Live, mut input: &[u8], visit: &mut Visit<'_>) {
        let Some(epoch) = live.bearer.as_ref().map(|bearer| bearer.epoch) else { return };
        let mut fresh = Fresh::default();
        loop {
            let Some(bearer) = &mut live.bearer else { return };
            let result = match bearer.decoder.next(&mut input) {
                Ok(None) => return self.pass_on(now, live, &mut fresh, visit),
                Ok(Some(Piece::Data { off, bytes })) => {
                    match live.pipe.data_behind(fresh.len, epoch, off, bytes) {
                        Ok(bytes) => {
                            fresh.push(bytes);
                            if fresh.pieces.len() == PIECES {
                                self.pass_on(now, live, &mut fresh, visit);
                            }
                            Ok(())
                        }
                        Err(violation) => Err(violation.to_string()),
                    }
                }
                Ok(Some(Piece::Control(control))) => {
                    // It is about the bytes before it.
                    self.pass_on(now, live, &mut fresh, visit);
                    if let Control::Reset(end) = &control {
                        log::debug!("pipes: the peer ends a pipe: {end}");
                    }
                    let handled: Result<(), Violation> =
                        live.pipe.control(now, epoch, control, &mut self.pool);
                    handled.map_err(|violation| violation.to_string())
                }
                Ok(Some(Piece::Greeting(_))) => Err("a second handshake on one carrier".into()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = result {
                self.pass_on(now, live, &mut fresh, visit);
                log::warn!("pipes: a peer broke the protocol: {why}");
                live.pipe.abort(End::new(Ending::Protocol, why), &mut self.pool);
                return;
            }
        }
    }

    /// What came goes to the local side at once, as far as that takes it and nothing waits in front; the rest is kept.
    fn pass_on(&mut self, now: Moment, live: &mut Live, fresh: &mut Fresh<'_>, visit: &mut Visit<'_>) {
        if fresh.len == 0 {
            return;
        }
        live.down += fresh.len;
        let mut direct = match live.pipe.unread() {
            0 if visit.is_guest() => fresh.pieces.iter().map(|piece| visit.take(piece)).sum(),
            0 => live.local.write_now(&fresh.pieces),
            _ => 0,
        };
        if direct > 0 {
            live.pipe.passed(now, direct, &mut self.pool);
        }
        for piece in fresh.pieces.drain(..) {
            let skip = direct.min(piece.len());
            direct -= skip;
            live.pipe.hold(now, &piece[skip..], &mut self.pool);
        }
        fresh.len = 0;
    }

    /// Received bytes go to the local side.
    pub(super) fn give_local(&mut self, now: Moment, live: &mut Live) -> usize {
        let over = live.pipe.over_with().is_some();
        match &mut live.local {
            Local::Duct(duct) => {
                if live.pipe.unread() == 0 && !live.pipe.at_end() {
                    return 0;
                }
                duct.give(now, &mut live.pipe, &mut self.pool) as usize
            }
            Local::Socket(local) => {
                let mut given = 0;
                while live.pipe.unread() > 0 && (local.writable || local.deaf) {
                    let result = if local.deaf {
                        Ok(live.pipe.unread() as usize)
                    } else {
                        let slices: Vec<IoSlice<'_>> = live.pipe.readable(READ).map(IoSlice::new).collect();
                        local.socket.write_vectored(&slices)
                    };
                    match result {
                        Ok(count) => {
                            live.pipe.took(now, count as u64, &mut self.pool);
                            given += count;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => local.writable = false,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => local.deaf = true,
                    }
                }
                if local.deaf
                    && given > 0
                    && live.pipe.is_finished()
                    && live.pipe.written().0 == live.pipe.written().1
                {
                    // It has given everything it had and takes nothing: the peer talks to nobody.
                    let end = End::new(
                        Ending::TargetReset,
                        "the target closed while bytes were on their way to it",
                    );
                    live.pipe.break_off(end, &mut self.pool);
                }
                if live.pipe.at_end() && !local.write_ended && !over {
                    local.write_ended = true;
                    local.socket.shutdown(Shutdown::Write);
                }
                given
            }
        }
    }

    /// Bytes of the local side go into the pipe.
    pub(super) fn take_local(&mut self, now: Moment, live: &mut Live, visit: &mut Visit<'_>) -> usize {
        if live.pipe.over_with().is_some() {
            return 0;
        }
        match &mut live.local {
            Local::Duct(duct) => {
                let before = live.pipe.written().0;
                let found = duct.take(&mut live.pipe, &mut self.pool);
                if found.ended {
                    live.pipe.finish();
                }
                if found.dropped {
                    live.dropped_at.get_or_insert(now);
                }
                if found.passes && !visit.brings().is_empty() {
                    let count = live.pipe.write(visit.brings(), &mut self.pool);
                    visit.gave(count);
                }
                let count = live.pipe.written().0 - before;
                live.up += count;
                count as usize
            }
            Local::Socket(local) => {
                // What was read before leaves first.
                let leaves = live.bearer.as_ref().is_some_and(|bearer| bearer.writable && !bearer.still);
                if leaves && live.pipe.sendable() >= READ as u64 {
                    return 0;
                }
                let most = (live.pipe.window() as usize / 2).clamp(CHUNK, TAKE);
                let mut taken = 0;
                while local.readable && taken < most {
                    let wanted = if local.flows { most - taken } else { CHUNK };
                    let mut spaces: Vec<IoSliceMut<'_>> =
                        live.pipe.spaces(wanted, &mut self.pool).map(IoSliceMut::new).collect();
                    if spaces.is_empty() {
                        break;
                    }
                    let room: usize = spaces.iter().map(|space| space.len()).sum();
                    let result = local.socket.read_vectored(&mut spaces);
                    let count = *result.as_ref().unwrap_or(&0);
                    local.flows = count == room;
                    live.pipe.commit(count, &mut self.pool);
                    match result {
                        Ok(0) => {
                            local.readable = false;
                            live.pipe.finish();
                        }
                        Ok(count) => taken += count,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => local.readable = false,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => {
                            local.readable = false;
                            local.deaf = true;
                            live.local_failed(&error, &mut self.pool);
                            break;
                        }
                    }
                }
                live.up += taken as u64;
                taken
            }
        }
    }

    pub(super) fn write_carrier(
        &mut self,
        now: Moment,
        slot: usize,
        live: &mut Live,
        visit: &Visit<'_>,
    ) -> usize {
        if live.pipe.over_with().is_some() {
            // The peer has said the last word, and what was half written is not kept any more.
            return 0;
        }
        let Some(bearer) = live.bearer.as_mut().filter(|bearer| bearer.writable && !bearer.still) else {
            return 0;
        };
        bearer.carrier.lend(&mut self.spare);
        let mut written = 0;
        let failed = loop {
            if bearer.outbox.is_empty() && !live.pipe.wants_to_send() && !bearer.carrier.has_more() {
                break None;
            }
            bearer.outbox.fill(now, &mut live.pipe);
            let result = if bearer.outbox.is_empty() {
                bearer.carrier.flush().map(|()| 0)
            } else {
                let mut slices = Vec::with_capacity(16);
                bearer.outbox.slices(&live.pipe, &mut slices, 64);
                bearer.carrier.write(&slices)
            };
            match result {
                Ok(count) => {
                    bearer.outbox.wrote(count);
                    written += count;
                    if written >= TURN {
                        break None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    bearer.writable = false;
                    break None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error.to_string()),
            }
        };
        bearer.carrier.take_back(&mut self.spare);
        let bytes = bearer.watched.bytes;
        bearer.watch(&self.registry, slot, bytes);
        if let Some(why) = failed {
            self.broke(now, slot, live, &why, visit);
        }
        written
    }

    /// The carrier is broken. A guest only notes it: what follows is told to others.
    fn broke(&mut self, now: Moment, slot: usize, live: &mut Live, why: &str, visit: &Visit<'_>) {
        match &mut live.bearer {
            Some(bearer) if visit.is_guest() => {
                bearer.lost = Some(why.to_owned());
                (bearer.readable, bearer.writable) = (false, false);
                self.again.push(slot);
            }
            _ => self.lose(now, slot, live, why),
        }
    }

    /// The carrier is gone; the pipe is not.
    pub(super) fn lose(&mut self, now: Moment, _slot: usize, live: &mut Live, why: &str) {
        let Some(bearer) = live.take_bearer() else { return };
        live.pipe.detach(bearer.epoch);
        let got_further = live.got_further();
        self.drop_bearer(bearer);
        live.detached_at = Some(now);
        live.goodbye_by = None;
        self.shared.figures.lost();
        let draw = self.rand.next_u64();
        match &mut live.role {
            Role::Server(server) => server.is_without_carrier(now, &self.shared, why),
            Role::Client(client) => {
                client.lost_at = now;
                client.replace_at = None;
                // Whatever attempt was out to replace it goes on as an attempt like any other, unless it
                // waits for an answer about a carrier that is gone: begin afresh.
                client.attempts.end();
                if let Some(cancel) = client.cancel.take() {
                    cancel.cancel();
                }
                if got_further {
                    // However often the path is cut: as long as the pipe gets further between two losses,
                    // there is nothing to be patient about.
                    client.backoff.forget();
                }
                client.redial_at = Some(match client.backoff.failed(now, draw) {
                    Next::TryAt(at) => at,
                    Next::GiveUp => now + Duration::from_secs(5),
                });
                if live.pipe.ending().is_none() {
                    (client.events)(Event::Lost { why: why.to_owned() });
                    if let Local::Duct(duct) = &live.local {
                        duct.set_state(State::Lost);
                    }
                }
            }
        }
    }

    pub(super) fn drop_bearer(&mut self, mut bearer: Bearer) {
        if bearer.watched != Watched::NOTHING {
            bearer.carrier.socket().deregister(&self.registry);
        }
        bearer.carrier.close();
        self.shared.figures.attached(self.rt.now().since(bearer.since));
    }

    /// After anything happened to a pipe: is it over, when is it next to be looked at.
    pub(super) fn settle(&mut self, now: Moment, slot: usize, mut live: Box<Live>) {
        if let Some(notice) = live.pipe.take_go_away()
            && let Role::Client(client) = &mut live.role
        {
            if let Some(url) = &notice.url {
                client.dialer.moved(url);
            }
            client.replace_at = Some(now + notice.retry_hint);
        }
        if live.pipe.goodbye_sent() && live.goodbye_by.is_none() {
            live.goodbye_by = Some(now + GOODBYE_WAIT);
        }
        if let (Local::Duct(duct), Some(end)) = (&live.local, live.pipe.ending())
            && !matches!(end.code, Ending::Eof | Ending::TargetReset)
        {
            // The peer may take its time to hear of it; whoever waits here need not.
            duct.set_state(State::Over(end.clone()));
        }
        if matches!(live.role, Role::Server(_)) && live.pipe.is_aborted() {
            match &live.bearer {
                // A client that reads nothing never hears of it; it has as long as for a goodbye.
                Some(_) => _ = live.goodbye_by.get_or_insert(now + GOODBYE_WAIT),
                // Nothing of it is of use any more, and nobody is there to be told: whoever comes is told then.
                None => {
                    let end = live.pipe.ending().cloned().expect("it was aborted");
                    live.pipe.kill(end, &mut self.pool);
                }
            }
        }
        if live.pipe.over_with().is_some()
            && let Some(bearer) = live.take_bearer()
        {
            // Both know that it is over; the peer waits for this. What is left is for the local side.
            self.drop_bearer(bearer);
        }
        live.count(now, &self.shared);
        self.weigh(now, slot, &mut live);
        live.hold_writers();
        if live.is_finished() {
            return self.remove(now, slot, live);
        }
        let next = live.next_alarm(&self.shared);
        if let Some(next) = next
            && live.alarm.is_none_or(|alarm| next < alarm)
        {
            live.alarm = Some(next);
            self.alarms.push(Reverse((next, slot, live.serial)));
        }
        self.slots[slot] = Slot::Live(live);
    }

    pub(super) fn remove(&mut self, now: Moment, slot: usize, mut live: Box<Live>) {
        let end = live.pipe.over_with().cloned().expect("only what is over is removed");
        self.count_held(&mut live, 0);
        if let Some(mut bearer) = live.take_bearer() {
            // The last frames may still fit into the socket.
            bearer.outbox.fill(now, &mut live.pipe);
            self.drop_bearer(bearer);
        }
        match &mut live.local {
            Local::Socket(local) => {
                local.socket.deregister(&self.registry);
                if end.code != Ending::Eof {
                    local.socket.break_on_close();
                } else if !local.write_ended {
                    local.socket.shutdown(Shutdown::Write);
                }
            }
            Local::Duct(duct) => duct.set_state(State::Over(end.clone())),
        }
        self.serials.remove(&live.serial);
        let info = live.info(now);
        match live.role {
            Role::Server(server) => {
                self.ids.remove(&server.id);
                self.bury(&server, &end);
                self.shared.ledger.gone(server.id, &server.principal);
                if let Some(since) = live.detached_at {
                    self.shared.figures.detached(now.since(since));
                }
                self.shared.figures.ended(end.code);
                (self.shared.notes)(&Note::Ended { info: info.expect("a server's pipe has a name"), end });
            }
            Role::Client(client) => {
                if let Some(cancel) = client.cancel {
                    cancel.cancel();
                }
                self.clients -= 1;
                if self.clients == 0 {
                    self.tick = None;
                }
                (client.events)(Event::Over(end));
            }
        }
        self.free.push(slot);
    }
}
