//! What breaks in the middle: nothing is run twice, nothing is called a success that nobody saw. These tests have the cluster to
//! themselves.

use reveille::api::hook_run::{HookState, InitState, RunPhase};

use crate::harness::*;

/// A pod whose hook leaves a trace and then waits for a signal.
fn waiting_pod(t: &Scenario) -> PodSpec {
    let script = format!("{}; until [ -e /traces/go ]; do sleep 0.1; done", trace_script("ran"));
    t.pod("app")
        .annotate(post("command"), sh(&script))
        .annotate(post("exec-timeout"), "5m")
}

/// Begins a restore and waits until its hook runs.
async fn begin<'a>(t: &'a Scenario, backup: &str) -> BegunRestore<'a> {
    let begun = t.restore(backup).begin().await;
    eventually("the hook runs", async || (t.ran("ran") == 1).then_some(())).await;
    begun
}

/// The run has ended, nobody knows how the hook did, and it ran once.
async fn assert_unknown(t: &Scenario, begun: &BegunRestore<'_>) {
    begun
        .reaches("the hook's state is known to be unknown", |now| {
            let status = now.run_of("app")?.status.clone()?;
            (status.phase == RunPhase::PartiallyFailed && status.post[0].state == HookState::Unknown).then_some(())
        })
        .await;
    t.signal("go");
    let end = begun.finish().await;
    let post = end.post("app");
    assert_eq!(
        (t.ran("ran"), post.attempts.len(), post.attempts[0].exit_code),
        (1, 1, None)
    );
}

#[tokio::test]
async fn a_kubelet_that_dies_is_no_success() {
    let t = Scenario::alone("kubelet").await;
    let backup = t.back_up_and_lose(&[waiting_pod(&t)]).await;
    let begun = begin(&t, &backup).await;
    cluster_script(&["stop", &cluster_name(), "kubelet", "--kill"]);
    let unknown = begun
        .reaches("the hook has ended", |now| {
            let state = now.run_of("app")?.status.as_ref()?.post[0].state;
            state.is_final().then_some(state)
        })
        .await;
    cluster_script(&["start", &cluster_name(), "kubelet"]);
    assert_eq!(unknown, HookState::Unknown);
    assert_unknown(&t, &begun).await;
}

#[tokio::test]
async fn an_api_server_that_dies_is_no_success() {
    let t = Scenario::alone("api-server").await;
    let backup = t.back_up_and_lose(&[waiting_pod(&t)]).await;
    let begun = begin(&t, &backup).await;
    cluster_script(&["stop", &cluster_name(), "kube-apiserver", "--kill"]);
    cluster_script(&["start", &cluster_name(), "kube-apiserver"]);
    cluster_script(&["wait", &cluster_name(), "120"]);
    assert_unknown(&t, &begun).await;
}

#[tokio::test]
async fn a_waiter_that_dies_leaves_its_hook_unknown_and_runs_the_others() {
    let t = Scenario::alone("waiter").await;
    let backup = t.back_up_and_lose(&[waiting_pod(&t)]).await;
    let begun = begin(&t, &backup).await;
    kubectl(&["-n", REVEILLE, "delete", "pod", "--all", "--force", "--grace-period=0"]);
    assert_unknown(&t, &begun).await;
}

#[tokio::test]
async fn pods_that_the_webhook_was_not_asked_about_are_found() {
    let t = Scenario::alone("missed").await;
    let own = t
        .pod("own")
        .annotate(post("command"), trace("own"))
        .annotate(init("initContainers"), serde_json::json!([tracing_container("late")]));
    let backup = t.back_up_and_lose(&[own, t.pod("spec"), t.pod("none")]).await;
    scale_velero(0);
    let rule = rule_for("spec", "rule", &[exec(&trace("spec"))]);
    let begun = t.restore(&backup).hooks(rule).begin().await;
    // The Restore is marked by now; from here on nobody answers at the webhook's address.
    let target = |port: &str| {
        let patch = format!(r#"{{"spec":{{"ports":[{{"name":"https","port":443,"targetPort":{port}}}]}}}}"#);
        kubectl(&[
            "-n",
            REVEILLE,
            "patch",
            "service",
            "reveille",
            "--type=merge",
            "-p",
            &patch,
        ]);
    };
    target("9");
    scale_velero(1);
    let end = begun.finish().await;
    target("\"https\"");

    assert!(end.is_marked());
    assert_eq!((t.ran("own"), t.ran("spec"), t.ran("late")), (1, 1, 0));
    assert_eq!((t.velero_ran().len(), end.runs.len()), (1, 2));
    assert_eq!(
        (end.phase.as_str(), end.result.as_deref()),
        ("Completed", Some("Succeeded"))
    );
    assert_eq!(
        (end.post("own").state, end.init("own").state),
        (HookState::LeftToVelero, InitState::InjectionMissed)
    );
    assert_eq!(end.post("spec").state, HookState::Succeeded);
    let conditions: Vec<&str> = end
        .status("own")
        .conditions
        .iter()
        .map(|condition| condition.type_.as_str())
        .collect();
    let unusual = ["AdmissionMissed", "InjectionMissed", "LeftToVelero"];
    assert_eq!(conditions, [&unusual[..], &["Finished", "Succeeded"]].concat());
    for reason in unusual {
        assert_eq!(t.events("own", reason).await.len(), 1, "{reason}");
    }
    let shown = String::from_utf8_lossy(&reveille(&["check"]).stdout).into_owned();
    let missed = shown.lines().find(|line| line.contains("missed-admissions")).unwrap();
    assert!(missed.contains(&format!("{}/own", t.namespace)), "{shown}");
}
