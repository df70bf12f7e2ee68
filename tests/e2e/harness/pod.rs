//! Pods as the tests write them.

use serde_json::{Value, json};

use super::{IMAGE, TRACES};

/// A pod in the making: one container `main` that sleeps and sees the test's folder.
#[derive(Clone, Debug)]
pub(crate) struct PodSpec(Value);

impl PodSpec {
    pub(super) fn new(name: &str, folder: &str) -> Self {
        Self(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}, "annotations": {}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "initContainers": [],
                "containers": [{
                    "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "1000000"],
                    "volumeMounts": [{"name": "traces", "mountPath": TRACES}],
                }],
                "volumes": [{"name": "traces", "hostPath": {"path": folder, "type": "Directory"}}],
            },
        }))
    }

    /// With an annotation. A command may be given as JSON.
    #[allow(clippy::needless_pass_by_value)] // reads better at its many calls
    pub(crate) fn annotate(mut self, key: impl Into<String>, value: impl ToString) -> Self {
        self.0["metadata"]["annotations"][key.into()] = json!(value.to_string());
        self
    }

    /// With a label.
    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = json!(value);
        self
    }

    /// With one more container, which sleeps, too.
    pub(crate) fn container(mut self, name: &str) -> Self {
        let mut container = self.0["spec"]["containers"][0].clone();
        container["name"] = json!(name);
        push(&mut self.0["spec"]["containers"], container);
        self
    }

    /// With one more init container.
    pub(crate) fn init_container(mut self, container: Value) -> Self {
        push(&mut self.0["spec"]["initContainers"], container);
        self
    }

    /// With an empty volume `data` at `/data`, which the backup holds.
    pub(crate) fn data_volume(mut self) -> Self {
        push(&mut self.0["spec"]["volumes"], json!({"name": "data", "emptyDir": {}}));
        push(
            &mut self.0["spec"]["containers"][0]["volumeMounts"],
            json!({"name": "data", "mountPath": "/data"}),
        );
        self.annotate("backup.velero.io/backup-volumes", "data")
    }

    /// With `main` ready as soon as the file of this name is in the test's folder.
    pub(crate) fn ready_when(self, file: &str) -> Self {
        let command = ["/bin/sh", "-c", &format!("test -e {TRACES}/{file}")];
        self.edit(|pod| {
            pod["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {"command": command}, "periodSeconds": 1});
        })
    }

    /// With whatever else.
    pub(crate) fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.0);
        self
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap()
    }

    /// As written.
    pub(crate) fn json(&self) -> &Value {
        &self.0
    }
}

fn push(list: &mut Value, item: Value) {
    list.as_array_mut().expect("a list").push(item);
}
