//! The functions that phases call, with their arguments as types.

mod arguments;

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use thiserror::Error;

use self::arguments::{Arguments, single_document};
use super::{
    model::{ObjectReference, Phase},
    params::Params,
    render::{self, RenderError},
    subject::{Subject, SubjectKind},
    wait::{Condition, Dialect, Wait},
};

/// A function that Reveille has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// Runs a command in a pod of its own.
    KubeTask,
    /// Waits for conditions with JSONPath.
    Wait,
    /// Waits for conditions that are templates.
    WaitV2,
    /// Runs a command in a container.
    KubeExec,
    /// Creates, patches or deletes objects.
    KubeOps,
    /// Sets a workload's replicas.
    ScaleWorkload,
}

/// Kanister's other functions. Nearly all move data to or from a location profile, which hooks don't have.
const NOT_SUPPORTED: [&str; 22] = [
    "BackupData",
    "BackupDataAll",
    "BackupDataStats",
    "CheckRepository",
    "CopyVolumeData",
    "CreateCSISnapshot",
    "CreateCSISnapshotStatic",
    "CreateRDSSnapshot",
    "DeleteCSISnapshot",
    "DeleteCSISnapshotContent",
    "DeleteData",
    "DeleteDataAll",
    "DeleteRDSSnapshot",
    "ExportRDSSnapshotToLocation",
    "KubeExecAll",
    "LocationDelete",
    "MultiContainerRun",
    "PrepareData",
    "RestoreCSISnapshot",
    "RestoreData",
    "RestoreDataAll",
    "RestoreRDSSnapshot",
];

/// One call, ready to run.
#[derive(Clone, Debug, PartialEq)]
pub enum FunctionCall {
    /// Runs a command in a pod of its own.
    KubeTask(KubeTask),
    /// Waits; for `WaitV2` too, each condition knows its language.
    Wait(Wait),
    /// Runs a command in a container.
    KubeExec(KubeExec),
    /// Creates, patches or deletes objects.
    KubeOps(KubeOps),
    /// Sets a workload's replicas.
    ScaleWorkload(ScaleWorkload),
}

/// A command in a pod of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct KubeTask {
    /// The image.
    pub image: String,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    /// Where the pod runs; nothing for the controller's own namespace.
    pub namespace: Option<String>,
    /// A part of a `PodSpec`, to be merged strategically.
    pub pod_override: Map<String, Value>,
    /// Labels of the pod.
    pub pod_labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub pod_annotations: BTreeMap<String, String>,
}

/// A command in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeExec {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container; nothing for the pod's only one.
    pub container: Option<String>,
    /// The command.
    pub command: Vec<String>,
}

/// Creates, patches or deletes objects.
#[derive(Clone, Debug, PartialEq)]
pub enum KubeOps {
    /// Creates objects, in order. A namespace in a manifest wins over `namespace`.
    Create {
        /// For manifests that name none.
        namespace: String,
        /// The objects; each has apiVersion, kind and a name.
        manifests: Vec<Value>,
    },
    /// A strategic merge patch.
    Patch {
        /// The object, in the namespace that counts.
        reference: ObjectReference,
        /// The patch.
        patch: Value,
    },
    /// Deletes an object and waits until it is gone.
    Delete {
        /// The object, in the namespace that counts.
        reference: ObjectReference,
    },
}

/// Sets a workload's replicas. Its output is `originalReplicaCount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaleWorkload {
    /// StatefulSet, Deployment or DeploymentConfig.
    pub kind: SubjectKind,
    /// The workload.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// How many; not negative.
    pub replicas: i32,
    /// Wait until they are ready, or gone.
    pub wait_for_ready: bool,
}

/// Why a phase can't be called. The message names the argument, never a rendered value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallError {
    /// Its name is no function of Reveille.
    #[error("{0}")]
    Function(String),
    /// A template can't be rendered.
    #[error("argument {0}")]
    Render(#[from] RenderError),
    /// An argument is missing, unknown, or has the wrong form.
    #[error("argument {argument}: {message}")]
    Argument {
        /// Its name, with the path to the part that is meant.
        argument: String,
        /// What is wrong.
        message: String,
    },
}

impl CallError {
    fn argument(argument: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Argument {
            argument: argument.into(),
            message: message.into(),
        }
    }
}

impl Function {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::KubeTask,
        Self::Wait,
        Self::WaitV2,
        Self::KubeExec,
        Self::KubeOps,
        Self::ScaleWorkload,
    ];

    /// By its name, which is case-sensitive as in Kanister.
    pub fn parse(name: &str) -> Result<Self, CallError> {
        if let Some(function) = Self::ALL.into_iter().find(|function| function.name() == name) {
            return Ok(function);
        }
        let why = if NOT_SUPPORTED.contains(&name) {
            "is a function of Kanister that Reveille does not have"
        } else {
            "is no function"
        };
        let known = Self::ALL.map(Self::name).join(", ");
        Err(CallError::Function(format!("{name:?} {why}; there are {known}")))
    }

    /// Its name in a Blueprint.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KubeTask => "KubeTask",
            Self::Wait => "Wait",
            Self::WaitV2 => "WaitV2",
            Self::KubeExec => "KubeExec",
            Self::KubeOps => "KubeOps",
            Self::ScaleWorkload => "ScaleWorkload",
        }
    }

    /// The arguments that must be there, and those that may be.
    pub const fn arguments(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::KubeTask => (
                &["image", "command"],
                &["namespace", "podOverride", "podLabels", "podAnnotations"],
            ),
            Self::Wait | Self::WaitV2 => (&["timeout", "conditions"], &[]),
            Self::KubeExec => (&["namespace", "pod", "command"], &["container"]),
            Self::KubeOps => (&["operation"], &["namespace", "spec", "objectReference"]),
            Self::ScaleWorkload => (&["replicas"], &["namespace", "name", "kind", "waitForReady"]),
        }
    }
}

impl FunctionCall {
    /// Renders the phase's arguments, checks them and gives them their types.
    ///
    /// Conditions of `Wait` and `WaitV2` are not rendered here: that is done in each round.
    pub fn prepare(phase: &Phase, params: &Params) -> Result<Self, CallError> {
        let function = Function::parse(&phase.func)?;
        let args = match function {
            // Only `timeout` of it: a condition is no template before its JSONPath has been resolved.
            Function::Wait | Function::WaitV2 => wait_arguments(&phase.args, params)?,
            _ => render::arguments(&phase.args, params)?,
        };
        Self::decode(function, &args, &params.subject)
    }

    /// Gives rendered arguments their types, as loosely as Kanister does: a number may stand for a text, `"true"` for true,
    /// a text for a list of one.
    pub fn decode(function: Function, args: &Map<String, Value>, subject: &Subject) -> Result<Self, CallError> {
        let args = Arguments::new(function, args)?;
        match function {
            Function::KubeTask => kube_task(&args).map(Self::KubeTask),
            Function::Wait => wait(&args, Dialect::JsonPath).map(Self::Wait),
            Function::WaitV2 => wait(&args, Dialect::Template).map(Self::Wait),
            Function::KubeExec => kube_exec(&args).map(Self::KubeExec),
            Function::KubeOps => kube_ops(&args).map(Self::KubeOps),
            Function::ScaleWorkload => scale_workload(&args, subject).map(Self::ScaleWorkload),
        }
    }
}

fn wait_arguments(args: &Map<String, Value>, params: &Params) -> Result<Map<String, Value>, RenderError> {
    let mut rendered = args.clone();
    if let Some(timeout) = args.get("timeout") {
        let timeout = render::value(timeout, params).map_err(|error| error.below("timeout"))?;
        rendered.insert("timeout".to_owned(), timeout);
    }
    Ok(rendered)
}

fn kube_task(args: &Arguments) -> Result<KubeTask, CallError> {
    Ok(KubeTask {
        image: args.filled_text("image")?,
        command: args.texts("command")?,
        namespace: args.optional_text("namespace")?,
        pod_override: args.map("podOverride")?,
        pod_labels: args.text_map("podLabels")?,
        pod_annotations: args.text_map("podAnnotations")?,
    })
}

fn kube_exec(args: &Arguments) -> Result<KubeExec, CallError> {
    let command = args.texts("command")?;
    if command.is_empty() {
        return Err(CallError::argument("command", "is empty"));
    }
    Ok(KubeExec {
        namespace: args.filled_text("namespace")?,
        pod: args.filled_text("pod")?,
        container: args.optional_text("container")?,
        command,
    })
}

fn wait(args: &Arguments, dialect: Dialect) -> Result<Wait, CallError> {
    let conditions = |list| -> Result<Vec<Condition>, CallError> {
        let mut conditions = Vec::new();
        for (index, (text, reference)) in args.conditions("conditions", list)?.into_iter().enumerate() {
            let condition = Condition {
                dialect,
                text,
                reference,
            };
            let place = || format!("conditions.{list}[{index}].condition");
            condition
                .check()
                .map_err(|message| CallError::argument(place(), message))?;
            conditions.push(condition);
        }
        Ok(conditions)
    };
    let wait = Wait {
        timeout: args.duration("timeout")?,
        any_of: conditions("anyOf")?,
        all_of: conditions("allOf")?,
    };
    if wait.any_of.is_empty() && wait.all_of.is_empty() {
        return Err(CallError::argument(
            "conditions",
            "holds neither anyOf nor allOf with a condition, so it could never come true",
        ));
    }
    Ok(wait)
}

fn kube_ops(args: &Arguments) -> Result<KubeOps, CallError> {
    let namespace = args.optional_text("namespace")?.unwrap_or_else(|| "default".to_owned());
    match args.filled_text("operation")?.as_str() {
        "create" => Ok(KubeOps::Create {
            namespace,
            manifests: manifests(&args.filled_text("spec")?)?,
        }),
        "patch" => Ok(KubeOps::Patch {
            reference: object(args, namespace)?,
            patch: single_document("spec", &args.filled_text("spec")?)?,
        }),
        "delete" => Ok(KubeOps::Delete {
            reference: object(args, namespace)?,
        }),
        other => Err(CallError::argument(
            "operation",
            format!("{other:?} is none of create, patch and delete"),
        )),
    }
}

/// The object to patch or delete: its own namespace counts before the argument's.
fn object(args: &Arguments, namespace: String) -> Result<ObjectReference, CallError> {
    let mut reference = args.reference("objectReference")?;
    for (field, value) in [
        ("name", &reference.name),
        ("apiVersion", &reference.api_version),
        ("resource", &reference.resource),
    ] {
        if value.is_empty() {
            return Err(CallError::argument(format!("objectReference.{field}"), "is missing"));
        }
    }
    if reference.namespace.is_empty() {
        reference.namespace = namespace;
    }
    Ok(reference)
}

fn manifests(text: &str) -> Result<Vec<Value>, CallError> {
    let documents = arguments::documents("spec", text)?;
    if documents.is_empty() {
        return Err(CallError::argument("spec", "holds no object"));
    }
    for (index, document) in documents.iter().enumerate() {
        let filled = |pointer: &str| {
            let text = document.pointer(pointer).and_then(Value::as_str);
            text.is_some_and(|text| !text.is_empty())
        };
        let missing = if !filled("/apiVersion") {
            "apiVersion"
        } else if !filled("/kind") {
            "kind"
        } else if !filled("/metadata/name") && !filled("/metadata/generateName") {
            "metadata.name"
        } else {
            continue;
        };
        return Err(CallError::argument(
            "spec",
            format!("document {} has no {missing}", index + 1),
        ));
    }
    Ok(documents)
}

fn scale_workload(args: &Arguments, subject: &Subject) -> Result<ScaleWorkload, CallError> {
    let is_workload = |kind: &SubjectKind| {
        matches!(
            kind,
            SubjectKind::StatefulSet | SubjectKind::Deployment | SubjectKind::DeploymentConfig
        )
    };
    let default = is_workload(&subject.kind).then_some(subject);
    let or_subject = |name: &str, of_subject: fn(&Subject) -> String| -> Result<String, CallError> {
        let given = args.optional_text(name)?;
        given.or_else(|| default.map(of_subject)).ok_or_else(|| {
            CallError::argument(
                name,
                "is missing; it may be left out only if the subject is a StatefulSet, Deployment or DeploymentConfig",
            )
        })
    };
    let kind = match args.optional_text("kind")? {
        Some(kind) => SubjectKind::parse(&kind),
        None => SubjectKind::parse(&or_subject("kind", |subject| {
            subject.kind.field().unwrap_or_default().to_owned()
        })?),
    };
    if !is_workload(&kind) {
        return Err(CallError::argument(
            "kind",
            "is none of StatefulSet, Deployment and DeploymentConfig",
        ));
    }
    Ok(ScaleWorkload {
        kind,
        name: or_subject("name", |subject| subject.name.clone())?,
        namespace: or_subject("namespace", |subject| subject.namespace.clone())?,
        replicas: args.replicas("replicas")?,
        wait_for_ready: args.boolean("waitForReady", true)?,
    })
}

#[cfg(test)]
mod tests;
