//! `reveille check hooks`: reads every hook annotation with the webhook's own decision, on live pods and in the templates that
//! pods are made from, and says what is wrong with it while there is still time.

use std::{collections::HashSet, io::Read as _};

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::Severity as Worst;
use crate::{
    admission::{Mode, PodContext, decide_pod},
    hooks::{
        Problem, Severity,
        annotations::{Annotations, is_hook_key},
        restored::Restored,
        select::annotations_of,
    },
    infra::{
        clock,
        kube::{clients, reason},
    },
};

/// Objects in one answer of the API server.
const PAGE: u32 = 500;
const POD: &str = "Pod";

/// What pods are made from: API version, kind, and where the pod-to-be stands in it.
const TEMPLATES: [(&str, &str, &str); 7] = [
    ("apps/v1", "Deployment", "/spec/template"),
    ("apps/v1", "StatefulSet", "/spec/template"),
    ("apps/v1", "DaemonSet", "/spec/template"),
    ("apps/v1", "ReplicaSet", "/spec/template"),
    ("v1", "ReplicationController", "/spec/template"),
    ("batch/v1", "Job", "/spec/template"),
    ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template"),
];

/// Reads every hook annotation on pods and in pod templates (Deployments, StatefulSets, DaemonSets, Jobs, CronJobs) with the
/// webhook's own rules, and lists what is wrong. Exit codes as of `reveille check`.
#[derive(Args, Debug)]
pub struct HooksArgs {
    /// In all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// In this namespace; otherwise in that of the kubeconfig's context.
    #[arg(short, long, conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// In this file of YAML or JSON, `-` for standard input, and not in the cluster. May be given several times.
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with_all = ["all_namespaces", "namespace"])]
    files: Vec<String>,
}

/// Something wrong with a hook annotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookProblem {
    /// The object's namespace; empty in a file that does not say.
    pub namespace: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// How bad it is.
    pub severity: Severity,
    /// The annotation.
    pub source: String,
    /// What is wrong, naming the value.
    pub message: String,
}

impl HookProblem {
    /// The object, for people.
    pub fn object(&self) -> String {
        let Self {
            namespace, kind, name, ..
        } = self;
        if namespace.is_empty() {
            format!("{kind} {name}")
        } else {
            format!("{kind} {namespace}/{name}")
        }
    }
}

/// What came of reading all of them.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookReport {
    /// Pods and templates that were read.
    pub objects: usize,
    /// Those of them with a hook annotation.
    pub with_hooks: usize,
    /// What is wrong.
    pub problems: Vec<HookProblem>,
    /// What could not be read, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

impl HookReport {
    /// How many problems are that bad.
    pub fn count(&self, severity: Severity) -> usize {
        let all = self.problems.iter().filter(|problem| problem.severity == severity);
        all.count()
    }

    /// The worst of all.
    pub(super) fn worst(&self) -> Worst {
        if self.count(Severity::Error) > 0 {
            Worst::Error
        } else if self.count(Severity::Warning) > 0 {
            Worst::Warning
        } else if self.unreadable.is_empty() {
            Worst::Ok
        } else {
            Worst::Unknown
        }
    }
}

/// Runs the command.
pub(super) async fn run(args: HooksArgs) -> anyhow::Result<HookReport> {
    if args.files.is_empty() {
        let client = clients().await?.api;
        let namespace = args.namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        let namespace = (!args.all_namespaces).then_some(namespace.as_str());
        let (objects, unreadable) = from_cluster(&client, namespace).await;
        let report = examine(&objects, clock::now());
        return Ok(HookReport { unreadable, ..report });
    }
    let mut objects = Vec::new();
    for file in &args.files {
        objects.extend(from_file(file)?);
    }
    Ok(examine(&objects, clock::now()))
}

async fn from_cluster(client: &Client, namespace: Option<&str>) -> (Vec<Value>, Vec<String>) {
    let (mut objects, mut unreadable) = (Vec::new(), Vec::new());
    let kinds = TEMPLATES.iter().map(|(version, kind, _)| (*version, *kind));
    for (version, kind) in kinds.chain([("v1", POD)]) {
        match list(client, namespace, version, kind).await {
            Ok(items) => objects.extend(items),
            Err(error) => unreadable.push(format!("{kind}s can't be listed: {}", reason(&error))),
        }
    }
    (objects, unreadable)
}

/// All objects of a kind, in pages.
async fn list(client: &Client, namespace: Option<&str>, version: &str, kind: &str) -> Result<Vec<Value>, kube::Error> {
    let resource = crate::cli::unserved::resource(version, kind);
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let mut parameters = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = api.list(&parameters).await?;
        for mut object in page.items {
            object.metadata.managed_fields = None;
            let mut value = serde_json::to_value(&object).map_err(kube::Error::SerdeError)?;
            // Items of a list do not say what they are.
            if let Some(fields) = value.as_object_mut() {
                fields.insert("kind".to_owned(), json!(kind));
            }
            found.push(value);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn from_file(file: &str) -> anyhow::Result<Vec<Value>> {
    let text = if file == "-" {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        read.context("--filename -: standard input can't be read")?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("--filename {file:?} can't be read"))?
    };
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| format!("--filename {file:?} is not YAML or JSON"))?;
    Ok(documents.into_iter().flat_map(flat).collect())
}

/// The items of a `List`; anything else is itself.
fn flat(document: Value) -> Vec<Value> {
    match document.get("items").and_then(Value::as_array) {
        Some(items) => items.iter().cloned().flat_map(flat).collect(),
        None => vec![document],
    }
}

/// Reads the hook annotations of these objects; kinds without pods do not count.
pub fn examine(objects: &[Value], now: Timestamp) -> HookReport {
    let mut report = HookReport::default();
    let (pods, templates): (Vec<&Value>, Vec<&Value>) = objects.iter().partition(|object| kind_of(object) == POD);
    for object in templates.into_iter().filter(|object| !has_controller(object)) {
        report.add(object, now);
    }
    let of_templates: HashSet<(String, String, String)> = report.problems.iter().map(essence).collect();
    let mut of_pods = HookReport::default();
    for pod in pods {
        let start = of_pods.problems.len();
        of_pods.add(pod, now);
        if has_controller(pod) {
            // Said of its template already.
            let own = of_pods.problems.split_off(start);
            let own = own
                .into_iter()
                .filter(|problem| !of_templates.contains(&essence(problem)));
            of_pods.problems.extend(own);
        }
    }
    report.objects += of_pods.objects;
    report.with_hooks += of_pods.with_hooks;
    report.problems.extend(of_pods.problems);
    report
}

fn essence(problem: &HookProblem) -> (String, String, String) {
    (
        problem.namespace.clone(),
        problem.source.clone(),
        problem.message.clone(),
    )
}

impl HookReport {
    fn add(&mut self, object: &Value, now: Timestamp) {
        let kind = kind_of(object);
        let template = TEMPLATES.iter().find(|(_, known, _)| *known == kind);
        let pod = match template {
            Some((_, _, path)) => object.pointer(path),
            None if kind == POD => Some(object),
            None => return,
        };
        self.objects += 1;
        let on_pod = pod.map(annotations_of).unwrap_or_default();
        let mut problems = Vec::new();
        if let Some((_, kind, path)) = template {
            problems.extend(misplaced(&annotations_of(object), &on_pod, kind, path));
        }
        let has_hooks = on_pod.keys().any(|key| is_hook_key(key));
        self.with_hooks += usize::from(has_hooks || !problems.is_empty());
        let namespace = text(object, "namespace");
        if let Some(pod) = pod.filter(|_| has_hooks) {
            problems.extend(decided(pod, namespace, now));
        }
        self.problems.extend(problems.into_iter().map(|problem| HookProblem {
            namespace: namespace.to_owned(),
            kind: kind.to_owned(),
            name: text(object, "name").to_owned(),
            severity: problem.severity,
            source: problem.source,
            message: problem.message,
        }));
    }
}

/// What the webhook would say of this pod's own annotations, if it were restored now.
fn decided(pod: &Value, namespace: &str, now: Timestamp) -> Vec<Problem> {
    let context = PodContext {
        namespace,
        restored: Restored::ByMarker("reveille check".to_owned()),
        mode: Mode::Takeover,
        marks_protected: false,
        now,
    };
    decide_pod(pod, &context).problems
}

/// Hook annotations of a workload that are not in its template: nobody reads them, as they never get to a pod.
fn misplaced(on_object: &Annotations, on_pod: &Annotations, kind: &str, path: &str) -> Vec<Problem> {
    let lost = on_object
        .keys()
        .filter(|key| is_hook_key(key) && !on_pod.contains_key(*key));
    let right = path.replace('/', ".");
    lost.map(|key| {
        let message = format!(
            "stands on the {kind} itself and not in its pods, so nobody reads it; it belongs into {}.metadata.annotations",
            right.trim_start_matches('.')
        );
        Problem::error(key.clone(), message)
    })
    .collect()
}

fn kind_of(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    let metadata = object.get("metadata");
    let value = metadata.and_then(|metadata| metadata.get(field)?.as_str());
    value.unwrap_or_default()
}

/// It is made from a template, which is read too.
fn has_controller(object: &Value) -> bool {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    owners
        .into_iter()
        .flatten()
        .any(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod_with(annotations: Value) -> Value {
        json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "db", "image": "i"}]}})
    }

    fn workload(kind: &str, annotations: Value) -> Value {
        let mut object = json!({"kind": kind, "metadata": {"namespace": "shop", "name": "db"}});
        let template = pod_with(annotations);
        object["spec"] = match kind {
            "CronJob" => json!({"jobTemplate": {"spec": {"template": template}}}),
            _ => json!({"template": template}),
        };
        object
    }

    fn lines(objects: &[Value]) -> Vec<String> {
        let report = examine(objects, Timestamp::UNIX_EPOCH);
        let line = |problem: &HookProblem| format!("{} {}", problem.object(), problem.source);
        report.problems.iter().map(line).collect()
    }

    #[test]
    fn every_kind_of_template_is_read_with_the_webhooks_rules() {
        let bad = json!({
            "post.hook.restore.velero.io/command": "true",
            "post.hook.restore.velero.io/container": "no-such",
            "post.hook.restore.velero.io/exec-timeout": "soon",
        });
        for (_, kind, _) in TEMPLATES {
            let found = lines(&[workload(kind, bad.clone())]);
            assert_eq!(
                found,
                [
                    format!("{kind} shop/db post.hook.restore.velero.io/exec-timeout"),
                    format!("{kind} shop/db post.hook.restore.velero.io/container"),
                ]
            );
        }
        let good = json!({"post.hook.restore.velero.io/command": "true"});
        let report = examine(
            &[workload("Deployment", good), json!({"kind": "Service"})],
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!((report.objects, report.with_hooks, report.problems.len()), (1, 1, 0));
        assert_eq!(report.worst(), Worst::Ok);
    }

    #[test]
    fn what_a_template_says_is_not_said_again_of_its_pods() {
        let bad = json!({"post.hook.restore.velero.io/on-error": "fail"});
        let mut pod = pod_with(bad.clone());
        pod["kind"] = json!("Pod");
        pod["metadata"]["namespace"] = json!("shop");
        pod["metadata"]["name"] = json!("db-0");
        let source = "post.hook.restore.velero.io/on-error";
        assert_eq!(lines(&[pod.clone()]), [format!("Pod shop/db-0 {source}")]);
        pod["metadata"]["ownerReferences"] = json!([{"controller": true}]);
        let objects = [pod.clone(), workload("StatefulSet", bad)];
        assert_eq!(lines(&objects), [format!("StatefulSet shop/db {source}")]);
        // Somebody annotated the pod itself.
        let other = json!({"post.hook.restore.velero.io/command": "true"});
        let objects = [pod, workload("StatefulSet", other)];
        assert_eq!(lines(&objects), [format!("Pod shop/db-0 {source}")]);
    }

    #[test]
    fn annotations_on_the_workload_itself_are_errors() {
        let mut object = workload("CronJob", json!({}));
        object["metadata"]["annotations"] = json!({"post.hook.restore.velero.io/command": "true", "other": "x"});
        let report = examine(&[object], Timestamp::UNIX_EPOCH);
        assert_eq!((report.with_hooks, report.worst()), (1, Worst::Error));
        let message = &report.problems[0].message;
        assert!(
            message.contains("spec.jobTemplate.spec.template.metadata.annotations"),
            "{message}"
        );
    }

    #[test]
    fn lists_are_flattened() {
        let list = json!({"kind": "List", "items": [{"kind": "List", "items": [{"kind": "Pod"}]}, {"kind": "Pod"}]});
        assert_eq!(flat(list).len(), 2);
    }
}
