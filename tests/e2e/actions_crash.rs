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
    let exec = json!({"func": "KubeExec", "name": "exec", "args": {
        "namespace": namespace, "pod": "target", "command": ["/bin/sh", "-c", waiting("exec")],
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
        "exec": phases(&[exec]),
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

    // Nobody can know how an exec has ended: its try counts as failed, and there is another.
    let hooks = json!({"preHook": hook("exec")});
    let spec = json!({"backup": {"includedNamespaces": [namespace], "snapshotVolumes": false}, "hooks": hooks});
    let name = begin(&controller, spec).await;
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
