//! The waiter's state machine: what to do next for one run. Pure and total: no clock, no client, an answer for every input.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{
    attempt::{self, Outcome},
    budget, conditions,
    control::{self, cancel_in_force, clocks_began, clocks_began_with, current_attempts},
    end::{conclude, current_failure, pod_end, runs_commands},
    gate::Crowd,
    init,
    pod_view::{ContainerView, PodView},
    waiting,
};
use crate::{
    api::hook_run::{Attempt, HookRunSpec, HookRunStatus, HookState, InitState, PostStatus},
    control::Controls,
    duration::GoDuration,
    hooks::PostHook,
};

/// How long a whole run may take, from the pod's creation, where nobody says otherwise.
pub const DEFAULT_RUN_LIMIT: SignedDuration = SignedDuration::from_hours(24);

/// All that the next step depends on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// What is to happen.
    pub spec: &'a HookRunSpec,
    /// What has happened so far.
    pub status: &'a HookRunStatus,
    /// The pod; `None` when that very pod (by uid) is gone.
    pub pod: Option<&'a PodView>,
    /// The time.
    pub now: Timestamp,
    /// The name of this process: attempts that it started are its own.
    pub process: &'a str,
    /// Other processes that still finish the attempts that they started, each with the time until which it is known to live.
    pub finishing: &'a BTreeMap<String, Timestamp>,
    /// How long a whole run may take, from the pod's creation.
    pub run_limit: SignedDuration,
    /// Which failure elsewhere in this restore cancels what has not started, if one does.
    pub failed_elsewhere: Option<&'a str>,
    /// What people ask of it.
    pub controls: &'a Controls,
    /// How long a run may wait before it says what for.
    pub report_after: SignedDuration,
    /// Nothing may start now, for as many commands run as may.
    pub crowd: Option<&'a Crowd>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write this status, in which an attempt of the hook is Started (if it is not written yet); only when that is done, run
    /// its command.
    Execute {
        /// The hook's index in the plan.
        hook: usize,
        /// The status to write first.
        status: HookRunStatus,
    },
    /// Write this status, in which this process takes over the last attempt of the hook; only when that is done, look for its
    /// result file. The process that started it is gone.
    Collect {
        /// The hook's index in the plan.
        hook: usize,
        /// The status to write first.
        status: HookRunStatus,
    },
    /// Write this status.
    Record(HookRunStatus),
    /// Nothing, until something changes or this time comes.
    Wait(Option<Timestamp>),
    /// Nothing any more.
    Done,
}

/// What to do next for a run. To be asked only while this process runs none of its commands.
pub fn next(situation: &Situation) -> Step {
    let Situation {
        spec, pod, now, crowd, ..
    } = *situation;
    match decide(situation) {
        Step::Execute { hook, mut status } => {
            conditions::refresh(&mut status, now);
            budget::fit(&mut status);
            Step::Execute { hook, status }
        }
        Step::Record(mut status) => {
            if !is_busy(&status)
                && !status.phase.is_final()
                && status.paused_since.is_none()
                && let Some(waiting) = waiting::reason(spec, &status, pod, crowd)
            {
                status.message = waiting::words(&waiting);
            }
            conditions::refresh(&mut status, now);
            budget::fit(&mut status);
            Step::Record(status)
        }
        Step::Collect { hook, mut status } => {
            conditions::refresh(&mut status, now);
            budget::fit(&mut status);
            Step::Collect { hook, status }
        }
        // It says already whose command is waited for, or how it has ended.
        Step::Wait(due) if is_busy(situation.status) || situation.status.phase.is_final() => Step::Wait(due),
        Step::Wait(due) => match waiting::report(situation) {
            waiting::Report::Now(status) => Step::Record(*status),
            waiting::Report::At(report) => Step::Wait(Some(due.map_or(report, |due| due.min(report)))),
            waiting::Report::Nothing => Step::Wait(due),
        },
        Step::Done => Step::Done,
    }
}

/// A command has been started and its end is not recorded.
fn is_busy(status: &HookRunStatus) -> bool {
    status.post.iter().any(|state| state.state == HookState::Started)
}

fn decide(situation: &Situation) -> Step {
    let Situation {
        spec,
        status,
        pod,
        now,
        process,
        run_limit,
        failed_elsewhere,
        controls,
        ..
    } = *situation;
    if let Some(wanted) = controls
        .rerun
        .as_ref()
        .filter(|wanted| !status.has_taken(&wanted.request))
    {
        return Step::Record(control::take_in_rerun(
            spec,
            status,
            pod,
            (wanted, &controls.cancel),
            now,
        ));
    }
    if status.phase.is_final() {
        let began = clocks_began(spec, status);
        let limit = began.checked_add(run_limit).unwrap_or(Timestamp::MAX);
        return match init::after_the_end(spec, status, pod, (limit, now)) {
            Some(init::Watch::Record(new)) => Step::Record(*new),
            Some(init::Watch::Until(due)) => Step::Wait(Some(due)),
            None => Step::Done,
        };
    }
    let mut new = status.clone();
    init::observe_all(spec, &mut new, pod, now);
    for index in 0..new.post.len() {
        match take_up(situation, &mut new, index) {
            TakenUp::Nothing => {}
            // It has not been begun: nothing is lost when it waits for its place as the others do.
            TakenUp::Own if situation.crowd.is_some() => new = attempt::withdraw(&new, index, now),
            TakenUp::Own => {
                return Step::Execute {
                    hook: index,
                    status: new,
                };
            }
            TakenUp::Result => {
                return Step::Collect {
                    hook: index,
                    status: new,
                };
            }
            // In a pod one command runs at a time.
            TakenUp::Others(_) if worth_writing(status, &new) => return Step::Record(new),
            TakenUp::Others(until) => return Step::Wait(Some(until)),
        }
    }
    control::note_pause(&mut new, controls.pause.as_ref(), now);
    let paused = new.paused_since.is_some();
    let end = pod_end(pod);
    let cancel = cancel_in_force(controls, &new);
    // Somebody who asks for a rerun knows of the failures before it and elsewhere.
    let failed_elsewhere = failed_elsewhere.filter(|_| new.last_rerun().is_none());
    let failure = current_failure(spec, &new).or_else(|| failed_elsewhere.map(str::to_owned));
    let (began, began_with) = (clocks_began(spec, &new), clocks_began_with(&new));
    let waited = now.duration_since(began);
    let mut has_cancelled = false;
    for (hook, state) in spec
        .plan
        .post
        .iter()
        .zip(&mut new.post)
        .filter(|(_, state)| state.state == HookState::Waiting)
    {
        if let Some((reason, message)) = &end {
            attempt::call_off(state, HookState::Cancelled, reason, message);
        } else if let Some(request) = cancel {
            let message = format!("cancelled {request}");
            attempt::call_off(state, HookState::Cancelled, "CancelledByUser", &message);
            has_cancelled = true;
        } else if let Some(message) = &failure {
            attempt::call_off(state, HookState::Cancelled, "AnotherHookFailed", message);
        } else if let Some((end, reason, message)) = waiting::never(hook, pod) {
            attempt::call_off(state, end, reason, &message);
        } else if let Some((limit, reason)) = expired(hook, state, waited, run_limit).filter(|_| !paused) {
            let waited_for = wanted_condition(hook, pod);
            let message = format!("not executed: {limit} after {began_with} {waited_for}");
            attempt::call_off(state, HookState::WaitTimedOut, reason, &message);
        }
    }
    if has_cancelled {
        new.cancelled = cancel.cloned();
    }
    let may_start = !paused && situation.crowd.is_none();
    if let Some(hook) = runnable(spec, &new, pod, now).filter(|_| may_start) {
        attempt::begin(&mut new, hook, pod, process, now);
        return Step::Execute { hook, status: new };
    }
    conclude(spec, &mut new, end.is_some() || (waited >= run_limit && !paused), now);
    if worth_writing(status, &new) {
        return Step::Record(new);
    }
    Step::Wait(deadline(spec, &new, run_limit, now))
}

/// What a hook that has been started comes to.
enum TakenUp {
    /// It has not been started, or its last attempt has an end now.
    Nothing,
    /// Its last attempt is this process' own.
    Own,
    /// Its result file has to be looked for.
    Result,
    /// Another process is about to tell its end; until this time it is known to live.
    Others(Timestamp),
}

/// Looks at a hook that may have been started: by whom?
fn take_up(situation: &Situation, new: &mut HookRunStatus, index: usize) -> TakenUp {
    let Situation { spec, now, process, .. } = *situation;
    let hook = spec.plan.post.get(index);
    let state = new
        .post
        .get_mut(index)
        .filter(|state| state.state == HookState::Started);
    let Some((hook, state)) = hook.zip(state) else {
        return TakenUp::Nothing;
    };
    // Whoever asks is not running a command: a start that this process has recorded, it has not begun.
    let owner = state.attempts.last().map(Attempt::owner);
    if owner == Some(process) {
        let is_collected = state
            .attempts
            .last()
            .is_some_and(|attempt| attempt.collected_by.is_some());
        return if is_collected { TakenUp::Result } else { TakenUp::Own };
    }
    if let Some(until) = owner.and_then(|owner| situation.finishing.get(owner)) {
        new.message = format!(
            "hook {} is finished by the waiter that started it, which is ending",
            hook.name
        );
        return TakenUp::Others(*until);
    }
    if hook.result_file.is_some()
        && let Some(attempt) = state.attempts.last_mut()
    {
        attempt.collected_by = Some(process.to_owned());
        return TakenUp::Result;
    }
    attempt::finish(hook, state, &Outcome::ProcessGone, &spec.pod.uid, now);
    TakenUp::Nothing
}

/// Which limit is over for a waiting hook, if any.
fn expired(
    hook: &PostHook,
    state: &PostStatus,
    waited: SignedDuration,
    run_limit: SignedDuration,
) -> Option<(GoDuration, &'static str)> {
    if waits_with_a_limit(hook, state) && waited >= hook.wait_timeout.to_signed() {
        return Some((hook.wait_timeout, "WaitTimedOut"));
    }
    (waited >= run_limit).then(|| (GoDuration::from_secs(run_limit.as_secs()), "RunLimit"))
}

/// The limit is for the time up to the first attempt.
fn waits_with_a_limit(hook: &PostHook, state: &PostStatus) -> bool {
    !hook.wait_timeout.is_zero() && current_attempts(state) == 0
}

/// What a hook waits for, in words that follow "after … ".
fn wanted_condition(hook: &PostHook, pod: Option<&PodView>) -> String {
    let container = pod.and_then(|pod| pod.container(&hook.container));
    let wanted = if hook.wait_for_ready { "ready" } else { "running" };
    match container {
        Some(view) if is_up(hook, view) => format!("its turn in container {} had not come", hook.container),
        Some(ContainerView { waiting: Some(why), .. }) => {
            format!("container {} was not {wanted} ({why})", hook.container)
        }
        _ => format!("container {} was not {wanted}", hook.container),
    }
}

fn is_up(hook: &PostHook, container: &ContainerView) -> bool {
    container.running && (!hook.wait_for_ready || container.ready)
}

/// The first hook in the order of the plan that waits, whose container is up, and before which no other of its container waits.
fn runnable(spec: &HookRunSpec, status: &HookRunStatus, pod: Option<&PodView>, now: Timestamp) -> Option<usize> {
    let pod = pod?;
    let mut blocked: Vec<&str> = Vec::new();
    for (index, (hook, state)) in spec.plan.post.iter().zip(&status.post).enumerate() {
        if state.state != HookState::Waiting || blocked.contains(&hook.container.as_str()) {
            continue;
        }
        let is_due = state.next_attempt_at.as_ref().is_none_or(|time| time.0 <= now);
        let container = pod.container(&hook.container);
        if is_due && container.is_some_and(|container| is_up(hook, container)) {
            return Some(index);
        }
        blocked.push(&hook.container);
    }
    None
}

/// Progress of init containers alone is written when one has failed, or when nothing else will be written.
fn worth_writing(old: &HookRunStatus, new: &HookRunStatus) -> bool {
    let failures = |status: &HookRunStatus| {
        status
            .init
            .iter()
            .filter(|state| matches!(state.state, InitState::Failed | InitState::TimedOut))
            .count()
    };
    old.post != new.post
        || old.message != new.message
        || old.phase != new.phase
        || control::has_changed(old, new)
        || failures(old) != failures(new)
        || (!runs_commands(old) && old.init != new.init)
}

/// The next time at which something is due by the clock alone.
fn deadline(
    spec: &HookRunSpec,
    status: &HookRunStatus,
    run_limit: SignedDuration,
    now: Timestamp,
) -> Option<Timestamp> {
    // A pause ends when somebody ends it; until then the clocks stand still.
    let paused = status.paused_since.is_some();
    let began = clocks_began(spec, status);
    let hooks = spec.plan.post.iter().zip(&status.post);
    let waiting = hooks.filter(|(_, state)| state.state == HookState::Waiting);
    let limits = waiting
        .clone()
        .filter(|(hook, state)| waits_with_a_limit(hook, state))
        .map(|(hook, _)| hook.wait_timeout.to_signed())
        .chain(std::iter::once(run_limit));
    let retries = waiting.filter_map(|(_, state)| Some(state.next_attempt_at.as_ref()?.0));
    let init = spec
        .plan
        .init
        .iter()
        .zip(&status.init)
        .filter_map(|(hook, state)| init::due(hook, state));
    limits
        .filter(|_| !paused)
        .filter_map(|limit| began.checked_add(limit).ok())
        .chain(init)
        .chain(retries.filter(|_| !paused))
        .filter(|due| *due > now)
        .min()
}

#[cfg(test)]
mod tests;
