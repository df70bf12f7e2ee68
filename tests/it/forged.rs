//! Anybody in the cluster can post a review: what it gets them is nothing of worth (docs/SECURITY.md).

use std::{
    io::Write,
    sync::{Arc, Mutex, atomic::Ordering},
};

use reveille::{hooks::restored::RestoreInfo, plan::Plan};
use serde_json::{Value, json};

use crate::support::{FakeVelero, limits, pod, pod_review, restore_object, review, start};

const SECRET: &str = "hunter2";

/// A running Restore with a hook for all pods.
fn restore_with_hook() -> RestoreInfo {
    let mut restore = restore_object("r", "u1", "InProgress");
    restore["spec"]["hooks"] = json!({"resources": [{"name": "rule", "postHooks": [
        {"init": {"initContainers": [{"name": "prepare", "image": "i", "command": ["prepare"]}]}},
    ]}]});
    RestoreInfo::read(&restore).unwrap()
}

/// A review as an attacker writes it, who poses as Velero.
fn forged() -> Value {
    let mut review = pod_review("u-1", &pod("r"));
    review["request"]["namespace"] = json!("kube-system");
    review
}

#[tokio::test]
async fn a_forged_review_changes_nothing_and_signs_nothing() {
    let velero = FakeVelero::default();
    let asked = Arc::clone(&velero.asked);
    let server = start(limits(), velero, vec![restore_with_hook()]).await;
    let mut client = server.client().await;
    let ask =
        async |client: &mut crate::support::Client| client.post("/mutate/pods", forged().to_string()).await.unwrap();
    let reply = ask(&mut client).await;

    // The answer is a patch for the very object that was posted: its metadata and its init containers.
    let after = reply.applied(&pod("r"));
    let mut without = after.clone();
    without["metadata"] = json!({});
    without["spec"].as_object_mut().unwrap().remove("initContainers");
    let mut posted = pod("r");
    posted["metadata"] = json!({});
    assert_eq!(without, posted);
    let text = String::from_utf8(reply.body.to_vec()).unwrap() + &after.to_string();
    for word in ["PRIVATE KEY", "CERTIFICATE", "token", "Bearer"] {
        assert!(!text.contains(word), "{word} in {text}");
    }
    // Whoever knows what is in a plan can write its digest himself: it proves nothing, and nobody takes it for a proof.
    let plan = after["metadata"]["annotations"]["reveille.dev/plan"].as_str().unwrap();
    let plan = Plan::parse(plan).unwrap();
    assert_eq!(plan.clone().sealed().digest, plan.digest);
    // Known Restores cost the API server nothing.
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_forged_review_of_any_other_kind_gets_nothing() {
    let server = start(limits(), FakeVelero::default(), vec![restore_with_hook()]).await;
    let mut client = server.client().await;
    for (group, resource) in [
        ("", "secrets"),
        ("", "serviceaccounts"),
        ("apps", "deployments"),
        ("reveille.dev", "hookruns"),
        ("authentication.k8s.io", "tokenreviews"),
    ] {
        let body = review("u", group, resource, &pod("r")).to_string();
        let response = client.post("/mutate/pods", body).await.unwrap().response();
        assert_eq!(response, json!({"uid": "u", "allowed": true}), "{resource}");
    }
    server.stop().await;
}

/// Where this test's log goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Also at the level `debug`, and also when the hook is wrong.
#[tokio::test]
async fn the_log_of_a_call_holds_no_command() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = start(limits(), FakeVelero::default(), vec![restore_with_hook()]).await;
    let mut client = server.client().await;
    let mut pod = pod("r");
    pod["metadata"]["annotations"]["post.hook.restore.velero.io/command"] = json!(format!("login --password {SECRET}"));
    for timeout in ["30s", SECRET] {
        pod["metadata"]["annotations"]["post.hook.restore.velero.io/exec-timeout"] = json!(timeout);
        client.pod(&pod).await.unwrap().response();
    }
    server.stop().await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for line in ["pod planned", "pod with problems in its hooks"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(text.contains("db-0"), "{text}");
    assert!(!text.contains(SECRET) && !text.contains("login"), "{text}");
}
