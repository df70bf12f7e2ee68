use super::*;
use crate::{duration::GoDuration, hooks::HookSource};
use serde_json::json;

fn hook(name: &str, image: &str) -> InitHook {
    InitHook {
        name: "h".to_owned(),
        source: HookSource::Spec,
        container: json!({"name": name, "image": image, "command": ["go"]}),
        generated_name: false,
        timeout: GoDuration::ZERO,
        error: None,
        path: "where".to_owned(),
    }
}

fn generated(image: &str) -> InitHook {
    InitHook {
        generated_name: true,
        ..hook("reveille-init-00000000", image)
    }
}

/// A present container; `name` or `name=image` (with the hooks' command).
fn container(text: &str) -> Value {
    match text.split_once('=') {
        Some((name, image)) => json!({"name": name, "image": image, "command": ["go"]}),
        None => json!({"name": text, "image": "own"}),
    }
}

fn pod(init: &[&str]) -> Value {
    json!({"spec": {"initContainers": init.iter().map(|text| container(text)).collect::<Vec<_>>(), "containers": [{"name": "app"}]}})
}

/// The names after placing, checked to be stable under a second call.
fn names_after(pod: &Value, hooks: &[InitHook], leftovers: &[&str]) -> Vec<String> {
    let leftovers = leftovers.iter().map(|&name| name.to_owned()).collect();
    let after = patch::apply(pod, &place(pod, hooks, &[], &leftovers).operations).expect("the patch applies");
    assert_eq!(
        place(&after, hooks, &[], &BTreeSet::new()).operations,
        [],
        "a second call changes nothing"
    );
    pod_containers(&after, "initContainers")
        .iter()
        .filter_map(container_name)
        .map(str::to_owned)
        .collect()
}

#[test]
fn directly_behind_the_last_wait_and_before_all_others() {
    let hooks = [hook("a", "x"), hook("b", "x")];
    let check =
        |init: &[&str], expected: &[&str]| assert_eq!(names_after(&pod(init), &hooks, &[]), expected, "{init:?}");
    check(&[], &["a", "b"]);
    check(&["own"], &["a", "b", "own"]);
    check(&["restore-wait", "own"], &["restore-wait", "a", "b", "own"]);
    check(&["restic-wait", "own"], &["restic-wait", "a", "b", "own"]);
    check(
        &["mesh", "restore-wait", "own"],
        &["mesh", "restore-wait", "a", "b", "own"],
    );
    check(
        &["restic-wait", "own", "restore-wait"],
        &["restic-wait", "own", "restore-wait", "a", "b"],
    );
}

#[test]
fn what_velero_has_injected_is_recognised() {
    let hooks = [hook("a", "x"), hook("b", "x")];
    let check = |init: &[&str], expected: &[&str], added: &[&str]| {
        assert_eq!(names_after(&pod(init), &hooks, &[]), expected, "{init:?}");
        assert_eq!(
            place(&pod(init), &hooks, &[], &BTreeSet::new()).injected,
            added,
            "{init:?}"
        );
    };
    check(
        &["restore-wait", "a=x", "b=x", "own"],
        &["restore-wait", "a", "b", "own"],
        &[],
    );
    check(
        &["restore-wait", "a=x", "own"],
        &["restore-wait", "a", "b", "own"],
        &["b"],
    );
    check(
        &["b=x", "own", "restore-wait", "a=x"],
        &["own", "restore-wait", "a", "b"],
        &[],
    );
    let pod = pod(&["restore-wait", "velero-restore-init-1a2b3c4d=x", "own"]);
    assert_eq!(
        names_after(&pod, &[generated("x")], &[]),
        ["restore-wait", "velero-restore-init-1a2b3c4d", "own"]
    );
}

#[test]
fn nothing_is_patched_when_all_is_in_place() {
    let present = pod(&["restore-wait", "a=x", "own"]);
    assert_eq!(place(&present, &[hook("a", "x")], &[], &BTreeSet::new()).operations, []);
}

#[test]
fn leftovers_of_an_earlier_restore_go() {
    let check = |init: &[&str], hooks: &[InitHook], leftovers: &[&str], expected: &[&str]| {
        assert_eq!(names_after(&pod(init), hooks, leftovers), expected, "{init:?}");
    };
    // A second-generation restore by Velero: the same name twice would get the pod refused.
    check(
        &["restore-wait", "a=x", "a=x", "own"],
        &[hook("a", "x")],
        &[],
        &["restore-wait", "a", "own"],
    );
    let velero = [
        "restore-wait",
        "velero-restore-init-new=x",
        "velero-restore-init-old=x",
        "own",
    ];
    check(
        &velero,
        &[generated("x")],
        &[],
        &["restore-wait", "velero-restore-init-new", "own"],
    );
    // Named in an older plan, with another image by now.
    check(
        &["restore-wait", "a=new", "a=old", "own"],
        &[hook("a", "new")],
        &["a"],
        &["restore-wait", "a", "own"],
    );
    check(
        &["restore-wait", "gone=x", "own"],
        &[],
        &["gone"],
        &["restore-wait", "own"],
    );
}

#[test]
fn what_velero_injected_for_a_silenced_hook_goes() {
    let pod = pod(&["restore-wait", "spec=x", "own"]);
    let placement = place(
        &pod,
        &[hook("a", "x")],
        &[hook("spec", "x"), hook("own", "y")],
        &BTreeSet::new(),
    );
    let after = patch::apply(&pod, &placement.operations).unwrap();
    let names: Vec<_> = pod_containers(&after, "initContainers")
        .iter()
        .filter_map(container_name)
        .collect();
    assert_eq!(names, ["restore-wait", "a", "own"]);

    // Its name is free for another.
    let pod = self::pod(&["restore-wait", "a=x"]);
    let placement = place(&pod, &[hook("a", "y")], &[hook("a", "x")], &BTreeSet::new());
    let after = patch::apply(&pod, &placement.operations).unwrap();
    assert_eq!(placement.problems, []);
    assert_eq!(after["spec"]["initContainers"][1]["image"], "y");
}

#[test]
fn foreign_containers_are_never_removed() {
    for init in [&["restore-wait", "a=other", "own"][..], &["a", "own"]] {
        let placement = place(&pod(init), &[hook("a", "x")], &[], &BTreeSet::new());
        assert_eq!(placement.operations, []);
        assert!(placement.planned[0].error.as_ref().expect("an error").contains("\"a\""));
        assert_eq!(placement.problems.len(), 1);
    }
}

#[test]
fn name_clashes_are_said_in_words_and_the_rest_goes_on() {
    let placement = place(
        &pod(&[]),
        &[hook("a", "x"), hook("a", "y"), hook("app", "x"), hook("b", "x")],
        &[],
        &BTreeSet::new(),
    );
    assert_eq!(placement.injected, ["a", "b"]);
    let errors: Vec<bool> = placement
        .planned
        .iter()
        .map(|planned| planned.error.is_some())
        .collect();
    assert_eq!(errors, [false, true, true, false]);
}

#[test]
fn a_hook_with_an_error_is_not_added_but_listed() {
    let broken = InitHook {
        error: Some("bad".to_owned()),
        ..hook("a", "x")
    };
    let placement = place(&pod(&[]), &[broken], &[], &BTreeSet::new());
    assert_eq!(
        (placement.operations.len(), placement.planned[0].error.as_deref()),
        (0, Some("bad"))
    );
}

#[test]
fn unset_fields_are_copied_from_the_first_container_and_set_ones_kept() {
    let first = json!({"name": "app", "securityContext": {"runAsUser": 7}, "resources": {"limits": {"cpu": "1"}}, "imagePullPolicy": "Never"});
    let mut own = hook("b", "x");
    own.container["securityContext"] = json!({"runAsUser": 8});
    let present = json!({"name": "c", "image": "x", "command": ["go"], "resources": {}});
    let pod = json!({"spec": {"initContainers": [{"name": "restore-wait"}, present], "containers": [first]}});
    let hooks = [hook("a", "x"), own, hook("c", "x")];
    let after = patch::apply(&pod, &place(&pod, &hooks, &[], &BTreeSet::new()).operations).unwrap();
    let init = &after["spec"]["initContainers"];
    assert_eq!(init[1]["securityContext"]["runAsUser"], 7);
    assert_eq!(init[1]["resources"]["limits"]["cpu"], "1");
    assert_eq!(init[2]["securityContext"]["runAsUser"], 8);
    assert_eq!(
        (&init[3]["resources"]["limits"]["cpu"], &init[3]["imagePullPolicy"]),
        (&json!("1"), &json!("Never"))
    );
    assert_eq!(init[0], json!({"name": "restore-wait"}));
}

#[test]
fn absent_and_null_lists_are_made() {
    for spec in [json!({"containers": []}), json!({"initContainers": null})] {
        let pod = json!({"spec": spec});
        assert_eq!(names_after(&pod, &[hook("a", "x")], &[]), ["a"]);
        assert_eq!(place(&pod, &[], &[], &BTreeSet::new()).operations, []);
    }
}

/// Present containers; wanted hooks as (name, image, generated); names in an older plan.
type Scene = (
    Vec<&'static str>,
    Vec<(&'static str, &'static str, bool)>,
    Vec<&'static str>,
);

fn strategy() -> impl proptest::strategy::Strategy<Value = Scene> {
    use proptest::{collection::vec, prelude::*, sample::select};
    let present = select(vec![
        "restore-wait",
        "restic-wait",
        "a=x",
        "a=y",
        "b=x",
        "own",
        "mesh",
        "velero-restore-init-1=x",
        "reveille-init-2=x",
    ]);
    let wanted = (
        select(vec!["a", "b", "c", "app"]),
        select(vec!["x", "y"]),
        any::<bool>(),
    );
    (
        vec(present, 0..7),
        vec(wanted, 0..4),
        vec(select(vec!["a", "b", "old"]), 0..3),
    )
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
    #[test]
    fn placing_is_idempotent_and_keeps_what_is_not_ours((present, wanted, leftovers) in strategy()) {
        let pod = pod(&present);
        let hooks: Vec<InitHook> = wanted.iter().map(|(name, image, made)| if *made { generated(image) } else { hook(name, image) }).collect();
        let leftovers: BTreeSet<String> = leftovers.iter().map(|&name| name.to_owned()).collect();
        let placement = place(&pod, &hooks, &[], &leftovers);
        let after = patch::apply(&pod, &placement.operations).expect("the patch applies");
        proptest::prop_assert_eq!(place(&after, &hooks, &[], &BTreeSet::new()).operations, vec![]);
        let foreign = |pod: &Value| pod_containers(pod, "initContainers").iter()
            .filter(|container| matches!(container_name(container), Some("own" | "mesh" | "restore-wait" | "restic-wait"))).cloned().collect::<Vec<_>>();
        proptest::prop_assert_eq!(foreign(&pod), foreign(&after));
        for planned in placement.planned.iter().filter(|planned| planned.error.is_none()) {
            let count = pod_containers(&after, "initContainers").iter().filter(|c| container_name(c) == Some(planned.container.as_str())).count();
            proptest::prop_assert_eq!(count, 1, "{} in {}", planned.container, after);
        }
    }
}
