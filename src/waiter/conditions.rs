//! The conditions of a run, by Kubernetes' conventions, and its progress in one word. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::waiting::Waiting;
use crate::api::hook_run::{HookRunStatus, HookState, InitState, PostStatus, RunPhase};

/// True once nothing will change any more, False before.
pub(super) const FINISHED: &str = "Finished";
/// True or False once it is finished, Unknown before.
pub(super) const SUCCEEDED: &str = "Succeeded";
/// True while it has been waiting for longer than a while; reason and message say for what.
pub(super) const WAITING: &str = "Waiting";
/// True while nothing new is started because somebody has paused it.
pub(super) const PAUSED: &str = "Paused";
/// True if an init container took longer than it may.
pub(super) const INIT_TIMED_OUT: &str = "InitTimedOut";

/// Brings conditions and progress in line with phase and hooks. To be called last, before a status is written.
pub(super) fn refresh(status: &mut HookRunStatus, now: Timestamp) {
    let ended = status.post.iter().filter(|post| post.state.is_final()).count();
    status.progress = format!("{ended}/{}", status.post.len());
    let message = status.message.clone();
    if status.phase.is_final() {
        let succeeded = status.phase == RunPhase::Succeeded;
        let reason = outcome(status);
        set(status, FINISHED, "True", &reason, &message, now);
        set(
            status,
            SUCCEEDED,
            if succeeded { "True" } else { "False" },
            &reason,
            &message,
            now,
        );
    } else {
        let phase = format!("{:?}", status.phase);
        set(status, FINISHED, "False", &phase, "", now);
        set(status, SUCCEEDED, "Unknown", "NotFinished", "", now);
    }
    let busy = status.post.iter().any(|post| post.state == HookState::Started);
    let waits = status
        .conditions
        .iter()
        .any(|condition| condition.type_ == WAITING && condition.status == "True");
    if waits && (busy || status.phase.is_final()) {
        let reason = if busy { "HookStarted" } else { "Finished" };
        set(status, WAITING, "False", reason, "", now);
    }
    let timed_out: Vec<&str> = status
        .init
        .iter()
        .filter(|init| init.state == InitState::TimedOut)
        .map(|init| init.container.as_str())
        .collect();
    if !timed_out.is_empty() {
        let message = format!(
            "init containers that took longer than they may: {}",
            timed_out.join(", ")
        );
        set(status, INIT_TIMED_OUT, "True", "TimeoutExceeded", &message, now);
    }
}

/// Says what a run waits for.
pub(super) fn waits(status: &mut HookRunStatus, waiting: &Waiting, now: Timestamp) {
    // Since when it waits for just this: here a new reason counts as a transition.
    status.conditions.retain(|condition| condition.type_ != WAITING);
    set(status, WAITING, "True", &waiting.reason, &waiting.message, now);
}

/// Conditions that hold now and did not hold before, or for another reason.
pub(super) fn news<'a>(before: &HookRunStatus, now: &'a HookRunStatus, type_: &str) -> Option<&'a Condition> {
    let holds = |condition: &&Condition| condition.type_ == type_ && condition.status == "True";
    let held = before.conditions.iter().find(holds);
    let holds_now = now.conditions.iter().find(holds)?;
    held.is_none_or(|held| held.reason != holds_now.reason)
        .then_some(holds_now)
}

/// One word for how a run has ended: that of the first hook that did not succeed.
fn outcome(status: &HookRunStatus) -> String {
    let bad = |post: &&PostStatus| !matches!(post.state, HookState::Succeeded | HookState::LeftToVelero);
    match (status.phase, status.post.iter().find(bad)) {
        (RunPhase::Stale, _) => "Stale".to_owned(),
        (RunPhase::Succeeded, _) | (_, None) => "HooksSucceeded".to_owned(),
        (_, Some(post)) if post.reason.is_empty() => format!("{:?}", post.state),
        (_, Some(post)) => post.reason.clone(),
    }
}

/// Sets a condition; its time changes with its status only.
pub(super) fn set(status: &mut HookRunStatus, type_: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let old = status.conditions.iter_mut().find(|condition| condition.type_ == type_);
    let since = old
        .as_ref()
        .filter(|old| old.status == value)
        .map(|old| old.last_transition_time.clone());
    let new = Condition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since.unwrap_or(Time(now)),
        observed_generation: None,
    };
    match old {
        Some(old) => *old = new,
        None => status.conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: RunPhase, hooks: &[HookState]) -> HookRunStatus {
        let post = |state: &HookState| PostStatus {
            state: *state,
            reason: if *state == HookState::Failed {
                "NonZeroExitCode"
            } else {
                ""
            }
            .to_owned(),
            ..PostStatus::default()
        };
        HookRunStatus {
            phase,
            message: "words".to_owned(),
            post: hooks.iter().map(post).collect(),
            ..HookRunStatus::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn shown(status: &HookRunStatus) -> Vec<String> {
        let line = |condition: &Condition| {
            let since = condition.last_transition_time.0.as_second();
            format!("{}={} {} {since}", condition.type_, condition.status, condition.reason)
        };
        status.conditions.iter().map(line).collect()
    }

    #[test]
    fn from_pending_to_the_end() {
        let mut run = status(RunPhase::Pending, &[HookState::Waiting, HookState::Waiting]);
        refresh(&mut run, at(1));
        assert_eq!(
            shown(&run),
            ["Finished=False Pending 1", "Succeeded=Unknown NotFinished 1"]
        );
        assert_eq!(run.progress, "0/2");
        let unchanged = run.clone();
        refresh(&mut run, at(2));
        assert_eq!(run, unchanged, "what has not changed keeps its time");

        let waiting = |reason: &str| Waiting {
            reason: reason.to_owned(),
            message: "m".to_owned(),
        };
        waits(&mut run, &waiting("ImagePullBackOff"), at(3));
        let before = unchanged;
        assert_eq!(news(&before, &run, WAITING).unwrap().reason, "ImagePullBackOff");
        let before = run.clone();
        assert!(news(&before, &run, WAITING).is_none());
        waits(&mut run, &waiting("CrashLoopBackOff"), at(4));
        assert!(news(&before, &run, WAITING).is_some());
        assert_eq!(shown(&run)[2], "Waiting=True CrashLoopBackOff 4");

        let waits = run.conditions;
        run = status(RunPhase::Running, &[HookState::Started, HookState::Waiting]);
        run.conditions = waits;
        refresh(&mut run, at(5));
        assert_eq!(
            shown(&run),
            [
                "Finished=False Running 1",
                "Succeeded=Unknown NotFinished 1",
                "Waiting=False HookStarted 5"
            ]
        );
        let conditions = run.conditions;
        run = status(RunPhase::Failed, &[HookState::Succeeded, HookState::Failed]);
        run.conditions = conditions;
        refresh(&mut run, at(6));
        assert_eq!(
            shown(&run),
            [
                "Finished=True NonZeroExitCode 6",
                "Succeeded=False NonZeroExitCode 6",
                "Waiting=False HookStarted 5"
            ]
        );
        assert_eq!(
            (run.progress.as_str(), run.conditions[0].message.as_str()),
            ("2/2", "words")
        );
    }

    #[test]
    fn each_end_has_its_word() {
        for (phase, hooks, succeeded, reason) in [
            (
                RunPhase::Succeeded,
                vec![HookState::Succeeded],
                "True",
                "HooksSucceeded",
            ),
            (RunPhase::Succeeded, vec![], "True", "HooksSucceeded"),
            (
                RunPhase::PartiallyFailed,
                vec![HookState::Cancelled],
                "False",
                "Cancelled",
            ),
            (RunPhase::Stale, vec![HookState::Skipped], "False", "Stale"),
        ] {
            let mut run = status(phase, &hooks);
            refresh(&mut run, at(1));
            assert_eq!(
                (run.conditions[1].status.as_str(), run.conditions[1].reason.as_str()),
                (succeeded, reason)
            );
        }
    }
}
