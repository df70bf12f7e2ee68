//! One task for each unfinished run: asks the pure functions what to do, does it, records it, sleeps until its bell rings.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::PostParams, runtime::events::EventType};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    counts,
    events::{self, Events},
    exec::{Command, Exec, Report},
    intake::{self, Intake},
    missed::{Missed, Resolved},
    pod_view::PodView,
    queue::{Queue, RunKey},
    step::{self, Situation, Step},
};
use crate::{
    api::{
        HookRun, HookRunStatus,
        hook_run::{HookState, PodIdentity},
    },
    hooks::Severity,
    infra::{clock, metrics::Metrics, pod_edit::PodEdit},
    names::RUN_ANNOTATION,
    plan::Plan,
};

/// The first pause after an error.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between two tries after an error.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How often a pod that has left the watch but still exists is looked at.
const UNWATCHED_POLL: Duration = Duration::from_secs(10);

/// What all runs' tasks share.
pub struct Context<E> {
    /// For everything but exec.
    pub client: Client,
    /// Runs commands.
    pub exec: E,
    /// What is known of the cluster.
    pub queue: Arc<Queue>,
    /// Writes Events.
    pub events: Events,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Plans what admission missed.
    pub missed: Arc<Missed>,
    /// This process' name in claims.
    pub process: String,
    /// Fires when nothing new may be started.
    pub stop: CancellationToken,
    /// How many commands may run at once.
    pub slots: Arc<Semaphore>,
    /// True once both watches have listed what there is.
    pub synced: watch::Receiver<bool>,
}

/// What a turn has come to.
enum Turn {
    /// There may be more to do at once.
    Again,
    /// Nothing until the bell rings or this time comes.
    Sleep(Option<Timestamp>),
    /// The run is finished and its pod is clean.
    Over,
}

/// Works on one run until it is finished or this process ends.
pub async fn drive<E: Exec>(context: Arc<Context<E>>, key: RunKey, bell: Arc<Notify>) {
    let mut synced = context.synced.clone();
    tokio::select! {
        ready = synced.wait_for(|synced| *synced) => if ready.is_err() { return },
        () = context.stop.cancelled() => return,
    }
    let mut task = RunTask {
        run: None,
        marked: false,
        reported: false,
        cleaned: false,
        permit: None,
        context: &context,
        key: key.clone(),
    };
    let mut pause = FIRST_PAUSE;
    while !context.stop.is_cancelled() {
        let due = match task.turn().await {
            Ok(Turn::Again) => {
                pause = FIRST_PAUSE;
                continue;
            }
            Ok(Turn::Over) if context.queue.may_end(&key, &bell) => return,
            Ok(Turn::Over) => continue,
            Ok(Turn::Sleep(due)) => due.map(|due| until(due, clock::now())),
            Err(error) => {
                tracing::warn!(namespace = key.namespace, run = key.name, %error, "a run could not go on; it is tried again");
                // What failed may have been written all the same, or by somebody else: look again.
                task.run = None;
                task.permit = None;
                pause = (pause * 2).min(MAX_PAUSE);
                Some(pause)
            }
        };
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = bell.notified() => {}
            () = timer => {}
            () = context.stop.cancelled() => {}
        }
    }
}

fn until(due: Timestamp, now: Timestamp) -> Duration {
    // A little later than due, so that the next look finds it past.
    Duration::try_from(due.duration_since(now)).unwrap_or_default() + Duration::from_millis(10)
}

struct RunTask<'a, E> {
    context: &'a Context<E>,
    key: RunKey,
    /// The run as last written or read; newer than the watch's.
    run: Option<HookRun>,
    /// The pod carries the run mark; newer than the watch's.
    marked: bool,
    /// The reason why nothing is done has been said.
    reported: bool,
    /// The plan has been taken off the pod.
    cleaned: bool,
    /// A place among the commands that may run at once.
    permit: Option<OwnedSemaphorePermit>,
}

impl<E: Exec> RunTask<'_, E> {
    async fn turn(&mut self) -> Result<Turn, kube::Error> {
        if self.run.is_none() {
            self.run = match self.context.queue.run(&self.key) {
                Some(run) => self.runs().get_opt(&run.name_any()).await?,
                None => None,
            };
        }
        let watched = self.context.queue.pod(&self.key);
        let pod = match (&watched, &self.run) {
            (Some(pod), _) => Some(PodView::clone(pod)),
            (None, Some(run)) => {
                self.pod_now(&run.spec.pod.name.clone(), &run.spec.pod.uid.clone())
                    .await?
            }
            (None, None) => return Ok(Turn::Over),
        };
        if let Some((pod, plan)) = pod.as_ref().and_then(|pod| Some((pod, pod.plan.as_deref()?)))
            && let Some(turn) = self.take_in(pod, plan).await?
        {
            return Ok(turn);
        }
        let Some(run) = &self.run else { return Ok(Turn::Over) };
        let Some(status) = &run.status else {
            let text = "it came without a status of its own: with a backup, or its pod went away at once";
            return self
                .write(step::stale_status(&run.spec, text, clock::now()))
                .await
                .map(|()| Turn::Over);
        };
        let restore = run.spec.plan.restore.as_ref();
        let cancelled = restore.and_then(|restore| self.context.queue.cancelled(&restore.uid));
        let pod = match pod {
            Some(pod) if run.spec.plan.status_restored => Some(pod.without_foreign_states()),
            pod => pod,
        };
        let situation = Situation {
            spec: &run.spec,
            status,
            pod: pod.as_ref(),
            now: clock::now(),
            process: &self.context.process,
            cancelled: cancelled.as_deref(),
        };
        let step = step::next(&situation);
        if !matches!(step, Step::Execute { .. }) {
            self.permit = None;
        }
        match step {
            Step::Execute { hook, status } => self.execute(hook, status).await,
            Step::Record(status) => self.write(status).await.map(|()| Turn::Again),
            Step::Wait(due) if watched.is_none() && pod.is_some() => {
                let look = clock::now().checked_add(UNWATCHED_POLL).ok();
                Ok(Turn::Sleep(due.into_iter().chain(look).min()))
            }
            Step::Wait(due) => Ok(Turn::Sleep(due)),
            Step::Done => self.clean_pod(pod.as_ref()).await.map(|()| Turn::Over),
        }
    }

    /// Brings a planned pod to its `HookRun`; `None` when all of that is there.
    async fn take_in(&mut self, pod: &PodView, plan: &str) -> Result<Option<Turn>, kube::Error> {
        match intake::intake(pod, plan, self.run.as_ref()) {
            Intake::Create(run) => {
                self.run = match self.runs().create(&PostParams::default(), &run).await {
                    Ok(run) => Some(run),
                    Err(kube::Error::Api(status)) if status.code == 409 => Some(self.runs().get(&self.key.name).await?),
                    Err(error) => return Err(error),
                };
            }
            Intake::Adopt { lost } => {
                let Some(run) = &self.run else {
                    return Ok(Some(Turn::Over));
                };
                let status = if lost {
                    step::lost_status(&run.spec, clock::now())
                } else {
                    step::first_status(&run.spec, clock::now())
                };
                self.write(status).await?;
                self.report_problems(pod).await;
                self.report_conditions(pod).await;
            }
            Intake::Mark(_) if self.marked => return Ok(None),
            Intake::Mark(moved) => {
                let Some(run) = &self.run else {
                    return Ok(Some(Turn::Over));
                };
                let mark = intake::run_mark(&pod.identity.uid, run);
                self.edit_pod(pod, PodEdit::default().put_back(moved).set(RUN_ANNOTATION, mark), None)
                    .await?;
                self.marked = true;
            }
            Intake::Ready => return Ok(None),
            Intake::Resolve(why) => return self.resolve(pod, plan, &why).await.map(Some),
            Intake::LeaveToNewer(why) => {
                if !std::mem::replace(&mut self.reported, true) {
                    self.say(pod, EventType::Warning, "PlanNotUnderstood", "plan", &why)
                        .await;
                }
                return Ok(Some(Turn::Sleep(None)));
            }
        }
        Ok(Some(Turn::Again))
    }

    /// Records the start, runs the command, records the end.
    async fn execute(&mut self, hook: usize, started: HookRunStatus) -> Result<Turn, kube::Error> {
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
                counts::timed(metrics, self.context.exec.run(command)).await
            }
        };
        self.write_end(hook, &report).await;
        self.permit = None;
        Ok(Turn::Again)
    }

    /// Records the start of an execution. When the answer is lost, it is found out whether the record was made: only this
    /// process writes this claim, and it has not begun the command.
    async fn write_start(&mut self, started: HookRunStatus) -> Result<(), kube::Error> {
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
    async fn write_end(&mut self, hook: usize, report: &Report) {
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
    async fn write(&mut self, status: HookRunStatus) -> Result<(), kube::Error> {
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

    /// Events, a log line and counts for each hook that has just ended.
    async fn tell(&self, before: &HookRunStatus, run: &HookRun) {
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
    async fn report_problems(&self, pod: &PodView) {
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
    async fn report_conditions(&self, pod: &PodView) {
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

    /// A plan that is none for this pod, or that the webhook could not make: is the pod from a restore that is known by now?
    async fn resolve(&self, pod: &PodView, plan: &str, why: &str) -> Result<Turn, kube::Error> {
        let reason = match self.context.missed.resolve(&pod.namespace, &pod.identity).await? {
            // The watch brings it.
            Resolved::Planned => return Ok(Turn::Sleep(None)),
            Resolved::Not(reason) => reason,
        };
        self.say(
            pod,
            EventType::Warning,
            "PlanDiscarded",
            "plan",
            &format!("{why}; {reason}"),
        )
        .await;
        let moved = Plan::parse(plan).map(|plan| plan.moved).unwrap_or_default();
        // Against the version that was judged: somebody may have planned the pod meanwhile.
        let edit = PodEdit::default().put_back(moved).unqueue();
        self.edit_pod(pod, edit, pod.version.as_deref()).await?;
        Ok(Turn::Over)
    }

    async fn say(&self, pod: &PodView, type_: EventType, reason: &str, action: &str, note: &str) {
        let about = events::pod_reference(&self.key.namespace, &pod.identity.name, &pod.identity.uid);
        self.context.events.publish(&about, type_, reason, action, note).await;
    }

    /// Takes plan and label off a finished run's pod; the run mark stays.
    async fn clean_pod(&mut self, pod: Option<&PodView>) -> Result<(), kube::Error> {
        let Some((pod, run)) = pod
            .filter(|pod| !self.cleaned && (pod.queued || pod.plan.is_some()))
            .zip(self.run.as_ref())
        else {
            return Ok(());
        };
        // With the plan would go what it has moved off the pod: that is back on it, or goes back now.
        let marked = self.marked || pod.run_mark.as_ref() == Some(&intake::run_mark(&pod.identity.uid, run));
        let edit = PodEdit::default().unqueue();
        let edit = if marked {
            edit
        } else {
            edit.put_back(run.spec.plan.moved.clone())
        };
        self.edit_pod(pod, edit, None).await?;
        // The watch may be a moment behind.
        self.cleaned = true;
        Ok(())
    }

    /// Changes a pod's metadata if it is still that very pod, and, with a version, as it was.
    async fn edit_pod(&self, pod: &PodView, edit: PodEdit, version: Option<&str>) -> Result<(), kube::Error> {
        let PodIdentity { name, uid, .. } = &pod.identity;
        let result = edit
            .write(&self.context.client, &self.key.namespace, name, uid, version)
            .await;
        if let Err(kube::Error::Api(status)) = &result
            && matches!(status.code, 404 | 409 | 422)
            && self.pod_now(name, uid).await?.is_none()
        {
            // Gone, or another one of the same name: there is nothing of ours on it.
            self.context.queue.pod_gone(&self.key);
            return Ok(());
        }
        result
    }

    /// The pod as it is now, if it is still that very one.
    async fn pod_now(&self, name: &str, uid: &str) -> Result<Option<PodView>, kube::Error> {
        let pod = self.pods().get_opt(name).await?;
        Ok(pod
            .as_ref()
            .and_then(PodView::read)
            .filter(|pod| pod.identity.uid == uid))
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    fn runs(&self) -> Api<HookRun> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }
}
