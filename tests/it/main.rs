//! The one integration binary: one file a subject, names are sentences of behaviour.

mod sim_harness;
mod doors;
mod tidy;
