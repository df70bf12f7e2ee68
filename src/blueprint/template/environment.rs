//! The params as the data of a template, with the Go names that templates use.

use std::{collections::BTreeMap, sync::Arc};

use gotmpl::Value;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    super::{
        model::Artifact,
        params::{Params, PhaseParams},
        subject::{Subject, SubjectKind},
    },
    go_value::{bytes, from_json, map, text},
};

/// A map of the engine.
type GoMap = Arc<BTreeMap<Arc<str>, Value>>;

/// What a template sees.
#[derive(Debug)]
pub(in crate::blueprint) struct Environment {
    pub(super) root: Value,
    pub(super) zeros: Zeros,
    pub(super) now: Timestamp,
}

/// The maps whose values have one Go type, each with the zero value of that type: what `index` gives for an absent key. The
/// engine's maps have no types, so they are known by their place in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Zeros(Vec<(GoMap, Value)>);

impl Zeros {
    /// What stands for an absent key of this map.
    pub(super) fn of(&self, wanted: &GoMap) -> Value {
        let found = self.0.iter().find(|(known, _)| Arc::ptr_eq(known, wanted));
        found.map_or(Value::Nil, |(_, zero)| zero.clone())
    }

    fn typed(&mut self, entries: impl IntoIterator<Item = (String, Value)>, zero: Value) -> Value {
        let value = map(entries);
        if let Value::Map(map) = &value {
            self.0.push((Arc::clone(map), zero));
        }
        value
    }

    fn texts<'a>(&mut self, entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> Value {
        let entries = entries.into_iter().map(|(key, value)| (key.clone(), text(value)));
        self.typed(entries, text(""))
    }

    fn bytes<'a>(&mut self, entries: impl IntoIterator<Item = (&'a String, &'a ByteString)>) -> Value {
        let entries = entries.into_iter().map(|(key, value)| (key.clone(), bytes(&value.0)));
        self.typed(entries, bytes(&[]))
    }
}

impl Environment {
    /// The data of a phase's arguments.
    pub(in crate::blueprint) fn of(params: &Params) -> Self {
        let mut zeros = Zeros::default();
        let root = root(params, &mut zeros);
        Self {
            root,
            zeros,
            now: params.time,
        }
    }

    /// One object of the cluster, or nothing.
    pub(in crate::blueprint) fn object(object: Option<&serde_json::Value>) -> Self {
        Self {
            root: object.map_or(Value::Nil, from_json),
            zeros: Zeros::default(),
            now: Timestamp::UNIX_EPOCH,
        }
    }
}

fn root(params: &Params, zeros: &mut Zeros) -> Value {
    let subject = &params.subject;
    let mut root: BTreeMap<String, Value> = BTreeMap::new();
    // Go's nil pointers: false in a condition, an error where a field of theirs is read.
    for field in [
        "StatefulSet",
        "Deployment",
        "DeploymentConfig",
        "PVC",
        "Namespace",
        "Profile",
        "CurrentPhase",
    ] {
        root.insert(field.to_owned(), Value::Nil);
    }
    if let Some(field) = subject.kind.field() {
        root.insert(field.to_owned(), subject_fields(subject, zeros));
    }
    let mut set = |name: &str, value: Value| {
        root.insert(name.to_owned(), value);
    };
    set("Object", subject.object.as_ref().map_or(Value::Nil, from_json));
    set("Time", text(&params.time.to_string()));
    set("Options", zeros.texts(&params.options));
    let artifacts = params.artifacts_in.iter();
    let artifacts: Vec<(String, Value)> = artifacts
        .map(|(name, value)| (name.clone(), artifact(value, zeros)))
        .collect();
    let no_artifact = artifact(&Artifact::default(), zeros);
    set("ArtifactsIn", zeros.typed(artifacts, no_artifact));
    let phases = params.phases.iter();
    let phases: Vec<(String, Value)> = phases
        .map(|(name, value)| (name.clone(), phase(value, zeros)))
        .collect();
    set("Phases", map(phases));
    set(
        "DeferPhase",
        params
            .defer_phase
            .as_ref()
            .map_or(Value::Nil, |value| phase(value, zeros)),
    );
    for field in ["ConfigMaps", "Secrets", "PodOverride"] {
        set(field, map([]));
    }
    for field in ["PodAnnotations", "PodLabels"] {
        set(field, zeros.texts([]));
    }
    map(root)
}

fn subject_fields(subject: &Subject, zeros: &mut Zeros) -> Value {
    let mut fields = vec![
        ("Name".to_owned(), text(&subject.name)),
        ("Namespace".to_owned(), text(&subject.namespace)),
    ];
    let is_workload = matches!(
        subject.kind,
        SubjectKind::StatefulSet | SubjectKind::Deployment | SubjectKind::DeploymentConfig
    );
    if is_workload {
        let pods = subject.pods.iter();
        let containers = pods
            .clone()
            .map(|pod| list(pod.containers.iter().map(|name| text(name))));
        let with_claims: Vec<(String, Value)> = pods
            .clone()
            .filter(|pod| !pod.claims.is_empty())
            .map(|pod| (pod.name.clone(), zeros.texts(&pod.claims)))
            .collect();
        let no_claims = zeros.texts([]);
        fields.push(("Containers".to_owned(), list(containers)));
        fields.push(("PersistentVolumeClaims".to_owned(), zeros.typed(with_claims, no_claims)));
        fields.push(("Pods".to_owned(), list(pods.map(|pod| text(&pod.name)))));
    }
    map(fields)
}

fn list(items: impl Iterator<Item = Value>) -> Value {
    Value::List(items.collect())
}

fn artifact(artifact: &Artifact, zeros: &mut Zeros) -> Value {
    map([
        ("KeyValue".to_owned(), zeros.texts(&artifact.key_value)),
        ("KopiaSnapshot".to_owned(), text(&artifact.kopia_snapshot)),
    ])
}

fn phase(phase: &PhaseParams, zeros: &mut Zeros) -> Value {
    let output = phase.output.iter().map(|(key, value)| (key.clone(), from_json(value)));
    let output = map(output);
    let secrets = phase.secrets.iter();
    let secrets: Vec<(String, Value)> = secrets
        .map(|(name, value)| (name.clone(), secret(value, zeros)))
        .collect();
    let maps = phase.config_maps.iter();
    let maps: Vec<(String, Value)> = maps
        .map(|(name, value)| (name.clone(), config_map(value, zeros)))
        .collect();
    map([
        ("Output".to_owned(), output),
        ("Secrets".to_owned(), map(secrets)),
        ("ConfigMaps".to_owned(), map(maps)),
    ])
}

fn secret(secret: &Secret, zeros: &mut Zeros) -> Value {
    let mut fields = metadata(&secret.metadata, zeros);
    fields.push(("Data".to_owned(), zeros.bytes(secret.data.iter().flatten())));
    fields.push((
        "StringData".to_owned(),
        zeros.texts(secret.string_data.iter().flatten()),
    ));
    fields.push(("Type".to_owned(), text(secret.type_.as_deref().unwrap_or_default())));
    map(fields)
}

fn config_map(config_map: &ConfigMap, zeros: &mut Zeros) -> Value {
    let mut fields = metadata(&config_map.metadata, zeros);
    fields.push(("Data".to_owned(), zeros.texts(config_map.data.iter().flatten())));
    fields.push((
        "BinaryData".to_owned(),
        zeros.bytes(config_map.binary_data.iter().flatten()),
    ));
    map(fields)
}

/// What Go's embedded `ObjectMeta` lends its object, as far as templates have a use for it.
fn metadata(metadata: &ObjectMeta, zeros: &mut Zeros) -> Vec<(String, Value)> {
    let part = |part: &Option<String>| text(part.as_deref().unwrap_or_default());
    vec![
        ("Name".to_owned(), part(&metadata.name)),
        ("Namespace".to_owned(), part(&metadata.namespace)),
        ("UID".to_owned(), part(&metadata.uid)),
        ("ResourceVersion".to_owned(), part(&metadata.resource_version)),
        ("Labels".to_owned(), zeros.texts(metadata.labels.iter().flatten())),
        (
            "Annotations".to_owned(),
            zeros.texts(metadata.annotations.iter().flatten()),
        ),
    ]
}
