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
///
/// `subject`: the kind of what it works on, if that is known.
pub fn check(blueprint: &Blueprint, action: &str, subject: Option<&SubjectKind>) -> Vec<Finding> {
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
    check_action(found, subject, &mut findings);
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

fn check_action(action: &Action, subject: Option<&SubjectKind>, findings: &mut Findings) {
    if action.phases.is_empty() && action.defer_phase.is_none() {
        findings.warning("", "", "it has no phases, so it does nothing");
    }
    // Where it is not known, one that could stand for any lets defaults pass.
    let subject = subject.unwrap_or(&SubjectKind::StatefulSet);
    let mut before = BTreeSet::new();
    for (index, phase) in action.phases.iter().enumerate() {
        let name = display_name(action, index);
        let seen = Scope {
            phases: &before,
            deferred: false,
        };
        check_phase(phase, &name, subject, &seen, findings);
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
        check_phase(phase, &name, subject, &deferred, findings);
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

fn check_phase(phase: &Phase, name: &str, subject: &SubjectKind, scope: &Scope, findings: &mut Findings) {
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
        check_call(function, phase, name, subject, findings);
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
fn check_call(function: Function, phase: &Phase, name: &str, subject: &SubjectKind, findings: &mut Findings) {
    let (args, templates) = without_templates(function, &phase.args);
    let subject = Subject {
        kind: subject.clone(),
        name: "subject".to_owned(),
        namespace: "namespace".to_owned(),
        pods: Vec::new(),
        object: None,
    };
    // A templated operation can become any: what is wrong with all of them is wrong.
    let operations: &[&str] = if templates.contains("operation") {
        &["create", "patch", "delete"]
    } else {
        &[""]
    };
    let mut first = None;
    for operation in operations {
        let mut args = args.clone();
        if !operation.is_empty() {
            args.insert("operation".to_owned(), Value::from(*operation));
        }
        match FunctionCall::decode(function, &args, &subject) {
            Ok(_) => return,
            // Its value is not known before it is rendered.
            Err(CallError::Argument { argument, .. }) if templates.contains(top(&argument)) => return,
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(CallError::Argument { argument, message }) => findings.error(name, &argument, message),
        Some(other) => findings.error(name, "", other.to_string()),
        None => {}
    }
}

/// The argument in which a path begins.
fn top(path: &str) -> &str {
    path.split(['.', '[']).next().unwrap_or(path)
}

/// What a template in the place of an argument is taken for, so that what stands behind it is looked at, too.
fn stand_in(function: Function, argument: &str) -> Option<Value> {
    match (function, argument) {
        (Function::Wait | Function::WaitV2, "timeout") => Some(Value::from("1s")),
        (Function::ScaleWorkload, "kind") => Some(Value::from("statefulset")),
        (Function::ScaleWorkload, "replicas") => Some(Value::from(0)),
        (Function::ScaleWorkload, "waitForReady") => Some(Value::from(true)),
        _ => None,
    }
}

/// The arguments with a stand-in for each template, and the arguments that hold one.
fn without_templates(function: Function, args: &Map<String, Value>) -> (Map<String, Value>, BTreeSet<String>) {
    let mut plain = Map::new();
    let mut templates = BTreeSet::new();
    for (name, value) in args {
        // A key that is a template can become any argument.
        if name.contains("{{") {
            continue;
        }
        // A condition is no template of the params; its own syntax is checked when it is decoded.
        let is_template = name != "conditions" && has_template(value);
        let known = stand_in(function, name).filter(|_| is_template);
        if is_template && known.is_none() {
            templates.insert(name.clone());
        }
        plain.insert(name.clone(), known.unwrap_or_else(|| value.clone()));
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
    let is_profile = |path: &&Vec<String>| path.len() == 1 && path.first().is_some_and(|field| field == "Profile");
    // Whether there is a profile may be asked: there is none.
    let asked = template.asked.iter().filter(|path| !is_profile(path));
    let reads: BTreeSet<&[String]> = template.reads.iter().chain(asked).map(Vec::as_slice).collect();
    for read in reads {
        let read: Vec<&str> = read.iter().map(String::as_str).collect();
        match read.as_slice() {
            ["Profile", ..] => {
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
