//! Restores and their pods: which pods nobody has planned, and which Restores nobody has marked. Pure.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    admission::{
        Mode,
        late::{LateContext, is_unseen, late_plan},
        pod::mode_of,
    },
    hooks::restored::{RestoreInfo, label_value},
    names::VELERO_RESTORE_LABEL,
};

/// The pods (`namespace/name`) that the webhook was not asked about, whose hooks nobody has planned since. `pods`: those with a
/// restore label. `out_of_scope`: namespaces in which nothing is to be run.
pub(super) fn unplanned(
    restores: &[RestoreInfo],
    pods: &[Value],
    mode: Mode,
    out_of_scope: &[String],
    now: Timestamp,
) -> Vec<String> {
    let text = |pod: &Value, field: &str| {
        let value = pod.get("metadata").and_then(|metadata| metadata.get(field)?.as_str());
        value.unwrap_or_default().to_owned()
    };
    let is_missed = |pod: &Value, namespace: &str, restore: &RestoreInfo| {
        let context = LateContext {
            restore,
            mode,
            refused: None,
            now,
        };
        is_unseen(pod, restore) && late_plan(pod, namespace, &context).is_some()
    };
    let mut found = Vec::new();
    for pod in pods {
        let namespace = text(pod, "namespace");
        let label = pod
            .get("metadata")
            .and_then(|metadata| metadata.get("labels")?.get(VELERO_RESTORE_LABEL)?.as_str());
        let mut named = restores
            .iter()
            .filter(|restore| label == Some(label_value(&restore.name).as_ref()));
        if !out_of_scope.contains(&namespace) && named.any(|restore| is_missed(pod, &namespace, restore)) {
            found.push(format!("{namespace}/{}", text(pod, "name")));
        }
    }
    found
}

/// The unfinished Restores (`namespace/name`) that should be Reveille's and are not: the webhook was not asked about them.
pub(super) fn unmarked(restores: &[RestoreInfo], mode: Mode) -> Vec<String> {
    restores
        .iter()
        .filter(|restore| !restore.finished() && !restore.marked && mode_of(Some(restore), mode) == Mode::Takeover)
        .map(|restore| format!("{}/{}", restore.namespace, restore.name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn restore(annotations: Value, phase: &str) -> RestoreInfo {
        RestoreInfo::read(&json!({
            "metadata": {
                "namespace": "velero", "name": "r", "uid": "u", "creationTimestamp": "2026-01-01T10:00:00Z",
                "annotations": annotations,
            },
            "spec": {},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    fn pod(annotations: Value, created: &str) -> Value {
        json!({
            "metadata": {
                "namespace": "shop", "name": "db-0", "uid": "p", "labels": {VELERO_RESTORE_LABEL: "r"},
                "creationTimestamp": format!("2026-01-01T{created}:00Z"), "annotations": annotations,
            },
            "spec": {"containers": [{"name": "c"}]},
        })
    }

    #[test]
    fn pods_with_hooks_and_neither_plan_nor_mark_are_found() {
        let marked = [restore(json!({"reveille.dev/owner": "reveille"}), "Completed")];
        let hook = json!({"post.hook.restore.velero.io/command": "true"});
        let now = Timestamp::UNIX_EPOCH;
        let found = |pod: Value, excluded: &[String]| unplanned(&marked, &[pod], Mode::Takeover, excluded, now);
        assert_eq!(found(pod(hook.clone(), "10:05"), &[]), ["shop/db-0"]);
        assert!(
            found(pod(hook.clone(), "09:55"), &[]).is_empty(),
            "older than the restore"
        );
        assert!(found(pod(hook.clone(), "10:05"), &["shop".to_owned()]).is_empty());
        assert!(found(pod(json!({}), "10:05"), &[]).is_empty(), "no hooks");
        let mut run = hook;
        run["reveille.dev/run"] = json!("p/run");
        assert!(found(pod(run, "10:05"), &[]).is_empty(), "it has its run");
    }

    #[test]
    fn restores_that_should_be_ours_and_are_not() {
        let open = |annotations: Value| unmarked(&[restore(annotations, "InProgress")], Mode::Takeover);
        assert_eq!(open(json!({})), ["velero/r"]);
        assert!(open(json!({"reveille.dev/owner": "reveille"})).is_empty());
        assert!(open(json!({"reveille.dev/mode": "alongside"})).is_empty());
        assert!(unmarked(&[restore(json!({}), "Completed")], Mode::Takeover).is_empty());
        assert!(unmarked(&[restore(json!({}), "InProgress")], Mode::Alongside).is_empty());
    }
}
