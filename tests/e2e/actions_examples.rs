//! The two examples of the document about execution hooks, verbatim, with the chart's controller and its rights.

use kube::{Api, api::DynamicObject};
use reveille::{
    actions::action::ActionKind,
    api::action::{ActionPhase, ActionStatus, HookName, StepState},
};
use serde_json::{Value, json};

use crate::harness::*;

/// As the document has it.
const LABEL: &str = include_str!("../blueprints/document-post-export.yaml");
/// As the document has it.
const WAIT: &str = include_str!("../blueprints/document-post-restore.yaml");
/// Where the document has its Blueprints.
const KASTEN: &str = "kasten-io";

/// Runs an action in the document's namespace to its end.
async fn run_action(t: &Scenario, kind: ActionKind, name: &str, spec: Value) -> ActionStatus {
    let object = json!({
        "apiVersion": "reveille.dev/v1alpha1", "kind": kind.word(), "metadata": {"name": name, "namespace": KASTEN}, "spec": spec,
    });
    kubectl(&["apply", "-f", &t.write("action.json", &object.to_string())]);
    let api: Api<DynamicObject> = Api::namespaced_with(t.client.clone(), KASTEN, &kind.resource());
    eventually(&format!("action {name} is finished"), async || {
        let action = api.get(name).await.unwrap();
        let status: ActionStatus = serde_json::from_value(action.data["status"].clone()).unwrap_or_default();
        (status.phase.is_final() && status.cleaned_up).then_some(status)
    })
    .await
}

/// What the document takes for granted: its namespace, its account, its image; and the chart's controller. Gives the file of
/// the chart's objects.
fn set_up(t: &Scenario) -> String {
    load_blueprint_images();
    install_action_crds();
    for arguments in [
        &["create", "namespace", KASTEN][..],
        &["-n", KASTEN, "create", "serviceaccount", "k10-k10"],
        &[
            "create",
            "clusterrole",
            "k10-k10",
            "--verb=get,patch",
            "--resource=namespaces",
        ],
        &[
            "create",
            "clusterrolebinding",
            "k10-k10",
            "--clusterrole=k10-k10",
            "--serviceaccount=kasten-io:k10-k10",
        ],
    ] {
        kubectl(arguments);
    }
    let chart = t.write(
        "actions.yaml",
        &actions_chart(KASTEN, &["--set", "actions.hookRetries=0,actions.replicas=2"]),
    );
    kubectl(&["apply", "-f", &chart]);
    kubectl(&[
        "-n",
        KASTEN,
        "rollout",
        "status",
        "deployment/kasten-io-actions",
        "--timeout=120s",
    ]);
    chart
}

/// A Blueprint whose pod names no account: it has the controller's, as in Kanister.
fn blueprint_without_account() -> String {
    let script = concat!(
        r##"printf '###Phase-output###: {"key":"name","value":"%s"}\n' "##,
        r#""$(kubectl auth whoami -o jsonpath={.status.userInfo.username})""#
    );
    let args = json!({"image": "bitnami/kubectl", "command": ["/bin/sh", "-c", script]});
    let blueprint = json!({
        "apiVersion": "cr.kanister.io/v1alpha1", "kind": "Blueprint", "metadata": {"name": "no-account", "namespace": KASTEN},
        "actions": {"who": phases(&[json!({"func": "KubeTask", "name": "who", "args": args})])},
    });
    blueprint.to_string()
}

#[tokio::test]
async fn the_documents_two_examples_run_verbatim() {
    let t = Scenario::new("act-examples").await;
    let chart = set_up(&t);
    let apply = |text: &str| kubectl(&["apply", "-f", &t.write("blueprint.yaml", text)]);

    // The first takes a label off the namespace that was backed up.
    kubectl(&["label", "namespace", &t.namespace, "migrate=yes"]);
    apply(LABEL);
    let backup = json!({"includedNamespaces": [t.namespace], "snapshotVolumes": false});
    let hooks = json!({"onSuccess": {"blueprint": "hook-blueprint", "actionName": "post-export"}});
    let status = run_action(
        &t,
        ActionKind::Backup,
        "first",
        json!({"backup": backup, "hooks": hooks}),
    )
    .await;
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    let labels = kubectl(&["get", "namespace", &t.namespace, "-o", "jsonpath={.metadata.labels}"]);
    assert!(!labels.contains("migrate"), "{labels}");

    // A restore of everything: the object store says which namespaces that are. There are no files of a system in the
    // controller's image.
    let labels = json!({"only": t.namespace});
    t.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "data", "labels": labels}}))
        .await;
    let backup = t.backup_with(json!({"labelSelector": {"matchLabels": labels}})).await;
    kubectl(&["label", "namespace", &t.namespace, "migrate=yes"]);
    apply(&blueprint_without_account());
    let hooks = json!({
        "preHook": {"blueprint": "no-account", "actionName": "who"},
        "onSuccess": {"blueprint": "hook-blueprint", "actionName": "post-export"},
    });
    let spec = json!({"restore": {"backupName": backup}, "hooks": hooks});
    let status = run_action(&t, ActionKind::Restore, "everything", spec).await;
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    assert_eq!(status.namespaces, std::slice::from_ref(&t.namespace));
    let who = &invocation(&status, HookName::PreHook).unwrap().phases[0].output["name"];
    assert_eq!(who, &format!("system:serviceaccount:{KASTEN}:{KASTEN}-actions"));

    // The second waits for a pod that is called as the StatefulSet is.
    let container =
        json!({"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"]});
    t.create(&json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "mysql-statefulset"},
        "spec": {
            "replicas": 1, "serviceName": "mysql", "selector": {"matchLabels": {"app": "mysql"}},
            "template": {"metadata": {"labels": {"app": "mysql"}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}},
        },
    }))
    .await;
    t.start(&[t.pod("mysql-statefulset")]).await;
    let backup = t.backup().await;
    t.lose().await;
    apply(WAIT);
    let subject = json!({"name": "mysql-statefulset", "namespace": t.namespace, "type": "statefulset"});
    let on_success = json!({"blueprint": "hook-blueprint", "actionName": "post-restore", "subject": subject});
    let spec = json!({"restore": {"backupName": backup}, "hooks": {"onSuccess": on_success}});
    let status = run_action(&t, ActionKind::Restore, "second", spec.clone()).await;
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    assert_eq!(state(&status, HookName::OnSuccess), StepState::Succeeded);

    // Its form for the pods that a StatefulSet really has.
    kubectl(&["-n", &t.namespace, "delete", "statefulset,pod", "--all", "--wait"]);
    let real = WAIT.replace("'{{ .StatefulSet.Name }}'", "'{{ .StatefulSet.Name }}-0'");
    assert_ne!(real, WAIT);
    apply(&real);
    let status = run_action(&t, ActionKind::Restore, "third", spec).await;
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);

    let shown = reveille(&["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for words in ["RestoreAction kasten-io/third: Succeeded", "WaitForPod", "post-restore"] {
        assert!(shown.contains(words), "{shown}");
    }
    // Its rights last as long as it does.
    kubectl(&[
        "-n",
        KASTEN,
        "delete",
        "deployment",
        "kasten-io-actions",
        "--cascade=foreground",
    ]);
    kubectl(&["delete", "--ignore-not-found", "-f", &chart]);
    kubectl(&["delete", "namespace", KASTEN, "--wait=false"]);
    kubectl(&["delete", "clusterrole,clusterrolebinding", "k10-k10"]);
}
