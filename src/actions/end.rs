//! What the end of a step means for the status of an action. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use serde::Serialize;

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

/// The most that a try may put out, and hand on, in bytes: it is all kept in the action's status.
const OUTPUT_LIMIT: usize = 256 << 10;

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
        Ok(phases) => {
            let before = std::mem::replace(&mut invocation.phases, phases);
            for (phase, before) in invocation.phases.iter_mut().zip(before) {
                // An earlier try may have scaled the workload already: what it found is the original, not what it left.
                if (&phase.name, &phase.func) == (&before.name, &before.func) {
                    phase.original_replicas = before.original_replicas;
                }
            }
        }
        Err(why) => {
            invocation.phases = Vec::new();
            end_try(&mut new, hook, Err(why), limits.hook_retries, now);
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
    let outcome = match outcome {
        Outcome::Succeeded(output) => match fits(&output, "its output") {
            Ok(()) => Outcome::Succeeded(output),
            Err(why) => Outcome::Failed(why),
        },
        other => other,
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

/// The status after a hook's output artifacts were rendered, or could not be. Its phases have succeeded, so there is no other try.
pub fn finished(
    status: &ActionStatus,
    hook: usize,
    artifacts: Result<Artifacts, String>,
    now: Timestamp,
) -> ActionStatus {
    let mut new = status.clone();
    end_try(&mut new, hook, artifacts, 0, now);
    new
}

/// Ends a try: the hook has succeeded, will be tried again, or has failed. `retries`: how many there may be.
pub(super) fn end_try(
    status: &mut ActionStatus,
    hook: usize,
    end: Result<Artifacts, String>,
    retries: u32,
    now: Timestamp,
) {
    let Some(invocation) = status.hooks.get_mut(hook) else {
        return;
    };
    invocation.finished_at = Some(MicroTime(now));
    let end = end.and_then(|artifacts| fits(&artifacts, "what its outputArtifacts hold").map(|()| artifacts));
    match end {
        Ok(artifacts) => {
            invocation.state = StepState::Succeeded;
            invocation.message = String::new();
            // Of the other hooks nothing flows anywhere.
            if invocation.hook.is_pre() {
                invocation.artifacts = artifacts;
            }
        }
        Err(why) if !invocation.hook.is_on_failure() && invocation.attempt <= retries => {
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
    let object = new.velero.as_ref().filter(|_| new.phase == ActionPhase::Velero);
    let goes_on = object.map(|velero| {
        let what = match velero.uid {
            Some(_) => "goes on",
            None => "may have been created",
        };
        format!("; Velero's {} {} {what}", kind.velero_kind(), velero.name)
    });
    new.message = format!("cancelled: {why}{}", goes_on.unwrap_or_default());
    new.cancelled = Some(why.to_owned());
    new.phase = ActionPhase::Cancelled;
    new.finished_at = Some(MicroTime(now));
    new
}

/// The status of an action whose record has grown larger than the API server takes: nothing more can be written down about it,
/// so nothing more is done. `status`: the last one that was written.
pub fn too_large(status: &ActionStatus, now: Timestamp) -> ActionStatus {
    let mut new = status.clone();
    let why = format!(
        "its record is too large to be kept (namespaces: {}, hooks: {}); make several actions, or let phases put out less",
        status.namespaces.len(),
        status.hooks.len()
    );
    new.phase = if status.phase == ActionPhase::New {
        ActionPhase::Refused
    } else {
        ActionPhase::Failed
    };
    new.message.clone_from(&why);
    new.failure.get_or_insert(why);
    new.finished_at = Some(MicroTime(now));
    // There is no room for what nobody needs any more.
    new.hooks.retain(|hook| hook.attempt > 0);
    for hook in &mut new.hooks {
        if !hook.state.is_final() {
            hook.state = StepState::Skipped;
        }
        hook.phases.iter_mut().for_each(|phase| phase.output.clear());
        hook.artifacts.clear();
    }
    new
}

/// Whether something is small enough to be kept; the error says how large it is.
fn fits(value: &impl Serialize, what: &str) -> Result<(), String> {
    let size = serde_json::to_vec(value).map_or(0, |text| text.len());
    if size <= OUTPUT_LIMIT {
        return Ok(());
    }
    Err(format!(
        "{what} is {size} bytes long: more than {OUTPUT_LIMIT} can't be kept"
    ))
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

/// The status of an action that can't go on for now, and why; or, without a reason, of one that goes on again.
pub fn stuck(status: ActionStatus, why: Option<&str>, now: Timestamp) -> ActionStatus {
    let mut new = status;
    let was_stuck = new.troubles().any(|condition| condition.type_ == "Stuck");
    match why {
        Some(why) => set_condition(
            &mut new,
            "Stuck",
            true,
            "Error",
            format!("it is tried again: {why}"),
            now,
        ),
        None if was_stuck => set_condition(&mut new, "Stuck", false, "GoesOn", "it goes on".to_owned(), now),
        None => {}
    }
    new
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_an_action_up_is_told_until_it_goes_on() {
        let now = Timestamp::UNIX_EPOCH;
        let fresh = ActionStatus::default();
        assert_eq!(stuck(fresh.clone(), None, now), fresh);
        let held = stuck(fresh, Some("pods is forbidden"), now);
        let told: Vec<&str> = held.troubles().map(|one| one.message.as_str()).collect();
        assert_eq!(told, ["it is tried again: pods is forbidden"]);
        assert_eq!(stuck(held.clone(), Some("pods is forbidden"), now), held);
        assert_eq!(stuck(held, None, now).troubles().count(), 0);
    }

    #[test]
    fn another_try_knows_how_many_replicas_there_were_before_the_first() {
        let phases = |replicas: Option<i32>| {
            let phase = |name: &str, func: &str, original_replicas: Option<i32>| PhaseStatus {
                name: name.to_owned(),
                func: func.to_owned(),
                original_replicas,
                ..PhaseStatus::default()
            };
            vec![
                phase("stop", "ScaleWorkload", replicas),
                phase("dump", "KubeTask", None),
            ]
        };
        let hook: Invocation = serde_json::from_value(serde_json::json!({
            "hook": "preHook", "namespace": "ns", "blueprint": "b", "actionName": "a", "digest": "d", "attempt": 1,
        }))
        .unwrap();
        let status = ActionStatus {
            hooks: vec![Invocation {
                phases: phases(Some(3)),
                ..hook
            }],
            ..ActionStatus::default()
        };
        let limits = Limits {
            hook_retries: 2,
            hook_timeout: GoDuration::from_secs(60),
            velero_timeout: GoDuration::from_secs(60),
            partially_failed: crate::api::action::PartiallyFailed::Failure,
        };
        let fresh = phases(None);
        let again = begun(&status, 0, Ok(fresh.clone()), &limits, Timestamp::UNIX_EPOCH);
        let found: Vec<_> = again.hooks[0]
            .phases
            .iter()
            .map(|phase| (phase.original_replicas, phase.state))
            .collect();
        assert_eq!(found, [(Some(3), StepState::Pending), (None, StepState::Pending)]);
        // Of another phase nothing is taken over.
        let mut renamed = fresh;
        renamed[0].name = "start".to_owned();
        let again = begun(&status, 0, Ok(renamed), &limits, Timestamp::UNIX_EPOCH);
        assert_eq!(again.hooks[0].phases[0].original_replicas, None);
    }

    #[test]
    fn a_hook_whose_phases_have_succeeded_is_not_run_again_for_its_artifacts() {
        let hook: Invocation = serde_json::from_value(serde_json::json!({
            "hook": "preHook", "namespace": "ns", "blueprint": "b", "actionName": "a", "digest": "d", "state": "Running",
            "attempt": 1, "phases": [{"name": "p", "func": "KubeTask", "state": "Succeeded"}],
        }))
        .unwrap();
        let status = ActionStatus {
            hooks: vec![hook],
            ..ActionStatus::default()
        };
        let ended = finished(&status, 0, Err("outputArtifacts: no".to_owned()), Timestamp::UNIX_EPOCH);
        assert_eq!((ended.hooks[0].state, ended.hooks[0].attempt), (StepState::Failed, 1));
    }

    #[test]
    fn what_is_too_large_to_be_kept_is_a_failure_in_words() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let hook: Invocation = serde_json::from_value(serde_json::json!({
            "hook": "preHook", "namespace": "ns", "blueprint": "b", "actionName": "a", "digest": "d", "state": "Running",
            "attempt": 1, "phases": [{"name": "p", "func": "KubeTask", "state": "Running"}],
        }))
        .unwrap();
        let status = ActionStatus {
            phase: ActionPhase::PreHook,
            hooks: vec![hook],
            ..ActionStatus::default()
        };
        let output = |length: usize| Fields::from_iter([("key".to_owned(), "x".repeat(length).into())]);
        let small = ran(&status, 0, 0, Outcome::Succeeded(output(1000)), second(1));
        assert_eq!(small.hooks[0].phases[0].state, StepState::Succeeded);
        let large = ran(&status, 0, 0, Outcome::Succeeded(output(OUTPUT_LIMIT)), second(1));
        let phase = &large.hooks[0].phases[0];
        assert_eq!((phase.state, phase.output.is_empty()), (StepState::Failed, true));
        assert!(phase.message.contains("can't be kept"), "{}", phase.message);

        let ended = too_large(&status, second(2));
        assert_eq!(
            (ended.phase, ended.hooks[0].state),
            (ActionPhase::Failed, StepState::Skipped)
        );
        assert_eq!(
            too_large(&ActionStatus::default(), second(2)).phase,
            ActionPhase::Refused
        );
    }
}
