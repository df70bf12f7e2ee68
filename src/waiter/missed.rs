//! Missed admissions: pods of a restore that the webhook was not asked about (failurePolicy Ignore lets them pass while it is
//! down). The waiter finds them by their label, and plans what is left to do for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
    core::{PartialObjectMeta, Selector, SelectorExt},
    runtime::{
        WatchStreamExt,
        events::EventType,
        watcher::{self, Event, watcher},
    },
};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    events::{self, Events},
    restores,
};
use crate::{
    admission::{
        Mode,
        late::{LateContext, is_unseen, late_plan},
    },
    api::{HookRun, hook_run::PodIdentity},
    hooks::restored::{KnownRestores, RestoreInfo, Restored, label_value, restored},
    infra::{clock, kube::Pages, pod_edit::PodEdit},
    names::{INJECTION_LABEL, VELERO_RESTORE_LABEL},
    plan::{Plan, RestoreRef},
    result::Verdict,
};

/// Between two tries after a failure.
const PAUSE: Duration = Duration::from_secs(2);
/// How long to wait for the first list of Restores before a run goes on without it.
const FIRST_LIST: Duration = Duration::from_secs(5);

/// The Restores that the waiter knows, all phases.
#[derive(Debug)]
pub struct RestoreTable {
    restores: Mutex<HashMap<String, Arc<RestoreInfo>>>,
    /// Counts changes; 0 before the first complete list.
    changes: watch::Sender<u64>,
}

impl Default for RestoreTable {
    fn default() -> Self {
        Self {
            restores: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }
}

impl RestoreTable {
    /// Takes over a Restore.
    pub fn put(&self, restore: RestoreInfo) {
        self.lock().insert(restore.uid.clone(), Arc::new(restore));
        // Before the first complete list nothing is known for sure, and nobody is told.
        self.changes.send_if_modified(|changes| {
            let listed = *changes > 0;
            *changes += u64::from(listed);
            listed
        });
    }

    /// A Restore was deleted.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
        self.changes.send_modify(|changes| *changes = (*changes).max(1) + 1);
    }

    /// A list is complete: exactly these exist.
    pub fn listed(&self, uids: &std::collections::HashSet<String>) {
        self.lock().retain(|uid, _| uids.contains(uid));
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// One of them.
    pub fn get(&self, uid: &str) -> Option<Arc<RestoreInfo>> {
        self.lock().get(uid).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<RestoreInfo>> {
        self.lock().values().cloned().collect()
    }

    /// Is told of each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<RestoreInfo>>> {
        self.restores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of a plan that the webhook could not make.
#[derive(Debug)]
pub enum Resolved {
    /// The pod carries a plan now.
    Planned,
    /// It gets none, and why.
    Not(String),
}

/// Plans for pods that the webhook did not see.
pub struct Missed {
    /// For pods and namespaces.
    pub client: Client,
    /// Writes Events.
    pub events: Events,
    /// The configured mode.
    pub mode: Mode,
    /// Namespaces in which nothing may be run.
    pub excluded_namespaces: Vec<String>,
    /// The labels of namespaces in which something may be run.
    pub namespace_selector: Selector,
    /// The Restores.
    pub restores: Arc<RestoreTable>,
}

impl Missed {
    /// Follows the pods of a Restore until Velero has finished it, then lists them once more. Returns early only when `end`
    /// fires or the Restore is deleted.
    pub async fn follow(&self, uid: &str, end: &CancellationToken) {
        let Some(restore) = self.restores.get(uid) else { return };
        self.tell_problems(&restore).await;
        let selector = format!("{VELERO_RESTORE_LABEL}={}", label_value(&restore.name));
        let config = watcher::Config::default().labels(&selector);
        let stream = watcher(Api::<PartialObjectMeta<Pod>>::all(self.client.clone()), config).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut changes = self.restores.subscribe();
        loop {
            match self.restores.get(uid) {
                None => return,
                Some(restore) if restore.finished() => break,
                Some(_) => {}
            }
            tokio::select! {
                () = end.cancelled() => return,
                news = changes.changed() => if news.is_err() { return },
                event = stream.next() => match event {
                    Some(Ok(Event::Apply(pod) | Event::InitApply(pod))) => {
                        let value = serde_json::to_value(&pod).unwrap_or_default();
                        self.look_at(uid, &value, &pod.namespace().unwrap_or_default(), &pod.name_any()).await;
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => tracing::warn!(%error, "the watch of a restore's pods failed; it is made again"),
                    None => return,
                },
            }
        }
        self.list_once_more(uid, &selector, end).await;
    }

    /// The list after Velero's end: what the watch may not have brought.
    async fn list_once_more(&self, uid: &str, selector: &str, end: &CancellationToken) {
        let parameters = ListParams::default().labels(selector);
        while !end.is_cancelled() {
            match self.look_at_all(uid, &parameters).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "a finished restore's pods can't be listed yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// False when something failed and is to be tried again.
    async fn look_at_all(&self, uid: &str, parameters: &ListParams) -> Result<bool, kube::Error> {
        let api = Api::<Pod>::all(self.client.clone());
        let (mut pages, mut all_done) = (Pages::of(parameters), true);
        while let Some(page) = pages.ask() {
            let list = api.list_metadata(&page).await?;
            pages.came(page, &list.metadata);
            for pod in list.items {
                let value = serde_json::to_value(&pod).unwrap_or_default();
                let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
                all_done &= self.look_at(uid, &value, &namespace, &name).await;
            }
        }
        Ok(all_done)
    }

    /// Plans for one pod if admission missed it. `metadata`: the pod without spec, which is enough for nearly all of them.
    /// False when that failed and is to be tried again.
    async fn look_at(&self, uid: &str, metadata: &Value, namespace: &str, name: &str) -> bool {
        let Some(restore) = self.restores.get(uid) else {
            return true;
        };
        let context = LateContext {
            restore: &restore,
            mode: self.mode,
            refused: None,
            now: clock::now(),
        };
        if !is_unseen(metadata, &restore) || late_plan(metadata, namespace, &context).is_none() {
            return true;
        }
        match self.plan_pod(&restore, namespace, name).await {
            Ok(_) => true,
            Err(kube::Error::Api(status))
                if (400..500).contains(&status.code) && !matches!(status.code, 404 | 409 | 429) =>
            {
                // It will not be otherwise the next time.
                let note = format!("hooks of pod {namespace}/{name} can't be planned: {}", status.message);
                tracing::error!(namespace, pod = name, note, "a missed pod can't be planned");
                self.tell(&restore, "HooksNotPlanned", &format!("Plan-{namespace}-{name}"), &note)
                    .await;
                true
            }
            Err(error) => {
                tracing::warn!(namespace, pod = name, %error, "a missed pod could not be planned yet");
                false
            }
        }
    }

    /// Says something on the Restore.
    async fn tell(&self, restore: &RestoreInfo, reason: &str, action: &str, note: &str) {
        self.events
            .publish(&reference(restore), EventType::Warning, reason, action, note)
            .await;
    }

    /// Says on the Restore that its result can't be known any more.
    pub(super) async fn tell_forgotten(&self, restore: &RestoreInfo, note: &str) {
        self.tell(restore, "ResultUnknown", "HooksEnded", note).await;
    }

    /// Says on the Restore what has come of its hooks.
    pub(super) async fn tell_end(&self, restore: &RestoreInfo, verdict: &Verdict, runs: &[&HookRun]) {
        let (type_, reason, note) = events::for_restore(verdict, runs);
        self.events
            .publish(&reference(restore), type_, reason, "HooksEnded", &note)
            .await;
    }

    /// Whether the Restore of a run was deleted. What the watch does not know is asked of the API server: it may be behind.
    pub(super) async fn is_gone(&self, restore: &RestoreRef) -> Result<bool, kube::Error> {
        if self.restores.get(&restore.uid).is_some() {
            return Ok(false);
        }
        // Before there is a list, and where Velero is not installed, nothing is known.
        let mut changes = self.restores.subscribe();
        let listed = tokio::time::timeout(FIRST_LIST, changes.wait_for(|changes| *changes > 0)).await;
        if !matches!(listed, Ok(Ok(_))) || self.restores.get(&restore.uid).is_some() {
            return Ok(false);
        }
        drop(listed);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &restore.namespace, &restores::resource());
        let found = api.get_metadata_opt(&restore.name).await?;
        Ok(found.is_none_or(|found| found.metadata.uid.as_ref() != Some(&restore.uid)))
    }

    /// Says on the Restore, once, what is wrong with its hooks as such.
    async fn tell_problems(&self, restore: &RestoreInfo) {
        for (index, problem) in restore.rules.problems.iter().enumerate() {
            self.tell(restore, "HookInvalid", &format!("Problem{index}"), &problem.to_string())
                .await;
        }
    }

    /// Reads the pod whole, decides, and writes the plan on it. False when there is nothing to plan after all.
    async fn plan_pod(&self, restore: &RestoreInfo, namespace: &str, name: &str) -> Result<bool, kube::Error> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<Pod>(&()));
        let Some(object) = api.get_opt(name).await? else {
            return Ok(false);
        };
        let pod = serde_json::to_value(&object).unwrap_or_default();
        // Two Restores may have names of the same label form: the pod is only one's.
        let all = self.restores.all();
        let running: Vec<&RestoreInfo> = all
            .iter()
            .map(AsRef::as_ref)
            .filter(|other| !other.finished() || other.uid == restore.uid)
            .collect();
        let mut named: Vec<RestoreInfo> = running.into_iter().cloned().collect();
        for other in &mut named {
            // Finished a moment ago is still its restore.
            if other.uid == restore.uid {
                other.phase.clear();
            }
        }
        let named: Vec<&RestoreInfo> = named.iter().collect();
        let known = KnownRestores {
            restores: &named,
            complete: Ok(()),
        };
        let is_its = matches!(restored(&pod, namespace, None, known, &[]), Restored::By(by) if by.uid == restore.uid);
        if !is_its || !is_unseen(&pod, restore) {
            return Ok(false);
        }
        let refused = self.refused(namespace).await?;
        let context = LateContext {
            restore,
            mode: self.mode,
            refused: refused.as_deref(),
            now: clock::now(),
        };
        let Some(plan) = late_plan(&pod, namespace, &context) else {
            return Ok(false);
        };
        self.write(&object, namespace, &plan).await?;
        tracing::info!(
            namespace,
            pod = name,
            restore = restore.name,
            "admission missed a pod; it is planned now"
        );
        if let Some(reason) = refused {
            let note = format!("hooks of pod {namespace}/{name} are skipped: {reason}");
            self.tell(restore, "HooksSkipped", &format!("Skip-{namespace}-{name}"), &note)
                .await;
        }
        Ok(true)
    }

    async fn write(&self, pod: &DynamicObject, namespace: &str, plan: &Plan) -> Result<(), kube::Error> {
        let text = plan.to_text().map_err(kube::Error::SerdeError)?;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let version = pod.metadata.resource_version.as_deref();
        PodEdit::default()
            .queue(text)
            .write(&self.client, namespace, &pod.name_any(), uid, version)
            .await
    }

    /// Why nothing may be run in a namespace, if so: the webhook is never asked there.
    async fn refused(&self, namespace: &str) -> Result<Option<String>, kube::Error> {
        if self.excluded_namespaces.iter().any(|excluded| excluded == namespace) {
            return Ok(Some(format!("namespace {namespace} is excluded from Reveille")));
        }
        let Some(found) = Api::<Namespace>::all(self.client.clone())
            .get_metadata_opt(namespace)
            .await?
        else {
            return Ok(None);
        };
        if found
            .labels()
            .get(INJECTION_LABEL)
            .is_some_and(|value| value == "disabled")
        {
            return Ok(Some(format!(
                "namespace {namespace} has the label {INJECTION_LABEL}=disabled"
            )));
        }
        let selected = self.namespace_selector.matches(found.labels());
        Ok((!selected)
            .then(|| format!("namespace {namespace} is not among those that webhook.namespaceSelector selects")))
    }

    /// Decides about a pod whose Restore could not be told at admission.
    pub async fn resolve(&self, namespace: &str, pod: &PodIdentity) -> Result<Resolved, kube::Error> {
        let mut changes = self.restores.subscribe();
        // The waiter waits for its list; without Velero there is none, and then there are no Restores.
        let listed = tokio::time::timeout(Duration::from_secs(30), changes.wait_for(|changes| *changes > 0)).await;
        if !matches!(listed, Ok(Ok(_))) {
            return Ok(Resolved::Not("no Restores are known here".to_owned()));
        }
        drop(listed);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<Pod>(&()));
        let Some(object) = api
            .get_opt(&pod.name)
            .await?
            .filter(|object| object.metadata.uid.as_ref() == Some(&pod.uid))
        else {
            return Ok(Resolved::Not("the pod is gone".to_owned()));
        };
        let value = serde_json::to_value(&object).unwrap_or_default();
        let all = self.restores.all();
        let known: Vec<&RestoreInfo> = all.iter().map(AsRef::as_ref).collect();
        let restore = match restored(
            &value,
            namespace,
            None,
            KnownRestores {
                restores: &known,
                complete: Ok(()),
            },
            &[],
        ) {
            Restored::By(restore) => restore,
            Restored::No(reason) | Restored::Unknown(reason) => return Ok(Resolved::Not(reason)),
            Restored::ByMarker(label) => return Ok(Resolved::Not(format!("it carries only the marker label {label}"))),
        };
        // Somebody (the watch of the restore's pods) may have planned it a moment ago.
        if !is_unseen(&value, restore) || self.plan_pod(restore, namespace, &pod.name).await? {
            Ok(Resolved::Planned)
        } else {
            Ok(Resolved::Not("it has no hooks".to_owned()))
        }
    }
}

/// A Restore, as Events refer to it.
fn reference(restore: &RestoreInfo) -> ObjectReference {
    events::restore_reference(&restore.namespace, &restore.name, &restore.uid)
}
