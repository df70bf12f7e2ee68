//! Pods that the webhook did not see: what is left to do for them when the waiter finds them. Nothing runs twice, and nothing
//! is skipped silently.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Mode, containers,
    pod::{Earlier, mode_of, reference},
};
use crate::{
    hooks::{
        HookSource,
        annotations::Annotations,
        restored::RestoreInfo,
        select::{self, annotations_of},
    },
    names::{POST_PREFIX, RUN_ANNOTATION, VELERO_DOMAIN},
    plan::{self, Plan},
};

/// What a late plan depends on, besides the pod.
#[derive(Clone, Copy, Debug)]
pub struct LateContext<'a> {
    /// The Restore that created the pod.
    pub restore: &'a RestoreInfo,
    /// The configured mode.
    pub mode: Mode,
    /// Why nothing may be run in this namespace, if so.
    pub refused: Option<&'a str>,
    /// The time.
    pub now: Timestamp,
}

/// Whether a pod that carries the Restore's label was made by this Restore and has been neither planned nor run. Needs its
/// metadata only.
pub fn is_unseen(pod: &Value, restore: &RestoreInfo) -> bool {
    let annotations = annotations_of(pod);
    let metadata = pod.get("metadata");
    let text = |field: &str| {
        metadata
            .and_then(|metadata| metadata.get(field))
            .and_then(Value::as_str)
    };
    let created: Option<Timestamp> = text("creationTimestamp").and_then(|time| time.parse().ok());
    // An older pod carries the label because Velero's update policy has put it there: it was not created by this restore.
    // Both times are the API server's; Velero's clock may be ahead.
    let made_by_it = matches!((created, restore.created), (Some(pod), Some(restore)) if pod >= restore);
    let run_of_its_own = annotations
        .get(RUN_ANNOTATION)
        .and_then(|mark| mark.split_once('/'))
        .is_some_and(|(uid, _)| Some(uid) == text("uid"));
    let planned = Earlier::read(&annotations).restore_uid.as_deref() == Some(&restore.uid);
    made_by_it && !run_of_its_own && !planned
}

/// The plan for a pod that [`is_unseen`]; `None` when it has no hooks. With metadata alone it tells whether there may be any.
pub fn late_plan(pod: &Value, namespace: &str, context: &LateContext) -> Option<Plan> {
    let restore = context.restore;
    if mode_of(Some(restore), context.mode) == Mode::Off {
        return None;
    }
    let on_pod = annotations_of(pod);
    let earlier = Earlier::read(&on_pod);
    let effective = earlier.annotations_before(&on_pod);
    let selected = select::select(pod, namespace, &effective, &restore.rules, !restore.marked);
    let placement = containers::place(pod, &selected.init, &selected.silenced_init, &earlier.init_names());
    let velero_has_seen_it = restore.marked && has_velero_command(&on_pod);
    let (mut post, mut init) = (selected.post, placement.planned);
    for planned in init.iter_mut().filter(|planned| planned.error.is_none()) {
        planned.missed = placement.injected.contains(&planned.container);
    }
    match context.refused {
        None => {
            for hook in post.iter_mut().filter(|hook| hook.source == HookSource::Annotation) {
                hook.left_to_velero = velero_has_seen_it;
            }
        }
        // What stands on the pod is Velero's there, as if Reveille were not installed; of the Restore it is said what is skipped.
        Some(reason) => {
            post.retain(|hook| hook.source == HookSource::Spec);
            init.retain(|planned| planned.source == HookSource::Spec && planned.missed);
            for hook in &mut post {
                hook.error.get_or_insert_with(|| reason.to_owned());
            }
            for planned in &mut init {
                planned.missed = false;
                planned.error = Some(reason.to_owned());
            }
            if post.is_empty() && init.is_empty() {
                return None;
            }
        }
    }
    let mut problems = selected.problems;
    problems.extend(placement.problems);
    let plan = Plan {
        version: plan::VERSION,
        restore: Some(reference(restore)),
        planned_at: context.now,
        resolved: true,
        late_for: pod
            .get("metadata")
            .and_then(|metadata| metadata.get("uid"))
            .and_then(Value::as_str)
            .map(str::to_owned),
        status_restored: restore.restores_status_of(&effective),
        post,
        init,
        // What an older plan had moved off the pod is put back with this one's.
        moved: earlier.plan.map(|plan| plan.moved).unwrap_or_default(),
        problems,
        digest: String::new(),
    };
    (!plan.is_empty()).then(|| plan.sealed())
}

/// Whether the pod as Velero created it carries a post hook that Velero reads.
fn has_velero_command(annotations: &Annotations) -> bool {
    annotations
        .get(&format!("{POST_PREFIX}{VELERO_DOMAIN}/command"))
        .is_some_and(|command| !command.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn restore(marked: bool) -> RestoreInfo {
        let annotations = if marked {
            json!({"reveille.dev/owner": "reveille"})
        } else {
            json!({})
        };
        RestoreInfo::read(&json!({
            "metadata": {"namespace": "velero", "name": "r", "uid": "ru", "annotations": annotations,
                "creationTimestamp": "2026-01-01T00:00:10Z"},
            "spec": {"hooks": {"resources": [{"name": "s", "postHooks": [
                {"exec": {"command": ["x"]}}, {"init": {"initContainers": [{"name": "i", "image": "x"}]}},
            ]}]}},
            "status": {"phase": "InProgress", "startTimestamp": "2026-01-01T00:00:15Z"},
        }))
        .expect("a restore")
    }

    fn pod(annotations: &Value) -> Value {
        json!({
            "metadata": {"name": "p", "uid": "pu", "creationTimestamp": "2026-01-01T00:00:11Z", "annotations": annotations},
            "spec": {"containers": [{"name": "c"}]},
        })
    }

    fn plan(pod: &Value, restore: &RestoreInfo, refused: Option<&str>) -> Option<Plan> {
        let context = LateContext {
            restore,
            mode: Mode::Takeover,
            refused,
            now: Timestamp::UNIX_EPOCH,
        };
        late_plan(pod, "app", &context)
    }

    #[test]
    fn only_pods_that_this_restore_made_and_nobody_planned() {
        let restore = restore(true);
        assert!(is_unseen(&pod(&json!({})), &restore));
        assert!(is_unseen(
            &pod(&json!({"reveille.dev/run": "other/x", "reveille.dev/plan": "{\"restore\":{\"uid\":\"old\"}}"})),
            &restore
        ));
        assert!(!is_unseen(&pod(&json!({"reveille.dev/run": "pu/x"})), &restore));
        assert!(!is_unseen(
            &pod(&json!({"reveille.dev/plan": "{\"restore\":{\"uid\":\"ru\"}}"})),
            &restore
        ));
        let mut old = pod(&json!({}));
        old["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:09Z");
        assert!(!is_unseen(&old, &restore));
    }

    #[test]
    fn moved_hooks_run_late_and_missing_containers_are_recorded() {
        let plan = plan(&pod(&json!({})), &restore(true), None).expect("a plan");
        assert_eq!(
            (plan.post.len(), plan.post[0].left_to_velero, plan.late_for.as_deref()),
            (1, false, Some("pu"))
        );
        assert!(plan.init[0].missed && plan.moved.is_empty());
    }

    #[test]
    fn what_velero_has_seen_is_left_to_it() {
        let annotations = json!({"post.hook.restore.velero.io/command": "own"});
        let found = plan(&pod(&annotations), &restore(true), None).expect("a plan");
        assert_eq!(
            found.post.iter().map(|hook| hook.left_to_velero).collect::<Vec<_>>(),
            [true]
        );
        // Of an unmarked restore nothing is Reveille's but its own keys.
        assert_eq!(plan(&pod(&annotations), &restore(false), None), None);
        let own = plan(
            &pod(&json!({"post.hook.restore.reveille.dev/command": "own"})),
            &restore(false),
            None,
        )
        .expect("a plan");
        assert!(!own.post[0].left_to_velero);
    }

    #[test]
    fn containers_that_velero_has_injected_are_not_missed() {
        let mut present = pod(&json!({}));
        present["spec"]["initContainers"] = json!([{"name": "i", "image": "x"}]);
        assert!(!plan(&present, &restore(true), None).expect("a plan").init[0].missed);
    }

    #[test]
    fn in_a_refused_namespace_hooks_are_skipped_with_the_reason() {
        let plan = plan(&pod(&json!({})), &restore(true), Some("no")).expect("a plan");
        assert_eq!(
            (
                plan.post[0].error.as_deref(),
                plan.init[0].error.as_deref(),
                plan.init[0].missed
            ),
            (Some("no"), Some("no"), false)
        );
    }

    #[test]
    fn a_pods_own_hooks_in_a_refused_namespace_are_nobodys_but_veleros() {
        let annotations = json!({
            "post.hook.restore.velero.io/command": "own",
            "init.hook.restore.velero.io/initContainers": "- {name: a, image: b}",
        });
        assert_eq!(plan(&pod(&annotations), &restore(true), Some("no")), None);
    }

    #[test]
    fn a_pod_without_hooks_has_no_plan_and_metadata_is_enough_to_tell() {
        let mut bare = restore(true);
        bare.rules = crate::hooks::restore_spec::Rules::default();
        let mut metadata_only = pod(&json!({}));
        metadata_only.as_object_mut().expect("an object").remove("spec");
        assert_eq!(plan(&metadata_only, &bare, None), None);
        assert!(plan(&metadata_only, &restore(true), None).is_some());
    }
}
