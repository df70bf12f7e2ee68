//! The table that `reveille status` prints.

use std::fmt::Write;

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{status::RestoreStatus, unserved::Unserved};
use crate::{
    api::hook_run::{HookState, InitState, InitStatus, PostStatus},
    duration::GoDuration,
};

/// Renders restores with their runs and hooks; a running hook's time is counted up to `now`.
pub(super) fn render(statuses: &[RestoreStatus], now: Timestamp) -> String {
    if statuses.is_empty() {
        return "No runs. Pods get one when a restore creates them with hooks.\n".to_owned();
    }
    let mut text = String::new();
    for status in statuses {
        let _ = writeln!(text, "{}", title(status));
        if let Some(request) = &status.paused {
            let _ = writeln!(text, " paused {request}");
        }
        if let Some(request) = &status.cancelled {
            let _ = writeln!(text, " cancelled {request}");
        }
        if !status.runs.is_empty() {
            let _ = writeln!(text, "{}\n{}", table(status, now), totals(status));
        }
        for Unserved {
            namespace,
            pod,
            controller,
            hooks,
            ..
        } in &status.not_served
        {
            let hooks = plural(*hooks, "hook");
            let _ = writeln!(
                text,
                "Not served: pod {namespace}/{pod} with {hooks}: {controller} made it by itself"
            );
        }
        let _ = writeln!(text);
    }
    text
}

/// How a restore stands, in one line.
pub(super) fn title(status: &RestoreStatus) -> String {
    let name = status.restore.as_ref().map_or_else(
        || "(other restore tools)".to_owned(),
        |r| format!("{}/{}", r.namespace, r.name),
    );
    let mut line = format!("Restore {name}: hooks {}", status.result);
    if let Some(phase) = status.velero_phase.as_ref().filter(|phase| !phase.is_empty()) {
        let _ = write!(line, ", Velero {phase}");
    }
    if !status.message.is_empty() {
        let _ = write!(line, " ({})", status.message);
    }
    line
}

fn table(status: &RestoreStatus, now: Timestamp) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "NAMESPACE",
        "POD",
        "KIND",
        "CONTAINER",
        "HOOK",
        "STATE",
        "ATTEMPTS",
        "DURATION",
        "REASON",
    ]);
    for run in &status.runs {
        let namespace = run.metadata.namespace.clone().unwrap_or_default();
        let pod = run.spec.pod.name.clone();
        let mut row = |kind: &str, cells: [String; 6]| {
            let [container, hook, state, attempts, duration, reason] = cells;
            table.add_row([
                namespace.clone(),
                pod.clone(),
                kind.to_owned(),
                container,
                hook,
                state,
                attempts,
                duration,
                reason,
            ]);
        };
        let Some(state) = &run.status else {
            row(
                "-",
                [
                    String::new(),
                    String::new(),
                    "Waiting".to_owned(),
                    String::new(),
                    String::new(),
                    "not taken in yet".to_owned(),
                ],
            );
            continue;
        };
        for init in &state.init {
            row("init", init_cells(init, now));
        }
        for post in &state.post {
            let mut cells = post_cells(post, now);
            // What keeps a whole run from starting stands in no hook of its own.
            if let (HookState::Waiting, Some(_), Some(reason)) = (post.state, &state.paused_since, cells.last_mut()) {
                *reason = one_line(&state.message);
            }
            row("post", cells);
        }
    }
    // comfy-table pads the last column; trailing blanks are noise in a terminal and in diffs.
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn init_cells(init: &InitStatus, now: Timestamp) -> [String; 6] {
    let duration = duration(
        init.started_at.as_ref(),
        init.finished_at.as_ref(),
        init.state == InitState::Running,
        now,
    );
    [
        init.container.clone(),
        init.name.clone(),
        format!("{:?}", init.state),
        "-".to_owned(),
        duration,
        one_line(&init.message),
    ]
}

fn post_cells(post: &PostStatus, now: Timestamp) -> [String; 6] {
    let last = post.attempts.last();
    let running = post.state == HookState::Started;
    let time = duration(
        last.map(|attempt| &attempt.started_at),
        last.and_then(|attempt| attempt.finished_at.as_ref()),
        running,
        now,
    );
    let reason = if post.message.is_empty() {
        post.reason.clone()
    } else {
        one_line(&post.message)
    };
    [
        post.container.clone(),
        post.name.clone(),
        format!("{:?}", post.state),
        post.times_started().to_string(),
        time,
        reason,
    ]
}

fn duration(start: Option<&MicroTime>, end: Option<&MicroTime>, running: bool, now: Timestamp) -> String {
    let end = end.map(|end| end.0).or(running.then_some(now));
    let (Some(start), Some(end)) = (start, end) else {
        return "-".to_owned();
    };
    let tenths = i64::try_from(end.duration_since(start.0).as_millis() / 100).unwrap_or_default();
    GoDuration::from_millis(tenths.max(0) * 100).to_string()
}

fn one_line(text: &str) -> String {
    crate::waiter::events::cut(&text.replace(['\n', '\t'], " "), 200)
}

fn totals(status: &RestoreStatus) -> String {
    let ended_as = || {
        status
            .runs
            .iter()
            .flat_map(|run| run.status.iter())
            .flat_map(|status| &status.post)
            .map(|post| post.state)
    };
    let all = ended_as().count();
    let mut parts = Vec::new();
    for state in [
        HookState::Succeeded,
        HookState::Failed,
        HookState::ExecTimedOut,
        HookState::WaitTimedOut,
        HookState::Cancelled,
        HookState::Skipped,
        HookState::Unknown,
        HookState::LeftToVelero,
        HookState::Started,
        HookState::Waiting,
    ] {
        let count = ended_as().filter(|other| *other == state).count();
        if count > 0 {
            parts.push(format!("{count} {state:?}"));
        }
    }
    let detail = if parts.is_empty() {
        String::new()
    } else {
        format!(": {}", parts.join(", "))
    };
    {
        let pods = plural(status.runs.len(), "pod");
        format!("{pods}, {}{detail}", plural(all, "post hook"))
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
