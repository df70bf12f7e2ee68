//! When a hook that did not succeed is started again. Pure: the jitter follows from who asks.

use jiff::{SignedDuration, Timestamp};

use super::{attempt::Outcome, control::current_attempts};
use crate::{
    api::hook_run::PostStatus,
    digest,
    hooks::{OnUnknown, PostHook},
};

/// The longest pause between two attempts, but for a first one that its author wants longer.
const LONGEST: SignedDuration = SignedDuration::from_mins(5);

/// The time of the next attempt, if there is to be one. `run`: the uid of the run's pod.
pub(super) fn next_attempt(
    hook: &PostHook,
    state: &PostStatus,
    outcome: &Outcome,
    run: &str,
    now: Timestamp,
) -> Option<Timestamp> {
    let begun = current_attempts(state);
    if !is_worth_it(hook, outcome) || begun > hook.retry.limit() {
        return None;
    }
    let seed = format!("{run}/{}/{}/{begun}", state.container, state.name);
    now.checked_add(pause(hook.retry.backoff.to_signed(), begun, &seed))
        .ok()
}

/// A process that may still run is never run a second time beside itself, unless the author has said so.
fn is_worth_it(hook: &PostHook, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Exited(code) => *code != 0,
        Outcome::Refused(_) | Outcome::TurnedAway { .. } => true,
        Outcome::TimedOut { ended, .. } => *ended,
        Outcome::Lost(_) | Outcome::ProcessGone => hook.retry.on_unknown == OnUnknown::Retry,
    }
}

/// The pause after so many attempts: it doubles each time, and up to a fifth of it is added, so that the hooks of a large restore
/// that failed together do not come back together.
fn pause(first: SignedDuration, attempts: u32, seed: &str) -> SignedDuration {
    let doublings = attempts.saturating_sub(1).min(16);
    let doubled = first.saturating_mul(1 << doublings).min(LONGEST.max(first));
    let random = u32::from_str_radix(&digest::hex(seed, 2), 16).unwrap_or_default();
    // Sixteen bits of a digest: 0 to 65535.
    let jitter = (doubled / 5).saturating_mul(i32::try_from(random / 64).unwrap_or_default()) / 1024;
    doubled.saturating_add(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_differ_by_up_to_a_fifth() {
        let second = SignedDuration::from_secs(1);
        for (first, attempts, least) in [
            (second, 1, second),
            (second, 2, second * 2),
            (second, 4, second * 8),
            (second, 20, LONGEST),
            (SignedDuration::from_hours(1), 3, SignedDuration::from_hours(1)),
            (SignedDuration::ZERO, 5, SignedDuration::ZERO),
            (SignedDuration::MAX, 20, SignedDuration::MAX),
        ] {
            let pauses: Vec<_> = (0..50).map(|seed| pause(first, attempts, &seed.to_string())).collect();
            let most = least.saturating_add(least / 5);
            assert!(pauses.iter().all(|pause| (least..=most).contains(pause)), "{pauses:?}");
            let differ = pauses.iter().any(|pause| *pause != pauses[0]);
            assert_eq!(differ, least > SignedDuration::ZERO && least < SignedDuration::MAX);
            assert_eq!(pauses[0], pause(first, attempts, "0"));
        }
    }
}
