//! `reveille cancel`.

use std::process::ExitCode;

use clap::Args;

use super::{
    Answer, SayArgs,
    request::{annotate_restore, annotate_run, request},
};
use crate::{
    api::{HookRun, hook_run::HookState},
    cli::target::{FoundRestore, Target, TargetArgs},
    control::Request,
    hooks::restored::RestoreInfo,
    infra::kube::clients,
    names::CANCEL_ANNOTATION,
};

/// Cancels the hooks that have not started.
///
/// Of a Restore: in all its pods, also in those that it creates later. A command that runs is let finish, for nothing can end
/// it from outside; its result is recorded as it is. A hook with on-error Fail that is cancelled makes the restore Failed.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  reveille cancel shop --reason 'wrong backup'
  reveille cancel velero/shop -o json
  reveille cancel shop/postgres-0        # the run of one pod")]
pub struct CancelArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    say: SayArgs,
}

/// Runs `reveille cancel`.
pub async fn cancel(args: CancelArgs) -> anyhow::Result<ExitCode> {
    let client = clients().await?.api;
    let target = args.target.find(&client).await?;
    let standing = match &target {
        Target::Restore(restore) => restore.info.as_ref().and_then(|info| info.cancel.clone()),
        Target::Run(run) => run.cancel_request(),
    };
    let answer = |changed: bool, message: String, request: Option<Request>| Answer {
        action: "cancel",
        target: target.to_string(),
        changed,
        message,
        request,
    };
    if let Some(over) = has_ended(&target) {
        return answer(false, format!("{over}: there is nothing to cancel"), standing).print(args.say.output);
    }
    // A run that was run again is no longer held by the request that had cancelled it.
    let still_holds = standing.filter(|request| !overridden(&target, request));
    if let Some(request) = still_holds {
        let message = format!("was cancelled already {request}");
        return answer(false, message, Some(request)).print(args.say.output);
    }
    let request = request(&client, &args.say.reason).await;
    let value = request.to_annotation();
    match &target {
        Target::Restore(restore) => match &restore.info {
            Some(info) => annotate_restore(&client, info, &[(CANCEL_ANNOTATION, Some(&value))]).await?,
            None => {
                for run in unfinished(&restore.runs) {
                    annotate_run(&client, run, CANCEL_ANNOTATION, &value).await?;
                }
            }
        },
        Target::Run(run) => annotate_run(&client, run, CANCEL_ANNOTATION, &value).await?,
    }
    let runs = match &target {
        Target::Restore(restore) => unfinished(&restore.runs),
        Target::Run(run) => vec![run.as_ref()],
    };
    let later = match &target {
        Target::Restore(restore) if restore.info.is_some() => "; pods that it creates later are cancelled too",
        _ => "",
    };
    let message = format!("cancelled {request}; {}{later}", what_happens(&runs));
    answer(true, message, Some(request)).print(args.say.output)
}

fn unfinished(runs: &[HookRun]) -> Vec<&HookRun> {
    let open = |run: &&HookRun| run.status.as_ref().is_none_or(|status| !status.phase.is_final());
    runs.iter().filter(open).collect()
}

/// How many hooks are concerned, in words.
fn what_happens(runs: &[&HookRun]) -> String {
    let states = || {
        runs.iter()
            .flat_map(|run| run.status.iter())
            .flat_map(|status| &status.post)
            .map(|post| post.state)
    };
    let waiting = states().filter(|state| *state == HookState::Waiting).count();
    let running = states().filter(|state| *state == HookState::Started).count();
    format!("{waiting} hooks that wait are not run any more, {running} that run are let finish")
}

fn has_ended(target: &Target) -> Option<String> {
    match target {
        Target::Restore(restore) => restore_has_ended(restore),
        Target::Run(run) => {
            let phase = run.status.as_ref()?.phase;
            (phase.is_final() && run.open_rerun().is_none()).then(|| format!("has ended ({phase:?})"))
        }
    }
}

pub(super) fn restore_has_ended(restore: &FoundRestore) -> Option<String> {
    let runs_open = !unfinished(&restore.runs).is_empty() || restore.runs.iter().any(|run| run.open_rerun().is_some());
    let is_open = |info: &RestoreInfo| !info.finished() || info.result_is_open();
    let restore_open = restore.info.as_ref().is_some_and(is_open);
    (!runs_open && !restore_open).then(|| "has ended, hooks included".to_owned())
}

/// Whether a rerun has left this request to cancel behind in an open run.
fn overridden(target: &Target, request: &Request) -> bool {
    let left_behind = |run: &&HookRun| {
        let rerun = run.status.as_ref().and_then(|status| status.last_rerun());
        rerun.is_some_and(|rerun| rerun.despite.contains(&request.id))
    };
    match target {
        Target::Run(run) => left_behind(&run.as_ref()),
        Target::Restore(restore) => unfinished(&restore.runs).iter().any(left_behind),
    }
}
