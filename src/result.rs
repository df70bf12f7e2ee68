//! Is a restore finished, hooks included, and did they succeed? One function for the annotation on the Restore, for
//! `reveille status` and for whoever waits.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    api::{
        HookRun,
        hook_run::{HookState, RunPhase},
    },
    hooks::restored::{HookCounts, RestoreInfo},
};

/// After Velero's end a pod's admission may still be on its way into the watches.
pub const SETTLING: SignedDuration = SignedDuration::from_secs(2);

/// How a restore's hooks stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not finished; the text says what is waited for.
    Pending(String),
    /// No hook with `onError: Fail` ended other than Succeeded.
    Succeeded,
    /// At least one did; the text names the first.
    Failed(String),
}

impl Verdict {
    /// The value of the annotation on the Restore.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pending(_) => "Pending",
            Self::Succeeded => "Succeeded",
            Self::Failed(_) => "Failed",
        }
    }
}

/// Judges a restore. `unplanned`: pods with a plan, listed after Velero's end, that have no finished or running `HookRun` yet.
pub fn judge(restore: &RestoreInfo, unplanned: usize, runs: &[&HookRun], now: Timestamp) -> Verdict {
    if !restore.finished() {
        let phase = if restore.phase.is_empty() {
            "New"
        } else {
            &restore.phase
        };
        return Verdict::Pending(format!("Velero has not finished it ({phase})"));
    }
    if restore
        .completed
        .is_some_and(|completed| now.duration_since(completed) < SETTLING)
    {
        return Verdict::Pending("Velero has only just finished it".to_owned());
    }
    if unplanned > 0 {
        return Verdict::Pending(format!(
            "{unplanned} pods have a plan that the waiter has not taken in yet"
        ));
    }
    judge_runs(runs)
}

/// Judges by the runs alone.
pub fn judge_runs(runs: &[&HookRun]) -> Verdict {
    let phase = |run: &HookRun| run.status.as_ref().map(|status| status.phase).unwrap_or_default();
    if let Some(run) = runs
        .iter()
        .find(|run| phase(run).is_final() && run.open_rerun().is_some())
    {
        let pod = &run.spec.pod.name;
        return Verdict::Pending(format!("a rerun of pod {pod} was asked for and has not begun"));
    }
    let unfinished: Vec<&&HookRun> = runs.iter().filter(|run| !phase(run).is_final()).collect();
    if let Some(first) = unfinished.first() {
        let waits = first
            .status
            .as_ref()
            .map(|status| status.message.as_str())
            .filter(|message| !message.is_empty());
        let pod = &first.spec.pod.name;
        return Verdict::Pending(format!(
            "{} of {} runs are not finished; pod {pod} {}",
            unfinished.len(),
            runs.len(),
            waits.unwrap_or("waits")
        ));
    }
    match runs.iter().find(|run| phase(run) == RunPhase::Failed) {
        Some(run) => {
            let message = run
                .status
                .as_ref()
                .map(|status| status.message.clone())
                .unwrap_or_default();
            Verdict::Failed(format!("pod {}: {message}", run.spec.pod.name))
        }
        None => Verdict::Succeeded,
    }
}

/// When the newest rerun of a restore was taken in, if there was one.
pub fn newest_rerun(runs: &[&HookRun]) -> Option<Timestamp> {
    let statuses = runs.iter().filter_map(|run| run.status.as_ref());
    let reruns = statuses.filter_map(|status| status.last_rerun());
    reruns.map(|rerun| rerun.taken_at.0).max()
}

/// Whether the Restore says already what was judged from these runs.
pub fn is_written(restore: &RestoreInfo, runs: &[&HookRun]) -> bool {
    let judged = Written::of(restore).and_then(|written| written.rerun);
    !restore.marked || (!restore.result_is_open() && newest_rerun(runs) <= judged)
}

/// What runs add up to in `status.hookStatus`.
pub fn counts(runs: &[&HookRun]) -> HookCounts {
    // What Velero runs, Velero counts.
    let states = || {
        runs.iter()
            .flat_map(|run| run.status.iter())
            .flat_map(|status| &status.post)
            .map(|post| post.state)
            .filter(|state| *state != HookState::LeftToVelero)
    };
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    HookCounts {
        attempted: number(states().count()),
        failed: number(states().filter(|state| *state != HookState::Succeeded).count()),
    }
}

/// What the waiter has written on a Restore; it stands there as an annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// `Succeeded` or `Failed`.
    pub result: String,
    /// Reveille's part of `status.hookStatus`.
    pub own: HookCounts,
    /// All of it, Velero's part included.
    pub total: HookCounts,
    /// The phase was made `PartiallyFailed`.
    #[serde(default)]
    pub partially_failed: bool,
    /// The newest rerun that was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun: Option<Timestamp>,
}

impl Written {
    /// What stands on a Restore; `None` if nothing does, or nothing that can be read.
    pub fn of(restore: &RestoreInfo) -> Option<Self> {
        serde_json::from_str(restore.written.as_deref()?).ok()
    }

    /// The annotation's value.
    pub fn to_annotation(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{HookRunSpec, HookRunStatus, hook_run::PodIdentity},
        plan::Plan,
    };
    use serde_json::json;

    fn restore(phase: &str, completed: i64) -> RestoreInfo {
        let completed = Timestamp::from_second(completed).unwrap().to_string();
        let object = json!({"metadata": {"namespace": "velero", "name": "r", "uid": "u"}, "status": {"phase": phase, "completionTimestamp": completed}});
        RestoreInfo::read(&object).unwrap()
    }

    fn run(phase: RunPhase) -> HookRun {
        let plan = Plan::parse(r#"{"version":1,"plannedAt":"1970-01-01T00:00:00Z"}"#).unwrap();
        let pod = PodIdentity {
            name: "p".to_owned(),
            uid: "u".to_owned(),
            created_at: Timestamp::UNIX_EPOCH,
        };
        let mut run = HookRun::new("x", HookRunSpec { pod, plan });
        run.status = Some(HookRunStatus {
            phase,
            ..HookRunStatus::default()
        });
        run
    }

    fn word(restore: &RestoreInfo, unplanned: usize, phases: &[RunPhase], second: i64) -> &'static str {
        let runs: Vec<HookRun> = phases.iter().map(|phase| run(*phase)).collect();
        judge(
            restore,
            unplanned,
            &runs.iter().collect::<Vec<_>>(),
            Timestamp::from_second(second).unwrap(),
        )
        .word()
    }

    #[test]
    fn finished_needs_velero_the_plans_the_runs_and_a_moment() {
        let done = restore("Completed", 100);
        assert_eq!(word(&restore("InProgress", 100), 0, &[], 200), "Pending");
        assert_eq!(word(&done, 0, &[], 101), "Pending");
        assert_eq!(word(&done, 1, &[], 200), "Pending");
        assert_eq!(word(&done, 0, &[RunPhase::Running], 200), "Pending");
        assert_eq!(word(&done, 0, &[], 200), "Succeeded");
        assert_eq!(
            word(
                &done,
                0,
                &[RunPhase::Succeeded, RunPhase::PartiallyFailed, RunPhase::Stale],
                200
            ),
            "Succeeded"
        );
        assert_eq!(word(&done, 0, &[RunPhase::Succeeded, RunPhase::Failed], 200), "Failed");
    }
}
