//! The actions controller is killed in each phase: it goes on where it stopped, and runs nothing twice.

use reveille::api::action::{ActionPhase, HookName, StepState};
use serde_json::{Value, json};

use crate::harness::*;

/// A script that leaves a trace, then waits for a signal of its name.
fn waiting(name: &str) -> String {
    format!(
        "{}; until [ -e {TRACES}/go-{name} ]; do sleep 0.2; done",
        trace_script(name)
    )
}

/// Waits until a phase's command runs, kills the controller, lets the command go on, and starts the controller again.
async fn kill_in(t: &Scenario, controller: &mut Controller<'_>, name: &str) {
    eventually(&format!("{name} runs"), async || (t.ran(name) > 0).then_some(())).await;
    controller.kill();
    t.signal(&format!("go-{name}"));
    controller.begin();
}

#[tokio::test]
async fn a_controller_that_is_killed_in_each_phase_goes_on_where_it_stopped() {
    let t = Scenario::new("act-kill").await;
    let mut controller = Controller::start(&t, &["--hook-retries=1"]).await;
    let target = t
        .pod("target")
        .edit(|pod| pod["metadata"]["labels"]["stage"] = json!("new"));
    t.start(&[target]).await;
    let namespace = t.namespace.clone();
    let reference = json!({"apiVersion": "v1", "resource": "pods", "name": "target", "namespace": namespace});
    let wait = json!({"func": "Wait", "name": "wait", "args": {
        "timeout": "4m",
        "conditions": {"allOf": [{"objectReference": reference, "condition": "{{ if eq \"{ $.metadata.labels.stage }\" \"old\" }}true{{ end }}"}]},
    }});
    let manifest = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "made"}, "data": {"seen": "{{ .Phases.task.Output.seen }}"},
    });
    let ops = json!({"func": "KubeOps", "name": "ops", "args": {"operation": "create", "namespace": namespace, "spec": manifest.to_string()}});
    let told = format!(
        "{}; echo '###Phase-output###: {{\"key\":\"seen\",\"value\":\"yes\"}}'",
        waiting("task")
    );
    let actions = json!({
        "pre": phases(&[t.task("task", &told), wait, ops]),
        "good": {"phases": [t.task("good", &waiting("good"))], "deferPhase": t.task("deferred", &waiting("deferred"))},
    });
    controller.blueprint("b", actions).await;
    let hooks = json!({"preHook": hook("pre"), "onSuccess": hook("good")});
    let spec = json!({"backup": {"includedNamespaces": [namespace], "snapshotVolumes": false}, "hooks": hooks});
    let name = begin(&controller, spec).await;

    kill_in(&t, &mut controller, "task").await;
    reach(&controller, &name, HookName::PreHook, "wait").await;
    controller.kill();
    kubectl(&["-n", &t.namespace, "label", "pod", "target", "stage=old", "--overwrite"]);
    controller.begin();
    // While Velero works, or shortly before or after: whatever it is, there is one Backup in the end.
    existing(&controller, &name)
        .reaches("Velero is asked", |status| status.velero.as_ref().map(|_| ()))
        .await;
    controller.kill();
    controller.begin();
    kill_in(&t, &mut controller, "good").await;
    kill_in(&t, &mut controller, "deferred").await;
    let status = existing(&controller, &name).finish().await;

    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    assert_eq!((t.ran("task"), t.ran("good"), t.ran("deferred")), (1, 1, 1));
    assert!(status.hooks.iter().all(|hook| hook.attempt == 1), "{:?}", status.hooks);
    let made = kubectl(&[
        "-n",
        &t.namespace,
        "get",
        "configmap",
        "made",
        "-o",
        "jsonpath={.data.seen}",
    ]);
    assert_eq!(made, "yes", "what the first phase has said outlives the process");
    let backups = kubectl(&["-n", VELERO, "get", "backups", "-o", "name"]);
    assert_eq!(
        backups.lines().filter(|backup| backup.contains(&name)).count(),
        1,
        "{backups}"
    );
}

/// A ConfigMap that stays until its finalizer is taken off.
fn held(content: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["reveille.dev/test"]},
        "data": {"content": content},
    })
}

/// Lets the ConfigMap go.
fn release(t: &Scenario) {
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    kubectl(&[
        "-n",
        &t.namespace,
        "patch",
        "configmap",
        "held",
        "--type=merge",
        "-p",
        patch,
    ]);
}

/// What `kubectl` prints of the ConfigMap.
fn of_held(t: &Scenario, path: &str) -> String {
    let format = format!("jsonpath={path}");
    kubectl(&["-n", &t.namespace, "get", "configmap", "held", "-o", &format])
}

#[tokio::test]
async fn what_functions_have_begun_is_neither_done_twice_nor_taken_for_done() {
    let t = Scenario::new("act-kill-functions").await;
    let mut controller = Controller::start(&t, &["--hook-retries=1"]).await;
    let namespace = t.namespace.clone();
    t.create(&held("first")).await;
    // It needs ten seconds to end.
    let container =
        json!({"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"]});
    t.create(&json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "slow"},
        "spec": {
            "replicas": 1, "serviceName": "slow", "selector": {"matchLabels": {"app": "slow"}},
            "template": {"metadata": {"labels": {"app": "slow"}}, "spec": {"terminationGracePeriodSeconds": 10, "containers": [container]}},
        },
    }))
    .await;
    kubectl(&[
        "-n",
        &namespace,
        "rollout",
        "status",
        "statefulset/slow",
        "--timeout=120s",
    ]);
    let reference = json!({"apiVersion": "v1", "resource": "configmaps", "name": "held", "namespace": namespace});
    let delete = json!({"operation": "delete", "objectReference": reference});
    let down = json!({"namespace": namespace, "name": "slow", "kind": "statefulset", "replicas": 0});
    let pre = phases(&[
        json!({"func": "KubeOps", "name": "delete", "args": delete}),
        json!({"func": "ScaleWorkload", "name": "down", "args": down}),
    ]);
    controller.blueprint("b", json!({"pre": pre})).await;
    let name = begin_backup(&t, &controller, json!({"preHook": hook("pre")})).await;

    // The object goes while no controller runs, and there is a new one of its name: that stays.
    eventually("it is being deleted", async || {
        (!of_held(&t, "{.metadata.deletionTimestamp}").is_empty()).then_some(())
    })
    .await;
    controller.kill();
    release(&t);
    t.create(&held("second")).await;
    controller.begin();
    reach(&controller, &name, HookName::PreHook, "down").await;
    existing(&controller, &name)
        .reaches("its pod is ending", |status| {
            let phases = &invocation(status, HookName::PreHook)?.phases;
            phases.get(1)?.original_replicas
        })
        .await;
    controller.kill();
    controller.begin();
    let status = existing(&controller, &name).finish().await;
    assert_eq!(status.phase, ActionPhase::Succeeded, "{}", status.message);
    let pre = invocation(&status, HookName::PreHook).unwrap();
    assert_eq!(
        (pre.attempt, &pre.phases[1].output["originalReplicaCount"]),
        (1, &json!(1))
    );
    assert_eq!(of_held(&t, "{.data.content}{.metadata.deletionTimestamp}"), "second");
    release(&t);
}

#[tokio::test]
async fn a_killed_on_failure_is_one_try_a_killed_exec_is_unknown_and_no_pod_is_left() {
    let t = Scenario::new("act-kill-failure").await;
    let mut controller = Controller::start(&t, &["--hook-retries=1"]).await;
    t.start(&[t.pod("target")]).await;
    let command = ["/bin/sh".to_owned(), "-c".to_owned(), waiting("exec")];
    let exec = json!({"namespace": t.namespace, "pod": "target", "command": command});
    let actions = json!({
        "fails": phases(&[t.task("fails", "exit 1")]),
        "bad": phases(&[t.task("bad", &waiting("bad"))]),
        "exec": phases(&[json!({"func": "KubeExec", "name": "exec", "args": exec})]),
        "left": phases(&[t.task("left", &waiting("left"))]),
    });
    controller.blueprint("b", actions).await;

    // An onFailure is taken up again, and is the same try.
    let hooks = json!({"preHook": hook("fails"), "onFailure": hook("bad")});
    let name = begin_backup(&t, &controller, hooks).await;
    kill_in(&t, &mut controller, "bad").await;
    let status = existing(&controller, &name).finish().await;
    let bad = invocation(&status, HookName::OnFailure).unwrap();
    assert_eq!(
        (status.phase, bad.state, bad.attempt),
        (ActionPhase::Failed, StepState::Succeeded, 1)
    );
    assert_eq!(t.ran("bad"), 1);

    // Nobody can know how an exec has ended: its try counts as failed, and there is another.
    let name = begin_backup(&t, &controller, json!({"preHook": hook("exec")})).await;
    kill_in(&t, &mut controller, "exec").await;
    let status = existing(&controller, &name).finish().await;
    let exec = invocation(&status, HookName::PreHook).unwrap();
    assert_eq!(
        (status.phase, exec.state, exec.attempt),
        (ActionPhase::Succeeded, StepState::Succeeded, 2)
    );
    assert!(
        exec.earlier_failures[0].contains("it may have run"),
        "{:?}",
        exec.earlier_failures
    );
    assert_eq!(t.ran("exec"), 2);

    // An action that is deleted while no controller runs: its pod goes all the same.
    let name = begin_backup(&t, &controller, json!({"preHook": hook("left")})).await;
    eventually("its command runs", async || (t.ran("left") == 1).then_some(())).await;
    controller.kill();
    kubectl(&["-n", &controller.namespace, "delete", "backupaction", &name]);
    controller.begin();
    existing(&controller, &name).leaves_no_pods().await;
}

async fn begin_backup(t: &Scenario, controller: &Controller<'_>, hooks: Value) -> String {
    let backup = json!({"includedNamespaces": [t.namespace], "snapshotVolumes": false});
    begin(controller, json!({"backup": backup, "hooks": hooks})).await
}

async fn begin(controller: &Controller<'_>, spec: Value) -> String {
    controller
        .action(reveille::actions::action::ActionKind::Backup, spec)
        .await
        .name
}

fn existing<'a>(controller: &'a Controller<'a>, name: &str) -> BegunAction<'a> {
    controller.existing(reveille::actions::action::ActionKind::Backup, name)
}

async fn reach(controller: &Controller<'_>, name: &str, hook: HookName, phase: &str) {
    existing(controller, name).runs(hook, phase).await;
}
