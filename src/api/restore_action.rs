//! `RestoreAction`: a Velero Restore with hooks before and after it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::action::{ActionStatus, ExistingObject, Fields, HookOptions, Hooks, ObjectTemplate, any_fields};

/// A Velero Restore, and the Blueprint actions that run before and after it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "reveille.dev",
    version = "v1alpha1",
    kind = "RestoreAction",
    plural = "restoreactions",
    namespaced,
    status = "ActionStatus",
    derive = "PartialEq",
    validation = Rule::new("self.spec == oldSelf.spec").message("an action can't be changed: make a new one, or cancel this one with the annotation reveille.dev/cancel"),
    validation = Rule::new("has(self.spec.restore) != has(self.spec.existing)").message("give `restore`: the spec of the Velero Restore"),
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Restore","type":"string","jsonPath":".status.velero.name"}"#,
    printcolumn = r#"{"name":"Velero","type":"string","jsonPath":".status.velero.phase"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct RestoreActionSpec {
    /// The `spec` of the Velero Restore, as Velero knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_fields")]
    pub restore: Option<Fields>,
    /// Labels and annotations of the Velero Restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_metadata: Option<ObjectTemplate>,
    /// Made by the controller: the Restore that asked for hooks by its annotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<ExistingObject>,
    /// The hooks.
    #[serde(default)]
    pub hooks: Hooks,
    /// How they are run.
    #[serde(default, flatten)]
    pub options: HookOptions,
}
