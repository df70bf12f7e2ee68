//! The admission reviews that servers are asked: pods as Velero restores them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The restore that the pods are from; the webhook knows it.
pub(crate) const RESTORE: &str = "nightly";

/// Which pod is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// About how large the pod is, in KB.
    pub(crate) kilobytes: usize,
    /// It has hooks.
    pub(crate) hooks: bool,
}

impl Payload {
    /// The review of its creation, as the API server sends it.
    pub(crate) fn review(self) -> anyhow::Result<Bytes> {
        let mut pod = ordinary_pod();
        if self.hooks {
            let annotations = json!({
                "init.hook.restore.velero.io/container-image": "registry.example.com/tools/prepare:3.2",
                "init.hook.restore.velero.io/container-name": "prepare",
                "init.hook.restore.velero.io/command": r#"["/bin/sh", "-c", "sha256sum -c /dump/db.sql.sha256"]"#,
                "post.hook.restore.velero.io/command": r#"["/bin/sh", "-c", "psql -f /dump/db.sql"]"#,
                "post.hook.restore.velero.io/container": "server",
                "post.hook.restore.velero.io/exec-timeout": "10m",
                "post.hook.restore.velero.io/on-error": "Fail",
            });
            json_patch::merge(&mut pod["metadata"]["annotations"], &annotations);
        }
        fill(&mut pod, self.kilobytes * 1000)?;
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
                "requestResource": {"group": "", "version": "v1", "resource": "pods"},
                "name": "db-0",
                "namespace": "shop",
                "operation": "CREATE",
                "userInfo": {
                    "username": "system:serviceaccount:velero:velero",
                    "uid": "014fbff9-a4f1-4b9e-9b2c-000000000000",
                    "groups": ["system:serviceaccounts", "system:serviceaccounts:velero", "system:authenticated"],
                },
                "object": pod,
                "oldObject": null,
                "dryRun": false,
                "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
            },
        });
        Ok(serde_json::to_vec(&review)?.into())
    }
}

/// A database's pod with what clusters put on one: managed fields, a token volume, probes, tolerations.
fn ordinary_pod() -> Value {
    let field = |names: &[&str]| -> Value { names.iter().map(|name| (format!("f:{name}"), json!({}))).collect() };
    let token = json!({"name": "kube-api-access-x7k2p", "readOnly": true,
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
    let probe = json!({"exec": {"command": ["pg_isready", "-U", "postgres"]}, "initialDelaySeconds": 5, "periodSeconds": 10,
        "timeoutSeconds": 3, "successThreshold": 1, "failureThreshold": 6});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "db-0",
            "generateName": "db-",
            "namespace": "shop",
            "labels": {
                "app.kubernetes.io/name": "postgresql", "app.kubernetes.io/instance": "db",
                "apps.kubernetes.io/pod-index": "0", "controller-revision-hash": "db-6f7c9c5d8b",
                "statefulset.kubernetes.io/pod-name": "db-0",
                "velero.io/backup-name": "nightly-20261120", "velero.io/restore-name": RESTORE,
            },
            "annotations": {"backup.velero.io/backup-volumes": "data", "prometheus.io/scrape": "true"},
            "managedFields": [{
                "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
                "time": "2026-11-20T02:00:00Z", "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:metadata": {"f:labels": field(&["app.kubernetes.io/name", "app.kubernetes.io/instance"])},
                    "f:spec": field(&["containers", "dnsPolicy", "enableServiceLinks", "hostname", "restartPolicy",
                        "schedulerName", "securityContext", "subdomain", "terminationGracePeriodSeconds", "volumes"]),
                },
            }],
        },
        "spec": {
            "hostname": "db-0",
            "subdomain": "db",
            "serviceAccountName": "default",
            "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst",
            "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0,
            "schedulerName": "default-scheduler",
            "securityContext": {"fsGroup": 999, "runAsUser": 999, "runAsNonRoot": true},
            "terminationGracePeriodSeconds": 60,
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
            "initContainers": [{
                "name": "restore-wait", "image": "velero/velero:v1.18.3",
                "args": ["0e3c1b52-7c39-4c5f-9a52-2f8f3d8a9b11"], "command": ["/velero-restore-helper"],
                "env": [{"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/restores/data"}],
            }],
            "containers": [{
                "name": "server",
                "image": "postgres:15",
                "imagePullPolicy": "IfNotPresent",
                "ports": [{"name": "tcp", "containerPort": 5432, "protocol": "TCP"}],
                "env": [
                    {"name": "PGDATA", "value": "/data/pgdata"},
                    {"name": "POSTGRES_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
                ],
                "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "livenessProbe": probe,
                "readinessProbe": probe,
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "dump", "mountPath": "/dump"}, token],
            }],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}},
                {"name": "dump", "emptyDir": {}},
                {"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
                ]}},
            ],
        },
        "status": {},
    })
}

/// Makes the pod so many bytes large, with what makes real ones large: environment variables and managed fields.
fn fill(pod: &mut Value, bytes: usize) -> anyhow::Result<()> {
    let mut missing = bytes.saturating_sub(serde_json::to_vec(pod)?.len());
    let (mut variables, mut fields) = (Vec::new(), Map::new());
    for number in 0.. {
        let variable = json!({"name": format!("SETTING_{number:04}"), "value": format!("https://service-{number}.shop.svc:8443/path")});
        let field = format!("k:{{\"name\":\"SETTING_{number:04}\"}}");
        let parts = json!({".": {}, "f:name": {}, "f:value": {}});
        // With the comma and the colon that come with each.
        let size = [&variable, &json!(field), &parts]
            .map(|part| part.to_string().len())
            .iter()
            .sum::<usize>()
            + 3;
        if size > missing {
            break;
        }
        missing -= size;
        variables.push(variable);
        fields.insert(field, parts);
    }
    if let Some(own) = pod["spec"]["containers"][0]["env"].as_array_mut() {
        own.extend(variables);
    }
    pod["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:env"] = Value::Object(fields);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_is_about_as_large_as_it_says() {
        for kilobytes in [6, 200] {
            let payload = Payload { kilobytes, hooks: true };
            let size = payload.review().unwrap().len();
            assert!((kilobytes * 1000..kilobytes * 1000 + 1500).contains(&size), "{size}");
        }
    }
}
