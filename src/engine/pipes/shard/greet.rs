//! The server's handshake: from a connection to a pipe that it bears.

use super::dials::stand;
use super::*;

impl Shard {
    pub(super) fn greet(&mut self, now: Moment, mut greeter: Box<Greeter>) {
        self.serial += 1;
        greeter.serial = self.serial;
        let slot = self.place(Slot::Free);
        if let Err(error) = greeter.carrier.socket().register(&self.registry, Token(slot * 2)) {
            log::warn!("pipes: cannot watch a new carrier: {error}");
            self.free.push(slot);
            return;
        }
        self.alarms.push(Reverse((greeter.deadline, slot, greeter.serial)));
        self.slots[slot] = Slot::Greeter(greeter);
        self.turn(now, slot);
    }

    pub(super) fn turn_greeter(&mut self, now: Moment, slot: usize, mut greeter: Box<Greeter>) {
        if now >= greeter.deadline {
            if let Stage::Connecting(asked, _, begun) = &greeter.stage {
                let (end, again) = match begun.load(Ordering::SeqCst) {
                    true => {
                        let text = format!("connecting to {} took too long", asked.target);
                        (End::new(Ending::TargetUnreachable, text), None)
                    }
                    // That says nothing about the target.
                    false => {
                        let text = "too many targets are being connected to";
                        (End::new(Ending::Limit, text), Some(Duration::from_secs(1)))
                    }
                };
                return self.refuse(slot, greeter, end, again);
            }
            return self.dismiss(slot, greeter);
        }
        if greeter.carrier.has_more() {
            // The answer to the upgrade, which the client waits for.
            match greeter.carrier.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return self.dismiss(slot, greeter);
                }
                _ => {}
            }
        }
        if let Stage::Challenging(challenge) = &greeter.stage {
            let challenge = Greeting::Challenge(*challenge);
            greeter.stage = Stage::Listening;
            if greeter.say(&challenge).is_err() {
                return self.dismiss(slot, greeter);
            }
        }
        if matches!(greeter.stage, Stage::Connecting(..) | Stage::Reaching(_)) {
            // The client has nothing to say before its welcome; its end is noticed then.
            self.slots[slot] = Slot::Greeter(greeter);
            return;
        }
        loop {
            let mut buffer = [0; 4096];
            let count = match greeter.carrier.read(&mut buffer) {
                Ok(0) => return self.dismiss(slot, greeter),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.dismiss(slot, greeter),
            };
            let mut input = &buffer[..count];
            loop {
                let piece = match greeter.decoder.next(&mut input) {
                    Ok(Some(piece)) => piece,
                    Ok(None) => break,
                    Err(error) => {
                        return self.refuse(
                            slot,
                            greeter,
                            End::new(Ending::Protocol, error.to_string()),
                            None,
                        );
                    }
                };
                let Piece::Greeting(greeting) = piece else {
                    let end = End::new(Ending::Protocol, "a frame came before the handshake was through");
                    return self.refuse(slot, greeter, end, None);
                };
                match greeter.answering.step(greeting, self.rt.secret()) {
                    Err(end) => return self.refuse(slot, greeter, end, None),
                    Ok(Answered::New(hello)) => return self.new_pipe(now, slot, greeter, hello),
                    Ok(Answered::Challenge(hello, id, challenge)) => {
                        if let Err(end) =
                            greeter.authenticate(&self.shared, hello.auth.as_ref().map(|auth| &*auth.0))
                        {
                            return self.refuse(slot, greeter, end, None);
                        }
                        if id.owner() != self.shared.owner && !greeter.peer.relayed {
                            match (self.shared.ways)(id, &greeter.peer) {
                                Way::Here => {}
                                Way::Through(dialer) => {
                                    let rest = input.to_vec();
                                    return self.carry_on(now, slot, greeter, hello, dialer, &rest);
                                }
                                Way::Nowhere(why) => return self.not_reached(slot, greeter, &why),
                            }
                        }
                        greeter.stage = Stage::Challenging(challenge);
                        let owner = usize::from(id.0[15]) % self.shared.ports().len();
                        if owner != usize::from(self.index) {
                            return self.hand_over(slot, greeter, owner);
                        }
                        if greeter.say(&Greeting::Challenge(challenge)).is_err() {
                            return self.dismiss(slot, greeter);
                        }
                        greeter.stage = Stage::Listening;
                    }
                    Ok(Answered::Claim(claim)) => {
                        let rest = input.to_vec();
                        return self.claim(now, slot, greeter, claim, &rest);
                    }
                }
            }
        }
        self.slots[slot] = Slot::Greeter(greeter);
    }

    /// Moves a carrier to the thread that owns the pipe it wants, known or not.
    pub(super) fn hand_over(&mut self, slot: usize, mut greeter: Box<Greeter>, owner: usize) {
        greeter.carrier.socket().deregister(&self.registry);
        self.free.push(slot);
        // Full: the carrier is closed by being dropped, and the client comes back in a moment.
        if self.shared.ports()[owner].try_send(Order::Greeter(greeter)).is_err() {
            self.shared.figures.refused(Ending::Limit);
        }
    }

    pub(super) fn dismiss(&mut self, slot: usize, mut greeter: Box<Greeter>) {
        match &greeter.stage {
            Stage::Connecting(asked, cancel, _) => {
                self.shared.ledger.leave(&asked.principal);
                cancel.cancel();
            }
            Stage::Reaching(cancel) => cancel.cancel(),
            Stage::Listening | Stage::Challenging(_) => {}
        }
        greeter.carrier.socket().deregister(&self.registry);
        self.free.push(slot);
    }

    pub(super) fn refuse(
        &mut self,
        slot: usize,
        mut greeter: Box<Greeter>,
        end: End,
        retry_after: Option<Duration>,
    ) {
        self.shared.figures.refused(end.code);
        log::debug!("pipes: refused {}: {end}", greeter.peer);
        let refuse = Refuse {
            instance: self.shared.instance,
            end,
            retriable: retry_after.is_some(),
            retry_after: retry_after.unwrap_or_default(),
        };
        // If it does not go out the client sees a closed connection, and asks again.
        if let Err(error) = greeter.say(&Greeting::Refuse(refuse)) {
            log::trace!("pipes: a refusal did not go out: {error}");
        }
        greeter.carrier.close();
        self.dismiss(slot, greeter);
    }

    pub(super) fn new_pipe(&mut self, now: Moment, slot: usize, mut greeter: Box<Greeter>, hello: Hello) {
        let Wish::New { epoch, target, limit } = hello.wish else { unreachable!("a wish for a new pipe") };
        if greeter.peer.relayed {
            let end = End::new(Ending::Protocol, "another replica asks for a pipe of its own");
            return self.refuse(slot, greeter, end, None);
        }
        let principal = match greeter.authenticate(&self.shared, hello.auth.as_ref().map(|auth| &*auth.0)) {
            Ok(principal) => principal,
            Err(end) => return self.refuse(slot, greeter, end, None),
        };
        if !greeter.peer.confidential && !self.shared.settings.insecure {
            let why = "a pipe's secret is only given over TLS or on one machine; use https, or start the server with --insecure";
            return self.refuse(slot, greeter, End::new(Ending::NotAllowed, why), None);
        }
        if epoch == 0 {
            return self.refuse(slot, greeter, End::new(Ending::Protocol, "an epoch is above 0"), None);
        }
        if self.draining {
            // Another replica, or this one's successor, is a moment away.
            let end = End::new(Ending::Shutdown, "this server is going");
            return self.refuse(slot, greeter, end, Some(Duration::from_secs(1)));
        }
        if let Err(why) = self.shared.ledger.expect(&principal, now, &self.shared.settings.limits) {
            return self.refuse(slot, greeter, End::new(Ending::Limit, why), Some(Duration::from_secs(1)));
        }
        let asked = Asked { epoch, limit, target, principal };
        match &self.shared.mode {
            Mode::Nothing => {
                self.shared.ledger.leave(&asked.principal);
                self.refuse(slot, greeter, End::new(Ending::NotAllowed, "this server has no targets"), None);
            }
            Mode::Listen(_) => {
                self.serial += 1;
                let serial = self.serial;
                let duct = Arc::new(self.port.duct(&self.rt, serial));
                self.admit(now, slot, greeter, asked, serial, Local::Duct(duct), None);
            }
            Mode::Tunnel => {
                let target: Target = match asked.target.parse() {
                    Ok(target) => target,
                    Err(error) => {
                        self.shared.ledger.leave(&asked.principal);
                        let end = End::new(Ending::NotAllowed, format!("the target {error}"));
                        return self.refuse(slot, greeter, end, None);
                    }
                };
                let cancel = self.rt.cancel_token();
                greeter.deadline = now + CONNECT_WAIT + HANDSHAKE_WAIT;
                let begun = Arc::new(AtomicBool::new(false));
                greeter.stage = Stage::Connecting(asked, cancel.clone(), begun.clone());
                let serial = greeter.serial;
                self.alarms.push(Reverse((greeter.deadline, slot, serial)));
                self.slots[slot] = Slot::Greeter(greeter);
                let (rt, port, shared) = (self.rt.clone(), self.port.clone(), self.shared.clone());
                self.start(Box::new(move || {
                    begun.store(true, Ordering::SeqCst);
                    let result = connect(&rt, &shared, &target, &cancel);
                    port.send(Order::Target { slot, serial, result });
                }));
            }
        }
    }

    pub(super) fn target(
        &mut self,
        now: Moment,
        slot: usize,
        serial: u64,
        result: Result<(Socket, Option<std::net::SocketAddr>), End>,
    ) {
        let current =
            matches!(self.slots.get(slot), Some(Slot::Greeter(greeter)) if greeter.serial == serial);
        if !current {
            // Whoever asked has left; the socket is closed by being dropped.
            return;
        }
        let Slot::Greeter(mut greeter) = std::mem::replace(&mut self.slots[slot], Slot::Free) else {
            unreachable!("looked at above")
        };
        let Stage::Connecting(asked, ..) = std::mem::replace(&mut greeter.stage, Stage::Listening) else {
            unreachable!("only a connecting one has a target out")
        };
        match result {
            Ok((socket, resolved)) => {
                self.serial += 1;
                let serial = self.serial;
                self.admit(now, slot, greeter, asked, serial, Local::socket(socket), resolved);
            }
            Err(end) => {
                self.shared.ledger.leave(&asked.principal);
                self.refuse(slot, greeter, end, None);
            }
        }
    }

    /// Everything is in place: the pipe begins.
    pub(super) fn admit(
        &mut self,
        now: Moment,
        slot: usize,
        greeter: Box<Greeter>,
        asked: Asked,
        serial: u64,
        mut local: Local,
        resolved: Option<std::net::SocketAddr>,
    ) {
        if let Local::Socket(local) = &mut local
            && let Err(error) = local.socket.register(&self.registry, Token(slot * 2 + 1))
        {
            self.shared.ledger.leave(&asked.principal);
            return self.refuse(
                slot,
                greeter,
                End::new(Ending::Internal, error.to_string()),
                Some(Duration::from_secs(1)),
            );
        }
        let place = match self.shared.ledger.enter(&asked.principal, &self.shared.settings.limits) {
            Ok(place) => place,
            Err(why) => {
                let end = End::new(Ending::Limit, why);
                return self.refuse(slot, greeter, end, Some(Duration::from_secs(1)));
            }
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.shared.owner);
        id[8..].copy_from_slice(&self.rt.secret::<8>());
        // The last byte names the thread, so that a resume finds it without a lock.
        let threads = self.shared.ports().len() as u8;
        id[15] = id[15] / threads.max(1) * threads.max(1);
        id[15] = if id[15].checked_add(self.index).is_some() { id[15] + self.index } else { self.index };
        let id = PipeId(id);
        let secret = Secret(self.rt.secret());
        let settings = self.shared.settings.pipe(Side::Server);
        let mut pipe = Pipe::new(settings);
        if let Err(violation) = pipe.attach(now, asked.epoch, settings.start, asked.limit, &mut self.pool) {
            unreachable!("a fresh pipe can be attached: {violation}");
        }
        let accepted = match (&self.shared.mode, &local) {
            (Mode::Listen(accept), Local::Duct(duct)) => {
                let accepted = Accepted {
                    duct: duct.clone(),
                    port: self.port.clone(),
                    serial,
                    id,
                    principal: asked.principal.clone(),
                    target: asked.target.clone(),
                    peer: greeter.peer.clone(),
                };
                duct.set_state(State::Connected);
                // Full: the program does not accept as fast as pipes come; the client asks again.
                accept.try_send(accepted).is_ok()
            }
            _ => true,
        };
        if !accepted {
            self.shared.ledger.give_back(&asked.principal, now, place.evict);
            let end = End::new(Ending::Limit, "too many pipes wait to be accepted");
            return self.refuse(slot, greeter, end, Some(Duration::from_millis(200)));
        }
        if let Some(evict) = place.evict {
            self.shared.evict(evict);
        }
        let stand = stand(&mut pipe);
        let welcome = Welcome {
            proto: PROTO,
            instance: self.shared.instance,
            id,
            epoch: asked.epoch,
            grace: self.shared.settings.grace,
            window: pipe.window(),
            stand,
            tag: [0; 32],
            secret: Some(secret.clone()),
        };
        let mut bearer = Bearer::new(now, &pipe, greeter.carrier, greeter.decoder, greeter.peer);
        bearer.outbox.greet(&Greeting::Welcome(welcome));
        let server = ServerSide {
            id,
            secret,
            principal: asked.principal,
            target: asked.target,
            resolved,
            unconfirmed: Some(now),
            purse: place.purse,
        };
        let mut live = Live::new(serial, pipe, local, Role::Server(server), self.rt.wall());
        live.bearer = Some(bearer);
        self.ids.insert(id, slot);
        if matches!(live.local, Local::Duct(_)) {
            self.serials.insert(serial, slot);
        }
        self.shared.figures.opened();
        (self.shared.notes)(&Note::Opened(live.info(now).expect("a server's pipe has a name")));
        self.slots[slot] = Slot::Live(Box::new(live));
        self.again.push(slot);
    }

    /// Somebody says that a pipe is theirs.
    pub(super) fn claim(
        &mut self,
        now: Moment,
        slot: usize,
        greeter: Box<Greeter>,
        claim: Claim,
        rest: &[u8],
    ) {
        let owner = self.ids.get(&claim.id()).copied();
        let made_up = Secret(self.shared.instance.repeat(2).try_into().expect("twice sixteen"));
        let server = owner.and_then(|owner| match &self.slots[owner] {
            Slot::Live(live) => match &live.role {
                Role::Server(server) => Some(server),
                Role::Client(_) => None,
            },
            _ => None,
        });
        let tomb = self.tombs.iter().rev().find(|tomb| tomb.id == claim.id());
        let secret = server.map(|server| &server.secret).or(tomb.map(|tomb| &tomb.secret));
        // The same work and the same words, whether there is no such pipe, the proof is bad, or it
        // belongs to somebody else.
        let holds = claim.holds(secret.unwrap_or(&made_up));
        if let Some(tomb) =
            tomb.filter(|tomb| holds && greeter.peer.principal.as_ref() == Some(&tomb.principal))
        {
            let end = tomb.end.clone();
            self.shared.figures.resume_refused(end.code);
            return self.refuse(slot, greeter, end, None);
        }
        let Some(server) =
            server.filter(|server| holds && greeter.peer.principal.as_ref() == Some(&server.principal))
        else {
            let end = End::new(Ending::UnknownPipe, "there is no such pipe here (any more)");
            self.shared.figures.resume_refused(end.code);
            return self.refuse(slot, greeter, end, None);
        };
        let still_allowed = match (&self.shared.mode, server.target.parse::<Target>()) {
            (Mode::Tunnel, Ok(target)) => self.shared.allows(&target, server.resolved),
            (Mode::Tunnel, Err(_)) => false,
            _ => true,
        };
        let (secret, principal) = (server.secret.clone(), server.principal.clone());
        let owner = owner.expect("a pipe was found");
        let mut live = self.take_live(owner).expect("it was there a moment ago");
        if !still_allowed {
            let end = End::new(Ending::NotAllowed, "the target is not on the allow-list any more");
            live.pipe.abort(end.clone(), &mut self.pool);
            self.write_carrier(now, owner, &mut live, &Visit::Own);
            self.settle(now, owner, live);
            self.shared.figures.resume_refused(end.code);
            return self.refuse(slot, greeter, end, None);
        }
        if let Some(end) = live.pipe.over_with().cloned() {
            // Only its local side still takes what came.
            self.slots[owner] = Slot::Live(live);
            self.shared.figures.resume_refused(end.code);
            return self.refuse(slot, greeter, end, None);
        }
        if claim.epoch() <= live.pipe.epoch() {
            self.slots[owner] = Slot::Live(live);
            let end = End::new(Ending::Superseded, "a newer carrier bears the pipe");
            self.shared.figures.resume_refused(end.code);
            return self.refuse(slot, greeter, end, Some(Duration::ZERO));
        }
        if let Err(violation) = live.pipe.check_peer(claim.stand().recv) {
            let end = End::new(Ending::Protocol, violation.to_string());
            live.pipe.abort(end.clone(), &mut self.pool);
            self.write_carrier(now, owner, &mut live, &Visit::Own);
            self.settle(now, owner, live);
            self.shared.figures.resume_refused(end.code);
            return self.refuse(slot, greeter, end, None);
        }
        // The order of a takeover: the proof held and the epoch is new; let go of the old carrier;
        // only then say what was received.
        if let Some(old) = live.take_bearer() {
            self.drop_bearer(old);
        }
        let mut greeter = greeter;
        greeter.carrier.socket().deregister(&self.registry);
        self.free.push(slot);
        if let Err(error) = greeter.carrier.socket().register(&self.registry, Token(owner * 2)) {
            log::warn!("pipes: cannot watch a carrier: {error}");
            live.pipe.detach(live.pipe.epoch());
            if live.detached_at.is_none() {
                live.detached_at = Some(now);
                if let Role::Server(server) = &live.role {
                    server.is_without_carrier(now, &self.shared, "its next carrier cannot be watched");
                }
            }
            return self.settle(now, owner, live);
        }
        let stand = stand(&mut live.pipe);
        let tag = claim.answer(&secret, &stand);
        let welcome = Welcome {
            proto: PROTO,
            instance: self.shared.instance,
            id: claim.id(),
            epoch: claim.epoch(),
            grace: self.shared.settings.grace,
            window: live.pipe.window(),
            stand,
            tag,
            secret: None,
        };
        let theirs = claim.stand();
        let replayed = match live.pipe.attach(now, claim.epoch(), theirs.recv, theirs.limit, &mut self.pool) {
            Ok(replayed) => replayed,
            Err(violation) => unreachable!("checked above: {violation}"),
        };
        self.shared.figures.resumed();
        self.shared.figures.replayed(replayed);
        let mut bearer = Bearer::new(now, &live.pipe, greeter.carrier, greeter.decoder, greeter.peer);
        bearer.outbox.greet(&Greeting::Welcome(welcome));
        live.bearer = Some(bearer);
        live.goodbye_by = None;
        if let Some(since) = live.detached_at.take() {
            self.shared.ledger.back(claim.id(), &principal);
            self.shared.figures.detached(now.since(since));
        }
        (self.shared.notes)(&Note::Attached { id: claim.id(), replayed });
        // Before the next takeover of the same round can drop it: whoever wins, the loser knows that it had
        // won before.
        self.write_carrier(now, owner, &mut live, &Visit::Own);
        if !rest.is_empty() {
            live.heard(now);
            self.take_in(now, &mut live, rest, &mut Visit::Own);
        }
        self.settle(now, owner, live);
        self.again.push(owner);
    }
}

impl Shard {
    /// Remembers how a pipe ended.
    pub(super) fn bury(&mut self, server: &ServerSide, end: &End) {
        if self.tombs.len() == TOMBS_MAX {
            self.tombs.pop_front();
        }
        self.tombs.push_back(Tomb {
            id: server.id,
            secret: server.secret.clone(),
            principal: server.principal.clone(),
            // A peer's words may be long.
            end: End::new(end.code, end.reason.chars().take(200).collect::<String>()),
        });
    }
}

impl Greeter {
    pub(super) fn say(&mut self, greeting: &Greeting) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode_greeting(greeting, &mut bytes);
        // A greeting is smaller than any socket's buffer; a carrier that takes only half is no carrier.
        let count = self.carrier.write(&[IoSlice::new(&bytes)])?;
        if count < bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Who it is: as the door found out, or by the token in HELLO.
    pub(super) fn authenticate(&mut self, shared: &Shared, token: Option<&str>) -> Result<Arc<str>, End> {
        if let Some(principal) = &self.peer.principal {
            return Ok(principal.clone());
        }
        let principal = (shared.gate)(token, &self.peer)?;
        self.peer.principal = Some(principal.clone());
        Ok(principal)
    }
}

/// Connects to a target for a client, on a thread of its own.
pub(super) fn connect(
    rt: &Rt,
    shared: &Shared,
    target: &Target,
    cancel: &Cancel,
) -> Result<(Socket, Option<std::net::SocketAddr>), End> {
    let not_allowed = || End::new(Ending::NotAllowed, format!("{target} is not on the server's allow-list"));
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::ConnectionRefused => Ending::TargetRefused,
            _ => Ending::TargetUnreachable,
        };
        End::new(code, format!("connecting to {target}: {error}"))
    };
    if cancel.is_cancelled() {
        return Err(End::new(Ending::Superseded, "nobody waits for it any more"));
    }
    let mut patience = Patience::new(rt, rt.now() + CONNECT_WAIT + CONNECT_WAIT, cancel).map_err(failed)?;
    match target {
        Target::Unix(path) => {
            if !shared.allows(target, None) {
                return Err(not_allowed());
            }
            let mut socket = patience.connect_unix(path).map_err(failed)?;
            patience.release(&mut socket);
            Ok((socket, None))
        }
        Target::Tcp(host, port) => {
            if shared.allow.lock().is_nothing() {
                // Nothing is listed: not even a name is looked up for a stranger.
                return Err(not_allowed());
            }
            let mut addresses = patience.resolve(host, *port).map_err(failed)?;
            addresses.retain(|address| shared.allows(target, Some(*address)));
            if addresses.is_empty() {
                return Err(not_allowed());
            }
            let mut socket = patience.connect(&addresses).map_err(failed)?;
            patience.release(&mut socket);
            let resolved = match &socket {
                Socket::Tcp(stream) => stream.peer_addr().ok(),
                Socket::Unix(_) => None,
            };
            Ok((socket, resolved))
        }
    }
}
