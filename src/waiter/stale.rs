//! Runs whose Restore is gone: what has not begun never will. Pure.

use jiff::Timestamp;

use super::{attempt::call_off, begin::stale_status, conditions, end::conclude};
use crate::{
    api::hook_run::{HookRunSpec, HookRunStatus, HookState},
    plan::RestoreRef,
};

/// The status of a run whose Restore was deleted; `None` if nothing is to be changed. A command that has been started is
/// finished and recorded; the run is Stale only if none ever was.
pub(super) fn without_restore(
    spec: &HookRunSpec,
    restore: &RestoreRef,
    status: &HookRunStatus,
    now: Timestamp,
) -> Option<HookRunStatus> {
    if status.phase.is_final() {
        return None;
    }
    let RestoreRef { namespace, name, .. } = restore;
    let message = format!("Restore {namespace}/{name} was deleted before the hook had been started");
    if status.post.iter().all(|post| post.attempts.is_empty()) {
        return Some(stale_status(spec, &message, now));
    }
    let mut new = status.clone();
    for post in new.post.iter_mut().filter(|post| post.state == HookState::Waiting) {
        call_off(post, HookState::Cancelled, "RestoreGone", &message);
    }
    if new.post == status.post {
        return None;
    }
    conclude(spec, &mut new, true, now);
    conditions::refresh(&mut new, now);
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{HookRun, hook_run::RunPhase},
        waiter::begin::first_status,
    };
    use serde_json::json;

    #[test]
    fn what_has_begun_is_finished_and_nothing_else_begins() {
        let hook = json!({"name": "h", "source": "spec", "container": "c", "command": ["x"], "execTimeout": "30s"});
        let restore = json!({"namespace": "velero", "name": "r", "uid": "ru"});
        let run: HookRun = serde_json::from_value(json!({
            "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {},
            "spec": {
                "pod": {"name": "p", "uid": "u", "createdAt": "2026-01-01T00:00:00Z"},
                "plan": {"version": 1, "plannedAt": "2026-01-01T00:00:00Z", "restore": restore, "post": [hook, hook]},
            },
        }))
        .unwrap();
        let (spec, now) = (&run.spec, "2026-01-01T00:01:00Z".parse().unwrap());
        let restore = spec.plan.restore.as_ref().unwrap();
        let first = first_status(spec, now);
        let stale = without_restore(spec, restore, &first, now).unwrap();
        assert_eq!(
            (stale.phase, stale.post[0].state),
            (RunPhase::Stale, HookState::Skipped)
        );
        assert!(stale.message.contains("velero/r"), "{}", stale.message);
        assert_eq!(without_restore(spec, restore, &stale, now), None);

        let mut running = first;
        running.post[0].state = HookState::Started;
        let attempt = json!({"number": 1, "claimedBy": "me", "startedAt": "2026-01-01T00:00:30.000000Z"});
        running.post[0].attempts = vec![serde_json::from_value(attempt).unwrap()];
        let cancelled = without_restore(spec, restore, &running, now).unwrap();
        assert_eq!(
            (cancelled.post[0].state, cancelled.post[1].state),
            (HookState::Started, HookState::Cancelled)
        );
        assert!(!cancelled.phase.is_final());
        assert_eq!(
            without_restore(spec, restore, &cancelled, now),
            None,
            "its end is waited for"
        );
    }
}
