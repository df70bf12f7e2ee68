//! What the API server wrote down about the calls it got.

use std::{collections::BTreeMap, fs};

use reveille::names::VELERO_DOMAIN;
use serde_json::Value;

use super::{Scenario, cluster_name, cluster_script, eventually};

/// The annotations of one audited call.
pub(crate) type Audited = BTreeMap<String, String>;

impl Scenario {
    /// What the audit log says about the creation of a pod in the test's namespace by Velero's service account.
    pub(crate) async fn audited_restore(&self, pod: &str) -> Audited {
        let mut calls = self
            .audited_creations(pod, Some(VELERO_DOMAIN.trim_end_matches(".io")))
            .await;
        assert_eq!(calls.len(), 1, "Velero created pod {pod} once");
        calls.remove(0)
    }

    /// What the audit log says about the creations of a pod in the test's namespace, by anybody or by a service account's
    /// namespace.
    pub(crate) async fn audited_creations(&self, pod: &str, by: Option<&str>) -> Vec<Audited> {
        let path = cluster_script(&["logs", &cluster_name(), "audit"]);
        eventually("the audit log tells of the creation", async || {
            let text = fs::read_to_string(path.trim()).unwrap();
            let about = format!("\"namespace\":\"{}\",\"name\":\"{pod}\"", self.namespace);
            let lines = text
                .lines()
                .filter(|line| line.contains(&about) && line.contains("\"verb\":\"create\""));
            let calls: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
            let created = calls.iter().filter(|call| {
                let user = call["user"]["username"].as_str().unwrap_or_default();
                call["objectRef"]["resource"] == "pods"
                    && call["objectRef"]["subresource"].is_null()
                    && call["responseStatus"]["code"] == 201
                    && by.is_none_or(|namespace| user.starts_with(&format!("system:serviceaccount:{namespace}:")))
            });
            let found: Vec<Audited> = created
                .map(|call| serde_json::from_value(call["annotations"].clone()).unwrap_or_default())
                .collect();
            (!found.is_empty()).then_some(found)
        })
        .await
    }
}

/// The notes about calls of Reveille's webhook for pods: whether each changed the pod.
pub(crate) fn webhook_calls(audited: &Audited) -> Vec<bool> {
    let notes = audited
        .iter()
        .filter(|(key, _)| key.starts_with("mutation.webhook.admission.k8s.io/"));
    notes
        .filter(|(_, note)| note.contains("restored-pods.reveille.dev"))
        .map(|(_, note)| note.contains("\"mutated\":true"))
        .collect()
}
