//! What an operator does on the day of a restore: cancel, pause and resume, run again, wait, read the output.

use std::process::Output;

use reveille::{
    api::{
        HookRun,
        hook_run::{HookRunStatus, HookState, RunPhase},
    },
    names::{RERUN_ANNOTATION, RESULT_ANNOTATION, WRITTEN_ANNOTATION},
};
use serde_json::{Value, json};

use crate::harness::*;

/// Exit code and text of a command.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// The answer of a command that has to succeed.
#[track_caller]
fn answer(arguments: &[&str]) -> Value {
    let output = reveille(&[arguments, &["-o", "json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {:?}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Kills the waiter's process, in every replica. Its parent starts it anew.
async fn kill_waiter(t: &Scenario) {
    assert!(kill_waiters(&t.client, None).await > 0, "a waiter ran");
}

/// Takes the pause of everything back, also when the test fails: others run after it.
struct Resume;

impl Drop for Resume {
    fn drop(&mut self) {
        reveille(&["resume"]);
    }
}

fn status_of(now: &Outcome, pod: &str) -> Option<HookRunStatus> {
    now.run_of(pod)?.status.clone()
}

#[tokio::test]
async fn cancel_lets_finish_what_runs_and_says_who_it_was() {
    let t = Scenario::new("cancel").await;
    let script = format!("until [ -e /traces/go ]; do sleep 0.1; done; {}", trace_script("runs"));
    let runs = t
        .pod("runs")
        .annotate(post("command"), sh(&script))
        .annotate(post("exec-timeout"), "5m");
    let waits = t
        .pod("waits")
        .ready_when("never")
        .annotate(post("command"), trace("waits"))
        .annotate(post("wait-for-ready"), "true");
    let backup = t.back_up_and_lose(&[runs, waits]).await;
    let begun = t.restore(&backup).begin().await;
    begun
        .reaches("one hook runs, the other waits", |now| {
            let waiting = status_of(now, "waits")?.post[0].state == HookState::Waiting;
            (waiting && status_of(now, "runs")?.started_at.is_some()).then_some(())
        })
        .await;

    let unknown = said(&reveille(&["cancel", "there-is-no-such-thing"]));
    assert!(
        unknown.0 == Some(2) && unknown.1.contains("there-is-no-such-thing"),
        "{unknown:?}"
    );
    let cancelled = answer(&["cancel", &begun.name, "--reason", "wrong backup"]);
    assert_eq!(cancelled["changed"], true, "{cancelled}");
    let by = cancelled["request"]["by"].as_str().unwrap().to_owned();
    assert!(!by.is_empty(), "{cancelled}");
    let status = begun
        .reaches("the hook that waits is cancelled", |now| {
            let status = status_of(now, "waits")?;
            status.phase.is_final().then_some(status)
        })
        .await;
    let post = &status.post[0];
    assert_eq!(
        (post.state, post.reason.as_str()),
        (HookState::Cancelled, "CancelledByUser")
    );
    assert!(
        post.message.contains(&by) && post.message.contains("wrong backup"),
        "{}",
        post.message
    );
    assert_eq!(status.cancelled.unwrap().by, by);
    // Once is enough.
    assert_eq!(answer(&["cancel", &begun.name])["changed"], false);

    t.signal("go");
    let end = begun.finish().await;
    assert_eq!(
        (end.post("runs").state, t.ran("runs"), t.ran("waits")),
        (HookState::Succeeded, 1, 0)
    );
    let over = answer(&["cancel", &begun.name]);
    assert!(
        over["changed"] == false && over["message"].as_str().unwrap().contains("has ended"),
        "{over}"
    );
}

#[tokio::test]
async fn pause_cancel_and_rerun_outlive_the_waiter() {
    let t = Scenario::alone("brake").await;
    let script = format!("{}; test -e /traces/fixed", trace_script("app"));
    let app = t
        .pod("app")
        .annotate(post("command"), sh(&script))
        .annotate(post("on-error"), "Fail");
    let other = t.pod("other").annotate(post("command"), trace("other"));
    let backup = t.back_up_and_lose(&[app, other]).await;
    let _resume = Resume;
    assert_eq!(answer(&["pause", "--reason", "host is down"])["changed"], true);
    let begun = t.restore(&backup).begin().await;
    begun
        .reaches("both are paused", |now| {
            let paused = |pod| Some(status_of(now, pod)?.message.contains("host is down"));
            (paused("app")? && paused("other")? && now.phase == "Completed").then_some(())
        })
        .await;
    let (code, shown) = said(&reveille(&["status", &begun.name]));
    assert!(code == Some(3) && shown.contains("paused by"), "{shown}");

    // Nobody is there to see the request; who comes next does, and knows of the pause before it starts anything.
    kill_waiter(&t).await;
    let other = format!("{}/other", t.namespace);
    assert_eq!(answer(&["cancel", &other])["changed"], true);
    let status = begun
        .reaches("the other is cancelled", |now| {
            let status = status_of(now, "other")?;
            status.phase.is_final().then_some(status)
        })
        .await;
    assert_eq!(status.post[0].reason, "CancelledByUser");
    assert_eq!((t.ran("app"), t.ran("other")), (0, 0));

    assert_eq!(answer(&["resume"])["changed"], true);
    let end = begun.finish().await;
    assert_eq!(
        (end.result.as_deref(), t.ran("app"), t.ran("other")),
        (Some("Failed"), 1, 0)
    );

    // The same for a rerun.
    t.signal("fixed");
    kill_waiter(&t).await;
    let app = format!("{}/app", t.namespace);
    answer(&["rerun", &app]);
    let (code, shown) = said(&reveille(&["wait", &begun.name, "--timeout", "4m"]));
    assert_eq!(code, Some(0), "{shown}");
    kill_waiter(&t).await;
    // That somebody is at work again shows by the answer to the next request; the last one was not taken in once more.
    let name = begun.now().await.run_of("app").unwrap().metadata.name.clone().unwrap();
    let request = format!("{RERUN_ANNOTATION}=again");
    let annotate = [
        "-n",
        &t.namespace,
        "annotate",
        "hookrun",
        &name,
        "--overwrite",
        &request,
    ];
    let allowed = run("kubectl", &annotate);
    assert!(allowed.status.success(), "{allowed:?}");
    let status = begun
        .reaches("the next request is refused", |now| {
            let status = status_of(now, "app")?;
            (status.reruns.len() == 2).then_some(status)
        })
        .await;
    assert!(status.reruns[1].refused.is_some(), "{status:?}");
    assert_eq!(t.ran("app"), 2);
}

#[tokio::test]
async fn a_rerun_changes_the_result_and_what_is_overwritten_comes_back() {
    let t = Scenario::new("rerun").await;
    let script = format!("echo said by $$; {}; test -e /traces/fixed", trace_script("app"));
    let app = t
        .pod("app")
        .annotate(post("command"), sh(&script))
        .annotate(post("on-error"), "Fail");
    let backup = t.back_up_and_lose(&[app]).await;
    let begun = t.restore(&backup).begin().await;
    let pod = format!("{}/app", t.namespace);
    let end = begun.finish().await;
    assert_eq!(
        (end.phase.as_str(), end.result.as_deref()),
        ("PartiallyFailed", Some("Failed"))
    );
    let (code, shown) = said(&reveille(&["wait", &begun.name]));
    assert!(code == Some(1) && shown.contains("hooks Failed"), "{shown}");

    let (code, shown) = said(&reveille(&["rerun", &pod, "--hook", "nonsense"]));
    assert!(code == Some(2) && shown.contains("no hook \"nonsense\""), "{shown}");
    t.signal("fixed");
    let again = answer(&["rerun", &pod, "--hook", "<from-annotation>", "--reason", "repaired"]);
    assert_eq!(again["changed"], true);
    // It counts from the moment that it is asked for.
    let (code, shown) = said(&reveille(&["wait", &begun.name, "--timeout", "4m"]));
    assert_eq!(code, Some(0), "{shown}");
    let end = begun.now().await;
    let status = end.status("app");
    assert_eq!(
        (status.phase, end.result.as_deref(), end.phase.as_str()),
        (RunPhase::Succeeded, Some("Succeeded"), "PartiallyFailed")
    );
    assert_eq!(
        end.object["status"]["hookStatus"],
        json!({"hooksAttempted": 1, "hooksFailed": 0})
    );
    let attempts: Vec<_> = end
        .post("app")
        .attempts
        .iter()
        .map(|attempt| (attempt.number, attempt.exit_code))
        .collect();
    assert_eq!(attempts, [(1, Some(1)), (2, Some(0))]);
    assert_eq!(
        (status.reruns.len(), status.reruns[0].request.reason.as_str()),
        (1, "repaired")
    );
    assert_eq!(t.ran("app"), 2);
    let (code, shown) = said(&reveille(&["rerun", &pod]));
    assert!(code == Some(2) && shown.contains("nothing to run again"), "{shown}");

    let (code, shown) = said(&reveille(&["logs", &begun.name]));
    let headers: Vec<&str> = shown.lines().filter(|line| line.starts_with("==> ")).collect();
    assert!(code == Some(0) && headers.len() == 2, "{shown}");
    assert!(
        headers[0].contains("attempt 1") && headers[1].contains("exit code 0") && shown.contains("said by"),
        "{shown}"
    );
    let logs = answer(&["logs", &pod]);
    assert_eq!(logs["attempts"][1]["exitCode"], 0, "{logs}");

    // Whoever writes over it: the result comes back, as it was, and Velero's own numbers are kept.
    let overwrite = |what: &Value| {
        kubectl(&[
            "-n",
            VELERO,
            "patch",
            "restore",
            &begun.name,
            "--type=merge",
            "-p",
            &what.to_string(),
        ]);
    };
    for what in [
        json!({"metadata": {"annotations": {RESULT_ANNOTATION: null}}}),
        json!({"metadata": {"annotations": {RESULT_ANNOTATION: "Failed"}}, "status": {"phase": "Completed"}}),
        json!({"status": {"hookStatus": {"hooksAttempted": 0, "hooksFailed": 0}}}),
    ] {
        overwrite(&what);
        begun
            .reaches("what was overwritten is back", |now| {
                let counts = now.object["status"]["hookStatus"] == json!({"hooksAttempted": 1, "hooksFailed": 0});
                let there = now.result.as_deref() == Some("Succeeded") && now.phase == "PartiallyFailed";
                (there && counts).then_some(())
            })
            .await;
    }
    assert!(
        begun.now().await.object["metadata"]["annotations"]
            .get(WRITTEN_ANNOTATION)
            .is_some()
    );

    // A pod that was made anew is another one.
    t.lose_pods().await;
    let run: HookRun = begun.now().await.run_of("app").unwrap().clone();
    let (code, shown) = said(&reveille(&["rerun", &run.metadata.name.unwrap(), "-n", &t.namespace]));
    assert!(code == Some(2) && shown.contains("not there any more"), "{shown}");
}

#[tokio::test]
async fn one_restore_is_paused_by_name_and_goes_on() {
    let t = Scenario::new("pause").await;
    let app = t
        .pod("app")
        .ready_when("go")
        .annotate(post("command"), trace("app"))
        .annotate(post("wait-for-ready"), "true");
    let backup = t.back_up_and_lose(&[app]).await;
    let begun = t.restore(&backup).begin().await;
    let name = format!("{VELERO}/{}", begun.name);
    begun.reaches("the hook waits", |now| status_of(now, "app")).await;
    let paused = answer(&["pause", &name, "--reason", "look first"]);
    assert_eq!((&paused["changed"], &paused["action"]), (&json!(true), &json!("pause")));
    t.signal("go");
    let status = begun
        .reaches("it is paused", |now| {
            status_of(now, "app").filter(|status| status.paused_since.is_some())
        })
        .await;
    let condition = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Paused")
        .unwrap();
    assert!(
        condition.status == "True" && condition.message.contains("look first"),
        "{condition:?}"
    );
    assert_eq!(answer(&["pause", &name])["changed"], false);
    assert_eq!(t.ran("app"), 0);
    let resumed = answer(&["resume", &name]);
    assert_eq!(resumed["changed"], true);
    begun.finish().await.assert_all_well(1);
    assert_eq!(t.ran("app"), 1);
    assert_eq!(answer(&["resume", &name])["changed"], false);
}
