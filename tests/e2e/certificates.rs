//! Where the webhook's certificate comes from, and that the API server trusts it at any time. These tests have the cluster to
//! themselves.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use reveille::infra::{
    clock,
    pki::{Ca, service_names},
};
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;

use crate::harness::*;

/// The `caBundle` of every entry, if they all have the same.
async fn bundle(t: &Scenario) -> Option<String> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(t.client.clone());
    let entries = api.get("reveille").await.unwrap().webhooks.unwrap();
    let bundle = |entry: &k8s_openapi::api::admissionregistration::v1::MutatingWebhook| {
        let bytes = entry.client_config.ca_bundle.clone()?;
        String::from_utf8(bytes.0).ok()
    };
    let first = bundle(&entries[0])?;
    entries
        .iter()
        .all(|entry| bundle(entry).as_ref() == Some(&first))
        .then_some(first)
}

async fn bundle_holds(t: &Scenario, certificate: &str) {
    eventually("the caBundle holds the CA", async || {
        bundle(t).await?.contains(certificate.trim()).then_some(())
    })
    .await;
}

/// What an issuer puts into a Secret.
fn issued(ca: &Ca) -> BTreeMap<String, ByteString> {
    let leaf = ca
        .sign_leaf(&service_names("reveille", REVEILLE), clock::now())
        .unwrap();
    let PrivateKeyDer::Pkcs8(key) = &leaf.key else {
        panic!("PKCS#8")
    };
    let pem = |title: &str, der: &[u8]| {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        format!("-----BEGIN {title}-----\n{}\n-----END {title}-----\n", lines.join("\n"))
    };
    let data = [
        ("tls.crt", pem("CERTIFICATE", &leaf.certificate)),
        ("tls.key", pem("PRIVATE KEY", key.secret_pkcs8_der())),
        ("ca.crt", ca.certificate.clone()),
    ];
    data.into_iter()
        .map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
        .collect()
}

async fn write_secret(t: &Scenario, name: &str, data: BTreeMap<String, ByteString>) {
    let api: Api<Secret> = Api::namespaced(t.client.clone(), REVEILLE);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    if api.get_opt(name).await.unwrap().is_some() {
        api.replace(name, &PostParams::default(), &secret).await.unwrap();
    } else {
        api.create(&PostParams::default(), &secret).await.unwrap();
    }
}

/// The kubelet looks after a pod's volumes once a minute, and whenever the pod changes.
fn wake_kubelet(note: &str) {
    let select = [
        "-n",
        REVEILLE,
        "annotate",
        "pods",
        "-l",
        "app.kubernetes.io/name=reveille",
        "--overwrite",
    ];
    kubectl(&[&select[..], &[&format!("e2e-note={note}")]].concat());
}

/// Reveille is away and comes back: it reads everything anew.
async fn answers_anew(t: &Scenario) {
    scale_reveille(0);
    scale_reveille(1);
    webhook_answers(&t.client).await;
}

/// The old configuration is written as Velero writes it with `existingResourcePolicy: update`, or to an empty place, but by kubectl: by
/// its label, Velero's backups leave out what the chart makes, so a real one of it takes somebody who removes that label.
#[tokio::test]
async fn an_old_configuration_and_an_empty_secret_are_healed() {
    let t = Scenario::alone("heal").await;
    let good = eventually("there is a caBundle", async || bundle(&t).await).await;
    // As Velero would bring it back from a backup: the whole configuration, with the CA of another time.
    let stale = Ca::generate(clock::now()).unwrap().certificate;
    let mut old: serde_json::Value = serde_json::from_str(&kubectl(&[
        "get",
        "mutatingwebhookconfiguration",
        "reveille",
        "-o",
        "json",
    ]))
    .unwrap();
    for entry in old["webhooks"].as_array_mut().unwrap() {
        entry["clientConfig"]["caBundle"] = json!(STANDARD.encode(&stale));
    }
    old["metadata"] =
        json!({"name": "reveille", "labels": old["metadata"]["labels"], "annotations": old["metadata"]["annotations"]});
    let path = t.write("old.json", &old.to_string());
    kubectl(&["replace", "-f", &path]);
    eventually("the caBundle is healed", async || {
        (bundle(&t).await? == good).then_some(())
    })
    .await;
    webhook_answers(&t.client).await;
    // Deleted and made anew: nothing of the old one's field owners is left.
    kubectl(&["replace", "--force", "-f", &path]);
    eventually("the caBundle is healed", async || {
        (bundle(&t).await? == good).then_some(())
    })
    .await;

    // Emptying the Secret revokes the CA: another one signs, and the old one is not trusted any more.
    kubectl(&[
        "-n",
        REVEILLE,
        "patch",
        "secret",
        "reveille-ca",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/data"}]"#,
    ]);
    let new = eventually("there is a new CA", async || {
        bundle(&t).await.filter(|bundle| *bundle != good)
    })
    .await;
    assert!(!new.contains(good.trim()));
    answers_anew(&t).await;

    // Somebody applies the chart on the server's side, as Helm 4 does: no conflict, and the caBundle stays.
    let chart = must_run(
        "helm",
        &[
            "template",
            "reveille",
            "charts/reveille",
            "--namespace",
            REVEILLE,
            "--kube-version",
            "1.34.0",
        ],
    );
    let configuration = chart
        .split("\n---")
        .find(|text| text.contains("kind: MutatingWebhookConfiguration"))
        .unwrap();
    let path = t.write("chart.yaml", configuration);
    for _ in 0..2 {
        kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=helm",
            "-f",
            &path,
        ]);
        kubectl(&["apply", "--server-side", "--field-manager=helm", "-f", &path]);
        assert_eq!(bundle(&t).await, Some(new.clone()));
    }
}

#[tokio::test]
async fn a_certificate_of_ones_own_is_served_published_and_followed() {
    let t = Scenario::alone("existing").await;
    let ca = Ca::generate(clock::now()).unwrap();
    write_secret(&t, "own-tls", issued(&ca)).await;
    install(&["certificates.mode=existing", "certificates.existing.secretName=own-tls"]);
    bundle_holds(&t, &ca.certificate).await;
    webhook_answers(&t.client).await;

    // Another CA, another certificate: both are taken over without a restart, and the old CA stays trusted meanwhile.
    // Those of before the upgrade may still be ending.
    let pods = || -> BTreeSet<String> {
        let select = ["-n", REVEILLE, "get", "pods", "-l", "app.kubernetes.io/name=reveille"];
        let listed = kubectl(&[&select[..], &["-o", "json"]].concat());
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let items = listed["items"].as_array().unwrap().iter();
        let staying = items.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        staying.map(|pod| pod["metadata"]["uid"].to_string()).collect()
    };
    let before = pods();
    let next = Ca::generate(clock::now()).unwrap();
    write_secret(&t, "own-tls", issued(&next)).await;
    wake_kubelet("rotated");
    bundle_holds(&t, &next.certificate).await;
    assert!(
        bundle(&t).await.unwrap().contains(ca.certificate.trim()),
        "the old CA is trusted beside the new one"
    );
    webhook_answers(&t.client).await;
    assert_eq!(pods(), before);
    kubectl(&["-n", REVEILLE, "delete", "secret", "own-tls"]);
}

/// cert-manager's controllers are a program of their own that is not to be had here; a stand-in does what they do: it fills the
/// Secret that the Certificate names, and the caBundle of the configuration that asks for it. The kinds are cert-manager's own.
#[tokio::test]
async fn with_cert_manager_its_secret_is_served_and_its_ca_bundle_stays() {
    let t = Scenario::alone("cert-manager").await;
    apply_third_party_crds("cert-manager");
    let installing = tokio::task::spawn_blocking(|| {
        install(&["certificates.mode=certManager", "certificates.certManager.duration=48h"]);
    });
    let read = |kind: &str, name: &str, path: &str| {
        let output = run(
            "kubectl",
            &["-n", REVEILLE, "get", kind, name, "-o", &format!("jsonpath={path}")],
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let certificate = |path: &str| read("certificates.cert-manager.io", "reveille-webhook", path);
    let secret = eventually("the Certificate is there", async || {
        Some(certificate("{.spec.secretName}")).filter(|secret| !secret.is_empty())
    })
    .await;
    assert_eq!(certificate("{.spec.dnsNames[0]}"), format!("reveille.{REVEILLE}.svc"));
    let ca = Ca::generate(clock::now()).unwrap();
    write_secret(&t, &secret, issued(&ca)).await;
    let asked_for = eventually("the configuration asks for its CA", async || {
        let path = r"{.metadata.annotations.cert-manager\.io/inject-ca-from}";
        Some(read("mutatingwebhookconfiguration", "reveille", path)).filter(|from| !from.is_empty())
    })
    .await;
    assert_eq!(asked_for, format!("{REVEILLE}/reveille-webhook"));
    let entries: usize = read("mutatingwebhookconfiguration", "reveille", "{range .webhooks[*]}x{end}").len();
    let patch: Vec<serde_json::Value> = (0..entries)
        .map(|entry| {
            json!({
                "op": "add", "path": format!("/webhooks/{entry}/clientConfig/caBundle"),
                "value": STANDARD.encode(&ca.certificate),
            })
        })
        .collect();
    let patch = serde_json::to_string(&patch).unwrap();
    kubectl(&[
        "patch",
        "mutatingwebhookconfiguration",
        "reveille",
        "--type=json",
        "-p",
        &patch,
    ]);
    installing.await.unwrap();
    webhook_answers(&t.client).await;
    // Nobody of ours writes over it, and no upgrade takes it away.
    install(&["certificates.mode=certManager", "certificates.certManager.duration=49h"]);
    assert_eq!(bundle(&t).await.unwrap().trim(), ca.certificate.trim());
    webhook_answers(&t.client).await;
    uninstall();
    kubectl(&["-n", REVEILLE, "delete", "secret", &secret]);
}
