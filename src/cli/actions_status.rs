//! What `reveille status` shows of actions: their hooks, and the phases of each.

use std::fmt::Write;

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
};
use serde::Serialize;

use crate::{
    actions::action::{Action, ActionKind},
    api::action::{ActionPhase, ActionStatus, Invocation, PhaseStatus, StepState},
    duration::GoDuration,
    infra::kube::is_not_found,
    waiter::events::cut,
};

/// What is said of an action that no controller has looked at.
const NOT_TAKEN_UP: &str =
    "no controller has taken it up; actions count in the controller's own namespace (actions.namespace)";

/// One action.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ActionReport {
    /// `RestoreAction` or `BackupAction`.
    pub(super) kind: &'static str,
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
    /// What has become of it.
    pub(super) status: ActionStatus,
}

/// Reads all actions, or those whose Velero object has this name; none where their kinds are not installed.
pub(super) async fn read(client: &Client, velero: Option<&str>) -> anyhow::Result<Vec<ActionReport>> {
    let mut reports = Vec::new();
    for kind in ActionKind::ALL {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind.resource());
        let list = match api.list(&ListParams::default()).await {
            Ok(list) => list.items,
            Err(error) if is_not_found(&error) => continue,
            // Whoever may read runs need not be allowed to read actions.
            Err(kube::Error::Api(status)) if status.code == 403 => continue,
            Err(error) => return Err(error).with_context(|| format!("can't list {}s", kind.word())),
        };
        for object in list {
            let Ok(action) = Action::read(kind, &object) else {
                continue;
            };
            let of = action.status.velero.as_ref().map(|object| object.name.as_str());
            if velero.is_some() && (velero != of || kind == ActionKind::Backup) {
                continue;
            }
            reports.push(ActionReport {
                kind: kind.word(),
                namespace: action.namespace,
                name: action.name,
                status: action.status,
            });
        }
    }
    Ok(reports)
}

/// Renders actions; the time of what runs is counted up to `now`.
pub(super) fn render(reports: &[ActionReport], now: Timestamp) -> String {
    let mut text = String::new();
    for report in reports {
        let ActionReport {
            kind,
            namespace,
            name,
            status,
        } = report;
        let message = match (status.phase, status.message.as_str()) {
            // A controller takes it up at once.
            (ActionPhase::New, "") => NOT_TAKEN_UP.to_owned(),
            (_, message) => one_line(message),
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "{kind} {namespace}/{name}: {:?}{}", status.phase, told(&message));
        if let Some(object) = &status.velero {
            let phase = if object.phase.is_empty() { "New" } else { &object.phase };
            let _ = writeln!(text, " Velero {}/{} {phase}", object.namespace, object.name);
        }
        for trouble in status.troubles() {
            let _ = writeln!(text, " {}: {}", trouble.type_, one_line(&trouble.message));
        }
        let shown: Vec<&Invocation> = status
            .hooks
            .iter()
            .filter(|hook| is_shown(hook, status.phase))
            .collect();
        if !shown.is_empty() {
            let _ = writeln!(text, "{}", table(&shown, now));
        }
        let _ = writeln!(text);
    }
    text
}

/// Hooks that were not needed say nothing about an action that is over.
fn is_shown(hook: &Invocation, phase: ActionPhase) -> bool {
    !(phase.is_final() && hook.state == StepState::Skipped && hook.attempt == 0)
}

fn table(hooks: &[&Invocation], now: Timestamp) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "HOOK",
        "NAMESPACE",
        "BLUEPRINT",
        "ACTION",
        "PHASE",
        "STATE",
        "TRY",
        "DURATION",
        "REASON",
    ]);
    for hook in hooks {
        table.add_row([
            hook.hook.path().to_owned(),
            hook.namespace.clone(),
            hook.blueprint.clone(),
            hook.action_name.clone(),
            String::new(),
            format!("{:?}", hook.state),
            hook.attempt.to_string(),
            duration(hook.started_at.as_ref(), hook.finished_at.as_ref(), hook.state, now),
            one_line(&hook.message),
        ]);
        for phase in &hook.phases {
            table.add_row(phase_row(phase, now));
        }
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn phase_row(phase: &PhaseStatus, now: Timestamp) -> [String; 9] {
    let empty = String::new;
    [
        empty(),
        empty(),
        empty(),
        empty(),
        format!("{} ({})", phase.label(), phase.func),
        format!("{:?}", phase.state),
        empty(),
        duration(phase.started_at.as_ref(), phase.finished_at.as_ref(), phase.state, now),
        one_line(&phase.message),
    ]
}

fn duration(start: Option<&MicroTime>, end: Option<&MicroTime>, state: StepState, now: Timestamp) -> String {
    let end = end.map(|end| end.0).or((state == StepState::Running).then_some(now));
    let (Some(start), Some(end)) = (start, end) else {
        return "-".to_owned();
    };
    let tenths = i64::try_from(end.duration_since(start.0).as_millis() / 100).unwrap_or_default();
    GoDuration::from_millis(tenths.max(0) * 100).to_string()
}

fn told(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

fn one_line(text: &str) -> String {
    cut(&text.replace(['\n', '\t'], " "), 200)
}
