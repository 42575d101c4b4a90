//! Benchmarks: each case beside its floor, the bare work without towpath, in one run.
//!
//! `make bench` runs all, `make bench BENCH=rt` those whose name contains `rt`, `BENCH_PAIRS=n` sets
//! how many pairs. Writes `target/bench/<case>.json` and prints a Markdown table. Goals are ratios;
//! `make bench-check` lists the cases that fall short.

mod batching;
#[path = "../../it/cluster.rs"]
#[allow(dead_code, reason = "the tests' own, used in part")]
mod cluster;
mod fanout;
#[path = "../../../examples/flaky.rs"]
#[allow(dead_code, reason = "the tests' own, used in part")]
mod flaky;
mod herd;
mod pairs;
mod pipes;
#[path = "../../it/ports.rs"]
mod ports;
mod relay;
mod rt;
mod sessions;
mod streams;

use pairs::Bench;

fn main() {
    if fanout::play() || herd::play() || streams::play() {
        return;
    }
    let mut bench = Bench::from_environment();
    rt::run(&mut bench);
    batching::run(&mut bench);
    sessions::run(&mut bench);
    herd::run(&mut bench);
    relay::run(&mut bench);
    streams::run(&mut bench);
    pipes::run(&mut bench);
    fanout::run(&mut bench);
    bench.finish();
}
