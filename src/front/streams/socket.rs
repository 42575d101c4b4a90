//! `/v1/ws`: many follows, watches and writes over one WebSocket, subprotocol `towpath.v1`.
//!
//! The client sends `{"id":1,"op":"follow","s":"chat/7",…}` and is answered `{"re":1,"ok":{…}}` or
//! `{"re":1,"error":{"code":…,"detail":…}}`. Events arrive in their envelope. What is asked is read on the
//! socket's I/O thread and handed to whoever does it; the answer comes from there.
//!
//! A follow that ends by itself says `closed` and leaves the socket to the others. The answer to what begins one
//! stands before its first event, and that to what ends one behind its last.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::{Said, read_lease, since};
use crate::codec::envelope::Envelope;
use crate::codec::token::Token;
use crate::engine::metadata::Metadata;
use crate::engine::streams::{
    Ended, Ends, FollowOptions, FollowerId, Since, StreamError, Streams, Written, address,
};
use crate::engine::visits::Caller;
use crate::engine::watches::AgentValues;
use crate::front::agents::{READERS, shown};
use crate::front::watcher::Watcher;
use crate::front::{Guard, Op, Principal, Reply, Request, Response, Secret};
use crate::rt::Lock;
use crate::state::stream::Cursor;
use crate::state::watch::Scope;
use crate::store::streams::{Address, Fence};
use crate::wire::websocket::close;
use crate::wire::{Closing, Frame, Happened, LinkBatch, LinkHandle, Outlet, Owner};

mod ask;

use ask::{Ask, Asked};

/// What a socket leads to.
pub(super) struct Behind {
    pub(super) streams: Streams,
    pub(super) metadata: Metadata,
    pub(super) guard: Arc<dyn Guard>,
}

/// Marks of watches on a link: those of follows are their numbers, which stay below.
const OF_A_WATCH: u64 = 1 << 63;

/// How its follows end that began while the socket ended.
fn gone() -> Closing {
    Closing { code: close::AWAY, reason: "the socket is gone".into(), by_peer: true }
}

/// One socket.
struct Socket {
    streams: Streams,
    metadata: Metadata,
    guard: Arc<dyn Guard>,
    caller: Caller,
    message_max: u32,
    follows_max: usize,
    state: Lock<State>,
}

#[derive(Default)]
struct State {
    /// Who asks: as the request said, then as the last `auth` said.
    who: Option<Arc<Principal>>,
    link: Option<LinkHandle>,
    /// What is followed, by the name it was asked under.
    follows: BTreeMap<String, Followed>,
    /// What is watched, with the number of each watch.
    watches: BTreeMap<Uuid, (u64, Arc<Watcher>)>,
    closed: bool,
}

/// A follow of this socket.
#[derive(Clone, Copy)]
enum Followed {
    /// The stream is being looked up.
    Asked(FollowerId),
    /// It is followed.
    Open(Uuid, FollowerId),
}

impl Followed {
    fn is_asked(self, id: FollowerId) -> bool {
        matches!(self, Followed::Asked(asked) if asked == id)
    }

    fn is_of(self, stream: Uuid) -> bool {
        matches!(self, Followed::Open(of, _) if of == stream)
    }
}

impl State {
    fn is_full(&self, most: usize) -> bool {
        self.follows.len() + self.watches.len() >= most
    }
}

/// `GET /v1/ws`
pub(super) fn open(behind: &Behind, follows_max: usize, request: Request, reply: Reply) {
    let Behind { streams, metadata, guard } = behind;
    let message_max = u32::try_from(streams.limits().message_bytes_max + super::AROUND).unwrap_or(u32::MAX);
    let who = Some(Arc::new(request.who().clone()));
    let caller = request.caller();
    let state = Lock::new(State { who, ..State::default() });
    let (streams, metadata, guard) = (streams.clone(), metadata.clone(), guard.clone());
    let socket = Arc::new(Socket { streams, metadata, guard, caller, message_max, follows_max, state });
    let hears = socket.clone();
    let outlet = Outlet::new(move |batch| {
        hears.hear(batch);
        Ok(())
    });
    let link = reply.follower_websocket(&["towpath.v1"], socket.message_max, Owner::new(&outlet, 0));
    socket.state.lock().link = link;
}

impl Socket {
    fn hear(self: &Arc<Socket>, batch: LinkBatch) {
        for event in batch {
            match event.what {
                Happened::Text(text) => self.ask(&text),
                Happened::Passed(mark) if mark & OF_A_WATCH != 0 => self.watch_passed(mark & !OF_A_WATCH),
                Happened::Passed(id) => {
                    if let Some(stream) = self.stream_of(id) {
                        self.streams.link_passed(stream, id);
                    }
                }
                // Which of the follows lost something is not said: the client comes back with its tokens.
                Happened::Reset(_) => self.with_link(|link| link.close(4008, "slow")),
                Happened::Expired => self.with_link(|link| link.close(close::EXPIRED, "auth")),
                Happened::Closed(why) => self.close(&why),
                Happened::Binary(_) => self.answer(&json!(null), Err(("bad_request", "send text".into()))),
                Happened::Opened(..) | Happened::Refused(_) | Happened::Bytes(_) | Happened::Ended => {}
            }
        }
    }

    fn with_link(&self, run: impl FnOnce(&LinkHandle)) {
        let link = self.state.lock().link.clone();
        if let Some(link) = link {
            run(&link);
        }
    }

    fn stream_of(&self, follower: FollowerId) -> Option<Uuid> {
        let state = self.state.lock();
        state.follows.values().find_map(|followed| match *followed {
            Followed::Open(stream, id) if id == follower => Some(stream),
            Followed::Open(..) | Followed::Asked(_) => None,
        })
    }

    fn close(&self, why: &Closing) {
        let (follows, watches) = {
            let mut state = self.state.lock();
            state.closed = true;
            (std::mem::take(&mut state.follows), std::mem::take(&mut state.watches))
        };
        for (number, watcher) in watches.into_values() {
            watcher.end();
            self.metadata.unwatch(number);
        }
        for followed in follows.into_values() {
            if let Followed::Open(stream, id) = followed {
                self.streams.link_gone(stream, id, why.clone());
            }
        }
    }

    fn answer(&self, re: &serde_json::Value, outcome: Result<serde_json::Value, (&str, String)>) {
        let text = match outcome {
            Ok(ok) => json!({ "re": re, "ok": ok }),
            Err((code, detail)) => json!({ "re": re, "error": { "code": code, "detail": detail } }),
        };
        self.with_link(|link| link.send(Frame::text(&text.to_string())));
    }

    fn fail(&self, re: &serde_json::Value, error: &StreamError) {
        self.answer(re, Err((error.code(), error.to_string())));
    }

    fn ask(self: &Arc<Socket>, text: &str) {
        let Asked { id, what } = ask::read(text);
        match what {
            Err(wrong) => self.answer(&id, Err(wrong)),
            Ok(Ask::Follow(it)) => match since(it.since.as_deref()) {
                Ok(since) => self.follow(id, it.s, since, it.parts.unwrap_or(true)),
                Err(response) => self.refuse(&id, &response),
            },
            Ok(Ask::Unfollow(it)) => self.unfollow(id, &it.s),
            Ok(Ask::Append(it)) => self.append(id, it),
            Ok(Ask::Parts(it)) => self.parts(id, it),
            Ok(Ask::Watch(it)) => self.watch(&id, it.agent),
            Ok(Ask::Unwatch(it)) => self.unwatch(&id, it.agent),
            Ok(Ask::Auth(it)) => self.auth(&id, &it.token),
            Ok(Ask::Interrupt(it)) => {
                if self.may(&id, Op::Interrupt, &it.s) {
                    let then = self.told(id, |()| json!({}));
                    self.streams.interrupt_then(address(&it.s), then);
                }
            }
        }
    }

    fn refuse(&self, re: &serde_json::Value, response: &Response) {
        let problem: serde_json::Value = serde_json::from_slice(response.content()).unwrap_or_default();
        let of = |key: &str| problem.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        self.answer(re, Err((&of("code"), of("detail"))));
    }

    fn who(&self) -> Arc<Principal> {
        let who = self.state.lock().who.clone();
        who.unwrap_or_else(|| Arc::new(Principal::nobody()))
    }

    /// Fresh credentials of the same caller: the socket lives as long as they do, and what they no longer
    /// allow to follow ends.
    fn auth(&self, re: &serde_json::Value, token: &Secret) {
        let Some(fresh) = self.guard.holder(token.reveal()) else {
            let detail = "these credentials are not, or no longer, good";
            return self.answer(re, Err(("unauthorized", detail.into())));
        };
        if fresh.name != self.who().name {
            let detail = "the socket was opened by somebody else: open another one";
            return self.answer(re, Err(("forbidden", detail.into())));
        }
        let (lost, unseen) = {
            let mut state = self.state.lock();
            let lost = state.follows.extract_if(.., |name, _| !fresh.may(Op::Follow, name));
            let lost: Vec<(String, Followed)> = lost.collect();
            let sees = READERS.iter().any(|role| fresh.has(*role));
            let unseen = if sees { BTreeMap::new() } else { std::mem::take(&mut state.watches) };
            if let Some(link) = &state.link {
                link.good_until(fresh.expires, fresh.pass.clone());
            }
            state.who = Some(Arc::new(fresh));
            (lost, unseen)
        };
        self.answer(re, Ok(json!({ "ended": lost.len() + unseen.len() })));
        for (name, followed) in &lost {
            if let Followed::Open(stream, id) = *followed
                && self.streams.end_follow(stream, id, Ended::Auth).is_err()
            {
                // The room is too full to be told, and must not go on telling: the client comes back.
                log::warn!("follow not ended stream={name}: the socket is closed");
                self.with_link(|link| link.close(close::EXPIRED, "auth"));
            }
        }
        for (agent, (number, watcher)) in unseen {
            watcher.end();
            self.metadata.unwatch(number);
            let d = json!({ "reason": Ended::Auth.name() });
            let event = json!({ "t": "closed", "agent": agent, "ts": self.ts(), "d": d });
            self.with_link(|link| link.send(Frame::text(&event.to_string())));
        }
    }

    fn may(&self, re: &serde_json::Value, op: Op, stream: &str) -> bool {
        let may = self.who().may(op, stream);
        if !may {
            let detail = format!("these credentials do not allow to {op} this stream");
            self.answer(re, Err(("forbidden", detail)));
        }
        may
    }

    fn told<T: 'static>(
        self: &Arc<Socket>,
        re: serde_json::Value,
        shape: impl FnOnce(T) -> serde_json::Value + Send + 'static,
    ) -> Box<dyn FnOnce(Result<T, StreamError>) + Send> {
        let socket = self.clone();
        Box::new(move |outcome| match outcome {
            Ok(it) => socket.answer(&re, Ok(shape(it))),
            Err(error) => socket.fail(&re, &error),
        })
    }

    fn follow(self: &Arc<Socket>, re: serde_json::Value, s: String, since: Since, parts: bool) {
        if !self.may(&re, Op::Follow, &s) {
            return;
        }
        let id = self.streams.next_follower();
        let refused = {
            let mut state = self.state.lock();
            if state.follows.contains_key(&s) {
                Some(("exists", format!("{s} is followed on this socket already; unfollow it first")))
            } else if state.is_full(self.follows_max) {
                Some(self.full())
            } else {
                state.follows.insert(s.clone(), Followed::Asked(id));
                None
            }
        };
        if let Some(refused) = refused {
            return self.answer(&re, Err(refused));
        }
        let (socket, at) = (self.clone(), address(&s));
        let options = FollowOptions { since, parts };
        let opens = move |found| match found {
            Ok(stream) => socket.open_follow(&re, &s, id, stream, options),
            Err(error) => {
                socket.state.lock().follows.remove(&s);
                socket.fail(&re, &error);
            }
        };
        match at {
            // A name that is known belongs to a stream; an id may be anything.
            Address::Id(_) => self.streams.row_then(at, Box::new(move |row| opens(row.map(|row| row.id)))),
            Address::Name(_) => self.streams.resolve_then(at, Box::new(opens)),
        }
    }

    fn open_follow(
        self: &Arc<Socket>,
        re: &serde_json::Value,
        s: &str,
        id: FollowerId,
        stream: Uuid,
        options: FollowOptions,
    ) {
        let opened = {
            let mut state = self.state.lock();
            let other = state.follows.iter().find(|(_, followed)| followed.is_of(stream));
            let other = other.map(|(name, _)| name.clone());
            match state.follows.get_mut(s).filter(|followed| followed.is_asked(id)) {
                // Closed, or unfollowed, perhaps followed again, while it was looked up.
                None => return,
                Some(followed) if other.is_none() => {
                    *followed = Followed::Open(stream, id);
                    Ok(state.link.clone())
                }
                Some(_) => {
                    state.follows.remove(s);
                    Err(other)
                }
            }
        };
        let link = match opened {
            Ok(Some(link)) => link,
            Ok(None) => return,
            Err(other) => {
                let other = other.unwrap_or_default();
                let detail = format!("the stream is followed on this socket as {other}; unfollow it first");
                return self.answer(re, Err(("exists", detail)));
            }
        };
        self.answer(re, Ok(json!({})));
        let guest = self.streams.visit(&self.caller, s, "websocket");
        let hears = Arc::downgrade(self);
        let ends = Ends::new(move |id, why, told| {
            if let Some(socket) = hears.upgrade() {
                socket.ended(id, why, told);
            }
        });
        if let Err(error) = self.streams.follow_shared(id, stream, options, link, ends, guest) {
            log::warn!("follow refused stream={s} error={error}");
            self.ended(id, Ended::Full, false);
        }
        if self.state.lock().closed {
            self.streams.link_gone(stream, id, gone());
        }
    }

    /// A follow has ended by itself. `told` is whether its last event went out.
    fn ended(&self, id: FollowerId, why: Ended, told: bool) {
        let name = {
            let mut state = self.state.lock();
            let is_it = |followed: &Followed| matches!(*followed, Followed::Open(_, of) if of == id);
            let name =
                state.follows.iter().find(|(_, followed)| is_it(followed)).map(|(name, _)| name.clone());
            name.inspect(|name| _ = state.follows.remove(name))
        };
        if let (Some(name), false) = (name, told) {
            // Nothing was read of the stream: there is nowhere to go on from.
            let nowhere = Token { tag: Default::default(), cursor: Cursor::default() };
            let d = json!({ "reason": why.name() }).to_string();
            let event = Envelope { t: "closed", s: &name, o: nowhere, ts: self.ts(), d: &d, part: None };
            self.with_link(|link| link.send(Frame::text(&event.to_text())));
        }
    }

    fn unfollow(self: &Arc<Socket>, re: serde_json::Value, s: &str) {
        let followed = self.state.lock().follows.get(s).copied();
        match followed {
            Some(Followed::Open(stream, id)) => {
                let (socket, said) = (self.clone(), re.clone());
                let then = move || socket.answer(&said, Ok(json!({})));
                match self.streams.leave_link(stream, id, then) {
                    // Not before: a follow that cannot be ended is one that goes on.
                    Ok(()) => _ = self.state.lock().follows.remove(s),
                    Err(error) => self.fail(&re, &error),
                }
            }
            Some(Followed::Asked(_)) => {
                self.state.lock().follows.remove(s);
                self.answer(&re, Ok(json!({})));
            }
            None => self.answer(&re, Err(("not_found", format!("{s} is not followed on this socket")))),
        }
    }

    /// The values of an agent as they are, and as they change.
    fn watch(self: &Arc<Socket>, re: &serde_json::Value, agent: Uuid) {
        let who = self.who();
        if !READERS.iter().any(|role| who.has(*role)) {
            let detail = "these credentials do not allow to see metadata";
            return self.answer(re, Err(("forbidden", detail.into())));
        }
        let number = self.metadata.number();
        let rt = self.streams.rt().clone();
        let dress = move |values: &AgentValues| {
            let ts = rt.wall().as_millis();
            let event = json!({ "t": "metadata", "agent": values.agent, "ts": ts, "d": shown(values) });
            Frame::text(&event.to_string())
        };
        let watcher = Watcher::new(OF_A_WATCH | number, Box::new(dress));
        let refused = {
            let mut state = self.state.lock();
            if state.watches.contains_key(&agent) {
                Some(("exists", format!("{agent} is watched on this socket already; unwatch it first")))
            } else if state.is_full(self.follows_max) {
                Some(self.full())
            } else {
                state.watches.insert(agent, (number, watcher.clone()));
                None
            }
        };
        if let Some(refused) = refused {
            return self.answer(re, Err(refused));
        }
        let sees = watcher.clone();
        let scope = Scope::Agents(vec![agent]);
        if let Err(error) = self.metadata.watch_with(number, scope, Box::new(move |values| sees.see(values)))
        {
            self.state.lock().watches.remove(&agent);
            return self.answer(re, Err(("full", error.to_string())));
        }
        self.answer(re, Ok(json!({})));
        self.with_link(|link| watcher.open(link.clone()));
    }

    fn unwatch(&self, re: &serde_json::Value, agent: Uuid) {
        let watched = self.state.lock().watches.remove(&agent);
        match watched {
            Some((number, watcher)) => {
                watcher.end();
                self.metadata.unwatch(number);
                self.answer(re, Ok(json!({})));
            }
            None => self.answer(re, Err(("not_found", format!("{agent} is not watched on this socket")))),
        }
    }

    fn watch_passed(&self, number: u64) {
        let watcher = {
            let state = self.state.lock();
            let watch = state.watches.values().find(|(of, _)| *of == number);
            watch.map(|(_, watcher)| watcher.clone())
        };
        if let Some(watcher) = watcher {
            watcher.passed();
        }
    }

    fn full(&self) -> (&'static str, String) {
        ("full", format!("a socket follows and watches at most {}", self.follows_max))
    }

    fn ts(&self) -> i64 {
        self.streams.rt().wall().as_millis()
    }

    fn append(self: &Arc<Socket>, re: serde_json::Value, asked: ask::Append) {
        let ask::Append { s, role, content, .. } = asked;
        if !self.may(&re, Op::Append, &s) {
            return;
        }
        let then =
            self.told(re, |written: Written| json!({ "id": written.id, "o": written.token.to_string() }));
        self.streams.append_then(address(&s), Said { role, content }.draft(), None, then);
    }

    fn parts(self: &Arc<Socket>, re: serde_json::Value, asked: ask::Parts) {
        let ask::Parts { s, turn, lease, d, .. } = asked;
        if !self.may(&re, Op::Produce, &s) {
            return;
        }
        let lease = read_lease(&lease);
        let parts: Vec<Arc<str>> = d.into_iter().map(|part| part.get().into()).collect();
        let socket = self.clone();
        self.streams.resolve_then(
            address(&s),
            Box::new(move |found| match found {
                Err(error) => socket.fail(&re, &error),
                Ok(stream) => {
                    let then = socket.told(re, |accepted: crate::engine::streams::Accepted| {
                        json!({
                            "accepted": accepted.accepted,
                            "last": accepted.last,
                            "interrupted": accepted.interrupted,
                        })
                    });
                    socket.streams.parts_then(stream, Fence { turn, lease }, None, parts, then);
                }
            }),
        );
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.close(&gone());
    }
}
