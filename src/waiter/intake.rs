//! From a planned pod to its `HookRun`: what is missing on the way. Pure; each step can be repeated after a crash.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pod_view::PodView;
use crate::{
    api::hook_run::{HookRun, HookRunSpec},
    hooks::restored::label_value,
    names::{EXCLUDE_FROM_BACKUP_LABEL, VELERO_RESTORE_LABEL},
    plan::{Plan, PlanError},
};

/// A plan further than this from its pod's creation was not made for this pod: it came with a backup.
pub const PLAN_AGE_LIMIT: SignedDuration = SignedDuration::from_mins(2);

/// What to do about a planned pod next.
#[derive(Clone, Debug, PartialEq)]
pub enum Intake {
    /// Create this `HookRun`.
    Create(Box<HookRun>),
    /// Write the first status of the `HookRun`: it is ours.
    Adopt {
        /// An earlier `HookRun` of this pod has been deleted: what it started nobody knows.
        lost: bool,
    },
    /// The `HookRun` is not what this pod's plan says: somebody else has written it. End it; nothing of it runs.
    Reject,
    /// Put the moved annotations back on the pod and set the run mark.
    Mark(BTreeMap<String, String>),
    /// All is there: the state machine goes on.
    Ready,
    /// The plan is none for this pod, or none at all: find out whether a restore that is known by now made the pod, and plan
    /// or discard. The text says what is wrong with it.
    Resolve(String),
    /// A newer Reveille must do it: say so and leave everything as it is.
    LeaveToNewer(String),
}

/// Decides about a pod with a plan. `run`: the `HookRun` of its name, if there is one.
pub fn intake(pod: &PodView, plan_text: &str, run: Option<&HookRun>) -> Intake {
    if let Some(run) = run {
        // What was frozen stands in a run that the pod's mark names; the text on the pod may have been tampered with since.
        let marked = pod.run_mark.as_ref() == Some(&run_mark(&pod.identity.uid, run));
        let marked_before = pod.run_mark.as_deref().and_then(|mark| mark.split_once('/'));
        return match &run.status {
            Some(_) if marked => Intake::Ready,
            _ if !marked && !is_planned(pod, plan_text, run) => reject(plan_text, run),
            None => Intake::Adopt {
                lost: marked_before.is_some_and(|(uid, _)| uid == pod.identity.uid),
            },
            Some(_) => Intake::Mark(run.spec.plan.moved.clone()),
        };
    }
    let plan = match Plan::parse(plan_text) {
        Ok(plan) => plan,
        Err(error @ PlanError::Newer(_)) => return Intake::LeaveToNewer(error.to_string()),
        Err(error @ PlanError::Unreadable(_)) => return Intake::Resolve(error.to_string()),
    };
    let fits = match &plan.late_for {
        Some(uid) => *uid == pod.identity.uid,
        None => pod.identity.created_at.duration_since(plan.planned_at).abs() <= PLAN_AGE_LIMIT,
    };
    if !fits {
        return Intake::Resolve(format!(
            "the plan was made at {} for another pod: it came with a backup",
            plan.planned_at
        ));
    }
    if !plan.resolved {
        return Intake::Resolve(plan.problems.first().map(ToString::to_string).unwrap_or_default());
    }
    Intake::Create(Box::new(new_run(pod, plan)))
}

/// Whether a run is what the waiter makes of the pod's plan. Whoever may create a `HookRun` can be there before it.
fn is_planned(pod: &PodView, plan_text: &str, run: &HookRun) -> bool {
    Plan::parse(plan_text).is_ok_and(|plan| new_run(pod, plan).spec == run.spec)
}

fn reject(plan_text: &str, run: &HookRun) -> Intake {
    if run.status.as_ref().is_none_or(|status| !status.phase.is_final()) {
        return Intake::Reject;
    }
    // It has been ended. What was moved off the pod is what the pod's own plan says.
    Intake::Mark(Plan::parse(plan_text).map(|plan| plan.moved).unwrap_or_default())
}

/// The run mark of a pod: it is planned already, and by which `HookRun`.
pub fn run_mark(pod_uid: &str, run: &HookRun) -> String {
    format!("{pod_uid}/{}", run.metadata.uid.as_deref().unwrap_or_default())
}

fn new_run(pod: &PodView, plan: Plan) -> HookRun {
    let mut labels = BTreeMap::from([(EXCLUDE_FROM_BACKUP_LABEL.to_owned(), "true".to_owned())]);
    if let Some(restore) = &plan.restore {
        labels.insert(VELERO_RESTORE_LABEL.to_owned(), label_value(&restore.name).into_owned());
    }
    HookRun {
        metadata: ObjectMeta {
            name: Some(pod.identity.run_name()),
            namespace: Some(pod.namespace.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: HookRunSpec {
            pod: pod.identity.clone(),
            plan,
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::hook_run::{HookRunStatus, PodIdentity},
        hooks::Problem,
        plan::RestoreRef,
        waiter::begin::foreign_status,
    };
    use jiff::Timestamp;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn plan(second: i64) -> Plan {
        Plan {
            version: 1,
            restore: Some(RestoreRef {
                namespace: "velero".to_owned(),
                name: "r".to_owned(),
                uid: "ru".to_owned(),
            }),
            planned_at: at(second),
            resolved: true,
            late_for: None,
            status_restored: false,
            post: vec![],
            init: vec![],
            moved: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            problems: vec![Problem::warning("s", "m")],
            digest: String::new(),
        }
    }

    fn pod() -> PodView {
        PodView {
            namespace: "app".to_owned(),
            identity: PodIdentity {
                name: "db-0".to_owned(),
                uid: "pu".to_owned(),
                created_at: at(1000),
            },
            version: None,
            plan: None,
            run_mark: None,
            queued: true,
            phase: String::new(),
            reason: None,
            unscheduled: None,
            ending: false,
            declared: vec![],
            terminating: false,
            containers: BTreeMap::new(),
        }
    }

    fn ask(pod: &PodView, plan: &Plan, run: Option<&HookRun>) -> Intake {
        intake(pod, &plan.to_text().unwrap(), run)
    }

    #[test]
    fn creates_adopts_marks_and_is_ready() {
        let mut pod = pod();
        let Intake::Create(run) = ask(&pod, &plan(999), None) else {
            panic!("a HookRun")
        };
        let mut run = *run;
        assert_eq!(run.metadata.labels.as_ref().unwrap()[EXCLUDE_FROM_BACKUP_LABEL], "true");
        run.metadata.uid = Some("hu".to_owned());
        assert_eq!(ask(&pod, &plan(999), Some(&run)), Intake::Adopt { lost: false });
        let marked = PodView {
            run_mark: Some("pu/deleted".to_owned()),
            ..pod.clone()
        };
        assert_eq!(ask(&marked, &plan(999), Some(&run)), Intake::Adopt { lost: true });
        run.status = Some(HookRunStatus::default());
        assert_eq!(ask(&pod, &plan(999), Some(&run)), Intake::Mark(plan(999).moved));
        // A mark of another pod came with a backup.
        pod.run_mark = Some("other/hu".to_owned());
        assert!(matches!(ask(&pod, &plan(999), Some(&run)), Intake::Mark(_)));
        pod.run_mark = Some("pu/hu".to_owned());
        assert_eq!(ask(&pod, &plan(999), Some(&run)), Intake::Ready);
    }

    #[test]
    fn a_run_that_somebody_else_wrote_is_ended_and_puts_nothing_on_the_pod() {
        let pod = pod();
        let mut forged = new_run(&pod, plan(999));
        forged.spec.plan.moved = BTreeMap::from([("forged".to_owned(), "x".to_owned())]);
        forged.metadata.uid = Some("hu".to_owned());
        assert_eq!(ask(&pod, &plan(999), Some(&forged)), Intake::Reject);
        // Also if a status was written at once.
        forged.status = Some(HookRunStatus::default());
        assert_eq!(ask(&pod, &plan(999), Some(&forged)), Intake::Reject);
        forged.status = Some(foreign_status(&forged.spec, at(1001)));
        assert_eq!(ask(&pod, &plan(999), Some(&forged)), Intake::Mark(plan(999).moved));
        for (name, other) in [
            (
                "pod",
                PodIdentity {
                    uid: "other".to_owned(),
                    ..pod.identity.clone()
                },
            ),
            (
                "creation",
                PodIdentity {
                    created_at: at(1),
                    ..pod.identity.clone()
                },
            ),
        ] {
            let mut forged = new_run(&pod, plan(999));
            forged.spec.pod = other;
            assert_eq!(ask(&pod, &plan(999), Some(&forged)), Intake::Reject, "{name}");
        }
    }

    #[test]
    fn plans_that_are_not_for_this_pod_are_discarded_in_words() {
        assert!(matches!(ask(&pod(), &plan(1000 - 121), None), Intake::Resolve(why) if why.contains("backup")));
        assert!(matches!(ask(&pod(), &plan(1000 + 121), None), Intake::Resolve(_)));
        assert!(matches!(intake(&pod(), "rubbish", None), Intake::Resolve(_)));
        let late = |uid: &str| Plan {
            late_for: Some(uid.to_owned()),
            ..plan(5)
        };
        assert!(matches!(ask(&pod(), &late("another"), None), Intake::Resolve(_)));
        assert!(matches!(ask(&pod(), &late("pu"), None), Intake::Create(_)));
        let unresolved = Plan {
            resolved: false,
            ..plan(1000)
        };
        assert!(matches!(ask(&pod(), &unresolved, None), Intake::Resolve(_)));
    }

    #[test]
    fn a_newer_plan_waits() {
        assert!(matches!(intake(&pod(), r#"{"version":7}"#, None), Intake::LeaveToNewer(why) if why.contains('7')));
    }
}
