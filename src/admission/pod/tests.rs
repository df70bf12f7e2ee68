use super::*;
use crate::{
    hooks::select::pod_containers,
    names::{STATUS_ANNOTATION, VELERO_RESTORE_LABEL},
};
use serde_json::json;

fn restore(marked: bool, hooks: &Value) -> RestoreInfo {
    let annotations = if marked {
        json!({"reveille.dev/owner": "reveille"})
    } else {
        json!({})
    };
    restore_named("r1", &json!({"annotations": annotations}), hooks)
}

fn restore_named(uid: &str, metadata: &Value, hooks: &Value) -> RestoreInfo {
    let mut metadata = metadata.clone();
    for (key, value) in [("namespace", "velero"), ("name", "r"), ("uid", uid)] {
        metadata[key] = json!(value);
    }
    RestoreInfo::read(&json!({"metadata": metadata, "spec": {"hooks": hooks}, "status": {"phase": "InProgress"}}))
        .expect("a restore")
}

fn pod(annotations: &Value) -> Value {
    json!({
        "metadata": {"name": "db-0", "labels": {VELERO_RESTORE_LABEL: "r", "app": "db"}, "annotations": annotations},
        "spec": {"unknownField": {"kept": 1.50}, "initContainers": [{"name": "restore-wait", "args": ["r1"]}], "containers": [{"name": "pg"}]},
    })
}

fn decide(pod: &Value, restore: &RestoreInfo) -> PodDecision {
    decide_at(pod, restore, 0)
}

fn decide_at(pod: &Value, restore: &RestoreInfo, second: i64) -> PodDecision {
    let now = Timestamp::from_second(second).unwrap();
    decide_pod(
        pod,
        &PodContext {
            namespace: "app",
            restored: Restored::By(restore),
            mode: Mode::Takeover,
            marks_protected: false,
            now,
        },
    )
}

fn apply(pod: &Value, decision: &PodDecision) -> Value {
    patch::apply(pod, &decision.operations).expect("the patch applies")
}

fn both() -> Value {
    json!({
        "post.hook.restore.velero.io/command": "check",
        "post.hook.restore.velero.io/on-error": "Fail",
        "init.hook.restore.velero.io/container-image": "busybox",
        "init.hook.restore.velero.io/container-name": "prepare",
        "other/key": "stays",
    })
}

#[test]
fn takeover_plans_moves_and_injects() {
    let pod = pod(&both());
    let decision = decide(&pod, &restore(true, &Value::Null));
    let after = apply(&pod, &decision);
    let names: Vec<_> = pod_containers(&after, "initContainers")
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    assert_eq!(names, ["restore-wait", "prepare"]);
    assert_eq!(decision.injected, ["prepare"]);
    let annotations = after["metadata"]["annotations"].as_object().unwrap();
    assert!(
        !annotations.keys().any(|key| key.starts_with("post.hook")),
        "{annotations:?}"
    );
    assert_eq!(
        (&annotations["other/key"], &after["metadata"]["labels"][QUEUE_LABEL]),
        (&json!("stays"), &json!("planned"))
    );
    let plan = Plan::parse(annotations[PLAN_ANNOTATION].as_str().unwrap()).unwrap();
    assert_eq!(
        (
            plan.moved.len(),
            plan.post[0].container.as_str(),
            plan.init[0].container.as_str()
        ),
        (2, "pg", "prepare")
    );
    assert_eq!(after["spec"]["unknownField"], pod["spec"]["unknownField"]);
}

#[test]
fn an_unmarked_restore_leaves_to_velero_what_velero_reads() {
    let mut annotations = both();
    let unmarked = restore(
        false,
        &json!({"resources": [{"name": "s", "postHooks": [{"exec": {"command": ["x"]}}]}]}),
    );
    assert_eq!(decide(&pod(&annotations), &unmarked).operations, []);
    annotations["post.hook.restore.reveille.dev/command"] = json!("ours");
    let decision = decide(&pod(&annotations), &unmarked);
    assert_eq!(decision.hooks.len(), 1);
    let after = apply(&pod(&annotations), &decision);
    assert_eq!(
        after["metadata"]["annotations"]["post.hook.restore.velero.io/command"],
        "check"
    );
    assert_eq!(after["spec"], pod(&annotations)["spec"]);
}

#[test]
fn a_pod_without_hooks_is_untouched() {
    assert_eq!(
        decide(&pod(&json!({"a": "b"})), &restore(true, &Value::Null)).operations,
        []
    );
    assert_eq!(decide(&pod(&Value::Null), &restore(true, &Value::Null)).operations, []);
}

#[test]
fn a_second_call_changes_nothing_even_if_the_sources_are_gone() {
    let restore = restore(true, &Value::Null);
    let after = apply(&pod(&both()), &decide(&pod(&both()), &restore));
    let again = decide_at(&after, &restore, 100);
    assert!(again.operations.is_empty() && again.restored);
}

#[test]
fn a_plan_of_another_restore_is_undone_and_made_again() {
    let old = apply(&pod(&both()), &decide(&pod(&both()), &restore(true, &Value::Null)));
    let new = restore_named(
        "r2",
        &json!({"annotations": {"reveille.dev/owner": "reveille"}}),
        &Value::Null,
    );
    let decision = decide(&old, &new);
    let plan = decision.plan.clone().expect("a plan");
    assert_eq!(
        (
            plan.restore.as_ref().map(|r| r.uid.as_str()),
            plan.moved.len(),
            plan.post.len()
        ),
        (Some("r2"), 2, 1)
    );
    let after = apply(&old, &decision);
    assert_eq!(pod_containers(&after, "initContainers").len(), 2);

    // Velero runs this one: it must find its annotations again.
    let unmarked = restore_named("r3", &json!({}), &Value::Null);
    let given_back = apply(&old, &decide(&old, &unmarked));
    assert_eq!(given_back["metadata"]["annotations"], both());
    assert!(given_back["metadata"]["labels"].get(QUEUE_LABEL).is_none());
}

#[test]
fn a_plan_of_a_newer_reveille_for_this_restore_is_left_alone() {
    let mut annotations = both();
    annotations[PLAN_ANNOTATION] = json!(r#"{"version":99,"restore":{"uid":"r1"},"strange":true}"#);
    assert_eq!(decide(&pod(&annotations), &restore(true, &Value::Null)).operations, []);
}

#[test]
fn broken_hooks_are_planned_as_skipped_and_reported() {
    let mut annotations = both();
    annotations["post.hook.restore.velero.io/wait-timeout"] = json!("-5s");
    let decision = decide(&pod(&annotations), &restore(true, &Value::Null));
    assert_eq!(decision.hooks, []);
    assert!(
        decision
            .problems
            .iter()
            .any(|p| p.source.ends_with("wait-timeout") && p.message.contains("-5s"))
    );
    let plan = decision.plan.expect("a plan");
    assert!(plan.post[0].error.is_some() && plan.init[0].error.is_none());
}

#[test]
fn annotations_that_would_not_fit_leave_the_pod_as_it_is() {
    let mut annotations = both();
    annotations["other/key"] = json!("x".repeat(ANNOTATIONS_LIMIT - 600));
    let decision = decide(&pod(&annotations), &restore(true, &Value::Null));
    assert!(decision.operations.is_empty() && decision.plan.is_none());
    assert!(decision.problems.iter().any(|p| p.message.contains("262144")));
}

#[test]
fn mode_off_and_stale_labels_touch_nothing() {
    let off = restore_named(
        "r1",
        &json!({"annotations": {"reveille.dev/mode": "off"}}),
        &Value::Null,
    );
    assert_eq!(decide(&pod(&both()), &off).operations, []);
    // Once taken over, its hooks stand nowhere else.
    let metadata = json!({"annotations": {"reveille.dev/mode": "off", "reveille.dev/owner": "reveille"}});
    assert_eq!(
        decide(&pod(&both()), &restore_named("r1", &metadata, &Value::Null))
            .hooks
            .len(),
        1
    );
    let now = Timestamp::UNIX_EPOCH;
    let context = PodContext {
        namespace: "app",
        restored: Restored::No("stale".to_owned()),
        mode: Mode::Takeover,
        marks_protected: false,
        now,
    };
    assert_eq!(
        decide_pod(&pod(&both()), &context),
        PodDecision::untouched(false, "stale")
    );
}

#[test]
fn an_unknown_restore_is_left_to_the_waiter() {
    let context = |second| PodContext {
        namespace: "app",
        restored: Restored::Unknown("the cache is cold".to_owned()),
        mode: Mode::Takeover,
        marks_protected: false,
        now: Timestamp::from_second(second).unwrap(),
    };
    let decision = decide_pod(&pod(&both()), &context(0));
    let after = apply(&pod(&both()), &decision);
    assert_eq!(after["spec"], pod(&both())["spec"]);
    assert_eq!(
        after["metadata"]["annotations"]["post.hook.restore.velero.io/command"],
        "check"
    );
    assert!(!decision.plan.expect("a plan").resolved);
    // A second call by a replica that does not know the Restore either, and one by a replica that does.
    assert_eq!(decide_pod(&after, &context(1)).operations, []);
    let known = apply(&after, &decide(&after, &restore(true, &Value::Null)));
    assert!(
        Plan::parse(known["metadata"]["annotations"][PLAN_ANNOTATION].as_str().unwrap())
            .unwrap()
            .resolved
    );
    assert_eq!(decide_pod(&known, &context(1)).operations, []);
}

#[test]
fn other_tools_are_served_by_marker_once() {
    let context = |second| PodContext {
        namespace: "app",
        restored: Restored::ByMarker("tool/restored".to_owned()),
        mode: Mode::Takeover,
        marks_protected: false,
        now: Timestamp::from_second(second).unwrap(),
    };
    let first = decide_pod(&pod(&both()), &context(0));
    let after = apply(&pod(&both()), &first);
    assert_eq!(
        (first.hooks.len(), first.plan.clone().expect("a plan").moved.len()),
        (1, 0)
    );
    assert_eq!(decide_pod(&after, &context(30)).operations, []);
    // The same plan an hour later came back with a backup: it is renewed.
    assert!(!decide_pod(&after, &context(3600)).operations.is_empty());
}

proptest::proptest! {
    #[test]
    fn decisions_are_idempotent(
        command in proptest::option::of("\\PC{0,12}"),
        image in proptest::option::of("[a-z]{1,5}"),
        list in proptest::option::of(proptest::sample::select(vec!["- {name: a, image: b}", "[", "[{\"name\":\"prepare\",\"image\":\"x\"}]"])),
        timeout in proptest::option::of("\\PC{0,6}"),
        marked: bool,
    ) {
        let mut annotations = json!({});
        for (key, value) in [("post.hook.restore.velero.io/command", command), ("post.hook.restore.velero.io/exec-timeout", timeout),
            ("init.hook.restore.velero.io/container-image", image), ("init.hook.restore.velero.io/initContainers", list.map(str::to_owned))] {
            if let Some(value) = value { annotations[key] = json!(value); }
        }
        let hooks = json!({"resources": [{"name": "s", "postHooks": [{"exec": {"command": ["x"]}}, {"init": {"initContainers": [{"name": "i", "image": "x"}]}}]}]});
        let restore = restore(marked, &hooks);
        let pod = pod(&annotations);
        let after = apply(&pod, &decide(&pod, &restore));
        proptest::prop_assert_eq!(decide_at(&after, &restore, 90).operations, vec![]);
    }
}

#[test]
fn a_pod_whose_status_is_restored_is_planned_at_admission_only_if_the_plan_stays() {
    let restore = restore(true, &Value::Null);
    let mut annotations = both();
    annotations[STATUS_ANNOTATION] = json!("true");
    let pod = pod(&annotations);
    let decide = |marks_protected| {
        decide_pod(
            &pod,
            &PodContext {
                namespace: "app",
                restored: Restored::By(&restore),
                mode: Mode::Takeover,
                marks_protected,
                now: Timestamp::UNIX_EPOCH,
            },
        )
    };
    let (open, protected) = (decide(false), decide(true));
    assert_eq!((open.plan.is_none(), open.hooks.len()), (true, 0));
    assert_eq!((protected.plan.is_some(), protected.hooks.len()), (true, 1));
    // The init container stands in the spec, where nobody can undo it.
    assert_eq!(open.injected, protected.injected);
}
