//! How much the server takes on, and how long it waits.

use std::time::Duration;

/// Bounds of the server. The defaults fit the API server's habits: it keeps connections for 90 s and closes them itself, and
/// must never find one closed that it thinks is good.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a TLS handshake.
    pub handshake: Duration,
    /// How long a connection may lie idle between requests.
    pub idle: Duration,
    /// From the first byte of a request to the end of its head.
    pub head: Duration,
    /// For a request's body, unless the call's own time is over before.
    pub body: Duration,
    /// How long no byte of a body may come. The API server sends it in one go.
    pub body_pause: Duration,
    /// How long a client may take no byte of an answer.
    pub write: Duration,
    /// Connections at the same time. For a further one an idle one is closed; if none is idle it waits.
    pub connections: usize,
    /// How long a connection may be idle before it has to give way to a new one.
    pub give_way: Duration,
    /// Bytes of one body. The API server's own limit for an object is 3 MiB; a review holds up to two.
    pub body_bytes: usize,
    /// Bytes of all bodies at the same time, a quarter of them for small ones alone.
    pub bytes_in_flight: usize,
    /// Bytes that all bodies take together once they are read into trees of values, as [`crate::admission::weight`] has it. Few bytes
    /// of text can become many: this keeps the process within its container's memory.
    pub tree_bytes: usize,
    /// Calls that are being decided at the same time.
    pub calls: usize,
    /// How long to go on serving after the end has begun: until then nobody knows.
    pub shutdown_delay: Duration,
    /// How long calls in flight may take after that.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            handshake: seconds(10),
            idle: seconds(300),
            head: seconds(10),
            body: seconds(10),
            body_pause: seconds(1),
            write: seconds(30),
            connections: 1024,
            give_way: seconds(1),
            body_bytes: 8 << 20,
            bytes_in_flight: 16 << 20,
            tree_bytes: 40 << 20,
            calls: 256,
            shutdown_delay: seconds(10),
            drain: seconds(10),
        }
    }
}
