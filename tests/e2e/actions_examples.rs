//! The two examples of the document about execution hooks, verbatim, with the chart's controller and its rights.

use std::{env, fs, path::PathBuf};

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

/// An image of the name that the first example asks for: it could be pulled from nowhere here.
fn load_kubectl_image() {
    let folder = state_folder().join("e2e/kubectl-image");
    let (root, archive) = (folder.join("root"), folder.join("kubectl.tar"));
    fs::create_dir_all(&root).unwrap();
    let path = env::var_os("PATH").unwrap();
    let kubectl = env::split_paths(&path)
        .map(|dir| dir.join("kubectl"))
        .find(|path| path.exists())
        .unwrap();
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    cluster_script(&["rootfs", "busybox", &text(&root)]);
    cluster_script(&[
        "copy-binary",
        &text(&fs::canonicalize(kubectl).unwrap()),
        &text(&root),
        "/bin/kubectl",
    ]);
    cluster_script(&[
        "image",
        &text(&archive),
        "docker.io/bitnami/kubectl:latest",
        &text(&root),
    ]);
    cluster_script(&["load", &cluster_name(), &text(&archive)]);
    fs::remove_dir_all(&folder).unwrap();
}

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

#[tokio::test]
async fn the_documents_two_examples_run_verbatim() {
    let t = Scenario::alone("act-examples").await;
    load_kubectl_image();
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
    let enabled =
        "actions.enabled=true,actions.namespace=kasten-io,actions.installBlueprintCRD=true,actions.hookRetries=0";
    must_run(
        "helm",
        &[
            "upgrade",
            "reveille",
            "charts/reveille",
            "-n",
            REVEILLE,
            "--reuse-values",
            "--set",
            enabled,
            "--wait",
            "--timeout",
            "120s",
        ],
    );
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
    for arguments in [
        &["delete", "namespace", KASTEN, "--wait"][..],
        &["delete", "clusterrole,clusterrolebinding", "k10-k10"],
    ] {
        kubectl(arguments);
    }
}
