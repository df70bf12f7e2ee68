//! Hooks of an export: around what Velero's plugins move while a Backup waits for their operations.

use std::fs;

use reveille::{
    actions::action::ActionKind,
    api::action::{ActionPhase, HookName, StepState},
};
use serde_json::json;

use crate::harness::*;

/// Velero with the plugin of `tests/export`, as long as it lives.
struct Plugin;

impl Plugin {
    const IMAGE: &str = "localhost/export-plugin:1";

    fn install() -> Self {
        let folder = state_folder().join("e2e/export-plugin");
        let (root, archive) = (folder.join("root"), folder.join("plugin.tar"));
        fs::create_dir_all(root.join("plugins")).unwrap();
        let (root, archive) = (root.to_string_lossy(), archive.to_string_lossy());
        cluster_script(&["rootfs", "busybox", &root]);
        let plugin = must_run("tests/export/build-plugin", &[]);
        fs::copy(plugin.trim(), format!("{root}/plugins/export-plugin")).unwrap();
        let entrypoint = r#"["/bin/sh", "-c", "cp /plugins/export-plugin /target/"]"#;
        cluster_script(&["image", &archive, Self::IMAGE, &root, "--entrypoint", entrypoint]);
        cluster_script(&["load", &cluster_name(), &archive]);
        fs::remove_dir_all(&folder).unwrap();
        let plugin = Self;
        must_run("velero", &["plugin", "add", Self::IMAGE, "--confirm", "-n", VELERO]);
        kubectl(&["-n", VELERO, "rollout", "status", "deployment/velero", "--timeout=120s"]);
        plugin
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let removed = run("velero", &["plugin", "remove", Self::IMAGE, "-n", VELERO]);
        let arguments = ["-n", VELERO, "rollout", "status", "deployment/velero", "--timeout=120s"];
        let back = run("kubectl", &arguments);
        // A second panic would hide the first one.
        assert!(
            std::thread::panicking() || (removed.status.success() && back.status.success()),
            "the plugin is still there: {removed:?} {back:?}"
        );
    }
}

#[tokio::test]
async fn export_hooks_follow_what_veleros_plugins_move() {
    // Velero is not the same meanwhile, and starts twice; Reveille is as always.
    let t = Scenario::in_quiet("act-export").await;
    let _plugin = Plugin::install();
    let controller = Controller::start(&t, &[]).await;
    let task = |name: &str| phases(&[t.task("p", &trace_script(name))]);
    let names = ["good", "moved", "not-moved", "before"];
    let actions: serde_json::Map<_, _> = names.iter().map(|name| ((*name).to_owned(), task(name))).collect();
    controller.blueprint("b", json!(actions)).await;
    let spec = json!({
        "backup": {"includedNamespaces": [t.namespace], "snapshotVolumes": false},
        "hooks": {"onSuccess": hook("good")},
        "exportHooks": {"preHook": hook("before"), "onSuccess": hook("moved"), "onFailure": hook("not-moved")},
    });
    let export = async |label: &str| {
        if !label.is_empty() {
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "data", "labels": {"export": label}}});
            kubectl(&[
                "-n",
                &t.namespace,
                "apply",
                "-f",
                &t.write("map.json", &map.to_string()),
            ]);
        }
        controller.action(ActionKind::Backup, spec.clone()).await.finish().await
    };
    let counts = || (t.ran("before"), t.ran("good"), t.ran("moved"), t.ran("not-moved"));

    // Nothing to move: the export is refused by name.
    let nothing = export("").await;
    assert_eq!(nothing.phase, ActionPhase::Failed);
    assert!(
        nothing.message.contains("exportHooks are refused: nothing was moved"),
        "{}",
        nothing.message
    );
    assert_eq!(counts(), (1, 1, 0, 1));

    let moved = export("works").await;
    assert_eq!(moved.phase, ActionPhase::Succeeded, "{}", moved.message);
    assert_eq!(state(&moved, HookName::ExportOnSuccess), StepState::Succeeded);
    assert_eq!(counts(), (2, 2, 1, 1));

    let failed = export("fails").await;
    assert_eq!(failed.phase, ActionPhase::Failed);
    let condition = failed
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Export")
        .unwrap();
    assert_eq!(condition.reason, "OperationsFailed", "{}", condition.message);
    assert_eq!((t.ran("moved"), t.ran("not-moved")), (1, 2));
}
