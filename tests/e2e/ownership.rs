//! Who runs the hooks of a Restore: each command runs once, whoever it is.

use reveille::names::{HOOKS_ANNOTATION, INJECTION_LABEL, MODE_ANNOTATION};
use serde_json::json;

use crate::harness::*;

/// Pods with a hook for Velero, with one that only Reveille knows, and with none of their own.
fn pods(t: &Scenario) -> [PodSpec; 3] {
    [
        t.pod("velero").annotate(post("command"), trace("velero")),
        t.pod("reveille")
            .annotate("post.hook.restore.reveille.dev/command", trace("reveille")),
        t.pod("none"),
    ]
}

/// A rule that hits the pod without hooks of its own.
fn spec_hook() -> serde_json::Value {
    rule_for("none", "spec", &[exec(&trace("spec"))])
}

/// How often each of the hooks ran.
fn counts(t: &Scenario) -> (usize, usize, usize) {
    (t.ran("velero"), t.ran("reveille"), t.ran("spec"))
}

#[tokio::test]
async fn alongside_velero_runs_what_it_knows_and_reveille_the_rest() {
    let t = Scenario::new("alongside").await;
    let backup = t.back_up_and_lose(&pods(&t)).await;
    let own = json!({"resources": [rule_for("none", "own", &[exec(&trace("own"))])]});
    let restore = t
        .restore(&backup)
        .annotate(MODE_ANNOTATION, "alongside")
        .annotate(HOOKS_ANNOTATION, own)
        .hooks(spec_hook())
        .run()
        .await;

    assert!(!restore.is_marked() && !restore.has_moved_hooks());
    assert_eq!(restore.phase, "Completed");
    assert_eq!(counts(&t), (1, 1, 1));
    assert_eq!(t.ran("own"), 1);
    // The line by which all other tests see that Velero ran nothing is there when it runs something.
    let ran = t.velero_ran();
    assert_eq!(ran.len(), 2, "{ran:?}");
    assert!(
        ran.iter()
            .any(|line| line.contains("hookSource=annotation") && line.contains("/velero ")),
        "{ran:?}"
    );
    assert!(ran.iter().any(|line| line.contains("hookSource=spec")), "{ran:?}");
    assert_eq!(restore.runs.len(), 2);
    assert_eq!(
        (
            restore.post("reveille").attempts.len(),
            restore.post("none").attempts.len()
        ),
        (1, 1)
    );
    // What is Velero's stays on its pod, and Velero sees it.
    let pod = t.running("velero").await;
    assert_eq!(
        annotation_of(&pod, &post("command")),
        Some(trace("velero").to_string().as_str())
    );
}

#[tokio::test]
async fn off_leaves_a_restore_to_velero() {
    let t = Scenario::new("off").await;
    let backup = t.back_up_and_lose(&pods(&t)).await;
    let restore = t
        .restore(&backup)
        .annotate(MODE_ANNOTATION, "off")
        .hooks(spec_hook())
        .run()
        .await;

    assert!(!restore.is_marked());
    assert_eq!((restore.phase.as_str(), restore.runs.len()), ("Completed", 0));
    assert_eq!(counts(&t), (1, 0, 1));
    assert_eq!(t.velero_ran().len(), 2);
    assert_eq!(webhook_calls(&t.audited_restore("reveille").await), [false]);
}

#[tokio::test]
async fn a_namespace_that_is_disabled_keeps_its_annotation_hooks_with_velero() {
    let t = Scenario::with_namespace_labels("disabled", json!({INJECTION_LABEL: "disabled"})).await;
    let backup = t.back_up_and_lose(&pods(&t)).await;
    let restore = t.restore(&backup).run().await;

    assert_eq!((restore.phase.as_str(), restore.runs.len()), ("Completed", 0));
    assert_eq!(counts(&t), (1, 0, 0));
    assert_eq!(t.velero_ran().len(), 1);
    assert_eq!(
        webhook_calls(&t.audited_restore("velero").await),
        Vec::<bool>::new(),
        "never called there"
    );
}

#[tokio::test]
async fn hooks_too_large_to_move_stay_with_velero_and_run_once() {
    let t = Scenario::new("large-hooks").await;
    let backup = t.back_up_and_lose(&[t.pod("none")]).await;
    // The size is in hooks that match nothing: a command line has limits of its own.
    let elsewhere = json!({
        "name": "elsewhere", "includedNamespaces": ["there-is-no-such-namespace"],
        "postHooks": [exec(&json!(["/bin/true", "x".repeat(210 * 1024)]))],
    });
    let spec = t
        .restore(&backup)
        .hooks(spec_hook())
        .hooks(elsewhere)
        .name(&format!("{}-r", t.namespace));
    let path = t.write("restore.json", &spec.json().to_string());
    let output = run("kubectl", &["create", "-f", &path]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("Warning:") && said.contains("Velero runs the post hooks"),
        "{said}"
    );
    let restore = BegunRestore::existing(&t, &format!("{}-r", t.namespace))
        .await
        .finish()
        .await;

    assert!(!restore.is_marked());
    assert_eq!((restore.phase.as_str(), restore.runs.len()), ("Completed", 0));
    assert_eq!((t.ran("spec"), t.velero_ran().len()), (1, 1));
}

/// Velero then updates the status of what it has just created, with the metadata from before admission.
fn with_pod_status<'a>(t: &'a Scenario, backup: &str) -> RestoreSpec<'a> {
    t.restore(backup)
        .edit(|restore| restore["spec"]["restoreStatus"] = json!({"includedResources": ["pods"]}))
        .hooks(spec_hook())
}

#[tokio::test]
async fn a_restore_of_pods_with_their_status_runs_each_hook_once() {
    let t = Scenario::alone("pod-status").await;
    // Without the policy that protects plans they would be undone.
    install(&["policies.podMarks=Off"]);
    // A webhook that was told of a policy plans on it.
    old_pods_are_gone(&t.client).await;
    let backup = t.back_up_and_lose_pods(&pods(&t)).await;
    let restore = with_pod_status(&t, &backup).run().await;

    // The status from the backup says Running before the container is, so Velero's one try may come too early: that failure
    // is its own, stands in its log and in its phase. (Without Reveille it is the same.)
    let (started, failed) = (t.velero_ran().len(), t.velero_failed().len());
    let phase = ["Completed", "PartiallyFailed"][failed.min(1)];
    assert_eq!((restore.phase.as_str(), started), (phase, 1));
    assert_eq!(counts(&t), (1 - failed, 1, 1));
}

#[tokio::test]
async fn with_the_policy_on_marks_a_restore_of_pods_with_their_status_is_like_any_other() {
    let t = Scenario::new("protected").await;
    let backup = t.back_up_and_lose(&pods(&t)).await;
    let restore = with_pod_status(&t, &backup).run().await;

    restore.assert_all_well(3);
    assert_eq!(counts(&t), (1, 1, 1));
    assert_eq!(t.velero_ran(), Vec::<String>::new());
    // The update of the status was refused, which Velero notes and goes on.
    assert!(
        restore.object["status"]["warnings"].as_u64() >= Some(3),
        "{}",
        restore.object["status"]
    );
}
