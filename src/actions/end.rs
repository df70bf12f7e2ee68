//! What the end of a step means for the status of an action. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};

use super::{
    action::{Action, ActionKind, Limits},
    step::Export,
};
use crate::{
    api::action::{ActionPhase, ActionStatus, Fields, HookName, Invocation, PhaseStatus, StepState},
    blueprint::model::Artifacts,
    duration::GoDuration,
};

/// The pause before the first retry of a hook; it doubles with each.
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(5);
/// The longest pause before a retry.
const MAX_RETRY: SignedDuration = SignedDuration::from_mins(1);

/// How a phase ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Well, with this output.
    Succeeded(Fields),
    /// Not well.
    Failed(String),
    /// Nobody can know.
    Unknown(String),
}

/// The status after a try has begun, or could not: `phases` are those of its Blueprint's action.
pub fn begun(
    status: &ActionStatus,
    hook: usize,
    phases: Result<Vec<PhaseStatus>, String>,
    limits: &Limits,
    now: Timestamp,
) -> ActionStatus {
    let mut new = status.clone();
    let Some(invocation) = new.hooks.get_mut(hook) else {
        return new;
    };
    invocation.state = StepState::Running;
    invocation.attempt = invocation.attempt.saturating_add(1);
    invocation.retry_at = None;
    invocation.started_at = Some(MicroTime(now));
    invocation.finished_at = None;
    invocation.message = String::new();
    let text = format!("runs {} for namespace {}", invocation.hook.path(), invocation.namespace);
    match phases {
        Ok(phases) => invocation.phases = phases,
        Err(why) => {
            invocation.phases = Vec::new();
            end_try(&mut new, hook, Err(why), limits, now);
        }
    }
    new.message = text;
    new
}

/// The status after a phase has ended.
pub fn ran(status: &ActionStatus, hook: usize, phase: usize, outcome: Outcome, now: Timestamp) -> ActionStatus {
    let mut new = status.clone();
    let Some(invocation) = new.hooks.get_mut(hook) else {
        return new;
    };
    let Some(state) = invocation.phases.get_mut(phase).filter(|phase| !phase.state.is_final()) else {
        return new;
    };
    state.finished_at = Some(MicroTime(now));
    let (deferred, well) = (state.deferred, matches!(outcome, Outcome::Succeeded(_)));
    (state.state, state.message) = match outcome {
        Outcome::Succeeded(output) => {
            state.output = output;
            (StepState::Succeeded, std::mem::take(&mut state.message))
        }
        Outcome::Failed(why) => (StepState::Failed, why),
        Outcome::Unknown(why) => (StepState::Unknown, why),
    };
    if !well && !deferred {
        for rest in invocation
            .phases
            .iter_mut()
            .filter(|rest| !rest.deferred && rest.state == StepState::Pending)
        {
            rest.state = StepState::Skipped;
            "an earlier phase did not succeed".clone_into(&mut rest.message);
        }
    }
    new
}

/// The status after a hook's output artifacts were rendered, or could not be.
pub fn finished(
    status: &ActionStatus,
    hook: usize,
    artifacts: Result<Artifacts, String>,
    limits: &Limits,
    now: Timestamp,
) -> ActionStatus {
    let mut new = status.clone();
    end_try(&mut new, hook, artifacts, limits, now);
    new
}

/// Ends a try: the hook has succeeded, will be tried again, or has failed.
pub(super) fn end_try(
    status: &mut ActionStatus,
    hook: usize,
    end: Result<Artifacts, String>,
    limits: &Limits,
    now: Timestamp,
) {
    let Some(invocation) = status.hooks.get_mut(hook) else {
        return;
    };
    invocation.finished_at = Some(MicroTime(now));
    match end {
        Ok(artifacts) => {
            invocation.state = StepState::Succeeded;
            invocation.message = String::new();
            // Of the other hooks nothing flows anywhere.
            if invocation.hook.is_pre() {
                invocation.artifacts = artifacts;
            }
        }
        Err(why) if !invocation.hook.is_on_failure() && invocation.attempt <= limits.hook_retries => {
            let doubled = FIRST_RETRY.saturating_mul(1 << invocation.attempt.saturating_sub(1).min(10));
            let at = now.checked_add(doubled.min(MAX_RETRY)).unwrap_or(now);
            invocation.state = StepState::Pending;
            invocation.retry_at = Some(MicroTime(at));
            invocation.message = format!("try {} failed, there will be another: {why}", invocation.attempt);
            invocation.earlier_failures.push(why);
        }
        Err(why) => {
            invocation.state = StepState::Failed;
            invocation.message = why;
        }
    }
}

/// The status after Velero's object was created, or found to be there already.
pub fn created(status: &ActionStatus, uid: &str, now: Timestamp) -> ActionStatus {
    let mut new = status.clone();
    if let Some(velero) = new.velero.as_mut() {
        velero.uid = Some(uid.to_owned());
        velero.started_at = Some(MicroTime(now));
        new.message = format!("Velero works on {}", velero.name);
    }
    new
}

/// Records a failure of a step before Velero's end: what is left are the onFailure hooks, those of the export too.
pub fn fail(status: &mut ActionStatus, action: &Action, why: &str) {
    status.failure.get_or_insert(why.to_owned());
    if action.request.export_hooks.is_some() {
        status.export_failure.get_or_insert(why.to_owned());
    }
    status.phase = ActionPhase::PostHook;
    why.clone_into(&mut status.message);
    skip(status, HookName::is_pre, "an earlier step failed");
}

/// Ends an action at somebody's wish.
pub(super) fn cancel(status: &ActionStatus, kind: ActionKind, why: &str, now: Timestamp) -> ActionStatus {
    let mut new = status.clone();
    for hook in &mut new.hooks {
        for phase in hook.phases.iter_mut().filter(|phase| !phase.state.is_final()) {
            let text = if phase.state == StepState::Running {
                "cancelled while it ran: what it had begun may stay"
            } else {
                "cancelled"
            };
            text.clone_into(&mut phase.message);
            phase.state = StepState::Skipped;
        }
    }
    skip(&mut new, |_| true, "cancelled");
    let object = new
        .velero
        .as_ref()
        .filter(|velero| velero.uid.is_some() && new.phase == ActionPhase::Velero);
    let goes_on = object.map(|velero| format!("; Velero's {} {} goes on", kind.velero_kind(), velero.name));
    new.message = format!("cancelled: {why}{}", goes_on.unwrap_or_default());
    new.cancelled = Some(why.to_owned());
    new.phase = ActionPhase::Cancelled;
    new.finished_at = Some(MicroTime(now));
    new
}

/// Ends hooks that have not ended and will not run.
pub(super) fn skip(status: &mut ActionStatus, which: impl Fn(HookName) -> bool, why: &str) {
    for hook in status
        .hooks
        .iter_mut()
        .filter(|hook| !hook.state.is_final() && which(hook.hook))
    {
        hook.state = StepState::Skipped;
        hook.retry_at = None;
        why.clone_into(&mut hook.message);
    }
}

/// When a phase must have ended. The deferred one has as much time again: it clears up after a hook that took too long.
pub fn phase_deadline(invocation: &Invocation, phase: usize, limit: GoDuration) -> Option<Timestamp> {
    let phase = invocation.phases.get(phase)?;
    if phase.deferred {
        return phase.started_at.as_ref()?.0.checked_add(limit.to_signed()).ok();
    }
    invocation.deadline(limit)
}

/// Why a try has failed, if one of its phases has.
pub(super) fn phase_failure(invocation: &Invocation) -> Option<String> {
    let bad = |phase: &&PhaseStatus| matches!(phase.state, StepState::Failed | StepState::Unknown);
    let phase = invocation.phases.iter().find(bad)?;
    Some(format!("phase {}: {}", phase.label(), phase.message))
}

/// A failed hook in one sentence.
pub(super) fn failure_of(hook: &Invocation) -> String {
    let Invocation {
        namespace,
        blueprint,
        action_name,
        message,
        ..
    } = hook;
    let path = hook.hook.path();
    format!("{path} ({action_name} of Blueprint {blueprint}) for namespace {namespace} failed: {message}")
}

/// Sets a condition; its time changes with its value only.
pub fn set_condition(
    status: &mut ActionStatus,
    type_: &str,
    holds: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let value = if holds { "True" } else { "False" };
    let before = status.conditions.iter().position(|condition| condition.type_ == type_);
    let since = before
        .and_then(|index| status.conditions.get(index))
        .filter(|condition| condition.status == value);
    let condition = Condition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: since.map_or(Time(now), |condition| condition.last_transition_time.clone()),
        observed_generation: None,
    };
    match before.and_then(|index| status.conditions.get_mut(index)) {
        Some(old) => *old = condition,
        None => status.conditions.push(condition),
    }
}

/// What the end of the export means for its hooks.
pub(super) fn judge_export(status: &mut ActionStatus, export: &Export, now: Timestamp) {
    let (reason, message) = match export {
        Export::Succeeded => ("Moved", "Velero's plugins have moved what they had to".to_owned()),
        Export::Nothing => (
            "NothingMoved",
            "exportHooks are refused: nothing was moved, for no plugin of Velero's had an operation to wait for (the Backup never \
             was WaitingForPluginOperations)"
                .to_owned(),
        ),
        Export::Failed(why) => ("OperationsFailed", why.clone()),
    };
    if *export != Export::Succeeded {
        status.export_failure = Some(message.clone());
    }
    set_condition(status, "Export", *export == Export::Succeeded, reason, message, now);
}
