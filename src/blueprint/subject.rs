//! What an action works on, and what templates may know of it.

use std::collections::BTreeMap;

use serde_json::Value;

/// The kinds of subject that Kanister knows, and any other one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SubjectKind {
    /// `.Namespace`.
    Namespace,
    /// `.StatefulSet`.
    StatefulSet,
    /// `.Deployment`.
    Deployment,
    /// Of `OpenShift`, `.DeploymentConfig`.
    DeploymentConfig,
    /// `.PVC`.
    Pvc,
    /// Only `.Object`. Holds the kind as it was written.
    Other(String),
}

/// Group, version and plural name of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    /// The version alone.
    pub version: &'static str,
    /// The plural name.
    pub plural: &'static str,
}

impl SubjectKind {
    /// From a subject's `type`, in any case, as Kanister compares it.
    pub fn parse(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "namespace" => Self::Namespace,
            "statefulset" => Self::StatefulSet,
            "deployment" => Self::Deployment,
            "deploymentconfig" => Self::DeploymentConfig,
            "pvc" => Self::Pvc,
            _ => Self::Other(text.to_owned()),
        }
    }

    /// Where the API serves this kind; nothing for [`Self::Other`].
    pub fn resource(&self) -> Option<Resource> {
        let (group, version, plural) = match self {
            Self::Namespace => ("", "v1", "namespaces"),
            Self::StatefulSet => ("apps", "v1", "statefulsets"),
            Self::Deployment => ("apps", "v1", "deployments"),
            Self::DeploymentConfig => ("apps.openshift.io", "v1", "deploymentconfigs"),
            Self::Pvc => ("", "v1", "persistentvolumeclaims"),
            Self::Other(_) => return None,
        };
        Some(Resource { group, version, plural })
    }

    /// The name of its own field in templates.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Namespace => Some("Namespace"),
            Self::StatefulSet => Some("StatefulSet"),
            Self::Deployment => Some("Deployment"),
            Self::DeploymentConfig => Some("DeploymentConfig"),
            Self::Pvc => Some("PVC"),
            Self::Other(_) => None,
        }
    }
}

/// What an action works on: a snapshot, taken when the action starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// Its kind.
    pub kind: SubjectKind,
    /// Its name. Of a namespace, the namespace.
    pub name: String,
    /// Its namespace. Of a namespace, itself.
    pub namespace: String,
    /// The running pods of a workload, in the API's order.
    pub pods: Vec<WorkloadPod>,
    /// The whole object; nothing for a namespace that is not there yet.
    pub object: Option<Value>,
}

/// One running pod of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadPod {
    /// Its name.
    pub name: String,
    /// Its containers, as its status lists them.
    pub containers: Vec<String>,
    /// Where its containers mount which claim: claim to path.
    pub claims: BTreeMap<String, String>,
}

impl Subject {
    /// A namespace as the subject, which is what a hook without a subject gets.
    pub fn namespace(name: &str, object: Option<Value>) -> Self {
        Self {
            kind: SubjectKind::Namespace,
            name: name.to_owned(),
            namespace: name.to_owned(),
            pods: Vec::new(),
            object,
        }
    }

    /// Any other subject. `pods` and `replica_sets` are all of its namespace, as the API lists them; they are read for
    /// workloads only. An error if a Deployment's current ReplicaSet is not among them.
    pub fn of(kind: SubjectKind, object: Value, pods: &[Value], replica_sets: &[Value]) -> Result<Self, String> {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
        let pods = match kind {
            SubjectKind::StatefulSet => owned_pods(&text("/metadata/uid"), pods),
            SubjectKind::Deployment => owned_pods(&current_replica_set(&object, &name, replica_sets)?, pods),
            _ => Vec::new(),
        };
        if kind == SubjectKind::Namespace {
            return Ok(Self::namespace(&name, Some(object)));
        }
        Ok(Self {
            kind,
            name,
            namespace,
            pods,
            object: Some(object),
        })
    }
}

/// The uid of the ReplicaSet that a Deployment's revision annotation names.
fn current_replica_set(deployment: &Value, name: &str, replica_sets: &[Value]) -> Result<String, String> {
    let uid = uid(deployment);
    let wanted = revision(deployment);
    let current = replica_sets
        .iter()
        .find(|set| is_owned_by(set, uid) && revision(set) == wanted)
        .ok_or_else(|| {
            format!(
                "the Deployment {name} has no ReplicaSet of its revision {}",
                wanted.unwrap_or("(none)")
            )
        })?;
    Ok(self::uid(current).to_owned())
}

fn revision(object: &Value) -> Option<&str> {
    let annotations = object.get("metadata")?.get("annotations")?;
    annotations.get("deployment.kubernetes.io/revision")?.as_str()
}

fn uid(object: &Value) -> &str {
    object
        .pointer("/metadata/uid")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn is_owned_by(object: &Value, owner: &str) -> bool {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    !owner.is_empty()
        && owners.is_some_and(|owners| {
            owners
                .iter()
                .any(|one| one.get("uid").and_then(Value::as_str) == Some(owner))
        })
}

/// The pods in phase Running, also those that are being deleted.
fn owned_pods(owner: &str, pods: &[Value]) -> Vec<WorkloadPod> {
    let running = |pod: &&Value| pod.pointer("/status/phase").and_then(Value::as_str) == Some("Running");
    let of_workload = pods.iter().filter(running).filter(|pod| is_owned_by(pod, owner));
    of_workload.map(workload_pod).collect()
}

fn workload_pod(pod: &Value) -> WorkloadPod {
    let statuses = list(pod.pointer("/status/containerStatuses"));
    WorkloadPod {
        name: text(pod.get("metadata"), "name").to_owned(),
        containers: statuses
            .iter()
            .map(|status| text(Some(status), "name").to_owned())
            .collect(),
        claims: claims(pod),
    }
}

/// Where the containers mount which claim. Read from the pod itself, which names its claims however they came about.
fn claims(pod: &Value) -> BTreeMap<String, String> {
    let mut claim_of_volume = BTreeMap::new();
    for volume in list(pod.pointer("/spec/volumes")) {
        if let Some(claim) = volume
            .pointer("/persistentVolumeClaim/claimName")
            .and_then(Value::as_str)
        {
            claim_of_volume.insert(text(Some(volume), "name"), claim);
        }
    }
    let containers = list(pod.pointer("/spec/containers")).iter();
    let mounts = containers.flat_map(|container| list(container.get("volumeMounts")));
    let of_claims = mounts.filter_map(|mount| {
        let claim = claim_of_volume.get(text(Some(mount), "name"))?;
        Some(((*claim).to_owned(), text(Some(mount), "mountPath").to_owned()))
    });
    of_claims.collect()
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(object: Option<&'a Value>, key: &str) -> &'a str {
    object.and_then(|object| object.get(key)?.as_str()).unwrap_or_default()
}
