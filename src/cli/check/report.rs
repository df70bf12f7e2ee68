//! How findings are printed.

use std::{fmt::Write as _, io::Write as _};

use serde::Serialize;

use super::{Finding, Findings, Severity, hooks::HookReport};
use crate::cli::output::Output;

/// Prints a report: as text for people, or as it is for programs.
pub(super) fn print<T: Serialize>(report: &T, text: fn(&T) -> String, output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Text => text(report),
        Output::Json => serde_json::to_string_pretty(report)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&serde_json::to_value(report)?)?,
    };
    // A reader that has gone away (`| head`) is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Unknown => "unknown",
        Severity::Warning => "WARNING",
        Severity::Error => "ERROR",
    }
}

/// A line for each finding, and below it what to do.
pub(super) fn findings(found: &Findings) -> String {
    let width = found
        .findings
        .iter()
        .map(|finding| finding.check.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for finding in &found.findings {
        let Finding {
            check,
            severity,
            message,
            advice,
        } = finding;
        // Writing to a String can't fail.
        let _ = writeln!(text, "{:<8} {check:<width$}  {message}", word(*severity));
        if !advice.is_empty() {
            let _ = writeln!(text, "{:<8} {:<width$}  -> {advice}", "", "");
        }
    }
    let count = |severity: Severity| {
        let all = found.findings.iter().filter(|finding| finding.severity == severity);
        all.count()
    };
    let _ = writeln!(
        text,
        "\n{}, {}, {} not looked at",
        plural(count(Severity::Error), "error"),
        plural(count(Severity::Warning), "warning"),
        count(Severity::Unknown)
    );
    text
}

/// A line for each bad hook, by object.
pub(super) fn hooks(report: &HookReport) -> String {
    let mut text = String::new();
    let mut last = None;
    for problem in &report.problems {
        let object = problem.object();
        if last.as_ref() != Some(&object) {
            let _ = writeln!(text, "{object}");
            last = Some(object);
        }
        let severity = match problem.severity {
            crate::hooks::Severity::Error => Severity::Error,
            crate::hooks::Severity::Warning => Severity::Warning,
        };
        let _ = writeln!(text, "  {:<8} {}: {}", word(severity), problem.source, problem.message);
    }
    for kind in &report.unreadable {
        let _ = writeln!(text, "{:<10} {kind}", word(Severity::Unknown));
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "{} read, {} with hook annotations: {}, {}",
        plural(report.objects, "object"),
        report.with_hooks,
        plural(report.count(crate::hooks::Severity::Error), "error"),
        plural(report.count(crate::hooks::Severity::Warning), "warning"),
    );
    text
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
