//! What requests to cancel, to pause and to run again do to a run. Pure: part of the state machine in `step`.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{
    conditions::{self, PAUSED},
    end::pod_end,
    pod_view::PodView,
};
use crate::{
    api::hook_run::{HookRunSpec, HookRunStatus, HookState, PostStatus, Rerun, RunPhase},
    control::{Controls, Request, RerunRequest},
    duration::GoDuration,
};

/// How many requests to run it again a run remembers. Only the latest can still be asked for.
const REMEMBERED_RERUNS: usize = 20;

/// The request that cancels what has not started. Those that stood when a rerun was taken in were for what went before it.
pub(super) fn cancel_in_force<'a>(controls: &'a Controls, status: &HookRunStatus) -> Option<&'a Request> {
    let despite = status.last_rerun().map(|rerun| rerun.despite.as_slice());
    let despite = despite.unwrap_or_default();
    controls.cancel.iter().find(|request| !despite.contains(&request.id))
}

/// When the clocks of wait timeouts began: with the pod, or with the last rerun; later by as long as the run was paused.
pub(super) fn clocks_began(spec: &HookRunSpec, status: &HookRunStatus) -> Timestamp {
    let began = status
        .last_rerun()
        .map_or(spec.pod.created_at, |rerun| rerun.taken_at.0);
    began.checked_add(status.paused_for.to_signed()).unwrap_or(began)
}

/// The words for the moment at which those clocks began.
pub(super) fn clocks_began_with(status: &HookRunStatus) -> &'static str {
    match (status.last_rerun().is_some(), status.paused_for.is_zero()) {
        (false, true) => "the pod's creation",
        (false, false) => "the pod's creation, pauses not counted,",
        (true, true) => "the rerun was taken in",
        (true, false) => "the rerun was taken in, pauses not counted,",
    }
}

/// Whether a hook belongs to what is being worked on now: to the last rerun, or to the run if there was none.
pub(super) fn is_current(status: &HookRunStatus, hook: &PostStatus) -> bool {
    hook.rerun == status.last_rerun().map_or(0, |rerun| rerun.number)
}

/// How often a hook has been started since the last rerun that it was part of.
pub(super) fn current_attempts(hook: &PostStatus) -> u32 {
    hook.times_started().saturating_sub(hook.attempts_before_rerun)
}

/// Takes over whether the run is paused. As long as it is, nothing new is started and its clocks stand still.
pub(super) fn note_pause(status: &mut HookRunStatus, pause: Option<&Request>, now: Timestamp) {
    match (pause, status.paused_since.take()) {
        (None, None) => {}
        (Some(request), since) => {
            let since = since.unwrap_or(MicroTime(now));
            let message = format!("paused {request}");
            conditions::set(status, PAUSED, "True", "PausedByUser", &message, since.0);
            status.message = message;
            status.paused_since = Some(since);
        }
        (None, Some(since)) => {
            let paused = now.duration_since(since.0).max(jiff::SignedDuration::ZERO);
            let total = paused.saturating_add(status.paused_for.to_signed());
            status.paused_for = GoDuration::from_millis(i64::try_from(total.as_millis()).unwrap_or(i64::MAX));
            conditions::set(status, PAUSED, "False", "Resumed", "it goes on", now);
            "goes on after a pause".clone_into(&mut status.message);
        }
    }
}

/// A run that has ended is not paused any more.
pub(super) fn end_pause(status: &mut HookRunStatus, now: Timestamp) {
    if status.paused_since.take().is_some() {
        conditions::set(status, PAUSED, "False", "Ended", "the run has ended", now);
    }
}

/// Whether what people asked for has changed the status.
pub(super) fn has_changed(old: &HookRunStatus, new: &HookRunStatus) -> bool {
    let paused = |status: &HookRunStatus| status.conditions.iter().find(|known| known.type_ == PAUSED).cloned();
    old.paused_since != new.paused_since || old.cancelled != new.cancelled || paused(old) != paused(new)
}

/// Which hooks a rerun runs again, by their index in the plan; or why there can be none.
///
/// `pod`: the run's very pod (by uid), if it still exists.
pub fn hooks_to_rerun(
    spec: &HookRunSpec,
    status: &HookRunStatus,
    hook: Option<&str>,
    pod: Option<&PodView>,
) -> Result<Vec<usize>, String> {
    match status.phase {
        RunPhase::Pending | RunPhase::Running => {
            return Err("the run has not ended yet: what did not succeed can be run again when it has".to_owned());
        }
        RunPhase::Stale => return Err("the run is Stale: it belongs to no restore of this cluster".to_owned()),
        RunPhase::Succeeded | RunPhase::PartiallyFailed | RunPhase::Failed => {}
    }
    if let Some((_, message)) = pod_end(pod) {
        let what = message.split_once(';').map_or(message.as_str(), |(what, _)| what);
        let what = what.strip_suffix(" before the hook could run").unwrap_or(what);
        return Err(format!("pod {} is not there any more: {what}", spec.pod.name));
    }
    let hooks: Vec<(usize, &PostStatus)> = status.post.iter().enumerate().collect();
    let named: Vec<(usize, &PostStatus)> = match hook {
        None => hooks,
        Some(name) => hooks.into_iter().filter(|(_, state)| state.name == name).collect(),
    };
    if let (Some(name), true) = (hook, named.is_empty()) {
        let mut known: Vec<&str> = status.post.iter().map(|state| state.name.as_str()).collect();
        known.dedup();
        return Err(format!(
            "there is no hook {name:?} in this run; it has: {}",
            known.join(", ")
        ));
    }
    let again: Vec<usize> = named
        .iter()
        .filter(|(_, state)| can_run_again(state.state))
        .map(|(index, _)| *index)
        .collect();
    if again.is_empty() {
        let found: Vec<String> = named
            .iter()
            .map(|(_, state)| format!("{} {:?}", state.name, state.state))
            .collect();
        let found = if found.is_empty() {
            "no post hooks".to_owned()
        } else {
            found.join(", ")
        };
        return Err(format!("there is nothing to run again: {found}"));
    }
    Ok(again)
}

/// Succeeded is done, Skipped can't be run as it is written, and what is Velero's stays Velero's.
fn can_run_again(state: HookState) -> bool {
    match state {
        HookState::Failed
        | HookState::Cancelled
        | HookState::WaitTimedOut
        | HookState::ExecTimedOut
        | HookState::Unknown => true,
        HookState::Waiting
        | HookState::Started
        | HookState::Succeeded
        | HookState::Skipped
        | HookState::LeftToVelero => false,
    }
}

/// The status after a request to run again was taken in, or refused. Either way it is remembered, so that it counts once.
pub(super) fn take_in_rerun(
    spec: &HookRunSpec,
    status: &HookRunStatus,
    pod: Option<&PodView>,
    (wanted, cancel): (&RerunRequest, &[Request]),
    now: Timestamp,
) -> HookRunStatus {
    let mut new = status.clone();
    let mut record = Rerun {
        request: wanted.request.clone(),
        number: 0,
        taken_at: MicroTime(now),
        hooks: Vec::new(),
        despite: Vec::new(),
        refused: None,
    };
    match hooks_to_rerun(spec, status, wanted.hook.as_deref(), pod) {
        Err(why) => record.refused = Some(why),
        Ok(hooks) => {
            record.number = status.last_rerun().map_or(0, |rerun| rerun.number).saturating_add(1);
            record.despite = cancel.iter().map(|request| request.id.clone()).collect();
            for index in hooks {
                let Some(state) = new.post.get_mut(index) else { continue };
                state.state = HookState::Waiting;
                state.reason.clear();
                state.message.clear();
                state.rerun = record.number;
                state.next_attempt_at = None;
                state.attempts_before_rerun = state.times_started();
                record.hooks.push(state.name.clone());
            }
            new.phase = RunPhase::Running;
            new.message = format!("runs again what did not succeed: asked for {}", wanted.request);
            new.finished_at = None;
            new.cancelled = None;
            new.paused_since = None;
            new.paused_for = GoDuration::ZERO;
        }
    }
    new.reruns.push(record);
    forget_old(&mut new.reruns);
    new
}

/// Keeps the latest records, and whatever else happens the last one that was not refused: it says what is being worked on.
fn forget_old(reruns: &mut Vec<Rerun>) {
    while reruns.len() > REMEMBERED_RERUNS {
        let current = reruns.iter().rposition(|rerun| rerun.refused.is_none());
        let oldest = usize::from(current == Some(0));
        reruns.remove(oldest);
    }
}
