//! What is recorded and said: output without secrets, init containers, conditions, Events and logs.

use reveille::api::hook_run::{HookState, InitState, RunPhase};
use serde_json::json;

use crate::harness::*;

/// The logs of Reveille's containers that mention the test.
fn logs() -> String {
    ["webhook", "waiter"]
        .map(|container| {
            let pods = "-l=app.kubernetes.io/name=reveille";
            kubectl(&["-n", REVEILLE, "logs", pods, "-c", container, "--tail=-1"])
        })
        .concat()
}

#[tokio::test]
async fn output_is_read_to_its_end_kept_at_its_end_and_without_secrets() {
    let t = Scenario::new("output").await;
    // 100 MB without an end of line, then binary rubbish, half a character, and secrets.
    let script = "yes xxxxxxxxxxxxxxx | tr -d '\\n' | head -c 100000000; printf ' \\033[2J\\000\\377\\303\\n'; \
                  echo url=postgres://app:hunter2@db/x; echo DB_PASSWORD=hunter2; printf 'key\\303' >&2";
    let noisy = t
        .pod("noisy")
        .annotate(
            post("command"),
            json!(["/bin/sh", "-c", script, "--", "argument-of-a-command"]),
        )
        .annotate(post("exec-timeout"), "10m");
    let unknown = t
        .pod("unknown")
        .annotate(post("command"), json!(["/no-such-program", "--password=hunter2"]));
    let backup = t.back_up_and_lose_pods(&[noisy, unknown]).await;
    let end = t.restore(&backup).run().await;

    let attempt = &end.post("noisy").attempts[0];
    assert_eq!(attempt.exit_code, Some(0), "{:?}", end.post("noisy"));
    let shown = "\\u{1b}[2J\\u{0}\u{fffd}\u{fffd}\nurl=postgres://<redacted>@db/x\nDB_PASSWORD=<redacted>\n";
    assert!(attempt.stdout.ends_with(shown), "{}", attempt.stdout);
    assert!(attempt.stdout.len() < 6000, "{} bytes are kept", attempt.stdout.len());
    assert_eq!(attempt.stderr, "key\u{fffd}");
    let refused = end.post("unknown");
    assert_eq!(
        (refused.state, refused.reason.as_str()),
        (HookState::Failed, "NotStarted")
    );
    let everything = serde_json::to_string(&end.runs.iter().map(|run| &run.status).collect::<Vec<_>>()).unwrap();
    assert!(!everything.contains("hunter2"), "{everything}");
    for secret in ["hunter2", "argument-of-a-command"] {
        assert!(!logs().contains(secret), "{secret} is in the logs");
    }
}

#[tokio::test]
async fn init_containers_are_observed_and_do_not_change_the_restore() {
    let t = Scenario::new("init-observed").await;
    let mut slow = tracing_container("slow");
    slow["command"] = sh("until [ -e /traces/go ]; do sleep 0.1; done");
    let slow = t
        .pod("slow")
        .annotate(init("initContainers"), json!([slow]))
        .annotate(init("timeout"), "1s")
        .annotate(post("command"), trace("post"));
    let failing = t
        .pod("failing")
        .edit(|pod| pod["spec"]["restartPolicy"] = json!("Never"));
    let backup = t.back_up_and_lose_pods(&[slow, failing]).await;
    let mut broken = tracing_container("broken");
    broken["command"] = sh("exit 7");
    let begun = t
        .restore(&backup)
        .hooks(rule_for("failing", "failing", &[inject(&[broken])]))
        .begin()
        .await;
    let slow = begun
        .reaches("the slow init container has timed out", |now| {
            let status = now.run_of("slow")?.status.clone()?;
            (status.init[0].state == InitState::TimedOut).then_some(status)
        })
        .await;
    assert!(
        slow.init[0].started_at.is_some() && slow.init[0].exit_code.is_none(),
        "{slow:?}"
    );
    let said = slow
        .conditions
        .iter()
        .find(|condition| condition.type_ == "InitTimedOut")
        .unwrap();
    assert_eq!(
        (said.status.as_str(), said.reason.as_str()),
        ("True", "TimeoutExceeded")
    );
    t.signal("go");
    let end = begun.finish().await;

    assert_eq!(
        (end.phase.as_str(), end.result.as_deref()),
        ("Completed", Some("Succeeded"))
    );
    let broken = end.init("failing");
    assert_eq!((broken.state, broken.exit_code), (InitState::Failed, Some(7)));
    assert!(
        broken.started_at.is_some() && broken.finished_at.is_some(),
        "{broken:?}"
    );
    assert_eq!(end.status("failing").phase, RunPhase::Succeeded);
    t.says_once("failing", "InitHookFailed").await;
    // Its time was over, and yet it ended well, and its pod's hook ran.
    let slow = end.init("slow");
    assert_eq!((slow.state, slow.exit_code), (InitState::TimedOut, Some(0)));
    assert_eq!((end.post("slow").state, t.ran("post")), (HookState::Succeeded, 1));
    t.says_once("slow", "InitTimedOut").await;
}

#[tokio::test]
async fn init_containers_are_observed_although_the_run_has_ended_before_them() {
    let t = Scenario::alone("init-outlasts").await;
    let mut slow = tracing_container("slow");
    slow["command"] = sh("until [ -e /traces/go ]; do sleep 0.1; done; exit 0");
    let pod = t
        .pod("app")
        .annotate(init("initContainers"), json!([slow]))
        .annotate(init("timeout"), "15s")
        .annotate(post("command"), trace("post"))
        .annotate(post("wait-timeout"), "1s");
    let backup = t.back_up_and_lose_pods(&[pod]).await;
    let begun = t.restore(&backup).begin().await;
    let end = begun.finish().await;
    assert_eq!(end.post("app").state, HookState::WaitTimedOut);
    let late = begun
        .reaches("the init container has taken too long", |now| {
            let status = now.run_of("app")?.status.clone()?;
            (status.init[0].state == InitState::TimedOut).then_some(status)
        })
        .await;
    assert!(late.init[0].started_at.is_some(), "{late:?}");
    assert!(
        late.conditions.iter().any(|known| known.type_ == "InitTimedOut"),
        "{late:?}"
    );
    t.says_once("app", "InitTimedOut").await;
    // Whoever comes next goes on with it.
    kill_waiters(&t.client, None).await;
    t.signal("go");
    let known = begun
        .reaches("its exit code is known", |now| {
            let status = now.run_of("app")?.status.clone()?;
            status.init[0].exit_code.is_some().then_some(status)
        })
        .await;
    assert_eq!(
        (known.init[0].state, known.init[0].exit_code),
        (InitState::TimedOut, Some(0))
    );
    assert_eq!(
        (known.phase, &known.post, &known.finished_at),
        (late.phase, &late.post, &late.finished_at)
    );
    eventually("the pod carries nothing but the run mark", async || {
        let pod = t.pods().get("app").await.unwrap();
        annotation_of(&pod, reveille::names::PLAN_ANNOTATION)
            .is_none()
            .then_some(())
    })
    .await;
    assert_eq!(t.ran("post"), 0);
}
