//! What the restores so far show.

use super::{Finding, some};
use crate::{api::hook_run::InitState, cli::check::facts::Facts};

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![unplanned(facts), missed(facts), unserved(facts)];
    found.extend(unmarked(facts));
    found
}

/// Pods whose hooks are lost if nobody does anything.
fn unplanned(facts: &Facts) -> Finding {
    const CHECK: &str = "unplanned-pods";
    match &facts.unplanned {
        Ok(pods) if pods.is_empty() => Finding::ok(CHECK, "each restored pod with hooks has its plan"),
        Ok(pods) => Finding::error(
            CHECK,
            format!("restored pods with hooks that nobody planned: {}", some(pods)),
            "the webhook was not asked when they were created; if the waiter is alive it plans them within seconds while their Restore \
             runs; of a Restore that is over, restore again or run the commands by hand",
        ),
        Err(reason) => Finding::unknown(CHECK, format!("restored pods: {reason}")),
    }
}

/// Pods that the waiter found after the webhook was not asked.
fn missed(facts: &Facts) -> Finding {
    const CHECK: &str = "missed-admissions";
    let runs = match &facts.runs {
        Ok(runs) => runs,
        Err(reason) => return Finding::unknown(CHECK, format!("HookRuns: {reason}")),
    };
    let missed = runs.iter().filter(|run| {
        let mut init = run.status.iter().flat_map(|status| &status.init);
        run.spec.plan.late_for.is_some() || init.any(|init| init.state == InitState::InjectionMissed)
    });
    let pods: Vec<String> = missed
        .map(|run| {
            format!(
                "{}/{}",
                run.metadata.namespace.as_deref().unwrap_or_default(),
                run.spec.pod.name
            )
        })
        .collect();
    if pods.is_empty() {
        return Finding::ok(CHECK, "the webhook was asked about every restored pod with hooks");
    }
    Finding::warning(
        CHECK,
        format!(
            "the webhook was not asked about these pods (their hooks were planned late, their init hooks are missing): {}",
            some(&pods)
        ),
        "see `reveille status`; run at least two replicas, and install Reveille before the restore; old HookRuns may be deleted",
    )
}

fn unserved(facts: &Facts) -> Finding {
    const CHECK: &str = "unserved-pods";
    match &facts.unserved {
        Ok(pods) if pods.is_empty() => Finding::ok(CHECK, "no restored controller has made pods with hooks by itself"),
        Ok(pods) => {
            let names: Vec<String> = pods
                .iter()
                .map(|pod| format!("{}/{} (by {})", pod.namespace, pod.pod, pod.controller))
                .collect();
            Finding::warning(
                CHECK,
                format!(
                    "pods with hooks that a restored controller made by itself, so that their hooks do not run: {}",
                    some(&names)
                ),
                "back up and restore the pods with their controllers, and run the commands by hand in these",
            )
        }
        Err(reason) => Finding::unknown(CHECK, format!("pods of restored controllers: {reason}")),
    }
}

fn unmarked(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "unmarked-restores";
    match &facts.unmarked {
        Ok(names) if names.is_empty() => None,
        Ok(names) => Some(Finding::warning(
            CHECK,
            format!(
                "these Restores are not marked as Reveille's, so Velero runs their hooks: {}",
                some(names)
            ),
            "they were made while the webhook was not reached; see the findings about it above",
        )),
        Err(reason) => Some(Finding::unknown(CHECK, format!("Velero's Restores: {reason}"))),
    }
}
