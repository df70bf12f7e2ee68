//! The one place that reads the clocks.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// The wall clock, in whole microseconds: what is written to the API server comes back equal. It may jump in both directions.
#[allow(clippy::disallowed_methods)] // here, and nowhere else
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// Measures how long something takes; unaffected by jumps of the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins now.
    #[allow(clippy::disallowed_methods)] // a duration is measured, no decision depends on it
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
