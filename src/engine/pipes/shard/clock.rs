//! What time brings: alarms, a machine that slept, memory that fills, and the end.

use super::*;
use crate::state::pipe::GoAway;

impl Shard {
    pub(super) fn ring(&mut self, now: Moment) {
        while let Some(Reverse((at, slot, serial))) = self.alarms.peek().copied() {
            if at > now {
                break;
            }
            self.alarms.pop();
            match self.slots.get(slot) {
                Some(Slot::Greeter(greeter)) if greeter.serial == serial => self.again.push(slot),
                Some(Slot::Splice(splice)) if splice.serial == serial => self.again.push(slot),
                Some(Slot::Live(live)) if live.serial == serial => {
                    let mut live = self.take_live(slot).expect("looked at just now");
                    live.alarm = None;
                    self.alarm(now, slot, &mut live);
                    // Its turn, later in this round, dials what is due and sets the next alarm.
                    self.slots[slot] = Slot::Live(live);
                    self.again.push(slot);
                }
                // Whoever set it has left.
                _ => {}
            }
        }
    }

    pub(super) fn alarm(&mut self, now: Moment, slot: usize, live: &mut Live) {
        live.ask_for_guests(now, &self.registry, slot);
        if live.pipe.alarm(now).is_some() {
            let heard_at = live.pipe.heard_at().unwrap_or(now);
            self.shared.figures.found_dead(now.since(heard_at));
            self.lose(now, slot, live, "nothing was heard of the peer");
        }
        if live.goodbye_by.is_some_and(|by| by <= now) {
            self.lose(now, slot, live, "the peer did not close it after the last word");
        }
        if live.dropped_at.is_some_and(|since| since + LINGER <= now) {
            let end = End::new(Ending::TargetReset, "the program let go of its end");
            live.pipe.abort(end, &mut self.pool);
        }
        let expired = live.expires_at(&self.shared).is_some_and(|at| at <= now);
        if expired && live.pipe.over_with().is_none() {
            let end = match live.pipe.ending() {
                Some(end) => end.clone(),
                None if live.pipe.is_done() => End::new(Ending::Eof, ""),
                None if let Role::Client(client) = &live.role
                    && client.known.is_none() =>
                {
                    let silent = || End::new(Ending::ServerUnreachable, "no server answered in time");
                    client.last_error.clone().unwrap_or_else(silent)
                }
                None => End::new(Ending::GraceExpired, "nobody came back for it in time"),
            };
            live.pipe.kill(end, &mut self.pool);
        }
    }

    /// A laptop that was closed: the calendar went on, the clock did not.
    pub(super) fn look_for_sleep(&mut self, now: Moment) {
        let Some((then, then_wall)) = self.tick else { return };
        if now.since(then) < TICK {
            return;
        }
        let wall = self.rt.wall();
        self.tick = Some((now, wall));
        if wall.since(then_wall) > now.since(then) + SLEPT {
            for slot in 0..self.slots.len() {
                if let Slot::Live(live) = &mut self.slots[slot] {
                    live.pipe.probe(now, Duration::from_secs(2));
                    if let Role::Client(client) = &mut live.role {
                        client.backoff.forget();
                        if client.redial_at.is_some() {
                            client.redial_at = Some(now);
                        }
                    }
                    self.again.push(slot);
                }
            }
        }
    }

    /// What a pipe holds counts against what all may hold, and against what those of its principal may: above either
    /// the big ones get small windows until it eases. Looked at whenever something happened to the pipe, which is
    /// when it may have grown, and when a small window may grow again.
    pub(super) fn weigh(&mut self, now: Moment, slot: usize, live: &mut Live) {
        let holds = match live.bearer.is_some() || live.pipe.buffered() > 0 {
            true => live.pipe.memory() as u64,
            false => 0,
        };
        let (all, its_own) = self.count_held(live, holds);
        let (budget, share) = (self.shared.settings.budget, self.shared.settings.limits.buffered);
        // Not back and forth around one number.
        let eased = |bound: u64| if live.is_pressed { bound / 5 * 4 } else { bound };
        let is_short = all > eased(budget) || its_own > eased(share);
        if is_short && !live.is_pressed && holds > pipe::WINDOW_MIN {
            live.is_pressed = true;
            live.pipe.set_window(now, pipe::WINDOW_MIN);
        } else if !is_short && live.is_pressed {
            live.is_pressed = false;
            live.pipe.set_window(now, live.window);
            // There may be something to read for which there was no room.
            self.again.push(slot);
        }
    }

    /// A pipe holds so much now. Gives what all pipes of the process hold, and those of its principal.
    pub(super) fn count_held(&mut self, live: &mut Live, holds: u64) -> (u64, u64) {
        let before = std::mem::replace(&mut live.held, holds);
        self.held = self.held + holds - before;
        let all = self.shared.figures.hold(usize::from(self.index), self.held);
        let its_own = match &live.role {
            Role::Server(server) => server.purse.change(before, holds),
            Role::Client(_) => 0,
        };
        (all, its_own)
    }

    // ---- the end

    /// The process will go: whoever came here can come another way meanwhile, not all at once.
    pub(super) fn drain(&mut self, now: Moment, deadline: Duration) {
        self.draining = true;
        for slot in 0..self.slots.len() {
            if let Slot::Live(live) = &mut self.slots[slot]
                && matches!(live.role, Role::Server(_))
            {
                let share = (self.rand.next_u64() >> 32) as f64 / f64::from(u32::MAX);
                let retry_hint = (deadline / 2).mul_f64(share);
                live.pipe.go_away(GoAway { deadline, retry_hint, url: None });
                // Now: what comes after it in the inbox may be the order to stop.
                self.turn(now, slot);
            }
        }
    }

    pub(super) fn stop(&mut self, now: Moment) {
        let why = End::new(Ending::Shutdown, "the other side is going");
        for slot in 0..self.slots.len() {
            if let Slot::Live(live) = &mut self.slots[slot] {
                live.pipe.abort(why.clone(), &mut self.pool);
                if live.bearer.is_none() {
                    live.pipe.kill(why.clone(), &mut self.pool);
                }
            }
            self.turn(now, slot);
        }
    }

    /// Whether every last word is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        self.slots.iter().all(|slot| match slot {
            Slot::Live(live) => live
                .bearer
                .as_ref()
                .is_none_or(|bearer| bearer.outbox.is_empty() && !live.pipe.wants_to_send()),
            _ => true,
        })
    }

    pub(super) fn end(mut self) {
        let now = self.rt.now();
        for slot in 0..self.slots.len() {
            if let Slot::Greeter(greeter) = &self.slots[slot]
                && let Stage::Connecting(_, cancel, _) | Stage::Reaching(cancel) = &greeter.stage
            {
                cancel.cancel();
            }
            if let Some(mut live) = self.take_live(slot) {
                live.pipe.closed_after_goodbye(&mut self.pool);
                live.pipe.kill(End::new(Ending::Shutdown, "the program is going"), &mut self.pool);
                self.remove(now, slot, live);
            }
        }
        // Dial threads were cancelled and find nobody to tell: the inbox goes first, then they are joined.
        drop(self.orders);
        drop(self.dials);
    }
}
