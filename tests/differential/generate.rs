//! Pods and Restores by a seeded generator: what users write, what they get wrong, and what an earlier restore leaves behind.
//!
//! A Restore is one that the API server would let through Velero's CRD, apart from the fields that it would prune.

use fastrand::Rng;
use k8s_openapi::api::core::v1::Container;
use serde_json::{Map, Value, json};

use crate::case::{Case, Wait};

const NAMESPACES: [&str; 6] = ["app", "app-copy", "prod-db", "stage-db", "team-a", "x"];
const PATTERNS: [&str; 27] = [
    "*",
    "**",
    "app",
    "app*",
    "*-db",
    "team-?",
    "[a-s]*",
    "[!a]*",
    "{prod,stage}-db",
    "{app,}",
    "?",
    "",
    "other",
    "[",
    "{app",
    "app}",
    "a\\pp",
    "\\*",
    "[a-c]pp",
    "[abc]pp",
    "[a-cx]pp",
    "[^a]pp",
    "*-*",
    "{a*,x}",
    "te{am,}-[ab]",
    "[]",
    "app\\",
];
const COMMANDS: [&str; 29] = [
    "/bin/true",
    "echo a b",
    r#"["a"]"#,
    r#"["/bin/sh","-c","echo $HOME && x"]"#,
    r#"["a",null]"#,
    "[null]",
    "[]",
    "[ ]",
    "[1,2]",
    "[true]",
    "[ -f /x ]",
    r#" ["a"]"#,
    "[\"a\"] \n",
    r#"["a"]x"#,
    r#"["a",]"#,
    r#"[["a"]]"#,
    r#"["a" "b"]"#,
    r#"{"a":1}"#,
    "null",
    "\n",
    "[\"tab\there\"]",
    r#"["é","\u00e9","\ud83d\ude00"]"#,
    r#"["\ud800"]"#,
    r#"["a\ud800\u0041","\udc00"]"#,
    r#"["a\/b","\q"]"#,
    r#"["a\/b"]"#,
    "[\"a\u{7f}\"]",
    "[",
    "",
];
const DURATIONS: [&str; 26] = [
    "30s",
    "5m",
    "1h30m",
    "0",
    "0s",
    "-0s",
    "1.5s",
    ".5s",
    "5.s",
    "+5s",
    "-5s",
    "-1h",
    "300",
    "1d",
    "5 minutes",
    "",
    "1µs",
    "1μs",
    "2562047h",
    "9999999h",
    "1e3s",
    "s",
    " 5s",
    "1h-5m",
    "0.3333333333333333333h",
    "1ns",
];
const BOOLEANS: [&str; 18] = [
    "1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False", "", "yes", "tRUE", "2", " true",
    "no",
];
const MODES: [&str; 8] = ["Fail", "Continue", "Fail", "Continue", "", "fail", "Ignore", " Fail"];
const CONTAINERS: [&str; 6] = ["main", "side", "mesh", "setup", "gone", ""];
const INIT_NAMES: [&str; 6] = [
    "prepare",
    "check",
    "setup",
    "main",
    "restore",
    "velero-restore-init-0000abcd",
];

/// Of the right types, if not complete.
pub(crate) fn is_container(value: &Value) -> bool {
    serde_json::from_value::<Container>(value.clone()).is_ok()
}

/// Kind, key, in how many of a hundred hooks, and what for a value.
type Key = (&'static str, &'static str, u32, fn(&mut Generator) -> String);

pub(crate) struct Generator(Rng);

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    /// True in so many of a hundred cases.
    fn in_percent(&mut self, percent: u32) -> bool {
        self.0.u32(0..100) < percent
    }

    fn one<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.0.usize(..list.len())]
    }

    fn some(&mut self, list: &[&str], most: usize) -> Vec<String> {
        (0..self.0.usize(..=most)).map(|_| self.one(list).to_owned()).collect()
    }

    pub(crate) fn glob(&mut self) -> (String, String) {
        let parts = [
            "*", "?", "a", "b", "-", "[", "]", "{", "}", ",", "!", "^", "\\", "[a-c]", "[!a]", "{a,b}", "ab", "é",
        ];
        let pattern = if self.in_percent(10) {
            self.one(&PATTERNS).to_owned()
        } else {
            (0..self.0.usize(1..7)).map(|_| self.one(&parts)).collect()
        };
        let letters = ["a", "b", "c", "-", "ab", "x"];
        (pattern, (0..self.0.usize(1..5)).map(|_| self.one(&letters)).collect())
    }

    pub(crate) fn duration(&mut self) -> String {
        if self.in_percent(30) {
            return self.one(&DURATIONS).to_owned();
        }
        let parts = [
            "1",
            "0",
            "25",
            ".",
            "s",
            "m",
            "h",
            "ms",
            "µs",
            "ns",
            "-",
            "+",
            "1s",
            "9h",
            "99999999999",
            " ",
            "d",
            "é",
        ];
        (0..self.0.usize(1..6)).map(|_| self.one(&parts)).collect()
    }

    pub(crate) fn boolean(&mut self) -> String {
        self.one(&BOOLEANS).to_owned()
    }

    fn command(&mut self) -> String {
        let text = self.one(&COMMANDS).to_owned();
        if self.in_percent(85) {
            return text;
        }
        // A slip of the pen.
        let mut letters: Vec<char> = text.chars().collect();
        let at = self.0.usize(..=letters.len());
        if at < letters.len() && self.0.bool() {
            letters.remove(at);
        } else {
            letters.insert(
                at,
                self.0.choice(['"', '[', ']', ',', '\\', ' ', 'x', '{', '1']).unwrap(),
            );
        }
        letters.into_iter().collect()
    }

    pub(crate) fn case(&mut self) -> Case {
        let namespace = self.one(&NAMESPACES);
        let wait = match self.0.u32(0..10) {
            0..5 => Wait::None,
            5..8 => Wait::First,
            8 => Wait::BehindAnother,
            _ => Wait::Legacy,
        };
        Case {
            pod: self.pod(namespace),
            restore: self.restore(namespace),
            wait,
        }
    }

    fn labels(&mut self) -> Option<Value> {
        let mut labels = Map::new();
        if self.in_percent(80) {
            labels.insert("app".to_owned(), json!(self.one(&["db", "web"])));
        }
        if self.in_percent(30) {
            labels.insert("tier".to_owned(), json!(self.one(&["x", "y", ""])));
        }
        if self.in_percent(10) {
            labels.insert("velero.io/restore-name".to_owned(), json!("an-earlier-one"));
        }
        (!labels.is_empty() || self.0.bool()).then_some(Value::Object(labels))
    }

    fn annotations(&mut self) -> Option<Value> {
        let mut annotations = Map::new();
        let domain = |this: &mut Self| {
            if this.in_percent(3) {
                "reveille.dev"
            } else {
                "velero.io"
            }
        };
        let meant = [("post.hook", self.in_percent(40)), ("init.hook", self.in_percent(30))];
        // How many of a hundred hooks have the key.
        let keys: [Key; 11] = [
            ("post.hook", "command", 95, Self::command),
            ("post.hook", "container", 30, |this| this.one(&CONTAINERS).to_owned()),
            ("post.hook", "on-error", 30, |this| this.one(&MODES).to_owned()),
            ("post.hook", "exec-timeout", 25, Self::mostly_good_duration),
            ("post.hook", "wait-timeout", 25, Self::mostly_good_duration),
            ("post.hook", "wait-for-ready", 20, |this| this.one(&BOOLEANS).to_owned()),
            ("init.hook", "container-image", 85, |this| {
                this.one(&["busybox", "postgres:15", "busybox", ""]).to_owned()
            }),
            ("init.hook", "container-name", 50, |this| {
                this.one(&INIT_NAMES).to_owned()
            }),
            ("init.hook", "command", 80, Self::command),
            ("init.hook", "timeout", 10, Self::mostly_good_duration),
            ("init.hook", "initContainers", 10, Self::container_list),
        ];
        for (kind, key, percent, value) in keys {
            let percent = if meant.contains(&(kind, true)) { percent } else { 2 };
            for _ in 0..=u32::from(self.in_percent(3)) {
                if self.in_percent(percent) {
                    let key = format!("{kind}.restore.{}/{key}", domain(self));
                    annotations.insert(key, json!(value(self)));
                }
            }
        }
        if self.in_percent(5) {
            annotations.insert("post.hook.restore.velero.io/timeout".to_owned(), json!("10s"));
        }
        if self.in_percent(20) {
            annotations.insert("example.com/other".to_owned(), json!("x"));
        }
        (!annotations.is_empty() || self.0.bool()).then_some(Value::Object(annotations))
    }

    fn mostly_good_duration(&mut self) -> String {
        if self.in_percent(70) {
            self.one(&DURATIONS[..9]).to_owned()
        } else {
            self.one(&DURATIONS).to_owned()
        }
    }

    fn container_list(&mut self) -> String {
        if self.in_percent(10) {
            return self
                .one(&["nonsense", "{}", "[", "5", "- name: a\n  image: b", "[]"])
                .to_owned();
        }
        let list: Vec<Value> = (0..self.0.usize(1..3)).map(|_| self.init_container()).collect();
        Value::Array(list).to_string()
    }

    fn pod(&mut self, namespace: &str) -> Value {
        let mut metadata = json!({"name": "db-0", "namespace": namespace});
        for (field, value) in [("labels", self.labels()), ("annotations", self.annotations())] {
            if let Some(value) = value {
                metadata[field] = value;
            }
        }
        let mut main = json!({"name": "main", "image": "postgres:15"});
        if self.in_percent(30) {
            main["securityContext"] = json!({"runAsUser": 1000});
        }
        if self.in_percent(30) {
            main["resources"] = json!({"limits": {"memory": "128Mi"}});
        }
        if self.in_percent(20) {
            main["imagePullPolicy"] = json!("IfNotPresent");
        }
        let mut containers = vec![main];
        if self.in_percent(50) {
            containers.push(json!({"name": "side", "image": "busybox"}));
        }
        if self.in_percent(10) {
            containers.reverse();
        }
        let mut init = Vec::new();
        if self.in_percent(10) {
            init.push(json!({"name": self.one(&["restore-wait", "restic-wait"]), "image": "velero", "args": ["old"]}));
        }
        if self.in_percent(30) {
            init.push(json!({"name": "setup", "image": "busybox"}));
        }
        if self.in_percent(25) {
            init.push(json!({"name": "mesh", "image": "proxy", "restartPolicy": "Always"}));
        }
        if self.in_percent(20) {
            // As an earlier restore, or its user, left it.
            init.push(self.init_container());
        }
        if self.in_percent(10) {
            self.0.shuffle(&mut init);
        }
        let mut spec = json!({"containers": containers});
        if !init.is_empty() {
            let mut names: Vec<String> = Vec::new();
            init.retain(|container| {
                let name = container["name"].as_str().unwrap_or_default().to_owned();
                // The API server had let it in.
                let good = !["", "main"].contains(&name.as_str())
                    && !names.contains(&name)
                    && container["image"].is_string()
                    && is_container(container);
                names.push(name);
                good
            });
            spec["initContainers"] = Value::Array(init);
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    }

    /// One for a hook; now and then one that can't be.
    fn init_container(&mut self) -> Value {
        let mut container = json!({"name": self.one(&INIT_NAMES), "image": self.one(&["busybox", "postgres:15"]), "command": ["prepare"]});
        if self.in_percent(30) {
            container["command"] = json!(["sh", "-c", self.one(&["a", "b"])]);
        }
        if self.in_percent(20) {
            container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        }
        if self.in_percent(15) {
            container["imagePullPolicy"] = json!("Always");
        }
        if self.in_percent(10) {
            container["resources"] = json!({"limits": {"cpu": "100m"}});
        }
        let fields = container.as_object_mut().unwrap();
        match self.0.u32(0..150) {
            0..8 => drop(fields.remove("command")),
            8 => drop(fields.remove("name")),
            9 => drop(fields.remove("image")),
            10 => drop(fields.insert("command".to_owned(), json!("text"))),
            11 => drop(fields.insert("env".to_owned(), json!({"A": "b"}))),
            12 => drop(fields.insert("name".to_owned(), json!(5))),
            13..16 => drop(fields.insert("futureField".to_owned(), json!({"a": 1}))),
            16 => {
                let image = fields.remove("image").unwrap();
                fields.insert("Image".to_owned(), image);
            }
            17..20 => drop(fields.insert("restartPolicy".to_owned(), json!("Always"))),
            _ => {}
        }
        container
    }

    fn restore(&mut self, namespace: &str) -> Value {
        let name = if self.in_percent(5) {
            "r".repeat(70)
        } else {
            "r".to_owned()
        };
        let mut spec = json!({"backupName": "b"});
        if self.in_percent(30) {
            spec["namespaceMapping"] = json!({namespace: self.one(&NAMESPACES)});
        }
        if self.in_percent(90) {
            let resources: Vec<Value> = (0..self.0.usize(..4)).map(|_| self.rule()).collect();
            spec["hooks"] = json!({"resources": resources});
        }
        json!({"apiVersion": "velero.io/v1", "kind": "Restore", "metadata": {"name": name, "namespace": "velero"}, "spec": spec})
    }

    fn rule(&mut self) -> Value {
        let mut rule = json!({"name": self.one(&["db", "web", "same", "same", "db", "web", "db", ""])});
        if self.in_percent(40) {
            rule["includedNamespaces"] = json!(self.some(&PATTERNS, 3));
        }
        if self.in_percent(15) {
            rule["excludedNamespaces"] = json!(self.some(&PATTERNS, 2));
        }
        if self.in_percent(15) {
            rule["includedResources"] = json!(self.some(
                &["pods", "pods", "*", "pod", "deployments", "persistentvolumeclaims"],
                2
            ));
        }
        if self.in_percent(5) {
            rule["excludedResources"] = json!(self.some(&["pods", "deployments"], 1));
        }
        if self.in_percent(5) {
            rule["includedNamespaces"] = Value::Null;
        }
        if self.in_percent(40) {
            rule["labelSelector"] = self.selector();
        }
        if self.in_percent(92) {
            rule["postHooks"] = (0..self.0.usize(..4)).map(|_| self.hook()).collect();
        }
        // The design document's form.
        if self.in_percent(4) {
            rule["post"] = json!([{"exec": {"command": ["designed"], "timeout": self.mostly_good_duration(), "readyTimeout": "60s"}}]);
        }
        if self.in_percent(4) {
            rule["init"] = json!({"timeout": self.mostly_good_duration(), "initContainers": [self.init_container()]});
        }
        rule
    }

    fn selector(&mut self) -> Value {
        match self.0.u32(0..12) {
            0 if self.in_percent(30) => json!({"app": "db"}),
            0 => Value::Null,
            1 => json!({}),
            2..6 => json!({"matchLabels": {"app": self.one(&["db", "db", "web"])}}),
            6 => json!({"matchLabels": {"app": "db", "tier": self.one(&["x", ""])}, "matchExpressions": null}),
            7 => json!({"matchLabels": {"velero.io/restore-name": self.one(&["r", "an-earlier-one"])}}),
            _ => {
                let operator = self.one(&[
                    "In",
                    "NotIn",
                    "Exists",
                    "DoesNotExist",
                    "In",
                    "NotIn",
                    "Exists",
                    "DoesNotExist",
                    "Near",
                ]);
                let key = match self.0.u32(0..40) {
                    0 => "a key of no label",
                    1..6 => "velero.io/restore-name",
                    6..20 => "tier",
                    _ => "app",
                };
                let mut expression = json!({"key": key, "operator": operator});
                let wanted = matches!(operator, "In" | "NotIn" | "Near");
                if wanted != self.in_percent(3) {
                    expression["values"] = json!([self.one(&["db", "x"]), self.one(&["web", "y", ""])]);
                }
                json!({"matchExpressions": [expression]})
            }
        }
    }

    fn hook(&mut self) -> Value {
        let mut hook = json!({});
        let kind = self.0.u32(0..100);
        if !(60..95).contains(&kind) {
            hook["exec"] = self.exec();
        }
        if (60..95).contains(&kind) || kind >= 97 {
            let mut init =
                json!({"initContainers": (0..self.0.usize(..3)).map(|_| self.init_container()).collect::<Vec<_>>()});
            if self.in_percent(10) {
                init["timeout"] = json!(self.spec_duration());
            }
            hook["init"] = init;
        }
        hook
    }

    /// A bad one makes the whole Restore unreadable for Velero, which hides all else: rare.
    fn spec_duration(&mut self) -> String {
        if self.in_percent(93) {
            self.one(&["30s", "5m", "1h30m", "0", "0s", "1.5s", "-5s"]).to_owned()
        } else {
            self.one(&DURATIONS).to_owned()
        }
    }

    fn exec(&mut self) -> Value {
        let mut exec = json!({"command": ["run", self.one(&["a", "b", "", "c d"])]});
        if self.in_percent(50) {
            exec["container"] = json!(self.one(&CONTAINERS));
        }
        if self.in_percent(40) {
            exec["onError"] = json!(self.one(&["Fail", "Continue"]));
        }
        for key in ["execTimeout", "waitTimeout"] {
            if self.in_percent(25) {
                exec[key] = json!(self.spec_duration());
            }
        }
        if self.in_percent(25) {
            exec["waitForReady"] = [json!(true), json!(false), Value::Null][self.0.usize(..3)].clone();
        }
        exec
    }
}
