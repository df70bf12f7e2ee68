//! One task for each unfinished run: asks the pure functions what to do, does it, records it, sleeps until its bell rings.

mod execute;
mod last_look;
mod report;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
    runtime::events::EventType,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    begin,
    events::{self, Events},
    exec::Exec,
    gate::{Gate, Slot},
    intake::{self, Intake},
    missed::{Missed, Resolved},
    pod_view::PodView,
    queue::{Queue, RunKey},
    redact::Redactor,
    setback::Setbacks,
    stale,
    step::{self, Situation, Step},
    traffic::Traffic,
};
use crate::{
    api::{HookRun, hook_run::PodIdentity},
    infra::{clock, lease::Standing, metrics::Metrics, pod_edit::PodEdit, policies::Policies},
    names::RUN_ANNOTATION,
    plan::{Plan, PlanError},
};

/// The first pause after an error.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between two tries after an error.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How often a task looks whether this process holds the Lease again, after the API server could not be reached.
const LEASE_POLL: Duration = Duration::from_secs(1);
/// How often a pod that has left the watch but still exists is looked at.
const UNWATCHED_POLL: Duration = Duration::from_secs(10);

/// What all runs' tasks share.
pub struct Context<E> {
    /// For everything but exec.
    pub client: Client,
    /// Runs commands.
    pub exec: E,
    /// For the last look at a pod: makes the connection that its command then takes.
    pub exec_client: Client,
    /// What is known of the cluster.
    pub queue: Arc<Queue>,
    /// Writes Events.
    pub events: Events,
    /// Who goes first to the API server.
    pub traffic: Arc<Traffic>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Plans what admission missed.
    pub missed: Arc<Missed>,
    /// Takes secrets out of what the kubelet says.
    pub redactor: Redactor,
    /// Which admission policies are there.
    pub policies: Arc<Policies>,
    /// This process' name in claims.
    pub process: String,
    /// Fires when nothing new may be started.
    pub stop: CancellationToken,
    /// Whether this process leads, and which other processes still finish their commands.
    pub standing: Arc<Standing>,
    /// Lets commands start.
    pub gate: Arc<Gate>,
    /// How long a whole run may take, from the pod's creation.
    pub run_limit: SignedDuration,
    /// How long a run may wait before it says what for.
    pub report_after: SignedDuration,
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
        behind: false,
        marked: false,
        reported: false,
        cleaned: false,
        slot: Slot::Free,
        context: &context,
        key: key.clone(),
    };
    let mut setbacks = Setbacks::default();
    while !context.stop.is_cancelled() {
        // What is large is on the heap, and only while something is done: a thousand tasks sleep between their turns.
        let due = match Box::pin(task.turn()).await {
            Ok(Turn::Again) => {
                setbacks.clear();
                continue;
            }
            Ok(Turn::Over) if context.queue.may_end(&key, &bell) => return,
            Ok(Turn::Over) => continue,
            Ok(Turn::Sleep(due)) => due.map(|due| until(due, clock::now())),
            Err(error) => {
                let advice = setbacks.after(&error);
                Box::pin(task.tell_setback(&advice, &error)).await;
                // What failed may have been written all the same, or by somebody else: look again.
                task.run = None;
                task.behind = true;
                task.slot = Slot::Free;
                Some(advice.pause)
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
            () = task.slot.comes() => {}
            () = timer => {}
            () = context.stop.cancelled() => {}
        }
    }
}

fn until(due: Timestamp, now: Timestamp) -> Duration {
    // A little later than due, so that the next look finds it past.
    Duration::try_from(due.duration_since(now)).unwrap_or_default() + Duration::from_millis(10)
}

fn newer_run(run: &HookRun) -> String {
    PlanError::Newer(run.spec.plan.version).to_string()
}

#[allow(clippy::struct_excessive_bools)] // facts that do not depend on each other
struct RunTask<'a, E> {
    context: &'a Context<E>,
    key: RunKey,
    /// The run as last written or read; as new as the watch's, or newer.
    run: Option<Arc<HookRun>>,
    /// What the watch has brought of the run may be behind: it is read.
    behind: bool,
    /// The pod carries the run mark; newer than the watch's.
    marked: bool,
    /// The reason why nothing is done has been said.
    reported: bool,
    /// The plan has been taken off the pod.
    cleaned: bool,
    /// Its place among the commands that may run at once.
    slot: Slot,
}

impl<E: Exec> RunTask<'_, E> {
    async fn turn(&mut self) -> Result<Turn, kube::Error> {
        self.catch_up().await?;
        if let Some(run) = self.run.as_ref().filter(|run| run.is_newer()) {
            return Ok(self.leave_to_newer(&run.spec.pod.clone(), &newer_run(run)).await);
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
        let Some(run) = self.run.clone() else {
            return Ok(Turn::Over);
        };
        let Some(status) = &run.status else {
            let text = "it came without a status of its own: with a backup, or its pod went away at once";
            return self
                .write(begin::stale_status(&run.spec, text, clock::now()))
                .await
                .map(|()| Turn::Over);
        };
        let restore = run.spec.plan.restore.as_ref();
        if let Some(restore) = restore
            && self.context.missed.is_gone(restore).await?
            && let Some(end) = stale::without_restore(&run.spec, restore, status, clock::now())
        {
            return self.write(end).await.map(|()| Turn::Again);
        }
        let failed_elsewhere = restore.and_then(|restore| self.context.queue.failed(&restore.uid));
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
            finishing: &self.context.standing.finishing(clock::now()),
            run_limit: self.context.run_limit,
            failed_elsewhere: failed_elsewhere.as_deref(),
            controls: &self.context.queue.controls(&self.key),
            report_after: self.context.report_after,
            crowd: None,
        };
        let mut step = step::next(&situation);
        if !matches!(step, Step::Execute { .. }) {
            self.slot = Slot::Free;
        } else if let Some(crowd) = self.slot.ask(&self.context.gate, &self.key.namespace, situation.now) {
            // Until its turn comes it does all that a run does that waits.
            let crowd = Some(&crowd);
            step = step::next(&Situation { crowd, ..situation });
        }
        match step {
            Step::Execute { hook, status } => self.execute(hook, status).await,
            Step::Collect { hook, status } => self.collect(hook, status).await,
            Step::Record(status) => self.write(status).await.map(|()| Turn::Again),
            Step::Wait(due) if watched.is_none() && pod.is_some() => {
                let look = clock::now().checked_add(UNWATCHED_POLL).ok();
                Ok(Turn::Sleep(due.into_iter().chain(look).min()))
            }
            Step::Wait(due) => Ok(Turn::Sleep(due)),
            Step::Done => self.clean_pod(pod.as_ref()).await.map(|()| Turn::Over),
        }
    }

    /// Brings `run` up to what is known by now.
    async fn catch_up(&mut self) -> Result<(), kube::Error> {
        let Some(seen) = self.context.queue.run(&self.key) else {
            return Ok(());
        };
        // Without attempts, nothing comes of it but by a write against its version: it may safely be behind.
        let suffices = !self.behind && !has_attempts(&seen);
        match &self.run {
            // One copy is enough.
            Some(own) if suffices && own.metadata.resource_version == seen.metadata.resource_version => {
                self.run = Some(seen);
            }
            Some(own) if own.metadata.annotations == seen.metadata.annotations => {}
            None if suffices => self.run = Some(seen),
            // Or somebody asks for something: what was read before can't be written against any more.
            _ => {
                self.run = None;
                self.run = self.run_now().await?.map(Arc::new);
                self.behind = false;
            }
        }
        Ok(())
    }

    /// Brings a planned pod to its `HookRun`; `None` when all of that is there.
    async fn take_in(&mut self, pod: &PodView, plan: &str) -> Result<Option<Turn>, kube::Error> {
        match intake::intake(pod, plan, self.run.as_deref()) {
            Intake::Create(run) => {
                self.run = match self.runs().create(&PostParams::default(), &run).await {
                    Ok(run) => Some(Arc::new(run.lean())),
                    Err(kube::Error::Api(status)) if status.code == 409 => self.run_now().await?.map(Arc::new),
                    Err(error) => return Err(error),
                };
            }
            Intake::Adopt { lost } => {
                let Some(run) = &self.run else {
                    return Ok(Some(Turn::Over));
                };
                let mut status = if lost {
                    begin::lost_status(&run.spec, clock::now())
                } else {
                    begin::first_status(&run.spec, clock::now())
                };
                status.conditions.extend(self.context.policies.condition(clock::now()));
                self.write(status).await?;
                self.report_problems(pod).await;
                self.report_conditions(pod).await;
            }
            Intake::Reject => {
                let Some(run) = &self.run else {
                    return Ok(Some(Turn::Over));
                };
                self.write(begin::foreign_status(&run.spec, clock::now())).await?;
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
                return Ok(Some(self.leave_to_newer(&pod.identity, &why).await));
            }
        }
        Ok(Some(Turn::Again))
    }

    /// Says once that only a newer Reveille can go on.
    async fn leave_to_newer(&mut self, pod: &PodIdentity, why: &str) -> Turn {
        if !std::mem::replace(&mut self.reported, true) {
            let about = events::pod_reference(&self.key.namespace, &pod.name, &pod.uid);
            let (type_, reason) = (EventType::Warning, "PlanNotUnderstood");
            self.context.events.publish(&about, type_, reason, "plan", why).await;
        }
        Turn::Sleep(None)
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
        let turn = self.context.traffic.other().await;
        self.edit_pod(pod, edit, None).await?;
        drop(turn);
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
            .and_then(|pod| PodView::read(pod, &self.context.redactor))
            .filter(|pod| pod.identity.uid == uid))
    }

    /// The run as it is now. One that a newer Reveille has planned is read as far as it is understood.
    async fn run_now(&self) -> Result<Option<HookRun>, kube::Error> {
        let resource = ApiResource::erase::<HookRun>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.context.client.clone(), &self.key.namespace, &resource);
        let Some(object) = api.get_opt(&self.key.name).await? else {
            return Ok(None);
        };
        Ok(Some(HookRun::read(object)))
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    fn runs(&self) -> Api<HookRun> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }
}

fn has_attempts(run: &HookRun) -> bool {
    let mut posts = run.status.iter().flat_map(|status| &status.post);
    posts.any(|post| !post.attempts.is_empty())
}

#[cfg(test)]
mod tests;
