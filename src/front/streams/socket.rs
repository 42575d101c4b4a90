//! `/v1/ws`: many follows and writes over one WebSocket, subprotocol `towpath.v1`.
//!
//! The client sends `{"id":1,"op":"follow","s":"chat/7",…}` and is answered `{"re":1,"ok":{…}}` or
//! `{"re":1,"error":{"code":…,"detail":…}}`. Events arrive in their envelope. What is asked is read on the
//! socket's I/O thread and handed to whoever does it; the answer comes from there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Said, read_lease, since};
use crate::engine::streams::{
    FollowOptions, FollowerId, Format, Since, StreamError, Streams, Written, address,
};
use crate::engine::visits::Caller;
use crate::front::{Guard, Op, Principal, Reply, Request, Response, Secret};
use crate::rt::Lock;
use crate::store::streams::Fence;
use crate::wire::websocket::close;
use crate::wire::{Frame, Happened, LinkBatch, LinkHandle, Outlet, Owner};

/// Why its follows ended that began while the socket ended.
const GONE: &str = "the socket is gone";

/// One socket.
struct Socket {
    streams: Streams,
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
}

/// `GET /v1/ws`
pub(super) fn open(
    streams: &Streams,
    guard: &Arc<dyn Guard>,
    follows_max: usize,
    request: Request,
    reply: Reply,
) {
    let message_max = u32::try_from(streams.limits().message_bytes_max + super::AROUND).unwrap_or(u32::MAX);
    let who = Some(Arc::new(request.who().clone()));
    let caller = request.caller();
    let state = Lock::new(State { who, ..State::default() });
    let (streams, guard) = (streams.clone(), guard.clone());
    let socket = Arc::new(Socket { streams, guard, caller, message_max, follows_max, state });
    let hears = socket.clone();
    let outlet = Outlet::new(move |batch| {
        hears.hear(batch);
        Ok(())
    });
    let link = reply.follower_websocket(&["towpath.v1"], socket.message_max, Owner::new(&outlet, 0));
    socket.state.lock().link = link;
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Ask {
    Follow {
        #[serde(default)]
        id: serde_json::Value,
        s: String,
        since: Option<String>,
        parts: Option<bool>,
    },
    Unfollow {
        #[serde(default)]
        id: serde_json::Value,
        s: String,
    },
    Append {
        #[serde(default)]
        id: serde_json::Value,
        s: String,
        role: Option<String>,
        content: serde_json::Value,
    },
    Parts {
        #[serde(default)]
        id: serde_json::Value,
        s: String,
        turn: u32,
        lease: String,
        d: Vec<serde_json::Value>,
    },
    Interrupt {
        #[serde(default)]
        id: serde_json::Value,
        s: String,
    },
    Auth {
        #[serde(default)]
        id: serde_json::Value,
        token: Secret,
    },
}

impl Socket {
    fn hear(self: &Arc<Socket>, batch: LinkBatch) {
        for event in batch {
            match event.what {
                Happened::Text(text) => self.ask(&text),
                Happened::Passed(id) => {
                    if let Some(stream) = self.stream_of(id) {
                        self.streams.link_passed(stream, id);
                    }
                }
                // Which of the follows lost something is not said: the client comes back with its tokens.
                Happened::Reset(_) => self.with_link(|link| link.close(4008, "slow")),
                Happened::Expired => self.with_link(|link| link.close(close::EXPIRED, "auth")),
                Happened::Closed(why) => self.close(why.reason),
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

    fn close(&self, why: Cow<'static, str>) {
        let follows = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.follows)
        };
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
        let ask = match serde_json::from_str::<Ask>(text) {
            Ok(ask) => ask,
            Err(error) => {
                #[derive(Deserialize)]
                struct Id {
                    id: serde_json::Value,
                }
                let id = serde_json::from_str::<Id>(text).map_or(json!(null), |asked| asked.id);
                return self.answer(&id, Err(("bad_request", error.to_string())));
            }
        };
        match ask {
            Ask::Follow { id, s, since: text, parts } => match since(text.as_deref()) {
                Ok(since) => self.follow(id, s, since, parts.unwrap_or(true)),
                Err(response) => self.refuse(&id, &response),
            },
            Ask::Unfollow { id, s } => self.unfollow(&id, &s),
            Ask::Append { id, s, role, content } => self.append(id, &s, role, &content),
            Ask::Parts { id, s, turn, lease, d } => self.parts(id, &s, turn, &lease, d),
            Ask::Auth { id, token } => self.auth(&id, &token),
            Ask::Interrupt { id, s } => {
                if self.may(&id, Op::Interrupt, &s) {
                    let then = self.told(id, |()| json!({}));
                    self.streams.interrupt_then(address(&s), then);
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
        let lost: Vec<Followed> = {
            let mut state = self.state.lock();
            let lost = state.follows.extract_if(.., |name, _| !fresh.may(Op::Follow, name));
            let lost = lost.map(|(_, followed)| followed).collect();
            if let Some(link) = &state.link {
                link.good_until(fresh.expires);
            }
            state.who = Some(Arc::new(fresh));
            lost
        };
        for followed in &lost {
            if let Followed::Open(stream, id) = *followed {
                self.streams.unfollow(stream, id);
            }
        }
        self.answer(re, Ok(json!({ "ended": lost.len() })));
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
            } else if state.follows.len() >= self.follows_max {
                Some(("full", format!("a socket follows at most {} streams", self.follows_max)))
            } else {
                state.follows.insert(s.clone(), Followed::Asked(id));
                None
            }
        };
        if let Some(refused) = refused {
            return self.answer(&re, Err(refused));
        }
        let socket = self.clone();
        self.streams.resolve_then(
            address(&s),
            Box::new(move |found| {
                let opened = found.and_then(|stream| socket.open_follow(&re, &s, id, stream, since, parts));
                if let Err(error) = opened {
                    socket.state.lock().follows.remove(&s);
                    socket.fail(&re, &error);
                }
            }),
        );
    }

    fn open_follow(
        &self,
        re: &serde_json::Value,
        s: &str,
        id: FollowerId,
        stream: Uuid,
        since: Since,
        parts: bool,
    ) -> Result<(), StreamError> {
        let link = {
            let mut state = self.state.lock();
            match state.follows.get_mut(s) {
                // Neither closed nor unfollowed, and followed again, while it was looked up.
                Some(followed) if followed.is_asked(id) => {
                    *followed = Followed::Open(stream, id);
                }
                _ => return Ok(()),
            }
            state.link.clone()
        };
        let Some(link) = link else { return Ok(()) };
        // The answer stands before the first event.
        self.answer(re, Ok(json!({})));
        let visit = self.streams.visit(&self.caller, s, "websocket");
        let options = FollowOptions { since, parts };
        self.streams.follow_link(id, stream, options, link, Format::Ws, visit)?;
        if self.state.lock().closed {
            self.streams.link_gone(stream, id, GONE.into());
        }
        Ok(())
    }

    fn unfollow(&self, re: &serde_json::Value, s: &str) {
        let followed = self.state.lock().follows.remove(s);
        match followed {
            Some(Followed::Open(stream, id)) => self.streams.unfollow(stream, id),
            Some(Followed::Asked(_)) => {}
            None => {
                return self.answer(re, Err(("not_found", format!("{s} is not followed on this socket"))));
            }
        }
        self.answer(re, Ok(json!({})));
    }

    fn append(
        self: &Arc<Socket>,
        re: serde_json::Value,
        s: &str,
        role: Option<String>,
        content: &serde_json::Value,
    ) {
        if !self.may(&re, Op::Append, s) {
            return;
        }
        let content = RawValue::from_string(content.to_string()).expect("a value is JSON");
        let then =
            self.told(re, |written: Written| json!({ "id": written.id, "o": written.token.to_string() }));
        self.streams.append_then(address(s), Said { role, content }.draft(), None, then);
    }

    fn parts(
        self: &Arc<Socket>,
        re: serde_json::Value,
        s: &str,
        turn: u32,
        lease: &str,
        d: Vec<serde_json::Value>,
    ) {
        if !self.may(&re, Op::Produce, s) {
            return;
        }
        let lease = read_lease(lease);
        let parts: Vec<Arc<str>> = d.into_iter().map(|part| part.to_string().into()).collect();
        let socket = self.clone();
        self.streams.resolve_then(
            address(s),
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
        self.close(GONE.into());
    }
}
