//! Telling people: Events, log lines and counts.

use kube::runtime::events::EventType;

use super::RunTask;
use crate::{
    api::{HookRun, HookRunStatus},
    hooks::Severity,
    waiter::{counts, events, exec::Exec, pod_view::PodView},
};

impl<E: Exec> RunTask<'_, E> {
    /// Events, a log line and counts for each hook that has just ended.
    pub(super) async fn tell(&self, before: &HookRunStatus, run: &HookRun) {
        let Some(status) = &run.status else { return };
        let pod = &run.spec.pod;
        let about = events::pod_reference(&self.key.namespace, &pod.name, &pod.uid);
        for (index, state) in status.post.iter().enumerate() {
            let ended_now = before.post.get(index).is_none_or(|old| !old.state.is_final()) && state.state.is_final();
            if !ended_now {
                continue;
            }
            let (type_, reason, note) = events::for_hook(&run.spec, index, state);
            tracing::info!(namespace = self.key.namespace, pod = pod.name, container = state.container, hook = state.name, state = ?state.state, reason = state.reason, "a post hook has ended");
            counts::hook_ended(&self.context.metrics, state.state);
            self.context
                .events
                .publish(&about, type_, &reason, &format!("PostHook{index}"), &note)
                .await;
        }
        if status.phase.is_final() && !before.phase.is_final() {
            counts::run_ended(&self.context.metrics, status.phase);
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
            .flat_map(|status| &status.conditions);
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
