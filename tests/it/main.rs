//! Tests of the servers from the outside, without a cluster: the webhook over real TLS sockets, and the real binary.

mod http;
mod process;
mod support;
mod tls;
