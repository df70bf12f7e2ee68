# `make` lists the targets. The work is done by the scripts that they call.
.DEFAULT_GOAL := help
.PHONY: help demo demo-down test bench lint cluster-up cluster-down image crds

# The cluster of cluster-up and cluster-down.
CLUSTER ?= dev

help: ## This list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

demo: ## A database is backed up, lost and restored, with hooks and without (root; leaves its cluster running)
	@tests/demo/run

demo-down: ## Remove the demo's cluster (root)
	@tests/cluster/cluster down demo

test: ## All tests, the end-to-end tests on a cluster of their own too (root). Without root: cargo test
	@tests/run

bench: ## Measures, and writes docs/benchmarks.md (root, 15 minutes); BENCH=hooks|webhook: only that; SMALL=1: a quick try
	@tests/bench/run $(if $(SMALL),--small) $(BENCH)

lint: ## Format, clippy, shell scripts, chart, licences
	@tests/lint

cluster-up: ## Start a cluster with Velero; CLUSTER=NAME, otherwise dev (root)
	@tests/cluster/cluster up $(CLUSTER)

cluster-down: ## Remove it (root)
	@tests/cluster/cluster down $(CLUSTER)

image: ## The image without a container engine: target/reveille.tar (docker archive)
	@tests/reveille-image target/reveille.tar --profile release

crds: ## Write the chart's CRDs from the code
	cargo run --locked --quiet -- crd --directory charts/reveille/files/crds
