//! What `RestoreAction` and `BackupAction` have in common: hooks around a Velero object, and the record of each step.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{blueprint::model::Artifacts, duration::GoDuration};

/// Fields of any kind, kept as they were written.
pub type Fields = Map<String, Value>;

/// The schema of [`Fields`]: an object about which the API server knows nothing more.
pub(super) fn any_fields(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// Which action of which Blueprint runs when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Before Velero is asked to do anything, after everything has been checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_hook: Option<HookReference>,
    /// After Velero has succeeded, and with it the post-restore hooks of the restored pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_success: Option<HookReference>,
    /// After an earlier step has failed and its retries are used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<HookReference>,
}

/// One action of a Blueprint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookReference {
    /// The Blueprint's name; it lies in the namespace of the actions.
    pub blueprint: String,
    /// Which of its actions.
    pub action_name: String,
    /// What it works on, for restores; the target namespace if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
}

/// A resource in the target namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Its namespace: the target namespace, which is also meant if this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `statefulset`, `deployment`, `deploymentconfig`, `pvc` or `namespace`, in any case; another type needs `resource` and
    /// `apiVersion`.
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub type_: String,
    /// API group of another type; empty for the core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// API version of another type, without its group: `v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Resource name of another type, in the plural: `postgresqls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
}

/// Labels and annotations of the Velero object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectTemplate {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A Velero object that somebody else has created, whose annotation asks for hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExistingObject {
    /// Its name.
    pub name: String,
    /// Its uid: a later object of the same name is another one.
    pub uid: String,
}

/// What counts when Velero ends `PartiallyFailed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PartiallyFailed {
    /// It is a failure: `onFailure`.
    #[default]
    Failure,
    /// It is a success: `onSuccess`. A failed post-restore hook is a failure all the same.
    Success,
}

/// Go's durations, as far as they may be limits, and none that is too long to be counted. The API server refuses others, as an
/// action that can't be read would get no answer.
const DURATION: &str = r"^\+?(0|(([0-9]{1,5}(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$";

/// How hooks are run. What is unset is as the controller's flags say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookOptions {
    /// How often a `preHook` or `onSuccess` that has failed is tried again, 0 to 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub hook_retries: Option<u32>,
    /// How long one try of a hook may take, all its phases together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = DURATION, "maxLength" = 60))]
    pub hook_timeout: Option<GoDuration>,
    /// How long Velero and the post-restore hooks may take; after that the action has failed, whatever Velero does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = DURATION, "maxLength" = 60))]
    pub velero_timeout: Option<GoDuration>,
    /// What counts when Velero ends `PartiallyFailed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partially_failed: Option<PartiallyFailed>,
}

/// How an action stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ActionPhase {
    /// Nothing has been looked at.
    #[default]
    New,
    /// All was found; the preHooks run.
    PreHook,
    /// Velero works, or the post-restore hooks do.
    Velero,
    /// The onSuccess and onFailure hooks run.
    PostHook,
    /// All went well.
    Succeeded,
    /// Something did not.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It can't be run as it is written; nothing was run.
    Refused,
}

impl ActionPhase {
    /// Nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Refused)
    }
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HookName {
    /// `hooks.preHook`
    PreHook,
    /// `exportHooks.preHook`
    ExportPreHook,
    /// `hooks.onSuccess`
    OnSuccess,
    /// `hooks.onFailure`
    OnFailure,
    /// `exportHooks.onSuccess`
    ExportOnSuccess,
    /// `exportHooks.onFailure`
    ExportOnFailure,
}

impl HookName {
    /// Where it stands in the spec, for messages.
    pub fn path(self) -> &'static str {
        match self {
            Self::PreHook => "hooks.preHook",
            Self::OnSuccess => "hooks.onSuccess",
            Self::OnFailure => "hooks.onFailure",
            Self::ExportPreHook => "exportHooks.preHook",
            Self::ExportOnSuccess => "exportHooks.onSuccess",
            Self::ExportOnFailure => "exportHooks.onFailure",
        }
    }

    /// One of `exportHooks`.
    pub fn is_export(self) -> bool {
        matches!(
            self,
            Self::ExportPreHook | Self::ExportOnSuccess | Self::ExportOnFailure
        )
    }

    /// It runs before Velero.
    pub fn is_pre(self) -> bool {
        matches!(self, Self::PreHook | Self::ExportPreHook)
    }

    /// It runs after a failure, and is never tried again.
    pub fn is_on_failure(self) -> bool {
        matches!(self, Self::OnFailure | Self::ExportOnFailure)
    }
}

/// The Velero object of an action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VeleroObject {
    /// Velero's namespace.
    pub namespace: String,
    /// Its name, written here before it is created.
    pub name: String,
    /// Its uid, once it has been created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Its phase when it was last looked at.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// When it was created, as far as this action has to do with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
}

/// What became of an action.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActionStatus {
    /// How it stands.
    #[serde(default)]
    pub phase: ActionPhase,
    /// The same in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The spec that was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The namespaces concerned: each hook is invoked once for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Velero's part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub velero: Option<VeleroObject>,
    /// The hooks, in the order in which they would run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Invocation>,
    /// The first failure, if there was one: `onFailure` follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The same of the export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export_failure: Option<String>,
    /// Why it is being cancelled, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<String>,
    /// What is out of the ordinary: `PodRefused`, `ImagePull`, `Export`, `Stuck`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// When it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// Its pods have been removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cleaned_up: bool,
}

/// Conditions, and their value that means trouble.
const TROUBLE: [(&str, &str); 4] = [
    ("PodRefused", "True"),
    ("ImagePull", "False"),
    ("Export", "False"),
    ("Stuck", "True"),
];

impl ActionStatus {
    /// The conditions that tell of trouble as it is now.
    pub fn troubles(&self) -> impl Iterator<Item = &Condition> {
        self.conditions
            .iter()
            .filter(|one| TROUBLE.contains(&(one.type_.as_str(), one.status.as_str())))
    }
}

/// How a hook, or one of its phases, stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum StepState {
    /// Its turn has not come; or it will be tried again.
    #[default]
    Pending,
    /// It has been begun.
    Running,
    /// It ended well, and somebody has seen that.
    Succeeded,
    /// It did not.
    Failed,
    /// It was begun, and nobody knows how it ended. It counts as a failure.
    Unknown,
    /// It is not needed, or somebody cancelled it.
    Skipped,
}

impl StepState {
    /// Nothing will change any more.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// One hook in one namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Invocation {
    /// Which one.
    pub hook: HookName,
    /// For which namespace.
    pub namespace: String,
    /// The Blueprint.
    pub blueprint: String,
    /// Its action.
    pub action_name: String,
    /// A digest of the Blueprint's action as it was when it was checked: a change in between is refused.
    pub digest: String,
    /// How it stands.
    #[serde(default)]
    pub state: StepState,
    /// Why, in a sentence, when there is something to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The try that runs or ran last, from 1; 0 before the first.
    #[serde(default)]
    pub attempt: u32,
    /// Why earlier tries failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_failures: Vec<String>,
    /// When the next try is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<MicroTime>,
    /// When this try began; `.Time` in templates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// The phases of this try, in order; the deferred one last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseStatus>,
    /// Its output artifacts. Those of a preHook are the input artifacts of the other hooks of its namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub artifacts: Artifacts,
}

/// One phase of a try.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PhaseStatus {
    /// Its name in the Blueprint; empty if it has none.
    pub name: String,
    /// The function.
    pub func: String,
    /// It is the `deferPhase`: run last, whatever became of the others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deferred: bool,
    /// How it stands.
    #[serde(default)]
    pub state: StepState,
    /// Why, in a sentence, when there is something to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The process that works on it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub claimed_by: String,
    /// Written before anything is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    /// When its end was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<MicroTime>,
    /// What it has told the phases behind it.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "any_fields")]
    pub output: Fields,
    /// The pod of a `KubeTask`, once it has been created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodReference>,
    /// The replicas that `ScaleWorkload` found, written before it changed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_replicas: Option<i32>,
    /// The uid of what `KubeOps` deletes, written before it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_uid: Option<String>,
}

/// A pod that runs a phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodReference {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Invocation {
    /// When this try must have ended.
    pub fn deadline(&self, limit: GoDuration) -> Option<Timestamp> {
        self.started_at.as_ref()?.0.checked_add(limit.to_signed()).ok()
    }
}

impl PhaseStatus {
    /// It runs a command in somebody else's container: nobody but the process that started it can see its end.
    pub fn is_exec(&self) -> bool {
        self.func == "KubeExec"
    }

    /// Another process had begun it.
    pub fn is_taken_over(&self) -> bool {
        self.message == Self::TAKEN_OVER
    }

    /// What is said of a phase that is taken over.
    pub const TAKEN_OVER: &str = "taken over from a process that is gone";

    /// Its name, or what it is called without one.
    pub fn label(&self) -> &str {
        match (self.name.as_str(), self.deferred) {
            ("", true) => "deferPhase",
            ("", false) => "without a name",
            (name, _) => name,
        }
    }
}
