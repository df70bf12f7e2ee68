//! Which namespaces an action concerns, and whether it can be run as it is written: decided before anything has run. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::{Map, Value};

use super::action::{Action, ActionKind, Limits};
use crate::{
    api::action::{ActionPhase, ActionStatus, HookName, Invocation, StepState, Subject, VeleroObject},
    blueprint::SubjectKind,
    hooks::matching::IncludeExclude,
};

/// What was found in the cluster.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The namespaces concerned, or why they can't be told.
    pub namespaces: Result<Vec<String>, String>,
    /// Whether Velero can do what is asked for: the backup is usable, the location available.
    pub setup: Result<(), String>,
    /// For each hook: the digest of its Blueprint's action, or what is wrong with that.
    pub blueprints: BTreeMap<HookName, Result<String, String>>,
}

/// The status of an action that has been checked: its invocations, or why it is refused.
pub fn accept(action: &Action, facts: &Facts, velero_namespace: &str, limits: &Limits, now: Timestamp) -> ActionStatus {
    let mut status = ActionStatus {
        observed_generation: Some(action.generation),
        started_at: Some(MicroTime(now)),
        ..ActionStatus::default()
    };
    match invocations(action, facts, limits) {
        Ok(hooks) => status.hooks = hooks,
        Err(problems) => {
            status.phase = ActionPhase::Refused;
            status.message = problems.join("; ");
            status.finished_at = Some(MicroTime(now));
            return status;
        }
    }
    status.namespaces = facts.namespaces.clone().unwrap_or_default();
    status.phase = ActionPhase::PreHook;
    "everything is there".clone_into(&mut status.message);
    if let Some(existing) = &action.request.existing {
        status.velero = Some(VeleroObject {
            namespace: velero_namespace.to_owned(),
            name: existing.name.clone(),
            uid: Some(existing.uid.clone()),
            phase: String::new(),
            started_at: Some(MicroTime(now)),
        });
    }
    if let Err(why) = &facts.setup {
        super::end::fail(&mut status, action, why);
    }
    status
}

/// One invocation for each hook and namespace, all still to come.
fn invocations(action: &Action, facts: &Facts, limits: &Limits) -> Result<Vec<Invocation>, Vec<String>> {
    let hooks = action.hooks();
    let mut problems = Vec::new();
    for (what, limit) in [
        ("hookTimeout", limits.hook_timeout),
        ("veleroTimeout", limits.velero_timeout),
    ] {
        if limit.is_zero() || limit.is_negative() {
            problems.push(format!("{what} is {limit}: it must be longer than nothing"));
        }
    }
    let namespaces = match &facts.namespaces {
        Ok(namespaces) if namespaces.is_empty() && !hooks.is_empty() => {
            problems
                .push("it concerns no namespace, so there is nothing that its hooks could be invoked for".to_owned());
            &[][..]
        }
        Ok(namespaces) => namespaces.as_slice(),
        Err(_) if hooks.is_empty() => &[],
        Err(why) => {
            problems.push(why.clone());
            &[]
        }
    };
    let mut invocations = Vec::new();
    for (name, hook) in hooks {
        let path = name.path();
        if action.request.existing.is_some() && name.is_pre() {
            problems.push(format!(
                "{path} can't be asked for by an annotation: Velero begins with an object as soon as it is created and has no gate \
                 before that; make a {} instead",
                action.kind.word()
            ));
        }
        if let Some(subject) = &hook.subject {
            problems.extend(subject_problems(action.kind, name, subject, namespaces));
        }
        let digest = match facts.blueprints.get(&name) {
            Some(Ok(digest)) => digest.clone(),
            Some(Err(why)) => {
                problems.push(format!("{path}: {why}"));
                continue;
            }
            None => {
                problems.push(format!("{path}: Blueprint {} was not looked at", hook.blueprint));
                continue;
            }
        };
        invocations.extend(namespaces.iter().map(|namespace| Invocation {
            hook: name,
            namespace: namespace.clone(),
            blueprint: hook.blueprint.clone(),
            action_name: hook.action_name.clone(),
            digest: digest.clone(),
            state: StepState::Pending,
            message: String::new(),
            attempt: 0,
            earlier_failures: Vec::new(),
            retry_at: None,
            started_at: None,
            finished_at: None,
            phases: Vec::new(),
            artifacts: BTreeMap::new(),
        }));
    }
    if problems.is_empty() {
        Ok(invocations)
    } else {
        Err(problems)
    }
}

/// What is wrong with a subject: only resources in the target namespace can be one, and only of restores.
fn subject_problems(kind: ActionKind, name: HookName, subject: &Subject, namespaces: &[String]) -> Vec<String> {
    let path = format!("{}.subject", name.path());
    if kind == ActionKind::Backup {
        return vec![format!(
            "{path}: the hooks of backups and exports work on namespaces; take the subject away"
        )];
    }
    let mut problems = Vec::new();
    if subject.name.is_empty() {
        problems.push(format!("{path}.name is empty"));
    }
    if let SubjectKind::Other(type_) = SubjectKind::parse(&subject.type_)
        && (subject.resource.is_none() || subject.api_version.is_none())
    {
        problems.push(format!(
            "{path}.type is {type_:?}: it must be statefulset, deployment, deploymentconfig, pvc or namespace; another type \
             needs resource and apiVersion"
        ));
    }
    if SubjectKind::parse(&subject.type_) == SubjectKind::Namespace
        && namespaces.iter().any(|target| *target != subject.name)
    {
        problems.push(format!(
            "{path}.name is {:?}: a namespace as a subject must be the target namespace ({}); leave the subject out, and it is",
            subject.name,
            namespaces.join(", ")
        ));
    }
    if let Some(namespace) = &subject.namespace
        && namespaces.iter().any(|target| target != namespace)
    {
        problems.push(format!(
            "{path}.namespace is {namespace:?}: a subject must lie in the target namespace ({}){}",
            namespaces.join(", "),
            if namespaces.len() > 1 {
                "; leave it out to have the subject looked up in each"
            } else {
                ""
            }
        ));
    }
    problems
}

/// The namespaces that a Restore restores into. `backup`: the Backup's spec, if it is there; `contents`: the namespaces in its
/// resource list, if that could be had.
pub fn restore_namespaces(
    spec: &Value,
    backup: Option<&Value>,
    contents: Option<&Result<BTreeSet<String>, String>>,
) -> Result<Vec<String>, String> {
    let wanted = include_exclude(spec);
    let mapping = spec.get("namespaceMapping").and_then(Value::as_object);
    let sources: Vec<String> = if let Some(named) = explicit(&wanted.include) {
        named
    } else {
        let of_backup = backup.map(include_exclude).unwrap_or_default();
        match (explicit(&of_backup.include), contents) {
            (Some(named), _) => named
                .into_iter()
                .filter(|name| !of_backup.exclude.contains(name))
                .collect(),
            (None, Some(Ok(contents))) => contents.iter().cloned().collect(),
            (None, Some(Err(why))) => {
                return Err(format!(
                    "it is a restore of everything, and the Backup's resource list can't be read: {why}; name the namespaces in \
                     includedNamespaces"
                ));
            }
            (None, None) => {
                return Err(
                    "it names no namespaces, and its Backup can't say which these are; name them in includedNamespaces"
                        .to_owned(),
                );
            }
        }
    };
    let targets = sources.into_iter().filter(|name| wanted.includes(name)).map(|name| {
        let target = mapping.and_then(|mapping| mapping.get(&name)).and_then(Value::as_str);
        target.map_or(name.clone(), str::to_owned)
    });
    Ok(targets.collect::<BTreeSet<_>>().into_iter().collect())
}

/// Whether [`restore_namespaces`] needs the Backup's resource list.
pub fn needs_contents(spec: &Value, backup: &Value) -> bool {
    explicit(&include_exclude(spec).include).is_none() && explicit(&include_exclude(backup).include).is_none()
}

/// The namespaces that a Backup backs up. `live`: those of the cluster.
pub fn backup_namespaces(spec: &Value, live: &[String]) -> Vec<String> {
    let wanted = include_exclude(spec);
    let candidates = explicit(&wanted.include).unwrap_or_else(|| live.to_vec());
    let names: BTreeSet<String> = candidates.into_iter().filter(|name| wanted.includes(name)).collect();
    names.into_iter().collect()
}

/// Names only: no list, an empty one and patterns say nothing about which namespaces there are.
fn explicit(list: &[String]) -> Option<Vec<String>> {
    let plain = |name: &String| !name.contains(['*', '?', '[', '{']);
    (!list.is_empty() && list.iter().all(plain)).then(|| list.to_vec())
}

fn include_exclude(spec: &Value) -> IncludeExclude {
    let list = |key: &str| {
        let items = spec.get(key).and_then(Value::as_array);
        let texts = items.into_iter().flatten().filter_map(Value::as_str);
        // Velero takes an empty text for the cluster's own resources.
        texts.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    IncludeExclude {
        include: list("includedNamespaces"),
        exclude: list("excludedNamespaces"),
    }
}

/// The namespaces in a Backup's resource list: `{"v1/Pod": ["shop/web-0", ...], ...}`; names without a namespace are the
/// cluster's.
pub fn listed_namespaces(list: &Map<String, Value>) -> BTreeSet<String> {
    let names = list
        .values()
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(Value::as_str);
    names
        .filter_map(|name| Some(name.split_once('/')?.0.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_restore_concerns_what_it_names_else_what_its_backup_names_else_what_that_holds() {
        let names = |spec: Value, backup: Value, contents: &[&str]| {
            let contents = Ok(contents.iter().map(|name| (*name).to_owned()).collect());
            restore_namespaces(&spec, Some(&backup), Some(&contents)).unwrap()
        };
        assert_eq!(
            names(json!({"includedNamespaces": ["b", "a"]}), json!({}), &[]),
            ["a", "b"]
        );
        assert_eq!(
            names(
                json!({"includedNamespaces": ["a", "b"], "excludedNamespaces": ["b"], "namespaceMapping": {"a": "c"}}),
                json!({}),
                &[]
            ),
            ["c"]
        );
        let backup = json!({"includedNamespaces": ["a", "b", "c"], "excludedNamespaces": ["c"]});
        assert_eq!(
            names(json!({"includedNamespaces": ["*"]}), backup.clone(), &["x"]),
            ["a", "b"]
        );
        assert_eq!(names(json!({"excludedNamespaces": ["a"]}), backup, &["x"]), ["b"]);
        assert_eq!(names(json!({}), json!({}), &["y", "x"]), ["x", "y"]);
        assert_eq!(
            names(json!({"includedNamespaces": ["x*"]}), json!({}), &["y", "x1"]),
            ["x1"]
        );

        let error = restore_namespaces(&json!({}), None, None).unwrap_err();
        assert!(error.contains("includedNamespaces"), "{error}");
        let unreadable = Err("the location is unavailable".to_owned());
        let error = restore_namespaces(&json!({}), Some(&json!({})), Some(&unreadable)).unwrap_err();
        assert!(error.contains("the location is unavailable"), "{error}");
    }

    #[test]
    fn a_backup_concerns_what_it_names_else_what_lives() {
        let live = ["a".to_owned(), "b".to_owned()];
        assert_eq!(backup_namespaces(&json!({"includedNamespaces": ["x"]}), &live), ["x"]);
        assert_eq!(backup_namespaces(&json!({"excludedNamespaces": ["a"]}), &live), ["b"]);
    }

    #[test]
    fn a_resource_list_names_namespaces() {
        let list = json!({"v1/Pod": ["shop/web-0", "shop/web-1"], "v1/Namespace": ["shop"], "v1/Secret": ["bank/s"]});
        let found = listed_namespaces(list.as_object().unwrap());
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["bank", "shop"]);
    }
}
