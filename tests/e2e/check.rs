//! `reveille check`: nothing wrong is found where nothing is, and each breakage is.

use std::{collections::BTreeMap, fs, process::Output};

use reveille::infra::{clock, pki::Ca};
use serde_json::{Value, json};

use crate::harness::*;

/// The exit code, and what was found: the severity of each check (the worst, where one has several findings).
fn findings() -> (Option<i32>, BTreeMap<String, String>, Value) {
    let output = reveille(&["check", "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let rank = |severity: &str| {
        ["ok", "unknown", "warning", "error"]
            .iter()
            .position(|word| *word == severity)
    };
    let mut found = BTreeMap::new();
    for finding in report["findings"].as_array().unwrap() {
        let [check, severity] = ["check", "severity"].map(|field| finding[field].as_str().unwrap().to_owned());
        let worst = found.entry(check).or_insert_with(|| severity.clone());
        if rank(&severity) > rank(worst) {
            *worst = severity;
        }
    }
    (output.status.code(), found, report)
}

/// Looks until these checks have these severities.
async fn find(expected: &[(&str, &str)]) -> Value {
    eventually(&format!("check finds {expected:?}"), async || {
        let (_, found, report) = findings();
        let all = expected
            .iter()
            .all(|(check, severity)| found.get(*check).is_some_and(|word| word == severity));
        all.then_some(report)
    })
    .await
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_healthy_installation_has_no_errors() {
    let t = Scenario::in_quiet("check-well").await;
    // Other tests' restores and HookRuns may rightly be warned about.
    let errors = eventually("check finds no error", async || {
        let (code, found, report) = findings();
        (code == Some(0)).then_some((found, report))
    });
    let (found, report) = errors.await;
    for check in [
        "kubernetes",
        "velero",
        "crd",
        "webhook-configuration",
        "ca-bundle",
        "deployment",
        "mode",
        "certificate",
        "webhook-call",
        "waiter",
        "rights",
        "clocks",
        "policies",
    ] {
        assert_eq!(found.get(check).map(String::as_str), Some("ok"), "{check}: {report:#}");
    }
    let shown = text(&reveille(&["check"]));
    assert!(shown.contains("Velero v1.18") && shown.contains("0 errors"), "{shown}");
    // As the waiter's own account (impersonated: its own calls are counted elsewhere): it asks about itself, and what it may not
    // read is not a fault.
    let account = format!("system:serviceaccount:{REVEILLE}:reveille");
    let kubeconfig = fs::read_to_string(state_folder().join("admin.conf")).unwrap();
    let kubeconfig = kubeconfig.replace("  user:\n", &format!("  user:\n    as: {account}\n"));
    let kubeconfig = t.write("kubeconfig", &kubeconfig);
    let as_waiter = reveille_with(&["check"], &[("KUBECONFIG", &kubeconfig)]);
    let shown = text(&as_waiter);
    assert!(shown.contains("has all") && shown.contains("0 errors"), "{shown}");
}

#[tokio::test]
async fn each_breakage_is_found() {
    let _t = Scenario::alone("check-broken").await;
    // Nobody is there, and so nobody repairs the caBundle that is not the CA's.
    scale_reveille(0);
    let foreign = Ca::generate(clock::now()).unwrap().certificate;
    let bundle = base64(&foreign);
    let patch = json!([
        {"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle},
        {"op": "replace", "path": "/webhooks/1/clientConfig/caBundle", "value": bundle},
    ]);
    let configuration = "mutatingwebhookconfiguration/reveille";
    kubectl(&["patch", configuration, "--type=json", "-p", &patch.to_string()]);
    let broken = RightsBroken::announce("a rule is taken out of the role: it has to be missed");
    // Without the first rule of its role it may not even read Restores.
    let role = json!([{"op": "remove", "path": "/rules/0"}]);
    kubectl(&["patch", "clusterrole/reveille", "--type=json", "-p", &role.to_string()]);
    kubectl(&[
        "delete",
        "validatingadmissionpolicies,validatingadmissionpolicybindings",
        "-l",
        "reveille.dev/policy",
    ]);
    let report = find(&[
        ("deployment", "error"),
        ("ca-bundle", "error"),
        ("webhook-call", "error"),
        ("rights", "error"),
        ("waiter", "error"),
        ("policies", "warning"),
    ])
    .await;
    let rights = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["check"] == "rights");
    let message = rights.unwrap()["message"].as_str().unwrap();
    assert!(message.contains("restores.velero.io"), "{message}");
    assert_eq!(reveille(&["check"]).status.code(), Some(1));

    kubectl(&["delete", configuration]);
    find(&[("webhook-configuration", "error")]).await;
    // Nothing of Reveille's runs: the next test's installation puts the role back before it does.
    drop(broken);
}

#[tokio::test]
async fn bad_hooks_are_found_before_they_are_needed() {
    let t = Scenario::new("check-hooks").await;
    let template = |annotations: Value| {
        json!({
            "metadata": {"labels": {"app": "db"}, "annotations": annotations},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": IMAGE}]},
        })
    };
    let deployment = |name: &str, annotations: Value| {
        let mut template = template(annotations);
        template["spec"]["restartPolicy"] = json!("Always");
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "db"}}, "template": template},
        })
    };
    let command = post("command");
    t.create(&deployment("good", json!({command.as_str(): "true"}))).await;
    let bad = deployment(
        "bad",
        json!({command.as_str(): "true", post("container"): "no-such-container"}),
    );
    t.create(&bad).await;
    let cron_job = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"},
        "spec": {
            "schedule": "0 3 * * *", "suspend": true,
            "jobTemplate": {"spec": {"template": template(json!({command.as_str(): "true", post("exec-timeout"): "10 minutes"}))}},
        },
    });
    t.create(&cron_job).await;
    t.submit(
        &t.pod("typo")
            .annotate(post("command"), "true")
            .annotate(post("timeout"), "5m"),
    )
    .await;

    let output = reveille(&["check", "hooks", "-n", &t.namespace]);
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    for words in [
        format!("Deployment {}/bad", t.namespace),
        "there is no container \"no-such-container\"".to_owned(),
        format!("CronJob {}/nightly", t.namespace),
        "\"10 minutes\"".to_owned(),
        format!("Pod {}/typo", t.namespace),
        post("exec-timeout"),
        "2 errors, 1 warning".to_owned(),
    ] {
        assert!(shown.contains(&words), "{words} is not in\n{shown}");
    }
    assert!(!shown.contains("/good"), "{shown}");
    let everywhere = reveille(&["check", "hooks", "-A", "-o", "json"]);
    let report: Value = serde_json::from_slice(&everywhere.stdout).unwrap();
    let of_test = report["problems"].as_array().unwrap().iter();
    assert_eq!(of_test.filter(|problem| problem["namespace"] == t.namespace).count(), 3);

    // The same before it is in any cluster.
    let file = t.write("bad.json", &bad.to_string());
    assert_eq!(reveille(&["check", "hooks", "-f", &file]).status.code(), Some(1));
}

#[tokio::test]
async fn pods_that_a_restored_controller_makes_by_itself_are_told_about() {
    let t = Scenario::new("unserved").await;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}, "annotations": {post("command"): "true"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"]}],
                },
            },
        },
    });
    t.create(&set).await;
    t.running("db-0").await;
    let backup = t.backup().await;
    t.lose().await;
    // The pods are left out, and so the controller makes new ones.
    let restore = t
        .restore(&backup)
        .edit(|restore| restore["spec"]["excludedResources"] = json!(["pods"]))
        .run()
        .await;
    t.running("db-0").await;

    let line = format!(
        "Not served: pod {}/db-0 with 1 hook: StatefulSet db made it by itself",
        t.namespace
    );
    let shown = text(&reveille(&["status", &restore.name]));
    assert!(shown.contains(&line), "{shown}");
    let (_, found, report) = findings();
    assert_eq!(found["unserved-pods"], "warning", "{report:#}");
}

fn base64(text: &str) -> String {
    serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec()))
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned()
}
