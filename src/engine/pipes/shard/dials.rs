//! A client's attempts to connect, and what becomes of them.

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
        let live = Live {
            serial: opening.serial,
            pipe: Pipe::new(opening.settings),
            bearer: None,
            local,
            role: Role::Client(Box::new(opening.client)),
            alarm: None,
            detached_at: None,
            stood: (0, 0),
            goodbye_by: None,
            dropped_at: None,
            born: self.rt.wall(),
            up: 0,
            down: 0,
            blocked_since: None,
            duplicates: 0,
            guest_at: None,
            is_watched: false,
            stream: 0,
            looked: (Moment::ZERO, 0),
            was_full: false,
        };
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
        if done && error.end.code == Ending::UnknownPipe {
            // The server has forgotten what both sides were done with.
            return live.pipe.closed_after_goodbye(&mut self.pool);
        }
        if done && now.since(client.lost_at) >= LINGER {
            let end = live.pipe.ending().cloned().expect("it is done");
            return live.pipe.kill(end, &mut self.pool);
        }
        if !error.retriable || spent {
            let end = match (spent && error.retriable, never) {
                (true, false) => End::new(Ending::GraceExpired, format!("gave up; at last: {}", error.end)),
                _ => error.end,
            };
            return live.pipe.kill(end, &mut self.pool);
        }
        let at = match client.backoff.failed(now, draw) {
            Next::TryAt(at) => at.max(now + error.retry_after),
            Next::GiveUp => now + error.retry_after.max(Duration::from_secs(5)),
        };
        client.redial_at = Some(at);
        if client.last_error.as_ref() != Some(&error.end) {
            (client.events)(Event::Trouble(error.end.clone()));
        }
        client.last_error = Some(error.end);
    }

    pub(super) fn start(&mut self, job: Job) {
        if self.dials.out >= DIALS_MAX {
            // In line: as many as there are pipes without a carrier.
            self.dials.line.push_back(job);
            return;
        }
        self.dials.threads.retain(|thread| !thread.is_finished());
        match self.rt.spawn(format!("dial-pipe-{}", self.index), job) {
            Ok(thread) => {
                self.dials.out += 1;
                self.dials.threads.push(thread);
            }
            // The pipe has no attempt out then; its own alarm will ask again.
            Err(error) => log::warn!("pipes: no thread to connect with: {error}"),
        }
    }

    pub(super) fn dial_ended(&mut self) {
        self.dials.out -= 1;
        if let Some(job) = self.dials.line.pop_front() {
            self.start(job);
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
    let mut patience = Patience::new(rt, rt.now() + CONNECT_WAIT, cancel)
        .map_err(|error| DialError::io("preparing to connect", &error))?;
    dial::dial(dialer, &mut patience, epoch, want, stand_still)
}
