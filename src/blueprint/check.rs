//! What is wrong with a Blueprint, found before anything has run.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    call::{CallError, Function, FunctionCall},
    model::{Action, Blueprint, ObjectReference, Phase},
    render::ObjectKind,
    subject::{Subject, SubjectKind},
    template::{Mode, Template},
};
use crate::hooks::Severity;

/// Something wrong with a Blueprint. An error means that the action is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The action.
    pub action: String,
    /// The phase by name, or its number (`#2`) if it has none; empty if the action as a whole is meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// The argument or field, with its path (`command[2]`); empty if the phase as a whole is meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub argument: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, name) in [
            ("action", &self.action),
            ("phase", &self.phase),
            ("argument", &self.argument),
        ] {
            if !name.is_empty() {
                write!(f, "{word} {name}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

/// Everything that can be known without a cluster: an action that does not exist, unknown or unsupported functions, missing,
/// unknown or malformed arguments, templates that can't be parsed, call an unknown function or read what no hook has.
pub fn check(blueprint: &Blueprint, action: &str) -> Vec<Finding> {
    let mut findings = Findings::of(action);
    let Some(found) = blueprint.actions.get(action) else {
        let names: Vec<&str> = blueprint.actions.keys().map(String::as_str).collect();
        let has = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        let message = format!(
            "the Blueprint {:?} has no action of this name; it has {has}",
            blueprint.name
        );
        findings.error("", "", message);
        return findings.list;
    };
    check_action(found, &mut findings);
    findings.list
}

/// The findings of one action.
struct Findings {
    action: String,
    list: Vec<Finding>,
}

impl Findings {
    fn of(action: &str) -> Self {
        Self {
            action: action.to_owned(),
            list: Vec::new(),
        }
    }

    fn push(&mut self, severity: Severity, phase: &str, argument: &str, message: impl Into<String>) {
        self.list.push(Finding {
            severity,
            action: self.action.clone(),
            phase: phase.to_owned(),
            argument: argument.to_owned(),
            message: message.into(),
        });
    }

    fn error(&mut self, phase: &str, argument: &str, message: impl Into<String>) {
        self.push(Severity::Error, phase, argument, message);
    }

    fn warning(&mut self, phase: &str, argument: &str, message: impl Into<String>) {
        self.push(Severity::Warning, phase, argument, message);
    }
}

fn check_action(action: &Action, findings: &mut Findings) {
    if action.phases.is_empty() && action.defer_phase.is_none() {
        findings.warning("", "", "it has no phases, so it does nothing");
    }
    let mut before = BTreeSet::new();
    for (index, phase) in action.phases.iter().enumerate() {
        let name = display_name(action, index);
        let seen = Scope {
            phases: &before,
            deferred: false,
        };
        check_phase(phase, &name, &seen, findings);
        if phase.name.is_empty() {
            findings.warning(&name, "name", "is missing, so no later phase can read its output");
        } else if !before.insert(phase.name.as_str()) {
            findings.error(&name, "name", "another phase of this action has it, too");
        }
    }
    let deferred = Scope {
        phases: &before,
        deferred: true,
    };
    if let Some(phase) = &action.defer_phase {
        let name = display_name(action, action.phases.len());
        check_phase(phase, &name, &deferred, findings);
    }
    for (name, artifact) in &action.output_artifacts {
        let texts = artifact
            .key_value
            .iter()
            .map(|(key, value)| (format!("keyValue.{key}"), value));
        let snapshot = ("kopiaSnapshot".to_owned(), &artifact.kopia_snapshot);
        for (field, text) in texts.chain([snapshot]) {
            check_template(
                text,
                "",
                &format!("outputArtifacts.{name}.{field}"),
                &deferred,
                findings,
            );
        }
    }
}

/// How a phase is called in messages: its name, or its place (`#2`, `deferPhase`).
pub fn display_name(action: &Action, index: usize) -> String {
    match action.all_phases().nth(index) {
        Some(phase) if !phase.name.is_empty() => phase.name.clone(),
        _ if index >= action.phases.len() => "deferPhase".to_owned(),
        _ => format!("#{}", index + 1),
    }
}

/// What a template can read.
struct Scope<'a> {
    /// The phases that ran before.
    phases: &'a BTreeSet<&'a str>,
    /// `.DeferPhase` is there.
    deferred: bool,
}

fn check_phase(phase: &Phase, name: &str, scope: &Scope, findings: &mut Findings) {
    check_objects(phase, name, findings);
    let function = match Function::parse(&phase.func) {
        Ok(function) => function,
        Err(error) => return findings.error(name, "func", error.to_string()),
    };
    let own: BTreeSet<&str> = scope.phases.iter().copied().chain([phase.name.as_str()]).collect();
    let scope = Scope { phases: &own, ..*scope };
    let faults = findings.list.len();
    for (argument, value) in &phase.args {
        let is_wait = matches!(function, Function::Wait | Function::WaitV2);
        if !(is_wait && argument == "conditions") {
            check_value(value, name, argument, &scope, findings);
        }
    }
    check_references(function, phase, name, &scope, findings);
    // An argument whose template is broken would be reported twice.
    if findings
        .list
        .iter()
        .skip(faults)
        .all(|finding| finding.severity != Severity::Error)
    {
        check_call(function, phase, name, findings);
    }
}

/// The names of the objects in conditions are rendered, the conditions are not.
fn check_references(function: Function, phase: &Phase, name: &str, scope: &Scope, findings: &mut Findings) {
    if !matches!(function, Function::Wait | Function::WaitV2) {
        return;
    }
    let lists = phase.args.get("conditions").and_then(Value::as_object);
    for (list, conditions) in lists.into_iter().flatten() {
        for (index, condition) in conditions.as_array().into_iter().flatten().enumerate() {
            for (field, value) in condition.as_object().into_iter().flatten() {
                if field.eq_ignore_ascii_case("objectReference") {
                    check_value(
                        value,
                        name,
                        &format!("conditions.{list}[{index}].{field}"),
                        scope,
                        findings,
                    );
                }
            }
        }
    }
}

/// Decodes the arguments, with something in the place of each template.
fn check_call(function: Function, phase: &Phase, name: &str, findings: &mut Findings) {
    let (args, templates) = without_templates(&phase.args);
    // The subject is not known yet: one that could stand for any lets defaults pass.
    let subject = Subject {
        kind: SubjectKind::StatefulSet,
        name: "subject".to_owned(),
        namespace: "namespace".to_owned(),
        pods: Vec::new(),
        object: None,
    };
    match FunctionCall::decode(function, &args, &subject) {
        Ok(_) => {}
        // Its value is not known before it is rendered.
        Err(CallError::Argument { argument, .. })
            if templates.iter().any(|path| argument.starts_with(path.as_str())) => {}
        Err(CallError::Argument { argument, message }) => findings.error(name, &argument, message),
        Err(other) => findings.error(name, "", other.to_string()),
    }
}

/// The arguments with a stand-in for each template, and the arguments that hold one.
fn without_templates(args: &Map<String, Value>) -> (Map<String, Value>, BTreeSet<String>) {
    let mut plain = Map::new();
    let mut templates = BTreeSet::new();
    for (name, value) in args {
        // A key that is a template can become any argument.
        if name.contains("{{") {
            continue;
        }
        // A condition is no template of the params; its own syntax is checked when it is decoded.
        if name != "conditions" && has_template(value) {
            templates.insert(name.clone());
        }
        plain.insert(name.clone(), value.clone());
    }
    (plain, templates)
}

fn has_template(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("{{"),
        Value::Array(items) => items.iter().any(has_template),
        Value::Object(fields) => fields
            .iter()
            .any(|(key, value)| key.contains("{{") || has_template(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn check_objects(phase: &Phase, name: &str, findings: &mut Findings) {
    for (object, reference) in &phase.objects {
        let path = format!("objects.{object}");
        let ObjectReference {
            kind, name: of_object, ..
        } = reference;
        if !kind.contains("{{") && ObjectKind::parse(kind).is_none() {
            let message = format!(
                "the kind {kind:?} is neither Secret nor ConfigMap; Kanister ignores such an object, and so does Reveille"
            );
            findings.warning(name, &path, message);
        } else if of_object.is_empty() {
            findings.error(name, &path, "names no object: its name is empty");
        }
        // Objects of all phases are fetched by names that are known before the first one runs.
        let none = BTreeSet::new();
        let scope = Scope {
            phases: &none,
            deferred: false,
        };
        for (field, text) in [
            ("apiVersion", &reference.api_version),
            ("group", &reference.group),
            ("resource", &reference.resource),
            ("kind", &reference.kind),
            ("name", &reference.name),
            ("namespace", &reference.namespace),
        ] {
            check_template(text, name, &format!("{path}.{field}"), &scope, findings);
        }
    }
}

fn check_value(value: &Value, phase: &str, path: &str, scope: &Scope, findings: &mut Findings) {
    match value {
        Value::String(text) => check_template(text, phase, path, scope, findings),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check_value(item, phase, &format!("{path}[{index}]"), scope, findings);
            }
        }
        Value::Object(fields) => {
            for (key, item) in fields {
                let path = format!("{path}.{key}");
                check_template(key, phase, &path, scope, findings);
                check_value(item, phase, &path, scope, findings);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn check_template(text: &str, phase: &str, path: &str, scope: &Scope, findings: &mut Findings) {
    let template = match Template::parse(text, Mode::Params) {
        Ok(template) => template,
        Err(message) => return findings.error(phase, path, message),
    };
    let reads: BTreeSet<&[String]> = template.reads.iter().map(Vec::as_slice).collect();
    for read in reads {
        let read: Vec<&str> = read.iter().map(String::as_str).collect();
        match read.as_slice() {
            ["Profile", ..] if read.len() > 1 => {
                let message = format!(
                    ".{} can't be read: execution hooks have no location profile",
                    read.join(".")
                );
                findings.error(phase, path, message);
            }
            ["Phases", name, ..] if !scope.phases.contains(name) => {
                // Only a warning: it may stand in a branch that is never taken.
                findings.warning(phase, path, format!(".Phases.{name} is no phase that has run by then"));
            }
            ["DeferPhase", _, ..] if !scope.deferred => {
                findings.warning(
                    phase,
                    path,
                    ".DeferPhase is only there in the deferred phase and in output artifacts",
                );
            }
            [field, ..] if !FIELDS.contains(field) => {
                findings.warning(
                    phase,
                    path,
                    format!(".{field} is not there: templates read {}", FIELDS.join(", ")),
                );
            }
            _ => {}
        }
    }
}

/// What stands at the root of the params.
const FIELDS: [&str; 18] = [
    "ArtifactsIn",
    "ConfigMaps",
    "CurrentPhase",
    "DeferPhase",
    "Deployment",
    "DeploymentConfig",
    "Namespace",
    "Object",
    "Options",
    "PVC",
    "Phases",
    "PodAnnotations",
    "PodLabels",
    "PodOverride",
    "Profile",
    "Secrets",
    "StatefulSet",
    "Time",
];

#[cfg(test)]
mod tests;
