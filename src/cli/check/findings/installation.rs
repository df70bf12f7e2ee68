//! One installation: is the webhook called, reached and trusted, and does the waiter live?

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhook, apps::v1::Deployment};
use kube::ResourceExt;

use super::Finding;
use crate::{
    admission::Mode,
    cli::check::{
        facts::{Facts, Installation, Known, argument},
        rights::Right,
    },
    infra::pki::{self, Validity},
};

const PODS_ENTRY: &str = "restored-pods.reveille.dev";
/// How late the waiter's sign of life may be, beyond its Lease's own duration.
const LATE: SignedDuration = SignedDuration::from_secs(30);
/// How far two clocks may be apart. The API server's time comes in whole seconds, and an answer takes a moment.
const CLOCKS: SignedDuration = SignedDuration::from_secs(60);

pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "webhook-configuration";
    let installations = match &facts.installations {
        Ok(installations) => installations,
        Err(reason) => return vec![Finding::unknown(CHECK, format!("the webhook configurations: {reason}"))],
    };
    if installations.is_empty() {
        return vec![Finding::error(
            CHECK,
            "there is no webhook configuration of Reveille: the API server asks nobody about restored pods",
            "helm install, or helm upgrade if it is installed (an uninstall that was broken off has removed it)",
        )];
    }
    let mut found = Vec::new();
    if installations.len() > 1 {
        let names: Vec<String> = installations.iter().map(|one| one.configuration.name_any()).collect();
        let message = format!("there is more than one installation: {}", names.join(", "));
        found.push(Finding::error(
            CHECK,
            message,
            "one Reveille for each cluster: uninstall the others",
        ));
    }
    for installation in installations {
        found.extend(of_one(installation, facts.now));
    }
    found
}

fn of_one(installation: &Installation, now: Timestamp) -> Vec<Finding> {
    let mut found = vec![
        entries(installation),
        ca_bundle(installation, now),
        deployment(installation),
        mode(installation),
    ];
    found.extend(replicas(installation, now));
    found.extend(probe(installation));
    found.push(waiter(installation, now));
    found.push(rights("rights", "waiter", &installation.rights));
    found.push(rights("webhook-rights", "webhook", &installation.webhook_rights));
    found.extend(clocks(installation, now));
    found
}

fn webhooks(installation: &Installation) -> impl Iterator<Item = &MutatingWebhook> {
    installation.configuration.webhooks.iter().flatten()
}

fn entries(installation: &Installation) -> Finding {
    const CHECK: &str = "webhook-configuration";
    let name = installation.configuration.name_any();
    let Some(pods) = webhooks(installation).find(|entry| entry.name == PODS_ENTRY) else {
        let message = format!("the webhook configuration {name} has no entry {PODS_ENTRY}");
        return Finding::error(CHECK, message, "helm upgrade");
    };
    let fails = pods.failure_policy.as_deref() == Some("Fail");
    let replicas = found_deployment(installation).and_then(|found| found.spec.as_ref()?.replicas);
    if fails && replicas.is_some_and(|replicas| replicas < 2) {
        return Finding::warning(
            CHECK,
            "failurePolicy is Fail with a single replica: while it is away restored pods are refused, and those that their controllers \
             make again are not filled from file-system backups",
            "set replicaCount to 2, or webhook.failurePolicy to Ignore",
        );
    }
    let policy = pods.failure_policy.as_deref().unwrap_or_default();
    Finding::ok(CHECK, format!("{name}, failurePolicy {policy}"))
}

fn ca_bundle(installation: &Installation, now: Timestamp) -> Finding {
    const CHECK: &str = "ca-bundle";
    let advice = "the waiter writes it: see whether it is alive, and its log; where cert-manager or a person provides the certificate, \
                  they do";
    for entry in webhooks(installation) {
        let bundle = entry
            .client_config
            .ca_bundle
            .as_ref()
            .map_or(&[][..], |bundle| &bundle.0);
        let name = &entry.name;
        let held = match pki::certificates(bundle) {
            Ok(held) if held.is_empty() => {
                let message = format!("entry {name} has no caBundle: the API server trusts nobody");
                return Finding::error(CHECK, message, advice);
            }
            Ok(held) => held,
            Err(error) => return Finding::error(CHECK, format!("the caBundle of entry {name}: {error}"), advice),
        };
        let alive = held.iter().filter_map(|certificate| pki::validity(certificate).ok());
        if !alive
            .clone()
            .any(|validity| now >= validity.from && !validity.expired(now))
        {
            let message = format!("no certificate in the caBundle of entry {name} is valid now");
            return Finding::error(CHECK, message, advice);
        }
        match &installation.ca {
            Ok(Some(ca)) => {
                let signing = pki::certificates(ca.current.as_bytes()).unwrap_or_default();
                if signing.is_empty() {
                    return Finding::error(CHECK, "the Secret with the CA holds no certificate", advice);
                }
                if !signing.iter().all(|certificate| held.contains(certificate)) {
                    let message = format!(
                        "the caBundle of entry {name} is not that of the CA which signs: was an old one restored?"
                    );
                    return Finding::error(CHECK, message, advice);
                }
                let life = signing.first().and_then(|certificate| pki::validity(certificate).ok());
                if let Some(finding) = life.and_then(|life| short_life(CHECK, "the CA", life, now)) {
                    return finding;
                }
            }
            Ok(None) => {}
            Err(reason) => return Finding::unknown(CHECK, format!("the Secret with the CA: {reason}")),
        }
    }
    Finding::ok(CHECK, "each entry trusts the CA that signs")
}

/// A certificate that should have been renewed: that happens at two thirds of its life.
fn short_life(check: &'static str, what: &str, life: Validity, now: Timestamp) -> Option<Finding> {
    let advice = "see the waiter's and the webhook's logs; a leaf of one's own certificates has to be renewed by whoever made it";
    if life.expired(now) {
        return Some(Finding::error(
            check,
            format!("{what} has expired at {}", life.until),
            advice,
        ));
    }
    if now < life.from {
        let message = format!("{what} is valid from {} only: the clocks differ", life.from);
        return Some(Finding::error(
            check,
            message,
            "set the clocks of this machine and of the nodes",
        ));
    }
    let quarter = life.until.duration_since(life.from) / 4;
    (life.until.duration_since(now) < quarter).then(|| {
        Finding::warning(
            check,
            format!("{what} ends at {} and was not renewed", life.until),
            advice,
        )
    })
}

fn found_deployment(installation: &Installation) -> Option<&Deployment> {
    installation.deployment.as_ref().ok()?.as_ref()
}

fn deployment(installation: &Installation) -> Finding {
    const CHECK: &str = "deployment";
    let (namespace, name) = (&installation.namespace, installation.configuration.name_any());
    let deployment = match &installation.deployment {
        Ok(Some(deployment)) => deployment,
        Ok(None) => {
            let message =
                format!("the Deployment {namespace}/{name} does not exist, though its webhook configuration does");
            return Finding::error(CHECK, message, "helm upgrade, or helm uninstall to remove the rest");
        }
        Err(reason) => return Finding::unknown(CHECK, format!("the Deployment {namespace}/{name}: {reason}")),
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment
        .status
        .as_ref()
        .and_then(|status| status.ready_replicas)
        .unwrap_or_default();
    let message = format!("{ready} of {wanted} replicas of {namespace}/{name} are ready");
    let advice =
        format!("kubectl -n {namespace} describe pods; kubectl -n {namespace} logs deployment/{name} --all-containers");
    match ready {
        0 => Finding::error(CHECK, message, advice),
        ready if ready < wanted => Finding::warning(CHECK, message, advice),
        _ => Finding::ok(CHECK, message),
    }
}

fn mode(installation: &Installation) -> Finding {
    const CHECK: &str = "mode";
    let Some(deployment) = found_deployment(installation) else {
        return Finding::unknown(CHECK, "without the Deployment the mode is not known");
    };
    match argument(deployment, "webhook", "mode").map(str::parse) {
        Some(Ok(Mode::Takeover)) => {
            Finding::ok(CHECK, "takeover: Reveille runs the hooks of new Restores, Velero none")
        }
        Some(Ok(Mode::Alongside)) => Finding::ok(
            CHECK,
            "alongside: Velero runs the hooks that it knows, Reveille what only it knows",
        ),
        Some(Ok(Mode::Off)) => Finding::warning(
            CHECK,
            "off: Reveille leaves Restores alone, unless one says otherwise",
            "set velero.mode when it is to run hooks",
        ),
        Some(Err(reason)) => Finding::error(CHECK, format!("the webhook's --mode: {reason}"), "helm upgrade"),
        None => Finding::unknown(CHECK, "the webhook's container has no argument --mode"),
    }
}

fn replicas(installation: &Installation, now: Timestamp) -> Vec<Finding> {
    const CHECK: &str = "certificate";
    let replicas = match &installation.replicas {
        Ok(replicas) => replicas,
        Err(reason) => return vec![Finding::unknown(CHECK, format!("the webhook's pods: {reason}"))],
    };
    let finding = |pod: &str, certificate: &Known<Validity>| match certificate {
        Ok(life) => {
            let what = format!("the certificate of {pod}");
            short_life(CHECK, &what, *life, now)
                .unwrap_or_else(|| Finding::ok(CHECK, format!("{pod} serves a trusted one until {}", life.until)))
        }
        // Port forwarding is a right of its own, and not a fault of the webhook.
        Err(reason) if reason.contains("forbidden") || reason.contains("cannot create resource") => {
            Finding::unknown(CHECK, format!("{pod}: {reason}"))
        }
        Err(reason) => Finding::error(
            CHECK,
            format!("no TLS handshake with {pod} that the caBundle would trust: {reason}"),
            "see the log of its container webhook",
        ),
    };
    replicas
        .iter()
        .map(|replica| finding(&replica.pod, &replica.certificate))
        .collect()
}

fn probe(installation: &Installation) -> Option<Finding> {
    const CHECK: &str = "webhook-call";
    let port = found_deployment(installation)
        .and_then(|found| argument(found, "webhook", "listen")?.rsplit(':').next())
        .unwrap_or("9443");
    match &installation.probe {
        Ok(Some(probe)) if probe.marked => Some(Finding::ok(
            CHECK,
            "the API server calls the webhook and trusts it (a dry run, perhaps over a connection that it kept; `certificate` tells of new \
             ones)",
        )),
        Ok(Some(_)) => Some(Finding::error(
            CHECK,
            "the API server does not reach the webhook, or does not trust it: a dry-run Restore came back without its mark",
            format!(
                "if the findings above are well: NetworkPolicies and firewalls must let the control plane reach port {port} of the pods \
                 (private GKE clusters: 443 and 10250 only)"
            ),
        )),
        // Without Velero there is nothing to call it for, which is said elsewhere.
        Ok(None) => None,
        Err(reason) => Some(Finding::unknown(CHECK, format!("a dry-run Restore: {reason}"))),
    }
}

fn waiter(installation: &Installation, now: Timestamp) -> Finding {
    const CHECK: &str = "waiter";
    let namespace = &installation.namespace;
    let advice = format!(
        "kubectl -n {namespace} logs deployment/{} --container waiter",
        installation.configuration.name_any()
    );
    let lease = match &installation.lease {
        Ok(Some(lease)) => lease,
        Ok(None) => {
            return Finding::error(
                CHECK,
                "no waiter has ever run here: hooks are planned and not run",
                advice,
            );
        }
        Err(reason) => return Finding::unknown(CHECK, format!("the waiter's Lease: {reason}")),
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    let duration = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or_default().into());
    match spec.renew_time.map(|time| time.0) {
        Some(renewed) if !holder.is_empty() && now <= renewed + duration + LATE => {
            Finding::ok(CHECK, format!("{holder} leads"))
        }
        Some(renewed) if !holder.is_empty() => {
            let message = format!("the waiter {holder} has given no sign of life since {renewed}: hooks are not run");
            Finding::error(CHECK, message, advice)
        }
        _ => Finding::error(CHECK, "no waiter leads: hooks are not run", advice),
    }
}

fn rights(check: &'static str, whose: &str, rights: &Known<Vec<(Right, bool)>>) -> Finding {
    let rights = match rights {
        Ok(rights) => rights,
        Err(reason) => return Finding::unknown(check, format!("the {whose}'s rights: {reason}")),
    };
    let refused: Vec<String> = rights
        .iter()
        .filter(|(_, allowed)| !allowed)
        .map(|(right, _)| words(right))
        .collect();
    if refused.is_empty() {
        let message = format!("the {whose}'s account has all {} that it needs", rights.len());
        return Finding::ok(check, message);
    }
    Finding::error(
        check,
        format!("the {whose}'s account may not {}", refused.join(", ")),
        "helm upgrade with rbac.create=true, or grant what templates/rbac.yaml of the chart grants",
    )
}

fn words(right: &Right) -> String {
    let Right {
        group,
        resource,
        verb,
        namespace,
        name,
    } = right;
    let group = if group.is_empty() {
        String::new()
    } else {
        format!(".{group}")
    };
    let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let place = namespace
        .as_ref()
        .map(|namespace| format!(" in {namespace}"))
        .unwrap_or_default();
    format!("{verb} {resource}{group}{name}{place}")
}

fn clocks(installation: &Installation, now: Timestamp) -> Option<Finding> {
    const CHECK: &str = "clocks";
    let server = installation.probe.as_ref().ok()?.as_ref()?.server_time?;
    let apart = now.duration_since(server).abs();
    if apart <= CLOCKS {
        return Some(Finding::ok(CHECK, "this machine's clock and the API server's agree"));
    }
    Some(Finding::warning(
        CHECK,
        format!(
            "this machine's clock and the API server's are {} s apart",
            apart.as_secs()
        ),
        "set the clocks: certificates and Leases depend on them",
    ))
}
