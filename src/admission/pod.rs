//! The decision on a pod: its init containers, its plan, and the annotations that leave it so that Velero does not run them.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use json_patch::PatchOperation;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Mode,
    containers::{self, Placement},
    patch,
};
use crate::{
    hooks::{
        HookSource, PostHook, Problem,
        annotations::{self, Annotations},
        restore_spec::Rules,
        restored::{RestoreInfo, Restored},
        select::{self, Selected},
    },
    names::{PLAN_ANNOTATION, QUEUE_LABEL, QUEUE_LABEL_VALUE, RUN_ANNOTATION, STATUS_ANNOTATION},
    plan::{self, Plan, RestoreRef},
};

/// Kubernetes' limit on all annotations of an object together, keys and values, in bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;
/// How old a plan without a Restore may be to count as made in this very creation.
const SAME_CREATION: SignedDuration = SignedDuration::from_mins(1);

/// What a decision on a pod depends on, besides the pod.
#[derive(Clone, Debug)]
pub struct PodContext<'a> {
    /// The pod's namespace; in an AdmissionReview the pod itself may lack it.
    pub namespace: &'a str,
    /// Whether and by which Restore the pod is restored.
    pub restored: Restored<'a>,
    /// The configured mode; a Restore's annotation overrides it.
    pub mode: Mode,
    /// An admission policy keeps everybody else from changing a plan once its pod exists.
    pub marks_protected: bool,
    /// The time of admission.
    pub now: Timestamp,
}

/// What is done to a pod, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodDecision {
    /// True when the pod is being restored.
    pub restored: bool,
    /// Why, in one sentence.
    pub reason: String,
    /// The patch; empty for "leave it as it is".
    pub operations: Vec<PatchOperation>,
    /// The plan that the patch writes on the pod.
    pub plan: Option<Plan>,
    /// The containers that the patch adds.
    pub injected: Vec<String>,
    /// What Reveille will run.
    pub hooks: Vec<PostHook>,
    /// What is wrong with what the user wrote.
    pub problems: Vec<Problem>,
    /// One sentence for each rule that was looked at. For people.
    pub explanations: Vec<String>,
}

impl PodDecision {
    fn untouched(restored: bool, reason: impl Into<String>) -> Self {
        Self {
            restored,
            reason: reason.into(),
            ..Self::default()
        }
    }
}

/// Decides what is done to a pod at its creation. `decide(apply(decide(pod)))` changes nothing.
pub fn decide_pod(pod: &Value, context: &PodContext) -> PodDecision {
    for part in ["metadata", "spec"] {
        if !pod.get(part).is_some_and(Value::is_object) {
            return PodDecision::untouched(false, format!("it is no pod: it has no {part}"));
        }
    }
    let no_rules = Rules::default();
    let (restore, rules, reason) = match &context.restored {
        Restored::No(reason) => return PodDecision::untouched(false, reason),
        Restored::Unknown(reason) => return unresolved(pod, context, reason),
        Restored::ByMarker(label) => (None, &no_rules, format!("it carries the marker label {label}")),
        Restored::By(restore) => {
            let reason = format!(
                "Restore {}/{} is {}",
                restore.namespace,
                restore.name,
                phase_word(restore)
            );
            (Some(*restore), &restore.rules, reason)
        }
    };
    if mode_of(restore, context.mode) == Mode::Off {
        return PodDecision::untouched(true, format!("{reason}, but the mode is off"));
    }
    let on_pod = select::annotations_of(pod);
    let earlier = Earlier::read(&on_pod);
    if restore.is_some_and(|restore| earlier.restore_uid.as_deref() == Some(&restore.uid)) {
        return PodDecision::untouched(
            true,
            format!("{reason}; the pod already carries the plan of this restore"),
        );
    }

    let effective = earlier.annotations_before(&on_pod);
    let velero_owned = restore.is_some_and(|restore| !restore.marked);
    let selected = select::select(pod, context.namespace, &effective, rules, velero_owned);
    let placement = containers::place(pod, &selected.init, &selected.silenced_init, &earlier.init_names());
    let status_is_restored = restore.is_some_and(|restore| restore.restores_status_of(&effective));
    let plan_would_be_undone = status_is_restored && !context.marks_protected;
    if plan_would_be_undone && !selected.post.is_empty() {
        return status_restored(&reason, pod, (&on_pod, &effective), selected, placement);
    }
    let takes_over = restore.is_some_and(|restore| restore.marked)
        && selected.post.iter().any(|hook| hook.source == HookSource::Annotation);
    let mut problems = selected.problems;
    problems.extend(placement.problems);
    let plan = Plan {
        version: plan::VERSION,
        restore: restore.map(reference),
        planned_at: context.now,
        resolved: true,
        late_for: None,
        // The policy that protects plans refuses that status; should it be gone by then, the states in it are not believed.
        status_restored: status_is_restored,
        post: selected.post,
        init: placement.planned,
        moved: if takes_over {
            annotations::velero_post_keys(&effective)
        } else {
            Annotations::new()
        },
        problems: problems.clone(),
        digest: String::new(),
    }
    .sealed();
    if earlier.is_of_this_creation(&plan) {
        return PodDecision::untouched(true, format!("{reason}; the pod already carries this plan"));
    }
    problems.extend(selected.restore_problems);

    let mut decision = PodDecision {
        restored: true,
        reason,
        injected: placement.injected,
        hooks: plan.post.iter().filter(|hook| hook.error.is_none()).cloned().collect(),
        problems,
        explanations: selected.explanations,
        ..PodDecision::default()
    };
    let plan = (!plan.is_empty()).then_some(plan);
    match write_plan(pod, &on_pod, &effective, plan.as_ref()) {
        Ok(operations) => {
            decision.operations = placement.operations;
            decision.operations.extend(operations);
            decision.plan = plan;
        }
        Err(message) => {
            // Nothing is half done: the waiter finds this pod as a missed admission.
            decision.problems.push(Problem::error(PLAN_ANNOTATION, message));
            decision.hooks.clear();
            decision.injected.clear();
        }
    }
    decision
}

/// Velero writes the status of such a pod right after its creation, with the metadata from before admission: without a policy
/// that refuses this a plan written now would be undone. Only the init containers, which stand in the spec, stay; the waiter plans what is left afterwards.
fn status_restored(
    reason: &str,
    pod: &Value,
    (on_pod, effective): (&Annotations, &Annotations),
    selected: Selected,
    placement: Placement,
) -> PodDecision {
    let mut operations = placement.operations;
    // Marks of an earlier restore go.
    operations.extend(write_plan(pod, on_pod, effective, None).unwrap_or_default());
    let mut problems = selected.problems;
    problems.extend(placement.problems);
    problems.push(Problem::warning(
        STATUS_ANNOTATION,
        "Velero restores this pod's status and with it its metadata from before admission: post hooks in its annotations are left to Velero",
    ));
    PodDecision {
        restored: true,
        reason: format!("{reason}, and restores the pod's status"),
        operations,
        injected: placement.injected,
        problems,
        explanations: selected.explanations,
        ..PodDecision::default()
    }
}

/// The mode that holds for a Restore. Ownership is decided once: a marked Restore stays Reveille's, whatever the mode says now.
/// An unreadable annotation is reported when the Restore is admitted; here it counts as absent.
pub fn mode_of(restore: Option<&RestoreInfo>, configured: Mode) -> Mode {
    if restore.is_some_and(|restore| restore.marked) {
        return Mode::Takeover;
    }
    restore
        .and_then(|restore| restore.mode.as_deref()?.parse().ok())
        .unwrap_or(configured)
}

/// How a plan names a Restore.
pub fn reference(restore: &RestoreInfo) -> RestoreRef {
    RestoreRef {
        namespace: restore.namespace.clone(),
        name: restore.name.clone(),
        uid: restore.uid.clone(),
    }
}

fn phase_word(restore: &RestoreInfo) -> &str {
    if restore.phase.is_empty() {
        "new"
    } else {
        &restore.phase
    }
}

/// It can't be told which Restore this is: nothing is moved or injected, and the waiter decides.
fn unresolved(pod: &Value, context: &PodContext, reason: &str) -> PodDecision {
    let on_pod = select::annotations_of(pod);
    let plan = Plan {
        version: plan::VERSION,
        restore: None,
        planned_at: context.now,
        resolved: false,
        late_for: None,
        status_restored: false,
        post: Vec::new(),
        init: Vec::new(),
        moved: Annotations::new(),
        problems: vec![Problem::warning(crate::names::VELERO_RESTORE_LABEL, reason)],
        digest: String::new(),
    }
    .sealed();
    let mut decision = PodDecision::untouched(false, reason);
    // A plan that another replica, which knew the Restore, has just written stays.
    let recent = |plan: &Plan| context.now.duration_since(plan.planned_at) < SAME_CREATION;
    if Earlier::read(&on_pod).plan.as_ref().is_some_and(recent) {
        return decision;
    }
    decision.problems.clone_from(&plan.problems);
    // What an earlier plan had moved off the pod goes back on it.
    let effective = Earlier::read(&on_pod).annotations_before(&on_pod);
    if let Ok(operations) = write_plan(pod, &on_pod, &effective, Some(&plan)) {
        decision.operations = operations;
        decision.plan = Some(plan);
    }
    decision
}

/// What an earlier admission left on the pod.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    pub(super) plan: Option<Plan>,
    /// The Restore of the plan, also when a newer Reveille wrote it.
    pub(super) restore_uid: Option<String>,
}

impl Earlier {
    pub(super) fn read(annotations: &Annotations) -> Self {
        #[derive(Deserialize)]
        struct Peek {
            restore: Option<PeekRestore>,
        }
        #[derive(Deserialize)]
        struct PeekRestore {
            uid: String,
        }
        let Some(text) = annotations.get(PLAN_ANNOTATION) else {
            return Self::default();
        };
        let peek: Option<Peek> = serde_json::from_str(text).ok();
        Self {
            plan: Plan::parse(text).ok(),
            restore_uid: peek.and_then(|peek| Some(peek.restore?.uid)),
        }
    }

    /// The pod's annotations as they were before the earlier admission moved some into its plan.
    pub(super) fn annotations_before(&self, on_pod: &Annotations) -> Annotations {
        let mut annotations = self.plan.as_ref().map(|plan| plan.moved.clone()).unwrap_or_default();
        annotations.extend(on_pod.clone());
        annotations
    }

    pub(super) fn init_names(&self) -> BTreeSet<String> {
        let placed = self
            .plan
            .iter()
            .flat_map(|plan| &plan.init)
            .filter(|init| init.error.is_none());
        placed.map(|init| init.container.clone()).collect()
    }

    /// Without a Restore to compare: the same content, just planned.
    fn is_of_this_creation(&self, new: &Plan) -> bool {
        new.restore.is_none()
            && self
                .plan
                .as_ref()
                .is_some_and(|old| old.same_as(new) && new.planned_at.duration_since(old.planned_at) < SAME_CREATION)
    }
}

/// The operations that leave the pod with this plan (or none), with `effective` annotations less those that the plan moves.
fn write_plan(
    pod: &Value,
    on_pod: &Annotations,
    effective: &Annotations,
    plan: Option<&Plan>,
) -> Result<Vec<PatchOperation>, String> {
    let mut wanted = effective.clone();
    wanted.remove(PLAN_ANNOTATION);
    wanted.remove(RUN_ANNOTATION);
    if let Some(plan) = plan {
        wanted.retain(|key, _| !plan.moved.contains_key(key));
        wanted.insert(
            PLAN_ANNOTATION.to_owned(),
            plan.to_text().map_err(|error| error.to_string())?,
        );
    }
    let size: usize = wanted.iter().map(|(key, value)| key.len() + value.len()).sum();
    if plan.is_some() && size > ANNOTATIONS_LIMIT {
        return Err(format!(
            "with the plan the pod's annotations would have {size} bytes; Kubernetes allows {ANNOTATIONS_LIMIT}"
        ));
    }
    let keys: BTreeSet<&String> = on_pod.keys().chain(wanted.keys()).collect();
    let changes: Vec<(&str, Option<&str>)> = keys
        .into_iter()
        .map(|key| (key.as_str(), wanted.get(key).map(String::as_str)))
        .collect();
    let mut operations = patch::edit_metadata(pod, "annotations", &changes);
    operations.extend(patch::edit_metadata(
        pod,
        "labels",
        &[(QUEUE_LABEL, plan.map(|_| QUEUE_LABEL_VALUE))],
    ));
    Ok(operations)
}

#[cfg(test)]
mod tests;
