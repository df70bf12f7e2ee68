//! The waiter's metrics from its states.

use std::future::Future;

use jiff::Timestamp;

use super::queue::Census;
use crate::{
    api::hook_run::{HookRunSpec, HookState, InitState, RunPhase},
    infra::{
        clock::Stopwatch,
        metrics::{self, HookLabels, HookPhase, HookResult, Metrics, Miss, MissLabels, RunLabels, Stage, StageLabels},
    },
};

/// Counts a command as in flight while it runs, and measures it.
pub(super) async fn timed<T>(metrics: &Metrics, command: impl Future<Output = T>) -> T {
    metrics.hooks_in_flight.inc();
    let watch = Stopwatch::start();
    let report = command.await;
    metrics.hook_duration.observe(watch.elapsed().as_secs_f64());
    metrics.hooks_in_flight.dec();
    report
}

/// Counts a post hook that has ended.
pub(super) fn hook_ended(metrics: &Metrics, state: HookState) {
    let result = match state {
        HookState::Waiting | HookState::Started => return,
        HookState::Succeeded => HookResult::Succeeded,
        HookState::Failed => HookResult::Failed,
        HookState::Cancelled => HookResult::Cancelled,
        HookState::WaitTimedOut => HookResult::WaitTimedOut,
        HookState::ExecTimedOut => HookResult::ExecTimedOut,
        HookState::Skipped => HookResult::Skipped,
        HookState::Unknown => HookResult::Unknown,
        HookState::LeftToVelero => HookResult::LeftToVelero,
    };
    metrics
        .hooks
        .get_or_create(&HookLabels {
            phase: HookPhase::Post,
            result,
        })
        .inc();
}

/// Counts a run that has ended.
pub(super) fn run_ended(metrics: &Metrics, phase: RunPhase) {
    let phase = match phase {
        RunPhase::Pending | RunPhase::Running => return,
        RunPhase::Succeeded => metrics::RunPhase::Succeeded,
        RunPhase::PartiallyFailed => metrics::RunPhase::PartiallyFailed,
        RunPhase::Failed => metrics::RunPhase::Failed,
        RunPhase::Stale => metrics::RunPhase::Stale,
    };
    metrics.hook_runs.get_or_create(&RunLabels { phase }).inc();
}

/// Counts an init container that has ended.
pub(super) fn init_ended(metrics: &Metrics, state: InitState) {
    let result = match state {
        InitState::Succeeded => HookResult::Succeeded,
        InitState::Failed => HookResult::Failed,
        InitState::TimedOut => HookResult::TimedOut,
        InitState::Unknown => HookResult::Unknown,
        InitState::Skipped | InitState::InjectionMissed | InitState::Waiting | InitState::Running => return,
    };
    let phase = HookPhase::Init;
    metrics.hooks.get_or_create(&HookLabels { phase, result }).inc();
}

/// Brings the gauges up to date.
pub(super) fn census(metrics: &Metrics, census: Census) {
    let set = |stage, count: usize| {
        let gauge = metrics.queue.get_or_create(&StageLabels { stage });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    };
    set(Stage::Unplanned, census.unplanned);
    set(Stage::Pending, census.pending);
    set(Stage::Running, census.running);
    set(Stage::Finished, census.finished);
}

/// Counts the start of a command, and how long its pod had waited for it.
pub(super) fn started(metrics: &Metrics, spec: &HookRunSpec, now: Timestamp) {
    metrics.hook_attempts.inc();
    let waited = now.duration_since(spec.pod.created_at).as_secs_f64();
    metrics.hook_wait.observe(waited.max(0.0));
}

/// Counts a condition of a run.
pub(super) fn missed(metrics: &Metrics, condition: &str) {
    let kind = match condition {
        "AdmissionMissed" => Miss::AdmissionMissed,
        "InjectionMissed" => Miss::InjectionMissed,
        "LeftToVelero" => Miss::LeftToVelero,
        _ => return,
    };
    metrics.missed.get_or_create(&MissLabels { kind }).inc();
}
