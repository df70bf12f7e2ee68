//! The plain data that all sources of hooks are turned into.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::duration::GoDuration;

/// How long a command may run when the hook does not say (Velero's default).
pub const DEFAULT_EXEC_TIMEOUT: GoDuration = GoDuration::from_secs(30);

/// What a failed hook means for the restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnError {
    /// It is reported and changes nothing else. Also the meaning of "not set", as Velero's documentation says.
    #[default]
    Continue,
    /// The run fails, and hooks of that restore that have not started are cancelled.
    Fail,
}

/// Where a hook was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HookSource {
    /// On the pod.
    Annotation,
    /// In the Restore.
    Spec,
}

/// One command to run in a container of a restored pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostHook {
    /// The Restore spec's name for it, or `<from-annotation>`.
    pub name: String,
    /// Where it was written.
    pub source: HookSource,
    /// The container it runs in; empty only before a pod's first container has been filled in.
    #[serde(default)]
    pub container: String,
    /// The argument vector; no shell is added.
    pub command: Vec<String>,
    /// What its failure means.
    #[serde(default)]
    pub on_error: OnError,
    /// How long one execution may take.
    pub exec_timeout: GoDuration,
    /// How long to wait for the container, from the pod's creation; zero is no limit.
    #[serde(default)]
    pub wait_timeout: GoDuration,
    /// Wait for the container to be ready, not only running.
    #[serde(default)]
    pub wait_for_ready: bool,
    /// Why this hook can't be run, if so: it is then recorded as Skipped with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The annotation key or the path in the Restore that names its container. For messages; empty once it is selected.
    #[serde(skip)]
    pub path: String,
    /// Velero has seen this hook, because the webhook did not: it is Velero's to run, and is only recorded.
    #[serde(default, skip_serializing_if = "is_false")]
    pub left_to_velero: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

/// One container to stand in a restored pod's `initContainers`.
#[derive(Clone, Debug, PartialEq)]
pub struct InitHook {
    /// The Restore spec's name for the hook, or `<from-annotation>`.
    pub name: String,
    /// Where it was written.
    pub source: HookSource,
    /// The container, as raw JSON so that no field is lost.
    pub container: Value,
    /// True when the author gave no name and Reveille or Velero made one.
    pub generated_name: bool,
    /// How long the container may take; zero is no limit.
    pub timeout: GoDuration,
    /// Why this hook can't be used, if so.
    pub error: Option<String>,
    /// The annotation key or the path in the Restore where it was written. For messages.
    pub path: String,
}

impl InitHook {
    /// The container's name; empty if it has none (then [`Self::error`] says so).
    pub fn container_name(&self) -> &str {
        self.container.get("name").and_then(Value::as_str).unwrap_or_default()
    }
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The hook it concerns does not run.
    Error,
    /// Something that its author should know; hooks run.
    Warning,
}

/// Something wrong with what a user wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The annotation key or the path in the Restore.
    pub source: String,
    /// What is wrong, naming the value.
    pub message: String,
}

impl Problem {
    /// A problem that keeps its hook from running.
    pub fn error(source: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            source: source.into(),
            message: message.into(),
        }
    }
    /// A problem that changes nothing.
    pub fn warning(source: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            source: source.into(),
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.source, self.message)
    }
}
