//! What the waiter needs to know of a pod; everything else is dropped when it arrives, to keep the memory of a large
//! restore small.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec, PodStatus};

use super::{events::cut, output::escape, redact::Redactor};
use crate::{
    api::hook_run::PodIdentity,
    names::{PLAN_ANNOTATION, QUEUE_LABEL, RUN_ANNOTATION},
};

/// How far a node's clock may be behind the API server's.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(3);
/// The longest words of the kubelet or the scheduler that are kept, in bytes.
const WORDS_LIMIT: usize = 256;

/// A planned pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodView {
    /// Where it is.
    pub namespace: String,
    /// Which it is.
    pub identity: PodIdentity,
    /// Its resource version.
    pub version: Option<String>,
    /// The plan's text, if it carries one.
    pub plan: Option<String>,
    /// The run mark, if it carries one.
    pub run_mark: Option<String>,
    /// Whether it carries the queue label.
    pub queued: bool,
    /// `status.phase`.
    pub phase: String,
    /// Why it has ended or was thrown out (`Evicted: The node was low on memory.`), if the kubelet says so.
    pub reason: Option<String>,
    /// Why no node takes it, if so.
    pub unscheduled: Option<String>,
    /// The kubelet is ending it (deadline, eviction), and tells the phase only when all containers have ended. Until then it
    /// may call containers ready that are not: it no longer probes them.
    pub ending: bool,
    /// Deletion has begun.
    pub terminating: bool,
    /// The names of its ordinary and init containers; empty if they are not known.
    pub declared: Vec<String>,
    /// State of ordinary and init containers by name. In boxes: a map keeps room for eleven entries, and most pods have two.
    pub containers: BTreeMap<String, Box<ContainerView>>,
}

/// How a container stands.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // facts that do not depend on each other
pub struct ContainerView {
    /// The container runtime's name for it, another after each restart.
    pub id: Option<String>,
    /// It runs now.
    pub running: bool,
    /// It is ready now.
    pub ready: bool,
    /// When it last started.
    pub started_at: Option<Timestamp>,
    /// Its last end: exit code, time and reason.
    pub ended: Option<Ended>,
    /// Why it does not run, as the kubelet says (`ImagePullBackOff`, `CrashLoopBackOff`, …).
    pub waiting: Option<String>,
    /// The same in a sentence, cut.
    pub waiting_message: Option<String>,
    /// It is an init container.
    pub init: bool,
    /// It has ended, and the kubelet will not start it again.
    pub over: bool,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Its exit code.
    pub exit_code: i32,
    /// When.
    pub at: Option<Timestamp>,
    /// When that run of it had started.
    pub started_at: Option<Timestamp>,
}

impl PodView {
    /// Reads a pod; `None` if it lacks what every pod in a cluster has. The redactor takes secrets out of what the kubelet and the
    /// scheduler say.
    pub fn read(pod: &Pod, redactor: &Redactor) -> Option<Self> {
        let metadata = &pod.metadata;
        let annotation = |key: &str| metadata.annotations.as_ref()?.get(key).cloned();
        let status = pod.status.as_ref();
        let spec = pod.spec.as_ref();
        let init = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let ordinary = spec.iter().flat_map(|spec| &spec.containers);
        let init_statuses = status.and_then(|status| status.init_container_statuses.as_ref());
        let statuses = status.and_then(|status| status.container_statuses.as_ref());
        let init_views = init_statuses.into_iter().flatten().map(|status| {
            let mut view = ContainerView::read(status, redactor);
            view.init = true;
            (status.name.clone(), Box::new(view))
        });
        let views = statuses.into_iter().flatten().map(|status| {
            let mut view = ContainerView::read(status, redactor);
            view.over = spec.is_some_and(|spec| stays_ended(status, spec));
            (status.name.clone(), Box::new(view))
        });
        Some(Self {
            namespace: metadata.namespace.clone()?,
            identity: PodIdentity {
                name: metadata.name.clone()?,
                uid: metadata.uid.clone()?,
                created_at: metadata.creation_timestamp.as_ref()?.0,
            },
            version: metadata.resource_version.clone(),
            plan: annotation(PLAN_ANNOTATION),
            run_mark: annotation(RUN_ANNOTATION),
            queued: metadata
                .labels
                .as_ref()
                .is_some_and(|labels| labels.contains_key(QUEUE_LABEL)),
            phase: status.and_then(|status| status.phase.clone()).unwrap_or_default(),
            reason: status.and_then(|status| words(status.reason.as_deref()?, status.message.as_deref(), redactor)),
            unscheduled: status.and_then(|status| unscheduled(status, redactor)),
            ending: status.is_some_and(is_ending),
            terminating: metadata.deletion_timestamp.is_some(),
            declared: init.chain(ordinary).map(|container| container.name.clone()).collect(),
            containers: init_views.chain(views).collect(),
        })
    }

    /// The pod without container states that are older than itself: those that Velero wrote from a backup. Only for pods of
    /// which that is known, for the clocks of nodes may be behind.
    #[must_use]
    pub fn without_foreign_states(mut self) -> Self {
        let born = self
            .identity
            .created_at
            .saturating_sub(CLOCK_SKEW)
            .unwrap_or(self.identity.created_at);
        let foreign = |start: Option<Timestamp>| start.is_some_and(|start| start < born);
        for view in self.containers.values_mut() {
            let ended_before = view.ended.as_ref().is_some_and(|ended| foreign(ended.started_at));
            if foreign(view.started_at) || ended_before {
                **view = ContainerView::default();
            }
        }
        self
    }

    /// State of an ordinary or init container.
    pub fn container(&self, name: &str) -> Option<&ContainerView> {
        self.containers.get(name).map(AsRef::as_ref)
    }

    /// Whether the pod has run to its end, or is about to.
    pub fn has_ended(&self) -> bool {
        self.ending || matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl ContainerView {
    fn read(status: &ContainerStatus, redactor: &Redactor) -> Self {
        let state = status.state.as_ref();
        let running = state.and_then(|state| state.running.as_ref());
        let waiting = state.and_then(|state| state.waiting.as_ref());
        let ended = state
            .and_then(|state| state.terminated.as_ref())
            .or_else(|| status.last_state.as_ref().and_then(|state| state.terminated.as_ref()));
        Self {
            id: status.container_id.clone(),
            running: running.is_some(),
            ready: status.ready,
            started_at: running
                .and_then(|running| running.started_at.as_ref())
                .map(|time| time.0),
            ended: ended.map(|ended| Ended {
                exit_code: ended.exit_code,
                at: ended.finished_at.as_ref().map(|time| time.0),
                started_at: ended.started_at.as_ref().map(|time| time.0),
            }),
            waiting: waiting.and_then(|waiting| waiting.reason.clone()),
            waiting_message: waiting
                .and_then(|waiting| waiting.message.as_deref())
                .map(|message| kept(message, redactor)),
            init: false,
            over: false,
        }
    }
}

/// Whether a container has ended and its restart policy lets it be.
fn stays_ended(status: &ContainerStatus, spec: &PodSpec) -> bool {
    let Some(ended) = status.state.as_ref().and_then(|state| state.terminated.as_ref()) else {
        return false;
    };
    let own = spec
        .containers
        .iter()
        .find(|container| container.name == status.name)
        .and_then(|container| container.restart_policy.as_deref());
    match own.or(spec.restart_policy.as_deref()) {
        Some("Never") => true,
        Some("OnFailure") => ended.exit_code == 0,
        _ => false,
    }
}

/// Whether the kubelet has decided that the pod ends.
fn is_ending(status: &PodStatus) -> bool {
    let readiness = status.conditions.iter().flatten();
    let mut readiness = readiness.filter(|condition| matches!(condition.type_.as_str(), "Ready" | "ContainersReady"));
    readiness.any(|condition| {
        let why = condition.reason.as_deref();
        condition.status == "False" && matches!(why, Some("PodFailed" | "PodCompleted"))
    })
}

/// What the scheduler says of a pod that it can't place.
fn unscheduled(status: &PodStatus, redactor: &Redactor) -> Option<String> {
    let conditions = status.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    (scheduled.status == "False")
        .then(|| words(scheduled.reason.as_deref()?, scheduled.message.as_deref(), redactor))
        .flatten()
}

/// A reason with its message; nothing without a reason.
fn words(reason: &str, message: Option<&str>, redactor: &Redactor) -> Option<String> {
    let text = match message {
        Some(message) if !message.is_empty() => format!("{reason}: {message}"),
        _ => reason.to_owned(),
    };
    (!reason.is_empty()).then(|| kept(&text, redactor))
}

/// What is kept of others' words: no secret, nor half of one.
fn kept(text: &str, redactor: &Redactor) -> String {
    cut(&escape(&redactor.clean(text)), WORDS_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_words_hold_no_secret_nor_half_of_one() {
        let long = format!(
            "{} password=\"{}",
            "x".repeat(WORDS_LIMIT - 30),
            "secret words ".repeat(10)
        );
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "reason": "Evicted", "message": "token=abc.def was in its way",
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "No", "message": "secret: abc.def"}],
                "containerStatuses": [{
                    "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": "CreateContainerError", "message": format!("{long}\"")}},
                }],
            },
        }))
        .unwrap();
        let pod = PodView::read(&pod, Redactor::built_in()).unwrap();
        let words = [pod.reason, pod.unscheduled, pod.containers["c"].waiting_message.clone()].map(Option::unwrap);
        for text in &words {
            assert!(!text.contains("abc") && !text.contains("secret words"), "{text}");
        }
        assert!(
            words[0].contains("Evicted: ") && words[0].contains("was in its way"),
            "{}",
            words[0]
        );
    }
}
