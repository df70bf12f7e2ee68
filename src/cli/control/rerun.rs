//! `reveille rerun`.

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};

use super::{
    Answer, SayArgs,
    request::{annotate_run, request},
};
use crate::{
    api::{HookRun, hook_run::HookState},
    cli::target::{Kind, Target, TargetArgs, run_name},
    control::RerunRequest,
    infra::kube::clients,
    names::RERUN_ANNOTATION,
    waiter::{control::hooks_to_rerun, pod_view::PodView, redact::Redactor},
};

/// Runs again what did not succeed in a run that has ended.
///
/// Each new attempt is recorded beside the old ones. The restore's result follows; a Restore that was made PartiallyFailed
/// stays that, for it did not go well at first.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  reveille rerun shop/postgres-0
  reveille rerun postgres-0-1a2b3c4d5e -n shop --hook '<from-annotation>' --reason 'schema repaired'")]
pub struct RerunArgs {
    /// A run: the `HookRun`, or the pod that it is for, as NAME or NAMESPACE/NAME.
    #[arg(value_name = "RUN")]
    run: String,
    /// Its namespace, if the name does not say it.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only the hooks of this name.
    #[arg(long)]
    hook: Option<String>,
    #[command(flatten)]
    say: SayArgs,
}

/// Runs `reveille rerun`.
pub async fn rerun(args: RerunArgs) -> anyhow::Result<ExitCode> {
    let client = clients().await?.api;
    let target = TargetArgs {
        name: args.run,
        namespace: args.namespace,
        kind: Some(Kind::Run),
    };
    let Target::Run(run) = target.find(&client).await? else {
        bail!("that is no run");
    };
    let hook = args.hook.as_deref();
    let name = run_name(&run);
    if let Some(open) = run.open_rerun() {
        bail!(
            "{name}: a rerun was asked for already {}, and has not begun",
            open.request
        );
    }
    let again = check_rerun(&client, &run, hook)
        .await
        .with_context(|| format!("{name} can't be run again"))?;
    let request = request(&client, &args.say.reason).await;
    let wanted = RerunRequest {
        request: request.clone(),
        hook: args.hook.clone(),
    };
    annotate_run(&client, &run, RERUN_ANNOTATION, &wanted.to_annotation()).await?;
    let message = format!(
        "runs again {}, asked for {request}{}",
        again.hooks.join(", "),
        again.caution
    );
    let answer = Answer {
        action: "rerun",
        target: name,
        changed: true,
        message,
        request: Some(request),
    };
    answer.print(args.say.output)
}

/// What a rerun will run.
struct Again {
    hooks: Vec<String>,
    caution: &'static str,
}

/// Asks what the waiter will ask.
async fn check_rerun(client: &Client, run: &HookRun, hook: Option<&str>) -> anyhow::Result<Again> {
    let status = run
        .status
        .as_ref()
        .ok_or_else(|| anyhow!("the waiter has not taken it in yet"))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &run.namespace().unwrap_or_default());
    let pod = pods
        .get_opt(&run.spec.pod.name)
        .await
        .context("its pod can't be looked at")?;
    let pod = pod.as_ref().and_then(|pod| PodView::read(pod, Redactor::built_in()));
    let pod = pod.filter(|pod| pod.identity.uid == run.spec.pod.uid);
    let indexes = hooks_to_rerun(&run.spec, status, hook, pod.as_ref()).map_err(anyhow::Error::msg)?;
    let posts: Vec<_> = indexes.iter().filter_map(|index| status.post.get(*index)).collect();
    let may_run = |state| matches!(state, HookState::ExecTimedOut | HookState::Unknown);
    Ok(Again {
        hooks: posts
            .iter()
            .map(|state| format!("{} in container {}", state.name, state.container))
            .collect(),
        caution: if posts.iter().any(|state| may_run(state.state)) {
            "; the command of an earlier attempt may still be running"
        } else {
            ""
        },
    })
}
