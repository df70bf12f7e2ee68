//! Several waiters: one leads, and what happens to hooks when it goes. These tests have the cluster to themselves.

use reveille::api::hook_run::HookState;

use crate::harness::*;

/// A command that leaves a trace, and another once it is let go.
fn slow(name: &str) -> serde_json::Value {
    sh(&format!(
        "{}; until [ -e /traces/go ]; do sleep 0.1; done; {}",
        trace_script(name),
        trace_script(&format!("{name}.end"))
    ))
}

/// A pod with a slow hook, and one behind it in another container.
fn pod(t: &Scenario, name: &str) -> PodSpec {
    t.pod(name).container("second")
}

#[tokio::test]
async fn an_upgrade_in_the_middle_of_a_restore_loses_nothing() {
    let t = Scenario::alone("upgrade").await;
    let backup = t
        .back_up_and_lose_pods(&[pod(&t, "a"), pod(&t, "b").ready_when("ready")])
        .await;
    let mut late = exec(&trace("late"));
    late["exec"]["waitForReady"] = serde_json::json!(true);
    let begun = t
        .restore(&backup)
        .hooks(rule_for("a", "slow", &[exec(&slow("slow"))]))
        .hooks(rule_for("b", "late", &[late]))
        .begin()
        .await;
    eventually("the slow hook runs", async || (t.ran("slow") == 1).then_some(())).await;
    // The pods are replaced; the old leader goes on with its command, and a new one takes the rest over at once.
    install(&["podAnnotations.e2e-upgrade=yes"]);
    t.signal("ready");
    begun
        .reaches("the other pod's hook has ended", |now| {
            (now.run_of("b")?.status.as_ref()?.post[0].state == HookState::Succeeded).then_some(())
        })
        .await;
    let now = begun.now().await;
    assert_eq!(now.post("a").state, HookState::Started, "{:?}", now.status("a"));
    assert_ne!(
        now.post("b").attempts[0].claimed_by,
        now.post("a").attempts[0].claimed_by
    );
    t.signal("go");
    let end = begun.finish().await;

    end.assert_all_well(2);
    assert_eq!((t.ran("slow"), t.ran("slow.end"), t.ran("late")), (1, 1, 1));
}

#[tokio::test]
async fn a_result_file_tells_the_truth_after_a_crash_and_ends_what_takes_too_long() {
    let t = Scenario::alone("result-file").await;
    let hook = |script: serde_json::Value, timeout: &str| {
        serde_json::json!({"exec": {
            "command": script, "resultFile": "/tmp", "onError": "Continue", "execTimeout": timeout,
        }})
    };
    let hooks = |app: &str, item: serde_json::Value| serde_json::json!({"name": app, "labelSelector": {"matchLabels": {"app": app}}, "postHooks": [item]});
    let endless = format!(
        "{}; sleep 1000; {}",
        trace_script("endless"),
        trace_script("endless.end")
    );
    let failing = format!(
        "{}; until [ -e /traces/go ]; do sleep 0.1; done; echo why >&2; exit 7",
        trace_script("bad")
    );
    let rules = serde_json::json!({"resources": [
        hooks("good", hook(slow("good"), "5m")),
        hooks("bad", hook(sh(&failing), "5m")),
        hooks("endless", hook(sh(&endless), "10s")),
        hooks("nowhere", serde_json::json!({"exec": {"command": trace("nowhere"), "resultFile": "/nowhere"}})),
    ]});
    let pods = ["good", "bad", "endless", "nowhere"].map(|name| t.pod(name));
    let backup = t.back_up_and_lose_pods(&pods).await;
    let begun = t.restore(&backup).annotate("reveille.dev/hooks", rules).begin().await;
    eventually("the hooks run", async || {
        (t.ran("good") == 1 && t.ran("bad") == 1 && t.ran("endless") == 1).then_some(())
    })
    .await;
    begun
        .reaches("the endless one was ended", |now| {
            now.run_of("endless")?.status.as_ref()?.post[0]
                .state
                .is_final()
                .then_some(())
        })
        .await;
    assert_eq!(kill_waiters(&t.client, None).await, 2);
    // Nobody watches while they end.
    t.signal("go");
    let end = begun.finish().await;

    assert_eq!(
        (end.post("good").state, end.post("good").attempts[0].exit_code),
        (HookState::Succeeded, Some(0))
    );
    let bad = end.post("bad");
    assert_eq!((bad.state, bad.attempts[0].exit_code), (HookState::Failed, Some(7)));
    assert_eq!(bad.attempts[0].stderr, "why\n");
    assert!(bad.attempts[0].collected_by.is_some());
    let endless = end.post("endless");
    assert_eq!(endless.state, HookState::ExecTimedOut);
    assert!(endless.message.contains("was ended"), "{}", endless.message);
    let processes = t.exec("endless", "ps");
    assert!(
        !processes.contains("sleep 1000;") && !processes.contains("sleep 1000\n"),
        "{processes}"
    );
    let nowhere = end.post("nowhere");
    assert_eq!(
        (nowhere.state, nowhere.reason.as_str()),
        (HookState::Failed, "NotStarted")
    );
    assert!(nowhere.message.contains("/nowhere"), "{}", nowhere.message);
    for (name, count) in [
        ("good", 1),
        ("good.end", 1),
        ("bad", 1),
        ("endless", 1),
        ("endless.end", 0),
        ("nowhere", 0),
    ] {
        assert_eq!(t.ran(name), count, "{name}");
    }
    assert_eq!(t.exec("good", "ls -A /tmp"), "", "nothing stays there");
}

#[tokio::test]
async fn a_failed_hook_is_run_again_where_it_asks_for_that() {
    let t = Scenario::new("retries").await;
    let script = format!("{}; test $(wc -l < /traces/third) -ge 3", trace_script("third"));
    let own = |key: &str| format!("post.hook.restore.reveille.dev/{key}");
    let third = t
        .pod("third")
        .annotate(post("command"), sh(&script))
        .annotate(post("on-error"), "Fail")
        .annotate(own("retries"), 5)
        .annotate(own("retry-backoff"), "300ms");
    let never = t
        .pod("never")
        .annotate(post("command"), sh(&format!("{}; exit 4", trace_script("never"))))
        .annotate(own("retries"), 1)
        .annotate(own("retry-backoff"), "100ms");
    let backup = t.back_up_and_lose_pods(&[third, never]).await;
    let end = t.restore(&backup).run().await;

    let codes = |pod: &str| {
        end.post(pod)
            .attempts
            .iter()
            .map(|attempt| attempt.exit_code)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (end.post("third").state, codes("third")),
        (HookState::Succeeded, vec![Some(1), Some(1), Some(0)])
    );
    assert_eq!(
        (end.post("never").state, codes("never")),
        (HookState::Failed, vec![Some(4), Some(4)])
    );
    assert_eq!((t.ran("third"), t.ran("never")), (3, 2));
    assert_eq!(end.result.as_deref(), Some("Succeeded"));
}

#[tokio::test]
async fn a_run_of_a_newer_version_waits_and_hides_no_others() {
    let t = Scenario::new("newer").await;
    let backup = t.back_up_and_lose_pods(&[t.pod("app"), t.pod("future")]).await;
    let begun = t
        .restore(&backup)
        .hooks(rule_for("app", "spec", &[exec(&trace("post"))]))
        .begin()
        .await;
    let pod = t.running("future").await;
    let run = serde_json::json!({
        "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {"name": "future"},
        "spec": {
            "pod": {"name": "future", "uid": pod.metadata.uid, "createdAt": pod.metadata.creation_timestamp},
            "plan": {"version": 99, "plannedAt": "2026-01-01T00:00:00Z"},
        },
    });
    t.create(&run).await;
    eventually("an Event says that it waits for a newer version", async || {
        let notes = t.events("future", "PlanNotUnderstood").await;
        notes.iter().any(|note| note.contains("99")).then_some(())
    })
    .await;
    begun.finish().await.assert_all_well(1);
    assert_eq!(t.ran("post"), 1);
    let left = kubectl(&[
        "-n",
        &t.namespace,
        "get",
        "hookrun",
        "future",
        "-o",
        "jsonpath={.status}",
    ]);
    assert_eq!(left, "", "nothing is written to it");
}
