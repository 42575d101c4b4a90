//! The one integration binary: one file a subject, names are sentences of behaviour.

mod cli_config;
mod cli_help;
mod cli_serve;
mod batching;
mod cli_token;
mod demo;
mod docs;
mod doors;
mod process;
mod sim_demo;
mod sim_harness;
mod sim_net;
mod tidy;
