//! One task for each unfinished action: asks the state machine what to do, does it, records it, sleeps until its bell rings.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use jiff::Timestamp;
use tokio::sync::Notify;

use super::{
    Context,
    action::{Action, ActionKind},
    attempt::{self, Try},
    end,
    functions::{self, Place},
    phase::{self, Begun, ExecClaim, Unwritten},
    plan::{self, Facts},
    recorder::{Recorder, TurnError},
    step::{self, Step, World},
    velero,
};
use crate::{
    api::action::{ActionPhase, ActionStatus, StepState},
    blueprint::{model::Artifacts, render},
    duration::GoDuration,
    infra::{clock, metrics},
    waiter::events::cut,
};

/// The first pause after an error.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two tries after an error.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// After so many errors in a row the action's status says so.
const TOLD_FAILURES: u32 = 4;
/// The longest reason of them, in bytes.
const REASON_LIMIT: usize = 1024;
/// How often a task looks whether this process holds the Lease again, after the API server could not be reached.
pub(super) const LEASE_POLL: Duration = Duration::from_secs(1);

/// Which action, not to be confused with a later one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: ActionKind,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What a turn has come to.
pub(super) enum Turn {
    /// There may be more to do at once.
    Again,
    /// Nothing until the bell rings or this time comes.
    Sleep(Option<Timestamp>),
    /// Nothing as long as this process does not hold the Lease.
    NotLeading,
    /// Nothing any more.
    Over,
}

/// Works on one action until it is finished, deleted, or this process ends.
pub async fn drive(context: Arc<Context>, key: Key, bell: Arc<Notify>) {
    let mut started = None;
    loop {
        let mut task = Task {
            context: &context,
            key: &key,
            bell: &bell,
            current: None,
            unwritten: None,
            exec: None,
            started,
            failures: 0,
            failing_since: None,
        };
        let done = AssertUnwindSafe(async {
            work(&mut task).await;
            task.leave().await;
        });
        if done.catch_unwind().await.is_ok() {
            return;
        }
        // One action's task takes no other with it, and is not given up. A command that it has begun is not begun again.
        started = task.started;
        tracing::error!(
            action = key.name,
            "the task of an action panicked: this is a fault in Reveille; it is begun again"
        );
        let why = "its task panicked, which is a fault in Reveille; it is begun again after a pause";
        if let Err(error) = task.write_stuck(Some(why)).await {
            tracing::debug!(action = key.name, %error, "what holds an action up could not be written");
        }
        tokio::select! {
            () = tokio::time::sleep(MAX_PAUSE) => {}
            () = context.stop.cancelled() => return,
        }
    }
}

/// Takes turn after turn.
async fn work(task: &mut Task<'_>) {
    let Task { context, key, bell, .. } = *task;
    let mut pause = FIRST_PAUSE;
    while !context.stop.is_cancelled() {
        let turn = Box::pin(task.turn()).await;
        task.tell_stuck(turn.as_ref().err()).await;
        let due = match turn {
            Ok(Turn::Again) => {
                pause = FIRST_PAUSE;
                continue;
            }
            Ok(Turn::Over) => return,
            Ok(Turn::NotLeading) => Some(LEASE_POLL),
            Ok(Turn::Sleep(due)) => {
                due.map(|due| Duration::try_from(due.duration_since(clock::now())).unwrap_or_default())
            }
            Err(TurnError::Gone) => match functions::remove_pods(&context.clients.api, &key.uid, None).await {
                Ok(pods) => {
                    tracing::info!(action = key.name, pods, "an action was deleted; its pods are removed");
                    return;
                }
                Err(error) => {
                    tracing::warn!(action = key.name, %error, "the pods of a deleted action could not be removed yet");
                    Some(pause)
                }
            },
            Err(error) => {
                tracing::warn!(action = key.name, %error, "an action could not go on; it is tried again");
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

/// One action, as this process works on it.
pub(super) struct Task<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) key: &'a Key,
    pub(super) bell: &'a Notify,
    /// The try that runs, as far as this process knows it.
    pub(super) current: Option<Try>,
    /// The end of a phase that could not be written yet.
    pub(super) unwritten: Option<Unwritten>,
    /// Held from before a `KubeExec` is claimed until its end is written.
    pub(super) exec: Option<ExecClaim>,
    /// The last phase that this process has really begun.
    pub(super) started: Option<Begun>,
    /// How many turns in a row have ended with an error.
    failures: u32,
    /// When the first of them did.
    failing_since: Option<Timestamp>,
}

impl Task<'_> {
    async fn turn(&mut self) -> Result<Turn, TurnError> {
        let Self { context, key, .. } = *self;
        let client = &context.clients.api;
        let mut recorder = Recorder::read(client, key.kind, &context.settings.namespace, &key.name).await?;
        if recorder.action().uid != key.uid {
            return Err(TurnError::Gone);
        }
        if let Some(unwritten) = self.unwritten.take() {
            return self.write_end(&mut recorder, unwritten).await;
        }
        if !context.standing.is_held() {
            return Ok(Turn::NotLeading);
        }
        let action = recorder.action().clone();
        let limits = context.settings.limits.with(&action.request.options);
        let object = action.status.velero.as_ref().filter(|_| is_looked_at(&action.status));
        let velero = match object {
            Some(object) => Some(velero::look(client, action.kind, object).await?),
            None => None,
        };
        let now = clock::now();
        let finishing = context.standing.finishing(now);
        let world = World {
            process: context.standing.process(),
            finishing: &finishing,
            velero_namespace: &context.settings.velero_namespace,
            velero: velero.as_ref(),
            limits,
        };
        let status = match step::next(&action, &world, now) {
            Step::Check => plan::accept(
                &action,
                &self.facts(&action).await?,
                world.velero_namespace,
                &limits,
                now,
            ),
            Step::Record(status) => *status,
            Step::CreateVelero => {
                let Some(object) = &action.status.velero else {
                    return Ok(Turn::Sleep(None));
                };
                match velero::create(client, &action, object).await? {
                    Ok(uid) => end::created(&action.status, &uid, now),
                    Err(why) => {
                        let mut status = action.status.clone();
                        end::fail(&mut status, &action, &why);
                        status
                    }
                }
            }
            Step::Begin(hook) => {
                let prepared = match Try::prepare(client, &action, hook, now).await {
                    Ok(prepared) => prepared,
                    Err(error) => Err(self.give_up(error, limits.hook_timeout)?),
                };
                let phases = prepared.as_ref().map(Try::phases).map_err(Clone::clone);
                let status = end::begun(&action.status, hook, phases, &limits, now);
                self.current = prepared.ok().map(|mut current| {
                    current.number = status.hooks.get(hook).map_or(0, |hook| hook.attempt);
                    current
                });
                status
            }
            Step::Run(hook, phase) => return Box::pin(self.run(&mut recorder, Place { hook, phase })).await,
            Step::Finish(hook) => {
                let artifacts = match self.artifacts(&action, hook).await {
                    Ok(artifacts) => artifacts,
                    Err(error) => Err(self.give_up(error, limits.hook_timeout)?),
                };
                end::finished(&action.status, hook, artifacts, now)
            }
            Step::Wait(due) => return Ok(Turn::Sleep(due)),
            Step::CleanUp => {
                functions::remove_pods(client, &action.uid, None).await?;
                let mut status = action.status.clone();
                status.cleaned_up = true;
                status
            }
            Step::Done => return Ok(Turn::Over),
        };
        if !self.claim(&status) {
            return Ok(Turn::Again);
        }
        self.write(&mut recorder, status).await?;
        Ok(Turn::Again)
    }

    /// The output artifacts of a hook whose phases have all succeeded.
    async fn artifacts(&mut self, action: &Action, hook: usize) -> Result<Result<Artifacts, String>, TurnError> {
        let mut current = match self.current(action, hook).await? {
            Ok(current) => current,
            Err(why) => return Ok(Err(why)),
        };
        let phases = action.status.hooks.get(hook).map(|hook| hook.phases.clone());
        let phases = phases.unwrap_or_default();
        let all = phases.len().saturating_sub(1);
        let reached = current.reach(&self.context.clients.api, &phases, all).await;
        let current = self.current.insert(current);
        Ok(reached?.and_then(|()| {
            render::artifacts(&current.action, &current.params).map_err(|error| format!("outputArtifacts: {error}"))
        }))
    }

    /// What an error between two phases means for the hook.
    fn give_up(&self, error: TurnError, limit: GoDuration) -> Result<String, TurnError> {
        let last_look = self
            .failing_since
            .and_then(|since| since.checked_add(limit.to_signed()).ok());
        phase::give_up(error, last_look, limit)
    }

    /// Says in the status what holds the action up, if it does so for some time: missing rights, say. And that it is over.
    async fn tell_stuck(&mut self, error: Option<&TurnError>) {
        let was_told = self.failures >= TOLD_FAILURES;
        self.failures = error.map_or(0, |_| self.failures.saturating_add(1));
        self.failing_since = error.map(|_| self.failing_since.unwrap_or_else(clock::now));
        let is_told = self.failures >= TOLD_FAILURES;
        if !(was_told || is_told) || matches!(error, Some(TurnError::Gone)) || !self.context.standing.is_held() {
            return;
        }
        let rules = &self.context.settings.output;
        let why = error.map(|error| cut(&rules.words(&error.to_string()), REASON_LIMIT));
        // What can't be written now is, if it lasts.
        if let Err(error) = self.write_stuck(why.as_deref()).await {
            tracing::debug!(action = self.key.name, %error, "what holds an action up could not be written");
        }
    }

    async fn write_stuck(&self, why: Option<&str>) -> Result<(), TurnError> {
        let client = &self.context.clients.api;
        let mut recorder =
            Recorder::read(client, self.key.kind, &self.context.settings.namespace, &self.key.name).await?;
        let status = end::stuck(recorder.status().clone(), why, clock::now());
        if recorder.action().uid != self.key.uid || status == *recorder.status() {
            return Ok(());
        }
        recorder.write(status).await
    }

    /// Writes the status after a step. One that can't be kept ends the action.
    pub(super) async fn write(&self, recorder: &mut Recorder, status: ActionStatus) -> Result<(), TurnError> {
        let before = recorder.action().clone();
        let status = end::stuck(status, None, clock::now());
        let mut labels = ended_as(before.kind, &before.status, &status);
        tell(&before, &status);
        if let Err(error) = recorder.write(status).await {
            if !matches!(error, TurnError::TooLarge(_)) {
                return Err(error);
            }
            let ended = end::too_large(&before.status, clock::now());
            labels = ended_as(before.kind, &before.status, &ended);
            tell(&before, &ended);
            recorder.write(ended).await?;
        }
        if let Some(labels) = labels {
            self.context.metrics.actions.get_or_create(&labels).inc();
        }
        Ok(())
    }

    /// Finds out all that must be there before anything runs.
    async fn facts(&self, action: &Action) -> Result<Facts, TurnError> {
        let client = &self.context.clients.api;
        let (namespaces, setup) = velero::prospect(client, &self.context.settings.velero_namespace, action).await?;
        let mut blueprints = BTreeMap::new();
        for (name, hook) in action.hooks() {
            blueprints.insert(name, attempt::checked(client, &action.namespace, hook).await?);
        }
        Ok(Facts {
            namespaces,
            setup,
            blueprints,
        })
    }
}

/// The metric of an action that ends with this write.
fn ended_as(kind: ActionKind, before: &ActionStatus, after: &ActionStatus) -> Option<metrics::ActionLabels> {
    let phase = match after.phase {
        ActionPhase::Succeeded => metrics::ActionPhase::Succeeded,
        ActionPhase::Failed => metrics::ActionPhase::Failed,
        ActionPhase::Cancelled => metrics::ActionPhase::Cancelled,
        ActionPhase::Refused => metrics::ActionPhase::Refused,
        ActionPhase::New | ActionPhase::PreHook | ActionPhase::Velero | ActionPhase::PostHook => return None,
    };
    let kind = match kind {
        ActionKind::Restore => metrics::ActionKind::Restore,
        ActionKind::Backup => metrics::ActionKind::Backup,
    };
    (!before.phase.is_final()).then_some(metrics::ActionLabels { kind, phase })
}

/// Whether Velero's object has to be looked at for the next step.
fn is_looked_at(status: &ActionStatus) -> bool {
    status.phase == ActionPhase::Velero && status.velero.as_ref().is_some_and(|velero| velero.uid.is_some())
}

/// Says in the log what has changed.
fn tell(before: &Action, after: &ActionStatus) {
    if before.status.phase != after.phase {
        tracing::info!(action = before.name, kind = before.kind.word(), phase = ?after.phase, message = after.message, "an action goes on");
    }
    for (old, new) in before.status.hooks.iter().zip(&after.hooks) {
        if old.state != new.state && new.state.is_final() && new.state != StepState::Skipped {
            tracing::info!(action = before.name, hook = new.hook.path(), namespace = new.namespace, state = ?new.state, "a hook has ended");
        }
    }
}
