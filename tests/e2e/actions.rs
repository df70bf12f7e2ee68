//! Blueprint actions before and after restores and backups: what runs when, how often, with what in hand.

use reveille::{
    actions::action::ActionKind,
    api::action::{ActionPhase, HookName, StepState},
};
use serde_json::{Value, json};

use crate::harness::*;

/// A phase's output, as a command writes it.
fn output(key: &str, value: &str) -> String {
    format!("echo '###Phase-output###: {{\"key\":\"{key}\",\"value\":\"{value}\"}}'")
}

/// preHook hands an artifact on; the others write into the trace what they got.
fn handing_on(t: &Scenario) -> Value {
    let before = t.task(
        "first",
        &format!(
            "{}; echo {{{{ .Namespace.Name }}}} {{{{ if .Object }}}}there{{{{ else }}}}absent{{{{ end }}}} >> {TRACES}/pre",
            output("token", "from-pre")
        ),
    );
    let artifacts = json!({"handed": {"keyValue": {"token": "{{ .Phases.first.Output.token }}"}}});
    let script = |name: &str| {
        format!("echo '{{{{ .ArtifactsIn.handed.KeyValue.token }}}} {{{{ .Namespace.Name }}}}' >> {TRACES}/{name}")
    };
    json!({
        "pre": {"phases": [before], "outputArtifacts": artifacts},
        "good": phases(&[t.task("only", &script("good"))]),
        "bad": phases(&[t.task("only", &script("bad"))]),
    })
}

#[tokio::test]
async fn artifacts_go_from_pre_hook_to_on_success_or_to_on_failure() {
    let t = Scenario::new("act-artifacts").await;
    let controller = Controller::start(&t, &[]).await;
    controller.blueprint("b", handing_on(&t)).await;
    let backup = t
        .back_up_and_lose(&[t.pod("app").annotate(post("command"), trace("post"))])
        .await;
    let hooks = json!({"preHook": hook("pre"), "onSuccess": hook("good"), "onFailure": hook("bad")});

    let well = controller
        .restore(json!({"backupName": backup}), hooks.clone())
        .await
        .finish()
        .await;
    assert_eq!(well.phase, ActionPhase::Succeeded, "{}", well.message);
    assert_eq!(well.namespaces, std::slice::from_ref(&t.namespace));
    assert_eq!(state(&well, HookName::OnFailure), StepState::Skipped);
    assert_eq!(t.read("good"), format!("from-pre {}\n", t.namespace));
    // A namespace that is not there yet has a name all the same.
    assert_eq!(t.read("pre"), format!("{} absent\n", t.namespace));
    // The post-restore hook of the pod had ended before onSuccess began.
    assert_eq!((t.ran("post"), t.ran("bad")), (1, 0));

    // Velero refuses a Restore that both includes and excludes a namespace: it fails after the preHook.
    let spec = json!({"backupName": backup, "includedNamespaces": [t.namespace], "excludedResources": ["pods"],
        "includedResources": ["pods"]});
    let badly = controller.restore(spec, hooks).await.finish().await;
    assert_eq!(badly.phase, ActionPhase::Failed, "{}", badly.message);
    assert_eq!(
        badly.velero.as_ref().unwrap().phase,
        "FailedValidation",
        "{}",
        badly.message
    );
    assert_eq!(t.read("bad"), format!("from-pre {}\n", t.namespace));
    assert!(t.read("pre").ends_with(&format!("\n{} there\n", t.namespace)));
    assert_eq!((t.ran("pre"), t.ran("good")), (2, 1));
}

#[tokio::test]
async fn a_failing_restore_leads_to_on_failure_once() {
    let t = Scenario::new("act-failing").await;
    let controller = Controller::start(&t, &["--hook-retries=2"]).await;
    let actions = json!({
        "pre": phases(&[t.task("p", &trace_script("pre"))]),
        // It fails itself, and is not tried again.
        "bad": phases(&[t.task("p", &format!("{}; exit 3", trace_script("bad")))]),
    });
    controller.blueprint("b", actions).await;
    let hooks = json!({"preHook": hook("pre"), "onFailure": hook("bad")});

    let missing = json!({"backupName": "there-is-none", "includedNamespaces": [t.namespace]});
    let missing = controller.restore(missing, hooks.clone()).await.finish().await;
    assert_eq!(missing.phase, ActionPhase::Failed);
    assert!(
        missing.message.contains("Backup there-is-none does not exist"),
        "{}",
        missing.message
    );
    assert_eq!(missing.velero, None, "Velero was not asked");
    assert_eq!((t.ran("pre"), t.ran("bad")), (0, 1));
    let on_failure = invocation(&missing, HookName::OnFailure).unwrap();
    assert_eq!((on_failure.state, on_failure.attempt), (StepState::Failed, 1));
    assert!(on_failure.message.contains("exit code 3"), "{}", on_failure.message);

    // Nor is there a place for a backup.
    let nowhere = json!({"includedNamespaces": [t.namespace], "storageLocation": "nowhere"});
    let spec = json!({"backup": nowhere, "hooks": hooks});
    let nowhere = controller.action(ActionKind::Backup, spec).await.finish().await;
    assert_eq!((nowhere.phase, nowhere.velero), (ActionPhase::Failed, None));
    assert!(
        nowhere.message.contains("there is no backup location nowhere"),
        "{}",
        nowhere.message
    );
    assert_eq!((t.ran("pre"), t.ran("bad")), (0, 2));

    // All was restored, but a hook of a restored pod that counts has failed.
    let app = t
        .pod("app")
        .annotate(post("command"), sh("exit 1"))
        .annotate(post("on-error"), "Fail");
    let backup = t.back_up_and_lose_pods(&[app]).await;
    let hook_failed = controller
        .restore(json!({"backupName": backup}), hooks.clone())
        .await
        .finish()
        .await;
    assert_eq!(hook_failed.phase, ActionPhase::Failed);
    assert!(
        hook_failed.message.contains("hooks of the restored pods"),
        "{}",
        hook_failed.message
    );
    assert_eq!((t.ran("pre"), t.ran("bad")), (1, 3));

    // A pod that the cluster refuses makes Velero's end PartiallyFailed.
    t.lose_pods().await;
    kubectl(&[
        "label",
        "namespace",
        &t.namespace,
        "pod-security.kubernetes.io/enforce=restricted",
    ]);
    t.refuses(&t.pod("app"), "restricted").await;
    let refused = controller
        .restore(json!({"backupName": backup}), hooks)
        .await
        .finish()
        .await;
    assert_eq!(refused.phase, ActionPhase::Failed);
    assert_eq!(
        refused.velero.as_ref().unwrap().phase,
        "PartiallyFailed",
        "{}",
        refused.message
    );
    assert_eq!((t.ran("pre"), t.ran("bad")), (2, 4));
}

#[tokio::test]
async fn two_namespaces_get_two_invocations_and_a_refused_action_runs_nothing() {
    let t = Scenario::new("act-two").await;
    let controller = Controller::start(&t, &[]).await;
    let other = controller.namespace.clone();
    let actions = json!({"a": phases(&[t.task("p", &format!("echo {{{{ .Namespace.Name }}}} >> {TRACES}/a"))])});
    controller.blueprint("b", actions).await;
    let backup = json!({"includedNamespaces": [t.namespace, other], "snapshotVolumes": false});
    let hooks = json!({"preHook": hook("a"), "onSuccess": hook("a")});
    let spec = json!({"backup": backup, "hooks": hooks});
    // In another namespace it counts for nothing.
    let elsewhere = json!({
        "apiVersion": "reveille.dev/v1alpha1", "kind": "BackupAction", "metadata": {"name": "elsewhere"}, "spec": spec,
    });
    t.create(&elsewhere).await;
    let status = controller.action(ActionKind::Backup, spec).await.finish().await;
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    let mut ran: Vec<String> = t.read("a").lines().map(str::to_owned).collect();
    ran.sort();
    let mut expected = vec![t.namespace.clone(), t.namespace.clone(), other.clone(), other.clone()];
    expected.sort();
    assert_eq!(ran, expected);

    // What can't be found is refused by name, whatever else there is.
    let check = async |hooks: Value, words: &[&str]| {
        let refused = controller.back_up(hooks).await.finish().await;
        assert_eq!((refused.phase, refused.velero), (ActionPhase::Refused, None));
        for word in words {
            assert!(refused.message.contains(word), "{}", refused.message);
        }
    };
    check(
        json!({"preHook": hook("a"), "onSuccess": hook("zz")}),
        &["hooks.onSuccess", "zz"],
    )
    .await;
    let missing = json!({"blueprint": "none", "actionName": "a"});
    check(
        json!({"preHook": hook("a"), "onFailure": missing}),
        &["hooks.onFailure", "Blueprint none does not exist"],
    )
    .await;
    let unknown = json!({
        "unknown": phases(&[json!({"func": "BackupData", "name": "p", "args": {}})]),
        "argument": phases(&[json!({"func": "KubeTask", "name": "p", "args": {"image": "x", "comand": ["ls"]}})]),
        "profile": phases(&[t.task("p", "echo {{ .Profile.Location.Bucket }}")]),
    });
    controller.create(&json!({"apiVersion": "cr.kanister.io/v1alpha1", "kind": "Blueprint", "metadata": {"name": "wrong"}, "actions": unknown})).await;
    let wrong = |action: &str| json!({"blueprint": "wrong", "actionName": action});
    check(
        json!({"preHook": hook("a"), "onSuccess": wrong("unknown")}),
        &["hooks.onSuccess", "BackupData"],
    )
    .await;
    check(
        json!({"preHook": hook("a"), "onFailure": wrong("argument")}),
        &["hooks.onFailure", "comand"],
    )
    .await;
    check(
        json!({"preHook": hook("a"), "onSuccess": wrong("profile")}),
        &["hooks.onSuccess", "no location profile"],
    )
    .await;
    assert_eq!(t.ran("a"), 4, "nothing more has run");

    // What can't be read is not even taken.
    let unreadable = json!({
        "apiVersion": "reveille.dev/v1alpha1", "kind": "BackupAction", "metadata": {"name": "unreadable", "namespace": other},
        "spec": {"backup": {}, "hooks": {}, "hookTimeout": "20 minutes"},
    });
    let taken = run(
        "kubectl",
        &["apply", "-f", &t.write("unreadable.json", &unreadable.to_string())],
    );
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(!taken.status.success() && said.contains("spec.hookTimeout"), "{said}");
    let shown = kubectl(&[
        "-n",
        &t.namespace,
        "get",
        "backupaction",
        "elsewhere",
        "-o",
        "jsonpath={.status}",
    ]);
    assert_eq!(shown, "");
}

#[tokio::test]
async fn a_hook_that_fails_is_tried_again_one_that_succeeded_is_not_and_a_failed_on_success_leads_to_on_failure() {
    let t = Scenario::new("act-retry").await;
    let controller = Controller::start(&t, &["--hook-retries=1"]).await;
    // Fails the first time.
    let flaky = format!("{}; mkdir {TRACES}/second || exit 0; exit 7", trace_script("flaky"));
    let actions = json!({
        "pre": {"phases": [t.task("p", &flaky)], "deferPhase": t.task("", &trace_script("deferred"))},
        "good": phases(&[t.task("p", &format!("{}; exit 4", trace_script("good"))), t.task("q", &trace_script("never"))]),
        "bad": phases(&[t.task("p", &trace_script("bad"))]),
    });
    controller.blueprint("b", actions).await;
    let hooks = json!({"preHook": hook("pre"), "onSuccess": hook("good"), "onFailure": hook("bad")});
    let status = controller.back_up(hooks).await.finish().await;
    assert_eq!(status.phase, ActionPhase::Failed);
    let pre = invocation(&status, HookName::PreHook).unwrap();
    assert_eq!(
        (pre.state, pre.attempt, pre.earlier_failures.len()),
        (StepState::Succeeded, 2, 1)
    );
    assert!(
        pre.earlier_failures[0].contains("exit code 7"),
        "{:?}",
        pre.earlier_failures
    );
    let good = invocation(&status, HookName::OnSuccess).unwrap();
    assert_eq!((good.state, good.attempt), (StepState::Failed, 2));
    assert_eq!(state(&status, HookName::OnFailure), StepState::Succeeded);
    assert_eq!(
        (
            t.ran("flaky"),
            t.ran("deferred"),
            t.ran("good"),
            t.ran("never"),
            t.ran("bad")
        ),
        (2, 2, 2, 0, 1)
    );
}

#[tokio::test]
async fn cancelling_stops_the_hook_and_nothing_else_begins() {
    let t = Scenario::new("act-cancel").await;
    let controller = Controller::start(&t, &[]).await;
    let wait = format!(
        "{}; until [ -e {TRACES}/never ]; do sleep 0.2; done",
        trace_script("pre")
    );
    let actions =
        json!({"pre": phases(&[t.task("p", &wait)]), "other": phases(&[t.task("p", &trace_script("other"))])});
    controller.blueprint("b", actions).await;
    let begun = controller
        .back_up(json!({"preHook": hook("pre"), "onSuccess": hook("other"), "onFailure": hook("other")}))
        .await;
    begun.runs(HookName::PreHook, "p").await;
    eventually("the command runs", async || (t.ran("pre") == 1).then_some(())).await;
    begun.cancel();
    let status = begun.finish().await;
    assert_eq!(status.phase, ActionPhase::Cancelled);
    assert!(status.message.contains("the test says so"), "{}", status.message);
    assert_eq!((status.velero, t.ran("other")), (None, 0));

    // An action that is deleted takes its pods with it.
    let begun = controller.back_up(json!({"preHook": hook("pre")})).await;
    eventually("the command runs", async || (t.ran("pre") == 2).then_some(())).await;
    kubectl(&["-n", &controller.namespace, "delete", "backupaction", &begun.name]);
    begun.leaves_no_pods().await;
}
