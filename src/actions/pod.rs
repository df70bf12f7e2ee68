//! The pod of a `KubeTask`. Pure.

use serde_json::{Map, Value, json};

use super::{
    action::{ACTION_LABEL, NAMESPACE_LABEL},
    merge::merge,
};
use crate::{blueprint::call::KubeTask, names::EXCLUDE_FROM_BACKUP_LABEL};

/// The container that runs the command, as Kanister calls it: overrides speak of it by this name.
pub const CONTAINER: &str = "container";

/// Where and as whom the pod runs.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The pod's name: the same each time it is asked for.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// The uid of the action.
    pub action: &'a str,
    /// The namespace of the action.
    pub action_namespace: &'a str,
    /// Its service account, unless an override says otherwise.
    pub service_account: Option<&'a str>,
    /// Hook pods run as root, whatever the Blueprint says.
    pub force_root: bool,
    /// The `spec` in the override ConfigMap, which has the last word.
    pub last_word: Option<&'a Map<String, Value>>,
}

/// The pod. Later wins: defaults, the Blueprint's `podOverride`, root if that is forced, the override ConfigMap.
pub fn task_pod(task: &KubeTask, setting: &Setting) -> Result<Value, String> {
    let mut spec = Map::new();
    spec.insert("restartPolicy".to_owned(), json!("Never"));
    if let Some(account) = setting.service_account {
        spec.insert("serviceAccountName".to_owned(), json!(account));
    }
    let container = json!({
        "name": CONTAINER, "image": task.image, "command": task.command, "imagePullPolicy": "IfNotPresent",
    });
    spec.insert("containers".to_owned(), json!([container]));
    merge(&mut spec, &task.pod_override).map_err(|why| format!("argument podOverride: {why}"))?;
    if setting.force_root {
        let root = json!({"runAsUser": 0, "runAsNonRoot": false});
        spec.insert("securityContext".to_owned(), root.clone());
        // A container's own context would win over the pod's.
        let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
        let own = containers
            .into_iter()
            .flatten()
            .filter(|one| one.get("name") == Some(&json!(CONTAINER)));
        for context in own
            .filter_map(|own| own.get_mut("securityContext"))
            .filter(|context| context.is_object())
        {
            json_patch::merge(context, &root);
        }
    } else {
        spec.entry("securityContext").or_insert_with(|| json!({}));
    }
    if let Some(last_word) = setting.last_word {
        merge(&mut spec, last_word).map_err(|why| format!("the override ConfigMap: {why}"))?;
    }
    // Logs and exit code are read from this container, so it comes first, and it must be there.
    let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
    let own = containers
        .as_ref()
        .and_then(|all| all.iter().position(|one| one.get("name") == Some(&json!(CONTAINER))));
    match (containers, own) {
        (Some(containers), Some(own)) => containers.swap(0, own),
        _ => return Err(format!("an override takes the container {CONTAINER} away")),
    }
    let mut labels = task.pod_labels.clone();
    for (key, value) in [
        ("createdBy", "kanister"),
        (EXCLUDE_FROM_BACKUP_LABEL, "true"),
        (ACTION_LABEL, setting.action),
        (NAMESPACE_LABEL, setting.action_namespace),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": setting.name, "namespace": setting.namespace, "labels": labels, "annotations": task.pod_annotations,
        },
        "spec": spec,
    }))
}

/// How a pod stands, as far as its command goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It has not started; the text says why, if the kubelet does.
    Starting(Option<String>),
    /// It will never start, and why.
    Hopeless(String),
    /// It runs.
    Running,
    /// It has ended with this exit code.
    Exited(i32),
    /// The pod has ended, but the command's exit code is not known.
    Ended(String),
}

/// Reads the state of the command out of a pod. Other containers that an injector has added do not count: they may never end.
pub fn task_state(pod: &Value) -> TaskState {
    let status = pod.get("status").unwrap_or(&Value::Null);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let statuses = status.get("containerStatuses").and_then(Value::as_array);
    let own = statuses
        .into_iter()
        .flatten()
        .find(|one| one.get("name") == Some(&json!(CONTAINER)));
    let state = own.and_then(|own| own.get("state"));
    if let Some(terminated) = state.and_then(|state| state.get("terminated")) {
        let code = terminated
            .get("exitCode")
            .and_then(Value::as_i64)
            .and_then(|code| i32::try_from(code).ok());
        return code.map_or_else(
            || TaskState::Ended("its exit code is missing".to_owned()),
            TaskState::Exited,
        );
    }
    let phase = text(status, "phase");
    if phase == "Failed" || phase == "Succeeded" {
        let reason = [text(status, "reason"), text(status, "message")].join(" ");
        return TaskState::Ended(format!("the pod ended {phase} {}", reason.trim()));
    }
    if let Some(waiting) = state.and_then(|state| state.get("waiting")) {
        let (reason, message) = (text(waiting, "reason"), text(waiting, "message"));
        let why = format!("{reason} {message}").trim().to_owned();
        return match reason.as_str() {
            "InvalidImageName" | "ErrImageNeverPull" => TaskState::Hopeless(why),
            "" | "ContainerCreating" | "PodInitializing" => TaskState::Starting(None),
            _ => TaskState::Starting(Some(why)),
        };
    }
    if state.is_some_and(|state| state.get("running").is_some()) {
        return TaskState::Running;
    }
    let conditions = status.get("conditions").and_then(Value::as_array);
    let unscheduled = conditions
        .into_iter()
        .flatten()
        .find(|one| text(one, "type") == "PodScheduled" && text(one, "status") == "False");
    TaskState::Starting(unscheduled.map(|one| format!("{} {}", text(one, "reason"), text(one, "message"))))
}

/// Whether what a container waits for is its image.
pub fn is_image_trouble(why: &str) -> bool {
    [
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
    ]
    .iter()
    .any(|reason| why.starts_with(reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn task(pod_override: Value) -> KubeTask {
        KubeTask {
            image: "i".to_owned(),
            command: vec!["c".to_owned()],
            namespace: None,
            pod_override: pod_override.as_object().unwrap().clone(),
            pod_labels: BTreeMap::new(),
            pod_annotations: BTreeMap::new(),
        }
    }

    fn spec(pod_override: Value, force_root: bool, last_word: Value) -> Value {
        let setting = Setting {
            name: "n",
            namespace: "ns",
            action: "uid",
            action_namespace: "own",
            service_account: Some("own"),
            force_root,
            last_word: last_word.as_object(),
        };
        task_pod(&task(pod_override), &setting).unwrap()["spec"].clone()
    }

    #[test]
    fn the_security_context_is_roots_unless_that_is_off_and_the_config_map_has_the_last_word() {
        let user = json!({"securityContext": {"runAsUser": 1000, "runAsNonRoot": true}});
        let root = json!({"runAsUser": 0, "runAsNonRoot": false});
        assert_eq!(spec(user.clone(), true, Value::Null)["securityContext"], root);
        assert_eq!(spec(json!({}), true, Value::Null)["securityContext"], root);
        let own =
            json!({"containers": [{"name": "container", "securityContext": {"runAsUser": 1000, "privileged": true}}]});
        assert_eq!(
            spec(own.clone(), true, Value::Null)["containers"][0]["securityContext"],
            json!({"runAsUser": 0, "runAsNonRoot": false, "privileged": true})
        );
        assert_eq!(
            spec(own, false, Value::Null)["containers"][0]["securityContext"]["runAsUser"],
            1000
        );
        assert_eq!(
            spec(user.clone(), false, Value::Null)["securityContext"],
            user["securityContext"]
        );
        assert_eq!(spec(json!({}), false, Value::Null)["securityContext"], json!({}));
        let last = json!({"securityContext": {"runAsUser": 7, "runAsNonRoot": true}});
        assert_eq!(
            spec(user.clone(), true, last.clone())["securityContext"],
            last["securityContext"]
        );
        assert_eq!(
            spec(user, false, last.clone())["securityContext"],
            last["securityContext"]
        );
    }

    #[test]
    fn an_override_may_change_everything_but_take_the_container_away() {
        let overridden = json!({
            "serviceAccountName": "k10-k10",
            "containers": [{"name": "helper", "image": "h"}, {"name": "container", "image": "other"}],
        });
        let spec = spec(overridden, true, Value::Null);
        assert_eq!(spec["serviceAccountName"], "k10-k10");
        assert_eq!(spec["containers"][0]["name"], "container");
        assert_eq!(
            (&spec["containers"][0]["image"], &spec["containers"][0]["command"]),
            (&json!("other"), &json!(["c"]))
        );
        assert_eq!(spec["containers"][1]["name"], "helper");
        let setting = Setting {
            name: "n",
            namespace: "ns",
            action: "uid",
            action_namespace: "own",
            service_account: None,
            force_root: true,
            last_word: None,
        };
        let error = task_pod(&task(json!({"containers": [{"$patch": "replace"}]})), &setting).unwrap_err();
        assert!(error.contains("container"), "{error}");
    }

    #[test]
    fn a_pod_says_how_its_command_stands() {
        let pod = |state: Value| json!({"status": {"phase": "Running", "containerStatuses": [{"name": "mesh", "state": {"running": {}}}, {"name": "container", "state": state}]}});
        assert_eq!(
            task_state(&pod(json!({"terminated": {"exitCode": 3}}))),
            TaskState::Exited(3)
        );
        assert_eq!(task_state(&pod(json!({"running": {}}))), TaskState::Running);
        let waiting = pod(json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}));
        let TaskState::Starting(Some(why)) = task_state(&waiting) else {
            panic!()
        };
        assert!(is_image_trouble(&why) && why.contains("no such image"), "{why}");
        assert!(matches!(
            task_state(&pod(json!({"waiting": {"reason": "InvalidImageName"}}))),
            TaskState::Hopeless(_)
        ));
        assert_eq!(task_state(&json!({})), TaskState::Starting(None));
        let evicted = json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "disk"}});
        assert_eq!(
            task_state(&evicted),
            TaskState::Ended("the pod ended Failed Evicted disk".to_owned())
        );
    }
}
