//! Hooks that an annotation on a Velero object asks for; a restore of everything; what `reveille status` shows.

use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};
use reveille::{
    actions::{action::ActionKind, policy::HOOKS_ANNOTATION},
    api::action::{ActionPhase, HookName, StepState},
};
use serde_json::json;

use crate::harness::*;

/// Gives a Restore an annotation with a key that nobody knows, and waits until its Event has been written so many times.
async fn misspell(t: &Scenario, restore: &str, key: &str, times: i32) {
    let annotation = format!("{HOOKS_ANNOTATION}={key}: {{blueprint: b, actionName: good}}");
    kubectl(&["-n", VELERO, "annotate", "--overwrite", "restore", restore, &annotation]);
    let events: Api<Event> = Api::namespaced(t.client.clone(), VELERO);
    let about = ListParams::default().fields(&format!("involvedObject.name={restore},reason=HooksRefused"));
    eventually(&format!("{key} is named by an Event"), async || {
        let list = events.list(&about).await.unwrap();
        let named = |event: &&Event| event.message.as_ref().is_some_and(|message| message.contains(key));
        let event = list.iter().find(named)?;
        let count = event.series.as_ref().and_then(|series| series.count).unwrap_or(1);
        (count == times).then_some(())
    })
    .await;
}

#[tokio::test]
async fn annotations_on_velero_objects_name_on_success_and_on_failure_but_no_pre_hook() {
    let t = Scenario::new("act-policy").await;
    let controller = Controller::start(&t, &["--policies=true"]).await;
    let actions = json!({"good": phases(&[t.task("p", &trace_script("good"))]), "bad": phases(&[t.task("p", &trace_script("bad"))])});
    controller.blueprint("b", actions).await;
    let hooks = "onSuccess: {blueprint: b, actionName: good}\nonFailure: {blueprint: b, actionName: bad}\n";
    // A Schedule is a policy for its Backups: Velero copies its annotations.
    let name = format!("{}-s", t.namespace);
    let schedule = json!({
        "apiVersion": "velero.io/v1", "kind": "Schedule",
        "metadata": {"name": name, "namespace": VELERO, "annotations": {HOOKS_ANNOTATION: hooks}},
        "spec": {"schedule": "@yearly", "skipImmediately": true, "template": {"includedNamespaces": [t.namespace], "snapshotVolumes": false}},
    });
    let path = t.write("schedule.json", &schedule.to_string());
    kubectl(&["apply", "-f", &path]);
    let backup = format!("{name}-1");
    must_run(
        "velero",
        &["backup", "create", &backup, "--from-schedule", &name, "-n", VELERO],
    );
    let status = controller.made(ActionKind::Backup, &backup).await.finish().await;
    kubectl(&["-n", VELERO, "delete", "schedule", &name]);
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    assert_eq!((t.ran("good"), t.ran("bad")), (1, 0));

    // A Restore that fails.
    let failing = t
        .restore(&backup)
        .annotate(HOOKS_ANNOTATION, hooks)
        .edit(|restore| {
            restore["spec"]["includedNamespaces"] = json!([t.namespace]);
            restore["spec"]["includedResources"] = json!(["pods"]);
            restore["spec"]["excludedResources"] = json!(["pods"]);
        })
        .begin()
        .await;
    let status = controller.made(ActionKind::Restore, &failing.name).await.finish().await;
    assert_eq!(status.phase, ActionPhase::Failed, "{}", status.message);
    assert_eq!((t.ran("good"), t.ran("bad")), (1, 1));

    // Nothing can come before: the whole is refused, with the reason.
    let with_pre = format!("{hooks}preHook: {{blueprint: b, actionName: good}}\n");
    let refused = t.restore(&backup).annotate(HOOKS_ANNOTATION, with_pre).begin().await;
    let status = controller.made(ActionKind::Restore, &refused.name).await.finish().await;
    assert_eq!(status.phase, ActionPhase::Refused);
    assert!(
        status.message.contains("hooks.preHook") && status.message.contains("no gate"),
        "{}",
        status.message
    );
    refused.finish().await;
    assert_eq!((t.ran("good"), t.ran("bad")), (1, 1));
    for (key, times) in [("onFailed", 1), ("afterwards", 1), ("onFailed", 2)] {
        misspell(&t, &refused.name, key, times).await;
    }

    // The record goes with the object that it is about.
    failing.delete().await;
    kubectl(&["-n", VELERO, "delete", "backup", &backup]);
    for (kind, about) in [(ActionKind::Restore, &failing.name), (ActionKind::Backup, &backup)] {
        eventually("its action is gone", async || {
            let left = controller.api(kind).list(&ListParams::default()).await.unwrap();
            let is_left = left
                .iter()
                .any(|action| action.data["spec"]["existing"]["name"] == **about);
            (!is_left).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_restore_of_everything_gets_its_namespaces_from_the_backups_resource_list() {
    let t = Scenario::new("act-all").await;
    let controller = Controller::start(&t, &[]).await;
    controller
        .blueprint(
            "b",
            json!({"a": phases(&[t.task("p", &format!("echo {{{{ .Namespace.Name }}}} >> {TRACES}/a"))])}),
        )
        .await;
    t.start(&[t.pod("app")]).await;
    let only = format!("only={}", t.namespace);
    kubectl(&["-n", &t.namespace, "label", "pod", "app", &only]);
    // A Backup that names no namespace; a label keeps everybody else out of it.
    let name = t
        .backup_with(json!({"labelSelector": {"matchLabels": {"only": t.namespace}}}))
        .await;
    t.lose_pods().await;
    let status = controller
        .restore(json!({"backupName": name}), json!({"onSuccess": hook("a")}))
        .await
        .finish()
        .await;
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    assert_eq!(status.namespaces, std::slice::from_ref(&t.namespace));
    assert_eq!(state(&status, HookName::OnSuccess), StepState::Succeeded);
    assert_eq!(t.read("a"), format!("{}\n", t.namespace));
}
