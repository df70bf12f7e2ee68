//! The chart on a cluster: what `helm test` proves, what `failurePolicy: Fail` costs, that a cluster which starts from nothing comes
//! up with either policy, and an upgrade in the middle of a restore. These tests have the cluster to themselves.

use std::fs;

use serde_json::{Value, json};

use crate::harness::*;

#[tokio::test]
async fn every_rendering_is_valid_for_the_api_server() {
    let t = Scenario::alone("renderings").await;
    apply_third_party_crds("cert-manager");
    apply_third_party_crds("prometheus-operator");
    let mut values: Vec<String> = fs::read_dir(root().join("charts/reveille/ci"))
        .unwrap()
        .map(|entry| entry.unwrap().path().to_string_lossy().into_owned())
        .collect();
    let of_people = fs::read_dir(root().join("certs"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let of_people = of_people.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    values.extend(of_people.map(|path| path.to_string_lossy().into_owned()));
    values.push("charts/reveille/values-ha.yaml".to_owned());
    // The CRDs are there already, and are another release's.
    let dry = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
    ];
    must_run("kubectl", &[&dry[..], &["-f", "charts/reveille/files/crds"]].concat());
    values.sort();
    for values in values {
        let rendering = must_run(
            "helm",
            &[
                "template",
                "other",
                "charts/reveille",
                "--namespace",
                &t.namespace,
                "--kube-version",
                "1.34.0",
                // The CRD is there already, and is another release's.
                "--values",
                &values,
                "--set",
                "crds.install=false",
                // What goes into other namespaces is only valid where these are there.
                "--set",
                &format!("actions.namespace={0},actions.veleroNamespace={0}", t.namespace),
            ],
        );
        // A pod is only valid if its account is there.
        let accounts = rendering
            .split("\n---")
            .filter(|text| text.contains("\nkind: ServiceAccount\n"));
        let accounts: Vec<&str> = accounts.collect();
        let file = t.write("accounts.yaml", &accounts.join("\n---"));
        run("kubectl", &["apply", "-n", &t.namespace, "-f", &file]);
        let file = t.write("rendering.yaml", &rendering);
        eventually(&format!("{values}: the new kinds are known"), async || {
            let dry = [
                "apply",
                "--server-side",
                "--dry-run=server",
                "--validate=strict",
                "-n",
                &t.namespace,
                "-f",
                &file,
            ];
            let output = run("kubectl", &dry);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains("no matches for kind") {
                return None;
            }
            assert!(output.status.success(), "{values}: {said}");
            Some(())
        })
        .await;
    }
}

#[tokio::test]
async fn helm_test_proves_an_injection_and_fails_without_a_webhook() {
    let _t = Scenario::alone("helm-test").await;
    // Whatever the mode, and in a namespace that lets nothing in but what PodSecurity calls restricted.
    kubectl(&[
        "label",
        "namespace",
        REVEILLE,
        "--overwrite",
        "pod-security.kubernetes.io/enforce=restricted",
    ]);
    install(&["velero.mode=off"]);
    let said = must_run(
        "helm",
        &["test", "reveille", "--namespace", REVEILLE, "--timeout", "120s"],
    );
    assert!(said.contains("Phase:          Succeeded"), "{said}");
    let accounts = kubectl(&[
        "-n",
        REVEILLE,
        "get",
        "serviceaccounts,roles,rolebindings,pods",
        "-o",
        "name",
    ]);
    assert!(
        !accounts.contains("reveille-test"),
        "the test leaves no rights behind: {accounts}"
    );
    scale_reveille(0);
    let output = reveille(&["self-test", "--namespace", REVEILLE, "--timeout", "1s"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("did not ask the webhook"), "{said}");
}

/// A Deployment whose pod has a hook and a volume that the backup holds.
fn deployment(t: &Scenario) -> Value {
    let pod = t
        .pod("app")
        .data_volume()
        .annotate(post("command"), trace("post"))
        .json()
        .clone();
    let mut spec = pod["spec"].clone();
    spec["restartPolicy"] = json!("Always");
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "app"}},
            "template": {"metadata": {"labels": {"app": "app"}, "annotations": pod["metadata"]["annotations"]}, "spec": spec},
        },
    })
}

/// The name of the Deployment's only pod, once it runs.
async fn pod_of_deployment(t: &Scenario) -> String {
    let name = eventually("the Deployment has a pod", async || {
        let names = kubectl(&[
            "-n",
            &t.namespace,
            "get",
            "pods",
            "-l",
            "app=app",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ]);
        let mut names = names.split_whitespace();
        let name = names.next()?.to_owned();
        names.next().is_none().then_some(name)
    })
    .await;
    t.running(&name).await;
    name
}

#[tokio::test]
async fn with_failure_policy_fail_a_refused_pod_is_made_again_without_its_volumes_data() {
    let t = Scenario::alone("fail-policy").await;
    eventually("the namespace has its service account", async || {
        t.try_create(&deployment(&t)).await.ok().map(drop)
    })
    .await;
    let pod = pod_of_deployment(&t).await;
    t.exec(&pod, "echo precious > /data/file");
    let backup = t.backup().await;
    t.lose().await;
    install(&["webhook.failurePolicy=Fail"]);
    scale_reveille(0);
    let restore = t.restore(&backup).begin().await;
    let outcome = restore
        .reaches("Velero is done with it", |now| {
            reveille::hooks::restored::is_terminal(&now.phase).then(|| now.clone())
        })
        .await;

    // Velero's creation of the pod was refused. The ReplicaSet, which came after it, made another one: without restore-wait,
    // so it did not wait for its data, and there is none.
    assert_eq!(outcome.phase, "PartiallyFailed");
    let pod = pod_of_deployment(&t).await;
    assert_eq!(init_names(&t.running(&pod).await), Vec::<String>::new());
    assert_eq!(t.exec(&pod, "ls /data").trim(), "", "the price of Fail");
    assert_eq!(t.ran("post"), 0);

    // Fail or not: neither Reveille's own pods nor those of kube-system ever depend on it.
    for namespace in [REVEILLE, "kube-system"] {
        let security = json!({
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "scope", "namespace": namespace, "labels": {"velero.io/restore-name": "any"}},
            "spec": {"containers": [{"name": "main", "image": IMAGE, "securityContext": security}]},
        });
        t.dry_run(&pod).await;
    }
}

#[tokio::test]
async fn a_cluster_that_starts_from_nothing_comes_up_with_either_failure_policy() {
    let t = Scenario::alone("cold-start").await;
    let pod = t.pod("app").annotate(post("command"), trace("post"));
    let backup = t.back_up_and_lose_pods(&[pod]).await;
    for (round, policy) in ["Ignore", "Fail"].into_iter().enumerate() {
        install(&[&format!("webhook.failurePolicy={policy}")]);
        webhook_answers(&t.client).await;
        // The power goes: every component and every container at once, etcd last so that nothing notices and tidies up.
        let cluster = cluster_name();
        let components = [
            "kubelet",
            "kube-scheduler",
            "kube-controller-manager",
            "kube-proxy",
            "kube-apiserver",
            "etcd",
        ];
        for component in components {
            cluster_script(&["stop", &cluster, component, "--kill"]);
        }
        kill_all_containers();
        for component in components.iter().rev() {
            cluster_script(&["start", &cluster, component]);
        }
        cluster_script(&["wait", &cluster, "180"]);
        webhook_answers(&t.client).await;
        t.restore(&backup).run().await.assert_all_well(1);
        assert_eq!(t.ran("post"), round + 1, "{policy}");
        t.lose_pods().await;
    }
}

/// The version before ran one waiter, without a Lease. Hooks that wait, and what has ended, go over whole. What is not shown here: a
/// command that runs at that moment (its end is Unknown to a successor that the old waiter can't tell about it); `handover.rs` shows
/// it between waiters with a Lease.
#[tokio::test]
async fn an_upgrade_from_the_previous_version_in_the_middle_of_a_restore_loses_nothing() {
    let t = Scenario::alone("upgrade").await;
    let hooked = |name: &str| t.pod(name).annotate(post("command"), trace(name));
    let pods = [
        hooked("one"),
        hooked("two")
            .ready_when("ready")
            .annotate(post("wait-for-ready"), "true"),
    ];
    t.signal("ready");
    let backup = t.back_up_and_lose_pods(&pods).await;
    fs::remove_file(t.write("ready", "")).unwrap();
    uninstall();
    let broken = RightsBroken::announce("the version before has other rights, and its pods outlive its roles");
    install_chart(&previous_chart(), &[]);
    webhook_answers(&t.client).await;
    let begun = t.restore(&backup).begin().await;
    begun
        .reaches("one hook has ended, the other one waits", |now| {
            let done = now.run_of("one")?.status.as_ref()?.phase.is_final();
            (done && now.run_of("two").is_some()).then_some(())
        })
        .await;
    let old = reveille_pods();
    install(&[]);
    for pod in &old {
        kubectl(&["-n", REVEILLE, "wait", pod, "--for=delete", "--timeout=120s"]);
    }
    drop(broken);
    t.signal("ready");
    begun.finish().await.assert_all_well(2);
    assert_eq!((t.ran("one"), t.ran("two")), (1, 1));
    assert_eq!(t.velero_ran(), Vec::<String>::new());
}

#[tokio::test]
async fn an_uninstall_that_open_hooks_have_stopped_can_be_taken_back() {
    let t = Scenario::alone("take-back").await;
    install(&["release.timeout=1s"]);
    let script = format!("until [ -e /traces/go ]; do sleep 0.1; done; {}", trace_script("slow"));
    let slow = t
        .pod("slow")
        .annotate(post("command"), sh(&script))
        .annotate(post("exec-timeout"), "5m");
    let backup = t.back_up_and_lose_pods(&[slow]).await;
    let begun = t.restore(&backup).begin().await;
    begun
        .reaches("there is a run", |now| now.run_of("slow").map(drop))
        .await;
    let output = run("helm", &["uninstall", "reveille", "--namespace", REVEILLE, "--wait"]);
    assert!(!output.status.success(), "open hooks stop it");
    let history = must_run(
        "helm",
        &["history", "reveille", "--namespace", REVEILLE, "--output", "json"],
    );
    let history: Value = serde_json::from_str(&history).unwrap();
    let revision = history.as_array().unwrap().last().unwrap()["revision"].to_string();
    must_run(
        "helm",
        &[
            "rollback",
            "reveille",
            &revision,
            "--namespace",
            REVEILLE,
            "--wait",
            "--timeout",
            "120s",
        ],
    );
    webhook_answers(&t.client).await;
    t.signal("go");
    begun.finish().await.assert_all_well(1);
    assert_eq!(t.ran("slow"), 1);
}

/// As a power cut does: none of them gets a chance to say goodbye.
fn kill_all_containers() {
    let ctr = format!("ctr-{}", cluster_name());
    let listed = must_run(&ctr, &["tasks", "list", "--quiet"]);
    for task in listed.split_whitespace() {
        run(&ctr, &["tasks", "kill", "--signal", "SIGKILL", "--all", task]);
    }
}
