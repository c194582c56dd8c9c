# `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TOOLS := target/tools
CARGO_DENY_VERSION := 0.20.2
CARGO_FUZZ_VERSION := 0.13.2

# What the suites drive, from Debian. `make test` installs it when run as root on a Debian machine.
DEBIAN_PACKAGES := curl faketime iproute2 iptables nftables nghttp2-client nghttp2-server openssl prometheus python3 python3-venv tcpdump util-linux
PEERS := target/peers

export PATH := $(CURDIR)/$(TOOLS)/bin:$(PATH)

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: need-cargo need-python3
need-cargo:
	@command -v cargo >/dev/null || { echo "heddle needs cargo: install Rust with rustup (Debian: apt-get install rustup)"; exit 1; }
	@command -v cc >/dev/null || { echo "heddle needs a C compiler, which links it and builds its cryptography (Debian: apt-get install gcc libc6-dev)"; exit 1; }
need-python3:
	@command -v python3 >/dev/null || { echo "heddle's demo needs python3 (Debian: apt-get install python3)"; exit 1; }

# The profile without the link-time pass: a stranger's first build takes half as long.
PROFILE ?= quick

.PHONY: demo
demo: need-cargo need-python3 ## A mesh of seven workloads that plays its acts (KEEP=1 leaves it running, PORTS=1 uses no namespaces)
	@python3 tests/demo/demo.py --profile $(PROFILE) $(if $(KEEP),--keep) $(if $(PORTS),--ports)

.PHONY: check
check: fmt clippy doc deny tidy ## Format, lints, documentation, dependencies, repository rules

.PHONY: fmt
fmt: need-cargo
	cargo fmt --all --check

.PHONY: clippy
clippy: need-cargo
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: doc
doc: need-cargo
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --locked --document-private-items

.PHONY: deny
deny: $(TOOLS)/bin/cargo-deny
	cargo deny --all-features check bans licenses sources

$(TOOLS)/bin/cargo-deny: | need-cargo
	cargo install --locked --debug --root $(TOOLS) --target-dir $(TOOLS)/build cargo-deny@$(CARGO_DENY_VERSION)
	rm -rf $(TOOLS)/build

.PHONY: tidy
tidy: need-cargo
	cargo test --locked -p heddle-tests --test tidy

.PHONY: audit
audit: $(TOOLS)/bin/cargo-deny ## Known vulnerabilities of the dependencies (needs the network)
	cargo deny check advisories

FUZZ_SECONDS ?= 60
FUZZ_TARGETS := $(patsubst proxy/relay/fuzz/targets/%.rs,%,$(wildcard proxy/relay/fuzz/targets/*.rs))
FUZZ_FOUND := $(CURDIR)/target/fuzz/corpus
FUZZ_RUN = cargo +nightly fuzz run --target-dir $(CURDIR)/target/fuzz

# The fuzzing package is apart from the workspace and fuzzes it with the workspace's versions.
proxy/relay/fuzz/Cargo.lock: Cargo.lock
	cp $< $@

.PHONY: fuzz
fuzz: $(TOOLS)/bin/cargo-fuzz proxy/relay/fuzz/Cargo.lock ## Coverage-guided fuzzing of the relay core, with a nightly toolchain: FUZZ_SECONDS per target
	cd proxy/relay; for target in $(FUZZ_TARGETS); do mkdir -p $(FUZZ_FOUND)/$$target; \
	  $(FUZZ_RUN) $$target $(FUZZ_FOUND)/$$target fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096; done

SEEDS ?= 1000
.PHONY: sim-seeds
sim-seeds: need-cargo ## The simulation of the relay with SEEDS seeds for each of its worlds
	HEDDLE_SIM_SEEDS=$(SEEDS) cargo test --locked -p heddle-relay --test relay

.PHONY: sim-faults
sim-faults: need-cargo need-python3 ## Plants faults in the relay, one at a time: the simulation has to find each within SEEDS seeds
	python3 proxy/relay/tests/relay/faults.py --seeds $(SEEDS)

.PHONY: fuzz-corpus
fuzz-corpus: $(TOOLS)/bin/cargo-fuzz proxy/relay/fuzz/Cargo.lock
	cd proxy/relay; for target in $(FUZZ_TARGETS); do mkdir -p $(FUZZ_FOUND)/$$target; \
	  $(FUZZ_RUN) $$target fuzz/corpus/$$target $(FUZZ_FOUND)/$$target -- -set_cover_merge=1 -use_counters=0; done

$(TOOLS)/bin/cargo-fuzz: | need-cargo
	cargo install --locked --debug --root $(TOOLS) --target-dir $(TOOLS)/build cargo-fuzz@$(CARGO_FUZZ_VERSION)
	rm -rf $(TOOLS)/build

.PHONY: debian
debian:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=$$({ dpkg-query -W -f '$${Package} $${Status}\n' $(DEBIAN_PACKAGES) 2>/dev/null || true; } | awk '/ installed$$/ {print $$1}' \
	    | sort | comm -13 - <(printf '%s\n' $(DEBIAN_PACKAGES) | sort)); \
	  if [ -n "$$missing" ]; then apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; fi; \
	else echo "not root on Debian: suites that lack a program print SKIP"; fi

# Peers from the Python registry, pinned, in an environment of their own.
$(PEERS)/installed: tests/interop/requirements.txt | need-python3
	python3 -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# One build for the demo, the suites that start programs, and the sizes they check.
.PHONY: binaries
binaries: need-cargo ## The programs as they ship
	cargo build --locked --release --bin heddle-proxy --bin heddle-control-plane --bin heddle --bin heddle-demo-app

.PHONY: test
test: need-cargo debian $(PEERS)/installed binaries ## Every suite
	HEDDLE_BIN=$(CURDIR)/target/release HEDDLE_PEERS=$(CURDIR)/$(PEERS) cargo test --locked --workspace

# Peers of the benchmarks and what counts instructions; `make test` needs none of them.
bench bench-micro: DEBIAN_PACKAGES += haproxy nginx-light valgrind

.PHONY: bench
bench: need-cargo debian $(PEERS)/installed binaries ## Load side by side with peers: SCENARIO=files ROUNDS=n SUBJECTS=a,b
	cargo build --release --locked -p heddle-benches --bin load
	HEDDLE_PEERS=$(CURDIR)/$(PEERS) target/release/load measure $(SCENARIO) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(SUBJECTS),--subjects $(SUBJECTS)) --results benches/results || missing=1; \
	target/release/load tables; exit $${missing:-0}

# In the profile without the link-time pass, which is the one its figures are of.
.PHONY: bench-micro
bench-micro: need-cargo debian ## Instructions of the hot path's decisions against the figures of the tree: WRITE=1 keeps new ones
	cargo build --profile quick --locked -p heddle-benches --no-default-features --bin instructions
	target/quick/instructions $(if $(WRITE),--write)
