//! Links in the room: from the first frame to the session they bear.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::admission::{Admitted, admit};
use super::calls::Procedures;
use super::client::{Client, Gate};
use super::figures::count;
use super::mail::Message;
use super::{Alarm, Entry, Sessions};
use crate::engine::visits::{Caller, Visit};
use crate::rt::Lock;
use crate::state::connection;
use crate::state::envelope::Outgoing;
use crate::state::handshake::{Decision, Refusal, RefusalCode, Request, Response, decide};
use crate::state::procedure::Served;
use crate::state::session::Cause;
use crate::state::session::server::{Input, Session};
use crate::state::time::Moment;
use crate::state::value::Value;
use crate::wire::bearer::{Bearer, Heard};

/// A link as the room knows it.
pub(super) struct Link {
    pub(super) bearer: Box<dyn Bearer>,
    pub(super) caller: Caller,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    /// Nothing came yet.
    Waiting { until: Moment },
    /// Its handshake is being looked at.
    Admitting { from: String, until: Moment },
    /// It bears a session.
    Bound(u64),
}

impl<P: Procedures> Sessions<P> {
    pub(super) fn opened(&mut self, now: Moment, link: u64, bearer: Box<dyn Bearer>, caller: Caller) {
        if self.waiting >= self.settings.waiting_max {
            bearer.close(Cause::GoingAway.code(), "too many links have not said who they are");
            return;
        }
        let until = now + self.settings.timing.handshake;
        self.waiting += 1;
        self.alarms.push(Reverse((until, Alarm::Link(link))));
        self.links.insert(link, Link { bearer, caller, stage: Stage::Waiting { until } });
    }

    pub(super) fn heard(&mut self, now: Moment, link: u64, heard: Heard) {
        let Some(known) = self.links.get(&link) else { return };
        match (&known.stage, heard) {
            (Stage::Bound(key), Heard::Frame(frame)) => {
                let key = *key;
                let envelope = self.settings.codec.decode(&frame, self.settings.accepts).map_err(|bad| bad.0);
                self.arrived(now, key, link, envelope);
            }
            (Stage::Bound(key), Heard::Garbage(why)) => {
                let key = *key;
                self.arrived(now, key, link, Err(why));
            }
            (Stage::Bound(key), Heard::Closed { code }) => {
                let key = *key;
                self.forget_link(link);
                self.flush_backlog(now, key, link);
                self.step(now, key, Input::Detached { link, goodbye: code == Cause::Goodbye.code() });
            }
            (Stage::Waiting { until }, Heard::Frame(frame)) => {
                let until = *until;
                self.handshake(now, link, until, &frame);
            }
            (Stage::Waiting { .. }, Heard::Garbage(_)) => self.close_link(link, Cause::InvalidMessage),
            // Whoever cannot wait for an answer does not get one.
            (Stage::Admitting { .. }, Heard::Frame(_) | Heard::Garbage(_)) => {
                self.close_link(link, Cause::HandshakeRefused);
            }
            (Stage::Waiting { .. } | Stage::Admitting { .. }, Heard::Closed { .. }) => {
                drop(self.forget_link(link))
            }
        }
    }

    fn forget_link(&mut self, link: u64) -> Option<Link> {
        let known = self.links.remove(&link)?;
        self.waiting -= usize::from(!matches!(known.stage, Stage::Bound(_)));
        Some(known)
    }

    pub(super) fn close_link(&mut self, link: u64, cause: Cause) {
        if let Some(known) = self.forget_link(link) {
            known.bearer.close(cause.code(), cause.as_str());
        }
    }

    fn handshake(&mut self, now: Moment, link: u64, until: Moment, frame: &Bytes) {
        let Ok(envelope) = self.settings.codec.decode(frame, self.settings.accepts) else {
            count(&self.figures.handshakes, "result", "undecodable");
            return self.close_link(link, Cause::InvalidMessage);
        };
        let from = envelope.from.clone();
        let request = match Request::read(&envelope) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(link, &from, refusal),
        };
        let before =
            self.by_client.get(&from).and_then(|key| self.sessions.get(key)).map(|e| e.client.metadata());
        if let Some(known) = self.links.get_mut(&link) {
            known.stage = Stage::Admitting { from: from.clone(), until };
        }
        let (admission, mail) = (self.admission.clone(), self.mail.clone());
        if admission.is_quick() {
            let result = admission.admit(&from, request.metadata.as_ref(), before.as_deref());
            return self.admitted(now, link, Some(Box::new(request)), result);
        }
        let metadata = request.metadata.clone();
        let request = Some(Box::new(request));
        let asked = from.clone();
        let started = self.handlers.run(move || {
            let result = admit(&*admission, &asked, metadata.as_ref(), before.as_deref());
            mail.surely(Message::Admitted { link, request, result });
        });
        if !started {
            self.refuse(
                link,
                &from,
                Refusal::new(RefusalCode::RejectedByCustomHandler, "the server is too busy"),
            );
        }
    }

    pub(super) fn admitted(
        &mut self,
        now: Moment,
        link: u64,
        request: Option<Box<Request>>,
        result: Result<Admitted, Refusal>,
    ) {
        let Some(known) = self.links.get(&link) else { return };
        let result = result.and_then(|admitted| match self.admission.holds(&admitted.metadata) {
            true => Ok(admitted),
            false => {
                let reason = "these credentials were taken back";
                Err(Refusal::new(RefusalCode::RejectedByCustomHandler, reason))
            }
        });
        let from = match (&known.stage, request) {
            (Stage::Admitting { from, .. }, Some(request)) => (from.clone(), request),
            (Stage::Bound(key), None) => {
                let key = *key;
                return self.refreshed(now, key, result);
            }
            _ => return,
        };
        let (from, request) = from;
        let admitted = match result {
            Ok(admitted) => admitted,
            Err(refusal) => return self.refuse(link, &from, refusal),
        };
        let key = self.by_client.get(&from).copied();
        let known = key.and_then(|key| self.sessions.get(&key)).map(|entry| entry.session.known());
        match decide(&request, known, self.settings.second, self.settings.resumable) {
            Decision::Refuse(refusal) => self.refuse(link, &from, refusal),
            Decision::Resume => {
                count(&self.figures.handshakes, "result", "resumed");
                let Some(key) = key else { return };
                self.attach(now, key, link, &request, admitted);
            }
            Decision::Begin => {
                if let Some(old) = key {
                    self.step(now, old, Input::End(Cause::Replaced));
                }
                if self.sessions.len() >= self.settings.sessions_max {
                    let refusal = Refusal::new(
                        RefusalCode::RejectedByCustomHandler,
                        "the server holds as many sessions as it may",
                    );
                    return self.refuse(link, &from, refusal);
                }
                count(&self.figures.handshakes, "result", "begun");
                let key = self.begin(link, &from, &request, &admitted);
                self.attach(now, key, link, &request, admitted);
            }
        }
    }

    fn refuse(&mut self, link: u64, client: &str, refusal: Refusal) {
        count(&self.figures.handshakes, "result", refusal.code.as_str());
        let stream = self.ids.make();
        let message = Response::Refused(refusal).message(stream);
        let id = self.ids.make();
        let frame = self.settings.codec.encode(Outgoing {
            id: &id,
            from: &self.settings.id,
            to: client,
            seq: 0,
            ack: 0,
            message: &message,
        });
        if let Some(known) = self.links.get(&link) {
            known.bearer.send(frame);
        }
        self.close_link(link, Cause::HandshakeRefused);
    }

    fn begin(&mut self, link: u64, from: &str, request: &Request, admitted: &Admitted) -> u64 {
        self.next_session += 1;
        let key = self.next_session;
        let mut sink = Vec::new();
        let draw = self.rand.next_u64();
        let session = Session::begin(&self.settings.id, from, request, draw, self.options, &mut sink);
        let client = Client {
            id: from.to_owned(),
            session: request.session.clone(),
            version: request.version,
            metadata: Lock::new(Arc::new(admitted.metadata.clone())),
            gate: Gate::default(),
        };
        let entry = Entry {
            session,
            served: Served::new(&self.settings.id, request.version, self.settings.streams_max),
            client: Arc::new(client),
            requests: HashMap::with_hasher(self.rt.hasher()),
            held_by: BTreeSet::new(),
            backlog: VecDeque::new(),
            paused: false,
            armed: None,
            unacked_bytes: 0,
            visit: self.visit(link, from, request, admitted),
        };
        self.sessions.insert(key, entry);
        self.by_client.insert(from.to_owned(), key);
        self.figures.began.inc();
        self.figures.sessions.inc();
        key
    }

    fn visit(&self, link: u64, from: &str, request: &Request, admitted: &Admitted) -> Visit {
        let mut caller = self.links.get(&link).map(|known| known.caller.clone()).unwrap_or_default();
        if let Some(Value::Text(name)) = admitted.metadata.get("name") {
            caller.principal = Some(name.as_str().into());
        }
        let labels = [("client", from), ("session", request.session.as_str())];
        self.settings.visits.begin(connection::Kind::Session, &caller, &labels)
    }

    fn attach(&mut self, now: Moment, key: u64, link: u64, request: &Request, admitted: Admitted) {
        let refresh_at = self.refresh_at(now, admitted.expires_in);
        if let Some(known) = self.links.get_mut(&link) {
            known.stage = Stage::Bound(key);
            self.waiting -= 1;
        }
        if let Some(entry) = self.sessions.get_mut(&key) {
            *entry.client.metadata.lock() = Arc::new(admitted.metadata);
            // What an older link brought and nobody took is sent again on this one.
            entry.backlog.clear();
            entry.paused = false;
        }
        self.step(now, key, Input::Attached { link, peer_has: request.peer_has(), refresh_at });
    }

    /// Fresh metadata is asked for one handshake's time before the old expires.
    fn refresh_at(&self, now: Moment, expires_in: Option<Duration>) -> Option<Moment> {
        expires_in.map(|life| now + life.saturating_sub(self.settings.timing.handshake))
    }

    fn refreshed(&mut self, now: Moment, key: u64, result: Result<Admitted, Refusal>) {
        let accepted = result.ok().map(|admitted| {
            if let Some(entry) = self.sessions.get_mut(&key) {
                *entry.client.metadata.lock() = Arc::new(admitted.metadata);
            }
            self.refresh_at(now, admitted.expires_in)
        });
        self.step(now, key, Input::Refreshed { accepted });
    }
}
