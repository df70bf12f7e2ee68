//! The state machine of an action: what to do next. Pure and total: no clock, no client, an answer for every input.
//!
//! Each step is written into the action's status before it is done and after it: whoever takes an action over reads there
//! where it stands.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{
    action::{Action, Limits},
    end::{Outcome, cancel, end_try, fail, failure_of, judge_export, phase_deadline, phase_failure, ran, skip},
};
use crate::api::action::{
    ActionPhase, ActionStatus, HookName, Invocation, PartiallyFailed, PhaseStatus, StepState, VeleroObject,
};

/// How often Velero's object is looked at.
const POLL: SignedDuration = SignedDuration::from_secs(1);

/// What the next step depends on, beside the action itself.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// The name of this process: phases that it has claimed are its own.
    pub process: &'a str,
    /// Processes that do not lead any more and finish commands of theirs; each is believed until then.
    pub finishing: &'a BTreeMap<String, Timestamp>,
    /// Velero's namespace.
    pub velero_namespace: &'a str,
    /// Velero's object, if it has been looked at.
    pub velero: Option<&'a Seen>,
    /// The limits of this action.
    pub limits: Limits,
}

/// How Velero's object stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is gone, or another one has its name.
    Gone,
    /// It is not finished.
    Pending {
        /// `status.phase`.
        phase: String,
        /// What is waited for.
        why: String,
    },
    /// It is finished, and so are the post-restore hooks.
    Ended {
        /// `status.phase`.
        phase: String,
        /// Why the post-restore hooks count as failed, if so.
        hooks_failed: Option<String>,
        /// What became of the export.
        export: Export,
    },
}

/// What Velero moved after it had taken a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Export {
    /// Nothing: no plugin had anything to do.
    Nothing,
    /// All operations succeeded.
    Succeeded,
    /// Some did not.
    Failed(String),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Find out whether the action can be run.
    Check,
    /// Write this status.
    Record(Box<ActionStatus>),
    /// Create the Velero object of the name that the status says.
    CreateVelero,
    /// Begin a try of this hook: resolve its Blueprint and its subject.
    Begin(usize),
    /// Run this phase of this hook; it is claimed by this process.
    Run(usize, usize),
    /// All phases of this hook have succeeded: render its output artifacts.
    Finish(usize),
    /// Nothing, until something changes or this time comes.
    Wait(Option<Timestamp>),
    /// Remove the action's pods.
    CleanUp,
    /// Nothing any more.
    Done,
}

/// What to do next for an action. To be asked only while this process runs none of its phases.
pub fn next(action: &Action, world: &World, now: Timestamp) -> Step {
    let status = &action.status;
    if status.phase.is_final() {
        return if status.cleaned_up { Step::Done } else { Step::CleanUp };
    }
    if let Some(why) = &action.cancel {
        return record(cancel(status, action.kind, why, now));
    }
    if status.phase == ActionPhase::New {
        return Step::Check;
    }
    let mut new = status.clone();
    let untouched = status.velero.as_ref().is_none_or(|velero| velero.uid.is_none());
    if untouched && status.failure.is_none() && status.observed_generation != Some(action.generation) {
        // The API server refuses changes of what it knows; of Velero's own fields it knows nothing.
        fail(
            &mut new,
            action,
            "its spec was changed after it had begun; make a new action",
        );
        return record(new);
    }
    if let Some(hook) = status.hooks.iter().position(|hook| hook.state == StepState::Running) {
        return drive(status, hook, world, now);
    }
    match status.phase {
        ActionPhase::PreHook => pre_hooks(action, new, world, now),
        ActionPhase::Velero => velero(action, new, world, now),
        _ => post_hooks(action, new, now),
    }
}

/// The next step of a hook whose try has begun.
fn drive(status: &ActionStatus, hook: usize, world: &World, now: Timestamp) -> Step {
    let Some(invocation) = status.hooks.get(hook) else {
        return Step::Wait(None);
    };
    let mut new = status.clone();
    let open = invocation
        .phases
        .iter()
        .enumerate()
        .find(|(_, phase)| !phase.state.is_final());
    let Some((index, phase)) = open else {
        let Some(why) = phase_failure(invocation) else {
            return Step::Finish(hook);
        };
        end_try(&mut new, hook, Err(why), world.limits.hook_retries, now);
        return record(new);
    };
    if phase.state == StepState::Running && phase.claimed_by == world.process {
        return Step::Run(hook, index);
    }
    if phase.state == StepState::Running && phase.is_exec() {
        if let Some(until) = world.finishing.get(&phase.claimed_by) {
            return Step::Wait(Some(*until));
        }
        let why = "the process that had started the command is gone: it may have run in part or to its end";
        return record(ran(status, hook, index, Outcome::Unknown(why.to_owned()), now));
    }
    let taken_over = phase.state == StepState::Running;
    if !taken_over
        && !phase.deferred
        && phase_deadline(invocation, index, world.limits.hook_timeout).is_some_and(|end| end <= now)
    {
        let why = format!(
            "not started: the hook has taken longer than {}",
            world.limits.hook_timeout
        );
        return record(ran(status, hook, index, Outcome::Failed(why), now));
    }
    if let Some(phase) = new.hooks.get_mut(hook).and_then(|hook| hook.phases.get_mut(index)) {
        phase.state = StepState::Running;
        world.process.clone_into(&mut phase.claimed_by);
        phase.started_at.get_or_insert(MicroTime(now));
        if taken_over {
            PhaseStatus::TAKEN_OVER.clone_into(&mut phase.message);
        }
    }
    record(new)
}

fn pre_hooks(action: &Action, mut new: ActionStatus, world: &World, now: Timestamp) -> Step {
    let pre = |new: &ActionStatus, state: StepState| {
        let found = new
            .hooks
            .iter()
            .enumerate()
            .find(|(_, hook)| hook.hook.is_pre() && hook.state == state);
        found.map(|(index, hook)| (index, hook.clone()))
    };
    if let Some((_, failed)) = pre(&new, StepState::Failed) {
        fail(&mut new, action, &failure_of(&failed));
        return record(new);
    }
    if let Some((index, hook)) = pre(&new, StepState::Pending) {
        return begin(index, &hook, now);
    }
    new.phase = ActionPhase::Velero;
    new.velero.get_or_insert(VeleroObject {
        namespace: world.velero_namespace.to_owned(),
        name: action.velero_name(),
        ..VeleroObject::default()
    });
    new.message = format!("Velero's {} is being created", action.kind.velero_kind());
    record(new)
}

fn velero(action: &Action, mut new: ActionStatus, world: &World, now: Timestamp) -> Step {
    let kind = action.kind.velero_kind();
    let Some(object) = new.velero.as_mut() else {
        fail(&mut new, action, &format!("the record of Velero's {kind} is gone"));
        return record(new);
    };
    if object.uid.is_none() {
        return Step::CreateVelero;
    }
    let name = object.name.clone();
    match world.velero {
        None => Step::Wait(Some(now)),
        Some(Seen::Gone) => {
            fail(
                &mut new,
                action,
                &format!("Velero's {kind} {name} is gone, and nobody here has seen how it ended"),
            );
            record(new)
        }
        Some(Seen::Pending { phase, why }) => {
            let limit = world.limits.velero_timeout;
            let started = object.started_at.as_ref().map(|time| time.0);
            if started.is_some_and(|start| now.duration_since(start) >= limit.to_signed()) {
                let why = format!("Velero's {kind} {name} did not end within {limit} ({why}); it may still go on");
                fail(&mut new, action, &why);
                return record(new);
            }
            let changed = object.phase != *phase;
            phase.clone_into(&mut object.phase);
            let message = format!("Velero's {kind} {name}: {why}");
            if changed || new.message != message {
                new.message = message;
                return record(new);
            }
            Step::Wait(now.checked_add(POLL).ok())
        }
        Some(Seen::Ended {
            phase,
            hooks_failed,
            export,
        }) => {
            phase.clone_into(&mut object.phase);
            let good = phase == "Completed"
                || (phase == "PartiallyFailed" && world.limits.partially_failed == PartiallyFailed::Success);
            new.phase = ActionPhase::PostHook;
            new.message = format!("Velero's {kind} {name} ended {phase}");
            if let Some(why) = hooks_failed {
                new.failure = Some(format!("hooks of the restored pods did not succeed: {why}"));
            } else if !good {
                new.failure = Some(new.message.clone());
            }
            if action.request.export_hooks.is_some() {
                judge_export(&mut new, export, now);
            }
            skip(&mut new, HookName::is_pre, "its time is over");
            record(new)
        }
    }
}

fn post_hooks(action: &Action, mut new: ActionStatus, now: Timestamp) -> Step {
    let due = |hook: &&Invocation| hook.state == StepState::Pending && is_due(&new, hook);
    let soonest = new
        .hooks
        .iter()
        .filter(due)
        .map(|hook| hook.retry_at.as_ref().map_or(now, |at| at.0))
        .min();
    if let Some(soonest) = soonest {
        let ready = |hook: &Invocation| hook.retry_at.as_ref().is_none_or(|at| at.0 <= now);
        let index = new.hooks.iter().position(|hook| due(&hook) && ready(hook));
        return index.map_or(Step::Wait(Some(soonest)), Step::Begin);
    }
    let failed_hook = new
        .hooks
        .iter()
        .find(|hook| hook.state == StepState::Failed)
        .map(failure_of);
    let why = new
        .failure
        .clone()
        .or_else(|| new.export_failure.clone())
        .or(failed_hook);
    new.phase = if why.is_some() {
        ActionPhase::Failed
    } else {
        ActionPhase::Succeeded
    };
    new.message =
        why.unwrap_or_else(|| format!("Velero's {} and all hooks have ended well", action.kind.velero_kind()));
    new.finished_at = Some(MicroTime(now));
    skip(&mut new, |_| true, "not needed");
    record(new)
}

/// Whether what came before asks for this hook. `onFailure` follows a failed step of its own namespace or of all.
fn is_due(status: &ActionStatus, hook: &Invocation) -> bool {
    let failure = if hook.hook.is_export() {
        &status.export_failure
    } else {
        &status.failure
    };
    let before = match hook.hook {
        HookName::PreHook | HookName::ExportPreHook => return false,
        HookName::OnSuccess | HookName::ExportOnSuccess => return failure.is_none(),
        HookName::OnFailure => HookName::OnSuccess,
        HookName::ExportOnFailure => HookName::ExportOnSuccess,
    };
    let failed = |other: &Invocation| {
        other.hook == before && other.namespace == hook.namespace && other.state == StepState::Failed
    };
    failure.is_some() || status.hooks.iter().any(failed)
}

fn begin(index: usize, hook: &Invocation, now: Timestamp) -> Step {
    match &hook.retry_at {
        Some(at) if at.0 > now => Step::Wait(Some(at.0)),
        _ => Step::Begin(index),
    }
}

fn record(status: ActionStatus) -> Step {
    Step::Record(Box::new(status))
}

#[cfg(test)]
mod tests;
