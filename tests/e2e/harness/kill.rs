//! Ending Reveille's processes without a warning, as a crash or a failing node does.

use std::fs;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::ListParams};

use super::{REVEILLE, run};

/// The Lease by which a waiter leads.
pub(crate) fn waiter_lease(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), REVEILLE)
}

/// The pod of the waiter that leads, if one does.
pub(crate) async fn leading_pod(client: &Client) -> Option<String> {
    let lease = waiter_lease(client).get_opt("reveille-waiter").await.ok()??;
    let holder = lease.spec?.holder_identity?;
    holder.split_once('/').map(|(pod, _)| pod.to_owned())
}

/// Kills waiters with SIGKILL: those of all pods of Reveille, or of one. Gives their number. Their parents live on and start them again.
pub(crate) async fn kill_waiters(client: &Client, pod: Option<&str>) -> usize {
    let processes = running_waiters(client, pod).await;
    for process in &processes {
        run("kill", &["-KILL", process]);
    }
    processes.len()
}

/// The waiters' processes on this machine: those of all pods of Reveille, or of one.
pub(crate) async fn running_waiters(client: &Client, pod: Option<&str>) -> Vec<String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), REVEILLE);
    let Ok(pods) = api.list(&ListParams::default()).await else {
        return Vec::new();
    };
    let wanted = pods
        .items
        .iter()
        .filter(|found| pod.is_none_or(|name| found.name_any() == name));
    let uids: Vec<String> = wanted.filter_map(ResourceExt::uid).collect();
    waiters_of(&uids)
}

/// The processes on this machine that are waiters of these pods.
fn waiters_of(uids: &[String]) -> Vec<String> {
    let read = |process: &str, file: &str| {
        let bytes = fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    processes
        .filter(|process| process.chars().all(|c| c.is_ascii_digit()))
        .filter(|process| {
            let arguments = read(process, "cmdline");
            let mut arguments = arguments.split('\0').skip(1);
            arguments.next() == Some("waiter") && arguments.any(|argument| argument == "--no-supervisor")
        })
        .filter(|process| {
            let environment = read(process, "environ");
            environment
                .split('\0')
                .filter_map(|variable| variable.strip_prefix("POD_UID="))
                .any(|uid| uids.iter().any(|wanted| wanted == uid))
        })
        .collect()
}
