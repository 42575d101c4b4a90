//! The one integration binary: one file a subject, names are sentences of behaviour.
//!
//! `fault_*` and `soak_*` tests run a short slice here and the whole under `make faults` and `make soak`;
//! they ask [`effort`] how much. The targets of `tests/fuzz` are run by [`fuzz`].

// For the targets that [`fuzz`] includes: what they import from libFuzzer is ours.
extern crate self as libfuzzer_sys;
use fuzz::fuzz_target;

mod asking;
mod autobahn;
mod backends;
mod batching;
#[cfg(feature = "postgres")]
mod bus_postgres;
mod cli_config;
mod cli_demo;
mod cli_help;
mod cli_measure;
mod cli_pipe;
mod cli_serve;
mod cli_streams;
mod cli_token;
mod cli_upkeep;
mod clients;
#[cfg(feature = "postgres")]
mod cluster;
mod dashboard;
mod demo;
mod docs;
mod doors;
mod effort;
mod engine;
mod examples;
mod exports;
#[cfg(feature = "postgres")]
mod fault_appends;
mod fault_partition;
mod fault_pipes;
mod fault_receipts;
mod fault_spool;
#[cfg(feature = "postgres")]
mod fault_store;
#[path = "../../examples/flaky.rs"]
#[allow(dead_code, unreachable_pub, reason = "an example with a main of its own")]
mod flaky;
mod front_batching;
mod front_crowd;
mod front_entrance;
mod front_limits;
mod front_scarce;
mod front_socket;
mod front_streams;
mod fuzz;
mod http_heads;
mod namespaces;
mod own_links;
#[cfg(feature = "postgres")]
mod own_relays;
mod pipe_cuts;
mod pipe_paths;
mod pipe_trust;
mod pipe_wire;
mod pipes;
mod ports;
mod process;
mod proxies;
mod readme;
mod reconnects;
#[cfg(feature = "postgres")]
mod replica_pipes;
#[cfg(feature = "postgres")]
mod replicas;
mod revoked;
mod sessions;
mod sim_demo;
mod sim_doubles;
mod sim_harness;
mod sim_net;
mod sim_pipes;
mod sim_replicas;
mod sim_sessions;
mod sim_streams;
mod slow_followers;
mod soak;
mod store_ahead;
mod store_conformance;
#[cfg(feature = "postgres")]
mod store_postgres;
mod store_sqlite;
mod tidy;
