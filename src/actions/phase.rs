//! One phase: from its claim over its function to the record of its end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jiff::Timestamp;
use kube::{Api, api::DynamicObject};
use tokio::sync::Notify;

use super::{
    Context,
    action::Action,
    attempt::Try,
    end::{self, Outcome},
    functions::{self, Place, Running, Tools},
    recorder::{Recorder, TurnError},
    task::{Key, LEASE_POLL, Task, Turn},
};
use crate::{
    api::action::{ActionStatus, StepState},
    duration::GoDuration,
    infra::clock,
    waiter::events::cut,
};

/// How long a phase that was begun before may take at least: long enough to see how it has ended.
const LAST_LOOK: Duration = Duration::from_secs(30);
/// The longest reason of a failure, in bytes.
const REASON_LIMIT: usize = 4096;
/// How often a process that ends tries to write the end of a command.
const LAST_WRITES: u32 = 30;

/// A try of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    place: Place,
    attempt: u32,
}

/// The end of a phase that could not be written yet.
pub(super) struct Unwritten {
    begun: Begun,
    outcome: Outcome,
}

/// The claim of a `KubeExec`: as long as there is one, this process says on the Lease that it is alive.
pub(super) struct ExecClaim(Arc<Context>);

impl ExecClaim {
    fn new(context: &Arc<Context>) -> Self {
        context.execs.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(context))
    }
}

impl Drop for ExecClaim {
    fn drop(&mut self) {
        self.0.execs.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Task<'_> {
    /// Takes part in the count of claimed commands, if this status claims one. False: this process ends, and must not claim it.
    pub(super) fn claim(&mut self, status: &ActionStatus) -> bool {
        if self.exec.is_some() || !claims_exec(status, self.context.standing.process()) {
            return true;
        }
        self.exec = Some(ExecClaim::new(self.context));
        // Whoever ends this process has either seen that claim or is seen here.
        !self.context.stop.is_cancelled()
    }

    /// The try that runs: the one at hand, or prepared anew after a restart. Whoever takes it puts it back.
    pub(super) async fn current(&mut self, action: &Action, hook: usize) -> Result<Result<Try, String>, TurnError> {
        let Some(invocation) = action.status.hooks.get(hook) else {
            return Ok(Err("its record is gone".to_owned()));
        };
        let same = |current: &Try| current.hook == hook && current.number == invocation.attempt;
        if let Some(current) = self.current.take().filter(same) {
            return Ok(Ok(current));
        }
        let time = invocation.started_at.as_ref().map_or_else(clock::now, |time| time.0);
        Try::prepare(&self.context.clients.api, action, hook, time).await
    }

    /// Runs one phase to its end, unless somebody cancels the action or this process ends.
    pub(super) async fn run(&mut self, recorder: &mut Recorder, place: Place) -> Result<Turn, TurnError> {
        let context = self.context;
        let action = recorder.action().clone();
        let limit = context.settings.limits.with(&action.request.options).hook_timeout;
        let Some(invocation) = action.status.hooks.get(place.hook) else {
            return Ok(Turn::Sleep(None));
        };
        let Some(state) = invocation.phases.get(place.phase) else {
            return Ok(Turn::Sleep(None));
        };
        let (attempt, is_exec) = (invocation.attempt, state.is_exec());
        let now = clock::now();
        let started_at = state.started_at.as_ref().map_or(now, |time| time.0);
        let end = end::phase_deadline(invocation, place.phase, limit);
        let left = end
            .and_then(|end| Duration::try_from(end.duration_since(now)).ok())
            .unwrap_or_default();
        let client = &context.clients.api;
        let phases = invocation.phases.clone();
        let begun = Begun { place, attempt };
        let is_again = self.started == Some(begun);
        if is_exec && is_again {
            let why = "it was cancelled while it ran, and then not: it may have run in part or to its end";
            return self.end(recorder, begun, Outcome::Unknown(why.to_owned())).await;
        }
        let resumed = state.is_taken_over() || is_again;
        // While nobody looked it may have ended well.
        let left = if resumed { left.max(LAST_LOOK) } else { left };
        let (bell, key) = (self.bell, self.key);

        let last_look = end.and_then(|end| end.checked_add(LAST_LOOK).ok());
        let given_up = |error: TurnError| give_up(error, last_look, limit).map(Outcome::Failed);
        let mut current = match self.current(&action, place.hook).await {
            Ok(Ok(current)) => current,
            Ok(Err(why)) => return self.end(recorder, begun, Outcome::Failed(why)).await,
            Err(error) => return self.end(recorder, begun, given_up(error)?).await,
        };
        let call = match current.reach(client, &phases, place.phase).await {
            Ok(reached) => reached.and_then(|()| current.call(place.phase)),
            Err(error) => {
                self.current = Some(current);
                return self.end(recorder, begun, given_up(error)?).await;
            }
        };
        let call = match call {
            Ok(call) => call,
            Err(why) => return self.end(recorder, begun, Outcome::Failed(why)).await,
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
            resumed,
        };
        let stopped = async {
            context.stop.cancelled().await;
            if is_exec {
                // Nobody can take it over, so it is given time to end.
                tokio::time::sleep(context.settings.drain).await;
            }
        };
        if context.stop.is_cancelled() || !context.standing.is_held() {
            self.current = Some(current);
            return Ok(Turn::NotLeading);
        }
        self.started = Some(begun);
        let ended = tokio::select! {
            ended = tokio::time::timeout(left, functions::run(call, &mut running)) => Some(ended),
            () = cancelled(context, key, bell) => None,
            () = stopped => None,
        };
        self.current = Some(current);
        let Some(ended) = ended else {
            return Ok(Turn::Again);
        };
        let outcome = match ended {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => given_up(error)?,
            Err(_) if is_exec => Outcome::Failed(format!(
                "the hook has taken longer than {limit}; the command may still run"
            )),
            Err(_) => Outcome::Failed(format!("the hook has taken longer than {limit}")),
        };
        self.end(recorder, begun, outcome).await
    }

    /// Records the end of a phase. Its reason may be in the words of the API server, which quote what they complain of.
    async fn end(&mut self, recorder: &mut Recorder, begun: Begun, outcome: Outcome) -> Result<Turn, TurnError> {
        let rules = &self.context.settings.output;
        let told = |why: String| cut(&rules.words(&why), REASON_LIMIT);
        let outcome = match outcome {
            Outcome::Succeeded(output) => Outcome::Succeeded(output),
            Outcome::Failed(why) => Outcome::Failed(told(why)),
            Outcome::Unknown(why) => Outcome::Unknown(told(why)),
        };
        self.write_end(recorder, Unwritten { begun, outcome }).await
    }

    /// Writes the end of a phase, if it is still this process' to write. What could not be written is kept: a command must
    /// not run again because the API server was away.
    pub(super) async fn write_end(&mut self, recorder: &mut Recorder, unwritten: Unwritten) -> Result<Turn, TurnError> {
        let Unwritten { begun, outcome } = &unwritten;
        let Begun { place, attempt } = *begun;
        let invocation = recorder.status().hooks.get(place.hook);
        let phase = recorder.phase(place.hook, place.phase).cloned();
        let process = self.context.standing.process();
        let is_ours = invocation.is_some_and(|hook| hook.attempt == attempt)
            && phase
                .as_ref()
                .is_some_and(|phase| phase.state == StepState::Running && phase.claimed_by == process);
        if !is_ours {
            self.exec = None;
            return Ok(Turn::Again);
        }
        let status = end::ran(
            recorder.status(),
            place.hook,
            place.phase,
            outcome.clone(),
            clock::now(),
        );
        if let Err(error) = self.write(recorder, status).await {
            if !matches!(error, TurnError::Gone) {
                self.unwritten = Some(unwritten);
            }
            return Err(error);
        }
        self.exec = None;
        if let Some(pod) = phase.and_then(|phase| phase.pod) {
            // What fails here is removed at the action's end.
            let removed = functions::remove_pods(&self.context.clients.api, &self.key.uid, Some(&pod)).await;
            if let Err(error) = removed {
                tracing::warn!(pod = pod.name, %error, "a hook's pod could not be removed yet");
            }
        }
        Ok(Turn::Again)
    }

    /// Writes down, before this process ends, what nobody else could know: how a command has ended, or that it was not started.
    pub(super) async fn leave(&mut self) {
        for _ in 0..LAST_WRITES {
            match self.last_write().await {
                Ok(()) | Err(TurnError::Gone) => return,
                Err(error) => {
                    tracing::warn!(action = self.key.name, %error, "the end of a command could not be written yet");
                    tokio::time::sleep(LEASE_POLL).await;
                }
            }
        }
    }

    async fn last_write(&mut self) -> Result<(), TurnError> {
        if self.unwritten.is_none() && self.exec.is_none() {
            return Ok(());
        }
        let client = &self.context.clients.api;
        let mut recorder =
            Recorder::read(client, self.key.kind, &self.context.settings.namespace, &self.key.name).await?;
        if recorder.action().uid != self.key.uid {
            return Err(TurnError::Gone);
        }
        if let Some(unwritten) = self.unwritten.take() {
            return self.write_end(&mut recorder, unwritten).await.map(drop);
        }
        let mut status = recorder.status().clone();
        let process = self.context.standing.process();
        for (hook, invocation) in status.hooks.iter_mut().enumerate() {
            let attempt = invocation.attempt;
            for (phase, state) in invocation.phases.iter_mut().enumerate() {
                let ours = state.state == StepState::Running && state.claimed_by == process;
                let begun = Begun {
                    place: Place { hook, phase },
                    attempt,
                };
                if ours && self.started != Some(begun) {
                    state.state = StepState::Pending;
                    state.claimed_by = String::new();
                }
            }
        }
        if status != *recorder.status() {
            recorder.write(status).await?;
        }
        self.exec = None;
        Ok(())
    }
}

/// What an error means for a hook: it passes, and what failed is done again; but one that lasts for longer than the hook may take,
/// beyond `last_look`, ends it. Gives the reason.
pub(super) fn give_up(error: TurnError, last_look: Option<Timestamp>, limit: GoDuration) -> Result<String, TurnError> {
    let is_over = last_look.is_some_and(|last_look| last_look <= clock::now());
    match error {
        TurnError::Kube(_) | TurnError::Unreadable(_) if is_over => Ok(format!(
            "the hook has taken longer than {limit}; what held it up at last: {error}"
        )),
        error => Err(error),
    }
}

/// Whether a command of `KubeExec` is claimed by this process.
fn claims_exec(status: &ActionStatus, process: &str) -> bool {
    let mut phases = status.hooks.iter().flat_map(|hook| &hook.phases);
    phases.any(|phase| phase.is_exec() && phase.state == StepState::Running && phase.claimed_by == process)
}

/// Returns when the action is cancelled or deleted.
async fn cancelled(context: &Context, key: &Key, bell: &Notify) {
    let api: Api<DynamicObject> = Api::namespaced_with(
        context.clients.api.clone(),
        &context.settings.namespace,
        &key.kind.resource(),
    );
    bell.notified().await;
    loop {
        let over = match api.get_opt(&key.name).await {
            Ok(Some(object)) => {
                object.metadata.uid.as_ref() != Some(&key.uid)
                    || Action::read(key.kind, &object).is_ok_and(|action| action.cancel.is_some())
            }
            Ok(None) => true,
            // The bell has rung, and may not ring again.
            Err(_) => {
                tokio::time::sleep(LEASE_POLL).await;
                continue;
            }
        };
        if over {
            return;
        }
        bell.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_passes_until_the_hooks_time_is_long_over() {
        let limit = GoDuration::from_secs(5);
        let error = || TurnError::Unreadable("failed calling webhook".to_owned());
        let past = clock::now().checked_sub(Duration::from_secs(1)).ok();
        let future = clock::now().checked_add(Duration::from_secs(3600)).ok();
        assert!(give_up(error(), future, limit).is_err());
        assert!(give_up(error(), None, limit).is_err());
        assert!(
            give_up(error(), past, limit)
                .unwrap()
                .contains("failed calling webhook")
        );
        assert!(
            give_up(TurnError::Overtaken, past, limit).is_err(),
            "its end is another's to tell"
        );
    }
}
