//! Annotation keys, commands that leave a trace, and hooks as they are written in a Restore.

use reveille::names::{INIT_PREFIX, POST_PREFIX, VELERO_DOMAIN};
use serde_json::{Value, json};

/// The image of every container in the tests.
pub(crate) const IMAGE: &str = "localhost/busybox:1";
/// Where a pod sees the test's folder.
pub(crate) const TRACES: &str = "/traces";

/// The key of a post hook's annotation.
pub(crate) fn post(key: &str) -> String {
    format!("{POST_PREFIX}{VELERO_DOMAIN}/{key}")
}

/// The key of an init hook's annotation.
pub(crate) fn init(key: &str) -> String {
    format!("{INIT_PREFIX}{VELERO_DOMAIN}/{key}")
}

/// A shell command.
pub(crate) fn sh(script: &str) -> Value {
    json!(["/bin/sh", "-c", script])
}

/// The script that leaves one line in the trace of this name.
pub(crate) fn trace_script(name: &str) -> String {
    format!("echo ran >> {TRACES}/{name}")
}

/// A command that leaves one line in the trace of this name.
pub(crate) fn trace(name: &str) -> Value {
    sh(&trace_script(name))
}

/// An init container that leaves one line in the trace of its own name. `restricted` pods are content with it, too.
pub(crate) fn tracing_container(name: &str) -> Value {
    json!({
        "name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": trace(name),
        "volumeMounts": [{"name": "traces", "mountPath": TRACES}],
    })
}

/// The item of `postHooks` that runs a command.
pub(crate) fn exec(command: &Value) -> Value {
    json!({"exec": {"command": command}})
}

/// The item of `postHooks` that injects containers.
pub(crate) fn inject(containers: &[Value]) -> Value {
    json!({"init": {"initContainers": containers}})
}

/// An item of `spec.hooks.resources` for all pods.
pub(crate) fn rule(name: &str, post_hooks: &[Value]) -> Value {
    json!({"name": name, "postHooks": post_hooks})
}

/// The same for the pods of one `app` label, which every pod of the tests has.
pub(crate) fn rule_for(app: &str, name: &str, post_hooks: &[Value]) -> Value {
    json!({"name": name, "labelSelector": {"matchLabels": {"app": app}}, "postHooks": post_hooks})
}
