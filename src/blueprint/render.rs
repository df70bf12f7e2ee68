//! Rendering of whole trees: arguments, object references, artifacts.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use thiserror::Error;

use super::{
    model::{Action, Artifact, Artifacts, ObjectReference, Phase},
    params::Params,
    template::{Environment, Mode, Template},
};

/// Why something can't be rendered. The message never repeats a value of the params.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}{message}", place(path))]
pub struct RenderError {
    /// Where the template stands (`command[2]`); empty for a single text.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl RenderError {
    /// The same error, seen from one level above.
    pub(super) fn below(self, parent: &str) -> Self {
        let path = match self.path.as_str() {
            "" => parent.to_owned(),
            path if path.starts_with('[') => format!("{parent}{path}"),
            path => format!("{parent}.{path}"),
        };
        Self { path, ..self }
    }
}

fn place(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("{path}: ")
    }
}

/// One text.
pub fn text(text: &str, params: &Params) -> Result<String, RenderError> {
    Renderer::new(params).text(text, "")
}

/// A tree: every text in it, keys too. Everything else stays as it is.
pub fn value(value: &Value, params: &Params) -> Result<Value, RenderError> {
    Renderer::new(params).value(value, "")
}

/// A phase's arguments.
pub fn arguments(args: &Map<String, Value>, params: &Params) -> Result<Map<String, Value>, RenderError> {
    Renderer::new(params).map(args, "")
}

/// One object reference.
pub fn reference(reference: &ObjectReference, params: &Params) -> Result<ObjectReference, RenderError> {
    Renderer::new(params).reference(reference, "")
}

/// The objects of one phase whose kind says Secret or ConfigMap; Kanister ignores all others.
///
/// Kanister renders the objects of *all* phases before the first one runs, so they can't use outputs.
pub fn objects(phase: &Phase, params: &Params) -> Result<BTreeMap<String, PhaseObject>, RenderError> {
    let renderer = Renderer::new(params);
    let mut objects = BTreeMap::new();
    for (name, object) in &phase.objects {
        let reference = renderer.reference(object, &format!("objects.{name}"))?;
        if let Some(kind) = ObjectKind::parse(&reference.kind) {
            objects.insert(
                name.clone(),
                PhaseObject {
                    kind,
                    name: reference.name,
                    namespace: reference.namespace,
                },
            );
        }
    }
    Ok(objects)
}

/// A Secret or ConfigMap to fetch for a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseObject {
    /// Which of the two.
    pub kind: ObjectKind,
    /// The object's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// The kinds of object that a phase can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// `.Phases.<phase>.Secrets`.
    Secret,
    /// `.Phases.<phase>.ConfigMaps`.
    ConfigMap,
}

impl ObjectKind {
    /// In any case, as Kanister compares it.
    pub fn parse(kind: &str) -> Option<Self> {
        match kind.to_ascii_lowercase().as_str() {
            "secret" => Some(Self::Secret),
            "configmap" => Some(Self::ConfigMap),
            _ => None,
        }
    }
}

/// What the action hands on, once all its phases have succeeded.
pub fn artifacts(action: &Action, params: &Params) -> Result<Artifacts, RenderError> {
    let renderer = Renderer::new(params);
    let mut artifacts = Artifacts::new();
    for (name, artifact) in &action.output_artifacts {
        let path = format!("outputArtifacts.{name}");
        let mut key_value = BTreeMap::new();
        for (key, value) in &artifact.key_value {
            let path = format!("{path}.keyValue.{key}");
            key_value.insert(key.clone(), renderer.text(value, &path)?);
        }
        let kopia_snapshot = renderer.text(&artifact.kopia_snapshot, &format!("{path}.kopiaSnapshot"))?;
        artifacts.insert(
            name.clone(),
            Artifact {
                key_value,
                kopia_snapshot,
            },
        );
    }
    Ok(artifacts)
}

/// The params, turned once into what templates see.
struct Renderer {
    environment: Environment,
}

impl Renderer {
    fn new(params: &Params) -> Self {
        Self {
            environment: Environment::of(params),
        }
    }

    fn text(&self, text: &str, path: &str) -> Result<String, RenderError> {
        let template = Template::parse(text, Mode::Params).and_then(|template| template.render(&self.environment));
        template.map_err(|message| RenderError {
            path: path.to_owned(),
            message,
        })
    }

    fn value(&self, value: &Value, path: &str) -> Result<Value, RenderError> {
        match value {
            Value::String(text) => Ok(Value::String(self.text(text, path)?)),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| self.value(item, &format!("{path}[{index}]")))
                .collect::<Result<_, _>>()
                .map(Value::Array),
            Value::Object(map) => Ok(Value::Object(self.map(map, path)?)),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(value.clone()),
        }
    }

    fn map(&self, map: &Map<String, Value>, path: &str) -> Result<Map<String, Value>, RenderError> {
        let mut rendered = Map::new();
        for (key, value) in map {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            rendered.insert(self.text(key, &path)?, self.value(value, &path)?);
        }
        Ok(rendered)
    }

    fn reference(&self, reference: &ObjectReference, path: &str) -> Result<ObjectReference, RenderError> {
        let field = |text: &str, name: &str| {
            let path = if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            };
            self.text(text, &path)
        };
        Ok(ObjectReference {
            api_version: field(&reference.api_version, "apiVersion")?,
            group: field(&reference.group, "group")?,
            resource: field(&reference.resource, "resource")?,
            kind: field(&reference.kind, "kind")?,
            name: field(&reference.name, "name")?,
            namespace: field(&reference.namespace, "namespace")?,
        })
    }
}
