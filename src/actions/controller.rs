//! Which actions there are: a task for each that is not finished, a bell for each task, and the pods of actions that are gone.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DynamicObject, ListParams},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

use super::{
    Context,
    action::{ACTION_LABEL, Action, ActionKind, NAMESPACE_LABEL},
    functions,
    task::{self, Key},
};
use crate::infra::kube::watch_reason;

/// How often pods are looked for that no action needs any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(300);

/// Starts a task for each action that is not finished.
pub struct Controller {
    context: Arc<Context>,
    tasks: TaskTracker,
    bells: Mutex<HashMap<Key, Arc<Notify>>>,
}

impl Controller {
    /// `tasks`: where the tasks of the actions are counted.
    pub fn new(context: Arc<Context>, tasks: TaskTracker) -> Self {
        Self {
            context,
            tasks,
            bells: Mutex::default(),
        }
    }

    /// Follows both kinds, for ever.
    pub async fn run(&self) {
        let lists = Semaphore::new(0);
        let sweeps = async {
            // From then on each action that is not over has a bell.
            let _ = lists.acquire_many(2).await;
            loop {
                self.sweep().await;
                tokio::time::sleep(SWEEP_INTERVAL).await;
            }
        };
        // Its commands are over, or given up: what was waiting for them can go on.
        let others = async {
            loop {
                self.context.standing.changed().await;
                self.ring_all();
            }
        };
        tokio::select! {
            () = self.follow(ActionKind::Restore, &lists) => {}
            () = self.follow(ActionKind::Backup, &lists) => {}
            () = sweeps => {}
            () = others => {}
        }
    }

    async fn follow(&self, kind: ActionKind, lists: &Semaphore) {
        let Context { clients, settings, .. } = self.context.as_ref();
        let api: Api<DynamicObject> = Api::namespaced_with(clients.api.clone(), &settings.namespace, &kind.resource());
        let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut is_first = true;
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => {}
                Ok(Event::InitDone) => {
                    if std::mem::take(&mut is_first) {
                        lists.add_permits(1);
                    } else {
                        // One that was deleted meanwhile is not in the list.
                        self.ring_all();
                    }
                }
                Ok(Event::InitApply(object) | Event::Apply(object)) => self.seen(kind, &object),
                Ok(Event::Delete(object)) => self.ring(&key(kind, &object)),
                Err(error) => {
                    let reason = watch_reason(&error);
                    tracing::warn!(
                        kind = kind.word(),
                        reason,
                        "the watch of actions failed; it is made again"
                    );
                }
            }
        }
    }

    fn seen(&self, kind: ActionKind, object: &DynamicObject) {
        let key = key(kind, object);
        let action = match Action::read(kind, object) {
            Ok(action) => action,
            Err(error) => {
                tracing::warn!(action = key.name, error, "an action can't be read; it is left alone");
                return;
            }
        };
        let is_over = action.status.phase.is_final() && action.status.cleaned_up;
        let mut bells = self.lock();
        match bells.get(&key) {
            Some(bell) => bell.notify_one(),
            None if is_over => {}
            None => {
                let bell = Arc::new(Notify::new());
                bells.insert(key.clone(), Arc::clone(&bell));
                self.tasks
                    .spawn(task::drive(Arc::clone(&self.context), key.clone(), bell));
            }
        }
        if is_over {
            // Its task ends by itself, and nothing can happen to it any more.
            bells.remove(&key);
        }
    }

    fn ring(&self, key: &Key) {
        if let Some(bell) = self.lock().remove(key) {
            bell.notify_one();
        }
    }

    fn ring_all(&self) {
        self.lock().values().for_each(|bell| bell.notify_one());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Notify>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the pods of actions that are over: of those that were deleted while no controller ran, and pods whose creation
    /// was on its way when the action ended.
    async fn sweep(&self) {
        let client = &self.context.clients.api;
        let own = format!("{NAMESPACE_LABEL}={}", self.context.settings.namespace);
        let pods: Api<Pod> = Api::all(client.clone());
        let list = match pods.list_metadata(&ListParams::default().labels(&own)).await {
            Ok(list) => list.items,
            Err(error) => {
                tracing::warn!(%error, "pods of actions that are over could not be looked for");
                return;
            }
        };
        let of = |pod: PartialObjectMeta<Pod>| pod.metadata.labels?.remove(ACTION_LABEL);
        let uids: HashSet<String> = list.into_iter().filter_map(of).collect();
        for uid in uids {
            // An action has its bell before it has its first pod.
            if self.lock().keys().any(|key| key.uid == uid) {
                continue;
            }
            match functions::remove_pods(client, &uid, None).await {
                Ok(pods) => tracing::info!(uid, pods, "the pods of an action that is over are removed"),
                Err(error) => tracing::warn!(uid, %error, "the pods of an action that is over could not be removed"),
            }
        }
    }
}

fn key(kind: ActionKind, object: &DynamicObject) -> Key {
    Key {
        kind,
        name: object.metadata.name.clone().unwrap_or_default(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
    }
}
