//! `reveille pause` and `reveille resume`.

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, ResourceExt, api::ApiResource};

use super::{
    Answer, SayArgs,
    cancel::restore_has_ended,
    request::{annotate_restore, request, write},
};
use crate::{
    cli::target::{FoundRestore, Kind, Target, TargetArgs, run_name},
    control::Request,
    hooks::restored::RestoreInfo,
    infra::kube::clients,
    names::{PAUSE_ANNOTATION, PAUSE_CONFIG_MAP, RESUMED_ANNOTATION},
    waiter::restores,
};

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
            Self::Restore(found, _) => restore_has_ended(found),
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
