//! Other restore tools: Reveille on a cluster without Velero and without any CRD of Velero's. `make test` runs it on a cluster
//! of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)] // shared with the tests beside Velero, which need more of it
#[path = "../e2e/harness/cluster.rs"]
mod cluster;
#[path = "../e2e/harness/wait.rs"]
mod wait;

use std::{fs, os::unix::fs::PermissionsExt};

use cluster::{REVEILLE, client, kubectl, must_run, reveille, run, state_folder};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use wait::eventually;

const NAMESPACE: &str = "e2e-plain";
const MARKER: &str = "tool.example/restored";

fn pod(name: &str, folder: &str, labels: Value, annotations: Value) -> Pod {
    let container = json!({
        "name": "main", "image": "localhost/busybox:1", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"],
        "volumeMounts": [{"name": "traces", "mountPath": "/traces"}],
    });
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "annotations": annotations},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "traces", "hostPath": {"path": folder, "type": "Directory"}}],
        },
    }))
    .unwrap()
}

#[allow(clippy::too_many_lines)] // one story
#[tokio::test]
async fn annotation_hooks_run_once_for_pods_that_another_tool_marks() {
    let client = client().await;
    let folder = state_folder().join("e2e-plain");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let folder = folder.to_string_lossy();
    must_run(
        "helm",
        &[
            "upgrade",
            "--install",
            "reveille",
            "charts/reveille",
            "--namespace",
            REVEILLE,
            "--create-namespace",
            "--wait",
            "--timeout",
            "120s",
            "--set",
            &format!("markerLabels={{{MARKER}}}"),
        ],
    );
    assert_eq!(
        kubectl(&["get", "crd", "-o", "name"]).trim(),
        "customresourcedefinition.apiextensions.k8s.io/hookruns.reveille.dev"
    );
    kubectl(&["create", "namespace", NAMESPACE]);

    let trace = |name: &str| format!(r#"["/bin/sh","-c","echo {name} >> /traces/{name}"]"#);
    let annotations = json!({
        "post.hook.restore.velero.io/command": trace("post"),
        "init.hook.restore.velero.io/initContainers": format!(
            r#"[{{"name":"prepare","image":"localhost/busybox:1","command":{},"volumeMounts":[{{"name":"traces","mountPath":"/traces"}}]}}]"#,
            trace("init")
        ),
    });
    let api: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let marked = pod("marked", &folder, json!({MARKER: "yes"}), annotations.clone());
    let velero_label = pod(
        "velero-label",
        &folder,
        json!({"velero.io/restore-name": "gone"}),
        annotations.clone(),
    );
    let plain = pod("plain", &folder, json!({}), annotations);
    eventually("the webhook plans a pod", async || {
        // The configuration reaches the API server a moment after the chart is installed.
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match api.create(&dry_run, &marked).await {
            Ok(pod) => pod
                .metadata
                .annotations?
                .contains_key("reveille.dev/plan")
                .then_some(()),
            Err(_) => None,
        }
    })
    .await;
    for pod in [&marked, &velero_label, &plain] {
        api.create(&PostParams::default(), pod).await.unwrap();
    }
    eventually("the hook has run", async || {
        reveille(&["status"]).status.success().then_some(())
    })
    .await;
    let lines = |name: &str| {
        fs::read_to_string(format!("{folder}/{name}"))
            .unwrap_or_default()
            .lines()
            .count()
    };
    assert_eq!((lines("init"), lines("post")), (1, 1));
    let names = |pod: Pod| {
        pod.spec
            .unwrap()
            .init_containers
            .unwrap_or_default()
            .into_iter()
            .map(|c| c.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(api.get("marked").await.unwrap()), ["prepare"]);
    // A label of Velero's says nothing where there is no Restore, and a pod without any label is nobody's business.
    for untouched in ["velero-label", "plain"] {
        let pod = api.get(untouched).await.unwrap();
        let text = serde_json::to_string(&pod.metadata.annotations).unwrap();
        assert!(!text.contains("reveille.dev/"), "{text}");
        assert_eq!(names(pod), Vec::<String>::new());
    }
    let status: Value = serde_json::from_slice(&reveille(&["status", "-o", "json"]).stdout).unwrap();
    assert_eq!(
        (
            &status["restores"][0]["result"],
            status["restores"].as_array().unwrap().len()
        ),
        (&json!("Succeeded"), 1)
    );
    // A Restore that is asked for by name: there is none, and that is said.
    let missing = reveille(&["status", "r1"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("r1"));

    must_run("helm", &["uninstall", "reveille", "--namespace", REVEILLE, "--wait"]);
    assert_eq!(
        kubectl(&["get", "mutatingwebhookconfigurations", "-o", "name"]).trim(),
        ""
    );
    run("kubectl", &["delete", "namespace", NAMESPACE, "--wait=false"]);
}
