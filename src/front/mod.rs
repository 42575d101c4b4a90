//! HTTP routes: who may ask what, and who answers.
//!
//! A [`Router`] maps a method and a path to a handler. Handlers run on an I/O thread: they look at the
//! request, send a message to a room or a store thread, and return. The [`Reply`] goes with that message
//! and is answered from there, now or later, by any thread: with a whole [`Response`], or with a link that
//! stays (server-sent events, a stream of chunks, a WebSocket, raw bytes behind an upgrade).
//!
//! ```
//! use towpath::front::{Request, Reply, Role, Route, Router};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Message { role: String, content: serde_json::Value }
//!
//! let (to_writer, writer) = std::sync::mpsc::sync_channel::<(String, Message, Reply)>(8);
//! let mut router = Router::new();
//! router.add(
//!     Route::post("/v1/streams/{name*}/messages")
//!         .about("Appends a message")
//!         .needs(Role::Producer)
//!         .body_max(1 << 20)
//!         .answers(&[201, 404])
//!         .to(move |request: Request, reply: Reply| {
//!             let name = request.param("name").to_owned();
//!             let message = match request.json::<Message>() {
//!                 Ok(message) => message,
//!                 Err(problem) => return reply.send(problem),
//!             };
//!             // The reply travels with the work. A full inbox is a 503, never a wait.
//!             if let Err(refused) = to_writer.try_send((name, message, reply)) {
//!                 let (_, _, reply) = match refused {
//!                     std::sync::mpsc::TrySendError::Full(work) => work,
//!                     std::sync::mpsc::TrySendError::Disconnected(work) => work,
//!                 };
//!                 reply.problem(503, "full", "too much to do at the moment: try again");
//!             }
//!         }),
//! );
//! # drop(writer);
//! ```
//!
//! A handler that always answers with one whole response takes an [`Answer`] instead ([`Route::to_whole`]): then it can
//! also be asked over no connection ([`Local`]), which is how the daemon's River services do what HTTP does.
//!
//! A live answer is opened with an [`Owner`](crate::wire::Owner), whose room then hears what happens on
//! the link, and yields a [`LinkHandle`](crate::wire::LinkHandle) to send with:
//!
//! ```
//! use towpath::front::{Reply, Request, Route};
//! use towpath::wire::{Frame, Outlet, Owner};
//!
//! fn follow(outlet: Outlet) -> Route {
//!     Route::get("/v1/streams/{name*}/events").about("Follows a stream").to(move |request: Request, reply: Reply| {
//!         if request.wants_websocket() {
//!             let Some(link) = reply.websocket(&[], 1 << 20, Owner::new(&outlet, 7)) else { return };
//!             link.send(Frame::text("{}"));
//!         } else {
//!             let link = reply.sse(Some(Owner::new(&outlet, 7)));
//!             link.send(Frame::chunk(b"event: hello\ndata: {}\n\n"));
//!         }
//!         // … and the link goes to the room, which joins it to its group when it has caught up.
//!     })
//! }
//! ```

pub mod agents;
mod auth;
pub mod connections;
mod dashboard;
pub mod durable;
mod gate;
#[cfg(feature = "jwt")]
mod jwt;
pub mod live;
mod local;
mod openapi;
pub mod pipes;
mod query;
pub mod relay;
pub mod replicas;
mod reply;
mod request;
pub mod river;
mod router;
mod secret;
mod sessions;
pub mod streams;
mod token;
mod watcher;

pub use auth::{Guard, Op, OpenDoor, Principal, Role, Scope};
pub use dashboard::add_dashboard;
pub use gate::{Credentials, Gate, TICKET_LIFE, Verifier};
#[cfg(feature = "jwt")]
pub use jwt::Jwt;
pub use local::{Ask, Local};
pub use query::Query;
pub use reply::{Answer, Reply};
pub use request::{Request, from_json};
pub use router::{Need, Route, Router};
pub use secret::Secret;
pub use sessions::Sessions;
pub use token::{BadToken, Tokens, hash_token, new_token};

pub use crate::wire::http::{Body, Method, Response};
