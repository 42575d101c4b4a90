//! The one integration binary: one file a subject, names are sentences of behaviour.

mod batching;
mod cli_config;
mod cli_help;
mod cli_serve;
mod cli_token;
mod demo;
mod docs;
mod doors;
mod process;
mod readme;
mod sim_demo;
mod sim_harness;
mod sim_net;
mod tidy;
