//! The last look at a pod before a command starts in it. Exec goes by the pod's name: is it still that very pod, and the container
//! the one that was seen to be up? Nothing is run if that can't be told.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::time::Instant;

use super::Context;
use crate::{api::hook_run::PodIdentity, waiter::pod_view::PodView};

/// How old a look at a pod may be when its command starts. Another pod of its name hardly has a running container so soon; and where
/// it has, the watch has told that this one is gone.
const FRESH: Duration = Duration::from_secs(1);

/// A look at a pod.
pub(super) struct Look {
    /// When it was begun.
    since: Instant,
    /// The pod, if it is still that very one.
    pub(super) pod: Option<PodView>,
}

impl Look {
    pub(super) fn is_fresh(&self) -> bool {
        self.since.elapsed() < FRESH
    }
}

/// Looks at a pod while the start of its command is being recorded. The connection to the API server is the one that the command
/// then takes, so that it need not be made when everything else is ready. Nothing if that did not work: then it is looked again.
pub(super) async fn look<E>(context: &Context<E>, namespace: String, pod: PodIdentity) -> Option<Look> {
    let since = Instant::now();
    let pods: Api<Pod> = Api::namespaced(context.exec_client.clone(), &namespace);
    // One that takes longer would not count.
    let found = tokio::time::timeout(FRESH, pods.get_opt(&pod.name)).await.ok()?.ok()?;
    let view = found.and_then(|found| PodView::read(&found, &context.redactor));
    Some(Look {
        since,
        pod: view.filter(|view| view.identity.uid == pod.uid),
    })
}

/// Whether a command whose start is recorded may still be started.
pub(super) enum MayStart {
    Yes,
    /// The container is another now: is it up, and ready where that is asked?
    NotNow,
    Never(&'static str),
}

/// Whether it may by this view of its pod. `recorded`: the container's id in the record of the start.
pub(super) fn may_start(pod: Option<&PodView>, container: &str, recorded: Option<&str>) -> MayStart {
    let Some(pod) = pod else {
        return MayStart::Never("the pod is gone");
    };
    let id = pod.container(container).and_then(|view| view.id.as_deref());
    match (pod.terminating, id == recorded) {
        (true, _) => MayStart::Never("the pod is being deleted"),
        (false, true) => MayStart::Yes,
        (false, false) => MayStart::NotNow,
    }
}
