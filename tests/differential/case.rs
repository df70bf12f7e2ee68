//! One generated case, and the pod on its way from the backup to the API server.

use std::fmt;

use reveille::{
    hooks::restored::{is_wait, label_value},
    names::VELERO_RESTORE_LABEL,
};
use serde_json::{Value, json};

/// The container that holds the pod back until its volumes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// No volume is restored through the file system.
    None,
    /// As Velero puts it.
    First,
    /// Another webhook has put a container before it.
    BehindAnother,
    /// As Velero up to 1.9 named it.
    Legacy,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// As in the backup.
    pub(crate) pod: Value,
    pub(crate) restore: Value,
    pub(crate) wait: Wait,
}

impl Case {
    fn namespace(&self) -> &str {
        let own = self.pod["metadata"]["namespace"].as_str().unwrap_or_default();
        self.restore["spec"]["namespaceMapping"][own].as_str().unwrap_or(own)
    }

    /// The pod as it arrives at the API server, after Velero's item actions: `pod` is what its action for init hooks returned.
    pub(crate) fn arriving(&self, pod: &Value) -> Value {
        let mut pod = pod.clone();
        pod["metadata"]["namespace"] = json!(self.namespace());
        if pod["metadata"]["labels"].is_null() {
            pod["metadata"]["labels"] = json!({});
        }
        let name = self.restore["metadata"]["name"].as_str().unwrap_or_default();
        pod["metadata"]["labels"][VELERO_RESTORE_LABEL] = json!(label_value(name));
        pod["metadata"]["labels"]["velero.io/backup-name"] = json!("b");
        // Its action for volumes takes old wait containers out and puts a new one first.
        let mut init: Vec<Value> = init_containers(&pod)
            .iter()
            .filter(|container| !is_wait(container))
            .cloned()
            .collect();
        let uid = "11111111-1111-1111-1111-111111111111";
        let wait = |name: &str| json!({"name": name, "image": "velero", "args": [uid]});
        match self.wait {
            Wait::None => {}
            Wait::First => init.insert(0, wait("restore-wait")),
            Wait::Legacy => init.insert(0, wait("restic-wait")),
            Wait::BehindAnother => {
                init.insert(0, wait("restore-wait"));
                init.insert(0, json!({"name": "another-webhooks", "image": "proxy"}));
            }
        }
        if !init.is_empty() || pod["spec"].get("initContainers").is_some() {
            pod["spec"]["initContainers"] = Value::Array(init);
        }
        pod
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
        writeln!(f, "pod in the backup: {}", pretty(&self.pod))?;
        writeln!(f, "Restore: {}", pretty(&self.restore))?;
        write!(f, "wait container: {:?}", self.wait)
    }
}

pub(crate) fn init_containers(pod: &Value) -> &[Value] {
    pod["spec"]["initContainers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

pub(crate) fn name_of(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}
