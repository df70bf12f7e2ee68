//! What the facts mean. Pure: facts in, findings out, each with what to do.

mod installation;
mod restores;
#[cfg(test)]
mod tests;

use kube::{CustomResourceExt, ResourceExt};
use serde_json::Value;

use super::{
    Finding,
    facts::{Facts, Policy, Velero},
    rights::Layout,
};
use crate::api::HookRun;

/// Oldest Kubernetes: matchConditions and `ValidatingAdmissionPolicy` are stable from here on.
const OLDEST_KUBERNETES: (u32, u32) = (1, 30);
/// Oldest and newest Velero that are supported.
const VELERO: [(u32, u32); 2] = [(1, 13), (1, 18)];
/// More names than this are only counted.
const NAMES: usize = 5;

/// Everything that there is to say.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![kubernetes(facts)];
    found.extend(velero(facts));
    found.push(crd(facts));
    found.extend(blueprints(facts));
    found.extend(installation::all(facts));
    found.push(policies(facts));
    found.extend(restores::all(facts));
    found
}

/// `v1.18.3-eks` is (1, 18).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kubernetes(facts: &Facts) -> Finding {
    const CHECK: &str = "kubernetes";
    let text = match &facts.kubernetes {
        Ok(text) => text,
        Err(reason) => return Finding::unknown(CHECK, format!("the API server's version: {reason}")),
    };
    let (major, minor) = OLDEST_KUBERNETES;
    match version(text) {
        Some(version) if version >= OLDEST_KUBERNETES => Finding::ok(CHECK, format!("Kubernetes {text}")),
        Some(_) => Finding::error(
            CHECK,
            format!("Kubernetes {text} is too old: Reveille needs {major}.{minor}"),
            "upgrade the cluster",
        ),
        None => Finding::unknown(CHECK, format!("the API server calls its version {text:?}")),
    }
}

fn velero(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "velero";
    let mut found = Vec::new();
    match &facts.restores_exist {
        Ok(true) => {}
        Ok(false) => {
            let advice =
                "install Velero 1.13 to 1.18 before a restore; for other restore tools set the value markerLabels";
            return vec![Finding::warning(
                CHECK,
                "Velero's Restores do not exist in this cluster",
                advice,
            )];
        }
        Err(reason) => found.push(Finding::unknown(CHECK, format!("Velero's Restores: {reason}"))),
    }
    match &facts.velero {
        Ok(servers) if servers.is_empty() => found.push(Finding::warning(
            CHECK,
            "no Velero server is in this cluster, though its Restores are",
            "install Velero 1.13 to 1.18 before a restore",
        )),
        Ok(servers) => found.extend(servers.iter().map(velero_server)),
        Err(reason) => found.push(Finding::unknown(CHECK, format!("Velero's servers: {reason}"))),
    }
    found
}

fn velero_server(server: &Velero) -> Finding {
    const CHECK: &str = "velero";
    let namespace = &server.namespace;
    let said = server.version.as_deref().unwrap_or_default();
    if !server.ready {
        let message = format!("the Velero server in namespace {namespace} is not ready: no restore runs");
        return Finding::warning(
            CHECK,
            message,
            format!("kubectl -n {namespace} describe deployment velero"),
        );
    }
    let [oldest, newest] = VELERO;
    match version(said) {
        Some(version) if version < oldest => Finding::error(
            CHECK,
            format!("Velero {said} in namespace {namespace} is too old: 1.13 to 1.18 are supported"),
            "upgrade Velero",
        ),
        Some(version) if version > newest => Finding::warning(
            CHECK,
            format!(
                "Velero {said} in namespace {namespace} is newer than 1.18, the newest that Reveille is known to work with"
            ),
            "try a restore, and look for a newer Reveille",
        ),
        Some(_) => Finding::ok(CHECK, format!("Velero {said} in namespace {namespace}")),
        None => Finding::unknown(
            CHECK,
            format!("the Velero server in namespace {namespace} does not say its version"),
        ),
    }
}

fn crd(facts: &Facts) -> Finding {
    const CHECK: &str = "crd";
    let crd = match &facts.crd {
        Ok(Some(crd)) => crd,
        Ok(None) => {
            let advice = "helm upgrade with crds.install=true, or: reveille crd | kubectl apply -f -";
            return Finding::error(
                CHECK,
                "the CRD hookruns.reveille.dev does not exist: no hook can be recorded, so none runs",
                advice,
            );
        }
        Err(reason) => return Finding::unknown(CHECK, format!("the CRD hookruns.reveille.dev: {reason}")),
    };
    let own = serde_json::to_value(HookRun::crd()).unwrap_or_default();
    let schemas = |crd: &Value| crd.pointer("/spec/versions/0/schema").cloned().unwrap_or_default();
    let missing = missing_fields(&schemas(&own), &schemas(crd), "");
    match missing.first() {
        None => Finding::ok(
            CHECK,
            "the CRD hookruns.reveille.dev has all the fields of this version",
        ),
        Some(first) => {
            let message = format!("the CRD hookruns.reveille.dev is of another version: it has no field {first}");
            let advice = "upgrade the chart (with crds.install=true), or use the `reveille` of the installed version";
            Finding::warning(CHECK, message, advice)
        }
    }
}

/// Nothing where there is no actions controller.
fn blueprints(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "blueprints";
    match &facts.blueprints {
        Ok(None) => None,
        Ok(Some(true)) => Some(Finding::ok(CHECK, "the CRD blueprints.cr.kanister.io exists")),
        Ok(Some(false)) => Some(Finding::error(
            CHECK,
            "the CRD blueprints.cr.kanister.io does not exist: every action with hooks is refused",
            "helm upgrade with actions.installBlueprintCRD=true, or install Kanister's CRDs",
        )),
        Err(reason) => Some(Finding::unknown(
            CHECK,
            format!("the CRD blueprints.cr.kanister.io: {reason}"),
        )),
    }
}

/// The properties of a schema that another lacks: the API server would drop them.
fn missing_fields(wanted: &Value, present: &Value, path: &str) -> Vec<String> {
    let Some(fields) = wanted.as_object() else {
        return Vec::new();
    };
    let mut missing = Vec::new();
    for (name, wanted) in fields {
        let present = present.get(name);
        if name == "properties" {
            for (property, schema) in wanted.as_object().into_iter().flatten() {
                let path = if path.is_empty() {
                    property.clone()
                } else {
                    format!("{path}.{property}")
                };
                match present.and_then(|present| present.get(property)) {
                    Some(present) => missing.extend(missing_fields(schema, present, &path)),
                    None => missing.push(path),
                }
            }
        } else if let Some(present) = present {
            missing.extend(missing_fields(wanted, present, path));
        }
    }
    missing
}

fn policies(facts: &Facts) -> Finding {
    const CHECK: &str = "policies";
    let policies = match &facts.policies {
        Ok(policies) => policies,
        Err(reason) => return Finding::unknown(CHECK, format!("the ValidatingAdmissionPolicies: {reason}")),
    };
    // The first word of each is enough: `hook-authors` are several.
    let guards = [
        (
            "pod-marks",
            "the plan on a pod can be changed by whoever may change the pod",
        ),
        (
            "binding-marks",
            "the plan on a pod can be changed by whoever may bind pods to nodes",
        ),
        (
            "run-orders",
            "HookRuns can be written, and reruns be ordered, by people who may not exec into pods",
        ),
        (
            "restore-orders",
            "the hooks of a Restore can be changed by people who may not create one",
        ),
        (
            "hook-authors",
            "hooks can be written by people who may not exec into pods",
        ),
    ];
    let is_there = |kind: &str| policies.iter().any(|policy| policy.kind.starts_with(kind));
    let absent = guards.iter().filter(|(kind, _)| !is_there(kind));
    let mut open: Vec<String> = absent.map(|(_, meaning)| (*meaning).to_owned()).collect();
    let unbound = policies.iter().filter(|policy| policy.actions.is_empty());
    open.extend(unbound.map(|policy| format!("{} is not bound", policy.name)));
    open.extend(differing(&installed_policies(facts), policies));
    if open.is_empty() {
        let said: Vec<String> = policies
            .iter()
            .map(|policy| format!("{} {}", policy.kind, policy.actions.join("+")))
            .collect();
        return Finding::ok(CHECK, said.join(", "));
    }
    Finding::warning(
        CHECK,
        format!("policies are missing, not bound or changed: {}", open.join("; ")),
        "helm upgrade puts them back; where they are Off, set the values under `policies` of the chart to Deny or Audit",
    )
}

/// The policies with which Reveille was installed, and their actions.
fn installed_policies(facts: &Facts) -> Vec<(String, String)> {
    let installations = facts.installations.as_ref().ok().into_iter().flatten();
    let layouts = installations.filter_map(|one| {
        let deployment = one.deployment.as_ref().ok()?.as_ref()?;
        Some(Layout::of(deployment, &one.configuration.name_any(), &one.namespace))
    });
    layouts.flat_map(|layout| layout.policies).collect()
}

/// What is not any more as it was installed.
fn differing(installed: &[(String, String)], policies: &[Policy]) -> Vec<String> {
    let difference = |(name, action): &(String, String)| match policies.iter().find(|policy| policy.name == *name) {
        None => Some(format!("{name} is gone")),
        Some(policy) if policy.actions.is_empty() || action.is_empty() || policy.actions.contains(action) => None,
        Some(policy) => Some(format!(
            "{name} says {} and was installed as {action}",
            policy.actions.join("+")
        )),
    };
    installed.iter().filter_map(difference).collect()
}

/// Some of these names, and how many more there are.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(NAMES).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMES).filter(|more| *more > 0) {
        Some(more) => format!("{shown} and {more} more"),
        None => shown,
    }
}
