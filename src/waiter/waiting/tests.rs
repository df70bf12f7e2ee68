use std::collections::BTreeMap;

use super::*;
use crate::{
    api::{HookRun, hook_run::RunPhase},
    control::Controls,
    waiter::{
        begin::first_status,
        redact::Redactor,
        step::{DEFAULT_RUN_LIMIT, Step, next},
    },
};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A run with these hooks and init containers, in a pod that was created at 0.
fn run(post: Value, init: Value) -> HookRunSpec {
    let run = json!({
        "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {},
        "spec": {
            "pod": {"name": "p", "uid": "u", "createdAt": at(0).to_string()},
            "plan": {"version": 1, "plannedAt": at(0).to_string(), "post": post, "init": init},
        },
    });
    serde_json::from_value::<HookRun>(run).unwrap().spec
}

fn hook(container: &str, ready: bool) -> Value {
    json!({"name": "h", "source": "spec", "container": container, "command": ["x"], "execTimeout": "30s", "waitForReady": ready})
}

/// One hook in `main`.
fn one() -> HookRunSpec {
    run(json!([hook("main", false)]), json!([]))
}

fn pod(policy: &str, status: Value) -> PodView {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"namespace": "n", "name": "p", "uid": "u", "creationTimestamp": at(0).to_string()},
        "spec": {
            "restartPolicy": policy,
            "initContainers": [{"name": "prepare"}, {"name": "sidecar", "restartPolicy": "Always"}],
            "containers": [{"name": "main"}, {"name": "other"}],
        },
        "status": status,
    }))
    .unwrap();
    PodView::read(&pod, Redactor::built_in()).unwrap()
}

fn container(name: &str, state: Value) -> Value {
    json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

/// A pod whose container `main` is in this state.
fn main_is(policy: &str, state: Value) -> PodView {
    pod(
        policy,
        json!({"phase": "Running", "containerStatuses": [container("main", state)]}),
    )
}

fn said(spec: &HookRunSpec, pod: &PodView) -> (String, String) {
    let waiting = reason(spec, &first_status(spec, at(0)), Some(pod), None).expect("it waits");
    (waiting.reason, waiting.message)
}

#[test]
fn says_in_the_kubelets_word_and_ours_what_it_waits_for() {
    let terminated = json!({"terminated": {"exitCode": 3}});
    let init = |state| {
        pod(
            "Always",
            json!({
                "phase": "Pending",
                "initContainerStatuses": [container("prepare", state), container("sidecar", json!({"waiting": {"reason": "PodInitializing"}}))],
                "containerStatuses": [container("main", json!({"waiting": {"reason": "PodInitializing"}}))],
            }),
        )
    };
    let unschedulable = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"},
    ]});
    for (pod, word, words) in [
        (
            pod("Always", unschedulable),
            "Unschedulable",
            "the pod has no node (Unschedulable: 0/1 nodes are available)",
        ),
        (
            pod("Always", json!({})),
            "ContainerNotRunning",
            "container main does not run yet",
        ),
        (
            main_is(
                "Always",
                json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image \"x\""}}),
            ),
            "ImagePullBackOff",
            "container main does not run (ImagePullBackOff: Back-off pulling image \"x\")",
        ),
        (
            main_is("Always", terminated.clone()),
            "ContainerNotRunning",
            "container main does not run (it has ended with exit code 3)",
        ),
        (
            init(json!({"waiting": {"reason": "CrashLoopBackOff"}})),
            "CrashLoopBackOff",
            "init container prepare has not ended (CrashLoopBackOff)",
        ),
        (
            init(json!({"running": {}})),
            "PodInitializing",
            "init container prepare has not ended (it runs)",
        ),
    ] {
        assert_eq!(said(&one(), &pod), (word.to_owned(), words.to_owned()));
    }
    let ready = run(json!([hook("main", true)]), json!([]));
    let running = main_is("Always", json!({"running": {}}));
    assert_eq!(said(&ready, &running).0, "ContainerNotReady");
    let spec = one();
    assert_eq!(
        reason(&spec, &first_status(&spec, at(0)), Some(&running), None),
        None,
        "it can start"
    );
    let init_only = run(
        json!([]),
        json!([{"name": "i", "source": "spec", "container": "prepare"}]),
    );
    let (word, words) = said(&init_only, &init(json!({"waiting": {"reason": "ErrImagePull"}})));
    assert_eq!(word, "ErrImagePull");
    assert_eq!(words, "init container prepare has not ended well (ErrImagePull)");
}

#[test]
fn a_container_that_will_not_come_back_ends_its_hooks_at_once() {
    let end = |policy: &str, code: i32| {
        let spec = one();
        let pod = main_is(policy, json!({"terminated": {"exitCode": code}}));
        never(&spec.plan.post[0], Some(&pod)).map(|(state, reason, _)| (state, reason))
    };
    let ended = Some((HookState::Cancelled, "ContainerEnded"));
    assert_eq!(end("Never", 0), ended);
    assert_eq!(end("Never", 1), ended);
    assert_eq!(end("OnFailure", 0), ended);
    assert_eq!(end("OnFailure", 1), None);
    assert_eq!(end("Always", 0), None);
    // It runs again after a crash: its last state is of no account.
    let mut status = container("main", json!({"running": {}}));
    status["lastState"] = json!({"terminated": {"exitCode": 1}});
    let running = pod("Never", json!({"phase": "Running", "containerStatuses": [status]}));
    assert_eq!(never(&one().plan.post[0], Some(&running)), None);

    let spec = run(json!([hook("gone", false)]), json!([]));
    let running = main_is("Always", json!({"running": {}}));
    let (state, reason, words) = never(&spec.plan.post[0], Some(&running)).unwrap();
    assert_eq!((state, reason), (HookState::Skipped, "ContainerMissing"));
    assert!(words.ends_with("prepare, sidecar, main, other"), "{words}");
    // A native sidecar is a target like any other.
    let spec = run(json!([hook("sidecar", false)]), json!([]));
    assert_eq!(never(&spec.plan.post[0], Some(&running)), None);
}

#[test]
fn a_pod_that_the_kubelet_is_ending_has_ended_although_its_container_looks_ready() {
    let mut container = container("main", json!({"running": {}}));
    container["ready"] = json!(true);
    let conditions = json!([{"type": "ContainersReady", "status": "False", "reason": "PodFailed"}]);
    let status = json!({"phase": "Running", "conditions": conditions, "containerStatuses": [container]});
    assert!(pod("Never", status.clone()).has_ended());
    let mut not_ready = status;
    not_ready["conditions"][0]["reason"] = json!("ContainersNotReady");
    assert!(!pod("Never", not_ready).has_ended());
}

/// All that `next` writes while `main` is in one state after another, with the times.
fn written(spec: &HookRunSpec, views: &[(i64, PodView)], until: i64) -> (Vec<(i64, String)>, HookRunStatus) {
    let mut status = first_status(spec, at(0));
    let mut written = Vec::new();
    let mut second = 0;
    while second <= until {
        let pod = views.iter().rev().find(|(from, _)| *from <= second).map(|(_, pod)| pod);
        let situation = Situation {
            spec,
            status: &status,
            pod,
            now: at(second),
            process: "me",
            finishing: &BTreeMap::new(),
            run_limit: DEFAULT_RUN_LIMIT,
            failed_elsewhere: None,
            controls: &Controls::default(),
            report_after: SignedDuration::from_secs(30),
            crowd: None,
        };
        match next(&situation) {
            Step::Record(new) => {
                written.push((second, new.message.clone()));
                status = new;
            }
            Step::Wait(due) => {
                let change = views.iter().map(|(from, _)| *from).filter(|from| *from > second);
                let due = due.map(jiff::Timestamp::as_second);
                second = change.chain(due).min().unwrap_or(i64::MAX);
            }
            other => panic!("{other:?}"),
        }
    }
    (written, status)
}

#[test]
fn it_is_said_after_a_while_and_again_only_when_the_reason_changes() {
    let waiting = |why: &str| main_is("Always", json!({"waiting": {"reason": why}}));
    let views = [(0, waiting("CreateContainerError")), (100, waiting("ErrImagePull"))];
    let (said, status) = written(&one(), &views, 3600);
    assert_eq!(
        said,
        [
            (
                30,
                "waits: container main does not run (CreateContainerError)".to_owned()
            ),
            (100, "waits: container main does not run (ErrImagePull)".to_owned()),
        ]
    );
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == WAITING)
        .unwrap();
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("True", "ErrImagePull")
    );
    assert_eq!(condition.last_transition_time.0, at(100));
    assert_eq!(status.phase, RunPhase::Pending);
}

#[test]
fn what_comes_by_itself_is_said_later() {
    let creating = main_is("Always", json!({"waiting": {"reason": "ContainerCreating"}}));
    let (said, status) = written(&one(), &[(0, creating)], 3600);
    let words = "waits: container main does not run (ContainerCreating)";
    assert_eq!(said, [(300, words.to_owned())]);
    let waits = status
        .conditions
        .iter()
        .any(|condition| condition.type_ == WAITING && condition.status == "True");
    assert!(waits, "{:?}", status.conditions);
}

#[test]
fn a_container_that_crashes_all_day_causes_few_writes() {
    let back_off = || main_is("Always", json!({"waiting": {"reason": "CrashLoopBackOff"}}));
    let ended = || main_is("Always", json!({"terminated": {"exitCode": 1}}));
    let views: Vec<(i64, PodView)> = (0..8640)
        .map(|index| (index * 10, if index % 2 == 0 { back_off() } else { ended() }))
        .collect();
    let (said, _) = written(&one(), &views, 86_000);
    assert!((2..160).contains(&said.len()), "{} writes", said.len());
    assert!(said.windows(2).all(|two| two[1].0 - two[0].0 >= 30), "{said:?}");
}

/// A run whose hook could start at once, and for which there has been no place since 100.
fn crowded(spec: &HookRunSpec, status: &HookRunStatus, now: i64, controls: &Controls) -> Step {
    let crowd = Crowd {
        since: at(100),
        message: "3 commands run in namespace n, 3 at most may at once".to_owned(),
    };
    next(&Situation {
        spec,
        status,
        pod: Some(&main_is("Always", json!({"running": {}}))),
        now: at(now),
        process: "me",
        finishing: &BTreeMap::new(),
        run_limit: DEFAULT_RUN_LIMIT,
        failed_elsewhere: None,
        controls,
        report_after: SignedDuration::from_secs(30),
        crowd: Some(&crowd),
    })
}

#[test]
fn a_hook_that_waits_for_a_place_says_so_after_a_while_in_the_queue() {
    let spec = one();
    let first = first_status(&spec, at(0));
    // It had waited for other things before: that is of no account.
    let quiet = crowded(&spec, &first, 101, &Controls::default());
    assert_eq!(quiet, Step::Wait(Some(at(130))));
    let Step::Record(told) = crowded(&spec, &first, 130, &Controls::default()) else {
        panic!("it says so")
    };
    assert_eq!(
        told.message,
        "waits: 3 commands run in namespace n, 3 at most may at once"
    );
    let condition = told.conditions.iter().find(|condition| condition.type_ == WAITING);
    let condition = condition.unwrap();
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("True", "NoFreeSlot")
    );
    // Once is enough.
    let limit = at(DEFAULT_RUN_LIMIT.as_secs());
    assert_eq!(
        crowded(&spec, &told, 200, &Controls::default()),
        Step::Wait(Some(limit))
    );
}

#[test]
fn a_hook_that_waits_for_a_place_can_be_cancelled_and_paused_and_its_limits_hold() {
    let request = |id: &str| {
        let text = json!({"id": id, "by": "somebody", "at": at(0).to_string()}).to_string();
        crate::control::Request::read(&text).expect("a request")
    };
    let recorded = |step| match step {
        Step::Record(status) => status,
        other => panic!("{other:?}"),
    };
    let spec = one();
    let first = first_status(&spec, at(0));
    let controls = Controls {
        cancel: vec![request("c")],
        ..Controls::default()
    };
    let end = recorded(crowded(&spec, &first, 101, &controls));
    assert_eq!(
        (end.post[0].state, end.post[0].reason.as_str()),
        (HookState::Cancelled, "CancelledByUser")
    );
    let controls = Controls {
        pause: Some(request("p")),
        ..Controls::default()
    };
    assert!(recorded(crowded(&spec, &first, 101, &controls)).paused_since.is_some());
    let mut limited = spec.clone();
    limited.plan.post[0].wait_timeout = crate::duration::GoDuration::from_secs(110);
    assert_eq!(
        crowded(&limited, &first, 101, &Controls::default()),
        Step::Wait(Some(at(110)))
    );
    let end = recorded(crowded(&limited, &first, 110, &Controls::default()));
    assert_eq!(end.post[0].state, HookState::WaitTimedOut);
    // A start that was recorded and not begun is taken back: it waits as the others do.
    let mut begun = first;
    begun.post[0].state = HookState::Started;
    let attempt = json!({"number": 1, "claimedBy": "me", "startedAt": "2026-01-01T00:00:00.000000Z"});
    begun.post[0].attempts = vec![serde_json::from_value(attempt).unwrap()];
    let back = recorded(crowded(&spec, &begun, 101, &Controls::default()));
    assert_eq!(
        (back.post[0].state, back.post[0].attempts.len()),
        (HookState::Waiting, 0)
    );
}

#[test]
fn the_report_of_a_run_that_waits_shows_its_init_containers_as_they_are() {
    let spec = run(
        json!([hook("main", false)]),
        json!([{"name": "i", "source": "spec", "container": "prepare"}]),
    );
    let running = json!({"running": {"startedAt": at(5).to_string()}});
    let status = json!({"phase": "Pending", "initContainerStatuses": [container("prepare", running)]});
    let (said, status) = written(&spec, &[(0, pod("Always", status))], 400);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(status.init[0].state, InitState::Running);
    assert!(status.init[0].started_at.is_some());
}
