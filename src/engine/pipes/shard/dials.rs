//! A client's attempts to connect, and what becomes of them.

use super::super::REDIAL;
use super::*;

impl Shard {
    pub(super) fn open(&mut self, now: Moment, opening: Opening) {
        let slot = self.place(Slot::Free);
        let local = match opening.local {
            LocalKind::Duct(duct) => Local::Duct(duct),
            LocalKind::Socket(mut socket) => {
                if let Err(error) = socket.register(&self.registry, Token(slot * 2 + 1)) {
                    self.free.push(slot);
                    let end = End::new(Ending::Internal, format!("cannot watch the local socket: {error}"));
                    return (opening.client.events)(Event::Over(end));
                }
                Local::socket(socket)
            }
        };
        let (pipe, role) = (Pipe::new(opening.settings), Role::Client(Box::new(opening.client)));
        let live = Live::new(opening.serial, pipe, local, role, self.rt.wall());
        self.clients += 1;
        self.serials.insert(opening.serial, slot);
        self.tick.get_or_insert((now, self.rt.wall()));
        self.slots[slot] = Slot::Live(Box::new(live));
        self.again.push(slot);
    }

    /// Starts an attempt to connect if the pipe wants one now.
    pub(super) fn dial_if_due(&mut self, now: Moment, slot: usize, live: &mut Live) {
        let serial = live.serial;
        let Role::Client(client) = &mut live.role else { return };
        let due = |at: Option<Moment>| at.is_some_and(|at| at <= now);
        let replacing = live.bearer.is_some();
        if live.pipe.over_with().is_some()
            || !(due(client.redial_at) || (replacing && due(client.replace_at)))
        {
            return;
        }
        client.redial_at = None;
        client.replace_at = None;
        let epoch = client.attempts.begin();
        let cancel = self.rt.cancel_token();
        client.cancel = Some(cancel.clone());
        let want = match &client.known {
            Some(known) => Want::Resume(known.clone()),
            None => Want::New { target: client.target.clone(), limit: live.pipe.tell().1 },
        };
        // Without a carrier nothing more is received: how it stands now is how it will stand.
        let standing = (!replacing).then(|| stand(&mut live.pipe));
        let (rt, port, dialer) = (self.rt.clone(), self.port.clone(), client.dialer.clone());
        self.start(Box::new(move || {
            let result = attempt(&rt, &dialer, &cancel, epoch, &want, || match standing {
                Some(stand) => Some(stand),
                None => {
                    let (answer, answered) = rt.channel("stand-still", 1);
                    port.send(Order::StandStill { slot, serial, dial: epoch, answer });
                    // Answered by the pipe's thread, or disconnected with it.
                    answered.recv().ok()
                }
            });
            port.send(Order::Dialed { slot, serial, dial: epoch, result: result.map(Box::new) });
        }));
    }

    pub(super) fn stand_still(&mut self, slot: usize, serial: u64, dial: u64, answer: &rt::Sender<Stand>) {
        let Some(live) = self.find(slot, serial) else { return };
        let Role::Client(client) = &live.role else { return };
        if !client.attempts.is_out(dial) {
            return;
        }
        if let Some(bearer) = &mut live.bearer {
            bearer.still = true;
        }
        let stand = stand(&mut live.pipe);
        // One answer for a channel of one.
        if answer.try_send(stand).is_err() {
            log::debug!("pipes: a dial did not wait for its answer");
        }
    }

    pub(super) fn dialed(
        &mut self,
        now: Moment,
        slot: usize,
        serial: u64,
        dial: u64,
        result: Result<Box<Dialed>, DialError>,
    ) {
        if self.find(slot, serial).is_none() {
            return;
        }
        let Some(mut live) = self.take_live(slot) else { return };
        let Role::Client(client) = &mut live.role else { unreachable!("only clients dial") };
        let result = client.attempts.settle(dial, result, drop);
        match result {
            // The attempt was given up; its socket is closed.
            None => {}
            Some(Ok(dialed)) => self.welcomed(now, slot, &mut live, dial, *dialed),
            Some(Err(error)) => {
                client.attempts.end();
                self.dial_failed(now, slot, &mut live, error);
            }
        }
        self.settle(now, slot, live);
        self.again.push(slot);
    }

    pub(super) fn welcomed(&mut self, now: Moment, slot: usize, live: &mut Live, dial: u64, dialed: Dialed) {
        let Dialed { mut carrier, decoder, rest, welcome } = dialed;
        let replaced = live.take_bearer();
        let down_for = match (&replaced, &live.role) {
            (None, Role::Client(client)) => now.since(client.lost_at),
            _ => Duration::ZERO,
        };
        if let Some(old) = replaced {
            self.drop_bearer(old);
        }
        let was_known = {
            let Role::Client(client) = &mut live.role else { unreachable!("only clients dial") };
            let was_known = client.known.is_some();
            if let Some(secret) = welcome.secret {
                client.known = Some(Known { id: welcome.id, secret, instance: welcome.instance });
            }
            client.grace = match (client.grace, welcome.grace) {
                (Some(mine), Some(theirs)) => Some(mine.min(theirs)),
                (mine, theirs) => mine.or(theirs),
            };
            was_known
        };
        let watched = carrier.socket().register(&self.registry, Token(slot * 2));
        let attached = live.pipe.attach(now, dial, welcome.stand.recv, welcome.stand.limit, &mut self.pool);
        let replayed = match (watched, attached) {
            (Ok(()), Ok(replayed)) => replayed,
            (Err(error), Ok(_)) => {
                live.pipe.detach(dial);
                if let Role::Client(client) = &mut live.role {
                    client.lost_at = now;
                }
                let error = DialError::io("watching the carrier", &error);
                return self.dial_failed(now, slot, live, error);
            }
            (_, Err(violation)) => {
                // The server has other bytes than ours; nothing can be saved.
                return live.pipe.kill(End::new(Ending::Protocol, violation.to_string()), &mut self.pool);
            }
        };
        live.bearer = Some(Bearer::new(now, &live.pipe, carrier, decoder, CarrierPeer::default()));
        let draw = self.rand.next_u64();
        let Role::Client(client) = &mut live.role else { unreachable!("only clients dial") };
        client.backoff.healthy(now);
        client.last_error = None;
        client.replace_at = client.carrier_age.map(|age| now + spread(age, draw));
        (client.events)(match was_known {
            false => Event::Connected { id: welcome.id, grace: welcome.grace },
            true => Event::Recovered { down_for, replayed },
        });
        self.shared.figures.replayed(replayed);
        if let Local::Duct(duct) = &live.local {
            duct.set_state(State::Connected);
        }
        live.detached_at = None;
        live.goodbye_by = None;
        if !rest.is_empty() {
            live.heard(now);
            self.take_in(now, live, &rest, &mut Visit::Own);
        }
    }

    pub(super) fn dial_failed(&mut self, now: Moment, slot: usize, live: &mut Live, error: DialError) {
        let draw = self.rand.next_u64();
        if live.bearer.is_some() {
            // A replacement failed. If the old carrier was not frozen yet it simply stays; if it was, the
            // server may have moved the pipe already: begin afresh.
            if live.bearer.as_ref().is_some_and(|bearer| bearer.still) {
                self.lose(now, slot, live, "its replacement failed half way");
            } else if let Role::Client(client) = &mut live.role {
                client.replace_at = Some(now + spread(Duration::from_secs(30), draw));
            }
            return;
        }
        let Role::Client(client) = &mut live.role else { unreachable!("only clients dial") };
        let never = client.known.is_none();
        let budget = if never { client.patience } else { client.grace };
        let spent = budget.is_some_and(|budget| now.since(client.lost_at) >= budget);
        let done = live.pipe.ending().is_some();
        if done && !error.retriable {
            // The server is done with it as well, or has forgotten it: it ended the way it ended here.
            return live.pipe.closed_after_goodbye(&mut self.pool);
        }
        if done && now.since(client.lost_at) >= LINGER {
            let end = live.pipe.ending().cloned().expect("it is done");
            return live.pipe.kill(end, &mut self.pool);
        }
        // Whoever has just come wants to know at once; a pipe that was let in before waits for a better network.
        let is_turned_away = never && error.end.code == Ending::Auth;
        if !error.retriable || spent || is_turned_away {
            let end = match (spent && error.retriable, never) {
                (true, false) => End::new(Ending::GraceExpired, format!("gave up; at last: {}", error.end)),
                _ => error.end,
            };
            return live.pipe.kill(end, &mut self.pool);
        }
        let at = match client.backoff.failed(now, draw) {
            Next::TryAt(at) => no_longer_than_away(now, client.lost_at, at).max(now + error.retry_after),
            Next::GiveUp => now + error.retry_after.max(Duration::from_secs(5)),
        };
        client.redial_at = Some(at);
        if client.last_error.as_ref() != Some(&error.end) {
            (client.events)(Event::Trouble(error.end.clone()));
        }
        client.last_error = Some(error.end);
    }

    pub(super) fn start(&mut self, job: Job) {
        // In line: as many as there are pipes without a carrier.
        self.dials.line.push_back(job);
        self.start_next();
    }

    pub(super) fn dial_ended(&mut self) {
        self.dials.out -= 1;
        self.start_next();
    }

    /// Those for whom there was no thread.
    pub(super) fn start_again(&mut self, now: Moment) {
        if self.dials.again_at.is_some_and(|at| at <= now) {
            self.dials.again_at = None;
            self.start_next();
        }
    }

    fn start_next(&mut self) {
        while self.dials.out < DIALS_MAX && self.dials.again_at.is_none() {
            let Some(job) = self.dials.line.pop_front() else { return };
            self.dials.threads.retain(|thread| !thread.is_finished());
            // A thread that cannot be had takes the job with it: it stays here until it is taken.
            let job = Arc::new(Lock::new(Some(job)));
            let taken = job.clone();
            let begun = self.rt.spawn(format!("dial-pipe-{}", self.index), move || {
                let job = taken.lock().take();
                job.expect("one thread takes it")();
            });
            match begun {
                Ok(thread) => {
                    self.dials.out += 1;
                    self.dials.threads.push(thread);
                }
                Err(error) => {
                    log::warn!("pipes: no thread to connect with, trying again in a second: {error}");
                    self.dials.line.push_front(job.lock().take().expect("no thread took it"));
                    self.dials.again_at = Some(self.rt.now() + Duration::from_secs(1));
                }
            }
        }
    }
}

/// A wait is no longer than the outage has been: after a short one whoever waits must not be kept waiting for a long
/// draw. That still at most doubles how long it is in all.
fn no_longer_than_away(now: Moment, lost_at: Moment, at: Moment) -> Moment {
    at.min(now + now.since(lost_at).max(REDIAL.first))
}

impl ClientSide {
    /// Whatever attempt is out is not wanted any more.
    pub(super) fn give_up_dialing(&mut self) {
        self.attempts.end();
        if let Some(cancel) = self.cancel.take() {
            cancel.cancel();
        }
    }
}

pub(super) fn stand(pipe: &mut Pipe) -> Stand {
    let fin = pipe.peer_finished();
    let (recv, limit) = pipe.tell();
    Stand { recv, fin, limit }
}

/// Ten percent less to ten percent more.
pub(super) fn spread(around: Duration, draw: u64) -> Duration {
    let share = (draw >> 32) as f64 / f64::from(u32::MAX);
    around.mul_f64(0.9 + 0.2 * share)
}

/// One attempt of a client, on a thread of its own.
pub(super) fn attempt(
    rt: &Rt,
    dialer: &Arc<dyn Dialer>,
    cancel: &Cancel,
    epoch: u64,
    want: &Want,
    stand_still: impl FnOnce() -> Option<Stand>,
) -> Result<Dialed, DialError> {
    if cancel.is_cancelled() {
        // Given up while it waited in line.
        return Err(DialError::later(End::new(Ending::Superseded, "the attempt was given up")));
    }
    let mut patience = Patience::new(rt, rt.now() + CONNECT_WAIT, cancel)
        .map_err(|error| DialError::io("preparing to connect", &error))?;
    dial::dial(dialer, &mut patience, epoch, want, stand_still)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_outage_a_pipe_is_back_before_it_has_been_away_for_twice_as_long_or_five_seconds_more() {
        let longest = Duration::from_secs(5);
        let lost_at = Moment::from_millis(1_000);
        let mut draw = 1_u64;
        for outage in [1_000, 1_700, 3_000, 10_000, 60_000].map(Duration::from_millis) {
            for _ in 0..500 {
                let (mut backoff, mut now) = (Backoff::new(REDIAL), lost_at);
                while now < lost_at + outage {
                    draw =
                        draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let Next::TryAt(at) = backoff.failed(now, draw) else { panic!("it never gives up") };
                    // Time goes on, if only a little.
                    now = no_longer_than_away(now, lost_at, at).max(now + Duration::from_millis(1));
                }
                let late = now.since(lost_at + outage);
                assert!(late <= outage.min(longest), "{late:?} after {outage:?}");
            }
        }
    }
}
