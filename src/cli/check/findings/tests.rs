use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration, apps::v1::Deployment, coordination::v1::Lease,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    cli::{
        check::{
            Findings, Severity,
            facts::{CaSecret, Installation, Known, Policy, Probe, Replica},
            rights::{Layout, Right},
        },
        unserved::Unserved,
    },
    infra::pki::{Ca, Validity},
};

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn configuration(bundle: &str, policy: &str) -> MutatingWebhookConfiguration {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let entry = |name: &str| {
        json!({
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": policy,
            "clientConfig": {"caBundle": STANDARD.encode(bundle), "service": {"name": "reveille", "namespace": "reveille"}},
        })
    };
    from(
        json!({"metadata": {"name": "reveille"}, "webhooks": [entry("restored-pods.reveille.dev"), entry("restores.reveille.dev")]}),
    )
}

fn deployment(ready: i32, mode: &str) -> Deployment {
    from(json!({
        "metadata": {"name": "reveille"},
        "spec": {
            "replicas": 2, "selector": {},
            "template": {"spec": {"containers": [
                {"name": "webhook", "args": [format!("--mode={mode}"), "--listen=0.0.0.0:10250"]},
                {"name": "waiter", "args": POLICIES.map(|kind| format!("--policy=reveille-{kind}=Deny"))},
            ]}},
        },
        "status": {"readyReplicas": ready},
    }))
}

fn lease(seconds_ago: i64, holder: &str) -> Lease {
    let renewed = now() - SignedDuration::from_secs(seconds_ago);
    from(json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": format!("{renewed:.6}")}}))
}

fn life(days_before: i64, days_after: i64) -> Validity {
    Validity {
        from: now() - SignedDuration::from_hours(24 * days_before),
        until: now() + SignedDuration::from_hours(24 * days_after),
    }
}

/// A cluster in which all is well.
fn healthy() -> Facts {
    let ca = Ca::generate(now()).unwrap().certificate;
    let layout = Layout::usual("reveille", "reveille");
    let well = |rights: Vec<Right>| Ok(rights.into_iter().map(|right| (right, true)).collect());
    Facts {
        now: now(),
        kubernetes: Ok("1.34".to_owned()),
        velero: Ok(vec![Velero {
            namespace: "velero".to_owned(),
            version: Some("v1.18.3".to_owned()),
            ready: true,
        }]),
        restores_exist: Ok(true),
        crd: Ok(Some(serde_json::to_value(HookRun::crd()).unwrap())),
        blueprints: Ok(None),
        policies: Ok(POLICIES.map(policy).to_vec()),
        installations: Ok(vec![Installation {
            configuration: configuration(&ca, "Ignore"),
            namespace: "reveille".to_owned(),
            service: "reveille".to_owned(),
            deployment: Ok(Some(deployment(2, "takeover"))),
            ca: Ok(Some(CaSecret { current: ca })),
            replicas: Ok(vec![Replica {
                pod: "reveille-1".to_owned(),
                certificate: Ok(life(1, 6)),
            }]),
            probe: Ok(Some(Probe {
                marked: true,
                server_time: Some(now()),
            })),
            lease: Ok(Some(lease(5, "reveille-1"))),
            rights: well(layout.waiter_rights()),
            webhook_rights: well(layout.webhook_rights()),
        }]),
        runs: Ok(Vec::new()),
        unplanned: Ok(Vec::new()),
        unserved: Ok(Vec::new()),
        unmarked: Ok(Vec::new()),
    }
}

const POLICIES: [&str; 5] = [
    "pod-marks",
    "binding-marks",
    "run-orders",
    "restore-orders",
    "hook-authors-pods",
];

fn policy(kind: &str) -> Policy {
    Policy {
        name: format!("reveille-{kind}"),
        kind: kind.to_owned(),
        actions: vec!["Deny".to_owned()],
    }
}

/// What is found when this is changed about a healthy cluster: all but what is well.
fn found(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Severity)> {
    let mut facts = healthy();
    change(&mut facts);
    let findings = Findings::of(&facts).findings;
    for finding in &findings {
        assert_eq!(
            finding.advice.is_empty(),
            finding.severity == Severity::Ok,
            "{finding:?}"
        );
    }
    let bad = findings.into_iter().filter(|finding| finding.severity != Severity::Ok);
    bad.map(|finding| (finding.check, finding.severity)).collect()
}

/// The same about the installation.
fn broken(change: impl FnOnce(&mut Installation)) -> Vec<(&'static str, Severity)> {
    found(|facts| change(&mut facts.installations.as_mut().unwrap()[0]))
}

const ERROR: Severity = Severity::Error;
const WARNING: Severity = Severity::Warning;
const UNKNOWN: Severity = Severity::Unknown;

#[test]
fn a_healthy_cluster_has_nothing_but_well() {
    assert_eq!(found(|_| {}), []);
    assert_eq!(Findings::of(&healthy()).worst, Severity::Ok);
}

#[test]
fn blueprints_matter_where_an_actions_controller_is() {
    let blueprints = |known: Known<Option<bool>>| found(|facts| facts.blueprints = known);
    assert_eq!(blueprints(Ok(Some(true))), []);
    assert_eq!(blueprints(Ok(Some(false))), [("blueprints", ERROR)]);
    assert_eq!(blueprints(Err("forbidden".to_owned())), [("blueprints", UNKNOWN)]);
}

#[test]
fn versions() {
    let kubernetes = |text: &str| found(|facts| facts.kubernetes = Ok(text.to_owned()));
    assert_eq!(kubernetes("1.30"), []);
    assert_eq!(kubernetes("1.29"), [("kubernetes", ERROR)]);
    assert_eq!(kubernetes("new"), [("kubernetes", UNKNOWN)]);
    let velero = |version: Option<&str>, ready| {
        found(|facts| {
            facts.velero = Ok(vec![Velero {
                namespace: "velero".to_owned(),
                version: version.map(str::to_owned),
                ready,
            }]);
        })
    };
    for good in ["v1.13.0", "1.18.9-rc.1"] {
        assert_eq!(velero(Some(good), true), []);
    }
    assert_eq!(velero(Some("v1.12.4"), true), [("velero", ERROR)]);
    assert_eq!(velero(Some("v1.19.0"), true), [("velero", WARNING)]);
    assert_eq!(velero(None, true), [("velero", UNKNOWN)]);
    assert_eq!(velero(None, false), [("velero", WARNING)]);
    assert_eq!(found(|facts| facts.velero = Ok(Vec::new())), [("velero", WARNING)]);
    assert_eq!(found(|facts| facts.restores_exist = Ok(false)), [("velero", WARNING)]);
}

#[test]
fn the_crd() {
    assert_eq!(found(|facts| facts.crd = Ok(None)), [("crd", ERROR)]);
    let old = found(|facts| {
        let crd = facts.crd.as_mut().unwrap().as_mut().unwrap();
        let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
        crd.pointer_mut(status)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove("message");
    });
    assert_eq!(old, [("crd", WARNING)]);
    let newer = found(|facts| {
        let crd = facts.crd.as_mut().unwrap().as_mut().unwrap();
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["more"] =
            json!({});
    });
    assert_eq!(newer, []);
}

#[test]
fn policies_that_are_missing_or_bind_nobody() {
    assert_eq!(found(|facts| facts.policies = Ok(Vec::new())), [("policies", WARNING)]);
    assert_eq!(
        found(|facts| drop(facts.policies.as_mut().unwrap().pop())),
        [("policies", WARNING)]
    );
    let unbound = found(|facts| facts.policies.as_mut().unwrap()[0].actions.clear());
    assert_eq!(unbound, [("policies", WARNING)]);
    for policy in 0..POLICIES.len() {
        let gone = found(|facts| drop(facts.policies.as_mut().unwrap().remove(policy)));
        assert_eq!(gone, [("policies", WARNING)], "{policy}");
        let weaker = found(|facts| facts.policies.as_mut().unwrap()[policy].actions = vec!["Audit".to_owned()]);
        assert_eq!(weaker, [("policies", WARNING)], "{policy}");
    }
    // One of several of a kind.
    let one_of_three = found(|facts| {
        let deployment = facts.installations.as_mut().unwrap()[0].deployment.as_mut().unwrap();
        let pod = deployment
            .as_mut()
            .unwrap()
            .spec
            .as_mut()
            .unwrap()
            .template
            .spec
            .as_mut()
            .unwrap();
        let arguments = pod.containers[1].args.as_mut().unwrap();
        arguments.push("--policy=reveille-hook-authors-cronjobs=Audit".to_owned());
    });
    assert_eq!(one_of_three, [("policies", WARNING)]);
}

#[test]
fn the_webhook_configuration() {
    assert_eq!(
        found(|facts| facts.installations = Ok(Vec::new())),
        [("webhook-configuration", ERROR)]
    );
    let twice = found(|facts| {
        let installations = facts.installations.as_mut().unwrap();
        installations.push(installations[0].clone());
    });
    assert_eq!(twice, [("webhook-configuration", ERROR)]);
    let no_pods = broken(|one| drop(one.configuration.webhooks.as_mut().unwrap().remove(0)));
    assert_eq!(no_pods, [("webhook-configuration", ERROR)]);
    let single = broken(|one| {
        one.configuration.webhooks.as_mut().unwrap()[0].failure_policy = Some("Fail".to_owned());
        one.deployment
            .as_mut()
            .unwrap()
            .as_mut()
            .unwrap()
            .spec
            .as_mut()
            .unwrap()
            .replicas = Some(1);
    });
    assert_eq!(single, [("webhook-configuration", WARNING)]);
}

#[test]
fn the_ca() {
    let bundle = |text: &str| broken(|one| one.configuration = configuration(text, "Ignore"));
    let other = Ca::generate(now()).unwrap().certificate;
    for bad in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        &other,
    ] {
        assert_eq!(bundle(bad), [("ca-bundle", ERROR)], "{bad}");
    }
    let of_age = |days: i64| {
        broken(|one| {
            let made = now() - SignedDuration::from_hours(24 * days);
            let ca = Ca::generate(made).unwrap().certificate;
            one.configuration = configuration(&ca, "Ignore");
            one.ca = Ok(Some(CaSecret { current: ca }));
        })
    };
    assert_eq!(of_age(200), []);
    assert_eq!(of_age(300), [("ca-bundle", WARNING)]);
    assert_eq!(of_age(400), [("ca-bundle", ERROR)]);
    assert_eq!(of_age(-10), [("ca-bundle", ERROR)], "a clock that is wrong");
    assert_eq!(broken(|one| one.ca = Ok(None)), [], "somebody else's certificates");
    let empty = CaSecret { current: String::new() };
    assert_eq!(broken(|one| one.ca = Ok(Some(empty))), [("ca-bundle", ERROR)]);
}

#[test]
fn the_pods_and_their_certificates() {
    assert_eq!(
        broken(|one| one.deployment = Ok(Some(deployment(1, "takeover")))),
        [("deployment", WARNING)]
    );
    assert_eq!(
        broken(|one| one.deployment = Ok(Some(deployment(0, "takeover")))),
        [("deployment", ERROR)]
    );
    assert_eq!(
        broken(|one| one.deployment = Ok(None)),
        [("deployment", ERROR), ("mode", UNKNOWN)]
    );
    assert_eq!(
        broken(|one| one.deployment = Ok(Some(deployment(2, "off")))),
        [("mode", WARNING)]
    );
    let certificate =
        |certificate: Known<Validity>| broken(|one| one.replicas.as_mut().unwrap()[0].certificate = certificate);
    assert_eq!(certificate(Ok(life(6, 1))), [("certificate", WARNING)]);
    assert_eq!(certificate(Ok(life(8, -1))), [("certificate", ERROR)]);
    assert_eq!(certificate(Err("UnknownIssuer".to_owned())), [("certificate", ERROR)]);
    assert_eq!(
        certificate(Err("pods is forbidden".to_owned())),
        [("certificate", UNKNOWN)]
    );
}

#[test]
fn what_the_api_server_reaches_and_when() {
    let probe = |marked, seconds| {
        broken(|one| {
            one.probe = Ok(Some(Probe {
                marked,
                server_time: Some(now() + SignedDuration::from_secs(seconds)),
            }));
        })
    };
    assert_eq!(probe(false, 0), [("webhook-call", ERROR)]);
    assert_eq!(probe(true, 300), [("clocks", WARNING)]);
    assert_eq!(probe(true, -300), [("clocks", WARNING)]);
    assert_eq!(broken(|one| one.probe = Ok(None)), []);
}

#[test]
fn the_waiter() {
    assert_eq!(broken(|one| one.lease = Ok(None)), [("waiter", ERROR)]);
    assert_eq!(
        broken(|one| one.lease = Ok(Some(lease(120, "reveille-1")))),
        [("waiter", ERROR)]
    );
    assert_eq!(broken(|one| one.lease = Ok(Some(lease(1, "")))), [("waiter", ERROR)]);
    assert_eq!(
        broken(|one| one.rights.as_mut().unwrap()[3].1 = false),
        [("rights", ERROR)]
    );
    assert_eq!(
        broken(|one| one.webhook_rights.as_mut().unwrap()[0].1 = false),
        [("webhook-rights", ERROR)]
    );
}

#[test]
fn restores_and_their_pods() {
    let names = || Ok(vec!["shop/db-0".to_owned()]);
    assert_eq!(found(|facts| facts.unplanned = names()), [("unplanned-pods", ERROR)]);
    assert_eq!(
        found(|facts| facts.unmarked = names()),
        [("unmarked-restores", WARNING)]
    );
    let unserved = Unserved {
        restore: "u".to_owned(),
        namespace: "shop".to_owned(),
        pod: "db-0".to_owned(),
        controller: "StatefulSet db".to_owned(),
        hooks: 1,
    };
    assert_eq!(
        found(|facts| facts.unserved = Ok(vec![unserved])),
        [("unserved-pods", WARNING)]
    );
    let run = |late: Value, init: Value| -> HookRun {
        from(json!({
            "metadata": {"name": "r", "namespace": "shop"},
            "spec": {
                "pod": {"name": "db-0", "uid": "p", "createdAt": "2026-11-21T12:00:00Z"},
                "plan": {"version": 1, "plannedAt": "2026-11-21T12:00:00Z", "lateFor": late},
            },
            "status": {"init": [{"name": "i", "container": "i", "state": init}]},
        }))
    };
    for bad in [
        run(json!("p"), json!("Succeeded")),
        run(Value::Null, json!("InjectionMissed")),
    ] {
        assert_eq!(
            found(|facts| facts.runs = Ok(vec![bad])),
            [("missed-admissions", WARNING)]
        );
    }
    let good = run(Value::Null, json!("Succeeded"));
    assert_eq!(found(|facts| facts.runs = Ok(vec![good])), []);
}

/// Whatever can't be read is said once each, and is no error.
#[test]
fn what_can_not_be_read_is_unknown() {
    let no = || "pods is forbidden".to_owned();
    let all = found(|facts| {
        facts.kubernetes = Err(no());
        facts.velero = Err(no());
        facts.restores_exist = Err(no());
        facts.crd = Err(no());
        facts.policies = Err(no());
        facts.runs = Err(no());
        facts.unplanned = Err(no());
        facts.unserved = Err(no());
        facts.unmarked = Err(no());
        let one = &mut facts.installations.as_mut().unwrap()[0];
        one.deployment = Err(no());
        one.ca = Err(no());
        one.replicas = Err(no());
        one.probe = Err(no());
        one.lease = Err(no());
        one.rights = Err(no());
        one.webhook_rights = Err(no());
    });
    let mut checks: BTreeMap<&str, usize> = BTreeMap::new();
    for (check, severity) in all {
        assert_eq!(severity, UNKNOWN, "{check}");
        *checks.entry(check).or_default() += 1;
    }
    assert_eq!(checks.len(), 16, "{checks:?}");
    assert_eq!(
        found(|facts| facts.installations = Err(no())),
        [("webhook-configuration", UNKNOWN)]
    );
}

#[test]
fn long_lists_are_cut() {
    let names: Vec<String> = (1..=8).map(|number| number.to_string()).collect();
    assert_eq!(some(&names), "1, 2, 3, 4, 5 and 3 more");
    assert_eq!(some(&names[..5]), "1, 2, 3, 4, 5");
}
