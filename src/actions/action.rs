//! An action of either kind, as the controller works with it.

use kube::{
    Resource,
    api::{ApiResource, DynamicObject},
};
use serde_json::Value;

use crate::{
    api::{
        BackupAction, RestoreAction,
        action::{
            ActionStatus, ExistingObject, Fields, HookName, HookOptions, HookReference, Hooks, ObjectTemplate,
            PartiallyFailed,
        },
    },
    digest,
    duration::GoDuration,
};

/// Annotation on an action: any value cancels it; the value says why.
pub const CANCEL_ANNOTATION: &str = "reveille.dev/cancel";
/// Label on everything that an action makes: the action's uid.
pub const ACTION_LABEL: &str = "reveille.dev/action";
/// Label on hook pods: the namespace of their action. Another controller's pods are not this one's to remove.
pub const NAMESPACE_LABEL: &str = "reveille.dev/action-namespace";
/// The most retries that can be asked for.
pub const MAX_RETRIES: u32 = 10;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActionKind {
    /// A `RestoreAction`.
    Restore,
    /// A `BackupAction`.
    Backup,
}

impl ActionKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Restore, Self::Backup];

    /// The kind of the action.
    pub fn word(self) -> &'static str {
        match self {
            Self::Restore => "RestoreAction",
            Self::Backup => "BackupAction",
        }
    }

    /// The kind of the Velero object.
    pub fn velero_kind(self) -> &'static str {
        match self {
            Self::Restore => "Restore",
            Self::Backup => "Backup",
        }
    }

    /// The resource of the action.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::Restore => ApiResource::erase::<RestoreAction>(&()),
            Self::Backup => ApiResource::erase::<BackupAction>(&()),
        }
    }
}

/// Limits, as the action or else the controller says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How often a failed `preHook` or `onSuccess` is tried again.
    pub hook_retries: u32,
    /// How long one try of a hook may take.
    pub hook_timeout: GoDuration,
    /// How long Velero and the post-restore hooks may take.
    pub velero_timeout: GoDuration,
    /// Whether `PartiallyFailed` counts as a failure.
    pub partially_failed: PartiallyFailed,
}

impl Limits {
    /// With what the action itself says.
    #[must_use]
    pub fn with(self, options: &HookOptions) -> Self {
        Self {
            hook_retries: options.hook_retries.unwrap_or(self.hook_retries).min(MAX_RETRIES),
            hook_timeout: options.hook_timeout.unwrap_or(self.hook_timeout),
            velero_timeout: options.velero_timeout.unwrap_or(self.velero_timeout),
            partially_failed: options.partially_failed.unwrap_or(self.partially_failed),
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// The spec of the Velero object that is to be created.
    pub velero_spec: Option<Fields>,
    /// Its labels and annotations.
    pub template: ObjectTemplate,
    /// The Velero object that exists already.
    pub existing: Option<ExistingObject>,
    /// The hooks.
    pub hooks: Hooks,
    /// The hooks of the export.
    pub export_hooks: Option<Hooks>,
    /// How they are run.
    pub options: HookOptions,
}

/// One action.
#[derive(Clone, Debug)]
pub struct Action {
    /// Which kind.
    pub kind: ActionKind,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// The version of its spec.
    pub generation: i64,
    /// Why somebody cancels it, if so.
    pub cancel: Option<String>,
    /// What is asked for.
    pub request: Request,
    /// What has become of it.
    pub status: ActionStatus,
}

impl Action {
    /// Reads an action as the API server has it; an error says what can't be read.
    pub fn read(kind: ActionKind, object: &DynamicObject) -> Result<Self, String> {
        let value = serde_json::to_value(object).map_err(|error| error.to_string())?;
        let (request, meta, status) = match kind {
            ActionKind::Restore => {
                let action: RestoreAction = read(value)?;
                let spec = action.spec;
                let request = Request {
                    velero_spec: spec.restore,
                    template: spec.restore_metadata.unwrap_or_default(),
                    existing: spec.existing,
                    hooks: spec.hooks,
                    export_hooks: None,
                    options: spec.options,
                };
                (request, action.metadata, action.status)
            }
            ActionKind::Backup => {
                let action: BackupAction = read(value)?;
                let spec = action.spec;
                let request = Request {
                    velero_spec: spec.backup,
                    template: spec.backup_metadata.unwrap_or_default(),
                    existing: spec.existing,
                    hooks: spec.hooks,
                    export_hooks: spec.export_hooks,
                    options: spec.options,
                };
                (request, action.metadata, action.status)
            }
        };
        let cancel = if meta.deletion_timestamp.is_some() {
            Some("it is being deleted".to_owned())
        } else {
            let annotation = meta.annotations.as_ref().and_then(|all| all.get(CANCEL_ANNOTATION));
            annotation.map(|why| match why.as_str() {
                "" | "true" => format!("the annotation {CANCEL_ANNOTATION} asks for it"),
                why => why.to_owned(),
            })
        };
        Ok(Self {
            kind,
            name: meta.name.unwrap_or_default(),
            namespace: meta.namespace.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            cancel,
            request,
            status: status.unwrap_or_default(),
        })
    }

    /// The hooks, in the order in which they would run.
    pub fn hooks(&self) -> Vec<(HookName, &HookReference)> {
        let main = &self.request.hooks;
        let export = self.request.export_hooks.as_ref();
        let all = [
            (HookName::PreHook, main.pre_hook.as_ref()),
            (
                HookName::ExportPreHook,
                export.and_then(|hooks| hooks.pre_hook.as_ref()),
            ),
            (HookName::OnSuccess, main.on_success.as_ref()),
            (HookName::OnFailure, main.on_failure.as_ref()),
            (
                HookName::ExportOnSuccess,
                export.and_then(|hooks| hooks.on_success.as_ref()),
            ),
            (
                HookName::ExportOnFailure,
                export.and_then(|hooks| hooks.on_failure.as_ref()),
            ),
        ];
        all.into_iter().filter_map(|(name, hook)| Some((name, hook?))).collect()
    }

    /// The name of the Velero object that the action creates: the same each time.
    pub fn velero_name(&self) -> String {
        // Velero puts a Restore's name into labels, which hold 63 characters.
        let cut: String = self.name.chars().take(50).collect();
        format!("{}-{}", cut.trim_end_matches(['.', '-']), digest::hex(&self.uid, 5))
    }
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// The group, version and kind that both kinds share.
pub fn api_version() -> String {
    RestoreAction::api_version(&()).into_owned()
}
