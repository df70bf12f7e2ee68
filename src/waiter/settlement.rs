//! What to write on a Velero Restore about its hooks. Pure: decided on the Restore as it is at that moment.
//!
//! Velero goes on writing its Restores after their end, and so may others. What Reveille has written is kept beside it
//! ([`Written`]), so that it can be told from Velero's part, and be put back when it was overwritten.

use serde_json::{Map, Value, json};

use crate::{
    api::HookRun,
    hooks::restored::{HookCounts, RestoreInfo},
    names::{RESULT_ANNOTATION, WRITTEN_ANNOTATION},
    result::{self, Verdict, Written},
};

/// What to do about a Restore.
#[derive(Clone, Debug, PartialEq)]
pub enum Settlement {
    /// Nothing.
    Leave,
    /// A rerun has begun: its result is open again. A merge patch.
    Reopen(Value),
    /// A result is there: a merge patch.
    Write(Value),
    /// What was written has been overwritten since: a merge patch that puts it back.
    Repair(Value),
}

/// Decides. `verdict` was given for this Restore and these runs.
pub fn settle(restore: &RestoreInfo, verdict: &Verdict, runs: &[&HookRun]) -> Settlement {
    if !restore.marked || !restore.finished() || restore.deleting || restore.phase == "Deleting" {
        return Settlement::Leave;
    }
    let written = Written::standing(restore);
    let judged_before = written.as_ref().and_then(|written| written.rerun);
    let newest_rerun = result::newest_rerun(runs);
    let is_judged = written.is_some() && newest_rerun <= judged_before;
    match (verdict, &written) {
        (_, Some(written)) if is_judged => repair(restore, written),
        (Verdict::Pending(_), Some(_)) if !restore.result_is_open() => {
            Settlement::Reopen(json!({"metadata": {"annotations": {RESULT_ANNOTATION: verdict.word()}}}))
        }
        (Verdict::Pending(_), _) => Settlement::Leave,
        // Nobody promised anything.
        (_, None) if !restore.result_is_open() => Settlement::Leave,
        (Verdict::Succeeded | Verdict::Failed(_), _) => {
            // Of runs that are gone the record knows more than what is left.
            let own = match &written {
                Some(written) if written.gone(runs) > 0 => written.own,
                _ => result::counts(runs),
            };
            let fails = matches!(verdict, Verdict::Failed(_));
            // What a failure has made of the phase stays, also if a rerun succeeds: the restore did not go well at first.
            let made_bad = written.as_ref().is_some_and(|written| written.partially_failed);
            let new = Written {
                result: verdict.word().to_owned(),
                own,
                total: velero_counts(restore, written.as_ref()).plus(own),
                partially_failed: made_bad || (fails && restore.phase == "Completed"),
                rerun: newest_rerun.max(judged_before),
            };
            Settlement::Write(patch(&new, restore))
        }
    }
}

/// What of the record does not stand on the Restore any more is written again.
fn repair(restore: &RestoreInfo, written: &Written) -> Settlement {
    let result_is_there = restore.result.as_deref() == Some(written.result.as_str());
    let phase_is_there = !(written.partially_failed && restore.phase == "Completed");
    let counts_are_there = written.own.attempted == 0 || restore.hook_counts == written.total;
    if result_is_there && phase_is_there && counts_are_there {
        return Settlement::Leave;
    }
    let total = velero_counts(restore, Some(written)).plus(written.own);
    let new = Written {
        total,
        ..written.clone()
    };
    Settlement::Repair(patch(&new, restore))
}

/// The hooks that Velero has counted itself: those that were left to it.
fn velero_counts(restore: &RestoreInfo, written: Option<&Written>) -> HookCounts {
    let there = restore.hook_counts;
    match written {
        // As we left it.
        Some(written) if there == written.total => there.minus(written.own),
        _ => there,
    }
}

fn patch(written: &Written, restore: &RestoreInfo) -> Value {
    let mut status = Map::new();
    if written.own.attempted > 0 {
        let HookCounts { attempted, failed } = written.total;
        status.insert(
            "hookStatus".to_owned(),
            json!({"hooksAttempted": attempted, "hooksFailed": failed}),
        );
    }
    if written.partially_failed && restore.phase == "Completed" {
        status.insert("phase".to_owned(), json!("PartiallyFailed"));
    }
    json!({
        "metadata": {"annotations": {
            RESULT_ANNOTATION: written.result,
            WRITTEN_ANNOTATION: written.to_annotation(),
        }},
        "status": status,
    })
}

#[cfg(test)]
mod tests;
