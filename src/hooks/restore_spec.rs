//! Hooks written in a Restore: `spec.hooks` as Velero built it, and the form of Velero's design document (`post`, a sibling
//! `init`, `timeout`, `readyTimeout`), which reaches us in the annotation `reveille.dev/hooks` and in files.

use kube::core::Selector;
use serde_json::Value;

use super::{
    annotations::{container_error, join},
    glob::Glob,
    hook::{DEFAULT_EXEC_TIMEOUT, DEFAULT_RETRY_BACKOFF, HookSource, InitHook, OnError, PostHook, Problem, Retry},
    matching::{self, IncludeExclude},
    values,
};
use crate::{
    duration::GoDuration,
    names::{HOOKS_ANNOTATION, MOVED_HOOKS_ANNOTATION},
};

/// Which kinds of hooks to take from a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kinds {
    All,
    Post,
    Init,
}

/// One entry of `resources`: which pods it hits, and what to do with them.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name; may be empty and need not be unique.
    pub name: String,
    /// Where it stands, for messages.
    pub path: String,
    /// On the pod's namespace in the target cluster.
    pub namespaces: IncludeExclude,
    /// On the resource; a rule that names only other resources hits no pod.
    pub resources: IncludeExclude,
    /// On the pod's labels. `Err` with the reason if the selector, or one of the lists, can't be read: the rule then hits no pod.
    pub selector: Result<Selector, String>,
    /// Post hooks in order of definition.
    pub post: Vec<PostHook>,
    /// Init hooks in order of definition.
    pub init: Vec<InitHook>,
}

/// All rules of a Restore, and what is wrong with them.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// In order of definition.
    pub rules: Vec<Rule>,
    /// Everything worth saying, whether or not a pod matches.
    pub problems: Vec<Problem>,
}

impl Rules {
    /// The rules of a Restore object.
    ///
    /// `velero_owned`: Velero runs `spec.hooks` itself; only the annotation `reveille.dev/hooks` counts. Otherwise exec hooks
    /// that were moved off the spec stand in for those of the spec.
    pub fn of_restore(restore: &Value, velero_owned: bool) -> Self {
        let mut rules = Self::default();
        let annotation = |key: &str| restore.get("metadata")?.get("annotations")?.get(key)?.as_str();
        if !velero_owned {
            let spec = restore.get("spec").and_then(|spec| spec.get("hooks"));
            match annotation(MOVED_HOOKS_ANNOTATION) {
                Some(text) => {
                    rules.read_text(text, MOVED_HOOKS_ANNOTATION, "spec.hooks", Kinds::Post);
                    let mut rest = Self::default();
                    rest.read(spec, "spec.hooks", Kinds::Init);
                    rules.take_init_of(rest);
                }
                None => rules.read(spec, "spec.hooks", Kinds::All),
            }
        }
        if let Some(text) = annotation(HOOKS_ANNOTATION) {
            rules.read_text(text, HOOKS_ANNOTATION, HOOKS_ANNOTATION, Kinds::All);
        }
        rules
    }

    /// Joins the init hooks that stayed in the spec with the post hooks that were moved off it: both stand at the same path.
    fn take_init_of(&mut self, rest: Self) {
        for rule in rest.rules {
            match self
                .rules
                .iter_mut()
                .find(|own| own.path == rule.path && own.name == rule.name)
            {
                Some(own) => own.init = rule.init,
                None => self.rules.push(rule),
            }
        }
        let news = rest
            .problems
            .into_iter()
            .filter(|problem| !self.problems.contains(problem))
            .collect::<Vec<_>>();
        self.problems.extend(news);
    }

    fn read_text(&mut self, text: &str, source: &str, path: &str, kinds: Kinds) {
        match values::document(text) {
            Ok(value) => self.read(Some(&value), path, kinds),
            Err(message) => self
                .problems
                .push(Problem::error(source, format!("{} is {message}", values::quote(text)))),
        }
    }

    /// `hooks` may be `{resources: […]}`, `{hooks: {resources: […]}}` or the bare list.
    fn read(&mut self, hooks: Option<&Value>, path: &str, kinds: Kinds) {
        let Some(hooks) = hooks.filter(|hooks| !hooks.is_null()) else {
            return;
        };
        let (list, path) = match hooks.get("hooks").unwrap_or(hooks) {
            list @ Value::Array(_) => (list, path.to_owned()),
            object => {
                let Some(list) = object.get("resources") else {
                    let text = format!("{} has no list \"resources\"", values::quote(&object.to_string()));
                    self.problems.push(Problem::error(path, text));
                    return;
                };
                (list, format!("{path}.resources"))
            }
        };
        for (index, (resource, path)) in items(Some(list), &path, &mut self.problems).into_iter().enumerate() {
            let mut parser = Parser {
                problems: &mut self.problems,
                rule_name: String::new(),
            };
            if let Some(rule) = parser.rule(resource, &path, kinds, index) {
                self.rules.push(rule);
            }
        }
    }
}

/// The items of a list with their paths; what is no list is a problem.
fn items<'a>(list: Option<&'a Value>, path: &str, problems: &mut Vec<Problem>) -> Vec<(&'a Value, String)> {
    match list {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list
            .iter()
            .enumerate()
            .map(|(index, item)| (item, format!("{path}[{index}]")))
            .collect(),
        Some(other) => {
            problems.push(Problem::error(
                path,
                format!("{} is not a list", values::quote(&other.to_string())),
            ));
            Vec::new()
        }
    }
}

struct Parser<'a> {
    problems: &'a mut Vec<Problem>,
    rule_name: String,
}

impl Parser<'_> {
    fn rule(&mut self, resource: &Value, path: &str, kinds: Kinds, index: usize) -> Option<Rule> {
        if !resource.is_object() {
            self.problems.push(Problem::error(
                path,
                format!("{} is not an object", values::quote(&resource.to_string())),
            ));
            return None;
        }
        let name = resource.get("name").and_then(Value::as_str).unwrap_or_default();
        self.rule_name = if name.is_empty() {
            format!("resources[{index}]")
        } else {
            name.to_owned()
        };
        let mut selector = matching::selector(resource.get("labelSelector"));
        if let Err(message) = &selector {
            let text = format!("can't be read, so the rule matches no pod: {message}");
            self.problems
                .push(Problem::error(format!("{path}.labelSelector"), text));
        }
        let before = self.problems.len();
        let namespaces = self.lists(resource, path, "includedNamespaces", "excludedNamespaces");
        for (list, key) in [
            (&namespaces.include, "includedNamespaces"),
            (&namespaces.exclude, "excludedNamespaces"),
        ] {
            for pattern in list {
                if let Err(message) = Glob::parse(pattern) {
                    let text = format!("{} is no pattern: {message}", values::quote(pattern));
                    self.problems.push(Problem::error(format!("{path}.{key}"), text));
                }
            }
        }
        let resources = self.lists(resource, path, "includedResources", "excludedResources");
        // A list that can't be read must not widen the rule to everything.
        if let Some(problem) = self.problems.get(before) {
            selector = selector.and(Err(problem.to_string()));
        }
        let (mut post, mut init) = (Vec::new(), Vec::new());
        // `postHooks` is what Velero built, `post` and `init` what its design document says.
        for key in ["postHooks", "post"] {
            for (hook, path) in items(resource.get(key), &format!("{path}.{key}"), self.problems) {
                if kinds != Kinds::Init
                    && let Some(exec) = hook.get("exec").filter(|exec| !exec.is_null())
                {
                    post.push(self.post_hook(exec, hook, &format!("{path}.exec")));
                }
                if kinds != Kinds::Post {
                    init.extend(self.init_hooks(hook.get("init"), &format!("{path}.init")));
                }
            }
        }
        if kinds != Kinds::Post {
            init.extend(self.init_hooks(resource.get("init"), &format!("{path}.init")));
        }
        Some(Rule {
            name: self.rule_name.clone(),
            path: path.to_owned(),
            namespaces,
            resources,
            selector,
            post,
            init,
        })
    }

    fn lists(&mut self, resource: &Value, path: &str, include: &str, exclude: &str) -> IncludeExclude {
        let mut strings = |key: &str| {
            let path = format!("{path}.{key}");
            let items = items(resource.get(key), &path, self.problems);
            let mut texts = Vec::with_capacity(items.len());
            for (item, path) in items {
                if let Some(text) = item.as_str() {
                    texts.push(text.to_owned());
                } else {
                    let text = format!("{} is not a text", values::quote(&item.to_string()));
                    self.problems.push(Problem::error(path, text));
                }
            }
            texts
        };
        IncludeExclude {
            include: strings(include),
            exclude: strings(exclude),
        }
    }

    /// Reads a text value under the first of `keys` that is there; what does not parse goes to `errors`.
    fn text<T>(
        object: &Value,
        path: &str,
        keys: &[&str],
        errors: &mut Vec<Problem>,
        parse: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (key, value) = keys
            .iter()
            .find_map(|key| Some((*key, object.get(*key).filter(|value| !value.is_null())?)))?;
        let result = match value {
            Value::String(text) if text.is_empty() => return None,
            Value::String(text) => parse(text),
            Value::Bool(flag) => parse(if *flag { "true" } else { "false" }),
            other => Err(format!("{} is not a text", values::quote(&other.to_string()))),
        };
        result
            .map_err(|message| errors.push(Problem::error(format!("{path}.{key}"), message)))
            .ok()
    }

    /// `hook` is the object around `exec`: users of the design document's form sometimes put its settings there.
    fn post_hook(&mut self, exec: &Value, hook: &Value, path: &str) -> PostHook {
        let mut errors = Vec::new();
        let outer = path.trim_end_matches(".exec");
        for key in [
            "onError",
            "timeout",
            "readyTimeout",
            "execTimeout",
            "waitTimeout",
            "waitForReady",
            "retries",
            "retryBackoff",
            "onUnknown",
            "resultFile",
        ] {
            if hook.get(key).is_some() {
                self.problems.push(Problem::warning(
                    format!("{outer}.{key}"),
                    format!("is not read; it belongs under {path}"),
                ));
            }
        }
        let given = exec
            .get("onError")
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty());
        let unreadable = if given { OnError::Fail } else { OnError::default() };
        let on_error = Self::text(exec, path, &["onError"], &mut errors, values::on_error).unwrap_or(unreadable);
        let exec_timeout = Self::text(exec, path, &["execTimeout", "timeout"], &mut errors, values::limit);
        let wait_timeout = Self::text(exec, path, &["waitTimeout", "readyTimeout"], &mut errors, values::limit);
        let wait_for_ready =
            Self::text(exec, path, &["waitForReady"], &mut errors, values::boolean).unwrap_or_default();
        let container =
            Self::text(exec, path, &["container"], &mut errors, |text| Ok(text.to_owned())).unwrap_or_default();
        let retry = Self::retry(exec, path, &mut errors);
        let result_file = Self::text(exec, path, &["resultFile"], &mut errors, values::folder);
        let command = match exec.get("command") {
            Some(Value::Array(list)) if !list.is_empty() => list
                .iter()
                .map(Value::as_str)
                .collect::<Option<Vec<_>>>()
                .map(|list| list.into_iter().map(str::to_owned).collect()),
            _ => None,
        };
        if command.is_none() {
            let message = match exec.get("command") {
                None | Some(Value::Null) => "is missing".to_owned(),
                Some(value) => format!(
                    "{} is not a list of texts with at least one item",
                    values::quote(&value.to_string())
                ),
            };
            errors.push(Problem::error(format!("{path}.command"), message));
        }
        let error = join(&errors);
        self.problems.extend(errors);
        PostHook {
            name: self.rule_name.clone(),
            source: HookSource::Spec,
            container,
            command: command.unwrap_or_default(),
            on_error,
            exec_timeout: exec_timeout
                .filter(|limit| !limit.is_zero())
                .unwrap_or(DEFAULT_EXEC_TIMEOUT),
            wait_timeout: wait_timeout.unwrap_or_default(),
            wait_for_ready,
            retry,
            result_file,
            error,
            left_to_velero: false,
            path: format!("{path}.container"),
        }
    }

    fn retry(exec: &Value, path: &str, errors: &mut Vec<Problem>) -> Retry {
        // A number is what anybody would write here.
        let limit = match exec.get("retries") {
            Some(Value::Number(number)) => values::retries(&number.to_string())
                .map_err(|message| errors.push(Problem::error(format!("{path}.retries"), message)))
                .ok(),
            _ => Self::text(exec, path, &["retries"], errors, values::retries),
        };
        let backoff = Self::text(exec, path, &["retryBackoff"], errors, values::limit);
        let on_unknown = Self::text(exec, path, &["onUnknown"], errors, values::on_unknown);
        Retry {
            limit,
            backoff: backoff.unwrap_or(DEFAULT_RETRY_BACKOFF),
            on_unknown: on_unknown.unwrap_or_default(),
        }
    }

    fn init_hooks(&mut self, init: Option<&Value>, path: &str) -> Vec<InitHook> {
        let Some(init) = init.filter(|init| !init.is_null()) else {
            return Vec::new();
        };
        let mut errors = Vec::new();
        let timeout = Self::text(init, path, &["timeout"], &mut errors, values::limit).unwrap_or(GoDuration::ZERO);
        let shared = join(&errors);
        self.problems.extend(errors);
        let containers = items(
            init.get("initContainers"),
            &format!("{path}.initContainers"),
            self.problems,
        );
        let hooks = containers.into_iter().map(|(container, path)| {
            let own = container_error(container).map(|message| Problem::error(path.clone(), message));
            let error = own
                .as_ref()
                .map(|problem| problem.message.clone())
                .or_else(|| shared.clone());
            self.problems.extend(own);
            InitHook {
                name: self.rule_name.clone(),
                source: HookSource::Spec,
                container: container.clone(),
                generated_name: false,
                timeout,
                error,
                path,
            }
        });
        hooks.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::Severity;
    use serde_json::json;

    fn rules(hooks: Value) -> Rules {
        Rules::of_restore(&json!({"metadata": {}, "spec": {"hooks": hooks}}), false)
    }

    #[test]
    fn the_built_form() {
        let rules = rules(json!({"resources": [{
            "name": "db", "includedNamespaces": ["a"], "labelSelector": {"matchLabels": {"app": "db"}},
            "postHooks": [
                {"init": {"timeout": "2m", "initContainers": [{"name": "i", "image": "x", "command": ["c"]}]}},
                {"exec": {"container": "pg", "command": ["a", "b"], "onError": "Fail", "execTimeout": "10s", "waitTimeout": "60s", "waitForReady": true}},
            ],
        }]}));
        assert_eq!(rules.problems, []);
        let rule = &rules.rules[0];
        assert_eq!(
            (rule.init.len(), rule.init[0].timeout.to_string()),
            (1, "2m0s".to_owned())
        );
        let post = &rule.post[0];
        assert_eq!(
            (
                post.name.as_str(),
                post.container.as_str(),
                post.on_error,
                post.wait_for_ready
            ),
            ("db", "pg", OnError::Fail, true)
        );
        assert_eq!(
            (post.exec_timeout.to_string(), post.wait_timeout.to_string()),
            ("10s".to_owned(), "1m0s".to_owned())
        );
    }

    #[test]
    fn retries_and_result_files() {
        let exec = |fields: Value| {
            let mut exec = json!({"command": ["x"]});
            let own = fields.as_object().unwrap().clone();
            exec.as_object_mut().unwrap().extend(own);
            rules(json!([{"postHooks": [{"exec": exec}]}]))
        };
        let good = exec(json!({"retries": 3, "retryBackoff": "5s", "onUnknown": "Retry", "resultFile": "/tmp"}));
        assert_eq!(good.problems, []);
        let hook = &good.rules[0].post[0];
        assert_eq!(
            (hook.retry.limit(), hook.retry.backoff.to_string()),
            (3, "5s".to_owned())
        );
        assert_eq!(hook.result_file.as_deref(), Some("/tmp"));
        for (key, value) in [
            ("retries", json!(21)),
            ("retries", json!("x")),
            ("retryBackoff", json!("5")),
            ("onUnknown", json!("again")),
            ("resultFile", json!("tmp")),
        ] {
            let bad = exec(json!({key: value}));
            assert_eq!(bad.problems.len(), 1, "{key}");
            assert!(bad.problems[0].source.ends_with(key), "{}", bad.problems[0].source);
            assert!(bad.rules[0].post[0].error.is_some(), "{key}");
        }
    }

    /// The example of the design document, as it stands there.
    #[test]
    fn the_form_of_the_design_document() {
        let text = r#"
resources:
  -
    name: my-hook
    includedNamespaces:
    - '*'
    excludedNamespaces:
    - some-namespace
    includedResources:
    - pods
    excludedResources: []
    labelSelector:
      matchLabels:
        app: velero
        component: server
    post:
      -
        exec:
          container: postgres
          command:
            - /bin/bash
            - -c
            - rm /docker-entrypoint-initdb.d/dump.sql
          onError: Fail
          timeout: 10s
          readyTimeout: 60s
    init:
      timeout: 120s
      initContainers:
      - name: restore
        image: postgres:12
        command: ["/bin/bash", "-c", "mv /backup/dump.sql /docker-entrypoint-initdb.d/"]
        volumeMounts:
        - name: backup
          mountPath: /backup
"#;
        let restore = json!({"metadata": {"annotations": {"reveille.dev/hooks": text}}, "spec": {}});
        for velero_owned in [false, true] {
            let rules = Rules::of_restore(&restore, velero_owned);
            assert_eq!(rules.problems, []);
            let rule = &rules.rules[0];
            assert_eq!(rule.post[0].exec_timeout.to_string(), "10s");
            assert_eq!(rule.post[0].wait_timeout.to_string(), "1m0s");
            assert_eq!(rule.init[0].container["volumeMounts"][0]["mountPath"], "/backup");
            assert_eq!(rule.init[0].timeout.to_string(), "2m0s");
        }
    }

    #[test]
    fn moved_exec_hooks_stand_in_for_those_of_the_spec() {
        let moved = json!({"resources": [{"name": "m", "postHooks": [{"exec": {"command": ["x"]}}, {"init": {"initContainers": [{"name": "old", "image": "i"}]}}]}]});
        let restore = json!({
            "metadata": {"annotations": {"reveille.dev/moved-hooks": moved.to_string()}},
            "spec": {"hooks": {"resources": [{"name": "m", "postHooks": [{"init": {"initContainers": [{"name": "new", "image": "i"}]}}]}]}},
        });
        let rules = Rules::of_restore(&restore, false).rules;
        let init: Vec<_> = rules
            .iter()
            .flat_map(|rule| &rule.init)
            .map(InitHook::container_name)
            .collect();
        assert_eq!(
            (rules.iter().map(|rule| rule.post.len()).sum::<usize>(), init),
            (1, vec!["new"])
        );
        assert!(Rules::of_restore(&restore, true).rules.is_empty());
    }

    #[test]
    fn a_problem_of_a_moved_hook_is_said_once() {
        let hooks = |post: Value| json!({"resources": [{"name": "m", "includedNamespaces": ["["], "postHooks": post}]});
        let moved = hooks(json!([{"exec": {"command": ["x"], "execTimeout": "5"}}]));
        let restore = json!({
            "metadata": {"annotations": {"reveille.dev/moved-hooks": moved.to_string()}},
            "spec": {"hooks": hooks(json!([]))},
        });
        let rules = Rules::of_restore(&restore, false);
        assert_eq!(
            (rules.rules.len(), rules.problems.len()),
            (1, 2),
            "{:?}",
            rules.problems
        );
    }

    #[test]
    fn errors_name_the_path_and_leave_the_rest_alone() {
        let rules = rules(json!({"resources": [
            {"name": "a", "labelSelector": {"matchExpressions": [{"key": "x", "operator": "Near"}]}},
            {"name": "b", "postHooks": [{"exec": {"command": [], "execTimeout": "10"}}, {"exec": {"command": ["ok"]}}, {"exec": {"command": ["x"], "waitTimeout": 5}}]},
            {"name": "c", "postHooks": "nonsense"},
            5,
        ]}));
        let sources: Vec<_> = rules
            .problems
            .iter()
            .filter(|p| p.severity == Severity::Error)
            .map(|p| p.source.as_str())
            .collect();
        assert_eq!(
            sources,
            [
                "spec.hooks.resources[0].labelSelector",
                "spec.hooks.resources[1].postHooks[0].exec.execTimeout",
                "spec.hooks.resources[1].postHooks[0].exec.command",
                "spec.hooks.resources[1].postHooks[2].exec.waitTimeout",
                "spec.hooks.resources[2].postHooks",
                "spec.hooks.resources[3]",
            ]
        );
        let usable: Vec<_> = rules.rules[1].post.iter().map(|hook| hook.error.is_none()).collect();
        assert_eq!(usable, [false, true, false]);
    }

    #[test]
    fn what_cannot_be_read_never_widens_a_rule() {
        for (key, value) in [
            ("includedNamespaces", json!("prod")),
            ("includedNamespaces", json!([5])),
            ("includedNamespaces", json!(["["])),
            ("excludedNamespaces", json!(["{"])),
            ("includedResources", json!("pods")),
            ("labelSelector", json!({"app": "db"})),
        ] {
            let mut resource = json!({"name": "r", "postHooks": [{"exec": {"command": ["x"]}}]});
            resource[key] = value.clone();
            let rules = rules(json!({"resources": [resource]}));
            assert!(rules.rules[0].selector.is_err(), "{key}: {value}");
            assert_eq!(rules.problems.len(), 1, "{key}: {value}");
        }
        for text in ["postHooks: []", "just words", "5"] {
            let restore = json!({"metadata": {"annotations": {"reveille.dev/hooks": text}}, "spec": {}});
            assert_eq!(Rules::of_restore(&restore, false).problems.len(), 1, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let restore = json!({"metadata": {"annotations": {"reveille.dev/hooks": text}}, "spec": {}});
            let _ = Rules::of_restore(&restore, false);
        }
    }
}
