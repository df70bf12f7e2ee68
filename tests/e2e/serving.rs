//! The webhook under load, while its pods and its certificates change: no call is lost.

use std::{collections::BTreeSet, time::Duration};

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use reveille::infra::{
    ca_store::{BUNDLE_KEY, CERTIFICATE_KEY, NEXT_CERTIFICATE_KEY, NEXT_PRIVATE_KEY_KEY},
    clock,
    pki::Ca,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::*;

/// The webhook's pods, those that are ending too.
async fn webhook_pods(t: &Scenario) -> BTreeSet<String> {
    let pods: Api<Pod> = Api::namespaced(t.client.clone(), REVEILLE);
    let parameters = ListParams::default().labels("app.kubernetes.io/name=reveille");
    let list = pods.list(&parameters).await.unwrap();
    list.items.iter().map(ResourceExt::name_any).collect()
}

/// Beside the load on the Service, the API server itself calls the webhook all the time; each call must leave its mark. Calls that the
/// API server itself could not take are told apart: they say nothing about the webhook.
async fn api_server_calls(t: &Scenario, stop: &CancellationToken) -> usize {
    let (mut calls, mut not_taken) = (0, Vec::new());
    while !stop.is_cancelled() {
        match webhook_marks_a_restore(&t.client).await {
            Ok(marked) => {
                assert!(marked, "the API server let call {calls} pass without the webhook");
                calls += 1;
            }
            Err(error) => not_taken.push(error.to_string()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(not_taken.len() <= calls / 10, "{calls} calls, and {not_taken:?}");
    calls
}

/// The API server keeps a connection for 90 s, and must not find it closed before.
#[tokio::test]
async fn idle_gaps_of_31_61_and_89_seconds_do_no_harm() {
    let t = Scenario::new("gaps").await;
    let gaps = [31, 61, 89].map(Duration::from_secs);
    call_after_gaps(&t.client, &gaps).await.unwrap();
}

/// Names of Reveille's pods, whether they are ready, and how often the kubelet has started their containers again.
async fn life_of_pods(t: &Scenario) -> BTreeSet<(String, bool, i32)> {
    let pods: Api<Pod> = Api::namespaced(t.client.clone(), REVEILLE);
    let list = pods
        .list(&ListParams::default().labels("app.kubernetes.io/name=reveille"))
        .await;
    let life = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let ready = conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let restarts = status
            .container_statuses
            .unwrap_or_default()
            .iter()
            .map(|one| one.restart_count)
            .sum();
        (pod.name_any(), ready, restarts)
    };
    list.unwrap().items.iter().map(life).collect()
}

#[tokio::test]
async fn waiters_that_are_killed_take_no_webhook_out_of_the_service() {
    let t = Scenario::alone("waiter-dies").await;
    // Those of before an upgrade may still be ending.
    let before = eventually("both pods are ready, and there are no others", async || {
        let pods = life_of_pods(&t).await;
        (pods.len() == 2 && pods.iter().all(|(_, ready, _)| *ready)).then_some(pods)
    })
    .await;
    for _ in 0..3 {
        eventually("the waiters run", async || {
            (running_waiters(&t.client, None).await.len() == before.len()).then_some(())
        })
        .await;
        assert_eq!(kill_waiters(&t.client, None).await, before.len());
        assert!(webhook_marks_a_restore(&t.client).await.unwrap());
        assert_eq!(life_of_pods(&t).await, before);
    }
    // They are started again, and work.
    let backup = t
        .back_up_and_lose_pods(&[t.pod("app").annotate(post("command"), trace("post"))])
        .await;
    t.restore(&backup).run().await.assert_all_well(1);
    assert_eq!(life_of_pods(&t).await, before);
}

#[tokio::test]
async fn a_rolling_restart_and_a_new_ca_under_load_fail_no_call() {
    let t = Scenario::alone("rolling").await;
    let load = Load::start(&t.client).await;
    let stop = CancellationToken::new();
    let changes = async {
        // At least one connection's worth of calls between any two steps.
        let some_calls = async || load.reaches(load.answered() + 200).await;
        some_calls().await;

        let before = eventually("pods of before an upgrade are gone", async || {
            Some(webhook_pods(&t).await).filter(|pods| pods.len() == 2)
        })
        .await;
        kubectl(&["-n", REVEILLE, "rollout", "restart", "deployment/reveille"]);
        eventually("all pods are new", async || {
            let now = webhook_pods(&t).await;
            (now.len() >= before.len() && now.is_disjoint(&before)).then_some(())
        })
        .await;
        kubectl(&[
            "-n",
            REVEILLE,
            "rollout",
            "status",
            "deployment/reveille",
            "--timeout=120s",
        ]);
        some_calls().await;

        renew_the_ca(&t).await;
        some_calls().await;
        stop.cancel();
    };
    let (calls, ()) = tokio::join!(api_server_calls(&t, &stop), changes);
    let report = load.stop().await;

    assert_eq!(report.failures, Vec::<String>::new(), "{report:?}");
    // Every connection was opened anew at least once: its pod ended.
    assert!(
        report.connections >= 50 && report.answered > 600 && calls > 20,
        "{report:?} {calls}"
    );
}

/// Brings a CA to signing as its renewal does: a renewal that began most of the settling time ago.
async fn renew_the_ca(t: &Scenario) {
    let secrets: Api<Secret> = Api::namespaced(t.client.clone(), REVEILLE);
    let next = Ca::generate(clock::now() - SignedDuration::from_secs(50)).unwrap();
    let text = |secret: &Secret, key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
            .unwrap_or_default()
    };
    let patch = json!({"stringData": {NEXT_CERTIFICATE_KEY: next.certificate, NEXT_PRIVATE_KEY_KEY: next.key()}});
    let edit = async |patch: serde_json::Value| {
        secrets
            .patch("reveille-ca", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    };
    edit(patch).await;
    let mut looks = 0;
    eventually("the new CA signs", async || {
        let secret = secrets.get("reveille-ca").await.unwrap();
        if text(&secret, CERTIFICATE_KEY) == next.certificate {
            // The old one is still trusted.
            assert!(text(&secret, BUNDLE_KEY).matches("BEGIN CERTIFICATE").count() >= 2);
            return Some(());
        }
        // Only an occasion to look: otherwise it is looked at every minute.
        looks += 1;
        if looks % 10 == 0 {
            edit(json!({"metadata": {"annotations": {"e2e": looks.to_string()}}})).await;
        }
        None
    })
    .await;
    // Each replica signs itself a new certificate when it sees the Secret.
    eventually("all replicas serve a certificate of the new CA", async || {
        served_by_all(t, &next.certificate).await.then_some(())
    })
    .await;
}

/// Whether each replica's certificate is signed by this CA.
async fn served_by_all(t: &Scenario, ca: &str) -> bool {
    let pods: Api<Pod> = Api::namespaced(t.client.clone(), REVEILLE);
    let list = pods
        .list(&ListParams::default().labels("app.kubernetes.io/name=reveille"))
        .await;
    for pod in list.unwrap().items {
        let address = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
        if !trusted_at(&address, ca) {
            return false;
        }
    }
    true
}

/// A TLS handshake with a pod, made in the cluster's network.
fn trusted_at(address: &str, ca: &str) -> bool {
    let file = state_folder().join("e2e-ca.crt");
    std::fs::write(&file, ca).unwrap();
    let (file, server) = (file.to_string_lossy().into_owned(), format!("{address}:9443"));
    let output = run(
        "tests/cluster/cluster",
        &[
            "exec",
            &cluster_name(),
            "--",
            "openssl",
            "s_client",
            "-connect",
            &server,
            "-servername",
            "reveille.reveille.svc",
            "-CAfile",
            &file,
            "-verify_return_error",
        ],
    );
    output.status.success()
}
