//! Is this pod being restored, and by which Restore?
//!
//! Velero's label alone says neither: it is backed up with the pod and comes back, and it names neither namespace nor uid.

use std::{borrow::Cow, collections::BTreeMap};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{matching::IncludeExclude, restore_spec::Rules};
use crate::{
    control::Request,
    digest,
    names::{
        CANCEL_ANNOTATION, MODE_ANNOTATION, OWNER_ANNOTATION, OWNER_REVEILLE, PAUSE_ANNOTATION, RESTIC_WAIT,
        RESTORE_WAIT, RESULT_ANNOTATION, STATUS_ANNOTATION, VELERO_RESTORE_LABEL, WRITTEN_ANNOTATION,
    },
};

/// What Reveille knows of a Velero Restore. Read from raw JSON, so that one bad Restore does not hide the others.
#[derive(Clone, Debug)]
pub struct RestoreInfo {
    /// Where it lives: Velero's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// `status.phase`; empty before Velero has seen it.
    pub phase: String,
    /// When it was created, by the API server's clock.
    pub created: Option<Timestamp>,
    /// `status.startTimestamp`: Velero has begun it, by Velero's clock.
    pub started: Option<Timestamp>,
    /// `status.completionTimestamp`.
    pub completed: Option<Timestamp>,
    /// True when Reveille runs its post hooks.
    pub marked: bool,
    /// The result annotation as it stands.
    pub result: Option<String>,
    /// What Reveille has written on it, as it stands there ([`crate::result::Written`]).
    pub written: Option<String>,
    /// Somebody has cancelled what has not started.
    pub cancel: Option<Request>,
    /// Somebody has paused it.
    pub pause: Option<Request>,
    /// `status.hookStatus`.
    pub hook_counts: HookCounts,
    /// Its deletion has begun.
    pub deleting: bool,
    /// The mode annotation as written.
    pub mode: Option<String>,
    /// Its source namespaces.
    pub namespaces: IncludeExclude,
    /// Source namespace to target namespace.
    pub namespace_mapping: BTreeMap<String, String>,
    /// Whether it restores the status of pods that don't say so themselves.
    pub pod_status: bool,
    /// Its hooks, as far as they are Reveille's to run.
    pub rules: Rules,
}

impl RestoreInfo {
    /// Reads a Restore; `None` if it has no name, namespace or uid (it never came from an API server).
    pub fn read(restore: &Value) -> Option<Self> {
        let metadata = restore.get("metadata")?;
        let text = |field: &str| metadata.get(field).and_then(Value::as_str).map(str::to_owned);
        let annotation = |key: &str| metadata.get("annotations")?.get(key)?.as_str();
        let marked = annotation(OWNER_ANNOTATION) == Some(OWNER_REVEILLE);
        let spec = restore.get("spec").unwrap_or(&Value::Null);
        let status = restore.get("status").unwrap_or(&Value::Null);
        let strings = |key: &str| {
            let list = spec.get(key).and_then(Value::as_array);
            list.into_iter()
                .flatten()
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect()
        };
        let time = |object: &Value, key: &str| {
            object
                .get(key)
                .and_then(Value::as_str)
                .and_then(|time| time.parse().ok())
        };
        let status_lists = spec.get("restoreStatus").filter(|lists| !lists.is_null()).map(|lists| {
            let list = |key: &str| {
                let items = lists.get(key).and_then(Value::as_array);
                items
                    .into_iter()
                    .flatten()
                    .filter_map(|item| item.as_str().map(str::to_owned))
                    .collect()
            };
            IncludeExclude {
                include: list("includedResources"),
                exclude: list("excludedResources"),
            }
        });
        let mapping = spec.get("namespaceMapping").and_then(Value::as_object);
        Some(Self {
            namespace: text("namespace")?,
            name: text("name")?,
            uid: text("uid")?,
            phase: status
                .get("phase")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            created: time(metadata, "creationTimestamp"),
            started: time(status, "startTimestamp"),
            completed: time(status, "completionTimestamp"),
            marked,
            result: annotation(RESULT_ANNOTATION).map(str::to_owned),
            written: annotation(WRITTEN_ANNOTATION).map(str::to_owned),
            cancel: annotation(CANCEL_ANNOTATION).and_then(Request::read),
            pause: annotation(PAUSE_ANNOTATION).and_then(Request::read),
            hook_counts: HookCounts::read(status),
            deleting: metadata.get("deletionTimestamp").is_some(),
            mode: annotation(MODE_ANNOTATION).map(str::to_owned),
            namespaces: IncludeExclude {
                include: strings("includedNamespaces"),
                exclude: strings("excludedNamespaces"),
            },
            namespace_mapping: mapping
                .into_iter()
                .flatten()
                .filter_map(|(from, to)| Some((from.clone(), to.as_str()?.to_owned())))
                .collect(),
            pod_status: status_lists.is_some_and(|lists| lists.includes_pods()),
            rules: Rules::of_restore(restore, !marked),
        })
    }

    /// A result was promised (it is marked) and has not been written on it.
    pub fn result_is_open(&self) -> bool {
        self.marked && self.result.as_deref() == Some("Pending")
    }

    /// A result was promised, and none has ever been written on it.
    pub fn was_never_judged(&self) -> bool {
        self.result_is_open() && self.written.is_none()
    }

    /// Velero is done with it, whatever came of it.
    pub fn finished(&self) -> bool {
        is_terminal(&self.phase)
    }

    /// Whether Velero writes the status of a pod with these annotations.
    pub fn restores_status_of(&self, annotations: &BTreeMap<String, String>) -> bool {
        match annotations.get(STATUS_ANNOTATION).map(String::as_str) {
            Some("true") => true,
            Some("false") => false,
            _ => self.pod_status,
        }
    }

    /// Whether it restores into this namespace.
    pub fn targets(&self, namespace: &str) -> bool {
        let mapped = self
            .namespace_mapping
            .iter()
            .filter(|(_, to)| *to == namespace)
            .map(|(from, _)| from.as_str());
        let own = (!self.namespace_mapping.contains_key(namespace)).then_some(namespace);
        mapped.chain(own).any(|source| self.namespaces.includes(source))
    }
}

/// The numbers in `status.hookStatus` of a Restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookCounts {
    /// Post hooks that were to be run.
    pub attempted: u64,
    /// Those of them that did not succeed.
    pub failed: u64,
}

impl HookCounts {
    fn read(status: &Value) -> Self {
        let number = |field: &str| status.get("hookStatus")?.get(field)?.as_u64();
        Self {
            attempted: number("hooksAttempted").unwrap_or_default(),
            failed: number("hooksFailed").unwrap_or_default(),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            attempted: self.attempted.saturating_add(other.attempted),
            failed: self.failed.saturating_add(other.failed),
        }
    }

    /// What is left without the others.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            attempted: self.attempted.saturating_sub(other.attempted),
            failed: self.failed.saturating_sub(other.failed),
        }
    }
}

/// Whether a Restore in this phase is over.
pub fn is_terminal(phase: &str) -> bool {
    matches!(
        phase,
        "Completed" | "PartiallyFailed" | "Failed" | "FailedValidation" | "Deleting"
    )
}

/// A Restore's name as Velero writes it into labels: over 63 characters it is cut to 57 and 6 hex digits of its SHA-256.
pub fn label_value(name: &str) -> Cow<'_, str> {
    if name.len() <= 63 {
        return Cow::Borrowed(name);
    }
    let hex = digest::hex(name, 3);
    let cut: String = name.chars().take(57).collect();
    Cow::Owned(format!("{cut}{hex}"))
}

/// The answer to "is this pod being restored".
#[derive(Clone, Debug)]
pub enum Restored<'a> {
    /// By this Velero Restore.
    By(&'a RestoreInfo),
    /// By another tool: the pod carries this marker label.
    ByMarker(String),
    /// No, and why.
    No(String),
    /// It can't be told at the moment, and why.
    Unknown(String),
}

/// The Restores that are known.
#[derive(Clone, Copy, Debug)]
pub struct KnownRestores<'a> {
    /// All of them.
    pub restores: &'a [&'a RestoreInfo],
    /// `Err` with the reason when the list may lack some.
    pub complete: Result<(), &'a str>,
}

/// Decides whether a pod is being restored.
///
/// `creator`: the user name of the request that creates it, if known. `marker_labels`: labels by which other restore tools
/// mark their pods.
pub fn restored<'a>(
    pod: &Value,
    namespace: &str,
    creator: Option<&str>,
    known: KnownRestores<'a>,
    marker_labels: &[String],
) -> Restored<'a> {
    let label = |key: &str| pod.get("metadata")?.get("labels")?.get(key)?.as_str();
    // A label of Velero's that says nothing does not hide another tool's marker.
    let otherwise = |reason: String| match marker_labels.iter().find(|key| label(key).is_some()) {
        Some(key) => Restored::ByMarker(key.clone()),
        None => Restored::No(reason),
    };
    let Some(value) = label(VELERO_RESTORE_LABEL) else {
        return otherwise(format!("it has no label {VELERO_RESTORE_LABEL}"));
    };
    let named: Vec<&RestoreInfo> = known
        .restores
        .iter()
        .copied()
        .filter(|restore| label_value(&restore.name) == value)
        .collect();
    let running: Vec<&RestoreInfo> = named.iter().copied().filter(|restore| !restore.finished()).collect();
    if let [only] = running.as_slice() {
        return Restored::By(only);
    }
    if running.is_empty() {
        return match (known.complete, named.first()) {
            (Err(reason), _) => Restored::Unknown(format!("the Restore {value:?} is not known here: {reason}")),
            (Ok(()), Some(restore)) => otherwise(format!(
                "its label {VELERO_RESTORE_LABEL}={value} is stale: Restore {}/{} is {}",
                restore.namespace, restore.name, restore.phase
            )),
            (Ok(()), None) => otherwise(format!(
                "its label {VELERO_RESTORE_LABEL}={value} is stale: there is no such Restore"
            )),
        };
    }
    among(&running, pod, namespace, creator)
}

/// Whether a pod's restore label is stale beyond doubt, though the Restores known may be a moment old: the Restores `named` by
/// it are over, and nothing speaks for a newer one of the same name.
///
/// Two things would: a Restore's uid in the pod that is none of theirs, and a creator from the namespace of one of them, which
/// may be Velero's server at work on the next Restore.
pub fn surely_stale(pod: &Value, creator: Option<&str>, named: &[&RestoreInfo]) -> bool {
    let beside = creator.and_then(server_namespace);
    let uids = wait_uids(pod);
    !named.is_empty()
        && creator.is_some()
        && named
            .iter()
            .all(|restore| restore.finished() && Some(restore.namespace.as_str()) != beside)
        && uids.iter().all(|uid| named.iter().any(|restore| restore.uid == **uid))
}

/// The namespace of a service account.
fn server_namespace(user: &str) -> Option<&str> {
    user.strip_prefix("system:serviceaccount:")?.split(':').next()
}

/// Several unfinished Restores have a name of this label form.
fn among<'a>(running: &[&'a RestoreInfo], pod: &Value, namespace: &str, creator: Option<&str>) -> Restored<'a> {
    let uids = wait_uids(pod);
    if let Some(restore) = running.iter().find(|restore| uids.contains(&restore.uid.as_str())) {
        return Restored::By(restore);
    }
    let candidates: Vec<&RestoreInfo> = running
        .iter()
        .copied()
        .filter(|restore| restore.targets(namespace))
        .collect();
    // Velero's server runs beside its Restores.
    let server_namespace = creator.and_then(server_namespace);
    let beside: Vec<&RestoreInfo> = candidates
        .iter()
        .copied()
        .filter(|restore| Some(restore.namespace.as_str()) == server_namespace)
        .collect();
    match (beside.as_slice(), candidates.as_slice()) {
        ([only], _) | ([], [only]) => Restored::By(only),
        _ => {
            let names: Vec<String> = running
                .iter()
                .map(|restore| format!("{}/{}", restore.namespace, restore.name))
                .collect();
            Restored::Unknown(format!("it may belong to any of the Restores {}", names.join(", ")))
        }
    }
}

/// The Restore uids in the arguments of the pod's wait containers: the only place where an arriving pod carries one.
pub fn wait_uids(pod: &Value) -> Vec<&str> {
    let containers = pod
        .get("spec")
        .and_then(|spec| spec.get("initContainers"))
        .and_then(Value::as_array);
    let waits = containers.into_iter().flatten().filter(|container| is_wait(container));
    waits
        .filter_map(|container| container.get("args")?.as_array()?.first()?.as_str())
        .collect()
}

/// Whether a container is the one that waits for the volumes. Known by name: a ConfigMap of Velero can change the rest.
pub fn is_wait(container: &Value) -> bool {
    matches!(
        container.get("name").and_then(Value::as_str),
        Some(RESTORE_WAIT | RESTIC_WAIT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn restore(namespace: &str, name: &str, uid: &str, phase: &str, spec: Value) -> RestoreInfo {
        RestoreInfo::read(&json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}, "spec": spec, "status": {"phase": phase}}))
            .expect("a restore")
    }

    fn pod(label: Option<&str>, wait_uid: Option<&str>) -> Value {
        let mut pod = json!({"metadata": {"labels": {}}, "spec": {"initContainers": []}});
        if let Some(label) = label {
            pod["metadata"]["labels"][VELERO_RESTORE_LABEL] = json!(label);
        }
        if let Some(uid) = wait_uid {
            pod["spec"]["initContainers"] = json!([{"name": "restore-wait", "args": [uid]}]);
        }
        pod
    }

    /// `Ok(uid)` or the first word of the other answers.
    fn ask(
        pod: &Value,
        creator: Option<&str>,
        restores: &[RestoreInfo],
        complete: Result<(), &str>,
    ) -> Result<String, &'static str> {
        let references: Vec<&RestoreInfo> = restores.iter().collect();
        let known = KnownRestores {
            restores: &references,
            complete,
        };
        match restored(pod, "app", creator, known, &["tool.example/restored".to_owned()]) {
            Restored::By(restore) => Ok(restore.uid.clone()),
            Restored::ByMarker(_) => Err("marker"),
            Restored::No(_) => Err("no"),
            Restored::Unknown(_) => Err("unknown"),
        }
    }

    #[test]
    fn long_names_are_cut_and_hashed_as_velero_does() {
        assert_eq!(label_value(&"a".repeat(63)), "a".repeat(63));
        let long = "the-really-long-location-name-that-is-much-more-than-63-characters";
        // From Velero's own test of GetValidName.
        assert_eq!(
            label_value(long),
            "the-really-long-location-name-that-is-much-more-than-63-c69e779"
        );
    }

    #[test]
    fn label_and_phase() {
        let running = [restore("velero", "r", "u1", "InProgress", json!({}))];
        let done = [restore("velero", "r", "u1", "Completed", json!({}))];
        assert_eq!(ask(&pod(Some("r"), None), None, &running, Ok(())), Ok("u1".to_owned()));
        assert_eq!(ask(&pod(Some("r"), None), None, &done, Ok(())), Err("no"));
        assert_eq!(ask(&pod(Some("x"), None), None, &running, Ok(())), Err("no"));
        assert_eq!(
            ask(&pod(Some("x"), None), None, &running, Err("not synced")),
            Err("unknown")
        );
        assert_eq!(ask(&pod(None, None), None, &running, Ok(())), Err("no"));
        let both = json!({"metadata": {"labels": {"tool.example/restored": "1", VELERO_RESTORE_LABEL: "x"}}});
        assert_eq!(ask(&both, None, &running, Ok(())), Err("marker"));
        let marked = json!({"metadata": {"labels": {"tool.example/restored": "1"}}});
        assert_eq!(ask(&marked, None, &running, Ok(())), Err("marker"));
    }

    #[test]
    fn between_several_uid_then_creator_then_target() {
        let two = [
            restore(
                "velero-a",
                "r",
                "u1",
                "InProgress",
                json!({"includedNamespaces": ["app"]}),
            ),
            restore(
                "velero-b",
                "r",
                "u2",
                "InProgress",
                json!({"includedNamespaces": ["old"], "namespaceMapping": {"old": "app"}}),
            ),
        ];
        let p = pod(Some("r"), None);
        assert_eq!(
            ask(&pod(Some("r"), Some("u2")), None, &two, Ok(())),
            Ok("u2".to_owned())
        );
        assert_eq!(
            ask(&p, Some("system:serviceaccount:velero-b:velero"), &two, Ok(())),
            Ok("u2".to_owned())
        );
        assert_eq!(ask(&p, None, &two, Ok(())), Err("unknown"));
        let other_target = [
            restore(
                "velero-a",
                "r",
                "u1",
                "InProgress",
                json!({"includedNamespaces": ["elsewhere"]}),
            ),
            restore("velero-b", "r", "u2", "New", json!({})),
        ];
        assert_eq!(ask(&p, None, &other_target, Ok(())), Ok("u2".to_owned()));
    }

    #[test]
    fn a_label_is_surely_stale_only_if_no_newer_restore_can_be_meant() {
        let done = restore("velero", "r", "u1", "Completed", json!({}));
        let running = restore("other", "r", "u2", "InProgress", json!({}));
        let controller = Some("system:serviceaccount:kube-system:replicaset-controller");
        let velero = Some("system:serviceaccount:velero:velero");
        let plain = pod(Some("r"), None);
        assert!(surely_stale(&plain, controller, &[&done]));
        assert!(surely_stale(&plain, Some("admin"), &[&done]));
        assert!(surely_stale(&pod(Some("r"), Some("u1")), controller, &[&done]));
        assert!(!surely_stale(&plain, velero, &[&done]));
        assert!(!surely_stale(&plain, None, &[&done]));
        assert!(!surely_stale(&pod(Some("r"), Some("u9")), controller, &[&done]));
        assert!(!surely_stale(&plain, controller, &[&done, &running]));
        assert!(!surely_stale(&plain, controller, &[]));
    }

    #[test]
    fn a_mapped_namespace_is_no_target_of_its_own() {
        let restore = restore("v", "r", "u", "", json!({"namespaceMapping": {"app": "app-copy"}}));
        assert!(!restore.targets("app") && restore.targets("app-copy") && restore.targets("other"));
    }
}
