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

/// However short runs are kept: a waiter that was away at the end of a restore may still judge it.
const SHORTEST_MEMORY: SignedDuration = SignedDuration::from_mins(10);

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
    let verdict = judge_runs(runs);
    match Written::standing(restore) {
        Some(written) => written.rules_over(verdict, runs),
        None => verdict,
    }
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

    /// The same; of a result without a record, what stands there is taken for ours.
    pub fn standing(restore: &RestoreInfo) -> Option<Self> {
        let without_record = || {
            let result = restore.result.clone()?;
            let there = restore.hook_counts;
            (restore.marked && !restore.result_is_open()).then_some(Self {
                result,
                own: there,
                total: there,
                partially_failed: false,
                rerun: None,
            })
        };
        Self::of(restore).or_else(without_record)
    }

    /// How many hooks it counts that are in none of these runs: finished `HookRun`s go after a time to live, or with their namespace.
    pub fn gone(&self, runs: &[&HookRun]) -> u64 {
        self.own.attempted.saturating_sub(counts(runs).attempted)
    }

    /// What it makes of a verdict by the runs. It stands until a newer rerun has been judged; and a rerun of what is left can't
    /// make good what failed elsewhere.
    fn rules_over(&self, verdict: Verdict, runs: &[&HookRun]) -> Verdict {
        let is_judged = newest_rerun(runs) <= self.rerun;
        match (&verdict, self.result.as_str()) {
            (Verdict::Failed(_), "Succeeded") if is_judged => Verdict::Succeeded,
            (Verdict::Succeeded, "Failed") if is_judged || self.gone(runs) > 0 => Verdict::Failed(self.words(runs)),
            _ => verdict,
        }
    }

    /// What is known of the hooks when their runs do not tell it.
    fn words(&self, runs: &[&HookRun]) -> String {
        let HookCounts { attempted, failed } = self.own;
        match self.gone(runs) {
            0 => format!("{failed} of {attempted} hooks did not succeed"),
            gone => format!("{failed} of {attempted} hooks did not succeed; the HookRuns of {gone} are gone"),
        }
    }

    /// The annotation's value.
    pub fn to_annotation(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What there is to say of a restore whose hooks have succeeded.
pub fn note(restore: Option<&RestoreInfo>, runs: &[&HookRun]) -> String {
    match restore.and_then(Written::standing) {
        Some(written) if written.gone(runs) > 0 => written.words(runs),
        _ if runs.is_empty() => "no hooks".to_owned(),
        _ => String::new(),
    }
}

/// Whether a restore that has no runs may have had some: nothing was written on it while they were kept. Such a Restore comes from a
/// copy that was saved before its result was written.
pub fn may_be_forgotten(restore: &RestoreInfo, runs: &[&HookRun], ttl: SignedDuration, now: Timestamp) -> bool {
    let kept = ttl.max(SHORTEST_MEMORY);
    let is_old = |completed: Timestamp| now.duration_since(completed) > kept;
    !ttl.is_zero() && runs.is_empty() && restore.was_never_judged() && restore.completed.is_some_and(is_old)
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

    /// A hook that has ended so, perhaps in a rerun.
    fn hook(state: HookState, rerun: Option<i64>) -> HookRun {
        let phase = if state == HookState::Succeeded {
            RunPhase::Succeeded
        } else {
            RunPhase::Failed
        };
        let mut run = run(phase);
        let reruns = rerun.map(
            |second| json!({"request": {"id": "i"}, "number": 1, "takenAt": Timestamp::from_second(second).unwrap()}),
        );
        run.status = serde_json::from_value(json!({
            "phase": phase, "post": [{"name": "h", "state": state}], "reruns": reruns.into_iter().collect::<Vec<_>>(),
        }))
        .unwrap();
        run
    }

    fn written(result: &str, own: (u64, u64), rerun: Option<i64>) -> RestoreInfo {
        let mut restore = restore("Completed", 100);
        let own = HookCounts {
            attempted: own.0,
            failed: own.1,
        };
        let record = Written {
            result: result.to_owned(),
            own,
            total: own,
            partially_failed: false,
            rerun: rerun.map(|second| Timestamp::from_second(second).unwrap()),
        };
        restore.marked = true;
        restore.result = Some(result.to_owned());
        restore.written = Some(record.to_annotation());
        restore
    }

    #[test]
    fn what_is_written_outlives_the_runs() {
        let judged = |restore: &RestoreInfo, runs: &[HookRun]| {
            let runs: Vec<&HookRun> = runs.iter().collect();
            (
                judge(restore, 0, &runs, Timestamp::from_second(200).unwrap()),
                note(Some(restore), &runs),
            )
        };
        let failed = written("Failed", (2, 1), None);
        let gone = "1 of 2 hooks did not succeed; the HookRuns of 2 are gone".to_owned();
        assert_eq!(judged(&failed, &[]), (Verdict::Failed(gone.clone()), gone));
        let well = written("Succeeded", (2, 1), None);
        assert_eq!(judged(&well, &[]).0, Verdict::Succeeded);
        assert!(judged(&well, &[]).1.contains("are gone"), "{:?}", judged(&well, &[]));
        assert_eq!(judged(&written("Succeeded", (0, 0), None), &[]).1, "no hooks");
        // What is left has succeeded: at first, or when it was run again.
        for rerun in [None, Some(150)] {
            let left = [hook(HookState::Succeeded, rerun)];
            assert_eq!(judged(&failed, &left).0.word(), "Failed", "{rerun:?}");
        }
        // All are there, and nothing is wrong any more.
        let all = [hook(HookState::Succeeded, Some(150)), hook(HookState::Succeeded, None)];
        assert_eq!(judged(&failed, &all).0, Verdict::Succeeded);
        // The rerun was judged before.
        assert_eq!(judged(&written("Failed", (2, 1), Some(150)), &all).0.word(), "Failed");
        let worse = [hook(HookState::Failed, Some(150)), hook(HookState::Succeeded, None)];
        assert_eq!(judged(&well, &worse).0.word(), "Failed");
        assert_eq!(judged(&well, &[run(RunPhase::Running)]).0.word(), "Pending");
    }

    #[test]
    fn an_old_restore_without_runs_and_result_may_be_forgotten() {
        let mut old = restore("Completed", 0);
        old.marked = true;
        old.result = Some("Pending".to_owned());
        let day = SignedDuration::from_hours(24);
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let some = [&run(RunPhase::Succeeded)];
        assert!(may_be_forgotten(&old, &[], day, at(90_000)));
        assert!(!may_be_forgotten(&old, &[], day, at(80_000)), "it is not old yet");
        assert!(!may_be_forgotten(&old, &some, day, at(90_000)));
        assert!(
            !may_be_forgotten(&old, &[], SignedDuration::ZERO, at(90_000)),
            "kept for ever"
        );
        assert!(
            !may_be_forgotten(&old, &[], SignedDuration::from_secs(1), at(60)),
            "the waiter may be slow"
        );
        assert!(!may_be_forgotten(
            &written("Succeeded", (1, 0), None),
            &[],
            day,
            at(90_000)
        ));
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
