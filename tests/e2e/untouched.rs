//! What Reveille leaves alone.

use serde_json::{Value, json};

use crate::harness::*;

/// Keys of Reveille anywhere in an object.
fn reveille_words(value: &Value) -> usize {
    value.to_string().matches("reveille.dev").count()
}

#[tokio::test]
async fn a_restored_pod_without_hooks_is_admitted_byte_for_byte() {
    let t = Scenario::new("no-hooks").await;
    let with_hooks = t.pod("with").annotate(post("command"), trace("post"));
    let backup = t.back_up_and_lose(&[t.pod("without"), with_hooks]).await;
    let restore = t.restore(&backup).run().await;

    restore.assert_all_well(1);
    assert!(restore.run_of("without").is_none());
    let pod = t.pod_now("without").await;
    assert_eq!(reveille_words(&pod["metadata"]), 0, "{pod}");
    // The API server's word for it: the webhook was asked about both, and changed the one with hooks only.
    assert_eq!(webhook_calls(&t.audited_restore("without").await), [false]);
    assert_eq!(webhook_calls(&t.audited_restore("with").await), [true]);
}

#[tokio::test]
async fn the_webhook_never_hears_of_ordinary_pods() {
    let t = Scenario::in_quiet("ordinary").await;
    let calls = || {
        let metrics = kubectl(&["get", "--raw", "/metrics"]);
        let of_pods = metrics.lines().filter(|line| {
            line.starts_with("apiserver_admission_webhook_request_total{")
                && line.contains("name=\"restored-pods.reveille.dev\"")
        });
        let counts = of_pods.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        counts.sum::<f64>()
    };
    let before = calls();
    // Hook annotations alone, as in every pod template, make no pod a restored one.
    for index in 0..20 {
        let pod = t.pod(&format!("pod-{index}")).annotate(post("command"), trace("post"));
        t.submit(&pod).await;
    }
    assert!((calls() - before).abs() < 0.5, "ordinary pods came to the webhook");
    // The counter does count: a pod with a stale label is asked about, and left alone.
    let stale = t
        .pod("stale")
        .label("velero.io/restore-name", "there-is-no-such-restore")
        .annotate(post("command"), trace("post"));
    t.submit(&stale).await;
    assert!(
        (calls() - before - 1.0).abs() < 0.5,
        "the webhook was asked once about a labelled pod"
    );
    t.running("stale").await;
    assert_eq!(reveille_words(&t.pod_now("stale").await["metadata"]), 0);
    assert_eq!(
        webhook_calls(&t.audited_creations("pod-0", None).await[0]),
        Vec::<bool>::new()
    );
    assert_eq!(t.ran("post"), 0);
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_leaves_nothing_behind() {
    let t = Scenario::new("dry-run").await;
    let object = json!({
        "apiVersion": "velero.io/v1", "kind": "Restore",
        "metadata": {"name": format!("{}-dry", t.namespace), "namespace": VELERO},
        "spec": {"backupName": "none", "hooks": {"resources": [rule("spec", &[exec(&trace("post"))])]}},
    });
    let answer = t.dry_run(&object).await;
    let annotations = &answer["metadata"]["annotations"];
    assert_eq!(
        (
            &annotations["reveille.dev/owner"],
            &annotations["reveille.dev/hooks-result"]
        ),
        (&json!("reveille"), &json!("Pending"))
    );
    assert_eq!(answer["spec"]["hooks"]["resources"][0]["postHooks"], json!([]));
    assert!(!kubectl(&["-n", VELERO, "get", "restores"]).contains(&t.namespace));
}
