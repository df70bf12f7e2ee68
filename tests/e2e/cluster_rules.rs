//! Namespaces with rules for pods: the init containers of hooks keep to them, because they take over what the pod's own
//! container has.

use serde_json::{Value, json};

use crate::harness::*;

/// Hooks from all three sources of init containers that leave everything unset: Velero's annotation, the list, the Restore.
fn pods(pod: impl Fn(&str) -> PodSpec) -> [PodSpec; 3] {
    [
        pod("imaged")
            .annotate(init("container-image"), IMAGE)
            .annotate(init("container-name"), "hook")
            .annotate(init("command"), sh("true")),
        pod("listed").annotate(init("initContainers"), json!([tracing_container("hook")])),
        pod("ruled"),
    ]
}

async fn restore(t: &Scenario, backup: &str) -> Outcome {
    let hooks = [inject(&[tracing_container("hook")]), exec(&trace("post"))];
    let restore = t.restore(backup).hooks(rule("spec", &hooks)).run().await;
    restore.assert_all_well(3);
    assert_eq!(t.velero_ran(), Vec::<String>::new());
    for pod in ["imaged", "listed", "ruled"] {
        assert_eq!(init_names(&t.running(pod).await), ["hook"], "{pod}");
    }
    restore
}

/// The hook's container in a pod.
async fn hook_container(t: &Scenario, pod: &str) -> Value {
    t.pod_now(pod).await["spec"]["initContainers"][0].clone()
}

#[tokio::test]
async fn in_a_restricted_namespace_hooks_run_as_the_pods_own_container_does() {
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let t = Scenario::with_namespace_labels("restricted", labels).await;
    let security = json!({
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        "runAsNonRoot": true, "runAsUser": 65532,
    });
    // No volume of the node is allowed here: the traces are in the pod.
    let pods = pods(|name| {
        t.pod(name).edit(|pod| {
            pod["spec"]["containers"][0]["securityContext"] = security.clone();
            pod["spec"]["volumes"][0] = json!({"name": "traces", "emptyDir": {}});
        })
    });
    let backup = t.back_up_and_lose(&pods).await;
    restore(&t, &backup).await;

    for (pod, hook) in [("imaged", 0), ("listed", 1), ("ruled", 1)] {
        assert_eq!(hook_container(&t, pod).await["securityContext"], security, "{pod}");
        assert_eq!(
            (t.ran_inside(pod, "hook").await, t.ran_inside(pod, "post").await),
            (hook, 1),
            "{pod}"
        );
    }
}

#[tokio::test]
async fn under_a_quota_that_wants_limits_hooks_take_over_those_of_the_pod() {
    let t = Scenario::new("quota").await;
    let resources = json!({"requests": {"cpu": "1m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "32Mi"}});
    let pods = pods(|name| {
        t.pod(name)
            .edit(|pod| pod["spec"]["containers"][0]["resources"] = resources.clone())
    });
    t.start(&pods).await;
    let backup = t.backup().await;
    // Velero restores quotas after pods, so the namespace stays.
    t.lose_pods().await;
    let hard = json!({"requests.cpu": "1", "requests.memory": "1Gi", "limits.cpu": "2", "limits.memory": "1Gi"});
    t.create(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota"}, "spec": {"hard": hard},
    }))
    .await;
    t.refuses(&t.pod("without-limits"), "must specify limits").await;
    restore(&t, &backup).await;

    for pod in ["imaged", "listed", "ruled"] {
        assert_eq!(hook_container(&t, pod).await["resources"], resources, "{pod}");
    }
    assert_eq!((t.ran("hook"), t.ran("post")), (2, 3));
}

#[tokio::test]
async fn under_a_limit_range_hooks_get_limits_too() {
    let t = Scenario::new("limits").await;
    let limits = json!([{"type": "Container", "max": {"memory": "64Mi"}, "default": {"memory": "48Mi"}}]);
    t.create(&json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"}, "spec": {"limits": limits},
    }))
    .await;
    let backup = t.back_up_and_lose(&pods(|name| t.pod(name))).await;
    restore(&t, &backup).await;

    for pod in ["imaged", "listed", "ruled"] {
        assert_eq!(
            hook_container(&t, pod).await["resources"]["limits"]["memory"],
            "48Mi",
            "{pod}"
        );
    }
    assert_eq!((t.ran("hook"), t.ran("post")), (2, 3));
}

#[tokio::test]
async fn a_pod_near_the_limit_of_size_gets_its_hooks() {
    let t = Scenario::new("large-pod").await;
    let env: Vec<Value> = (0..12)
        .map(|index| json!({"name": format!("E{index}"), "value": "x".repeat(60_000)}))
        .collect();
    let pod = t
        .pod("app")
        .annotate("example.com/filler", "y".repeat(180_000))
        .annotate(init("initContainers"), json!([tracing_container("hook")]))
        .annotate(post("command"), trace("post"))
        .edit(|pod| pod["spec"]["containers"][0]["env"] = json!(env));
    let size = pod.json().to_string().len();
    assert!(size > 900_000, "{size} bytes");
    let backup = t.back_up_and_lose(&[pod]).await;
    let restore = t.restore(&backup).run().await;

    restore.assert_all_well(1);
    assert_eq!((t.ran("hook"), t.ran("post")), (1, 1));
    let restored = t.pod_now("app").await;
    assert_eq!(restored["spec"]["containers"][0]["env"], json!(env));
    assert_eq!(t.velero_ran(), Vec::<String>::new());
}
