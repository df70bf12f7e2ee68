//! Running a hook's command between the record of its start and that of its end.

use std::sync::Arc;

use kube::api::PostParams;

use super::{FIRST_PAUSE, MAX_PAUSE, RunTask, Turn};
use crate::{
    api::{HookRunStatus, hook_run::HookState},
    infra::clock,
    waiter::{
        counts,
        exec::{Command, Exec, Report},
        step,
    },
};

impl<E: Exec> RunTask<'_, E> {
    /// Records the start, runs the command, records the end.
    pub(super) async fn execute(&mut self, hook: usize, started: HookRunStatus) -> Result<Turn, kube::Error> {
        if self.permit.is_none() {
            tokio::select! {
                permit = Arc::clone(&self.context.slots).acquire_owned() => self.permit = permit.ok(),
                () = self.context.stop.cancelled() => {}
            }
            // A place may have been long in coming: whether the hook may still start is asked again.
            return Ok(Turn::Again);
        }
        self.write_start(started).await?;
        let Some(run) = self.run.clone() else {
            return Ok(Turn::Over);
        };
        let Some(post) = run.spec.plan.post.get(hook) else {
            return Ok(Turn::Over);
        };
        let (pod, metrics) = (&run.spec.pod, &self.context.metrics);
        // Exec goes by name: is it still that very pod? Nothing is run if that can't be told.
        let report = match self.pod_now(&pod.name, &pod.uid).await {
            Err(error) => Report::refused(&format!("the pod could not be looked at before the start: {error}")),
            Ok(None) => Report::refused("the pod is gone"),
            Ok(Some(now)) if now.terminating => Report::refused("the pod is being deleted"),
            Ok(Some(_)) => {
                let (namespace, name, container) = (&self.key.namespace, &pod.name, &post.container);
                tracing::info!(namespace, pod = name, container, hook = post.name, "a post hook starts");
                let command = Command {
                    namespace,
                    pod: name,
                    container,
                    argv: &post.command,
                    timeout: post.exec_timeout,
                };
                counts::started(metrics, &run.spec, clock::now());
                counts::timed(metrics, self.context.exec.run(command)).await
            }
        };
        self.write_end(hook, &report).await;
        self.permit = None;
        Ok(Turn::Again)
    }

    /// Records the start of an execution. When the answer is lost, it is found out whether the record was made: only this
    /// process writes this claim, and it has not begun the command.
    pub(super) async fn write_start(&mut self, started: HookRunStatus) -> Result<(), kube::Error> {
        if self
            .run
            .as_ref()
            .is_some_and(|run| run.status.as_ref() == Some(&started))
        {
            return Ok(());
        }
        let Err(error) = self.write(started.clone()).await else {
            return Ok(());
        };
        let mut pause = FIRST_PAUSE;
        while !self.context.stop.is_cancelled() {
            match self.runs().get_opt(&self.key.name).await {
                Ok(Some(run)) if run.status.as_ref() == Some(&started) => {
                    self.run = Some(run);
                    return Ok(());
                }
                Ok(_) => return Err(error),
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
        Err(error)
    }

    /// Writes the end of an execution. It is known here alone, so it is tried until it is written, each time onto what stands
    /// there by then; unless somebody else has settled this attempt.
    pub(super) async fn write_end(&mut self, hook: usize, report: &Report) {
        let mut pause = FIRST_PAUSE;
        while let Some((spec, status)) = self
            .run
            .as_ref()
            .and_then(|run| Some((&run.spec, run.status.as_ref()?)))
        {
            let attempt = status
                .post
                .get(hook)
                .filter(|post| post.state == HookState::Started)
                .and_then(|post| post.attempts.last());
            if attempt.is_none_or(|attempt| attempt.claimed_by != self.context.process) {
                tracing::error!(namespace = self.key.namespace, run = self.key.name, outcome = ?report.outcome, "an attempt was settled by somebody else while its command ran");
                return;
            }
            let output = (report.stdout.clone(), report.stderr.clone());
            let end = step::record(spec, status, hook, &report.outcome, output, clock::now());
            let Err(error) = self.write(end).await else { return };
            tracing::warn!(namespace = self.key.namespace, run = self.key.name, %error, "a result could not be written yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            match self.runs().get_opt(&self.key.name).await {
                Ok(Some(fresh)) => self.run = Some(fresh),
                Ok(None) => {
                    tracing::error!(
                        namespace = self.key.namespace,
                        run = self.key.name,
                        "a HookRun was deleted while its hook ran"
                    );
                    self.run = None;
                }
                Err(_) => {}
            }
        }
    }

    /// Writes a status against the resource version that was read, and tells what has ended.
    pub(super) async fn write(&mut self, status: HookRunStatus) -> Result<(), kube::Error> {
        let Some(run) = &self.run else { return Ok(()) };
        let before = run.status.clone().unwrap_or_default();
        let mut new = run.clone();
        new.status = Some(status);
        let written = self
            .runs()
            .replace_status(&self.key.name, &PostParams::default(), &new)
            .await?;
        self.context.queue.run_seen(written.clone());
        self.tell(&before, &written).await;
        self.run = Some(written);
        Ok(())
    }
}
