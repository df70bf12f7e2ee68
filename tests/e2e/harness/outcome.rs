//! How a restore has ended, as the cluster tells it.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use reveille::{
    api::{
        HookRun,
        hook_run::{HookRunStatus, HookState, InitState, InitStatus, PostStatus, RunPhase},
    },
    hooks::restored::label_value,
    names::{
        MOVED_HOOKS_ANNOTATION, OWNER_ANNOTATION, PLAN_ANNOTATION, QUEUE_LABEL, RESULT_ANNOTATION, RUN_ANNOTATION,
        VELERO_RESTORE_LABEL,
    },
};
use serde_json::Value;

use super::{Scenario, restore::restores};

/// A Restore and its runs.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    /// The Restore itself.
    pub(crate) object: Value,
    /// `status.phase`.
    pub(crate) phase: String,
    /// The annotation `reveille.dev/hooks-result`.
    pub(crate) result: Option<String>,
    /// Its `HookRun`s, in all namespaces.
    pub(crate) runs: Vec<HookRun>,
}

impl Outcome {
    pub(super) async fn read(scenario: &Scenario, name: &str, uid: &str) -> Self {
        let object = restores(scenario).get(name).await.unwrap();
        let object = serde_json::to_value(object).unwrap();
        let label = format!("{VELERO_RESTORE_LABEL}={}", label_value(name));
        let runs: Api<HookRun> = Api::all(scenario.client.clone());
        let listed = runs
            .list(&ListParams::default().labels(&label))
            .await
            .map(|list| list.items);
        // Reveille may not be installed.
        let mut runs = listed.unwrap_or_default();
        runs.retain(|run| run.spec.plan.restore.as_ref().is_some_and(|restore| restore.uid == uid));
        Self {
            name: name.to_owned(),
            phase: object["status"]["phase"].as_str().unwrap_or_default().to_owned(),
            result: annotation(&object, RESULT_ANNOTATION).map(str::to_owned),
            object,
            runs,
        }
    }

    /// Whether Reveille has marked it as its own.
    pub(crate) fn is_marked(&self) -> bool {
        annotation(&self.object, OWNER_ANNOTATION) == Some("reveille")
    }

    /// Whether exec hooks were moved off its spec.
    pub(crate) fn has_moved_hooks(&self) -> bool {
        annotation(&self.object, MOVED_HOOKS_ANNOTATION).is_some()
    }

    /// The run of a pod, if it has one.
    pub(crate) fn run_of(&self, pod: &str) -> Option<&HookRun> {
        let mut runs = self.runs.iter().filter(|run| run.spec.pod.name == pod);
        let run = runs.next();
        assert!(runs.next().is_none(), "pod {pod} has more than one run");
        run
    }

    /// The status of a pod's run.
    pub(crate) fn status(&self, pod: &str) -> &HookRunStatus {
        let run = self.run_of(pod).unwrap_or_else(|| panic!("pod {pod} has no HookRun"));
        run.status.as_ref().expect("a HookRun has a status")
    }

    /// The only post hook of a pod.
    pub(crate) fn post(&self, pod: &str) -> &PostStatus {
        let posts = &self.status(pod).post;
        assert_eq!(posts.len(), 1, "post hooks of pod {pod}: {posts:?}");
        &posts[0]
    }

    /// The only init hook of a pod.
    pub(crate) fn init(&self, pod: &str) -> &InitStatus {
        let inits = &self.status(pod).init;
        assert_eq!(inits.len(), 1, "init hooks of pod {pod}: {inits:?}");
        &inits[0]
    }

    /// Velero and Reveille are both content: all runs succeeded, each command in one attempt with exit code 0.
    #[track_caller]
    pub(crate) fn assert_all_well(&self, pods: usize) {
        assert_eq!(
            (self.phase.as_str(), self.result.as_deref()),
            ("Completed", Some("Succeeded"))
        );
        assert_eq!(self.runs.len(), pods, "one run for each pod with hooks");
        for run in &self.runs {
            let status = run.status.as_ref().expect("a status");
            assert_eq!(status.phase, RunPhase::Succeeded, "{status:?}");
            for post in &status.post {
                assert_eq!(post.state, HookState::Succeeded);
                assert_eq!(post.attempts.len(), 1, "one attempt");
                assert_eq!(post.attempts[0].exit_code, Some(0));
            }
            for init in &status.init {
                assert_eq!((init.state, init.exit_code), (InitState::Succeeded, Some(0)));
            }
        }
    }
}

fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"].get(key)?.as_str()
}

/// The names of a pod's init containers, in order.
pub(crate) fn init_names(pod: &Pod) -> Vec<String> {
    let containers = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
    containers
        .into_iter()
        .flatten()
        .map(|container| container.name.clone())
        .collect()
}

/// How an init container of a pod ended, and how often the kubelet started it anew.
pub(crate) fn init_end(pod: &Pod, name: &str) -> (i32, i32) {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.init_container_statuses.as_ref());
    let status = statuses.into_iter().flatten().find(|status| status.name == name);
    let status = status.unwrap_or_else(|| panic!("no init container {name}"));
    let end = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    (end.expect("it has ended").exit_code, status.restart_count)
}

/// A pod's annotation.
pub(crate) fn annotation_of<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// All that stays on a pod with hooks in the end is the run mark, and it names this pod and its run.
#[track_caller]
pub(crate) fn assert_only_the_mark_stays(pod: &Pod, outcome: &Outcome) {
    let name = pod.metadata.name.as_deref().unwrap();
    let run = outcome.run_of(name).expect("a run");
    let mark = format!(
        "{}/{}",
        pod.metadata.uid.as_deref().unwrap(),
        run.metadata.uid.as_deref().unwrap()
    );
    assert_eq!(annotation_of(pod, RUN_ANNOTATION), Some(mark.as_str()));
    assert_eq!(annotation_of(pod, PLAN_ANNOTATION), None, "the plan is gone");
    assert!(
        !pod.metadata.labels.as_ref().unwrap().contains_key(QUEUE_LABEL),
        "the queue label is gone"
    );
}
