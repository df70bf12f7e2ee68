//! The Restores of the cluster, as a watch brings them; and, where that may lag behind, asked for on the spot.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    hooks::restored::{RestoreInfo, label_value},
    infra::{
        health::Gate,
        kube::{is_not_found, reason, watch_reason},
        metrics::Metrics,
    },
};

/// How long to wait before looking again for a Velero that is not installed, and at most after failures.
const PAUSE: Duration = Duration::from_secs(30);
/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Label values shorter than this are the whole name; longer ones may be cut.
const LABEL_LIMIT: usize = 63;

/// Asks for Restores on the spot.
pub trait ListRestores: Send + Sync + 'static {
    /// The Restores of this name in all namespaces; of any name if `None`. The error says why not.
    fn list(&self, name: Option<String>) -> BoxFuture<'_, Result<Vec<RestoreInfo>, String>>;
}

/// Velero's Restores over the API.
pub struct VeleroApi {
    restores: Api<DynamicObject>,
}

impl VeleroApi {
    /// Of all namespaces.
    pub fn new(client: Client) -> Self {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v1", "Restore"));
        Self {
            restores: Api::all_with(client, &resource),
        }
    }
}

impl ListRestores for VeleroApi {
    fn list(&self, name: Option<String>) -> BoxFuture<'_, Result<Vec<RestoreInfo>, String>> {
        Box::pin(async move {
            let params = match name {
                Some(name) => ListParams::default().fields(&format!("metadata.name={name}")),
                None => ListParams::default(),
            };
            match self.restores.list(&params).await {
                Ok(list) => Ok(list.items.into_iter().filter_map(read).collect()),
                // No Velero here.
                Err(error) if is_not_found(&error) => Ok(Vec::new()),
                Err(error) => Err(format!("listing the Restores failed: {}", reason(&error))),
            }
        })
    }
}

/// Only what matters is kept: no managed fields, no backups' details.
fn read(restore: DynamicObject) -> Option<RestoreInfo> {
    let value = serde_json::to_value(restore).ok()?;
    RestoreInfo::read(&value)
}

/// What is known of one label value.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// The Restores that it may stand for.
    pub restores: Vec<Arc<RestoreInfo>>,
    /// False before the first complete list.
    pub synced: bool,
}

#[derive(Debug, Default)]
struct Known {
    by_uid: HashMap<String, Arc<RestoreInfo>>,
    by_label: HashMap<String, Vec<Arc<RestoreInfo>>>,
    synced: bool,
}

impl Known {
    fn put(&mut self, restore: RestoreInfo) {
        self.remove(&restore.uid);
        let restore = Arc::new(restore);
        let label = label_value(&restore.name).into_owned();
        self.by_uid.insert(restore.uid.clone(), Arc::clone(&restore));
        self.by_label.entry(label).or_default().push(restore);
    }

    fn remove(&mut self, uid: &str) {
        let Some(restore) = self.by_uid.remove(uid) else { return };
        let label = label_value(&restore.name);
        if let Some(named) = self.by_label.get_mut(label.as_ref()) {
            named.retain(|other| other.uid != uid);
            if named.is_empty() {
                self.by_label.remove(label.as_ref());
            }
        }
    }
}

/// The last answer that was fetched on the spot.
struct Fetched {
    label: String,
    asked_at: Instant,
    answer: Result<Vec<Arc<RestoreInfo>>, String>,
}

/// All Restores of the cluster, finished ones too: a label that names one of them is then known to be stale.
pub struct RestoreCache {
    known: RwLock<Known>,
    api: Box<dyn ListRestores>,
    fetched: tokio::sync::Mutex<Option<Fetched>>,
}

impl RestoreCache {
    /// An empty cache, not synced.
    pub fn new(api: impl ListRestores) -> Self {
        Self {
            known: RwLock::default(),
            api: Box::new(api),
            fetched: tokio::sync::Mutex::default(),
        }
    }

    /// Replaces everything; from then on the cache is synced.
    pub fn replace(&self, restores: impl IntoIterator<Item = RestoreInfo>) {
        let mut known = Known {
            synced: true,
            ..Known::default()
        };
        for restore in restores {
            known.put(restore);
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// What the watch has brought for this label value.
    pub fn named(&self, label: &str) -> Named {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        Named {
            restores: known.by_label.get(label).cloned().unwrap_or_default(),
            synced: known.synced,
        }
    }

    /// Asks the API server, at most until the deadline. Calls that wait for the same label value share one question, if it
    /// was asked after they began to wait: a burst of pods costs a few lists, not one each.
    pub async fn fetch(&self, label: &str, deadline: Instant) -> Result<Vec<Arc<RestoreInfo>>, String> {
        let began = Instant::now();
        let ask = async {
            let mut fetched = self.fetched.lock().await;
            if let Some(recent) = fetched
                .as_ref()
                .filter(|recent| recent.label == label && recent.asked_at >= began)
            {
                return recent.answer.clone();
            }
            let asked_at = Instant::now();
            let name = (label.len() < LABEL_LIMIT).then(|| label.to_owned());
            let answer = self.api.list(name).await;
            let answer = answer.map(|restores| restores.into_iter().map(Arc::new).collect::<Vec<_>>());
            let label = label.to_owned();
            let kept = fetched.insert(Fetched {
                label,
                asked_at,
                answer,
            });
            kept.answer.clone()
        };
        tokio::time::timeout_at(deadline, ask)
            .await
            .unwrap_or_else(|_| Err("the API server did not list the Restores in time".to_owned()))
    }

    fn apply(&self, restore: DynamicObject) {
        if let Some(restore) = read(restore) {
            self.known.write().unwrap_or_else(PoisonError::into_inner).put(restore);
        }
    }

    fn delete(&self, restore: &DynamicObject) {
        if let Some(uid) = &restore.metadata.uid {
            self.known.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
        }
    }
}

/// Keeps the cache up to date until `end` fires. The gate opens once the Restores are known, or once it is known that there is
/// no Velero; one that is installed later is noticed.
pub async fn run_watch(
    cache: Arc<RestoreCache>,
    api: VeleroApi,
    gate: Gate,
    metrics: Arc<Metrics>,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let mut events = watcher(api.restores, watcher::Config::default()).boxed();
    let synced = |restores: Vec<RestoreInfo>| {
        cache.replace(restores);
        metrics.restore_cache_synced(true);
        gate.set(true);
    };
    let mut listed = Vec::new();
    let mut pause = FIRST_PAUSE;
    let mut absent = false;
    loop {
        let event = tokio::select! {
            () = end.cancelled() => return Ok(()),
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => {
                // A list that is only begun may still fail.
                if !matches!(event, Event::Init) {
                    pause = FIRST_PAUSE;
                }
                match event {
                    Event::Init => listed.clear(),
                    Event::InitApply(restore) => listed.extend(read(restore)),
                    Event::InitDone => {
                        info!(restores = listed.len(), "the Restores are known");
                        absent = false;
                        synced(std::mem::take(&mut listed));
                    }
                    Event::Apply(restore) => cache.apply(restore),
                    Event::Delete(restore) => cache.delete(&restore),
                }
                continue;
            }
            Some(Err(error)) if is_absent(&error) => {
                if !absent {
                    info!("there is no Velero on this cluster; looking again every 30 s");
                }
                absent = true;
                synced(Vec::new());
                pause = PAUSE;
            }
            Some(Err(error)) => {
                // A watch that expires is routine; one that can't begin is not.
                let reason = watch_reason(&error);
                if matches!(error, watcher::Error::InitialListFailed(_)) {
                    warn!(error = reason, "the Restores can't be listed");
                } else {
                    debug!(error = reason, "the watch on Restores was interrupted");
                }
            }
            // kube's watcher never ends.
            None => pause = PAUSE,
        }
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE);
    }
}

/// The API server does not know the kind at all.
fn is_absent(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(error) if is_not_found(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn restore(name: &str, uid: &str) -> RestoreInfo {
        RestoreInfo::read(&json!({"metadata": {"namespace": "velero", "name": name, "uid": uid}})).unwrap()
    }

    struct Slow(Arc<AtomicUsize>);

    impl ListRestores for Slow {
        fn list(&self, name: Option<String>) -> BoxFuture<'_, Result<Vec<RestoreInfo>, String>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(name.map(|name| restore(&name, "u1")).into_iter().collect())
            })
        }
    }

    #[test]
    fn found_by_label_until_removed() {
        let cache = RestoreCache::new(Slow(Arc::default()));
        assert!(!cache.named("r").synced);
        let long = "x".repeat(100);
        cache.replace([restore("r", "u1"), restore("r", "u2"), restore(&long, "u3")]);
        let uids = |label: &str| -> Vec<String> {
            let named = cache.named(label);
            named.restores.iter().map(|restore| restore.uid.clone()).collect()
        };
        assert_eq!(uids("r"), ["u1", "u2"]);
        assert_eq!(uids(&label_value(&long)), ["u3"]);
        cache.known.write().unwrap().put(restore("r", "u1"));
        cache.known.write().unwrap().remove("u2");
        assert_eq!(uids("r"), ["u1"]);
        cache.replace([]);
        assert!(uids("r").is_empty() && cache.named("r").synced);
    }

    #[tokio::test]
    async fn a_burst_shares_its_questions() {
        let asked = Arc::new(AtomicUsize::new(0));
        let cache = RestoreCache::new(Slow(Arc::clone(&asked)));
        let deadline = Instant::now() + Duration::from_secs(5);
        let burst = futures::future::join_all((0..500).map(|_| cache.fetch("r", deadline))).await;
        assert!(
            burst
                .iter()
                .all(|answer| answer.as_ref().is_ok_and(|found| found.len() == 1))
        );
        assert!(asked.load(Ordering::SeqCst) <= 2, "{asked:?}");
        // A later call gets a fresh answer.
        let before = asked.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        cache.fetch("r", deadline).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), before + 1);
    }

    #[tokio::test]
    async fn the_deadline_holds() {
        let cache = RestoreCache::new(Slow(Arc::default()));
        let deadline = Instant::now() + Duration::from_millis(50);
        assert!(cache.fetch("r", deadline).await.unwrap_err().contains("in time"));
    }
}
