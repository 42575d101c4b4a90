#!/usr/bin/env bash
# Runs the fuzz targets with libFuzzer: run.sh [--seconds N] [TARGET...]. All targets if none is named.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=60
if [ "${1:-}" = --seconds ]; then
    seconds=$2
    shift 2
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: installing cargo-fuzz (drives libFuzzer)"
    if ! cargo install --locked cargo-fuzz; then
        echo "fuzz: NOTHING WAS FUZZED: cargo-fuzz is missing and could not be installed." >&2
        echo "fuzz: \`cargo test --test it fuzz\` runs a slice of the same targets without it." >&2
        exit 1
    fi
fi
# Sanitizers and coverage are switches of the compiler that only a nightly offers unasked.
export RUSTC_BOOTSTRAP=1
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    mapfile -t targets < <(cargo fuzz list --fuzz-dir tests/fuzz)
fi
for target in "${targets[@]}"; do
    echo "fuzz: $target for $seconds s"
    cargo fuzz run --fuzz-dir tests/fuzz "$target" -- -max_total_time="$seconds" -print_final_stats=1
done
echo "fuzz: ${#targets[@]} targets, no failure"
