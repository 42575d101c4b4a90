//! The one integration binary: one file a subject, names are sentences of behaviour.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "figures and loud skips are for who runs the tests"
)]

mod docs;
mod demo;
mod sim_demo;
mod sim_harness;
mod doors;
mod sim_harness;
mod tidy;
