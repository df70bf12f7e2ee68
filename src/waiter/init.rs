//! Init containers of hooks: watched, recorded, and never a reason for anything. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::pod_view::PodView;
use crate::{
    api::hook_run::{InitState, InitStatus},
    plan::PlannedInit,
};

/// Takes over what the kubelet says of an init container.
pub(super) fn observe(hook: &PlannedInit, state: &mut InitStatus, pod: Option<&PodView>, now: Timestamp) {
    if state.state == InitState::TimedOut
        && let Some(ended) = pod.and_then(|pod| pod.containers.get(&hook.container)?.ended.as_ref())
    {
        // Its state stays, but how it ended in the end is worth knowing.
        state.exit_code = Some(ended.exit_code);
        state.finished_at = ended.at.map(MicroTime);
    }
    if is_over(state) {
        return;
    }
    let Some(pod) = pod else {
        state.state = InitState::Unknown;
        "the pod was deleted before the container had ended".clone_into(&mut state.message);
        return;
    };
    let Some(container) = pod.containers.get(&hook.container) else {
        return;
    };
    // The first start counts: a container that crashes again and again does not get its time anew.
    let known = state.started_at.as_ref().map(|time| time.0);
    let starts = container
        .ended
        .as_ref()
        .and_then(|ended| ended.started_at)
        .into_iter()
        .chain(container.started_at);
    state.started_at = known.into_iter().chain(starts).min().map(MicroTime);
    if let Some(ended) = &container.ended {
        state.exit_code = Some(ended.exit_code);
        state.finished_at = ended.at.map(MicroTime);
        let (end, message) = match ended.exit_code {
            0 => (InitState::Succeeded, String::new()),
            code => (InitState::Failed, format!("exit code {code}")),
        };
        state.state = end;
        state.message = message;
    }
    if container.running {
        // A native sidecar never ends: that it is up is all that is asked of it.
        let is_sidecar_up = container.ready && pod.phase == "Running";
        state.state = if is_sidecar_up {
            InitState::Succeeded
        } else {
            InitState::Running
        };
    }
    if let Some(why) = container.waiting.as_ref().filter(|why| *why != "PodInitializing") {
        let known = std::mem::take(&mut state.message);
        state.message = if known.is_empty() || known.contains(why.as_str()) {
            why.clone()
        } else {
            format!("{known}; {why}")
        };
    }
    if !is_over(state) && due(hook, state).is_some_and(|due| due <= now) {
        state.state = InitState::TimedOut;
        state.message = format!("it has not ended {} after its start; it may still run", hook.timeout);
    }
}

/// When the container's time is over, if it has started and has a limit.
pub(super) fn due(hook: &PlannedInit, state: &InitStatus) -> Option<Timestamp> {
    if hook.timeout.is_zero() || is_over(state) {
        return None;
    }
    state.started_at.as_ref()?.0.checked_add(hook.timeout.to_signed()).ok()
}

/// Nothing more is recorded of it.
pub(super) fn is_over(state: &InitStatus) -> bool {
    !matches!(state.state, InitState::Waiting | InitState::Running | InitState::Failed)
}
