//! What is answered, and that nothing a client does hurts the next one.

use std::{sync::atomic::Ordering, time::Duration};

use hyper::StatusCode;
use proptest::{prelude::*, test_runner::TestRunner};
use reveille::{
    infra::metrics::{Decision, Resource},
    webhook::limits::Limits,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{self, FakeVelero, limits, pod, pod_review, restore, review, start};

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(5);

async fn with_running_restore() -> support::TestServer {
    start(limits(), FakeVelero::default(), vec![restore("r", "u1", "InProgress")]).await
}

#[tokio::test]
async fn a_pod_under_restore_gets_its_plan() {
    let server = with_running_restore().await;
    let mut client = server.client().await;
    let pod = pod("r");
    let reply = client.pod(&pod).await.unwrap();
    let response = reply.response();
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)));
    assert_eq!(response["auditAnnotations"]["decision"], "patched");
    assert_eq!(response["auditAnnotations"]["restore"], "velero/r");
    assert_eq!(response["auditAnnotations"]["post-hooks"], "1");
    let after = reply.applied(&pod);
    assert_eq!(after["metadata"]["labels"]["reveille.dev/hooks"], "planned");
    let plan: Value =
        serde_json::from_str(after["metadata"]["annotations"]["reveille.dev/plan"].as_str().unwrap()).unwrap();
    assert_eq!(plan["restore"]["uid"], "u1");

    // What it made itself is right as it is.
    let again = client.pod(&after).await.unwrap().response();
    assert_eq!(again["auditAnnotations"]["decision"], "unchanged");
    assert!(again.get("patch").is_none() && again.get("patchType").is_none());
    assert_eq!(server.metrics.admissions(Resource::Pods, Decision::Patched), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_restore_is_marked() {
    let server = with_running_restore().await;
    let object = json!({
        "apiVersion": "velero.io/v1", "kind": "Restore", "metadata": {"namespace": "velero", "name": "r"},
        "spec": {"hooks": {"resources": [{"name": "a", "postHooks": [{"exec": {"command": ["true"]}}]}]}},
    });
    let body = review("u-2", "velero.io", "restores", &object).to_string();
    let reply = server
        .client()
        .await
        .post("/mutate/restores?timeout=5s", body)
        .await
        .unwrap();
    assert_eq!(reply.response()["uid"], "u-2");
    let after = reply.applied(&object);
    assert_eq!(after["metadata"]["annotations"]["reveille.dev/owner"], "reveille");
    server.stop().await;
}

#[tokio::test]
async fn a_bad_hook_is_a_warning_and_the_pod_is_admitted() {
    let server = with_running_restore().await;
    let mut pod = pod("r");
    pod["metadata"]["annotations"]["post.hook.restore.velero.io/exec-timeout"] = json!("soon");
    let response = server.client().await.pod(&pod).await.unwrap().response();
    assert_eq!(response["allowed"], true);
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains("exec-timeout") && warning.contains("soon"),
        "{warning}"
    );
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_known_is_allowed_as_it_is() {
    let server = with_running_restore().await;
    let mut client = server.client().await;
    let mut update = pod_review("u-3", &pod("r"));
    update["request"]["operation"] = json!("UPDATE");
    let mut status = pod_review("u-3", &pod("r"));
    status["request"]["subResource"] = json!("status");
    let mut mirror = pod("r");
    mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x");
    for body in [
        review("u-3", "apps", "deployments", &json!({})),
        pod_review("u-3", &Value::Null),
        pod_review("u-3", &json!("text")),
        pod_review("u-3", &mirror),
        update,
        status,
    ] {
        let response = client.post("/mutate/pods", body.to_string()).await.unwrap().response();
        assert_eq!(response, json!({"uid": "u-3", "allowed": true}), "{body}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_review_is_a_400_with_the_reason() {
    let server = with_running_restore().await;
    let mut client = server.client().await;
    for body in [
        "",
        "x",
        "{}",
        "[]",
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#,
    ] {
        let reply = client.post("/mutate/pods", body).await.unwrap();
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(
            String::from_utf8_lossy(&reply.body).contains("AdmissionReview"),
            "{reply:?}"
        );
    }
    assert_eq!(client.post("/", "{}").await.unwrap().status, StatusCode::NOT_FOUND);
    server.stop().await;
}

#[tokio::test]
async fn a_body_of_nine_mebibytes_is_refused_and_one_of_seven_is_not() {
    let server = with_running_restore().await;
    let mut client = server.client().await;
    let reply = client.post("/mutate/pods", vec![b' '; 9 << 20]).await.unwrap();
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    // The connection is still good.
    let mut large = pod("r");
    large["metadata"]["annotations"]["x"] = json!("x".repeat(7 << 20));
    assert_eq!(client.pod(&large).await.unwrap().status, StatusCode::OK);
    server.stop().await;
}

#[tokio::test]
async fn many_calls_at_once_on_kept_connections() {
    // Less room than the calls need together: they wait for each other.
    let limits = Limits {
        bytes_in_flight: 64 << 10,
        body_bytes: 64 << 10,
        calls: 2,
        ..limits()
    };
    let server = start(limits, FakeVelero::default(), vec![restore("r", "u1", "InProgress")]).await;
    let connections = (0..25).map(|_| async {
        let mut client = server.client().await;
        for _ in 0..20 {
            assert_eq!(client.pod(&pod("r")).await.unwrap().response()["allowed"], true);
        }
    });
    futures::future::join_all(connections).await;
    assert_eq!(server.metrics.admissions(Resource::Pods, Decision::Patched), 500);
    server.stop().await;
}

#[tokio::test]
async fn a_panic_is_a_500_of_that_call_alone() {
    let server = with_running_restore().await;
    let mut client = server.client().await;
    let reply = client.pod(&pod("panic")).await.unwrap();
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(client.pod(&pod("r")).await.unwrap().status, StatusCode::OK);
    assert_eq!(server.metrics.admissions(Resource::Other, Decision::Failed), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_restore_that_the_watch_has_not_brought_is_asked_for() {
    let velero = FakeVelero {
        restores: vec![restore("new", "u2", "InProgress")],
        ..FakeVelero::default()
    };
    let asked = velero.asked.clone();
    // The old one of the same name is over; Velero's own account creates the pod.
    let server = start(limits(), velero, vec![restore("new", "u1", "Completed")]).await;
    let mut client = server.client().await;
    let pod_of_new = pod("new");
    let after = client.pod(&pod_of_new).await.unwrap().applied(&pod_of_new);
    assert!(
        after["metadata"]["annotations"]["reveille.dev/plan"]
            .as_str()
            .unwrap()
            .contains("u2")
    );
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    // Somebody else with a stale label costs no question.
    let mut other = pod_review("u", &pod("new"));
    other["request"]["userInfo"]["username"] = json!("system:serviceaccount:kube-system:replicaset-controller");
    let reply = client.post("/mutate/pods", other.to_string()).await.unwrap();
    assert_eq!(reply.response()["auditAnnotations"]["decision"], "not_restored");
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    // No such Restore anywhere.
    let reply = client.pod(&pod("gone")).await.unwrap();
    assert_eq!(reply.response()["auditAnnotations"]["decision"], "not_restored");
    server.stop().await;
}

#[tokio::test]
async fn an_answer_comes_within_the_calls_time_even_if_the_restores_do_not() {
    let velero = FakeVelero {
        takes: Duration::from_secs(60),
        ..FakeVelero::default()
    };
    let server = start(limits(), velero, vec![]).await;
    let body = pod_review("u", &pod("r")).to_string();
    let mut client = server.client().await;
    let reply = timeout(LONG * 4, client.post("/mutate/pods?timeout=1s", body)).await;
    let response = reply.unwrap().unwrap().response();
    assert_eq!(response["auditAnnotations"]["decision"], "unresolved");
    assert!(response["warnings"][0].as_str().unwrap().contains("in time"));
    server.stop().await;
}

#[tokio::test]
async fn the_end_loses_no_call() {
    // Long enough for two handshakes on a busy machine.
    let delay = Duration::from_secs(2);
    let velero = FakeVelero {
        takes: delay * 2,
        ..FakeVelero::default()
    };
    let limits = Limits {
        shutdown_delay: delay,
        ..limits()
    };
    let server = start(limits, velero, vec![]).await;
    // A call that is running when the end begins, and still when the shutdown delay is over.
    let mut running = server.client().await;
    let running_pod = pod("slow");
    let call = running.pod(&running_pod);
    let end = async {
        tokio::time::sleep(SHORT / 2).await;
        assert!(server.readiness.unmet().is_empty());
        // One connection from before, one from after the beginning of the end: both are served, and told to close.
        let mut before = server.client().await;
        server.stopping.cancel();
        while server.readiness.unmet().is_empty() {
            tokio::time::sleep(SHORT / 10).await;
        }
        let mut after = server.client().await;
        for client in [&mut before, &mut after] {
            let reply = client.pod(&json!({})).await.unwrap();
            assert!(reply.closes && reply.status == StatusCode::OK, "{reply:?}");
        }
    };
    let (reply, ()) = tokio::join!(call, end);
    assert_eq!(reply.unwrap().response()["allowed"], true);
    timeout(LONG * 4, server.task).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn the_end_does_not_wait_for_ever() {
    let velero = FakeVelero {
        takes: Duration::from_secs(60),
        ..FakeVelero::default()
    };
    let limits = Limits {
        drain: SHORT,
        ..limits()
    };
    let server = start(limits, velero, vec![]).await;
    let mut client = server.client().await;
    let pod = pod("r");
    let stop = async {
        tokio::time::sleep(SHORT).await;
        timeout(LONG, server.stop()).await.expect("cut off");
    };
    let (reply, ()) = tokio::join!(client.pod(&pod), stop);
    assert!(reply.is_err());
}

#[test]
fn no_bytes_make_it_fail() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let (server, client) = runtime.block_on(async {
        let server = with_running_restore().await;
        let client = server.client().await;
        (server, tokio::sync::Mutex::new(client))
    });
    let strange = prop_oneof![
        Just(json!(null)),
        any::<i64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!([[]])),
        Just(json!({"a": {}}))
    ];
    let reviews = (proptest::collection::vec(strange, 6), any::<bool>()).prop_map(|(values, pods)| {
        let [labels, annotations, containers, user, old, metadata] = <[Value; 6]>::try_from(values).unwrap();
        let mut object = pod("r");
        object["metadata"]["annotations"]["init.hook.restore.velero.io/command"] = annotations;
        object["metadata"]["labels"]["x"] = labels;
        object["spec"]["containers"] = containers;
        if metadata.is_array() {
            object["metadata"] = metadata;
        }
        let mut review = if pods {
            pod_review("u", &object)
        } else {
            review("u", "velero.io", "restores", &object)
        };
        review["request"]["oldObject"] = old;
        review["request"]["userInfo"] = user;
        review.to_string().into_bytes()
    });
    let bytes = prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), reviews];
    TestRunner::new(ProptestConfig::with_cases(300))
        .run(&bytes, |body| {
            let call = async { client.lock().await.post("/mutate/pods?timeout=5s", body.clone()).await };
            let reply = runtime.block_on(call).unwrap();
            prop_assert!(reply.status == 200 || reply.status == 400, "{:?} for {:?}", reply, body);
            Ok(())
        })
        .unwrap();
    runtime.block_on(server.stop());
}
