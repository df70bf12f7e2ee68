//! Changes to a pod's metadata, written in one merge patch that only that very pod accepts.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::names::{FIELD_MANAGER, PLAN_ANNOTATION, QUEUE_LABEL, QUEUE_LABEL_VALUE};

/// Annotations and the queue label to set or to remove.
#[derive(Clone, Debug, Default)]
pub struct PodEdit {
    annotations: BTreeMap<String, Option<String>>,
    labels: BTreeMap<&'static str, Option<&'static str>>,
}

impl PodEdit {
    /// Sets an annotation.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.annotations.insert(key.to_owned(), Some(value.into()));
        self
    }

    /// Sets annotations that a plan had moved off the pod.
    #[must_use]
    pub fn put_back(mut self, moved: BTreeMap<String, String>) -> Self {
        self.annotations
            .extend(moved.into_iter().map(|(key, value)| (key, Some(value))));
        self
    }

    /// Writes a plan on the pod and queues it.
    #[must_use]
    pub fn queue(mut self, plan: impl Into<String>) -> Self {
        self.labels.insert(QUEUE_LABEL, Some(QUEUE_LABEL_VALUE));
        self.set(PLAN_ANNOTATION, plan)
    }

    /// Takes the plan off the pod, and the pod out of the queue.
    #[must_use]
    pub fn unqueue(mut self) -> Self {
        self.labels.insert(QUEUE_LABEL, None);
        self.annotations.insert(PLAN_ANNOTATION.to_owned(), None);
        self
    }

    /// Writes the changes. The API server refuses them (409 or 422) if the pod of this name has another uid by now, or, where
    /// a version is given, has changed since it was read.
    pub async fn write(
        self,
        client: &Client,
        namespace: &str,
        name: &str,
        uid: &str,
        version: Option<&str>,
    ) -> Result<(), kube::Error> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        pods.patch_metadata(name, &parameters(), &Patch::Merge(self.patch(uid, version)))
            .await
            .map(drop)
    }

    fn patch(&self, uid: &str, version: Option<&str>) -> Value {
        let metadata = json!({"uid": uid, "annotations": self.annotations, "labels": self.labels});
        match version {
            Some(version) => json!({"metadata": merge(metadata, json!({"resourceVersion": version}))}),
            None => json!({"metadata": metadata}),
        }
    }
}

fn merge(mut one: Value, other: Value) -> Value {
    json_patch::merge(&mut one, &other);
    one
}

/// What every patch of Reveille's carries.
pub fn parameters() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_removes_and_names_the_pod() {
        let moved = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let edit = PodEdit::default().put_back(moved).unqueue();
        let expected = json!({"metadata": {
            "uid": "u",
            "annotations": {"k": "v", "reveille.dev/plan": null},
            "labels": {"reveille.dev/hooks": null},
        }});
        assert_eq!(edit.patch("u", None), expected);
        let queued = PodEdit::default().queue("p").patch("u", Some("7"));
        assert_eq!(
            (
                &queued["metadata"]["resourceVersion"],
                &queued["metadata"]["labels"]["reveille.dev/hooks"]
            ),
            (&json!("7"), &json!("planned"))
        );
    }
}
