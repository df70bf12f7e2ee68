//! How hooks and runs end: what an end means for others, and the phase of the whole. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{
    control::{end_pause, is_current},
    init,
    pod_view::PodView,
};
use crate::{
    api::hook_run::{HookRunSpec, HookRunStatus, HookState, PostStatus, RunPhase},
    hooks::OnError,
};

/// Why a failure in this run cancels what has not started in its restore, if so.
pub fn cancelling_failure(spec: &HookRunSpec, status: &HookRunStatus) -> Option<String> {
    failure_among(spec, status, |_| true)
}

/// The same for this run itself: in a rerun, what failed before it and is not part of it cancels nothing.
pub(super) fn current_failure(spec: &HookRunSpec, status: &HookRunStatus) -> Option<String> {
    failure_among(spec, status, |state| is_current(status, state))
}

fn failure_among(spec: &HookRunSpec, status: &HookRunStatus, counts: impl Fn(&PostStatus) -> bool) -> Option<String> {
    let failed = spec.plan.post.iter().zip(&status.post).find(|(hook, state)| {
        let bad = matches!(
            state.state,
            HookState::Failed | HookState::ExecTimedOut | HookState::WaitTimedOut | HookState::Unknown
        );
        hook.on_error == OnError::Fail && bad && counts(state)
    });
    failed.map(|(hook, state)| {
        format!(
            "hook {} (onError: Fail) in container {} of pod {} ended {:?}",
            hook.name, hook.container, spec.pod.name, state.state
        )
    })
}

/// Sets an end state; the words say why.
pub(super) fn settle(state: &mut PostStatus, end: HookState, reason: &str, message: impl Into<String>) {
    state.state = end;
    reason.clone_into(&mut state.reason);
    state.message = message.into();
}

/// Why nothing more can be started in the pod, if so.
pub(super) fn pod_end(pod: Option<&PodView>) -> Option<(&'static str, String)> {
    match pod {
        None => Some(("PodGone", "the pod was deleted before the hook could run".to_owned())),
        Some(pod) if pod.terminating => Some((
            "PodDeleted",
            "the pod is being deleted; the hook had not been started".to_owned(),
        )),
        Some(pod) if pod.has_ended() => {
            let phase = match pod.phase.as_str() {
                phase @ ("Succeeded" | "Failed") => phase,
                _ => "the kubelet ends it",
            };
            let how = pod.reason.as_deref().unwrap_or(phase);
            let message = format!("the pod has ended ({how}); the hook had not been started");
            Some(("PodEnded", message))
        }
        Some(_) => None,
    }
}

/// Sets the phase once nothing can change any more. `settled`: init containers are not waited for any longer.
pub(super) fn conclude(spec: &HookRunSpec, status: &mut HookRunStatus, settled: bool, now: Timestamp) {
    let hooks_are_final = status.post.iter().all(|state| state.state.is_final());
    // Where no command is to be run, the run exists to watch the init containers.
    let runs_commands = runs_commands(status);
    let init_is_final = runs_commands || settled || status.init.iter().all(init::is_over);
    if !hooks_are_final || !init_is_final {
        return;
    }
    // What Velero runs is Velero's to report.
    let own = || {
        spec.plan
            .post
            .iter()
            .zip(&status.post)
            .filter(|(_, state)| state.state != HookState::LeftToVelero)
    };
    let bad = |wanted: OnError| {
        let hooks = own();
        hooks
            .filter(|(hook, state)| hook.on_error == wanted && state.state != HookState::Succeeded)
            .count()
    };
    let (hard, soft) = (bad(OnError::Fail), bad(OnError::Continue));
    let all = own().count();
    let (phase, message) = match (hard, soft) {
        (0, 0) if all == 0 => (RunPhase::Succeeded, "no post hooks".to_owned()),
        (0, 0) => (RunPhase::Succeeded, format!("{all} of {all} post hooks succeeded")),
        (0, soft) => (
            RunPhase::PartiallyFailed,
            format!("{soft} of {all} post hooks did not succeed (onError: Continue)"),
        ),
        (hard, soft) => (
            RunPhase::Failed,
            format!(
                "{} of {all} post hooks did not succeed, {hard} of them with onError: Fail",
                hard + soft
            ),
        ),
    };
    status.phase = phase;
    status.message = message;
    status.finished_at = Some(MicroTime(now));
    end_pause(status, now);
}

/// Whether there are commands to run, or were.
pub(super) fn runs_commands(status: &HookRunStatus) -> bool {
    let idle = |hook: &PostStatus| matches!(hook.state, HookState::LeftToVelero | HookState::Skipped);
    !status.post.iter().all(idle)
}
