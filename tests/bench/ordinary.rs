//! Pods without hooks, and not restored: they should cost nothing.

use std::time::Duration;

use jiff::Timestamp;
use kube::api::ListParams;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    audit::{Audit, Who},
    cluster::{Cluster, eventually, pod},
    figures::{Requests, Used},
    hooks::install,
    process::Meter,
};

/// What ordinary pods cost.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ordinary {
    pub(crate) pods: usize,
    /// How long it took to make and start them, in seconds.
    pub(crate) seconds: f64,
    /// Calls of any webhook of Reveille.
    pub(crate) webhook_calls: u64,
    /// Requests of Reveille: what it does anyway in that time.
    pub(crate) requests: Requests,
    /// `waiting` is the memory when all of them ran.
    pub(crate) webhook: Used,
    pub(crate) waiter: Used,
}

/// Makes them, waits until they run, and looks.
pub(crate) async fn measure(cluster: &mut Cluster, pods: usize) -> anyhow::Result<Ordinary> {
    let installed = install(cluster).await?;
    cluster.release_pods(Duration::from_millis(100))?;
    let calls = webhook_calls()?;
    let mut webhooks = Meter::start(&installed.webhooks)?;
    let mut waiters = Meter::start(&installed.waiters)?;
    let began = Timestamp::now();
    cluster
        .make_pods("ordinary", pods, |name| {
            let mut pod = pod(name, json!({}));
            // The scheduler takes 50 pods a second; it is not what is measured.
            pod["spec"]["nodeName"] = json!("kwok");
            pod
        })
        .await?;
    eventually("all ordinary pods run", async || {
        let pending = ListParams::default().fields("status.phase=Pending").limit(1);
        Ok((cluster.count_pods("ordinary", pending).await? == 0).then_some(()))
    })
    .await?;
    let ended = Timestamp::now();
    webhooks.all_wait()?;
    waiters.all_wait()?;
    let audit = Audit::read(&cluster.audit_log(), began, ended)?;
    Ok(Ordinary {
        pods,
        seconds: ended.duration_since(began).as_secs_f64(),
        webhook_calls: webhook_calls()? - calls,
        requests: audit.requests(Who::Reveille, began),
        webhook: webhooks.end()?,
        waiter: waiters.end()?,
    })
}

/// How often the API server has called a webhook of Reveille.
fn webhook_calls() -> anyhow::Result<u64> {
    let metrics = Cluster::metrics()?;
    let counts = metrics.lines().filter(|line| {
        line.starts_with("apiserver_admission_webhook_request_total{") && line.contains("reveille.dev\"")
    });
    let numbers = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(numbers.sum())
}
