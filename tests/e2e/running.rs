//! When post hooks run: in parallel, in time, and after one another failed.

use reveille::api::hook_run::{HookState, PostStatus, RunPhase};
use serde_json::json;

use crate::harness::*;

fn interval(post: &PostStatus) -> (jiff::Timestamp, jiff::Timestamp) {
    let attempt = &post.attempts[0];
    (attempt.started_at.0, attempt.finished_at.as_ref().expect("an end").0)
}

#[tokio::test]
async fn pods_run_their_hooks_in_parallel() {
    let t = Scenario::new("parallel").await;
    // Each can only end after the other has begun.
    let meet = |me: &str, other: &str| {
        let wait = format!("touch /traces/{me}.here; until [ -e /traces/{other}.here ]; do sleep 0.1; done");
        t.pod(me)
            .annotate(post("command"), sh(&format!("{wait}; {}", trace_script(me))))
            .annotate(post("exec-timeout"), "2m")
    };
    let backup = t
        .back_up_and_lose(&[meet("left", "right"), meet("right", "left")])
        .await;
    let restore = t.restore(&backup).run().await;

    restore.assert_all_well(2);
    assert_eq!((t.ran("left"), t.ran("right")), (1, 1));
    let (left, right) = (interval(restore.post("left")), interval(restore.post("right")));
    assert!(left.0 < right.1 && right.0 < left.1, "{left:?} and {right:?} overlap");
}

#[tokio::test]
async fn a_hook_waits_for_ready_where_it_is_asked_to() {
    let t = Scenario::new("ready").await;
    let backup = t.back_up_and_lose(&[t.pod("app").ready_when("ready")]).await;
    let late = sh(&format!("test -e /traces/ready && {}", trace_script("late")));
    let mut late = exec(&late);
    late["exec"]["waitForReady"] = json!(true);
    let begun = t
        .restore(&backup)
        .hooks(rule("early", &[exec(&trace("early"))]))
        .hooks(rule("late", &[late]))
        .begin()
        .await;
    // The container runs: the early hook has ended. The late one of the same container is the next.
    let restore = begun
        .reaches("the early hook has ended", |now| {
            let status = now.run_of("app")?.status.clone()?;
            (status.post[0].state == HookState::Succeeded).then_some(status)
        })
        .await;
    assert_eq!(restore.post[1].state, HookState::Waiting, "{restore:?}");
    assert_eq!(t.ran("late"), 0);
    t.signal("ready");
    let restore = begun.finish().await;

    restore.assert_all_well(1);
    assert_eq!((t.ran("early"), t.ran("late")), (1, 1));
    let pod = t.pod_now("app").await;
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let ready = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready")
        .unwrap();
    let since: jiff::Timestamp = ready["lastTransitionTime"].as_str().unwrap().parse().unwrap();
    assert!(interval(&restore.status("app").post[1]).0 >= since);
}

#[tokio::test]
async fn a_failure_with_fail_fails_the_restore_and_cancels_what_has_not_started() {
    let t = Scenario::new("fail").await;
    let failing = t
        .pod("failing")
        .annotate(
            post("command"),
            sh(&format!("{}; echo broken >&2; exit 7", trace_script("failing"))),
        )
        .annotate(post("on-error"), "Fail");
    let sibling = t
        .pod("sibling")
        .ready_when("never")
        .annotate(post("command"), trace("sibling"))
        .annotate(post("wait-for-ready"), "true");
    let backup = t.back_up_and_lose(&[failing, sibling]).await;
    let restore = t.restore(&backup).run().await;

    assert_eq!(
        (restore.phase.as_str(), restore.result.as_deref()),
        ("PartiallyFailed", Some("Failed"))
    );
    let failed = restore.post("failing");
    assert_eq!((failed.state, failed.attempts.len()), (HookState::Failed, 1));
    assert_eq!(
        (failed.attempts[0].exit_code, failed.reason.as_str()),
        (Some(7), "NonZeroExitCode")
    );
    assert_eq!(failed.attempts[0].stderr, "broken\n");
    assert_eq!(restore.status("failing").phase, RunPhase::Failed);
    let cancelled = restore.post("sibling");
    assert_eq!((cancelled.state, cancelled.attempts.len()), (HookState::Cancelled, 0));
    assert!(cancelled.message.contains("failing"), "{}", cancelled.message);
    assert_eq!((t.ran("failing"), t.ran("sibling")), (1, 0));
    assert_eq!(
        restore.object["status"]["hookStatus"],
        json!({"hooksAttempted": 2, "hooksFailed": 2})
    );
    t.says_once("failing", "HookFailed").await;
    // The data was restored all the same: both pods are there.
    t.running("failing").await;
    t.running("sibling").await;
}

#[tokio::test]
async fn a_failure_with_continue_is_told_and_changes_nothing_else() {
    let t = Scenario::new("continue").await;
    let failing = t
        .pod("failing")
        .annotate(post("command"), sh(&format!("{}; exit 3", trace_script("failing"))))
        .annotate(post("on-error"), "Continue");
    // Without on-error: Continue is the default.
    let unset = t
        .pod("unset")
        .annotate(post("command"), sh(&format!("{}; exit 4", trace_script("unset"))));
    let well = t.pod("well").annotate(post("command"), trace("well"));
    let backup = t.back_up_and_lose(&[failing, unset, well]).await;
    let restore = t.restore(&backup).run().await;

    assert_eq!(
        (restore.phase.as_str(), restore.result.as_deref()),
        ("Completed", Some("Succeeded"))
    );
    for (pod, code) in [("failing", 3), ("unset", 4)] {
        assert_eq!(restore.status(pod).phase, RunPhase::PartiallyFailed);
        assert_eq!(restore.post(pod).attempts[0].exit_code, Some(code));
    }
    assert_eq!(restore.status("well").phase, RunPhase::Succeeded);
    assert_eq!((t.ran("failing"), t.ran("unset"), t.ran("well")), (1, 1, 1));
    assert_eq!(
        restore.object["status"]["hookStatus"],
        json!({"hooksAttempted": 3, "hooksFailed": 2})
    );
}

#[tokio::test]
async fn a_hook_ends_when_its_time_is_over() {
    let t = Scenario::new("exec-timeout").await;
    let slow = sh(&format!(
        "{}; until [ -e /traces/never ]; do sleep 0.1; done",
        trace_script("slow")
    ));
    let pod = t
        .pod("app")
        .annotate(post("command"), slow)
        .annotate(post("exec-timeout"), "10s");
    let backup = t.back_up_and_lose(&[pod]).await;
    let restore = t.restore(&backup).run().await;

    assert_eq!(restore.post("app").state, HookState::ExecTimedOut);
    assert!(
        restore.post("app").message.contains("10s"),
        "{}",
        restore.post("app").message
    );
    assert_eq!(
        restore.result.as_deref(),
        Some("Succeeded"),
        "without on-error a failure counts for nothing"
    );
    assert_eq!(t.ran("slow"), 1);
    t.signal("never");
}

#[tokio::test]
async fn a_container_that_does_not_come_up_in_time_is_not_waited_for_any_longer() {
    let t = Scenario::new("wait-timeout").await;
    let pod = t
        .pod("app")
        .ready_when("never")
        .annotate(post("command"), trace("post"))
        .annotate(post("wait-for-ready"), "true")
        .annotate(post("wait-timeout"), "3s")
        .annotate(post("on-error"), "Fail");
    let backup = t.back_up_and_lose(&[pod]).await;
    let restore = t.restore(&backup).run().await;

    assert_eq!(
        (restore.post("app").state, restore.post("app").attempts.len()),
        (HookState::WaitTimedOut, 0)
    );
    assert_eq!(
        (restore.phase.as_str(), restore.result.as_deref()),
        ("PartiallyFailed", Some("Failed"))
    );
    assert_eq!(t.ran("post"), 0);
}

#[tokio::test]
async fn containers_of_a_pod_take_turns_and_native_sidecars_are_targets() {
    let t = Scenario::new("containers").await;
    let sidecar = json!({
        "name": "sidecar", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"],
        "restartPolicy": "Always", "volumeMounts": [{"name": "traces", "mountPath": TRACES}],
    });
    let pod = t.pod("app").init_container(sidecar).container("second");
    let backup = t.back_up_and_lose(&[pod]).await;
    // A lock that two at once could not both take.
    let script = |name: &str| {
        let lock = format!("mkdir /traces/lock && echo {name} >> /traces/order && sleep 0.3 && rmdir /traces/lock");
        sh(&lock)
    };
    let into = |container: &str, name: &str| {
        let mut item = exec(&script(name));
        item["exec"]["container"] = json!(container);
        item
    };
    let restore = t
        .restore(&backup)
        .hooks(rule(
            "spec",
            &[
                into("second", "b1"),
                into("", "a1"),
                into("second", "b2"),
                into("sidecar", "s"),
            ],
        ))
        .run()
        .await;

    restore.assert_all_well(1);
    // Native sidecars first, then the containers in pod order; in a container the order of definition.
    let order = t.read("order");
    let order: Vec<&str> = order.lines().collect();
    let place = |name: &str| {
        order
            .iter()
            .position(|other| *other == name)
            .unwrap_or_else(|| panic!("{name} ran"))
    };
    assert_eq!(order.len(), 4, "{order:?}");
    assert!(place("b1") < place("b2"), "{order:?}");
    let containers: Vec<_> = restore
        .status("app")
        .post
        .iter()
        .map(|post| post.container.as_str())
        .collect();
    assert_eq!(containers, ["sidecar", "main", "second", "second"]);
    assert_eq!(t.velero_ran(), Vec::<String>::new());
}
