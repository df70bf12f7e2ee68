//! Tests of the servers from the outside, without a cluster: the webhook over real TLS sockets, and the real binary.

// Clippy knows a test by its attribute; the helpers beside them are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod blueprint;
mod chart;
mod connections;
mod docs;
mod exec;
mod forged;
mod http;
mod image;
mod process;
mod properties;
mod support;
mod templates;
mod tls;
