//! Finished runs go after a time to live; and, on the same round, the gauges are brought up to date.

use std::{collections::HashSet, convert::Infallible, sync::Arc, time::Duration};

use clap::Args;
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, Preconditions},
};
use tokio_util::sync::CancellationToken;

use super::{
    counts,
    missed::RestoreTable,
    queue::{Queue, RunKey},
    restores::resource,
};
use crate::{
    api::HookRun,
    duration::GoDuration,
    hooks::restored::RestoreInfo,
    infra::{
        clock,
        kube::{is_conflict, is_not_found, reason},
        metrics::Metrics,
    },
    plan::RestoreRef,
};

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(5);
/// How many runs go in one round: a large restore's runs end together, and must not be deleted in one burst.
const AT_ONCE: usize = 50;
/// After a round in which a deletion has failed.
const PAUSE: Duration = Duration::from_secs(60);

/// What the command line says about finished runs.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct RetentionArgs {
    /// How long finished HookRuns are kept, from their end (a Go duration such as 168h). 0 keeps them for ever.
    #[arg(long, default_value = "168h", value_parser = not_negative)]
    pub(super) ttl: GoDuration,
}

fn not_negative(text: &str) -> Result<GoDuration, String> {
    let duration: GoDuration = text.parse().map_err(|error| format!("{error}"))?;
    if duration.is_negative() {
        return Err(format!("{text:?} is negative"));
    }
    Ok(duration)
}

/// When a run may go: a time to live after its end. `None` for one that has not ended, or if runs are kept for ever.
fn due(run: &HookRun, ttl: GoDuration) -> Option<Timestamp> {
    let status = run.status.as_ref().filter(|status| status.phase.is_final())?;
    let ended = match &status.finished_at {
        Some(time) => time.0,
        None => run.metadata.creation_timestamp.as_ref()?.0,
    };
    (!ttl.is_zero())
        .then(|| ended.checked_add(ttl.to_signed()).ok())
        .flatten()
}

/// Deletes runs until `end` fires.
pub(super) async fn run(
    client: Client,
    queue: Arc<Queue>,
    restores: Arc<RestoreTable>,
    metrics: Arc<Metrics>,
    args: RetentionArgs,
    end: CancellationToken,
) -> Result<(), Infallible> {
    let sweeper = Sweeper {
        client,
        queue,
        restores,
        ttl: args.ttl,
    };
    let mut next_sweep = clock::now();
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            () = tokio::time::sleep(INTERVAL) => {}
        }
        counts::census(&metrics, sweeper.queue.census());
        let now = clock::now();
        if now < next_sweep {
            continue;
        }
        if !sweeper.sweep(now).await {
            next_sweep = now.saturating_add(PAUSE).unwrap_or(now);
        }
    }
}

struct Sweeper {
    client: Client,
    queue: Arc<Queue>,
    restores: Arc<RestoreTable>,
    ttl: GoDuration,
}

impl Sweeper {
    /// Deletes runs whose time is over; says whether all of them could be deleted.
    async fn sweep(&self, now: Timestamp) -> bool {
        let is_over = |run: &HookRun| due(run, self.ttl).is_some_and(|due| due <= now);
        let mut all_due = self.queue.runs_that(is_over);
        if all_due.is_empty() {
            return true;
        }
        // Without its run a pod whose init containers are still watched would be taken for a new one.
        let worked_on = self.queue.worked_on();
        let is_idle = |run: &HookRun| RunKey::of_run(run).is_some_and(|key| !worked_on.contains(&key));
        all_due.retain(|run| is_idle(run));
        if all_due.is_empty() {
            return true;
        }
        // A rerun is judged with all runs of its restore, so they go together.
        let kept: HashSet<String> = self
            .queue
            .runs_that(|run| !is_over(run) || !is_idle(run))
            .iter()
            .filter_map(|run| Some(run.spec.plan.restore.as_ref()?.uid.clone()))
            .collect();
        let may_go = |run: &HookRun| {
            let restore = run.spec.plan.restore.as_ref();
            restore.is_none_or(|restore| !kept.contains(&restore.uid)) && !self.is_held(run)
        };
        let mut all_gone = true;
        for run in all_due.iter().filter(|run| may_go(run)).take(AT_ONCE) {
            if let Err(error) = self.delete_if_settled(run).await {
                all_gone = false;
                tracing::warn!(
                    namespace = run.namespace(),
                    run = run.name_any(),
                    error = reason(&error),
                    "a finished HookRun could not be deleted; it is tried again"
                );
            }
        }
        all_gone
    }

    async fn delete_if_settled(&self, run: &HookRun) -> Result<(), kube::Error> {
        if let Some(restore) = &run.spec.plan.restore
            && self.is_open(restore).await?
        {
            return Ok(());
        }
        self.delete(run).await
    }

    /// The result of its restore is not written yet, as far as the watch has told.
    fn is_held(&self, run: &HookRun) -> bool {
        let restore = run.spec.plan.restore.as_ref();
        let known = restore.and_then(|restore| self.restores.get(&restore.uid));
        known.is_some_and(|restore| !restore.finished() || restore.result_is_open())
    }

    /// The same, asked of the API server: without this run the restore's result would be another.
    async fn is_open(&self, restore: &RestoreRef) -> Result<bool, kube::Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &restore.namespace, &resource());
        let object = api.get_opt(&restore.name).await?;
        let info = object.and_then(|object| RestoreInfo::read(&serde_json::to_value(object).ok()?));
        Ok(info.is_some_and(|info| info.uid == restore.uid && (!info.finished() || info.result_is_open())))
    }

    /// Deletes a run if it is still as it was judged: a rerun may have begun.
    async fn delete(&self, run: &HookRun) -> Result<(), kube::Error> {
        let name = run.name_any();
        let namespace = run.namespace().unwrap_or_default();
        let as_judged = DeleteParams {
            preconditions: Some(Preconditions {
                uid: run.uid(),
                resource_version: run.resource_version(),
            }),
            ..DeleteParams::default()
        };
        let api: Api<HookRun> = Api::namespaced(self.client.clone(), &namespace);
        match api.delete(&name, &as_judged).await {
            Ok(_) => tracing::info!(
                namespace,
                run = name,
                "a finished HookRun's time is over; it is deleted"
            ),
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(phase: &str, finished_at: Option<&str>) -> HookRun {
        serde_json::from_value(json!({
            "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun",
            "metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "pod": {"name": "p", "uid": "u", "createdAt": "2026-01-01T00:00:00Z"},
                "plan": {"version": 1, "plannedAt": "2026-01-01T00:00:00Z"},
            },
            "status": {"phase": phase, "finishedAt": finished_at},
        }))
        .unwrap()
    }

    #[test]
    fn a_run_goes_a_time_to_live_after_its_end() {
        let week: GoDuration = "168h".parse().unwrap();
        let day = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let finished = Some("2026-01-02T00:00:00.000000Z");
        assert_eq!(due(&run("Succeeded", finished), week), day("2026-01-09T00:00:00Z"));
        assert_eq!(due(&run("Stale", finished), week), day("2026-01-09T00:00:00Z"));
        assert_eq!(
            due(&run("Failed", None), week),
            day("2026-01-08T00:00:00Z"),
            "an old record without an end"
        );
        assert_eq!(due(&run("Running", finished), week), None);
        assert_eq!(due(&run("Succeeded", finished), GoDuration::ZERO), None, "0 keeps them");
        let longest = GoDuration::from_secs(i64::MAX / 1_000_000_000);
        assert!(due(&run("Succeeded", finished), longest).is_some());
        assert!(not_negative("-1h").is_err() && not_negative("7d").is_err());
    }
}
