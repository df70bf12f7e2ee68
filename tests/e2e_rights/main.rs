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
};

use cluster::{REVEILLE, RIGHTS_BROKEN, audit_files, must_run};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

/// Rights that the end-to-end tests do not use: account, group, resource, verb, and why it has them.
const UNUSED: &[(&str, &str, &str, &str, &str)] = &[
    (
        "reveille",
        "",
        "pods/exec",
        "create",
        "from Kubernetes 1.35 on, an exec over a WebSocket needs it; the test cluster is older",
    ),
    (
        ACTIONS,
        "",
        "pods/exec",
        "create",
        "from Kubernetes 1.35 on, an exec over a WebSocket needs it; the test cluster is older",
    ),
    (
        ACTIONS,
        "apps.openshift.io",
        "deploymentconfigs",
        "get",
        "subjects on OpenShift",
    ),
    (
        ACTIONS,
        "apps.openshift.io",
        "deploymentconfigs",
        "patch",
        "ScaleWorkload on OpenShift",
    ),
];

/// The account of the actions controller in the ordinary installation. In the tests each controller has one of its own, called
/// after its namespace.
const ACTIONS: &str = "reveille-actions";

/// What an API server makes first of all on an empty cluster.
const BIRTH: &str = "\"resource\":\"clusterroles\",\"name\":\"cluster-admin\"";

/// What the API server may refuse in spite of a right, by its words, and why that is well.
const EXPECTED: &[(&str, &str)] = &[
    (
        "because it is being terminated",
        "nothing can be created in a namespace that goes: tests delete theirs at any moment",
    ),
    (
        "violates PodSecurity",
        "a test lets a namespace refuse the pod of a KubeTask, to see that it is said",
    ),
];

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

/// The rights of the accounts, as the chart gives them to an installation with the actions controller.
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
            "--set",
            "actions.enabled=true",
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

/// The account of the chart that a user stands for, and the user's own name.
fn account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let is_actions = name.strip_suffix("-actions") == Some(namespace);
    match (namespace, is_actions) {
        (REVEILLE, _) => Some((name, name)),
        (_, true) => Some((ACTIONS, name)),
        (_, false) => None,
    }
}

/// One line of the audit log, as far as it matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    user: User,
    #[serde(rename = "stageTimestamp")]
    at: Timestamp,
    #[serde(default)]
    object_ref: Option<ObjectRef>,
    #[serde(default)]
    response_status: ResponseStatus,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
    message: String,
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

    /// Refused for want of a right.
    fn is_refused(&self) -> bool {
        self.annotations
            .get("authorization.k8s.io/decision")
            .is_some_and(|decision| decision == "forbid")
    }

    /// Refused in spite of the right to it: by an admission policy.
    fn is_against_a_policy(&self) -> bool {
        let expected = || {
            EXPECTED
                .iter()
                .any(|(words, _reason)| self.response_status.message.contains(words))
        };
        self.is_allowed() && self.response_status.code == 403 && !expected()
    }

    /// Who did what, without the object.
    fn what(&self, account: &str) -> String {
        let object = self.object_ref.as_ref();
        let resource = object.map(|object| format!("{}.{}/{}", object.resource, object.api_group, object.subresource));
        format!("{account} {} {}", self.verb, resource.unwrap_or_default())
    }

    /// `own`: the name of the account that calls; some of its objects are called after it.
    fn uses(&self, right: &Right, own: &str) -> bool {
        let Some(object) = &self.object_ref else { return false };
        let resource = match object.subresource.as_str() {
            "" => object.resource.clone(),
            subresource => format!("{}/{subresource}", object.resource),
        };
        (right.verb.as_str(), right.group.as_str(), &right.resource) == (&self.verb, &object.api_group, &resource)
            && (right.names.is_empty()
                || right.names.contains(&object.name)
                || (right.names.contains(&right.account) && object.name == own))
    }
}

/// Whether the chart's roles and bindings are those that the chart gives.
#[derive(Default)]
struct Roles {
    /// Cluster-wide ones that are gone: while the chart is being uninstalled they go before its pods.
    gone: BTreeSet<String>,
    /// A test has announced that it breaks them, or that another version's pods run with them.
    broken: bool,
    changed: Option<Timestamp>,
}

impl Roles {
    /// Takes in a call; says whether it has changed them.
    fn take(&mut self, call: &Call) -> bool {
        let Some(object) = &call.object_ref else { return false };
        match (object.resource.as_str(), call.verb.as_str()) {
            ("configmaps", "create") if object.name == RIGHTS_BROKEN => self.broken = true,
            ("configmaps", "delete") if object.name == RIGHTS_BROKEN => self.broken = false,
            ("clusterroles" | "clusterrolebindings" | "roles" | "rolebindings", verb) if is_ours(object) => {
                let key = format!("{}/{}", object.resource, object.name);
                match verb {
                    // In another mode of the chart a namespace's role may be missing for good.
                    "delete" if object.resource.starts_with("cluster") => drop(self.gone.insert(key)),
                    "delete" | "patch" | "update" => {}
                    "create" => drop(self.gone.remove(&key)),
                    _ => return false,
                }
            }
            _ => return false,
        }
        self.changed = Some(call.at);
        true
    }

    /// A right counts a moment after its role is written; and where an upgrade changes what the chart gives, the pods of before it go on
    /// until they are drained.
    fn are_whole(&self, call: &Call) -> bool {
        let settled = self
            .changed
            .is_none_or(|changed| call.at.duration_since(changed) > SignedDuration::from_secs(30));
        !self.broken && self.gone.is_empty() && settled
    }
}

/// Those of `helm test` come and go with it; those for people are nobody's here.
fn is_ours(object: &ObjectRef) -> bool {
    object.name.starts_with("reveille") && !object.name.ends_with("-test")
}

/// The calls that were refused, and were no accident of the moment.
#[derive(Default)]
struct Refusals {
    /// Refused for good.
    found: BTreeSet<String>,
    /// Refused, though the chart's roles give the right: for a moment after its start an API server knows no roles yet. By account,
    /// verb and resource; a later success forgives them.
    doubtful: BTreeMap<String, String>,
}

impl Refusals {
    fn refused(&mut self, account: &str, call: &Call, is_given: bool) {
        let text = format!(
            "{account}: {} {} ({})",
            call.verb, call.uri, call.response_status.message
        );
        if is_given {
            self.doubtful.insert(call.what(account), text);
        } else {
            self.found.insert(text);
        }
    }

    fn allowed(&mut self, account: &str, call: &Call) {
        if !self.doubtful.is_empty() {
            self.doubtful.remove(&call.what(account));
        }
    }

    /// No success can come any more that would forgive something.
    fn settle(&mut self) {
        self.found.extend(std::mem::take(&mut self.doubtful).into_values());
    }
}

#[test]
fn no_right_is_unused_and_no_call_is_refused() {
    let given = rights();
    let mut unused = given.clone();
    assert!(!unused.is_empty());
    let users = [format!("system:serviceaccount:{REVEILLE}:"), "-actions\"".to_owned()];
    let mut refusals = Refusals::default();
    let mut roles = Roles::default();
    let mut is_whole = false;
    for path in audit_files() {
        for line in BufReader::new(fs::File::open(&path).unwrap()).lines() {
            let line = line.unwrap();
            is_whole |= line.contains(BIRTH) && line.contains("\"verb\":\"create\"");
            if (line.contains("\"apiGroup\":\"rbac.authorization.k8s.io\"") || line.contains(RIGHTS_BROKEN))
                && roles.take(&serde_json::from_str(&line).unwrap())
            {
                refusals.settle();
            }
            if !users.iter().any(|user| line.contains(user)) {
                continue;
            }
            let call: Call = serde_json::from_str(&line).unwrap();
            let Some((account, own)) = account_of(&call.user.username) else {
                continue;
            };
            let of_account = |right: &Right| right.account == account && call.uses(right, own);
            if call.is_allowed() {
                unused.retain(|right| !of_account(right));
                refusals.allowed(account, &call);
            }
            // One that the chart gives by no rule is missing, whatever has become of the roles meanwhile.
            let is_given = given.iter().any(of_account);
            if call.is_against_a_policy() || (call.is_refused() && !is_given && !roles.broken) {
                refusals.refused(account, &call, false);
            } else if call.is_refused() && roles.are_whole(&call) {
                refusals.refused(account, &call, true);
            }
        }
    }
    assert!(
        is_whole,
        "the oldest part of the audit log is gone: nothing can be told from the rest"
    );
    refusals.settle();
    let refused = refusals.found;
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
