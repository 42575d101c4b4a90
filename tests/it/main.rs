//! The one integration binary: one file a subject, names are sentences of behaviour.

mod demo;
mod docs;
mod doors;
mod sim_demo;
mod sim_harness;
mod sim_net;
mod tidy;
