//! The pause of everything: an annotation on a ConfigMap in Reveille's own namespace, followed by the waiter.

use std::{convert::Infallible, sync::Arc};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio_util::sync::CancellationToken;

use super::{queue::Queue, watch::Refusal};
use crate::{
    control::Request,
    infra::{clock::Stopwatch, kube::watch_reason},
    names::PAUSE_ANNOTATION,
};

/// Follows the `ConfigMap` until `end` fires. `listed` is called once it is known whether there is a pause, or that this
/// process may not know it.
pub async fn run(
    client: Client,
    (namespace, name): (String, String),
    queue: Arc<Queue>,
    listed: impl Fn(),
    end: CancellationToken,
) -> Result<(), Infallible> {
    let api: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client, &namespace);
    // The right to list and to watch is given by name, and so is asked for.
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    let mut found = false;
    let (mut refusal, stopwatch) = (Refusal::default(), Stopwatch::start());
    loop {
        let event = tokio::select! {
            () = end.cancelled() => return Ok(()),
            event = stream.next() => event,
        };
        match event {
            Some(Ok(Event::Init)) => found = false,
            Some(Ok(Event::InitApply(map) | Event::Apply(map))) => {
                found = true;
                let pause = map
                    .annotations()
                    .get(PAUSE_ANNOTATION)
                    .and_then(|text| Request::read(text));
                tell(pause.as_ref());
                queue.pause_all(pause);
            }
            Some(Ok(Event::InitDone)) => {
                if !found {
                    queue.pause_all(None);
                }
                listed();
            }
            Some(Ok(Event::Delete(_))) => queue.pause_all(None),
            Some(Err(error)) => {
                let error_text = watch_reason(&error);
                tracing::warn!(
                    namespace,
                    name,
                    error = error_text,
                    "whether everything is paused can't be read; it is tried again"
                );
                // A right that is missing does not come by waiting: hooks run, for want of a brake.
                if refusal.is_final(&error, stopwatch.elapsed()) {
                    listed();
                }
            }
            None => return Ok(()),
        }
    }
}

fn tell(pause: Option<&Request>) {
    if let Some(request) = pause {
        tracing::info!(
            by = request.by,
            reason = request.reason,
            "everything is paused: nothing new is started"
        );
    }
}
