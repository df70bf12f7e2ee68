//! What the API server wrote down about the calls it got.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
};

use reveille::names::VELERO_DOMAIN;
use serde_json::Value;

use super::{Scenario, audit_files, eventually};

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
        let about = format!("\"namespace\":\"{}\",\"name\":\"{pod}\"", self.namespace);
        let mut log = AuditLog::default();
        let mut lines = Vec::new();
        eventually("the audit log tells of the creation", async || {
            lines.extend(log.read_on(|line| line.contains(&about) && line.contains("\"verb\":\"create\"")));
            let calls: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
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

/// Reads the audit log, and goes on where it has stopped.
#[derive(Default)]
struct AuditLog {
    /// How much of each file has been read. A file that is set aside gets another name and stays the same.
    read: BTreeMap<u64, u64>,
}

impl AuditLog {
    /// The whole lines that are new, as far as they are wanted.
    fn read_on(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for path in audit_files() {
            // It may be set aside in this very moment; then the next look finds it.
            let Ok(mut file) = File::open(path) else { continue };
            let read = self.read.entry(file.metadata().unwrap().ino()).or_default();
            file.seek(SeekFrom::Start(*read)).unwrap();
            let mut file = BufReader::new(file);
            let mut line = String::new();
            while file.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
                *read += line.len() as u64;
                found.extend(wanted(&line).then(|| line.clone()));
                line.clear();
            }
        }
        found
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
