//! Reveille on the cluster: installed once, shared by most tests, and for some alone to themselves.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, PostParams},
};
use reveille::names::{MODE_ANNOTATION, OWNER_ANNOTATION};
use serde_json::json;
use tokio::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{
    REVEILLE, RIGHTS_BROKEN, VELERO, cluster_name, cluster_script, eventually, kubectl, must_run, run, velero_resource,
};

static INSTALLATION: RwLock<()> = RwLock::const_new(());
/// Whether the ordinary installation is on the cluster.
static INSTALLED: Mutex<bool> = Mutex::const_new(false);

/// As long as it is held the installation is the ordinary one.
#[derive(Debug)]
pub(crate) struct Shared {
    _guard: RwLockReadGuard<'static, ()>,
}

impl Shared {
    pub(crate) async fn take(client: &Client) -> Self {
        let guard = INSTALLATION.read().await;
        bring_up(client).await;
        Self { _guard: guard }
    }
}

/// As long as it is held no other test runs.
#[derive(Debug)]
pub(crate) struct Quiet {
    _guard: RwLockWriteGuard<'static, ()>,
}

impl Quiet {
    pub(crate) async fn take(client: &Client) -> Self {
        let guard = INSTALLATION.write().await;
        bring_up(client).await;
        Self { _guard: guard }
    }
}

/// As long as it is held no other test runs, and the installation may be changed: the next test brings it up anew.
#[derive(Debug)]
pub(crate) struct Alone {
    _quiet: Quiet,
}

impl Alone {
    pub(crate) async fn take(client: &Client) -> Self {
        Self {
            _quiet: Quiet::take(client).await,
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Nobody else holds it: that would take the lock of the installation.
        *INSTALLED.try_lock().expect("no other test runs") = false;
    }
}

/// Brings the ordinary installation up, if it is not.
async fn bring_up(client: &Client) {
    let mut installed = INSTALLED.lock().await;
    if *installed {
        return;
    }
    if let Some(archive) = env::var_os("REVEILLE_IMAGE_TAR") {
        cluster_script(&["load", &cluster_name(), &archive.to_string_lossy()]);
    }
    let status = run("helm", &["status", "reveille", "--namespace", REVEILLE]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    if !status.is_empty() && !status.contains("STATUS: deployed") {
        // A failed test has left it half done.
        run(
            "helm",
            &["uninstall", "reveille", "--namespace", REVEILLE, "--no-hooks", "--wait"],
        );
    }
    install(&[]);
    scale_reveille(2);
    scale_velero(1);
    webhook_answers(client).await;
    *installed = true;
}

/// Installs the chart, or brings it to these values, and waits until it is up.
pub(crate) fn install(values: &[&str]) {
    install_chart("charts/reveille", values);
}

/// The same with another chart.
pub(crate) fn install_chart(chart: &str, values: &[&str]) {
    let image = format!("podAnnotations.e2e-image={}", image_stamp());
    let mut arguments = vec!["upgrade", "--install", "reveille", chart, "--namespace", REVEILLE];
    arguments.extend([
        "--create-namespace",
        // Otherwise an upgrade without values keeps those of before.
        "--reset-values",
        "--wait",
        "--timeout",
        "120s",
        "--set-string",
        &image,
    ]);
    for value in values {
        let is_number = value.rsplit('=').next().is_some_and(|text| text.parse::<u32>().is_ok());
        arguments.extend([if is_number { "--set" } else { "--set-string" }, value]);
    }
    must_run("helm", &arguments);
}

/// Changes with the image, so that an upgrade starts new pods although the tag is the same.
fn image_stamp() -> String {
    let archive = env::var("REVEILLE_IMAGE_TAR").unwrap_or_default();
    let Ok(metadata) = fs::metadata(Path::new(&archive)) else {
        return "none".to_owned();
    };
    let modified = metadata.modified().expect("a file has a time");
    let seconds = modified
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    format!("{}-{seconds}", metadata.len())
}

/// As long as it is held Reveille's calls may be refused.
#[derive(Debug)]
pub(crate) struct RightsBroken;

impl RightsBroken {
    /// `why`: for whoever finds it on the cluster.
    pub(crate) fn announce(why: &str) -> Self {
        let why = format!("--from-literal=why={why}");
        kubectl(&["-n", REVEILLE, "create", "configmap", RIGHTS_BROKEN, &why]);
        Self
    }
}

impl Drop for RightsBroken {
    fn drop(&mut self) {
        run("kubectl", &["-n", REVEILLE, "delete", "configmap", RIGHTS_BROKEN]);
    }
}

/// Loads the version before this one into the cluster, and gives its chart; without it (a clone without history) this version's own.
pub(crate) fn previous_chart() -> String {
    let folder = PathBuf::from(env::var_os("REVEILLE_PREVIOUS").unwrap_or_default());
    let archive = folder.join("reveille.tar");
    if !archive.exists() {
        return "charts/reveille".to_owned();
    }
    cluster_script(&["load", &cluster_name(), &archive.to_string_lossy()]);
    folder.join("source/charts/reveille").to_string_lossy().into_owned()
}

/// The names of Reveille's pods.
pub(crate) fn reveille_pods() -> Vec<String> {
    let names = kubectl(&[
        "-n",
        REVEILLE,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=reveille",
        "-o",
        "name",
    ]);
    names.split_whitespace().map(str::to_owned).collect()
}

/// Takes the chart off the cluster.
pub(crate) fn uninstall() {
    must_run("helm", &["uninstall", "reveille", "--namespace", REVEILLE, "--wait"]);
}

/// Stops or starts Reveille, all of it.
pub(crate) fn scale_reveille(replicas: u32) {
    scale(REVEILLE, "deployment/reveille", replicas);
}

/// Stops or starts Velero's server.
pub(crate) fn scale_velero(replicas: u32) {
    scale(VELERO, "deployment/velero", replicas);
}

fn scale(namespace: &str, what: &str, replicas: u32) {
    let name = what.rsplit('/').next().unwrap();
    kubectl(&["-n", namespace, "scale", what, &format!("--replicas={replicas}")]);
    if replicas > 0 {
        kubectl(&["-n", namespace, "rollout", "status", what, "--timeout=120s"]);
    } else {
        // Velero's pods are labelled `deploy`, Reveille's in the usual way.
        for label in [format!("deploy={name}"), format!("app.kubernetes.io/name={name}")] {
            kubectl(&[
                "-n",
                namespace,
                "wait",
                "pod",
                "-l",
                &label,
                "--for=delete",
                "--timeout=120s",
            ]);
        }
    }
}

/// Waits until the pods of before an upgrade, which serve until they end, are gone.
pub(crate) async fn old_pods_are_gone(client: &Client) {
    let api: Api<Pod> = Api::namespaced(client.clone(), REVEILLE);
    eventually("no pod of Reveille's is ending", async || {
        let pods = api.list(&ListParams::default()).await.ok()?;
        let ending = pods.items.iter().any(|pod| pod.metadata.deletion_timestamp.is_some());
        (!ending).then_some(())
    })
    .await;
}

/// Waits until the API server reaches the webhook.
pub(crate) async fn webhook_answers(client: &Client) {
    eventually("the webhook marks a Restore", async || {
        webhook_marks_a_restore(client).await.unwrap_or(false).then_some(())
    })
    .await;
}

/// Whether the API server reaches the webhook: a dry run of a Restore comes back marked.
pub(crate) async fn webhook_marks_a_restore(client: &Client) -> kube::Result<bool> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), VELERO, &velero_resource("Restore"));
    let restore: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "velero.io/v1", "kind": "Restore",
        "metadata": {"generateName": "e2e-probe-", "annotations": {MODE_ANNOTATION: "takeover"}},
        "spec": {"backupName": "none"},
    }))
    .unwrap();
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let answer = api.create(&dry_run, &restore).await?;
    let annotations = answer.metadata.annotations.unwrap_or_default();
    Ok(annotations.contains_key(OWNER_ANNOTATION))
}
