//! Waiting for something to come true, with a limit that only a failure ever reaches.

use std::time::Duration;

/// How long anything may take. Generous: restores of all tests wait for each other.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);
const PAUSE: Duration = Duration::from_millis(200);

/// Looks until there is something to give; panics with these words when nothing comes.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(LIMIT, looking)
        .await
        .unwrap_or_else(|_| panic!("waited {} s in vain: {what}", LIMIT.as_secs()))
}
