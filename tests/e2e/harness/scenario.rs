//! One test: its namespace, its folder of traces, and what it does in the cluster.

use std::{any::Any, fs, os::unix::fs::PermissionsExt, path::PathBuf};

use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, PostParams},
};
use reveille::hooks::restored::is_terminal;
use serde_json::{Value, json};

use super::{
    Alone, PodSpec, Quiet, REVEILLE, RestoreSpec, Shared, VELERO, client, delete_namespace, eventually, kubectl,
    resource, run, state_folder, velero_resource,
};

/// Who else may use the installation meanwhile, for as long as it lives: [`Shared`], [`Quiet`] or [`Alone`].
type Claim = Box<dyn Any + Send + Sync>;

/// One test. When it fails, what is in its namespace is printed; with `REVEILLE_E2E_KEEP` it also stays.
pub(crate) struct Scenario {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    folder: PathBuf,
    // The last field: everything else of the test is over before others may go on.
    _claim: Claim,
}

impl Scenario {
    /// A test that leaves the installation as it is.
    pub(crate) async fn new(name: &str) -> Self {
        Self::with_namespace_labels(name, json!({})).await
    }

    /// A test whose namespace has these labels.
    pub(crate) async fn with_namespace_labels(name: &str, labels: Value) -> Self {
        let client = client().await;
        let claim = Box::new(Shared::take(&client).await);
        Self::begin(name, client, claim, labels).await
    }

    /// A test that changes nothing of the installation, but counts what any test could be counted in.
    pub(crate) async fn in_quiet(name: &str) -> Self {
        let client = client().await;
        let claim = Box::new(Quiet::take(&client).await);
        Self::begin(name, client, claim, json!({})).await
    }

    /// A test that changes the installation: no other runs beside it, and in the end all is as it was.
    pub(crate) async fn alone(name: &str) -> Self {
        let client = client().await;
        let claim = Box::new(Alone::take(&client).await);
        Self::begin(name, client, claim, json!({})).await
    }

    async fn begin(name: &str, client: Client, claim: Claim, labels: Value) -> Self {
        let namespace = format!("e2e-{name}-{:x}", std::process::id());
        let folder = state_folder().join("e2e").join(&namespace);
        fs::create_dir_all(&folder).unwrap();
        // Containers run under any user.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let scenario = Self {
            client,
            namespace,
            folder,
            _claim: claim,
        };
        let namespace = &scenario.namespace;
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}});
        let api: Api<Namespace> = Api::all(scenario.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
        scenario
    }

    /// A pod that sleeps and can leave traces.
    pub(crate) fn pod(&self, name: &str) -> PodSpec {
        PodSpec::new(name, &self.folder.to_string_lossy())
    }

    /// Creates any object in the test's namespace.
    pub(crate) async fn create(&self, object: &Value) -> DynamicObject {
        self.try_create(object)
            .await
            .unwrap_or_else(|error| panic!("{object}: {error}"))
    }

    /// The same, for what may be refused.
    pub(crate) async fn try_create(&self, object: &Value) -> kube::Result<DynamicObject> {
        let text = |key: &str| object[key].as_str().unwrap();
        let resource = resource(text("apiVersion"), text("kind"));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        let object = serde_json::from_value(object.clone()).unwrap();
        api.create(&PostParams::default(), &object).await
    }

    /// What the API server would make of any object, in the object's own namespace.
    pub(crate) async fn dry_run(&self, object: &Value) -> Value {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let resource = resource(&text(&object["apiVersion"]), &text(&object["kind"]));
        let namespace = text(&object["metadata"]["namespace"]);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, &resource);
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let object = serde_json::from_value(object.clone()).unwrap();
        serde_json::to_value(api.create(&dry_run, &object).await.unwrap()).unwrap()
    }

    /// Creates a pod, as soon as its namespace has a service account.
    pub(crate) async fn submit(&self, pod: &PodSpec) {
        eventually("the namespace has its service account", async || {
            match self.try_create(pod.json()).await {
                Ok(_) => Some(()),
                Err(kube::Error::Api(status)) if status.message.contains("serviceaccount") => None,
                Err(error) => panic!("pod {}: {error}", pod.name()),
            }
        })
        .await;
    }

    /// Creates pods and waits until they run.
    pub(crate) async fn start(&self, pods: &[PodSpec]) {
        for pod in pods {
            self.submit(pod).await;
        }
        for pod in pods {
            self.running(pod.name()).await;
        }
    }

    /// Waits until all containers of a pod run.
    pub(crate) async fn running(&self, name: &str) -> Pod {
        eventually(&format!("pod {name} runs"), async || {
            let pod = self.pods().get_opt(name).await.unwrap()?;
            let status = pod.status.as_ref()?;
            let all = status.container_statuses.as_ref()?;
            let up = |status: &k8s_openapi::api::core::v1::ContainerStatus| {
                status.state.as_ref().is_some_and(|state| state.running.is_some())
            };
            (all.iter().all(up)).then_some(pod.clone())
        })
        .await
    }

    /// The pods of the test's namespace.
    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A pod as it is now, as raw JSON.
    pub(crate) async fn pod_now(&self, name: &str) -> Value {
        serde_json::to_value(self.pods().get(name).await.unwrap()).unwrap()
    }

    /// Runs a command in a container the way a person would.
    pub(crate) fn exec(&self, pod: &str, script: &str) -> String {
        kubectl(&["-n", &self.namespace, "exec", pod, "--", "/bin/sh", "-c", script])
    }

    /// The notes of the Events about an object of the test's namespace.
    pub(crate) async fn events(&self, about: &str, reason: &str) -> Vec<String> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let fields = format!("involvedObject.name={about},reason={reason}");
        let events = api.list(&ListParams::default().fields(&fields)).await.unwrap();
        events.items.into_iter().filter_map(|event| event.message).collect()
    }

    /// Waits until an Event about an object of the test's namespace is there; there must be no other of that reason.
    pub(crate) async fn says_once(&self, about: &str, reason: &str) {
        let notes = eventually(&format!("an Event {reason} about {about}"), async || {
            Some(self.events(about, reason).await).filter(|notes| !notes.is_empty())
        })
        .await;
        assert_eq!(notes.len(), 1, "{notes:?}");
    }

    /// How many lines the trace of this name has.
    pub(crate) fn ran(&self, name: &str) -> usize {
        self.read(name).lines().count()
    }

    /// The same for a pod whose volume of traces is an empty one: the kubelet keeps it on this machine.
    pub(crate) async fn ran_inside(&self, pod: &str, name: &str) -> usize {
        let uid = self.pods().get(pod).await.unwrap().metadata.uid.unwrap();
        let volumes = state_folder().join("kubelet/pods").join(uid).join("volumes");
        let path = volumes.join("kubernetes.io~empty-dir/traces").join(name);
        fs::read_to_string(path).unwrap_or_default().lines().count()
    }

    /// What stands in a file of the test's folder; nothing if there is none.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// Puts an empty file into the test's folder: what waits for it goes on.
    pub(crate) fn signal(&self, name: &str) {
        fs::write(self.folder.join(name), "").unwrap();
    }

    /// Writes a file into the test's folder and gives its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.join(name);
        fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    /// Backs up the test's namespace, and gives the backup's name.
    pub(crate) async fn backup(&self) -> String {
        self.backup_of(&self.namespace).await
    }

    /// Backs up any namespace.
    pub(crate) async fn backup_of(&self, namespace: &str) -> String {
        self.backup_with(json!({"includedNamespaces": [namespace]})).await
    }

    /// Backs up what these fields of a Backup's spec say.
    pub(crate) async fn backup_with(&self, fields: Value) -> String {
        let mut spec = json!({"snapshotVolumes": false, "storageLocation": "default"});
        json_patch::merge(&mut spec, &fields);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), VELERO, &velero_resource("Backup"));
        let object = json!({
            "apiVersion": "velero.io/v1", "kind": "Backup",
            "metadata": {"generateName": format!("{}-", self.namespace)},
            "spec": spec,
        });
        let created = api
            .create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
        let name = created.name_any();
        let phase = eventually(&format!("backup {name} ends"), async || {
            let backup = api.get(&name).await.unwrap();
            let phase = backup.data["status"]["phase"].as_str().unwrap_or_default().to_owned();
            is_terminal(&phase).then_some(phase)
        })
        .await;
        assert_eq!(phase, "Completed", "backup {name}");
        name
    }

    /// Loses the test's namespace.
    pub(crate) async fn lose(&self) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
        eventually("the namespace is gone", async || {
            api.get_opt(&self.namespace).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    /// Loses the pods of the test's namespace, and nothing else.
    pub(crate) async fn lose_pods(&self) {
        let (delete, all) = (DeleteParams::default(), ListParams::default());
        self.pods().delete_collection(&delete, &all).await.unwrap();
        eventually("the pods are gone", async || {
            self.pods().list(&all).await.unwrap().items.is_empty().then_some(())
        })
        .await;
    }

    /// Makes sure that the cluster refuses a pod, and says this.
    pub(crate) async fn refuses(&self, pod: &PodSpec, words: &str) {
        eventually("the pod is refused", async || {
            if let Err(error) = self.try_create(pod.json()).await {
                assert!(error.to_string().contains(words), "{error}");
                return Some(());
            }
            // The rule is not in force yet.
            self.lose_pods().await;
            None
        })
        .await;
    }

    /// The beginning of nearly every test: pods run, are backed up and lost. Gives the backup's name.
    pub(crate) async fn back_up_and_lose(&self, pods: &[PodSpec]) -> String {
        self.start(pods).await;
        let backup = self.backup().await;
        self.lose().await;
        backup
    }

    /// The same, but the namespace stays. Quicker: its end takes the cluster five seconds.
    pub(crate) async fn back_up_and_lose_pods(&self, pods: &[PodSpec]) -> String {
        self.start(pods).await;
        let backup = self.backup().await;
        self.lose_pods().await;
        backup
    }

    /// A Restore of this backup.
    pub(crate) fn restore(&self, backup: &str) -> RestoreSpec<'_> {
        RestoreSpec::new(self, backup)
    }

    /// What Velero's own hook runner did in the test's namespace: its log lines about commands that it starts.
    pub(crate) fn velero_ran(&self) -> Vec<String> {
        super::velero_ran_in(&self.namespace)
    }

    /// Those of them that failed.
    pub(crate) fn velero_failed(&self) -> Vec<String> {
        super::velero_failed_in(&self.namespace)
    }

    /// What a person would look at first.
    fn diagnose(&self) {
        let show = |title: &str, arguments: &[&str]| {
            let output = run("kubectl", arguments);
            let text = [output.stdout, output.stderr].concat();
            // Some tests have very large pods.
            let text = String::from_utf8_lossy(text.get(..40_000).unwrap_or(&text)).into_owned();
            println!("--- {title}\n{text}");
        };
        let namespace = self.namespace.as_str();
        show(
            "pods and runs",
            &["-n", namespace, "get", "pods,hookruns", "-o", "wide"],
        );
        show("pods", &["-n", namespace, "get", "pods", "-o", "yaml"]);
        show("runs", &["-n", namespace, "get", "hookruns", "-o", "yaml"]);
        show(
            "events",
            &["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"],
        );
        let restores = run("kubectl", &["-n", VELERO, "get", "restores", "-o", "name"]);
        for restore in String::from_utf8_lossy(&restores.stdout)
            .lines()
            .filter(|name| name.contains(namespace))
        {
            show(restore, &["-n", VELERO, "get", restore, "-o", "yaml"]);
        }
        for (title, of, label, container) in [
            ("webhooks", REVEILLE, "app.kubernetes.io/name=reveille", "webhook"),
            ("waiters", REVEILLE, "app.kubernetes.io/name=reveille", "waiter"),
            ("Velero", VELERO, "deploy=velero", "velero"),
        ] {
            let output = run(
                "kubectl",
                &["-n", of, "logs", "-l", label, "-c", container, "--prefix", "--tail=-1"],
            );
            println!("--- {title}, about this test");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines()
                .filter(|line| line.contains(namespace))
                .for_each(|line| println!("{line}"));
        }
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.diagnose();
        }
        if !failed || std::env::var_os("REVEILLE_E2E_KEEP").is_none() {
            delete_namespace(&self.namespace);
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
