//! What the functions of Blueprints do in a real cluster: look-alikes of public Blueprints, security contexts, images.

use std::{fs, os::unix::fs::PermissionsExt};

use reveille::api::action::{ActionPhase, HookName, StepState};
use serde_json::{Value, json};

use crate::harness::*;

/// A StatefulSet whose pods sleep.
fn stateful_set(name: &str, replicas: u32) -> Value {
    let container =
        json!({"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"]});
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "serviceName": name, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
            },
        },
    })
}

fn call(func: &str, name: &str, args: Value) -> Value {
    json!({"func": func, "name": name, "args": args})
}

#[tokio::test]
async fn every_function_does_its_work_on_the_cluster() {
    let t = Scenario::new("act-functions").await;
    let controller = Controller::start(&t, &["--hook-retries=0"]).await;
    t.create(&stateful_set("web", 2)).await;
    t.create(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}, "stringData": {"user": "root"}}),
    )
    .await;
    eventually("the StatefulSet is ready", async || {
        let ready = kubectl(&[
            "-n",
            &t.namespace,
            "get",
            "statefulset",
            "web",
            "-o",
            "jsonpath={.status.readyReplicas}",
        ]);
        (ready == "2").then_some(())
    })
    .await;
    let here = "{{ .Namespace.Name }}";
    let secret = json!({"login": {"kind": "Secret", "name": "login", "namespace": here}});
    let mut task = t.task("task", &format!(
        "echo \"{{{{ index .Phases.task.Secrets.login.Data \"user\" | toString }}}} ${{HOME:+home}} {{1..3}}\" >> {TRACES}/task; \
         echo '###Phase-output###: {{\"key\":\"name\",\"value\":\"made\"}}'"
    ));
    task["objects"] = secret;
    task["args"]["namespace"] = json!(here);
    let manifests = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: '{{ .Phases.task.Output.name }}-1'\n---\n\
                     apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: '{{ .Phases.task.Output.name }}-2'\ndata: {a: b}\n";
    let made = |name: &str| json!({"apiVersion": "v1", "group": "", "resource": "configmaps", "name": name, "namespace": here});
    let ready = "{{ $ok := false }}{{ range .status.conditions }}{{ if and (eq .type \"Ready\") (eq .status \"True\") }}\
                 {{ $ok = true }}{{ end }}{{ end }}{{ $ok }}";
    let pod = json!({"apiVersion": "v1", "group": "", "resource": "pods", "name": "web-0", "namespace": here});
    let all = phases(&[
        task,
        call("KubeOps", "create", json!({"operation": "create", "namespace": here, "spec": manifests})),
        call("KubeOps", "patch", json!({"operation": "patch", "objectReference": made("{{ .Phases.create.Output.name }}"), "spec": "data: {c: d}"})),
        call("KubeOps", "delete", json!({"operation": "delete", "objectReference": made("made-1")})),
        call("WaitV2", "ready", json!({"timeout": "2m", "conditions": {"anyOf": [{"condition": ready, "objectReference": pod}]}})),
        call("KubeExec", "exec", json!({"namespace": here, "pod": "web-1", "command": [
            "/bin/sh", "-c", "echo noise; echo '###Phase-output###: {\"key\":\"host\",\"value\":\"'$(hostname)'\"}'",
        ]})),
        call("ScaleWorkload", "down", json!({"namespace": here, "name": "web", "kind": "statefulset", "replicas": 0})),
        t.task("end", &format!("echo {{{{ .Phases.exec.Output.host }}}} {{{{ .Phases.down.Output.originalReplicaCount }}}} >> {TRACES}/end")),
        call("ScaleWorkload", "up", json!({"namespace": here, "name": "web", "kind": "statefulset",
            "replicas": "{{ .Phases.down.Output.originalReplicaCount }}", "waitForReady": "false"})),
    ]);
    controller.blueprint("b", json!({"all": all})).await;
    let status = controller.back_up(json!({"preHook": hook("all")})).await.finish().await;
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    // Text with braces of the shell's own; the container runtime has set HOME.
    assert_eq!(t.read("task"), "root home {1..3}\n");
    assert_eq!(t.read("end"), "web-1 2\n");
    let maps = kubectl(&["-n", &t.namespace, "get", "configmaps", "-o", "name"]);
    assert!(maps.contains("configmap/made-2") && !maps.contains("made-1"), "{maps}");
    let data = kubectl(&[
        "-n",
        &t.namespace,
        "get",
        "configmap",
        "made-2",
        "-o",
        "jsonpath={.data}",
    ]);
    assert_eq!(data, "{\"a\":\"b\",\"c\":\"d\"}");
    let replicas = kubectl(&[
        "-n",
        &t.namespace,
        "get",
        "statefulset",
        "web",
        "-o",
        "jsonpath={.spec.replicas}",
    ]);
    assert_eq!(replicas, "2");
}

#[tokio::test]
async fn hook_pods_are_root_unless_that_is_off_and_a_config_map_has_the_last_word() {
    let t = Scenario::new("act-root").await;
    let mut controller = Controller::start(&t, &["--hook-retries=0"]).await;
    // Users of all kinds write there.
    fs::set_permissions(t.write("id", ""), fs::Permissions::from_mode(0o666)).unwrap();
    let id = format!("id -u >> {TRACES}/id");
    let mut user = t.task("user", &id);
    user["args"]["podOverride"]["securityContext"] = json!({"runAsUser": 1000, "runAsNonRoot": true});
    let mut there = t.task("there", &id);
    there["args"]["namespace"] = json!("{{ .Namespace.Name }}");
    there["args"]["podOverride"] = json!({});
    let actions = json!({"ids": phases(&[t.task("none", &id), user]), "there": phases(&[there])});
    controller.blueprint("b", actions).await;
    let hooks = || json!({"preHook": hook("ids")});
    assert_eq!(
        controller.back_up(hooks()).await.finish().await.phase,
        ActionPhase::Succeeded
    );
    assert_eq!(t.read("id"), "0\n0\n");

    // A namespace that forbids root says so in the action's condition.
    kubectl(&[
        "label",
        "namespace",
        &t.namespace,
        "pod-security.kubernetes.io/enforce=restricted",
    ]);
    t.refuses(&t.pod("app"), "restricted").await;
    let refused = controller
        .back_up(json!({"preHook": hook("there")}))
        .await
        .finish()
        .await;
    assert_eq!(refused.phase, ActionPhase::Failed);
    let condition = refused
        .conditions
        .iter()
        .find(|condition| condition.type_ == "PodRefused")
        .unwrap();
    assert!(
        condition.message.contains("PodSecurity") && condition.message.contains("forceRootInKanisterHooks"),
        "{}",
        condition.message
    );

    controller.kill();
    controller.flag("--force-root-in-kanister-hooks=false");
    controller.begin();
    assert_eq!(
        controller.back_up(hooks()).await.finish().await.phase,
        ActionPhase::Succeeded
    );
    // The image says nothing, so it is root again; the phase's own words count.
    assert_eq!(t.read("id"), "0\n0\n0\n1000\n");

    let last = "kind: Pod\nspec:\n  securityContext: {runAsUser: 77}\n";
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "pod-spec-override"}, "data": {"override": last}});
    controller.create(&map).await;
    assert_eq!(
        controller.back_up(hooks()).await.finish().await.phase,
        ActionPhase::Succeeded
    );
    assert_eq!(t.read("id"), "0\n0\n0\n1000\n77\n77\n");
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_said_and_a_missing_subject_fails_the_hook() {
    let t = Scenario::new("act-image").await;
    let mut controller = Controller::start(&t, &["--hook-retries=0"]).await;
    let image = "registry.invalid/none:1";
    let pull = call("KubeTask", "task", json!({"image": image, "command": ["true"]}));
    let mut never = t.task("task", "true");
    never["args"]["image"] = json!(image);
    never["args"]["podOverride"]["containers"][0]["imagePullPolicy"] = json!("Never");
    let mut nowhere = t.task("task", "true");
    nowhere["args"]["podOverride"]["nodeSelector"] = json!({"there-is": "none"});
    let actions = json!({
        "pull": phases(&[pull]), "never": phases(&[never]), "nowhere": phases(&[nowhere]),
        "good": phases(&[t.task("p", &trace_script("good"))]),
    });
    controller.blueprint("b", actions).await;
    let begun = controller.back_up(json!({"preHook": hook("pull")})).await;
    begun
        .reaches("the image is named in a condition", |status| {
            let condition = status
                .conditions
                .iter()
                .find(|condition| condition.type_ == "ImagePull")?;
            assert!(condition.message.contains(image), "{}", condition.message);
            Some(())
        })
        .await;
    begun.cancel();
    assert_eq!(begun.finish().await.phase, ActionPhase::Cancelled);
    // What can't heal is not waited for.
    let status = controller
        .back_up(json!({"preHook": hook("never")}))
        .await
        .finish()
        .await;
    assert_eq!(status.phase, ActionPhase::Failed);
    assert!(
        status.message.contains(&format!("image {image} can't be used")),
        "{}",
        status.message
    );

    controller.kill();
    controller.flag("--pod-start-timeout=10s");
    controller.begin();
    let status = controller
        .back_up(json!({"preHook": hook("nowhere")}))
        .await
        .finish()
        .await;
    assert_eq!(status.phase, ActionPhase::Failed);
    assert!(
        status.message.contains("did not start within 10s: Unschedulable"),
        "{}",
        status.message
    );
    controller.kill();
    controller.flag("--pod-start-timeout=15m");
    controller.begin();

    // A subject in a namespace where nothing is yet.
    let backup = t.back_up_and_lose_pods(&[t.pod("app")]).await;
    let subject = json!({"blueprint": "b", "actionName": "good", "subject": {"name": "web", "type": "StatefulSet"}});
    let hooks = json!({"preHook": subject, "onFailure": hook("good")});
    let status = controller
        .restore(json!({"backupName": backup}), hooks)
        .await
        .finish()
        .await;
    let pre = invocation(&status, HookName::PreHook).unwrap();
    assert_eq!(
        (status.phase, pre.state, status.velero.is_none()),
        (ActionPhase::Failed, StepState::Failed, true)
    );
    assert!(
        pre.message.contains("statefulsets") && pre.message.contains("web does not exist"),
        "{}",
        pre.message
    );
    assert_eq!(t.ran("good"), 1);
}

#[tokio::test]
async fn a_subject_can_be_a_deployment_or_a_claim() {
    let t = Scenario::new("act-subjects").await;
    let controller = Controller::start(&t, &["--hook-retries=0"]).await;
    let mut deployment = stateful_set("web", 1);
    deployment["kind"] = json!("Deployment");
    deployment["spec"].as_object_mut().unwrap().remove("serviceName");
    t.create(&deployment).await;
    t.create(&json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none", "resources": {"requests": {"storage": "1Mi"}}},
    }))
    .await;
    kubectl(&[
        "-n",
        &t.namespace,
        "rollout",
        "status",
        "deployment/web",
        "--timeout=120s",
    ]);
    let backup = t.backup().await;
    let say = "echo {{ .Deployment.Name }} {{ len .Deployment.Pods }} {{ index .Deployment.Containers 0 }}";
    let actions = json!({
        // What is scaled is the subject, if nothing else is said.
        "stop": phases(&[t.task("say", &format!("{say} >> {TRACES}/said")), call("ScaleWorkload", "down", json!({"replicas": 0}))]),
        "claim": phases(&[t.task("say", &format!("echo {{{{ .PVC.Name }}}} {{{{ .PVC.Namespace }}}} >> {TRACES}/said"))]),
    });
    controller.blueprint("b", actions).await;
    let about = |action: &str, kind: &str, name: &str| json!({"blueprint": "b", "actionName": action, "subject": {"type": kind, "name": name}});
    let hooks = json!({"preHook": about("stop", "Deployment", "web"), "onSuccess": about("claim", "pvc", "data")});
    let spec = json!({"backupName": backup, "includedNamespaces": [t.namespace], "includedResources": ["configmaps"]});
    let status = controller.restore(spec, hooks).await.finish().await;
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    assert_eq!(t.read("said"), format!("web 1 [main]\ndata {}\n", t.namespace));
    let pre = invocation(&status, HookName::PreHook).unwrap();
    assert_eq!(pre.phases[1].output["originalReplicaCount"], 1);
    assert_eq!(kubectl(&["-n", &t.namespace, "get", "pods", "-o", "name"]), "");
}
