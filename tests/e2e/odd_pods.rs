//! Pods in which nothing is as it should be: each run ends, or says what it waits for, and finished runs go.

use kube::{
    Api,
    api::{ListParams, PostParams},
};
use reveille::{
    api::{
        HookRun,
        hook_run::{HookRunStatus, HookState, PostStatus, RunPhase},
    },
    hooks::restored::label_value,
    names::VELERO_RESTORE_LABEL,
};
use serde_json::json;

use crate::harness::*;

/// A script that sleeps in the pod that is backed up, and does something else in the restored one.
fn restored(script: &str) -> Vec<String> {
    let script = format!("if [ -e {TRACES}/again ]; then {script}; fi; sleep 1000000");
    ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
}

/// A pod with one hook, whose container is never ready.
fn waiting(t: &Scenario, name: &str) -> PodSpec {
    t.pod(name)
        .ready_when("never")
        .annotate(post("command"), trace(name))
        .annotate(post("wait-for-ready"), "true")
}

fn main_runs(pod: PodSpec, policy: &str, script: &str) -> PodSpec {
    let command = restored(script);
    pod.edit(|pod| {
        pod["spec"]["restartPolicy"] = json!(policy);
        pod["spec"]["containers"][0]["command"] = json!(command);
    })
}

/// Fills a volume far beyond its limit.
const FILL: &str = "dd if=/dev/zero of=/scratch/full bs=1M count=20";

/// With a small volume at `/scratch`: who writes more into it is evicted by the kubelet.
fn too_large(pod: PodSpec) -> PodSpec {
    let volume = json!({"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}});
    let mount = json!({"name": "scratch", "mountPath": "/scratch"});
    pod.edit(|pod| {
        pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
        pod["spec"]["containers"][0]["volumeMounts"]
            .as_array_mut()
            .unwrap()
            .push(mount);
    })
}

fn with_init(pod: PodSpec, policy: &str) -> PodSpec {
    let script = format!("! [ -e {TRACES}/again ]");
    let container = json!({
        "name": "own", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": sh(&script),
        "volumeMounts": [{"name": "traces", "mountPath": TRACES}],
    });
    pod.init_container(container)
        .edit(|pod| pod["spec"]["restartPolicy"] = json!(policy))
}

/// The reason of a condition that is True.
fn condition(status: &HookRunStatus, type_: &str) -> Option<String> {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_)?;
    (found.status == "True").then(|| found.reason.clone())
}

/// The only post hook of a pod, once its run has ended.
async fn ended(begun: &BegunRestore<'_>, pod: &str) -> PostStatus {
    begun
        .reaches(&format!("the run of {pod} has ended"), |now| {
            let status = now.run_of(pod)?.status.clone()?;
            status.phase.is_final().then(|| status.post[0].clone())
        })
        .await
}

/// Starts one pod of each kind, backs all of them up, and loses them.
async fn back_up_odd_pods(t: &Scenario) -> String {
    let two = main_runs(waiting(t, "ended").container("second"), "Never", "exit 3").edit(|pod| {
        pod["spec"]["containers"][1]["command"] = json!(["sleep", "1000000"]);
        pod["spec"]["containers"][1]
            .as_object_mut()
            .unwrap()
            .remove("readinessProbe");
    });
    let deadline = main_runs(waiting(t, "deadline"), "Never", "true");
    t.start(&[
        two,
        deadline.edit(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(1_000_000)),
        main_runs(waiting(t, "job"), "Never", "exit 0"),
        with_init(waiting(t, "init-fails"), "Never"),
        with_init(waiting(t, "init-crashes"), "Always"),
        main_runs(waiting(t, "crashes"), "Always", "exit 1"),
        waiting(t, "deleted"),
        waiting(t, "recreated"),
        waiting(t, "stuck"),
        waiting(t, "drained"),
        too_large(main_runs(waiting(t, "evicted"), "Always", FILL)),
    ])
    .await;
    let no_image = waiting(t, "no-image").edit(|pod| pod["spec"]["containers"][0]["image"] = json!("localhost/none:1"));
    let no_node = waiting(t, "no-node").edit(|pod| pod["spec"]["nodeSelector"] = json!({"no": "where"}));
    t.submit(&no_image).await;
    t.submit(&no_node).await;
    let backup = t.backup().await;
    t.lose_pods().await;
    backup
}

/// The run of a pod says that it waits, for one of these reasons, and so does an Event on the pod.
async fn assert_waits(t: &Scenario, begun: &BegunRestore<'_>, pod: &str, reasons: &[&str]) {
    let status = begun
        .reaches(&format!("{pod} says that it waits for one of {reasons:?}"), |now| {
            let status = now.run_of(pod)?.status.clone()?;
            reasons
                .contains(&condition(&status, "Waiting")?.as_str())
                .then_some(status)
        })
        .await;
    assert!(status.message.starts_with("waits: "), "{pod}: {}", status.message);
    assert_eq!((status.phase, status.progress.as_str()), (RunPhase::Pending, "0/1"));
    assert_eq!(condition(&status, "Finished"), None);
    eventually("an Event says so", async || {
        (!t.events(pod, "HooksWaiting").await.is_empty()).then_some(())
    })
    .await;
}

/// The hook of a pod was cancelled for one of these reasons, with these words.
async fn assert_cancelled(begun: &BegunRestore<'_>, pod: &str, reasons: &[&str], words: &str) {
    let post = ended(begun, pod).await;
    assert_eq!(post.state, HookState::Cancelled, "{pod}: {post:?}");
    assert!(reasons.contains(&post.reason.as_str()), "{pod}: {post:?}");
    assert!(post.message.contains(words), "{pod}: {}", post.message);
}

#[tokio::test]
async fn each_odd_pod_ends_in_words_or_says_what_it_waits_for() {
    let t = Scenario::alone("odd").await;
    install(&["waiter.reportWaitingAfter=2s"]);
    webhook_answers(&t.client).await;
    let backup = back_up_odd_pods(&t).await;
    t.signal("again");
    let begun = t.restore(&backup).begin().await;

    // Those that can't go on say why.
    assert_waits(&t, &begun, "no-image", &["ErrImagePull", "ImagePullBackOff"]).await;
    assert_waits(&t, &begun, "no-node", &["Unschedulable"]).await;
    assert_waits(&t, &begun, "init-crashes", &["CrashLoopBackOff", "PodInitializing"]).await;
    let crash = ["CrashLoopBackOff", "ContainerNotRunning", "ContainerNotReady"];
    assert_waits(&t, &begun, "crashes", &crash).await;
    for pod in ["deleted", "recreated", "stuck", "deadline"] {
        assert_waits(&t, &begun, pod, &["ContainerNotReady"]).await;
    }
    // Those that never will have ended at once.
    assert_cancelled(&begun, "ended", &["ContainerEnded"], "exit code 3").await;
    // The kubelet may tell the container's end before the pod's.
    assert_cancelled(&begun, "job", &["PodEnded", "ContainerEnded"], "").await;
    assert_cancelled(&begun, "init-fails", &["PodEnded"], "the pod has ended").await;

    // What happens while they wait.
    let in_namespace = ["-n", t.namespace.as_str()];
    let act = |arguments: &[&str]| kubectl(&[&in_namespace, arguments].concat());
    let patch = |pod: &str, patch: &str| act(&["patch", "pod", pod, "--type=merge", "-p", patch]);
    act(&["delete", "pod", "deleted", "--wait=false"]);
    patch("stuck", r#"{"metadata":{"finalizers":["example.com/hold"]}}"#);
    act(&["delete", "pod", "stuck", "--wait=false"]);
    patch("deadline", r#"{"spec":{"activeDeadlineSeconds":1}}"#);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "drained", "namespace": t.namespace},
    });
    let file = t.write("eviction.json", &eviction.to_string());
    let url = format!("/api/v1/namespaces/{}/pods/drained/eviction", t.namespace);
    kubectl(&["create", "--raw", &url, "-f", &file]);
    let old = t.pod_now("recreated").await["metadata"]["uid"].clone();
    act(&["delete", "pod", "recreated"]);
    t.submit(&waiting(&t, "recreated").ready_when("again")).await;
    let deleted = ["PodDeleted", "PodGone"];
    assert_cancelled(&begun, "deleted", &deleted, "").await;
    assert_cancelled(&begun, "recreated", &deleted, "").await;
    assert_cancelled(&begun, "drained", &deleted, "").await;
    assert_cancelled(&begun, "stuck", &["PodDeleted"], "").await;
    assert_cancelled(&begun, "deadline", &["PodEnded"], "").await;
    // The kubelet looks at volumes about once a minute.
    assert_cancelled(&begun, "evicted", &["PodEnded"], "Evicted").await;
    assert_eq!(json!(begun.now().await.run_of("recreated").unwrap().spec.pod.uid), old);
    patch("stuck", r#"{"metadata":{"finalizers":null}}"#);

    // The others end with their pods.
    t.lose_pods().await;
    let end = begun.finish().await;
    assert_eq!(
        (end.phase.as_str(), end.result.as_deref(), end.runs.len()),
        ("Completed", Some("Succeeded"), 13)
    );
    for run in &end.runs {
        let status = run.status.as_ref().unwrap();
        assert_eq!(
            (status.phase, status.progress.as_str()),
            (RunPhase::PartiallyFailed, "1/1")
        );
        let (finished, waits) = (condition(status, "Finished"), condition(status, "Waiting"));
        assert!(finished.is_some() && waits.is_none(), "{status:?}");
        assert_eq!(t.ran(&run.spec.pod.name), 0);
    }

    // Finished runs go when their time is over, which began with their end, not with the waiter's start.
    install(&["waiter.ttl=5s"]);
    let runs: Api<HookRun> = Api::namespaced(t.client.clone(), &t.namespace);
    eventually("finished runs are gone", async || {
        let left = runs.list(&ListParams::default()).await.unwrap().items;
        left.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_run_that_came_with_a_backup_is_stale() {
    let t = Scenario::new("stray").await;
    let stray = json!({
        "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {"name": "stray"},
        "spec": {
            "pod": {"name": "none", "uid": "none", "createdAt": "2026-01-01T00:00:00Z"},
            "plan": {"version": 1, "plannedAt": "2026-01-01T00:00:00Z"},
        },
    });
    t.create(&stray).await;
    let runs: Api<HookRun> = Api::namespaced(t.client.clone(), &t.namespace);
    let status = eventually("the stray run has ended", async || {
        let status = runs.get("stray").await.unwrap().status?;
        status.phase.is_final().then_some(status)
    })
    .await;
    assert_eq!(status.phase, RunPhase::Stale);
    assert_eq!(condition(&status, "Finished").as_deref(), Some("Stale"));
}

#[tokio::test]
async fn a_run_whose_restore_is_deleted_never_begins() {
    let t = Scenario::new("orphan").await;
    let pods = [waiting(&t, "app")];
    let backup = t.back_up_and_lose_pods(&pods).await;
    let begun = t.restore(&backup).begin().await;
    begun
        .reaches("Velero is done and the run waits", |now| {
            (now.phase == "Completed" && now.run_of("app")?.status.is_some()).then_some(())
        })
        .await;
    kubectl(&["-n", VELERO, "delete", "restores.velero.io", &begun.name]);
    let runs: Api<HookRun> = Api::namespaced(t.client.clone(), &t.namespace);
    let label = format!("{VELERO_RESTORE_LABEL}={}", label_value(&begun.name));
    let parameters = ListParams::default().labels(&label);
    let status = eventually("the run is stale", async || {
        let run = runs.list(&parameters).await.unwrap().items.pop()?;
        run.status.filter(|status| status.phase == RunPhase::Stale)
    })
    .await;
    assert_eq!(status.post[0].state, HookState::Skipped);
    assert!(status.message.contains(&begun.name), "{}", status.message);
    t.signal("never");
    eventually("the pod carries nothing but the run mark", async || {
        let pod = t.pods().get("app").await.unwrap();
        (annotation_of(&pod, reveille::names::PLAN_ANNOTATION).is_none()).then_some(())
    })
    .await;
    assert_eq!(t.ran("app"), 0);
}

#[tokio::test]
async fn the_largest_record_that_is_written_fits_into_etcd() {
    let t = Scenario::new("large").await;
    let hook = json!({"name": "h", "source": "spec", "container": "main", "command": ["x"], "execTimeout": "30s"});
    let run = json!({
        "apiVersion": "reveille.dev/v1alpha1", "kind": "HookRun", "metadata": {"name": "large"},
        "spec": {
            "pod": {"name": "none", "uid": "none", "createdAt": "2026-01-01T00:00:00Z"},
            "plan": {"version": 1, "plannedAt": "2026-01-01T00:00:00Z", "post": vec![hook; 300]},
        },
    });
    t.create(&run).await;
    let runs: Api<HookRun> = Api::namespaced(t.client.clone(), &t.namespace);
    let mut run = eventually("the waiter has nothing more to do with it", async || {
        let run = runs.get("large").await.unwrap();
        run.status
            .as_ref()
            .is_some_and(|status| status.phase.is_final())
            .then_some(run)
    })
    .await;
    let attempt = json!({
        "number": 1, "claimedBy": "me", "startedAt": "2026-01-01T00:00:00.000000Z",
        "stdout": "\"\\".repeat(2048), "stderr": "\n".repeat(4096),
    });
    let status = run.status.as_mut().unwrap();
    for post in &mut status.post {
        post.attempts = vec![serde_json::from_value(attempt.clone()).unwrap()];
    }
    let too_large = runs.replace_status("large", &PostParams::default(), &run).await;
    assert!(too_large.is_err(), "etcd takes as much as this");
    reveille::waiter::budget::fit(run.status.as_mut().unwrap());
    runs.replace_status("large", &PostParams::default(), &run)
        .await
        .unwrap();
}
