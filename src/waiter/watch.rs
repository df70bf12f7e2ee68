//! The waiter's watches: planned pods and `HookRun`s into the queue.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

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
    redact::Redactor,
};
use crate::{api::HookRun, names::QUEUE_LABEL};

/// A run that needs a task, with its bell.
pub type NewTask = (RunKey, Arc<Notify>);

/// Follows the pods that carry the queue label; ordinary pods never reach this process.
///
/// `listed` is called once what there is has been listed; `start` for each run that needs a task.
pub async fn pods(client: Client, queue: &Queue, redactor: &Redactor, listed: impl Fn(), start: impl Fn(NewTask)) {
    let config = watcher::Config::default().labels(QUEUE_LABEL);
    let stream = watcher(Api::<Pod>::all(client), config).default_backoff();
    follow(stream, "pods", listed, |change| {
        let seen = |pod: &Pod| PodView::read(pod, redactor);
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

/// Follows all `HookRun`s. One that can't be read is left alone and does not hide the others.
pub async fn runs(client: Client, queue: &Queue, listed: impl Fn(), start: impl Fn(NewTask)) {
    let resource = ApiResource::erase::<HookRun>(&());
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    follow(stream, "hookruns", listed, |change| match change {
        Change::Seen(object) => {
            let run = HookRun::read(object);
            let key = RunKey::of_run(&run);
            if let Some(task) = queue.run_seen(run) {
                start(task);
            }
            key
        }
        Change::Gone(object) => {
            if let Some(key) = RunKey::of_run(&HookRun::read(object)) {
                queue.run_gone(&key);
            }
            None
        }
        Change::Listed(keys) => {
            queue.only_runs(&keys);
            None
        }
    })
    .await;
}

/// How often, and for how long at least, a watch must be forbidden before that is believed. An API server that has just been started
/// knows no roles for a moment, and forbids everything.
const FORBIDDEN_TIMES: u32 = 3;
const FORBIDDEN_FOR: Duration = Duration::from_secs(10);

/// Tells whether a watch fails for good: what is watched does not exist or may not be watched.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// How often it was forbidden, and since when by the caller's stopwatch.
    forbidden: Option<(u32, Duration)>,
}

impl Refusal {
    /// Takes in what the watch said, at this time of the caller's stopwatch; true if nothing will change by waiting.
    pub(super) fn is_final(&mut self, error: &watcher::Error, now: Duration) -> bool {
        match code(error) {
            Some(404) => true,
            Some(403) => {
                let (times, since) = self
                    .forbidden
                    .map_or((1, now), |(times, since)| (times.saturating_add(1), since));
                self.forbidden = Some((times, since));
                times >= FORBIDDEN_TIMES && now.saturating_sub(since) >= FORBIDDEN_FOR
            }
            // Whatever else is wrong says nothing about rights.
            _ => false,
        }
    }
}

/// Whether the API server said that what is watched does not exist.
pub(super) fn is_absent(error: &watcher::Error) -> bool {
    code(error) == Some(404)
}

/// The status code with which the API server refused a watch.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_forbidden_for_good_only_after_a_while() {
        let error = |code: u16| {
            let status = kube::core::Status::failure("no", "no").with_code(code);
            watcher::Error::WatchError(Box::new(status))
        };
        let at = Duration::from_secs;
        let mut refusal = Refusal::default();
        assert!(refusal.is_final(&error(404), at(0)), "that is no question of a moment");
        for (second, is_final) in [(0, false), (1, false), (9, false), (10, true)] {
            assert_eq!(refusal.is_final(&error(403), at(second)), is_final, "{second}");
        }
        let mut rare = Refusal::default();
        for (second, is_final) in [(0, false), (60, false), (120, true)] {
            assert!(!rare.is_final(&error(500), at(second)));
            assert_eq!(rare.is_final(&error(403), at(second)), is_final, "{second}");
        }
    }
}
