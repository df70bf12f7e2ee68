//! Results where people look: the Velero Restore. Written after Velero's own end, with the version that was read, so that
//! nothing Velero writes is lost.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    pod_view::PodView,
    queue::{Queue, RunKey},
};
use crate::{
    api::HookRun,
    hooks::restored::{RestoreInfo, label_value},
    infra::clock,
    names::{FIELD_MANAGER, QUEUE_LABEL, RESULT_ANNOTATION, VELERO_RESTORE_LABEL},
    result::{self, Verdict},
};

/// How often restores whose result is open are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Velero's Restore resource.
pub fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v1", "Restore"))
}

/// Follows the marked Restores whose result is open, and writes it.
pub async fn run(client: Client, queue: Arc<Queue>, ended: CancellationToken) -> Result<(), Infallible> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource());
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut open: HashMap<String, RestoreInfo> = HashMap::new();
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = ended.cancelled() => return Ok(()),
            event = stream.next() => match event {
                Some(Ok(Event::Init)) => open.clear(),
                Some(Ok(Event::InitApply(object) | Event::Apply(object))) => note(&mut open, &object),
                Some(Ok(Event::Delete(object))) => drop(open.remove(object.metadata.uid.as_deref().unwrap_or_default())),
                Some(Ok(Event::InitDone)) => {}
                // Without Velero on the cluster there is nothing to watch; the watcher asks again with growing pauses.
                Some(Err(error)) => tracing::debug!(%error, "the watch of Velero's Restores failed"),
                None => return Ok(()),
            },
            _ = tick.tick() => {
                let finished: Vec<RestoreInfo> = open.values().filter(|restore| restore.finished()).cloned().collect();
                for restore in finished {
                    match settle(&client, &queue, &restore).await {
                        Ok(true) => drop(open.remove(&restore.uid)),
                        Ok(false) => {}
                        Err(error) => tracing::warn!(restore = restore.name, %error, "the result could not be written yet"),
                    }
                }
            }
        }
    }
}

/// Keeps a Restore in view while its result is open.
fn note(open: &mut HashMap<String, RestoreInfo>, object: &DynamicObject) {
    let restore = serde_json::to_value(object).ok().as_ref().and_then(RestoreInfo::read);
    let Some(restore) = restore else { return };
    if restore.marked && restore.result.as_deref() == Some("Pending") {
        open.insert(restore.uid.clone(), restore);
    } else {
        open.remove(&restore.uid);
    }
}

/// Judges a restore that Velero has finished; true when the result is written.
async fn settle(client: &Client, queue: &Queue, restore: &RestoreInfo) -> Result<bool, kube::Error> {
    let unplanned = unplanned(client, queue, restore).await?;
    let runs = queue.runs_of(&restore.uid);
    let runs: Vec<&HookRun> = runs.iter().map(AsRef::as_ref).collect();
    let verdict = result::judge(restore, unplanned, &runs, clock::now());
    if let Verdict::Pending(why) = &verdict {
        tracing::debug!(restore = restore.name, why, "the result is still open");
        return Ok(false);
    }
    let (attempted, failed) = result::counts(&runs);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &restore.namespace, &resource());
    let current = api.get(&restore.name).await?;
    if current.metadata.uid.as_deref() != Some(&restore.uid) {
        return Ok(true);
    }
    let mut patch = json!({
        "metadata": {
            "resourceVersion": current.metadata.resource_version,
            "annotations": {RESULT_ANNOTATION: verdict.word()},
        },
    });
    if attempted > 0 {
        patch["status"] = json!({"hookStatus": {"hooksAttempted": attempted, "hooksFailed": failed}});
    }
    let phase = current
        .data
        .get("status")
        .and_then(|status| status.get("phase"))
        .and_then(|phase| phase.as_str());
    if matches!(verdict, Verdict::Failed(_)) && phase == Some("Completed") {
        patch["status"]["phase"] = json!("PartiallyFailed");
    }
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match api.patch(&restore.name, &parameters, &Patch::Merge(patch)).await {
        Ok(_) => {
            tracing::info!(
                restore = restore.name,
                result = verdict.word(),
                attempted,
                failed,
                "the result of a restore's hooks is written"
            );
            Ok(true)
        }
        // Somebody else wrote in between: the next look sees it.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many planned pods of the restore have no `HookRun` yet.
async fn unplanned(client: &Client, queue: &Queue, restore: &RestoreInfo) -> Result<usize, kube::Error> {
    let selector = format!("{QUEUE_LABEL},{VELERO_RESTORE_LABEL}={}", label_value(&restore.name));
    let pods = Api::<Pod>::all(client.clone())
        .list(&ListParams::default().labels(&selector))
        .await?;
    let waiting = pods
        .items
        .iter()
        .filter_map(PodView::read)
        .filter(|pod| queue.run(&RunKey::of_pod(pod)).is_none());
    Ok(waiting.count())
}
