//! How a run begins: its first status. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};

use super::{
    conditions,
    end::{conclude, settle},
};
use crate::{
    api::hook_run::{HookRunSpec, HookRunStatus, HookState, InitState, InitStatus, PostStatus, RunPhase},
    plan::PlannedInit,
};

/// The status of a run that has just been created.
pub fn first_status(spec: &HookRunSpec, now: Timestamp) -> HookRunStatus {
    let post = spec.plan.post.iter().map(|hook| {
        let mut status = PostStatus {
            name: hook.name.clone(),
            container: hook.container.clone(),
            ..PostStatus::default()
        };
        if hook.left_to_velero {
            let text = "Velero saw this hook when it created the pod; it is Velero's to run";
            settle(&mut status, HookState::LeftToVelero, "LeftToVelero", text);
        } else if let Some(error) = &hook.error {
            settle(&mut status, HookState::Skipped, "Invalid", error.clone());
        }
        status
    });
    let init = spec.plan.init.iter().map(|hook| InitStatus {
        name: hook.name.clone(),
        container: hook.container.clone(),
        state: match hook {
            PlannedInit { error: Some(_), .. } => InitState::Skipped,
            PlannedInit { missed: true, .. } => InitState::InjectionMissed,
            _ => InitState::Waiting,
        },
        message: match hook {
            PlannedInit { error: Some(error), .. } => error.clone(),
            PlannedInit { missed: true, .. } => {
                "it is not in the pod: the webhook was not asked when the pod was created".to_owned()
            }
            _ => String::new(),
        },
        ..InitStatus::default()
    });
    let mut status = HookRunStatus {
        post: post.collect(),
        init: init.collect(),
        message: "nothing has been started yet".to_owned(),
        conditions: unusual(spec, now),
        ..HookRunStatus::default()
    };
    conditions::refresh(&mut status, now);
    status
}

/// What is out of the ordinary about a run, by Kubernetes' conventions.
fn unusual(spec: &HookRunSpec, now: Timestamp) -> Vec<Condition> {
    let plan = &spec.plan;
    let names = |names: Vec<&str>| names.join(", ");
    let missed: Vec<&str> = plan
        .init
        .iter()
        .filter(|init| init.missed)
        .map(|init| init.container.as_str())
        .collect();
    let left: Vec<&str> = plan
        .post
        .iter()
        .filter(|hook| hook.left_to_velero)
        .map(|hook| hook.name.as_str())
        .collect();
    let texts = [
        (
            "AdmissionMissed",
            plan.late_for.is_some() && !plan.status_restored,
            "the webhook was not asked when the pod was created; its hooks were planned afterwards".to_owned(),
        ),
        (
            "InjectionMissed",
            !missed.is_empty(),
            format!(
                "init containers that should be in the pod and are not: {}",
                names(missed)
            ),
        ),
        (
            "LeftToVelero",
            !left.is_empty(),
            format!("hooks that Velero saw and runs itself: {}", names(left)),
        ),
    ];
    let held = texts.into_iter().filter(|(_, holds, _)| *holds);
    held.map(|(type_, _, message)| Condition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: if plan.status_restored {
            "StatusRestored"
        } else {
            "WebhookNotAsked"
        }
        .to_owned(),
        message,
        last_transition_time: Time(now),
        observed_generation: None,
    })
    .collect()
}

/// The status of a run whose earlier record was deleted: what was not skipped may have run.
pub fn lost_status(spec: &HookRunSpec, now: Timestamp) -> HookRunStatus {
    let mut status = first_status(spec, now);
    for state in status.post.iter_mut().filter(|state| state.state == HookState::Waiting) {
        settle(
            state,
            HookState::Unknown,
            "RecordLost",
            "the HookRun that recorded it was deleted; it may have run",
        );
    }
    conclude(spec, &mut status, true, now);
    conditions::refresh(&mut status, now);
    status
}

/// The status of a run that will never be worked on.
pub fn stale_status(spec: &HookRunSpec, message: &str, now: Timestamp) -> HookRunStatus {
    let mut status = first_status(spec, now);
    for state in status.post.iter_mut().filter(|state| !state.state.is_final()) {
        settle(state, HookState::Skipped, "Stale", message);
    }
    status.phase = RunPhase::Stale;
    message.clone_into(&mut status.message);
    status.finished_at = Some(MicroTime(now));
    conditions::refresh(&mut status, now);
    status
}

/// The status of a run that somebody else has written: its commands are not run. Failed, for those of the pod's own plan are not
/// run either.
pub fn foreign_status(spec: &HookRunSpec, now: Timestamp) -> HookRunStatus {
    let message = "the HookRun is not what the pod's plan says: somebody else has written it, and nothing of it is run";
    let mut status = first_status(spec, now);
    for state in &mut status.post {
        settle(state, HookState::Skipped, "NotAsPlanned", message);
    }
    status.phase = RunPhase::Failed;
    message.clone_into(&mut status.message);
    status.finished_at = Some(MicroTime(now));
    conditions::refresh(&mut status, now);
    status
}
