use std::collections::BTreeMap;

use super::*;
use crate::{
    api::hook_run::{PodIdentity, RunPhase},
    hooks::{HookSource, OnError, Retry},
    plan::{self, Plan, PlannedInit},
    waiter::{attempt::record, begin::first_status},
};

const ME: &str = "me";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn hook(container: &str) -> PostHook {
    PostHook {
        name: format!("hook-{container}"),
        source: HookSource::Spec,
        container: container.to_owned(),
        command: vec!["x".to_owned()],
        on_error: OnError::Continue,
        exec_timeout: GoDuration::from_secs(30),
        wait_timeout: GoDuration::ZERO,
        wait_for_ready: false,
        retry: Retry::default(),
        result_file: None,
        error: None,
        left_to_velero: false,
        path: String::new(),
    }
}

fn spec(post: Vec<PostHook>) -> HookRunSpec {
    let plan = Plan {
        version: plan::VERSION,
        restore: None,
        planned_at: at(0),
        resolved: true,
        late_for: None,
        status_restored: false,
        post,
        init: vec![],
        moved: BTreeMap::new(),
        problems: vec![],
        digest: String::new(),
    };
    HookRunSpec {
        pod: PodIdentity {
            name: "p".to_owned(),
            uid: "u".to_owned(),
            created_at: at(0),
        },
        plan,
    }
}

/// A pod whose named containers run; `name!` is ready, too.
fn pod(running: &[&str]) -> PodView {
    let containers = running.iter().map(|text| {
        let name = text.trim_end_matches('!');
        (
            name.to_owned(),
            ContainerView {
                running: true,
                ready: text.ends_with('!'),
                ..ContainerView::default()
            },
        )
    });
    PodView {
        namespace: "n".to_owned(),
        identity: spec(vec![]).pod,
        version: None,
        plan: None,
        run_mark: None,
        queued: true,
        phase: "Running".to_owned(),
        reason: None,
        unscheduled: None,
        ending: false,
        declared: vec![],
        terminating: false,
        containers: containers.map(|(name, view)| (name, Box::new(view))).collect(),
    }
}

fn step(spec: &HookRunSpec, status: &HookRunStatus, pod: Option<&PodView>, second: i64) -> Step {
    asked(spec, status, pod, second, &Controls::default())
}

/// The same while people ask for something.
fn asked(spec: &HookRunSpec, status: &HookRunStatus, pod: Option<&PodView>, second: i64, controls: &Controls) -> Step {
    next(&Situation {
        spec,
        status,
        pod,
        now: at(second),
        process: ME,
        finishing: &BTreeMap::new(),
        run_limit: DEFAULT_RUN_LIMIT,
        failed_elsewhere: None,
        controls,
        report_after: SignedDuration::MAX,
        crowd: None,
    })
}

fn executed(step: Step) -> (usize, HookRunStatus) {
    match step {
        Step::Execute { hook, status } => (hook, status),
        other => panic!("expected an execution, not {other:?}"),
    }
}

fn recorded(step: Step) -> HookRunStatus {
    match step {
        Step::Record(status) => status,
        other => panic!("expected a record, not {other:?}"),
    }
}

fn states(status: &HookRunStatus) -> Vec<HookState> {
    status.post.iter().map(|state| state.state).collect()
}

fn exited(spec: &HookRunSpec, status: &HookRunStatus, hook: usize, code: i32) -> HookRunStatus {
    record(
        spec,
        status,
        hook,
        &Outcome::Exited(code),
        (String::new(), String::new()),
        at(9),
    )
}

#[test]
fn waits_runs_records_and_is_done() {
    let spec = spec(vec![hook("a")]);
    let first = first_status(&spec, at(0));
    assert_eq!(step(&spec, &first, Some(&pod(&[])), 1), Step::Wait(Some(at(86_400))));
    let (index, started) = executed(step(&spec, &first, Some(&pod(&["a"])), 2));
    assert_eq!(
        (index, started.post[0].state, started.phase),
        (0, HookState::Started, RunPhase::Running)
    );
    assert_eq!(started.post[0].attempts[0].claimed_by, ME);
    let ended = exited(&spec, &started, 0, 0);
    assert_eq!(
        (ended.phase, ended.post[0].attempts[0].exit_code),
        (RunPhase::Succeeded, Some(0))
    );
    assert_eq!(step(&spec, &ended, Some(&pod(&["a"])), 10), Step::Done);
}

#[test]
fn in_a_pod_one_after_another_and_nothing_holds_back_another_container() {
    let spec = spec(vec![hook("a"), hook("a"), hook("b")]);
    let first = first_status(&spec, at(0));
    let (index, started) = executed(step(&spec, &first, Some(&pod(&["b"])), 1));
    assert_eq!(index, 2);
    let after = exited(&spec, &started, 2, 0);
    let (index, started) = executed(step(&spec, &after, Some(&pod(&["a", "b"])), 3));
    assert_eq!(index, 0);
    let (index, _) = executed(step(&spec, &exited(&spec, &started, 0, 0), Some(&pod(&["a", "b"])), 4));
    assert_eq!(index, 1);
}

#[test]
fn a_start_that_this_process_recorded_but_did_not_begin_is_begun_without_a_second_attempt() {
    let spec = spec(vec![hook("a"), hook("b")]);
    let (_, started) = executed(step(&spec, &first_status(&spec, at(0)), Some(&pod(&["a", "b"])), 1));
    // Whatever has come up or gone since: this one first.
    for view in [Some(pod(&["a", "b"])), None] {
        let (index, again) = executed(step(&spec, &started, view.as_ref(), 99));
        assert_eq!((index, &again), (0, &started));
    }
}

#[test]
fn readiness_is_waited_for_where_asked_and_keeps_the_order() {
    let ready = PostHook {
        wait_for_ready: true,
        ..hook("a")
    };
    let spec = spec(vec![ready, hook("a")]);
    let first = first_status(&spec, at(0));
    assert!(matches!(step(&spec, &first, Some(&pod(&["a"])), 1), Step::Wait(_)));
    assert_eq!(executed(step(&spec, &first, Some(&pod(&["a!"])), 2)).0, 0);
}

#[test]
fn fail_cancels_what_has_not_started_and_continue_does_not() {
    for (on_error, phase, second) in [
        (OnError::Fail, RunPhase::Failed, HookState::Cancelled),
        (OnError::Continue, RunPhase::PartiallyFailed, HookState::Succeeded),
    ] {
        let spec = spec(vec![PostHook { on_error, ..hook("a") }, hook("b")]);
        let (_, started) = executed(step(&spec, &first_status(&spec, at(0)), Some(&pod(&["a", "b"])), 1));
        let failed = exited(&spec, &started, 0, 3);
        assert_eq!(failed.post[0].message, "exit code 3");
        let end = match step(&spec, &failed, Some(&pod(&["a", "b"])), 2) {
            Step::Execute { hook, status } => exited(&spec, &status, hook, 0),
            Step::Record(status) => status,
            other => panic!("{other:?}"),
        };
        assert_eq!((end.phase, end.post[1].state), (phase, second));
    }
}

#[test]
fn a_failure_elsewhere_in_the_restore_cancels_with_its_reason() {
    let spec = spec(vec![hook("a")]);
    let status = first_status(&spec, at(0));
    let running = pod(&["a"]);
    let situation = Situation {
        spec: &spec,
        status: &status,
        pod: Some(&running),
        now: at(1),
        process: ME,
        finishing: &BTreeMap::new(),
        run_limit: DEFAULT_RUN_LIMIT,
        failed_elsewhere: Some("hook x failed"),
        controls: &Controls::default(),
        report_after: SignedDuration::MAX,
        crowd: None,
    };
    let end = recorded(next(&situation));
    assert_eq!(
        (states(&end), end.post[0].message.as_str()),
        (vec![HookState::Cancelled], "hook x failed")
    );
}

#[test]
fn an_expired_wait_is_not_executed_even_if_the_container_comes_up_then() {
    let spec = spec(vec![PostHook {
        wait_timeout: GoDuration::from_secs(60),
        ..hook("a")
    }]);
    let first = first_status(&spec, at(0));
    assert_eq!(step(&spec, &first, Some(&pod(&[])), 59), Step::Wait(Some(at(60))));
    let end = recorded(step(&spec, &first, Some(&pod(&["a"])), 60));
    assert_eq!(
        (states(&end), end.phase),
        (vec![HookState::WaitTimedOut], RunPhase::PartiallyFailed)
    );
    assert!(end.post[0].message.contains("1m0s"));
}

#[test]
fn a_hook_without_a_limit_leaves_the_others_theirs() {
    let limited = PostHook {
        wait_timeout: GoDuration::from_secs(60),
        ..hook("b")
    };
    let spec = spec(vec![hook("a"), limited]);
    let first = first_status(&spec, at(0));
    assert_eq!(step(&spec, &first, Some(&pod(&[])), 1), Step::Wait(Some(at(60))));
    let ended = recorded(step(&spec, &first, Some(&pod(&[])), 61));
    assert_eq!(states(&ended), [HookState::Waiting, HookState::WaitTimedOut]);
}

#[test]
fn nothing_waits_longer_than_a_day() {
    let spec = spec(vec![hook("a")]);
    let end = recorded(step(&spec, &first_status(&spec, at(0)), Some(&pod(&[])), 86_400));
    assert_eq!(
        (end.post[0].state, end.post[0].reason.as_str()),
        (HookState::WaitTimedOut, "RunLimit")
    );
}

#[test]
fn what_another_process_started_is_unknown_and_not_run_again() {
    let spec = spec(vec![
        PostHook {
            on_error: OnError::Fail,
            ..hook("a")
        },
        hook("b"),
    ]);
    let (_, mut started) = executed(step(&spec, &first_status(&spec, at(0)), Some(&pod(&["a"])), 1));
    started.post[0].attempts[0].claimed_by = "somebody else".to_owned();
    let end = recorded(step(&spec, &started, Some(&pod(&["a", "b"])), 2));
    assert_eq!(
        (states(&end), end.phase),
        (vec![HookState::Unknown, HookState::Cancelled], RunPhase::Failed)
    );
}

#[test]
fn pods_that_go_away_end_the_run_in_words() {
    let spec = spec(vec![hook("a")]);
    let first = first_status(&spec, at(0));
    let mut terminating = pod(&["a"]);
    terminating.terminating = true;
    let mut ended = pod(&[]);
    ended.phase = "Succeeded".to_owned();
    for (pod, reason) in [
        (None, "PodGone"),
        (Some(&terminating), "PodDeleted"),
        (Some(&ended), "PodEnded"),
    ] {
        let end = recorded(step(&spec, &first, pod, 1));
        assert_eq!(
            (end.post[0].state, end.post[0].reason.as_str(), end.phase),
            (HookState::Cancelled, reason, RunPhase::PartiallyFailed)
        );
    }
}

#[test]
fn a_broken_hook_is_skipped_and_the_others_run() {
    let spec = spec(vec![
        PostHook {
            error: Some("bad".to_owned()),
            on_error: OnError::Fail,
            ..hook("a")
        },
        hook("b"),
    ]);
    let (index, started) = executed(step(&spec, &first_status(&spec, at(0)), Some(&pod(&["a", "b"])), 1));
    assert_eq!(index, 1);
    let end = exited(&spec, &started, 1, 0);
    assert_eq!(
        (states(&end), end.phase),
        (vec![HookState::Skipped, HookState::Succeeded], RunPhase::Failed)
    );
}

#[test]
fn success_needs_an_exit_code_of_zero_that_was_read() {
    let spec = spec(vec![hook("a")]);
    let (_, started) = executed(step(&spec, &first_status(&spec, at(0)), Some(&pod(&["a"])), 1));
    let timed_out = Outcome::TimedOut {
        limit: GoDuration::from_secs(5),
        ended: false,
    };
    for (outcome, state) in [
        (Outcome::Exited(1), HookState::Failed),
        (Outcome::Refused("no such file".to_owned()), HookState::Failed),
        (timed_out, HookState::ExecTimedOut),
        (Outcome::Lost("reset".to_owned()), HookState::Unknown),
    ] {
        let end = record(
            &spec,
            &started,
            0,
            &outcome,
            ("out".to_owned(), "err".to_owned()),
            at(3),
        );
        assert_eq!(
            (end.post[0].state, end.phase),
            (state, RunPhase::PartiallyFailed),
            "{outcome:?}"
        );
        assert_eq!(end.post[0].attempts[0].stdout, "out");
    }
}

fn with_init() -> HookRunSpec {
    let mut spec = spec(vec![]);
    spec.plan.init.push(PlannedInit {
        name: "i".to_owned(),
        source: HookSource::Annotation,
        container: "prepare".to_owned(),
        timeout: GoDuration::ZERO,
        error: None,
        missed: false,
    });
    spec
}

#[test]
fn init_containers_are_observed_and_never_fail_the_run() {
    let spec = with_init();
    let first = first_status(&spec, at(0));
    let ended = |code| {
        let mut pod = pod(&[]);
        let view = ContainerView {
            ended: Some(super::super::pod_view::Ended {
                exit_code: code,
                at: Some(at(5)),
                started_at: Some(at(4)),
            }),
            ..ContainerView::default()
        };
        pod.containers.insert("prepare".to_owned(), view.into());
        pod
    };
    let failing = recorded(step(&spec, &first, Some(&ended(7)), 6));
    assert_eq!(
        (failing.init[0].state, failing.init[0].exit_code, failing.phase),
        (InitState::Failed, Some(7), RunPhase::Pending)
    );
    let end = recorded(step(&spec, &failing, Some(&ended(0)), 7));
    assert_eq!(
        (end.init[0].state, end.phase),
        (InitState::Succeeded, RunPhase::Succeeded)
    );
    let gone = recorded(step(&spec, &first, None, 7));
    assert_eq!(
        (gone.init[0].state, gone.phase),
        (InitState::Unknown, RunPhase::Succeeded)
    );
}

#[test]
fn an_init_container_that_takes_too_long_is_recorded_and_holds_nothing_up() {
    let mut spec = with_init();
    spec.plan.init[0].timeout = GoDuration::from_secs(60);
    let first = first_status(&spec, at(0));
    let mut pod = pod(&[]);
    let running = ContainerView {
        running: true,
        started_at: Some(at(10)),
        ..ContainerView::default()
    };
    pod.containers.insert("prepare".to_owned(), running.into());
    let seen = recorded(step(&spec, &first, Some(&pod), 11));
    assert_eq!(step(&spec, &seen, Some(&pod), 12), Step::Wait(Some(at(70))));
    let end = recorded(step(&spec, &seen, Some(&pod), 70));
    assert_eq!(
        (end.init[0].state, end.phase),
        (InitState::TimedOut, RunPhase::Succeeded)
    );
}

mod any_order;
mod controls;

/// A run whose hook has waited too long, because its pod's init container hangs: it ends at 60, and the container may run
/// until 120.
fn outlasted() -> (HookRunSpec, HookRunStatus, PodView) {
    let mut spec = with_init();
    spec.plan.init[0].timeout = GoDuration::from_secs(110);
    spec.plan.post = vec![PostHook {
        wait_timeout: GoDuration::from_secs(60),
        ..hook("main")
    }];
    let mut pod = pod(&[]);
    let running = ContainerView {
        running: true,
        started_at: Some(at(10)),
        ..ContainerView::default()
    };
    pod.containers.insert("prepare".to_owned(), running.into());
    let end = recorded(step(&spec, &first_status(&spec, at(0)), Some(&pod), 60));
    assert_eq!(
        (end.phase, end.post[0].state, end.init[0].state),
        (RunPhase::PartiallyFailed, HookState::WaitTimedOut, InitState::Running)
    );
    (spec, end, pod)
}

/// That the verdict is the same.
fn assert_same_verdict(old: &HookRunStatus, new: &HookRunStatus) {
    assert_eq!(
        (old.phase, &old.post, &old.finished_at, &old.message),
        (new.phase, &new.post, &new.finished_at, &new.message)
    );
}

#[test]
fn init_containers_that_outlast_the_run_are_watched_to_their_end() {
    let (spec, end, mut pod) = outlasted();
    assert_eq!(step(&spec, &end, Some(&pod), 61), Step::Wait(Some(at(120))));
    let late = recorded(step(&spec, &end, Some(&pod), 120));
    assert_eq!(late.init[0].state, InitState::TimedOut);
    assert!(
        late.conditions
            .iter()
            .any(|condition| condition.type_ == "InitTimedOut" && condition.status == "True")
    );
    assert_same_verdict(&end, &late);
    let limit = at(DEFAULT_RUN_LIMIT.as_secs());
    assert_eq!(step(&spec, &late, Some(&pod), 121), Step::Wait(Some(limit)));
    // In the end it ends.
    pod.containers.insert("prepare".to_owned(), init_ended(3).into());
    let known = recorded(step(&spec, &late, Some(&pod), 130));
    assert_eq!(
        (known.init[0].state, known.init[0].exit_code),
        (InitState::TimedOut, Some(3))
    );
    assert_same_verdict(&end, &known);
    assert_eq!(step(&spec, &known, Some(&pod), 131), Step::Done);
}

fn init_ended(code: i32) -> ContainerView {
    ContainerView {
        ended: Some(super::super::pod_view::Ended {
            exit_code: code,
            at: Some(at(80)),
            started_at: Some(at(10)),
        }),
        ..ContainerView::default()
    }
}

#[test]
fn the_watch_over_init_containers_ends_with_the_pod_and_with_the_limit_of_the_run() {
    let (spec, end, mut pod) = outlasted();
    let gone = recorded(step(&spec, &end, None, 70));
    assert_eq!(gone.init[0].state, InitState::Unknown);
    assert_eq!(step(&spec, &gone, None, 71), Step::Done);
    let over = recorded(step(&spec, &end, Some(&pod), DEFAULT_RUN_LIMIT.as_secs()));
    assert_ne!(over.init[0].state, InitState::Running);
    assert_eq!(
        step(&spec, &over, Some(&pod), DEFAULT_RUN_LIMIT.as_secs() + 1),
        Step::Done
    );
    // A pod that is being deleted still ends its containers; one that has ended does not.
    pod.terminating = true;
    assert!(matches!(step(&spec, &end, Some(&pod), 70), Step::Wait(_)));
    "Failed".clone_into(&mut pod.phase);
    let ended = recorded(step(&spec, &end, Some(&pod), 71));
    assert_eq!(ended.init[0].state, InitState::Unknown);
    assert_same_verdict(&end, &ended);
    assert_eq!(step(&spec, &ended, Some(&pod), 72), Step::Done);
}

#[test]
fn an_init_container_that_crashes_after_the_end_is_told_once() {
    let (spec, end, mut pod) = outlasted();
    pod.containers.insert("prepare".to_owned(), init_ended(1).into());
    let failed = recorded(step(&spec, &end, Some(&pod), 80));
    assert_eq!(
        (failed.init[0].state, failed.init[0].exit_code),
        (InitState::Failed, Some(1))
    );
    let again = ContainerView {
        running: true,
        ..init_ended(1)
    };
    pod.containers.insert("prepare".to_owned(), again.into());
    assert!(matches!(step(&spec, &failed, Some(&pod), 81), Step::Wait(_)));
    pod.containers.insert("prepare".to_owned(), init_ended(0).into());
    let well = recorded(step(&spec, &failed, Some(&pod), 90));
    assert_eq!(well.init[0].state, InitState::Succeeded);
    assert_eq!(step(&spec, &well, Some(&pod), 91), Step::Done);
}
