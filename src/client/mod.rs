//! What an embedding program or the command line uses to reach a daemon.

pub mod http;
pub mod pipe;
pub mod session;
