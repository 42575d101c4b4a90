//! Live work that survives broken connections: streams, sessions, pipes, batched metadata and a
//! connection log, on plain threads.
//!
//! An [`Engine`] is a handful of named threads over one store. A program starts one, keeps the handles it
//! needs, and drops it: no async runtime, no signal handler, no logger, and no thread left behind.
//!
//! ```
//! use towpath::{Engine, FollowOptions, What};
//!
//! // Rows in memory; `.data("folder")` keeps them, `.postgres(url)` shares them between replicas.
//! let engine = Engine::builder().in_memory().start()?;
//! let streams = engine.streams();
//!
//! // A worker answers in parts, and says with a durable message what they were.
//! streams.create("chat/1", Default::default())?;
//! let turn = streams.run("chat/1")?;
//! turn.part(&"Hel")?;
//! turn.part(&"lo")?;
//!
//! // Whoever comes late gets what it missed first, and then what happens, as it happens.
//! let mut follow = streams.follow("chat/1", FollowOptions::default())?;
//! let parts: Vec<_> = follow
//!     .by_ref()
//!     .filter_map(|event| if let What::Part { part, .. } = event.what { Some(part) } else { None })
//!     .take(2)
//!     .collect();
//! assert_eq!(parts.concat(), r#""Hel""lo""#);
//! turn.commit(Some("assistant"), &"Hello")?;
//! turn.finish()?;
//! assert!(follow.any(|event| matches!(event.what, What::Message(row) if *row.content == *b"\"Hello\"")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it runs
//!
//! ```text
//!  your threads          rooms: a named thread each                      outside
//!
//!  Streams ────────────▶ streams-0…n ──▶ reader-0…m, writer-0…n ──────▶ ┌─────────┐
//!     ▲                       │                                         │         │
//!     └── Follow, Receiver ◀──┘         replicas ─────────────────────▶ │  store  │ SQLite, memory
//!                                                                       │         │ or PostgreSQL
//!  Metadata ───────────▶ flush-metadata ──────────────────────────────▶ │         │
//!     ▲                                 reader-lookups ◀─────────────── │         │
//!     └── Watch ◀─────────── watches ◀──┘                               │         │
//!                                                                       │         │
//!  Connections ────────▶ flush-connections ──▶ retries ───────────────▶ └─────────┘
//!     │                                          │ ▲
//!     └── record_durable ───────────────────▶ spool ┘  (a file, synced before the receipt)
//!
//!  notices between the rooms, and between replicas, travel over a bus: they say that something changed
//! ```
//!
//! Every rule is a pure machine in [`state`]; a room owns many of them, waits in one place, and carries
//! out what they decide. Calls block for as long as they say; what arrives by itself comes through an
//! iterator, or through a [`crossbeam_channel::Receiver`] that fits a program's own `select!`
//! ([`Follow::into_receiver`], [`Watch::split`]). Every channel has a bound, and every call that can
//! find one full says what it does then.
//!
//! # What to look at next
//!
//! | to | look at |
//! |---|---|
//! | produce and follow | [`Streams`], [`TurnHandle`], [`Follow`] |
//! | report and watch small values | [`Metadata`], [`Watch`] |
//! | keep an audit of connections | [`Connections`], [`Record`], [`engine::backends`] |
//! | serve procedures that survive a cut, or call them | [`Sessions`], [`Services`], [`Client`] |
//! | move bytes through cuts | [`Pipe`], [`PipeListener`] |
//! | replay a race from a seed, in a program of your own | `testing` (feature `testing`) |
//! | run the daemon | [`daemon`], [`config`] |
#![forbid(unsafe_code)]
// A library does not talk to the terminal; the command line does it in one place.
#![warn(clippy::print_stdout, clippy::print_stderr)]

/// The blocks of the README, so that they are compiled and run with the others.
#[cfg(all(doctest, feature = "testing"))]
#[doc = include_str!("../README.md")]
struct ReadMe;

pub mod bus;
pub mod cli;
pub mod client;
pub mod codec;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod error;
pub mod front;
pub mod metrics;
pub mod rt;
pub mod service;
pub mod spool;
pub mod state;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;

pub use client::pipe::{Pipe, PipeListener};
pub use client::session::Client;
pub use engine::builder::{Builder, Engine, Part};
pub use engine::connections::{ConnectionSettings, Connections};
pub use engine::metadata::{Metadata, MetadataSettings};
pub use engine::pipes::PipesHandle as Pipes;
pub use engine::streams::{
    CreateStream, Event, Follow, FollowOptions, Since, StreamError, Streams, TurnHandle, What,
};
pub use engine::watches::{AgentValues, Watch};
pub use error::{Code, Error, Result};
pub use rt::Rt;
pub use service::server::Server as Sessions;
pub use service::{Procedure, Service, Services};
pub use state::connection::{Kind as ConnectionKind, Record, Row, Status as ConnectionStatus};
pub use store::connections::ConnectionQuery;
