//! Init containers of hooks: watched, recorded, and never a reason for anything. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::pod_view::PodView;
use crate::{
    api::hook_run::{HookRunSpec, HookRunStatus, InitState, InitStatus, RunPhase},
    plan::PlannedInit,
};

/// Takes over what the kubelet says of an init container.
pub(super) fn observe(hook: &PlannedInit, state: &mut InitStatus, pod: Option<&PodView>, now: Timestamp) {
    if state.state == InitState::TimedOut
        && let Some(ended) = pod.and_then(|pod| pod.container(&hook.container)?.ended.as_ref())
    {
        // Its state stays, but how it ended in the end is worth knowing.
        state.exit_code = Some(ended.exit_code);
        state.finished_at = ended.at.map(MicroTime);
    }
    if is_over(state) {
        return;
    }
    let Some(pod) = pod else {
        // One that has failed will not be started again, and that is known.
        if state.state == InitState::Failed {
            return;
        }
        state.state = InitState::Unknown;
        "the pod was deleted before the container had ended".clone_into(&mut state.message);
        return;
    };
    let Some(container) = pod.container(&hook.container) else {
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

/// Takes over what the kubelet says of all init containers of a run.
pub(super) fn observe_all(spec: &HookRunSpec, status: &mut HookRunStatus, pod: Option<&PodView>, now: Timestamp) {
    for (hook, state) in spec.plan.init.iter().zip(&mut status.init) {
        observe(hook, state, pod, now);
    }
}

/// What a run that has ended still has to record of its init containers: they may outlast its commands. `limit`: when nobody
/// looks any more. `None` when there is nothing more to come.
pub(super) fn after_the_end(
    spec: &HookRunSpec,
    status: &HookRunStatus,
    pod: Option<&PodView>,
    (limit, now): (Timestamp, Timestamp),
) -> Option<Watch> {
    if status.phase == RunPhase::Stale {
        return None;
    }
    let mut new = status.clone();
    observe_all(spec, &mut new, pod, now);
    let has_ended = pod.is_some_and(PodView::has_ended);
    if has_ended || now >= limit {
        for state in new.init.iter_mut().filter(|state| is_open(state)) {
            state.message = match (has_ended, state.state) {
                (true, InitState::Waiting) => "the pod has ended before it had been started".to_owned(),
                (true, _) => "the pod has ended, and how the container ended is not known".to_owned(),
                (false, _) => "the time of the whole run is over, and nobody looks any more".to_owned(),
            };
            state.state = InitState::Unknown;
        }
    }
    let is_over = has_ended || now >= limit || new.init.iter().all(is_told);
    // A container that crashes again and again is told once, and once more in the end.
    let is_news = |(old, new): (&InitStatus, &InitStatus)| {
        old.state != new.state && (old.state, new.state) != (InitState::Failed, InitState::Running)
    };
    if std::iter::zip(&status.init, &new.init).any(is_news) || (is_over && status.init != new.init) {
        return Some(Watch::Record(Box::new(new)));
    }
    if is_over {
        return None;
    }
    let due = spec
        .plan
        .init
        .iter()
        .zip(&new.init)
        .filter_map(|(hook, state)| due(hook, state));
    Some(Watch::Until(due.chain([limit]).min().unwrap_or(limit)))
}

/// What to do about the init containers of a run that has ended.
#[derive(Debug, PartialEq)]
pub(super) enum Watch {
    /// Write this.
    Record(Box<HookRunStatus>),
    /// Look again when the pod changes, or at this time.
    Until(Timestamp),
}

/// Its state will change: it has not been seen to end.
pub(super) fn is_open(state: &InitStatus) -> bool {
    matches!(state.state, InitState::Waiting | InitState::Running)
}

/// All is known of it; of one that took too long also how it ended in the end.
fn is_told(state: &InitStatus) -> bool {
    is_over(state) && (state.state != InitState::TimedOut || state.exit_code.is_some())
}

/// Nothing more is recorded of it.
pub(super) fn is_over(state: &InitStatus) -> bool {
    !matches!(state.state, InitState::Waiting | InitState::Running | InitState::Failed)
}
