//! Rooms: the threads that own machines, wake in one place and carry actions out.

pub mod backends;
pub mod builder;
pub mod connections;
pub(crate) mod directory;
mod door;
mod flush;
pub mod handlers;
mod ledger;
pub mod lookups;
pub mod metadata;
pub mod pipes;
pub mod reader;
pub mod replicas;
pub mod retention;
mod retries;
pub mod sessions;
mod settle;
mod spooler;
pub mod streams;
pub mod visits;
pub mod watches;
pub mod worker;
