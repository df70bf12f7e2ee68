//! `reveille check`: a doctor for the cluster. Facts are gathered first ([`gather`]); what they mean is decided by pure functions
//! ([`findings`]). `reveille check hooks` reads hook annotations before the worst day does ([`hooks`]).

pub mod facts;
pub mod findings;
mod gather;
pub mod hooks;
mod report;
mod restores;
pub mod rights;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::Output;
use crate::infra::{clock, kube::clients};

/// An error was found.
const FOUND: u8 = 1;

/// Looks for what would keep hooks from running: in the cluster, in the installation, and (`check hooks`) in the hooks themselves.
///
/// Exit code: 0 no error was found, 1 an error was found (with --strict: or a warning, or something that could not be looked at),
/// 2 the check itself failed. Changes nothing: the webhook is tried with a dry run, and Velero is asked for its version as `velero
/// version` does it.
#[derive(Args, Debug)]
pub struct CheckArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// How to print.
    #[arg(short, long, value_enum, global = true, default_value_t = Output::Text)]
    output: Output,
    /// Warnings, and what could not be looked at, count as errors.
    #[arg(long, global = true)]
    strict: bool,
    /// The name of the installation (its webhook configuration), for accounts that may not list them.
    #[arg(long, default_value = "reveille")]
    installation: String,
}

#[derive(Subcommand, Debug)]
enum What {
    Hooks(hooks::HooksArgs),
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// Hooks run, but somebody should look.
    Warning,
    /// Hooks do not run, or not all of them.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at: a word for machines.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Severity::Ok, message, "")
    }

    fn warning(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Severity::Warning, message, advice)
    }

    fn error(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Severity::Error, message, advice)
    }

    /// It could not be looked at, and why.
    fn unknown(check: &'static str, reason: impl Into<String>) -> Self {
        let advice = "check again with an account that may read this";
        Self::new(check, Severity::Unknown, reason, advice)
    }

    fn new(check: &'static str, severity: Severity, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            severity,
            message: message.into(),
            advice: advice.into(),
        }
    }
}

/// The exit code for what was found.
fn exit_code(worst: Severity, strict: bool) -> ExitCode {
    let limit = if strict { Severity::Unknown } else { Severity::Error };
    if worst >= limit {
        ExitCode::from(FOUND)
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs the command.
pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    if let Some(What::Hooks(hooks)) = args.what {
        let found = hooks::run(hooks).await?;
        report::print(&found, report::hooks, args.output)?;
        return Ok(exit_code(found.worst(), args.strict));
    }
    let clients = clients().await?;
    let facts = gather::facts(&clients.api, &args.installation, clock::now()).await;
    let found = Findings::of(&facts);
    report::print(&found, report::findings, args.output)?;
    Ok(exit_code(found.worst, args.strict))
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// The worst of all.
    pub worst: Severity,
    /// In the order in which they were looked for.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// What these facts mean.
    pub fn of(facts: &facts::Facts) -> Self {
        let findings = findings::all(facts);
        let worst = findings.iter().map(|finding| finding.severity).max();
        Self {
            worst: worst.unwrap_or(Severity::Ok),
            findings,
        }
    }
}
