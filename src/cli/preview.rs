//! `reveille preview`: what would happen to a pod, and why. It calls the very functions of the server.

use std::{io::Write, path::Path, process::ExitCode};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::preview_text;
use crate::{
    admission::{Mode, PodContext, PodDecision, decide_pod, patch},
    duration::GoDuration,
    hooks::{
        HookSource, OnError, PostHook, Problem, Retry,
        restore_spec::Rules,
        restored::{KnownRestores, RestoreInfo, Restored, restored, wait_uids},
    },
    infra::kube::clients,
    names::{MODE_ANNOTATION, OWNER_ANNOTATION, OWNER_REVEILLE, VELERO_RESTORE_LABEL},
    waiter::restores,
};

/// Where a Restore lives when its file does not say: Velero's default namespace.
const VELERO_NAMESPACE: &str = "velero";
/// The uid of a Restore whose file has none.
const NO_UID: &str = "00000000-0000-0000-0000-000000000000";

/// Shows what Reveille would do to a pod that a restore creates, hook by hook, and why.
///
/// With files it needs no cluster: `reveille preview --pod pod.yaml --restore restore.yaml`. Against a cluster:
/// `reveille preview --restore NAME --pod NAMESPACE/NAME`. Exit code: 0 also with problems, 2 if something can't be read.
#[derive(Args, Debug)]
pub struct PreviewArgs {
    /// A file with one Pod (YAML or JSON; - is standard input), or NAMESPACE/NAME of a pod in the cluster.
    #[arg(long)]
    pod: String,
    /// A file with one Restore, or the NAME (or NAMESPACE/NAME) of one in the cluster. Without it a pod with a restore label
    /// counts as restored.
    #[arg(long)]
    restore: Option<String>,
    /// The mode that holds where the Restore does not say.
    #[arg(long, value_enum, default_value_t = PreviewMode::Takeover)]
    mode: PreviewMode,
    /// Reveille was installed with `policies.podMarks: Deny`: it matters where a pod's status is restored.
    #[arg(long)]
    marks_protected: bool,
    /// The time of admission (RFC 3339).
    #[arg(long, default_value = "1970-01-01T00:00:00Z")]
    at: Timestamp,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = PreviewOutput::Text)]
    output: PreviewOutput,
}

/// The modes that a preview can show.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PreviewMode {
    Takeover,
    Alongside,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PreviewOutput {
    /// Sentences.
    Text,
    /// The stable contract for programs.
    Json,
    /// The same as YAML.
    Yaml,
}

/// The stable contract of `-o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Preview {
    pub(super) restored: bool,
    pub(super) reason: String,
    pub(super) injected: Vec<String>,
    pub(super) patch: Vec<json_patch::PatchOperation>,
    pub(super) pod: Value,
    pub(super) hooks: Vec<PreviewHook>,
    pub(super) problems: Vec<Problem>,
    #[serde(skip)]
    pub(super) explanations: Vec<String>,
}

/// A hook that Reveille would run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PreviewHook {
    pub(super) name: String,
    pub(super) source: HookSource,
    pub(super) container: String,
    pub(super) command: Vec<String>,
    pub(super) on_error: OnError,
    pub(super) exec_timeout: GoDuration,
    pub(super) wait_timeout: GoDuration,
    pub(super) wait_for_ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retry: Option<Retry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result_file: Option<String>,
}

impl From<PostHook> for PreviewHook {
    fn from(hook: PostHook) -> Self {
        let PostHook {
            name,
            source,
            container,
            command,
            on_error,
            exec_timeout,
            wait_timeout,
            wait_for_ready,
            retry,
            result_file,
            error: _,
            left_to_velero: _,
            path: _,
        } = hook;
        Self {
            name,
            source,
            container,
            command,
            on_error,
            exec_timeout,
            wait_timeout,
            wait_for_ready,
            retry: (retry.limit() > 0).then_some(retry),
            result_file,
        }
    }
}

/// The Reveille that a preview stands for.
#[derive(Clone, Copy)]
struct Installation {
    mode: Mode,
    marks_protected: bool,
    now: Timestamp,
}

/// Runs the command.
pub async fn run(args: PreviewArgs) -> anyhow::Result<ExitCode> {
    let installation = Installation {
        mode: match args.mode {
            PreviewMode::Takeover => Mode::Takeover,
            PreviewMode::Alongside => Mode::Alongside,
        },
        marks_protected: args.marks_protected,
        now: args.at,
    };
    let preview = match in_cluster(&args.pod)? {
        Some((namespace, name)) => from_cluster(namespace, name, args.restore.as_deref(), installation).await?,
        None => from_files(&args.pod, args.restore.as_deref(), installation)?,
    };
    let text = match args.output {
        PreviewOutput::Text => preview_text::render(&preview),
        PreviewOutput::Json => serde_json::to_string_pretty(&preview)? + "\n",
        PreviewOutput::Yaml => serde_saphyr::to_string(&serde_json::to_value(&preview)?)?,
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// `NAMESPACE/NAME`, unless there is a file of that name.
fn in_cluster(pod: &str) -> anyhow::Result<Option<(&str, &str)>> {
    if pod == "-" || Path::new(pod).exists() {
        return Ok(None);
    }
    match pod.split('/').collect::<Vec<_>>().as_slice() {
        [namespace, name] if !namespace.is_empty() && !has_file_ending(name) => Ok(Some((namespace, name))),
        _ => bail!("--pod {pod:?}: there is no such file, and it is not NAMESPACE/NAME of a pod in the cluster"),
    }
}

fn has_file_ending(name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| {
        ["yaml", "yml", "json"]
            .iter()
            .any(|known| ending.eq_ignore_ascii_case(known))
    })
}

fn from_files(pod: &str, restore: Option<&str>, installation: Installation) -> anyhow::Result<Preview> {
    let pod = read_file(pod, "Pod", "--pod")?;
    let restore = match restore {
        Some(path) => Some(read_file(path, "Restore", "--restore")?),
        None => restore_of_label(&pod),
    };
    let info = restore
        .map(|restore| offline_info(restore, &pod, installation.mode))
        .transpose()?;
    let known: Vec<&RestoreInfo> = info.iter().collect();
    Ok(preview(&pod, &known, installation))
}

/// Without a Restore a pod with a restore label counts as restored, by a Restore without hooks of its own.
fn restore_of_label(pod: &Value) -> Option<Value> {
    let label = pod
        .get("metadata")?
        .get("labels")?
        .get(VELERO_RESTORE_LABEL)?
        .as_str()?;
    Some(json!({"metadata": {"name": label}, "status": {"phase": "InProgress"}}))
}

/// A Restore from a file, as the server would know it: marked in mode takeover, hooks as they stand there.
fn offline_info(mut restore: Value, pod: &Value, mode: Mode) -> anyhow::Result<RestoreInfo> {
    let uid = wait_uids(pod).first().map_or(NO_UID, |uid| uid).to_owned();
    let Some(metadata) = restore.get_mut("metadata").and_then(Value::as_object_mut) else {
        bail!("--restore: it has no metadata.name");
    };
    metadata.entry("namespace").or_insert_with(|| json!(VELERO_NAMESPACE));
    metadata.entry("uid").or_insert_with(|| json!(uid));
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if annotations.is_null() {
        *annotations = json!({});
    }
    let own_mode = annotations
        .get(MODE_ANNOTATION)
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok());
    let marked = own_mode.unwrap_or(mode) == Mode::Takeover;
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.remove(OWNER_ANNOTATION);
        if marked {
            annotations.insert(OWNER_ANNOTATION.to_owned(), json!(OWNER_REVEILLE));
        }
    }
    let mut info = RestoreInfo::read(&restore).context("--restore: it has no metadata.name")?;
    info.rules = Rules::of_restore(&restore, !marked);
    Ok(info)
}

async fn from_cluster(
    namespace: &str,
    name: &str,
    restore: Option<&str>,
    installation: Installation,
) -> anyhow::Result<Preview> {
    let client = clients().await?.api;
    let pods: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<Pod>(&()));
    let pod = pods.get_opt(name).await.context("can't read the pod")?;
    let Some(pod) = pod else {
        bail!("there is no pod {namespace}/{name}")
    };
    let infos = restores_named(client, restore).await?;
    let known: Vec<&RestoreInfo> = infos.iter().collect();
    Ok(preview(&serde_json::to_value(pod)?, &known, installation))
}

/// The Restores of this name, or all of them.
async fn restores_named(client: Client, wanted: Option<&str>) -> anyhow::Result<Vec<RestoreInfo>> {
    let api: Api<DynamicObject> = Api::all_with(client, &restores::resource());
    let list = api
        .list(&ListParams::default())
        .await
        .context("can't list Velero's Restores")?;
    let objects = list
        .items
        .into_iter()
        .filter_map(|object| serde_json::to_value(object).ok());
    let all = objects.filter_map(|object| RestoreInfo::read(&object));
    let Some(wanted) = wanted else { return Ok(all.collect()) };
    let found: Vec<RestoreInfo> = all
        .filter(|restore| restore.name == wanted || format!("{}/{}", restore.namespace, restore.name) == wanted)
        .collect();
    if found.is_empty() {
        bail!("there is no Restore {wanted:?}");
    }
    Ok(found)
}

/// One document of the wanted kind.
fn read_file(path: &str, kind: &str, option: &str) -> anyhow::Result<Value> {
    let text = if path == "-" {
        std::io::read_to_string(std::io::stdin()).with_context(|| format!("{option}: can't read standard input"))?
    } else {
        std::fs::read_to_string(path).with_context(|| format!("{option}: can't read {path}"))?
    };
    let value: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(_) => serde_saphyr::from_str(&text)
            .with_context(|| format!("{option}: {path} holds no single document of YAML or JSON"))?,
    };
    match value.get("kind").and_then(Value::as_str) {
        _ if !value.is_object() => bail!("{option}: {path} holds no {kind}"),
        Some(other) if other != kind => bail!("{option}: {path} holds a {other}, not a {kind}"),
        _ => Ok(value),
    }
}

fn preview(pod: &Value, known: &[&RestoreInfo], installation: Installation) -> Preview {
    let namespace = pod
        .get("metadata")
        .and_then(|metadata| metadata.get("namespace"))
        .and_then(Value::as_str)
        .unwrap_or("default");
    let known = KnownRestores {
        restores: known,
        complete: Ok(()),
    };
    let restored: Restored = restored(pod, namespace, None, known, &[]);
    let decision = decide_pod(
        pod,
        &PodContext {
            namespace,
            restored,
            mode: installation.mode,
            marks_protected: installation.marks_protected,
            now: installation.now,
        },
    );
    let PodDecision {
        restored,
        reason,
        operations,
        injected,
        hooks,
        problems,
        explanations,
        plan: _,
    } = decision;
    // The operations were made for this very pod; if they did not fit, that is a fault of ours, and the pod is shown as it is.
    let after = patch::apply(pod, &operations).unwrap_or_else(|_| pod.clone());
    Preview {
        restored,
        reason,
        injected,
        patch: operations,
        pod: after,
        hooks: hooks.into_iter().map(PreviewHook::from).collect(),
        problems,
        explanations,
    }
}
