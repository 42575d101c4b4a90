//! The one integration binary: one file a subject, names are sentences of behaviour.
mod batching;
#[cfg(feature = "postgres")]
mod bus_postgres;
mod cli_config;
mod cli_help;
mod cli_pipe;
mod cli_serve;
mod cli_streams;
mod cli_token;
#[cfg(feature = "postgres")]
mod cluster;
mod dashboard;
mod demo;
mod docs;
mod doors;
mod fault_receipts;
#[path = "../../examples/flaky.rs"]
#[allow(dead_code, unreachable_pub, reason = "an example with a main of its own")]
mod flaky;
mod front_batching;
mod front_scarce;
mod front_streams;
mod http_heads;
mod process;
mod readme;
mod sessions;
mod sim_demo;
mod sim_doubles;
mod sim_harness;
mod sim_net;
mod sim_sessions;
mod sim_streams;
mod store_conformance;
#[cfg(feature = "postgres")]
mod store_postgres;
mod store_sqlite;
mod tidy;
