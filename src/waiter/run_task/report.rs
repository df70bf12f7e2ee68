//! Telling people: Events, log lines and counts.

use kube::runtime::events::EventType;

use super::RunTask;
use crate::{
    api::{
        HookRun, HookRunStatus,
        hook_run::{HookState, PostStatus},
    },
    hooks::Severity,
    infra::kube::reason,
    waiter::{
        conditions::{self, FINISHED, SUCCEEDED, WAITING},
        counts,
        end::cancelling_failure,
        events,
        exec::Exec,
        pod_view::PodView,
        setback::{Advice, Kind},
    },
};

/// How many hooks get an Event each when they end at one time (a pod that goes away ends all that wait).
const EVENTS_AT_ONCE: usize = 10;

impl<E: Exec> RunTask<'_, E> {
    /// Events, a log line and counts for each hook that has just ended.
    pub(super) async fn tell(&self, before: &HookRunStatus, run: &HookRun) {
        let Some(status) = &run.status else { return };
        let pod = &run.spec.pod;
        let about = events::pod_reference(&self.key.namespace, &pod.name, &pod.uid);
        let ended_now = |(index, state): &(usize, &PostStatus)| {
            before.post.get(*index).is_none_or(|old| !old.state.is_final()) && state.state.is_final()
        };
        let ended: Vec<_> = status.post.iter().enumerate().filter(ended_now).collect();
        for (index, state) in &ended {
            tracing::info!(namespace = self.key.namespace, pod = pod.name, container = state.container, hook = state.name, state = ?state.state, reason = state.reason, "a post hook has ended");
            counts::hook_ended(&self.context.metrics, state.state);
            if ended.len() > EVENTS_AT_ONCE {
                continue;
            }
            let (type_, reason, note) = events::for_hook(&run.spec, *index, state);
            let action = format!("PostHook{index}");
            self.context
                .events
                .publish(&about, type_, &reason, &action, &note)
                .await;
        }
        if ended.len() > EVENTS_AT_ONCE {
            let note = format!(
                "{} post hooks have ended at once; the HookRun {} has all",
                ended.len(),
                self.key.name
            );
            let events = &self.context.events;
            events
                .publish(&about, EventType::Normal, "HooksEnded", "PostHooks", &note)
                .await;
        }
        for (index, (old, new)) in std::iter::zip(&before.post, &status.post).enumerate() {
            if old.state == HookState::Started && new.next_attempt_at.is_some() {
                let note = format!("post hook {} in container {}: {}", new.name, new.container, new.message);
                let action = format!("PostHook{index}");
                self.context
                    .events
                    .publish(&about, EventType::Warning, "HookRetried", &action, &note)
                    .await;
            }
        }
        for (old, new) in std::iter::zip(&before.init, &status.init).filter(|(old, new)| old.state != new.state) {
            let Some((type_, reason, note)) = events::for_init(old, new) else {
                continue;
            };
            counts::init_ended(&self.context.metrics, new.state);
            let action = format!("InitHook-{}", new.container);
            self.context.events.publish(&about, type_, reason, &action, &note).await;
        }
        let last = |status: &HookRunStatus| status.reruns.last().map(|rerun| rerun.request.id.clone());
        if let (Some(rerun), true) = (status.reruns.last(), last(before) != last(status)) {
            let (type_, reason, note) = events::for_rerun(rerun);
            self.context.events.publish(&about, type_, reason, "Rerun", &note).await;
        }
        if let Some(waiting) = conditions::news(before, status, WAITING) {
            tracing::info!(
                namespace = self.key.namespace,
                pod = pod.name,
                reason = waiting.reason,
                "a run waits"
            );
            let note = format!("the hooks of this pod wait: {}", waiting.message);
            let (type_, action) = (events::for_waiting(&waiting.reason), &waiting.reason);
            self.context
                .events
                .publish(&about, type_, "HooksWaiting", action, &note)
                .await;
        }
        self.tell_restore(before, run).await;
        if status.phase.is_final() && !before.phase.is_final() {
            counts::run_ended(&self.context.metrics, status.phase);
        }
    }

    /// The first failure with onError Fail in a restore, on the Restore: it cancels what has not started.
    async fn tell_restore(&self, before: &HookRunStatus, run: &HookRun) {
        let (Some(restore), Some(status)) = (&run.spec.plan.restore, &run.status) else {
            return;
        };
        let failure = cancelling_failure(&run.spec, status);
        if cancelling_failure(&run.spec, before).is_some() || failure != self.context.queue.failed(&restore.uid) {
            return;
        }
        if let Some(failure) = failure {
            let about = events::restore_reference(&restore.namespace, &restore.name, &restore.uid);
            let note = format!(
                "in namespace {}: {failure}; hooks that have not started are cancelled",
                self.key.namespace
            );
            let events = &self.context.events;
            events
                .publish(&about, EventType::Warning, "HookFailed", "PostHook", &note)
                .await;
        }
    }

    /// A call that failed: once for each reason, and on the pod if somebody has to do something about it.
    pub(super) async fn tell_setback(&self, advice: &Advice, error: &kube::Error) {
        let (namespace, run) = (&self.key.namespace, &self.key.name);
        match advice.kind {
            _ if !advice.is_news => tracing::debug!(namespace, run, error = reason(error), "a run still can't go on"),
            Kind::NamespaceEnds => {
                tracing::info!(
                    namespace,
                    run,
                    "the namespace is being deleted; the run waits for its pod's end"
                );
            }
            Kind::Passing | Kind::Refused => {
                tracing::warn!(
                    namespace,
                    run,
                    error = reason(error),
                    "a run could not go on; it is tried again"
                );
            }
        }
        let watched = self.context.queue.pod(&self.key).map(|pod| pod.identity.clone());
        let pod = watched.or_else(|| Some(self.run.as_ref()?.spec.pod.clone()));
        if let Some(pod) = pod.filter(|_| advice.is_to_be_told) {
            let about = events::pod_reference(&self.key.namespace, &pod.name, &pod.uid);
            let note = format!("the hooks of this pod can't go on: {}", reason(error));
            let events = &self.context.events;
            events
                .publish(&about, EventType::Warning, "HooksBlocked", "Blocked", &note)
                .await;
        }
    }

    /// What was wrong with what the user wrote, on the pod.
    pub(super) async fn report_problems(&self, pod: &PodView) {
        let problems = self.run.iter().flat_map(|run| &run.spec.plan.problems);
        for (index, problem) in problems.enumerate() {
            let reason = if problem.severity == Severity::Error {
                "HookInvalid"
            } else {
                "HookQuestionable"
            };
            self.say(
                pod,
                EventType::Warning,
                reason,
                &format!("Problem{index}"),
                &problem.to_string(),
            )
            .await;
        }
    }

    /// What is out of the ordinary, on the pod and in the metrics.
    pub(super) async fn report_conditions(&self, pod: &PodView) {
        let conditions = self
            .run
            .iter()
            .flat_map(|run| &run.status)
            .flat_map(|status| &status.conditions)
            .filter(|condition| ![FINISHED, SUCCEEDED].contains(&condition.type_.as_str()));
        for condition in conditions {
            counts::missed(&self.context.metrics, &condition.type_);
            self.say(
                pod,
                EventType::Warning,
                &condition.type_,
                &condition.type_,
                &condition.message,
            )
            .await;
        }
    }

    pub(super) async fn say(&self, pod: &PodView, type_: EventType, reason: &str, action: &str, note: &str) {
        let about = events::pod_reference(&self.key.namespace, &pod.identity.name, &pod.identity.uid);
        self.context.events.publish(&about, type_, reason, action, note).await;
    }
}
