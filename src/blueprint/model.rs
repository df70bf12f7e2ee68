//! What a Blueprint holds, read as leniently as Kanister does.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// The one version of Blueprints.
pub const API_VERSION: &str = "cr.kanister.io/v1alpha1";
/// The kind.
pub const KIND: &str = "Blueprint";

/// A Blueprint. Fields that Kanister reads nowhere (`name` of an action, `secretNames`, ...) are not kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blueprint {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`; empty in a file that does not say.
    pub namespace: String,
    /// The actions by name.
    pub actions: BTreeMap<String, Action>,
}

/// One action: phases that run in order.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Action {
    /// The kind of subject that its author had in mind. Free text; Kanister compares it with nothing.
    #[serde(deserialize_with = "null_is_default")]
    pub kind: String,
    /// What the action hands on, as templates, rendered after the last phase.
    #[serde(deserialize_with = "null_is_default")]
    pub output_artifacts: BTreeMap<String, Artifact>,
    /// The phases, in order.
    #[serde(deserialize_with = "null_is_default")]
    pub phases: Vec<Phase>,
    /// Runs last, also after a failure.
    pub defer_phase: Option<Phase>,
}

/// One call of a function.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Phase {
    /// The function's name, as its author wrote it.
    #[serde(deserialize_with = "null_is_default")]
    pub func: String,
    /// The key of this phase in `.Phases`. May be empty, most of all for a deferred phase.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// Secrets and ConfigMaps that its templates read, by the name they have there.
    #[serde(deserialize_with = "null_is_default")]
    pub objects: BTreeMap<String, ObjectReference>,
    /// The function's arguments, as templates.
    #[serde(deserialize_with = "null_is_default")]
    pub args: Map<String, Value>,
}

/// How a Blueprint names an object. All fields may be templates, and all may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectReference {
    /// The version alone (`v1`), without the group.
    #[serde(deserialize_with = "null_is_default")]
    pub api_version: String,
    /// The API group; empty for the core group.
    #[serde(deserialize_with = "null_is_default")]
    pub group: String,
    /// The plural name (`pods`).
    #[serde(deserialize_with = "null_is_default")]
    pub resource: String,
    /// The kind, in any case; read only for `objects` of a phase.
    #[serde(deserialize_with = "null_is_default")]
    pub kind: String,
    /// The object's name.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// Its namespace; empty for the cluster scope.
    #[serde(deserialize_with = "null_is_default")]
    pub namespace: String,
}

/// What one action hands to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct Artifact {
    /// Texts by key.
    #[serde(deserialize_with = "null_is_default")]
    pub key_value: BTreeMap<String, String>,
    /// Kanister's own snapshots; kept for what is written there, Reveille makes none.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub kopia_snapshot: String,
}

/// Artifacts by name.
pub type Artifacts = BTreeMap<String, Artifact>;

/// Why something is no Blueprint. The message names the place and the value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ReadError(pub String);

/// The part of a Blueprint that is not metadata.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    #[serde(deserialize_with = "null_is_default")]
    actions: BTreeMap<String, Option<Action>>,
}

impl Blueprint {
    /// Reads a Blueprint from its object. Unknown fields are left aside, `null` counts as absent; what has the wrong type is
    /// an error that names its place.
    pub fn read(object: &Value) -> Result<Self, ReadError> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("/apiVersion"), text("/kind"));
        if api_version != API_VERSION || kind != KIND {
            return Err(ReadError(format!(
                "this is no Blueprint: apiVersion is {api_version:?} and kind is {kind:?}, not {API_VERSION:?} and {KIND:?}"
            )));
        }
        let name = text("/metadata/name");
        if name.is_empty() {
            return Err(ReadError("metadata.name is missing".to_owned()));
        }
        let body: Body = serde_path_to_error::deserialize(object)
            .map_err(|error| ReadError(format!("{}: {}", error.path(), error.inner())))?;
        let actions = body.actions.into_iter();
        Ok(Self {
            name: name.to_owned(),
            namespace: text("/metadata/namespace").to_owned(),
            actions: actions
                .map(|(name, action)| (name, action.unwrap_or_default()))
                .collect(),
        })
    }
}

impl Action {
    /// All phases, the deferred one last.
    pub fn all_phases(&self) -> impl Iterator<Item = &Phase> {
        self.phases.iter().chain(&self.defer_phase)
    }
}

/// Kanister reads `null` as absent everywhere.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn blueprint(actions: Value) -> Value {
        json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "b"}, "actions": actions})
    }

    #[test]
    fn unknown_fields_and_nulls_are_no_errors() {
        let read = Blueprint::read(&blueprint(json!({
            "a": {"name": "", "type": "Statefulset", "kind": null, "secretNames": ["x"], "phases": [
                {"func": "KubeTask", "name": null, "objects": null, "args": null, "other": 1}
            ], "deferPhase": null, "outputArtifacts": {"out": {"keyValue": null}}},
            "b": null,
        })))
        .unwrap();
        assert_eq!(read.actions["a"].phases[0].func, "KubeTask");
        assert_eq!(read.actions["a"].defer_phase, None);
        assert_eq!(read.actions["b"], Action::default());
    }

    #[test]
    fn a_wrong_type_is_named_with_its_place() {
        let check = |actions: Value, place: &str| {
            let error = Blueprint::read(&blueprint(actions)).unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
        };
        check(json!({"a": {"phases": [{"func": 3}]}}), "actions.a.phases[0].func: ");
        check(json!({"a": {"phases": {}}}), "actions.a.phases: ");
        check(
            json!({"a": {"outputArtifacts": {"o": {"keyValue": {"k": 1}}}}}),
            "actions.a.outputArtifacts.o.keyValue.k: ",
        );
        check(json!([]), "actions: ");
    }

    #[test]
    fn what_is_no_blueprint_is_said() {
        let check = |object: Value, word: &str| {
            let error = Blueprint::read(&object).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        check(
            json!({"apiVersion": "cr.kanister.io/v1", "kind": KIND}),
            "\"cr.kanister.io/v1\"",
        );
        check(json!({"apiVersion": API_VERSION, "kind": "ActionSet"}), "\"ActionSet\"");
        check(json!({"apiVersion": API_VERSION, "kind": KIND}), "metadata.name");
        check(json!(null), "no Blueprint");
    }
}
