//! The chart's roles against what was really asked: runs behind the end-to-end tests, on their cluster, and reads the API
//! server's audit log. A call that was refused is a right that is missing; a right that nobody used is one too many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)] // shared with the tests before this one, which need more of it
#[path = "../e2e/harness/cluster.rs"]
mod cluster;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use cluster::{REVEILLE, cluster_name, cluster_script, must_run};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

/// Rights that the end-to-end tests do not use: account, group, resource, verb, and why it has them.
const UNUSED: &[(&str, &str, &str, &str, &str)] = &[(
    "reveille",
    "",
    "pods/exec",
    "create",
    "from Kubernetes 1.35 on, an exec over a WebSocket needs it; the test cluster is older",
)];

/// One right: all that a role's rule allows, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    account: String,
    group: String,
    resource: String,
    verb: String,
    /// Only objects of these names, if there are any.
    names: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Object {
    kind: String,
    metadata: Metadata,
    rules: Vec<Rule>,
    role_ref: Named,
    subjects: Vec<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    kind: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    verbs: Vec<String>,
}

/// The rights of the accounts, as the chart gives them to an ordinary installation.
fn rights() -> BTreeSet<Right> {
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
    let documents = chart
        .split("\n---")
        .filter(|text| text.contains("rbac.authorization.k8s.io"));
    let objects: Vec<Object> = documents.map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    let rules_of: BTreeMap<(&str, &str), &Vec<Rule>> = objects
        .iter()
        .filter(|object| object.kind.ends_with("Role"))
        .map(|role| ((role.kind.as_str(), role.metadata.name.as_str()), &role.rules))
        .collect();
    let mut rights = BTreeSet::new();
    for binding in objects.iter().filter(|object| object.kind.ends_with("Binding")) {
        let rules = rules_of[&(binding.role_ref.kind.as_str(), binding.role_ref.name.as_str())];
        for (subject, rule) in binding
            .subjects
            .iter()
            .flat_map(|subject| rules.iter().map(move |rule| (subject, rule)))
        {
            for group in &rule.api_groups {
                for resource in &rule.resources {
                    for verb in &rule.verbs {
                        rights.insert(Right {
                            account: subject.name.clone(),
                            group: group.clone(),
                            resource: resource.clone(),
                            verb: verb.clone(),
                            names: rule.resource_names.clone(),
                        });
                    }
                }
            }
        }
    }
    rights
}

/// One line of the audit log, as far as it matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(rename = "stageTimestamp")]
    at: Timestamp,
    #[serde(default)]
    object_ref: Option<ObjectRef>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct User {
    username: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    api_group: String,
    resource: String,
    subresource: String,
    name: String,
}

impl Call {
    fn is_allowed(&self) -> bool {
        self.annotations
            .get("authorization.k8s.io/decision")
            .is_some_and(|decision| decision == "allow")
    }

    fn is_refused(&self) -> bool {
        self.annotations
            .get("authorization.k8s.io/decision")
            .is_some_and(|decision| decision == "forbid")
    }

    fn uses(&self, right: &Right) -> bool {
        let Some(object) = &self.object_ref else { return false };
        let resource = match object.subresource.as_str() {
            "" => object.resource.clone(),
            subresource => format!("{}/{subresource}", object.resource),
        };
        (right.verb.as_str(), right.group.as_str(), &right.resource) == (&self.verb, &object.api_group, &resource)
            && (right.names.is_empty() || right.names.contains(&object.name))
    }
}

/// Whether the chart's roles and bindings are all there: while the chart is being uninstalled they go before its pods, and a test
/// takes a right away to see that it is missed.
#[derive(Default)]
struct Roles {
    broken: bool,
    changed: Option<Timestamp>,
}

impl Roles {
    /// A call about roles or bindings.
    fn changed(&mut self, call: &Call) {
        // Those of `helm test` come and go with it.
        let ours = call
            .object_ref
            .as_ref()
            .is_some_and(|object| object.name.starts_with("reveille") && !object.name.ends_with("-test"));
        if !ours {
            return;
        }
        let by_helm = call.user_agent.starts_with("Helm");
        match call.verb.as_str() {
            "create" => self.broken = false,
            "patch" | "update" => self.broken = !by_helm,
            "delete" => self.broken = true,
            _ => return,
        }
        self.changed = Some(call.at);
    }

    /// A right counts a moment after its role is written.
    fn are_whole(&self, call: &Call) -> bool {
        let settled = self
            .changed
            .is_none_or(|changed| call.at.duration_since(changed) > SignedDuration::from_secs(5));
        !self.broken && settled
    }
}

/// The audit log, oldest first: the API server sets full files aside.
fn audit_files() -> Vec<PathBuf> {
    let current = PathBuf::from(cluster_script(&["logs", &cluster_name(), "audit"]).trim());
    let stem = format!("{}-", current.file_stem().unwrap().to_string_lossy());
    let mut files: Vec<PathBuf> = fs::read_dir(current.parent().unwrap_or(Path::new("/")))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&stem))
        .collect();
    // Their names hold the time.
    files.sort();
    files.push(current);
    files
}

#[test]
fn no_right_is_unused_and_no_call_is_refused() {
    let mut unused = rights();
    assert!(!unused.is_empty());
    let prefix = format!("system:serviceaccount:{REVEILLE}:");
    let mut refused = BTreeSet::new();
    let mut roles = Roles::default();
    for path in audit_files() {
        for line in BufReader::new(fs::File::open(&path).unwrap()).lines() {
            let line = line.unwrap();
            if line.contains("\"apiGroup\":\"rbac.authorization.k8s.io\"") {
                roles.changed(&serde_json::from_str(&line).unwrap());
            }
            if !line.contains(&prefix) {
                continue;
            }
            let call: Call = serde_json::from_str(&line).unwrap();
            let Some(account) = call.user.username.strip_prefix(&prefix) else {
                continue;
            };
            if call.is_allowed() {
                unused.retain(|right| right.account != account || !call.uses(right));
            } else if call.is_refused() && roles.are_whole(&call) {
                refused.insert(format!("{account}: {} {}", call.verb, call.uri));
            }
        }
    }
    for (account, group, resource, verb, _reason) in UNUSED {
        unused.retain(|right| {
            (
                right.account.as_str(),
                right.group.as_str(),
                right.resource.as_str(),
                right.verb.as_str(),
            ) != (*account, *group, *resource, *verb)
        });
    }
    let unused: Vec<&Right> = unused.iter().collect();
    assert!(refused.is_empty(), "calls that were refused: {refused:#?}");
    assert!(unused.is_empty(), "rights that nobody used: {unused:#?}");
}

/// The list of exceptions holds nothing that the chart no longer gives.
#[test]
fn each_exception_is_a_right() {
    let rights: BTreeSet<_> = rights()
        .into_iter()
        .map(
            |Right {
                 account,
                 group,
                 resource,
                 verb,
                 ..
             }| (account, group, resource, verb),
        )
        .collect();
    for (account, group, resource, verb, reason) in UNUSED {
        let right = (
            (*account).to_owned(),
            (*group).to_owned(),
            (*resource).to_owned(),
            (*verb).to_owned(),
        );
        assert!(
            rights.contains(&right),
            "{right:?} is an exception ({reason}) without being a right"
        );
    }
}
