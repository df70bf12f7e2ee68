//! What people ask for: cancel, pause, rerun.

use super::*;
use crate::{
    api::hook_run::Rerun,
    control::{Request, RerunRequest},
};

pub(super) fn request(id: &str) -> Request {
    Request {
        id: id.to_owned(),
        by: "alice".to_owned(),
        at: Some(at(50)),
        reason: "because".to_owned(),
    }
}

fn cancel(id: &str) -> Controls {
    Controls {
        cancel: vec![request(id)],
        ..Controls::default()
    }
}

fn pause() -> Controls {
    Controls {
        pause: Some(request("p")),
        ..Controls::default()
    }
}

fn rerun(id: &str, hook: Option<&str>) -> Controls {
    Controls {
        rerun: Some(RerunRequest {
            request: request(id),
            hook: hook.map(str::to_owned),
        }),
        ..Controls::default()
    }
}

fn fail(container: &str) -> PostHook {
    PostHook {
        on_error: OnError::Fail,
        ..hook(container)
    }
}

/// A run of two hooks whose first, with onError Fail, ended with exit code 3, so that the second was cancelled.
fn failed() -> (HookRunSpec, HookRunStatus) {
    let spec = spec(vec![fail("a"), hook("b")]);
    let (_, started) = executed(step(&spec, &first_status(&spec, at(0)), Some(&pod(&["a"])), 1));
    let end = recorded(step(&spec, &exited(&spec, &started, 0, 3), Some(&pod(&["a"])), 10));
    assert_eq!(states(&end), [HookState::Failed, HookState::Cancelled]);
    (spec, end)
}

#[test]
fn cancelled_is_what_has_not_started_and_who_did_it_is_said() {
    let spec = spec(vec![hook("a"), fail("b")]);
    let first = first_status(&spec, at(0));
    let end = recorded(asked(&spec, &first, Some(&pod(&["a", "b"])), 60, &cancel("c")));
    assert_eq!(
        (states(&end), end.phase),
        (vec![HookState::Cancelled; 2], RunPhase::Failed)
    );
    assert_eq!(end.post[0].reason, "CancelledByUser");
    assert_eq!(
        end.post[0].message,
        "cancelled by alice at 1970-01-01T00:00:50Z: because"
    );
    assert_eq!(end.cancelled, Some(request("c")));
}

#[test]
fn a_command_that_runs_is_let_finish_and_recorded_as_it_ends() {
    let spec = spec(vec![hook("a"), hook("b")]);
    let (_, started) = executed(step(&spec, &first_status(&spec, at(0)), Some(&pod(&["a", "b"])), 1));
    // The shell asks when the command has ended.
    let ended = exited(&spec, &started, 0, 0);
    let end = recorded(asked(&spec, &ended, Some(&pod(&["a", "b"])), 60, &cancel("c")));
    assert_eq!(states(&end), [HookState::Succeeded, HookState::Cancelled]);
}

#[test]
fn while_paused_nothing_starts_nothing_times_out_and_the_clock_stands_still() {
    let spec = spec(vec![PostHook {
        wait_timeout: GoDuration::from_secs(60),
        ..hook("a")
    }]);
    let first = first_status(&spec, at(0));
    let up = pod(&["a"]);
    let paused = recorded(asked(&spec, &first, Some(&up), 40, &pause()));
    assert_eq!(paused.message, "paused by alice at 1970-01-01T00:00:50Z: because");
    let is_paused = |status: &HookRunStatus| {
        let condition = status.conditions.iter().find(|condition| condition.type_ == "Paused");
        condition.map(|condition| (condition.status.clone(), condition.last_transition_time.0))
    };
    assert_eq!(is_paused(&paused), Some(("True".to_owned(), at(40))));
    // However long, and whoever asks: a waiter that has just started, too.
    assert_eq!(asked(&spec, &paused, Some(&up), 100_000, &pause()), Step::Wait(None));
    // 40 of 60 seconds had gone by.
    let down = pod(&[]);
    let goes_on = recorded(step(&spec, &paused, Some(&down), 100_000));
    assert_eq!(goes_on.paused_since, None);
    assert_eq!(is_paused(&goes_on), Some(("False".to_owned(), at(100_000))));
    assert_eq!(
        step(&spec, &goes_on, Some(&down), 100_001),
        Step::Wait(Some(at(100_020)))
    );
    let end = recorded(step(&spec, &goes_on, Some(&down), 100_020));
    assert_eq!(states(&end), [HookState::WaitTimedOut]);
    assert!(
        end.post[0].message.contains("pauses not counted"),
        "{}",
        end.post[0].message
    );
}

#[test]
fn a_paused_run_starts_when_it_is_resumed_and_ends_with_its_pod() {
    let spec = spec(vec![hook("a")]);
    let paused = recorded(asked(
        &spec,
        &first_status(&spec, at(0)),
        Some(&pod(&["a"])),
        1,
        &pause(),
    ));
    let (_, started) = executed(step(&spec, &paused, Some(&pod(&["a"])), 9));
    assert_eq!(
        (started.paused_since, started.paused_for),
        (None, GoDuration::from_secs(8))
    );
    let gone = recorded(asked(&spec, &paused, None, 9, &pause()));
    assert_eq!(
        (states(&gone), gone.paused_since.is_some()),
        (vec![HookState::Cancelled], false)
    );
    let cancelled = Controls {
        cancel: vec![request("c")],
        ..pause()
    };
    let end = recorded(asked(&spec, &paused, Some(&pod(&["a"])), 9, &cancelled));
    assert_eq!(end.post[0].reason, "CancelledByUser");
}

#[test]
fn what_did_not_succeed_runs_again_and_the_result_follows() {
    let (spec, end) = failed();
    let both = pod(&["a", "b"]);
    let again = recorded(asked(&spec, &end, Some(&both), 20, &rerun("r", None)));
    assert_eq!(
        (states(&again), again.phase),
        (vec![HookState::Waiting; 2], RunPhase::Running)
    );
    assert_eq!(again.reruns[0].hooks, ["hook-a", "hook-b"]);
    // The annotation still stands there: it counts once.
    let (index, started) = executed(asked(&spec, &again, Some(&both), 21, &rerun("r", None)));
    assert_eq!(
        (
            index,
            started.post[0].attempts.len(),
            started.post[0].attempts[1].number
        ),
        (0, 2, 2)
    );
    let (_, started) = executed(step(&spec, &exited(&spec, &started, 0, 0), Some(&both), 22));
    let end = exited(&spec, &started, 1, 0);
    assert_eq!(
        (states(&end), end.phase),
        (vec![HookState::Succeeded; 2], RunPhase::Succeeded)
    );
    assert_eq!(asked(&spec, &end, Some(&both), 30, &rerun("r", None)), Step::Done);
    // Nothing is left to run again; that, too, is said once.
    let refused = recorded(asked(&spec, &end, Some(&both), 31, &rerun("r2", None)));
    assert!(
        refused.reruns[1]
            .refused
            .as_ref()
            .unwrap()
            .contains("nothing to run again")
    );
    assert_eq!((&refused.post, refused.phase), (&end.post, end.phase));
    assert_eq!(asked(&spec, &refused, Some(&both), 32, &rerun("r2", None)), Step::Done);
}

#[test]
fn one_hook_runs_again_whatever_failed_before_it_and_elsewhere() {
    let (spec, end) = failed();
    let both = pod(&["a", "b"]);
    let again = recorded(asked(&spec, &end, Some(&both), 20, &rerun("r", Some("hook-b"))));
    assert_eq!(states(&again), [HookState::Failed, HookState::Waiting]);
    let controls = Controls::default();
    let situation = Situation {
        spec: &spec,
        status: &again,
        pod: Some(&both),
        now: at(21),
        process: ME,
        failed_elsewhere: Some("elsewhere"),
        controls: &controls,
        finishing: &BTreeMap::new(),
        run_limit: DEFAULT_RUN_LIMIT,
        report_after: SignedDuration::MAX,
        crowd: None,
    };
    let (index, started) = executed(next(&situation));
    assert_eq!(index, 1);
    assert_eq!(exited(&spec, &started, 1, 0).phase, RunPhase::Failed);
}

#[test]
fn a_failure_in_a_rerun_cancels_the_rest_of_it() {
    let (spec, end) = failed();
    let both = pod(&["a", "b"]);
    let again = recorded(asked(&spec, &end, Some(&both), 20, &rerun("r", None)));
    let (_, started) = executed(step(&spec, &again, Some(&both), 21));
    let end = recorded(step(&spec, &exited(&spec, &started, 0, 4), Some(&both), 22));
    assert_eq!(
        (states(&end), end.phase),
        (vec![HookState::Failed, HookState::Cancelled], RunPhase::Failed)
    );
}

#[test]
fn the_clock_of_a_rerun_starts_with_it() {
    let spec = spec(vec![PostHook {
        wait_timeout: GoDuration::from_secs(60),
        ..hook("a")
    }]);
    let end = recorded(step(&spec, &first_status(&spec, at(0)), Some(&pod(&[])), 60));
    let again = recorded(asked(&spec, &end, Some(&pod(&[])), 1000, &rerun("r", None)));
    assert_eq!(step(&spec, &again, Some(&pod(&[])), 1001), Step::Wait(Some(at(1060))));
    let end = recorded(step(&spec, &again, Some(&pod(&[])), 1060));
    assert!(
        end.post[0].message.contains("after the rerun was taken in"),
        "{}",
        end.post[0].message
    );
}

#[test]
fn a_rerun_leaves_earlier_cancellations_behind_and_obeys_later_ones() {
    let spec = spec(vec![hook("a")]);
    let up = pod(&["a"]);
    let end = recorded(asked(&spec, &first_status(&spec, at(0)), Some(&up), 60, &cancel("c")));
    let both = Controls {
        cancel: vec![request("c")],
        ..rerun("r", None)
    };
    let again = recorded(asked(&spec, &end, Some(&up), 70, &both));
    assert_eq!(again.cancelled, None);
    executed(asked(&spec, &again, Some(&up), 71, &both));
    let later = Controls {
        cancel: vec![request("c"), request("d")],
        ..rerun("r", None)
    };
    let end = recorded(asked(&spec, &again, Some(&up), 71, &later));
    assert_eq!(
        (states(&end), end.cancelled),
        (vec![HookState::Cancelled], Some(request("d")))
    );
}

#[test]
fn what_can_not_run_again_is_refused_in_words() {
    let (spec, end) = failed();
    let both = pod(&["a", "b"]);
    let mut terminating = both.clone();
    terminating.terminating = true;
    let stale = crate::waiter::begin::stale_status(&spec, "old", at(1));
    let open = first_status(&spec, at(0));
    for (status, view, hook, words) in [
        (&open, Some(&both), None, "has not ended"),
        (&stale, Some(&both), None, "Stale"),
        (&end, None, None, "pod p is not there any more: the pod was deleted"),
        (
            &end,
            Some(&terminating),
            None,
            "pod p is not there any more: the pod is being deleted",
        ),
        (
            &end,
            Some(&both),
            Some("nonsense"),
            "no hook \"nonsense\" in this run; it has: hook-a, hook-b",
        ),
    ] {
        let new = recorded(asked(&spec, status, view, 20, &rerun("r", hook)));
        let refused = new.reruns.last().unwrap().refused.clone().unwrap();
        assert!(refused.contains(words), "{refused}");
        assert_eq!((&new.post, new.phase), (&status.post, status.phase));
    }
}

#[test]
fn only_the_latest_requests_are_remembered_and_the_current_one_always() {
    let (spec, end) = failed();
    let both = pod(&["a", "b"]);
    let mut status = recorded(asked(&spec, &end, Some(&both), 20, &rerun("first", None)));
    for number in 0..50 {
        status = recorded(asked(
            &spec,
            &status,
            Some(&both),
            21,
            &rerun(&format!("r{number}"), None),
        ));
    }
    let taken: Vec<&Rerun> = status.reruns.iter().filter(|rerun| rerun.refused.is_none()).collect();
    assert_eq!((status.reruns.len(), taken.len()), (20, 1));
    assert_eq!(
        (taken[0].request.id.as_str(), status.last_rerun()),
        ("first", Some(taken[0]))
    );
    assert_eq!(status.reruns[19].request.id, "r49");
}
