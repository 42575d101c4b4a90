//! Rooms: the threads that own machines, wake in one place and carry actions out.

pub mod handlers;
pub mod sessions;
pub mod worker;
