//! The waiter's watches: planned pods and `HookRun`s into the queue.

use std::{collections::HashSet, fmt, sync::Arc};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::Notify;

use super::{
    pod_view::PodView,
    queue::{Queue, RunKey},
};
use crate::{api::HookRun, names::QUEUE_LABEL};

/// A run that needs a task, with its bell.
pub type NewTask = (RunKey, Arc<Notify>);

/// Follows the pods that carry the queue label; ordinary pods never reach this process.
///
/// `listed` is called once what there is has been listed; `start` for each run that needs a task.
pub async fn pods(client: Client, queue: &Queue, listed: impl Fn(), start: impl Fn(NewTask)) {
    let config = watcher::Config::default().labels(QUEUE_LABEL);
    let stream = watcher(Api::<Pod>::all(client), config).default_backoff();
    follow(stream, "pods", listed, |change| {
        let seen = |pod: &Pod| PodView::read(pod);
        match change {
            Change::Seen(pod) => {
                let view = seen(&pod)?;
                let key = RunKey::of_pod(&view);
                if let Some(task) = queue.pod_seen(view) {
                    start(task);
                }
                Some(key)
            }
            Change::Gone(pod) => {
                if let Some(view) = seen(&pod) {
                    queue.pod_gone(&RunKey::of_pod(&view));
                }
                None
            }
            Change::Listed(keys) => {
                queue.only_pods(&keys);
                None
            }
        }
    })
    .await;
}

/// Follows all `HookRun`s. One that can't be read (a newer version wrote it) is left alone and does not hide the others.
pub async fn runs(client: Client, queue: &Queue, listed: impl Fn(), start: impl Fn(NewTask)) {
    let resource = ApiResource::erase::<HookRun>(&());
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    follow(stream, "hookruns", listed, |change| {
        let read = |object: DynamicObject| {
            let name = object.metadata.name.clone().unwrap_or_default();
            HookRun::read(object)
                .inspect_err(|error| tracing::warn!(run = name, %error, "a HookRun can't be read; it is left alone"))
                .ok()
        };
        match change {
            Change::Seen(object) => {
                let run = read(object)?;
                let key = RunKey::of_run(&run);
                if let Some(task) = queue.run_seen(run) {
                    start(task);
                }
                key
            }
            Change::Gone(object) => {
                if let Some(key) = read(object).as_ref().and_then(RunKey::of_run) {
                    queue.run_gone(&key);
                }
                None
            }
            Change::Listed(keys) => {
                queue.only_runs(&keys);
                None
            }
        }
    })
    .await;
}

/// Whether the API server said that what is watched does not exist or may not be watched: nothing that passes by itself.
pub(super) fn is_refused(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => matches!(status.code, 403 | 404),
        _ => false,
    }
}

/// What a watch says.
enum Change<K> {
    Seen(K),
    Gone(K),
    /// A list is complete: exactly these exist.
    Listed(HashSet<RunKey>),
}

/// Turns the watcher's events into changes; `apply` returns the key of what it has seen.
async fn follow<K: fmt::Debug>(
    stream: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    what: &'static str,
    listed: impl Fn(),
    mut apply: impl FnMut(Change<K>) -> Option<RunKey>,
) {
    let mut stream = std::pin::pin!(stream);
    let mut keys = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => keys.clear(),
            Ok(Event::InitApply(object)) => keys.extend(apply(Change::Seen(object))),
            Ok(Event::InitDone) => {
                apply(Change::Listed(std::mem::take(&mut keys)));
                listed();
            }
            Ok(Event::Apply(object)) => {
                apply(Change::Seen(object));
            }
            Ok(Event::Delete(object)) => {
                apply(Change::Gone(object));
            }
            Err(error) => tracing::warn!(what, %error, "a watch failed; it is made again"),
        }
    }
}
