//! `reveille logs`: the output that was recorded, attempt by attempt.

use std::{fmt::Write, process::ExitCode};

use clap::Args;
use kube::ResourceExt;
use serde::Serialize;

use super::{
    output::{self, Output},
    target::{Target, TargetArgs},
};
use crate::{
    api::{
        HookRun,
        hook_run::{Attempt, PostStatus},
    },
    duration::GoDuration,
    infra::kube::clients,
};

/// Shows the output of post hooks, as far as it was recorded: the end of each stream, attempt by attempt.
///
/// What init containers print is in their own logs: kubectl logs POD -c CONTAINER.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  reveille logs shop                     # of all pods of a Restore
  reveille logs shop/postgres-0          # of one pod
  reveille logs shop -o json | jq -r '.attempts[] | select(.exitCode != 0) | .stderr'")]
pub struct LogsArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Only the hooks of this name.
    #[arg(long)]
    hook: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
pub async fn run(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let client = clients().await?.api;
    let runs = match args.target.find(&client).await? {
        Target::Restore(restore) => restore.runs,
        Target::Run(run) => vec![*run],
    };
    let logs = logs(&runs, args.hook.as_deref());
    output::print(args.output, &serde_json::json!({"attempts": logs}), || text(&logs))?;
    Ok(ExitCode::SUCCESS)
}

/// One attempt of a hook, and where it ran.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Log<'a> {
    namespace: String,
    pod: &'a str,
    run: String,
    container: &'a str,
    hook: &'a str,
    /// How the attempt ended, in words.
    outcome: String,
    #[serde(flatten)]
    attempt: &'a Attempt,
}

/// All attempts, in the order of the runs, their hooks, and time.
fn logs<'a>(runs: &'a [HookRun], hook: Option<&str>) -> Vec<Log<'a>> {
    let mut logs = Vec::new();
    for run in runs {
        let posts = run.status.iter().flat_map(|status| &status.post);
        for post in posts.filter(|post| hook.is_none_or(|hook| hook == post.name)) {
            logs.extend(post.attempts.iter().map(|attempt| Log {
                namespace: run.namespace().unwrap_or_default(),
                pod: &run.spec.pod.name,
                run: run.name_any(),
                container: &post.container,
                hook: &post.name,
                outcome: outcome(post, attempt),
                attempt,
            }));
        }
    }
    logs
}

fn outcome(post: &PostStatus, attempt: &Attempt) -> String {
    match (attempt.exit_code, attempt.finished_at.is_some()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, false) if !post.state.is_final() => "running".to_owned(),
        _ if !attempt.message.is_empty() => attempt.message.clone(),
        _ if post.attempts.last() == Some(attempt) => {
            let words = if post.message.is_empty() {
                &post.reason
            } else {
                &post.message
            };
            format!("{:?}: {words}", post.state)
        }
        _ => "no exit code".to_owned(),
    }
}

fn text(logs: &[Log]) -> String {
    if logs.is_empty() {
        return "No command has been started.\n".to_owned();
    }
    let mut text = String::new();
    for log in logs {
        let Log {
            namespace,
            pod,
            container,
            hook,
            outcome,
            attempt,
            ..
        } = log;
        let took = attempt.finished_at.as_ref().map(|end| {
            let millis = end.0.duration_since(attempt.started_at.0).as_millis();
            format!(
                " after {}",
                GoDuration::from_millis(i64::try_from(millis).unwrap_or_default())
            )
        });
        let number = attempt.number;
        let started = attempt.started_at.0;
        let _ = writeln!(
            text,
            "==> {namespace}/{pod} {container} {hook} attempt {number}, {started:.0}: {outcome}{} <==",
            took.unwrap_or_default()
        );
        for (stream, lines) in [("stdout", &attempt.stdout), ("stderr", &attempt.stderr)] {
            if !lines.is_empty() {
                let _ = writeln!(text, "--- {stream}\n{}", lines.trim_end_matches('\n'));
            }
        }
        if attempt.stdout.is_empty() && attempt.stderr.is_empty() {
            let _ = writeln!(text, "--- no output");
        }
    }
    text
}

#[cfg(test)]
mod tests;
