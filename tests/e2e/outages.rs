//! Reveille comes, goes, or is away: each hook of a Restore runs once all the same. These tests have the cluster to themselves.

use reveille::names::MODE_ANNOTATION;

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

/// How often each of the hooks ran, and how many of them Velero ran.
fn counts(t: &Scenario) -> (usize, usize, usize, usize) {
    (t.ran("velero"), t.ran("reveille"), t.ran("spec"), t.velero_ran().len())
}

#[tokio::test]
async fn a_restore_made_before_the_installation_is_taken_over_if_velero_has_not_begun() {
    let t = Scenario::alone("before").await;
    let backup = t.back_up_and_lose_pods(&pods(&t)).await;
    uninstall();
    scale_velero(0);
    let begun = t.restore(&backup).hooks(spec_hook()).begin().await;
    assert!(!begun.now().await.is_marked());
    install(&[]);
    webhook_answers(&t.client).await;
    // The first thing that Velero does with a Restore is to put its finalizer on it. There it is marked.
    scale_velero(1);
    let restore = begun.finish().await;

    assert!(restore.is_marked());
    restore.assert_all_well(3);
    assert_eq!(counts(&t), (1, 1, 1, 0));
}

#[tokio::test]
async fn a_restore_that_nobody_could_mark_stays_veleros() {
    let t = Scenario::alone("down").await;
    let backup = t.back_up_and_lose_pods(&pods(&t)).await;
    scale_velero(0);
    scale_reveille(0);
    // With Velero's finalizer on it from the start the next thing that Velero does is to begin.
    let finalizer = "restores.velero.io/external-resources-finalizer";
    let begun = t
        .restore(&backup)
        .edit(|restore| restore["metadata"]["finalizers"] = serde_json::json!([finalizer]))
        .hooks(spec_hook())
        .begin()
        .await;
    scale_reveille(1);
    webhook_answers(&t.client).await;
    scale_velero(1);
    let restore = begun.finish().await;

    assert!(!restore.is_marked());
    assert_eq!(restore.phase, "Completed");
    // Velero runs what it knows, Reveille what it alone knows, each once.
    assert_eq!(counts(&t), (1, 1, 1, 2));
    assert_eq!((restore.runs.len(), restore.post("reveille").attempts.len()), (1, 1));
}

#[tokio::test]
async fn while_reveille_is_away_velero_works_as_ever_and_nothing_is_run_later() {
    let t = Scenario::alone("away").await;
    let backup = t.back_up_and_lose_pods(&pods(&t)).await;
    scale_reveille(0);
    let restore = t.restore(&backup).hooks(spec_hook()).run().await;
    assert_eq!((restore.phase.as_str(), restore.is_marked()), ("Completed", false));
    assert_eq!(counts(&t), (1, 0, 1, 2));
    scale_reveille(1);
    webhook_answers(&t.client).await;
    // A further restore that runs to its end shows that the waiter is at work again.
    t.lose_pods().await;
    t.restore(&backup).hooks(spec_hook()).run().await.assert_all_well(3);
    assert_eq!(counts(&t), (2, 1, 2, 2));
}

#[tokio::test]
async fn beside_an_installation_that_is_alongside_one_restore_can_be_taken_over() {
    let t = Scenario::alone("one-restore").await;
    let backup = t.back_up_and_lose_pods(&pods(&t)).await;
    install(&["velero.mode=alongside"]);
    webhook_answers(&t.client).await;
    let restore = t
        .restore(&backup)
        .annotate(MODE_ANNOTATION, "takeover")
        .hooks(spec_hook())
        .run()
        .await;
    restore.assert_all_well(3);
    assert_eq!(counts(&t), (1, 1, 1, 0));

    // The next one says nothing, and is Velero's as the installation says.
    t.lose_pods().await;
    let restore = t.restore(&backup).hooks(spec_hook()).run().await;
    assert_eq!((restore.is_marked(), restore.runs.len()), (false, 1));
    assert_eq!(counts(&t), (2, 2, 2, 2));
}

#[tokio::test]
async fn uninstalling_leaves_no_webhook_and_gives_velero_its_hooks_back() {
    let t = Scenario::alone("uninstall").await;
    let backup = t.back_up_and_lose_pods(&pods(&t)).await;
    uninstall();
    let left = kubectl(&[
        "get",
        "mutatingwebhookconfigurations,validatingwebhookconfigurations",
        "-o",
        "name",
    ]);
    assert!(!left.contains("reveille"), "{left}");
    let restore = t.restore(&backup).hooks(spec_hook()).run().await;

    assert_eq!((restore.phase.as_str(), restore.runs.len()), ("Completed", 0));
    assert_eq!(counts(&t), (1, 0, 1, 2));
    assert!(
        !t.pod_now("velero").await["metadata"]
            .to_string()
            .contains("reveille.dev/plan")
    );
}

#[tokio::test]
async fn uninstalling_in_the_middle_of_a_restore_waits_for_its_hooks_and_leaves_nothing() {
    let t = Scenario::alone("release").await;
    let script = format!("until [ -e /traces/go ]; do sleep 0.1; done; {}", trace_script("slow"));
    let slow = t
        .pod("slow")
        .annotate(post("command"), sh(&script))
        .annotate(post("exec-timeout"), "5m");
    let backup = t.back_up_and_lose_pods(&[slow]).await;
    let begun = t.restore(&backup).begin().await;
    begun
        .reaches("the hook runs", |now| {
            now.run_of("slow")?.status.as_ref()?.started_at.clone()
        })
        .await;
    let uninstalling = tokio::task::spawn_blocking(uninstall);
    eventually("the webhook is gone first", async || {
        let left = kubectl(&["get", "mutatingwebhookconfigurations", "-o", "name"]);
        (!left.contains("reveille")).then_some(())
    })
    .await;
    assert_eq!(t.ran("slow"), 0);
    t.signal("go");
    uninstalling.await.unwrap();

    let restore = begun.finish().await;
    restore.assert_all_well(1);
    assert_eq!((t.ran("slow"), t.velero_ran().len()), (1, 0));
    let pod = t.running("slow").await;
    assert_only_the_mark_stays(&pod, &restore);
    assert_eq!(
        annotation_of(&pod, &post("command")),
        Some(sh(&script).to_string().as_str())
    );
}

#[tokio::test]
async fn a_restore_that_is_applied_again_and_again_runs_its_hooks_once() {
    let t = Scenario::alone("apply").await;
    let backup = t.back_up_and_lose_pods(&[t.pod("app")]).await;
    let name = format!("{}-r", t.namespace);
    let script = format!("{}; until [ -e /traces/go ]; do sleep 0.1; done", trace_script("post"));
    let hook = rule("spec", &[exec(&sh(&script)), exec(&trace("second"))]);
    let path = t.write(
        "restore.json",
        &t.restore(&backup).hooks(hook).name(&name).json().to_string(),
    );
    let apply = || kubectl(&["apply", "-f", &path]);
    scale_velero(0);
    assert!(apply().contains("created"));
    // Velero has not begun: what apply puts back is moved again.
    apply();
    let begun = BegunRestore::existing(&t, &name).await;
    let now = begun.now().await;
    assert!(now.is_marked() && now.has_moved_hooks());
    assert_eq!(
        now.object["spec"]["hooks"]["resources"][0]["postHooks"],
        serde_json::json!([])
    );
    scale_velero(1);
    begun
        .reaches("the first hook runs", |now| {
            now.run_of("app")?.status.as_ref()?.started_at.as_ref().map(|_| ())
        })
        .await;
    // And while it runs.
    apply();
    t.signal("go");
    let restore = begun.finish().await;
    apply();

    restore.assert_all_well(1);
    assert_eq!((t.ran("post"), t.ran("second")), (1, 1));
    assert_eq!(t.velero_ran(), Vec::<String>::new());
}
