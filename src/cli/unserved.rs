//! Pods that Reveille does not serve: those that a restored controller made by itself. They carry no restore label, so the webhook is
//! not asked about them. Who reads a restore's result should know of them.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    hooks::{
        restored::{RestoreInfo, label_value},
        select::{self, annotations_of},
    },
    names::VELERO_RESTORE_LABEL,
};

/// How long after a restore's end a pod of its controllers still counts as made because of it.
const AFTERMATH: SignedDuration = SignedDuration::from_mins(10);
/// Pod, ReplicaSet, Deployment; or Pod, Job, CronJob.
const LEVELS: usize = 3;

/// What makes pods.
const CONTROLLERS: [(&str, &str); 7] = [
    ("apps/v1", "Deployment"),
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "DaemonSet"),
    ("v1", "ReplicationController"),
    ("batch/v1", "Job"),
    ("batch/v1", "CronJob"),
];
/// Those of them that another controller makes: they do not carry the restored one's label.
const BETWEEN: [(&str, &str); 2] = [("apps/v1", "ReplicaSet"), ("batch/v1", "Job")];

/// A pod with hooks that nobody runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unserved {
    /// The uid of the Restore that brought its controller.
    #[serde(skip)]
    pub restore: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The restored controller: `StatefulSet db`.
    pub controller: String,
    /// How many hooks it would have.
    pub hooks: usize,
}

/// A resource by the words of its manifest.
pub(super) fn resource(version: &str, kind: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Looks for such pods of these Restores.
pub async fn read(client: &Client, restores: &[&RestoreInfo]) -> Result<Vec<Unserved>, kube::Error> {
    if restores.is_empty() {
        return Ok(Vec::new());
    }
    let labels: BTreeSet<_> = restores.iter().map(|restore| label_value(&restore.name)).collect();
    let selector = match labels.iter().collect::<Vec<_>>().as_slice() {
        [only] => format!("{VELERO_RESTORE_LABEL}={only}"),
        _ => VELERO_RESTORE_LABEL.to_owned(),
    };
    let labelled = ListParams::default().labels(&selector);
    let mut controllers = Vec::new();
    for (version, kind) in CONTROLLERS {
        controllers.extend(metadata(client, None, version, kind, &labelled).await?);
    }
    let namespaces: BTreeSet<String> = controllers
        .iter()
        .map(|controller| text(controller, "namespace").to_owned())
        .collect();
    let all = ListParams::default();
    let mut found = BTreeSet::new();
    for namespace in &namespaces {
        let mut of_namespace: Vec<Value> = controllers
            .iter()
            .filter(|controller| text(controller, "namespace") == namespace)
            .cloned()
            .collect();
        for (version, kind) in BETWEEN {
            of_namespace.extend(metadata(client, Some(namespace), version, kind, &all).await?);
        }
        let pods: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource("v1", "Pod"));
        let pods: Vec<Value> = pods
            .list(&all)
            .await?
            .items
            .iter()
            .filter_map(|pod| serde_json::to_value(pod).ok())
            .collect();
        for restore in restores {
            found.extend(unserved(restore, &of_namespace, &pods));
        }
    }
    Ok(found.into_iter().collect())
}

async fn metadata(
    client: &Client,
    namespace: Option<&str>,
    version: &str,
    kind: &str,
    parameters: &ListParams,
) -> Result<Vec<Value>, kube::Error> {
    let resource = resource(version, kind);
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let list = api.list_metadata(parameters).await?;
    let mut found = Vec::new();
    for object in list.items {
        let mut value = serde_json::to_value(&object).map_err(kube::Error::SerdeError)?;
        // Metadata alone does not say what it is of.
        if let Some(fields) = value.as_object_mut() {
            fields.insert("kind".to_owned(), Value::String(kind.to_owned()));
        }
        found.push(value);
    }
    Ok(found)
}

/// The pods that a controller which this Restore brought has made by itself, during the restore or soon after, and that would
/// have hooks. `controllers`: their metadata and kind.
pub fn unserved(restore: &RestoreInfo, controllers: &[Value], pods: &[Value]) -> Vec<Unserved> {
    let by_uid: HashMap<&str, &Value> = controllers
        .iter()
        .map(|controller| (text(controller, "uid"), controller))
        .collect();
    let mut found = Vec::new();
    for pod in pods.iter().filter(|pod| !is_restored_by(pod, restore)) {
        if !made_meanwhile(pod, restore) {
            continue;
        }
        let Some(controller) = restored_controller(pod, restore, &by_uid) else {
            continue;
        };
        let namespace = text(pod, "namespace");
        let hooks = hooks_of(pod, namespace, restore);
        if hooks > 0 {
            found.push(Unserved {
                restore: restore.uid.clone(),
                namespace: namespace.to_owned(),
                pod: text(pod, "name").to_owned(),
                controller,
                hooks,
            });
        }
    }
    found
}

/// How many hooks the pod would have, were it restored by this Restore.
fn hooks_of(pod: &Value, namespace: &str, restore: &RestoreInfo) -> usize {
    let selected = select::select(pod, namespace, &annotations_of(pod), &restore.rules, false);
    selected.post.len() + selected.init.len()
}

fn made_meanwhile(object: &Value, restore: &RestoreInfo) -> bool {
    let Some(created) = created(object) else { return false };
    let after_its_beginning = restore.created.is_some_and(|begin| created >= begin);
    // While it runs there is no end yet.
    let before_its_end = restore.completed.is_none_or(|end| created <= end + AFTERMATH);
    after_its_beginning && before_its_end
}

/// The nearest owner that this Restore has brought.
fn restored_controller(pod: &Value, restore: &RestoreInfo, by_uid: &HashMap<&str, &Value>) -> Option<String> {
    let mut object = pod;
    for _ in 0..LEVELS {
        object = by_uid.get(controller_uid(object)?)?;
        if is_restored_by(object, restore) {
            // One that was there before only got the label, by Velero's update policy.
            let brought = created(object) >= restore.created;
            let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
            return brought.then(|| format!("{kind} {}", text(object, "name")));
        }
    }
    None
}

fn controller_uid(object: &Value) -> Option<&str> {
    let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
    let controller = owners
        .iter()
        .find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))?;
    controller.get("uid")?.as_str()
}

fn is_restored_by(object: &Value, restore: &RestoreInfo) -> bool {
    let labels = object.get("metadata").and_then(|metadata| metadata.get("labels"));
    let label = labels.and_then(|labels| labels.get(VELERO_RESTORE_LABEL)?.as_str());
    label == Some(label_value(&restore.name).as_ref())
}

fn created(object: &Value) -> Option<Timestamp> {
    text(object, "creationTimestamp").parse().ok()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    let metadata = object.get("metadata");
    let value = metadata.and_then(|metadata| metadata.get(field)?.as_str());
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn restore() -> RestoreInfo {
        RestoreInfo::read(&json!({
            "metadata": {"namespace": "velero", "name": "r", "uid": "u", "creationTimestamp": "2026-01-01T10:00:00Z"},
            "spec": {},
            "status": {"phase": "Completed", "completionTimestamp": "2026-01-01T11:00:00Z"},
        }))
        .unwrap()
    }

    fn object(kind: &str, uid: &str, owner: &str, restored: bool, created: &str) -> Value {
        let labels = if restored {
            json!({VELERO_RESTORE_LABEL: "r"})
        } else {
            json!({})
        };
        json!({
            "kind": kind,
            "metadata": {
                "namespace": "shop", "name": uid, "uid": uid, "labels": labels,
                "creationTimestamp": format!("2026-01-01T{created}:00Z"),
                "ownerReferences": [{"uid": owner, "controller": true}],
                "annotations": {"post.hook.restore.velero.io/command": "true"},
            },
            "spec": {"containers": [{"name": "c"}]},
        })
    }

    fn found(controllers: &[Value], pod: &Value) -> Vec<String> {
        let found = unserved(&restore(), controllers, std::slice::from_ref(pod));
        found
            .into_iter()
            .map(|one| format!("{} of {}", one.pod, one.controller))
            .collect()
    }

    #[test]
    fn pods_that_a_restored_controller_makes_are_found_over_several_levels() {
        let controllers = [
            object("Deployment", "web", "", true, "10:05"),
            object("ReplicaSet", "web-1", "web", false, "10:05"),
            object("StatefulSet", "db", "", true, "10:05"),
            object("StatefulSet", "old", "", true, "09:00"),
            object("StatefulSet", "other", "", false, "10:05"),
        ];
        let pod = |owner: &str, restored, created| found(&controllers, &object("Pod", "p", owner, restored, created));
        assert_eq!(pod("db", false, "10:06"), ["p of StatefulSet db"]);
        assert_eq!(pod("web-1", false, "11:09"), ["p of Deployment web"]);
        for (owner, restored, created) in [
            ("db", true, "10:06"),
            ("db", false, "09:59"),
            ("db", false, "11:11"),
            ("old", false, "10:06"),
            ("other", false, "10:06"),
            ("gone", false, "10:06"),
        ] {
            assert!(pod(owner, restored, created).is_empty(), "{owner} {restored} {created}");
        }
    }

    #[test]
    fn a_pod_without_hooks_misses_nothing() {
        let controllers = [object("StatefulSet", "db", "", true, "10:05")];
        let mut pod = object("Pod", "p", "db", false, "10:06");
        pod["metadata"]["annotations"] = json!({});
        assert!(found(&controllers, &pod).is_empty());
    }
}
