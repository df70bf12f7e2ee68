//! `reveille blueprint check`: what is wrong with a Blueprint, and what its actions would do, without a cluster.

use std::{collections::BTreeMap, io::Write, process::ExitCode};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    blueprint::{
        Action, Blueprint, Params, Phase, PhaseParams, Subject, SubjectKind,
        call::{Function, FunctionCall},
        check::{self, Finding, display_name},
        render::{self, RenderError},
    },
    hooks::Severity,
};

/// Nothing is wrong, or only what is worth a warning.
const GOOD: u8 = 0;
/// At least one error.
const WRONG: u8 = 1;

/// Looks at Kanister Blueprints.
#[derive(Args, Debug)]
pub struct BlueprintArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Check(CheckArgs),
}

/// Checks a Blueprint, and renders one of its actions. Needs no cluster.
///
/// All actions are checked, or the one that is named. With --subject the arguments of its phases are rendered and decoded as
/// they would be before they run; what only a run can know (outputs of earlier phases, Secrets) is said to be so.
///
/// Exit code: 0 good (warnings are good), 1 at least one error, 2 the file can't be read.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// A file with Blueprints (YAML or JSON; - is standard input). Other objects in it are left aside.
    file: String,
    /// Only this action.
    #[arg(long)]
    action: Option<String>,
    /// What the action works on: KIND/NAMESPACE/NAME, or namespace/NAME. The kinds are those of a subject in a hook.
    #[arg(long, requires = "action", value_parser = subject)]
    subject: Option<Wanted>,
    /// A file with the subject's manifest, and with its pods if templates read those.
    #[arg(long, requires = "subject")]
    objects: Option<String>,
    /// The action's start (RFC 3339), for templates that read it.
    #[arg(long, default_value = "1970-01-01T00:00:00Z")]
    at: Timestamp,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = CheckOutput::Text)]
    output: CheckOutput,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CheckOutput {
    /// Sentences.
    Text,
    /// The stable contract for programs.
    Json,
    /// The same as YAML.
    Yaml,
}

/// A subject as the command line names it.
#[derive(Clone, Debug)]
struct Wanted {
    kind: SubjectKind,
    /// As it was written.
    word: String,
    namespace: String,
    name: String,
}

/// The stable contract of `-o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    good: bool,
    blueprints: Vec<BlueprintReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlueprintReport {
    name: String,
    actions: Vec<String>,
    findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rendered: Vec<RenderedPhase>,
}

/// A phase with its arguments as they would be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RenderedPhase {
    phase: String,
    func: String,
    /// Each argument that can be rendered.
    args: Map<String, Value>,
    /// Each argument that can't be, yet, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    unknown: BTreeMap<String, String>,
}

/// Runs the command.
pub fn run(args: BlueprintArgs) -> anyhow::Result<ExitCode> {
    let Command::Check(args) = args.command;
    let report = report(&args)?;
    let text = match args.output {
        CheckOutput::Text => text(&report),
        CheckOutput::Json => serde_json::to_string_pretty(&report)? + "\n",
        CheckOutput::Yaml => serde_saphyr::to_string(&serde_json::to_value(&report)?)?,
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::from(if report.good { GOOD } else { WRONG }))
}

fn subject(text: &str) -> Result<Wanted, String> {
    let (kind, namespace, name) = match text.split('/').collect::<Vec<_>>().as_slice() {
        [kind, name] if kind.eq_ignore_ascii_case("namespace") => (*kind, *name, *name),
        [kind, namespace, name] => (*kind, *namespace, *name),
        _ => return Err("it is not KIND/NAMESPACE/NAME, or namespace/NAME".to_owned()),
    };
    if [kind, namespace, name].contains(&"") {
        return Err("a part of KIND/NAMESPACE/NAME is empty".to_owned());
    }
    Ok(Wanted {
        kind: SubjectKind::parse(kind),
        word: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn report(args: &CheckArgs) -> anyhow::Result<Report> {
    let blueprints = blueprints(&args.file)?;
    let params = match &args.subject {
        None => None,
        Some(wanted) => Some(Params::new(args.at, find_subject(wanted, args.objects.as_deref())?)),
    };
    let reports: Vec<BlueprintReport> = blueprints
        .iter()
        .map(|blueprint| blueprint_report(blueprint, args.action.as_deref(), params.as_ref()))
        .collect();
    let is_error = |finding: &Finding| finding.severity == Severity::Error;
    Ok(Report {
        good: !reports.iter().flat_map(|report| &report.findings).any(is_error),
        blueprints: reports,
    })
}

fn blueprint_report(blueprint: &Blueprint, action: Option<&str>, params: Option<&Params>) -> BlueprintReport {
    let actions: Vec<String> = match action {
        Some(action) => vec![action.to_owned()],
        None => blueprint.actions.keys().cloned().collect(),
    };
    let mut findings: Vec<Finding> = actions
        .iter()
        .flat_map(|action| check::check(blueprint, action, params.map(|params| &params.subject.kind)))
        .collect();
    let mut rendered = Vec::new();
    if let (Some(params), Some(name)) = (params, action)
        && let Some(action) = blueprint.actions.get(name)
    {
        rendered = render_action(name, action, params, &mut findings);
    }
    BlueprintReport {
        name: blueprint.name.clone(),
        actions,
        findings,
        rendered,
    }
}

/// All phases as they would be. What is no text at all for want of a run is named as unknown; everything else that fails is
/// an error.
fn render_action(name: &str, action: &Action, params: &Params, findings: &mut Vec<Finding>) -> Vec<RenderedPhase> {
    let mut params = params.clone();
    let mut rendered = Vec::new();
    for (index, phase) in action.all_phases().enumerate() {
        let phase_name = display_name(action, index);
        // As far as is known before a run: they are there, and what they hold is not known.
        if index < action.phases.len() {
            params.phases.insert(phase.name.clone(), PhaseParams::default());
        } else {
            params.defer_phase = Some(PhaseParams::default());
        }
        let one = render_phase(phase, phase_name.clone(), &params);
        let complete = one.unknown.is_empty();
        let known = findings
            .iter()
            .any(|finding| finding.phase == phase_name && finding.severity == Severity::Error);
        for (argument, message) in &one.unknown {
            let name_of_argument = argument.split(['.', '[']).next().unwrap_or_default();
            let needs_run = needs_run(phase.args.get(name_of_argument));
            if !needs_run && !known {
                findings.push(finding(name, &phase_name, argument, message));
            }
        }
        if complete
            && !known
            && let Err(error) = FunctionCall::prepare(phase, &params)
        {
            findings.push(finding(name, &phase_name, "", &error.to_string()));
        }
        rendered.push(one);
    }
    rendered
}

fn finding(action: &str, phase: &str, argument: &str, message: &str) -> Finding {
    Finding {
        severity: Severity::Error,
        action: action.to_owned(),
        phase: phase.to_owned(),
        argument: argument.to_owned(),
        message: message.to_owned(),
    }
}

/// Only a run can give what these read.
fn needs_run(argument: Option<&Value>) -> bool {
    let text = argument.map(Value::to_string).unwrap_or_default();
    [".Phases", ".DeferPhase", ".ArtifactsIn", ".Options"]
        .iter()
        .any(|read| text.contains(read))
}

fn render_phase(phase: &Phase, name: String, params: &Params) -> RenderedPhase {
    let mut args = Map::new();
    let mut unknown = BTreeMap::new();
    let waits = matches!(Function::parse(&phase.func), Ok(Function::Wait | Function::WaitV2));
    for (argument, value) in &phase.args {
        let rendered = if waits && argument == "conditions" {
            conditions(value, params)
        } else {
            render::value(value, params)
        };
        match rendered {
            Ok(value) => {
                args.insert(argument.clone(), value);
            }
            Err(RenderError { path, message }) => {
                let dot = if path.is_empty() || path.starts_with('[') {
                    ""
                } else {
                    "."
                };
                unknown.insert(format!("{argument}{dot}{path}"), message);
            }
        }
    }
    RenderedPhase {
        phase: name,
        func: phase.func.clone(),
        args,
        unknown,
    }
}

/// The conditions of a wait: the names of their objects are rendered, they themselves are evaluated as they stand.
fn conditions(value: &Value, params: &Params) -> Result<Value, RenderError> {
    let mut value = value.clone();
    let lists = value.as_object_mut().into_iter().flatten();
    for condition in lists.filter_map(|(_, list)| list.as_array_mut()).flatten() {
        for (field, reference) in condition.as_object_mut().into_iter().flatten() {
            if field.eq_ignore_ascii_case("objectReference") {
                *reference = render::value(reference, params)?;
            }
        }
    }
    Ok(value)
}

/// The Blueprints of a file.
fn blueprints(file: &str) -> anyhow::Result<Vec<Blueprint>> {
    let mut blueprints = Vec::new();
    for document in documents(file)? {
        if document.get("kind").and_then(Value::as_str) == Some("Blueprint") {
            blueprints.push(Blueprint::read(&document).with_context(|| file.to_owned())?);
        }
    }
    if blueprints.is_empty() {
        bail!("{file} holds no Blueprint");
    }
    Ok(blueprints)
}

/// All objects of a file; those of a List one by one.
fn documents(file: &str) -> anyhow::Result<Vec<Value>> {
    let text = if file == "-" {
        std::io::read_to_string(std::io::stdin()).context("can't read standard input")?
    } else {
        std::fs::read_to_string(file).with_context(|| format!("can't read {file}"))?
    };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("{file} is not readable as YAML or JSON"))?;
    let flat = documents.into_iter().flat_map(|document| match document.get("items") {
        Some(Value::Array(items)) => items.clone(),
        _ => vec![document],
    });
    Ok(flat.filter(|document| !document.is_null()).collect())
}

/// The subject with what the file knows of it.
fn find_subject(wanted: &Wanted, objects: Option<&str>) -> anyhow::Result<Subject> {
    let Some(file) = objects else {
        if wanted.kind == SubjectKind::Namespace {
            return Ok(Subject::namespace(&wanted.name, None));
        }
        return Ok(Subject {
            kind: wanted.kind.clone(),
            name: wanted.name.clone(),
            namespace: wanted.namespace.clone(),
            pods: Vec::new(),
            object: None,
        });
    };
    let objects = documents(file)?;
    let of_kind = |kind: &str| -> Vec<Value> {
        let same = |object: &&Value| kind_of(object).eq_ignore_ascii_case(kind);
        objects.iter().filter(same).cloned().collect()
    };
    let word = if wanted.kind == SubjectKind::Pvc {
        "PersistentVolumeClaim"
    } else {
        wanted.word.as_str()
    };
    let found = of_kind(word).into_iter().find(|object| is_named(object, wanted));
    let Some(object) = found else {
        bail!(
            "--objects: {file} holds no {} {}/{}",
            wanted.word,
            wanted.namespace,
            wanted.name
        );
    };
    let subject = Subject::of(wanted.kind.clone(), object, &of_kind("Pod"), &of_kind("ReplicaSet"));
    let subject = subject.map_err(|message| anyhow::anyhow!("--objects: {file}: {message}"))?;
    // A manifest need not say its namespace.
    Ok(Subject {
        namespace: wanted.namespace.clone(),
        ..subject
    })
}

fn kind_of(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}

fn is_named(object: &Value, wanted: &Wanted) -> bool {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let namespace = text("/metadata/namespace").unwrap_or(&wanted.namespace);
    text("/metadata/name") == Some(&wanted.name) && namespace == wanted.namespace
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    for blueprint in &report.blueprints {
        lines.push(format!("Blueprint {}: {}.", blueprint.name, summary(blueprint)));
        for finding in &blueprint.findings {
            let word = if finding.severity == Severity::Error {
                "Error"
            } else {
                "Warning"
            };
            lines.push(format!("  {word}: {finding}"));
        }
        for phase in &blueprint.rendered {
            lines.push(format!("  Phase {} calls {} with:", phase.phase, phase.func));
            for (argument, value) in &phase.args {
                lines.push(format!("    {argument}: {value}"));
            }
            for (argument, reason) in &phase.unknown {
                lines.push(format!("    {argument}: can't be told without a run: {reason}"));
            }
        }
    }
    lines.push(if report.good { "Good." } else { "Not good." }.to_owned());
    lines.join("\n") + "\n"
}

fn summary(blueprint: &BlueprintReport) -> String {
    match blueprint.actions.as_slice() {
        [] => "no actions".to_owned(),
        [one] => format!("action {one}"),
        several => format!("actions {}", several.join(", ")),
    }
}
