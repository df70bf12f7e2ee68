//! Which hooks a restored pod gets: precedence, merging and order.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    annotations::{self, Annotations, container_error},
    hook::{InitHook, PostHook, Problem},
    matching,
    restore_spec::{Rule, Rules},
    values,
};
use crate::names::RESULT_FILE_ANNOTATION;

/// The hooks of one pod, and how they came about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selected {
    /// In pod order of their containers (native sidecars first), then in order of definition.
    pub post: Vec<PostHook>,
    /// In order of definition.
    pub init: Vec<InitHook>,
    /// The Restore's init hooks that the pod's own annotation silences. Velero, which does not know `initContainers`, may have
    /// put their containers into the pod.
    pub silenced_init: Vec<InitHook>,
    /// What is wrong with this pod's annotations and with the rules that match it.
    pub problems: Vec<Problem>,
    /// What is wrong with the Restore's hooks as such: said once, on the Restore, and not for each pod.
    pub restore_problems: Vec<Problem>,
    /// One sentence for each rule of the Restore: why it matched or not. For people.
    pub explanations: Vec<String>,
}

/// Selects the hooks of a pod: an annotation silences the Restore's hooks of its kind; the kinds are independent.
///
/// `rules`: those of its Restore, already without what Velero runs itself. `velero_owned` as in [`annotations::read`].
pub fn select(pod: &Value, namespace: &str, annotations: &Annotations, rules: &Rules, velero_owned: bool) -> Selected {
    let own = annotations::read(annotations, velero_owned);
    let mut selected = Selected {
        problems: own.problems,
        ..Selected::default()
    };
    let labels = labels(pod);
    let mut post = Vec::new();
    let mut init = Vec::new();
    selected.restore_problems.extend(
        rules
            .problems
            .iter()
            .filter(|problem| !belongs_to_a_rule(problem, rules))
            .cloned(),
    );
    for rule in &rules.rules {
        let verdict = verdict(rule, namespace, &labels);
        let line = match &verdict {
            Ok(()) => format!("rule {:?} ({}) matches", rule.name, rule.path),
            Err(reason) => format!("rule {:?} ({}) does not match: {reason}", rule.name, rule.path),
        };
        selected.explanations.push(line);
        let problems = rules.problems.iter().filter(|problem| stands_in(problem, rule));
        let (of_matching, of_hooks): (Vec<_>, Vec<_>) = problems.partition(|problem| is_about_matching(problem, rule));
        selected.restore_problems.extend(of_matching.into_iter().cloned());
        if verdict.is_ok() {
            selected.problems.extend(of_hooks.into_iter().cloned());
            post.extend(rule.post.iter().cloned());
            init.extend(rule.init.iter().cloned());
        }
    }
    if let Some(hook) = own.post {
        if !post.is_empty() {
            selected
                .explanations
                .push("the pod's own post hook annotation silences the Restore's post hooks".to_owned());
        }
        post = vec![hook];
    }
    if let Some(hooks) = own.init {
        if !init.is_empty() {
            selected
                .explanations
                .push("the pod's own init hook annotation silences the Restore's init hooks".to_owned());
        }
        let silenced = std::mem::replace(&mut init, hooks);
        selected.silenced_init = silenced.into_iter().filter(could_be_veleros).collect();
    }
    keep_results(&mut post, annotations, &mut selected.problems);
    selected.post = in_pod_order(post, pod, &init, &mut selected.problems);
    selected.init = init;
    selected
}

/// The pod says where its post hooks keep their results, unless they say so themselves.
fn keep_results(post: &mut [PostHook], annotations: &Annotations, problems: &mut Vec<Problem>) {
    let Some(text) = annotations.get(RESULT_FILE_ANNOTATION).filter(|text| !text.is_empty()) else {
        return;
    };
    let folder = values::folder(text);
    let mut is_wrong = false;
    for hook in post.iter_mut().filter(|hook| hook.result_file.is_none()) {
        match &folder {
            Ok(folder) => hook.result_file = Some(folder.clone()),
            Err(message) => {
                is_wrong = true;
                let message = format!("{RESULT_FILE_ANNOTATION}: {message}");
                hook.error = Some(match hook.error.take() {
                    Some(other) => format!("{other}; {message}"),
                    None => message,
                });
            }
        }
    }
    if let (true, Err(message)) = (is_wrong, folder) {
        problems.push(Problem::error(RESULT_FILE_ANNOTATION, message));
    }
}

/// Velero injects no container that is incomplete for it: one in the pod that looks like it is the pod's own.
fn could_be_veleros(hook: &InitHook) -> bool {
    let command = hook.container.get("command").and_then(Value::as_array);
    container_error(&hook.container).is_none() && command.is_some_and(|command| !command.is_empty())
}

/// Whether a problem stands inside this rule. Paths of items end in `]`, so `[1]` is no prefix of `[10]`.
fn stands_in(problem: &Problem, rule: &Rule) -> bool {
    problem.source.starts_with(&rule.path)
}

/// Whether it may be the reason why the rule matches or not.
fn is_about_matching(problem: &Problem, rule: &Rule) -> bool {
    const FIELDS: [&str; 5] = [
        ".labelSelector",
        ".includedNamespaces",
        ".excludedNamespaces",
        ".includedResources",
        ".excludedResources",
    ];
    let field = problem.source.strip_prefix(&rule.path).unwrap_or_default();
    FIELDS.iter().any(|name| field.starts_with(name))
}

/// Whether a problem stands inside any rule that could be read as one.
fn belongs_to_a_rule(problem: &Problem, rules: &Rules) -> bool {
    rules.rules.iter().any(|rule| stands_in(problem, rule))
}

fn verdict(rule: &Rule, namespace: &str, labels: &BTreeMap<String, String>) -> Result<(), String> {
    if let Err(message) = &rule.selector {
        return Err(format!("it can't be read: {message}"));
    }
    if !rule.resources.includes_pods() {
        return Err("its resource lists leave pods out".to_owned());
    }
    if !rule.namespaces.includes(namespace) {
        return Err(format!("its namespace lists leave {namespace:?} out"));
    }
    match &rule.selector {
        Err(message) => Err(format!("it can't be read: {message}")),
        Ok(selector) if matching::selects(selector, labels) => Ok(()),
        Ok(_) => Err("its label selector does not fit the pod's labels".to_owned()),
    }
}

/// Fills in the first container where none is named, refuses containers that the pod does not have, and sorts.
fn in_pod_order(hooks: Vec<PostHook>, pod: &Value, init: &[InitHook], problems: &mut Vec<Problem>) -> Vec<PostHook> {
    let targets = exec_targets(pod);
    let there = |name: &str| {
        let lists = ["initContainers", "containers"].map(|field| pod_containers(pod, field));
        lists
            .into_iter()
            .flatten()
            .any(|container| container_name(container) == Some(name))
    };
    // Native sidecars that the init hooks bring stand before the pod's own. Where the name is taken they are not added.
    let brought = init
        .iter()
        .filter(|hook| hook.error.is_none() && is_sidecar(&hook.container));
    let brought = brought.map(InitHook::container_name).filter(|name| !there(name));
    let order: Vec<&str> = brought.chain(targets).collect();
    let first = pod_containers(pod, "containers")
        .first()
        .and_then(|container| container_name(container))
        .unwrap_or_default()
        .to_owned();
    let mut placed: Vec<(usize, PostHook)> = Vec::with_capacity(hooks.len());
    for mut hook in hooks {
        let path = std::mem::take(&mut hook.path);
        if hook.container.is_empty() {
            hook.container.clone_from(&first);
        }
        let position = order.iter().position(|name| *name == hook.container);
        if position.is_none() {
            let message = format!(
                "there is no container {:?} in the pod; it has {}",
                hook.container,
                order.join(", ")
            );
            problems.push(Problem::error(path, message.clone()));
            hook.error = Some(
                hook.error
                    .map_or_else(|| message.clone(), |other| format!("{other}; {message}")),
            );
        }
        placed.push((position.unwrap_or(usize::MAX), hook));
    }
    // Stable: hooks of a container keep their order of definition.
    placed.sort_by_key(|(position, _)| *position);
    placed.into_iter().map(|(_, hook)| hook).collect()
}

/// The containers of a pod that a command can be run in: native sidecars, then ordinary containers.
pub fn exec_targets(pod: &Value) -> Vec<&str> {
    let sidecars = pod_containers(pod, "initContainers")
        .iter()
        .filter(|container| is_sidecar(container));
    sidecars
        .chain(pod_containers(pod, "containers"))
        .filter_map(container_name)
        .collect()
}

/// A native sidecar, if it is an init container.
fn is_sidecar(container: &Value) -> bool {
    container.get("restartPolicy").and_then(Value::as_str) == Some("Always")
}

/// `spec.containers` or `spec.initContainers`; empty when absent or null.
pub fn pod_containers<'a>(pod: &'a Value, field: &str) -> &'a [Value] {
    pod.get("spec")
        .and_then(|spec| spec.get(field))
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// A container's name.
pub fn container_name(container: &Value) -> Option<&str> {
    container.get("name").and_then(Value::as_str)
}

fn labels(pod: &Value) -> BTreeMap<String, String> {
    string_map(pod.get("metadata").and_then(|metadata| metadata.get("labels")))
}

/// An object's annotations.
pub fn annotations_of(object: &Value) -> Annotations {
    string_map(object.get("metadata").and_then(|metadata| metadata.get("annotations")))
}

fn string_map(value: Option<&Value>) -> BTreeMap<String, String> {
    let map = value.and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(annotations: &[(&str, &str)], hooks: Value, pod: &Value) -> Selected {
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let rules = Rules::of_restore(&json!({"spec": {"hooks": {"resources": hooks}}}), false);
        select(pod, "app", &annotations, &rules, false)
    }

    fn pod() -> Value {
        json!({"metadata": {"labels": {"app": "db"}}, "spec": {
            "initContainers": [{"name": "setup"}, {"name": "mesh", "restartPolicy": "Always"}],
            "containers": [{"name": "main"}, {"name": "side"}],
        }})
    }

    const COMMAND: (&str, &str) = ("post.hook.restore.velero.io/command", "own");
    const IMAGE: (&str, &str) = ("init.hook.restore.velero.io/container-image", "own");

    fn both() -> Value {
        json!([{"name": "r", "postHooks": [
            {"init": {"initContainers": [{"name": "i", "image": "x"}]}},
            {"exec": {"command": ["c"]}},
        ]}])
    }

    fn sources(selected: &Selected) -> (Vec<&str>, Vec<&str>) {
        (
            selected.post.iter().map(|h| h.name.as_str()).collect(),
            selected.init.iter().map(|h| h.name.as_str()).collect(),
        )
    }

    #[test]
    fn annotations_win_separately_for_each_kind() {
        let own = "<from-annotation>";
        assert_eq!(sources(&check(&[], both(), &pod())), (vec!["r"], vec!["r"]));
        assert_eq!(sources(&check(&[COMMAND], both(), &pod())), (vec![own], vec!["r"]));
        assert_eq!(sources(&check(&[IMAGE], both(), &pod())), (vec!["r"], vec![own]));
        assert_eq!(
            sources(&check(&[COMMAND, IMAGE], both(), &pod())),
            (vec![own], vec![own])
        );
    }

    #[test]
    fn only_what_velero_can_have_injected_is_taken_for_its() {
        let containers = json!([
            {"name": "a", "image": "x", "command": ["c"]}, {"name": "b", "image": "x"}, {"name": "c", "image": "x", "command": "c"},
        ]);
        let hooks = json!([{"name": "r", "postHooks": [{"init": {"initContainers": containers, "timeout": "-1s"}}]}]);
        let silenced = check(&[IMAGE], hooks, &pod()).silenced_init;
        assert_eq!(silenced.iter().map(InitHook::container_name).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_broken_annotation_silences_the_spec_too() {
        let selected = check(
            &[COMMAND, ("post.hook.restore.velero.io/exec-timeout", "x")],
            both(),
            &pod(),
        );
        assert_eq!(sources(&selected).0, ["<from-annotation>"]);
        assert!(selected.post[0].error.is_some());
    }

    #[test]
    fn order_is_by_container_then_definition() {
        let exec = |name: &str, container: &str| json!({"name": name, "postHooks": [{"exec": {"command": ["c"], "container": container}}]});
        let selected = check(
            &[],
            json!([
                exec("1", "side"),
                exec("2", ""),
                exec("3", "mesh"),
                exec("4", "main"),
                exec("5", "side")
            ]),
            &pod(),
        );
        let order: Vec<_> = selected
            .post
            .iter()
            .map(|hook| (hook.name.as_str(), hook.container.as_str()))
            .collect();
        assert_eq!(
            order,
            [
                ("3", "mesh"),
                ("2", "main"),
                ("4", "main"),
                ("1", "side"),
                ("5", "side")
            ]
        );
    }

    #[test]
    fn a_container_that_is_not_there_is_an_error_that_lists_those_that_are() {
        let selected = check(
            &[COMMAND, ("post.hook.restore.velero.io/container", "setup")],
            json!([]),
            &pod(),
        );
        let error = selected.post[0].error.clone().expect("an error");
        assert!(
            error.contains("\"setup\"") && error.contains("mesh, main, side"),
            "{error}"
        );
    }

    #[test]
    fn a_sidecar_that_an_init_hook_brings_is_a_target_unless_its_name_is_taken() {
        let hooks = |name: &str| {
            let container = json!({"name": name, "image": "x", "restartPolicy": "Always"});
            json!([{"name": "r", "postHooks": [
                {"exec": {"command": ["c"], "container": name}},
                {"exec": {"command": ["c"], "container": "mesh"}},
                {"init": {"initContainers": [container]}},
            ]}])
        };
        let ready = |name: &str| {
            let post = check(&[], hooks(name), &pod()).post;
            post.into_iter()
                .filter(|hook| hook.error.is_none())
                .map(|hook| hook.container)
                .collect::<Vec<_>>()
        };
        assert_eq!(ready("helper"), ["helper", "mesh"]);
        assert_eq!(ready("setup"), ["mesh"]);
    }

    #[test]
    fn rules_are_explained() {
        let selected = check(
            &[],
            json!([
                {"name": "a", "includedResources": ["deployments"]},
                {"name": "b", "excludedNamespaces": ["app"]},
                {"name": "c", "labelSelector": {"matchLabels": {"app": "web"}}},
                {"name": "d", "labelSelector": {"matchLabels": {"app": "db"}}},
            ]),
            &pod(),
        );
        let words: Vec<_> = ["resource lists", "namespace lists", "label selector", "matches"].into();
        for (line, word) in selected.explanations.iter().zip(words) {
            assert!(line.contains(word), "{line}");
        }
    }

    #[test]
    fn a_missing_container_is_told_where_it_is_named() {
        let hooks = json!([{"name": "r", "postHooks": [{"exec": {"command": ["c"], "container": "gone"}}]}]);
        let source =
            |annotations: &[(&str, &str)]| check(annotations, hooks.clone(), &pod()).problems[0].source.clone();
        assert_eq!(source(&[]), "spec.hooks.resources[0].postHooks[0].exec.container");
        let container = "post.hook.restore.velero.io/container";
        assert_eq!(source(&[COMMAND, (container, "gone")]), container);
    }

    #[test]
    fn a_bad_pattern_is_told_although_its_rule_does_not_match() {
        let hooks = json!([{"name": "a", "includedNamespaces": ["[app"], "postHooks": [{"exec": {"command": ["c"]}}]}]);
        let selected = check(&[], hooks, &pod());
        assert_eq!(selected.post, []);
        assert_eq!(
            selected.restore_problems[0].source,
            "spec.hooks.resources[0].includedNamespaces"
        );
    }

    #[test]
    fn problems_of_rules_that_do_not_match_do_not_concern_the_pod() {
        let hooks = json!([{"name": "a", "includedNamespaces": ["other"], "postHooks": [{"exec": {"command": ["c"], "execTimeout": "x"}}]}]);
        assert_eq!(check(&[], hooks, &pod()).problems, []);
    }
}
