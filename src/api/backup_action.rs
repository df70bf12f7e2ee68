//! `BackupAction`: a Velero Backup with hooks before and after it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::action::{ActionStatus, ExistingObject, Fields, HookOptions, Hooks, ObjectTemplate, any_fields};

/// A Velero Backup, and the Blueprint actions that run before and after it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "reveille.dev",
    version = "v1alpha1",
    kind = "BackupAction",
    plural = "backupactions",
    namespaced,
    status = "ActionStatus",
    derive = "PartialEq",
    validation = Rule::new("self.spec == oldSelf.spec").message("an action can't be changed: make a new one, or cancel this one with the annotation reveille.dev/cancel"),
    validation = Rule::new("has(self.spec.backup) != has(self.spec.existing)").message("give `backup`: the spec of the Velero Backup"),
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Backup","type":"string","jsonPath":".status.velero.name"}"#,
    printcolumn = r#"{"name":"Velero","type":"string","jsonPath":".status.velero.phase"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.message","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct BackupActionSpec {
    /// The `spec` of the Velero Backup, as Velero knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_fields")]
    pub backup: Option<Fields>,
    /// Labels and annotations of the Velero Backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_metadata: Option<ObjectTemplate>,
    /// Made by the controller: the Backup that asked for hooks by its annotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<ExistingObject>,
    /// The hooks around the backup.
    #[serde(default)]
    pub hooks: Hooks,
    /// The hooks around the export: around what Velero moves while the Backup is `WaitingForPluginOperations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export_hooks: Option<Hooks>,
    /// How they are run.
    #[serde(default, flatten)]
    pub options: HookOptions,
}
