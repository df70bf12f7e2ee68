//! The decision on a Velero Restore: who owns its hooks is decided once, before Velero starts on it.

use json_patch::PatchOperation;
use serde_json::Value;

use super::{Mode, patch};
use crate::{
    hooks::{Problem, restore_spec::Rules, select::annotations_of},
    names::{MODE_ANNOTATION, MOVED_HOOKS_ANNOTATION, OWNER_ANNOTATION, OWNER_REVEILLE, RESULT_ANNOTATION},
};

/// Larger hooks stay with Velero.
const MOVED_LIMIT: usize = 200 * 1024;
/// Kubernetes' limit on all annotations together, less room for our marks and for what Velero adds. A patch beyond it would get
/// the Restore refused; `kubectl apply` keeps a copy of the whole manifest in an annotation.
const ANNOTATIONS_LIMIT: usize = 250 * 1024;

/// Takes all marks off.
const NO_MARKS: [(&str, Option<&str>); 3] = [
    (OWNER_ANNOTATION, None),
    (RESULT_ANNOTATION, None),
    (MOVED_HOOKS_ANNOTATION, None),
];

/// What is done to a Restore, and what its author should hear.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestoreDecision {
    /// The patch; empty for "leave it as it is".
    pub operations: Vec<PatchOperation>,
    /// What is wrong with its hooks.
    pub problems: Vec<Problem>,
    /// True when Reveille runs its post hooks.
    pub owned: bool,
}

/// Decides on a Restore that is created (`old` is `None`) or changed.
pub fn decide_restore(restore: &Value, old: Option<&Value>, configured: Mode) -> RestoreDecision {
    if [Some(restore), old].into_iter().flatten().any(started) {
        return RestoreDecision::default();
    }
    let mut decision = RestoreDecision::default();
    let annotations = annotations_of(restore);
    let mode = match annotations.get(MODE_ANNOTATION).map(|text| text.parse::<Mode>()) {
        None => configured,
        Some(Ok(mode)) => mode,
        Some(Err(message)) => {
            let text = format!("{message}; the configured mode {configured} holds");
            decision.problems.push(Problem::error(MODE_ANNOTATION, text));
            configured
        }
    };
    if mode != Mode::Takeover {
        give_back(restore, &mut decision);
        return decision;
    }
    let hooks = restore.get("spec").and_then(|spec| spec.get("hooks"));
    let moves = hooks.map(remaining_without_exec).unwrap_or_default();
    let moved_text = hooks.filter(|_| !moves.is_empty()).map(Value::to_string);
    let others: usize = annotations
        .iter()
        .filter(|(key, _)| *key != MOVED_HOOKS_ANNOTATION)
        .map(|(key, value)| key.len() + value.len())
        .sum();
    let size = moved_text.as_ref().map_or(0, String::len);
    if size > MOVED_LIMIT || (size > 0 && others + size > ANNOTATIONS_LIMIT) {
        let text = format!(
            "its hooks have {size} bytes and its annotations {others}, too much to move the hooks into an annotation: Velero runs the post hooks of this restore itself"
        );
        decision.problems.push(Problem::error("spec.hooks", text));
        // Marks of an earlier version of it, or of the Restore that it is a copy of, would say otherwise.
        decision.operations = patch::edit_metadata(restore, "annotations", &NO_MARKS);
        return decision;
    }
    let had_hooks = old
        .and_then(|old| old.get("spec")?.get("hooks"))
        .is_some_and(|hooks| !hooks.is_null());
    let hooks_removed =
        had_hooks && hooks.is_none_or(Value::is_null) && annotations.contains_key(MOVED_HOOKS_ANNOTATION);
    if hooks_removed {
        let text = "spec.hooks was removed, and with it the exec hooks that had been moved here";
        decision.problems.push(Problem::warning(MOVED_HOOKS_ANNOTATION, text));
    }
    if old.is_some() && moved_text.is_some() && annotations.contains_key(MOVED_HOOKS_ANNOTATION) {
        let text = "the exec hooks moved here before are replaced by those now in spec.hooks";
        decision.problems.push(Problem::warning(MOVED_HOOKS_ANNOTATION, text));
    }
    decision.owned = true;
    let mut changes = vec![
        (OWNER_ANNOTATION, Some(OWNER_REVEILLE)),
        (RESULT_ANNOTATION, Some("Pending")),
    ];
    if moved_text.is_some() || hooks_removed {
        changes.push((MOVED_HOOKS_ANNOTATION, moved_text.as_deref()));
    }
    decision.operations = patch::edit_metadata(restore, "annotations", &changes);
    for (index, post_hooks) in moves {
        decision.operations.push(patch::replace(
            &["spec", "hooks", "resources", &index.to_string(), "postHooks"],
            post_hooks,
        ));
    }
    decision.problems.extend(Rules::of_restore(restore, false).problems);
    decision
}

/// Velero has begun: what it reads is settled.
fn started(restore: &Value) -> bool {
    let phase = restore
        .get("status")
        .and_then(|status| status.get("phase"))
        .and_then(Value::as_str)
        .unwrap_or_default();
    !matches!(phase, "" | "New")
}

/// For each resource that has exec items: its index and the `postHooks` that stay (the init items).
fn remaining_without_exec(hooks: &Value) -> Vec<(usize, Value)> {
    let resources = hooks.get("resources").and_then(Value::as_array);
    let with_exec = resources
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, resource)| {
            let items = resource.get("postHooks")?.as_array()?;
            items
                .iter()
                .any(has_exec)
                .then(|| (index, Value::Array(items.iter().filter_map(without_exec).collect())))
        });
    with_exec.collect()
}

fn has_exec(item: &Value) -> bool {
    item.get("exec").is_some_and(|exec| !exec.is_null())
}

/// An item without its exec part; an item may have both parts, and then its init part stays.
fn without_exec(item: &Value) -> Option<Value> {
    if !has_exec(item) {
        return Some(item.clone());
    }
    let mut item = item.clone();
    item.as_object_mut()?.remove("exec");
    item.get("init").is_some_and(|init| !init.is_null()).then_some(item)
}

/// A Restore that carries Reveille's marks (a copy of an earlier one, say) but is not to be owned gets its own hooks back.
fn give_back(restore: &Value, decision: &mut RestoreDecision) {
    let annotations = annotations_of(restore);
    decision.operations = patch::edit_metadata(restore, "annotations", &NO_MARKS);
    let Some(text) = annotations.get(MOVED_HOOKS_ANNOTATION) else {
        return;
    };
    match serde_json::from_str::<Value>(text) {
        Ok(hooks) if restore.get("spec").is_some_and(Value::is_object) => {
            decision.operations.push(patch::add(&["spec", "hooks"], hooks));
        }
        Ok(_) => {}
        Err(error) => {
            decision.problems.push(Problem::error(
                MOVED_HOOKS_ANNOTATION,
                format!("can't be read, so its hooks are lost: {error}"),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn restore(hooks: &Value) -> Value {
        json!({"metadata": {"name": "r"}, "spec": {"backupName": "b", "hooks": hooks}})
    }

    fn hooks() -> Value {
        json!({"resources": [
            {"name": "a", "postHooks": [{"exec": {"command": ["x"]}}, {"init": {"initContainers": []}}, {"exec": {"command": ["y"]}, "init": {"timeout": "1m"}}]},
            {"name": "b", "postHooks": [{"init": {"initContainers": []}}]},
        ]})
    }

    fn after(object: &Value, old: Option<&Value>, mode: Mode) -> Value {
        patch::apply(object, &decide_restore(object, old, mode).operations).expect("the patch applies")
    }

    #[test]
    fn takeover_marks_and_moves_exec_items_but_not_init_items() {
        let taken = after(&restore(&hooks()), None, Mode::Takeover);
        assert_eq!(
            taken["spec"]["hooks"]["resources"][0]["postHooks"],
            json!([{"init": {"initContainers": []}}, {"init": {"timeout": "1m"}}])
        );
        assert_eq!(taken["spec"]["hooks"]["resources"][1], hooks()["resources"][1]);
        let annotations = &taken["metadata"]["annotations"];
        assert_eq!(
            (&annotations[OWNER_ANNOTATION], &annotations[RESULT_ANNOTATION]),
            (&json!("reveille"), &json!("Pending"))
        );
        let moved: Value = serde_json::from_str(annotations[MOVED_HOOKS_ANNOTATION].as_str().unwrap()).unwrap();
        assert_eq!(moved, hooks());
    }

    #[test]
    fn a_second_call_changes_nothing() {
        for hooks in [hooks(), Value::Null, json!({"resources": []})] {
            let once = after(&restore(&hooks), None, Mode::Takeover);
            assert_eq!(decide_restore(&once, None, Mode::Takeover).operations, []);
            assert_eq!(decide_restore(&once, Some(&once), Mode::Takeover).operations, []);
        }
    }

    #[test]
    fn a_restore_that_velero_has_begun_is_left_alone() {
        let mut running = restore(&hooks());
        running["status"] = json!({"phase": "InProgress"});
        let new = restore(&hooks());
        assert_eq!(
            decide_restore(&running, Some(&new), Mode::Takeover),
            RestoreDecision::default()
        );
        assert_eq!(
            decide_restore(&new, Some(&running), Mode::Takeover),
            RestoreDecision::default()
        );
    }

    #[test]
    fn the_annotation_overrides_the_mode_and_a_bad_one_is_reported() {
        let with = |mode: &str| {
            let mut object = restore(&hooks());
            object["metadata"]["annotations"] = json!({MODE_ANNOTATION: mode});
            object
        };
        assert_eq!(
            decide_restore(&with("alongside"), None, Mode::Takeover),
            RestoreDecision::default()
        );
        assert!(decide_restore(&with("takeover"), None, Mode::Off).owned);
        let bad = decide_restore(&with("takover"), None, Mode::Takeover);
        assert!(bad.owned && bad.problems[0].message.contains("takover"));
    }

    #[test]
    fn hooks_that_are_too_large_stay_with_velero() {
        let large =
            json!({"resources": [{"name": "a", "postHooks": [{"exec": {"command": ["x".repeat(MOVED_LIMIT)]}}]}]});
        let decision = decide_restore(&restore(&large), None, Mode::Takeover);
        assert!(!decision.owned && decision.operations.is_empty());
        assert!(decision.problems[0].message.contains("Velero runs"));
        // Grown beyond the limit before Velero begins: the earlier mark goes.
        let mut grown = after(&restore(&hooks()), None, Mode::Takeover);
        grown["spec"]["hooks"] = large;
        let annotations = &after(&grown, Some(&grown), Mode::Takeover)["metadata"]["annotations"];
        assert_eq!(*annotations, json!({}));
    }

    #[test]
    fn hooks_that_would_not_fit_beside_the_other_annotations_stay_with_velero() {
        let mut object = restore(
            &json!({"resources": [{"name": "a", "postHooks": [{"exec": {"command": ["x".repeat(130 * 1024)]}}]}]}),
        );
        object["metadata"]["annotations"] =
            json!({"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(130 * 1024)});
        let decision = decide_restore(&object, None, Mode::Takeover);
        assert!(
            !decision.owned && decision.operations.is_empty(),
            "{:?}",
            decision.operations
        );
    }

    #[test]
    fn hooks_that_were_removed_before_velero_begins_are_forgotten() {
        let old = after(&restore(&hooks()), None, Mode::Takeover);
        let mut new = old.clone();
        new["spec"].as_object_mut().unwrap().remove("hooks");
        let decided = after(&new, Some(&old), Mode::Takeover);
        assert!(decided["metadata"]["annotations"].get(MOVED_HOOKS_ANNOTATION).is_none());
        assert!(decided["metadata"]["annotations"].get(OWNER_ANNOTATION).is_some());
    }

    #[test]
    fn a_copied_mark_is_taken_off_again() {
        let copy = after(&restore(&hooks()), None, Mode::Takeover);
        let given_back = after(&copy, None, Mode::Alongside);
        assert_eq!(given_back["spec"], restore(&hooks())["spec"]);
        assert_eq!(given_back["metadata"]["annotations"], json!({}));
    }

    #[test]
    fn a_finished_result_copied_with_the_restore_is_reset() {
        let mut copy = after(&restore(&hooks()), None, Mode::Takeover);
        copy["metadata"]["annotations"][RESULT_ANNOTATION] = json!("Succeeded");
        assert_eq!(
            after(&copy, None, Mode::Takeover)["metadata"]["annotations"][RESULT_ANNOTATION],
            json!("Pending")
        );
    }
}
