//! The actions controller as a process of this machine, with a namespace of its own: it can be killed at any moment, and
//! tests run side by side. It has the account and the rights that the chart gives it, so a right that is missing shows here.

use std::{
    env, fs,
    fs::File,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use k8s_openapi::api::{
    authorization::v1::SubjectAccessReview,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, PostParams},
};
use reveille::{
    actions::action::{ACTION_LABEL, ActionKind},
    api::action::{ActionStatus, HookName, Invocation, StepState},
};
use serde_json::{Value, json};

use super::{
    IMAGE, Scenario, TRACES, VELERO, cluster_name, cluster_script, delete_namespace, eventually, kubectl, must_run,
    resource, run, state_folder,
};

/// What the tests' Blueprints need beyond the built-in rights, as `actions.rules`.
const RULES: &str = r#"[
  {"apiGroups": [""], "resources": ["configmaps", "serviceaccounts"], "verbs": ["create", "list", "patch", "delete"]},
  {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["create", "list", "delete"]}
]"#;

/// The controller, and the namespace in which its Blueprints and actions lie.
pub(crate) struct Controller<'a> {
    scenario: &'a Scenario,
    pub(crate) namespace: String,
    flags: Vec<String>,
    log: PathBuf,
    account: Account,
    child: Option<Child>,
}

/// The controller's account as the chart makes it.
struct Account {
    /// What was applied.
    manifests: PathBuf,
    kubeconfig: PathBuf,
}

impl Account {
    /// Makes the account in a namespace, and waits until its rights count.
    async fn make(client: &Client, namespace: &str) -> Self {
        let folder = state_folder().join("e2e");
        let (manifests, kubeconfig) = (
            folder.join(format!("{namespace}.yaml")),
            folder.join(format!("{namespace}.kubeconfig")),
        );
        let chart = actions_chart(namespace, &["--set-json", &format!("actions.rules={RULES}")]);
        let account: Vec<&str> = chart
            .split("\n---")
            .filter(|text| !text.contains("kind: Deployment"))
            .collect();
        fs::write(&manifests, account.join("\n---")).unwrap();
        kubectl(&["apply", "-f", &manifests.to_string_lossy()]);

        let name = format!("{namespace}-actions");
        let token = kubectl(&["-n", namespace, "create", "token", &name, "--duration=2h"]);
        let admin = fs::read_to_string(env::var("KUBECONFIG").unwrap()).unwrap();
        let mut config: Value = serde_saphyr::from_str(&admin).unwrap();
        config["users"][0]["user"] = json!({"token": token.trim()});
        fs::write(&kubeconfig, config.to_string()).unwrap();

        let user = format!("system:serviceaccount:{namespace}:{name}");
        for (namespace, group, resource, verb) in [
            ("", "", "pods", "create"),
            (namespace, "coordination.k8s.io", "leases", "create"),
            (VELERO, "velero.io", "restores", "create"),
        ] {
            let attributes = json!({"namespace": namespace, "group": group, "resource": resource, "verb": verb});
            let review = json!({"metadata": {}, "spec": {"user": user, "resourceAttributes": attributes}});
            let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
            let api: Api<SubjectAccessReview> = Api::all(client.clone());
            eventually(&format!("{user} may {verb} {resource}"), async || {
                let review = api.create(&PostParams::default(), &review).await.unwrap();
                review.status.unwrap().allowed.then_some(())
            })
            .await;
        }
        Self { manifests, kubeconfig }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let manifests = self.manifests.to_string_lossy();
        run(
            "kubectl",
            &["delete", "--wait=false", "--ignore-not-found", "-f", &manifests],
        );
        let _ = fs::remove_file(&self.manifests);
        let _ = fs::remove_file(&self.kubeconfig);
    }
}

/// The chart's objects for a controller in this namespace, all of them called after it.
pub(crate) fn actions_chart(namespace: &str, values: &[&str]) -> String {
    let (name, own) = (
        format!("fullnameOverride={namespace}"),
        format!("actions.namespace={namespace}"),
    );
    let chart = ["template", "reveille", "charts/reveille", "--kube-version", "1.34.0"];
    let only = ["--show-only", "templates/actions.yaml", "--set", "actions.enabled=true"];
    must_run(
        "helm",
        &[&chart[..], &only, &["--set", &name, "--set", &own], values].concat(),
    )
}

impl<'a> Controller<'a> {
    /// Starts one with these flags.
    pub(crate) async fn start(scenario: &'a Scenario, flags: &[&str]) -> Self {
        install_action_crds();
        let namespace = format!("k-{}", scenario.namespace);
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let api: Api<Namespace> = Api::all(scenario.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
        let mut controller = Self {
            account: Account::make(&scenario.client, &namespace).await,
            scenario,
            log: state_folder().join("e2e").join(format!("{namespace}.log")),
            namespace,
            flags: vec!["--policies=false".to_owned()],
            child: None,
        };
        for flag in flags {
            controller.flag(flag);
        }
        controller.begin();
        controller
    }

    /// Starts the process.
    pub(crate) fn begin(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let program = env::var("REVEILLE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_reveille").to_owned());
        let child = Command::new(program)
            .args([
                "actions",
                "--health-listen=127.0.0.1:0",
                &format!("--namespace={}", self.namespace),
                &format!("--lease={}-actions", self.namespace),
            ])
            .arg("--hook-service-account=default")
            .args(&self.flags)
            .env("KUBECONFIG", &self.account.kubeconfig)
            .env("REVEILLE_LOG_FORMAT", "text")
            // Another process of the same pod: its predecessor's Lease need not run out.
            .env("POD_NAME", "controller")
            .env("POD_UID", &self.namespace)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Gives a flag to the next process.
    pub(crate) fn flag(&mut self, flag: &str) {
        let (name, _) = flag.split_once('=').unwrap();
        self.flags.retain(|other| !other.starts_with(&format!("{name}=")));
        self.flags.push(flag.to_owned());
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Writes a Blueprint with these actions.
    pub(crate) async fn blueprint(&self, name: &str, actions: Value) {
        let blueprint = json!({
            "apiVersion": "cr.kanister.io/v1alpha1", "kind": "Blueprint",
            "metadata": {"name": name, "namespace": self.namespace}, "actions": actions,
        });
        self.create(&blueprint).await;
    }

    /// Creates an object in the controller's namespace.
    pub(crate) async fn create(&self, object: &Value) -> DynamicObject {
        let text = |key: &str| object[key].as_str().unwrap();
        let resource = resource(text("apiVersion"), text("kind"));
        let api: Api<DynamicObject> = Api::namespaced_with(self.scenario.client.clone(), &self.namespace, &resource);
        // The CRD may have been made a moment ago.
        eventually("the object is accepted", async || {
            match api
                .create(&PostParams::default(), &serde_json::from_value(object.clone()).unwrap())
                .await
            {
                Ok(created) => Some(created),
                Err(kube::Error::Api(status)) if status.code == 404 => None,
                Err(error) => panic!("{object}: {error}"),
            }
        })
        .await
    }

    /// A Velero Backup of the test's namespace with hooks.
    pub(crate) async fn back_up(&self, hooks: Value) -> BegunAction<'_> {
        let backup = json!({"includedNamespaces": [self.scenario.namespace], "snapshotVolumes": false});
        self.action(ActionKind::Backup, json!({"backup": backup, "hooks": hooks}))
            .await
    }

    /// A Velero Restore with hooks.
    pub(crate) async fn restore(&self, spec: Value, hooks: Value) -> BegunAction<'_> {
        self.action(ActionKind::Restore, json!({"restore": spec, "hooks": hooks}))
            .await
    }

    /// Any action.
    pub(crate) async fn action(&self, kind: ActionKind, spec: Value) -> BegunAction<'_> {
        let object = json!({
            "apiVersion": "reveille.dev/v1alpha1", "kind": kind.word(),
            "metadata": {"generateName": format!("{}-", self.scenario.namespace)}, "spec": spec,
        });
        let created = self.create(&object).await;
        BegunAction {
            controller: self,
            kind,
            name: created.name_any(),
        }
    }

    /// An action that is there already.
    pub(crate) fn existing(&self, kind: ActionKind, name: &str) -> BegunAction<'_> {
        BegunAction {
            controller: self,
            kind,
            name: name.to_owned(),
        }
    }

    /// An action that the controller has made.
    pub(crate) async fn made(&self, kind: ActionKind, about: &str) -> BegunAction<'_> {
        let api = self.api(kind);
        let made = eventually(&format!("an action for {about} is made"), async || {
            let list = api.list(&ListParams::default()).await.unwrap().items;
            list.into_iter()
                .find(|action| action.data["spec"]["existing"]["name"] == about)
        })
        .await;
        BegunAction {
            controller: self,
            kind,
            name: made.name_any(),
        }
    }

    pub(crate) fn api(&self, kind: ActionKind) -> Api<DynamicObject> {
        Api::namespaced_with(self.scenario.client.clone(), &self.namespace, &kind.resource())
    }
}

impl Drop for Controller<'_> {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            println!(
                "--- the actions controller\n{}",
                fs::read_to_string(&self.log).unwrap_or_default()
            );
            for kind in ["restoreactions", "backupactions"] {
                let shown = run("kubectl", &["-n", &self.namespace, "get", kind, "-o", "yaml"]);
                println!("--- {kind}\n{}", String::from_utf8_lossy(&shown.stdout));
            }
            let shown = run("kubectl", &["-n", &self.namespace, "get", "pods", "-o", "yaml"]);
            println!("--- its pods\n{}", String::from_utf8_lossy(&shown.stdout));
        }
        delete_namespace(&self.namespace);
        let _ = fs::remove_file(&self.log);
    }
}

/// An action under way.
pub(crate) struct BegunAction<'a> {
    controller: &'a Controller<'a>,
    kind: ActionKind,
    pub(crate) name: String,
}

impl BegunAction<'_> {
    /// Its status as it is now.
    pub(crate) async fn now(&self) -> ActionStatus {
        let object = self.controller.api(self.kind).get(&self.name).await.unwrap();
        serde_json::from_value(object.data["status"].clone()).unwrap_or_default()
    }

    /// Waits until it has come this far.
    pub(crate) async fn reaches<T>(&self, what: &str, mut look: impl FnMut(&ActionStatus) -> Option<T>) -> T {
        eventually(&format!("action {}: {what}", self.name), async || {
            look(&self.now().await)
        })
        .await
    }

    /// Waits until a phase runs.
    pub(crate) async fn runs(&self, hook: HookName, phase: &str) {
        self.reaches(&format!("phase {phase} runs"), |status| {
            let invocation = invocation(status, hook)?;
            let phase = invocation.phases.iter().find(|other| other.name == phase)?;
            (phase.state == StepState::Running).then_some(())
        })
        .await;
    }

    /// Waits for its end; nothing of it is left then.
    pub(crate) async fn finish(&self) -> ActionStatus {
        let status = self
            .reaches("it is finished", |status| {
                (status.phase.is_final() && status.cleaned_up).then(|| status.clone())
            })
            .await;
        self.leaves_no_pods().await;
        status
    }

    /// Waits until no hook's pod of the test is left.
    pub(crate) async fn leaves_no_pods(&self) {
        let scenario = self.controller.scenario;
        let own = [&scenario.namespace, &self.controller.namespace];
        let pods: Api<Pod> = Api::all(scenario.client.clone());
        eventually("its pods are gone", async || {
            let pods = pods.list(&ListParams::default().labels(ACTION_LABEL)).await.unwrap();
            let left = pods.iter().any(|pod| own.contains(&&pod.namespace().unwrap()));
            (!left).then_some(())
        })
        .await;
    }

    /// Cancels it.
    pub(crate) fn cancel(&self) {
        let kind = self.kind.word().to_lowercase();
        kubectl(&[
            "-n",
            &self.controller.namespace,
            "annotate",
            &kind,
            &self.name,
            "reveille.dev/cancel=the test says so",
        ]);
    }
}

/// The only invocation of a hook.
pub(crate) fn invocation(status: &ActionStatus, hook: HookName) -> Option<&Invocation> {
    let mut found = status.hooks.iter().filter(|invocation| invocation.hook == hook);
    let first = found.next();
    assert!(found.next().is_none(), "{hook:?} has more than one invocation");
    first
}

/// How a hook has ended.
#[track_caller]
pub(crate) fn state(status: &ActionStatus, hook: HookName) -> StepState {
    invocation(status, hook)
        .unwrap_or_else(|| panic!("no {hook:?}: {status:?}"))
        .state
}

impl Scenario {
    /// A phase that runs a script in a pod of its own; the pod sees the test's folder.
    pub(crate) fn task(&self, name: &str, script: &str) -> Value {
        let mount = json!({"name": "traces", "mountPath": TRACES});
        let volume = json!({"name": "traces", "hostPath": {"path": self.write(".here", "").trim_end_matches("/.here"), "type": "Directory"}});
        json!({"func": "KubeTask", "name": name, "args": {
            "image": IMAGE,
            "command": ["/bin/sh", "-c", script],
            "podOverride": {"containers": [{"name": "container", "volumeMounts": [mount]}], "volumes": [volume]},
        }})
    }
}

/// An action with these phases.
pub(crate) fn phases(phases: &[Value]) -> Value {
    json!({"phases": phases})
}

/// A reference to an action of the Blueprint `b`.
pub(crate) fn hook(action: &str) -> Value {
    json!({"blueprint": "b", "actionName": action})
}

/// The CRDs of Blueprints and of actions, as the chart has them. The ordinary installation has no actions controller, and so
/// not these.
pub(crate) fn install_action_crds() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let chart = ["template", "reveille", "charts/reveille", "--kube-version", "1.34.0"];
        let only = [
            "--show-only",
            "templates/actions.yaml",
            "--set",
            "actions.installBlueprintCRD=true",
        ];
        let blueprints = must_run("helm", &[&chart[..], &only[..]].concat());
        let path = state_folder().join("e2e").join("blueprint-crd.yaml");
        fs::write(&path, blueprints).unwrap();
        kubectl(&["apply", "-f", &path.to_string_lossy()]);
        let own = ["restoreactions", "backupactions"].map(|name| format!("{name}.reveille.dev"));
        for name in &own {
            kubectl(&["apply", "-f", &format!("charts/reveille/files/crds/{name}.yaml")]);
        }
        for name in own.iter().map(String::as_str).chain(["blueprints.cr.kanister.io"]) {
            // Helm takes over only what it takes for its own.
            let release = [
                "meta.helm.sh/release-name=reveille",
                "meta.helm.sh/release-namespace=reveille",
            ];
            kubectl(&[&["annotate", "--overwrite", "crd", name][..], &release[..]].concat());
            kubectl(&["label", "--overwrite", "crd", name, "app.kubernetes.io/managed-by=Helm"]);
            kubectl(&["wait", "crd", name, "--for=condition=Established", "--timeout=60s"]);
        }
    });
}

/// Images of the names that Blueprints ask for; they could be pulled from nowhere here. All hold busybox and kubectl, and for the
/// programs that published Blueprints call there are small stand-ins.
pub(crate) fn load_blueprint_images() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let folder = state_folder().join("e2e/blueprint-images");
        let (root, archive) = (folder.join("root"), folder.join("image.tar"));
        fs::create_dir_all(root.join("usr/local/bin")).unwrap();
        let path = env::var_os("PATH").unwrap();
        let kubectl = env::split_paths(&path)
            .map(|dir| dir.join("kubectl"))
            .find(|path| path.exists());
        let kubectl = fs::canonicalize(kubectl.unwrap()).unwrap();
        let (root_text, archive) = (root.to_string_lossy(), archive.to_string_lossy());
        cluster_script(&["rootfs", "busybox", &root_text]);
        cluster_script(&["copy-binary", &kubectl.to_string_lossy(), &root_text, "/bin/kubectl"]);
        let output = r#"echo '###Phase-output###: {"key":"'"$1"'","value":"'"$2"'"}'"#;
        for (name, script) in [
            ("bash", r#"exec sh "$@""#.to_owned()),
            ("kando", format!("shift; {output}")),
            ("psql", format!("set -- psql \"$2 $PGPASSWORD\"; {output}")),
            ("ping", "exit 0".to_owned()),
        ] {
            let program = root.join("usr/local/bin").join(name);
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for name in [
            "bitnami/kubectl:latest",
            "library/kubectl:latest",
            "library/busybox:latest",
            "library/postgres:17",
        ] {
            let path = "PATH=/usr/local/bin:/bin:/usr/bin";
            cluster_script(&[
                "image",
                &archive,
                &format!("docker.io/{name}"),
                &root_text,
                "--env",
                path,
            ]);
            cluster_script(&["load", &cluster_name(), &archive]);
        }
        fs::remove_dir_all(&folder).unwrap();
    });
}
