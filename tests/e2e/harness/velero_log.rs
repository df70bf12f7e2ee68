//! What Velero's server says about its own doings.

use std::fs;

use super::state_folder;

/// What it logs when its own hook runner starts a command. `ownership.rs` proves that it does.
const STARTS: &str = "running exec hook";

/// The whole log of the server that runs now, from the node's disk: `kubectl logs` loses what has been rotated away.
fn velero_log() -> String {
    let names = |folder: &std::path::Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_server = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("velero_velero-") && path.join("velero").is_dir()
    };
    let servers = names(&state_folder().join("pod-logs")).filter(is_server);
    let files = servers.flat_map(|server| names(&server.join("velero")).collect::<Vec<_>>());
    let text = files.filter_map(|file| fs::read(file).ok());
    text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
}

/// What it logs when such a command could not be started or ended otherwise than with exit code 0.
const FAILS: &str = "Error executing hook";

/// The commands that Velero's own hook runner started in pods of a namespace that it has restored into.
pub(crate) fn velero_ran_in(namespace: &str) -> Vec<String> {
    velero_hook_lines(namespace, STARTS)
}

/// Those of them that failed.
pub(crate) fn velero_failed_in(namespace: &str) -> Vec<String> {
    velero_hook_lines(namespace, FAILS)
}

fn velero_hook_lines(namespace: &str, words: &str) -> Vec<String> {
    let log = velero_log();
    assert!(
        log.contains(namespace),
        "Velero's log says nothing about {namespace}: it is not the log to look at"
    );
    let pod = format!("pod={namespace}/");
    let lines = log
        .lines()
        .filter(|line| line.contains(words) && line.contains("hookPhase=post"));
    lines.filter(|line| line.contains(&pod)).map(str::to_owned).collect()
}

/// The admission warnings that the API server gave Velero: it logs them, without a word about which restore.
pub(crate) fn velero_warnings() -> Vec<String> {
    let log = velero_log();
    log.lines()
        .filter(|line| line.contains("msg=\"Warning: "))
        .map(str::to_owned)
        .collect()
}
