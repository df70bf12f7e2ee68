//! The preview in sentences.

use std::fmt::Write;

use super::preview::Preview;
use crate::hooks::{
    HookSource, OnError, OnUnknown, Severity,
    select::{container_name, pod_containers},
};

/// Renders a preview for people.
pub(super) fn render(preview: &Preview) -> String {
    let mut text = String::new();
    let name = preview
        .pod
        .get("metadata")
        .and_then(|metadata| metadata.get("name"))
        .and_then(|name| name.as_str())
        .unwrap_or("?");
    let verb = if preview.restored {
        "is being restored"
    } else {
        "is not being restored"
    };
    line(&mut text, format_args!("Pod {name} {verb}: {}.", preview.reason));
    for explanation in &preview.explanations {
        line(&mut text, format_args!("  {explanation}."));
    }
    if preview.restored {
        init(&mut text, preview);
        post(&mut text, preview);
        let count = preview.patch.len();
        match count {
            0 => line(&mut text, format_args!("The pod stays as it is.")),
            _ => line(
                &mut text,
                format_args!("The pod is changed by {count} JSON patch operations (-o json shows them)."),
            ),
        }
    }
    for problem in &preview.problems {
        let word = if problem.severity == Severity::Error {
            "Error"
        } else {
            "Warning"
        };
        line(&mut text, format_args!("{word}: {problem}"));
    }
    text
}

/// Writing to a String can't fail.
fn line(text: &mut String, arguments: std::fmt::Arguments) {
    let _ = writeln!(text, "{arguments}");
}

fn init(text: &mut String, preview: &Preview) {
    let names: Vec<&str> = pod_containers(&preview.pod, "initContainers")
        .iter()
        .filter_map(container_name)
        .collect();
    if preview.injected.is_empty() {
        line(text, format_args!("Init hooks: none is added."));
    } else {
        line(text, format_args!("Init hooks: {} added.", preview.injected.join(", ")));
    }
    if !names.is_empty() {
        line(
            text,
            format_args!("  The init containers then are, in order: {}.", names.join(", ")),
        );
    }
}

fn post(text: &mut String, preview: &Preview) {
    if preview.hooks.is_empty() {
        line(text, format_args!("Post hooks: Reveille runs none."));
        return;
    }
    line(text, format_args!("Post hooks: Reveille runs {}.", preview.hooks.len()));
    for (index, hook) in preview.hooks.iter().enumerate() {
        let source = match hook.source {
            HookSource::Annotation => "from the pod's annotations",
            HookSource::Spec => "from the Restore",
        };
        let up = if hook.wait_for_ready { "ready" } else { "running" };
        let wait = if hook.wait_timeout.is_zero() {
            "without a limit".to_owned()
        } else {
            format!("at most {}", hook.wait_timeout)
        };
        let failure = match hook.on_error {
            OnError::Fail => "its failure fails the restore's hooks and cancels those that have not started",
            OnError::Continue => "its failure is reported and changes nothing else",
        };
        line(
            text,
            format_args!(
                "  {}. {} ({source}) in container {}:",
                index + 1,
                hook.name,
                hook.container
            ),
        );
        line(
            text,
            format_args!(
                "     command {}",
                serde_json::to_string(&hook.command).unwrap_or_default()
            ),
        );
        line(
            text,
            format_args!(
                "     waits for the container to be {up}, {wait}; then may run {}; {failure}.",
                hook.exec_timeout
            ),
        );
        if let Some(retry) = &hook.retry {
            let unknown = match retry.on_unknown {
                OnUnknown::Fail => "not after an end that nobody knows",
                OnUnknown::Retry => "also after an end that nobody knows",
            };
            line(
                text,
                format_args!(
                    "     if it fails it is run again up to {} times, first after {}; {unknown}.",
                    retry.limit(),
                    retry.backoff
                ),
            );
        }
        if let Some(folder) = &hook.result_file {
            line(
                text,
                format_args!("     exit code and output are kept in {folder} until they are recorded."),
            );
        }
    }
}
