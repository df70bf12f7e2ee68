//! End-to-end tests: a real API server, kubelet and Velero, and Reveille installed by its chart. `make test` runs them.
//!
//! Every test has a namespace of its own and says what it counts: each hook command appends a line to a file of the test's
//! folder on this machine, so "ran exactly once" is read from the disk and not from what Reveille says about itself.
//!
//! On a cluster of one's own (several at a time: they mostly wait):
//!
//! ```sh
//! tests/cluster/cluster up dev && tests/reveille-image target/dev.tar && eval "$(tests/cluster/cluster env dev)"
//! REVEILLE_E2E_CLUSTER=dev REVEILLE_IMAGE_TAR=target/dev.tar \
//!   cargo test --features e2e --test e2e -- --test-threads 6 [part of a test's name]
//! ```
//!
//! With `REVEILLE_E2E_KEEP=1` what a failed test has made stays there for a look.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod harness;

mod actions;
mod actions_crash;
mod actions_examples;
mod actions_export;
mod actions_functions;
mod actions_lookalikes;
mod actions_policies;
mod again;
mod annotations;
mod bad_input;
mod breaks;
mod certificates;
mod chaos;
mod chart;
mod check;
mod cluster_rules;
mod controls;
mod handover;
mod image;
mod odd_pods;
mod outages;
mod ownership;
mod places;
mod policies;
mod restore_spec;
mod results;
mod running;
mod serving;
mod status;
mod untouched;
mod velero_faults;
mod volumes;
