# A few words for people. Anything longer than two lines is a script in tests/ or Rust.
.DEFAULT_GOAL := words
SHELL := bash
.PHONY: words run test check setup sim bench bench-check bench-peers faults fuzz soak examples install flake still autobahn

LISTEN ?= 127.0.0.1:7700
DATA ?= towpath-data
SEEDS ?= 1000
RUNS ?= 5
MINUTES ?= 60

words: ## list these words
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

run: ## build, start one daemon with the embedded store (LISTEN=, DATA=), print where and what to try
	@cargo build --release --locked && echo && sed 's|ADDR|$(LISTEN)|g' examples/first-use.txt && echo
	@exec ./target/release/towpath serve --data $(DATA) --listen $(LISTEN)

test: setup ## set up what the tests need and run all of them
	cargo test --locked

setup: ## install what the tests need beyond Rust, or say plainly what is missing
	@tests/setup.sh

check: ## fmt, clippy, rustdoc (warnings are errors), the walls (tidy)
	cargo fmt --check && cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	cargo test --locked --test it tidy

sim: ## the simulated engines over SEEDS= seeds, with figures (SEED= or TAPE= with TEST= plays one again)
	SEEDS=$(SEEDS) cargo test --locked --release --test it $(or $(TEST),sim_) -- --nocapture

bench: ## each hot path beside its floor (BENCH= part of a name, BENCH_PAIRS= how many pairs)
	cargo run --locked --release --manifest-path tests/bench/Cargo.toml --target-dir target

bench-check: ## the same, and fails if a case falls short of its goal
	cargo run --locked --release --manifest-path tests/bench/Cargo.toml --target-dir target -- --check

faults: ## every test named fault_*, whole: kills, restarts, full disks (CYCLES= of each, TEST= part of a name)
	SLOW=1 $(if $(CYCLES),CYCLES=$(CYCLES)) cargo test --locked --release --test it ::fault_$(TEST) -- --nocapture --test-threads 1

fuzz: ## every target of tests/fuzz for EACH= seconds (TARGET= only one)
	@tests/fuzz/run.sh --seconds $(or $(EACH),60) $(TARGET)

soak: ## every test named soak_* for MINUTES= each (TEST= part of a name)
	SOAK_MINUTES=$(MINUTES) cargo test --locked --release --test it ::soak_$(TEST) -- --nocapture --test-threads 1

bench-peers: ## the Durable Streams path beside the Rust server of that protocol, installed under target/peers
	cargo install durable-streams --version 0.1.5 --locked --root target/peers && cargo build --locked --release
	cargo run --locked --release --manifest-path tests/bench/Cargo.toml --target-dir target --bin peers -- target

examples: ## run the examples that end by themselves and compare what they print with what they promise
	cargo test --locked --test it examples:: -- --nocapture

still: ## take docs/dashboard.png from a demo (needs `make setup`)
	@cargo build --locked --quiet; cargo run --locked --quiet -- demo --listen 127.0.0.1:7711 & trap "kill $$!" EXIT; \
	TOWPATH_URL=http://127.0.0.1:7711 node tests/interop/still.mjs docs/dashboard.png

flake: ## the whole suite RUNS= times; one failure is a failure
	for run in $$(seq $(RUNS)); do echo "run $$run"; cargo test --locked --quiet || exit 1; done

autobahn: ## WebSocket conformance in both roles (CASES="1.*,5.*", ROLES=server; needs Python 2.7)
	@tests/autobahn.sh

install: ## put the towpath program into cargo's bin folder
	cargo install --locked --path .
