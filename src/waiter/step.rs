//! The waiter's state machine: what to do next for one run. Pure and total: no clock, no client, an answer for every input.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{
    budget, conditions,
    end::{cancelling_failure, conclude, pod_end, runs_commands, settle},
    init,
    pod_view::{ContainerView, PodView},
    waiting,
};
use crate::{
    api::hook_run::{Attempt, HookRunSpec, HookRunStatus, HookState, InitState, RunPhase},
    duration::GoDuration,
    hooks::PostHook,
};

/// How long a whole run may take, from the pod's creation.
pub const RUN_LIMIT: SignedDuration = SignedDuration::from_hours(24);

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
    /// Why hooks of this restore that have not started are cancelled, if so.
    pub cancelled: Option<&'a str>,
    /// How long a run may wait before it says what for.
    pub report_after: SignedDuration,
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
    /// Write this status.
    Record(HookRunStatus),
    /// Nothing, until something changes or this time comes.
    Wait(Option<Timestamp>),
    /// Nothing any more.
    Done,
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Exited(i32),
    /// It never started, and why.
    Refused(String),
    /// Its time was over; the command may still be running.
    TimedOut(GoDuration),
    /// The connection broke: nobody knows.
    Lost(String),
}

/// What to do next for a run. To be asked only while this process runs none of its commands.
pub fn next(situation: &Situation) -> Step {
    let Situation { spec, pod, now, .. } = *situation;
    match decide(situation) {
        Step::Execute { hook, mut status } => {
            conditions::refresh(&mut status, now);
            Step::Execute { hook, status }
        }
        Step::Record(mut status) => {
            if !status.phase.is_final()
                && let Some(waiting) = waiting::reason(spec, &status, pod)
            {
                status.message = waiting::words(&waiting);
            }
            conditions::refresh(&mut status, now);
            Step::Record(status)
        }
        Step::Wait(due) => match waiting::report(situation) {
            waiting::Report::Now(status) => Step::Record(status),
            waiting::Report::At(report) => Step::Wait(Some(due.map_or(report, |due| due.min(report)))),
            waiting::Report::Nothing => Step::Wait(due),
        },
        Step::Done => Step::Done,
    }
}

fn decide(situation: &Situation) -> Step {
    let Situation {
        spec,
        status,
        pod,
        now,
        process,
        cancelled,
        ..
    } = *situation;
    if status.phase.is_final() {
        return Step::Done;
    }
    let mut new = status.clone();
    for (hook, state) in spec.plan.init.iter().zip(&mut new.init) {
        init::observe(hook, state, pod, now);
    }
    for state in new.post.iter_mut().filter(|state| state.state == HookState::Started) {
        if state
            .attempts
            .last()
            .is_none_or(|attempt| attempt.claimed_by != process)
        {
            let text =
                "the process that started it is gone, so its end is not known; it may have run in part or to its end";
            settle(state, HookState::Unknown, "ProcessGone", text);
        }
    }
    // Whoever asks is not running a command: a start that this process has recorded, it has not begun.
    if let Some(hook) = new.post.iter().position(|state| state.state == HookState::Started) {
        return Step::Execute { hook, status: new };
    }
    let end = pod_end(pod);
    let own_failure = cancelling_failure(spec, &new);
    for (hook, state) in spec
        .plan
        .post
        .iter()
        .zip(&mut new.post)
        .filter(|(_, state)| state.state == HookState::Waiting)
    {
        if let Some((reason, message)) = &end {
            settle(state, HookState::Cancelled, reason, message.clone());
        } else if let Some(message) = own_failure.as_deref().or(cancelled) {
            settle(state, HookState::Cancelled, "AnotherHookFailed", message);
        } else if let Some((end, reason, message)) = waiting::never(hook, pod) {
            settle(state, end, reason, message);
        } else if let Some((limit, reason)) = expired(hook, spec, now) {
            let waited_for = wanted_condition(hook, pod);
            let message = format!("not executed: {limit} after the pod's creation {waited_for}");
            settle(state, HookState::WaitTimedOut, reason, message);
        }
    }
    if let Some(hook) = runnable(spec, &new, pod) {
        start(&mut new, hook, process, now);
        return Step::Execute { hook, status: new };
    }
    conclude(spec, &mut new, pod, now);
    if worth_writing(status, &new) {
        return Step::Record(new);
    }
    Step::Wait(deadline(spec, &new, now))
}

/// The status after an execution has ended.
pub fn record(
    spec: &HookRunSpec,
    status: &HookRunStatus,
    hook: usize,
    outcome: &Outcome,
    (stdout, stderr): (String, String),
    now: Timestamp,
) -> HookRunStatus {
    let mut new = status.clone();
    let Some(state) = new.post.get_mut(hook).filter(|state| state.state == HookState::Started) else {
        return new;
    };
    if let Some(attempt) = state.attempts.last_mut() {
        attempt.finished_at = Some(MicroTime(now));
        attempt.stdout = stdout;
        attempt.stderr = stderr;
        attempt.exit_code = if let Outcome::Exited(code) = outcome {
            Some(*code)
        } else {
            None
        };
    }
    match outcome {
        Outcome::Exited(0) => settle(state, HookState::Succeeded, "", ""),
        Outcome::Exited(code) => settle(state, HookState::Failed, "NonZeroExitCode", format!("exit code {code}")),
        Outcome::Refused(why) => settle(
            state,
            HookState::Failed,
            "NotStarted",
            format!("the command could not be started: {why}"),
        ),
        Outcome::TimedOut(limit) => {
            let message = format!("it did not end within {limit}; the command may still be running");
            settle(state, HookState::ExecTimedOut, "ExecTimedOut", message);
        }
        Outcome::Lost(why) => {
            let message = format!("the connection broke before the exit code came, so its end is not known: {why}");
            settle(state, HookState::Unknown, "ConnectionLost", message);
        }
    }
    budget::fit(&mut new);
    conclude(spec, &mut new, None, now);
    if !new.phase.is_final() {
        let ended = new.post.iter().filter(|state| state.state.is_final()).count();
        new.message = format!("{ended} of {} post hooks have ended", new.post.len());
    }
    conditions::refresh(&mut new, now);
    new
}

/// Which limit is over for a waiting hook, if any.
fn expired(hook: &PostHook, spec: &HookRunSpec, now: Timestamp) -> Option<(GoDuration, &'static str)> {
    let waited = now.duration_since(spec.pod.created_at);
    if !hook.wait_timeout.is_zero() && waited >= hook.wait_timeout.to_signed() {
        return Some((hook.wait_timeout, "WaitTimedOut"));
    }
    (waited >= RUN_LIMIT).then(|| (GoDuration::from_secs(RUN_LIMIT.as_secs()), "RunLimit"))
}

/// What a hook waits for, in words that follow "after … ".
fn wanted_condition(hook: &PostHook, pod: Option<&PodView>) -> String {
    let container = pod.and_then(|pod| pod.containers.get(&hook.container));
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
fn runnable(spec: &HookRunSpec, status: &HookRunStatus, pod: Option<&PodView>) -> Option<usize> {
    let pod = pod?;
    let mut blocked: Vec<&str> = Vec::new();
    for (index, (hook, state)) in spec.plan.post.iter().zip(&status.post).enumerate() {
        if state.state != HookState::Waiting || blocked.contains(&hook.container.as_str()) {
            continue;
        }
        if pod
            .containers
            .get(&hook.container)
            .is_some_and(|container| is_up(hook, container))
        {
            return Some(index);
        }
        blocked.push(&hook.container);
    }
    None
}

fn start(status: &mut HookRunStatus, hook: usize, process: &str, now: Timestamp) {
    let Some(state) = status.post.get_mut(hook) else { return };
    let number = u32::try_from(state.attempts.len())
        .unwrap_or(u32::MAX)
        .saturating_add(1);
    state.attempts.push(Attempt {
        number,
        claimed_by: process.to_owned(),
        collected_by: None,
        container_id: None,
        started_at: MicroTime(now),
        finished_at: None,
        exit_code: None,
        reason: String::new(),
        message: String::new(),
        stdout: String::new(),
        stderr: String::new(),
    });
    settle(state, HookState::Started, "", "");
    status.phase = RunPhase::Running;
    status.message = format!("runs hook {} in container {}", state.name, state.container);
    status.started_at.get_or_insert(MicroTime(now));
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
        || old.phase != new.phase
        || failures(old) != failures(new)
        || (!runs_commands(old) && old.init != new.init)
}

/// The next time at which something is due by the clock alone.
fn deadline(spec: &HookRunSpec, status: &HookRunStatus, now: Timestamp) -> Option<Timestamp> {
    let waiting = spec
        .plan
        .post
        .iter()
        .zip(&status.post)
        .filter(|(_, state)| state.state == HookState::Waiting);
    let limits = waiting.map(|(hook, _)| {
        if hook.wait_timeout.is_zero() {
            RUN_LIMIT
        } else {
            hook.wait_timeout.to_signed()
        }
    });
    let limits = limits.chain(std::iter::once(RUN_LIMIT));
    let init = spec
        .plan
        .init
        .iter()
        .zip(&status.init)
        .filter_map(|(hook, state)| init::due(hook, state));
    limits
        .filter_map(|limit| spec.pod.created_at.checked_add(limit).ok())
        .chain(init)
        .filter(|due| *due > now)
        .min()
}

#[cfg(test)]
mod tests;
