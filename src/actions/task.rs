//! One task for each unfinished action: asks the state machine what to do, does it, records it, sleeps until its bell rings.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, api::DynamicObject};
use tokio::sync::Notify;

use super::{
    Context,
    action::{Action, ActionKind},
    attempt::{self, Try},
    end::{self, Outcome},
    functions::{self, Place, Running, Tools},
    plan::{self, Facts},
    recorder::{Recorder, TurnError},
    step::{self, Step, World},
    velero,
};
use crate::{
    api::action::{ActionPhase, ActionStatus, StepState},
    blueprint::{call::FunctionCall, render},
    infra::{clock, metrics},
};

/// The first pause after an error.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two tries after an error.
const MAX_PAUSE: Duration = Duration::from_secs(30);

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
enum Turn {
    /// There may be more to do at once.
    Again,
    /// Nothing until the bell rings or this time comes.
    Sleep(Option<Timestamp>),
    /// Nothing any more.
    Over,
}

/// The end of a phase that could not be written yet.
struct Unwritten {
    place: Place,
    attempt: u32,
    outcome: Outcome,
}

/// Works on one action until it is finished, deleted, or this process ends.
pub async fn drive(context: Arc<Context>, key: Key, bell: Arc<Notify>) {
    let mut task = Task {
        context: &context,
        key: &key,
        bell: &bell,
        current: None,
        unwritten: None,
    };
    let mut pause = FIRST_PAUSE;
    while !context.stop.is_cancelled() {
        let due = match Box::pin(task.turn()).await {
            Ok(Turn::Again) => {
                pause = FIRST_PAUSE;
                continue;
            }
            Ok(Turn::Over) => return,
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

struct Task<'a> {
    context: &'a Context,
    key: &'a Key,
    bell: &'a Notify,
    /// The try that runs, as far as this process knows it.
    current: Option<Try>,
    unwritten: Option<Unwritten>,
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
        let action = recorder.action().clone();
        let limits = context.settings.limits.with(&action.request.options);
        let object = action.status.velero.as_ref().filter(|_| is_looked_at(&action.status));
        let velero = match object {
            Some(object) => Some(velero::look(client, action.kind, object).await?),
            None => None,
        };
        let world = World {
            process: &context.process,
            velero_namespace: &context.settings.velero_namespace,
            velero: velero.as_ref(),
            limits,
        };
        let now = clock::now();
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
                let prepared = Try::prepare(client, &action, hook, now).await?;
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
                let artifacts = match self.current(&action, hook).await? {
                    Ok(current) => {
                        let phases = action
                            .status
                            .hooks
                            .get(hook)
                            .map(|hook| hook.phases.clone())
                            .unwrap_or_default();
                        let all = phases.len().saturating_sub(1);
                        match current.reach(client, &phases, all).await? {
                            Ok(()) => render::artifacts(&current.action, &current.params)
                                .map_err(|error| format!("outputArtifacts: {error}")),
                            Err(why) => Err(why),
                        }
                    }
                    Err(why) => Err(why),
                };
                self.current = None;
                end::finished(&action.status, hook, artifacts, &limits, now)
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
        tell(&action, &status);
        let ended = ended_as(action.kind, &action.status, &status);
        recorder.write(status).await?;
        if let Some(labels) = ended {
            context.metrics.actions.get_or_create(&labels).inc();
        }
        Ok(Turn::Again)
    }

    /// Finds out all that must be there before anything runs.
    async fn facts(&self, action: &Action) -> Result<Facts, TurnError> {
        let client = &self.context.clients.api;
        let (namespaces, setup) = velero::prospect(client, &self.context.settings.velero_namespace, action).await?;
        let mut blueprints = BTreeMap::new();
        for (_, hook) in action.hooks() {
            let key = (hook.blueprint.clone(), hook.action_name.clone());
            let checked = attempt::checked(client, &action.namespace, &key.0, &key.1).await?;
            blueprints.insert(key, checked);
        }
        Ok(Facts {
            namespaces,
            setup,
            blueprints,
        })
    }

    /// The try that runs: the one at hand, or prepared anew after a restart.
    async fn current(&mut self, action: &Action, hook: usize) -> Result<Result<&mut Try, String>, TurnError> {
        let Some(invocation) = action.status.hooks.get(hook) else {
            return Ok(Err("its record is gone".to_owned()));
        };
        let same = |current: &Try| current.hook == hook && current.number == invocation.attempt;
        if !self.current.as_ref().is_some_and(same) {
            let time = invocation.started_at.as_ref().map_or_else(clock::now, |time| time.0);
            match Try::prepare(&self.context.clients.api, action, hook, time).await? {
                Ok(prepared) => self.current = Some(prepared),
                Err(why) => return Ok(Err(why)),
            }
        }
        Ok(self
            .current
            .as_mut()
            .ok_or_else(|| "it could not be prepared".to_owned()))
    }

    /// Runs one phase to its end, unless somebody cancels the action or this process ends.
    async fn run(&mut self, recorder: &mut Recorder, place: Place) -> Result<Turn, TurnError> {
        let context = self.context;
        let action = recorder.action().clone();
        let limit = context.settings.limits.with(&action.request.options).hook_timeout;
        let Some(invocation) = action.status.hooks.get(place.hook) else {
            return Ok(Turn::Sleep(None));
        };
        let Some(state) = invocation.phases.get(place.phase) else {
            return Ok(Turn::Sleep(None));
        };
        let (attempt, is_exec) = (invocation.attempt, state.func == "KubeExec");
        let now = clock::now();
        let started_at = state.started_at.as_ref().map_or(now, |time| time.0);
        let end = end::phase_deadline(invocation, place.phase, limit);
        let left = end
            .and_then(|end| Duration::try_from(end.duration_since(now)).ok())
            .unwrap_or_default();
        let client = &context.clients.api;
        let phases = invocation.phases.clone();
        let taken_over = !state.message.is_empty();
        let (bell, key) = (self.bell, self.key);

        let current = match self.current(&action, place.hook).await? {
            Ok(current) => current,
            Err(why) => return self.end(recorder, place, attempt, Outcome::Failed(why)).await,
        };
        if let Err(why) = current.reach(client, &phases, place.phase).await? {
            return self.end(recorder, place, attempt, Outcome::Failed(why)).await;
        }
        let Some(phase) = current.phase(place.phase) else {
            return self
                .end(
                    recorder,
                    place,
                    attempt,
                    Outcome::Failed("its Blueprint has no such phase".to_owned()),
                )
                .await;
        };
        let call = match FunctionCall::prepare(&phase, &current.params) {
            Ok(call) => call,
            Err(error) => {
                return self
                    .end(recorder, place, attempt, Outcome::Failed(error.to_string()))
                    .await;
            }
        };
        tracing::info!(
            action = action.name,
            hook = invocation.hook.path(),
            namespace = invocation.namespace,
            phase = state.label(),
            func = state.func,
            "a phase runs"
        );
        let mut running = Running {
            tools: Tools {
                clients: &context.clients,
                settings: &context.settings,
            },
            recorder,
            place,
            params: &current.params,
            started_at,
            taken_over,
        };
        let stopped = async {
            context.stop.cancelled().await;
            if is_exec {
                // Nobody can take it over, so it is given time to end.
                tokio::time::sleep(context.settings.drain).await;
            }
        };
        let outcome = tokio::select! {
            ended = tokio::time::timeout(left, functions::run(call, &mut running)) => match ended {
                Ok(ended) => ended?,
                Err(_) if is_exec => Outcome::Failed(format!("the hook has taken longer than {limit}; the command may still run")),
                Err(_) => Outcome::Failed(format!("the hook has taken longer than {limit}")),
            },
            () = cancelled(context, key, bell) => return Ok(Turn::Again),
            () = stopped => return Ok(Turn::Again),
        };
        self.end(recorder, place, attempt, outcome).await
    }

    /// Records the end of a phase.
    async fn end(
        &mut self,
        recorder: &mut Recorder,
        place: Place,
        attempt: u32,
        outcome: Outcome,
    ) -> Result<Turn, TurnError> {
        self.write_end(
            recorder,
            Unwritten {
                place,
                attempt,
                outcome,
            },
        )
        .await
    }

    /// Writes the end of a phase, if it is still this process' to write. What could not be written is kept: a command must
    /// not run again because the API server was away.
    async fn write_end(&mut self, recorder: &mut Recorder, unwritten: Unwritten) -> Result<Turn, TurnError> {
        let Unwritten {
            place,
            attempt,
            outcome,
        } = &unwritten;
        let invocation = recorder.status().hooks.get(place.hook);
        let phase = recorder.phase(place.hook, place.phase).cloned();
        let is_ours = invocation.is_some_and(|hook| hook.attempt == *attempt)
            && phase
                .as_ref()
                .is_some_and(|phase| phase.state == StepState::Running && phase.claimed_by == self.context.process);
        if !is_ours {
            return Ok(Turn::Again);
        }
        let status = end::ran(
            recorder.status(),
            place.hook,
            place.phase,
            outcome.clone(),
            clock::now(),
        );
        tell(recorder.action(), &status);
        if let Err(error) = recorder.write(status).await {
            if !matches!(error, TurnError::Gone) {
                self.unwritten = Some(unwritten);
            }
            return Err(error);
        }
        if let Some(pod) = phase.and_then(|phase| phase.pod) {
            // What fails here is removed at the action's end.
            let removed = functions::remove_pods(&self.context.clients.api, &self.key.uid, Some(&pod)).await;
            if let Err(error) = removed {
                tracing::warn!(pod = pod.name, %error, "a hook's pod could not be removed yet");
            }
        }
        Ok(Turn::Again)
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

/// Returns when the action is cancelled or deleted.
async fn cancelled(context: &Context, key: &Key, bell: &Notify) {
    let api: Api<DynamicObject> = Api::namespaced_with(
        context.clients.api.clone(),
        &context.settings.namespace,
        &key.kind.resource(),
    );
    loop {
        bell.notified().await;
        let over = match api.get_opt(&key.name).await {
            Ok(Some(object)) => {
                object.metadata.uid.as_ref() != Some(&key.uid)
                    || Action::read(key.kind, &object).is_ok_and(|action| action.cancel.is_some())
            }
            Ok(None) => true,
            // The next ring, or the phase's own end, will tell.
            Err(_) => false,
        };
        if over {
            return;
        }
    }
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
