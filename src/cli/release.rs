//! `reveille release`: hands the hooks back before Reveille is uninstalled. The chart runs it as a pre-delete Job.

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Args;
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch},
};
use serde_json::json;

use crate::{
    admission::{Mode, decide_restore},
    duration::GoDuration,
    hooks::restored::RestoreInfo,
    infra::{
        clock::Stopwatch,
        kube::{clients, hook_runs},
        pod_edit::{PodEdit, parameters},
    },
    names::{MODE_ANNOTATION, PLAN_ANNOTATION, QUEUE_LABEL},
    plan::Plan,
    waiter::restores,
};

/// How often the open runs are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// Hands the hooks back to Velero before Reveille is uninstalled.
///
/// Removes the webhook configuration, waits for open runs, puts moved annotations back on pods, and gives Restores that
/// Velero has not begun their hooks back. Exit code: 0 all is handed back, 1 runs were still open when the time was over (they
/// are listed), 2 an error.
#[derive(Args, Debug)]
pub struct ReleaseArgs {
    /// The webhook configuration to remove first, so that nothing new is taken over.
    #[arg(long)]
    webhook_configuration: String,
    /// How long to wait for open runs and running restores.
    #[arg(long, default_value = "5m")]
    timeout: GoDuration,
}

/// Runs the command.
pub async fn run(args: ReleaseArgs) -> anyhow::Result<ExitCode> {
    let client = clients().await?.api;
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    match configurations
        .delete(&args.webhook_configuration, &DeleteParams::default())
        .await
    {
        Ok(_) => say(&format!(
            "webhook configuration {} removed: nothing new is taken over",
            args.webhook_configuration
        )),
        Err(kube::Error::Api(status)) if status.code == 404 => say("the webhook configuration is gone already"),
        Err(error) => return Err(error).context("the webhook configuration can't be removed"),
    }
    give_restores_back(&client).await?;
    let open = wait(&client, args.timeout.to_std().unwrap_or_default()).await?;
    if open.is_empty() {
        let pods = clean_pods(&client).await?;
        say(&format!("{pods} pods handed back; no hook is open"));
        return Ok(ExitCode::SUCCESS);
    }
    // The waiter is still there and goes on with them: their plans stay.
    say("still open, and not run by anybody once the waiter is gone:");
    for line in &open {
        say(&format!("  {line}"));
    }
    say("to try again: helm uninstall; to go on regardless: helm uninstall --no-hooks");
    say("to stay: helm rollback RELEASE REVISION, with the last revision of helm history");
    Ok(ExitCode::FAILURE)
}

fn say(line: &str) {
    // The Job's log; a closed stream is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Restores that Velero has not begun get their exec hooks back, as if they had been made alongside.
async fn give_restores_back(client: &Client) -> anyhow::Result<()> {
    for (object, info) in restores_of(client).await? {
        let begun = !matches!(info.phase.as_str(), "" | "New");
        if begun || !info.marked {
            continue;
        }
        let mut value = serde_json::to_value(&object)?;
        let annotations = value
            .get_mut("metadata")
            .and_then(|metadata| metadata.get_mut("annotations"));
        if let Some(annotations) = annotations.and_then(serde_json::Value::as_object_mut) {
            annotations.insert(MODE_ANNOTATION.to_owned(), json!("alongside"));
        }
        let operations = decide_restore(&value, None, Mode::Alongside).operations;
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &info.namespace, &restores::resource());
        let patch = Patch::Json::<()>(json_patch::Patch(operations));
        match api.patch(&info.name, &parameters(), &patch).await {
            Ok(_) => say(&format!("Restore {}/{} has its hooks back", info.namespace, info.name)),
            Err(error) => say(&format!(
                "Restore {}/{} could not be given its hooks back: {error}",
                info.namespace, info.name
            )),
        }
    }
    Ok(())
}

/// Waits for runs, and for marked restores that run; returns what is still open, in words.
async fn wait(client: &Client, limit: Duration) -> anyhow::Result<Vec<String>> {
    let watch = Stopwatch::start();
    let mut last = 0;
    loop {
        let open = open(client).await?;
        if open.is_empty() || watch.elapsed() >= limit {
            return Ok(open);
        }
        if open.len() != last {
            last = open.len();
            say(&format!(
                "waiting for {last} open runs and restores, the first: {}",
                open.first().map_or("", String::as_str)
            ));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn open(client: &Client) -> anyhow::Result<Vec<String>> {
    let runs = hook_runs(client, &ListParams::default())
        .await
        .context("can't list HookRuns")?;
    let unfinished = runs
        .iter()
        .filter(|run| run.status.as_ref().is_none_or(|status| !status.phase.is_final()));
    let mut open: Vec<String> = unfinished
        .map(|run| {
            let message = run
                .status
                .as_ref()
                .map(|status| status.message.clone())
                .unwrap_or_default();
            format!(
                "run {}/{} of pod {}: {message}",
                run.namespace().unwrap_or_default(),
                run.name_any(),
                run.spec.pod.name
            )
        })
        .collect();
    for (_, info) in restores_of(client).await? {
        if info.marked && info.result.as_deref() == Some("Pending") && !matches!(info.phase.as_str(), "" | "New") {
            open.push(format!("Restore {}/{} ({})", info.namespace, info.name, info.phase));
        }
    }
    Ok(open)
}

/// Takes plans that are left off the pods, and puts back what they had moved.
async fn clean_pods(client: &Client) -> anyhow::Result<usize> {
    let pods = Api::<Pod>::all(client.clone())
        .list(&ListParams::default().labels(QUEUE_LABEL))
        .await
        .context("can't list pods")?;
    let mut count = 0;
    for pod in pods.items {
        let plan = pod
            .annotations()
            .get(PLAN_ANNOTATION)
            .and_then(|text| Plan::parse(text).ok());
        let moved = plan.map(|plan| plan.moved).unwrap_or_default();
        let (namespace, name, uid) = (
            pod.namespace().unwrap_or_default(),
            pod.name_any(),
            pod.uid().unwrap_or_default(),
        );
        match PodEdit::default()
            .put_back(moved)
            .unqueue()
            .write(client, &namespace, &name, &uid, None)
            .await
        {
            Ok(()) => count += 1,
            Err(error) => say(&format!(
                "pod {namespace}/{} could not be handed back: {error}",
                pod.name_any()
            )),
        }
    }
    Ok(count)
}

async fn restores_of(client: &Client) -> anyhow::Result<Vec<(DynamicObject, RestoreInfo)>> {
    restores::list(client).await.context("can't list Velero's Restores")
}
