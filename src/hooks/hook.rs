//! The plain data that all sources of hooks are turned into.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::duration::GoDuration;

/// How long a command may run when the hook does not say (Velero's default).
pub const DEFAULT_EXEC_TIMEOUT: GoDuration = GoDuration::from_secs(30);
/// The pause before the second attempt when the hook does not say.
pub const DEFAULT_RETRY_BACKOFF: GoDuration = GoDuration::from_secs(10);
/// The most retries that a hook may ask for.
pub const MAX_RETRIES: u32 = 20;
/// How often a command is run again after an unknown end when the hook says that it may be, and not how often.
const DEFAULT_RETRIES_ON_UNKNOWN: u32 = 3;

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

/// What becomes of a hook of which nobody knows how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnUnknown {
    /// It stays Unknown, which counts as a failure. Its command is not run again.
    #[default]
    Fail,
    /// Its command is run again, although it may have run to its end: its author says that this is harmless.
    Retry,
}

/// Whether and when a command that did not succeed is run again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// How often, after the first time; none is never, but for [`OnUnknown::Retry`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The pause before the second attempt; it doubles with each further one.
    #[serde(default = "default_backoff")]
    pub backoff: GoDuration,
    /// Whether an unknown end is a reason, too.
    #[serde(default)]
    pub on_unknown: OnUnknown,
}

fn default_backoff() -> GoDuration {
    DEFAULT_RETRY_BACKOFF
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            limit: None,
            backoff: DEFAULT_RETRY_BACKOFF,
            on_unknown: OnUnknown::default(),
        }
    }
}

impl Retry {
    /// How many further attempts there may be.
    pub fn limit(&self) -> u32 {
        let unset = match self.on_unknown {
            OnUnknown::Fail => 0,
            OnUnknown::Retry => DEFAULT_RETRIES_ON_UNKNOWN,
        };
        self.limit.unwrap_or(unset)
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// Whether and when it is run again.
    #[serde(default, skip_serializing_if = "Retry::is_default")]
    pub retry: Retry,
    /// A folder in the container in which the command's exit code and output are kept until they are recorded. The command then
    /// runs under a small shell script, and its end is known whatever happens to the waiter or to the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_file: Option<String>,
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
