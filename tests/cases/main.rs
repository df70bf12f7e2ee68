//! Cases in files as users write them: `tests/cases/NAME/{pod.yaml, restore.yaml, args, expected.json, expected.txt}`.
//! Each goes through `reveille preview` and through the webhook's HTTP handler, and both must agree.
//!
//! `REVEILLE_UPDATE_CASES=1 cargo test --test cases` writes `expected.json`, and `expected.txt` where there is one. A new case
//! is a new folder.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use axum::body::Body;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::BoxFuture;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use reveille::{
    admission::{Mode, patch},
    hooks::restored::{RestoreInfo, wait_uids},
    infra::metrics::Metrics,
    names::{OWNER_ANNOTATION, OWNER_REVEILLE, PLAN_ANNOTATION, VELERO_RESTORE_LABEL},
    plan::Plan,
    webhook::{
        handler::{PODS_PATH, RESTORES_PATH, Settings, Webhook},
        limits::Limits,
        restores::{ListRestores, RestoreCache},
    },
};
use serde_json::{Value, json};
use tower::ServiceExt;

/// The webhook tells so many problems, and then their number.
const WARNINGS: usize = 10;
const WARNING_LENGTH: usize = 250;

struct Case {
    folder: PathBuf,
    arguments: Vec<String>,
}

impl Case {
    fn all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
        let folders = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
        let mut folders: Vec<PathBuf> = folders.filter(|path| path.is_dir()).collect();
        folders.sort();
        assert!(folders.len() >= 25);
        folders
            .into_iter()
            .map(|folder| Self {
                arguments: fs::read_to_string(folder.join("args"))
                    .unwrap_or_default()
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect(),
                folder,
            })
            .collect()
    }

    fn name(&self) -> String {
        self.folder.file_name().unwrap().to_string_lossy().into_owned()
    }

    fn preview(&self, output: &str) -> String {
        let mut arguments = vec!["--pod".to_owned(), "pod.yaml".to_owned()];
        if self.folder.join("restore.yaml").exists() {
            arguments.extend(["--restore".to_owned(), "restore.yaml".to_owned()]);
        }
        arguments.extend(self.arguments.iter().cloned());
        arguments.extend(["-o".to_owned(), output.to_owned()]);
        let result = preview(&self.folder, &arguments);
        let problem = String::from_utf8_lossy(&result.stderr).into_owned();
        assert_eq!(
            (result.status.code(), problem.as_str()),
            (Some(0), ""),
            "{}",
            self.name()
        );
        String::from_utf8(result.stdout).unwrap()
    }

    fn read(&self, file: &str) -> Option<Value> {
        let text = fs::read_to_string(self.folder.join(file)).ok()?;
        Some(serde_saphyr::from_str(&text).unwrap())
    }

    fn mode(&self) -> Mode {
        let given = self
            .arguments
            .iter()
            .skip_while(|argument| *argument != "--mode")
            .nth(1);
        given.map_or(Mode::Takeover, |mode| mode.parse().unwrap())
    }

    /// The Restore as a cluster would have it while it restores this pod. Without a file: one of the label's name, without
    /// hooks.
    fn restore(&self, pod: &Value) -> Option<Value> {
        let mut restore = match self.read("restore.yaml") {
            Some(restore) => restore,
            None => json!({"metadata": {"name": pod["metadata"]["labels"][VELERO_RESTORE_LABEL].as_str()?}}),
        };
        let uid = wait_uids(pod)
            .first()
            .map_or("00000000-0000-0000-0000-000000000000", |uid| uid)
            .to_owned();
        let metadata = restore["metadata"].as_object_mut().unwrap();
        metadata.entry("namespace").or_insert(json!("velero"));
        metadata.entry("uid").or_insert(json!(uid));
        Some(restore)
    }
}

fn preview(folder: &Path, arguments: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reveille"))
        .current_dir(folder)
        .env_clear()
        .arg("preview")
        .args(arguments)
        .output()
        .unwrap()
}

/// Compares with the file, or writes it.
fn expect(path: &Path, text: &str) {
    if std::env::var_os("REVEILLE_UPDATE_CASES").is_some() {
        fs::write(path, text).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == text,
        "{} is not what comes out now (REVEILLE_UPDATE_CASES=1 writes it):\n{text}",
        path.display()
    );
}

#[test]
fn each_case_is_as_expected() {
    for case in Case::all() {
        let json = case.preview("json");
        expect(&case.folder.join("expected.json"), &json);
        assert_eq!(case.preview("json"), json, "{}: a second run", case.name());
        let value: Value = serde_json::from_str(&json).unwrap();
        let yaml: Value = serde_saphyr::from_str(&case.preview("yaml")).unwrap();
        assert_eq!(yaml, value, "{}: YAML and JSON", case.name());
        let text = case.preview("text");
        assert!(text.starts_with("Pod "), "{text}");
        let path = case.folder.join("expected.txt");
        if path.exists() {
            expect(&path, &text);
        }
        is_the_contract(&value, &case.name());
    }
}

/// Its keys and types, and that the patch makes the pod.
fn is_the_contract(value: &Value, case: &str) {
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let all = ["hooks", "injected", "patch", "pod", "problems", "reason", "restored"];
    let mut found = keys(value);
    found.sort();
    assert_eq!(found, all, "{case}");
    for operation in value["patch"].as_array().unwrap() {
        let word = operation["op"].as_str().unwrap();
        assert!(["add", "remove", "replace", "test"].contains(&word), "{case}: {word}");
    }
    for hook in value["hooks"].as_array().unwrap() {
        let mut found = keys(hook);
        found.sort();
        // Only on hooks that ask for them.
        found.retain(|key| key != "retry" && key != "resultFile");
        let all = [
            "command",
            "container",
            "execTimeout",
            "name",
            "onError",
            "source",
            "waitForReady",
            "waitTimeout",
        ];
        assert_eq!(found, all, "{case}");
    }
    for problem in value["problems"].as_array().unwrap() {
        let mut found = keys(problem);
        found.sort();
        assert_eq!(found, ["message", "severity", "source"], "{case}");
    }
}

struct NoVelero;

impl ListRestores for NoVelero {
    fn list(&self, _name: Option<String>) -> BoxFuture<'_, Result<Vec<RestoreInfo>, String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// What the webhook's handler answers over HTTP.
fn post(path: &str, resource: (&str, &str), object: &Value, mode: Mode, restore: Option<&Value>) -> Value {
    let cache = Arc::new(RestoreCache::new(NoVelero));
    cache.replace(restore.map(|restore| RestoreInfo::read(restore).unwrap()));
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let webhook = Webhook::new(settings, Limits::default(), cache, Arc::new(Metrics::webhook()));
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u",
            "resource": {"group": resource.0, "version": "v1", "resource": resource.1},
            "operation": "CREATE",
            "namespace": object["metadata"]["namespace"].as_str().unwrap_or("default"),
            "userInfo": {"username": "system:serviceaccount:velero:velero"},
            "object": object,
        },
    });
    let request = Request::post(path).body(Body::from(review.to_string())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let response = Arc::new(webhook).router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let review: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(review["response"]["allowed"], true);
        review["response"].clone()
    })
}

fn patched(object: &Value, response: &Value) -> Value {
    let Some(patch) = response["patch"].as_str() else {
        return object.clone();
    };
    let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
    patch::apply(object, &patch).unwrap()
}

/// The Restore after its own admission, when it had no status yet.
fn admitted(restore: &Value, mode: Mode) -> Value {
    let mut new = restore.clone();
    let status = new.as_object_mut().unwrap().remove("status");
    let response = post(RESTORES_PATH, ("velero.io", "restores"), &new, mode, None);
    let mut restore = patched(&new, &response);
    restore["status"] = status.unwrap_or_default();
    restore
}

/// The pod with its plan taken out; the server's clock is no part of it.
fn with_plan(mut pod: Value) -> (Value, Option<Plan>) {
    let annotations = pod["metadata"]["annotations"].as_object_mut();
    let text = annotations.and_then(|annotations| annotations.remove(PLAN_ANNOTATION));
    let plan = text.map(|text| Plan {
        planned_at: jiff::Timestamp::UNIX_EPOCH,
        ..Plan::parse(text.as_str().unwrap()).unwrap()
    });
    (pod, plan)
}

#[test]
fn the_server_agrees_with_the_preview() {
    for case in Case::all() {
        let name = case.name();
        let preview: Value = serde_json::from_str(&case.preview("json")).unwrap();
        let pod = case.read("pod.yaml").unwrap();
        let restore = case.restore(&pod);
        // Marked as the webhook marks it, but with its hooks as they are written, as in the preview.
        let known = restore.clone().map(|mut restore| {
            if admitted(&restore, case.mode())["metadata"]["annotations"][OWNER_ANNOTATION] == OWNER_REVEILLE {
                restore["metadata"]["annotations"][OWNER_ANNOTATION] = json!(OWNER_REVEILLE);
            }
            restore
        });
        let response = post(PODS_PATH, ("", "pods"), &pod, case.mode(), known.as_ref());

        let not_restored = response["auditAnnotations"]["decision"] == "not_restored";
        // Without a Restore the preview believes the label.
        assert_eq!(preview["restored"], json!(!not_restored), "{name}");
        assert_eq!(
            with_plan(patched(&pod, &response)),
            with_plan(preview["pod"].clone()),
            "{name}: the pod after admission"
        );
        let problems = preview["problems"].as_array().unwrap();
        let told: Vec<String> = problems
            .iter()
            .map(|problem| {
                format!(
                    "{}: {}",
                    problem["source"].as_str().unwrap(),
                    problem["message"].as_str().unwrap()
                )
            })
            .collect();
        let cut = |text: &str| text.chars().take(WARNING_LENGTH).collect::<String>();
        let warnings = response["warnings"].as_array().cloned().unwrap_or_default();
        assert_eq!(
            warnings.len().min(WARNINGS),
            told.len().min(WARNINGS),
            "{name}: {warnings:?}"
        );
        for (warning, told) in warnings.iter().zip(&told).take(WARNINGS) {
            assert_eq!(cut(warning.as_str().unwrap()), cut(told), "{name}");
        }
        the_moved_hooks_are_the_same(&case, &pod, restore, &preview);
    }
}

/// On a cluster the Restore goes through the webhook before its pods do, and its exec hooks are moved.
fn the_moved_hooks_are_the_same(case: &Case, pod: &Value, restore: Option<Value>, preview: &Value) {
    let Some(restore) = restore else { return };
    let known = admitted(&restore, case.mode());
    let response = post(PODS_PATH, ("", "pods"), pod, case.mode(), Some(&known));
    let hooks = |pod: Value| {
        let (pod, plan) = with_plan(pod);
        let (mut post, mut init) = plan.map(|plan| (plan.post, plan.init)).unwrap_or_default();
        // Errors name paths, and items move up in their list where others have been moved off.
        let errors = post.iter_mut().map(|hook| &mut hook.error);
        let errors = errors.chain(init.iter_mut().map(|hook| &mut hook.error));
        errors.flatten().for_each(String::clear);
        (pod, post, init)
    };
    assert_eq!(
        hooks(patched(pod, &response)),
        hooks(preview["pod"].clone()),
        "{}: with the Restore through the webhook",
        case.name()
    );
}

#[test]
fn what_cannot_be_read_is_exit_code_2_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let pod = "{kind: Pod, metadata: {name: p}, spec: {containers: [{name: c}]}}";
    write("pod.yaml", pod);
    write("empty.yaml", "");
    write("list.yaml", "[1]");
    write("broken.yaml", "a: [");
    write("broken.json", r#"{"kind": "Pod",}}"#);
    write("two.yaml", &format!("{pod}\n---\n{pod}\n"));
    write("restore.yaml", "{kind: Restore, metadata: {name: r}}");
    write("nameless.yaml", "{kind: Restore, spec: {}}");
    fs::write(folder.path().join("binary.yaml"), b"\xff\xfe\x00").unwrap();
    for (arguments, word) in [
        ("--pod gone.yaml", "gone.yaml"),
        ("--pod ./no/gone.yaml", "gone.yaml"),
        ("--pod empty.yaml", "empty.yaml"),
        ("--pod list.yaml", "no Pod"),
        ("--pod broken.yaml", "broken.yaml"),
        ("--pod broken.json", "broken.json"),
        ("--pod two.yaml", "two.yaml"),
        ("--pod binary.yaml", "binary.yaml"),
        ("--pod restore.yaml", "a Restore, not a Pod"),
        ("--pod pod.yaml --restore pod.yaml", "a Pod, not a Restore"),
        ("--pod pod.yaml --restore gone.yaml", "gone.yaml"),
        ("--pod pod.yaml --restore nameless.yaml", "metadata.name"),
        ("--pod pod.yaml --at noon", "noon"),
        ("--pod pod.yaml --mode off", "off"),
        ("--pod pod.yaml -o xml", "xml"),
        ("--restore restore.yaml", "--pod"),
    ] {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let output = preview(folder.path(), &arguments);
        let reason = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {reason}");
        assert!(
            reason.contains(word) && output.stdout.is_empty(),
            "{arguments:?}: {reason}"
        );
    }
}

#[test]
fn a_plan_that_does_not_fit_leaves_the_pod_alone() {
    let folder = tempfile::tempdir().unwrap();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": "shop",
            "labels": {VELERO_RESTORE_LABEL: "nightly"},
            // It stands in the plan twice: as the hook's command, and as the annotation to put back.
            "annotations": {"post.hook.restore.velero.io/command": "x".repeat(140 * 1024)},
        },
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    fs::write(folder.path().join("pod.json"), pod.to_string()).unwrap();
    let arguments = ["--pod", "pod.json", "-o", "json"].map(str::to_owned);
    let output = preview(folder.path(), &arguments);
    let preview: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&preview["patch"], &preview["hooks"], &preview["pod"]),
        (&json!([]), &json!([]), &pod)
    );
    let problem = preview["problems"][0]["message"].as_str().unwrap();
    assert!(problem.contains("bytes; Kubernetes allows 262144"), "{problem}");
}

#[test]
fn a_pod_from_standard_input() {
    use assert_cmd::prelude::CommandCargoExt;
    let mut command = Command::cargo_bin("reveille").unwrap();
    command.args(["preview", "--pod", "-"]);
    assert_cmd::Command::from_std(command)
        .write_stdin("{kind: Pod, metadata: {name: p}, spec: {}}")
        .assert()
        .success()
        .stdout("Pod p is not being restored: it has no label velero.io/restore-name.\n");
}
