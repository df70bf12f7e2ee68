//! `reveille cancel`, `pause`, `resume` and `rerun`: requests, written where the waiter finds them.

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PostParams},
};
use serde::Serialize;
use serde_json::json;

use super::{
    output::{self, Output},
    target::{FoundRestore, Kind, Target, TargetArgs, run_name},
};
use crate::{
    api::{HookRun, hook_run::HookState},
    control::{Request, RerunRequest},
    digest,
    hooks::restored::RestoreInfo,
    infra::{
        clock,
        kube::{clients, is_not_found, reason},
        pod_edit::parameters,
    },
    names::{CANCEL_ANNOTATION, PAUSE_ANNOTATION, PAUSE_CONFIG_MAP, RERUN_ANNOTATION, RESUMED_ANNOTATION},
    waiter::{control::hooks_to_rerun, pod_view::PodView, restores},
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

/// Starts nothing new until `reveille resume`.
///
/// Without a name: in no restore at all. A command that runs is let finish. Wait timeouts stand still meanwhile.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  reveille pause --reason 'database host is down'
  reveille pause shop")]
pub struct PauseArgs {
    #[command(flatten)]
    target: PauseTargetArgs,
    #[command(flatten)]
    say: SayArgs,
}

/// Takes a pause back.
///
/// Without a name: the pause of everything. Restores that were paused by name stay so, and are listed.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  reveille resume
  reveille resume velero/shop")]
pub struct ResumeArgs {
    #[command(flatten)]
    target: PauseTargetArgs,
    #[command(flatten)]
    say: SayArgs,
}

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

/// What is paused.
#[derive(Args, Debug)]
struct PauseTargetArgs {
    /// A Restore, as NAME or NAMESPACE/NAME; without it everything.
    restore: Option<String>,
    /// The Restore's namespace, if the name does not say it.
    #[arg(short, long, requires = "restore")]
    namespace: Option<String>,
    /// Reveille's own namespace.
    #[arg(long, default_value = "reveille")]
    reveille_namespace: String,
    /// The `ConfigMap` there that carries the pause of everything: the chart's full name with -pause behind it.
    #[arg(long, default_value = PAUSE_CONFIG_MAP)]
    pause_config_map: String,
}

#[derive(Args, Debug)]
struct SayArgs {
    /// Why. It is recorded.
    #[arg(long, default_value = "")]
    reason: String,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What came of a command.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// What was asked for.
    action: &'static str,
    /// Of what.
    target: String,
    /// False if there was nothing to do.
    changed: bool,
    /// The same in words.
    message: String,
    /// The request that stands there now.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Request>,
}

impl Answer {
    fn print(&self, output: Output) -> anyhow::Result<ExitCode> {
        output::print(output, self, || format!("{}: {}\n", self.target, self.message))?;
        Ok(ExitCode::SUCCESS)
    }
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
    let message = format!(
        "cancelled {request}; {}{later}",
        what_happens(&runs, "are not run any more")
    );
    answer(true, message, Some(request)).print(args.say.output)
}

/// Runs `reveille pause`.
pub async fn pause(args: PauseArgs) -> anyhow::Result<ExitCode> {
    let client = clients().await?.api;
    let place = Place::find(&client, &args.target).await?;
    let answer = |changed: bool, message: String, request: Option<Request>| Answer {
        action: "pause",
        target: place.name(),
        changed,
        message,
        request,
    };
    if let Some(over) = place.has_ended() {
        return answer(false, format!("{over}: there is nothing to pause"), None).print(args.say.output);
    }
    if let Some(request) = place.pause() {
        let message = format!("was paused already {request}");
        return answer(false, message, Some(request)).print(args.say.output);
    }
    let request = request(&client, &args.say.reason).await;
    let value = request.to_annotation();
    place
        .annotate(&client, &[(PAUSE_ANNOTATION, Some(&value)), (RESUMED_ANNOTATION, None)])
        .await?;
    let message = format!("paused {request}; nothing new is started, commands that run are let finish");
    answer(true, message, Some(request)).print(args.say.output)
}

/// Runs `reveille resume`.
pub async fn resume(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    let client = clients().await?.api;
    let place = Place::find(&client, &args.target).await?;
    let still = still_paused(&client, &place).await;
    let answer = |changed: bool, message: String, request: Option<Request>| Answer {
        action: "resume",
        target: place.name(),
        changed,
        message: message + &still,
        request,
    };
    let Some(paused) = place.pause() else {
        return answer(false, "is not paused".to_owned(), None).print(args.say.output);
    };
    let request = request(&client, &args.say.reason).await;
    let value = request.to_annotation();
    place
        .annotate(&client, &[(PAUSE_ANNOTATION, None), (RESUMED_ANNOTATION, Some(&value))])
        .await?;
    let message = format!("goes on; it was paused {paused}");
    answer(true, message, Some(request)).print(args.say.output)
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
    let pod = pod.as_ref().and_then(PodView::read);
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

/// Where a pause is written.
enum Place {
    Everything(Box<ConfigMap>),
    Restore(Box<FoundRestore>, Box<RestoreInfo>),
}

impl Place {
    async fn find(client: &Client, args: &PauseTargetArgs) -> anyhow::Result<Self> {
        let PauseTargetArgs {
            reveille_namespace,
            pause_config_map,
            ..
        } = args;
        let Some(restore) = &args.restore else {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), reveille_namespace);
            let found = api
                .get_opt(pause_config_map)
                .await
                .context("the pause of everything can't be read")?;
            let found = found.ok_or_else(|| {
                anyhow!("there is no ConfigMap {reveille_namespace}/{pause_config_map}: say where Reveille is installed with --reveille-namespace (and --pause-config-map)")
            })?;
            return Ok(Self::Everything(Box::new(found)));
        };
        let target = TargetArgs {
            name: restore.clone(),
            namespace: args.namespace.clone(),
            kind: Some(Kind::Restore),
        };
        match target.find(client).await? {
            Target::Restore(found) => match found.info.clone() {
                Some(info) => Ok(Self::Restore(found, Box::new(info))),
                None => bail!(
                    "{} was deleted: it can't be paused, only its runs be cancelled",
                    Target::Restore(found)
                ),
            },
            Target::Run(run) => bail!("{} is no Restore", run_name(&run)),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Everything(_) => "everything".to_owned(),
            Self::Restore(_, info) => format!("Restore {}/{}", info.namespace, info.name),
        }
    }

    fn pause(&self) -> Option<Request> {
        match self {
            Self::Everything(map) => Request::read(map.annotations().get(PAUSE_ANNOTATION)?),
            Self::Restore(_, info) => info.pause.clone(),
        }
    }

    fn has_ended(&self) -> Option<String> {
        match self {
            Self::Everything(_) => None,
            Self::Restore(found, info) => restore_has_ended(found, Some(info)),
        }
    }

    async fn annotate(&self, client: &Client, annotations: &[(&str, Option<&String>)]) -> anyhow::Result<()> {
        match self {
            Self::Restore(_, info) => annotate_restore(client, info, annotations).await,
            Self::Everything(map) => {
                let namespace = map.namespace().unwrap_or_default();
                let (resource, name) = (ApiResource::erase::<ConfigMap>(&()), map.name_any());
                write(
                    client,
                    &resource,
                    (&namespace, &name),
                    map.uid().as_deref(),
                    annotations,
                )
                .await
            }
        }
    }
}

/// What stays paused when the pause of everything is taken back.
async fn still_paused(client: &Client, place: &Place) -> String {
    let Place::Everything(_) = place else {
        return String::new();
    };
    // Only a hint: who may not list Restores can still resume.
    let all = restores::list(client).await.unwrap_or_default();
    let paused = all
        .into_iter()
        .map(|(_, info)| info)
        .filter(|info| info.pause.is_some() && info.result_is_open());
    let names: Vec<String> = paused.map(|info| format!("{}/{}", info.namespace, info.name)).collect();
    if names.is_empty() {
        String::new()
    } else {
        format!("; paused by name, and still so: {}", names.join(", "))
    }
}

/// A request in the name of whoever runs this command.
async fn request(client: &Client, reason: &str) -> Request {
    let (by, now) = (who(client).await, clock::now());
    let id = digest::hex(&format!("{by} {} {}", now.as_nanosecond(), std::process::id()), 8);
    Request {
        id,
        by,
        at: Some(now),
        reason: reason.to_owned(),
    }
}

/// The user name, as the API server knows it. A brake is not refused because that can't be asked.
async fn who(client: &Client) -> String {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    match api.create(&PostParams::default(), &SelfSubjectReview::default()).await {
        Ok(review) => review
            .status
            .and_then(|status| status.user_info?.username)
            .unwrap_or_default(),
        Err(error) => {
            output::note(&format!("reveille: who you are is not recorded: {}", reason(&error)));
            String::new()
        }
    }
}

fn unfinished(runs: &[HookRun]) -> Vec<&HookRun> {
    let open = |run: &&HookRun| run.status.as_ref().is_none_or(|status| !status.phase.is_final());
    runs.iter().filter(open).collect()
}

/// How many hooks are concerned, in words.
fn what_happens(runs: &[&HookRun], fate: &str) -> String {
    let states = || {
        runs.iter()
            .flat_map(|run| run.status.iter())
            .flat_map(|status| &status.post)
            .map(|post| post.state)
    };
    let waiting = states().filter(|state| *state == HookState::Waiting).count();
    let running = states().filter(|state| *state == HookState::Started).count();
    format!("{waiting} hooks that wait {fate}, {running} that run are let finish")
}

fn has_ended(target: &Target) -> Option<String> {
    match target {
        Target::Restore(restore) => restore_has_ended(restore, restore.info.as_ref()),
        Target::Run(run) => {
            let phase = run.status.as_ref()?.phase;
            (phase.is_final() && run.open_rerun().is_none()).then(|| format!("has ended ({phase:?})"))
        }
    }
}

fn restore_has_ended(restore: &FoundRestore, info: Option<&RestoreInfo>) -> Option<String> {
    let runs_open = !unfinished(&restore.runs).is_empty() || restore.runs.iter().any(|run| run.open_rerun().is_some());
    let restore_open = info.is_some_and(|info| !info.finished() || info.result_is_open());
    (!runs_open && !restore_open).then(|| "has ended, hooks included".to_owned())
}

/// Whether a rerun has left this request to cancel behind in all open runs.
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

async fn annotate_restore(
    client: &Client,
    info: &RestoreInfo,
    annotations: &[(&str, Option<&String>)],
) -> anyhow::Result<()> {
    write(
        client,
        &restores::resource(),
        (&info.namespace, &info.name),
        Some(&info.uid),
        annotations,
    )
    .await
}

async fn annotate_run(client: &Client, run: &HookRun, key: &str, value: &String) -> anyhow::Result<()> {
    let (namespace, name) = (run.namespace().unwrap_or_default(), run.name_any());
    let resource = ApiResource::erase::<HookRun>(&());
    write(
        client,
        &resource,
        (&namespace, &name),
        run.uid().as_deref(),
        &[(key, Some(value))],
    )
    .await
}

/// Writes annotations onto that very object.
async fn write(
    client: &Client,
    resource: &ApiResource,
    (namespace, name): (&str, &str),
    uid: Option<&str>,
    annotations: &[(&str, Option<&String>)],
) -> anyhow::Result<()> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let annotations: serde_json::Map<_, _> = annotations
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    let patch = json!({"metadata": {"uid": uid, "annotations": annotations}});
    match api.patch_metadata(name, &parameters(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => bail!("{} {namespace}/{name} was deleted meanwhile", resource.kind),
        Err(error) => Err(anyhow!(
            "{} {namespace}/{name} can't be changed: {}",
            resource.kind,
            reason(&error)
        )),
    }
}
