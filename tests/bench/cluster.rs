//! The test cluster: its programs, its fake nodes, and what is on it.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams},
    core::PartialObjectMeta,
};
use serde_json::{Value, json};

use crate::process::Process;

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(400);
const PAUSE: Duration = Duration::from_millis(250);
/// The fake node; what is to run there says so.
const NODE: &str = "kwok";

/// The cluster in KUBECONFIG.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    name: String,
    address: String,
    folder: PathBuf,
    kwok_program: PathBuf,
    kwok: Option<Child>,
}

impl Cluster {
    /// From the environment that `tests/bench/run` sets.
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        let variable = |name: &str| env::var(name).with_context(|| format!("{name} is not set; use tests/bench/run"));
        let kubeconfig = PathBuf::from(variable("KUBECONFIG")?);
        Ok(Self {
            client: Client::try_default().await?,
            name: variable("REVEILLE_CLUSTER")?,
            address: variable("REVEILLE_CLUSTER_ADDRESS")?,
            folder: kubeconfig
                .parent()
                .context("KUBECONFIG lies in the cluster's folder")?
                .to_owned(),
            kwok_program: variable("KWOK")?.into(),
            kwok: None,
        })
    }

    /// The API server's audit log.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.folder.join("log/audit.log")
    }

    // --- fake nodes ---

    /// Makes the fake node, and holds its pods back.
    pub(crate) async fn add_fake_node(&mut self) -> anyhow::Result<()> {
        let node: Node = serde_json::from_value(json!({
            "metadata": {
                "name": NODE,
                "labels": {"kubernetes.io/hostname": NODE, "type": NODE},
                "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
            },
            "spec": {"taints": [{"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}]},
        }))?;
        let nodes = Api::<Node>::all(self.client.clone());
        if nodes.get_opt(NODE).await?.is_none() {
            nodes.create(&PostParams::default(), &node).await?;
        }
        self.hold_pods()?;
        eventually("the fake node is there", async || {
            let ready = |node: Node| {
                node.status?
                    .conditions?
                    .into_iter()
                    .find(|condition| condition.type_ == "Ready")
            };
            Ok(ready(nodes.get(NODE).await?).filter(|condition| condition.status == "True"))
        })
        .await?;
        Ok(())
    }

    /// From now on no pod of the fake node starts.
    pub(crate) fn hold_pods(&mut self) -> anyhow::Result<()> {
        self.start_kwok(include_str!("kwok/hold.yaml").to_owned())
    }

    /// Each held pod becomes Running and Ready at a random moment of this span.
    pub(crate) fn release_pods(&mut self, spread: Duration) -> anyhow::Result<()> {
        let release = include_str!("kwok/release.yaml").replace("${SPREAD_MS}", &spread.as_millis().to_string());
        self.start_kwok(format!("{}---\n{release}", include_str!("kwok/hold.yaml")))
    }

    fn start_kwok(&mut self, configuration: String) -> anyhow::Result<()> {
        if let Some(mut old) = self.kwok.take() {
            old.kill()?;
            old.wait()?;
        }
        let folder = self.folder.join("kwok");
        fs::create_dir_all(&folder)?;
        let (file, log) = (folder.join("kwok.yaml"), folder.join("pod.log"));
        fs::write(&log, "2026-01-01T00:00:00.000000000Z stdout F started\n")?;
        fs::write(&file, configuration.replace("${LOG}", &log.to_string_lossy()))?;
        let output = fs::File::create(folder.join("kwok.log"))?;
        let certificate = self.folder.join("pki/apiserver");
        let mut command = ends_with_us("tests/cluster/cluster");
        command
            .args(["exec", &self.name, "--"])
            .arg(&self.kwok_program)
            .arg("--config")
            .arg(&file)
            .arg("--kubeconfig")
            .arg(self.folder.join("admin.conf"))
            .args(["--manage-all-nodes=false", "--node-lease-duration-seconds=0"])
            .args(["--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake"])
            .args(["--node-ip", &self.address, "--node-port=10247"])
            .arg(format!("--server-address={}:10247", self.address))
            .arg("--tls-cert-file")
            .arg(certificate.with_extension("crt"))
            .arg("--tls-private-key-file")
            .arg(certificate.with_extension("key"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        self.kwok = Some(command.spawn().context("kwok can't be started")?);
        Ok(())
    }

    // --- pods ---

    /// Makes a namespace and, many at a time, its pods.
    pub(crate) async fn make_pods(
        &self,
        namespace: &str,
        count: usize,
        pod: impl Fn(&str) -> Value,
    ) -> anyhow::Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let object: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        namespaces.create(&PostParams::default(), &object).await?;
        kubectl(&[
            "-n",
            namespace,
            "wait",
            "--for=create",
            "serviceaccount/default",
            "--timeout=60s",
        ])?;
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        stream::iter((0..count).map(|number| pod(&format!("app-{number:05}"))))
            .map(async |pod| -> anyhow::Result<()> {
                pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
                    .await?;
                Ok(())
            })
            .buffer_unordered(32)
            .try_collect::<()>()
            .await
    }

    /// Removes a namespace and all in it.
    pub(crate) async fn remove_namespace(&self, namespace: &str) -> anyhow::Result<()> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let at_once = DeleteParams::default().grace_period(0);
        pods.delete_collection(&at_once, &ListParams::default()).await?;
        kubectl(&["delete", "namespace", namespace, "--wait", "--timeout=300s"])?;
        Ok(())
    }

    /// Waits until a namespace has so many pods, all with a node.
    pub(crate) async fn pods_are_bound(&self, namespace: &str, count: usize) -> anyhow::Result<()> {
        let pods = Api::<PartialObjectMeta<Pod>>::namespaced(self.client.clone(), namespace);
        let number = async |selector: ListParams| -> anyhow::Result<usize> {
            // One is enough: how many more there are, the API server says.
            let list = pods.list(&selector.limit(1)).await?;
            let more = list.metadata.remaining_item_count.unwrap_or_default();
            Ok(list.items.len() + usize::try_from(more)?)
        };
        eventually(&format!("{count} pods in {namespace}"), async || {
            Ok((number(ListParams::default()).await? >= count).then_some(()))
        })
        .await?;
        eventually(&format!("a node for each pod in {namespace}"), async || {
            let without = number(ListParams::default().fields("spec.nodeName=")).await?;
            Ok((without == 0).then_some(()))
        })
        .await
    }

    /// How many pods of a namespace match.
    pub(crate) async fn count_pods(&self, namespace: &str, selector: ListParams) -> anyhow::Result<usize> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        Ok(pods.list_metadata(&selector).await?.items.len())
    }

    /// The uids of a deployment's pods, by label; pods that are on their way out do not count.
    pub(crate) async fn pods_of(&self, namespace: &str, selector: &str) -> anyhow::Result<Vec<String>> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let list = pods
            .list(&ListParams::default().labels(selector))
            .await?
            .items
            .into_iter();
        let alive = list.filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(alive.filter_map(|pod| pod.metadata.uid).collect())
    }

    /// The process of Velero's server.
    pub(crate) async fn velero(&self) -> anyhow::Result<Process> {
        let pods = self.pods_of("velero", "deploy=velero").await?;
        Process::in_pod(pods.first().context("Velero has no pod")?, "server")
    }

    /// Velero's objects of one kind.
    pub(crate) fn velero_objects(&self, kind: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("velero.io", "v1", kind));
        Api::namespaced_with(self.client.clone(), "velero", &resource)
    }

    /// The API server's metrics.
    pub(crate) fn metrics() -> anyhow::Result<String> {
        kubectl(&["get", "--raw", "/metrics"])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut kwok) = self.kwok.take() {
            let _ = kwok.kill();
            let _ = kwok.wait();
        }
    }
}

/// A pod for the fake node; more is merged into its metadata.
pub(crate) fn pod(name: &str, annotations: Value) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": "bench"}, "annotations": annotations},
        "spec": {
            "nodeSelector": {"type": NODE},
            "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": "localhost/app:1"}],
        },
    })
}

/// A program that is killed when this one ends, however that comes.
pub(crate) fn ends_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// kubectl, as a person would use it.
pub(crate) fn kubectl(arguments: &[&str]) -> anyhow::Result<String> {
    program("kubectl", arguments)
}

/// Runs a program that has to succeed, and gives what it printed.
pub(crate) fn program(name: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(name).args(arguments).output().context(name.to_owned())?;
    ensure!(
        output.status.success(),
        "{name} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks until there is something to give; fails with these words when nothing comes.
pub(crate) async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = tokio::time::Instant::now() + LIMIT;
    while tokio::time::Instant::now() < end {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("waited {} s in vain: {what}", LIMIT.as_secs())
}

/// Says where things are.
pub(crate) fn say(text: &str) {
    eprintln!("{} {text}", Timestamp::now().strftime("%H:%M:%S"));
}
