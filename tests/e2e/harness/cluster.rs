//! The cluster that the tests run on, and the programs that speak to it.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Output},
};

use kube::{Client, api::ApiResource, core::GroupVersionKind};

/// Velero's namespace.
pub(crate) const VELERO: &str = "velero";
/// The namespace that Reveille is installed in.
pub(crate) const REVEILLE: &str = "reveille";

/// A `ConfigMap` that is there while calls of Reveille's accounts are refused on purpose: the test of its rights, which runs
/// behind all others, reads of it in the audit log.
pub(crate) const RIGHTS_BROKEN: &str = "e2e-rights-broken";

/// The name of the cluster.
pub(crate) fn cluster_name() -> String {
    env::var("REVEILLE_E2E_CLUSTER").expect("REVEILLE_E2E_CLUSTER names the cluster to test on: `make test` sets it")
}

/// A client. One for each test: a client's connections live and die with the test's own runtime.
pub(crate) async fn client() -> Client {
    // Whoever comes second finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _ = cluster_name();
    Client::try_default().await.expect("KUBECONFIG leads to the cluster")
}

/// Where the cluster keeps its things on this machine.
pub(crate) fn state_folder() -> PathBuf {
    let kubeconfig = PathBuf::from(env::var_os("KUBECONFIG").expect("KUBECONFIG is set"));
    kubeconfig.parent().expect("it lies in the cluster's folder").to_owned()
}

/// The root of the source tree.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap_or_else(|error| panic!("{program} can't be run: {error}"))
}

/// Runs a program that has to succeed, and gives what it printed.
pub(crate) fn must_run(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// kubectl, for what a person would do with it.
pub(crate) fn kubectl(arguments: &[&str]) -> String {
    must_run("kubectl", arguments)
}

/// Deletes a namespace, if it is there, and does not wait for its end.
pub(crate) fn delete_namespace(name: &str) {
    run(
        "kubectl",
        &["delete", "namespace", name, "--wait=false", "--ignore-not-found"],
    );
}

/// The script that made the cluster.
pub(crate) fn cluster_script(arguments: &[&str]) -> String {
    must_run("tests/cluster/cluster", arguments)
}

/// The files of the API server's audit log, oldest first: it sets full ones aside.
pub(crate) fn audit_files() -> Vec<PathBuf> {
    let current = PathBuf::from(cluster_script(&["logs", &cluster_name(), "audit"]).trim());
    let stem = format!("{}-", current.file_stem().unwrap().to_string_lossy());
    let mut files: Vec<PathBuf> = fs::read_dir(current.parent().expect("it is an absolute path"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&stem))
        .collect();
    // Their names hold the time.
    files.sort();
    files.push(current);
    files
}

/// The resource of an object by its own words.
pub(crate) fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// One of Velero's resources.
pub(crate) fn velero_resource(kind: &str) -> ApiResource {
    resource("velero.io/v1", kind)
}

/// The program under test on this machine.
pub(crate) fn reveille(arguments: &[&str]) -> Output {
    reveille_with(arguments, &[])
}

/// The same with more in its environment.
pub(crate) fn reveille_with(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let program = env::var("REVEILLE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_reveille").to_owned());
    Command::new(&program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .output()
        .unwrap_or_else(|error| panic!("{program} can't be run: {error}"))
}
