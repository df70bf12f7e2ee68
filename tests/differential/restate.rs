//! Says the same to Velero in words that it understands as Reveille does.
//!
//! Each difference is a rewriting of the input: where Reveille takes a hook for an error, the rewritten hook is a marked one
//! that Velero passes through; where Reveille reads what Velero does not, it is written where Velero reads it. What Velero then
//! answers must be what Reveille answers to the original, exactly. So no difference can hide another.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{case::Case, difference::Difference, generate::is_container, oracle::Oracle};

/// The command of a hook that Reveille takes for an error.
pub(crate) const ERROR: &str = "ERROR";
/// The start of the image of an init container that Reveille takes for an error; its name follows.
pub(crate) const ERROR_IMAGE: &str = "ERROR/";
/// The command of an init container that has none.
pub(crate) const NO_COMMAND: &str = "NONE";
/// The name of an init container that has none.
pub(crate) const GENERATED: &str = "<generated>";

/// Those of the generator that are none. Velero takes the last two for complete.
const BAD_PATTERNS: [&str; 5] = ["[", "[]", "[a-cx]pp", "{app", "app\\"];

const POST: [&str; 6] = [
    "command",
    "container",
    "on-error",
    "exec-timeout",
    "wait-timeout",
    "wait-for-ready",
];
const INIT: [&str; 5] = [
    "container-image",
    "container-name",
    "command",
    "timeout",
    "initContainers",
];

/// Which differences count, and which came up.
pub(crate) struct Differences<'a> {
    pub(crate) allowed: &'a BTreeSet<Difference>,
    pub(crate) touched: BTreeSet<Difference>,
}

impl Differences<'_> {
    /// It came up; does it count?
    pub(crate) fn has(&mut self, difference: Difference) -> bool {
        self.touched.insert(difference);
        self.allowed.contains(&difference)
    }
}

/// A case in Velero's words.
pub(crate) struct Restated {
    pub(crate) case: Case,
    /// Its init container has a generated name.
    pub(crate) generated: bool,
    /// The same without the annotations, if they silence init hooks of the spec.
    pub(crate) silenced: Option<Case>,
}

pub(crate) struct Restating<'a, 'b> {
    pub(crate) oracle: &'a mut Oracle,
    pub(crate) differences: &'a mut Differences<'b>,
    errors: usize,
    /// Init hooks are silenced: what they look like counts, not whether they are errors.
    silenced: bool,
}

fn text<'a>(annotations: &'a Map<String, Value>, key: &str) -> &'a str {
    annotations.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn post_key(key: &str) -> String {
    format!("post.hook.restore.velero.io/{key}")
}

fn init_key(key: &str) -> String {
    format!("init.hook.restore.velero.io/{key}")
}

impl<'a, 'b> Restating<'a, 'b> {
    pub(crate) fn new(oracle: &'a mut Oracle, differences: &'a mut Differences<'b>) -> Self {
        Self {
            oracle,
            differences,
            errors: 0,
            silenced: false,
        }
    }

    pub(crate) fn restate(&mut self, case: &Case) -> Restated {
        let mut case = case.clone();
        let mut resources = case.restore["spec"]["hooks"]["resources"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let labels_matter = Value::Array(resources.clone()).to_string().contains("velero.io/");
        let written = resources.clone();
        for (index, rule) in resources.iter_mut().enumerate() {
            self.rule(rule, index);
        }
        let mut generated = false;
        let mut silenced = None;
        if labels_matter && self.differences.has(Difference::LabelsAsCreated) {
            case.pod["metadata"]["labels"] = case.arriving(&case.pod)["metadata"]["labels"].clone();
        }
        if let Some(mut annotations) = case.pod["metadata"]["annotations"].as_object().cloned() {
            self.own_domain(&mut annotations);
            self.lone_surrogates(&mut annotations);
            self.post_annotations(&mut annotations);
            let hooked;
            (hooked, generated) = self.init_annotations(&mut annotations, &mut resources);
            if hooked {
                let mut of_the_spec = written;
                self.silenced = true;
                for (index, rule) in of_the_spec.iter_mut().enumerate() {
                    self.rule(rule, index);
                }
                let mut without = case.clone();
                without.pod["metadata"]["annotations"] = Value::Null;
                without.restore["spec"]["hooks"]["resources"] = Value::Array(of_the_spec);
                silenced = Some(without);
            }
            case.pod["metadata"]["annotations"] = Value::Object(annotations);
        }
        if !resources.is_empty() {
            case.restore["spec"]["hooks"]["resources"] = Value::Array(resources);
        }
        Restated {
            case,
            generated,
            silenced,
        }
    }

    fn own_domain(&mut self, annotations: &mut Map<String, Value>) {
        let keys = POST
            .map(|key| ("post", key))
            .into_iter()
            .chain(INIT.map(|key| ("init", key)));
        for (kind, key) in keys {
            let own = text(annotations, &format!("{kind}.hook.restore.reveille.dev/{key}")).to_owned();
            if !own.is_empty() && self.differences.has(Difference::OwnAnnotationDomain) {
                annotations.insert(format!("{kind}.hook.restore.velero.io/{key}"), json!(own));
            }
        }
    }

    /// Go puts a replacement character in the place of half a character; by the rules of JSON's Unicode there is no such text.
    fn lone_surrogates(&mut self, annotations: &mut Map<String, Value>) {
        for key in [post_key("command"), init_key("command")] {
            let command = text(annotations, &key).to_owned();
            let halved = command.starts_with('[')
                && command.contains("\\ud")
                && self.command(&command).concat().contains('\u{fffd}');
            if halved && self.differences.has(Difference::LoneSurrogateIsNoJson) {
                annotations.insert(key, json!(json!([command]).to_string()));
            }
        }
    }

    fn post_annotations(&mut self, annotations: &mut Map<String, Value>) {
        let of = |key: &str| text(annotations, &post_key(key));
        let command = of("command");
        if command.is_empty() {
            return;
        }
        let mut error = false;
        for key in ["exec-timeout", "wait-timeout"] {
            error |= match Some(of(key))
                .filter(|text| !text.is_empty())
                .map(|text| self.oracle.duration(text))
            {
                Some(None) => self.differences.has(Difference::BadDurationIsAnError),
                Some(Some(..0)) => self.differences.has(Difference::NegativeDurationIsAnError),
                _ => false,
            };
        }
        if !["", "Fail", "Continue"].contains(&of("on-error")) {
            error |= self.differences.has(Difference::OnErrorMisspelt);
        }
        let ready = of("wait-for-ready");
        if !ready.is_empty() && self.oracle.boolean(ready).is_none() {
            error |= self.differences.has(Difference::BadBooleanIsAnError);
        }
        if self.command(command).is_empty() {
            error |= self.differences.has(Difference::EmptyCommandIsAnError);
        }
        if error {
            annotations.insert(post_key("command"), json!(ERROR));
        }
    }

    /// How Velero reads the command of an annotation.
    fn command(&mut self, text: &str) -> Vec<String> {
        let pod = json!({"metadata": {"annotations": {"post.hook.restore.velero.io/command": text}}, "spec": {"containers": [{"name": "c"}]}});
        let answer = self.oracle.hooks(&pod, &pod, &json!({}));
        answer.post.unwrap()["c"][0].command.clone()
    }

    /// Whether there is a hook, and whether its name is a generated one.
    fn init_annotations(&mut self, annotations: &mut Map<String, Value>, resources: &mut Vec<Value>) -> (bool, bool) {
        let of = |key: &str| text(annotations, &init_key(key)).to_owned();
        let (image, name, command, list) = (
            of("container-image"),
            of("container-name"),
            of("command"),
            of("initContainers"),
        );
        let list = Some(list).filter(|list| !list.is_empty());
        let list = list.filter(|_| self.differences.has(Difference::InitContainersAnnotation));
        let hooked = !image.is_empty() || list.is_some();
        let late = hooked && self.is_bad_timeout(&of("timeout")) && self.differences.has(Difference::InitTimeoutIsRead);
        let no_command =
            !image.is_empty() && command.is_empty() && self.differences.has(Difference::InitImageWithoutCommand);
        let generated = !image.is_empty() && name.is_empty();

        let Some(list) = list else {
            if no_command {
                annotations.insert(init_key("command"), json!(NO_COMMAND));
            }
            if late && !image.is_empty() {
                let name = if generated { GENERATED } else { &name };
                annotations.insert(init_key("container-image"), json!(format!("{ERROR_IMAGE}{name}")));
            }
            return (hooked, generated);
        };
        // Velero's annotations have room for one container; its spec has room for all.
        annotations.retain(|key, _| !key.starts_with("init.hook"));
        for rule in &mut *resources {
            for hook in rule["postHooks"].as_array_mut().into_iter().flatten() {
                hook.as_object_mut().map(|hook| hook.remove("init"));
            }
        }
        let mut containers = Vec::new();
        if !image.is_empty() {
            let command = if command.is_empty() {
                Vec::new()
            } else {
                self.command(&command)
            };
            let command = if command.is_empty() {
                vec![NO_COMMAND.to_owned()]
            } else {
                command
            };
            let name = if generated {
                "velero-restore-init-00000000"
            } else {
                &name
            };
            let container = json!({"name": name, "image": image, "command": command});
            let shown = if generated { GENERATED } else { name };
            containers.push(if late { self.error(shown) } else { container });
        }
        if let Ok(Value::Array(items)) = serde_saphyr::from_str(&list) {
            containers.extend(items.iter().map(|item| self.init_container(item, late)));
        }
        resources.insert(
            0,
            json!({"name": "<from-annotation>", "postHooks": [{"init": {"initContainers": containers}}]}),
        );
        (hooked, generated)
    }

    fn is_bad_timeout(&mut self, text: &str) -> bool {
        !text.is_empty() && self.oracle.duration(text).is_none_or(|nanos| nanos < 0)
    }

    fn rule(&mut self, rule: &mut Value, index: usize) {
        if rule["name"] == "" && self.differences.has(Difference::UnnamedRuleGetsAName) {
            rule["name"] = json!(format!("resources[{index}]"));
        }
        let mut never = false;
        let list = |key: &str| rule[key].as_array().cloned().unwrap_or_default();
        let pods = |list: &[Value]| {
            list.iter()
                .any(|entry| ["*", "pods", "pod"].iter().any(|word| entry == word))
        };
        let (included, excluded) = (list("includedResources"), list("excludedResources"));
        if pods(&excluded) || !(included.is_empty() || pods(&included)) {
            never |= self.differences.has(Difference::IncludedResourcesHonoured);
        }
        let namespaces = ["includedNamespaces", "excludedNamespaces"].map(list);
        if namespaces
            .iter()
            .flatten()
            .any(|pattern| BAD_PATTERNS.iter().any(|bad| pattern == bad))
        {
            never |= self.differences.has(Difference::BadPatternMatchesNoPod);
        }
        for expression in rule["labelSelector"]["matchExpressions"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            let values = expression["values"].as_array().is_some_and(|values| !values.is_empty());
            let good = match expression["operator"].as_str().unwrap() {
                "In" | "NotIn" => values,
                "Exists" | "DoesNotExist" => !values,
                _ => false,
            };
            if !good && self.differences.has(Difference::OneBadHookDoesNotStopTheRestore) {
                never = true;
            } else if expression["key"] == "a key of no label"
                && self.differences.has(Difference::LabelSyntaxIsNotChecked)
            {
                expression["key"] = json!("reveille.invalid/none");
            }
        }
        if rule["labelSelector"].get("app").is_some() {
            never |= self.differences.has(Difference::SelectorFieldsAreKnown);
        }
        if never {
            rule["labelSelector"] = Value::Null;
            rule["excludedNamespaces"] = json!(["*"]);
        }
        self.design_document_form(rule);
        for hook in rule["postHooks"].as_array_mut().into_iter().flatten() {
            self.exec(hook);
            self.init(hook);
        }
    }

    /// Its `post` and its sibling `init` become items of `postHooks`.
    fn design_document_form(&mut self, rule: &mut Value) {
        if rule.get("post").is_none() && rule.get("init").is_none()
            || !self.differences.has(Difference::DesignDocumentForm)
        {
            return;
        }
        let fields = rule.as_object_mut().unwrap();
        let (post, init) = (fields.remove("post"), fields.remove("init"));
        let built = fields
            .entry("postHooks")
            .or_insert_with(|| json!([]))
            .as_array_mut()
            .unwrap();
        for mut hook in post
            .into_iter()
            .flat_map(|post| post.as_array().cloned().unwrap_or_default())
        {
            let exec = hook["exec"].as_object_mut().unwrap();
            for (theirs, name) in [("timeout", "execTimeout"), ("readyTimeout", "waitTimeout")] {
                if let Some(value) = exec.remove(theirs) {
                    exec.insert(name.to_owned(), value);
                }
            }
            built.push(hook);
        }
        built.extend(init.map(|init| json!({"init": init})));
    }

    /// True for a hook that Reveille takes for an error because of this duration. An empty one counts as absent.
    fn spec_duration(&mut self, object: &mut Value, key: &str, negative: Difference) -> bool {
        let Some(text) = object[key].as_str().map(str::to_owned) else {
            return false;
        };
        let (error, remove) = match self.oracle.duration(&text) {
            None => {
                let counts = self.differences.has(Difference::BadDurationDoesNotHideTheRestore);
                (counts && !text.is_empty(), counts)
            }
            Some(..0) => {
                let counts = self.differences.has(negative);
                (counts, counts)
            }
            Some(_) => (false, false),
        };
        if remove {
            object.as_object_mut().unwrap().remove(key);
        }
        error
    }

    fn exec(&mut self, hook: &mut Value) {
        if !hook["exec"].is_object() {
            return;
        }
        let exec = &mut hook["exec"];
        let mut error = self.spec_duration(exec, "execTimeout", Difference::NegativeDurationIsAnError);
        error |= self.spec_duration(exec, "waitTimeout", Difference::NegativeDurationIsAnError);
        if error {
            exec["command"] = json!([ERROR]);
        }
    }

    fn init(&mut self, hook: &mut Value) {
        if !hook["init"].is_object() {
            return;
        }
        let init = &mut hook["init"];
        let late = self.spec_duration(init, "timeout", Difference::InitTimeoutIsRead) && !self.silenced;
        for container in init["initContainers"].as_array_mut().into_iter().flatten() {
            *container = self.init_container(container, late);
        }
    }

    fn init_container(&mut self, container: &Value, late: bool) -> Value {
        let name = container["name"].as_str().unwrap_or_default();
        let filled = |key: &str| container[key].as_str().is_some_and(|text| !text.is_empty());
        let readable = is_container(container);
        if container.get("Image").is_some() && self.differences.has(Difference::FieldNamesAreExact) {
            return self.error(name);
        }
        let good = readable && filled("name") && (filled("image") || container.get("Image").is_some());
        if !good && self.differences.has(Difference::OneBadHookDoesNotStopTheRestore) || late {
            return self.error(name);
        }
        let mut container = container.clone();
        if container["command"].is_null() && self.differences.has(Difference::InitCommandIsOptional) {
            container["command"] = json!([NO_COMMAND]);
        }
        container
    }

    fn error(&mut self, name: &str) -> Value {
        self.errors += 1;
        json!({"name": format!("error-{}", self.errors), "image": format!("{ERROR_IMAGE}{name}"), "command": [ERROR]})
    }
}
