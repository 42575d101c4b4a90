//! Benchmarks: each case beside its floor, the bare work without towpath, in one run.
//!
//! `make bench` runs all, `make bench BENCH=rt` those whose name contains `rt`, `BENCH_PAIRS=n` sets
//! how many pairs. Writes `target/bench/<case>.json` and prints a Markdown table. Goals are ratios;
//! `make bench-check` lists the cases that fall short.

mod fanout;
mod pairs;
mod relay;
mod rt;
mod sessions;

use pairs::Bench;

fn main() {
    if fanout::play() {
        return;
    }
    let mut bench = Bench::from_environment();
    rt::run(&mut bench);
    sessions::run(&mut bench);
    relay::run(&mut bench);
    fanout::run(&mut bench);
    bench.finish();
}
