//! Velero's Restores as the waiter sees them: it looks after the pods of those that run, and writes the results of those
//! that have ended, after Velero's own end and against the version that was read, so that nothing Velero writes is lost.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    missed::Missed,
    pod_view::PodView,
    queue::{Queue, RunKey},
    redact::Redactor,
    settlement::{self, Settlement},
    watch::{Refusal, is_absent},
};
use crate::{
    api::HookRun,
    hooks::restored::{RestoreInfo, label_value},
    infra::{
        clock::{self, Stopwatch},
        kube::{Pages, is_conflict, is_not_found, watch_reason},
        pod_edit::parameters,
    },
    names::{QUEUE_LABEL, VELERO_RESTORE_LABEL},
    result::{self, Verdict},
};

/// How often restores whose result is open are looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often what was overwritten is put back on one Restore; after that somebody means it, and it is no use to fight.
const REPAIR_LIMIT: u32 = 10;

/// Velero's Restore resource.
pub fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v1", "Restore"))
}

/// Follows all Restores until `end` fires. `ttl`: how long finished runs are kept. `listed_runs` tells that all runs are known; `listed_here` is called once all
/// Restores are, or it is known that there are none.
pub async fn run(
    client: Client,
    queue: Arc<Queue>,
    missed: Arc<Missed>,
    ttl: SignedDuration,
    listed_runs: watch::Receiver<bool>,
    listed_here: impl Fn(),
    end: CancellationToken,
) -> Result<(), Infallible> {
    let api: Api<DynamicObject> = Api::all_with(client, &resource());
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut keeper = Keeper {
        queue,
        missed,
        end: end.clone(),
        followers: HashMap::new(),
        changed: HashSet::new(),
        repairs: HashMap::new(),
        forgotten: HashSet::new(),
        ttl,
        tasks: TaskTracker::new(),
    };
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut listed = HashSet::new();
    let (mut refusal, stopwatch) = (Refusal::default(), Stopwatch::start());
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            event = stream.next() => match event {
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(object))) => listed.extend(keeper.seen(&object)),
                Some(Ok(Event::InitDone)) => {
                    keeper.queue.only_restores(&listed);
                    keeper.missed.restores.listed(&std::mem::take(&mut listed));
                    keeper.wake_orphans();
                    listed_here();
                }
                Some(Ok(Event::Apply(object))) => drop(keeper.seen(&object)),
                Some(Ok(Event::Delete(object))) => {
                    let uid = object.metadata.uid.as_deref().unwrap_or_default();
                    keeper.queue.restore_gone(uid);
                    keeper.missed.restores.remove(uid);
                    keeper.wake_orphans();
                }
                // Without Velero on the cluster there is nothing to watch; the watcher asks again with growing pauses.
                Some(Err(error)) => {
                    if is_absent(&error) {
                        tracing::debug!("there are no Restores of Velero's in this cluster");
                    } else {
                        let error = watch_reason(&error);
                        tracing::warn!(error, "Velero's Restores can't be watched; it is tried again");
                    }
                    if refusal.is_final(&error, stopwatch.elapsed()) {
                        listed_here();
                    }
                }
                None => return Ok(()),
            },
            // Before all runs are listed, those that are missing would count as none.
            _ = tick.tick() => if *listed_runs.borrow() { keeper.settle_all().await },
        }
    }
}

/// What is said of a Restore whose runs may have been deleted before a result was written on it.
const FORGOTTEN: &str = "Velero finished this Restore before the time that HookRuns are kept, none of it is left, and no result was \
    ever written on it: perhaps it is a copy that was saved before that. Whether its hooks succeeded is not known, so \
    reveille.dev/hooks-result stays Pending";

struct Keeper {
    queue: Arc<Queue>,
    missed: Arc<Missed>,
    end: CancellationToken,
    /// Restores whose pods are followed; the token fires when that is done, last list included.
    followers: HashMap<String, CancellationToken>,
    /// Restores (by uid) that were written since their last look: what we have written may be gone.
    changed: HashSet<String>,
    /// How often this process has put back what was overwritten.
    repairs: HashMap<String, u32>,
    /// Restores (by uid) of which it was said that their result can't be known.
    forgotten: HashSet<String>,
    /// How long finished runs are kept.
    ttl: SignedDuration,
    tasks: TaskTracker,
}

impl Keeper {
    /// Takes over a Restore, and follows its pods from the moment Velero has begun it; returns its uid.
    fn seen(&mut self, object: &DynamicObject) -> Option<String> {
        let restore = serde_json::to_value(object).ok().as_ref().and_then(RestoreInfo::read)?;
        let uid = restore.uid.clone();
        // One that was over before anybody here saw it is looked through only if it was promised a result.
        let of_interest = restore.started.is_some() && (!restore.finished() || restore.was_never_judged());
        self.queue.restore_seen(&restore);
        self.missed.restores.put(restore);
        self.changed.insert(uid.clone());
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

    /// Nobody knows what became of its hooks any more; said once.
    async fn is_forgotten(&mut self, restore: &RestoreInfo, runs: &[&HookRun]) -> bool {
        let forgotten = result::may_be_forgotten(restore, runs, self.ttl, clock::now());
        if forgotten && self.forgotten.insert(restore.uid.clone()) {
            tracing::warn!(restore = restore.name, "{FORGOTTEN}");
            self.missed.tell_forgotten(restore, FORGOTTEN).await;
        }
        forgotten
    }

    /// Writes the results that are ready, and puts back what was overwritten.
    async fn settle_all(&mut self) {
        let all = self.missed.restores.all();
        let alive: HashSet<&str> = all.iter().map(|restore| restore.uid.as_str()).collect();
        self.followers.retain(|uid, _| alive.contains(uid.as_str()));
        self.repairs.retain(|uid, _| alive.contains(uid.as_str()));
        self.forgotten.retain(|uid| alive.contains(uid.as_str()));
        self.changed.extend(self.queue.take_rerun_restores());
        self.changed.retain(|uid| alive.contains(uid.as_str()));
        for restore in all.iter().filter(|restore| restore.marked && restore.finished()) {
            let looked_through = self
                .followers
                .get(&restore.uid)
                .is_none_or(CancellationToken::is_cancelled);
            let worth_a_look = restore.result_is_open() || self.changed.contains(&restore.uid);
            if !looked_through || !worth_a_look {
                continue;
            }
            let runs = self.queue.runs_of(&restore.uid);
            if self.is_forgotten(restore, &by_reference(&runs)).await {
                continue;
            }
            let repairs = self.repairs.get(&restore.uid).copied().unwrap_or_default();
            match settle(&self.missed, &self.queue, restore, runs, repairs < REPAIR_LIMIT).await {
                Ok(settlement) => {
                    self.changed.remove(&restore.uid);
                    if matches!(settlement, Settlement::Repair(_)) {
                        self.repairs.insert(restore.uid.clone(), repairs.saturating_add(1));
                        if repairs == REPAIR_LIMIT {
                            tracing::warn!(
                                restore = restore.name,
                                "what Reveille writes on this Restore is overwritten again and again; it is left as it is"
                            );
                        }
                    }
                }
                // Somebody else wrote in between: the next look sees it.
                Err(error) if is_conflict(&error) => {}
                Err(error) => tracing::warn!(restore = restore.name, %error, "the result could not be written yet"),
            }
        }
    }
}

/// Judges a restore that Velero has finished, and writes what is due on it.
async fn settle(
    missed: &Missed,
    queue: &Queue,
    restore: &RestoreInfo,
    mut runs: Vec<Arc<HookRun>>,
    may_repair: bool,
) -> Result<Settlement, kube::Error> {
    let client = &missed.client;
    let known = by_reference(&runs);
    let mut verdict = result::judge(restore, 0, &known, clock::now());
    if settlement::settle(restore, &verdict, &known) == Settlement::Leave {
        if let Verdict::Pending(why) = &verdict {
            tracing::debug!(restore = restore.name, why, "the result is still open");
        }
        return Ok(Settlement::Leave);
    }
    if !matches!(verdict, Verdict::Pending(_)) {
        // Only now is it worth a list. A run that has come since is judged, too: its pod does not count as one without.
        let unplanned = unplanned(client, queue, restore).await?;
        runs = queue.runs_of(&restore.uid);
        verdict = result::judge(restore, unplanned, &by_reference(&runs), clock::now());
    }
    let runs = &by_reference(&runs);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &restore.namespace, &resource());
    let Some(current) = api.get_opt(&restore.name).await? else {
        return Ok(Settlement::Leave);
    };
    let fresh = serde_json::to_value(&current).ok().as_ref().and_then(RestoreInfo::read);
    // It may have been deleted and made anew.
    let Some(fresh) = fresh.filter(|fresh| fresh.uid == restore.uid) else {
        return Ok(Settlement::Leave);
    };
    let settlement = settlement::settle(&fresh, &verdict, runs);
    let mut patch = match &settlement {
        Settlement::Leave => return Ok(settlement),
        Settlement::Repair(_) if !may_repair => return Ok(settlement),
        Settlement::Reopen(patch) | Settlement::Write(patch) | Settlement::Repair(patch) => patch.clone(),
    };
    // Only as long as it is what was looked at: nothing that Velero writes meanwhile is lost.
    let version = json!({"metadata": {"resourceVersion": current.metadata.resource_version}});
    json_patch::merge(&mut patch, &version);
    api.patch(&restore.name, &parameters(), &Patch::Merge(patch)).await?;
    tracing::info!(
        restore = restore.name,
        result = verdict.word(),
        repaired = matches!(settlement, Settlement::Repair(_)),
        "the result of a restore's hooks is written"
    );
    if matches!(settlement, Settlement::Write(_)) {
        missed.tell_end(restore, &verdict, runs).await;
    }
    Ok(settlement)
}

fn by_reference(runs: &[Arc<HookRun>]) -> Vec<&HookRun> {
    runs.iter().map(AsRef::as_ref).collect()
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
    let api = Api::<Pod>::all(client.clone());
    let mut pages = Pages::of(&ListParams::default().labels(&selector));
    let mut views = Vec::new();
    while let Some(page) = pages.ask() {
        let list = api.list(&page).await?;
        pages.came(page, &list.metadata);
        views.extend(
            list.items
                .iter()
                .filter_map(|pod| PodView::read(pod, Redactor::built_in())),
        );
    }
    Ok(views)
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
