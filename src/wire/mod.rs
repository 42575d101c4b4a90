//! Connections: what arrives on them, what leaves on them, and who is told.
//!
//! A **link** is one live connection. Links live on a few I/O threads; a room never touches a socket.
//! It holds [`LinkHandle`]s (to send, join, close) and [`Group`]s (to send one frame to many links),
//! and hears what happens through an [`Outlet`] in its own inbox, as batches of [`LinkEvent`]s.
//!
//! Nothing here blocks and nothing is lost silently: an order that finds an I/O thread's inbox full
//! cuts the link it was for, or resets the members of the group it was for, and the owner hears so.
//! Whoever was cut comes back with a cursor.
//!
//! - [`dial`]: outgoing links;
//! - [`frame`]: outgoing bytes, encoded once, shared;
//! - [`link`]: the handles and events above;
//! - [`limits`]: bounds and waits, with what a peer is told at each;
//! - [`http`], [`websocket`]: the protocols, without I/O;

pub mod bearer;
mod carrier;
pub mod dial;
pub(crate) mod dialer;
pub mod exchange;
pub mod frame;
pub mod http;
mod laps;
pub mod limits;
pub mod link;
pub(crate) mod links;
pub(crate) mod listen;
pub(crate) mod order;
pub(crate) mod pace;
mod pass;
mod poll;
mod tls;
pub mod websocket;

pub use dial::{Adopted, Dial, Refused, Speak, Target, Wire};
pub use exchange::{Exchange, Front, HandOver, Handed, HandedSocket, Opening, Plan, Terms};
pub use frame::{Encoding, Frame};
pub use limits::{Counts, Limits};
pub use link::{
    Closing, Doors, Group, GroupId, Happened, LinkBatch, LinkEvent, LinkHandle, LinkId, Outlet, Owner, Peer,
};
pub use listen::{Bound, Listener};
pub use pass::Pass;
pub use poll::{IoThreads, Running};
pub use tls::{ClientTls, ServerTls, http_trust};

/// How an I/O thread lets go of its links when the server goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    /// Links are closed at moments drawn inside this window; zero is at once.
    pub(crate) window: std::time::Duration,
    /// What the moments are drawn from.
    pub(crate) draw: u64,
}
