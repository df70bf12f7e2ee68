//! One execution of a command: its record from start to end, and what its end means for its hook. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{
    budget, conditions,
    control::current_attempts,
    end::{conclude, settle},
    pod_view::PodView,
    retry::next_attempt,
};
use crate::{
    api::hook_run::{Attempt, HookRunSpec, HookRunStatus, HookState, PostStatus, RunPhase},
    duration::GoDuration,
    hooks::PostHook,
};

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this exit code.
    Exited(i32),
    /// It never started, and why.
    Refused(String),
    /// The API server would not hear of it (401, 403, 429), so it never started; it may start once that has changed.
    TurnedAway {
        /// The HTTP status.
        code: u16,
        /// What the API server said.
        why: String,
    },
    /// Its time was over.
    TimedOut {
        /// The time.
        limit: GoDuration,
        /// The process was ended and is known to be gone; otherwise it may still run.
        ended: bool,
    },
    /// The connection broke, or the result went with its container: nobody knows.
    Lost(String),
    /// The process that had started it is gone: nobody knows.
    ProcessGone,
}

impl Outcome {
    /// The state that a hook ends in with this, if it is not tried again; a word and a sentence for why.
    fn verdict(&self) -> (HookState, &'static str, String) {
        match self {
            Self::Exited(0) => (HookState::Succeeded, "", String::new()),
            Self::Exited(code) => (HookState::Failed, "NonZeroExitCode", format!("exit code {code}")),
            Self::Refused(why) | Self::TurnedAway { why, .. } => (
                HookState::Failed,
                "NotStarted",
                format!("the command could not be started: {why}"),
            ),
            Self::TimedOut { limit, ended: true } => (
                HookState::ExecTimedOut,
                "ExecTimedOut",
                format!("it did not end within {limit} and was ended then"),
            ),
            Self::TimedOut { limit, ended: false } => (
                HookState::ExecTimedOut,
                "ExecTimedOut",
                format!("it did not end within {limit}; the command may still be running"),
            ),
            Self::Lost(why) => (
                HookState::Unknown,
                "ConnectionLost",
                format!("the connection broke before the exit code came, so its end is not known: {why}"),
            ),
            Self::ProcessGone => (
                HookState::Unknown,
                "ProcessGone",
                "the process that started it is gone, so its end is not known; it may have run in part or to its end"
                    .to_owned(),
            ),
        }
    }
}

/// The end state of a hook whose last attempt ended for this reason.
fn state_after(reason: &str) -> HookState {
    match reason {
        "ExecTimedOut" => HookState::ExecTimedOut,
        "ConnectionLost" | "ProcessGone" => HookState::Unknown,
        _ => HookState::Failed,
    }
}

impl Attempt {
    /// The process that will tell how it ended.
    pub fn owner(&self) -> &str {
        self.collected_by.as_deref().unwrap_or(&self.claimed_by)
    }
}

/// Records the start of an attempt.
pub(super) fn begin(status: &mut HookRunStatus, hook: usize, pod: Option<&PodView>, process: &str, now: Timestamp) {
    let Some(state) = status.post.get_mut(hook) else { return };
    let number = state.times_started().saturating_add(1);
    let container = pod.and_then(|pod| pod.container(&state.container));
    state.attempts.push(Attempt {
        number,
        claimed_by: process.to_owned(),
        collected_by: None,
        container_id: container.and_then(|container| container.id.clone()),
        started_at: MicroTime(now),
        finished_at: None,
        exit_code: None,
        reason: String::new(),
        message: String::new(),
        stdout: String::new(),
        stderr: String::new(),
    });
    state.next_attempt_at = None;
    settle(state, HookState::Started, "", "");
    status.phase = RunPhase::Running;
    status.message = format!("runs hook {} in container {}", state.name, state.container);
    status.started_at.get_or_insert(MicroTime(now));
}

/// The status after a start was recorded and the command was not begun after all: as if nothing had happened.
pub fn withdraw(status: &HookRunStatus, hook: usize, now: Timestamp) -> HookRunStatus {
    let mut new = status.clone();
    if let Some(state) = new.post.get_mut(hook).filter(|state| state.state == HookState::Started) {
        state.attempts.pop();
        settle(state, HookState::Waiting, "", "");
        new.message = format!("waits to run hook {}", state.name);
        conditions::refresh(&mut new, now);
    }
    new
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
    let started = new.post.get_mut(hook).filter(|state| state.state == HookState::Started);
    let Some((state, plan)) = started.zip(spec.plan.post.get(hook)) else {
        return new;
    };
    if let Some(attempt) = state.attempts.last_mut() {
        attempt.stdout = stdout;
        attempt.stderr = stderr;
    }
    if finish(plan, state, outcome, &spec.pod.uid, now) {
        new.message = format!("waits to run hook {} again", plan.name);
    } else {
        let ended = new.post.iter().filter(|state| state.state.is_final()).count();
        new.message = format!("{ended} of {} post hooks have ended", new.post.len());
    }
    conclude(spec, &mut new, true, now);
    conditions::refresh(&mut new, now);
    budget::fit(&mut new);
    new
}

/// Ends a hook's last attempt. True when there is to be another.
pub(super) fn finish(hook: &PostHook, state: &mut PostStatus, outcome: &Outcome, run: &str, now: Timestamp) -> bool {
    let (end, reason, message) = outcome.verdict();
    if let Some(attempt) = state.attempts.last_mut() {
        attempt.finished_at = Some(MicroTime(now));
        reason.clone_into(&mut attempt.reason);
        attempt.message.clone_from(&message);
        attempt.exit_code = if let Outcome::Exited(code) = outcome {
            Some(*code)
        } else {
            None
        };
    }
    let Some(again) = next_attempt(hook, state, outcome, run, now) else {
        settle(state, end, reason, message);
        return false;
    };
    let next = state.times_started().saturating_add(1);
    let all = state
        .attempts_before_rerun
        .saturating_add(hook.retry.limit())
        .saturating_add(1);
    settle(
        state,
        HookState::Waiting,
        reason,
        format!("{message}; attempt {next} of at most {all} follows"),
    );
    state.next_attempt_at = Some(MicroTime(again));
    true
}

/// Ends a hook that waits. One that has been tried ends as its last attempt did.
pub(super) fn call_off(state: &mut PostStatus, end: HookState, reason: &str, message: &str) {
    state.next_attempt_at = None;
    let tried = state.attempts.last().filter(|_| current_attempts(state) > 0);
    let Some(last) = tried else {
        settle(state, end, reason, message);
        return;
    };
    let (reason, text) = (
        last.reason.clone(),
        format!("{}; not tried again: {message}", last.message),
    );
    settle(state, state_after(&reason), &reason, text);
}
