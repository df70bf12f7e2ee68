//! Blueprints written after public ones, unchanged, as `reveille blueprint check` tests them too.

use std::fs;

use reveille::{
    actions::action::ActionKind,
    api::action::{ActionPhase, ActionStatus, HookName},
};
use serde_json::{Value, json};

use crate::harness::*;

/// A reference to an action of a Blueprint of `tests/blueprints/`, about the StatefulSet `db` or the namespace.
fn of(blueprint: &str, action: &str, about_db: bool) -> Value {
    let mut hook = json!({"blueprint": blueprint, "actionName": action});
    if about_db {
        hook["subject"] = json!({"type": "statefulset", "name": "db"});
    }
    hook
}

/// What a phase has put out.
fn output<'a>(status: &'a ActionStatus, hook: HookName, phase: &str) -> &'a serde_json::Map<String, Value> {
    let phases = &invocation(status, hook).unwrap().phases;
    &phases.iter().find(|other| other.name == phase).unwrap().output
}

/// What the Blueprints take for granted: a database, its password, a resource of an operator, and an account for the hooks.
async fn prepare(t: &Scenario, controller: &Controller<'_>) {
    for name in [
        "echo-artifacts",
        "scale-down-up",
        "operator-with-templates",
        "operator-steps",
        "database-after-restore",
    ] {
        let text = fs::read_to_string(root().join(format!("tests/blueprints/{name}.yaml"))).unwrap();
        controller.create(&serde_saphyr::from_str(&text).unwrap()).await;
    }
    let container = json!({
        "name": "main", "image": "docker.io/library/postgres:17", "imagePullPolicy": "Never", "command": ["sleep", "1000000"],
    });
    t.create(&json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "db", "labels": {"app": "db", "tier": "data"}},
        "spec": {
            "replicas": 2, "serviceName": "db", "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}},
        },
    }))
    .await;
    t.create(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db-credentials"}, "stringData": {"password": "opensesame"},
    }))
    .await;
    let versions = json!([{
        "name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
    }]);
    let names =
        json!({"kind": "Datacenter", "plural": "datacenters", "singular": "datacenter", "listKind": "DatacenterList"});
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "datacenters.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": versions},
    });
    kubectl(&["apply", "-f", &t.write("crd.json", &crd.to_string())]);
    kubectl(&[
        "wait",
        "crd",
        "datacenters.example.com",
        "--for=condition=Established",
        "--timeout=60s",
    ]);
    t.create(&json!({"apiVersion": "example.com/v1", "kind": "Datacenter", "metadata": {"name": "dc1"}}))
        .await;
    kubectl(&["-n", &controller.namespace, "create", "serviceaccount", "hooks"]);
    // Phases that name no account run as `default` in these tests.
    for (namespace, account) in [
        (&t.namespace, "hooks"),
        (&controller.namespace, "hooks"),
        (&t.namespace, "default"),
    ] {
        let account_of = format!("--serviceaccount={}:{account}", controller.namespace);
        kubectl(&[
            "-n",
            namespace,
            "create",
            "rolebinding",
            account,
            "--clusterrole=cluster-admin",
            &account_of,
        ]);
    }
    kubectl(&[
        "-n",
        &t.namespace,
        "rollout",
        "status",
        "statefulset/db",
        "--timeout=120s",
    ]);
}

#[tokio::test]
async fn look_alikes_of_public_blueprints_run_unchanged() {
    let t = Scenario::new("act-alike").await;
    load_blueprint_images();
    let controller = Controller::start(&t, &["--hook-retries=0"]).await;
    prepare(&t, &controller).await;
    let done = |status: &ActionStatus| assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);

    // A backup: shell text with every kind of bracket, then outputs that go into manifests.
    let hooks = json!({
        "preHook": of("operator-with-templates", "backup-posthook", false),
        "onSuccess": of("operator-steps", "post-restore", false),
    });
    let backup = json!({"includedNamespaces": [t.namespace], "snapshotVolumes": false});
    let backed_up = controller
        .action(ActionKind::Backup, json!({"backup": backup, "hooks": hooks}))
        .await
        .finish()
        .await;
    done(&backed_up);
    let maps = kubectl(&["-n", &controller.namespace, "get", "configmaps", "-o", "name"]);
    assert!(maps.contains("configmap/dc-"), "{maps}");
    let image = &output(&backed_up, HookName::OnSuccess, "findImage")["image"];
    assert_eq!(image, "docker.io/library/postgres:17");
    let left = kubectl(&["-n", &t.namespace, "get", "deployments", "-o", "name"]);
    assert_eq!(left, "", "the deferred phase has deleted it");

    // Restores over what is still there.
    let backup = backed_up.velero.unwrap().name;
    let spec = json!({"backupName": backup, "includedNamespaces": [t.namespace], "includedResources": ["secrets"]});
    let hooks =
        json!({"preHook": of("echo-artifacts", "before", true), "onSuccess": of("echo-artifacts", "after", true)});
    let echoed = controller.restore(spec.clone(), hooks).await.finish().await;
    done(&echoed);
    let state = &invocation(&echoed, HookName::PreHook).unwrap().artifacts["state"].key_value;
    assert_eq!(state["replicas"], "2");
    assert!(state["at"].starts_with("20") && state["at"].contains('t'), "{state:?}");

    // In this order: which pods a subject has is read once, before the first phase.
    let hooks = json!({"preHook": of("scale-down-up", "up", true), "onSuccess": of("scale-down-up", "down", true)});
    let scaled = controller.restore(spec, hooks).await.finish().await;
    done(&scaled);
    assert_eq!(output(&scaled, HookName::OnSuccess, "stop")["originalReplicaCount"], 2);
    let left = kubectl(&["-n", &t.namespace, "get", "pods", "-l", "app=db", "-o", "name"]);
    assert_eq!(left, "");

    // A restore into an empty cluster.
    t.lose().await;
    let hooks = json!({"onSuccess": of("database-after-restore", "post-restore", true)});
    let restored = controller
        .restore(json!({"backupName": backup}), hooks)
        .await
        .finish()
        .await;
    done(&restored);
    let told = &output(&restored, HookName::OnSuccess, "resetPasswords")["psql"];
    assert_eq!(told, "db opensesame");
}
