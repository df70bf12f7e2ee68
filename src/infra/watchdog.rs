//! Ends a process that hangs: whoever has started it starts it again.

use std::{
    convert::Infallible,
    process::abort,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tracing::error;

/// How often the runtime shows that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// How often somebody looks.
const LOOK: Duration = Duration::from_secs(10);
/// After so many looks without a beat the process hangs. Looks, not time: a machine that sleeps is no hung process.
const LOOKS: u32 = 6;

/// Counts looks that see nothing new. Pure.
#[derive(Debug, Default)]
struct Watch {
    last: u64,
    in_vain: u32,
}

impl Watch {
    /// Whether the process hangs, with so many beats so far.
    fn hangs(&mut self, beats: u64) -> bool {
        self.in_vain = if beats == self.last { self.in_vain + 1 } else { 0 };
        self.last = beats;
        self.in_vain >= LOOKS
    }
}

/// Beats until `end` fires. A thread of its own aborts the process when there has been no beat for a minute.
pub async fn run(end: CancellationToken) -> Result<(), Infallible> {
    let beats = Arc::new(AtomicU64::new(1));
    let seen = Arc::clone(&beats);
    thread::spawn(move || {
        let mut watch = Watch::default();
        while !watch.hangs(seen.load(Ordering::Relaxed)) {
            thread::sleep(LOOK);
            // The other end is gone: the process ends by itself.
            if Arc::strong_count(&seen) == 1 {
                return;
            }
        }
        error!("the process hangs: it is ended");
        abort();
    });
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            () = tokio::time::sleep(BEAT) => beats.fetch_add(1, Ordering::Relaxed),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_shows_no_life_for_six_looks_hangs() {
        let mut watch = Watch::default();
        for beats in 1..100 {
            assert!(!watch.hangs(beats));
        }
        for _ in 1..LOOKS {
            assert!(!watch.hangs(99));
        }
        assert!(watch.hangs(99));
        assert!(!watch.hangs(100));
    }
}
