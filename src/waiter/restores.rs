//! Velero's Restores as the waiter sees them: it looks after the pods of those that run, and writes the results of those
//! that have ended, after Velero's own end and against the version that was read, so that nothing Velero writes is lost.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Map, json};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    missed::Missed,
    pod_view::PodView,
    queue::{Queue, RunKey},
};
use crate::{
    api::HookRun,
    hooks::restored::{RestoreInfo, label_value},
    infra::{clock, kube::is_not_found, pod_edit::parameters},
    names::{QUEUE_LABEL, RESULT_ANNOTATION, VELERO_RESTORE_LABEL},
    result::{self, Verdict},
};

/// How often restores whose result is open are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Velero's Restore resource.
pub fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v1", "Restore"))
}

/// Follows all Restores until `end` fires.
pub async fn run(
    client: Client,
    queue: Arc<Queue>,
    missed: Arc<Missed>,
    listed_runs: watch::Receiver<bool>,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let api: Api<DynamicObject> = Api::all_with(client, &resource());
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut keeper = Keeper {
        queue,
        missed,
        end: end.clone(),
        followers: HashMap::new(),
        tasks: TaskTracker::new(),
    };
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut listed = HashSet::new();
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            event = stream.next() => match event {
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(object))) => listed.extend(keeper.seen(&object)),
                Some(Ok(Event::InitDone)) => {
                    keeper.missed.restores.listed(&std::mem::take(&mut listed));
                    keeper.wake_orphans();
                }
                Some(Ok(Event::Apply(object))) => drop(keeper.seen(&object)),
                Some(Ok(Event::Delete(object))) => {
                    keeper.missed.restores.remove(object.metadata.uid.as_deref().unwrap_or_default());
                    keeper.wake_orphans();
                }
                // Without Velero on the cluster there is nothing to watch; the watcher asks again with growing pauses.
                Some(Err(error)) => tracing::debug!(%error, "the watch of Velero's Restores failed"),
                None => return Ok(()),
            },
            // Before all runs are listed, those that are missing would count as none.
            _ = tick.tick() => if *listed_runs.borrow() { keeper.settle_all().await },
        }
    }
}

struct Keeper {
    queue: Arc<Queue>,
    missed: Arc<Missed>,
    end: CancellationToken,
    /// Restores whose pods are followed; the token fires when that is done, last list included.
    followers: HashMap<String, CancellationToken>,
    tasks: TaskTracker,
}

impl Keeper {
    /// Takes over a Restore, and follows its pods from the moment Velero has begun it; returns its uid.
    fn seen(&mut self, object: &DynamicObject) -> Option<String> {
        let restore = serde_json::to_value(object).ok().as_ref().and_then(RestoreInfo::read)?;
        let uid = restore.uid.clone();
        // One that was over before anybody here saw it is looked through only if it was promised a result.
        let of_interest = restore.started.is_some() && (!restore.finished() || restore.result_is_open());
        self.missed.restores.put(restore);
        if of_interest && !self.followers.contains_key(&uid) {
            let done = CancellationToken::new();
            self.followers.insert(uid.clone(), done.clone());
            let (missed, end, uid) = (Arc::clone(&self.missed), self.end.clone(), uid.clone());
            self.tasks.spawn(async move {
                missed.follow(&uid, &end).await;
                done.cancel();
            });
        }
        Some(uid)
    }

    /// Wakes the runs whose Restore is gone.
    fn wake_orphans(&self) {
        self.queue.wake(|run| {
            let restore = run.spec.plan.restore.as_ref();
            restore.is_some_and(|restore| self.missed.restores.get(&restore.uid).is_none())
        });
    }

    /// Writes the results that are ready.
    async fn settle_all(&mut self) {
        let all = self.missed.restores.all();
        let alive: HashSet<&str> = all.iter().map(|restore| restore.uid.as_str()).collect();
        self.followers.retain(|uid, _| alive.contains(uid.as_str()));
        for restore in all
            .iter()
            .filter(|restore| restore.finished() && restore.result_is_open())
        {
            let looked_through = self
                .followers
                .get(&restore.uid)
                .is_none_or(CancellationToken::is_cancelled);
            if !looked_through {
                continue;
            }
            if let Err(error) = settle(&self.missed, &self.queue, restore).await {
                tracing::warn!(restore = restore.name, %error, "the result could not be written yet");
            }
        }
    }
}

/// Judges a restore that Velero has finished, and writes the result if there is one.
async fn settle(missed: &Missed, queue: &Queue, restore: &RestoreInfo) -> Result<(), kube::Error> {
    let client = &missed.client;
    let runs = queue.runs_of(&restore.uid);
    let runs: Vec<&HookRun> = runs.iter().map(AsRef::as_ref).collect();
    let mut verdict = result::judge(restore, 0, &runs, clock::now());
    if !matches!(verdict, Verdict::Pending(_)) {
        // Only now is it worth a list.
        verdict = result::judge(restore, unplanned(client, queue, restore).await?, &runs, clock::now());
    }
    if let Verdict::Pending(why) = &verdict {
        tracing::debug!(restore = restore.name, why, "the result is still open");
        return Ok(());
    }
    let (attempted, failed) = result::counts(&runs);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &restore.namespace, &resource());
    let Some(current) = api.get_opt(&restore.name).await? else {
        return Ok(());
    };
    let fresh = serde_json::to_value(&current).ok().as_ref().and_then(RestoreInfo::read);
    // Deleted and made anew, or written by us a moment ago: the watch has not brought it yet.
    if !fresh.is_some_and(|fresh| fresh.uid == restore.uid && fresh.result_is_open()) {
        return Ok(());
    }
    let status = current.data.get("status");
    // Velero may have counted hooks of its own (those that were left to it).
    let theirs = |field: &str| {
        status
            .and_then(|status| status.get("hookStatus")?.get(field)?.as_u64())
            .unwrap_or_default()
    };
    let number = |own: usize, field: &str| theirs(field).saturating_add(u64::try_from(own).unwrap_or(u64::MAX));
    let counts = json!({
        "hooksAttempted": number(attempted, "hooksAttempted"),
        "hooksFailed": number(failed, "hooksFailed"),
    });
    let phase = status.and_then(|status| status.get("phase")?.as_str());
    let turns_bad = matches!(verdict, Verdict::Failed(_)) && phase == Some("Completed");
    let mut new_status = Map::new();
    if attempted > 0 {
        new_status.insert("hookStatus".to_owned(), counts);
    }
    if turns_bad {
        new_status.insert("phase".to_owned(), json!("PartiallyFailed"));
    }
    let patch = json!({
        "metadata": {
            "resourceVersion": current.metadata.resource_version,
            "annotations": {RESULT_ANNOTATION: verdict.word()},
        },
        "status": new_status,
    });
    match api.patch(&restore.name, &parameters(), &Patch::Merge(patch)).await {
        Ok(_) => {
            tracing::info!(
                restore = restore.name,
                result = verdict.word(),
                attempted,
                failed,
                "the result of a restore's hooks is written"
            );
            missed.tell_end(restore, &verdict, &runs).await;
            Ok(())
        }
        // Somebody else wrote in between: the next look sees it.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// How many planned pods of the restore have no `HookRun` yet.
async fn unplanned(client: &Client, queue: &Queue, restore: &RestoreInfo) -> Result<usize, kube::Error> {
    let pods = planned_pods(client, restore).await?;
    let waiting = pods.iter().filter(|pod| queue.run(&RunKey::of_pod(pod)).is_none());
    Ok(waiting.count())
}

/// The pods of a restore that carry the queue label now.
pub async fn planned_pods(client: &Client, restore: &RestoreInfo) -> Result<Vec<PodView>, kube::Error> {
    let selector = format!("{QUEUE_LABEL},{VELERO_RESTORE_LABEL}={}", label_value(&restore.name));
    let pods = Api::<Pod>::all(client.clone())
        .list(&ListParams::default().labels(&selector))
        .await?;
    Ok(pods.items.iter().filter_map(PodView::read).collect())
}

/// All Restores of the cluster, each as the API server has it and as it is read; none where Velero is not installed.
pub async fn list(client: &Client) -> Result<Vec<(DynamicObject, RestoreInfo)>, kube::Error> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource());
    let objects = match api.list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(error) if is_not_found(&error) => Vec::new(),
        Err(error) => return Err(error),
    };
    let read = |object: DynamicObject| {
        let info = RestoreInfo::read(&serde_json::to_value(&object).ok()?)?;
        Some((object, info))
    };
    Ok(objects.into_iter().filter_map(read).collect())
}
